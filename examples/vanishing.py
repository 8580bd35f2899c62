"""Vanishing and exploding δ: the factor by which each layer multiplies it, before any training.

    python examples/vanishing.py [--data FOLDER] [--out out]

`diagnostics.diagnose` is applied to networks at initialisation. The table gives its verdict for each, and the ratio of
δ (its root mean square) at the first layer to that at the last. First, 1 to 10 hidden layers of 30 units. σ′ is at most
1/4, so that a sigmoid layer takes away three quarters of δ; a relu layer loses a factor of √2 with LeCun's
initialisation, and nothing with He's; batch norm restores the scale; weights from N(0, 1) make δ explode, and a single
layer is enough to find that. Then 50 layers of 100 units: He's and orthogonal weights preserve δ.

The digits are MNIST's if FOLDER holds its four files, otherwise scikit-learn's. The picture goes to out/vanishing.png.
"""

import argparse
import math
from pathlib import Path

import jax
from matplotlib.figure import Figure

import jaxnn

LOSS = jaxnn.losses.softmax_cross_entropy
IMAGES = 1000
DEEP = 50  # layers
LECUN = jaxnn.initializers.lecun_normal()
HE = jaxnn.initializers.he_normal()
ORTHOGONAL = jaxnn.initializers.orthogonal
RECIPES = {  # the activation, the initialiser of the weights, and a layer between them
    "sigmoid": (jaxnn.sigmoid, LECUN),
    "tanh": (jaxnn.tanh, LECUN),
    "relu": (jaxnn.relu, LECUN),
    "relu, He": (jaxnn.relu, HE),
    "sigmoid, batch norm": (jaxnn.sigmoid, LECUN, jaxnn.batch_norm()),
    "relu, N(0, 1)": (jaxnn.relu, jaxnn.initializers.normal(1.0)),
}
KEEPERS = {  # for 50 layers
    "relu, He": (jaxnn.relu, HE),
    "relu, orthogonal·√2": (jaxnn.relu, ORTHOGONAL(math.sqrt(2))),
    "tanh, orthogonal": (jaxnn.tanh, ORTHOGONAL()),
    "relu, LeCun": (jaxnn.relu, LECUN),
}


def network(depth, width, activation, w_init, *norm):
    """Hidden layers of one shape; all but the first are one `repeat`, which compiles as fast as a single layer."""
    hidden = jaxnn.serial(jaxnn.dense(width, w_init=w_init), *norm, activation)
    repeated = [jaxnn.repeat(hidden, depth - 1)] if depth > 1 else []
    return jaxnn.serial(jaxnn.flatten(), hidden, *repeated, jaxnn.dense(10, w_init=LECUN))


def diagnose(net, x, labels):
    """The diagnosis of the network at initialisation, and the root mean squares of δ at its dense layers."""
    params, state = net.init(jax.random.key(0), x.shape[1:])
    diagnosis = jaxnn.diagnostics.diagnose(net, LOSS, params, state, x, labels, initial=True)
    return diagnosis, [row.delta for row in diagnosis.layers if row.kind == "dense"]


def main(data=None, depths=range(1, 11), out="out"):
    """Prints and draws; returns {(recipe, depth): (verdict, δ of each layer)}."""
    digits = jaxnn.data.mnist(data)[0] if data else jaxnn.data.digits()
    x, labels = (part[:IMAGES] for part in digits)
    networks = {(name, depth): network(depth, 30, *recipe) for name, recipe in RECIPES.items() for depth in depths}
    networks |= {(name, DEEP): network(DEEP, 100, *recipe) for name, recipe in KEEPERS.items()}

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    sigmoid, shallow, deep = figure.subplots(1, 3, sharey=True)
    table = {}
    print(f"{'':20}layers   δ at the first / at the last")
    for (name, depth), net in networks.items():
        diagnosis, deltas = diagnose(net, x, labels)
        table[name, depth] = diagnosis.verdict, deltas
        why = [finding.why for finding in diagnosis.findings[:1]]
        print(f"{name:20}{depth:6}{deltas[0] / deltas[-1]:9.1e}", diagnosis.verdict, *why, sep="  ", flush=True)
        layers = range(1, depth + 2)
        if name == "sigmoid":
            sigmoid.semilogy(layers, deltas, str(0.75 - 0.06 * depth), marker=".")
        if depth == max(depths):
            shallow.semilogy(layers, deltas, marker=".", label=name)
        if depth == DEEP:
            deep.semilogy(layers, deltas, label=name)

    sigmoid.set(title="δ, sigmoid, by depth", xlabel="layer")
    shallow.set(title=f"δ, {max(depths)} hidden layers", xlabel="layer")
    deep.set(title=f"δ, {DEEP} hidden layers", xlabel="layer")
    for axes in (sigmoid, shallow, deep):
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (shallow, deep):
        axes.legend(frameon=False, fontsize=8)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "vanishing.png", dpi=150)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder with MNIST's four files; by default, scikit-learn's digits")
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
