"""More data: the same network and number of steps, with 100 to 50,000 images to learn from.

    python examples/more_data.py --data FOLDER [--steps 2000] [--seeds 5] [--out out]

FOLDER holds MNIST's four files. Each seed draws its own images. A few images are memorised, and what is learnt does not
generalise; the gap between training and test error closes as their number grows. The test error is 26.3 % after
training on 100 images, 10.3 % after 1,000 and 3.9 % after 50,000. The picture goes to out/more_data.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

NET = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([100, 10]))
LOSS = jaxnn.losses.softmax_cross_entropy
ADAM = jaxnn.adam(1e-3)
BATCH = 50
SIZES = (100, 300, 1_000, 3_000, 10_000, 50_000)  # images


def learner(size, test, steps):
    """A compiled function of a key and `size` images: the error (%) on them and on the test images."""
    epoch = jaxnn.train_epoch(NET, LOSS, ADAM, batch_size=BATCH)
    epochs = steps * BATCH // size

    def error(params, x, labels):
        logits, _, _ = NET.forward(params, (), x)
        return 100 * (logits.argmax(-1) != labels).mean()

    def run(key, x, labels):
        start = jaxnn.init_train_state(NET, ADAM, key, x.shape[1:])
        end, _ = jax.lax.scan(lambda state, _: (epoch(state, x, labels)[0], None), start, length=epochs)
        return error(end.params, x, labels), error(end.params, *test)

    return jax.jit(run)


def draw(errors, title, path):
    """Training and test error by the number of images, mean and standard deviation over the seeds."""
    sizes = list(errors)
    error = np.stack(list(errors.values()))  # [sizes, seeds, training and test]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, label, colour, side in ((0, "training images", "0.55", "top"), (1, "test images", "C0", "bottom")):
        mean, spread = error[..., i].mean(axis=1), error[..., i].std(axis=1, ddof=1)
        axes.errorbar(sizes, mean, spread, color=colour, capsize=3, marker="o")
        axes.annotate(f"  {label}", (sizes[-1], mean[-1]), color=colour, va=side)
    axes.set(xscale="log", xlabel="images to learn from", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(data, steps=2000, seeds=5, sizes=SIZES, out="out"):
    """Trains, prints and draws; returns {number of images: errors (%) on training and test images, [seeds, 2]}."""
    pool, test = jaxnn.data.mnist(data)
    errors = {}
    print(f"error (%), mean of {seeds} seeds ± standard deviation")
    print(" images       training           test")
    for size in sizes:
        learn = learner(size, test, steps)
        found = []
        for seed in range(seeds):
            _, part = jaxnn.data.split(pool, size, key=seed)
            found.append(learn(jax.random.key(seed), *part))
        errors[size] = np.array(found)
        cells = zip(errors[size].mean(axis=0), errors[size].std(axis=0, ddof=1), strict=True)
        print(f"{size:7}", *(f"{mean:7.2f} ± {spread:4.2f}" for mean, spread in cells), flush=True)
    draw(errors, f"error (%) after {steps:,} steps, {seeds} seeds", Path(out) / "more_data.png")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder with MNIST's four files")
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
