"""The running mean of the parameters: a weighted mean in NumPy, optax's, and the same in a loop, a scan and vmap."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import adam, ema, evaluate, init_train_state, losses, mlp, train_epoch, train_step

FLOAT64 = 1e-13


def path(steps=40, shape=(3,), dtype="float64"):
    rng = np.random.default_rng(0)
    return jnp.asarray(np.cumsum(rng.normal(size=(steps, *shape)), axis=0), dtype)


def averaged(average, thetas):
    """The mean after each θ."""

    def step(state, theta):
        state = average.update(state, theta)
        return state, state.average

    return jax.lax.scan(step, average.init(thetas[0]), thetas)[1]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_weighted_mean(decay):
    """Σ βᵏ θ₍t₋k₎ / Σ βᵏ, summed as it is written."""
    with jax.enable_x64(True):
        thetas = path()
        ours = np.asarray(averaged(ema(decay), thetas))
    for t in range(1, len(thetas) + 1):
        weights = float(decay) ** np.arange(t)[::-1]
        expected = (weights[:, None] * np.asarray(thetas[:t])).sum(0) / weights.sum()
        np.testing.assert_allclose(ours[t - 1], expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_mean_of_optax(decay):
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    theirs = optax.ema(decay)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        thetas = path(steps=1000)
        start = theirs.init(thetas[0])
        expected = jax.lax.scan(lambda state, theta: theirs.update(theta, state)[::-1], start, thetas)[1]
        ours = averaged(ema(decay), thetas)
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", [0.9, 0.9999, 0.9999999])
def test_the_correction_does_not_cancel(decay):
    """In float32 1 − β of β = 0.9999999 is 19 % off; and of a constant θ the mean is θ, to the bit, from the first."""
    constant = jnp.full((200, 1), 1 / 3)
    np.testing.assert_array_equal(averaged(ema(decay), constant), constant)
    thetas = path(steps=200, dtype="float32")
    weights = decay ** np.arange(200, dtype=np.float64)[::-1]
    expected = (weights[:, None] * np.asarray(thetas, np.float64)).sum(0) / weights.sum()
    np.testing.assert_allclose(averaged(ema(decay), thetas)[-1], expected, rtol=1e-5)


def test_loop_scan_vmap_and_jit_agree():
    average, thetas = ema(0.9), path(dtype="float32", shape=(4, 3))
    scanned = averaged(average, thetas)
    state = average.init(thetas[0])
    together = jax.vmap(average.init)(thetas[0])
    for t, theta in enumerate(thetas[:10]):
        state = average.update(state, theta)
        together = jax.jit(jax.vmap(average.update))(together, theta)
        np.testing.assert_allclose(state.average, scanned[t], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(together.average, scanned[t], rtol=1e-6, atol=1e-6)
    assert state.step == 10
    np.testing.assert_array_equal(together.step, np.full(4, 10))


def test_half_way_resumed_it_goes_on_to_the_bit():
    average, thetas = ema(0.99), path(dtype="float32")
    run = jax.jit(
        lambda state, thetas: jax.lax.scan(lambda s, theta: (average.update(s, theta), None), state, thetas)[0]
    )
    half = run(average.init(thetas[0]), thetas[:20])
    resumed = run(jax.tree.map(np.asarray, half), thetas[20:])
    jax.tree.map(np.testing.assert_array_equal, resumed, run(average.init(thetas[0]), thetas))


def test_what_init_was_given_is_copied_and_counts_nothing():
    params = {"w": jnp.array([math.nan, 1.0])}
    state = ema(0.9).init(params)
    jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p), donate_argnums=0)(
        params
    )  # the parameters are gone, not the copy
    np.testing.assert_array_equal(state.average["w"], [math.nan, 1.0])
    state = ema(0.9).update(state, {"w": jnp.array([5.0, 7.0])})
    np.testing.assert_array_equal(state.average["w"], [5.0, 7.0])
    state = ema(0.9).update(state, {"w": jnp.array([math.nan, 7.0])})  # but what it has seen counts
    np.testing.assert_array_equal(state.average["w"], [math.nan, 7.0])


def test_low_precision_is_averaged_in_float32():
    """A mean kept in bfloat16 would not move: 1 + 0.001 is 1 there."""
    average, thetas = ema(0.999), jnp.r_[jnp.ones(1), jnp.full(999, 2.0)].astype(jnp.bfloat16)
    mean = averaged(average, thetas)[-1]
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 2 - 0.999**999 * 0.001 / (1 - 0.999**1000), rtol=1e-4)


def test_beside_training():
    """Updated after each step of a scan, or after each epoch; the mean is evaluated in the place of the parameters."""
    net, optimizer, average = mlp([8, 1]), adam(0.05), ema(0.9)
    x = jnp.linspace(-1, 1, 32)[:, None]
    step = train_step(net, losses.mse, optimizer)
    state = init_train_state(net, optimizer, 0, (1,))

    @jax.jit
    def steps(state, mean):
        def one(carry, _):
            state, mean = carry
            state, _ = step(state, x, x**2)
            return (state, average.update(mean, state.params)), state.params

        return jax.lax.scan(one, (state, mean), length=20)

    (after, mean), params = steps(state, average.init(state.params))
    weights = 0.9 ** np.arange(20.0)[::-1]
    for ours, leaf in zip(*map(jax.tree.leaves, (mean.average, params)), strict=True):
        expected = np.tensordot(weights / weights.sum(), np.asarray(leaf, np.float64), axes=1)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)

    run = jax.jit(train_epoch(net, losses.mse, optimizer, batch_size=8), donate_argnums=0)
    for _ in range(3):
        after, _ = run(after, x, x**2)
        mean = average.update(mean, after.params)
    assert mean.step == 23
    assert math.isfinite(evaluate(net, losses.mse, after._replace(params=mean.average), (x, x**2))["loss"])


def test_what_is_refused():
    with pytest.raises(ValueError, match="ema: decay must be at least 0 and below 1"):
        ema(1.0)
    with pytest.raises(TypeError, match="ema: decay must be a number"):
        ema(None)
    with pytest.raises(TypeError, match=r"ema: parameters must be real floats, got int32\[2\] at 'w'"):
        ema().init({"w": jnp.arange(2)})
    with pytest.raises(
        ValueError, match=r"(?s)ema: the parameters do not fit the average.*w: expected \[2\], got \[3\]"
    ):
        ema().update(ema().init({"w": jnp.ones(2)}), {"w": jnp.ones(3)})
    assert ema(0.999) == ema(decay=0.999)
