"""Training that ends before its time: the errors, and the replay that finds the step and the leaf of a divergence."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.combinators.walk import ordered_leaves
from jaxnn.compiled import program
from jaxnn.optimizers.parts import with_rate_of
from jaxnn.records import Record
from jaxnn.training.means import DataSet
from jaxnn.training.steps import (
    cursor,
    epoch_order,
    in_batches,
    rest_of,
    rows_of,
    step_program,
)
from jaxnn.types import Array, Fit, TrainState, Tree

VALIDATION_LOSS = "validation_loss"  # in the history


class Interrupted(KeyboardInterrupt):
    """`fit` was interrupted (Ctrl-C). What was trained until then is in `fit`.

        try:
            result = fit(net, loss, optimizer, data, epochs=100, batch_size=32, key=0)
        except Interrupted as interrupted:
            result = interrupted.fit

    An epoch that was running is lost, one that had been computed is not. To go on, hand
    `train_state=interrupted.fit.train_state` (and `monitors=interrupted.fit.monitors`, where there are such) to `fit`.

    Attributes:
        fit: the Fit of the epochs that were completed; its train_state is that of the beginning if there were none.
    """

    def __init__(self, fit: Fit) -> None:
        done = len(fit.history.get("loss", ()))
        super().__init__(
            f"fit was interrupted after {done} epoch{'s' * (done != 1)}. What was trained is in this error's fit: "
            "go on with train_state=error.fit.train_state"
            + (", monitors=error.fit.monitors" if fit.monitors is not None else "")
        )
        self.fit = fit

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fit,)


class DivergenceError(ArithmeticError):
    """Training met a loss or a parameter that is not finite, or a validation loss or a watched metric that is not.

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
    """

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
                f"training diverged at {where}{_at_rate(rate)}: {leaf} is not finite{_again(in_a_row)}. The state "
                f"before that step is in this error's train_state; {_advice(rate)}"
            )
        super().__init__(complaint)
        self.step, self.epoch, self.leaf = step, epoch, leaf
        self.train_state, self.history, self.best = train_state, history, best
        self.rate, self.in_a_row = rate, in_a_row

    def __reduce__(self) -> tuple[Any, ...]:
        told = (self.step, self.epoch, self.leaf, self.train_state, self.history, self.best, self.rate, self.in_a_row)
        return type(self), told


def _at_rate(rate: float | None) -> str:
    return "" if rate is None else f" with a learning rate of {rate:.6g}"


def _again(in_a_row: int) -> str:
    return "" if in_a_row == 1 else f", and {in_a_row} steps in a row were not"


def _advice(rate: float | None) -> str:
    if rate is not None and not 0 <= rate < math.inf:
        return (
            "a learning rate must be a finite number of 0 and above: look at the schedule, or at what the state shows"
        )
    return "lower the learning rate, or look at the data and the loss"


_replay = program("replay")


class _Replay(Record):
    """The same epoch with every step guarded: it stands still at the first step that is not finite.

    Where it skips, that is the first whose parameters are not though its loss and gradients were.
    """

    parts: tuple[Any, ...]  # of `epoch_program`
    start: int
    skips: bool

    def __call__(self, train_state: TrainState, data: DataSet, update_scale: Array | None) -> tuple[TrainState, Tree]:
        net, loss, optimizer, batch, _, gradient, penalty, shuffle, augment, _, _, home = self.parts
        step = step_program(net, loss, optimizer, gradient=gradient, penalty=penalty, augment=augment)

        def one(carry: tuple[TrainState, Array], rows: Array) -> tuple[tuple[TrainState, Array], Tree]:
            train_state, going = carry
            new_state, out = step(train_state, *rows_of(data, rows, home), update_scale=update_scale)
            before, after = {"loss": out.loss, "grads": out.grads}, {"params": new_state.params}
            good = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), before | after)
            sound = jnp.stack(jax.tree.leaves(good)).all()
            skipped = ~jnp.stack(jax.tree.leaves({name: good[name] for name in before})).all() & self.skips
            going = going & (sound | skipped)
            kept = jax.tree.map(lambda new, old: jnp.where(going & sound, new, old), new_state, train_state)
            return (kept, going), (good, going, getattr(new_state.opt_state, "learning_rate", None))

        opt_state = with_rate_of(optimizer, train_state.opt_state, train_state.params)
        train_state = train_state._replace(opt_state=opt_state)
        order = rest_of(epoch_order(train_state, data[0], shuffle), train_state, batch, self.start)
        (train_state, _), noted = in_batches(one, (train_state, jnp.asarray(True)), order, batch)
        return train_state, noted


def diverged(
    train_state: TrainState,
    data: DataSet,
    update_scale: Array | None,
    parts: tuple[Any, ...],
    history: dict[str, list[float]],
    best: TrainState | None,
    in_a_row: int = 1,
) -> DivergenceError:
    """Replays the epoch, which is deterministic, to find the step and the first leaf that is not finite."""
    start, skips = int(train_state.position), 0 < parts[-2] > in_a_row
    last_good, (good, going, rates) = _replay(_Replay(parts, start, skips), train_state, data, update_scale)
    done = int(np.count_nonzero(going))
    flags = {"loss": good["loss"]}
    for part in ("grads", "params"):
        flags |= {f"{part}/{path}": flag for path, flag in ordered_leaves(parts[0], good[part]).items()}
    bad = [name for name, flag in flags.items() if done < len(flag) and not bool(flag[done])]
    leaves = [name for name in bad if name != "loss"] or bad or ["the loss"]
    rate = float(rates[done]) if rates is not None and rates.ndim == 1 and done < len(rates) else None
    epoch, position = int(train_state.epoch), start + done * parts[3]  # which is the batch size
    over = position >= len(jax.tree.leaves(data[1])[0])
    last_good = last_good._replace(**cursor(epoch + over, 0 if over else position))
    in_a_row = 1 if skips else max(in_a_row, 1)
    return DivergenceError(int(last_good.step), epoch, leaves[0], last_good, history, best, rate, in_a_row)
