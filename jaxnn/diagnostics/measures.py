"""The measures of each layer in a training step: pure functions, for use under jit, vmap and scan.

A reading records the size of δ in the backward pass, and keeps the sizes of outputs from the forward pass, since a tape
does not hold them. Weights, gradients and updates are compared after the optimizer's update.

Letters: N batch, H units; a root mean square is over all entries, so that layers of different sizes compare.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating, widest
from jaxnn.combinators.walk import leaves_of
from jaxnn.sequences import as_sequences
from jaxnn.showing import shown
from jaxnn.types import Activation, Array, Layer, Params, Reading, Tree, Use

NAME = "diagnostics"  # in Pass.readings
# Of the slope at 0: a unit with less learns at a twentieth of the speed; |z| > 4.4 for sigmoid, 2.2 for tanh.
SATURATED = 0.05


@shown()
class Measures(NamedTuple):
    """The measures of one step, as arrays.

    Attributes:
        step: the step, counted from 0; −1 if none was taken.
        layers: for each leaf layer by path, root mean squares of its "output" and of "delta", the δ at the output; of
            its "input" if it has a weight matrix; and for an activation the share "dead" or "saturated". Within
            `repeat` and `share` each has an entry for every pass.
        params: for each layer with parameters, root mean squares of "weight" and "gradient", and "ratio", that of the
            update over that of the weights.
    """

    step: Array
    layers: dict[str, dict[str, Array]]
    params: dict[str, dict[str, Array]]


# ---------------------------------------------------------------- the reading


def _size(name: str, tree: Tree) -> dict[str, Array]:
    floats = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf) and leaf.size]
    return {name: rms(floats)} if floats else {}


def _idle(function: Activation, z: Array, h: Array) -> dict[str, Array]:
    """The share of units of a rectifier that no example activates, or of saturated entries of another activation."""
    z, h = as_sequences(z).values, as_sequences(h).values
    slope = jnp.abs(function.slope(z, h))
    if function.leak is not None:
        dead = (slope == 0).all(tuple(range(max(slope.ndim - 1, 1))))
        return {"dead": dead.mean(dtype=jnp.float32)}
    nought = jnp.zeros((), z.dtype)
    flat = SATURATED * jnp.abs(function.slope(nought, function.value(nought)))
    return {"saturated": (slope < flat).mean(dtype=jnp.float32)}


def _keep(use: Use) -> dict[str, Array]:
    kept = _size("output", use.y)
    if any(leaf.ndim > 1 for leaf in jax.tree.leaves(use.params)):
        kept |= _size("input", use.x)
    if use.layer.activation is not None:
        kept |= _idle(use.layer.activation, use.x, use.y)
    return kept


def _note(use: Use) -> dict[str, Array]:
    return _size("delta", use.delta) | use.kept


HEALTH = Reading(NAME, _note, _keep)


# ---------------------------------------------------------------- the measures


def measures(net: Layer, noted: Tree, params: Params, grads: Params, updates: Params | None, step: Array) -> Measures:
    """The measures of a step: the notes of HEALTH, and parameters, gradients and updates layer by layer."""
    by_layer: dict[str, dict[str, Array]] = {}
    by_params: dict[str, dict[str, Array]] = {}
    for place in leaves_of(net):
        path = "/".join(place.path)
        by_layer[path] = place.of(noted, {})
        own = [_floats(place.of(tree)) for tree in (params, grads, updates)]
        if own[0]:
            stacked = sum(loop.stacks for loop in place.loops)  # axes from `repeat`; `share` has one set of parameters
            weight, gradient = rms(own[0], stacked), rms(own[1], stacked)
            by_params[path] = {"weight": weight, "gradient": gradient}
            if updates is not None:
                by_params[path]["ratio"] = rms(own[2], stacked) / weight
    return Measures(step, by_layer, by_params)


def _floats(tree: Tree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf) and leaf.size]


def rms(arrays: list[Array], kept: int = 0) -> Array:
    """√mean x² over all but the first `kept` axes of the arrays, without over- or underflow of squares.

    Sizes that vanish or explode leave the range in which their squares are finite long before they overflow themselves.
    """
    dtype = widest(*(accumulator(leaf.dtype) for leaf in arrays))
    flat = [leaf.astype(dtype).reshape(*leaf.shape[:kept], -1) for leaf in arrays]
    largest = jnp.stack([jnp.abs(leaf).max(-1) for leaf in flat]).max(0)
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    total = sum(jnp.square(leaf / unit[..., None]).sum(-1) for leaf in flat)
    return unit * jnp.sqrt(jnp.asarray(total) / sum(leaf.shape[-1] for leaf in flat))
