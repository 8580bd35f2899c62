"""Losses: a cost per example and its hand-derived δ, each pair standing together.

`value(prediction, target) -> [N]` is Cₙ, in at least float32; `delta(prediction, target)`, shaped like the
prediction, is ∂Cₙ/∂(predictionₙ); `check(prediction, target)` looks at the target's values, on the host.

    loss                          Cₙ                                     δₙ                         target
    mse                           mean (y−t)²                            2(y−t)/D                   numbers
    mae                           mean |y−t|                             sign(y−t)/D                numbers
    huber(d)                      mean q·(e−q/2), q = clip(e, −d, d)     q/D                        numbers
    half_squared_error            ½ Σ (y−t)²                             y−t                        numbers
    hinge                         Σ max(0, 1−t·y)                        −t where t·y < 1, else 0   ±1
    logistic                      Σ log(1+exp(−t·y))                     −t·σ(−t·y)                 ±1
    sigmoid_binary_cross_entropy  Σ max(z,0) − z·t + log1p(exp(−|z|))    σ(z) − t                   in [0, 1]
    binary_cross_entropy          −Σ t·log p + (1−t)·log(1−p)            (1−t)/(1−p) − t/p          in [0, 1]
    multiclass_hinge              Σ_{i≠t} max(0, yᵢ−y_t+1)               aᵢ − [i=t]·Σa              labels
    softmax_cross_entropy         Σ tᵢ·(log Σ exp z − zᵢ)                softmax(z)·Σt − t          classes
    cross_entropy                 −Σ tᵢ·log pᵢ                           −tᵢ/pᵢ                     classes

Shapes: the first eight compare entry by entry, prediction and target [N], [N, D] or [N, T, D]; mean and Σ run
over D, an axis that [N] lacks. The last three take a prediction [N, K] or [N, T, K] with integer labels [N] or
[N, T] in 0…K−1; "classes" may also be distributions, floats of the prediction's shape. Over T, always the mean.

Kinks: |e|′(0) = 0, a hinge at margin 1 has slope 0, and `jax.grad` of a value gives the same there. Probabilities
are clipped at their type's smallest normal number, in value and δ alike: both stay finite at p = 0.

A target that cannot be right (a label out of range, 0/1 where ±1 is meant, a negative entry in a distribution)
turns the cost and δ of its example into NaN; so does a prediction outside [0, 1] (logits?) where probabilities
are meant. Shapes and dtypes that do not fit raise ValueError, under `jit` too.

>>> import jax.numpy as jnp
>>> logits, labels = jnp.array([[0.0, 200.0], [1.0, 1.0]]), jnp.array([0, 1])
>>> print(softmax_cross_entropy.value(logits, labels).round(4))
[200.       0.6931]
>>> print(softmax_cross_entropy.delta(logits, labels).round(4))
[[-1.   1. ]
 [ 0.5 -0.5]]

Letters: N batch, T time, D features, K classes; y prediction, p probability, z logit, t target, e = y − t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import checks
from jaxnn.types import Array, DType, Loss

__all__ = [
    "mse",
    "mae",
    "huber",
    "half_squared_error",
    "hinge",
    "logistic",
    "binary_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "multiclass_hinge",
    "cross_entropy",
    "softmax_cross_entropy",
]


# ---------------------------------------------------------------- what a target may hold


class _Domain(NamedTuple):
    """The values a target may take: a test for NumPy and JAX arrays, its name, the cause of a failure."""

    wrong: Callable[[Any], Any]  # entrywise, True where the value cannot be right
    meant: str
    cause: Callable[[np.ndarray], str]  # of all values, given that some are wrong
    poisons: bool = True  # False where a wrong value gives NaN of itself


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


def _cause_of_bad_weight(t: np.ndarray) -> str:
    if t.max() <= 0:
        return "these look like log-probabilities: use jnp.exp(target)"
    return "a distribution has no negative and no infinite entry"


_NUMBERS = _Domain(
    lambda t: ~np.isfinite(t),
    "finite",
    lambda t: "drop these examples or fill the values in",
    poisons=False,
)
_SIGNS = _Domain(lambda t: abs(t) != 1, "-1 or 1", _cause_of_bad_sign)
_SHARES = _Domain(lambda t: ~((t >= 0) & (t <= 1)), "in [0, 1]", _cause_of_bad_share)
_WEIGHTS = _Domain(lambda t: ~((t >= 0) & (t < math.inf)), "≥ 0 and finite", _cause_of_bad_weight)


def _labels(classes: int) -> _Domain:
    """Class labels 0…K−1."""

    def cause(t: np.ndarray) -> str:
        least, most = int(t.min()), int(t.max())
        if least == 1 and most == classes:
            return "the labels seem to count from 1: use target - 1"
        if classes == 2 and np.isin(t, (-1, 1)).all():
            return "these look like ±1 labels: use (target + 1) // 2"
        if least < 0:
            return "negative labels are not skipped: drop these examples, or give them a class and weight 0"
        return f"the prediction has {classes} classes and the labels need {most + 1}"

    return _Domain(lambda t: (t < 0) | (t >= classes), f"in 0…{classes - 1}", cause)


def _check_values(name: str, domain: _Domain, values: np.ndarray) -> None:
    """Raises ValueError with count, first place and likely cause of values that cannot be right."""
    if values.dtype.kind not in "iub":
        values = values.astype(np.float64)  # NumPy's half precisions lack some of the tests
    nan = np.isnan(values)
    wrong = nan if nan.any() else np.asarray(domain.wrong(values))
    if not wrong.any():
        return
    first = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    complaint = "NaN" if nan.any() else f"not {domain.meant}"
    cause = _NUMBERS.cause(values) if nan.any() else domain.cause(values)
    raise ValueError(
        f"losses.{name}: {wrong.sum()} of {values.size} values of the target are {complaint}, "
        f"first target[{', '.join(map(str, first))}] = {values[first].item()!r}; {cause}"
    )


# ---------------------------------------------------------------- shapes and dtypes, checked always


def _both(name: str, prediction: Any, target: Any) -> str:
    """The beginning of a message about two shapes, once it is known that both arguments are batches."""
    where = f"losses.{name}: prediction {tuple(prediction.shape)} and target {tuple(target.shape)}"
    if not checks.is_floating(prediction):
        raise ValueError(f"losses.{name} expects a float prediction, got {checks.describe(prediction)}")
    if not any(jnp.issubdtype(target.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"losses.{name} expects a target of real numbers, got {checks.describe(target)}")
    if not prediction.shape or not target.shape:
        raise ValueError(f"{where}: each needs a batch axis; add it with x[None] for one example")
    if prediction.shape[0] != target.shape[0]:
        raise ValueError(
            f"{where} differ in batch size: {prediction.shape[0]} predictions for {target.shape[0]} targets"
        )
    if 0 in prediction.shape[1:]:
        raise ValueError(f"losses.{name}: prediction {tuple(prediction.shape)} has an axis of size 0")
    return where


def _check_entrywise(name: str, prediction: Any, target: Any, domain: _Domain) -> None:
    where = _both(name, prediction, target)
    p, t = tuple(prediction.shape), tuple(target.shape)
    if p != t:
        front = ":" if min(len(p), len(t)) == 1 else "..."
        if p == (*t, 1):
            advice = f"use prediction[{front}, 0] or target[{front}, None]"
        elif t == (*p, 1):
            advice = f"use prediction[{front}, None] or target[{front}, 0]"
        elif p[:-1] == t and not checks.is_floating(target):
            advice = f"for class labels use losses.softmax_cross_entropy, or jax.nn.one_hot(target, {p[-1]})"
        else:
            advice = "this loss compares them entry by entry"
        raise ValueError(f"{where} differ in shape; {advice}")
    if domain is _SIGNS and target.dtype == jnp.bool_:
        raise ValueError(f"losses.{name} expects labels -1 and 1, got bool: use jnp.where(target, 1, -1)")


def _check_classes(name: str, prediction: Any, target: Any, soft: bool) -> bool:
    """True if target holds labels, False if it holds distributions; raises ValueError if neither."""
    where = _both(name, prediction, target)
    p, t = tuple(prediction.shape), tuple(target.shape)
    if len(p) < 2:
        raise ValueError(
            f"{where}: losses.{name} needs one score per class, a prediction [N, K]; "
            "for a single output per example use losses.sigmoid_binary_cross_entropy"
        )
    whole = bool(jnp.issubdtype(target.dtype, jnp.integer))
    if t == p[:-1] and whole:
        return True
    if t == p and soft and checks.is_floating(target):
        return False
    if t == p[:-1]:
        complaint = f"integer labels are meant, got {target.dtype}: use target.astype('int32')"
    elif t == p:
        distribution = " or, as a distribution, target.astype('float32')" if soft else ""
        complaint = (
            f"integer labels {p[:-1]} are meant, got one-hot {target.dtype}: "
            f"use jnp.argmax(target, axis=-1){distribution}"
        )
    elif t == (*p[:-1], 1):
        complaint = f"integer labels {p[:-1]} are meant: use target[{':' if len(p) == 2 else '...'}, 0]"
    else:
        complaint = f"integer labels {p[:-1]}{f' or distributions {p}' if soft else ''} are meant"
    raise ValueError(f"{where}: {complaint}")


# ---------------------------------------------------------------- from a rule to a record


def _tiny(dtype: DType) -> float:
    """The smallest normal number: its inverse, the largest δ of a clipped probability, is finite too."""
    return float(jnp.finfo(dtype).tiny)


def _no_probability(p: Array) -> Array:
    """True where p is NaN or outside [0, 1] by more than rounding: logits, most likely."""
    slack = math.sqrt(jnp.finfo(p.dtype).eps)
    return ~((p >= -slack) & (p <= 1 + slack))


def _poison(wrong: Array, like: Array) -> Array:
    """What is added to all of an example's target, [N, 1, …]: NaN where something in the example is wrong, else 0.

    In every rule the target multiplies, so that NaN in it reaches value, δ and every entry of `jax.grad`, as a
    value replaced by NaN in the end would not. The sum (for an `any`) and the target (for the prediction) are
    what XLA fuses without slowing the rest down.
    """
    sick = jnp.where(wrong, jnp.nan, 0.0).astype(like.dtype).sum(axis=tuple(range(1, wrong.ndim)))
    return sick.reshape(-1, *[1] * (like.ndim - 1))


def _entrywise(
    name: str,
    cost: Callable[..., Array],
    slope: Callable[..., Array],
    domain: _Domain,
    *,
    mean: bool = False,
    unusable: Callable[[Array], Array] | None = None,
    clips: bool = False,
) -> Loss:
    """The Loss of entrywise rules cost(y, t) and slope(y, t) = ∂cost/∂y; mean or sum over D, mean over T.

    `unusable` names the predictions that must give NaN and would not by themselves. Rules that clip
    probabilities are also given `tiny`, the place to do it.
    """

    def enter(prediction: Any, target: Any) -> tuple[Array, Array, float, dict[str, float]]:
        prediction, target = jnp.asarray(prediction), jnp.asarray(target)
        _check_entrywise(name, prediction, target, domain)
        work = checks.accumulator(prediction.dtype)
        y, t = prediction.astype(work), target.astype(work)
        if domain.poisons:
            t = t + _poison(domain.wrong(t) if unusable is None else domain.wrong(t) | unusable(y), t)
        entries = math.prod(y.shape[1:] if mean else y.shape[1:-1])
        return y, t, 1 / entries, {"tiny": _tiny(prediction.dtype)} if clips else {}

    def value(prediction: Array, target: Array) -> Array:
        y, t, share, clip = enter(prediction, target)
        return share * cost(y, t, **clip).sum(axis=tuple(range(1, y.ndim)))

    def delta(prediction: Array, target: Array) -> Array:
        y, t, share, clip = enter(prediction, target)
        return (share * slope(y, t, **clip)).astype(jnp.asarray(prediction).dtype)

    def check(prediction: Any, target: Any) -> None:
        target = np.asarray(target)
        _check_entrywise(name, prediction, target, domain)
        _check_values(name, domain, target)

    return Loss(name, value, delta, check)


def _classwise(
    name: str,
    cost: Callable[..., Array],
    slope: Callable[..., Array],
    *,
    soft: bool,
    unusable: Callable[[Array], Array] | None = None,
    clips: bool = False,
) -> Loss:
    """The Loss of rules over the last axis: cost(y, t, total) drops it, slope(y, t, total) is ∂cost/∂y.

    t [N, …, K] is one-hot or a distribution and total its sum over K. Mean over T. The rest as above.
    """

    def enter(prediction: Any, target: Any) -> tuple[Array, Array, float, dict[str, Any]]:
        prediction, target = jnp.asarray(prediction), jnp.asarray(target)
        hard = _check_classes(name, prediction, target, soft)
        work, classes = checks.accumulator(prediction.dtype), prediction.shape[-1]
        y = prediction.astype(work)
        if hard:
            # A narrow type cannot hold K, a wide one must not be narrowed: 2³² + 3 is not class 3.
            labels = target if target.dtype.itemsize >= 4 else target.astype(jnp.int32)
            wrong = _labels(classes).wrong(labels)
        else:
            wrong = _WEIGHTS.wrong(target.astype(work))
        if unusable is not None:
            wrong = (wrong[..., None] if hard else wrong) | unusable(y)
        poison = _poison(wrong, y)
        if hard:
            # One-hot by comparison: a gather's derivative would be a scatter, slower than all the rest.
            t = jnp.where(labels[..., None] == jnp.arange(classes, dtype=labels.dtype), 1 + poison, poison)
        else:
            t = target.astype(work) + poison
        rest: dict[str, Any] = {"total": 1.0 if hard else t.sum(axis=-1, keepdims=True)}
        if clips:
            rest["tiny"] = _tiny(prediction.dtype)
        return y, t, 1 / math.prod(y.shape[1:-1]), rest

    def value(prediction: Array, target: Array) -> Array:
        y, t, share, rest = enter(prediction, target)
        return share * cost(y, t, **rest).sum(axis=tuple(range(1, y.ndim - 1)))

    def delta(prediction: Array, target: Array) -> Array:
        y, t, share, rest = enter(prediction, target)
        return (share * slope(y, t, **rest)).astype(jnp.asarray(prediction).dtype)

    def check(prediction: Any, target: Any) -> None:
        target = np.asarray(target)
        if target.shape == tuple(prediction.shape[:-1]) and checks.is_floating(target):
            # More can be said than that labels are integers.
            fractional = _Domain(
                lambda t: t != np.round(t),
                "whole numbers",
                lambda t: "for numbers use a regression loss such as losses.mse",
            )
            _check_values(name, fractional, target)
        hard = _check_classes(name, prediction, target, soft)
        _check_values(name, _labels(prediction.shape[-1]) if hard else _WEIGHTS, target)

    return Loss(name, value, delta, check)


# ---------------------------------------------------------------- regression


mse = _entrywise(
    "mse",
    cost=lambda y, t: jnp.square(y - t),
    slope=lambda y, t: 2 * (y - t),
    domain=_NUMBERS,
    mean=True,
)
"""C = mean_D (y−t)², δ = 2(y−t)/D: the mean squared error (Gauss 1809)."""

mae = _entrywise(
    "mae",
    cost=lambda y, t: (y - t) * jnp.sign(y - t),  # not jnp.abs, whose derivative at 0 is 1
    slope=lambda y, t: jnp.sign(y - t),
    domain=_NUMBERS,
    mean=True,
)
"""C = mean_D |y−t|, δ = sign(y−t)/D and 0 at y = t: the mean absolute error (Boscovich 1757)."""

half_squared_error = _entrywise(
    "half_squared_error",
    cost=lambda y, t: 0.5 * jnp.square(y - t),
    slope=lambda y, t: y - t,
    domain=_NUMBERS,
)
"""C = ½‖y−t‖², δ = y−t: D/2 · mse, the classical cost (Rumelhart, Hinton & Williams 1986)."""


@cache
def _huber(d: float) -> Loss:
    def clipped(y: Array, t: Array) -> Array:
        e = y - t
        return jnp.where(e > d, d, jnp.where(e < -d, -d, e))  # NaN stays NaN

    # q keeps its sign: no |e|, hence no kink at e = 0, where the second derivative is 1.
    def cost(y: Array, t: Array) -> Array:
        q = clipped(y, t)
        return q * ((y - t) - q / 2)

    return _entrywise("huber", cost, slope=clipped, domain=_NUMBERS, mean=True)


def huber(delta: float = 1.0) -> Loss:
    """C = mean_D q·(e − q/2), δ = q/D with e = y − t and q = clip(e, −d, d): linear from |e| = d on.

    Equal arguments give the same record, so that what is compiled for it is found again.

    Args:
        delta: d, where the linear part begins, in units of the target; above 0.

    Raises:
        ValueError, TypeError: if delta is not a finite number above 0.

    Source: Huber (1964), "Robust Estimation of a Location Parameter".

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
    cost=_hinge_cost,
    slope=lambda y, t: jnp.where(1 - t * y <= 0, 0, -t),
    domain=_SIGNS,
    unusable=jnp.isnan,
)
"""C = Σ_D max(0, 1−t·y), δ = −t where t·y < 1, else 0; t = ±1 (Cortes & Vapnik 1995)."""

