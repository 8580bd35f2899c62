"""Outlines, which a tape holds in place of arrays that backward does not need, and single examples of a tape.

N batch.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxnn.aliases import Array, DType, Shape, Tree
from jaxnn.errors import LayerError
from jaxnn.spmd.axes import axes_of, placed


@jax.tree_util.register_pytree_node_class
class Outline(tuple[Any, ...]):
    """The shape and dtype of an array [N, …], kept on a tape where the values are not needed.

    A tuple of the arrays kept with them, by default none: then a node of a pytree without leaves, which costs no memory
    and no operation. A loop stacks the kept arrays; the shape remains that of one pass.
    """

    shape: Shape
    dtype: DType

    def __new__(cls, shape: Shape, dtype: DType, *kept: Tree) -> Outline:
        self = super().__new__(cls, kept)
        self.shape, self.dtype = tuple(shape), dtype
        return self

    def tree_flatten(self) -> tuple[tuple[Tree, ...], tuple[Shape, DType]]:
        return tuple(self), (self.shape, self.dtype)

    @classmethod
    def tree_unflatten(cls, of: tuple[Shape, DType], kept: tuple[Tree, ...]) -> Outline:
        return cls(*of, *kept)


# ---------------------------------------------------------------- one example


def all_along(axis: int | None, tree: Tree) -> Tree:
    """The tree with `axis` in place of each array."""
    return jax.tree.map(lambda _: axis, tree)


def first_axes(layer: Any, tape: Tree) -> Tree:
    """The `batch_axes` of a layer whose tape has N first in every array."""
    return all_along(0, tape)


def coupled(kind: str) -> LayerError:
    """The error of a layer whose tape cannot be split into examples."""
    return LayerError(kind, "couples the examples of a batch: none can be cut out of its tape")


def one_of(tree: Tree, axes: Tree, n: Array) -> Tree:
    """The n-th example as a batch of one: a slice of each array along its axis, all of it where that is None.

    >>> import jax.numpy as jnp
    >>> tape = Outline((3, 2), jnp.float32, jnp.arange(6).reshape(2, 3), jnp.arange(2))  # an axis of time comes first
    >>> alone = one_of(tape, Outline((3, 2), jnp.float32, 1, None), 2)
    >>> alone.shape, alone[0].tolist(), alone[1].tolist()
    ((1, 2), [[2], [5]], [0, 1])
    """

    def cut(part: Tree, axis: Tree) -> Tree:
        if axis is None:
            return part
        if isinstance(part, Outline):
            kept = (one_of(own, axes, n) for own, axes in zip(part, axis, strict=True))
            return Outline((1, *part.shape[1:]), part.dtype, *kept)
        slice_of = lambda part, n: jax.lax.dynamic_slice_in_dim(part, n, 1, axis)  # noqa: E731
        divided = axes_of(part)
        return placed(
            slice_of, part, n, axes=(*divided[:axis], None, *divided[axis + 1 :])
        )  # an axis of size 1 is not divided

    return jax.tree.map(cut, tree, axes, is_leaf=lambda part: isinstance(part, Outline))
