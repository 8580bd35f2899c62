"""Layers that only rearrange: every element of δ goes back to where its value came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxnn.checks import LayerError, check_delta, is_floating, one_array, outline, whole_number
from jaxnn.placement import reshaped
from jaxnn.types import DType, InShape, Key, Layer, Outline, Params, Shape, State, Tree


def reshape(*sizes: int) -> Layer:
    """A layer that gives every example the shape `sizes`, in row-major order.

    Forward, x [N, …] → [N, *sizes].    Backward: δ takes x's shape again.

    Args:
        *sizes: the new shape without the batch axis; one of them may be −1 and is then computed.

    Raises:
        ValueError: if more than one size is −1, a size is zero, or an example's elements do not fit.

    >>> reshape(4, 4).forward({}, (), jnp.ones((2, 16)))[0].shape
    (2, 4, 4)
    """
    sizes = tuple(size if size == -1 else whole_number("reshape: size", size, least=1) for size in sizes)
    if sizes.count(-1) > 1:
        raise ValueError(f"reshape: at most one size may be -1, got {sizes}")
    known = math.prod(size for size in sizes if size != -1)

    def rearranged(shape: Shape) -> Shape:
        elements = math.prod(shape[1:])
        if elements % known or (-1 not in sizes and elements != known):
            raise LayerError("reshape", f"to {sizes} does not fit x of shape {shape}")
        return shape[0], *(elements // known if size == -1 else size for size in sizes)

    return _rearranging("reshape", rearranged)


def flatten() -> Layer:
    """A layer that makes one feature axis of all axes but the first, x [N, …] → [N, D].

    Backward: δ takes x's shape again.

    Raises:
        ValueError: if x has no batch axis.

    >>> flatten().forward({}, (), jnp.ones((2, 28, 28, 1)))[0].shape
    (2, 784)
    """
    return _rearranging("flatten", lambda shape: (shape[0], math.prod(shape[1:])))


def _rearranging(kind: str, rearranged: Callable[[Shape], Shape]) -> Layer:
    """The layer that gives x another shape, a function of the one it has."""

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return {}, ()

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        shape = rearranged(one_array(kind, x))
        return reshaped(x, shape), state, outline(x)

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        check_delta(kind, delta, Outline(rearranged(tape.shape), tape.dtype))
        return (reshaped(delta, tape.shape) if is_floating(tape) else ()), {}  # whole numbers have no δ

    return Layer(kind, init, forward, backward)