logistic = _entrywise(
    "logistic",
    cost=lambda y, t: _softplus_less(-t * y, 0),
    slope=lambda y, t: -t * jax.nn.sigmoid(-t * y),
    domain=_SIGNS,
)
"""C = Σ_D log(1 + exp(−t·y)), δ = −t·σ(−t·y); t = ±1 (Cox 1958).

Equal to sigmoid_binary_cross_entropy at (t+1)/2.
"""

sigmoid_binary_cross_entropy = _entrywise(
    "sigmoid_binary_cross_entropy",
    cost=lambda z, t: _softplus_less(z, z * t),
    slope=lambda z, t: jax.nn.sigmoid(z) - t,
    domain=_SHARES,
)
"""C = Σ_D max(z,0) − z·t + log1p(exp(−|z|)), δ = σ(z) − t; logits z, t in [0, 1] (Cox 1958)."""


def _log_clipped(p: Array, weight: Array, tiny: float) -> Array:
    """Log of max(p, tiny), with the derivative 1/max(p, tiny); where its weight is 0 too, log 1.

    A derivative of 0 below `tiny` would teach nothing to the predictions that are most wrong.
    """
    least = jnp.where(weight == 0, 1.0, tiny).astype(p.dtype)  # 0·∞ would make second derivatives NaN
    return jnp.log(jnp.where(p < tiny, least + (p - jax.lax.stop_gradient(p)), p))


