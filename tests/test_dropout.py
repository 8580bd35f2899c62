"""Dropout by chance bounds, its key, its mask in the tape, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import (
    autodiff,
    backprop,
    dropout,
    losses,
    repeat,
    serial,
    share,
)

RATE = 0.3
ONES = jnp.ones((2000, 10))
SIGMAS = 5  # a fair draw leaves the bounds once in two million


def drawn(layer, x, seed=0):
    return layer.forward({}, (), x, train=True, rng=jax.random.key(seed))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_share_and_mean_are_within_chance(rate):
    h, _, kept = drawn(dropout(rate), ONES)
    spread = SIGMAS * np.sqrt(rate * (1 - rate) / ONES.size)
    assert abs(float(kept.mean()) - (1 - rate)) < spread
    assert abs(float(h.mean()) - 1) < spread / (1 - rate)
    np.testing.assert_allclose(np.unique(h), [0, 1 / (1 - rate)], rtol=1e-6)


def test_units_and_examples_are_independent():
    kept = np.asarray(drawn(dropout(RATE), ONES)[2], np.float64)
    correlation = np.corrcoef(kept.T) - np.eye(10)
    assert np.abs(correlation).max() < SIGMAS / np.sqrt(len(kept))
    following = np.corrcoef(kept[:-1].ravel(), kept[1:].ravel())[0, 1]
    assert abs(following) < SIGMAS / np.sqrt(kept.size)


def test_one_key_one_mask():
    first, again, other = (drawn(dropout(RATE), ONES, seed)[0] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    with jax.enable_x64(True):
        wide = drawn(dropout(RATE), jnp.ones(ONES.shape, jnp.float64))[2]
    assert (np.asarray(wide) == np.asarray(first != 0)).all()  # not another mask in another precision


def test_every_place_and_every_pass_has_a_mask_of_its_own():
    net = serial(dropout(RATE), dropout(RATE))
    _, _, tape = drawn(net, ONES)
    assert (tape["dropout_0"] != tape["dropout_1"]).any()
    for combinator in (repeat, share):
        _, _, kept = drawn(combinator(dropout(RATE), 2), ONES)
        assert (kept[0] != kept[1]).any()


def test_the_tape_is_a_byte_for_each_value_and_nothing_in_evaluation():
    assert drawn(dropout(RATE), ONES)[2].dtype == bool
    for rate, train in ((RATE, False), (0.0, True)):
        h, _, tape = dropout(rate).forward({}, (), ONES, train=train)
        assert (h == ONES).all()
        assert tape == ()


def test_bfloat16_is_scaled_without_bias():
    h = drawn(dropout(0.1), jnp.full((100, 10), 0.9, jnp.bfloat16))[0]
    assert h.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.unique(np.asarray(h, np.float32)), [0, 1], atol=2**-8)


def test_the_key_reaches_both_derivations():
    net, x = serial(dropout(RATE), dropout(0.0)), jnp.cos(ONES[:8])
    params, state = net.init(0, (10,))
    passes = [f(net, losses.mse, read=("deltas",)) for f in (backprop, autodiff)]
    hand, auto = (f(params, state, x, 0 * x, rng=jax.random.key(1)) for f in passes)
    np.testing.assert_allclose(hand.loss, auto.loss, rtol=1e-6)
    np.testing.assert_allclose(
        hand.readings["deltas"]["dropout_0"], auto.readings["deltas"]["dropout_0"], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_share_is_from_0_to_below_1(rate):
    with pytest.raises(ValueError, match=r"dropout: drop_rate must be at least 0 and below 1"):
        dropout(rate)


def test_refused():
    with pytest.raises(TypeError, match="dropout: drop_rate must be a number"):
        dropout(None)
    with pytest.raises(ValueError, match=r"layer 'dropout_0' needs a key in training: pass rng=jax.random.key"):
        serial(dropout(RATE)).forward({}, (), ONES, train=True)
    with pytest.raises(ValueError, match="dropout expects float features, got int32"):
        dropout(RATE).forward({}, (), jnp.ones((2, 3), jnp.int32))
