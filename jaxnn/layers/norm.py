"""Normalisation: features of mean 0 and variance 1, then of a scale γ and a shift β that are learnt.

N batch, D features (the last axis); further axes between N and D are kept. `batch_norm` takes its statistics of one
feature over all examples, `layer_norm` those of one example over all features, `group_norm` over a group of them and
all axes between; `rms_norm` divides by the root of the mean square alone. All take them in at least float32.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxnn.checks import (
    LayerError,
    accumulator,
    check_delta,
    features,
    input_spec,
    is_floating,
    is_symbolic,
    number,
    whole_number,
)
from jaxnn.factors import Outer, by_position
from jaxnn.parameters import as_given, check_vectors, constant
from jaxnn.placement import axes_of, placed, reshaped
from jaxnn.ranks import with_rank
from jaxnn.sequences import over_steps
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Outline, Params, State, Tree

NAMES = ("scale", "shift")
EPS = 1e-5  # keeps 1/√v finite where a feature is constant


def _factors(layer: Any, params: Params, tape: Tree, delta: Any) -> Params:
    """The `factors` of a norm: ∂Cₙ/∂γ = Σₚ x̂ₙₚ ⊙ δₙₚ and ∂Cₙ/∂β = Σₚ δₙₚ.

    Where batch norm couples the examples, δₙ is that of all costs, ∂(Σₘ Cₘ)/∂yₙ, and so are these.
    """
    x_hat = reshaped(tape[0], delta.shape)
    delta = delta.astype(x_hat.dtype)
    of = {"scale": x_hat * delta, "shift": delta}
    return {name: Outer(None, by_position(of[name])) for name in params}


# ---------------------------------------------------------------- over the examples


class _ByBatch(NamedTuple):
    """Batch norm's tape in training. A tape holds no Python values: its type is what tells backward the rule."""

    x_hat: Array
    r: Array


class _ByRunning(NamedTuple):
    """Batch norm's tape in evaluation."""

    x_hat: Array
    r: Array


