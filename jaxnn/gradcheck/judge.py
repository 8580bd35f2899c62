"""The verdict: is a hand-derived rule the gradient, judged in float64, with no tolerance for anyone to guess.

Rounding shrinks with the unit roundoff u, a wrong rule does not. So the rule is run in float64, whatever precision
it was written for, and compared with jax.grad in float64. What may differ is not a constant but what rounding explains:

    a, h      jax.grad and the hand rule in the given precision, u = 2⁻²⁴ for float32 (2⁻⁸ bfloat16, 2⁻¹¹ float16)
    r, h₆₄    the same two in float64
    σᵢ        root mean square of (a − r)ᵢ at x and at 4 points x(1 ± 4u)      what rounding does in that precision
    sᵢ        |change of rᵢ| under a jitter of 4·2⁻⁵³                          what rounding does in float64
    Nᵢ      = σᵢ + rms σ + u|rᵢ| + |h − h₆₄|ᵢ                                  the noise of the given precision
    τᵢ      = √(2⁻⁵³/u) Nᵢ + 16 (sᵢ + rms s)                                   halfway, in digits, to float64's noise

A leaf is right if |h₆₄ − r| ≤ τ at every element; no sum over a leaf enters, so its size does not matter. Where
more than that is off, further questions separate a wrong rule from an allowed one (`nonsmooth`, where the two agree a
millionth to the side) and from what cannot be told. Then the low-precision program itself is replayed in float64
arithmetic, which finds a fault that only exists there; where it is off by more than rounded constants explain and by
less than rounding does, nothing can be told.

A gradient that an invariance makes 0 is the rounding of the terms that it sums. Where τ is over 1 % of a leaf, or
differences cannot tell h from r, both programs are shaken (`rounding`): what two derivations may differ by is 8 times
what rounding does to them then. Below it both are right, and 0 if both are smaller than that themselves.

In float64 there is no lower precision to learn from: N = s + rms s + u|r|, with the hand rule's own s added, and τ
is as many digits above it as float32's. A jitter does not show what is rounded inside, where the argument is small
beside what it is added to (exp x at x = 1e-6). So where more is off than that, both rules are run in float32 as well,
and 64·2⁻²⁹ of what rounding does there is added to τ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxnn.gradcheck.arrays import finite, rms, scales
from jaxnn.gradcheck.differences import Slope
from jaxnn.gradcheck.evidence import Evidence
from jaxnn.gradcheck.measuring import ROUNDOFF, Measured, excess, measure, noise, prepare, threshold
from jaxnn.gradcheck.nonsmooth import at_a_kink, first_of, jumps, not_finite, repeated, worst_elements, worst_of
from jaxnn.gradcheck.programs import Problem, Programs
from jaxnn.gradcheck.report import CANNOT_TELL, KINK, NO_ELEMENTS, RIGHT, WRONG, Row

REPLAYED = 8  # times the noise that a replayed low-precision rule may be off, and that what runs elsewhere explains
CONSTANTS = 8  # times u that rounded constants explain in a well-conditioned rule
DROWNED = 0.01  # of the leaf: where τ is that large, nothing can be said
CONTRADICTS = 1e-4  # of the terms: nearer than this, differences do not contradict what two derivations agree on
SAME = 64 * ROUNDOFF  # of a gradient: two derivations of one number
ALMOST = 1e-7  # of a gradient: further apart than that is no rounding
BELOW = 10  # differences count as contradicting a value where they are this many of their own errors away

ONLY_HERE = "it agrees nearby and not at this point"
ILL_CONDITIONED = "rounding alone is over 1 % of this gradient, in float64 too: the point is ill-conditioned"
ON_PURPOSE = (
    "A custom rule or a stop_gradient inside it, or rounding that differences do not see; if it is meant so, as in a "
    "straight-through estimator, give surrogate=True."
)


def judge(problems: Sequence[Problem], seed: int = 0) -> list[list[Row]]:
    """One row for each leaf of each problem; they are compiled together, once for each precision."""
    run = prepare(problems)
    measured = measure(run, [problem.arguments for problem in run.problems], seed)
    return [verdicts(*args) for args in zip(run.problems, run.programs, measured, strict=True)]


def verdicts(
    problem: Problem, programs: Programs, measured: list[Measured], evidence: Evidence | None = None
) -> list[Row]:
    """One row for each leaf of a problem that has been measured; evidence, where it is kept for more questions."""
    evidence = evidence or Evidence(problem, programs)
    leaves = zip(problem.names, measured, strict=True)
    return [_verdict(evidence, i, name, m) for i, (name, m) in enumerate(leaves)]


def _verdict(evidence: Evidence, i: int, name: str, m: Measured) -> Row:
    problem = evidence.problem
    if m.auto64.size == 0:
        return Row(problem.place, problem.kind, name, RIGHT, NO_ELEMENTS)
    off = excess(m.hand64 - m.auto64, threshold(m))
    if m.coarsest == ROUNDOFF and off.max() > 1:
        m = m._replace(narrow=evidence.narrow()[i])
        off = excess(m.hand64 - m.auto64, threshold(m))
    worst = worst_of(off, m.auto64)
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
        return not_finite(evidence, i, m, row)
    differs = off > 1
    if differs.any():
        row = _suspect(evidence, i, m, off, row)
        if row.verdict not in (RIGHT, KINK):
            return row
        known = m.replayed if evidence.programs.random else m.hand64  # allowed there, whatever jax.grad gives
        m = m._replace(reference=np.where(differs, known, m.reference))
    overflow = ~np.isfinite(m.hand) & np.isfinite(m.auto)
    if overflow.any():
        worst = first_of(overflow)
        why = f"{m.hand[worst]} in the given precision, where jax.grad is finite ({m.auto[worst]:.7g})"
        return row._replace(verdict=WRONG, why=why, element=worst)
    if m.coarsest != ROUNDOFF:
        gate = REPLAYED * (m.sigma + rms(m.sigma) + m.u * np.abs(finite(m.reference))) + threshold(m)
        low = excess(m.replayed - m.reference, gate)
        if low.max() > 1:
            return _low_precision_only(m, low, row)
        rounded = CONSTANTS * m.u * (np.abs(finite(m.reference)) + rms(m.reference) / 4) + threshold(m)
        low = excess(m.replayed - m.reference, rounded)
        if low.max() > 1:
            return _low_precision_drowned(m, low, row)
    if differs.any():
        return row
    rounding = threshold(m._replace(forward=0.0))
    if rms(rounding) > DROWNED * rms(m.auto64) > 0:
        row = _drowned(evidence, i, m, row)
    elif m.forward and excess(m.hand64 - m.auto64, rounding).max() > 1:
        row = row._replace(why=f"within what forward_error={m.forward:g} explains, and not within rounding")
    if row.verdict != RIGHT or not problem.witness or not problem.has_differences:
        return row
    return repeated(evidence, i, m, row) or _contradicted(evidence, i, m, row)


def _with_ulps(row: Row, m: Measured) -> Row:
    """Errors in the given precision, in units in the last place of the element or of the leaf's size, if larger."""
    size = np.maximum(np.abs(finite(m.reference)), rms(m.reference))
    unit = 2 * m.u * 2.0 ** np.floor(np.log2(np.where(size > 0, size, 1)))
    hand, auto = (float(np.max(np.abs(finite(x - m.reference)) / unit)) for x in (m.hand, m.auto))
    return row._replace(ulps=hand, autodiff_ulps=auto)


