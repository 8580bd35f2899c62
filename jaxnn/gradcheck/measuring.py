"""Measures a rule and jax.grad at one point, in the given precision and in float64, and how far each may be off.

The letters are those of `jaxnn.gradcheck.judge`: a, h; r, h₆₄; σ, s, N, τ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import DType
from jaxnn.gradcheck.arrays import ASIDE, ROUNDOFF, as_float64, finite, rms, sizes
from jaxnn.gradcheck.evidence import Evidence, Shared
from jaxnn.gradcheck.programs import Problem, Programs, compiled, runner, trace
from jaxnn.gradcheck.replay import replay, widen
from jaxnn.jaxprs import function_of

FLOAT32_ROUNDOFF = 2.0**-24
JITTERS = 4  # points near x
JITTER = 4  # units of roundoff
FLOAT64_NOISE = 16  # times s
NARROWED = 64 * ROUNDOFF / FLOAT32_ROUNDOFF  # times float32's noise: float64's, with room for another order of terms
FORWARD = 16  # times the relative error of the function, for its gradient: the curvature is unknown
JUMPS = 1e-3  # of the gradient: a larger change within a millionth is a kink, or bends as sharply


class Measured(NamedTuple):
    """The measurements behind the verdict on one leaf, in float64; the letters are those of `jaxnn.gradcheck.judge`."""

    problem: Problem  # of which a leaf is judged; here its functions are not called
    name: str  # the leaf's
    random: bool  # whether random numbers are drawn, so that the float64 program draws others
    hand: np.ndarray  # h
    auto: np.ndarray  # a
    hand64: np.ndarray  # h₆₄
    auto64: np.ndarray  # r
    replayed: np.ndarray  # the low-precision program of the rule, in float64 arithmetic
    reference: np.ndarray  # what `replayed` is compared with
    sigma: np.ndarray  # σ
    s: np.ndarray  # s
    u: float  # the unit roundoff of the leaf, or that of the lower precision in which its rule computes
    coarsest: float  # that of the coarsest leaf or gradient of the problem
    apart: np.ndarray  # the largest |h₆₄ − r| at two points beside x, off its kinks
    jump: np.ndarray  # the smallest change of r from x to one of them
    beside: np.ndarray  # the largest |r| there
    evidence: Evidence  # what is measured when it is asked for
    narrow: np.ndarray | float = 0.0  # the noise of float32, once `evidence` has given it

    @property
    def noise(self) -> np.ndarray:
        """Nᵢ."""
        if self.coarsest == ROUNDOFF:
            return np.asarray(self.s + rms(self.s) + ROUNDOFF * np.abs(finite(self.auto64)))
        away = finite(np.abs(self.hand - self.replayed))  # not h₆₄: float64 draws other random numbers
        return np.asarray(self.sigma + rms(self.sigma) + self.u * np.abs(finite(self.reference)) + away)

    @property
    def rounding(self) -> np.ndarray:
        """τᵢ, without the error of the function itself."""
        u = FLOAT32_ROUNDOFF if self.coarsest == ROUNDOFF else self.coarsest
        above = np.sqrt(u / ROUNDOFF) if self.coarsest == ROUNDOFF else np.sqrt(ROUNDOFF / u)
        return np.asarray(above * self.noise + FLOAT64_NOISE * (self.s + rms(self.s)) + NARROWED * self.narrow)

    @property
    def threshold(self) -> np.ndarray:
        """τᵢ."""
        size = np.abs(finite(self.auto64)) + rms(self.auto64)
        return np.asarray(self.rounding + FORWARD * self.problem.forward_error * size)

    @property
    def jumps(self) -> np.ndarray:
        """The change of jax.grad between x and a millionth beside it; 0 where it is no jump."""
        size = np.maximum(np.abs(finite(self.auto64)), np.maximum(self.jump, rms(self.auto64)))
        return np.where(self.jump > JUMPS * size, self.jump, 0.0)


def excess(off: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """|off| as a multiple of what is allowed; 0 where nothing is off."""
    off = np.abs(off)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(off == 0, 0.0, off / allowed)
    return np.asarray(np.where(np.isnan(ratio), np.inf, ratio))


# ---------------------------------------------------------------- programs, compiled together

Point = tuple[list[Any], Any, list[Any]]  # `Problem.arguments`
Pair = tuple[list[Any], list[Any]]  # gradients by hand and by jax.grad, of every leaf


class Compiled(NamedTuple):
    """Compiled programs of many problems: one compilation for each precision.

    `low` gives (h, a) and `high` (h₆₄, r) of every problem; `replays` gives those of the low-precision programs in
    float64 arithmetic, where they differ.
    """

    programs: list[Programs]
    low: Callable[[list[Point]], list[Pair]]
    high: Callable[[list[Point]], list[Pair]]
    replays: Callable[[list[Point]], list[Pair | None]]


def prepare(problems: Sequence[Problem]) -> Compiled:
    """Traces the problems; each program is compiled when it is first called."""
    programs = [trace(problem) for problem in problems]

    def both(hand: Callable[..., list[Any]], auto: Callable[..., list[Any]], point: Point) -> Pair:
        flat = jax.tree.leaves(point)
        return hand(*flat), auto(*flat)

    def low(points: list[Point]) -> list[Pair]:
        return [
            both(function_of(p.hand), function_of(p.auto), point) for p, point in zip(programs, points, strict=True)
        ]

    def high(points: list[Point]) -> list[Pair]:
        return [
            both(replay(p.hand), replay(p.auto), point) if p.stopped
            else both(runner(p.hand64), runner(p.auto64), point)
            for p, point in zip(programs, points, strict=True)
        ]  # fmt: skip

    def replays(points: list[Point]) -> list[Pair | None]:
        return [
            None if p.same or p.stopped else both(replay(p.hand), replay(p.auto) if p.random else lambda *_: [], point)
            for p, point in zip(programs, points, strict=True)
        ]

    return Compiled(programs, *map(compiled, (low, high, replays)))


# ---------------------------------------------------------------- measuring


def measure(run: Compiled, problems: Sequence[Problem], seed: int = 0) -> list[list[Measured]]:
    """Runs all programs; one record for each leaf of each problem, which may have other δs than those prepared."""
    rng = np.random.default_rng(seed)
    points = [problem.arguments for problem in problems]
    beside, s = _beside(run, problems, points, rng)
    low, high, replayed = _results(run, points)
    squares = _errors(run, low, high, replayed)
    for _ in range(JITTERS):  # one point after another, so that the gradients of a large network are held once
        errors = _errors(run, *_results(run, _moved(points, rng, lambda x, u: x * (1 + JITTER * u * _signs(rng, x)))))
        squares = jax.tree.map(np.add, squares, errors)
    return [
        [
            Measured(
                problem=problem,
                name=name,
                random=p.random,
                hand=low[k][0][i],
                auto=low[k][1][i],
                hand64=high[k][0][i],
                auto64=high[k][1][i],
                replayed=(replayed[k] or high[k])[0][i],
                reference=_reference(p, high[k], replayed[k])[i],
                sigma=np.sqrt(squares[k][i] / (JITTERS + 1)),
                s=s[k][i],
                u=max(_roundoff(p.hand.out_avals[i].dtype), problem.unit),
                coarsest=_coarsest(problem, p),
                apart=beside[k][i][0],
                jump=np.minimum(*(np.abs(finite(r - high[k][1][i])) for r in beside[k][i][1])),
                beside=np.maximum(*(np.abs(finite(r)) for r in beside[k][i][1])),
                evidence=Evidence(shared, i),
            )
            for i, name in enumerate(problem.names)
        ]
        for k, (problem, p) in enumerate(zip(problems, run.programs, strict=True))
        for shared in [Shared(problem, p)]
    ]


def _beside(
    run: Compiled, problems: Sequence[Problem], points: list[Point], rng: np.random.Generator
) -> tuple[list[list[tuple[np.ndarray, list[np.ndarray]]]], list[list[np.ndarray]]]:
    """Of every leaf, at two points beside x, the largest |h₆₄ − r| and r at each; and s, by a jitter of the first."""
    with jax.enable_x64(True):
        wide = widen(points)
        aside = [_moved(wide, rng, lambda x, u: x + ASIDE * sizes(x) * rng.uniform(-1, 1, x.shape)) for _ in range(2)]
        jittered = _moved(aside[0], rng, lambda x, u: x * (1 + JITTER * ROUNDOFF * _signs(rng, x)))
        first, second, after = (jax.tree.map(as_float64, run.high(at)) for at in (*aside, jittered))
    beside, s = [], []
    for k, (problem, p) in enumerate(zip(problems, run.programs, strict=True)):
        pairs = zip(*first[k], *second[k], strict=True)
        beside.append([(np.maximum(np.abs(h - r), np.abs(h2 - r2)), [r, r2]) for h, r, h2, r2 in pairs])
        by_hand, by_auto = jax.tree.map(lambda x, y: finite(np.abs(x - y)), after[k], first[k])
        s.append(list(map(np.add, by_hand, by_auto)) if _coarsest(problem, p) == ROUNDOFF else by_auto)
    return beside, s


def _results(run: Compiled, points: list[Point]) -> tuple[list[Pair], list[Pair], list[Pair | None]]:
    """(h, a), (h₆₄, r) and the replays of every problem at the points, as float64 NumPy arrays."""
    low = jax.tree.map(as_float64, run.low(points))
    with jax.enable_x64(True):
        wide = widen(points)
        return low, jax.tree.map(as_float64, run.high(wide)), jax.tree.map(as_float64, run.replays(wide))


def _errors(run: Compiled, low: list[Pair], high: list[Pair], replayed: list[Pair | None]) -> list[list[np.ndarray]]:
    """(a − r)² of every leaf."""
    return [
        [finite(a - r) ** 2 for a, r in zip(low[k][1], _reference(p, high[k], replayed[k]), strict=True)]
        for k, p in enumerate(run.programs)
    ]


def _reference(programs: Programs, high: Pair, replayed: Pair | None) -> list[np.ndarray]:
    """The exact values of the low-precision gradients: not r where float64 draws other random numbers."""
    return high[1] if replayed is None or not programs.random else replayed[1]


def _coarsest(problem: Problem, programs: Programs) -> float:
    dtypes = [*(aval.dtype for aval in programs.hand.out_avals), *(leaf.dtype for leaf in problem.leaves)]
    return max([problem.unit, *map(_roundoff, dtypes)]) if dtypes else ROUNDOFF


def _moved(
    points: list[Point], rng: np.random.Generator, move: Callable[[np.ndarray, float], np.ndarray]
) -> list[Point]:
    """The same points with their leaves moved in float64 and rounded back to their own precision."""

    def one(leaf: Any) -> Any:
        return jnp.asarray(move(as_float64(leaf), _roundoff(leaf.dtype)), leaf.dtype)

    return [([one(leaf) for leaf in leaves], fixed, deltas) for leaves, fixed, deltas in points]


def _signs(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    return np.asarray(rng.integers(0, 2, x.shape) * 2.0 - 1)


def _roundoff(dtype: DType) -> float:
    """u: half the distance from 1 to the next number, 2⁻²⁴ in float32."""
    return float(jnp.finfo(dtype).eps) / 2
