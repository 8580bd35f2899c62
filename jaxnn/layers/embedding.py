"""Embedding of tokens, one vector for each index.  N batch, T time, V vocabulary, H width."""

from __future__ import annotations

from dataclasses import KW_ONLY

import jax.numpy as jnp
import numpy as np

from jaxnn import initializers
from jaxnn.arrays import first_of, is_concrete, widest
from jaxnn.checks import plain_data, whole_number
from jaxnn.errors import LayerError
from jaxnn.factors import Rows, by_position
from jaxnn.losses.targets import labels_and_wrong
from jaxnn.mistakes import initializer
from jaxnn.parameters import as_given, drawn
from jaxnn.sequences import as_sequences, over_steps, tokens_seen
from jaxnn.shapes import check_delta, input_spec
from jaxnn.spmd.axes import axes_of, placed
from jaxnn.tapes import first_axes
from jaxnn.types import Array, DType, Forward, Initializer, InShape, Key, Layer, Outline, Params, Shape, State, Tree


@over_steps(hide=True)
class embedding(Layer):
    """Rows of a table, y = W[x]: a dense layer on one-hot vectors that are never formed.

    Forward, x [N, …] of integers 0 … V − 1, or `Sequences` of such [N, T] → y [N, …, H], with their mask:

        yₙₕ = W_jₕ,   j = xₙ

    Backward, δ = ∂C/∂y: each occurrence of an index adds its δ to that row.

        ∂C/∂W_jₕ = Σₙ δₙₕ over the n (and times) with xₙ = j   [V, H]
        ∂C/∂x    `()`: integers have no gradient

    Parameters: `{"w": [V, H]}`. An index below 0 or above V − 1 raises an error where its value is concrete; in a
    compiled program it gives NaN, and is never wrapped or clipped. Masked tokens may be any integers.

    Args:
        vocabulary: V, the number of indices, at least 1.
        width: H, at least 1.
        w_init: initializer of W, by default N(0, 1/H), rows of norm about 1. The fans are V and H, those of the dense
            layer on one-hot vectors, although an output depends on one row alone.

    Raises:
        ValueError: if x does not hold integers, has no batch axis, or an index is not in the vocabulary.

    Source: Bengio, Ducharme, Vincent & Jauvin (2003), "A neural probabilistic language model".

    >>> import jax
    >>> layer = embedding(5, 2)
    >>> params, state = layer.init(0, jax.ShapeDtypeStruct((3,), jnp.int32))
    >>> y, _, tape = layer.forward(params, state, jnp.array([[4, 0, 4]]))
    >>> delta_in, grads = layer.backward(params, tape, jnp.ones_like(y))
    >>> grads["w"][:, 0].tolist(), delta_in
    ([1.0, 0.0, 0.0, 0.0, 2.0], ())
    """

    vocabulary: int
    width: int
    _: KW_ONLY
    w_init: Initializer | None = None

    batch_axes = first_axes

    def __post_init__(self) -> None:
        self._set(vocabulary=whole_number("embedding: vocabulary", self.vocabulary, least=1))
        self._set(width=whole_number("embedding: width", self.width, least=1))
        initializer("embedding: w_init", self.w_init)

    def look(self, x: Array) -> None:
        _in_vocabulary(np.asarray(tokens_seen("embedding", as_sequences(x))), self.vocabulary)

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        _indices(input_spec(in_shape, dtype))
        w_init = self.w_init or initializers.normal(self.width**-0.5)
        return drawn("embedding", dtype, w=(w_init, key, (self.vocabulary, self.width))), ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        _indices(x)
        shape = self.vocabulary, self.width
        if set(params) != {"w"} or params["w"].shape != shape:
            got = {name: jnp.shape(param) for name, param in params.items()}
            raise LayerError("embedding", f"expects w of shape {shape}, got {got}", about_params=True)
        if is_concrete(x):
            _in_vocabulary(np.asarray(x), self.vocabulary)
        index, _ = labels_and_wrong(x, self.vocabulary)

        def rows(w: Array, index: Array) -> Array:
            return w.at[index].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

        w = jnp.asarray(params["w"])
        return placed(rows, w, index, axes=(*axes_of(index), axes_of(w)[-1])), state, x

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Tree, Params]:
        delta_in, grads = self.unrounded(params, tape, delta, jnp.float32)
        return delta_in, as_given(params, grads)

    def unrounded(self, params: Params, tape: Tree, delta: Array, dtype: DType) -> tuple[Tree, Params]:
        check_delta("embedding", delta, Outline((*tape.shape, self.width), params["w"].dtype))
        index, _ = labels_and_wrong(tape, self.vocabulary)
        wide = widest(delta.dtype, dtype)  # in bfloat16 the sum for a frequent word would stop growing

        def total(index: Array, delta: Array) -> Array:
            grad = jnp.zeros((self.vocabulary, self.width), wide)
            return grad.at[index].add(delta, mode="drop", wrap_negative_indices=False)

        grad = placed(total, index, delta.astype(wide), axes=axes_of(params["w"]))
        return (), {"w": grad}

    def factors(self, params: Params, tape: Tree, delta: Array) -> Params:
        index, _ = labels_and_wrong(tape, self.vocabulary)
        return {"w": Rows(index.reshape(index.shape[0], -1), by_position(delta), self.vocabulary)}


def _indices(x: Array) -> Shape:
    """The shape of x if it holds integers [N, …]."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise LayerError("embedding", f"expects one array, got {type(x).__name__}")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        advice = "x.astype('int32'), and for init in_shape=jax.ShapeDtypeStruct(shape, 'int32')"
        raise LayerError("embedding", f"expects whole numbers, the indices of a vocabulary, got {x.dtype}: {advice}")
    plain_data("embedding: x", x)
    if x.ndim < 1:
        raise LayerError("embedding", "expects x with the batch axis first, got a scalar: use x[None]")
    return tuple(x.shape)


def _in_vocabulary(x: np.ndarray, vocabulary: int) -> None:
    wrong = (x < 0) | (x >= vocabulary)
    if wrong.any():
        first = first_of(wrong)
        place = ", ".join(map(str, first))
        raise LayerError(
            "embedding",
            f"expects indices 0 … {vocabulary - 1}, got {np.count_nonzero(wrong)} others, the first at "
            f"[{place}]: {x[first]}",
        )
