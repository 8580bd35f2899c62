"""Runs side by side: the members of a sweep as one program, whose start and length are inputs.

The members share the cursor, so that the loop over steps has one condition for all; each has parameters, keys and
settings of its own. Letters: K members, E epochs, N examples, B batch size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating
from jaxnn.checks import seen
from jaxnn.compiled import PureFunction
from jaxnn.mistakes import is_function
from jaxnn.records import fields_of
from jaxnn.shapes import example_shape
from jaxnn.stopping import Monitors
from jaxnn.training.batches import check_shards
from jaxnn.training.chunks import Noted, chunk_of
from jaxnn.training.epochs import Epoch
from jaxnn.training.evaluation import EVALUATION_BATCH
from jaxnn.training.monitoring import update_scale
from jaxnn.training.results import EpochResult
from jaxnn.training.run import Figures, missing, run
from jaxnn.training.steps import init_train_state, train_step
from jaxnn.training.turned import Turned, turned
from jaxnn.types import EPOCH_START, Array, Key, TrainState

Numbers = dict[str, Array]  # a setting's values, by its name
AXES: Any = (0, 0, 0, 0, 0, None, None)
TOGETHER = TrainState(*AXES)  # the axes of the members: they share the cursor


class Progress(NamedTuple):
    """The progress of K members."""

    train_state: TrainState  # [K, …]; a member that has ended is in an earlier epoch
    monitors: Monitors | None  # [K, …]
    noted: Noted  # [K, …], of the epoch that has begun
    epoch: Array  # the epoch that the members who have not ended are in
    position: Array  # the number of examples seen in it
    ended: Array  # [K], before this epoch


class Members(PureFunction):
    """Members of a sweep: their settings make a run of each.

    `(progress, numbers, data, validation, order, steps) -> (progress, figures, ran)` takes that many steps, or as many
    as the epoch has left, and closes an epoch that is over: validation, monitors, and figures [K], NaN otherwise; `ran`
    [K] says whose epoch is over.
    """

    make: Callable[..., Any]
    init: Callable[..., TrainState] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    shared_order: bool = False
    mesh: Any = None  # each device of which has different members, and all of the data

    def made(self, numbers: Numbers) -> run:
        """The run of one member."""
        try:
            made = self.make(**numbers)
        except (TypeError, ValueError, jax.errors.ConcretizationTypeError) as error:
            if any(isinstance(number, jax.core.Tracer) for number in numbers.values()):
                raise TypeError(
                    "sweep: make needs Python numbers for what a shape or a branch depends on, such as a width: give "
                    f"a sweep for each of them ({str(error).splitlines()[0]})"
                ) from error
            raise
        if isinstance(made, run):
            given = {name: getattr(self, name) for name in ("epochs", "batch_size")}
            given = {name: value for name, value in given.items() if value is not None}
            return replace(made, **given) if given else made
        if not is_function(made):
            raise TypeError(f"make must return a run or a step, got {seen(made)}")
        if self.epochs is None or self.batch_size is None:
            raise ValueError(
                f"make returned a step, {seen(made)}: give sweep epochs= and batch_size=, or have make return "
                "run(step, epochs=…, batch_size=…)"
            )
        return run(made, epochs=self.epochs, batch_size=self.batch_size)

    def begin(self, numbers: Numbers, keys: Key, data: Any, validation: Any, order: Key) -> Progress:
        """The members before their first steps."""

        def one(numbers: Numbers, key: Key) -> tuple[TrainState, Monitors | None, Noted]:
            made, epoch = self.entered(numbers, order, data)
            state = self.first_state(made, numbers, key, data)
            monitors = made.watching().first(state, None)
            placed = state._replace(position=jnp.zeros((), jnp.int32))
            noted = chunk_of(epoch, data).nothing_noted(placed, data, update_scale(monitors))
            return state, monitors, noted

        state, monitors, noted = jax.vmap(one)(numbers, keys)
        count = jnp.zeros((), jnp.int32)
        return Progress(state, monitors, noted, count, count, jnp.zeros(keys.shape, bool))

    def __call__(
        self, progress: Progress, numbers: Numbers, data: Any, validation: Any, order: Key, steps: Array
    ) -> tuple[Progress, Figures, Array]:
        old, monitors, noted, count, position, ended = progress
        shared = old._replace(epoch=count, position=position)

        def advance(
            numbers: Numbers, state: TrainState, monitors: Monitors | None, noted: Noted
        ) -> tuple[TrainState, Noted, EpochResult]:
            made, epoch = self.entered(numbers, order, data)
            chunk, scale = chunk_of(epoch, data), update_scale(monitors)
            if made.own or not self.shared_order:
                return chunk(state, data, scale, noted, steps)
            step = epoch.step
            chunk = replace(chunk, epoch=Turned(**fields_of(epoch)))
            state, noted, result = chunk(turned(step.net, state), data, scale, noted, steps)
            return turned(step.net, state), noted, result

        lead = jax.vmap(advance, in_axes=(0, TOGETHER, 0, 0), out_axes=(TOGETHER, 0, 0))
        new, noted, result = lead(numbers, shared, monitors, _anew(noted, position == 0))
        over, count, position = new.epoch > count, jnp.asarray(new.epoch), jnp.asarray(new.position)
        new = new._replace(epoch=jnp.broadcast_to(count, ended.shape), position=EPOCH_START)

        def one(numbers: Numbers, *of_member: Any) -> tuple[Monitors | None, Figures]:
            return self._closed(numbers, order, data, validation, *of_member)

        def close(_: Any) -> tuple[Monitors | None, Figures]:
            return jax.vmap(one)(numbers, new, monitors, result, ended)

        none = missing(jax.eval_shape(close, None)[1])
        after, figures = jax.lax.cond(over, close, lambda _: (monitors, none), None)
        ran = over & ~ended
        if after is not None and after.stopping is not None:  # a member that has ended does not change
            new = jax.vmap(lambda over, old, new: jax.tree.map(partial(jnp.where, over), old, new))(ended, old, new)
            ended = jnp.where(over, after.stopping.stopped, ended)
        return Progress(new, after, noted, count, position, ended), figures, ran

    def entered(self, numbers: Numbers, order: Key, data: Any) -> tuple[run, Epoch]:
        """The run of one member, and its epoch, which knows where the data lie."""
        made = self.made(numbers)
        made = replace(made, order=order) if self.shared_order else made
        epoch = made.epoch()
        if self.mesh is None:
            return made, epoch.at_home(data)
        shards = epoch.shards or 1
        check_shards(shards, epoch.size(data))
        epoch.check_padding(epoch.size(data), None, shards)
        return made, replace(epoch, shards=shards)

    def first_state(self, made: run, numbers: Numbers, key: Key, data: Any) -> TrainState:
        """The state of a member before its first step, drawn from its key."""
        if self.init is None:
            assert isinstance(made.step, train_step)
            x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), data[0])
            return init_train_state(made.step.net, made.step.optimizer, key, example_shape(x), float_type(x))
        state = self.init(key, **_taken(self.init, numbers))
        if not isinstance(state, TrainState):
            raise TypeError(f"sweep: init must return a TrainState, got {seen(state)}")
        counts = {name: jnp.asarray(getattr(state, name), jnp.int32) for name in ("step", "epoch")}
        return state._replace(**counts)

    def working(self, numbers: Numbers, key: Key, data: Any, validation: Any, order: Key) -> tuple[Any, Any]:
        """What a step and an evaluation of one member keep of their layers; () for a user's own step."""
        made, _ = self.entered(numbers, order, data)
        step = made.step
        if not isinstance(step, train_step):
            return (), ()
        state = self.first_state(made, numbers, key, data)

        def tape(x: Any, n: int, train: bool) -> Any:
            batch = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape[1:]), leaf.dtype), x)  # its shapes alone
            return step.net.forward(state.params, state.state, batch, train=train, rng=key)[2]

        if validation is None or made.evaluate is not None:
            return tape(data[0], made.batch_size, True), ()
        n = min(EVALUATION_BATCH, len(jax.tree.leaves(validation[0])[0]))
        return tape(data[0], made.batch_size, True), tape(validation[0], n, False)

    def _closed(
        self,
        numbers: Numbers,
        order: Key,
        data: Any,
        validation: Any,
        state: TrainState,
        monitors: Monitors | None,
        result: EpochResult,
        ended: Array,
    ) -> tuple[Monitors | None, Figures]:
        """The monitors and the figures of a member after an epoch."""
        made = self.entered(numbers, order, data)[0]
        figures = made.figures(result, state, validation, update_scale(monitors))
        monitors = made.watching(figures).update(monitors, figures, state)
        return monitors, jax.tree.map(lambda value: jnp.where(ended, jnp.nan, value), figures)


def _taken(init: Callable[..., Any], numbers: Numbers) -> Numbers:
    """The settings that a function (key, …) takes, by their names."""
    try:
        _, *parameters = inspect.signature(init).parameters.values()
    except ValueError:  # a builtin shows none
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return numbers
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return {name: number for name, number in numbers.items() if name in named}


def _anew(noted: Noted, where: Array) -> Noted:
    """The notes, emptied where an epoch begins."""
    blank = jax.tree.map(jnp.zeros_like, noted)
    blank = blank._replace(notes=blank.notes._replace(loss=jnp.full_like(noted.notes.loss, jnp.nan)))
    return jax.tree.map(lambda fresh, kept: jnp.where(where, fresh, kept), blank, noted)


def float_type(x: Any) -> Any:
    """The dtype of the first floats of x, for the parameters."""
    return next((leaf.dtype for leaf in jax.tree.leaves(x) if is_floating(leaf)), jnp.float32)
