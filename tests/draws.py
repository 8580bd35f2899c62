"""Parameters and arrays drawn by NumPy: jax.random and init would compile a program for every shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0, dtype: Any = "float32") -> np.ndarray:
    """Numbers of mean 0 and standard deviation 1."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def drawn(net: Any, in_shape: Any, dtype: Any = "float32", seed: int = 0) -> tuple[Any, Any]:
    """(params, state) like those of init, but in NumPy: every parameter by chance, a state of positive numbers."""
    draw = np.random.default_rng(seed).normal
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), in_shape, jnp.dtype(dtype)))
    params = jax.tree.map(lambda p: (0.5 * draw(size=p.shape)).astype(p.dtype), params)
    return params, jax.tree.map(
        lambda s: (0.7 + 0.3 * np.arange(1, s.size + 1)).reshape(s.shape).astype(s.dtype), state
    )
