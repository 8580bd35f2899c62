"""The programs of a sweep and their inputs, by which members are trained and their steps repeated.

Letters: M members, K of them at a time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.training.members import Members, Progress
from jaxnn.training.monitoring import copied
from jaxnn.types import Array, Key

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
        progress = jax.eval_shape(self.members.begin, *first)
        rest = (numbers, self.data, self.validation, self.order, np.int32(0))
        begin, advance = _begin.lower(self.members, *first), _advance.lower(self.members, progress, *rest)
        return begin.compile(), advance.compile()

    def group(self, tree: Any, first: int) -> Any:
        """K members from the first one on; the last one repeated where there are fewer."""
        at = np.minimum(np.arange(first, first + self.at_once), len(self.keys) - 1)
        return _rows(tree, at)

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
    return members.begin(*args)


def _advance_members(members: Members, *args: Any) -> tuple[Progress, Any, Array]:
    return members(*args)


_begin = jax.jit(_begin_members)
_advance = jax.jit(_advance_members, donate_argnums=1)


@jax.jit
def _rows(tree: Any, at: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[at], tree)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 4) for leaf in jax.tree.leaves(tree))
