"""Overfitting: remedies for a network that has far more weights than images to learn from.

    python examples/overfitting.py --data FOLDER [--epochs 100] [--out out]

100 hidden relu units know 1,000 images of MNIST by heart after a few epochs; then the loss on others grows. Each of
five seeds has its own images, and as many for validation; all learn at once, under vmap. A gain is on the test images,
over the same seed with nothing done. out/overfitting.png: training grey, validation blue, dots at early stops.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxnn

LOSS, ADAM, BATCH, L2 = jaxnn.losses.softmax_cross_entropy, jaxnn.adam(1e-3), 50, jaxnn.penalties.l2
STOPPER, KEEPER = jaxnn.stopping.early_stopping(patience=10), jaxnn.stopping.keep_best()
PLAIN, DROPS = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([100, 10])), (jaxnn.dropout(0.2), jaxnn.dropout(0.5))
DROPOUT = jaxnn.serial(jaxnn.flatten(), DROPS[0], jaxnn.dense(100), jaxnn.relu, DROPS[1], jaxnn.dense(10))
BEND = jaxnn.augment.deform(34, 5, shift=1.5, rotate=10, scale=0.15, shear=8)
REMEDIES = {  # the network, penalty, augmentation, and whether to take the best epoch
    "nothing": (PLAIN, None, None, False),
    "L2": (PLAIN, L2(3e-3), None, False),
    "dropout": (DROPOUT, None, None, False),
    "early stopping": (PLAIN, None, None, True),
    "augmentation": (PLAIN, None, BEND, False),
    "all": (DROPOUT, L2(1e-4), BEND, True),
}


def train(net, penalty, augment, stops, parts, test, epochs):
    """Of each seed: losses on training and validation [seeds, epochs, 2], the best epoch, test accuracy (%)."""
    epoch = jaxnn.train_epoch(net, LOSS, ADAM, batch_size=BATCH, penalty=penalty, augment=augment)

    def run(key, parts):
        def one(carry, _):
            (state, _), progress, best = epoch(carry[0], *parts[0]), *carry[1:]
            losses = [LOSS.value(net.forward(state.params, (), x)[0], t).mean() for x, t in parts]
            progress, decision = STOPPER.update(progress, losses[1])
            best, _ = KEEPER.update(best, jnp.where(decision.stop, jnp.nan, losses[1]), state)
            return (state, progress, best), jnp.stack(losses)

        start = jaxnn.init_train_state(net, ADAM, key, test[0].shape[1:])
        (end, _, best), losses = jax.lax.scan(one, (start, STOPPER.init(), KEEPER.init(start)), length=epochs)
        logits, _, _ = net.forward(best.params.params if stops else end.params, (), test[0])
        return losses, best.params.step * epochs // end.step, 100 * (logits.argmax(-1) == test[1]).mean()

    return jax.device_get(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), len(parts[0][1])), parts))


def main(data, epochs=100, out="out", images=1000, seeds=5):
    """Trains with each remedy, prints and draws; returns {remedy: test accuracy (%) of each seed}."""
    pool, test = jaxnn.data.mnist(data)
    splits = [jaxnn.data.split(pool, [images, images], key=seed)[1:] for seed in range(seeds)]
    parts, found = jax.tree.map(lambda *leaves: np.stack(leaves), *splits), {}
    figure, time = Figure(figsize=(10, 5), layout="constrained"), range(1, epochs + 1)
    for axes, name in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, REMEDIES, strict=False):
        losses, best, found[name] = train(*REMEDIES[name], parts, test, epochs)
        gain, text = found[name] - found["nothing"], f"{found[name].mean():.2f} ± {found[name].std(ddof=1):.2f} %"
        print(f"{name:15}{text}   gain {gain.mean():+5.2f} ± {gain.std(ddof=1):.2f}", flush=True)
        axes.semilogy(time, losses[..., 0].T, "0.55", time, losses[..., 1].T, "C0", linewidth=0.8)
        axes.plot(best, losses[range(seeds), best - 1, 1], "ok", markersize=4)
        axes.set_title(f"{name}: {text}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "overfitting.png", dpi=150)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of MNIST's four files")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
