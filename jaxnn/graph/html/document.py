"""A graph as one self-contained HTML file: drawn in layers, folded and unfolded, stepped forward and back.

Python writes numbers, summaries of arrays and the order of the drawing; the SCRIPTS measure, place, draw and
step. `page.html` holds them all, without network access or third-party code.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxnn.checks import seen, whole_number
from jaxnn.graph.html.subgraphs import Subgraph, subgraphs
from jaxnn.graph.loops import number_of_iterations
from jaxnn.graph.nodes import Graph, Leaf, Node, Ref, check_graph
from jaxnn.graph.summaries import histogram, number, summary
from jaxnn.jaxprs import is_program, size
from jaxnn.showing import shown

OPEN_AT_FIRST = 40  # operations and folded groups that fit a screen
LARGEST = 1_600_000  # characters of data, so that the page stays below 2 MB
INSIDES = 8  # iterations of a loop that can be opened: the first half and the last
INSIDE_OPERATIONS = 1_000  # in all of these together
DEEPEST = 3  # loops within loops
BINS = 16
HEIGHTS = "0123456789abcdefghijklmnopqrstuvwxyz"  # of a histogram's bars
LONGEST = 100  # characters of a primitive's parameter
SCRIPTS = ("data.js", "placing.js", "drawing.js", "steps.js", "panel.js", "controls.js")  # in this order
SYMBOLS = {
    **{"add": "+", "add_any": "+", "sub": "−", "neg": "−", "mul": "×", "div": "÷", "dot_general": "@", "sqrt": "√"},
    **{"reduce_sum": "Σ", "reduce_prod": "∏", "select_n": "?"},
    **{"lt": "<", "le": "≤", "gt": ">", "ge": "≥", "eq": "=", "ne": "≠"},
}


@shown(lambda page: f"<page of {len(page.html):,} characters of HTML: .save(path), or show it in a notebook>")
class Page(NamedTuple):
    """A graph as HTML; a notebook shows it at the end of a cell.

    Attributes:
        html: the whole page.
        height: in a notebook, in pixels.
    """

    html: str
    height: int = 640

    def save(self, path: str | Path) -> Path:
        """Writes the page to a file and returns its path."""
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        """An iframe, which keeps the notebook's style and the page's apart."""
        style = f"width:100%;height:{self.height}px;border:1px solid #8886;border-radius:6px"
        return f'<iframe title="computational graph" style="{style}" srcdoc="{html.escape(self.html)}"></iframe>'


def page(graph: Graph, *, title: str = "", most: int = OPEN_AT_FIRST) -> Page:
    """The page of a graph: a drawing with the value and the gradient at each node, and both passes step by step.

    Groups (layers, jitted functions, iterations) fold; more than 80 items side by side become groups of neighbours.
    Arrays are summarised by shape, range, norm, the number of non-finite entries and a histogram. A page stays below
    2 MB: in a graph of many thousand operations some groups cannot be opened, beginning with the last in forward order
    and sparing those with NaN or infinity as long as possible, and the page says how many.

    Args:
        graph: as returned by `graph.trace(f)(*args)`.
        title: of the page; by default the function's name.
        most: at first, groups are opened level by level as long as at most this many items are visible.

    >>> from jaxnn import graph
    >>> shown = graph.page(graph.trace(lambda x, y: x * (x + y))(2.0, 1.0), title="x (x + y)")
    >>> shown.html.count("<html"), "http://" in shown.html or "https://" in shown.html
    (1, False)
    """
    check_graph("graph.page", graph)
    most = whole_number("graph.page: most", most, least=0)
    if not isinstance(title, str):
        raise TypeError(f"graph.page: title must be a string, got {seen(title)}")
    title = title or graph.name
    tree = subgraphs(graph)
    room = sum(map(len, (graph.nodes, graph.leaves)))
    data = _data(graph, tree, title, most, room)
    while len(data) > LARGEST and room > 0:
        room = int(0.9 * room * LARGEST / len(data))
        data = _data(graph, tree, title, most, room)
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _file("page.css"),
        "SCRIPT": "\n".join(map(_file, SCRIPTS)),
        "DATA": data,
    }
    return Page(re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html")))


def _file(name: str) -> str:
    return resources.files("jaxnn.graph.html").joinpath(name).read_text(encoding="utf-8")


def _data(graph: Graph, tree: tuple[Subgraph, ...], title: str, most: int, room: int) -> str:
    """The data as JSON in which no name can close the script element, since < and > are escaped."""
    writer = _Writer()
    writer.graph(graph, tree, _omitted(graph, tree, room), title, most)
    data = {"graphs": writer.graphs, "strings": list(writer.strings)}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Writer:
    """Graphs as lists of short lists; names are written once and referred to by number."""

    def __init__(self) -> None:
        self.strings: dict[str, int] = {}
        self.graphs: list[dict[str, Any]] = []
        self.room = INSIDE_OPERATIONS
        self.arrays: dict[int, tuple[Any, Any]] = {}  # with the value, so that its id is not reused

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def array(self, value: Any) -> Any:
        """A number as text; an array as [type, size, low, high, norm, not finite, histogram]; None for nothing."""
        if value is None:
            return None
        if id(value) not in self.arrays:
            self.arrays[id(value)] = value, self._array(value)
        return self.arrays[id(value)][1]

    def _array(self, value: Any) -> Any:
        s = summary(value)
        if s.number is not None:
            return number(s.number)
        kind = self.string(f"{s.dtype}[{', '.join(map(str, s.shape))}]")
        if not s.known:
            return [kind]
        bars = histogram(value, BINS)
        tallest = max(bars, default=0)
        steps = len(HEIGHTS) - 1
        drawn = "".join(HEIGHTS[-(-count * steps // tallest)] for count in bars)  # rounded up: one entry is visible
        return [kind, s.size, number(s.low), number(s.high), number(s.norm), s.nonfinite, drawn]

    def graph(
        self, graph: Graph, tree: tuple[Subgraph, ...], omitted: list[bool], title: str, most: int, depth: int = 0
    ) -> int:
        """Writes a graph and those inside its operations, and returns its number."""
        at = len(self.graphs)
        self.graphs.append({})
        written = {item for subgraph, omit in zip(tree, omitted, strict=True) if not omit for item in subgraph.items}
        for subgraph, omit in zip(tree, omitted, strict=True):
            if omit:  # its card shows the arrays that leave it
                written.update(ref.node for ref in subgraph.exits)
        written.update(ref.node for ref in graph.outputs)
        self.graphs[at] = {
            "name": title,
            "value": [self.array(graph.at(ref)[0]) for ref in graph.outputs],
            "backward": any(g is not None for node in graph.nodes for g in node.gradients)
            or any(leaf.gradient is not None for leaf in graph.leaves),
            "leaves": [self.leaf(leaf) if -1 - k in written else None for k, leaf in enumerate(graph.leaves)],
            "nodes": [self.node(node, depth) if node.id in written else None for node in graph.nodes],
            "outputs": [[*ref] for ref in graph.outputs],
            "seeds": [self.array(cotangent) for cotangent in graph.cotangents],
            "subgraphs": [self.subgraph(graph, tree, omitted, g) for g in range(len(tree))],
            "opened": _opened(tree, omitted, len(graph.nodes), most),
        }  # fmt: skip
        return at

    def leaf(self, leaf: Leaf) -> list[Any]:
        return [leaf.name, leaf.kind, self.array(leaf.value), self.array(leaf.gradient)]

    def node(self, node: Node, depth: int) -> list[Any]:
        power = f"^{node.params['y']}" if node.operation == "integer_pow" else ""
        params = "\n".join(f"{key} = {_text(value)}" for key, value in node.params.items() if value is not None)
        return [
            self.string(node.operation),
            self.string(power or SYMBOLS.get(node.operation, "")),
            [ref.node if ref.output == 0 else [*ref] for ref in node.inputs],
            [self.array(value) for value in node.values],
            [self.array(gradient) for gradient in node.gradients],
            [self.array(part) for part in node.passed],
            *map(self.string, (node.formula, node.rule, node.note, node.file, node.function, params)),
            node.line,
            [self.whole(graph, depth + 1) for graph in self.inside(node, depth)],
        ]

    def whole(self, graph: Graph, depth: int) -> int:
        """Writes a graph inside an operation, and returns its number."""
        tree = subgraphs(graph)
        return self.graph(graph, tree, [False] * len(tree), graph.name, OPEN_AT_FIRST, depth)

    def inside(self, node: Node, depth: int) -> Iterator[Graph]:
        """The graphs inside an operation, as many as fit."""
        for t in _iterations(node) if depth < DEEPEST else ():
            if self.room <= 0 or node.inner is None:
                return
            try:
                graph = node.inner(t)
            except (IndexError, jax.errors.ConcretizationTypeError):  # a while loop that has ended or is being traced
                return
            self.room -= len(graph.nodes)
            yield graph

    def subgraph(self, graph: Graph, tree: tuple[Subgraph, ...], omitted: list[bool], g: int) -> list[Any]:
        subgraph, n, exits = tree[g], len(graph.nodes), [[*ref] for ref in tree[g].exits]
        head = [subgraph.name, subgraph.parent, subgraph.nodes.start, subgraph.nodes.stop - 1, exits]
        if omitted[g]:
            return head
        links = []
        for link in subgraph.links:
            total = None
            if link.slot < 0 and link.target < len(subgraph.items):
                inner = subgraph.items[link.target] - n
                total = self.array(_total(graph, tree[inner].nodes, link.ref, omitted[inner]))
            links.append([link.source, link.target, [*link.ref], link.slot, total])
        entries = [[*ref] for ref in subgraph.entries]
        return [*head, subgraph.items, entries, links, subgraph.layout.rows, subgraph.layout.bends]


def _total(graph: Graph, nodes: range, ref: Ref, needed: bool) -> Any:
    """The sum of what a group passes back to an array; None for a single part, which is written with its node."""
    parts = [
        part
        for i in nodes
        for used, part in zip(graph.nodes[i].inputs, graph.nodes[i].passed, strict=False)
        if used == ref and part is not None
    ]
    if len(parts) < 2:
        return parts[0] if parts and needed else None
    total = parts[-1]  # in the order of arrival
    for part in parts[-2::-1]:
        total = total + part
    return total


def _omitted(graph: Graph, tree: tuple[Subgraph, ...], room: int) -> list[bool]:
    """For each group whether it is left out, so that at most `room` operations and leaves are written."""
    n = len(graph.nodes)
    own = [sum(item < n for item in subgraph.items) for subgraph in tree]  # operations and leaves, without inner groups
    omitted = [False] * len(tree)
    if sum(own) <= room:
        return omitted

    def bad(g: int) -> bool:
        arrays = (array for i in tree[g].nodes for array in (*graph.nodes[i].values, *graph.nodes[i].gradients))
        return any(array is not None and summary(array).nonfinite for array in arrays)

    for g in sorted(range(len(tree)), key=lambda g: (g != 0, not bad(g), g)):
        omitted[g] = own[g] > room
        room -= 0 if omitted[g] else own[g]
    for g, subgraph in enumerate(tree):
        omitted[g] = omitted[g] or (g > 0 and omitted[subgraph.parent])
    return omitted


def _opened(tree: tuple[Subgraph, ...], omitted: list[bool], n: int, most: int) -> list[int]:
    """The groups that are open at first: whole levels, as long as at most `most` items are visible."""
    opened, ring = [0], [0]
    seen = sum(item >= 0 for item in tree[0].items)
    while True:
        ring = [item - n for g in ring for item in tree[g].items if item >= n]
        seen += sum(sum(item >= 0 for item in tree[g].items) - 1 for g in ring)
        if not ring or seen > most or any(omitted[g] for g in ring):
            return opened
        opened += ring


def _iterations(node: Node) -> list[int]:
    """The iterations of an operation that can be opened."""
    if node.inner is None:
        return []
    if node.operation == "while":
        return list(range(INSIDES // 2))
    count = number_of_iterations(node)
    if count <= INSIDES:
        return list(range(count))
    return [*range(INSIDES // 2), *range(count - INSIDES // 2, count)]


def _text(value: Any) -> str:
    if is_program(value):
        return f"a program of {size(value)} operations"
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
