"""The walk through a network: where layers are, in which loops, and the same network of other layers."""

import jax
import numpy as np
import pytest
from draws import drawn, normal

from jaxnn import (
    bidirectional,
    dense,
    gru,
    leaf_layers,
    losses,
    map_layers,
    mlp,
    named,
    ordered_leaves,
    parallel,
    relu,
    repeat,
    residual,
    serial,
    share,
    sigmoid,
    tanh,
    with_rules,
)
from jaxnn.combinators.walk import Loop, leaves_of, places, rebuilt
from jaxnn.passes.parts import forward_pass, recursion, seed

REPEAT, SHARE = Loop(2, True), Loop(3, False)
NET = serial(
    dense(3),
    named("body", residual(serial(tanh, dense(3)), skip=repeat(share(dense(3), 3), 2))),
    parallel(share(named("inner", repeat(dense(3), 2)), 3), relu, join="sum"),
    dense(2),
)
EVERYTHING = [  # (index, label, kind, loops, whether it reads x)
    ((), "serial", "serial", (), True),
    ((0,), "dense_0", "dense", (), True),
    ((1,), "body", "residual", (), False),
    ((1, 0), "body/body", "serial", (), False),
    ((1, 0, 0), "body/body/tanh_0", "tanh", (), False),
    ((1, 0, 1), "body/body/dense_0", "dense", (), False),
    ((1, 1), "body/skip", "repeat", (), False),
    ((1, 1, 0), "body/skip", "share", (REPEAT,), False),
    ((1, 1, 0, 0), "body/skip", "dense", (REPEAT, SHARE), False),
    ((2,), "parallel_0", "parallel", (), False),
    ((2, 0), "parallel_0/share_0", "share", (), False),
    ((2, 0, 0), "parallel_0/share_0", "repeat", (SHARE,), False),
    ((2, 0, 0, 0), "parallel_0/share_0", "dense", (SHARE, REPEAT), False),
    ((2, 1), "parallel_0/relu_0", "relu", (), False),
    ((3,), "dense_1", "dense", (), False),
]


def test_places_of_everything():
    found = list(places(NET))
    assert [(p.index, p.label, p.layer.kind, p.loops, p.reads_x) for p in found] == EVERYTHING
    assert sorted(p.index for p in places(NET, inner_first=True)) == sorted(p.index for p in found)
    seen = set()
    for place in places(NET, inner_first=True):
        assert all((*place.index, i) in seen for i in range(len(place.layer.children)))
        seen.add(place.index)
    leaves = [p for p in found if p.is_leaf]
    assert list(leaves_of(NET)) == leaves
    assert list(leaf_layers(NET)) == [(p.path, p.layer) for p in leaves]
    for place in found:
        layer = NET
        for i in place.index:
            layer = layer.children[i]
        assert layer == place.layer


def test_who_reads_x():
    both = parallel(serial(dense(2), tanh), named("in", residual(serial(dense(3), relu), skip=dense(3))))
    for net, expected in (
        (both, {"serial_0", "serial_0/dense_0", "in", "in/body", "in/body/dense_0", "in/skip"}),
        (serial(repeat(serial(dense(3), tanh), 2), dense(3)), {"repeat_0", "repeat_0/dense_0"}),
        (bidirectional(gru(2)), {"forward", "backward"}),
    ):
        assert {place.label for place in places(net) if place.reads_x and place.path} == expected


def test_of_and_put():
    params, _ = drawn(NET, (3,))
    for place in leaves_of(NET):
        part = place.of(params, {})
        if place.layer.kind != "dense":
            assert part == {}
            assert place.put(params, {"w": 1}) is params
            continue
        stacks = tuple(loop.n for loop in place.loops if loop.stacks)
        assert part["w"].shape[:-2] == stacks
        other = place.put(params, "new")
        assert place.of(other) == "new"
        assert place.of(params) is part
        rest = [q for q in leaves_of(NET) if q.path != place.path]
        assert all(q.of(other, {}) == {} or q.of(other)["w"] is q.of(params)["w"] for q in rest)
        assert list(other) == list(params)
        assert jax.tree.structure(place.put(other, part)) == jax.tree.structure(params)
    (alone,) = leaves_of(dense(2))
    assert (alone.path, alone.label, alone.of("all"), alone.put("all", "new")) == ((), "dense", "all", "new")
    assert next(iter(leaves_of(named("one", dense(2))))).label == "one"
    assert next(iter(leaves_of(NET))).of((), None) is None


