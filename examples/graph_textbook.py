"""Two textbook functions as graphs: the value of each operation, what it passes back, and why ∂f/∂x is a sum.

    python examples/graph_textbook.py [--out out]

f = x·(x + y) at (2, 1). Two paths lead back to x, one directly, which contributes 3, and one through z = x + y, which
contributes 2; ∂f/∂x is their sum, 5. The second function contains a maximum: at (2, 1) it is x, and y receives 0.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

import jaxnn


def product(x, y):
    """The product x · z with z = x + y."""
    z = x + y
    return x * z


def exponential(x, y):
    """The product x · e^{3x · max(x, y)}."""
    return x * jnp.exp((x * 3) * jnp.maximum(x, y))


def main(out: str | Path | None = "out") -> dict[str, jaxnn.graph.Graph]:
    """Prints both graphs at (2, 1) and writes a page for each; returns them."""
    graphs = {}
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    for f in (product, exponential):
        traced = graphs[f.__name__] = jaxnn.graph.trace(f)(2.0, 1.0)
        print(traced)
        dx, dy = (float(gradient) for gradient in traced.gradients)
        print(f"f = {float(traced.value):.6g}, ∂f/∂x = {dx:.6g}, ∂f/∂y = {dy:.6g}\n")
        if out is not None:
            path = Path(out) / f"graph_{f.__name__}.html"
            jaxnn.graph.page(traced).save(path)
            print(f"wrote {path}\n")
    return graphs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out", help="folder for the pages")
    main(**vars(parser.parse_args()))
