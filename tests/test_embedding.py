"""Embedding: flax, one-hot products, repeated indices, and indices that are out of the vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn, normal
from laws import FLOAT32, FLOAT64, close, evaluated

from jaxnn import (
    Sequences,
    autodiff,
    backprop,
    bidirectional,
    dense,
    dropout,
    embedding,
    fit,
    flatten,
    gru,
    layer_norm,
    losses,
    lstm,
    parallel,
    rms_norm,
    serial,
    sgd,
    tanh,
)

V, H = 5, 3
X = np.array([[4, 0, 4], [2, 4, 1]], np.int32)
LAYER = embedding(V, H)
INDICES = jax.ShapeDtypeStruct((3,), jnp.int32)
PARAMS, STATE = drawn(LAYER, INDICES)
DELTA = normal(2, 3, H, seed=1)
NET = serial(embedding(V, H), flatten(), dense(2))


def values(layer, params, state, x):
    return evaluated(lambda *args: layer.forward(*args)[0])(params, state, x)


def passed(layer, params, state, x, delta, **how):
    """(y, δ_in, grads)."""

    def both(params, state, x, delta):
        y, _, tape = layer.forward(params, state, x, **how)
        return y, *layer.backward(params, tape, delta)

    return evaluated(both)(params, state, x, delta)


def test_values_are_flax_s():
    linen = pytest.importorskip("flax.linen", reason="flax is the oracle")
    expected = evaluated(linen.Embed(V, H).apply)({"params": {"embedding": PARAMS["w"]}}, X)
    assert np.array_equal(values(LAYER, PARAMS, STATE, X), expected)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int8", "uint32"])
def test_it_is_dense_on_one_hot_vectors(dtype):
    one_hot = np.eye(V, dtype=np.float32)[X]
    y, delta_in, grads = passed(LAYER, PARAMS, STATE, X.astype(dtype), DELTA)
    z, _, plain = passed(dense(H, bias=False), PARAMS, (), one_hot, DELTA)
    close(y, z, FLOAT32, "value")
    assert delta_in == ()
    close(grads, plain, FLOAT32, "gradient")


def test_repeated_indices_add():
    params, x = {"w": PARAMS["w"].astype(jnp.bfloat16)}, np.full((1000, 1), 2, np.int32)
    _, _, grads = passed(LAYER, params, STATE, x, np.ones((1000, 1, H), jnp.bfloat16))
    assert grads["w"][:, 0].tolist() == [0, 0, 1000, 0, 0]  # in bfloat16 a sum of ones ends at 256


def test_both_derivations_of_a_network():
    params, state = drawn(NET, INDICES)
    labels = np.array([0, 1], np.int32)
    by_hand, by_jax = (
        jax.jit(derive(NET, losses.softmax_cross_entropy, read=("deltas",)))(params, state, X, labels)
        for derive in (backprop, autodiff)
    )
    close(by_hand.grads, by_jax.grads, FLOAT32, "gradients")
    close(by_hand.readings, by_jax.readings, FLOAT32, "δs")


def test_fit_takes_token_sequences():
    x, labels = np.arange(40).reshape(-1, 1) % V * np.ones((1, 3), np.int32), np.arange(40) % V % 2
    x = x.astype(np.int32)
    result = fit(NET, losses.softmax_cross_entropy, sgd(0.5), (x, labels), key=0, epochs=20, batch_size=8)
    assert result.history["loss"][-1] < 0.1 < result.history["loss"][0]


# ---------------------------------------------------------------- sequences of tokens whose lengths differ

MASK = np.array([[True, True, True], [True, False, False], [False, True, True]])
TOKENS = np.array([[4, 0, 4], [2, 1, 1], [3, 2, 0]], np.int32)
SPOILT = np.where(MASK, TOKENS, -7).astype(np.int32)
DEEP = serial(
    embedding(V, H),
    layer_norm(),
    dense(4),
    tanh,
    bidirectional(gru(2)),
    dropout(0.5),
    lstm(3, returns="last"),
    dense(2),
)
LABELS = np.array([0, 1, 1], np.int32)


def deep(dtype="float32"):
    return drawn(DEEP, Sequences(*(jax.ShapeDtypeStruct((3,), kind) for kind in (jnp.int32, jnp.bool_))), dtype)


def test_masks_pass_through_layers_that_work_on_each_step():
    """Both derivations of a network with a mask, and the gradients that its sequences have alone."""
    with jax.enable_x64(True):
        params, state = deep("float64")
        x = Sequences(SPOILT, MASK)
        by_hand, by_jax = (
            evaluated(lambda *args, run=run: run(*args[:-1], rng=args[-1]))(params, state, x, LABELS, jax.random.key(1))
            for run in (f(DEEP, losses.softmax_cross_entropy, read=("deltas",)) for f in (backprop, autodiff))
        )
        close(by_hand.grads, by_jax.grads, FLOAT64, "gradients")
        close(by_hand.readings, by_jax.readings, FLOAT64, "δs")
        passes = evaluated(backprop(DEEP, losses.softmax_cross_entropy, train=False))
        whole = passes(params, state, x, LABELS)
        alone = [passes(params, state, TOKENS[n : n + 1, MASK[n]], LABELS[n : n + 1]) for n in range(len(MASK))]
        close(whole.loss, sum(one.loss for one in alone) / 3, FLOAT64, "loss")
        mean = jax.tree.map(lambda *grads: sum(grads) / 3, *(one.grads for one in alone))
        close(whole.grads, mean, FLOAT64, "gradients of each alone")


@pytest.mark.parametrize("layer", [dense(2), layer_norm(), rms_norm(), dropout(0.5), serial(tanh), embedding(V, 2)])
def test_a_layer_hands_on_mask_and_state(layer):
    values = TOKENS if layer.kind == "embedding" else normal(3, 3, 4)
    x = Sequences(values, MASK, np.ones((3, 5), np.float32))
    params, state = drawn(layer, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x))
    how = {"train": True, "rng": jax.random.key(1)}

    def handed_on(params, x):
        y, *_ = layer.forward(params, state, x, **how)
        assert y.mask is x.mask
        assert y.initial is x.initial
        return y

    y = jax.eval_shape(handed_on, params, x)
    delta = np.where(MASK[..., None], normal(*y.values.shape, seed=2), np.float32(0))
    y, delta_in, grads = passed(layer, params, state, x, Sequences(delta, (), np.full((3, 5), 2, np.float32)), **how)
    plain, expected_in, expected = passed(layer, params, state, values, delta, **how)
    shown = MASK if layer.kind == "embedding" else np.ones_like(MASK)
    assert np.array_equal(np.asarray(y.values)[shown], np.asarray(plain)[shown])
    assert (delta_in.initial == 2).all()
    assert delta_in.mask == ()
    close((delta_in.values, grads), (expected_in, expected), FLOAT32, "backward")


@pytest.mark.parametrize("where", ["training", "validation"])
def test_fit_looks_at_the_tokens_that_are_not_masked(where):
    net = serial(
        parallel(serial(embedding(V, 2), gru(2, returns="last")), serial(embedding(V, 2), gru(2, returns="last")))
    )
    beyond = TOKENS.copy()
    beyond[0, 1] = V
    wrong, right = (Sequences(tokens, MASK) for tokens in (beyond, SPOILT))
    train, validation = (wrong, right) if where == "training" else (right, wrong)
    what = "data" if where == "training" else "validation"
    with pytest.raises(ValueError, match=rf"{what}: x: layer '.*embedding_0' expects indices 0 … 4.*\[0, 1\]: 5"):
        fit(
            net,
            losses.softmax_cross_entropy,
            sgd(0.1),
            (train, LABELS),
            key=0,
            epochs=1,
            batch_size=3,
            validation=(validation, LABELS),
        )


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"layer 'embedding_0' expects a mask \[N, T\] of shape \(3, 3\), got \(3, 2\)"
    ):
        DEEP.forward(*deep(), Sequences(TOKENS, MASK[:, :2]))


def test_a_loss_of_masked_sequences_is_refused_where_it_has_no_entries():
    net = serial(embedding(V, 2), gru(2))
    params, state = drawn(net, INDICES)
    run = backprop(net, losses.softmax_cross_entropy._replace(entries=None))
    with pytest.raises(ValueError, match=r"has no rule for entries and is given a mask: .* every step counts"):
        jax.eval_shape(run, params, state, Sequences(TOKENS, MASK), TOKENS % 2)


# ---------------------------------------------------------------- what is refused


@functools.cache
def compiled():
    """What a pass that cannot raise makes of an index: the layer's output, a network's loss, the layer's gradient."""

    def all_three(params, state, x):
        loss = backprop(NET, losses.softmax_cross_entropy)(params, state, x, jnp.array([0, 1])).loss
        own = params["embedding_0"]
        _, grads = LAYER.backward(own, x, jnp.ones((2, 3, H)))
        return LAYER.forward(own, STATE, x)[0], loss, grads["w"]

    return jax.jit(all_three)


