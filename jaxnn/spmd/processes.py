"""Several processes of `jax.distributed` that compute together, and how they agree.

Without arrays on devices of several processes nothing here does anything. What a function does *together* all processes
of the group must do, in the same order: there is one exchange, a record of a few bytes from each, by which an error of
one becomes an error of all.
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    return group_of_arrays(*trees) or group_on(_ambient())


def group_of_arrays(*trees: Tree) -> Group | None:
    """The processes among which the first such array is divided; None if none is."""
    if jax.process_count() == 1:
        return None
    return next((group_on(leaf.sharding.device_set) for leaf in jax.tree.leaves(trees) if not is_here(leaf)), None)


def group_on(devices: set[Any]) -> Group | None:
    """The processes of some devices; None if it is one alone."""
    first: dict[int, Any] = {}
    for device in sorted(devices, key=device_number):
        first.setdefault(device.process_index, device)
    return Group(tuple(first[number] for number in sorted(first))) if len(first) > 1 else None


def device_number(device: Any) -> int:
    """The number of a device, by which devices are in the same order in all processes."""
    return int(device.id)


def _ambient() -> set[Any]:
    """The devices of the mesh of `jax.set_mesh`, outside of programs."""
    if jax.sharding.get_abstract_mesh().empty:
        return set()
    try:
        return set(jax.sharding.get_mesh().devices.flat)
    except ValueError:  # while a program is traced
        return set()


def is_here(leaf: Any) -> bool:
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
        whole = np.asarray(replicated(NamedSharding(mesh, PartitionSpec()))(both))
    return [bytes(row) for row in whole]


def replicated(lies: NamedSharding) -> Callable[[Array], Array]:
    """A program that puts an array where a sharding says."""
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

    `NothingCountsError` is raised if all raise it. What lies within must not wait for other processes after a step that
    can fail in one alone, except by the functions here.
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


@contextmanager
def together(where: str, given: dict[str, Any], *trees: Tree) -> Iterator[None]:
    """`agreeing`, of the processes in which the trees lie, once what is `given` is the same in all."""
    group = group_of(*trees)
    with agreeing(group):
        if group is not None:
            same(group, f"{where}: {', '.join(given)}", digest_of(given), "give all the same")
        yield


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
        host = np.ascontiguousarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        digest.update(f"{host.dtype}{np.shape(leaf)}".encode())
        digest.update(host.reshape(-1).view(np.uint8).data if host.size else b"")
    return digest.digest()


def is_key(leaf: Any) -> bool:
    """True for typed PRNG keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
