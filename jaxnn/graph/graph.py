"""A recorded function that shows itself: as a line, as a table in a terminal, as a page in a notebook."""

from __future__ import annotations

from jaxnn.graph.nodes import Recorded
from jaxnn.graph.page import page
from jaxnn.graph.text import table


class Graph(Recorded):
    """The computational graph of a function at a point; its attributes are those of `Recorded`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<graph of {self.name}: {len(self.nodes)} operations, {len(self.leaves)} leaves>"

    def __str__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        """In a notebook, the page."""
        return page(self)._repr_html_()