def _at_least(p: Array, tiny: float) -> Array:
    return jnp.where(p < tiny, tiny, p)


binary_cross_entropy = _entrywise(
    "binary_cross_entropy",
    cost=lambda p, t, tiny: -t * _log_clipped(p, t, tiny) - (1 - t) * _log_clipped(1 - p, 1 - t, tiny),
    slope=lambda p, t, tiny: (1 - t) / _at_least(1 - p, tiny) - t / _at_least(p, tiny),
    domain=_SHARES,
    unusable=_no_probability,
    clips=True,
)
"""C = −Σ_D t·log p + (1−t)·log(1−p), δ = (1−t)/(1−p) − t/p; probabilities p, t in [0, 1] (Good 1952)."""


# ---------------------------------------------------------------- many classes


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
    "multiclass_hinge", cost=_multiclass_hinge_cost, slope=_multiclass_hinge_slope, soft=False, unusable=jnp.isnan
)
"""C = Σ_{i≠t} max(0, yᵢ−y_t+1), δᵢ = aᵢ − [i=t]·Σa (Weston & Watkins 1999).

aᵢ is 1 where the margin of i ≠ t is above 0, else 0.
"""

cross_entropy = _classwise(
    "cross_entropy",
    cost=lambda p, t, total, tiny: -(t * _log_clipped(p, t, tiny)).sum(axis=-1),
    slope=lambda p, t, total, tiny: -t / _at_least(p, tiny),
    soft=True,
    unusable=_no_probability,
    clips=True,
)
"""C = −Σᵢ tᵢ·log pᵢ, δᵢ = −tᵢ/pᵢ; probabilities p, as `softmax()` gives them (Good 1952)."""


def _softmax_cost(z: Array, t: Array, total: Array | float) -> Array:
    shifted = z - jax.lax.stop_gradient(z.max(axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))
    shifted = jnp.where((t == 0) & (shifted == -jnp.inf), 0, shifted)  # a masked class: 0·∞ is 0 here
    return (total * log_sum)[..., 0] - (t * shifted).sum(axis=-1)


softmax_cross_entropy = _classwise(
    "softmax_cross_entropy",
    cost=_softmax_cost,
    slope=lambda z, t, total: jax.nn.softmax(z, axis=-1) * total - t,
    soft=True,
)
"""C = Σᵢ tᵢ·(log Σⱼ exp zⱼ − zᵢ), δ = softmax(z)·Σt − t; logits z (Bridle 1990)."""
