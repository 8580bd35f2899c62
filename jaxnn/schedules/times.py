"""Arithmetic of schedules: whole steps, and rates that are exact at the ends.

Letters: t step. A setting given as a JAX scalar may be differentiated with respect to. For it `where` is used, because
minimum and clip halve the derivative where two numbers are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp

from jaxnn.arrays import in_dtype, poisoned
from jaxnn.records import is_array
from jaxnn.types import Array


def as_rate(value: Array | float | Sequence[float]) -> Array:
    """An array in the dtype of rates."""
    return jnp.asarray(value, jnp.result_type(float))


def as_rates(*settings: Array | float) -> list[Any]:
    """Python numbers as they are, JAX scalars in the dtype of rates."""
    return [in_dtype(setting, jnp.result_type(float)) for setting in settings]


def choice(which: Array | bool, first: Callable[[], Array], second: Callable[[], Array]) -> Array:
    """The first if `which` is true, else the second; both are computed if `which` is traced."""
    if is_array(which):
        return jnp.where(which, first(), second())
    return first() if which else second()


def as_time(step: Array | int) -> Array:
    """The step as an array, integers in at least 32 bits; a Python integer beyond the largest becomes the largest."""
    if isinstance(step, Integral):
        step = min(int(step), jnp.iinfo(jnp.result_type(int)).max)
    step = jnp.asarray(step)
    return step.astype(jnp.int32) if step.dtype.itemsize < 4 and not _is_float(step) else step


def _is_float(step: Array) -> bool:
    return jnp.issubdtype(step.dtype, jnp.floating)


def reaches(step: Array, boundary: int) -> bool:
    """Whether steps of this dtype can reach the boundary."""
    return _is_float(step) or boundary <= jnp.iinfo(step.dtype).max


def past(step: Array, boundary: int) -> Array:
    """Where step ≥ boundary."""
    return step >= boundary if reaches(step, boundary) else jnp.zeros_like(step, bool)


def since(step: Array, boundary: int) -> Array:
    """Steps since the boundary, 0 before it: no schedule is called with a negative step."""
    return jnp.maximum(step, boundary) - boundary if reaches(step, boundary) else jnp.zeros_like(step)


def left_of(step: Array, steps: int) -> Array:
    """The fraction of the steps that remains, from 1 to 0; the subtraction is of integers, hence exact."""
    if not reaches(step, steps):
        return (float(steps) - jnp.maximum(as_rate(step), 0)) / float(steps)
    return as_rate(steps - jnp.clip(step, 0, steps)) / float(steps)


def gone_of(step: Array, steps: int) -> Array:
    """The fraction of the steps that has passed, from 0 to 1."""
    return as_rate(jnp.clip(step, 0, steps) if reaches(step, steps) else jnp.maximum(step, 0)) / float(steps)


def between(
    step: Array, steps: int, initial: Array | float, final: Array | float, up: Array, *, traced: bool | None = None
) -> Array:
    """The rate: `initial` at 0, `final` from `steps` on, between them the fraction `up` from lower to higher.

    A rounded sum, which a compiler may also contract or reorder, can miss an end by a unit in the last place; so the
    ends are selected, not computed. Measured from the lower end, nothing cancels.
    """
    traced = is_array(initial) or is_array(final) if traced is None else traced
    initial, final = as_rate(initial), as_rate(final)
    if traced:  # where initial = final, minimum, maximum and clip would halve derivatives
        low, high = jnp.where(initial < final, initial, final), jnp.where(initial < final, final, initial)
        rate = low + (high - low) * up
        rate = jnp.where(rate < low, low, jnp.where(rate > high, high, rate))
    else:
        low, high = jnp.minimum(initial, final), jnp.maximum(initial, final)
        rate = jnp.clip(low + (high - low) * up, low, high)
    rate = jnp.where(step <= 0, initial, jnp.where(past(step, steps), final, rate))
    return poisoned(rate, initial, final) if traced else rate


def from_end(step: Array, initial: Array | float, rate: Array, slope: Array | float, *, falls: Array | bool) -> Array:
    """The rate: `initial` at step 0, and never beyond it later; `between` with one end."""
    if is_array(initial) or is_array(slope):  # as in `between`
        beyond = jnp.where(falls, rate > initial, rate < initial)
        rate = jnp.where((step == 0) | beyond, initial, rate)
        return poisoned(rate, initial, slope)
    return jnp.where(step == 0, initial, jnp.minimum(rate, initial) if falls else jnp.maximum(rate, initial))


def power_of(initial: Array | float, factor: Array | float, t: Array) -> Array:
    """The rate initial · factorᵗ; 0 if initial is 0, even where factorᵗ overflows."""
    if is_array(initial):
        power = factor**t
        return initial * jnp.where((initial == 0) & jnp.isinf(power), 0, power)
    return initial * factor**t if initial else jnp.zeros_like(t)
