"""The running mean of the parameters: it varies less than the parameters, and often generalises better.

Letters: θ parameters, m their mean, β its decay, t the number of parameters seen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import poisoned
from jaxnn.checks import number
from jaxnn.interfaces import Shown
from jaxnn.optimizers.parts import ADVICE, first_step, next_step, real_floats, wide
from jaxnn.records import is_array
from jaxnn.showing import shown
from jaxnn.trees import same_shapes
from jaxnn.types import Array, Params


@shown()
class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
        step: how many parameters have been seen, int32.
        average: m, a tree like the parameters, in at least float32; before the first update, the parameters that
            `init` was given.
    """

    step: Array
    average: Params


class Average(Shown):
    """A state machine: `init(params) -> EmaState`, `update(state, params) -> EmaState`."""

    def init(self, params: Params) -> EmaState:
        raise NotImplementedError(f"{type(self).__name__} has no init(params)")

    def update(self, state: EmaState, params: Params) -> EmaState:
        raise NotImplementedError(f"{type(self).__name__} has no update(state, params)")


class ema(Average):
    """The exponential moving average of the parameters, unbiased from the first update on.

        m ← m + a(θ − m),    a = (1 − β) / (1 − βᵗ)

    m is the mean of all θ seen, each weighted by βᵏ, k the number of updates since: the same as m ← βm + (1 − β)θ from
    m = 0, divided by 1 − βᵗ. Update it in your loop after each step or each epoch, then evaluate m:

        run = jax.jit(train_epoch(net, loss, optimizer, batch_size=64), donate_argnums=0)
        average = ema(0.9)
        mean = average.init(train_state.params)
        for _ in range(epochs):
            train_state, _ = run(train_state, x, target)
            mean = average.update(mean, train_state.params)
        evaluate(net, loss, train_state._replace(params=mean.average), test_data)

    It runs inside `scan`, carried beside the TrainState of `train_step`, and under `vmap`. The statistics
    of batch norm are not averaged: they belong to θ, not to m, and should be computed again for m.

    Args:
        decay: 0 ≤ β < 1. The mean covers about 1/(1 − β) updates.

    Raises:
        ValueError: if β is out of range; from `update`, if the parameters differ from the mean in structure or shape.
        TypeError: if β is not a number, or parameters are not real floats.

    Source: Polyak & Juditsky (1992) for averaging; Kingma & Ba (2015), section 7.2, for this average.

    >>> average = ema(0.5)
    >>> state = average.init(jnp.array(0.0))
    >>> for theta in (1.0, 2.0, 4.0):
    ...     state = average.update(state, jnp.array(theta))
    >>> print(state.average)  # (1·1 + 2·2 + 4·4) / 7
    3.0
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        self._set(decay=number("ema: decay", self.decay, least=0.0, below=1.0))

    def init(self, params: Params) -> EmaState:
        real_floats("ema", params)
        copy = jax.tree.map(lambda leaf: jnp.array(leaf, wide(leaf), copy=True), params)  # donating θ loses nothing
        return EmaState(first_step(), copy)

    def update(self, state: EmaState, params: Params) -> EmaState:
        average = jax.tree.map(jnp.asarray, state.average)
        same_shapes("ema: the parameters do not fit the average", params, average, ADVICE)
        step = next_step(state.step)
        part = _part(self.decay, step.astype(jnp.result_type(float)))

        def nearer(mean: Array, theta: Array) -> Array:
            theta = jnp.asarray(theta, mean.dtype)
            # At the first step a is 1 up to rounding, and the parameters given to init do not count, even if NaN.
            new = jnp.where(step == 1, theta, mean + part.astype(mean.dtype) * (theta - mean))
            return poisoned(new, self.decay)

        return EmaState(step, jax.tree.map(nearer, average, params))


def _part(decay: float | Array, t: Array) -> Array:
    """The weight a = (1 − β) / (1 − βᵗ), which tends to 1 − β; 1 − βᵗ by expm1, as it cancels for β near 1."""
    if not is_array(decay):
        return (1 - decay) / -jnp.expm1(t * (math.log(decay) if decay else -math.inf))
    decay = jnp.asarray(decay, t.dtype)
    near_1 = decay > 0.5  # log 0 has no derivative
    log_decay = jnp.log1p(-(1 - jnp.where(near_1, decay, 0.5)))
    return (1 - decay) / jnp.where(near_1, -jnp.expm1(t * log_decay), 1 - decay**t)
