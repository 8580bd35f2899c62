"""The three convolutions of a layer, forward and for both gradients: by XLA, and by other algorithms.

A hand-derived rule may choose its algorithm; `choice` does. The plain ones come first; the others are tested against
them.

N batch, C channels in, H features out, G groups; spatial indices p (position of a window), k (tap of the kernel) and
q (input position), each with one entry for each spatial axis. D, P and K are the sizes of input, output and kernel.
"""

from __future__ import annotations

import math
from functools import reduce

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, with_rank
from jaxnn.layers.convolution.windows import Windows, added_back, added_back_along, map_views, split_last, views
from jaxnn.types import Array, DType

# ---------------------------------------------------------------- by XLA


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


def kernel_gradient(x: Array, delta: Array, windows: Windows, groups: int = 1, dtype: DType | None = None) -> Array:
    """∂C/∂wₖᵢₒ = Σₙₚ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ δₙₚₒ: stride and dilation exchange roles, and the sum runs over N.

    As in all four algorithms, the sum is in dtype, by default at least float32.
    """
    after = [
        d * (k - 1) + s * (p - 1) + 1 - n - a
        for n, k, s, d, (a, _), p in zip(*windows[:5], windows.positions, strict=True)
    ]  # for K taps; negative where no window reads the last inputs
    rank, space = len(windows.size), tuple(range(1, len(windows.size) + 1))
    return jax.lax.conv_general_dilated(
        x,
        delta,
        windows.dilation,
        [(a, b) for (a, _), b in zip(windows.padding, after, strict=True)],
        rhs_dilation=windows.stride,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (rank + 1, 0, *space), (rank + 1, 0, *space), (rank, rank + 1, *range(rank))
        ),
        batch_group_count=groups,
        preferred_element_type=dtype or accumulator(delta.dtype),
    )


def input_gradient(delta: Array, w: Array, windows: Windows, groups: int = 1) -> Array:
    """∂C/∂xₙqᵢ = Σₖₚₒ wₖᵢₒ δₙₚₒ over s p + d k − a = q: the kernel flipped, its C and H swapped in each group."""
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
    """The zeros before and after δ with which the flipped kernel reaches every input; negative numbers crop."""
    return tuple(
        (d * (k - 1) - a, n - s * (p - 1) - 1 + a)
        for n, k, s, d, (a, _), p in zip(*windows[:5], windows.positions, strict=True)
    )


def _forwards(rank: int) -> jax.lax.ConvDimensionNumbers:
    """The axes of batch, features and space: x [N, *D, C], w [*K, C, H], z [N, *P, H]."""
    space = tuple(range(1, rank + 1))
    return jax.lax.ConvDimensionNumbers((0, rank + 1, *space), (rank + 1, rank, *range(rank)), (0, rank + 1, *space))


# ---------------------------------------------------------------- by other algorithms

THICKER = 1.6  # the most by which the number of multiplications may grow for a wider product
CHUNK = 1 << 20  # bytes formed at a time, which fit in a core's cache


def by_neighbours(x: Array, w: Array, windows: Windows) -> Array:
    """The forward convolution as one matrix product, [N P/t, K′ C] times [K′ C, t H], K′ the taps of t neighbours.

    Along the last axis t neighbouring windows are treated as one with K + t − 1 taps and t H features. With few
    channels the product would be narrow otherwise, and more would be copied.
    """
    features, t = w.shape[-1], neighbours(windows)
    keep = ((0, 0),) * (w.ndim - 3)
    each = [jnp.pad(w, (*keep, (i, t - 1 - i), (0, 0), (0, 0))) for i in range(t)]
    across = jnp.stack(each, axis=-2).reshape(-1, t * features)
    return (_patches(x, _together(windows, t)) @ across).reshape(x.shape[0], *windows.positions, features)


def kernel_gradient_by_neighbours(x: Array, delta: Array, windows: Windows, *, dtype: DType | None = None) -> Array:
    """∂C/∂w as one matrix product, [K′ C, N P/t] times [N P/t, t H], with the patches of `by_neighbours`.

    The K taps of each of the t windows are sliced from it and added.
    """
    channels, features, size, t = x.shape[-1], delta.shape[-1], windows.size[-1], neighbours(windows)
    wide = dtype or accumulator(delta.dtype)
    patches = _patches(x, _together(windows, t)).T
    each = jnp.matmul(patches, delta.reshape(-1, t * features), preferred_element_type=wide)
    each = each.reshape(*windows.size[:-1], size + t - 1, channels, t, features)
    axis = len(windows.size) - 1
    return reduce(jnp.add, [jax.lax.slice_in_dim(each[..., i, :], i, i + size, axis=axis) for i in range(t)])


def _patches(x: Array, windows: Windows) -> Array:
    """The inputs of each window, [N P, K C]."""
    last, others = split_last(windows)
    rows = jax.lax.optimization_barrier(jnp.concatenate(views(x, last), axis=-1))  # else XLA gathers number by number
    patches = jnp.concatenate(views(rows, others), axis=-1)
    return patches.reshape(-1, patches.shape[-1])


