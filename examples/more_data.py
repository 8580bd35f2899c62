"""More data: the same network, the same number of steps, and from 100 to 50,000 images to learn from.

    python examples/more_data.py --data FOLDER [--steps 2000] [--seeds 5] [--out out]

FOLDER holds MNIST's four files. Each seed draws images of its own. A few are learnt by heart, and what was learnt does
not hold for others; the gap between training and test closes as their number grows: of the test images 26.3 % are wrong
after 100, 10.3 after 1,000 and 3.9 after 50,000. The picture goes to out/more_data.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

NET = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([100, 10]))
LOSS, ADAM, BATCH = jaxnn.losses.softmax_cross_entropy, jaxnn.adam(1e-3), 50
SIZES = (100, 300, 1_000, 3_000, 10_000, 50_000)


def learner(size, test, steps):
    """A compiled function of a key and so many images: error (%) on them and on the test images."""
    epoch = jaxnn.train_epoch(NET, LOSS, ADAM, batch_size=BATCH)

    def error(params, x, labels):
        logits, _, _ = NET.forward(params, (), x)
        return 100 * (logits.argmax(-1) != labels).mean()

    def run(key, x, labels):
        start = jaxnn.init_train_state(NET, ADAM, key, x.shape[1:])
        end, _ = jax.lax.scan(lambda state, _: (epoch(state, x, labels)[0], None), start, length=steps * BATCH // size)
        return error(end.params, x, labels), error(end.params, *test)

    return jax.jit(run)


def main(data, steps=2000, seeds=5, sizes=SIZES, out="out"):
    """Trains, prints and draws; returns {number of images: errors (%) on training and test images, [seeds, 2]}."""
    pool, test = jaxnn.data.mnist(data)
    errors = {}
    print(f"error (%), mean of {seeds} seeds ± standard deviation\n images       training           test")
    for size in sizes:
        learn = learner(size, test, steps)
        parts = (jaxnn.data.split(pool, size, key=seed)[1] for seed in range(seeds))
        errors[size] = np.array([learn(jax.random.key(seed), *part) for seed, part in enumerate(parts)])
        cells = zip(errors[size].mean(axis=0), errors[size].std(axis=0, ddof=1), strict=True)
        print(f"{size:7}", *(f"{mean:7.2f} ± {spread:4.2f}" for mean, spread in cells), flush=True)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes, every = figure.subplots(), np.stack(list(errors.values()))  # [sizes, seeds, 2]
    for i, (label, colour) in enumerate((("training images", "0.55"), ("test images", "C0"))):
        axes.errorbar(sizes, every[..., i].mean(1), every[..., i].std(1, ddof=1), color=colour, capsize=3, marker="o")
        axes.annotate(f"  {label}", (sizes[-1], every[-1, :, i].mean()), color=colour, va=("bottom", "top")[1 - i])
    axes.set(xscale="log", xlabel="images to learn from", title=f"error (%) after {steps:,} steps, {seeds} seeds")
    axes.spines[["top", "right"]].set_visible(False)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "more_data.png", dpi=150)
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of MNIST's four files")
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