def _suspect(evidence: Evidence, i: int, m: Measured, off: np.ndarray, row: Row) -> Row:
    """More is off than rounding explains: wrong, but for a kink, a sum that cancels, or what stopped float64."""
    tau, problem = threshold(m), evidence.problem
    nearby = np.where(_differs_nearby(evidence, i, m, tau), off, 0.0)
    if not nearby.any():
        return (
            at_a_kink(evidence, i, m, off, row) if problem.auto is None else row._replace(verdict=WRONG, why=ONLY_HERE)
        )
    jumping = jumps(m) > 0
    steady = np.where(jumping, 0.0, nearby)
    elements = worst_elements(steady if steady.any() else nearby)
    slopes = [evidence.slope(i, element) for element in elements] if problem.has_differences else []
    row = row._replace(
        element=elements[0],
        hand=float(m.hand64[elements[0]]),
        autodiff=float(m.auto64[elements[0]]),
        differences=slopes[0].value if slopes else None,
    )
    if not any(_decides(slope, m, element) for element, slope in zip(elements, slopes, strict=False)):
        cancelled = _within_rounding(evidence, i, m, row)
        if cancelled is not None:
            return cancelled
    stopped = max(evidence.stopped(), key=lambda obstacle: obstacle.unit, default=None)
    if stopped is not None:
        explained = REPLAYED * noise(m) if np.isinf(stopped.unit) else _constants(m, stopped.unit)
        if (np.abs(m.hand64 - m.auto64) <= explained + tau).all():
            why = f"{stopped.what} keeps float64 from getting through, and what is off may be its rounding"
            return row._replace(verdict=CANNOT_TELL, why=why, source=stopped.source)
    for element, slope in zip(elements, slopes, strict=False):
        if jumping[element]:  # where jax.grad says another thing nearby, and it is there that the rule differs from it
            continue
        h, r = float(m.hand64[element]), float(m.auto64[element])
        room = BELOW * slope.error + CONTRADICTS * abs(slope.value)
        if abs(slope.value - r) > room and abs(slope.value - h) <= min(room, abs(slope.value - r) / 3):
            why = (
                f"differences side with the hand-derived gradient, {slope.value:.7g}: jax.grad contradicts the "
                f"function. {ON_PURPOSE}"
            )
            return row._replace(
                verdict=CANNOT_TELL, why=why, element=element, hand=h, autodiff=r, differences=slope.value
            )
    count = int((off > 1).sum())
    why = f"{count} of {off.size} elements are off by more than rounding explains, the worst {row.excess:.1e} times"
    return row._replace(verdict=WRONG, why=f"{why}.{_guess(m)}")


