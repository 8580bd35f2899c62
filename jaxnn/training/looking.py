"""Data compared with the network, the loss and the metrics: shapes, then values, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxnn.arrays import first_of, is_floating
from jaxnn.checks import finite_values, weight_values
from jaxnn.combinators.walk import places
from jaxnn.errors import NothingCountsError, inside
from jaxnn.mistakes import is_traced
from jaxnn.passes.parts import costs
from jaxnn.sequences import Sequences, masks_of, values_of
from jaxnn.shapes import batch_size as size_of
from jaxnn.spmd.axes import gathered
from jaxnn.spmd.processes import agreeing, group_of
from jaxnn.spmd.transfers import local_rows
from jaxnn.training.batches import PARTS
from jaxnn.training.means import DataSet, NamedMetrics, metric_value
from jaxnn.training.parts import FromSource
from jaxnn.trees import path_name
from jaxnn.types import Layer, Loss, Params, State, Tree

CLEAN = "Clean the data, or pass check_data=False"


def check_values(
    what: str,
    net: Layer,
    loss: Loss,
    params: Params,
    state: State,
    data: DataSet,
    metrics: NamedMetrics,
    *,
    look: bool,
    advice: str = CLEAN,
) -> None:
    """Checks shapes against the network and the loss; with `look` values too: not finite, bad labels, bad weights.

    Of several processes each looks at the examples that it holds, and what one of them finds all raise.
    """
    x, target, *weights = data
    forward = lambda p, s, x: net.forward(gathered(p, x), s, x)[0]  # noqa: E731
    with _about(what):
        output = jax.eval_shape(forward, params, state, x)
        jax.eval_shape(lambda *args: costs(loss, *args).mean, output, target, *weights)
        for name, metric in metrics:
            jax.eval_shape(partial(metric_value, name, metric), output, target, *weights)
    if not look:
        return
    if isinstance(data, FromSource):  # whose values are looked at where they are read
        data.look = partial(_look, net, loss, output, metrics, advice, whole=False)
        return
    with agreeing(group_of(data)):
        here = local_rows(data)
        if here is not data:
            specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, state))
            output = jax.eval_shape(forward, *specs, here[0])
        _look(net, loss, output, metrics, advice, here, what)


def _look(
    net: Layer,
    loss: Loss,
    output: Any,
    metrics: NamedMetrics,
    advice: str,
    data: DataSet,
    what: str,
    whole: bool = True,
) -> None:
    """Checks values: not finite, bad labels, bad weights. Of some rows, not the `whole`, no weight need count."""
    x, target, *weights = data
    if not len(jax.tree.leaves(x)[0]):  # no row is here
        return
    if not whole:
        n = size_of("x", x)
        output = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), output)
    nothing: NothingCountsError | None = None
    try:
        for values in weights:
            if not is_traced(values):
                weight_values(f"{what}: weights", values, some=whole)
        with _about(what):
            counted = _counted_target(loss, output, x, target, *weights, whole=whole)
    except NothingCountsError as error:  # it may count in another process; what is not finite is an error all the same
        nothing, counted = error, ()
    for part, tree in zip(PARTS, (x, target), strict=False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if is_floating(leaf) and not is_traced(leaf):
                finite_values("/".join(filter(None, (f"{what}: {part}", path_name(path)))), np.asarray(leaf), advice)
    if not is_traced(x):
        with _about(f"{what}: x"):
            _look_at_inputs(net, x)
    prediction = values_of(output)
    for check in (loss.check, *(getattr(metric, "check", None) for _, metric in metrics)):
        if check is not None and jax.tree.leaves(counted) and not is_traced(counted):
            with _about(what):
                check(prediction, counted)
    if nothing is not None:
        raise nothing


def _counted_target(loss: Loss, output: Any, x: Tree, target: Tree, weights: Any = None, *, whole: bool = True) -> Tree:
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
        if not whole:
            return ()
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
def _about(what: str) -> Iterator[None]:
    """Adds to an error whether it concerns the training data or the validation set."""
    try:
        yield
    except (ValueError, TypeError) as error:
        error.args = (f"{what}: {error}",)
        raise
