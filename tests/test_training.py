"""Training held against the same thing done by hand, step by step; what it promises is counted, not believed."""

from __future__ import annotations

import functools
import pickle
import sys
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

import jaxnn
from jaxnn import (
    DivergenceError,
    Layer,
    Penalty,
    TrainState,
    apply_updates,
    autodiff,
    backprop,
    dense,
    evaluate,
    fit,
    init_train_state,
    losses,
    mlp,
    named,
    predict,
    serial,
    sgd,
    tanh,
    train_epoch,
    train_step,
)
from jaxnn.training import driver as training
from jaxnn.types import EPOCH_START

FLOAT32 = 1e-5  # of a leaf's largest entry: up to a dozen steps of a few roundings each
FLOAT64 = 1e-12  # likewise
BFLOAT16 = 2e-2  # a few roundings of 2⁻⁹ each
N, D, K = 10, 4, 3
BATCH, STEPS = 4, 3  # an epoch is a batch of 4, one of 4, one of 2
UNLIT = 2**30
COMPILED = "/jax/core/compile/backend_compile_duration"
SEEDING = {"jit(stage)", "jit(_threefry_seed)"}  # what jax.random.key compiles once in a process


def probe() -> Layer:
    """A layer that is random in training, counts its steps, and gives NaN from the step that its fuse says."""

    def init(key, in_shape, dtype=jnp.float32):
        return {}, {"count": jnp.int32(0), "fuse": jnp.int32(UNLIT), "noise": jnp.asarray(0.5, dtype)}

    def forward(params, state, x, *, train=False, rng=None):
        if not train:
            return x, state, jnp.ones_like(x)
        draw = (jax.random.key_data(rng)[-1] >> 8).astype(x.dtype) / 2**24  # the key is random enough, and quick
        factor = jnp.where(state["count"] < state["fuse"], 1 + state["noise"] * draw, jnp.nan)
        factor = jnp.broadcast_to(factor, x.shape)
        return x * factor, {**state, "count": state["count"] + 1}, factor

    def backward(params, tape, delta):
        return delta * tape, {}

    return Layer("probe", init, forward, backward)


def margin(prediction, target):
    return prediction.max(axis=-1) - prediction.min(axis=-1)


# "zeta" comes first in the network and last in a sorted dict.
NET = serial(named("zeta", dense(5)), tanh, probe(), named("alpha", dense(K)))
LOSS, OPTIMIZER = losses.softmax_cross_entropy, sgd(0.2, momentum=0.9)
METRICS = {"accuracy": jaxnn.metrics.accuracy, "margin": margin}
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
LABELS = X[:, :K].argmax(axis=1).astype(np.int32)
WEIGHTS = np.linspace(0.5, 3, N).astype(np.float32)
OTHERS = (-X[:7] + 1, LABELS[1:8])  # a validation set, of another size


def trained(epochs=2, data=(X, LABELS), **changes):
    settings = {"key": 0, "epochs": epochs, "batch_size": BATCH, "metrics": METRICS}
    return fit(NET, LOSS, OPTIMIZER, data, **(settings | changes))


def start(*, rate=None, **probe_state):
    """The state before the first step, of key 0, with another learning rate or another state of the probe."""
    state = _start(jax.random.key(0))
    dials = {name: jnp.asarray(value, state.state["probe_0"][name].dtype) for name, value in probe_state.items()}
    state = state._replace(state={"probe_0": state.state["probe_0"] | dials})
    if rate is not None:
        state = state._replace(opt_state=state.opt_state._replace(learning_rate=jnp.float32(rate)))
    return state


_start = jax.jit(lambda key: init_train_state(NET, OPTIMIZER, key, (D,)))
one_step = evaluated(train_step(NET, LOSS, OPTIMIZER))
compiled_step = jax.jit(train_step(NET, LOSS, OPTIMIZER))
one_epoch = jax.jit(train_epoch(NET, LOSS, OPTIMIZER, batch_size=BATCH, metrics=METRICS))


def still():
    """A state in which every step sees the same network, whatever it does: no noise, learning rate 0."""
    return start(rate=0.0, noise=0.0)


