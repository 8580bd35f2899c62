"""Checkpoints of `fit`: when they are written, and that a training continues from each of them to the bit."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from raw_arrays import raw

from jaxnn import (
    DivergenceError,
    Interrupted,
    Layer,
    Loss,
    Optimizer,
    augment,
    batch_norm,
    checkpoint,
    dense,
    dropout,
    fit,
    init_train_state,
    losses,
    penalties,
    relu,
    serial,
    sgd,
)
from jaxnn.checkpoint import Keep
from jaxnn.stopping import early_stopping, keep_best, reduce_on_plateau
from jaxnn.training import chunks, driver, saving

N, BATCH, STEPS, EPOCHS = 10, 4, 3, 5  # two full batches and one of two examples; the fifth epoch is the last
DRAW = np.random.default_rng(0)
X, TARGET = DRAW.normal(size=(N, 3)).astype(np.float32), DRAW.normal(size=(N, 1)).astype(np.float32)
WEIGHTS = np.arange(N, dtype=np.float32) % 3 + 0.5
TARGET[4] = np.nan  # in one batch of every epoch: that step is skipped
DATA, OTHERS = (X, TARGET, WEIGHTS), (X[:3], X[:3, :1])
NET = serial(dense(4), batch_norm(), relu, dropout(0.3), dense(1))


def distance(y, t):
    return jnp.abs(y - t)[:, 0]


SETTINGS: dict[str, Any] = {
    "epochs": 8,
    "batch_size": BATCH,
    "key": 0,
    "validation": OTHERS,
    "metrics": [distance],
    "penalty": penalties.l2(1e-2),
    "check_data": False,
    "skip_nonfinite": 2,
    "measure": 1,
    "stopping": early_stopping(4, min_improvement=1e9),  # no epoch but the first counts
    "plateau": reduce_on_plateau(0.5, patience=2, min_improvement=1e9),
}
RATE = sgd(0.05, momentum=0.5)


def train(folder=None, **changes):
    """A training with everything in it."""
    settings = SETTINGS | {"checkpoint": folder} | changes
    net, loss, rate, data = (
        settings.pop(name, default)
        for name, default in (("net", NET), ("loss", losses.mse), ("optimizer", RATE), ("data", DATA))
    )
    return fit(net, loss, rate, data, **settings)


SMALL = {
    "net": dense(1),
    "data": (X, X[:, :1]),
    "epochs": 2,
    **dict.fromkeys(("validation", "penalty", "stopping", "plateau")),
    **{"metrics": [], "skip_nonfinite": 0, "measure": 0},
}


def small(folder=None, **changes):
    """A training with nothing in it: six steps."""
    return train(folder, **(SMALL | changes))


def bits(result):
    """Everything in a result but the times and the words."""
    history = {name: np.asarray(values) for name, values in result.history.items() if name != "seconds"}
    points = [tuple(jax.tree.leaves(point._asdict())) for point in result.diagnostics]
    whole = result._replace(history=history, why="", diagnostics=points, stopped=np.asarray(result.stopped))
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole._asdict()):
        if hasattr(leaf, "dtype") or isinstance(leaf, (int, float)):
            host = raw(leaf)
            arrays[jax.tree_util.keystr(path)] = host.dtype, host.shape, host.tobytes()
    return arrays


def assert_same(ours, theirs):
    ours, theirs = bits(ours), bits(theirs)
    assert [name for name in ours | theirs if ours.get(name) != theirs.get(name)] == []


def files(folder):
    return sorted(name for name in os.listdir(folder))


def counted(folder):
    """The number of steps of each checkpoint."""
    return [int(name[5:15]) for name in files(folder)]


@pytest.fixture(scope="module")
def whole():
    """The result without checkpoints."""
    result = train()
    assert result.stopped
    assert (len(result.history["loss"]), result.best_epoch) == (EPOCHS, 3)
    assert set(result.history["skipped"]) == {1.0}
    assert result.history["update_scale"] == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert len(result.diagnostics) >= 2
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole):
    """A training that was saved after every step."""
    place = tmp_path_factory.mktemp("every") / "made"
    assert_same(train(Keep(place, every=1, last=None)), whole)
    return place


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("every", [3, 5, 40, None])
def test_saving_changes_no_bit(tmp_path, whole, every):
    result = train(Keep(tmp_path, every=every, last=None))
    assert_same(result, whole)
    assert result.why == whole.why
    batches = {3: [3, 6, 9, 12, 15], 5: [5, 10, 15], 40: [15], None: [3, 6, 9, 12, 15]}[every]
    # one batch of every epoch is skipped: it counts as one, and changes no step
    assert len(files(tmp_path)) == len(batches)
    positions = [checkpoint.contents(tmp_path / name).position for name in files(tmp_path)]
    assert positions == [after % STEPS * BATCH for after in batches]


def test_a_folder_is_once_an_epoch_and_three_are_kept(tmp_path):
    small(str(tmp_path), epochs=5)
    assert counted(tmp_path) == [9, 12, 15]
    small(tmp_path / "in" / "it", epochs=5, checkpoint=Keep(tmp_path / "in" / "it", every=2, last=2))
    assert counted(tmp_path / "in" / "it") == [14, 15]  # and the end of the training


def test_a_checkpoint_can_be_read_by_everyone(folder):
    found = checkpoint.contents(checkpoint.latest(folder))
    assert (found.step, found.epoch, found.position) == (10, 5, 0)
    assert found.optimizer["kind"] == "sgd"
    assert found.metadata["finished"].startswith("validation_loss had not improved for 4 epochs")
    assert len(found.history["loss"]) == EPOCHS
    assert int(checkpoint.load(checkpoint.latest(folder)).step) == 10


def test_nothing_more_is_compiled(tmp_path, whole):
    """Nor anything at all to continue, or for another training of the same arrays."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    jax.jit(lambda x: x + 1.25)(np.float32(0))
    assert compiled, "compilations are counted"
    compiled.clear()
    train(Keep(tmp_path, every=5, last=None))
    os.unlink(tmp_path / files(tmp_path)[-1])
    assert "it continued from" in train(Keep(tmp_path, every=5)).why
    assert compiled == []


