"""The base class of losses: reading prediction and target, means and sums, clipping of probabilities.

Letters: N batch, D features or classes, the last axis; y prediction, p probability, t target.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import accumulator
from jaxnn.losses.targets import as_arrays, check_values
from jaxnn.types import Array, DType, Loss


class OfRules(Loss):
    """A loss given by cost(y, t, **rest) and slope(y, t, **rest) = ∂cost/∂y, with the mean over axes between N and D.

    A subclass has `_shapes()`, the text of `help` on its arguments; `_domain(prediction, target)`, which raises
    ValueError where these do not fit, and returns the values that the target may hold; and `_read(y, target, domain,
    kept)`, which returns t, NaN in examples (with more axes kept, in entries) that are wrong, and the rest.

    Attributes:
        mean: True for the mean over D, False for the sum.
        clips: True for rules that clip probabilities; they are given `tiny`, where to clip.
        unusable: a function of y, True where the result must be NaN and the rules would not make it so; or None.
    """

    mean: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    cost = slope = unusable = _shapes = _domain = _read = cast(Any, None)

    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        formula, gap, rest = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        if gap and cls.cost:  # the text on arguments follows the formula
            cls.__doc__ = f"{formula}\n\n{inspect.cleandoc(cls._shapes())}\n\n{rest}"

    def value(self, prediction: Array, target: Array) -> Array:
        return self._costs(prediction, target, 1)

    def entries(self, prediction: Array, target: Array) -> Array:
        return self._costs(prediction, target, max(jnp.ndim(prediction) - 1, 1))

    def delta(self, prediction: Array, target: Array) -> Array:
        y, t, share, rest = self._enter(prediction, target, 1)
        return (share * self.slope(y, t, **rest)).astype(jnp.asarray(prediction).dtype)

    def check(self, prediction: Array, target: Any) -> None:
        target = np.asarray(target)
        check_values(f"losses.{self.name}", self._domain(prediction, target), target)

    def _costs(self, prediction: Array, target: Array, kept: int) -> Array:
        """Means over all axes but the first `kept`."""
        with jax.named_scope(self.name):
            y, t, share, rest = self._enter(prediction, target, kept)
            costs = self.cost(y, t, **rest)
            return share * costs.sum(axis=tuple(range(kept, costs.ndim)))

    def _enter(self, prediction: Array, target: Array, kept: int) -> tuple[Array, Array, float, dict[str, Any]]:
        prediction, target = as_arrays(f"losses.{self.name}", prediction, target)
        domain = self._domain(prediction, target)
        y = prediction.astype(accumulator(prediction.dtype))
        t, rest = self._read(y, target, domain, kept)
        if self.clips:
            rest["tiny"] = smallest(prediction.dtype)
        return y, t, 1 / math.prod(y.shape[kept:] if self.mean else y.shape[kept:-1]), rest


def smallest(dtype: DType) -> float:
    """Where probabilities are clipped: the smallest normal number, whose inverse, the largest δ, is finite."""
    return float(jnp.finfo(dtype).tiny)


def no_probability(p: Array) -> Array:
    """True where p is NaN or outside [0, 1] by more than rounding: most likely logits."""
    slack = math.sqrt(jnp.finfo(p.dtype).eps)
    return ~((p >= -slack) & (p <= 1 + slack))


def log_clipped(p: Array, weight: Array, tiny: float) -> Array:
    """The log of max(p, tiny), with the derivative 1/max(p, tiny); log 1 where p < tiny and its weight is 0.

    With a derivative of 0 below `tiny`, the predictions that are most wrong would not change.
    """
    least = jnp.where(weight == 0, 1.0, tiny).astype(p.dtype)  # 0·∞ would make second derivatives NaN
    return jnp.log(jnp.where(p < tiny, least + (p - jax.lax.stop_gradient(p)), p))


def at_least(p: Array, tiny: float) -> Array:
    """The same clipping in a denominator."""
    return jnp.where(p < tiny, tiny, p)
