"""The choice of an algorithm for each of the three convolutions: the first case that applies and is fastest.

The constants were measured on two cores inside a loop, as in an epoch: there XLA's CPU backend compiles the convolution
for a kernel's gradient differently. `benchmarks/convolution.py` measures them on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_symbolic
from jaxnn.layers.convolution.algorithms import (
    by_neighbours,
    by_taps,
    correlate,
    input_gradient,
    input_gradient_by_products,
    input_gradient_by_taps,
    kernel_gradient,
    kernel_gradient_by_neighbours,
    kernel_gradient_by_products,
    kernel_gradient_by_taps,
    neighbours,
)
from jaxnn.layers.convolution.windows import Windows
from jaxnn.types import Array, DType

FEW_CHANNELS = 4  # up to this number, the matrix products of the plain algorithms are narrow
MANY_WINDOWS = 1 << 14  # from this number of windows in a batch on, grouping neighbours saves time
SHORT = 128  # the most numbers in the window of a group of neighbours, with two axes
SHRINKS = 1.5  # from this ratio of inputs to positions on, most multiplications for ∂C/∂x are by zeros

Algorithm: TypeAlias = Callable[..., Array]


class Forms(NamedTuple):
    """The forward convolution, of (x, w, windows, groups), and the two of the backward pass.

    The kernel's gradient takes the dtype of its sum as well, None for at least float32.
    """

    forward: Callable[[Array, Array, Windows, int], Array]
    kernel_gradient: Callable[[Array, Array, Windows, int, DType | None], Array]
    input_gradient: Callable[[Array, Array, Windows, int], Array]


class Sizes(NamedTuple):
    """N (which may be symbolic), C, H, the windows and G of a convolution, on which the choice depends."""

    examples: int
    channels: int
    features: int
    windows: Windows
    groups: int

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group."""
        return self.groups == self.channels > 1

    @property
    def whole(self) -> bool:
        """Whether there are no groups."""
        return self.groups == 1


class Case(NamedTuple):
    """An algorithm, where it applies, and where it is faster than those after it."""

    algorithm: Algorithm
    can: Callable[[Sizes], bool]
    wins: Callable[[Sizes], bool]


# ---------------------------------------------------------------- where an algorithm is faster


def _always(sizes: Sizes) -> bool:
    return True


def _depthwise(sizes: Sizes) -> bool:
    return sizes.depthwise


def _whole(sizes: Sizes) -> bool:
    return sizes.whole


def _is_thin(sizes: Sizes) -> bool:
    """Whether grouping two or four windows is faster, as in the first layer of a network."""
    n, channels, _, windows, _ = sizes
    *others, size = windows.size
    t = neighbours(windows)
    if t == 1 or channels > FEW_CHANNELS or n * math.prod(windows.positions) < MANY_WINDOWS:
        return False
    return len(windows.size) != 2 or math.prod(others) * (size + t - 1) * channels <= SHORT


def _wastes(sizes: Sizes) -> bool:
    """Whether the convolution for ∂C/∂x multiplies by many zeros around and between δ, or has few channels."""
    shrinks = math.prod(sizes.windows.inputs) >= SHRINKS * math.prod(sizes.windows.positions)
    return shrinks or sizes.channels <= FEW_CHANNELS


CASES: dict[str, tuple[Case, ...]] = {
    "forward": (
        Case(by_taps, _depthwise, _always),
        Case(by_neighbours, _whole, _is_thin),
        Case(correlate, _always, _always),
    ),
    "kernel_gradient": (
        Case(kernel_gradient_by_taps, _depthwise, _always),
        Case(kernel_gradient_by_neighbours, _whole, _is_thin),
        Case(kernel_gradient_by_products, _always, _always),
        Case(kernel_gradient, _always, _always),  # never chosen on a CPU; the benchmark compares with it
    ),
    "input_gradient": (
        Case(input_gradient_by_taps, _depthwise, _always),
        Case(input_gradient_by_products, _whole, _wastes),
        Case(input_gradient, _always, _always),
    ),
}


# ---------------------------------------------------------------- the choice

PLAIN = Forms(correlate, kernel_gradient, input_gradient)


def taken(which: str, sizes: Sizes) -> Algorithm:
    """The algorithm for CPUs."""
    return next(case.algorithm for case in CASES[which] if case.can(sizes) and case.wins(sizes))


def computed(algorithm: Algorithm, first: Array, second: Array, sizes: Sizes, dtype: DType | None = None) -> Array:
    """The result of one algorithm; groups are passed where there are several, and a dtype where one is given."""
    summed = {} if dtype is None else {"dtype": dtype}
    return algorithm(first, second, sizes.windows, *([] if sizes.whole else [sizes.groups]), **summed)


def _by_the_fastest(which: str, first: Array, second: Array, sizes: Sizes, dtype: DType | None = None) -> Array:
    """The chosen algorithm on a CPU, the plain one on other backends; the same for all in depthwise convolutions.

    The plain one also serves half precisions, which products would sum in half precision, and a symbolic N.
    """
    plain = getattr(PLAIN, which)
    if not sizes.depthwise and (jnp.finfo(first.dtype).bits < 32 or is_symbolic(sizes.examples)):
        return computed(plain, first, second, sizes, dtype)
    algorithm = taken(which, sizes)
    if sizes.depthwise or algorithm is plain:
        return computed(algorithm, first, second, sizes, dtype)
    return jax.lax.platform_dependent(
        first,
        second,
        cpu=lambda first, second: computed(algorithm, first, second, sizes, dtype),
        default=lambda first, second: computed(plain, first, second, sizes, dtype),
    )


def _forward(x: Array, w: Array, windows: Windows, groups: int) -> Array:
    return _by_the_fastest("forward", x, w, Sizes(x.shape[0], x.shape[-1], w.shape[-1], windows, groups))


def _kernel_gradient(x: Array, delta: Array, windows: Windows, groups: int, dtype: DType | None = None) -> Array:
    sizes = Sizes(x.shape[0], x.shape[-1], delta.shape[-1], windows, groups)
    return _by_the_fastest("kernel_gradient", x, delta, sizes, dtype)


def _input_gradient(delta: Array, w: Array, windows: Windows, groups: int) -> Array:
    sizes = Sizes(delta.shape[0], groups * w.shape[-2], delta.shape[-1], windows, groups)
    return _by_the_fastest("input_gradient", delta, w, sizes)


FASTEST = Forms(_forward, _kernel_gradient, _input_gradient)
