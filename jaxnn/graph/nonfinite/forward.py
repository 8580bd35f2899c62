"""The cause of a non-finite value: by the operation that produced it, and the numbers that it was given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxnn.graph.nonfinite.causes as causes
from jaxnn.graph.nodes import Graph, Node
from jaxnn.graph.nonfinite.causes import Cause, cause
from jaxnn.graph.nonfinite.entries import Entry, entry, first, floats_among, in_words, origin, producer
from jaxnn.graph.nonfinite.patterns import OF_ROOT, difference, exponential, logarithm, quotient, rounding, squares_of
from jaxnn.graph.summaries import number
from jaxnn.jaxprs import is_float


def forward_cause(s: Entry) -> Cause:
    """The cause of a non-finite z."""
    explained = FORWARD.get(s.node.operation)
    found = explained(s) if explained else None
    return found or _by_size(s)


def _by_size(s: Entry) -> Cause:
    """Overflow where finite numbers gave an infinite one; otherwise the inputs are reported."""
    inputs = [s.graph.at(ref)[0] for ref in s.node.inputs]
    if math.isinf(s.z) and all(np.isfinite(np.asarray(x)).all() for x in inputs if is_float(x)):
        return overflow(s.node.values[0].dtype, f"{s.node.operation} of finite numbers is {in_words(s.z)}")
    given = ", ".join(number(x) for x in s.x if x is not None)
    return cause(causes.UNKNOWN, f"{s.node.operation} of {given or 'its input'} is {in_words(s.z)}")


def overflow(dtype: Any, what: str, name: str = causes.OVERFLOW) -> Cause:
    """A number beyond the range of a precision."""
    limits = jnp.finfo(dtype)
    half = limits.bits == 16 and float(limits.max) < 1e6  # bfloat16 reaches as far as float32
    shown = f"{what}: the largest {jnp.dtype(dtype).name} is {number(float(limits.max))}"
    family = half and name in (causes.OVERFLOW, causes.EXP)
    return cause(causes.HALF if family else name, shown)


LIBRARY = {"slogdet": causes.SINGULAR, "var": causes.ONE_ENTRY}  # functions of JAX, and the cause of their NaN


def log_words(s: Entry) -> str:
    """The logarithm as a formula."""
    return "log(1 + x)" if s.node.operation == "log1p" else "log x"


def _log(s: Entry) -> Cause | None:
    x = s.x[0]
    if x is None or math.isnan(x):
        return None
    zero = -1.0 if s.node.operation == "log1p" else 0.0
    name = logarithm(s) if x <= zero else ""
    if x == zero and name == causes.ALL_MASKED:
        return cause(name, "log Σ exp of all −∞ is −∞")
    if x == zero:
        return cause(name or causes.LOG, f"{log_words(s)} at x = {number(x)} is −∞{_clipped(s)}")
    return cause(name or causes.LOG_NEGATIVE, f"{log_words(s)} at x = {number(x)} is NaN") if x < zero else None


def _clipped(s: Entry) -> str:
    """A remark on an earlier bound that is 0 in this precision."""
    node = producer(s.graph, s.node.inputs[0])
    while node is not None and node.operation in ("max", "min", "clamp"):
        bounds = [s.graph.at(ref)[0] for ref in (node.inputs if node.operation == "max" else node.inputs[:1])]
        if node.operation != "min" and any(np.shape(b) == () and float(b) == 0 for b in bounds):
            return f"; it was clipped, but the bound is 0 in {bounds[0].dtype}"
        node = next((p for p in (producer(s.graph, ref) for ref in node.inputs) if p is not None), None)
    return ""


def _exp(s: Entry) -> Cause | None:
    if s.x[0] is None or not math.isinf(s.z) or math.isinf(s.x[0]):
        return None
    what = f"{s.node.operation} of {in_words(s.x[0])}"
    return overflow(s.node.values[0].dtype, what, exponential(s))


def _div(s: Entry) -> Cause | None:
    x, y = s.x
    if x is None or y is None:
        return None
    if math.isinf(x) and math.isinf(y):
        return cause(causes.INFINITY_BY_INFINITY, f"{in_words(x)} / {in_words(y)} is NaN")
    tiny = float(jnp.finfo(s.node.values[0].dtype).tiny)
    if abs(y) >= tiny or math.isfinite(s.z):
        return None
    if y != 0:
        flushed = f"{number(x)} / {number(y)} is {in_words(s.z)}: a number below {number(tiny)} may be flushed to 0"
        return cause(causes.BY_ZERO, flushed)
    name = _derivative(s) or quotient(s)
    if name == causes.SOFTMAX:
        return cause(name, f"every exp is 0, and {in_words(x)} / 0 is {in_words(s.z)}")
    if x != 0 and name in (causes.ZERO_BY_ZERO, causes.LIMIT):
        name = causes.BY_ZERO
    inside = " in a derivative that the function itself takes" if _derivative(s) else ""
    return cause(name, f"{number(x)} / 0 is {in_words(s.z)}{inside}")


def _derivative(s: Entry) -> str:
    """Where f itself differentiates: the cause of the quotient in its derivative; "" elsewhere."""
    if not any("jvp" in scope for scope in s.node.group):
        return ""
    maker = producer(s.graph, s.node.inputs[1])
    if maker is not None and maker.operation == "sqrt":
        return squares_of(s.graph, maker.inputs[0]) or causes.ROOT
    base = origin(s.graph, s.node.inputs[1])
    logs = (node for node in s.graph.nodes if node.operation == "log" and origin(s.graph, node.inputs[0]) == base)
    return causes.LOG if next(logs, None) is not None else ""


def _sqrt(s: Entry) -> Cause | None:
    if s.x[0] is None or not s.x[0] < 0:
        return None
    what = f"{s.node.operation} of {in_words(s.x[0])} is NaN"
    source = difference(s.graph, s.node.inputs[0], s.x[0])
    if source is None:
        return cause(causes.ROOT_NEGATIVE, what)
    return cause(causes.CANCELLATION, f"{what}; it is the rounding error of {cancelled(s.graph, source)}")


def cancelled(graph: Graph, node: Node) -> str:
    """A difference that cancels: its terms and its line."""
    lost = rounding(graph, node)
    s = entry(graph, node, 0, first(abs(np.asarray(node.values[0], np.float64)) <= lost))
    terms = f" {'−' if node.operation == 'sub' else '+'} ".join(number(x) for x in s.x if x is not None)
    return f"{terms} = {in_words(s.z)}" + (f", {node.operation} at {node.source}" if node.source else "")


def _rsqrt(s: Entry) -> Cause | None:
    if s.x[0] != 0:
        return _sqrt(s)
    return cause(inverse_root(s), "1/√x at x = 0 is ∞")


def inverse_root(s: Entry) -> str:
    """The cause of 1/√0, by what the 0 is."""
    if any(scope.lstrip("_") == "standardize" for scope in s.node.group):
        return causes.BY_VARIANCE
    return OF_ROOT.get(squares_of(s.graph, s.node.inputs[0]), causes.BY_ZERO)


def _pow(s: Entry) -> Cause | None:
    x, y = s.x[0], s.node.params["y"] if s.node.operation == "integer_pow" else s.x[1]
    if x is None or y is None:
        return None
    if x == 0 and y < 0:
        return cause(causes.BY_ZERO, f"0 to the power {number(y)} is {in_words(s.z)}")
    if x < 0 and not float(y).is_integer():
        return cause(causes.POWER_NEGATIVE, f"{number(x)} to the power {number(y)} is NaN")
    return None


def _mul(s: Entry) -> Cause | None:
    x, y = s.x
    if x is None or y is None or sorted((abs(x), abs(y))) != [0, math.inf]:
        return None
    return cause(causes.ZERO_TIMES_INFINITY, f"{in_words(x)} · {in_words(y)} is NaN")


def _sub(s: Entry) -> Cause | None:
    x, y = s.x
    if x is None or y is None or not (math.isinf(x) and math.isinf(y)):
        return None
    peak = producer(s.graph, s.node.inputs[1])
    while peak is not None and peak.operation == "max":
        peak = next((p for p in (producer(s.graph, ref) for ref in peak.inputs) if p is not None), None)
    if x < 0 and y < 0 and peak is not None and peak.operation == "reduce_max":
        return cause(causes.ALL_MASKED, "every entry is −∞, and so is their maximum: −∞ − (−∞) is NaN")
    return cause(causes.INFINITY_LESS_INFINITY, f"{in_words(x)} − ({in_words(y)}) is NaN")


def _domain(low: float, high: float) -> Callable[[Entry], Cause | None]:
    def explained(s: Entry) -> Cause | None:
        x = s.x[0]
        if x is None or math.isnan(x) or low < x < high:
            return None
        return cause(causes.DOMAIN, f"{s.node.operation} of {number(x)} is {in_words(s.z)}")

    return explained


def _definite(s: Entry) -> Cause:
    return cause(causes.DEFINITE, "the matrix has no Cholesky factor, at least not after rounding")


def _singular(s: Entry) -> Cause | None:
    if s.node.operation == "custom_linear_solve":  # solve and inv of jax.numpy.linalg
        return cause(causes.SINGULAR, "the system has no solution: a pivot is 0")
    a = np.asarray(s.graph.at(s.node.inputs[0])[0], np.float64)
    return cause(causes.SINGULAR, "a pivot is 0") if (np.diagonal(a, axis1=-2, axis2=-1) == 0).any() else None


def _sum(s: Entry) -> Cause | None:
    """The sum contains ∞ and −∞, or 0·∞."""
    if not math.isnan(s.z):
        return None
    values = [np.asarray(x) for x in floats_among(s.graph, s.node.inputs)]
    if s.node.operation == "dot_general":
        if any(np.isinf(x).any() for x in values):
            return cause(causes.ZERO_TIMES_INFINITY, "a product of matrices that contain ∞: 0·∞, or ∞ − ∞, is NaN")
        return None
    if len(values) == 1 or None not in s.x:
        return cause(causes.INFINITY_LESS_INFINITY, "∞ and −∞ are added")
    return None


FORWARD: dict[str, Callable[[Entry], Cause | None]] = {
    **dict.fromkeys(("log", "log1p"), _log),
    **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh"), _exp),
    "div": _div,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    **dict.fromkeys(("pow", "integer_pow"), _pow),
    "mul": _mul,
    "sub": _sub,
    **dict.fromkeys(("add", "add_any", "reduce_sum", "cumsum", "dot_general", "reduce_window_sum"), _sum),
    **dict.fromkeys(("asin", "acos", "atanh", "erf_inv"), _domain(-1, 1)),
    "acosh": _domain(1, math.inf),
    **dict.fromkeys(("lgamma", "digamma"), _domain(0, math.inf)),
    "cholesky": _definite,
    **dict.fromkeys(("triangular_solve", "custom_linear_solve"), _singular),
}
