"""Values of data that enter training, looked at on the host: not finite, bad labels, bad weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np

from jaxnn.arrays import first_of, is_floating
from jaxnn.checks import finite_values, weight_values
from jaxnn.combinators.walk import places
from jaxnn.errors import NothingCountsError, inside
from jaxnn.mistakes import is_traced
from jaxnn.sequences import Sequences, masks_of, values_of
from jaxnn.training.batches import PARTS
from jaxnn.training.means import DataSet, NamedMetrics
from jaxnn.trees import path_name
from jaxnn.types import Layer, Loss, Tree


def look_at(what: str, net: Layer, loss: Loss, output: Any, data: DataSet, metrics: NamedMetrics, advice: str) -> None:
    """Raises an error for values that are not finite, bad labels and bad weights.

    Args:
        what: the data set in messages.
        net: the network, whose layers look at its input.
        loss: the loss, which looks at targets, as metrics do.
        output: the network's on these data, as jax.ShapeDtypeStructs.
        data: (x, target) or (x, target, weights); what is traced is not looked at. No example is never wrong.
        metrics: by name.
        advice: the end of the message about values that are not finite.
    """
    x, target, *weights = data
    if not len(jax.tree.leaves(x)[0]):
        return
    nothing: NothingCountsError | None = None
    try:
        for values in weights:
            if not is_traced(values):
                weight_values(f"{what}: weights", values)
        with about(what):
            counted = _counted_target(loss, output, x, target, *weights)
    except NothingCountsError as error:  # it may count in another process; what is not finite is an error all the same
        nothing, counted = error, ()
    for part, tree in zip(PARTS, (x, target), strict=False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if is_floating(leaf) and not is_traced(leaf):
                finite_values("/".join(filter(None, (f"{what}: {part}", path_name(path)))), np.asarray(leaf), advice)
    if not is_traced(x):
        with about(f"{what}: x"):
            _look_at_inputs(net, x)
    prediction = values_of(output)
    for check in (loss.check, *(getattr(metric, "check", None) for _, metric in metrics)):
        if check is not None and jax.tree.leaves(counted) and not is_traced(counted):
            with about(what):
                check(prediction, counted)
    if nothing is not None:
        raise nothing


def _counted_target(loss: Loss, output: Any, x: Tree, target: Tree, weights: Any = None) -> Tree:
    """The target's values, those that do not count replaced by the first that does; () if that is unknown.

    Raises ValueError if no entry counts.
    """
    masks = masks_of(target)
    if masks_of(output):  # its values are not known: it is handed on from x
        parts = jax.tree.leaves(x, is_leaf=lambda part: isinstance(part, Sequences))
        same = [mask for part in parts for mask in masks_of(part) if mask.shape == output.mask.shape]
        if len(same) != 1:
            return ()
        masks += same
    target = values_of(target)
    if not masks and weights is None:
        return target
    if is_traced(target, masks, weights):
        return ()
    w = np.ones(()) if weights is None else np.asarray(weights)
    rank = max(w.ndim, *(mask.ndim for mask in masks), 1)
    counts = _wider(w != 0, rank)
    for mask in masks:
        counts = counts & _wider(np.asarray(mask), rank)
    if counts.all():
        return target
    if not counts.any():
        raise NothingCountsError(f"loss {loss.name!r}: no entry counts: all of them are masked or have weight 0")

    def settled(leaf: Any) -> np.ndarray:
        values = np.array(leaf)
        if values.shape[:rank] == counts.shape:
            values[~counts] = values[first_of(counts)]
        return values

    return jax.tree.map(settled, target)


def _wider(x: np.ndarray, rank: int) -> np.ndarray:
    return x.reshape(x.shape + (1,) * (rank - x.ndim))


def _look_at_inputs(net: Layer, x: Tree) -> None:
    """Lets every layer that reads the input of the network check its values."""
    for place in places(net):
        if place.reads_x:
            with inside("/".join(place.path)) if place.path else nullcontext():
                place.layer.look(x)


@contextmanager
def about(what: str) -> Iterator[None]:
    """Adds to an error whether it concerns the training data or the validation set."""
    try:
        yield
    except (ValueError, TypeError) as error:
        error.args = (f"{what}: {error}",)
        raise
