"""Settings of layers: numbers as inputs of a program, and equality, repr and pickling."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LEAVES

import jaxnn
from jaxnn import Sequences, batch_norm, dropout, group_norm, layer_norm, lstm, rms_norm

X = np.random.default_rng(0).normal(size=(5, 3, 4)) + 0.5
KEY = jax.random.key(3)


def trained(layer, params, state):
    """The results of forward and backward in training."""
    y, state, tape = layer.forward(params, state, X, train=True, rng=KEY)
    return y, state, layer.backward(params, tape, np.cos(X[..., : y.shape[-1]]))


def started(layer):
    """With parameters other than the initial ones."""
    params, state = layer.init(KEY, X.shape[1:], jnp.float64)
    move = lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
    return jax.tree.map(move, params), state


def passed(make):
    """Value -> all results of the layer with it, from parameters that do not depend on it."""

    def run(value):
        layer = make(value)
        return trained(layer, *started(layer)), layer.forward(*started(layer), X)[0]

    return run


# the layer of a number, valid numbers, and invalid ones; differences are taken at the first, where
# rounding does not outweigh them (an ε of 1e-5 moves a cost by less than its digits hold)
NUMBERS = {
    "batch_norm: momentum": (lambda value: batch_norm(momentum=value), (0.9, 0.0, 0.999), (1.0, -0.1)),
    "batch_norm: eps": (lambda value: batch_norm(eps=value), (0.1, 1e-5, 1e-12), (0.0, -1e-5)),
    "layer_norm: eps": (lambda value: layer_norm(eps=value), (0.1, 1e-5, 1e-12), (0.0, -1e-5)),
    "group_norm: eps": (lambda value: group_norm(2, eps=value), (0.1, 1e-5, 1e-12), (0.0, -1e-5)),
    "rms_norm: eps": (lambda value: rms_norm(eps=value), (0.1, 1e-5, 1e-12), (0.0, -1e-5)),
    "dropout: drop_rate": (lambda value: dropout(value), (0.5, 0.0, 0.9), (1.0, -0.1)),
    "lstm: forget_bias": (lambda value: lstm(4, forget_bias=value), (1.0, 0.0, -2.5), (np.inf, np.nan)),
}
numbers = pytest.mark.parametrize("name", NUMBERS)


def close(got, expected, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@numbers
def test_vmap_over_a_number_is_a_loop_of_python_floats(name):
    make, values, _ = NUMBERS[name]
    traces = []

    def once(value):
        traces.append(value)
        return passed(make)(value)

    with jax.enable_x64(True):
        together = jax.jit(jax.vmap(once))(jnp.array(values))
        assert len(traces) == 1
        for i, value in enumerate(values):
            close(jax.tree.map(lambda leaf, i=i: leaf[i], together), jax.jit(lambda value=value: passed(make)(value))())


@numbers
def test_a_layer_with_a_scalar_is_an_argument_of_a_program(name):
    """Compiled once for all values; with Python numbers, once for each."""
    make, values, _ = NUMBERS[name]
    traces = []

    @jax.jit
    def run(layer, params, state):
        traces.append(layer)
        return trained(layer, params, state)

    with jax.enable_x64(True):
        for value in values:
            layer = make(jnp.float64(value))
            close(run(layer, *started(layer)), trained(make(value), *started(make(value))))
        assert len(traces) == 1
        for value in values:
            run(make(value), *started(make(value)))
        assert len(traces) == 1 + len(values)


@numbers
def test_the_slope_by_a_number_is_that_of_differences(name):
    make, (value, *_), _ = NUMBERS[name]

    def total(value):
        leaves = jax.tree.leaves(passed(make)(value))
        return sum(jnp.vdot(leaf, jnp.cos(jnp.arange(leaf.size, dtype=float)).reshape(leaf.shape)) for leaf in leaves)

    with jax.enable_x64(True):
        cost, step = jax.jit(total), 1e-4 * value
        slope = jax.grad(cost)(jnp.float64(value))
        differences = (cost(value + step) - cost(value - step)) / (2 * step)
        assert abs(slope) > 1e-6
        np.testing.assert_allclose(slope, differences, rtol=1e-6)


@numbers
def test_a_traced_number_that_cannot_be_poisons(name):
    make, (good, *_), wrong = NUMBERS[name]
    with jax.enable_x64(True):
        poisoned = jax.jit(jax.vmap(lambda value: sum(leaf.sum() for leaf in jax.tree.leaves(passed(make)(value)))))
        assert np.isnan(poisoned(jnp.array([*wrong, good]))).tolist() == [True] * len(wrong) + [False]
        for value in wrong:
            with pytest.raises(ValueError, match=name):
                make(value)
            with pytest.raises(ValueError, match=name):
                make(jnp.float64(value))


@numbers
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_precise_number_makes_nothing_else_precise(name, dtype):
    make, (value, *_), _ = NUMBERS[name]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        found = []
        for layer in (make(jnp.float64(value)), make(jnp.bfloat16(value)), make(value)):
            params, state = layer.init(KEY, X.shape[1:], dtype)
            y, new, tape = layer.forward(params, state, jnp.asarray(X, dtype), train=True, rng=KEY)
            found.append(jax.tree.map(lambda leaf: leaf.dtype, (params, y, new, layer.backward(params, tape, y))))
        assert found[0] == found[1] == found[2]


def test_a_scalar_for_a_drop_rate_needs_a_key():
    """Also a traced one of 0, whose value is unknown."""
    with pytest.raises(ValueError, match="dropout needs a key in training"):
        dropout(jnp.float32(0)).forward({}, (), jnp.ones((2, 3)), train=True)
    assert dropout(0).forward({}, (), jnp.ones((2, 3)), train=True)[2] == ()


def test_a_traced_drop_rate_goes_over_sequences_and_through_grad():
    x = Sequences(jnp.ones((2, 3, 4)), jnp.ones((2, 3), bool))
    y = jax.jit(lambda rate: dropout(rate).forward({}, (), x, train=True, rng=KEY)[0])(0.5)
    assert (y.values == dropout(0.5).forward({}, (), x, train=True, rng=KEY)[0].values).all()


# ---------------------------------------------------------------- the whole

PUBLIC = {name: getattr(jaxnn, name) for name in jaxnn.__all__ if name not in ("gradcheck", "graph")}
ROWS = {case.name: case.make() for case in LEAVES}
ROWS = {name: layer for name, layer in ROWS.items() if type(layer).__name__ == layer.kind}  # not records of functions
MORE = {
    "every setting of batch_norm": batch_norm(momentum=0.5, eps=1e-3),
    "every setting of max_pool": jaxnn.max_pool((2, 3), stride=1, padding=((0, 1), (2, 0))),
    "every setting of avg_pool": jaxnn.avg_pool((2,), stride=(1,), padding="same", count_include_pad=False),
    "every setting of lstm": lstm(3, returns="both", truncate=2, recompute=True, forget_bias=0.5),
    "every setting of gru": jaxnn.gru(3, returns="last", truncate=1, recompute=True),
    "global_max_pool": jaxnn.global_max_pool(),
    "global_avg_pool": jaxnn.global_avg_pool(),
    "upsample": jaxnn.upsample((2, 1)),
    "embedding": jaxnn.embedding(5, 3),
    "group_norm": group_norm(3, eps=0.1),
}
ALL = ROWS | MORE
layers = pytest.mark.parametrize("name", ALL)


def test_every_layer_here_has_a_row():
    mine = {
        "reshape",
        "flatten",
        "softmax",
        "dropout",
        "embedding",
        "batch_norm",
        "layer_norm",
        "group_norm",
        "rms_norm",
    }
    mine |= {"max_pool", "avg_pool", "global_max_pool", "global_avg_pool", "upsample", "rnn", "gru", "lstm", "dense"}
    assert mine <= {layer.kind for layer in ALL.values()}
    assert mine <= set(PUBLIC)


@layers
def test_what_is_made_again_is_equal(name):
    layer = ALL[name]
    other = dataclasses.replace(layer)
    assert other is not layer
    assert other == layer
    assert hash(other) == hash(layer)
    again = pickle.loads(pickle.dumps(layer))
    assert again == layer
    assert hash(again) == hash(layer)
    assert jax.tree.structure(again) == jax.tree.structure(layer)
    assert not jax.tree.leaves(layer)


@layers
def test_the_text_is_the_call(name):
    layer = ALL[name]
    text = repr(layer)
    assert eval(text, vars(jaxnn.activations) | PUBLIC) == layer
    for field in dataclasses.fields(layer):  # defaults are left out
        if field.default is not dataclasses.MISSING and getattr(layer, field.name) == field.default:
            assert f"{field.name}=" not in text


TEXTS = {
    "reshape(-1, 2)": jaxnn.reshape(-1, 2),
    "flatten()": jaxnn.flatten(),
    "dropout(0.5)": dropout(0.5),
    "batch_norm()": batch_norm(momentum=0.9),
    "group_norm(4, eps=0.001)": group_norm(4, eps=1e-3),
    "max_pool((2, 2))": jaxnn.max_pool((2, 2)),
    "max_pool((2, 2), stride=(1, 1))": jaxnn.max_pool([2, 2], stride=1),
    "embedding(10, 3)": jaxnn.embedding(10, 3),
    "lstm(4, returns='last')": lstm(4, returns="last"),
    "lstm(4, forget_bias=float32(2.0))": lstm(4, forget_bias=jnp.float32(2)),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text):
    assert repr(TEXTS[text]) == text


@layers
def test_layers_differ_where_a_setting_does(name):
    for other in ALL.values():
        assert (other == ALL[name]) == (repr(other) == repr(ALL[name]))


# invalid and valid dataclasses.replace(layer, …)
WRONG = {
    "reshape": (jaxnn.reshape(2, 3), {"sizes": (-1, -1)}, ValueError, "at most one size may be -1"),
    "dropout": (dropout(0.5), {"drop_rate": 1.0}, ValueError, "drop_rate must be at least 0 and below 1"),
    "batch_norm": (batch_norm(), {"momentum": 2}, ValueError, "momentum must be at least 0 and below 1"),
    "layer_norm": (layer_norm(), {"eps": 0}, ValueError, "eps must be above 0"),
    "group_norm": (group_norm(2), {"groups": 0.5}, TypeError, "groups must be a whole number"),
    "rms_norm": (rms_norm(), {"eps": "small"}, TypeError, "eps must be a number"),
    "max_pool": (jaxnn.max_pool((2,)), {"padding": "some"}, ValueError, "padding must be one of"),
    "avg_pool": (jaxnn.avg_pool((2,)), {"count_include_pad": 1}, TypeError, "count_include_pad must be True or False"),
    "upsample": (jaxnn.upsample((2,)), {"factor": 2}, TypeError, "factor must be a tuple"),
    "embedding": (jaxnn.embedding(5, 2), {"width": 0}, ValueError, "width must be"),
    "rnn": (jaxnn.rnn(2), {"activation": jnp.tanh}, TypeError, "expected an Activation record"),
    "gru": (jaxnn.gru(2), {"returns": "first"}, ValueError, "returns must be one of"),
    "lstm": (lstm(2), {"truncate": 0}, ValueError, "truncate must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_replace_looks_at_settings_again(name):
    layer, change, error, says = WRONG[name]
    with pytest.raises(error, match=says):
        dataclasses.replace(layer, **change)


def test_replace_puts_settings_in_their_normal_form():
    assert dataclasses.replace(jaxnn.reshape(2, 3), sizes=[6]) == jaxnn.reshape(6)
    assert dataclasses.replace(jaxnn.max_pool((2, 2)), stride=1) == jaxnn.max_pool((2, 2), stride=(1, 1))
    assert dataclasses.replace(dropout(0.5), drop_rate=np.float32(0.25)) == dropout(0.25)
    assert dataclasses.replace(lstm(2), truncate=np.int64(3)) == lstm(2, truncate=3)


def test_the_class_in_the_place_of_a_layer_is_refused_in_words():
    for kind in (jaxnn.flatten, jaxnn.softmax, batch_norm, lstm):
        with pytest.raises(TypeError, match=r"serial: expected layers .* a factory needs its parentheses"):
            jaxnn.serial(kind)
