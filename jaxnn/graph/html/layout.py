"""A layered drawing of a directed acyclic graph: every edge points down, few cross, and none runs through a node.

Three steps (Sugiyama, Tagawa & Toda 1981): a layer for each node; an order within each layer, with bend points where
an edge passes through; then coordinates, by a least-squares fit. The order comes from a few barycentre sweeps, or from
igraph where that is installed and finds one in which fewer edges cross.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

GAP = 0.25  # between neighbours in a layer, where a node is 1 wide
BEND = 0.1  # the width that is kept free for a passing edge
SWEEPS = 8  # down and up again; most graphs are settled after three or four
STIFF = 8.0  # how much more a long edge wants to be straight than a node wants to stand below its inputs
MOST_BENDS = 20_000  # above, the longest edges run straight
MOST_FOR_IGRAPH = 3_000  # nodes and bend points: its sweeps take seconds above

Rows = list[list[int]]
Edge = tuple[int, int]


class Layout(NamedTuple):
    """Where nodes and edges are drawn. Points are the nodes, then the bend points.

    Attributes:
        x: of each point, its centre.
        layer: of each point; layer 0 is at the top.
        bends: for each edge the points that it passes between its nodes, one a layer; () also for the longest edges of
            a graph that would have more than MOST_BENDS of them. Edges of one source share them while they run
            together.
    """

    x: tuple[float, ...]
    layer: tuple[int, ...]
    bends: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> list[list[int]]:
        """The points of each layer from left to right."""
        rows: Rows = [[] for _ in range(max(self.layer, default=-1) + 1)]
        for point in sorted(range(len(self.x)), key=self.x.__getitem__):
            rows[self.layer[point]].append(point)
        return rows


def layout(
    count: int,
    edges: Sequence[Edge],
    *,
    widths: Sequence[float] = (),
    sources: Sequence[Hashable] = (),
    top: Sequence[int] = (),
    bottom: Sequence[int] = (),
    engine: str = "",
) -> Layout:
    """Nodes 0 … count − 1 and edges (from, to) in layers.

    Args:
        count: how many nodes.
        edges: from above to below; several between the same nodes are allowed.
        widths: of each node; 1 by default.
        sources: for each edge what it carries: edges that carry the same from one node share their bend points. By
            default that is the node.
        top: nodes that stand alone in the first layer.
        bottom: nodes that stand alone in the last.
        engine: whose order, "igraph" or "plain"; by default the one in which fewer edges cross, where igraph is
            installed and the graph has no more than MOST_FOR_IGRAPH points.

    Raises:
        ValueError: if the edges run in a circle, or engine is another.

    Source: Sugiyama, Tagawa & Toda (1981); layers: Eades & Sugiyama (1990); the fit: Ayer et al. (1955).

    >>> drawn = layout(4, [(0, 1), (1, 2), (0, 2), (3, 2)])
    >>> drawn.layer[:4], drawn.bends  # node 3 has moved down to the node that it goes into
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
    rows = min(found, key=lambda rows: crossings(rows, below))
    x = _fit(rows, [*(widths or [1.0] * count), *[BEND] * (len(layer) - count)], above, below, count)
    return Layout(tuple(x), tuple(layer), tuple(bends))


