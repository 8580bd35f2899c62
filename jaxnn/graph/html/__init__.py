"""A graph as one HTML page: folded and unfolded, stepped forward and back."""

from jaxnn.graph.html.document import Page, page

__all__ = ["Page", "page"]