def by_hand(state, steps, *, batch=BATCH, shuffle=True, data=(X, LABELS), step=one_step):
    """The documented order, in a Python loop."""
    n = len(data[0])
    passes = []
    for _ in range(steps):
        epoch, place = int(state.epoch), int(state.position)
        order = jax.random.permutation(jax.random.fold_in(state.key, epoch), n) if shuffle else np.arange(n)
        rows = np.asarray(order)[place : place + batch]
        state, out = step(state, *(part[rows] for part in data))
        assert (state.epoch, state.position) == (epoch, place)  # a step by hand leaves the cursor where it is
        place += len(rows)
        epoch, place = (epoch, place) if place < n else (epoch + 1, 0)
        state = state._replace(epoch=np.int32(epoch), position=np.int32(place) if place else EPOCH_START)
        passes.append((out, rows))
    return state, passes


def arrays(tree):
    """Every leaf by path, as NumPy; typed keys as their data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return {
        jax.tree_util.keystr(path): np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        for path, leaf in leaves
    }


def assert_close(ours, theirs, tolerance=FLOAT32):
    ours, theirs = arrays(ours), arrays(theirs)
    assert ours.keys() == theirs.keys()
    for path, a in ours.items():
        b = theirs[path]
        assert a.shape == b.shape, path
        a, b = a.astype(np.float64), b.astype(np.float64)
        worst = np.abs(a - b).max(initial=0.0) / max(np.abs(b).max(initial=0.0), 1e-30)
        assert worst <= tolerance, (path, worst)  # false for NaN


def assert_same(ours, theirs):
    ours, theirs = arrays(ours), arrays(theirs)
    assert ours.keys() == theirs.keys()
    for path, a in ours.items():
        assert a.dtype == theirs[path].dtype, path
        assert a.tobytes() == theirs[path].tobytes(), path


def figures(history):
    """All but the seconds."""
    return {name: values for name, values in history.items() if name != "seconds"}


def whole_output(params, state, x):
    return evaluated(lambda *args: NET.forward(*args)[0])(params, state, x)


def whole(params, state, data, train=False):
    """Loss and metrics of every example at once, the means weighted."""
    x, target, *weights = data
    output = whole_output(params, state, x)
    w = np.asarray(weights[0] if weights else np.ones(len(x)), np.float64)
    rules = {"loss": LOSS.value, **METRICS}
    each = {name: np.asarray(evaluated(rule)(output, target), np.float64) for name, rule in rules.items()}
    return {name: float((w * value).sum() / w.sum()) for name, value in each.items()}


@contextmanager
def compilations():
    """The names of the programs that XLA compiles inside."""
    names: list[str] = []

    def listen(event, seconds, **details):
        if event == COMPILED:
            names.append(details.get("fun_name", "without a name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@functools.cache
def two_epochs():
    """Two epochs with a validation set: what most tests look at."""
    return trained(2, validation=OTHERS)


# ---------------------------------------------------------------- a step


def test_step_is_backprop_and_update():
    @evaluated
    def composed(state, x, target):
        key = jax.random.fold_in(state.key, state.step)
        out = backprop(NET, LOSS)(state.params, state.state, x, target, rng=key)
        updates, opt_state = OPTIMIZER.update(out.grads, state.opt_state, state.params)
        return TrainState(apply_updates(state.params, updates), out.state, opt_state, state.step + 1, state.key), out

    state = start()._replace(step=jnp.int32(5))
    before = arrays(state)
    assert_close(compiled_step(state, X[:4], LABELS[:4]), composed(state, X[:4], LABELS[:4]))
    after = arrays(state)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_step_reads():
    state = start()
    _, out = jax.eval_shape(train_step(NET, LOSS, OPTIMIZER, read=("deltas",)), state, X, LABELS)
    assert {name: delta.shape for name, delta in out.readings["deltas"].items()} == {
        "zeta": (N, 5),
        "tanh_0": (N, 5),
        "probe_0": (N, 5),
        "alpha": (N, K),
    }


def test_step_draws_another_key_at_every_step():
    state = still()
    first, a = one_step(state._replace(state=start().state), X[:4], LABELS[:4])
    _, b = one_step(first, X[:4], LABELS[:4])
    assert not np.array_equal(a.output, b.output)  # the rate is 0: only the noise has changed


@pytest.mark.parametrize("gradient", [backprop, autodiff])
def test_penalty_is_part_of_loss_and_gradient(gradient):
    strength = 0.25

    def value(params):
        return 0.5 * strength * sum(jnp.square(layer["w"]).sum() for layer in params.values())

    def grad(params):
        return {name: {"w": strength * p["w"], "b": jnp.zeros_like(p["b"])} for name, p in params.items()}

    net, optimizer = mlp([3, 2], tanh), sgd(0.1)
    state, x, target = jax.jit(lambda: init_train_state(net, optimizer, 0, (D,)))(), X, X[:, :2]
    penalty = Penalty("l2", value, grad)
    steps = [train_step(net, losses.mse, optimizer, gradient=gradient, penalty=it) for it in (None, penalty)]
    (_, plain), (after, out) = evaluated(lambda *args: [step(*args) for step in steps])(state, x, target)
    cost, slopes = evaluated(lambda params: (value(params), grad(params)))(state.params)
    assert_close(out.loss, np.asarray(plain.loss) + cost)
    assert_close(out.grads, jax.tree.map(np.add, plain.grads, slopes))
    if gradient is backprop:
        result = fit(net, losses.mse, optimizer, (x, target), key=0, epochs=1, batch_size=N, penalty=penalty)
        assert_close(np.float32(result.history["loss"][0]), plain.loss)  # and the penalty beside it
        assert_close(np.float32(result.history["penalty"][0]), cost)
        assert_close(result.train_state.params, after.params)


def test_bfloat16_parameters_train():
    result = trained(8, (X.astype(jnp.bfloat16), LABELS))
    assert {leaf.dtype for leaf in jax.tree.leaves(result.train_state.params)} == {jnp.dtype(jnp.bfloat16)}
    loss = result.history["loss"]
    assert loss[0] == pytest.approx(two_epochs().history["loss"][0], rel=BFLOAT16)
    assert loss[-1] < 0.8 * loss[0]


# ---------------------------------------------------------------- an epoch


def test_epoch_is_a_loop_of_steps():
    first, result = one_epoch(start(), X, LABELS)
    second, _ = one_epoch(first, X, LABELS)
    expected, passes = by_hand(start(), 2 * STEPS)
    assert int(second.step) == int(second.state["probe_0"]["count"]) == 2 * STEPS
    assert_close(second, expected)

    passes, sizes = passes[:STEPS], [4, 4, 2]
    assert [len(rows) for _, rows in passes] == sizes
    assert sorted(np.concatenate([rows for _, rows in passes])) == list(range(N))
    assert_close(result.losses, np.array([out.loss for out, _ in passes]))
    assert_close(result.loss, np.average([out.loss for out, _ in passes], weights=sizes))
    outputs, rows = np.concatenate([out.output for out, _ in passes]), np.concatenate([rows for _, rows in passes])
    means = {name: evaluated(metric)(outputs, LABELS[rows]).mean() for name, metric in METRICS.items()}
    assert_close(result.metrics, means)
    assert bool(result.finite)


def test_epoch_takes_numpy_arrays():
    run = train_epoch(NET, LOSS, OPTIMIZER, batch_size=BATCH)
    _, result = jax.eval_shape(lambda state: run(state, X, LABELS, WEIGHTS), start())  # the data are no tracers here
    assert result.losses.shape == (STEPS,)


def test_epoch_in_the_order_of_the_data():
    """And of batches whose remainder is not half of them."""
    result = trained(2, batch_size=7, shuffle=False)
    expected, passes = by_hand(start(), 4, batch=7, shuffle=False)
    assert [list(rows) for _, rows in passes[:2]] == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert_close(result.train_state, expected)


def test_ensemble_is_a_loop():
    keys = jax.random.split(jax.random.key(3), 3)
    states = jax.jit(jax.vmap(_start))(keys)
    together, results = jax.jit(jax.vmap(one_epoch, in_axes=(0, None, None)))(states, X, LABELS)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    member = lambda tree, i: jax.tree.map(lambda leaf: leaf[i] if is_key(leaf) else np.asarray(leaf)[i], tree)
    for i in range(3):
        alone, result = one_epoch(member(states, i), X, LABELS)
        assert_close(member(together, i), alone)
        assert_close(member(results, i), result)


def test_fit_updates_its_state_in_place(monkeypatch):
    """The buffers set aside for the result are donated to it; the data are not."""
    spares = []

    def copy(tree, keep=training.copied):
        spares.append(keep(tree))
        return spares[-1]

    monkeypatch.setattr(training, "copied", copy)
    x, labels = jax.device_put((X, LABELS))
    trained(3, (x, labels), train_state=start(), key=None)
    assert spares
    assert all(leaf.is_deleted() for spare in spares for leaf in jax.tree.leaves(spare))
    assert not x.is_deleted()
    assert not labels.is_deleted()


# ---------------------------------------------------------------- fit


def test_fit_is_epochs_of_steps():
    expected, passes = by_hand(start(), 2 * STEPS)
    result = two_epochs()
    assert_close(result.train_state, expected)
    for epoch in range(2):
        mine = passes[epoch * STEPS : (epoch + 1) * STEPS]
        loss = np.average([out.loss for out, _ in mine], weights=[len(rows) for _, rows in mine])
        assert_close(np.float32(result.history["loss"][epoch]), loss)


def test_history():
    history = two_epochs().history
    names = {"loss", "accuracy", "margin"}
    assert set(history) == names | {f"validation_{name}" for name in names} | {"seconds"}
    assert all(len(values) == 2 and all(type(value) is float for value in values) for values in history.values())
    assert min(history["seconds"]) > 0
    assert set(trained(1).history) == names | {"seconds"}


def test_validation_follows_each_epoch():
    result = two_epochs()
    after_one = trained(1).train_state
    for epoch, state in enumerate((after_one, result.train_state)):
        expected = whole(state.params, state.state, OTHERS)
        ours = {name: result.history[f"validation_{name}"][epoch] for name in expected}
        assert ours == pytest.approx(expected, rel=FLOAT32)
    assert_same(trained(2).train_state, result.train_state)  # looking changes nothing


def test_figures_of_a_ragged_epoch_are_those_of_the_whole_data():
    state = still()
    expected = whole(state.params, state.state, (X, LABELS))
    history = trained(1, train_state=state, key=None).history
    assert {name: history[name][0] for name in expected} == pytest.approx(expected, rel=FLOAT32)
    _, passes = by_hand(state, STEPS)
    assert np.mean([out.loss for out, _ in passes]) != pytest.approx(expected["loss"], rel=1e-3)  # the test bites


def test_example_weights():
    state, data = still(), (X, LABELS, WEIGHTS)
    expected = whole(state.params, state.state, data)
    history = trained(1, data, train_state=state, key=None, validation=data).history
    assert {name: history[name][0] for name in expected} == pytest.approx(expected, rel=FLOAT32)
    assert {name: history[f"validation_{name}"][0] for name in expected} == pytest.approx(expected, rel=FLOAT32)
    assert expected["loss"] != pytest.approx(whole(state.params, state.state, data[:2])["loss"], rel=1e-3)

    ones = trained(1, (X, LABELS, np.ones(N, np.float32)), validation=data)
    assert_close(ones.train_state, trained(1).train_state)


def test_batches_without_weight_add_nothing():
    """All the weight is on one example: two of the three batches have none, and 0/0 must not come of it."""
    state = still()
    data = (X, LABELS, np.where(np.arange(N) == 6, 2, 0).astype(np.float32))
    expected = whole(state.params, state.state, (X[6:7], LABELS[6:7]))
    scores = evaluate(NET, LOSS, state, data, metrics=METRICS, batch_size=BATCH)
    assert scores == pytest.approx(expected, rel=FLOAT32)
    history = trained(1, data, train_state=state, key=None, validation=data).history
    assert {name: history[name][0] for name in expected} == pytest.approx(expected, rel=FLOAT32)


def test_batches_without_weight_are_nothing_wrong_without_jit_either():
    """Without jit the weights inside an epoch can be looked at, but a batch of them is not the data set."""
    data = (X, LABELS, np.where(np.arange(N) == 6, 2, 0).astype(np.float32))
    net = mlp([K])
    run, state = train_epoch(net, LOSS, sgd(0.1), batch_size=BATCH), init_train_state(net, sgd(0.1), 0, (D,))
    with jax.disable_jit():
        assert bool(run(state, *data)[1].finite)


@pytest.mark.parametrize("wrong", ["negative", "zero"])
def test_weights_that_no_one_looked_at(wrong):
    """They end training, or come back as NaN, and are refused by an epoch that can look at them."""
    weights = np.zeros(N, np.float32) if wrong == "zero" else np.where(np.arange(N) == 6, -1, WEIGHTS)
    data = (X, LABELS, weights.astype(np.float32))
    with pytest.raises(DivergenceError, match="is not finite") as caught:
        trained(1, data, check_data=False)
    assert caught.value.history == {}
    scores = evaluate(NET, LOSS, start(), data, metrics=METRICS, check_data=False)
    assert all(np.isnan(score) for score in scores.values())
    with pytest.raises(ValueError, match=rf"data: weights.* {wrong}"):
        train_epoch(NET, LOSS, OPTIMIZER, batch_size=BATCH)(start(), *data)
    _, result = one_epoch(start(), *data)
    assert np.isnan(result.loss)
    assert not result.finite


def test_example_of_weight_0_may_be_unlabelled():
    weights, labels = np.ones(N, np.float32), LABELS.copy()
    weights[3], labels[3] = 0, -1  # its loss and its accuracy are NaN
    state, rows = still(), np.arange(N) != 3
    scores = evaluate(NET, LOSS, state, (X, labels, weights), metrics=METRICS, check_data=False)
    assert scores == pytest.approx(whole(state.params, state.state, (X[rows], LABELS[rows])), rel=FLOAT32)


def test_metrics_by_name_or_in_a_list():
    expected = trained(1).history
    with compilations() as programs:
        listed = trained(1, metrics=[METRICS["accuracy"], margin]).history
    assert programs == []
    assert figures(listed) == figures(expected)


def test_going_on_is_bit_identical():
    five = trained(5)
    three = trained(3)
    kept = arrays(three.train_state)
    two = trained(2, train_state=three.train_state, key=None)
    assert_same(two.train_state, five.train_state)
    assert kept.keys() == arrays(three.train_state).keys()
    for name, values in figures(five.history).items():
        assert three.history[name] + two.history[name] == values


def test_same_key_same_bits():
    first, again, other = trained(2), trained(2, key=jax.random.key(0)), trained(2, key=1)
    assert_same(first.train_state, again.train_state)
    assert figures(first.history) == figures(again.history)
    assert not np.array_equal(first.train_state.params["alpha"]["w"], other.train_state.params["alpha"]["w"])


def test_key_given_with_a_state_replaces_its_key():
    state = start()
    moved = trained(1, train_state=state, key=5).train_state
    assert_same(moved.key, jax.random.key(5))
    assert_close(moved, by_hand(state._replace(key=jax.random.key(5)), STEPS)[0])


def test_what_the_caller_gives_is_left_alone():
    state, key, x, labels = start(), jax.random.key(0), *jax.device_put((X, LABELS))
    given = {"state": state, "key": key, "x": x, "labels": labels}
    before = arrays(given)
    first = trained(3, (x, labels), key=key)
    second = trained(3, (x, labels), train_state=state, key=None)
    third = trained(3, (x, labels), train_state=state, key=key)
    kept = arrays(third.train_state)
    trained(3, (x, labels), train_state=third.train_state, key=None)
    after = arrays(given)  # whatever has been donated raises here
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert_same(third.train_state, first.train_state)
    assert_same(third.train_state, second.train_state)
    assert all(np.array_equal(leaf, kept[path]) for path, leaf in arrays(third.train_state).items())


def test_autodiff_trains_to_the_same_parameters():
    asked = []

    def spied(net, loss, **options):
        asked.append(net)
        return autodiff(net, loss, **options)

    assert_close(trained(2, gradient=spied).train_state, trained(2).train_state)
    assert set(asked) == {NET}


def test_learning_rate_is_set_in_the_state():
    state = trained(1).train_state
    frozen = state._replace(opt_state=state.opt_state._replace(learning_rate=jnp.float32(0)))
    with compilations() as programs:
        after = trained(1, train_state=frozen, key=None).train_state
    assert programs == []
    assert_same(after.params, state.params)
    assert int(after.step) == 2 * STEPS
    slower = state._replace(opt_state=state.opt_state._replace(learning_rate=jnp.float32(0.01)))
    assert_close(trained(1, train_state=slower, key=None).train_state, by_hand(slower, STEPS)[0])


def test_float64_data_trains_in_float64():
    """Linear regression by full batches, beside gradient descent in NumPy."""
    rate, epochs, net = 0.1, 4, mlp([2])
    with jax.enable_x64(True):
        x, target = X.astype(np.float64), np.stack([X @ [1, -2, 0.5, 0], X[:, 0]], axis=1).astype(np.float64)
        result = fit(net, losses.half_squared_error, sgd(rate), (x, target), key=0, epochs=epochs, batch_size=N)
        first = jax.jit(lambda: init_train_state(net, sgd(rate), 0, (D,), jnp.float64))().params["dense_0"]
        w, b = np.asarray(first["w"]), np.asarray(first["b"])
        ours = {name: np.asarray(leaf) for name, leaf in result.train_state.params["dense_0"].items()}
    history = []
    for _ in range(epochs):
        error = x @ w + b - target
        history.append(0.5 * (error**2).sum() / N)
        w, b = w - rate * x.T @ error / N, b - rate * error.mean(axis=0)
    assert ours["w"].dtype == np.float64
    assert result.history["loss"] == pytest.approx(history, rel=FLOAT64)
    assert ours["w"] == pytest.approx(w, rel=FLOAT64, abs=FLOAT64)
    assert ours["b"] == pytest.approx(b, rel=FLOAT64, abs=FLOAT64)


def test_optax_optimizer_in_fit():
    optax = pytest.importorskip("optax", reason="optax's optimizers are the other side of the protocol")
    net, optimizer, batch = mlp([K]), optax.adamw(0.05, weight_decay=0.1), 5
    with jax.numpy_dtype_promotion("standard"):  # optax counts in int32 and raises floats to that
        result = fit(net, LOSS, optimizer, (X, LABELS), key=0, epochs=2, batch_size=batch, shuffle=False)

        @evaluated
        def step(params, opt_state, x, target):
            grads = jax.grad(lambda p: LOSS.value(x @ p["dense_0"]["w"] + p["dense_0"]["b"][None], target).mean())(
                params
            )
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        params, opt_state = jax.jit(lambda: init_train_state(net, optimizer, 0, (D,))[:3:2])()
        for rows in [slice(0, 5), slice(5, 10)] * 2:
            params, opt_state = step(params, opt_state, X[rows], LABELS[rows])
    assert_close(result.train_state.params, params)
    assert_close(result.train_state.opt_state, opt_state)


def test_examples_may_be_trees():
    """Two inputs, one of integers; the same network on the two put together is the reference."""

    def join(x):
        return jnp.concatenate([x["numbers"], x["kind"][:, None].astype(x["numbers"].dtype)], axis=-1)

    def forward(params, state, x, *, train=False, rng=None):
        return join(x), state, ()

    def backward(params, tape, delta):
        return {"numbers": delta[:, :-1], "kind": ()}, {}

    layer = Layer("join", lambda key, in_shape, dtype=jnp.float32: ({}, ()), forward, backward)
    x = {"numbers": X, "kind": LABELS}
    joined, target, settings = np.asarray(evaluated(join)(x)), X[:, :2], {"key": 0, "epochs": 2, "batch_size": N}
    net, plain = serial(layer, dense(2)), serial(dense(2))
    result = fit(net, losses.mse, OPTIMIZER, (x, target), **settings)
    expected = fit(plain, losses.mse, OPTIMIZER, (joined, target), **settings)
    assert_close(result.train_state, expected.train_state)
    output = evaluated(lambda *args: plain.forward(*args)[0])(expected.train_state.params, (), joined)
    assert_close(predict(net, result.train_state, x, batch_size=BATCH), output)
    assert evaluate(net, losses.mse, result.train_state, (x, target))["loss"] == pytest.approx(
        float(evaluated(losses.mse.value)(output, target).mean()), rel=FLOAT32
    )


# ---------------------------------------------------------------- evaluate, predict


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_evaluate_and_predict_do_not_depend_on_the_batch(batch):
    state = two_epochs().train_state
    expected = whole(state.params, state.state, (X, LABELS))
    scores = evaluate(NET, LOSS, state, (X, LABELS), metrics=METRICS, batch_size=batch)
    assert scores == pytest.approx(expected, rel=FLOAT32)
    output = whole_output(state.params, state.state, X)
    assert_close(predict(NET, state, X, batch_size=batch), output)


def test_a_pair_of_parameters_and_state_is_evaluated_as_a_train_state_is():
    state = trained(1).train_state
    pair = state.params, state.state
    assert evaluate(NET, LOSS, pair, (X, LABELS)) == evaluate(NET, LOSS, state, (X, LABELS))
    np.testing.assert_array_equal(predict(NET, list(pair), X), predict(NET, state, X))
    scores = jax.jit(lambda pair: evaluate(NET, LOSS, pair, (X, LABELS)))(pair)
    assert float(scores["loss"]) == pytest.approx(evaluate(NET, LOSS, pair, (X, LABELS))["loss"], rel=FLOAT32)
    for wrong in (state.params, (state.params,), (*pair, 0), None):
        with pytest.raises(TypeError, match=r"train_state must be a TrainState, .* or a pair \(params, state\), got"):
            evaluate(NET, LOSS, wrong, (X, LABELS))


# ---------------------------------------------------------------- compilations


def test_one_program_each_and_none_again():
    net, optimizer, key = mlp([2]), sgd(0.1), jax.random.key(0)
    data, validation = (X, X[:, :2]), (X[:7], X[:7, :2])

    def run(key, **changes):
        settings = {"epochs": 3, "batch_size": BATCH, "validation": validation, "metrics": [losses.mae.value]}
        return fit(net, losses.mse, optimizer, data, key=key, **(settings | changes))

    with compilations() as programs:
        result = run(key)
    assert len(programs) == 3, programs  # initialisation, training (both batch shapes), evaluation
    assert len(set(programs)) == 3, f"programs in a profile are told apart by their names: {programs}"
    assert {"mae", "validation_mae"} < set(result.history)  # a loss as a metric has the loss's name
    with compilations() as programs:
        run(key, epochs=1, check_data=False)
        run(None, train_state=result.train_state)
        evaluate(net, losses.mse, result.train_state, validation, metrics=[losses.mae.value])
    assert programs == []
    with compilations() as programs:
        run(1)
    assert set(programs) <= SEEDING
    with compilations() as programs:
        run(2)
    assert programs == []


# ---------------------------------------------------------------- divergence


def diverged(state, data=(X, LABELS), **changes):
    with pytest.raises(DivergenceError) as caught:
        trained(3, data, train_state=state, key=None, **changes)
    error = caught.value
    assert f"step {error.step}" in str(error)
    assert error.leaf in str(error)
    assert int(error.train_state.step) == error.step
    assert all(np.isfinite(leaf).all() for leaf in arrays(error.train_state).values())
    assert_close(error.train_state, by_hand(state, error.step, data=data)[0])
    return error


def test_divergence_in_a_later_epoch():
    error = diverged(start(fuse=4))
    assert (error.step, error.epoch) == (4, 1)
    assert error.leaf == "grads/zeta/b"  # everything is NaN: the network's first leaf, not the alphabet's
    assert "(epoch 1)" in str(error)
    assert figures(error.history) == figures(trained(1).history)


def test_divergence_by_data():
    """The step is the one whose batch holds the row, in the epoch's own order."""
    x = X.copy()
    x[7, 2] = np.nan
    state = start()
    order = jax.random.permutation(jax.random.fold_in(state.key, 0), N)
    error = diverged(state, (x, LABELS), check_data=False)
    assert error.step == np.asarray(order).tolist().index(7) // BATCH
    assert error.leaf == "grads/zeta/b"
    assert error.history == {}


