"""An epoch of training as a pure function: a scan over batches whose number is known when it is traced.

It can be differentiated and mapped. `chunks` has the same steps as a program whose start and length are inputs.
Letters: N examples, B batch size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_concrete, is_floating
from jaxnn.checks import weight_values, whole_number, yes_or_no
from jaxnn.compiled import PureFunction
from jaxnn.diagnostics.measures import HEALTH
from jaxnn.mistakes import training_records, whole_state
from jaxnn.optimizers.parts import overflowed
from jaxnn.passes.backprop import backprop, penalty_value
from jaxnn.passes.parts import costs
from jaxnn.shapes import batch_size as size_of
from jaxnn.sources import in_memory
from jaxnn.spmd.batches import Home, home_of
from jaxnn.training.batches import (
    batch_of,
    check_batch_size,
    check_padding,
    check_shards,
    check_sizes,
    epoch_order,
    in_batches,
    in_measured_batches,
    off_the_end,
    rest_of,
)
from jaxnn.training.means import DataSet, Metrics, NamedMetrics, batch_sums, in_moderation, named_metrics
from jaxnn.training.results import EpochResult, Notes, all_finite, cursor
from jaxnn.training.steps import Augment, Gradient, augmented, train_step
from jaxnn.types import Array, Key, Layer, Loss, Optimizer, Penalty, TrainState, Tree


class Epoch(PureFunction):
    """One pass over the data: the step that is taken for each batch, and which batches there are.

    A pure function `(train_state, x, target, weights=None, *, update_scale=None) -> (train_state, EpochResult)`.
    """

    step: train_step
    batch_size: int
    metrics: NamedMetrics = ()
    shuffle: bool = True
    measure: int = 0
    skip_nonfinite: int = 0  # for `chunks.Chunk`
    home: Home | None = None  # where the data lie, if that is known
    recompute: int = 0  # n ≥ 1: reverse differentiation keeps only the state of every n-th step
    order_key: Key | None = None  # the order of each epoch is drawn from this key instead of the state's
    shards: int | None = None  # the number of parts that examples are drawn from in turn; None: as the data lie

    def __post_init__(self) -> None:
        if self.measure:
            dataclasses.replace(self.step, measure=True)  # refuses a gradient that measures nothing

    def __call__(
        self,
        train_state: TrainState,
        x: Tree,
        target: Tree,
        weights: Array | None = None,
        *,
        update_scale: Array | float | None = None,
    ) -> tuple[TrainState, EpochResult]:
        data = (x, target) if weights is None else (x, target, weights)
        return self.over(train_state, data, update_scale, self.checked(train_state, data))

    def over(
        self, train_state: TrainState, data: DataSet, update_scale: Array | float | None, start: int | None
    ) -> tuple[TrainState, EpochResult]:
        """The epoch from a position on, None if that is traced; checks nothing."""
        self = self.at_home(data)
        (data, factor), batch, n = self.prepared(data), self.batch_size, self.size(data)
        state = self.begun(train_state)
        order = rest_of(self.order(state, n), state, batch, start)

        def measured(state: TrainState, rows: Array, measure: bool = True) -> tuple[TrainState, Notes, Any]:
            taken = self.take(
                state, jnp.maximum(rows, 0) if start is None else rows, data, factor, update_scale, measure
            )
            return _unless_over(rows, state, *taken) if start is None else taken

        def one(state: TrainState, rows: Array) -> tuple[TrainState, Notes]:
            return measured(state, rows, measure=False)[:2]

        times = min(self.measure, (n - (start or 0)) // batch)
        if times:
            state, notes, diagnostics = in_measured_batches(one, measured, state, order, batch, times)
        else:
            (state, notes), diagnostics = in_batches(one, state, order, batch, self.recompute), ()
        result = notes.result(state.params, diagnostics)
        if start is None:
            off = off_the_end(train_state.position, n, batch)
            means = jax.tree.map(lambda mean: jnp.where(off, jnp.nan, mean), (result.loss, result.metrics))
            result = result._replace(loss=means[0], metrics=means[1], finite=result.finite & ~off)
        return state._replace(**cursor(state.epoch + 1, 0)), result

    def at_home(self, data: DataSet, *, look: bool = False) -> Epoch:
        """The epoch over those data, which knows where they lie and the number of shards.

        With `look` the arrays themselves say how they are divided, otherwise their types alone, which know of Explicit
        axes only: the same within `jax.jit` and without. Raises ValueError for what cannot be divided.
        """
        home, n, shards = self.home or home_of(data), self.size(data), self.shards
        if shards is None:
            typed = home is not None and bool(getattr(home.mesh, "explicit_axes", ()))
            shards = home.parts if home is not None and (look or typed) else 1
        check_shards(shards, n)
        self.check_padding(n, home, shards)
        return dataclasses.replace(self, home=home, shards=shards)

    def check_padding(self, n: int, home: Home | None, shards: int) -> None:
        """Raises ValueError if a batch would be filled up that must not be."""
        check_padding(self.step.net.couples_batch, n, self.batch_size, home, shards)

    def size(self, data: DataSet) -> int:
        """The number of examples."""
        return size_of("x", data[0])

    def order(self, state: TrainState, n: int) -> Array:
        """The order of the examples in the epoch that the state has reached, [N]."""
        return epoch_order(
            state.key if self.order_key is None else self.order_key, state.epoch, n, self.shuffle, self.shards or 1
        )

    def prepared(self, data: DataSet) -> tuple[DataSet, Array | float]:
        """The data as `take` reads them, and the factor of its sums."""
        return in_moderation(data)

    def begun(self, state: TrainState) -> TrainState:
        """The state as `take` expects it, with the learning rate of this epoch's optimizer."""
        return self.step.begun(state)

    def checked(self, train_state: TrainState, data: DataSet) -> int | None:
        """The position to continue from, None if it is traced; raises an error for what does not fit."""
        whole_state("train_epoch: ", train_state)
        in_memory("train_epoch: data", data)
        check_sizes("data", data)  # the gather promises to stay within bounds
        if len(data) == 3 and is_concrete(data[2]):
            weight_values("data: weights", data[2])
        return self.start(train_state, data)

    def start(self, train_state: TrainState, data: DataSet) -> int | None:
        """The position to continue from, None if it is traced; ValueError if it or the batch size does not fit."""
        position = train_state.position
        start = int(position) if isinstance(position, int) or is_concrete(position) else None
        check_batch_size(self.batch_size, self.size(data), self.measure, start or 0)
        return start

    @property
    def augmentation(self) -> Augment | None:
        """The function that is applied to x of each batch."""
        return self.step.augment

    def batch(self, state: TrainState, rows: Array, data: Any) -> Any:
        """The batch of those rows, augmented as in the step; its first part is x."""
        batch = self.gathered(rows, data)
        if self.augmentation is None:
            return batch
        x, *others = batch if isinstance(batch, tuple) else (batch,)
        x = augmented(self.augmentation, jax.random.fold_in(state.key, state.step), x)
        return (x, *others) if isinstance(batch, tuple) else x

    def gathered(self, rows: Array, data: Any) -> Any:
        """The batch of those rows, with weights where there are any or a device has fewer examples."""
        x, target, weights = batch_of(data, rows, self.home, self.shards or 1)
        return (x, target) if weights is None else (x, target, weights)

    def take(
        self,
        state: TrainState,
        rows: Array,
        data: DataSet,
        factor: Array | float,
        update_scale: Array | float | None,
        measure: bool = False,
    ) -> tuple[TrainState, Notes, Any]:
        """Takes the step on those rows; also returns what is noted of it, and its measures if they are wanted."""
        x, target, weights = batch_of(data, rows, self.home, self.shards or 1)
        step = dataclasses.replace(self.step, measure=True) if measure else self.step
        new, out = step.take(state, x, target, weights, update_scale)
        figures, whole = {"loss": out.loss}, None
        if step.penalty is not None:  # computed once, as XLA sees: the pass has the same
            figures["loss"], whole = costs(step.loss, out.output, target, weights).mean, out.loss
            figures["penalty"] = penalty_value(step.penalty, state.params).astype(whole.dtype)
        sums = batch_sums(factor, out.weight, figures, out.output, target, weights, self.metrics)
        notes, measures = Notes(figures["loss"], whole, sums), out.readings.get(HEALTH.name)
        if not self.skip_nonfinite:
            return new, notes, measures
        sound, overflow = all_finite(out.grads), overflowed(state.opt_state, new.opt_state)
        skipped = ~(jnp.isfinite(out.loss) & (sound if overflow is None else sound | overflow))
        sums = jax.tree.map(lambda value: jnp.where(skipped, 0, value), sums)
        return moved(~skipped, new, state), notes._replace(sums=sums, skipped=skipped), measures


