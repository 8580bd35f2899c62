"""Forward and backward through time, common to all recurrent cells.

Forward, s the state (h, or h and c), from s₀:     sₜ = cell(xₜ, sₜ₋₁),   t = 1 … T
Backward, with δₜ = ∂C/∂sₜ and εₜ the δ of the output hₜ, from t = T down to 1:

    δₜ ← δₜ + εₜ
    δₜ₋₁, ∂C/∂xₜ, gₜ = cell.backward(δₜ);      ∂C/∂θ = Σₜ gₜ;      ∂C/∂s₀ = δ₀

Both are a `lax.scan`. The gradients of the weights are summed within the reverse scan: one product over all steps after
it would need the δ of every step, and takes longer (at the sizes of benchmarks/recurrent.py 28.4 ms for rnn, with four
steps in the body of the loop 26.0). Where x and h enter the same gates, [x, h] is one operand (lstm: 14.8 ms a step,
16.9 with two products).

N batch, T time, D features in, H width of the state, G gates.
Source: Werbos (1990), "Backpropagation through time: what it does and how to do it".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxnn import initializers
from jaxnn.arrays import widest
from jaxnn.checks import whole_number
from jaxnn.errors import LayerError
from jaxnn.factors import Outer
from jaxnn.keys import as_key
from jaxnn.mistakes import initializer
from jaxnn.parameters import as_given, check_shape, drawn_by_gates
from jaxnn.sequences import Sequences, as_sequences, hidden, is_given, read_sequences
from jaxnn.shapes import check_delta, input_spec
from jaxnn.spmd.axes import axes_of, by_device, placed
from jaxnn.spmd.loops import scan
from jaxnn.tapes import all_along
from jaxnn.types import Array, DType, Forward, Initializer, InShape, Key, Layer, Outline, Params, Shape, State, Tree

RETURNS = ("sequence", "values", "last", "both")

Carried: TypeAlias = tuple[Array, ...]  # a cell's state, h first
Sum: TypeAlias = tuple[Carried, Params]  # δ of the state, and the gradients summed so far
Sums: TypeAlias = Callable[..., Params]  # (x, h before the step, *ζ) -> the step's gradients; ζ is ∂C/∂z, or α, μ, …


class Cell(NamedTuple):
    """The form of a cell."""

    parts: tuple[str, ...]  # the arrays of the state by name, h first
    gates: int  # G; w is [D, GH], w_h [H, GH], b [GH]
    more: tuple[str, ...] = ()  # names of further biases [H]
    unroll: int = 1  # the number of steps in the body of a loop
    # the index of the ζ from which each parameter's gradient is formed
    of: Mapping[str, int] = {"w": 0, "w_h": 0, "b": 0}


class _Steps(NamedTuple):
    """The inputs of the steps, time first."""

    x: Array  # [T, N, D]
    mask: Array | None  # [T, N]
    cut: Array | None  # [T], True where the gradient is not carried from this step to the one before


class _Tape(NamedTuple):
    steps: _Steps
    kept: Tree  # of every step; with recompute the states at the start of each piece
    initial: Carried
    like: Tree  # x without its examples: its parts, their shapes and dtypes


# ---------------------------------------------------------------- the layer


class Recurrent(Layer):
    """Base of the recurrent layers, which have these fields, a `cell`, and one step of it, forward and back."""

    cell: ClassVar[Cell]

    if TYPE_CHECKING:
        width: int
        _: KW_ONLY
        returns: str
        truncate: int | None
        recompute: bool
        w_init: Initializer | None
        w_h_init: Initializer | None
        b_init: Initializer | None

        def step(self, params: Params, x: Array, state: Carried) -> tuple[Carried, Tree]:
            """One step, x [N, D] → the new state, and what backward needs, h before the step first."""

        def step_back(
            self, params: Params, x: Array, kept: Tree, delta: Carried, sums: Sums = ...
        ) -> tuple[Carried, Array, Params]:
            """From δ of the state after the step: δ of the state before it, δ of x, and sums(x, h, *ζ)."""

    def __post_init__(self) -> None:
        kind = self.kind
        for name in ("w_init", "w_h_init", "b_init"):
            initializer(f"{kind}: {name}", getattr(self, name))
        self._set(width=whole_number(f"{kind}: width", self.width, least=1))
        if self.returns not in RETURNS:
            raise ValueError(f"{kind}: returns must be one of {', '.join(map(repr, RETURNS))}, got {self.returns!r}")
        if self.truncate is not None:
            self._set(truncate=whole_number(f"{kind}: truncate", self.truncate, least=1))
        if not isinstance(self.recompute, bool):
            raise TypeError(f"{kind}: recompute must be True or False, got {self.recompute!r}")

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        spec = read_sequences(self.kind, input_spec(in_shape, dtype), self.cell.parts, self.width)
        b_init = self.b_init or initializers.zeros()
        inits = {
            "w": self.w_init or initializers.glorot_uniform(),
            "w_h": self.w_h_init or initializers.orthogonal(),
            **dict.fromkeys(("b", *self.cell.more), b_init),
        }
        key, shapes = as_key(key), _shapes(self, spec.values.shape[-1])
        keys = [jax.random.fold_in(key, i) for i in range(len(shapes))]
        leaves = {name: (inits[name], key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
        return drawn_by_gates(self.kind, dtype, self.width, **leaves), ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        given = read_sequences(self.kind, x, self.cell.parts, self.width)
        _check_params(self, params, given.values.shape)
        steps, initial = _read(self, params, given)
        run = _pieces if self.recompute else _steps
        final, h, kept = run(self, _in(steps.x.dtype, params), steps, initial, self.returns != "last")
        tape = _Tape(steps, kept, initial, jax.tree.map(lambda leaf: leaf[:0], x))
        if h is None:  # only the last is wanted
            return final[0], state, tape
        values = jnp.swapaxes(h, 0, 1)
        if self.returns == "both":
            return (values, final if len(final) > 1 else final[0]), state, tape
        masked = self.returns == "sequence" and is_given(given.mask)
        return (Sequences(values, given.mask) if masked else values), state, tape

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        delta_in, grads = self.unrounded(params, tape, delta, jnp.float32)
        return delta_in, as_given(params, grads)

    def unrounded(self, params: Params, tape: Tree, delta: Tree, dtype: DType) -> tuple[Tree, Params]:
        wide = widest(tape.steps.x.dtype, dtype)  # of sums

        def run(params: Params, tape: _Tape, delta: Tree) -> tuple[Tree, Params]:
            nothing = jax.tree.map(lambda p: jnp.zeros(p.shape, wide), params)
            (before, total), delta_x = _run_back(self, self, params, tape, delta, nothing)
            return (jnp.swapaxes(delta_x, 0, 1), before), total

        axes = None, self.batch_axes(tape), 0
        (delta_x, before), grads = by_device(run, (params, tape, delta), axes)
        return _like(tape.like, delta_x, before), grads

    def factors(self, params: Params, tape: Tree, delta: Tree) -> Params:
        """xₜ, hₜ₋₁ or 1, and the ζ of each step, from one pass backward through time."""
        _, (h, zetas) = _run_back(self, _Noting(self), params, tape, delta, {})
        found = jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), (tape.steps.x, h, zetas))
        sides = {"w": found[0], "w_h": found[1]}
        return {name: Outer(sides.get(name), found[2][i]) for name, i in self.cell.of.items()}

    def batch_axes(self, tape: Tree) -> Tree:
        """Time comes first in what is kept of steps, or of pieces."""
        steps = tape.steps._replace(x=1, mask=None if tape.steps.mask is None else 1, cut=None)
        return _Tape(steps, all_along(1, tape.kept), all_along(0, tape.initial), all_along(None, tape.like))

    def uncounted(self, x: Tree) -> tuple[int, Tree]:
        """The number of x's steps that XLA's count of FLOPs omits, and x with two steps, of which it counts one.

        Of a loop it counts the body, once (see `summary`).
        """
        unroll = self.cell.unroll
        counted = lambda length: unroll + length % unroll if length > unroll else min(length, 1)  # noqa: E731
        values = as_sequences(x).values
        length = values.shape[1]
        parts = _sizes(length) if self.recompute else (length,)
        cut = lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], 2, *leaf.shape[2:]), leaf.dtype)  # noqa: E731
        left_out = length - sum(map(counted, parts))
        if not isinstance(x, Sequences):
            return left_out, cut(values)
        return left_out, Sequences(cut(values), cut(x.mask) if is_given(x.mask) else (), x.initial)


class _Noting:
    """A layer whose backward step gives h and the ζs in place of ∂C/∂x, and sums nothing."""

    def __init__(self, layer: Recurrent) -> None:
        self.cell, self.step, self.layer = layer.cell, layer.step, layer

    def step_back(self, params: Params, x: Array, kept: Tree, delta: Carried) -> tuple[Carried, Tree, Params]:
        noted: list[Array] = []

        def note(x: Array, *h_and_zetas: Array) -> Params:
            noted.extend(h_and_zetas)
            return {}

        before, _, grads = self.layer.step_back(params, x, kept, delta, note)
        return before, (noted[0], tuple(noted[1:])), grads


Stepping: TypeAlias = Recurrent | _Noting


def _run_back(
    layer: Recurrent, stepping: Stepping, params: Params, tape: _Tape, delta: Tree, total: Params
) -> tuple[tuple[Carried, Params], Tree]:
    """Backward through time from δ of the output: (δ₀, `total` + ∂C/∂θ), and ∂C/∂x of each step."""
    steps, kept, initial, _ = tape
    check_delta(layer.kind, delta, _output(steps, initial, layer.returns))
    nothing = tuple(jnp.zeros_like(s) for s in initial)
    at_output, at_final = None, nothing
    if layer.returns == "last":
        at_final = (delta, *nothing[1:])
    elif layer.returns == "both":
        at_output, at_final = delta[0], delta[1] if len(initial) > 1 else (delta[1],)
    else:
        at_output = as_sequences(delta).values
    if at_output is not None:
        at_output = jnp.swapaxes(at_output, 0, 1)
    run_back = _pieces_back if layer.recompute else _steps_back
    return run_back(stepping, _in(steps.x.dtype, params), steps, kept, initial, at_output, (at_final, total))


# ---------------------------------------------------------------- all steps kept


def _steps(
    layer: Stepping, params: Params, steps: _Steps, state: Carried, every_step: bool
) -> tuple[Carried, Array | None, Tree]:
    """The state after the last step, h of every step if it is wanted, and what backward needs."""

    def step(state: Carried, at: _Steps) -> tuple[Carried, tuple[Array | None, Tree]]:
        if at.cut is not None:  # for jax.grad, which must stop where the hand-derived rule does
            state = tuple(jnp.where(at.cut, jax.lax.stop_gradient(s), s) for s in state)
        new, kept = layer.step(params, at.x, state)
        if at.mask is not None:
            new = _where(at.mask, new, state)
        return new, (new[0] if every_step else None, kept)

    final, (h, kept) = scan(step, state, steps, unroll=_unroll(layer, steps))
    return final, h, kept


def _steps_back(
    layer: Stepping, params: Params, steps: _Steps, kept: Tree, initial: Carried, at_output: Array | None, carry: Sum
) -> tuple[Sum, Tree]:
    """(δ₀, ∂C/∂θ) and ∂C/∂x of every step from (δ_T, the sum so far)."""

    def step(carry: Sum, at: tuple[_Steps, Tree, Array | None]) -> tuple[Sum, Tree]:
        delta, total = carry
        (x, mask, cut), kept, epsilon = at
        if epsilon is not None:
            delta = (delta[0] + epsilon, *delta[1:])
        nothing = tuple(jnp.zeros_like(d) for d in delta)
        through = delta if mask is None else _where(mask, delta, nothing)
        before, delta_x, grads = layer.step_back(params, x, kept, through)
        if mask is not None:  # a masked step passes δ on unchanged
            before = tuple(b + p for b, p in zip(before, _where(mask, nothing, delta), strict=True))
        if cut is not None:
            before = tuple(jnp.where(cut, 0, b) for b in before)
        return (before, jax.tree.map(lambda sum, g: sum + g.astype(sum.dtype), total, grads)), delta_x

    return scan(step, carry, (steps, kept, at_output), reverse=True, unroll=_unroll(layer, steps))


def _unroll(layer: Stepping, steps: _Steps) -> int:
    return layer.cell.unroll if steps.x.shape[0] > layer.cell.unroll else 1


def _where(mask: Array, there: Carried, elsewhere: Carried) -> Carried:
    return tuple(jnp.where(mask[:, None], a, b) for a, b in zip(there, elsewhere, strict=True))


# ---------------------------------------------------------------- only every √T-th state kept
# Backward runs each piece of about √T steps forward again before it runs it backward: memory for 2√T steps instead of
# T, at the cost of one forward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost").


def _sizes(length: int) -> tuple[int, int]:
    size = max(1, round(math.sqrt(length)))
    return length % size, size


def _cut_up(tree: Tree) -> tuple[Tree, Tree]:
    """The first T mod s steps, and the others in pieces of s = √T rounded, [⌊T/s⌋, s, …]."""
    length = jax.tree.leaves(tree)[0].shape[0]
    first, size = _sizes(length)
    pieces = lambda a: a[first:].reshape(length // size, size, *a.shape[1:])  # noqa: E731
    return jax.tree.map(lambda a: a[:first], tree), jax.tree.map(pieces, tree)


def _put_together(head: Array, pieces: Array) -> Array:
    return jnp.concatenate([head, pieces.reshape(-1, *pieces.shape[2:])])


def _pieces(
    layer: Stepping, params: Params, steps: _Steps, state: Carried, every_step: bool
) -> tuple[Carried, Array | None, Tree]:
    """As `_steps`, but keeps the states before each piece for backward."""
    head, pieces = _cut_up(steps)

    def piece(state: Carried, at: _Steps) -> tuple[Carried, tuple[Carried, Array | None]]:
        after, h, _ = _steps(layer, params, at, state, every_step)
        return after, (state, h)

    state, first, _ = _steps(layer, params, head, state, every_step)
    final, (starts, h) = scan(piece, state, pieces)
    if h is not None and first is not None:
        h = _put_together(first, h)
    return final, h, starts


def _pieces_back(
    layer: Stepping, params: Params, steps: _Steps, starts: Tree, initial: Carried, at_output: Array | None, carry: Sum
) -> tuple[Sum, Tree]:
    """As `_steps_back`."""
    head, pieces = _cut_up((steps, at_output))

    def piece(carry: Sum, at: tuple[tuple[_Steps, Array | None], Carried]) -> tuple[Sum, Tree]:
        (steps, at_output), start = at
        _, _, kept = _steps(layer, params, steps, start, False)
        return _steps_back(layer, params, steps, kept, start, at_output, carry)

    carry, delta_x = scan(piece, carry, (pieces, starts), reverse=True)
    carry, first = piece(carry, (head, initial))
    return carry, jax.tree.map(_put_together, first, delta_x)


# ---------------------------------------------------------------- in and out


def _read(layer: Recurrent, params: Params, x: Sequences) -> tuple[_Steps, Carried]:
    """The inputs of the steps, and the state before the first."""
    (n, length, _), parts, truncate = x.values.shape, layer.cell.parts, layer.truncate
    dtype = widest(params["w"].dtype, x.values.dtype)
    values = hidden(x.values, x.mask) if is_given(x.mask) else x.values
    mask = jnp.swapaxes(x.mask, 0, 1) if is_given(x.mask) else None
    cut = None
    if truncate is not None and truncate < length:
        cut = jnp.array([t > 0 and (length - t) % truncate == 0 for t in range(length)])
    if is_given(x.initial):
        initial = x.initial if len(parts) > 1 else (x.initial,)
        initial = tuple(s.astype(dtype) for s in initial)
    else:
        nothing = lambda values: jnp.zeros((n, layer.width), dtype)  # noqa: E731
        initial = tuple(placed(nothing, values, axes=(axes_of(values)[0], None)) for _ in parts)
    return _Steps(jnp.swapaxes(values, 0, 1).astype(dtype), mask, cut), initial


def _output(steps: _Steps, initial: Carried, returns: str) -> Tree:
    """The outlines of the output of forward."""
    length, n, _ = steps.x.shape
    final = tuple(Outline(s.shape, s.dtype) for s in initial)
    values = Outline((n, length, *initial[0].shape[1:]), steps.x.dtype)
    if returns == "last":
        return final[0]
    if returns == "both":
        return values, final if len(final) > 1 else final[0]
    masked = returns == "sequence" and steps.mask is not None
    return Sequences(values, Outline((n, length), jnp.bool_)) if masked else values


def _in(dtype: DType, params: Params) -> Params:
    """The parameters in the precision of the computation, the higher of theirs and x's."""
    return jax.tree.map(lambda p: p.astype(dtype), params)


