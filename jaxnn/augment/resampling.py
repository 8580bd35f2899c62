"""Bilinear resampling of images at given points, and the points of affine maps."""

from __future__ import annotations

import jax.numpy as jnp

from jaxnn.arrays import accumulator
from jaxnn.augment.strengths import images
from jaxnn.trees import describe
from jaxnn.types import Array, DType


def resample(x: Array, points: Array, *, fill: float = 0.0) -> Array:
    """Images at given points, by bilinear interpolation.

    At the position of a pixel the result is exactly that pixel. Beyond the border all pixels are `fill`, so that the
    edge fades into it over one pixel.

    Args:
        x: [N, H, W, C].
        points: [N, H′, W′, 2], (row, column) counted from the first pixel.
        fill: the value outside the image.

    Returns:
        [N, H′, W′, C], of x's dtype.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if x is not floating-point.

    >>> x = jnp.array([0.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    >>> resample(x, jnp.array([[[[0.0, 0.5], [0.0, 2.0], [0.0, 9.0]]]]), fill=-1.0).ravel().tolist()
    [1.0, 4.0, -1.0]
    """
    x, points = images("resample", x), jnp.asarray(points)
    n, h, w, channels = x.shape
    if points.ndim != 4 or points.shape[0] != n or points.shape[-1] != 2:
        raise ValueError(f"augment.resample: points must be [{n}, H, W, 2] for {describe(x)}, got {describe(points)}")
    sizes = jnp.array([[[[h, w]]]], points.dtype)
    points = jnp.where(jnp.isnan(points), -1, jnp.clip(points, -1, sizes))  # everything further out is fill
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
    """The value a + part·(b − a), and a itself at part 0, whatever b is: 0 · NaN would be NaN."""
    return jnp.where(part == 0, a, a + part * (b - a))


def affine_points(matrix: Array, offset: Array, height: int, width: int) -> Array:
    """The points q = A p + b of an affine map at every pixel p, both counted from the image's centre.

    Args:
        matrix: A [N, 2, 2], acting on (row, column).
        offset: b [N, 2].
        height: H.
        width: W.

    Returns:
        [N, H, W, 2], (row, column) counted from the first pixel, as expected by `resample`.

    >>> affine_points(jnp.eye(2)[None], jnp.zeros((1, 2)), 2, 3)[0, 1, 2].tolist()
    [1.0, 2.0]
    """
    return mapped(matrix, offset, grid(height, width, matrix.dtype))


def mapped(matrix: Array, offset: Array, points: Array) -> Array:
    """A p + b of points [N or 1, H, W, 2] counted from the first pixel; A and b refer to the image's centre."""
    height, width = points.shape[-3:-1]
    centre = jnp.array([[[[(height - 1) / 2, (width - 1) / 2]]]], matrix.dtype)
    p = points - centre
    q = matrix[:, None, None, :, 0] * p[..., :1] + matrix[:, None, None, :, 1] * p[..., 1:]
    return q + (offset[:, None, None, :] + centre)


def grid(height: int, width: int, dtype: DType) -> Array:
    """(row, column) of every pixel, [1, H, W, 2]."""
    return jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1).astype(dtype)[None]
