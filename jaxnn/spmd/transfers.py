"""Arrays into devices of several processes, and out of them.

For arrays of this process alone the functions are what their names say in JAX. *Together*: all processes that have a
device of the array call the function, in the same order. N examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn.aliases import Array, Tree
from jaxnn.spmd.processes import (
    AGREED,
    Group,
    agreeing,
    device_number,
    digest_of,
    group_on,
    is_here,
    is_key,
    replicated,
    same,
    texts,
)


def put(what: str, tree: Tree, shardings: Tree) -> Any:
    """`jax.device_put` of NumPy arrays and arrays of this process.

    On devices of several processes each puts its shards of what all hold whole; together, ValueError if it differs.
    """
    leaves, structure = jax.tree.flatten(tree)
    lies = _for_each(tree, shardings)
    far = [
        there is not None and not there.is_fully_addressable and is_here(leaf)
        for leaf, there in zip(leaves, lies, strict=True)
    ]
    if not any(far):
        return jax.device_put(tree, shardings)
    advice = "give all the same arrays, or each its part by placement.shard(…, local=True)"
    whole = [leaf for leaf, is_far in zip(leaves, far, strict=True) if is_far]
    same(group_on(lies[far.index(True)].device_set), what, digest_of(whole), advice)
    return jax.tree.unflatten(structure, [placed_whole(leaf, there) for leaf, there in zip(leaves, lies, strict=True)])


def _for_each(tree: Tree, shardings: Tree) -> list[Any]:
    """The sharding of each leaf: of a tree like it, or one for all."""
    alike: Any = jax.tree.structure(shardings), jax.tree.structure(tree)
    return jax.tree.leaves(shardings) if alike[0] == alike[1] else [shardings] * len(jax.tree.leaves(tree))


def placed_whole(leaf: Any, sharding: Any) -> Array:
    """`jax.device_put` of an array of which every process holds all values, which is not checked."""
    if sharding is None or sharding.is_fully_addressable or not is_here(leaf):
        return jax.device_put(leaf, sharding)
    if is_key(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(placed_whole(data, sharding), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def from_parts(tree: Tree, mesh: Mesh, shardings: Callable[[Tree], Tree], what: str = "shard") -> Any:
    """The global arrays of which the tree is this process's part, [n, …] of [N, …]; together.

    Args:
        tree: NumPy arrays, or arrays of this process, with its examples first.
        mesh: of all processes.
        shardings: a function of the whole arrays, as jax.ShapeDtypeStructs, that gives their NamedShardings.
        what: the name of the tree in messages.

    Raises:
        ValueError: in all processes, with the sizes by process, if the parts are unequal, and if a sharding does not
            give each process an equal share of the first axis.
    """
    group = group_on(set(mesh.devices.flat))
    times = 1 if group is None else len(group.devices)
    leaves, structure = jax.tree.flatten(tree)
    with agreeing(group):
        parts = [np.asarray(leaf) for leaf in leaves]
        if not all(part.ndim for part in parts):
            raise ValueError(f"{what}: local=True: an array without axes has no parts: the first axis counts examples")
        _check_parts(group, what, parts)
        whole = [jax.ShapeDtypeStruct((len(part) * times, *part.shape[1:]), part.dtype) for part in parts]
        lies = jax.tree.leaves(shardings(jax.tree.unflatten(structure, whole)))
        for part, like, there in zip(parts, whole, lies, strict=True):
            rows = {index[0].indices(like.shape[0])[:2] for index in _indices_here(there, like.shape)}
            if sum(stop - start for start, stop in rows) != len(part):
                raise ValueError(
                    f"{what}: local=True: {there.spec} does not give each of {times} processes an equal share of "
                    f"{like.shape[0]} examples: divide the first axis among all devices"
                )
    made = [
        jax.make_array_from_process_local_data(there, part, like.shape)
        for part, like, there in zip(parts, whole, lies, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


def _indices_here(sharding: Any, shape: tuple[int, ...]) -> Any:
    """The parts of an array on the devices of this process."""
    return sharding.addressable_devices_indices_map(shape).values()


def _check_parts(group: Group | None, what: str, parts: list[np.ndarray]) -> None:
    """Raises ValueError in all processes unless their parts are alike; together."""
    if group is None:
        return
    same(group, what, b"", "")  # or another process has an error, and sends no sizes
    told = [json.loads(text) for text in texts(group, json.dumps([[str(p.dtype), *p.shape] for p in parts]))]
    if all(other == told[0] for other in told):
        return
    by_process = "; ".join(
        f"process {n}: " + ", ".join(f"{dtype}{shape}" for dtype, *shape in each)
        for n, each in zip(group.numbers, told, strict=True)
    )
    error = ValueError(
        f"{what}: the parts of the processes must be equal in shape and dtype, got {by_process}. Leave examples out, "
        "or add some of weight 0, until all have the same number"
    )
    setattr(error, AGREED, True)
    raise error


# ---------------------------------------------------------------- out of global arrays


def everywhere(tree: Tree) -> Any:
    """The tree with every array whole on each device; together, where arrays are divided among processes."""

    def one(leaf: Any) -> Any:
        if is_here(leaf) or leaf.is_fully_replicated:
            return leaf
        lies = leaf.sharding
        devices = np.array(sorted(lies.device_set, key=device_number))
        mesh = lies.mesh if isinstance(lies, NamedSharding) else Mesh(devices, ("all",))
        with jax.set_mesh(cast(Mesh, mesh)):
            return replicated(NamedSharding(mesh, PartitionSpec()))(leaf)

    return jax.tree.map(one, tree)


def gathered(tree: Tree, group: Group | None) -> Any:
    """The tree with arrays that are divided among processes as NumPy arrays in the first of these, None in the others.

    One array after another: the whole tree may be larger than a device. Together.
    """
    if group is None:
        return tree

    def one(leaf: Any) -> Any:
        if type(leaf) is dict:  # in its own order, which jax.tree.map does not keep
            return {name: gathered(part, group) for name, part in leaf.items()}
        if is_here(leaf) or leaf.is_fully_replicated:
            return leaf
        whole = everywhere(leaf)
        return np.asarray(whole) if group.is_first else None

    return jax.tree.map(one, tree, is_leaf=lambda node: type(node) is dict)


def host(leaf: Any) -> np.ndarray:
    """An array as NumPy's; together, where it is divided among processes."""
    return np.asarray(everywhere(leaf))


