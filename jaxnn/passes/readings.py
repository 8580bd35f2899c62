"""Readings: quantities that the layers of a network record in the backward pass.

By hand (`instrumented`) the gradients of a leaf layer carry its notes out of the backward pass. By `jax.grad`
(`slotted`) a layer has a slot beside its parameters, and the gradient with respect to it *is* the note. Either way a
`Tagged(tied, own)` replaces the layer's tree, and combinators treat it accordingly: `share` adds the tied parts of its
uses and stacks the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating, widest
from jaxnn.combinators.parts import is_tagged
from jaxnn.combinators.walk import Loop, Place, leaves_of, map_layers, rebuilt
from jaxnn.errors import LayerError
from jaxnn.records import Record
from jaxnn.shapes import example_shape
from jaxnn.spmd.axes import axes_of, made_varying, placed, varying
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Params, Reading, Shape, State, Tagged, Tree, Use
from jaxnn.wrapping import with_rules

__all__ = ["Reading", "Use"]

Note: TypeAlias = Callable[[Tree, Tree], Tree]  # (kept, δ) -> the note

__dir__ = __all__.copy


def _delta(use: Use) -> Tree:
    return use.delta


def _delta_norm(use: Use) -> Tree:
    return jax.tree.map(lambda d: jnp.sqrt(jnp.square(d.astype(accumulator(d.dtype))).sum()), use.delta)


DELTAS = Reading("deltas", _delta)  # δ at the layer's output, [N, …]
READINGS = {  # by name
    "deltas": DELTAS,
    "delta_norms": Reading("delta_norms", _delta_norm),  # ‖δ‖₂ over the whole batch, a scalar
}


def readings_of(read: Sequence[str | Reading]) -> tuple[Reading, ...]:
    """The readings asked for by name or record."""
    if isinstance(read, (str, Reading)):
        raise TypeError(f"read must be a sequence of readings, as in read=({read!r},)")
    for item in read:
        if not isinstance(item, Reading) and item not in READINGS:
            raise ValueError(f"unknown reading {item!r}; known are {sorted(READINGS)}, or give a Reading record")
    readings = tuple(item if isinstance(item, Reading) else READINGS[item] for item in read)
    names = [reading.name for reading in readings]
    if len(set(names)) < len(names):
        raise ValueError(f"two readings have one name: {names}")
    return readings


# ---------------------------------------------------------------- by hand


class Kept(NamedTuple):
    """A layer's own tape, and what each reading keeps, by the reading's name."""

    tape: Tree
    by_name: dict[str, Tree]


def instrumented(net: Layer, readings: tuple[Reading, ...], weight: Array | None = None) -> Layer:
    """The network with leaves that record what the readings ask for, forward on tapes and backward beside gradients.

    Readings see δ and gradients multiplied by weight.
    """
    keeping = {reading.name: reading.keep for reading in readings if reading.keep is not None}

    def at(layer: Layer) -> Layer:
        def forward(params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
            y, new, tape = layer.forward(params, state, x, train=train, rng=rng)
            use = Use(layer, params, tape, x=x, y=y, state=state, rng=rng)
            return y, new, Kept(tape, {name: keep(use) for name, keep in keeping.items()})

        def backward(params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
            check_tapes(layer.kind, tape, keeping)
            tape, kept = tape if keeping else (tape, {})
            delta_in, grads = layer.backward(params, tape, delta)
            of_sum = (delta, grads) if weight is None else jax.tree.map(lambda d: unscaled(d, weight), (delta, grads))
            use = Use(layer, params, tape, *of_sum)
            notes = (reading.note(use._replace(kept=kept.get(reading.name, ()))) for reading in readings)
            return delta_in, Tagged(grads, Notes(tuple(notes), OneUse()))

        return with_rules(layer, forward=forward if keeping else None, backward=backward)

    return map_layers(at, net) if readings else net


class OneUse:
    """Marks the notes of one use of a layer: those of two uses differ in structure and cannot be added by accident."""

    def __repr__(self) -> str:
        return "one use of a layer: readings need share, not another combinator that adds the gradients of several uses"


@jax.tree_util.register_pytree_node_class
class Notes:
    """The note of each reading at one use of a layer."""

    def __init__(self, of_each: tuple[Tree, ...], use: OneUse) -> None:
        self.of_each, self.use = of_each, use

    def tree_flatten(self) -> tuple[tuple[Tree, ...], OneUse]:
        return self.of_each, self.use

    @classmethod
    def tree_unflatten(cls, use: OneUse, of_each: Iterable[Tree]) -> Notes:
        return cls(tuple(of_each), use)


def without_kept(tapes: Tree) -> Tree:
    """The layers' own tapes."""
    return jax.tree.map(lambda part: part.tape if _is_kept(part) else part, tapes, is_leaf=_is_kept)


