"""Regularisation: a network with far too many parameters fits the noise; an L2 penalty makes it fit the curve.

    python examples/curve_fitting.py [--steps 10000] [--seed 0] [--out out]

A network with 10,401 parameters passes through all of 16 noisy points, and so fits the noise. One with 4 parameters is
too stiff for the curve. The large one with an L2 penalty on its weights comes close to it. The table gives the
root-mean-square distance to the points and to the curve behind them: 0.04 and 0.44 for the large network, 0.13 and 0.14
with the penalty. The picture goes to out/curve_fitting.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

POINTS = 16
NOISE = 0.25  # standard deviation
ADAM = jaxnn.adam(3e-3)
SMALL = jaxnn.mlp([1, 1], jaxnn.tanh)
LARGE = jaxnn.mlp([100, 100, 1], jaxnn.tanh)
CASES = {  # network and penalty
    "4 parameters": (SMALL, None),
    "10,401 parameters": (LARGE, None),
    "10,401 and L2": (LARGE, jaxnn.penalties.l2(3e-3)),
}


def curve(x):
    """The curve that the points are measured on."""
    return np.sin(x) + x / 6


def train(net, penalty, x, y, seed, steps):
    """The function that the network computes after training on all points at every step."""
    step = jaxnn.train_step(net, jaxnn.losses.mse, ADAM, penalty=penalty)

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda state, _: (step(state, x, y)[0], None), state, length=steps)[0]

    trained = run(jaxnn.init_train_state(net, ADAM, seed, (1,)))
    return lambda x: np.asarray(jaxnn.predict(net, trained, x))


def draw(axes, title, x, y, grid, fitted):
    """The points, the curve, and the fitted function."""
    axes.plot(grid, curve(grid), color="0.6", linewidth=1.2, linestyle="--", label="the curve")
    axes.plot(grid, fitted(grid), color="C0", label="the network")
    axes.plot(x, y, "o", color="k", markersize=4, label="the points")
    axes.set(title=title, xlabel="x", ylim=(curve(grid).min() - 1, curve(grid).max() + 1))
    axes.spines[["top", "right"]].set_visible(False)


def root_mean_square(error):
    """√mean(e²)."""
    return float(np.sqrt(np.mean(error**2)))


def main(steps=10_000, seed=0, out="out"):
    """Trains, prints and draws; returns {case: (distance to the points, distance to the curve)}."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(-4, 4, (POINTS, 1)).astype(np.float32), axis=0)
    y = (curve(x) + NOISE * rng.standard_normal(x.shape)).astype(np.float32)
    grid = np.linspace(x.min(), x.max(), 400, dtype=np.float32)[:, None]

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    distances = {}
    print("distance             to the points  to the curve")
    for axes, (name, (net, penalty)) in zip(panels, CASES.items(), strict=True):
        fitted = train(net, penalty, x, y, seed, steps)
        to_points = root_mean_square(fitted(x) - y)
        to_curve = root_mean_square(fitted(grid) - curve(grid))
        distances[name] = to_points, to_curve
        print(f"{name:20} {to_points:13.3f} {to_curve:13.3f}")
        draw(axes, name, x, y, grid, fitted)
    axes.legend(frameon=False, loc="lower right")

    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "curve_fitting.png", dpi=150)
    return distances


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
