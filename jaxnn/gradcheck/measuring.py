"""Measuring a rule and jax.grad at one point, in the precision that was given and in float64, and what each may be off.

The letters are those of `jaxnn.gradcheck.judge`: a, h; r, h₆₄; σ, s, N, τ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.arrays import ASIDE, as_float64, finite, rms, scales
from jaxnn.gradcheck.programs import Problem, Programs, compiled, runner, trace
from jaxnn.gradcheck.replay import replay, widen
from jaxnn.jaxprs import function_of

ROUNDOFF = 2.0**-53  # of float64
FLOAT32_ROUNDOFF = 2.0**-24
JITTERS = 4  # points beside x
JITTER = 4  # units of roundoff
FLOAT64_NOISE = 16  # times s
NARROWED = 64 * ROUNDOFF / FLOAT32_ROUNDOFF  # times float32's noise: float64's, with room for another order of terms
FORWARD = 16  # times the forward's own relative error that a gradient may be off: its curvature is not known


class Measured(NamedTuple):
    """What the verdict on one leaf rests on; arrays of float64, as in this module's docstring.

    `replayed` is the low-precision rule in float64 arithmetic, and `reference` what that is compared with; `apart` is
    the largest |h₆₄ − r| at two points moved off kinks, `beside` the largest |r| there, and `jump` the least change of
    r to one of them. `forward` is
    the forward's own relative error, as given; `narrow` is float32's noise, where it was asked for.
    """

    hand: np.ndarray
    auto: np.ndarray
    hand64: np.ndarray
    auto64: np.ndarray
    replayed: np.ndarray
    reference: np.ndarray
    sigma: np.ndarray
    s: np.ndarray
    u: float
    coarsest: float
    apart: np.ndarray
    jump: np.ndarray
    beside: np.ndarray
    forward: float = 0.0
    narrow: np.ndarray | float = 0.0


class Compiled(NamedTuple):
    """Compiled programs for many problems at once: one compilation for each precision.

    `low` gives (h, a) and `high` (h₆₄, r) of every problem; `replays` those of the low-precision programs in
    float64 arithmetic, for the problems for which that is another question.
    """

    problems: list[Problem]
    programs: list[Programs]
    low: Callable[[list[Any]], list[Any]]
    high: Callable[[list[Any]], list[Any]]
    replays: Callable[[list[Any]], list[Any]]


def prepare(problems: Sequence[Problem]) -> Compiled:
    """Traces the problems; nothing is compiled before it is called."""
    programs = [trace(problem) for problem in problems]

    def both(hand: Any, auto: Any, arguments: Any) -> tuple[list[Any], list[Any]]:
        flat = jax.tree.leaves(arguments)
        return hand(*flat), auto(*flat)

    def low(points: list[Any]) -> list[Any]:
        return [
            both(function_of(p.hand), function_of(p.auto), point) for p, point in zip(programs, points, strict=True)
        ]

    def high(points: list[Any]) -> list[Any]:
        return [
            both(replay(p.hand), replay(p.auto), point) if p.stopped
            else both(runner(p.hand64), runner(p.auto64), point)
            for p, point in zip(programs, points, strict=True)
        ]  # fmt: skip

    def replays(points: list[Any]) -> list[Any]:
        return [
            None if p.same or p.stopped else both(replay(p.hand), replay(p.auto) if p.random else lambda *_: [], point)
            for p, point in zip(programs, points, strict=True)
        ]

    return Compiled(list(problems), programs, *map(compiled, (low, high, replays)))


def measure(run: Compiled, points: list[Any], seed: int = 0) -> list[list[Measured]]:
    """Runs everything at the points, one `Problem.arguments` for each; one record for each leaf of each problem."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        aside = [_moved(widen(points), rng, _step_aside(rng)) for _ in range(2)]
        shaken = _moved(aside[0], rng, lambda x, u: x * (1 + JITTER * ROUNDOFF * _signs(rng, x)))
        asides, after = [run.high(point) for point in aside], run.high(shaken)
        changes = jax.tree.map(lambda a, b: np.abs(as_float64(a) - as_float64(b)), after, asides[0])
        apart = [
            [np.maximum(*(np.abs(as_float64(result[k][0][i]) - as_float64(result[k][1][i])) for result in asides))
             for i in range(len(program.hand.out_avals))]
            for k, program in enumerate(run.programs)
        ]  # fmt: skip
        nearby = [[tuple(as_float64(result[k][1][i]) for result in asides) for i in range(len(program.auto.out_avals))]
                  for k, program in enumerate(run.programs)]  # fmt: skip
        del asides, after
    low, high, replayed = _results(run, points)
    jumps = [
        [np.minimum(*(np.abs(finite(x - r)) for x in beside)) for beside, r in zip(near, exact[1], strict=True)]
        for near, exact in zip(nearby, high, strict=True)
    ]
    sizes = [[np.maximum(*(np.abs(finite(x)) for x in beside)) for beside in near] for near in nearby]
    del nearby
    squares = _errors(run, low, high, replayed)
    for _ in range(JITTERS):  # one point after another: large networks are kept once
        errors = _errors(run, *_results(run, _moved(points, rng, lambda x, u: x * (1 + JITTER * u * _signs(rng, x)))))
        squares = jax.tree.map(np.add, squares, errors)
    return [
        [
            Measured(
                hand=low[k][0][i],
                auto=low[k][1][i],
                hand64=high[k][0][i],
                auto64=high[k][1][i],
                replayed=high[k][0][i] if replayed[k] is None else replayed[k][0][i],
                reference=_reference(program, high[k], replayed[k])[i],
                sigma=np.sqrt(squares[k][i] / (JITTERS + 1)),
                s=finite(changes[k][1][i])
                + (finite(changes[k][0][i]) if _coarsest(problem, program) == ROUNDOFF else 0),
                u=_roundoff(aval.dtype),
                coarsest=_coarsest(problem, program),
                apart=apart[k][i],
                jump=jumps[k][i],
                beside=sizes[k][i],
                forward=problem.forward_error,
            )
            for i, aval in enumerate(program.hand.out_avals)
        ]
        for k, (problem, program) in enumerate(zip(run.problems, run.programs, strict=True))
    ]


