"""Data larger than memory: a training on a `Source` is that on arrays, to the bit, and errors name the rows."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples_loader import load_example
from raw_arrays import bits
from test_saving import DATA, NET, OTHERS, X, assert_same, counted, files, train

import jaxnn
from jaxnn import DivergenceError, Interrupted, Sequences, Source, evaluate, fit, losses, predict, replay, sgd
from jaxnn.checkpoint import Keep
from jaxnn.training import parts

N, BATCH = len(X), 4  # of test_saving: two full batches and one of two examples
ROW = 4 * (3 + 1 + 1)  # bytes of (x, target, weight)
PARTS = {"a batch": BATCH * ROW, "two batches": 2 * BATCH * ROW, "everything": 2**20}


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jaxnn: Source")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert threads() == []


def one_by_one(data):
    """A dataset of examples, (x, target, weight)."""
    return [tuple(part[i] for part in data) for i in range(len(data[0]))]


def in_chunks(data, size):
    return [tuple(part[i : i + size] for part in data) for i in range(0, len(data[0]), size)]


def source_of(data, part_bytes, kind="function"):
    if kind == "dataset":
        return Source.of_dataset(one_by_one(data), part_bytes=part_bytes)
    if kind == "chunks":
        return Source.of_chunks(len(data[0]), in_chunks(data, 3), part_bytes=part_bytes)
    if kind == "arrays":
        return Source.of(*data, part_bytes=part_bytes)
    return Source(len(data[0]), lambda i: tuple(part[i] for part in data), part_bytes=part_bytes)


@pytest.fixture(scope="module")
def whole():
    """With arrays: everything that a training may have, a remainder, skipped steps, a plateau, early stopping."""
    return train()


def test_a_training_and_its_continuation_are_those_on_arrays(tmp_path, whole):
    """Saved every 2 of 3 steps of an epoch; what began with arrays goes on with a source."""
    source = source_of(DATA, PARTS["a batch"])
    assert_same(train(data=source, validation=source_of(OTHERS, 2**20)), whole)
    train(Keep(tmp_path, every=2, last=None))
    for name in files(tmp_path)[3:]:
        os.remove(tmp_path / name)
    assert counted(tmp_path)[-1] % 3  # within an epoch
    again = train(Keep(tmp_path, every=2, last=None), data=source)
    assert "it continued from" in again.why
    assert_same(again._replace(why=""), whole._replace(why=""))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["function", "dataset", "arrays", "chunks"])
@pytest.mark.parametrize("size", PARTS)
def test_every_kind_of_source_and_size_of_part(tmp_path, whole, kind, size):
    source = source_of(DATA, PARTS[size], kind)
    shuffle = {"shuffle": kind != "chunks"}
    expected = whole if shuffle["shuffle"] else train(shuffle=False)
    assert_same(train(data=source, **shuffle), expected)
    kept = Keep(tmp_path, every=2, last=None)
    assert_same(train(kept, data=source, **shuffle), expected)
    for left in range(len(files(tmp_path)) - 1, 1, -3):
        for name in files(tmp_path)[left:]:
            os.remove(tmp_path / name)
        assert_same(train(kept, data=source, **shuffle)._replace(why=""), expected._replace(why=""))


@pytest.mark.long
def test_a_state_within_an_epoch_goes_on_with_another_batch_size():
    state = jaxnn.init_train_state(NET, sgd(0.1), 0, (3,))._replace(position=3)
    plain = {"train_state": state, "epochs": 2, "stopping": None, "plateau": None, "optimizer": sgd(0.1)}
    for batch in (2, 5):
        assert_same(train(data=source_of(DATA, 50), batch_size=batch, **plain), train(batch_size=batch, **plain))


@pytest.mark.long
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_on_a_mesh_every_device_has_a_part_of_each_batch(kind):
    mesh = jax.make_mesh((2,), ("batch",), (kind,), devices=jax.devices()[:2])
    expected = plain(SOUND)
    with jax.set_mesh(mesh):
        result = plain(source_of(SOUND, 80), validation=source_of(SOUND, 80))
        output = predict(jaxnn.dense(1), result.train_state, source_of(SOUND, 40), batch_size=4)
    np.testing.assert_allclose(result.train_state.params["w"], expected.train_state.params["w"], rtol=1e-5)
    np.testing.assert_allclose(output, predict(jaxnn.dense(1), expected.train_state, X), rtol=1e-5)


@pytest.mark.long
def test_sequences_and_an_augmentation():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(7, 4, 2)).astype(np.float32)
    mask = np.arange(4) < np.array([1, 2, 3, 4, 4, 2, 1])[:, None]
    target = draw.normal(size=(7, 3)).astype(np.float32)
    noisy = lambda key, x: x._replace(values=x.values + jax.random.normal(key, x.values.shape))
    settings = {"key": 0, "epochs": 2, "batch_size": 3, "augment": noisy}
    net = jaxnn.gru(3, returns="last")
    ours, theirs = (
        fit(net, losses.mse, sgd(0.1), data, **settings)
        for data in (Source.of(Sequences(x, mask), target, part_bytes=200), (Sequences(x, mask), target))
    )
    assert bits(ours.train_state) == bits(theirs.train_state)


# ---------------------------------------------------------------- evaluation, replays, divergences


def plain(data, **settings):
    """Few steps of a linear network."""
    return fit(jaxnn.dense(1), losses.mse, sgd(0.1), data, **({"key": 0, "epochs": 2, "batch_size": BATCH} | settings))


CLEAN = np.random.default_rng(1).normal(size=(N, 1)).astype(np.float32)
SOUND = (X, CLEAN)  # without a NaN


def test_memory_is_used_again_when_its_part_is_over():
    draw = np.random.default_rng(2)
    data = draw.normal(size=(4000, 3)).astype(np.float32), draw.normal(size=(4000, 1)).astype(np.float32)
    ours = plain(Source.of(*data, part_bytes=50 * BATCH * 16))  # twenty parts
    assert bits(ours.train_state) == bits(plain(data).train_state)


def test_evaluation_and_prediction():
    result = plain(SOUND)
    source = source_of(SOUND, 40)
    told = [evaluate(jaxnn.dense(1), losses.mse, result.train_state, d, batch_size=4) for d in (source, SOUND)]
    assert told[0]["loss"] == pytest.approx(told[1]["loss"], rel=1e-6)  # the mean of sums is another program
    outputs = [predict(jaxnn.dense(1), result.train_state, x, batch_size=4) for x in (source, X, Source.of(X))]
    assert bits(outputs[0]) == bits(outputs[1]) == bits(outputs[2])


def test_a_memory_map_is_read_in_parts(tmp_path, monkeypatch):
    """Given as it is; anything else with it may be in memory."""
    np.save(tmp_path / "x.npy", X)
    taken = []
    monkeypatch.setattr(parts.Part, "prepared", lambda self, f=parts.Part.prepared: (taken.append(self), f(self))[1])
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    jax.clear_caches()
    assert bits(plain((x, jnp.asarray(CLEAN))).train_state) == bits(plain(SOUND).train_state)
    assert taken
    assert bits(predict(NET, train(epochs=1).train_state, x)) == bits(predict(NET, train(epochs=1).train_state, X))


def test_a_step_again(tmp_path):
    made = jaxnn.run(jaxnn.train_step(jaxnn.dense(1), losses.mse, sgd(0.1)), epochs=2, batch_size=BATCH)
    start = jaxnn.init_train_state(jaxnn.dense(1), sgd(0.1), 0, (3,))
    for step in (1, 5):  # one of them is of a remainder
        ours, theirs = (replay(start, step, of=made, data=data) for data in (source_of(SOUND, 40), SOUND))
        assert bits((ours.train_state, ours.batch)) == bits((theirs.train_state, theirs.batch))


def test_a_divergence_names_its_step():
    huge = X.copy()
    huge[7] = 1e30
    found = []
    for data in ((huge, CLEAN), source_of((huge, CLEAN), 40)):
        with pytest.raises(DivergenceError) as caught:
            plain(data)
        error = caught.value
        found.append((str(error), bits(error.train_state), bits(error.moment.batch)))
    assert found[0] == found[1]


def test_chunks_in_another_order_each_epoch():
    """They are made by the number of the epoch; an epoch that is continued begins where the training was."""
    orders = [np.random.default_rng(epoch).permutation(N) for epoch in range(3)]
    begun = []

    def chunks(epoch, start):
        begun.append((epoch, start))
        at = orders[epoch][start:]
        yield from in_chunks((X[at], CLEAN[at]), 3)

    for make in (chunks, lambda epoch: chunks(epoch, 0)):
        source = Source.of_chunks(N, make, part_bytes=64)
        result = plain(source, shuffle=False, epochs=3)
        expected = None
        for at in orders:
            expected = plain(
                (X[at], CLEAN[at]),
                shuffle=False,
                epochs=1,
                **({"train_state": expected.train_state} if expected else {}),
            )
        assert bits(result.train_state.params) == bits(expected.train_state.params)
    state = plain(SOUND, shuffle=False, epochs=1).train_state._replace(position=4)
    del begun[:]
    plain(Source.of_chunks(N, chunks), shuffle=False, epochs=1, train_state=state)
    assert begun[-1] == (1, 4)


# ---------------------------------------------------------------- what may be wrong


def changed(value, at, of=X):
    other = of.copy()
    other[at] = value
    return other


def rows(i):
    return X[i], CLEAN[i]


def later(change):
    """Rows that are others from the third time on."""
    times = []

    def read(i):
        times.append(i)
        return change(i) if len(times) > 2 else rows(i)

    return read


LATER = {
    "fewer rows": (lambda i: (X[i][1:], CLEAN[i]), "must return 4 rows in each array, got 3 in x"),
    "another shape": (lambda i: (X[i, :2], CLEAN[i]), r"returned x with examples of shape \(2,\), .* had \(3,\)"),
    "another dtype": (lambda i: (X[i].astype(np.float64), CLEAN[i]), "returned x of float64, .* were float32"),
    "another structure": (lambda i: (X[i], CLEAN[i], CLEAN[i, 0]), "returned .*, where the first ones were"),
}


@pytest.mark.parametrize("what", LATER)
def test_rows_that_change_are_named(what):
    change, said = LATER[what]
    with pytest.raises(ValueError, match=rf"rows, asked for \d+, \d+, \d+, \d+, {said}"):
        plain(Source(N, later(change), part_bytes=64))


VALUES = {
    "a NaN": ((changed(np.nan, (7, 1)), CLEAN), r"data, row 7: x: 1 of 3 values are not finite, .* Clean the data"),
    "an infinite target": ((X, changed(np.inf, 5, CLEAN)), "data, row 5: target: 1 of 1 values are not finite"),
    "a negative weight": ((X, CLEAN, changed(-1.0, 6, np.ones(N, np.float32))), "row 6: weights: 1 of 1 .* negative"),
    "no weight": ((X, CLEAN, np.zeros(N, np.float32)), "weights are all zero"),
    "huge weights": ((X, CLEAN, np.full(N, 1e30, np.float32)), "must be below 2⁶³"),
}


@pytest.mark.parametrize("what", VALUES)
def test_values_are_looked_at_where_they_are_read(what):
    data, said = VALUES[what]
    with pytest.raises(ValueError, match=said):
        plain(source_of(data, 64))


def test_a_label_out_of_range_is_named():
    labels = np.zeros(N, np.int32)
    labels[8] = 3
    with pytest.raises(ValueError, match=r"data, row 8: .*"):
        fit(jaxnn.dense(3), losses.softmax_cross_entropy, sgd(0.1), Source.of(X, labels), key=0, epochs=1, batch_size=4)
    params = jaxnn.dense(3).init(0, (3,))
    with pytest.raises(ValueError, match=r"data, row 8: .*"):
        evaluate(jaxnn.dense(3), losses.softmax_cross_entropy, params, Source.of(X, labels), batch_size=2)


SHORT = in_chunks(SOUND, 3)
LIES = {
    "longer than it is": (lambda: Source(N + 1, rows), IndexError, "out of bounds"),
    "chunks that end": (
        lambda: Source.of_chunks(N + 2, SHORT),
        ValueError,
        "epoch 0 ended after 10 examples in 4 chun",
    ),
    "chunks that go on": (lambda: Source.of_chunks(N - 2, SHORT), ValueError, "chunk 2 .* goes on after 8 examples"),
    "a chunk of another shape": (
        lambda: Source.of_chunks(N, [*SHORT[:2], (X[6:, :1], CLEAN[6:])]),
        ValueError,
        "chunk 2 of epoch 0 returned x",
    ),
    "no chunks": (lambda: Source.of_chunks(N, []), ValueError, "epoch 0 has no chunks"),
    "x alone": (lambda: Source(N, lambda i: X[i]), TypeError, "got x alone"),
    "lists": (lambda: Source(N, lambda i: ([[0.0]] * len(i), CLEAN[i])), TypeError, "use np.asarray"),
    "unequal parts": (
        lambda: Source(N, lambda i: (X[i], CLEAN[i][:1])),
        ValueError,
        "must return 2 rows .* got 1 in t",
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_a_source_that_lies(what):
    make, error, said = LIES[what]
    with pytest.raises(error, match=said) as caught:
        plain(make(), shuffle=False)
    if error is IndexError:
        assert "The Source was asked for rows 0, 10, the first and the last of length=11." in caught.value.__notes__


def generator():
    yield rows(np.arange(3))


STEP = jaxnn.train_step(jaxnn.dense(1), losses.mse, sgd(0.1))
RUN = jaxnn.run(STEP, epochs=1, batch_size=4)
STATE = jaxnn.init_train_state(jaxnn.dense(1), sgd(0.1), 0, (3,))
SOUND_SOURCE = Source(N, rows)
REFUSED = {
    "no length": (lambda: Source(0, rows), ValueError, "length must be at least 1"),
    "an array for rows": (lambda: Source(N, X), TypeError, r"make Source.of\(x, target\)"),
    "a generator": (lambda: Source.of_chunks(N, generator()), TypeError, "ends after one epoch .* lambda epoch"),
    "a generator as data": (lambda: plain(generator()), TypeError, r"Source.of_chunks\(length, chunks\)"),
    "no chunks at all": (lambda: Source.of_chunks(N, 3), TypeError, "must be an iterable"),
    "an iterable as a dataset": (lambda: Source.of_dataset(generator()), TypeError, "must have len and"),
    "unequal arrays": (lambda: Source.of(X, CLEAN[1:]), ValueError, "the same number ≥ 1"),
    "shuffled chunks": (lambda: plain(Source.of_chunks(N, SHORT)), ValueError, "give shuffle=False"),
    "shards": (lambda: plain(SOUND_SOURCE, shards=2), ValueError, "a Source is not in shards"),
    "a batch too large": (lambda: plain(SOUND_SOURCE, batch_size=11), ValueError, "batch_size must be at most 10"),
    "run": (lambda: RUN(STATE, SOUND_SOURCE), TypeError, "run: data is a Source, .* train by fit"),
    "run under jit": (lambda: jax.jit(RUN)(STATE, SOUND_SOURCE), TypeError, "is a Source"),
    "a step of one's own": (
        lambda: jaxnn.run(lambda state, batch: (state, {}), epochs=1, batch_size=4)(STATE, SOUND_SOURCE),
        TypeError,
        "is a Source",
    ),
    "train_epoch": (
        lambda: jaxnn.train_epoch(jaxnn.dense(1), losses.mse, sgd(0.1), batch_size=4)(STATE, SOUND_SOURCE, CLEAN),
        TypeError,
        "train_epoch: data is a Source",
    ),
    "sweep": (lambda: jaxnn.sweep(lambda: RUN, {}, seeds=2)(SOUND_SOURCE), TypeError, "is a Source"),
    "metagradient": (
        lambda: jaxnn.metagradient(lambda rate: RUN)(STATE, SOUND_SOURCE, SOUND, rate=0.1),
        TypeError,
        "is a Source",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    make, error, said = REFUSED[what]
    with pytest.raises(error, match=said):
        make()


def test_an_error_while_reading_has_its_traceback():
    """A disk that gives out in the second epoch: what was trained is lost no more than in any error."""

    def failing(i):
        raise OSError(5, "Input/output error", "data.bin")

    with pytest.raises(OSError, match=r"data\.bin") as caught:
        plain(Source(N, later(failing), part_bytes=64))
    assert "failing" in [frame.name for frame in caught.traceback]
    assert any(note.startswith("The Source was asked for rows") for note in caught.value.__notes__)


def test_ctrl_c_ends_the_reading(monkeypatch):
    """Pressed within the second epoch: the first is not lost."""
    source, advance = source_of(SOUND, 64), parts.FromSource.look_ahead
    times = []

    def pressed(self):
        times.append(len(threads()))
        if len(times) == 3:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(parts.FromSource, "look_ahead", pressed)
    with pytest.raises(Interrupted) as caught:
        plain(source, epochs=5)
    assert len(times) == 3
    monkeypatch.undo()
    assert bits(caught.value.fit.train_state) == bits(plain(SOUND, epochs=1).train_state)


@pytest.mark.long
def test_grain(tmp_path):
    """Its datasets and loaders, as README shows them."""
    grain = pytest.importorskip("grain", reason="grain is not installed")
    dataset = grain.MapDataset.source(one_by_one(SOUND))
    assert bits(plain(Source.of_dataset(dataset)).train_state) == bits(plain(SOUND).train_state)

    def loader(epoch):
        sampler = grain.samplers.IndexSampler(N, shuffle=True, seed=epoch, num_epochs=1)
        operations = [grain.transforms.Batch(3)]
        return grain.DataLoader(data_source=one_by_one(SOUND), sampler=sampler, operations=operations)

    result = plain(Source.of_chunks(N, loader), shuffle=False)
    again = plain(Source.of_chunks(N, loader), shuffle=False)
    assert bits(result.train_state) == bits(again.train_state)
    assert np.isfinite(result.history["loss"]).all()


@pytest.mark.long
def test_the_example(capsys, tmp_path):
    result = load_example("memory_map").main(gib=0.02, out=tmp_path)
    assert result.history["validation_accuracy"][-1] > 0.9
    assert "the file has 20 MiB" in capsys.readouterr().out
