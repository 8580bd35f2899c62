"""`explain_nonfinite`: where a NaN or an infinity came from, and why.

A value that is not finite is followed upstream, from the output to the operations that made it of finite numbers; a
gradient likewise, from the input to the operation that passed it back though its own was finite. What is infinite on
the way and does no harm (a mask of −∞, a branch that was not chosen) is on no such path, and raises no alarm.
"""

from __future__ import annotations

import itertools
import linecache
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn.graph.causes as causes
import jaxnn.graph.loops as loops
from jaxnn.graph.causes import Cause, cause
from jaxnn.graph.graph import Graph
from jaxnn.graph.nodes import CUSTOM, Node, Ref, check_function
from jaxnn.graph.trace import trace
from jaxnn.graph.values import number
from jaxnn.jaxprs import Scan, While, is_float
from jaxnn.showing import shown
from jaxnn.types import Tree

FORWARD, BACKWARD = "forward", "backward"
Bad = Callable[[Any], Any]  # which entries of an array


@shown(lambda found: f"<explanation: {_text(found).splitlines()[0]}>")
class Explanation(NamedTuple):
    """What made a value or a gradient that is not finite; `print` it.

    Attributes:
        finite: True if the value and every gradient are finite; all that follows is empty then.
        name: of the function.
        direction: "forward" for a value, "backward" for a gradient.
        reached: what is not finite in the end: "the value", "the gradient of x".
        cause: by name, "the where trap".
        detail: what happened, with the numbers.
        rewrite: what mends it.
        operation: that made it, "sqrt"; "" where it came in.
        source: the user's line, `file:line (function)`, or "".
        line: its text, or "".
        steps: the iterations and branches that it stands in, outermost first: ("scan step 17",).
        group: names of the scopes around it, outermost first.
        element: the index of the first entry concerned, or None.
        numbers: what the operation was given and gave at that element, "x = 0, z = 0, δ = 0".
        then: what became of it afterwards, where that is another operation: "∞/∞ in div at file:line (function)".
        others: more origins of the same kind, each an operation and its line.
        unknown: why nothing is said of gradients, "f has no float inputs"; "" where they were looked at.
    """

    finite: bool
    name: str
    direction: str = ""
    reached: tuple[str, ...] = ()
    cause: str = ""
    detail: str = ""
    rewrite: str = ""
    operation: str = ""
    source: str = ""
    line: str = ""
    steps: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    element: tuple[int, ...] | None = None
    numbers: str = ""
    then: str = ""
    others: tuple[str, ...] = ()
    unknown: str = ""

    def __str__(self) -> str:
        return _text(self)


def explain_nonfinite(f: Callable[..., Tree], *, cotangent: Tree = None) -> Callable[..., Explanation]:
    """Where does this NaN, or infinity, come from, and why?

    Named is the first operation in the forward order whose value is not finite while what came into it was and
    which reaches the result; or, where the value is finite, the first in the backward order that passes back what is
    not finite while its own gradient is. A finite function gets a clean bill, whatever it holds on the way.

    Args:
        f: a pure function of pytrees of arrays.
        cotangent: like f's output, the gradient to begin with; by default 1 for every float.

    Returns:
        A function of f's arguments that gives an Explanation. Loops and functions with rules of their own are opened,
        and the step of a `scan` is named. What JAX cannot differentiate (a while loop) is explained forward only.

    Raises:
        TypeError: if an argument is no array.

    >>> import jax.numpy as jnp
    >>> why = explain_nonfinite(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0).sum())(jnp.zeros(2))
    >>> why.direction, why.cause, why.operation
    ('backward', 'the where trap', 'sqrt')
    """
    check_function("graph.explain_nonfinite", f)

    def explained(*args: Tree) -> Explanation:
        graph = trace(f, backward=False)(*args)
        found, unknown = _forward(graph), ""
        reached: tuple[str, ...] = ("the value",)
        if found is None:
            graph, unknown = _with_gradients(f, cotangent, graph, args)
            found = _backward(graph)
            reached = tuple(f"the gradient of {leaf.name}" for leaf in graph.leaves if _bad_gradient(leaf.gradient))
        if found is None:
            return Explanation(True, graph.name, unknown=unknown)
        return found._replace(name=graph.name, reached=reached)

    return explained


