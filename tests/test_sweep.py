"""A sweep: every member equals its own run, in one compilation."""

import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_arrays import bits, raw

import jaxnn.training.sweep
from jaxnn import (
    TrainState,
    adam,
    apply_updates,
    batch_norm,
    dense,
    dropout,
    fit,
    init_train_state,
    losses,
    metrics,
    mlp,
    penalties,
    plots,
    relu,
    replay,
    run,
    serial,
    sgd,
    sweep,
    train_step,
)
from jaxnn.stopping import early_stopping, reduce_on_plateau

N, BATCH, S = 22, 6, 4  # a last batch of 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
DATA = X, (X.sum(1) > 0).astype(np.int32)
OTHERS = X[:9] + 1, DATA[1][:9]
HUGE = np.full_like(X[:9], 1e30)
NET = serial(dense(4), batch_norm(), relu, dropout(0.2), dense(2))
LOSS = losses.softmax_cross_entropy
CLOSE = 1e-5  # products of stacked matrices add in another order


def make(rate, l2):
    step = train_step(NET, LOSS, adam(rate), penalty=penalties.l2(l2))
    machines = {"stopping": early_stopping(2), "plateau": reduce_on_plateau(0.5, patience=1)}
    return run(step, epochs=7, batch_size=BATCH, metrics=[metrics.accuracy], **machines)


@pytest.fixture(scope="module")
def swept():
    settings = {"rate": [0.3, 0.03], "l2": [0.0, 0.1]}
    return sweep(make, settings, seeds=[3, 5, 8], at_once=5, remember=2)(DATA, OTHERS)


def assert_close(got, expected, tolerance=CLOSE):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(raw(a), raw(b), rtol=tolerance, atol=tolerance)


@jax.jit
def alone(rate, l2, key):
    made = make(rate, l2)
    return made(init_train_state(NET, adam(rate), key, (3,)), DATA, OTHERS)


def test_every_member_is_its_own_run(swept):
    """In loss, parameters, statistics, steps; those that ended early too."""
    ran = np.asarray(swept.runs.epochs_run)
    assert ran.min() < 7  # some ended early
    for i in range(len(swept)):
        single = alone(swept.settings["rate"][i], swept.settings["l2"][i], jax.random.key(swept.seeds[i]))
        assert int(single.epochs_run) == ran[i]
        member = swept.member(i)
        assert_close(member.params["dense_1"], single.train_state.params["dense_1"], 1e-3)  # Adam enlarges rounding
        assert (int(member.step), int(member.epoch)) == (ran[i] * S, ran[i])
        for name, values in single.history.items():
            np.testing.assert_allclose(swept.runs.history[name][i], values, rtol=1e-3, atol=1e-4)
            assert np.isnan(swept.runs.history[name][i, ran[i] :]).all()


def plain(rate, l2):
    return train_step(mlp([3, 2]), LOSS, sgd(rate), penalty=penalties.l2(l2))


@pytest.mark.parametrize("shared", [False, True])
def test_members_by_sgd_to_rounding(shared):
    settings = [{"rate": 0.5, "l2": 0.0}, {"rate": 0.1, "l2": 0.01}]
    found = sweep(plain, settings, seeds=2, epochs=2, batch_size=BATCH, shared_order=shared)(DATA)
    for i, (rate, l2) in enumerate([(0.5, 0.0), (0.5, 0.0), (0.1, 0.01), (0.1, 0.01)]):
        single = run(plain(rate, l2), epochs=2, batch_size=BATCH, order=jax.random.key(0) if shared else None)
        start = init_train_state(mlp([3, 2]), sgd(rate), jax.random.key(i % 2), (3,))
        expected = jax.jit(single)(start, DATA)
        assert_close(found.member(i).params, expected.train_state.params)
        assert_close(found.runs.history["loss"][i], expected.history["loss"])


def compiled(call):
    """The number of programs that a call compiles, as JAX counts them."""
    events = []
    listener = lambda name, *_, **__: events.append(name) if name.endswith("backend_compile_duration") else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return len(events)


