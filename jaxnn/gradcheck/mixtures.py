"""Is a vector a mixture of gradients that can be asked for one at a time only? By Frank and Wolfe, to Wolfe's point.

The gradients of the pieces that meet at a kink are too many to list. But for a direction v the one that goes furthest
along it can be looked for, and that is enough: h is no mixture of them if and only if for some v all fall short,
max_g ⟨g, v⟩ < ⟨h, v⟩. The v to ask for is h minus the nearest mixture of the gradients seen so far.

Source: Frank & Wolfe (1956); Wolfe (1976), "Finding the nearest point in a polytope".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MOST = 32  # gradients asked for
EXACT = 1e-12  # of the largest product: nearer than this, Wolfe's point has been found


class Mixture(NamedTuple):
    """How a vector h stands to the mixtures of the gradients seen.

    Attributes:
        short: by how much the furthest gradient falls short of h along the worst v, relative to the terms of that sum.
        low: the least that was seen at each element; `high` the greatest.
        high: see `low`.
        left: |h − the nearest mixture| at each element, relative to the gradients' size there.
        v: the last direction asked for, along which all fall short of h if `short` says so.
    """

    short: float
    low: np.ndarray
    high: np.ndarray
    left: np.ndarray
    v: np.ndarray


def mixture(
    h: np.ndarray, v: np.ndarray, furthest: Callable[[np.ndarray, float], np.ndarray], enough: float
) -> Mixture:
    """Looks for a mixture of gradients that is h, or for a direction along which all of them fall short of it.

    Args:
        h: the vector.
        v: the first direction.
        furthest: from a direction to the gradient that goes furthest along it, or to one that goes as far as is wanted.
        enough: relative: below this, h is a mixture; above it, falling short is proof that it is none.
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
    low, high = (np.asarray(extreme(seen, axis=0)) for extreme in (np.min, np.max))  # a number is none by itself
    return Mixture(short, low, high, left, asked)


def nearest(points: np.ndarray) -> np.ndarray:
    """Weights ≥ 0 with sum 1 of the mixture of points [K, D] that is nearest 0."""
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
        while True:  # to the nearest point of the plane through those used, or as far as the weights stay positive
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
    """Weights with sum 1, of either sign, of the point nearest 0 in the plane through some points."""
    count = len(products)
    system = np.block([[products / scale, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
    return np.asarray(np.linalg.lstsq(system, np.append(np.zeros(count), 1.0), rcond=None)[0][:count])
