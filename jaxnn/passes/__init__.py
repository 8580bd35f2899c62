"""A forward and backward pass: its parts, the readings of δ, and the two derivations of the gradient."""

from jaxnn.passes.parts import Seed, factors_of, forward_pass, products, recursion, seed

__all__ = ["Seed", "factors_of", "forward_pass", "products", "recursion", "seed"]

__dir__ = __all__.copy
