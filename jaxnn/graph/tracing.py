"""`trace` and `grad`: any JAX function as a graph of operations, with the value and the gradient at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.aliases import Tree
from jaxnn.graph.nodes import Graph, check_function
from jaxnn.graph.record import recorded
from jaxnn.jaxprs import argument_names, first_difference, is_float, name_of


def trace(
    f: Callable[..., Tree], *, cotangent: Tree = None, unroll: bool = False, backward: bool = True
) -> Callable[..., Graph]:
    """The computational graph of f at a point: every operation with its value, its gradient and its local rule.

    Args:
        f: a pure function of pytrees of arrays. Intermediate values may be complex; JAX's own rules are used for these.
        cotangent: the gradient at the output, like f's output; by default 1, if f returns a single number.
        unroll: whether to record loops and branches as the operations that ran, iteration by iteration.
        backward: whether to compute gradients too.

    Returns:
        A function of f's arguments that returns a graph: `.value` like `f(*args)`, `.gradients` a tuple like args,
        `.nodes` in the order of evaluation, and `.leaves`, which include the inputs.

    Raises:
        TypeError: if an argument is not an array, or none contains floats.
        ValueError: if f returns more than one number and no cotangent is given, if f is not pure, or if an operation
            has no reverse rule.

    Source: Linnainmaa (1970); Griewank & Walther (2008), ch. 3.

    >>> graph = trace(lambda x, y: x * (x + y))(2.0, 1.0)
    >>> float(graph.value), [float(g) for g in graph.gradients]
    (6.0, [5.0, 2.0])
    >>> [(node.operation, float(node.value), float(node.gradient)) for node in graph.nodes]
    [('add', 3.0, 2.0), ('mul', 6.0, 1.0)]
    """
    check_function("graph.trace", f)
    return lambda *args: _graph(f, args, cotangent, unroll, backward)


def _graph(
    f: Callable[..., Tree],
    args: tuple[Tree, ...],
    cotangent: Tree = None,
    unroll: bool = False,
    backward: bool = True,
    argnums: Sequence[int] | None = None,
) -> Graph:
    """The graph that `trace` returns, differentiated with respect to the arguments `argnums`, or all."""
    arrays = _arrays(f, args)
    closed, out = _jaxpr(f, arrays)
    leaves, tree = jax.tree.flatten(arrays)
    outs, out_tree = jax.tree.flatten(out)
    given = _cotangents(f, outs, out_tree, cotangent) if backward else None
    if backward and not any(map(is_float, leaves)):
        raise TypeError(f"graph: {name_of(f)} has no float inputs: there is nothing to differentiate with respect to")
    wanted = [argnums is None or i in argnums for i, arg in enumerate(arrays) for _ in jax.tree.leaves(arg)]
    graph = recorded(name_of(f), closed, leaves, _names(f, arrays), given, unroll=unroll, wanted=wanted)
    value = jax.tree.unflatten(out_tree, graph.value)
    if not backward:
        return graph._replace(value=value)
    gradients = [_whole(leaf, g) for leaf, g in zip(leaves, graph.gradients, strict=True)]
    return graph._replace(value=value, gradients=jax.tree.unflatten(tree, gradients))


def grad(f: Callable[..., Tree], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The gradient of f by the reverse pass of its graph, equal to that of `jax.grad`.

    Args:
        f: a function that returns one number.
        argnums: the arguments to differentiate with respect to; a sequence returns a tuple.

    Raises:
        TypeError, ValueError: as `trace`.

    >>> float(grad(lambda x: x * x)(3.0))
    6.0
    """
    check_function("graph.grad", f)

    def gradient(*args: Tree) -> Any:
        numbers = [range(len(args))[i] for i in ([argnums] if isinstance(argnums, int) else argnums)]
        gradients = _graph(f, args, argnums=numbers).gradients
        return gradients[numbers[0]] if isinstance(argnums, int) else tuple(gradients[i] for i in numbers)

    return gradient


