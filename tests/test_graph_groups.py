"""Folded graphs: every operation is visible once, in order, and so is every edge between items."""

import jax
import jax.numpy as jnp
import pytest

from jaxnn import dense, graph, losses, relu, residual, serial
from jaxnn.graph.groups import fold, groups

NET = serial(dense(3), relu, residual(serial(dense(3), relu)), dense(2))
LOSS = "softmax_cross_entropy"  # a group, as the layers are


@pytest.fixture(scope="module")
def traced():
    params, state = NET.init(jax.random.key(0), (3,))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    labels = jnp.arange(4, dtype=jnp.int32) % 2
    return graph.trace(
        lambda p: losses.softmax_cross_entropy.value(NET.forward(p, state, x)[0], labels).mean(), backward=False
    )(params)


@pytest.mark.parametrize("unfold", [(), ("residual_0",), ("residual_0/dense_0", "relu_0"), True])
@pytest.mark.parametrize("most", [0, 30, 1000])
def test_every_operation_and_every_use_is_in_one_place(traced, unfold, most):
    folded = fold(traced, unfold, most=most)
    assert [i for item in folded.items for i in item.nodes] == list(range(len(traced.nodes)))
    place = {i: k for k, item in enumerate(folded.items) for i in item.nodes}
    uses = [use for edge in folded.edges for use in edge.uses]
    across = [
        (node.id, position)
        for node in traced.nodes
        for position, ref in enumerate(node.inputs)
        if ref.node < 0 or place[ref.node] != place[node.id]
    ]
    assert sorted(uses) == across
    assert len({(edge.source, edge.target) for edge in folded.edges}) == len(folded.edges)
    for source, target, through in folded.edges:
        assert source < target  # acyclic, in the forward order
        for i, position in through:
            ref = traced.nodes[i].inputs[position]
            assert place[i] == target
            assert source == (ref.node if ref.node < 0 else place[ref.node])
            assert ref.node < 0 or ref in folded.items[source].outputs


def test_groups_are_contiguous_nested_and_named_once(traced):
    found = groups(traced)
    assert len({group.key for group in found}) == len(found)
    for group in found:
        for i in group.nodes:
            assert traced.nodes[i].group[: len(group.path)] == group.path
        for outside in (group.nodes.start - 1, group.nodes.stop):
            if 0 <= outside < len(traced.nodes):
                assert traced.nodes[outside].group[: len(group.path)] != group.path
    keys = [group.key for group in found]
    assert {"dense_0", "residual_0", "residual_0/dense_0", LOSS, f"{LOSS}/_where", f"{LOSS}/_where#2"} <= set(keys)


def test_folded_unfolded_and_by_name(traced):
    keys = [item.key for item in fold(traced).items if item.group]
    assert keys[:4] == ["dense_0", "relu_0", "residual_0", "dense_1"]
    opened = fold(traced, "residual_0")
    assert {"residual_0/dense_0", "residual_0/relu_0"} <= {item.key for item in opened.items}
    assert [group.key for group in opened.opened] == ["residual_0"]
    inner = fold(traced, ("residual_0/dense_0",))  # what is around it is opened too
    assert {group.key for group in inner.opened} == {"residual_0", "residual_0/dense_0"}
    assert not any(item.group for item in fold(traced, True).items)
    assert all(item.path == traced.nodes[item.nodes[0]].group for item in fold(traced, True).items)


def test_a_scope_entered_again_is_opened_alone_or_with_the_first(traced):
    def opened(unfold):
        return {group.key for group in fold(traced, unfold).opened}

    assert opened(f"{LOSS}/_where#2") == {LOSS, f"{LOSS}/_where#2"}
    assert opened(f"{LOSS}/_where") >= {f"{LOSS}/_where", f"{LOSS}/_where#2"}


def test_levels_open_while_there_is_room(traced):
    sizes = [len(fold(traced, most=most).items) for most in (0, len(traced.nodes) - 1, len(traced.nodes))]
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(traced.nodes)
    assert sizes[1] < len(traced.nodes)


def test_a_group_of_one_operation_and_one_around_everything_are_open():
    def f(x):
        with jax.named_scope("all"):
            with jax.named_scope("one"):
                x = jnp.sin(x)
            with jax.named_scope("two"):
                return jnp.cos(jnp.exp(x))

    traced = graph.trace(f)(1.0)
    assert [(item.key, item.path) for item in fold(traced).items] == [("0", ("all", "one")), ("all/two", ("all",))]
    assert [group.key for group in fold(traced).opened] == ["all", "all/one"]


def test_a_group_shows_what_leaves_it_or_its_last_array():
    def f(x):
        with jax.named_scope("used"):
            a, b = jnp.sin(x), jnp.exp(x)
            jnp.cos(a)
        with jax.named_scope("unused"):
            jnp.cos(jnp.exp(x))
        return a * b

    used, unused, _ = fold(graph.trace(f)(1.0)).items
    assert [ref.node for ref in used.outputs] == [0, 1]
    assert [ref.node for ref in unused.outputs] == [4]


def test_a_graph_without_operations_or_groups():
    assert fold(graph.trace(lambda x: x)(1.0)) == ((), (), ())
    assert len(fold(graph.trace(lambda x: x * x + 1)(1.0)).items) == 2


def test_an_unknown_group_is_refused_with_those_that_there_are(traced):
    with pytest.raises(
        ValueError, match=r"no group 'dense' to unfold; the graph of <lambda> has 'dense_0', 'relu_0'.*"
    ):
        fold(traced, "dense")
    with pytest.raises(ValueError, match="has no groups"):
        fold(graph.trace(jnp.sin)(1.0), ("a",))
