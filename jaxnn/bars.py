"""Bars on a logarithmic scale, for charts in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

DECADES = 2  # the least span of a chart, so that a factor of 2 does not look like a collapse
BLOCKS = " ▏▎▍▌▋▊▉█"


def span(sizes: Iterable[float]) -> tuple[float, float]:
    """The log₁₀ of the sizes of an empty and of a full bar."""
    found = [decades(size) for size in sizes if math.isfinite(size) and size > 0]
    high = max(found, default=0.0)
    return min(min(found, default=0.0), high - DECADES) - 0.1, high


def decades(size: float) -> float:
    """The log₁₀ of a size; −∞ of 0."""
    return math.log10(size) if size > 0 else -math.inf


def bar(length: float) -> str:
    """A bar of a length in columns, to an eighth of a column.

    >>> bar(2.5)
    '██▌'
    """
    eighths = round(8 * max(length, 0))
    return BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8].strip()


def bar_of(size: float, ends: tuple[float, float], columns: float) -> str:
    """A bar for the logarithm of a size between the ends of a `span`; ✗ if the size is not finite."""
    low, high = ends
    return bar((decades(size) - low) / (high - low) * columns) if math.isfinite(size) else "✗"
