"""A training run as a pure function: epochs in a scan, with stopping, plateau and the best state inside.

Letters: N examples, B batch size, E epochs, T steps in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_concrete
from jaxnn.checks import seen, whole_number, yes_or_no
from jaxnn.compiled import PureFunction
from jaxnn.keys import as_key
from jaxnn.mistakes import accepts, is_function, whole_state
from jaxnn.spmd.batches import beside, home_of
from jaxnn.spmd.processes import agreeing, group_of
from jaxnn.stopping import Monitor, Monitors
from jaxnn.training.batches import recomputed_scan
from jaxnn.training.entry import enter_run
from jaxnn.training.epochs import Epoch
from jaxnn.training.evaluation import Evaluation
from jaxnn.training.means import Metrics, named_metrics
from jaxnn.training.monitoring import Monitoring, best_state, monitoring, update_scale
from jaxnn.training.own_steps import OwnEpoch, Step, as_figure, as_train_state, check_own_step, check_rows, rows_of
from jaxnn.training.results import EpochResult
from jaxnn.training.steps import Augment, check_augmentation, train_step
from jaxnn.types import EPOCH_START, Array, Key, Run, TrainState

Figures = dict[str, Array]


class run(PureFunction):
    """Training as a pure function: `jit`, `vmap`, `grad` and `jvp` of it work, and a run is a value.

    `run(step, epochs=E, batch_size=B)(train_state, data, validation=None) -> Run`. The steps and their order are those
    of `fit` with the same state: the order of an epoch is drawn from fold_in(key, epoch), the key of a step is
    fold_in(key, step). Where training stops early (under `vmap`: a member), everything remains as it is from then on,
    its step and its epoch too, and later entries of the history are NaN. A loss that is not finite raises nothing; with
    `stopping`, such a figure ends the run.

    The step is a `train_step(net, loss, optimizer)` or any pure function `(state, batch) -> (state, info)`: data is
    then any tree with N examples first in each leaf, batch the same tree of B of them, info a dict of scalars, the
    means over the batch, which the history has by their names. Its state is a TrainState whose `params`, `state` and
    `opt_state` may be any trees, with fold_in(state.key, state.step) for random numbers; `step` and the cursor are
    moved for it. With `shuffle=False` the state may be any tree. With `plateau` it is given the factor of its updates
    as `update_scale`.

    Shapes and types are always checked. Values of the data of a `train_step` are checked where they are known, as when
    it is called without `jit`; a traced label or weight that is out of range turns the loss into NaN.

    Args:
        step: a `train_step`, or a function `(state, batch) -> (state, info)`.
        epochs: E, the number of epochs, at least 1; that of a state within an epoch is the first of them.
        batch_size: B, from 1 to N. A last, smaller batch is a step too.
        metrics: as for `fit`, for a `train_step` only.
        stopping: `stopping.early_stopping(patience)`.
        plateau: `stopping.reduce_on_plateau(factor)`.
        keep: `stopping.keep_best()`, for `Run.best`; implied by `stopping`.
        watch: the name of the figure that these three read; by default "validation_loss", or "loss" without validation.
        augment: a function (key, x) -> x of the same shape, applied to x of each batch.
        shuffle: False keeps the order of the data.
        evaluate: a function `(train_state, validation) -> {name: scalar}`, for the history as "validation_<name>"; by
            default the loss and the metrics of a `train_step`. The validation set may then be anything.
        order: a PRNG key or an integer seed from which the orders of the epochs are drawn, in place of the state's.
        recompute: True for reverse differentiation in O(√T) memory: the state of every ⌈√T⌉-th step is kept, and the
            steps between are computed twice more. Values do not change.
        shards: as for `train_epoch`.

    Raises:
        ValueError, TypeError: for settings out of range; when called, for data or states that do not fit.

    Source: Chen et al. (2016), "Training deep nets with sublinear memory cost", for `recompute`.

    >>> from jaxnn import init_train_state, losses, mlp, sgd
    >>> net, x = mlp([4, 1]), jnp.linspace(-1, 1, 20)[:, None]
    >>> train = run(train_step(net, losses.mse, sgd(0.1)), epochs=3, batch_size=8)
    >>> result = jax.jit(train)(init_train_state(net, sgd(0.1), 0, (1,)), (x, x**2))
    >>> result.history["loss"].shape, int(result.train_state.step), int(result.epochs_run)
    ((3,), 9, 3)
    """

    step: train_step | Step
    _: KW_ONLY
    epochs: int
    batch_size: int
    metrics: Metrics = ()
    stopping: Monitor | None = None
    plateau: Monitor | None = None
    keep: Monitor | None = None
    watch: str | None = None
    augment: Augment | None = None
    shuffle: bool = True
    evaluate: Callable[[Any, Any], dict[str, Array]] | None = None
    order: Key | None = None
    recompute: bool = False
    shards: int | None = None

    def __post_init__(self) -> None:
        self._set(
            epochs=whole_number("run: epochs", self.epochs, least=1),
            batch_size=whole_number("run: batch_size", self.batch_size, least=1),
            shuffle=yes_or_no("run: shuffle", self.shuffle),
            recompute=yes_or_no("run: recompute", self.recompute),
            shards=None if self.shards is None else whole_number("run: shards", self.shards, least=1),
            order=None if self.order is None else as_key(self.order),
            metrics=tuple(self.metrics) if isinstance(self.metrics, list) else self.metrics,
        )
        check_augmentation(self.augment)
        named_metrics(self.metrics)
        if self.evaluate is not None and (not is_function(self.evaluate) or not accepts(self.evaluate, None, None)):
            raise TypeError(
                f"run: evaluate must be a function (train_state, validation) -> figures, got {seen(self.evaluate)}"
            )
        if not isinstance(self.step, train_step):
            check_own_step(self.step, scaled=self.plateau is not None)
            if self.metrics:
                raise ValueError("run: metrics are those of a train_step; put your step's own into its info")
        elif self.augment is not None and self.step.augment is not None:
            raise ValueError("run: augment is given twice, to train_step and to run")
        elif self.step.read or self.step.measure:
            raise ValueError("run: readings of single steps are not kept: give a train_step without read and measure")
        self.watching()  # refuses machines that do not go together

    def __call__(self, train_state: Any, data: Any, validation: Any = None, *, monitors: Monitors | None = None) -> Run:
        state, bare = as_train_state(train_state, shuffle=self.shuffle) if self.own else (train_state, False)
        with agreeing(group_of(state, data, validation)):
            epoch, state, data, validation, start = self._entered(state, data, validation, bare)

        def once(carry: Carry, start: int | None = 0) -> tuple[Carry, Figures]:
            state, monitors = carry
            scale = update_scale(monitors)
            state, result = epoch.over(state, data, scale, start)
            figures = self.figures(result, state, validation, scale, bare)
            return (state, self.watching(figures).update(monitors, figures, state)), figures

        monitors = beside(self.watching().first(state._replace(position=EPOCH_START), monitors), data)

        def advance(carry: Carry, start: int | None = 0) -> tuple[Carry, tuple[Figures, Array]]:
            def over(carry: Carry) -> tuple[Carry, tuple[Figures, Array]]:
                ended = missing(jax.eval_shape(lambda carry: once(carry, start)[1], carry))
                return (carry[0]._replace(position=EPOCH_START), carry[1]), (ended, jnp.asarray(False))

            def on(carry: Carry) -> tuple[Carry, tuple[Figures, Array]]:
                carry, figures = once(carry, start)
                return carry, (figures, jnp.asarray(True))

            stopping = None if carry[1] is None else carry[1].stopping
            return on(carry) if stopping is None else jax.lax.cond(stopping.stopped, over, on, carry)

        carry, rows, left = (state, monitors), [], self.epochs
        if start != 0:  # the rest of an epoch, then whole ones
            carry, row = advance(carry, start)
            rows, left = [jax.tree.map(lambda leaf: leaf[None], row)], left - 1
        if left:
            group = _group(self, epoch, data)
            carry, row = recomputed_scan(lambda carry, _: advance(carry), carry, jnp.arange(left), group)
            rows.append(row)
        history, ran = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
        state, monitors = carry
        best = best_state(monitors)
        state, best = (state.params, best and best.params) if bare else (state, best)
        return Run(state, best, monitors, history, ran.sum(dtype=jnp.int32))

    @property
    def own(self) -> bool:
        """Whether the step is a user's function."""
        return not isinstance(self.step, train_step)

    def epoch(self, bare: bool = False) -> Epoch:
        """An epoch of this run."""
        if self.own:
            own = OwnEpoch(self.step, self.batch_size, shuffle=self.shuffle, order_key=self.order)
            return replace(own, augment=self.augment, bare=bare, shards=self.shards)
        assert isinstance(self.step, train_step)
        step = self.step if self.augment is None else replace(self.step, augment=self.augment)
        epoch = Epoch(step, self.batch_size, named_metrics(self.metrics), self.shuffle, order_key=self.order)
        return replace(epoch, shards=self.shards)

    def evaluated(self, state: TrainState, validation: Any, bare: bool = False) -> Figures:
        """The figures of the validation set by name."""
        if self.evaluate is not None:
            found = self.evaluate(state.params if bare else state, validation)
            if not isinstance(found, dict):
                raise TypeError(f"run: evaluate must return a dict of scalars by name, got {seen(found)}")
            where, meaning = "run: the figure {!r} of evaluate", "of the whole validation set"
            return {str(name): as_figure(where.format(name), value, meaning) for name, value in found.items()}
        step = self.step
        assert isinstance(step, train_step)
        evaluation = Evaluation(step.net, step.loss, named_metrics(self.metrics), home_of(validation))
        return evaluation(state.params, state.state, validation)

    def _entered(
        self, state: TrainState, data: Any, validation: Any, bare: bool
    ) -> tuple[Epoch, TrainState, Any, Any, int | None]:
        """The epoch, the state, the data, the validation set, and the position to begin at, None if traced.

        Raises ValueError or TypeError for what is wrong.
        """
        self.check_validation(validation)
        whole_state("run: ", state)
        epoch, state = self.epoch(bare), _counted(state)
        if isinstance(self.step, train_step):
            ours = validation if self.evaluate is None else None  # otherwise it may be anything
            data, ours = enter_run(self.step, named_metrics(self.metrics), state, data, ours)
            validation = validation if ours is None else ours
        else:
            check_rows("run: data", data)
        data = rows_of(data)
        start = epoch.checked(state, data)
        steps = -(-epoch.size(data) // self.batch_size)
        block = _block(self.epochs * steps)
        recompute = (block if block <= steps else 1) if self.recompute else 0
        return replace(epoch.at_home(data), recompute=recompute), state, data, validation, start

    def figures(
        self, result: EpochResult, state: TrainState, validation: Any, scale: Array | None, bare: bool = False
    ) -> Figures:
        """An epoch in the history: its figures by name."""
        parts = {"loss": result.loss, "penalty": result.penalty, **result.metrics}
        figures = {name: value for name, value in parts.items() if not isinstance(value, tuple)}
        if validation is not None:
            evaluated = partial(self.evaluated, bare=bare)
            found = (jax.checkpoint(evaluated) if self.recompute else evaluated)(state, validation)
            validated = {f"validation_{name}": value for name, value in found.items()}
            if twice := sorted(validated.keys() & figures):
                raise ValueError(
                    f"run: {', '.join(map(repr, twice))} is a figure of the step and of evaluate: rename one"
                )
            figures |= validated
        return figures if scale is None else figures | {"update_scale": scale}

    def check_validation(self, validation: Any) -> None:
        """Raises ValueError for a validation set without a function that evaluates it, and the other way round."""
        if self.own and validation is not None and self.evaluate is None:
            raise ValueError("run: a validation set needs evaluate=, a function (train_state, validation) -> figures")
        if validation is None and self.evaluate is not None:
            raise ValueError("run: evaluate needs a validation set, of any kind, behind the data")

    @property
    def _machines(self) -> tuple[Monitor, ...]:
        return tuple(machine for machine in (self.stopping, self.plateau, self.keep) if machine is not None)

    def watching(self, figures: Iterable[str] | None = None) -> Monitoring:
        """What watches the figures of an epoch, of which it needs the names; without them, the machines alone.

        It reads `watch`, or else the validation loss, or the loss, or the only figure.
        """
        if figures is None:
            usual = ["loss", "validation_loss"] if not self.own else [""]  # an own step's names are its own
            names = usual if self.watch is None else [self.watch]
        else:
            names = [name for name in figures if name != "update_scale"]
            usual = [name for name in ("loss", "validation_loss") if name in names]
        if self.watch is None and not usual and len(names) != 1 and self._machines:
            there = ", ".join(map(repr, names)) or "none, for info is empty"
            raise ValueError(f"run: watch must say which figure is watched; there are {there}")
        ordered = (*(name for name in names if name not in usual), *(name for name in usual if name in names))
        machines = {"stopping": self.stopping, "plateau": self.plateau, "keep": self.keep}
        return monitoring(self.watch, ordered, restore_best=True, where="run", **machines)


Carry = tuple[TrainState, Monitors | None]


def missing(figures: Figures) -> Figures:
    """NaN for each of the figures."""
    return {name: jnp.full(spec.shape, jnp.nan, spec.dtype) for name, spec in figures.items()}


def _counted(state: TrainState) -> TrainState:
    """The state with its counts as arrays; raises an error for what is no count."""
    counts: dict[str, Any] = {}
    for name in ("step", "epoch", "position"):
        value = getattr(state, name)
        if jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise TypeError(f"run: train_state.{name} must be a whole number, got {seen(value)}")
        known = isinstance(value, int) or is_concrete(value)
        if known and int(value) < 0:
            raise ValueError(f"run: train_state.{name} must be at least 0, got {int(value)}")
        begins = name == "position" and known and int(value) == 0
        counts[name] = EPOCH_START if begins else jnp.asarray(value, jnp.int32)
    return state._replace(**counts)


def _group(made: run, epoch: Epoch, data: Any) -> int:
    """The number of epochs in a block of ⌈√T⌉ steps, where an epoch has fewer; 0 without recomputing."""
    steps = -(-epoch.size(data) // made.batch_size)
    return -(-_block(made.epochs * steps) // steps) if epoch.recompute == 1 else 0


def _block(steps: int) -> int:
    return math.isqrt(steps - 1) + 1