def _differs_nearby(evidence: Evidence, i: int, m: Measured, tau: np.ndarray) -> np.ndarray:
    """Where the rule and jax.grad differ a millionth to the side too, by more than rounding there explains."""
    size = m.beside + rms(m.beside)
    differs = np.asarray(m.apart > tau + SAME * size)
    if differs.any() and (m.apart <= ALMOST * size).all():
        differs &= m.apart > tau + SAME * size + evidence.rounding(i)
    return differs


def _decides(slope: Slope, m: Measured, element: tuple[int, ...]) -> bool:
    """Whether a slope by differences tells the hand-derived gradient from jax.grad's."""
    return bool(BELOW * slope.error < abs(m.hand64[element] - m.auto64[element]) / 3)


def _constants(m: Measured, u: float) -> np.ndarray:
    """What constants rounded to some precision explain in a well-conditioned rule."""
    return np.asarray(CONSTANTS * u * (np.abs(finite(m.auto64)) + rms(m.auto64) / 4))


# ---------------------------------------------------------------- sums that cancel


def _within_rounding(evidence: Evidence, i: int, m: Measured, row: Row) -> Row | None:
    """Right, if two derivations that sum the same terms may differ by as much, or undecidable; None if by less."""
    bound = evidence.rounding(i)
    most = max(float(np.abs(x).max()) for x in (m.hand64, m.auto64))
    zero = bool((np.abs(m.auto64) <= bound).all())
    if (np.abs(m.hand64 - m.auto64) <= bound).all():
        if zero and (np.abs(m.hand64) <= bound).all():
            why = (
                f"0 to rounding: at most {most:.1e}, where rounding the terms that are summed leaves {bound.max():.1e}"
            )
            return row._replace(verdict=RIGHT, why=why, excess=None, ulps=None, autodiff_ulps=None)
        if rms(bound) <= DROWNED * rms(m.auto64):
            return row._replace(verdict=RIGHT, why="they agree to the rounding of the terms that each of them sums")
        return row._replace(verdict=CANNOT_TELL, why=ILL_CONDITIONED)
    # Without differences jax.grad is what is meant, and what is left here is more than rounding.
    if zero and evidence.problem.has_differences:
        why = f"jax.grad is 0 to rounding, {bound.max():.1e}; the rule gives more, and less than differences resolve"
        return row._replace(verdict=CANNOT_TELL, why=why)
    return None


