"""Augmentation: images moved, turned, stretched, bent and made noisy at random, as pure functions of a key.

Every factory gives a function `(key, x) -> x` of a batch x [N, H, W, C] of floats. Each image gets a draw of its own;
shape and dtype are kept, equal keys give equal images, and under `jit` all of it runs inside a compiled epoch. Of no
strength at all, a function gives back x itself.

A strength is a number s, for a draw between −s and s, or a pair (low, high). Resampling is bilinear: what lies outside
of the image has the value `fill`, and a NaN stays one, in all that is computed from it.

    function                        draws, per image
    shift(pixels)                   rows and columns to move down and right, each on its own
    rotate(degrees)                 an angle, anticlockwise
    scale(amount)                   a factor between 1/(1 + s) and 1 + s, its logarithm uniform; a pair gives factors
    shear(degrees)                  an angle by which columns lean to the right
    affine(shift, rotate, …)        all of them, in one resampling: scaled, sheared, turned, then moved
    elastic(alpha, sigma)           a smooth field of displacements
    deform(alpha, sigma, shift, …)  affine, then elastic, in one resampling
    noise(std)                      a normal number for each entry

    compose(f, g, …)                one after another, each with a key of its own
    resample(x, points)             the common part, not random: x at given points

Letters: N batch, H and W height and width, C channels; p a point of the result, q the point of x that is seen there,
both (row, column) from the image's centre.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import accumulator, is_floating
from jaxnn.checks import number
from jaxnn.keys import as_key
from jaxnn.records import is_function
from jaxnn.trees import describe
from jaxnn.types import Array, Key

__all__ = [
    "Augmentation", "shift", "rotate", "scale", "shear", "affine", "elastic", "deform", "noise", "compose",
    "affine_points", "resample",
]  # fmt: skip


def __dir__() -> list[str]:
    return list(__all__)


Augmentation: TypeAlias = Callable[[Key, Array], Array]
Strength: TypeAlias = float | tuple[float, float]
Range: TypeAlias = tuple[float, float]
Map: TypeAlias = Callable[[Key, int, Any], tuple[Array, Array]]

STEEPEST = 89.0  # degrees of shear; at 90 the image would be a line
REACH = 4.0  # the Gaussian of `elastic` ends at so many σ
LOST = 1e-6  # share of the displacement's variance that its few dimensions leave out


# ---------------------------------------------------------------- one after another


def compose(*augmentations: Augmentation) -> Augmentation:
    """One augmentation after another, each with a key of its own; with none, the identity.

    `affine` does in one resampling, with less blur, what shift, rotate, scale and shear would do in four; `deform` in
    one what affine and elastic do in two.

    Raises:
        TypeError: if one is no function.

    >>> both = compose(elastic(alpha=34.0, sigma=4.0), noise(0.1))
    >>> both(jax.random.key(0), jnp.zeros((2, 28, 28, 1))).shape
    (2, 28, 28, 1)
    """
    for augmentation in augmentations:
        if not is_function(augmentation):
            raise TypeError(f"augment.compose: expected functions (key, x) -> x, got {augmentation!r}")

    def composed(key: Key, x: Array) -> Array:
        key, x = as_key(key), _checked("compose", x)

        # A loop, so that each result is in memory before the next begins: XLA would compute it anew for each of the
        # four pixels that a resampling looks at (elastic, then affine: 9 ms in place of 3).
        def one(x: Array, i: Array) -> tuple[Array, None]:
            return jax.lax.switch(i, augmentations, jax.random.fold_in(key, i), x), None

        return jax.lax.scan(one, x, jnp.arange(len(augmentations)))[0] if augmentations else x

    return composed


# ---------------------------------------------------------------- affine maps


def shift(pixels: Strength, *, fill: float = 0.0) -> Augmentation:
    """Moves each image down and right by two numbers of pixels, drawn apart; fractions are interpolated.

    Args:
        pixels: the largest move, or (least, most).
        fill: what comes in at the border.

    Raises:
        ValueError: if the strength is negative or not finite, or a pair is not in order.

    >>> shift((1, 1))(jax.random.key(0), jnp.arange(4.0).reshape(1, 2, 2, 1))[0, :, :, 0].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    return affine(shift=pixels, fill=fill)


