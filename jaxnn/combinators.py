"""Networks from layers: a combinator of layers is again a layer, and its backward composes theirs.

`serial` runs the backward functions right to left, `residual` adds the skip's δ, `parallel` adds the branches',
`repeat` is a reverse `lax.scan` over stacked parameters, `share` adds the gradients of its uses. The δ recursion
of backpropagation is written down nowhere else.

`map_layers` rebuilds a network with each leaf layer replaced: whatever one wants to know at a layer while δ
passes is done that way, and never by a second traversal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn import activations, initializers
from jaxnn.checks import (
    LayerError,
    as_key,
    describe,
    input_spec,
    inside,
    is_floating,
    layer_key,
    name_hash,
    named_leaves,
    whole_number,
)
from jaxnn.layers.activation import activation as activation_layer
from jaxnn.layers.dense import dense
from jaxnn.types import (
    Activation,
    DType,
    Initializer,
    InShape,
    Key,
    Layer,
    Params,
    State,
    Tagged,
    Tree,
)

# ---------------------------------------------------------------- in sequence


def serial(*layers: Layer | Activation) -> Layer:
    """Layers one after another.

    Forward:   y = (f_L ∘ … ∘ f₂ ∘ f₁)(x).
    Backward:  δˡ⁻¹, gradsˡ = backwardˡ(δˡ)  for l = L … 1: the recursion of backpropagation.

    Parameters and state are dicts with one entry per layer that has any, by name: a name given by `named`,
    else the kind and its count, dense_0, dense_1. With no layers it is the identity.

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
    children = _layers("serial", layers)
    names = _names("serial", children)
    stages = tuple(zip(names, children, strict=True))

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = {}, {}
        spec = input_spec(in_shape, dtype)
        for name, layer in stages:
            with inside(name):
                params[name], state[name] = layer.init(_child_key(key, name), _shape_of(spec), dtype)
                spec = _output_spec(layer, params[name], state[name], spec)
        return _entries(params) or {}, _entries(state)

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        states, tape = {}, {}
        for name, layer in stages:
            with inside(name), jax.named_scope(name):
                x, states[name], tape[name] = layer.forward(
                    _entry(params, name, {}),
                    _entry(state, name, ()),
                    x,
                    train=train,
                    rng=layer_key(rng, name),
                )
        return x, _entries(states), tape

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        grads = {}
        for name, layer in reversed(stages):
            with inside(name), jax.named_scope(name):
                delta, grads[name] = layer.backward(_entry(params, name, {}), tape[name], delta)
        return delta, _entries({name: grads[name] for name in names}) or {}

    return _combinator("serial", init, forward, backward, children, names, lambda new: serial(*new))


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
    if isinstance(widths, int) or not len(widths):
        raise ValueError(f"mlp: widths must list at least the output width, as in mlp([128, 10]), got {widths!r}")
    for i, width in enumerate(widths):
        whole_number(f"mlp: widths[{i}]", width, least=1)
    nonlinearity = activation_layer(activation)
    hidden_init = w_init
    if hidden_init is None and activation.leak is not None:
        hidden_init = initializers.he_normal(activation.leak)
    *hidden, out = widths
    layers = [layer for width in hidden for layer in (dense(width, w_init=hidden_init, b_init=b_init), nonlinearity)]
    return serial(*layers, dense(out, w_init=w_init, b_init=b_init))


