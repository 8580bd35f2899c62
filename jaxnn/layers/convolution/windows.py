"""Positions of windows on an input, for convolution and pooling in one, two and three spatial dimensions.

A window has K taps on each axis, d apart, and moves in steps of s over an input of size D with a zeros before it and b
after: tap k of the window at position p reads the input at s·p + d·k − a, and there are
P = ⌊(D + a + b − d (K − 1) − 1)/s⌋ + 1 positions. N batch, C channels (the last axis).

    >>> windows = windows_on("conv", (28,), (5,), (2,), (1,), "same")
    >>> windows.positions, windows.padding
    ((14,), ((1, 2),))
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import whole_number
from jaxnn.errors import LayerError
from jaxnn.mistakes import LEAST_SIDE, channels_first
from jaxnn.shapes import features
from jaxnn.spmd.axes import reshaped
from jaxnn.types import Array, Shape

Padding: TypeAlias = str | Sequence[tuple[int, int]]  # "same", "valid", "causal", or (before, after) for each axis

MAX_RANK = 3
AXES = {1: "[N, D, C]", 2: "[N, D₁, D₂, C]", 3: "[N, D₁, D₂, D₃, C]"}
PADDINGS = ("same", "valid", "causal")


class Windows(NamedTuple):
    """Windows on an input; each entry is a tuple with one number for each spatial axis."""

    inputs: Shape  # D, the size of the input
    size: Shape  # K, the taps of the window
    stride: Shape  # s
    dilation: Shape  # d
    padding: tuple[tuple[int, int], ...]  # (a, b), the zeros before and after
    positions: Shape  # P, the number of windows

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(map(any, self.padding))

    @property
    def tiles(self) -> bool:
        """Whether windows neither overlap nor have gaps."""
        return self.stride == self.size and set(self.dilation) == {1}


# ---------------------------------------------------------------- settings


def window_size(what: str, value: Any) -> Shape:
    """A window's size on each spatial axis; their number is the rank."""
    if not isinstance(value, (tuple, list)):
        advice = f": {(value,)} for sequences, {(value, value)} for images" if isinstance(value, int) else ""
        raise TypeError(
            f"{what} must be a tuple with one size for each spatial axis, as in (5, 5), got {value!r}{advice}"
        )
    if not 1 <= len(value) <= MAX_RANK:
        raise ValueError(f"{what} must have 1, 2 or 3 sizes, one for each spatial axis, got {tuple(value)}")
    return tuple(whole_number(f"{what}[{i}]", size, least=1) for i, size in enumerate(value))


def for_each_axis(what: str, value: Any, rank: int) -> Shape:
    """One integer ≥ 1 for each spatial axis, from a single one or from a tuple."""
    if not isinstance(value, (tuple, list)):
        return (whole_number(what, value, least=1),) * rank
    if len(value) != rank:
        raise ValueError(f"{what} must be one number or {rank}, one for each spatial axis, got {tuple(value)}")
    return tuple(whole_number(f"{what}[{i}]", number, least=1) for i, number in enumerate(value))


def padding_of(what: str, value: Any, rank: int) -> Padding:
    """The name of a padding, or a pair for each spatial axis."""
    if isinstance(value, str):
        if value not in PADDINGS:
            meant = f"; did you mean {value.lower()!r}?" if value.lower() in PADDINGS else ""
            raise ValueError(f"{what} must be one of {', '.join(map(repr, PADDINGS))} or pairs, got {value!r}{meant}")
        return value
    expected = f"{what} must be a name or (before, after) for each of the {rank} spatial axes"
    if not isinstance(value, (tuple, list)):
        advice = f": padding={tuple((value, value) for _ in range(rank))}" if isinstance(value, int) else ""
        raise TypeError(f"{expected}, got {value!r}{advice}")
    if len(value) in (1, rank) and all(isinstance(size, int) for size in value):
        both = tuple((size, size) for size in (value if len(value) == rank else [*value] * rank))
        raise ValueError(f"{expected}, got {value!r}: padding={both}")
    if len(value) != rank or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in value):
        raise ValueError(f"{expected}, got {value!r}")
    pairs = [tuple(whole_number(f"{what}[{i}]", size, least=0) for size in pair) for i, pair in enumerate(value)]
    return tuple((before, after) for before, after in pairs)


