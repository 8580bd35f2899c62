"""Means over an epoch or a data set: the loss, and what is counted beside it.

Each batch contributes Σ w·figure in a unit that prevents overflow; the quotient is exact for batches of any sizes and
weights. Letters: N examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating
from jaxnn.checks import seen
from jaxnn.mistakes import accepts, factory_hint, is_function, of_two_arrays
from jaxnn.records import Record
from jaxnn.shapes import batch_size
from jaxnn.types import Array, Loss, Metric, Tree
from jaxnn.weighting import figures_of, power_of_two, usable_weights, weighted

Metrics = Mapping[str, Metric] | Sequence[Metric]
NamedMetrics = tuple[tuple[str, Metric], ...]
DataSet = tuple[Any, ...]  # (x, target) or (x, target, weights), N examples first
# names in the history that no metric may have
RESERVED = {"loss", "penalty", "seconds", "weight", "update_scale", "skipped"}


class ValueOf(Record):
    """The value of a loss as a metric, `losses.mse.value`: with the loss's name, entries and check."""

    loss: Loss

    def __call__(self, prediction: Any, target: Any) -> Array:
        return self.loss.value(prediction, target)

    @property
    def __name__(self) -> str:
        return self.loss.name

    @property
    def entries(self) -> Any:
        return self.loss.entries

    @property
    def check(self) -> Any:
        return self.loss.check


def in_moderation(data: DataSet) -> tuple[DataSet, Array | float]:
    """The data with rescaled weights, and a factor with which the weights sum to at most 1.

    A power of two: sums that are multiplied by it before they are taken stay in range if their mean does, and are
    otherwise what they were.
    """
    x, target, *weights = data
    factor = 0.5 ** (batch_size("x", x) - 1).bit_length()
    if not weights:
        return data, factor
    dtype = accumulator(weights[0].dtype) if is_floating(weights[0]) else jnp.result_type(float)
    w, _ = usable_weights(weights[0], dtype)
    top = power_of_two(jnp.where(w > 0, w, 0).max())
    return (x, target, w), factor / (2 * jnp.where(top == 0, 1, top))


def batch_sums(
    factor: Array | float,
    weight: Array,
    figures: dict[str, Array],
    output: Any,
    target: Tree,
    weights: Array | None,
    metrics: NamedMetrics,
) -> dict[str, Array]:
    """Σ w of a batch (its weight), Σ w·figure of each mean over it, and Σ w·metric, all times the factor."""
    weight = weight * jnp.asarray(factor, weight.dtype)
    sums = {"weight": weight, **{name: mean * weight for name, mean in figures.items()}}
    for name, metric in metrics:
        value, w = metric_value(name, metric, output, target, weights)
        value, each = value.astype(weight.dtype), jnp.asarray(factor, weight.dtype)
        if w is not None:
            each = w.astype(weight.dtype) * (each / math.prod(w.shape[1:]))
            value = jnp.where(each == 0, 0, each * value)
        else:
            value = each * value
        sums[name] = value.sum()
    return sums


def metric_value(
    name: str, metric: Metric, output: Any, target: Tree, weights: Array | None = None
) -> tuple[Array, Array | None]:
    """metric(output, target), checked to be [N], or that of each entry if entries are weighted; and the weights."""
    entries = getattr(metric, "entries", None)
    case = weighted(f"metric {name!r}", entries, output, target, weights)
    demand = f"metric {name!r} must give one value"

    def figure(prediction: Any, target: Any) -> Array:
        n, value = batch_size("output", prediction), metric(prediction, target)
        expected = f"{demand} for each example, an array ({n},)"
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            advice = ": leave the mean over examples to fit" if isinstance(value, float) else ": use jnp.asarray"
            raise TypeError(f"{expected}, got {seen(value)}{advice}")
        if value.shape != (n,):
            advice = "" if value.shape else ": leave the mean over examples to fit, which takes it over all batches"
            raise ValueError(f"{expected}, got shape {value.shape}{advice}")
        return value

    value = of_two_arrays(f"metric {name!r}", make=lambda: figures_of(demand, figure, entries, case))
    if case.weights is None or case.unit is None:
        return value, None
    return value, case.weights * case.unit


def means_of(sums: dict[str, Array]) -> dict[str, Array]:
    """Σ w·value / Σ w over all batches, from the sums of each, [batches]."""
    total = sums["weight"].sum()
    return {name: value.sum() / total.astype(value.dtype) for name, value in sums.items() if name != "weight"}


def named_metrics(metrics: Metrics) -> NamedMetrics:
    """Metrics with their names, hashable; by default the name of the function."""
    if is_function(metrics) or hasattr(metrics, "_fields"):
        raise TypeError("metrics must be a list or a dict of functions: give metrics=[metric]")
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise TypeError(f"metrics must be a list or a dict of functions, metrics=[metric], got {metrics!r}")
    pairs = metrics.items() if isinstance(metrics, Mapping) else [(None, metric) for metric in metrics]
    named = tuple((_name(metric) if name is None else str(name), metric) for name, metric in map(_metric, pairs))
    names = [name for name, _ in named]
    if len(set(names)) < len(names) or RESERVED & set(names):
        taken = ", ".join(map(repr, sorted(RESERVED)))
        raise ValueError(f"metrics need names that differ, and none of {taken}; got {names}")
    return named


def _metric(pair: tuple[Any, Any]) -> tuple[Any, Metric]:
    """The pair (name, metric), if the metric is a function of two arguments."""
    metric = pair[1]
    loss = getattr(metric, "__self__", None)
    if isinstance(loss, Loss) and metric == loss.value:
        return pair[0], ValueOf(loss)
    if not is_function(metric):
        hint = f": give losses.{metric.name}.value" if isinstance(metric, Loss) else ""
        raise TypeError(f"a metric is a function (prediction, target) -> [N], got {seen(metric)}{hint}")
    if not accepts(metric, None, None):
        raise TypeError(
            f"a metric is a function (prediction, target) -> [N], got {seen(metric)}, which takes other "
            f"arguments{factory_hint(metric)}"
        )
    return pair


def _name(metric: Metric) -> str:
    return getattr(metric, "__name__", type(metric).__name__)
