"""A graph as text: a table in a terminal, DOT source, a bar chart of gradients."""

from jaxnn.graph.text.charts import chart
from jaxnn.graph.text.graphviz import dot
from jaxnn.graph.text.tables import table

__all__ = ["chart", "dot", "table"]
