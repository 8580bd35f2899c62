"""The origin of a non-finite value: upstream, the operations that produced it from finite numbers.

Harmless infinities (a mask of −∞, a branch that was not taken) are on no such path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxnn.graph.loops as loops
import jaxnn.graph.nonfinite.causes as causes
from jaxnn.graph.nodes import Graph, Node, Ref
from jaxnn.graph.nonfinite.causes import cause
from jaxnn.graph.nonfinite.entries import entry, first, fits, holds, in_words, nonfinite
from jaxnn.graph.nonfinite.explanation import FORWARD, Explanation, explanation, named, numbers, with_cause, within
from jaxnn.graph.nonfinite.forward import LIBRARY, forward_cause


def _nan(value: Any) -> Any:
    return np.isnan(np.asarray(value))


def explain_value(graph: Graph) -> Explanation | None:
    """The origin of NaN or infinity in a graph's outputs."""
    return explain_arrays(graph, [ref for ref in graph.outputs if holds(graph.at(ref)[0])])


def explain_arrays(graph: Graph, ends: Sequence[Ref]) -> Explanation | None:
    """The origin of NaN or infinity in some arrays of a graph."""
    if not ends:
        return None
    nodes, leaves = _origins(graph, ends)
    if not nodes:
        return _held_by_leaf(graph, leaves[0])
    start, *more = (graph.nodes[i] for i in nodes)
    found = _opened(graph, start) or _at(graph, start)
    then = next((node for node in more if _bad_inputs(graph, node)), None)  # ∞ from elsewhere, turned into NaN here
    if then is not None:
        word = _at(graph, then).cause
        found = found._replace(then=f"{word} in {named(then)}")
        if word == causes.ZERO_TIMES_INFINITY and found.cause in (causes.LOG, causes.BY_ZERO):  # perhaps a mask
            found = found._replace(rewrite=f"{found.rewrite}; if 0 is a mask: {causes.REWRITES[causes.MASKED]}")
    return found._replace(others=tuple(dict.fromkeys(named(node) for node in more if node is not then)))


def intended(graph: Graph) -> str:
    """The infinity in the outputs, if the code itself writes it and other entries are finite; or ""."""
    ends = [ref for ref in graph.outputs if holds(graph.at(ref)[0])]
    for ref in ends:
        value = np.asarray(graph.at(ref)[0], np.float64)
        if np.isnan(value).any() or not np.isfinite(value).any():
            return ""
    nodes, leaves = _origins(graph, ends)
    if nodes or not ends or any(graph.leaves[-1 - ref.node].kind == "input" for ref in leaves):
        return ""
    value = np.asarray(graph.at(ends[0])[0])
    return f"{in_words(float(value[nonfinite(value)][0]))} where the code writes it"


def _origins(graph: Graph, ends: Sequence[Ref]) -> tuple[list[int], list[Ref]]:
    """Upstream of non-finite arrays, the operations that made them so, in forward order, and the leaves that were."""
    todo, seen = list(ends), set[Ref]()
    nodes, leaves = set[int](), list[Ref]()
    while todo:
        ref = todo.pop()
        if ref in seen:
            continue
        seen.add(ref)
        if ref.leaf is not None:
            leaves.append(ref)
            continue
        node = graph.nodes[ref.node]
        before = _bad_inputs(graph, node)
        todo += before
        if not before or _created(graph, node).any():
            nodes.add(node.id)
    kinds = {"input": 0, "constant": 1, "number": 2}
    return sorted(nodes), sorted(leaves, key=lambda ref: kinds[graph.leaves[-1 - ref.node].kind])


def _bad_inputs(graph: Graph, node: Node) -> list[Ref]:
    """The non-finite inputs; of an elementwise operation, those that are so where its output is."""
    refs = [ref for ref in node.inputs if holds(graph.at(ref)[0], nonfinite)]
    shape = np.shape(node.values[0])
    if not refs or len(node.values) > 1 or not all(fits(graph.at(ref)[0], shape) for ref in refs):
        return refs
    if node.operation == "select_n":
        return [ref for i, ref in enumerate(node.inputs[1:]) if ref in refs and _chosen(graph, node, i, ref).any()]
    wanted = nonfinite(node.values[0])
    return [ref for ref in refs if (_broadcast(nonfinite(graph.at(ref)[0]), shape) & wanted).any()]


