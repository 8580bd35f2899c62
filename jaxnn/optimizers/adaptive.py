"""Adaptive rates: each parameter's step is scaled by its squared gradients; from AdaGrad to AdamW.

    adagrad   a rate for every parameter:             g / √(sum of g²)
    rmsprop   old gradients are forgotten:            g / √(running mean of g²)
    adam      momentum, and both means corrected:     ŝ / √r̂
    adamw     weights decay at a rate that is not divided by √r̂

Letters: θ parameters, g gradient, η learning rate, t the number of updates with this one, r of g², s of g.
"""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxnn.arrays import in_dtype
from jaxnn.checks import number
from jaxnn.optimizers.parts import begun, check_fit, next_step, rate_of, valid_rate, zeros
from jaxnn.penalties import Choice, chosen, is_weight, valid_choice
from jaxnn.showing import shown
from jaxnn.types import Array, Optimizer, Params, Schedule, Tree


@shown()
class AdagradState(NamedTuple):
    """The state of `adagrad`.

    Attributes:
        step: the number of updates so far, int32.
        learning_rate: η, see the docstring of `jaxnn.optimizers`.
        given: the η that the rule was given; NaN for a schedule.
        sum_of_squares: r, the sum of all g², a tree like the parameters.
    """

    step: Array
    learning_rate: Array
    given: Array
    sum_of_squares: Params


@shown()
class RmspropState(NamedTuple):
    """The state of `rmsprop`.

    Attributes:
        step: the number of updates so far, int32.
        learning_rate: η, see the docstring of `jaxnn.optimizers`.
        given: the η that the rule was given; NaN for a schedule.
        mean_square: r, the running mean of g², a tree like the parameters.
    """

    step: Array
    learning_rate: Array
    given: Array
    mean_square: Params


@shown()
class AdamState(NamedTuple):
    """The state of `adam` and `adamw`.

    Attributes:
        step: the number of updates so far, int32.
        learning_rate: η, see the docstring of `jaxnn.optimizers`.
        given: the η that the rule was given; NaN for a schedule.
        first_moment: s, the running mean of g, a tree like the parameters.
        second_moment: r, the running mean of g², a tree like the parameters.
    """

    step: Array
    learning_rate: Array
    given: Array
    first_moment: Params
    second_moment: Params


class _BySquares(Optimizer):
    """−ηg / (√r + δ), r the sum or running mean of g²."""

    learning_rate = eps = memory = _with_square = cast(Any, None)

    def init(self, params: Params) -> Tree:
        return self.memory(*begun(self.learning_rate), zeros(type(self).__name__, params))

    def update(self, grads: Params, opt_state: Tree, params: Params = None) -> tuple[Params, Tree]:
        *_, given, squares = opt_state
        check_fit(type(self).__name__, grads, params, squares)
        shown, rate = rate_of(self.learning_rate, opt_state)
        squares = jax.tree.map(lambda g, r: self._with_square(r, _square(g, r)), grads, squares)
        updates = _rounded(jax.tree.map(functools.partial(_step_of, rate, self.eps), grads, squares), grads, params)
        return updates, self.memory(next_step(opt_state.step), shown, given, squares)


class adagrad(_BySquares):
    """AdaGrad: a rate for every parameter, smaller for larger past gradients.

        r ← r + g²;    θ ← θ − η g / (√r + δ)

    Compared with `sgd`, η is divided by the root of the sum of all g² so far, parameter by parameter, so that rare
    features learn as fast as frequent ones. The sum only grows: for gradients of constant size, rates fall as 1/√t.

    Elsewhere: in optax r begins at 0.1 (`initial_accumulator_value`) and δ = 1e-7 is inside the root; in PyTorch r
    begins at 0, as here, and δ = 1e-10 is outside.

    Args:
        learning_rate: η ≥ 0, or a schedule step -> η.
        eps: δ > 0, outside the root.

    Raises:
        ValueError: if η or δ is out of range; from `update`, if the gradients and the parameters differ in structure
            or shape.
        TypeError: if η is neither a number nor a schedule, or parameters are not real floats.

    Source: Duchi, Hazan & Singer (2011), "Adaptive subgradient methods for online learning and stochastic
    optimization"; letters of Goodfellow, Bengio & Courville (2016), algorithm 8.4.

    >>> optimizer = adagrad(0.1)
    >>> updates, opt_state = optimizer.update(jnp.array([3.0, -1e-3]), optimizer.init(jnp.zeros(2)))
    >>> print(jnp.round(updates, 3), opt_state.sum_of_squares[0])
    [-0.1  0.1] 9.0
    """

    memory = AdagradState

    learning_rate: float | Schedule = field()
    _: KW_ONLY
    eps: float = 1e-6

    def __post_init__(self) -> None:
        rate = valid_rate("adagrad", self.learning_rate)
        self._set(learning_rate=rate, eps=number("adagrad: eps", self.eps, above=0.0))

    def _with_square(self, r: Array, square: Array) -> Array:
        return r + square


