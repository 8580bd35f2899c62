"""A graph as one HTML file that needs nothing else: drawn in layers, folded and unfolded, stepped forward and back.

Python writes numbers, summaries of arrays and the order of the drawing; `page.js` measures, places and steps;
`page.css` is its look and `page.html` its frame. They become one file without network access or third-party code.
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
from jaxnn.graph.levels import Level, levels
from jaxnn.graph.loops import number_of_iterations
from jaxnn.graph.nodes import Leaf, Node, Recorded, Ref, check_graph
from jaxnn.graph.values import histogram, number, summary
from jaxnn.jaxprs import is_program, size
from jaxnn.showing import shown

OPEN_AT_FIRST = 40  # operations and folded groups that fit a screen
LARGEST = 1_600_000  # characters of a page's data; the page stays below 2 MB
INSIDES = 8  # iterations of a loop that can be opened: the first half and the last
INSIDE_OPERATIONS = 1_000  # in all of them together
DEEPEST = 3  # a loop in a loop in a loop
BINS = 16
HEIGHTS = "0123456789abcdefghijklmnopqrstuvwxyz"  # of a histogram's bars
LONGEST = 100  # characters of a parameter
SYMBOLS = {
    "add": "+",
    "add_any": "+",
    "sub": "−",
    "mul": "×",
    "div": "÷",
    "neg": "−",
    "dot_general": "@",
    "reduce_sum": "Σ",
    "reduce_prod": "∏",
    "sqrt": "√",
    "select_n": "?",
    "lt": "<",
    "le": "≤",
    "gt": ">",
    "ge": "≥",
    "eq": "=",
    "ne": "≠",
}


@shown(lambda page: f"<page of {len(page.html):,} characters of HTML: .save(path), or show it in a notebook>")
class Page(NamedTuple):
    """A graph as HTML; the last line of a notebook's cell shows it.

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
        """A frame of its own, so that the notebook's style and the page's do not meet."""
        style = f"width:100%;height:{self.height}px;border:1px solid #8886;border-radius:6px"
        return f'<iframe title="computational graph" style="{style}" srcdoc="{html.escape(self.html)}"></iframe>'