def repeat(layer: Layer | Activation, n: int) -> Layer:
    """The same kind of layer n times in sequence, each time with parameters of its own, stacked.

    Forward: xᵢ₊₁ = f(θᵢ, xᵢ), a `lax.scan` over θ stacked on a leading axis of n. Backward: the reverse scan.
    Compiles once whatever n is. Parameters, state and readings are the layer's, with a leading axis of n.

    Args:
        layer: any layer whose output has its input's shape and dtype.
        n: how often, at least 1.

    Raises:
        ValueError: if the layer changes the shape or dtype of x.

    >>> params, _ = repeat(serial(dense(8), activations.relu), 5).init(jax.random.key(0), (8,))
    >>> params["dense_0"]["w"].shape
    (5, 8, 8)
    """
    n = whole_number("repeat: n", n, least=1)
    (child,) = _layers("repeat", (layer,))

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        keys = jax.vmap(lambda i: jax.random.fold_in(as_key(key), i))(jnp.arange(n))
        params, state = jax.vmap(lambda key: child.init(key, in_shape, dtype))(keys)
        _check_kept("repeat", child, jax.tree.map(lambda leaf: leaf[0], (params, state)), input_spec(in_shape, dtype))
        return params, state

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        def once(x: Any, args: tuple[Params, State, Any]) -> tuple[Any, tuple[State, Tree]]:
            params, state, i = args
            y, state, tape = child.forward(params, state, x, train=train, rng=_pass_key(rng, i))
            _check_same("repeat", x, y)
            return y, (state, tape)

        y, (state, tape) = jax.lax.scan(once, x, (params, state, jnp.arange(n)))
        return y, state, tape

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        def once(delta: Any, args: tuple[Params, Tree]) -> tuple[Any, Params]:
            return child.backward(*args, delta)

        return jax.lax.scan(once, delta, (params, tape), length=n, reverse=True)

    return _combinator("repeat", init, forward, backward, (child,), ("",), lambda new: repeat(new[0], n))


def share(layer: Layer | Activation, n: int) -> Layer:
    """One layer n times in sequence, every time with the same parameters (tied weights).

    Forward: xᵢ₊₁ = f(θ, xᵢ); the state passes from use to use. Backward: ∂C/∂θ = Σᵢ ∂C/∂θᵢ, the sum over the uses.
    Parameters and state are the layer's own; readings get a leading axis of n, one entry per use.

    Args:
        layer: any layer whose output has its input's shape and dtype.
        n: how often, at least 1.

    Raises:
        ValueError: if the layer changes the shape or dtype of x.

    Source: Rumelhart, Hinton & Williams (1986), on weights that are constrained to be equal.

    >>> params, _ = share(serial(dense(8), activations.tanh), 5).init(jax.random.key(0), (8,))
    >>> params["dense_0"]["w"].shape
    (8, 8)
    """
    n = whole_number("share: n", n, least=1)
    (child,) = _layers("share", (layer,))

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = child.init(key, in_shape, dtype)
        _check_kept("share", child, (params, state), input_spec(in_shape, dtype))
        tied, own, join = _split(params)
        return join(tied, [jax.tree.map(lambda leaf: jnp.stack([leaf] * n), part) for part in own]), state

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        tied, own, join = _split(params)

        def once(carry: tuple[Any, State], args: tuple[Tree, Any]) -> tuple[tuple[Any, State], Tree]:
            (x, state), (own, i) = carry, args
            y, state, tape = child.forward(join(tied, own), state, x, train=train, rng=_pass_key(rng, i))
            _check_same("share", x, y)
            return (y, state), tape

        (y, state), tape = jax.lax.scan(once, (x, state), (own, jnp.arange(n)))
        return y, state, tape

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        tied, own, join = _split(params)
        own_last, tape_last = jax.tree.map(lambda leaf: leaf[-1], (own, tape))
        spec = jax.eval_shape(lambda: child.backward(join(tied, own_last), tape_last, delta)[1])
        total_spec, _, join_grads = _split(spec)

        def once(carry: tuple[Any, Tree], args: tuple[Tree, Tree]) -> tuple[tuple[Any, Tree], Tree]:
            (delta, total), (own, tape) = carry, args
            delta, grads = child.backward(join(tied, own), tape, delta)
            added, noted, _ = _split(grads)
            return (delta, jax.tree.map(jnp.add, total, added)), noted

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), total_spec)
        (delta, total), noted = jax.lax.scan(once, (delta, zeros), (own, tape), length=n, reverse=True)
        return delta, join_grads(total, noted)

    return _combinator("share", init, forward, backward, (child,), ("",), lambda new: share(new[0], n))


# ---------------------------------------------------------------- side by side


