"""What passes and training give and take, and one path to the interfaces and the aliases.

These are NamedTuples of arrays. What is made of settings (layers, losses, optimizers, …) is a `records.Record`.
"""

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
from jaxnn.showing import fit_line, fit_table, pass_line, pass_table, shown, state_line, state_table
from jaxnn.tapes import Outline as Outline

__all__ = [
    "Layer", "Activation", "Loss", "Penalty", "Optimizer", "Reading", "Use", "Pass", "TrainState", "Fit", "Tagged",
    "Array", "Key", "Tree", "Params", "State", "Shape", "InShape", "DType", "Initializer", "Schedule", "Metric",
    "Forward", "InitRule", "ForwardRule", "BackwardRule",
]  # fmt: skip


def __dir__() -> list[str]:
    return list(__all__)


class Use(NamedTuple):
    """A leaf layer in use, as a reading sees it; under `repeat` and `share` once in each pass.

    What is not known yet, or not any more, is None. On the way forward (`Reading.keep`) there are x, y, state, rng and
    the tape, on the way back (`Reading.note`) the tape, delta, grads and kept.

    Attributes:
        layer: the layer.
        params: its parameters.
        tape: what its forward keeps for its backward.
        delta: ∂(Σ wₙCₙ)/∂y, the textbook's δ: Σw times what the recursion of `backprop` carries.
        grads: ∂(Σ wₙCₙ)/∂params, in the same unit.
        kept: what the reading kept on the way forward; () without.
        x: the layer's input.
        y: its output.
        state: its state before the pass.
        rng: its key.
    """

    layer: Any
    params: Params
    tape: Tree = None
    delta: Any = None
    grads: Params = None
    kept: Tree = ()
    x: Any = None
    y: Any = None
    state: State = None
    rng: Any = None


class Reading(Record):
    """Something that is read at every leaf layer while δ passes.

    Attributes:
        name: its key in `Pass.readings`.
        note: `note(use) ->` a pytree of arrays of fixed shape, at each `Use` of a layer on the way back.
        keep: `keep(use) ->` a pytree of arrays, on the way forward: what note finds in `use.kept`. None keeps nothing.
        finish: `finish(noted) ->` a pytree, once for each leaf layer: noted has a leading axis for the uses
            that share them, of 1 where there is one. Under `repeat` it is called for each pass, its results stacked.
            Without it notes stay as they are, with a leading axis for each loop around the layer.
        total: `total(tree) ->` anything, of what there is by then of the whole network, keyed like params.

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
            except ValueError:  # a function that tells nothing of its arguments
                pass

    def __repr__(self) -> str:
        return f"<Reading {self.name}>"


@shown(pass_line, pass_table)
class Pass(NamedTuple):
    """What one forward and backward pass gives.

    Attributes:
        loss: scalar, Σ wₙCₙ / Σ wₙ plus the penalty.
        grads: ∂loss/∂params, a tree like params.
        state: the network's new state.
        output: the network's output, [N, …].
        readings: one entry per reading asked for, each keyed like params by layer name.
        weight: scalar, Σ wₙ, the number of examples without weights: what the loss is a mean over, so that the
            means of several batches can be put together. Where entries have weights or a mask, wₙ is their mean.
    """

    loss: Array
    grads: Params
    state: State
    output: Any
    readings: dict[str, Tree]
    weight: Array


@jax.tree_util.register_static
class EpochStart(int):
    """The position 0 as a static number: a program that is given it has nothing to leave out."""

    def __new__(cls, *_: int) -> EpochStart:
        return super().__new__(cls, 0)


EPOCH_START = EpochStart()


@shown(state_line, state_table)
class TrainState(NamedTuple):
    """All that training changes; a pytree of arrays, and all that is needed to go on.

    The key of a step is `fold_in(key, step)`; an epoch's order is drawn from `fold_in(key, epoch)`. The last two
    fields are the cursor: `train_epoch` and `fit` go on from there and move it; a step by hand (`train_step`), which
    is given its batch, does not.

    Attributes:
        params: the parameters.
        state: the network's state (running statistics); () where there is none.
        opt_state: the optimizer's state.
        step: how many steps have been taken, int32.
        key: a typed PRNG key.
        epoch: how many epochs have been finished, int32.
        position: how many examples of the epoch have been seen, int32. Between two epochs it is `EPOCH_START`, a 0 that
            a compiled program knows and does not count among the arrays.
    """

    params: Params
    state: State
    opt_state: Any
    step: Array
    key: Key
    epoch: Array | int = 0
    position: Array | int = EPOCH_START


@shown(fit_line, fit_table)
class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
        train_state: the state after the last epoch; hand it to `fit` again to go on. Where training was stopped early
            it is the best one, unless `restore_best=False`.
        history: one list per quantity with one float per epoch: loss, without the penalty, seconds, the metrics, and
            validation_loss, validation_<metric> where there is a validation set; penalty, update_scale
            and skipped where there is a `penalty`, a `plateau` or a `skip_nonfinite`.
        best: the state after the best epoch, where one was kept.
        best_epoch: which one that is, counted from 1 over the whole training.
        stopped: True where training was stopped early.
        why: why it ended, in words.
        monitors: what the machines remember (`stopping.Monitors`); hand it to `fit` again with the state.
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


class Tagged(NamedTuple):
    """What an instrumented layer carries in place of its parameters (going in) or gradients (coming out).

    `share` is the one combinator for which the two parts differ: `tied` is the same for, and summed over,
    all uses of the layer; `own` has an entry for each use.
    """

    tied: Tree
    own: Tree
