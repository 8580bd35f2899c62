"""PRNG keys from users' arguments and from the names of layers, the same in every process."""

from __future__ import annotations

import zlib
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import seen
from jaxnn.types import Key


def as_key(key: Any) -> Key:
    """A PRNG key from a typed key, a raw `PRNGKey`, or an integer seed, which may be a traced scalar."""
    if isinstance(key, Integral) and not isinstance(key, bool):
        if not -(2**31) <= int(key) < 2**32:
            raise ValueError(f"an integer seed must fit in 32 bits (it would be truncated to another seed), got {key}")
        return jax.random.key(int(key))
    if isinstance(key, jax.Array):
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
            return jax.random.key(key)
        if key.dtype == jnp.uint32 and key.shape == jax.eval_shape(jax.random.PRNGKey, 0).shape:
            return jax.random.wrap_key_data(key)
    shown = f"{key.dtype} array of shape {key.shape}" if hasattr(key, "dtype") else seen(key)
    raise TypeError(f"key must be jax.random.key(seed) or an integer seed, got {shown}")


def seed_of(key: Any) -> int:
    """The integer that a key was made with, or one that its bits make; for draws in NumPy."""
    if isinstance(key, Integral) and not isinstance(key, bool):
        return int(key)
    return int.from_bytes(np.asarray(jax.random.key_data(as_key(key))).tobytes(), "little")


def name_hash(name: str) -> int:
    """A 32-bit hash of a name, the same in every process, for `jax.random.fold_in`."""
    return zlib.crc32(name.encode())


def layer_key(rng: Key | None, name: str) -> Key | None:
    """The key of the layer called name; None without a key."""
    return None if rng is None else jax.random.fold_in(as_key(rng), name_hash(name))
