"""Helpers for arrays: dtypes of sums and settings, missing axes, symbolic sizes and traced values.

Missing axes are explicit, so that all code also works with `jax_numpy_rank_promotion="raise"`.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.records import is_array
from jaxnn.types import Array, DType, Outline, Tree


def is_floating(x: Array | np.ndarray | jax.ShapeDtypeStruct | Outline) -> bool:
    """True for a float array, of any precision."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def accumulator(dtype: DType) -> DType:
    """The dtype of sums over many values: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")


def widest(*dtypes: DType, default: DType | None = None) -> DType:
    """The dtype of highest precision; JAX's promotion raises an error for mixed dtypes in its strict mode.

    >>> widest(jnp.dtype("bfloat16"), jnp.dtype("float32"))
    dtype('float32')
    """
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits) if dtypes else default


def in_dtype(setting: Any, dtype: DType) -> Any:
    """A setting for arithmetic with arrays of this dtype: a Python number unchanged, a JAX scalar cast."""
    return setting.astype(dtype) if is_array(setting) else setting


def poisoned(value: Any, *settings: Any) -> Any:
    """The value, or NaN if a setting is NaN, as `checks.number` makes a traced setting outside its limits."""
    for setting in settings:
        if is_array(setting):
            value = jnp.where(jnp.isnan(setting), jnp.nan, value)
    return value


def with_rank(v: Any, rank: int) -> Any:
    """Prepends axes of size 1 up to `rank`: the bias [H] of z [N, T, H] becomes [1, 1, H]."""
    return v.reshape((1,) * (rank - v.ndim) + v.shape)


def is_symbolic(size: object) -> bool:
    """True for a size that is unknown when the program is traced (`jax.export`): it is compared with no number."""
    return not isinstance(size, Integral)


def is_concrete(x: object) -> bool:
    """True for an array whose values may be checked: not a tracer, and not under `jax_disable_jit`."""
    return not isinstance(x, jax.core.Tracer) and not jax.config.jax_disable_jit


def outline(tree: Tree) -> Tree:
    """The tree with an Outline for each array."""
    return jax.tree.map(lambda leaf: Outline(leaf.shape, leaf.dtype), tree)


def first_of(wrong: np.ndarray) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