def neighbours(windows: Windows) -> int:
    """The number of windows to group: 4 or 2 where that takes at most THICKER times the multiplications, else 1."""
    size, positions = windows.size[-1], windows.positions[-1]
    if size == 1 or windows.stride[-1] > 1 or windows.dilation[-1] > 1:
        return 1
    return next((t for t in (4, 2) if positions % t == 0 and size + t - 1 <= THICKER * size), 1)


def _together(windows: Windows, t: int) -> Windows:
    """Windows of K + t − 1 taps along the last axis, each in place of t neighbours."""
    return windows._replace(
        size=(*windows.size[:-1], windows.size[-1] + t - 1),
        stride=(*windows.stride[:-1], t * windows.stride[-1]),
        positions=(*windows.positions[:-1], windows.positions[-1] // t),
    )


def kernel_gradient_by_products(
    x: Array, delta: Array, windows: Windows, groups: int = 1, dtype: DType | None = None
) -> Array:
    """∂C/∂w as one matrix product for each tap, [C/G, N P] times [N P, H/G] in each group.

    The taps run in a loop, which copies the inputs of each to the same memory and compiles one product.
    """
    channels, features = x.shape[-1] // groups, delta.shape[-1] // groups
    wide = dtype or accumulator(delta.dtype)

    def of_tap(seen: Array) -> Array:
        if groups == 1:
            rows = seen.reshape(-1, channels).T
            return jnp.matmul(rows, delta.reshape(-1, features), preferred_element_type=wide)
        rows, of_groups = seen.reshape(-1, groups, channels), delta.reshape(-1, groups, features)
        return jnp.einsum("ngc,ngh->cgh", rows, of_groups, preferred_element_type=wide)

    return map_views(of_tap, x, windows).reshape(*windows.size, channels, groups * features)


def input_gradient_by_products(delta: Array, w: Array, windows: Windows) -> Array:
    """∂C/∂x as one matrix product, [N P, H] times [H, K C], whose parts are added at the inputs that their taps read.

    The convolution with the flipped kernel also multiplies by the zeros around and between δ; here there are none. The
    parts are added axis by axis, for as many examples at a time as fit in a cache.
    """
    *taps, channels, features = w.shape
    across = w.reshape(-1, features).T

    def of_one(delta: Array) -> Array:
        parts = (delta.reshape(-1, features) @ across).reshape(*windows.positions, *taps, channels)
        for axis in reversed(range(len(taps))):  # the last axis of taps that is left
            of_tap = [jax.lax.index_in_dim(parts, k, len(taps) + axis, keepdims=False) for k in range(taps[axis])]
            parts = added_back_along(axis, of_tap, windows)
        return parts

    each = math.prod(windows.positions) * w.size // features * delta.dtype.itemsize
    return jax.lax.map(of_one, delta, batch_size=_at_a_time(delta.shape[0], CHUNK // each))


def _at_a_time(n: int, most: int) -> int:
    """The number of n to process together: a divisor if one is at least most/2, as a remainder is compiled too."""
    most = max(1, min(n, most))
    even = next(size for size in range(most, 0, -1) if n % size == 0)
    return even if 2 * even > most else most


def by_taps(x: Array, w: Array, windows: Windows, groups: int) -> Array:
    """A depthwise convolution, C = G: zₙₚₒ = Σₖ wₖₒ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ, i the channel of o; no sum over channels."""
    wide = accumulator(x.dtype)
    inputs = jnp.repeat(x, w.shape[-1] // groups, -1).astype(wide)
    kernel = w.reshape(-1, w.shape[-1]).astype(wide)
    pairs = zip(views(inputs, windows), kernel, strict=True)
    z = reduce(jnp.add, [seen * with_rank(tap, x.ndim) for seen, tap in pairs])
    return z.astype(x.dtype)


def kernel_gradient_by_taps(x: Array, delta: Array, windows: Windows, groups: int, dtype: DType | None = None) -> Array:
    """Of a depthwise convolution: ∂C/∂wₖₒ = Σₙₚ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ δₙₚₒ."""
    wide, features = dtype or accumulator(x.dtype), delta.shape[-1]
    inputs, delta_wide = jnp.repeat(x, features // groups, -1).astype(wide), delta.astype(wide)
    every = tuple(range(x.ndim - 1))
    grad = jnp.stack([(seen * delta_wide).sum(every) for seen in views(inputs, windows)])
    return grad.reshape(*windows.size, 1, features)


def input_gradient_by_taps(delta: Array, w: Array, windows: Windows, groups: int) -> Array:
    """Of a depthwise convolution: ∂C/∂xₙqᵢ = Σₖₚₒ wₖₒ δₙₚₒ over s p + d k − a = q and the o of channel i."""
    wide = accumulator(delta.dtype)
    kernel, delta_wide = w.reshape(-1, w.shape[-1]).astype(wide), delta.astype(wide)
    each = added_back([delta_wide * with_rank(tap, delta.ndim) for tap in kernel], windows)
    return each.reshape(*each.shape[:-1], groups, -1).sum(-1).astype(delta.dtype)
