"""The learning rate: too small, right, too large; and schedules that do better than any rate that stays the same.

    python examples/learning_rate.py [--data FOLDER] [--epochs 5] [--seeds 5] [--out out]

100 hidden relu units learn by plain SGD: with eight constant rates, with a cosine that falls from that rate to 0, and
with such a cosine after a warm-up over a tenth of the steps. The rate of each schedule is chosen on a sixth of the
training images, which are held out; then it is held against the best constant one on the test images, seed by seed. The
digits are MNIST's where FOLDER holds its four files, else scikit-learn's. The picture: out/learning_rate.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

NET = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([100, 10]))
LOSS = jaxnn.losses.softmax_cross_entropy
BATCH = 50  # divides MNIST: a constant rate would suffer from a last batch of a few images alone
RATES = np.array([0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6], np.float32)


def train(shape, data, others, epochs, seeds):
    """With η = rate · shape(step): loss of every step [seeds, rates, steps], errors (%) on others [seeds, rates]."""

    def run(key, rate):
        optimizer = jaxnn.sgd(lambda step: rate * shape(step))
        epoch = jaxnn.train_epoch(NET, LOSS, optimizer, batch_size=BATCH)
        start = jaxnn.init_train_state(NET, optimizer, key, data[0].shape[1:])
        end, result = jax.lax.scan(lambda state, _: epoch(state, *data), start, length=epochs)
        wrong = [NET.forward(end.params, end.state, x)[0].argmax(-1) != labels for x, labels in others]
        return result.losses.ravel(), [100 * each.mean() for each in wrong]

    together = jax.vmap(jax.vmap(run, (None, 0)), (0, None))  # the rates of one seed share its batches
    return jax.device_get(jax.jit(together)(jax.random.split(jax.random.key(0), seeds), RATES))


def draw(losses, errors, path):
    """Left the training loss with three constant rates, right the test error of every schedule by its rate."""
    curves, ends = (figure := Figure(figsize=(10, 3.6), layout="constrained")).subplots(1, 2)
    for name, i, colour in (("too small", 0, "C0"), ("right", 5, "C2"), ("too large", 7, "C3")):  # i of RATES
        means = [part.mean(1) for part in np.array_split(losses[:, i], min(60, losses.shape[-1]), axis=1)]
        lines = curves.semilogy(np.linspace(0, losses.shape[-1], len(means)), means, color=colour, linewidth=0.8)
        lines[0].set_label(f"{name}, {RATES[i]:g}")
    for name, error in errors.items():
        ends.errorbar(RATES, error.mean(0), error.std(0, ddof=1), capsize=3, marker="o", markersize=4, label=name)
    curves.set(xlabel="step", ylim=(0.03, 30), title="training loss, a line for each seed")
    ends.set(xscale="log", ylim=(0, 12), xlabel="learning rate, the highest", title="test error (%), mean and spread")
    for axes in (curves, ends):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right" if axes is curves else "lower left")
    figure.savefig(path, dpi=150)


def main(data=None, epochs=5, seeds=5, out="out"):
    """Trains, prints and draws; returns {schedule: (validation errors, test errors) (%), each [seeds, rates]}."""
    pool, test = jaxnn.data.mnist(data) if data else jaxnn.data.split(jaxnn.data.digits(), 0.2, key=0)
    parts = *jaxnn.data.split(pool, 1 / 6, key=0), test
    steps, cosine = epochs * -(-len(parts[0][1]) // BATCH), jaxnn.schedules.cosine
    warm = jaxnn.schedules.warmup(steps // 10, cosine(1.0, steps=steps - steps // 10), initial=0.01)
    shapes = {"constant": jaxnn.schedules.constant(1.0), "cosine": cosine(1.0, steps=steps), "warm-up, cosine": warm}
    print(f"test error (%), {seeds} seeds\nrate           " + "".join(f"{rate:>14g}" for rate in RATES))
    losses, errors = {}, {}
    for name, shape in shapes.items():
        losses[name], errors[name] = train(shape, parts[0], parts[1:], epochs, seeds)
        cells = [f"{each.mean():6.2f} ± {each.std(ddof=1):4.2f}" for each in errors[name][1].T]
        print(f"{name:16}" + " ".join(cells), flush=True)
    chosen = {name: validation.mean(0).argmin() for name, (validation, _) in errors.items()}
    for name, i in chosen.items():
        error, constant = errors[name][1][:, i], errors["constant"][1][:, chosen["constant"]]
        less = f", {(constant - error).mean():.2f} ± {(constant - error).std(ddof=1):.2f} less than constant"
        print(f"{name}, rate {RATES[i]:g}: {error.mean():.2f} ± {error.std(ddof=1):.2f}{less * (name != 'constant')}")
    Path(out).mkdir(parents=True, exist_ok=True)
    draw(losses["constant"], {name: test for name, (_, test) in errors.items()}, Path(out) / "learning_rate.png")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder of MNIST's four files; scikit-learn's digits without it")
    for name in ("--epochs", "--seeds"):
        parser.add_argument(name, type=int, default=5)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
