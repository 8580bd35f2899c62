"""Dropout: in training each value is dropped at random, so that no unit relies on another."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating, outline
from jaxnn.checks import number
from jaxnn.errors import LayerError
from jaxnn.keys import as_key
from jaxnn.parameters import constant, no_parameters
from jaxnn.records import is_array
from jaxnn.sequences import over_steps
from jaxnn.shapes import check_delta, features
from jaxnn.spmd.axes import axes_of, placed
from jaxnn.tapes import first_axes
from jaxnn.types import Array, Forward, Key, Layer, Outline, Params, State, Tree


@over_steps()
class dropout(Layer):
    """Inverted dropout, h = x ⊙ m / (1 − p): scaled in training, so that evaluation is the identity.

    Forward, x [N, …] → h [N, …], with independent mᵢ ~ Bernoulli(1 − p):

        training     h = x ⊙ m / (1 − p)      (its mean is x)
        evaluation   h = x

    Backward, δ = ∂C/∂h:

        training     ∂C/∂x = δ ⊙ m / (1 − p)
        evaluation   ∂C/∂x = δ

    It is a product, so that a dropped NaN still gives NaN. The tape is m, one byte per value: drawing it again would
    cost more than the layer itself.

    Args:
        drop_rate: p, the fraction dropped, 0 ≤ p < 1. With the Python number 0 the layer is the identity and needs no
            key.

    Raises:
        ValueError: if x is not a float array with a batch axis, or no key is given in training.

    Source: Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting", section 10
    for scaling in training.

    >>> h, _, _ = dropout(0.5).forward({}, (), jnp.ones((1, 6)), train=True, rng=jax.random.key(0))
    >>> sorted(set(h[0].tolist()))
    [0.0, 2.0]
    """

    drop_rate: float

    def __post_init__(self) -> None:
        self._set(drop_rate=number("dropout: drop_rate", self.drop_rate, least=0, below=1))

    init = no_parameters
    batch_axes = first_axes

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        features("dropout", x, at_least=1)
        if not train or (not is_array(self.drop_rate) and self.drop_rate == 0):
            return x, state, outline(x)
        if rng is None:
            raise LayerError(
                "dropout", "needs a key in training: pass rng=jax.random.key(seed), a new one in every step"
            )
        # float32, so that the mask is the same whether or not 64-bit types are enabled
        chance = jnp.float32(1 - self.drop_rate)
        if is_array(self.drop_rate):
            chance = jnp.where(jnp.isnan(chance), 1, chance)  # a NaN rate keeps all values, as NaN
        draw = lambda x, key, chance: jax.random.bernoulli(key, chance, x.shape)  # noqa: E731
        kept = placed(draw, x, as_key(rng), chance, axes=axes_of(x))  # each device draws for its own examples
        return self._thinned(x, kept), state, kept

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        if isinstance(tape, Outline):  # evaluation
            check_delta("dropout", delta, tape)
            return delta, {}
        # The mask does not record x's precision: δ may have any.
        dtype = delta.dtype if hasattr(delta, "dtype") and is_floating(delta) else jnp.float32
        check_delta("dropout", delta, Outline(tape.shape, dtype))
        return self._thinned(delta, tape), {}

    def _thinned(self, values: Array, kept: Array) -> Array:
        wide = accumulator(values.dtype)  # in bfloat16 1/0.9 would be off by 0.3 % in every value
        share = constant(self.drop_rate, wide, lambda drop_rate: 1 - drop_rate)
        return (values.astype(wide) * (kept.astype(wide) / share)).astype(values.dtype)
