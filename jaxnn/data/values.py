"""Values of data before training: standardisation, and labels as distributions.

Index letters: `N` examples, `D` features, `K` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxnn import checks
from jaxnn.arrays import first_of, is_floating
from jaxnn.showing import shown
from jaxnn.trees import describe
from jaxnn.types import Array, DType, Shape

BLOCK = 1024  # examples that are copied to float64 at a time while statistics are computed
Data: TypeAlias = np.ndarray | Array


@shown()
class Standardisation(NamedTuple):
    """The mean and standard deviation of each feature of some data, for `standardise`; a pytree of arrays.

    Attributes:
        mean: shaped like one example.
        std: likewise; 0 for a constant feature.
    """

    mean: Data
    std: Data


def standardisation(x: ArrayLike, axes: Sequence[int] = (0,)) -> Standardisation:
    """The mean and standard deviation of each feature: μ = Σₙ xₙ / N, σ = √(Σₙ (xₙ − μ)² / N).

    Computed from the training part only and applied to every part, so that no information from the test part enters
    training. Sums are in float64 and in two passes: Σx²/N − μ² would lose all digits for μ ≫ σ.

    Args:
        x: [N, …], on the host or a jax.Array.
        axes: the axes to average over, including the batch axis 0: `(0,)` gives statistics of each feature (or
            pixel), `(0, 1, 2)` of each channel of images [N, H, W, C], `(0, 1, 2, 3)` of all together.

    Returns:
        NumPy arrays shaped like one example, of x's dtype, or float32 if x is integers.

    Raises:
        ValueError: no examples; axes without 0; values that are not finite (their number, and the index of the first).
        TypeError: values that are not real numbers.

    >>> scale = standardisation(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> scale.mean.tolist(), scale.std.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    """
    if not isinstance(axes, (tuple, list)):
        raise TypeError(f"standardisation: axes must be a list, as in (0,), got {checks.seen(axes)}")
    checks.plain_data("standardisation: x", x)
    x, axes = np.asarray(x), tuple(axes)
    if x.dtype.kind not in "biu" and not is_floating(x):
        raise TypeError(f"standardisation expects real numbers, got x of {x.dtype}")
    if 0 not in axes or len(set(axes)) < len(axes) or not all(0 <= axis < x.ndim for axis in axes):
        raise ValueError(f"axes must hold 0 and further axes of x of shape {x.shape}, each once, got {axes}")
    if not x.size:
        raise ValueError(f"standardisation needs examples, got x of shape {x.shape}")
    finite = np.isfinite(x)
    if not finite.all():
        count = x.size - np.count_nonzero(finite)
        raise ValueError(f"x holds {count} values that are not finite, the first at {first_of(~finite)}")
    count = math.prod(x.shape[axis] for axis in axes)
    low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    # A constant's mean is known exactly; a rounded one would leave σ ≈ 1e-17 and (x − μ)/σ = ±1 instead of 0.
    mean = np.where(low == high, low.astype(np.float64), _power_sum(x, 1, axes) / count)
    std = np.sqrt(_power_sum(x, 2, axes, mean) / count)
    dtype = x.dtype if is_floating(x) else np.dtype(np.float32)
    smallest = float(jax.numpy.finfo(dtype).tiny)  # XLA may flush what is below to 0, and then divide by it
    std = np.where(std < smallest, 0.0, std)
    shape = x.shape[1:]
    return Standardisation(*(np.broadcast_to(moment[0], shape).astype(dtype) for moment in (mean, std)))


def _power_sum(x: np.ndarray, power: int, axes: Shape, centre: np.ndarray | float = 0.0) -> np.ndarray:
    """Σ (x − centre)^power over axes in float64, without a float64 copy of all of x."""
    blocks = (x[start : start + BLOCK].astype(np.float64) - centre for start in range(0, len(x), BLOCK))
    return np.asarray(sum((block**power).sum(axes, keepdims=True) for block in blocks))


def standardise(scale: Standardisation, x: ArrayLike) -> Data:
    """Standardises: z = (x − μ) / σ, of mean 0 and standard deviation 1 over the data from which μ and σ are computed.

    A feature that was constant in them (σ = 0) is only centred: 0 if it still has that value. Pure; works under
    `jit` too.

    Args:
        scale: from `standardisation` of the training part.
        x: [N, …] of the same features.

    Returns:
        An array like x: NumPy for NumPy, of x's dtype if it is floating-point, otherwise of μ's.

    Raises:
        ValueError: x and scale differ in their features.

    >>> x_train, x_test = np.array([[1.0], [3.0]]), np.array([[7.0]])
    >>> scale = standardisation(x_train)
    >>> standardise(scale, x_train).tolist(), standardise(scale, x_test).tolist()
    ([[-1.0], [1.0]], [[5.0]])
    """
    x, mean, sigma = _aligned("standardise", scale, x)
    return (x - mean) / sigma


def unstandardise(scale: Standardisation, z: ArrayLike) -> Data:
    """The inverse of `standardise`, x = z·σ + μ: predictions in the units of the target.

    Raises:
        ValueError: z and scale differ in their features, as predictions [N, 1] and targets [N] do.

    >>> scale = standardisation(np.array([10.0, 30.0]))
    >>> unstandardise(scale, np.array([-1.0, 0.0, 2.0])).tolist()
    [10.0, 20.0, 40.0]
    """
    z, mean, sigma = _aligned("unstandardise", scale, z)
    return z * sigma + mean


def _aligned(what: str, scale: Standardisation, x: ArrayLike) -> tuple[Data, Data, Data]:
    """The arrays x [N, …], μ [1, …], and σ [1, …] with 1 for 0, in one dtype, if they have the same features."""
    if not isinstance(scale, Standardisation):
        swapped = isinstance(x, Standardisation)
        got = describe(scale) if hasattr(scale, "dtype") else type(scale).__name__
        advice = f"{what}(scale, x) takes scale first" if swapped else f"give {what}(standardisation(x_train), x)"
        raise TypeError(f"{what}: scale must be the result of standardisation(x_train), got {got}: {advice}")
    checks.plain_data(f"{what}: {'z' if what.startswith('un') else 'x'}", x)
    x = x if isinstance(x, np.ndarray | jax.Array) else np.asarray(x)
    if jax.numpy.issubdtype(x.dtype, jax.numpy.complexfloating):
        raise TypeError(f"{what} expects real numbers, got {x.dtype}")
    if not x.ndim or x.shape[1:] != scale.mean.shape:
        expected = f"[{', '.join(['N', *map(str, scale.mean.shape)])}]"
        raise ValueError(f"{what} expects {expected} like the data of scale, got shape {x.shape}")
    dtype = x.dtype if is_floating(x) else scale.mean.dtype
    sigma = scale.std + (scale.std == 0).astype(scale.std.dtype)
    return x.astype(dtype), scale.mean.astype(dtype)[None], sigma.astype(dtype)[None]


def one_hot(labels: ArrayLike, classes: int, dtype: DType = np.float32) -> np.ndarray:
    """Labels as distributions over K classes: tₙₖ = 1 where labelsₙ = k, else 0.

    For labels on the host, whose values are checked; inside `jit` use `jax.nn.one_hot`.

    Args:
        labels: whole numbers from 0 to K − 1, [N] or of any shape.
        classes: K.
        dtype: of the result.

    Returns:
        A NumPy array [N, K]: the shape of labels followed by K.

    Raises:
        TypeError: labels that are not whole numbers.
        ValueError: labels outside 0 … K − 1 (their number, and the index of the first).

    >>> one_hot([2, 0], 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if isinstance(labels, jax.core.Tracer):
        raise TypeError("data.one_hot checks the labels on the host: under jit use jax.nn.one_hot")
    checks.plain_data("one_hot: labels", labels)
    labels, classes = np.asarray(labels), checks.whole_number("classes", classes, least=1)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"one_hot expects integer labels, got {describe(labels)}")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        where = first_of(wrong)
        advice = "; they seem to count from 1: give labels - 1" if labels.min() == 1 else ""
        raise ValueError(
            f"one_hot expects labels from 0 to {classes - 1}, got {np.count_nonzero(wrong)} others, "
            f"the first {labels[where]} at {where}{advice}"
        )
    return (labels[..., None] == np.arange(classes)).astype(dtype)
