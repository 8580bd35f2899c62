"""A chunk of the steps of an epoch as one compiled program: a loop whose start and length are inputs.

`fit` and `sweep` drive it, and `replay` repeats it: an epoch in one piece or in several runs the same program, and has
the same bits. It takes the steps of `Epoch.take`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.compiled import program
from jaxnn.diagnostics.measures import Measures
from jaxnn.optimizers.parts import overflowed
from jaxnn.records import Record
from jaxnn.spmd.loops import while_loop
from jaxnn.stopping import Monitors
from jaxnn.training.batches import batch_of, in_batches, rest_of
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import DataSet
from jaxnn.training.monitoring import copied
from jaxnn.training.parts import FromSource, Part
from jaxnn.training.results import EpochResult, Notes
from jaxnn.types import EPOCH_START, Array, TrainState, Tree


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


class Saved(NamedTuple):
    """The progress of a training, as it is in a checkpoint."""

    train_state: TrainState
    monitors: Monitors | None
    noted: Noted | None  # of an epoch that has begun
    measures: Any  # [epochs, …] in each leaf; () if none are taken
    history: dict[str, list[float]]
    in_a_row: int  # steps skipped in a row
    seconds: float  # that the begun epoch has taken so far
    began: int  # the position at which the run began


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
    many as the epoch has left; the result covers all steps noted so far, and is finite if they are, whatever their
    mean. The full batches form `measure` equal blocks, counted back from the last one, and the last step of each block
    is measured.
    """

    epoch: Epoch
    rest: int  # the number of examples after the full batches

    def __call__(
        self, state: TrainState, data: DataSet | Part, update_scale: Array | None, noted: Noted, steps: Array
    ) -> tuple[TrainState, Noted, EpochResult]:
        epoch, batch = self.epoch, self.epoch.batch_size
        n = data.n if isinstance(data, Part) else epoch.size(data)
        # full batches, those before the state's position counted as if they had been of this size
        full = len(noted.notes.loss) - (self.rest > 0)
        start = jnp.asarray(state.position)
        left = (n - start) // batch
        first = full - left
        end = first + jnp.minimum(steps, left)
        state = epoch.begun(state)
        if isinstance(data, Part):  # which has the examples from the position on
            rows_at: Callable[..., Array] = data.rows
            examples, factor = data.prepared()
        else:
            order = epoch.order(state, n)
            rows_at = partial(jax.lax.dynamic_slice_in_dim, order)
            examples, factor = epoch.prepared(data)
        block = n // batch // max(epoch.measure, 1)

        def going(carry: _Carry) -> Array:
            return (carry.i < end) & self._goes_on(carry)

        def is_measured(carry: _Carry) -> Array:
            behind = full - 1 - carry.i
            return (behind % block == 0) & (behind // block < epoch.measure)

        def take(carry: _Carry, rows: Array, measure: bool = False) -> _Carry:
            new, notes, measures = _advance(_Advance(epoch, measure), carry.state, rows, examples, factor, update_scale)
            slot = epoch.measure - 1 - (full - 1 - carry.i) // block
            return _Carry(carry.i + 1, new, carry.noted.with_step(carry.i, slot, notes, measures))

        def take_full(carry: _Carry, measure: bool = False) -> _Carry:
            return take(carry, rows_at(start + (carry.i - first) * batch, batch), measure)

        def to_measured(carry: _Carry) -> _Carry:
            carry = while_loop(lambda carry: going(carry) & ~is_measured(carry), take_full, carry)
            return jax.lax.cond(going(carry), partial(take_full, measure=True), lambda carry: carry, carry)

        carry = _Carry(first, state, noted)
        carry = while_loop(going, to_measured if epoch.measure else take_full, carry)
        if self.rest:
            last = (steps > left) & self._goes_on(carry)
            rest = lambda carry: take(carry, rows_at(n - self.rest, self.rest))  # noqa: E731
            carry = jax.lax.cond(last, rest, lambda carry: carry, carry)
        position = jnp.minimum(start + (carry.i - first) * batch, n)
        over = position == n
        state = carry.state._replace(epoch=state.epoch + over.astype(jnp.int32), position=jnp.where(over, 0, position))
        result = carry.noted.notes.result(state.params, carry.noted.measures, whole=False)
        result = result._replace(finite=result.finite & self._goes_on(carry))
        return state, carry.noted, result

    def advance(
        self, spare: TrainState, state: TrainState, data: DataSet, update_scale: Array | None, noted: Noted, steps: int
    ) -> tuple[TrainState, Noted, EpochResult]:
        """Runs the compiled program on the data, in the memory of `spare`; on those of a source part by part.

        The state stays as it is. A thread reads the next part while one trains.
        """
        if not isinstance(data, FromSource):
            return run_chunk(self, spare, state, data, update_scale, noted, as_count(steps))
        first, position, batch = state, int(state.position), self.epoch.batch_size
        while True:
            part, stop = part_of(self.epoch, data, state, position)
            here = min(steps, -(-(stop - position) // batch))
            new, noted, result = run_chunk(self, spare, state, part, update_scale, noted, as_count(here))
            steps, position = steps - here, min(position + here * batch, stop)
            if steps:
                data.look_ahead()
            jax.block_until_ready(new)  # the memory of the part is read into again
            if not bool(result.finite) or not steps or position == part.n:
                return new, noted, result
            spare, state = (copied(new) if state is first else state)._replace(position=EPOCH_START), new

    def _goes_on(self, carry: _Carry) -> Array:
        """Whether fewer steps in a row were skipped than end the training."""
        skip = self.epoch.skip_nonfinite
        return carry.noted.in_a_row < skip if skip else jnp.asarray(True)

    def nothing_noted(self, state: TrainState, data: DataSet, update_scale: Array | None) -> Noted:
        """The notes of an epoch before its first step."""
        epoch, steps = self.epoch, -(-self.epoch.size(data) // self.epoch.batch_size)
        data = tuple(data) if isinstance(data, FromSource) else data  # shapes

        def step(state: TrainState, data: DataSet, update_scale: Array | None) -> tuple[Notes, Measures | None]:
            data, factor = epoch.prepared(data)
            advance, rows = _Advance(epoch, epoch.measure > 0), jnp.zeros(epoch.batch_size, jnp.int32)
            _, notes, measures = _advance(advance, epoch.begun(state), rows, data, factor, update_scale)
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
    return Chunk(epoch, (epoch.size(data) - position) % epoch.batch_size)


def part_of(epoch: Epoch, data: FromSource, state: TrainState, position: int) -> tuple[Part, int]:
    """The part of the epoch that a state has reached, with the example at that position, and the position behind it."""
    which = int(state.epoch), np.asarray(jax.random.key_data(state.key)).tobytes()
    return data.part(which, position, epoch.batch_size, partial(order_of, epoch, data, state))


def order_of(epoch: Epoch, data: FromSource, state: TrainState) -> np.ndarray | None:
    """The order of the examples in the epoch that a state has reached, on the host; None if it is that of the data."""
    return np.asarray(_order(_Order(epoch, data.source.length), state)) if epoch.shuffle else None


class _Order(Record):
    """The order of an epoch."""

    epoch: Epoch
    n: int

    def __call__(self, state: TrainState) -> Array:
        return self.epoch.order(state, self.n)


class Replay(Record):
    """The rest of an epoch with every step guarded, up to the first step that is not finite.

    With `skips`, up to the first whose parameters are not finite though its loss and gradients are. Returns the state
    before that step and, for each step, which leaves are finite, whether it was passed, and the learning rate.
    """

    epoch: Epoch
    start: int
    skips: bool
    stop: int = 0  # of a part; 0 where the data are all

    def over(self, state: TrainState, data: DataSet, update_scale: Array | None) -> tuple[TrainState, Tree]:
        """The replay by the compiled program; of a source part by part."""
        if not isinstance(data, FromSource):
            return replay(self, state, data, update_scale)
        noted: list[Tree] = []
        position = self.start
        while position < data.source.length and (not noted or noted[-1][1][-1]):
            part, stop = part_of(self.epoch, data, state, position)
            guarded = dataclasses.replace(self, start=position - int(part.start), stop=stop - int(part.start))
            new, some = replay(guarded, state, part, update_scale)
            data.look_ahead()
            state, position = new, stop
            noted.append(jax.tree.map(np.asarray, some))
        return state, jax.tree.map(lambda *parts: np.concatenate(parts), *noted)

    def __call__(self, state: TrainState, data: DataSet | Part, update_scale: Array | None) -> tuple[TrainState, Tree]:
        epoch, step = self.epoch, self.epoch.step

        def one(carry: tuple[TrainState, Array], rows: Array) -> tuple[tuple[TrainState, Array], Tree]:
            state, going = carry
            x, target, weights = batch_of(examples, rows, epoch.home, epoch.shards or 1)
            new, out = step.take(state, x, target, weights, update_scale)
            before, after = {"loss": out.loss, "grads": out.grads}, {"params": new.params}
            good = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), before | after)
            overflow = overflowed(state.opt_state, new.opt_state)
            if overflow is not None:  # loss scaling skipped the step
                good["grads"] = jax.tree.map(lambda flag: flag | overflow, good["grads"])
            sound = jnp.stack(jax.tree.leaves(good)).all()
            skipped = ~jnp.stack(jax.tree.leaves({name: good[name] for name in before})).all() & self.skips
            going = going & (sound | skipped)
            kept = jax.tree.map(lambda new, old: jnp.where(going & sound, new, old), new, state)
            return (kept, going), (good, going, getattr(new.opt_state, "learning_rate", None))

        state = epoch.begun(state)
        if isinstance(data, Part):
            order, examples = jnp.arange(self.start, self.stop, dtype=jnp.int32), data.data
        else:
            examples = data
            order = rest_of(epoch.order(state, epoch.size(data)), state, epoch.batch_size, self.start)
        (state, _), noted = in_batches(one, (state, jnp.asarray(True)), order, epoch.batch_size)
        return state, noted


run_chunk = program("training", in_place=True)
replay = program("replay")
_order = program("order")
