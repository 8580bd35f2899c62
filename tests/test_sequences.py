"""`Sequences` and whole numbers through every layer: values are worked on, masks and states handed on, or a refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from laws import FLOAT64, close, floats

from jaxnn import (
    Sequences,
    autodiff,
    avg_pool,
    backprop,
    batch_norm,
    bidirectional,
    conv,
    dense,
    embedding,
    fit,
    flatten,
    global_avg_pool,
    global_max_pool,
    gru,
    layer_norm,
    losses,
    lstm,
    max_pool,
    named,
    parallel,
    relu,
    repeat,
    reshape,
    residual,
    rnn,
    serial,
    sgd,
    share,
    softmax,
    tanh,
    upsample,
)

N, T, D, V = 3, 4, 2, 5
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
TARGET = np.cos(np.arange(N * 2.0)).reshape(N, 2)
ENDS = lambda *layers: serial(*layers, gru(2, returns="last"))


def sequences(mask=MASK, initial=(), width=D):
    return Sequences(np.random.default_rng(0).normal(size=(N, T, width)), mask, initial)


def narrow(x):
    """The same in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, x)


def tokens(*shape):
    return np.random.default_rng(1).integers(0, V, (N, *shape)).astype(np.int32)


STATE = np.sin(np.arange(N * 2.0)).reshape(N, 2)
WORKS = {  # a network, and what goes in
    "softmax": (lambda: ENDS(softmax()), sequences()),
    "residual": (lambda: ENDS(residual(serial(dense(3), tanh, dense(D)))), sequences()),
    "residual of a recurrent layer": (lambda: ENDS(residual(gru(D))), sequences()),
    "residual of a layer that takes the initial state": (lambda: ENDS(residual(rnn(D))), sequences(initial=STATE)),
    "residual, no mask, an initial state": (lambda: ENDS(residual(rnn(D))), sequences((), STATE)),
    "residual, handing the initial state on": (lambda: ENDS(residual(dense(D))), sequences(initial=STATE)),
    "residual with a skip": (lambda: ENDS(residual(serial(dense(3), relu), skip=dense(3))), sequences()),
    "parallel": (lambda: ENDS(parallel(dense(2), tanh, layer_norm())), sequences()),
    "parallel, sum": (lambda: ENDS(parallel(dense(2), softmax(), join="sum")), sequences()),
    "parallel, handing the initial state on": (lambda: ENDS(parallel(dense(2), tanh)), sequences(initial=STATE)),
    "parallel, one branch taking the initial state": (
        lambda: ENDS(parallel(gru(2), tanh), dense(2)),
        sequences(initial=STATE),
    ),
    "repeat": (lambda: ENDS(repeat(residual(serial(dense(D), tanh)), 2)), sequences()),
    "repeat of a recurrent layer": (lambda: ENDS(repeat(rnn(D), 2)), sequences()),
    "share": (lambda: ENDS(share(serial(dense(D), softmax()), 3)), sequences(initial=STATE)),
    "both directions": (lambda: serial(bidirectional(residual(gru(D))), lstm(2, returns="last")), sequences()),
    "tokens, masked": (lambda: ENDS(embedding(V, 3), residual(dense(3))), Sequences(tokens(T), MASK)),
    "flatten, embedding": (lambda: serial(flatten(), embedding(V, 3), flatten(), dense(2)), tokens(2, 3)),
    "reshape, embedding": (lambda: ENDS(reshape(6), embedding(V, 3)), tokens(2, 3)),
    "parallel embeddings": (lambda: ENDS(parallel(embedding(V, 2), embedding(V, 1))), tokens(T)),
    "residual embeddings": (lambda: ENDS(residual(embedding(V, 2), skip=embedding(V, 2))), tokens(T)),
    "parallel of whole numbers": (
        lambda: serial(parallel(flatten(), flatten()), embedding(V, 2), flatten(), dense(2)),
        tokens(2, 2),
    ),
    "repeat of whole numbers": (lambda: ENDS(repeat(reshape(T), 2), share(flatten(), 2), embedding(V, 2)), tokens(T)),
    "tokens in both directions": (lambda: ENDS(bidirectional(serial(embedding(V, 2), gru(2)))), tokens(T)),
    "tokens in both directions, the last state": (
        lambda: bidirectional(serial(embedding(V, 2), lstm(1, returns="last"))),
        tokens(T),
    ),
    "masked tokens in both directions": (
        lambda: ENDS(bidirectional(serial(embedding(V, 2), gru(2)))),
        Sequences(tokens(T), MASK),
    ),
}


