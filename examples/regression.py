"""Regression with a linear output unit, and what 5 % of wild measurements do to it under MSE, MAE and Huber's loss.

    python examples/regression.py [--epochs 300] [--seed 0] [--out out]

The slope of the squared error grows with the error, so a few outliers pull the curve towards them. MAE's slope has
one size and Huber's stops growing at d: far or very far is all the same. The outliers lie on one side, so that the
pull is seen as a shift; the table holds the distance of each fit to the curve without noise (root mean square).
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import jaxnn

NET, BATCH = jaxnn.mlp([20, 20, 1], jaxnn.tanh), 50
OPTIMIZER = jaxnn.adam(
    jaxnn.schedules.step_decay(0.02, factor=0.5, every=300)
)  # small steps at last: MAE's slope never shrinks
D = 0.2  # where Huber's loss turns from a parabola into a line: twice the noise
LOSSES = {"MSE": jaxnn.losses.mse, "MAE": jaxnn.losses.mae, f"Huber, d = {D}": jaxnn.losses.huber(D)}
N, NOISE, WILD, TOO_HIGH = 200, 0.1, 0.05, (2.0, 4.0)  # 5 % of the measurements are 2 to 4 too high
TOP = 2.2  # of the picture; a triangle there stands for what lies above


def curve(x):
    """What is to be found."""
    return np.sin(x) + x / 6


def measure(seed):
    """N points x [N, 1] with their noisy values, clean and with outliers, both [N, 1]."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, (N, 1)).astype(np.float32)
    clean = curve(x) + NOISE * rng.standard_normal(x.shape, np.float32)
    wild = clean.copy()
    wild[: round(WILD * N)] += rng.uniform(*TOO_HIGH, (round(WILD * N), 1))
    return x, {"clean": clean, f"{100 * WILD:g} % outliers": wild}


def draw(x, targets, grid, fits, path):
    """The points, the true curve, and the three that were found."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (case, y) in zip(figure.subplots(1, 2, sharey=True), targets.items(), strict=True):
        axes.plot(x, y, ".", color="0.75")
        axes.plot(x[y > TOP], np.full_like(x[y > TOP], TOP - 0.05), "^", color="0.6", label="outliers above")
        axes.plot(grid, curve(grid), color="k", linewidth=1, label="true curve")
        for name, line in zip(LOSSES, ("C3-", "C2--", "C0-"), strict=True):
            axes.plot(grid, fits[case, name], line, label=name)
        axes.set(title=case, xlabel="x", xticks=(-3, 0, 3), yticks=(-1, 0, 1, 2), ylim=(-2, TOP))
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def main(epochs=300, seed=0, out="out"):
    """Fits six curves, prints and draws; returns each one's distance to the true curve."""
    x, targets = measure(seed)
    grid = np.linspace(-3, 3, 201, dtype=np.float32)[:, None]
    fits = {}
    for case, y in targets.items():
        for name, loss in LOSSES.items():
            trained = jaxnn.fit(NET, loss, OPTIMIZER, (x, y), key=seed, epochs=epochs, batch_size=BATCH)
            fits[case, name] = np.asarray(jaxnn.predict(NET, trained.train_state, grid))
    errors = {key: float(np.sqrt(np.mean((fit - curve(grid)) ** 2))) for key, fit in fits.items()}
    print(f"{'distance (RMS)':15}", *(f"{case:>14}" for case in targets))
    for name in LOSSES:
        print(f"{name:15}", *(f"{errors[case, name]:14.3f}" for case in targets))
    Path(out).mkdir(parents=True, exist_ok=True)
    draw(x, targets, grid, fits, Path(out) / "regression.png")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
