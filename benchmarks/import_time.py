"""What `import jaxnn` adds to `import jax, chex`: timed right after it in a fresh process, many times; the median.

    python benchmarks/import_time.py [--rounds 15] [--cpu]

`--cpu` counts processor time, for a machine that other programs keep busy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

MOST_MS = 60.0
PROGRAM = """
from time import {clock} as clock
import jax, chex
start = clock()
import jaxnn
print((clock() - start) * 1e3)
"""


def measure(rounds: int, clock: str = "perf_counter") -> list[float]:
    """Milliseconds of each round, by that clock of the module `time`."""
    command = [sys.executable, "-c", PROGRAM.format(clock=clock)]
    # As after an installation the byte code lies on the disk: the first process writes it and is not counted.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = [subprocess.run(command, env=environment, capture_output=True, check=True) for _ in range(rounds + 1)]
    return [float(run.stdout) for run in runs[1:]]


def report(times: list[float]) -> tuple[bool, str]:
    """Whether the target is reached, and a line that says what was measured."""
    median, spread = statistics.median(times), f"{min(times):.0f}–{max(times):.0f}"
    return median <= MOST_MS, f"import jaxnn adds {median:.0f} ms ({spread}), at most {MOST_MS:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    options = parser.parse_args()
    reached, line = report(measure(options.rounds, "process_time" if options.cpu else "perf_counter"))
    print(f"{'reached' if reached else 'NOT REACHED'}: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