def residual(layer: Layer | Activation, skip: Layer | Activation | None = None) -> Layer:
    """A layer with a connection around it.

    Forward:   y = f(x) + s(x), s the identity unless a skip is given.
    Backward:  δ_in = ∂f/∂xᵀ δ + ∂s/∂xᵀ δ, with the identity's being δ itself.

    Without a skip, parameters are the layer's own; with one they are `{"body": …, "skip": …}`, whatever the two are
    named.

    Args:
        layer: f; without a skip its output must have x's shape and dtype.
        skip: s, a projection such as `dense(width)` where f changes the shape.

    Raises:
        ValueError: if f(x) and s(x) differ in shape or dtype. Nothing is broadcast.

    Source: He et al. (2016), "Deep residual learning for image recognition", equations 1 and 2.

    >>> net = residual(serial(dense(4), activations.relu, dense(3)))
    >>> net.forward(*net.init(jax.random.key(0), (3,)), jnp.ones((2, 3)))[0].shape
    (2, 3)
    """
    if skip is not None:
        return _projected_residual(*_layers("residual", (layer, skip)))
    (body,) = _layers("residual", (layer,))

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        y, state, tape = body.forward(params, state, x, train=train, rng=rng)
        _check_same("residual", x, y, "; give a projection, residual(layer, skip=dense(width))")
        integers = [describe(leaf) for leaf in jax.tree.leaves(y) if not is_floating(leaf)]
        if integers:
            raise LayerError("residual", f"adds x and f(x), which must be floats, got {', '.join(integers)}")
        return jax.tree.map(jnp.add, x, y), state, tape

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        delta_in, grads = body.backward(params, tape, delta)
        return jax.tree.map(jnp.add, delta, delta_in), grads

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = body.init(key, in_shape, dtype)
        jax.eval_shape(forward, params, state, input_spec(in_shape, dtype))  # raises where it does not fit
        return params, state

    return _combinator("residual", init, forward, backward, (body,), ("",), lambda new: residual(*new))


def _projected_residual(body: Layer, skip: Layer) -> Layer:
    children = (body._replace(name="body"), skip._replace(name="skip"))
    both = _side_by_side("residual", children, "sum")
    return both._replace(rebuild=lambda new: residual(*new))


def parallel(*layers: Layer | Activation, join: str = "concat") -> Layer:
    """Layers side by side on the same input.

    Forward:   y = [f₁(x), …, f_B(x)] along the last axis (`join="concat"`), or Σ_b f_b(x) (`join="sum"`).
    Backward:  δ_in = Σ_b ∂f_b/∂xᵀ δ_b, with δ_b the branch's part of δ, or δ itself for the sum.

    Parameters and state are dicts by name, as in `serial`.

    Args:
        *layers: at least one layer; Activation records are accepted too.
        join: "concat" or "sum".

    Raises:
        ValueError: if the branches' outputs do not fit together, or two layers have one name.

    Source: Szegedy et al. (2015), "Going deeper with convolutions", for concatenated branches.

    >>> net = parallel(dense(3), dense(5))
    >>> net.forward(*net.init(jax.random.key(0), (4,)), jnp.ones((2, 4)))[0].shape
    (2, 8)
    """
    if not layers:
        raise ValueError("parallel: needs at least one layer")
    if join not in ("concat", "sum"):
        raise ValueError(f"parallel: join must be 'concat' or 'sum', got {join!r}")
    both = _side_by_side("parallel", _layers("parallel", layers), join)
    return both._replace(rebuild=lambda new: parallel(*new, join=join))


