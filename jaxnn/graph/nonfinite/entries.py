"""One operation at one element, the producers of its inputs, and the consumers of its output.

Numbers are followed through operations that leave them unchanged: reshaping, casts, selection. Letters as in the rules:
x and y are inputs, z is the output, δ the gradient of z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.graph.nodes import Graph, Node, Ref
from jaxnn.graph.summaries import number
from jaxnn.jaxprs import is_float

TRANSPARENT = {  # operations that leave the numbers unchanged
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy", "copy_p"),
    *("stop_gradient", "reduce_precision", "slice", "dynamic_slice"),
}
NEAR = 8  # operations between the parts of a hand-written formula, at most


class Entry(NamedTuple):
    """An operation at one element."""

    graph: Graph  # its graph
    node: Node  # the operation
    x: tuple[float | None, ...]  # one number for each input; None for an input of another shape
    z: float  # the output
    delta: float | None = None  # the gradient of z; None in a forward pass


def entry(graph: Graph, node: Node, output: int, element: tuple[int, ...]) -> Entry:
    """An operation at an element of one of its outputs."""
    shape = np.shape(node.values[output])
    gradient = node.gradients[output] if node.gradients else None
    return Entry(
        graph,
        node,
        tuple(_entry(graph.at(ref)[0], element, shape) for ref in node.inputs),
        _real(node.values[output][element]),
        None if gradient is None else _real(gradient[element]),
    )


def _real(x: Any) -> float:
    """A number; the modulus of a complex one."""
    return float(abs(x)) if jnp.issubdtype(x.dtype, jnp.complexfloating) else float(x)


def _entry(value: Any, element: tuple[int, ...], shape: tuple[int, ...]) -> float | None:
    ours = np.shape(value)
    if not fits(value, shape):
        return None
    if not (is_float(value) or jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool):
        return None
    return float(value[tuple(0 if n == 1 else i for n, i in zip(ours, element, strict=True)) if ours else ()])


def fits(value: Any, shape: tuple[int, ...]) -> bool:
    """True for an array that broadcasts to the shape of an operation's output."""
    ours = np.shape(value)
    return ours == () or (len(ours) == len(shape) and all(n in (1, m) for n, m in zip(ours, shape, strict=True)))


def entrywise(graph: Graph, node: Node) -> bool:
    """True for an operation with one output, each entry of which depends on one entry of every input."""
    shape = np.shape(node.values[0])
    return len(node.values) == 1 and all(fits(graph.at(ref)[0], shape) for ref in node.inputs)


def nonfinite(value: Any) -> Any:
    """A mask of the entries that are NaN or infinite."""
    return ~np.isfinite(np.asarray(value))


def holds(value: Any, bad: Callable[[Any], Any] = nonfinite) -> bool:
    """True for real or complex numbers some of which are bad."""
    return bool(value is not None and jnp.issubdtype(value.dtype, jnp.inexact) and bad(value).any())


def in_words(x: Any) -> str:
    """A number as written in a sentence: NaN and ∞ spelled out.

    >>> in_words(0.5), in_words(float("-inf")), in_words(float("nan"))
    ('0.5', '−∞', 'NaN')
    """
    if np.isnan(x):
        return "NaN"
    return ("−∞" if np.real(x) < 0 else "∞") if np.isinf(x) else number(x)


def first(mask: Any) -> tuple[int, ...]:
    """The index of the first entry that is True."""
    return tuple(map(int, np.argwhere(mask)[0]))


# ---------------------------------------------------------------- producers


def origin(graph: Graph, ref: Ref) -> Ref:
    """The source of an array's numbers, behind reshaping, casts and selections."""
    while ref.leaf is None:
        node = graph.nodes[ref.node]
        if node.operation in TRANSPARENT:
            ref = node.inputs[0]
        elif node.operation == "select_n" and len(node.inputs) == 3:  # of var(), which selects NaN for too few entries
            which = np.asarray(graph.at(node.inputs[0])[0])
            ref = node.inputs[1 + int(which.flat[0])] if which.size else node.inputs[1]
        else:
            break
    return ref


def producer(graph: Graph, ref: Ref) -> Node | None:
    """The operation that produced an array, behind reshaping, casts and selections; None for a leaf."""
    ref = origin(graph, ref)
    return graph.nodes[ref.node] if ref.leaf is None else None


def ancestors(graph: Graph, ref: Ref, through: set[str]) -> Iterator[Node]:
    """The operations that lead to an array, nearest first, continuing only through those in `through`."""
    todo = [producer(graph, ref)]
    for _ in range(4 * NEAR):
        if not todo:
            return
        node = todo.pop(0)
        if node is not None:
            yield node
            if node.operation in through:
                todo += [producer(graph, r) for r in node.inputs]


def is_constant(graph: Graph, ref: Ref, wanted: float) -> bool:
    """True for an array whose entries all equal a number."""
    value = graph.at(ref)[0]
    return bool(is_float(value) and np.size(value) and (np.asarray(value, np.float64) == wanted).all())


def is_square(graph: Graph, node: Node) -> bool:
    """True for x²."""
    return (
        node.operation == "square"
        or (node.operation == "mul" and node.inputs[0] == node.inputs[1])
        or (node.operation == "integer_pow" and node.params["y"] == 2)
        or (node.operation == "pow" and is_constant(graph, node.inputs[1], 2))
    )


# ---------------------------------------------------------------- consumers

Users = dict[Ref, list[tuple[Node, int]]]


def users_of(graph: Graph) -> Users:
    """For each array the operations that take it, with the number of the input."""
    found: Users = {}
    for node in graph.nodes:
        for i, ref in enumerate(node.inputs):
            found.setdefault(ref, []).append((node, i))
    return found


def descendants(graph: Graph, node: Node, through: set[str]) -> Iterator[tuple[Node, int, tuple[str, ...]]]:
    """The operations downstream: (operation, number of the input, names of those between), nearest first."""
    users = users_of(graph)
    todo: list[tuple[Node, tuple[str, ...]]] = [(node, ())]
    seen = set[tuple[int, int]]()
    while todo:
        here, path = todo.pop(0)
        for k in range(len(here.values)):
            for user, i in users.get(Ref(here.id, k), ()):
                if (user.id, i) in seen or len(path) > NEAR:
                    continue
                seen.add((user.id, i))
                if user.operation not in TRANSPARENT:
                    yield user, i, path
                if user.operation in TRANSPARENT | through:
                    todo.append((user, (*path, user.operation)))


def floats_among(graph: Graph, refs: Sequence[Ref]) -> list[Any]:
    """The float arrays among them."""
    return [graph.at(ref)[0] for ref in refs if is_float(graph.at(ref)[0])]
