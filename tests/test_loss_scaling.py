"""Loss scaling: float16 without underflow, the scale's course, what a skipped step leaves alone, and who carries it."""

import json
import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from datasets import mnist_folder, needs_mnist
from draws import drawn
from laws import close

from jaxnn import (
    DivergenceError,
    Loss,
    accumulate,
    adam,
    autodiff,
    backprop,
    batch_norm,
    chain,
    checkpoint,
    clip_by_global_norm,
    clip_by_value,
    data,
    dense,
    describe,
    evaluate,
    fit,
    flatten,
    from_description,
    init_train_state,
    loss_scaling,
    losses,
    low_precision,
    metrics,
    mlp,
    penalties,
    run,
    serial,
    sgd,
    sweep,
    tanh,
    train_step,
)
from jaxnn.optimizers import scaling
from jaxnn.optimizers.parts import loss_scale_of

NET = serial(dense(4, bias=False), batch_norm(), tanh, dense(2))
LOW, ONE = low_precision(NET, "float16"), low_precision(dense(2), "float16")
DRAW = np.random.default_rng(0)
X, T = DRAW.normal(size=(12, 3)).astype(np.float32), DRAW.normal(size=(12, 2)).astype(np.float32)
SMALL = 2.0**-22  # of float16's numbers, the smallest is 2⁻²⁴
OFF = 2.0**-7  # of float16's roundings along a path of five layers

# the mean squared error in other units
tiny = Loss("tiny", lambda y, t: SMALL * jnp.square(y - t).mean(1), lambda y, t: SMALL * (y - t) * 2 / y.shape[1])
wild = Loss("wild", lambda y, t: jnp.square(y - t).mean(1), lambda y, t: jnp.full_like(y, jnp.inf))


def bits(tree):
    """The bytes of every array, in order."""
    data = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return [np.asarray(data(jnp.asarray(leaf))).tobytes() for leaf in jax.tree.leaves(tree)]


def overflowing(state, **fields):
    return state._replace(opt_state=state.opt_state._replace(loss_scale=jnp.float32(2.0**120), **fields))


# ---------------------------------------------------------------- gradients


@cache
def gradients():
    """(gradients, δs, loss) of a tiny loss: exact in float32; in float16 by both derivations, unscaled and scaled."""
    params, state = drawn(LOW, (3,))
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)

    def of(net, derive, scale):
        return lambda params: derive(net, tiny, read=("deltas",), penalty=penalties.l2(1e-9))(
            params, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state), X, T, scale=scale
        )

    made = {"exact": (NET, backprop, None)}
    made |= {(d.__name__, s): (LOW, d, s) for d in (backprop, autodiff) for s in (None, 2.0**15)}
    return {name: by_numpy(of(*args))(params) for name, args in made.items()}


def underflows_without_a_scale_and_not_with_it():
    found = gradients()
    biggest = lambda out: np.abs(out.readings["deltas"]["dense_0"]).max()
    for derive in ("backprop", "autodiff"):
        assert biggest(found[derive, None]) == 0, "there is nothing to rescue"
        close(found[derive, 2.0**15].grads, found["exact"].grads, OFF, "gradients in float16, scaled")


def test_float16_underflows_without_a_scale_and_not_with_it():
    underflows_without_a_scale_and_not_with_it()


def test_what_a_pass_reports_is_without_the_scale():
    """Loss and δs, and the gradient of a penalty, which is not scaled by hand."""
    found = gradients()
    for derive in ("backprop", "autodiff"):
        out = found[derive, 2.0**15]
        np.testing.assert_array_equal(out.loss, found[derive, None].loss)
        deltas = out.readings["deltas"]["dense_1"]
        assert deltas.dtype == np.float16
        expected = found["exact"].readings["deltas"]["dense_1"]
        assert np.abs(deltas - expected).max() <= 2.0**-24  # as near as float16 has numbers


