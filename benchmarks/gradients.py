"""How often checks of gradients decide wrongly, on right gradients and on wrong ones.

    python benchmarks/gradients.py [--cases 500] [--dtype bfloat16] [--seed 0] [--only jaxnn]
    python benchmarks/gradients.py --out bfloat16.1.jsonl --part 1/2 --dtype bfloat16   # and 2/2 in another process
    python benchmarks/gradients.py --table bfloat16.*.jsonl
    python benchmarks/gradients.py --show "float32 / sign / dense / 3"

Four checks judge the same hand-derived gradients: `jaxnn.gradcheck.function`, `jax.test_util.check_grads` (first
order, reverse mode, its default tolerances), the same under x64 with the arguments in float64, and
`chex.assert_numerical_grads`. Half of the gradients are wrong, in a way with a name; gradient_cases.py and
gradient_hard_cases.py have them.
No label rests on any of the four: gradient_labels.py proves it.

A run takes hours. With `--out` every verdict is written to a file when it is known, a line each; a run that finds the
file there goes on after it, and `--table` adds up any number of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from gradient_labels import ALL_RIGHT, KINDS, Case, case, is_float, merged, names, rounded
from jax.test_util import check_grads
from timing import machine

from jaxnn import gradcheck

DTYPES = ("float32", "bfloat16", "float64")
RIGHT, WRONG, KINK, CANNOT_TELL = "right", "wrong", "kink", "cannot tell"  # as the reports of jaxnn say it
CLEARED = 40  # cases after which compiled programs are dropped: each case has its own


# ---------------------------------------------------------------- the four checks


def by_jaxnn(case: Case) -> str:
    return gradcheck.function(case.family.f, case.args, backward=case.backward, **dict(case.family.options)).verdict


def by_check_grads(case: Case) -> str:
    return _asserted(functools.partial(check_grads, order=1, modes=["rev"]), case)


def by_check_grads_x64(case: Case) -> str:
    with jax.enable_x64(True):
        return by_check_grads(case._replace(args=rounded(case.args, jnp.float64)))


def by_chex(case: Case) -> str:
    return _asserted(functools.partial(chex.assert_numerical_grads, order=1, modes=["rev"]), case)


CHECKS = {
    "jaxnn": by_jaxnn,
    "check_grads": by_check_grads,
    "check_grads, x64": by_check_grads_x64,
    "chex": by_chex,
}


def _asserted(check: Callable[[Any, Any], None], case: Case) -> str:
    """What an assertion says: it fails on a wrong gradient."""
    floats, tree = jax.tree.flatten([a for a in case.args if is_float(a)])

    @jax.custom_vjp
    def f(*floats: Any) -> Any:
        return case.family.f(*merged(case.args, jax.tree.unflatten(tree, floats)))

    def backward(floats: Any, delta: Any) -> Any:
        return tuple(jax.tree.leaves(case.backward(tuple(merged(case.args, jax.tree.unflatten(tree, floats))), delta)))

    f.defvjp(lambda *floats: (f(*floats), floats), backward)
    try:
        check(jax.jit(f), floats)
    except AssertionError:
        return WRONG
    return RIGHT


# ---------------------------------------------------------------- running


class Judged(NamedTuple):
    """A case and, by check, the verdict and the seconds it took."""

    name: str
    seed: int
    row: str
    wrong: bool
    verdicts: dict[str, str]
    seconds: dict[str, float]

    def open(self, check: str) -> bool:
        """Whether the check could not tell."""
        return self.verdicts[check].startswith(CANNOT_TELL)

    def mistaken(self, check: str) -> bool:
        """Whether the check decided, and wrongly."""
        verdict = self.verdicts[check]
        return verdict in (RIGHT, KINK) if self.wrong else verdict == WRONG


def judged(case: Case, seed: int, checks: Sequence[str]) -> Judged:
    """The verdicts on a case; a check that raises anything but its own assertion has not decided."""
    verdicts, seconds = {}, {}
    for check in checks:
        began = time.perf_counter()
        try:
            with jax.enable_x64(case.dtype == "float64"):
                verdicts[check] = CHECKS[check](case)
        except Exception as error:
            verdicts[check] = f"{CANNOT_TELL}, {type(error).__name__}"
        seconds[check] = round(time.perf_counter() - began, 3)
    return Judged(case.name, seed, case.row, case.wrong, verdicts, seconds)


def judge_all(
    todo: Sequence[str], seed: int, checks: Sequence[str], known: dict[tuple[str, int], Judged]
) -> Iterator[Judged]:
    """Every case by the checks that have not judged it yet; progress goes to the standard error."""
    for number, name in enumerate(sorted(todo, key=_family)):  # a family's labels are proved by one compiled program
        if number % CLEARED == 0:
            jax.clear_caches()
        before = known[name, seed].verdicts if (name, seed) in known else {}
        missing = [check for check in checks if check not in before and _applies(check, name)]
        if missing:
            yield judged(case(name, seed), seed, missing)
        print(f"\r{number + 1} of {len(todo)}  {name:60.60}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _family(name: str) -> str:
    return name.split(" / ")[2]


def _applies(check: str, name: str) -> bool:
    """Where the case is in float64 already, check_grads under x64 is check_grads."""
    return check != "check_grads" or not name.startswith("float64")


def read(files: Iterable[Path]) -> dict[tuple[str, int], Judged]:
    """What is in the files, by name and seed; a last line cut off by an end of the run is left out."""
    found: dict[tuple[str, int], Judged] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                add(found, Judged(**json.loads(line)))
    return found


def add(found: dict[tuple[str, int], Judged], result: Judged) -> None:
    """Puts a result beside what other checks said of the same case."""
    before = found.get((result.name, result.seed), result)
    found[result.name, result.seed] = result._replace(
        verdicts=before.verdicts | result.verdicts, seconds=before.seconds | result.seconds
    )


def run(todo: Sequence[str], seed: int, checks: Sequence[str], out: Path | None) -> list[Judged]:
    """Judges what is not in the file yet, and appends it there."""
    known = read([out]) if out is not None and out.exists() else {}
    if out is not None and out.exists() and (text := out.read_text(encoding="utf-8")) and not text.endswith("\n"):
        out.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    for result in judge_all(todo, seed, checks, known):
        add(known, result)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result._asdict(), ensure_ascii=False) + "\n")
    return list(known.values())


# ---------------------------------------------------------------- counting


def table(results: Sequence[Judged], checks: Sequence[str]) -> str:
    """Markdown: wrong decisions, and how many it could not tell, of each check; one table for each precision."""
    parts = []
    for dtype in DTYPES:
        group = [result for result in results if result.name.startswith(dtype)]
        shown = [check for check in checks if any(check in result.verdicts for result in group)]
        if not group:
            continue
        lines = [f"| {dtype} | number | {' | '.join(shown)} |", f"|---|--:|{'--:|' * len(shown)}"]
        for title, wrong in ((ALL_RIGHT, False), (WRONG, True)):
            part = [result for result in group if result.wrong is wrong]
            lines.append(_line(f"**{title}**", part, shown))
            rows = sorted({result.row for result in part}, key=lambda row: (row in KINDS and KINDS.index(row), row))
            lines += [_line(row, [result for result in part if result.row == row], shown) for row in rows]
        seconds = (
            statistics.median(result.seconds[check] for result in group if check in result.seconds) for check in shown
        )
        parts.append("\n".join([*lines, f"| median time | | {' | '.join(f'{s:.2f} s' for s in seconds)} |"]))
    return "\n\n".join(parts)


def _line(title: str, results: Sequence[Judged], checks: Sequence[str]) -> str:
    cells = []
    for check in checks:
        part = [result for result in results if check in result.verdicts]
        mistakes, open_ = sum(r.mistaken(check) for r in part), sum(r.open(check) for r in part)
        of = "" if len(part) == len(results) else f" of {len(part)}"
        cells.append(f"{mistakes} + {open_}?{of}" if open_ else f"{mistakes}{of}")
    return f"| {title} | {len(results)} | {' | '.join(cells)} |"


def mistakes(results: Sequence[Judged], checks: Sequence[str]) -> list[str]:
    """A line for every wrong decision, and for every case left open."""
    lines = []
    for check in checks:
        for result in results:
            if check in result.verdicts and result.mistaken(check):
                lines.append(f"{check}: {result.verdicts[check].upper()} said of {result.name}")
            elif check in result.verdicts and result.open(check):
                lines.append(f"{check}: {result.verdicts[check]}: {result.name}")
    return lines


def show(name: str, seed: int) -> None:
    """One case, its arguments, and what jaxnn reports of it."""
    shown = case(name, seed)
    print(f"{name}: {shown.family.name}, labelled {WRONG if shown.wrong else RIGHT}")
    for number, arg in enumerate(shown.args):
        print(f"args[{number}] = {arg}")
    with jax.enable_x64(shown.dtype == "float64"):
        print(gradcheck.function(shown.family.f, shown.args, backward=shown.backward, **dict(shown.family.options)))


def part_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    i, n = map(int, text.split("/"))
    if not 1 <= i <= n:
        raise ValueError(f"part {i} of {n}")
    return i, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="right ones per precision, and as many wrong ones")
    parser.add_argument("--dtype", choices=DTYPES, help="one precision only")
    parser.add_argument("--family", help="cases of one family only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CHECKS, action="append", help="one check only; may be repeated")
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="I/N", help="every N-th case from the I-th")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where verdicts are kept, and a run goes on from")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only adds up what is in such files")
    parser.add_argument("--show", metavar="NAME", help="one case and jaxnn's report of it")
    options = parser.parse_args()
    if options.show:
        show(options.show, options.seed)
        return
    checks = options.only or list(CHECKS)
    if options.table:
        results = list(read(options.table).values())
    else:
        (i, n), dtypes = options.part, [options.dtype] if options.dtype else DTYPES
        todo = [name for dtype in dtypes for name in names(dtype, options.cases)]
        todo = [name for name in todo if options.family in (None, _family(name))]
        results = run(todo[i - 1 :: n], options.seed, checks, options.out)
    print("\n".join(f"{key}: {value}" for key, value in machine().items()))
    print(f"\n{table(results, checks)}\n")
    print("\n".join(mistakes(results, checks)))


if __name__ == "__main__":
    main()
