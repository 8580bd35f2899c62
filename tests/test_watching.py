"""Training that is watched: stopped, slowed down, the best kept, augmented; held against loops of one's own."""

from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import SEEDING, arrays, assert_close, assert_same, compilations, figures, probe

from jaxnn import (
    DivergenceError,
    batch_norm,
    dense,
    evaluate,
    fit,
    init_train_state,
    losses,
    metrics,
    mlp,
    serial,
    sgd,
    tanh,
    train_epoch,
    train_step,
)
from jaxnn.stopping import Monitors, early_stopping, keep_best, reduce_on_plateau, together
from jaxnn.training.chunks import Chunk, run_chunk
from jaxnn.training.epochs import Epoch

N, D, K, BATCH, EPOCHS = 12, 4, 3, 5, 14
RNG = np.random.default_rng(3)
X, OTHERS = (RNG.normal(size=(n, D)).astype(np.float32) for n in (N, 9))
# As much noise as rule in so few examples: validation gets better first, and then worse.
LABELS, OTHER_LABELS = ((x[:, :K] + RNG.normal(size=(len(x), K))).argmax(1).astype(np.int32) for x in (X, OTHERS))
DATA, VALIDATION = (X, LABELS), (OTHERS, OTHER_LABELS)
NET, LOSS, RATE = serial(dense(8), batch_norm(), tanh, dense(K)), losses.softmax_cross_entropy, sgd(0.05, momentum=0.5)
STOPPING, PLATEAU = early_stopping(patience=4), reduce_on_plateau(factor=0.5, patience=2)
WATCH = {"stopping": STOPPING, "plateau": PLATEAU}
STEPS = 3  # in an epoch: of 5, 5 and 2 examples


def trained(epochs=EPOCHS, **changes):
    return fit(NET, LOSS, RATE, DATA, **({"key": 0, "epochs": epochs, "batch_size": BATCH} | changes))


@functools.cache
def watched():
    return trained(validation=VALIDATION, **WATCH)


@functools.cache
def start(seed):
    return jax.jit(lambda key: init_train_state(NET, RATE, key, (D,)))(jax.random.key(seed))


ONE_EPOCH = train_epoch(NET, LOSS, RATE, batch_size=BATCH)


# ---------------------------------------------------------------- the same as a loop of one's own


def test_fit_is_a_loop_over_epochs_and_machines():
    epoch = jax.jit(lambda state, scale: ONE_EPOCH(state, *DATA, update_scale=scale))
    state, keeper = start(0), keep_best()
    stopping, plateau, best = STOPPING.init(), PLATEAU.init(), keeper.init(start(0))
    seen, scales = [], []
    for _ in range(EPOCHS):
        scales.append(float(plateau.scale))
        state, _ = epoch(state, plateau.scale)
        seen.append(evaluate(NET, LOSS, state, VALIDATION)["loss"])
        best, _ = keeper.update(best, seen[-1], state)
        plateau, _ = PLATEAU.update(plateau, seen[-1])
        stopping, decision = STOPPING.update(stopping, seen[-1])
        if decision.stop:
            break
    result = watched()
    assert 5 < len(seen) < EPOCHS  # it stops, and not at once
    assert result.history["update_scale"] == scales
    assert scales[-1] < 1  # it slows down before
    assert result.history["validation_loss"] == pytest.approx(seen, rel=1e-5)
    assert result.best_epoch == int(np.argmin(seen)) + 1 == int(best.kept.step) // STEPS
    assert result.stopped
    assert_close(result.train_state, best.kept)
    assert_same(result.train_state, result.best)
    assert_close(result.monitors.plateau, plateau)
    assert_close(result.monitors.stopping, stopping)


