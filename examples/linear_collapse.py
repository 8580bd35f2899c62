"""Without non-linearities a deep network is one matrix: three layers of weights learn no more than least squares.

    python examples/linear_collapse.py [--epochs 1000] [--out out]

A composition of linear maps is a linear map. With the identity as activation,

    ((x W₁ + b₁) W₂ + b₂) W₃ + b₃ = x W + b    where W = W₁ W₂ W₃ and b = (b₁ W₂ + b₂) W₃ + b₃,

which is computed here after training. The task, a twist of the plane, bends straight lines. No x W + b does that, and
training ends at the least-squares solution. The same network with tanh learns the twist. out/linear_collapse.png shows
a square grid after each of the maps.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import jaxnn

WIDTHS = [32, 32, 2]
LOSS = jaxnn.losses.mse
OPTIMIZER = jaxnn.adam(0.01)
POINTS = 41  # along each side of the grid
DRAWN = slice(None, None, 4)  # lines of the grid that are drawn
CENTRE, TURN, FADE = 0.3 + 0.1j, 2.0, 1.4  # the twist: 2 radians at its centre, none at a distance of 1.4


def twist(x):
    """Rotates every point of x [N, 2] about the centre, less the further away it is."""
    z = x @ [1, 1j] - CENTRE  # as complex numbers: a product with e^{iα} is a rotation by α
    z = CENTRE + z * np.exp(1j * TURN * (1 - abs(z) / FADE))
    return np.stack([z.real, z.imag], -1).astype(np.float32)


def collapse(params):
    """W and b of the one linear map that equals the three layers."""
    (W1, b1), (W2, b2), (W3, b3) = ((params[f"dense_{i}"]["w"], params[f"dense_{i}"]["b"]) for i in range(3))
    return W1 @ W2 @ W3, (b1 @ W2 + b2) @ W3 + b3


def train(activation, x, y, epochs):
    """The parameters of three layers with the activation, and their predictions for x."""
    net = jaxnn.mlp(WIDTHS, activation)
    state = jaxnn.fit(net, LOSS, OPTIMIZER, (x, y), key=0, epochs=epochs, batch_size=len(x)).train_state
    return state.params, np.asarray(jaxnn.predict(net, state, x))


def draw(maps, path):
    """The lines of a square grid after each map."""
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    panels = figure.subplots(1, 5, sharex=True, sharey=True)
    for axes, (title, points) in zip(panels, maps.items(), strict=True):
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
    y = twist(x)

    x_and_one = np.column_stack([x, np.ones_like(x[:, 0])])
    solution = np.linalg.lstsq(x_and_one, y)[0]
    linear_params, linear = train(jaxnn.identity, x, y, epochs)
    _, tanh = train(jaxnn.tanh, x, y, epochs)
    predictions = {
        "least squares": x_and_one @ solution,
        "3 layers, identity": linear,
        "3 layers, tanh": tanh,
    }
    W, b = collapse(linear_params)
    difference = abs(linear - (x @ W + b)).max()
    errors = {name: ((prediction - y) ** 2).mean() for name, prediction in predictions.items()}

    print(f"W = W₁ W₂ W₃, and b in the last row:\n{np.vstack([W, b])}")
    print(f"W and b by least squares:\n{solution}")
    print(f"largest |network(x) − (x W + b)|: {difference:.1e}")
    print("mean squared errors:", "; ".join(f"{name} {error:.5f}" for name, error in errors.items()))
    Path(out).mkdir(parents=True, exist_ok=True)
    draw({"a grid": x, "twisted": y} | predictions, Path(out) / "linear_collapse.png")
    return errors, difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
