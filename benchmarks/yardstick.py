"""A proof that nothing moved: eight networks trained for 20 steps, hashed, counted and timed, here and at a commit.

    python benchmarks/yardstick.py [--against COMMIT] [--only lenet ...] [--rounds 3] [--out FOLDER] [--strict]

Each network is trained in float32, compiled as users' programs are, by hand (`backprop`) and by `jax.grad`
(`autodiff`). The table has, for each:

    hash           of the parameters and the state after 20 steps, to the bit
    MFLOP, temp    of one compiled step: FLOPs in millions, temporary memory in KB, as XLA counts them
    trace          seconds from the Python function to a jaxpr
    lower          seconds from there to StableHLO
    compile        seconds from there to machine code

Every measurement runs in a process of its own; times are medians of the rounds. With `--against` that commit is
checked out beside this one, measured in turn with it, by its own yardstick if it has one, and removed again. Where
hashes differ, both programs are written to the folder `--out` to be compared, and the largest relative difference
between the parameters is printed. The exit status is 0, equal or not, unless `--strict` is given: then it is 1 if a
hash differs, or FLOPs or bytes are more.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from import_time import PROGRAM

import jaxnn as nn

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20
CLOSE = 1e-6  # relative: two orders of adding the same numbers in float32, after 20 steps
COUNTS = ("flops", "temporary")
TIMES = ("trace", "lower", "compile")
TABLES_OF_PLACES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
KEPT_LINES = 12  # of a difference between two programs that are printed


# ---------------------------------------------------------------- what is trained


class Subject(NamedTuple):
    """A network with its optimizer and its data.

    Attributes:
        net: a Layer.
        optimizer: an Optimizer.
        in_shape: of one example, as `init` takes it.
        batches: x of every step, with a leading axis of steps.
    """

    net: Any
    optimizer: Any
    in_shape: Any
    batches: Any


CLASSES = 10


def _draw(batch: int, *shape: int) -> Any:
    return np.random.default_rng(0).normal(size=(STEPS, batch, *shape)).astype(np.float32)


def _dense() -> Subject:
    return Subject(nn.mlp([128, 64, CLASSES]), nn.adam(1e-3), (784,), _draw(128, 784))


def _norm_and_dropout() -> Subject:
    net = nn.serial(nn.dense(128, bias=False), nn.batch_norm(), nn.relu, nn.dropout(0.5), nn.dense(CLASSES))
    return Subject(net, nn.sgd(0.1, momentum=0.9), (784,), _draw(128, 784))


def _lenet() -> Subject:
    return Subject(nn.networks.lenet(), nn.adam(1e-3), (28, 28, 1), _draw(64, 28, 28, 1))


def _resnet() -> Subject:
    return Subject(nn.networks.resnet(), nn.sgd(0.1, momentum=0.9), (32, 32, 3), _draw(32, 32, 32, 3))


def _recurrent(cell: Any) -> Subject:
    return Subject(nn.networks.sequence_classifier(cell, 128, CLASSES), nn.adam(1e-3), (28, 28), _draw(64, 28, 28))


def _bidirectional_with_masks() -> Subject:
    net = nn.networks.sequence_classifier(nn.lstm, 32, CLASSES, both_ways=True)
    values = _draw(64, 20, 16)
    lengths = np.random.default_rng(1).integers(1, 21, values.shape[:2])
    mask = np.arange(values.shape[2]) < lengths[..., None]
    return Subject(net, nn.adam(1e-3), (20, 16), nn.Sequences(values, mask=mask))


def _combined() -> Subject:
    block = nn.serial(nn.dense(64), nn.tanh)
    net = nn.serial(
        nn.dense(64),
        nn.relu,
        nn.repeat(nn.residual(block), 3),
        nn.share(block, 2),
        nn.residual(nn.dense(32), skip=nn.dense(32)),
        nn.dense(CLASSES),
    )
    return Subject(net, nn.sgd(0.1, momentum=0.9, nesterov=True), (100,), _draw(128, 100))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "dense + adam": _dense,
    "batch norm + dropout": _norm_and_dropout,
    "lenet": _lenet,
    "resnet": _resnet,
    "lstm": lambda: _recurrent(nn.lstm),
    "gru": lambda: _recurrent(nn.gru),
    "bidirectional, masks": _bidirectional_with_masks,
    "repeat + share + residual": _combined,
}
GRADIENTS = {"by hand": nn.backprop, "by jax.grad": nn.autodiff}


# ---------------------------------------------------------------- one measurement, in a process of its own


def measure(name: str, gradient: str, folder: str | None) -> dict[str, Any]:
    """One network by one gradient: the row of the table; its programs and parameters go to the folder."""
    subject = SUBJECTS[name]()
    examples = jax.tree.leaves(subject.batches)[0].shape[1]
    labels = np.random.default_rng(2).integers(0, CLASSES, (STEPS, examples)).astype(np.int32)
    loss = nn.losses.softmax_cross_entropy
    step = nn.train_step(subject.net, loss, subject.optimizer, gradient=GRADIENTS[gradient])

    def trained(train_state: Any, x: Any, target: Any) -> tuple[Any, Any]:
        train_state, out = step(train_state, x, target)
        return train_state, out.loss

    def batch(i: int) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: leaf[i], subject.batches), labels[i]

    train_state = nn.init_train_state(subject.net, subject.optimizer, jax.random.key(0), subject.in_shape)
    jax.block_until_ready(train_state)
    moments = [time.perf_counter()]
    traced = jax.jit(trained).trace(train_state, *batch(0))
    moments.append(time.perf_counter())
    lowered = traced.lower()
    moments.append(time.perf_counter())
    compiled = lowered.compile()
    moments.append(time.perf_counter())
    for i in range(STEPS):
        train_state, _ = compiled(train_state, *batch(i))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((train_state.params, train_state.state))]
    if folder is not None:
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / "lowered.txt").write_text(lowered.as_text(), encoding="utf-8")
        (out / "compiled.txt").write_text(_without_places(compiled.as_text()), encoding="utf-8")
        np.savez(out / "parameters.npz", *leaves)
    return {
        "hash": _hash(leaves),
        "flops": float(compiled.cost_analysis()["flops"]),
        "temporary": float(compiled.memory_analysis().temp_size_in_bytes),
        **dict(zip(TIMES, np.diff(moments).tolist(), strict=True)),
        "jaxnn": str(Path(nn.__file__).resolve().parents[1]),
        "jax": jax.__version__,
    }


def _hash(leaves: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()[:10]


def _without_places(hlo: str) -> str:
    """A compiled program without the lines of code that its operations came from."""
    parts = re.sub(r", metadata=\{[^}]*\}", "", hlo).split("\n\n")
    return "\n\n".join(part for part in parts if not part.lstrip().startswith(TABLES_OF_PLACES))


# ---------------------------------------------------------------- here and at a commit, in turn


class Side(NamedTuple):
    """A checkout to measure.

    Attributes:
        name: "here" or the commit.
        root: its folder.
        script: the yardstick that measures it: its own where it has one, so that renamed functions are followed.
    """

    name: str
    root: Path
    script: Path


def ask(side: Side, *arguments: str) -> Any:
    """What Python prints last, as JSON, from a fresh process that imports that side's jaxnn."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(side.root)
    command = [sys.executable, *arguments]
    run = subprocess.run(command, env=environment, cwd=side.root, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{side.name}: {' '.join(arguments)} failed\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Side]:
    """Another commit, beside this one, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "there"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(root), commit], check=True, capture_output=True)
        try:
            own = root / "benchmarks" / "yardstick.py"
            yield Side(commit, root, own if own.exists() else Path(__file__).resolve())
        finally:
            subprocess.run([*git, "remove", "--force", str(root)], check=True, capture_output=True)


def rows(sides: Sequence[Side], names: Sequence[str], rounds: int, out: Path) -> dict[tuple[str, str, str], Any]:
    """(network, gradient, side) -> its row, times the medians of the rounds; the sides take turns."""
    found: dict[tuple[str, str, str], Any] = {}
    for name in names:
        for gradient in GRADIENTS:
            runs: dict[str, list[Any]] = {side.name: [] for side in sides}
            for index in range(rounds):
                for side in sides if index % 2 == 0 else reversed(sides):
                    folder = str(out / f"{name}, {gradient}" / side.name) if len(sides) > 1 and index == 0 else ""
                    run = ask(side, str(side.script), "--one", name, gradient, *([folder] if folder else []))
                    if Path(run["jaxnn"]) != side.root.resolve():
                        raise SystemExit(f"{side.name}: measured the jaxnn in {run['jaxnn']}, not in {side.root}")
                    runs[side.name].append(run)
            for side in sides:
                first, *others = runs[side.name]
                times = {key: statistics.median(run[key] for run in runs[side.name]) for key in TIMES}
                steady = all(run["hash"] == first["hash"] for run in others)
                found[name, gradient, side.name] = {**first, **times, "steady": steady}
            print("\n".join(_line(name, gradient, side, found) for side in sides), flush=True)
    return found


def _line(name: str, gradient: str, side: Side, found: dict[tuple[str, str, str], Any]) -> str:
    row = found[name, gradient, side.name]
    numbers = f"{row['flops'] / 1e6:10.3f} {row['temporary'] / 1e3:10.1f}"
    times = " ".join(f"{row[key]:7.2f}" for key in TIMES)
    changed = "" if row["steady"] else "  differs from run to run"
    return f"{name:26} {gradient:12} {side.name[:12]:12} {row['hash']} {numbers} {times}{changed}"


HEAD = f"{'network':26} {'gradient':12} {'at':12} {'hash':10} {'MFLOP':>10} {'temp KB':>10} " + " ".join(
    f"{key:>7}" for key in TIMES
)


def import_times(sides: Sequence[Side], rounds: int) -> dict[str, float]:
    """Milliseconds that `import jaxnn` adds to `import jax, chex`, by side, in turn."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            times[side.name].append(ask(side, "-c", PROGRAM.format(clock="perf_counter")))
    return {name: statistics.median(found) for name, found in times.items()}


