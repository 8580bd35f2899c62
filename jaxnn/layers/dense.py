"""The fully connected layer.  N batch, D features in, H features out; further axes between N and D are kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnn import initializers
from jaxnn.checks import LayerError, as_key, check_delta, features, input_spec, whole_number, yes_or_no
from jaxnn.mistakes import initializer
from jaxnn.placement import axes_of, placed
from jaxnn.ranks import with_rank
from jaxnn.sequences import over_values
from jaxnn.types import Array, DType, Initializer, InShape, Key, Layer, Outline, Params, State, Tree

NARROW = 32  # up to this width XLA's CPU backend is faster at (δᵀ x)ᵀ than at xᵀ δ: 10 against 25 µs for [128, 10]


def dense(
    width: int, *, w_init: Initializer | None = None, b_init: Initializer | None = None, bias: bool = True
) -> Layer:
    """A fully connected layer, z = x W + b.

    Forward, x [N, …, D] → z [N, …, H]:

        zₙₕ = Σ_d xₙ_d W_dₕ + bₕ

    Backward, δ = ∂C/∂z [N, …, H]:

        ∂C/∂W = xᵀ δ    [D, H]      (summed over N and any axes between)
        ∂C/∂b = Σₙ δₙ   [H]
        ∂C/∂x = δ Wᵀ    [N, …, D]

    W is the transpose of the literature's matrix, which acts on columns. Parameters: `{"w": [D, H], "b": [H]}`.

    Args:
        width: H, at least 1.
        w_init: initializer of W; Glorot's uniform one by default. `mlp` chooses by the activation that follows.
        b_init: initializer of b; zeros by default.
        bias: False leaves b out.

    Raises:
        ValueError: if x has no batch axis, is not float, or has another number of features than W has rows.

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
    width = whole_number("dense: width", width, least=1)
    bias = yes_or_no("dense: bias", bias)
    w_init = initializer("dense: w_init", w_init) or initializers.glorot_uniform()
    b_init = initializer("dense: b_init", b_init) or initializers.zeros()

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        spec = input_spec(in_shape, dtype)
        if getattr(spec, "shape", None) == (1,):
            advice = (
                "x is [N, D]; add the batch axis, x[None] for one example, x[:, None] for N examples of one feature"
            )
            raise LayerError("dense", f"expects examples of shape [D], got in_shape (): {advice}")
        in_features = features("dense", spec)[-1]
        w_key, b_key = jax.random.split(as_key(key))
        params = {"w": w_init(w_key, (in_features, width), dtype)}
        if bias:
            params["b"] = b_init(b_key, (width,), dtype)
        for name, shape in (("w", (in_features, width)), ("b", (width,))):
            if name in params and jnp.shape(params[name]) != shape:
                raise LayerError("dense", f"expects {name}_init to give {shape}, got {jnp.shape(params[name])}")
        return params, ()

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        if set(params) != ({"w", "b"} if bias else {"w"}):
            raise LayerError("dense", f"expects parameters w{' and b' * bias}, got {sorted(params)}", about_params=True)
        w = params["w"]
        shape = features("dense", x)
        if shape[-1] != w.shape[0]:
            raise LayerError("dense", f"expects {w.shape[0]} features, got x of shape {shape}")
        if w.shape != (shape[-1], width):
            expected = (shape[-1], width)
            raise LayerError("dense", f"expects w of shape {expected}, got {w.shape}", about_params=True)
        z = x @ w
        return (z + with_rank(params["b"], z.ndim) if bias else z), state, x

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        x = tape
        check_delta("dense", delta, Outline((*x.shape[:-1], width), jnp.result_type(x, *params.values())))
        examples = tuple(range(delta.ndim - 1))  # every axis but the features

        def product(x: Array, delta: Array) -> Array:
            if width <= NARROW < x.shape[-1]:  # the barrier keeps XLA from folding the transpose back
                return jax.lax.optimization_barrier(jnp.tensordot(delta, x, (examples, examples))).T
            return jnp.tensordot(x, delta, (examples, examples))

        grads = {"w": placed(product, x, delta, axes=axes_of(params["w"]))}
        if bias:
            grads["b"] = placed(lambda delta: delta.sum(examples), delta, axes=axes_of(params["b"]))
        # Where x and W differ in precision, δ has the higher one; what goes out fits what came in.
        grads = {name: grad.astype(params[name].dtype) for name, grad in grads.items()}
        delta_in = placed(lambda delta, w: delta @ w.T, delta, params["w"], axes=axes_of(x))
        return delta_in.astype(x.dtype), grads

    return over_values(Layer("dense", init, forward, backward))
