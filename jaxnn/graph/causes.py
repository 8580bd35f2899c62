"""Why an operation gives, or passes back, what is not finite: the usual causes by name, and what mends them.

A cause is told from the operation, the numbers that it was given at the element concerned, and what made those numbers:
√ of a sum of squares is a norm. Letters as in the rules: x and y go in, z comes out, δ is the gradient of z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.graph.nodes import CUSTOM, Node, Recorded, Ref
from jaxnn.graph.values import number
from jaxnn.jaxprs import is_float

WHERE = "the where trap"
MASKED = "0·∞ under a mask"
NORM = "norm of a zero vector"
DEVIATION = "standard deviation of what does not vary"
ROOT = "square root at 0"
LOG = "log of 0"
LOG_NEGATIVE = "log of a negative number"
ROOT_NEGATIVE = "square root of a negative number"
POWER = "power of 0"
POWER_NEGATIVE = "fractional power of a negative number"
ZERO_TIMES_INFINITY = "0·∞"
ZERO_BY_ZERO = "0/0"
BY_ZERO = "division by 0"
BY_NORM = "division by a norm of 0"
BY_VARIANCE = "division by a variance of 0"
INFINITY_LESS_INFINITY = "∞ − ∞"
INFINITY_BY_INFINITY = "∞/∞"
ALL_MASKED = "softmax of nothing but −∞"
EXP = "overflow in exp"
HALF = "overflow in half precision"
OVERFLOW = "overflow"
DOMAIN = "outside of its domain"
EDGE = "slope at the end of the domain"
NO_DIRECTION = "direction of a zero vector"
DEFINITE = "not positive definite"
SINGULAR = "singular matrix"
EQUAL = "equal eigenvalues or singular values"
GIVEN = "not finite when it came in"
WRITTEN = "a constant that is not finite"
COTANGENT = "a cotangent that is not finite"
OWN_RULE = "its own rule"
UNKNOWN = "no usual cause"


class Cause(NamedTuple):
    """Why.

    Attributes:
        name: the cause, one of the names above.
        detail: what happened, with the numbers.
        rewrite: what mends it.
    """

    name: str
    detail: str
    rewrite: str


SAFE = "make the input safe inside of the where as well: where(ok, f(where(ok, x, 1)), 0)"
REWRITES = {
    WHERE: SAFE,
    MASKED: "choose with where, not with a product, and make the input safe inside of it: f(where(ok, x, 1))",
    NORM: "where(n2 > 0, sqrt(where(n2 > 0, n2, 1)), 0) with n2 = sum(x²), or sqrt(n2 + ε), or use n2 itself",
    DEVIATION: "sqrt(var + ε), ε inside of the root, or the variance itself",
    ROOT: "sqrt(x + ε), or where(x > 0, sqrt(where(x > 0, x, 1)), 0)",
    LOG: "work with logits (log_softmax, log_sigmoid), or xlogy for x log y, or log(maximum(x, tiny))",
    LOG_NEGATIVE: "keep x positive, by softplus or exp of what is learnt, or maximum(x, tiny)",
    ROOT_NEGATIVE: "rounding may leave a sum below 0: maximum(x, 0), or a two-pass variance, mean((x − mean)²)",
    POWER: "where(x > 0, where(x > 0, x, 1) ** p, 0), or (x + ε) ** p",
    POWER_NEGATIVE: "abs(x) ** p, or keep x positive",
    ZERO_TIMES_INFINITY: "bound the factor that is infinite; for x log x use xlogy",
    ZERO_BY_ZERO: "where(d != 0, x / where(d != 0, d, 1), 0), or x / maximum(d, 1) for a count d",
    BY_ZERO: "x / maximum(d, ε), or where(d != 0, x / where(d != 0, d, 1), 0)",
    BY_NORM: "x · rsqrt(sum(x²) + ε), ε inside of the root: x / (norm + ε) still has no gradient at 0",
    BY_VARIANCE: "(x − mean) · rsqrt(var + ε), ε inside of the root",
    INFINITY_LESS_INFINITY: "find what is infinite before it is subtracted: subtract the maximum before exp",
    INFINITY_BY_INFINITY: "divide before it overflows: subtract the maximum before exp, as jax.nn.softmax does",
    ALL_MASKED: "mask with a large finite number, or give the rows without an entry scores of 0 and a result of 0",
    EXP: "subtract the maximum first (logsumexp, softmax), or stay in logarithms",
    HALF: "compute this in float32, or scale the loss",
    OVERFLOW: "scale the numbers down, or stay in logarithms",
    EDGE: "clip x to ±(1 − ε), short of the end; for an angle between vectors use arctan2(|a × b|, a · b)",
    DOMAIN: "clip x into the domain, or where with an input that is made safe inside",
    NO_DIRECTION: "where(r > 0, arctan2(where(r > 0, y, 1), where(r > 0, x, 1)), 0) with r = x² + y²",
    DEFINITE: "symmetrise it and add ε to its diagonal: (a + aᵀ)/2 + ε I",
    SINGULAR: "add ε to the diagonal, or use a least-squares solution",
    EQUAL: "the vectors have no gradient there; use the values alone, or a function of the matrix",
    GIVEN: "look at what made it",
    WRITTEN: "a large finite number in its place",
    COTANGENT: "look at what made it",
    OWN_RULE: "look into the rule",
    UNKNOWN: "look at the numbers that it was given",
}


def cause(name: str, detail: str) -> Cause:
    """A cause with the rewrite that belongs to its name."""
    return Cause(name, detail, REWRITES[name])


# ---------------------------------------------------------------- what made a number

CARRIED = {  # operations that hand the numbers on
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy"),
    *("stop_gradient", "reduce_precision"),
}


def _parent(graph: Recorded, ref: Ref) -> Node | None:
    """The operation that made an array, seen through reshaping and casts; None for a leaf."""
    while ref.leaf is None:
        node = graph.nodes[ref.node]
        if node.operation in CARRIED:
            ref = node.inputs[0]
        elif node.operation == "select_n" and len(node.inputs) == 3:  # var() is NaN where nothing is left
            which = np.asarray(graph.at(node.inputs[0])[0])
            ref = node.inputs[1 + int(which.flat[0])] if which.size else node.inputs[1]
        else:
            return node
    return None


def _squares_of(graph: Recorded, ref: Ref) -> str:
    """DEVIATION for a mean of squared differences, NORM for a sum of squares, "" for anything else."""
    node = _parent(graph, ref)
    mean = False
    while node is not None and node.operation in ("div", "mul", "max"):
        if node.operation == "mul" and node.inputs[0] == node.inputs[1]:
            break
        mean = mean or node.operation == "div"
        node = _parent(graph, node.inputs[0])
    if node is None:
        return ""
    if node.operation == "dot_general" and node.inputs[0] == node.inputs[1]:
        return NORM
    if node.operation != "reduce_sum":
        return ""
    square = _parent(graph, node.inputs[0])
    if square is None or not _is_square(graph, square):
        return ""
    base = _parent(graph, square.inputs[0])
    return DEVIATION if mean and base is not None and base.operation == "sub" else NORM


def _is_square(graph: Recorded, node: Node) -> bool:
    return (
        node.operation == "square"
        or (node.operation == "mul" and node.inputs[0] == node.inputs[1])
        or (node.operation == "integer_pow" and node.params["y"] == 2)
        or (node.operation == "pow" and bool(np.all(np.asarray(graph.at(node.inputs[1])[0], np.float64) == 2)))
    )


def _divisor(graph: Recorded, ref: Ref) -> str:
    """What a divisor of 0 is: a norm, a variance, or just a number."""
    node = _parent(graph, ref)
    if node is None:
        return BY_ZERO
    if node.operation == "sqrt":
        return {DEVIATION: BY_VARIANCE, NORM: BY_NORM}.get(_squares_of(graph, node.inputs[0]), BY_ZERO)
    if node.operation == "mul":  # |x| |y|, as in a cosine
        found = [_divisor(graph, r) for r in node.inputs if r.leaf is None]
        if BY_NORM in found:
            return BY_NORM
    return BY_VARIANCE if _squares_of(graph, ref) == DEVIATION else BY_ZERO


# ---------------------------------------------------------------- forward


class Spot(NamedTuple):
    """An operation at one element.

    Attributes:
        graph: it stands in.
        node: the operation.
        x: what it was given there, one number for each input; None for an input of another shape.
        z: what it gave there.
        delta: the gradient of z there; None in a forward pass.
    """

    graph: Recorded
    node: Node
    x: tuple[float | None, ...]
    z: float
    delta: float | None = None


def spot(graph: Recorded, node: Node, output: int, element: tuple[int, ...]) -> Spot:
    """An operation at an element of one of its outputs."""
    shape = np.shape(node.values[output])
    gradient = node.gradients[output] if node.gradients else None
    return Spot(
        graph,
        node,
        tuple(_entry(graph.at(ref)[0], element, shape) for ref in node.inputs),
        float(node.values[output][element]),
        None if gradient is None else float(gradient[element]),
    )


def _entry(value: Any, element: tuple[int, ...], shape: tuple[int, ...]) -> float | None:
    ours = np.shape(value)
    if ours == ():
        element = ()
    elif len(ours) == len(shape) and all(n in (1, m) for n, m in zip(ours, shape, strict=True)):
        element = tuple(0 if n == 1 else i for n, i in zip(ours, element, strict=True))
    else:
        return None
    if not (is_float(value) or jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool):
        return None
    return float(value[element])


def forward_cause(s: Spot) -> Cause:
    """Why z is not finite."""
    told = FORWARD.get(s.node.operation)
    found = told(s) if told else None
    return found or _by_size(s)


def _by_size(s: Spot) -> Cause:
    """Overflow where finite numbers gave an infinite one; what went in otherwise."""
    inputs = [s.graph.at(ref)[0] for ref in s.node.inputs]
    if math.isinf(s.z) and all(np.isfinite(np.asarray(x)).all() for x in inputs if is_float(x)):
        return _overflow(s.node.values[0].dtype, f"{s.node.operation} of finite numbers is {number(s.z)}")
    given = ", ".join(number(x) for x in s.x if x is not None)
    return cause(UNKNOWN, f"{s.node.operation} of {given or 'its input'} is {number(s.z)}")


def _overflow(dtype: Any, what: str, name: str = OVERFLOW) -> Cause:
    limits = jnp.finfo(dtype)
    half = limits.bits == 16 and float(limits.max) < 1e6  # bfloat16 reaches as far as float32
    shown = f"{what}: {jnp.dtype(dtype).name} ends at {number(float(limits.max))}"
    return cause(HALF if half else name, shown)


def _log(s: Spot) -> Cause | None:
    x = s.x[0]
    if x is None or math.isnan(x):
        return None
    zero = -1.0 if s.node.operation == "log1p" else 0.0
    letters = "log(1 + x)" if zero else "log x"
    if x == zero and _sums_exps_of_nothing(s):
        return cause(ALL_MASKED, "log Σ exp of nothing but −∞ is −∞")
    if x == zero:
        return cause(LOG, f"{letters} at x = {number(x)} is −∞{_clipped(s)}")
    return cause(LOG_NEGATIVE, f"{letters} at x = {number(x)} is NaN") if x < zero else None


def _sums_exps_of_nothing(s: Spot) -> bool:
    """True for the log of a sum of exponentials of −∞."""
    total = _parent(s.graph, s.node.inputs[0])
    if total is not None and total.operation == "abs":  # jax.nn.logsumexp has it
        total = _parent(s.graph, total.inputs[0])
    powers = _parent(s.graph, total.inputs[0]) if total is not None and total.operation == "reduce_sum" else None
    return (
        powers is not None
        and powers.operation == "exp"
        and bool(np.isneginf(np.asarray(s.graph.at(powers.inputs[0])[0], np.float64)).any())
    )


def _clipped(s: Spot) -> str:
    """A word on a bound that came before and is 0."""
    node = _parent(s.graph, s.node.inputs[0])
    while node is not None and node.operation in ("max", "min", "clamp"):
        bounds = [s.graph.at(ref)[0] for ref in (node.inputs if node.operation == "max" else node.inputs[:1])]
        if node.operation != "min" and any(np.shape(b) == () and float(b) == 0 for b in bounds):
            return f"; it was clipped, at a bound that is 0 in {bounds[0].dtype}"
        node = next((p for p in (_parent(s.graph, ref) for ref in node.inputs) if p is not None), None)
    return ""


def _exp(s: Spot) -> Cause | None:
    if s.x[0] is None or not math.isinf(s.z) or math.isinf(s.x[0]):
        return None
    what = f"{s.node.operation} of {number(s.x[0])}"
    return _overflow(s.node.values[0].dtype, what, EXP)


def _div(s: Spot) -> Cause | None:
    x, y = s.x
    if x is None or y is None:
        return None
    if math.isinf(x) and math.isinf(y):
        return cause(INFINITY_BY_INFINITY, f"{number(x)} / {number(y)} is NaN")
    if y != 0:
        return None
    name = _divisor(s.graph, s.node.inputs[1])
    if name == BY_ZERO and x == 0:
        name = ZERO_BY_ZERO
    return cause(name, f"{number(x)} / 0 is {number(s.z)}")


def _sqrt(s: Spot) -> Cause | None:
    if s.x[0] is None or not s.x[0] < 0:
        return None
    return cause(ROOT_NEGATIVE, f"{s.node.operation} of {number(s.x[0])} is NaN")


def _rsqrt(s: Spot) -> Cause | None:
    if s.x[0] != 0:
        return _sqrt(s)
    name = {DEVIATION: BY_VARIANCE, NORM: BY_NORM}.get(_squares_of(s.graph, s.node.inputs[0]), BY_ZERO)
    return cause(name, "1/√x at x = 0 is ∞")


def _pow(s: Spot) -> Cause | None:
    x, y = s.x[0], s.node.params["y"] if s.node.operation == "integer_pow" else s.x[1]
    if x is None or y is None:
        return None
    if x == 0 and y < 0:
        return cause(BY_ZERO, f"0 to the power {number(y)} is {number(s.z)}")
    if x < 0 and not float(y).is_integer():
        return cause(POWER_NEGATIVE, f"{number(x)} to the power {number(y)} is NaN")
    return None


def _mul(s: Spot) -> Cause | None:
    if None not in s.x and sorted(map(abs, s.x)) == [0, math.inf]:  # type: ignore[arg-type]
        return cause(ZERO_TIMES_INFINITY, f"{number(s.x[0])} · {number(s.x[1])} is NaN")
    return None


def _sub(s: Spot) -> Cause | None:
    x, y = s.x
    if x is None or y is None or not (math.isinf(x) and math.isinf(y)):
        return None
    peak = _parent(s.graph, s.node.inputs[1])
    while peak is not None and peak.operation == "max":
        peak = next((p for p in (_parent(s.graph, ref) for ref in peak.inputs) if p is not None), None)
    if x < 0 and y < 0 and peak is not None and peak.operation == "reduce_max":
        return cause(ALL_MASKED, "every entry is −∞, and so is their maximum: −∞ − (−∞) is NaN")
    return cause(INFINITY_LESS_INFINITY, f"{number(x)} − ({number(y)}) is NaN")


def _domain(low: float, high: float) -> Callable[[Spot], Cause | None]:
    def told(s: Spot) -> Cause | None:
        x = s.x[0]
        if x is None or math.isnan(x) or low < x < high:
            return None
        return cause(DOMAIN, f"{s.node.operation} of {number(x)} is {number(s.z)}")

    return told


def _definite(s: Spot) -> Cause:
    return cause(DEFINITE, "the matrix has no Cholesky factor, or rounding leaves it none")


def _singular(s: Spot) -> Cause | None:
    a = np.asarray(s.graph.at(s.node.inputs[0])[0], np.float64)
    if s.node.operation == "triangular_solve":
        return cause(SINGULAR, "a pivot is 0") if (np.diagonal(a, axis1=-2, axis2=-1) == 0).any() else None
    return None


def _sum(s: Spot) -> Cause | None:
    """What is added up is ∞ and −∞, or 0·∞."""
    if not math.isnan(s.z):
        return None
    values = [np.asarray(s.graph.at(ref)[0]) for ref in s.node.inputs if is_float(s.graph.at(ref)[0])]
    if s.node.operation == "dot_general":
        if any(np.isinf(x).any() for x in values):
            return cause(ZERO_TIMES_INFINITY, "a product of matrices that holds ∞: 0·∞, or ∞ − ∞, is NaN")
        return None
    if len(values) == 1 or None not in s.x:
        return cause(INFINITY_LESS_INFINITY, "∞ and −∞ are added")
    return None


FORWARD: dict[str, Callable[[Spot], Cause | None]] = {
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
    "triangular_solve": _singular,
}


# ---------------------------------------------------------------- backward

DECOMPOSITIONS = {"eigh", "svd", "eig"}
Mask = Callable[[Sequence[Any], Any, dict[str, Any]], Any]  # where a slope is not finite: (inputs, output, params)


def _small_power(inputs: Sequence[Any], z: Any, params: dict[str, Any]) -> Any:
    x, y = inputs
    return (x == 0) & (y < 1)


def _overflowed(inputs: Sequence[Any], z: Any, params: dict[str, Any]) -> Any:
    return np.isinf(z)


STEEP: dict[str, Mask] = {
    **dict.fromkeys(("sqrt", "rsqrt", "log", "cbrt"), lambda xs, z, p: xs[0] == 0),
    "log1p": lambda xs, z, p: xs[0] == -1,
    "div": lambda xs, z, p: xs[1] == 0,
    "pow": _small_power,
    "integer_pow": lambda xs, z, p: (xs[0] == 0) & (p["y"] < 0),
    **dict.fromkeys(("asin", "acos", "atanh", "erf_inv"), lambda xs, z, p: abs(xs[0]) >= 1),
    "acosh": lambda xs, z, p: xs[0] <= 1,
    "atan2": lambda xs, z, p: (xs[0] == 0) & (xs[1] == 0),
    "mul": lambda xs, z, p: np.isinf(xs[0]) | np.isinf(xs[1]),
    **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh", "tan", "square"), _overflowed),
}


def steep(graph: Recorded, node: Node) -> tuple[int, ...] | None:
    """The first element at which an operation's slope is not finite, rather one where δ is not 0."""
    told = STEEP.get(node.operation)
    if told is None or node.gradients[0] is None:
        return None
    inputs = [np.asarray(graph.at(ref)[0]) for ref in node.inputs]
    with np.errstate(all="ignore"):
        mask = np.broadcast_to(told(inputs, np.asarray(node.values[0]), dict(node.params)), node.values[0].shape)
    if not mask.any():
        return None
    live = mask & (np.asarray(node.gradients[0]) != 0)
    return tuple(map(int, np.argwhere(live if live.any() else mask)[0]))