# ---------------------------------------------------------------- continuing


def test_every_checkpoint_is_continued_to_the_bit(tmp_path, whole, folder):
    """Those within an epoch too, with an update scale that is not 1 and a step that was skipped."""
    names = files(folder)
    assert counted(folder) == list(range(11))  # a skipped step has the name of the one before
    for name in names:
        place = tmp_path / name
        place.mkdir()
        shutil.copy(folder / name, place)
        result = train(Keep(place, every=4, last=None))
        assert_same(result, whole)
        over = name == names[-1]
        said = "nothing was left to do after" if over else "it continued from"
        assert result.why == f"{whole.why}; {said} {place / name}"


def test_every_checkpoint_of_a_training_that_began_within_an_epoch(tmp_path):
    start = small(epochs=1).train_state
    start = start._replace(position=np.int32(4), epoch=np.int32(3))
    expected = small(train_state=start, key=None, epochs=3)
    kept = Keep(tmp_path / "all", every=2, last=None)
    assert_same(small(kept, train_state=start, key=None, epochs=3), expected)
    assert counted(kept.folder) == [5, 7, 9, 11]  # batches count from the first epoch
    for name in files(kept.folder):
        place = tmp_path / name
        place.mkdir()
        shutil.copy(Path(kept.folder) / name, place)
        result = small(place, train_state=start, key=None, epochs=3)
        assert_same(result, expected)
        assert result.why.startswith("the rest of epoch 4, from example 4 on, and 2 further epochs were run; ")
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(start) if isinstance(leaf, jax.Array))


def test_epochs_count_from_the_beginning(tmp_path, whole):
    first = train(Keep(tmp_path, every=4), epochs=2)
    assert first.why.startswith("all 2 epochs were run")
    assert_same(train(Keep(tmp_path, every=4), epochs=9), whole)
    with pytest.raises(ValueError, match=r"has 5 epochs, got 4: give epochs=5 or more, or checkpoint= another folder"):
        train(tmp_path, epochs=4)


def test_fewer_epochs_than_have_begun_are_refused(tmp_path):
    small(Keep(tmp_path, every=4, last=None))
    os.unlink(tmp_path / files(tmp_path)[-1])
    with pytest.raises(ValueError, match="has 1 epochs and a part of another, got 1: give epochs=2 or more"):
        small(tmp_path, epochs=1)


@pytest.mark.parametrize("early", [True, False])
def test_a_finished_training_returns_at_once(tmp_path, monkeypatch, whole, early):
    run = train if early else small
    expected = run(tmp_path)
    for home, name in ((chunks, "run_chunk"), (chunks, "replay"), (driver, "copied"), (driver, "progress_bar")):
        monkeypatch.setattr(home, name, lambda *_, **__: pytest.fail("it computed"))
    before = os.stat(tmp_path / files(tmp_path)[-1]).st_mtime_ns
    again = run(tmp_path)
    assert_same(again, expected)
    assert again.history == expected.history
    assert again.why == f"{expected.why}; nothing was left to do after {tmp_path / files(tmp_path)[-1]}"
    assert os.stat(tmp_path / files(tmp_path)[-1]).st_mtime_ns == before


