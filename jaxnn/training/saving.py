"""Checkpoints of a training: what `fit` saves, when, and how it continues from there.

Letters: N examples, B batch size, S batches of an epoch.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checkpoint.folders import Keep, Latest
from jaxnn.checkpoint.layout import Damaged
from jaxnn.checkpoint.metadata import about, first_difference
from jaxnn.checkpoint.states import read, write
from jaxnn.checks import seen
from jaxnn.descriptions import Json, described
from jaxnn.keys import as_key
from jaxnn.shapes import batch_size as size_of
from jaxnn.spmd.batches import beside, lying_like, rows
from jaxnn.spmd.processes import agreeing, group_of
from jaxnn.spmd.transfers import host
from jaxnn.stopping import Monitors
from jaxnn.training.chunks import Noted, Saved
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import DataSet
from jaxnn.training.monitoring import Monitoring
from jaxnn.training.parts import FromSource
from jaxnn.training.results import Notes
from jaxnn.training.shared import check_shared, newest_of
from jaxnn.types import Array, Key, TrainState, Tree

CLASSES = (Noted, Notes)
SAMPLE = 64  # examples by which data are recognised, and numbers of each array by which a state is
PLAIN = (bool, int, float, str, tuple)  # whose text is the same in each process
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the text of a function: another in each process
START = "digest of the first train_state"  # the setting


class Saving(NamedTuple):
    """Where a training is saved and how often, and what it is: a folder has one training."""

    keep: Keep
    settings: dict[str, Json]
    descriptions: dict[str, Json]  # of the network, loss and optimizer, for whoever reads the file
    batches: int  # S

    def until_next(self, done: int) -> int:
        """The number of batches to the next checkpoint, from a number of batches since the first epoch."""
        return self.batches + 1 if self.keep.every is None else self.keep.every - done % self.keep.every

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is to be saved at the end of an epoch, after this number of batches."""
        return self.keep.every is None or done % self.keep.every == 0

    def save(self, saved: Saved, why: str = "") -> str:
        """Writes a checkpoint, and returns its path."""
        monitors, best = saved.monitors, None
        if monitors is not None and monitors.best is not None:  # in a tree of its own, whose containers are known
            best, monitors = monitors.best.kept, monitors._replace(best=monitors.best._replace(kept=()))
        trees = {"train_state": saved.train_state, "best": best, "monitors": monitors}
        trees |= {"noted": saved.noted, "measures": saved.measures}
        values = {name: getattr(saved, name) for name in ("history", "in_a_row", "seconds", "began")}
        metadata = about(saved.train_state) | self.descriptions | values
        metadata |= {"settings": self.settings, "finished": why}
        trees = {name: tree for name, tree in trees.items() if tree is not None and tree != ()}
        return write(self.keep, trees, metadata, classes=CLASSES)

    def newest(self, data: DataSet, like: TrainState) -> tuple[Latest, Saved | None]:
        """The progress in the newest checkpoint that is whole, beside the data; None without one.

        `like` has the containers of the state, of which another library's or the user's own are not in a file. Raises
        ValueError if the checkpoint is that of another training.
        """
        group = group_of(data)
        found = newest_of(group, self.keep)
        if found.path is None:
            return found, None
        with agreeing(group):
            return found, self._read(found, data, like)

    def _read(self, found: Latest, data: DataSet, like: TrainState) -> Saved:
        assert found.path is not None
        self._compare(found.path, read(found, names=()).metadata)
        first = like
        specs = jax.eval_shape(lambda state: state, like)  # Python numbers in it are arrays after a step
        like = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), specs)  # wherever they lie
        try:
            trees, metadata = read(found, like={"train_state": like, "best": like}, classes=CLASSES)
        except Damaged:
            raise
        except ValueError as error:
            raise ValueError(f"fit: this training cannot continue from its newest checkpoint, {error}") from error
        state, best, monitors, noted = (
            beside(trees.get(name), data) for name in ("train_state", "best", "monitors", "noted")
        )
        state = lying_like(state, first._replace(position=state.position))  # the position of the first is no leaf
        best = None if best is None else lying_like(best, first._replace(position=best.position))
        if best is not None:
            monitors = monitors._replace(best=monitors.best._replace(kept=best))
        history, in_a_row, seconds, began = (metadata[name] for name in ("history", "in_a_row", "seconds", "began"))
        return Saved(state, monitors, noted, trees.get("measures", ()), history, in_a_row, seconds, began)

    def _compare(self, path: str, metadata: dict[str, Json]) -> None:
        saved = metadata.get("settings")
        if not isinstance(saved, dict):
            raise ValueError(
                f"fit: {path} was not saved by fit: give checkpoint= another folder, and "
                "train_state=checkpoint.load(path) to go on from that state"
            )
        difference = first_difference(saved, self.settings)
        if difference is None:
            return
        shards, here = (settings.get("shards", 1) for settings in (saved, self.settings))
        if shards != here:
            raise ValueError(
                f"fit: {self.keep.folder} has a training whose batches are drawn from {shards} shards of the data, "
                f"here from {here}: give shards={shards} to continue it, on any devices"
            )
        if saved.get(START) != self.settings[START]:
            raise ValueError(
                f"fit: {self.keep.folder} has a training that began from another state. To continue it, give "
                "train_state and monitors as at its beginning, or none if none were given; to train from this state, "
                "give checkpoint= another folder"
            )
        raise ValueError(
            f"fit: {self.keep.folder} has another training, {difference}. Give checkpoint= another folder for this "
            "one; with train_state=checkpoint.load(…) as well it goes on from that state"
        )


