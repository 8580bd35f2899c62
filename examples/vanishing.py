"""Vanishing and exploding δs: what each layer multiplies them by, before any training.

    python examples/vanishing.py [--data FOLDER] [--out out]

Networks of 1 to 10 hidden layers of 30 units, at initialisation: `diagnostics.diagnose` says what is wrong with each,
and the table how much smaller δ (its root mean square) is at the first layer than at the last. σ′ is at most 1/4, so a
sigmoid takes three quarters of δ away; relu with LeCun's initialisation loses a factor of √2, with He's nothing; batch
norm puts the scale back; weights from N(0, 1) blow it up, which is found at once. Then 50 layers of 100 units: He's and
orthogonal weights keep δ, though half of a deep relu may be silent for all images. The digits are MNIST's where FOLDER
holds its four files, else scikit-learn's. The picture goes to out/vanishing.png.
"""

import argparse
import math
from pathlib import Path

import jax
from matplotlib.figure import Figure

import jaxnn

LOSS, IMAGES, DEEP = jaxnn.losses.softmax_cross_entropy, 1000, 50
LECUN, HE, ORTHOGONAL = jaxnn.initializers.lecun_normal(), jaxnn.initializers.he_normal(), jaxnn.initializers.orthogonal
RECIPES = {  # the activation, the weights' initialiser, and what stands between
    "sigmoid": (jaxnn.sigmoid, LECUN),
    "tanh": (jaxnn.tanh, LECUN),
    "relu": (jaxnn.relu, LECUN),
    "relu, He": (jaxnn.relu, HE),
    "sigmoid, batch norm": (jaxnn.sigmoid, LECUN, jaxnn.batch_norm()),
    "relu, N(0, 1)": (jaxnn.relu, jaxnn.initializers.normal(1.0)),
}
KEEPERS = {"relu, He": (jaxnn.relu, HE), "relu, orthogonal·√2": (jaxnn.relu, ORTHOGONAL(math.sqrt(2)))}
KEEPERS |= {"tanh, orthogonal": (jaxnn.tanh, ORTHOGONAL()), "relu, LeCun": (jaxnn.relu, LECUN)}


def diagnosis(x, labels, depth, width, function, w_init, *norm):
    """What is found of a fresh network, and the root mean squares of δ at its dense layers, from the first."""
    hidden = jaxnn.serial(jaxnn.dense(width, w_init=w_init), *norm, function)
    rest = [jaxnn.repeat(hidden, depth - 1)] if depth > 1 else []  # compiles as fast as a single layer
    net = jaxnn.serial(jaxnn.flatten(), hidden, *rest, jaxnn.dense(10, w_init=LECUN))
    params, state = net.init(jax.random.key(0), x.shape[1:])
    found = jaxnn.diagnostics.diagnose(net, LOSS, params, state, x, labels, initial=True)
    return found, [row.delta for row in found.layers if row.kind == "dense"]


def main(data=None, depths=range(1, 11), out="out"):
    """Prints and draws; returns {(recipe, depth): (verdict, δ of each layer)}."""
    x, labels = (part[:IMAGES] for part in (jaxnn.data.mnist(data)[0] if data else jaxnn.data.digits()))
    figure, table = Figure(figsize=(12, 3.8), layout="constrained"), {}
    panels = dict(zip(("δ, sigmoid, by depth", max(depths), DEEP), figure.subplots(1, 3, sharey=True), strict=True))
    cases = {(name, depth): (depth, 30, *recipe) for name, recipe in RECIPES.items() for depth in depths}
    cases |= {(name, DEEP): (DEEP, 100, *recipe) for name, recipe in KEEPERS.items()}
    print(f"{'':20}layers   δ at the first / at the last")
    for (name, depth), parts in cases.items():
        found, deltas = diagnosis(x, labels, *parts)
        table[name, depth] = found.verdict, deltas
        why = (finding.why for finding in found.findings[:1])
        print(f"{name:20}{depth:6}{deltas[0] / deltas[-1]:9.1e}", f"{found.verdict}", *why, sep="  ", flush=True)
        marker = "." if depth < DEEP else ""
        if name == "sigmoid":
            shade = str(0.75 - 0.06 * depth)
            panels["δ, sigmoid, by depth"].semilogy(range(1, depth + 2), deltas, shade, marker=marker, label=depth)
        if depth in panels:
            panels[depth].semilogy(range(1, depth + 2), deltas, marker=marker, label=name)
    for title, axes in panels.items():
        axes.set(title=title if isinstance(title, str) else f"δ, {title} hidden layers", xlabel="layer")
        if not isinstance(title, str):
            axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "vanishing.png", dpi=150)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder of MNIST's four files; scikit-learn's digits without it")
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