# ---------------------------------------------------------------- verdict


def verdict(found: dict[tuple[str, str, str], Any], here: str, there: str, out: Path) -> bool:
    """Prints what moved between the two sides; True if no hash does and no count is more."""
    pairs = {key[:2]: (found[key], found[*key[:2], there]) for key in found if key[2] == here}
    moved = [key for key, (now, was) in pairs.items() if now["hash"] != was["hash"]]
    print(f"\nhashes equal: {len(pairs) - len(moved)} of {len(pairs)}")
    for key in moved:
        print(_difference(out / ", ".join(key) / here, out / ", ".join(key) / there, key))
    fine = not moved
    for count in COUNTS:
        more = [f"{', '.join(key)} {now[count] / was[count]:.4f}" for key, (now, was) in pairs.items()
                if now[count] > was[count]]  # fmt: skip
        fine = fine and not more
        print(f"{count}, here over there: {'not more in any' if not more else 'MORE in ' + '; '.join(more)}")
    for key in TIMES:
        ratios = [now[key] / was[key] for now, was in pairs.values()]
        print(f"{key}, here over there: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    return fine


def _difference(here: Path, there: Path, key: tuple[str, str]) -> str:
    """How far the parameters are apart, and where the programs differ."""
    with np.load(here / "parameters.npz") as now, np.load(there / "parameters.npz") as was:
        shapes = [[file[name].shape for name in file.files] for file in (now, was)]
        if shapes[0] != shapes[1]:
            return f"  {', '.join(key)}: the parameters have other shapes"
        apart = [
            float(np.abs(now[name] - was[name]).max(initial=0) / max(np.abs(was[name]).max(initial=0), 1e-30))
            for name in was.files
        ]
    lines = [f"  {', '.join(key)}: parameters differ by {max(apart):.1e} of their largest (allowed {CLOSE:.0e})"]
    for program in ("lowered.txt", "compiled.txt"):
        now, was = ((side / program).read_text(encoding="utf-8").splitlines() for side in (here, there))
        lines.append(f"    {program}: {'the same' if now == was else f'differs; compare {here} and {there}'}")
        if now != was:
            changes = difflib.unified_diff(was, now, "there", "here", n=0, lineterm="")
            lines += [f"      {line[:160]}" for line, _ in zip(changes, range(KEPT_LINES), strict=False)]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", help="another commit to measure beside this one")
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "yardstick", help="for programs that differ")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one[:2], options.one[2] if len(options.one) > 2 else None)))
        return 0
    with contextlib.ExitStack() as stack:
        sides = [Side("here", ROOT, Path(__file__).resolve())]
        if options.against:
            sides.append(stack.enter_context(checkout(options.against)))
        print(HEAD)
        found = rows(sides, options.only, options.rounds, options.out)
        times = import_times(sides, 2 * options.rounds + 1)
        print("import jaxnn adds " + ", ".join(f"{ms:.0f} ms {name}" for name, ms in times.items()))
        versions = sorted({row["jax"] for row in found.values()})
        print(f"JAX {', '.join(versions)}, Python {sys.version.split()[0]}, {options.rounds} rounds")
        fine = verdict(found, "here", sides[1].name, options.out) if options.against else True
    return int(options.strict and not fine)


if __name__ == "__main__":
    sys.exit(main())
