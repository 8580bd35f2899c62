"""Affine augmentations: images shifted, rotated, scaled and sheared."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator
from jaxnn.augment.resampling import affine_points, resample
from jaxnn.augment.strengths import Augmentation, Strength, factors_of, images, range_of, unchanged, uniform
from jaxnn.checks import number
from jaxnn.keys import as_key
from jaxnn.types import Array, DType, Key

AffineMap: TypeAlias = Callable[[Key, int, DType], tuple[Array, Array]]
STEEPEST = 89.0  # degrees of shear; at 90 the image would be a line


def shift(pixels: Strength, *, fill: float = 0.0) -> Augmentation:
    """Moves each image down and right by two independent numbers of pixels; fractions are interpolated.

    Args:
        pixels: the largest move, or (least, most).
        fill: the value outside the image.

    Raises:
        ValueError: if the strength is negative or not finite, or a pair is not in ascending order.

    >>> shift((1, 1))(jax.random.key(0), jnp.arange(4.0).reshape(1, 2, 2, 1))[0, :, :, 0].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    return affine(shift=pixels, fill=fill)


def rotate(degrees: Strength, *, fill: float = 0.0) -> Augmentation:
    """Rotates each image about its centre by an angle, anticlockwise if it is positive.

    Args:
        degrees: the largest angle, or (least, most).
        fill: the value outside the image.

    Raises:
        ValueError: as `shift`.

    >>> rotate((90, 90))(jax.random.key(0), jnp.arange(4.0).reshape(1, 2, 2, 1))[0, :, :, 0].round().tolist()
    [[1.0, 3.0], [0.0, 2.0]]
    """
    return affine(rotate=degrees, fill=fill)


def scale(amount: Strength, *, fill: float = 0.0) -> Augmentation:
    """Enlarges each image about its centre by a factor; below 1 it shrinks.

    Args:
        amount: s, for factors between 1/(1 + s) and 1 + s, or (least, most) factor, above 0.
        fill: the value outside the image.

    Raises:
        ValueError: as `shift`, and if a factor is not above 0.

    >>> scale(0.15)(jax.random.key(0), jnp.ones((2, 28, 28, 1))).shape
    (2, 28, 28, 1)
    """
    return affine(scale=amount, fill=fill)


def shear(degrees: Strength, *, fill: float = 0.0) -> Augmentation:
    """Shears each image to the right by an angle, like italics: a row u above the centre moves by u · tan(angle).

    Args:
        degrees: the largest angle, or (least, most), below 90.
        fill: the value outside the image.

    Raises:
        ValueError: as `shift`, and for angles above 89 degrees.

    >>> shear(10)(jax.random.key(0), jnp.ones((2, 28, 28, 1))).shape
    (2, 28, 28, 1)
    """
    return affine(shear=degrees, fill=fill)


def affine(
    shift: Strength = 0.0, rotate: Strength = 0.0, scale: Strength = 0.0, shear: Strength = 0.0, *, fill: float = 0.0
) -> Augmentation:
    """Scales, shears, rotates and then moves each image, in one resampling.

    The point p of the result shows x at q = M⁻¹ (p − m), with

        M = R(φ) · S(ψ) · s,   R the rotation by φ, S the shear by ψ, s the factor, m the move.

    Args:
        shift: pixels, as in `shift`.
        rotate: degrees, as in `rotate`.
        scale: as in `scale`.
        shear: degrees, as in `shear`.
        fill: the value outside the image.

    Raises:
        ValueError: as the four; when called, if x is not [N, H, W, C].
        TypeError: when called, if x is not floating-point.

    Source: Simard, Steinkraus & Platt (2003), "Best practices for convolutional neural networks applied to visual
    document analysis", section 2.

    >>> jitter = affine(shift=2, rotate=10, scale=0.1, shear=5)
    >>> jax.jit(jitter)(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """
    draw, fill = affine_map(shift, rotate, scale, shear), number("augment: fill", fill)
    if draw is None:
        return unchanged

    def augmentation(key: Key, x: Array) -> Array:
        x = images("affine", x)
        n, h, w = x.shape[:3]
        return resample(x, affine_points(*draw(as_key(key), n, accumulator(x.dtype)), h, w), fill=fill)

    return augmentation


def affine_map(shift: Strength, rotate: Strength, scale: Strength, shear: Strength) -> AffineMap | None:
    """A function (key, n, dtype) that draws n maps q = A p + b for `affine_points`; None if they change nothing."""
    moves, angles, leans = range_of("shift", shift), range_of("rotate", rotate), range_of("shear", shear, STEEPEST)
    factors = factors_of(scale)
    if (moves, angles, leans, factors) == ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
        return None
    logarithms = (math.log(factors[0]), math.log(factors[1]))

    def drawn(key: Key, n: int, dtype: DType) -> tuple[Array, Array]:
        keys = jax.random.split(key, 4)
        draw = functools.partial(uniform, dtype=dtype)
        move = draw(keys[0], (n, 2), moves)
        angle, lean = (jnp.deg2rad(draw(k, (n,), limits)) for k, limits in zip(keys[1:3], (angles, leans), strict=True))
        inverse = _turned(angle, jnp.tan(lean)) * jnp.exp(-draw(keys[3], (n,), logarithms))[:, None, None]
        return inverse, -jnp.einsum("nij,nj->ni", inverse, move)

    return drawn


def _turned(angle: Array, slope: Array) -> Array:
    """S⁻¹ R⁻¹ on (row, column), [N, 2, 2]; rows count downwards, so a row u above the centre is −u."""
    c, s, one, zero = jnp.cos(angle), jnp.sin(angle), jnp.ones_like(angle), jnp.zeros_like(angle)
    rotation = jnp.stack([jnp.stack([c, s], -1), jnp.stack([-s, c], -1)], -2)
    shearing = jnp.stack([jnp.stack([one, zero], -1), jnp.stack([slope, one], -1)], -2)
    return jnp.einsum("nij,njk->nik", shearing, rotation)
