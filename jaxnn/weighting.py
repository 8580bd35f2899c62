"""Weights and masks of a batch's entries, and weighted means.

A cost or a figure of merit c has one value for each example, [N], or one for each entry of an example (steps, pixels),
[N, …]. With weights w, [N] or one for each entry, and the mask m of `Sequences`,

    wₙ = mean w·m,   Cₙ = Σ w·m·c / Σ w·m,   C = Σ wₙCₙ / Σ wₙ = Σ w·m·c / Σ w·m over everything,

where mean and Σ of an example run over its entries. Weights of 1 and a mask that hides nothing change nothing. An entry
of weight 0 does not count, whatever its target, and even if its prediction is NaN.

Letters: N batch, T time, P entries of an example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_concrete, is_floating
from jaxnn.sequences import masks_of, values_of
from jaxnn.shapes import batch_size
from jaxnn.types import Array, DType, Shape, Tree

Rule = Callable[[Tree, Tree], Array]  # (prediction, target) -> [N], or [N, …]
MODERATE = 2.0**63  # weights whose largest lies between this and its inverse can be summed in float32


class Weighted(NamedTuple):
    """A prediction and a target with the weights of their entries."""

    prediction: Tree  # without a mask; an entry of weight 0 is replaced by the first entry of its example that counts
    target: Tree  # likewise
    # w·m, [N] or one for each entry, as `usable_weights` gives them; None where all weights are 1
    weights: Array | None
    unit: Array | None  # the unit of the weights

    @property
    def by_entry(self) -> bool:
        """Whether entries have weights, and not examples only."""
        return self.weights is not None and self.weights.ndim > 1


# ---------------------------------------------------------------- entries that count


def weighted(what: str, entries: Rule | None, prediction: Tree, target: Tree, weights: Array | None) -> Weighted:
    """The prediction and the target as arrays, with the weights [N] or [N, …] of their entries (None for 1).

    `what` names the loss or metric in errors; `entries(prediction, target) -> [N, …]` is its rule for the cost of each
    entry, or None. ValueError if weights or masks do not fit the entries, if they have further axes and there is no
    such rule, or, outside jit, if no entry counts.
    """
    (prediction, *masks), (target, *others) = _unmasked(prediction), _unmasked(target)
    masks += others
    if not masks and weights is None:
        return Weighted(prediction, target, None, None)
    if weights is not None:
        weights, unit = usable_weights(weights, accumulator(_dtype(prediction)))
    else:
        unit = jnp.ones((), accumulator(_dtype(prediction)))
    if not masks and weights is not None and weights.ndim == 1:
        prediction = jax.tree.map(partial(_behind, weights == 0), prediction)
        return Weighted(prediction, target, weights, unit)
    shape = _entries_shape(what, entries, prediction, target, weights, masks)
    w = jnp.ones((), unit.dtype) if weights is None else _wider(weights, len(shape))
    for mask in masks:
        w = jnp.where(_wider(mask, len(shape)), w, 0)
    w = jnp.broadcast_to(w, shape)
    if is_concrete(w) and not (w != 0).any():
        raise ValueError(f"{what}: no entry counts: all of them are masked or have weight 0")
    settle = partial(_settled, w != 0)
    return Weighted(jax.tree.map(settle, prediction), jax.tree.map(settle, target), w, unit)


def figures_of(demand: str, value: Rule, entries: Rule | None, case: Weighted) -> Array:
    """One number for each example, [N], or, where entries have weights, for each entry, [N, …].

    Raises ValueError, beginning with `demand`, if `value` does not return [N], but a mean over the batch, say.
    """
    n = batch_size("output", case.prediction)
    if case.by_entry:
        assert entries is not None
        return jnp.asarray(entries(case.prediction, case.target))  # of the weights' shape, as `weighted` has seen
    found = value(case.prediction, case.target)
    if jnp.shape(found) != (n,):
        raise ValueError(f"{demand} for each example, ({n},), got shape {jnp.shape(found)}")
    return found


def _unmasked(x: Tree) -> list[Tree]:
    """The values, followed by the mask if there is one."""
    return [values_of(x), *masks_of(x)]


def _dtype(prediction: Tree) -> DType:
    floats = [jnp.result_type(leaf) for leaf in jax.tree.leaves(prediction) if is_floating(leaf)]
    return max(floats, key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.dtype("float32"))


def _entries_shape(
    what: str, entries: Rule | None, prediction: Tree, target: Tree, weights: Array | None, masks: list[Array]
) -> Shape:
    """The shape [N, …] of the entries, after checking that weights and masks fit it."""
    n = batch_size("output", prediction)
    if entries is None:
        given = "a mask" if masks else f"weights of shape {weights.shape}"  # type: ignore[union-attr]
        raise ValueError(
            f"{what} has no rule for entries and is given {given}: it takes weights ({n},), one for each example, and "
            "no mask. Give it entries(prediction, target) -> [N, …], the cost of each entry, or "
            + ("make its prediction and target arrays in which every step counts" if masks else "such weights")
        )
    shape = tuple(jax.eval_shape(entries, prediction, target).shape)
    if not shape or shape[0] != n:
        raise ValueError(f"{what}: entries must have the batch axis first, ({n}, …), got shape {shape}")
    for mask in masks:
        if tuple(mask.shape) != shape[: mask.ndim]:
            raise ValueError(f"{what}: a mask of shape {tuple(mask.shape)} does not fit entries of shape {shape}")
    if weights is not None and weights.ndim > 1 and weights.shape != shape:
        each = f", or {shape}, one for each entry" if len(shape) > 1 else ""
        advice = ""
        if any(leaf.shape == weights.shape for leaf in jax.tree.leaves(prediction)):
            advice = (
                "; the last axis of the prediction holds the features or classes of one entry: where every number of "
                f"it is an entry of its own, prediction and target are {(*weights.shape, 1)}"
            )
        raise ValueError(f"weights must have shape ({n},), one for each example{each}, got {weights.shape}{advice}")
    return shape


def _wider(x: Array, rank: int) -> Array:
    """X with axes of size 1 appended up to rank `rank`."""
    return x.reshape(x.shape + (1,) * (rank - x.ndim))


def _behind(left_out: Array, leaf: Array) -> Array:
    """The leaf, without derivatives at the examples left out: 0 · NaN would be NaN."""
    if not is_floating(leaf):
        return leaf
    return jnp.where(_wider(left_out, leaf.ndim), jax.lax.stop_gradient(leaf), leaf)


def _settled(counts: Array, leaf: Array) -> Array:
    """The leaf, each entry that does not count replaced by the first of its example that does.

    So every rule is defined there, whatever the values were. No derivative passes. A leaf without the entries' axes is
    returned unchanged.
    """
    axes = tuple(range(1, counts.ndim))
    if leaf.shape[: counts.ndim] != counts.shape:
        return leaf
    order = jnp.arange(math.prod(counts.shape[1:])).reshape(1, *counts.shape[1:])
    first = order == jnp.where(counts, order, order.size).min(axes, keepdims=True)
    found = jnp.where(_wider(first, leaf.ndim), leaf, jnp.zeros((), leaf.dtype))
    found = found.any(axes, keepdims=True) if leaf.dtype == jnp.bool_ else found.sum(axes, leaf.dtype, keepdims=True)
    return jnp.where(_wider(counts, leaf.ndim), leaf, jax.lax.stop_gradient(found))


# ---------------------------------------------------------------- weights


def usable_weights(weights: Array, dtype: DType) -> tuple[Array, Array]:
    """Weights w/u in a unit u in which they can be summed, and u: NaN for weights that cannot be right.

    u is 1, except for weights so large that their sum would overflow, or so small that it would lose digits or be 0:
    then u is the power of two below the largest, so that nothing is rounded. Processors treat subnormal floats (1e-40
    in float32) as 0; their bits are read as integers.
    """
    weights = jnp.asarray(weights)
    if not is_floating(weights):
        w = weights.astype(dtype)
        return jnp.where(w >= 0, w, jnp.nan), jnp.ones((), dtype)
    w = weights.astype(accumulator(weights.dtype))
    info, whole = jnp.finfo(w.dtype), _bits_of(w.dtype)
    usable = (w >= 0) & (w < jnp.inf)
    rise = int(-0.8 * info.minexp)  # moves the subnormal numbers to the middle of the range
    bits = jax.lax.bitcast_convert_type(w, whole)
    subnormal = bits.astype(w.dtype) * 2.0 ** (info.minexp - info.nmant + rise)
    risen = jnp.where(bits < 2**info.nmant, subnormal, w * 2.0**rise)
    top = jnp.where(usable, w, 0).max()
    tiny = top < 2.0 ** (info.minexp // 2)
    w = jnp.where(tiny, risen, w)
    top = jnp.where(tiny, jnp.where(usable, risen, 0).max(), top)
    moderate = ~tiny & (top < MODERATE) & (top > 1 / MODERATE)
    unit = jnp.where(moderate | (top == 0), 1, power_of_two(top))
    w = jnp.where(usable, w / unit, jnp.nan)
    return w.astype(dtype), jnp.where(tiny, unit * 2.0**-rise, unit).astype(dtype)


def power_of_two(x: Array) -> Array:
    """The greatest power of two that is not above x, a positive normal number; 0 of 0."""
    info, whole = jnp.finfo(x.dtype), _bits_of(x.dtype)
    exponent = 2 ** (info.bits - 1) - 2**info.nmant  # a mask that removes the sign and the mantissa
    bits = jax.lax.bitcast_convert_type(x, whole) & jnp.asarray(exponent, whole)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def _bits_of(dtype: DType) -> DType:
    return jnp.dtype(f"uint{jnp.finfo(dtype).bits}")


def shares(value: Array, case: Weighted) -> tuple[Array, Array]:
    """The share of each value in the mean, w/Σw or the scalar 1/N, and Σ wₙ; in at least float32."""
    dtype = accumulator(value.dtype)
    if case.weights is None or case.unit is None:
        return jnp.asarray(1 / value.shape[0], dtype), jnp.asarray(value.shape[0], dtype)
    w = case.weights.astype(dtype)
    total = w.sum()
    share = w / jnp.where(total == 0, 1, total)  # a batch of weight 0 has cost 0 and δ = 0
    return share, total * case.unit.astype(dtype) / math.prod(w.shape[1:])


def weigh(share: Array, values: Array) -> Array:
    """Values [N, …] times share; a value of weight 0 does not count, even if it is NaN."""
    share = _wider(share, values.ndim) if share.ndim else share
    weighed = (values.astype(share.dtype) * share).astype(values.dtype)  # 1/N and N may leave float16's range
    return jnp.where(share == 0, 0, weighed) if share.ndim else weighed
