"""The computational graph of any JAX function: values and gradients at every node."""

from jaxnn.graph.nodes import Leaf, Node, Recorded, Ref
from jaxnn.graph.trace import grad, trace

__all__ = ["Leaf", "Node", "Recorded", "Ref", "grad", "trace"]