def _created(graph: Graph, node: Node) -> Any:
    """A mask of the entries where an operation makes NaN from inputs without any, or infinity from finite ones."""
    inputs = [graph.at(ref)[0] for ref in node.inputs if jnp.issubdtype(graph.at(ref)[0].dtype, jnp.inexact)]
    value = node.values[0]
    if len(node.values) > 1:
        return np.asarray(_creates(inputs, list(node.values)))
    if node.operation == "select_n" or not jnp.issubdtype(value.dtype, jnp.inexact):
        return np.zeros(0, bool)
    shape = np.shape(value)
    if all(fits(x, shape) for x in inputs):
        nan = sum((_broadcast(_nan(x), shape) for x in inputs), np.zeros(shape, bool))
        bad = sum((_broadcast(nonfinite(x), shape) for x in inputs), np.zeros(shape, bool))
        return np.asarray((_nan(value) & ~nan) | (nonfinite(value) & ~bad))
    return np.asarray(_nan(value).any() and not any(_nan(x).any() for x in inputs))


def _chosen(graph: Graph, node: Node, case: int, ref: Ref) -> Any:
    which = np.asarray(graph.at(node.inputs[0])[0]).astype(int)
    return nonfinite(graph.at(ref)[0]) & (which == case)


def _broadcast(mask: Any, shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(mask, shape)


def _at(graph: Graph, node: Node) -> Explanation:
    """The explanation of an operation that produced NaN or infinity."""
    output = next(k for k, value in enumerate(node.values) if holds(value, nonfinite))
    made = _created(graph, node)
    mask = made if made.shape == np.shape(node.values[output]) and made.any() else nonfinite(node.values[output])
    element = first(mask)
    s = entry(graph, node, output, element)
    return explanation(FORWARD, node, forward_cause(s), element, numbers(s))


def _held_by_leaf(graph: Graph, ref: Ref) -> Explanation:
    """The explanation of a leaf that is not finite."""
    leaf = graph.leaves[-1 - ref.node]
    element = first(nonfinite(leaf.value))
    count = int(nonfinite(leaf.value).sum())
    shown = in_words(np.asarray(leaf.value)[element])
    many = f"{count} of {np.size(leaf.value)} entries, first " if np.shape(leaf.value) else ""
    users = [node for node in graph.nodes if ref in node.inputs]
    user = users[0] if users else Node(0, "", (), ())
    name = causes.GIVEN if leaf.kind == "input" else causes.WRITTEN
    if name == causes.WRITTEN:  # the NaN of a variance that does not exist
        scopes = (scope.lstrip("_") for scope in user.group)
        name = next((LIBRARY[scope] for scope in scopes if scope in LIBRARY), name)
    what = f"{leaf.name} contains {many}{shown}" if leaf.kind != "number" else f"the code has {shown} here"
    if name == causes.ONE_ENTRY:
        what = "n − ddof is 0 or negative: there is nothing to divide by, and var returns NaN"
    why = cause(name, what)
    return explanation(FORWARD, user._replace(operation=""), why, element)


def _opened(graph: Graph, node: Node) -> Explanation | None:
    """The origin inside an operation; None if it cannot be opened or nothing is found inside."""
    if node.inner is None:
        return None
    step, word = bad_step(graph, node)
    found = explain_value(node.inner(step))
    if found is None:
        return None
    name = node.operation.lstrip("_").split("_")[0]  # _slogdet_small, _slogdet_lu
    if name in LIBRARY:
        found = with_cause(found, LIBRARY[name], found.detail)
    return within(found, node, word)


def bad_step(graph: Graph, node: Node) -> tuple[int, str]:
    """The first iteration that produces NaN or infinity, and its name."""
    inputs = [graph.at(ref)[0] for ref in node.inputs]
    for t, given, made in loops.iterations(node, inputs):
        if _creates(given, made):
            return t, f"{node.operation} step {t}"
    if node.operation == "cond":
        return 0, f"branch {int(inputs[0])}"
    return 0, ""


def _creates(given: list[Any], made: list[Any]) -> bool:
    """Whether outputs contain NaN while inputs do not, or are non-finite while inputs are finite."""
    return any(any(holds(x, bad) for x in made) and not any(holds(x, bad) for x in given) for bad in (_nan, nonfinite))
