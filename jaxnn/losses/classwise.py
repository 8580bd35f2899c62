"""Losses over classes: the last axis of the prediction has a score or a probability for each.

Letters: N batch, T time, K classes; y prediction, p probability, z logit, t target, one-hot or a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import checks
from jaxnn.losses.probabilities import at_least, log_clipped, no_probability, smallest
from jaxnn.losses.targets import DISTRIBUTIONS, WHOLE, check_dtypes, check_values, labels_of, poison
from jaxnn.ranks import with_rank
from jaxnn.types import Array, Loss


def _classwise(
    name: str,
    formula: str,
    source: str,
    *,
    cost: Callable[..., Array],
    slope: Callable[..., Array],
    soft: bool,
    unusable: Callable[[Array], Array] | None = None,
    clips: bool = False,
) -> Loss:
    """The Loss of rules over the last axis: cost(y, t, total) drops it, slope(y, t, total) is ∂cost/∂y.

    t [N, …, K] is one-hot or, where the loss is soft, a distribution, and total its sum over K. Mean over what is
    between N and K.
    `unusable` names the predictions that must give NaN and would not by themselves. Rules that clip
    probabilities are also given `tiny`, the place to do it.
    """
    where = f"losses.{name}"

    def check_form(prediction: Any, target: Any) -> bool:
        check_dtypes(where, prediction, target)
        distributions = (jnp.floating,) if soft else ()
        advice = "use losses.sigmoid_binary_cross_entropy"
        return checks.holds_labels(where, prediction, target, distributions=distributions, for_one_score=advice)

    def enter(prediction: Any, target: Any, kept: int = 1) -> tuple[Array, Array, float, dict[str, Any]]:
        prediction, target = checks.as_arrays(where, prediction, target)
        hard = check_form(prediction, target)
        work, classes = checks.accumulator(prediction.dtype), prediction.shape[-1]
        y = prediction.astype(work)
        if hard:
            labels, wrong = checks.labels_and_wrong(target, classes)
        else:
            wrong = DISTRIBUTIONS.wrong(target.astype(work))
        if unusable is not None:
            wrong = (wrong[..., None] if hard else wrong) | unusable(y)
        sick = poison(wrong, y, kept)
        if hard:
            # One-hot by comparison: a gather's derivative would be a scatter, slower than all the rest.
            k = with_rank(jnp.arange(classes, dtype=labels.dtype), labels.ndim + 1)
            t = jnp.where(labels[..., None] == k, 1 + sick, sick)
        else:
            t = target.astype(work) + sick
        rest: dict[str, Any] = {"total": 1.0 if hard else t.sum(axis=-1, keepdims=True)}
        if clips:
            rest["tiny"] = smallest(prediction.dtype)
        return y, t, 1 / math.prod(y.shape[kept:-1]), rest

    @jax.named_scope(name)
    def value(prediction: Array, target: Array) -> Array:
        y, t, share, rest = enter(prediction, target)
        return share * cost(y, t, **rest).sum(axis=tuple(range(1, y.ndim - 1)))

    @jax.named_scope(name)
    def entries(prediction: Array, target: Array) -> Array:
        y, t, _, rest = enter(prediction, target, max(jnp.ndim(prediction) - 1, 1))
        return cost(y, t, **rest)

    def delta(prediction: Array, target: Array) -> Array:
        y, t, share, rest = enter(prediction, target)
        return (share * slope(y, t, **rest)).astype(jnp.asarray(prediction).dtype)

    def check(prediction: Any, target: Any) -> None:
        target = np.asarray(target)
        if target.shape == tuple(prediction.shape[:-1]) and checks.is_floating(target):
            check_values(where, WHOLE, target)  # more can be said than that labels are integers
        hard = check_form(prediction, target)
        check_values(where, labels_of(prediction.shape[-1]) if hard else DISTRIBUTIONS, target)

    targets = "integer labels [N] or [N, …] in 0…K−1"
    if soft:
        targets += ", or distributions, floats of the prediction's shape"
    value.__name__, value.__qualname__ = name, f"{name}.value"
    value.__doc__ = delta.__doc__ = f"""{formula}

    Shapes: prediction [N, K] or [N, …, K] (steps [N, T, K], images [N, H, W, K]); C [N], δ like the prediction. Over
    the axes between, the mean.
    Target: {targets}.

    Source: {source}.
    """
    value.entries = entries  # type: ignore[attr-defined]  # the value is a metric too
    return Loss(name, value, delta, check, entries)


def _margins(y: Array, t: Array) -> Array:
    """yᵢ − y_t + 1, and 0 at the label itself."""
    right = jnp.where(t == 0, 0, t * y).sum(axis=-1, keepdims=True)
    return jnp.where(t > 0, 0, y - right + 1)


def _multiclass_hinge_cost(y: Array, t: Array, total: float) -> Array:
    margin = _margins(y, t)
    return jnp.where(margin <= 0, 0, margin).sum(axis=-1)


def _multiclass_hinge_slope(y: Array, t: Array, total: float) -> Array:
    active = (_margins(y, t) > 0).astype(y.dtype)
    return active - t * active.sum(axis=-1, keepdims=True)


multiclass_hinge = _classwise(
    "multiclass_hinge",
    "C = Σ_{i≠t} max(0, yᵢ−y_t+1), δ = aᵢ − [i=t]·Σa with aᵢ = 1 where the margin of i ≠ t is above 0, else 0.",
    'Weston & Watkins (1999), "Support vector machines for multi-class pattern recognition"',
    cost=_multiclass_hinge_cost,
    slope=_multiclass_hinge_slope,
    soft=False,
    unusable=jnp.isnan,
)

cross_entropy = _classwise(
    "cross_entropy",
    "C = −Σ tᵢ·log pᵢ, δ = −tᵢ/pᵢ: cross-entropy of the probabilities p, as `softmax()` gives them.",
    'Good (1952), "Rational decisions"',
    cost=lambda p, t, total, tiny: -(t * log_clipped(p, t, tiny)).sum(axis=-1),
    slope=lambda p, t, total, tiny: -t / at_least(p, tiny),
    soft=True,
    unusable=no_probability,
    clips=True,
)


def _softmax_cost(z: Array, t: Array, total: Array | float) -> Array:
    shifted = z - jax.lax.stop_gradient(z.max(axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))
    shifted = jnp.where((t == 0) & (shifted == -jnp.inf), 0, shifted)  # a masked class: 0·∞ is 0 here
    return (total * log_sum)[..., 0] - (t * shifted).sum(axis=-1)


softmax_cross_entropy = _classwise(
    "softmax_cross_entropy",
    "C = Σ tᵢ·(log Σ exp z − zᵢ), δ = softmax(z)·Σt − t: cross-entropy of the logits z.",
    'Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs"',
    cost=_softmax_cost,
    slope=lambda z, t, total: jax.nn.softmax(z, axis=-1) * total - t,
    soft=True,
)


@cache
def _label_smoothing(smoothing: float) -> Loss:
    def smoothed(t: Array, total: Array | float) -> Array:
        return (1 - smoothing) * t + smoothing / t.shape[-1] * total

    return _classwise(
        "label_smoothing",
        "C = Σ t′ᵢ·(log Σ exp z − zᵢ), δ = softmax(z)·Σt − t′ with t′ = (1−α)t + α·Σt/K: softmax_cross_entropy of "
        f"targets smoothed by α = {smoothing:g}.",
        'Szegedy, Vanhoucke, Ioffe, Shlens & Wojna (2016), "Rethinking the Inception architecture", section 7',
        cost=lambda z, t, total: _softmax_cost(z, smoothed(t, total), total),
        slope=lambda z, t, total: jax.nn.softmax(z, axis=-1) * total - smoothed(t, total),
        soft=True,
    )


def label_smoothing(smoothing: float = 0.1) -> Loss:
    """C = Σ t′ᵢ·(log Σ exp z − zᵢ), δ = softmax(z)·Σt − t′ with t′ = (1−α)t + α·Σt/K: softmax_cross_entropy, smoothed.

    `softmax_cross_entropy` is least where the right logit is infinitely above the others; this loss where it is
    log(1 + K(1−α)/α) above them: networks become less sure of themselves. Its least value is above 0, so
    evaluate with `softmax_cross_entropy`. Equal arguments give the same record, so that what is compiled for it is
    found again. A class masked by a logit of −∞ has a share of the target, and costs ∞.

    Args:
        smoothing: α, from 0 (softmax_cross_entropy itself) to 1 (no label at all).

    Raises:
        ValueError, TypeError: if α is not a number from 0 to 1.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna (2016), "Rethinking the Inception architecture", section 7.

    >>> logits, labels = jnp.array([[0.0, 0.0, 0.0, 0.0]]), jnp.array([0])
    >>> print(label_smoothing(0.5).delta(logits, labels))  # 1/4 − 5/8, and 1/4 − 1/8
    [[-0.375  0.125  0.125  0.125]]
    """
    return _label_smoothing(checks.number("losses.label_smoothing: smoothing", smoothing, least=0.0, most=1.0))
