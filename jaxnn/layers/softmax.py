"""Softmax output units.  N batch, K classes."""

from __future__ import annotations

import jax

from jaxnn.parameters import no_parameters
from jaxnn.sequences import over_steps
from jaxnn.shapes import check_delta, features
from jaxnn.tapes import first_axes
from jaxnn.types import Array, Forward, Key, Layer, Params, State, Tree


@over_steps(rank=3)
class softmax(Layer):
    """Softmax over the last axis, from logits to probabilities.

    Forward, z [N, …, K] → y [N, …, K]:

        yₖ = exp(zₖ − m) / Σⱼ exp(zⱼ − m),   m = maxⱼ zⱼ

    Backward, δ = ∂C/∂y, with the Jacobian ∂yⱼ/∂zₖ = yⱼ (1[j=k] − yₖ):

        ∂C/∂zₖ = yₖ (δₖ − Σⱼ δⱼ yⱼ)

    For training, `losses.softmax_cross_entropy` on the logits gives the same gradient more stably; this layer is for
    networks whose output must be probabilities.

    Raises:
        ValueError: if z is not a float array [N, …, K].

    Source: Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs".

    >>> import jax.numpy as jnp
    >>> y, _, _ = softmax().forward({}, (), jnp.array([[0.0, 0.0, 200.0]]))
    >>> y.tolist()
    [[0.0, 0.0, 1.0]]
    """

    def __init__(self) -> None: ...

    init = no_parameters
    batch_axes = first_axes
    keeps_precision = True

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        features("softmax", x)
        y = jax.nn.softmax(x, axis=-1)
        return y, state, y

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        y = tape
        check_delta("softmax", delta, y)
        return y * (delta - (delta * y).sum(-1, keepdims=True)), {}
