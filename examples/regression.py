"""Outliers in a regression: what 5 % of wrong measurements do to a fit by MSE, MAE and Huber's loss.

    python examples/regression.py [--epochs 300] [--seed 0] [--out out]

The slope of the squared error grows with the error, so a few outliers pull the curve towards them. The slope of MAE has
constant size, and that of Huber's loss stops growing at d: an outlier has the same pull at any distance. All outliers
here are too high, so that the pull is visible as a shift. The table gives the root-mean-square distance of each fit to
the curve without noise. The picture goes to out/regression.png.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import jaxnn

NET = jaxnn.mlp([20, 20, 1], jaxnn.tanh)  # with a linear output unit
BATCH = 50
OPTIMIZER = jaxnn.adam(jaxnn.schedules.step_decay(0.02, factor=0.5, every=300))  # ever smaller steps, as MAE needs
D = 0.2  # the error at which Huber's loss turns from a parabola into a line: twice the noise
LOSSES = {"MSE": jaxnn.losses.mse, "MAE": jaxnn.losses.mae, f"Huber, d = {D}": jaxnn.losses.huber(D)}
LINES = ("C3-", "C2--", "C0-")
N = 200
NOISE = 0.1  # standard deviation
OUTLIERS = 0.05  # share of the measurements
TOO_HIGH = (2.0, 4.0)  # least and greatest error of an outlier
TOP = 2.2  # of the picture; a triangle marks an outlier above it


def curve(x):
    """The curve to be found."""
    return np.sin(x) + x / 6


def measure(seed):
    """N points x [N, 1] with their noisy values, clean and with outliers, both [N, 1]."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, (N, 1)).astype(np.float32)
    clean = curve(x) + NOISE * rng.standard_normal(x.shape, np.float32)
    wrong = clean.copy()
    wrong[: round(OUTLIERS * N)] += rng.uniform(*TOO_HIGH, (round(OUTLIERS * N), 1))
    return x, {"clean": clean, f"{100 * OUTLIERS:g} % outliers": wrong}


def draw(x, targets, grid, fits, path):
    """The points, the true curve, and the three fits."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (case, y) in zip(panels, targets.items(), strict=True):
        above = x[y > TOP]
        axes.plot(x, y, ".", color="0.75")
        axes.plot(above, np.full_like(above, TOP - 0.05), "^", color="0.6", label="outliers above")
        axes.plot(grid, curve(grid), color="k", linewidth=1, label="true curve")
        for name, line in zip(LOSSES, LINES, strict=True):
            axes.plot(grid, fits[case, name], line, label=name)
        axes.set(title=case, xlabel="x", xticks=(-3, 0, 3), yticks=(-1, 0, 1, 2), ylim=(-2, TOP))
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(epochs=300, seed=0, out="out"):
    """Fits six curves, prints and draws; returns {(case, loss): distance to the true curve}."""
    x, targets = measure(seed)
    grid = np.linspace(-3, 3, 201, dtype=np.float32)[:, None]
    fits, errors = {}, {}
    for case, y in targets.items():
        for name, loss in LOSSES.items():
            fitted = jaxnn.fit(NET, loss, OPTIMIZER, (x, y), key=seed, epochs=epochs, batch_size=BATCH)
            fits[case, name] = np.asarray(jaxnn.predict(NET, fitted.train_state, grid))
            errors[case, name] = float(np.sqrt(np.mean((fits[case, name] - curve(grid)) ** 2)))

    print(f"{'distance (RMS)':15}", *(f"{case:>14}" for case in targets))
    for name in LOSSES:
        print(f"{name:15}", *(f"{errors[case, name]:14.3f}" for case in targets))
    draw(x, targets, grid, fits, Path(out) / "regression.png")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
