"""Parts that combinators share: children, and their names, keys, entries and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.checks import seen
from jaxnn.errors import LayerError, inside
from jaxnn.keys import as_key, layer_key, name_hash
from jaxnn.layers.activation import activation as activation_layer
from jaxnn.mistakes import array_leaves, is_factory, is_function
from jaxnn.trees import describe
from jaxnn.types import Activation, Array, DType, Forward, InShape, Key, Layer, Params, State, Tagged, Tree


def as_layers(kind: str, layers: Sequence[Layer | Activation]) -> tuple[Layer, ...]:
    """The layers, Activation records converted to layers."""
    for layer in layers:
        if not isinstance(layer, (Layer, Activation)):
            hint = "; a factory needs its parentheses, flatten()" if is_function(layer) else ""
            if isinstance(layer, (list, tuple)) and not hasattr(layer, "_fields"):
                hint = f"; without the brackets, {kind}(*layers)"
            elif is_function(layer) and not is_factory(layer):
                hint = "; a function z -> σ(z) becomes one by activation(Activation(name, value, slope))"
            raise TypeError(f"{kind}: expected layers or Activation records, got {seen(layer)}{hint}")
    return tuple(activation_layer(layer) if isinstance(layer, Activation) else layer for layer in layers)


def names_of(kind: str, children: tuple[Layer, ...]) -> tuple[str, ...]:
    """A name for each child: the user's, or its kind and the number of unnamed ones of that kind before it."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for child in children:
        count = counts.get(child.kind, 0)
        if child.name is None:
            counts[child.kind] = count + 1
        names.append(f"{child.kind}_{count}" if child.name is None else child.name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{kind}: two layers are named {twice[0]!r}; names within a combinator must differ")
    return tuple(names)


def entry(tree: Tree, name: str, empty: Tree) -> Tree:
    """The entry of a child in params or state, or `empty`."""
    return tree[name] if isinstance(tree, dict) and name in tree else empty


def entries(parts: dict[str, Tree], given: Tree = None) -> Tree:
    """The parts that are not exactly `{}` or `()`, or ().

    `given` are the parameters or the state that the parts correspond to: a part with an entry there is kept, so that
    the tree has the structure that `init` gave, and one without only if it holds an array.
    """
    if isinstance(given, dict):
        kept = lambda name, part: name in given or _holds_arrays(part)  # noqa: E731
    elif given is None:
        kept = lambda name, part: not _is_empty(part)  # noqa: E731
    else:
        kept = lambda name, part: _holds_arrays(part)  # noqa: E731
    return {name: part for name, part in parts.items() if kept(name, part)} or ()


def _is_empty(part: Tree) -> bool:
    """Whether it is exactly `{}` or `()`; another structure without arrays is kept."""
    return type(part) in (dict, tuple) and not part


def _holds_arrays(part: Tree) -> bool:
    return bool(jax.tree.leaves(part, is_leaf=is_tagged))


def axes_of_children(of: Layer, tapes: dict[str, Tree]) -> dict[str, Tree] | None:
    """The `batch_axes` of each child by name; None if any are unknown."""
    axes = {}
    for name, layer in zip(of.child_names, of.children, strict=True):
        with inside(name):
            axes[name] = layer.batch_axes(tapes[name])
    return None if any(part is None for part in axes.values()) else axes


def child_key(key: Key, name: str) -> Key:
    """The key that initialises the child called name."""
    return jax.random.fold_in(as_key(key), name_hash(name))


def pass_key(rng: Key | None, i: Array) -> Key | None:
    """The key of the i-th use of a layer; None without a key."""
    return None if rng is None else jax.random.fold_in(as_key(rng), i)


def init_of(name: str, child: Layer, key: Key, in_shape: InShape, dtype: DType) -> tuple[Params, State]:
    """Parameters and state of the child called name."""
    with inside(name):
        return child.init(child_key(key, name), in_shape, dtype)


def forward_of(name: str, child: Layer, params: Params, state: State, x: Tree, train: bool, rng: Key | None) -> Forward:
    """Forward pass of the child called name, from the combinator's params, state and key."""
    with inside(name), jax.named_scope(name):
        own = entry(params, name, {}), entry(state, name, ())
        return child.forward(*own, x, train=train, rng=layer_key(rng, name))


def backward_of(name: str, child: Layer, params: Params, tapes: dict[str, Tree], delta: Tree) -> tuple[Tree, Params]:
    """Backward pass of the child called name, from the combinator's params and tapes."""
    with inside(name), jax.named_scope(name):
        return child.backward(entry(params, name, {}), tapes[name], delta)


class OfSeveral(Layer):
    """Base of `serial` and `parallel`: any number of children, whose names must differ."""

    layers: tuple[Layer, ...]
    spread = True

    def _given(
        self, one_by_one: Sequence[Layer | Activation], layers: Sequence[Layer | Activation], **settings: str
    ) -> None:
        if one_by_one and layers:
            raise TypeError(f"{self.kind}: give layers one by one or as layers=, not both")
        layers = one_by_one or layers
        self._set(layers=as_layers(self.kind, layers), **settings)
        self._set(child_names=names_of(self.kind, self.layers))

    @property
    def children(self) -> tuple[Layer, ...]:
        return self.layers

    @cached_property
    def child_names(self) -> tuple[str, ...]:
        return names_of(self.kind, self.layers)

    @property
    def each(self) -> Iterator[tuple[str, Layer]]:
        """The children with their names."""
        return zip(self.child_names, self.layers, strict=True)


def shape_of(spec: Tree) -> InShape:
    """`in_shape` of a batched spec, without its first axis."""
    if isinstance(spec, jax.ShapeDtypeStruct) and jnp.issubdtype(spec.dtype, jnp.floating):
        return spec.shape[1:]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), spec)


def output_spec(layer: Layer, params: Params, state: State, spec: Tree) -> Tree:
    """The layer's output for an input like spec."""
    array_leaves("the parameters", params)
    return jax.eval_shape(lambda params, state, x: layer.forward(params, state, x)[0], params, state, spec)


def check_same(kind: str, x: Tree, y: Tree, advice: str = "") -> None:
    """The output must have the input's shape and dtype."""
    structures: list[Any] = [jax.tree.structure(x), jax.tree.structure(y)]
    same = structures[0] == structures[1] and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )
    if not same:
        shown_x, shown_y = (", ".join(map(describe, jax.tree.leaves(tree))) for tree in (x, y))
        raise LayerError(kind, f"expects a layer that keeps the shape of x, got {shown_x} -> {shown_y}{advice}")


def check_kept(kind: str, layer: Layer, variables: tuple[Params, State], spec: Tree) -> None:
    """The layer must keep the shape and dtype of an input like spec."""
    check_same(kind, spec, output_spec(layer, *variables, spec))


def is_tagged(tree: Tree) -> bool:
    """For `is_leaf`: in an instrumented network a Tagged replaces a layer's own tree."""
    return isinstance(tree, Tagged)
