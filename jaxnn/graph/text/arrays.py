"""Arrays in a few characters, for tables and DOT: a number, or type, range and norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxnn.graph.nodes import Graph
from jaxnn.graph.summaries import digits, number, summary
from jaxnn.jaxprs import is_float

DTYPES = {"float": "f", "int": "i", "uint": "u", "complex": "c", "bfloat": "bf"}  # as in jaxprs: f32, i8


def is_finite(x: Any) -> bool:
    """False if an array contains NaN or infinity; True if it has no numbers."""
    if x is None or isinstance(x, jax.core.Tracer) or not is_float(x):
        return True
    return bool(np.isfinite(np.asarray(x)).all())


def finite_operations(graph: Graph) -> list[bool]:
    """For each operation whether values and gradients are finite; NaN or −inf written in the code is excepted."""
    found: list[bool] = []
    written: list[bool] = []  # depends on numbers in the code alone
    for node in graph.nodes:
        sources = (graph.leaves[-1 - r.node].kind == "number" if r.node < 0 else written[r.node] for r in node.inputs)
        written.append(all(sources))
        found.append(written[-1] or all(map(is_finite, (*node.values, *node.gradients))))
    return found


def range_and_norm(arrays: Sequence[Any], *, limits: bool = True, norm: bool = True) -> str:
    """Numbers as they are, arrays as range and norm; several are taken as one; "" for none.

    >>> range_and_norm([np.array([3.0, -4.0])]), range_and_norm([np.array([3.0, -4.0])], limits=False)
    ('-4…3 ‖5‖', '‖5‖')
    >>> range_and_norm([np.array([3.0, np.nan])])
    '1 of 2 not finite'
    """
    known = [summary(x) for x in arrays if x is not None]
    known = [s for s in known if s.known]
    if not known:
        return ""
    if len(known) == 1 and known[0].number is not None:
        return number(known[0].number)
    size, bad = sum(s.size for s in known), sum(s.nonfinite for s in known)
    if bad or not size:
        return f"{bad} of {size} not finite" if bad else "empty"
    low, high = min(s.low for s in known if s.size), max(s.high for s in known if s.size)
    between = f"all {digits(low)}" if low == high else f"{digits(low)}…{digits(high)}"
    length = f"‖{digits(math.hypot(*(s.norm for s in known)))}‖"
    return " ".join([between] * limits + [length] * norm)


def dtype_and_shape(arrays: Sequence[Any]) -> str:
    """The type and shape of the first array, and the number of further ones.

    >>> dtype_and_shape([np.ones((6, 5), np.float32), np.ones(3)]), dtype_and_shape([np.int8(1)])
    ('f32[6,5] +1', 'i8')
    """
    if not arrays:
        return ""
    s = summary(arrays[0])
    name = s.dtype
    for long, short in DTYPES.items():
        if name.startswith(long) and name.removeprefix(long).isdigit():
            name = short + name.removeprefix(long)
    shape = f"[{','.join(map(str, s.shape))}]" if s.shape else ""
    return f"{name}{shape}" + (f" +{len(arrays) - 1}" if len(arrays) > 1 else "")
