"""Trains on a file that never is in memory as a whole: images as bytes, read part by part while the last part trains.

    python examples/memory_map.py [--gib 0.25] [--out out]

Images [28, 28] of noise with a bar across them in one of four directions are written to a file, in pieces. `fit` is
given memory maps: the arguments are those for arrays, and so is the result, to the bit. The first layer makes floats of
the bytes, so that a quarter of the memory and of the reading is enough. In the same way `Source.of_dataset` and
`Source.of_chunks` take the datasets and loaders of grain or PyTorch.
"""

import argparse
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxnn

SIDE, PIECE, HELD_OUT = 28, 10_000, 2_000  # pixels; images written at a time; images for validation
STEPS = [(0, 1), (1, 1), (1, 0), (1, -1)]  # the direction of the bar of each class


def forward(params, state, x, *, train=False, rng=None):
    """Numbers from −1 to 1, [N, 784]."""
    return (x.reshape(x.shape[0], -1).astype(jnp.float32) - 127.5) / 127.5, state, ()


def backward(params, tape, delta):
    """Bytes have no δ."""
    return (), {}


pixels = jaxnn.Layer("pixels", lambda key, in_shape, dtype=jnp.float32: ({}, ()), forward, backward)
NET = jaxnn.serial(pixels, jaxnn.dense(64), jaxnn.relu, jaxnn.dense(len(STEPS)))


def images(draw, n):
    """N images and their labels."""
    labels = draw.integers(len(STEPS), size=n, dtype=np.int32)
    x = draw.integers(128, size=(n, SIDE, SIDE), dtype=np.uint8)
    down, across = np.array(STEPS)[labels].T
    begin = draw.integers(12, 17, size=(2, n))
    for i in range(-8, 9):
        x[np.arange(n), begin[0] + i * down, begin[1] + i * across] += 100
    return x, labels


def write(folder, n):
    """The two files, written in pieces."""
    draw = np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (n, SIDE, SIDE))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.int32, (n,))
    for start in range(0, n, PIECE):
        stop = min(start + PIECE, n)
        x[start:stop], labels[start:stop] = images(draw, stop - start)


def anonymous():
    """The memory of this process that is no file's, in MiB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon")), None)


def main(gib: float = 0.25, out: str | Path = "out") -> jaxnn.Fit:
    """Writes, trains, and says how much memory that took."""
    n = max(int(gib * 2**30) // SIDE**2, 2 * HELD_OUT)
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as made:
        write(Path(made), n)
        x, labels = (np.load(Path(made) / f"{name}.npy", mmap_mode="r") for name in ("x", "labels"))
        train = x[HELD_OUT:], labels[HELD_OUT:]  # views: nothing is read
        held_out = x[:HELD_OUT], labels[:HELD_OUT]
        result = jaxnn.fit(
            NET,
            jaxnn.losses.softmax_cross_entropy,
            jaxnn.adam(1e-3),
            train,
            key=1,
            epochs=2,
            batch_size=128,
            validation=held_out,
            metrics=[jaxnn.metrics.accuracy],
        )
        used = anonymous()
    for epoch, accuracy in enumerate(result.history["validation_accuracy"]):
        seconds = result.history["seconds"][epoch]
        print(f"epoch {epoch}: {n - HELD_OUT:,} images in {seconds:.1f} s, {accuracy:.1%} of the others right")
    if used is not None:
        print(f"the file has {n * SIDE**2 / 2**20:,.0f} MiB; memory that is no file's: {used:,.0f} MiB")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.25, help="the size of the file")
    parser.add_argument("--out", default="out", help="the folder for the file, which is removed at the end")
    given = parser.parse_args()
    main(given.gib, given.out)