class rmsprop(_BySquares):
    """RMSProp: `adagrad` that forgets.

        r ← ρr + (1 − ρ)g²;    θ ← θ − η g / (√r + δ)

    Compared with `adagrad`, a running mean replaces the sum, so that rates recover when gradients become smaller. The
    mean begins at 0 and is not corrected for that: the first steps are up to 1/√(1 − ρ) times too large.

    Elsewhere: in optax ρ = 0.9, as here, and δ = 1e-8 is inside the root (outside with `eps_in_sqrt=False`); in
    PyTorch ρ = 0.99 (alpha), and δ = 1e-8 is outside. In both r begins at 0 and is not corrected by default.

    Args:
        learning_rate: η ≥ 0, or a schedule step -> η.
        rho: 0 ≤ ρ < 1, the decay of the mean squared gradient.
        eps: δ > 0, outside the root.

    Raises:
        ValueError: if η, ρ or δ is out of range; from `update`, if the gradients and the parameters differ in
            structure or shape.
        TypeError: if η is neither a number nor a schedule, or parameters are not real floats.

    Source: Tieleman & Hinton (2012), "Neural networks for machine learning", lecture 6e; letters of Goodfellow,
    Bengio & Courville (2016), algorithm 8.5, whose δ is inside the root.

    >>> optimizer = rmsprop(0.1, rho=0.75)
    >>> updates, opt_state = optimizer.update(jnp.array([3.0, -1e-3]), optimizer.init(jnp.zeros(2)))
    >>> print(jnp.round(updates, 3), opt_state.mean_square[0])
    [-0.2  0.2] 2.25
    """

    memory = RmspropState

    learning_rate: float | Schedule = field()
    _: KW_ONLY
    rho: float = 0.9
    eps: float = 1e-6

    def __post_init__(self) -> None:
        rate = valid_rate("rmsprop", self.learning_rate)
        rho = number("rmsprop: rho", self.rho, least=0.0, below=1.0)
        self._set(learning_rate=rate, rho=rho, eps=number("rmsprop: eps", self.eps, above=0.0))

    def _with_square(self, r: Array, square: Array) -> Array:
        return _nearer(r, square, self.rho)


