"""Trainings in two processes, one of them killed by SIGKILL at a random moment, and the same command again.

    python benchmarks/process_kills.py [--kills 10] [--processes 2] [--seed 0]

`python -m jaxnn.processes` trains a small network and saves every 7 steps. As soon as there is a checkpoint, after a
random time, a random process is killed: the launcher must end the others within 30 s, and its last line must name that
process and SIGKILL. The same command is given again, killed again, …, and in the end left alone.
Its last checkpoint is compared with that of a training that was never killed, and so is what each process returned:
every bit of every array, and the metadata but for the seconds, and that it continued. The first training is compared,
to 1e-6, with the same script in one process.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 30.0  # seconds from a kill to the end of the launcher
SPREAD = 2.0  # seconds after the first new checkpoint, over which kills are spread


def train(folder, epochs):
    """The script: it says nothing about processes."""
    import jax
    import numpy as np

    from jaxnn import adam, dense, dropout, fit, losses, metrics, relu, serial
    from jaxnn.checkpoint import Keep
    from jaxnn.stopping import reduce_on_plateau

    jax.config.update("jax_compilation_cache_dir", f"{folder}/../cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(160, 6)).astype(np.float32)
    labels = (x[:, 0] + 0.7 * draw.normal(size=160) > 0).astype(np.int32)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    with open(f"{folder}.{jax.process_index()}.pid", "w") as file:
        file.write(str(os.getpid()))
    with jax.set_mesh(mesh):
        result = fit(
            serial(dense(16), relu, dropout(0.1), dense(2)),
            losses.softmax_cross_entropy,
            adam(3e-3),
            (x[:120], labels[:120]),
            validation=(x[120:], labels[120:]),
            metrics=[metrics.accuracy],
            epochs=epochs,
            batch_size=8,
            key=1,
            plateau=reduce_on_plateau(0.5, patience=3),
            checkpoint=Keep(folder, every=7, last=2),
        )
    history = {name: values for name, values in result.history.items() if name != "seconds"}
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result.train_state.params)]
    np.savez(f"{folder}.{jax.process_index()}.npz", *leaves, *map(np.asarray, history.values()))


def command(n, folder, epochs):
    """Of the launcher, or for one process of the script itself."""
    script = [__file__, "--train", folder, str(epochs)]
    return [sys.executable, *(["-m", "jaxnn.processes", "-n", str(n)] if n > 1 else []), *script]


def steps_in(folder):
    """The steps of the checkpoints."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {int(name[5:-12]) for name in names if name.startswith("step_") and name.endswith(".safetensors")}


def started(n, folder, epochs):
    """The launcher, running."""
    for i in range(n):
        Path(f"{folder}.{i}.pid").unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        command(n, folder, epochs), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def killed(n, folder, epochs, draw):
    """Runs the training until a process is killed: that process, the seconds to the end and the output; or None."""
    before, running = steps_in(folder), started(n, folder, epochs)
    while not steps_in(folder) - before and running.poll() is None:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, SPREAD))
    victim = draw.randrange(n)
    if running.poll() is not None:
        running.communicate()
        return None
    os.kill(int(Path(f"{folder}.{victim}.pid").read_text()), signal.SIGKILL)
    at = time.monotonic()
    output = running.communicate()[0]
    return victim, time.monotonic() - at, running.returncode, output


def content(folder):
    """Everything in the newest checkpoint but its times, as bytes by name."""
    from jaxnn.checkpoint import latest
    from jaxnn.checkpoint.layout import array_of, opened
    from jaxnn.checkpoint.packing import values_of

    found = latest(folder)
    with opened(found) as (file, header):
        arrays = {name: array_of(file, header, name).tobytes() for name in header.arrays}
        values = values_of(header)
    values["history"].pop("seconds")
    values.pop("seconds")
    values["finished"] = values["finished"].split("; it continued")[0]
    values["step"] = values["step"], os.path.basename(found.path)
    return arrays | {"metadata": repr(sorted(values.items())).encode()}


def arrays_of(path):
    """The arrays that a process returned."""
    import numpy as np

    with np.load(path) as held:
        return [held[name] for name in held.files]


def check(kills, n, epochs, seed):
    """Trains, kills and compares; returns the faults."""
    import numpy as np

    draw, faults, seconds, done, trainings = random.Random(seed), [], [], 0, 0
    with tempfile.TemporaryDirectory() as place:
        for processes, name in ((1, "alone"), (n, "reference")):
            output = started(processes, f"{place}/{name}", epochs).communicate()[0]
            if not os.path.exists(f"{place}/{name}.0.npz"):
                return [f"{name}: {output}"]
        expected, one = content(f"{place}/reference"), arrays_of(f"{place}/alone.0.npz")
        worst = max(np.abs(a - b).max() for a, b in zip(arrays_of(f"{place}/reference.0.npz"), one, strict=True))
        print(f"{n} processes and one: parameters and history differ by {worst:.1e} at most")
        if worst > 1e-6:
            faults.append(f"{n} processes and one differ by {worst}")
        while done < kills:
            folder = f"{place}/{trainings}"
            trainings += 1
            while done < kills and (found := killed(n, folder, epochs, draw)) is not None:
                victim, took, status, output = found
                last = output.strip().splitlines()[-1]
                wanted = f"process {victim} of {n} was killed by SIGKILL"
                if wanted not in last or took > MOST or status != 137:
                    faults.append(f"after {took:.1f} s, status {status}, not {wanted!r}:\n{output}")
                seconds.append(took)
                done += 1
                print(f"{done:4} killed: process {victim}, over after {took:.1f} s, at step {max(steps_in(folder))}")
            ended = started(n, folder, epochs)
            output = ended.communicate()[0]
            if ended.returncode:
                faults.append(output)
                continue
            got = content(folder)
            faults += [
                f"training {trainings}: {name}" for name in expected | got if expected.get(name) != got.get(name)
            ]
            for i in range(n):
                pairs = zip(arrays_of(f"{place}/reference.{i}.npz"), arrays_of(f"{folder}.{i}.npz"), strict=True)
                if any(a.tobytes() != b.tobytes() for a, b in pairs):
                    faults.append(f"training {trainings}: what process {i} returned")
    print(f"{done} kills in {trainings} trainings: over after {np.median(seconds):.1f} s, {max(seconds):.1f} s at most")
    return faults


def main():
    """Kills as often as wanted, and prints what was found; exit status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train[0], int(given.train[1]))
        return
    sys.path.insert(0, str(ROOT))
    faults = check(given.kills, given.processes, given.epochs, given.seed)
    print("\n".join(faults) or "every checkpoint is, to the bit, that of a training that was never killed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
