"""Paired timing: contenders take turns, so that whatever the machine does just then happens to all of them.

Two programs timed one after the other can look 10 % apart although they are the same program. Here every
round gives each contender one turn of the same number of training steps, in an order that rotates and
reverses between rounds. What is compared is the ratio *within* each round: its median, smallest and largest.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

MICRO = 1e6


class Contender(NamedTuple):
    """Something that trains.

    Attributes:
        name: its row in the table.
        turn: trains for one turn, and returns when the work is done, not when it is queued.
        loss: its mean loss now on the first examples, a check that it does train; None where not asked for.
    """

    name: str
    turn: Callable[[], object]
    loss: Callable[[], float] | None = None


class Ratio(NamedTuple):
    """The median of the ratios of each round, the smallest and the largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


class Turns(NamedTuple):
    """What `interleave` measured.

    Attributes:
        times: microseconds a step of each contender, one per round.
        others: the share of all processors' time, 0 to 1, that other processes took meanwhile; None where the
            system does not tell.
    """

    times: dict[str, list[float]]
    others: float | None


def interleave(contenders: Sequence[Contender], rounds: int, steps: int, clock: Callable[[], float]) -> Turns:
    """Microseconds a step, by contender and round. Everyone takes two turns first that are not counted."""
    for _ in range(2):  # the first compiles; the second finds caches and allocators as the measured ones will
        for contender in contenders:
            contender.turn()
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    start, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
    for index in range(rounds):
        shift = index % len(contenders)
        order = [*contenders[shift:], *contenders[:shift]]
        for contender in order if index % 2 == 0 else reversed(order):
            gc.collect()
            began = clock()
            contender.turn()
            times[contender.name].append((clock() - began) / steps * MICRO)
    if busy is None:
        return Turns(times, None)
    total = (time.perf_counter() - start) * (os.cpu_count() or 1)
    others = ((busy_seconds() or busy) - busy) - (time.process_time() - own)
    return Turns(times, max(0.0, others / total))


def busy_seconds() -> float | None:
    """Processor time spent on anything since the machine started; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    with open("/proc/stat", encoding="ascii") as lines:
        user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, lines.readline().split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """How many times longer the first took, round by round."""
    ratios = [above / below for above, below in zip(numerator, denominator, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def processor() -> str:
    """The processor's name."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def on_one_core() -> None:
    """Goes on on one core; the script is run again for that, because thread pools are sized at import."""
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, *sys.argv])


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    versions = {"Python": platform.python_version()}
    for package in ("jax", "jaxlib", "optax", "equinox", "flax", "torch", "scikit-learn", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }
