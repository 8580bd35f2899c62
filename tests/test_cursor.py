"""Where in an epoch a training is: what goes on from there, and what a counter may be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import (
    DivergenceError,
    Layer,
    dense,
    fit,
    init_train_state,
    losses,
    serial,
    sgd,
    train_epoch,
    train_step,
)
from jaxnn.stopping import keep_best
from jaxnn.training.chunks import Chunk, run_chunk
from jaxnn.training.epochs import Epoch
from jaxnn.types import EPOCH_START

N, BATCH = 10, 3  # batches of 3, 3, 3 and 1


def ledger() -> Layer:
    """Writes down which examples it has seen, in which order and in batches of which size: x is their number."""

    def init(key, in_shape, dtype=jnp.float32):
        return {}, {"seen": jnp.full(64, -1, jnp.int32), "count": jnp.int32(0), "sizes": jnp.zeros(64, jnp.int32)}

    def forward(params, state, x, *, train=False, rng=None):
        if not train:
            return x, state, ()
        at = state["count"] + jnp.arange(len(x))
        seen = state["seen"].at[at].set(x[:, 0].astype(jnp.int32))
        sizes = state["sizes"].at[at].set(len(x))
        return x, {"seen": seen, "count": state["count"] + len(x), "sizes": sizes}, ()

    return Layer("ledger", init, forward, lambda params, tape, delta: (delta, {}))


NET, LOSS, OPTIMIZER = serial(ledger(), dense(1)), losses.mse, sgd(1e-4, momentum=0.5)
X = np.arange(N, dtype=np.float32)[:, None]
DATA = (X, np.sin(X))
FIRST = jax.jit(lambda: init_train_state(NET, OPTIMIZER, 0, (1,)))()
FIT = functools.partial(fit, NET, LOSS, OPTIMIZER, DATA)
STEP = jax.jit(train_step(NET, LOSS, OPTIMIZER))


def order(epoch):
    return np.asarray(jax.random.permutation(jax.random.fold_in(FIRST.key, epoch), N))


def by_hand(batches, state=FIRST):
    """Steps on those rows; the losses, and the state, whose cursor has not moved."""
    each = []
    for rows in batches:
        state, out = STEP(state, X[rows], DATA[1][rows])
        each.append((float(out.loss), len(rows)))
    return state, each


def within(epoch, position, batch=BATCH):
    """The state in that epoch, at that position, everything before done by hand."""
    rows = [order(e)[i : i + batch] for e in range(epoch) for i in range(0, N, batch)]
    rows += [order(epoch)[i : i + batch] for i in range(0, position, batch)]
    state, _ = by_hand(rows)
    return state._replace(epoch=jnp.int32(epoch), position=jnp.int32(position))


def seen(state):
    count = int(state.state["ledger_0"]["count"])
    return (np.asarray(state.state["ledger_0"][name])[:count] for name in ("seen", "sizes"))


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.state["ledger_0"]["seen"], theirs.state["ledger_0"]["seen"])
    for a, b in zip(*map(jax.tree.leaves, (ours.params, theirs.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert (int(ours.step), int(ours.epoch), int(ours.position)) == (
        int(theirs.step),
        int(theirs.epoch),
        int(theirs.position),
    )


def test_a_fresh_state_is_at_the_start_and_steps_by_hand_leave_it_there():
    state, _ = by_hand([[0, 1], [2]])
    assert (int(state.step), int(state.epoch), int(state.position)) == (2, 0, 0)
    after = FIT(train_state=state, epochs=1, batch_size=BATCH).train_state
    assert next(seen(after)).tolist() == [0, 1, 2, *order(0)]
    assert (int(after.step), int(after.epoch), int(after.position)) == (6, 1, 0)


@pytest.mark.parametrize("position", [3, 6, 9])
@pytest.mark.parametrize("way", ["fit", "epoch", "jit", "vmap"])
def test_an_epoch_that_has_begun_is_finished(way, position):
    """The examples that are left come in that epoch's order, and the mean is theirs."""
    state = within(1, position)
    left = [order(1)[i : i + BATCH] for i in range(position, N, BATCH)]
    expected, each = by_hand(left, state)
    expected = expected._replace(epoch=2, position=0)
    if way == "fit":
        result = FIT(train_state=state, epochs=1, batch_size=BATCH)
        after, loss = result.train_state, result.history["loss"][0]
        assert result.why == f"the rest of epoch 2, from example {position} on, was run"
    else:
        run = epochs()[way]
        if way == "vmap":
            stack = lambda leaf: leaf[None]
            after, result = run(jax.tree.map(stack, state), *DATA)
            after, result = jax.tree.map(lambda leaf: leaf[0], (after, result))
        else:
            after, result = run(state, *DATA)
        loss = result.loss
        losses_of_steps = np.asarray(result.losses)
        ran = np.isfinite(losses_of_steps)
        np.testing.assert_allclose(losses_of_steps[ran], [value for value, _ in each], rtol=1e-5)
        assert bool(result.finite)
    assert_same(after, expected)
    np.testing.assert_allclose(loss, np.average([v for v, _ in each], weights=[n for _, n in each]), rtol=1e-5)


