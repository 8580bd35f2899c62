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
)
from jaxnn.combinators import ordered_leaves
from jaxnn.intake import check_fit_records, check_train_state, check_values, on_device
from jaxnn.steps import (
    DataSet,
    EpochResult,
    Gradient,
    Metrics,
    NamedMetrics,
    batch_sums,
    check_batch_size,
    epoch_order,
    epoch_program,
    in_batches,
    init_train_state,
    means_of,
    named_metrics,
    rows_of,
    train_step,
)
from jaxnn.types import Array, Fit, Key, Layer, Loss, Optimizer, Params, Penalty, TrainState, Tree

EVALUATION_BATCH = 1024  # examples at a time where no gradient is kept; memory, not results, depends on it
CACHED_PROGRAMS = 64  # compiled programs kept
VALIDATION_LOSS = "validation_loss"  # in the history


class DivergenceError(ArithmeticError):
    """Training met a loss or a parameter that is not finite, or a validation loss that is not.

    Attributes:
        step: the optimizer step at which it happened, counted from 0 over the whole training.
        epoch: the epoch of that step, likewise.
        leaf: the first leaf that is not finite, in the network's own order, such as "grads/dense_0/w"; or "loss", or
            "validation_loss".
        train_state: the last good state, from before that step; where the validation loss is not finite, the state
            that gave it, whose parameters are finite.
        history: the history of the epochs that were completed, that one included where it is the validation's.
    """

    def __init__(self, step: int, epoch: int, leaf: str, train_state: TrainState, history: dict[str, list[float]]):
        where = f"step {step} (epoch {epoch})"
        if leaf == VALIDATION_LOSS:
            complaint = (
                f"the validation loss after {where} is not finite, though the training loss and all parameters are. "
                "The state that gave it is in this error's train_state; look at the validation data and the loss"
            )
        else:
            complaint = (
                f"training diverged at {where}: {leaf} is not finite. The state before that step is in this error's "
                "train_state; lower the learning rate, or look at the data and the loss"
            )
        super().__init__(complaint)
        self.step, self.epoch, self.leaf = step, epoch, leaf
        self.train_state, self.history = train_state, history

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.epoch, self.leaf, self.train_state, self.history)


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
) -> Fit:
    """Trains a network; every epoch is one call of one compiled program.

    Same arguments and key on the same machine give bit-identical results, and so do a + b epochs in one call
    or in two, the second going on from the first's `train_state`. The caller's arrays are left as they are.

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

    Returns:
        A Fit: train_state, and history with one float per epoch in each of its lists.

    Raises:
        ValueError, TypeError: before anything compiles, for data, labels, sizes or parameters that do not fit.
        DivergenceError: if a step's loss, a parameter at an epoch's end, or the validation loss is not finite. It
            names the step and the first such gradient or parameter, and carries the last good state.

    >>> from jaxnn import losses, mlp, sgd
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> result = fit(mlp([8, 1]), losses.mse, sgd(0.1), (x, x**2), key=0, epochs=3, batch_size=8)
    >>> len(result.history["loss"]), int(result.train_state.step)
    (3, 12)
    """
    check_fit_records(net, loss, optimizer)
    epochs = whole_number("fit: epochs", epochs, least=1)
    batch_size = whole_number("fit: batch_size", batch_size, least=1)
    named, resumed = named_metrics(metrics), train_state
    data = on_device("data", data)
    sizes = [("data", data)]
    if validation is not None:
        validation = on_device("validation", validation)
        sizes.append(("validation", validation))
    check_batch_size(batch_size, data[0])
    if train_state is None:
        if key is None:
            raise ValueError("fit: key is missing; give jax.random.key(seed) or an integer seed")
        start, first_key = _compiled_init(net, optimizer, static_spec(data[0])), as_key(key)
        spec = jax.eval_shape(start, first_key)
    else:
        check_train_state(net, train_state, data[0], optimizer)
        if key is not None:
            train_state = train_state._replace(key=as_key(key))
        spec = train_state
    for what, part in sizes:
        check_values(what, net, loss, spec, part, named, look=check_data)
    if train_state is None:
        train_state = start(first_key)  # nothing has compiled before

    parts = (net, loss, optimizer, batch_size, named, gradient, penalty, shuffle)
    run = _compiled_epoch(*parts)
    history: dict[str, list[float]] = {}
    spare = _copy(train_state)  # its buffers are donated to the epoch's result; the good state is kept
    owned = resumed is None
    passes, show = _progress(epochs, progress)
    for _ in passes:
        began = time.perf_counter()
        new_state, result = run(spare, train_state, data)
        if not bool(result.finite):
            raise _diagnose(net, train_state, data, parts, history)
        spare = train_state if owned else _copy(new_state)  # the caller's own state is never donated
        train_state, owned = new_state, True
        row = {"loss": float(result.loss), **{name: float(value) for name, value in result.metrics.items()}}
        seconds = time.perf_counter() - began
        if validation is not None:
            scores = _evaluate(net, loss, train_state, validation, named, EVALUATION_BATCH)
            row |= {f"validation_{name}": score for name, score in scores.items()}
        show(row)
        for name, value in {**row, "seconds": seconds}.items():
            history.setdefault(name, []).append(value)
        if validation is not None and not math.isfinite(row[VALIDATION_LOSS]):
            step = int(train_state.step)
            raise DivergenceError(step, (step - 1) // len(result.losses), VALIDATION_LOSS, train_state, history)
    return Fit(train_state, history)


def evaluate(
    net: Layer,
    loss: Loss,
    train_state: TrainState,
    data: DataSet,
    *,
    metrics: Metrics = (),
    batch_size: int = EVALUATION_BATCH,
    check_data: bool = True,
) -> dict[str, float]:
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
        {"loss": Σ wₙCₙ / Σ wₙ, each metric by name}.

    Raises:
        ValueError, TypeError: as `fit`.

    >>> from jaxnn import losses, mlp, sgd
    >>> net = mlp([1], w_init=lambda key, shape, dtype: jnp.ones(shape, dtype))
    >>> state = init_train_state(net, sgd(0.1), 0, (2,))
    >>> evaluate(net, losses.mse, state, (jnp.ones((5, 2)), jnp.zeros((5, 1))))
    {'loss': 4.0}
    """
    batch_size = whole_number("evaluate: batch_size", batch_size, least=1)
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
def _compiled_epoch(*parts: Any) -> Callable[[TrainState, TrainState, DataSet], tuple[TrainState, EpochResult]]:
    """The epoch, its result written into the buffers of its first argument."""
    run = epoch_program(*parts)

    def training(spare: TrainState, train_state: TrainState, data: DataSet) -> tuple[TrainState, EpochResult]:
        return run(train_state, data)

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
) -> dict[str, float]:
    scores = _compiled_evaluation(net, loss, batch, metrics)(train_state.params, train_state.state, data)
    return {name: float(score) for name, score in scores.items()}


def _copy(tree: Tree) -> Tree:
    return jax.device_put(tree, may_alias=False)


# ---------------------------------------------------------------- divergence


@lru_cache(maxsize=CACHED_PROGRAMS)
def _compiled_replay(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch: int,
    _metrics: Any,
    gradient: Gradient,
    penalty: Any,
    shuffle: bool,
) -> Callable[[TrainState, DataSet], tuple[TrainState, Tree]]:
    """The same epoch with every step guarded: it stands still at the first step that is not finite."""
    step = train_step(net, loss, optimizer, gradient=gradient, penalty=penalty)

    def replay(train_state: TrainState, data: DataSet) -> tuple[TrainState, Tree]:
        def one(carry: tuple[TrainState, Array], rows: Array) -> tuple[tuple[TrainState, Array], Tree]:
            train_state, going = carry
            new_state, out = step(train_state, *rows_of(data, rows))
            watched = {"loss": out.loss, "grads": out.grads, "params": new_state.params}
            good = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), watched)
            going = going & jnp.stack(jax.tree.leaves(good)).all()
            kept = jax.tree.map(lambda new, old: jnp.where(going, new, old), new_state, train_state)
            return (kept, going), good

        order = epoch_order(train_state, data[0], batch, shuffle)
        (train_state, _), good = in_batches(one, (train_state, jnp.asarray(True)), order, batch)
        return train_state, good

    return jax.jit(replay)


def _diagnose(
    net: Layer,
    train_state: TrainState,
    data: DataSet,
    parts: tuple[Any, ...],
    history: dict[str, list[float]],
) -> DivergenceError:
    """Replays the epoch, which is deterministic, to find the step and the first leaf that is not finite."""
    first_step = int(train_state.step)
    last_good, good = _compiled_replay(*parts)(train_state, data)
    step = int(last_good.step) - first_step
    flags = {"loss": good["loss"]}
    for part in ("grads", "params"):
        flags |= {f"{part}/{path}": flag for path, flag in ordered_leaves(net, good[part]).items()}
    bad = [name for name, flag in flags.items() if step < len(flag) and not bool(flag[step])]
    leaves = [name for name in bad if name != "loss"] or bad or ["the loss"]
    batches = len(good["loss"])
    return DivergenceError(first_step + step, (first_step + step) // batches, leaves[0], last_good, history)


# ---------------------------------------------------------------- the progress bar


def _progress(epochs: int, wanted: bool | None) -> tuple[Iterable[int], Callable[[dict[str, float]], None]]:
    """The epochs, behind a tqdm bar where it is wanted and installed, and how to show an epoch's figures on it."""
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