@pytest.mark.parametrize("wrong", [-1, -V, V, 2**31 - 1])
def test_an_index_out_of_the_vocabulary(wrong):
    x = X.copy()
    x[1, 2] = wrong
    net = serial(LAYER)
    params = {"embedding_0": PARAMS}
    with pytest.raises(
        ValueError, match=rf"layer 'embedding_0' expects indices 0 … 4, got 1 others.*\[1, 2\]: {wrong}"
    ):
        net.forward(params, (), x)
    y, loss, grads = (np.asarray(part) for part in compiled()(*drawn(NET, INDICES), x))
    assert np.isnan(y[1, 2]).all()
    assert np.isfinite(y).sum() == y.size - H
    assert grads[:, 0].tolist() == [1, 0, 1, 0, 3]  # that of the 1 is gone, and nobody else's
    assert np.isnan(loss)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: embedding(0, 2), ValueError, "embedding: vocabulary must be at least 1"),
        (lambda: embedding(3, 2.5), TypeError, "embedding: width must be a whole number"),
        (lambda: LAYER.init(0, (3,)), ValueError, "expects whole numbers.*jax.ShapeDtypeStruct"),
        (lambda: LAYER.forward(PARAMS, STATE, np.ones((2, 3), np.float32)), ValueError, "got float32: x.astype"),
        (lambda: LAYER.forward(PARAMS, STATE, np.int32(1)), ValueError, "the batch axis first, got a scalar"),
        (lambda: LAYER.forward({"w": np.ones((4, 3), np.float32)}, STATE, X), ValueError, r"w of shape \(5, 3\)"),
    ],
)
def test_what_cannot_be_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
