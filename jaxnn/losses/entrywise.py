"""Losses that compare prediction and target entry by entry: regression, and two classes.

Letters: N batch, T time, D features, the last axis; y prediction, p probability, z logit, t target, e = y − t.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnn import checks
from jaxnn.arrays import in_dtype
from jaxnn.losses.rules import OfRules, at_least, log_clipped, no_probability
from jaxnn.losses.targets import NUMBERS, SHARES, SIGNS, Domain, check_dtypes, entry_by_entry, poison
from jaxnn.records import same, written
from jaxnn.types import Array


class Entrywise(OfRules):
    """A loss given for one entry by cost(y, t) and slope(y, t) = ∂cost/∂y."""

    domain: ClassVar[Domain] = NUMBERS  # the values that a target may hold

    @classmethod
    def _shapes(cls) -> str:
        return f"""Shapes: prediction and target [N], [N, D] or [N, …, D] (steps [N, T, D], images [N, H, W, D]); C [N],
    δ like the prediction. The {"mean" if cls.mean else "Σ"} runs over D; over the axes between, always the mean. Images
    of one value per pixel are [N, H, W, 1].
    Target: values {cls.domain.meant}."""

    def _domain(self, prediction: Array, target: Array) -> Domain:
        where = f"losses.{self.name}"
        check_dtypes(where, prediction, target)
        entry_by_entry(where, prediction, target, "losses.softmax_cross_entropy")
        if self.domain is SIGNS and target.dtype == jnp.bool_:
            raise ValueError(f"{where} expects labels -1 and 1, got bool: use jnp.where(target, 1, -1)")
        return self.domain

    def _read(self, y: Array, target: Array, domain: Domain, kept: int) -> tuple[Array, dict[str, Any]]:
        t = target.astype(y.dtype)
        if domain.poisons:
            wrong = domain.wrong(t)
            t = t + poison(wrong if self.unusable is None else wrong | self.unusable(y), t, kept)
        return t, {}


# ---------------------------------------------------------------- regression


class Mse(Entrywise):
    """C = mean (y−t)², δ = 2(y−t)/D: the mean squared error.

    Source: Gauss (1809), "Theoria motus corporum coelestium".
    """

    shown_as = "mse"
    mean = True

    def cost(self, y: Array, t: Array) -> Array:
        return jnp.square(y - t)

    def slope(self, y: Array, t: Array) -> Array:
        return 2 * (y - t)


class Mae(Entrywise):
    """C = mean |y−t|, δ = sign(y−t)/D, 0 at y = t: the mean absolute error.

    Source: Boscovich (1757), "De litteraria expeditione per pontificiam ditionem".
    """

    shown_as = "mae"
    mean = True

    def cost(self, y: Array, t: Array) -> Array:
        return (y - t) * jnp.sign(y - t)  # not jnp.abs, whose derivative at 0 is 1

    def slope(self, y: Array, t: Array) -> Array:
        return jnp.sign(y - t)


class HalfSquaredError(Entrywise):
    """C = ½ Σ (y−t)², δ = y−t: half the squared distance, D/2 · mse, the classical cost of backpropagation.

    Source: Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating errors".
    """

    shown_as = "half_squared_error"

    def cost(self, y: Array, t: Array) -> Array:
        return 0.5 * jnp.square(y - t)

    def slope(self, y: Array, t: Array) -> Array:
        return y - t


mse, mae, half_squared_error = Mse(), Mae(), HalfSquaredError()


class huber(Entrywise):
    """C = mean q·(e−q/2), q = clip(e, −d, d), δ = q/D with e = y − t: linear from |e| = d on.

    Args:
        delta: d, where the linear part begins, in units of the target; above 0. A number, or a JAX scalar, traced or
            not. The field is `d`, as in `dataclasses.replace(loss, d=2.0)`: `delta` is the method that returns δ.

    Raises:
        ValueError, TypeError: if delta is not a finite number above 0.

    Source: Huber (1964), "Robust estimation of a location parameter".

    >>> import jax.numpy as jnp
    >>> y, t = jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])
    >>> print(huber(1.0).value(y, t), huber(1.0).delta(y, t))
    [0.125 2.5  ] [0.5 1. ]
    """

    mean = True

    d: float = 1.0

    def __init__(self, delta: float = 1.0, *, d: float | None = None) -> None:
        if d is not None and not any(same(delta, known) for known in (1.0, d)):
            raise TypeError(f"losses.huber: delta and d are one number, got {delta!r} and {d!r}: replace d")
        self._set(d=checks.number("losses.huber: delta", delta if d is None else d, above=0))

    def __repr__(self) -> str:
        return "huber()" if same(self.d, 1.0) else f"huber(delta={written(self.d)})"

    def q(self, y: Array, t: Array) -> Array:
        """The error e, cut off at ±d; NaN stays NaN, of e or of d."""
        e, d = y - t, in_dtype(self.d, y.dtype)
        if isinstance(self.d, float):
            return jnp.where(e > d, d, jnp.where(e < -d, -d, e))
        return jnp.where(e > d, d, jnp.where(e < -d, -d, jnp.where(jnp.isnan(d), d, e)))

    # q keeps the sign of e: there is no |e|, hence no kink at e = 0, where the second derivative is 1.
    def cost(self, y: Array, t: Array) -> Array:
        q = self.q(y, t)
        return q * ((y - t) - q / 2)

    def slope(self, y: Array, t: Array) -> Array:
        return self.q(y, t)


# ---------------------------------------------------------------- two classes


def _softplus_less(z: Array, less: Array | float) -> Array:
    """log(1 + exp z) − less, as max(z, 0) − less + log1p(exp(−|z|)): for less ≈ z the small last term is not lost.

    Both parts take the same branch at z = 0, so that derivatives of every order are right there.
    """
    left = z <= 0
    return (jnp.where(left, 0, z) - less) + jnp.log1p(jnp.exp(jnp.where(left, z, -z)))


class Hinge(Entrywise):
    """C = Σ max(0, 1−t·y), δ = −t where t·y < 1, else 0: the hinge loss, of labels t = ±1.

    Source: Cortes & Vapnik (1995), "Support-vector networks".
    """

    shown_as = "hinge"
    domain = SIGNS
    unusable = staticmethod(jnp.isnan)

    def cost(self, y: Array, t: Array) -> Array:
        slack = 1 - t * y
        return jnp.where(slack <= 0, 0, slack)

    def slope(self, y: Array, t: Array) -> Array:
        return jnp.where(1 - t * y <= 0, 0, -t)


class Logistic(Entrywise):
    """C = Σ log(1+exp(−t·y)), δ = −t·σ(−t·y): sigmoid_binary_cross_entropy at (t+1)/2, of labels t = ±1.

    Source: Cox (1958), "The regression analysis of binary sequences".
    """

    shown_as = "logistic"
    domain = SIGNS

    def cost(self, y: Array, t: Array) -> Array:
        return _softplus_less(-t * y, 0)

    def slope(self, y: Array, t: Array) -> Array:
        return -t * jax.nn.sigmoid(-t * y)


class SigmoidBinaryCrossEntropy(Entrywise):
    """C = Σ max(z,0) − z·t + log1p(exp(−|z|)), δ = σ(z) − t: binary cross-entropy of the logits z.

    Source: Cox (1958), "The regression analysis of binary sequences".
    """

    shown_as = "sigmoid_binary_cross_entropy"
    domain = SHARES

    def cost(self, z: Array, t: Array) -> Array:
        return _softplus_less(z, z * t)

    def slope(self, z: Array, t: Array) -> Array:
        return jax.nn.sigmoid(z) - t


class BinaryCrossEntropy(Entrywise):
    """C = −Σ t·log p + (1−t)·log(1−p), δ = (1−t)/(1−p) − t/p: binary cross-entropy of the probabilities p.

    Source: Good (1952), "Rational decisions".
    """

    shown_as = "binary_cross_entropy"
    domain = SHARES
    clips = True
    unusable = staticmethod(no_probability)

    def cost(self, p: Array, t: Array, tiny: float) -> Array:
        return -t * log_clipped(p, t, tiny) - (1 - t) * log_clipped(1 - p, 1 - t, tiny)

    def slope(self, p: Array, t: Array, tiny: float) -> Array:
        return (1 - t) / at_least(1 - p, tiny) - t / at_least(p, tiny)


hinge, logistic = Hinge(), Logistic()
sigmoid_binary_cross_entropy, binary_cross_entropy = SigmoidBinaryCrossEntropy(), BinaryCrossEntropy()
