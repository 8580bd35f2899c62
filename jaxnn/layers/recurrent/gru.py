"""The gated recurrent unit.  N batch, T time, D features in, H width of the state."""

from __future__ import annotations

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from jaxnn.arrays import with_rank
from jaxnn.layers.recurrent.products import over_examples, total_over_examples
from jaxnn.layers.recurrent.through_time import Carried, Cell, Recurrent, Sums
from jaxnn.types import Array, Initializer, Params, Tree


def _sums(x: Array, h: Array, alpha: Array, mu: Array, mu_n: Array) -> Params:
    return {
        "w": over_examples(x, alpha),
        "w_h": over_examples(h, mu),
        "b": total_over_examples(alpha),
        "b_h": total_over_examples(mu_n),
    }


class gru(Recurrent):
    """The gated recurrent unit, with the reset gate after the product, as in cuDNN, PyTorch, flax and Keras.

    Forward, x [N, T, D] → h [N, T, H], t = 1 … T; a, m [N, 3H] are split into three parts in the order r, u, n:

        a = xₜ W + b,   m = hₜ₋₁ U,   mₙ ← mₙ + bₕ
        r = σ(aᵣ + mᵣ),   u = σ(aᵤ + mᵤ)         σ the sigmoid; reset and update gate
        n = tanh(aₙ + r ⊙ mₙ)                    the new candidate
        hₜ = (1 − u) ⊙ n + u ⊙ hₜ₋₁

    Backward (through time), δₜ = ∂C/∂hₜ, of which εₜ is the δ of the output hₜ, α = ∂C/∂a and μ = ∂C/∂m; t = T … 1:

        αₙ = δₜ ⊙ (1 − u) ⊙ (1 − n²),   αᵤ = δₜ ⊙ (hₜ₋₁ − n) ⊙ u (1 − u),   αᵣ = αₙ ⊙ mₙ ⊙ r (1 − r)
        μᵣ = αᵣ,   μᵤ = αᵤ,   μₙ = αₙ ⊙ r
        δₜ₋₁ = δₜ ⊙ u + μ Uᵀ + εₜ₋₁,   ∂C/∂xₜ = α Wᵀ
        ∂C/∂W = Σₜ xₜᵀ α,   ∂C/∂U = Σₜ hₜ₋₁ᵀ μ,   ∂C/∂b = Σₜ Σₙ α,   ∂C/∂bₕ = Σₜ Σₙ μₙ

    Cho et al. reset the state before the product, n = tanh(aₙ + (r ⊙ hₜ₋₁) Uₙ), another function, whose weights cannot
    be converted; and their u is 1 − u here.

    Parameters: `{"w": W [D, 3H], "w_h": U [H, 3H], "b": [3H], "b_h": bₕ [H]}`. From PyTorch's `GRU`, whose order of
    gates is the same (it calls u z): w = weight_ih.T, w_h = weight_hh.T, b = bias_ih + bias_hh without the last third
    of bias_hh, which is b_h. From flax's `GRUCell`: w is the kernels of ir, iz, in concatenated, w_h those of hr, hz,
    hn, b the biases of the former and b_h that of hn.

    Args:
        width: H, at least 1.
        returns: "sequence", h at every step, [N, T, H], as `Sequences` with the mask where x has a mask, for the next
            recurrent layer; "values", the same always as an array; "last", h after the last step that is not masked,
            [N, H]; "both", the values and the last state.
        truncate: the number of steps that δ goes back, as for `rnn`.
        recompute: True keeps only every √T-th state, as for `rnn`.
        w_init: initializer of each gate's part of W, by default Glorot uniform.
        w_h_init: initializer of each gate's part of U, by default orthogonal.
        b_init: initializer of bₕ and each gate's part of b, by default zeros.

    x is an array, or `Sequences(values, mask, initial)`. The initial state is zero by default.

    XLA keeps the small products of a step on one CPU core: `placement.cores` makes the cores devices, which divide each
    batch (two cores: 1.3 to 1.5 × as fast).

    Raises:
        ValueError: if x is not float [N, T, D] with T ≥ 1, mask, initial state or parameters do not fit it, or a
            setting is out of range.

    Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation"; Chetlur et al. (2014), cuDNN, for the place of the reset gate.

    >>> layer = gru(4, returns="last")
    >>> params, state = layer.init(jax.random.key(0), (5, 3))
    >>> layer.forward(params, state, jnp.ones((2, 5, 3)))[0].shape
    (2, 4)
    """

    width: int
    _: KW_ONLY
    returns: str = "sequence"
    truncate: int | None = None
    recompute: bool = False
    w_init: Initializer | None = None
    w_h_init: Initializer | None = None
    b_init: Initializer | None = None

    cell = Cell(("h",), 3, more=("b_h",), unroll=4, of={"w": 0, "w_h": 1, "b": 0, "b_h": 2})

    @staticmethod
    def step(params: Params, x: Array, state: Carried) -> tuple[Carried, Tree]:
        (h,) = state
        a_r, a_u, a_n = jnp.split(x @ params["w"] + with_rank(params["b"], x.ndim), 3, axis=-1)
        m_r, m_u, m_n = jnp.split(h @ params["w_h"], 3, axis=-1)
        m_n = m_n + with_rank(params["b_h"], h.ndim)
        r, u = jax.lax.logistic(a_r + m_r), jax.lax.logistic(a_u + m_u)
        n = jnp.tanh(a_n + r * m_n)
        return ((1 - u) * n + u * h,), (h, r, u, n, m_n)

    @staticmethod
    def step_back(
        params: Params, x: Array, kept: Tree, delta: Carried, sums: Sums = _sums
    ) -> tuple[Carried, Array, Params]:
        (h, r, u, n, m_n), (delta_h,) = kept, delta
        alpha_n = delta_h * (1 - u) * (1 - n) * (1 + n)
        alpha_u = delta_h * (h - n) * u * (1 - u)
        alpha_r = alpha_n * m_n * r * (1 - r)
        mu_n = alpha_n * r
        alpha = jnp.concatenate([alpha_r, alpha_u, alpha_n], axis=-1)
        mu = jnp.concatenate([alpha_r, alpha_u, mu_n], axis=-1)
        grads = sums(x, h, alpha, mu, mu_n)
        return (delta_h * u + mu @ params["w_h"].T,), alpha @ params["w"].T, grads


def gru_step(params: Params, h: Array, x: Array) -> Array:
    """One step of `gru`, for inputs that arrive one at a time: h [N, H], x [N, D] → the new h [N, H].

    Source: Cho et al. (2014); Chetlur et al. (2014).

    >>> w, keep = jnp.zeros((1, 3)), jnp.array([0.0, 99.0, 0.0])
    >>> params = {"w": w, "w_h": w, "b": keep, "b_h": jnp.zeros(1)}
    >>> gru_step(params, jnp.ones((1, 1)), jnp.ones((1, 1))).tolist()
    [[1.0]]
    """
    ((new,), _) = gru.step(params, x, (h,))
    return new
