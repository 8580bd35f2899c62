"""Names, and walking through a network: every leaf layer by its path, in the network's own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jaxnn.checks import named_leaves, seen
from jaxnn.combinators.parts import as_layers, entry
from jaxnn.mistakes import is_function, net_record
from jaxnn.types import Activation, Layer, Tree


def named(name: str, layer: Layer | Activation) -> Layer:
    """The same layer under a name of the user's, which becomes its key in parameters, state and readings.

    Raises:
        ValueError: if name is empty or holds a "/", which separates the parts of a path.

    >>> from jaxnn import dense, serial
    >>> list(serial(named("encoder", dense(2)), dense(1)).init(0, (4,))[0])
    ['encoder', 'dense_0']
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"named: a name is a non-empty string without '/', got {name!r}")
    return as_layers("named", (layer,))[0]._replace(name=name)


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
    return new if new.name is not None or net.name is None else new._replace(name=net.name)


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
