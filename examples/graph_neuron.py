"""The chain rule in a sigmoid neuron: written as exp and division, its local derivatives multiply to σ(z)(1 − σ(z)) x.

    python examples/graph_neuron.py [--out out]

h = 1/(1 + e^{−(wx + b)}). The graph has no rule for a sigmoid; the derivatives of 1/u, 1 + v, e^s and −z multiply to
δ = h(1 − h) at z, and from there the gradient is δx for w, δw for x and δ for b.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

import jaxnn


def neuron(w, x, b):
    """The sigmoid 1/(1 + e^{−z}) with z = w x + b."""
    z = w * x + b
    return 1 / (1 + jnp.exp(-z))


def main(out: str | Path | None = "out") -> tuple[jaxnn.graph.Graph, tuple[float, float, float]]:
    """Prints the graph beside the formula and writes its page; returns it with the formula's gradient."""
    w, x, b = 1.5, -2.0, 0.5
    traced = jaxnn.graph.trace(neuron)(w, x, b)
    print(traced)
    h = float(traced.value)
    delta = h * (1 - h)
    by_formula = (delta * x, delta * w, delta)
    for name, gradient, formula in zip("wxb", traced.gradients, by_formula, strict=True):
        print(f"∂h/∂{name}  by the graph {float(gradient): .6f}   by h(1 − h) {formula: .6f}")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        path = Path(out) / "graph_neuron.html"
        jaxnn.graph.page(traced).save(path)
        print(f"wrote {path}")
    return traced, by_formula


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out", help="folder for the page")
    main(**vars(parser.parse_args()))