def test_one_compilation_for_all_points_and_groups():
    def grid(rates, width):
        one = lambda rate: train_step(mlp([width, 2]), LOSS, sgd(rate))
        return sweep(one, {"rate": rates}, seeds=3, epochs=1, batch_size=N, at_once=4)

    few = compiled(lambda: grid([0.1, 0.2], 2)(DATA))
    many = compiled(lambda: grid([0.1, 0.2, 0.3, 0.4, 0.5], 5)(DATA))
    assert 2 <= many <= few <= 6  # first states, training, and what cuts and joins arrays


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit(workers):
    settings = {"rate": [0.1, 0.2, 0.3]}
    train = lambda workers: sweep(lambda rate: plain(rate, 0.0), settings, seeds=2, epochs=2, batch_size=BATCH,
                                  at_once=2, workers=workers)(DATA)  # fmt: skip
    assert bits(train(workers).runs.train_state) == bits(train(2).runs.train_state)


def test_an_epoch_is_shown_when_it_is_over(monkeypatch):
    """Not when it is begun: all would be queued at once then, and Ctrl-C would wait for them."""
    module, went, epochs = jaxnn.training.sweep, [], 30
    advance, before = module.Origin.advance, threading.active_count()

    def slow(state, batch):  # 0.1 s or so
        w = jax.lax.fori_loop(0, 300, lambda i, w: jnp.tanh(w @ w), state.params)
        return state._replace(params=w), {"loss": batch[0].sum()}

    def bar(where, total, wanted):
        def ticks():
            for i in range(total):
                if i == 3:
                    raise KeyboardInterrupt
                yield i
                assert went[i].is_ready()

        return ticks(), None

    monkeypatch.setattr(module.Origin, "advance", lambda *args: went.append((out := advance(*args))[2]) or out)
    monkeypatch.setattr(module, "progress_bar", bar)
    start = lambda key: TrainState(jax.random.normal(key, (150, 150)), (), (), 0, key)
    with pytest.raises(KeyboardInterrupt):
        sweep(lambda: run(slow, epochs=epochs, batch_size=N), {}, init=start)((X,))
    assert len(went) < epochs
    assert threading.active_count() == before


def test_settings_of_this_thread_hold_in_the_workers():
    """Such as 64-bit numbers, which JAX enables for a thread."""
    data = X.astype(np.float64), DATA[1]
    with jax.enable_x64(True):
        found = sweep(lambda rate: plain(rate, 0.0), {"rate": [0.1, 0.2]}, epochs=2, batch_size=BATCH, at_once=1)(data)
        assert found.member(0).params["dense_0"]["w"].dtype == jnp.float64
        start = init_train_state(mlp([3, 2]), sgd(0.2), jax.random.key(0), (3,), jnp.float64)
        alone = jax.jit(run(plain(0.2, 0.0), epochs=2, batch_size=BATCH))(start, data)
        assert_close(found.member(1).params, alone.train_state.params, 1e-12)


def test_the_table_the_best_and_a_member(swept):
    best = swept.best()
    scores = swept.scores()
    assert best.number == np.nanargmin(scores)
    assert best.best["validation_loss"] == pytest.approx(np.nanmin(scores))
    assert best.settings == {"rate": swept.settings["rate"][best.number], "l2": swept.settings["l2"][best.number]}
    assert isinstance(best.train_state, TrainState)
    assert swept.best("validation_accuracy").best["validation_accuracy"] == np.nanmax(
        swept.runs.history["validation_accuracy"]
    )
    text = str(swept).splitlines()
    assert text[0] == repr(swept)
    assert "12 members: 2 rate × 2 l2 × 3 seeds" in text[0]
    assert text[2].split() == ["member", "rate", "l2", "seed", "epochs", "best", "validation_loss",
                               "loss", "accuracy", "penalty", "validation_accuracy", "validation_loss"]  # fmt: skip
    assert text[3].split()[0] == str(best.number)
    means = swept.means()
    assert [mean for _, mean, _ in means] == sorted(mean for _, mean, _ in means)
    assert means[0][1] == pytest.approx(
        scores[[i for i in range(12) if i // 3 == scores.reshape(4, 3).mean(1).argmin()]].mean()
    )
    going_on = fit(NET, LOSS, adam(0.03), DATA, train_state=swept.member(2), epochs=1, batch_size=BATCH)
    assert int(going_on.train_state.step) == int(swept.member(2).step) + S


def test_a_member_that_diverges_is_last_and_alone():
    found = sweep(lambda rate: train_step(mlp([3, 2]), LOSS, sgd(rate)), {"rate": [1e38, 0.1]}, epochs=2, batch_size=N)
    found = found(DATA)
    assert not np.isfinite(found.scores()[0])
    assert found.best().number == 1
    assert list(found.order()) == [1, 0]
    moment = replay(found, member=0)  # the step that is at fault
    assert int(moment.train_state.step) == 1  # the first update leaves the parameters at 1e37
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moment.train_state.params))
    new, passed = moment.take()
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new.params, passed.loss)))
    with pytest.raises(TypeError, match="step= is missing; the loss of member 1 is finite throughout"):
        replay(found, member=1)


