"""The parts of a pass, each usable alone: forward, δ at the output, the recursion.

    forward_pass    (net, params, state, x)           → output, state, tapes
    seed            (loss, output, target, weights)   → the cost, and δᴸ
    recursion       (net, params, tapes, δ)           → δ_in, ∂C/∂θ, readings
    factors_of      (net, params, tapes, δ)           → the factors of each ∂C/∂θ, for each example
    products        (factors, v)                      → Σₙ vₙ ∂Cₙ/∂θ

`backprop` composes the first three. δ need not come from a loss: it may be a column of a root of the Hessian, or δ_in
of another network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating, widest
from jaxnn.combinators.walk import leaves_of
from jaxnn.compiled import Structure, structure_of
from jaxnn.errors import LayerError
from jaxnn.factors import Factor, Stacked
from jaxnn.mistakes import ONE_OF_SEVERAL, alive, array_leaves, channels_first, loss_record, net_record, stacked
from jaxnn.passes.readings import (
    check_tapes,
    entries_like,
    finished,
    instrumented,
    readings_of,
    unscaled,
    untag,
    without_kept,
)
from jaxnn.sequences import Sequences
from jaxnn.shapes import example_shape
from jaxnn.spmd.axes import over_devices
from jaxnn.trees import same_shapes, spec_tree, static_spec
from jaxnn.types import Array, Key, Layer, Loss, Params, Reading, State, Tree, Use
from jaxnn.weighting import figures_of, shares, weigh, weighted

__all__ = ["Seed", "factors_of", "forward_pass", "products", "recursion", "seed"]

__dir__ = __all__.copy


def forward_pass(
    net: Layer,
    params: Params,
    state: State,
    x: Tree,
    *,
    train: bool = True,
    rng: Key | None = None,
    read: Sequence[str | Reading] = (),
) -> tuple[Tree, State, Tree]:
    """Output, new state, and tapes for the recursion.

    Args:
        net: the network.
        params: its parameters.
        state: its state.
        x: a batch [N, …], or a tree of such.
        train: whether layers behave as in training.
        rng: a key, for layers that are random in training.
        read: the readings of the recursion, if one of them has `keep`.

    Raises:
        ValueError: if the parameters are another network's.
    """
    net_record("forward_pass", net)
    check_params(net, params, x)
    return instrumented(net, readings_of(read)).forward(params, state, x, train=train, rng=rng)


class Seed(NamedTuple):
    """The cost, and δ at the output, where the recursion begins.

    Attributes:
        loss: C = Σₙ wₙCₙ / Σₙ wₙ, a scalar.
        weight: Σₙ wₙ.
        of_mean: ∂C/∂y at the output: the recursion of `backprop`, in which half precisions do not overflow.
    """

    loss: Array
    weight: Array
    of_mean: Tree

    @property
    def delta(self) -> Tree:
        """δᴸ = ∂(Σ wₙCₙ)/∂y, the textbook's δₙ = ∂Cₙ/∂yₙ without weights."""
        return jax.tree.map(lambda d: unscaled(d, self.weight), self.of_mean)


def seed(loss: Loss, output: Tree, target: Tree, weights: Array | None = None) -> Seed:
    """The cost of an output, and δ at the output.

    Args:
        loss: a Loss record.
        output: the network's, [N, …], or `Sequences`, whose mask selects the entries that count.
        target: as the loss expects it.
        weights: of examples, [N], or of entries, [N, …]; by default 1.

    >>> from jaxnn import losses
    >>> seed(losses.half_squared_error, jnp.array([[3.0], [5.0]]), jnp.ones((2, 1))).delta.tolist()
    [[2.0], [4.0]]
    """
    loss_record("seed", loss)
    found = costs(loss, output, target, weights)
    mean = found.mean
    return Seed(mean, found.total, _output_delta(loss, found, output))