def rotate(degrees: Strength, *, fill: float = 0.0) -> Augmentation:
    """Turns each image about its centre by an angle, anticlockwise where it is positive.

    Args:
        degrees: the largest angle, or (least, most).
        fill: the value outside of the image.

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
        fill: the value outside of the image.

    Raises:
        ValueError: as `shift`, and if a factor is not above 0.

    >>> scale(0.15)(jax.random.key(0), jnp.ones((2, 28, 28, 1))).shape
    (2, 28, 28, 1)
    """
    return affine(scale=amount, fill=fill)


def shear(degrees: Strength, *, fill: float = 0.0) -> Augmentation:
    """Leans each image to the right by an angle, as italics do: a row u above the centre moves by u · tan(angle).

    Args:
        degrees: the largest angle, or (least, most), below 90.
        fill: the value outside of the image.

    Raises:
        ValueError: as `shift`, and for 90 degrees and more.

    >>> shear(10)(jax.random.key(0), jnp.ones((2, 28, 28, 1))).shape
    (2, 28, 28, 1)
    """
    return affine(shear=degrees, fill=fill)


def affine(
    shift: Strength = 0.0,
    rotate: Strength = 0.0,
    scale: Strength = 0.0,
    shear: Strength = 0.0,
    *,
    fill: float = 0.0,
) -> Augmentation:
    """Scales, shears, turns and then moves each image, in one resampling.

    The point p of the result shows x at q = M⁻¹ (p − m), with

        M = R(φ) · S(ψ) · s,   R the rotation by φ, S the shear by ψ, s the factor, m the move.

    Args:
        shift: pixels, as in `shift`.
        rotate: degrees, as in `rotate`.
        scale: as in `scale`.
        shear: degrees, as in `shear`.
        fill: the value outside of the image.

    Raises:
        ValueError: as the four; when called, if x is not [N, H, W, C].
        TypeError: when called, if x is not float.

    Source: Simard, Steinkraus & Platt (2003), "Best practices for convolutional neural networks applied to visual
    document analysis", section 2.

    >>> jitter = affine(shift=2, rotate=10, scale=0.1, shear=5)
    >>> jax.jit(jitter)(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """
    draw, fill = _affine_map(shift, rotate, scale, shear), number("augment: fill", fill)
    if draw is None:
        return _nothing

    def augmentation(key: Key, x: Array) -> Array:
        x = _checked("affine", x)
        n, h, w = x.shape[:3]
        return resample(x, affine_points(*draw(as_key(key), n, accumulator(x.dtype)), h, w), fill=fill)

    return augmentation


def _affine_map(shift: Strength, rotate: Strength, scale: Strength, shear: Strength) -> Map | None:
    """A draw (key, n, dtype) of n maps q = A p + b as `affine_points` takes them; None where they change nothing."""
    moves, angles, leans = _range("shift", shift), _range("rotate", rotate), _range("shear", shear, STEEPEST)
    factors = _factors(scale)
    if (moves, angles, leans, factors) == ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
        return None
    logarithms = (math.log(factors[0]), math.log(factors[1]))

    def drawn(key: Key, n: int, dtype: Any) -> tuple[Array, Array]:
        keys = jax.random.split(key, 4)
        draw = functools.partial(_draw, dtype=dtype)
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


def affine_points(matrix: Array, offset: Array, height: int, width: int) -> Array:
    """Where an affine map looks: q = A p + b at every pixel p, both counted from the image's centre.

    Args:
        matrix: A [N, 2, 2], acting on (row, column).
        offset: b [N, 2].
        height: H.
        width: W.

    Returns:
        [N, H, W, 2], (row, column) counted from the first pixel, as `resample` takes them.

    >>> affine_points(jnp.eye(2)[None], jnp.zeros((1, 2)), 2, 3)[0, 1, 2].tolist()
    [1.0, 2.0]
    """
    return _mapped(matrix, offset, _grid(height, width, matrix.dtype))


def _mapped(matrix: Array, offset: Array, points: Array) -> Array:
    """A p + b of points [N or 1, H, W, 2], counted from the first pixel; A and b work from the image's centre."""
    height, width = points.shape[-3:-1]
    centre = jnp.array([[[[(height - 1) / 2, (width - 1) / 2]]]], matrix.dtype)
    p = points - centre
    q = matrix[:, None, None, :, 0] * p[..., :1] + matrix[:, None, None, :, 1] * p[..., 1:]
    return q + (offset[:, None, None, :] + centre)


# ---------------------------------------------------------------- elastic distortion


