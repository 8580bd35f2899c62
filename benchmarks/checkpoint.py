"""Checkpoints under load: processes killed while they save, and the time of saving and loading.

    python benchmarks/checkpoint.py [--kills 200] [--megabytes 256]

A process saves one step after another into a folder of which the last two are kept, until it is killed (SIGKILL) after
a random time. The folder must then have a whole newest checkpoint and no damaged one, and a further save must leave no
temporary file. Unix only: processes are forked before JAX starts any thread.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxnn import checkpoint
from jaxnn.types import TrainState

NUMBERS = 200_000  # of a state that is saved while processes are killed, 0.8 MB
LONGEST = 1.0  # seconds until a process is killed


def state_of(step, numbers=NUMBERS):
    """A state whose numbers are its step."""
    return TrainState({"w": np.full(numbers, step, np.float32)}, (), (), np.int32(step), np.uint32(7), np.int32(0))


def kill(times, draw):
    """Forked writers killed at random; the counts of what was found."""
    found = {"killed while writing a file": 0, "damaged": 0, "steps lost": 0, "left over after the next save": 0}
    with tempfile.TemporaryDirectory() as folder:
        keep, step = checkpoint.Keep(folder, last=2), 0
        for _ in range(times):
            reader, writer = os.pipe()
            if (child := os.fork()) == 0:
                while True:
                    step += 1
                    checkpoint.save(keep, state_of(step))
                    os.write(writer, step.to_bytes(4, "little"))
            os.close(writer)
            said = os.read(reader, 4)  # it has saved once
            time.sleep(draw.uniform(0, LONGEST))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            while more := os.read(reader, 4):
                said = more
            os.close(reader)
            found["killed while writing a file"] += any(name.endswith(".tmp") for name in os.listdir(folder))
            newest = checkpoint.latest(folder)
            found["damaged"] += len(newest.passed_over)
            step = checkpoint.contents(newest).step
            found["steps lost"] += step < int.from_bytes(said, "little")
        last = os.fork()
        if last == 0:
            checkpoint.save(keep, state_of(step + 1))
            os._exit(0)
        os.waitpid(last, 0)
        found["left over after the next save"] = sum(name.endswith(".tmp") for name in os.listdir(folder))
    return found


def seconds(action, rounds=5):
    """The median."""
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return sorted(took)[rounds // 2]


def speed(megabytes):
    """Seconds of saving, loading and looking, beside what the disk and the digest take by themselves."""
    import hashlib

    state = state_of(1, megabytes * 250_000)
    content = state.params["w"].tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"

        def plain():
            with open(Path(folder) / "plain", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        rows = {
            "save": lambda: checkpoint.save(path, state),
            "load": lambda: checkpoint.load(path).params["w"].block_until_ready(),
            "latest": lambda: checkpoint.latest(folder),
            "contents": lambda: checkpoint.contents(path),
            "limit: writing the bytes, forced to the disk": plain,
            "limit: one SHA-256 of them": lambda: hashlib.sha256(content).digest(),
            "np.savez, not forced to the disk": lambda: np.savez(Path(folder) / "b.npz", w=state.params["w"]),
        }
        for name, action in rows.items():
            took = seconds(action)
            print(f"  {name:<46} {took:8.3f} s {megabytes / took:10,.0f} MB/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=256)
    given = parser.parse_args()
    print(f"{given.kills} processes killed while saving")
    for name, count in kill(given.kills, random.Random(0)).items():
        print(f"  {name:<46} {count:8,}")
    print(f"a state of {given.megabytes} MB")
    speed(given.megabytes)
