"""Distortions: images bent by a smooth random field of displacements, and images with noise."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import accumulator
from jaxnn.augment.maps import affine, affine_map
from jaxnn.augment.resampling import grid, mapped, resample
from jaxnn.augment.strengths import Augmentation, Strength, floats, images, unchanged
from jaxnn.checks import number
from jaxnn.keys import as_key
from jaxnn.types import Array, Key

REACH = 4.0  # standard deviations at which the Gaussian of `elastic` ends
LOST = 1e-6  # share of the displacement's variance that its few dimensions leave out


def elastic(alpha: float, sigma: float, *, fill: float = 0.0) -> Augmentation:
    """Bends each image by a random field of displacements, smooth over σ pixels.

        q = p + d(p),   d = α · (G_σ ∗ u)

    u is white noise of variance ⅓ for rows and for columns, that of a uniform draw from −1 to 1, and G_σ the Gaussian
    of standard deviation σ with sum 1. For σ ≥ 1, displacements have a root mean square of α / (2σ√(3π)) in each
    direction (1.4 pixels at α = 34, σ = 4), and those of two pixels at a distance r have a correlation of
    exp(−r² / 4σ²). The noise is normal, so that the smoothed field can be drawn in the few dimensions that smoothing
    leaves.

    Args:
        alpha: α ≥ 0 in pixels; 0 is the identity.
        sigma: σ > 0 in pixels. A small one crumples the image, a large one moves it as a whole.
        fill: the value outside the image.

    Raises:
        ValueError: if α or σ is out of range; when called, if x is not [N, H, W, C].
        TypeError: when called, if x is not floating-point.

    Source: Simard, Steinkraus & Platt (2003), "Best practices for convolutional neural networks applied to visual
    document analysis", section 2.

    >>> elastic(alpha=34.0, sigma=4.0)(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """
    alpha = number("augment.elastic: alpha", alpha, least=0.0)
    sigma = number("augment.elastic: sigma", sigma, above=0.0)
    fill = number("augment: fill", fill)
    if not alpha:
        return unchanged

    def augmentation(key: Key, x: Array) -> Array:
        x = images("elastic", x)
        n, h, w = x.shape[:3]
        d = displacements(key, n, h, w, alpha, sigma).astype(accumulator(x.dtype))
        return resample(x, grid(h, w, d.dtype) + d, fill=fill)

    return augmentation


def deform(
    alpha: float,
    sigma: float,
    shift: Strength = 0.0,
    rotate: Strength = 0.0,
    scale: Strength = 0.0,
    shear: Strength = 0.0,
    *,
    fill: float = 0.0,
) -> Augmentation:
    """`affine`, then `elastic`, in one resampling: less blur, in three quarters of the time.

    The point p of the result shows x at q = M⁻¹ (p + d(p) − m), with M and m of `affine`, d of `elastic`.

    Args:
        alpha: α, as in `elastic`.
        sigma: σ, as in `elastic`.
        shift: pixels, as in `shift`.
        rotate: degrees, as in `rotate`.
        scale: as in `scale`.
        shear: degrees, as in `shear`.
        fill: the value outside the image.

    Raises:
        ValueError, TypeError: as `affine` and `elastic`.

    Source: Simard, Steinkraus & Platt (2003), section 2; Cireşan et al. (2010), "Deep, big, simple neural nets for
    handwritten digit recognition", who train with both.

    >>> bend = deform(alpha=34.0, sigma=4.0, shift=2, rotate=10, scale=0.1)
    >>> bend(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """
    bent, draw = elastic(alpha, sigma, fill=fill), affine_map(shift, rotate, scale, shear)
    if draw is None:
        return bent
    if not alpha:
        return affine(shift, rotate, scale, shear, fill=fill)

    def augmentation(key: Key, x: Array) -> Array:
        x = images("deform", x)
        n, h, w = x.shape[:3]
        dtype, (affine_key, elastic_key) = accumulator(x.dtype), jax.random.split(as_key(key))
        d = displacements(elastic_key, n, h, w, float(alpha), float(sigma)).astype(dtype)
        return resample(x, mapped(*draw(affine_key, n, dtype), grid(h, w, dtype) + d), fill=fill)

    return augmentation


def displacements(key: Key, n: int, height: int, width: int, alpha: float, sigma: float) -> Array:
    """The random fields of `elastic`: d [N, H, W, 2] in pixels, (row, column).

    >>> displacements(jax.random.key(0), 3, 28, 28, alpha=34.0, sigma=4.0).shape
    (3, 28, 28, 2)
    """
    rows, columns = (jnp.asarray(_smoothing(size, sigma), jnp.float32) for size in (height, width))
    z = jax.random.normal(as_key(key), (n, 2, rows.shape[1], columns.shape[1]), jnp.float32)
    return alpha / math.sqrt(3) * jnp.moveaxis(rows @ z @ columns.T, 1, -1)


@functools.cache
def _smoothing(size: int, sigma: float) -> np.ndarray:
    """The matrix [size, k] that maps k normal numbers to white noise smoothed by a Gaussian along one axis.

    The Gaussian is B [size, size + 2·reach], with noise beyond the border too. B = U S Vᵀ, and Vᵀ of white noise is
    white noise: B u is distributed like U S z. S decays fast, and its small values are left out.
    """
    reach = math.ceil(REACH * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    blur = np.zeros((size, size + 2 * reach))
    for i in range(size):
        blur[i, i : i + len(weights)] = weights
    u, s, _ = np.linalg.svd(blur, full_matrices=False)
    kept = 1 + int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 1 - LOST))
    return u[:, :kept] * s[:kept]


def noise(std: float) -> Augmentation:
    """Adds normal noise of mean 0 to every entry of x, which may have any shape.

    Args:
        std: the standard deviation, in the units of x; 0 is the identity.

    Raises:
        ValueError: if std is negative or not finite.
        TypeError: when called, if x is not floating-point.

    Source: Sietsma & Dow (1991), "Creating artificial neural networks that generalize".

    >>> x = noise(0.1)(jax.random.key(0), jnp.zeros((100, 8, 8, 1)))
    >>> round(float(x.std()), 2)
    0.1
    """
    std = number("augment.noise: std", std, least=0.0)
    if not std:
        return unchanged

    def augmentation(key: Key, x: Array) -> Array:
        x = floats("noise", x)
        return x + std * jax.random.normal(as_key(key), x.shape, x.dtype)

    return augmentation