def _drowned(evidence: Evidence, i: int, m: Measured, row: Row) -> Row:
    """No digit of the gradient is left by the noise of the given precision: what float64's rounding leaves decides."""
    cancelled = _within_rounding(evidence, i, m, row)
    if (m.hand64 == m.auto64).all():  # then nothing has to be told apart
        return cancelled if cancelled is not None and cancelled.verdict == RIGHT else row
    if cancelled is None:
        return row._replace(verdict=CANNOT_TELL, why=ILL_CONDITIONED)
    if cancelled.verdict == CANNOT_TELL and cancelled.why != ILL_CONDITIONED and evidence.problem.has_differences:
        element = worst_elements(np.abs(m.hand64 - m.auto64))[0]
        slope, h = evidence.slope(i, element), float(m.hand64[element])
        if _decides(slope, m, element):
            why = f"jax.grad and differences are 0 to rounding here, and the rule gives {h:.7g}"
            return row._replace(verdict=WRONG, why=why, element=element, hand=h, differences=slope.value)
    return cancelled


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


# ---------------------------------------------------------------- the precision that was given


def _low_precision_only(m: Measured, low: np.ndarray, row: Row) -> Row:
    """The rule is right in float64, and its low-precision program is not, even without rounding."""
    worst = tuple(map(int, worst_of(low, m.reference)))
    row = row._replace(element=worst, hand=float(m.replayed[worst]), autodiff=float(m.reference[worst]))
    why = (
        "right in float64, and wrong in the precision given, where it is another program: replayed without rounding, "
        f"it is off by {low.max():.1e} times what that precision explains"
    )
    return row._replace(verdict=WRONG, why=why, excess=float(low.max()))


def _low_precision_drowned(m: Measured, low: np.ndarray, row: Row) -> Row:
    """Its low-precision program is off even without rounding, at a point where rounding is as large as that."""
    worst = tuple(map(int, worst_of(low, m.reference)))
    row = row._replace(element=worst, hand=float(m.replayed[worst]), autodiff=float(m.reference[worst]))
    why = (
        "right in float64; in the precision given it is another program, off where nothing is rounded, and by less "
        "than rounding explains: the point is ill-conditioned in that precision"
    )
    return row._replace(verdict=CANNOT_TELL, why=why, excess=float(low.max()))


# ---------------------------------------------------------------- where both agree


def _contradicted(evidence: Evidence, i: int, m: Measured, row: Row) -> Row:
    """Hand-derived rule and jax.grad agree; do differences, at one element and along one direction?"""
    element = row.element
    assert element is not None
    r, slope = float(m.auto64[element]), evidence.slope(i, element)
    rng = np.random.default_rng(i)
    v = rng.choice([-1.0, 1.0], m.auto64.shape) * scales(evidence.wide_leaf(i))
    along, terms = float(np.vdot(m.auto64, v)), float(np.abs(m.auto64 * v).sum())
    row = row._replace(differences=slope.value if np.isfinite(slope.value) else None)

    def contradicts(found: Slope, expected: float, terms: float) -> bool:
        off = abs(found.value - expected)
        return bool(np.isfinite(found.value) and not found.bends and off > BELOW * found.error + CONTRADICTS * terms)

    for where, found, again, expected, size in (
        ("here its slope", slope, partial(evidence.slope, i, element), r, abs(r)),
        ("along a direction its slope", evidence.slope_along(i, v), partial(evidence.slope_along, i, v), along, terms),
    ):
        if not contradicts(found, expected, size):
            continue
        found = again(noise=evidence.shaken_values())  # with what rounding does inside of the function
        if contradicts(found, expected, size):
            why = (
                f"hand-derived gradient and jax.grad agree, and contradict the function: {where} is {found.value:.7g}, "
                f"and theirs {expected:.7g}. {ON_PURPOSE}"
            )
            return row._replace(verdict=CANNOT_TELL, why=why)
    return row
