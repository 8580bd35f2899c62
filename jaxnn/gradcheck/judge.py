"""The verdict: is a hand-derived rule the gradient, decided in float64, with no tolerance to be chosen.

Rounding errors shrink with the unit roundoff u, those of a wrong rule do not. So the rule is run in float64, whatever
precision it was written for, and compared with jax.grad in float64. They may differ by what rounding explains:

    a, h      jax.grad and the hand rule in the given precision, u = 2⁻²⁴ for float32 (2⁻⁸ bfloat16, 2⁻¹¹ float16)
    r, h₆₄    the same two in float64
    σᵢ        root mean square of (a − r)ᵢ at x and at 4 points x(1 ± 4u)      the effect of rounding in that precision
    sᵢ        |change of rᵢ| under a jitter of 4·2⁻⁵³                          the effect of rounding in float64
    Nᵢ      = σᵢ + rms σ + u|rᵢ| + |h − h₆₄|ᵢ                                  the noise of the given precision
    τᵢ      = √(2⁻⁵³/u) Nᵢ + 16 (sᵢ + rms s)                                   halfway, in digits, to float64's noise

A leaf is right if |h₆₄ − r| ≤ τ at every element; its size does not matter, since nothing is summed over it. Where
they differ by more, further measurements separate a wrong rule from an allowed one (`nonsmooth`, where the two agree a
millionth beside x) and from what cannot be decided. Then the low-precision program itself is run in float64
arithmetic, which finds errors that exist only there; where it is off by more than rounded constants explain and by
less than rounding does, nothing can be decided.

A gradient that an invariance makes 0 consists of the rounding errors of the terms that it sums. Where τ is over 1 % of
a leaf, or differences cannot tell h from r, both programs are run in Monte Carlo arithmetic (`rounding`): two
derivations may differ by 8 times what rounding then does to them. If they differ by less, both are right, and 0 if both
are smaller than that themselves.

In float64 there is no lower precision to compare with: N = s + rms s + u|r|, with the hand rule's own s added, and τ
is as many digits above it as it is below float32's noise. A jitter does not show rounding inside the function, where
the argument is small beside what it is added to (exp x at x = 1e-6). So where the two differ by more than that, both
rules are run in float32 as well, and 64·2⁻²⁹ of the effect of rounding there is added to τ.

Everything here is a function of the measurements (`measuring`, and `evidence` for those that only some leaves need).
"""

from __future__ import annotations

import numpy as np

from jaxnn.gradcheck.arrays import ROUNDOFF, finite, rms
from jaxnn.gradcheck.differences import Slope
from jaxnn.gradcheck.measuring import Measured, excess
from jaxnn.gradcheck.nonsmooth import at, at_a_kink, first_of, not_finite, repeated, worst_elements, worst_of
from jaxnn.gradcheck.report import CANNOT_TELL, KINK, NO_ELEMENTS, RIGHT, WRONG, Row

REPLAYED = 8  # times the noise, for a low-precision rule in float64 arithmetic, or for a cast that limits float64
CONSTANTS = 8  # times u, for rounded constants in a well-conditioned rule
NOISY = 0.01  # of the leaf: where τ is that large, the comparison says nothing
CONTRADICTS = 1e-4  # of the terms: nearer than this, differences do not contradict what two derivations agree on
SAME = 64 * ROUNDOFF  # of a gradient: two derivations of one number
ALMOST = 1e-7  # of a gradient: a larger difference is no rounding
CLEAR = 10  # times the error of a slope by differences: a larger distance from it is significant

ONLY_HERE = "it agrees nearby but not at this point"
ILL_CONDITIONED = "rounding alone is over 1 % of this gradient, in float64 too: the point is ill-conditioned"
ON_PURPOSE = (
    "Either a custom rule or a stop_gradient inside it, or rounding that differences do not show; if it is intended, "
    "as in a straight-through estimator, give surrogate=True."
)


def judge(m: Measured) -> Row:
    """The verdict on one leaf, and its reason."""
    if m.auto64.size == 0:
        return Row(m.problem.place, m.problem.kind, m.name, RIGHT, NO_ELEMENTS)
    off = excess(m.hand64 - m.auto64, m.threshold)
    if m.coarsest == ROUNDOFF and off.max() > 1:
        m = m._replace(narrow=m.evidence.narrow())
        off = excess(m.hand64 - m.auto64, m.threshold)
    row = _figures(m, off)
    if not np.isfinite(m.auto64).all():
        return not_finite(m, row)
    differs = off > 1
    if differs.any():
        row = _differing(m, off, row)
        if row.verdict not in (RIGHT, KINK):
            return row
        known = m.replayed if m.random else m.hand64  # allowed there, whatever jax.grad gives
        m = m._replace(reference=np.where(differs, known, m.reference))
    return _in_given_precision(m, row) or (row if differs.any() else _agreeing(m, row))


