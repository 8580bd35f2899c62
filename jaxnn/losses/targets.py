"""Checks of targets: the values that each kind may hold, and errors for those that cannot be right.

On the host, wrong values are explained (`check_values`); in a compiled program they turn their example into NaN
(`poison`). Letters: N batch, T time, D features, K classes; t target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import first_of, is_floating
from jaxnn.checks import seen
from jaxnn.trees import describe
from jaxnn.types import Array


class Domain(NamedTuple):
    """The values a target may take."""

    wrong: Callable[[Any], Any]  # of a NumPy or JAX array, entry by entry: True where the value cannot be right
    meant: str  # the right values in words
    cause: Callable[[np.ndarray], str]  # the likely cause, from all values, given that some are wrong
    poisons: bool = True  # False if a wrong value gives NaN by itself


def _cause_of_bad_sign(t: np.ndarray) -> str:
    if np.isin(t, (0, 1)).all():
        return "these look like 0/1 labels: use 2 * target - 1, or losses.sigmoid_binary_cross_entropy"
    return "labels of this loss are -1 and 1"


def _cause_of_bad_share(t: np.ndarray) -> str:
    if np.isin(t, (-1, 1)).all():
        return "these look like ±1 labels: use (target + 1) / 2, or losses.logistic"
    if np.isin(t, (1, 2)).all():
        return "the labels seem to count from 1: use target - 1"
    if t.min() >= 0 and (t == np.round(t)).all():
        return "for class labels use losses.softmax_cross_entropy; 8-bit intensities need target / 255"
    return "a target of this loss is a probability"


def _cause_of_bad_distribution(t: np.ndarray) -> str:
    if t.max() <= 0:
        return "these look like log-probabilities: use jnp.exp(target)"
    return "a distribution has no negative and no infinite entry"


NUMBERS = Domain(
    lambda t: ~np.isfinite(t), "finite", lambda t: "drop these examples or fill the values in", poisons=False
)
SIGNS = Domain(lambda t: abs(t) != 1, "-1 or 1", _cause_of_bad_sign)
SHARES = Domain(lambda t: ~((t >= 0) & (t <= 1)), "in [0, 1]", _cause_of_bad_share)
DISTRIBUTIONS = Domain(lambda t: ~((t >= 0) & (t < math.inf)), "≥ 0 and finite", _cause_of_bad_distribution)
WHOLE = Domain(
    lambda t: t != np.round(t), "whole numbers", lambda t: "for numbers use a regression loss such as losses.mse"
)


def labels_of(classes: int) -> Domain:
    """Class labels 0…K−1."""

    def cause(t: np.ndarray) -> str:
        least, most = int(t.min()), int(t.max())
        if least == 1 and most == classes:
            return "the labels seem to count from 1: use target - 1"
        if classes == 2 and np.isin(t, (-1, 1)).all():
            return "these look like ±1 labels: use (target + 1) // 2"
        if least < 0:
            return "negative labels are not skipped: drop these examples, or give what is to be ignored weight 0"
        return f"the prediction has {classes} classes and the labels need {most + 1}"

    return Domain(lambda t: labels_and_wrong(t, classes)[1], f"in 0…{classes - 1}", cause)


def check_dtypes(where: str, prediction: Array, target: Array) -> None:
    """Raises ValueError unless floats are compared with real numbers, at least one."""
    if not is_floating(prediction):
        raise ValueError(f"{where} expects a float prediction, got {describe(prediction)}")
    if not any(jnp.issubdtype(target.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"{where} expects a target of real numbers, got {describe(target)}")
    if 0 in prediction.shape[1:]:
        raise ValueError(f"{where}: prediction {tuple(prediction.shape)} has an axis of size 0")


def check_values(where: str, domain: Domain, values: np.ndarray) -> None:
    """Raises ValueError with the number, first position and likely cause of values that cannot be right."""
    if values.dtype.kind not in "iub":
        values = values.astype(np.float64)  # NumPy's half precisions lack some of the tests
    nan = np.isnan(values)
    wrong = nan if nan.any() else np.asarray(domain.wrong(values))
    if not wrong.any():
        return
    first = first_of(wrong)
    complaint = "NaN" if nan.any() else f"not {domain.meant}"
    cause = NUMBERS.cause(values) if nan.any() else domain.cause(values)
    raise ValueError(
        f"{where}: {wrong.sum()} of {values.size} values of the target are {complaint}, "
        f"first target[{', '.join(map(str, first))}] = {values[first].item()!r}; {cause}"
    )


def poison(wrong: Array, like: Array, kept: int = 1) -> Array:
    """A term [N, 1, …] to add to an example's target: NaN where any value of the example is wrong, else 0.

    With more axes kept, it is a term for each entry.

    In every rule the target is a factor, so that its NaN reaches value, δ and every entry of `jax.grad`; replacing the
    result by NaN would not. XLA fuses the sum (where `any` would do) and the target (where the prediction would)
    without slowing down the rest.
    """
    sick = jnp.where(wrong, jnp.nan, 0.0).astype(like.dtype).sum(axis=tuple(range(kept, wrong.ndim)))
    return sick.reshape(*(sick.shape if kept > 1 else (-1,)), *[1] * (like.ndim - kept))


def as_arrays(where: str, prediction: Any, target: Any) -> tuple[Array, Array]:
    """Both as arrays; otherwise TypeError."""
    for name, value in (("prediction", prediction), ("target", target)):
        try:
            if value is None or isinstance(value, (str, dict)) or hasattr(value, "_fields") or callable(value):
                raise TypeError
            jnp.shape(value if hasattr(value, "shape") else np.asarray(value, np.float32))
        except (TypeError, ValueError):
            raise TypeError(f"{where}: {name} must be an array, got {seen(value)}") from None
    return jnp.asarray(prediction), jnp.asarray(target)


def both_batches(where: str, prediction: Any, target: Any) -> str:
    """The beginning of a message about two shapes, after checking that they are batches of one size."""
    for name, value in (("prediction", prediction), ("target", target)):
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            got = "None" if value is None else f"a {type(value).__name__}"
            raise TypeError(f"{where}: {name} must be an array, got {got}: use np.asarray for numbers")
    shown = f"{where}: prediction {tuple(prediction.shape)} and target {tuple(target.shape)}"
    if not prediction.shape or not target.shape:
        raise ValueError(f"{shown}: each needs a batch axis; add it with x[None] for one example")
    if prediction.shape[0] != target.shape[0]:
        raise ValueError(
            f"{shown} differ in batch size: {prediction.shape[0]} predictions for {target.shape[0]} targets"
        )
    return shown


def entry_by_entry(where: str, prediction: Array, target: Array, for_labels: str) -> None:
    """Raises ValueError unless the target has the prediction's shape: nothing is broadcast.

    `for_labels` names the alternative for class labels.
    """
    shown = both_batches(where, prediction, target)
    p, t = tuple(prediction.shape), tuple(target.shape)
    if p == t:
        return
    front = _all_but_last(min(len(p), len(t)))
    if p == (*t, 1):
        advice = f"use prediction[{front}, 0] or target[{front}, None]"
    elif t == (*p, 1):
        advice = f"use prediction[{front}, None] or target[{front}, 0]"
    elif p[:-1] == t and not is_floating(target):
        advice = f"for class labels use {for_labels}, or jax.nn.one_hot(target, {p[-1]})"
    else:
        advice = "they are compared entry by entry"
    raise ValueError(f"{shown} differ in shape; {advice}")


def holds_labels(
    where: str, prediction: Array, target: Array, *, distributions: tuple[Any, ...], for_one_score: str
) -> bool:
    """True if target holds class labels, False if it holds distributions; raises ValueError if neither.

    Labels are integers of the prediction's shape without its last axis, the classes. Distributions have the
    prediction's shape and a dtype of one of the kinds. `for_one_score` is advice for predictions without
    an axis of classes.
    """
    shown = both_batches(where, prediction, target)
    p, t = tuple(prediction.shape), tuple(target.shape)
    if len(p) < 2:
        raise ValueError(
            f"{shown}: one score per class is needed, a prediction [N, K]; for one output per example {for_one_score}"
        )
    if t == p[:-1] and jnp.issubdtype(target.dtype, jnp.integer):
        return True
    if t == p and any(jnp.issubdtype(target.dtype, kind) for kind in distributions):
        return False
    if t == p[:-1]:
        complaint = f"integer labels are meant, got {target.dtype}: use target.astype('int32')"
    elif t == p:
        distribution = " or, as a distribution, target.astype('float32')" if distributions else ""
        complaint = (
            f"integer labels {p[:-1]} are meant, got one-hot {target.dtype}: "
            f"use jnp.argmax(target, axis=-1){distribution}"
        )
    elif t == (*p[:-1], 1):
        complaint = f"integer labels {p[:-1]} are meant: use target[{_all_but_last(len(p) - 1)}, 0]"
    else:
        complaint = f"integer labels {p[:-1]}{f' or distributions {p}' if distributions else ''} are meant"
    raise ValueError(f"{shown}: {complaint}")


def _all_but_last(axes: int) -> str:
    return ":" if axes == 1 else "..."


def labels_and_wrong(labels: Any, classes: int) -> tuple[Any, Any]:
    """The labels in a dtype that can hold K, and where they are outside 0…K−1."""
    # A wide type must not be narrowed: 2³² + 3 is not class 3.
    labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    return labels, (labels < 0) | (labels >= classes)