def recursion(
    net: Layer,
    params: Params,
    tapes: Tree,
    delta: Tree,
    read: Sequence[str | Reading] = (),
    *,
    weight: Array | None = None,
) -> tuple[Tree, Params, dict[str, Tree]]:
    """The δ recursion from output to input: δˡ⁻¹, ∂C/∂θˡ = backwardˡ(δˡ) for l = L … 1.

    Args:
        net: the network.
        params: its parameters.
        tapes: of `forward_pass`.
        delta: ∂C/∂y of any C, like the output; `()` for what is not float, such as a mask.
        read: names of readings, or Reading records, as for `backprop`.
        weight: the factor by which readings see δ and gradients multiplied: Σw where δ is of a mean. By default 1.

    Returns:
        δ_in = ∂C/∂x, ∂C/∂θ like params, and the readings by name.

    Raises:
        ValueError: if δ is not like the output, or a backward rule gives gradients of another shape.

    >>> from jaxnn import dense
    >>> net, params = dense(1), {"w": jnp.array([[2.0]]), "b": jnp.zeros(1)}
    >>> y, _, tapes = forward_pass(net, params, (), jnp.array([[3.0]]))
    >>> delta_in, grads, _ = recursion(net, params, tapes, jnp.ones_like(y))
    >>> delta_in.tolist(), grads["w"].tolist()
    ([[2.0]], [[3.0]])
    """
    readings = readings_of(read)
    if not readings:
        check_tapes(net.kind, tapes)
    delta_in, noted = instrumented(net, readings, weight).backward(params, tapes, delta)
    grads = entries_like(params, untag(noted, lambda tagged: tagged.tied))
    same_shapes("backward gave gradients that are not like the parameters", grads, params, "each leaf needs one:")
    grads = jax.tree.map(over_devices, grads, params)

    def noted_by(i: int) -> Tree:
        return untag(noted, lambda tagged: tagged.own.of_each[i])

    return delta_in, grads, {r.name: finished(net, r, noted_by(i)) for i, r in enumerate(readings)}


# ---------------------------------------------------------------- factors


def _factors(use: Use) -> Tree:
    return use.layer.factors(use.params, use.tape, use.delta)


def _joined(factors: Tree) -> Tree:
    return jax.tree.map(Factor.joined, factors, is_leaf=_is_factor)


FACTORS = Reading("factors", _factors, finish=_joined)


def factors_of(net: Layer, params: Params, tapes: Tree, delta: Tree) -> Tree:
    """The factors of the gradient of every parameter: a tree like params with a `factors.Factor` for each.

        ∂C/∂θ = Σₙ ∂Cₙ/∂θ,    ∂Cₙ/∂θ = Σₚ aₙₚ ⊗ dₙₚ

    The uses of a parameter by `share` are among its positions p; those of `repeat`, which have separate parameters, are
    on the leading axis of θ. With δ of the sum of costs (`Seed.delta`) Cₙ is an example's cost. Where a layer couples
    the batch, as batch norm does in training, δₙ before it is that of the total cost, and so are the summands.

    Raises:
        LayerError: if a layer couples the batch and has no rule for its factors.

    >>> from jaxnn import losses, mlp
    >>> net = mlp([3, 2])
    >>> params, state = net.init(jax.random.key(0), (4,))
    >>> y, _, tapes = forward_pass(net, params, state, jnp.ones((5, 4)))
    >>> factors = factors_of(net, params, tapes, seed(losses.mse, y, jnp.zeros((5, 2))).delta)
    >>> factors["dense_0"]["w"].squared_norms().shape
    (5,)
    """
    _, _, noted = recursion(net, params, without_kept(tapes), delta, (FACTORS,))
    factors = noted[FACTORS.name]
    for place in leaves_of(net):
        for _ in range(sum(loop.stacks for loop in place.loops)):
            factors = place.put(factors, jax.tree.map(Stacked, place.of(factors), is_leaf=_is_factor))
    return entries_like(params, factors)


def products(factors: Tree, v: Array | None = None) -> Params:
    """Σₙ vₙ ∂Cₙ/∂θ of every parameter, in at least float32; v [N], by default ones."""
    return jax.tree.map(lambda factor: factor.gradient(v), factors, is_leaf=_is_factor)


def _is_factor(part: Tree) -> bool:
    return isinstance(part, Factor)


