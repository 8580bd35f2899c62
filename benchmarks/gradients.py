"""How often checks of gradients decide wrongly, on right gradients and on wrong ones.

    python benchmarks/gradients.py [--cases 500] [--dtype bfloat16] [--seed 0] [--only jaxnn,chex] [--json FILE]
    python benchmarks/gradients.py --show "float32 / sign / dense / 3"

Four checks judge the same hand-derived gradients: `jaxnn.gradcheck.function`, `jax.test_util.check_grads` (first
order, reverse mode, its default tolerances), the same under x64 with the arguments in float64, and
`chex.assert_numerical_grads`. Half of the gradients are wrong, in a way with a name; gradient_cases.py has them.

No label rests on any of the four: a right gradient has been held against `jax.grad` in float64, and a wrong one
differs from that, in float64, by more than `PLANTED` of its leaf. At a kink every slope between those of the two
sides is right. What overflows in the case's own precision is left out.

Everything follows from the seed and a case's name: precision / kind / family / number.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from gradient_cases import BRANCHES, FAMILIES, FAULTS, LARGE_FAMILIES, ONLY_HERE, OWN, Draw, Family
from jax.test_util import check_grads
from timing import machine

from jaxnn import gradcheck

DTYPES = ("float32", "bfloat16")
RIGHT, WRONG, KINK, CANNOT_TELL = "right", "wrong", "kink", "cannot tell"  # as the reports of jaxnn say it
ALL_RIGHT = "right"
KINDS = [*FAULTS, *BRANCHES, *OWN]

AGREE = 1e-9  # of a leaf's largest element: a right gradient is this near to jax.grad, in float64
CONDITIONED = 64  # times what an error of the last bit in the arguments does to jax.grad: its own conditioning
PLANTED = 1e-7  # of a leaf's largest element: a wrong gradient is at least this far off
ALIVE = 1e-2  # of a leaf's largest element: an element that a fault may single out
SEEN = 0.05  # of a leaf's largest element: same and other random numbers, told apart in low precision
ASIDE = 1e-7  # relative: off a kink, on the same side
ATTEMPTS = 30  # draws of a case, until nothing overflows and the fault shows
CLEARED = 100  # cases after which compiled programs are dropped: each case has its own


class Case(NamedTuple):
    """A function, arguments and a rule for its gradient that is right or wrong."""

    name: str
    family: Family
    kind: str
    args: tuple[Any, ...]
    backward: Callable[[tuple[Any, ...], Any], tuple[Any, ...]]

    @property
    def wrong(self) -> bool:
        return self.kind != ALL_RIGHT

    @property
    def row(self) -> str:
        """Its row in the table."""
        if self.wrong:
            return self.kind
        where = "at kinks" if self.family.kink else "random numbers inside" if self.family.random else "others"
        return f"{ALL_RIGHT}, {'precision fixed inside' if self.family.twin else where}"


# ---------------------------------------------------------------- which cases


def names(dtype: str, count: int) -> Iterator[str]:
    """The names of as many right cases and as many wrong ones: families and kinds of faults take turns."""
    families = [family for family in [*FAMILIES, *LARGE_FAMILIES] if family.low or dtype == "float32"]
    for number in range(count):
        round_, place = divmod(number, len(families))
        yield f"{dtype} / {ALL_RIGHT} / {families[place].name} / {round_}"
    for number in range(count):
        round_, place = divmod(number, len(KINDS))
        able = [family for family in families if _fits(KINDS[place], family)]
        turn, which = divmod(round_, len(able))
        yield f"{dtype} / {KINDS[place]} / {able[which].name} / {turn}"


def _fits(kind: str, family: Family) -> bool:
    if kind in OWN:
        return kind in family.own
    return (family in LARGE_FAMILIES) == kind.endswith("in 10,000")


def case(name: str, seed: int) -> Case:
    """The case of a name, drawn again until its label is verified.

    Raises:
        AssertionError: if a right gradient is not, or no draw lets the fault show.
        ValueError: if there is no such case.
    """
    try:
        dtype, kind, family_name, _ = name.split(" / ")
        family = next(family for family in [*FAMILIES, *LARGE_FAMILIES] if family.name == family_name)
    except (ValueError, StopIteration):
        raise ValueError(f"no case {name!r}; names are precision / kind / family / number") from None
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for _ in range(ATTEMPTS):
        scale = 10 ** rng.uniform(*family.scales)
        args = rounded(family.make(Draw(rng, scale)), jnp.dtype(dtype))
        backward = _verified(family, kind, args, rng)
        if backward is not None:
            return Case(name, family, kind, args, backward)
    raise AssertionError(f"{name}: no draw in {ATTEMPTS} shows the fault without overflow")


def rounded(args: Any, dtype: Any) -> Any:
    """Floats in the precision given; integers and keys as they are."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if is_float(a) else jnp.asarray(a), args)


