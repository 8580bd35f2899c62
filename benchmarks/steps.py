"""Training steps of jaxnn beside those of other libraries: paired, interleaved, medians and ratios.

    python benchmarks/steps.py [--quick] [--rounds 9] [--only a] [--one-core] [--json FILE] [--strict]

Every contender trains the same network on the same MNIST-shaped random data, as many steps in its turn.
Times are of warm calls, in microseconds a step; a ratio is a contender's time over jaxnn's in the same round.
The exit status is 0, targets reached or not, unless `--strict` is given.

On a machine that other programs keep busy, times mean little (libraries that wait in a loop for their threads look
slower than they are): the share that others took is printed, and above 5 % no target of time counts as reached.
`--one-core` keeps everyone on one core and counts processor time instead, which others hardly change, and which
leaves out how well each library uses several cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import import_time
import ours
from peers import JAX_PEERS, OTHER_PEERS, Config, random_data, scanned
from timing import Contender, interleave, machine, on_one_core, ratio

ROUNDS, QUICK_ROUNDS = 9, 3
QUICK_SHARE = 4  # --quick takes a quarter of the steps
PAIRED_ROUNDS = 3  # times as many rounds for two programs that may differ by little, each beside the other
IMPORT_ROUNDS, QUICK_IMPORT_ROUNDS = 15, 5

CONFIGS = {
    "a": Config((784, 30, 10), 10, "sgd", "sigmoid", learning_rate=0.1, examples=60_000, epochs=1),
    "b": Config((784, 128, 10), 128, "adam", "relu", learning_rate=1e-3, examples=128 * 468, epochs=2),
    "c": Config((784, 1024, 1024, 10), 256, "adam", "relu", learning_rate=1e-3, examples=256 * 60, epochs=1),
}
CONFIGS["n"] = CONFIGS["b"]._replace(extra="batch_norm")
CONFIGS["o"] = CONFIGS["b"]._replace(extra="dropout")
BEST_JAX_PEER = "the best JAX peer"
AT_LEAST = {  # how many times as fast as each peer, as its users run it
    "a": {"PyTorch": 5.0, "Equinox + optax": 4.0, "Flax NNX + optax": 10.0, "stax": 1.2},
    "b": {"PyTorch": 2.0, BEST_JAX_PEER: 1.3},
    "c": {"PyTorch": 2.0, BEST_JAX_PEER: 1.0},
}
WITHIN_LIMIT = {"c": 1.25}  # times the limit's time, at most
SAME_TIME = 1.05  # hand-derived over jax.grad, and diagnosed over plain, at most
MOST_OTHERS = 0.05  # of the processors' time, for a wall clock to be believed


class Target(NamedTuple):
    """One line of the verdict; `reached` is None where other programs disturbed the measurement."""

    reached: bool | None
    line: str

    def __str__(self) -> str:
        word = {True: "reached", False: "NOT REACHED", None: "disturbed"}[self.reached]
        return f"  {word:11}  {self.line}"


class Timings(NamedTuple):
    """What was measured of one configuration.

    Attributes:
        others: the share of the processors that other processes took meanwhile.
        times: microseconds a step of each contender, one per round.
        paired: the same of the hand-derived gradient, `jax.grad` and diagnosed trainings alone, turn by turn.
        losses: the training loss at the end, where a contender has one.
        compiled: FLOPs and temporary bytes of one step, by gradient.
    """

    others: float | None
    times: dict[str, list[float]]
    paired: dict[str, list[float]]
    losses: dict[str, float]
    compiled: dict[str, dict[str, float]]


def contenders(config: Config) -> list[Contender]:
    """Everyone whose library is installed; says who is missing."""
    data = random_data(config.examples, config.widths[0], config.widths[-1])
    entered = [ours.epoch(name, config, data) for name in ours.GRADIENTS]
    entered += [ours.fit(config, data), ours.limit(config, data)]
    for name, make in {**JAX_PEERS, **OTHER_PEERS}.items():
        try:
            peer = make(config, data)
        except ModuleNotFoundError as missing:
            print(f"  skipped: {name}, {missing.name} is not installed")
            continue
        if peer is None:
            continue  # it has no such network
        entered.append(peer.contender)
        if peer.step is not None:
            entered.append(scanned(peer, config, data))
    return entered


def measure(config: Config, rounds: int, clock: Callable[[], float]) -> Timings:
    """All contenders in turn, then the two gradients and the diagnosed training in turn."""
    entered = contenders(config)
    turns = interleave(entered, rounds, config.steps, clock)
    losses = {contender.name: contender.loss() for contender in entered if contender.loss is not None}
    data = random_data(config.examples, config.widths[0], config.widths[-1])
    pair = [contender for contender in entered if contender.name in ours.GRADIENTS]
    pair += [ours.epoch(name, config, data) for name in (ours.DIAGNOSED, ours.EVERY_STEP)]
    paired = interleave(pair, PAIRED_ROUNDS * rounds, config.steps, clock)
    data = random_data(config.batch, config.widths[0], config.widths[-1])
    compiled = {name: ours.compiled_step(name, config, data) for name in ours.GRADIENTS}
    others = None if turns.others is None or paired.others is None else max(turns.others, paired.others)
    return Timings(others, turns.times, paired.times, losses, compiled)


def fastest(names: list[str], times: dict[str, list[float]]) -> str | None:
    """The name with the smallest median, of those that were timed."""
    timed = [name for name in names if name in times]
    return min(timed, key=lambda name: statistics.median(times[name])) if timed else None


def targets(letter: str, timings: Timings, disturbed: bool) -> list[Target]:
    """What this configuration must show, and whether it does."""
    times, verdict = timings.times, []

    def timed(reached: bool, line: str) -> None:
        verdict.append(Target(None if disturbed else reached, line))

    for name, least in AT_LEAST.get(letter, {}).items():
        peer = fastest(list(JAX_PEERS), times) if name == BEST_JAX_PEER else name
        if peer not in times:
            verdict.append(Target(False, f"{name}: not installed, not measured"))
            continue
        speed = ratio(times[peer], times[ours.BY_HAND])
        shown = f"{name} ({peer})" if name == BEST_JAX_PEER else name
        timed(speed.median >= least, f"{speed} × as fast as {shown}, at least {least:g}")
    if letter in WITHIN_LIMIT:
        above = ratio(times[ours.BY_HAND], times[ours.LIMIT])
        most = WITHIN_LIMIT[letter]
        timed(above.median <= most, f"{above} × the limit's time, at most {most:g}")
    hand, auto = (timings.compiled[name] for name in (ours.BY_HAND, ours.BY_JAX))
    for what in hand:
        figures = f"{hand[what]:,.0f} {what} by hand, {auto[what]:,.0f} by jax.grad, not more"
        verdict.append(Target(hand[what] <= auto[what], figures))
    for one, other, what in (
        (ours.BY_HAND, ours.BY_JAX, "the time of jax.grad"),
        (ours.DIAGNOSED, ours.BY_HAND, "the plain epoch's time, diagnosed once"),
        (ours.EVERY_STEP, ours.BY_HAND, "the plain epoch's time, diagnosed in every step"),
    ):
        same = ratio(timings.paired[one], timings.paired[other])
        shown = f"{same.median:.3f} ({same.low:.3f}–{same.high:.3f})"
        timed(same.median <= SAME_TIME, f"{shown} × {what}, at most {SAME_TIME:g}")
    return verdict


def print_table(timings: Timings) -> None:
    """A row for each contender: microseconds a step and the ratio to ours, medians with range; final loss."""
    times = timings.times
    width = max(map(len, times))
    print(f"  {'':{width}}  {'µs/step':>9}  {'range':>17}  {'time over ours':>20}  {'loss':>6}")
    for name, row in times.items():
        spread = f"{min(row):,.1f}–{max(row):,.1f}"
        against = "1" if name == ours.BY_HAND else str(ratio(row, times[ours.BY_HAND]))
        loss = f"{timings.losses[name]:.3f}" if name in timings.losses else ""
        print(f"  {name:{width}}  {statistics.median(row):>9,.1f}  {spread:>17}  {against:>20}  {loss:>6}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--rounds", type=int, help=f"rounds that are counted, {ROUNDS} by default")
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="configurations")
    parser.add_argument("--one-core", action="store_true", help="processor time on one core: for a busy machine")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round there")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a target is not reached")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.one_core:
        on_one_core()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    about = machine()
    clock = "process_time" if options.one_core else "perf_counter"
    print("\n".join(f"{what}: {text}" for what, text in about.items()))
    what = "processor time on one core" if options.one_core else "time"
    print(f"{what}; {rounds} rounds; median (smallest–largest)")
    results: dict[str, Any] = {"machine": about, "rounds": rounds}
    verdict: list[Target] = []
    for letter in options.only:
        config = CONFIGS[letter]
        if options.quick:
            batches = config.examples // config.batch // QUICK_SHARE
            config = config._replace(epochs=1, examples=config.batch * batches)
        print(f"\n({letter}) {config.name}; {config.steps:,} steps a turn")
        timings = measure(config, rounds, getattr(time, clock))
        print_table(timings)
        disturbed = not options.one_core and (timings.others or 0.0) > MOST_OTHERS
        lines = targets(letter, timings, disturbed)
        if timings.others is not None:
            print(f"  other processes took {timings.others:.0%} of the processors meanwhile")
        print("\n".join(map(str, lines)), flush=True)
        verdict += lines
        results[letter] = timings._asdict()
    import_times = import_time.measure(QUICK_IMPORT_ROUNDS if options.quick else IMPORT_ROUNDS, clock)
    verdict.append(Target(*import_time.report(import_times)))
    results["import_ms"] = import_times
    print(f"\nimport\n{verdict[-1]}")
    missed = sum(not target.reached for target in verdict)
    print(f"\n{len(verdict) - missed} of {len(verdict)} targets reached")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return int(options.strict and missed > 0)


if __name__ == "__main__":
    sys.exit(main())
