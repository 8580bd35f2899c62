"""What optimizers are made with: learning rates, steps, memories and their dtypes; and how updates are applied."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator
from jaxnn.checks import number, seen
from jaxnn.mistakes import array_leaves, factory_hint, is_function
from jaxnn.trees import describe, named_leaves, same_shapes
from jaxnn.types import Array, DType, Optimizer, Params, Schedule, Tree

ADVICE = "were they made from the same network?"
LAST_STEP = 2**31 - 1  # of int32
EXTRAS = ("weight", "value", "grad", "value_fn")  # what training hands on to an update that takes it
RATE = ("step", "learning_rate", "given")  # the fields of every state with a learning rate


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
        work = wide(theta)
        return (theta.astype(work) + jnp.asarray(update, work)).astype(theta.dtype)

    return jax.tree.map(add, params, updates)


# ---------------------------------------------------------------- learning rates and steps


def valid_rate(name: str, learning_rate: float | Schedule) -> float | Schedule:
    """The schedule, or the number ≥ 0."""
    hint = factory_hint(learning_rate)
    if is_function(learning_rate) and not isinstance(learning_rate, type) and not hint:
        return learning_rate
    if getattr(learning_rate, "shape", ()):
        hint = "; for one rate each, jax.vmap a function of a rate, or set them in the state: opt_state._replace(…)"
    if hint:
        raise TypeError(
            f"{name}: learning_rate must be a number or a schedule step -> rate, got {seen(learning_rate)}{hint}"
        )
    return number(f"{name}: learning_rate", learning_rate, least=0.0)


def first_step() -> Array:
    """0, int32."""
    return jnp.zeros((), jnp.int32)


def begun(rate: float | Schedule) -> tuple[Array, Array, Array]:
    """What `RATE` names, of a fresh state: 0; η of the first update; the number that was given, NaN for a schedule."""
    first, given = (rate(first_step()), math.nan) if callable(rate) else (rate, rate)
    return first_step(), jnp.asarray(first, jnp.result_type(float)), jnp.asarray(given, jnp.result_type(float))


def next_step(step: Array) -> Array:
    """The step after this one, or the last there is."""
    return jnp.where(step < LAST_STEP, step + 1, step)  # wrapping round would make 1 − ρᵗ negative


def as_rate(rate: Any) -> Array:
    """The rate that stands in a state, as a float array."""
    rate = jnp.asarray(rate)
    return rate if jnp.issubdtype(rate.dtype, jnp.floating) else rate.astype(jnp.result_type(float))


def rate_of(given: float | Schedule, opt_state: Any) -> tuple[Array, Array]:
    """η of this update, for the next state to show and to be used: the state's, or the schedule's for this step.

    A negative one is NaN where it is used, and would climb; of a schedule the state shows it as it is.
    """
    rate = as_rate(opt_state.learning_rate)
    if not callable(given):
        rate = jnp.where(rate < 0, jnp.nan, rate)
        return rate, rate
    rate = jnp.asarray(given(opt_state.step), rate.dtype)
    return rate, jnp.where(rate < 0, jnp.nan, rate)


def shows_rate(opt_state: Any) -> bool:
    """True for a state that has a learning rate, and shows it."""
    return set(RATE) <= set(getattr(opt_state, "_fields", ())) and opt_state.learning_rate is not None


def with_rate_of(optimizer: Optimizer, opt_state: Any, params: Params) -> Any:
    """The state, its rate that of the optimizer if that was made with another number than the state's was.

    What was set by hand stays where the two numbers are equal; a schedule, whose number is NaN, equals a schedule.
    """
    if not shows_rate(opt_state):
        return opt_state
    rule = optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer.init, optimizer.update)
    learning_rate, given = _rate_given_by(rule, params)
    if learning_rate is None or given is None:
        return opt_state
    was = jnp.asarray(opt_state.given)
    now = given.astype(was.dtype)  # a state of float32 in a float64 program was made with the same number
    same = (was == now) | (jnp.isnan(was) & jnp.isnan(now))
    rate = as_rate(opt_state.learning_rate)
    return opt_state._replace(learning_rate=jnp.where(same, rate, learning_rate.astype(rate.dtype)), given=now)


@jax.jit
def _rate_given_by(optimizer: Optimizer, params: Params) -> tuple[Array | None, Array | None]:
    """The rate and the number in a fresh state; compiled, so that nothing else of that state is made."""
    fresh = optimizer.init(params)
    return (fresh.learning_rate, fresh.given) if shows_rate(fresh) else (None, None)


# ---------------------------------------------------------------- what an update may be given beside gradients


def extras_of(update: Callable[..., Any]) -> tuple[str, ...]:
    """The names in EXTRAS that an update function takes, as optax's with extra arguments do."""
    try:
        parameters = list(inspect.signature(update).parameters.values())
    except (TypeError, ValueError):  # a builtin shows none
        return ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return EXTRAS
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return tuple(name for name in EXTRAS if name in named)


def taken(update: Callable[..., Any], extras: Mapping[str, Any]) -> dict[str, Any]:
    """Those extras that are there and that the update function takes."""
    return {name: extras[name] for name in extras_of(update) if extras.get(name) is not None}


# ---------------------------------------------------------------- trees


def wide(leaf: Any) -> DType:
    """The leaf's dtype, but at least float32."""
    return accumulator(jnp.result_type(leaf))


def real_floats(name: str, params: Params) -> None:
    """Raises TypeError with the path of a parameter that is no real float."""
    array_leaves(f"{name}: the parameters", params)
    for path, leaf in named_leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"{name}: parameters must be real floats, got {describe(leaf)} at '{path}'")


def zeros(name: str, params: Params) -> Params:
    """A memory like the parameters, of zeros in at least float32."""
    real_floats(name, params)
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=wide(leaf)), params)


def check_fit(name: str, grads: Params, params: Params, memory: Tree) -> None:
    """Raises ValueError with the paths at which the gradients differ from the parameters or the state."""
    for what, tree in (("parameters", params), ("optimizer's state", memory)):
        if tree is not None:
            expected = jax.tree.map(jnp.asarray, tree)
            same_shapes(f"{name}: the gradients do not fit the {what}", grads, expected, ADVICE)