def is_float(tree: Any) -> bool:
    """True for float arrays and trees of them."""
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tree))


# ---------------------------------------------------------------- what is planted, and that it is


def planted(family: Family, kind: str, leaf: int, at: tuple[int, ...], dtype: Any) -> Callable[..., Any]:
    """The family's rule with a fault: its own one, or one in a gradient leaf, perhaps in one precision only."""
    if kind == ALL_RIGHT:
        return family.backward
    if kind in OWN:
        return functools.partial(family.backward, fault=kind)
    edit = FAULTS[kind.removeprefix(ONLY_HERE)]
    everywhere = not kind.startswith(ONLY_HERE)

    def backward(args: tuple[Any, ...], delta: Any) -> tuple[Any, ...]:
        leaves, tree = jax.tree.flatten(family.backward(args, delta))
        if everywhere or leaves[leaf].dtype == dtype:
            leaves[leaf] = edit(leaves[leaf], at)
        return jax.tree.unflatten(tree, leaves)

    return backward


def _verified(family: Family, kind: str, args: Any, rng: np.random.Generator) -> Callable[..., Any] | None:
    """The rule, if at this point its label can be shown and nothing overflows.

    Raises:
        AssertionError: if the family's own rule, without a fault, is not the gradient.
    """
    dtype = next(leaf.dtype for leaf in jax.tree.leaves(args) if is_float(leaf))
    delta = _cotangent(family.f, args, rng)
    low, low_auto = (_leaves(side) for side in _both(family, "")(args, delta))
    if not all(np.isfinite(leaf).all() for leaf in [*low, *low_auto]):
        return None
    reference = family if family.twin is None else family._replace(f=family.twin[0], backward=family.twin[1])
    with jax.enable_x64(True):
        wide, wide_delta = rounded((args, delta), jnp.float64)
        hand = _leaves(_both(reference, "")(wide, wide_delta)[0])
        sides = [_leaves(side) for side in _sides(reference, wide, wide_delta)]
        noise = 0.0 if family.kink else _conditioning(reference, wide, wide_delta, sides[0], rng)
        off = _outside(hand, sides, family.joint)
        assert max(off) <= AGREE + CONDITIONED * noise, f"{family.name} is off by {off} at {args}"
        if family.random and max(_outside(low, [low_auto], False)) >= SEEN:  # a sum that cancels: cannot be shown
            return None
        leaf = int(rng.integers(len(hand)))
        alive = [np.abs(g) >= ALIVE * _largest(g) for g in (hand[leaf], low[leaf])]
        at = tuple(map(int, rng.choice(np.argwhere(alive[0] & alive[1]))))
        if kind == ALL_RIGHT:
            return family.backward
        if kind in OWN:
            wrong = _leaves(_both(reference, kind)(wide, wide_delta)[0])
        else:
            wrong = [*hand]
            wrong[leaf] = np.asarray(FAULTS[kind.removeprefix(ONLY_HERE)](jnp.asarray(hand[leaf]), at))
        if max(_outside(wrong, sides, family.joint)) <= PLANTED + CONDITIONED * noise:
            return None
    if family.random and kind in OWN:
        low_wrong = _leaves(_both(family, kind)(args, delta)[0])
        if max(_outside(low_wrong, [low_auto], False)) < SEEN:
            return None
    return planted(family, kind, leaf, at, dtype)


