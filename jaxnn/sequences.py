"""Sequences, the input of recurrent layers: values, a mask for lengths that differ, and an initial state.

Layers that work on each step separately take `Sequences` too, and pass mask and state on (`over_steps`). Combinators
work on the values (`values_of`, `with_values`), join branches (`joined`, `parted`) and reverse time (`turned`). All
code that treats `Sequences` and arrays differently is in this module.

N batch, T time, D features in, H width of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating, outline
from jaxnn.errors import LayerError
from jaxnn.shapes import check_delta, features
from jaxnn.showing import shown
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Outline, Params, Shape, State, Tree


@shown()
class Sequences(NamedTuple):
    """A batch of sequences for a recurrent layer; `()` stands for a part that is left out, and for the δ of the mask.

    Attributes:
        values: [N, T, D], or tokens [N, T] for `embedding`. `embedding` passes the mask on, as do `dense`, `dropout`,
            `layer_norm`, `rms_norm`, `softmax` and activations; `residual` adds values and `parallel` joins them. Where
            the mask is False, recurrent layers and `embedding` ignore the values, NaN and indices out of range
            included, and losses and metrics ignore the network's output.
        mask: [N, T] of booleans, True at the steps to read; without a mask, all of them. A masked step, at any
            position, leaves the state unchanged.
        initial: the state before the first step, by default zeros: [N, H] of `rnn` and `gru`, a pair (h, c) of such
            of `lstm`, a pair (forwards, backwards) of states in `bidirectional`.

    >>> import jax
    >>> from jaxnn import rnn
    >>> x = Sequences(jnp.ones((2, 3, 1)), mask=jnp.array([[True, True, True], [True, False, False]]))
    >>> layer = rnn(1, returns="last")
    >>> params = {"w": jnp.ones((1, 1)), "w_h": jnp.ones((1, 1)), "b": jnp.zeros(1)}
    >>> h, _, _ = layer.forward(params, (), x)
    >>> [round(float(last), 2) for last in h[:, 0]]  # of the second sequence it is tanh 1
    [0.96, 0.76]
    """

    values: Tree
    mask: Tree = ()
    initial: Tree = ()


def as_sequences(x: Tree) -> Sequences:
    """An array as sequences without mask and initial state."""
    return x if isinstance(x, Sequences) else Sequences(x)


def is_given(part: Tree) -> bool:
    """False for `()`, a mask or a state that is left out."""
    return isinstance(part, Outline) or not (isinstance(part, tuple) and not part)


# ---------------------------------------------------------------- checks


def read_sequences(kind: str, x: Tree, parts: tuple[str, ...], width: int) -> Sequences:
    """The input as `Sequences`, its shapes and dtypes checked; errors name the input.

    `parts` are the names of the state's arrays, such as h and c.
    """
    x = as_sequences(x)
    shape = _values_shape(kind, x.values)
    if is_given(x.mask):
        _check_mask(kind, x.mask, shape[:2])
    if is_given(x.initial):
        _check_initial(kind, x.initial, parts, (shape[0], width))
    return x


def _values_shape(kind: str, values: Tree) -> Shape:
    shape = features(kind, values)
    if len(shape) != 3:
        advice = (
            "x[..., None] for one feature a step" if len(shape) == 2 else "reshape each step to one axis of features"
        )
        raise LayerError(kind, f"expects sequences [N, T, D], got x of shape {shape}: {advice}")
    if shape[1] == 0:
        raise LayerError(kind, f"expects at least one step, got x of shape {shape}: its time axis is empty")
    return shape


def _check_mask(kind: str, mask: Tree, expected: Shape) -> None:
    shape, dtype = getattr(mask, "shape", None), getattr(mask, "dtype", None)
    if shape is None or dtype is None:
        raise LayerError(kind, f"expects a mask of shape {expected}, got {type(mask).__name__}")
    if tuple(shape) != expected:
        raise LayerError(kind, f"expects a mask [N, T] of shape {expected}, got {tuple(shape)}")
    if dtype != jnp.bool_:
        raise LayerError(
            kind, f"expects a mask of booleans, got {dtype}: use mask != 0, or jnp.arange(T) < lengths[:, None]"
        )


def _check_initial(kind: str, initial: Tree, parts: tuple[str, ...], expected: Shape) -> None:
    states = (initial,) if len(parts) == 1 else initial
    names = f"({', '.join(parts)})"
    if not isinstance(states, tuple) or len(states) != len(parts):
        got = f"{len(states)} of them" if isinstance(states, tuple) else type(states).__name__
        raise LayerError(kind, f"expects an initial state {names}, a tuple of {len(parts)} arrays, got {got}")
    for name, state in zip(parts, states, strict=True):
        if not hasattr(state, "shape") or not hasattr(state, "dtype"):
            advice = f"; the state of {kind} is the array h itself" if len(parts) == 1 else ""
            raise LayerError(kind, f"expects an initial {name} [N, H], got {type(state).__name__}{advice}")
        if tuple(state.shape) != expected:
            raise LayerError(kind, f"expects an initial {name} [N, H] of shape {expected}, got {tuple(state.shape)}")
        if not is_floating(state):
            raise LayerError(kind, f"expects an initial {name} of floats, got {state.dtype}")


# ---------------------------------------------------------------- layers that work on each step separately


def hidden(values: Array, mask: Array) -> Array:
    """The values, 0 where they are masked: a product would make NaN of 0 · NaN."""
    return jnp.where(mask[..., None], values, 0)


class _OfSequences(NamedTuple):
    """The tape of a layer that was given Sequences."""

    of_values: Tree
    others: tuple[Tree, Tree]  # the outlines of the mask and of the initial state


L = TypeVar("L", bound=Layer)


def over_steps(*, hide: bool = False, rank: int = 2) -> Callable[[type[L]], type[L]]:
    """A decorator: layers that work on each step separately take `Sequences` too, and apply f to the values.

    With `hide`, values are 0 where the mask is False. Values with a mask have at least `rank` axes: a layer that reads
    the last axis as features needs 3, or it would mix the steps.
    """

    def decorate(cls: type[L]) -> type[L]:
        init_of, forward_of, backward_of, factors_of = cls.init, cls.forward, cls.backward, cls.factors
        axes_of, unrounded_of = cls.batch_axes, cls.unrounded

        @wraps(init_of)
        def init(self: Layer, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
            return init_of(self, key, in_shape.values if isinstance(in_shape, Sequences) else in_shape, dtype)

        @wraps(forward_of)
        def forward(
            self: Layer, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None
        ) -> Forward:
            if not isinstance(x, Sequences):
                return forward_of(self, params, state, x, train=train, rng=rng)
            if is_given(x.mask) and hasattr(x.values, "shape"):
                _check_masked(self.kind, x, rank)
            values = tokens_seen(self.kind, x) if hide else x.values
            y, state, tape = forward_of(self, params, state, values, train=train, rng=rng)
            return x._replace(values=y), state, _OfSequences(tape, outline((x.mask, x.initial)))

        @wraps(backward_of)
        def backward(self: Layer, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
            if not isinstance(tape, _OfSequences):
                return backward_of(self, params, tape, delta)
            _check_sequences(self.kind, tape, delta)
            delta_in, grads = backward_of(self, params, tape.of_values, delta.values)
            return delta._replace(values=delta_in), grads

        @wraps(unrounded_of)
        def unrounded(self: Layer, params: Params, tape: Tree, delta: Tree, dtype: DType) -> tuple[Tree, Params]:
            if not isinstance(tape, _OfSequences):
                return unrounded_of(self, params, tape, delta, dtype)
            _check_sequences(self.kind, tape, delta)
            delta_in, grads = unrounded_of(self, params, tape.of_values, delta.values, dtype)
            return delta._replace(values=delta_in), grads

        @wraps(factors_of)
        def factors(self: Layer, params: Params, tape: Tree, delta: Tree) -> Tree:
            if not isinstance(tape, _OfSequences):
                return factors_of(self, params, tape, delta)
            return factors_of(self, params, tape.of_values, delta.values)

        @wraps(axes_of)
        def batch_axes(self: Layer, tape: Tree) -> Tree:
            if not isinstance(tape, _OfSequences):
                return axes_of(self, tape)
            axes = axes_of(self, tape.of_values)
            return None if axes is None else tape._replace(of_values=axes)

        cls.init, cls.forward, cls.backward = init, forward, backward  # type: ignore[method-assign]
        cls.factors, cls.batch_axes = factors, batch_axes  # type: ignore[method-assign]
        cls.unrounded = unrounded  # type: ignore[method-assign]
        return cls

    return decorate


def _check_sequences(kind: str, tape: _OfSequences, delta: Tree) -> None:
    """Raises LayerError unless δ is `Sequences`, with δ of an initial state where there is one."""
    if not isinstance(delta, Sequences):
        raise LayerError(kind, f"expects δ like its output, Sequences, got {type(delta).__name__}")
    check_delta(kind, delta[1:], tape.others)


def _check_masked(kind: str, x: Sequences, rank: int) -> None:
    """Raises LayerError unless the mask has an entry for each step, and time is not the axis of features."""
    shape = tuple(x.values.shape)
    if len(shape) < rank:
        expected = "sequences [N, T, D]" if rank == 3 else "sequences [N, T, …]"
        raise LayerError(kind, f"expects {expected} where there is a mask, got values of shape {shape}")
    _check_mask(kind, x.mask, shape[:2])


def tokens_seen(kind: str, x: Sequences) -> Tree:
    """The tokens [N, T], 0 where they are masked."""
    if not is_given(x.mask) or not hasattr(x.values, "shape"):
        return x.values
    _check_mask(kind, x.mask, tuple(x.values.shape))
    return jnp.where(x.mask, x.values, 0)


# ---------------------------------------------------------------- combinators


def values_of(x: Tree) -> Tree:
    """The array, or the values of Sequences."""
    return x.values if isinstance(x, Sequences) else x


def with_values(x: Tree, values: Tree) -> Tree:
    """The array or the Sequences with other values; mask and initial state stay."""
    return x._replace(values=values) if isinstance(x, Sequences) else values


def masks_of(x: Tree) -> list[Array]:
    """The mask in a list, empty without one."""
    return [x.mask] if isinstance(x, Sequences) and is_given(x.mask) else []


def _in_one_form(kind: str, outputs: dict[str, Tree]) -> bool:
    """Whether the outputs by name are `Sequences`; raises LayerError for a mixture, which would lose masks."""
    given = {isinstance(y, Sequences) for y in outputs.values()}
    if len(given) > 1:
        shown = ", ".join(f"{name}: {type(y).__name__}" for name, y in outputs.items())
        raise LayerError(kind, f"expects branches that all return Sequences or all arrays, got {shown}")
    return given == {True}


def joined(kind: str, values: Tree, outputs: dict[str, Tree]) -> Tree:
    """Values combined from several outputs, with the mask and the state of the first output that has them."""
    if not _in_one_form(kind, outputs):
        return values
    first = lambda parts: next(filter(is_given, parts), ())  # noqa: E731
    return Sequences(values, first(y.mask for y in outputs.values()), first(y.initial for y in outputs.values()))


def parted(delta: Tree, deltas: list[Tree], outputs: list[Tree]) -> list[Tree]:
    """The δ of each of several outputs: the values `deltas`, and the state's for the first output that has a state."""
    if not isinstance(delta, Sequences):
        return deltas
    nothing = lambda s: jnp.zeros(s.shape, s.dtype)  # noqa: E731
    states = [jax.tree.map(nothing, y.initial, is_leaf=lambda part: isinstance(part, Outline)) for y in outputs]
    first = next((i for i, y in enumerate(outputs) if is_given(y.initial)), None)
    return [
        Sequences(part, (), delta.initial if i == first else state)
        for i, (part, state) in enumerate(zip(deltas, states, strict=True))
    ]


def turned(x: Tree) -> Tree:
    """Time, the second axis, reversed; what has no such axis is unchanged, such as () for a δ."""
    if isinstance(x, Sequences):
        return x._replace(values=turned(x.values), mask=turned(x.mask))
    return x[:, ::-1] if getattr(x, "ndim", 0) > 1 else x


def both_ways(kind: str, x: Tree) -> tuple[Tree, Tree]:
    """The inputs of the two directions: x with the initial state of each."""
    if not isinstance(x, Sequences) or not jax.tree.leaves(x.initial):
        return x, x
    if not isinstance(x.initial, tuple) or len(x.initial) != 2:
        raise LayerError(kind, "expects an initial state (forwards, backwards), a pair of states")
    there, back = x.initial
    return x._replace(initial=there), x._replace(initial=back)


def of_both_ways(kind: str, values: Tree, outputs: dict[str, Tree]) -> Tree:
    """Values combined from both directions, with the mask of the first and the pair of their states."""
    if not _in_one_form(kind, outputs):
        return values
    there, back = outputs.values()
    states = there.initial, back.initial
    return Sequences(values, there.mask, states if any(map(is_given, states)) else ())
