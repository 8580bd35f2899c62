"""Shared checks of values and data.

A message says what is wrong and where, what was expected, what was given, and what to do. Values of data are checked
only on the host, where data enters.
"""

from __future__ import annotations

import inspect
import math
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import first_of
from jaxnn.errors import NothingCountsError
from jaxnn.records import is_array
from jaxnn.showing import is_deleted
from jaxnn.trees import describe, path_name
from jaxnn.types import Tree

LONGEST = 120  # characters of a value in a message


def seen(value: object) -> str:
    """A value in a message: an array by dtype and shape, anything else by its `repr`, truncated."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and (is_deleted(value) or value.shape):
        return f"{'a deleted' if is_deleted(value) else 'an'} array {describe(value)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"the {'class' if inspect.isclass(value) else 'function'} {value.__qualname__}"
    noun = getattr(value, "noun", None)
    text = f"the {noun} {value!r}" if isinstance(noun, str) and noun else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def yes_or_no(what: str, value: object) -> bool:
    """The value as a bool; TypeError unless it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} must be True or False, got {seen(value)}")
    return bool(value)


def whole_number(what: str, value: object, *, least: int) -> int:
    """The value as an int; an error unless it is a whole number ≥ least."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be a whole number, got {seen(value)}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value!r}")
    return int(value)


def number(
    what: str,
    value: Any,
    *,
    least: float = -math.inf,
    below: float = math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> Any:
    """The value as a float; an error unless it is finite, `least ≤ value < below` and `above < value ≤ most`.

    A JAX scalar remains one, an input of the program; a traced one becomes NaN outside these limits.
    """
    scalar = is_array(value) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    if isinstance(value, bool) or not (isinstance(value, Real) or scalar):
        raise TypeError(f"{what} must be a number, got {seen(value)}")
    if isinstance(value, jax.ShapeDtypeStruct):
        return value
    if isinstance(value, jax.core.Tracer):
        fits = (value >= least) & (value < below) & (value > above) & (value <= most) & jnp.isfinite(value)
        return jnp.where(fits, value, jnp.nan)
    number = float(value)
    if not (math.isfinite(number) and least <= number < below and above < number <= most):
        lower = f"above {above:g}" if above > -math.inf else f"at least {least:g}"
        upper = f"below {below:g}" if below < math.inf else f"at most {most:g}"
        limits = [text for text in (lower, upper) if "inf" not in text]
        raise ValueError(f"{what} must be {' and '.join(limits) or 'finite'}, got {value!r}")
    return value if scalar else number


def plain_data(where: str, tree: Tree, *, numbers: bool = True) -> None:
    """Raises an error for data that cannot be converted to arrays of numbers without loss.

    These are masked values of `np.ma` and, with `numbers`, objects, strings, dates, records and sparse matrices.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda part: hasattr(part, "todense")):
        if not isinstance(leaf, jax.Array):
            _plain_array(path_name(path, below=where), leaf, numbers)


def _plain_array(where: str, leaf: object, numbers: bool) -> None:
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
        raise ValueError(
            f"{where} has a mask that hides {np.ma.count_masked(leaf)} of {leaf.size} values, and hidden values would "
            "count: exclude examples by weights of 0, or replace the values with .filled(value)"
        )
    if not numbers:
        return
    if hasattr(leaf, "todense"):
        raise TypeError(f"{where} is a sparse matrix ({type(leaf).__name__}): use np.asarray(x.todense())")
    dtype = getattr(leaf, "dtype", None)
    kind: Any = getattr(dtype, "kind", None)
    names = getattr(dtype, "names", None)
    if kind in UNUSABLE or names:
        what = f"records with the fields {list(names)}" if names else f"{UNUSABLE[kind]} ({dtype})"
        if kind == "O":
            entries = list(np.asarray(leaf).flat)
            strange = [entry for entry in entries if not isinstance(entry, Real)] or entries
            what = f"Python objects ({type(strange[0]).__name__})" if entries else "Python objects"
        raise TypeError(f"{where} contains {what} instead of real numbers: {ADVICE.get(kind, ADVICE['V'])}")


UNUSABLE = {"O": "Python objects", "U": "strings", "S": "strings", "M": "dates", "m": "time spans"}  # by dtype.kind
ADVICE = {
    "O": "use .astype('float32') after making all rows equally long and all entries numbers",
    "U": "use whole numbers, np.unique(values, return_inverse=True)[1]",
    "S": "use whole numbers, np.unique(values, return_inverse=True)[1]",
    "M": "use the time since the first date, (values - values.min()) / np.timedelta64(1, 'D')",
    "m": "divide by a unit of time, values / np.timedelta64(1, 'D')",
    "V": "use one array per field, values['name']",
}


def finite_values(where: str, values: np.ndarray, advice: str) -> None:
    """Raises ValueError with the number and first index of values that are not finite."""
    _none_of(where, values, ~np.isfinite(values), "not finite", advice)


def _none_of(where: str, values: np.ndarray, wrong: np.ndarray, what: str, advice: str) -> None:
    if wrong.any():
        first = first_of(wrong)
        raise ValueError(
            f"{where}: {np.count_nonzero(wrong)} of {values.size} values are {what}, the first at index {first}: "
            f"{values[first]}. {advice}"
        )


def example_weights(where: str, weights: object, n: int) -> None:
    """Raises an error unless weights have shape [N] or [N, …] and a real dtype; values are not checked."""
    if not hasattr(weights, "shape") or not hasattr(weights, "dtype"):
        raise TypeError(f"{where} must be an array [N], got {type(weights).__name__}: use np.asarray")
    if weights.shape[:1] != (n,):
        raise ValueError(
            f"{where} must have shape ({n},), one for each example, or ({n}, …), one for each of its entries, got "
            f"{weights.shape}"
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise ValueError(f"{where} must be real numbers, got {weights.dtype}")


def weight_values(where: str, weights: object, *, some: bool = True) -> None:
    """Raises ValueError if a concrete weight is negative or not finite, or, with `some`, if none is above 0."""
    values = np.asarray(weights)
    values = (
        values if values.dtype.kind in "iub" else values.astype(np.float64)
    )  # NumPy lacks some tests of half precisions
    advice = "Weights must be 0 or above; 0 excludes an example"
    finite_values(where, values, advice)
    _none_of(where, values, values < 0, "negative", advice)
    if some and not values.any():
        raise NothingCountsError(f"{where} are all zero, so that no mean exists: omit the weights, or the batch")
