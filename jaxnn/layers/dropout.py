"""Dropout: in training every value is left out by chance, so that no unit can rely on another."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating, outline
from jaxnn.checks import number
from jaxnn.errors import LayerError
from jaxnn.keys import as_key
from jaxnn.parameters import constant, nothing
from jaxnn.records import is_array
from jaxnn.sequences import over_steps
from jaxnn.shapes import check_delta, features
from jaxnn.tapes import first_axes
from jaxnn.types import Array, Forward, Key, Layer, Outline, Params, State, Tree


@over_steps()
class dropout(Layer):
    """Inverted dropout: what is kept is scaled up in training, so that evaluation changes nothing.

    Forward, x [N, …] → h [N, …], with mᵢ 1 by chance 1 − p and 0 by chance p, each value by itself:

        training     h = x ⊙ m / (1 − p)      (of mean x)
        evaluation   h = x

    Backward, δ = ∂C/∂h:

        training     ∂C/∂x = δ ⊙ m / (1 − p)
        evaluation   ∂C/∂x = δ

    A product, so that a NaN that is left out is still seen. The tape is m, a byte for each value: drawing it again
    would cost more than the layer itself.

    Args:
        drop_rate: p, the share that is left out, 0 ≤ p < 1. With 0 the layer is the identity and needs no key
            (but for a JAX scalar, which may be any).

    Raises:
        ValueError: if x is not a float array with a batch axis, or no key is given in training.

    Source: Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting", section 10
    for the scale in training.

    >>> h, _, _ = dropout(0.5).forward({}, (), jnp.ones((1, 6)), train=True, rng=jax.random.key(0))
    >>> sorted(set(h[0].tolist()))
    [0.0, 2.0]
    """

    drop_rate: float

    def __post_init__(self) -> None:
        self._set(drop_rate=number("dropout: drop_rate", self.drop_rate, least=0, below=1))

    init = nothing
    batch_axes = first_axes

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        features("dropout", x, at_least=1)
        if not train or (not is_array(self.drop_rate) and self.drop_rate == 0):
            return x, state, outline(x)
        if rng is None:
            raise LayerError("dropout", "needs a key in training: pass rng=jax.random.key(seed), another in every step")
        # as float32, for one mask whether or not 64-bit types are enabled
        chance = jnp.float32(1 - self.drop_rate)
        if is_array(self.drop_rate):
            chance = jnp.where(jnp.isnan(chance), 1, chance)  # then all is kept, and NaN
        kept = jax.random.bernoulli(as_key(rng), chance, x.shape)
        return self._thinned(x, kept), state, kept

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        if isinstance(tape, Outline):  # no mask, no training
            check_delta("dropout", delta, tape)
            return delta, {}
        # A mask does not say x's precision: any will do.
        dtype = delta.dtype if hasattr(delta, "dtype") and is_floating(delta) else jnp.float32
        check_delta("dropout", delta, Outline(tape.shape, dtype))
        return self._thinned(delta, tape), {}

    def _thinned(self, values: Array, kept: Array) -> Array:
        wide = accumulator(values.dtype)  # in bfloat16 1/0.9 would be off by 0.3 % in every value
        share = constant(self.drop_rate, wide, lambda drop_rate: 1 - drop_rate)
        return (values.astype(wide) * (kept.astype(wide) / share)).astype(values.dtype)
