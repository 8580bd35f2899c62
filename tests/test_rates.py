"""The learning rate that a call gives, the one that a state holds, and a schedule that ends a training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

from jaxnn import (
    DivergenceError,
    accumulate,
    adagrad,
    adam,
    adamw,
    chain,
    clip_by_value,
    dense,
    fit,
    gradient_descent,
    init_train_state,
    losses,
    mlp,
    rmsprop,
    schedules,
    sgd,
    train_epoch,
    train_step,
)

NET, LOSS = dense(1), losses.mse
X = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
DATA = (X, 3 * X)
RULES = {
    "gradient_descent": gradient_descent,
    "sgd": functools.partial(sgd, momentum=0.9, nesterov=True),
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
    "chain": lambda rate: chain(clip_by_value(1.0), adam(rate)),
    "accumulate": lambda rate: accumulate(sgd(rate), 1),
    "nested": lambda rate: chain(chain(clip_by_value(1.0)), accumulate(chain(rmsprop(rate)), 1)),
}
every_rule = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in RULES.items()])


def started(optimizer):
    return evaluated(lambda: init_train_state(NET, optimizer, 0, (1,)))()


def a_step(optimizer):
    return evaluated(train_step(NET, LOSS, optimizer))


def moved(before, after):
    return np.abs(np.asarray(after.params["w"]) - np.asarray(before.params["w"])).max()


@every_rule
def test_a_call_with_another_number_uses_its_own(make):
    """The step is that of a state in which the new rate was set by hand, and so is the next one."""
    state, _ = a_step(make(0.1))(started(make(0.1)), *DATA)
    ours, _ = a_step(make(1e-9))(state, *DATA)
    assert ours.opt_state.learning_rate == ours.opt_state.given == np.float32(1e-9)
    by_hand = state._replace(opt_state=state.opt_state._replace(learning_rate=np.float32(1e-9)))
    theirs, _ = a_step(make(0.1))(by_hand, *DATA)
    np.testing.assert_array_equal(ours.params["w"], theirs.params["w"])
    assert 0 < moved(state, ours) + 1e-30 < 1e-6
    assert theirs.opt_state.given == np.float32(0.1)


@every_rule
def test_a_rate_that_was_set_by_hand_stays(make):
    state = started(make(0.1))
    state = state._replace(opt_state=state.opt_state._replace(learning_rate=np.float32(0.0)))
    for _ in range(2):
        after, _ = a_step(make(0.1))(state, *DATA)
        assert (after.opt_state.learning_rate, after.opt_state.given) == (0, np.float32(0.1))
        assert moved(state, after) == 0
        state = after


@every_rule
def test_from_a_schedule_to_a_number_and_back(make):
    falling = schedules.step_decay(0.1, factor=0.5, every=1)
    state, _ = a_step(make(falling))(started(make(falling)), *DATA)
    assert np.isnan(state.opt_state.given)
    ours, _ = a_step(make(1e-9))(state, *DATA)
    assert ours.opt_state.learning_rate == ours.opt_state.given == np.float32(1e-9)
    back, _ = a_step(make(falling))(ours, *DATA)
    assert np.isnan(back.opt_state.given)
    np.testing.assert_allclose(back.opt_state.learning_rate, 0.1 * 0.5 ** (int(back.opt_state.step) - 1), rtol=1e-6)


@every_rule
def test_update_by_hand_uses_the_state_alone(make):
    grads, params = {"w": DATA[0]}, {"w": DATA[1]}
    _, after = evaluated(make(1e-9).update)(grads, evaluated(make(0.1).init)(params), params)
    assert after.learning_rate == after.given == np.float32(0.1)


def test_in_an_epoch_in_fit_and_under_vmap():
    first = fit(NET, LOSS, adam(0.1), DATA, key=0, epochs=1, batch_size=4).train_state
    again = fit(NET, LOSS, adam(1e-9), DATA, train_state=first, epochs=1, batch_size=4).train_state
    assert again.opt_state.learning_rate == np.float32(1e-9)
    assert moved(first, again) < 1e-6
    epoch = jax.jit(train_epoch(NET, LOSS, adam(1e-9), batch_size=4))
    assert moved(first, epoch(first, *DATA)[0]) < 1e-6
    rates = jnp.float32([0.0, 0.1])
    sweep = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), first._replace(key=jax.random.key_data(first.key)))
    sweep = sweep._replace(key=jax.random.wrap_key_data(sweep.key))
    swept = sweep._replace(opt_state=sweep.opt_state._replace(learning_rate=rates))
    same = jax.jit(jax.vmap(train_epoch(NET, LOSS, adam(0.1), batch_size=4), in_axes=(0, None, None)))
    after, _ = same(swept, *DATA)
    np.testing.assert_array_equal(after.opt_state.learning_rate, rates)
    assert (np.asarray(after.params["w"]) == np.asarray(sweep.params["w"]))[0].all()
    assert moved(sweep, after) > 1e-3


def test_a_state_of_float32_goes_on_in_float64():
    """0.1 is another number in each, and none that anybody has set."""
    state = started(adam(0.1))
    state = state._replace(opt_state=state.opt_state._replace(learning_rate=np.float32(0.3)))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        after, _ = a_step(adam(0.1))(state, *DATA)
    np.testing.assert_allclose(after.opt_state.learning_rate, 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("made", "called", "complaint"),
    [
        (sgd(0.1), sgd(0.1, momentum=0.9), r"velocity/w: expected \[1, 1\], missing"),
        (sgd(0.1, momentum=0.9), sgd(0.1), r"velocity/w: not expected, got \[1, 1\]"),
        (sgd(0.1), adam(0.1), "expected AdamState, got SgdState"),
        (accumulate(sgd(0.1), 2), accumulate(sgd(0.1, momentum=0.9), 2), "state/velocity/w: expected"),
        (chain(sgd(0.1)), chain(clip_by_value(1.0), sgd(0.1)), "expected"),
    ],
)
def test_a_state_of_another_rule_is_refused_by_what_differs(made, called, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        fit(NET, LOSS, called, DATA, epochs=1, batch_size=4, train_state=started(made))
    assert "optimizer.init(train_state.params)" in str(caught.value)


# ---------------------------------------------------------------- schedules that end a training


@pytest.mark.parametrize(
    ("schedule", "value", "step"),
    [
        (lambda t: jnp.where(t < 9, -0.25, 0.1), "-0.25", 0),
        (lambda t: jnp.where(t < 3, 0.1, -1e-9), "-1e-09", 3),
        (lambda t: jnp.where(t < 5, 0.1, jnp.nan), "nan", 5),
        (lambda t: jnp.where(t < 2, 0.1, jnp.inf), "inf", 2),
    ],
    ids=["negative", "later", "nan", "infinite"],
)
def test_a_divergence_by_a_schedule_names_its_value(schedule, value, step):
    make = sgd if step else RULES["nested"]
    with pytest.raises(DivergenceError, match=f"with a learning rate of {value}:.*look at the schedule") as caught:
        fit(NET, LOSS, make(schedule), DATA, key=0, epochs=2, batch_size=2)
    assert caught.value.step == step
    assert caught.value.leaf.startswith("params/")
    np.testing.assert_allclose(caught.value.rate, float(value), rtol=1e-6)


def test_another_divergence_says_its_rate_too():
    with pytest.raises(DivergenceError, match=r"with a learning rate of 1e\+30: .* lower the learning rate") as caught:
        fit(mlp([1]), LOSS, sgd(1e30), DATA, key=0, epochs=2, batch_size=2)
    assert caught.value.rate == np.float32(1e30)
