"""The simple recurrent network.  N batch, T time, D features in, H width of the state."""

from __future__ import annotations

from dataclasses import KW_ONLY

from jaxnn.activations import tanh
from jaxnn.layers.recurrent.products import over_examples, total_over_examples, weighted
from jaxnn.layers.recurrent.through_time import Carried, Cell, Recurrent, Sums
from jaxnn.types import Activation, Array, Initializer, Params, Tree


def _sums(x: Array, h: Array, zeta: Array) -> Params:
    return {"w": over_examples(x, zeta), "w_h": over_examples(h, zeta), "b": total_over_examples(zeta)}


class rnn(Recurrent):
    """Elman's recurrent layer, hₜ = σ(xₜ W + hₜ₋₁ U + b).

    Forward, x [N, T, D] → h [N, T, H], t = 1 … T:

        hₜ = σ(zₜ),   zₜ = xₜ W + hₜ₋₁ U + b

    Backward (through time), δₜ = ∂C/∂hₜ, of which εₜ is the δ of the output hₜ, and ζ = ∂C/∂z; t = T … 1:

        ζₜ = δₜ ⊙ σ′(zₜ)
        δₜ₋₁ = ζₜ Uᵀ + εₜ₋₁            ∂C/∂xₜ = ζₜ Wᵀ
        ∂C/∂W = Σₜ xₜᵀ ζₜ,   ∂C/∂U = Σₜ hₜ₋₁ᵀ ζₜ,   ∂C/∂b = Σₜ Σₙ ζₜ

    δ₀ = ζ₁ Uᵀ is the gradient of the initial state. The δ of early steps contains a product of many matrices
    diag(σ′) Uᵀ, which vanishes or explodes.

    Parameters: `{"w": W [D, H], "w_h": U [H, H], "b": [H]}`. From flax's `SimpleCell`: w is the kernel of its `i`, w_h
    that of `h`, b the bias of `i`. From PyTorch's `RNN`: w = weight_ih.T, w_h = weight_hh.T, b = bias_ih + bias_hh.

    Args:
        width: H, at least 1.
        activation: σ, an Activation record.
        returns: "sequence", h at every step, [N, T, H], as `Sequences` with the mask where x has a mask, for the next
            recurrent layer; "values", the same always as an array; "last", h after the last step that is not masked,
            [N, H]; "both", the values and the last state.
        truncate: k ≥ 1: no δ is carried from step t to t − 1 where T − t is a multiple of k, so that the last step's δ
            goes back k steps (truncated backpropagation through time; `jax.grad` of forward gives the same). To carry
            the state from one chunk of a long sequence to the next, use `returns="both"` and give the last state to
            the next chunk as `Sequences(x, initial=…)`.
        recompute: True keeps only every √T-th state and runs forward again in backward: memory for 2√T steps instead
            of T, at the cost of one forward pass, which less memory traffic may offset.
        w_init: initializer of W, by default Glorot uniform.
        w_h_init: initializer of U, by default orthogonal, which initially preserves the norm of δ.
        b_init: initializer of b, by default zeros.

    x is an array, or `Sequences(values, mask, initial)`: then δ_in is `Sequences` too, with `()` for the mask. The
    initial state is zero by default.

    XLA keeps the small products of a step on one CPU core: `placement.cores` makes the cores devices, which divide each
    batch (two cores: 1.3 to 1.5 × as fast).

    Raises:
        ValueError: if x is not float [N, T, D] with T ≥ 1, mask, initial state or parameters do not fit it, or a
            setting is out of range.

    Source: Elman (1990), "Finding structure in time"; Werbos (1990); Williams & Peng (1990) for truncation; Chen et
    al. (2016) for recomputation; Saxe et al. (2014) for orthogonal initialisation.

    >>> import jax, jax.numpy as jnp
    >>> layer = rnn(4, returns="last")
    >>> params, state = layer.init(jax.random.key(0), (5, 3))
    >>> layer.forward(params, state, jnp.ones((2, 5, 3)))[0].shape
    (2, 4)
    """

    width: int
    activation: Activation = tanh
    _: KW_ONLY
    returns: str = "sequence"
    truncate: int | None = None
    recompute: bool = False
    w_init: Initializer | None = None
    w_h_init: Initializer | None = None
    b_init: Initializer | None = None

    cell = Cell(("h",), 1, unroll=4)

    def __post_init__(self) -> None:
        if not isinstance(self.activation, Activation):
            raise TypeError(f"rnn: expected an Activation record such as jaxnn.tanh, got {self.activation!r}")
        super().__post_init__()

    def step(self, params: Params, x: Array, state: Carried) -> tuple[Carried, Tree]:
        (h,) = state
        z = weighted(params, x, h)
        new = self.activation.value(z)
        return (new,), (h, z, new)

    def step_back(
        self, params: Params, x: Array, kept: Tree, delta: Carried, sums: Sums = _sums
    ) -> tuple[Carried, Array, Params]:
        h, z, new = kept
        zeta = delta[0] * self.activation.slope(z, new)
        grads = sums(x, h, zeta)
        return (zeta @ params["w_h"].T,), zeta @ params["w"].T, grads


def rnn_step(params: Params, h: Array, x: Array, activation: Activation = tanh) -> Array:
    """One step of `rnn`, for inputs that arrive one at a time: h [N, H], x [N, D] → the new h [N, H].

    Source: Elman (1990).

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((1, 1)), "w_h": jnp.ones((1, 1)), "b": jnp.zeros(1)}
    >>> print(rnn_step(params, jnp.zeros((1, 1)), jnp.ones((1, 1))).round(3))  # tanh 1
    [[0.762]]
    """
    return activation.value(weighted(params, x, h))
