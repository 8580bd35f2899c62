"""Arrays of fewer axes beside arrays of more: the missing axes are written down and never left to promotion.

With `jax_numpy_rank_promotion="raise"`, as careful programs set it, every layer, loss and training step works.
"""

from __future__ import annotations

from typing import Any


def with_rank(v: Any, rank: int) -> Any:
    """Gives v axes of size 1 in front until it has `rank` of them: a bias [H] beside z [N, T, H] is [1, 1, H]."""
    return v.reshape((1,) * (rank - v.ndim) + v.shape)
