"""Groups of operations, and the graph in which some of them are folded to one item each.

A group is a run of consecutive operations inside one scope (a layer, a jitted function, an iteration). Runs are
contiguous in forward order, so a folded graph is again acyclic and keeps that order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from jaxnn.graph.nodes import Graph, Ref

SHOWN = 8  # groups that an error names


class Group(NamedTuple):
    """A run of operations inside one scope."""

    key: str  # its path, "residual_0/dense_0"; a scope entered again is "relu#2", "relu#3", … in forward order
    path: tuple[str, ...]  # names of the scopes, outermost first, its own last
    nodes: range  # the ids of its operations


class Item(NamedTuple):
    """An operation, or a folded group."""

    key: str  # the group's, or the operation's number as a string
    group: Group | None  # the group that is folded here; None for an operation
    path: tuple[str, ...]  # the open scopes around it, outermost first
    nodes: range  # the ids of its operations, one for an operation
    # an operation's outputs; of a group the arrays that leave it, or its last operation's if none does
    outputs: tuple[Ref, ...]


class Edge(NamedTuple):
    """The arrays that pass from an item or a leaf to another item; there is at most one edge between two items."""

    source: int  # an index in `Folded.items`; −1 − k for leaf k of the graph
    target: int  # an index in `Folded.items`
    # for every array, (the id of the operation that takes it, the number of the input). The array is
    # `graph.nodes[id].inputs[i]`, and what is passed back along it is `graph.nodes[id].passed[i]`
    uses: tuple[tuple[int, int], ...]


class Folded(NamedTuple):
    """The visible part of a graph."""

    items: tuple[Item, ...]  # in forward order
    edges: tuple[Edge, ...]  # between items, by target; without those inside a folded group
    opened: tuple[Group, ...]  # the open groups, outermost first


def groups(graph: Graph) -> tuple[Group, ...]:
    """All groups in forward order, each before those inside it."""
    found: list[tuple[tuple[str, ...], int]] = []  # path and start
    stops: list[int] = []
    inside: list[int] = []  # the groups around the operation, as indices in found
    for i, shared in enumerate(_shared(graph)):
        for ended in inside[shared:]:
            stops[ended] = i
        del inside[shared:]
        path = graph.nodes[i].group
        for depth in range(shared, len(path)):
            inside.append(len(found))
            found.append((path[: depth + 1], i))
            stops.append(len(graph.nodes))
    seen: Counter[tuple[str, ...]] = Counter()
    made = []
    for (path, start), stop in zip(found, stops, strict=True):
        seen[path] += 1
        again = f"#{seen[path]}" if seen[path] > 1 else ""
        made.append(Group("/".join(path) + again, path, range(start, stop)))
    return tuple(made)


def fold(graph: Graph, unfold: bool | str | Iterable[str] = (), *, most: int = 0) -> Folded:
    """The visible items of a graph, and the edges between them.

    Groups are opened level by level, from the outermost, as long as there are at most `most` items; then those that
    `unfold` names, with the groups around them. A group of one operation, and one that contains the whole graph, is
    always open.

    Args:
        graph: the graph.
        unfold: keys of groups, "residual_0" or "residual_0/relu_0#2"; a path without a number opens all groups with
            that path. True opens all groups.
        most: the largest number of items up to which levels are opened.

    Raises:
        ValueError: if there is no group of that name; the message lists the existing ones.
    """
    everything = groups(graph)
    wanted = _wanted(graph, everything, unfold)
    level = _level(graph, most)
    opened = [
        group
        for k, group in enumerate(everything)
        if len(group.path) <= level or len(group.nodes) == 1 or wanted is None or k in wanted
    ]
    return _folded(graph, everything, opened)


def _wanted(graph: Graph, everything: tuple[Group, ...], unfold: bool | str | Iterable[str]) -> set[int] | None:
    """The indices of the groups to open and of those around them; None for all."""
    if isinstance(unfold, bool):
        return None if unfold else set()
    named: dict[str, list[tuple[int, ...]]] = {}  # the groups of each key or path, with those around them
    inside: list[int] = []
    for k, group in enumerate(everything):
        inside[len(group.path) - 1 :] = [k]
        for name in {group.key, "/".join(group.path)}:
            named.setdefault(name, []).append(tuple(inside))
    asked = [unfold] if isinstance(unfold, str) else list(unfold)
    unknown = [name for name in asked if name not in named]
    if unknown:
        keys = [group.key for group in everything]
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        has = f"has {', '.join(map(repr, keys[:SHOWN]))}{more}" if keys else "has no groups"
        raise ValueError(f"graph: no group {unknown[0]!r} to unfold; the graph of {graph.name} {has}")
    return {k for name in asked for around in named[name] for k in around}


def _shared(graph: Graph) -> list[int]:
    """For each operation the number of scopes shared with the previous one; 0 for the first."""
    shared: list[int] = []
    before: tuple[str, ...] = ()
    for node in graph.nodes:
        same = 0
        while same < min(len(node.group), len(before)) and node.group[same] == before[same]:
            same += 1
        shared.append(same)
        before = node.group
    return shared


def _level(graph: Graph, most: int) -> int:
    """The number of levels of groups that are opened."""
    shared = _shared(graph)
    deepest = max((len(node.group) for node in graph.nodes), default=0)
    counts = Counter(shared)
    items = [sum(counts[s] for s in range(level + 1)) for level in range(deepest + 1)]  # with that many levels open
    level = max((level for level, count in enumerate(items) if count <= most), default=0)
    while level < deepest and items[level] == 1:
        level += 1
    return level


def _folded(graph: Graph, everything: tuple[Group, ...], opened: list[Group]) -> Folded:
    keys = {group.key for group in opened}
    closed: dict[int, Group] = {}  # the outermost folded group that begins at each operation
    for group in everything:
        if group.key not in keys:
            closed.setdefault(group.nodes.start, group)
    spans: list[tuple[Group | None, range]] = []
    i = 0
    while i < len(graph.nodes):
        spans.append((closed[i], closed[i].nodes) if i in closed else (None, range(i, i + 1)))
        i = spans[-1][1].stop
    place = [k for k, (_, nodes) in enumerate(spans) for _ in nodes]  # the item of each operation
    leaving: list[dict[Ref, None]] = [{} for _ in spans]
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for node in graph.nodes:
        for position, ref in enumerate(node.inputs):
            source, target = (ref.node if ref.node < 0 else place[ref.node]), place[node.id]
            if source != target:
                edges.setdefault((source, target), []).append((node.id, position))
                if source >= 0:
                    leaving[source][ref] = None
    for ref in graph.outputs:
        if ref.node >= 0:
            leaving[place[ref.node]][ref] = None
    items = []
    for (folded, nodes), left in zip(spans, leaving, strict=True):
        last = graph.nodes[nodes[-1]]
        if folded is None or not left:
            left = dict.fromkeys(Ref(last.id, k) for k in range(len(last.values)))
        path = folded.path[:-1] if folded else last.group
        items.append(Item(folded.key if folded else str(last.id), folded, path, nodes, tuple(left)))
    visible = [spans[place[group.nodes.start]][0] for group in opened]  # the folded group at their first operation
    shown = [g for g, first in zip(opened, visible, strict=True) if first is None or len(first.path) > len(g.path)]
    return Folded(tuple(items), tuple(Edge(s, t, tuple(uses)) for (s, t), uses in edges.items()), tuple(shown))
