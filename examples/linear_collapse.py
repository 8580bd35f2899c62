"""Without non-linearities a deep network is one matrix: three layers of weights learn no more than least squares.

    python examples/linear_collapse.py [--epochs 1000] [--out out]

Linear maps one after another are a linear map. With the identity as activation,

    ((x W₁ + b₁) W₂ + b₂) W₃ + b₃ = x W + b    where W = W₁ W₂ W₃ and b = (b₁ W₂ + b₂) W₃ + b₃,

which is computed here after training. The task, a twist of the plane, bends straight lines: x W + b cannot, and
training ends at the least-squares solution. The same network with tanh learns it.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import jaxnn

WIDTHS = [32, 32, 2]
LOSS, OPTIMIZER = jaxnn.losses.mse, jaxnn.adam(0.01)
POINTS, DRAWN = 41, slice(None, None, 4)  # along a side of the grid; the lines of it that are drawn
CENTRE, TURN, FADE = 0.3 + 0.1j, 2.0, 1.4  # the twist: 2 radians at its centre, none at a distance of 1.4


def twist(x):
    """Rotates every point of x [N, 2] about the centre, the less the further away it is."""
    z = x @ [1, 1j] - CENTRE  # as complex numbers, where e^{iα} turns by α
    z = CENTRE + z * np.exp(1j * TURN * (1 - abs(z) / FADE))
    return np.stack([z.real, z.imag], -1).astype(np.float32)


def collapse(params):
    """The one W and b that the three linear layers amount to."""
    (W1, b1), (W2, b2), (W3, b3) = ((params[f"dense_{i}"]["w"], params[f"dense_{i}"]["b"]) for i in range(3))
    return W1 @ W2 @ W3, (b1 @ W2 + b2) @ W3 + b3


def draw(maps, path):
    """What each map makes of the lines of a square grid."""
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, 5, sharex=True, sharey=True), maps.items(), strict=True):
        grid = points.reshape(POINTS, POINTS, 2)
        for lines in (grid[:, DRAWN], grid.swapaxes(0, 1)[:, DRAWN]):
            axes.plot(lines[..., 0], lines[..., 1], color="#28587b", linewidth=1)
        axes.set(title=title, aspect="equal")
        axes.axis("off")
    figure.savefig(path, dpi=150)


def main(epochs=1000, out="out"):
    """Trains, prints and draws; returns the mean squared errors and the largest |network(x) − (x W + b)|."""
    side = np.linspace(-1, 1, POINTS, dtype=np.float32)
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    y, x_and_one = twist(x), np.column_stack([x, np.ones_like(x[:, 0])])
    solution = np.linalg.lstsq(x_and_one, y)[0]
    y_hat, state = {"least squares": x_and_one @ solution}, {}
    for activation in (jaxnn.identity, jaxnn.tanh):
        net, name = jaxnn.mlp(WIDTHS, activation), f"3 layers, {activation.name}"
        state[name] = jaxnn.fit(net, LOSS, OPTIMIZER, (x, y), key=0, epochs=epochs, batch_size=len(x)).train_state
        y_hat[name] = np.asarray(jaxnn.predict(net, state[name], x))
    W, b = collapse(state["3 layers, identity"].params)
    difference = abs(y_hat["3 layers, identity"] - (x @ W + b)).max()
    errors = {name: ((prediction - y) ** 2).mean() for name, prediction in y_hat.items()}

    print(f"W₁ W₂ W₃ over b:\n{np.vstack([W, b])}\nthe same by least squares:\n{solution}")
    print(f"largest |network(x) − (x W + b)|: {difference:.1e}")
    print("mean squared errors:", "; ".join(f"{name} {error:.5f}" for name, error in errors.items()))
    Path(out).mkdir(parents=True, exist_ok=True)
    draw({"a grid": x, "twisted": y} | y_hat, Path(out) / "linear_collapse.png")
    return errors, difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