def _figures(m: Measured, off: np.ndarray) -> Row:
    """The figures of a leaf at its worst element; ULPs are of the element, or of the leaf's size if that is larger."""
    size = np.maximum(np.abs(finite(m.reference)), rms(m.reference))
    unit = 2 * m.u * 2.0 ** np.floor(np.log2(np.where(size > 0, size, 1)))
    hand, auto = (float(np.max(np.abs(finite(x - m.reference)) / unit)) for x in (m.hand, m.auto))
    worst = worst_of(off, m.auto64)
    row = Row(m.problem.place, m.problem.kind, m.name, RIGHT, excess=float(off[worst]), ulps=hand, autodiff_ulps=auto)
    return at(row, m, worst)


# ---------------------------------------------------------------- the rule and jax.grad differ


def _differing(m: Measured, off: np.ndarray, row: Row) -> Row:
    """Wrong, unless at a kink, within the rounding of a sum that cancels, or at the limit of float64 inside."""
    nearby = np.where(_differs_nearby(m), off, 0.0)
    if not nearby.any():
        return at_a_kink(m, off, row) if m.problem.auto is None else row._replace(verdict=WRONG, why=ONLY_HERE)
    steady = np.where(m.jumps > 0, 0.0, nearby)
    elements = worst_elements(steady if steady.any() else nearby)
    slopes = {element: m.evidence.slope(element) for element in elements if m.problem.has_differences}
    row = at(row, m, elements[0], differences=slopes[elements[0]].value if slopes else None)
    if not any(_decides(slope, m, element) for element, slope in slopes.items()):
        cancelled = _within_rounding(m, row)
        if cancelled is not None:
            return cancelled
    limited = _limited(m, row)
    if limited is not None:
        return limited
    for element, slope in slopes.items():
        if m.jumps[element] > 0:  # jax.grad has another value nearby, from which the rule differs
            continue
        from_auto = abs(slope.value - m.auto64[element])
        room = CLEAR * slope.error + CONTRADICTS * abs(slope.value)
        if from_auto > room and abs(slope.value - m.hand64[element]) <= min(room, from_auto / 3):
            why = (
                f"finite differences agree with the hand-derived gradient, {slope.value:.7g}: jax.grad contradicts the "
                f"function. {ON_PURPOSE}"
            )
            return at(row, m, element, verdict=CANNOT_TELL, why=why, differences=slope.value)
    count = int((off > 1).sum())
    why = f"{count} of {off.size} elements are off by more than rounding explains, the worst {row.excess:.1e} times"
    return row._replace(verdict=WRONG, why=f"{why}.{_usual_mistake(m)}")


def _differs_nearby(m: Measured) -> np.ndarray:
    """Where the rule and jax.grad also differ a millionth beside x, by more than rounding there explains."""
    size = m.beside + rms(m.beside)
    differs = np.asarray(m.apart > m.threshold + SAME * size)
    if differs.any() and (m.apart <= ALMOST * size).all():
        differs &= m.apart > m.threshold + SAME * size + m.evidence.rounding()
    return differs


def _decides(slope: Slope, m: Measured, element: tuple[int, ...]) -> bool:
    """True if a slope by differences tells the hand-derived gradient from jax.grad's."""
    return bool(CLEAR * slope.error < abs(m.hand64[element] - m.auto64[element]) / 3)


def _limited(m: Measured, row: Row) -> Row | None:
    """Undecided if something prevents full float64, such as a cast, and its rounding explains the difference."""
    limit = max(m.evidence.obstacles(), key=lambda obstacle: obstacle.unit, default=None)
    if limit is None:
        return None
    explained = REPLAYED * m.noise if np.isinf(limit.unit) else _constants(m.auto64, limit.unit)
    if not (np.abs(m.hand64 - m.auto64) <= explained + m.threshold).all():
        return None
    why = f"{limit.what} prevents a comparison in full float64, and its rounding may explain the difference"
    return row._replace(verdict=CANNOT_TELL, why=why, source=limit.source)


def _constants(x: np.ndarray, u: float) -> np.ndarray:
    """The effect on x of constants rounded to some precision, in a well-conditioned rule."""
    return np.asarray(CONSTANTS * u * (np.abs(finite(x)) + rms(x) / 4))


def _usual_mistake(m: Measured) -> str:
    """The usual mistake that explains every element, if one does."""
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


# ---------------------------------------------------------------- sums that cancel


def _within_rounding(m: Measured, row: Row) -> Row | None:
    """Right if two derivations that sum the same terms may differ by as much, or undecided; None if by less."""
    bound = m.evidence.rounding()
    largest = max(float(np.abs(x).max()) for x in (m.hand64, m.auto64))
    zero = bool((np.abs(m.auto64) <= bound).all())
    if (np.abs(m.hand64 - m.auto64) <= bound).all():
        if zero and (np.abs(m.hand64) <= bound).all():
            why = f"0 to rounding: at most {largest:.1e}, where rounding the terms of the sums leaves {bound.max():.1e}"
            return row._replace(verdict=RIGHT, why=why, excess=None, ulps=None, autodiff_ulps=None)
        if rms(bound) <= NOISY * rms(m.auto64):
            return row._replace(verdict=RIGHT, why="they agree to the rounding of the terms that each of them sums")
        return row._replace(verdict=CANNOT_TELL, why=ILL_CONDITIONED)
    # Without differences jax.grad is what is meant, and what is left here is more than rounding.
    if zero and m.problem.has_differences:
        why = f"jax.grad is 0 to rounding, {bound.max():.1e}; the rule gives more, but less than differences resolve"
        return row._replace(verdict=CANNOT_TELL, why=why)
    return None