def drawn(net, x, dtype=np.float64):
    """Parameters in NumPy, and the state."""
    in_shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), in_shape, dtype))
    draw = np.random.default_rng(2).normal
    return jax.tree.map(lambda leaf: np.asarray(0.5 * draw(size=leaf.shape), dtype), params), state


LONG = {  # what the others hold in another way
    "residual of a recurrent layer",
    "residual, no mask, an initial state",
    "residual with a skip",
    "parallel, sum",
    "parallel, one branch taking the initial state",
    "repeat of a recurrent layer",
    "both directions",
    "tokens, masked",
    "reshape, embedding",
    "parallel embeddings",
    "residual embeddings",
    "tokens in both directions, the last state",
    "tokens in both directions",
    "masked tokens in both directions",
}


@pytest.mark.parametrize("what", [pytest.param(w, marks=[pytest.mark.long] if w in LONG else []) for w in WORKS])
def test_by_hand_is_by_jax(what):
    """Loss, gradients, state and every δ; and δ_in, that of the initial state too."""
    make, x = WORKS[what]
    net = make()
    with jax.enable_x64(True):
        params, state = drawn(net, x)
        free, put = floats(x)

        def run(params, free):
            args = (params, state, put(free), TARGET)
            hand, auto = (derive(net, losses.mse, read=("deltas",))(*args) for derive in (backprop, autodiff))
            y, _, tape = net.forward(*args[:3])
            by_hand = jax.tree.leaves(net.backward(params, tape, jnp.cos(y))[0])
            by_jax = jax.vjp(lambda free: net.forward(params, state, put(free))[0], free)[1](jnp.cos(y))[0]
            return (hand, by_hand), (auto, by_jax)

        by_hand, by_jax = jax.tree.map(np.asarray, by_numpy(run)(params, free))
    close(by_hand, by_jax, FLOAT64, "by hand and by jax.grad")
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(by_hand[0].grads)) > 1e-3


TRAINED = "flatten, embedding"


@pytest.mark.parametrize("what", [pytest.param(w, marks=[] if w == TRAINED else [pytest.mark.long]) for w in WORKS])
def test_it_trains(what):
    make, x = WORKS[what]
    trained = fit(make(), losses.mse, sgd(0.1), (narrow(x), TARGET.astype(np.float32)), key=0, epochs=2, batch_size=N)
    assert trained.history["loss"][1] < trained.history["loss"][0]


# ---------------------------------------------------------------- values by NumPy


