"""Which axes of a mesh divide an array, and what a rule says of its results there.

On Explicit axes, as of `jax.make_mesh`, and inside `jax.shard_map` a program must specify what JAX does not infer; none
of it adds an operation on one device:

    placed          the sharding of a sum over examples that Explicit axes divide
    over_devices    inside `jax.shard_map`: the gradient of a shared array is the sum over the devices
    by_device       a sum over examples within a loop is each device's own, and summed over the devices behind it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.aliases import Array, Tree

Axes: TypeAlias = tuple[Any, ...]  # for each axis of an array the axis or axes of the mesh that divide it, or None


def axes_of(x: Array) -> Axes:
    """The axes of a mesh that divide each axis of x, from its type: known for Explicit axes only."""
    return tuple(jax.typeof(x).sharding.spec) if hasattr(x, "ndim") else ()


def placed(f: Callable[..., Tree], *operands: Tree, axes: Axes) -> Any:
    """f(*operands), divided along those axes.

    For a sharding that JAX does not infer, as of a product summed over examples that Explicit axes divide. Within f
    XLA divides the work; f may read arrays from its operands only.
    """
    mesh = explicit_mesh(operands)
    if mesh is None:
        return f(*operands)
    return jax.sharding.auto_axes(f, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, P(*axes)))(*operands)


def reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """X [N, …] in another shape [N, …], with the same sharding of examples."""
    first, *others = axes_of(x) or (None,)
    if any(axis is not None for axis in others):
        return x.reshape(shape)  # JAX infers some of these
    return placed(lambda x: x.reshape(shape), x, axes=(first, *(None,) * (len(shape) - 1)))


def by_device(f: Callable[..., tuple[Tree, Tree]], operands: tuple[Tree, ...], axes: tuple[Tree, ...]) -> Any:
    """f(*operands) = (parts, sums), computed by each device from its own examples, the sums then added up.

    For sums over examples that a loop accumulates: XLA would sum over the devices in every pass. Axes have the axis of
    the examples of each operand, a tree of int or None, or one for all; parts have the examples first. Where no mesh
    divides the examples, as the types tell, or not equally, it is f.
    """
    leaves, each = jax.tree.leaves(operands), _each(operands, axes)
    found = next((_divided(leaf, axis) for leaf, axis in zip(leaves, each, strict=True) if axis is not None), None)
    if found is None:
        return f(*operands)
    mesh, names = found
    specs = [P() if axis is None else P(*[None] * axis, names) for axis in each]
    if mesh.explicit_axes:
        if any(any(axes_of(leaf)) for leaf, axis in zip(leaves, each, strict=True) if axis is None and leaf.size):
            return f(*operands)  # parameters that are divided too
        leaves = [jax.sharding.reshard(x, NamedSharding(mesh, spec)) for x, spec in zip(leaves, specs, strict=True)]
    structure = jax.tree.structure(operands)

    def one(*leaves: Array) -> tuple[Tree, Tree]:
        parts, sums = f(*jax.tree.unflatten(structure, leaves))
        return parts, jax.tree.map(lambda total: total[None], sums)

    # what a device computes of what all have is its own: nothing is to be known to be the same on all of them
    mapped = jax.shard_map(
        one, mesh=mesh, in_specs=tuple(specs), out_specs=P(names), axis_names=set(names_of(names)), check_vma=False
    )
    parts, sums = mapped(*leaves)
    return parts, jax.tree.map(lambda each: placed(lambda each: each.sum(0), each, axes=axes_of(each)[1:]), sums)


def _each(operands: tuple[Tree, ...], axes: tuple[Tree, ...]) -> list[int | None]:
    """The axis of each leaf."""
    found: list[int | None] = []
    for operand, axis in zip(operands, axes, strict=True):
        if axis is None or isinstance(axis, int):
            found += [axis] * len(jax.tree.leaves(operand))
        else:
            structure: Any = jax.tree.structure(operand)
            found += structure.flatten_up_to(axis)
    return found


def _divided(x: Array, axis: int) -> tuple[Any, Any] | None:
    """The mesh on which an array is divided along that axis, and by which of its axes; None where it is not.

    Types do not tell how Auto axes divide an array: its examples are then divided by the first axis of the mesh.
    """
    mesh = jax.typeof(x).sharding.mesh
    if not isinstance(x, jax.core.Tracer) or mesh.empty or mesh.manual_axes:
        return None
    names = axes_of(x)[axis] if mesh.explicit_axes else mesh.axis_names[0]
    parts, size = parts_along(mesh, names), x.shape[axis]
    return (mesh, names) if parts > 1 and isinstance(size, int) and size % parts == 0 else None


def names_of(axes: Any) -> tuple[Any, ...]:
    """The axes of a mesh that divide an axis of an array, which may be one, several or None."""
    return axes if isinstance(axes, tuple) else () if axes is None else (axes,)


def parts_along(mesh: Any, axes: Any) -> int:
    """The number of parts into which these axes of a mesh divide an axis of an array."""
    return math.prod(mesh.shape[name] for name in names_of(axes))


def on_mesh(*trees: Tree) -> AbstractContextManager[object]:
    """A context in which the Explicit mesh of the arrays is JAX's mesh, also without `jax.set_mesh`.

    `jax.grad` of a loop needs it to make the zeros from which a gradient is accumulated.
    """
    mesh = explicit_mesh(jax.tree.leaves(trees))
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def explicit_mesh(leaves: Iterable[Tree]) -> AbstractMesh | None:
    """The mesh of the first leaf that is on Explicit axes; None if none is."""
    for leaf in leaves:
        mesh = jax.typeof(leaf).sharding.mesh if hasattr(leaf, "dtype") and hasattr(leaf, "ndim") else None
        if mesh is not None and not mesh.empty and mesh.explicit_axes:
            return mesh
    return None


def gathered(params: Tree, x: Tree) -> Any:
    """Parameters that are divided along the Explicit axes that divide the examples of x, on each of these devices.

    Of those that other axes divide, only the last axis, the output features, stays divided: JAX does not infer the
    sharding of products whose sums are divided. XLA gathers those of Auto axes itself.
    """
    mesh = explicit_mesh(jax.tree.leaves(x))
    if mesh is None:
        return params
    used = {name for leaf in jax.tree.leaves(x) if axes_of(leaf) for name in names_of(axes_of(leaf)[0])}
    used = used or {mesh.axis_names[0]}  # as batches of x will be

    def of(p: Array) -> Array:
        kept = [None] * (p.ndim - 1) + [None if used & set(names_of(axis)) else axis for axis in axes_of(p)[-1:]]
        return p if tuple(kept) == axes_of(p) else jax.sharding.reshard(p, NamedSharding(mesh, P(*kept)))

    return jax.tree.map(of, params)


def divided_like(grads: Tree, params: Tree) -> Any:
    """Gradients with the sharding of their parameters on Explicit axes: each device keeps its part of the sum."""

    def one(p: Array, g: Array) -> Array:
        lies = jax.typeof(p).sharding if hasattr(p, "ndim") else None
        if lies is None or lies.mesh.empty or not lies.mesh.explicit_axes or jax.typeof(g).sharding == lies:
            return g
        return jax.sharding.reshard(g, lies)

    return grads if explicit_mesh(jax.tree.leaves(params)) is None else jax.tree.map(one, params, grads)


# ---------------------------------------------------------------- inside jax.shard_map


def over_devices(gradient: Array, like: Array) -> Array:
    """The gradient of `like`, summed over the axes of devices along which `like` is the same.

    This is `jax.grad` inside `jax.shard_map`: each device has its own loss, and the gradient is that of their sum.
    With `check_vma=False` JAX does not know what is the same, and gradients are not summed.
    """
    axes = varying(gradient) - varying(like)
    return jax.lax.psum(gradient, tuple(sorted(axes, key=str))) if axes else gradient


def varying(*trees: Tree) -> frozenset[Any]:
    """The axes of devices along which the arrays differ, from their types; none outside `jax.shard_map`."""
    return frozenset().union(*(axes_varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(trees)))


def axes_varying(type_: object) -> frozenset[Any]:
    """The axes of devices along which arrays of a type differ."""
    return getattr(getattr(type_, "mat", type_), "varying", frozenset())


def made_varying(tree: Tree, axes: frozenset[Any]) -> Tree:
    """The same arrays, with types that vary along those axes of devices."""

    def one(leaf: Array) -> Array:
        more = tuple(sorted(axes - varying(leaf), key=str))
        return jax.lax.pcast(leaf, more, to="varying") if more else leaf

    return jax.tree.map(one, tree) if axes else tree