@pytest.mark.parametrize("scale", [0, -1.0, np.inf, np.nan])
def test_a_scale_is_above_0(scale):
    params, state = drawn(NET, (3,))
    with pytest.raises(ValueError, match="scale must be above 0"):
        backprop(NET, losses.mse)(params, state, X, T, scale=scale)


# ---------------------------------------------------------------- the course of the scale


def course(sizes, optimizer=None, **settings):
    """(scale, good, overflows, update) after each gradient of those sizes."""
    optimizer = loss_scaling(optimizer or sgd(1.0), **settings)
    state, seen = optimizer.init(np.float32(0)), []
    for size in sizes:
        update, state = by_numpy(optimizer.update)(np.float32(size), state)
        seen.append((float(state.loss_scale), int(state.good), int(state.overflows), float(update)))
    return seen


def halves_and_doubles():
    found = course([1, 1, 1, np.inf, np.nan, 1, 1], initial=8.0, period=2)
    assert found == [
        (8, 1, 0, -1), (16, 0, 0, -1), (16, 1, 0, -1), (8, 0, 1, 0), (4, 0, 2, 0), (4, 1, 2, -1), (8, 0, 2, -1),
    ]  # fmt: skip


def test_the_scale_halves_at_an_overflow_and_doubles_after_a_period():
    halves_and_doubles()


def test_the_scale_stays_between_its_limits():
    assert course([1, 1], initial=scaling.LARGEST, period=1)[-1][:2] == (scaling.LARGEST, 0)
    found = course([np.inf, np.inf, 1], initial=2 * scaling.SMALLEST, period=9)
    assert found[0] == (scaling.SMALLEST, 0, 1, 0)
    assert found[1][:3] == (scaling.SMALLEST, 0, 1)
    assert np.isnan(found[1][3])


def a_skipped_step_changes_nothing():
    """In a training with moments and running statistics; the scale is halved, and the next step is taken."""
    optimizer = loss_scaling(chain(clip_by_global_norm(1.0), adam(0.1)))
    made = train_step(LOW, losses.mse, optimizer)
    step = jax.jit(lambda *args: made(*args))  # traced anew for every fault
    before, _ = step(init_train_state(LOW, optimizer, 0, (3,)), X, T)
    after, out = step(overflowing(before), X, T)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out.grads))
    assert np.isfinite(out.loss)
    kept = lambda state: (state.params, state.state, state.opt_state.state, state.opt_state[:3])
    assert bits(kept(after)) == bits(kept(before)), "a skipped step moved something"
    assert float(after.opt_state.loss_scale) == 2.0**119, "the scale was not halved"
    assert int(after.opt_state.overflows) == 1
    assert int(after.step) == int(before.step) + 1
    moved, _ = step(overflowing(before)._replace(opt_state=before.opt_state), X, T)
    assert not any(a == b for a, b in zip(bits(moved.params), bits(before.params), strict=True))


def test_a_skipped_step_changes_nothing():
    a_skipped_step_changes_nothing()


def test_the_state_shows_the_rate_of_the_optimizer():
    optimizer = loss_scaling(adam(0.1))
    state = optimizer.init(np.zeros(2))
    assert float(state.learning_rate) == pytest.approx(0.1)
    update, state = optimizer.update(np.ones(2), state._replace(learning_rate=jnp.float32(0.0)))
    assert not np.any(update)
    assert (int(state.step), state.state.step) == (1, ())
    assert loss_scaling(clip_by_value(1.0)).init(np.zeros(2)).learning_rate is None


# ---------------------------------------------------------------- with others


def test_clipping_in_front_does_not_hide_an_overflow():
    """clip_by_value makes a finite number of ∞; the gradients themselves are passed on as grad."""
    optimizer = chain(clip_by_value(1.0), loss_scaling(sgd(1.0), initial=8.0))
    state = optimizer.init(np.zeros(1, np.float32))
    g = np.full(1, np.inf, np.float32)
    update, state = optimizer.update(g, state, grad=g)
    assert (float(update[0]), float(loss_scale_of(state))) == (0.0, 4.0)


