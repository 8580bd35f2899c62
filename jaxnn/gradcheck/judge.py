"""The verdict: is a hand-derived rule the gradient, judged in float64, with no tolerance for anyone to guess.

Rounding shrinks with the unit roundoff u, a wrong rule does not. So the rule is run in float64, whatever precision
it was written for, and held against jax.grad in float64. What may differ is not a constant but what rounding explains:

    a, h      jax.grad and the hand rule in the given precision, u = 2⁻²⁴ for float32 (2⁻⁸ bfloat16, 2⁻¹¹ float16)
    r, h₆₄    the same two in float64
    σᵢ        root mean square of (a − r)ᵢ at x and at 4 points x(1 ± 4u)      what rounding does in that precision
    sᵢ        |change of rᵢ| under a jitter of 4·2⁻⁵³                          what rounding does in float64
    Nᵢ      = σᵢ + rms σ + u|rᵢ| + |h − h₆₄|ᵢ                                  the noise of the given precision
    τᵢ      = √(2⁻⁵³/u) Nᵢ + 16 (sᵢ + rms s)                                   halfway, in digits, to float64's noise

A leaf is right if |h₆₄ − r| ≤ τ at every element; no sum over a leaf enters, so its size does not matter. Where
more than that is off, three further questions separate a wrong rule from a kink and from what cannot be told. Then
the low-precision program itself is replayed in float64 arithmetic, which finds a fault that only exists there; where
it is off by more than rounded constants explain and by less than rounding does, nothing can be told.

In float64 there is no lower precision to learn from: N = s + rms s + u|r|, with the hand rule's own s added, and τ
is as many digits above it as float32's. A jitter does not show what is rounded inside, where the argument is small
beside what it is added to (exp x at x = 1e-6). So where more is off than that, both rules are run in float32 as well,
and 64·2⁻²⁹ of what rounding does there is added to τ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.court import ASIDE, MIXED, WITNESSED, Court, as_float64, finite, rms, scales
from jaxnn.gradcheck.differences import Slope
from jaxnn.gradcheck.programs import Problem, Programs, compiled, runner, trace
from jaxnn.gradcheck.replay import replay, widen
from jaxnn.gradcheck.report import CANNOT_TELL, KINK, NO_ELEMENTS, RIGHT, WRONG, Row
from jaxnn.jaxprs import function_of

ROUNDOFF = 2.0**-53  # of float64
FLOAT32_ROUNDOFF = 2.0**-24
JITTERS = 4  # points beside x
JITTER = 4  # units of roundoff
FLOAT64_NOISE = 16  # times s
REPLAYED = 8  # times the noise that a replayed low-precision rule may be off, and that casts explain
NARROWED = 64 * ROUNDOFF / FLOAT32_ROUNDOFF  # times float32's noise: float64's, with room for another order of terms
CONSTANTS = 8  # times u that rounded constants explain in a well-conditioned rule
DROWNED = 0.01  # of the leaf: where τ is that large, nothing can be said
CONTRADICTS = 1e-4  # of the terms: nearer than this, differences do not contradict what two derivations agree on
BELOW = 10  # differences count as contradicting a value where they are this many of their own errors away


# ---------------------------------------------------------------- measuring


ONLY_HERE = "it agrees nearby and not at this point"


class Measured(NamedTuple):
    """What the verdict on one leaf rests on; arrays of float64, as in this module's docstring.

    `replayed` is the low-precision rule in float64 arithmetic, and `reference` what that is held against; `apart` is
    the largest |h₆₄ − r| at two points moved off kinks. `narrow` is float32's noise, where it was asked for.
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
    narrow: np.ndarray | float = 0.0


