"""Arrays of float64 in NumPy, which knows no x64 mode, and their sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

ASIDE = 1e-6  # relative: off a kink, still the same place


def as_float64(x: Any) -> np.ndarray:
    """In NumPy, which knows no x64 mode."""
    return np.asarray(x).astype(np.float64)


def scales(x: np.ndarray) -> np.ndarray:
    """The size of a step of 1 at each element: its own, or the leaf's where that is larger; 1 for zeros."""
    return np.asarray(np.maximum(np.abs(x), rms(x) or 1.0))


def rms(x: np.ndarray) -> float:
    """√ mean(x²), of the finite elements."""
    x = finite(x)
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def finite(x: np.ndarray) -> np.ndarray:
    """The array x with 0 in the place of NaN and infinities."""
    return np.where(np.isfinite(x), x, 0)
