"""`run`, training as a pure function: compared with `fit`, with itself in parts, and with single runs under vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import assert_close, assert_same

from jaxnn import (
    accumulate,
    backprop,
    batch_norm,
    chain,
    clip_by_global_norm,
    dense,
    dropout,
    fit,
    init_train_state,
    losses,
    metrics,
    mlp,
    penalties,
    run,
    serial,
    sgd,
    tanh,
    train_epoch,
    train_step,
)
from jaxnn.sequences import Sequences
from jaxnn.stopping import early_stopping, keep_best, reduce_on_plateau, together
from jaxnn.training.monitoring import best_state
from jaxnn.types import EPOCH_START, TrainState

pytestmark = pytest.mark.xdist_group("run")  # tests share what is compiled
N, D, K, BATCH, STEPS = 11, 4, 3, 4, 3  # batches of 4, 4 and 3
RNG = np.random.default_rng(5)
X, OTHERS = (RNG.normal(size=(n, D)).astype(np.float32) for n in (N, 7))
# as much noise as rule in so few examples: validation gets better first, and then worse
LABELS, OTHER_LABELS = ((x[:, :K] + RNG.normal(size=(len(x), K))).argmax(1).astype(np.int32) for x in (X, OTHERS))
DATA, VALIDATION = (X, LABELS), (OTHERS, OTHER_LABELS)
LOSS, RATE = losses.softmax_cross_entropy, sgd(0.1, momentum=0.5)
PLAIN = mlp([6, K], activation=tanh)
WHOLE = serial(dense(6), batch_norm(), tanh, dropout(0.2), dense(K))
STOPPING, PLATEAU = early_stopping(patience=3), reduce_on_plateau(factor=0.5, patience=2)


def noisy(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape, x.dtype)


@functools.cache
def start(net=PLAIN, optimizer=RATE, seed=0, shape=(D,)):
    return jax.jit(lambda key: init_train_state(net, optimizer, key, shape))(jax.random.key(seed))


def histories(fitted):
    return {name: np.array(values) for name, values in fitted.history.items() if name != "seconds"}


def assert_histories(ours, theirs, tolerance=1e-5):
    """Equal as far as training went, and NaN from there on."""
    ours = {name: np.asarray(values) for name, values in ours.items()}
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name][: len(values)], values, rtol=tolerance, atol=tolerance, err_msg=name)
        assert np.isnan(ours[name][len(values) :]).all(), name


# ---------------------------------------------------------------- fit = run

WEIGHTS = np.array([1, 2, 0, 1, 3, 1, 1, 0.5, 1, 1, 2], np.float32)
MASK = RNG.random((N, 5)) < 0.7
MASK[:, 0] = True
STEPWISE = Sequences(RNG.normal(size=(N, 5, 2)).astype(np.float32), MASK)
TARGETS = RNG.integers(0, K, size=(N, 5)).astype(np.int32)
OF_STEPS = dense(K)  # passes the mask on
ACCUMULATED = accumulate(chain(clip_by_global_norm(1.0), RATE), 2)
CASES = {
    "everything": (
        train_step(WHOLE, LOSS, RATE, penalty=penalties.l2(0.01)),
        {"data": (*DATA, WEIGHTS), "validation": VALIDATION, "shape": (D,)},
        {"metrics": [metrics.accuracy], "augment": noisy, "stopping": STOPPING, "plateau": PLATEAU, "epochs": 14},
    ),
    "sequences": (
        train_step(OF_STEPS, LOSS, ACCUMULATED),
        {"data": (STEPWISE, TARGETS), "validation": None, "shape": (5, 2)},
        {"metrics": {"right": metrics.accuracy}, "epochs": 3, "keep": keep_best(), "shuffle": False},
    ),
}


@functools.cache
def both(name):
    """The run and the fit of a case."""
    step, given, settings = CASES[name]
    first = start(step.net, step.optimizer, 2, given["shape"])
    ours = jax.jit(run(step, batch_size=BATCH, **settings))(first, given["data"], given["validation"])
    theirs = fit(
        *(step.net, step.loss, step.optimizer, given["data"]),
        validation=given["validation"],
        train_state=first,
        batch_size=BATCH,
        penalty=step.penalty,
        restore_best=False,
        **({"keep": keep_best()} if "stopping" in settings else {}),
        **settings,
    )
    return ours, theirs


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_a_fit(name):
    ours, theirs = both(name)
    assert_histories(ours.history, histories(theirs))
    assert int(ours.epochs_run) == len(theirs.history["loss"])
    assert_close(ours.train_state, theirs.train_state)
    if theirs.best is not None:
        assert_close(ours.best, theirs.best)
        assert_close(ours.monitors, theirs.monitors)
    else:
        assert ours.best is ours.monitors is None


def test_the_run_that_is_compared_ends_early_and_slows_down():
    """Otherwise the comparison above holds of no monitor; and the best is not the last."""
    ours, _ = both("everything")
    ran = int(ours.epochs_run)
    assert 4 < ran < 14
    assert ours.history["update_scale"][ran - 1] < 1
    assert int(ours.best.epoch) == ran - STOPPING.patience == 1 + np.nanargmin(ours.history["validation_loss"])
    assert repr(ours).startswith(f"Run({ran} of 14 epochs, loss ")
    assert len(str(ours).splitlines()) == ran + 3


# ---------------------------------------------------------------- a, then b

TRAIN = train_step(PLAIN, LOSS, RATE)
WATCHED = {"stopping": STOPPING, "plateau": PLATEAU, "keep": keep_best()}


@functools.cache
def watching(epochs, **changes):
    return jax.jit(run(TRAIN, epochs=epochs, batch_size=BATCH, **WATCHED, **changes))


def test_a_run_goes_on_with_its_monitors():
    whole = watching(9)(start(), DATA, VALIDATION)
    first = watching(3)(start(), DATA, VALIDATION)
    second = watching(6)(first.train_state, DATA, VALIDATION, monitors=first.monitors)
    assert 3 < int(whole.epochs_run) < 9
    joined = {name: np.concatenate([first.history[name], second.history[name]]) for name in first.history}
    for name, values in whole.history.items():
        np.testing.assert_array_equal(values, joined[name])
    assert int(first.epochs_run) + int(second.epochs_run) == int(whole.epochs_run)
    assert_same(second._replace(history=(), epochs_run=()), whole._replace(history=(), epochs_run=()))


def test_a_state_within_an_epoch():
    """At a position that is known, and at one that is traced, it finishes that epoch first."""
    inside = start()._replace(position=jnp.int32(BATCH), step=jnp.int32(1), epoch=jnp.int32(2))
    made = run(TRAIN, epochs=2, batch_size=BATCH)
    known = jax.jit(lambda state: made(state._replace(position=BATCH), DATA))(inside)
    traced = jax.jit(made)
    fitted = fit(PLAIN, LOSS, RATE, DATA, train_state=inside, epochs=2, batch_size=BATCH)
    for ours in (known, traced(inside, DATA)):
        assert_close(ours.train_state, fitted.train_state)
        assert_histories(ours.history, histories(fitted))
        assert int(ours.train_state.epoch) == 4
        assert int(ours.train_state.step) == 2 * STEPS  # one was taken before
        assert ours.train_state.position is EPOCH_START
    off = traced(inside._replace(position=jnp.int32(BATCH + 1)), DATA).history["loss"]
    assert np.isnan(off).tolist() == [True, False]


# ---------------------------------------------------------------- many at once

MEMBERS = range(4)


@functools.cache
def members():
    """Four runs under vmap in float64: the first states, the program, the runs, and each member's own run."""
    with jax.enable_x64(True):
        data, validation = ((x.astype(np.float64), t) for x, t in (DATA, VALIDATION))
        step = train_step(WHOLE, LOSS, RATE)
        made = run(step, epochs=12, batch_size=BATCH, **WATCHED)
        first = jax.jit(jax.vmap(lambda key: init_train_state(WHOLE, RATE, key, (D,), jnp.float64)))(
            jax.random.split(jax.random.key(7), len(MEMBERS))
        )
        monitors = jax.vmap(together(**WATCHED).init)(first)
        program = jax.jit(jax.vmap(lambda state, monitors: made(state, data, validation, monitors=monitors)))
        runs = program(first, monitors)
        alone = jax.jit(lambda state: made(state, data, validation))
        own = [alone(jax.tree.map(lambda leaf: leaf[i], first)) for i in MEMBERS]
        return program, runs, own, program(runs.train_state, runs.monitors)


