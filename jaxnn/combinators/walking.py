"""Names, and walking through a network: every leaf layer by its path, in the network's own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from functools import cached_property
from typing import Any

import jax.numpy as jnp

from jaxnn.checks import named_leaves, seen
from jaxnn.combinators.parts import as_layers, entry
from jaxnn.mistakes import is_function, net_record
from jaxnn.types import DType, Forward, InShape, Key, Layer, Params, State, Tree


class named(Layer):
    """The same layer under a name of the user's, which becomes its key in parameters, state and readings.

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

    @cached_property
    def kind(self) -> str:
        return self.layer.kind

    @cached_property
    def activation(self) -> Any:
        return self.layer.activation

    @property
    def plain(self) -> Layer:
        return self.layer.plain

    @cached_property
    def uncounted(self) -> Any:
        return self.layer.uncounted

    def look(self, x: Any) -> None:
        self.layer.look(x)

    @cached_property
    def children(self) -> tuple[Layer, ...]:
        return self.layer.children

    @cached_property
    def child_names(self) -> tuple[str, ...]:
        return self.layer.child_names

    @cached_property
    def couples_batch(self) -> bool:
        return self.layer.couples_batch

    @cached_property
    def passes(self) -> Any:
        return self.layer.passes

    @cached_property
    def stacks(self) -> Any:
        return self.layer.stacks

    @cached_property
    def rebuild(self) -> Any:
        if self.layer.rebuild is None:
            return None
        return lambda children: named(self.name, self.layer.rebuild(children))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return self.layer.init(key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        return self.layer.forward(params, state, x, train=train, rng=rng)

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        return self.layer.backward(params, tape, delta)


def bare(layer: Layer) -> Layer:
    """The layer without a name of the user's."""
    return layer.layer if isinstance(layer, named) else layer


def with_name(name: str | None, layer: Layer) -> Layer:
    """The layer under this name, whatever it had before; without one for None."""
    return bare(layer) if name is None else named(name, layer)


def map_layers(f: Callable[[Layer], Layer], net: Layer) -> Layer:
    """The same network with `f(layer)` in place of every leaf layer; names given by the user are kept.

    >>> from jaxnn import mlp, tanh
    >>> swap = lambda layer: tanh if layer.kind == "relu" else layer
    >>> map_layers(swap, mlp([4, 4, 2])).child_names
    ('dense_0', 'tanh_0', 'dense_1', 'tanh_1', 'dense_2')
    """
    net_record("map_layers", net)
    if not is_function(f):
        raise TypeError(f"map_layers: f must be a function of a layer, got {seen(f)}: map_layers(f, net)")
    if net.rebuild is None:
        (new,) = as_layers("map_layers", (f(net),))
    else:
        new = net.rebuild(tuple(map_layers(f, child) for child in net.children))
    return new if new.name is not None or net.name is None else named(net.name, new)


def leaf_layers(net: Layer) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """Yields (path, layer) for every leaf layer in the network's own order.

    The path is the layer's place in parameters, state and readings; () where the network is one leaf.

    >>> from jaxnn import mlp, residual
    >>> [("/".join(path), layer.kind) for path, layer in leaf_layers(residual(mlp([3, 3])))]
    [('dense_0', 'dense'), ('relu_0', 'relu'), ('dense_1', 'dense')]
    """
    net_record("leaf_layers", net)
    if net.rebuild is None:
        yield (), net
    for name, child in zip(net.child_names, net.children, strict=True):
        for path, leaf in leaf_layers(child):
            yield (name, *path) if name else path, leaf


def ordered_leaves(net: Layer, tree: Tree) -> dict[str, Any]:
    """The leaves of a tree keyed like params, by path, in the network's own order.

    Dict pytrees flatten in sorted order, dense_10 before dense_2; reports follow the network.

    >>> from jaxnn import mlp
    >>> net = mlp([2] * 12)
    >>> list(ordered_leaves(net, net.init(0, (2,))[0]))[4:7]
    ['dense_2/b', 'dense_2/w', 'dense_3/b']
    """
    leaves: dict[str, Any] = {}
    for path, _ in leaf_layers(net):
        part = tree
        for name in path:
            part = entry(part, name, {})
        for name, leaf in named_leaves(part).items():
            leaves["/".join((*path, name) if name else path)] = leaf
    return leaves
