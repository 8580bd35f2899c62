"""What steps and epochs report, and the cursor that they move."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating
from jaxnn.diagnostics.measures import Measures
from jaxnn.showing import epoch_line, shown
from jaxnn.training.means import means_of
from jaxnn.types import EPOCH_START, Array, Params, TrainState, Tree


@shown(epoch_line)
class EpochResult(NamedTuple):
    """What an epoch reports, as arrays.

    Attributes:
        loss: Σ wₙ Cₙ / Σ wₙ over the epoch, without the penalty, each Cₙ as its step saw it.
        metrics: the same weighted mean of each metric.
        losses: [steps], the loss of every step, without the penalty.
        finite: False if any loss (with the penalty), or any parameter at the end, is not finite.
        diagnostics: the measures, [times, …] in each leaf; () without `measure`.
        penalty: the mean of the penalties of the steps, weighted as their losses are; () without a penalty.
        ran: [steps], False for steps that were not taken, because the epoch had begun before them or because training
            ended with too many skipped steps. Their losses are NaN. () if `train_epoch` took all.
        skipped: [steps], True for steps that were not finite and changed nothing; () if none is skipped.
    """

    loss: Array
    metrics: dict[str, Array]
    losses: Array
    finite: Array
    diagnostics: Measures | tuple[()] = ()
    penalty: Array | tuple[()] = ()
    ran: Array | tuple[()] = ()
    skipped: Array | tuple[()] = ()


class Notes(NamedTuple):
    """What is noted of each step, [steps, …] in each leaf."""

    loss: Array  # the mean loss of the batch, without the penalty
    whole: Array | None  # the same with the penalty; None without one
    sums: dict[str, Array]  # of `means.batch_sums`, from which the means over the epoch are computed
    ran: Array | None = None  # whether the step was taken; None if all are
    skipped: Array | None = None  # whether the step was not finite and changed nothing; None if none is skipped

    def result(self, params: Params, diagnostics: Any = (), *, whole: bool = True) -> EpochResult:
        """The means over the epoch, and whether everything is finite that must be; the mean loss too of a whole one.

        Before a step had any weight that is NaN.
        """
        means = means_of(self.sums)
        mean, penalty = means.pop("loss", ()), means.pop("penalty", ())
        good = jnp.isfinite(self.loss if self.whole is None else self.whole)
        for excused in (None if self.ran is None else ~self.ran, self.skipped):
            good = good if excused is None else good | excused
        finite = good.all() & all_finite(params)
        if whole and self.skipped is None and not isinstance(mean, tuple):
            finite &= jnp.isfinite(mean)
        ran, skipped = (() if flags is None else flags for flags in (self.ran, self.skipped))
        return EpochResult(cast(Array, mean), means, self.loss, finite, diagnostics, penalty, ran, skipped)


def cursor(epoch: Array | int, position: Array | int) -> dict[str, Any]:
    """The fields of a TrainState that give the position in the data."""
    if isinstance(position, int) and position == 0:
        return {"epoch": jnp.asarray(epoch, jnp.int32), "position": EPOCH_START}
    return {"epoch": jnp.asarray(epoch, jnp.int32), "position": jnp.asarray(position, jnp.int32)}


def begun(train_state: TrainState) -> TrainState:
    """The state with the position of an epoch that has not begun as `EPOCH_START`."""
    return train_state if int(train_state.position) else train_state._replace(position=EPOCH_START)


def all_finite(tree: Tree) -> Array:
    """True if every float in the tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats] or [jnp.asarray(True)]).all()