def test_a_member_is_its_own_run():
    _, runs, own, _ = members()
    assert len({int(alone.epochs_run) for alone in own}) > 1  # they end at different epochs
    for i, alone in enumerate(own):
        member = jax.tree.map(lambda leaf: leaf[i], runs)
        ran = int(alone.epochs_run)
        assert int(member.epochs_run) == ran
        histories = {name: np.asarray(values)[:ran] for name, values in alone.history.items()}
        assert_histories(member.history, histories, 1e-12)
        assert_close(member._replace(history=()), alone._replace(history=()), 1e-12)
        assert int(member.train_state.step) == ran * STEPS
        assert int(member.train_state.epoch) == ran
    assert any(int(alone.epochs_run) < 12 for alone in own)


def test_a_member_that_has_ended_stands_still():
    """To the bit: parameters, running statistics, momentum, key, step, epoch and monitors, while others go on."""
    _, runs, own, later = members()
    ended = [i for i in MEMBERS if bool(own[i].monitors.stopping.stopped)]
    assert ended
    for i in ended:
        before, after = (jax.tree.map(lambda leaf: leaf[i], result) for result in (runs, later))
        assert_same(after._replace(history=(), epochs_run=()), before._replace(history=(), epochs_run=()))
        assert int(after.epochs_run) == 0
        assert all(np.isnan(values).all() for values in after.history.values())


