"""Normalisation: features of mean 0 and variance 1, then of a scale γ and a shift β that are learnt.

N batch, D features (the last axis); further axes between N and D are kept. `batch_norm` takes its statistics of one
feature over all examples, `layer_norm` those of one example over all features. Both take them in at least float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import LayerError, accumulator, check_delta, features, input_spec, is_floating, is_symbolic, number
from jaxnn.placement import axes_of, placed
from jaxnn.ranks import with_rank
from jaxnn.sequences import over_values
from jaxnn.types import Array, DType, InShape, Key, Layer, Outline, Params, State, Tree

EPS = 1e-5  # keeps 1/√v finite where a feature is constant


# ---------------------------------------------------------------- over the examples


class _ByBatch(NamedTuple):
    """Batch norm's tape in training. A tape holds no Python values: its type is what tells backward the rule."""

    x_hat: Array
    r: Array


class _ByRunning(NamedTuple):
    """Batch norm's tape in evaluation."""

    x_hat: Array
    r: Array


def batch_norm(*, momentum: float = 0.9, eps: float = EPS) -> Layer:
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
    momentum = number("batch_norm: momentum", momentum, least=0, below=1)
    eps = number("batch_norm: eps", eps, above=0)

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params = _ones_and_zeros("batch_norm", in_shape, dtype)
        wide = accumulator(dtype)
        # Arrays of their own: a buffer that stood in the parameters too could not be donated with them.
        return params, {
            name: jnp.array(params[of], wide, copy=True) for name, of in (("mean", "shift"), ("var", "scale"))
        }

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        wide, gamma, beta = _in_wide("batch_norm", params, x)
        _check_vectors("batch_norm", "state", state, ("mean", "var"), x)
        running = {name: state[name].astype(wide.dtype) for name in ("mean", "var")}
        if train:
            x_hat, r, mean, var = _normalised(wide, tuple(range(x.ndim - 1)), eps)
            batch = {"mean": mean.reshape(-1), "var": _unbiased(var.reshape(-1), running["var"], x.size // x.shape[-1])}
            step = {name: (1 - momentum) * (batch[name] - running[name]) for name in running}
            state = {name: (running[name] + step[name]).astype(state[name].dtype) for name in running}
            tape: Tree = _ByBatch(x_hat, r.reshape(-1))
        else:
            r = jax.lax.rsqrt(running["var"] + eps)
            x_hat = (wide - with_rank(running["mean"], x.ndim)) * with_rank(r, x.ndim)
            tape = _ByRunning(x_hat, r)
        return _scaled(gamma, x_hat, beta).astype(x.dtype), state, tape

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x_hat, r = tape
        check_delta("batch_norm", delta, Outline(x_hat.shape, _precision(delta, x_hat)))
        wide, gamma, _ = _in_wide("batch_norm", params, delta)
        grads = _scale_and_shift(wide, x_hat)
        delta_in = wide
        if isinstance(tape, _ByBatch):
            n = _count(wide.size // wide.shape[-1], wide.dtype)
            along, mean = (with_rank(grads[name] / n, wide.ndim) for name in ("scale", "shift"))
            delta_in = wide - x_hat * along - mean
        return (with_rank(gamma * r, wide.ndim) * delta_in).astype(delta.dtype), _like(params, grads)

    return Layer("batch_norm", init, forward, backward, couples_batch=True)


# ---------------------------------------------------------------- over the features


def layer_norm(*, eps: float = EPS) -> Layer:
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
    eps = number("layer_norm: eps", eps, above=0)

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return _ones_and_zeros("layer_norm", in_shape, dtype), ()

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        wide, gamma, beta = _in_wide("layer_norm", params, x)
        x_hat, r, _, _ = _normalised(wide, (-1,), eps)
        return _scaled(gamma, x_hat, beta).astype(x.dtype), state, Outline(x.shape, x.dtype, x_hat, r)

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x_hat, r = tape
        check_delta("layer_norm", delta, tape)
        wide, gamma, _ = _in_wide("layer_norm", params, delta)
        grads = _scale_and_shift(wide, x_hat)
        g = with_rank(gamma, wide.ndim) * wide
        along = (g * x_hat).mean(-1, keepdims=True)
        delta_in = r * (g - g.mean(-1, keepdims=True) - x_hat * along)
        return delta_in.astype(delta.dtype), _like(params, grads)

    return over_values(Layer("layer_norm", init, forward, backward))


# ---------------------------------------------------------------- what both do


def _normalised(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array, Array]:
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
    r = jax.lax.rsqrt(var + eps)
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


def _ones_and_zeros(kind: str, in_shape: InShape, dtype: DType) -> Params:
    width = features(kind, input_spec(in_shape, dtype))[-1]
    return {"scale": jnp.ones(width, dtype), "shift": jnp.zeros(width, dtype)}


def _in_wide(kind: str, params: Params, x: Any) -> tuple[Array, Array, Array]:
    """x, γ and β in at least float32, once it is known that they fit."""
    features(kind, x)
    _check_vectors(kind, "parameters", params, ("scale", "shift"), x)
    wide = accumulator(x.dtype)
    return x.astype(wide), params["scale"].astype(wide), params["shift"].astype(wide)


def _check_vectors(kind: str, what: str, got: Any, names: tuple[str, str], x: Any) -> None:
    about_params = what == "parameters"
    if not isinstance(got, dict) or set(got) != set(names):
        shown = sorted(got) if isinstance(got, dict) else repr(got)
        raise LayerError(kind, f"expects {what} {' and '.join(names)}, got {shown}", about_params=about_params)
    for name in names:
        if got[name].ndim == 1 and got[name].shape[0] != x.shape[-1]:
            raise LayerError(kind, f"expects {got[name].shape[0]} features, got x of shape {x.shape}")
        if got[name].shape != x.shape[-1:]:
            complaint = f"expects {name} of shape {x.shape[-1:]}, got {got[name].shape}"
            raise LayerError(kind, complaint, about_params=about_params)


def _like(params: Params, grads: Params) -> Params:
    return {name: grad.astype(params[name].dtype) for name, grad in grads.items()}
