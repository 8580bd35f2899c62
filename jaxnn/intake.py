"""What enters training: put on the device, held against the network and the loss, and looked at.

Everything here happens on the host, before anything compiles, and says whether it is the training data or the
validation set that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Number
from typing import Any

import jax
import numpy as np

from jaxnn.backprop import check_params, check_records, cost
from jaxnn.checks import describe, finite_values, inside, is_floating, number, path_name, weight_values
from jaxnn.placement import spread
from jaxnn.steps import PARTS, DataSet, NamedMetrics, check_sizes, metric_value
from jaxnn.types import Array, Layer, Loss, Optimizer, TrainState, Tree

CLEAN = "Clean the data, or pass check_data=False"


def on_device(what: str, parts: Any) -> tuple[Any, ...]:
    """The parts as device arrays with N examples each."""
    if what != "x" and (not isinstance(parts, (tuple, list)) or len(parts) not in (2, 3)):
        got = f"{type(parts).__name__} of {len(parts)}" if isinstance(parts, (tuple, list)) else describe(parts)
        raise TypeError(f"{what} must be (x, target) or (x, target, weights), got {got}")
    arrays = []
    for name, part in zip(PARTS, parts, strict=False):
        where = name if what == "x" else f"{what}: {name}"
        if isinstance(part, (list, tuple)) and any(isinstance(leaf, Number) for leaf in jax.tree.leaves(part)):
            raise TypeError(f"{where} must be an array or a tree of arrays, got a list of numbers: use np.asarray")
        arrays.append(jax.tree.map(partial(_on_device, where), part))
    check_sizes(what, tuple(arrays))
    return tuple(arrays)


def check_fit_records(net: Any, loss: Any, optimizer: Any) -> None:
    """The first three arguments are records, and not the factories of such."""
    check_records("fit", net, loss)
    if not callable(getattr(optimizer, "init", None)) or not callable(getattr(optimizer, "update", None)):
        hint = "; a factory needs its parentheses, adam(1e-3)" if callable(optimizer) else ""
        raise TypeError(f"fit: optimizer must have init and update, as jaxnn.adam(1e-3) has, got {optimizer!r}{hint}")


def check_train_state(net: Layer, train_state: TrainState, x: Tree, optimizer: Optimizer | None = None) -> None:
    """The state is one, and of this network, and of this optimizer where one is given."""
    if not isinstance(train_state, TrainState):
        raise TypeError(
            f"train_state must be a TrainState, as in fit(...).train_state, got {type(train_state).__name__}"
        )
    check_params(net, train_state.params, x)
    if optimizer is not None:
        expected: Any = jax.eval_shape(optimizer.init, train_state.params)
        structures: list[Any] = [jax.tree.structure(tree) for tree in (expected, train_state.opt_state)]
        if structures[0] != structures[1]:
            raise ValueError(
                f"fit: train_state.opt_state is not this optimizer's: expected {type(expected).__name__}, got "
                f"{type(train_state.opt_state).__name__}; give train_state._replace(opt_state=optimizer.init(params))"
            )
        rate = getattr(train_state.opt_state, "learning_rate", None)  # optax's states show none
        if rate is not None and np.size(rate) == 1:
            number("fit: train_state.opt_state.learning_rate", float(np.asarray(rate).item()), least=0.0)


def check_values(
    what: str,
    net: Layer,
    loss: Loss,
    train_state: TrainState,
    data: DataSet,
    metrics: NamedMetrics,
    *,
    look: bool,
) -> None:
    """Shapes against the loss always; values (not finite, bad labels, bad weights) where the user lets us look."""
    x, target, *weights = data
    with _about(what):
        output = jax.eval_shape(lambda p, s, x: net.forward(p, s, x)[0], train_state.params, train_state.state, x)
        jax.eval_shape(partial(cost, loss), output, target)
        for name, metric in metrics:
            jax.eval_shape(partial(metric_value, name, metric), output, target)
    if not look:
        return
    for part, tree in zip(PARTS, (x, target), strict=False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if is_floating(leaf):
                finite_values("/".join(filter(None, (f"{what}: {part}", path_name(path)))), np.asarray(leaf), CLEAN)
    with _about(f"{what}: x"):
        _look_at_inputs(net, x)
    for values in weights:
        weight_values(f"{what}: weights", values)
    if loss.check is not None:
        with _about(what):
            loss.check(output, target)


def _look_at_inputs(layer: Layer, x: Tree) -> None:
    """Every layer that reads the network's own input looks at its values, if it has a rule for that."""
    look = dict(layer.rules).get("look at inputs")
    if look is not None:
        look(x)
    first = 1 if layer.kind == "serial" else None
    for name, child in zip(layer.child_names[:first], layer.children[:first], strict=True):
        with inside(name) if name else nullcontext():
            _look_at_inputs(child, x)


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Says of an error from below whether it is the training data's or the validation set's."""
    try:
        yield
    except (ValueError, TypeError) as error:
        error.args = (f"{what}: {error}",)
        raise


def _on_device(what: str, leaf: Any) -> Array:
    if isinstance(leaf, jax.Array):
        return leaf
    here = np.asarray(leaf)
    there = jax.device_put(here, spread(here))  # compiles nothing
    if here.dtype.kind in "iu" and there.dtype != here.dtype and not np.array_equal(np.asarray(there), here):
        first = here[np.asarray(there) != here][0]
        raise ValueError(f"{what} holds {first}, beyond {there.dtype}: on the device whole numbers are {there.dtype}")
    return there
