"""Pooling, from a window of the input to one number, and upsampling, from one number to a window.

N batch, C channels (the last axis, each pooled separately); spatial indices p (position of a window), k (its tap) and q
(input position), each with one entry for each spatial axis. D, P and K are the sizes of input, output and window.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import reduce

import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import accumulator, outline, with_rank
from jaxnn.checks import yes_or_no
from jaxnn.errors import LayerError
from jaxnn.layers.convolution.windows import (
    Padding,
    Windows,
    added_back,
    as_tiles,
    for_each_axis,
    from_tiles,
    on_the_input,
    padding_of,
    spatial_shape,
    views,
    window_size,
    windows_on,
)
from jaxnn.parameters import no_parameters
from jaxnn.shapes import check_delta, features
from jaxnn.tapes import first_axes
from jaxnn.types import Array, DType, Forward, Key, Layer, Outline, Params, Shape, State, Tree


class max_pool(Layer):
    """The maximum over each window.

    Forward, x [N, *D, C] → y [N, *P, C], with stride s and padding a before the input:

        yₙₚ꜀ = max_k xₙ,ₛₚ₊ₖ₋ₐ,꜀      k* = the first k, in row-major order, at which it is attained

    Backward, δ = ∂C/∂y: all of it goes to the maximum, at a tie to the first.

        ∂C/∂xₙq꜀ = Σ_p δₙₚ꜀   over the p with s p + k*ₙₚ꜀ − a = q

    Padding is never the maximum. The tape is k*, one byte for each output where the window has at most 256 taps.

    Args:
        window: K, a tuple with a size for each of 1, 2 or 3 spatial axes: `(2, 2)`.
        stride: s, one number, or one for each axis; the window's size by default, so that windows do not overlap.
        padding: "valid" (none), "same" (P = ⌈D/s⌉), "causal" (K − 1 before), or (before, after) for each axis, less
            than the window.

    Raises:
        ValueError: if x is not float [N, *D, C], or is smaller than the window.

    Source: Zhou & Chellappa (1988), "Computation of optical flow using a neural network"; Scherer, Müller & Behnke
    (2010), "Evaluation of pooling operations".

    >>> x = jnp.array([1.0, 3.0, 2.0, 2.0]).reshape(1, 4, 1)
    >>> y, _, tape = max_pool((2,)).forward({}, (), x)
    >>> delta_in, _ = max_pool((2,)).backward({}, tape, jnp.ones_like(y))
    >>> y.ravel().tolist(), delta_in.ravel().tolist()
    ([3.0, 2.0], [0.0, 1.0, 1.0, 0.0])
    """

    window: tuple[int, ...]
    _: KW_ONLY
    stride: int | tuple[int, ...] | None = None
    padding: Padding = "valid"

    def __post_init__(self) -> None:
        self._set(**_settings("max_pool", self.window, self.stride, self.padding))

    init = no_parameters
    batch_axes = first_axes

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        windows = _place(self, spatial_shape("max_pool", x, len(self.window)))
        index = _index(windows)
        y, *others = views(x, windows)
        winner = jnp.zeros(y.shape, index)
        there = on_the_input(windows)
        for k, rival in enumerate(others, start=1):
            wins = (rival > y) | (rival != rival)  # a NaN wins: NaN in, NaN out
            if windows.padded:
                here, none_before = (with_rank(at, y.ndim) for at in (there[k], ~there[:k].any(0)))
                wins = here & (wins | none_before)
            y = jnp.where(wins, rival, y)
            winner = jnp.where(wins, jnp.asarray(k, index), winner)
        return y, state, (winner, outline(x))

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        winner, x = tape
        check_delta("max_pool", delta, Outline(winner.shape, x.dtype))
        windows = _place(self, x.shape[1:-1])
        taps, zero = math.prod(self.window), jnp.zeros((), delta.dtype)
        if windows.tiles:
            # [1, K₁, 1, K₂, 1], the layout of the tiles with 1 for positions
            k = jnp.arange(taps, dtype=_index(windows)).reshape(1, *(n for size in self.window for n in (1, size)), 1)
            return from_tiles(jnp.where(as_tiles(winner) == k, as_tiles(delta), zero), windows), {}
        parts = [jnp.where(winner == k, delta, zero) for k in range(taps)]
        return added_back(parts, windows), {}


class avg_pool(Layer):
    """The mean over each window.

    Forward, x [N, *D, C] → y [N, *P, C], with stride s and padding a before the input:

        yₙₚ꜀ = (Σₖ xₙ,ₛₚ₊ₖ₋ₐ,꜀) / mₚ      mₚ = ∏ K, or the number of inputs in window p

    Backward, δ = ∂C/∂y: every input receives a share from each window that contains it.

        ∂C/∂xₙq꜀ = Σ_p δₙₚ꜀ / mₚ   over the p whose window contains q

    Args:
        window: K, a tuple with a size for each of 1, 2 or 3 spatial axes: `(2, 2)`.
        stride: s, one number, or one for each axis; the window's size by default, so that windows do not overlap.
        padding: "valid" (none), "same" (P = ⌈D/s⌉), "causal" (K − 1 before), or (before, after) for each axis, less
            than the window.
        count_include_pad: whether mₚ counts the zeros of the padding, as by default in PyTorch and flax; False for the
            mean over inputs alone.

    Raises:
        ValueError: if x is not float [N, *D, C], or is smaller than the window.

    Source: LeCun et al. (1989), "Backpropagation applied to handwritten zip code recognition", where each window
    also has a weight.

    >>> x = jnp.array([1.0, 3.0, 2.0, 2.0]).reshape(1, 4, 1)
    >>> avg_pool((2,)).forward({}, (), x)[0].ravel().tolist()
    [2.0, 2.0]
    """

    window: tuple[int, ...]
    _: KW_ONLY
    stride: int | tuple[int, ...] | None = None
    padding: Padding = "valid"
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        self._set(**_settings("avg_pool", self.window, self.stride, self.padding))
        self._set(count_include_pad=yes_or_no("avg_pool: count_include_pad", self.count_include_pad))

    init = no_parameters
    batch_axes = first_axes

    def _shares(self, windows: Windows, dtype: DType) -> Array:
        """1/mₚ, [*P, 1]."""
        count = np.full((1,), math.prod(self.window)) if self.count_include_pad else on_the_input(windows).sum(0)
        return jnp.asarray(1 / count, dtype)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        windows = _place(self, spatial_shape("avg_pool", x, len(self.window)))
        wide = accumulator(x.dtype)
        total = reduce(jnp.add, views(x.astype(wide), windows))
        return (total * with_rank(self._shares(windows, wide), total.ndim)).astype(x.dtype), state, outline(x)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        windows = _place(self, tape.shape[1:-1])
        check_delta("avg_pool", delta, Outline((tape.shape[0], *windows.positions, tape.shape[-1]), tape.dtype))
        wide = accumulator(delta.dtype)
        share = delta.astype(wide) * with_rank(self._shares(windows, wide), delta.ndim)
        if windows.tiles:
            delta_in = from_tiles(as_tiles(share, self.window), windows)
        else:
            delta_in = added_back([share] * math.prod(self.window), windows)
        return delta_in.astype(delta.dtype), {}


class global_max_pool(Layer):
    """The maximum of each channel over all positions: x [N, *D, C] → y [N, C].

    Forward:  yₙ꜀ = max_q xₙq꜀,   q* = the first q, in row-major order, at which it is attained.
    Backward, δ = ∂C/∂y:  ∂C/∂xₙq꜀ = δₙ꜀ where q = q*ₙ꜀, else 0.

    Raises:
        ValueError: if x is not float [N, *D, C] with at least one spatial axis.

    Source: Oquab, Bottou, Laptev & Sivic (2015), "Is object localization for free?", section 3.

    >>> global_max_pool().forward({}, (), jnp.arange(8.0).reshape(1, 2, 2, 2))[0].tolist()
    [[6.0, 7.0]]
    """

    def __init__(self) -> None: ...

    init = no_parameters
    batch_axes = first_axes

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        flat = _over_space("global_max_pool", x)
        winner = flat.argmax(1, keepdims=True)  # the first, or the first NaN
        return jnp.take_along_axis(flat, winner, 1)[:, 0], state, (winner, outline(x))

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        winner, x = tape
        check_delta("global_max_pool", delta, Outline((x.shape[0], x.shape[-1]), x.dtype))
        q = jnp.arange(math.prod(x.shape[1:-1]), dtype=winner.dtype)[None, :, None]
        delta_in = jnp.where(winner == q, delta[:, None], jnp.zeros((), delta.dtype))
        return delta_in.reshape(delta.shape[0], *x.shape[1:]), {}


class global_avg_pool(Layer):
    """The mean of each channel over all positions: x [N, *D, C] → y [N, C].

    Forward:  yₙ꜀ = (Σ_q xₙq꜀) / m,   m = ∏ D.    Backward, δ = ∂C/∂y:  ∂C/∂xₙq꜀ = δₙ꜀ / m.

    Raises:
        ValueError: if x is not float [N, *D, C] with at least one spatial axis.

    Source: Lin, Chen & Yan (2014), "Network in network", section 3.2.

    >>> global_avg_pool().forward({}, (), jnp.arange(8.0).reshape(1, 2, 2, 2))[0].tolist()
    [[3.0, 4.0]]
    """

    def __init__(self) -> None: ...

    init = no_parameters
    batch_axes = first_axes

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        flat = _over_space("global_avg_pool", x)
        return flat.astype(accumulator(x.dtype)).mean(1).astype(x.dtype), state, outline(x)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        n, *space, channels = tape.shape
        check_delta("global_avg_pool", delta, Outline((n, channels), tape.dtype))
        share = (delta.astype(accumulator(delta.dtype)) / math.prod(space)).astype(delta.dtype)
        share = share.reshape(-1, *(1,) * len(space), channels)
        return jnp.broadcast_to(share, (delta.shape[0], *space, channels)), {}


class upsample(Layer):
    """Nearest-neighbour upsampling, every value f times along each axis.

    Forward, x [N, *D, C] → y [N, *(f D), C]:  yₙq꜀ = xₙ,⌊q/f⌋,꜀.
    Backward, δ = ∂C/∂y:  ∂C/∂xₙp꜀ = Σ δₙq꜀ over the q with ⌊q/f⌋ = p.

    Args:
        factor: f, a tuple with a number for each of 1, 2 or 3 spatial axes: `(2, 2)`.

    Raises:
        ValueError: if x is not float [N, *D, C].

    Source: Odena, Dumoulin & Olah (2016), "Deconvolution and checkerboard artifacts", who put it before a convolution.

    >>> upsample((2,)).forward({}, (), jnp.array([[[1.0], [5.0]]]))[0].ravel().tolist()
    [1.0, 1.0, 5.0, 5.0]
    """

    factor: tuple[int, ...]

    def __post_init__(self) -> None:
        self._set(factor=window_size("upsample: factor", self.factor))

    init = no_parameters
    batch_axes = first_axes

    def _tiling(self, spatial: Shape) -> Windows:
        larger = tuple(f * n for f, n in zip(self.factor, spatial, strict=True))
        return windows_on("upsample", larger, self.factor, self.factor, (1,) * len(self.factor), "valid")

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        windows = self._tiling(spatial_shape("upsample", x, len(self.factor)))
        return from_tiles(as_tiles(x, self.factor), windows), state, outline(x)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        windows = self._tiling(tape.shape[1:-1])
        check_delta("upsample", delta, Outline((tape.shape[0], *windows.inputs, tape.shape[-1]), tape.dtype))
        copies = views(delta.astype(accumulator(delta.dtype)), windows)
        return reduce(jnp.add, copies).astype(delta.dtype), {}


# ---------------------------------------------------------------- shared


def _settings(
    kind: str, window: Shape, stride: int | Shape | None, padding: Padding
) -> dict[str, Shape | Padding | None]:
    """The settings in normal form; a stride of None is kept."""
    size = window_size(f"{kind}: window", window)
    strides = None if stride is None else for_each_axis(f"{kind}: stride", stride, len(size))
    pads = padding_of(f"{kind}: padding", padding, len(size))
    if not isinstance(pads, str) and any(max(pair) >= taps for pair, taps in zip(pads, size, strict=True)):
        raise ValueError(f"{kind}: padding must be less than the window {size}, or a window could contain nothing else")
    return {"window": size, "stride": strides, "padding": pads}


def _place(pool: max_pool | avg_pool, spatial: Shape) -> Windows:
    """The windows of a pooling layer on an input."""
    size = pool.window
    stride = for_each_axis(pool.kind, pool.stride or size, len(size))
    return windows_on(pool.kind, spatial, size, stride, (1,) * len(size), pool.padding)


def _index(windows: Windows) -> DType:
    """The dtype of k*."""
    return jnp.uint8 if math.prod(windows.size) <= 256 else jnp.int32


def _over_space(kind: str, x: Array) -> Array:
    """All spatial axes as one: x [N, *D, C] as [N, ∏ D, C]."""
    shape = features(kind, x)
    if len(shape) < 3 or 0 in shape[1:-1]:
        raise LayerError(kind, f"expects x [N, *D, C] with something to pool between N and C, got x of shape {shape}")
    return x.reshape(shape[0], math.prod(shape[1:-1]), shape[-1])
