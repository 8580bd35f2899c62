"""Where a gradient that is not finite came from: downstream to the operation that passed it back of finite numbers.

Where nothing asked for that operation's result (δ = 0), the operation that threw it away is named as well, and the one
that made the numbers of which 0 times a slope is NaN.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxnn.graph.causes as causes
import jaxnn.graph.loops as loops
from jaxnn.graph.backward_causes import DECOMPOSITIONS, TIMES_ZERO, backward_cause, slope, steep
from jaxnn.graph.causes import cause
from jaxnn.graph.explain_values import bad_step, explain_arrays, explain_value
from jaxnn.graph.explanation import BACKWARD, Explanation, explanation, line_of, named, numbers, within
from jaxnn.graph.graph import Graph
from jaxnn.graph.hiding import Hidden, hidden, reached
from jaxnn.graph.nodes import CUSTOM, Node, Ref
from jaxnn.graph.spots import entrywise, first, holds, nonfinite, spot, users_of
from jaxnn.graph.values import number
from jaxnn.jaxprs import is_float


def explain_gradient(graph: Graph) -> Explanation | None:
    """The origin of what is not finite in the gradients of a graph's inputs."""
    ends = [Ref(-1 - k) for k, leaf in enumerate(graph.leaves) if leaf.kind == "input" and holds(leaf.gradient)]
    if not ends:
        return None
    users = users_of(graph)
    todo, seen = list(ends), set[Ref]()
    edges, sums, seeds = set[tuple[int, int]](), list[Ref](), list[Ref]()
    while todo:
        ref = todo.pop()
        if ref in seen:
            continue
        seen.add(ref)
        passing = [(node, i) for node, i in users.get(ref, []) if node.passed and holds(node.passed[i])]
        if not passing:
            (seeds if ref in graph.outputs and _seed_is_bad(graph, ref) else sums).append(ref)
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
    if found.hidden:  # all on one line are one trap
        others = [node for node in others if node.source != found.source]
    return found._replace(others=tuple(map(named, others)))


def _seed_is_bad(graph: Graph, ref: Ref) -> bool:
    return any(holds(c) for r, c in zip(graph.outputs, graph.cotangents, strict=True) if r == ref)


def _without_edge(graph: Graph, sums: list[Ref], seeds: list[Ref]) -> Explanation:
    """No operation passed it: the cotangent was not finite, or finite parts overflow as they are added."""
    ref = (seeds or sums)[0]
    node = graph.nodes[ref.node] if ref.leaf is None else Node(0, "", (), ())
    gradient = graph.at(ref)[1]
    element = first(nonfinite(gradient))
    if seeds:
        why = cause(causes.COTANGENT, f"it holds {number(np.asarray(gradient)[element])}")
    else:
        dtype = jnp.dtype(gradient.dtype)
        half = dtype.itemsize == 2
        why = cause(causes.HALF if half else causes.OVERFLOW, f"the sum of what is passed back overflows {dtype.name}")
    return explanation(BACKWARD, node, why, element)


def _passed(graph: Graph, node_id: int, edge: int) -> Explanation:
    """The explanation of an operation that passes back what is not finite though its own gradient is."""
    node = graph.nodes[node_id]
    if node.inner is not None and node.rule != CUSTOM:
        step, word = _bad_step_back(graph, node)
        inner = node.inner(step)
        found = explain_gradient(inner) if inner.gradients else None
        if found is not None:
            found = within(found, node, word)
            return _hidden_outside(graph, node, step, found)
    element = steep(graph, node, edge) if node.rule != CUSTOM else None
    trap = _trap(graph, node, element) if node.operation not in OWN_RULES else None
    if trap is not None:
        return trap
    found = _inside_rule(node) or _from_infinity(graph, node, element)
    if found is not None:
        return found
    why = backward_cause(graph, node, edge, element)
    if why.name == causes.UNKNOWN and node.operation in OWN_RULES:
        why = cause(OWN_RULES[node.operation], why.detail)
    shown = "" if element is None else numbers(spot(graph, node, 0, element))
    return explanation(BACKWARD, node, why, element, shown)


def _bad_step_back(graph: Graph, node: Node) -> tuple[int, str]:
    """The first iteration in the backward order that passes back what is not finite."""
    if node.operation != "scan":
        return bad_step(graph, node)
    t = loops.bad_step_back(node, [graph.at(ref)[0] for ref in node.inputs])
    return t, f"scan step {t}"


OWN_RULES = {  # functions of JAX with a rule of their own, and what to write in their place
    **dict.fromkeys(("xlogy", "_xlogx", "entr", "xlog1py", "kl_div", "rel_entr"), causes.X_LOG_X),
    **dict.fromkeys(("logaddexp", "logaddexp2", "softmax", "_softmax", "cumlogsumexp"), causes.ALL_MASKED),
    **dict.fromkeys(("hypot", "_hypot"), causes.NORM),
}