def test_a_loss_that_is_not_finite_ends_a_run_that_may_stop():
    """It raises nothing: a step of 1e20 in one direction overflows float32."""
    wild = run(train_step(PLAIN, losses.half_squared_error, sgd(1e20)), epochs=4, batch_size=BATCH, stopping=STOPPING)
    target = X[:, :K]
    result = jax.jit(wild)(start(PLAIN, sgd(1e20)), (X, target))
    assert int(result.epochs_run) == 1
    assert np.isnan(result.history["loss"][1:]).all()
    assert not np.isfinite(result.history["loss"][0])
    assert_same(result.best.params, start(PLAIN, sgd(1e20)).params)  # the first, where no figure was finite


# ---------------------------------------------------------------- differentiated


def test_the_gradient_by_the_weights_of_examples_also_recomputed():
    """∂(the last validation loss)/∂wₙ: by both forms, and by differences; recomputing takes less memory."""
    epochs = 48  # 144 steps in blocks of 12, and an epoch has 3
    with jax.enable_x64(True):
        (x, t), others = ((x.astype(np.float64), t) for x, t in (DATA, VALIDATION))
        net, rate = dense(K), sgd(0.1)  # little to compile
        first = init_train_state(net, rate, 0, (D,), jnp.float64)
        w = np.linspace(0.5, 1.5, N)
        found, memory = {}, {}
        for recompute in (False, True):
            made = run(train_step(net, LOSS, rate), epochs=epochs, batch_size=BATCH, recompute=recompute)

            def cost(w, made=made):
                return made(first, (x, t, w), others).history["validation_loss"][-1]

            program = jax.jit(jax.value_and_grad(cost)).lower(w).compile()
            found[recompute] = program(w)
            memory[recompute] = program.memory_analysis().temp_size_in_bytes
        (value, grad), (again, grad_again) = found[False], found[True]
        assert float(again) == pytest.approx(float(value), rel=1e-14)
        np.testing.assert_allclose(grad_again, grad, rtol=1e-12)
        assert memory[True] < 0.25 * memory[False]  # 0.15; keeping every step's state 0.36
        change, each = 1e-5, np.eye(N)[2]
        sides = [float(program(w + sign * change * each)[0]) for sign in (1, -1)]
        assert float(grad[2]) == pytest.approx((sides[0] - sides[1]) / (2 * change), rel=1e-6)


def test_what_is_not_asked_for_costs_nothing():
    """As many FLOPs as a scan over `train_epoch`; with monitors more."""
    epoch, epochs = train_epoch(PLAIN, LOSS, RATE, batch_size=BATCH), 3

    def scanned(state, x, t):
        return jax.lax.scan(lambda state, _: epoch(state, x, t), state, None, length=epochs)

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    bare = flops(scanned, start(), *DATA)
    assert flops(run(TRAIN, epochs=epochs, batch_size=BATCH), start(), DATA) <= bare + 2 * epochs  # counts epochs
    assert flops(run(TRAIN, epochs=epochs, batch_size=BATCH, plateau=PLATEAU), start(), DATA) > bare + 2 * epochs


# ---------------------------------------------------------------- a step of one's own


def own(state, batch, update_scale=1.0):
    """What train_step does, in the user's words; the figures by other names and as a bool too."""
    x, labels = batch
    out = backprop(PLAIN, LOSS)(state.params, (), x, labels)
    updates, opt_state = RATE.update(out.grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + update_scale * u, state.params, updates)
    right = (out.output.argmax(-1) == labels).mean()
    info = {"loss": out.loss, "accuracy": right, "certain": (out.output > 3).any()}
    return state._replace(params=params, opt_state=opt_state, step=state.step + 7), info


def scored(state, data):
    """The validation figures of a train_step, and one that counts."""
    x, labels = data
    output = PLAIN.forward(state.params, (), x)[0]
    return {"loss": LOSS.value(output, labels).mean(), "count": (output.argmax(-1) == labels).sum()}