def test_times_are_summed(tmp_path, folder):
    """An epoch that had begun has taken what it took before, too."""
    name = next(n for n in files(folder) if checkpoint.contents(folder / n).position)
    shutil.copy(folder / name, tmp_path)
    seconds = checkpoint.contents(folder / name).metadata["seconds"]
    assert seconds > 0
    row = checkpoint.contents(folder / name).epoch
    assert train(tmp_path).history["seconds"][row] > seconds


def test_the_bar_begins_where_the_training_does(tmp_path, capsys):
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    small(tmp_path)
    small(tmp_path, epochs=4, progress=True)
    assert "2/4" in capsys.readouterr().err.replace("\r", "")


class Mine(NamedTuple):
    """A state that no file knows."""

    count: Any


OWN = Optimizer(
    lambda params: (Mine(jnp.zeros((), jnp.int32)), {"sgd": RATE.init(params)}),
    lambda grads, state, params: (
        jax.tree.map(lambda g: -0.01 * g, grads),
        (Mine(state[0].count + 1), state[1]),
    ),
)


def test_an_optimizer_of_ones_own_is_continued(tmp_path):
    """With containers that only the caller knows, in the best state too."""
    settings = {"optimizer": OWN, "keep": keep_best()}
    expected = small(**settings)
    small(Keep(tmp_path, every=2), epochs=1, **settings)
    result = small(tmp_path, **settings)
    assert_same(result, expected)
    assert isinstance(result.train_state.opt_state[0], Mine)
    assert isinstance(result.best.opt_state[0], Mine)
    assert checkpoint.contents(checkpoint.latest(tmp_path)).optimizer is None


def test_a_start_with_python_numbers_in_it_is_continued(tmp_path):
    """They are arrays after a step."""
    halving = Optimizer(
        lambda params: {"rate": 0.1, "count": 0},
        lambda grads, state, params: (
            jax.tree.map(lambda g: -state["rate"] * g, grads),
            {"rate": state["rate"] * 0.5, "count": state["count"] + 1},
        ),
    )
    start = init_train_state(SMALL["net"], halving, 0, (3,))
    settings = {"optimizer": halving, "train_state": start, "key": None}
    small(Keep(tmp_path, every=2), epochs=1, **settings)
    assert_same(small(tmp_path, **settings), small(**settings))


def test_batches_without_weight_can_be_saved_behind(tmp_path):
    """A mean over no weight is NaN until the epoch has some."""
    data = (X, X[:, :1], np.repeat(np.float32([0, 1, 1]), [4, 4, 2]))
    expected = small(data=data, shuffle=False)
    assert_same(small(Keep(tmp_path, every=1, last=None), data=data, shuffle=False), expected)
    for name in files(tmp_path)[1:]:
        os.unlink(tmp_path / name)
    assert_same(small(tmp_path, data=data, shuffle=False), expected)


# ---------------------------------------------------------------- interruptions and faults


@pytest.mark.parametrize("place", ["a step", "a save", "the writing of a save"])
def test_ctrl_c_and_on(tmp_path, monkeypatch, whole, place):
    home, name = {
        "a step": (chunks, "run_chunk"),
        "a save": (saving, "write"),
        "the writing of a save": (checkpoint.files.os, "fsync"),
    }[place]
    calls, real = [], getattr(home, name)

    def interrupted(*args, **settings):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(home, name, interrupted)
    with pytest.raises(
        Interrupted, match="or call fit as before, which continues from the newest checkpoint"
    ) as caught:
        train(Keep(tmp_path, every=1))
    monkeypatch.undo()
    assert str(caught.value).endswith(f"in {tmp_path}")
    assert pickle.loads(pickle.dumps(Interrupted(1 and caught.value.fit._replace(train_state=0), "f"))).folder == "f"
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]
    epochs = len(caught.value.fit.history.get("loss", ()))
    assert int(caught.value.fit.train_state.epoch) == epochs
    result = train(Keep(tmp_path, every=1))
    assert "it continued from" in result.why
    assert_same(result, whole)


