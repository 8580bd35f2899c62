"""XOR: a single layer cannot learn it, two layers can, and how reliably depends on their width.

    python examples/xor.py [--seeds 100] [--out out]

The networks of all seeds train at once, under `vmap`. Without hidden units the best answer is ½ to every pattern, with
a loss of log 2. With 8 hidden units every seed solves XOR. With 2 only some do, and the others end at one of two other
losses: hidden units have saturated, so that several patterns get the same answer and no small step separates them
(Sprinkhuizen-Kuyper & Boers 1999). The picture goes to out/xor.png.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import jaxnn

X = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
T = jnp.array([[0.0], [1.0], [1.0], [0.0]])
LOSS = jaxnn.losses.sigmoid_binary_cross_entropy
OPTIMIZER = jaxnn.adam(0.1)
STEPS = 1000
NETS = {  # by the number of hidden units
    "no": jaxnn.mlp([1]),
    "8": jaxnn.mlp([8, 1], jaxnn.tanh),
    "2": jaxnn.mlp([2, 1], jaxnn.tanh),
}
LINES = {
    "no": {"color": "0.5", "linewidth": 2.5},
    "8": {"color": "0.8", "linewidth": 8},
    "2": {"color": "C1", "linewidth": 2.5},
}
LEVELS = {  # losses at which training can end
    "all four alike\nlog 2": jnp.log(2),
    "three alike, one right\n¾ log 3 − ½ log 2": 0.75 * jnp.log(3) - 0.5 * jnp.log(2),
    "two alike, two right\n½ log 2": 0.5 * jnp.log(2),
    "all right\n0": 0.0,
}


def train(net, seeds):
    """For each seed: the parameters, the final loss, and whether all four patterns are right."""
    step = jaxnn.train_step(net, LOSS, OPTIMIZER)

    def one(key):
        start = jaxnn.init_train_state(net, OPTIMIZER, key, X.shape[1:])
        end, _ = jax.lax.scan(lambda state, _: (step(state, X, T)[0], None), start, length=STEPS)
        z, _, _ = net.forward(end.params, end.state, X)
        all_right = jaxnn.metrics.binary_accuracy(z, T).mean() == 1
        return end.params, LOSS.value(z, T).mean(), all_right

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))


def draw_answers(axes, hidden, trained, level):
    """The answers, over the plane, of the network whose loss is nearest to a level."""
    params, losses, _ = trained
    nearest = abs(losses - level).argmin()
    side = jnp.linspace(-0.5, 1.5, 201)
    grid = jnp.stack(jnp.meshgrid(side, side), -1)
    z, _, _ = NETS[hidden].forward(jax.tree.map(lambda leaf: leaf[nearest], params), (), grid)
    axes.contourf(side, side, jax.nn.sigmoid(z[..., 0]), levels=jnp.linspace(0, 1, 11), cmap="RdBu", alpha=0.7)
    for (x1, x2), (t,) in zip(X, T, strict=True):
        axes.text(x1, x2, f"{t:.0f}", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "w"})
    title = f"{hidden} hidden units:\nloss {losses[nearest]:.3f}"
    axes.set(title=title, xticks=(0, 1), yticks=(0, 1), aspect=1)


def draw(trained, path):
    """The final loss of every seed, sorted; and for each level the answers of one network that ends there."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, *right = figure.subplot_mosaic("ABC;ADE", width_ratios=(2, 1, 1)).values()
    for hidden, (_, losses, _) in trained.items():
        left.plot(jnp.sort(losses), drawstyle="steps-mid", label=f"{hidden} hidden units", **LINES[hidden])
    left.set(title="final cross-entropy", xlabel="seeds, sorted", yticks=[*LEVELS.values()], yticklabels=LEVELS)
    left.legend(loc=(0.6, 0.74), frameon=False)
    for axes, hidden, level in zip(right, ("no", "2", "2", "2"), LEVELS.values(), strict=True):
        draw_answers(axes, hidden, trained[hidden], level)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(seeds=100, out="out"):
    """Trains, prints and draws; returns the results of `train` by the number of hidden units."""
    trained = {hidden: train(net, seeds) for hidden, net in NETS.items()}
    for hidden, (_, losses, right) in trained.items():
        distinct = sorted({f"{loss:.2f}" for loss in losses})
        print(f"{hidden:>2} hidden units: {right.sum():3} of {seeds} seeds solve XOR; final losses", *distinct)
    draw(trained, Path(out) / "xor.png")
    return trained


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
