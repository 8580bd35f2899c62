"""Where a data set lies on several devices, and batches that are divided among these.

A batch gathered from sharded data is divided again, or each device would do all the work. N examples, B of them in a
batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxnn.aliases import Array, Tree
from jaxnn.spmd.axes import axes_of, explicit_mesh, placed
from jaxnn.spmd.processes import put


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
        if explicit_mesh((leaf,)) is not None:
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

    def moves(leaf: Array) -> bool:
        is_there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == there.device_set
        return not isinstance(leaf, jax.core.Tracer) and not is_there

    leaves, structure = jax.tree.flatten(tree)
    moved = iter(put("the state", [leaf for leaf in leaves if moves(leaf)], NamedSharding(there.mesh, PartitionSpec())))
    return jax.tree.unflatten(structure, [next(moved) if moves(leaf) else leaf for leaf in leaves])


def spread(x: np.ndarray) -> NamedSharding | None:
    """The sharding of a NumPy array [N, …] under `jax.set_mesh`: along a mesh of one axis, if that divides N."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    mesh = jax.sharding.get_mesh()
    whole = len(mesh.axis_names) > 1 or not x.ndim or x.shape[0] % mesh.size
    return NamedSharding(mesh, PartitionSpec() if whole else PartitionSpec(mesh.axis_names[0]))
