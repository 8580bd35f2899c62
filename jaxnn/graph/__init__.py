"""The computational graph of any JAX function: values and gradients at every node."""

from jaxnn.graph.flow import Flow, Stage, gradient_flow
from jaxnn.graph.gradient_path import Segment
from jaxnn.graph.html import Page, page
from jaxnn.graph.nodes import Graph, Leaf, Node, Ref
from jaxnn.graph.nonfinite import Explanation, explain_nonfinite
from jaxnn.graph.text import chart, dot, table
from jaxnn.graph.tracing import grad, trace

__all__ = [
    "Explanation",
    "Flow",
    "Graph",
    "Leaf",
    "Node",
    "Page",
    "Ref",
    "Segment",
    "Stage",
    "dot",
    "explain_nonfinite",
    "grad",
    "gradient_flow",
    "page",
    "table",
    "trace",
]
__dir__ = __all__.copy


# What a graph is does not import how it is drawn: the two meet here.
Graph.__str__ = table  # type: ignore[method-assign, assignment]
Graph._repr_html_ = lambda graph: page(graph)._repr_html_()  # type: ignore[attr-defined]
Flow.__str__ = chart  # type: ignore[method-assign, assignment]