def test_divergence_by_learning_rate():
    state = start(rate=1e38)
    _, passes = by_hand(state, STEPS)
    finite = [bool(np.isfinite(out.loss)) for out, _ in passes]
    error = diverged(state)
    step = finite.index(False)
    assert error.step == step
    grads = passes[step][0].grads
    order = [(layer, leaf) for layer in ("zeta", "alpha") for leaf in "bw"]
    sick = [f"grads/{layer}/{leaf}" for layer, leaf in order if not np.isfinite(grads[layer][leaf]).all()]
    assert error.leaf == [*sick, "loss"][0]  # the loss only where no gradient is to blame


@pytest.mark.parametrize("part", ["x", "target"])
def test_validation_loss_that_is_not_finite(part):
    """It has a name and a step: history never holds a number that no comparison can be made with, unsaid."""
    x, labels = OTHERS[0].copy(), OTHERS[1].copy()
    if part == "x":
        x[3, 1] = np.nan
    else:
        labels[3] = -1
    state = trained(1).train_state  # one epoch has been before
    with pytest.raises(DivergenceError) as caught:
        trained(3, train_state=state, key=None, validation=(x, labels), check_data=False)
    error = caught.value
    assert (error.step, error.epoch, error.leaf) == (2 * STEPS, 1, "validation_loss")
    assert "the validation loss after step 6 (epoch 1) is not finite" in str(error)
    assert "look at the validation data" in str(error)
    expected = trained(1, train_state=state, key=None)
    assert_same(error.train_state, expected.train_state)
    assert np.isnan(error.history.pop("validation_loss")).all()
    assert {name: error.history[name] for name in figures(expected.history)} == figures(expected.history)


