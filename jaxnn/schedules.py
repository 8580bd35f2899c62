"""Learning rates that change with time: a schedule maps the step, from 0, to the rate of that step's update.

    constant      value                                  piecewise     values[i] from boundaries[i−1] on
    step          initial · factor^⌊t/every⌋             exponential   initial · factor^(t/every)
    inverse_time  initial / (1 + rate·t/every)           polynomial    from initial to final, in `steps`
    cosine        half a wave, from initial to final     warmup        a line, then another schedule
    joined        one schedule after another             scaled        another schedule times a factor

Every public name is a factory; equal calls give the same schedule (compiled programs are cached by its identity).
The step may be traced. At its ends a schedule gives the rates that it was made with, to the bit, compiled or not, and
nowhere a rate outside of what lies between them. Beyond the end the last rate stays. Any function `step -> rate` will
do where an optimizer takes a schedule. Letters: t step, η rate.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp

from jaxnn.checks import number, seen, whole_number
from jaxnn.mistakes import factory_hint, is_factory, is_function, several
from jaxnn.types import Array, Schedule

__all__ = [
    "constant",
    "step",
    "piecewise",
    "exponential",
    "inverse_time",
    "polynomial",
    "cosine",
    "warmup",
    "joined",
    "scaled",
]


def __dir__() -> list[str]:
    return list(__all__)


def constant(value: float) -> Schedule:
    """η(t) = value.

    Raises:
        ValueError: if the value is negative or not finite.

    >>> print(constant(0.1)(1000))
    0.1
    """
    return _constant(number("schedules.constant: value", value, least=0.0))


def step(initial: float, factor: float, every: int) -> Schedule:
    """η(t) = initial · factor^⌊t / every⌋, a staircase whose first stair is `every` steps long.

    Raises:
        ValueError: if the initial rate is negative, the factor not above 0, or `every` below 1.
        TypeError: if `every` is not a whole number.

    >>> rate = step(0.1, factor=0.5, every=10)
    >>> print(rate(9), rate(10), rate(20))
    0.1 0.05 0.025
    """
    return _step(
        number("schedules.step: initial", initial, least=0.0),
        number("schedules.step: factor", factor, above=0.0),
        whole_number("schedules.step: every", every, least=1),
    )


def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """η(t) = values[i] for boundaries[i−1] ≤ t < boundaries[i].

    Raises:
        ValueError: if a value is negative, the boundaries do not rise from above 0, or there is not one more value.
        TypeError: if a boundary is not a whole number.

    >>> rate = piecewise([0.1, 0.01], [10])
    >>> print(rate(9), rate(10))
    0.1 0.01
    """
    where = "schedules.piecewise"
    values = several(f"{where}: values", values, "piecewise([0.1, 0.01], [1000])")
    rates = tuple(number(f"{where}: values[{i}]", value, least=0.0) for i, value in enumerate(values))
    return _piecewise(rates, _rising(where, boundaries, len(rates), "values"))


def exponential(initial: float, factor: float, every: int = 1) -> Schedule:
    """η(t) = initial · factor^(t / every): `step` without its stairs.

    Raises:
        ValueError, TypeError: as `step`.

    >>> rate = exponential(0.1, factor=0.25, every=10)
    >>> print(rate(0), rate(5), rate(10))
    0.1 0.05 0.025
    """
    return _exponential(
        number("schedules.exponential: initial", initial, least=0.0),
        number("schedules.exponential: factor", factor, above=0.0),
        whole_number("schedules.exponential: every", every, least=1),
    )


def inverse_time(initial: float, rate: float, every: int = 1) -> Schedule:
    """η(t) = initial / (1 + rate · t / every).

    Raises:
        ValueError: if the initial rate or `rate` is negative, or `every` below 1.
        TypeError: if `every` is not a whole number.

    Source: Robbins & Monro (1951), whose conditions Σ η = ∞ and Σ η² < ∞ it meets.

    >>> schedule = inverse_time(0.1, rate=1.0, every=10)
    >>> print(schedule(0), schedule(10), schedule(30))
    0.1 0.05 0.025
    """
    return _inverse_time(
        number("schedules.inverse_time: initial", initial, least=0.0),
        number("schedules.inverse_time: rate", rate, least=0.0),
        whole_number("schedules.inverse_time: every", every, least=1),
    )


def polynomial(initial: float, final: float, steps: int, power: float = 1.0) -> Schedule:
    """η(t) = final + (initial − final) · (1 − t/steps)^power up to `steps`, then final; by default a line.

    Raises:
        ValueError: if a rate is negative, `steps` below 1, or the power not above 0.
        TypeError: if `steps` is not a whole number.

    >>> rate = polynomial(0.1, 0.0, steps=10)
    >>> print(rate(0), rate(5), rate(10), rate(1000))
    0.1 0.05 0.0 0.0
    """
    return _polynomial(
        number("schedules.polynomial: initial", initial, least=0.0),
        number("schedules.polynomial: final", final, least=0.0),
        whole_number("schedules.polynomial: steps", steps, least=1),
        number("schedules.polynomial: power", power, above=0.0),
    )


def cosine(initial: float, steps: int, final: float = 0.0) -> Schedule:
    """η(t) = final + (initial − final) · ½(1 + cos(π t/steps)) up to `steps`, then final.

    Raises:
        ValueError: if a rate is negative, or `steps` below 1.
        TypeError: if `steps` is not a whole number.

    Source: Loshchilov & Hutter (2017), "SGDR: stochastic gradient descent with warm restarts", eq. 5.

    >>> rate = cosine(0.5, steps=10)
    >>> print(rate(0), rate(5).round(6), rate(10))
    0.5 0.25 0.0
    """
    return _cosine(
        number("schedules.cosine: initial", initial, least=0.0),
        whole_number("schedules.cosine: steps", steps, least=1),
        number("schedules.cosine: final", final, least=0.0),
    )


def warmup(steps: int, then: Schedule, initial: float = 0.0) -> Schedule:
    """A line from `initial` to then(0), reached at `steps`; from there on then(t − steps).

    The first update, at step 0, has the rate `initial`: give one above 0 if it shall not be lost.

    Raises:
        ValueError: if `steps` is below 1, or `initial` negative.
        TypeError: if `steps` is not a whole number, or `then` no schedule.

    Source: Goyal et al. (2017), "Accurate, large minibatch SGD", section 2.2.

    >>> rate = warmup(10, constant(0.1))
    >>> print(rate(0), rate(5), rate(10), rate(11))
    0.0 0.05 0.1 0.1
    """
    steps = whole_number("schedules.warmup: steps", steps, least=1)
    initial = number("schedules.warmup: initial", initial, least=0.0)
    return _cached(_warmup, steps, _schedule("schedules.warmup: then", then), initial)


def joined(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """η(t) = schedules[i](t − boundaries[i−1]) for boundaries[i−1] ≤ t < boundaries[i]: each begins at its step 0.

    Raises:
        ValueError: if the boundaries do not rise from above 0, or there is not one more schedule than boundaries.
        TypeError: if a boundary is not a whole number, or something is no schedule.

    >>> rate = joined([constant(0.1), polynomial(0.4, 0.0, 4)], [10])
    >>> print(rate(9), rate(10), rate(12))
    0.1 0.4 0.2
    """
    where = "schedules.joined"
    schedules = several(f"{where}: schedules", schedules, "joined([constant(0.1), cosine(0.1, 100)], [1000])")
    parts = tuple(_schedule(f"{where}: schedules[{i}]", part) for i, part in enumerate(schedules))
    return _cached(_joined, parts, _rising(where, boundaries, len(parts), "schedules"))


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """η(t) = factor · schedule(t).

    Raises:
        ValueError: if the factor is negative or not finite.
        TypeError: if the schedule is none.

    >>> print(scaled(constant(0.1), 0.5)(3))
    0.05
    """
    factor = number("schedules.scaled: factor", factor, least=0.0)
    return _cached(_scaled, _schedule("schedules.scaled: schedule", schedule), factor)


# ---------------------------------------------------------------- the formulas


@functools.cache
def _constant(value: float) -> Schedule:
    def schedule(step: Array) -> Array:
        return jnp.asarray(value, jnp.result_type(float))

    return schedule


@functools.cache
def _step(initial: float, factor: float, every: int) -> Schedule:
    def schedule(step: Array) -> Array:
        step = _time(step)
        stair = step // every if _reaches(step, every) else jnp.zeros_like(step)
        return _from(stair, initial, _power(initial, factor, _float(stair)), falls=factor < 1)

    return schedule


@functools.cache
def _piecewise(values: tuple[float, ...], boundaries: tuple[int, ...]) -> Schedule:
    def schedule(step: Array) -> Array:
        step = _time(step)
        rates = jnp.asarray(values, jnp.result_type(float))
        return rates[sum(_past(step, boundary).astype(jnp.int32) for boundary in boundaries)]

    return schedule


@functools.cache
def _exponential(initial: float, factor: float, every: int) -> Schedule:
    def schedule(step: Array) -> Array:
        step = _time(step)
        return _from(step, initial, _power(initial, factor, _float(step) / float(every)), falls=factor < 1)

    return schedule


@functools.cache
def _inverse_time(initial: float, rate: float, every: int) -> Schedule:
    def schedule(step: Array) -> Array:
        step = _time(step)
        return _from(step, initial, initial / (1 + rate * _float(step) / float(every)), falls=True)

    return schedule


@functools.cache
def _polynomial(initial: float, final: float, steps: int, power: float) -> Schedule:
    def rising(gone: Array, left: Array) -> Array:
        if power == 1:
            return gone
        # 1 − leftᵖ; left near 1 is known best by what is gone.
        return -jnp.expm1(power * jnp.where(gone < 0.5, jnp.log1p(-jnp.minimum(gone, 0.5)), jnp.log(left)))

    def schedule(step: Array) -> Array:
        step = _time(step)
        gone, left = _gone(step, steps), _left(step, steps)
        up = rising(gone, left) if initial < final else left**power
        return _between(step, steps, initial, final, up)

    return schedule


@functools.cache
def _cosine(initial: float, steps: int, final: float) -> Schedule:
    def schedule(step: Array) -> Array:
        step = _time(step)
        # ½(1 + cos πx) = sin²(π(1 − x)/2), which does not cancel near the end and is 0 there.
        up = _gone(step, steps) if initial < final else _left(step, steps)
        return _between(step, steps, initial, final, jnp.square(jnp.sin(jnp.pi / 2 * up)))

    return schedule


@functools.lru_cache
def _warmup(steps: int, then: Schedule, initial: float) -> Schedule:
    def schedule(step: Array) -> Array:
        step = _time(step)
        peak = _float(then(jnp.zeros_like(step)))
        up = jnp.where(peak < initial, _left(step, steps), _gone(step, steps))
        line = _between(step, steps, initial, peak, up)
        return jnp.where(_past(step, steps), _float(then(_since(step, steps))), line)

    return schedule


@functools.lru_cache
def _joined(parts: tuple[Schedule, ...], boundaries: tuple[int, ...]) -> Schedule:
    def schedule(step: Array) -> Array:
        step = _time(step)
        rate = _float(parts[0](step))
        for part, boundary in zip(parts[1:], boundaries, strict=True):
            rate = jnp.where(_past(step, boundary), _float(part(_since(step, boundary))), rate)
        return rate

    return schedule


@functools.lru_cache
def _scaled(schedule: Schedule, factor: float) -> Schedule:
    return lambda step: factor * _float(schedule(step))


# ---------------------------------------------------------------- what they share


def _float(value: Any) -> Array:
    return jnp.asarray(value, jnp.result_type(float))


def _time(step: Any) -> Array:
    """The step as an array, whole numbers in at least 32 bits; one beyond the last that there is, as the last."""
    if isinstance(step, Integral):
        step = min(int(step), jnp.iinfo(jnp.result_type(int)).max)
    step = jnp.asarray(step)
    return step.astype(jnp.int32) if step.dtype.itemsize < 4 and not _is_float(step) else step


def _is_float(step: Array) -> bool:
    return jnp.issubdtype(step.dtype, jnp.floating)


def _reaches(step: Array, boundary: int) -> bool:
    """Whether steps of this dtype can come to the boundary."""
    return _is_float(step) or boundary <= jnp.iinfo(step.dtype).max


def _past(step: Array, boundary: int) -> Array:
    """Where step ≥ boundary."""
    return step >= boundary if _reaches(step, boundary) else jnp.zeros_like(step, bool)


def _since(step: Array, boundary: int) -> Array:
    """Steps since the boundary, 0 before it: before its time a schedule is not asked for negative steps."""
    return jnp.maximum(step, boundary) - boundary if _reaches(step, boundary) else jnp.zeros_like(step)


def _left(step: Array, steps: int) -> Array:
    """The part of the steps that is still to come, from 1 to 0; subtracted as whole numbers, so exactly."""
    if not _reaches(step, steps):
        return (float(steps) - jnp.maximum(_float(step), 0)) / float(steps)
    return _float(steps - jnp.clip(step, 0, steps)) / float(steps)


def _gone(step: Array, steps: int) -> Array:
    """The part of the steps that is over, from 0 to 1."""
    return _float(jnp.clip(step, 0, steps) if _reaches(step, steps) else jnp.maximum(step, 0)) / float(steps)


def _between(step: Array, steps: int, initial: float | Array, final: float | Array, up: Array) -> Array:
    """The rate initial at 0, final from `steps` on, in between the part `up` of the way from the lower to the higher.

    Sums that round, and that a compiler contracts or reorders, may miss an end by a unit in the last place: the ends
    are written, not computed. Counted from the lower end nothing cancels.
    """
    initial, final = _float(initial), _float(final)
    low, high = jnp.minimum(initial, final), jnp.maximum(initial, final)
    between = jnp.clip(low + (high - low) * up, low, high)
    return jnp.where(step <= 0, initial, jnp.where(_past(step, steps), final, between))


def _from(step: Array, initial: float, rate: Array, *, falls: bool) -> Array:
    """The rate, initial at step 0 and on the right side of it from there on: `_between` with one end."""
    return jnp.where(step == 0, initial, jnp.minimum(rate, initial) if falls else jnp.maximum(rate, initial))


def _power(initial: float, factor: float, t: Array) -> Array:
    """The rate initial · factorᵗ; 0 where initial is, though factorᵗ overflows."""
    return initial * factor**t if initial else jnp.zeros_like(t)


def _schedule(what: str, schedule: Any) -> Schedule:
    if not is_function(schedule) or is_factory(schedule):
        raise TypeError(
            f"{what} must be a schedule step -> rate, got {seen(schedule)}: use schedules.constant for a "
            f"number{factory_hint(schedule)}"
        )
    return schedule


def _rising(where: str, boundaries: Sequence[int], parts: int, what: str) -> tuple[int, ...]:
    """The boundaries, if they rise and part that many parts."""
    boundaries = several(f"{where}: boundaries", boundaries, f"{where.partition('.')[2]}(…, [1000])")
    bounds = tuple(whole_number(f"{where}: boundaries[{i}]", b, least=1) for i, b in enumerate(boundaries))
    if len(bounds) != parts - 1 or not bounds:
        raise ValueError(f"{where}: {parts} {what} need {max(parts - 1, 1)} boundaries between them, got {len(bounds)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(bounds)):
        raise ValueError(f"{where}: boundaries must rise, got {list(bounds)}")
    return bounds


def _cached(builder: Any, *parts: Any) -> Schedule:
    """What builder makes of the parts, the same for equal ones; anew where a schedule is unhashable."""
    try:
        hash(parts)
    except TypeError:
        return builder.__wrapped__(*parts)
    return builder(*parts)
