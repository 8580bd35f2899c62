"""The loop of a training on the host: epoch → evaluate → note → observe, and checkpoints between.

Each step takes values and returns values, and the progress of a training is replaced as a whole, so that an
interruption finds nothing half done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxnn.arrays import is_floating
from jaxnn.diagnostics.diagnosis import report_each
from jaxnn.shapes import batch_size as size_of
from jaxnn.spmd.batches import home_of
from jaxnn.spmd.processes import group_of
from jaxnn.spmd.transfers import host
from jaxnn.stopping import Monitors
from jaxnn.training.chunks import Chunk, Noted, Replay, Saved, as_count, chunk_of
from jaxnn.training.divergence import VALIDATION_LOSS, DivergenceError, Interrupted, diverged
from jaxnn.training.epochs import Epoch
from jaxnn.training.evaluation import Evaluation
from jaxnn.training.means import DataSet
from jaxnn.training.monitoring import Monitoring, best_state, copied, outcome, stopped, update_scale
from jaxnn.training.parts import FromSource
from jaxnn.training.progress import progress_bar
from jaxnn.training.results import EpochResult, begun, cursor
from jaxnn.types import EPOCH_START, Array, Fit, TrainState

if TYPE_CHECKING:  # imported where it is used: most trainings are not saved
    from jaxnn.checkpoint.folders import Latest
    from jaxnn.training.saving import Saving


class Row(NamedTuple):
    """An epoch in the history, and the one before it."""

    figures: dict[str, float]
    measures: Any
    before: Row | None


class Done(NamedTuple):
    """How far a training has come."""

    train_state: TrainState
    monitors: Monitors | None
    last: Row | None = None
    in_a_row: int = 0  # steps skipped in a row at the end
    noted: Noted | None = None  # of an epoch that had begun when it was saved
    seconds: float = 0.0  # that this epoch took before
    began: int = 0  # the position at which the training began
    found: Latest | None = None  # the checkpoint from which it continues, or why there was none that is whole

    def rows(self) -> Iterator[Row]:
        """The epochs, the last one first."""
        row = self.last
        while row is not None:
            yield row
            row = row.before


class Computed(NamedTuple):
    """An epoch that was computed and not yet taken in."""

    before: Done
    train_state: TrainState
    noted: Noted
    result: EpochResult
    scale: Array | None
    began: float


class Job(NamedTuple):
    """A training: the epoch, the data, what is watched; `zero` is the position of an epoch that has not begun."""

    epoch: Epoch
    data: DataSet
    validation: DataSet | None
    watched: Monitoring
    zero: Array
    whole: Chunk  # of an epoch that has not begun
    saving: Saving | None = None

    def chunk(self, train_state: TrainState) -> Chunk:
        position = int(train_state.position)
        return chunk_of(self.epoch, self.data, position) if position else self.whole

    def placed(self, train_state: TrainState) -> TrainState:
        """The state with its position as an array, as the program takes it."""
        return train_state._replace(position=self.zero) if train_state.position is EPOCH_START else train_state

    def compute(self, done: Done, spare: TrainState, blank: Noted) -> Computed:
        """Starts the epoch, or the rest of it; its result is written into the memory of `spare`."""
        state, scale = done.train_state, update_scale(done.monitors)
        began, chunk = time.perf_counter() - done.seconds, self.chunk(state)
        state, noted = self.placed(state), done.noted or blank
        if self.epoch.skip_nonfinite:
            noted = noted._replace(in_a_row=as_count(done.in_a_row))
        batches = len(noted.notes.loss)
        if self.saving is None:
            new, noted, result = chunk.advance(_bare(spare), state, self.data, scale, noted, batches)
            return Computed(done, new, noted, result, scale, began)
        passed = batches - -(-(size_of("x", self.data[0]) - int(state.position)) // self.epoch.batch_size)
        while True:
            steps = min(self.saving.until_next(self._batches(done.train_state, passed)), batches - passed)
            new, noted, result = chunk.advance(_bare(spare), state, self.data, scale, noted, steps)
            passed += steps
            if passed == batches or not bool(result.finite):
                return Computed(done, new, noted, result, scale, began)
            seconds = time.perf_counter() - began
            self.saving.save(self.saved(done._replace(train_state=new), noted, seconds))
            spare, state = (copied(new) if state.params is done.train_state.params else state), new

    def close(self) -> None:
        """Ends the threads that read data."""
        for data in (self.data, self.validation):
            if isinstance(data, FromSource):
                data.close()

    def save(self, done: Done, *, over: bool) -> None:
        """Saves the end of an epoch if a checkpoint is due, and the end of the training."""
        if self.saving is not None and (over or self.saving.is_due(self._batches(done.train_state, 0))):
            self.saving.save(self.saved(done), self.fit(done).why if over else "")

    def _batches(self, train_state: TrainState, passed: int) -> int:
        """The number of batches since the first epoch, `passed` of them in this one."""
        return int(train_state.epoch) * (self.saving.batches if self.saving is not None else 0) + passed

    def saved(self, done: Done, noted: Noted | None = None, seconds: float = 0.0) -> Saved:
        """Progress as it is saved."""
        each = _measures(done)
        measures = jax.tree.map(lambda *leaves: np.stack(leaves), *each) if each else ()
        in_a_row = int(noted.in_a_row) if noted is not None and self.epoch.skip_nonfinite else done.in_a_row
        state, monitors = done.train_state, done.monitors
        return Saved(state, monitors, noted, measures, _history(done), in_a_row, seconds, done.began)

    def resumed(self, like: TrainState, epochs: int) -> tuple[Latest | None, Done | None]:
        """The newest checkpoint and its progress; `found.path` is None if all were passed over, `found` if none is.

        Raises ValueError if it is that of another training, or has more than these epochs.
        """
        if self.saving is None:
            return None, None
        found, saved = self.saving.newest(self.data, like)
        if saved is None:
            return (found if found.passed_over else None), None
        lists, measures, last = saved.history, jax.device_get(saved.measures), None
        rows = max(map(len, lists.values()), default=0)
        if rows + (saved.noted is not None) > epochs:
            more = " and a part of another" if saved.noted is not None else ""
            raise ValueError(
                f"fit: epochs counts from the beginning of the training, and {found.path} has {rows} epochs{more}, got "
                f"{epochs}: give epochs={rows + (saved.noted is not None)} or more, or checkpoint= another folder"
            )
        for i in range(rows):
            figures = {name: values[i] for name, values in lists.items()}
            last = Row(figures, jax.tree.map(lambda leaf, i=i: leaf[i], measures), last)
        state = begun(saved.train_state)
        return found, Done(state, saved.monitors, last, saved.in_a_row, saved.noted, saved.seconds, saved.began, found)

    def evaluate(self, train_state: TrainState) -> dict[str, float]:
        """The figures of the validation set, by their names in the history."""
        if self.validation is None:
            return {}
        step, home = self.epoch.step, home_of(self.validation)
        evaluation = Evaluation(step.net, step.loss, self.epoch.metrics, home)
        scores = evaluation.scores(train_state.params, train_state.state, self.validation)
        return {f"validation_{name}": score for name, score in scores.items()}

    def taken_in(self, computed: Computed, show: Callable[[dict[str, float]], None]) -> Done:
        """Progress after a computed epoch; raises DivergenceError if it is not finite."""
        done, result, skip = computed.before, computed.result, self.epoch.skip_nonfinite
        in_a_row = int(computed.noted.in_a_row) if skip else 0
        if not bool(result.finite) or not (skip or math.isfinite(float(result.loss))):
            raise self._diverged(computed, in_a_row)
        seconds = time.perf_counter() - computed.began
        state = computed.train_state._replace(position=EPOCH_START)
        figures = {"loss": float(result.loss)} | (
            {} if isinstance(result.penalty, tuple) else {"penalty": float(result.penalty)}
        )
        figures |= {name: float(value) for name, value in result.metrics.items()} | self.evaluate(state)
        show(figures)
        figures["seconds"] = seconds
        if computed.scale is not None:
            figures["update_scale"] = float(computed.scale)
        if skip:
            figures["skipped"] = float(np.count_nonzero(result.skipped))
        last = Row(figures, jax.device_get(result.diagnostics) if self.saving else result.diagnostics, done.last)
        bad = [name for name in (VALIDATION_LOSS, self.watched.name) if not math.isfinite(figures.get(name or "", 0.0))]
        if bad:
            step, epoch = int(state.step), int(state.epoch) - 1
            history = _history(done._replace(last=last))
            raise DivergenceError(step, epoch, str(bad[0]), state, history, best_state(done.monitors))
        monitors = self.watched.observe(done.monitors, figures, state)
        return done._replace(
            train_state=state, monitors=monitors, last=last, in_a_row=in_a_row, noted=None, seconds=0.0
        )

    def _diverged(self, computed: Computed, in_a_row: int) -> DivergenceError:
        """The error of an epoch, which is deterministic: replayed, it shows the step and the leaf."""
        done, start, skip = computed.before, computed.before.train_state, self.epoch.skip_nonfinite
        floats = [leaf for leaf in jax.tree.leaves(computed.train_state.params) if is_floating(leaf)]
        sound = all(np.isfinite(host(leaf)).all() for leaf in floats)
        if skip and in_a_row >= skip and sound:  # nothing has changed since the first of them
            before = 0 if done.noted is None else int(np.count_nonzero(done.noted.notes.ran))
            ran = max(int(np.count_nonzero(computed.result.ran)) - in_a_row, 0) - before  # may be before the checkpoint
            position = int(start.position) + ran * self.epoch.batch_size
            start = computed.train_state._replace(**cursor(start.epoch, position))
        skips = skip > 0 and not (in_a_row >= skip and sound)
        program = Replay(self.epoch, int(start.position), skips)
        replayed, scale = program.over(start, self.data, computed.scale), computed.scale
        history, best = _history(done), best_state(done.monitors)
        return diverged(self.epoch, start, replayed, self.data, scale, history, best, 1 if skips else in_a_row)

    def fit(self, done: Done, *, ran: bool = True) -> Fit:
        """The result of a training; it `ran` unless it had been finished before."""
        measures = jax.device_get(_measures(done))
        reports = [report_each(self.epoch.step.net, taken) for taken in map(_taken, measures) if len(taken.step)]
        result = outcome(self.watched, done.monitors, done.train_state, _history(done), done.began)
        if done.found is not None:
            before = "it continued from" if ran else "nothing was left to do after"
            before = before if done.found.path is not None else "it began anew, as there was"
            result = result._replace(why=f"{result.why}; {before} {done.found}")
        return result._replace(diagnostics=tuple(point for reports in reports for point in reports))


def _bare(spare: TrainState) -> TrainState:
    """The memory of a state, without its position."""
    return spare._replace(position=EPOCH_START)


def _measures(done: Done) -> list[Any]:
    """The measures of each epoch."""
    return [row.measures for row in done.rows() if row.measures != ()][::-1]


def _taken(measures: Any) -> Any:
    """The measures of the steps that were taken."""
    return jax.tree.map(lambda leaf: leaf[measures.step >= 0], measures)


def _history(done: Done) -> dict[str, list[float]]:
    history: dict[str, list[float]] = {}
    for row in reversed([*done.rows()]):
        for name, value in row.figures.items():
            history.setdefault(name, []).append(value)
    return history


def drive(job: Job, done: Done, epochs: int, progress: bool | None, *, owned: bool) -> Fit:
    """Runs epoch after epoch, each in the memory of the last but one; a good state is kept until the next is known.

    `owned` says that the first state belongs to nobody else, so that its memory may be used again.
    """
    computed: Computed | None = None
    before = sum(1 for _ in done.rows())
    if before == epochs or stopped(done.monitors):
        return job.fit(done, ran=False)
    try:
        bar, show = progress_bar("fit", epochs, progress, "epoch", before)
        spare = copied(done.train_state)
        first, scale = job.placed(done.train_state), update_scale(done.monitors)
        blank = job.chunk(done.train_state).nothing_noted(first, job.data, scale)
        for i in bar:
            computed = job.compute(done, spare, blank)
            new = job.taken_in(computed, show)
            spare = done.train_state if owned else copied(new.train_state)  # the caller's own state is never donated
            done, owned, early = new, True, stopped(new.monitors)
            job.save(done, over=early or i == epochs - 1)
            if early:
                break
        return job.fit(done)
    except KeyboardInterrupt:
        if computed is not None and computed.before is done and group_of(job.data) is None:  # others may not be here
            done = job.taken_in(computed, show)
        raise Interrupted(job.fit(done), "" if job.saving is None else str(job.saving.keep.folder)) from None
    finally:
        job.close()
