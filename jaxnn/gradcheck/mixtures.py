"""Decides if a vector is a convex combination of gradients of which one can be computed at a time: Frank and Wolfe.

The gradients of the pieces that meet at a kink are too many to list. But the one that goes furthest along a direction v
can be searched for, and that is enough: h is no convex combination of them if and only if for some v all fall short,
max_g ⟨g, v⟩ < ⟨h, v⟩. The next v is h minus the nearest convex combination of the gradients found so far.

Source: Frank & Wolfe (1956); Wolfe (1976), "Finding the nearest point in a polytope".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MOST = 32  # gradients computed
EXACT = 1e-12  # of the largest product: the accuracy of Wolfe's nearest point


class Mixture(NamedTuple):
    """A vector h compared with the convex combinations of the gradients found."""

    # by how much the furthest gradient falls short of h along the worst v, relative to the terms of that sum
    short: float
    low: np.ndarray  # the smallest gradient found at each element
    high: np.ndarray  # the largest
    left: np.ndarray  # |h − the nearest combination| at each element, relative to the gradients' size there
    v: np.ndarray  # the last direction, along which all fall short of h if `short` is positive


def mixture(
    h: np.ndarray, v: np.ndarray, furthest: Callable[[np.ndarray, float], np.ndarray], enough: float
) -> Mixture:
    """Finds a convex combination of gradients that is h, or a direction along which all of them fall short of it.

    v is the first direction. `furthest(direction, enough)` returns the gradient that goes furthest along it, or one
    that goes far enough. `enough` is relative: at a smaller distance h is a combination; falling short by more is a
    proof.
    """
    seen: list[np.ndarray] = []
    short, left, asked = -np.inf, np.full(h.shape, np.inf), v
    for _ in range(MOST):
        asked = v
        seen.append(furthest(v, float(np.vdot(h, v))))
        size = np.maximum(np.abs(h), np.max(np.abs(seen), axis=0))
        terms = float(np.sum(np.abs(v) * size))
        short = float(np.vdot(h - seen[-1], v)) / terms if terms else 0.0
        weights = nearest(np.stack([(g - h).ravel() for g in seen]))
        v = np.asarray(h - np.tensordot(weights, np.stack(seen), axes=1))
        left = np.abs(v) / np.maximum(size, np.sqrt(np.mean(np.square(size))) or 1.0)
        if short > enough or left.max() <= enough:
            break
    low, high = (
        np.asarray(extreme(seen, axis=0)) for extreme in (np.min, np.max)
    )  # NumPy gives a number for arrays of no dimension
    return Mixture(short, low, high, left, asked)


def nearest(points: np.ndarray) -> np.ndarray:
    """Weights ≥ 0 with sum 1 of the convex combination of points [K, D] that is nearest to 0."""
    products = points @ points.T
    scale = float(np.diagonal(products).max()) or 1.0
    weights = np.zeros(len(points))
    weights[np.argmin(np.diagonal(products))] = 1.0
    used = [int(np.argmax(weights))]
    for _ in range(4 * len(points)):
        ahead = products @ weights
        best = int(np.argmin(ahead))
        if best in used or ahead[best] > weights @ ahead - EXACT * scale:
            break
        used.append(best)
        while True:  # to the nearest point of the plane through those used, while the weights stay positive
            wanted = _on_the_plane(products[np.ix_(used, used)], scale)
            if (wanted > 0).all():
                weights[:] = 0
                weights[used] = wanted
                break
            now = weights[used]
            step = min(a / (a - b) for a, b in zip(now, wanted, strict=True) if b <= 0)
            now = np.maximum(now + step * (wanted - now), 0)
            kept = now > EXACT
            weights[:] = 0
            used = [k for k, there in zip(used, kept, strict=True) if there]
            weights[used] = now[kept] / now[kept].sum()
            if len(used) == 1:
                break
    return weights


def _on_the_plane(products: np.ndarray, scale: float) -> np.ndarray:
    """Weights with sum 1, of either sign, of the point nearest to 0 in the plane through some points."""
    count = len(products)
    system = np.block([[products / scale, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
    return np.asarray(np.linalg.lstsq(system, np.append(np.zeros(count), 1.0), rcond=None)[0][:count])