def test_rebuilt():
    visited = []

    def same(layer, place):
        assert layer == place.layer
        visited.append(place.index)
        return layer

    assert rebuilt(same, NET) == NET
    assert visited == [place.index for place in places(NET, inner_first=True)]
    swapped = rebuilt(lambda layer, place: sigmoid if place.layer.kind in ("tanh", "relu") else layer, NET)
    assert [layer.kind for _, layer in leaf_layers(swapped)] == [
        "dense", "sigmoid", "dense", "dense", "dense", "sigmoid", "dense",
    ]  # fmt: skip
    flat = rebuilt(lambda layer, place: dense(3) if place.layer.kind in ("residual", "parallel") else layer, NET)
    assert flat == serial(dense(3), named("body", dense(3)), dense(3), dense(2))
    at = (1, 1, 0, 0)
    one = rebuilt(lambda layer, place: dense(3, bias=False) if place.index == at else layer, NET)
    differ = [p.index for p, q in zip(places(NET), places(one), strict=True) if p.layer != q.layer]
    assert differ == [at[:i] for i in range(len(at) + 1)]
    assert [p.loops for p in places(one)] == [p.loops for p in places(NET)]
    assert map_layers(lambda layer: layer, NET) == NET
    with pytest.raises(TypeError, match="map_layers: expected layers"):
        rebuilt(lambda layer, place: None, NET)


def test_names_given_by_the_user_stay():
    assert map_layers(lambda layer: tanh, serial(named("first", relu), relu)).child_names == ("first", "tanh_0")
    other = map_layers(lambda layer: named("new", tanh), serial(named("first", relu), dense(1)).children[0])
    assert other.name == "new"


def test_what_is_replaced_stays_in_its_place():
    """`_replace` of a combinator keeps what the walk knows of it; `with_rules` makes a leaf of it."""
    for layer, loop in ((repeat(mlp([3]), 2), REPEAT), (share(mlp([3]), 3), SHARE)):
        other = layer._replace(backward=layer.backward)
        assert [(p.index, p.path, p.loops) for p in places(other)] == [
            (p.index, p.path, p.loops) for p in places(layer)
        ]
        assert next(leaves_of(other)).loops == (loop,)
        assert [p.loops for p in places(with_rules(layer, backward=layer.backward))] == [()]
    block = serial(dense(3), tanh)
    reads = lambda net: [p.reads_x for p in places(net)]
    assert reads(block._replace(backward=block.backward)) == reads(block) == [True, True, False]


def test_in_the_networks_own_order():
    net = serial(mlp([2] * 12), named("a", dense(1)))
    params, _ = drawn(net, (2,))
    numbers = [name.split("/")[1] for name in ordered_leaves(net, params) if name.startswith("serial")]
    assert numbers[::2] == [f"dense_{i}" for i in range(12)]
    assert list(ordered_leaves(net, params))[-2:] == ["a/b", "a/w"]


def test_places_are_where_notes_are():
    """Every leaf's δ stands at its place, with an axis for each loop around it."""
    params, state = drawn(NET, (3,))
    y, _, tapes = forward_pass(NET, params, state, normal(4, 3))
    delta = seed(losses.mse, y, np.zeros_like(y)).delta
    deltas = jax.eval_shape(lambda tapes: recursion(NET, params, tapes, delta, ("deltas",))[2], tapes)["deltas"]
    for place in leaves_of(NET):
        width = 2 if place.label == "dense_1" else 3
        assert place.of(deltas).shape == (*(loop.n for loop in place.loops), 4, width)