def _with_gradients(f: Callable[..., Tree], cotangent: Tree, graph: Graph, args: tuple[Tree, ...]) -> tuple[Graph, str]:
    """The graph with gradients; or without, and why."""
    if not any(leaf.kind == "input" and is_float(leaf.value) for leaf in graph.leaves):
        return graph, f"{graph.name} is given no floats"
    if not any(map(is_float, jax.tree.leaves(graph.value))):
        return graph, f"{graph.name} gives no floats"
    if cotangent is None:
        cotangent = jax.tree.map(jnp.ones_like, graph.value)
    try:
        return trace(f, cotangent=cotangent)(*args), ""
    except ValueError as error:
        if "cannot be differentiated" not in str(error):
            raise
        return graph, str(error).removeprefix("graph: ")


# ---------------------------------------------------------------- which entries


def _nonfinite(value: Any) -> Any:
    return ~np.isfinite(np.asarray(value))


def _nan(value: Any) -> Any:
    return np.isnan(np.asarray(value))


def _holds(value: Any, bad: Bad) -> bool:
    return bool(is_float(value) and bad(value).any())


def _bad_gradient(gradient: Any) -> bool:
    return gradient is not None and _holds(gradient, _nonfinite)


# ---------------------------------------------------------------- forward


def _forward(graph: Graph) -> Explanation | None:
    """The origin of what is not finite in a graph's outputs."""
    ends = [ref for ref in graph.outputs if _holds(graph.at(ref)[0], _nonfinite)]
    if not ends:
        return None
    nodes, leaves = _origins(graph, ends)
    if not nodes:
        return _came_in(graph, leaves[0])
    first, *more = (graph.nodes[i] for i in nodes)
    found = _opened(graph, first) or _at(graph, first)
    then = next((node for node in more if _bad_inputs(graph, node)), None)  # ∞ from elsewhere, made NaN here
    if then is not None:
        word = _at(graph, then).cause
        found = found._replace(then=f"{word} in {_named(then)}")
        if word == causes.ZERO_TIMES_INFINITY:  # perhaps a mask, which hides nothing
            found = found._replace(rewrite=f"{found.rewrite}; if 0 is a mask: {causes.REWRITES[causes.MASKED]}")
    return found._replace(others=tuple(_named(node) for node in more if node is not then))


def _named(node: Node) -> str:
    return f"{node.operation} at {node.source}" if node.source else node.operation


def _origins(graph: Graph, ends: Sequence[Ref]) -> tuple[list[int], list[Ref]]:
    """Upstream of what is not finite: the operations that made it, in forward order, and the leaves that held it."""
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
        if not before or _made(graph, node).any():
            nodes.add(node.id)
    kinds = {"input": 0, "constant": 1, "number": 2}
    return sorted(nodes), sorted(leaves, key=lambda ref: kinds[graph.leaves[-1 - ref.node].kind])


def _bad_inputs(graph: Graph, node: Node) -> list[Ref]:
    """The inputs that hold what is not finite; of an elementwise operation, where its output does too."""
    refs = [ref for ref in node.inputs if _holds(graph.at(ref)[0], _nonfinite)]
    shape = np.shape(node.values[0])
    if not refs or len(node.values) > 1 or not all(_fits(graph.at(ref)[0], shape) for ref in refs):
        return refs
    if node.operation == "select_n":
        return [ref for i, ref in enumerate(node.inputs[1:]) if ref in refs and _chosen(graph, node, i, ref).any()]
    wanted = _nonfinite(node.values[0])
    return [ref for ref in refs if (_spread(_nonfinite(graph.at(ref)[0]), shape) & wanted).any()]


