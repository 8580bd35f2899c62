"""Programs that are compiled once for equal settings: one jitted function that is given a record and runs it.

A record that says what a program is made of (networks, losses, optimizers, sizes) is an argument like any other:
its Python values are static and its JAX scalars inputs, so that JAX's own cache finds the program of an equal one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxnn.records import Record


@jax.jit
def compiled(program: Callable[..., Any], *args: Any) -> Any:
    """`program(*args)`, compiled; program is a record that can be called."""
    return program(*args)


@partial(jax.jit, donate_argnums=1, keep_unused=True)
def compiled_in_place(program: Callable[..., Any], spare: Any, *args: Any) -> Any:
    """`program(*args)`, compiled, its result written into the memory of `spare`."""
    return program(*args)


class Structure(Record):
    """What a function of shapes needs of a record: everything but the numbers in its arrays; it can be hashed."""

    structure: Any
    specs: tuple[tuple[tuple[int, ...], Any], ...]

    @property
    def record(self) -> Any:
        """The record, with a jax.ShapeDtypeStruct in place of each array."""
        return jax.tree.unflatten(self.structure, [jax.ShapeDtypeStruct(*spec) for spec in self.specs])


def structure_of(record: Any) -> Structure:
    """The structure of a record."""
    leaves, structure = jax.tree.flatten(record)
    return Structure(structure, tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves))
