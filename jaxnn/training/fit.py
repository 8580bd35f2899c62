"""Training from the host: `fit` drives the compiled chunk of steps, epoch by epoch.

The loop is epoch → evaluate → note → observe. Each step takes values and returns values, and the progress of a training
is replaced as a whole, so that an interruption finds nothing half done.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.arrays import is_floating
from jaxnn.checks import whole_number, yes_or_no
from jaxnn.diagnostics.diagnosis import report_each
from jaxnn.passes.backprop import backprop
from jaxnn.placement import beside, home_of
from jaxnn.shapes import batch_size as size_of
from jaxnn.stopping import Monitor, Monitors
from jaxnn.training.chunks import Chunk, Noted, Replay, as_count, chunk_of, replay, run_chunk
from jaxnn.training.divergence import VALIDATION_LOSS, DivergenceError, Interrupted, diverged
from jaxnn.training.entry import check_fit_arguments, enter
from jaxnn.training.epochs import Epoch
from jaxnn.training.evaluation import Evaluation
from jaxnn.training.means import DataSet, Metrics, named_metrics
from jaxnn.training.monitoring import Monitoring, best_state, copied, monitoring, outcome, stopped, update_scale
from jaxnn.training.results import EpochResult, cursor
from jaxnn.training.steps import Augment, Gradient, train_step
from jaxnn.types import EPOCH_START, Array, Fit, Key, Layer, Loss, Optimizer, Penalty, TrainState


def fit(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    data: DataSet,
    *,
    epochs: int,
    batch_size: int,
    key: Key | int | None = None,
    validation: DataSet | None = None,
    metrics: Metrics = (),
    gradient: Gradient = backprop,
    penalty: Penalty | None = None,
    train_state: TrainState | None = None,
    shuffle: bool = True,
    check_data: bool = True,
    progress: bool | None = None,
    augment: Augment | None = None,
    stopping: Monitor | None = None,
    plateau: Monitor | None = None,
    keep: Monitor | None = None,
    watch: str | None = None,
    restore_best: bool = True,
    monitors: Monitors | None = None,
    measure: int = 0,
    skip_nonfinite: int = 0,
) -> Fit:
    """Trains a network; every epoch is one call of one compiled program.

    The same arguments and key on one machine give bit-identical results, and so do a + b epochs in one call or in
    two, if the second continues from the `train_state` of the first, and from its `monitors` if there are any. The
    caller's arrays are left unchanged. A `train_state` within an epoch, such as that of a DivergenceError, finishes
    that epoch first: it is the first of `epochs`, and its row in the history covers the steps that were run. With
    another batch size the remaining examples are cut into batches of that size, of which the last may be smaller.

    The learning rate is the one in `train_state` if `optimizer` was made with the same number as the optimizer of that
    state; otherwise, and for a schedule, it is that of `optimizer`.

    With `stopping`, training ends early when the watched figure has not improved for `patience` epochs, and the state
    that is returned is the best one: parameters, running statistics, the optimizer's state and the step of the best
    epoch. The watched figure must stay finite.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        data: (x, target) or (x, target, weights), arrays with N examples first; x may be a tree of such. Weights are
            [N], or [N, …] with one for each step or pixel, as for `backprop`; x and target may be `Sequences`.
        epochs: the number of passes over the data, at least 1.
        batch_size: B, from 1 to N. A last, smaller batch is a step too.
        key: a PRNG key or an integer seed. With train_state it is optional: by default the key of the state is used.
        validation: data of the same form, evaluated after every epoch.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict; see `metrics` for weights and
            masks of entries.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of the objective; the history lists it beside the loss, which excludes it.
        train_state: the state to continue from.
        shuffle: False keeps the order of the data.
        check_data: False skips the search for values that are not finite and for labels out of range.
        progress: show a progress bar; by default if tqdm is installed and the output is a terminal.
        augment: a function (key, x) -> x, such as those of `augment`, applied to each training batch in the compiled
            epoch, with another key in every step. Evaluation never augments. Compiled programs are cached by the
            identity of the function, so define it once.
        stopping: `stopping.early_stopping(patience)`.
        plateau: `stopping.reduce_on_plateau(factor)`; the updates of the next epochs are multiplied by its scale.
        keep: `stopping.keep_best()`, for the best state without stopping, or without restoring it.
        watch: the figure that these three read, the name of a list in the history; by default "validation_loss", or
            "loss" without validation.
        restore_best: whether the returned train_state is the best one after early stopping. False with `stopping` and
            without `keep` saves the memory of a copy.
        monitors: `Fit.monitors` of the training that is continued.
        measure: the number of steps of each epoch that are measured for `Fit.diagnostics`, at equal distances; 1 is the
            last full batch. An epoch that had begun measures those of them that are left.
        skip_nonfinite: n ≥ 1 skips steps whose loss or gradient is not finite: they change nothing and are counted in
            the history as "skipped"; n of them in a row, also across the epochs of a call, end training as a
            divergence. 0 ends it at the first.

    Returns:
        A Fit: train_state, history with one float per epoch in each list, the reason why it ended, and the best epoch.

    Raises:
        ValueError, TypeError: before anything compiles, for data, labels, sizes or parameters that do not fit.
        DivergenceError: if the loss of a step, a parameter at the end of an epoch, the validation loss or the watched
            figure is not finite. It names the step and the first such gradient or parameter, and carries the last good
            state.
        Interrupted: on Ctrl-C, a KeyboardInterrupt that carries the Fit so far.

    >>> import jax.numpy as jnp
    >>> from jaxnn import losses, mlp, sgd
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> result = fit(mlp([8, 1]), losses.mse, sgd(0.1), (x, x**2), key=0, epochs=3, batch_size=8)
    >>> len(result.history["loss"]), int(result.train_state.step)
    (3, 12)
    """
    traceable = (data, validation, train_state, key, monitors)
    check_fit_arguments(net, loss, optimizer, gradient, penalty, may_be_traced=traceable)
    step = train_step(net, loss, optimizer, gradient=gradient, penalty=penalty, augment=augment)
    epochs = whole_number("fit: epochs", epochs, least=1)
    epoch = Epoch(
        step,
        whole_number("fit: batch_size", batch_size, least=1),
        named_metrics(metrics),
        yes_or_no("fit: shuffle", shuffle),
        whole_number("fit: measure", measure, least=0),
        whole_number("fit: skip_nonfinite", skip_nonfinite, least=0),
    )
    look = yes_or_no("fit: check_data", check_data)
    figures = _figures(epoch, validation)
    watched = monitoring(watch, figures, stopping=stopping, plateau=plateau, keep=keep, restore_best=restore_best)
    memory = watched.begin(monitors)
    entered = enter(epoch, data, validation, train_state, key, epochs=epochs, look=look)
    zero = beside(jax.device_put(as_count(0)), entered.data)
    job = _Job(*entered[:3], watched, zero, chunk_of(entered.epoch, entered.data))
    done = _Done(entered.train_state, memory)
    return _run(job, done, 0 if stopped(memory) else epochs, progress, owned=train_state is None)


def _figures(epoch: Epoch, validation: DataSet | None) -> tuple[str, ...]:
    """The names of the lists of the history that can be watched, the default one last."""
    figures: tuple[str, ...] = (*(name for name, _ in epoch.metrics), "loss")
    if validation is not None:
        figures += tuple(f"validation_{name}" for name in figures)
    return figures if epoch.step.penalty is None else ("penalty", *figures)


# ---------------------------------------------------------------- epoch → evaluate → note → observe


class _Row(NamedTuple):
    """An epoch in the history, and the one before it."""

    figures: dict[str, float]
    measures: Any
    before: _Row | None


class _Done(NamedTuple):
    """How far a training has come."""

    train_state: TrainState
    monitors: Monitors | None
    last: _Row | None = None
    in_a_row: int = 0  # steps skipped in a row at the end

    def rows(self) -> Iterator[_Row]:
        """The epochs, the last one first."""
        row = self.last
        while row is not None:
            yield row
            row = row.before


class _Computed(NamedTuple):
    """An epoch that was computed and not yet taken in."""

    before: _Done
    train_state: TrainState
    noted: Noted
    result: EpochResult
    scale: Array | None
    began: float


class _Job(NamedTuple):
    """A training: the epoch, the data, what is watched; `zero` is the position of an epoch that has not begun."""

    epoch: Epoch
    data: DataSet
    validation: DataSet | None
    watched: Monitoring
    zero: Array
    whole: Chunk  # of an epoch that has not begun

    def chunk(self, train_state: TrainState) -> Chunk:
        position = int(train_state.position)
        return chunk_of(self.epoch, self.data, position) if position else self.whole

    def placed(self, train_state: TrainState) -> TrainState:
        """The state with its position as an array, as the program takes it."""
        return train_state._replace(position=self.zero) if train_state.position is EPOCH_START else train_state

    def compute(self, done: _Done, spare: TrainState, blank: Noted) -> _Computed:
        """Starts the epoch, or the rest of it; its result is written into the memory of `spare`."""
        state, scale = done.train_state, update_scale(done.monitors)
        began, chunk = time.perf_counter(), self.chunk(state)
        state = self.placed(state)
        if self.epoch.skip_nonfinite:
            blank = blank._replace(in_a_row=as_count(done.in_a_row))
        steps = len(blank.notes.loss)
        new, noted, result = run_chunk(chunk, spare, state, self.data, scale, blank, as_count(steps))
        return _Computed(done, new, noted, result, scale, began)

    def evaluate(self, train_state: TrainState) -> dict[str, float]:
        """The figures of the validation set, by their names in the history."""
        if self.validation is None:
            return {}
        step, home = self.epoch.step, home_of(self.validation)
        evaluation = Evaluation(step.net, step.loss, self.epoch.metrics, home)
        scores = evaluation.scores(train_state.params, train_state.state, self.validation)
        return {f"validation_{name}": score for name, score in scores.items()}

    def taken_in(self, computed: _Computed, show: Callable[[dict[str, float]], None]) -> _Done:
        """Progress after a computed epoch; raises DivergenceError if it is not finite."""
        done, result, skip = computed.before, computed.result, self.epoch.skip_nonfinite
        in_a_row = int(computed.noted.in_a_row) if skip else 0
        if not bool(result.finite):
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
        last = _Row(figures, result.diagnostics, done.last)
        bad = [name for name in (VALIDATION_LOSS, self.watched.name) if not math.isfinite(figures.get(name or "", 0.0))]
        if bad:
            step, epoch = int(state.step), int(state.epoch) - 1
            history = _history(done._replace(last=last))
            raise DivergenceError(step, epoch, str(bad[0]), state, history, best_state(done.monitors))
        return _Done(state, self.watched.observe(done.monitors, figures, state), last, in_a_row)

    def _diverged(self, computed: _Computed, in_a_row: int) -> DivergenceError:
        """The error of an epoch, which is deterministic: replayed, it shows the step and the leaf."""
        done, start, skip = computed.before, computed.before.train_state, self.epoch.skip_nonfinite
        sound = all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(computed.train_state.params) if is_floating(leaf)
        )
        if skip and in_a_row >= skip and sound:  # nothing has changed since the first of them
            ran = int(np.count_nonzero(computed.result.ran))
            seen = max(ran - in_a_row, 0) * self.epoch.batch_size
            start = computed.train_state._replace(**cursor(start.epoch, int(start.position) + seen))
        skips = skip > 0 and not (in_a_row >= skip and sound)
        program = Replay(self.epoch, int(start.position), skips)
        replayed, n = replay(program, start, self.data, computed.scale), size_of("x", self.data[0])
        history, best = _history(done), best_state(done.monitors)
        return diverged(self.epoch, start, replayed, n, history, best, 1 if skips else in_a_row)

    def fit(self, done: _Done, position: int) -> Fit:
        """The result of a training that began at that position."""
        measures = jax.device_get([row.measures for row in done.rows() if row.measures != ()])[::-1]
        reports = [report_each(self.epoch.step.net, taken) for taken in map(_taken, measures) if len(taken.step)]
        result = outcome(self.watched, done.monitors, done.train_state, _history(done), position)
        return result._replace(diagnostics=tuple(point for reports in reports for point in reports))


def _taken(measures: Any) -> Any:
    """The measures of the steps that were taken."""
    return jax.tree.map(lambda leaf: leaf[measures.step >= 0], measures)


def _history(done: _Done) -> dict[str, list[float]]:
    history: dict[str, list[float]] = {}
    for row in reversed([*done.rows()]):
        for name, value in row.figures.items():
            history.setdefault(name, []).append(value)
    return history


def _run(job: _Job, done: _Done, epochs: int, progress: bool | None, *, owned: bool) -> Fit:
    """Runs epoch after epoch, each in the memory of the last but one; a good state is kept until the next is known.

    `owned` says that the first state belongs to nobody else, so that its memory may be used again.
    """
    position = int(done.train_state.position)
    computed: _Computed | None = None
    try:
        bar, show = _progress(epochs, progress)
        spare = copied(done.train_state)
        first, scale = job.placed(done.train_state), update_scale(done.monitors)
        blank = job.chunk(done.train_state).nothing_noted(first, job.data, scale)
        for _ in bar:
            computed = job.compute(done, spare._replace(position=EPOCH_START), blank)
            new = job.taken_in(computed, show)
            spare = done.train_state if owned else copied(new.train_state)  # the caller's own state is never donated
            done, owned = new, True
            if stopped(done.monitors):
                break
        return job.fit(done, position)
    except KeyboardInterrupt:
        if computed is not None and computed.before is done:
            done = job.taken_in(computed, show)
        raise Interrupted(job.fit(done, position)) from None


# ---------------------------------------------------------------- the progress bar


def _progress(epochs: int, wanted: bool | None) -> tuple[Iterable[int], Callable[[dict[str, float]], None]]:
    """The epochs, behind a tqdm bar if it is wanted and installed, and a function that shows figures on it."""
    if wanted or (wanted is None and sys.stderr.isatty()):
        try:
            from tqdm import tqdm
        except ImportError:
            if wanted:
                raise ImportError("fit: progress=True needs tqdm: pip install tqdm") from None
        else:
            bar = tqdm(range(epochs), unit="epoch")
            return bar, lambda row: bar.set_postfix({name: f"{value:.4g}" for name, value in row.items()})
    return range(epochs), lambda row: None
