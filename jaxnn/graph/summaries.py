"""Summaries of arrays: a single number as it is, several by shape, range, norm and the count of non-finite entries."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DIGITS = 7  # at most, of a number from 1 on: float32 has no more
DECIMALS = 4  # at most, from 1 on; below 1, significant digits
SMALLEST, LARGEST = 1e-4, 1e7  # outside, scientific notation


class Summary(NamedTuple):
    """An array in a few numbers."""

    shape: tuple[int, ...]  # of the array
    dtype: str  # its name, "float32"
    number: Any = None  # the number itself for shape (); else None
    low: float = math.nan  # the smallest finite entry; NaN if there is none
    high: float = math.nan  # the largest finite entry
    norm: float = math.nan  # √Σx² of the finite entries
    nans: int = 0  # the number of NaNs
    infinite: int = 0  # the number of infinite entries
    # whether there are numbers to summarise: False for random keys, for float0 and under a transformation
    known: bool = True

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def nonfinite(self) -> int:
        """The number of entries that are NaN or infinite."""
        return self.nans + self.infinite


def summary(value: Any) -> Summary:
    """The summary of an array of any dtype; for a complex one low and high are those of |z|.

    >>> s = summary(np.array([[3.0, -4.0], [np.nan, 0.0]]))
    >>> s.shape, s.dtype, s.number, s.low, s.high, s.norm, s.nonfinite
    ((2, 2), 'float64', None, -4.0, 3.0, 5.0, 1)
    >>> summary(np.float32(2)).number
    2.0
    """
    shape, dtype = tuple(np.shape(value)), str(jnp.result_type(value)) if _plain(value) else str(value.dtype)
    entries = _entries(value)
    if entries is None:
        return Summary(shape, "float0" if "float0" in dtype else dtype, known=False)
    number = np.asarray(value).item() if shape == () else None
    if not np.issubdtype(entries.dtype, np.inexact):  # integers and booleans are always finite
        low, high = (float(entries.min()), float(entries.max())) if entries.size else (math.nan, math.nan)
        return Summary(shape, dtype, number, low, high, _norm(entries.astype(np.float64)))
    finite = entries[np.isfinite(entries)]
    sizes = np.abs(finite) if np.iscomplexobj(finite) else finite
    low, high = (float(sizes.min()), float(sizes.max())) if finite.size else (math.nan, math.nan)
    nans = int(np.isnan(entries).sum())
    return Summary(shape, dtype, number, low, high, _norm(np.abs(finite)), nans, entries.size - finite.size - nans)


def histogram(value: Any, bins: int) -> list[int]:
    """The number of finite entries in each of `bins` equal parts of their range; [] for an empty range.

    >>> histogram(np.array([0.0, 0.1, 0.9, 1.0, np.inf]), 2)
    [2, 2]
    """
    entries = _entries(value)
    if entries is None:
        return []
    sizes = np.abs(entries) if np.iscomplexobj(entries) else entries.astype(np.float64)
    finite = sizes[np.isfinite(sizes)]
    if finite.size == 0:
        return []
    low, high = finite.min() / 2, finite.max() / 2  # halved: the full range may overflow
    if low == high:
        return []
    place = np.clip((finite / 2 - low) / (high - low) * bins, 0, bins - 1).astype(np.int64)
    return [int(count) for count in np.bincount(place, minlength=bins)]


def number(x: Any) -> str:
    """A number as short decimal text.

    >>> [number(x) for x in (6.0, 24.70408, -0.119203, 325509.58, 1.3e-9, 7, True, float("nan"), float("-inf"))]
    ['6', '24.7041', '-0.1192', '325509.6', '1.3e-09', '7', 'True', 'nan', '-inf']
    """
    x = x.item() if hasattr(x, "item") else x
    if isinstance(x, (bool, int)):
        return str(x)
    if isinstance(x, complex):
        return f"{number(x.real)}{'' if math.copysign(1, x.imag) < 0 else '+'}{number(x.imag)}i"
    size = abs(float(x))
    if not math.isfinite(size) or size == 0:
        return str(abs(x) if size == 0 else x).removesuffix(".0")
    if not SMALLEST <= size < LARGEST:
        return f"{x:.{DECIMALS}g}"
    decimals = min(DECIMALS, DIGITS - 1 - math.floor(math.log10(size))) if size >= 1 else DECIMALS
    text = f"{x:.{decimals}f}" if size >= 1 else np.format_float_positional(x, DECIMALS, fractional=False)
    return text.rstrip("0").rstrip(".") if "." in text else text


def digits(x: float) -> str:
    """Three significant digits."""
    return number(float(f"{x:.3g}"))


def _plain(value: Any) -> bool:
    """True for Python's own numbers."""
    return not hasattr(value, "dtype")


def _entries(value: Any) -> Any:
    """The flattened entries, in a precision that NumPy computes in; None if there are no numbers."""
    if isinstance(value, jax.core.Tracer):
        return None
    if not _plain(value) and (value.dtype == jax.dtypes.float0 or jnp.issubdtype(value.dtype, jax.dtypes.prng_key)):
        return None
    array = np.asarray(value).ravel()
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 8:
        return array.astype(np.float64)  # norms in float16 overflow, and bfloat16 has no NumPy ufuncs
    return array


def _norm(sizes: Any) -> float:
    """√Σx² without intermediate overflow."""
    largest = float(np.abs(sizes).max()) if sizes.size else 0.0
    return largest * float(np.sqrt(np.square(sizes / largest).sum())) if largest else 0.0
