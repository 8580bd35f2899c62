"""Layers in sequence: different ones, or one layer n times with separate or with shared parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxnn import activations, initializers
from jaxnn.arrays import outline
from jaxnn.checks import whole_number
from jaxnn.combinators.parts import (
    OfSeveral,
    as_layers,
    axes_of_children,
    backward_of,
    check_kept,
    check_same,
    entries,
    forward_of,
    init_of,
    is_tagged,
    output_spec,
    pass_key,
    shape_of,
)
from jaxnn.errors import inside
from jaxnn.keys import as_key
from jaxnn.layers.activation import activation as activation_layer
from jaxnn.layers.dense import dense
from jaxnn.mistakes import several
from jaxnn.shapes import check_delta, input_spec
from jaxnn.spmd.loops import scan
from jaxnn.types import Activation, Array, DType, Forward, Initializer, InShape, Key, Layer, Params, State, Tagged, Tree


class serial(OfSeveral):
    """Layers in sequence.

    Forward:   y = (f_L ∘ … ∘ f₂ ∘ f₁)(x).
    Backward:  δˡ⁻¹, gradsˡ = backwardˡ(δˡ)  for l = L … 1: the recursion of backpropagation.

    Parameters and state are dicts with one entry per layer that has any, by name: a name given by `named`,
    else the kind and its count, dense_0, dense_1. An entry is omitted only where the layer's `init` returned exactly
    `{}` or `()`; its forward and backward then receive `{}` for the parameters and `()` for the state. Without layers
    it is the identity.

    Args:
        *layers: layers; Activation records are accepted too.

    Raises:
        TypeError: for anything else.
        ValueError: if two layers have one name.

    Source: Rumelhart, Hinton & Williams (1986); Fong, Spivak & Tuyéras (2019).

    >>> net = serial(dense(3), activations.tanh, dense(2))
    >>> params, state = net.init(jax.random.key(0), (4,))
    >>> list(params), net.child_names
    (['dense_0', 'dense_1'], ('dense_0', 'tanh_0', 'dense_1'))
    """

    in_sequence = True

    def __init__(self, *given: Layer | Activation, layers: Sequence[Layer | Activation] = ()) -> None:
        self._given(given, layers)

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        return serial(*children)

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = {}, {}
        spec = input_spec(in_shape, dtype)
        for name, layer in self.each:
            params[name], state[name] = init_of(name, layer, key, shape_of(spec), dtype)
            with inside(name):
                spec = output_spec(layer, params[name], state[name], spec)
        return entries(params) or {}, entries(state)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        states, tape = {}, {}
        for name, layer in self.each:
            x, states[name], tape[name] = forward_of(name, layer, params, state, x, train, rng)
        return x, entries(states, state), tape if self.layers else outline(x)

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        grads = {}
        if not self.layers:
            check_delta("serial", delta, tape)
        for name, layer in reversed(list(self.each)):
            delta, grads[name] = backward_of(name, layer, params, tape, delta)
        return delta, entries({name: grads[name] for name in self.child_names}, params) or {}

    def batch_axes(self, tape: Tree) -> Tree:
        return axes_of_children(self, tape) if self.layers else tape  # without layers it is an outline


def mlp(
    widths: Sequence[int],
    activation: Activation = activations.relu,
    *,
    w_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Layer:
    """A multi-layer perceptron: dense layers with an activation between them; the last one is linear.

    hˡ = σ(hˡ⁻¹ Wˡ + bˡ) for the hidden layers, y = hᴸ⁻¹ Wᴸ + bᴸ. x [N, D] → y [N, widths[-1]].

    Args:
        widths: the hidden widths and then the output width: `mlp([128, 10])` has one hidden layer.
        activation: an Activation record, after every layer but the last.
        w_init: initializer of every W. By default it follows the activation: He's for the relu family
            (with the leak's gain), Glorot's otherwise and for the linear output.
        b_init: initializer of every b; zeros by default.

    Raises:
        ValueError: if widths is empty or a width is below 1.

    Source: Rosenblatt (1958); Rumelhart, Hinton & Williams (1986); He et al. (2015), eq. 15; Glorot & Bengio (2010).

    >>> params, _ = mlp([128, 10]).init(jax.random.key(0), (784,))
    >>> jax.tree.map(jnp.shape, params["dense_1"])
    {'b': (10,), 'w': (128, 10)}
    """
    if isinstance(widths, int) or (hasattr(widths, "__len__") and not len(widths)):
        raise ValueError(f"mlp: widths must list at least the output width, as in mlp([128, 10]), got {widths!r}")
    widths = several("mlp: widths", widths, "mlp([128, 10])")
    for i, width in enumerate(widths):
        whole_number(f"mlp: widths[{i}]", width, least=1)
    nonlinearity = activation_layer(activation)
    hidden_init = w_init
    if hidden_init is None and activation.leak is not None:
        hidden_init = initializers.he_normal(activation.leak)
    *hidden, out = widths
    layers = [layer for width in hidden for layer in (dense(width, w_init=hidden_init, b_init=b_init), nonlinearity)]
    return serial(*layers, dense(out, w_init=w_init, b_init=b_init))


class _ManyTimes(Layer):
    """Base of `repeat` and `share`."""

    layer: Layer
    n: int

    def __post_init__(self) -> None:
        kind = type(self).__name__
        self._set(n=whole_number(f"{kind}: n", self.n, least=1), layer=as_layers(kind, (self.layer,))[0])

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.layer,)

    @property
    def passes(self) -> int:
        return self.n

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        return type(self)(children[0], self.n)

    def batch_axes(self, tape: Tree) -> Tree:
        of_one_pass = jax.eval_shape(lambda tape: jax.tree.map(lambda leaf: leaf[0], tape), tape)
        return jax.tree.map(lambda axis: axis + 1, self.layer.batch_axes(of_one_pass))


class repeat(_ManyTimes):
    """A layer n times in sequence, each time with separate parameters.

    Forward: xᵢ₊₁ = f(θᵢ, xᵢ), a `lax.scan` over θ stacked on a leading axis of n. Backward: the reverse scan.
    The layer is compiled once for any n. Parameters, state and readings are the layer's, with a leading axis of n.

    Args:
        layer: any layer whose output has its input's shape and dtype.
        n: the number of repetitions, at least 1.

    Raises:
        ValueError: if the layer changes the shape or dtype of x.

    >>> params, _ = repeat(serial(dense(8), activations.relu), 5).init(jax.random.key(0), (8,))
    >>> params["dense_0"]["w"].shape
    (5, 8, 8)
    """

    stacks = True

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        keys = jax.vmap(lambda i: jax.random.fold_in(as_key(key), i))(jnp.arange(self.n))
        params, state = jax.vmap(lambda key: self.layer.init(key, in_shape, dtype))(keys)
        check_kept(
            "repeat", self.layer, jax.tree.map(lambda leaf: leaf[0], (params, state)), input_spec(in_shape, dtype)
        )
        return params, state

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        def once(x: Tree, args: tuple[Params, State, Array]) -> tuple[Tree, tuple[State, Tree]]:
            params, state, i = args
            y, state, tape = self.layer.forward(params, state, x, train=train, rng=pass_key(rng, i))
            check_same("repeat", x, y)
            return y, (state, tape)

        y, (state, tape) = scan(once, x, (params, state, jnp.arange(self.n)))
        return y, state, tape

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        def once(delta: Tree, args: tuple[Params, Tree]) -> tuple[Tree, Params]:
            return self.layer.backward(*args, delta)

        return scan(once, delta, (params, tape), length=self.n, reverse=True)


class share(_ManyTimes):
    """A layer n times in sequence, each time with the same parameters (tied weights).

    Forward: xᵢ₊₁ = f(θ, xᵢ); the state passes from use to use. Backward: ∂C/∂θ = Σᵢ ∂C/∂θᵢ, the sum over the uses.
    Parameters and state are the layer's own; readings get a leading axis of n, one entry per use.

    Args:
        layer: any layer whose output has its input's shape and dtype.
        n: the number of uses, at least 1.

    Raises:
        ValueError: if the layer changes the shape or dtype of x.

    Source: Rumelhart, Hinton & Williams (1986), on weights that are constrained to be equal.

    >>> params, _ = share(serial(dense(8), activations.tanh), 5).init(jax.random.key(0), (8,))
    >>> params["dense_0"]["w"].shape
    (8, 8)
    """

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = self.layer.init(key, in_shape, dtype)
        check_kept("share", self.layer, (params, state), input_spec(in_shape, dtype))
        tied, own, join = _split(params)
        return join(tied, [jax.tree.map(lambda leaf: jnp.stack([leaf] * self.n), part) for part in own]), state

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        tied, own, join = _split(params)

        def once(carry: tuple[Tree, State], args: tuple[Tree, Array]) -> tuple[tuple[Tree, State], Tree]:
            (x, state), (own, i) = carry, args
            y, state, tape = self.layer.forward(join(tied, own), state, x, train=train, rng=pass_key(rng, i))
            check_same("share", x, y)
            return (y, state), tape

        (y, state), tape = scan(once, (x, state), (own, jnp.arange(self.n)))
        return y, state, tape

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        tied, own, join = _split(params)
        own_last, tape_last = jax.tree.map(lambda leaf: leaf[-1], (own, tape))
        spec = jax.eval_shape(lambda: self.layer.backward(join(tied, own_last), tape_last, delta)[1])
        total_spec, _, join_grads = _split(spec)

        def once(carry: tuple[Tree, Tree], args: tuple[Tree, Tree]) -> tuple[tuple[Tree, Tree], Tree]:
            (delta, total), (own, tape) = carry, args
            delta, grads = self.layer.backward(join(tied, own), tape, delta)
            added, noted, _ = _split(grads)
            return (delta, jax.tree.map(jnp.add, total, added)), noted

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), total_spec)
        (delta, total), noted = scan(once, (delta, zeros), (own, tape), length=self.n, reverse=True)
        return delta, join_grads(total, noted)


def _split(tree: Tree) -> tuple[Tree, list[Tree], Callable[[Tree, list[Tree]], Tree]]:
    """The parts of a tree that all uses share, those of each use, and the function that joins the two again."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_tagged)
    within = [_split(leaf.tied) if is_tagged(leaf) else None for leaf in leaves]  # a tagged layer may hold others
    tied = [leaf if parts is None else parts[0] for leaf, parts in zip(leaves, within, strict=True)]
    own = [() if parts is None else (leaf.own, parts[1]) for leaf, parts in zip(leaves, within, strict=True)]

    def join(tied: Tree, own: list[Tree]) -> Tree:
        pairs = zip(within, tied, own, strict=True)
        return jax.tree.unflatten(
            structure, [t if parts is None else Tagged(parts[2](t, o[1]), o[0]) for parts, t, o in pairs]
        )

    return tied, own, join
