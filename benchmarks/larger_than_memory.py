"""Training from a memory map: the memory that it takes, and its time beside the same data as arrays.

    python benchmarks/larger_than_memory.py [--folder DIR] [--gib 8] [--rows 200000] [--rounds 5] [--networks …]

Writes a file of GIB GiB of float32 examples [784] and their labels, and deletes it at the end. For each network: in a
process of its own, one epoch over the whole file, with the largest anonymous memory that was seen (RssAnon of
/proc/self/status, every 10 ms); and in another, epochs over the first ROWS rows by turns from the map and from arrays
in memory, with the ratio of their seconds. The file may be in the system's cache: `--cold` asks it to forget the file
before the whole epoch, whose time is then that of the disk too. Exits with 1 if memory is 1 GiB or above.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

FEATURES, CLASSES, GIB, LIMIT = 784, 10, 2**30, 1.0  # LIMIT in GiB
PIECE = 2**14  # rows that are written at a time
SAMPLED = 0.01  # seconds between two looks at the memory
BATCHES = {"784-30-10": 32, "784-512-512-10": 128, "lenet": 128}


def network(name: str) -> Any:
    """The network of that name."""
    import jaxnn

    if name == "lenet":
        return jaxnn.serial(jaxnn.reshape(28, 28, 1), jaxnn.networks.lenet())
    return jaxnn.mlp([int(width) for width in name.split("-")[1:]])


def written(folder: Path, rows: int) -> None:
    """The file of examples and that of labels."""
    import numpy as np

    draw = np.random.default_rng(0)
    noise = draw.normal(size=(PIECE, FEATURES)).astype(np.float32)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, FEATURES))
    labels = draw.integers(CLASSES, size=rows, dtype=np.int32)
    np.save(folder / "labels.npy", labels)
    for start in range(0, rows, PIECE):
        some = labels[start : start + PIECE]
        x[start : start + PIECE] = np.roll(noise, start % 97, axis=0)[: len(some)] + 0.1 * some[:, None]
    x.flush()


def mapped(folder: Path, rows: int | None = None) -> Any:
    """The first rows, as memory maps."""
    import numpy as np

    return tuple(np.load(folder / f"{name}.npy", mmap_mode="r")[:rows] for name in ("x", "labels"))


class Memory:
    """The largest anonymous memory of this process while it is open, in GiB."""

    def __enter__(self) -> Memory:
        self.peak, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.over.wait(SAMPLED):
            status = Path("/proc/self/status").read_text()
            anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(anonymous.split()[1]) / 2**20)


def trained(name: str, data: Any, epochs: int) -> Any:
    """A training of that network."""
    import jaxnn

    loss, optimizer = jaxnn.losses.softmax_cross_entropy, jaxnn.sgd(0.01)
    return jaxnn.fit(network(name), loss, optimizer, data, key=0, epochs=epochs, batch_size=BATCHES[name])


def whole(name: str, folder: Path) -> dict[str, float]:
    """An epoch over the whole file: memory and seconds."""
    with Memory() as memory:
        fit = trained(name, mapped(folder), 1)
    return {"peak": memory.peak, "seconds": fit.history["seconds"][0], "loss": fit.history["loss"][0]}


def by_turns(name: str, folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch over the first rows, as arrays and as a map, by turns; and of reading them alone."""
    import jax
    import numpy as np

    maps = mapped(folder, rows)
    arrays = tuple(jax.device_put(np.array(part)) for part in maps)
    seconds: dict[str, list[float]] = {"arrays": [], "map": []}
    losses = set()
    for i in range(rounds):
        turns = [("arrays", arrays), ("map", maps)]
        for kind, data in turns if i % 2 else turns[::-1]:
            history = trained(name, data, 2).history  # the first epoch may compile
            seconds[kind].append(history["seconds"][1])
            losses.add(tuple(history["loss"]))
    began = time.perf_counter()
    at = np.random.default_rng(0).permutation(rows)
    for start in range(0, rows, PIECE):
        np.asarray(maps[0])[at[start : start + PIECE]]
    return {**seconds, "read": time.perf_counter() - began, "same": len(losses) == 1}


def measured(*arguments: str) -> dict[str, Any]:
    """What this script says of a measurement, in a process of its own."""
    command = [sys.executable, __file__, "--measure", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def forgotten(folder: Path) -> None:
    """Asks the system to forget what it has of the files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> int:
    """Measures, and prints a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=[*BATCHES])
    parser.add_argument("--no-whole", action="store_true", help="leaves out the epochs over the whole file")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        name, folder, rows, rounds = given.measure
        found = by_turns(name, Path(folder), int(rows), int(rounds)) if int(rounds) else whole(name, Path(folder))
        print(json.dumps(found))
        return 0
    rows = int(given.gib * GIB) // (4 * FEATURES)
    good = True
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        began = time.perf_counter()
        written(folder, rows)
        print(f"{rows:,} rows, {given.gib:g} GiB, written in {time.perf_counter() - began:.0f} s")
        for name in given.networks:
            if not given.no_whole:
                if given.cold:
                    forgotten(folder)
                found = measured(name, made, "0", "0")
                good &= found["peak"] < LIMIT
                rate = given.gib / found["seconds"]
                print(
                    f"{name}: an epoch over all in {found['seconds']:.1f} s ({rate:.2f} GiB/s), anonymous memory at "
                    f"most {found['peak']:.2f} GiB",
                    flush=True,
                )
            if given.rounds:
                few = min(given.rows, rows)
                found = measured(name, made, str(few), str(given.rounds))
                ratios = [there / here for there, here in zip(found["map"], found["arrays"], strict=True)]
                print(
                    f"{name}: {few:,} rows, map over arrays {statistics.median(ratios):.3f} "
                    f"({min(ratios):.3f}–{max(ratios):.3f}); arrays {statistics.median(found['arrays']):.2f} s, map "
                    f"{statistics.median(found['map']):.2f} s, reading alone {found['read']:.2f} s; the same bits: "
                    f"{found['same']}",
                    flush=True,
                )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
