"""Training from the host: `fit`, `evaluate` and `predict`.

They look at the values of what enters, compile once each, keep the data on the device, and name the step and the
leaf when training diverges. The pure functions that they drive are in `steps`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.backprop import backprop, cost
from jaxnn.checks import (
    accumulator,
    as_key,
    batch_size,
    example_shape,
    is_floating,
    spec_tree,
    static_spec,
    usable_weights,
    whole_number,
    yes_or_no,
)
from jaxnn.diagnostics.report import report_each
from jaxnn.divergence import VALIDATION_LOSS, DivergenceError, diverged
from jaxnn.intake import check_fit_arguments, check_train_state, check_values, on_device
from jaxnn.mistakes import is_traced, loss_record
from jaxnn.steps import (
    Augment,
    DataSet,
    EpochResult,
    Gradient,
    Metrics,
    NamedMetrics,
    batch_sums,
    check_augment,
    check_batch_size,
    epoch_program,
    in_batches,
    init_train_state,
    means_of,
    named_metrics,
    rows_of,
)
from jaxnn.stopping import Monitor, Monitors
from jaxnn.types import Array, Fit, Key, Layer, Loss, Optimizer, Params, Penalty, TrainState, Tree
from jaxnn.watching import begin, best_state, copied, look, outcome, stopped, watch_of

EVALUATION_BATCH = 1024  # examples at a time where no gradient is kept; memory, not results, depends on it
CACHED_PROGRAMS = 64  # compiled programs kept


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
    best: Monitor | None = None,
    watch: str | None = None,
    restore_best: bool = True,
    monitors: Monitors | None = None,
    diagnose: int = 0,
) -> Fit:
    """Trains a network; every epoch is one call of one compiled program.

    Same arguments and key on the same machine give bit-identical results, and so do a + b epochs in one call
    or in two, the second going on from the first's `train_state`, and its `monitors` where there are such. The
    caller's arrays are left as they are.

    With `stopping`, training ends before the last epoch when the watched figure has not improved for so long, and the
    state that it gives back is the best one: parameters, running statistics, the optimizer's state and the step of the
    best epoch, copied before their memory is used again. All that is watched must stay finite.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        data: (x, target) or (x, target, weights), arrays with N examples first; x may be a tree of such.
        epochs: how many passes over the data, at least 1.
        batch_size: B, from 1 to N. A last, smaller batch is a step too.
        key: a PRNG key or an integer seed. With train_state it may be left out: the state's own key goes on.
        validation: data of the same form, evaluated after every epoch.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of the loss.
        train_state: go on from there.
        shuffle: False keeps the order of the data.
        check_data: False skips looking for values that are not finite, and for bad labels.
        progress: show a progress bar; by default if tqdm is installed and the output is a terminal.
        augment: a function (key, x) -> x, such as those of `augment`, applied to each training batch in the compiled
            epoch, with a key of its own in every step. Evaluation never augments. Programs are found again by its
            identity, so make it once.
        stopping: `stopping.early_stopping(patience)`.
        plateau: `stopping.reduce_on_plateau(factor)`; the updates of the next epochs are multiplied by its scale.
        best: `stopping.keep_best()`, where the best state is wanted without stopping or where it must not be restored.
        watch: what these three read: the name of a list in the history; by default "validation_loss", and "loss"
            where there is no validation.
        restore_best: whether train_state is the best one where training was stopped early. False with `stopping` and
            no `best` saves its memory.
        monitors: `Fit.monitors` of the training that goes on.
        diagnose: how many steps of each epoch are measured for `Fit.diagnostics`; 1 is its last full batch.

    Returns:
        A Fit: train_state, history with one float per epoch in each of its lists, why it ended, and the best epoch.

    Raises:
        ValueError, TypeError: before anything compiles, for data, labels, sizes or parameters that do not fit.
        DivergenceError: if a step's loss, a parameter at an epoch's end, the validation loss or what is watched is not
            finite. It names the step and the first such gradient or parameter, and carries the last good state.

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
    for what, flag in (("shuffle", shuffle), ("check_data", check_data), ("restore_best", restore_best)):
        yes_or_no(f"fit: {what}", flag)
    named, resumed = named_metrics(metrics), train_state
    figures: tuple[str, ...] = (*(name for name, _ in named), "loss")
    if validation is not None:
        figures += tuple(f"validation_{name}" for name in figures)
    keep = watch_of(watch, figures, stopping, plateau, best, restore_best)
    memory = begin(keep, monitors)
    data = on_device("data", data)
    sizes = [("data", data)]
    if validation is not None:
        validation = on_device("validation", validation)
        sizes.append(("validation", validation))
    check_batch_size(batch_size, data[0], diagnose)
    if augment is not None:
        check_augment(augment, data[0], batch_size)
    if train_state is None:
        if key is None:
            raise ValueError("fit: key is missing; give jax.random.key(seed) or an integer seed")
        start, first_key = _compiled_init(net, optimizer, static_spec(data[0])), as_key(key)
        spec = jax.eval_shape(start, first_key)
    else:
        check_train_state(net, train_state, data[0], optimizer, key_given=key is not None)
        if key is not None:
            train_state = train_state._replace(key=as_key(key))
        spec = train_state
    for what, part in sizes:
        check_values(what, net, loss, spec, part, named, look=check_data)
    if train_state is None:
        train_state = start(first_key)  # nothing has compiled before

    parts = (net, loss, optimizer, batch_size, named, gradient, penalty, shuffle, augment, diagnose)
    run = _compiled_epoch(*parts)
    steps = -(-len(jax.tree.leaves(data[1])[0]) // batch_size)
    history: dict[str, list[float]] = {}
    measured: list[Any] = []
    spare = copied(train_state)  # its buffers are donated to the epoch's result; the good state is kept
    owned = resumed is None
    passes, show = _progress(0 if stopped(memory) else epochs, progress)
    for _ in passes:
        began = time.perf_counter()
        scale = memory.plateau.scale if memory is not None and memory.plateau is not None else None
        new_state, result = run(spare, train_state, data, scale)
        if not bool(result.finite):
            raise diverged(train_state, data, scale, parts, history, best_state(memory))
        spare = train_state if owned else copied(new_state)  # the caller's own state is never donated
        train_state, owned = new_state, True
        row = {"loss": float(result.loss), **{name: float(value) for name, value in result.metrics.items()}}
        seconds = time.perf_counter() - began
        if validation is not None:
            scores = _evaluate(net, loss, train_state, validation, named, EVALUATION_BATCH)
            row |= {f"validation_{name}": score for name, score in scores.items()}
        show(row)
        aside = {"seconds": seconds} if scale is None else {"seconds": seconds, "update_scale": float(scale)}
        for name, value in (row | aside).items():
            history.setdefault(name, []).append(value)
        bad = [name for name in (VALIDATION_LOSS, keep.name) if name in row and not math.isfinite(row[name])]
        if bad:
            step = int(train_state.step)
            raise DivergenceError(step, (step - 1) // steps, bad[0], train_state, history, best_state(memory))
        if diagnose:
            measured.append(result.diagnostics)
        if memory is not None and keep.name is not None:
            memory = look(keep, memory, row[keep.name], train_state)
            if stopped(memory):
                break
    diagnoses = tuple(point for part in jax.device_get(measured) for point in report_each(net, part))
    return outcome(keep, memory, train_state, history, steps)._replace(diagnostics=diagnoses)


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
        data: (x, target) or (x, target, weights), N examples first.
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
    check_train_state(net, train_state, x)
    return _compiled_predict(net, batch_size)(train_state.params, train_state.state, x)


# ---------------------------------------------------------------- the compiled programs


@lru_cache(maxsize=CACHED_PROGRAMS)
def _compiled_init(net: Layer, optimizer: Optimizer, x_spec: Any) -> Callable[[Key], TrainState]:
    x = spec_tree(x_spec)
    dtype = next((leaf.dtype for leaf in jax.tree.leaves(x) if is_floating(leaf)), jnp.float32)

    def initialisation(key: Key) -> TrainState:
        return init_train_state(net, optimizer, key, example_shape(x), dtype)

    return jax.jit(initialisation)


@lru_cache(maxsize=CACHED_PROGRAMS)
def _compiled_epoch(*parts: Any) -> Callable[..., tuple[TrainState, EpochResult]]:
    """The epoch, its result written into the buffers of its first argument."""
    run = epoch_program(*parts)

    def training(
        spare: TrainState, train_state: TrainState, data: DataSet, update_scale: Array | None
    ) -> tuple[TrainState, EpochResult]:
        return run(train_state, data, update_scale)

    return jax.jit(training, donate_argnums=0, keep_unused=True)


@lru_cache(maxsize=CACHED_PROGRAMS)
def _compiled_evaluation(
    net: Layer, loss: Loss, batch: int, metrics: NamedMetrics
) -> Callable[[Params, Any, DataSet], dict[str, Array]]:
    def evaluation(params: Params, state: Any, data: DataSet) -> dict[str, Array]:
        def one(carry: Any, rows: Array) -> tuple[Any, dict[str, Array]]:
            x, target, weights = rows_of(data, rows)
            output = net.forward(params, state, x)[0]
            value = cost(loss, output, target)
            value = value.astype(accumulator(value.dtype))
            w = jnp.ones_like(value) if weights is None else usable_weights(weights, value.dtype)
            mean = jnp.where(w == 0, 0, w * value).sum() / jnp.maximum(w.sum(), jnp.finfo(w.dtype).tiny)
            return carry, batch_sums(mean, output, target, weights, metrics)

        n = batch_size("x", data[0])
        return means_of(in_batches(one, (), jnp.arange(n), min(batch, n))[1])

    return jax.jit(evaluation)


@lru_cache(maxsize=CACHED_PROGRAMS)
def _compiled_predict(net: Layer, batch: int) -> Callable[[Params, Any, Tree], Any]:
    def prediction(params: Params, state: Any, x: Tree) -> Any:
        n = batch_size("x", x)
        full = n // batch
        cut = lambda start, stop: jax.tree.map(lambda leaf: leaf[start:stop], x)  # noqa: E731
        forward = lambda x: net.forward(params, state, x)[0]  # noqa: E731
        outs = []
        if full:
            stacked = jax.tree.map(lambda leaf: leaf.reshape(full, batch, *leaf.shape[1:]), cut(0, full * batch))
            outs.append(jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), jax.lax.map(forward, stacked)))
        if n % batch:
            outs.append(forward(cut(full * batch, n)))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)

    return jax.jit(prediction)


def _evaluate(
    net: Layer,
    loss: Loss,
    train_state: TrainState,
    data: DataSet,
    metrics: NamedMetrics,
    batch: int,
) -> dict[str, Any]:
    scores = _compiled_evaluation(net, loss, batch, metrics)(train_state.params, train_state.state, data)
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
