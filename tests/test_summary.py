"""Summaries: rows, counts and shapes of known networks; FLOPs against hand counts and networks without loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxnn
from jaxnn import Layer, dense, flatten, mlp, named, parallel, relu, repeat, residual, serial, share, summary, tanh

LOOPS_AGREE = 0.02  # without a loop XLA shares a few elementwise operations between the passes


def by_path(result):
    return {row.path: row for row in result.rows}


def test_a_known_network():
    result = summary(mlp([30, 10], jaxnn.sigmoid), (784,), batch_size=None)
    assert [(row.path, row.kind, row.depth, row.params) for row in result.rows] == [
        ("dense_0", "dense", 0, 784 * 30 + 30),
        ("sigmoid_0", "sigmoid", 0, 0),
        ("dense_1", "dense", 0, 30 * 10 + 10),
    ]
    assert [row.output.shape for row in result.rows] == [(1, 30), (1, 30), (1, 10)]
    assert (result.params, result.state, result.bytes, result.cost) == (23_860, 0, 4 * 23_860, None)
    assert str(result).splitlines()[2:4] == ["dense_0     N × 30        23,550", "sigmoid_0   N × 30"]
    assert str(result).endswith("23,860 parameters, 95.4 kB")


def test_bytes_follow_the_dtype():
    assert summary(dense(3), (2,), batch_size=None, dtype=jnp.bfloat16).bytes == 2 * 9


NET = serial(
    flatten(),
    named("encoder", dense(6)),
    repeat(residual(serial(dense(6), relu)), 5),
    share(serial(dense(6), tanh), 3),
    parallel(dense(3), serial(dense(4), tanh)),
    residual(dense(2), skip=dense(2)),
    residual(dense(2)),
)


def test_every_count_is_that_of_the_parameters_there():
    result = summary(NET, (2, 3, 1), batch_size=None)
    params, _ = jax.eval_shape(lambda key: NET.init(key, (2, 3, 1)), jax.random.key(0))
    for path, row in by_path(result).items():
        part = params
        for name in path.split("/"):
            part = part.get(name, {})
        assert row.params == sum(leaf.size for leaf in jax.tree.leaves(part)), path
    assert result.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert result.params == sum(row.params for row in result.rows if row.depth == 0)


def test_combinators_are_indented_and_loops_counted():
    rows = by_path(summary(NET, (2, 3, 1), batch_size=None))
    assert rows["encoder"].kind == "dense"
    assert (rows["repeat_0"].kind, rows["repeat_0"].params) == ("5 × residual", 5 * 42)
    assert (rows["repeat_0/dense_0"].params, rows["repeat_0/dense_0"].depth) == (5 * 42, 1)
    assert (rows["share_0"].kind, rows["share_0"].params) == ("3 × tied serial", 42)
    assert rows["parallel_0"].output.shape == (1, 7)
    assert rows["parallel_0/serial_0/tanh_0"].depth == 2
    assert rows["residual_0/skip"].kind == "dense"
    assert rows["residual_1"].kind == "residual of dense"
    text = str(summary(NET, (2, 3, 1), batch_size=None))
    assert "\nencoder (dense) " in text
    assert "\nrepeat_0 (5 × residual) " in text
    assert "\n  dense_0 " in text
    assert "\n    tanh_0 " in text


def test_shapes_are_those_of_the_outputs():
    def run(key, x):
        return NET.forward(*NET.init(key, (2, 3, 1)), x)[0]

    y = jax.eval_shape(run, jax.random.key(0), jnp.ones((4, 2, 3, 1)))
    assert summary(NET, (2, 3, 1), batch_size=None).rows[-1].output.shape[1:] == y.shape[1:]
    lines = str(summary(NET, (2, 3, 1), batch_size=None)).splitlines()
    assert lines[1].split(maxsplit=1) == ["input", "N × 2 × 3 × 1"]


def test_a_single_layer_and_a_loop_of_one():
    assert [(row.path, row.kind) for row in summary(dense(3), (2,), batch_size=None).rows] == [("", "dense")]
    nested = summary(repeat(residual(repeat(dense(2), 3)), 4), (2,), batch_size=None)
    assert [(row.kind, row.params) for row in nested.rows] == [("4 × residual of 3 × dense", 4 * 3 * 6)]
    assert summary(share(dense(2), 1), (2,), batch_size=None).rows[0].kind == "1 × tied dense"


def counting(shape):
    """A layer with state and without parameters."""

    def forward(params, state, x, *, train=False, rng=None):
        return x, state + 1 if train else state, ()

    return Layer("counting", lambda key, in_shape, dtype=jnp.float32: ({}, jnp.zeros(shape)), forward, backward)


def backward(params, tape, delta):
    return delta, {}


def test_state_has_a_column_of_its_own_where_there_is_any():
    net = serial(dense(3), repeat(counting((7,)), 2), counting((5,)))
    result = summary(net, (2,), batch_size=4)
    assert [row.state for row in result.rows] == [0, 2 * 7, 5]
    assert (result.params, result.state, result.bytes) == (9, 19, 4 * 28)
    text = str(result)
    assert text.splitlines()[0].split() == ["layer", "output", "parameters", "state"]
    assert "9 parameters, 19 numbers of state, 112 B" in text
    assert "state" not in str(summary(dense(3), (2,), batch_size=None))


def test_integer_inputs_show_their_dtype():
    def forward(params, state, x, *, train=False, rng=None):
        return params["w"][x], state, x

    def init(key, in_shape, dtype=jnp.float32):
        return {"w": jnp.zeros((9, 4), dtype)}, ()

    def rule(params, tape, delta):
        return (), {"w": jnp.zeros_like(params["w"]).at[tape].add(delta)}

    net = serial(Layer("table", init, forward, rule), dense(2))
    result = summary(net, jax.ShapeDtypeStruct((5,), jnp.int32))
    assert "N × 5 int32" in str(result).splitlines()[1]
    assert result.rows[0].output.shape == (1, 5, 4)
    assert result.cost.step > result.cost.forward > 0


# ---------------------------------------------------------------- FLOPs


def test_flops_of_dense_layers_are_those_counted_by_hand():
    n, d, h, k = 64, 784, 30, 10
    batch, forward, step = summary(serial(dense(h), dense(k)), (d,), batch_size=n).cost
    products = 2 * n * (d * h + h * k)
    assert batch == n
    assert forward == pytest.approx(products + n * (h + k), rel=1e-3)
    update, bias = 2 * (d * h + h + h * k + k), n * (h + k)
    # Forward, then xᵀδ of both layers and δWᵀ of the second: the first one's is not used.
    assert step == pytest.approx(products + bias + products + bias + 2 * n * h * k + update, rel=1e-2)


def unrolled(block, n):
    return serial(*[block] * n)


INNER = residual(serial(dense(12), tanh))


@pytest.mark.parametrize(
    ("looped", "plain"),
    [
        (repeat(dense(12), 6), unrolled(dense(12), 6)),
        (serial(dense(12), repeat(INNER, 5), relu), serial(dense(12), unrolled(INNER, 5), relu)),
        (repeat(residual(repeat(dense(12), 3)), 4), unrolled(residual(unrolled(dense(12), 3)), 4)),
        (share(serial(dense(12), relu), 4), unrolled(serial(dense(12), relu), 4)),
        (repeat(dense(12), 1), dense(12)),
    ],
    ids=["repeat", "in serial", "nested", "share", "once"],
)
def test_flops_count_every_pass_of_a_loop(looped, plain):
    ours, theirs = (summary(net, (12,), batch_size=64).cost for net in (looped, plain))
    assert ours.forward == pytest.approx(theirs.forward, rel=LOOPS_AGREE)
    # `share` adds its gradients, and updates its parameters once; elsewhere the programs do the same.
    assert ours.step == pytest.approx(theirs.step, rel=LOOPS_AGREE)


def test_flops_grow_with_the_batch():
    one, two = (summary(mlp([8, 3]), (5,), batch_size=n).cost for n in (16, 32))
    assert two.forward == 2 * one.forward
    assert two.step < 2 * one.step  # the update does not grow


def test_user_names_survive_the_unlooping():
    net = serial(named("dense_0", dense(4)), repeat(dense(4), 3), named("block", repeat(dense(4), 2)))
    plain = serial(*[dense(4)] * 6)
    ours, theirs = (summary(net, (4,), batch_size=8).cost for net in (net, plain))
    assert ours.step == pytest.approx(theirs.step, rel=LOOPS_AGREE)


# ---------------------------------------------------------------- mistakes


def test_what_is_not_a_network_is_refused():
    with pytest.raises(TypeError, match=r"expected a network, got the activation 'relu': use activation\(relu\)"):
        summary(relu, (3,))
    with pytest.raises(TypeError, match="expected a network"):
        summary(dense, (3,))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        summary(dense(2), (3,), batch_size=0)
    with pytest.raises(ValueError, match="layer 'reshape_0'"):
        summary(serial(dense(3), jaxnn.reshape(2, 2)), (3,))
