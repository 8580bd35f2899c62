"""The verdict at points where the function has no gradient, or where jax.grad has none of its own.

At a kink a rule may answer any slope that the function has nearby. Where along some direction the slopes from both
sides are equal, and those nearby too, it is smooth there and differences decide, against jax.grad as well: of two
kinks that cancel, as in max(x, 0) − x t + log(1 + e^−|x|), jax.grad takes each by itself. Where they differ, each
kink has a convention of its own, and what is allowed are the mixtures of the gradients of the pieces that meet, as in
Clarke's generalised gradient. One-sided slopes alone would not do there: of Σₖ δₖ max(aₖ·x, bₖ·x), δ of both signs,
they forbid the first winner of every pair, which is a limit of gradients nearby.

Source: Clarke (1983), "Optimization and nonsmooth analysis", ch. 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnn.gradcheck.arrays import finite, rms, scales
from jaxnn.gradcheck.differences import CERTAIN
from jaxnn.gradcheck.evidence import CLOSE, Evidence, Sides
from jaxnn.gradcheck.measuring import Measured, excess, threshold
from jaxnn.gradcheck.pieces import MIXED, Mixed, mixed
from jaxnn.gradcheck.report import CANNOT_TELL, KINK, RIGHT, WRONG, Row

WORST = 3  # elements of a leaf for which differences are taken
DIRECTIONS = 6  # drawn ones, along which a gradient must lie between the slopes from both sides
JUMPS = 1e-3  # of the gradient: more than that within a millionth is a kink, or bends as sharply


def worst_of(off: np.ndarray, auto: np.ndarray) -> tuple[Any, ...]:
    """The element furthest off; where none is, the largest gradient."""
    flat = int(np.argmax(off)) if off.max() > 0 else int(np.argmax(np.abs(finite(auto))))
    return tuple(np.unravel_index(flat, auto.shape))


def first_of(mask: np.ndarray) -> tuple[int, ...]:
    """The first element for which a mask is true."""
    return tuple(map(int, np.unravel_index(int(np.argmax(mask)), mask.shape)))


def worst_elements(off: np.ndarray, least: float = 1.0) -> list[tuple[int, ...]]:
    """The few elements furthest off, of those above the least; the furthest in any case."""
    order = np.argsort(-off, axis=None, kind="stable")[:WORST]
    return [tuple(map(int, np.unravel_index(int(flat), off.shape))) for n, flat in enumerate(order)
            if n == 0 or off.flat[flat] > least]  # fmt: skip


# ---------------------------------------------------------------- the rule and jax.grad differ at this point alone


def at_a_kink(evidence: Evidence, i: int, m: Measured, off: np.ndarray, row: Row) -> Row:
    """The rule agrees with jax.grad a millionth to the side: right, an allowed slope of a kink, or wrong here."""
    if not evidence.problem.has_differences:
        return _mixture(evidence, i, m, row, worst_elements(off)[0], None, "")
    elements = worst_elements(off)
    sides = [evidence.sides(i, element) for element in elements]
    contradicts = ""
    for element, side in zip(elements, sides, strict=True):
        h, r = float(m.hand64[element]), float(m.auto64[element])
        here = row._replace(element=element, hand=h, autodiff=r, differences=side.slope.value)
        if not side.smooth:
            continue
        if not side.allow(h):
            why = "it agrees with jax.grad nearby and not at this point, where the function has no kink"
            return here._replace(verdict=WRONG, why=f"{why}: its slope is {side.low:.7g}")
        if np.isfinite(r) and not side.allow(r):
            contradicts = contradicts or _convention(side, r)
    if all(side.smooth for side in sides):
        smooth = _smooth_elsewhere(evidence, i, m, off > 1)
        if smooth is not None:
            theirs, slope = smooth
            if theirs is None:
                why = contradicts or "differences decide: jax.grad is not finite here, and the function is smooth"
                return _at(row, elements[0], m)._replace(differences=sides[0].slope.value, verdict=RIGHT, why=why)
            why = (
                f"no kink here: along a direction the slope of the function is {slope:.7g}, and the rule's {theirs:.7g}"
            )
            return row._replace(verdict=WRONG, why=why)
    return _mixture(evidence, i, m, row, elements[0], sides[0], contradicts)


def _at(row: Row, element: tuple[int, ...], m: Measured) -> Row:
    """The row, moved to an element; jax.grad's value stays where it is not finite there."""
    kept = row.element == element and not np.isfinite(row.autodiff or 0.0)
    auto = row.autodiff if kept else float(m.auto64[element])
    return row._replace(element=element, hand=float(m.hand64[element]), autodiff=auto)


