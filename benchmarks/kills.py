"""Trainings killed by SIGKILL at random moments, and what is left of them.

    python benchmarks/kills.py [--kills 200] [--seed 0]

A process trains a small network and saves every 5 steps; it is killed, started again, killed again, …, and in the end
left alone; then the next training begins. Ragged batches, dropout, batch norm, early stopping, a plateau, measures, and
an optimizer of the user's own whose state holds Adam's and a running mean. What each training returns is compared, to
the last bit, with what one process returns that is never killed and never saves.

A third of the kills are timed by a temporary file, a sixth fall between the call of `fit` and its first checkpoint, and
the others are spread over the training. Every tenth process is a new interpreter without any cache; the others are
forked before JAX has started, and share compiled programs in a folder. Unix only.
"""

import argparse
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EVERY, LAST = 5, 3
SPREAD = 1.0  # seconds after the first new file, over which kills are spread
WRITES = 12  # the most files that are written before a kill that is timed by a file
FRESH = 10  # of so many processes one is a new interpreter
POLL = 3e-4  # seconds


# ---------------------------------------------------------------- the training, in a process of its own


def training(seed, **settings):
    """The result of the training; `settings` are those of its checkpoints."""
    import numpy as np

    from jaxnn import Optimizer, adam, apply_updates, batch_norm, dense, dropout, fit, losses, metrics, relu, serial
    from jaxnn.optimizers.averages import ema
    from jaxnn.stopping import early_stopping, reduce_on_plateau

    draw = np.random.default_rng(seed)
    x = draw.normal(size=(70, 6)).astype(np.float32)
    target = (x[:, 0] + 0.7 * draw.normal(size=70) > 0).astype(np.int32)
    net = serial(dense(12), batch_norm(), relu, dropout(0.2), dense(2))
    rate, mean = adam(3e-3), ema(0.9)

    def update(grads, state, params):
        updates, moments = rate.update(grads, state[0], params)
        return updates, (moments, mean.update(state[1], apply_updates(params, updates)))

    return fit(
        net,
        losses.softmax_cross_entropy,
        Optimizer(lambda params: (rate.init(params), mean.init(params)), update),
        (x[:50], target[:50]),  # batches of 8, and one of 2
        validation=(x[50:], target[50:]),
        metrics=[metrics.accuracy],
        epochs=300,
        batch_size=8,
        key=seed,
        stopping=early_stopping(patience=12),
        plateau=reduce_on_plateau(0.5, patience=4),
        measure=1,
        progress=False,
        **settings,
    )


def train(seed, out, folder="", cache="", sign=-1):
    """Trains, with checkpoints if a folder is given, and writes every number of the result but the times."""
    import jax
    import numpy as np

    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from jaxnn.checkpoint import Keep

    if sign >= 0:
        os.write(sign, b"!")
    result = training(seed, **({"checkpoint": Keep(folder, every=EVERY, last=LAST)} if folder else {}))
    history = {name: values for name, values in result.history.items() if name != "seconds"}
    whole = result._replace(history=history, why="", diagnostics=[point._asdict() for point in result.diagnostics])
    numbers = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole._asdict()):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        numbers[jax.tree_util.keystr(path)] = np.asarray(leaf)
    numbers["scales"] = np.asarray(history["update_scale"])
    np.savez(out + ".tmp.npz", **{name: value for name, value in numbers.items() if value.dtype != object})
    os.replace(out + ".tmp.npz", out)


# ---------------------------------------------------------------- killing


