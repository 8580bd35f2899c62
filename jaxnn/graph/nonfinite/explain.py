"""`explain_nonfinite`: where a NaN or an infinity came from, and why.

A value that is not finite is followed upstream, from the output to the operations that made it of finite numbers; a
gradient likewise, from the input to the operation that passed it back though its own was finite. The function is also
run whole, eagerly and jitted, since what is computed in one piece is rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnn.graph.nodes import Graph, check_function
from jaxnn.graph.nonfinite.compiled import differing, runs, settled
from jaxnn.graph.nonfinite.entries import holds
from jaxnn.graph.nonfinite.explanation import Explanation
from jaxnn.graph.nonfinite.gradients import explain_gradient
from jaxnn.graph.nonfinite.values import explain_value, meant
from jaxnn.graph.tracing import trace
from jaxnn.jaxprs import is_float
from jaxnn.types import Tree


def explain_nonfinite(
    f: Callable[..., Tree], *, cotangent: Tree = None, whole: bool = True
) -> Callable[..., Explanation]:
    """Where does this NaN, or infinity, come from, and why?

    Named is the first operation in the forward order whose value is not finite while what came into it was and
    which reaches the result; or, where the value is finite, the first in the backward order that passes back what is
    not finite while its own gradient is. Where such a result is thrown away and only its slope counts, the operation
    that threw it away is named too. A finite function gets a clean bill, whatever it holds on the way.

    Args:
        f: a pure function of pytrees of arrays.
        cotangent: like f's output, the gradient to begin with; by default 1 for every float.
        whole: whether to run f and its gradient in one piece as well, eagerly and jitted, and to say where these are
            finite and f operation by operation is not, or the reverse. It compiles f twice.

    Returns:
        A function of f's arguments that gives an Explanation. Loops and functions with rules of their own are opened,
        and the step of a `scan` is named. What JAX cannot differentiate (a while loop) is explained forward only. An
        infinity that the code itself writes among finite entries, as the −∞ of a mask, raises no alarm.

    Raises:
        TypeError: if an argument is no array.

    >>> import jax.numpy as jnp
    >>> why = explain_nonfinite(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0).sum())(-jnp.ones(2))
    >>> why.direction, why.cause, why.operation, why.hidden.split()[0]
    ('backward', 'the where trap', 'sqrt', 'where')
    """
    check_function("graph.explain_nonfinite", f)

    def explained(*args: Tree) -> Explanation:
        with jax.debug_nans(False), jax.debug_infs(False):  # they would end it at the first NaN, wanted or not
            return _explained(f, cotangent, whole, args)

    return explained


def _explained(f: Callable[..., Tree], cotangent: Tree, whole: bool, args: tuple[Tree, ...]) -> Explanation:
    graph = trace(f, backward=False)(*args)
    written = meant(graph)
    found = None if written else explain_value(graph)
    reached: tuple[str, ...] = ("the value",)
    unknown = ""
    if found is None or whole:
        graph, unknown = _with_gradients(f, cotangent, graph, args)
    if found is None:
        found = explain_gradient(graph)
        reached = tuple(f"the gradient of {leaf.name}" for leaf in graph.leaves if holds(leaf.gradient))
    seen = runs(f, graph, args) if whole else ()
    words = differing(seen)
    if found is None and words:
        found = settled(graph, seen)
        reached = tuple(run.of for run in seen if not all(run.finite))
    if found is None:
        return Explanation(True, graph.name, unknown=unknown, meant=written)
    return found._replace(name=graph.name, reached=reached, runs=words)


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
