"""What a recurrent layer reads: sequences, a mask where their lengths differ, a state to begin with.

Layers that work on each step alone take such a record as well, and hand mask and state on: `over_steps`. Combinators
work on its values (`values_of`, `with_values`), put branches together (`joined`, `parted`) and turn time round
(`turned`): what treats `Sequences` unlike arrays is here.

N batch, T time, D features in, H width of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating, outline
from jaxnn.errors import LayerError
from jaxnn.shapes import check_delta, features
from jaxnn.showing import shown
from jaxnn.types import Array, DType, Forward, InShape, Key, Layer, Outline, Params, Shape, State, Tree


@shown()
class Sequences(NamedTuple):
    """A batch of sequences for a recurrent layer; `()` stands for what is left out, and for the δ of the mask.

    Attributes:
        values: [N, T, D], or tokens [N, T] for `embedding`. It hands the mask on, as `dense`, `dropout`, `layer_norm`,
            `rms_norm`, `softmax` and activations do; `residual` adds values and `parallel` joins them. Where the mask
            is False, recurrent layers and `embedding` do not look: NaN and indices out of range do no harm there;
            losses and metrics do not count what a network gives there.
        mask: [N, T] of booleans, True where there is something to read; all of it without a mask. A step that is
            masked leaves the state as it was, wherever it stands.
        initial: the state before the first step, zeros without one: [N, H] of `rnn` and `gru`, a pair (h, c) of such
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

    values: Any
    mask: Any = ()
    initial: Any = ()


def as_sequences(x: Any) -> Sequences:
    """An array as sequences without mask and initial state."""
    return x if isinstance(x, Sequences) else Sequences(x)


def is_given(part: Tree) -> bool:
    """False for the `()` that stands for a mask or a state left out."""
    return isinstance(part, Outline) or not (isinstance(part, tuple) and not part)


# ---------------------------------------------------------------- what is read


def read_sequences(kind: str, x: Any, parts: tuple[str, ...], width: int) -> Sequences:
    """Makes x `Sequences` of the right shapes and dtypes; errors blame the input.

    `parts` names the arrays of a state, such as h and c.
    """
    x = as_sequences(x)
    shape = _values_shape(kind, x.values)
    if is_given(x.mask):
        _check_mask(kind, x.mask, shape[:2])
    if is_given(x.initial):
        _check_initial(kind, x.initial, parts, (shape[0], width))
    return x


def _values_shape(kind: str, values: Any) -> Shape:
    shape = features(kind, values)
    if len(shape) != 3:
        advice = (
            "x[..., None] for one feature a step" if len(shape) == 2 else "reshape each step to one axis of features"
        )
        raise LayerError(kind, f"expects sequences [N, T, D], got x of shape {shape}: {advice}")
    if shape[1] == 0:
        raise LayerError(kind, f"expects at least one step, got x of shape {shape}: its time axis is empty")
    return shape


def _check_mask(kind: str, mask: Any, expected: Shape) -> None:
    shape, dtype = getattr(mask, "shape", None), getattr(mask, "dtype", None)
    if shape is None or dtype is None:
        raise LayerError(kind, f"expects a mask of shape {expected}, got {type(mask).__name__}")
    if tuple(shape) != expected:
        raise LayerError(kind, f"expects a mask [N, T] of shape {expected}, got {tuple(shape)}")
    if dtype != jnp.bool_:
        raise LayerError(
            kind, f"expects a mask of booleans, got {dtype}: use mask != 0, or jnp.arange(T) < lengths[:, None]"
        )


def _check_initial(kind: str, initial: Any, parts: tuple[str, ...], expected: Shape) -> None:
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


# ---------------------------------------------------------------- layers that work on each step alone


def hidden(values: Array, mask: Array) -> Array:
    """The values with 0 where they are masked: what stands there must not reach a product, where 0 · NaN is NaN."""
    return jnp.where(mask[..., None], values, 0)


class _OfSequences(NamedTuple):
    """The tape of a layer that was given Sequences."""

    of_values: Tree
    others: tuple[Tree, Tree]  # the outlines of the mask and of the initial state


L = TypeVar("L", bound=Layer)


