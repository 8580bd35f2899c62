"""Statistics, scale γ and shift β of the norms, and their gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, with_rank
from jaxnn.factors import Outer, by_position
from jaxnn.parameters import check_vectors, constant
from jaxnn.shapes import features, input_spec
from jaxnn.spmd.axes import axes_of, placed, reshaped
from jaxnn.types import Array, DType, InShape, Layer, Params, Tree

NAMES = ("scale", "shift")
EPS = 1e-5  # keeps 1/√v finite where a feature is constant


def factors_of_norm(layer: Layer, params: Params, tape: Tree, delta: Array) -> Params:
    """The `factors` of a norm: ∂Cₙ/∂γ = Σₚ x̂ₙₚ ⊙ δₙₚ and ∂Cₙ/∂β = Σₚ δₙₚ.

    Where batch norm couples the examples, δₙ is that of the total cost, ∂(Σₘ Cₘ)/∂yₙ, and so are the factors.
    """
    x_hat = reshaped(tape[0], delta.shape)
    delta = delta.astype(x_hat.dtype)
    of = {"scale": x_hat * delta, "shift": delta}
    return {name: Outer(None, by_position(of[name])) for name in params}


def normalised(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array, Array]:
    """x̂, r, μ and v, the last three with axes of size 1.

    The mean is that of differences from a first value, which the derivative does not depend on. So large means lose no
    digits, and a constant feature gives exactly 0: the rounded mean of 100000.1 is off by more than √ε.
    """
    slices = [slice(None)] * x.ndim
    for axis in axes:
        slices[axis] = slice(0, 1)
    kept = tuple(None if size != slice(None) else axis for size, axis in zip(slices, axes_of(x), strict=True))
    first = jax.lax.stop_gradient(placed(lambda x: x[tuple(slices)], x, axes=kept))
    offset = x - first
    mean = offset.mean(axes, keepdims=True)
    centred = offset - mean
    var = jnp.square(centred).mean(axes, keepdims=True)
    r = jax.lax.rsqrt(var + constant(eps, var.dtype))
    return centred * r, r, first + mean, var


def scaled(gamma: Array, x_hat: Array, beta: Array) -> Array:
    """γ x̂ + β."""
    return with_rank(gamma, x_hat.ndim) * x_hat + with_rank(beta, x_hat.ndim)


def scale_and_shift(delta: Array, x_hat: Array) -> Params:
    """∂C/∂γ and ∂C/∂β, summed over all axes but the last."""
    axes = tuple(range(delta.ndim - 1))
    return {"scale": (delta * x_hat).sum(axes), "shift": delta.sum(axes)}


def ones_and_zeros(kind: str, in_shape: InShape, dtype: DType, names: tuple[str, ...] = NAMES) -> Params:
    """Initial parameters: γ of ones, β of zeros."""
    width = features(kind, input_spec(in_shape, dtype))[-1]
    return {name: (jnp.ones if name == "scale" else jnp.zeros)(width, dtype) for name in names}


def in_wide(kind: str, params: Params, x: Array, names: tuple[str, ...] = NAMES) -> tuple[Array, ...]:
    """Input and parameters in at least float32, after a check that they fit."""
    features(kind, x)
    check_vectors(kind, params, names, x)
    wide = accumulator(x.dtype)
    return x.astype(wide), *(params[name].astype(wide) for name in names)
