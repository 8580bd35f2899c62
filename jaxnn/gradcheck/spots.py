"""A layer at the place where it works: what it was given in a pass, which δ came back, and its rule there.

The spots are a reading by jax.grad, through forward functions alone: no hand-derived rule has a part in them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating
from jaxnn.combinators.walk import Place
from jaxnn.gradcheck.programs import Problem
from jaxnn.passes.parts import Costs, costs
from jaxnn.passes.readings import slotted
from jaxnn.trees import named_leaves, same_shapes
from jaxnn.types import Key, Layer, Loss, Params, Reading, State, Tree


class Spot(NamedTuple):
    """What one layer was given and what came back; under `repeat` and `share` with a leading axis for the uses."""

    params: Params
    state: State
    x: Tree
    rng: Any
    delta: Any


Spots = dict[tuple[int, ...], Spot]  # by the index of a layer's place
Uses = dict[tuple[int, ...], int]  # likewise, how many axes its uses have

SPOT = Reading(
    "spot",
    lambda use: use.kept._replace(delta=jax.tree.leaves(use.delta)),
    keep=lambda use: Spot(use.params, use.state, use.x, use.rng, None),
)


def find_spots(
    net: Layer,
    loss: Loss,
    params: Params,
    state: State,
    x: Tree,
    target: Tree,
    train: bool,
    rng: Key | None,
    weights: Any = None,
) -> tuple[Spots, Uses, Any]:
    """The spot of every layer, combinators too, the axes of its uses, and the output."""
    slots = slotted(net, SPOT, everywhere=True)
    given = slots.fill(params, state, x, train, rng)

    @jax.jit
    def note(given: Params, state: State, x: Tree, target: Tree, rng: Key | None) -> tuple[Params, Any]:
        def objective(given: Params) -> tuple[Any, Any]:
            y = slots.net.forward(given, state, x, train=train, rng=rng)[0]
            return jnp.sum(counted(costs(loss, y, target, weights))), y

        return jax.grad(objective, has_aux=True)(given)

    grads, output = note(given, state, x, target, rng)
    return slots.noted(grads), {index: len(sizes) for index, sizes in slots.around.items()}, output


def counted(seen: Costs) -> Any:
    """The costs of what counts, 0 of the rest."""
    return jnp.where(seen.share == 0, 0, seen.value) if seen.share.ndim else seen.value


def floats_of(tree: Any) -> list[Any]:
    """The leaves that are float."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]


# ---------------------------------------------------------------- a rule at a spot


def at_spot(node: Place, spot: Spot, uses: int, train: bool, rule: Layer | None = None) -> Problem:
    """A layer's rule, or that of another record in its place, at one spot; all uses of it at once."""
    ruled = node.layer if rule is None else rule
    x_leaves, x_tree = jax.tree.flatten(spot.x)
    p_leaves, p_tree = jax.tree.flatten(spot.params)
    floats = [i for i, leaf in enumerate(x_leaves) if is_floating(leaf)]

    def pieces(leaves: list[Any], integers: list[Any]) -> tuple[Params, Any]:
        given = dict(zip(floats, leaves[len(p_leaves) :], strict=True))
        x = [given.get(i, leaf) for i, leaf in enumerate(integers)]
        return jax.tree.unflatten(p_tree, leaves[: len(p_leaves)]), jax.tree.unflatten(x_tree, x)

    def value(leaves: list[Any], fixed: Any) -> list[Any]:
        state, rng, integers = fixed
        params, x = pieces(leaves, integers)
        return floats_of(node.layer.forward(params, state, x, train=train, rng=rng)[0])

    def backward(leaves: list[Any], fixed: Any, deltas: list[Any]) -> list[Any]:
        state, rng, integers = fixed
        params, x = pieces(leaves, integers)
        y, _, tape = ruled.forward(params, state, x, train=train, rng=rng)
        left = iter(deltas)
        delta = jax.tree.map(lambda leaf: next(left) if is_floating(leaf) else (), y)
        pair = ruled.backward(params, tape, delta)
        if not isinstance(pair, tuple) or len(pair) != 2:
            came = f"{len(pair)} of them" if isinstance(pair, tuple) else type(pair).__name__
            raise ValueError(f"layer '{node.label}': {DELTA_IN}: backward must return (delta_in, grads), got {came}")
        delta_in, grads = pair
        same_shapes(f"layer '{node.label}': {DELTA_IN}", _inputs(delta_in), _inputs(x), "each input needs one:")
        same_shapes(f"layer '{node.label}': its gradients are not like its parameters", grads, params, ADVICE)
        return [*jax.tree.leaves(grads), *jax.tree.leaves(delta_in)]

    for _ in range(uses):
        value, backward = jax.vmap(value), jax.vmap(backward)
    inputs = list(named_leaves(spot.x)) if len(x_leaves) > 1 else [""]
    names = [*named_leaves(spot.params), *(f"δ_in {inputs[i]}".strip() for i in floats)]
    fixed = (spot.state, spot.rng, [None if i in floats else leaf for i, leaf in enumerate(x_leaves)])
    leaves = [*p_leaves, *(x_leaves[i] for i in floats)]
    return Problem(node.label, node.layer.kind, tuple(names), value, backward, leaves, fixed, spot.delta)


ADVICE = "each parameter needs one:"
DELTA_IN = "its δ_in is not like x"


def _inputs(x: Any) -> dict[str, Any]:
    """The floats of a layer's input by name."""
    return {path or "x": leaf for path, leaf in named_leaves(x).items() if is_floating(leaf)}
