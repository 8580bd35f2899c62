"""Layered drawings: edges point down and few of them cross, in igraph's order and in our own."""

import importlib.util
import itertools
import random
import sys

import pytest

from jaxnn.graph.html.layout import MOST_BENDS, crossings, layers, layout

ENGINES = ["plain", pytest.param("igraph", marks=pytest.mark.skipif(
    importlib.util.find_spec("igraph") is None, reason="igraph is not installed"
))]  # fmt: skip


def dag(count, more, seed):
    """A chain with `more` forward edges anywhere."""
    draw = random.Random(seed)
    return [(i, i + 1) for i in range(count - 1)] + [tuple(sorted(draw.sample(range(count), 2))) for _ in range(more)]


GRAPHS = {
    "nothing": (0, []),
    "one node": (1, []),
    "no edges": (4, []),
    "twice the same": (2, [(0, 1), (0, 1)]),
    "diamond": (4, [(0, 1), (0, 2), (1, 3), (2, 3)]),
    "star": (9, [(0, i) for i in range(1, 9)]),
    "skip": (5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (0, 3)]),
    "two parts": (6, [(0, 1), (1, 2), (3, 4), (4, 5), (3, 5)]),
    "random": (40, dag(40, 25, 0)),
    "bipartite": (10, [(i, 5 + (3 * i + k) % 5) for i in range(5) for k in range(2)]),
}


def links(edges, drawn):
    """The points below each point that it is linked to."""
    below = [set() for _ in drawn.layer]
    for (u, v), bends in zip(edges, drawn.bends, strict=True):
        path = [u, *bends, v]
        for p, q in itertools.pairwise(path):
            below[p].add(q)
    return [sorted(found) for found in below]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GRAPHS)
def test_edges_point_down_and_every_point_has_one_place(name, engine):
    count, edges = GRAPHS[name]
    drawn = layout(count, edges, engine=engine)
    assert len(drawn.layer) >= count
    for (u, v), bends in zip(edges, drawn.bends, strict=True):
        assert [drawn.layer[p] for p in (u, *bends, v)] == list(range(drawn.layer[u], drawn.layer[v] + 1))
    assert sorted(itertools.chain.from_iterable(drawn.rows)) == list(range(len(drawn.layer)))
    assert all(drawn.layer[point] == r for r, row in enumerate(drawn.rows) for point in row)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_passes_through_a_border_stands_alone(engine):
    drawn = layout(5, [(0, 2), (1, 3), (2, 3), (3, 4), (2, 4)], top=(0, 1), bottom=(4,), engine=engine)
    assert sorted(drawn.rows[0]) == [0, 1]
    assert drawn.rows[-1] == [4]
    assert layers(3, [(0, 1), (2, 1)], top=(0,)) == [0, 2, 1]  # node 2 is no port: it begins below them
    assert layers(2, [], top=(0,), bottom=(1,)) == [0, 1]


def test_what_has_no_inputs_stands_just_above_its_use():
    assert layers(5, [(0, 1), (1, 2), (2, 3), (4, 3)]) == [0, 1, 2, 3, 2]


def test_crossings_are_counted():
    draw = random.Random(1)
    upper, lower = list(range(7)), list(range(7, 14))
    below = [sorted({draw.choice(lower) for _ in range(3)}) if p < 7 else [] for p in range(14)]
    ends = [(u, v) for u in upper for v in below[u]]
    by_pairs = sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
    assert crossings([upper, lower], below) == by_pairs > 0


@pytest.mark.parametrize("name", ["star", "random", "skip"])
def test_the_better_order_is_taken(name):
    pytest.importorskip("igraph")
    count, edges = GRAPHS[name]
    met = {}
    for engine in ("", "plain", "igraph"):
        drawn = layout(count, edges, engine=engine)
        met[engine] = crossings(drawn.rows, links(edges, drawn))
    assert met[""] == min(met["plain"], met["igraph"])
    assert name == "random" or met[""] == 0


def test_without_igraph_the_order_is_our_own(monkeypatch):
    count, edges = GRAPHS["random"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "igraph", None)  # an import would now fail
    assert layout(count, edges) == layout(count, edges, engine="plain")


def test_edges_of_one_source_run_together():
    drawn = layout(5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 3), (0, 4)])
    near, far = drawn.bends[4], drawn.bends[5]
    assert far[: len(near)] == near
    assert len(near) == 2
    apart = layout(5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 3), (0, 4)], sources=[0, 1, 2, 3, "a", "b"])
    assert not set(apart.bends[4]) & set(apart.bends[5])


def test_five_thousand_nodes():
    edges = [(i, i + 1) for i in range(4999)] + [(i, 4999 - i) for i in range(1, 2000, 40)] + [(0, 4999)] * 2
    drawn = layout(5000, edges)
    assert max(drawn.layer) == 4999
    assert 5000 < len(drawn.layer) <= 5000 + MOST_BENDS
    long = [e for e, (u, v) in enumerate(edges) if v > u + 1]
    assert any(drawn.bends[e] for e in long)
    assert any(not drawn.bends[e] for e in long)  # the longest run straight


def test_bad_input():
    with pytest.raises(ValueError, match="the edges contain a cycle"):
        layout(3, [(0, 1), (1, 2), (2, 1)])
    with pytest.raises(ValueError, match="engine is 'igraph' or 'plain', not 'dot'"):
        layout(1, [], engine="dot")
