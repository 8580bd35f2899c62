"""Means over an epoch: large losses, weights of every scale, many steps, and the penalty beside the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import FLOAT32

from jaxnn import (
    DivergenceError,
    Loss,
    Penalty,
    TrainState,
    autodiff,
    backprop,
    dense,
    evaluate,
    fit,
    losses,
    metrics,
    serial,
    sgd,
    stopping,
    train_epoch,
)
from jaxnn.penalties import l2
from jaxnn.training.means import means_of
from jaxnn.weighting import usable_weights

N, D = 10, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
TARGET = RNG.normal(size=(N, 1)).astype(np.float32)
WEIGHTS = RNG.integers(1, 8, N).astype(np.float32) / 8
NET, STILL = serial(dense(1)), sgd(0.0)
OPTIONS = {"key": 0, "epochs": 1, "batch_size": 4, "metrics": {"mse": losses.mse.value}}


def figures(result):
    return {name: values[0] for name, values in result.history.items() if name != "seconds"}


# ---------------------------------------------------------------- large and small losses


LEVEL = Loss("level", lambda y, t: t[:, 0], lambda y, t: 0 * y)  # what the target says


@pytest.mark.parametrize("weights", [None, np.full(200, 3, np.float32)], ids=["plain", "weighted"])
def test_a_mean_that_can_be_written_is_not_infinite(weights):
    """200 examples: 38 losses of 9e36 add up to more than 3.4e38."""
    for value in (9e36, 3e38, 1e-30):
        data = (np.zeros((200, D), np.float32), np.full((200, 1), value, np.float32))
        data += () if weights is None else (weights,)
        result = fit(NET, LEVEL, STILL, data, validation=data, **(OPTIONS | {"batch_size": 100, "metrics": [levels]}))
        expected = dict.fromkeys(("loss", "levels", "validation_loss", "validation_levels"), value)
        assert figures(result) == pytest.approx(expected, rel=FLOAT32, abs=0)


def levels(prediction, target):
    return target[:, 0]


@pytest.mark.parametrize(("dtype", "value"), [(jnp.float16, 60_000), (jnp.bfloat16, 2.0**120)])
def test_half_precision_is_added_up_in_float32(dtype, value):
    data = (np.zeros((200, D), np.float32), np.full((200, 1), value, dtype))
    result = fit(NET, LEVEL, STILL, data, **(OPTIONS | {"batch_size": 50, "metrics": [levels]}))
    assert figures(result) == pytest.approx({"loss": value, "levels": value}, rel=2.0**-8)


def test_a_million_steps_lose_no_digits():
    """A running sum of 0.1 in float32 is 1 % off after a million."""
    values = jax.device_put(np.full(1_000_000, 0.1, np.float32))
    means = jax.jit(means_of)({"weight": jnp.ones_like(values), "loss": values})
    assert float(means["loss"]) == pytest.approx(0.1, rel=FLOAT32)


# ---------------------------------------------------------------- weights of every scale


SCALES = (1e-40, 1e-30, 1.0, 1e30, 1.5e38)


def test_the_scale_of_the_weights_is_of_no_importance():
    """Every figure, and the parameters, as NumPy has them in float64; 1e-40 is below the normal numbers."""
    rows = []
    for scale in SCALES:
        weights = np.asarray(WEIGHTS * np.float64(scale), np.float32)
        data = (X, TARGET, weights)
        result = fit(NET, losses.mse, sgd(0.1), data, validation=data, **OPTIONS)
        rows.append((figures(result), result.train_state.params["dense_0"]))
        relative = weights.astype(np.float64) / weights.astype(np.float64).sum()
        output = X @ np.asarray(rows[-1][1]["w"], np.float64) + np.asarray(rows[-1][1]["b"], np.float64)
        expected = (relative * np.square(output - TARGET)[:, 0]).sum()
        assert rows[-1][0]["validation_loss"] == pytest.approx(expected, rel=FLOAT32)
        assert rows[-1][0]["validation_mse"] == pytest.approx(expected, rel=FLOAT32)
    for found, params in rows:
        assert found == pytest.approx(rows[2][0], rel=1e-4)
        for name, leaf in params.items():
            np.testing.assert_allclose(leaf, rows[2][1][name], rtol=1e-4)


def test_both_derivations_take_weights_of_every_scale():
    params = {"dense_0": {"w": np.ones((D, 1), np.float32), "b": np.zeros(1, np.float32)}}
    error = X.sum(1, dtype=np.float64) - TARGET[:, 0]
    for gradient in (backprop, autodiff):
        run = jax.jit(lambda w, gradient=gradient: gradient(NET, losses.mse)(params, (), X, TARGET, weights=w))
        for scale in SCALES:
            weights = np.asarray(WEIGHTS * np.float64(scale), np.float32)
            out, w = run(weights), weights / weights.astype(np.float64).sum()
            np.testing.assert_allclose(out.loss, (w * error**2).sum(), rtol=FLOAT32)
            np.testing.assert_allclose(out.grads["dense_0"]["b"], [(w * 2 * error).sum()], rtol=1e-4)
            if 1e-30 <= scale <= 1e30:
                np.testing.assert_allclose(out.weight, weights.sum(dtype=np.float64), rtol=FLOAT32)


def test_weights_are_brought_to_a_moderate_scale_exactly():
    """In each precision, by powers of two alone; a derivative by a weight passes through."""
    run = jax.jit(usable_weights, static_argnums=1)
    with jax.enable_x64(True):
        for dtype in (jnp.float16, jnp.bfloat16, np.float32, np.float64):
            for scale in (1e-310, 1e-45, 1e-39, 1e-20, 1.0, 1e20, 1e38, 1e300):
                w = (np.array([0, 1, 0.25, 0.75]) * min(scale, float(jnp.finfo(dtype).max) / 2)).astype(dtype)
                if not w.any():
                    continue
                for work in (np.float32, np.float64):
                    found, unit = (np.asarray(part, np.float64) for part in run(w, jnp.dtype(work)))
                    exact = w.astype(np.float64) if dtype != np.float64 or work == np.float64 else None
                    assert 2.0**-64 < found.max() < 2.0**64
                    if exact is not None:
                        power = np.log2(exact.max()) - np.log2(found.max())
                        np.testing.assert_array_equal(found[1:] / found.max(), exact[1:] / exact.max())
                        assert power == pytest.approx(round(power))
                        if abs(power) < 100:
                            assert unit == 2.0 ** round(power)
        slope = jax.grad(lambda w: jnp.dot(*(lambda v, u: (v / v.sum(), jnp.arange(4.0)))(*usable_weights(w, w.dtype))))
        w = np.array([0.0, 1.0, 3.0, 0.5])
        expected = (np.arange(4) * w.sum() - (np.arange(4) * w).sum()) / w.sum() ** 2
        np.testing.assert_allclose(slope(w), expected, rtol=1e-12)


def test_whole_numbers_and_booleans_weigh_as_floats_do():
    params = {"dense_0": {"w": np.ones((D, 1), np.float32), "b": np.zeros(1, np.float32)}}
    state = TrainState(params, (), STILL.init(params), jnp.zeros((), jnp.int32), jax.random.key(0))
    costs = np.square(X.sum(1, dtype=np.float64) - TARGET[:, 0])
    for weights in (np.arange(N) % 3, np.arange(N) % 2 == 0, np.full(N, 2**30)):
        scores = evaluate(NET, losses.mse, state, (X, TARGET, weights), metrics=OPTIONS["metrics"], batch_size=4)
        assert scores == pytest.approx(dict.fromkeys(("loss", "mse"), np.average(costs, weights=weights)), rel=FLOAT32)


def test_a_batch_without_weight_among_others_without_jit():
    """The last batch of a plain call is no loop's, and its weights could be looked at."""
    weights = (np.arange(N) < 8).astype(np.float32)
    epoch = train_epoch(NET, losses.mse, STILL, batch_size=4, shuffle=False)
    state = TrainState(
        {"dense_0": {"w": jnp.ones((D, 1)), "b": jnp.zeros(1)}}, (), STILL.init({}), 0, jax.random.key(0)
    )
    state = state._replace(opt_state=STILL.init(state.params), step=jnp.zeros((), jnp.int32))
    _, result = epoch(state, X, TARGET, weights)
    expected = np.square(X[:8].sum(1) - TARGET[:8, 0]).mean()
    np.testing.assert_allclose(result.loss, expected, rtol=FLOAT32)
    assert result.finite
    assert result.losses[2] == 0


