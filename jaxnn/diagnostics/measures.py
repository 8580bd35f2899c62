"""What is measured at each layer while a step is taken: pure functions, for use under jit, vmap and scan.

δ is noted by a reading, as everything is that one wants to know while δ passes. What a layer gave out is noted on the
way forward and travels in the tape, since a tape does not hold it. Weights, gradients and updates are compared once
the optimizer has spoken.

Letters: N batch, H units; a root mean square is over all entries, so that layers of different sizes compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import accumulator, is_floating, widest
from jaxnn.combinators import map_layers
from jaxnn.interfaces import with_rules
from jaxnn.sequences import as_sequences
from jaxnn.showing import shown
from jaxnn.types import Activation, Array, Forward, Key, Layer, Params, Reading, State, Tree

NAME = "diagnostics"  # in Pass.readings
SATURATED = (
    0.05  # of the slope at 0: a unit there learns at a twentieth of the speed; |z| > 4.4 for sigmoid, 2.2 for tanh
)


@shown()
class Measures(NamedTuple):
    """What is measured in one step, as arrays.

    Attributes:
        step: the step, counted from 0; −1 where none was taken.
        layers: for each leaf layer by path, root mean squares of its "output" and of "delta", the δ there; "input"
            where it has a matrix of weights; and of an activation the share "dead" or "saturated". Within `repeat`
            and `share` each has an entry for every pass.
        params: for each layer with parameters, root mean squares of "weight" and "gradient", and "ratio", that of the
            update over that of the weights.
    """

    step: Array
    layers: dict[str, dict[str, Array]]
    params: dict[str, dict[str, Array]]


class _Noted(NamedTuple):
    """A layer's own tape, and what was noted when it was written."""

    tape: Tree
    notes: dict[str, Array]


# ---------------------------------------------------------------- the instruments


def instrumented(net: Layer) -> Layer:
    """The same network, each leaf layer of which notes its output in its tape."""
    return map_layers(_instrumented, net)


def _instrumented(layer: Layer) -> Layer:
    def forward(params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
        y, state, tape = layer.forward(params, state, x, train=train, rng=rng)
        notes = _size("output", y)
        if any(leaf.ndim > 1 for leaf in jax.tree.leaves(params)):
            notes |= _size("input", x)
        if layer.activation is not None:
            notes |= _idle(layer.activation, x, y)
        return y, state, _Noted(tape, notes)

    def backward(params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]:
        return layer.backward(params, tape.tape, delta)

    return with_rules(layer, forward=forward, backward=backward)


def _size(name: str, tree: Tree) -> dict[str, Array]:
    floats = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf) and leaf.size]
    return {name: rms(floats)} if floats else {}


def _idle(function: Activation, z: Array, h: Array) -> dict[str, Array]:
    """Of a rectifier the share of units that no example wakes, of another activation that of flat places."""
    z, h = as_sequences(z).values, as_sequences(h).values
    slope = jnp.abs(function.slope(z, h))
    if function.leak is not None:
        asleep = (slope == 0).all(tuple(range(max(slope.ndim - 1, 1))))
        return {"dead": asleep.mean(dtype=jnp.float32)}
    nought = jnp.zeros((), z.dtype)
    flat = SATURATED * jnp.abs(function.slope(nought, function.value(nought)))
    return {"saturated": (slope < flat).mean(dtype=jnp.float32)}


def _read(layer: Layer, params: Params, tape: Tree, delta: Any, grads: Params) -> Tree:
    return _size("delta", delta) | tape.notes


HEALTH = Reading(NAME, _read)  # for a network that is `instrumented`


def beside(reading: Reading) -> Reading:
    """A reading that sees of an instrumented layer what it would see of the layer."""

    def read(layer: Layer, params: Params, tape: Tree, delta: Any, grads: Params) -> Tree:
        assert isinstance(layer, with_rules)  # `instrumented` has made it
        return reading.read(layer.layer, params, tape.tape, delta, grads)

    return Reading(reading.name, read)


# ---------------------------------------------------------------- what they give


def measures(net: Layer, noted: Tree, params: Params, grads: Params, updates: Params | None, step: Array) -> Measures:
    """The measures of a step: what HEALTH noted, and parameters, gradients and updates layer by layer."""
    by_layer: dict[str, dict[str, Array]] = {}
    by_params: dict[str, dict[str, Array]] = {}
    for place, _, loops in places(net):
        path = "/".join(place)
        by_layer[path] = _at(noted, place)
        own = [_floats(_at(tree, place)) for tree in (params, grads, updates)]
        if own[0]:
            stacked = sum(loops)  # `repeat` stacks its parameters on a leading axis, `share` has one set
            weight, gradient = rms(own[0], stacked), rms(own[1], stacked)
            by_params[path] = {"weight": weight, "gradient": gradient}
            if updates is not None:
                by_params[path]["ratio"] = rms(own[2], stacked) / weight
    return Measures(step, by_layer, by_params)


def places(net: Layer, loops: tuple[bool, ...] = ()) -> Iterator[tuple[tuple[str, ...], Layer, tuple[bool, ...]]]:
    """(path, layer, loops) of each leaf: for each loop around it whether parameters are stacked, from the outermost."""
    if net.rebuild is None:
        yield (), net, loops
    inner = loops if net.passes is None else (*loops, net.stacks)
    for name, child in zip(net.child_names, net.children, strict=True):
        for path, leaf, around in places(child, inner):
            yield (name, *path) if name else path, leaf, around


def _at(tree: Tree, place: tuple[str, ...]) -> Any:
    """What a tree keyed like params holds for the layer at a path; {} if nothing."""
    for name in place:
        tree = tree.get(name, {}) if isinstance(tree, dict) else {}
    return tree


def _floats(tree: Tree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf) and leaf.size]


def rms(arrays: list[Array], kept: int = 0) -> Array:
    """√mean x² over all entries of the arrays but for `kept` leading axes; no square over- or underflows.

    Sizes that vanish or explode leave the range in which squares are numbers long before they leave that of floats.
    """
    dtype = widest(*(accumulator(leaf.dtype) for leaf in arrays))
    flat = [leaf.astype(dtype).reshape(*leaf.shape[:kept], -1) for leaf in arrays]
    largest = jnp.stack([jnp.abs(leaf).max(-1) for leaf in flat]).max(0)
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    total = sum(jnp.square(leaf / unit[..., None]).sum(-1) for leaf in flat)
    return unit * jnp.sqrt(jnp.asarray(total) / sum(leaf.shape[-1] for leaf in flat))
