"""A forward and backward pass, derived twice: `backprop` by hand, `autodiff` by `jax.grad`.

Both build a function `(params, state, x, target, *, rng=None, weights=None, scale=None) -> Pass` and agree to
rounding. The hand-derived pass is: forward with tapes, output δ from the loss, then `net.backward`: the recursion is
the composition of the layers' backward functions, in `combinators`.

Scale: the loss is C = Σₙ wₙ Cₙ / Σₙ wₙ, with wₙ and Cₙ as in `weighting` where entries of an example (steps, pixels)
have weights of their own, or a mask. The output δ is multiplied by its share wₙ/Σw before the recursion (float16
products of unscaled δs overflow), so `grads` are ∂C/∂θ; the δs that readings see are multiplied back, ∂(Σ wₙCₙ)/∂z,
which without weights and without batch coupling is the textbook's δₙ = ∂Cₙ/∂zₙ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import accumulator, is_concrete, is_floating
from jaxnn.checks import example_weights, number, plain_data, weight_values
from jaxnn.mistakes import alive, loss_record, net_record, penalty_record
from jaxnn.optimizers.parts import real_floats
from jaxnn.passes.parts import check_params, costs, forward_pass, recursion, seed
from jaxnn.passes.readings import DELTAS, entries_like, readings_of, slotted, unscaled, untag
from jaxnn.shapes import batch_size
from jaxnn.spmd.axes import divided_like, gathered, made_varying, on_mesh, over_devices, varying
from jaxnn.trees import same_shapes
from jaxnn.types import Array, DType, Key, Layer, Loss, Params, Pass, Penalty, Reading, State, TrainState, Tree


class PassFunction(Protocol):
    """`(params, state, x, target, *, rng=None, weights=None, scale=None) -> Pass`."""

    def __call__(
        self,
        params: Params,
        state: State,
        x: Tree,
        target: Tree,
        *,
        rng: Key | None = None,
        weights: Array | None = None,
        scale: Array | float | None = None,
    ) -> Pass: ...


# ---------------------------------------------------------------- the two derivations


def backprop(
    net: Layer, loss: Loss, *, read: Sequence[str | Reading] = (), penalty: Penalty | None = None, train: bool = True
) -> PassFunction:
    """The gradient by hand: the δ recursion.

        δᴸ = wₙ/Σw · ∂Cₙ/∂yₙ;   δˡ⁻¹, ∂C/∂θˡ = backwardˡ(δˡ)   for l = L … 1

    Args:
        net: the network.
        loss: a Loss record.
        read: what to record at every leaf layer: "deltas" (δ at its output, [N, …]), "delta_norms" (‖δ‖₂ over the
            batch, a scalar), or your own Reading records. Their δ is ∂(Σₘ wₘCₘ)/∂z, Σw times what the recursion
            carries: see below.
        penalty: a Penalty record; becomes part of loss and grads.
        train: whether layers behave as in training. A Python bool.

    Returns:
        `fn(params, state, x, target, *, rng=None, weights=None, scale=None) -> Pass`: x [N, …] (or a tree of such),
        target as the loss expects it, weights non-negative (by default 1): [N], or [N, …] with one for each entry of
        the examples (steps, pixels), of a loss that has `entries`. Where the output or the target is `Sequences`, only
        entries with a True mask count. The others may have any target (a label of −100) and a prediction of NaN. Pure;
        works under jit, vmap and scan. Under jit a weight that is negative or not finite makes loss and δs NaN, and a
        batch whose weights are all 0, as a larger data set may contain, has loss 0 and gradients 0. With a scale s > 0,
        a number or a scalar, the recursion carries s δ, so that float16 does not underflow, and all that is returned is
        divided by s again, gradients in float32: see `loss_scaling`.

    Raises:
        ValueError: for an unknown reading; when called, if the parameters are another network's, if x, target
            and weights differ in batch size, if a backward rule gives gradients of another shape, or, outside jit,
            if a weight is negative or not finite, all are 0, or no entry counts.

    Units: `loss` and `grads` are of the mean, C = Σ wₙCₙ / Σw; a δ that is read is of the sum, Σ wₙCₙ, whatever the
    batch's size: for a dense layer grads["b"] is Σₙ δₙ / Σw. Without weights, and where no layer couples the batch, it
    is the textbook's δₙ = ∂Cₙ/∂zₙ; with weights it is wₙ ∂Cₙ/∂zₙ. Before batch norm in training, zₙ moves every
    example's cost, and δₙ is the total Σₘ wₘ ∂Cₘ/∂zₙ. The penalty is part of loss and grads, not of any δ.

    Source: Rumelhart, Hinton & Williams (1986); Nielsen (2015), ch. 2, BP1-BP4.

    >>> from jaxnn import losses
    >>> from jaxnn import mlp
    >>> net = mlp([3, 2])
    >>> params, state = net.init(jax.random.key(0), (4,))
    >>> x, labels = jnp.ones((5, 4)), jnp.zeros(5, jnp.int32)
    >>> out = backprop(net, losses.softmax_cross_entropy, read=("deltas",))(params, state, x, labels)
    >>> out.readings["deltas"]["dense_1"].shape
    (5, 2)
    """
    check_records("backprop", net, loss)
    penalty_record("backprop", penalty)
    readings = readings_of(read)

    def run(
        params: Params,
        state: State,
        x: Tree,
        target: Tree,
        *,
        rng: Key | None = None,
        weights: Array | None = None,
        scale: Array | float | None = None,
    ) -> Pass:
        _check_arguments("backprop", params, x, target, weights)
        own, params = params, gathered(params, x)
        output, new_state, tapes = forward_pass(net, params, state, x, train=train, rng=rng, read=readings)
        mean, weight, delta = seed(loss, output, target, weights)
        unit = weight
        if scale is not None:
            scale = _as_scale(scale, weight.dtype)
            delta, unit = jax.tree.map(lambda d: unscaled(d, scale), delta), weight / scale
        _, grads, noted = recursion(net, params, tapes, delta, readings, weight=unit)
        grads = _divided(grads, scale)
        if penalty is not None:
            mean = mean + penalty_value(penalty, params).astype(mean.dtype)
            slopes = penalty.grad(params)
            same_shapes(f"penalty {penalty.name!r}: its grad is not like the parameters", slopes, params, ZEROS)
            slopes = jax.tree.map(over_devices, made_varying(slopes, varying(mean)), params)
            grads = jax.tree.map(lambda g, p: g + jnp.asarray(p, g.dtype), grads, slopes)
        return Pass(mean, divided_like(grads, own), new_state, output, noted, weight)

    return run


def autodiff(
    net: Layer, loss: Loss, *, read: Sequence[str | Reading] = (), penalty: Penalty | None = None, train: bool = True
) -> PassFunction:
    """The same pass with the gradient by `jax.value_and_grad` through forward functions and loss value alone.

    Signature and result are `backprop`'s; no hand-derived rule is used. It reads "deltas" only: each leaf layer has a
    slot of zeros, like a perturbation of its output, and the gradient with respect to it is the layer's δ (one slot for
    every use of a shared layer).

    Raises:
        ValueError: as `backprop`, and for readings other than "deltas".

    Source: Griewank & Walther (2008), "Evaluating Derivatives".

    >>> from jaxnn import losses
    >>> from jaxnn import mlp
    >>> net = mlp([3, 2])
    >>> params, state = net.init(jax.random.key(0), (4,))
    >>> out = autodiff(net, losses.mse)(params, state, jnp.ones((5, 4)), jnp.zeros((5, 2)))
    >>> out.grads["dense_1"]["w"].shape
    (3, 2)
    """
    check_records("autodiff", net, loss)
    penalty_record("autodiff", penalty)
    readings = readings_of(read)
    if any(reading != DELTAS for reading in readings):
        names = [reading.name for reading in readings if reading != DELTAS]
        raise ValueError(f"autodiff: reads 'deltas' only, not {names}: jax.grad has no tape to read from; use backprop")
    slots = slotted(net, DELTAS) if readings else None

    def run(
        params: Params,
        state: State,
        x: Tree,
        target: Tree,
        *,
        rng: Key | None = None,
        weights: Array | None = None,
        scale: Array | float | None = None,
    ) -> Pass:
        _check_arguments("autodiff", params, x, target, weights)
        check_params(net, params, x)
        own, params = params, gathered(params, x)
        scale = None if scale is None else _as_scale(scale, jnp.result_type(float))
        instrumented = net if slots is None else slots.net

        def objective(given: Params) -> tuple[Array, tuple[Array, State, Tree, Array]]:
            output, new_state, _ = instrumented.forward(given, state, x, train=train, rng=rng)
            found = costs(loss, output, target, weights)
            mean = found.mean
            if penalty is not None:
                plain = entries_like(params, untag(given, lambda tagged: tagged.tied))
                mean = mean + penalty_value(penalty, plain).astype(mean.dtype)
            return mean if scale is None else mean * scale, (mean, new_state, output, found.total)

        with on_mesh(params, x):
            given = params if slots is None else slots.fill(params, state, x, train, rng)
            (_, (mean, new_state, output, total)), grads = jax.value_and_grad(objective, has_aux=True)(given)
        unit = total if scale is None else total / scale
        deltas = jax.tree.map(lambda d: unscaled(d, unit), untag(grads, lambda tagged: tagged.own.value))
        grads = _divided(entries_like(params, untag(grads, lambda tagged: tagged.tied)), scale)
        noted = {reading.name: deltas for reading in readings}
        return Pass(mean, divided_like(grads, own), new_state, output, noted, total)

    return run


def as_custom_vjp(net: Layer) -> Callable[..., tuple[Tree, State]]:
    """The network as a plain function whose `jax.grad` runs through the hand-derived backward rules.

    For your own programs: `apply(params, state, x, *, train=False, rng=None) -> (y, state)`. The new state
    comes back under `stop_gradient`; integer inputs get JAX's float0. `jax.custom_vjp` forbids forward mode through
    `apply` itself: `jax.jvp`, `jax.linearize` and `jax.jacfwd` of it end in a TypeError; use `net.forward` for those.
    Its gradient is made of plain functions, and can be differentiated in either mode: `jax.hessian`, `jax.grad` of
    `jax.grad` and `jax.jvp` of `jax.grad` work, through the derivatives of the backward rules.

    Source: Bradbury et al. (2018), JAX, for `jax.custom_vjp`; Pearlmutter (1994) for products with the Hessian.

    >>> from jaxnn import dense
    >>> net = dense(2)
    >>> params, state = net.init(jax.random.key(0), (3,))
    >>> apply = as_custom_vjp(net)
    >>> jax.grad(lambda p: apply(p, state, jnp.ones((4, 3)))[0].sum())(params)["b"].tolist()
    [4.0, 4.0]
    """
    net_record("as_custom_vjp", net)

    def apply(
        params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Tree, State]:
        @jax.custom_vjp
        def run(params: Params, state: State, x: Tree, rng: Key | None) -> tuple[Tree, State]:
            y, new_state, _ = net.forward(params, state, x, train=train, rng=rng)
            return y, new_state

        def run_forward(params: Params, state: State, x: Tree, rng: Key | None) -> tuple[Tree, Tree]:
            y, new_state, tape = net.forward(params, state, x, train=train, rng=rng)
            return (y, new_state), (params, tape, jax.tree.map(lambda leaf: leaf[:0], x))

        def run_backward(kept: Tree, cotangent: tuple[Tree, State]) -> tuple[Tree, ...]:
            params, tape, x = kept
            delta = jax.tree.map(lambda d: () if d.dtype == jax.dtypes.float0 else d, cotangent[0])
            delta_in, grads = net.backward(params, tape, delta)
            grads = jax.tree.map(lambda g, p: over_devices(g.astype(p.dtype), p), grads, params)
            return grads, None, _input_cotangent(x, delta_in, jax.tree.leaves(cotangent[0])[0].shape[0]), None

        run.defvjp(run_forward, run_backward)
        y, new_state = run(params, state, x, rng)
        return y, jax.lax.stop_gradient(new_state)

    return apply


# ---------------------------------------------------------------- arguments and scale


def _input_cotangent(x: Tree, delta_in: Tree, n: int) -> Tree:
    """δ_in as JAX expects it: float0 zeros for integer leaves, where the library has ()."""

    def cotangent(leaf: Array, delta: Array) -> Array | np.ndarray:
        if is_floating(leaf):
            return over_devices(delta.astype(leaf.dtype), leaf)
        return np.zeros((n, *leaf.shape[1:]), jax.dtypes.float0)

    return jax.tree.map(cotangent, x, delta_in)


def _as_scale(scale: Array | float, dtype: DType) -> Array:
    """The scale of the loss as an array; TypeError unless it is a number, ValueError unless it is above 0."""
    if not isinstance(scale, jax.Array) or is_concrete(scale):
        number("scale", scale, above=0)
    return jnp.asarray(scale, dtype)


def _divided(grads: Params, scale: Array | None) -> Params:
    """The gradients without the scale of the loss, divided in at least float32."""
    if scale is None:
        return grads

    def one(g: Array) -> Array:
        wide = accumulator(g.dtype)
        return (g.astype(wide) / scale.astype(wide)).astype(g.dtype)

    return jax.tree.map(one, grads)


ZEROS = "a leaf without a penalty has a grad of zeros:"


def penalty_value(penalty: Penalty, params: Params) -> Array:
    """penalty.value(params), which must be a scalar."""
    value = jnp.asarray(penalty.value(params))
    if value.shape:
        raise ValueError(f"penalty {penalty.name!r}: value must be a scalar, got shape {value.shape}")
    return value


def check_records(where: str, net: Any, loss: Any) -> None:
    """Raises TypeError unless net and loss are records, and not factories of them."""
    net_record(where, net)
    loss_record(where, loss)


def _check_arguments(where: str, params: Params, x: Tree, target: Tree, weights: Array | None) -> None:
    """Checks that arguments are arrays in the right places, of one batch size; static, so free under jit."""
    if isinstance(params, TrainState):
        raise TypeError("params must be the parameters, got a TrainState: give train_state.params, train_state.state")
    real_floats(where, params)
    for what, part in (("x", x), ("target", target), ("weights", weights)):
        plain_data(f"{where}: {what}", part)
    n = batch_size("x", x)
    alive("x", x)
    alive("target", target)
    if n == 0:
        raise ValueError("x holds no examples (batch size 0)")
    if jax.tree.leaves(target) and batch_size("target", target) != n:
        m = batch_size("target", target)
        raise ValueError(f"x has {n} examples and target has {m}: the first axis of each counts the examples")
    if weights is not None:
        example_weights("weights", weights, n)
        if is_concrete(weights):
            weight_values("weights", weights)
