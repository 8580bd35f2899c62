"""Rules for descending: gradients in, updates out.

An optimizer is a pair of pure functions that follow optax's protocol: either library's work in the other.

    init(params) -> opt_state
    update(grads, opt_state, params=None) -> updates, opt_state
    apply_updates(params, updates) -> params

The learning rate η is a number, or a schedule `step -> rate` that is first asked with step 0. Every state
shows `step`, the number of updates so far, and `learning_rate`. Where η is a number, the next update uses
what stands there: set it to another array, traced or under `vmap`, and nothing compiles anew. Where η is a
schedule, it shows the rate of the last update (after `init`: of the first). A negative η is refused where it is
given, and turns updates into NaN where it stands in the state or comes from a schedule.

    >>> import jax, jax.numpy as jnp
    >>> optimizer = sgd(0.1)
    >>> opt_state = optimizer.init(jnp.array([1.0, 2.0]))
    >>> opt_state = opt_state._replace(learning_rate=jnp.float32(0.5))
    >>> print(optimizer.update(jnp.array([1.0, -1.0]), opt_state)[0])
    [-0.5  0.5]

Arithmetic and memories are in at least float32, whatever the parameters are; updates have the parameters'
dtype. Equal calls give equal optimizers, and those that differ in a number η alone share their `update`
(compiled programs are cached by the identity of such functions).

Letters: θ parameters, g gradient, η learning rate, t the number of updates with this one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import describe, named_leaves, number, same_shapes
from jaxnn.types import Array, DType, Optimizer, Params, Schedule

__all__ = ["SgdState", "AdamState", "gradient_descent", "sgd", "adam", "apply_updates"]


class SgdState(NamedTuple):
    """What `sgd` remembers.

    Attributes:
        step: the number of updates so far, int32.
        learning_rate: η, see the module's docstring.
        velocity: v, a tree like the parameters; () where the momentum is 0.
    """

    step: Array
    learning_rate: Array
    velocity: Params


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


def gradient_descent(learning_rate: float | Schedule) -> Optimizer:
    """Plain gradient descent, θ ← θ − ηg: `sgd` without momentum.

    Raises:
        ValueError, TypeError: as `sgd`.

    Source: Cauchy (1847); Robbins & Monro (1951) for stochastic gradients.

    >>> optimizer = gradient_descent(0.25)
    >>> theta = jnp.array(4.0)
    >>> updates, _ = optimizer.update(2 * theta, optimizer.init(theta))  # of θ²
    >>> print(apply_updates(theta, updates))
    2.0
    """
    return sgd(learning_rate)


def sgd(learning_rate: float | Schedule, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent with momentum μ.

        v ← μv + g;    θ ← θ − ηv,    or with Nesterov's    θ ← θ − η(g + μv)

    η stands outside v, as in optax and PyTorch: a change of η takes effect at once.

    Args:
        learning_rate: η ≥ 0, or a schedule step -> η.
        momentum: 0 ≤ μ < 1.
        nesterov: look ahead along v; needs μ > 0.

    Raises:
        ValueError: if η or μ is out of range, or nesterov is asked for without momentum; from `update`, if
            the gradients and the parameters differ in structure or shape.
        TypeError: if η is an array (set it in the state instead), or parameters are not real floats.

    Source: Polyak (1964); Sutskever, Martens, Dahl & Hinton (2013), "On the importance of initialization and
    momentum in deep learning".

    >>> optimizer = sgd(0.1, momentum=0.5)
    >>> updates, opt_state = optimizer.update(jnp.array([1.0]), optimizer.init(jnp.array([0.0])))
    >>> updates, opt_state = optimizer.update(jnp.array([1.0]), opt_state)  # v = 0.5 · 1 + 1
    >>> print(updates, opt_state.velocity)
    [-0.15] [1.5]
    """
    momentum = number("sgd: momentum", momentum, least=0.0, below=1.0)
    if nesterov and not momentum:
        raise ValueError("sgd: nesterov needs momentum above 0, got momentum=0: pass momentum=0.9, say")
    rate = _valid_rate("sgd", learning_rate)
    init = _build(_sgd_init, rate, momentum > 0)
    return Optimizer(init, _build(_sgd_update, _schedule(rate), momentum, bool(nesterov)))


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
    rate = _valid_rate("adam", learning_rate)
    b1 = number("adam: b1", b1, least=0.0, below=1.0)
    b2 = number("adam: b2", b2, least=0.0, below=1.0)
    eps = number("adam: eps", eps, above=0.0)
    return Optimizer(_build(_adam_init, rate), _build(_adam_update, _schedule(rate), b1, b2, eps))


def apply_updates(params: Params, updates: Params) -> Params:
    """θ + u for every leaf, added in at least float32 and rounded once to the parameter's dtype.

    Raises:
        ValueError: if the trees differ in structure or shape, naming the paths.

    >>> print(apply_updates({"w": jnp.array([1.0])}, {"w": jnp.array([-0.5])}))
    {'w': Array([0.5], dtype=float32)}
    """
    params = jax.tree.map(jnp.asarray, params)
    same_shapes("apply_updates: the updates do not fit the parameters", updates, params, ADVICE)

    def add(theta: Array, update: Array) -> Array:
        wide = _wide(theta)
        return (theta.astype(wide) + jnp.asarray(update, wide)).astype(theta.dtype)

    return jax.tree.map(add, params, updates)