class Bench(NamedTuple):
    """Compiled programs for many problems at once: one compilation for each precision.

    `low` gives (h, a) and `high` (h₆₄, r) of every problem; `replays` those of the low-precision programs in
    float64 arithmetic, for the problems for which that is another question.
    """

    problems: list[Problem]
    programs: list[Programs]
    low: Callable[[list[Any]], list[Any]]
    high: Callable[[list[Any]], list[Any]]
    replays: Callable[[list[Any]], list[Any]]


def prepare(problems: Sequence[Problem]) -> Bench:
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

    return Bench(list(problems), programs, *map(compiled, (low, high, replays)))


def measure(bench: Bench, points: list[Any], seed: int = 0) -> list[list[Measured]]:
    """Runs everything at the points, one `Problem.arguments` for each; one record for each leaf of each problem."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        aside = [_moved(widen(points), rng, _step_aside(rng)) for _ in range(2)]
        shaken = _moved(aside[0], rng, lambda x, u: x * (1 + JITTER * ROUNDOFF * _signs(rng, x)))
        asides, after = [bench.high(point) for point in aside], bench.high(shaken)
        changes = jax.tree.map(lambda a, b: np.abs(as_float64(a) - as_float64(b)), after, asides[0])
        apart = [
            [np.maximum(*(np.abs(as_float64(result[k][0][i]) - as_float64(result[k][1][i])) for result in asides))
             for i in range(len(program.hand.out_avals))]
            for k, program in enumerate(bench.programs)
        ]  # fmt: skip
        del asides, after
    low, high, replayed = _results(bench, points)
    squares = _errors(bench, low, high, replayed)
    for _ in range(JITTERS):  # one point after another: large networks are kept once
        errors = _errors(
            bench, *_results(bench, _moved(points, rng, lambda x, u: x * (1 + JITTER * u * _signs(rng, x))))
        )
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
            )
            for i, aval in enumerate(program.hand.out_avals)
        ]
        for k, (problem, program) in enumerate(zip(bench.problems, bench.programs, strict=True))
    ]


def _results(bench: Bench, points: list[Any]) -> tuple[Any, Any, Any]:
    """(h, a), (h₆₄, r) and the replays of every problem at the points, as float64 in NumPy, which knows no x64 mode."""
    low = jax.tree.map(as_float64, bench.low(points))
    with jax.enable_x64(True):
        wide = widen(points)
        return low, jax.tree.map(as_float64, bench.high(wide)), jax.tree.map(as_float64, bench.replays(wide))


def _errors(bench: Bench, low: Any, high: Any, replayed: Any) -> list[list[np.ndarray]]:
    """(a − r)² of every leaf."""
    return [
        [finite(a - r) ** 2 for a, r in zip(low[k][1], _reference(program, high[k], replayed[k]), strict=True)]
        for k, program in enumerate(bench.programs)
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


# ---------------------------------------------------------------- the verdict


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
    return np.asarray(above * noise(m) + FLOAT64_NOISE * (m.s + rms(m.s)) + NARROWED * m.narrow)


def excess(off: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """|off| as a multiple of what is allowed; 0 where nothing is off."""
    off = np.abs(off)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(off == 0, 0.0, off / allowed)
    return np.asarray(np.where(np.isnan(ratio), np.inf, ratio))


def judge(problems: Sequence[Problem], seed: int = 0) -> list[list[Row]]:
    """One row for each leaf of each problem; they are compiled together, once for each precision."""
    bench = prepare(problems)
    measured = measure(bench, [problem.arguments for problem in bench.problems], seed)
    return [verdicts(*args) for args in zip(bench.problems, bench.programs, measured, strict=True)]


def verdicts(problem: Problem, programs: Programs, measured: list[Measured]) -> list[Row]:
    """One row for each leaf of a problem that has been measured."""
    court = Court(problem, programs)
    leaves = zip(problem.names, measured, strict=True)
    return [_verdict(court, i, name, m) for i, (name, m) in enumerate(leaves)]


def _verdict(court: Court, i: int, name: str, m: Measured) -> Row:
    problem = court.problem
    if m.auto64.size == 0:
        return Row(problem.place, problem.kind, name, RIGHT, NO_ELEMENTS)
    off = excess(m.hand64 - m.auto64, threshold(m))
    if m.coarsest == ROUNDOFF and off.max() > 1:
        m = m._replace(narrow=court.narrow()[i])
        off = excess(m.hand64 - m.auto64, threshold(m))
    worst = _worst(off, m.auto64)
    row = _with_ulps(
        Row(
            problem.place,
            problem.kind,
            name,
            RIGHT,
            element=tuple(map(int, worst)),
            hand=float(m.hand64[worst]),
            autodiff=float(m.auto64[worst]),
            excess=float(off[worst]),
        ),
        m,
    )
    if not np.isfinite(m.auto64).all():
        return _not_finite(court, i, m, row)
    if off.max() > 1:
        return _suspect(court, i, m, off, row)
    overflow = ~np.isfinite(m.hand) & np.isfinite(m.auto)
    if overflow.any():
        worst = _first(overflow)
        why = f"{m.hand[worst]} in the given precision, where jax.grad is finite ({m.auto[worst]:.7g})"
        return row._replace(verdict=WRONG, why=why, element=worst)
    if m.coarsest != ROUNDOFF:
        gate = REPLAYED * (m.sigma + rms(m.sigma) + m.u * np.abs(finite(m.reference))) + threshold(m)
        low = excess(m.replayed - m.reference, gate)
        if low.max() > 1:
            return _low_precision_only(court, i, m, low, row)
        rounded = CONSTANTS * m.u * (np.abs(finite(m.reference)) + rms(m.reference) / 4) + threshold(m)
        low = excess(m.replayed - m.reference, rounded)
        if low.max() > 1:
            return _low_precision_drowned(m, low, row)
    if rms(threshold(m)) > DROWNED * rms(m.auto64) and rms(m.auto64) > 0 and off.max() > 0:
        why = "rounding alone is over 1 % of this gradient, in float64 too: the point is ill-conditioned"
        return row._replace(verdict=CANNOT_TELL, why=why)
    return _contradicted(court, i, m, row) if problem.witness else row


def _worst(off: np.ndarray, auto: np.ndarray) -> tuple[Any, ...]:
    """The element furthest off; where none is, the largest gradient."""
    flat = int(np.argmax(off)) if off.max() > 0 else int(np.argmax(np.abs(finite(auto))))
    return tuple(np.unravel_index(flat, auto.shape))


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(int(np.argmax(mask)), mask.shape)))


def _with_ulps(row: Row, m: Measured) -> Row:
    """Errors in the given precision, in units in the last place of the element or of the leaf's size, if larger."""
    size = np.maximum(np.abs(finite(m.reference)), rms(m.reference))
    unit = 2 * m.u * 2.0 ** np.floor(np.log2(np.where(size > 0, size, 1)))
    hand, auto = (float(np.max(np.abs(finite(x - m.reference)) / unit)) for x in (m.hand, m.auto))
    return row._replace(ulps=hand, autodiff_ulps=auto)