def test_validation_metric_may_be_nan():
    """What a metric says of an example is its own business; only the loss must be a number."""
    history = trained(1, metrics={"none": lambda y, t: jnp.full(len(y), jnp.nan)}, validation=OTHERS).history
    assert np.isnan(history["none"] + history["validation_none"]).all()


def test_divergence_can_be_pickled():
    error = DivergenceError(4, 1, "loss", {"params": np.ones(2)}, {"loss": [1.0]})
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.step, copy.leaf, copy.history) == (4, "loss", {"loss": [1.0]})


# ---------------------------------------------------------------- progress


def test_progress_bar(capsys):
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    trained(2, progress=True)
    shown = capsys.readouterr()
    assert "2/2" in shown.err
    assert "loss=" in shown.err
    assert "accuracy=" in shown.err
    assert shown.out == ""


def test_no_bar_where_there_is_no_terminal(capsys):
    trained(2)
    assert tuple(capsys.readouterr()) == ("", "")


def test_bar_where_there_is_a_terminal(capsys, monkeypatch):
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trained(2)
    assert "2/2" in capsys.readouterr().err
    trained(2, progress=False)
    assert capsys.readouterr().err == ""


def test_bar_ends_with_the_training_that_diverges(capsys):
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    with pytest.raises(DivergenceError) as caught:
        trained(3, train_state=start(fuse=4), key=None, progress=True)
    assert capsys.readouterr().err.endswith("\n")  # while the error, and with it the frame, is still held
    assert caught.value.step == 4


def test_without_tqdm(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"progress=True needs tqdm: pip install"):
        trained(2, progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert len(trained(2).history["loss"]) == 2
    assert capsys.readouterr().err == ""


def test_a_donated_state_takes_no_key_of_the_caller_with_it():
    key = jax.random.key(3)
    state = init_train_state(NET, OPTIMIZER, key, (D,))
    jax.jit(lambda state: state, donate_argnums=0)(state)
    assert jax.random.split(key).shape == (2,)
