"""One row per loss (two where a target may be given in two ways): what every loss is put through.

`make` draws signed inputs and stays off the kinks by MARGIN; the kinks have their own inputs, with the δ that
the documentation promises there. Shapes are [N], [N, D] or [N, T, D]; for class losses the last axis is K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import Loss, losses
from jaxnn.types import Array

MARGIN = 0.05  # far outside the reach of a central difference
SHAPES = ((5,), (5, 4), (3, 2, 4))
BIG = 2.0**126  # 1 / the smallest normal float32


class Kink(NamedTuple):
    """A place where the slope jumps or a formula is delicate, in float32, and δ there."""

    prediction: Any
    target: Any
    delta: Any


class LossCase(NamedTuple):
    name: str
    loss: Loss
    make: Callable[..., tuple[Array, Array]]  # make(key or seed, dtype, shape=(5, 4)) -> prediction, target
    kinks: tuple[Kink, ...] = ()
    classes: bool = False  # the prediction has an axis of classes, so is never [N]


def _drawn(draw: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Array, Array]]:
    """A `make` of what draw(rng, shape) gives: float64, and whole numbers for labels. NumPy draws and compiles nothing.

    A key is the seed. Floats are rounded to the dtype.
    """

    def make(key: Array | int, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
        seed = key if isinstance(key, int) else np.asarray(jax.random.key_data(key)).tolist()
        pair = draw(np.random.default_rng(seed), shape)
        prediction, target = (a if a.dtype.kind == "i" else a.astype(jnp.dtype(dtype)) for a in pair)
        return jax.device_put(prediction), jax.device_put(target)

    return make


def _away_from(rng: np.random.Generator, shape: tuple[int, ...], kinks: tuple[float, ...]) -> np.ndarray:
    """Normal numbers, twice as wide as standard, none within MARGIN of a kink."""
    z = 2 * rng.normal(size=shape)
    for kink in kinks:
        z = np.where(abs(z - kink) < MARGIN, kink + 2 * MARGIN, z)
    return z


def _numbers(*kinks: float) -> Callable[..., tuple[Array, Array]]:
    """y and t whose difference stays off the kinks."""

    @_drawn
    def make(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, Any]:
        t = rng.normal(size=shape)
        return t + _away_from(rng, shape, kinks), t

    return make


@_drawn
def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, Any]:
    return _away_from(rng, shape, (-1.0, 1.0)), rng.choice([-1.0, 1.0], shape)


def _some_shares(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, Any]:
    return 2 * rng.normal(size=shape), rng.uniform(size=shape)


_shares = _drawn(_some_shares)


@_drawn
def _two_shares(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, Any]:
    z, t = _some_shares(rng, shape)
    return 1 / (1 + np.exp(-z)), t


def _some_labels(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, Any]:
    return 2 * rng.normal(size=shape), rng.integers(0, shape[-1], shape[:-1])


_labels = _drawn(_some_labels)


@_drawn
def _clear_labels(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Scores whose differences are multiples of 0.4, so that no margin 1 + yᵢ − y_t is nearer to 0 than 0.2."""
    y, labels = _some_labels(rng, shape)
    return np.round(y / 0.4) * 0.4, labels


# Rows of targets that sum to anything: δ must say so.
_some_distributions, _distributions = _some_shares, _shares


def _soft(draw: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Array, Array]]:
    """The same with probabilities for logits."""

    @_drawn
    def make(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, Any]:
        z, target = draw(rng, shape)
        odds = np.exp(z)
        return odds / odds.sum(axis=-1, keepdims=True), target

    return make


LOSS_CASES = (
    LossCase("mse", losses.mse, _numbers(), (Kink([[3.0, 1.0]], [[3.0, 2.0]], [[0.0, -1.0]]),)),
    LossCase("mae", losses.mae, _numbers(0.0), (Kink([[1.0, 2.0]], [[1.0, 1.0]], [[0.0, 0.5]]),)),
    LossCase(
        "huber",
        losses.huber(),
        _numbers(-1.0, 1.0),
        (Kink([[1.0, -1.0, 0.0, 9.0]], [[0.0, 0.0, 0.0, 0.0]], [[0.25, -0.25, 0.0, 0.25]]),),
    ),
    LossCase(
        "huber(0.25)", losses.huber(0.25), _numbers(-0.25, 0.25), (Kink([0.25, -0.25], [0.0, 0.0], [0.25, -0.25]),)
    ),
    LossCase("half_squared_error", losses.half_squared_error, _numbers(), (Kink([[3.0]], [[3.0]], [[0.0]]),)),
    LossCase(
        "hinge",
        losses.hinge,
        _signs,
        (Kink([[1.0, -1.0, 0.0, -1.0]], [[1.0, -1.0, 1.0, 1.0]], [[0.0, 0.0, -1.0, -1.0]]),),
    ),
    LossCase("logistic", losses.logistic, _signs, (Kink([[0.0, 0.0]], [[1.0, -1.0]], [[-0.5, 0.5]]),)),
    LossCase(
        "sigmoid_binary_cross_entropy",
        losses.sigmoid_binary_cross_entropy,
        _shares,
        (Kink([[0.0, 0.0, 0.0]], [[0.0, 1.0, 0.25]], [[0.5, -0.5, 0.25]]),),
    ),
    LossCase(
        "binary_cross_entropy",
        losses.binary_cross_entropy,
        _two_shares,
        (Kink([[0.0, 1.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 1.0]], [[-BIG, BIG, 1.0, -1.0]]),),
    ),
    LossCase(
        "multiclass_hinge",
        losses.multiclass_hinge,
        _clear_labels,
        (Kink([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]], [0, 0], [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]),),
        classes=True,
    ),
    LossCase(
        "softmax_cross_entropy",
        losses.softmax_cross_entropy,
        _labels,
        (Kink([[1.0, 1.0], [0.0, 200.0]], [0, 0], [[-0.5, 0.5], [-1.0, 1.0]]),),
        classes=True,
    ),
    LossCase(
        "softmax_cross_entropy, distribution",
        losses.softmax_cross_entropy,
        _distributions,
        (Kink([[1.0, 1.0]], [[0.5, 1.5]], [[0.5, -0.5]]), Kink([[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]])),
        classes=True,
    ),
    LossCase(
        "cross_entropy",
        losses.cross_entropy,
        _soft(_some_labels),
        (Kink([[0.0, 1.0], [0.0, 1.0]], [0, 1], [[-BIG, 0.0], [0.0, -1.0]]),),
        classes=True,
    ),
    LossCase(
        "cross_entropy, distribution",
        losses.cross_entropy,
        _soft(_some_distributions),
        (Kink([[0.0, 1.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 2.0]], [[-BIG / 2, -0.5], [0.0, -2.0]]),),
        classes=True,
    ),
    LossCase(
        "label_smoothing",
        losses.label_smoothing(0.25),
        _labels,
        (Kink([[1.0, 1.0], [0.0, 200.0]], [0, 0], [[-0.375, 0.375], [-0.875, 0.875]]),),
        classes=True,
    ),
    LossCase(
        "label_smoothing, distribution",
        losses.label_smoothing(0.25),
        _distributions,
        (Kink([[1.0, 1.0]], [[0.5, 1.5]], [[0.375, -0.375]]), Kink([[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]])),
        classes=True,
    ),
)