def _arrays(f: Callable[..., Tree], args: tuple[Tree, ...]) -> tuple[Tree, ...]:
    names = argument_names(f, len(args))

    def array(path: Any, leaf: Any) -> Any:
        try:
            return jnp.asarray(leaf)
        except (TypeError, ValueError):
            where = f"{names[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
            raise TypeError(f"graph: {where} is not an array but {leaf!r}: close over it in a lambda") from None

    return tuple(jax.tree_util.tree_map_with_path(array, args))


def _names(f: Callable[..., Tree], args: tuple[Tree, ...]) -> list[str]:
    names = argument_names(f, len(args))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(args)]
    return [f"{names[path[0].idx]}{jax.tree_util.keystr(path[1:])}" for path in paths]


CONCRETE = (  # errors of JAX about functions that need concrete values, with advice
    (jax.errors.TracerBoolConversionError, "f branches on the value of an array: use jnp.where or jax.lax.cond"),
    (jax.errors.TracerArrayConversionError, "f passes an array to NumPy: use jax.numpy"),
    (jax.errors.TracerIntegerConversionError, "f uses an array as a Python index: use jnp.take, or a static number"),
    (jax.errors.ConcretizationTypeError, "f converts an array to a Python number: use jax.numpy"),
)


def _jaxpr(f: Callable[..., Tree], args: tuple[Tree, ...]) -> tuple[Any, Tree]:
    """The jaxpr of f and the structure of its output; ValueError if f is not pure: two traces differ."""
    first, second = (_traced(f, args) for _ in range(2))
    differs = first_difference(first[0], second[0])
    if differs is not None:
        raise ValueError(
            f"graph: {name_of(f)} is not pure: traced twice with the same arguments, it yields different programs, "
            f"first at {differs}; draw random numbers from a key, and keep counters in arguments, not in Python"
        )
    return second


def _traced(f: Callable[..., Tree], args: tuple[Tree, ...]) -> tuple[Any, Tree]:
    def again(*args: Tree) -> Tree:  # JAX caches by function: f itself would not be called again
        return f(*args)

    try:
        traced: tuple[Any, Tree] = jax.make_jaxpr(again, return_shape=True)(*args)
    except tuple(kind for kind, _ in CONCRETE) as error:
        advice = next(advice for kind, advice in CONCRETE if isinstance(error, kind))
        error.add_note(f"graph: {advice}, or close over fixed values")
        raise
    return traced


def _cotangents(f: Callable[..., Tree], outs: list[Any], tree: Any, cotangent: Tree) -> list[Any]:
    """One for each output leaf; None for integers."""
    floats = [out for out in outs if is_float(out)]
    if cotangent is not None:
        given, ours = jax.tree.flatten(cotangent)
        if ours != tree or [jnp.shape(g) for g in given] != [out.shape for out in outs]:
            raise ValueError(f"graph: cotangent must be like the output of {name_of(f)}, {_shapes(outs)}")
        return [jnp.asarray(g, out.dtype) if is_float(out) else None for g, out in zip(given, outs, strict=True)]
    if not floats:
        raise TypeError(f"graph: {name_of(f)} returns no floats but {_shapes(outs)}; backward=False traces values")
    if len(floats) > 1 or floats[0].shape:
        raise ValueError(
            f"graph: {name_of(f)} returns {_shapes(outs)}, not a single number; give cotangent=…, like that output, "
            "or backward=False"
        )
    return [jnp.ones((), out.dtype) if is_float(out) else None for out in outs]


def _shapes(outs: list[Any]) -> str:
    return ", ".join(f"{out.dtype}{list(out.shape)}" for out in outs) or "nothing"


def _whole(leaf: Any, gradient: Any) -> Any:
    """The gradient of an input: zeros if nothing was passed to it, None if it has none."""
    if not is_float(leaf):
        return None
    return jnp.zeros_like(leaf) if gradient is None else gradient
