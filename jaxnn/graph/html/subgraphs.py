"""A graph as a tree of groups that fold, each drawn as a small graph with its items, its entries and its exits.

A group is one item of the group around it, so opening it moves its neighbours and changes no order. If a group has too
many items, runs of neighbours become groups too: no subgraph is too large to be drawn well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxnn.graph.groups import groups
from jaxnn.graph.html.layout import Layout, layout
from jaxnn.graph.nodes import Graph, Ref

MOST = 80  # items of one subgraph; more become runs of neighbours
OWN_LEAVES = 12  # a function's plain arguments are drawn at the top if there are at most this many

# An item is an int: operation i is i, leaf k is −1 − k (as in Ref), and group g is len(graph.nodes) + g.
Key = tuple[str, int | Ref]  # of a point during construction: an item, an entry or an exit


class Link(NamedTuple):
    """An array that passes between two points of a subgraph."""

    source: int  # a point of the subgraph
    target: int  # a point of the subgraph
    ref: Ref  # the array
    slot: int  # the number of the input of the operation at target; −1 if target is a group or a port


class Subgraph(NamedTuple):
    """A group as it is drawn. Its points are its items, then its entries, its exits, and the bends of the layout."""

    # the group's key; "" for the whole graph; "dense_0 … dense_7" for a run of neighbours, or "" if these are all
    # operations
    name: str
    parent: int  # the subgraph around it; −1 for the whole graph
    nodes: range  # the ids of its operations
    items: tuple[int, ...]  # groups and operations in forward order, then leaves
    entries: tuple[Ref, ...]  # arrays from outside that are used inside
    exits: tuple[Ref, ...]  # arrays that are used outside
    links: tuple[Link, ...]  # between its points
    layout: Layout  # of points and links


class _Group:
    """A group during construction."""

    def __init__(self, name: str, nodes: range, items: list[int]) -> None:
        self.name, self.nodes, self.items = name, nodes, items
        self.parent = -1
        self.entries: dict[Ref, None] = {}
        self.exits: dict[Ref, None] = {}
        self.links: dict[tuple[Key, Key, Ref, int], None] = {}


def subgraphs(graph: Graph, *, engine: str = "") -> tuple[Subgraph, ...]:
    """The whole graph first, and every group before those inside it."""
    n = len(graph.nodes)
    tree = _tree(graph)
    home = [0] * n  # of each operation
    for g, group in enumerate(tree):
        for item in group.items:
            if item < n:
                home[item] = g
            else:
                tree[item - n].parent = g
    around = _around(tree)
    leaves = _homes(graph, home, around)
    for k, g in enumerate(leaves):
        tree[g].items.append(-1 - k)
    for node in graph.nodes:
        for slot, ref in enumerate(node.inputs):
            producer = leaves[-1 - ref.node] if ref.node < 0 else home[ref.node]
            _connect(tree, n, (around[producer], around[home[node.id]]), node.id, slot, ref)
    return tuple(_drawn(group, engine) for group in tree)


# ---------------------------------------------------------------- the tree


def _tree(graph: Graph) -> list[_Group]:
    n = len(graph.nodes)
    tree = [_Group("", range(n), [])]
    inside = [0]
    starts: dict[int, list[int]] = {}
    for run in groups(graph):
        starts.setdefault(run.nodes.start, []).append(len(tree))
        tree.append(_Group(run.key, run.nodes, []))
    for i in range(n):
        while i >= tree[inside[-1]].nodes.stop:
            inside.pop()
        for g in starts.get(i, []):
            tree[inside[-1]].items.append(n + g)
            inside.append(g)
        tree[inside[-1]].items.append(i)
    _collapse(tree, n)
    for group in list(tree):
        _split_long(tree, group, n)
    return _numbered(tree, n)


def _collapse(tree: list[_Group], n: int) -> None:
    """A group of one item is that item; inner groups come first, so that chains collapse."""
    for group in reversed(tree):
        for place, item in enumerate(group.items):
            if item >= n and len(tree[item - n].items) == 1:
                group.items[place] = tree[item - n].items[0]
    while len(tree[0].items) == 1 and tree[0].items[0] >= n:  # a jitted function: its operations are the graph
        tree[0].items = tree[tree[0].items[0] - n].items


def _split_long(tree: list[_Group], group: _Group, n: int) -> None:
    """Runs of neighbours become groups until no more than MOST items are left."""
    while len(group.items) > MOST:
        size = min(MOST, math.ceil(math.sqrt(len(group.items))))
        runs = [group.items[start : start + size] for start in range(0, len(group.items), size)]
        if len(runs[-1]) == 1:
            runs[-2:] = [runs[-2] + runs[-1]]
        made = []
        for run in runs:
            first, last = (tree[item - n].nodes if item >= n else range(item, item + 1) for item in (run[0], run[-1]))
            made.append(n + len(tree))
            tree.append(_Group(_run_name(tree, run, n), range(first.start, last.stop), run))
        group.items = made


def _run_name(tree: list[_Group], run: list[int], n: int) -> str:
    """The first and the last group in a run of neighbours; "" where all are operations."""
    names = [part.rsplit("/", 1)[-1] for item in run if item >= n for part in tree[item - n].name.split(" … ") if part]
    return " … ".join(dict.fromkeys([names[0], names[-1]])) if names else ""


def _numbered(tree: list[_Group], n: int) -> list[_Group]:
    """The groups that are still used, each before those inside it."""
    order, number = [0], {0: 0}
    for g in order:
        for item in tree[g].items:
            if item >= n:
                number[item - n] = len(order)
                order.append(item - n)
    for g in order:
        tree[g].items = [n + number[item - n] if item >= n else item for item in tree[g].items]
    return [tree[g] for g in order]


def _around(tree: list[_Group]) -> list[tuple[int, ...]]:
    """For each group itself and the groups around it, outermost first."""
    around: list[tuple[int, ...]] = []
    for g, group in enumerate(tree):
        around.append((*(around[group.parent] if g else ()), g))
    return around


def _homes(graph: Graph, home: list[int], around: list[tuple[int, ...]]) -> list[int]:
    """The group of each leaf: the innermost that contains all its uses; the whole graph for plain arguments."""
    found: list[int | None] = [None] * len(graph.leaves)
    for node in graph.nodes:
        for ref in node.inputs:
            if ref.node < 0:
                k, g = -1 - ref.node, home[node.id]
                before = found[k]
                found[k] = g if before is None else _shared(around[before], around[g])[-1]
    plain = [k for k, leaf in enumerate(graph.leaves) if leaf.kind == "input" and leaf.name.isidentifier()]
    if len(plain) <= OWN_LEAVES:
        for k in plain:
            found[k] = 0
    return [g or 0 for g in found]


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x for x, y in zip(a, b, strict=False) if x == y)


# ---------------------------------------------------------------- links


def _connect(
    tree: list[_Group], n: int, around: tuple[tuple[int, ...], tuple[int, ...]], target: int, slot: int, ref: Ref
) -> None:
    """Links an array out of the groups around its source and into those around its target."""
    out, into = around
    common = len(_shared(out, into))
    at: Key = ("item", ref.node)
    for g in reversed(out[common:]):
        tree[g].exits[ref] = None
        tree[g].links[at, ("exit", ref), ref, -1] = None
        at = ("item", n + g)
    for g, inner in zip(into[common - 1 :], [*into[common:], None], strict=True):
        goal: Key = ("item", target) if inner is None else ("item", n + inner)
        tree[g].links[at, goal, ref, slot if inner is None else -1] = None
        if inner is not None:
            tree[inner].entries[ref] = None
            at = ("entry", ref)


def _drawn(group: _Group, engine: str) -> Subgraph:
    items: list[Key] = [("item", item) for item in group.items]
    ports: list[Key] = [*(("entry", ref) for ref in group.entries), *(("exit", ref) for ref in group.exits)]
    keys = [*items, *ports]
    point = {key: p for p, key in enumerate(keys)}
    links = tuple(Link(point[u], point[v], ref, slot) for u, v, ref, slot in group.links)
    inner = len(group.items)
    first_exit = inner + len(group.entries)
    placed = layout(
        len(keys),
        [(link.source, link.target) for link in links],
        sources=[link.ref for link in links],
        top=range(inner, first_exit),
        bottom=range(first_exit, len(keys)),
        engine=engine,
    )
    entries, exits = tuple(group.entries), tuple(group.exits)
    return Subgraph(group.name, group.parent, group.nodes, tuple(group.items), entries, exits, links, placed)
