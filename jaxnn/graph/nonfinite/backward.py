"""The cause of a non-finite gradient: an operation passes it back although its own gradient δ is finite.

Either its slope is not finite there, or δ = 0 is multiplied by a factor that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import jaxnn.graph.nonfinite.causes as causes
from jaxnn.graph.nodes import CUSTOM, Graph, Node
from jaxnn.graph.nonfinite.causes import Cause, cause
from jaxnn.graph.nonfinite.entries import Entry, entry, entrywise, first, in_words, nonfinite
from jaxnn.graph.nonfinite.forward import inverse_root, log_words, overflow
from jaxnn.graph.nonfinite.patterns import exponential, logarithm, quotient, squares_of
from jaxnn.graph.summaries import number

TIMES_ZERO = "; δ = 0, and 0·∞ is NaN"
DECOMPOSITIONS = {"eigh", "svd", "eig"}
EXPONENTIALS = ("exp", "exp2", "expm1", "sinh", "cosh")
Mask = Callable[[Sequence[Any], Any, dict[str, Any]], Any]  # where a slope is not finite: (inputs, output, params)


def _small_power(inputs: Sequence[Any], z: Any, params: dict[str, Any]) -> Any:
    x, y = inputs
    return (x == 0) & (y < 1)


INFINITE_SLOPE: dict[str, Mask] = {
    **dict.fromkeys(("sqrt", "rsqrt", "log", "cbrt"), lambda xs, z, p: xs[0] == 0),
    "log1p": lambda xs, z, p: xs[0] == -1,
    "div": lambda xs, z, p: xs[1] == 0,
    "pow": _small_power,
    "integer_pow": lambda xs, z, p: (xs[0] == 0) & (p["y"] < 0),
    **dict.fromkeys(("asin", "acos", "atanh", "erf_inv"), lambda xs, z, p: abs(xs[0]) >= 1),
    "acosh": lambda xs, z, p: xs[0] <= 1,
    "atan2": lambda xs, z, p: (xs[0] == 0) & (xs[1] == 0),
    "mul": lambda xs, z, p: np.isinf(xs[0]) | np.isinf(xs[1]),
    **dict.fromkeys((*EXPONENTIALS, "tan", "square"), lambda xs, z, p: np.isinf(z)),
}


def infinite_slope(graph: Graph, node: Node, edge: int) -> tuple[int, ...] | None:
    """The first element at which NaN or infinity is passed back to input `edge`, preferably where δ is not 0."""
    if not entrywise(graph, node) or node.gradients[0] is None:
        return None
    inputs, z = [np.asarray(graph.at(ref)[0]) for ref in node.inputs], np.asarray(node.values[0])
    explained = INFINITE_SLOPE.get(node.operation)
    with np.errstate(all="ignore"):
        mask = np.broadcast_to(explained(inputs, z, dict(node.params)) if explained else False, z.shape)
    live = np.asarray(node.gradients[0]) != 0
    passed = nonfinite(node.passed[edge]) if np.shape(node.passed[edge]) == z.shape else nonfinite(z) | mask
    given = np.zeros(z.shape, bool)
    for x in inputs:
        if np.issubdtype(x.dtype, np.inexact):
            given = given | nonfinite(x)
    for wanted in (mask & live, passed & live, mask, passed, given):
        if wanted.any():
            return first(wanted)
    return None


def backward_cause(graph: Graph, node: Node, edge: int, element: tuple[int, ...] | None) -> Cause:
    """The cause of a non-finite gradient passed back to input `edge`, while the operation's own gradient is finite.

    `element` of its output is as from `infinite_slope`; None if unknown.
    """
    if node.operation in DECOMPOSITIONS:
        return cause(causes.EQUAL, f"{node.operation} passes back 1/(λᵢ − λⱼ), and two of them are equal")
    if element is None or node.rule == CUSTOM:
        if node.rule == CUSTOM:
            return cause(causes.CUSTOM_RULE, f"the rule of {node.operation} passes back NaN or infinity")
        dtype = graph.at(node.inputs[edge])[0].dtype
        if np.isinf(np.asarray(node.passed[edge], np.float64)).any():
            return overflow(dtype, f"the gradient that {node.operation} passes back is too large")
        return cause(causes.UNKNOWN, f"{node.operation} passes back NaN or infinity")
    s = entry(graph, node, 0, element)
    name, what = slope(s, edge)
    if name == causes.UNKNOWN and np.isinf(np.asarray(node.passed[edge], np.float64)).any():
        dtype = graph.at(node.inputs[edge])[0].dtype
        return overflow(dtype, f"the gradient that {node.operation} passes back is too large")
    return cause(name, f"{what}{TIMES_ZERO}" if s.delta == 0 else what)


def slope(s: Entry, edge: int = 0) -> tuple[str, str]:
    """The name of the cause, and a description, of a slope that is not finite."""
    kind, x = s.node.operation, s.x[0]
    at = f"at x = {number(x)}" if x is not None else "there"
    explained = SLOPES.get(kind)
    if explained is not None:
        return explained(s, at, edge)
    if kind in INFINITE_SLOPE:
        at_end = x is not None and abs(x) == 1
        return (
            causes.EDGE if at_end else causes.DOMAIN,
            f"the slope of {kind} {at} is {'infinite' if at_end else 'NaN'}",
        )
    return causes.UNKNOWN, f"{kind} {at} passes back NaN or infinity"


def _root(s: Entry, at: str, edge: int) -> tuple[str, str]:
    letters = "√x" if s.node.operation == "sqrt" else "1/√x"
    if s.x[0] is not None and s.x[0] < 0:
        return causes.ROOT_NEGATIVE, f"{letters} {at} is NaN"
    squares = squares_of(s.graph, s.node.inputs[0])
    if any(scope.lstrip("_") in ("std", "nanstd") for scope in s.node.group):
        squares = causes.DEVIATION
    name = squares or causes.ROOT
    if s.node.operation == "rsqrt":
        name = inverse_root(s)
    return _pole(s, name), f"the slope of {letters} {at} is infinite"


def _pole(s: Entry, name: str) -> str:
    """The cause of a pole: THROUGH if its infinity is turned into a finite number."""
    return causes.THROUGH if name == causes.BY_ZERO and s.delta == 0 and math.isinf(s.z) else name


def _log(s: Entry, at: str, edge: int) -> tuple[str, str]:
    x = s.x[0]
    if x is not None and x < (-1 if s.node.operation == "log1p" else 0):
        return logarithm(s) or causes.LOG_NEGATIVE, f"{log_words(s)} {at} is NaN"
    return logarithm(s) or causes.LOG, f"{log_words(s)} {at} is −∞ and its slope is infinite"


def _div(s: Entry, at: str, edge: int) -> tuple[str, str]:
    x, y = s.x
    if y is not None and (y == 0 or not math.isfinite(s.z)):
        name = quotient(s)
        if x != 0 and name in (causes.ZERO_BY_ZERO, causes.LIMIT):
            name = causes.BY_ZERO
        return _pole(s, name), f"the slope of x / y at x = {number(x or 0.0)}, y = {number(y)} is not finite"
    return causes.UNKNOWN, f"{number(x or 0.0)} / {number(y or 0.0)} passes back NaN or infinity"


def _pow(s: Entry, at: str, edge: int) -> tuple[str, str]:
    x, kind = s.x[0], s.node.operation
    exponent = s.x[1] if kind == "pow" else None
    if x is not None and x < 0 and exponent is not None:
        if edge == 1 and float(exponent).is_integer():
            return (
                causes.POWER_EXPONENT,
                f"x ** p at x = {number(x)}, p = {number(exponent)} has no slope in p: log x is NaN",
            )
        return causes.POWER_NEGATIVE, f"{number(x)} to the power {number(exponent)} is NaN"
    if exponent == 0:
        return causes.POWER_ZERO, "p · x ** (p − 1) at x = 0, p = 0 is 0·∞, which is NaN"
    if (exponent if exponent is not None else s.node.params.get("y", 1)) < 0:
        return _pole(s, causes.BY_ZERO), f"0 to a negative power is {in_words(s.z)}"
    return causes.POWER, f"the slope of {kind} {at} is infinite"


def _atan2(s: Entry, at: str, edge: int) -> tuple[str, str]:
    return causes.NO_DIRECTION, "atan2 at (0, 0) has no slope: 0/0"


def _mul(s: Entry, at: str, edge: int) -> tuple[str, str]:
    makers = (s.graph.nodes[r.node] for r, x in zip(s.node.inputs, s.x, strict=True)
              if r.leaf is None and x is not None and math.isinf(x))  # fmt: skip
    maker = next(makers, None)
    by = f", produced by {maker.operation}" + (f" at {maker.source}" if maker.source else "") if maker else ""
    return causes.ZERO_TIMES_INFINITY, f"a factor is infinite{by}"


def _exp(s: Entry, at: str, edge: int) -> tuple[str, str]:
    name = exponential(s)
    if name == causes.EXP:
        name = overflow(s.node.values[0].dtype, "", causes.EXP).name
    return name, f"{s.node.operation} {at} is {in_words(s.z)}, and so is its slope"


def _large(s: Entry, at: str, edge: int) -> tuple[str, str]:
    return causes.OVERFLOW, f"{s.node.operation} {at} is {in_words(s.z)}, and so is its slope"


SLOPES: dict[str, Callable[[Entry, str, int], tuple[str, str]]] = {
    **dict.fromkeys(("sqrt", "rsqrt"), _root),
    **dict.fromkeys(("log", "log1p"), _log),
    "div": _div,
    **dict.fromkeys(("pow", "integer_pow", "cbrt"), _pow),
    "atan2": _atan2,
    "mul": _mul,
    **dict.fromkeys(EXPONENTIALS, _exp),
    **dict.fromkeys(("tan", "square"), _large),
}
