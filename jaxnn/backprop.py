"""One forward and backward pass, derived twice: `backprop` by hand, `autodiff` by `jax.grad`.

Both build a function `(params, state, x, target, *, rng=None, weights=None) -> Pass` and agree to rounding. The
hand-derived pass is: forward with tapes, output δ from the loss, then `net.backward`: the recursion is the
composition of the layers' backward functions and stands in `combinators`.

Scale: the loss is C = Σₙ wₙ Cₙ / Σₙ wₙ. The output δ is multiplied by wₙ/Σw before the recursion (float16
products of unscaled δs overflow), so `grads` are ∂C/∂θ; the δs that readings see are multiplied back, ∂(Σ wₙCₙ)/∂z,
which without weights and without batch coupling is the textbook's δₙ = ∂Cₙ/∂zₙ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import (
    LayerError,
    accumulator,
    batch_size,
    example_shape,
    example_weights,
    is_concrete,
    is_floating,
    same_shapes,
    spec_tree,
    static_spec,
    usable_weights,
    weight_values,
)
from jaxnn.combinators import map_layers
from jaxnn.placement import made_varying, on_mesh, over_devices, varying
from jaxnn.readings import READINGS, entries_like, perturb, readings_of, unscaled, untag, watch, with_slots
from jaxnn.sequences import Sequences
from jaxnn.types import (
    Activation,
    Array,
    Key,
    Layer,
    Loss,
    Params,
    Pass,
    Penalty,
    Reading,
    State,
    Tree,
)


class PassFunction(Protocol):
    """`(params, state, x, target, *, rng=None, weights=None) -> Pass`."""

    def __call__(
        self,
        params: Params,
        state: State,
        x: Tree,
        target: Tree,
        *,
        rng: Key | None = None,
        weights: Array | None = None,
    ) -> Pass: ...


# ---------------------------------------------------------------- the two derivations


def backprop(
    net: Layer,
    loss: Loss,
    *,
    read: Sequence[str | Reading] = (),
    penalty: Penalty | None = None,
    train: bool = True,
) -> PassFunction:
    """The gradient by hand: the δ recursion.

        δᴸ = wₙ/Σw · ∂Cₙ/∂yₙ;   δˡ⁻¹, ∂C/∂θˡ = backwardˡ(δˡ)   for l = L … 1

    Args:
        net: the network.
        loss: a Loss record.
        read: what to note at every leaf layer: "deltas" (δ at its output, [N, …]), "delta_norms" (‖δ‖₂ over the
            batch, a scalar), or Reading records of your own.
        penalty: a Penalty record; becomes part of loss and grads.
        train: whether layers behave as in training. A Python bool.

    Returns:
        `fn(params, state, x, target, *, rng=None, weights=None) -> Pass`: x [N, …] (or a tree of such), target as
        the loss wants it, weights [N] non-negative (1 by default). Pure; works under jit, vmap and scan. Under jit
        a weight that is negative or not finite makes loss and δs NaN, and a batch without any weight, as a larger
        data set may hold, has loss 0 and gradients 0.

    Raises:
        ValueError: for an unknown reading; when called, if the parameters are another network's, if x, target
            and weights differ in batch size, if a backward rule gives gradients of another shape, or, outside jit,
            if a weight is negative or not finite, or all are 0.

    Source: Rumelhart, Hinton & Williams (1986); Nielsen (2015), ch. 2, BP1-BP4.

    >>> from jaxnn import losses
    >>> from jaxnn.combinators import mlp
    >>> net = mlp([3, 2])
    >>> params, state = net.init(jax.random.key(0), (4,))
    >>> x, labels = jnp.ones((5, 4)), jnp.zeros(5, jnp.int32)
    >>> out = backprop(net, losses.softmax_cross_entropy, read=("deltas",))(params, state, x, labels)
    >>> out.readings["deltas"]["dense_1"].shape
    (5, 2)
    """
    check_records("backprop", net, loss)
    readings = readings_of(read)

    def run(
        params: Params,
        state: State,
        x: Tree,
        target: Tree,
        *,
        rng: Key | None = None,
        weights: Array | None = None,
    ) -> Pass:
        _check_arguments(net, params, x, target, weights)
        output, new_state, tape = net.forward(params, state, x, train=train, rng=rng)
        value = cost(loss, output, target)
        share, total = _shares(value, weights)
        delta = loss.delta(output, target)
        same_shapes(f"loss {loss.name!r}: its delta is not like the prediction", delta, output, "δₙ = ∂Cₙ/∂yₙ:")
        delta = jax.tree.map(lambda d: _weigh(share, d), delta)
        watched = map_layers(lambda layer: watch(layer, readings, total), net) if readings else net
        _, noted = watched.backward(params, tape, delta)
        grads = entries_like(params, untag(noted, lambda tagged: tagged.tied))
        same_shapes("backward gave gradients that are not like the parameters", grads, params, "each leaf needs one:")
        grads = jax.tree.map(over_devices, grads, params)
        mean = _mean(value, share)
        if penalty is not None:
            mean = mean + _penalty_value(penalty, params).astype(mean.dtype)
            slopes = penalty.grad(params)
            same_shapes(f"penalty {penalty.name!r}: its grad is not like the parameters", slopes, params, ZEROS)
            slopes = jax.tree.map(over_devices, made_varying(slopes, varying(mean)), params)
            grads = jax.tree.map(lambda g, p: g + jnp.asarray(p, g.dtype), grads, slopes)

        def noted_by(i: int) -> Tree:
            return untag(noted, lambda tagged: tagged.own[i])

        return Pass(mean, grads, new_state, output, {r.name: noted_by(i) for i, r in enumerate(readings)}, total)

    return run


def autodiff(
    net: Layer,
    loss: Loss,
    *,
    read: Sequence[str | Reading] = (),
    penalty: Penalty | None = None,
    train: bool = True,
) -> PassFunction:
    """The same pass with the gradient by `jax.value_and_grad` through forward functions and loss value alone.

    Signature and result are `backprop`'s; no hand-derived rule is used. It reads "deltas" only: each leaf layer's
    output gets a perturbation of zero, and the gradient with respect to that is the layer's δ (one slot for every
    use of a shared layer).

    Raises:
        ValueError: as `backprop`, and for readings other than "deltas".

    Source: Griewank & Walther (2008), "Evaluating Derivatives"; the zero perturbation is the usual way to a
    gradient at an intermediate value.

    >>> from jaxnn import losses
    >>> from jaxnn.combinators import mlp
    >>> net = mlp([3, 2])
    >>> params, state = net.init(jax.random.key(0), (4,))
    >>> out = autodiff(net, losses.mse)(params, state, jnp.ones((5, 4)), jnp.zeros((5, 2)))
    >>> out.grads["dense_1"]["w"].shape
    (3, 2)
    """
    check_records("autodiff", net, loss)
    readings = readings_of(read)
    if any(reading != READINGS["deltas"] for reading in readings):
        names = [reading.name for reading in readings if reading != READINGS["deltas"]]
        raise ValueError(f"autodiff: reads 'deltas' only, not {names}: jax.grad has no tape to read from; use backprop")
    perturbed = map_layers(perturb, net) if readings else net

    def run(
        params: Params,
        state: State,
        x: Tree,
        target: Tree,
        *,
        rng: Key | None = None,
        weights: Array | None = None,
    ) -> Pass:
        _check_arguments(net, params, x, target, weights)

        def objective(slotted: Params) -> tuple[Array, tuple[State, Any, Array]]:
            output, new_state, _ = perturbed.forward(slotted, state, x, train=train, rng=rng)
            value = cost(loss, output if weights is None else _without(jnp.logical_not(weights), output), target)
            share, total = _shares(value, weights)
            mean = _mean(value, share)
            if penalty is not None:
                plain = entries_like(params, untag(slotted, lambda tagged: tagged.tied))
                mean = mean + _penalty_value(penalty, plain).astype(mean.dtype)
            return mean, (new_state, output, total)

        slotted = with_slots(perturbed, params, x) if readings else params
        with on_mesh(params, x):
            (mean, (new_state, output, total)), grads = jax.value_and_grad(objective, has_aux=True)(slotted)
        deltas = jax.tree.map(lambda d: unscaled(d, total), untag(grads, lambda tagged: tagged.own))
        grads = entries_like(params, untag(grads, lambda tagged: tagged.tied))
        return Pass(mean, grads, new_state, output, {reading.name: deltas for reading in readings}, total)

    return run


def autodiff_twin(layer: Layer) -> Layer:
    """The same layer with its backward replaced by `jax.vjp` of its forward: the reference for a hand rule.

    A combinator becomes one leaf, its children's hand-derived rules unused. For the twin of every leaf,
    `map_layers(autodiff_twin, net)`. The twin's tape is its input, and its backward runs the forward again.

    >>> from jaxnn.layers import dense
    >>> twin = autodiff_twin(dense(2))
    >>> params, state = twin.init(jax.random.key(0), (3,))
    >>> y, _, tape = twin.forward(params, state, jnp.ones((4, 3)))
    >>> twin.backward(params, tape, jnp.ones_like(y))[1]["b"].tolist()
    [4.0, 4.0]
    """

    def forward(
        params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]:
        y, new_state, _ = layer.forward(params, state, x, train=train, rng=rng)
        mode = jnp.zeros((0, int(train)))  # a tape holds arrays only: the flag travels as an empty array's shape
        return y, new_state, (state, x, rng, mode)

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        state, x, rng, mode = tape
        leaves, structure = jax.tree.flatten(x)
        floats = [leaf for leaf in leaves if is_floating(leaf)]

        def output(params: Params, floats: list[Array]) -> Any:
            left = iter(floats)
            x = jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else leaf for leaf in leaves])
            y, _, _ = layer.forward(params, state, x, train=bool(mode.shape[-1]), rng=rng)
            return [leaf for leaf in jax.tree.leaves(y) if is_floating(leaf)]  # δ has () for the others

        with on_mesh(params, x):
            grads, back = jax.vjp(output, params, floats)[1](jax.tree.leaves(delta))
        left = iter(back)
        return jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else () for leaf in leaves]), grads

    return layer._replace(forward=forward, backward=backward, children=(), child_names=(), rebuild=None)


def as_custom_vjp(net: Layer) -> Callable[..., tuple[Any, State]]:
    """The network as a plain function whose `jax.grad` runs through the hand-derived backward rules.

    For programs of one's own: `apply(params, state, x, *, train=False, rng=None) -> (y, state)`. The new state
    comes back under `stop_gradient`; integer inputs get JAX's float0. `jax.custom_vjp` forbids forward mode, and
    with it `jax.jvp`, `jax.linearize` and `jax.hessian`; use `net.forward` for those.

    >>> from jaxnn.layers import dense
    >>> net = dense(2)
    >>> params, state = net.init(jax.random.key(0), (3,))
    >>> apply = as_custom_vjp(net)
    >>> jax.grad(lambda p: apply(p, state, jnp.ones((4, 3)))[0].sum())(params)["b"].tolist()
    [4.0, 4.0]
    """

    def apply(
        params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State]:
        @jax.custom_vjp
        def run(params: Params, state: State, x: Tree, rng: Key | None) -> tuple[Any, State]:
            y, new_state, _ = net.forward(params, state, x, train=train, rng=rng)
            return y, new_state

        def run_forward(params: Params, state: State, x: Tree, rng: Key | None) -> tuple[Any, Tree]:
            y, new_state, tape = net.forward(params, state, x, train=train, rng=rng)
            return (y, new_state), (params, tape, jax.tree.map(lambda leaf: leaf[:0], x))

        def run_backward(kept: Tree, cotangent: tuple[Any, State]) -> tuple[Any, ...]:
            params, tape, x = kept
            delta_in, grads = net.backward(params, tape, cotangent[0])
            grads = jax.tree.map(lambda g, p: over_devices(g.astype(p.dtype), p), grads, params)
            return grads, None, _input_cotangent(x, delta_in, jax.tree.leaves(cotangent[0])[0].shape[0]), None

        run.defvjp(run_forward, run_backward)
        y, new_state = run(params, state, x, rng)
        return y, jax.lax.stop_gradient(new_state)

    return apply


# ---------------------------------------------------------------- arguments and scale


def _shares(value: Array, weights: Array | None) -> tuple[Array, Array]:
    """wₙ/Σw, [N] or the scalar 1/N, and Σw; in at least float32."""
    dtype = accumulator(value.dtype)
    if weights is None:
        return jnp.asarray(1 / value.shape[0], dtype), jnp.asarray(value.shape[0], dtype)
    w = usable_weights(weights, dtype)
    total = w.sum()
    return w / jnp.where(total == 0, 1, total), total  # a batch of weight 0 has cost 0 and teaches nothing


def _weigh(share: Array, values: Array) -> Array:
    """Values [N, …] times share; an example of weight 0 counts nothing, even if its value is NaN."""
    share = share.reshape(share.shape + (1,) * (values.ndim - 1)) if share.ndim else share
    weighed = (values.astype(share.dtype) * share).astype(values.dtype)  # 1/N and N may leave float16's range
    return jnp.where(share == 0, 0, weighed) if share.ndim else weighed


def _without(left_out: Array, output: Any) -> Any:
    """The output, through which no derivative reaches the examples left out: 0 · NaN would be NaN."""

    def guard(y: Array) -> Array:
        return jnp.where(left_out.reshape(-1, *(1,) * (y.ndim - 1)), jax.lax.stop_gradient(y), y)

    return jax.tree.map(guard, output)


def _mean(value: Array, share: Array) -> Array:
    return jnp.sum(_weigh(share, value.astype(share.dtype)))


def _input_cotangent(x: Tree, delta_in: Any, n: int) -> Any:
    """δ_in as JAX wants it: float0 zeros for integer leaves, where the library has ()."""

    def cotangent(leaf: Array, delta: Any) -> Any:
        if is_floating(leaf):
            return over_devices(delta.astype(leaf.dtype), leaf)
        return np.zeros((n, *leaf.shape[1:]), jax.dtypes.float0)

    return jax.tree.map(cotangent, x, delta_in)


ZEROS = "a leaf without a penalty has a grad of zeros:"


def cost(loss: Loss, output: Any, target: Tree) -> Array:
    """loss.value(output, target), held to be [N]: a mean over the batch, or a cost per entry, is another loss."""
    if isinstance(output, Sequences):
        raise TypeError(
            f"loss {loss.name!r} takes one array, and the network's output is Sequences with a mask: let the last "
            "recurrent layer return 'last', or 'values' to count every step, masked ones too"
        )
    n, value = batch_size("output", output), loss.value(output, target)
    if jnp.shape(value) != (n,):
        raise ValueError(
            f"loss {loss.name!r}: value must give one cost for each example, ({n},), got shape {jnp.shape(value)}"
        )
    return value


def _penalty_value(penalty: Penalty, params: Params) -> Array:
    value = jnp.asarray(penalty.value(params))
    if value.shape:
        raise ValueError(f"penalty {penalty.name!r}: value must be a scalar, got shape {value.shape}")
    return value


def check_records(where: str, net: Any, loss: Any) -> None:
    """The net and the loss are records, and not the factories of such."""
    for what, value, needs in (("net", net, Layer), ("loss", loss, Loss)):
        if not isinstance(value, needs):
            hint = "; a factory needs its parentheses, losses.huber()" if callable(value) else ""
            hint = "; make a layer of it, serial(relu)" if isinstance(value, Activation) else hint
            raise TypeError(f"{where}: {what} must be a {needs.__name__} record, got {value!r}{hint}")


def _check_arguments(net: Layer, params: Params, x: Tree, target: Tree, weights: Array | None) -> None:
    """Batch sizes that agree, and parameters that are this network's; static, so it costs nothing under jit."""
    n = batch_size("x", x)
    if n == 0:
        raise ValueError("x holds no examples (batch size 0)")
    if jax.tree.leaves(target) and batch_size("target", target) != n:
        m = batch_size("target", target)
        raise ValueError(f"x has {n} examples and target has {m}: the first axis of each counts the examples")
    if weights is not None:
        example_weights("weights", weights, n)
        if is_concrete(weights):
            weight_values("weights", weights)
    check_params(net, params, x)


def check_params(net: Layer, params: Params, x: Tree) -> None:
    """Raises ValueError if params are not those of net on inputs like x: the first differing paths, both shapes.

    An input with a wrong number of features is blamed itself. Looks at shapes alone, once for each set of shapes.
    """
    _check_shapes(net, static_spec(params), static_spec(x))


@lru_cache(maxsize=1024)
def _check_shapes(net: Layer, params_spec: Any, x_spec: Any) -> None:
    params, x = spec_tree(params_spec), spec_tree(x_spec)
    in_shape = example_shape(x)
    try:
        expected, state = jax.eval_shape(lambda key: net.init(key, in_shape), jax.random.key(0))
        same_shapes(
            f"the parameters are not those of this network on inputs of shape {in_shape}",
            params,
            expected,
            "expected what net.init gives:",
        )
    except ValueError as differs:
        try:
            state = jax.eval_shape(lambda key: net.init(key, in_shape)[1], jax.random.key(0))
        except (ValueError, TypeError):
            state = ()  # init has refused this input, in the shape of a batch of one; forward may say more
        try:
            jax.eval_shape(lambda params, state, x: net.forward(params, state, x)[0], params, state, x)
        except LayerError as error:
            if not error.about_params:
                raise error from None
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        raise differs