def test_a_full_disk(tmp_path, monkeypatch):
    """The error says what was not saved; what was saved before is whole."""
    full = OSError(errno.ENOSPC, "No space left on device")
    small(Keep(tmp_path, every=2), epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.files.os, "fsync", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match=r"No space left on device: the file was not saved: .*step_0000000004"):
            small(Keep(tmp_path, every=2))
    assert counted(tmp_path) == [2, 3]
    assert_same(small(Keep(tmp_path, every=2)), small())


def diverging(skip, bad, **changes):
    """A training whose loss is NaN for those examples, in the order of the data, in every epoch but the first."""
    target = X[:, :1].copy()
    target[list(bad)] = np.nan
    changes = {"batch_size": 2, "shuffle": False, "skip_nonfinite": skip, "data": (X, target), "epochs": 3} | changes
    return small(**changes)


CLIMBING = sgd(lambda t: jnp.where(t == 6, jnp.inf, 1e-3))


@pytest.mark.parametrize(
    ("skip", "bad", "rate"),
    [(0, (), CLIMBING), (2, (3,), CLIMBING), (2, (3, 4), RATE), (3, (2, 4, 6), RATE), (3, (0, 2, 8), RATE)],
)
def test_a_divergence_is_named_as_without_checkpoints(tmp_path, skip, bad, rate):
    """Before and after continuing, though the row of steps began before the checkpoint; nothing bad is saved."""
    told = []
    for kept in (None, Keep(tmp_path, every=1, last=None), Keep(tmp_path, every=3)):
        with pytest.raises(DivergenceError) as caught:
            diverging(skip, bad, checkpoint=kept, optimizer=rate)
        error = caught.value
        told.append((str(error), error.step, error.epoch, error.leaf, error.in_a_row, error.rate))
        told[-1] += (int(error.train_state.step), int(error.train_state.position))
    assert told[0] == told[1]
    assert told[0] == told[2]
    assert files(tmp_path)
    for name in files(tmp_path):
        state = checkpoint.load(tmp_path / name)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.state)))


def test_a_damaged_newest_file_is_passed_over(tmp_path, whole, folder):
    for name in files(folder):
        shutil.copy(folder / name, tmp_path)
    for name, keep in ((files(folder)[-1], slice(0, -9)), (files(folder)[-2], slice(0, 0))):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[keep])
    result = train(tmp_path)
    assert_same(result, whole)
    assert (
        f"it continued from {tmp_path / files(folder)[-3]}\n  passed over {tmp_path / files(folder)[-1]}" in result.why
    )
    assert result.why.count("passed over") == 2


def test_where_no_file_is_whole_training_begins_anew(tmp_path):
    (tmp_path / "step_0000000099.safetensors").write_bytes(b"of another program")
    result = small(tmp_path)
    assert_same(result, small())
    assert "; it began anew, as there was no whole checkpoint\n  passed over" in result.why
    assert "it continued from" in small(tmp_path, epochs=3).why


# ---------------------------------------------------------------- what is refused


REFUSED = {
    "another network": ({"net": dense(1, bias=False)}, r"another training, net\.bias: True in the file, False here"),
    "another rate": ({"optimizer": sgd(0.2)}, r"optimizer\.learning_rate: 0\.05 in the file, 0\.2 here"),
    "a rate as an array": ({"optimizer": sgd(jnp.float32(0.05), momentum=0.5)}, r"learning_rate: 0\.05 in the file"),
    "another batch size": ({"batch_size": 5}, "batch_size: 4 in the file, 5 here"),
    "other numbers": ({"data": (X + 1, X[:, :1])}, "data.digest of some examples: "),
    "fewer data": ({"data": (X[:9], X[:9, :1])}, r"'float32\[10, 3\]' in the file, 'float32\[9, 3\]' here"),
    "weights": ({"data": (X, X[:, :1], WEIGHTS)}, "data.arrays: 2 in the file, 3 here"),
    "a validation set": ({"validation": OTHERS}, "validation: None in the file, a dict here"),
    "another key": ({"key": 1}, r"key\[1\]: 0 in the file, 1 here"),
    "metrics": ({"metrics": [distance]}, "metrics: 0 in the file, 1 here"),
    "a penalty": ({"penalty": penalties.l2(1.0)}, r"penalty: None in the file, penalties\.l2 here"),
    "a machine": ({"keep": keep_best()}, "watch: None in the file, 'loss' here"),
    "the order": ({"shuffle": False}, "shuffle: True in the file, False here"),
}


@pytest.fixture(scope="module")
def of_small(tmp_path_factory):
    place = tmp_path_factory.mktemp("small")
    small(place)
    return place


