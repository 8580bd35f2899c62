"""Losses that compare prediction and target entry by entry: regression, and two classes.

Letters: N batch, T time, D features, the last axis; y prediction, p probability, z logit, t target, e = y − t.
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
from jaxnn.losses.targets import NUMBERS, SHARES, SIGNS, Domain, check_dtypes, check_values, poison
from jaxnn.types import Array, Loss


def _entrywise(
    name: str,
    formula: str,
    source: str,
    *,
    cost: Callable[..., Array],
    slope: Callable[..., Array],
    domain: Domain,
    mean: bool = False,
    unusable: Callable[[Array], Array] | None = None,
    clips: bool = False,
) -> Loss:
    """The Loss of entrywise rules cost(y, t) and slope(y, t) = ∂cost/∂y; mean or sum over D, mean over what is between.

    `unusable` names the predictions that must give NaN and would not by themselves. Rules that clip
    probabilities are also given `tiny`, the place to do it.
    """
    where = f"losses.{name}"

    def check_form(prediction: Any, target: Any) -> None:
        check_dtypes(where, prediction, target)
        checks.entry_by_entry(where, prediction, target, "losses.softmax_cross_entropy")
        if domain is SIGNS and target.dtype == jnp.bool_:
            raise ValueError(f"{where} expects labels -1 and 1, got bool: use jnp.where(target, 1, -1)")

    def enter(prediction: Any, target: Any, kept: int = 1) -> tuple[Array, Array, float, dict[str, float]]:
        prediction, target = checks.as_arrays(where, prediction, target)
        check_form(prediction, target)
        work = checks.accumulator(prediction.dtype)
        y, t = prediction.astype(work), target.astype(work)
        if domain.poisons:
            t = t + poison(domain.wrong(t) if unusable is None else domain.wrong(t) | unusable(y), t, kept)
        parts = math.prod(y.shape[kept:] if mean else y.shape[kept:-1])
        return y, t, 1 / parts, {"tiny": smallest(prediction.dtype)} if clips else {}

    @jax.named_scope(name)
    def value(prediction: Array, target: Array) -> Array:
        y, t, share, clip = enter(prediction, target)
        return share * cost(y, t, **clip).sum(axis=tuple(range(1, y.ndim)))

    @jax.named_scope(name)
    def entries(prediction: Array, target: Array) -> Array:
        kept = max(jnp.ndim(prediction) - 1, 1)
        y, t, share, clip = enter(prediction, target, kept)
        return share * cost(y, t, **clip).sum(axis=tuple(range(kept, y.ndim)))

    def delta(prediction: Array, target: Array) -> Array:
        y, t, share, clip = enter(prediction, target)
        return (share * slope(y, t, **clip)).astype(jnp.asarray(prediction).dtype)

    def check(prediction: Any, target: Any) -> None:
        target = np.asarray(target)
        check_form(prediction, target)
        check_values(where, domain, target)

    value.__name__, value.__qualname__ = name, f"{name}.value"
    value.__doc__ = delta.__doc__ = f"""{formula}

    Shapes: prediction and target [N], [N, D] or [N, …, D] (steps [N, T, D], images [N, H, W, D]); C [N], δ like the
    prediction. The {"mean" if mean else "Σ"} runs over D; over the axes between, always the mean. Images of one value
    per pixel are [N, H, W, 1].
    Target: values {domain.meant}.

    Source: {source}.
    """
    value.entries = entries  # type: ignore[attr-defined]  # the value is a metric too
    return Loss(name, value, delta, check, entries)


# ---------------------------------------------------------------- regression


mse = _entrywise(
    "mse",
    "C = mean (y−t)², δ = 2(y−t)/D: the mean squared error.",
    'Gauss (1809), "Theoria motus corporum coelestium"',
    cost=lambda y, t: jnp.square(y - t),
    slope=lambda y, t: 2 * (y - t),
    domain=NUMBERS,
    mean=True,
)

mae = _entrywise(
    "mae",
    "C = mean |y−t|, δ = sign(y−t)/D, 0 at y = t: the mean absolute error.",
    'Boscovich (1757), "De litteraria expeditione per pontificiam ditionem"',
    cost=lambda y, t: (y - t) * jnp.sign(y - t),  # not jnp.abs, whose derivative at 0 is 1
    slope=lambda y, t: jnp.sign(y - t),
    domain=NUMBERS,
    mean=True,
)

half_squared_error = _entrywise(
    "half_squared_error",
    "C = ½ Σ (y−t)², δ = y−t: half the squared distance, D/2 · mse, the classical cost of backpropagation.",
    'Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating errors"',
    cost=lambda y, t: 0.5 * jnp.square(y - t),
    slope=lambda y, t: y - t,
    domain=NUMBERS,
)


@cache
def _huber(d: float) -> Loss:
    def clipped(y: Array, t: Array) -> Array:
        e = y - t
        return jnp.where(e > d, d, jnp.where(e < -d, -d, e))  # NaN stays NaN

    # q keeps its sign: no |e|, hence no kink at e = 0, where the second derivative is 1.
    def cost(y: Array, t: Array) -> Array:
        q = clipped(y, t)
        return q * ((y - t) - q / 2)

    return _entrywise(
        "huber",
        f"C = mean q·(e−q/2), q = clip(e, −d, d), δ = q/D with e = y − t: Huber's loss of d = {d:g}.",
        'Huber (1964), "Robust estimation of a location parameter"',
        cost=cost,
        slope=clipped,
        domain=NUMBERS,
        mean=True,
    )


def huber(delta: float = 1.0) -> Loss:
    """C = mean q·(e−q/2), q = clip(e, −d, d), δ = q/D with e = y − t: linear from |e| = d on.

    Equal arguments give the same record, so that what is compiled for it is found again.

    Args:
        delta: d, where the linear part begins, in units of the target; above 0.

    Raises:
        ValueError, TypeError: if delta is not a finite number above 0.

    Source: Huber (1964), "Robust estimation of a location parameter".

    >>> import jax.numpy as jnp
    >>> y, t = jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])
    >>> print(huber(1.0).value(y, t), huber(1.0).delta(y, t))
    [0.125 2.5  ] [0.5 1. ]
    """
    return _huber(checks.number("losses.huber: delta", delta, above=0))


# ---------------------------------------------------------------- two classes


def _softplus_less(z: Array, less: Array | float) -> Array:
    """log(1 + exp z) − less, as max(z, 0) − less + log1p(exp(−|z|)): at less ≈ z the small last term survives.

    Both parts take the same side at z = 0, so that derivatives of every order are right there.
    """
    left = z <= 0
    return (jnp.where(left, 0, z) - less) + jnp.log1p(jnp.exp(jnp.where(left, z, -z)))


def _hinge_cost(y: Array, t: Array) -> Array:
    slack = 1 - t * y
    return jnp.where(slack <= 0, 0, slack)


hinge = _entrywise(
    "hinge",
    "C = Σ max(0, 1−t·y), δ = −t where t·y < 1, else 0: the hinge loss, of labels t = ±1.",
    'Cortes & Vapnik (1995), "Support-vector networks"',
    cost=_hinge_cost,
    slope=lambda y, t: jnp.where(1 - t * y <= 0, 0, -t),
    domain=SIGNS,
    unusable=jnp.isnan,
)

logistic = _entrywise(
    "logistic",
    "C = Σ log(1+exp(−t·y)), δ = −t·σ(−t·y): sigmoid_binary_cross_entropy at (t+1)/2, of labels t = ±1.",
    'Cox (1958), "The regression analysis of binary sequences"',
    cost=lambda y, t: _softplus_less(-t * y, 0),
    slope=lambda y, t: -t * jax.nn.sigmoid(-t * y),
    domain=SIGNS,
)

sigmoid_binary_cross_entropy = _entrywise(
    "sigmoid_binary_cross_entropy",
    "C = Σ max(z,0) − z·t + log1p(exp(−|z|)), δ = σ(z) − t: binary cross-entropy of the logits z.",
    'Cox (1958), "The regression analysis of binary sequences"',
    cost=lambda z, t: _softplus_less(z, z * t),
    slope=lambda z, t: jax.nn.sigmoid(z) - t,
    domain=SHARES,
)

binary_cross_entropy = _entrywise(
    "binary_cross_entropy",
    "C = −Σ t·log p + (1−t)·log(1−p), δ = (1−t)/(1−p) − t/p: binary cross-entropy of the probabilities p.",
    'Good (1952), "Rational decisions"',
    cost=lambda p, t, tiny: -t * log_clipped(p, t, tiny) - (1 - t) * log_clipped(1 - p, 1 - t, tiny),
    slope=lambda p, t, tiny: (1 - t) / at_least(1 - p, tiny) - t / at_least(p, tiny),
    domain=SHARES,
    unusable=no_probability,
    clips=True,
)