def test_a_step_of_ones_own_is_trained_like_a_train_step():
    ours = jax.jit(run(own, epochs=9, batch_size=BATCH, evaluate=scored, **WATCHED))(start(), DATA, VALIDATION)
    theirs = watching(9, metrics=(metrics.accuracy,))(start(), DATA, VALIDATION)
    ran = int(theirs.epochs_run)
    assert ran < 9
    assert theirs.history["update_scale"][ran - 1] < 1  # the plateau is in its updates
    assert_close(ours._replace(history=()), theirs._replace(history=()))
    for name in ("loss", "accuracy", "validation_loss", "update_scale"):
        np.testing.assert_allclose(ours.history[name], theirs.history[name], rtol=1e-5)
    count = len(OTHERS) * np.asarray(theirs.history["validation_accuracy"])
    np.testing.assert_allclose(ours.history["validation_count"], count, rtol=1e-6)  # NaN where it had ended
    assert {str(values.dtype) for values in ours.history.values()} == {"float32"}


def drift(w, batch):
    return w - 0.1 * batch["x"].mean(), {"distance": jnp.abs(w), "sum": batch["x"].sum().astype(jnp.bfloat16)}


@pytest.mark.parametrize("given", [np.arange(5.0, dtype=np.float32), jnp.arange(5.0)], ids=["numpy", "jax"])
def test_a_state_and_data_of_any_kind(given):
    """A number as the state, a dict as the data; means over an epoch are weighted by the size of batches."""
    result = run(drift, epochs=2, batch_size=2, shuffle=False)(1.0, {"x": given})
    states = 1 - 0.1 * np.cumsum([0, 0.5, 2.5, 4, 0.5, 2.5, 4])
    assert float(result.train_state) == pytest.approx(states[-1], rel=1e-6)
    share = np.array([2, 2, 1]) / 5
    np.testing.assert_allclose(result.history["distance"], [share @ states[:3], share @ states[3:6]], rtol=1e-6)
    np.testing.assert_allclose(result.history["sum"], share @ [1, 5, 4] * np.ones(2), rtol=1e-6)
    assert result.best is None
    kept = run(drift, epochs=2, batch_size=2, shuffle=False, keep=keep_best(), watch="distance")
    assert float(kept(1.0, {"x": given}).best) == pytest.approx(states[-1], rel=1e-6)


def walk(state, batch):
    """Keeps a key of its own in the state's, and the numbers drawn."""
    key, now = jax.random.split(state.key)
    drawn = state.params.at[state.step].set(jax.random.uniform(now))
    return state._replace(params=drawn, key=key), {"first": batch[0]}


def test_a_key_that_the_step_moves_stays_moved():
    """Also where steps before a traced position are discarded."""
    made = run(walk, epochs=1, batch_size=1, shuffle=False)
    first = TrainState(jnp.zeros(6), (), (), jnp.int32(0), jax.random.key(0), jnp.int32(0))
    whole = jax.jit(made)(first, jnp.arange(4.0)).train_state
    assert len(set(np.asarray(whole.params[:4]).tolist())) == 4
    inside = first._replace(position=jnp.int32(2))
    known = jax.jit(lambda state: made(state._replace(position=2), jnp.arange(4.0)))(inside)
    traced = jax.jit(made)(inside, jnp.arange(4.0))
    assert_same(traced.train_state, known.train_state)
    assert float(traced.history["first"][0]) == 2.5
    assert np.isnan(jax.jit(made)(first._replace(position=jnp.int32(9)), jnp.arange(4.0)).history["first"][0])
    assert (jax.random.key_data(known.train_state.key) != jax.random.key_data(first.key)).any()


def test_a_step_with_arrays_in_it():
    """A closure over an array is hashed by its identity; a record with arrays in a field by its structure."""
    shift = jnp.float32(0.5)
    made = run(lambda w, batch: (w - shift * batch.mean(), {}), epochs=1, batch_size=2, shuffle=False)
    assert float(jax.jit(made)(1.0, np.ones(4, np.float32)).train_state) == 0
    assert best_state(None) is None
    pulled = jax.tree_util.Partial(lambda rate, w, batch: (w - rate * batch.mean(), {}))

    def after(rate):
        partial = jax.tree_util.Partial(pulled.func, rate)
        return run(partial, epochs=1, batch_size=2, shuffle=False)(1.0, np.ones(4, np.float32)).train_state

    assert float(jax.grad(after)(jnp.float32(0.5))) == -2  # two steps