# ---------------------------------------------------------------- costs of a batch


class Costs(NamedTuple):
    """The costs of a batch."""

    value: Array  # the cost of each example, [N], or, where entries are weighted, of each entry, [N, …]
    share: Array  # the share of each value in the mean, like value; a scalar without weights
    total: Array  # Σ wₙ
    prediction: Tree  # the arguments of the loss: arrays without a mask
    target: Tree  # likewise

    @property
    def mean(self) -> Array:
        """Σ wₙCₙ / Σ wₙ, a scalar in at least float32."""
        weighed = weigh(self.share, self.value.astype(self.share.dtype))
        return jnp.sum(weighed if weighed.ndim < 2 else weighed.sum(axis=tuple(range(1, weighed.ndim))))


def costs(loss: Loss, output: Tree, target: Tree, weights: Array | None = None) -> Costs:
    """The loss on a network's output; raises ValueError where value, entries, weights and masks do not fit."""
    what = f"loss {loss.name!r}"
    case = weighted(what, loss.entries, output, target, weights)
    value = figures_of(f"{what}: value must give one cost", loss.value, loss.entries, case)
    return Costs(value, *shares(value, case), case.prediction, case.target)


def _output_delta(loss: Loss, found: Costs, output: Tree) -> Tree:
    """δ at the output: the share of each example, or of each entry, times the loss's own δ; `()` for a mask.

    The loss's δ is that of Cₙ, the mean over P entries, so 1/P of that of an entry's cost.
    """
    delta = loss.delta(found.prediction, found.target)
    same_shapes(f"loss {loss.name!r}: its delta is not like the prediction", delta, found.prediction, "δₙ = ∂Cₙ/∂yₙ:")
    share = found.share * math.prod(found.share.shape[1:]) if found.share.ndim > 1 else found.share
    delta = jax.tree.map(lambda d: weigh(share, d), delta)
    if not isinstance(output, Sequences):
        return delta
    unread = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if is_floating(leaf) else (), output.initial)
    return Sequences(delta, (), unread)


# ---------------------------------------------------------------- parameters


def check_params(net: Layer, params: Params, x: Tree) -> None:
    """Raises ValueError if params are not those of net on inputs like x: the first differing paths, both shapes.

    If the input has the wrong number of features, the error names the input. Depends on shapes alone, and runs once for
    each set of shapes.
    """
    array_leaves("params", params)
    alive("params", params)
    try:
        _check_shapes(structure_of(net), static_spec(params), static_spec(x))
    except ValueError as error:
        shape = getattr(x, "shape", ())
        advice = channels_first(shape)
        if advice and advice not in str(error):
            error.args = (f"{error}{advice}",)
        raise


@lru_cache(maxsize=1024)
def _check_shapes(of: Structure, params_spec: Any, x_spec: Any) -> None:
    net, params, x = of.record, spec_tree(params_spec), spec_tree(x_spec)
    in_shape = example_shape(x)
    floats = [leaf.dtype for leaf in jax.tree.leaves(x) if is_floating(leaf)]
    dtype = widest(*floats, default=jnp.dtype("float32"))  # structs in in_shape keep their own
    several = None
    try:
        expected, state = jax.eval_shape(lambda net, key: net.init(key, in_shape, dtype), net, jax.random.key(0))
        several = stacked(params, expected)
        if several is not None:
            raise ValueError(
                f"the parameters are those of {several} networks, stacked on a leading axis: {ONE_OF_SEVERAL}"
            )
        same_shapes(
            f"the parameters are not those of this network on inputs of shape {in_shape}",
            params,
            expected,
            "expected what net.init gives:",
        )
    except ValueError as differs:
        if several is not None:
            raise
        try:
            state = jax.eval_shape(lambda net, key: net.init(key, in_shape, dtype)[1], net, jax.random.key(0))
        except (ValueError, TypeError):
            state = ()  # init rejects this input, as a batch of one; forward may say more
        try:
            jax.eval_shape(lambda net, *args: net.forward(*args)[0], net, params, state, x)
        except LayerError as error:
            if not error.about_params:
                raise error from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            pass
        raise differs
