"""Time in whole steps, and rates that are exact at their ends, for schedules.

Letters: t step. A setting that is a JAX scalar is differentiated by: hence `where` for it, which halves no derivative
where two numbers are equal, as minimum and clip do.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax.numpy as jnp

from jaxnn.arrays import in_dtype, poisoned
from jaxnn.records import is_array
from jaxnn.types import Array


def as_rate(value: Any) -> Array:
    """An array in the dtype of rates."""
    return jnp.asarray(value, jnp.result_type(float))


def as_rates(*settings: Any) -> list[Any]:
    """Python numbers as they are, JAX scalars in the dtype of rates."""
    return [in_dtype(setting, jnp.result_type(float)) for setting in settings]


def choice(which: Any, first: Callable[[], Array], second: Callable[[], Array]) -> Array:
    """The first where `which` holds, and otherwise the second; both, if that is traced."""
    if is_array(which):
        return jnp.where(which, first(), second())
    return first() if which else second()


def as_time(step: Any) -> Array:
    """The step as an array, whole numbers in at least 32 bits; one beyond the last that there is, as the last."""
    if isinstance(step, Integral):
        step = min(int(step), jnp.iinfo(jnp.result_type(int)).max)
    step = jnp.asarray(step)
    return step.astype(jnp.int32) if step.dtype.itemsize < 4 and not _is_float(step) else step


def _is_float(step: Array) -> bool:
    return jnp.issubdtype(step.dtype, jnp.floating)


def reaches(step: Array, boundary: int) -> bool:
    """Whether steps of this dtype can come to the boundary."""
    return _is_float(step) or boundary <= jnp.iinfo(step.dtype).max


def past(step: Array, boundary: int) -> Array:
    """Where step ≥ boundary."""
    return step >= boundary if reaches(step, boundary) else jnp.zeros_like(step, bool)


def since(step: Array, boundary: int) -> Array:
    """Steps since the boundary, 0 before it: before its time a schedule is not asked for negative steps."""
    return jnp.maximum(step, boundary) - boundary if reaches(step, boundary) else jnp.zeros_like(step)


def left_of(step: Array, steps: int) -> Array:
    """The part of the steps that is still to come, from 1 to 0; subtracted as whole numbers, so exactly."""
    if not reaches(step, steps):
        return (float(steps) - jnp.maximum(as_rate(step), 0)) / float(steps)
    return as_rate(steps - jnp.clip(step, 0, steps)) / float(steps)


def gone_of(step: Array, steps: int) -> Array:
    """The part of the steps that is over, from 0 to 1."""
    return as_rate(jnp.clip(step, 0, steps) if reaches(step, steps) else jnp.maximum(step, 0)) / float(steps)


def between(step: Array, steps: int, initial: Any, final: Any, up: Array, *, traced: bool | None = None) -> Array:
    """The rate initial at 0, final from `steps` on, in between the part `up` of the way from the lower to the higher.

    Sums that round, and that a compiler contracts or reorders, may miss an end by a unit in the last place: the ends
    are written, not computed. Counted from the lower end nothing cancels.
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


def from_end(step: Array, initial: Any, rate: Array, slope: Any, *, falls: Any) -> Array:
    """The rate, initial at step 0 and on the right side of it from there on: `between` with one end."""
    if is_array(initial) or is_array(slope):  # as in `between`
        beyond = jnp.where(falls, rate > initial, rate < initial)
        rate = jnp.where((step == 0) | beyond, initial, rate)
        return poisoned(rate, initial, slope)
    return jnp.where(step == 0, initial, jnp.minimum(rate, initial) if falls else jnp.maximum(rate, initial))


def power_of(initial: Any, factor: Any, t: Array) -> Array:
    """The rate initial · factorᵗ; 0 where initial is, though factorᵗ overflows."""
    if is_array(initial):
        power = factor**t
        return initial * jnp.where((initial == 0) & jnp.isinf(power), 0, power)
    return initial * factor**t if initial else jnp.zeros_like(t)
