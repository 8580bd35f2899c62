"""Normalisation of each feature over all examples.  N batch, D features (the last axis)."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating, is_symbolic, with_rank
from jaxnn.checks import number
from jaxnn.layers.norm.shared import EPS, factors_of_norm, in_wide, normalised, ones_and_zeros, scale_and_shift, scaled
from jaxnn.parameters import as_given, check_vectors, constant
from jaxnn.shapes import check_delta
from jaxnn.tapes import coupled
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Outline, Params, State, Tree


class _ByBatch(NamedTuple):
    """Batch norm's tape in training. Tapes hold no Python values: the type of this one selects the backward rule."""

    x_hat: Array
    r: Array


class _ByRunning(NamedTuple):
    """Batch norm's tape in evaluation."""

    x_hat: Array | int
    r: Array | None


class batch_norm(Layer):
    """Batch normalisation of each feature, over all axes but the last.

    Forward, x [N, …, D] → y [N, …, D], with n values of each feature, N times the sizes of the axes between:

        training     μ = mean x,  v = mean (x − μ)²       evaluation   μ, v = the running mean and variance
        x̂ = (x − μ) r,  r = 1/√(v + ε);   y = γ x̂ + β

    Backward, δ = ∂C/∂y; sums run over the n values:

        ∂C/∂γ = Σ δ x̂,   ∂C/∂β = Σ δ   [D]
        training     ∂C/∂x = γ r (δ − x̂ (Σ δ x̂)/n − (Σ δ)/n)     since μ and v depend on x
        evaluation   ∂C/∂x = γ r δ

    Parameters: `{"scale": γ, "shift": β}`, initially ones and zeros. State: `{"mean", "var"}`, [D] in at least
    float32, initially zeros and ones; in training running ← momentum · running + (1 − momentum) · batch's, as in
    flax and Keras (PyTorch's momentum is 1 − this one). The running variance averages the unbiased v n/(n − 1), as in
    the paper and PyTorch: it estimates the variance of the data. A feature that is constant over the batch gives y = β.
    So does a batch with n = 1, which has δ_in = 0 and leaves the running variance unchanged. Statistics ignore example
    weights. `share` passes one state from use to use: the running statistics average over its uses, and in
    evaluation normalise all of them. Where uses differ, use `layer_norm`, or `repeat`, with statistics for each.

    Args:
        momentum: the weight of the running statistics in each update, 0 ≤ momentum < 1.
        eps: ε > 0, added to the variance.

    Raises:
        ValueError: if x is not float [N, …, D], or parameters or state have another number of features.

    Source: Ioffe & Szegedy (2015), "Batch normalization", algorithms 1 and 2; Cooijmans et al. (2017) for shared uses.

    >>> layer = batch_norm(momentum=0.5)
    >>> y, state, _ = layer.forward(*layer.init(0, (1,)), jnp.array([[1.0], [3.0]]), train=True)
    >>> y.round(3).tolist(), state["mean"].tolist(), state["var"].tolist()
    ([[-1.0], [1.0]], [1.0], [1.5])
    """

    _: KW_ONLY
    momentum: float = 0.9
    eps: float = EPS

    factors = factors_of_norm

    couples_batch = cast(Any, True)
    keeps_precision = True

    def __post_init__(self) -> None:
        momentum = number("batch_norm: momentum", self.momentum, least=0, below=1)
        self._set(momentum=momentum, eps=number("batch_norm: eps", self.eps, above=0))

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params = ones_and_zeros("batch_norm", in_shape, dtype)
        wide = accumulator(dtype)
        # Copies: a buffer that is in the parameters too could not be donated with them.
        copied = lambda array: jnp.array(array, wide, copy=True)  # noqa: E731
        return params, {"mean": copied(params["shift"]), "var": copied(params["scale"])}

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        wide, gamma, beta = in_wide("batch_norm", params, x)
        check_vectors("batch_norm", state, ("mean", "var"), x, "state")
        running = {name: state[name].astype(wide.dtype) for name in ("mean", "var")}
        if train:
            x_hat, r, mean, var = normalised(wide, tuple(range(x.ndim - 1)), self.eps)
            batch = {"mean": mean.reshape(-1), "var": _unbiased(var.reshape(-1), running["var"], x.size // x.shape[-1])}
            share = constant(self.momentum, wide.dtype, lambda momentum: 1 - momentum)
            step = {name: share * (batch[name] - running[name]) for name in running}
            state = {name: (running[name] + step[name]).astype(state[name].dtype) for name in running}
            tape: Tree = _ByBatch(x_hat, r.reshape(-1))
        else:
            r = jax.lax.rsqrt(running["var"] + constant(self.eps, wide.dtype))
            x_hat = (wide - with_rank(running["mean"], x.ndim)) * with_rank(r, x.ndim)
            tape = _ByRunning(x_hat, r)
        return scaled(gamma, x_hat, beta).astype(x.dtype), state, tape

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        x_hat, r = tape
        check_delta("batch_norm", delta, Outline(x_hat.shape, _precision(delta, x_hat)))
        wide, gamma, _ = in_wide("batch_norm", params, delta)
        grads = scale_and_shift(wide, x_hat)
        delta_in = wide
        if isinstance(tape, _ByBatch):
            n = _count(wide.size // wide.shape[-1], wide.dtype)
            along, mean = (with_rank(grads[name] / n, wide.ndim) for name in ("scale", "shift"))
            delta_in = wide - x_hat * along - mean
        return (with_rank(gamma * r, wide.ndim) * delta_in).astype(delta.dtype), as_given(params, grads)

    def batch_axes(self, tape: Tree) -> Tree:
        if isinstance(tape, _ByBatch):
            raise coupled("batch_norm")
        return _ByRunning(0, None)


def _count(n: int, dtype: DType) -> Array | int:
    """n, as an array where it is symbolic, as in a program exported for every batch size."""
    return jnp.asarray(n, dtype) if is_symbolic(n) else n


def _unbiased(var: Array, otherwise: Array, n: int) -> Array:
    """The unbiased variance v n/(n − 1), or `otherwise` with n = 1."""
    if is_symbolic(n):
        m = _count(n, var.dtype)
        return jnp.where(m > 1, var * (m / jnp.maximum(m - 1, 1)), otherwise)
    return var * (n / (n - 1)) if n > 1 else otherwise


def _precision(delta: Array, x_hat: Array) -> DType:
    """The precision of δ where its sums have that of x̂, else that of x̂; x's is not on the tape."""
    fits = hasattr(delta, "dtype") and is_floating(delta) and accumulator(delta.dtype) == x_hat.dtype
    return delta.dtype if fits else x_hat.dtype
