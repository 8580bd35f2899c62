"""Local reverse rules of operations that move, repeat, join or cut out entries.

Entries that are moved pass δ back the way they came; those that are repeated are passed the sum.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from jax import lax

from jaxnn.aliases import Array
from jaxnn.graph.rules.rule import Params, Passed, Rule, dilated, inverse, linear, nothing
from jaxnn.jaxprs import is_float


def _broadcast_in_dim(delta: Array, x: Array, params: Params) -> Array:
    """δ summed over the new axes, and over the repeated axes of size 1."""
    from_x = params["broadcast_dimensions"]
    repeated = [j for i, j in enumerate(from_x) if x.shape[i] != delta.shape[j]]
    new = [j for j in range(delta.ndim) if j not in from_x]
    return lax.reduce_sum(delta, (*new, *repeated)).reshape(x.shape)


def _tile(delta: Array, x: Array, params: Params) -> Array:
    split = [size for pair in zip(params["reps"], x.shape, strict=True) for size in pair]
    return lax.reduce_sum(delta.reshape(split), tuple(range(0, 2 * x.ndim, 2)))


def _filled(deltas: list[Array | None], outputs: list[Array]) -> list[Array]:
    """The gradients of several outputs, with zeros for None."""
    return [jnp.zeros_like(y) if δ is None else δ for δ, y in zip(deltas, outputs, strict=True)]


def _split(delta: list[Array | None], inputs: list[Array], output: list[Array], params: Params) -> Passed:
    return [jnp.concatenate(_filled(delta, output), params["axis"]) if is_float(inputs[0]) else None]


def _unstack(delta: list[Array | None], inputs: list[Array], output: list[Array], params: Params) -> Passed:
    return [jnp.stack(_filled(delta, output), params["axis"]) if is_float(inputs[0]) else None]


def _stack(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    axis = params["axis"]
    return [lax.index_in_dim(delta, i, axis, keepdims=False) if is_float(x) else None for i, x in enumerate(inputs)]


def _concatenate(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    axis = params["dimension"]
    ends = list(itertools.accumulate(x.shape[axis] for x in inputs))
    return [
        lax.slice_in_dim(delta, end - x.shape[axis], end, axis=axis) if is_float(x) else None
        for x, end in zip(inputs, ends, strict=True)
    ]


def _slice(delta: Array, x: Array, params: Params) -> Array:
    """δ with zeros in place of the entries that were left out."""
    steps = params["strides"] or (1,) * x.ndim
    config = []
    for start, step, size, full in zip(params["start_indices"], steps, delta.shape, x.shape, strict=True):
        config.append((start, full - start - dilated(size, step), step - 1))
    return lax.pad(delta, jnp.zeros((), delta.dtype), config)


def _pad(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ at x's entries; the padding value is passed the sum of the rest."""
    x, _ = inputs
    if not is_float(x):
        return [None, None]
    low, high, between = zip(*params["padding_config"], strict=True) if x.ndim else ((), (), ())
    zero = jnp.zeros((), delta.dtype)
    whole = lax.pad(delta, zero, [(-a, -b, 0) for a, b in zip(low, high, strict=True)])
    δx = lax.slice(whole, (0,) * x.ndim, whole.shape, [b + 1 for b in between])
    every = tuple(range(x.ndim))
    return [δx, lax.reduce_sum(delta, every) - lax.reduce_sum(δx, every)]


def _dynamic_slice(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    x, *starts = inputs
    δx = lax.dynamic_update_slice(jnp.zeros_like(x), delta, starts) if is_float(x) else None
    return [δx, *nothing(delta, starts, output, params)]


def _dynamic_update_slice(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    x, update, *starts = inputs
    if not is_float(x):
        return [None] * len(inputs)
    δx = lax.dynamic_update_slice(delta, jnp.zeros_like(update), starts)
    return [δx, lax.dynamic_slice(delta, starts, update.shape), *nothing(delta, starts, output, params)]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": Rule("δx = δ summed over the axes that repeat x", linear(_broadcast_in_dim)),
    "tile": Rule("δx = Σ δ over the copies of x", linear(_tile)),
    "reshape": Rule("δx = δ in x's shape", linear(lambda δ, x, p: δ.reshape(x.shape))),
    "squeeze": Rule("δx = δ in x's shape", linear(lambda δ, x, p: δ.reshape(x.shape))),
    "transpose": Rule(
        "δx = δ, axes back in x's order", linear(lambda δ, x, p: jnp.transpose(δ, inverse(p["permutation"])))
    ),
    "rev": Rule("δx = δ reversed", linear(lambda δ, x, p: lax.rev(δ, p["dimensions"]))),
    "concatenate": Rule("δxᵢ = the part of δ at xᵢ", _concatenate),
    "stack": Rule("δxᵢ = the part of δ at xᵢ", _stack),
    "split": Rule("δx = the δᵢ joined", _split),
    "unstack": Rule("δx = the δᵢ joined", _unstack),
    "slice": Rule("δx = δ where x was read, 0 elsewhere", linear(_slice)),
    "pad": Rule("δx = δ at x; δ(padding) = Σ δ elsewhere", _pad),
    "dynamic_slice": Rule("δx = δ where x was read, 0 elsewhere", _dynamic_slice),
    "dynamic_update_slice": Rule(
        "δx = δ where x was kept, 0 elsewhere; δu = δ where u was written", _dynamic_update_slice
    ),
}
