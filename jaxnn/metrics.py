"""Metrics: what is counted beside the loss, one number per example, so that a mean over any batches is exact.

A metric is a function `(prediction, target) -> [N]` in float32; the `value` of a loss is one too, of the loss's name.

    accuracy                  1 where the largest entry is the label's      labels, or distributions of any dtype
    top_k(k)                  1 where the label is among the k largest      likewise
    binary_accuracy           1 where the logit is above 0 as it should be  0/1, ±1, or probabilities
    binary_accuracy_at(0.5)   the same, for predicted probabilities         likewise

Shapes: prediction [N, K] or [N, T, K] with integer labels [N] or [N, T], or with a target of its own shape, of
which the largest entry is the label; the binary ones compare entry by entry, [N], [N, D] or [N, T, D]. Over D and
T, the mean. Ties go to the first class. A NaN in the prediction counts as wrong, never as right; a target that
cannot be right (a label out of range, NaN) gives NaN. Shapes that do not fit raise ValueError.
`help(accuracy)` says the same of each.

>>> import jax.numpy as jnp
>>> scores, labels = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6]]), jnp.array([1, 2])
>>> print(accuracy(scores, labels), top_k(2)(scores, labels))
[1. 0.] [1. 1.]

Index letters: N batch, T time, D features, K classes.
"""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp

from jaxnn import checks
from jaxnn.ranks import with_rank
from jaxnn.types import Array, Metric

__all__ = ["accuracy", "top_k", "binary_accuracy", "binary_accuracy_at"]


def __dir__() -> list[str]:
    return list(__all__)


def _per_example(right: Array, wrong_target: Array) -> Array:
    """[N] float32: the share of what is right, NaN where the target cannot be."""
    score = jnp.where(wrong_target, jnp.nan, right.astype(jnp.float32))
    return score.mean(axis=tuple(range(1, score.ndim)))


def _labels(name: str, prediction: Array, target: Array) -> tuple[Array, Array]:
    """Labels [N, …] in int32 and where they cannot be right."""
    real = (jnp.floating, jnp.integer, jnp.bool_)
    if not checks.holds_labels(
        f"metrics.{name}", prediction, target, distributions=real, for_one_score="see metrics.binary_accuracy"
    ):
        return target.argmax(axis=-1).astype(jnp.int32), jnp.isnan(target).any(axis=-1)
    labels, wrong = checks.labels_and_wrong(target, prediction.shape[-1])
    return labels.astype(jnp.int32), wrong


@cache
def _top_k(k: int, name: str, doc: str) -> Metric:
    def metric(prediction: Array, target: Array) -> Array:
        prediction, target = checks.as_arrays(f"metrics.{name}", prediction, target)
        labels, wrong_target = _labels(name, prediction, target)
        classes = prediction.shape[-1]
        if k > classes:
            raise ValueError(f"metrics.{name}: the prediction {prediction.shape} has only {classes} classes")
        # The label's rank, by counting what stands before it: no sort, and a tie goes to the first class. A NaN
        # stands before everything, k times over. (Sums of floats: XLA is slow in reducing integers and Booleans.)
        place, label = with_rank(jnp.arange(classes, dtype=jnp.int32), prediction.ndim), labels[..., None]
        score = jnp.where(place == label, prediction, 0).sum(axis=-1, keepdims=True)
        before = jnp.where(place < label, prediction >= score, prediction > score)
        ahead = jnp.where(jnp.isnan(prediction), float(k), before.astype(jnp.float32)).sum(axis=-1)
        return _per_example(ahead < k, wrong_target)

    metric.__name__, metric.__qualname__, metric.__doc__ = name, name, doc
    return metric


_TARGETS = """The prediction is [N, …, K]; the target holds integer labels [N, …], or one-hot vectors or distributions
    [N, …, K], whose largest entry is the label. The result is [N] float32, the mean over time. Ties go to the first
    class; NaN in the prediction is wrong; a label out of range gives NaN.

    Raises:
        ValueError: for shapes and dtypes that do not fit, under jit too.
    """

accuracy: Metric = _top_k(
    1,
    "accuracy",
    f"""1 where the largest entry of the prediction is the label's, else 0.

    {_TARGETS}""",
)


def top_k(k: int) -> Metric:
    """1 where the label is among the k classes with the largest scores; arguments as those of `accuracy`.

    `top_k(1)` counts what `accuracy` counts. Equal arguments give the same function, named top_<k>.

    Raises:
        TypeError, ValueError: if k is not a whole number ≥ 1; ValueError when used on fewer than k classes.

    >>> scores, labels = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6]]), jnp.array([1, 1])
    >>> print(top_k(2)(scores, labels))
    [1. 0.]
    """
    k = checks.whole_number("metrics.top_k: k", k, least=1)
    doc = f"""1 where the label is among the {k} classes with the largest scores, else 0.

    {_TARGETS}"""
    return _top_k(k, f"top_{k}", doc)


@cache
def _binary_accuracy_at(threshold: float, name: str, doc: str) -> Metric:
    def metric(prediction: Array, target: Array) -> Array:
        prediction, target = checks.as_arrays(f"metrics.{name}", prediction, target)
        checks.entry_by_entry(f"metrics.{name}", prediction, target, "metrics.accuracy")
        target = target.astype(jnp.float32)
        right = ((prediction > threshold) == (target > 0.5)) & ~jnp.isnan(prediction)
        return _per_example(right, ~((target == -1) | ((target >= 0) & (target <= 1))))

    metric.__name__, metric.__qualname__, metric.__doc__ = name, name, doc
    return metric


_ENTRIES = """Prediction and target have one shape, [N], [N, D] or [N, T, D]; the target is 0/1, ±1 or a probability.
    The result is [N] float32, the mean over D and T. NaN in the prediction is wrong; another target gives NaN.

    Raises:
        ValueError: for shapes that do not fit, under jit too.
    """

binary_accuracy: Metric = _binary_accuracy_at(
    0.0,
    "binary_accuracy",
    f"""1 where the logit is above 0 and the target above ½, or neither; else 0.

    For predicted probabilities use `binary_accuracy_at(0.5)`: all of them are above 0.

    {_ENTRIES}""",
)


def binary_accuracy_at(threshold: float) -> Metric:
    """`binary_accuracy` with the prediction compared to threshold instead of 0: 0.5 for probabilities.

    Equal arguments give the same function.

    Raises:
        TypeError, ValueError: if the threshold is not a finite number.

    >>> print(binary_accuracy_at(0.5)(jnp.array([0.9, 0.4]), jnp.array([1, 1])))
    [1. 0.]
    """
    threshold = checks.number("metrics.binary_accuracy_at: threshold", threshold)
    doc = f"""1 where the prediction is above {threshold:g} and the target above ½, or neither; else 0.

    {_ENTRIES}"""
    return _binary_accuracy_at(threshold, f"binary_accuracy_at_{threshold:g}", doc)
