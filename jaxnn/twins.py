"""Autodiff twins, layers with `jax.vjp` of their forward for a backward, and user-defined layers.

A twin is the reference for a hand-derived rule; a user's layer without a backward is its own twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating, outline
from jaxnn.errors import LayerError
from jaxnn.interfaces import Layer
from jaxnn.mistakes import net_record
from jaxnn.records import Record, written
from jaxnn.shapes import check_delta
from jaxnn.spmd.axes import on_mesh
from jaxnn.tapes import all_along, coupled
from jaxnn.types import Array, DType, Forward, ForwardRule, InShape, Key, Params, State, Tree
from jaxnn.wrapping import within


class _Tape(NamedTuple):
    """All that `jax.vjp` needs to run a forward again."""

    state: State
    x: Tree
    rng: Key | None
    flags: Array | None  # of shape (0, whether in training, whether this batch's examples depend on each other)
    y: Tree  # outlines


def _flags(train: bool, couples: bool = False) -> Array:
    """Flags as the shape of an empty array, since tapes hold arrays only."""
    return jnp.zeros((0, int(train), int(couples)))


def _axes(kind: str, tape: Tree) -> Tree:
    """The `batch_axes` of a twin; None where a key, or what may be a state [N, …], belongs to the batch as a whole."""
    if tape.flags.shape[2]:
        raise coupled(kind)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tape.x)}
    by_example = any(jnp.shape(leaf)[:1] in sizes for leaf in jax.tree.leaves(tape.state))
    if tape.rng is not None or len(sizes) != 1 or by_example:
        return None
    return _Tape(all_along(None, tape.state), all_along(0, tape.x), None, None, tape.y)


class TwinForward(Record):
    """A forward whose tape is its input."""

    forward: ForwardRule

    def __call__(
        self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None
    ) -> Forward:
        y, new_state, _ = self.forward(params, state, x, train=train, rng=rng)
        return y, new_state, _Tape(state, x, rng, _flags(train), outline(y))

    def as_argument(self) -> str:
        return written(self.forward)


class TwinBackward(Record):
    """The backward of a layer by `jax.vjp` of its forward."""

    kind: str
    forward: ForwardRule

    def __call__(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        state, x, rng, flags, given = tape
        check_delta(self.kind, delta, given)
        leaves, structure = jax.tree.flatten(x)
        floats = [leaf for leaf in leaves if is_floating(leaf)]

        def output(params: Params, floats: list[Array]) -> list[Array]:
            left = iter(floats)
            x = jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else leaf for leaf in leaves])
            y, _, _ = self.forward(params, state, x, train=bool(flags.shape[1]), rng=rng)
            return [leaf for leaf in jax.tree.leaves(y) if is_floating(leaf)]  # δ has () for the others

        with on_mesh(params, x):
            grads, back = jax.vjp(output, params, floats)[1](jax.tree.leaves(delta))
        left = iter(back)
        return jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else () for leaf in leaves]), grads

    def as_argument(self) -> str:
        return "jax.vjp"


class autodiff_twin(Layer):
    """The same layer with its backward replaced by `jax.vjp` of its forward: the reference for a hand-derived rule.

    A combinator becomes one leaf, which does not use its children's hand-derived rules. For the twin of every leaf,
    `map_layers(autodiff_twin, net)`. The twin's tape is its input, and its backward runs the forward again.

    >>> from jaxnn import dense
    >>> twin = autodiff_twin(dense(2))
    >>> params, state = twin.init(jax.random.key(0), (3,))
    >>> y, _, tape = twin.forward(params, state, jnp.ones((4, 3)))
    >>> twin.backward(params, tape, jnp.ones_like(y))[1]["b"].tolist()
    [4.0, 4.0]
    """

    layer: Layer
    by_autodiff = True

    def __post_init__(self) -> None:
        net_record("autodiff_twin", self.layer)

    kind, name, couples_batch = map(within, ("kind", "name", "couples_batch"))
    computes_in, keeps_precision = map(within, ("computes_in", "keeps_precision"))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return self.layer.init(key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        y, new_state, tape = self.layer.forward(params, state, x, train=train, rng=rng)
        return y, new_state, _Tape(state, x, rng, _flags(train, self._couples(tape)), outline(y))

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        return TwinBackward(self.kind, self.layer.forward)(params, tape, delta)

    def batch_axes(self, tape: Tree) -> Tree:
        return _axes(self.kind, tape)

    def _couples(self, tape: Tree) -> bool:
        """Whether the layer couples the examples of its own tape."""
        if not self.couples_batch:
            return False
        try:
            self.layer.batch_axes(tape)
        except LayerError:
            return True
        return False


class OwnLayer(Layer):
    """A layer made of a user's functions; without a backward it is its own twin."""

    shown_as = "Layer"

    kind: str = field()
    init: Any = field()
    forward: Any = field()
    backward: Any = None
    couples_batch: bool = False
    name: str | None = None
    children: tuple[Layer, ...] = ()
    child_names: tuple[str, ...] = ()
    rebuild: Callable[[tuple[Layer, ...]], Layer] | None = None
    passes: int | None = None
    stacks: bool = False
    in_sequence: bool = False

    def __post_init__(self) -> None:
        for what in ("init", "forward"):
            if not callable(getattr(self, what)):
                raise TypeError(f"Layer: {what} must be a function, got {getattr(self, what)!r}")
        if self.children and not self.child_names:
            self._set(child_names=("",) * len(self.children))
        forward = self.forward.forward if isinstance(self.forward, TwinForward) else self.forward
        if self.backward is None or isinstance(self.backward, TwinBackward):
            self._set(forward=TwinForward(forward), backward=TwinBackward(self.kind, forward))
        else:
            self._set(forward=forward)

    @cached_property
    def by_autodiff(self) -> bool:
        return isinstance(self.backward, TwinBackward)

    def batch_axes(self, tape: Tree) -> Tree:
        return _axes(self.kind, tape) if self.by_autodiff and not self.couples_batch else super().batch_axes(tape)


Layer.made_as = OwnLayer