def own(rate):
    def step(state, batch):
        x, target = batch
        cost = lambda w: ((x @ w - target) ** 2).mean()
        value, gradient = jax.value_and_grad(cost)(state.params)
        return state._replace(params=apply_updates(state.params, -rate * gradient)), {"loss": value}

    return run(step, epochs=2, batch_size=4)


def test_a_step_of_ones_own():
    data = X, X.sum(1)
    start = lambda key: TrainState(jax.random.normal(key, (3,)), (), (), jnp.int32(0), key)
    found = sweep(own, {"rate": [0.1, 0.01]}, seeds=2, init=start)(data)
    expected = jax.jit(own(0.01))(start(jax.random.key(1)), data)
    assert_close(found.member(3).params, expected.train_state.params)
    moment = replay(found, 7, 3)
    assert int(moment.train_state.step) == 7
    assert int(moment.take()[0].step) == 8
    assert_close(moment.take()[0].params, replay(found, 8, 3).train_state.params)


def test_init_takes_the_settings_that_it_names():
    start = lambda key, scale: TrainState(scale * jnp.ones(3), (), (), jnp.int32(0), key)
    made = lambda rate, scale: own(rate)
    found = sweep(made, [{"rate": 0.0, "scale": 2.0}], init=start)((X, X.sum(1)))
    np.testing.assert_array_equal(found.member(0).params, [2.0, 2.0, 2.0])


def test_settings_that_are_whole_numbers():
    """A rate of 1 is a number like 1.0."""
    one = lambda rate, l2: train_step(mlp([2]), LOSS, sgd(rate), penalty=penalties.l2(l2))
    found = sweep(one, {"rate": [1, 2], "l2": [0, 1]}, epochs=1, batch_size=BATCH)(DATA)
    expected = sweep(one, {"rate": [1.0, 2.0], "l2": [0.0, 1.0]}, epochs=1, batch_size=BATCH)(DATA)
    assert_close(found.runs.history, expected.runs.history)


def test_a_sweep_can_be_pickled(swept):
    """Without its programs and its data."""
    again = pickle.loads(pickle.dumps(swept))
    assert str(again) == str(swept)
    assert bits(again.member(3)) == bits(swept.member(3))
    with pytest.raises(ValueError, match="this sweep was pickled"):
        replay(again, 0, 0)


# ---------------------------------------------------------------- mistakes

STEP = train_step(mlp([2]), LOSS, sgd(0.1))
RATES = {"rate": [0.1, 0.2]}
MADE = run(STEP, epochs=1, batch_size=4)
FIRST = init_train_state(mlp([2]), sgd(0.1), 0, (3,))
TRAIN = sweep(lambda rate: train_step(mlp([2]), LOSS, sgd(rate)), RATES, epochs=1, batch_size=4)


def both(rate):
    return train_step(mlp([2]), LOSS, sgd(rate))


