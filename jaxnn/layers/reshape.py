"""Layers that only rearrange elements; backward gives δ the shape of x."""

from __future__ import annotations

import math

from jaxnn.arrays import is_floating, outline
from jaxnn.checks import whole_number
from jaxnn.errors import LayerError
from jaxnn.parameters import no_parameters
from jaxnn.shapes import check_delta, one_array
from jaxnn.spmd.axes import reshaped
from jaxnn.tapes import first_axes
from jaxnn.types import Array, Forward, Key, Layer, Outline, Params, Shape, State, Tree


class reshape(Layer):
    """Every example reshaped, x [N, …] → [N, *sizes], in row-major order.

    Backward: δ takes the shape of x.

    Args:
        *sizes: the new shape without the batch axis; one of them may be −1 and is then inferred.

    Raises:
        ValueError: if more than one size is −1, a size is zero, or the sizes do not fit an example's elements.

    >>> import jax.numpy as jnp
    >>> reshape(4, 4).forward({}, (), jnp.ones((2, 16)))[0].shape
    (2, 4, 4)
    """

    spread = True

    sizes: tuple[int, ...]

    def __init__(self, *given: int, sizes: tuple[int, ...] = ()) -> None:
        sizes = tuple(size if size == -1 else whole_number("reshape: size", size, least=1) for size in (*given, *sizes))
        if sizes.count(-1) > 1:
            raise ValueError(f"reshape: at most one size may be -1, got {sizes}")
        self._set(sizes=sizes)

    def _rearranged(self, shape: Shape) -> Shape:
        known = math.prod(size for size in self.sizes if size != -1)
        elements = math.prod(shape[1:])
        if elements % known or (-1 not in self.sizes and elements != known):
            raise LayerError("reshape", f"to {self.sizes} does not fit x of shape {shape}")
        return shape[0], *(elements // known if size == -1 else size for size in self.sizes)

    init = no_parameters
    batch_axes = first_axes
    transposable = ""

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        return reshaped(x, self._rearranged(one_array("reshape", x))), state, outline(x)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Tree, Params]:
        return _as_before("reshape", self._rearranged(tape.shape), tape, delta), {}


class flatten(Layer):
    """All axes but the first as one axis of features, x [N, …] → [N, D].

    Backward: δ takes the shape of x.

    Raises:
        ValueError: if x has no batch axis.

    >>> import jax.numpy as jnp
    >>> flatten().forward({}, (), jnp.ones((2, 28, 28, 1)))[0].shape
    (2, 784)
    """

    def __init__(self) -> None: ...

    init = no_parameters
    batch_axes = first_axes
    transposable = ""

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        return reshaped(x, _flat(one_array("flatten", x))), state, outline(x)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Tree, Params]:
        return _as_before("flatten", _flat(tape.shape), tape, delta), {}


def _flat(shape: Shape) -> Shape:
    return shape[0], math.prod(shape[1:])


def _as_before(kind: str, shape: Shape, x: Outline, delta: Array) -> Tree:
    """δ of an output of that shape, in the shape of x."""
    check_delta(kind, delta, Outline(shape, x.dtype))
    return reshaped(delta, x.shape) if is_floating(x) else ()  # integers have no δ
