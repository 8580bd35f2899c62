"""How far sizes may drift from layer to layer before training suffers, and bars that show them in a terminal.

`diagnostics` (a network, layer by layer) and `graph.gradient_flow` (any function, operation by operation) judge by the
same limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

# All layers share one learning rate: where a gradient is a thousand times smaller than at the output, a layer needs a
# thousand steps for what the last one does in one, and where it is as much larger, one step destroys it.
SMALLEST, LARGEST = 1e-3, 1e3
DECADES = 2  # that a chart spans at least, so that a factor of 2 does not look like a collapse
BLOCKS = " ▏▎▍▌▋▊▉█"


def span(sizes: Iterable[float]) -> tuple[float, float]:
    """Decades from an empty bar to a full one."""
    found = [decades(size) for size in sizes if math.isfinite(size) and size > 0]
    high = max(found, default=0.0)
    return min(min(found, default=0.0), high - DECADES) - 0.1, high


def decades(size: float) -> float:
    """The log₁₀ of a size; −∞ of 0."""
    return math.log10(size) if size > 0 else -math.inf


def bar(length: float) -> str:
    """A bar of so many columns, to an eighth of one.

    >>> bar(2.5)
    '██▌'
    """
    eighths = round(8 * max(length, 0))
    return BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8].strip()


def bar_of(size: float, sizes: tuple[float, float], room: float) -> str:
    """A bar whose length is the logarithm of a size, between the two ends of a `span`; ✗ for what is not finite."""
    low, high = sizes
    return bar((decades(size) - low) / (high - low) * room) if math.isfinite(size) else "✗"
