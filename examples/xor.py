"""XOR: a single layer cannot learn it, two layers can, and how surely depends on their width.

    python examples/xor.py [--seeds 100] [--out out]

The networks of all seeds train at once, under `vmap`. Without hidden units the best is to answer ½ to everything, a
loss of log 2. With 8 every seed solves XOR; with 2 only some do, and the others end on one of two levels, where
patterns get one answer that no small step takes apart: hidden units have saturated (Sprinkhuizen-Kuyper & Boers 1999).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import jaxnn

X, T = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0], [1.0], [1.0], [0.0]])
LOSS, OPTIMIZER, STEPS = jaxnn.losses.sigmoid_binary_cross_entropy, jaxnn.adam(0.1), 1000
NETS = {"no": jaxnn.mlp([1]), "8": jaxnn.mlp([8, 1], jaxnn.tanh), "2": jaxnn.mlp([2, 1], jaxnn.tanh)}
LINES = {"no": {"c": "0.5", "lw": 2.5}, "8": {"c": "0.8", "lw": 8}, "2": {"c": "C1", "lw": 2.5}}
LEVELS = {
    "all four alike\nlog 2": jnp.log(2),
    "three alike, one right\n¾ log 3 − ½ log 2": 0.75 * jnp.log(3) - 0.5 * jnp.log(2),
    "two alike, two right\n½ log 2": 0.5 * jnp.log(2),
    "all right\n0": 0.0,
}


def train(net, seeds):
    """One network from each seed: parameters, losses [seeds] and whether all four patterns are right, [seeds]."""
    step = jaxnn.train_step(net, LOSS, OPTIMIZER)

    def one(key):
        start = jaxnn.init_train_state(net, OPTIMIZER, key, X.shape[1:])
        end, _ = jax.lax.scan(lambda state, _: (step(state, X, T)[0], None), start, length=STEPS)
        z, _, _ = net.forward(end.params, end.state, X)
        return end.params, LOSS.value(z, T).mean(), jaxnn.metrics.binary_accuracy(z, T).mean() == 1

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))


def draw(trained, path):
    """Every seed's final loss, sorted; and for each level the answers of the network that came nearest to it."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, *right = figure.subplot_mosaic("ABC;ADE", width_ratios=(2, 1, 1)).values()
    for hidden, (_, losses, _) in trained.items():
        left.plot(jnp.sort(losses), drawstyle="steps-mid", label=f"{hidden} hidden units", **LINES[hidden])
    left.set(title="final cross-entropy", xlabel="seeds, sorted", yticks=[*LEVELS.values()], yticklabels=LEVELS)
    left.legend(loc=(0.6, 0.74), frameon=False)
    side = jnp.linspace(-0.5, 1.5, 201)
    grid = jnp.stack(jnp.meshgrid(side, side), -1)
    for axes, hidden, level in zip(right, ("no", "2", "2", "2"), LEVELS.values(), strict=True):
        nearest = abs(trained[hidden][1] - level).argmin()
        params, loss, _ = jax.tree.map(lambda leaf: leaf[nearest], trained[hidden])  # noqa: B023
        z, _, _ = NETS[hidden].forward(params, (), grid)
        axes.contourf(side, side, jax.nn.sigmoid(z[..., 0]), levels=jnp.linspace(0, 1, 11), cmap="RdBu", alpha=0.7)
        for (x1, x2), (t,) in zip(X, T, strict=True):
            axes.text(x1, x2, f"{t:.0f}", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "w"})
        axes.set(title=f"{hidden} hidden units:\nloss {loss:.3f}", xticks=(0, 1), yticks=(0, 1), aspect=1)
    figure.savefig(path, dpi=150)


def main(seeds=100, out="out"):
    """Trains, prints and draws; returns what `train` does, by the number of hidden units."""
    trained = {hidden: train(net, seeds) for hidden, net in NETS.items()}
    for hidden, (_, losses, right) in trained.items():
        print(f"{hidden:>2} hidden units: {right.sum():3} of {seeds}; losses", *sorted({f"{c:.2f}" for c in losses}))
    Path(out).mkdir(parents=True, exist_ok=True)
    draw(trained, Path(out) / "xor.png")
    return trained


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