@functools.cache
def epochs():
    run = train_epoch(NET, LOSS, OPTIMIZER, batch_size=BATCH)
    return {"epoch": run, "jit": jax.jit(run), "vmap": jax.jit(jax.vmap(run, in_axes=(0, None, None)))}


def test_going_on_is_as_if_nothing_had_been():
    """Two epochs in one run, or one broken off in the first of them."""
    whole = FIT(key=0, epochs=2, batch_size=BATCH).train_state
    parts = FIT(train_state=within(0, 6), epochs=2, batch_size=BATCH)
    assert_same(parts.train_state, whole)
    assert parts.why == "the rest of epoch 1, from example 6 on, and 1 further epoch were run"


@pytest.mark.parametrize(("batch", "sizes"), [(5, [4]), (2, [2, 2]), (3, [3, 1]), (10, [4])])
def test_another_batch_size_within_an_epoch(batch, sizes):
    """What is left is cut anew: every example comes once in its epoch, whatever the sizes."""
    after = FIT(train_state=within(1, 6), epochs=2, batch_size=batch).train_state
    examples, of_size = seen(after)
    np.testing.assert_array_equal(examples, [*order(0), *order(1), *order(2)])
    np.testing.assert_array_equal(of_size[16:20], np.repeat(sizes, sizes))
    assert (int(after.epoch), int(after.position)) == (3, 0)


def in_chunks(lengths, *, epoch, state=FIRST):
    """An epoch in chunks of those lengths; what was noted, the state and the result."""
    data, chunk = jax.device_put(DATA), Chunk(epoch, N % BATCH)
    state = state._replace(position=jnp.int32(0))
    noted = chunk.nothing_noted(state, data, None)
    for steps in lengths:
        spare = jax.tree.map(lambda leaf: leaf.copy(), state)._replace(position=EPOCH_START)
        state, noted, result = run_chunk(chunk, spare, state, data, None, noted, np.int32(steps))
    return state, noted, result


