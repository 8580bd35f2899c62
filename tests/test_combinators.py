"""Names, paths, rebuilding, default initialisation, and what the combinators refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn

import jaxnn
from jaxnn import activations as act
from jaxnn import (
    dense,
    flatten,
    leaf_layers,
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
    tanh,
)

KEY = jax.random.key(0)


def shapes(net, in_shape):
    return jax.tree.map(jnp.shape, jax.eval_shape(lambda: net.init(KEY, in_shape))[0])


def begun(net, in_shape):
    """The parameters, drawn by one program."""
    return jax.tree.map(np.asarray, jax.jit(lambda key: net.init(key, in_shape)[0])(KEY))


def test_names_count_per_kind_and_keep_the_users():
    net = serial(dense(2), relu, named("mine", dense(2)), relu, dense(2), serial(dense(2)))
    assert net.child_names == ("dense_0", "relu_0", "mine", "relu_1", "dense_1", "serial_0")
    assert list(net.init(KEY, (3,))[0]) == ["dense_0", "mine", "dense_1", "serial_0"]
    assert shapes(net, (3,))["serial_0"] == {"dense_0": {"b": (2,), "w": (2, 2)}}


def test_residual_repeat_share_and_named_add_no_level():
    net = serial(residual(dense(3)), repeat(dense(3), 2), share(dense(3), 2), named("last", dense(3)))
    assert shapes(net, (3,)) == {
        "residual_0": {"b": (3,), "w": (3, 3)},
        "repeat_0": {"b": (2, 3), "w": (2, 3, 3)},
        "share_0": {"b": (3,), "w": (3, 3)},
        "last": {"b": (3,), "w": (3, 3)},
    }
    assert set(shapes(residual(dense(2), skip=dense(2)), (3,))) == {"body", "skip"}


def test_layers_without_parameters_leave_no_trace():
    net = serial(flatten(), relu)
    assert net.init(KEY, (2, 2)) == ({}, ())


def test_map_layers_reaches_every_leaf_and_keeps_names():
    net = serial(residual(mlp([3, 3])), parallel(named("a", dense(1)), relu), repeat(share(dense(4), 2), 2))
    seen = []
    same = map_layers(lambda layer: seen.append(layer.kind) or layer, net)
    assert seen == ["dense", "relu", "dense", "dense", "relu", "dense"]
    assert same.child_names == net.child_names
    assert shapes(same, (3,)) == shapes(net, (3,))
    unnamed = map_layers(lambda layer: layer._replace(name=None), net)
    assert shapes(unnamed, (3,)) == shapes(net, (3,))
    skipped = residual(dense(2), skip=dense(2))
    assert map_layers(lambda layer: layer, skipped).child_names == ("body", "skip")
    summed = parallel(dense(2), tanh, join="sum")
    assert shapes(map_layers(lambda layer: layer, summed), (2,)).keys() == {"dense_0"}


def test_leaves_are_listed_in_the_networks_order():
    net = serial(*[dense(2)] * 12, residual(dense(2), skip=tanh), tanh)
    params, _ = jax.eval_shape(lambda: net.init(KEY, (2,)))
    assert [path for path in ordered_leaves(net, params) if path.endswith("/w")] == [
        *(f"dense_{i}/w" for i in range(12)),
        "residual_0/body/w",
    ]
    assert [leaf.kind for _, leaf in leaf_layers(net)][-3:] == ["dense", "tanh", "tanh"]


@pytest.mark.parametrize(
    ("activation", "variance"),
    [
        (act.relu, 2 / 400),
        (act.leaky_relu(0.5), 2 / (1.25 * 400)),
        (act.silu, 2 / 400),
        (act.tanh, 2 / (400 + 300)),
        (act.sigmoid, 2 / (400 + 300)),
    ],
)
def test_initialisation_follows_the_activation(activation, variance):
    """He et al. (2015), eq. 15, for the relu family; Glorot & Bengio (2010) otherwise and for the output."""
    params = begun(mlp([300, 200], activation), (400,))
    estimate = 0.02  # five standard errors of a variance from 120,000 draws: 5 √(2/120,000)
    np.testing.assert_allclose(np.var(params["dense_0"]["w"]), variance, rtol=estimate)
    np.testing.assert_allclose(np.var(params["dense_1"]["w"]), 2 / 500, rtol=estimate * 2**0.5)
    assert not np.asarray(params["dense_0"]["b"]).any()
    ones = begun(mlp([3, 2], w_init=jaxnn.initializers.constant(1.0)), (2,))
    assert all((leaf["w"] == 1).all() for leaf in ones.values())


def test_layers_draw_different_numbers_and_named_ones_keep_theirs():
    params = begun(serial(dense(3), dense(3)), (3,))
    assert not (params["dense_0"]["w"] == params["dense_1"]["w"]).any()
    stacked = begun(repeat(dense(3), 2), (3,))["w"]
    assert not (stacked[0] == stacked[1]).any()
    first = begun(serial(named("a", dense(3))), (3,))["a"]["w"]
    later = begun(serial(dense(3), named("a", dense(3))), (3,))["a"]["w"]
    assert (first == later).all()


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_repeat_and_share_need_a_whole_number(n):
    for combinator in (repeat, share):
        with pytest.raises((TypeError, ValueError), match=rf"{combinator.__name__}: n must be"):
            combinator(dense(2), n)


REFUSED = {
    "residual that would broadcast": (
        lambda: serial(residual(dense(1))).init(KEY, (5,)),
        r"layer 'residual_0' expects a layer that keeps .* float32\[1, 5\] -> float32\[1, 1\]; give a projection",
    ),
    "skip of another width": (
        lambda: residual(dense(2), skip=dense(3)).init(KEY, (5,)),
        r"residual expects branches whose outputs have one shape, got body: float32\[1, 2\], skip: float32\[1, 3\]",
    ),
    "repeat of a layer that changes the width": (
        lambda: serial(named("deep", serial(repeat(dense(1), 2)))).init(KEY, (5,)),
        r"layer 'deep/repeat_0' expects a layer that keeps the shape",
    ),
    "share of a layer that changes the width": (
        lambda: share(dense(1), 2).init(KEY, (5,)),
        "share expects a layer that keeps the shape",
    ),
    "a sum that would broadcast": (
        lambda: parallel(dense(1), dense(3), join="sum").init(KEY, (5,)),
        "parallel expects branches whose outputs have one shape",
    ),
    "branches of other ranks": (
        lambda: parallel(flatten(), dense(3)).init(KEY, (2, 5)),
        "agree in all axes but the last",
    ),
    "no branches": (lambda: parallel(), "at least one layer"),
    "an unknown join": (lambda: parallel(dense(1), join="mean"), "'concat' or 'sum', got 'mean'"),
    "equal names": (lambda: serial(named("a", dense(1)), named("a", dense(1))), "two layers are named 'a'"),
    "a name that is taken": (lambda: parallel(named("dense_0", relu), dense(1)), "two layers are named 'dense_0'"),
    "a name with a slash": (lambda: named("a/b", dense(1)), "without '/'"),
    "a factory without its parentheses": (lambda: serial(flatten), r"needs its parentheses, flatten\(\)"),
    "a number for a layer": (lambda: serial(3), "expected layers or Activation records, got 3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    build, message = REFUSED[what]
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_errors_from_below_carry_the_path():
    net = serial(named("encoder", mlp([4, 4])), dense(2))
    params, state = drawn(net, (3,))
    with pytest.raises(ValueError, match=r"^layer 'encoder/dense_0' expects 3 features, got x of shape \(2, 5\)$"):
        net.forward(params, state, np.ones((2, 5), np.float32))

    def broken(params, state, x, *, train=False, rng=None):
        raise TypeError("no such thing")

    net = serial(residual(named("bad", serial(dense(3)._replace(forward=broken)))))
    with pytest.raises(TypeError, match=r"^layer 'residual_0/dense_0': no such thing$"):
        net.forward({"residual_0": {}}, (), np.ones((2, 3), np.float32))


def test_forward_works_without_keywords():
    net = mlp([2])
    y, state, _ = jax.jit(net.forward)(*drawn(net, (3,)), np.ones((4, 3), np.float32))
    assert y.shape == (4, 2)
    assert state == ()


def test_map_layers_takes_activations_and_nothing_else():
    net = serial(named("act", relu), dense(2))
    assert map_layers(lambda layer: tanh if layer.kind == "relu" else layer, net).child_names == ("act", "dense_0")
    with pytest.raises(TypeError, match="map_layers: expected layers or Activation records, got None"):
        map_layers(lambda layer: None, net)


def test_initializers_and_activations_keep_to_their_shapes():
    with pytest.raises(ValueError, match=r"layer 'dense_0' expects w_init to give \(4, 2\), got \(1,\)"):
        serial(dense(2, w_init=lambda key, shape, dtype: jnp.ones(1))).init(KEY, (4,))
    total = jaxnn.Activation("total", lambda z: z.sum(-1, keepdims=True), lambda z, h: jnp.ones_like(z))
    with pytest.raises(
        ValueError, match=r"layer 'total_0' must act on each element separately, got \(1, 2\) -> \(1, 1\)"
    ):
        serial(dense(2), total, dense(3)).init(KEY, (4,))
