"""Arrays beside one another: dtypes of sums and of settings, missing axes, sizes and values that may be unknown.

With `jax_numpy_rank_promotion="raise"`, as careful programs set it, every layer, loss and training step works: missing
axes are written, and never left to promotion.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.records import is_array
from jaxnn.types import DType, Outline, Tree


def is_floating(x: Any) -> bool:
    """True for a float array, of any precision."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def accumulator(dtype: DType) -> DType:
    """The dtype in which sums over many values are taken: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")


def widest(*dtypes: DType, default: DType | None = None) -> DType:
    """The highest precision of several; JAX's own promotion refuses to mix them in its strict mode.

    >>> widest(jnp.dtype("bfloat16"), jnp.dtype("float32"))
    dtype('float32')
    """
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits) if dtypes else default


def in_dtype(setting: Any, dtype: DType) -> Any:
    """A setting beside arrays of this dtype: a Python number as it is, a JAX scalar cast."""
    return setting.astype(dtype) if is_array(setting) else setting


def poisoned(value: Any, *settings: Any) -> Any:
    """The value; NaN where a setting is, which `number` has made of a traced one that cannot be right."""
    for setting in settings:
        if is_array(setting):
            value = jnp.where(jnp.isnan(setting), jnp.nan, value)
    return value


def with_rank(v: Any, rank: int) -> Any:
    """Gives v axes of size 1 in front until it has `rank` of them: a bias [H] beside z [N, T, H] is [1, 1, H]."""
    return v.reshape((1,) * (rank - v.ndim) + v.shape)


def is_symbolic(size: Any) -> bool:
    """True for a size that is not known when the program is made (`jax.export`): it is compared with no number."""
    return not isinstance(size, Integral)


def is_concrete(x: Any) -> bool:
    """True for an array whose values can be looked at. Without jit those inside a scan can be, and are not meant."""
    return not isinstance(x, jax.core.Tracer) and not jax.config.jax_disable_jit


def outline(tree: Tree) -> Tree:
    """The tree with an Outline in place of each array."""
    return jax.tree.map(lambda leaf: Outline(leaf.shape, leaf.dtype), tree)


def first_of(wrong: np.ndarray) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
