"""A problem, and its programs: the function, the rule and its reference, traced in each precision and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxnn.aliases import Array
from jaxnn.gradcheck.replay import casts, draws, raised_at, replay, said, widen
from jaxnn.jaxprs import alike, function_of

ONE_SHOT = {"xla_backend_optimization_level": 0}  # for programs that run only a few times: a third less time


class Problem(NamedTuple):
    """A function of float leaves and a rule for its gradient, at one point, in the given precision."""

    place: str  # as in a `Row` of the report
    kind: str  # as in a `Row`
    names: tuple[str, ...]  # one for each leaf
    value: Callable[[list[Array], Any], list[Array]]  # `(leaves, fixed) -> [output, …]`, floats only
    # `(leaves, fixed, deltas) -> [gradient, …]`, one for each leaf
    rule: Callable[[list[Array], Any, list[Array]], list[Array]]
    leaves: list[Array]  # float arrays
    fixed: Any  # all other arguments of the function: integers, keys, state
    deltas: list[Array]  # cotangents, one for each output
    # the reference for the rule, with the same signature; None for jax.vjp of value
    auto: Callable[[list[Array], Any, list[Array]], list[Array]] | None = None
    always_differences: bool = False  # whether to take differences even where the rule and auto agree
    forward_error: float = 0.0  # the relative error of value as an approximation of the intended function
    # whether the rule is not meant to be the function's derivative, so that differences are no reference
    surrogate: bool = False
    wide: Problem | None = None  # the same problem, to be traced in float64, of functions that round nothing themselves
    unit: float = 0.0  # the unit roundoff of the precision in which the rule computes, if that is not the leaves'

    @property
    def has_differences(self) -> bool:
        """Whether finite differences of value are another reference for the rule."""
        return self.auto is None and not self.surrogate

    @property
    def arguments(self) -> tuple[list[Array], Any, list[Array]]:
        return self.leaves, self.fixed, self.deltas


def gradient(problem: Problem) -> Callable[[list[Array], Any, list[Array]], list[Array]]:
    """The reference for `problem.rule`: jax.vjp of the function, unless the problem has another."""
    if problem.auto is not None:
        return problem.auto

    def auto(leaves: list[Array], fixed: Any, deltas: list[Array]) -> list[Array]:
        return list(jax.vjp(lambda leaves: problem.value(leaves, fixed), leaves)[1](deltas)[0])

    return auto


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """Under jit, with few optimizations: what is compiled here runs a dozen times at most."""
    fast: Callable[..., Any] = jax.jit(f, compiler_options=ONE_SHOT)
    return fast


class Programs(NamedTuple):
    """A problem, traced in its own precision and in float64."""

    hand: Any  # closed jaxprs in the given precision
    auto: Any
    hand64: Any  # in float64; None where the function cannot be traced there
    auto64: Any
    stopped: str  # the error, or ""
    stopped_at: str  # the line that raised the error, as `file:line (function)`, or ""
    random: bool  # whether it draws random numbers, so that the float64 trace draws others
    same: bool  # whether the float64 trace of the rule is the same program, so that a replay would add nothing
    value: Any  # the function itself, in float64 where it can be traced there


def trace(problem: Problem) -> Programs:
    """Traces every program of a problem."""
    auto = gradient(problem)
    low = [jax.make_jaxpr(f)(*problem.arguments) for f in (problem.rule, auto)]
    stopped, stopped_at, high = "", "", list[Any]([None, None])
    with jax.enable_x64(True):
        full = problem.wide or problem
        try:
            wide = widen(problem.arguments)
            high = [jax.make_jaxpr(f)(*wide) for f in (full.rule, gradient(full))]
            value = jax.make_jaxpr(full.value)(*wide[:2])
        except Exception as error:  # whatever a user's function raises there
            stopped, stopped_at = said(error), raised_at(error)
    if stopped:
        value = jax.make_jaxpr(problem.value)(*problem.arguments[:2])
    random = any(map(draws, low))
    same = not stopped and not random and alike(low[0], high[0])
    return Programs(low[0], low[1], high[0], high[1], stopped, stopped_at, random, same, value)


def runner(closed: Any) -> Callable[..., list[Array]]:
    """A traced program in float64 without its casts to lower precision."""
    return replay(closed) if casts(closed) else function_of(closed)
