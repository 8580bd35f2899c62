"""The verdict at points where the function has no gradient, or where jax.grad is not finite.

At a kink a rule may give any slope that the function has nearby. Where along some direction the slopes from both
sides are equal, and those nearby too, the function is smooth along it and differences decide, against jax.grad as well:
of two kinks that cancel, as in max(x, 0) − x t + log(1 + e^−|x|), jax.grad treats each separately. Where they differ,
each kink has a convention of its own, and the allowed values are the convex combinations of the gradients of the pieces
that meet, Clarke's generalised gradient. One-sided slopes alone would not do: for Σₖ δₖ max(aₖ·x, bₖ·x), δ of both
signs, they forbid the first winner of every pair, which is a limit of gradients nearby.

Source: Clarke (1983), "Optimization and nonsmooth analysis", ch. 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnn.gradcheck.arrays import finite, rms
from jaxnn.gradcheck.differences import CERTAIN
from jaxnn.gradcheck.evidence import CLOSE, Sides
from jaxnn.gradcheck.measuring import Measured, excess
from jaxnn.gradcheck.pieces import MIXED, Mixed
from jaxnn.gradcheck.report import CANNOT_TELL, KINK, RIGHT, WRONG, Row

WORST = 3  # elements of a leaf for which differences are taken
PARTLY = "off where jax.grad is finite, by more than rounding explains"


def worst_of(off: np.ndarray, auto: np.ndarray) -> tuple[int, ...]:
    """The element furthest off; if none is, the one with the largest gradient."""
    return first_of(off if off.max() > 0 else np.abs(finite(auto)))


def first_of(x: np.ndarray) -> tuple[int, ...]:
    """The first element of the largest value: of a mask, the first that is true."""
    return tuple(map(int, np.unravel_index(int(np.argmax(x)), x.shape)))


def worst_elements(off: np.ndarray, least: float = 1.0) -> list[tuple[int, ...]]:
    """The few elements furthest off, of those above the least; the furthest in any case."""
    order = np.argsort(-off, axis=None, kind="stable")[:WORST]
    return [tuple(map(int, np.unravel_index(int(flat), off.shape))) for n, flat in enumerate(order)
            if n == 0 or off.flat[flat] > least]  # fmt: skip


def at(row: Row, m: Measured, element: tuple[int, ...], **changes: Any) -> Row:
    """The row, changed, with both gradients at an element."""
    return row._replace(
        element=element, hand=float(m.hand64[element]), autodiff=float(m.auto64[element]), **changes
    )  # fmt: skip


# ---------------------------------------------------------------- the rule and jax.grad differ at this point alone


def at_a_kink(m: Measured, off: np.ndarray, row: Row) -> Row:
    """The rule agrees with jax.grad a millionth beside x: right, an allowed slope of a kink, or wrong here."""
    elements = worst_elements(off)
    if not m.problem.has_differences:
        return _mixture(m, row, elements[0], None, "")
    sides = [m.evidence.sides(element) for element in elements]
    contradicts = ""
    for element, side in zip(elements, sides, strict=True):
        r = float(m.auto64[element])
        if not side.smooth:
            continue
        if not side.allow(float(m.hand64[element])):
            why = "it agrees with jax.grad nearby but not at this point, where the function has no kink: its slope is "
            return at(row, m, element, verdict=WRONG, why=f"{why}{side.low:.7g}", differences=side.slope.value)
        if np.isfinite(r) and not side.allow(r):
            contradicts = contradicts or _convention(side, r)
    if all(side.smooth for side in sides):
        smooth = _smooth_elsewhere(m, off > 1)
        if smooth is not None:
            theirs, slope = smooth
            if theirs is None:
                why = contradicts or "differences decide: jax.grad is not finite here, but the function is smooth"
                return at(row, m, elements[0], differences=sides[0].slope.value, verdict=RIGHT, why=why)
            why = (
                f"no kink here: along a direction the slope of the function is {slope:.7g}, and the rule's {theirs:.7g}"
            )
            return row._replace(verdict=WRONG, why=why)
    return _mixture(m, row, elements[0], sides[0], contradicts)


def _convention(side: Sides, r: float) -> str:
    """A remark on jax.grad where the function is smooth and has another slope."""
    return (
        f"jax.grad's convention contradicts the function, which has no kink here: its slope is {side.low:.7g}, and "
        f"jax.grad, which treats each of the kinks that cancel separately, gives {r:.7g}"
    )


def _smooth_elsewhere(m: Measured, some: np.ndarray) -> tuple[float | None, float] | None:
    """(the rule's slope if it is off or None, the function's) along some elements at once; None if that has a kink."""
    if some.sum() <= WORST:
        return None, 0.0
    v, slope = m.evidence.along(some)
    if slope.bends or not np.isfinite(slope.value):
        return None
    h, room = float(np.vdot(m.hand64, v)), CERTAIN * slope.error + CLOSE * float(np.abs(m.hand64 * v).sum())
    return (h if abs(h - slope.value) > room else None), slope.value


def _mixture(m: Measured, row: Row, first: tuple[int, ...], side: Sides | None, contradicts: str) -> Row:
    """Where kinks meet, a convex combination of the gradients of the pieces is allowed, or what every slope allows."""
    found = m.evidence.mixture(m.hand64, m.hand64 - finite(m.auto64))
    failed = found.outside is not None or found.nearest.short > MIXED
    if failed and not (side is not None and _between_everywhere(m, found.nearest.v)):
        return _no_mixture(m, row, found)
    if side is None:
        why = "a kink: the rule gives a convex combination of the gradients nearby, which is allowed"
        return row._replace(verdict=KINK, why=why)
    slopes = (side.slope.left, side.slope.right)
    why = f"the slope jumps here from {slopes[0]:.7g} to {slopes[1]:.7g}: both answers are allowed"
    if not side.slope.bends:
        why = "several kinks meet here; like jax.grad's, the answer is a convex combination of the gradients nearby"
    if contradicts:
        why = f"allowed; elsewhere {contradicts}"
    return at(row, m, first, verdict=KINK, why=why, differences=side.slope.value, slopes=slopes)


def _no_mixture(m: Measured, row: Row, found: Mixed) -> Row:
    nearest, outside = found.nearest, found.outside
    if found.gave_up:
        why = (
            "more branches meet here than could be tried; of those tried, no convex combination of gradients is the "
            "rule's answer"
        )
        return row._replace(verdict=CANNOT_TELL, why=why)
    if outside is None:
        why = "at a tie: each element is between its slopes, but no convex combination of the gradients nearby has all"
        return row._replace(verdict=WRONG, why=why)
    low, high = float(nearest.low[outside]), float(nearest.high[outside])
    why = f"at a kink: {m.hand64[outside]:.7g} is not between the slopes nearby, {low:.7g} and {high:.7g}"
    return at(row, m, outside, verdict=WRONG, why=why, slopes=(low, high))


def _between_everywhere(m: Measured, v: np.ndarray) -> bool:
    """True if h lies between the slopes from both sides along v, along h and along random directions.

    Enough for a kink with more pieces than ties, as ‖x‖ has one for every direction at 0.
    """
    hand = m.hand64
    for d, slope in m.evidence.directions(v, hand):
        low, high = sorted((slope.left, slope.right))
        room = CERTAIN * slope.sided_error + CLOSE * float(np.abs(hand * d).sum())
        if not (slope.has_sides and low - room <= float(np.vdot(hand, d)) <= high + room):
            return False
    return True


# ---------------------------------------------------------------- jax.grad is not finite, or both give the same value


def not_finite(m: Measured, row: Row) -> Row:
    """Where jax.grad is NaN or infinite, the slopes from both sides may still show what is allowed."""
    bad = ~np.isfinite(m.auto64)
    element = first_of(bad)
    row = at(row, m, element, excess=None)
    elsewhere = excess(np.where(bad, 0, m.hand64 - finite(m.auto64)), m.threshold)
    if elsewhere.max() > 1:
        worst = worst_of(elsewhere, m.auto64)
        return at(row, m, worst, verdict=WRONG, why=PARTLY)
    if np.isfinite(m.hand64[bad]).all() and m.problem.has_differences:
        slopes = [m.evidence.slope(tuple(map(int, where))) for where in np.argwhere(bad)[:WORST]]
        size = max(rms(m.auto64), rms(m.hand64))
        if all(
            np.isfinite([s.left, s.right]).all()
            and (s.has_sides if s.bends else s.error <= CLOSE * max(abs(s.value), size))
            for s in slopes
        ):
            return at_a_kink(m, np.where(bad, np.inf, 0.0), row)
    why = f"jax.grad is {m.auto64[element]} at {int(bad.sum())} of {bad.size} elements, first at {list(element)}"
    return row._replace(verdict=CANNOT_TELL, why=why)


def repeated(m: Measured, row: Row) -> Row | None:
    """Wrong if the rule repeats a value of jax.grad at a kink that is no slope of the function; None if not."""
    jumped = m.jumps
    if not jumped.any():
        return None
    elements = worst_elements(jumped, least=0.0)
    sides = [m.evidence.sides(element) for element in elements]
    for element, side in zip(elements, sides, strict=True):
        if side.smooth and not side.allow(float(m.hand64[element])):
            why = f"it repeats jax.grad's value at this point; {_convention(side, float(m.auto64[element]))}"
            return at(row, m, element, verdict=WRONG, why=why, differences=side.slope.value)
    if all(side.smooth for side in sides):
        smooth = _smooth_elsewhere(m, jumped > 0)
        if smooth is not None and smooth[0] is not None:
            why = (
                "it repeats jax.grad's value at points where kinks cancel: along a direction the slope of the function "
                f"is {smooth[1]:.7g}, and theirs {smooth[0]:.7g}"
            )
            return row._replace(verdict=WRONG, why=why)
    return None