def _convention(side: Sides, r: float) -> str:
    """What to say of jax.grad where the function is smooth and has another slope."""
    return (
        f"jax.grad's convention contradicts the function, which has no kink here: its slope is {side.low:.7g}, and "
        f"jax.grad, which takes each of the kinks that cancel by itself, gives {r:.7g}"
    )


def _smooth_elsewhere(evidence: Evidence, i: int, m: Measured, some: np.ndarray) -> tuple[float | None, float] | None:
    """Whether the function is smooth along some elements at once: None if not, (h's slope if it is off, its slope)."""
    if some.sum() <= WORST:
        return None, 0.0
    rng = np.random.default_rng(1)
    v = np.where(some, rng.choice([-1.0, 1.0], some.shape), 0) * scales(evidence.wide_leaf(i))
    slope, h = evidence.slope_along(i, v), float(np.vdot(m.hand64, v))
    if slope.bends or not np.isfinite(slope.value):
        return None
    room = CERTAIN * slope.error + CLOSE * float(np.abs(m.hand64 * v).sum())
    return (h if abs(h - slope.value) > room else None), slope.value


def _mixture(
    evidence: Evidence, i: int, m: Measured, row: Row, first: tuple[int, ...], side: Sides | None, contradicts: str
) -> Row:
    """Where kinks meet: is the rule's answer a mixture of the gradients of the pieces, or allowed by every slope?"""
    found = mixed(evidence.problem, evidence.programs, i, m.hand64, m.hand64 - finite(m.auto64))
    outside, nearest = found.outside, found.nearest
    failed = outside is not None or nearest.short > MIXED
    if failed and not (side is not None and _between_everywhere(evidence, i, m.hand64, nearest.v)):
        return _no_mixture(m, row, found)
    if side is None:
        return row._replace(verdict=KINK, why="a kink: the rule gives a mixture of the gradients nearby")
    slopes = (side.slope.left, side.slope.right)
    row = _at(row, first, m)._replace(differences=side.slope.value)
    why = f"the slope jumps here from {slopes[0]:.7g} to {slopes[1]:.7g}: both answers are allowed"
    if not side.slope.bends:
        why = "several kinks meet here, and the answer is a mixture of the gradients nearby, as jax.grad's is: allowed"
    if contradicts:
        why = f"allowed; elsewhere {contradicts}"
    return row._replace(verdict=KINK, why=why, slopes=slopes)


def _no_mixture(m: Measured, row: Row, found: Mixed) -> Row:
    nearest, outside = found.nearest, found.outside
    if found.gave_up:
        why = "more branches meet here than could be tried; no mixture of the gradients of those that were is this"
        return row._replace(verdict=CANNOT_TELL, why=why)
    if outside is None:
        why = "at a tie: each element is between its slopes, but no mixture of the gradients nearby gives them all"
        return row._replace(verdict=WRONG, why=why)
    h, (low, high) = float(m.hand64[outside]), (float(nearest.low[outside]), float(nearest.high[outside]))
    why = f"at a kink: {h:.7g} is not between the slopes nearby, {low:.7g} and {high:.7g}"
    here = row._replace(element=outside, hand=h, autodiff=float(m.auto64[outside]), slopes=(low, high))
    return here._replace(verdict=WRONG, why=why)


