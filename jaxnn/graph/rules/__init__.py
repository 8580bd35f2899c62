"""Local reverse rules: what an operation passes back to its inputs, by the name of its primitive."""

from jaxnn.graph.rules.elementwise import RULES as ELEMENTWISE
from jaxnn.graph.rules.indexing import RULES as INDEXING
from jaxnn.graph.rules.products import RULES as PRODUCTS
from jaxnn.graph.rules.reductions import RULES as REDUCTIONS
from jaxnn.graph.rules.rule import Rule, nothing
from jaxnn.graph.rules.shapes import RULES as SHAPES
from jaxnn.graph.rules.windows import RULES as WINDOWS

RULES: dict[str, Rule] = {**ELEMENTWISE, **PRODUCTS, **REDUCTIONS, **WINDOWS, **SHAPES, **INDEXING}  # of real numbers

__all__ = ["RULES", "Rule", "nothing"]
