"""Learning rates that change with time: a schedule maps the step, from 0, to the rate of that step's update.

    constant      value                                  piecewise     values[i] from boundaries[i−1] on
    step          initial · factor^⌊t/every⌋             exponential   initial · factor^(t/every)
    inverse_time  initial / (1 + rate·t/every)           polynomial    from initial to final, in `steps`
    cosine        half a wave, from initial to final     warmup        a line, then another schedule
    joined        one schedule after another             scaled        another schedule times a factor

Every public name makes a record that is called with the step, which may be traced; equal settings make equal ones.
Rates and factors may be JAX scalars. At its ends a schedule gives the rates that it was made with, to the bit, compiled
or not, and nowhere a rate outside of what lies between them. Beyond the end the last rate stays. Any function
`step -> rate` will do where an optimizer takes a schedule. Letters: t step, η rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxnn.arrays import poisoned
from jaxnn.checks import number, seen, whole_number
from jaxnn.ends import (
    as_rate,
    as_rates,
    as_time,
    between,
    choice,
    from_end,
    gone_of,
    left_of,
    past,
    power_of,
    reaches,
    since,
)  # fmt: skip
from jaxnn.mistakes import factory_hint, is_factory, is_function, several
from jaxnn.records import Record, holds_arrays, is_array
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


class _Schedule(Record):
    def _check(
        self, *, rates: tuple[str, ...] = (), positive: tuple[str, ...] = (), counts: tuple[str, ...] = ()
    ) -> None:
        """Rates are at least 0, positive numbers above 0, counts whole and at least 1."""
        where = f"schedules.{type(self).__name__}"
        for name in rates:
            self._set(**{name: number(f"{where}: {name}", getattr(self, name), least=0.0)})
        for name in positive:
            self._set(**{name: number(f"{where}: {name}", getattr(self, name), above=0.0)})
        for name in counts:
            self._set(**{name: whole_number(f"{where}: {name}", getattr(self, name), least=1)})


class constant(_Schedule):
    """η(t) = value.

    Raises:
        ValueError: if the value is negative or not finite.

    >>> print(constant(0.1)(1000))
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        self._check(rates=("value",))

    def __call__(self, step: Any) -> Array:
        return as_rate(self.value)


class step(_Schedule):
    """η(t) = initial · factor^⌊t / every⌋, a staircase whose first stair is `every` steps long.

    Raises:
        ValueError: if the initial rate is negative, the factor not above 0, or `every` below 1.
        TypeError: if `every` is not a whole number.

    >>> rate = step(0.1, factor=0.5, every=10)
    >>> print(rate(9), rate(10), rate(20))
    0.1 0.05 0.025
    """

    initial: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        self._check(rates=("initial",), positive=("factor",), counts=("every",))

    def __call__(self, step: Any) -> Array:
        t, (initial, factor) = as_time(step), as_rates(self.initial, self.factor)
        stair = t // self.every if reaches(t, self.every) else jnp.zeros_like(t)
        return from_end(stair, initial, power_of(initial, factor, as_rate(stair)), factor, falls=factor < 1)


