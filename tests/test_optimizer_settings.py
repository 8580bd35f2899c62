"""Settings as numbers and as inputs: of optimizers, activations and losses.

A Python float is a constant of the program, a JAX scalar an input of it; the results are the same. All settings are
tested in one program each, since each depends on its own value alone.
"""

import dataclasses
import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

import jaxnn
from jaxnn import (
    Loss,
    accumulate,
    activations,
    adagrad,
    adam,
    adamw,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    dense,
    fit,
    gradient_descent,
    init_train_state,
    leaky_relu,
    loss_scaling,
    losses,
    penalties,
    rmsprop,
    sgd,
    train_step,
)
from jaxnn.losses import huber, label_smoothing
from jaxnn.penalties import everything

THETA = {"w": np.array([1.0, -2.0, 0.5, 3.0, -1.5])}
SCALES = {"w": np.array([1.0, 0.3, 2.0, 0.1, 1.3])}
SCORES, LABELS = np.array([[0.5, -1.0, 2.0], [1.5, 0.2, -0.3]]), np.array([2, 1])
Y, T = np.array([[0.3, -2.0, 5.0], [-0.4, 1.5, -3.0]]), np.zeros((2, 3))


def descended(optimizer, steps=3):
    """The parameters after some steps on Σ cosh(aθ)."""
    params, state = THETA, optimizer.init(THETA)
    for _ in range(steps):
        grads = jax.tree.map(lambda theta, a: a * jnp.sinh(a * theta), params, SCALES)
        updates, state = optimizer.update(grads, state, params)
        params = apply_updates(params, updates)
    return params


def costs(loss, prediction, target):
    return [rule(jnp.asarray(prediction), jnp.asarray(target)) for rule in (loss.value, loss.delta, loss.entries)]


def adapted(optimizer):
    """The scale after two good steps, each of which raises it, and an overflow."""
    state = optimizer.init(THETA)
    for size in (1.0, 1.0, np.inf):
        _, state = optimizer.update(jax.tree.map(lambda theta, size=size: size * theta, THETA), state)
    return state.loss_scale


OPTIMIZERS = {  # a setting of each: its maker from a value, values
    "gradient_descent: rate": (gradient_descent, (0.1, 0.02, 0.0)),
    "sgd: rate": (sgd, (0.1, 0.02, 0.0)),
    "sgd: momentum": (lambda v: sgd(0.1, momentum=v), (0.9, 0.5, 0.01)),
    "sgd: momentum, nesterov's": (lambda v: sgd(0.1, momentum=v, nesterov=True), (0.9, 0.5, 0.01)),
    "adagrad: rate": (adagrad, (0.1, 0.02, 1.0)),
    "adagrad: eps": (lambda v: adagrad(0.1, eps=v), (1e-6, 1e-2, 0.5)),
    "rmsprop: rate": (rmsprop, (0.1, 0.02, 1.0)),
    "rmsprop: rho": (lambda v: rmsprop(0.1, rho=v), (0.9, 0.999, 0.2)),
    "rmsprop: eps": (lambda v: rmsprop(0.1, eps=v), (1e-6, 1e-2, 0.5)),
    "adam: rate": (adam, (0.1, 0.02, 1.0)),
    "adam: b1": (lambda v: adam(0.1, b1=v), (0.9, 0.5, 0.01)),
    "adam: b2": (lambda v: adam(0.1, b2=v), (0.999, 0.9999999, 0.2)),
    "adam: eps": (lambda v: adam(0.1, eps=v), (1e-6, 1e-2, 0.5)),
    "adamw: rate": (lambda v: adamw(v, weight_decay=0.3), (0.1, 0.02, 1.0)),
    "adamw: b1": (lambda v: adamw(0.1, b1=v), (0.9, 0.5, 0.01)),
    "adamw: b2": (lambda v: adamw(0.1, b2=v), (0.999, 0.9, 0.2)),
    "adamw: eps": (lambda v: adamw(0.1, eps=v), (1e-6, 1e-2, 0.5)),
    "adamw: weight_decay": (lambda v: adamw(0.1, weight_decay=v, on=everything), (0.01, 0.3, 0.0)),
    "clip_by_global_norm: max_norm": (lambda v: chain(clip_by_global_norm(v), sgd(0.1)), (0.5, 2.0, 1e300)),
    "clip_by_value: limit": (lambda v: chain(clip_by_value(v), sgd(0.1)), (0.5, 0.05, 1e300)),
    "accumulate: rate": (lambda v: accumulate(adam(v), 1), (0.1, 0.02, 1.0)),
    "loss_scaling: rate": (lambda v: loss_scaling(adam(v)), (0.1, 0.02, 1.0)),
    "in chains: momentum": (lambda v: chain(accumulate(chain(sgd(0.1, momentum=v)), 1)), (0.9, 0.5, 0.01)),
}
RULES = {
    **{name: (lambda v, make=make: descended(make(v)), values) for name, (make, values) in OPTIMIZERS.items()},
    "loss_scaling: initial": (lambda v: adapted(loss_scaling(sgd(0.1), initial=v, period=1)), (1.5, 0.25, 4.0)),
    "loss_scaling: factor": (
        lambda v: adapted(loss_scaling(sgd(0.1), initial=1.0, factor=v, period=1)),
        (2.0, 1.5, 4.0),
    ),
    "leaky_relu: negative_slope, value": (lambda v: leaky_relu(v).value(jnp.asarray(Y)), (0.01, 0.3, 2.0)),
    "leaky_relu: negative_slope, slope": (
        lambda v: leaky_relu(v).slope(jnp.asarray(Y), jnp.asarray(Y)),
        (0.01, 0.3, 2.0),
    ),
    "huber: delta": (lambda v: costs(huber(v), Y, T), (0.2, 1.0, 4.0)),
    "label_smoothing: smoothing": (lambda v: costs(label_smoothing(v), SCORES, LABELS), (0.1, 0.0, 1.0)),
}
OUT_OF_RANGE = {
    "rate": -0.1,
    "momentum": 1.0,
    "momentum, nesterov's": math.inf,
    "rho": -0.1,
    "b1": 1.0,
    "b2": 1.0,
    "eps": 0.0,
    "weight_decay": -1.0,
    "max_norm": 0.0,
    "limit": 0.0,
    "negative_slope, value": -0.1,
    "negative_slope, slope": math.nan,
    "delta": 0.0,
    "smoothing": 1.5,
    "initial": 0.0,
    "factor": 1.0,
}
every_rule = pytest.mark.parametrize("name", RULES)
STEP = 1e-5  # of a central difference, relative


