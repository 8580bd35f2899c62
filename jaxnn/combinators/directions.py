"""A recurrent layer in both directions of time.  N batch, T time, H width of the state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.checks import LayerError, check_delta, check_input_deltas, inside, layer_key, outline
from jaxnn.combinators.parts import as_layers, child_key, entries, entry, values_of
from jaxnn.sequences import Sequences
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Params, State, Tree

NAMES = ("forward", "backward")


class bidirectional(Layer):
    """A recurrent layer that reads the sequence from its beginning, and one like it that reads it from its end.

    Forward, x [N, T, D] → y [N, T, 2H], or [N, 2H] of a layer that returns the last state:

        y = [f(x), R g(R x)]      R turns time round; the last state of g is that after the first step

    Backward, δ = [δ_f, δ_g]:  ∂C/∂x = ∂f/∂xᵀ δ_f + R ∂g/∂xᵀ R δ_g.

    Parameters are `{"forward": …, "backward": …}`, each the layer's own. A mask is turned round with the values; an
    initial state is a pair, (f's, g's).

    Args:
        layer: `rnn`, `gru` or `lstm`, or a network of them, that returns sequences or the last state.
        reverse: the layer that reads from the end, where it is not one like the other.

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
        for name, layer, part in zip(NAMES, self.children, _initial_of_each(in_shape), strict=True):
            with inside(name):
                params[name], state[name] = layer.init(child_key(key, name), part, dtype)
        return entries(params) or {}, entries(state)

    def forward(self, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        there, back = _initial_of_each(x)
        outputs, states, tape = {}, {}, {}
        for name, layer, part in zip(NAMES, self.children, (there, _turned(back)), strict=True):
            with inside(name), jax.named_scope(name):
                outputs[name], states[name], tape[name] = layer.forward(
                    entry(params, name, {}), entry(state, name, ()), part, train=train, rng=layer_key(rng, name)
                )
        y, y_back = (_array(outputs[name]) for name in NAMES)
        in_time = y.ndim == 3  # [N, T, H], and not [N, H]; x may be tokens [N, T]
        values = jnp.concatenate([y, _reversed(y_back) if in_time else y_back], axis=-1)
        mask = outputs[NAMES[0]].mask if isinstance(outputs[NAMES[0]], Sequences) else ()
        joined = Sequences(values, mask) if not isinstance(mask, tuple) else values
        return joined, entries(states, state), (tape, outline(joined))

    def backward(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        tape, joined = tape
        check_delta("bidirectional", delta, joined)
        values = _array(delta)
        in_time = values.ndim == 3
        deltas = jnp.split(values, 2, axis=-1)
        deltas[1] = _reversed(deltas[1]) if in_time else deltas[1]
        delta_in, grads = {}, {}
        parts = [delta._replace(values=half) if isinstance(delta, Sequences) else half for half in deltas]
        for name, layer, part in zip(NAMES, self.children, parts, strict=True):
            with inside(name), jax.named_scope(name):
                delta_in[name], grads[name] = layer.backward(entry(params, name, {}), tape[name], part)
        there, back = delta_in[NAMES[0]], _turned(delta_in[NAMES[1]])
        check_input_deltas("bidirectional", (values_of(there), values_of(back)))
        total = jax.tree.map(jnp.add, values_of(there), values_of(back))  # of tokens both are ()
        if isinstance(there, Sequences):
            given = jax.tree.leaves((there.initial, back.initial))
            total = Sequences(total, (), (there.initial, back.initial) if given else ())
        return total, entries(grads, params) or {}


def _initial_of_each(x: Any) -> tuple[Any, Any]:
    """What each direction reads: x with its own initial state."""
    if not isinstance(x, Sequences) or not jax.tree.leaves(x.initial):
        return x, x
    if not isinstance(x.initial, tuple) or len(x.initial) != 2:
        raise LayerError("bidirectional", "expects an initial state (forwards, backwards), a pair of states")
    there, back = x.initial
    return x._replace(initial=there), x._replace(initial=back)


def _array(y: Any) -> Any:
    values = y.values if isinstance(y, Sequences) else y
    if not hasattr(values, "ndim"):
        advice = "a layer that returns sequences or the last state"
        raise LayerError("bidirectional", f"expects {advice}, got an output of {len(values)} parts")
    return values


def _reversed(values: Array) -> Array:
    return values[:, ::-1]


def _turned(x: Any) -> Any:
    """The same with time turned round."""
    if isinstance(x, Sequences):
        return x._replace(values=_turned(x.values), mask=_turned(x.mask))
    return (
        _reversed(x) if getattr(x, "ndim", 0) > 1 else x
    )  # () has no δ; of one axis the layer says that it is too few