def scanned(state, epochs):
    """All epochs in one program, the machines in the carry; after the stop the machines are left as they are."""
    machine = together(STOPPING, plateau=PLATEAU, keep=keep_best())

    def one(carry, _):
        state, monitors = carry
        new, _ = ONE_EPOCH(state, *DATA, update_scale=monitors.plateau.scale)
        figure = LOSS.value(NET.forward(new.params, new.state, VALIDATION[0])[0], VALIDATION[1]).mean()
        after, decision = machine.update(monitors, figure, new)
        return (new, after), (figure, monitors.plateau.scale, monitors.stopping.stopped, decision.improved)

    return jax.lax.scan(one, (state, machine.init(state)), None, length=epochs)


def test_scan_and_vmap_decide_as_fit_does():
    (_, monitors), (seen, scales, done, improved) = jax.jit(lambda state: scanned(state, EPOCHS))(start(0))
    result = watched()
    ran = len(result.history["loss"])
    assert done.tolist() == [False] * ran + [True] * (EPOCHS - ran)
    assert scales[:ran].tolist() == result.history["update_scale"]
    np.testing.assert_allclose(seen[:ran], result.history["validation_loss"], rtol=1e-5)
    assert int(np.flatnonzero(improved)[-1]) + 1 == result.best_epoch
    assert_close(monitors, result.monitors)

    states = [start(seed) for seed in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    figures_of_all = jax.jit(jax.vmap(lambda state: scanned(state, EPOCHS)[1]))(together)
    _, scales, done, improved = map(np.asarray, figures_of_all)
    ends = set()
    for seed in range(3):
        alone = trained(key=seed, validation=VALIDATION, **WATCH)
        ran = len(alone.history["loss"])
        ends.add(ran)
        assert int((~done[seed]).sum()) == ran
        assert scales[seed, :ran].tolist() == alone.history["update_scale"]
        assert int(np.flatnonzero(improved[seed])[-1]) + 1 == alone.best_epoch
    assert len(ends) > 1  # the seeds end at different epochs


# ---------------------------------------------------------------- the best, and going on


def test_the_best_state_is_what_training_until_then_gives():
    """All of it: parameters, running statistics, momentum, step; no donation has reached it."""
    result = watched()
    until = trained(result.best_epoch, validation=VALIDATION, plateau=PLATEAU)
    assert_same(result.train_state, until.train_state)
    assert int(result.train_state.step) == STEPS * result.best_epoch
    assert not np.array_equal(result.best.state["batch_norm_0"]["mean"], start(0).state["batch_norm_0"]["mean"])
    scores = evaluate(NET, LOSS, result.train_state, VALIDATION)
    assert scores["loss"] == min(result.history["validation_loss"])


def test_restoring_can_be_left_out():
    ran = len(watched().history["loss"])
    last = trained(ran, validation=VALIDATION, plateau=PLATEAU)
    for best in (None, keep_best()):
        result = trained(validation=VALIDATION, restore_best=False, keep=best, **WATCH)
        assert_same(result.train_state, last.train_state)
        assert "restored" not in result.why
        assert (result.best is None) == (best is None)
    assert_same(result.best, watched().best)
    kept = trained(ran, validation=VALIDATION, plateau=PLATEAU, keep=keep_best())
    assert not kept.stopped  # the best is known, and the last is given back
    assert_same(kept.train_state, last.train_state)
    assert_same(kept.best, watched().best)


@pytest.mark.parametrize("first", [1, 6])
def test_going_on_is_bit_identical(first):
    whole = watched()
    one = trained(first, validation=VALIDATION, **WATCH)
    before = arrays((one.train_state, one.monitors))
    assert not one.stopped
    two = trained(key=None, validation=VALIDATION, train_state=one.train_state, monitors=one.monitors, **WATCH)
    assert_same((two.train_state, two.best, two.monitors), (whole.train_state, whole.best, whole.monitors))
    assert (two.best_epoch, two.stopped, two.why) == (whole.best_epoch, whole.stopped, whole.why)
    for name, values in figures(whole.history).items():
        assert one.history[name] + two.history[name] == values
    after = arrays((one.train_state, one.monitors))  # whatever has been donated raises here
    assert all(np.array_equal(before[path], after[path]) for path in before)
    three = trained(key=None, validation=VALIDATION, train_state=two.train_state, monitors=two.monitors, **WATCH)
    assert three.history == {}
    assert three.stopped
    assert three.why.startswith("training had stopped before, validation_loss had not improved for 4 epochs")
    assert_same(three.train_state, whole.train_state)


def test_why_it_ended():
    result = watched()
    best = f"{min(result.history['validation_loss']):.6g}"
    assert result.why == (
        f"validation_loss had not improved for 4 epochs; the best, {best}, was that of epoch {result.best_epoch}, "
        "whose state was restored"
    )
    plain = trained(2)
    assert (plain.why, plain.stopped, plain.best, plain.best_epoch) == ("all 2 epochs were run", False, None, None)
    assert plain.monitors is None
    assert trained(1).why == "the one epoch was run"


# ---------------------------------------------------------------- what is watched


def test_what_is_watched():
    settings = {"metrics": [metrics.accuracy], "validation": VALIDATION}
    best = keep_best(maximise=True)
    result = trained(6, keep=best, watch="validation_accuracy", **settings)
    assert result.best_epoch == int(np.argmax(result.history["validation_accuracy"])) + 1
    stop = early_stopping(2, maximise=True)  # which keeps the greatest, and not the least
    result = trained(stopping=stop, watch="accuracy", **settings)
    assert result.best_epoch == int(np.argmax(result.history["accuracy"])) + 1
    assert result.why.startswith("accuracy had not improved for 2 epochs")
    result = trained(6, keep=keep_best())  # the training loss, where there is no validation
    assert result.best_epoch == int(np.argmin(result.history["loss"])) + 1
    both = trained(6, keep=keep_best(), watch="loss", validation=VALIDATION)
    assert both.best_epoch == result.best_epoch


MISTAKES = {
    "unknown": ({"stopping": STOPPING, "watch": "accuracy"}, ValueError, "watch must be one of 'loss', got 'accuracy'"),
    "for nothing": ({"watch": "loss"}, ValueError, "watch='loss', but nothing reads it"),
    "directions": (
        {"stopping": STOPPING, "keep": keep_best(maximise=True)},
        ValueError,
        "all must maximise it, or none",
    ),
    "the least accuracy": (
        {"stopping": STOPPING, "watch": "accuracy", "metrics": [metrics.accuracy]},
        ValueError,
        "accuracy is better when greater",
    ),
    "the greatest loss": ({"keep": keep_best(maximise=True)}, ValueError, "loss is better when smaller"),
    "a factory": ({"stopping": early_stopping}, TypeError, r"its parentheses, early_stopping\(…\)"),
    "a number": ({"plateau": 0.1}, TypeError, "plateau must be a machine of jaxnn.stopping, got 0.1"),
    "monitors alone": ({"monitors": Monitors()}, ValueError, "monitors are given, but no machine"),
    "a state": ({"keep": keep_best(), "monitors": STOPPING.init()}, TypeError, "monitors must be Monitors"),
    "a taken name": ({"metrics": {"update_scale": metrics.accuracy}}, ValueError, "'update_scale'"),
    "another shape": ({"augment": lambda key, x: x[:, :2]}, ValueError, "augment changes the shape of a batch"),
    "another type": ({"augment": lambda key, x: x.astype(jnp.float16)}, ValueError, "augment changes the type"),
    "no function": ({"augment": 0.1}, TypeError, r"augment must be a function \(key, x\) -> x, got 0.1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_before_anything_compiles(mistake):
    changes, error, message = MISTAKES[mistake]
    key = jax.random.key(0)
    with compilations() as programs, pytest.raises(error, match=message):
        trained(2, **({"key": key} | changes))
    assert programs == []


def test_what_is_watched_must_be_finite():
    """A figure that decides is no number: that is a failure with a name, and not something that did not improve."""

    def fading(prediction, target):  # NaN once the training has changed the network's mind
        return jnp.where(jnp.abs(prediction).max() > limit, jnp.nan, 1.0) * jnp.ones(len(target))

    plain = trained(4, metrics={"size": lambda y, t: jnp.full(len(t), jnp.abs(y).max())}, validation=VALIDATION)
    sizes = plain.history["validation_size"]
    late = next(i for i in range(1, 4) if sizes[i] > max(sizes[:i]))
    limit = (sizes[late] + max(sizes[:late])) / 2
    settings = {"metrics": {"fading": fading}, "validation": VALIDATION}
    with pytest.raises(
        DivergenceError, match="validation_fading, which is watched, is not finite after step"
    ) as caught:
        trained(stopping=early_stopping(9, maximise=True), watch="validation_fading", **settings)
    error = caught.value
    assert (error.step, error.epoch, error.leaf) == (STEPS * (late + 1), late, "validation_fading")
    assert len(error.history["loss"]) == late + 1
    assert int(error.best.step) == STEPS  # the first among equals
    assert trained(late + 1, stopping=STOPPING, **settings).history["loss"]  # unwatched it may be NaN


# ---------------------------------------------------------------- the scale of updates


@pytest.mark.parametrize("whose", ["ours", "optax's"])
def test_a_plateau_scales_the_updates(whose):
    """Half of every update is half of the learning rate, for whatever optimizer; momentum is left alone."""
    if whose == "ours":
        make = lambda rate: sgd(rate)
    else:
        optax = pytest.importorskip("optax", reason="optax's optimizers are the other side of the protocol")
        make = lambda rate: optax.sgd(rate)
    net = mlp([K])
    run = lambda rate: train_epoch(net, LOSS, make(rate), batch_size=BATCH)
    state = jax.jit(lambda: init_train_state(net, make(0.2), 0, (D,)))()
    scaled, _ = jax.jit(lambda state: run(0.2)(state, *DATA, update_scale=0.5))(state)
    if whose == "ours":
        state = state._replace(opt_state=state.opt_state._replace(learning_rate=jnp.float32(0.1)))
    slower, _ = jax.jit(lambda state: run(0.1)(state, *DATA))(state)
    assert_close(scaled.params, slower.params)


def test_divergence_is_found_with_the_scale_that_was_in_force():
    """A fuse that burns in the fourth epoch, after the updates have been halved."""
    net = serial(dense(5), probe(), dense(K))
    rule = reduce_on_plateau(factor=0.5, patience=1, min_improvement=100.0)  # every epoch but the first is too little
    settings = {"key": 0, "batch_size": BATCH, "plateau": rule}
    good = fit(net, LOSS, RATE, DATA, epochs=3, **settings)
    lit = good.train_state._replace(state={"probe_0": good.train_state.state["probe_0"] | {"fuse": jnp.int32(10)}})
    with pytest.raises(DivergenceError) as caught:
        fit(net, LOSS, RATE, DATA, epochs=2, train_state=lit, monitors=good.monitors, **(settings | {"key": None}))
    assert (caught.value.step, caught.value.epoch) == (10, 3)
    assert good.history["update_scale"] == [1.0, 1.0, 0.5]
    scale = good.monitors.plateau.scale
    assert float(scale) == 0.25
    epoch = train_epoch(net, LOSS, RATE, batch_size=BATCH)
    clean = jax.jit(lambda state, scale: epoch(state, *DATA, update_scale=scale)[1])(good.train_state, scale)
    assert np.isfinite(clean.losses).all()
    again = fit(net, LOSS, RATE, DATA, epochs=1, train_state=good.train_state, monitors=good.monitors,
                **(settings | {"key": None}))  # fmt: skip
    assert not np.array_equal(again.train_state.params["dense_0"]["w"], caught.value.train_state.params["dense_0"]["w"])


# ---------------------------------------------------------------- augmentation


def jitter(key, x):
    return x + 0.3 * jax.random.normal(key, x.shape, x.dtype)


def test_augmentation_draws_another_key_in_every_step():
    seen = []

    def spy(key, x):
        jax.debug.callback(lambda data: seen.append(np.array(data)), jax.random.key_data(key), ordered=True)
        return jitter(key, x)

    result = trained(2, augment=spy)
    steps = [jax.random.fold_in(jax.random.key(0), step) for step in range(2 * STEPS)]
    own = [jax.random.fold_in(key, zlib.crc32(b"/augment")) for key in steps]
    np.testing.assert_array_equal(seen, [jax.random.key_data(key) for key in own])
    assert_close(result.train_state, trained(2, augment=jitter).train_state)


def test_augmentation_is_deterministic_and_goes_on():
    five, again = trained(5, augment=jitter), trained(5, augment=jitter)
    two = trained(2, augment=jitter)
    three = trained(3, augment=jitter, key=None, train_state=two.train_state)
    assert_same(five.train_state, again.train_state)
    assert_same(five.train_state, three.train_state)
    assert not np.array_equal(five.train_state.params["dense_0"]["w"], trained(5).train_state.params["dense_0"]["w"])


def test_evaluation_never_augments():
    blank = lambda key, x: jnp.zeros_like(x)
    result = trained(1, augment=blank, validation=VALIDATION)
    expected = evaluate(NET, LOSS, result.train_state, VALIDATION)["loss"]
    assert result.history["validation_loss"] == [expected]
    zeros = fit(NET, LOSS, RATE, (0 * X, LABELS), key=0, epochs=1, batch_size=BATCH)
    assert_close(result.train_state, zeros.train_state)


def test_divergence_by_augmentation():
    """The replay augments as the training did."""

    def rare(key, x):
        return jnp.where(jax.random.uniform(key) < 0.1, jnp.nan, x)

    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(60)]
    draws = [float(jax.random.uniform(jax.random.fold_in(key, zlib.crc32(b"/augment")))) for key in keys]
    first = next(i for i, draw in enumerate(draws) if draw < 0.1)
    with pytest.raises(DivergenceError) as caught:
        trained(20, augment=rare)
    assert (caught.value.step, caught.value.epoch) == (first, first // STEPS)


# ---------------------------------------------------------------- compilations


def test_one_program_each_and_none_again():
    net, optimizer, key = mlp([K]), sgd(0.1), jax.random.key(0)
    machines = {"stopping": early_stopping(7), "plateau": reduce_on_plateau(0.3, patience=9)}  # no other test's

    def run(key, **changes):
        settings = {"epochs": 3, "batch_size": BATCH, "validation": VALIDATION, "augment": jitter, "measure": 1}
        return fit(net, LOSS, optimizer, DATA, key=key, **(settings | machines | changes))

    with compilations() as programs:
        result = run(key)
    own = {"jit(initialisation)", "jit(training)", "jit(evaluation)", "jit(_begin)", "jit(_observe)"}
    assert sorted(set(programs) - SEEDING) == sorted(own)
    assert len(set(programs)) == len(programs)
    with compilations() as programs:
        run(key, epochs=1)
        run(None, train_state=result.train_state, monitors=result.monitors)
    assert programs == []


LOOP = 200  # operations of a loop whose length is an input: its counters, and where in the epoch it is


def test_what_is_not_asked_for_is_not_in_the_program():
    state, data = start(1)._replace(position=jnp.int32(0)), jax.device_put(DATA)
    chunk = Chunk(Epoch(train_step(NET, LOSS, RATE), BATCH), len(DATA[0]) % BATCH)

    def cost(scale):
        noted = chunk.nothing_noted(state, data, scale)
        program = run_chunk.lower(chunk, start(0), state, data, scale, noted, jnp.int32(99))
        return program.compile().cost_analysis()["flops"]

    bare = jax.jit(ONE_EPOCH).lower(start(1), *data).compile().cost_analysis()["flops"]
    assert cost(None) <= bare + LOOP
    assert cost(jnp.float32(1)) > bare