# ---------------------------------------------------------------- the rules


@functools.lru_cache
def _sgd_init(rate: float | Schedule, has_velocity: bool) -> Callable[[Params], SgdState]:
    def init(params: Params) -> SgdState:
        zeros = _zeros("sgd", params)
        return SgdState(jnp.zeros((), jnp.int32), _first_rate(rate), zeros if has_velocity else ())

    return init


@functools.lru_cache
def _sgd_update(schedule: Schedule | None, momentum: float, nesterov: bool) -> Callable[..., Any]:
    def update(grads: Params, opt_state: SgdState, params: Params = None) -> tuple[Params, SgdState]:
        _check_fit("sgd", grads, params, opt_state.velocity if momentum else None)
        rate = _rate(schedule, opt_state)

        def pushed(g: Array, v: Array) -> Array:
            return jnp.asarray(g, v.dtype) + momentum * v

        velocity = jax.tree.map(pushed, grads, opt_state.velocity) if momentum else ()
        direction = velocity if momentum else grads
        if nesterov:
            direction = jax.tree.map(pushed, grads, velocity)

        def downhill(like: Array, direction: Array) -> Array:
            wide = _wide(like)
            return (-rate.astype(wide) * jnp.asarray(direction, wide)).astype(jnp.result_type(like))

        updates = jax.tree.map(downhill, grads if params is None else params, direction)
        return updates, SgdState(_next(opt_state.step), rate, velocity)

    return update


@functools.lru_cache
def _adam_init(rate: float | Schedule) -> Callable[[Params], AdamState]:
    def init(params: Params) -> AdamState:
        first, second = _zeros("adam", params), _zeros("adam", params)  # not one tree twice: both are donated
        return AdamState(jnp.zeros((), jnp.int32), _first_rate(rate), first, second)

    return init


@functools.lru_cache
def _adam_update(schedule: Schedule | None, b1: float, b2: float, eps: float) -> Callable[..., Any]:
    log_b1, log_b2 = (math.log(b) if b else -math.inf for b in (b1, b2))

    def update(grads: Params, opt_state: AdamState, params: Params = None) -> tuple[Params, AdamState]:
        _check_fit("adam", grads, params, opt_state.first_moment)
        rate = _rate(schedule, opt_state)
        step = _next(opt_state.step)

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


# ---------------------------------------------------------------- what they share

ADVICE = "were they made from the same network?"
LAST_STEP = 2**31 - 1  # of int32


def _build(builder: Any, rate: float | Schedule | None, *rest: Any) -> Any:
    """What builder makes of its arguments, the same thing for equal ones; anew for an unhashable schedule."""
    try:
        hash(rate)
    except TypeError:
        return builder.__wrapped__(rate, *rest)
    return builder(rate, *rest)


def _valid_rate(name: str, learning_rate: float | Schedule) -> float | Schedule:
    if callable(learning_rate):
        return learning_rate
    if isinstance(learning_rate, jax.Array):
        raise TypeError(
            f"{name}: learning_rate must be a number or a schedule step -> rate, got an array {learning_rate}"
            "; set it in the state: opt_state._replace(learning_rate=...)"
        )
    return number(f"{name}: learning_rate", learning_rate, least=0.0)


def _schedule(rate: float | Schedule) -> Schedule | None:
    return rate if callable(rate) else None


def _first_rate(rate: float | Schedule) -> Array:
    first = rate(jnp.zeros((), jnp.int32)) if callable(rate) else rate
    return jnp.asarray(first, jnp.result_type(float))


def _rate(schedule: Schedule | None, opt_state: SgdState | AdamState) -> Array:
    """η of this update: the state's, or the schedule's for this step; NaN where it is negative, and would climb."""
    rate = jnp.asarray(opt_state.learning_rate)
    if not jnp.issubdtype(rate.dtype, jnp.floating):
        rate = rate.astype(jnp.result_type(float))
    if schedule is not None:
        rate = jnp.asarray(schedule(opt_state.step), rate.dtype)
    return jnp.where(rate < 0, jnp.nan, rate)


def _next(step: Array) -> Array:
    return jnp.where(step < LAST_STEP, step + 1, step)  # wrapping round would make 1 − ρᵗ negative


def _wide(leaf: Any) -> DType:
    """The leaf's dtype, but at least float32."""
    dtype = jnp.result_type(leaf)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _zeros(name: str, params: Params) -> Params:
    for path, leaf in named_leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"{name}: parameters must be real floats, got {describe(leaf)} at '{path}'")
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=_wide(leaf)), params)


def _check_fit(name: str, grads: Params, params: Params, memory: Params) -> None:
    """Raises ValueError with the paths at which the gradients differ from the parameters or the state."""
    for what, tree in (("parameters", params), ("optimizer's state", memory)):
        if tree is not None:
            expected = jax.tree.map(jnp.asarray, tree)
            same_shapes(f"{name}: the gradients do not fit the {what}", grads, expected, ADVICE)