def test_accumulate_inside_drops_the_batch_that_overflows():
    found = course([1, np.inf, 3], accumulate(sgd(1.0), 2), initial=8.0)
    assert [row[0] for row in found] == [8, 4, 4]
    assert [row[3] for row in found] == [0, 0, -2]


def test_what_is_refused():
    with pytest.raises(ValueError, match="put loss_scaling around, loss_scaling"):
        accumulate(loss_scaling(sgd(0.1)), 2).init(np.zeros(1))
    with pytest.raises(ValueError, match="scales the loss already"):
        loss_scaling(chain(loss_scaling(sgd(0.1)))).init(np.zeros(1))
    twice = chain(loss_scaling(clip_by_value(1.0)), loss_scaling(sgd(0.1)))
    state = init_train_state(NET, twice, 0, (3,))
    with pytest.raises(ValueError, match="has 2 loss scales: keep one"):
        train_step(NET, losses.mse, twice)(state, X, T)
    for wrong in ({"initial": 0.0}, {"initial": 2.0**25}, {"factor": 1.0}, {"period": 0}):
        with pytest.raises(ValueError, match=f"loss_scaling: {next(iter(wrong))} must be"):
            loss_scaling(sgd(0.1), **wrong)
    with pytest.raises(TypeError, match="loss_scaling: optimizer"):
        loss_scaling(0.1)


def test_records_and_checkpoints(tmp_path):
    optimizer = loss_scaling(chain(clip_by_global_norm(1.0), adam(0.1)), initial=8.0, period=3)
    assert from_description(json.loads(json.dumps(describe(optimizer)))) == optimizer
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer
    assert repr(loss_scaling(sgd(0.1), period=3)) == "loss_scaling(sgd(0.1), period=3)"
    settings = {"epochs": 2, "batch_size": 4, "key": 0, "progress": False}
    whole = fit(ONE, losses.mse, optimizer, (X, T), **settings)
    for epochs in (1, 2):
        resumed = fit(ONE, losses.mse, optimizer, (X, T), **settings | {"epochs": epochs}, checkpoint=tmp_path)
    assert bits(resumed.train_state) == bits(whole.train_state)
    loaded = checkpoint.load(checkpoint.save(tmp_path / "a.safetensors", whole.train_state.opt_state))
    assert type(loaded) is scaling.LossScalingState
    assert float(whole.train_state.opt_state.loss_scale) == 32.0


def test_runs_and_sweeps_have_a_scale_for_each_member():
    make = lambda initial: train_step(ONE, losses.mse, loss_scaling(sgd(0.1), initial=initial, period=100))
    found = sweep(make, {"initial": [2.0, 2.0**24]}, epochs=2, batch_size=4)((X, T))
    scales = [float(found.member(i).opt_state.loss_scale) for i in range(2)]
    assert scales[0] == 2.0
    assert scales[1] < 2.0**24
    alone = run(make(2.0), epochs=2, batch_size=4)(init_train_state(ONE, make(2.0).optimizer, 0, (3,)), (X, T))
    assert float(alone.train_state.opt_state.loss_scale) == 2.0
    assert np.isfinite(alone.history["loss"]).all()


@pytest.mark.parametrize("skip", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_scale_that_does_not_help_is_a_divergence(skip):
    optimizer = loss_scaling(sgd(0.1), initial=4 * scaling.SMALLEST)
    words = r"grads/b is not finite.* the loss scale has fallen to 6\.1e-05, the smallest"
    with pytest.raises(DivergenceError, match=words) as told:
        fit(ONE, wild, optimizer, (X, T), epochs=3, batch_size=4, key=0, skip_nonfinite=skip)
    error = told.value
    assert (error.step, error.loss_scale) == (2, scaling.SMALLEST)  # after two that were skipped
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.loss_scale) == (str(error), scaling.SMALLEST)
    assert int(error.moment.train_state.opt_state.overflows) == 2


