"""Arrays in float64 NumPy, whatever JAX's x64 mode is, and their sizes."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

ROUNDOFF = 2.0**-53  # of float64
ASIDE = 1e-6  # relative: far enough from a kink, and still the same point


def as_float64(x: ArrayLike) -> np.ndarray:
    """A NumPy array in float64."""
    return np.asarray(x).astype(np.float64)


def sizes(x: np.ndarray) -> np.ndarray:
    """The size of a step of 1 at each element: |xᵢ|, or the leaf's root mean square if that is larger; 1 for zeros."""
    return np.asarray(np.maximum(np.abs(x), rms(x) or 1.0))


def rms(x: np.ndarray) -> float:
    """√ mean(x²), with NaN and infinities taken as 0."""
    x = finite(x)
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def finite(x: np.ndarray) -> np.ndarray:
    """The array with 0 in place of NaN and infinities."""
    return np.where(np.isfinite(x), x, 0)
