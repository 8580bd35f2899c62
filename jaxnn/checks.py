"""The shared checks and their wording.

A message says what, where, what was expected, what came, and what to do. Checks of values run only where data enters on
the host.
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
from jaxnn.records import is_array
from jaxnn.trees import describe, path_name
from jaxnn.types import Tree

LONGEST = 120  # characters of a value in a message


def seen(value: Any) -> str:
    """A value in a message: an array by dtype and shape, anything else as Python writes it, cut where it is long."""
    deleted = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted()
    if hasattr(value, "shape") and hasattr(value, "dtype") and (deleted or value.shape):
        return f"{'a deleted' if deleted else 'an'} array {describe(value)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"the {'class' if inspect.isclass(value) else 'function'} {value.__qualname__}"
    noun = getattr(value, "noun", None)
    text = f"the {noun} {value!r}" if isinstance(noun, str) and noun else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def yes_or_no(what: str, value: Any) -> bool:
    """Returns value if it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} must be True or False, got {seen(value)}")
    return bool(value)


def whole_number(what: str, value: Any, *, least: int) -> int:
    """Returns value as an int if it is a whole number ≥ least."""
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
    """Returns value as a float if it is finite, `least ≤ value < below` and `above < value ≤ most`.

    A JAX scalar stays one, an input of a program; where it is traced, it is NaN outside of these limits.
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
    """Raises an error for what a conversion to arrays of numbers would drop silently, or fails at.

    That is what a mask of `np.ma` hides and, unless other things than numbers will do, what no device holds: objects,
    strings, dates, records, sparse matrices.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda part: hasattr(part, "todense")):
        if not isinstance(leaf, jax.Array):
            _plain_array("/".join(filter(None, (where, path_name(path)))), leaf, numbers)


def _plain_array(where: str, leaf: Any, numbers: bool) -> None:
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
        raise ValueError(
            f"{where} has a mask that hides {np.ma.count_masked(leaf)} of {leaf.size} values, and what is hidden would "
            "count: leave examples out by weights of 0, or put numbers there with .filled(value)"
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
        raise TypeError(f"{where} holds {what}, and real numbers are needed: {ADVICE.get(kind, ADVICE['V'])}")


UNUSABLE = {"O": "Python objects", "U": "strings", "S": "strings", "M": "dates", "m": "time spans"}  # by dtype.kind


ADVICE = {
    "O": "use .astype('float32') once every row has the same length and every entry is a number",
    "U": "use whole numbers, np.unique(values, return_inverse=True)[1]",
    "S": "use whole numbers, np.unique(values, return_inverse=True)[1]",
    "M": "use the time since a first one, (values - values.min()) / np.timedelta64(1, 'D')",
    "m": "divide by a unit, values / np.timedelta64(1, 'D')",
    "V": "use one array for each field, values['name']",
}


def finite_values(where: str, values: np.ndarray, advice: str) -> None:
    """Raises ValueError with the count and first place of values that are not finite."""
    _none_of(where, values, ~np.isfinite(values), "not finite", advice)


def _none_of(where: str, values: np.ndarray, wrong: np.ndarray, what: str, advice: str) -> None:
    if wrong.any():
        first = first_of(wrong)
        raise ValueError(
            f"{where}: {np.count_nonzero(wrong)} of {values.size} values are {what}, the first at index {first}: "
            f"{values[first]}. {advice}"
        )


def example_weights(where: str, weights: Any, n: int) -> None:
    """Raises an error unless weights are [N] or [N, …], whatever they hold."""
    if not hasattr(weights, "shape") or not hasattr(weights, "dtype"):
        raise TypeError(f"{where} must be an array [N], got {type(weights).__name__}: use np.asarray")
    if weights.shape[:1] != (n,):
        raise ValueError(
            f"{where} must have shape ({n},), one for each example, or ({n}, …), one for each entry of it, got "
            f"{weights.shape}"
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise ValueError(f"{where} must be real numbers, got {weights.dtype}")


def weight_values(where: str, weights: Any) -> None:
    """Raises ValueError if a concrete weight is negative or not finite, or if none is above 0."""
    values = np.asarray(weights)
    values = values if values.dtype.kind in "iub" else values.astype(np.float64)  # half precisions lack some tests
    advice = "Give numbers of 0 and above; 0 leaves an example out"
    finite_values(where, values, advice)
    _none_of(where, values, values < 0, "negative", advice)
    if not values.any():
        raise ValueError(
            f"{where} are all zero, which leaves nothing to take a mean of: leave weights out, or the batch"
        )
