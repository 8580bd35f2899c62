"""Layers in parallel on the same input: a layer and a skip connection, or branches that are joined."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating, outline
from jaxnn.combinators.parts import (
    OfSeveral,
    as_layers,
    axes_of_children,
    backward_of,
    check_same,
    entries,
    forward_of,
    init_of,
)
from jaxnn.errors import LayerError
from jaxnn.sequences import is_given, joined, parted, values_of, with_values
from jaxnn.shapes import check_delta, check_input_deltas, input_spec
from jaxnn.trees import describe
from jaxnn.types import Activation, DType, Forward, InShape, Key, Layer, Params, State, Tree


class residual(Layer):
    """A layer with a skip connection.

    Forward:   y = f(x) + s(x), s the identity by default.
    Backward:  δ_in = ∂f/∂xᵀ δ + ∂s/∂xᵀ δ, the second term δ itself for the identity.

    Without a skip, parameters are the layer's own; with one they are `{"body": …, "skip": …}`, whatever the names of
    the two. Of `Sequences` the values are added; f passes on mask and initial state.

    Args:
        layer: f; without a skip its output must have x's shape and dtype.
        skip: s, a projection such as `dense(width)` where f changes the shape.

    Raises:
        ValueError: if f(x) and s(x) differ in shape or dtype. Nothing is broadcast.

    Source: He et al. (2016), "Deep residual learning for image recognition", equations 1 and 2.

    >>> from jaxnn import dense, relu, serial
    >>> net = residual(serial(dense(4), relu, dense(3)))
    >>> net.forward(*net.init(jax.random.key(0), (3,)), jnp.ones((2, 3)))[0].shape
    (2, 3)
    """

    layer: Layer
    skip: Layer | None = None

    def __post_init__(self) -> None:
        self._set(layer=as_layers("residual", (self.layer,))[0])
        if self.skip is not None:
            self._set(skip=as_layers("residual", (self.skip,))[0])

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.layer,) if self.skip is None else (self.layer, self.skip)

    @property
    def child_names(self) -> tuple[str, ...]:
        return ("",) if self.skip is None else ("body", "skip")

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        return residual(*children)

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        if self.skip is not None:
            return _init_beside(self, key, in_shape, dtype)
        params, state = self.layer.init(key, in_shape, dtype)
        jax.eval_shape(self.forward, params, state, input_spec(in_shape, dtype))  # raises where it does not fit
        return params, state

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        if self.skip is not None:
            return _forward_beside(self, "sum", params, state, x, train, rng)
        y, state, tape = self.layer.forward(params, state, x, train=train, rng=rng)
        values, new = values_of(x), values_of(y)
        check_same("residual", values, new, "; give a projection, residual(layer, skip=dense(width))")
        integers = [describe(leaf) for leaf in jax.tree.leaves(new) if not is_floating(leaf)]
        if integers:
            raise LayerError("residual", f"adds x and f(x), which must be floats, got {', '.join(integers)}")
        y = with_values(y, jax.tree.map(jnp.add, values, new))  # f passes on mask and initial state
        return y, state, tape

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        if self.skip is not None:
            return _backward_beside(self, "sum", params, tape, delta)
        delta_in, grads = self.layer.backward(params, tape, delta)
        direct, through = values_of(delta), values_of(delta_in)
        check_input_deltas("residual", (direct, through))
        return with_values(delta_in, jax.tree.map(jnp.add, direct, through)), grads

    def batch_axes(self, tape: Tree) -> Tree:
        return self.layer.batch_axes(tape) if self.skip is None else _axes_beside(self, tape)


class parallel(OfSeveral):
    """Layers in parallel on the same input.

    Forward:   y = [f₁(x), …, f_B(x)] along the last axis (`join="concat"`), or Σ_b f_b(x) (`join="sum"`).
    Backward:  δ_in = Σ_b ∂f_b/∂xᵀ δ_b, with δ_b the branch's part of δ, or δ itself for the sum.

    Parameters and state are dicts by name, as in `serial`. Of branches that return `Sequences` the values are joined;
    mask and initial state are those of the first branch that returns them.

    Args:
        *layers: at least one layer; Activation records are accepted too.
        join: "concat" or "sum".

    Raises:
        ValueError: if the branches' outputs do not fit together, or two layers have one name.

    Source: Szegedy et al. (2015), "Going deeper with convolutions", for concatenated branches.

    >>> from jaxnn import dense
    >>> net = parallel(dense(3), dense(5))
    >>> net.forward(*net.init(jax.random.key(0), (4,)), jnp.ones((2, 4)))[0].shape
    (2, 8)
    """

    join: str = "concat"

    def __init__(
        self, *given: Layer | Activation, join: str = "concat", layers: Sequence[Layer | Activation] = ()
    ) -> None:
        if not (given or layers):
            raise ValueError("parallel: needs at least one layer")
        if join not in ("concat", "sum"):
            raise ValueError(f"parallel: join must be 'concat' or 'sum', got {join!r}")
        self._given(given, layers, join=join)

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        return parallel(*children, join=self.join)

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return _init_beside(self, key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        return _forward_beside(self, self.join, params, state, x, train, rng)

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        return _backward_beside(self, self.join, params, tape, delta)

    def batch_axes(self, tape: Tree) -> Tree:
        return _axes_beside(self, tape)


def _branches(of: Layer) -> Iterator[tuple[str, Layer]]:
    return zip(of.child_names, of.children, strict=True)


def _init_beside(of: Layer, key: Key, in_shape: InShape, dtype: DType) -> tuple[Params, State]:
    params, state = {}, {}
    for name, layer in _branches(of):
        params[name], state[name] = init_of(name, layer, key, in_shape, dtype)
    params, state = entries(params) or {}, entries(state)
    jax.eval_shape(of.forward, params, state, input_spec(in_shape, dtype))  # raises where the branches do not fit
    return params, state


def _forward_beside(
    of: Layer, join: str, params: Params, state: State, x: Tree, train: bool, rng: Key | None
) -> Forward:
    outputs, states, tape = {}, {}, {}
    for name, layer in _branches(of):
        outputs[name], states[name], tape[name] = forward_of(name, layer, params, state, x, train, rng)
    y = _joined(of.kind, join, outputs)
    return y, entries(states, state), (tape, outline((y, list(outputs.values()))))


def _backward_beside(of: Layer, join: str, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
    tapes, (y, outputs) = tape
    check_delta(of.kind, delta, y)
    delta_in, grads = None, {}
    for (name, layer), branch_delta in zip(_branches(of), _parted(join, delta, outputs), strict=True):
        back, grads[name] = backward_of(name, layer, params, tapes, branch_delta)
        if delta_in is not None:
            check_input_deltas(of.kind, (delta_in, back))
        delta_in = back if delta_in is None else jax.tree.map(jnp.add, delta_in, back)
    return delta_in, entries(grads, params) or {}


def _axes_beside(of: Layer, tape: Tree) -> Tree:
    tapes, outputs = tape  # the latter are outlines
    axes = axes_of_children(of, tapes)
    return None if axes is None else (axes, outputs)


def _joined(kind: str, join: str, outputs: dict[str, Tree]) -> Tree:
    """The joined outputs of the branches; nothing is broadcast."""
    axes = -1 if join == "concat" else None
    first, *others = (values_of(y) for y in outputs.values())
    parts = {name: type(y).__name__ for name, y in outputs.items() if not hasattr(values_of(y), "shape")}
    if parts:
        raise LayerError(kind, f"expects branches that return arrays or Sequences, got {parts}")
    if any(y.shape[:axes] != first.shape[:axes] or y.dtype != first.dtype for y in others):
        shown = ", ".join(f"{name}: {describe(values_of(y))}" for name, y in outputs.items())
        what = "agree in all axes but the last" if join == "concat" else "have one shape"
        raise LayerError(kind, f"expects branches whose outputs {what}, got {shown}")
    values = jnp.concatenate([first, *others], axis=-1) if join == "concat" else sum(others, first)
    return joined(kind, values, outputs)


def _parted(join: str, delta: Tree, outputs: list[Tree]) -> list[Tree]:
    """δ of each branch; that of an initial state belongs to the first branch that returned it."""
    values, deltas = values_of(delta), [values_of(delta)] * len(outputs)
    widths = [values_of(y).shape[-1] for y in outputs]
    if join == "concat" and is_given(values):  # () of integers
        deltas = jnp.split(values, list(itertools.accumulate(widths))[:-1], axis=-1)
    return parted(delta, deltas, outputs)
