"""The formula that an operation is part of: √ of a sum of squares is a norm, exp divided by its sum a softmax.

These are formulas that people write by hand and that have an equivalent which stays finite.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxnn.graph.nonfinite.causes as causes
from jaxnn.graph.nodes import Graph, Node, Ref
from jaxnn.graph.nonfinite.entries import Entry, ancestors, descendants, entrywise, is_square, origin, producer

SCALED = {"neg", "mul", "div"}
TAILS = {"erf", "erfc", "ndtr"}


# ---------------------------------------------------------------- roots and divisors


def squares_of(graph: Graph, ref: Ref) -> str:
    """DEVIATION for a mean of squared differences, NORM for a sum of squares, "" for anything else."""
    node = producer(graph, ref)
    mean = False
    while node is not None and node.operation in ("div", "mul", "max"):
        if node.operation == "mul" and node.inputs[0] == node.inputs[1]:
            break
        mean = mean or node.operation == "div"
        node = producer(graph, node.inputs[0])
    if node is None:
        return ""
    if node.operation == "dot_general" and node.inputs[0] == node.inputs[1]:
        return causes.NORM
    if node.operation != "reduce_sum":
        return ""
    square = producer(graph, node.inputs[0])
    if square is None or not is_square(graph, square):
        return ""
    base = producer(graph, square.inputs[0])
    return causes.DEVIATION if mean and base is not None and base.operation == "sub" else causes.NORM


OF_ROOT = {causes.DEVIATION: causes.BY_VARIANCE, causes.NORM: causes.BY_NORM}


def divisor(graph: Graph, ref: Ref) -> str:
    """The cause of a zero divisor: a norm, a variance, or any other number."""
    node = producer(graph, ref)
    if node is None:
        return causes.BY_ZERO
    if node.operation == "sqrt":
        return OF_ROOT.get(squares_of(graph, node.inputs[0]), causes.BY_ZERO)
    if node.operation == "mul":  # |x| |y|, as in a cosine
        found = [divisor(graph, r) for r in node.inputs if r.leaf is None]
        if causes.BY_NORM in found:
            return causes.BY_NORM
    return OF_ROOT.get(squares_of(graph, ref), causes.BY_ZERO)


def quotient(s: Entry) -> str:
    """The cause of 0/0, which may have a limit if numerator and divisor are functions of the same number."""
    if _is_softmax(s.graph, s.node):
        return causes.SOFTMAX
    if _sum_of_deviations(s.graph, s.node.inputs[0]):
        return causes.ONE_ENTRY
    name = divisor(s.graph, s.node.inputs[1])
    if name != causes.BY_ZERO:
        return name
    base = origin(s.graph, s.node.inputs[1])
    while base.leaf is None:
        node = s.graph.nodes[base.node]
        scaled = node.operation in ("mul", "neg", "div") and any(_constant(s.graph, r) for r in node.inputs[1:])
        if not (is_square(s.graph, node) or node.operation in ("integer_pow", "neg") or scaled):
            break
        base = origin(s.graph, node.inputs[0])
    return causes.LIMIT if _made_of(s.graph, s.node.inputs[0], base) else causes.ZERO_BY_ZERO


def _sum_of_deviations(graph: Graph, ref: Ref) -> bool:
    """True for Σ (x − mean)²."""
    total = producer(graph, ref)
    square = producer(graph, total.inputs[0]) if total is not None and total.operation == "reduce_sum" else None
    base = producer(graph, square.inputs[0]) if square is not None and is_square(graph, square) else None
    return base is not None and base.operation == "sub"


def _constant(graph: Graph, ref: Ref) -> bool:
    ref = origin(graph, ref)
    return ref.leaf is not None and graph.leaves[ref.leaf].kind != "input"


def _made_of(graph: Graph, ref: Ref, base: Ref) -> bool:
    """Whether an array is an elementwise function of another, and of constants."""
    todo, seen = [origin(graph, ref)], set[Ref]()
    while todo:
        here = todo.pop()
        if here == base:
            return True
        if here in seen or here.leaf is not None:
            continue
        seen.add(here)
        node = graph.nodes[here.node]
        if entrywise(graph, node):
            todo += [origin(graph, r) for r in node.inputs]
    return False


# ---------------------------------------------------------------- logarithms


def logarithm(s: Entry) -> str:
    """The cause of a log of 0 or of a negative number; "" outside known formulas."""
    graph, node = s.graph, s.node
    if _is_product(s):
        return causes.PRODUCT
    if s.x[0] is None or s.x[0] < (-1 if node.operation == "log1p" else 0):
        return ""
    if _sums_exps_of_nothing(s):
        return causes.ALL_MASKED
    for maker in ancestors(graph, node.inputs[0], SCALED | {"add", "sub", "max", "min", "clamp", "neg"}):
        if maker.operation.lstrip("_") == "det":
            return causes.SINGULAR
        if maker.operation in TAILS or {"ndtr", "_ndtr"} & set(maker.group):
            return causes.TAIL
        if (
            maker.operation in ("logistic", "softmax", "_softmax")
            or _is_softmax(graph, maker)
            or _is_sigmoid(graph, maker)
        ):
            return causes.LOG_SOFTMAX
        if maker.operation in ("reduce_prod", "cumprod"):
            return causes.LOG_PRODUCT
        if maker.operation == "exp":
            return causes.EXP_LOG
        if maker.operation == "reduce_sum" and _parent_is(graph, maker, "exp"):
            return causes.LOGSUMEXP
    if _is_x_log_y(s):
        return causes.X_LOG_X
    users = {user.operation for user, _, path in descendants(graph, node, SCALED | {"sub"})}
    return causes.EXP_LOG if users & {"exp", "exp2", "softmax", "_softmax"} else ""


def _is_product(s: Entry) -> bool:
    """True for the log in exp of a sum of logs."""
    sums = {"cumsum", "reduce_sum"}
    return any(
        user.operation == "exp" and sums & set(path) and "sub" not in path
        for user, _, path in descendants(s.graph, s.node, sums | {"neg"})
    )


def _is_softmax(graph: Graph, node: Node) -> bool:
    """True for exp divided by a sum."""
    if node.operation != "div":
        return False
    top, bottom = (producer(graph, ref) for ref in node.inputs)
    return top is not None and top.operation == "exp" and bottom is not None and bottom.operation == "reduce_sum"


def _is_sigmoid(graph: Graph, node: Node) -> bool:
    """True for a number divided by 1 plus an exp."""
    bottom = producer(graph, node.inputs[1]) if node.operation == "div" else None
    return (
        bottom is not None
        and bottom.operation == "add"
        and any(
            maker is not None and maker.operation == "exp" for maker in (producer(graph, ref) for ref in bottom.inputs)
        )
    )


def _parent_is(graph: Graph, node: Node, operation: str) -> bool:
    maker = producer(graph, node.inputs[0])
    return maker is not None and maker.operation == operation


def _is_x_log_y(s: Entry) -> bool:
    """True for a log that is multiplied by a number which is 0 there."""
    for user, i, _ in descendants(s.graph, s.node, {"neg", "add", "sub"}):
        if user.operation == "mul":
            other = user.inputs[1 - i]
            if origin(s.graph, other) == origin(s.graph, s.node.inputs[0]):
                return True
            if _zero_where_infinite(s.graph, user, i) and not _is_mask(s.graph, other):
                return True
    return False


def _zero_where_infinite(graph: Graph, node: Node, i: int) -> bool:
    ours, other = (np.asarray(graph.at(node.inputs[k])[0], np.float64) for k in (i, 1 - i))
    return bool((np.isinf(ours) & (other == 0)).any()) if np.shape(ours) == np.shape(other) else False


def _is_mask(graph: Graph, ref: Ref) -> bool:
    """True for an array converted from booleans."""
    ref = origin(graph, ref)
    return graph.at(ref)[0].dtype == bool


def _sums_exps_of_nothing(s: Entry) -> bool:
    """True for the log of a sum of exponentials of −∞."""
    total = producer(s.graph, s.node.inputs[0])
    if total is not None and total.operation == "abs":  # in jax.nn.logsumexp
        total = producer(s.graph, total.inputs[0])
    powers = producer(s.graph, total.inputs[0]) if total is not None and total.operation == "reduce_sum" else None
    return (
        powers is not None
        and powers.operation == "exp"
        and bool(np.isneginf(np.asarray(s.graph.at(powers.inputs[0])[0], np.float64)).any())
    )


# ---------------------------------------------------------------- exponentials


def exponential(s: Entry) -> str:
    """The cause of an overflowing exp, by the formula around it; EXP outside known formulas."""
    kind = s.node.operation
    kept = {"add", "sub", "reduce_sum"}
    found = [(user, set(path) & kept) for user, _, path in descendants(s.graph, s.node, kept | {"neg"})]
    if kind == "cosh" and _reaches(found, "log", set()):
        return causes.LOG_COSH
    if kind == "expm1" and _reaches(found, "log", set()):
        return causes.INVERSE_SOFTPLUS
    if kind != "exp":
        return causes.EXP
    if (
        _reaches(found, "sub", set())
        and _reaches(found, "add", set())
        and any(user.operation == "div" for user, _ in found)
    ):
        return causes.TANH
    return next((name for name, operation, between in FORMULAS if _reaches(found, operation, between)), causes.EXP)


FORMULAS: tuple[tuple[str, str, set[str]], ...] = (  # cause, operation reached, operations between
    (causes.SOFTPLUS, "log1p", set()),
    (causes.INVERSE_SOFTPLUS, "log", {"sub"}),
    (causes.SOFTPLUS, "log", {"add"}),
    (causes.LOGSUMEXP, "log", {"reduce_sum"}),
    (causes.SOFTMAX, "div", {"reduce_sum"}),
    (causes.SIGMOID, "div", {"add"}),
)


def _reaches(found: list[tuple[Node, set[str]]], operation: str, between: set[str]) -> bool:
    return any(user.operation == operation and path == between for user, path in found)


# ---------------------------------------------------------------- cancellation


DIGITS_LOST = 64  # a difference below this multiple of its terms' spacing is rounding error


def difference(graph: Graph, ref: Ref, left: float | None = None) -> Node | None:
    """The subtraction whose rounding error an array consists of in at least one entry; None if there is none.

    `left` is the entry concerned; by default the smallest in magnitude.
    """
    entries = np.asarray(graph.at(ref)[0], np.float64)
    smallest = float(np.nanmin(abs(entries))) if entries.size and np.isfinite(entries).any() else np.inf
    smallest = smallest if left is None else abs(left)
    for node in ancestors(graph, ref, {"add", "sub", "mul", "div", "max", "neg", "abs"}):
        if node.operation in ("add", "sub"):
            lost = rounding(graph, node)
            cancelled = abs(np.asarray(node.values[0], np.float64)) <= lost
            if cancelled.any() and smallest <= float(lost[cancelled].max()):
                return node
    return None


def rounding(graph: Graph, node: Node) -> Any:
    """The rounding error of a sum or difference; −1 where the terms are 0 or not finite."""
    x, y = (abs(np.asarray(graph.at(ref)[0], np.float64)) for ref in node.inputs)
    eps = float(jnp.finfo(node.values[0].dtype).eps)
    size = np.broadcast_to(np.maximum(x, y), np.shape(node.values[0]))
    return np.where(np.isfinite(size) & (size > 0), DIGITS_LOST * eps * size, -1.0)
