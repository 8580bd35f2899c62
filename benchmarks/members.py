"""480 members of a sweep beside their own runs, and 100 of their steps again.

    python benchmarks/members.py [--x64] [--replays 100] [--seed 1]

32 seeds, five rates, three penalties, with early stopping, on scikit-learn's digits (64-16-10). For each member the
largest difference of its parameters from those of its own `run`, relative to the largest parameter, and of its history;
then random steps of random members are replayed from states that were remembered and from the first step, and compared
to the bit. Exits with 1 if a step differs or a member ran other epochs.
"""

import argparse
import random
import sys
import time
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn
from jaxnn import losses, metrics, penalties, stopping

NET, LOSS = jaxnn.mlp([16, 10], activation=jaxnn.tanh), losses.softmax_cross_entropy
SETTINGS = {"rate": [0.003, 0.03, 0.1, 0.3, 1.0], "l2": [0.0, 0.001, 0.01]}
TRAINING, VALIDATION, BATCH, EPOCHS = 300, 200, 32, 4
COMPILED = "/jax/core/compile/backend_compile_duration"


def make(rate, l2):
    """The training of one member."""
    step = jaxnn.train_step(NET, LOSS, jaxnn.sgd(rate, momentum=0.5), penalty=penalties.l2(l2))
    machines = {"metrics": [metrics.accuracy], "stopping": stopping.early_stopping(1)}
    return jaxnn.run(step, epochs=EPOCHS, batch_size=BATCH, **machines)


def bits(tree):
    """The bytes of every array."""
    leaves = jax.tree.leaves(tree)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    arrays = [jax.random.key_data(leaf) if key else leaf for leaf, key in zip(leaves, is_key, strict=True)]
    return [np.asarray(leaf).tobytes() for leaf in arrays]


def differences(swept, train, validation, dtype):
    """The largest of the parameters, relative, and of the histories; None where a member ran other epochs."""

    @jax.jit
    def alone(rate, l2, key):
        start = jaxnn.init_train_state(NET, jaxnn.sgd(rate, momentum=0.5), key, (64,), dtype)
        return make(rate, l2)(start, train, validation)

    worst = [0.0, 0.0]
    for i in range(len(swept)):
        numbers = (jnp.asarray(swept.settings[name][i], dtype) for name in SETTINGS)
        single = alone(*numbers, jax.random.key(int(swept.seeds[i])))
        if int(single.epochs_run) != swept.runs.epochs_run[i]:
            return None
        pairs = zip(*map(jax.tree.leaves, (swept.member(i).params, single.train_state.params)), strict=True)
        worst[0] = max(worst[0], *(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs))
        for name, values in single.history.items():
            worst[1] = max(worst[1], float(np.nanmax(np.abs(np.asarray(values) - swept.runs.history[name][i]))))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--x64", action="store_true", help="in float64")
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the steps that are replayed")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.x64)
    dtype = np.float64 if options.x64 else np.float32
    images, labels = map(np.asarray, jaxnn.data.digits())
    x = images.reshape(-1, 64).astype(dtype)
    train, validation = (x[:TRAINING], labels[:TRAINING]), tuple(part[TRAINING:][:VALIDATION] for part in (x, labels))

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(seconds) if name == COMPILED else None
    )
    began = time.perf_counter()
    swept = jaxnn.sweep(make, SETTINGS, seeds=32, remember=2)(train, validation)
    print(f"{len(swept)} members in {time.perf_counter() - began:.1f} s; seconds of compiling, the longest first: "
          + ", ".join(f"{seconds:.2f}" for seconds in sorted(compiled, reverse=True)[:4]))  # fmt: skip
    print(f"members that ran 1 … {EPOCHS} epochs: {np.bincount(swept.runs.epochs_run, minlength=EPOCHS + 1)[1:]}")

    worst = differences(swept, train, validation, dtype)
    if worst is None:
        print("a member ran other epochs than its own run")
        return 1
    print(f"largest difference from its own run: parameters {worst[0]:.1e} of the largest, history {worst[1]:.1e}")

    forgetful = {field.name: getattr(swept, field.name) for field in fields(swept)}
    whole = jaxnn.Sweep(**forgetful | {"origin": swept.origin._replace(remembered={})})
    chosen, equal, batches = random.Random(options.seed), 0, -(-TRAINING // BATCH)
    for _ in range(options.replays):
        i = chosen.randrange(len(swept))
        step = chosen.randrange(int(swept.runs.epochs_run[i]) * batches)
        equal += bits(jaxnn.replay(swept, step, i)) == bits(jaxnn.replay(whole, step, i))
    print(f"steps replayed to the bit: {equal} of {options.replays}")
    return int(equal < options.replays)


if __name__ == "__main__":
    sys.exit(main())
