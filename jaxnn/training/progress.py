"""The progress bar of what trains on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from jaxnn.spmd.processes import reports


def progress_bar(
    where: str, total: int, wanted: bool | None, unit: str = "epoch", first: int = 0
) -> tuple[Iterable[int], Callable[[dict[str, float]], None]]:
    """The numbers from `first` below `total`, behind a tqdm bar if wanted and installed, and what shows figures on it.

    Without `wanted` a terminal has one. Of several processes only the first has. Raises ImportError where it is wanted
    and tqdm is missing.
    """
    if reports() and (wanted or (wanted is None and sys.stderr.isatty())):
        try:
            from tqdm import tqdm
        except ImportError:
            if wanted:
                raise ImportError(f"{where}: progress=True needs tqdm: pip install tqdm") from None
        else:
            bar = tqdm(range(first, total), unit=unit, initial=first, total=total)
            return bar, lambda row: bar.set_postfix({name: f"{value:.4g}" for name, value in row.items()})
    return range(first, total), lambda row: None
