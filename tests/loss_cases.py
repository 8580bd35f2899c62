"""One row per loss (two where a target may be given in two ways): what every loss is put through.

`make` draws signed inputs and stays off the kinks by MARGIN; the kinks have their own inputs, with the δ that
the documentation promises there. Shapes are [N], [N, D] or [N, T, D]; for class losses the last axis is K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn import losses
from jaxnn.types import Array, Loss

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
    make: Callable[..., tuple[Array, Array]]  # make(key, dtype, shape=(5, 4)) -> prediction, target
    kinks: tuple[Kink, ...] = ()
    classes: bool = False  # the prediction has an axis of classes, so is never [N]


def _away_from(key: Array, shape: tuple[int, ...], kinks: tuple[float, ...]) -> Array:
    """Normal numbers, twice as wide as standard, none within MARGIN of a kink."""
    z = 2 * jax.random.normal(key, shape)
    for kink in kinks:
        z = jnp.where(jnp.abs(z - kink) < MARGIN, kink + 2 * MARGIN, z)
    return z


def _numbers(*kinks: float) -> Callable[..., tuple[Array, Array]]:
    """y and t whose difference stays off the kinks."""

    def make(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
        k1, k2 = jax.random.split(key)
        t = jax.random.normal(k1, shape)
        return (t + _away_from(k2, shape, kinks)).astype(dtype), t.astype(dtype)

    return make


def _signs(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
    k1, k2 = jax.random.split(key)
    return _away_from(k1, shape, (-1.0, 1.0)).astype(dtype), jax.random.rademacher(k2, shape, dtype)


def _shares(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
    k1, k2 = jax.random.split(key)
    return (2 * jax.random.normal(k1, shape)).astype(dtype), jax.random.uniform(k2, shape).astype(dtype)


def _two_shares(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
    z, t = _shares(key, dtype, shape)
    return jax.nn.sigmoid(z), t


def _labels(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
    k1, k2 = jax.random.split(key)
    return (2 * jax.random.normal(k1, shape)).astype(dtype), jax.random.randint(k2, shape[:-1], 0, shape[-1])


def _clear_labels(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
    """Scores whose differences are odd multiples of 0.2, so that no margin is 0."""
    y, labels = _labels(key, dtype, shape)
    labelled = labels[..., None] == jnp.arange(shape[-1])
    return (jnp.round(y / 0.4) * 0.4 + jnp.where(labelled, 0.2, 0).astype(dtype)).astype(dtype), labels


def _distributions(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
    """Rows of targets that sum to anything: δ must say so."""
    k1, k2 = jax.random.split(key)
    return (2 * jax.random.normal(k1, shape)).astype(dtype), jax.random.uniform(k2, shape).astype(dtype)


def _soft(make: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    """The same with probabilities for logits."""

    def made(key: Array, dtype: Any, shape: tuple[int, ...] = (5, 4)) -> tuple[Array, Array]:
        z, target = make(key, dtype, shape)
        return jax.nn.softmax(z, axis=-1), target

    return made


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
        _soft(_labels),
        (Kink([[0.0, 1.0], [0.0, 1.0]], [0, 1], [[-BIG, 0.0], [0.0, -1.0]]),),
        classes=True,
    ),
    LossCase(
        "cross_entropy, distribution",
        losses.cross_entropy,
        _soft(_distributions),
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
