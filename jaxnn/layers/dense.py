"""Fully connected layer.  N batch, D features in, H features out; further axes between N and D are kept."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import partial

import jax
import jax.numpy as jnp

from jaxnn import initializers
from jaxnn.arrays import widest, with_rank
from jaxnn.checks import whole_number, yes_or_no
from jaxnn.errors import LayerError
from jaxnn.factors import Outer, by_position
from jaxnn.keys import as_key
from jaxnn.mistakes import initializer
from jaxnn.parameters import as_given, check_names, check_shape, drawn
from jaxnn.sequences import over_steps
from jaxnn.shapes import check_delta, features, input_spec
from jaxnn.spmd.axes import axes_of, placed
from jaxnn.tapes import first_axes
from jaxnn.types import Array, DType, Forward, Initializer, InShape, Key, Layer, Outline, Params, State, Tree

NARROW = 32  # up to this width (δᵀ x)ᵀ is faster than xᵀ δ on XLA's CPU backend: 10 and 25 µs for [128, 10]


@over_steps(rank=3)
class dense(Layer):
    """Fully connected layer, z = x W + b.

    Forward, x [N, …, D] → z [N, …, H]:

        zₙₕ = Σ_d xₙ_d W_dₕ + bₕ

    Backward, δ = ∂C/∂z [N, …, H]:

        ∂C/∂W = xᵀ δ    [D, H]      (summed over N and any axes between)
        ∂C/∂b = Σₙ δₙ   [H]
        ∂C/∂x = δ Wᵀ    [N, …, D]

    W is the transpose of the literature's matrix, which acts on columns. Parameters: `{"w": [D, H], "b": [H]}`.

    Args:
        width: H, at least 1.
        w_init: initializer of W, by default Glorot uniform. `mlp` chooses it by the activation that follows.
        b_init: initializer of b, by default zeros.
        bias: False omits b.

    Raises:
        ValueError: if x has no batch axis, is not float, or the number of its features is not that of W's rows.

    Source: Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating errors";
    Nielsen (2015), ch. 2, equations BP1-BP4.

    >>> net = dense(3)
    >>> params, state = net.init(jax.random.key(0), (2,))
    >>> jax.tree.map(jnp.shape, params)
    {'b': (3,), 'w': (2, 3)}
    >>> z, _, tape = net.forward(params, state, jnp.ones((5, 2)))
    >>> z.shape
    (5, 3)
    """

    width: int
    _: KW_ONLY
    w_init: Initializer | None = None
    b_init: Initializer | None = None
    bias: bool = True

    batch_axes = first_axes

    @property
    def transposable(self) -> str | None:
        """The weights of a narrow layer, whose gradient is (δᵀ x)ᵀ."""
        return "w" if self.width <= NARROW else None

    def __post_init__(self) -> None:
        self._set(width=whole_number("dense: width", self.width, least=1), bias=yes_or_no("dense: bias", self.bias))
        initializer("dense: w_init", self.w_init)
        initializer("dense: b_init", self.b_init)

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        spec = input_spec(in_shape, dtype)
        if getattr(spec, "shape", None) == (1,):
            advice = (
                "x is [N, D]; add the batch axis, x[None] for one example, x[:, None] for N examples of one feature"
            )
            raise LayerError("dense", f"expects examples of shape [D], got in_shape (): {advice}")
        D, H = features("dense", spec)[-1], self.width
        w_key, b_key = jax.random.split(as_key(key))
        w = (self.w_init or initializers.glorot_uniform(), w_key, (D, H))
        b = (self.b_init or initializers.zeros(), b_key, (H,))
        return drawn("dense", dtype, **{"w": w, "b": b} if self.bias else {"w": w}), ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        check_names("dense", params, ("w", "b") if self.bias else ("w",))
        shape = features("dense", x)
        if shape[-1] != params["w"].shape[0]:
            raise LayerError("dense", f"expects {params['w'].shape[0]} features, got x of shape {shape}")
        check_shape("dense", params, "w", (shape[-1], self.width))
        z = x @ params["w"]
        return (z + with_rank(params["b"], z.ndim) if self.bias else z), state, x

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        delta_in, grads = self.unrounded(params, tape, delta, jnp.float32)
        return delta_in, as_given(params, grads)

    def unrounded(self, params: Params, tape: Tree, delta: Array, dtype: DType) -> tuple[Array, Params]:
        x, W = tape, params["w"]
        check_delta("dense", delta, Outline((*x.shape[:-1], self.width), jnp.result_type(x, *params.values())))
        examples = tuple(range(delta.ndim - 1))  # all axes but the features
        wide = widest(delta.dtype, dtype)  # of sums
        summed = partial(jnp.tensordot, axes=(examples, examples), preferred_element_type=wide)

        def product(x: Array, delta: Array) -> Array:
            if self.width <= NARROW < x.shape[-1]:  # the barrier keeps XLA from folding the transpose back
                return jax.lax.optimization_barrier(summed(delta, x)).T
            return summed(x, delta)

        grads = {"w": placed(product, x, delta, axes=axes_of(W))}
        if self.bias:
            grads["b"] = placed(lambda delta: delta.sum(examples, dtype=wide), delta, axes=axes_of(params["b"]))
        delta_in = placed(lambda delta, W: delta @ W.T, delta, W, axes=axes_of(x))
        # Where x and W differ in precision, δ has the higher one; δ_in and the gradients are cast back.
        return delta_in.astype(x.dtype), grads

    def factors(self, params: Params, tape: Tree, delta: Array) -> Params:
        d = by_position(delta)
        factors = {"w": Outer(by_position(tape), d)}
        return {**factors, "b": Outer(None, d)} if self.bias else factors