def backward_cause(graph: Recorded, node: Node, edge: int, element: tuple[int, ...] | None) -> Cause:
    """Why what an operation passes back along an edge is not finite, while its own gradient is.

    Args:
        graph: it stands in.
        node: the operation.
        edge: which of its inputs.
        element: of its output, as from `steep`; None where it is not known.
    """
    if node.operation in DECOMPOSITIONS:
        return cause(EQUAL, f"{node.operation} passes back 1/(λᵢ − λⱼ), and two of them are equal")
    if element is None:
        if node.rule == CUSTOM:
            return cause(OWN_RULE, f"the rule of {node.operation} passes back what is not finite")
        dtype = graph.at(node.inputs[edge])[0].dtype
        if np.isinf(np.asarray(node.passed[edge], np.float64)).any():
            return _overflow(dtype, f"what {node.operation} passes back is too large")
        return cause(UNKNOWN, f"{node.operation} passes back what is not finite")
    s = spot(graph, node, 0, element)
    name, what = _slope(s)
    if s.delta == 0:
        trap = _unchosen(graph, node)
        if trap:
            return cause(trap, f"{what}; nothing asked for it (δ = 0), and 0·∞ is NaN")
        return cause(name, f"{what}, and 0·∞ is NaN")
    return cause(name, what)