class adam(Optimizer):
    """Adam: steps of size about η, whatever the gradients' scale.

        s ← ρ₁s + (1 − ρ₁)g;    r ← ρ₂r + (1 − ρ₂)g²
        θ ← θ − η ŝ / (√r̂ + δ),    ŝ = s / (1 − ρ₁ᵗ),    r̂ = r / (1 − ρ₂ᵗ)

    Compared with `rmsprop`, the running mean s replaces g (momentum), and both means are corrected for having begun at
    0, so that the first steps have size η too.

    Elsewhere: in optax and PyTorch δ = 1e-8, at the same place; ρ₁, ρ₂ and the corrections are the same.

    Args:
        learning_rate: η ≥ 0, or a schedule step -> η.
        b1: 0 ≤ ρ₁ < 1, the decay of the mean gradient (β₁ in the original).
        b2: 0 ≤ ρ₂ < 1, the decay of the mean squared gradient (β₂).
        eps: δ > 0, outside the root and after the bias corrections (ε). In float32, g² of |g| < 1e-19 vanishes:
            a smaller δ would make such gradients' steps large.

    Raises:
        ValueError: if η, ρ₁, ρ₂ or δ is out of range; from `update`, if the gradients and the parameters
            differ in structure or shape.
        TypeError: if η is neither a number nor a schedule, or parameters are not real floats.

    Source: Kingma & Ba (2015), algorithm 1; letters of Goodfellow, Bengio & Courville (2016), algorithm 8.7.

    >>> optimizer = adam(0.1)
    >>> updates, opt_state = optimizer.update(jnp.array([3.0, -1e-3]), optimizer.init(jnp.zeros(2)))
    >>> print(jnp.round(updates, 3), opt_state.step)
    [-0.1  0.1] 1
    """

    learning_rate: float | Schedule
    _: KW_ONLY
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6

    def __post_init__(self) -> None:
        name = type(self).__name__
        self._set(
            learning_rate=valid_rate(name, self.learning_rate),
            b1=number(f"{name}: b1", self.b1, least=0.0, below=1.0),
            b2=number(f"{name}: b2", self.b2, least=0.0, below=1.0),
            eps=number(f"{name}: eps", self.eps, above=0.0),
        )

    def init(self, params: Params) -> AdamState:
        name = type(self).__name__
        first, second = zeros(name, params), zeros(name, params)  # not one tree twice: both are donated
        return AdamState(*begun(self.learning_rate), first, second)

    def update(self, grads: Params, opt_state: AdamState, params: Params = None) -> tuple[Params, AdamState]:
        check_fit(type(self).__name__, grads, params, opt_state.first_moment)
        shown, rate = rate_of(self.learning_rate, opt_state)
        step = next_step(opt_state.step)
        first = jax.tree.map(lambda g, s: _nearer(s, jnp.asarray(g, s.dtype), self.b1), grads, opt_state.first_moment)
        second = jax.tree.map(lambda g, r: _nearer(r, _square(g, r), self.b2), grads, opt_state.second_moment)

        # η ŝ / (√r̂ + δ) = (η √c₂ / c₁) s / (√r + δ √c₂): one root and one division per element remain.
        t = step.astype(jnp.result_type(float))
        c1, c2 = _one_less_power(self.b1, t), _one_less_power(self.b2, t)
        root_c2 = jnp.sqrt(c2)
        size, floor = rate.astype(t.dtype) * root_c2 / c1, in_dtype(self.eps, t.dtype) * root_c2
        steps = self._decayed(rate, params, jax.tree.map(functools.partial(_step_of, size, floor), first, second))
        return _rounded(steps, grads, params), AdamState(step, shown, opt_state.given, first, second)

    def _decayed(self, rate: Array, params: Params, steps: Params) -> Params:
        return steps


