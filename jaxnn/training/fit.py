"""Training from the host: `fit`, `evaluate` and `predict`.

They look at the values of what enters, compile once each, keep the data on the device, and name the step and the
leaf when training diverges. The pure functions that they drive are in `steps`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import is_floating
from jaxnn.checks import whole_number, yes_or_no
from jaxnn.compiled import program
from jaxnn.diagnostics.diagnosis import report_each
from jaxnn.keys import as_key
from jaxnn.mistakes import is_traced, loss_record
from jaxnn.passes.backprop import backprop
from jaxnn.passes.parts import costs
from jaxnn.placement import Home, beside, home_of, placed, rows
from jaxnn.records import Record
from jaxnn.shapes import batch_size, example_shape
from jaxnn.stopping import Monitor, Monitors
from jaxnn.training.divergence import VALIDATION_LOSS, DivergenceError, Interrupted, diverged
from jaxnn.training.entry import (
    check_fit_arguments,
    check_train_state,
    check_values,
    on_device,
    with_counters,
)
from jaxnn.training.means import (
    DataSet,
    Metrics,
    NamedMetrics,
    batch_sums,
    in_moderation,
    means_of,
    named_metrics,
)
from jaxnn.training.monitoring import (
    begin,
    best_state,
    copied,
    look,
    outcome,
    stopped,
    watch_of,
)
from jaxnn.training.steps import (
    Augment,
    EpochResult,
    Gradient,
    check_augment,
    check_batch_size,
    cursor,
    epoch_program,
    in_batches,
    init_train_state,
    rows_of,
)
from jaxnn.trees import spec_tree, static_spec
from jaxnn.types import EPOCH_START, Array, Fit, Key, Layer, Loss, Optimizer, Params, Penalty, TrainState, Tree

EVALUATION_BATCH = 1024  # examples at a time where no gradient is kept; memory, not results, depends on it


# ---------------------------------------------------------------- drivers on the host


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
    diagnose: int = 0,
    skip_nonfinite: int = 0,
) -> Fit:
    """Trains a network; every epoch is one call of one compiled program.

    Same arguments and key on the same machine give bit-identical results, and so do a + b epochs in one call
    or in two, the second going on from the first's `train_state`, and its `monitors` where there are such. The
    caller's arrays are left as they are. A `train_state` within an epoch, as a DivergenceError carries it, finishes
    that epoch first: it is the first of `epochs`, and its row in the history counts what was run. Another batch size
    cuts the examples that are left into batches of its own, of which the last may be smaller.

    The learning rate is the one in `train_state` as long as `optimizer` was made with the same number as the state's
    was; a call with another number, or with a schedule in the place of one, uses its own.

    With `stopping`, training ends before the last epoch when the watched figure has not improved for so long, and the
    state that it gives back is the best one: parameters, running statistics, the optimizer's state and the step of the
    best epoch, copied before their memory is used again. All that is watched must stay finite.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        data: (x, target) or (x, target, weights), arrays with N examples first; x may be a tree of such. Weights are
            [N], or [N, …] with one for each step or pixel, as for `backprop`; x and target may be `Sequences`.
        epochs: how many passes over the data, at least 1.
        batch_size: B, from 1 to N. A last, smaller batch is a step too.
        key: a PRNG key or an integer seed. With train_state it may be left out: the state's own key goes on.
        validation: data of the same form, evaluated after every epoch.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict; see `metrics` for weights and
            masks of entries.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of what is minimised; the history has it beside the loss, which is without it.
        train_state: go on from there.
        shuffle: False keeps the order of the data.
        check_data: False skips looking for values that are not finite, and for bad labels.
        progress: show a progress bar; by default if tqdm is installed and the output is a terminal.
        augment: a function (key, x) -> x, such as those of `augment`, applied to each training batch in the compiled
            epoch, with a key of its own in every step. Evaluation never augments. Programs are found again by its
            identity, so make it once.
        stopping: `stopping.early_stopping(patience)`.
        plateau: `stopping.reduce_on_plateau(factor)`; the updates of the next epochs are multiplied by its scale.
        keep: `stopping.keep_best()`, where the best state is wanted without stopping or where it must not be restored.
        watch: what these three read: the name of a list in the history; by default "validation_loss", and "loss"
            where there is no validation.
        restore_best: whether train_state is the best one where training was stopped early. False with `stopping` and
            no `keep` saves its memory.
        monitors: `Fit.monitors` of the training that goes on.
        diagnose: how many steps of each epoch are measured for `Fit.diagnostics`; 1 is its last full batch.
        skip_nonfinite: n ≥ 1: a step whose loss or gradient is not finite changes nothing and is counted in the history
            as "skipped"; n such steps in a row, over the ends of epochs too, end the training as a divergence. By
            default the first one does.

    Returns:
        A Fit: train_state, history with one float per epoch in each of its lists, why it ended, and the best epoch.

    Raises:
        ValueError, TypeError: before anything compiles, for data, labels, sizes or parameters that do not fit.
        DivergenceError: if a step's loss, a parameter at an epoch's end, the validation loss or what is watched is not
            finite. It names the step and the first such gradient or parameter, and carries the last good state.
        Interrupted: on Ctrl-C, a KeyboardInterrupt that carries the Fit of what was trained.

    >>> from jaxnn import losses, mlp, sgd
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> result = fit(mlp([8, 1]), losses.mse, sgd(0.1), (x, x**2), key=0, epochs=3, batch_size=8)
    >>> len(result.history["loss"]), int(result.train_state.step)
    (3, 12)
    """
    traceable = (data, validation, train_state, key, monitors)
    check_fit_arguments(net, loss, optimizer, gradient, penalty, may_be_traced=traceable)
    epochs = whole_number("fit: epochs", epochs, least=1)
    batch_size = whole_number("fit: batch_size", batch_size, least=1)
    diagnose = whole_number("fit: diagnose", diagnose, least=0)
    skip = whole_number("fit: skip_nonfinite", skip_nonfinite, least=0)
    for what, flag in (("shuffle", shuffle), ("check_data", check_data), ("restore_best", restore_best)):
        yes_or_no(f"fit: {what}", flag)
    named, resumed = named_metrics(metrics), train_state
    figures: tuple[str, ...] = (*(name for name, _ in named), "loss")
    if validation is not None:
        figures += tuple(f"validation_{name}" for name in figures)
    if penalty is not None:
        figures = ("penalty", *figures)
    watching = watch_of(watch, figures, stopping, plateau, keep, restore_best)
    memory = begin(watching, monitors)
    data = on_device("data", data)
    sizes = [("data", data)]
    if validation is not None:
        validation = beside(on_device("validation", validation), data)
        sizes.append(("validation", validation))
    check_batch_size(batch_size, data[0], diagnose)
    steps = -(-len(jax.tree.leaves(data[1])[0]) // batch_size)
    if augment is not None:
        check_augment(augment, data[0], batch_size)
    if train_state is None:
        if key is None:
            raise ValueError("fit: key is missing; give jax.random.key(seed) or an integer seed")
        start, first_key = partial(_initialise, _Initialisation(net, optimizer, static_spec(data[0]))), as_key(key)
        spec = jax.eval_shape(start, first_key)
    else:
        check_train_state(net, train_state, data[0], optimizer, key_given=key is not None)
        train_state = with_counters(train_state, further=epochs * steps)
        check_batch_size(batch_size, data[0], diagnose, int(train_state.position))
        if key is not None:
            train_state = train_state._replace(key=as_key(key))
        spec = train_state
    for what, part in sizes:
        check_values(what, net, loss, spec, part, named, look=check_data)
    if train_state is None:
        train_state = start(first_key)  # nothing has compiled before
    train_state = beside(train_state, data)

    figures_and_rules = named, gradient, penalty, shuffle, augment
    parts = (net, loss, optimizer, batch_size, *figures_and_rules, diagnose, skip, home_of(data))
    began_at = int(train_state.position)
    spare = copied(train_state)  # its buffers are donated to the epoch's result; the good state is kept
    owned = resumed is None
    table: list[dict[str, float]] = []
    measured: list[Any] = []
    done = _Done(train_state, memory, 0, 0)
    passes, show = _progress(0 if stopped(memory) else epochs, progress)

    def so_far() -> Fit:
        history: dict[str, list[float]] = {}
        for row in table[: done.epochs]:
            for name, value in row.items():
                history.setdefault(name, []).append(value)
        diagnoses = jax.device_get(measured[: done.epochs])
        reports = tuple(point for part in diagnoses for point in report_each(net, part))
        return outcome(watching, done.memory, done.train_state, history, began_at)._replace(diagnostics=reports)

    def finish(new_state: TrainState, result: EpochResult, seconds: float, scale: Array | None) -> _Done:
        """Takes an epoch in that was computed: its row, what is watched, and the state."""
        in_a_row = _in_a_row(done.in_a_row, result)
        if not bool(result.finite):
            start = done.train_state
            if skip and in_a_row >= skip:  # nothing has changed since the first of them
                seen = int(np.count_nonzero(result.ran)) - _in_a_row(0, result)
                start = new_state._replace(**cursor(start.epoch, int(start.position) + seen * batch_size))
            raise diverged(start, data, scale, parts, so_far().history, best_state(done.memory), in_a_row)
        means: dict[str, Any] = {"loss": result.loss} | ({} if penalty is None else {"penalty": result.penalty})
        row = {name: float(value) for name, value in (means | result.metrics).items()}
        if validation is not None:
            scores = _evaluate(net, loss, new_state, validation, named, EVALUATION_BATCH)
            row |= {f"validation_{name}": score for name, score in scores.items()}
        show(row)
        row["seconds"] = seconds
        if scale is not None:
            row["update_scale"] = float(scale)
        if skip:
            row["skipped"] = float(np.count_nonzero(result.skipped))
        del table[done.epochs :], measured[done.epochs :]  # of an attempt that was interrupted
        table.append(row)
        measured.extend([result.diagnostics] if diagnose else [])
        watched, memory = None if watching.name is None else row[watching.name], done.memory
        new_state = new_state._replace(position=EPOCH_START)
        new = done._replace(train_state=new_state, epochs=done.epochs + 1, in_a_row=in_a_row)
        bad = [name for name in (VALIDATION_LOSS, watching.name) if name in row and not math.isfinite(row[name])]
        if bad:
            history = {name: [row[name] for row in table if name in row] for name in row}
            step, epoch = int(new_state.step), int(new_state.epoch) - 1
            raise DivergenceError(step, epoch, bad[0], new_state, history, best_state(memory))
        return (
            new
            if memory is None or watched is None
            else new._replace(memory=look(watching, memory, watched, new_state))
        )

    running: tuple[Any, ...] | None = None  # an epoch that is computed and not yet taken in
    try:
        for _ in passes:
            scale = done.memory.plateau.scale if done.memory is not None and done.memory.plateau is not None else None
            began, before = time.perf_counter(), done.train_state
            run = _compiled_epoch(*parts, int(before.position) if not done.epochs else 0)
            new_state, result = run(spare, before, data, scale, *((done.in_a_row,) if skip else ()))
            running = new_state, result
            bool(result.finite)  # waits
            running = (*running, time.perf_counter() - began, scale)
            done = finish(*running)
            running = None
            if stopped(done.memory):
                break
            spare = before if owned else copied(new_state)  # the caller's own state is never donated
            owned = True
    except KeyboardInterrupt:
        if running is not None and len(running) == 2:
            running = (*running, time.perf_counter() - began, scale)
        if running is not None:
            done = finish(*running)
        raise Interrupted(so_far()) from None
    return so_far()


class _Done(NamedTuple):
    """How far a training has come: replaced as a whole, so that an interruption finds nothing half done."""

    train_state: TrainState
    memory: Monitors | None
    epochs: int
    in_a_row: int  # steps that were skipped at its end


def _in_a_row(before: int, result: EpochResult) -> int:
    """How many steps had been skipped in a row when the epoch ended, with those before it."""
    if isinstance(result.skipped, tuple):
        return 0
    skipped = np.asarray(result.skipped)[np.asarray(result.ran)]
    kept = np.flatnonzero(~skipped)
    return len(skipped) - 1 - int(kept[-1]) if len(kept) else before + len(skipped)


def evaluate(
    net: Layer,
    loss: Loss,
    train_state: TrainState,
    data: DataSet,
    *,
    metrics: Metrics = (),
    batch_size: int = EVALUATION_BATCH,
    check_data: bool = True,
) -> dict[str, Any]:
    """The mean loss and metrics over data, in batches, with the layers as in evaluation (train=False).

    Args:
        net: the network.
        loss: a Loss record.
        train_state: from `fit`.
        data: (x, target) or (x, target, weights), N examples first, as for `fit`.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict.
        batch_size: examples at a time; the result does not depend on it but for rounding.
        check_data: False skips looking at values.

    Returns:
        {"loss": Σ wₙCₙ / Σ wₙ, each metric by name}: floats; under `jit` and `vmap` arrays, and no value is looked at.

    Raises:
        ValueError, TypeError: as `fit`.

    >>> from jaxnn import losses, mlp, sgd
    >>> net = mlp([1], w_init=lambda key, shape, dtype: jnp.ones(shape, dtype))
    >>> state = init_train_state(net, sgd(0.1), 0, (2,))
    >>> evaluate(net, losses.mse, state, (jnp.ones((5, 2)), jnp.zeros((5, 1))))
    {'loss': 4.0}
    """
    batch_size = whole_number("evaluate: batch_size", batch_size, least=1)
    loss_record("evaluate", loss)
    data = on_device("data", data)
    named = named_metrics(metrics)
    train_state = beside(train_state, data)
    check_train_state(net, train_state, data[0])
    check_values("data", net, loss, train_state, data, named, look=check_data)
    return _evaluate(net, loss, train_state, data, named, batch_size)


def predict(net: Layer, train_state: TrainState, x: Tree, *, batch_size: int = EVALUATION_BATCH) -> Any:
    """The network's output on x [N, …], in batches, with the layers as in evaluation (train=False).

    Raises:
        ValueError, TypeError: if x is empty or does not fit the parameters.

    >>> from jaxnn import mlp, sgd
    >>> net = mlp([3])
    >>> predict(net, init_train_state(net, sgd(0.1), 0, (2,)), jnp.ones((5, 2))).shape
    (5, 3)
    """
    batch_size = whole_number("predict: batch_size", batch_size, least=1)
    (x,) = on_device("x", (x,))
    train_state = beside(train_state, x)
    check_train_state(net, train_state, x)
    return _predict(_Prediction(net, batch_size, home_of(x)), train_state.params, train_state.state, x)


# ---------------------------------------------------------------- the compiled programs


_initialise = program("initialisation")
_train = program("training", in_place=True)
_score = program("evaluation")
_predict = program("prediction")


class _Initialisation(Record):
    net: Layer
    optimizer: Optimizer
    x_spec: Any

    def __call__(self, key: Key) -> TrainState:
        x = spec_tree(self.x_spec)
        dtype = next((leaf.dtype for leaf in jax.tree.leaves(x) if is_floating(leaf)), jnp.float32)
        return init_train_state(self.net, self.optimizer, key, example_shape(x), dtype)


class _Epoch(Record):
    """An epoch, or its rest; the parts are those of `epoch_program`."""

    parts: tuple[Any, ...]

    def __call__(
        self, train_state: TrainState, data: DataSet, update_scale: Array | None, *in_a_row: Array
    ) -> tuple[TrainState, EpochResult]:
        return epoch_program(*self.parts)(train_state, data, update_scale, *in_a_row)


def _compiled_epoch(*parts: Any) -> Callable[..., tuple[TrainState, EpochResult]]:
    """The epoch, or its rest, its result written into the buffers of its first argument."""
    return partial(_train, _Epoch(parts))


class _Evaluation(Record):
    net: Layer
    loss: Loss
    batch: int
    metrics: NamedMetrics
    home: Home | None

    def __call__(self, params: Params, state: Any, data: DataSet) -> dict[str, Array]:
        def one(carry: Any, rows: Array) -> tuple[Any, dict[str, Array]]:
            x, target, weights = rows_of(data, rows, self.home)
            output = self.net.forward(params, state, x)[0]
            found = costs(self.loss, output, target, weights)
            figures = {"loss": found.mean}
            return carry, batch_sums(factor, found.total, figures, output, target, weights, self.metrics)

        n = batch_size("x", data[0])
        data, factor = in_moderation(data)
        return means_of(in_batches(one, (), jnp.arange(n), _dividing(self.batch, n, self.home))[1])


class _Prediction(Record):
    net: Layer
    batch: int
    home: Home | None

    def __call__(self, params: Params, state: Any, x: Tree) -> Any:
        n, batch = batch_size("x", x), self.batch
        full = n // batch
        cut = lambda start, stop: jax.tree.map(lambda leaf: leaf[start:stop], x)  # noqa: E731
        forward = lambda x: self.net.forward(params, state, x)[0]  # noqa: E731
        outs = []
        if self.home is not None:
            return self._on_a_mesh(forward, x)
        if full:
            stacked = jax.tree.map(lambda leaf: leaf.reshape(full, batch, *leaf.shape[1:]), cut(0, full * batch))
            outs.append(jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), jax.lax.map(forward, stacked)))
        if n % batch:
            outs.append(forward(cut(full * batch, n)))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)

    def _on_a_mesh(self, forward: Callable[[Tree], Any], x: Tree) -> Any:
        """The batches gathered, so that each of them is divided among the devices."""
        n, home = batch_size("x", x), self.home
        each = _dividing(self.batch, n, home)
        whole = n - n % each
        parts = [jax.lax.map(lambda at: forward(rows(x, at, home)), jnp.arange(whole).reshape(-1, each))]
        if whole < n:
            parts.append(forward(rows(x, jnp.arange(whole, n), home)))

        def together(stacked: Array, *rest: Array) -> Array:
            return jnp.concatenate([stacked.reshape(-1, *stacked.shape[2:]), *rest])

        first = home.axes if home is not None and home.divides(n) else None
        return jax.tree.map(lambda *ys: placed(together, *ys, axes=(first, *(None,) * (ys[0].ndim - 2))), *parts)


def _dividing(batch: int, n: int, home: Home | None) -> int:
    """How many of n examples to take at a time: a number that the devices divide, where there are enough."""
    batch = min(batch, n)
    return batch - batch % home.devices if home is not None and batch > home.devices else batch


def _evaluate(
    net: Layer,
    loss: Loss,
    train_state: TrainState,
    data: DataSet,
    metrics: NamedMetrics,
    batch: int,
) -> dict[str, Any]:
    evaluation = _Evaluation(net, loss, batch, metrics, home_of(data))
    scores = _score(evaluation, train_state.params, train_state.state, data)
    return {name: score if is_traced(score) else float(score) for name, score in scores.items()}


# ---------------------------------------------------------------- the progress bar


def _progress(epochs: int, wanted: bool | None) -> tuple[Iterable[int], Callable[[dict[str, float]], None]]:
    """The epochs, behind a tqdm bar where it is wanted and installed, and how to show an epoch's figures on it."""
    if wanted or (wanted is None and sys.stderr.isatty()):
        try:
            from tqdm import tqdm
        except ImportError:
            if wanted:
                raise ImportError(
                    "fit: progress=True needs tqdm: pip install tqdm, or all extras by pip install 'jaxnn[examples]'"
                ) from None
        else:
            bar = tqdm(range(epochs), unit="epoch")
            return bar, lambda row: bar.set_postfix({name: f"{value:.4g}" for name, value in row.items()})
    return range(epochs), lambda row: None