def _between_everywhere(evidence: Evidence, i: int, hand: np.ndarray, v: np.ndarray) -> bool:
    """Whether h lies between the function's slopes from both sides along every direction that is tried, v before all.

    Enough for a kink with more pieces than ties, as ‖x‖ at 0 has one for every direction.
    """
    rng, size = np.random.default_rng(2), scales(evidence.wide_leaf(i))
    for d in (v, hand, *(rng.normal(size=hand.shape) * size for _ in range(DIRECTIONS))):
        largest = float(np.abs(d).max())
        if not largest:
            continue
        slope = evidence.slope_along(i, d / largest, float(size.max()))
        low, high = sorted((slope.left, slope.right))
        room = CERTAIN * slope.sided_error + CLOSE * float(np.abs(hand * d / largest).sum())
        if not (slope.has_sides and low - room <= float(np.vdot(hand, d)) / largest <= high + room):
            return False
    return True


# ---------------------------------------------------------------- jax.grad is not finite, or both say the same


def not_finite(evidence: Evidence, i: int, m: Measured, row: Row) -> Row:
    """jax.grad is NaN or infinite at the point: the slopes from both sides may still say what is allowed."""
    bad = ~np.isfinite(m.auto64)
    element = first_of(bad)
    h, r = float(m.hand64[element]), float(m.auto64[element])
    row = row._replace(element=element, hand=h, autodiff=r, excess=None)
    elsewhere = excess(np.where(bad, 0, m.hand64 - finite(m.auto64)), threshold(m))
    if elsewhere.max() > 1:
        worst = tuple(map(int, worst_of(elsewhere, m.auto64)))
        row = row._replace(element=worst, hand=float(m.hand64[worst]), autodiff=float(m.auto64[worst]))
        return row._replace(verdict=WRONG, why="off where jax.grad is finite, by more than rounding explains")
    if np.isfinite(m.hand64[bad]).all() and evidence.problem.has_differences:
        elements = [tuple(map(int, where)) for where in np.argwhere(bad)[:WORST]]
        slopes = [evidence.slope(i, where) for where in elements]
        size = max(rms(m.auto64), rms(m.hand64))
        if all(
            np.isfinite([s.left, s.right]).all()
            and (s.has_sides if s.bends else s.error <= CLOSE * max(abs(s.value), size))
            for s in slopes
        ):
            known = m._replace(auto64=np.where(bad, 0, m.auto64))
            return at_a_kink(evidence, i, known, np.where(bad, np.inf, 0.0), row)
    why = f"jax.grad is {r} at {int(bad.sum())} of {bad.size} elements, first at {list(element)}"
    return row._replace(verdict=CANNOT_TELL, why=why)


def jumps(m: Measured) -> np.ndarray:
    """By how much jax.grad jumps between the point and a millionth to the side; 0 where it does not."""
    size = np.maximum(np.abs(finite(m.auto64)), np.maximum(m.jump, rms(m.auto64)))
    return np.where(m.jump > JUMPS * size, m.jump, 0.0)


def repeated(evidence: Evidence, i: int, m: Measured, row: Row) -> Row | None:
    """Wrong, if the rule repeats a value of jax.grad at a kink that is no slope of the function; None if not."""
    jumped = jumps(m)
    if not jumped.any():
        return None
    elements = worst_elements(jumped, least=0.0)
    sides = [evidence.sides(i, element) for element in elements]
    for element, side in zip(elements, sides, strict=True):
        h, r = float(m.hand64[element]), float(m.auto64[element])
        if side.smooth and not side.allow(h):
            why = f"it repeats jax.grad's value at this point; {_convention(side, r)}"
            return row._replace(
                verdict=WRONG, why=why, element=element, hand=h, autodiff=r, differences=side.slope.value
            )
    if all(side.smooth for side in sides):
        smooth = _smooth_elsewhere(evidence, i, m, jumped > 0)
        if smooth is not None and smooth[0] is not None:
            why = (
                "it repeats jax.grad's value at points where kinks cancel: along a direction the slope of the function "
                f"is {smooth[1]:.7g}, and theirs {smooth[0]:.7g}"
            )
            return row._replace(verdict=WRONG, why=why)
    return None
