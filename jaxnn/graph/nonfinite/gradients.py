"""The origin of a non-finite gradient: downstream, the operation that passed it back although its own was finite.

If the result of that operation is not used (δ = 0), the operation that discards it is named as well, and so is the one
that produced the infinite factor of 0·∞.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxnn.graph.loops as loops
import jaxnn.graph.nonfinite.causes as causes
from jaxnn.graph.nodes import CUSTOM, Graph, Node, Ref
from jaxnn.graph.nonfinite.backward import DECOMPOSITIONS, TIMES_ZERO, backward_cause, infinite_slope, slope
from jaxnn.graph.nonfinite.causes import cause
from jaxnn.graph.nonfinite.discarded import Discard, discarded_by, reached
from jaxnn.graph.nonfinite.entries import entry, entrywise, first, holds, nonfinite, users_of
from jaxnn.graph.nonfinite.explanation import (
    BACKWARD,
    Explanation,
    explanation,
    line_of,
    named,
    numbers,
    with_cause,
    within,
)
from jaxnn.graph.nonfinite.values import bad_step, explain_arrays, explain_value
from jaxnn.graph.summaries import number
from jaxnn.jaxprs import is_float


def explain_gradient(graph: Graph) -> Explanation | None:
    """The origin of NaN or infinity in the gradients of a graph's inputs."""
    ends = [Ref(-1 - k) for k, leaf in enumerate(graph.leaves) if leaf.kind == "input" and holds(leaf.gradient)]
    if not ends:
        return None
    users = users_of(graph)
    bad_seeds = {ref for ref, c in zip(graph.outputs, graph.cotangents, strict=True) if holds(c)}
    todo, seen = list(ends), set[Ref]()
    edges, sums, seeds = set[tuple[int, int]](), list[Ref](), list[Ref]()
    while todo:
        ref = todo.pop()
        if ref in seen:
            continue
        seen.add(ref)
        passing = [(node, i) for node, i in users.get(ref, []) if node.passed and holds(node.passed[i])]
        if not passing:
            (seeds if ref in bad_seeds else sums).append(ref)
        for node, i in passing:
            later = [Ref(node.id, k) for k, g in enumerate(node.gradients) if holds(g)]
            todo += later
            if not later:
                edges.add((node.id, i))
    if not edges:
        return _without_edge(graph, sums, seeds)
    ordered = sorted(edges, key=lambda edge: (-edge[0], edge[1]))
    found = _passed(graph, *ordered[0])
    others = [graph.nodes[i] for i in dict.fromkeys(i for i, _ in ordered if i != ordered[0][0])]
    if found.hidden:  # all on one line have one cause
        others = [node for node in others if node.source != found.source]
    return found._replace(others=tuple(map(named, others)))


def _without_edge(graph: Graph, sums: list[Ref], seeds: list[Ref]) -> Explanation:
    """No operation passed it back: the cotangent was not finite, or finite terms overflow when added."""
    ref = (seeds or sums)[0]
    node = graph.nodes[ref.node] if ref.leaf is None else Node(0, "", (), ())
    gradient = graph.at(ref)[1]
    element = first(nonfinite(gradient))
    if seeds:
        why = cause(causes.COTANGENT, f"it contains {number(np.asarray(gradient)[element])}")
    else:
        dtype = jnp.dtype(gradient.dtype)
        half = dtype.itemsize == 2
        why = cause(causes.HALF if half else causes.OVERFLOW, f"the sum of gradients overflows {dtype.name}")
    return explanation(BACKWARD, node, why, element)


def _passed(graph: Graph, node_id: int, edge: int) -> Explanation:
    """The explanation of an operation that passes back NaN or infinity although its own gradient is finite."""
    node = graph.nodes[node_id]
    if node.inner is not None and node.rule != CUSTOM:
        step, word = _bad_step_back(graph, node)
        inner = node.inner(step)
        found = explain_gradient(inner) if inner.gradients else None
        if found is not None:
            found = within(found, node, word)
            return _hidden_outside(graph, node, step, found)
    element = infinite_slope(graph, node, edge) if node.rule != CUSTOM else None
    trap = _unused_result(graph, node, element) if node.operation not in RULES_OF_JAX else None
    if trap is not None:
        return trap
    found = _inside_rule(node) or _from_infinity(graph, node, element)
    if found is not None:
        return found
    why = backward_cause(graph, node, edge, element)
    if why.name == causes.UNKNOWN and node.operation in RULES_OF_JAX:
        why = cause(RULES_OF_JAX[node.operation], why.detail)
    shown = "" if element is None else numbers(entry(graph, node, 0, element))
    return explanation(BACKWARD, node, why, element, shown)


def _bad_step_back(graph: Graph, node: Node) -> tuple[int, str]:
    """The first iteration, in backward order, that passes back NaN or infinity."""
    if node.operation != "scan":
        return bad_step(graph, node)
    t = loops.bad_step_back(node, [graph.at(ref)[0] for ref in node.inputs])
    return t, f"scan step {t}"


RULES_OF_JAX = {  # functions of JAX with custom rules, and the cause of their NaN
    **dict.fromkeys(("xlogy", "_xlogx", "entr", "xlog1py", "kl_div", "rel_entr"), causes.X_LOG_X),
    **dict.fromkeys(("logaddexp", "logaddexp2", "softmax", "_softmax", "cumlogsumexp"), causes.ALL_MASKED),
    **dict.fromkeys(("hypot", "_hypot"), causes.NORM),
}


