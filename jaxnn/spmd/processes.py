"""Several processes of `jax.distributed` that compute together: arrays that no process holds whole, and agreement.

Everything here is for arrays on devices of several processes; for all others, and in a single process, the functions
return at once what they were given. What a function does *together* all processes of the group must do, in the same
order: there is one exchange, a record of a few bytes from each, by which an error of one becomes an error of all.
N examples.
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnn.aliases import Array, Tree
from jaxnn.errors import NothingCountsError

FINE, FAILED, NOTHING = range(3)  # what a process says: NothingCountsError is an error only if all say so
DIGEST = 32  # bytes
TEXT = 8  # bytes of a length
LONGEST = 8192  # bytes of a message
AGREED = "_raised_by_all_processes"  # an attribute of an error


class Group(NamedTuple):
    """Processes that compute together: one device of each."""

    devices: tuple[Any, ...]

    @property
    def numbers(self) -> list[int]:
        """Their numbers, as of `jax.process_index`."""
        return [device.process_index for device in self.devices]

    @property
    def is_first(self) -> bool:
        """True in the one process that reports and writes files."""
        return jax.process_index() == self.devices[0].process_index


def group_of(*trees: Tree) -> Group | None:
    """The processes among which arrays are divided, or the mesh of `jax.set_mesh`; None if it is this one alone."""
    if jax.process_count() == 1:
        return None
    return group_of_arrays(*trees) or _group(_ambient())


def group_of_arrays(*trees: Tree) -> Group | None:
    """The processes among which the first such array is divided; None if none is."""
    if jax.process_count() == 1:
        return None
    return next((_group(leaf.sharding.device_set) for leaf in jax.tree.leaves(trees) if not _is_here(leaf)), None)


def _group(devices: set[Any]) -> Group | None:
    """The processes of some devices; None if it is one alone."""
    first: dict[int, Any] = {}
    for device in sorted(devices, key=_id):
        first.setdefault(device.process_index, device)
    return Group(tuple(first[number] for number in sorted(first))) if len(first) > 1 else None


def _id(device: Any) -> int:
    return int(device.id)


def _ambient() -> set[Any]:
    """The devices of the mesh of `jax.set_mesh`, outside of programs."""
    if jax.sharding.get_abstract_mesh().empty:
        return set()
    try:
        return set(jax.sharding.get_mesh().devices.flat)
    except ValueError:  # while a program is traced
        return set()


def _is_here(leaf: Any) -> bool:
    """True for whatever is not an array that lies in other processes too."""
    return not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or leaf.is_fully_addressable


def reports() -> bool:
    """True in the process that shows progress: the only one, or the first."""
    return jax.process_index() == 0


# ---------------------------------------------------------------- agreement


def exchanged(group: Group, data: bytes) -> list[bytes]:
    """The bytes that each process gives, of one length, in the order of their numbers; together."""
    mesh = Mesh(np.array(group.devices), ("processes",), axis_types=(AxisType.Auto,))
    here = next(device for device in group.devices if device.process_index == jax.process_index())
    shape = len(group.devices), len(data)
    with jax.set_mesh(mesh):
        part = jax.device_put(np.frombuffer(data, np.uint8)[None], here)
        lies = NamedSharding(mesh, PartitionSpec("processes"))
        both = jax.make_array_from_single_device_arrays(shape, lies, [part])
        whole = np.asarray(_everywhere(NamedSharding(mesh, PartitionSpec()))(both))
    return [bytes(row) for row in whole]


def _everywhere(lies: NamedSharding) -> Callable[[Array], Array]:
    return jax.jit(_same, out_shardings=lies)


def _same(x: Array) -> Array:
    return x


def texts(group: Group, text: str) -> list[str]:
    """The text of each process; together."""
    own = text.encode()
    lengths = [int.from_bytes(n, "big") for n in exchanged(group, len(own).to_bytes(TEXT, "big"))]
    room = 1 << max(max(lengths) - 1, 63).bit_length()  # few programs for all lengths
    padded = exchanged(group, own.ljust(room, b"\0"))
    return [row[:length].decode() for row, length in zip(padded, lengths, strict=True)]


@contextmanager
def agreeing(group: Group | None) -> Iterator[None]:
    """What is raised by one process is raised by all of them, in the same words; together.

    `NothingCountsError` is raised if all raise it. What lies within must not wait for other processes after a step that can
    fail in one alone, except by the functions here.
    """
    if group is None:
        yield
        return
    try:
        yield
    except Exception as error:
        if getattr(error, AGREED, False):
            raise
        _say(group, NOTHING if isinstance(error, NothingCountsError) else FAILED, error=error)
    else:
        _say(group, FINE)


def same(group: Group | None, what: str, digest: bytes, advice: str) -> None:
    """Raises ValueError in all processes if they differ in what the digest is of; together."""
    if group is None:
        return
    digests = _say(group, FINE, digest.ljust(DIGEST, b"\0")[:DIGEST])
    others = [n for n, other in zip(group.numbers, digests, strict=True) if other != digests[0]]
    if others:
        error = ValueError(
            f"{what}: process {_listed(others)} has other values than process {group.numbers[0]}: {advice}"
        )
        setattr(error, AGREED, True)
        raise error


def _say(group: Group, status: int, digest: bytes = bytes(DIGEST), error: Exception | None = None) -> list[bytes]:
    """Exchanges how far each process is; returns the digests, or raises the first error among all processes."""
    records = exchanged(group, bytes([status]) + digest)
    said = [record[0] for record in records]
    wrong = FAILED if FAILED in said else NOTHING
    if FAILED not in said and FINE in said:  # nothing counts here: it does elsewhere
        return [record[1:] for record in records]
    own = "" if error is None else json.dumps([_builtin(error), str(error)[:LONGEST]])
    told = texts(group, own)
    numbers = [n for n, state in zip(group.numbers, said, strict=True) if state == wrong]
    kind, message = json.loads(next(text for text, state in zip(told, said, strict=True) if state == wrong))
    if len(numbers) < len(said):
        message = f"{message} (in process {_listed(numbers)} of {len(said)})"
    if error is None or _builtin(error) != kind:
        error = getattr(builtins, kind)(message)
    elif str(error) != message:
        error.args = (message,)
    setattr(error, AGREED, True)
    raise error


def _builtin(error: Exception) -> str:
    """The name of the class of an error, or of the nearest one of Python's own, which takes a text alone."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    special = {"UnicodeEncodeError": "ValueError", "UnicodeDecodeError": "ValueError", "KeyError": "LookupError"}
    return special.get(names[0], names[0])


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def digest_of(tree: Tree) -> bytes:
    """A digest of all values, dtypes and shapes, of NumPy arrays and arrays of this process."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        host = np.ascontiguousarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{host.dtype}{np.shape(leaf)}".encode())
        digest.update(host.reshape(-1).view(np.uint8).data if host.size else b"")
    return digest.digest()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


# ---------------------------------------------------------------- into global arrays


def put(what: str, tree: Tree, shardings: Tree) -> Any:
    """`jax.device_put` of NumPy arrays and arrays of this process.

    On devices of several processes each puts its shards of what all hold whole; together, ValueError if it differs.
    """
    leaves, structure = jax.tree.flatten(tree)
    lies = _for_each(tree, shardings)
    far = [
        there is not None and not there.is_fully_addressable and _is_here(leaf)
        for leaf, there in zip(leaves, lies, strict=True)
    ]
    if not any(far):
        return jax.device_put(tree, shardings)
    advice = "give all the same arrays, or each its part by placement.shard(…, local=True)"
    whole = [leaf for leaf, is_far in zip(leaves, far, strict=True) if is_far]
    same(_group(lies[far.index(True)].device_set), what, digest_of(whole), advice)
    return jax.tree.unflatten(structure, [placed_whole(leaf, there) for leaf, there in zip(leaves, lies, strict=True)])


def _for_each(tree: Tree, shardings: Tree) -> list[Any]:
    """The sharding of each leaf: of a tree like it, or one for all."""
    alike: Any = jax.tree.structure(shardings), jax.tree.structure(tree)
    return jax.tree.leaves(shardings) if alike[0] == alike[1] else [shardings] * len(jax.tree.leaves(tree))


def placed_whole(leaf: Any, sharding: Any) -> Array:
    """`jax.device_put` of an array of which every process holds all values, which is not checked."""
    if sharding is None or sharding.is_fully_addressable or not _is_here(leaf):
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(placed_whole(data, sharding), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def from_parts(tree: Tree, shardings: Tree, what: str = "data") -> Any:
    """The global arrays of which the tree is this process's part, [n, …] of [N, …]; together.

    Args:
        tree: NumPy arrays, or arrays of this process, with the examples of this process first.
        shardings: a NamedSharding for each leaf, or one for all, that divides the first axis among the processes.
        what: the name of the tree in messages.

    Raises:
        ValueError: in all processes, with the sizes by process, if the parts are unequal; if a sharding does not divide
            the first axis among the processes, or not evenly.
    """
    leaves, structure = jax.tree.flatten(tree)
    lies = _for_each(tree, shardings)
    group = _group(lies[0].device_set) if lies else None
    with agreeing(group):
        parts = [np.asarray(leaf) for leaf in leaves]
        for part in parts:
            if not part.ndim:
                raise ValueError(f"{what}: an array without axes has no parts: the first axis counts examples")
    if group is not None:
        _check_parts(group, what, parts)
    whole = []
    for part, there in zip(parts, lies, strict=True):
        n = len(part) * (len(group.devices) if group is not None else 1)
        if group is not None and not (len(there.spec) and there.spec[0] is not None):
            raise ValueError(f"{what}: a part of each process needs a sharding of the first axis, got {there.spec}")
        rows = {
            index[0].indices(n)[:2] for index in there.addressable_devices_indices_map((n, *part.shape[1:])).values()
        }
        if group is not None and sum(stop - start for start, stop in rows) != len(part):
            raise ValueError(
                f"{what}: {there.spec} of {there.mesh} does not give each process the same share of {n} examples"
            )
        whole.append(jax.make_array_from_process_local_data(there, part, (n, *part.shape[1:])))
    return jax.tree.unflatten(structure, whole)


def _check_parts(group: Group, what: str, parts: list[np.ndarray]) -> None:
    """Raises ValueError in all processes unless their parts are alike."""
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
        if _is_here(leaf) or leaf.is_fully_replicated:
            return leaf
        lies = leaf.sharding
        mesh = (
            lies.mesh if isinstance(lies, NamedSharding) else Mesh(np.array(sorted(lies.device_set, key=_id)), ("all",))
        )
        with jax.set_mesh(cast(Mesh, mesh)):
            return _everywhere(NamedSharding(mesh, PartitionSpec()))(leaf)

    return jax.tree.map(one, tree)


def gathered(tree: Tree, group: Group | None) -> Any:
    """The tree with arrays that are divided among processes as NumPy arrays in the first of these, None in the others.

    One array after another: the whole tree may be larger than a device. Together.
    """

    def one(leaf: Any) -> Any:
        if group is None or _is_here(leaf) or leaf.is_fully_replicated:
            return leaf
        whole = everywhere(leaf)
        return np.asarray(whole) if group.is_first else None

    return jax.tree.map(one, tree)


def host(leaf: Any) -> np.ndarray:
    """An array as NumPy's; together, where it is divided among processes."""
    return np.asarray(everywhere(leaf))


def copied(leaf: Array) -> Array:
    """A copy in other memory, of an array in other processes as well."""
    if _is_here(leaf):
        return jax.device_put(leaf, may_alias=False)
    shards = [jax.device_put(shard.data, may_alias=False) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


def local_rows(data: Tree) -> Any:
    """The rows [n, …] of global arrays [N, …] that this process holds of all of them, as NumPy arrays.

    Without arrays in other processes the data themselves.
    """
    leaves, structure = jax.tree.flatten(data)
    if jax.process_count() == 1 or all(map(_is_here, leaves)):
        return data
    found = [_rows_here(leaf) for leaf in leaves]
    shared = np.stack([has for has, _ in found]).all(0)
    chosen = [part if (has == shared).all() else part[shared[has]] for has, part in found]
    return jax.tree.unflatten(structure, chosen)


def _rows_here(leaf: Array) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are here, bool [N], and these."""
    if _is_here(leaf):
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