def over_steps(*, hide: bool = False, rank: int = 2) -> Callable[[type[L]], type[L]]:
    """A class of layers that work on each step alone now takes `Sequences` too: f of their values, with their mask.

    With `hide` it sees 0 where the mask is False. Values with a mask have `rank` axes at least: a layer that reads the
    last axis as features needs 3, or it would mix the steps.
    """

    def decorate(cls: type[L]) -> type[L]:
        init_of, forward_of, backward_of, factors_of = cls.init, cls.forward, cls.backward, cls.factors
        axes_of = cls.batch_axes

        @wraps(init_of)
        def init(self: Any, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
            return init_of(self, key, in_shape.values if isinstance(in_shape, Sequences) else in_shape, dtype)

        @wraps(forward_of)
        def forward(
            self: Any, params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
        ) -> Forward:
            if not isinstance(x, Sequences):
                return forward_of(self, params, state, x, train=train, rng=rng)
            if is_given(x.mask) and hasattr(x.values, "shape"):
                _check_masked(self.kind, x, rank)
            values = tokens_seen(self.kind, x) if hide else x.values
            y, state, tape = forward_of(self, params, state, values, train=train, rng=rng)
            return x._replace(values=y), state, _OfSequences(tape, outline((x.mask, x.initial)))

        @wraps(backward_of)
        def backward(self: Any, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
            if not isinstance(tape, _OfSequences):
                return backward_of(self, params, tape, delta)
            if not isinstance(delta, Sequences):
                raise LayerError(self.kind, f"expects δ like its output, Sequences, got {type(delta).__name__}")
            check_delta(self.kind, delta[1:], tape.others)
            delta_in, grads = backward_of(self, params, tape.of_values, delta.values)
            return delta._replace(values=delta_in), grads

        @wraps(factors_of)
        def factors(self: Any, params: Params, tape: Tree, delta: Any) -> Tree:
            if not isinstance(tape, _OfSequences):
                return factors_of(self, params, tape, delta)
            return factors_of(self, params, tape.of_values, delta.values)

        @wraps(axes_of)
        def batch_axes(self: Any, tape: Tree) -> Tree:
            if not isinstance(tape, _OfSequences):
                return axes_of(self, tape)
            axes = axes_of(self, tape.of_values)
            return None if axes is None else tape._replace(of_values=axes)

        cls.init, cls.forward, cls.backward = init, forward, backward  # type: ignore[method-assign]
        cls.factors, cls.batch_axes = factors, batch_axes  # type: ignore[method-assign]
        return cls

    return decorate


def _check_masked(kind: str, x: Sequences, rank: int) -> None:
    """There is an entry of the mask for each step, and the axis of time is not that of the features."""
    shape = tuple(x.values.shape)
    if len(shape) < rank:
        expected = "sequences [N, T, D]" if rank == 3 else "sequences [N, T, …]"
        raise LayerError(kind, f"expects {expected} where there is a mask, got values of shape {shape}")
    _check_mask(kind, x.mask, shape[:2])


def tokens_seen(kind: str, x: Sequences) -> Any:
    """The tokens [N, T], 0 where they are masked."""
    if not is_given(x.mask) or not hasattr(x.values, "shape"):
        return x.values
    _check_mask(kind, x.mask, tuple(x.values.shape))
    return jnp.where(x.mask, x.values, 0)


# ---------------------------------------------------------------- combinators


def values_of(x: Any) -> Any:
    """The array, of Sequences their values."""
    return x.values if isinstance(x, Sequences) else x


def with_values(x: Any, values: Any) -> Any:
    """The same with other values: a mask and an initial state stay."""
    return x._replace(values=values) if isinstance(x, Sequences) else values


def masks_of(x: Any) -> list[Array]:
    """The mask, where there is one."""
    return [x.mask] if isinstance(x, Sequences) and is_given(x.mask) else []


def _in_one_form(kind: str, outputs: dict[str, Any]) -> bool:
    """Whether the outputs by name are `Sequences`; raises LayerError where some are and some not: masks would go."""
    given = {isinstance(y, Sequences) for y in outputs.values()}
    if len(given) > 1:
        shown = ", ".join(f"{name}: {type(y).__name__}" for name, y in outputs.items())
        raise LayerError(kind, f"expects branches that all return Sequences or all arrays, got {shown}")
    return given == {True}


def joined(kind: str, values: Any, outputs: dict[str, Any]) -> Any:
    """Values made of those of several outputs, with the mask and the state of the first that hands them on."""
    if not _in_one_form(kind, outputs):
        return values
    first = lambda parts: next(filter(is_given, parts), ())  # noqa: E731
    return Sequences(values, first(y.mask for y in outputs.values()), first(y.initial for y in outputs.values()))


def parted(delta: Any, deltas: list[Any], outputs: list[Any]) -> list[Any]:
    """The δ of each of several outputs: values `deltas`, and that of the state for the first that handed it on."""
    if not isinstance(delta, Sequences):
        return deltas
    nothing = lambda s: jnp.zeros(s.shape, s.dtype)  # noqa: E731
    states = [jax.tree.map(nothing, y.initial, is_leaf=lambda part: isinstance(part, Outline)) for y in outputs]
    first = next((i for i, y in enumerate(outputs) if is_given(y.initial)), None)
    return [
        Sequences(part, (), delta.initial if i == first else state)
        for i, (part, state) in enumerate(zip(deltas, states, strict=True))
    ]


def turned(x: Any) -> Any:
    """The same with time turned round, its second axis; what has none is as it was, such as () for a δ."""
    if isinstance(x, Sequences):
        return x._replace(values=turned(x.values), mask=turned(x.mask))
    return x[:, ::-1] if getattr(x, "ndim", 0) > 1 else x


def both_ways(kind: str, x: Any) -> tuple[Any, Any]:
    """What each direction of time reads: x with its own of the pair of initial states."""
    if not isinstance(x, Sequences) or not jax.tree.leaves(x.initial):
        return x, x
    if not isinstance(x.initial, tuple) or len(x.initial) != 2:
        raise LayerError(kind, "expects an initial state (forwards, backwards), a pair of states")
    there, back = x.initial
    return x._replace(initial=there), x._replace(initial=back)


def of_both_ways(kind: str, values: Any, outputs: dict[str, Any]) -> Any:
    """Values that were made of those of both directions, with the mask of the first and the pair of their states."""
    if not _in_one_form(kind, outputs):
        return values
    there, back = outputs.values()
    states = there.initial, back.initial
    return Sequences(values, there.mask, states if any(map(is_given, states)) else ())
