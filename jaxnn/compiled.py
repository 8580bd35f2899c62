"""Programs that are compiled once for equal settings, as jitted functions of a record.

The record contains what defines the program (networks, losses, optimizers, sizes). Its Python values are static and
its JAX scalars inputs, so that JAX's own cache finds the program of an equal record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxnn.records import Record, holds_arrays


def program(name: str, *, in_place: bool = False) -> Callable[..., Any]:
    """A jitted function `(record, *args) -> record(*args)` with this name in profiles.

    With `in_place` its arguments are `(record, spare, *args)`, and the result overwrites the memory of `spare`.
    """

    def run(record: Callable[..., Any], *args: object) -> Any:
        return record(*args[in_place:])

    run.__name__ = run.__qualname__ = name
    return jax.jit(run, donate_argnums=1, keep_unused=True) if in_place else jax.jit(run)


class Structure(Record):
    """A record without the values of its arrays, hashable."""

    structure: Any
    specs: tuple[tuple[tuple[int, ...], Any], ...]

    @property
    def record(self) -> Any:
        """The record, with a jax.ShapeDtypeStruct for each array."""
        return jax.tree.unflatten(self.structure, [jax.ShapeDtypeStruct(*spec) for spec in self.specs])


def structure_of(record: object) -> Structure:
    """The structure of a record."""
    leaves, structure = jax.tree.flatten(record)
    return Structure(structure, tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves))


class PureFunction(Record):
    """A record that is called, and may be given to `jax.jit`, which hashes it: by its structure if it has arrays."""

    def __hash__(self) -> int:
        return hash(structure_of(self)) if holds_arrays(self) else super().__hash__()
