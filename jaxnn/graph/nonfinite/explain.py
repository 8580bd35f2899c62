"""`explain_nonfinite`: the origin of a NaN or an infinity, and its cause.

A non-finite value is traced from the output back to the operations that produced it from finite numbers; a non-finite
gradient from the input to the operation that passed it back although its own gradient was finite. The function is also
run as a whole, eagerly and jitted, because it is then rounded differently.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnn.aliases import Tree
from jaxnn.graph.nodes import Graph, check_function
from jaxnn.graph.nonfinite.compiled import disagreements, explain_disagreement, runs
from jaxnn.graph.nonfinite.entries import holds
from jaxnn.graph.nonfinite.explanation import Explanation
from jaxnn.graph.nonfinite.gradients import explain_gradient
from jaxnn.graph.nonfinite.values import explain_value, intended
from jaxnn.graph.tracing import trace
from jaxnn.jaxprs import is_float


def explain_nonfinite(
    f: Callable[..., Tree], *, cotangent: Tree = None, whole: bool = True
) -> Callable[..., Explanation]:
    """The origin of a NaN or an infinity in a function's value or gradient, with its cause and a fix.

    The origin is the first operation, in forward order, that turns finite inputs into a non-finite value which reaches
    the result; or, if the value is finite, the first, in backward order, that passes back a non-finite gradient
    although its own is finite. If the result of that operation is discarded and only its slope matters, the operation
    that discards it is named too. A function with finite results raises no alarm, whatever its intermediate values.

    Args:
        f: a pure function of pytrees of arrays.
        cotangent: the gradient at the output, like f's output; by default 1 for every float.
        whole: whether also to run f and its gradient as a whole, eagerly and jitted, and to report where these and f
            operation by operation disagree on what is finite. It compiles f twice.

    Returns:
        A function of f's arguments that returns an Explanation. Loops and functions with custom rules are searched, and
        the step of a `scan` is named. What JAX cannot differentiate (a while loop) is explained forward only. An
        infinity that the code itself writes among finite entries, such as the −∞ of a mask, raises no alarm.

    Raises:
        TypeError: if an argument is not an array.

    >>> import jax.numpy as jnp
    >>> why = explain_nonfinite(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0).sum())(-jnp.ones(2))
    >>> why.direction, why.cause, why.operation, why.hidden.split()[0]
    ('backward', 'the where trap', 'sqrt', 'where')
    """
    check_function("graph.explain_nonfinite", f)

    def explained(*args: Tree) -> Explanation:
        with jax.debug_nans(False), jax.debug_infs(False):  # they would raise at the first NaN, intended or not
            return _explained(f, cotangent, whole, args)

    return explained


def _explained(f: Callable[..., Tree], cotangent: Tree, whole: bool, args: tuple[Tree, ...]) -> Explanation:
    graph = trace(f, backward=False)(*args)
    written = intended(graph)
    found = None if written else explain_value(graph)
    reached: tuple[str, ...] = ("the value",)
    unknown = ""
    if found is None or whole:
        graph, unknown = _with_gradients(f, cotangent, graph, args)
    if found is None:
        found = explain_gradient(graph)
        reached = tuple(f"the gradient of {leaf.name}" for leaf in graph.leaves if holds(leaf.gradient))
    seen = runs(f, graph, args) if whole else ()
    words = disagreements(seen)
    if found is None and words:
        found = explain_disagreement(graph, seen)
        reached = tuple(run.of for run in seen if not all(run.finite))
    if found is None:
        return Explanation(True, graph.name, unknown=unknown, intended=written)
    return found._replace(name=graph.name, reached=reached, runs=words)


def _with_gradients(f: Callable[..., Tree], cotangent: Tree, graph: Graph, args: tuple[Tree, ...]) -> tuple[Graph, str]:
    """The graph with gradients; or without, and the reason."""
    if not any(leaf.kind == "input" and is_float(leaf.value) for leaf in graph.leaves):
        return graph, f"{graph.name} has no float inputs"
    if not any(map(is_float, jax.tree.leaves(graph.value))):
        return graph, f"{graph.name} returns no floats"
    if cotangent is None:
        cotangent = jax.tree.map(jnp.ones_like, graph.value)
    try:
        return trace(f, cotangent=cotangent)(*args), ""
    except ValueError as error:
        if "cannot be differentiated" not in str(error):
            raise
        return graph, str(error).removeprefix("graph: ")
