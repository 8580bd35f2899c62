"""Convolution: local kernels that share their weights over space, for one, two and three spatial dimensions.

N batch, C channels in, H features out, G groups; spatial indices p (position of a window), k (tap of the kernel) and
q (place on the input), each with one entry for each spatial axis. D, P and K are the sizes of input, output and kernel.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnn import initializers
from jaxnn.checks import LayerError, as_key, input_spec, whole_number
from jaxnn.types import Array, DType, Initializer, InShape, Key, Layer, Params, Shape, State, Tree
from jaxnn.windows import Padding, Windows, for_each_axis, padding_of, place, spatial_shape, window_size


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
        dtype = jnp.promote_types(x.dtype, w.dtype)
        z = correlate(x.astype(dtype), w.astype(dtype), windows, groups)
        return (z + params["b"].astype(dtype) if bias else z), state, x

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x, w = tape, params["w"]
        windows = windows_of(x.shape[1:-1])
        grads = {"w": kernel_gradient(x.astype(delta.dtype), delta, windows, groups)}
        if bias:
            grads["b"] = delta.sum(tuple(range(rank + 1)))
        # Where x and w differ in precision, δ has the higher one; what goes out fits what came in.
        grads = {name: grad.astype(params[name].dtype) for name, grad in grads.items()}
        return input_gradient(delta, w.astype(delta.dtype), windows, groups).astype(x.dtype), grads

    return Layer("conv", init, forward, backward)


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
