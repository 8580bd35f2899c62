"""Training that is interrupted, and training that skips steps that are not finite."""

import ctypes
import functools
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import (
    DivergenceError,
    Interrupted,
    dense,
    fit,
    losses,
    sgd,
)
from jaxnn.stopping import early_stopping, keep_best
from jaxnn.training import chunks, evaluation
from jaxnn.training import driver as training

N, BATCH = 8, 2
X = np.linspace(-1, 1, N, dtype=np.float32)[:, None]
DATA, OTHERS = (X, 3 * X), (X[:3], X[:3])
NET, LOSS, OPTIMIZER = dense(1), losses.mse, sgd(1e-3, momentum=0.5)
FIT = functools.partial(fit, NET, LOSS, OPTIMIZER, DATA, batch_size=BATCH, validation=OTHERS)


def assert_same(ours, theirs):
    for a, b in zip(*map(jax.tree.leaves, (ours._replace(key=()), theirs._replace(key=()))), strict=True):
        np.testing.assert_array_equal(a, b)


def whole(fit_so_far):
    """Every list of the history has as many rows as epochs were completed, and the state is theirs."""
    epochs = int(fit_so_far.train_state.epoch)
    assert {len(column) for column in fit_so_far.history.values()} <= {epochs}
    assert_same(fit_so_far.train_state, FIT(key=0, epochs=epochs).train_state) if epochs else None
    return epochs


def test_ctrl_c_brings_what_was_trained_and_training_goes_on_from_there():
    FIT(key=0, epochs=1)  # compiled: from here on an epoch takes milliseconds
    here = ctypes.c_ulong(threading.get_ident())  # which need not be the main thread, that a signal would go to
    press = lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(here, ctypes.py_object(KeyboardInterrupt))
    threading.Timer(0.3, press).start()
    with pytest.raises(Interrupted, match=r"go on with train_state=error\.fit\.train_state") as caught:
        FIT(key=0, epochs=10**5)
    assert isinstance(caught.value, KeyboardInterrupt)
    epochs = whole(caught.value.fit)
    assert epochs >= 1
    assert str(caught.value).startswith(f"fit was interrupted after {epochs} epoch")
    more = FIT(train_state=caught.value.fit.train_state, epochs=2).train_state
    assert_same(more, FIT(key=0, epochs=epochs + 2).train_state)


