"""Schedules made of other schedules: warm-up, sequence, multiple. Letters: t step, η rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import jax.numpy as jnp

from jaxnn.arrays import poisoned
from jaxnn.mistakes import several
from jaxnn.records import holds_arrays
from jaxnn.schedules.shared import ScheduleRecord, rising, valid_schedule
from jaxnn.schedules.times import as_rate, as_rates, as_time, between, gone_of, left_of, past, since
from jaxnn.types import Array, Schedule


class warmup(ScheduleRecord):
    """A line from `initial` to then(0), which is reached at step `steps`; after that, then(t − steps).

    The first update, at step 0, uses the rate `initial`: with 0 it changes nothing.

    Raises:
        ValueError: if `steps` is below 1, or `initial` negative.
        TypeError: if `steps` is not a whole number, or `then` is not a schedule.

    Source: Goyal et al. (2017), "Accurate, large minibatch SGD", section 2.2.

    >>> from jaxnn.schedules import constant
    >>> rate = warmup(10, constant(0.1))
    >>> print(rate(0), rate(5), rate(10), rate(11))
    0.0 0.05 0.1 0.1
    """

    steps: int
    then: Schedule
    _: KW_ONLY
    initial: float = 0.0

    def __post_init__(self) -> None:
        self._check(counts=("steps",), rates=("initial",))
        valid_schedule("schedules.warmup: then", self.then)

    def __call__(self, step: Array | int) -> Array:
        t, (initial,), then = as_time(step), as_rates(self.initial), self.then
        peak = as_rate(then(jnp.zeros_like(t)))
        traced = holds_arrays(self)
        falls = peak <= initial if traced else peak < initial  # `between` differentiates a level line as one that falls
        up = jnp.where(falls, left_of(t, self.steps), gone_of(t, self.steps))
        line = between(t, self.steps, initial, peak, up, traced=traced)
        return poisoned(jnp.where(past(t, self.steps), as_rate(then(since(t, self.steps))), line), initial)


class joined(ScheduleRecord):
    """η(t) = schedules[i](t − boundaries[i−1]) for boundaries[i−1] ≤ t < boundaries[i]: each begins at its step 0.

    Raises:
        ValueError: if the boundaries are not positive and rising, or there is not exactly one schedule
            more than boundaries.
        TypeError: if a boundary is not a whole number, or an entry is not a schedule.

    >>> from jaxnn.schedules import constant, polynomial
    >>> rate = joined([constant(0.1), polynomial(0.4, final=0.0, steps=4)], [10])
    >>> print(rate(9), rate(10), rate(12))
    0.1 0.4 0.2
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        where = "schedules.joined"
        example = "joined([constant(0.1), cosine(0.1, steps=100)], [1000])"
        parts = several(f"{where}: schedules", self.schedules, example)
        parts = tuple(valid_schedule(f"{where}: schedules[{i}]", part) for i, part in enumerate(parts))
        self._set(schedules=parts, boundaries=rising(where, self.boundaries, len(parts), "schedules"))

    def __call__(self, step: Array | int) -> Array:
        t = as_time(step)
        rate = as_rate(self.schedules[0](t))
        for part, boundary in zip(self.schedules[1:], self.boundaries, strict=True):
            rate = jnp.where(past(t, boundary), as_rate(part(since(t, boundary))), rate)
        return rate


class scaled(ScheduleRecord):
    """η(t) = factor · schedule(t).

    Raises:
        ValueError: if the factor is negative or not finite.
        TypeError: if `schedule` is not one.

    >>> from jaxnn.schedules import constant
    >>> print(scaled(constant(0.1), 0.5)(3))
    0.05
    """

    schedule: Schedule
    factor: float

    def __post_init__(self) -> None:
        self._check(rates=("factor",))
        valid_schedule("schedules.scaled: schedule", self.schedule)

    def __call__(self, step: Array | int) -> Array:
        (factor,) = as_rates(self.factor)
        return factor * as_rate(self.schedule(step))
