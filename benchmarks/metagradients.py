"""Memory and time of metagradients: 2,000 steps, recomputed and not, beside the training itself.

    python benchmarks/metagradients.py [--rounds 3]

For each way to divide the steps into epochs: bytes of temporary memory of the compiled programs and their quotient; the
time of each over that of the training alone, the median of interleaved rounds; the largest difference of the two
derivatives, relative to the largest derivative.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import adam, init_train_state, losses, metagradient, mlp, run, tanh, train_step

D, H, CLASSES, BATCH = 64, 32, 10, 16
WAYS = {  # epochs, examples
    "1 epoch of 2,000 steps": (1, 2_000 * BATCH),
    "40 epochs of 50 steps": (40, 50 * BATCH),
    "40 epochs of 50 steps, the last smaller": (40, 49 * BATCH + 5),
    "1 epoch of 2,000 steps, the last smaller": (1, 1_999 * BATCH + 5),
    "2,000 epochs of 1 step": (2_000, BATCH),
}
NET = mlp([H, CLASSES], tanh)


def programs(epochs, n):
    """The training, and its metagradient plain and recomputed, compiled; and their arguments."""
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.normal(size=(n, D)).astype(np.float32), rng.integers(0, CLASSES, n).astype(np.int32)

    def make(rate):
        step = train_step(NET, losses.softmax_cross_entropy, adam(rate, eps=1e-3))
        return run(step, epochs=epochs, batch_size=BATCH)

    state = init_train_state(NET, adam(1e-3), 0, (D,))
    args = state, draw(n), draw(100)

    def figure(rate):
        return make(rate)(*args).history["validation_loss"][-1]

    derived = [lambda rate, on=on: metagradient(make, recompute=on)(*args, rate=rate)[:3] for on in (False, True)]
    rate = jnp.float32(1e-3)
    return [jax.jit(function).lower(rate).compile() for function in (figure, *derived)], rate


def main(rounds=3):
    """Prints a line for each way."""
    print(f"{'':42}{'plain':>10}{'recomputed':>12}{'quotient':>10}{'time':>7}{'time':>7}{'difference':>12}")
    for name, (epochs, n) in WAYS.items():
        (train, *derived), rate = programs(epochs, n)
        plain, less = (program.memory_analysis().temp_size_in_bytes for program in derived)
        times = []
        for _ in range(rounds + 1):
            row = []
            for program in (train, *derived):
                begun = time.perf_counter()
                jax.block_until_ready(program(rate))
                row.append(time.perf_counter() - begun)
            times.append(row)
        ratios = np.median([[row[1] / row[0], row[2] / row[0]] for row in times[1:]], axis=0)
        a, b = (np.append(found[2], found[1]["rate"]) for found in (program(rate) for program in derived))
        off = np.abs(a - b).max() / np.abs(a).max()
        print(f"{name:42}{plain / 1e6:7.1f} MB{less / 1e6:9.1f} MB{less / plain:10.3f}", end="")
        print(f"{ratios[0]:7.2f}{ratios[1]:7.2f}{off:12.1e}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    main(**vars(parser.parse_args()))