def check_tapes(kind: str, tape: Tree, keeping: Iterable[str] = ()) -> None:
    """Raises LayerError unless a layer's tape, or each in a tree of tapes, has exactly what these readings keep."""
    parts = [tape] if keeping else jax.tree.leaves(tape, is_leaf=_is_kept)
    for part in parts:
        has = part.by_name if _is_kept(part) else {}
        if set(has) != set(keeping):
            words = f"expects a tape with what {sorted(keeping)} keep, got what {sorted(has)} keep"
            raise LayerError(kind, f"{words}: forward_pass and recursion take the same readings, read=…")


def _is_kept(part: Tree) -> bool:
    return isinstance(part, Kept)


def finished(net: Layer, reading: Reading, noted: Tree) -> Tree:
    """The result of a reading from all its notes."""
    if reading.finish is not None:
        for place in leaves_of(net):
            part = place.of(noted)
            if jax.tree.leaves(part):
                noted = place.put(noted, at_owner(reading.finish, part, place.loops))
    return noted if reading.total is None else reading.total(noted)


def at_owner(finish: Callable[[Tree], Tree], noted: Tree, loops: tuple[Loop, ...]) -> Tree:
    """`finish` of notes with an axis for each loop: shared uses on one leading axis, mapped over stacked passes."""
    stacking = [i for i, loop in enumerate(loops) if loop.stacks]
    uses = math.prod(loop.n for loop in loops if not loop.stacks)

    def uses_behind(array: Array) -> Array:
        array = jnp.moveaxis(array, stacking, range(len(stacking)))
        sizes = array.shape[: len(stacking)]
        return array.reshape(*sizes, uses, *array.shape[len(loops) :])

    for _ in stacking:
        finish = jax.vmap(finish)
    return finish(jax.tree.map(uses_behind, noted))


# ---------------------------------------------------------------- by jax.grad


class Slot(Record):
    """An array beside a layer's parameters, the gradient with respect to which is the note."""

    index: tuple[int, ...]
    value: Tree


class Blank(NamedTuple):
    """The value of a slot before the note is known: an array with an axis for each loop around the layer."""

    axes: Array


class Type(NamedTuple):
    """Shape, dtype and mesh axes of an array in a trace."""

    shape: Shape
    dtype: DType
    axes: tuple[Any, ...]


class Slotted(NamedTuple):
    """A network whose layers have slots."""

    net: Layer  # the network; its parameters are `Tagged`
    seen: dict[tuple[int, ...], Tree]  # the types of the note at each index, for one use, in the last trace
    # the sizes of the axes of uses at each index, one for each loop around it
    around: dict[tuple[int, ...], tuple[int, ...]]

    def fill(self, params: Params, state: State, x: Tree, train: bool, rng: Key | None) -> Params:
        """The parameters, with a slot of zeros beside those of each layer."""
        dtype = widest(*(leaf.dtype for leaf in jax.tree.leaves((params, x)) if is_floating(leaf)), default="float32")
        tagged = jax.eval_shape(lambda key: self.net.init(key, example_shape(x), dtype)[0], jax.random.key(0))
        blank = _with_slots(tagged, params, lambda slot: Slot(slot.index, Blank(jnp.zeros(slot.value.axes.shape))))
        forward = lambda params, state, x, rng: self.net.forward(params, state, x, train=train, rng=rng)[0]  # noqa: E731
        jax.eval_shape(forward, blank, state, x, rng)
        devices, examples = varying(params, x), jax.tree.leaves(x)[0]

        def zeros(slot: Slot) -> Slot:
            around = self.around[slot.index] = slot.value.axes.shape

            def one(type_: Type) -> Array:
                code = jax.eval_shape(_coded, jax.ShapeDtypeStruct((*around, *type_.shape), type_.dtype))
                axes = (*(None,) * len(around), *type_.axes)
                axes = (*axes, *(None,) * (len(code.shape) - len(axes)))
                return made_varying(placed(lambda _: jnp.zeros(code.shape, code.dtype), examples, axes=axes), devices)

            return Slot(slot.index, jax.tree.map(one, self.seen[slot.index], is_leaf=_is_type))

        return _with_slots(tagged, params, zeros)

    def noted(self, grads: Params) -> dict[tuple[int, ...], Tree]:
        """The note at each index, from the gradients of parameters with slots."""
        decoded = lambda type_, leaf: _decoded(type_.dtype, leaf)  # noqa: E731
        slots = _slots_in(grads)
        return {at: jax.tree.map(decoded, self.seen[at], slots[at], is_leaf=_is_type) for at in slots}


