"""A published example as a graph: that of micrograd's README, written as a plain JAX function.

    python examples/graph_micrograd.py [--out out]

a = −4, b = 2 give g = 24.7041, ∂g/∂a = 138.8338, ∂g/∂b = 645.5773 (Karpathy 2020, github.com/karpathy/micrograd).
In micrograd the numbers are objects that record the operations on them; here the function is ordinary code.
"""

import argparse
from pathlib import Path

import jax

import jaxnn


def published(a, b):
    """Sums, products, powers, relu and a division, in micrograd's order."""
    c = a + b
    d = a * b + b**3
    c = c + (c + 1)
    c = c + (1 + c + (-a))
    d = d + (d * 2 + jax.nn.relu(b + a))
    d = d + (3 * d + jax.nn.relu(b - a))
    e = c - d
    f = e**2
    return f / 2.0 + 10.0 / f


def main(out: str | Path | None = "out") -> jaxnn.graph.Graph:
    """Prints the graph and the three published numbers, and writes its page; returns it."""
    traced = jaxnn.graph.trace(published)(-4.0, 2.0)
    print(traced)
    da, db = (float(gradient) for gradient in traced.gradients)
    print(f"g = {float(traced.value):.4f}, ∂g/∂a = {da:.4f}, ∂g/∂b = {db:.4f}")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        path = Path(out) / "graph_micrograd.html"
        jaxnn.graph.page(traced).save(path)
        print(f"wrote {path}")
    return traced


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out", help="folder for the page")
    main(**vars(parser.parse_args()))
