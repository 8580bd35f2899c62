"""Placement of arrays on several devices, by JAX's own SPMD.

Placement follows the data: arrays on a mesh, or `jax.set_mesh`, determine it, and XLA divides the work. A program must
specify four things, none of which adds an operation on one device:

    placed          on Explicit axes, as of `jax.make_mesh`: the sharding of a sum over divided examples
    scan            the carry of a loop enters it with the sharding that it has at the end of a pass
    over_devices    inside `jax.shard_map`: the gradient of a shared array is the sum over the devices
    rows            a batch gathered from sharded data is divided again, or each device would do all the work

N examples, B of them in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxnn.aliases import Array, Tree

Body: TypeAlias = Callable[[Any, Any], tuple[Any, Any]]  # (carry, x) -> carry, y
Axes: TypeAlias = tuple[Any, ...]  # for each axis of an array the axis or axes of the mesh that divide it, or None
ROUNDS = 4  # until the types of a carry are constant: each can only gain axes


# ---------------------------------------------------------------- Explicit axes


def axes_of(x: Array) -> Axes:
    """The axes of a mesh that divide each axis of x, from its type: known for Explicit axes only."""
    return tuple(jax.typeof(x).sharding.spec) if hasattr(x, "ndim") else ()


def placed(f: Callable[..., Tree], *operands: Tree, axes: Axes) -> Any:
    """f(*operands), divided along those axes.

    For a sharding that JAX does not infer, as of a product summed over examples that Explicit axes divide. Within f
    XLA divides the work; f may read arrays from its operands only.
    """
    mesh = _explicit_mesh(operands)
    if mesh is None:
        return f(*operands)
    return jax.sharding.auto_axes(f, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, PartitionSpec(*axes)))(
        *operands
    )


def reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """X [N, …] in another shape [N, …], with the same sharding of examples."""
    first, *others = axes_of(x) or (None,)
    if any(axis is not None for axis in others):
        return x.reshape(shape)  # JAX infers some of these
    return placed(lambda x: x.reshape(shape), x, axes=(first, *(None,) * (len(shape) - 1)))


def on_mesh(*trees: Tree) -> AbstractContextManager[object]:
    """A context in which the Explicit mesh of the arrays is JAX's mesh, also without `jax.set_mesh`.

    `jax.grad` of a loop needs it to make the zeros from which a gradient is accumulated.
    """
    mesh = _explicit_mesh(jax.tree.leaves(trees))
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def _explicit_mesh(leaves: Iterable[Tree]) -> AbstractMesh | None:
    for leaf in leaves:
        mesh = jax.typeof(leaf).sharding.mesh if hasattr(leaf, "dtype") and hasattr(leaf, "ndim") else None
        if mesh is not None and not mesh.empty and mesh.explicit_axes:
            return mesh
    return None


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
    return frozenset().union(*(_varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(trees)))


def _varying(type_: object) -> frozenset[Any]:
    return getattr(getattr(type_, "mat", type_), "varying", frozenset())


def made_varying(tree: Tree, axes: frozenset[Any]) -> Tree:
    """The same arrays, with types that vary along those axes of devices."""

    def one(leaf: Array) -> Array:
        more = tuple(sorted(axes - varying(leaf), key=str))
        return jax.lax.pcast(leaf, more, to="varying") if more else leaf

    return jax.tree.map(one, tree) if axes else tree


# ---------------------------------------------------------------- loops


def scan(body: Body, carry: Tree, xs: Tree, **settings: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, with the sharding of the first carry that of the next ones."""
    return jax.lax.scan(body, _settled(body, carry, xs), xs, **settings)


def while_loop(goes_on: Callable[[Tree], Array], body: Callable[[Tree], Tree], carry: Tree) -> Any:
    """`jax.lax.while_loop`, with the sharding of the first carry that of the next ones."""
    return jax.lax.while_loop(goes_on, body, _settled(lambda carry, xs: (body(carry), xs), carry, ()))


def _settled(body: Body, carry: Tree, xs: Tree) -> Tree:
    """The carry, with the sharding that it has after a pass."""
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.manual_axes or mesh.explicit_axes or _explicit_mesh(jax.tree.leaves((carry, xs)))):
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
    leaf = made_varying(leaf, _varying(type_))
    mesh, spec = type_.sharding.mesh, type_.sharding.spec
    if mesh.empty or not mesh.explicit_axes or jax.typeof(leaf).sharding == type_.sharding:
        return leaf
    return jax.sharding.reshard(leaf, NamedSharding(mesh, spec))


