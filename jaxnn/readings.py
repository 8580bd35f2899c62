"""Readings: what is noted at every leaf layer while δ passes, and the instruments that note it.

`backprop` reads by wrapping the backward of each leaf layer (`watch`), `autodiff` by adding a slot of zeros to the
output of each (`perturb`), whose gradient is the layer's δ. What such a layer carries beside its parameters or
gradients is a `Tagged(tied, own)`; combinators take it where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.checks import accumulator, batch_size, example_shape, input_spec, is_floating
from jaxnn.combinators.parts import is_tagged
from jaxnn.interfaces import with_rules
from jaxnn.placement import axes_of, made_varying, placed, varying
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Params, Reading, State, Tagged, Tree


def _read_delta(layer: Layer, params: Params, tape: Tree, delta: Any, grads: Params) -> Any:
    return delta


def _read_delta_norms(layer: Layer, params: Params, tape: Tree, delta: Any, grads: Params) -> Any:
    return jax.tree.map(lambda d: jnp.sqrt(jnp.square(d.astype(accumulator(d.dtype))).sum()), delta)


READINGS = {  # by name
    "deltas": Reading("deltas", _read_delta),  # δ at the layer's output, [N, …]
    "delta_norms": Reading("delta_norms", _read_delta_norms),  # ‖δ‖₂ over the whole batch, a scalar
}


def readings_of(read: Sequence[str | Reading]) -> tuple[Reading, ...]:
    """The readings asked for by name or record."""
    if isinstance(read, str):
        raise TypeError(f"read must be a sequence of readings, as in read=({read!r},)")
    for item in read:
        if not isinstance(item, Reading) and item not in READINGS:
            raise ValueError(f"unknown reading {item!r}; known are {sorted(READINGS)}, or give a Reading record")
    readings = tuple(item if isinstance(item, Reading) else READINGS[item] for item in read)
    names = [reading.name for reading in readings]
    if len(set(names)) < len(names):
        raise ValueError(f"two readings have one name: {names}")
    return readings


def watch(layer: Layer, readings: tuple[Reading, ...], total: Array | None) -> Layer:
    """The layer, its gradients tagged with what the readings note of δ times total."""

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        delta_in, grads = layer.backward(params, tape, delta)
        whole = delta if total is None else jax.tree.map(lambda d: unscaled(d, total), delta)
        return delta_in, Tagged(grads, tuple(r.read(layer, params, tape, whole, grads) for r in readings))

    return with_rules(layer, backward=backward)


def perturb(layer: Layer) -> Layer:
    """The layer, its parameters tagged with a slot that is added to its output."""

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = layer.init(key, in_shape, dtype)
        y = jax.eval_shape(lambda p, s, x: layer.forward(p, s, x)[0], params, state, input_spec(in_shape, dtype))
        slot = lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype) if is_floating(leaf) else ()  # noqa: E731
        empty = jax.tree.map(slot, y)  # integers have no δ
        return Tagged(params, empty), state

    def forward(params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        if not isinstance(params, Tagged):
            raise TypeError("autodiff: a layer was given no slot")
        y, state, tape = layer.forward(params.tied, state, x, train=train, rng=rng)
        add = lambda y, slot: y + slot.astype(y.dtype) if is_floating(y) and slot.size else y  # noqa: E731
        return jax.tree.map(add, y, params.own), state, tape

    return with_rules(layer, init=init, forward=forward)


def with_slots(perturbed: Layer, params: Params, x: Tree) -> Params:
    """The parameters, tagged at every leaf layer with zeros shaped like the layer's output."""
    n = batch_size("x", x)
    dtype = max((leaf.dtype for leaf in jax.tree.leaves((params, x)) if is_floating(leaf)), key=_bits)
    shapes, _ = jax.eval_shape(lambda key: perturbed.init(key, example_shape(x), dtype), jax.random.key(0))

    examples = jax.tree.leaves(x)[0]
    devices = varying(params, x)  # each of which has δs of its own

    def fill(slot: Any) -> Array:  # the batch axis is the empty one, wherever repeat and share have moved it
        zeros = lambda _: jnp.zeros(tuple(size or n for size in slot.shape), slot.dtype)  # noqa: E731
        lies = tuple(None if size else axes_of(examples)[0] for size in slot.shape)
        return made_varying(placed(zeros, examples, axes=lies), devices)

    def tag(path: tuple[Any, ...], spec: Tagged) -> Tagged:
        tied = params
        for entry in path:
            tied = tied.get(entry.key, {}) if isinstance(tied, dict) else tied[entry.idx]
        return Tagged(tied, jax.tree.map(fill, spec.own))

    return jax.tree_util.tree_map_with_path(tag, shapes, is_leaf=is_tagged)


def _bits(dtype: Any) -> int:
    return int(jnp.finfo(dtype).bits)


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
