"""Traversal of a network: every layer in its place, and the network with layers replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxnn.checks import seen
from jaxnn.combinators.naming import named
from jaxnn.combinators.parts import as_layers, entry
from jaxnn.mistakes import is_function, net_record
from jaxnn.trees import named_leaves
from jaxnn.types import Layer, Tree


class Loop(NamedTuple):
    """A loop around a layer."""

    n: int  # the number of passes
    stacks: bool  # whether each pass has separate parameters, on a leading axis (`repeat`), or all share them (`share`)


@dataclass(frozen=True)
class Place:
    """A layer and its place in a network."""

    index: tuple[int, ...]  # the indices of the children that lead to it from the network; () is the network itself
    names: tuple[str, ...]  # the key of each of these; "" where a combinator adds no level
    layer: Layer  # the layer
    loops: tuple[Loop, ...]  # those around it, the outermost first
    reads_x: bool  # whether its input is the network's input

    @property
    def path(self) -> tuple[str, ...]:
        """Its keys within parameters, state and readings."""
        return tuple(name for name in self.names if name)

    @property
    def label(self) -> str:
        """The path as one string; for the network itself, its name or kind."""
        return "/".join(self.path) or self.layer.name or self.layer.kind

    @property
    def is_leaf(self) -> bool:
        """Whether it contains no other layers."""
        return self.layer.rebuild is None

    def of(self, tree: Tree, empty: Tree = ()) -> Tree:
        """Its part of a tree keyed like params; `empty` where it has none."""
        for name in self.path:
            tree = entry(tree, name, empty)
        return tree

    def put(self, tree: Tree, part: Tree) -> Tree:
        """The tree with its part replaced; unchanged where it has none."""
        above = [tree]
        for name in self.path:
            if not isinstance(above[-1], dict) or name not in above[-1]:
                return tree
            above.append(above[-1][name])
        for name, outer in zip(reversed(self.path), reversed(above[:-1]), strict=True):
            part = {**outer, name: part}
        return part


def places(net: Layer, *, inner_first: bool = False) -> Iterator[Place]:
    """Every layer of a network in its place, in the network's order, combinators before their children.

    With `inner_first` they come after them.

    >>> from jaxnn import mlp, repeat
    >>> [(place.label, place.loops) for place in places(repeat(mlp([3]), 5))]
    [('repeat', ()), ('serial', (Loop(n=5, stacks=True),)), ('dense_0', (Loop(n=5, stacks=True),))]
    """

    def below(place: Place) -> Iterator[Place]:
        if not inner_first:
            yield place
        layer, loops = place.layer, place.loops
        if layer.passes is not None:
            loops = (*loops, Loop(layer.passes, bool(layer.stacks)))
        children = () if place.is_leaf else layer.children
        for i, (name, child) in enumerate(zip(layer.child_names, children, strict=bool(children))):
            reads_x = place.reads_x and (i == 0 or not layer.in_sequence)
            yield from below(Place((*place.index, i), (*place.names, name), child, loops, reads_x))
        if inner_first:
            yield place

    net_record("places", net)
    return below(Place((), (), net, (), True))


def leaves_of(net: Layer) -> Iterator[Place]:
    """The places of the leaf layers."""
    return (place for place in places(net) if place.is_leaf)


def rebuilt(f: Callable[[Layer, Place], Layer], net: Layer) -> Layer:
    """The network with `f(layer, place)` in place of every layer, the inner ones first.

    `layer` already has the replaced children; `place.layer` is the network's own. Names given by the user are kept.
    """
    new: dict[tuple[int, ...], Layer] = {}
    for place in places(net, inner_first=True):
        layer = place.layer
        if not place.is_leaf:
            layer = layer.rebuild(tuple(new.pop((*place.index, i)) for i in range(len(layer.children))))
        (made,) = as_layers("map_layers", (f(layer, place),))
        kept = made.name is not None or place.layer.name is None
        new[place.index] = made if kept else named(str(place.layer.name), made)
    return new[()]


def map_layers(f: Callable[[Layer], Layer], net: Layer) -> Layer:
    """The network with `f(layer)` in place of every leaf layer; names given by the user are kept.

    >>> from jaxnn import mlp, tanh
    >>> swap = lambda layer: tanh if layer.kind == "relu" else layer
    >>> map_layers(swap, mlp([4, 4, 2])).child_names
    ('dense_0', 'tanh_0', 'dense_1', 'tanh_1', 'dense_2')
    """
    net_record("map_layers", net)
    if not is_function(f):
        raise TypeError(f"map_layers: f must be a function of a layer, got {seen(f)}: map_layers(f, net)")
    return rebuilt(lambda layer, place: f(layer) if place.is_leaf else layer, net)


def leaf_layers(net: Layer) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """Yields (path, layer) for every leaf layer in the network's order.

    The path leads to the layer's entry in parameters, state and readings; () where the network is one leaf.

    >>> from jaxnn import mlp, residual
    >>> [("/".join(path), layer.kind) for path, layer in leaf_layers(residual(mlp([3, 3])))]
    [('dense_0', 'dense'), ('relu_0', 'relu'), ('dense_1', 'dense')]
    """
    net_record("leaf_layers", net)
    return ((place.path, place.layer) for place in leaves_of(net))


def ordered_leaves(net: Layer, tree: Tree) -> dict[str, Any]:
    """The leaves of a tree keyed like params, by path, in the network's order.

    Dict pytrees flatten in sorted order, dense_10 before dense_2; reports follow the network.

    >>> from jaxnn import mlp
    >>> net = mlp([2] * 12)
    >>> list(ordered_leaves(net, net.init(0, (2,))[0]))[4:7]
    ['dense_2/b', 'dense_2/w', 'dense_3/b']
    """
    leaves: dict[str, Any] = {}
    for place in leaves_of(net):
        for name, leaf in named_leaves(place.of(tree, {})).items():
            leaves["/".join((*place.path, name) if name else place.path)] = leaf
    return leaves