def _made(graph: Graph, node: Node) -> Any:
    """Where an operation makes NaN of what holds none, or what is not finite of what is."""
    inputs = [graph.at(ref)[0] for ref in node.inputs if is_float(graph.at(ref)[0])]
    value = node.values[0]
    if len(node.values) > 1:
        return np.asarray(_worse(inputs, list(node.values)))
    if node.operation == "select_n" or not is_float(value):
        return np.zeros(0, bool)
    shape = np.shape(value)
    if all(_fits(x, shape) for x in inputs):
        nan = sum((_spread(_nan(x), shape) for x in inputs), np.zeros(shape, bool))
        bad = sum((_spread(_nonfinite(x), shape) for x in inputs), np.zeros(shape, bool))
        return np.asarray((_nan(value) & ~nan) | (_nonfinite(value) & ~bad))
    return np.asarray(_nan(value).any() and not any(_nan(x).any() for x in inputs))


def _chosen(graph: Graph, node: Node, case: int, ref: Ref) -> Any:
    which = np.asarray(graph.at(node.inputs[0])[0]).astype(int)
    return _nonfinite(graph.at(ref)[0]) & (which == case)


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    """True for what an operation may have taken entry by entry: of its output's shape, or repeated along axes."""
    ours = np.shape(value)
    return ours == () or (len(ours) == len(shape) and all(n in (1, m) for n, m in zip(ours, shape, strict=True)))


