"""An epoch of training: all of it as a pure function, or a chunk of its steps as one compiled program.

Both take the same steps. `Epoch` scans over batches whose number is known when it is traced, so that it can be
differentiated and mapped. `Chunk`, which `fit` drives, is a loop whose start and length are inputs of the program: an
epoch in one piece or in several runs the same program. Letters: N examples, B batch size.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import is_concrete, is_floating
from jaxnn.checks import weight_values, whole_number, yes_or_no
from jaxnn.compiled import PureFunction, program
from jaxnn.diagnostics.measures import HEALTH, Measures
from jaxnn.mistakes import training_records, whole_state
from jaxnn.passes.backprop import backprop, penalty_value
from jaxnn.passes.parts import costs
from jaxnn.placement import Home, while_loop
from jaxnn.records import Record
from jaxnn.shapes import batch_size as size_of
from jaxnn.training.batches import (
    batch_of,
    check_batch_size,
    check_sizes,
    epoch_order,
    in_batches,
    in_measured_batches,
    off_the_end,
    rest_of,
)
from jaxnn.training.means import DataSet, Metrics, NamedMetrics, batch_sums, in_moderation, named_metrics
from jaxnn.training.results import EpochResult, Notes, all_finite, cursor
from jaxnn.training.steps import Augment, Gradient, train_step
from jaxnn.types import Array, Layer, Loss, Optimizer, Penalty, TrainState, Tree


class Epoch(PureFunction):
    """One pass over the data: the step that is taken for each batch, and which batches there are.

    A pure function `(train_state, x, target, weights=None, *, update_scale=None) -> (train_state, EpochResult)`.
    """

    step: train_step
    batch_size: int
    metrics: NamedMetrics = ()
    shuffle: bool = True
    measure: int = 0
    skip_nonfinite: int = 0  # for `Chunk`
    home: Home | None = None  # where the data lie, if that is known

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
        start = self._checked(train_state, data)
        (data, factor), batch = in_moderation(data), self.batch_size
        state = self.step.begun(train_state)
        order = rest_of(epoch_order(state, x, self.shuffle), state, batch, start)

        def measured(state: TrainState, rows: Array, measure: bool = True) -> tuple[TrainState, Notes, Any]:
            taken = self.take(
                state, jnp.maximum(rows, 0) if start is None else rows, data, factor, update_scale, measure
            )
            return _unless_over(rows, state, *taken) if start is None else taken

        def one(state: TrainState, rows: Array) -> tuple[TrainState, Notes]:
            return measured(state, rows, measure=False)[:2]

        times = min(self.measure, (size_of("x", x) - (start or 0)) // batch)
        if times:
            state, notes, diagnostics = in_measured_batches(one, measured, state, order, batch, times)
        else:
            (state, notes), diagnostics = in_batches(one, state, order, batch), ()
        result = notes.result(state.params, diagnostics)
        if start is None:
            loss = jnp.where(off_the_end(train_state.position, len(order), batch), jnp.nan, result.loss)
            result = result._replace(loss=loss, finite=result.finite & jnp.isfinite(loss))
        return state._replace(**cursor(state.epoch + 1, 0)), result

    def _checked(self, train_state: TrainState, data: DataSet) -> int | None:
        """The position to continue from, None if it is traced; raises an error for what does not fit."""
        whole_state("train_epoch: ", train_state)
        check_sizes("data", data)  # the gather promises to stay within bounds
        if len(data) == 3 and is_concrete(data[2]):
            weight_values("data: weights", data[2])
        position = train_state.position
        start = int(position) if isinstance(position, int) or is_concrete(position) else None
        check_batch_size(self.batch_size, size_of("x", data[0]), self.measure, start or 0)
        return start

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
        x, target, weights = batch_of(data, rows, self.home)
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
        skipped = ~(jnp.isfinite(out.loss) & all_finite(out.grads))
        sums = jax.tree.map(lambda value: jnp.where(skipped, 0, value), sums)
        return _moved(~skipped, new, state), notes._replace(sums=sums, skipped=skipped), measures


def _moved(where: Array, new: TrainState, old: TrainState) -> TrainState:
    """The new state where the condition holds, otherwise the old one."""

    def chosen(name: str) -> Tree:
        return jax.tree.map(lambda new, old: jnp.where(where, new, old), getattr(new, name), getattr(old, name))

    return old._replace(**{name: chosen(name) for name in ("params", "state", "opt_state", "step")})


def _unless_over(
    rows: Array, old: TrainState, new: TrainState, notes: Notes, measures: Any
) -> tuple[TrainState, Notes, Any]:
    """The step; if it was taken before (its rows are −1), the old state, and nothing noted."""
    ran = rows[-1] >= 0
    sums = jax.tree.map(lambda value: jnp.where(ran, value, 0), notes.sums)
    notes = notes._replace(loss=jnp.where(ran, notes.loss, jnp.nan), sums=sums, ran=ran)
    measures = jax.tree.map(lambda value: jnp.where(ran, value, jnp.nan) if is_floating(value) else value, measures)
    return _moved(ran, new, old), notes, measures


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
    return Epoch(step, batch, named_metrics(metrics), shuffle, measure)


# ---------------------------------------------------------------- a chunk of steps, as one program


class _Advance(Record):
    """A step of an epoch, traced once for all programs that take it."""

    epoch: Epoch
    measure: bool = False

    def __call__(
        self, state: TrainState, rows: Array, data: DataSet, factor: Array | float, update_scale: Array | None
    ) -> tuple[TrainState, Notes, Measures | None]:
        return self.epoch.take(state, rows, data, factor, update_scale, self.measure)


_advance = program("step")


class Noted(NamedTuple):
    """The notes of an epoch so far; steps that were not taken have loss NaN and sums 0."""

    notes: Notes  # of every step, [steps, …]
    measures: Any  # of every measured step, [times, …], with step −1 until it is taken; () if none is measured
    in_a_row: Array  # the number of steps skipped in a row, up to now

    def with_step(self, i: Array, slot: Array, notes: Notes, measures: Measures | None) -> Noted:
        """Adds the i-th step of the epoch; its measures, if any, go into the slot."""

        def put(entries: Tree, at: Array, entry: Tree) -> Any:
            return jax.tree.map(lambda entries, entry: entries.at[at].set(entry), entries, entry)

        notes = notes._replace(ran=jnp.asarray(True))
        new = self._replace(notes=put(self.notes, i, notes))
        if measures is not None:
            new = new._replace(measures=put(self.measures, slot, measures))
        if notes.skipped is not None:
            new = new._replace(in_a_row=jnp.where(notes.skipped, self.in_a_row + 1, 0))
        return new


def as_count(n: int) -> Any:
    """A count as int32, without compiling anything."""
    return np.asarray(n, np.int32)


class _Carry(NamedTuple):
    """The carry of the loop: the number of the next step in the epoch, the state, and the notes."""

    i: Array
    state: TrainState
    noted: Noted


class Chunk(Record):
    """Some steps of an epoch, from the position of the state on: a loop whose start and length are traced.

    `(train_state, data, update_scale, noted, steps) -> (train_state, noted, EpochResult)` takes that many steps, or as
    many as the epoch has left; the result covers all steps noted so far. The full batches form `measure` equal blocks,
    counted back from the last one, and the last step of each block is measured.
    """

    epoch: Epoch
    rest: int  # the number of examples after the full batches

    def __call__(
        self, state: TrainState, data: DataSet, update_scale: Array | None, noted: Noted, steps: Array
    ) -> tuple[TrainState, Noted, EpochResult]:
        epoch, n, batch = self.epoch, size_of("x", data[0]), self.epoch.batch_size
        # full batches, those before the state's position counted as if they had been of this size
        full = len(noted.notes.loss) - (self.rest > 0)
        start = jnp.asarray(state.position)
        left = (n - start) // batch
        first = full - left
        end = first + jnp.minimum(steps, left)
        state = epoch.step.begun(state)
        order = epoch_order(state, data[0], epoch.shuffle)
        data, factor = in_moderation(data)
        block = n // batch // max(epoch.measure, 1)

        def going(carry: _Carry) -> Array:
            return (carry.i < end) & self._goes_on(carry)

        def is_measured(carry: _Carry) -> Array:
            behind = full - 1 - carry.i
            return (behind % block == 0) & (behind // block < epoch.measure)

        def take(carry: _Carry, rows: Array, measure: bool = False) -> _Carry:
            new, notes, measures = _advance(_Advance(epoch, measure), carry.state, rows, data, factor, update_scale)
            slot = epoch.measure - 1 - (full - 1 - carry.i) // block
            return _Carry(carry.i + 1, new, carry.noted.with_step(carry.i, slot, notes, measures))

        def take_full(carry: _Carry, measure: bool = False) -> _Carry:
            rows = jax.lax.dynamic_slice_in_dim(order, start + (carry.i - first) * batch, batch)
            return take(carry, rows, measure)

        def to_measured(carry: _Carry) -> _Carry:
            carry = while_loop(lambda carry: going(carry) & ~is_measured(carry), take_full, carry)
            return jax.lax.cond(going(carry), partial(take_full, measure=True), lambda carry: carry, carry)

        carry = _Carry(first, state, noted)
        carry = while_loop(going, to_measured if epoch.measure else take_full, carry)
        if self.rest:
            last = (steps > left) & self._goes_on(carry)
            carry = jax.lax.cond(last, lambda carry: take(carry, order[n - self.rest :]), lambda carry: carry, carry)
        position = jnp.minimum(start + (carry.i - first) * batch, n)
        over = position == n
        state = carry.state._replace(epoch=state.epoch + over.astype(jnp.int32), position=jnp.where(over, 0, position))
        result = carry.noted.notes.result(state.params, carry.noted.measures)
        result = result._replace(finite=result.finite & self._goes_on(carry))
        return state, carry.noted, result

    def _goes_on(self, carry: _Carry) -> Array:
        """Whether fewer steps in a row were skipped than end the training."""
        skip = self.epoch.skip_nonfinite
        return carry.noted.in_a_row < skip if skip else jnp.asarray(True)

    def nothing_noted(self, state: TrainState, data: DataSet, update_scale: Array | None) -> Noted:
        """The notes of an epoch before its first step."""
        epoch, steps = self.epoch, -(-size_of("x", data[0]) // self.epoch.batch_size)

        def step(state: TrainState, data: DataSet, update_scale: Array | None) -> tuple[Notes, Measures | None]:
            data, factor = in_moderation(data)
            advance, rows = _Advance(epoch, epoch.measure > 0), jnp.zeros(epoch.batch_size, jnp.int32)
            _, notes, measures = _advance(advance, epoch.step.begun(state), rows, data, factor, update_scale)
            return notes, measures

        def zeros(tree: Tree, times: int) -> Any:
            return jax.tree.map(lambda spec: np.zeros((times, *spec.shape), spec.dtype), tree)

        notes, measures = jax.eval_shape(step, state, data, update_scale)
        notes = zeros(notes, steps)._replace(ran=np.zeros(steps, np.bool_))
        notes.loss[...] = np.nan
        if measures is not None:
            measures = zeros(measures, epoch.measure)._replace(step=np.full(epoch.measure, -1, np.int32))
        return jax.device_put(Noted(notes, () if measures is None else measures, as_count(0)))  # compiles nothing


def chunk_of(epoch: Epoch, data: DataSet, position: int = 0) -> Chunk:
    """The chunk that continues an epoch over those data from a position."""
    return Chunk(epoch, (size_of("x", data[0]) - position) % epoch.batch_size)


class Replay(Record):
    """The rest of an epoch with every step guarded, up to the first step that is not finite.

    With `skips`, up to the first whose parameters are not finite though its loss and gradients are. Returns the state
    before that step and, for each step, which leaves are finite, whether it was passed, and the learning rate.
    """

    epoch: Epoch
    start: int
    skips: bool

    def __call__(self, state: TrainState, data: DataSet, update_scale: Array | None) -> tuple[TrainState, Tree]:
        epoch, step = self.epoch, self.epoch.step

        def one(carry: tuple[TrainState, Array], rows: Array) -> tuple[tuple[TrainState, Array], Tree]:
            state, going = carry
            new, out = step.take(state, *batch_of(data, rows, epoch.home), update_scale)
            before, after = {"loss": out.loss, "grads": out.grads}, {"params": new.params}
            good = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), before | after)
            sound = jnp.stack(jax.tree.leaves(good)).all()
            skipped = ~jnp.stack(jax.tree.leaves({name: good[name] for name in before})).all() & self.skips
            going = going & (sound | skipped)
            kept = jax.tree.map(lambda new, old: jnp.where(going & sound, new, old), new, state)
            return (kept, going), (good, going, getattr(new.opt_state, "learning_rate", None))

        state = step.begun(state)
        order = rest_of(epoch_order(state, data[0], epoch.shuffle), state, epoch.batch_size, self.start)
        (state, _), noted = in_batches(one, (state, jnp.asarray(True)), order, epoch.batch_size)
        return state, noted


run_chunk = program("training", in_place=True)
replay = program("replay")
