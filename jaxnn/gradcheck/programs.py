"""A problem for the judge, and its programs: the function and both rules, traced in each precision and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxnn.gradcheck.replay import casts, draws, raised_at, replay, said, widen
from jaxnn.jaxprs import alike, function_of

ONE_SHOT = {"xla_backend_optimization_level": 0}  # of a compiler whose programs run a few times: a third less time


class Problem(NamedTuple):
    """A function of float leaves and a rule for its gradient, at one point, in the precision that was given.

    Attributes:
        place: where it stands, for the report.
        kind: what it is.
        names: one for each leaf.
        value: `(leaves, fixed) -> [output, …]`, floats only.
        rule: `(leaves, fixed, deltas) -> [gradient, …]`, one for each leaf.
        leaves: float arrays.
        fixed: everything else the function sees: integers, keys, state.
        deltas: cotangents, one for each output.
        auto: what the rule is held against, with the rule's own signature; None for jax.vjp of value.
        witness: whether to take differences of right leaves too.
        forward_error: how far, relative, value may be from the function that is meant.
        surrogate: whether the rule is meant not to be the function's derivative: differences say nothing then.
    """

    place: str
    kind: str
    names: tuple[str, ...]
    value: Callable[[list[Any], Any], list[Any]]
    rule: Callable[[list[Any], Any, list[Any]], list[Any]]
    leaves: list[Any]
    fixed: Any
    deltas: list[Any]
    auto: Callable[[list[Any], Any, list[Any]], list[Any]] | None = None
    witness: bool = False
    forward_error: float = 0.0
    surrogate: bool = False

    @property
    def has_differences(self) -> bool:
        """Whether finite differences of value are another route to what the rule should give."""
        return self.auto is None and not self.surrogate

    @property
    def arguments(self) -> tuple[list[Any], Any, list[Any]]:
        return self.leaves, self.fixed, self.deltas


def gradient(problem: Problem) -> Callable[[list[Any], Any, list[Any]], list[Any]]:
    """jax.vjp's answer to the same question as `problem.rule`."""
    if problem.auto is not None:
        return problem.auto

    def auto(leaves: list[Any], fixed: Any, deltas: list[Any]) -> list[Any]:
        return list(jax.vjp(lambda leaves: problem.value(leaves, fixed), leaves)[1](deltas)[0])

    return auto


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """Under jit, compiled in haste: what is compiled here runs a dozen times at most."""
    fast: Callable[..., Any] = jax.jit(f, compiler_options=ONE_SHOT)
    return fast


# ---------------------------------------------------------------- the programs, traced once


class Programs(NamedTuple):
    """A problem, traced in its own precision and in float64.

    Attributes:
        hand, auto: closed jaxprs in the given precision.
        hand64, auto64: in float64; None where the function cannot be traced there.
        stopped: why not, or "".
        stopped_at: the line that raised it, as `file:line (function)`, or "".
        random: whether it draws random numbers, so that the float64 trace draws others.
        same: whether the float64 trace of the rule is the same program, so that a replay has nothing to add.
        value: the function itself, in float64 where it can be traced there.
    """

    hand: Any
    auto: Any
    hand64: Any
    auto64: Any
    stopped: str
    stopped_at: str
    random: bool
    same: bool
    value: Any


def trace(problem: Problem) -> Programs:
    """Every program of a problem."""
    auto = gradient(problem)
    low = [jax.make_jaxpr(f)(*problem.arguments) for f in (problem.rule, auto)]
    stopped, stopped_at, high = "", "", list[Any]([None, None])
    with jax.enable_x64(True):
        try:
            wide = widen(problem.arguments)
            high = [jax.make_jaxpr(f)(*wide) for f in (problem.rule, auto)]
            value = jax.make_jaxpr(problem.value)(*wide[:2])
        except Exception as error:  # whatever a user's function raises there
            stopped, stopped_at = said(error), raised_at(error)
    if stopped:
        value = jax.make_jaxpr(problem.value)(*problem.arguments[:2])
    random = any(map(draws, low))
    same = not stopped and not random and alike(low[0], high[0])
    return Programs(low[0], low[1], high[0], high[1], stopped, stopped_at, random, same, value)


def runner(closed: Any) -> Callable[..., list[Any]]:
    """A traced program in float64 without its casts to lower precision."""
    return replay(closed) if casts(closed) else function_of(closed)