class piecewise(_Schedule):
    """η(t) = values[i] for boundaries[i−1] ≤ t < boundaries[i].

    Raises:
        ValueError: if a value is negative, the boundaries do not rise from above 0, or there is not one more value.
        TypeError: if a boundary is not a whole number.

    >>> rate = piecewise([0.1, 0.01], [10])
    >>> print(rate(9), rate(10))
    0.1 0.01
    """

    values: Sequence[float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        where = "schedules.piecewise"
        values = several(f"{where}: values", self.values, "piecewise([0.1, 0.01], [1000])")
        rates = tuple(number(f"{where}: values[{i}]", value, least=0.0) for i, value in enumerate(values))
        self._set(values=rates, boundaries=_rising(where, self.boundaries, len(rates), "values"))

    def __call__(self, step: Any) -> Array:
        t, traced = as_time(step), any(map(is_array, self.values))
        rates = jnp.stack([*map(as_rate, self.values)]) if traced else as_rate(self.values)
        rate = rates[sum(past(t, boundary).astype(jnp.int32) for boundary in self.boundaries)]
        return poisoned(rate, *self.values)


class exponential(_Schedule):
    """η(t) = initial · factor^(t / every): `step` without its stairs.

    Raises:
        ValueError, TypeError: as `step`.

    >>> rate = exponential(0.1, factor=0.25, every=10)
    >>> print(rate(0), rate(5), rate(10))
    0.1 0.05 0.025
    """

    initial: float
    factor: float
    every: int = 1

    def __post_init__(self) -> None:
        self._check(rates=("initial",), positive=("factor",), counts=("every",))

    def __call__(self, step: Any) -> Array:
        t, (initial, factor) = as_time(step), as_rates(self.initial, self.factor)
        return from_end(t, initial, power_of(initial, factor, as_rate(t) / float(self.every)), factor, falls=factor < 1)


class inverse_time(_Schedule):
    """η(t) = initial / (1 + rate · t / every).

    Raises:
        ValueError: if the initial rate or `rate` is negative, or `every` below 1.
        TypeError: if `every` is not a whole number.

    Source: Robbins & Monro (1951), whose conditions Σ η = ∞ and Σ η² < ∞ it meets.

    >>> schedule = inverse_time(0.1, rate=1.0, every=10)
    >>> print(schedule(0), schedule(10), schedule(30))
    0.1 0.05 0.025
    """

    initial: float
    rate: float
    every: int = 1

    def __post_init__(self) -> None:
        self._check(rates=("initial", "rate"), counts=("every",))

    def __call__(self, step: Any) -> Array:
        t, (initial, rate) = as_time(step), as_rates(self.initial, self.rate)
        return from_end(t, initial, initial / (1 + rate * as_rate(t) / float(self.every)), rate, falls=True)


class polynomial(_Schedule):
    """η(t) = final + (initial − final) · (1 − t/steps)^power up to `steps`, then final; by default a line.

    Raises:
        ValueError: if a rate is negative, `steps` below 1, or the power not above 0.
        TypeError: if `steps` is not a whole number.

    >>> rate = polynomial(0.1, 0.0, steps=10)
    >>> print(rate(0), rate(5), rate(10), rate(1000))
    0.1 0.05 0.0 0.0
    """

    initial: float
    final: float
    steps: int
    power: float = 1.0

    def __post_init__(self) -> None:
        self._check(rates=("initial", "final"), counts=("steps",), positive=("power",))

    def __call__(self, step: Any) -> Array:
        t, (initial, final, power) = as_time(step), as_rates(self.initial, self.final, self.power)
        gone, left = gone_of(t, self.steps), left_of(t, self.steps)

        def rising() -> Array:
            if not is_array(power) and power == 1:
                return gone
            # 1 − leftᵖ; left near 1 is known best by what is gone. At the end log 0 has no derivative, and is not used.
            above_0 = jnp.where(left > 0, left, 1) if is_array(power) else left
            return -jnp.expm1(power * jnp.where(gone < 0.5, jnp.log1p(-jnp.minimum(gone, 0.5)), jnp.log(above_0)))

        up = choice(initial < final, rising, lambda: left**power)
        return poisoned(between(t, self.steps, initial, final, up), power)


class cosine(_Schedule):
    """η(t) = final + (initial − final) · ½(1 + cos(π t/steps)) up to `steps`, then final.

    Raises:
        ValueError: if a rate is negative, or `steps` below 1.
        TypeError: if `steps` is not a whole number.

    Source: Loshchilov & Hutter (2017), "SGDR: stochastic gradient descent with warm restarts", eq. 5.

    >>> rate = cosine(0.5, steps=10)
    >>> print(rate(0), rate(5).round(6), rate(10))
    0.5 0.25 0.0
    """

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        self._check(rates=("initial", "final"), counts=("steps",))

    def __call__(self, step: Any) -> Array:
        t, (initial, final) = as_time(step), as_rates(self.initial, self.final)
        # ½(1 + cos πx) = sin²(π(1 − x)/2), which does not cancel near the end and is 0 there.
        up = choice(initial < final, lambda: gone_of(t, self.steps), lambda: left_of(t, self.steps))
        return between(t, self.steps, initial, final, jnp.square(jnp.sin(jnp.pi / 2 * up)))


class warmup(_Schedule):
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

    steps: int
    then: Schedule
    initial: float = 0.0

    def __post_init__(self) -> None:
        self._check(counts=("steps",), rates=("initial",))
        _schedule("schedules.warmup: then", self.then)

    def __call__(self, step: Any) -> Array:
        t, (initial,), then = as_time(step), as_rates(self.initial), self.then
        peak = as_rate(then(jnp.zeros_like(t)))
        traced = holds_arrays(self)
        falls = peak <= initial if traced else peak < initial  # `between` differentiates a level line as one that falls
        up = jnp.where(falls, left_of(t, self.steps), gone_of(t, self.steps))
        line = between(t, self.steps, initial, peak, up, traced=traced)
        return poisoned(jnp.where(past(t, self.steps), as_rate(then(since(t, self.steps))), line), initial)


class joined(_Schedule):
    """η(t) = schedules[i](t − boundaries[i−1]) for boundaries[i−1] ≤ t < boundaries[i]: each begins at its step 0.

    Raises:
        ValueError: if the boundaries do not rise from above 0, or there is not one more schedule than boundaries.
        TypeError: if a boundary is not a whole number, or something is no schedule.

    >>> rate = joined([constant(0.1), polynomial(0.4, 0.0, 4)], [10])
    >>> print(rate(9), rate(10), rate(12))
    0.1 0.4 0.2
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        where = "schedules.joined"
        example = "joined([constant(0.1), cosine(0.1, 100)], [1000])"
        parts = several(f"{where}: schedules", self.schedules, example)
        parts = tuple(_schedule(f"{where}: schedules[{i}]", part) for i, part in enumerate(parts))
        self._set(schedules=parts, boundaries=_rising(where, self.boundaries, len(parts), "schedules"))

    def __call__(self, step: Any) -> Array:
        t = as_time(step)
        rate = as_rate(self.schedules[0](t))
        for part, boundary in zip(self.schedules[1:], self.boundaries, strict=True):
            rate = jnp.where(past(t, boundary), as_rate(part(since(t, boundary))), rate)
        return rate


class scaled(_Schedule):
    """η(t) = factor · schedule(t).

    Raises:
        ValueError: if the factor is negative or not finite.
        TypeError: if the schedule is none.

    >>> print(scaled(constant(0.1), 0.5)(3))
    0.05
    """

    schedule: Schedule
    factor: float

    def __post_init__(self) -> None:
        self._check(rates=("factor",))
        _schedule("schedules.scaled: schedule", self.schedule)

    def __call__(self, step: Any) -> Array:
        (factor,) = as_rates(self.factor)
        return factor * as_rate(self.schedule(step))


# ---------------------------------------------------------------- what they are given


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