@functools.cache
def by_floats(name, value):
    """The results of one value as a Python float."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, evaluated(lambda: RULES[name][0](value))())


@functools.cache
def by_inputs():
    """The results of all values as inputs, [values, …], the number of traces, and the results out of range."""
    traces = []

    def all_of_them(values):
        traces.append(1)
        return {name: make(values[name]) for name, (make, _) in RULES.items()}

    with jax.enable_x64(True):
        swept = jax.jit(jax.vmap(all_of_them))
        wrong = {name: [OUT_OF_RANGE[name.rpartition(": ")[2]]] * 3 for name in RULES}
        found, poisoned = (
            jax.tree.map(np.asarray, swept({name: jnp.array(each[name], jnp.float64) for name in RULES}))
            for each in ({name: values for name, (_, values) in RULES.items()}, wrong)
        )
    return found, len(traces), poisoned


@functools.cache
def slopes():
    """The derivative of Σ cos of all results of the first value with respect to it."""

    def total(values):
        found = {name: make(values[name]) for name, (make, _) in RULES.items()}
        return sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(found))

    with jax.enable_x64(True):
        values = {name: jnp.float64(values[0]) for name, (_, values) in RULES.items()}
        return jax.tree.map(float, evaluated(jax.grad(total))(values))


@every_rule
def test_a_sweep_is_a_loop_of_floats(name):
    found, traces, _ = by_inputs()
    for k, value in enumerate(RULES[name][1]):
        for swept, alone in zip(jax.tree.leaves(found[name]), jax.tree.leaves(by_floats(name, value)), strict=True):
            np.testing.assert_allclose(swept[k], alone, rtol=1e-12, atol=1e-12)
    assert traces == 1


@every_rule
def test_the_derivative_by_a_setting_is_that_of_differences(name):
    value = RULES[name][1][0]
    ends = [
        sum(np.cos(leaf).sum() for leaf in jax.tree.leaves(by_floats(name, value * (1 + sign * STEP))))
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(slopes()[name], (ends[0] - ends[1]) / (2 * STEP * value), rtol=1e-6, atol=1e-4)
    assert slopes()[name] != 0 or name == "leaky_relu: negative_slope, slope"


@every_rule
def test_what_cannot_be_right_is_nan(name):
    """And nothing else is: a traced value cannot raise an error."""
    found, _, poisoned = by_inputs()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[name]))
    leaves = [leaf for leaf in jax.tree.leaves(poisoned[name]) if np.issubdtype(leaf.dtype, np.floating)]
    assert all(np.isnan(leaf).any() for leaf in leaves)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_settings_of_high_precision_leave_dtypes_as_they_are(dtype):
    """Under JAX's strict promotion too."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), THETA)
    z = jnp.asarray(Y, dtype)

    def all_of_them(values):
        rules = {name: make(values[name]) for name, (make, _) in OPTIMIZERS.items()}
        moved = {name: rule.update(params, rule.init(params), params)[0] for name, rule in rules.items()}
        shaped = [leaky_relu(values["sgd: rate"]).value(z), leaky_relu(values["sgd: rate"]).slope(z, z)]
        slopes = [huber(values["sgd: rate"]).delta(z, z), label_smoothing(values["sgd: rate"]).delta(z, jnp.abs(z))]
        return moved, shaped, slopes

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        values = {name: jax.ShapeDtypeStruct((), np.float64) for name in OPTIMIZERS}
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(all_of_them, values))} == {dtype}