def _side_by_side(kind: str, children: tuple[Layer, ...], join: str) -> Layer:
    names = _names(kind, children)
    branches = tuple(zip(names, children, strict=True))

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        outputs, states, tape = {}, {}, {}
        for name, layer in branches:
            with inside(name), jax.named_scope(name):
                outputs[name], states[name], tape[name] = layer.forward(
                    _entry(params, name, {}),
                    _entry(state, name, ()),
                    x,
                    train=train,
                    rng=layer_key(rng, name),
                )
        widths = [y[:0] for y in outputs.values()] if join == "concat" else []
        return _joined(kind, join, outputs), _entries(states), (tape, widths)

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        tapes, widths = tape
        deltas = [delta] * len(branches)
        if join == "concat":
            ends = [sum(width.shape[-1] for width in widths[: i + 1]) for i in range(len(widths))]
            deltas = jnp.split(delta, ends[:-1], axis=-1)
        delta_in, grads = None, {}
        for (name, layer), branch_delta in zip(branches, deltas, strict=True):
            with inside(name), jax.named_scope(name):
                back, grads[name] = layer.backward(_entry(params, name, {}), tapes[name], branch_delta)
            delta_in = back if delta_in is None else jax.tree.map(jnp.add, delta_in, back)
        return delta_in, _entries(grads) or {}

    def init(key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        params, state = {}, {}
        for name, layer in branches:
            with inside(name):
                params[name], state[name] = layer.init(_child_key(key, name), in_shape, dtype)
        params, state = _entries(params) or {}, _entries(state)
        jax.eval_shape(forward, params, state, input_spec(in_shape, dtype))  # raises where the branches do not fit
        return params, state

    return _combinator(kind, init, forward, backward, children, names, None)


# ---------------------------------------------------------------- names, and walking through a network


def named(name: str, layer: Layer | Activation) -> Layer:
    """The same layer under a name of the user's, which becomes its key in parameters, state and readings.

    Raises:
        ValueError: if name is empty or holds a "/", which separates the parts of a path.

    >>> list(serial(named("encoder", dense(2)), dense(1)).init(jax.random.key(0), (4,))[0])
    ['encoder', 'dense_0']
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"named: a name is a non-empty string without '/', got {name!r}")
    return _layers("named", (layer,))[0]._replace(name=name)


def map_layers(f: Callable[[Layer], Layer], net: Layer) -> Layer:
    """The same network with `f(layer)` in place of every leaf layer; names given by the user are kept.

    >>> from jaxnn.layers import activation
    >>> swap = lambda layer: activation(activations.tanh) if layer.kind == "relu" else layer
    >>> map_layers(swap, mlp([4, 4, 2])).child_names
    ('dense_0', 'tanh_0', 'dense_1', 'tanh_1', 'dense_2')
    """
    if net.rebuild is None:
        (new,) = _layers("map_layers", (f(net),))
    else:
        new = net.rebuild(tuple(map_layers(f, child) for child in net.children))
    return new if new.name is not None or net.name is None else new._replace(name=net.name)


def leaf_layers(net: Layer) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """Yields (path, layer) for every leaf layer in the network's own order.

    The path is the layer's place in parameters, state and readings; () where the network is one leaf.

    >>> [("/".join(path), layer.kind) for path, layer in leaf_layers(residual(mlp([3, 3])))]
    [('dense_0', 'dense'), ('relu_0', 'relu'), ('dense_1', 'dense')]
    """
    if net.rebuild is None:
        yield (), net
    for name, child in zip(net.child_names, net.children, strict=True):
        for path, leaf in leaf_layers(child):
            yield (name, *path) if name else path, leaf


def ordered_leaves(net: Layer, tree: Tree) -> dict[str, Any]:
    """The leaves of a tree keyed like params, by path, in the network's own order.

    Dict pytrees flatten in sorted order, dense_10 before dense_2; reports follow the network.

    >>> net = mlp([2] * 12)
    >>> list(ordered_leaves(net, net.init(jax.random.key(0), (2,))[0]))[4:7]
    ['dense_2/b', 'dense_2/w', 'dense_3/b']
    """
    leaves: dict[str, Any] = {}
    for path, _ in leaf_layers(net):
        part = tree
        for name in path:
            part = _entry(part, name, {})
        for name, leaf in named_leaves(part).items():
            leaves["/".join((*path, name) if name else path)] = leaf
    return leaves


# ---------------------------------------------------------------- inner parts


def _combinator(
    kind: str,
    init: Any,
    forward: Any,
    backward: Any,
    children: tuple[Layer, ...],
    names: tuple[str, ...],
    rebuild: Any,
) -> Layer:
    coupled = any(child.couples_batch for child in children)
    return Layer(kind, init, forward, backward, coupled, children=children, child_names=names, rebuild=rebuild)


def _layers(kind: str, layers: Sequence[Any]) -> tuple[Layer, ...]:
    for layer in layers:
        if not isinstance(layer, (Layer, Activation)):
            hint = "; a factory needs its parentheses, flatten()" if callable(layer) else ""
            raise TypeError(f"{kind}: expected layers or Activation records, got {layer!r}{hint}")
    return tuple(activation_layer(layer) if isinstance(layer, Activation) else layer for layer in layers)


def _names(kind: str, children: tuple[Layer, ...]) -> tuple[str, ...]:
    """A name for each child: the user's, or its kind and how many unnamed ones of that kind came before."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for child in children:
        count = counts.get(child.kind, 0)
        if child.name is None:
            counts[child.kind] = count + 1
        names.append(f"{child.kind}_{count}" if child.name is None else child.name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{kind}: two layers are named {twice[0]!r}; names within a combinator must differ")
    return tuple(names)


def _entry(tree: Tree, name: str, empty: Tree) -> Tree:
    return tree[name] if isinstance(tree, dict) and name in tree else empty


def _entries(parts: dict[str, Tree]) -> Tree:
    """The parts that hold anything, or ()."""
    return {name: part for name, part in parts.items() if jax.tree.leaves(part, is_leaf=_is_tagged)} or ()


def _child_key(key: Key, name: str) -> Key:
    return jax.random.fold_in(as_key(key), name_hash(name))


def _pass_key(rng: Key | None, i: Any) -> Key | None:
    return None if rng is None else jax.random.fold_in(as_key(rng), i)


def _shape_of(spec: Tree) -> InShape:
    """`in_shape` of a batched spec, its first axis taken off."""
    if isinstance(spec, jax.ShapeDtypeStruct) and jnp.issubdtype(spec.dtype, jnp.floating):
        return spec.shape[1:]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), spec)


