"""Probabilities as predictions: what is none, and the logarithm that stays finite at 0."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxnn.types import Array, DType


def smallest(dtype: DType) -> float:
    """Where probabilities are clipped: the smallest normal number, whose inverse, the largest δ, is finite too."""
    return float(jnp.finfo(dtype).tiny)


def no_probability(p: Array) -> Array:
    """True where p is NaN or outside [0, 1] by more than rounding: logits, most likely."""
    slack = math.sqrt(jnp.finfo(p.dtype).eps)
    return ~((p >= -slack) & (p <= 1 + slack))


def log_clipped(p: Array, weight: Array, tiny: float) -> Array:
    """The log of max(p, tiny), with the derivative 1/max(p, tiny); where its weight is 0 too, log 1.

    A derivative of 0 below `tiny` would teach nothing to the predictions that are most wrong.
    """
    least = jnp.where(weight == 0, 1.0, tiny).astype(p.dtype)  # 0·∞ would make second derivatives NaN
    return jnp.log(jnp.where(p < tiny, least + (p - jax.lax.stop_gradient(p)), p))


def at_least(p: Array, tiny: float) -> Array:
    """The same clipping in a denominator."""
    return jnp.where(p < tiny, tiny, p)
