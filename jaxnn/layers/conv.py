"""Convolution: local kernels that share their weights over space, for one, two and three spatial dimensions.

N batch, C channels in, H features out, G groups; spatial indices p (position of a window), k (tap of the kernel) and
q (place on the input), each with one entry for each spatial axis. D, P and K are the sizes of input, output and kernel.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnn import initializers
from jaxnn.checks import LayerError, as_key, check_delta, input_spec, whole_number, widest, yes_or_no
from jaxnn.convolutions import FASTEST, PLAIN, Forms
from jaxnn.mistakes import channels_first, initializer
from jaxnn.placement import axes_of, placed
from jaxnn.ranks import with_rank
from jaxnn.types import (
    Array,
    BackwardRule,
    DType,
    ForwardRule,
    Initializer,
    InShape,
    Key,
    Layer,
    Outline,
    Params,
    Shape,
    State,
    Tree,
)
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

    With G groups, output o sees the C/G inputs of its group alone, ⌊o G/H⌋. With G = C it is depthwise. Each group's
    kernel [*K, C/G, H/G] is drawn by itself, so that its fans are what its outputs see and its inputs reach.

    Parameters: `{"w": [*K, C/G, H], "b": [H]}`, flax's layout. PyTorch's weight [H, C/G, *K] is
    `jnp.moveaxis(weight, (0, 1), (-1, -2))`. PyTorch flattens [C, *D] where `flatten` has [*D, C]: the w of a dense
    layer behind it is `jnp.moveaxis(weight.T.reshape(C, *D, -1), 0, -2).reshape(weight.T.shape)`.

    Args:
        features: H, at least 1.
        kernel: K, a tuple with a size for each of 1, 2 or 3 spatial axes: `(5, 5)`.
        stride: s, one number, or one for each axis.
        padding: "same" (P = ⌈D/s⌉), "valid" (none), "causal" (d (K − 1) before), or (before, behind) for each axis.
        dilation: d, one number, or one for each axis.
        groups: G, which divides C and H.
        bias: False leaves b out.
        w_init: initializer of w, or with groups of each group's part of it, then under `vmap` over their keys; Glorot's
            uniform one by default.
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
    bias = yes_or_no("conv: bias", bias)
    w_init = initializer("conv: w_init", w_init) or initializers.glorot_uniform()
    b_init = initializer("conv: b_init", b_init) or initializers.zeros()

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
        params = {"w": _drawn(w_init, w_key, shapes["w"], groups, dtype)}
        if bias:
            params["b"] = b_init(b_key, shapes["b"], dtype)
        for name, param in params.items():
            if jnp.shape(param) != shapes[name]:
                raise LayerError("conv", f"expects {name}_init to give {shapes[name]}, got {jnp.shape(param)}")
        return params, ()

    def forward_by(forms: Forms) -> ForwardRule:
        def forward(
            params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
        ) -> tuple[Any, State, Tree]:
            if set(params) != ({"w", "b"} if bias else {"w"}):
                raise LayerError(
                    "conv", f"expects parameters w{' and b' * bias}, got {sorted(params)}", about_params=True
                )
            w = params["w"]
            windows = windows_of(spatial_shape("conv", x, rank))
            if w.ndim == rank + 2 and x.shape[-1] != w.shape[-2] * groups:
                advice = channels_first(x.shape)
                raise LayerError("conv", f"expects {w.shape[-2] * groups} channels, got x of shape {x.shape}{advice}")
            if w.shape != (*size, x.shape[-1] // groups, features):
                expected = (*size, x.shape[-1] // groups, features)
                raise LayerError("conv", f"expects w of shape {expected}, got {w.shape}", about_params=True)
            dtype = widest(x.dtype, w.dtype)
            lies = (axes_of(x)[0], *(None,) * rank, axes_of(w)[-1])
            convolution = lambda x, w: forms.forward(x, w, windows, groups)  # noqa: E731
            z = placed(convolution, x.astype(dtype), w.astype(dtype), axes=lies)
            return (z + with_rank(params["b"].astype(dtype), z.ndim) if bias else z), state, x

        return forward

    def backward_by(forms: Forms) -> BackwardRule:
        def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
            x, w = tape, params["w"]
            windows = windows_of(x.shape[1:-1])
            check_delta("conv", delta, Outline((x.shape[0], *windows.positions, features), widest(x.dtype, w.dtype)))
            of_kernel = lambda x, delta: forms.kernel_gradient(x, delta, windows, groups)  # noqa: E731
            of_input = lambda delta, w: forms.input_gradient(delta, w, windows, groups)  # noqa: E731
            grads = {"w": placed(of_kernel, x.astype(delta.dtype), delta, axes=axes_of(w))}
            if bias:
                total = lambda delta: delta.sum(tuple(range(rank + 1)))  # noqa: E731
                grads["b"] = placed(total, delta, axes=axes_of(params["b"]))
            # Where x and w differ in precision, δ has the higher one; what goes out fits what came in.
            grads = {name: grad.astype(params[name].dtype) for name, grad in grads.items()}
            return placed(of_input, delta, w.astype(delta.dtype), axes=axes_of(x)).astype(x.dtype), grads

        return backward

    plain = (("plain forward", forward_by(PLAIN)), ("plain", backward_by(PLAIN)))
    return Layer("conv", init, forward_by(FASTEST), backward_by(FASTEST), rules=plain)


def _drawn(w_init: Initializer, key: Key, shape: Shape, groups: int, dtype: DType) -> Array:
    """A kernel [*K, C/G, H], each group's [*K, C/G, H/G] with a key of its own."""
    if groups == 1:
        return w_init(key, shape, dtype)
    each = (*shape[:-1], shape[-1] // groups)

    def of_group(key: Key) -> Array:
        w = w_init(key, each, dtype)
        if jnp.shape(w) != each:
            raise LayerError("conv", f"expects w_init to give {each} for each of {groups} groups, got {jnp.shape(w)}")
        return w

    return jax.vmap(of_group, out_axes=-2)(jax.random.split(key, groups)).reshape(shape)
