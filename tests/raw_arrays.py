"""Arrays as NumPy has them, PRNG keys by their numbers, and their bytes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def raw(leaf: Any) -> np.ndarray:
    """An array, or a number, in NumPy."""
    is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def bits(tree: Any) -> list[bytes]:
    """The bytes of each array of a tree."""
    return [raw(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