class batch_norm(Layer):
    """Batch normalisation of every feature, over all axes but the last.

    Forward, x [N, …, D] → y [N, …, D], with n values of each feature, N times the axes between:

        training     μ = mean x,  v = mean (x − μ)²       evaluation   μ, v = the running mean and variance
        x̂ = (x − μ) r,  r = 1/√(v + ε);   y = γ x̂ + β

    Backward, δ = ∂C/∂y; sums run over the n values:

        ∂C/∂γ = Σ δ x̂,   ∂C/∂β = Σ δ   [D]
        training     ∂C/∂x = γ r (δ − x̂ (Σ δ x̂)/n − (Σ δ)/n)     since μ and v depend on x
        evaluation   ∂C/∂x = γ r δ

    Parameters: `{"scale": γ, "shift": β}`, ones and zeros at first. State: `{"mean", "var"}`, [D] in at least
    float32, zeros and ones at first; in training running ← momentum · running + (1 − momentum) · batch's, as in
    flax and Keras (PyTorch's momentum is 1 − this one). The running variance is of the unbiased v n/(n − 1), as in the
    paper and PyTorch: it stands for data, not for a batch. A feature that is constant over the batch gives y = β. So
    does a batch with n = 1, which has δ_in = 0 and leaves the running variance as it is. Statistics ignore example
    weights. `share` passes one state from use to use: the running statistics average over its uses, and in
    evaluation all are normalised by them. Where uses differ, take `layer_norm`, or `repeat` with its own for each.

    Args:
        momentum: the share of the running statistics that a step keeps, 0 ≤ momentum < 1.
        eps: ε > 0, added to the variance.

    Raises:
        ValueError: if x is not float [N, …, D], or parameters or state have another number of features.

    Source: Ioffe & Szegedy (2015), "Batch normalization", algorithms 1 and 2; Cooijmans et al. (2017), on shared uses.

    >>> layer = batch_norm(momentum=0.5)
    >>> y, state, _ = layer.forward(*layer.init(0, (1,)), jnp.array([[1.0], [3.0]]), train=True)
    >>> y.round(3).tolist(), state["mean"].tolist(), state["var"].tolist()
    ([[-1.0], [1.0]], [1.0], [1.5])
    """

    _: KW_ONLY
    momentum: float = 0.9
    eps: float = EPS

    factors = _factors

    couples_batch = cast(Any, True)

    def __post_init__(self) -> None:
        momentum = number("batch_norm: momentum", self.momentum, least=0, below=1)
        self._set(momentum=momentum, eps=number("batch_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params = _ones_and_zeros("batch_norm", in_shape, dtype)
        wide = accumulator(dtype)
        # Arrays of their own: a buffer that stood in the parameters too could not be donated with them.
        copied = lambda array: jnp.array(array, wide, copy=True)  # noqa: E731
        return params, {"mean": copied(params["shift"]), "var": copied(params["scale"])}

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma, beta = _in_wide("batch_norm", params, x)
        check_vectors("batch_norm", state, ("mean", "var"), x, "state")
        running = {name: state[name].astype(wide.dtype) for name in ("mean", "var")}
        if train:
            x_hat, r, mean, var = _normalised(wide, tuple(range(x.ndim - 1)), self.eps)
            batch = {"mean": mean.reshape(-1), "var": _unbiased(var.reshape(-1), running["var"], x.size // x.shape[-1])}
            share = constant(self.momentum, wide.dtype, lambda momentum: 1 - momentum)
            step = {name: share * (batch[name] - running[name]) for name in running}
            state = {name: (running[name] + step[name]).astype(state[name].dtype) for name in running}
            tape: Tree = _ByBatch(x_hat, r.reshape(-1))
        else:
            r = jax.lax.rsqrt(running["var"] + constant(self.eps, wide.dtype))
            x_hat = (wide - with_rank(running["mean"], x.ndim)) * with_rank(r, x.ndim)
            tape = _ByRunning(x_hat, r)
        return _scaled(gamma, x_hat, beta).astype(x.dtype), state, tape

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x_hat, r = tape
        check_delta("batch_norm", delta, Outline(x_hat.shape, _precision(delta, x_hat)))
        wide, gamma, _ = _in_wide("batch_norm", params, delta)
        grads = _scale_and_shift(wide, x_hat)
        delta_in = wide
        if isinstance(tape, _ByBatch):
            n = _count(wide.size // wide.shape[-1], wide.dtype)
            along, mean = (with_rank(grads[name] / n, wide.ndim) for name in ("scale", "shift"))
            delta_in = wide - x_hat * along - mean
        return (with_rank(gamma * r, wide.ndim) * delta_in).astype(delta.dtype), as_given(params, grads)


# ---------------------------------------------------------------- over the features


@over_steps()
class layer_norm(Layer):
    """Normalisation of every example over its features, the last axis; the same in training and evaluation.

    Forward, x [N, …, D] → y [N, …, D]:

        μ = mean x,  v = mean (x − μ)²   over the D features
        x̂ = (x − μ) r,  r = 1/√(v + ε);   y = γ x̂ + β

    Backward, δ = ∂C/∂y, with g = γ δ; means run over the D features:

        ∂C/∂γ = Σ δ x̂,   ∂C/∂β = Σ δ   [D]      (summed over all axes but the last)
        ∂C/∂x = r (g − mean g − x̂ mean(g x̂))

    Parameters: `{"scale": γ, "shift": β}`, [D], ones and zeros at first. Where all features of an example are equal,
    as they are with D = 1, y = β.

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

    factors = _factors

    def __post_init__(self) -> None:
        self._set(eps=number("layer_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return _ones_and_zeros("layer_norm", in_shape, dtype), ()

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma, beta = _in_wide("layer_norm", params, x)
        x_hat, r, _, _ = _normalised(wide, (-1,), self.eps)
        return _scaled(gamma, x_hat, beta).astype(x.dtype), state, Outline(x.shape, x.dtype, x_hat, r)

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x_hat, r = tape
        check_delta("layer_norm", delta, tape)
        wide, gamma, _ = _in_wide("layer_norm", params, delta)
        grads = _scale_and_shift(wide, x_hat)
        delta_in = _through_statistics(with_rank(gamma, wide.ndim) * wide, x_hat, r, (-1,))
        return delta_in.astype(delta.dtype), as_given(params, grads)


class group_norm(Layer):
    """Normalisation of every example over each of G groups of its features and over all axes between.

    Forward, x [N, …, D] → y [N, …, D]; feature d is in group ⌊d G/D⌋, of D/G features:

        μ = mean x,  v = mean (x − μ)²   over a group's features and the axes between   [N, G]
        x̂ = (x − μ) r,  r = 1/√(v + ε);   y = γ x̂ + β

    Backward, δ = ∂C/∂y, with g = γ δ; means run over what μ runs over:

        ∂C/∂γ = Σ δ x̂,   ∂C/∂β = Σ δ   [D]      (summed over all axes but the last)
        ∂C/∂x = r (g − mean g − x̂ mean(g x̂))

    Parameters: `{"scale": γ, "shift": β}`, [D], ones and zeros at first. With G = D it is instance normalisation.

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

    factors = _factors

    def __post_init__(self) -> None:
        groups = whole_number("group_norm: groups", self.groups, least=1)
        self._set(groups=groups, eps=number("group_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        _in_groups(self.groups, input_spec(in_shape, dtype))
        return _ones_and_zeros("group_norm", in_shape, dtype), ()

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma, beta = _in_wide("group_norm", params, x)
        x_hat, r, _, _ = _normalised(reshaped(wide, _in_groups(self.groups, x)), _within_groups(x), self.eps)
        y = _scaled(gamma, reshaped(x_hat, x.shape), beta)
        return y.astype(x.dtype), state, Outline(x.shape, x.dtype, x_hat, r)

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x_hat, r = tape
        check_delta("group_norm", delta, tape)
        wide, gamma, _ = _in_wide("group_norm", params, delta)
        grads = _scale_and_shift(wide, reshaped(x_hat, wide.shape))
        g = reshaped(with_rank(gamma, wide.ndim) * wide, x_hat.shape)
        delta_in = reshaped(_through_statistics(g, x_hat, r, _within_groups(delta)), delta.shape)
        return delta_in.astype(delta.dtype), as_given(params, grads)


@over_steps()
class rms_norm(Layer):
    """Division of every example by the root of the mean square of its features, the last axis.

    Forward, x [N, …, D] → y [N, …, D]:

        x̂ = x r,  r = 1/√(mean x² + ε)   over the D features;   y = γ x̂

    Backward, δ = ∂C/∂y, with g = γ δ; means run over the D features:

        ∂C/∂γ = Σ δ x̂   [D]      (summed over all axes but the last)
        ∂C/∂x = r (g − x̂ mean(g x̂))

    Parameters: `{"scale": γ}`, [D], ones at first.

    Args:
        eps: ε > 0, added to the mean square.

    Raises:
        ValueError: if x is not float [N, …, D], or parameters have another number of features.

    Source: Zhang & Sennrich (2019), "Root mean square layer normalization", equation 4; ε is not in it.

    >>> layer = rms_norm()
    >>> y, _, _ = layer.forward(*layer.init(0, (2,)), jnp.array([[1.0, 7.0], [0.0, 0.0]]))
    >>> (5 * y).round(2).tolist()  # of root mean square 5, and 0
    [[1.0, 7.0], [0.0, 0.0]]
    """

    _: KW_ONLY
    eps: float = EPS

    factors = _factors

    def __post_init__(self) -> None:
        self._set(eps=number("rms_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return _ones_and_zeros("rms_norm", in_shape, dtype, ("scale",)), ()

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma = _in_wide("rms_norm", params, x, ("scale",))
        r = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + constant(self.eps, wide.dtype))
        x_hat = wide * r
        y = (with_rank(gamma, x.ndim) * x_hat).astype(x.dtype)
        return y, state, Outline(x.shape, x.dtype, x_hat, r)

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x_hat, r = tape
        check_delta("rms_norm", delta, tape)
        wide, gamma = _in_wide("rms_norm", params, delta, ("scale",))
        g = with_rank(gamma, wide.ndim) * wide
        delta_in = r * (g - x_hat * (g * x_hat).mean(-1, keepdims=True))
        return delta_in.astype(delta.dtype), as_given(params, {"scale": _scale_and_shift(wide, x_hat)["scale"]})


# ---------------------------------------------------------------- what they share


def _in_groups(groups: int, x: Any) -> tuple[int, ...]:
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


def _normalised(x: Array, axes: tuple[int, ...], eps: Any) -> tuple[Array, Array, Array, Array]:
    """x̂, r, μ and v, the last three with axes of size 1.

    The mean is that of the distances from a first value, which is no part of the derivative. Large means lose no
    digits then, and what is constant is exactly 0: the rounded mean of 100000.1 is off by more than √ε.
    """
    slices = [slice(None)] * x.ndim
    for axis in axes:
        slices[axis] = slice(0, 1)
    kept = tuple(None if size != slice(None) else axis for size, axis in zip(slices, axes_of(x), strict=True))
    first = jax.lax.stop_gradient(placed(lambda x: x[tuple(slices)], x, axes=kept))
    offset = x - first
    mean = offset.mean(axes, keepdims=True)
    centred = offset - mean
    var = jnp.square(centred).mean(axes, keepdims=True)
    r = jax.lax.rsqrt(var + constant(eps, var.dtype))
    return centred * r, r, first + mean, var


def _count(n: Any, dtype: DType) -> Any:
    """N; as an array where it is not known, as in a program that is exported for every batch size."""
    return jnp.asarray(n, dtype) if is_symbolic(n) else n


def _unbiased(var: Array, otherwise: Array, n: Any) -> Array:
    """The unbiased variance v n/(n − 1), or otherwise with n = 1."""
    if is_symbolic(n):
        n = _count(n, var.dtype)
        return jnp.where(n > 1, var * (n / jnp.maximum(n - 1, 1)), otherwise)
    return var * (n / (n - 1)) if n > 1 else otherwise


def _precision(delta: Any, x_hat: Array) -> DType:
    """That of δ where its sums are taken in x̂'s, which is all that x̂ says of x's."""
    fits = hasattr(delta, "dtype") and is_floating(delta) and accumulator(delta.dtype) == x_hat.dtype
    return delta.dtype if fits else x_hat.dtype


def _scaled(gamma: Array, x_hat: Array, beta: Array) -> Array:
    """γ x̂ + β."""
    return with_rank(gamma, x_hat.ndim) * x_hat + with_rank(beta, x_hat.ndim)


def _scale_and_shift(delta: Array, x_hat: Array) -> Params:
    """∂C/∂γ and ∂C/∂β, summed over all axes but the last."""
    axes = tuple(range(delta.ndim - 1))
    return {"scale": (delta * x_hat).sum(axes), "shift": delta.sum(axes)}


def _ones_and_zeros(kind: str, in_shape: InShape, dtype: DType, names: tuple[str, ...] = NAMES) -> Params:
    width = features(kind, input_spec(in_shape, dtype))[-1]
    return {name: (jnp.ones if name == "scale" else jnp.zeros)(width, dtype) for name in names}


def _in_wide(kind: str, params: Params, x: Any, names: tuple[str, ...] = NAMES) -> tuple[Array, ...]:
    """Input and parameters in at least float32, once it is known that they fit."""
    features(kind, x)
    check_vectors(kind, params, names, x)
    wide = accumulator(x.dtype)
    return x.astype(wide), *(params[name].astype(wide) for name in names)