class Child:
    """A process that trains; it says when it calls `fit`."""

    def __init__(self, seed, out, folder, cache, fresh):
        self.sign, writer = os.pipe()
        self.fresh, settings = fresh, (seed, out, folder, "" if fresh else cache, writer)
        if fresh:
            command = [sys.executable, __file__, "--train", *map(str, settings)]
            self.pid = subprocess.Popen(command, pass_fds=(writer,)).pid
        elif not (pid := os.fork()):
            try:
                train(*settings)
                os._exit(0)
            finally:
                os._exit(1)
        else:
            self.pid = pid
        os.close(writer)
        self.status = None

    def said(self):
        return bool(select.select([self.sign], [], [], POLL)[0]) and os.read(self.sign, 1) == b"!"

    def ended(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def kill(self):
        """Kills the process; False if it had ended."""
        if self.ended():
            return False
        os.kill(self.pid, signal.SIGKILL)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status == -signal.SIGKILL

    def close(self):
        os.close(self.sign)


def step_of(name):
    return int(name.removeprefix("step_").removesuffix(".safetensors"))


def seen_in(folder):
    """The temporary files, and the steps of the checkpoints."""
    names = os.listdir(folder)
    return {n for n in names if n.endswith(".tmp")}, {step_of(n) for n in names if n.endswith(".safetensors")}


def lived(child, folder, plan, draw, newest, lead):
    """Waits until the process ends or, with a plan, kills it; what was seen: new steps, the lead, whether killed."""
    new, writes, until, first = [], set(), None, None
    left_over = seen_in(folder)[0]
    while not child.said():
        if child.ended():
            return new, lead, False
    began = time.perf_counter()
    wanted = draw.randint(1, WRITES) if plan == "write" else 0
    if plan == "early":
        until = began + draw.uniform(0, lead)
    while not child.ended():
        temporary, steps = seen_in(folder)
        writes |= temporary - left_over
        new += sorted(step for step in steps if step > newest and step not in new)
        if (new or writes) and until is None and plan == "training":
            until = time.perf_counter() + draw.uniform(0, SPREAD)
        if new and first is None:
            first = lead = time.perf_counter() - began
        if (wanted and len(writes) >= wanted) or (until is not None and time.perf_counter() >= until):
            return new, lead, child.kill()
        time.sleep(POLL)
    return new, lead, False


def kill(kills, seed):
    """Kills that many processes; a table of counts, and the faults that were found."""
    from jaxnn import checkpoint
    from jaxnn.checkpoint.layout import opened
    from jaxnn.checkpoint.packing import values_of

    draw, counts, faults, started = random.Random(seed), dict.fromkeys(COUNTED, 0), [], 0
    leads = {False: 2.0, True: 15.0}  # seconds to the first checkpoint

    with tempfile.TemporaryDirectory() as place:
        cache, number, references = f"{place}/cache", 0, {}
        while counts["kills"] < kills or number < 1:
            own = seed + number % 3
            if own not in references:
                references[own] = result_of(Child(own, out := f"{place}/reference{own}.npz", "", "", False), out)
            folder, out, newest, began = f"{place}/{number}", f"{place}/{number}.npz", 0, counts["kills"]
            os.makedirs(folder)
            while True:
                started += 1
                plan = draw.choices(("write", "early", "training"), (2, 1, 3))[0] if counts["kills"] < kills else ""
                child = Child(own, out, folder, cache, started % FRESH == 0)
                new, lead, killed = lived(child, folder, plan, draw, newest, leads[child.fresh])
                leads[child.fresh] = (leads[child.fresh] + lead) / 2
                child.close()
                counts["new interpreters without a cache"] += child.fresh
                if new and not newest < new[0] <= newest + LAST * EVERY:  # some may have been missed between two looks
                    faults.append(f"training {number} went on from {newest}, and its first checkpoint was {new[0]}")
                if not killed:
                    if child.status:
                        faults.append(f"training {number} failed with status {child.status}")
                    break
                found = checkpoint.latest(folder)
                cursor = {"step": 0, "position": 0}
                if found.path is not None:
                    with opened(found) as (_, header):  # `contents` would start JAX in the process that forks
                        cursor = values_of(header)
                step = cursor["step"]
                counts["kills"] += 1
                counts["in a write (its file was left)"] += bool(seen_in(folder)[0])
                counts["before its first checkpoint"] += step == newest
                counts["before any checkpoint"] += found.path is None
                counts["newest checkpoint within an epoch"] += cursor["position"] > 0
                counts["LOST: checkpoints that had been seen"] += step < max([newest, *new])
                counts["LOST: damaged files"] += len(found.passed_over)
                newest = step
            counts["trainings"] += 1
            counts["most kills of one training"] = max(counts["most kills of one training"], counts["kills"] - began)
            counts["LOST: temporary files at the end"] += len(seen_in(folder)[0])
            if not child.status:
                faults += differences(number, references[own], result_of(None, out), counts)
            number += 1
            print(f"{counts['kills']:5} kills, {number} trainings, {len(faults)} faults", flush=True)
    faults += [f"{name}: {counts[name]}" for name in COUNTED if name.startswith("LOST") and counts[name]]
    return counts, faults


COUNTED = (
    *("kills", "trainings", "most kills of one training", "new interpreters without a cache"),
    *("in a write (its file was left)", "before its first checkpoint", "before any checkpoint"),
    *("newest checkpoint within an epoch", "arrays compared", "epochs of a training", "plateaus of a training"),
    *("LOST: checkpoints that had been seen", "LOST: damaged files", "LOST: temporary files at the end"),
)


def result_of(child, out):
    """The numbers that a process wrote, after it has ended."""
    import numpy as np

    if child is not None:
        while not child.ended():
            time.sleep(0.01)
        child.close()
        if child.status:
            raise SystemExit(f"the training that is never killed failed with status {child.status}")
    with np.load(out) as held:
        return dict(held)


def differences(number, expected, got, counts):
    """Arrays that differ in a bit, and a training that is not the one that was to be tested."""
    counts["arrays compared"] += len(expected)
    scales = expected["scales"]
    counts["epochs of a training"] = max(counts["epochs of a training"], len(scales))
    counts["plateaus of a training"] = max(counts["plateaus of a training"], len(set(scales.tolist())) - 1)
    if not expected["['stopped']"] or len(set(scales.tolist())) < 2:
        yield f"training {number} was not stopped, or met no plateau"
    for name in sorted(expected.keys() | got.keys()):
        a, b = expected.get(name), got.get(name)
        if a is None or b is None or (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            yield f"training {number}: {name} differs"


def main():
    """Kills trainings as often as wanted and prints what was found; exit status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        seed, out, folder, cache, sign = given.train
        train(int(seed), out, folder, cache, int(sign))
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import jax  # noqa: F401  for the processes that are forked; nothing is computed here

    import jaxnn.training.fit  # noqa: F401

    began = time.perf_counter()
    counts, faults = kill(given.kills, given.seed)
    for name, count in counts.items():
        print(f"  {name:<40} {count:8,}")
    print(f"  {'seconds':<40} {time.perf_counter() - began:8.0f}")
    print("\n".join(faults) or "every number of every training is that of one that was never killed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