def _cotangent(f: Callable[..., Any], args: Any, rng: np.random.Generator) -> Any:
    shapes = jax.eval_shape(f, *args)
    return jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), y.dtype), shapes)


@functools.cache
def _both(family: Family, fault: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compiled (args, delta) -> gradients by hand, by jax.vjp; None where an argument has none."""

    def both(args: Any, delta: Any) -> tuple[Any, Any]:
        floats = [a for a in args if is_float(a)]
        _, pull = jax.vjp(lambda *floats: family.f(*_merged(args, floats)), *floats)
        return family.backward(args, delta, fault=fault), pull(delta)

    return jax.jit(both)


def _merged(args: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
    """The arguments, those of floats replaced."""
    rest = iter(floats)
    return [next(rest) if is_float(a) else a for a in args]


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]


def _sides(family: Family, args: Any, delta: Any) -> list[Any]:
    """jax.vjp's gradients at the point; at kinks, those of both sides."""
    auto = _both(family, "")
    if family.kink is None:
        return [auto(args, delta)[1]]
    step = family.kink(*args)
    return [
        auto(jax.tree.map(lambda x, d: x + sign * ASIDE * d, args, step), delta)[1]  # noqa: B023
        for sign in (-1, 1)
    ]


def _conditioning(family: Family, args: Any, delta: Any, auto: list[np.ndarray], rng: np.random.Generator) -> float:
    """How far jax.grad moves, of its leaf's largest element, when the arguments' last bits do."""

    def jitter(x: Any) -> Any:
        return x * (1 + 4 * 2.0**-53 * rng.choice([-1.0, 1.0], x.shape)) if is_float(x) else x

    moved = _leaves(_both(family, "")(jax.tree.map(jitter, args), delta)[1])
    return max(_outside(moved, [auto], False))


def _outside(hand: list[np.ndarray], sides: list[list[np.ndarray]], joint: bool) -> list[float]:
    """How far each leaf's worst element is from what is allowed, in units of the leaf's largest element.

    Allowed is what lies between the sides: for each element by itself, or for each row as a whole.
    """
    distances = []
    for h, *between in zip(hand, *sides, strict=True):
        left, right = between[0], between[-1]
        span, ahead = right - left, h - left
        if joint:
            squares, along = (span**2).sum(-1, keepdims=True), (ahead * span).sum(-1, keepdims=True)
        else:
            squares, along = span**2, ahead * span
        share = np.clip(np.divide(along, squares, out=np.zeros_like(along), where=squares > 0), 0, 1)
        scale = max(_largest(left), _largest(right), np.finfo(np.float32).tiny)
        distances.append(float(np.abs(ahead - share * span).max()) / scale)
    return distances


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max())


# ---------------------------------------------------------------- the four checks


def by_jaxnn(case: Case) -> str:
    return gradcheck.function(case.family.f, case.args, backward=case.backward).verdict


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
        return case.family.f(*_merged(case.args, jax.tree.unflatten(tree, floats)))

    def backward(floats: Any, delta: Any) -> Any:
        return tuple(jax.tree.leaves(case.backward(tuple(_merged(case.args, jax.tree.unflatten(tree, floats))), delta)))

    f.defvjp(lambda *floats: (f(*floats), floats), backward)
    try:
        check(jax.jit(f), floats)
    except AssertionError:
        return WRONG
    return RIGHT


# ---------------------------------------------------------------- running and counting


class Judged(NamedTuple):
    """A case and, by check, the verdict and the seconds it took."""

    name: str
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