def _results(run: Compiled, points: list[Any]) -> tuple[Any, Any, Any]:
    """(h, a), (h₆₄, r) and the replays of every problem at the points, as float64 in NumPy, which knows no x64 mode."""
    low = jax.tree.map(as_float64, run.low(points))
    with jax.enable_x64(True):
        wide = widen(points)
        return low, jax.tree.map(as_float64, run.high(wide)), jax.tree.map(as_float64, run.replays(wide))


def _errors(run: Compiled, low: Any, high: Any, replayed: Any) -> list[list[np.ndarray]]:
    """(a − r)² of every leaf."""
    return [
        [finite(a - r) ** 2 for a, r in zip(low[k][1], _reference(program, high[k], replayed[k]), strict=True)]
        for k, program in enumerate(run.programs)
    ]


def _reference(program: Programs, high: Any, replayed: Any) -> list[np.ndarray]:
    """What low precision is held against: where random numbers are drawn, float64 draws others."""
    found: list[np.ndarray] = replayed[1] if program.random and not program.stopped else high[1]
    return found


def _coarsest(problem: Problem, program: Programs) -> float:
    dtypes = [*(aval.dtype for aval in program.hand.out_avals), *(leaf.dtype for leaf in problem.leaves)]
    return max(map(_roundoff, dtypes))


def _moved(points: list[Any], rng: np.random.Generator, move: Callable[[np.ndarray, float], np.ndarray]) -> list[Any]:
    """The same points, their leaves moved in float64 and rounded to what they were."""

    def one(leaf: Any) -> Any:
        wide = np.asarray(leaf).astype(np.float64)
        return jnp.asarray(move(wide, _roundoff(leaf.dtype)), leaf.dtype)

    return [([one(leaf) for leaf in leaves], fixed, deltas) for leaves, fixed, deltas in points]


def _signs(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    return np.asarray(rng.integers(0, 2, x.shape) * 2.0 - 1)


def _step_aside(rng: np.random.Generator) -> Callable[[np.ndarray, float], np.ndarray]:
    return lambda x, u: x + ASIDE * scales(x) * rng.uniform(-1, 1, x.shape)


def _roundoff(dtype: Any) -> float:
    """u: half the distance from 1 to the next number, 2⁻²⁴ in float32."""
    return float(jnp.finfo(dtype).eps) / 2


# ---------------------------------------------------------------- what may be off


def noise(m: Measured) -> np.ndarray:
    """Nᵢ."""
    if m.coarsest == ROUNDOFF:
        return np.asarray(m.s + rms(m.s) + ROUNDOFF * np.abs(finite(m.auto64)))
    away = np.abs(m.hand - m.replayed)  # where random numbers are drawn, float64 draws others
    return np.asarray(m.sigma + rms(m.sigma) + m.u * np.abs(finite(m.reference)) + finite(away))


def threshold(m: Measured) -> np.ndarray:
    """τᵢ."""
    u = FLOAT32_ROUNDOFF if m.coarsest == ROUNDOFF else m.coarsest
    above = np.sqrt(u / ROUNDOFF) if m.coarsest == ROUNDOFF else np.sqrt(ROUNDOFF / u)
    forward = FORWARD * m.forward * (np.abs(finite(m.auto64)) + rms(m.auto64))
    return np.asarray(above * noise(m) + FLOAT64_NOISE * (m.s + rms(m.s)) + NARROWED * m.narrow + forward)


def excess(off: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """|off| as a multiple of what is allowed; 0 where nothing is off."""
    off = np.abs(off)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(off == 0, 0.0, off / allowed)
    return np.asarray(np.where(np.isnan(ratio), np.inf, ratio))
