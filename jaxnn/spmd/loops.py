"""Loops whose carry has, before the first pass, the sharding that it has after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxnn.aliases import Array, Tree
from jaxnn.spmd.axes import axes_varying, explicit_mesh, made_varying

Body: TypeAlias = Callable[[Any, Any], tuple[Any, Any]]  # (carry, x) -> carry, y
ROUNDS = 4  # until the types of a carry are constant: each can only gain axes


def scan(body: Body, carry: Tree, xs: Tree, **settings: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, with the sharding of the first carry that of the next ones."""
    return jax.lax.scan(body, _settled(body, carry, xs), xs, **settings)


def while_loop(goes_on: Callable[[Tree], Array], body: Callable[[Tree], Tree], carry: Tree) -> Any:
    """`jax.lax.while_loop`, with the sharding of the first carry that of the next ones."""
    return jax.lax.while_loop(goes_on, body, _settled(lambda carry, xs: (body(carry), xs), carry, ()))


def _settled(body: Body, carry: Tree, xs: Tree) -> Tree:
    """The carry, with the sharding that it has after a pass."""
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.manual_axes or mesh.explicit_axes or explicit_mesh(jax.tree.leaves((carry, xs)))):
        return carry
    for _ in range(ROUNDS):
        types = _types_after(body, carry, xs)
        structures: list[Any] = [jax.tree.structure(tree) for tree in (types, carry)]
        if structures[0] != structures[1]:
            break  # the loop raises the error
        moved = jax.tree.map(_moved, carry, types)
        if all(a is b for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(carry), strict=True)):
            break
        carry = moved
    return carry


def _types_after(body: Body, carry: Tree, xs: Tree) -> Tree:
    """The types of the carry after the first pass."""
    found: list[Tree] = []

    def at_first(leaf: Array) -> Array:
        if not leaf.shape[0]:  # a loop without passes has types too
            leaf = jnp.concatenate([leaf, jnp.zeros((1, *leaf.shape[1:]), leaf.dtype)])
        return jax.lax.index_in_dim(leaf, 0, keepdims=False)

    def once(carry: Tree, xs: Tree) -> None:
        found.append(jax.tree.map(jax.typeof, body(carry, jax.tree.map(at_first, xs))[0]))

    jax.eval_shape(once, carry, xs)
    return found[0]


def _moved(leaf: Array, type_: Any) -> Array:
    leaf = made_varying(leaf, axes_varying(type_))
    mesh, spec = type_.sharding.mesh, type_.sharding.spec
    if mesh.empty or not mesh.explicit_axes or jax.typeof(leaf).sharding == type_.sharding:
        return leaf
    return jax.sharding.reshard(leaf, NamedSharding(mesh, spec))
