"""Learning rates that change with time: a schedule maps the step, from 0, to the rate of that step's update.

Every public name is a factory; equal calls give the same schedule (compiled programs are cached by its
identity). The step may be traced. Any function `step -> rate` will do where an optimizer takes a schedule.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from jaxnn.checks import number, whole_number
from jaxnn.types import Array, Schedule

__all__ = ["constant", "step"]


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


@functools.cache
def _constant(value: float) -> Schedule:
    def schedule(step: Array) -> Array:
        return jnp.asarray(value, jnp.result_type(float))

    return schedule


@functools.cache
def _step(initial: float, factor: float, every: int) -> Schedule:
    def schedule(step: Array) -> Array:
        stair = jnp.asarray(step) // every
        return initial * factor ** stair.astype(jnp.result_type(float))

    return schedule