class adamw(adam):
    """`adam` with decoupled weight decay.

        θ ← θ − η (ŝ / (√r̂ + δ) + λθ),    ŝ and r̂ as in `adam`

    Compared with `adam`, every weight also shrinks by the same fraction ηλ in each step. `penalties.l2(λ)` adds λθ to g
    instead, which Adam divides by √r̂ with the rest: weights with large gradients then shrink less, by about ηλ/√r̂.
    Under `sgd` without momentum the two are equal; with momentum μ, the L2 term accumulates in the velocity as well
    and weights shrink by about ηλ/(1 − μ).

    Elsewhere: in optax λ = 1e-4, in PyTorch λ = 0.01, as here; in both every parameter decays, biases too, unless it is
    excluded (`on=penalties.everything` does so here), and δ = 1e-8.

    Args:
        learning_rate: η ≥ 0, or a schedule step -> η; the decay follows it, as in optax and PyTorch. (The authors
            multiply λ by their schedule's factor but not by its base rate: their λ is the ηλ of a constant η.)
        b1: 0 ≤ ρ₁ < 1, the decay of the mean gradient.
        b2: 0 ≤ ρ₂ < 1, the decay of the mean squared gradient.
        eps: δ > 0, as in `adam`.
        weight_decay: λ ≥ 0.
        on: which leaves decay, a pattern of paths or a function of a path, as in `penalties`; the weights by default.

    Raises:
        ValueError: if a number is out of range; when used, if no leaf is chosen or the gradients and the parameters
            differ in structure or shape; from `update`, if it is not given the parameters.
        TypeError: if η is neither a number nor a schedule, or parameters are not real floats.

    Source: Loshchilov & Hutter (2019), "Decoupled weight decay regularization", algorithm 2.

    >>> optimizer, params = adamw(0.1, weight_decay=0.5), {"w": jnp.array([2.0]), "b": jnp.array([2.0])}
    >>> grads = {"w": jnp.array([0.0]), "b": jnp.array([0.0])}
    >>> optimizer.update(grads, optimizer.init(params), params)[0]
    {'b': Array([-0.], dtype=float32), 'w': Array([-0.1], dtype=float32)}
    """

    _: KW_ONLY
    weight_decay: float = 0.01
    on: Choice = is_weight

    def __post_init__(self) -> None:
        super().__post_init__()
        weight_decay = number("adamw: weight_decay", self.weight_decay, least=0.0)
        self._set(weight_decay=weight_decay, on=valid_choice("adamw: on", self.on, ": λ is called weight_decay"))

    def init(self, params: Params) -> AdamState:
        state = super().init(params)
        chosen("adamw", params, self.on)  # raises now what would be raised at the first update
        return state

    def _decayed(self, rate: Array, params: Params, steps: Params) -> Params:
        if params is None:
            raise ValueError("adamw: weights decay, so update needs them: update(grads, opt_state, params)")
        part = rate * in_dtype(self.weight_decay, rate.dtype)

        def decayed(theta: Array, step: Array, decays: bool) -> Array:
            return step - part.astype(step.dtype) * jnp.asarray(theta, step.dtype) if decays else step

        return jax.tree.map(decayed, params, steps, chosen("adamw", params, self.on))


def _step_of(size: Array, floor: Array | float, s: Array, r: Array) -> Array:
    """−size · s / (√r + floor)."""
    tiny = float(jnp.finfo(r.dtype).tiny)  # a δ that vanishes in r's dtype would make 0/0 of g = 0
    below = _root(r) + jnp.maximum(jnp.asarray(floor, r.dtype), tiny)
    return -size.astype(r.dtype) * jnp.asarray(s, r.dtype) / below


@jax.custom_jvp
def _root(r: Array) -> Array:
    """√r, with the derivative 0 at 0.

    Where r is 0, so are g and s: to first order a step follows s alone, and ∞ · 0 must not enter the derivative of a
    training, as it would of a weight behind a pixel that is always blank.
    """
    return jnp.sqrt(r)


@_root.defjvp
def _slope_of_root(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (r,), (dr,) = primals, tangents
    return _root(r), jnp.where(r == 0, 0, 0.5 / _root(jnp.where(r == 0, 1, r))) * dr


def _nearer(memory: Array, value: Array, rho: float) -> Array:
    """The running mean, which moves the fraction 1 − ρ of the way to the value.

    So rounding ρ to float32 does no harm. In ρr + (1 − ρ)g² it would: for constant g², r would converge to
    g²(1 − ρ)/(1 − round(ρ)).
    """
    return memory + in_dtype(1 - rho, memory.dtype) * (value - memory)


def _square(g: Array, r: Array) -> Array:
    return jnp.square(jnp.asarray(g, r.dtype))


def _rounded(steps: Params, grads: Params, params: Params) -> Params:
    """The steps in the dtypes of the parameters, or of the gradients where there are none."""
    like = grads if params is None else params
    return jax.tree.map(lambda leaf, step: step.astype(jnp.result_type(leaf)), like, steps)


def _one_less_power(rho: float | Array, t: Array) -> Array:
    """1 − ρᵗ, which cancels where ρ is near 1."""
    if isinstance(rho, float):
        return -jnp.expm1(t * (math.log(rho) if rho else -math.inf))
    rho = rho.astype(t.dtype)
    near = rho >= 0.5  # there 1 − ρ is exact
    log_rho = jnp.log1p(-(1 - jnp.where(near, rho, 0.5)))
    return jnp.where(near, -jnp.expm1(t * log_rho), 1 - jnp.where(near, 0.5, rho) ** t)
