"""A layer as it is called in a pass: its inputs, the δ that comes back to it, and its rule there.

They are read by jax.grad through forward functions alone, without any hand-derived rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating
from jaxnn.combinators.precision import in_full
from jaxnn.combinators.walk import Place, places
from jaxnn.gradcheck.programs import Problem
from jaxnn.passes.parts import Costs, costs
from jaxnn.passes.readings import slotted
from jaxnn.trees import named_leaves, same_shapes
from jaxnn.types import Array, Key, Layer, Loss, Params, Reading, State, Tree


class Pass(NamedTuple):
    """A network, a loss, and the arguments of a pass through them."""

    net: Layer
    loss: Loss
    params: Params
    state: State
    x: Tree
    target: Tree
    train: bool
    rng: Key | None
    weights: Array | None


class LayerCall(NamedTuple):
    """The inputs of a layer and the δ that came back; under `repeat` and `share` with a leading axis for the uses."""

    params: Params
    state: State
    x: Tree
    rng: Key | None
    delta: list[Array] | None


class LayerCalls(NamedTuple):
    """The calls of all layers in a pass, combinators too."""

    nodes: list[Place]  # the layers' places, inner ones first
    calls: dict[tuple[int, ...], LayerCall]  # by the index of a place
    uses: dict[tuple[int, ...], int]  # likewise, the number of axes of its uses
    output: Tree  # the network's
    train: bool  # whether the layers behaved as in training

    def problem(self, node: Place, rule: Layer | None = None) -> Problem:
        """A layer's rule, or that of another record in its place, at its call; all uses of it at once."""
        given = node.layer if rule is None else rule
        problem = self._problem(node, node.layer, given)
        unit = coarsest_unit(node.layer)
        if not unit:
            return problem
        return problem._replace(unit=unit, wide=self._problem(node, in_full(node.layer), in_full(given)))

    def _problem(self, node: Place, layer: Layer, rule: Layer) -> Problem:
        call = self.calls[node.index]
        value, backward, leaves, fixed = _functions(node.label, call, self.train, layer, rule)
        for _ in range(self.uses[node.index]):
            value, backward = jax.vmap(value), jax.vmap(backward)
        x_paths = named_leaves(call.x)
        inputs = [path if len(x_paths) > 1 else "" for path, leaf in x_paths.items() if is_floating(leaf)]
        names = [*named_leaves(call.params), *(f"δ_in {path}".strip() for path in inputs)]
        assert call.delta is not None
        return Problem(node.label, node.layer.kind, tuple(names), value, backward, leaves, fixed, call.delta)


CALL = Reading(
    "call",
    lambda use: use.kept._replace(delta=jax.tree.leaves(use.delta)),
    keep=lambda use: LayerCall(use.params, use.state, use.x, use.rng, None),
)


def layer_calls(given: Pass) -> LayerCalls:
    """The calls of every layer, by a pass of jax.grad."""
    net, loss, params, state, x, target, train, rng, weights = given
    slots = slotted(net, CALL, everywhere=True)
    filled = slots.fill(params, state, x, train, rng)

    @jax.jit
    def note(filled: Params, state: State, x: Tree, target: Tree, rng: Key | None) -> tuple[Params, Tree]:
        def objective(filled: Params) -> tuple[Array, Tree]:
            y = slots.net.forward(filled, state, x, train=train, rng=rng)[0]
            return jnp.sum(counted(costs(loss, y, target, weights))), y

        return jax.grad(objective, has_aux=True)(filled)

    grads, output = note(filled, state, x, target, rng)
    uses = {index: len(axes) for index, axes in slots.around.items()}
    return LayerCalls(list(places(net, inner_first=True)), slots.noted(grads), uses, output, train)


def counted(seen: Costs) -> Array:
    """The costs of what counts, 0 of the rest."""
    return jnp.where(seen.share == 0, 0, seen.value) if seen.share.ndim else seen.value


def coarsest_unit(net: Layer) -> float:
    """The unit roundoff of the lowest precision in which a part of the network computes; 0 where none is set."""
    units = [float(jnp.finfo(place.layer.computes_in).eps) / 2 for place in places(net) if place.layer.computes_in]
    return max(units, default=0.0)


def _functions(
    label: str, call: LayerCall, train: bool, layer: Layer, ruled: Layer
) -> tuple[Any, Any, list[Array], Any]:
    """The value and the rule of one use as in a `Problem`, their leaves (parameters, then inputs), and the rest."""
    x_leaves, x_tree = jax.tree.flatten(call.x)
    p_leaves, p_tree = jax.tree.flatten(call.params)

    def split(leaves: Sequence[Array], others: list[Any]) -> tuple[Params, Tree]:
        left = iter(leaves[len(p_leaves) :])
        x = [next(left) if is_floating(like) else other for like, other in zip(x_leaves, others, strict=True)]
        return jax.tree.unflatten(p_tree, leaves[: len(p_leaves)]), jax.tree.unflatten(x_tree, x)

    def value(leaves: list[Array], fixed: Any) -> list[Array]:
        state, rng, others = fixed
        params, x = split(leaves, others)
        y = layer.forward(params, state, x, train=train, rng=rng)[0]
        return [leaf for leaf in jax.tree.leaves(y) if is_floating(leaf)]

    def backward(leaves: list[Array], fixed: Any, deltas: list[Array]) -> list[Array]:
        state, rng, others = fixed
        params, x = split(leaves, others)
        y, _, tape = ruled.forward(params, state, x, train=train, rng=rng)
        left = iter(deltas)
        delta = jax.tree.map(lambda leaf: next(left) if is_floating(leaf) else (), y)
        pair = ruled.backward(params, tape, delta)
        if not isinstance(pair, tuple) or len(pair) != 2:
            got = f"{len(pair)} values" if isinstance(pair, tuple) else type(pair).__name__
            raise ValueError(f"layer '{label}': {DELTA_IN}: backward must return (delta_in, grads), got {got}")
        delta_in, grads = pair
        same_shapes(f"layer '{label}': {DELTA_IN}", _inputs(delta_in), _inputs(x), "each input needs one:")
        same_shapes(f"layer '{label}': its gradients are not like its parameters", grads, params, ADVICE)
        return [*jax.tree.leaves(grads), *jax.tree.leaves(delta_in)]

    floats = [leaf for leaf in x_leaves if is_floating(leaf)]
    fixed = (call.state, call.rng, [None if is_floating(leaf) else leaf for leaf in x_leaves])
    return value, backward, [*p_leaves, *floats], fixed


ADVICE = "each parameter needs one:"
DELTA_IN = "its δ_in is not like x"


def _inputs(x: Tree) -> dict[str, Array]:
    """The floats of a layer's input by name."""
    return {path or "x": leaf for path, leaf in named_leaves(x).items() if is_floating(leaf)}
