"""A function run as a whole, eagerly and jitted, compared with its graph, which runs operation by operation.

The three round differently: a compiler fuses a multiplication and an addition into one rounding, reorders sums,
simplifies, and flushes numbers below the smallest normal one to 0. At the boundary of an operation's domain, one may
then be finite and another not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxnn.graph.nonfinite.causes as causes
from jaxnn.aliases import Tree
from jaxnn.graph.nodes import Graph, Node
from jaxnn.graph.nonfinite.causes import cause
from jaxnn.graph.nonfinite.entries import entry, first, holds
from jaxnn.graph.nonfinite.explanation import BACKWARD, FORWARD, Explanation, explanation, named, numbers
from jaxnn.graph.nonfinite.forward import cancelled
from jaxnn.graph.nonfinite.patterns import difference, rounding
from jaxnn.graph.summaries import number
from jaxnn.jaxprs import is_float

MODES = ("operation by operation", "eagerly", "jitted")


class Run(NamedTuple):
    """Whether a value, or the gradients, are finite in each of the three MODES."""

    of: str  # "the value", "the gradient"
    finite: tuple[bool, ...]  # for each mode whether all of it is finite


def runs(f: Callable[..., Tree], graph: Graph, args: tuple[Tree, ...]) -> tuple[Run, ...]:
    """The value in the three modes, and the gradient if the graph has one."""
    leaves, tree = jax.tree.flatten(args)
    leaves = [jax.numpy.asarray(leaf) for leaf in leaves]

    def floats_of(given: list[Any]) -> list[Any]:
        return [out for out in jax.tree.leaves(f(*jax.tree.unflatten(tree, given))) if is_float(out)]

    value = [all(map(_finite, run(leaves))) for run in (floats_of, jax.jit(floats_of))]
    found = [Run("the value", (all(_finite(graph.at(ref)[0]) for ref in graph.outputs), *value))]
    if not graph.gradients:
        return tuple(found)
    moving = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
    deltas = [c for c in graph.cotangents if c is not None]

    def back(floats: list[Any], fixed: list[Any], deltas: list[Any]) -> Any:
        given = list(fixed)

        def outputs(floats: list[Any]) -> list[Any]:
            for i, x in zip(moving, floats, strict=True):
                given[i] = x
            return floats_of(given)

        return jax.vjp(outputs, floats)[1](deltas)

    floats = [leaves[i] for i in moving]
    gradient = [all(map(_finite, jax.tree.leaves(run(floats, leaves, deltas)))) for run in (back, jax.jit(back))]
    own = not any(holds(leaf.gradient) for leaf in graph.leaves if leaf.kind == "input")
    return (*found, Run("the gradient", (own, *gradient)))


def _finite(value: Any) -> bool:
    return not holds(value)


def disagreements(seen: Sequence[Run]) -> tuple[str, ...]:
    """A line for each result that is finite in one mode and not in another."""
    return tuple(
        f"{run.of}: " + ", ".join(f"{'finite' if ok else 'not finite'} {mode}" for ok, mode in
                                  zip(run.finite, MODES, strict=True))
        for run in seen
        if len(set(run.finite)) > 1
    )  # fmt: skip


EDGES = {  # operations whose domain ends, or that have a pole, at 0 or 1, and the input concerned
    **dict.fromkeys(
        ("sqrt", "rsqrt", "log", "log1p", "pow", "integer_pow", "cbrt", "acosh", "asin", "acos", "atanh"), 0
    ),
    "div": 1,
    "erf_inv": 0,
}


def explain_disagreement(graph: Graph, seen: Sequence[Run]) -> Explanation:
    """The operation of a finite graph that is sensitive to rounding or to compilation."""
    direction = FORWARD if len(set(seen[0].finite)) > 1 else BACKWARD
    for node in graph.nodes:
        slot = EDGES.get(node.operation)
        if slot is None:
            continue
        source = difference(graph, node.inputs[slot])
        if source is not None:
            return _by_difference(graph, source, node, direction)
    small = next((node for node in graph.nodes if node.operation == "div" and _denormal(graph, node)), None)
    if small is not None:
        tiny = float(np.finfo(np.float32).tiny)
        why = cause(causes.BY_ZERO, f"the divisor is below {number(tiny)}, which compiled code may flush to 0")
        return explanation(direction, small, why, None)
    what = "no cancelling difference leads to it: the compiler may have removed or fused operations that overflow"
    return Explanation(False, "", direction, (), *cause(causes.COMPILED, what))


def _by_difference(graph: Graph, source: Node, edge: Node, direction: str) -> Explanation:
    element = first(abs(np.asarray(source.values[0], np.float64)) <= rounding(graph, source))
    s = entry(graph, source, 0, element)
    detail = (
        f"{cancelled(graph, source)} is rounding error alone, and the function as a whole rounds differently (a fused "
        "multiply-add, or another order of summation): it may be 0 or negative there"
    )
    found = explanation(direction, source, cause(causes.CANCELLATION, detail), element, numbers(s))
    return found._replace(then=f"it is an input of {named(edge)}")


def _denormal(graph: Graph, node: Node) -> bool:
    divisor = np.asarray(graph.at(node.inputs[1])[0])
    if not is_float(divisor):
        return False
    tiny = float(jax.numpy.finfo(divisor.dtype).tiny)
    return bool(((divisor != 0) & (abs(divisor) < tiny)).any())
