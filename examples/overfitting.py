"""Overfitting: remedies for a network that has far more weights than images to learn from.

    python examples/overfitting.py --data FOLDER [--epochs 100] [--out out]

100 hidden relu units know 1,000 images of MNIST by heart after a few epochs; then the loss on others grows. Each of
five seeds has its own images, and 1,000 more for validation; all learn at once, under vmap. How strong a remedy is
is chosen by the mean validation accuracy; its gain is on the test images, seed by seed, over nothing done.
out/overfitting.png: training grey, validation blue, dots at early stops.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

LOSS, ADAM = jaxnn.losses.softmax_cross_entropy, jaxnn.adam(1e-3)
MONITOR = jaxnn.stopping.together(jaxnn.stopping.early_stopping(patience=10), keep=jaxnn.stopping.keep_best())
REMEDIES = {  # what train takes, in the strengths that are tried
    "nothing": [{}],
    "L2": [{"l2": strength} for strength in (1e-4, 1e-3, 3e-3, 1e-2)],
    "dropout": [{"drop": rates} for rates in ((0.0, 0.5), (0.2, 0.5), (0.4, 0.5))],
    "early stopping": [{"stop": True}],
    "augmentation": [{"bend": strength} for strength in (0.5, 1.0)],
    "all": [{"l2": 1e-4, "drop": d, "bend": b, "stop": True} for d in ((0.0, 0.2), (0.1, 0.3)) for b in (0.5, 1.0)],
}


def train(parts, test, epochs, l2=0.0, drop=(0.0, 0.0), bend=0.0, stop=False):
    """Of each seed: losses on training and validation [epochs, 2], best epoch, loss and accuracy (%) on both others."""
    first, second = map(jaxnn.dropout, drop)
    net = jaxnn.serial(jaxnn.flatten(), first, jaxnn.dense(100), jaxnn.relu, second, jaxnn.dense(10))
    move = {"shift": 1.5 * bend, "rotate": 10 * bend, "scale": 0.15 * bend, "shear": 8 * bend}
    more = {"penalty": jaxnn.penalties.l2(l2), "augment": jaxnn.augment.deform(34 * bend, 5, **move) if bend else None}
    epoch = jaxnn.train_epoch(net, LOSS, ADAM, batch_size=50, **more)

    def score(state, data):
        logits, _, _ = net.forward(state.params, state.state, data[0])
        return jax.numpy.stack([LOSS.value(logits, data[1]).mean(), 100 * (logits.argmax(-1) == data[1]).mean()])

    def run(key, parts):
        def one(carry, _):
            (state, _), monitors = epoch(carry[0], *parts[0]), carry[1]
            losses = jax.numpy.stack([score(state, part)[0] for part in parts])
            monitors, _ = MONITOR.update(monitors, losses[1], state)  # once it has stopped the best stays as it is
            return (state, monitors), losses

        start = jaxnn.init_train_state(net, ADAM, key, test[0].shape[1:])
        (end, monitors), losses = jax.lax.scan(one, (start, MONITOR.init(start)), length=epochs)
        best = monitors.best.kept
        return losses, best.step * epochs // end.step, *(score(best if stop else end, x) for x in (parts[1], test))

    return jax.device_get(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), len(parts[0][1])), parts))


def draw(axes, name, losses, best):
    """Losses [seeds, epochs, 2], and where they were best."""
    epochs = range(1, 1 + losses.shape[1])
    axes.semilogy(epochs, losses[..., 0].T, "0.55", epochs, losses[..., 1].T, "C0", linewidth=0.8)
    if REMEDIES[name][0].get("stop"):
        axes.plot(best, losses[range(len(best)), best - 1, 1], "ok", markersize=4)
    axes.set_title(name, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def main(data, epochs=100, out="out", images=1000, seeds=5):
    """Trains with each remedy, prints and draws; returns {remedy: what train gave with the strength chosen}."""
    pool, test = jaxnn.data.mnist(data)
    splits = [jaxnn.data.split(pool, [images, images], key=seed)[1:] for seed in range(seeds)]
    parts, found = jax.tree.map(lambda *leaves: np.stack(leaves), *splits), {}
    figure = Figure(figsize=(10, 5), layout="constrained")
    print(f"{'':15}{'test accuracy (%)':>18}{'gain':>16}{'test loss':>15}   of several strengths")
    for (name, tried), axes in zip(
        REMEDIES.items(), figure.subplots(2, 3, sharex=True, sharey=True).flat, strict=False
    ):
        results = [train(parts, test, epochs, **strength) for strength in tried]
        chosen = int(np.argmax([validation[:, 1].mean() for *_, validation, _ in results]))
        losses, best, _, score = found[name] = results[chosen]
        columns = score[:, 1], score[:, 1] - found["nothing"][3][:, 1], score[:, 0]
        cells = [f"{x.mean():{sign}.2f} ± {x.std(ddof=1):.2f}" for x, sign in zip(columns, " + ", strict=True)]
        strength = ", ".join(f"{key} {value}" for key, value in tried[chosen].items()) if len(tried) > 1 else ""
        print(f"{name:15}{cells[0]:>18}{cells[1]:>16}{cells[2]:>15}   {strength}", flush=True)
        draw(axes, name, losses, best)
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