def copied(leaf: Array) -> Array:
    """A copy in other memory, of an array in other processes as well."""
    if is_here(leaf):
        return jax.device_put(leaf, may_alias=False)
    shards = [jax.device_put(shard.data, may_alias=False) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


def local_rows(data: Tree) -> Any:
    """The rows [n, …] of global arrays [N, …] that this process holds of all of them, as NumPy arrays.

    Without arrays in other processes the data themselves.
    """
    leaves, structure = jax.tree.flatten(data)
    if jax.process_count() == 1 or all(map(is_here, leaves)):
        return data
    found = [_rows_here(leaf) for leaf in leaves]
    shared = np.stack([has for has, _ in found]).all(0)
    chosen = [part if (has == shared).all() else part[shared[has]] for has, part in found]
    return jax.tree.unflatten(structure, chosen)


def _rows_here(leaf: Array) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are here, bool [N], and these."""
    if is_here(leaf):
        return np.ones(len(leaf), bool), np.asarray(leaf)
    n, *others = leaf.shape
    blocks: dict[tuple[int, int], dict[Any, Any]] = {}
    for shard in leaf.addressable_shards:
        first, *rest = shard.index
        place = tuple(part.indices(size)[:2] for part, size in zip(rest, others, strict=True))
        blocks.setdefault(first.indices(n)[:2], {})[place] = shard.data
    has, parts = np.zeros(n, bool), []
    for (start, stop), shards in sorted(blocks.items()):
        if sum(shard.size for shard in shards.values()) == (stop - start) * int(np.prod(others)):
            has[start:stop] = True
            parts.append(_joined((stop - start, *others), leaf.dtype, shards))
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros((0, *others), leaf.dtype)
    return has, whole


def _joined(shape: tuple[int, ...], dtype: Any, shards: dict[Any, Any]) -> np.ndarray:
    if len(shards) == 1:
        return np.asarray(next(iter(shards.values())))  # no copy on a CPU
    whole = np.empty(shape, dtype)
    for place, shard in shards.items():
        whole[(slice(None), *(slice(*part) for part in place))] = np.asarray(shard)
    return whole
