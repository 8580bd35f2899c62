"""Checks of the arguments of plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.checks import seen


def check_records(where: str, records: Sequence[object], kind: type) -> None:
    """Raises unless there is at least one record and all of them are of the kind."""
    if not records:
        raise ValueError(f"plots.{where}: give at least one {kind.__name__}")
    for record in records:
        if not isinstance(record, kind):
            raise TypeError(f"plots.{where}: expected {kind.__name__} records, got {record!r}")


def check_mapping(where: str, argument: str, value: object) -> None:
    """Raises unless the value is a mapping with at least one entry."""
    if not isinstance(value, Mapping):
        raise TypeError(f"plots.{where}: {argument} must be a dict by name, got {type(value).__name__}")
    if not value:
        raise ValueError(f"plots.{where}: {argument} is empty")


def numbers(what: str, value: ArrayLike) -> np.ndarray:
    """The value as an array of numbers, on the host."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"plots.{what} must be an array of numbers, got {seen(value)}") from None