def slotted(net: Layer, reading: Reading, *, everywhere: bool = False) -> Slotted:
    """The network with a slot at each leaf, or at each layer, combinators too.

    The reading sees δ, () for what is not float, and what it keeps; it has no tape and no gradients.
    """
    seen: dict[tuple[int, ...], Tree] = {}

    def note(kept: Tree, delta: Tree) -> Tree:
        return reading.note(Use(None, None, delta=delta, kept=kept))

    def at(layer: Layer, place: Place) -> Layer:
        def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
            params, state = layer.init(key, in_shape, dtype)
            return Tagged(params, Slot(place.index, Blank(jnp.zeros(())))), state

        def forward(params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
            if not is_tagged(params):
                raise TypeError("a layer was given no slot")
            y, new, tape = layer.forward(params.tied, state, x, train=train, rng=rng)
            use = Use(place.layer, without_slots(params.tied), x=x, y=y, state=state, rng=rng)
            kept = () if reading.keep is None else reading.keep(use)
            delta = jax.tree.map(lambda leaf: leaf if is_floating(leaf) else (), y)
            slot = params.own.value
            if isinstance(slot, Blank):
                seen[place.index] = jax.tree.map(_type_of, note(kept, delta))
                return y, new, tape
            return _mark(note, slot, y, kept), new, tape

        return with_rules(layer, init=init, forward=forward)

    return Slotted(
        rebuilt(lambda layer, place: at(layer, place) if everywhere or place.is_leaf else layer, net), seen, {}
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mark(note: Note, slot: Tree, y: Tree, kept: Tree) -> Tree:
    """Gives y, unchanged; the gradient with respect to slot is `note(kept, δ)`, δ being that of y."""
    return y


def _mark_forward(note: Note, slot: Tree, y: Tree, kept: Tree) -> tuple[Tree, Tree]:
    return y, kept


def _mark_backward(note: Note, kept: Tree, delta: Tree) -> tuple[Tree, Tree, None]:
    floats = jax.tree.map(lambda d: () if d.dtype == jax.dtypes.float0 else d, delta)
    return jax.tree.map(_coded, note(kept, floats)), delta, None


_mark.defvjp(_mark_forward, _mark_backward)


def _type_of(leaf: Array) -> Type:
    axes = () if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else axes_of(leaf)
    return Type(leaf.shape, leaf.dtype, axes)


def _is_type(part: Tree) -> bool:
    return isinstance(part, Type)


def _with_slots(tagged: Tree, params: Params, slot: Callable[[Slot], Slot]) -> Params:
    """The parameters, tagged where `tagged` is: a tree like that of an instrumented network's init."""
    if is_tagged(tagged):
        return Tagged(_with_slots(tagged.tied, params, slot), slot(tagged.own))
    if isinstance(tagged, dict):
        return {name: _with_slots(part, params.get(name, {}), slot) for name, part in tagged.items()}
    return params


def _slots_in(tree: Tree) -> dict[tuple[int, ...], Tree]:
    """The value of each slot in a tree."""
    is_slot = lambda part: isinstance(part, Slot)  # noqa: E731
    return {part.index: part.value for part in jax.tree.leaves(tree, is_leaf=is_slot) if is_slot(part)}


def without_slots(tree: Tree) -> Tree:
    """The parameters themselves, without slots."""
    if is_tagged(tree):
        return without_slots(tree.tied)
    if isinstance(tree, dict):
        plain = {name: without_slots(part) for name, part in tree.items()}
        return {name: part for name, part in plain.items() if not is_tagged(tree[name]) or jax.tree.leaves(part)}
    return tree


# Notes may have any dtype, but gradients are floats: other dtypes are bit-cast.


def _coded(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if is_floating(leaf):
        return leaf
    if leaf.dtype == bool or leaf.dtype.itemsize < 4:
        leaf = leaf.astype(jnp.int32)
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"float{8 * leaf.dtype.itemsize}"))


def _decoded(dtype: DType, leaf: Array) -> Array:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jax.lax.bitcast_convert_type(leaf, jnp.uint32))
    if jnp.issubdtype(dtype, jnp.floating):
        return leaf
    wide = jnp.dtype(dtype).itemsize >= 4 and not jnp.issubdtype(dtype, jnp.bool_)
    return jax.lax.bitcast_convert_type(leaf, dtype if wide else jnp.int32).astype(dtype)


# ---------------------------------------------------------------- trees


def unscaled(delta: Array, total: Array) -> Array:
    """The textbook's δ, ∂(Σ wₙCₙ)/∂z, from that of the mean."""
    return (delta.astype(total.dtype) * total).astype(delta.dtype)


def untag(tree: Tree, part: Callable[[Tagged], Tree]) -> Tree:
    """One part of each Tagged in a tree; what is not tagged stays."""
    return jax.tree.map(lambda leaf: part(leaf) if is_tagged(leaf) else leaf, tree, is_leaf=is_tagged)


def entries_like(params: Params, tree: Tree) -> Tree:
    """The tree without the entries of layers that have no parameters."""
    if isinstance(params, dict) and isinstance(tree, dict):
        return {name: entries_like(part, tree[name]) for name, part in params.items() if name in tree}
    return tree
