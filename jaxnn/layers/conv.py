"""Convolution: local kernels that share their weights over space, for one, two and three spatial dimensions.

N batch, C channels in, H features out, G groups; spatial indices p (position of a window), k (tap of the kernel) and
q (place on the input), each with one entry for each spatial axis. D, P and K are the sizes of input, output and kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn import initializers
from jaxnn.checks import LayerError, accumulator, as_key, input_spec, whole_number, widest
from jaxnn.types import Array, BackwardRule, DType, Initializer, InShape, Key, Layer, Params, Shape, State, Tree
from jaxnn.windows import (
    Padding,
    Windows,
    added_back,
    added_back_along,
    for_each_axis,
    padding_of,
    place,
    spatial_shape,
    split_last,
    views,
    window_size,
)


def conv(
    features: int,
    kernel: tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = "same",
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    bias: bool = True,
    w_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Layer:
    """A convolution over the axes between batch and channels; the length of `kernel` says how many there are.

    Forward, x [N, *D, C] → z [N, *P, H], with stride s, dilation d and a zeros before the input (cross-correlation, as
    everywhere in deep learning: the kernel is not flipped):

        zₙₚₒ = Σₖᵢ wₖᵢₒ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ + bₒ

    Backward, δ = ∂C/∂z [N, *P, H]: two convolutions in which the roles have changed.

        ∂C/∂w [*K, C/G, H]   ∂C/∂wₖᵢₒ = Σₙₚ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ δₙₚₒ
                             x convolved with δ: stride and dilation change places, N is summed
        ∂C/∂x [N, *D, C]     ∂C/∂xₙqᵢ = Σₖₚₒ wₖᵢₒ δₙₚₒ   over k, p with s p + d k − a = q
                             δ, s − 1 zeros between its entries, convolved with the kernel flipped in space
        ∂C/∂b [H]            ∂C/∂bₒ = Σₙₚ δₙₚₒ

    With G groups, output o sees the C/G inputs of its group alone, ⌊o G/H⌋. With G = C it is depthwise.

    Parameters: `{"w": [*K, C/G, H], "b": [H]}`, flax's layout. PyTorch's weight [H, C/G, *K] is
    `jnp.moveaxis(weight, (0, 1), (-1, -2))`. A PyTorch network flattens channels first: a dense layer behind `flatten`
    needs its rows in another order too.

    Args:
        features: H, at least 1.
        kernel: K, a tuple with a size for each of 1, 2 or 3 spatial axes: `(5, 5)`.
        stride: s, one number, or one for each axis.
        padding: "same" (P = ⌈D/s⌉), "valid" (none), "causal" (d (K − 1) before), or (before, behind) for each axis.
        dilation: d, one number, or one for each axis.
        groups: G, which divides C and H.
        bias: False leaves b out.
        w_init: initializer of w; Glorot's uniform one by default.
        b_init: initializer of b; zeros by default.

    Raises:
        ValueError: if x is not float [N, *D, C], has another number of channels than w, or is smaller than the kernel;
            if the groups do not divide the channels.

    Source: LeCun et al. (1989), "Backpropagation applied to handwritten zip code recognition"; Dumoulin & Visin (2016),
    "A guide to convolution arithmetic for deep learning", chapter 4; Yu & Koltun (2016) on dilation.

    >>> net = conv(20, (5, 5), padding="valid")
    >>> params, state = net.init(0, (28, 28, 1))
    >>> params["w"].shape, net.forward(params, state, jnp.ones((2, 28, 28, 1)))[0].shape
    ((5, 5, 1, 20), (2, 24, 24, 20))
    """
    features = whole_number("conv: features", features, least=1)
    size = window_size("conv: kernel", kernel)
    rank = len(size)
    strides = for_each_axis("conv: stride", stride, rank)
    dilations = for_each_axis("conv: dilation", dilation, rank)
    padding = padding_of("conv: padding", padding, rank)
    groups = whole_number("conv: groups", groups, least=1)
    if features % groups:
        raise ValueError(f"conv: groups must divide the features, got {groups} groups for {features} features")
    w_init = w_init or initializers.glorot_uniform()
    b_init = b_init or initializers.zeros()

    def windows_of(spatial: Shape) -> Windows:
        return place("conv", spatial, size, strides, dilations, padding)

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        spec = input_spec(in_shape, dtype)
        windows_of(spatial_shape("conv", spec, rank))
        channels = spec.shape[-1]
        if channels % groups:
            raise LayerError("conv", f"expects channels in {groups} groups, got {channels}: {groups} must divide them")
        shapes = {"w": (*size, channels // groups, features), "b": (features,)}
        w_key, b_key = jax.random.split(as_key(key))
        params = {"w": w_init(w_key, shapes["w"], dtype)}
        if bias:
            params["b"] = b_init(b_key, shapes["b"], dtype)
        for name, param in params.items():
            if jnp.shape(param) != shapes[name]:
                raise LayerError("conv", f"expects {name}_init to give {shapes[name]}, got {jnp.shape(param)}")
        return params, ()

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        if set(params) != ({"w", "b"} if bias else {"w"}):
            raise LayerError("conv", f"expects parameters w{' and b' * bias}, got {sorted(params)}", about_params=True)
        w = params["w"]
        windows = windows_of(spatial_shape("conv", x, rank))
        if w.ndim == rank + 2 and x.shape[-1] != w.shape[-2] * groups:
            raise LayerError("conv", f"expects {w.shape[-2] * groups} channels, got x of shape {x.shape}")
        if w.shape != (*size, x.shape[-1] // groups, features):
            expected = (*size, x.shape[-1] // groups, features)
            raise LayerError("conv", f"expects w of shape {expected}, got {w.shape}", about_params=True)
        dtype = widest(x.dtype, w.dtype)
        z = FASTEST.forward(x.astype(dtype), w.astype(dtype), windows, groups)
        return (z + params["b"].astype(dtype) if bias else z), state, x

    def backward_by(forms: Forms) -> BackwardRule:
        def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
            x, w = tape, params["w"]
            windows = windows_of(x.shape[1:-1])
            grads = {"w": forms.kernel_gradient(x.astype(delta.dtype), delta, windows, groups)}
            if bias:
                grads["b"] = delta.sum(tuple(range(rank + 1)))
            # Where x and w differ in precision, δ has the higher one; what goes out fits what came in.
            grads = {name: grad.astype(params[name].dtype) for name, grad in grads.items()}
            return forms.input_gradient(delta, w.astype(delta.dtype), windows, groups).astype(x.dtype), grads

        return backward

    return Layer("conv", init, forward, backward_by(FASTEST), rules=(("plain", backward_by(PLAIN)),))


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
    padding = [
        (d * (k - 1) - a, n - s * (p - 1) - 1 + a)
        for n, k, s, d, (a, _), p in zip(*windows[:5], windows.positions, strict=True)
    ]
    *taps, inputs, outputs = w.shape
    flipped = jnp.flip(w, tuple(range(rank))).reshape(*taps, inputs, groups, outputs // groups)
    turned = jnp.moveaxis(flipped, -1, rank).swapaxes(-1, -2).reshape(*taps, outputs // groups, groups * inputs)
    return jax.lax.conv_general_dilated(
        delta,
        turned,
        (1,) * rank,
        padding,
        lhs_dilation=windows.stride,
        rhs_dilation=windows.dilation,
        dimension_numbers=_forwards(rank),
        feature_group_count=groups,
    )


def _forwards(rank: int) -> jax.lax.ConvDimensionNumbers:
    """Where batch, features and space are: x [N, *D, C], w [*K, C, H], z [N, *P, H]."""
    space = tuple(range(1, rank + 1))
    return jax.lax.ConvDimensionNumbers((0, rank + 1, *space), (rank + 1, rank, *range(rank)), (0, rank + 1, *space))


# ---------------------------------------------------------------- the same by other algorithms


def kernel_gradient_by_rows(x: Array, delta: Array, windows: Windows) -> Array:
    """∂C/∂w as one matrix product for each tap of all axes but the last, whose taps stand side by side.

    Where channels are few, t neighbouring windows of the last axis are one that has K + t − 1 taps and t H features:
    [(K + t − 1) C, N P/t] times [N P/t, t H]. Less is copied, and the products are larger; the K taps of each of the t
    are cut out of it and added.
    """
    channels, features, size = x.shape[-1], delta.shape[-1], windows.size[-1]
    t = _neighbours(windows) if channels <= FEW_CHANNELS else 1
    positions = windows.positions[-1] // t
    last, others = split_last(
        windows._replace(
            size=(*windows.size[:-1], size + t - 1),
            stride=(*windows.stride[:-1], t * windows.stride[-1]),
            positions=(*windows.positions[:-1], positions),
        )
    )
    rows = jnp.concatenate(views(x, last), axis=-1)
    back = delta.reshape(-1, t * features)
    each = jnp.stack([seen.reshape(-1, rows.shape[-1]).T @ back for seen in views(rows, others)])
    each = each.reshape(*windows.size[:-1], size + t - 1, channels, t, features)
    axis = len(windows.size) - 1
    cut = [jax.lax.slice_in_dim(each[..., i, :], i, i + size, axis=axis) for i in range(t)]
    return reduce(jnp.add, cut)


def _neighbours(windows: Windows) -> int:
    """How many windows to take together: 4 or 2 where that at most doubles what is multiplied."""
    size, positions = windows.size[-1], windows.positions[-1]
    if size == 1 or windows.stride[-1] > 1 or windows.dilation[-1] > 1:
        return 1
    return next((t for t in (4, 2) if positions % t == 0 and t - 1 <= size), 1)


def kernel_gradient_by_products(x: Array, delta: Array, windows: Windows, groups: int = 1) -> Array:
    """∂C/∂w as one matrix product for each tap, [C/G, N P] times [N P, H/G] in each group."""
    channels, features = x.shape[-1] // groups, delta.shape[-1] // groups
    back = delta.reshape(-1, groups, features)
    each = [jnp.einsum("ngc,ngh->cgh", seen.reshape(-1, groups, channels), back) for seen in views(x, windows)]
    return jnp.stack(each).reshape(*windows.size, channels, groups * features)


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


def by_taps(x: Array, w: Array, windows: Windows) -> Array:
    """A depthwise convolution: zₙₚₒ = Σₖ wₖₒ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ with o's channel i, no sum over channels."""
    wide = accumulator(x.dtype)
    inputs = jnp.repeat(x, w.shape[-1] // x.shape[-1], -1).astype(wide)
    kernel = w.reshape(-1, w.shape[-1]).astype(wide)
    z = reduce(jnp.add, [seen * tap for seen, tap in zip(views(inputs, windows), kernel, strict=True)])
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
    each = added_back([delta_wide * tap for tap in kernel], windows)
    return each.reshape(*each.shape[:-1], channels, -1).sum(-1).astype(delta.dtype)


# ---------------------------------------------------------------- which of them

# Milliseconds. Kernel gradients on two cores inside a loop, as an epoch has one: XLA's CPU backend compiles the
# convolution that they are another way there (outside a loop 11 and 9.5).
#                                                     convolution  a product for each tap  by rows
# batch 128, 28×28×1 → 20, 5×5 taps, no padding            35              7.9               1.5
# batch 128, 12×12×20 → 40, 5×5 taps, no padding          224              6.3               3.8
# batch 64, 32×32×3 → 16, 3×3 taps, same size                              3.9               1.6
# batch 64, 16×16×32 → 32, 3×3 taps, same size            474              4.9               4.8, and both cores busy
# Input gradients on one core:                        convolution  products
# batch 128, 12×12×20 → 40, 5×5 taps, no padding          14.4        5.2
# batch 64, 32×32×3 → 16, 3×3 taps, same size              6.3        2.1
# batch 64, 16×16×32 → 32, 3×3 taps, same size             2.9        4.2
# And by taps instead of by convolution, depthwise, batch 64, 16×16×32, 3×3 taps: forward 0.5 against 13.8, kernel
# gradient 3.3 against 5.3, input gradient 0.5 against 13.9.

FEW_CHANNELS = 4  # up to as many, rows win for the kernel's gradient, and products for the input's
MANY_TAPS = 5  # and from so many on along the last axis, rows
SHRINKS = 1.5  # and from this ratio of inputs to positions on: so many of its products are with zeros
CHUNK = 1 << 20  # bytes that are formed at a time: what stays in the cache of a core


class Forms(NamedTuple):
    """Forward, (x, w, windows, groups), and the two convolutions of the backward pass, likewise."""

    forward: Callable[[Array, Array, Windows, int], Array]
    kernel_gradient: Callable[[Array, Array, Windows, int], Array]
    input_gradient: Callable[[Array, Array, Windows, int], Array]


def _forward(x: Array, w: Array, windows: Windows, groups: int) -> Array:
    return by_taps(x, w, windows) if groups == x.shape[-1] > 1 else correlate(x, w, windows, groups)


def _kernel_gradient(x: Array, delta: Array, windows: Windows, groups: int) -> Array:
    if groups == x.shape[-1] > 1:
        return kernel_gradient_by_taps(x, delta, windows)
    if jnp.finfo(x.dtype).bits < 32:  # half precisions would be summed in half precision
        return kernel_gradient(x, delta, windows, groups)
    by_rows = groups == 1 and (x.shape[-1] <= FEW_CHANNELS or windows.size[-1] >= MANY_TAPS)

    def by_products(x: Array, delta: Array) -> Array:
        if by_rows:
            return kernel_gradient_by_rows(x, delta, windows)
        return kernel_gradient_by_products(x, delta, windows, groups)

    return jax.lax.platform_dependent(
        x, delta, cpu=by_products, default=lambda x, delta: kernel_gradient(x, delta, windows, groups)
    )


def _input_gradient(delta: Array, w: Array, windows: Windows, groups: int) -> Array:
    if w.shape[-2] == 1 < groups:
        return input_gradient_by_taps(delta, w, windows, groups)
    shrinks = math.prod(windows.inputs) >= SHRINKS * math.prod(windows.positions)
    if groups > 1 or not (shrinks or w.shape[-2] <= FEW_CHANNELS) or jnp.finfo(delta.dtype).bits < 32:
        return input_gradient(delta, w, windows, groups)
    return jax.lax.platform_dependent(
        delta,
        w,
        cpu=lambda delta, w: input_gradient_by_products(delta, w, windows),
        default=lambda delta, w: input_gradient(delta, w, windows),
    )


PLAIN = Forms(correlate, kernel_gradient, input_gradient)
FASTEST = Forms(_forward, _kernel_gradient, _input_gradient)
