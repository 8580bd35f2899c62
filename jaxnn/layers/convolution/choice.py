"""Which algorithm computes a convolution: for each of the three, the first of its cases that can and wins.

The constants were found on two cores inside a loop, as an epoch has one: XLA's CPU backend compiles the convolution
that gives a kernel's gradient another way there. `benchmarks/convolution.py` measures them again on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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
from jaxnn.types import Array

FEW_CHANNELS = 4  # up to as many, the products of the plain algorithms are thin
MANY_WINDOWS = 1 << 14  # in a batch of at least as many, neighbours together save time
SHORT = 128  # numbers that the windows of neighbours may hold where there are two axes
SHRINKS = 1.5  # from this ratio of inputs to positions on, most that gives ∂C/∂x is multiplied with zeros

Algorithm: TypeAlias = Callable[..., Array]


class Forms(NamedTuple):
    """Forward, (x, w, windows, groups), and the two convolutions of the backward pass, likewise."""

    forward: Callable[[Array, Array, Windows, int], Array]
    kernel_gradient: Callable[[Array, Array, Windows, int], Array]
    input_gradient: Callable[[Array, Array, Windows, int], Array]


class Sizes(NamedTuple):
    """N, C, H, the windows and G of a convolution: what a choice depends on."""

    examples: Any
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
    """An algorithm, where it can serve, and where it wins over what follows."""

    algorithm: Algorithm
    can: Callable[[Sizes], bool]
    wins: Callable[[Sizes], bool]


# ---------------------------------------------------------------- where an algorithm wins


def _always(sizes: Sizes) -> bool:
    return True


def _depthwise(sizes: Sizes) -> bool:
    return sizes.depthwise


def _whole(sizes: Sizes) -> bool:
    return sizes.whole


def _is_thin(sizes: Sizes) -> bool:
    """Whether two or four windows are worth one product, as in the first layer of a network."""
    n, channels, _, windows, _ = sizes
    *others, size = windows.size
    t = neighbours(windows)
    if t == 1 or channels > FEW_CHANNELS or n * math.prod(windows.positions) < MANY_WINDOWS:
        return False
    return len(windows.size) != 2 or math.prod(others) * (size + t - 1) * channels <= SHORT


def _wastes(sizes: Sizes) -> bool:
    """Whether a convolution for ∂C/∂x multiplies with many zeros around and between δ, or gives few channels."""
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
        Case(kernel_gradient, _always, _always),  # on a CPU never: the benchmark compares with it
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
    """The algorithm that serves on a CPU."""
    return next(case.algorithm for case in CASES[which] if case.can(sizes) and case.wins(sizes))


def computed(algorithm: Algorithm, first: Array, second: Array, sizes: Sizes) -> Array:
    """By one algorithm; groups are given to those that take them."""
    return algorithm(first, second, sizes.windows, *([] if sizes.whole else [sizes.groups]))


def _by_the_fastest(which: str, first: Array, second: Array, sizes: Sizes) -> Array:
    """Other backends than the CPU take the plain one, but for depthwise convolutions.

    Half precisions too, which would be summed in half precision; and if N is symbolic there is one form for all.
    """
    plain = getattr(PLAIN, which)
    if not sizes.depthwise and (jnp.finfo(first.dtype).bits < 32 or is_symbolic(sizes.examples)):
        return computed(plain, first, second, sizes)
    algorithm = taken(which, sizes)
    if sizes.depthwise or algorithm is plain:
        return computed(algorithm, first, second, sizes)
    return jax.lax.platform_dependent(
        first,
        second,
        cpu=lambda first, second: computed(algorithm, first, second, sizes),
        default=lambda first, second: computed(plain, first, second, sizes),
    )


def _forward(x: Array, w: Array, windows: Windows, groups: int) -> Array:
    return _by_the_fastest("forward", x, w, Sizes(x.shape[0], x.shape[-1], w.shape[-1], windows, groups))


def _kernel_gradient(x: Array, delta: Array, windows: Windows, groups: int) -> Array:
    sizes = Sizes(x.shape[0], x.shape[-1], delta.shape[-1], windows, groups)
    return _by_the_fastest("kernel_gradient", x, delta, sizes)


def _input_gradient(delta: Array, w: Array, windows: Windows, groups: int) -> Array:
    sizes = Sizes(delta.shape[0], groups * w.shape[-2], delta.shape[-1], windows, groups)
    return _by_the_fastest("input_gradient", delta, w, sizes)


FASTEST = Forms(_forward, _kernel_gradient, _input_gradient)
