"""A recurrent layer in both directions of time.  N batch, T time, H width of the state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnn.arrays import outline
from jaxnn.combinators.parts import as_layers, axes_of_children, backward_of, entries, forward_of, init_of
from jaxnn.errors import LayerError
from jaxnn.sequences import both_ways, of_both_ways, turned, values_of, with_values
from jaxnn.shapes import check_delta, check_input_deltas
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Params, State, Tree

NAMES = ("forward", "backward")


class bidirectional(Layer):
    """Two recurrent layers, one that reads the sequence forwards and one that reads it backwards.

    Forward, x [N, T, D] → y [N, T, 2H], or [N, 2H] of a layer that returns the last state:

        y = [f(x), R g(R x)]      R reverses time; the last state of g is that at step 1

    Backward, δ = [δ_f, δ_g]:  ∂C/∂x = ∂f/∂xᵀ δ_f + R ∂g/∂xᵀ R δ_g.

    Parameters are `{"forward": …, "backward": …}`, each the layer's own. A mask is reversed with the values; an
    initial state is a pair, (f's, g's).

    Args:
        layer: `rnn`, `gru` or `lstm`, or a network of them, that returns sequences or the last state.
        reverse: the layer that reads backwards, by default one equal to the other.

    Raises:
        ValueError: if the layer returns something else, or x is not a sequence.

    Source: Schuster & Paliwal (1997), "Bidirectional recurrent neural networks".

    >>> from jaxnn import gru
    >>> net = bidirectional(gru(4))
    >>> net.forward(*net.init(jax.random.key(0), (5, 3)), jnp.ones((2, 5, 3)))[0].shape
    (2, 5, 8)
    """

    layer: Layer
    reverse: Layer | None = None
    child_names = NAMES

    def __post_init__(self) -> None:
        self._set(layer=as_layers("bidirectional", (self.layer,))[0])
        if self.reverse is not None:
            (reverse,) = as_layers("bidirectional", (self.reverse,))
            self._set(reverse=None if reverse == self.layer else reverse)

    @property
    def children(self) -> tuple[Layer, ...]:
        return self.layer, self.layer if self.reverse is None else self.reverse

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        return bidirectional(*children)

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = {}, {}
        for name, layer, part in zip(NAMES, self.children, both_ways("bidirectional", in_shape), strict=True):
            params[name], state[name] = init_of(name, layer, key, part, dtype)
        return entries(params) or {}, entries(state)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        there, back = both_ways("bidirectional", x)
        outputs, states, tape = {}, {}, {}
        for name, layer, part in zip(NAMES, self.children, (there, turned(back)), strict=True):
            outputs[name], states[name], tape[name] = forward_of(name, layer, params, state, part, train, rng)
        values = jnp.concatenate(_in_time(*map(_array, outputs.values())), axis=-1)
        y = of_both_ways("bidirectional", values, outputs)
        return y, entries(states, state), (tape, outline(y))

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        tape, y = tape
        check_delta("bidirectional", delta, y)
        halves = _in_time(*jnp.split(_array(delta), 2, axis=-1))
        parts = map(with_values, both_ways("bidirectional", delta), halves)
        delta_in, grads = {}, {}
        for name, layer, part in zip(NAMES, self.children, parts, strict=True):
            delta_in[name], grads[name] = backward_of(name, layer, params, tape, part)
        there, back = delta_in[NAMES[0]], turned(delta_in[NAMES[1]])
        check_input_deltas("bidirectional", (values_of(there), values_of(back)))
        values = jax.tree.map(jnp.add, values_of(there), values_of(back))  # of tokens both are ()
        total = of_both_ways("bidirectional", values, {NAMES[0]: there, NAMES[1]: back})
        return total, entries(grads, params) or {}

    def batch_axes(self, tape: Tree) -> Tree:
        axes = axes_of_children(self, tape[0])
        return None if axes is None else (axes, tape[1])


def _array(y: Tree) -> Array:
    values = values_of(y)
    if not hasattr(values, "ndim"):
        advice = "a layer that returns sequences or the last state"
        raise LayerError("bidirectional", f"expects {advice}, got an output of {len(values)} parts")
    return values


def _in_time(there: Array, back: Array) -> list[Array]:
    """Both, the second reversed where they have a time axis, [N, T, H]; the last states [N, H] have none."""
    return [there, turned(back) if back.ndim == 3 else back]
