"""Long short-term memory.  N batch, T time, D features in, H width of the state."""

from __future__ import annotations

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from jaxnn.checks import number
from jaxnn.layers.recurrent.products import concatenated, over_examples, total_over_examples, weighted
from jaxnn.layers.recurrent.through_time import Carried, Cell, Recurrent, Sums
from jaxnn.parameters import constant
from jaxnn.types import Array, DType, Initializer, InShape, Key, Params, State, Tree


def _sums(x: Array, h: Array, zeta: Array) -> Params:
    both = over_examples(concatenated(x, h), zeta)  # as one product, like the weighted sum
    return {"w": both[: x.shape[-1]], "w_h": both[x.shape[-1] :], "b": total_over_examples(zeta)}


class lstm(Recurrent):
    """Long short-term memory: a cell state c with input, forget and output gates.

    Forward, x [N, T, D] → h [N, T, H], t = 1 … T; z [N, 4H] is split into four parts in the order i, f, g, o:

        z = xₜ W + hₜ₋₁ U + b
        i = σ(zᵢ),   f = σ(z_f),   g = tanh z_g,   o = σ(zₒ)      σ the sigmoid
        cₜ = f ⊙ cₜ₋₁ + i ⊙ g,     hₜ = o ⊙ tanh cₜ

    Backward (through time), δₜ = ∂C/∂hₜ, of which εₜ is the δ of the output hₜ, γₜ = ∂C/∂cₜ and ζ = ∂C/∂z; t = T … 1:

        γₜ ← γₜ + δₜ ⊙ o ⊙ (1 − tanh² cₜ)
        ζᵢ = γₜ ⊙ g ⊙ i (1 − i),   ζ_f = γₜ ⊙ cₜ₋₁ ⊙ f (1 − f)
        ζ_g = γₜ ⊙ i ⊙ (1 − g²),   ζₒ = δₜ ⊙ tanh cₜ ⊙ o (1 − o)
        γₜ₋₁ = γₜ ⊙ f,   δₜ₋₁ = ζ Uᵀ + εₜ₋₁,   ∂C/∂xₜ = ζ Wᵀ
        ∂C/∂W = Σₜ xₜᵀ ζ,   ∂C/∂U = Σₜ hₜ₋₁ᵀ ζ,   ∂C/∂b = Σₜ Σₙ ζ

    γ passes from step to step through f alone: with f near 1 it does not vanish.

    Parameters: `{"w": W [D, 4H], "w_h": U [H, 4H], "b": [4H]}`, b initially zero except for the forget gate. From
    PyTorch's `LSTM`, whose order of gates is the same: w = weight_ih.T, w_h = weight_hh.T, b = bias_ih + bias_hh. From
    flax's `OptimizedLSTMCell`: w is the kernels of ii, if, ig, io concatenated, w_h those of hi, hf, hg, ho, and b the
    biases of the latter.

    Args:
        width: H, at least 1.
        returns: "sequence", h at every step, [N, T, H], as `Sequences` with the mask where x has a mask, for the next
            recurrent layer; "values", the same always as an array; "last", h after the last step that is not masked,
            [N, H]; "both", the values and the last state (h, c).
        truncate: the number of steps that δ and γ go back, as for `rnn`.
        recompute: True keeps only every √T-th state, as for `rnn`.
        forget_bias: added to the forget gate's initial bias. A cell initially keeps σ(forget_bias) of its value from
            step to step: 1 suits memories of a few steps, log T those of T steps.
        w_init: initializer of each gate's part of W, by default Glorot uniform.
        w_h_init: initializer of each gate's part of U, by default orthogonal.
        b_init: initializer of each gate's part of b, by default zeros.

    x is an array, or `Sequences(values, mask, initial)` with initial = (h₀, c₀), by default zeros.

    XLA keeps the small products of a step on one CPU core: `placement.cores` makes the cores devices, which divide each
    batch (two cores: 1.3 to 1.5 × as fast).

    Raises:
        ValueError: if x is not float [N, T, D] with T ≥ 1, mask, initial state or parameters do not fit it, or a
            setting is out of range.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory"; Gers, Schmidhuber & Cummins (2000) for the
    forget gate; Graves (2012), "Supervised sequence labelling", ch. 4, for the full gradient (there with peepholes);
    Jozefowicz, Zaremba & Sutskever (2015) for its bias of 1; Tallec & Ollivier (2018) for log T.

    >>> layer = lstm(4)
    >>> params, state = layer.init(jax.random.key(0), (5, 3))
    >>> layer.forward(params, state, jnp.ones((2, 5, 3)))[0].shape
    (2, 5, 4)
    """

    width: int
    _: KW_ONLY
    returns: str = "sequence"
    truncate: int | None = None
    recompute: bool = False
    forget_bias: float = 1.0
    w_init: Initializer | None = None
    w_h_init: Initializer | None = None
    b_init: Initializer | None = None

    cell = Cell(("h", "c"), 4)

    def __post_init__(self) -> None:
        self._set(forget_bias=number("lstm: forget_bias", self.forget_bias))
        super().__post_init__()

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = super().init(key, in_shape, dtype)
        offset = jnp.repeat(jnp.array([0.0, constant(self.forget_bias, dtype), 0.0, 0.0]), self.width)
        return {**params, "b": params["b"] + offset.astype(dtype)}, state

    @staticmethod
    def step(params: Params, x: Array, state: Carried) -> tuple[Carried, Tree]:
        h, c = state
        z_i, z_f, z_g, z_o = jnp.split(weighted(params, x, h), 4, axis=-1)
        i, f, g, o = jax.lax.logistic(z_i), jax.lax.logistic(z_f), jnp.tanh(z_g), jax.lax.logistic(z_o)
        new = f * c + i * g
        return (o * jnp.tanh(new), new), (h, c, i, f, g, o)

    @staticmethod
    def step_back(
        params: Params, x: Array, kept: Tree, delta: Carried, sums: Sums = _sums
    ) -> tuple[Carried, Array, Params]:
        (h, c, i, f, g, o), (delta_h, gamma) = kept, delta
        squashed = jnp.tanh(f * c + i * g)
        gamma = gamma + delta_h * o * (1 - squashed) * (1 + squashed)
        zeta_i, zeta_f = gamma * g * i * (1 - i), gamma * c * f * (1 - f)
        zeta_g, zeta_o = gamma * i * (1 - g) * (1 + g), delta_h * squashed * o * (1 - o)
        zeta = jnp.concatenate([zeta_i, zeta_f, zeta_g, zeta_o], axis=-1)
        grads = sums(x, h, zeta)
        return (zeta @ params["w_h"].T, gamma * f), zeta @ params["w"].T, grads


def lstm_step(params: Params, state: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """One step of `lstm`, for inputs that arrive one at a time: (h, c), each [N, H], and x [N, D] → the new (h, c).

    Source: Hochreiter & Schmidhuber (1997); Gers, Schmidhuber & Cummins (2000).

    >>> params = {"w": jnp.zeros((1, 4)), "w_h": jnp.zeros((1, 4)), "b": jnp.array([0.0, 99.0, 0.0, 0.0])}
    >>> h, c = lstm_step(params, (jnp.zeros((1, 1)), jnp.ones((1, 1))), jnp.ones((1, 1)))
    >>> c.tolist()  # nothing is forgotten
    [[1.0]]
    """
    (h, c), _ = lstm.step(params, x, state)
    return h, c
