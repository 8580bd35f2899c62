"""Layers named by the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import cached_property

import jax.numpy as jnp

from jaxnn.combinators.parts import as_layers
from jaxnn.types import DType, Forward, InShape, Key, Layer, Params, State, Tree
from jaxnn.wrapping import within


class named(Layer):
    """The same layer under a name given by the user, its key in parameters, state and readings.

    Raises:
        ValueError: if name is empty or holds a "/", which separates the parts of a path.

    >>> from jaxnn import dense, serial
    >>> list(serial(named("encoder", dense(2)), dense(1)).init(0, (4,))[0])
    ['encoder', 'dense_0']
    """

    name: str = field()
    layer: Layer = field()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ValueError(f"named: a name is a non-empty string without '/', got {self.name!r}")
        self._set(layer=bare(as_layers("named", (self.layer,))[0]))

    kind, children, child_names, couples_batch = map(within, ("kind", "children", "child_names", "couples_batch"))
    passes, stacks, in_sequence = map(within, ("passes", "stacks", "in_sequence"))
    by_autodiff, activation, plain = map(within, ("by_autodiff", "activation", "plain"))
    uncounted, look = map(within, ("uncounted", "look"))
    computes_in, keeps_precision = map(within, ("computes_in", "keeps_precision"))

    @cached_property
    def rebuild(self) -> Callable[[tuple[Layer, ...]], Layer] | None:
        if self.layer.rebuild is None:
            return None
        return lambda children: named(self.name, self.layer.rebuild(children))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return self.layer.init(key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        return self.layer.forward(params, state, x, train=train, rng=rng)

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        return self.layer.backward(params, tape, delta)

    def unrounded(self, params: Params, tape: Tree, delta: Tree, dtype: DType) -> tuple[Tree, Params]:
        return self.layer.unrounded(params, tape, delta, dtype)

    def factors(self, params: Params, tape: Tree, delta: Tree) -> Tree:
        return self.layer.factors(params, tape, delta)

    def batch_axes(self, tape: Tree) -> Tree:
        return self.layer.batch_axes(tape)


def bare(layer: Layer) -> Layer:
    """The layer without a name given by the user."""
    return layer.layer if isinstance(layer, named) else layer


def with_name(name: str | None, layer: Layer) -> Layer:
    """The layer under this name in place of any other; without a name for None."""
    return bare(layer) if name is None else named(name, layer)
