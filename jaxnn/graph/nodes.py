"""The records of a computational graph: nodes are operations, edges the arrays that pass between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxnn.records import is_function
from jaxnn.showing import brief, shown

BY_HAND = "by hand"
BY_JAX = "jax's own vjp"
CUSTOM = "its own custom rule"
NO_RULE = "cannot be differentiated"
NO_SLOPE = "no gradient: it operates on integers or booleans"


class Ref(NamedTuple):
    """The source of an array: an output of an operation, or one of the graph's leaves.

    Attributes:
        node: the index in `Graph.nodes`; −1 − k for leaf k of `Graph.leaves`.
        output: which of the node's outputs.
    """

    node: int
    output: int = 0

    @property
    def leaf(self) -> int | None:
        """The index in `Graph.leaves`, or None for an operation's output."""
        return -1 - self.node if self.node < 0 else None


@shown()
class Leaf(NamedTuple):
    """An array that no operation produced: an argument of f, one that it closed over, or a number in the code.

    Attributes:
        name: "x", "params['dense_0']['w']", "constant 2", or the number itself.
        kind: "input", "constant" or "number".
        value: the array.
        gradient: ∂(output)/∂(value); None for integers, booleans, keys, constants and numbers.
    """

    name: str
    kind: str
    value: Any
    gradient: Any = None


@shown(lambda node: f"<node {node.id}, {node.operation}: {', '.join(map(brief, node.values))}>")
class Node(NamedTuple):
    """One operation, with its inputs, its outputs and their gradients.

    Attributes:
        id: its place in forward order, and its index in `Graph.nodes`.
        operation: the primitive's name, "mul"; for a function kept whole, the function's, "relu".
        inputs: the sources of its inputs.
        values: its outputs.
        gradients: ∂(output)/∂(each of values); None for integers, or without a path to the output.
        passed: what it passes back to each input: its local rule applied to `gradients`; None for nothing. The gradient
            of an array is the sum of what is passed to it along all edges that leave it.
        params: the primitive's parameters, such as axes.
        formula: its local rule in letters, "δx = δ y, δy = δ x".
        rule: the rule's origin: BY_HAND, BY_JAX, CUSTOM, NO_RULE or NO_SLOPE.
        file: the file of the user's code, or "".
        line: the line in it, or 0.
        function: the function around that line, or "".
        group: names of the scopes around it, outermost first: layers, jitted functions, loop iterations.
        note: a remark on a tie or a kink at which JAX chose this slope; or "".
        inner: for a scan, a while, a cond, and a function with a custom rule: a function of the iteration's number (0
            if there is only one) that returns its subgraph; None for others. A scan counts as its xs do. The subgraph
            has gradients if this node has, except in custom rules and while loops.
        pull: for an operation whose rule is not in the table: a function without arguments that returns the rule itself
            as a graph of values, at the inputs and δ; None for others.
    """

    id: int
    operation: str
    inputs: tuple[Ref, ...]
    values: tuple[Any, ...]
    gradients: tuple[Any, ...] = ()
    passed: tuple[Any, ...] = ()
    params: Mapping[str, Any] = MappingProxyType({})
    formula: str = ""
    rule: str = ""
    file: str = ""
    line: int = 0
    function: str = ""
    group: tuple[str, ...] = ()
    note: str = ""
    inner: Callable[..., Any] | None = None
    pull: Callable[[], Any] | None = None

    @property
    def value(self) -> Any:
        """Its output, or the tuple of its outputs if there are several."""
        return self.values[0] if len(self.values) == 1 else self.values

    @property
    def gradient(self) -> Any:
        """∂(output)/∂(value), or the tuple of them."""
        return self.gradients[0] if len(self.gradients) == 1 else self.gradients

    @property
    def source(self) -> str:
        """`file:line (function)`, or "" if unknown."""
        return f"{self.file}:{self.line} ({self.function})" if self.file else ""


class Graph(NamedTuple):
    """The computational graph of a function at a point; `print` it, or end a notebook's cell with it.

    Attributes:
        name: the function's.
        leaves: inputs, then constants, then numbers.
        nodes: the operations in the order of evaluation.
        outputs: the source of each output leaf of the function.
        value: the function's value.
        gradients: a tuple like its arguments, ∂(output)/∂(each), with None for what has no gradient; () if only
            values were computed.
        cotangents: the gradient given to each output leaf; None for integers.
    """

    name: str
    leaves: tuple[Leaf, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]
    value: Any
    gradients: tuple[Any, ...]
    cotangents: tuple[Any, ...] = ()

    def at(self, ref: Ref) -> tuple[Any, Any]:
        """The value and the gradient of an array of the graph."""
        if ref.leaf is not None:
            leaf = self.leaves[ref.leaf]
            return leaf.value, leaf.gradient
        node = self.nodes[ref.node]
        return node.values[ref.output], node.gradients[ref.output] if node.gradients else None

    def __repr__(self) -> str:
        return f"<graph of {self.name}: {len(self.nodes)} operations, {len(self.leaves)} leaves>"


def check_graph(where: str, graph: Any) -> None:
    """Raises TypeError unless graph is a Graph."""
    if isinstance(graph, Graph):
        return
    if callable(graph) and getattr(graph, "__qualname__", "").startswith("trace."):
        raise TypeError(f"{where} expects a graph: trace(f) is a function of f's arguments; give trace(f)(*args)")
    if callable(graph):
        raise TypeError(f"{where} expects a graph, got a function; give graph.trace(f)(*args)")
    raise TypeError(f"{where} expects a graph, as returned by graph.trace(f)(*args), got {type(graph).__name__}")


def check_function(where: str, f: Any) -> None:
    """Raises TypeError unless f is a function; a record is callable, but only to explain how it is used."""
    if not is_function(f):
        advice = ""
        if hasattr(f, "forward"):
            advice = "; for a layer, give lambda params, x: net.forward(params, state, x)[0].sum()"
        elif hasattr(f, "value"):
            advice = "; give its value, f.value"
        raise TypeError(f"{where}: f must be a function of arrays, got {type(f).__name__}{advice}")
