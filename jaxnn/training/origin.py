"""The programs of a sweep and their inputs, by which members are trained and their steps repeated.

Where every device of a mesh has all of the data, the K members are divided among the devices, and each runs the program
for its own: no device asks another one. Letters: M members, K of them at a time, on all devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.spmd.batches import beside
from jaxnn.training.members import Members, Progress
from jaxnn.training.monitoring import copied
from jaxnn.types import Array, Key, Tree

COPIES = 3  # of a state while a step computes the next: the old one, the new one, gradients


class Origin(NamedTuple):
    """The program and the inputs of a sweep, by which members are trained and their steps repeated."""

    members: Members
    numbers: dict[str, Array]  # [M] each
    keys: Key  # [M]
    data: Any
    validation: Any
    order: Key
    epochs: int
    remembered: dict[tuple[int, int], Progress]  # by the first of the members and the epoch
    at_once: int  # K
    programs: Any = None  # compiled where the sweep was called: other threads have no contexts

    def compiled(self) -> tuple[Any, Any]:
        """The two programs for K members."""
        numbers, keys = self.group((self.numbers, self.keys), 0)
        first = (numbers, keys, self.data, self.validation, self.order)
        progress = jax.eval_shape(_begin, self.members, *first)
        rest = (numbers, self.data, self.validation, self.order, np.int32(0))
        begin = _begin.lower(self.members, *first).compile()
        if self.members.mesh is not None:  # the next program takes what this one gives, where it lies
            progress = jax.tree.map(_lying, progress, begin.output_shardings)
        return begin, _advance.lower(self.members, progress, *rest).compile()

    def group(self, tree: Any, first: int) -> Any:
        """K members from the first one on; the last one repeated where there are fewer."""
        at, mesh = np.minimum(np.arange(first, first + self.at_once), len(self.keys) - 1), self.members.mesh
        return _rows(tree, at) if mesh is None else jax.device_put(_rows(tree, at), NamedSharding(mesh, _each(mesh)))

    def member(self, tree: Any, row: int) -> Any:
        """A member of a group, that in the given row, beside the data."""
        if self.members.mesh is None:
            return jax.tree.map(lambda leaf: leaf[row], tree)
        one = jax.tree.map(lambda leaf: leaf[0], joined(tree, first=row, last=row + 1))
        return beside(one, self.data)

    def begin(self, first: int) -> Progress:
        """The members before their first steps."""
        numbers, keys = self.group((self.numbers, self.keys), first)
        return copied(self.programs[0](self.members, numbers, keys, self.data, self.validation, self.order))

    def advance(self, first: int, progress: Progress, steps: int | None = None) -> tuple[Progress, Any, Array]:
        """The rest of an epoch, or a number of steps of it; `progress` is donated."""
        numbers, count = self.group(self.numbers, first), np.int32(2**31 - 1 if steps is None else steps)
        return self.programs[1](self.members, progress, numbers, self.data, self.validation, self.order, count)

    def at_most(self, memory: float) -> int:
        """The number of members that fit into that many bytes, by an estimate; at least one."""
        one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[:1], tree), (self.numbers, self.keys))
        spec = jax.eval_shape(self.members.begin, *one, self.data, self.validation, self.order)
        numbers, keys = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), one)
        kept = jax.eval_shape(self.members.working, numbers, keys, self.data, self.validation, self.order)
        state, monitors, *_ = spec
        working = max(2 * _bytes(kept[0]), _bytes(kept[1]))  # values and δs of a step; values of an evaluation
        each = COPIES * _bytes(state) + working + _bytes(monitors) + _bytes(spec.noted)
        return max(1, int(memory // each))


def _begin_members(members: Members, *args: Any) -> Progress:
    mesh = members.mesh
    if mesh is None:
        return members.begin(*args)
    each = _each(mesh)
    return _on_each(members.begin, mesh, (each, each, P(), P(), P()), _progress(each))(*args)


def _advance_members(members: Members, *args: Any) -> tuple[Progress, Any, Array]:
    mesh = members.mesh
    if mesh is None:
        return members(*args)
    each = _each(mesh)
    specs = (_progress(each), each, P(), P(), P(), P())
    return _on_each(members, mesh, specs, (_progress(each), each, each))(*args)


def _on_each(f: Callable[..., Any], mesh: Any, given: Any, gives: Any) -> Callable[..., Any]:
    """The function on every device, each with its own members."""
    # the devices share data and count, and nothing is summed over them: there is nothing to check
    return jax.shard_map(f, mesh=mesh, in_specs=given, out_specs=gives, check_vma=False)


def _each(mesh: Any) -> P:
    """Members divided along all axes of the mesh."""
    return P(mesh.axis_names)


def _progress(each: P) -> Any:
    specs: Any = (each, each, each, P(), P(), each)
    return Progress(*specs)


def _lying(spec: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)


def joined(*parts: Tree, first: int = 0, last: int | None = None) -> Any:
    """Members first … last of the groups in turn, put together on the host; on the device of the parts, if it is one.

    A program of many groups would compile for long.
    """

    def one(*parts: Any) -> Array:
        if is_key := jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key):
            impl, parts = jax.random.key_impl(parts[0]), tuple(map(jax.random.key_data, parts))
        whole = np.concatenate([np.asarray(part) for part in parts])[first:last]
        home = parts[0].sharding if getattr(parts[0], "is_fully_replicated", False) else None
        whole = jax.device_put(whole, home)
        return jax.random.wrap_key_data(whole, impl=impl) if is_key else whole

    return jax.tree.map(one, *parts)


_begin = jax.jit(_begin_members)
_advance = jax.jit(_advance_members, donate_argnums=1)


@jax.jit
def _rows(tree: Any, at: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[at], tree)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 4) for leaf in jax.tree.leaves(tree))
