"""A layer's autodiff twin, its backward replaced by `jax.vjp` of its forward; and layers of a user's own.

The twin is the reference for a rule derived by hand, and what a user's layer is that has none.
"""

from __future__ import annotations

from dataclasses import field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.checks import check_delta, is_floating, outline
from jaxnn.interfaces import Layer, within
from jaxnn.mistakes import net_record
from jaxnn.placement import on_mesh
from jaxnn.records import Record, written
from jaxnn.types import DType, Forward, InShape, Key, Params, State, Tree


class TwinForward(Record):
    """A forward whose tape is what it was given: all that `jax.vjp` needs to run it again."""

    forward: Any

    def __call__(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        y, new_state, _ = self.forward(params, state, x, train=train, rng=rng)
        mode = jnp.zeros((0, int(train)))  # a tape holds arrays only: the flag travels as an empty array's shape
        return y, new_state, (state, x, rng, mode, outline(y))

    def as_argument(self) -> str:
        return written(self.forward)


class TwinBackward(Record):
    """The backward of a layer by `jax.vjp` of its forward."""

    kind: str
    forward: Any

    def __call__(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        state, x, rng, mode, given = tape
        check_delta(self.kind, delta, given)
        leaves, structure = jax.tree.flatten(x)
        floats = [leaf for leaf in leaves if is_floating(leaf)]

        def output(params: Params, floats: Any) -> Any:
            left = iter(floats)
            x = jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else leaf for leaf in leaves])
            y, _, _ = self.forward(params, state, x, train=bool(mode.shape[-1]), rng=rng)
            return [leaf for leaf in jax.tree.leaves(y) if is_floating(leaf)]  # δ has () for the others

        with on_mesh(params, x):
            grads, back = jax.vjp(output, params, floats)[1](jax.tree.leaves(delta))
        left = iter(back)
        return jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else () for leaf in leaves]), grads

    def as_argument(self) -> str:
        return "jax.vjp"


class autodiff_twin(Layer):
    """The same layer with its backward replaced by `jax.vjp` of its forward: the reference for a hand rule.

    A combinator becomes one leaf, its children's hand-derived rules unused. For the twin of every leaf,
    `map_layers(autodiff_twin, net)`. The twin's tape is its input, and its backward runs the forward again.

    >>> from jaxnn.layers import dense
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

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return self.layer.init(key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        return TwinForward(self.layer.forward)(params, state, x, train=train, rng=rng)

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        return TwinBackward(self.kind, self.layer.forward)(params, tape, delta)


class OwnLayer(Layer):
    """A layer of a user's functions; without a backward its own twin."""

    shown_as = "Layer"

    kind: str = field()
    init: Any = field()
    forward: Any = field()
    backward: Any = None
    couples_batch: bool = False
    name: str | None = None
    children: tuple[Layer, ...] = ()
    child_names: tuple[str, ...] = ()
    rebuild: Any = None
    passes: int | None = None
    stacks: bool = False
    in_sequence: bool = False

    def __post_init__(self) -> None:
        forward = self.forward.forward if isinstance(self.forward, TwinForward) else self.forward
        if self.backward is None or isinstance(self.backward, TwinBackward):
            self._set(forward=TwinForward(forward), backward=TwinBackward(self.kind, forward))
        else:
            self._set(forward=forward)

    @cached_property
    def by_autodiff(self) -> bool:
        return isinstance(self.backward, TwinBackward)


Layer.made_as = OwnLayer