def test_a_sweep_through_training():
    net, data = dense(1), (np.ones((4, 2), np.float32), np.zeros((4, 1), np.float32))

    def trained(rate, b1):
        optimizer = chain(clip_by_global_norm(1.0), adam(rate, b1=b1))
        state = init_train_state(net, optimizer, 0, (2,))
        for _ in range(2):
            state, out = train_step(net, losses.mse, optimizer)(state, *data)
        return state.params, state.opt_state.learning_rate, out.loss

    rates, decays = (0.1, 0.01), (0.9, 0.5)
    swept = jax.jit(jax.vmap(trained))(jnp.float32(rates), jnp.float32(decays))
    for k, (rate, b1) in enumerate(zip(rates, decays, strict=True)):
        expected = evaluated(functools.partial(trained, rate, b1))()
        for ours, alone in zip(jax.tree.leaves(swept), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours[k], alone, rtol=1e-5)


# ---------------------------------------------------------------- records


def halving(step):
    return 0.5 ** jnp.asarray(step, jnp.float32)


RECORDS = {  # the repr of each, and an invalid change
    "sgd(0.1)": {"learning_rate": -1.0},
    "sgd(0.1, momentum=0.9, nesterov=True)": {"momentum": 0.0},
    "sgd(halving)": {"learning_rate": "fast"},
    "adagrad(0.1, eps=0.01)": {"eps": 0.0},
    "rmsprop(0.1, rho=0.5)": {"rho": 1.0},
    "adam(0.001)": {"b2": 1.0},
    "adam(halving, b1=0.5, b2=0.99, eps=0.1)": {"b1": -0.1},
    "adamw(0.1, weight_decay=0.5, on='*/w')": {"on": 3},
    "adamw(0.1, on=everything)": {"weight_decay": math.inf},
    "clip_by_global_norm(1.0)": {"max_norm": 0.0},
    "clip_by_value(0.5)": {"limit": None},
    "chain(clip_by_value(1.0), sgd(0.1))": {"parts": ()},
    "accumulate(chain(adam(0.1)), 4)": {"steps": 0},
    "leaky_relu()": {"negative_slope": -1.0},
    "leaky_relu(negative_slope=0.2)": {"negative_slope": "steep"},
    "huber()": {"d": 0.0},
    "huber(delta=0.5)": {"d": math.nan},
    "label_smoothing(smoothing=0.2)": {"smoothing": 1.5},
}
PLAIN = [*(name for name in activations.__all__ if name != "leaky_relu")]
PLAIN += [name for name in losses.__all__ if name not in ("huber", "label_smoothing")]
NAMES = {**vars(jaxnn), **vars(activations), **vars(losses), **vars(penalties), "halving": halving}


@pytest.mark.parametrize("text", [*RECORDS, *PLAIN])
def test_a_record_is_its_settings(text):
    record, again = eval(text, dict(NAMES)), eval(text, dict(NAMES))
    assert repr(record) == text
    others = [again, pickle.loads(pickle.dumps(record)), dataclasses.replace(record)]
    others.append(jax.tree.unflatten(*reversed(jax.tree.flatten(record))))
    for other in others:
        assert other == record
        assert hash(other) == hash(record)
        assert repr(other) == text
    assert not jax.tree.leaves(record)
    assert [other for other in (*RECORDS, *PLAIN) if eval(other, dict(NAMES)) == record] == [text]
    if text in RECORDS:
        ((field, value),) = RECORDS[text].items()
        says = {"parts": "at least one part", "d": "huber: delta"}.get(field, field)
        with pytest.raises((TypeError, ValueError), match=says):
            dataclasses.replace(record, **{field: value})