def _suspect(court: Court, i: int, m: Measured, off: np.ndarray, row: Row) -> Row:
    """More is off than rounding explains: wrong, unless it is a kink, or something stopped float64."""
    tau = threshold(m)
    order = np.argsort(off, axis=None)[::-1][:WITNESSED]
    elements = [tuple(map(int, np.unravel_index(int(flat), off.shape))) for flat in order if off.flat[flat] > 1]
    slopes = [court.slope(i, element) for element in elements] if court.problem.auto is None else []
    row = row._replace(differences=slopes[0].value if slopes else None)
    if (excess(m.apart, tau) <= 1).all():
        if slopes:
            return _at_a_kink(court, i, m, elements, slopes, row)
        return row._replace(verdict=WRONG, why=ONLY_HERE)
    stopped = court.stopped()
    if stopped and (np.abs(m.hand64 - m.auto64) <= REPLAYED * noise(m) + tau).all():
        why = f"{stopped[0].what} keeps float64 from getting through, and what is off may be its rounding"
        return row._replace(verdict=CANNOT_TELL, why=why, source=stopped[0].source)
    for element, slope in zip(elements, slopes, strict=False):
        h, r = float(m.hand64[element]), float(m.auto64[element])
        if abs(slope.value - r) > BELOW * slope.error and abs(slope.value - h) < abs(slope.value - r) / 3:
            why = (
                f"differences side with the hand-derived gradient, {slope.value:.7g}: jax.grad contradicts the "
                "function (a custom rule or a stop_gradient inside it)"
            )
            return row._replace(
                verdict=CANNOT_TELL, why=why, element=element, hand=h, autodiff=r, differences=slope.value
            )
    count = int((off > 1).sum())
    why = f"{count} of {off.size} elements are off by more than rounding explains, the worst {row.excess:.1e} times"
    return row._replace(verdict=WRONG, why=f"{why}.{_guess(m)}")


