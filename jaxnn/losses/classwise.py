"""Losses over classes: the last axis of the prediction holds a score or a probability for each class.

Letters: N batch, T time, K classes; y prediction, p probability, z logit, t target, one-hot or a distribution.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import checks
from jaxnn.arrays import in_dtype, is_floating, with_rank
from jaxnn.losses.rules import OfRules, at_least, log_clipped, no_probability
from jaxnn.losses.targets import (
    DISTRIBUTIONS,
    WHOLE,
    Domain,
    check_dtypes,
    check_values,
    holds_labels,
    labels_and_wrong,
    labels_of,
    poison,
)
from jaxnn.types import Array


class Classwise(OfRules):
    """A loss over the last axis, which cost(y, t, total) reduces; slope(y, t, total) is ∂cost/∂y.

    t [N, …, K] is one-hot or, if the loss is soft, a distribution; total is its sum over K.
    """

    soft: ClassVar[bool] = True  # whether a target may be a distribution

    @classmethod
    def _shapes(cls) -> str:
        targets = "integer labels [N] or [N, …] in 0…K−1"
        if cls.soft:
            targets += ", or distributions, floats of the prediction's shape"
        return f"""Shapes: prediction [N, K] or [N, …, K] (steps [N, T, K], images [N, H, W, K]); C [N], δ like the
    prediction. Over the axes between, the mean.
    Target: {targets}."""

    def check(self, prediction: Array, target: Any) -> None:
        target = np.asarray(target)
        if target.shape == tuple(prediction.shape[:-1]) and is_floating(target):
            check_values(f"losses.{self.name}", WHOLE, target)  # a better message than that labels are integers
        super().check(prediction, target)

    def _domain(self, prediction: Array, target: Array) -> Domain:
        where, advice = f"losses.{self.name}", "use losses.sigmoid_binary_cross_entropy"
        check_dtypes(where, prediction, target)
        distributions = (jnp.floating,) if self.soft else ()
        hard = holds_labels(where, prediction, target, distributions=distributions, for_one_score=advice)
        return labels_of(prediction.shape[-1]) if hard else DISTRIBUTIONS

    def _read(self, y: Array, target: Array, domain: Domain, kept: int) -> tuple[Array, dict[str, Any]]:
        hard = domain is not DISTRIBUTIONS
        if hard:
            labels, wrong = labels_and_wrong(target, y.shape[-1])
        else:
            wrong = DISTRIBUTIONS.wrong(target.astype(y.dtype))
        if self.unusable is not None:
            wrong = (wrong[..., None] if hard else wrong) | self.unusable(y)
        sick = poison(wrong, y, kept)
        if not hard:
            t = target.astype(y.dtype) + sick
            return t, {"total": t.sum(axis=-1, keepdims=True)}
        # One-hot by comparison: a gather's derivative would be a scatter, slower than all the rest.
        k = with_rank(jnp.arange(y.shape[-1], dtype=labels.dtype), labels.ndim + 1)
        return jnp.where(labels[..., None] == k, 1 + sick, sick), {"total": 1.0}


class MulticlassHinge(Classwise):
    """C = Σ_{i≠t} max(0, yᵢ−y_t+1), δ = aᵢ − [i=t]·Σa with aᵢ = 1 where the margin of i ≠ t is above 0, else 0.

    Source: Weston & Watkins (1999), "Support vector machines for multi-class pattern recognition".
    """

    shown_as = "multiclass_hinge"
    soft = False
    unusable = staticmethod(jnp.isnan)

    def margins(self, y: Array, t: Array) -> Array:
        """The margins yᵢ − y_t + 1, and 0 at the label itself."""
        right = jnp.where(t == 0, 0, t * y).sum(axis=-1, keepdims=True)
        return jnp.where(t > 0, 0, y - right + 1)

    def cost(self, y: Array, t: Array, total: float) -> Array:
        margin = self.margins(y, t)
        return jnp.where(margin <= 0, 0, margin).sum(axis=-1)

    def slope(self, y: Array, t: Array, total: float) -> Array:
        a = (self.margins(y, t) > 0).astype(y.dtype)
        return a - t * a.sum(axis=-1, keepdims=True)


class CrossEntropy(Classwise):
    """C = −Σ tᵢ·log pᵢ, δ = −tᵢ/pᵢ: cross-entropy of the probabilities p, as `softmax()` gives them.

    Source: Good (1952), "Rational decisions".
    """

    shown_as = "cross_entropy"
    clips = True
    unusable = staticmethod(no_probability)

    def cost(self, p: Array, t: Array, total: Array | float, tiny: float) -> Array:
        return -(t * log_clipped(p, t, tiny)).sum(axis=-1)

    def slope(self, p: Array, t: Array, total: Array | float, tiny: float) -> Array:
        return -t / at_least(p, tiny)


class SoftmaxCrossEntropy(Classwise):
    """C = Σ tᵢ·(log Σ exp z − zᵢ), δ = softmax(z)·Σt − t: cross-entropy of the logits z.

    Source: Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs".
    """

    shown_as = "softmax_cross_entropy"

    def cost(self, z: Array, t: Array, total: Array | float) -> Array:
        shifted = z - jax.lax.stop_gradient(z.max(axis=-1, keepdims=True))
        log_sum = jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))
        shifted = jnp.where((t == 0) & (shifted == -jnp.inf), 0, shifted)  # a masked class: 0·∞ is 0 here
        return (total * log_sum)[..., 0] - (t * shifted).sum(axis=-1)

    def slope(self, z: Array, t: Array, total: Array | float) -> Array:
        return jax.nn.softmax(z, axis=-1) * total - t


multiclass_hinge, cross_entropy, softmax_cross_entropy = MulticlassHinge(), CrossEntropy(), SoftmaxCrossEntropy()


class label_smoothing(Classwise):
    """C = Σ t′ᵢ·(log Σ exp z − zᵢ), δ = softmax(z)·Σt − t′ with t′ = (1−α)t + α·Σt/K: softmax_cross_entropy, smoothed.

    `softmax_cross_entropy` is minimal where the right logit exceeds the others by ∞, this loss where it exceeds them by
    log(1 + K(1−α)/α): networks become less confident. Its minimum is above 0, so evaluate with
    `softmax_cross_entropy`. A class masked by a logit of −∞ has a share of the target, and costs ∞.

    Args:
        smoothing: α, from 0 (softmax_cross_entropy itself) to 1 (no label at all); a number, or a JAX scalar, traced
            or not.

    Raises:
        ValueError, TypeError: if α is not a number from 0 to 1.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna (2016), "Rethinking the Inception architecture", section 7.

    >>> logits, labels = jnp.array([[0.0, 0.0, 0.0, 0.0]]), jnp.array([0])
    >>> print(label_smoothing(0.5).delta(logits, labels))  # 1/4 − 5/8, and 1/4 − 1/8
    [[-0.375  0.125  0.125  0.125]]
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        where = "losses.label_smoothing: smoothing"
        self._set(smoothing=checks.number(where, self.smoothing, least=0.0, most=1.0))

    def smoothed(self, t: Array, total: Array | float) -> Array:
        """The target t′."""
        alpha = in_dtype(self.smoothing, t.dtype)
        return (1 - alpha) * t + alpha / t.shape[-1] * total

    def cost(self, z: Array, t: Array, total: Array | float) -> Array:
        return softmax_cross_entropy.cost(z, self.smoothed(t, total), total)

    def slope(self, z: Array, t: Array, total: Array | float) -> Array:
        return softmax_cross_entropy.slope(z, self.smoothed(t, total), total)
