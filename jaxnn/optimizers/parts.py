"""Parts of optimizers: learning rates, steps, running means and their dtypes; applying updates."""

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
from jaxnn.records import holds_arrays
from jaxnn.spmd.axes import made_varying, varying
from jaxnn.trees import describe, named_leaves, same_shapes
from jaxnn.types import Array, DType, Optimizer, Params, Schedule, Tree

ADVICE = "were they made from the same network?"
LAST_STEP = 2**31 - 1  # of int32
EXTRAS = ("weight", "value", "grad", "value_fn")  # arguments that training passes to an update that takes them
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
    """The `RATE` fields of a new state: 0, η of the first update, and the number given, NaN for a schedule."""
    first, given = (rate(first_step()), math.nan) if callable(rate) else (rate, rate)
    return first_step(), jnp.asarray(first, jnp.result_type(float)), jnp.asarray(given, jnp.result_type(float))


def next_step(step: Array) -> Array:
    """The next step; the largest int32 stays."""
    return jnp.where(step < LAST_STEP, step + 1, step)  # wrapping round would make 1 − ρᵗ negative


def as_rate(rate: Any) -> Array:
    """The rate in a state as a float array."""
    rate = jnp.asarray(rate)
    return rate if jnp.issubdtype(rate.dtype, jnp.floating) else rate.astype(jnp.result_type(float))


def rate_of(given: float | Schedule, opt_state: Tree) -> tuple[Array, Array]:
    """η of this update, as the next state shows it and as it is used: the state's, or the schedule's at this step.

    A negative rate is used as NaN, because it would ascend; the state shows a schedule's rate unchanged.
    """
    rate = as_rate(opt_state.learning_rate)
    if not callable(given):
        rate = jnp.where(rate < 0, jnp.nan, rate)
        return rate, rate
    rate = jnp.asarray(given(opt_state.step), rate.dtype)
    return rate, jnp.where(rate < 0, jnp.nan, rate)


def shows_rate(opt_state: Tree) -> bool:
    """True for a state with the fields of a learning rate."""
    return set(RATE) <= set(getattr(opt_state, "_fields", ())) and opt_state.learning_rate is not None


def with_rate_of(optimizer: Optimizer, opt_state: Tree, params: Params) -> Tree:
    """The state, its rate that of the optimizer if that was made with another number than the state's was.

    If the two numbers are equal, a rate that was set by hand stays; two schedules, whose number is NaN, count as equal.
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
    learning_rate = learning_rate.astype(rate.dtype)
    if holds_arrays(getattr(rule, "learning_rate", rule)):  # a traced rate, by which one may differentiate, is used
        same &= rate != learning_rate
    now = made_varying(now, varying(was))  # members on several devices
    return opt_state._replace(learning_rate=jnp.where(same, rate, learning_rate), given=now)


def rate_in(state: Tree) -> dict[str, Array]:
    """The fields that a holder shows of the inner optimizer's state."""
    return {name: getattr(state, name) for name in RATE}


def without_rate(state: Tree) -> Tree:
    """The state with () for the fields that its holder shows, so that no buffer is donated twice."""
    return state._replace(**dict.fromkeys(RATE, ()))


def held(state: Tree, step: Array) -> tuple[dict[str, Any], Tree]:
    """What a holder shows of the inner optimizer's state, and that state without it; this step if it has no rate."""
    if shows_rate(state):
        return rate_in(state), without_rate(state)
    return {"step": step, "learning_rate": None, "given": None}, state


def inner_state(holder: Any) -> Tree:
    """The inner optimizer's state, with what its holder shows of it."""
    if holder.learning_rate is None:
        return holder.state
    return holder.state._replace(**rate_in(holder) | {"learning_rate": as_rate(holder.learning_rate)})


@jax.jit
def _rate_given_by(optimizer: Optimizer, params: Params) -> tuple[Array | None, Array | None]:
    """The rate and the number in a fresh state; compiled, so that the rest of that state is not computed."""
    fresh = optimizer.init(params)
    return (fresh.learning_rate, fresh.given) if shows_rate(fresh) else (None, None)


# ---------------------------------------------------------------- loss scaling


def _scaling(node: Tree) -> bool:
    return {"loss_scale", "overflows"} <= set(getattr(node, "_fields", ()))


def _scaling_in(opt_state: Tree) -> Tree:
    """The part of a state, wherever it is, that has a loss scale; None without one."""
    found = list(filter(_scaling, jax.tree.leaves(opt_state, is_leaf=_scaling)))
    if len(found) > 1:
        raise ValueError(f"the optimizer's state has {len(found)} loss scales: keep one loss_scaling")
    return found[0] if found else None


def loss_scale_of(opt_state: Tree) -> Array | None:
    """The scale by which the loss is multiplied in the next gradient; None without loss scaling."""
    found = _scaling_in(opt_state)
    return None if found is None else found.loss_scale


def overflowed(before: Tree, after: Tree) -> Array | None:
    """Whether loss scaling skipped the update between two states, as the gradient overflowed; None without it."""
    found = _scaling_in(before)
    return None if found is None else _scaling_in(after).overflows != found.overflows


# ---------------------------------------------------------------- further arguments of an update


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
    """The extras that are given and that the update function takes."""
    return {name: extras[name] for name in extras_of(update) if extras.get(name) is not None}


# ---------------------------------------------------------------- trees


def wide(leaf: Array) -> DType:
    """The leaf's dtype, but at least float32."""
    return accumulator(jnp.result_type(leaf))


def real_floats(name: str, params: Params) -> None:
    """Raises TypeError with the path of a parameter that is not a real float."""
    array_leaves(f"{name}: the parameters", params)
    for path, leaf in named_leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"{name}: parameters must be real floats, got {describe(leaf)} at '{path}'")


def zeros(name: str, params: Params) -> Params:
    """Zeros like the parameters, in at least float32."""
    real_floats(name, params)
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=wide(leaf)), params)


def check_fit(name: str, grads: Params, params: Params, memory: Tree) -> None:
    """Raises ValueError with the paths at which the gradients differ from the parameters or the state."""
    for what, tree in (("parameters", params), ("optimizer's state", memory)):
        if tree is not None:
            expected = jax.tree.map(jnp.asarray, tree)
            same_shapes(f"{name}: the gradients do not fit the {what}", grads, expected, ADVICE)
