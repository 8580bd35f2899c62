"""Convolution in one, two and three spatial dimensions.

N batch, C channels in, H features out, G groups; spatial indices p (position of a window), k (tap of the kernel) and
q (input position), each with one entry for each spatial axis. D, P and K are the sizes of input, output and kernel.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import partial

import jax
import jax.numpy as jnp

from jaxnn import initializers
from jaxnn.arrays import widest, with_rank
from jaxnn.checks import whole_number, yes_or_no
from jaxnn.errors import LayerError
from jaxnn.factors import Outer, by_position
from jaxnn.keys import as_key
from jaxnn.layers.convolution.choice import FASTEST, PLAIN, Forms
from jaxnn.layers.convolution.windowed import Windowed
from jaxnn.layers.convolution.windows import (
    Padding,
    Windows,
    for_each_axis,
    padding_of,
    spatial_shape,
    window_size,
    windows_on,
)
from jaxnn.mistakes import channels_first, initializer
from jaxnn.parameters import as_given, check_names, check_shape, drawn
from jaxnn.shapes import check_delta, input_spec
from jaxnn.spmd.axes import axes_of, by_device, placed
from jaxnn.tapes import first_axes
from jaxnn.types import Array, DType, Forward, Initializer, InShape, Key, Layer, Outline, Params, Shape, State, Tree
from jaxnn.wrapping import with_rules


class conv(Layer):
    """Convolution over the axes between batch and channels, one for each entry of `kernel`.

    Forward, x [N, *D, C] → z [N, *P, H], with stride s, dilation d and a zeros before the input (cross-correlation, as
    everywhere in deep learning: the kernel is not flipped):

        zₙₚₒ = Σₖᵢ wₖᵢₒ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ + bₒ

    Backward, δ = ∂C/∂z [N, *P, H], two more convolutions:

        ∂C/∂w [*K, C/G, H]   ∂C/∂wₖᵢₒ = Σₙₚ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ δₙₚₒ
                             x convolved with δ, stride and dilation exchanged, summed over N
        ∂C/∂x [N, *D, C]     ∂C/∂xₙqᵢ = Σₖₚₒ wₖᵢₒ δₙₚₒ   over k, p with s p + d k − a = q
                             δ, s − 1 zeros between its entries, convolved with the kernel flipped in space
        ∂C/∂b [H]            ∂C/∂bₒ = Σₙₚ δₙₚₒ

    With G groups, output o depends on the C/G inputs of its group ⌊o G/H⌋ alone; G = C is depthwise. Each group's
    kernel [*K, C/G, H/G] is initialised separately, so that its fans count connections within the group.

    Parameters: `{"w": [*K, C/G, H], "b": [H]}`, flax's layout. PyTorch's weight [H, C/G, *K] is
    `jnp.moveaxis(weight, (0, 1), (-1, -2))`. PyTorch flattens [C, *D] where `flatten` has [*D, C]: the w of a dense
    layer after it is `jnp.moveaxis(weight.T.reshape(C, *D, -1), 0, -2).reshape(weight.T.shape)`.

    Args:
        features: H, at least 1.
        kernel: K, a tuple with a size for each of 1, 2 or 3 spatial axes: `(5, 5)`.
        stride: s, one number, or one for each axis.
        padding: "same" (P = ⌈D/s⌉), "valid" (none), "causal" (d (K − 1) before), or (before, after) for each axis.
        dilation: d, one number, or one for each axis.
        groups: G, which divides C and H.
        bias: False omits b.
        w_init: initializer of w, with groups of each group's part of it (under `vmap` over their keys), by default
            Glorot uniform.
        b_init: initializer of b, by default zeros.

    Raises:
        ValueError: if x is not float [N, *D, C], does not have w's number of channels, or is smaller than the kernel;
            if the groups do not divide the channels.

    Source: LeCun et al. (1989), "Backpropagation applied to handwritten zip code recognition"; Dumoulin & Visin (2016),
    "A guide to convolution arithmetic for deep learning", chapter 4; Yu & Koltun (2016) on dilation.

    >>> net = conv(20, (5, 5), padding="valid")
    >>> params, state = net.init(0, (28, 28, 1))
    >>> params["w"].shape, net.forward(params, state, jnp.ones((2, 28, 28, 1)))[0].shape
    ((5, 5, 1, 20), (2, 24, 24, 20))
    """

    features: int
    kernel: tuple[int, ...]
    _: KW_ONLY
    stride: int | tuple[int, ...] = 1
    padding: Padding = "same"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    bias: bool = True
    w_init: Initializer | None = None
    b_init: Initializer | None = None

    batch_axes = first_axes

    def __post_init__(self) -> None:
        features = whole_number("conv: features", self.features, least=1)
        kernel = window_size("conv: kernel", self.kernel)
        for name in ("stride", "dilation"):
            sizes = for_each_axis(f"conv: {name}", getattr(self, name), len(kernel))
            self._set(**{name: sizes[0] if len(set(sizes)) == 1 else sizes})
        self._set(padding=padding_of("conv: padding", self.padding, len(kernel)))
        groups = whole_number("conv: groups", self.groups, least=1)
        if features % groups:
            raise ValueError(f"conv: groups must divide the features, got {groups} groups for {features} features")
        self._set(features=features, kernel=kernel, groups=groups, bias=yes_or_no("conv: bias", self.bias))
        initializer("conv: w_init", self.w_init)
        initializer("conv: b_init", self.b_init)

    @property
    def plain(self) -> Layer:
        return with_rules(self, forward=partial(self._forward, PLAIN), backward=partial(self._backward, PLAIN))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        spec = input_spec(in_shape, dtype)
        self._windows(spatial_shape("conv", spec, len(self.kernel)))
        C, G, H = spec.shape[-1], self.groups, self.features
        if C % G:
            raise LayerError("conv", f"expects channels in {G} groups, got {C}: {G} must divide them")
        w_key, b_key = jax.random.split(as_key(key))
        w = (_of_each_group(self.w_init or initializers.glorot_uniform(), G), w_key, (*self.kernel, C // G, H))
        b = (self.b_init or initializers.zeros(), b_key, (H,))
        return drawn("conv", dtype, **{"w": w, "b": b} if self.bias else {"w": w}), ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        return self._forward(FASTEST, params, state, x)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        return self._backward(FASTEST, params, tape, delta)

    def unrounded(self, params: Params, tape: Tree, delta: Array, dtype: DType) -> tuple[Array, Params]:
        return self._unrounded(FASTEST, params, tape, delta, dtype)

    def factors(self, params: Params, tape: Tree, delta: Array) -> Params:
        windows = self._windows(tape.shape[1:-1])
        factors: Params = {"w": Windowed(tape[:, None], delta[:, None], windows, self.groups)}
        return {**factors, "b": Outer(None, by_position(delta))} if self.bias else factors

    def _windows(self, spatial: Shape) -> Windows:
        rank = len(self.kernel)
        strides, dilations = (for_each_axis("conv", size, rank) for size in (self.stride, self.dilation))
        return windows_on("conv", spatial, self.kernel, strides, dilations, padding_of("conv", self.padding, rank))

    def _forward(
        self, forms: Forms, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None
    ) -> Forward:
        check_names("conv", params, ("w", "b") if self.bias else ("w",))
        w, rank, G = params["w"], len(self.kernel), self.groups
        windows = self._windows(spatial_shape("conv", x, rank))
        if w.ndim == rank + 2 and x.shape[-1] != w.shape[-2] * G:
            advice = channels_first(x.shape)
            raise LayerError("conv", f"expects {w.shape[-2] * G} channels, got x of shape {x.shape}{advice}")
        check_shape("conv", params, "w", (*self.kernel, x.shape[-1] // G, self.features))
        dtype = widest(x.dtype, w.dtype)
        lies = (axes_of(x)[0], *(None,) * rank, axes_of(w)[-1])
        convolution = lambda x, w: forms.forward(x, w, windows, G)  # noqa: E731
        z = placed(convolution, x.astype(dtype), w.astype(dtype), axes=lies)
        return (z + with_rank(params["b"].astype(dtype), z.ndim) if self.bias else z), state, x

    def _backward(self, forms: Forms, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        delta_in, grads = self._unrounded(forms, params, tape, delta, jnp.float32)
        return delta_in, as_given(params, grads)

    def _unrounded(self, forms: Forms, params: Params, tape: Tree, delta: Array, dtype: DType) -> tuple[Array, Params]:
        x, w, rank, G = tape, params["w"], len(self.kernel), self.groups
        windows = self._windows(x.shape[1:-1])
        check_delta("conv", delta, Outline((x.shape[0], *windows.positions, self.features), widest(x.dtype, w.dtype)))
        wide = widest(delta.dtype, dtype)  # of sums
        of_kernel = lambda x, delta: ((), forms.kernel_gradient(x, delta, windows, G, wide))  # noqa: E731
        total = lambda x, delta: by_device(of_kernel, (x, delta), (0, 0))[1]  # noqa: E731
        of_input = lambda delta, w: forms.input_gradient(delta, w, windows, G)  # noqa: E731
        grads = {"w": placed(total, x.astype(delta.dtype), delta, axes=axes_of(w))}
        if self.bias:
            of_bias = lambda delta: delta.sum(tuple(range(rank + 1)), dtype=wide)  # noqa: E731
            grads["b"] = placed(of_bias, delta, axes=axes_of(params["b"]))
        # Where x and w differ in precision, δ has the higher one; δ_in and the gradients are cast back.
        return placed(of_input, delta, w.astype(delta.dtype), axes=axes_of(x)).astype(x.dtype), grads


def _of_each_group(w_init: Initializer, G: int) -> Initializer:
    """Draws a kernel [*K, C/G, H], each group's part [*K, C/G, H/G] with a separate key."""
    if G == 1:
        return w_init

    def draw(key: Key, shape: Shape, dtype: DType) -> Array:
        each = (*shape[:-1], shape[-1] // G)

        def of_group(key: Key) -> Array:
            w = w_init(key, each, dtype)
            if jnp.shape(w) != each:
                raise LayerError("conv", f"expects w_init to give {each} for each of {G} groups, got {jnp.shape(w)}")
            return w

        return jax.vmap(of_group, out_axes=-2)(jax.random.split(key, G)).reshape(shape)

    return draw
