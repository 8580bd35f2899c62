"""Metrics beside the loss: one number per example, so that means over batches are exact.

A metric is called as `(prediction, target) -> [N]`, in float32. The `value` of a loss is a metric with the loss's name.

    accuracy                  1 where the largest entry is the label's      labels, or distributions of any dtype
    top_k(k)                  1 where the label is among the k largest      likewise
    binary_accuracy           1 where the logit has the right sign          0/1, ±1, or probabilities
    binary_accuracy_at(0.5)   the same, for predicted probabilities         likewise

Shapes: prediction [N, K] or [N, …, K] with integer labels [N] or [N, …], or with a target of the same shape, whose
largest entry is the label; the binary metrics compare entry by entry, [N], [N, D] or [N, …, D]. The mean is over D
and the axes between. Ties go to the first class. A NaN in the prediction counts as wrong, never as right, and
so does every class where a row of the target is all 0; a target that cannot be right (a label out of range, NaN)
gives NaN. Shapes that do not fit raise ValueError. `help` shows the same for each.

Like a loss, a metric may have `entries(prediction, target) -> [N, …]`, its value at each step or pixel, for weights
and masks of these, and `check(prediction, target)`, which checks the target's values on the host. Any function can be
a metric; without `entries` it takes weights [N] only.

>>> import jax.numpy as jnp
>>> scores, labels = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6]]), jnp.array([1, 2])
>>> print(accuracy(scores, labels), top_k(2)(scores, labels))
[1. 0.] [1. 1.]

Index letters: N batch, T time, D features, K classes.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import checks
from jaxnn.arrays import first_of, in_dtype, is_floating, poisoned, with_rank
from jaxnn.compiled import PureFunction
from jaxnn.losses.targets import as_arrays, entry_by_entry, holds_labels, labels_and_wrong
from jaxnn.records import is_array
from jaxnn.types import Array

__all__ = ["accuracy", "top_k", "binary_accuracy", "binary_accuracy_at"]
__dir__ = __all__.copy


class _Metric(PureFunction):
    """The mean of `_score(prediction, target)`, float32, over the axes of features, which are the last.

    `_wrong(prediction, target)` returns where the target cannot be right, and which values it may hold.
    """

    _features: ClassVar[int] = 0

    @property
    def __name__(self) -> str:
        return type(self).shown_as

    def _score(self, prediction: Array, target: Array) -> Array:
        raise NotImplementedError

    def _wrong(self, prediction: Array, target: np.ndarray) -> tuple[np.ndarray, str]:
        raise NotImplementedError

    def __call__(self, prediction: Array, target: Array) -> Array:
        each = self._score(*as_arrays(f"metrics.{self.__name__}", prediction, target))
        return each.mean(axis=tuple(range(1, each.ndim)))

    def entries(self, prediction: Array, target: Array) -> Array:
        """The metric at each entry, [N, …]."""
        each = self._score(*as_arrays(f"metrics.{self.__name__}", prediction, target))
        return each.mean(axis=tuple(range(max(each.ndim - self._features, 1), each.ndim)))

    def check(self, prediction: Array, target: Array | np.ndarray) -> None:
        """Raises ValueError if the values of the target cannot be right."""
        target = np.asarray(target)
        bad, meant = self._wrong(prediction, target)
        if bad.any():
            first = first_of(bad)
            raise ValueError(
                f"metrics.{self.__name__}: {bad.sum()} of {bad.size} values of the target are not {meant}, first "
                f"target[{', '.join(map(str, first))}] = {target[first].item()!r}; give what is to be ignored weight 0"
            )


def _scored(right: Array, wrong_target: Array) -> Array:
    """Float32: 1 for what is right, NaN where the target cannot be."""
    return jnp.where(wrong_target, jnp.nan, right.astype(jnp.float32))


def _labels(name: str, prediction: Array, target: Array) -> tuple[Array, Array, Array | None]:
    """Labels [N, …] in int32; where they cannot be right; and where a target has no label, None for integer labels."""
    real = (jnp.floating, jnp.integer, jnp.bool_)
    if not holds_labels(
        f"metrics.{name}", prediction, target, distributions=real, for_one_score="see metrics.binary_accuracy"
    ):
        none = (target == jnp.zeros((), target.dtype)).all(axis=-1)  # padding: class 0 would be right for it
        return target.argmax(axis=-1).astype(jnp.int32), jnp.isnan(target).any(axis=-1), none
    labels, wrong = labels_and_wrong(target, prediction.shape[-1])
    return labels.astype(jnp.int32), wrong, None


class _OfClasses(_Metric):
    """1 where the label is among the k largest."""

    k = cast(Any, 1)

    def _score(self, prediction: Array, target: Array) -> Array:
        labels, wrong_target, none = _labels(self.__name__, prediction, target)
        classes, k = prediction.shape[-1], self.k
        if k > classes:
            raise ValueError(f"metrics.{self.__name__}: the prediction {prediction.shape} has only {classes} classes")
        # The label's rank is the number of classes ahead of it: no sort, and a tie goes to the first class. A NaN
        # counts as k classes ahead. (Sums of floats: XLA reduces integers and Booleans slowly.)
        place, label = with_rank(jnp.arange(classes, dtype=jnp.int32), prediction.ndim), labels[..., None]
        own = jnp.where(place == label, prediction, 0).sum(axis=-1, keepdims=True)
        before = jnp.where(place < label, prediction >= own, prediction > own)
        ahead = jnp.where(jnp.isnan(prediction), float(k), before.astype(jnp.float32)).sum(axis=-1)
        return _scored(ahead < k if none is None else (ahead < k) & ~none, wrong_target)

    def _wrong(self, prediction: Array, target: np.ndarray) -> tuple[np.ndarray, str]:
        classes = prediction.shape[-1]
        labels = np.issubdtype(target.dtype, np.integer) and target.ndim < len(prediction.shape)
        bad = labels_and_wrong(target, classes)[1] if labels else np.isnan(target.astype(np.float64))
        return bad, f"in 0…{classes - 1}" if labels else "numbers"


class Accuracy(_OfClasses):
    """`accuracy` is 1 where the largest entry of the prediction is the label's, else 0.

    The prediction is [N, …, K]; the target holds integer labels [N, …], or one-hot vectors or distributions
    [N, …, K], whose largest entry is the label. The result is [N] float32, the mean over steps or pixels. Ties go to
    the first class; NaN in the prediction is wrong, and so is everything where a row of the target is all 0; a label
    out of range gives NaN.

    Raises:
        ValueError: for shapes and dtypes that do not fit, under jit too.
    """

    shown_as = "accuracy"


accuracy = Accuracy()


class top_k(_OfClasses):
    """1 where the label is among the k classes with the largest scores, else 0.

    Arguments and result, [N] float32, are as for `accuracy`; `top_k(1)` equals `accuracy`. Its name is top_<k>.

    Raises:
        TypeError, ValueError: if k is not a whole number ≥ 1.
        ValueError: for shapes and dtypes that do not fit, fewer than k classes among them, under jit too.

    >>> scores, labels = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6]]), jnp.array([1, 1])
    >>> print(top_k(2)(scores, labels))
    [1. 0.]
    """

    k: int = field()

    def __post_init__(self) -> None:
        self._set(k=checks.whole_number("metrics.top_k: k", self.k, least=1))

    @property
    def __name__(self) -> str:
        return f"top_{self.k}"


class _OfEntries(_Metric):
    """1 where the prediction is on the right side of the threshold."""

    _features = 1

    def _score(self, prediction: Array, target: Array, threshold: float | Array = 0.0) -> Array:
        entry_by_entry(f"metrics.{self.__name__}", prediction, target, "metrics.accuracy")
        target = target.astype(jnp.float32)
        right = ((prediction > threshold) == (target > 0.5)) & ~jnp.isnan(prediction)
        return _scored(right, _no_sign_or_share(target))

    def _wrong(self, prediction: Array, target: np.ndarray) -> tuple[np.ndarray, str]:
        return _no_sign_or_share(target.astype(np.float32)), "0/1, ±1 or in [0, 1]"


def _no_sign_or_share(target: Any) -> Any:
    return ~((target == -1) | ((target >= 0) & (target <= 1)))


class BinaryAccuracy(_OfEntries):
    """`binary_accuracy` is 1 where the logit is above 0 and the target above ½, or neither; else 0.

    For predicted probabilities use `binary_accuracy_at(0.5)`: all of them are above 0.

    Prediction and target have one shape, [N], [N, D] or [N, …, D]; the target is 0/1, ±1 or a probability.
    The result is [N] float32, the mean over D and the axes between. NaN in the prediction is wrong; another target
    gives NaN.

    Raises:
        ValueError: for shapes that do not fit, under jit too.
    """

    shown_as = "binary_accuracy"


binary_accuracy = BinaryAccuracy()


class binary_accuracy_at(_OfEntries):
    """`binary_accuracy`, [N] float32, the prediction compared to threshold, not 0: 0.5 for probabilities.

    The threshold may be a JAX scalar.

    Raises:
        TypeError, ValueError: if the threshold is not a finite number.
        ValueError: for shapes that do not fit, under jit too.

    >>> print(binary_accuracy_at(0.5)(jnp.array([0.9, 0.4]), jnp.array([1, 1])))
    [1. 0.]
    """

    threshold: float

    def __post_init__(self) -> None:
        self._set(threshold=checks.number("metrics.binary_accuracy_at: threshold", self.threshold))

    @property
    def __name__(self) -> str:
        known = not isinstance(self.threshold, jax.core.Tracer)
        return f"binary_accuracy_at_{float(self.threshold):g}" if known else "binary_accuracy_at"

    def _score(self, prediction: Array, target: Array, threshold: float | Array | None = None) -> Array:
        # A JAX scalar is compared as a Python number is, in the precision of the prediction.
        dtype = prediction.dtype if is_floating(prediction) else jnp.result_type(float)
        threshold = in_dtype(self.threshold, dtype)
        prediction = prediction.astype(dtype) if is_array(threshold) else prediction
        return poisoned(super()._score(prediction, target, threshold), threshold)
