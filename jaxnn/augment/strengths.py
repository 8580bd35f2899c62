"""Strengths of augmentations and the draws from their ranges, and the checks of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating
from jaxnn.checks import number
from jaxnn.types import Array, DType, Key

Augmentation: TypeAlias = Callable[[Key, Array], Array]
Strength: TypeAlias = float | tuple[float, float]
Range: TypeAlias = tuple[float, float]


def range_of(what: str, strength: Strength, most: float = math.inf) -> Range:
    """The least and the greatest value of a draw."""
    what = f"augment: {what}"
    if not isinstance(strength, tuple):
        largest = number(what, strength, least=0.0, most=most)
        return (-largest, largest) if largest else (0.0, 0.0)
    if len(strength) != 2:
        raise ValueError(f"{what} must be a number, or a pair (least, most), got {strength!r}")
    low, high = (number(what, value, least=-most, most=most) for value in strength)
    if low > high:
        raise ValueError(f"{what}: a pair is (least, most), got {strength!r}")
    return low, high


def factors_of(strength: Strength) -> Range:
    """The least and the greatest factor of `scale`."""
    if not isinstance(strength, tuple):
        largest = 1 + number("augment: scale", strength, least=0.0)
        return 1 / largest, largest
    low, high = range_of("scale", strength)
    return number("augment: scale", low, above=0.0), high


def uniform(key: Key, shape: tuple[int, ...], limits: Range, dtype: DType) -> Array:
    """Uniform draws between two limits; a constant if the limits are equal."""
    low, high = limits
    return jnp.full(shape, low, dtype) if low == high else jax.random.uniform(key, shape, dtype, low, high)


def unchanged(key: Key, x: Array) -> Array:
    """The augmentation of strength 0."""
    return images("an augmentation", x)


def images(what: str, x: Array) -> Array:
    """The images on the device, if they are a batch of floating-point images."""
    x = floats(what, x)
    if x.ndim != 4:
        advice = {
            2: ": x.reshape(-1, H, W, C) for flat images, x[None, :, :, None] for one grey image",
            3: ": x[..., None] for grey images",
        }.get(x.ndim, "")
        raise ValueError(f"augment: {what} expects images [N, H, W, C], got shape {tuple(x.shape)}{advice}")
    return x


def floats(what: str, x: Array) -> Array:
    """The array on the device, if it is a floating-point array."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"augment: {what} expects an array of images, got {type(x).__name__}")
    if not is_floating(x):
        raise TypeError(f"augment: {what} expects floats, got {x.dtype}: convert with x.astype('float32')")
    return jnp.asarray(x)
