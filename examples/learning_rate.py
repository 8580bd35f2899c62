"""The learning rate: too small, right and too large; and schedules that do better than any constant rate.

    python examples/learning_rate.py [--data FOLDER] [--epochs 5] [--seeds 5] [--out out]

A network of 100 hidden relu units learns by plain SGD: with eight constant rates, with a cosine that decays from each
of these rates to 0, and with such a cosine after a warm-up over a tenth of the steps. For each schedule the rate is
chosen on a sixth of the training images, which are held out; it is then compared with the best constant rate on the
test images, seed by seed. The digits are MNIST's if FOLDER holds its four files, otherwise scikit-learn's. The picture
goes to out/learning_rate.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

NET = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([100, 10]))
LOSS = jaxnn.losses.softmax_cross_entropy
BATCH = 50  # divides the size of MNIST: a last batch of a few images would harm a constant rate
RATES = np.array([0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6], np.float32)


def train(shape, data, held_out, epochs, seeds):
    """With η = rate · shape(step): losses [seeds, rates, steps], errors (%) on each held-out part [seeds, rates]."""

    def run(key, rate):
        optimizer = jaxnn.sgd(lambda step: rate * shape(step))
        epoch = jaxnn.train_epoch(NET, LOSS, optimizer, batch_size=BATCH)
        start = jaxnn.init_train_state(NET, optimizer, key, data[0].shape[1:])
        end, result = jax.lax.scan(lambda state, _: epoch(state, *data), start, length=epochs)
        wrong = [NET.forward(end.params, end.state, x)[0].argmax(-1) != labels for x, labels in held_out]
        return result.losses.ravel(), [100 * each.mean() for each in wrong]

    over_rates = jax.vmap(run, in_axes=(None, 0))  # all rates of a seed see the same batches
    over_seeds = jax.jit(jax.vmap(over_rates, in_axes=(0, None)))
    return jax.device_get(over_seeds(jax.random.split(jax.random.key(0), seeds), RATES))


def draw(losses, errors, path):
    """Left: the training loss with three constant rates; right: the test error of every schedule by its rate."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, i, colour in (("too small", 0, "C0"), ("right", 5, "C2"), ("too large", 7, "C3")):  # i in RATES
        means = [part.mean(1) for part in np.array_split(losses[:, i], min(60, losses.shape[-1]), axis=1)]
        lines = left.semilogy(np.linspace(0, losses.shape[-1], len(means)), means, color=colour, linewidth=0.8)
        lines[0].set_label(f"{name}, {RATES[i]:g}")
    for name, error in errors.items():
        right.errorbar(RATES, error.mean(0), error.std(0, ddof=1), capsize=3, marker="o", markersize=4, label=name)
    left.set(xlabel="step", ylim=(0.03, 30), title="training loss, a line for each seed")
    right.set(xscale="log", ylim=(0, 12), xlabel="largest learning rate", title="test error (%), mean and spread")
    left.legend(frameon=False, loc="upper right")
    right.legend(frameon=False, loc="lower left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def mean_and_spread(x):
    """The mean over the seeds ± the standard deviation."""
    return f"{x.mean():.2f} ± {x.std(ddof=1):.2f}"


def main(data=None, epochs=5, seeds=5, out="out"):
    """Trains, prints and draws; returns {schedule: (validation errors, test errors) (%), each [seeds, rates]}."""
    pool, test = jaxnn.data.mnist(data) if data else jaxnn.data.split(jaxnn.data.digits(), 0.2, key=0)
    training, validation = jaxnn.data.split(pool, 1 / 6, key=0)
    steps = epochs * -(-len(training[1]) // BATCH)
    warm_up = steps // 10
    decay = jaxnn.schedules.cosine(1.0, steps=steps - warm_up)
    shapes = {
        "constant": jaxnn.schedules.constant(1.0),
        "cosine": jaxnn.schedules.cosine(1.0, steps=steps),
        "warm-up, cosine": jaxnn.schedules.warmup(warm_up, then=decay, initial=0.01),
    }
    print(f"test error (%), {seeds} seeds")
    print("rate           " + "".join(f"{rate:>14g}" for rate in RATES))
    losses, errors = {}, {}
    for name, shape in shapes.items():
        losses[name], errors[name] = train(shape, training, (validation, test), epochs, seeds)
        cells = [f"{each.mean():6.2f} ± {each.std(ddof=1):4.2f}" for each in errors[name][1].T]
        print(f"{name:16}" + " ".join(cells), flush=True)

    print("rate chosen on the validation images, and its test error (%)")
    best = {}  # test errors [seeds] at the chosen rate
    for name, (validation_error, test_error) in errors.items():
        chosen = validation_error.mean(0).argmin()
        best[name] = test_error[:, chosen]
        gain = f", {mean_and_spread(best['constant'] - best[name])} less than constant" if name != "constant" else ""
        print(f"{name}, rate {RATES[chosen]:g}: {mean_and_spread(best[name])}{gain}")

    Path(out).mkdir(parents=True, exist_ok=True)
    test_errors = {name: test_error for name, (_, test_error) in errors.items()}
    draw(losses["constant"], test_errors, Path(out) / "learning_rate.png")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder with MNIST's four files; by default, scikit-learn's digits")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