# ---------------------------------------------------------------- data sets and batches


class Home(NamedTuple):
    """The mesh of a data set, and the axis or axes of it that divide the examples, or None."""

    mesh: Any
    axes: Any

    def divides(self, n: int) -> bool:
        """True if each device gets the same number of n examples."""
        return self.axes is not None and n % self.devices == 0

    @property
    def devices(self) -> int:
        """The number of devices that examples are divided among."""
        names = self.axes if isinstance(self.axes, tuple) else (self.axes,)
        return math.prod(self.mesh.shape[name] for name in names if name is not None)


def home_of(data: Tree) -> Home | None:
    """The placement of the data; None on one device.

    In a compiled program the types of arrays lack Auto axes: then it is the only axis of the mesh, their own or that
    of `jax.set_mesh`, and None for several axes.
    """
    leaves = [leaf for leaf in jax.tree.leaves(data) if hasattr(leaf, "ndim") and leaf.ndim]
    found = [home for home in map(_home, leaves) if home is not None]
    return next((home for home in found if home.axes is not None), found[0] if found else None)


def _home(leaf: Array) -> Home | None:
    mesh = jax.typeof(leaf).sharding.mesh
    if not mesh.empty and mesh.explicit_axes:
        return Home(mesh, axes_of(leaf)[0])
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        lies = leaf.sharding
        if len(lies.device_set) == 1 or not isinstance(lies, NamedSharding):
            return None
        return Home(lies.mesh, lies.spec[0] if len(lies.spec) else None)
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    axes: tuple[str, ...] = () if mesh.empty or mesh.manual_axes or mesh.explicit_axes else mesh.auto_axes
    return Home(mesh, axes[0]) if len(axes) == 1 else None


def rows(data: Tree, at: Array, home: Home | None = None) -> Tree:
    """The rows `at` of every leaf, [B, …], divided among the devices like the data.

    XLA would put a copy of a batch that it gathers from sharded data on every device; a batch that the devices do not
    divide remains such a copy.
    """
    home = home or home_of(data)

    def gathered(leaf: Array, at: Array) -> Array:
        return leaf.at[at].get(mode="promise_in_bounds")

    def of(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        if home is None or home.axes is None:
            return gathered(leaf, at)
        first = home.axes if home.divides(len(at)) else None
        if _explicit_mesh((leaf,)) is not None:
            return placed(gathered, leaf, at, axes=(first, *axes_of(leaf)[1:]))
        batch = gathered(leaf, at)
        others = [PartitionSpec.UNCONSTRAINED if isinstance(batch, jax.core.Tracer) else None] * (batch.ndim - 1)
        lies = NamedSharding(home.mesh, PartitionSpec(first, *others))
        if getattr(home.mesh, "explicit_axes", ()):  # this leaf is not on the mesh of the data
            return jax.sharding.reshard(batch, NamedSharding(home.mesh, PartitionSpec(first)))
        if first is None or (isinstance(home.mesh, AbstractMesh) and not isinstance(batch, jax.core.Tracer)):
            return batch
        return jax.lax.with_sharding_constraint(batch, lies)

    return jax.tree.map(of, data)


def beside(tree: Tree, data: Tree) -> Tree:
    """The tree, copied to every device of the mesh of the data, except arrays that are on it already."""
    arrays = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array)]
    lies = [leaf.sharding for leaf in arrays if not isinstance(leaf, jax.core.Tracer)]
    there = next((s for s in lies if isinstance(s, NamedSharding) and len(s.device_set) > 1), None)
    if there is None:
        return tree

    def moved(leaf: Array) -> Array:
        if isinstance(leaf, jax.core.Tracer) or (
            isinstance(leaf, jax.Array) and leaf.sharding.device_set == there.device_set
        ):
            return leaf
        return jax.device_put(leaf, NamedSharding(there.mesh, PartitionSpec()))

    return jax.tree.map(moved, tree)


def spread(x: np.ndarray) -> NamedSharding | None:
    """The sharding of a NumPy array [N, …] under `jax.set_mesh`: along a mesh of one axis, if that divides N."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    mesh = jax.sharding.get_mesh()
    whole = len(mesh.axis_names) > 1 or not x.ndim or x.shape[0] % mesh.size
    return NamedSharding(mesh, PartitionSpec() if whole else PartitionSpec(mesh.axis_names[0]))
