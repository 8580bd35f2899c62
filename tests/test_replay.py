"""Any step of any training again, to the bit: of members of a sweep, of folders of checkpoints, of a divergence."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_arrays import bits
from test_sweep import (
    BATCH,
    DATA,
    FIRST,
    HUGE,
    LOSS,
    MADE,
    NET,
    OTHERS,
    STEP,
    N,
    S,
    X,
    assert_close,
    make,
    plain,
)

from jaxnn import (
    DivergenceError,
    Moment,
    Sweep,
    adam,
    fit,
    init_train_state,
    losses,
    metrics,
    mlp,
    replay,
    run,
    sgd,
    sweep,
    train_step,
)
from jaxnn.checkpoint import Damaged, Keep
from jaxnn.stopping import keep_best, reduce_on_plateau


def test_any_step_of_any_member_to_the_bit():
    """From the states that were remembered, and from the beginning; some members end early."""
    swept = sweep(make, {"rate": [0.3, 0.03], "l2": [0.0, 0.1]}, seeds=[3, 5], at_once=5, remember=2)(DATA, OTHERS)
    assert swept.runs.epochs_run.min() < swept.runs.epochs_run.max()
    forgetful = swept.origin._replace(remembered={})
    whole = Sweep(swept.settings, swept.seeds, swept.runs, swept.figure, swept.maximise, forgetful)
    assert swept.origin.remembered
    chosen = random.Random(0)
    for _ in range(12):
        i = chosen.randrange(len(swept))
        step = chosen.randrange(int(swept.runs.epochs_run[i]) * S)
        moment = replay(swept, step, i)
        assert int(moment.train_state.step) == step
        assert bits(moment) == bits(replay(whole, step, i))
    for (first, epoch), progress in swept.origin.remembered.items():  # states that the sweep itself went through
        for i in range(first, min(first + 2, len(swept))):
            if epoch < swept.runs.epochs_run[i]:
                seen = jax.tree.map(lambda leaf, row=i - first: leaf[row], progress.train_state)
                found = replay(whole, epoch * S, i).train_state
                assert bits((seen.params, seen.opt_state)) == bits((found.params, found.opt_state))
    last = replay(swept, int(swept.member(0).step) - 1, 0).take()[0]
    assert_close(last.params["dense_1"], swept.member(0).params["dense_1"], 1e-3)


def test_a_moment_is_ready_for_questions():
    moment = replay(sweep(plain, [{"rate": 0.1, "l2": 0.1}], epochs=2, batch_size=BATCH)(DATA), 5, 0)
    assert repr(moment) == "Moment(step 5, epoch 1, position 6, batch of 6)"
    loss = moment.take()[1].loss
    np.testing.assert_allclose(moment.loss(moment.train_state.params), loss, rtol=1e-5)


@pytest.mark.long
def test_the_questions():
    moment = replay(sweep(plain, [{"rate": 0.1, "l2": 0.1}], epochs=2, batch_size=BATCH)(DATA), 5, 0)
    assert moment.diagnose().verdict == "healthy"
    assert moment.gradcheck().ok
    assert moment.trace().value == pytest.approx(float(moment.take()[1].loss), rel=1e-5)
    assert moment.explain().finite


SETTINGS = {"epochs": 5, "batch_size": BATCH, "validation": OTHERS, "metrics": [metrics.accuracy], "key": 0}
MACHINES = {"plateau": reduce_on_plateau(0.5, patience=1), "keep": keep_best()}


def test_a_fit_again_from_its_folder(tmp_path):
    """From any checkpoint, across epochs whose plateau changes the updates, and from the first state."""
    folder = Keep(tmp_path, every=3, last=None)
    fit(NET, LOSS, adam(0.3), DATA, **SETTINGS, **MACHINES, checkpoint=folder)
    moment = replay(folder, 17, data=DATA, validation=OTHERS)
    assert float(moment.update_scale) < 1
    newest = (tmp_path / "step_0000000015.safetensors").read_bytes()
    for path in sorted(tmp_path.iterdir())[1:]:
        path.unlink()
    again = replay(tmp_path, 17, data=DATA, validation=OTHERS)
    assert bits(again) == bits(moment)
    copy = tmp_path / "step_0000000015.safetensors"
    copy.write_bytes(newest[:-1] + bytes([newest[-1] ^ 1]))
    assert bits(replay(tmp_path, np.int32(17), data=DATA, validation=OTHERS)) == bits(moment)  # an older one serves
    with pytest.raises(ValueError, match="data are not those of this training"):
        replay(tmp_path, 17, data=(X + 1, DATA[1]), validation=OTHERS)
    with pytest.raises(Damaged):
        replay(copy, 17, data=DATA, validation=OTHERS)
    made = run(train_step(NET, LOSS, adam(0.3)), epochs=5, batch_size=BATCH, metrics=[metrics.accuracy], **MACHINES)
    first = init_train_state(NET, adam(0.3), 0, (3,))
    assert bits(replay(first, 17, of=made, data=DATA, validation=OTHERS)) == bits(moment)


def test_the_nan_of_a_divergence_is_explained():
    with pytest.raises(DivergenceError) as caught:
        fit(mlp([3, 2]), LOSS, sgd(1e30), DATA, epochs=2, batch_size=BATCH, key=0)
    moment = replay(caught.value)
    assert isinstance(moment, Moment)
    assert int(moment.train_state.step) == caught.value.step
    assert not np.isfinite(moment.take()[1].loss) or moment.take()[1].grads
    why = moment.explain()
    assert not why.finite
    assert why.cause == "overflow"
    with pytest.raises(TypeError, match="give it alone"):
        replay(caught.value, 3)


def test_a_validation_loss_that_is_not_finite_is_that_of_no_step():
    with pytest.raises(DivergenceError) as caught:
        fit(
            mlp([2]),
            losses.mse,
            sgd(0.1),
            (X, X[:, :2]),
            epochs=1,
            batch_size=BATCH,
            key=0,
            validation=(HUGE, X[:9, :2]),
        )
    with pytest.raises(ValueError, match="no step is at fault, the validation_loss after step 4"):
        replay(caught.value)


def test_a_step_that_was_never_taken_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 epochs end before step 6: there is none"):
        replay(FIRST, 6, of=MADE, data=DATA)
    fit(mlp([2]), LOSS, sgd(0.1), DATA, epochs=1, batch_size=4, key=0, checkpoint=Keep(tmp_path, every=2))
    with pytest.raises(ValueError, match="data are not those of this training"):
        replay(tmp_path, 5, data=(X + 1, DATA[1]))
    assert int(replay(tmp_path, 5, data=DATA).train_state.step) == 5


def test_a_plateau_on_ones_own_figure_is_replayed():
    """The scale follows what `evaluate` says, a constant, and not the validation loss, which falls."""
    plateau, constant = reduce_on_plateau(0.5, patience=1), lambda state, validation: {"loss": jnp.float32(1)}
    made = run(STEP, epochs=4, batch_size=N, plateau=plateau, evaluate=constant)
    expected = jax.jit(made)(FIRST, DATA, ()).history["update_scale"]
    for epoch, scale in enumerate(expected):
        assert replay(FIRST, epoch, of=made, data=DATA, validation=()).update_scale == scale
    assert expected[-1] == 0.25
