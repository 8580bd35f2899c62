"""A layered order of a directed acyclic graph: every edge points down, few cross, and none runs through a node.

Two steps (Sugiyama, Tagawa & Toda 1981): a layer for each node, and an order within each layer, with bend points where
an edge passes through. The order comes from a few barycentre sweeps, or from igraph if it is installed and finds an
order with fewer crossings. The third step, coordinates, is the page's own: it knows how wide text is.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

SWEEPS = 8  # down and up alternately; most graphs settle after three or four
MOST_BENDS = 20_000  # beyond these, the longest edges run straight
MOST_FOR_IGRAPH = 3_000  # nodes and bend points: with more its sweeps take seconds

Rows = list[list[int]]
Edge = tuple[int, int]


class Layout(NamedTuple):
    """The order in which nodes and edges are drawn. Points are the nodes, then the bend points."""

    layer: tuple[int, ...]  # of each point; layer 0 is at the top
    rows: Rows  # the points of each layer from left to right
    # for each edge the points that it passes between its nodes, one per layer; also () for the longest edges of a graph
    # that would have more than MOST_BENDS of them. Edges from one source share bend points as long as they run together
    bends: tuple[tuple[int, ...], ...]


def layout(
    count: int,
    edges: Sequence[Edge],
    *,
    sources: Sequence[Hashable] = (),
    top: Sequence[int] = (),
    bottom: Sequence[int] = (),
    engine: str = "",
) -> Layout:
    """Nodes 0 … count − 1 and edges (from, to) in layers.

    Args:
        count: the number of nodes.
        edges: from above to below; several between the same two nodes are allowed.
        sources: for each edge what it carries: edges that carry the same array from one node share their bend points.
            By default, all edges of a node do.
        top: nodes that are alone in the first layer.
        bottom: nodes that are alone in the last layer.
        engine: "igraph" or "plain"; by default whichever order has fewer crossings, if igraph is installed and the
            graph has at most MOST_FOR_IGRAPH points.

    Raises:
        ValueError: if the edges contain a cycle, or engine is another.

    Source: Sugiyama, Tagawa & Toda (1981); layers: Eades & Sugiyama (1990).

    >>> drawn = layout(4, [(0, 1), (1, 2), (0, 2), (3, 2)])
    >>> drawn.layer[:4], drawn.bends  # node 3 is just above its only successor
    ((0, 1, 2, 1), ((), (), (4,), ()))
    """
    if engine not in ("", "igraph", "plain"):
        raise ValueError(f"graph.layout: engine is 'igraph' or 'plain', not {engine!r}")
    layer = layers(count, edges, top, bottom)
    bends, above = _bent(layer, edges, sources or [u for u, _ in edges])
    below = _below(above)
    found = []
    if engine != "igraph":
        found.append(_swept(layer, above, below))
    if engine == "igraph" or (not engine and len(layer) <= MOST_FOR_IGRAPH and importlib.util.find_spec("igraph")):
        found.append(_by_igraph(layer, above))
    return Layout(tuple(layer), min(found, key=lambda rows: crossings(rows, below)), tuple(bends))


def layers(count: int, edges: Sequence[Edge], top: Sequence[int] = (), bottom: Sequence[int] = ()) -> list[int]:
    """A layer for each node, by the longest path to it; ValueError if the edges contain a cycle.

    Nodes without inputs are just above their first use.
    """
    below: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for u, v in edges:
        below[u].append(v)
        waiting[v] += 1
    first = [u for u in range(count) if waiting[u] == 0]
    order, layer, floor = list(first), [0] * count, int(bool(top))
    for u in first:
        layer[u] = 0 if u in set(top) else floor
    for u in order:
        for v in below[u]:
            layer[v] = max(layer[v], layer[u] + 1, floor)
            waiting[v] -= 1
            if waiting[v] == 0:
                order.append(v)
    if len(order) < count:
        raise ValueError("graph.layout: the edges contain a cycle")
    for u in set(first) - set(top):
        layer[u] = min((layer[v] for v in below[u]), default=layer[u] + 1) - 1
    if bottom:
        last = max(layer) if count == len(bottom) else max(layer[u] for u in set(range(count)) - set(bottom)) + 1
        for u in bottom:
            layer[u] = max(last, floor)
    return layer


def _bent(layer: list[int], edges: Sequence[Edge], sources: Sequence[Hashable]) -> tuple[list[tuple[int, ...]], Rows]:
    """The bends of each edge, appended to `layer`, and above[p], the neighbours of point p in the layer above."""
    spans = sorted((layer[v] - layer[u] - 1, e) for e, (u, v) in enumerate(edges))
    chains: dict[tuple[int, Hashable], list[int]] = {}
    bends: list[tuple[int, ...]] = [()] * len(edges)
    pairs: dict[Edge, None] = {}
    room = MOST_BENDS
    for span, e in spans:
        u, v = edges[e]
        chain = chains.setdefault((u, sources[e]), [])
        missing = span - len(chain)
        if missing > room:
            continue
        for _ in range(missing):
            pairs[chain[-1] if chain else u, len(layer)] = None
            chain.append(len(layer))
            layer.append(layer[u] + len(chain))
            room -= 1
        bends[e] = tuple(chain[:span])
        pairs[chain[span - 1] if span else u, v] = None
    above: Rows = [[] for _ in layer]
    for u, v in pairs:
        above[v].append(u)
    return bends, above


def _by_igraph(layer: list[int], above: Rows) -> Rows:
    try:
        import igraph
    except ImportError as error:
        raise ImportError("graph.layout: engine='igraph' needs igraph: pip install igraph") from error

    drawn = igraph.Graph(n=len(layer), edges=[(u, v) for v, us in enumerate(above) for u in us], directed=True)
    x = [point[0] for point in drawn.layout_sugiyama(layers=layer).coords]
    return _rows(layer, sorted(range(len(layer)), key=x.__getitem__))


def _rows(layer: Sequence[int], points: Sequence[int]) -> Rows:
    """The points of each layer, in the order in which they are given."""
    rows: Rows = [[] for _ in range(max(layer, default=-1) + 1)]
    for point in points:
        rows[layer[point]].append(point)
    return rows


def _below(above: Rows) -> Rows:
    below: Rows = [[] for _ in above]
    for v, us in enumerate(above):
        for u in us:
            below[u].append(v)
    return below


def _swept(layer: list[int], above: Rows, below: Rows) -> Rows:
    """The best order met in a few barycentre sweeps."""
    rows = _rows(layer, range(len(layer)))
    best, fewest = [list(row) for row in rows], crossings(rows, below)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        down = sweep % 2 == 0
        others = above if down else below
        for row in rows if down else reversed(rows):
            _sort(row, rows, layer, others, -1 if down else 1)
        crossed = crossings(rows, below)
        if crossed < fewest:
            best, fewest = [list(row) for row in rows], crossed
    return best


def _sort(row: list[int], rows: Rows, layer: list[int], others: Rows, step: int) -> None:
    """Sorts a layer by the mean place of its points' neighbours; points without any keep their place."""
    if not row or not 0 <= layer[row[0]] + step < len(rows):
        return
    near = rows[layer[row[0]] + step]
    place = {point: i / max(len(near) - 1, 1) for i, point in enumerate(near)}
    own = {point: i / max(len(row) - 1, 1) for i, point in enumerate(row)}

    def mean(point: int) -> float:
        found = [place[other] for other in others[point] if other in place]
        return sum(found) / len(found) if found else own[point]

    row.sort(key=mean)


def crossings(rows: Rows, below: Rows) -> int:
    """The number of crossings: inversions, counted with a Fenwick tree (Barth, Jünger & Mutzel 2002)."""
    total = 0
    for upper, lower in itertools.pairwise(rows):
        place = {point: i for i, point in enumerate(lower)}
        tree, seen = [0] * (len(lower) + 1), 0
        for point in upper:
            ends = sorted(place[v] for v in below[point] if v in place)
            for end in ends:
                i, left = end + 1, 0
                while i:
                    left += tree[i]
                    i -= i & -i
                total += seen - left
            for end in ends:
                i, seen = end + 1, seen + 1
                while i < len(tree):
                    tree[i] += 1
                    i += i & -i
    return total
