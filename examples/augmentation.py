"""What augmentation does to digits: moved, turned, stretched, sheared, bent and made noisy, each at random.

    python examples/augmentation.py [--data FOLDER] [--strength 1.0] [--seed 0] [--out out]

Each column is one digit, each row one kind of change with a draw of its own for each digit; the last two are what a
network would see in training: moved and bent. Everything is a pure function of a key, fast enough to run inside a
compiled epoch: the time for a batch of 128 is printed. The digits are scikit-learn's 8×8, or MNIST's where FOLDER holds
its four files; strengths follow the size of the images. The picture goes to out/augmentation.png.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

import jaxnn

SHOWN, BATCH, REPEATS = 10, 128, 20
MNIST_SIZE = 28  # the size for which the strengths below are meant


def augmentations(size, strength):
    """{name: function of (key, images)} for images of so many pixels a side; strength 0 changes nothing."""
    ratio, aug = size / MNIST_SIZE, jaxnn.augment
    pixel = strength * ratio
    # σ = 4 and α = 34 are Simard, Steinkraus & Platt's; displacements grow with α / σ, and should with the size.
    bend = {"alpha": 34 * strength * ratio**2, "sigma": 4 * ratio}
    move = {"shift": 2 * pixel, "rotate": 10 * strength, "scale": 0.15 * strength, "shear": 10 * strength}
    return {
        "shift": aug.shift(3 * pixel),
        "rotate": aug.rotate(20 * strength),
        "scale": aug.scale(0.3 * strength),
        "shear": aug.shear(20 * strength),
        "elastic": aug.elastic(**bend),
        "noise": aug.noise(0.15 * strength),
        "one after another": aug.compose(aug.affine(**move), aug.elastic(**bend)),
        "in one resampling": aug.deform(**bend, **move),
    }


def milliseconds(run, *args):
    """The median time of a compiled function."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def main(data=None, strength=1.0, seed=0, out="out"):
    """Draws the digits and what became of them; returns {name: images} and {name: milliseconds}."""
    images, labels = jaxnn.data.digits() if data is None else jaxnn.data.mnist(data)[0]
    first = [int(np.flatnonzero(labels == digit)[0]) for digit in range(SHOWN)]
    batch = np.concatenate([images[first], images])[:BATCH]
    rows, times = {"as they are": batch[:SHOWN]}, {}
    for i, (name, augment) in enumerate(augmentations(images.shape[1], strength).items()):
        run, key = jax.jit(augment), jax.random.fold_in(jax.random.key(seed), i)
        rows[name] = np.asarray(run(key, batch)[:SHOWN])
        times[name] = milliseconds(run, key, batch)
        print(f"{name:18} {times[name]:6.2f} ms for {len(batch)} images")
    figure = jaxnn.plots.image_rows(rows)
    path = Path(out) / "augmentation.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(path)
    return rows, times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder of MNIST's four files; scikit-learn's digits without it")
    parser.add_argument("--strength", type=float, default=1.0, help="of all changes; 0 changes nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