def _like(like: Tree, delta_x: Array, before: Carried) -> Tree:
    """δ_in in the form of x."""
    given = as_sequences(like)
    delta_x = delta_x.astype(given.values.dtype)
    if not isinstance(like, Sequences):
        return delta_x
    if not is_given(given.initial):
        return Sequences(delta_x)
    state = before if len(before) > 1 else before[0]
    return Sequences(delta_x, (), jax.tree.map(lambda d, s: d.astype(s.dtype), state, given.initial))


# ---------------------------------------------------------------- parameters


def _shapes(layer: Recurrent, in_features: int) -> dict[str, Shape]:
    width, wide = layer.width, layer.cell.gates * layer.width
    return {"w": (in_features, wide), "w_h": (width, wide), "b": (wide,), **dict.fromkeys(layer.cell.more, (width,))}


def _check_params(layer: Recurrent, params: Params, x_shape: Shape) -> None:
    expected = _shapes(layer, x_shape[-1])
    if set(params) != set(expected):
        complaint = f"expects parameters {', '.join(expected)}, got {sorted(params)}"
        raise LayerError(layer.kind, complaint, about_params=True)
    got = jnp.shape(params["w"])
    if got != expected["w"] and got[1:] == expected["w"][1:]:
        raise LayerError(layer.kind, f"expects {got[0]} features, got x of shape {tuple(x_shape)}")
    for name, shape in expected.items():
        check_shape(layer.kind, params, name, shape)