def spatial_shape(kind: str, x: Any, rank: int) -> Shape:
    """D, the sizes between batch and channels, if x is a float array [N, *D, C]; errors name the input."""
    shape = features(kind, x)
    if len(shape) != rank + 2:
        advice = "one image needs its batch axis, x[None], and a grey one its channel, x[..., None]"
        raise LayerError(kind, f"expects x {AXES[rank]}, got x of shape {shape}: {advice}{channels_first(shape)}")
    return shape[1:-1]


def windows_on(kind: str, inputs: Shape, size: Shape, stride: Shape, dilation: Shape, padding: Padding) -> Windows:
    """The windows on an input of sizes `inputs`.

    With "same" there are ⌈D/s⌉ positions, and the padding is half before and half after, an odd zero after. With
    "causal" all of it, d (K − 1), is before: a window reads nothing after its position.

    Raises:
        LayerError: if a window is larger than the padded input.
    """
    spans = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    if isinstance(padding, str):
        pairs = [_named_padding(padding, n, span, s) for n, span, s in zip(inputs, spans, stride, strict=True)]
    else:
        pairs = [(before, after) for before, after in padding]
    room = tuple(n + a + b for n, (a, b) in zip(inputs, pairs, strict=True))
    if any(span > n for span, n in zip(spans, room, strict=True)):
        dilated = f", {spans} with its dilation {dilation}," if spans != size else ""
        where = f"an input of {inputs}" + f", {room} with its padding" * (room != tuple(inputs))
        advice = channels_first((1, *inputs, LEAST_SIDE)) if len(inputs) > 1 else ""
        raise LayerError(
            kind,
            f"has a window of {size}{dilated} that is larger than {where}: take a smaller window or padding='same'"
            f"{advice}",
        )
    positions = tuple((n - span) // s + 1 for n, span, s in zip(room, spans, stride, strict=True))
    return Windows(tuple(inputs), size, stride, dilation, tuple(pairs), positions)


def _named_padding(name: str, n: int, span: int, stride: int) -> tuple[int, int]:
    if name == "valid":
        return 0, 0
    if name == "causal":
        return span - 1, 0
    total = max((-(-n // stride) - 1) * stride + span - n, 0)
    return total // 2, total - total // 2


# ---------------------------------------------------------------- inputs of the taps


def taps(windows: Windows) -> Iterator[Shape]:
    """The taps of a window in row-major order."""
    return itertools.product(*map(range, windows.size))


def split_last(windows: Windows) -> tuple[Windows, Windows]:
    """The windows along the last spatial axis, and those along the others, which read the inputs of the former."""
    ones = (1,) * (len(windows.size) - 1)
    before = windows.inputs[:-1]
    last = Windows(
        windows.inputs,
        (*ones, windows.size[-1]),
        (*ones, windows.stride[-1]),
        (*ones, windows.dilation[-1]),
        (*((0, 0) for _ in ones), windows.padding[-1]),
        (*before, windows.positions[-1]),
    )
    others = Windows(
        last.positions,
        (*windows.size[:-1], 1),
        (*windows.stride[:-1], 1),
        (*windows.dilation[:-1], 1),
        (*windows.padding[:-1], (0, 0)),
        windows.positions,
    )
    return last, others


def views(x: Array, windows: Windows) -> list[Array]:
    """The inputs of each tap, a strided view of x [N, *D, C] for each: [N, *P, C], zeros in the padding."""
    x, last = _padded(x, windows), _spans(windows)
    found = []
    for tap in taps(windows):
        start = [d * k for d, k in zip(windows.dilation, tap, strict=True)]
        stop = [a + n for a, n in zip(start, last, strict=True)]
        found.append(jax.lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *windows.stride, 1)))
    return found


def map_views(f: Callable[[Array], Array], x: Array, windows: Windows) -> Array:
    """F of the inputs of each tap, in a loop: [K, …]."""
    x, last = _padded(x, windows), _spans(windows)
    starts = np.array([[0, *(d * k for d, k in zip(windows.dilation, tap, strict=True)), 0] for tap in taps(windows)])

    def of_tap(start: Array) -> Array:
        seen = jax.lax.dynamic_slice(x, list(start), (x.shape[0], *last, x.shape[-1]))
        return f(jax.lax.slice(seen, (0,) * x.ndim, seen.shape, (1, *windows.stride, 1)))

    return jax.lax.map(of_tap, jnp.asarray(starts, jnp.int32))


def _padded(x: Array, windows: Windows) -> Array:
    return jnp.pad(x, ((0, 0), *windows.padding, (0, 0))) if windows.padded else x


def _spans(windows: Windows) -> list[int]:
    """The number of inputs from the first that a tap reads to the last, on each axis."""
    return [s * (p - 1) + 1 for s, p in zip(windows.stride, windows.positions, strict=True)]


def added_back(parts: Sequence[Array], windows: Windows) -> Array:
    """The adjoint of `views`: the part of each tap, [N, *P, C], summed at the inputs that it read, [N, *D, C]."""
    rank = len(windows.size)
    spread = [
        _spread(part, {1 + axis: _laid_out(windows, axis, tap[axis]) for axis in range(rank)})
        for tap, part in zip(taps(windows), parts, strict=True)
    ]
    return reduce(jnp.add, spread)


def added_back_along(axis: int, parts: Sequence[Array], windows: Windows) -> Array:
    """The same for the taps of one spatial axis, with `parts` [P₁, P₂, …] without a batch axis."""
    return reduce(jnp.add, [_spread(part, {axis: _laid_out(windows, axis, k)}) for k, part in enumerate(parts)])


def _spread(part: Array, axes: dict[int, tuple[int, int, int]]) -> Array:
    edges = [axes.get(axis, (0, 0, 0)) for axis in range(part.ndim)]
    return jax.lax.pad(part, jnp.zeros((), part.dtype), edges)


def _laid_out(windows: Windows, axis: int, tap: int) -> tuple[int, int, int]:
    """The zeros before, after and between the values of a tap at the inputs' positions; negative numbers crop."""
    n, s, p = windows.inputs[axis], windows.stride[axis], windows.positions[axis]
    before = windows.dilation[axis] * tap - windows.padding[axis][0]
    return before, n - before - (s * (p - 1) + 1), s - 1


def as_tiles(values: Array, size: Shape | None = None) -> Array:
    """[N, P₁, P₂, C] as [N, P₁, 1, P₂, 1, C], with axes for the taps; broadcast to `size` if it is given."""
    n, *positions, channels = values.shape
    ones = (1,) * len(positions) if size is None else size
    apart = values.reshape(n, *(m for p in positions for m in (p, 1)), channels)
    return jnp.broadcast_to(apart, (n, *(m for pair in zip(positions, ones, strict=True) for m in pair), channels))


def from_tiles(tiles: Array, windows: Windows) -> Array:
    """[N, P₁, K₁, P₂, K₂, C] at the inputs' positions, [N, D₁, D₂, C], for windows that do not overlap."""
    n, channels = tiles.shape[0], tiles.shape[-1]
    laid = reshaped(tiles, (n, *(p * k for p, k in zip(windows.positions, windows.size, strict=True)), channels))
    ends = [
        (-a, size - (covered - a), 0)
        for size, covered, (a, _) in zip(windows.inputs, laid.shape[1:-1], windows.padding, strict=True)
    ]
    return jax.lax.pad(laid, jnp.zeros((), laid.dtype), ((0, 0, 0), *ends, (0, 0, 0)))


def on_the_input(windows: Windows) -> np.ndarray:
    """Whether a tap reads the input and not the padding, for each tap in row-major order: [K, *P, 1]."""
    axes = []
    for n, k, s, d, (a, _), p in zip(*windows[:5], windows.positions, strict=True):
        at = s * np.arange(p) + d * np.arange(k)[:, None] - a
        axes.append((at >= 0) & (at < n))  # [k, p]
    rank = len(axes)
    seen = np.ones((1,) * (2 * rank), bool)
    for axis, mask in enumerate(axes):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = mask.shape
        seen = seen & mask.reshape(shape)
    return seen.reshape(math.prod(windows.size), *windows.positions, 1)
