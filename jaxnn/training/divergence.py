"""Errors that end training, and the step and the leaf at which it diverged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxnn.combinators.walk import ordered_leaves
from jaxnn.optimizers.parts import loss_scale_of
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import DataSet
from jaxnn.training.moments import Moment, moment
from jaxnn.training.results import cursor
from jaxnn.types import Array, Fit, TrainState

VALIDATION_LOSS = "validation_loss"  # in the history


class Interrupted(KeyboardInterrupt):
    """`fit` was interrupted (Ctrl-C); its result so far is in `fit`.

        try:
            result = fit(net, loss, optimizer, data, epochs=100, batch_size=32, key=0)
        except Interrupted as interrupted:
            result = interrupted.fit

    An epoch that was running is lost, one that had been computed is not. To continue, pass
    `train_state=interrupted.fit.train_state` (and `monitors=interrupted.fit.monitors`, if there are any) to `fit`.

    With checkpoints, the same call continues from the newest of them, which may be within the epoch that was running.

    Attributes:
        fit: the Fit of the epochs that were completed; its train_state is that of the beginning if there were none.
        folder: that of the checkpoints; "" without any.
    """

    def __init__(self, fit: Fit, folder: str = "") -> None:
        done = len(fit.history.get("loss", ()))
        super().__init__(
            f"fit was interrupted after {done} epoch{'s' * (done != 1)}. What was trained is in this error's fit: "
            "go on with train_state=error.fit.train_state"
            + (", monitors=error.fit.monitors" if fit.monitors is not None else "")
            + (f"; or call fit as before, which continues from the newest checkpoint in {folder}" if folder else "")
        )
        self.fit, self.folder = fit, folder

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fit, self.folder)


class DivergenceError(ArithmeticError):
    """A loss or a parameter of a training is not finite, or a validation loss or a watched metric.

    Attributes:
        step: the optimizer step at which it happened, counted from 0 over the whole training.
        epoch: the epoch of that step, likewise.
        leaf: the first leaf that is not finite at that step, in the network's own order, the gradients before the new
            parameters: "grads/dense_0/w", "params/dense_0/w"; "loss" where they are all finite, and "the loss" where
            no step of the epoch is at fault. Or "validation_loss", or the metric that was watched.
        train_state: the last good state, from before that step; where the validation loss or a metric is not finite,
            the state that gave it, whose parameters are finite.
        history: the history of the epochs that were completed, that one included where it is such a figure's.
        best: the best state before, where one was kept.
        rate: the learning rate of that step, where the optimizer's state shows one.
        in_a_row: how many steps in a row were not finite; 1 unless `skip_nonfinite` had some skipped.
        loss_scale: the smallest of `loss_scaling`, where gradients are not finite in spite of it; None otherwise.
        moment: that step with its batch, for `replay(error).explain()`; None where no step is at fault, and in an error
            that was pickled.
    """

    moment: Moment | None = None

    def __init__(
        self,
        step: int,
        epoch: int,
        leaf: str,
        train_state: TrainState,
        history: dict[str, list[float]],
        best: TrainState | None = None,
        rate: float | None = None,
        in_a_row: int = 1,
        loss_scale: float | None = None,
    ):
        where = f"step {step} (epoch {epoch})"
        if leaf == VALIDATION_LOSS:
            complaint = (
                f"the validation loss after {where} is not finite, though the training loss and all parameters are. "
                "The state that gave it is in this error's train_state; look at the validation data and the loss"
            )
        elif leaf != "loss" and leaf in history:
            complaint = (
                f"{leaf}, which is watched, is not finite after {where}, though the losses and all parameters are. "
                "The state that gave it is in this error's train_state; look at the metric"
            )
        else:
            complaint = (
                f"training diverged at {where}{_at_rate(rate)}: {leaf} is not finite{_again(in_a_row)}"
                f"{_at_scale(loss_scale)}. The state before that step is in this error's train_state; "
                f"{_advice(rate)}"
            )
        super().__init__(complaint)
        self.step, self.epoch, self.leaf = step, epoch, leaf
        self.train_state, self.history, self.best = train_state, history, best
        self.rate, self.in_a_row, self.loss_scale = rate, in_a_row, loss_scale

    def __reduce__(self) -> tuple[Any, ...]:
        told = (self.step, self.epoch, self.leaf, self.train_state, self.history, self.best, self.rate, self.in_a_row)
        return type(self), (*told, self.loss_scale)


def _at_rate(rate: float | None) -> str:
    return "" if rate is None else f" with a learning rate of {rate:.6g}"


def _again(in_a_row: int) -> str:
    return "" if in_a_row == 1 else f", and {in_a_row} steps in a row were not"


def _at_scale(loss_scale: float | None) -> str:
    if loss_scale is None:
        return ""
    return f" though the loss scale has fallen to {loss_scale:.3g}, the smallest: a lower one would lose the gradient"


def _advice(rate: float | None) -> str:
    if rate is not None and not 0 <= rate < math.inf:
        return (
            "a learning rate must be a finite number of 0 and above: look at the schedule, or at what the state shows"
        )
    return "lower the learning rate, or look at the data and the loss"


def diverged(
    epoch: Epoch,
    start: TrainState,
    replayed: tuple[TrainState, Any],
    data: DataSet,
    update_scale: Array | None,
    history: dict[str, list[float]],
    best: TrainState | None,
    in_a_row: int,
) -> DivergenceError:
    """The error that names the step and the first leaf that is not finite.

    Args:
        epoch: the epoch that diverged.
        start: the state from which it was replayed.
        replayed: what `chunks.Replay` returned.
        data: the data, of N examples.
        update_scale: the factor of the updates; None without a plateau.
        history: of the epochs before.
        best: the best state before, where one was kept.
        in_a_row: how many steps in a row were not finite.
    """
    last_good, (good, going, rates) = replayed
    done = int(np.count_nonzero(going))
    flags = {"loss": good["loss"]}
    for part in ("grads", "params"):
        flags |= {f"{part}/{path}": flag for path, flag in ordered_leaves(epoch.step.net, good[part]).items()}
    bad = [name for name, flag in flags.items() if done < len(flag) and not bool(flag[done])]
    leaves = [name for name in bad if name != "loss"] or bad or ["the loss"]
    rate = float(rates[done]) if rates is not None and rates.ndim == 1 and done < len(rates) else None
    position = int(start.position) + done * epoch.batch_size
    over = position >= epoch.size(data)
    last_good = last_good._replace(**cursor(int(start.epoch) + over, 0 if over else position))
    scale = loss_scale_of(last_good.opt_state)
    exhausted = "loss" not in bad and leaves[0].startswith("grads/")  # it was not lowered again
    error = DivergenceError(
        int(last_good.step), int(start.epoch), leaves[0], last_good, history, best, rate, max(in_a_row, 1),
        float(scale) if scale is not None and exhausted else None,
    )  # fmt: skip
    if not over:
        error.moment = moment(epoch, last_good, data, update_scale)
    return error