def judged(case: Case, checks: Sequence[str]) -> Judged:
    """The verdicts on a case; a check that raises anything but its own assertion has not decided."""
    verdicts, seconds = {}, {}
    for check in checks:
        began = time.perf_counter()
        try:
            verdicts[check] = CHECKS[check](case)
        except Exception as error:
            verdicts[check] = f"{CANNOT_TELL}, {type(error).__name__}"
        seconds[check] = time.perf_counter() - began
    return Judged(case.name, case.row, case.wrong, verdicts, seconds)


def judge_all(dtypes: Sequence[str], count: int, seed: int, checks: Sequence[str]) -> list[Judged]:
    """Every case by every check; progress goes to the standard error."""
    todo = [name for dtype in dtypes for name in names(dtype, count)]
    results = []
    for number, name in enumerate(todo):
        if number % CLEARED == 0:
            jax.clear_caches()
        results.append(judged(case(name, seed), checks))
        print(f"\r{number + 1} of {len(todo)}  {name:60.60}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def table(results: Sequence[Judged], checks: Sequence[str]) -> str:
    """Markdown: wrong decisions, and how many it could not tell, of each check; by precision and kind."""
    lines = [f"| gradients | number | {' | '.join(checks)} |", f"|---|--:|{'--:|' * len(checks)}"]
    by_dtype = itertools.groupby(results, lambda result: result.name.split(" / ")[0])
    for dtype, group in ((dtype, list(group)) for dtype, group in by_dtype):
        for title, wrong in ((ALL_RIGHT, False), (WRONG, True)):
            part = [result for result in group if result.wrong is wrong]
            lines.append(_line(f"**{dtype}, {title}**", part, checks))
            rows = sorted({result.row for result in part}, key=lambda row: (row in KINDS and KINDS.index(row), row))
            lines += [_line(row, [result for result in part if result.row == row], checks) for row in rows]
    seconds = (f"{statistics.median(result.seconds[check] for result in results):.2f} s" for check in checks)
    return "\n".join([*lines, f"| median time of a case | | {' | '.join(seconds)} |"])


def _line(title: str, results: Sequence[Judged], checks: Sequence[str]) -> str:
    cells = []
    for check in checks:
        mistakes = sum(result.mistaken(check) for result in results)
        open_ = sum(result.open(check) for result in results)
        cells.append(f"{mistakes} + {open_}?" if open_ else str(mistakes))
    return f"| {title} | {len(results)} | {' | '.join(cells)} |"


def mistakes(results: Sequence[Judged], checks: Sequence[str]) -> list[str]:
    """A line for every wrong decision, and for every case left open."""
    lines = []
    for check in checks:
        for result in results:
            if result.mistaken(check):
                lines.append(f"{check}: {result.verdicts[check].upper()} said of {result.name}")
            elif result.open(check):
                lines.append(f"{check}: {result.verdicts[check]}: {result.name}")
    return lines


def show(name: str, seed: int) -> None:
    """One case, its arguments, and what jaxnn reports of it."""
    shown = case(name, seed)
    print(f"{name}: {shown.family.name}, labelled {WRONG if shown.wrong else RIGHT}")
    for number, arg in enumerate(shown.args):
        print(f"args[{number}] = {arg}")
    print(gradcheck.function(shown.family.f, shown.args, backward=shown.backward))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="right ones per precision, and as many wrong ones")
    parser.add_argument("--dtype", choices=DTYPES, help="one precision only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CHECKS, action="append", help="one check only; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="writes every verdict")
    parser.add_argument("--show", metavar="NAME", help="one case and jaxnn's report of it")
    options = parser.parse_args()
    if options.show:
        show(options.show, options.seed)
        return
    checks = options.only or list(CHECKS)
    results = judge_all([options.dtype] if options.dtype else DTYPES, options.cases, options.seed, checks)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([result._asdict() for result in results], file, indent=1)
    print("\n".join(f"{key}: {value}" for key, value in machine().items()))
    print(f"\n{table(results, checks)}\n")
    print("\n".join(mistakes(results, checks)))


if __name__ == "__main__":
    main()