MISTAKES = {
    "no function": (lambda: sweep(STEP, {}), TypeError, "make must be a function"),
    "no epochs": (lambda: sweep(both, RATES)(DATA), ValueError, "sweep, at rate=0.1: make returned a step"),
    "a negative rate": (
        lambda: sweep(both, {"rate": [0.1, -1.0]}, epochs=1, batch_size=4)(DATA), ValueError, "at rate=-1.0: .*rate"),
    "a number": (lambda: sweep(both, {"rate": 0.1}), TypeError, "must be a list of numbers, got 0.1"),
    "words": (lambda: sweep(both, {"rate": ["fast"]}), TypeError, "must be numbers, got 'fast': one sweep for each"),
    "nothing": (lambda: sweep(both, {"rate": []}), ValueError, r"settings\['rate'\] is empty"),
    "two kinds of points": (lambda: sweep(both, [{"rate": 1.0}, {"l2": 1.0}]), ValueError, r"settings\[1\] has"),
    "another name": (
        lambda: sweep(both, {"lr": [0.1]}, epochs=1, batch_size=4)(DATA), TypeError, "at lr=0.1: .*unexpected keyword"),
    "no seed": (lambda: sweep(both, RATES, seeds=0), ValueError, "seeds must be at least 1, got 0"),
    "a shape": (
        lambda: sweep(lambda width: train_step(mlp([width, 2]), LOSS, sgd(0.1)), {"width": [2, 3]}, epochs=1,
                      batch_size=4)(DATA), TypeError, "shape"),
    "labels": (
        lambda: TRAIN((X, DATA[1] + 1)), ValueError, "data: .*label"),
    "no init": (
        lambda: sweep(lambda rate: own(rate), RATES)(DATA), ValueError, "a step of your own needs init="),
    "no member": (lambda: TRAIN(DATA).member(2), ValueError, "no member 2: there"),
    "no best": (
        lambda: TRAIN(DATA).member(0, best=True), ValueError, "no best states"),
    "no figure": (
        lambda: TRAIN(DATA).best("accuracy"), ValueError, "one of 'loss'"),
    "no such step": (
        lambda: replay(TRAIN(DATA), 99, 1), ValueError, "there is no step 99"),
    "a batch of more than all": (
        lambda: sweep(both, RATES, epochs=1, batch_size=N + 1)(DATA), ValueError, f"batch_size must be at most {N}"),
    "evaluate without a set": (
        lambda: sweep(lambda: run(STEP, epochs=1, batch_size=4, evaluate=lambda state, set: {"a": 0.0}), {})(DATA),
        ValueError, "evaluate needs a validation set"),
    "a set without evaluate": (
        lambda: sweep(own, RATES, init=lambda key: FIRST)(DATA, OTHERS), ValueError, "needs evaluate="),
    "neither run nor step": (
        lambda: sweep(lambda rate: 3, RATES)(DATA), TypeError, "at rate=0.1: make must return a run or a step, got 3"),
    "several batch sizes": (
        lambda: sweep(lambda b: run(STEP, epochs=1, batch_size=b), {"b": [4, 5]})(DATA), ValueError, "at b=5: epochs"),
    "no memory": (lambda: sweep(both, RATES, memory=0), ValueError, "memory must be above 0"),
    "a large seed": (lambda: sweep(both, RATES, seeds=[2**40]), ValueError, "seeds must be below"),
    "a key": (lambda: sweep(both, RATES, seeds=jax.random.key(0)), TypeError, "a list of integers"),
    "traced": (
        lambda: jax.jit(lambda rate: sweep(both, {"rate": [rate]}))(0.1), TypeError, "sweep runs on the host"),
    "data of a sweep": (
        lambda: replay(TRAIN(DATA), 3, 1, validation=DATA), TypeError, "leave out of=, data= and validation="),
    "which member": (lambda: replay(TRAIN(DATA), 3), TypeError, "member= is missing"),
    "no run": (lambda: replay(FIRST, 3, data=DATA), TypeError, "of= is missing"),
    "no data": (lambda: replay(FIRST, 3, of=MADE), TypeError, "data= is missing"),
    "no source": (lambda: replay(3, 3, of=MADE, data=DATA), TypeError, "source must be a Sweep, a TrainState"),
    "too early": (
        lambda: replay(FIRST._replace(step=jnp.int32(5)), 3, of=MADE,
                       data=DATA), ValueError, "no known state is at step 3 or before; .* 5"),
    "no sweep to draw": (lambda: plots.landscape(3), TypeError, "expected the result of a sweep, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call()


def test_the_landscape(swept):
    pytest.importorskip("matplotlib")
    lines = plots.landscape(swept)
    assert lines.axes[0].get_xlabel() == "rate"
    assert len(lines.axes[0].lines) == 3  # the members, and a line for each penalty
    drawn = plots.landscape(swept, "validation_accuracy", x="l2", y="rate").axes[0].images[0].get_array()
    assert drawn.shape == (2, 2)
    expected = swept.scores("validation_accuracy").reshape(2, 2, 3).mean(-1)  # [rate, l2], rates fall
    np.testing.assert_allclose(drawn, expected[::-1])