def _noisy(m: Measured, row: Row) -> Row:
    """The noise of the given precision leaves no digit of the gradient: the rounding of float64 decides."""
    cancelled = _within_rounding(m, row)
    if (m.hand64 == m.auto64).all():  # then nothing has to be told apart
        return cancelled if cancelled is not None and cancelled.verdict == RIGHT else row
    if cancelled is None:
        return row._replace(verdict=CANNOT_TELL, why=ILL_CONDITIONED)
    if cancelled.verdict == CANNOT_TELL and cancelled.why != ILL_CONDITIONED and m.problem.has_differences:
        element = worst_elements(np.abs(m.hand64 - m.auto64))[0]
        slope, h = m.evidence.slope(element), float(m.hand64[element])
        if _decides(slope, m, element):
            why = f"jax.grad and finite differences are 0 to rounding here, and the rule gives {h:.7g}"
            return row._replace(verdict=WRONG, why=why, element=element, hand=h, differences=slope.value)
    return cancelled


def _in_given_precision(m: Measured, row: Row) -> Row | None:
    """What is off although the rule is right in float64; None if nothing is."""
    overflow = ~np.isfinite(m.hand) & np.isfinite(m.auto)
    if overflow.any():
        worst = first_of(overflow)
        why = f"{m.hand[worst]} in the given precision, where jax.grad is finite ({m.auto[worst]:.7g})"
        return row._replace(verdict=WRONG, why=why, element=worst)
    if m.coarsest == ROUNDOFF:
        return None
    noise = REPLAYED * (m.sigma + rms(m.sigma) + m.u * np.abs(finite(m.reference)))
    low = excess(m.replayed - m.reference, noise + m.threshold)
    verdict, why = WRONG, (
        "right in float64 but wrong in the given precision, where the program is another: in float64 arithmetic, that "
        f"program is off by {low.max():.1e} times what the given precision explains"
    )  # fmt: skip
    if low.max() <= 1:
        low = excess(m.replayed - m.reference, _constants(m.reference, m.u) + m.threshold)
        verdict, why = CANNOT_TELL, (
            "right in float64; in the given precision the program is another, which is off in float64 arithmetic, but "
            "by less than rounding explains: the point is ill-conditioned in that precision"
        )  # fmt: skip
    if low.max() <= 1:
        return None
    worst = worst_of(low, m.reference)
    hand, auto = float(m.replayed[worst]), float(m.reference[worst])
    return row._replace(
        verdict=verdict, why=why, element=worst, hand=hand, autodiff=auto, excess=float(low.max())
    )  # fmt: skip


# ---------------------------------------------------------------- the rule and jax.grad agree


def _agreeing(m: Measured, row: Row) -> Row:
    """Right, unless rounding is as large as the gradient, or finite differences contradict both."""
    if rms(m.rounding) > NOISY * rms(m.auto64) > 0:
        row = _noisy(m, row)
    elif m.problem.forward_error and excess(m.hand64 - m.auto64, m.rounding).max() > 1:
        row = row._replace(
            why=f"within what forward_error={m.problem.forward_error:g} explains, but not within rounding"
        )
    if row.verdict != RIGHT or not m.problem.always_differences or not m.problem.has_differences:
        return row
    return repeated(m, row) or _contradicted(m, row)


def _contradicted(m: Measured, row: Row) -> Row:
    """Undecided if differences contradict both, at the worst element or along one direction."""
    element = row.element
    assert element is not None
    r, slope, (v, along) = float(m.auto64[element]), m.evidence.slope(element), m.evidence.along()
    row = row._replace(differences=slope.value if np.isfinite(slope.value) else None)
    for where, found, perturbed, expected, size in (
        ("here", slope, lambda: m.evidence.slope(element, perturbed=True), r, abs(r)),
        ("along a direction", along, lambda: m.evidence.along(perturbed=True).slope, float(np.vdot(m.auto64, v)),
         float(np.abs(m.auto64 * v).sum())),
    ):  # fmt: skip
        if _contradicts(found, expected, size):
            found = perturbed()  # with an error that includes rounding inside the function
            if _contradicts(found, expected, size):
                why = (
                    f"the hand-derived gradient and jax.grad agree but contradict the function: {where} its slope is "
                    f"{found.value:.7g}, and theirs {expected:.7g}. {ON_PURPOSE}"
                )
                return row._replace(verdict=CANNOT_TELL, why=why)
    return row


def _contradicts(found: Slope, expected: float, terms: float) -> bool:
    off = abs(found.value - expected)
    return bool(np.isfinite(found.value) and not found.bends and off > CLEAR * found.error + CONTRADICTS * terms)
