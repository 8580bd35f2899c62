"""Training that met a number that is not finite: the error, and the replay that finds the step and the leaf."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.combinators import ordered_leaves
from jaxnn.placement import Home
from jaxnn.steps import Augment, DataSet, Gradient, epoch_order, in_batches, rows_of, train_step
from jaxnn.types import Array, Layer, Loss, Optimizer, TrainState, Tree

CACHED_PROGRAMS = 64  # compiled programs kept
VALIDATION_LOSS = "validation_loss"  # in the history


class DivergenceError(ArithmeticError):
    """Training met a loss or a parameter that is not finite, or a validation loss or a watched metric that is not.

    Attributes:
        step: the optimizer step at which it happened, counted from 0 over the whole training.
        epoch: the epoch of that step, likewise.
        leaf: the first leaf that is not finite, in the network's own order, such as "grads/dense_0/w"; or "loss",
            "validation_loss", or the metric that was watched.
        train_state: the last good state, from before that step; where the validation loss or a metric is not finite,
            the state that gave it, whose parameters are finite.
        history: the history of the epochs that were completed, that one included where it is such a figure's.
        best: the best state before, where one was kept.
    """

    def __init__(
        self,
        step: int,
        epoch: int,
        leaf: str,
        train_state: TrainState,
        history: dict[str, list[float]],
        best: TrainState | None = None,
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
                f"training diverged at {where}: {leaf} is not finite. The state before that step is in this error's "
                "train_state; lower the learning rate, or look at the data and the loss"
            )
        super().__init__(complaint)
        self.step, self.epoch, self.leaf = step, epoch, leaf
        self.train_state, self.history, self.best = train_state, history, best

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.epoch, self.leaf, self.train_state, self.history, self.best)


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
    augment: Augment | None,
    _diagnose: int,
    home: Home | None = None,
) -> Callable[..., tuple[TrainState, Tree]]:
    """The same epoch with every step guarded: it stands still at the first step that is not finite."""
    step = train_step(net, loss, optimizer, gradient=gradient, penalty=penalty, augment=augment)

    def replay(train_state: TrainState, data: DataSet, update_scale: Array | None) -> tuple[TrainState, Tree]:
        def one(carry: tuple[TrainState, Array], rows: Array) -> tuple[tuple[TrainState, Array], Tree]:
            train_state, going = carry
            new_state, out = step(train_state, *rows_of(data, rows, home), update_scale=update_scale)
            watched = {"loss": out.loss, "grads": out.grads, "params": new_state.params}
            good = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), watched)
            going = going & jnp.stack(jax.tree.leaves(good)).all()
            kept = jax.tree.map(lambda new, old: jnp.where(going, new, old), new_state, train_state)
            return (kept, going), good

        order = epoch_order(train_state, data[0], batch, shuffle)
        (train_state, _), good = in_batches(one, (train_state, jnp.asarray(True)), order, batch)
        return train_state, good

    return jax.jit(replay)


def diverged(
    train_state: TrainState,
    data: DataSet,
    update_scale: Array | None,
    parts: tuple[Any, ...],
    history: dict[str, list[float]],
    best: TrainState | None,
) -> DivergenceError:
    """Replays the epoch, which is deterministic, to find the step and the first leaf that is not finite."""
    first_step = int(train_state.step)
    last_good, good = _compiled_replay(*parts)(train_state, data, update_scale)
    step = int(last_good.step) - first_step
    flags = {"loss": good["loss"]}
    for part in ("grads", "params"):
        flags |= {f"{part}/{path}": flag for path, flag in ordered_leaves(parts[0], good[part]).items()}
    bad = [name for name, flag in flags.items() if step < len(flag) and not bool(flag[step])]
    leaves = [name for name in bad if name != "loss"] or bad or ["the loss"]
    batches = len(good["loss"])
    return DivergenceError(first_step + step, (first_step + step) // batches, leaves[0], last_good, history, best)