def _spread(mask: Any, shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(mask, shape)


def _first(mask: Any) -> tuple[int, ...]:
    return tuple(map(int, np.argwhere(mask)[0]))


def _at(graph: Graph, node: Node) -> Explanation:
    """The explanation of an operation that made what is not finite."""
    output = next(k for k, value in enumerate(node.values) if _holds(value, _nonfinite))
    made = _made(graph, node)
    mask = made if made.shape == np.shape(node.values[output]) and made.any() else _nonfinite(node.values[output])
    element = _first(mask)
    s = causes.spot(graph, node, output, element)
    return _explanation(FORWARD, node, causes.forward_cause(s), element, _numbers(s))


def _explanation(
    direction: str, node: Node, why: Cause, element: tuple[int, ...] | None, numbers: str = ""
) -> Explanation:
    return Explanation(
        False, "", direction, (), *why, node.operation, node.source, _line(node), (), node.group, element, numbers
    )


def _line(node: Node) -> str:
    return linecache.getline(node.file, node.line).strip() if node.file else ""


def _numbers(s: causes.Spot) -> str:
    letters = "xyabcd" if len(s.x) > 1 else "x"
    shown = [f"{letter} = {number(x)}" for letter, x in zip(letters, s.x, strict=False) if x is not None]
    shown += [f"z = {number(s.z)}"] + ([] if s.delta is None else [f"δ = {number(s.delta)}"])
    return ", ".join(shown)


def _came_in(graph: Graph, ref: Ref) -> Explanation:
    """What was not finite to begin with."""
    leaf = graph.leaves[-1 - ref.node]
    element = _first(_nonfinite(leaf.value))
    count = int(_nonfinite(leaf.value).sum())
    shown = number(np.asarray(leaf.value)[element])
    what = leaf.name if leaf.kind != "number" else f"{leaf.name} in the code"
    many = f"{count} of {np.size(leaf.value)} entries, first " if np.shape(leaf.value) else ""
    why = cause(causes.GIVEN if leaf.kind == "input" else causes.WRITTEN, f"{what} holds {many}{shown}")
    users = [node for node in graph.nodes if ref in node.inputs]
    user = users[0] if users else Node(0, "", (), ())
    return _explanation(FORWARD, user._replace(operation=""), why, element)


# ---------------------------------------------------------------- into loops, branches and rules


def _opened(graph: Graph, node: Node) -> Explanation | None:
    """The origin inside an operation that can be opened; None where it cannot, or nothing is found inside."""
    if node.inner is None:
        return None
    step, word = _bad_step(graph, node)
    found = _forward(node.inner(step))
    return None if found is None else _within(found, node, word)


def _within(found: Explanation, node: Node, word: str) -> Explanation:
    """What was found inside of an operation, as seen from outside."""
    steps = (word, *found.steps) if word else found.steps
    source, line = found.source, found.line
    if not source:
        source, line = node.source, _line(node)
    return found._replace(steps=steps, source=source, line=line, group=(*node.group, *found.group))


def _bad_step(graph: Graph, node: Node) -> tuple[int, str]:
    """The first iteration that makes what is not finite, and its name."""
    inputs, params = [graph.at(ref)[0] for ref in node.inputs], dict(node.params)
    if node.operation == "scan":
        for t, given, made in _scanned(node, params, inputs):
            if _worse(given, made):
                return t, f"scan step {t}"
    if node.operation == "while":
        carried = loops.repetitions(While.of(params), inputs)
        for t, (given, made) in enumerate(itertools.pairwise(carried)):
            if _worse(given, made):
                return t, f"while step {t}"
    if node.operation == "cond":
        return 0, f"branch {int(inputs[0])}"
    return 0, ""


def _scanned(node: Node, params: dict[str, Any], inputs: list[Any]) -> Iterator[tuple[int, list[Any], list[Any]]]:
    """Each iteration of a scan in the order in which it runs: its number, what it was given, what it made."""
    scan = Scan.of(params)
    n, run, came, given = scan.carry, list(scan.order), loops.carries(scan, inputs), scan.parts(inputs)
    for now, after in itertools.zip_longest(run, run[1:]):
        made = [node.values[k] if after is None else came[k][after] for k in range(n)]
        yield (
            now,
            [*given.consts, *(c[now] for c in came), *(x[now] for x in given.xs)],
            [*made, *(ys[now] for ys in node.values[n:])],
        )


def _worse(given: list[Any], made: list[Any]) -> bool:
    """Whether NaN was made of what holds none, or what is not finite of what is."""
    return any(
        any(_holds(x, bad) for x in made) and not any(_holds(x, bad) for x in given) for bad in (_nan, _nonfinite)
    )


# ---------------------------------------------------------------- backward


def _backward(graph: Graph) -> Explanation | None:
    """The origin of what is not finite in the gradients of a graph's inputs."""
    ends = [Ref(-1 - k) for k, leaf in enumerate(graph.leaves) if leaf.kind == "input" and _bad_gradient(leaf.gradient)]
    if not ends:
        return None
    users: dict[Ref, list[tuple[Node, int]]] = {}
    for node in graph.nodes:
        for i, ref in enumerate(node.inputs):
            users.setdefault(ref, []).append((node, i))
    todo, seen = list(ends), set[Ref]()
    edges, sums, seeds = set[tuple[int, int]](), list[Ref](), list[Ref]()
    while todo:
        ref = todo.pop()
        if ref in seen:
            continue
        seen.add(ref)
        passing = [(node, i) for node, i in users.get(ref, []) if node.passed and _bad_gradient(node.passed[i])]
        if not passing:
            (seeds if ref in graph.outputs and _seed_is_bad(graph, ref) else sums).append(ref)
        for node, i in passing:
            later = [Ref(node.id, k) for k, g in enumerate(node.gradients) if _bad_gradient(g)]
            todo += later
            if not later:
                edges.add((node.id, i))
    if not edges:
        return _without_edge(graph, sums, seeds)
    ordered = sorted(edges, reverse=True)
    found = _passed(graph, *ordered[0])
    others = dict.fromkeys(i for i, _ in ordered if i != ordered[0][0])
    return found._replace(others=tuple(_named(graph.nodes[i]) for i in others))


def _seed_is_bad(graph: Graph, ref: Ref) -> bool:
    return any(_bad_gradient(c) for r, c in zip(graph.outputs, graph.cotangents, strict=True) if r == ref)


def _without_edge(graph: Graph, sums: list[Ref], seeds: list[Ref]) -> Explanation:
    """No operation passed it: the cotangent was not finite, or finite parts overflow as they are added."""
    ref = (seeds or sums)[0]
    node = graph.nodes[ref.node] if ref.leaf is None else Node(0, "", (), ())
    gradient = graph.at(ref)[1]
    element = _first(_nonfinite(gradient))
    if seeds:
        why = cause(causes.COTANGENT, f"it holds {number(np.asarray(gradient)[element])}")
    else:
        dtype = jnp.dtype(gradient.dtype)
        half = dtype.itemsize == 2
        why = cause(causes.HALF if half else causes.OVERFLOW, f"the sum of what is passed back overflows {dtype.name}")
    return _explanation(BACKWARD, node, why, element)


def _passed(graph: Graph, node_id: int, edge: int) -> Explanation:
    """The explanation of an operation that passes back what is not finite though its own gradient is."""
    node = graph.nodes[node_id]
    if node.inner is not None and node.rule != CUSTOM:
        step, word = _bad_step_back(graph, node)
        inner = node.inner(step)
        found = _backward(inner) if inner.gradients else None
        if found is not None:
            return _within(found, node, word)
    element = causes.steep(graph, node)
    found = _inside_rule(node)
    if found is not None:
        return found
    why = causes.backward_cause(graph, node, edge, element)
    shown = "" if element is None else _numbers(causes.spot(graph, node, 0, element))
    return _explanation(BACKWARD, node, why, element, shown)


def _bad_step_back(graph: Graph, node: Node) -> tuple[int, str]:
    """The first iteration in the backward order that passes back what is not finite."""
    if node.operation != "scan":
        return _bad_step(graph, node)
    inputs, scan = [graph.at(ref)[0] for ref in node.inputs], Scan.of(node.params)
    finite = loops.back(scan, inputs, node.gradients, loops.carries(scan, inputs)).finite
    t = next((t for t in reversed(scan.order) if not finite[t]), scan.order[0])
    return t, f"scan step {t}"


def _inside_rule(node: Node) -> Explanation | None:
    """What made it inside of an operation's own backward rule, which is a function of its inputs and δ."""
    if node.pull is None or node.operation in causes.DECOMPOSITIONS:
        return None
    found = _forward(node.pull())
    if found is None:
        return None
    detail = f"in the backward rule of {node.operation}: {found.detail}"
    return _within(found, node, "")._replace(direction=BACKWARD, detail=detail, source=node.source, line=_line(node))


# ---------------------------------------------------------------- as text


def _text(e: Explanation) -> str:
    if e.finite and e.unknown:
        return f"{e.name}: its value is finite; its gradients were not looked at: {e.unknown}"
    if e.finite:
        return f"{e.name}: its value and its gradients are finite"
    lines = [f"{e.name}: {', '.join(e.reached) or 'it'} is not finite", f"  cause   {e.cause}: {e.detail}"]
    where = []
    if e.source:
        where.append(e.source)
    if e.line:
        where.append(e.line)
    place = [e.operation] * bool(e.operation) + [f"in {'/'.join(e.group)}"] * bool(e.group) + list(e.steps)
    if e.element:
        place.append(f"element {list(e.element)}")
    if e.numbers:
        place.append(e.numbers)
    if place:
        where.append(", ".join(place))
    lines += [f"  {'where' if i == 0 else '':8}{text}" for i, text in enumerate(where)]
    lines += [f"  then    {e.then}"] * bool(e.then)
    lines += [f"  mend    {e.rewrite}"]
    lines += [f"  {'also' if i == 0 else '':8}{text}" for i, text in enumerate(e.others)]
    return "\n".join(lines).replace(os.getcwd() + os.sep, "")