def moved(where: Array, new: TrainState, old: TrainState) -> TrainState:
    """The new state where the condition holds, otherwise the old one."""

    def chosen(name: str) -> Tree:
        return jax.tree.map(lambda new, old: jnp.where(where, new, old), getattr(new, name), getattr(old, name))

    names = ("params", "state", "opt_state", "step", *(() if new.key is old.key else ("key",)))  # some steps move it
    return old._replace(**{name: chosen(name) for name in names})


def _unless_over(
    rows: Array, old: TrainState, new: TrainState, notes: Notes, measures: Any
) -> tuple[TrainState, Notes, Any]:
    """The step; if it was taken before (its rows are −1), the old state, and nothing noted."""
    ran = rows[-1] >= 0
    sums = jax.tree.map(lambda value: jnp.where(ran, value, 0), notes.sums)
    notes = notes._replace(loss=jnp.where(ran, notes.loss, jnp.nan), sums=sums, ran=ran)
    measures = jax.tree.map(lambda value: jnp.where(ran, value, jnp.nan) if is_floating(value) else value, measures)
    return moved(ran, new, old), notes, measures


def train_epoch(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    batch_size: int,
    metrics: Metrics = (),
    gradient: Gradient = backprop,
    penalty: Penalty | None = None,
    shuffle: bool = True,
    augment: Augment | None = None,
    measure: int = 0,
    shards: int | None = None,
) -> Epoch:
    """One pass over the data in shuffled batches: a `lax.scan` of steps, each batch gathered on the device.

    The full batches are scanned; a remainder is one more step of its own static shape in the same program, so that
    no padded example enters batch statistics. The order is `shuffled(fold_in(key, epoch), N)`.

    A state within an epoch (`position` > 0) finishes that epoch: the examples from its position on are taken in batches
    of B, whatever the size of those before. If such a position is traced, steps that were taken before are computed
    and discarded, and a position p for which N − p is neither a multiple of B nor has the remainder N mod B turns the
    loss into NaN.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        batch_size: B, from 1 to N.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict; see `metrics` for weights and
            masks of entries.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of what is minimised.
        shuffle: False keeps the order of the data.
        augment: a function (key, x) -> x of the same shape, applied to each batch.
        measure: the number of steps that are measured, at equal distances among the full batches that are left, the
            last at the last one. 0 costs nothing.
        shards: the number of parts of N/shards consecutive examples from which a batch is drawn in equal numbers; by
            default 1, or that of data which Explicit axes divide. See `placement`.

    Returns:
        A pure function `(train_state, x, target, weights=None, *, update_scale=None) -> (train_state, EpochResult)`.
        All updates of the epoch are multiplied by update_scale, if given. Under `jax.jit(..., donate_argnums=0)` the
        state is updated in place; under `jax.vmap` it trains an ensemble. Learning rates and extra arguments are
        those of `train_step`.

    Raises:
        ValueError: if the batch size is below 1 or above N, or fewer batches are full than are to be measured; when
            called, if x, target and weights differ in number, and as `backprop`.

    >>> from jaxnn import init_train_state, losses, mlp, sgd
    >>> net, optimizer = mlp([3, 1]), sgd(0.1)
    >>> epoch = jax.jit(train_epoch(net, losses.mse, optimizer, batch_size=4))
    >>> state, result = epoch(init_train_state(net, optimizer, 0, (2,)), jnp.ones((10, 2)), jnp.ones((10, 1)))
    >>> int(state.step), result.losses.shape  # batches of 4, 4 and 2
    (3, (3,))
    """
    training_records("train_epoch", net, loss, optimizer, gradient, penalty)
    batch = whole_number("batch_size", batch_size, least=1)
    measure = whole_number("measure", measure, least=0)
    shuffle = yes_or_no("shuffle", shuffle)
    step = train_step(net, loss, optimizer, gradient=gradient, penalty=penalty, augment=augment)
    shards = None if shards is None else whole_number("shards", shards, least=1)
    return Epoch(step, batch, named_metrics(metrics), shuffle, measure, shards=shards)