def _inside_rule(node: Node) -> Explanation | None:
    """The origin inside an operation's backward rule, which is a function of its inputs and δ."""
    if node.pull is None or node.operation in DECOMPOSITIONS:
        return None
    found = explain_value(node.pull())
    if found is None:
        return None
    detail = f"in the backward rule of {node.operation}: {found.detail}"
    found = with_cause(within(found, node, ""), RULES_OF_JAX.get(node.operation, found.cause), detail)
    return found._replace(direction=BACKWARD, source=node.source, line=line_of(node), operation=node.operation)


def _unused_result(graph: Graph, node: Node, element: tuple[int, ...] | None) -> Explanation | None:
    """The explanation of an operation whose result is discarded; None if the result is used."""
    masks = _entries(graph, node, element)
    if masks is None or any(map(_is_used, node.gradients, masks)):
        return None
    for k, mask in enumerate(masks):
        by = discarded_by(graph, Ref(node.id, k), mask)
        if by is not None:
            return _discarded(graph, node, element, by)
    return None


def _entries(graph: Graph, node: Node, element: tuple[int, ...] | None) -> list[Any] | None:
    """Masks of the affected entries of an operation's outputs."""
    if element is not None:
        mask = np.zeros(np.shape(node.values[0]), bool)
        mask[element] = True
        return [mask]
    if not entrywise(graph, node) or node.rule == CUSTOM:
        bad = [i for i, ref in enumerate(node.inputs) if holds(graph.at(ref)[0])]
        made = [reached(graph, node, i, nonfinite(graph.at(node.inputs[i])[0])) for i in bad]
        if made:
            return [np.any([part[k] for part in made], axis=0) for k in range(len(node.values))]
    values = [nonfinite(value) if is_float(value) else np.zeros(np.shape(value), bool) for value in node.values]
    return values if any(mask.any() for mask in values) else None


def _is_used(gradient: Any, mask: Any) -> bool:
    return gradient is not None and bool(((np.asarray(gradient) != 0) & mask).any())


def _discarded(graph: Graph, node: Node, element: tuple[int, ...] | None, by: Discard) -> Explanation | None:
    """The explanation of an operation whose result another operation discards."""
    if not by.cause:  # the result is used, with slope 0
        return None
    bad = [ref for ref in node.inputs if holds(graph.at(ref)[0]) and _bad_at(graph, node, ref, element)]
    made = explain_arrays(graph, bad) if bad else None
    if made is not None and made.operation:
        what, after = made.detail, f"{node.operation} at {node.source} passes back 0·∞ or 0·NaN"
        found = made._replace(direction=BACKWARD, then=after if made.source != node.source else "")
    elif made is not None:
        what = f"{made.detail}, an input of {node.operation}"
        found = explanation(BACKWARD, node, cause(by.cause, ""), element, _numbers_at(graph, node, element))
    else:
        s = None if element is None else entry(graph, node, 0, element)
        what = slope(s)[1] if s is not None else f"{node.operation} returns NaN or infinity"
        found = explanation(BACKWARD, node, cause(by.cause, ""), element, _numbers_at(graph, node, element))
    return with_cause(found, by.cause, _unused(what), hidden=by.words)


def _unused(what: str) -> str:
    word = "0·NaN" if "NaN" in what or "nan" in what else "0·∞"
    return f"{what}; its result is not used (δ = 0), and {word} is NaN"


def _from_infinity(graph: Graph, node: Node, element: tuple[int, ...] | None) -> Explanation | None:
    """The operation upstream that produced an infinity which is later turned into a finite number."""
    if element is None or entry(graph, node, 0, element).delta != 0:
        return None
    bad = [ref for ref in node.inputs if holds(graph.at(ref)[0]) and _bad_at(graph, node, ref, element)]
    made = explain_arrays(graph, bad) if bad else None
    if made is None or not made.operation:
        return None
    then = f"{node.operation} at {node.source} passes back 0·∞" if node.source != made.source else ""
    return made._replace(direction=BACKWARD, detail=f"{made.detail}{TIMES_ZERO}", then=then)


def _numbers_at(graph: Graph, node: Node, element: tuple[int, ...] | None) -> str:
    return "" if element is None else numbers(entry(graph, node, 0, element))


def _bad_at(graph: Graph, node: Node, ref: Ref, element: tuple[int, ...] | None) -> bool:
    if element is None:
        return True
    s = entry(graph, node, 0, element)
    x = s.x[node.inputs.index(ref)]
    return x is not None and not np.isfinite(x)


def _hidden_outside(graph: Graph, node: Node, step: int, found: Explanation) -> Explanation:
    """An explanation from inside a loop or a branch, with the operation outside that discards the result, if any."""
    if found.hidden or "δ = 0" not in found.numbers:
        return found
    masks = [np.zeros(np.shape(value), bool) for value in node.values]
    for k, mask in enumerate(masks):
        mask[loops.entries_made(node, k, step)] = True
    if not all(map(is_float, node.values)) or any(map(_is_used, node.gradients, masks)):
        return found
    by = (discarded_by(graph, Ref(node.id, k), mask) for k, mask in enumerate(masks))
    first_by = next((discard for discard in by if discard is not None and discard.cause), None)
    if first_by is None:
        return found
    return with_cause(found, first_by.cause, _unused(found.detail.removesuffix(TIMES_ZERO)), hidden=first_by.words)
