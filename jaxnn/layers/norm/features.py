"""Normalisation of each example over its features, or groups of them.  N batch, D features (the last axis)."""

from __future__ import annotations

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from jaxnn.arrays import with_rank
from jaxnn.checks import number, whole_number
from jaxnn.errors import LayerError
from jaxnn.layers.norm.shared import EPS, factors_of_norm, in_wide, normalised, ones_and_zeros, scale_and_shift, scaled
from jaxnn.parameters import as_given, constant
from jaxnn.sequences import over_steps
from jaxnn.shapes import check_delta, features, input_spec
from jaxnn.spmd.axes import reshaped
from jaxnn.tapes import first_axes
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Outline, Params, State, Tree


@over_steps(rank=3)
class layer_norm(Layer):
    """Normalisation of each example over its features, the last axis; the same in training and evaluation.

    Forward, x [N, …, D] → y [N, …, D]:

        μ = mean x,  v = mean (x − μ)²   over the D features
        x̂ = (x − μ) r,  r = 1/√(v + ε);   y = γ x̂ + β

    Backward, δ = ∂C/∂y, with g = γ δ; means run over the D features:

        ∂C/∂γ = Σ δ x̂,   ∂C/∂β = Σ δ   [D]      (summed over all axes but the last)
        ∂C/∂x = r (g − mean g − x̂ mean(g x̂))

    Parameters: `{"scale": γ, "shift": β}`, [D], initially ones and zeros. Where all features of an example are equal,
    as with D = 1, y = β.

    Args:
        eps: ε > 0, added to the variance.

    Raises:
        ValueError: if x is not float [N, …, D], or parameters have another number of features.

    Source: Ba, Kiros & Hinton (2016), "Layer normalization", equations 3 and 4, for a layer without recurrence.

    >>> layer = layer_norm()
    >>> y, _, _ = layer.forward(*layer.init(0, (2,)), jnp.array([[1.0, 3.0], [5.0, 5.0]]))
    >>> y.round(3).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """

    _: KW_ONLY
    eps: float = EPS

    factors = factors_of_norm
    batch_axes = first_axes
    keeps_precision = True

    def __post_init__(self) -> None:
        self._set(eps=number("layer_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return ones_and_zeros("layer_norm", in_shape, dtype), ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma, beta = in_wide("layer_norm", params, x)
        x_hat, r, _, _ = normalised(wide, (-1,), self.eps)
        return scaled(gamma, x_hat, beta).astype(x.dtype), state, Outline(x.shape, x.dtype, x_hat, r)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        x_hat, r = tape
        check_delta("layer_norm", delta, tape)
        wide, gamma, _ = in_wide("layer_norm", params, delta)
        grads = scale_and_shift(wide, x_hat)
        delta_in = _through_statistics(with_rank(gamma, wide.ndim) * wide, x_hat, r, (-1,))
        return delta_in.astype(delta.dtype), as_given(params, grads)


class group_norm(Layer):
    """Normalisation of each example over each of G groups of its features and over all axes between.

    Forward, x [N, …, D] → y [N, …, D]; feature d is in group ⌊d G/D⌋, of D/G features:

        μ = mean x,  v = mean (x − μ)²   over a group's features and the axes between   [N, G]
        x̂ = (x − μ) r,  r = 1/√(v + ε);   y = γ x̂ + β

    Backward, δ = ∂C/∂y, with g = γ δ; means run over the same axes as μ:

        ∂C/∂γ = Σ δ x̂,   ∂C/∂β = Σ δ   [D]      (summed over all axes but the last)
        ∂C/∂x = r (g − mean g − x̂ mean(g x̂))

    Parameters: `{"scale": γ, "shift": β}`, [D], initially ones and zeros. With G = D it is instance normalisation.

    Args:
        groups: G, which divides D.
        eps: ε > 0, added to the variance.

    Raises:
        ValueError: if x is not float [N, …, D] with D a multiple of G, or parameters have another number of features.

    Source: Wu & He (2018), "Group normalization", equations 1, 2 and 7.

    >>> layer = group_norm(2)
    >>> y, _, _ = layer.forward(*layer.init(0, (4,)), jnp.array([[1.0, 3.0, 5.0, 5.0]]))
    >>> y.round(3).tolist()
    [[-1.0, 1.0, 0.0, 0.0]]
    """

    groups: int
    _: KW_ONLY
    eps: float = EPS

    factors = factors_of_norm
    batch_axes = first_axes
    keeps_precision = True

    def __post_init__(self) -> None:
        groups = whole_number("group_norm: groups", self.groups, least=1)
        self._set(groups=groups, eps=number("group_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        _in_groups(self.groups, input_spec(in_shape, dtype))
        return ones_and_zeros("group_norm", in_shape, dtype), ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma, beta = in_wide("group_norm", params, x)
        x_hat, r, _, _ = normalised(reshaped(wide, _in_groups(self.groups, x)), _within_groups(x), self.eps)
        y = scaled(gamma, reshaped(x_hat, x.shape), beta)
        return y.astype(x.dtype), state, Outline(x.shape, x.dtype, x_hat, r)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        x_hat, r = tape
        check_delta("group_norm", delta, tape)
        wide, gamma, _ = in_wide("group_norm", params, delta)
        grads = scale_and_shift(wide, reshaped(x_hat, wide.shape))
        g = reshaped(with_rank(gamma, wide.ndim) * wide, x_hat.shape)
        delta_in = reshaped(_through_statistics(g, x_hat, r, _within_groups(delta)), delta.shape)
        return delta_in.astype(delta.dtype), as_given(params, grads)


@over_steps(rank=3)
class rms_norm(Layer):
    """Division of each example by the root mean square of its features, the last axis.

    Forward, x [N, …, D] → y [N, …, D]:

        x̂ = x r,  r = 1/√(mean x² + ε)   over the D features;   y = γ x̂

    Backward, δ = ∂C/∂y, with g = γ δ; means run over the D features:

        ∂C/∂γ = Σ δ x̂   [D]      (summed over all axes but the last)
        ∂C/∂x = r (g − x̂ mean(g x̂))

    Parameters: `{"scale": γ}`, [D], initially ones.

    Args:
        eps: ε > 0, added to the mean square.

    Raises:
        ValueError: if x is not float [N, …, D], or parameters have another number of features.

    Source: Zhang & Sennrich (2019), "Root mean square layer normalization", equation 4, with ε added.

    >>> layer = rms_norm()
    >>> y, _, _ = layer.forward(*layer.init(0, (2,)), jnp.array([[1.0, 7.0], [0.0, 0.0]]))
    >>> (5 * y).round(2).tolist()  # of root mean square 5, and 0
    [[1.0, 7.0], [0.0, 0.0]]
    """

    _: KW_ONLY
    eps: float = EPS

    factors = factors_of_norm
    batch_axes = first_axes
    keeps_precision = True

    def __post_init__(self) -> None:
        self._set(eps=number("rms_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return ones_and_zeros("rms_norm", in_shape, dtype, ("scale",)), ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma = in_wide("rms_norm", params, x, ("scale",))
        r = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + constant(self.eps, wide.dtype))
        x_hat = wide * r
        y = (with_rank(gamma, x.ndim) * x_hat).astype(x.dtype)
        return y, state, Outline(x.shape, x.dtype, x_hat, r)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        x_hat, r = tape
        check_delta("rms_norm", delta, tape)
        wide, gamma = in_wide("rms_norm", params, delta, ("scale",))
        g = with_rank(gamma, wide.ndim) * wide
        delta_in = r * (g - x_hat * (g * x_hat).mean(-1, keepdims=True))
        return delta_in.astype(delta.dtype), as_given(params, {"scale": scale_and_shift(wide, x_hat)["scale"]})


def _in_groups(groups: int, x: Array) -> tuple[int, ...]:
    """The shape [N, …, G, D/G] of x."""
    *others, D = features("group_norm", x)
    if D % groups:
        raise LayerError("group_norm", f"expects features in {groups} equal groups, got x of shape {x.shape}")
    return *others, groups, D // groups


def _within_groups(x: Array) -> tuple[int, ...]:
    """The axes of [N, …, G, D/G] that statistics run over, x [N, …, D]: all but N and G."""
    return *range(1, x.ndim - 1), x.ndim


def _through_statistics(g: Array, x_hat: Array, r: Array, axes: tuple[int, ...]) -> Array:
    """∂C/∂x from g = ∂C/∂x̂, as μ and v depend on x."""
    along = (g * x_hat).mean(axes, keepdims=True)
    return r * (g - g.mean(axes, keepdims=True) - x_hat * along)