@pytest.mark.parametrize("lengths", [(1, 3), (2, 1, 1), (3, 1), (1, 1, 1, 1), (0, 9)])
@pytest.mark.parametrize("settings", [{}, {"measure": 2}, {"skip_nonfinite": 2}], ids=["plain", "measured", "skipping"])
def test_an_epoch_in_chunks_is_the_epoch_to_the_bit(lengths, settings):
    """The states, the means and the measures; and one program runs all chunks."""
    epoch = Epoch(train_step(NET, LOSS, OPTIMIZER), BATCH, **settings)
    whole, pieces = in_chunks((99,), epoch=epoch), in_chunks(lengths, epoch=epoch)
    assert_same(whole[0], pieces[0])
    for a, b in zip(*map(jax.tree.leaves, (whole[1:], pieces[1:])), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (int(pieces[0].epoch), int(pieces[0].position), int(pieces[0].step)) == (1, 0, 4)
    np.testing.assert_array_equal(next(seen(pieces[0])), order(0))
    if "measure" in settings:
        assert pieces[2].diagnostics.step.tolist() == [1, 2]


def test_a_chunk_stops_where_it_is_told():
    state, _, result = in_chunks((1, 1), epoch=Epoch(train_step(NET, LOSS, OPTIMIZER), BATCH))
    assert (int(state.step), int(state.epoch), int(state.position)) == (2, 0, 6)
    assert result.ran.tolist() == [True, True, False, False]
    assert np.isfinite(result.losses).tolist() == result.ran.tolist()
    after = FIT(train_state=state, epochs=1, batch_size=BATCH).train_state
    assert_same(after, FIT(key=0, epochs=1, batch_size=BATCH).train_state)


def test_another_batch_size_within_an_epoch_without_jit():
    after, _ = train_epoch(NET, LOSS, OPTIMIZER, batch_size=10)(within(1, 6), *DATA)
    np.testing.assert_array_equal(next(seen(after)), [*order(0), *order(1)])


def test_another_batch_size_between_epochs_draws_another_order():
    after = FIT(train_state=FIT(key=0, epochs=1, batch_size=BATCH).train_state, epochs=2, batch_size=5).train_state
    np.testing.assert_array_equal(next(seen(after)), [*order(0), *order(1), *order(2)])


@pytest.mark.parametrize(("position", "fits"), [(6, True), (4, True), (0, True), (5, False), (11, False), (-3, False)])
def test_a_traced_position_from_which_batches_lead_nowhere_is_nan(position, fits):
    after, result = epochs()["jit"](FIRST._replace(position=jnp.int32(position)), *DATA)
    assert bool(result.finite) == bool(np.isfinite(result.loss)) == fits
    if fits:
        np.testing.assert_array_equal(next(seen(after)), order(0)[position:])


def test_between_epochs_nothing_is_left_out_of_a_program():
    """A position that is known to be 0 costs nothing: one traced program for every epoch, without a guard."""
    assert FIRST.position is EPOCH_START
    assert FIRST.position == 0
    state, _ = epochs()["jit"](FIRST, *DATA)
    assert (type(state.position), int(state.epoch)) == (type(EPOCH_START), 1)
    text = epochs()["jit"].lower(FIRST, *DATA).as_text()
    guarded = epochs()["jit"].lower(FIRST._replace(position=jnp.int32(0)), *DATA).as_text()
    assert text.count("stablehlo.select") < guarded.count("stablehlo.select")


def test_a_divergence_goes_on_in_its_epoch():
    """Its state is that before the step, in the epoch and at the position; with the cause removed the rest is run."""
    bad = np.where(np.arange(N) == order(1)[4], np.nan, DATA[1][:, 0])[:, None].astype(np.float32)
    with pytest.raises(DivergenceError) as caught:
        fit(NET, LOSS, OPTIMIZER, (X, bad), key=0, epochs=1, batch_size=BATCH, check_data=False, train_state=None)
    fine = FIT(key=0, epochs=1, batch_size=BATCH).train_state
    with pytest.raises(DivergenceError) as caught:
        fit(NET, LOSS, OPTIMIZER, (X, bad), train_state=fine, epochs=3, batch_size=BATCH, check_data=False)
    state = caught.value.train_state
    assert (caught.value.step, caught.value.epoch) == (5, 1)
    assert (int(state.step), int(state.epoch), int(state.position)) == (5, 1, 3)
    assert_same(
        FIT(train_state=state, epochs=1, batch_size=BATCH).train_state, FIT(key=0, epochs=2, batch_size=BATCH)[0]
    )


def test_the_best_epoch_is_counted_by_the_cursor():
    result = FIT(train_state=within(1, 6), epochs=2, batch_size=5, keep=keep_best(), watch="loss")
    assert result.best_epoch == int(result.best.epoch)
    assert result.best_epoch in (2, 3)


# ---------------------------------------------------------------- counters


@pytest.mark.parametrize("name", ["step", "epoch", "position"])
@pytest.mark.parametrize(
    ("value", "error", "complaint"),
    [
        (-1, ValueError, "must be at least 0, got -1"),
        (1.0, TypeError, "must be a whole number"),
        (np.float32(2), TypeError, "must be a whole number"),
        (np.zeros(2, np.int32), TypeError, "must be a whole number"),
        (True, TypeError, "must be a whole number"),
        (None, TypeError, "must be a whole number"),
    ],
)
def test_counters_are_whole_numbers(name, value, error, complaint):
    with pytest.raises(error, match=f"train_state.{name} {complaint}"):
        FIT(train_state=FIRST._replace(**{name: value}), epochs=1, batch_size=BATCH)


def test_a_position_lies_within_the_data():
    for position in (N, N + 5):
        with pytest.raises(ValueError, match=f"position {position} lies outside of an epoch of 10 examples"):
            FIT(train_state=FIRST._replace(position=position), epochs=1, batch_size=BATCH)


def test_steps_do_not_wrap():
    last = 2**31 - 1
    with pytest.raises(ValueError, match="pass the last step there is"):
        FIT(train_state=FIRST._replace(step=last - 3), epochs=1, batch_size=BATCH)
    state, _ = STEP(FIRST._replace(step=jnp.int32(last)), X, DATA[1])
    assert int(state.step) == last
    after = FIT(train_state=FIRST._replace(step=np.int64(last - 4)), epochs=1, batch_size=BATCH).train_state
    assert int(after.step) == last


# ---------------------------------------------------------------- a state on several devices


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_state_on_two_devices_goes_on(impl):
    """Its key is copied by its data: `device_put` hands a typed key on, and donating it twice ends the process."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    alone = FIRST._replace(key=jax.random.key(3, impl=impl))
    state = jax.device_put(alone, everywhere)
    settings = {"epochs": 3, "batch_size": BATCH, "keep": keep_best(), "watch": "loss"}
    ours, expected = FIT(train_state=state, **settings), FIT(train_state=alone, **settings)
    assert len(ours.train_state.key.devices()) == 2
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(alone.key))  # not donated
    for a, b in ((ours.train_state, expected.train_state), (ours.best, expected.best)):
        assert_same(a, b)
        np.testing.assert_array_equal(jax.random.key_data(a.key), jax.random.key_data(b.key))