# ---------------------------------------------------------------- the penalty


@pytest.mark.parametrize(("gradient", "weights"), [(backprop, WEIGHTS), (autodiff, None)])
def test_the_history_has_loss_and_penalty_side_by_side(gradient, weights):
    data = (X, TARGET) if weights is None else (X, TARGET, weights)
    penalty = l2(3.0)
    result = fit(NET, losses.mse, STILL, data, penalty=penalty, gradient=gradient, validation=data, **OPTIONS)
    w = np.asarray(result.train_state.params["dense_0"]["w"], np.float64)
    output = X @ w + np.asarray(result.train_state.params["dense_0"]["b"], np.float64)
    expected = np.average(np.square(output - TARGET)[:, 0], weights=weights)
    found = figures(result)
    assert list(found)[:2] == ["loss", "penalty"]
    assert found["loss"] == pytest.approx(expected, rel=FLOAT32)
    assert found["loss"] == pytest.approx(found["validation_loss"], rel=FLOAT32)
    assert found["penalty"] == pytest.approx(float(penalty.value({"dense_0": {"w": w, "b": 0 * w[0]}})), rel=FLOAT32)
    assert "validation_penalty" not in found


def test_an_epoch_reports_the_mean_penalty_of_its_steps():
    """Each step's penalty is that of the parameters before it, as `Pass.loss` has it."""
    optimizer, penalty = sgd(0.1), l2(0.5)
    epoch = jax.jit(train_epoch(NET, losses.mse, optimizer, batch_size=4, shuffle=False, penalty=penalty))
    plain = jax.jit(train_epoch(NET, losses.mse, optimizer, batch_size=4, shuffle=False))
    params = {"dense_0": {"w": np.ones((D, 1), np.float32), "b": np.zeros(1, np.float32)}}
    state = TrainState(params, (), optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(0))
    result = epoch(state, X, TARGET)[1]
    w, b = params["dense_0"]["w"].astype(np.float64), np.zeros(1)
    costs, penalties = [], []
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        error = X[rows] @ w + b - TARGET[rows]
        costs.append(np.square(error).mean())
        penalties.append(float(penalty.value({"w": jnp.asarray(w, jnp.float32)})))
        slope = 2 * X[rows].T @ error / len(error) + np.asarray(penalty.grad({"w": jnp.asarray(w, jnp.float32)})["w"])
        w, b = w - 0.1 * slope, b - 0.1 * 2 * error.mean(0)
    np.testing.assert_allclose(result.losses, costs, rtol=1e-4)
    np.testing.assert_allclose(result.loss, np.average(costs, weights=[4, 4, 2]), rtol=1e-4)
    np.testing.assert_allclose(result.penalty, np.average(penalties, weights=[4, 4, 2]), rtol=1e-4)
    assert plain(state, X, TARGET)[1].penalty == ()


def test_a_penalty_that_is_not_finite_ends_training():
    endless = Penalty(
        "endless", lambda params: jnp.asarray(np.inf), lambda params: jax.tree.map(jnp.zeros_like, params)
    )
    with pytest.raises(DivergenceError, match=r"step 0 .*: loss is not finite"):
        fit(NET, losses.mse, STILL, (X, TARGET), penalty=endless, **OPTIONS)


def test_the_penalty_can_be_watched_and_is_no_metrics_name():
    result = fit(
        NET, losses.mse, sgd(0.1), (X, TARGET), penalty=l2(1.0), watch="penalty", stopping=stopping.early_stopping(2),
        **(OPTIONS | {"epochs": 3}),
    )  # fmt: skip
    assert len(result.history["penalty"]) == len(result.history["loss"])
    with pytest.raises(ValueError, match="none of 'loss', 'penalty'"):
        fit(NET, losses.mse, STILL, (X, TARGET), **(OPTIONS | {"metrics": {"penalty": metrics.binary_accuracy}}))
    with pytest.raises(ValueError, match="watch must be one of"):
        fit(NET, losses.mse, STILL, (X, TARGET), watch="penalty", stopping=stopping.early_stopping(2), **OPTIONS)