@pytest.mark.long
@pytest.mark.parametrize("skip", [0, 2])
def test_a_loss_that_is_not_finite_is_none_of_the_scales_business(skip):
    nan = Loss("nan", lambda y, t: y.sum(1) * jnp.nan, lambda y, t: y * jnp.nan)
    with pytest.raises(DivergenceError, match="loss is not finite") as told:
        fit(ONE, nan, loss_scaling(sgd(0.1)), (X, T), epochs=3, batch_size=4, key=0, skip_nonfinite=skip)
    assert told.value.loss_scale is None
    assert float(told.value.train_state.opt_state.loss_scale) == 2.0**15


def test_skipping_leaves_overflows_to_the_scale():
    """Steps that overflow are not among those that `skip_nonfinite` counts, and the scale falls."""
    optimizer = loss_scaling(sgd(0.1))
    state = overflowing(init_train_state(ONE, optimizer, 0, (3,)))
    found = fit(ONE, losses.mse, optimizer, (X, T), epochs=1, batch_size=4, train_state=state, skip_nonfinite=1)
    assert found.history["skipped"] == [0.0]
    assert int(found.train_state.opt_state.overflows) == 3
    assert bits(found.train_state.params) == bits(state.params)


@pytest.mark.long
@needs_mnist
def test_mnist_is_learnt_as_well_in_low_precision():
    """Within 0.3 % of float32's accuracy, on average over three seeds; a seed's own accuracy varies by as much."""
    (x, labels), test = data.mnist(mnist_folder())
    net, accuracy = serial(flatten(), mlp([64, 10])), {}
    for name, each, optimizer in (
        ("float32", net, adam(1e-3)),
        ("bfloat16", low_precision(net), adam(1e-3)),
        ("float16", low_precision(net, "float16"), loss_scaling(adam(1e-3), period=500)),
    ):
        settings = {"epochs": 2, "batch_size": 64, "progress": False}
        states = [
            fit(each, losses.softmax_cross_entropy, optimizer, (x, labels), key=seed, **settings).train_state
            for seed in range(3)
        ]
        scores = [
            evaluate(each, losses.softmax_cross_entropy, state, test, metrics={"accuracy": metrics.accuracy})[
                "accuracy"
            ]
            for state in states
        ]
        accuracy[name] = np.mean(scores)
    assert accuracy["float32"] > 0.94
    assert abs(accuracy["bfloat16"] - accuracy["float32"]) <= 0.003, accuracy
    assert abs(accuracy["float16"] - accuracy["float32"]) <= 0.003, accuracy
    assert float(states[0].opt_state.loss_scale) > 2.0**15


# ---------------------------------------------------------------- faults


class NotHalved(loss_scaling):
    def update(self, grads, opt_state, params=None, **extras):
        updates, new = super().update(grads, opt_state, params, **extras)
        return updates, new._replace(loss_scale=jnp.maximum(new.loss_scale, opt_state.loss_scale))


class NotSkipped(loss_scaling):
    def update(self, grads, opt_state, params=None, **extras):
        finite = jax.tree.map(jnp.nan_to_num, grads)
        updates, new = super().update(finite, opt_state, params)
        return updates, new._replace(loss_scale=opt_state.loss_scale / 2, overflows=opt_state.overflows + 1)


FAULTS = {  # where, what is put there, and the check that must fail
    "the scale is not divided out": (
        "jaxnn.passes.backprop._divided", lambda grads, scale: grads, underflows_without_a_scale_and_not_with_it,
    ),
    "the scale is not halved": (None, NotHalved, halves_and_doubles),
    "the step is not skipped": (None, NotSkipped, a_skipped_step_changes_nothing),
    "the network's state moves": ("jaxnn.training.steps.overflowed", lambda *_: None, a_skipped_step_changes_nothing),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault, monkeypatch):
    where, wrong, check = FAULTS[fault]
    if where is None:
        monkeypatch.setitem(globals(), "loss_scaling", wrong)
    else:
        monkeypatch.setattr(where, wrong)
    gradients.cache_clear()
    with pytest.raises(AssertionError):
        check()
    gradients.cache_clear()