def layers(count: int, edges: Sequence[Edge], top: Sequence[int] = (), bottom: Sequence[int] = ()) -> list[int]:
    """A layer for each node, by the longest path to it; nodes without inputs stand just above where they are used.

    Raises:
        ValueError: if the edges run in a circle.
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
        raise ValueError("graph.layout: the edges run in a circle")
    for u in set(first) - set(top):
        layer[u] = min((layer[v] for v in below[u]), default=layer[u] + 1) - 1
    if bottom:
        last = max(layer) if count == len(bottom) else max(layer[u] for u in set(range(count)) - set(bottom)) + 1
        for u in bottom:
            layer[u] = max(last, floor)
    return layer


# ---------------------------------------------------------------- bends


def _bent(layer: list[int], edges: Sequence[Edge], sources: Sequence[Hashable]) -> tuple[list[tuple[int, ...]], Rows]:
    """The bends of each edge, and the links from layer to layer: above[p], the points that p hangs from.

    Appends the bends' layers to `layer`.
    """
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


# ---------------------------------------------------------------- order


def _by_igraph(layer: list[int], above: Rows) -> Rows:
    try:
        import igraph
    except ImportError as error:
        raise ImportError("graph.layout: engine='igraph' needs igraph: pip install 'jaxnn[graph]'") from error

    drawn = igraph.Graph(n=len(layer), edges=[(u, v) for v, us in enumerate(above) for u in us], directed=True)
    x = [point[0] for point in drawn.layout_sugiyama(layers=layer).coords]
    return Layout(tuple(x), tuple(layer), ()).rows


def _below(above: Rows) -> Rows:
    below: Rows = [[] for _ in above]
    for v, us in enumerate(above):
        for u in us:
            below[u].append(v)
    return below


def _swept(layer: list[int], above: Rows, below: Rows) -> Rows:
    """Barycentre sweeps, the best of what they pass through."""
    rows: Rows = [[] for _ in range(max(layer, default=-1) + 1)]
    for point in range(len(layer)):
        rows[layer[point]].append(point)
    best, fewest = [list(row) for row in rows], crossings(rows, below)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        down = sweep % 2 == 0
        others = above if down else below
        for row in rows if down else reversed(rows):
            _sort(row, rows, layer, others, -1 if down else 1)
        met = crossings(rows, below)
        if met < fewest:
            best, fewest = [list(row) for row in rows], met
    return best


def _sort(row: list[int], rows: Rows, layer: list[int], others: Rows, step: int) -> None:
    """Sorts a layer by the mean place of what its points hang from; points without any keep their place."""
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
    """How many pairs of links cross: inversions, counted in a Fenwick tree (Barth, Jünger & Mutzel 2002)."""
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


# ---------------------------------------------------------------- coordinates


def _fit(rows: Rows, size: list[float], above: Rows, below: Rows, count: int) -> list[float]:
    """Coordinates that bring every point near the mean of its neighbours, the order and the gaps kept."""
    x = [0.0] * len(size)
    for row in rows:
        _apart(row, x, [0.0] * len(row), [1.0] * len(row), size)
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted, weights = [], []
            for p in row:
                near = above[p] if down else below[p]  # first from one side, to untangle; then from both, to settle
                if sweep >= SWEEPS or not near:
                    near = above[p] + below[p]
                pulls = [(1.0 if min(p, q) < count else STIFF, x[q]) for q in near] or [(1.0, x[p])]
                weights.append(sum(w for w, _ in pulls))
                wanted.append(sum(w * at for w, at in pulls) / weights[-1])
            _apart(row, x, wanted, weights, size)
    return x


def _apart(row: list[int], x: list[float], wanted: list[float], weights: list[float], size: list[float]) -> None:
    """Sets x[row] to the least-squares nearest to `wanted` at which no two of the row overlap.

    Σ w (x − wanted)² under x[i + 1] − x[i] ≥ gap is isotonic regression after the gaps are taken off; the pooled
    blocks are its exact solution (Ayer et al. 1955).
    """
    offset = 0.0
    blocks: list[tuple[float, float, int]] = []  # weight, mean, how many
    offsets = []
    for i, p in enumerate(row):
        offset += (size[row[i - 1]] + size[p]) / 2 + GAP if i else 0.0
        offsets.append(offset)
        weight, mean, many = weights[i], wanted[i] - offset, 1
        while blocks and blocks[-1][1] >= mean:
            w, m, n = blocks.pop()
            mean = (w * m + weight * mean) / (w + weight)
            weight, many = w + weight, n + many
        blocks.append((weight, mean, many))
    means = [mean for _, mean, many in blocks for _ in range(many)]
    for p, mean, offset in zip(row, means, offsets, strict=True):
        x[p] = mean + offset
