"""One accelerator: its numbers beside the CPU's, step times beside other libraries, a sweep, bfloat16, compile times.

    python benchmarks/accelerator.py [--small] [--out FILE] [--seconds 450] [--only laws sweep …]

Runs from the repository, without installing, on the first device that JAX finds, in at most that many seconds; what is
not reached in that time is named. Sections are independent of each other: one that fails is reported, and the others go
on. The result is Markdown, for RESULTS.md, and is written after each section. `--small` is a look at what runs, for a
CPU too. The exit status is 1 if a law fails, and 2 if a section fails otherwise.

The laws are those of accelerator_laws.py. Times are medians of interleaved turns, libraries at their default precision,
PyTorch in TF32 as well.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch takes memory of the same device
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import lenet  # noqa: E402
import numpy as np  # noqa: E402
import ours  # noqa: E402
import recurrent  # noqa: E402
import sweep as sweeps  # noqa: E402
from accelerator_laws import FLOAT32, Difference, differences, line_of  # noqa: E402
from cases import CASES, Case  # noqa: E402
from peers import JAX_PEERS, Config, Peer, pytorch, random_data, scanned  # noqa: E402
from steps import CONFIGS  # noqa: E402
from timing import MICRO, Contender, interleave, machine, ratio  # noqa: E402

import jaxnn  # noqa: E402

PYTORCH = "PyTorch"
MOST_ROUNDS = 9
SMALL_ROWS = ("dense", "gelu", "batch_norm", "conv", "lstm", "everything")
COMPILING = "/jax/core/compile/backend_compile_duration"

# Dense bfloat16 products with float32 sums, FLOP/s without sparsity, by a part of the device's name. NVIDIA's data
# sheets (H100 and H200 2024, A100 2021, L4 and L40S 2023; half of those figures that are given with sparsity) and
# Google Cloud's pages "TPU v4" … "TPU v6e" (2025). The first that matches counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


class Settings(NamedTuple):
    """The size of everything."""

    rows: tuple[Case, ...]
    batches: dict[str, int]  # steps of a turn, by configuration of steps.py
    images: int  # of a turn of LeNet
    shrink: int  # the hidden widths are divided by it
    peers: bool
    members: int
    sweep_steps: int
    width: int  # of the square matrices in bfloat16
    rounds: int


FULL = Settings(CASES, {"a": 1200, "b": 468, "c": 60}, lenet.STEPS, 1, True, 1000, 200, 8192, MOST_ROUNDS)
SMALL = Settings(
    tuple(case for case in CASES if case.name in SMALL_ROWS), {"a": 60, "b": 20, "c": 4}, 1, 4, False, 20, 20, 256, 2
)


class Part(NamedTuple):
    """A section of the result.

    Attributes:
        lines: Markdown.
        compiled: seconds of compiling, by program.
        passed: False if a law fails.
    """

    lines: list[str]
    compiled: dict[str, float] = {}  # noqa: RUF012 - never changed
    passed: bool = True


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (headings, rule, *rows)] + [""]


# ---------------------------------------------------------------- the laws


def laws(settings: Settings, until: float) -> Part:
    """The rows, several at a time, as most of it is compiling."""
    results = differences(settings.rows, until)
    found = [result for result in results if isinstance(result, Difference)]
    broken = [result for result in results if isinstance(result, str)]
    late = [case.name for case, result in zip(settings.rows, results, strict=True) if result is None]
    wrong = [row for row in found if max(row.highest, row.routes) > FLOAT32]
    lines = [f"{len(found)} of {len(settings.rows)} rows; {len(wrong)} differ by more than {FLOAT32:g} at the highest "
             f"precision, {len(broken)} failed.", ""]  # fmt: skip
    if found:
        shown = sorted(found, key=lambda row: -max(row.highest, row.routes))
        shown = [*shown[: max(10, len(wrong))], max(found, key=lambda row: row.default)]
        cells = [(row.name, f"{row.highest:.1e}", f"{row.routes:.1e}", f"{row.default:.1e}") for row in shown]
        headings = ("the worst rows; the last, the worst at default precision", "highest, from the CPU's")
        lines += table((*headings, "highest, by hand from jax.grad", "default, from the CPU's"), cells)
    lines += [f"- failed: {text}" for text in broken]
    lines += [f"- not measured, no time was left: {len(late)} rows, from {late[0]!r} on"] if late else []
    return Part(lines, passed=bool(found) and not wrong and not broken)


# ---------------------------------------------------------------- step times


@contextlib.contextmanager
def compiling() -> Iterator[list[float]]:
    """The seconds of every compilation within."""
    spent: list[float] = []

    def note(name: str, seconds: float, **_: Any) -> None:
        if name == COMPILING:
            spent.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield spent
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def race(title: str, makers: dict[str, Callable[[], Any]], steps: int, rounds: int, until: float) -> Part:
    """Everyone in turn, as many rounds as there is time for; a line says who is missing, and why."""
    entered: list[Contender] = []
    compiled: dict[str, float] = {}
    notes, turns = [], 0.0
    for name, make in makers.items():
        if time.perf_counter() > until:
            notes.append(f"- {name}: not measured, no time was left")
            continue
        try:
            with compiling() as spent:
                made = make()
                if made is None:
                    continue  # it has no such network
                made.turn()
            began = time.perf_counter()
            made.turn()
        except ModuleNotFoundError as missing:
            notes.append(f"- {name}: {missing.name} is not installed")
        except Exception as error:  # one contender must not end the race
            notes.append(f"- {name}: failed, {line_of(error)}")
        else:
            turns += time.perf_counter() - began
            entered.append(made._replace(name=name))
            if sum(spent):
                compiled[f"{title}, {name}"] = sum(spent)
    if not entered:
        return Part([*notes, ""])
    rounds = int(np.clip((until - time.perf_counter()) / max(turns, 1e-3) - 2, 1, rounds))
    times = interleave(entered, rounds, steps, time.perf_counter).times
    rows = []
    for name, row in times.items():
        own = times.get(ours.BY_HAND)
        against = "" if own is None else "1" if name == ours.BY_HAND else str(ratio(row, own))
        rows.append((name, f"{statistics.median(row):,.1f}", f"{min(row):,.1f}–{max(row):,.1f}", against))
    lines = table((f"{title}; {steps} steps a turn, {rounds} rounds", "µs/step", "range", "time over ours"), rows)
    return Part(lines + notes + [""] * bool(notes), compiled)


def dense(letter: str, settings: Settings, until: float) -> Part:
    """A configuration of steps.py, its FLOPs and temporary bytes."""
    config = CONFIGS[letter]
    into, *hidden, out = config.widths
    widths = (into, *(max(width // settings.shrink, 1) for width in hidden), out)
    config = config._replace(widths=widths, epochs=1, examples=config.batch * settings.batches[letter])
    data = random_data(config.examples, into, out)
    makers: dict[str, Any] = {name: partial(ours.epoch, name, config, data) for name in ours.GRADIENTS}
    makers[ours.LIMIT] = partial(ours.limit, config, data)
    if settings.peers or letter == "a":
        peers: dict[str, Peer] = {}

        def plain(name: str, make: Callable[..., Any]) -> Contender:
            peers[name] = make(config, data)
            return peers[name].contender

        def in_scan(name: str) -> Contender | None:
            return scanned(peers[name], config, data) if name in peers else None

        makers |= {name: partial(plain, name, make) for name, make in {PYTORCH: pytorch, **JAX_PEERS}.items()}
        makers |= {f"{name}, in a scan": partial(in_scan, name) for name in JAX_PEERS}
    part = race(f"({letter}) {config.name}", makers, config.steps, settings.rounds, until)
    batch = random_data(config.batch, into, out)
    counted = [(name, ours.compiled_step(name, config, batch)) for name in ours.GRADIENTS]
    lines = [f"- {name}: " + ", ".join(f"{value:,.0f} {what}" for what, value in figures.items()) + " a step"
             for name, figures in counted]  # fmt: skip
    return part._replace(lines=[*part.lines, *lines, ""])


def images(settings: Settings, until: float) -> Part:
    """LeNet, as in lenet.py."""
    data = tuple(part[: settings.images] for part in lenet.random_data())
    makers: dict[str, Any] = {name: partial(lenet.ours, name, *data) for name in (lenet.BY_HAND, lenet.BY_JAX)}
    if settings.peers:
        peers = {lenet.IN_SCAN: lenet.in_scan, PYTORCH: lenet.pytorch, "stax": lenet.stax}
        peers |= {"Equinox + optax": lenet.equinox, "Flax NNX + optax": lenet.flax_nnx}
        makers |= {name: partial(make, *data) for name, make in peers.items()}
    return race(f"LeNet, batch {lenet.BATCH}", makers, settings.images, settings.rounds, until)


def cell(settings: Settings, until: float) -> Part:
    """The LSTM of recurrent.py, and its temporary bytes."""
    task = recurrent.TASKS["lstm"]
    task = task._replace(width=task.width // settings.shrink, batch=task.batch // settings.shrink)
    data, temporary = recurrent.random_data(task), {}

    def of(name: str, make: Callable[..., Any]) -> Contender:
        made = make()
        temporary[name] = made.temporary
        return made.contender

    makers: dict[str, Any] = {
        name: partial(of, name, partial(recurrent.ours, name, "lstm", task, data))
        for name in (recurrent.BY_HAND, recurrent.BY_JAX)
    }
    if settings.peers:
        form = partial(recurrent.written_out, "a scan", "lstm", task, data, hoist=True, unroll=1)
        makers["jax.grad of a scan, product hoisted"] = partial(of, "a scan", form)
        peers = {
            PYTORCH: recurrent.pytorch,
            "Equinox + optax": recurrent.equinox,
            "Flax NNX + optax": recurrent.flax_nnx,
        }
        makers |= {name: partial(make, "lstm", task, data) for name, make in peers.items()}
    sizes = ", ".join(f"{name} {size}" for name, size in task._asdict().items())
    part = race(f"lstm, {sizes}", makers, recurrent.STEPS, settings.rounds, until)
    lines = [f"- {name}: {size / 1e6:,.1f} MB of temporary arrays a step" for name, size in temporary.items()]
    return part._replace(lines=[*part.lines, *lines, ""])


# ---------------------------------------------------------------- a sweep, bfloat16


def many(settings: Settings, until: float) -> Part:
    """A sweep, with an order for each member and with one for all, beside a few members one after another."""
    config = Config((784, 30, 10), 10, "sgd", "sigmoid", 0.1, 10 * settings.sweep_steps, epochs=1)
    data = random_data(config.examples, 784, 10)
    subject = sweeps.Sweep(config, settings.members, config.steps, tuple(map(jnp.asarray, data)))
    few = subject._replace(members=min(4, settings.members))
    entered, compiled = [], {}
    for title, members, make in (
        (sweeps.ALONE, few.members, lambda: sweeps.one_after_another(few)),
        ("sweep", settings.members, lambda: sweeps.side_by_side(subject, shared=False)),
        ("sweep, one order", settings.members, lambda: sweeps.side_by_side(subject, shared=True)),
    ):
        with compiling() as spent:
            made = make()
            made.turn()
        compiled[f"sweep of {members}, {title}"] = sum(spent)
        times = []
        while len(times) < 3 and (not times or time.perf_counter() < until):
            began = time.perf_counter()
            made.turn()
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
        each = seconds / (config.steps * members)
        entered.append((title, f"{members:,}", f"{seconds:.3f}", f"{each * MICRO:,.2f}", f"{1 / each:,.0f}"))
    headings = (
        f"{config.name}; {config.steps} steps each",
        "members",
        "s",
        "µs a network-step",
        "network-steps a second",
    )
    return Part(table(headings, entered), compiled)


def seconds_of(program: Callable[..., Any], carry: Any, until: float) -> float:
    """The median time of a compiled program carry -> carry."""
    times: list[float] = []
    carry = jax.block_until_ready(program(carry))
    while len(times) < 5 and (not times or time.perf_counter() < until):
        began = time.perf_counter()
        carry = jax.block_until_ready(program(carry))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def product(width: int, dtype: Any, until: float) -> float:
    """FLOP/s of a chain of square products."""
    times, scale = 8, 1 / np.sqrt(width)
    w = (jax.random.normal(jax.random.key(0), (width, width)) * scale).astype(dtype)
    run = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, x: x @ w, x))
    return times * 2.0 * width**3 / seconds_of(run, w, until)


def trained(width: int, dtype: Any, gradient: Any, until: float) -> tuple[float, float]:
    """FLOP/s of a training step of three square layers on as many examples, its products counted, and compile time.

    Parameters and their update are in float32; in a lower precision the passes alone.
    """
    net, layers, steps = jaxnn.mlp([width] * 3), 3, 4
    lower = dtype != jnp.float32
    if lower and hasattr(jaxnn, "low_precision"):
        net = jaxnn.low_precision(net, dtype)
    take = gradient(net, jaxnn.losses.half_squared_error)
    params, state = net.init(jax.random.key(0), (width,))
    x = jax.random.normal(jax.random.key(1), (width, width))
    by_hand = lower and not hasattr(jaxnn, "low_precision")
    x, target = (x.astype(dtype), x.astype(dtype)) if by_hand else (x, x)

    def step(params: Any, _: Any) -> tuple[Any, None]:
        within = jax.tree.map(lambda p: p.astype(dtype), params) if by_hand else params
        grads = take(within, state, x, target).grads
        return jax.tree.map(lambda p, g: p - 1e-6 * g.astype(p.dtype), params, grads), None

    run = jax.jit(lambda params: jax.lax.scan(step, params, None, length=steps)[0])
    with compiling() as spent:
        seconds = seconds_of(run, params, until)
    products = 3 * layers - 1  # y, ∂C/∂W of each layer, δ_in of each but the first
    return steps * products * 2.0 * width**3 / seconds, sum(spent)


def peak_of(kind: str) -> float | None:
    """The peak of a device by its name, in FLOP/s; None where it is not known."""
    return next((peak for part, peak in PEAKS.items() if part in kind), None)


def low(settings: Settings, until: float) -> Part:
    """The share of the peak of products alone, and of training steps by hand and by `jax.grad`."""
    kind, width = jax.devices()[0].device_kind, settings.width
    known = peak_of(kind)
    alone = product(width, jnp.bfloat16, until)
    peak, rows, compiled = known or alone, [], {}
    source = f"{peak / 1e12:,.0f} TFLOP/s by the data sheet" if known else f"{peak / 1e12:,.2f} TFLOP/s, the product's"

    def row(name: str, rate: float) -> None:
        rows.append((name, f"{rate / 1e12:,.2f}", f"{rate / peak:.2f}"))

    row("bfloat16, a product alone", alone)
    row("float32 at default precision, a product alone", product(width, jnp.float32, until))
    how = "low_precision" if hasattr(jaxnn, "low_precision") else "cast by hand"
    for dtype, note in ((jnp.bfloat16, f", {how}"), (jnp.float32, " at default precision")):
        for name, gradient in ours.GRADIENTS.items():
            title = f"{jnp.dtype(dtype).name}{note}, a training step, {name}"
            if time.perf_counter() > until:
                rows.append((title, "no time was left", ""))
                continue
            rate, compiled[title] = trained(width, dtype, gradient, until)
            row(title, rate)
    headings = (f"width {width}, three layers, {width} examples", "TFLOP/s", "of the peak")
    return Part([*table(headings, rows), f"- the peak: {source}", ""], compiled)


# ---------------------------------------------------------------- all of it

SECTIONS: dict[str, tuple[float, str, Callable[[Settings, float], Part]]] = {  # share of the time, title
    "laws": (0.27, "Laws: the accelerator's numbers beside the CPU's", laws),
    "a": (0.11, "Training steps", partial(dense, "a")),
    "b": (0.10, "", partial(dense, "b")),
    "c": (0.10, "", partial(dense, "c")),
    "lenet": (0.11, "", images),
    "lstm": (0.11, "", cell),
    "sweep": (0.08, "A sweep", many),
    "bfloat16": (0.12, "The share of the peak in bfloat16", low),
}


def memory() -> str:
    """The most bytes that were in use up to now, where the device says so."""
    stats = jax.devices()[0].memory_stats() or {}
    return f"{stats['peak_bytes_in_use'] / 1e9:,.2f}" if "peak_bytes_in_use" in stats else "not known"


def heading() -> list[str]:
    """The machine, and when it was."""
    device, about = jax.devices()[0], machine()
    version = " ".join(getattr(device.client, "platform_version", "").split())
    return [
        "## On an accelerator", "",
        f"{datetime.date.today()}, {device.device_kind} ({device.platform}, {len(jax.devices())} of them; {version}), "
        f"JAX {jax.__version__}. Beside it {about['processor']}; {about['versions']}.", "",
        f"    python {' '.join(sys.argv)}", "",
    ]  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a look at what runs, for a CPU too")
    parser.add_argument("--out", metavar="FILE", help="write the result there, after each section")
    parser.add_argument("--seconds", type=float, default=450.0, help="the time for everything")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    return parser.parse_args()


def main() -> int:
    options, start = arguments(), time.perf_counter()
    settings = SMALL if options.small else FULL
    whole = sum(SECTIONS[name][0] for name in options.only)
    lines, used, compiled, status = heading(), [], {}, 0
    print("\n".join(lines), flush=True)
    end = start
    for name in options.only:
        share, title, section = SECTIONS[name]
        end += share / whole * options.seconds  # what a section leaves is the next one's
        began = time.perf_counter()
        try:
            part = section(settings, end)
        except Exception as error:  # the other sections go on
            traceback.print_exc()
            part, status = Part([f"- {name}: failed, {line_of(error)}", ""]), 1 if name == "laws" else status or 2
        status = status if part.passed else 1
        compiled |= part.compiled
        used.append((name, f"{time.perf_counter() - began:.1f}", memory()))
        new = [f"### {title}", ""] * bool(title) + part.lines
        print("\n".join(new), flush=True)
        lines += new
        last = ["### Time and memory", "", *table(("section", "s", "most memory in use so far, GB"), used)]
        last += ["### Compile times", "", *table(("program, nothing cached", "s"), [
            (name, f"{seconds:.2f}") for name, seconds in compiled.items()
        ])]  # fmt: skip
        last += [f"{time.perf_counter() - start:.0f} s in all, of {options.seconds:.0f}.", ""]
        if options.out:
            Path(options.out).write_text("\n".join(lines + last), encoding="utf-8")
    print("\n".join(last), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
