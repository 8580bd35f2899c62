"""Arguments and results of passes and training, as NamedTuples of arrays; re-exports the interfaces and the aliases."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxnn.aliases import (
    Array,
    BackwardRule,
    DType,
    Forward,
    ForwardRule,
    Initializer,
    InitRule,
    InShape,
    Key,
    Metric,
    Params,
    Schedule,
    Shape,
    State,
    Tree,
)
from jaxnn.interfaces import Activation, Layer, Loss, Optimizer, Penalty
from jaxnn.records import Record
from jaxnn.showing import (
    fit_line,
    fit_table,
    pass_line,
    pass_table,
    run_line,
    run_table,
    shown,
    state_line,
    state_table,
)
from jaxnn.tapes import Outline as Outline

__all__ = [
    "Layer", "Activation", "Loss", "Penalty", "Optimizer", "Reading", "Use", "Pass", "TrainState", "Fit", "Run",
    "Tagged",
    "Array", "Key", "Tree", "Params", "State", "Shape", "InShape", "DType", "Initializer", "Schedule", "Metric",
    "Forward", "InitRule", "ForwardRule", "BackwardRule",
]  # fmt: skip
__dir__ = __all__.copy


class Use(NamedTuple):
    """One use of a leaf layer, the argument of a reading; under `repeat` and `share` one for each pass.

    `Reading.keep` (forward) is given x, y, state, rng and tape; `Reading.note` (backward) tape, delta, grads and kept.
    The other fields are None.

    Attributes:
        layer: the layer.
        params: its parameters.
        tape: the arrays that its forward keeps for its backward.
        delta: ∂(Σ wₙCₙ)/∂y, the textbook's δ: Σw times the δ in the recursion of `backprop`.
        grads: ∂(Σ wₙCₙ)/∂params, in the same unit.
        kept: the result of the reading's `keep` in the forward pass; () without `keep`.
        x: the layer's input.
        y: its output.
        state: its state before the pass.
        rng: its key.
    """

    layer: Any
    params: Params
    tape: Tree = None
    delta: Tree = None
    grads: Params = None
    kept: Tree = ()
    x: Tree = None
    y: Tree = None
    state: State = None
    rng: Key | None = None


class Reading(Record):
    """A quantity that is read at every leaf layer in the backward pass.

    Attributes:
        name: its key in `Pass.readings`.
        note: `note(use) ->` a pytree of arrays of fixed shape, at each `Use` of a layer in the backward pass.
        keep: `keep(use) ->` a pytree of arrays, in the forward pass; `note` reads it as `use.kept`.
        finish: `finish(noted) ->` a pytree, once for each leaf layer: `noted` has a leading axis for the uses that
            share the parameters, of size 1 for a single use. Under `repeat` it is called for each pass and the results
            are stacked. Without it the notes are returned as they are, with a leading axis for each loop.
        total: `total(tree) ->` any value, once, from the readings of the whole network, keyed like params.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnn import backprop
    >>> from jaxnn import dense, losses, share
    >>> largest = Reading("largest", lambda use: jnp.abs(use.delta).max(), finish=lambda noted: noted.max(0))
    >>> net = share(dense(2), 3)
    >>> params, state = net.init(0, (2,))
    >>> out = backprop(net, losses.mse, read=(largest,))(params, state, jnp.ones((4, 2)), jnp.zeros((4, 2)))
    >>> out.readings["largest"].shape
    ()
    """

    name: str
    note: Callable[[Use], Tree]
    keep: Callable[[Use], Tree] | None = None
    finish: Callable[[Tree], Tree] | None = None
    total: Callable[[Tree], Any] | None = None

    def __post_init__(self) -> None:
        for what in ("note", "keep", "finish", "total"):
            function = getattr(self, what)
            if function is None and what != "note":
                continue
            if not callable(function):
                raise TypeError(f"Reading: {what} must be a function, got {function!r}")
            try:
                inspect.signature(function).bind(None)
            except TypeError:
                given = "note(use), where use has layer, params, tape, delta and grads" if what == "note" else ""
                raise TypeError(f"Reading: {what} is called with one argument: {given or f'{what}(…)'}") from None
            except ValueError:  # a function without a signature
                pass

    def __repr__(self) -> str:
        return f"<Reading {self.name}>"


@shown(pass_line, pass_table)
class Pass(NamedTuple):
    """The result of a forward and a backward pass.

    Attributes:
        loss: scalar, Σ wₙCₙ / Σ wₙ plus the penalty.
        grads: ∂loss/∂params, a tree like params.
        state: the network's new state.
        output: the network's output, [N, …].
        readings: one entry per reading in `read`, each keyed like params by layer name.
        weight: scalar, Σ wₙ, without weights the number of examples: the denominator of the mean, by which means of
            several batches are combined. Where entries have weights or a mask, wₙ is their mean.
    """

    loss: Array
    grads: Params
    state: State
    output: Tree
    readings: dict[str, Tree]
    weight: Array


@jax.tree_util.register_static
class EpochStart(int):
    """The position 0 as a static number: a program that is given it skips no examples."""

    def __new__(cls, *_: int) -> EpochStart:
        return super().__new__(cls, 0)


EPOCH_START = EpochStart()


@shown(state_line, state_table)
class TrainState(NamedTuple):
    """The state of training: a pytree of all arrays that training changes and needs to continue.

    The key of a step is `fold_in(key, step)`; an epoch's order is drawn from `fold_in(key, epoch)`. The last two
    fields are the cursor: `train_epoch` and `fit` continue from it and advance it; `train_step`, which is given its
    batch, does not.

    Attributes:
        params: the parameters.
        state: the network's state (running statistics); () without one.
        opt_state: the optimizer's state.
        step: the number of steps taken, int32.
        key: a typed PRNG key.
        epoch: the number of epochs finished, int32.
        position: the number of examples seen in this epoch, int32. Between two epochs it is `EPOCH_START`, a static 0,
            which is not an array of a compiled program.
    """

    params: Params
    state: State
    opt_state: Tree
    step: Array
    key: Key
    epoch: Array | int = 0
    position: Array | int = EPOCH_START


@shown(fit_line, fit_table)
class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
        train_state: the state after the last epoch; pass it to `fit` to continue. After early stopping it is the best
            state, unless `restore_best=False`.
        history: one list per quantity with one float per epoch: loss, without the penalty, seconds, the metrics, and
            validation_loss, validation_<metric> with a validation set; penalty, update_scale and skipped with a
            `penalty`, a `plateau` or `skip_nonfinite`.
        best: the state after the best epoch, if it was kept.
        best_epoch: the number of that epoch, from 1 over the whole training.
        stopped: True if training stopped early.
        why: the reason why training ended, in words.
        monitors: the states of the monitors (`stopping.Monitors`); pass them to `fit` together with the state.
        diagnostics: a `diagnostics.Diagnosis` for each step that was measured.
    """

    train_state: TrainState
    history: dict[str, list[float]]
    best: TrainState | None = None
    best_epoch: int | None = None
    stopped: bool = False
    why: str = ""
    monitors: Any = None
    diagnostics: tuple[Any, ...] = ()


@shown(run_line, run_table)
class Run(NamedTuple):
    """The result of a `run`, a pytree of arrays.

    Attributes:
        train_state: the last state; give it to `run` or `fit` to continue.
        best: the state after the best epoch, if `stopping` or `keep` is given, otherwise None. It is the first state
            where no watched figure was finite.
        monitors: the states of the monitors (`stopping.Monitors`), to continue with them; None without any.
        history: one array per quantity with one entry per epoch, as in `Fit` but for the times; NaN after an early end.
        epochs_run: the number of epochs that were run, int32.
    """

    train_state: TrainState
    best: TrainState | None
    monitors: Any
    history: dict[str, Array]
    epochs_run: Array


class Tagged(NamedTuple):
    """Parameters (in) or gradients (out) of an instrumented layer, with additions of the instrument.

    The two parts differ under `share` only: `tied` is one tree for all uses of the layer, its gradient their sum;
    `own` has an entry for each use.
    """

    tied: Tree
    own: Tree
