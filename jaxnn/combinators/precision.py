"""Mixed precision: a network that computes in bfloat16 or float16, its parameters and sums in float32."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating, outline, widest
from jaxnn.checks import seen
from jaxnn.combinators.naming import bare
from jaxnn.combinators.parts import as_layers, is_tagged
from jaxnn.combinators.walk import Place, rebuilt
from jaxnn.factors import generic
from jaxnn.records import fields_of
from jaxnn.shapes import check_delta
from jaxnn.types import DType, Forward, InShape, Key, Layer, Outline, Params, State, Tree
from jaxnn.wrapping import within

DTYPES = ("bfloat16", "float16", "float32", "float64")


class _Rounding(Layer):
    """Base of a network whose only child has leaves in low precision: casts input and output."""

    in_sequence = True

    @property
    def lowered(self) -> Layer:
        """The child."""
        return self.children[0]

    @cached_property
    def kind(self) -> str:
        return self.lowered.kind

    @cached_property
    def name(self) -> str | None:
        return self.lowered.name

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return self.lowered.init(key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        y, new_state, tape = self.lowered.forward(params, state, narrowed(x, self.computes_in), train=train, rng=rng)
        out = in_dtype(widest(*(dtypes_of(params) or dtypes_of(x)), default=None), y)
        return out, new_state, _Tape(tape, outline(x), outline(y), outline(out))

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        check_delta(self.kind, delta, tape.out)
        delta_in, grads = self.lowered.backward(params, tape.within, like(tape.y, delta))
        return like(tape.x, delta_in), grads

    def batch_axes(self, tape: Tree) -> Tree:
        return _axes_in(self.lowered, tape)


class low_precision(_Rounding):
    """A network that computes in bfloat16 or float16, with parameters, sums and normalisation in float32.

    Forward, x [N, …] → y, θ and y in float32, with ⌊·⌉ the rounding to `dtype`; each layer fˡ computes in that dtype:

        hˡ = fˡ(⌊θˡ⌉, hˡ⁻¹),   h⁰ = ⌊x⌉,   y = hᴸ

    Backward, δ = ∂C/∂y, the layers' own rules in that dtype:

        δᴸ = ⌊δ⌉,   δˡ⁻¹ = ⌊∂fˡ/∂hᵀ δˡ⌉,   ∂C/∂θˡ = Σₙ ∂Cₙ/∂θˡ

    The products in ∂C/∂θ have factors in that dtype and are summed in float32, over examples, positions and time, and
    never rounded: `jax.grad` rounds the sum. The derivative of the rounding is 1. Norms and softmax compute in float32
    between low-precision x and y, as does any layer with `keeps_precision = True`; state (running statistics) is not
    rounded. Losses, metrics, penalties and optimizers see float32. Instead of float32 it is the parameters' dtype; a
    layer without parameters computes in float32 where it keeps its precision.

    Parameters, state and readings are those of the network, under the same names: either network takes the other's.
    Inside another low-precision network a layer computes in the inner dtype. Where θ or x have a lower precision than
    `dtype` it is theirs. For float16, whose smallest number is 6e-8, see `loss_scaling`.

    Args:
        net: the network.
        dtype: "bfloat16" (8 bits of precision, the range of float32) or "float16" (11 bits, up to 65504); also
            "float32" or "float64", for parameters in higher precision.

    Raises:
        ValueError: if dtype is none of these.

    Source: Micikevicius et al. (2018), "Mixed precision training"; Kalamkar et al. (2019), "A study of bfloat16 for
    deep learning training".

    >>> from jaxnn import dense
    >>> net = low_precision(dense(1))
    >>> y, _, _ = net.forward({"w": jnp.full((1, 1), 1.001), "b": jnp.zeros(1)}, (), jnp.full((1, 1), 2.0))
    >>> float(y[0, 0]), y.dtype  # between 1 and 2 bfloat16 has steps of 1/128
    (2.0, dtype('float32'))
    """

    layer: Layer
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        try:
            name = "" if self.dtype is None else jnp.dtype(self.dtype).name  # None would be float64
        except TypeError:
            name = ""
        if name not in DTYPES:
            raise ValueError(
                f"low_precision: dtype must be jnp.bfloat16 or jnp.float16, or one of {', '.join(map(repr, DTYPES))}, "
                f"got {seen(self.dtype)}"
            )
        self._set(dtype=name, layer=as_layers("low_precision", (self.layer,))[0])

    @property
    def computes_in(self) -> str:
        return self.dtype

    @cached_property
    def children(self) -> tuple[Layer, ...]:
        """The network, each leaf in low precision."""

        def lowered(layer: Layer, place: Place) -> Layer:
            if layer.computes_in is None:
                return _Lowered(layer, self.dtype) if place.is_leaf else layer
            return layer if place.is_leaf else bare(layer).children[0]  # of an inner one the leaves are lowered

        return (rebuilt(lowered, self.layer),)

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        return self if children == self.children else _Rebuilt(children[0], self.dtype)


class _Rebuilt(_Rounding):
    """A low-precision network of other leaves, such as those that record readings, which compute as they are."""

    layer: Layer
    dtype: str

    @property
    def computes_in(self) -> str:
        return self.dtype

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.layer,)

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        return _Rebuilt(children[0], self.dtype)


class _Lowered(Layer):
    """A leaf in low precision: it computes in `dtype`, and its output has x's precision."""

    layer: Layer
    dtype: str

    kind, name, couples_batch, by_autodiff = map(within, ("kind", "name", "couples_batch", "by_autodiff"))
    activation, uncounted, look, transposable = map(within, ("activation", "uncounted", "look", "transposable"))
    keeps_precision = within("keeps_precision")

    @property
    def computes_in(self) -> str:
        return self.dtype

    @property
    def plain(self) -> Layer:
        return _Lowered(self.layer.plain, self.dtype)

    def as_argument(self) -> str:
        return self.layer.as_argument()

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return self.layer.init(key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        if self.keeps_precision:
            within = params, in_dtype(widest(*map(accumulator, dtypes_of(x)), *dtypes_of(params), default=None), x)
        else:
            low = narrowed(params, self.dtype)
            within = low, raised(narrowed(x, self.dtype), dtypes_of(low))
        y, new_state, tape = self.layer.forward(within[0], state, within[1], train=train, rng=rng)
        given = dtypes_of(x)
        out = in_dtype(widest(*given), y) if given else narrowed(y, self.dtype)
        return out, like(outline(state), new_state), _Tape(tape, outline(x), outline(y), outline(out))

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        check_delta(self.kind, delta, tape.out)
        delta = like(tape.y, delta)
        if self.keeps_precision:
            delta_in, grads = self.layer.backward(params, tape.within, delta)
        else:
            sums = widest(jnp.dtype("float32"), *dtypes_of(params))
            delta_in, grads = self.layer.unrounded(narrowed(params, self.dtype), tape.within, delta, sums)
        return like(tape.x, delta_in), like(outline(params), grads)

    def factors(self, params: Params, tape: Tree, delta: Tree) -> Tree:
        if type(self.layer).factors is Layer.factors:  # it would round each example's gradient
            return generic(self, params, tape, delta)
        given = params if self.keeps_precision else narrowed(params, self.dtype)
        return self.layer.factors(given, tape.within, like(tape.y, delta))

    def batch_axes(self, tape: Tree) -> Tree:
        return _axes_in(self.layer, tape)


def in_full(net: Layer) -> Layer:
    """The network with every low-precision part in the precision of its parameters: "float64" rounds nothing."""

    def full(layer: Layer, place: Place) -> Layer:
        if layer.computes_in is None:
            return layer
        if not place.is_leaf:
            return _Rebuilt(bare(layer).children[0], DTYPES[-1])
        of: Any = layer
        wrappers: list[Any] = []  # of the leaf in low precision, such as a twin
        while "dtype" not in fields_of(of):
            wrappers.append(of)
            of = of.layer
        of = dataclasses.replace(of, dtype=DTYPES[-1])
        for wrapper in reversed(wrappers):
            of = dataclasses.replace(wrapper, layer=of)
        made: Layer = of
        return made

    return rebuilt(full, net)


class _Tape(NamedTuple):
    """The tape within, and the outlines of what is cast around it."""

    within: Tree
    x: Tree  # the input, as given
    y: Tree  # the output within
    out: Tree  # the output, as returned


def _axes_in(layer: Layer, tape: Tree) -> Tree:
    axes = layer.batch_axes(tape.within)
    return None if axes is None else tape._replace(within=axes)


# ---------------------------------------------------------------- casts


def narrowed(tree: Tree, dtype: DType) -> Tree:
    """The tree with its floats in this dtype; those of lower precision unchanged."""
    bits = jnp.finfo(dtype).bits
    return jax.tree.map(lambda x: _cast(x, dtype) if is_floating(x) and jnp.finfo(x.dtype).bits >= bits else x, tree)


def raised(x: Tree, dtypes: list[DType]) -> Tree:
    """The input with its floats in at least these dtypes: a layer computes in the higher of x's and its parameters'."""
    return in_dtype(widest(*dtypes_of(x), *dtypes), x) if dtypes else x


def in_dtype(dtype: DType | None, tree: Tree) -> Tree:
    """The tree with its floats in this dtype; unchanged where it is None."""
    return tree if dtype is None else jax.tree.map(lambda x: _cast(x, dtype) if is_floating(x) else x, tree)


def like(outlines: Tree, tree: Tree) -> Tree:
    """The tree with its floats in the dtypes of the outlines; what has another structure is left to later checks."""
    leaves, structure = jax.tree.flatten(outlines, is_leaf=lambda part: isinstance(part, Outline))
    flatten_like: Any = structure.flatten_up_to  # type: ignore[attr-defined]  # jaxlib's stubs lack it
    try:
        parts = flatten_like(tree)
    except (ValueError, TypeError):
        return tree
    return jax.tree.unflatten(structure, [_cast(x, of.dtype) for x, of in zip(parts, leaves, strict=True)])


def _cast(x: Any, dtype: DType) -> Any:
    floats = hasattr(x, "dtype") and is_floating(x)
    return jnp.asarray(x, dtype) if floats and x.dtype != dtype else x


def dtypes_of(tree: Tree) -> list[DType]:
    """The dtypes of the floats in a tree: of the parameters alone where an instrument has tagged them."""
    parts = jax.tree.leaves(tree, is_leaf=is_tagged)
    own = [dtype for part in parts if is_tagged(part) for dtype in dtypes_of(part.tied)]
    return own + [part.dtype for part in parts if not is_tagged(part) and is_floating(part)]
