"""Finite differences in float64: a reference that shares no code with either derivation.

Letters: v a direction, t a step along it, g(t) = ⟨δ, f(x + t v)⟩ − ⟨δ, f(x)⟩. Steps are relative to the scale of v.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

HALVINGS = 6
STARTS = (2e-3, 5e-5)  # 0.1 would cross kinks; the second is for functions with a large curvature
STEPS = np.array([start / 2**n for start in STARTS for n in range(HALVINGS)])
POINTS = np.concatenate([STEPS, -STEPS])  # where g is evaluated
AGAIN = 0.77  # times the steps, for a second estimate: one tableau alone may not show rounding


class Slope(NamedTuple):
    """g′(0) and its error; the slopes from the left and from the right, and their error."""

    value: float
    error: float
    left: float
    right: float
    sided_error: float

    @property
    def bends(self) -> bool:
        """True if the slopes from the two sides differ: a kink."""
        apart = abs(self.right - self.left)
        return bool(apart > BENDS * max(abs(self.left), abs(self.right)) + CERTAIN * self.sided_error)

    @property
    def has_sides(self) -> bool:
        """False if the slope from a side has no limit, as that of √x at 0."""
        return bool(self.sided_error <= BENDS * max(abs(self.left), abs(self.right)))


CERTAIN = 10  # times their error: slopes further apart than that differ
BENDS = 1e-3  # of the slope: one-sided extrapolations are accurate to 1e-6, a relevant kink is larger


def slope_of(g: Callable[[np.ndarray], np.ndarray], scale: float, noise: float = 0.0) -> Slope:
    """g′(0) by extrapolated central differences (Ridders 1982), from the starting step with the smaller error.

    g maps steps [P] to float64 values [P]; scale is the size of a step of 1, noise a lower bound of the error of the
    values. A second estimate with other steps bounds the error from below by the distance of the two.
    """
    values = np.asarray(g(np.concatenate([POINTS * scale, POINTS * scale * AGAIN])), np.float64)
    first, again = (values[: len(POINTS)], scale), (values[len(POINTS) :], scale * AGAIN)
    (value, error), (other, _) = (_central(*half) for half in (first, again))
    ahead, behind = first[0].reshape(2, len(STARTS), HALVINGS)
    steps = STEPS.reshape(len(STARTS), HALVINGS) * scale
    right, right_error = _extrapolate(ahead[-1] / steps[-1], order=1)
    left, left_error = _extrapolate(-behind[-1] / steps[-1], order=1)
    error = max(error, abs(value - other), noise / (STARTS[0] * scale))
    return Slope(value, error, left, right, max(left_error, right_error, noise / (STARTS[-1] * scale)))


def _central(values: np.ndarray, scale: float) -> tuple[float, float]:
    """The limit of central differences and its error, from the starting step with the smaller error."""
    ahead, behind = values.reshape(2, len(STARTS), HALVINGS)
    steps = STEPS.reshape(len(STARTS), HALVINGS) * scale
    candidates = [_extrapolate((a - b) / (2 * h), order=2) for a, b, h in zip(ahead, behind, steps, strict=True)]
    return min(candidates, key=lambda candidate: candidate[1])


def _extrapolate(quotients: np.ndarray, order: int) -> tuple[float, float]:
    """The limit h → 0 of quotients at h, h/2, h/4, …, and an estimate of its error (Ridders' tableau)."""
    rows = [list(quotients)]
    best, error = float(quotients[-1]), np.inf
    for column in range(1, len(quotients)):
        factor = 2.0 ** (column * (2 if order == 2 else 1))
        before = rows[-1]
        rows.append([(factor * fine - coarse) / (factor - 1) for coarse, fine in itertools.pairwise(before)])
        for i, candidate in enumerate(rows[-1]):
            off = max(abs(candidate - before[i]), abs(candidate - before[i + 1]))
            if off < error:
                best, error = float(candidate), float(off)
    return best, error