PLACES = ["before an epoch", "behind an epoch", "in its evaluation", "in the bar", "as the result is waited for"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("third", [1, 3])
def test_an_interruption_anywhere_leaves_nothing_half_done(monkeypatch, place, third):
    """And takes in an epoch that had been computed."""
    calls = []

    def once(f):
        def interrupted(*args, after=False):
            calls.append(1)
            done = f(*args) if place == "behind an epoch" else None
            if len(calls) == third:
                raise KeyboardInterrupt
            return done if place == "behind an epoch" else f(*args)

        return interrupted

    if place in ("before an epoch", "behind an epoch"):
        monkeypatch.setattr(chunks, "run_chunk", once(chunks.run_chunk))
    elif place == "in its evaluation":
        monkeypatch.setattr(evaluation, "_score", once(evaluation._score))
    elif place == "in the bar":
        progress = training.progress_bar
        monkeypatch.setattr(training, "progress_bar", lambda *args: (progress(*args)[0], once(lambda row: None)))
    else:
        monkeypatch.setattr(training.EpochResult, "finite", property(once(training.EpochResult.finite.__get__)))
    with pytest.raises(Interrupted) as caught:
        FIT(key=0, epochs=5, keep=keep_best())
    monkeypatch.undo()
    computed = place not in ("before an epoch", "behind an epoch")
    assert whole(caught.value.fit) == (third if computed else third - 1)
    if third == 3:
        assert caught.value.fit.best is not None
    going_on = FIT(
        train_state=caught.value.fit.train_state, epochs=1, keep=keep_best(), monitors=caught.value.fit.monitors
    )
    assert going_on.best_epoch is not None


def test_the_state_that_was_given_is_not_lost():
    given = FIT(key=0, epochs=1).train_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_score", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            FIT(train_state=given, epochs=3)
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_an_interruption_can_be_pickled():
    result = FIT(key=0, epochs=1)
    plain = result._replace(train_state=result.train_state._replace(key=0))
    again = pickle.loads(pickle.dumps(Interrupted(jax.tree.map(np.asarray, plain))))
    assert str(again) == str(Interrupted(plain))
    assert again.fit.history == result.history


# ---------------------------------------------------------------- steps that are skipped


def poisoned(*bad):
    """Data whose examples at those places make the loss NaN, in the order of the data."""
    target = DATA[1].copy()
    target[list(bad)] = np.nan
    return X, target


def skipping(data, **changes):
    settings = {"epochs": 1, "batch_size": BATCH, "shuffle": False, "check_data": False, "key": 0, "skip_nonfinite": 2}
    return fit(NET, LOSS, OPTIMIZER, data, **(settings | changes))


@pytest.mark.parametrize("bad", [(), (0,), (3,), (7,), (0, 6)])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    """The training is that of the data without those batches."""
    result = skipping(poisoned(*bad))
    kept = [i for i in range(N) if not any(i // BATCH == b // BATCH for b in bad)]
    expected = skipping((X[kept], DATA[1][kept]), skip_nonfinite=0)
    assert result.history["skipped"] == [float(len(bad))]
    np.testing.assert_allclose(result.history["loss"], expected.history["loss"], rtol=1e-6)
    ours, theirs = (state._replace(key=()) for state in (result.train_state, expected.train_state))
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert int(ours.step) == len(kept) // BATCH
    assert (int(ours.epoch), int(ours.position)) == (1, 0)


def test_without_skipping_there_is_no_such_column():
    assert "skipped" not in skipping(DATA, skip_nonfinite=0).history


def test_so_many_in_a_row_end_the_training():
    """The error names the first of them, and its state is that before it, from which training goes on."""
    with pytest.raises(DivergenceError, match="and 2 steps in a row were not") as caught:
        skipping(poisoned(3, 4))
    error = caught.value
    assert (error.step, error.epoch, error.in_a_row, error.leaf) == (1, 0, 2, "grads/b")
    assert (int(error.train_state.step), int(error.train_state.position)) == (1, 2)
    after = skipping(DATA, key=None, train_state=error.train_state).train_state
    assert_same(after, skipping(DATA).train_state)
    assert skipping(poisoned(3, 4), skip_nonfinite=3).history["skipped"] == [2]


def test_in_a_row_reaches_over_the_end_of_an_epoch():
    with pytest.raises(DivergenceError) as caught:
        skipping(poisoned(0, 6), epochs=2)
    assert (caught.value.step, caught.value.epoch, len(caught.value.history["loss"])) == (2, 1, 1)
    assert skipping(poisoned(0, 5), epochs=2).history["skipped"] == [2, 2]


def test_a_gradient_that_is_not_finite_is_skipped_too():
    """The loss is finite, its slope is not."""
    bad = losses.mse._replace(delta=lambda y, t: losses.mse.delta(y, t) / jnp.where(t > 2.5, 0.0, 1.0))
    settings = {"epochs": 1, "batch_size": BATCH, "shuffle": False, "key": 0}
    result = fit(NET, bad, OPTIMIZER, DATA, skip_nonfinite=2, **settings)
    assert result.history["skipped"] == [1]
    assert np.isfinite(result.history["loss"]).all()


def test_parameters_that_are_not_finite_are_a_divergence_all_the_same():
    """Their gradients were finite: the step is named at which they left, not one that was skipped."""
    climbing = sgd(lambda t: jnp.where(t < 2, 1e-3, jnp.inf))
    settings = {"epochs": 1, "batch_size": BATCH, "shuffle": False, "key": 0, "check_data": False}
    with pytest.raises(DivergenceError, match="with a learning rate of inf") as caught:
        fit(NET, LOSS, climbing, poisoned(0), skip_nonfinite=4, **settings)
    assert caught.value.leaf.startswith("params/")
    assert (caught.value.step, int(caught.value.train_state.position)) == (2, 6)


def test_skipping_with_machines_and_a_rest_of_an_epoch():
    result = skipping(poisoned(3), epochs=3, stopping=early_stopping(2), watch="loss")
    assert result.history["skipped"] == [1, 1, 1]
    start = skipping(DATA).train_state._replace(position=2)
    assert skipping(poisoned(3), key=None, train_state=start).history["skipped"] == [1]
    with pytest.raises(ValueError, match="skip_nonfinite must be at least 0, got -1"):
        skipping(DATA, skip_nonfinite=-1)


@pytest.mark.parametrize("skip", [0, 2, 20])
def test_a_step_that_breaks_the_parameters_is_named_though_later_steps_are_skipped(skip):
    """Its loss and gradients are finite; those of the steps behind it are not, and are skipped."""
    climbing = sgd(lambda t: jnp.where(t == 1, 3e38, 1e-3))
    settings = {"epochs": 1, "batch_size": 1, "shuffle": False, "key": 0, "check_data": False}
    with pytest.raises(DivergenceError) as caught:
        fit(NET, LOSS, climbing, (X, 10 * DATA[1] + 10), skip_nonfinite=skip, **settings)
    assert (caught.value.step, caught.value.leaf.partition("/")[0]) == (1, "params")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(caught.value.train_state.params))
