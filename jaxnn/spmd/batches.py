"""Where a data set lies on several devices, and batches that are divided among these.

A batch gathered from sharded data is divided again, or each device would do all the work. N examples, B of them in a
batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxnn.aliases import Array, Tree
from jaxnn.spmd.axes import axes_of, explicit_mesh, names_of, parts_along, placed
from jaxnn.spmd.transfers import host, put


class Home(NamedTuple):
    """The mesh of a data set, and the axis or axes of it that divide each batch.

    The data lie there in `parts`, each on separate devices; 1 if every device has all of them.
    """

    mesh: Any
    axes: Any
    parts: int = 1

    def divides(self, n: int) -> bool:
        """True if each device gets the same number of n examples."""
        return n % self.devices == 0

    @property
    def devices(self) -> int:
        """The number of devices, or groups of them, that a batch is divided among."""
        return parts_along(self.mesh, self.axes)


def home_of(data: Tree) -> Home | None:
    """The placement of the data; None on one device.

    Data that a mesh does not divide are on all of its devices, and batches are divided along its first axis. In a
    compiled program the types of arrays do not say how Auto axes divide them: then it is as if they did not.
    """
    if hasattr(data, "home"):  # data that are not here yet
        return data.home
    leaves = [leaf for leaf in jax.tree.leaves(data) if hasattr(leaf, "ndim") and leaf.ndim]
    found = [home for home in map(_home, leaves) if home is not None]
    return next((home for home in found if home.parts > 1), found[0] if found else None)


def _home(leaf: Array) -> Home | None:
    mesh = jax.typeof(leaf).sharding.mesh
    if not mesh.empty and mesh.explicit_axes:
        return _divided(mesh, axes_of(leaf)[0])
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        lies = leaf.sharding
        if len(lies.device_set) == 1 or not isinstance(lies, NamedSharding):
            return None
        return _divided(lies.mesh, lies.spec[0] if len(lies.spec) else None)
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    if mesh.empty or mesh.manual_axes or mesh.explicit_axes:
        return None
    return _divided(mesh, None)


def _divided(mesh: Any, axes: Any) -> Home:
    known = axes is not None and axes is not PartitionSpec.UNCONSTRAINED and axes != ()
    return Home(mesh, axes, parts_along(mesh, axes)) if known else Home(mesh, mesh.axis_names[0])


def copies_on(data: Tree) -> Mesh | None:
    """The mesh of data that each of its devices has all of; None for divided data, or on one device."""
    arrays = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array)]
    lies = [leaf.sharding for leaf in arrays if not isinstance(leaf, jax.core.Tracer)]
    meshes = {one.mesh if isinstance(one, NamedSharding) and one.is_fully_replicated else None for one in lies}
    mesh = meshes.pop() if len(meshes) == 1 else None
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def arranged(at: Array, n: int, parts: int, devices: int) -> Array:
    """The rows of a batch [B] in the order in which the devices take them, −1 where one of them has none left.

    Rows that are drawn from each of the parts of n examples in turn are put part by part: [parts, ⌈B/parts⌉].
    """
    if parts > 1:
        each = -(-len(at) // parts)
        table = jnp.pad(at, (0, each * parts - len(at)), constant_values=-1).reshape(each, parts)
        at = jnp.roll(table, at[0] // (n // parts), axis=1).T.reshape(-1)
    return jnp.pad(at, (0, -len(at) % devices), constant_values=-1) if len(at) % devices else at


def rows(data: Tree, at: Array, home: Home | None = None, *, local: bool = False) -> Tree:
    """The rows `at` of every leaf, [B, …], divided among the devices; any row for −1.

    XLA would put a copy of a batch that it gathers from sharded data on every device; a batch that the devices do not
    divide remains such a copy. `local` promises that each device's rows are those of its own part of the data, as
    `arranged` puts them: no device then asks another one.
    """
    home = home or home_of(data)
    at = jnp.maximum(at, 0)

    def gathered(leaf: Array, at: Array) -> Array:
        return leaf.at[at].get(mode="promise_in_bounds")

    def of(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        if home is None:
            return gathered(leaf, at)
        if local:
            return _own_rows(leaf, at, home)
        first = home.axes if home.divides(len(at)) else None
        if explicit_mesh((leaf,)) is not None:
            return placed(gathered, leaf, at, axes=(first, *_without(first, axes_of(leaf)[1:])))
        batch = gathered(leaf, at)
        if getattr(home.mesh, "explicit_axes", ()):  # this leaf is not on the mesh of the data
            return jax.sharding.reshard(batch, NamedSharding(home.mesh, PartitionSpec(first)))
        if first is None or (isinstance(home.mesh, AbstractMesh) and not isinstance(batch, jax.core.Tracer)):
            return batch
        others = [PartitionSpec.UNCONSTRAINED if isinstance(batch, jax.core.Tracer) else None] * (batch.ndim - 1)
        return jax.lax.with_sharding_constraint(batch, NamedSharding(home.mesh, PartitionSpec(first, *others)))

    return jax.tree.map(of, data)


def _without(used: Any, axes: Any) -> list[Any]:
    """The axes of a mesh that divide features, but those that divide the examples of a batch."""
    return [None if set(names_of(used)) & set(names_of(axis)) else axis for axis in axes]


def _own_rows(leaf: Array, at: Array, home: Home) -> Array:
    """The rows of every device, from its own part of the data."""
    names = names_of(home.axes)

    def of_one(part: Array, at: Array) -> Array:
        first = jax.lax.axis_index(names).astype(at.dtype) * len(part)
        return part.at[jnp.maximum(at - first, 0)].get(mode="promise_in_bounds")

    spec = PartitionSpec(home.axes)
    if getattr(home.mesh, "explicit_axes", ()):
        others = _without(home.axes, axes_of(leaf)[1:]) if explicit_mesh((leaf,)) is not None else ()
        leaf = jax.sharding.reshard(leaf, NamedSharding(home.mesh, PartitionSpec(home.axes, *others)))
        at = jax.sharding.reshard(at, NamedSharding(home.mesh, spec))
    return jax.shard_map(of_one, mesh=home.mesh, in_specs=spec, out_specs=spec, axis_names=set(names))(leaf, at)


def check_together(what: dict[str, Tree]) -> None:
    """Raises ValueError if arrays lie on different devices, as on two meshes; single devices follow the others."""
    found: dict[Any, str] = {}
    for name, tree in what.items():
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
                devices = leaf.sharding.device_set
                if len(devices) > 1:
                    found.setdefault(frozenset(devices), name)
    if len(found) > 1:
        (ours, one), (theirs, other) = list(found.items())[:2]
        raise ValueError(
            f"{one} is on {len(ours)} devices and {other} on {len(theirs)}, not all the same: put both on one mesh, "
            "placement.shard((x, target), mesh)"
        )


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


def lying_like(tree: Tree, like: Tree) -> Any:
    """The arrays, divided among the devices as those of another tree are, where these are arrays."""

    def one(like: Any, leaf: Any) -> Any:
        if not isinstance(like, jax.Array) or len(like.sharding.device_set) == 1 or like.sharding == leaf.sharding:
            return leaf
        return jax.device_put(leaf, like.sharding)

    return jax.tree.map(one, like, tree)


def _on_a_mesh(leaf: Array) -> bool:
    """True where the type of an array may have axes of a mesh, even of one device."""
    return len(leaf.sharding.device_set) > 1 or isinstance(leaf.sharding, NamedSharding)


def on_one_device(tree: Tree) -> Any:
    """The tree on one device, for what looks at single numbers; arrays that are there stay."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not _on_a_mesh(leaf):
            return leaf
        there = leaf.addressable_shards[0].device
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.device_put(host(jax.random.key_data(leaf)), there)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(host(leaf), there)  # from device to device an array keeps Explicit axes in its type

    return jax.tree.map(one, tree)


def spread(x: np.ndarray, divided: bool) -> NamedSharding | None:
    """The sharding of a NumPy array [N, …] under `jax.set_mesh`: on every device, or divided by its first axis."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    mesh = jax.sharding.get_mesh()
    first = mesh.axis_names[0]
    return NamedSharding(
        mesh, PartitionSpec(first) if divided and x.ndim and x.shape[0] % mesh.shape[first] == 0 else PartitionSpec()
    )
