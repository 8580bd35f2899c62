"""Paths and shapes of trees of arrays, and differences between two trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.types import Shape, Tree

MAX_REPORTED = 5  # mismatches listed before "and n more"


def path_name(path: Sequence[Any], below: str = "") -> str:
    """`dense_0/w` for a tree path, after the path above it."""
    return "/".join(filter(None, (below, jax.tree_util.keystr(tuple(path), simple=True, separator="/"))))


def describe(leaf: Tree) -> str:
    """`float32[784, 30]`."""
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]" if hasattr(leaf, "dtype") else repr(leaf)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def static_spec(tree: Tree) -> tuple[Any, Any]:
    """Structure, shapes and dtypes of a tree, hashable."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def spec_tree(spec: tuple[Any, Any]) -> Tree:
    """The inverse of `static_spec`, a tree of jax.ShapeDtypeStructs."""
    structure, leaves = spec
    return structure.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def same_shapes(what: str, got: Tree, expected: Tree, advice: str) -> None:
    """Raises ValueError with the first paths at which two trees differ and both shapes."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (got, expected)]
    if structures[0] == structures[1] and _shapes(got) == _shapes(expected):
        return
    ours, theirs = named_leaves(expected), named_leaves(got)
    lines = []
    for path in dict.fromkeys([*ours, *theirs]):
        wanted, came = (list(jnp.shape(tree[path])) if path in tree else None for tree in (ours, theirs))
        where = path or "the array"
        if came is None:
            lines.append(f"{where}: expected {wanted}, missing")
        elif wanted is None:
            lines.append(f"{where}: not expected, got {came}")
        elif wanted != came:
            lines.append(f"{where}: expected {wanted}, got {came}")
    if not lines:  # the same leaves in other containers
        lines.append(f"expected {structures[1]}, got {structures[0]}")
    more = [f"and {len(lines) - MAX_REPORTED} more"] if len(lines) > MAX_REPORTED else []
    raise ValueError("\n  ".join([f"{what}; {advice}", *lines[:MAX_REPORTED], *more]))


def _shapes(tree: Tree) -> list[Shape]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