def _guess(m: Measured) -> str:
    """The usual mistakes, where one explains every element."""
    h, r = m.hand64, m.auto64
    known = np.abs(r) > 1e-6 * np.abs(r).max(initial=0)
    if not known.any():
        return ""
    if not h.any():
        return " It is all zeros."
    ratio = h[known] / r[known]
    if np.ptp(ratio) <= 1e-6 * np.abs(ratio - 1).max():
        return f" It is {ratio.mean():.9g} times jax.grad's, everywhere."
    if h.ndim == 2 and h.shape[0] == h.shape[1] and np.allclose(h.T, r, rtol=1e-6, atol=1e-9 * np.abs(r).max()):
        return " It is the transpose of jax.grad's."
    return ""


def _at_a_kink(
    court: Court,
    i: int,
    m: Measured,
    elements: list[tuple[int, ...]],
    slopes: list[Slope],
    row: Row,
) -> Row:
    """The rule agrees with jax.grad a millionth to the side: a kink, if the function bends and h is a mixture there.

    What a rule may answer is Clarke's generalised gradient: the mixtures of the gradients of the pieces that meet.
    """
    for element, slope in zip(elements, slopes, strict=True):
        h, r = float(m.hand64[element]), float(m.auto64[element])
        here = row._replace(
            element=element, hand=h, autodiff=r, differences=slope.value, slopes=(slope.left, slope.right)
        )
        if not slope.bends:
            why = "it agrees with jax.grad nearby and not at this point, where the function has no kink"
            return here._replace(verdict=WRONG, why=why)
    found, outside, gave_up = court.mixture(i, m.hand64, m.hand64 - m.auto64)
    if gave_up and (outside is not None or found.short > MIXED):
        why = "more branches meet here than could be tried; no mixture of the gradients of those that were is this"
        return row._replace(verdict=CANNOT_TELL, why=why)
    if outside is not None:
        h, (low, high) = float(m.hand64[outside]), (float(found.low[outside]), float(found.high[outside]))
        why = f"at a kink: {h:.7g} is not between the slopes nearby, {low:.7g} and {high:.7g}"
        here = row._replace(element=outside, hand=h, autodiff=float(m.auto64[outside]), slopes=(low, high))
        return here._replace(verdict=WRONG, why=why)
    if found.short > MIXED:
        why = "at a tie: each element is between its slopes, but no mixture of the gradients nearby gives them all"
        return row._replace(verdict=WRONG, why=why)
    left, right = slopes[0].left, slopes[0].right
    first = elements[0]
    row = row._replace(element=first, hand=float(m.hand64[first]), differences=slopes[0].value)
    why = f"the slope jumps here from {left:.7g} to {right:.7g}: both answers are allowed"
    not_finite = row.element == first and not np.isfinite(row.autodiff or 0.0)
    auto = row.autodiff if not_finite else float(m.auto64[first])
    return row._replace(verdict=KINK, why=why, autodiff=auto, slopes=(left, right))