def test_residual_adds_values_and_keeps_the_mask():
    x = Sequences(np.ones((N, T, D), np.float32), MASK, STATE.astype(np.float32))
    y, _, tape = residual(tanh).forward({}, (), x)
    np.testing.assert_allclose(y.values, 1 + np.tanh(np.ones((N, T, D))), rtol=1e-6)
    assert y.mask is x.mask
    assert y.initial is x.initial
    delta = Sequences(np.ones((N, T, D), np.float32), (), STATE.astype(np.float32))
    back, _ = residual(tanh).backward({}, tape, delta)
    np.testing.assert_allclose(back.values, 1 + 1 / np.cosh(np.ones((N, T, D))) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(back.initial, delta.initial)  # once, though there are two ways


def test_parallel_joins_values_and_keeps_the_mask():
    x = Sequences(np.ones((N, T, D), np.float32), MASK, STATE.astype(np.float32))
    net = parallel(tanh, relu, tanh)
    y, _, tape = net.forward({}, (), x)
    np.testing.assert_allclose(y.values[0, 0], np.repeat([np.tanh(1), 1, np.tanh(1)], 2), rtol=1e-6)
    assert y.mask is x.mask
    delta = Sequences(np.ones((N, T, 3 * D), np.float32), (), STATE.astype(np.float32))
    back, _ = net.backward({}, tape, delta)
    np.testing.assert_allclose(back.values, 1 + 2 / np.cosh(np.ones((N, T, D))) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(back.initial, delta.initial)  # once, though three branches handed it on


def test_softmax_of_each_step():
    x = sequences()._replace(values=np.random.default_rng(0).normal(size=(N, T, 3)).astype(np.float32))
    y, _, _ = softmax().forward({}, (), x)
    np.testing.assert_allclose(y.values, np.exp(x.values) / np.exp(x.values).sum(-1, keepdims=True), rtol=1e-5)


def test_tokens_in_both_directions():
    """Time is turned round behind the embedding as it is behind features: by NumPy, step by step."""
    net = bidirectional(serial(embedding(V, 2), rnn(2)))
    x = tokens(T)
    params, _ = drawn(net, x, np.float32)
    y, _, _ = net.forward(params, (), x)

    def run(params, x):
        h, steps = np.zeros((N, 2)), []
        for t in range(T):
            at = params["embedding_0"]["w"][x[:, t]]
            h = np.tanh(at @ params["rnn_0"]["w"] + h @ params["rnn_0"]["w_h"] + params["rnn_0"]["b"])
            steps.append(h)
        return np.stack(steps, 1)

    expected = np.concatenate([run(params["forward"], x), run(params["backward"], x[:, ::-1])[:, ::-1]], -1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    last = bidirectional(serial(embedding(V, 2), rnn(2, returns="last")))
    np.testing.assert_allclose(last.forward(params, (), x)[0][:, :2], expected[:, -1, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last.forward(params, (), x)[0][:, 2:], expected[:, 0, 2:], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- refused in words


def convolution():
    return conv(2, (3,))


WITH_PARAMETERS = (batch_norm, convolution)
REFUSED = (
    flatten,
    batch_norm,
    global_avg_pool,
    global_max_pool,
    lambda: reshape(T * D),
    convolution,
    lambda: max_pool((2,)),
    lambda: avg_pool((2,)),
    lambda: upsample((2,)),
)


@pytest.mark.parametrize("make", REFUSED)
def test_no_meaning(make):
    spec = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    layer, x = serial(named("here", make())), narrow(sequences())
    says = "^layer 'here' expects one array, got Sequences: masked steps would count as data. .*'values' or 'last'"
    with pytest.raises(ValueError, match=says):
        layer.init(jax.random.key(0), jax.tree.map(lambda leaf: spec(leaf[0]), x))
    if make not in WITH_PARAMETERS:
        with pytest.raises(ValueError, match=says):
            layer.forward({}, (), x)


def test_branches_of_two_kinds():
    x = narrow(sequences())
    net = parallel(tanh, rnn(2, returns="values"))
    params = {
        "rnn_0": {"w": np.eye(2, dtype=np.float32), "w_h": np.eye(2, dtype=np.float32), "b": np.ones(2, np.float32)}
    }
    with pytest.raises(ValueError, match="all return Sequences or all arrays, got tanh_0: Sequences, rnn_0: ArrayImpl"):
        net.forward(params, (), x)
    with pytest.raises(ValueError, match=r"branches that return arrays or Sequences, got {'gru_0': 'tuple'}"):
        parallel(gru(2, returns="both")).init(jax.random.key(0), (T, D))


def test_residual_of_what_changes_the_width():
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), sequences())
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match="layer 'residual_0' expects a layer that keeps the shape"),
    ):
        serial(residual(dense(3))).init(jax.random.key(0), x, np.float64)
    with pytest.raises(ValueError, match=r"residual adds x and f\(x\), which must be floats, got int32"):
        residual(flatten()).forward({}, (), tokens(T))
