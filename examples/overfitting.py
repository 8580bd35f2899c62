"""Overfitting: remedies for a network that has far more weights than training images.

    python examples/overfitting.py --data FOLDER [--epochs 100] [--out out]

A network of 100 hidden relu units memorises 1,000 images of MNIST within a few epochs; then its loss on other images
grows. Each of five seeds has its own images, and 1,000 more for validation; all train at once, under vmap. The strength
of each remedy is chosen by the mean validation accuracy. The table gives the accuracy and the loss on the test images,
and the gain in accuracy over no remedy, seed by seed. In out/overfitting.png, the training loss is grey, the validation
loss blue, and a dot marks the epoch to which early stopping returns.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxnn

LOSS = jaxnn.losses.softmax_cross_entropy
ADAM = jaxnn.adam(1e-3)
BATCH = 50
MONITOR = jaxnn.stopping.together(jaxnn.stopping.early_stopping(patience=10), keep=jaxnn.stopping.keep_best())
COMBINED = [
    {"l2": 1e-4, "drop": rates, "bend": bend, "stop": True} for rates in ((0.0, 0.2), (0.1, 0.3)) for bend in (0.5, 1.0)
]
REMEDIES = {  # arguments of `train`, in the strengths that are compared
    "nothing": [{}],
    "L2": [{"l2": strength} for strength in (1e-4, 1e-3, 3e-3, 1e-2)],
    "dropout": [{"drop": rates} for rates in ((0.0, 0.5), (0.2, 0.5), (0.4, 0.5))],
    "early stopping": [{"stop": True}],
    "augmentation": [{"bend": strength} for strength in (0.5, 1.0)],
    "all": COMBINED,
}


def train(parts, test, epochs, l2=0.0, drop=(0.0, 0.0), bend=0.0, stop=False):
    """Losses on training and validation [seeds, epochs, 2], best epochs, (loss, accuracy) on validation and on test."""
    first, second = map(jaxnn.dropout, drop)
    net = jaxnn.serial(jaxnn.flatten(), first, jaxnn.dense(100), jaxnn.relu, second, jaxnn.dense(10))
    move = {"shift": 1.5 * bend, "rotate": 10 * bend, "scale": 0.15 * bend, "shear": 8 * bend}
    augment = jaxnn.augment.deform(alpha=34 * bend, sigma=5, **move) if bend else None
    penalty = jaxnn.penalties.l2(l2)
    epoch = jaxnn.train_epoch(net, LOSS, ADAM, batch_size=BATCH, penalty=penalty, augment=augment)

    def score(state, data):
        x, labels = data
        logits, _, _ = net.forward(state.params, state.state, x)
        return jnp.stack([LOSS.value(logits, labels).mean(), 100 * (logits.argmax(-1) == labels).mean()])

    def run(key, parts):
        training, validation = parts

        def one_epoch(carry, _):
            state, monitor = carry
            state, _ = epoch(state, *training)
            losses = jnp.stack([score(state, training)[0], score(state, validation)[0]])
            monitor, _ = MONITOR.update(monitor, losses[1], state)  # once it has stopped, the best state is kept
            return (state, monitor), losses

        start = jaxnn.init_train_state(net, ADAM, key, test[0].shape[1:])
        (end, monitor), losses = jax.lax.scan(one_epoch, (start, MONITOR.init(start)), length=epochs)
        best = monitor.best.kept  # the state at the end of the best epoch
        chosen = best if stop else end
        return losses, best.step * epochs // end.step, score(chosen, validation), score(chosen, test)

    keys = jax.random.split(jax.random.key(0), len(parts[0][1]))
    return jax.device_get(jax.jit(jax.vmap(run))(keys, parts))


def draw(axes, name, losses, best):
    """Losses [seeds, epochs, 2], and the best epochs of early stopping."""
    epochs = range(1, 1 + losses.shape[1])
    axes.semilogy(epochs, losses[..., 0].T, "0.55", epochs, losses[..., 1].T, "C0", linewidth=0.8)
    if REMEDIES[name][0].get("stop"):
        axes.plot(best, losses[range(len(best)), best - 1, 1], "ok", markersize=4)
    axes.set_title(name, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def main(data, epochs=100, out="out", images=1000, seeds=5):
    """Trains with each remedy, prints and draws; returns {remedy: the results of `train` at the chosen strength}."""
    pool, test = jaxnn.data.mnist(data)
    splits = [jaxnn.data.split(pool, [images, images], key=seed)[1:] for seed in range(seeds)]
    parts = jax.tree.map(lambda *leaves: np.stack(leaves), *splits)  # training and validation, the seeds first

    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    found = {}
    print(f"{'':15}{'test accuracy (%)':>18}{'gain':>16}{'test loss':>15}   chosen strength")
    for (name, strengths), axes in zip(REMEDIES.items(), panels, strict=False):
        results = [train(parts, test, epochs, **strength) for strength in strengths]
        chosen = int(np.argmax([validation[:, 1].mean() for _, _, validation, _ in results]))
        losses, best, _, score = found[name] = results[chosen]
        loss, accuracy = score.T
        gain = accuracy - found["nothing"][3][:, 1]
        cells = [
            f"{x.mean():{sign}.2f} ± {x.std(ddof=1):.2f}" for x, sign in ((accuracy, " "), (gain, "+"), (loss, " "))
        ]
        strength = ", ".join(f"{key} {value}" for key, value in strengths[chosen].items()) if len(strengths) > 1 else ""
        print(f"{name:15}{cells[0]:>18}{cells[1]:>16}{cells[2]:>15}   {strength}", flush=True)
        draw(axes, name, losses, best)

    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("loss", fontsize=10)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "overfitting.png", dpi=150)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder with MNIST's four files")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
