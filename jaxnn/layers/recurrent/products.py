"""Matrix products of a step: with the weights, and over the examples.  N batch, D features, H width."""

from __future__ import annotations

import jax.numpy as jnp

from jaxnn.arrays import accumulator, with_rank
from jaxnn.spmd.axes import axes_of, placed
from jaxnn.types import Array, Params


def weighted(params: Params, x: Array, h: Array) -> Array:
    """Z = x W + h U + b, the input of the gates, as one product: [x, h] times W on top of U."""
    z = concatenated(x, h) @ jnp.concatenate([params["w"], params["w_h"]])
    return z + with_rank(params["b"], z.ndim)


def concatenated(x: Array, h: Array) -> Array:
    """[x, h]: N × (D + H)."""
    return jnp.concatenate([x, h], axis=-1)


def over_examples(a: Array, delta: Array) -> Array:
    """aᵀ δ, the sum over N in at least float32."""

    def product(a: Array, delta: Array) -> Array:
        return jnp.matmul(a.T, delta, preferred_element_type=accumulator(delta.dtype))

    return placed(product, a, delta, axes=(axes_of(a)[-1], axes_of(delta)[-1]))


def total_over_examples(delta: Array) -> Array:
    """Σₙ δₙ, in at least float32."""
    return delta.sum(0, dtype=accumulator(delta.dtype))
