"""Depth: a network of 20 hidden layers that learns nothing as it is, and learns with batch norm.

    python examples/depth.py [--epochs 20] [--out out]

20 relu layers of 64 units begin with small Gaussian weights, of standard deviation 0.05. On the way forward each layer
makes the signal smaller by a factor of 0.05·√(64/2) = 0.28, on the way back δ likewise, so that after 20 the network
gives one answer to everything. Batch norm puts the scale back in every layer. The table: scikit-learn's digits, three
splits and initialisations at once under vmap, with and without batch norm, by plain SGD and by Adam; without, 10 % of
the test images are right, with it 97 by SGD and 98 by Adam. The curves go to out/depth.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

HIDDEN, WIDTH, STD = 20, 64, 0.05
LOSS, BATCH, SEEDS, HELD_OUT = jaxnn.losses.softmax_cross_entropy, 32, 3, 0.2
OPTIMIZERS = {"SGD": (jaxnn.sgd, 0.1), "Adam": (jaxnn.adam, 2e-3)}  # the rate falls to 0 as a cosine


def network(batch_norm):
    """20 hidden layers; the 19 of one shape are one `repeat`, which compiles as fast as a single layer."""
    w_init = jaxnn.initializers.normal(STD)
    norm = [jaxnn.batch_norm()] if batch_norm else []
    # Before batch norm a bias has no gradient but rounding, of which Adam would make whole steps.
    hidden = jaxnn.serial(jaxnn.dense(WIDTH, w_init=w_init, bias=not batch_norm), *norm, jaxnn.relu)
    return jaxnn.serial(hidden, jaxnn.repeat(hidden, HIDDEN - 1), jaxnn.dense(10, w_init=w_init))


def train(net, optimizer, train_data, test_data, epochs):
    """The training loss [epochs, seeds] and the test accuracy [seeds]."""
    init = jax.vmap(lambda key: jaxnn.init_train_state(net, optimizer, key, train_data[0].shape[2:]))
    states = jax.jit(init)(jax.random.split(jax.random.key(0), SEEDS))
    learn = jax.jit(jax.vmap(jaxnn.train_epoch(net, LOSS, optimizer, batch_size=BATCH)), donate_argnums=0)
    losses = []
    for _ in range(epochs):
        states, result = learn(states, *train_data)
        losses.append(result.loss)
    logits = jax.jit(jax.vmap(lambda state, x: jaxnn.predict(net, state, x)))(states, test_data[0])
    return np.array(losses), np.mean(logits.argmax(-1) == test_data[1], axis=1)


def main(epochs=20, out="out"):
    """Trains the four; returns {(batch norm?, optimizer): test accuracy of each seed}."""
    images, labels = jaxnn.data.digits()
    data = images.reshape(len(images), -1), labels
    splits = [jaxnn.data.split(data, HELD_OUT, key=seed, stratify=labels) for seed in range(SEEDS)]
    parts = jax.tree.map(lambda *parts: np.stack(parts), *splits)
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes, accuracies = figure.subplots(), {}
    print(f"test accuracy (%), mean of {SEEDS} ± standard deviation\n{'':18}" + "".join(f"{o:>14}" for o in OPTIMIZERS))
    for batch_norm in (False, True):
        for name, (optimizer, rate) in OPTIMIZERS.items():
            falling = jaxnn.schedules.cosine(rate, steps=epochs * -(-parts[0][0].shape[1] // BATCH))
            losses, accuracies[batch_norm, name] = train(network(batch_norm), optimizer(falling), *parts, epochs)
            label = f"{name}, {'batch norm' if batch_norm else 'as it is'}"
            line = {"color": "C0" if batch_norm else "0.5", "linestyle": "-" if name == "Adam" else "--"}
            axes.semilogy(range(1, epochs + 1), losses.mean(axis=1), label=label, **line)
        row = [accuracies[batch_norm, name] for name in OPTIMIZERS]
        cells = "".join(f"{100 * a.mean():7.1f} ± {100 * a.std(ddof=1):4.1f}" for a in row)
        print(f"{'batch norm' if batch_norm else 'no batch norm':18}{cells}", flush=True)
    axes.set(xlabel="epoch", xticks=range(0, epochs + 1, 5), title=f"{HIDDEN} hidden layers: training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "depth.png", dpi=150)
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