def _low_precision_only(court: Court, i: int, m: Measured, low: np.ndarray, row: Row) -> Row:
    """The rule is right in float64, and its low-precision program is not, even without rounding."""
    worst = tuple(map(int, _worst(low, m.reference)))
    row = row._replace(element=worst, hand=float(m.replayed[worst]), autodiff=float(m.reference[worst]))
    why = (
        "right in float64, and wrong in the precision given, where it is another program: replayed without rounding, "
        f"it is off by {low.max():.1e} times what that precision explains"
    )
    return row._replace(verdict=WRONG, why=why, excess=float(low.max()))


def _low_precision_drowned(m: Measured, low: np.ndarray, row: Row) -> Row:
    """Its low-precision program is off even without rounding, at a point where rounding is as large as that."""
    worst = tuple(map(int, _worst(low, m.reference)))
    row = row._replace(element=worst, hand=float(m.replayed[worst]), autodiff=float(m.reference[worst]))
    why = (
        "right in float64; in the precision given it is another program, off where nothing is rounded, and by less "
        "than rounding explains: the point is ill-conditioned in that precision"
    )
    return row._replace(verdict=CANNOT_TELL, why=why, excess=float(low.max()))


def _not_finite(court: Court, i: int, m: Measured, row: Row) -> Row:
    """jax.grad is NaN or infinite at the point: the slopes from both sides may still say what is allowed."""
    bad = ~np.isfinite(m.auto64)
    element = _first(bad)
    h, r = float(m.hand64[element]), float(m.auto64[element])
    row = row._replace(element=element, hand=h, autodiff=r, excess=None)
    elsewhere = excess(np.where(bad, 0, m.hand64 - finite(m.auto64)), threshold(m))
    if elsewhere.max() > 1:
        worst = tuple(map(int, _worst(elsewhere, m.auto64)))
        row = row._replace(element=worst, hand=float(m.hand64[worst]), autodiff=float(m.auto64[worst]))
        return row._replace(verdict=WRONG, why="off where jax.grad is finite, by more than rounding explains")
    if np.isfinite(m.hand64[bad]).all() and court.problem.auto is None:
        elements = [tuple(map(int, where)) for where in np.argwhere(bad)[:WITNESSED]]
        slopes = [court.slope(i, where) for where in elements]
        if all(np.isfinite([s.left, s.right]).all() and s.bends and s.has_sides for s in slopes):
            return _at_a_kink(court, i, m._replace(auto64=np.where(bad, 0, m.auto64)), elements, slopes, row)
    why = f"jax.grad is {r} at {int(bad.sum())} of {bad.size} elements, first at {list(element)}"
    return row._replace(verdict=CANNOT_TELL, why=why)


def _contradicted(court: Court, i: int, m: Measured, row: Row) -> Row:
    """The third witness: hand rule and jax.grad agree; do differences, at one element and along one direction?"""
    assert row.element is not None
    slope = court.slope(i, row.element)
    rng = np.random.default_rng(i)
    v = rng.choice([-1.0, 1.0], m.auto64.shape) * scales(court.wide_leaf(i))
    along, whole = float(np.vdot(m.auto64, v)), court.slope_along(i, v)
    room = CONTRADICTS * float(np.abs(m.auto64 * v).sum())
    row = row._replace(differences=slope.value if np.isfinite(slope.value) else None)
    if not np.isfinite(whole.value) or whole.bends or abs(whole.value - along) <= BELOW * whole.error + room:
        return row
    why = (
        f"hand-derived gradient and jax.grad agree, and contradict the function: along a direction its slope is "
        f"{whole.value:.7g}, and theirs {along:.7g} (a custom rule or a stop_gradient inside it)"
    )
    return row._replace(verdict=CANNOT_TELL, why=why)
