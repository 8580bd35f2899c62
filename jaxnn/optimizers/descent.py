"""Gradient descent, plain or with momentum.

Letters: θ parameters, g gradient, η learning rate, v velocity, μ momentum.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import in_dtype
from jaxnn.checks import number, yes_or_no
from jaxnn.optimizers.parts import begun, check_fit, next_step, rate_of, valid_rate, wide, zeros
from jaxnn.records import is_array
from jaxnn.showing import shown
from jaxnn.types import Array, Optimizer, Params, Schedule


@shown()
class SgdState(NamedTuple):
    """The state of `sgd`.

    Attributes:
        step: the number of updates so far, int32.
        learning_rate: η, see the docstring of `jaxnn.optimizers`.
        given: the η that `sgd` was given; NaN for a schedule.
        velocity: v, a tree like the parameters; () where the momentum is 0.
    """

    step: Array
    learning_rate: Array
    given: Array
    velocity: Params


def gradient_descent(learning_rate: float | Schedule) -> Optimizer:
    """Plain gradient descent, θ ← θ − ηg: `sgd` without momentum.

    Raises:
        ValueError, TypeError: as `sgd`.

    Source: Cauchy (1847); Robbins & Monro (1951) for stochastic gradients.

    >>> optimizer = gradient_descent(0.25)
    >>> theta = jnp.array(4.0)
    >>> updates, _ = optimizer.update(2 * theta, optimizer.init(theta))  # of θ²
    >>> print(theta + updates)
    2.0
    """
    return sgd(learning_rate)


class sgd(Optimizer):
    """Stochastic gradient descent with momentum μ.

        v ← μv + g;    θ ← θ − ηv,    or with Nesterov's    θ ← θ − η(g + μv)

    η is outside v, as in optax and PyTorch: a change of η takes effect at once. v begins at 0; the defaults are theirs,
    and so are the updates, Nesterov's included.

    Args:
        learning_rate: η ≥ 0, or a schedule step -> η.
        momentum: 0 ≤ μ < 1. With a JAX scalar there is a velocity, even if μ is 0.
        nesterov: Nesterov's form, which looks ahead along v; needs μ > 0.

    Raises:
        ValueError: if η or μ is out of range, or `nesterov` is True without momentum; from `update`, if the
            gradients and the parameters differ in structure or shape.
        TypeError: if η is neither a number nor a schedule, or parameters are not real floats.

    Source: Polyak (1964); Sutskever, Martens, Dahl & Hinton (2013), "On the importance of initialization and
    momentum in deep learning".

    >>> optimizer = sgd(0.1, momentum=0.5)
    >>> updates, opt_state = optimizer.update(jnp.array([1.0]), optimizer.init(jnp.array([0.0])))
    >>> updates, opt_state = optimizer.update(jnp.array([1.0]), opt_state)  # v = 0.5 · 1 + 1
    >>> print(updates, opt_state.velocity)
    [-0.15] [1.5]
    """

    learning_rate: float | Schedule
    _: KW_ONLY
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        momentum = number("sgd: momentum", self.momentum, least=0.0, below=1.0)
        nesterov = yes_or_no("sgd: nesterov", self.nesterov)
        if nesterov and not _moves_on(momentum):
            raise ValueError("sgd: nesterov needs momentum above 0, got momentum=0: pass momentum=0.9, say")
        self._set(learning_rate=valid_rate("sgd", self.learning_rate), momentum=momentum, nesterov=nesterov)

    def init(self, params: Params) -> SgdState:
        memory = zeros("sgd", params)
        return SgdState(*begun(self.learning_rate), memory if _moves_on(self.momentum) else ())

    def update(self, grads: Params, opt_state: SgdState, params: Params = None) -> tuple[Params, SgdState]:
        has_velocity = _moves_on(self.momentum)
        check_fit("sgd", grads, params, opt_state.velocity if has_velocity else None)
        shown, rate = rate_of(self.learning_rate, opt_state)

        def pushed(g: Array, v: Array) -> Array:
            return jnp.asarray(g, v.dtype) + in_dtype(self.momentum, v.dtype) * v

        velocity = jax.tree.map(pushed, grads, opt_state.velocity) if has_velocity else ()
        direction = velocity if has_velocity else grads
        if self.nesterov:
            direction = jax.tree.map(pushed, grads, velocity)

        def downhill(like: Array, direction: Array) -> Array:
            work = wide(like)
            return (-rate.astype(work) * jnp.asarray(direction, work)).astype(jnp.result_type(like))

        updates = jax.tree.map(downhill, grads if params is None else params, direction)
        return updates, SgdState(next_step(opt_state.step), shown, opt_state.given, velocity)


def _moves_on(momentum: float | Array) -> bool:
    """Whether there is a velocity: always for a momentum that is an input of the program, whose value is not known."""
    return bool(is_array(momentum) or momentum > 0)
