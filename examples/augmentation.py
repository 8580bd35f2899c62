"""Data augmentation: digits shifted, rotated, scaled, sheared, bent and made noisy, each at random.

    python examples/augmentation.py [--data FOLDER] [--strength 1.0] [--seed 0] [--out out]

Each column of the picture is one digit, each row one kind of change, drawn anew for each digit. The last two rows show
what a network would see in training: digits that are moved and bent, by two resamplings or by one. Augmentations are
pure functions of a key, fast enough to run inside a compiled epoch: the time for a batch of 128 images is printed.

The digits are MNIST's if FOLDER holds its four files, otherwise scikit-learn's of 8×8 pixels; strengths follow the size
of the images. The picture goes to out/augmentation.png.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

import jaxnn

SHOWN = 10  # digits in a row
BATCH = 128
REPEATS = 20  # of each measurement
MNIST_SIZE = 28  # pixels; the strengths below are meant for images of this size


def augmentations(size, strength):
    """{name: function of (key, images)} for images of size × size pixels; strength 0 changes nothing."""
    ratio = size / MNIST_SIZE
    # α = 34 and σ = 4 are from Simard, Steinkraus & Platt (2003). Displacements grow with α / σ, and should grow with
    # the size of the image.
    bend = {"alpha": 34 * strength * ratio**2, "sigma": 4 * ratio}
    move = {
        "shift": 2 * strength * ratio,
        "rotate": 10 * strength,
        "scale": 0.15 * strength,
        "shear": 10 * strength,
    }
    augment = jaxnn.augment
    return {
        "shift": augment.shift(3 * strength * ratio),
        "rotate": augment.rotate(20 * strength),
        "scale": augment.scale(0.3 * strength),
        "shear": augment.shear(20 * strength),
        "elastic": augment.elastic(**bend),
        "noise": augment.noise(0.15 * strength),
        "one after another": augment.compose(augment.affine(**move), augment.elastic(**bend)),
        "in one resampling": augment.deform(**bend, **move),
    }


def milliseconds(compiled, *args):
    """The median time of a compiled function."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def main(data=None, strength=1.0, seed=0, out="out"):
    """Draws the digits and their augmentations; returns {name: images} and {name: milliseconds}."""
    if data is None:
        images, labels = jaxnn.data.digits()
    else:
        (images, labels), _ = jaxnn.data.mnist(data)
    first = [int(np.flatnonzero(labels == digit)[0]) for digit in range(SHOWN)]  # one image of each digit
    batch = np.concatenate([images[first], images])[:BATCH]

    rows = {"original": batch[:SHOWN]}
    times = {}
    for i, (name, augment) in enumerate(augmentations(images.shape[1], strength).items()):
        compiled = jax.jit(augment)
        key = jax.random.fold_in(jax.random.key(seed), i)
        rows[name] = np.asarray(compiled(key, batch)[:SHOWN])
        times[name] = milliseconds(compiled, key, batch)
        print(f"{name:18} {times[name]:6.2f} ms for {len(batch)} images")

    path = Path(out) / "augmentation.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    jaxnn.plots.image_rows(rows).savefig(path)
    print(path)
    return rows, times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder with MNIST's four files; by default, scikit-learn's digits")
    parser.add_argument("--strength", type=float, default=1.0, help="of all changes; 0 changes nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