def _inside_rule(node: Node) -> Explanation | None:
    """What made it inside an operation's own backward rule, which is a function of its inputs and δ."""
    if node.pull is None or node.operation in DECOMPOSITIONS:
        return None
    found = explain_value(node.pull())
    if found is None:
        return None
    why = cause(OWN_RULES.get(node.operation, found.cause), f"in the backward rule of {node.operation}: {found.detail}")
    found = within(found, node, "")._replace(direction=BACKWARD, source=node.source, line=line_of(node))
    return found._replace(operation=node.operation, cause=why.name, detail=why.detail, rewrite=why.rewrite)


# ---------------------------------------------------------------- what nothing asked for


def _trap(graph: Graph, node: Node, element: tuple[int, ...] | None) -> Explanation | None:
    """An operation whose result was thrown away, and what is not finite about it; None where it counts."""
    masks = _entries(graph, node, element)
    if masks is None or any(_counts(g, m) for g, m in zip(node.gradients, masks, strict=True)):
        return None
    for k, mask in enumerate(masks):
        by = hidden(graph, Ref(node.id, k), mask)
        if by is not None:
            return _thrown_away(graph, node, element, by)
    return None


def _entries(graph: Graph, node: Node, element: tuple[int, ...] | None) -> list[Any] | None:
    """The entries of an operation's outputs that are concerned."""
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


def _counts(gradient: Any, mask: Any) -> bool:
    return gradient is not None and bool(((np.asarray(gradient) != 0) & mask).any())


def _thrown_away(graph: Graph, node: Node, element: tuple[int, ...] | None, by: Hidden) -> Explanation | None:
    """The explanation of an operation whose result an other operation threw away."""
    if not by.cause:  # it counts, with a slope of 0
        return None
    bad = [ref for ref in node.inputs if holds(graph.at(ref)[0]) and _bad_at(graph, node, ref, element)]
    made = explain_arrays(graph, bad) if bad else None
    if made is not None and made.operation:
        what, after = made.detail, f"{node.operation} at {node.source} passes back 0·∞ or 0·NaN"
        found = made._replace(direction=BACKWARD, then=after if made.source != node.source else "")
    elif made is not None:
        what = f"{made.detail}, which goes into {node.operation}"
        found = explanation(BACKWARD, node, cause(by.cause, ""), element, _told(graph, node, element))
    else:
        s = None if element is None else spot(graph, node, 0, element)
        what = slope(s)[1] if s is not None else f"{node.operation} gives what is not finite"
        found = explanation(BACKWARD, node, cause(by.cause, ""), element, _told(graph, node, element))
    why = cause(by.cause, _unused(what))
    return found._replace(cause=why.name, detail=why.detail, rewrite=why.rewrite, hidden=by.words)


def _unused(what: str) -> str:
    word = "0·NaN" if "NaN" in what or "nan" in what else "0·∞"
    return f"{what}; its result is not used (δ = 0), and {word} is NaN"


def _from_infinity(graph: Graph, node: Node, element: tuple[int, ...] | None) -> Explanation | None:
    """An operation upstream that made an infinity of which a finite number is made."""
    if element is None or spot(graph, node, 0, element).delta != 0:
        return None
    bad = [ref for ref in node.inputs if holds(graph.at(ref)[0]) and _bad_at(graph, node, ref, element)]
    made = explain_arrays(graph, bad) if bad else None
    if made is None or not made.operation:
        return None
    then = f"{node.operation} at {node.source} passes back 0·∞" if node.source != made.source else ""
    return made._replace(direction=BACKWARD, detail=f"{made.detail}{TIMES_ZERO}", then=then)


def _told(graph: Graph, node: Node, element: tuple[int, ...] | None) -> str:
    return "" if element is None else numbers(spot(graph, node, 0, element))


def _bad_at(graph: Graph, node: Node, ref: Ref, element: tuple[int, ...] | None) -> bool:
    if element is None:
        return True
    s = spot(graph, node, 0, element)
    x = s.x[node.inputs.index(ref)]
    return x is not None and not np.isfinite(x)


def _hidden_outside(graph: Graph, node: Node, step: int, found: Explanation) -> Explanation:
    """What was found inside a loop or a branch, with what threw its result away outside, if that is the reason."""
    if found.hidden or "δ = 0" not in found.numbers:
        return found
    for k, value in enumerate(node.values):
        mask = np.zeros(np.shape(value), bool)
        mask[loops.entries_made(node, k, step)] = True
        if not is_float(value) or _counts(node.gradients[k], mask):
            return found
    for k, value in enumerate(node.values):
        mask = np.zeros(np.shape(value), bool)
        mask[loops.entries_made(node, k, step)] = True
        by = hidden(graph, Ref(node.id, k), mask)
        if by is not None and by.cause:
            why = cause(by.cause, _unused(found.detail.removesuffix(TIMES_ZERO)))
            return found._replace(cause=why.name, detail=why.detail, rewrite=why.rewrite, hidden=by.words)
    return found