def keep_of(checkpoint: Any) -> Keep:
    """The argument `checkpoint` of `fit` as a Keep; TypeError for anything else but a folder."""
    if isinstance(checkpoint, Keep):
        return checkpoint
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(
            f"fit: checkpoint must be a folder or a checkpoint.Keep(folder, every=…), got {seen(checkpoint)}"
        )
    return Keep(checkpoint)


def saving(
    checkpoint: Any,
    epoch: Epoch,
    watched: Monitoring,
    data: DataSet,
    validation: DataSet | None,
    *,
    key: Key | int | None,
    start: tuple[TrainState | None, Monitors | None],
) -> Saving:
    """The saving of a training that began from `start`, in a folder that is made if it does not exist.

    Raises TypeError for a folder that is none, and OSError if it cannot be made or written.
    """
    keep = keep_of(checkpoint)
    try:
        os.makedirs(keep.folder, exist_ok=True)
    except OSError as error:
        raise type(error)(
            error.errno, f"fit: checkpoint: the folder {keep.folder} cannot be made: {error.strerror}"
        ) from error
    if not os.access(keep.folder, os.W_OK | os.X_OK):
        raise PermissionError(f"fit: checkpoint: the folder {keep.folder} cannot be written; give another one")
    check_shared(group_of(data), keep.folder)
    step, names = epoch.step, ("batch_size", "shuffle", "measure", "skip_nonfinite")
    settings = {name: _described(getattr(step, name)) for name in ("net", "loss", "optimizer", "penalty")}
    settings |= {name: getattr(epoch, name) for name in names}
    settings |= {} if epoch.shards in (None, 1) else {"shards": epoch.shards}
    settings |= {
        "metrics": [{"name": name, "metric": _described(metric)} for name, metric in epoch.metrics],
        "gradient": _described(step.gradient),
        "augment": _described(step.augment),
        "watch": watched.name,
        "monitors": _described(watched.machine),
        "restore_best": watched.restore,
        "data": recognised(data),
        "validation": None if validation is None else recognised(validation),
        "key": None if key is None else np.asarray(jax.random.key_data(as_key(key))).tolist(),
        START: None if start == (None, None) else _digest_of(start),
    }
    descriptions = about(net=step.net, loss=step.loss, optimizer=step.optimizer)
    descriptions = {name: descriptions[name] for name in ("net", "loss", "optimizer", "undescribed")}
    return Saving(keep, settings, descriptions, -(-size_of("x", data[0]) // epoch.batch_size))


def _described(value: Any) -> Json:
    """A record as plain values; what cannot be described by its text, without addresses."""
    if value is None:
        return None
    try:
        return described(value, "")
    except TypeError:
        named = callable(value) and hasattr(value, "__qualname__")
        return _function(value) if named else ADDRESS.sub("", repr(value))


def _function(value: Any, depth: int = 4) -> str:
    """A function by its name and the numbers and functions in its closure, such as the strength of an augmentation."""
    names = getattr(getattr(value, "__code__", None), "co_freevars", ())
    parts = []
    for name, cell in zip(names, getattr(value, "__closure__", None) or (), strict=True):
        with suppress(ValueError):  # a cell that is empty
            inside = cell.cell_contents
            if inside is None or isinstance(inside, PLAIN):
                parts.append(f"{name}={ADDRESS.sub('', repr(inside))}")
            elif isinstance(inside, FunctionType) and depth:
                parts.append(f"{name}={_function(inside, depth - 1)}")
    return seen(value) + (f" with {', '.join(parts)}" if parts else "")


def recognised(data: DataSet) -> Json:
    """Shapes and dtypes of data, and a digest of some examples."""
    leaves = jax.tree.leaves(tuple(data) if isinstance(data, FromSource) else data)
    digest = hashlib.sha256()
    for some in data.some(_places(leaves[0])) if isinstance(data, FromSource) else map(_some_rows, leaves):
        digest.update(np.ascontiguousarray(some).tobytes())
    shapes = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]
    return {"arrays": shapes, "digest of some examples": digest.hexdigest()[:16]}


def _places(leaf: Array) -> np.ndarray:
    return np.unique(np.linspace(0, leaf.shape[0] - 1, SAMPLE).astype(np.int32))


def _some_rows(leaf: Array) -> np.ndarray:
    at = _places(leaf)
    platforms = [device.platform for device in leaf.devices()]
    is_here = platforms == ["cpu"]
    return np.asarray(leaf)[at] if is_here else host(rows(leaf, jax.device_put(at)))  # a view compiles nothing


def _digest_of(tree: Tree) -> str:
    """A digest of some numbers of each array."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        values = host(jax.random.key_data(leaf) if is_key else leaf).reshape(-1)
        at = np.unique(np.linspace(0, values.size - 1, SAMPLE).astype(int)) if values.size else np.empty(0, int)
        digest.update(f"{values.dtype}{values.size}".encode() + values[at].tobytes())
    return digest.hexdigest()
