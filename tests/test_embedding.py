"""Embedding: flax, one-hot products, repeated indices, and indices that are out of the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import FLOAT32, FLOAT64, close

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
    serial,
    sgd,
    tanh,
)

V, H = 5, 3
X = jnp.array([[4, 0, 4], [2, 4, 1]])
LAYER = embedding(V, H)
PARAMS, STATE = LAYER.init(0, jax.ShapeDtypeStruct((3,), jnp.int32))
DELTA = jax.random.normal(jax.random.key(1), (2, 3, H))
NET = serial(embedding(V, H), flatten(), dense(2))


def test_values_are_flax_s():
    linen = pytest.importorskip("flax.linen", reason="flax is the oracle")
    expected = linen.Embed(V, H).apply({"params": {"embedding": PARAMS["w"]}}, X)
    assert np.array_equal(LAYER.forward(PARAMS, STATE, X)[0], expected)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int8", "uint32"])
def test_it_is_dense_on_one_hot_vectors(dtype):
    one_hot = jax.nn.one_hot(X, V)
    plain = dense(H, bias=False)
    y, _, tape = LAYER.forward(PARAMS, STATE, X.astype(dtype))
    z, _, plain_tape = plain.forward(PARAMS, (), one_hot)
    close(y, z, FLOAT32, "value")
    delta_in, grads = LAYER.backward(PARAMS, tape, DELTA)
    assert delta_in == ()
    close(grads, plain.backward(PARAMS, plain_tape, DELTA)[1], FLOAT32, "gradient")


def test_repeated_indices_add():
    _, _, tape = LAYER.forward(PARAMS, STATE, jnp.full((1000, 1), 2))
    delta = jnp.ones((1000, 1, H), jnp.bfloat16)
    _, grads = LAYER.backward({"w": PARAMS["w"].astype(jnp.bfloat16)}, tape, delta)
    assert grads["w"][:, 0].tolist() == [0, 0, 1000, 0, 0]  # in bfloat16 a sum of ones ends at 256


def test_both_derivations_of_a_network():
    params, state = NET.init(0, jax.ShapeDtypeStruct((3,), jnp.int32))
    labels = jnp.array([0, 1])
    by_hand, by_jax = (
        derive(NET, losses.softmax_cross_entropy, read=("deltas",))(params, state, X, labels)
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
TOKENS = jnp.array([[4, 0, 4], [2, 1, 1], [3, 2, 0]])
SPOILT = jnp.where(MASK, TOKENS, -7)
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
LABELS = jnp.array([0, 1, 1])


def deep(dtype=jnp.float32):
    return DEEP.init(0, Sequences(*(jax.ShapeDtypeStruct((3,), kind) for kind in (jnp.int32, jnp.bool_))), dtype)


def test_masks_pass_through_layers_that_work_on_each_step():
    """Both derivations of a network with a mask, and the gradients that its sequences have alone."""
    with jax.enable_x64(True):
        params, state = deep(jnp.float64)
        x = Sequences(SPOILT, jnp.asarray(MASK))
        by_hand, by_jax = (
            derive(DEEP, losses.softmax_cross_entropy, read=("deltas",))(
                params, state, x, LABELS, rng=jax.random.key(1)
            )
            for derive in (backprop, autodiff)
        )
        close(by_hand.grads, by_jax.grads, FLOAT64, "gradients")
        close(by_hand.readings, by_jax.readings, FLOAT64, "δs")
        passes = backprop(DEEP, losses.softmax_cross_entropy, train=False)
        whole = passes(params, state, x, LABELS)
        alone = [passes(params, state, TOKENS[n : n + 1, MASK[n]], LABELS[n : n + 1]) for n in range(len(MASK))]
        close(whole.loss, sum(one.loss for one in alone) / 3, FLOAT64, "loss")
        mean = jax.tree.map(lambda *grads: sum(grads) / 3, *(one.grads for one in alone))
        close(whole.grads, mean, FLOAT64, "gradients of each alone")


@pytest.mark.parametrize("layer", [dense(2), layer_norm(), dropout(0.5), serial(tanh), embedding(V, 2)])
def test_a_layer_hands_on_mask_and_state(layer):
    values = TOKENS if layer.kind == "embedding" else jax.random.normal(jax.random.key(0), (3, 3, 4))
    x = Sequences(values, jnp.asarray(MASK), jnp.ones((3, 5)))
    params, state = layer.init(0, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x))
    rng = jax.random.key(1)
    y, _, tape = layer.forward(params, state, x, train=True, rng=rng)
    plain, _, plain_tape = layer.forward(params, state, values, train=True, rng=rng)
    assert y.mask is x.mask
    assert y.initial is x.initial
    shown = MASK if layer.kind == "embedding" else np.ones_like(MASK)
    assert np.array_equal(y.values[shown], plain[shown])
    delta = jnp.where(MASK[..., None], jax.random.normal(jax.random.key(2), plain.shape), 0)
    delta_in, grads = layer.backward(params, tape, Sequences(delta, (), jnp.full((3, 5), 2.0)))
    expected_in, expected = layer.backward(params, plain_tape, delta)
    assert (delta_in.initial == 2).all()
    assert delta_in.mask == ()
    close((delta_in.values, grads), (expected_in, expected), FLOAT32, "backward")


@pytest.mark.parametrize("where", ["training", "validation"])
def test_fit_looks_at_the_tokens_that_are_not_masked(where):
    net = serial(
        parallel(serial(embedding(V, 2), gru(2, returns="last")), serial(embedding(V, 2), gru(2, returns="last")))
    )
    wrong, right = (Sequences(np.asarray(tokens), MASK) for tokens in (TOKENS.at[0, 1].set(V), SPOILT))
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
        DEEP.forward(*deep(), Sequences(TOKENS, jnp.asarray(MASK[:, :2])))


def test_a_loss_of_masked_sequences_is_refused():
    net = serial(embedding(V, 2), gru(2))
    params, state = net.init(0, jax.ShapeDtypeStruct((3,), jnp.int32))
    with pytest.raises(TypeError, match=r"the network's output is Sequences with a mask: .*'values' to count"):
        backprop(net, losses.softmax_cross_entropy)(params, state, Sequences(TOKENS, jnp.asarray(MASK)), TOKENS % 2)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("wrong", [-1, -V, V, 2**31 - 1])
def test_an_index_out_of_the_vocabulary(wrong):
    x = X.at[1, 2].set(wrong)
    net = serial(LAYER)
    params = {"embedding_0": PARAMS}
    with pytest.raises(
        ValueError, match=rf"layer 'embedding_0' expects indices 0 … 4, got 1 others.*\[1, 2\]: {wrong}"
    ):
        net.forward(params, (), x)
    y = jax.jit(lambda x: LAYER.forward(PARAMS, STATE, x)[0])(x)
    assert np.isnan(np.asarray(y[1, 2])).all()
    assert np.isfinite(np.asarray(y)).sum() == y.size - H
    _, grads = jax.jit(lambda x: LAYER.backward(PARAMS, x, jnp.ones((2, 3, H))))(x)
    assert grads["w"][:, 0].tolist() == [1, 0, 1, 0, 3]  # that of the 1 is gone, and nobody else's
    loss = lambda x: backprop(NET, losses.softmax_cross_entropy)(
        *NET.init(0, jax.ShapeDtypeStruct((3,), jnp.int32)), x, jnp.array([0, 1])
    )
    assert np.isnan(jax.jit(loss)(x).loss)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: embedding(0, 2), ValueError, "embedding: vocabulary must be at least 1"),
        (lambda: embedding(3, 2.5), TypeError, "embedding: width must be a whole number"),
        (lambda: LAYER.init(0, (3,)), ValueError, "expects whole numbers.*jax.ShapeDtypeStruct"),
        (lambda: LAYER.forward(PARAMS, STATE, jnp.ones((2, 3))), ValueError, "got float32: x.astype"),
        (lambda: LAYER.forward(PARAMS, STATE, jnp.array(1)), ValueError, "the batch axis first, got a scalar"),
        (lambda: LAYER.forward({"w": jnp.ones((4, 3))}, STATE, X), ValueError, r"w of shape \(5, 3\)"),
    ],
)
def test_what_cannot_be_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
