"""Overfitting: remedies for a network that has far more weights than images to learn from.

    python examples/overfitting.py --data FOLDER [--epochs 100] [--out out]

100 hidden relu units know 1,000 images of MNIST by heart after a few epochs; then the loss on others grows. Each of
five seeds has its own images, and 1,000 more for validation; all learn at once, under vmap. How strong a remedy is
is chosen by the mean validation accuracy; its gain is on the test images, seed by seed, over nothing done.
out/overfitting.png: training grey, validation blue, dots at early stops.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

LOSS, ADAM, BATCH, UNITS = jaxnn.losses.softmax_cross_entropy, jaxnn.adam(1e-3), 50, 100
MONITOR = jaxnn.stopping.together(jaxnn.stopping.early_stopping(patience=10), best=jaxnn.stopping.keep_best())


class Remedy(NamedTuple):
    """L2's λ, the drop rates of the input and of the hidden layer, the bending's strength, and whether to stop."""

    l2: float = 0.0
    drop: tuple[float, float] = (0.0, 0.0)
    bend: float = 0.0
    stop: bool = False

    @property
    def net(self) -> Any:
        first, second = map(jaxnn.dropout, self.drop)
        return jaxnn.serial(jaxnn.flatten(), first, jaxnn.dense(UNITS), jaxnn.relu, second, jaxnn.dense(10))

    @property
    def augment(self) -> Any:
        s = self.bend
        return jaxnn.augment.deform(34 * s, 5, shift=1.5 * s, rotate=10 * s, scale=0.15 * s, shear=8 * s) if s else None

    def __str__(self) -> str:
        """What differs from nothing done."""
        parts = zip(self._fields, self, self._field_defaults.values(), strict=True)
        return ", ".join(f"{name} {value}" for name, value, default in parts if value != default)


REMEDIES = {
    "nothing": [Remedy()],
    "L2": [Remedy(l2=strength) for strength in (1e-4, 1e-3, 3e-3, 1e-2)],
    "dropout": [Remedy(drop=rates) for rates in ((0.0, 0.5), (0.2, 0.5), (0.4, 0.5))],
    "early stopping": [Remedy(stop=True)],
    "augmentation": [Remedy(bend=strength) for strength in (0.5, 1.0)],
    "all": [Remedy(1e-4, rates, bend, True) for rates in ((0.0, 0.2), (0.1, 0.3)) for bend in (0.5, 1.0)],
}


class Trained(NamedTuple):
    """Of each seed: losses on training and validation [epochs, 2], the best epoch, accuracies (%) and the test loss."""

    losses: np.ndarray
    best: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    test_loss: np.ndarray


def train(remedy, parts, test, epochs):
    """Every seed on its own images, all at once."""
    net, penalty = remedy.net, jaxnn.penalties.l2(remedy.l2) if remedy.l2 else None
    epoch = jaxnn.train_epoch(net, LOSS, ADAM, batch_size=BATCH, penalty=penalty, augment=remedy.augment)

    def score(state, data):
        logits, _, _ = net.forward(state.params, state.state, data[0])
        return LOSS.value(logits, data[1]).mean(), 100 * (logits.argmax(-1) == data[1]).mean()

    def run(key, parts):
        def one(carry, _):
            state, monitors = carry
            state, _ = epoch(state, *parts[0])
            losses = [score(state, part)[0] for part in parts]
            monitors, _ = MONITOR.update(monitors, losses[1], state)  # once it has stopped the best stays as it is
            return (state, monitors), jax.numpy.stack(losses)

        start = jaxnn.init_train_state(net, ADAM, key, test[0].shape[1:])
        (end, monitors), losses = jax.lax.scan(one, (start, MONITOR.init(start)), length=epochs)
        best = monitors.best.params
        chosen = best if remedy.stop else end
        (test_loss, test_accuracy), (_, accuracy) = score(chosen, test), score(chosen, parts[1])
        return Trained(losses, best.step * epochs // end.step, accuracy, test_accuracy, test_loss)

    return jax.device_get(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), len(parts[0][1])), parts))


def main(data, epochs=100, out="out", images=1000, seeds=5):
    """Trains with each remedy, prints and draws; returns {remedy: what the chosen strength of it has come to}."""
    pool, test = jaxnn.data.mnist(data)
    splits = [jaxnn.data.split(pool, [images, images], key=seed)[1:] for seed in range(seeds)]
    parts, found = jax.tree.map(lambda *leaves: np.stack(leaves), *splits), {}
    figure, time = Figure(figsize=(10, 5), layout="constrained"), range(1, epochs + 1)
    spread = lambda x, form: f"{format(x.mean(), form)} ± {x.std(ddof=1):.2f}"  # noqa: E731
    print(f"{'':15}{'test accuracy':>18}{'gain':>16}{'test loss':>15}   of several strengths")
    for axes, (name, remedies) in zip(
        figure.subplots(2, 3, sharex=True, sharey=True).flat, REMEDIES.items(), strict=False
    ):
        tried = [(train(remedy, parts, test, epochs), remedy) for remedy in remedies]
        own, remedy = max(tried, key=lambda pair: pair[0].validation.mean())
        found[name] = own
        gain = own.test - found["nothing"].test
        row = f"{name:15}{spread(own.test, '.2f'):>16} %{spread(gain, '+.2f'):>16}{spread(own.test_loss, '.2f'):>15}"
        print(row + f"   {remedy}" * (len(remedies) > 1), flush=True)
        axes.semilogy(time, own.losses[..., 0].T, "0.55", time, own.losses[..., 1].T, "C0", linewidth=0.8)
        if remedy.stop:
            axes.plot(own.best, own.losses[range(seeds), own.best - 1, 1], "ok", markersize=4)
        axes.set_title(f"{name}: {spread(own.test, '.2f')} %", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("loss", fontsize=10)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "overfitting.png", dpi=150)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of MNIST's four files")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
