"""Schedules given by a formula of the step. Letters: t step, η rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import jax.numpy as jnp

from jaxnn.arrays import poisoned
from jaxnn.checks import number
from jaxnn.mistakes import several
from jaxnn.records import is_array
from jaxnn.schedules.shared import ScheduleRecord, rising
from jaxnn.schedules.times import (
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
)
from jaxnn.types import Array


class constant(ScheduleRecord):
    """η(t) = value.

    Raises:
        ValueError: if the value is negative or not finite.

    >>> print(constant(0.1)(1000))
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        self._check(rates=("value",))

    def __call__(self, step: Array | int) -> Array:
        return as_rate(self.value)


class step_decay(ScheduleRecord):
    """η(t) = initial · factor^⌊t / every⌋, a staircase with stairs of `every` steps.

    Raises:
        ValueError: if the initial rate is negative, the factor not above 0, or `every` below 1.
        TypeError: if `every` is not a whole number.

    >>> rate = step_decay(0.1, factor=0.5, every=10)
    >>> print(rate(9), rate(10), rate(20))
    0.1 0.05 0.025
    """

    initial: float
    _: KW_ONLY
    factor: float
    every: int

    def __post_init__(self) -> None:
        self._check(rates=("initial",), positive=("factor",), counts=("every",))

    def __call__(self, step: Array | int) -> Array:
        t, (initial, factor) = as_time(step), as_rates(self.initial, self.factor)
        stair = t // self.every if reaches(t, self.every) else jnp.zeros_like(t)
        return from_end(stair, initial, power_of(initial, factor, as_rate(stair)), factor, falls=factor < 1)


class piecewise(ScheduleRecord):
    """η(t) = values[i] for boundaries[i−1] ≤ t < boundaries[i].

    Raises:
        ValueError: if a value is negative, the boundaries are not positive and rising, or there is not exactly
            one value more than boundaries.
        TypeError: if a boundary is not a whole number.

    >>> rate = piecewise([0.1, 0.01], boundaries=[10])
    >>> print(rate(9), rate(10))
    0.1 0.01
    """

    values: Sequence[float]
    _: KW_ONLY
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        where = "schedules.piecewise"
        values = several(f"{where}: values", self.values, "piecewise([0.1, 0.01], boundaries=[1000])")
        rates = tuple(number(f"{where}: values[{i}]", value, least=0.0) for i, value in enumerate(values))
        self._set(values=rates, boundaries=rising(where, self.boundaries, len(rates), "values"))

    def __call__(self, step: Array | int) -> Array:
        t, traced = as_time(step), any(map(is_array, self.values))
        rates = jnp.stack([*map(as_rate, self.values)]) if traced else as_rate(self.values)
        rate = rates[sum(past(t, boundary).astype(jnp.int32) for boundary in self.boundaries)]
        return poisoned(rate, *self.values)


class exponential(ScheduleRecord):
    """η(t) = initial · factor^(t / every): `step_decay` without its stairs.

    Raises:
        ValueError, TypeError: as `step_decay`.

    >>> rate = exponential(0.1, factor=0.25, every=10)
    >>> print(rate(0), rate(5), rate(10))
    0.1 0.05 0.025
    """

    initial: float
    _: KW_ONLY
    factor: float
    every: int = 1

    def __post_init__(self) -> None:
        self._check(rates=("initial",), positive=("factor",), counts=("every",))

    def __call__(self, step: Array | int) -> Array:
        t, (initial, factor) = as_time(step), as_rates(self.initial, self.factor)
        return from_end(t, initial, power_of(initial, factor, as_rate(t) / float(self.every)), factor, falls=factor < 1)


class inverse_time(ScheduleRecord):
    """η(t) = initial / (1 + rate · t / every).

    Raises:
        ValueError: if the initial rate or `rate` is negative, or `every` below 1.
        TypeError: if `every` is not a whole number.

    Source: Robbins & Monro (1951), whose conditions Σ η = ∞ and Σ η² < ∞ it satisfies.

    >>> schedule = inverse_time(0.1, rate=1.0, every=10)
    >>> print(schedule(0), schedule(10), schedule(30))
    0.1 0.05 0.025
    """

    initial: float
    _: KW_ONLY
    rate: float
    every: int = 1

    def __post_init__(self) -> None:
        self._check(rates=("initial", "rate"), counts=("every",))

    def __call__(self, step: Array | int) -> Array:
        t, (initial, rate) = as_time(step), as_rates(self.initial, self.rate)
        return from_end(t, initial, initial / (1 + rate * as_rate(t) / float(self.every)), rate, falls=True)


class polynomial(ScheduleRecord):
    """η(t) = final + (initial − final) · (1 − t/steps)^power up to `steps`, then final; by default a line.

    Raises:
        ValueError: if a rate is negative, `steps` below 1, or the power not above 0.
        TypeError: if `steps` is not a whole number.

    >>> rate = polynomial(0.1, final=0.0, steps=10)
    >>> print(rate(0), rate(5), rate(10), rate(1000))
    0.1 0.05 0.0 0.0
    """

    initial: float
    _: KW_ONLY
    final: float
    steps: int
    power: float = 1.0

    def __post_init__(self) -> None:
        self._check(rates=("initial", "final"), counts=("steps",), positive=("power",))

    def __call__(self, step: Array | int) -> Array:
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


class cosine(ScheduleRecord):
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
    _: KW_ONLY
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        self._check(rates=("initial", "final"), counts=("steps",))

    def __call__(self, step: Array | int) -> Array:
        t, (initial, final) = as_time(step), as_rates(self.initial, self.final)
        # ½(1 + cos πx) = sin²(π(1 − x)/2), which does not cancel near the end and is 0 there.
        up = choice(initial < final, lambda: gone_of(t, self.steps), lambda: left_of(t, self.steps))
        return between(t, self.steps, initial, final, jnp.square(jnp.sin(jnp.pi / 2 * up)))