def _output_spec(layer: Layer, params: Params, state: State, spec: Tree) -> Tree:
    return jax.eval_shape(lambda params, state, x: layer.forward(params, state, x)[0], params, state, spec)


def _check_same(kind: str, x: Any, y: Any, advice: str = "") -> None:
    """The output must have the input's shape and dtype."""
    structures: list[Any] = [jax.tree.structure(x), jax.tree.structure(y)]
    same = structures[0] == structures[1] and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )
    if not same:
        shown_x, shown_y = (", ".join(map(describe, jax.tree.leaves(tree))) for tree in (x, y))
        raise LayerError(kind, f"expects a layer that keeps the shape of x, got {shown_x} -> {shown_y}{advice}")


def _check_kept(kind: str, layer: Layer, variables: tuple[Params, State], spec: Tree) -> None:
    _check_same(kind, spec, _output_spec(layer, *variables, spec))


def _joined(kind: str, join: str, outputs: dict[str, Any]) -> Any:
    """The branches' outputs as one; nothing is broadcast."""
    axes = -1 if join == "concat" else None
    first, *others = outputs.values()
    if any(y.shape[:axes] != first.shape[:axes] or y.dtype != first.dtype for y in others):
        shown = ", ".join(f"{name}: {describe(y)}" for name, y in outputs.items())
        what = "agree in all axes but the last" if join == "concat" else "have one shape"
        raise LayerError(kind, f"expects branches whose outputs {what}, got {shown}")
    return jnp.concatenate([first, *others], axis=-1) if join == "concat" else sum(others, first)


def _is_tagged(tree: Tree) -> bool:
    return isinstance(tree, Tagged)


def _split(tree: Tree) -> tuple[Tree, list[Tree], Callable[[Tree, list[Tree]], Tree]]:
    """What all uses share, what each use has of its own, and how to put the two together again."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_tagged)
    tied = [leaf.tied if _is_tagged(leaf) else leaf for leaf in leaves]
    own = [leaf.own if _is_tagged(leaf) else () for leaf in leaves]

    def join(tied: Tree, own: list[Tree]) -> Tree:
        pairs = zip(leaves, tied, own, strict=True)
        return jax.tree.unflatten(structure, [Tagged(t, o) if _is_tagged(leaf) else t for leaf, t, o in pairs])

    return tied, own, join
