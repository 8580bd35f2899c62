"""Steps of their own size for every parameter, from the squares of its gradients.

Letters: θ parameters, g gradient, η learning rate, t the number of updates with this one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import number
from jaxnn.optimizers.parts import (
    build,
    check_fit,
    first_rate,
    first_step,
    next_step,
    rate_of,
    schedule_of,
    valid_rate,
    zeros,
)
from jaxnn.types import Array, Optimizer, Params, Schedule


class AdamState(NamedTuple):
    """What `adam` remembers.

    Attributes:
        step: the number of updates so far, int32.
        learning_rate: η, see the module's docstring.
        first_moment: s, the running mean of g, a tree like the parameters.
        second_moment: r, the running mean of g², a tree like the parameters.
    """

    step: Array
    learning_rate: Array
    first_moment: Params
    second_moment: Params


def adam(learning_rate: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> Optimizer:
    """Adam: steps of size about η, whatever the gradients' scale.

        s ← ρ₁s + (1 − ρ₁)g;    r ← ρ₂r + (1 − ρ₂)g²
        θ ← θ − η ŝ / (√r̂ + δ),    ŝ = s / (1 − ρ₁ᵗ),    r̂ = r / (1 − ρ₂ᵗ)

    Args:
        learning_rate: η ≥ 0, or a schedule step -> η.
        b1: 0 ≤ ρ₁ < 1, the decay of the mean gradient (β₁ in the original).
        b2: 0 ≤ ρ₂ < 1, the decay of the mean squared gradient (β₂).
        eps: δ > 0, outside the root and after the bias corrections (ε). In float32, g² of |g| < 1e-19 vanishes:
            a smaller δ would make such gradients' steps large.

    Raises:
        ValueError: if η, ρ₁, ρ₂ or δ is out of range; from `update`, if the gradients and the parameters
            differ in structure or shape.
        TypeError: if η is an array (set it in the state instead), or parameters are not real floats.

    Source: Kingma & Ba (2015), algorithm 1; letters of Goodfellow, Bengio & Courville (2016), algorithm 8.7.

    >>> optimizer = adam(0.1)
    >>> updates, opt_state = optimizer.update(jnp.array([3.0, -1e-3]), optimizer.init(jnp.zeros(2)))
    >>> print(jnp.round(updates, 3), opt_state.step)
    [-0.1  0.1] 1
    """
    rate = valid_rate("adam", learning_rate)
    b1 = number("adam: b1", b1, least=0.0, below=1.0)
    b2 = number("adam: b2", b2, least=0.0, below=1.0)
    eps = number("adam: eps", eps, above=0.0)
    return Optimizer(build(_adam_init, rate), build(_adam_update, schedule_of(rate), b1, b2, eps))


# ---------------------------------------------------------------- the rule


@functools.lru_cache
def _adam_init(rate: float | Schedule) -> Callable[[Params], AdamState]:
    def init(params: Params) -> AdamState:
        first, second = zeros("adam", params), zeros("adam", params)  # not one tree twice: both are donated
        return AdamState(first_step(), first_rate(rate), first, second)

    return init


@functools.lru_cache
def _adam_update(schedule: Schedule | None, b1: float, b2: float, eps: float) -> Callable[..., Any]:
    log_b1, log_b2 = (math.log(b) if b else -math.inf for b in (b1, b2))

    def update(grads: Params, opt_state: AdamState, params: Params = None) -> tuple[Params, AdamState]:
        check_fit("adam", grads, params, opt_state.first_moment)
        rate = rate_of(schedule, opt_state)
        step = next_step(opt_state.step)

        # s and r move by a part of their distance to g and g²: β rounded to float32 is then no other β, as it
        # would be in βr + (1 − β)g², where r of a constant g² ends up at g²(1 − β)/(1 − round(β)).
        def mean(g: Array, s: Array) -> Array:
            return s + (1 - b1) * (jnp.asarray(g, s.dtype) - s)

        def mean_square(g: Array, r: Array) -> Array:
            return r + (1 - b2) * (jnp.square(jnp.asarray(g, r.dtype)) - r)

        first = jax.tree.map(mean, grads, opt_state.first_moment)
        second = jax.tree.map(mean_square, grads, opt_state.second_moment)

        # η ŝ / (√r̂ + δ) = (η √c₂ / c₁) s / (√r + δ √c₂): per element, one root and one division are left.
        t = step.astype(jnp.result_type(float))
        c1, c2 = -jnp.expm1(t * log_b1), -jnp.expm1(t * log_b2)  # 1 − ρᵗ, which cancels where ρ is near 1
        root_c2 = jnp.sqrt(c2)
        size, floor = rate.astype(t.dtype) * root_c2 / c1, eps * root_c2

        def downhill(like: Array, s: Array, r: Array) -> Array:
            tiny = float(jnp.finfo(r.dtype).tiny)  # a δ that vanishes in r's dtype would make 0/0 of g = 0
            below = jnp.sqrt(r) + jnp.maximum(floor.astype(r.dtype), tiny)
            return (-size.astype(s.dtype) * s / below).astype(jnp.result_type(like))

        updates = jax.tree.map(downhill, grads if params is None else params, first, second)
        return updates, AdamState(step, rate, first, second)

    return update
