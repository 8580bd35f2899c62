"""The three convolutions of a layer, forward and for both gradients: as XLA has them, and by other algorithms.

A rule derived by hand may choose its algorithm. The plain ones, written out first, are what the others are tested
against; which is taken where stands last, with the times that say why. Other backends than the CPU take the plain ones.

N batch, C channels in, H features out, G groups; spatial indices p (position of a window), k (tap of the kernel) and
q (place on the input), each with one entry for each spatial axis. D, P and K are the sizes of input, output and kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import accumulator, is_symbolic
from jaxnn.ranks import with_rank
from jaxnn.types import Array
from jaxnn.windows import (
    Windows,
    added_back,
    added_back_along,
    laid_out_along,
    split_last,
    views,
)

# ---------------------------------------------------------------- the three convolutions, as XLA has them


def correlate(x: Array, w: Array, windows: Windows, groups: int = 1) -> Array:
    """zₙₚₒ = Σₖᵢ wₖᵢₒ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ: [N, *D, C] and [*K, C/G, H] → [N, *P, H]."""
    return jax.lax.conv_general_dilated(
        x,
        w,
        windows.stride,
        windows.padding,
        rhs_dilation=windows.dilation,
        dimension_numbers=_forwards(len(windows.size)),
        feature_group_count=groups,
    )


def kernel_gradient(x: Array, delta: Array, windows: Windows, groups: int = 1) -> Array:
    """∂C/∂wₖᵢₒ = Σₙₚ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ δₙₚₒ: stride and dilation have changed places, and N is what is summed."""
    behind = [
        d * (k - 1) + s * (p - 1) + 1 - n - a
        for n, k, s, d, (a, _), p in zip(*windows[:5], windows.positions, strict=True)
    ]  # as much as gives K taps; negative where inputs are left over that no window saw
    rank, space = len(windows.size), tuple(range(1, len(windows.size) + 1))
    return jax.lax.conv_general_dilated(
        x,
        delta,
        windows.dilation,
        [(a, b) for (a, _), b in zip(windows.padding, behind, strict=True)],
        rhs_dilation=windows.stride,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (rank + 1, 0, *space), (rank + 1, 0, *space), (rank, rank + 1, *range(rank))
        ),
        batch_group_count=groups,
    )


def input_gradient(delta: Array, w: Array, windows: Windows, groups: int = 1) -> Array:
    """∂C/∂xₙqᵢ = Σₖₚₒ wₖᵢₒ δₙₚₒ over s p + d k − a = q: the kernel flipped, its C and H changed about in each group."""
    rank = len(windows.size)
    return jax.lax.conv_general_dilated(
        delta,
        _flipped(w, groups),
        (1,) * rank,
        _around_delta(windows),
        lhs_dilation=windows.stride,
        rhs_dilation=windows.dilation,
        dimension_numbers=_forwards(rank),
        feature_group_count=groups,
    )


def _flipped(w: Array, groups: int = 1) -> Array:
    """The kernel from its last tap to its first, [*K, C/G, H] → [*K, H/G, C]."""
    *taps, inputs, outputs = w.shape
    rank = len(taps)
    flipped = jnp.flip(w, tuple(range(rank))).reshape(*taps, inputs, groups, outputs // groups)
    return jnp.moveaxis(flipped, -1, rank).swapaxes(-1, -2).reshape(*taps, outputs // groups, groups * inputs)


def _around_delta(windows: Windows) -> tuple[tuple[int, int], ...]:
    """The zeros before and behind δ with which the flipped kernel sees every input; negative ones are cut off."""
    return tuple(
        (d * (k - 1) - a, n - s * (p - 1) - 1 + a)
        for n, k, s, d, (a, _), p in zip(*windows[:5], windows.positions, strict=True)
    )


def _forwards(rank: int) -> jax.lax.ConvDimensionNumbers:
    """Where batch, features and space are: x [N, *D, C], w [*K, C, H], z [N, *P, H]."""
    space = tuple(range(1, rank + 1))
    return jax.lax.ConvDimensionNumbers((0, rank + 1, *space), (rank + 1, rank, *range(rank)), (0, rank + 1, *space))


# ---------------------------------------------------------------- the same by other algorithms


def by_neighbours(x: Array, w: Array, windows: Windows) -> Array:
    """The forward convolution as one matrix product, [N P/t, K′ C] times [K′ C, t H], K′ the taps of t neighbours.

    Along the last axis t neighbouring windows are one that has K + t − 1 taps and t H features. Where channels are few,
    the product is thin without it, and more is copied.
    """
    features, t = w.shape[-1], _neighbours(windows)
    keep = ((0, 0),) * (w.ndim - 3)
    each = [jnp.pad(w, (*keep, (i, t - 1 - i), (0, 0), (0, 0))) for i in range(t)]
    across = jnp.stack(each, axis=-2).reshape(-1, t * features)
    return (_patches(x, _together(windows, t)) @ across).reshape(x.shape[0], *windows.positions, features)


def kernel_gradient_by_neighbours(x: Array, delta: Array, windows: Windows) -> Array:
    """∂C/∂w as one matrix product, [K′ C, N P/t] times [N P/t, t H], with the patches of `by_neighbours`.

    The K taps of each of the t are cut out of it and added.
    """
    channels, features, size, t = x.shape[-1], delta.shape[-1], windows.size[-1], _neighbours(windows)
    each = _patches(x, _together(windows, t)).T @ delta.reshape(-1, t * features)
    each = each.reshape(*windows.size[:-1], size + t - 1, channels, t, features)
    axis = len(windows.size) - 1
    return reduce(jnp.add, [jax.lax.slice_in_dim(each[..., i, :], i, i + size, axis=axis) for i in range(t)])


def _patches(x: Array, windows: Windows) -> Array:
    """What each window sees, [N P, K C]."""
    last, others = split_last(windows)
    rows = jax.lax.optimization_barrier(jnp.concatenate(views(x, last), axis=-1))  # else XLA gathers number by number
    patches = jnp.concatenate(views(rows, others), axis=-1)
    return patches.reshape(-1, patches.shape[-1])


def _neighbours(windows: Windows) -> int:
    """How many windows to take together: 4 or 2 where THICKER times as much is multiplied then, at most."""
    size, positions = windows.size[-1], windows.positions[-1]
    if size == 1 or windows.stride[-1] > 1 or windows.dilation[-1] > 1:
        return 1
    return next((t for t in (4, 2) if positions % t == 0 and size + t - 1 <= THICKER * size), 1)


def _together(windows: Windows, t: int) -> Windows:
    """Windows of K + t − 1 taps along the last axis, each in place of t that are neighbours."""
    return windows._replace(
        size=(*windows.size[:-1], windows.size[-1] + t - 1),
        stride=(*windows.stride[:-1], t * windows.stride[-1]),
        positions=(*windows.positions[:-1], windows.positions[-1] // t),
    )


def side_by_side(x: Array, w: Array, windows: Windows) -> Array:
    """The forward convolution of a whole batch as one wide image, in which its images stand side by side.

    XLA's CPU backend divides a convolution among the cores along the width, and a batch of small images not at all.
    What lies between two images is zero, as much of it as the padding asks for, and the windows there are dropped.
    """
    n, height, width, channels = x.shape
    (before, behind), stride = windows.padding[1], windows.stride[1]
    span = windows.dilation[1] * (windows.size[1] - 1) + 1
    slots = max(windows.positions[1], -(-(width + max(before, behind, 0)) // stride))  # positions an image takes
    laid = jax.lax.pad(
        x.swapaxes(0, 1),
        jnp.zeros((), x.dtype),
        ((0, 0, 0), (0, 0, 0), (before, slots * stride - width - before, 0), (0, 0, 0)),
    ).reshape(1, height, n * slots * stride, channels)
    z = correlate(laid, w, windows._replace(padding=(windows.padding[0], (0, max(0, span - stride)))))
    return z.reshape(-1, n, slots, w.shape[-1])[:, :, : windows.positions[1]].swapaxes(0, 1)


def _in_rows(x: Array, windows: Windows) -> tuple[Array, Windows]:
    """What each row of the kernel sees, [1, *D, N P, K C], P and K those of the last axis and *D of the others.

    The taps of the last axis stand side by side as channels, and the images side by side along it. With them, the
    windows that are left, along the other axes.
    """
    last, others = split_last(windows)
    rows = jnp.moveaxis(jnp.concatenate(views(x, last), axis=-1), 0, -3)
    *sizes, n, positions, channels = rows.shape
    wide = n * positions
    others = others._replace(inputs=(*sizes, wide), positions=(*others.positions[:-1], wide))
    return rows.reshape(1, *sizes, wide, channels), others


def kernel_gradient_by_rows(x: Array, delta: Array, windows: Windows) -> Array:
    """∂C/∂w as one matrix product for each tap of all axes but the last: [K C, N P] times [N P, H]."""
    x = jax.lax.optimization_barrier(x)  # what gives x would be computed again for every tap
    rows, others = _in_rows(x, windows)
    back = jnp.moveaxis(delta, 0, -3).reshape(-1, delta.shape[-1])
    each = jnp.stack([seen.reshape(-1, rows.shape[-1]).T @ back for seen in views(rows, others)])
    return each.reshape(*windows.size, x.shape[-1], delta.shape[-1])


def kernel_gradient_by_products(x: Array, delta: Array, windows: Windows, groups: int = 1) -> Array:
    """∂C/∂w as one matrix product for each tap, [C/G, N P] times [N P, H/G] in each group."""
    channels, features = x.shape[-1] // groups, delta.shape[-1] // groups
    back = delta.reshape(-1, groups, features)
    each = [jnp.einsum("ngc,ngh->cgh", seen.reshape(-1, groups, channels), back) for seen in views(x, windows)]
    return jnp.stack(each).reshape(*windows.size, channels, groups * features)


def kernel_gradient_at_once(x: Array, delta: Array, windows: Windows) -> Array:
    """∂C/∂w in two dimensions as one matrix product, [K₂ C, D₁ N P₂] times [D₁ N P₂, K₁ H].

    At each row of the input stands the δ of every window that sees it, one for each tap of the first axis.
    """
    rows, _ = _in_rows(x, windows)
    (taps, size), features = windows.size, delta.shape[-1]
    seen_by = laid_out_along(0, [delta.swapaxes(0, 1)] * taps, windows)
    back = jnp.concatenate(seen_by, axis=-1).reshape(-1, taps * features)
    each = (rows.reshape(-1, rows.shape[-1]).T @ back).reshape(size, x.shape[-1], taps, features)
    return jnp.moveaxis(each, 2, 0)


def input_gradient_by_products(delta: Array, w: Array, windows: Windows) -> Array:
    """∂C/∂x as one matrix product, [N P, H] times [H, K C], whose parts are added up where their taps saw the input.

    The convolution with the flipped kernel multiplies with the zeros around and between δ too; here there are none. The
    parts are added axis by axis, for as many examples at a time as a cache holds.
    """
    *taps, channels, features = w.shape
    across = w.reshape(-1, features).T

    def of_one(delta: Array) -> Array:
        parts = (delta.reshape(-1, features) @ across).reshape(*windows.positions, *taps, channels)
        for axis in reversed(range(len(taps))):  # the taps of this axis are the last ones left
            of_tap = [jax.lax.index_in_dim(parts, k, len(taps) + axis, keepdims=False) for k in range(taps[axis])]
            parts = added_back_along(axis, of_tap, windows)
        return parts

    each = math.prod(windows.positions) * w.size // features * delta.dtype.itemsize
    return jax.lax.map(of_one, delta, batch_size=min(delta.shape[0], max(1, CHUNK // each)))


def input_gradient_by_rows(delta: Array, w: Array, windows: Windows) -> Array:
    """∂C/∂x in two dimensions and stride 1 along the first: that one by convolution, the taps of the last as features.

    The K₂ C features, [H, K₂ C] at every tap of the first axis, are added up where the taps of the last saw the input.
    As in `side_by_side`, the images stand side by side.
    """
    n, (height, _), (_, positions) = delta.shape[0], windows.inputs, windows.positions
    taps, size, channels, features = w.shape
    across = jnp.flip(w, 0).transpose(0, 3, 1, 2).reshape(taps, 1, features, size * channels)
    laid = delta.swapaxes(0, 1).reshape(1, windows.positions[0], n * positions, features)
    along = windows._replace(
        stride=(1, 1), dilation=(windows.dilation[0], 1), padding=(_around_delta(windows)[0], (0, 0))
    )
    parts = correlate(laid, across, along).reshape(height, n, positions, size, channels)
    last, _ = split_last(windows)
    return added_back([parts[..., k, :].swapaxes(0, 1) for k in range(size)], last)


def by_taps(x: Array, w: Array, windows: Windows) -> Array:
    """A depthwise convolution: zₙₚₒ = Σₖ wₖₒ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ with o's channel i, no sum over channels."""
    wide = accumulator(x.dtype)
    inputs = jnp.repeat(x, w.shape[-1] // x.shape[-1], -1).astype(wide)
    kernel = w.reshape(-1, w.shape[-1]).astype(wide)
    pairs = zip(views(inputs, windows), kernel, strict=True)
    z = reduce(jnp.add, [seen * with_rank(tap, x.ndim) for seen, tap in pairs])
    return z.astype(x.dtype)


def kernel_gradient_by_taps(x: Array, delta: Array, windows: Windows) -> Array:
    """Of a depthwise convolution: ∂C/∂wₖₒ = Σₙₚ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ δₙₚₒ."""
    wide, features = accumulator(x.dtype), delta.shape[-1]
    inputs, delta_wide = jnp.repeat(x, features // x.shape[-1], -1).astype(wide), delta.astype(wide)
    every = tuple(range(x.ndim - 1))
    grad = jnp.stack([(seen * delta_wide).sum(every) for seen in views(inputs, windows)])
    return grad.reshape(*windows.size, 1, features).astype(x.dtype)


def input_gradient_by_taps(delta: Array, w: Array, windows: Windows, channels: int) -> Array:
    """Of a depthwise convolution: ∂C/∂xₙqᵢ = Σₖₚₒ wₖₒ δₙₚₒ over s p + d k − a = q and the o of channel i."""
    wide = accumulator(delta.dtype)
    kernel, delta_wide = w.reshape(-1, w.shape[-1]).astype(wide), delta.astype(wide)
    each = added_back([delta_wide * with_rank(tap, delta.ndim) for tap in kernel], windows)
    return each.reshape(*each.shape[:-1], channels, -1).sum(-1).astype(delta.dtype)


# ---------------------------------------------------------------- which of them

# Milliseconds on two cores inside a loop, as an epoch has one: XLA's CPU backend compiles the convolution that gives a
# kernel's gradient another way there (outside a loop 11 and 9.5 for the first two). 5×5 taps without padding, 3×3 with
# padding that keeps the size.
#
# kernel gradients                 convolution  a product for each tap  by rows  at once  by neighbours
# batch 128, 28×28×1 → 20, 5×5          35               3.5               1.9      9.5       1.1
# batch 64, 32×32×3 → 16, 3×3                            3.6                        2.0       1.1
# batch 128, 12×12×20 → 40, 5×5        224               3.9               4.4      5.0           (a LeNet's step: rows)
# batch 64, 32×32×16 → 16, 3×3                          10.2              11.3      5.0
# batch 64, 16×16×32 → 32, 3×3         474               4.6               4.7      4.7
# batch 64, 8×8×64 → 64, 3×3                             3.8               3.2      2.6
# batch 16, 28×28×64 → 64, 3×3                          14.4              13.9     10.1
#
# input gradients                  convolution  products  by rows  side by side
# batch 128, 12×12×20 → 40, 5×5         7.1        4.1       3.1        7.0
# batch 64, 32×32×3 → 16, 3×3           5.4        2.4       2.2        5.5
# batch 64, 16×16×32 → 32, 3×3          3.1        4.3       3.2        1.9
# batch 64, 8×8×64 → 64, 3×3            3.0        2.7       2.1        2.0
# batch 32, 28×28×64 → 64, 3×3         19.8       15.7      12.1       10.6
#
# forward                          convolution  side by side  by neighbours, of t = 1, 2, 4
# batch 128, 12×12×20 → 40, 5×5         5.4          2.7
# batch 64, 16×16×32 → 32, 3×3          3.1          1.9
# batch 64, 8×8×64 → 64, 3×3            3.0          2.0
# batch 32, 28×28×64 → 64, 3×3         20.2         10.8
# batch 128, 28×28×1 → 20, 5×5          1.4          1.8                    1.2   0.8
# batch 64, 32×32×3 → 16, 3×3           2.4          2.5              2.3   1.6   1.9
# batch 64, 32×32×3 → 32, 3×3           6.0          6.6              1.7   1.2   1.6
# batch 16, 64×64×3 → 32, 5×5          13.6         13.9              4.4   3.2   3.3
# batch 64, 32×32×3 → 64, 7×7          14.0          8.2             17.5  14.5  13.0
# batch 64, 1000×1 → 32, 15             1.8                                     0.6
# batch 16, 16×16×16×1 → 16, 3×3×3     17.1                               0.9
#
# Depthwise by taps instead of by convolution, batch 64, 16×16×32, 3×3: forward 0.5 against 13.8, kernel gradient 3.3
# against 5.3, input gradient 0.5 against 13.9.

FEW_CHANNELS = 4  # up to as many, rows win for the kernel's gradient, and products for the input's of the same size
MANY_TAPS = 5  # and from so many on along the last axis, rows
SHRINKS = 1.5  # and from this ratio of inputs to positions on: so many of its products are with zeros
THICKER = 1.6  # times as much may be multiplied for a product with more columns
MANY_WINDOWS = 1 << 14  # from so many on in a batch it saves time
SHORT = 128  # numbers that its windows may hold where there are two axes, and images can stand side by side instead
TASK = 1 << 16  # numbers, see _on_one_core
CHUNK = 1 << 20  # bytes that are formed at a time: what stays in the cache of a core


class Forms(NamedTuple):
    """Forward, (x, w, windows, groups), and the two convolutions of the backward pass, likewise."""

    forward: Callable[[Array, Array, Windows, int], Array]
    kernel_gradient: Callable[[Array, Array, Windows, int], Array]
    input_gradient: Callable[[Array, Array, Windows, int], Array]


def _on_one_core(x: Array, w: Array, windows: Windows) -> bool:
    """Whether XLA's CPU backend keeps one core busy with a convolution that it could divide if the image were wide.

    For jaxlib 0.10: it takes the last two axes of z for a product of P₂ rows, K C long, and H columns, and cuts it into
    tasks of about TASK numbers; where channels and features are few it has another, divided algorithm.
    """
    *size, channels, features = w.shape
    if len(size) != 2 or max(channels, features) <= 16:
        return False
    width, length = windows.positions[1], min(math.prod(size) * channels, 1024)
    alone = (width + features) * length < TASK or max(width, features) <= 64
    return alone and x.shape[0] > 1 and x.shape[0] * width * max(length, features) >= 2 * TASK


def _is_thin(x: Array, windows: Windows) -> bool:
    """Whether two or four windows are worth one product, as in the first layer of a network."""
    *others, size = windows.size
    t, channels = _neighbours(windows), x.shape[-1]
    if t == 1 or channels > FEW_CHANNELS or x.shape[0] * math.prod(windows.positions) < MANY_WINDOWS:
        return False
    return len(windows.size) != 2 or math.prod(others) * (size + t - 1) * channels <= SHORT


def _keeps_rows(windows: Windows) -> bool:
    """Whether there are two axes, and of the first as many positions as inputs: δ laid out for a tap is few zeros."""
    return len(windows.size) == 2 and windows.stride[0] == 1 and windows.positions[0] >= windows.inputs[0]


def _forward(x: Array, w: Array, windows: Windows, groups: int) -> Array:
    if groups == x.shape[-1] > 1:
        return by_taps(x, w, windows)
    if groups > 1 or jnp.finfo(x.dtype).bits < 32 or is_symbolic(x.shape[0]):
        return correlate(x, w, windows, groups)
    if _is_thin(x, windows):
        otherwise = by_neighbours
    elif _on_one_core(x, w, windows):
        otherwise = side_by_side
    else:
        return correlate(x, w, windows)
    return jax.lax.platform_dependent(
        x, w, cpu=lambda x, w: otherwise(x, w, windows), default=lambda x, w: correlate(x, w, windows)
    )


def _kernel_gradient(x: Array, delta: Array, windows: Windows, groups: int) -> Array:
    if groups == x.shape[-1] > 1:
        return kernel_gradient_by_taps(x, delta, windows)
    # Half precisions would be summed in half precision; for every N there is one form.
    if jnp.finfo(x.dtype).bits < 32 or is_symbolic(x.shape[0]):
        return kernel_gradient(x, delta, windows, groups)

    def by_products(x: Array, delta: Array) -> Array:
        if groups == 1 and _is_thin(x, windows):
            return kernel_gradient_by_neighbours(x, delta, windows)
        if groups == 1 and (x.shape[-1] <= FEW_CHANNELS or windows.size[-1] >= MANY_TAPS):
            return kernel_gradient_by_rows(x, delta, windows)
        if groups == 1 and _keeps_rows(windows):
            return kernel_gradient_at_once(x, delta, windows)
        return kernel_gradient_by_products(x, delta, windows, groups)

    return jax.lax.platform_dependent(
        x, delta, cpu=by_products, default=lambda x, delta: kernel_gradient(x, delta, windows, groups)
    )


def _input_gradient(delta: Array, w: Array, windows: Windows, groups: int) -> Array:
    if w.shape[-2] == 1 < groups:
        return input_gradient_by_taps(delta, w, windows, groups)
    if groups > 1 or jnp.finfo(delta.dtype).bits < 32 or is_symbolic(delta.shape[0]):
        return input_gradient(delta, w, windows, groups)
    shrinks = math.prod(windows.inputs) >= SHRINKS * math.prod(windows.positions)

    def otherwise(delta: Array, w: Array) -> Array:
        if shrinks and len(windows.size) == 2 and windows.stride[0] == 1:
            return input_gradient_by_rows(delta, w, windows)
        if shrinks or w.shape[-2] <= FEW_CHANNELS:
            return input_gradient_by_products(delta, w, windows)
        back = windows._replace(
            inputs=windows.positions, stride=(1, 1), padding=_around_delta(windows), positions=windows.inputs
        )
        if set(windows.stride) == {1} and _on_one_core(delta, _flipped(w), back):
            return side_by_side(delta, _flipped(w), back)
        return input_gradient(delta, w, windows)

    return jax.lax.platform_dependent(
        delta, w, cpu=otherwise, default=lambda delta, w: input_gradient(delta, w, windows)
    )


PLAIN = Forms(correlate, kernel_gradient, input_gradient)
FASTEST = Forms(_forward, _kernel_gradient, _input_gradient)
