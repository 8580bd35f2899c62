"""Metrics: what is counted beside the loss, one number per example, so that a mean over any batches is exact.

A metric is a function `(prediction, target) -> [N]` in float32; the `value` of a loss is one too.

    accuracy                  1 where the largest entry is the label's      labels, or distributions of any dtype
    top_k(k)                  1 where the label is among the k largest      likewise
    binary_accuracy           1 where the logit is above 0 as it should be  0/1, ±1, or probabilities
    binary_accuracy_at(0.5)   the same, for predicted probabilities         likewise

Shapes: prediction [N, K] or [N, T, K] with integer labels [N] or [N, T], or with a target of its own shape, of
which the largest entry is the label; the binary ones compare entry by entry, [N], [N, D] or [N, T, D]. Over D and
T, the mean. Ties go to the first class. A NaN in the prediction counts as wrong, never as right; a target that
cannot be right (a label out of range, NaN) gives NaN. Shapes that do not fit raise ValueError.

>>> import jax.numpy as jnp
>>> scores, labels = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6]]), jnp.array([1, 2])
>>> print(accuracy(scores, labels), top_k(2)(scores, labels))
[1. 0.] [1. 1.]

Index letters: N batch, T time, D features, K classes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp

from jaxnn import checks
from jaxnn.types import Array, Metric

__all__ = ["accuracy", "top_k", "binary_accuracy", "binary_accuracy_at"]


def _per_example(right: Array, wrong_target: Array) -> Array:
    """[N] float32: the share of what is right, NaN where the target cannot be."""
    score = jnp.where(wrong_target, jnp.nan, right.astype(jnp.float32))
    return score.mean(axis=tuple(range(1, score.ndim)))


def _check_batches(name: str, prediction: Any, target: Any) -> str:
    """The beginning of a message about two shapes, once it is known that both arguments are batches."""
    where = f"metrics.{name}: prediction {prediction.shape} and target {target.shape}"
    if not prediction.shape or not target.shape:
        raise ValueError(f"{where}: each needs a batch axis; add it with x[None] for one example")
    if prediction.shape[0] != target.shape[0]:
        raise ValueError(
            f"{where} differ in batch size: {prediction.shape[0]} predictions for {target.shape[0]} targets"
        )
    return where


def _labels(name: str, prediction: Array, target: Array) -> tuple[Array, Array]:
    """Labels [N, …] in int32 and where they cannot be right."""
    where = _check_batches(name, prediction, target)
    if prediction.ndim < 2:
        raise ValueError(f"{where}: one score per class is needed, [N, K]; for one output see binary_accuracy")
    if target.shape == prediction.shape:
        return target.argmax(axis=-1).astype(jnp.int32), jnp.isnan(target).any(axis=-1)
    if target.shape != prediction.shape[:-1]:
        raise ValueError(f"{where}: labels {prediction.shape[:-1]} or one-hot {prediction.shape} are meant")
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise ValueError(f"{where}: labels must be integers, got {target.dtype}: use target.astype('int32')")
    # A narrow type cannot hold K; a wide one is looked at before it is narrowed.
    labels = target if target.dtype.itemsize >= 4 else target.astype(jnp.int32)
    return labels.astype(jnp.int32), (labels < 0) | (labels >= prediction.shape[-1])


@cache
def _top_k(k: int, name: str) -> Metric:
    def metric(prediction: Array, target: Array) -> Array:
        prediction, target = jnp.asarray(prediction), jnp.asarray(target)
        labels, wrong_target = _labels(name, prediction, target)
        classes = prediction.shape[-1]
        if k > classes:
            raise ValueError(f"metrics.{name}: the prediction {prediction.shape} has only {classes} classes")
        # The label's rank, by counting what stands before it: no sort, and a tie goes to the first class. A NaN
        # stands before everything, k times over. (Sums of floats: XLA is slow in reducing integers and Booleans.)
        place, label = jnp.arange(classes, dtype=jnp.int32), labels[..., None]
        score = jnp.where(place == label, prediction, 0).sum(axis=-1, keepdims=True)
        before = jnp.where(place < label, prediction >= score, prediction > score)
        ahead = jnp.where(jnp.isnan(prediction), float(k), before.astype(jnp.float32)).sum(axis=-1)
        return _per_example(ahead < k, wrong_target)

    metric.__name__ = metric.__qualname__ = name
    return metric


accuracy: Metric = _top_k(1, "accuracy")
"""1 where the largest entry of the prediction [N, …, K] is the label's, else 0; [N] float32, the mean over time.

The target holds integer labels [N, …], or one-hot vectors or distributions [N, …, K].
"""


def top_k(k: int) -> Metric:
    """1 where the label is among the k classes with the largest scores; arguments as those of `accuracy`.

    `top_k(1)` counts what `accuracy` counts. Equal arguments give the same function, named top_<k>.

    Raises:
        TypeError, ValueError: if k is not a whole number ≥ 1; ValueError when used on fewer than k classes.
    """
    k = checks.whole_number("metrics.top_k: k", k, least=1)
    return _top_k(k, f"top_{k}")


@cache
def _binary_accuracy_at(threshold: float, name: str) -> Metric:
    def metric(prediction: Array, target: Array) -> Array:
        prediction, target = jnp.asarray(prediction), jnp.asarray(target)
        where = _check_batches(name, prediction, target)
        if prediction.shape != target.shape:
            last = ":" if min(prediction.ndim, target.ndim) == 1 else "..."
            advice = (
                f"use prediction[{last}, 0] or target[{last}, None]"
                if prediction.shape == (*target.shape, 1)
                else f"use prediction[{last}, None] or target[{last}, 0]"
                if target.shape == (*prediction.shape, 1)
                else "for class labels see accuracy"
            )
            raise ValueError(f"{where} differ in shape; {advice}")
        target = target.astype(jnp.float32)
        right = ((prediction > threshold) == (target > 0.5)) & ~jnp.isnan(prediction)
        return _per_example(right, ~((target == -1) | ((target >= 0) & (target <= 1))))

    metric.__name__ = metric.__qualname__ = name
    return metric


binary_accuracy: Metric = _binary_accuracy_at(0.0, "binary_accuracy")
"""1 where the logit is above 0 and the target above ½ (0/1, ±1 or a probability), or neither; mean over D and T.

For predicted probabilities use `binary_accuracy_at(0.5)`: all of them are above 0.
"""


def binary_accuracy_at(threshold: float) -> Metric:
    """`binary_accuracy` with the prediction compared to threshold instead of 0: 0.5 for probabilities.

    Equal arguments give the same function.

    Raises:
        TypeError, ValueError: if the threshold is not a finite number.
    """
    threshold = checks.number("metrics.binary_accuracy_at: threshold", threshold)
    return _binary_accuracy_at(threshold, f"binary_accuracy_at_{threshold:g}")
