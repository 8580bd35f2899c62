"""The bases of losses: how prediction and target enter, what is summed, where probabilities are clipped.

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
    """A loss of rules, cost(y, t, **rest) and slope(y, t, **rest) = ∂cost/∂y; over what is between N and D, the mean.

    A kind of them has `_shapes()`, what help says of its arguments; `_domain(prediction, target)`, which raises
    ValueError where these do not fit, and says what the target may hold; and `_read(y, target, domain, kept)`, which
    gives t, NaN in it where an example is wrong (an entry: the first axes are kept), and the rest for the rules.

    Attributes:
        mean: over D, the mean; the sum otherwise.
        clips: rules that clip probabilities are also given `tiny`, the place to do it.
        unusable: where a prediction y must give NaN and would not by itself; None without.
    """

    mean: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    cost = slope = unusable = _shapes = _domain = _read = cast(Any, None)

    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        formula, gap, rest = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        if gap and cls.cost:  # what its kind takes follows the formula of a loss
            cls.__doc__ = f"{formula}\n\n{inspect.cleandoc(cls._shapes())}\n\n{rest}"

    def value(self, prediction: Array, target: Array) -> Array:
        return self._costs(prediction, target, 1)

    def entries(self, prediction: Array, target: Array) -> Array:
        return self._costs(prediction, target, max(jnp.ndim(prediction) - 1, 1))

    def delta(self, prediction: Array, target: Array) -> Array:
        y, t, share, rest = self._enter(prediction, target, 1)
        return (share * self.slope(y, t, **rest)).astype(jnp.asarray(prediction).dtype)

    def check(self, prediction: Any, target: Any) -> None:
        target = np.asarray(target)
        check_values(f"losses.{self.name}", self._domain(prediction, target), target)

    def _costs(self, prediction: Array, target: Array, kept: int) -> Array:
        """Means over all axes but the first ones, which are kept."""
        with jax.named_scope(self.name):
            y, t, share, rest = self._enter(prediction, target, kept)
            costs = self.cost(y, t, **rest)
            return share * costs.sum(axis=tuple(range(kept, costs.ndim)))

    def _enter(self, prediction: Any, target: Any, kept: int) -> tuple[Array, Array, float, dict[str, Any]]:
        prediction, target = as_arrays(f"losses.{self.name}", prediction, target)
        domain = self._domain(prediction, target)
        y = prediction.astype(accumulator(prediction.dtype))
        t, rest = self._read(y, target, domain, kept)
        if self.clips:
            rest["tiny"] = smallest(prediction.dtype)
        return y, t, 1 / math.prod(y.shape[kept:] if self.mean else y.shape[kept:-1]), rest


def smallest(dtype: DType) -> float:
    """Where probabilities are clipped: the smallest normal number, whose inverse, the largest δ, is finite too."""
    return float(jnp.finfo(dtype).tiny)


def no_probability(p: Array) -> Array:
    """True where p is NaN or outside [0, 1] by more than rounding: logits, most likely."""
    slack = math.sqrt(jnp.finfo(p.dtype).eps)
    return ~((p >= -slack) & (p <= 1 + slack))


def log_clipped(p: Array, weight: Array, tiny: float) -> Array:
    """The log of max(p, tiny), with the derivative 1/max(p, tiny); where its weight is 0 too, log 1.

    A derivative of 0 below `tiny` would teach nothing to the predictions that are most wrong.
    """
    least = jnp.where(weight == 0, 1.0, tiny).astype(p.dtype)  # 0·∞ would make second derivatives NaN
    return jnp.log(jnp.where(p < tiny, least + (p - jax.lax.stop_gradient(p)), p))


def at_least(p: Array, tiny: float) -> Array:
    """The same clipping in a denominator."""
    return jnp.where(p < tiny, tiny, p)