@pytest.mark.parametrize("what", REFUSED)
def test_another_training_is_refused(of_small, monkeypatch, what):
    """Before anything compiles; the advice is the same."""
    monkeypatch.setattr(driver, "drive", lambda *_, **__: pytest.fail("it began"))
    changes, said = REFUSED[what]
    with pytest.raises(ValueError, match=said) as caught:
        small(of_small, **changes)
    assert str(caught.value).startswith(f"fit: {of_small} has another training, ")
    assert "Give checkpoint= another folder for this one" in str(caught.value)


def test_another_start_is_refused(of_small):
    state = small().train_state
    with pytest.raises(
        ValueError, match=r"began from another state\. To continue it, give train_state and monitors as"
    ):
        small(of_small, train_state=state)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (3, TypeError, r"fit: checkpoint must be a folder or a checkpoint\.Keep\(folder, every=…\), got 3"),
        (Keep, TypeError, "got the class Keep"),
        (True, TypeError, "got True"),
        (__file__, ValueError, "test_saving.py is a file: give the path of a folder"),
        (f"{__file__}/a", OSError, "the folder .*test_saving.py/a cannot be made"),
    ],
)
def test_what_is_no_folder(given, error, said):
    with pytest.raises(error, match=said):
        small(given)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Found before anything is computed."""
    monkeypatch.setattr(saving.os, "access", lambda *_: False)
    monkeypatch.setattr(driver, "drive", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(PermissionError, match=f"the folder {tmp_path} cannot be written; give another one"):
        small(tmp_path)


def test_a_checkpoint_that_fit_did_not_save(tmp_path):
    state = small().train_state
    checkpoint.save(Keep(tmp_path), state)
    with pytest.raises(ValueError, match=r"was not saved by fit: give checkpoint= another folder, and train_state="):
        small(tmp_path)


def own_layer(**params):
    """Layers of one's own are described by their text alone."""
    zeros = {name: jnp.zeros(shape) for name, shape in ({"w": (3, 1)} | params).items()}
    return Layer("own", lambda *_, **__: (zeros, ()), lambda p, s, x, **_: (x @ p["w"], s, ()))


def test_a_network_of_ones_own_with_other_parameters(tmp_path):
    small(tmp_path, net=own_layer())
    assert "nothing was left to do" in small(tmp_path, net=own_layer()).why
    with pytest.raises(
        ValueError, match=r"cannot continue from its newest checkpoint(.|\n)*params/b: float32\[1\] here"
    ):
        small(tmp_path, net=own_layer(b=(1,)))


class Called:
    """A function whose text is its address."""

    def __call__(self, y, t):
        return jnp.square(y - t)[:, 0]


@pytest.mark.parametrize("value", [Called(), Loss("own", lambda y, t: (y - t)[:, 0]), jnp.square])
def test_descriptions_have_no_addresses(value):
    assert "0x" not in str(saving._described(value))
    assert saving._described(value) == saving._described(
        pickle.loads(pickle.dumps(value)) if value is Called else value
    )


def test_functions_differ_by_the_numbers_in_them(tmp_path):
    """Such as the strength of an augmentation."""
    described = [saving._described(made) for made in (augment.shift(1), augment.shift(2), augment.rotate(1))]
    assert len(set(described)) == 3
    assert described[0] == saving._described(augment.shift(1))
    assert not any("0x" in text for text in described)
    small(tmp_path, augment=augment.noise(0.1))
    with pytest.raises(ValueError, match=r"another training, .*std=0.1.*std=0.2"):
        small(tmp_path, augment=augment.noise(0.2))


# ---------------------------------------------------------------- several devices, several processes


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
@pytest.mark.parametrize("kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.long)])
def test_data_on_two_devices(tmp_path, kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    data = tuple(jax.device_put(part, NamedSharding(mesh, P("data"))) for part in (X, X[:, :1]))
    start = {"data": data, "key": None, "train_state": small(data=data, epochs=1).train_state}
    expected = small(**start)
    kept = Keep(tmp_path / "all", every=2, last=None)
    assert_same(small(kept, **start), expected)
    for name in files(kept.folder)[::2]:
        place = tmp_path / name
        place.mkdir()
        shutil.copy(Path(kept.folder) / name, place)
        result = small(place, **start)
        assert_same(result, expected)
        assert result.train_state.params["w"].sharding.device_set == data[0].sharding.device_set


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_ten_kills():
    """kill −9 at random moments: nothing is lost, and the end is that of a training that was never killed."""
    root = Path(__file__).parents[1]
    command = [sys.executable, root / "benchmarks" / "kills.py", "--kills", "10"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stdout + done.stderr
