"""Checkpoints of a training: what `fit` saves, when, and how it continues from there.

Letters: N examples, B batch size, S batches of an epoch.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.checkpoint.folders import Keep, Latest, latest
from jaxnn.checkpoint.metadata import about, first_difference
from jaxnn.checkpoint.states import read, write
from jaxnn.checks import seen
from jaxnn.descriptions import Json, described
from jaxnn.placement import beside
from jaxnn.records import Record
from jaxnn.shapes import batch_size as size_of
from jaxnn.stopping import Monitors
from jaxnn.training.chunks import Noted
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import DataSet
from jaxnn.training.monitoring import Monitoring
from jaxnn.training.results import Notes
from jaxnn.types import EPOCH_START, TrainState

CLASSES = (Noted, Notes)
SAMPLE = 64  # examples by which data are recognised
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the text of a function: another in each process


class Saved(NamedTuple):
    """The progress of a training, as it is in a checkpoint."""

    train_state: TrainState
    monitors: Monitors | None
    noted: Noted | None  # of an epoch that has begun
    measures: tuple[Any, ...]  # of each epoch
    history: dict[str, list[float]]
    in_a_row: int  # steps skipped in a row
    seconds: float  # that the begun epoch has taken so far
    began: int  # the position at which the run began


class Saving(NamedTuple):
    """Where a training is saved and how often, and what it is: a folder has one training."""

    keep: Keep
    settings: dict[str, Json]
    batches: int  # S

    def until_next(self, done: int) -> int:
        """The number of batches to the next checkpoint, from a number of batches since the first epoch."""
        return self.batches + 1 if self.keep.every is None else self.keep.every - done % self.keep.every

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is to be saved at the end of an epoch, after this number of batches."""
        return self.keep.every is None or done % self.keep.every == 0

    def save(self, saved: Saved, why: str = "") -> str:
        """Writes a checkpoint, and returns its path."""
        state, trees = saved.train_state, {"monitors": saved.monitors, "noted": saved.noted, "measures": saved.measures}
        metadata = about(state) | {name: self.settings[name] for name in ("net", "loss", "optimizer")}
        values = {name: getattr(saved, name) for name in ("history", "in_a_row", "seconds", "began")}
        trees = {name: tree for name, tree in trees.items() if tree is not None and tree != ()}
        metadata |= {**values, "settings": self.settings, "finished": why}
        return write(self.keep, {"train_state": state, **trees}, metadata, classes=CLASSES)

    def newest(self, data: DataSet) -> tuple[Latest, Saved | None]:
        """The progress in the newest checkpoint that is whole, beside the data; None without one.

        Raises ValueError if it is that of another training.
        """
        found = latest(self.keep.folder)
        if found.path is None:
            return found, None
        trees, metadata = read(found, classes=CLASSES)
        self._compare(found.path, metadata)
        state, monitors, noted = (beside(trees.get(name), data) for name in ("train_state", "monitors", "noted"))
        history, in_a_row, seconds, began = (metadata[name] for name in ("history", "in_a_row", "seconds", "began"))
        measures = tuple(trees.get("measures", ()))
        return found, Saved(state, monitors, noted, measures, history, in_a_row, seconds, began)

    def _compare(self, path: str, metadata: dict[str, Json]) -> None:
        saved = metadata.get("settings")
        if not isinstance(saved, dict):
            raise ValueError(
                f"fit: {path} was not saved by fit: give checkpoint= another folder, and "
                "train_state=checkpoint.load(path) to go on from that state"
            )
        difference = first_difference(saved, self.settings)
        if difference is not None:
            raise ValueError(
                f"fit: {self.keep.folder} has another training, {difference}. Give checkpoint= another folder for this "
                "one; with train_state=checkpoint.load(…) as well it goes on from that state"
            )


def saving(
    keep: Any,
    epoch: Epoch,
    watched: Monitoring,
    data: DataSet,
    validation: DataSet | None,
    train_state: TrainState,
    key_given: bool,
) -> Saving | None:
    """The saving that the argument `checkpoint` of `fit` asks for, a Keep or a folder; None without one."""
    if keep is None:
        return None
    if not isinstance(keep, Keep):
        if not isinstance(keep, (str, os.PathLike)):
            raise TypeError(f"fit: checkpoint must be a folder or a checkpoint.Keep(folder, every=…), got {seen(keep)}")
        keep = Keep(keep)
    step, names = epoch.step, ("batch_size", "shuffle", "measure", "skip_nonfinite")
    settings = {name: _described(getattr(step, name)) for name in ("net", "loss", "optimizer", "penalty")}
    settings |= {name: getattr(epoch, name) for name in names}
    settings |= {
        "metrics": [{"name": name, "metric": _described(metric)} for name, metric in epoch.metrics],
        "gradient": _described(step.gradient),
        "augment": _described(step.augment),
        "watch": watched.name,
        "monitors": _described(watched.machine),
        "restore_best": watched.restore,
        "data": recognised(data),
        "validation": None if validation is None else recognised(validation),
    }
    if key_given:
        settings["key"] = np.asarray(jax.random.key_data(train_state.key)).tolist()
    return Saving(keep, settings, -(-size_of("x", data[0]) // epoch.batch_size))


def _described(value: Any) -> Json:
    """A record as plain values; what cannot be described by its text, without addresses."""
    if value is None:
        return None
    try:
        return described(value, "")
    except TypeError:
        text = repr(value) if isinstance(value, Record) else seen(value)
        return ADDRESS.sub("", text)


def recognised(data: DataSet) -> Json:
    """Shapes and dtypes of data, and a digest of some examples."""
    digest = hashlib.sha256()
    shapes = []
    for leaf in jax.tree.leaves(data):
        shapes.append(f"{leaf.dtype}{list(leaf.shape)}")
        at = np.unique(np.linspace(0, leaf.shape[0] - 1, SAMPLE).astype(int))
        digest.update(np.ascontiguousarray(np.asarray(leaf[at])).tobytes())
    return {"arrays": shapes, "digest of some examples": digest.hexdigest()}


def begun(train_state: TrainState) -> TrainState:
    """The state with the position of an epoch that has not begun as `EPOCH_START`."""
    return train_state if int(train_state.position) else train_state._replace(position=EPOCH_START)
