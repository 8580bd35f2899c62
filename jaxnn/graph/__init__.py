"""The computational graph of any JAX function: values and gradients at every node."""

from jaxnn.graph.dot import dot
from jaxnn.graph.explain import explain_nonfinite
from jaxnn.graph.explanation import Explanation
from jaxnn.graph.flow import Flow, Stage, gradient_flow
from jaxnn.graph.graph import Graph
from jaxnn.graph.nodes import Leaf, Node, Recorded, Ref
from jaxnn.graph.page import Page, page
from jaxnn.graph.text import table
from jaxnn.graph.trace import grad, trace
from jaxnn.graph.way import Step

__all__ = [
    "Explanation",
    "Flow",
    "Graph",
    "Leaf",
    "Node",
    "Page",
    "Recorded",
    "Ref",
    "Stage",
    "Step",
    "dot",
    "explain_nonfinite",
    "grad",
    "gradient_flow",
    "page",
    "table",
    "trace",
]


def __dir__() -> list[str]:
    return list(__all__)