def test_a_record_of_inputs():
    """Its JAX scalars are leaves; it equals one of the same numbers, and is not a constant of a program."""
    record = chain(clip_by_global_norm(jnp.float32(1)), adam(jnp.float32(0.1), b2=0.9))
    assert [float(leaf) for leaf in jax.tree.leaves(record)] == [1.0, np.float32(0.1)]
    assert repr(record).startswith("chain(clip_by_global_norm(float32(1.0)), adam(float32(0.1")
    same = pickle.loads(pickle.dumps(record))
    assert same == record != chain(clip_by_global_norm(1.0), adam(0.1, b2=0.9))
    assert dataclasses.replace(huber(0.5), d=jnp.float32(2)) == huber(jnp.float32(2))
    with pytest.raises(TypeError, match="pass it to a compiled function as an argument"):
        hash(record)
    with pytest.raises(ValueError, match="huber: delta must be above 0"):
        huber(jnp.float32(0))


def test_optax_takes_ours_and_ours_takes_optax():
    optax = pytest.importorskip("optax")
    for mixed in (optax.chain(clip_by_value(1.0), sgd(0.1)), chain(optax.clip(1.0), sgd(0.1)), chain(*[sgd(0.1)])):
        updates, _ = mixed.update(jnp.array([0.5, -0.25]), mixed.init(jnp.zeros(2)), jnp.zeros(2))
        np.testing.assert_allclose(updates, [-0.05, 0.025], rtol=1e-6)
    init, update = adam(0.1)
    assert (init, update) == (init.__self__.init, init.__self__.update)
    assert " at 0x" not in repr(chain(optax.clip(1.0), sgd(0.1)))


@dataclasses.dataclass
class Falling:
    """A user's schedule: a dataclass has no hash."""

    first: float

    def __call__(self, step):
        return self.first * 0.5 ** jnp.asarray(step, jnp.float32)


def test_a_schedule_without_a_hash_trains():
    x = np.linspace(-1, 1, 4, dtype=np.float32)[:, None]
    results = [
        fit(dense(1), losses.mse, sgd(rate), (x, x), key=0, epochs=2, batch_size=4).history["loss"]
        for rate in (Falling(0.5), lambda step: 0.5 * 0.5 ** jnp.asarray(step, jnp.float32))
    ]
    np.testing.assert_array_equal(*results)
    assert sgd(Falling(0.5)) == sgd(Falling(0.5)) != sgd(Falling(0.25))


# ---------------------------------------------------------------- users' losses, and losses as metrics


def test_a_loss_without_delta_takes_that_of_jax():
    for loss, prediction, target in (
        (losses.mse, Y, T),
        (losses.half_squared_error, Y, T),
        (losses.softmax_cross_entropy, SCORES, LABELS),
    ):
        own = Loss("mine", loss.value)
        prediction = jnp.asarray(prediction, jnp.float32)
        np.testing.assert_allclose(
            own.delta(prediction, jnp.asarray(target)), loss.delta(prediction, target), rtol=1e-6, atol=1e-7
        )
    assert repr(own) == "Loss('mine', softmax_cross_entropy.value, delta=jax.grad(softmax_cross_entropy.value))"
    assert own == Loss("mine", losses.softmax_cross_entropy.value) == pickle.loads(pickle.dumps(own))
    other = dataclasses.replace(own, value=losses.mse.value)  # δ is that of the new value
    np.testing.assert_allclose(other.delta(jnp.asarray(Y), T), losses.mse.delta(Y, T), rtol=1e-6)
    by_hand = Loss("mine", losses.mse.value, losses.mse.delta)
    assert dataclasses.replace(by_hand, value=losses.mae.value).delta == losses.mse.delta


def test_the_value_of_a_loss_is_a_metric():
    """By its name, with weights for entries, and compiled once for equal losses."""
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 3, 2)
    target, weights = 2 * x[..., :1], np.float32([[1, 0, 1], [1, 1, 1], [0, 0, 1], [2, 1, 1]])
    options = {"key": 0, "epochs": 1, "batch_size": 4, "shuffle": False}
    result = fit(
        dense(1), losses.mse, sgd(0.0), (x, target, weights), metrics=[losses.mse.value, huber(0.5).value], **options
    )
    assert result.history["mse"] == pytest.approx(result.history["loss"], rel=1e-6)
    assert 0 < result.history["huber"][0] < result.history["mse"][0]
    with pytest.raises(ValueError, match=r"losses\.hinge: .* are not -1 or 1"):
        fit(dense(1), losses.mse, sgd(0.0), (x[:, 0], target[:, 0]), metrics={"mine": losses.hinge.value}, **options)
    traces = []

    class counted(Loss):
        limit: float = 1.0

        def value(self, prediction, target):
            traces.append(1)
            return jnp.abs(prediction - target).mean(-1)

    for _ in range(2):
        fit(dense(1), losses.mse, sgd(0.1), (x[:, 0], target[:, 0]), metrics=[counted(0.5).value], **options)
    assert len(traces) == 3  # each call checks shapes, the first one compiles