def _slope(s: Spot) -> tuple[str, str]:
    """The name and the words of an infinite slope."""
    kind, x = s.node.operation, s.x[0]
    at = f"at x = {number(x)}" if x is not None else "there"
    if kind in ("sqrt", "rsqrt"):
        squares = _squares_of(s.graph, s.node.inputs[0])
        letters = "√x" if kind == "sqrt" else "1/√x"
        name = squares or ROOT
        if kind == "rsqrt":
            name = {DEVIATION: BY_VARIANCE, NORM: BY_NORM}.get(squares, BY_ZERO)
        return name, f"the slope of {letters} {at} is infinite"
    if kind in ("log", "log1p"):
        return LOG, f"the slope of {kind} {at} is infinite"
    if kind == "div":
        return _divisor(s.graph, s.node.inputs[1]), f"the slope of x / y at x = {number(x or 0.0)}, y = 0 is not finite"
    if kind in ("pow", "integer_pow", "cbrt"):
        return POWER, f"the slope of {kind} {at} is infinite"
    if kind == "atan2":
        return NO_DIRECTION, "atan2 at (0, 0) has no slope: 0/0"
    if kind == "mul":
        makers = (s.graph.nodes[r.node] for r, x in zip(s.node.inputs, s.x, strict=True)
                  if r.leaf is None and x is not None and math.isinf(x))  # fmt: skip
        maker = next(makers, None)
        by = f", made by {maker.operation}" + (f" at {maker.source}" if maker.source else "") if maker else ""
        return ZERO_TIMES_INFINITY, f"a factor is infinite{by}"
    if kind in ("exp", "exp2", "expm1", "sinh", "cosh", "tan", "square"):
        return EXP if kind != "square" else OVERFLOW, f"{kind} {at} is {number(s.z)}, and its slope too"
    at_end = x is not None and abs(x) == 1
    return EDGE if at_end else DOMAIN, f"the slope of {kind} {at} is {'infinite' if at_end else 'NaN'}"


SEEN = 64  # operations that are followed from an unasked number to what did not choose it


def _unchosen(graph: Recorded, node: Node) -> str:
    """WHERE if a `where` (or max, min, clip) did not choose this operation's result, MASKED if a factor 0 hides it."""
    users: dict[int, list[tuple[Node, int]]] = {}
    for user in graph.nodes[node.id + 1 :]:
        for i, ref in enumerate(user.inputs):
            users.setdefault(ref.node, []).append((user, i))
    todo, seen = [node.id], set[int]()
    while todo and len(seen) < SEEN:
        here = todo.pop(0)
        for user, i in users.get(here, []):
            own = [g for g in user.gradients if g is not None]
            if user.id in seen or not own:
                continue
            seen.add(user.id)
            passed = user.passed[i] if user.passed else None
            lost = passed is None or bool((np.asarray(passed) == 0).any())
            asked = any(bool((np.asarray(g) != 0).any()) for g in own)
            if lost and asked and user.operation in ("select_n", "max", "min", "clamp"):
                return WHERE
            if lost and asked and user.operation == "mul" and (np.asarray(graph.at(user.inputs[1 - i])[0]) == 0).any():
                return MASKED
            todo.append(user.id)
    return ""