def page(graph: Recorded, *, title: str = "", most: int = OPEN_AT_FIRST) -> Page:
    """The page of a graph: its drawing with value and gradient at each node, and both passes step by step.

    Groups (layers, jitted functions, iterations) fold; more than 80 items side by side become groups of neighbours.
    Arrays are written as shape, range, norm, the count of what is not finite and a histogram, never as they are. A page
    stays below 2 MB: in one of many thousand operations some groups cannot be opened, the last in the forward order
    before others and those with NaN or infinity last of all, and the page says how many.

    Args:
        graph: what `graph.trace(f)(*args)` gives.
        title: of the page; by default the function's name.
        most: groups are opened at first, level by level, while no more than so many items are to be seen.

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
    tree = levels(graph)
    room = sum(map(len, (graph.nodes, graph.leaves)))
    data = _data(graph, tree, title, most, room)
    while len(data) > LARGEST and room > 0:
        room = int(0.9 * room * LARGEST / len(data))
        data = _data(graph, tree, title, most, room)
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _file("page.css"),
        "DRAWING": _file("page_drawing.js"),
        "SCRIPT": _file("page.js"),
        "DATA": data,
    }
    return Page(re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html")))


def _file(name: str) -> str:
    return resources.files("jaxnn.graph").joinpath(name).read_text(encoding="utf-8")


def _data(graph: Recorded, tree: tuple[Level, ...], title: str, most: int, room: int) -> str:
    """JSON that no name in it can end: a script element ends at </script>, and at nothing else."""
    writer = _Writer()
    writer.graph(graph, tree, _sealed(graph, tree, room), title, most)
    data = {"graphs": writer.graphs, "strings": list(writer.strings)}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Writer:
    """Graphs as lists of small lists: names are written once and stand elsewhere as numbers."""

    def __init__(self) -> None:
        self.strings: dict[str, int] = {}
        self.graphs: list[dict[str, Any]] = []
        self.room = INSIDE_OPERATIONS
        self.briefs: dict[int, tuple[Any, Any]] = {}  # with the value, so that its id stays its own

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def brief(self, value: Any) -> Any:
        """A number as text; an array as [kind, size, low, high, norm, not finite, histogram]; None for nothing."""
        if value is None:
            return None
        if id(value) not in self.briefs:
            self.briefs[id(value)] = value, self._brief(value)
        return self.briefs[id(value)][1]

    def _brief(self, value: Any) -> Any:
        s = summary(value)
        if s.number is not None:
            return number(s.number)
        kind = self.string(f"{s.dtype}[{', '.join(map(str, s.shape))}]")
        if not s.known:
            return [kind]
        bars = histogram(value, BINS)
        tallest = max(bars, default=0)
        steps = len(HEIGHTS) - 1
        drawn = "".join(HEIGHTS[-(-count * steps // tallest)] for count in bars)  # rounded up: one entry is seen
        return [kind, s.size, number(s.low), number(s.high), number(s.norm), s.nonfinite, drawn]

    def graph(
        self, graph: Recorded, tree: tuple[Level, ...], sealed: list[bool], title: str, most: int, depth: int = 0
    ) -> int:
        """Writes a graph and those inside its operations; its number."""
        at = len(self.graphs)
        self.graphs.append({})
        written = {item for level, shut in zip(tree, sealed, strict=True) if not shut for item in level.items}
        for level, shut in zip(tree, sealed, strict=True):
            if shut:  # what leaves it is shown on its card
                written.update(ref.node for ref in level.exits)
        written.update(ref.node for ref in graph.outputs)
        self.graphs[at] = {
            "name": title,
            "value": [self.brief(graph.at(ref)[0]) for ref in graph.outputs],
            "backward": any(g is not None for node in graph.nodes for g in node.gradients)
            or any(leaf.gradient is not None for leaf in graph.leaves),
            "leaves": [self.leaf(leaf) if -1 - k in written else None for k, leaf in enumerate(graph.leaves)],
            "nodes": [self.node(node, depth) if node.id in written else None for node in graph.nodes],
            "outputs": [[*ref] for ref in graph.outputs],
            "seeds": [self.brief(cotangent) for cotangent in graph.cotangents],
            "levels": [self.level(graph, tree, sealed, g) for g in range(len(tree))],
            "opened": _opened(tree, sealed, len(graph.nodes), most),
        }  # fmt: skip
        return at

    def leaf(self, leaf: Leaf) -> list[Any]:
        return [leaf.name, leaf.kind, self.brief(leaf.value), self.brief(leaf.gradient)]

    def node(self, node: Node, depth: int) -> list[Any]:
        return [
            self.string(node.operation),
            self.string(_symbol(node)),
            [ref.node if ref.output == 0 else [*ref] for ref in node.inputs],
            [self.brief(value) for value in node.values],
            [self.brief(gradient) for gradient in node.gradients],
            [self.brief(part) for part in node.passed],
            *map(self.string, (node.formula, node.rule, node.note, node.file, node.function, _params(node))),
            node.line,
            [self.whole(graph, depth + 1) for graph in self.inside(node, depth)],
        ]

    def whole(self, graph: Recorded, depth: int) -> int:
        """Writes a graph inside an operation."""
        tree = levels(graph)
        return self.graph(graph, tree, [False] * len(tree), graph.name, OPEN_AT_FIRST, depth)

    def inside(self, node: Node, depth: int) -> Iterator[Recorded]:
        """The graphs inside an operation, as many as there is room for."""
        for t in _iterations(node) if depth < DEEPEST else ():
            if self.room <= 0 or node.inner is None:
                return
            try:
                graph = node.inner(t)
            except (IndexError, jax.errors.ConcretizationTypeError):  # a while loop that has ended, or is being traced
                return
            self.room -= len(graph.nodes)
            yield graph

    def level(self, graph: Recorded, tree: tuple[Level, ...], sealed: list[bool], g: int) -> list[Any]:
        level, n = tree[g], len(graph.nodes)
        head = [level.name, level.parent, level.nodes.start, level.nodes.stop - 1, [[*ref] for ref in level.exits]]
        if sealed[g]:
            return head
        links = []
        for link in level.links:
            total = None
            if link.slot < 0 and link.target < len(level.items):
                inner = level.items[link.target] - n
                total = self.brief(_total(graph, tree[inner].nodes, link.ref, sealed[inner]))
            links.append([link.source, link.target, [*link.ref], link.slot, total])
        entries = [[*ref] for ref in level.entries]
        return [*head, level.items, entries, links, level.layout.rows, level.layout.bends]


def _total(graph: Recorded, nodes: range, ref: Ref, needed: bool) -> Any:
    """The sum of what a group passes back to an array; None where it is one part, which is written with its node."""
    parts = [
        part
        for i in nodes
        for used, part in zip(graph.nodes[i].inputs, graph.nodes[i].passed, strict=False)
        if used == ref and part is not None
    ]
    if len(parts) < 2:
        return parts[0] if parts and needed else None
    total = parts[-1]  # in the order in which they arrive
    for part in parts[-2::-1]:
        total = total + part
    return total


def _sealed(graph: Recorded, tree: tuple[Level, ...], room: int) -> list[bool]:
    """Which groups are not written, so that no more than `room` operations and leaves are."""
    n = len(graph.nodes)
    own = [sum(item < n for item in level.items) for level in tree]  # operations and leaves, without inner groups
    sealed = [False] * len(tree)
    if sum(own) <= room:
        return sealed

    def bad(g: int) -> bool:
        arrays = (array for i in tree[g].nodes for array in (*graph.nodes[i].values, *graph.nodes[i].gradients))
        return any(array is not None and summary(array).nonfinite for array in arrays)

    for g in sorted(range(len(tree)), key=lambda g: (g != 0, not bad(g), g)):
        sealed[g] = own[g] > room
        room -= 0 if sealed[g] else own[g]
    for g, level in enumerate(tree):
        sealed[g] = sealed[g] or (g > 0 and sealed[level.parent])
    return sealed


def _opened(tree: tuple[Level, ...], sealed: list[bool], n: int, most: int) -> list[int]:
    """The groups that are open at first: whole levels while no more than `most` items are to be seen."""
    opened, ring = [0], [0]
    seen = sum(item >= 0 for item in tree[0].items)
    while True:
        ring = [item - n for g in ring for item in tree[g].items if item >= n]
        seen += sum(sum(item >= 0 for item in tree[g].items) - 1 for g in ring)
        if not ring or seen > most or any(sealed[g] for g in ring):
            return opened
        opened += ring


def _iterations(node: Node) -> list[int]:
    """Which iterations of an operation can be opened."""
    if node.inner is None:
        return []
    if node.operation == "while":
        return list(range(INSIDES // 2))
    count = number_of_iterations(node)
    if count <= INSIDES:
        return list(range(count))
    return [*range(INSIDES // 2), *range(count - INSIDES // 2, count)]


def _symbol(node: Node) -> str:
    return f"^{node.params['y']}" if node.operation == "integer_pow" else SYMBOLS.get(node.operation, "")


def _params(node: Node) -> str:
    """The parameters that say something, one a line."""
    return "\n".join(f"{key} = {_text(value)}" for key, value in node.params.items() if value is not None)


def _text(value: Any) -> str:
    if is_program(value):
        return f"a program of {size(value)} operations"
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