def elastic(alpha: float, sigma: float, *, fill: float = 0.0) -> Augmentation:
    """Bends each image by a random field of displacements, smooth over σ pixels.

        q = p + d(p),   d = α · (G_σ ∗ u)

    u is white noise of variance ⅓ for rows and for columns, that of a uniform draw from −1 to 1, and G_σ the Gaussian
    of standard deviation σ, its sum 1. Displacements have a root mean square of α / (2σ√(3π)) in each direction (1.4
    pixels at α = 34, σ = 4) where σ is 1 or more, and those of two pixels r apart correlate by exp(−r² / 4σ²). The
    noise is normal, so that the smoothed field can be drawn in the few dimensions that smoothing leaves.

    Args:
        alpha: α ≥ 0 in pixels; 0 is the identity.
        sigma: σ > 0 in pixels. A small one gives a crumpled image, a large one a moved one.
        fill: the value outside of the image.

    Raises:
        ValueError: if α or σ is out of range; when called, if x is not [N, H, W, C].
        TypeError: when called, if x is not float.

    Source: Simard, Steinkraus & Platt (2003), "Best practices for convolutional neural networks applied to visual
    document analysis", section 2.

    >>> elastic(alpha=34.0, sigma=4.0)(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """
    alpha = number("augment.elastic: alpha", alpha, least=0.0)
    sigma = number("augment.elastic: sigma", sigma, above=0.0)
    fill = number("augment: fill", fill)
    if not alpha:
        return _nothing

    def augmentation(key: Key, x: Array) -> Array:
        x = _checked("elastic", x)
        n, h, w = x.shape[:3]
        d = displacements(key, n, h, w, alpha, sigma).astype(accumulator(x.dtype))
        return resample(x, _grid(h, w, d.dtype) + d, fill=fill)

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
    """What `affine` and then `elastic` do, in one resampling: less blur, in three quarters of the time.

    The point p of the result shows x at q = M⁻¹ (p + d(p) − m), with M and m of `affine`, d of `elastic`.

    Args:
        alpha: α, as in `elastic`.
        sigma: σ, as in `elastic`.
        shift: pixels, as in `shift`.
        rotate: degrees, as in `rotate`.
        scale: as in `scale`.
        shear: degrees, as in `shear`.
        fill: the value outside of the image.

    Raises:
        ValueError, TypeError: as `affine` and `elastic`.

    Source: Simard, Steinkraus & Platt (2003), section 2; Cireşan et al. (2010), "Deep, big, simple neural nets for
    handwritten digit recognition", who train with both.

    >>> bend = deform(alpha=34.0, sigma=4.0, shift=2, rotate=10, scale=0.1)
    >>> bend(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """
    bent, draw = elastic(alpha, sigma, fill=fill), _affine_map(shift, rotate, scale, shear)
    if draw is None:
        return bent
    if not alpha:
        return affine(shift, rotate, scale, shear, fill=fill)

    def augmentation(key: Key, x: Array) -> Array:
        x = _checked("deform", x)
        n, h, w = x.shape[:3]
        dtype, (affine_key, elastic_key) = accumulator(x.dtype), jax.random.split(as_key(key))
        d = displacements(elastic_key, n, h, w, float(alpha), float(sigma)).astype(dtype)
        return resample(x, _mapped(*draw(affine_key, n, dtype), _grid(h, w, dtype) + d), fill=fill)

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
    """A [size, k] that makes of k normal numbers what a Gaussian makes of white noise along one axis.

    The Gaussian is B [size, size + 2·reach], the noise going on beyond the border. B = U S Vᵀ, and Vᵀ of white noise
    is white noise: B u is distributed like U S z. S falls fast, and its small values are left out.
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


# ---------------------------------------------------------------- noise


def noise(std: float) -> Augmentation:
    """Adds a normal number of mean 0 to every entry of x, which may have any shape.

    Args:
        std: its standard deviation, in the units of x; 0 is the identity.

    Raises:
        ValueError: if std is negative or not finite.
        TypeError: when called, if x is not float.

    Source: Sietsma & Dow (1991), "Creating artificial neural networks that generalize".

    >>> x = noise(0.1)(jax.random.key(0), jnp.zeros((100, 8, 8, 1)))
    >>> round(float(x.std()), 2)
    0.1
    """
    std = number("augment.noise: std", std, least=0.0)
    if not std:
        return _nothing

    def augmentation(key: Key, x: Array) -> Array:
        x = _float_array("noise", x)
        return x + std * jax.random.normal(as_key(key), x.shape, x.dtype)

    return augmentation


# ---------------------------------------------------------------- the common part


def resample(x: Array, points: Array, *, fill: float = 0.0) -> Array:
    """Images as seen at given points, by bilinear interpolation.

    At a pixel's own place it is that pixel, exactly. Beyond the border all pixels are `fill`, so that the edge fades
    into it over one pixel.

    Args:
        x: [N, H, W, C].
        points: [N, H′, W′, 2], (row, column) counted from the first pixel.
        fill: the value outside of the image.

    Returns:
        [N, H′, W′, C], of x's dtype.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if x is not float.

    >>> x = jnp.array([0.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    >>> resample(x, jnp.array([[[[0.0, 0.5], [0.0, 2.0], [0.0, 9.0]]]]), fill=-1.0).ravel().tolist()
    [1.0, 4.0, -1.0]
    """
    x, points = _checked("resample", x), jnp.asarray(points)
    n, h, w, channels = x.shape
    if points.ndim != 4 or points.shape[0] != n or points.shape[-1] != 2:
        raise ValueError(f"augment.resample: points must be [{n}, H, W, 2] for {describe(x)}, got {describe(points)}")
    sizes = jnp.array([[[[h, w]]]], points.dtype)
    points = jnp.where(jnp.isnan(points), -1, jnp.clip(points, -1, sizes))  # all that lies further out is fill
    whole = jnp.floor(points)
    row_part, column_part = (part.astype(accumulator(x.dtype)) for part in jnp.split(points - whole, 2, axis=-1))
    row, column = whole[..., 0].astype(jnp.int32), whole[..., 1].astype(jnp.int32)
    pixels = x.reshape(n * h * w, channels)  # one flat axis: half the time of indexing with three
    first = h * w * jnp.arange(n, dtype=jnp.int32)[:, None, None]

    def at(row: Array, column: Array) -> Array:
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        place = first + jnp.clip(row, 0, h - 1) * w + jnp.clip(column, 0, w - 1)
        value = pixels.at[place].get(mode="promise_in_bounds")
        return jnp.where(inside[..., None], value, fill).astype(row_part.dtype)

    above = _between(at(row, column), at(row, column + 1), column_part)
    below = _between(at(row + 1, column), at(row + 1, column + 1), column_part)
    return _between(above, below, row_part).astype(x.dtype)


def _between(a: Array, b: Array, part: Array) -> Array:
    """The value a + part·(b − a), and a itself at part 0, whatever b is: 0 · NaN would spread."""
    return jnp.where(part == 0, a, a + part * (b - a))


def _grid(height: int, width: int, dtype: Any) -> Array:
    """(row, column) of every pixel, [1, H, W, 2]."""
    return jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1).astype(dtype)[None]


def _draw(key: Key, shape: tuple[int, ...], limits: Range, dtype: Any) -> Array:
    low, high = limits
    return jnp.full(shape, low, dtype) if low == high else jax.random.uniform(key, shape, dtype, low, high)


def _nothing(key: Key, x: Array) -> Array:
    return _checked("an augmentation", x)


def _checked(what: str, x: Array) -> Array:
    """The images on the device, if they are a batch of float ones."""
    x = _float_array(what, x)
    if x.ndim != 4:
        advice = {
            2: ": x.reshape(-1, H, W, C) for flat images, x[None, :, :, None] for one grey image",
            3: ": x[..., None] for grey images",
        }.get(x.ndim, "")
        raise ValueError(f"augment: {what} expects images [N, H, W, C], got shape {tuple(x.shape)}{advice}")
    return x


def _float_array(what: str, x: Array) -> Array:
    """The array on the device, if it is a float one."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"augment: {what} expects an array of images, got {type(x).__name__}")
    if not is_floating(x):
        raise TypeError(f"augment: {what} expects floats, got {x.dtype}: convert with x.astype('float32')")
    return jnp.asarray(x)


def _range(what: str, strength: Strength, most: float = math.inf) -> Range:
    """The least and the greatest value to be drawn."""
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


def _factors(strength: Strength) -> Range:
    if not isinstance(strength, tuple):
        largest = 1 + number("augment: scale", strength, least=0.0)
        return 1 / largest, largest
    low, high = _range("scale", strength)
    return number("augment: scale", low, above=0.0), high
