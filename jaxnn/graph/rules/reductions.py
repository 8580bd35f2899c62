"""Local reverse rules of reductions and of cumulative operations.

At ties they take the slope that `jax.vjp` takes, which depends on the order in which JAX combines entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnn.aliases import Array
from jaxnn.graph.rules.rule import Note, Params, Passed, Pull, Rule, dilated, inverse, linear, note_where, winner_slope
from jaxnn.jaxprs import is_float

Combine = Callable[[Array, Array], Array]  # z of x, y
Slopes = Callable[[Array, Array, Array, Array], tuple[Array, Array]]  # δx, δy of δ, x, y, z


def _repeat(delta: Array, x: Array, axes: Sequence[int]) -> Array:
    """δ repeated along the reduced axes of x."""
    kept = [i for i in range(x.ndim) if i not in axes]
    return lax.broadcast_in_dim(delta, x.shape, kept)


def _reduce_chooser(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ / (number of winners) at each winner."""
    (x,), axes = inputs, params["axes"]
    if not is_float(x):
        return [None]
    won = (x == _repeat(output, x, axes)).astype(delta.dtype)
    return [_repeat(delta / lax.reduce_sum(won, tuple(axes)), x, axes) * won]


def _reduce_ties(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
    (x,), axes = inputs, tuple(params["axes"])
    return is_float(x) and np.sum(x == np.expand_dims(np.asarray(output), axes), axis=axes) > 1


def _reduce_prod(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δxᵢ = δ Π_{k≠i} x_k, the product before i times the product after i, so that zeros do no harm."""
    (x,), axes = inputs, params["axes"]
    if not is_float(x):
        return [None]
    order = [*axes, *(i for i in range(x.ndim) if i not in axes)]
    front = jnp.transpose(x, order)
    flat = front.reshape((math.prod(front.shape[: len(axes)]), *front.shape[len(axes) :]))
    if flat.shape[0] == 0:
        return [jnp.zeros_like(x)]
    one = jnp.ones_like(flat[:1])
    before = lax.cumprod(jnp.concatenate([one, flat[:-1]]))
    after = lax.cumprod(jnp.concatenate([flat[1:], one]), reverse=True)
    others = (before * after).reshape(front.shape)
    return [_repeat(delta, x, axes) * jnp.transpose(others, inverse(order))]


# ---- cumulative operations


def _every(a: Array, start: int, end: int) -> Array:
    """Every second entry of a, from start to end."""
    return lax.slice_in_dim(a, start, end, stride=2)


def _apart(a: Array, start: int, n: int) -> Array:
    """The entries of a at every second of n places, from start on, with zeros between them."""
    around = (start, n - start - dilated(a.shape[0], 2), 1)
    return lax.pad(a, jnp.zeros((), a.dtype), [around, *[(0, 0, 0)] * (a.ndim - 1)])


def _pairwise(x: Array, combine: Combine, slopes: Slopes) -> tuple[Array, Callable[[Array], Array]]:
    """A cumulative operation along axis 0 by a tree of pairs, and its reverse pass.

    Neighbours are combined, the halved array is accumulated in the same way, which yields the odd entries, and each
    even entry is the previous odd one combined with its own x (Blelloch 1990). JAX differentiates this tree, which
    therefore determines how ties are shared; and products need no division.
    """
    n = x.shape[0]
    if n < 2:
        return x, lambda delta: delta
    left, right, rest = _every(x, 0, n - 1), _every(x, 1, n), _every(x, min(2, n), n)
    pairs = combine(left, right)
    odd, odd_back = _pairwise(pairs, combine, slopes)
    start = odd[: rest.shape[0]]
    even = combine(start, rest)
    y = _apart(jnp.concatenate([x[:1], even]), 0, n) + _apart(odd, 1, n)

    def back(delta: Array) -> Array:
        to_start, to_rest = slopes(_every(delta, min(2, n), n), start, rest, even)
        fill = [(0, odd.shape[0] - start.shape[0], 0), *[(0, 0, 0)] * (x.ndim - 1)]
        to_pairs = odd_back(_every(delta, 1, n) + lax.pad(to_start, jnp.zeros((), x.dtype), fill))
        to_left, to_right = slopes(to_pairs, left, right, pairs)
        return _apart(jnp.concatenate([delta[:1], to_rest]), 0, n) + _apart(to_left, 0, n) + _apart(to_right, 1, n)

    return y, back


def _cumulative(combine: Combine, slopes: Slopes) -> Pull:
    """The pull of the cumulative form of z = combine(x, y), given slopes(δ, x, y, z) -> δx, δy."""

    def back(delta: Array, x: Array, params: Params) -> Array:
        axis, reverse = params["axis"], params["reverse"]
        front = lambda a: jnp.moveaxis(jnp.flip(a, axis) if reverse else a, axis, 0)  # noqa: E731
        passed = jnp.moveaxis(_pairwise(front(x), combine, slopes)[1](front(delta)), 0, axis)
        return jnp.flip(passed, axis) if reverse else passed

    return linear(back)


def _winner_slopes(δ: Array, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    return δ * winner_slope(x, y, z), δ * winner_slope(y, x, z)


def _logaddexp_slopes(δ: Array, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """δ eˣ⁻ᶻ and δ eʸ⁻ᶻ, with +∞ taken as 0, as in JAX, to avoid ∞ − ∞."""
    x, y, z = (jnp.where(jnp.isposinf(a), jnp.zeros_like(a), a) for a in (x, y, z))
    return δ * jnp.exp(x - z), δ * jnp.exp(y - z)


def _cumulative_ties(ufunc: np.ufunc) -> Note:
    def where(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
        x = np.moveaxis(np.asarray(inputs[0]), params["axis"], 0)
        x = x[::-1] if params["reverse"] else x
        return is_float(x) and ufunc.accumulate(x, axis=0)[:-1] == x[1:]

    return note_where(
        where, "equal to an earlier entry, a tie: JAX halves δ between them wherever its tree combines the two"
    )


_EQUALLY = note_where(_reduce_ties, "several equal winners, a tie: JAX shares δ equally among them")

RULES: dict[str, Rule] = {
    "reduce_sum": Rule("δxᵢ = δ", linear(lambda δ, x, p: _repeat(δ, x, p["axes"]))),
    "reduce_max": Rule("δxᵢ = δ at the maximum", _reduce_chooser, _EQUALLY),
    "reduce_min": Rule("δxᵢ = δ at the minimum", _reduce_chooser, _EQUALLY),
    "reduce_prod": Rule("δxᵢ = δ Π_{k≠i} x_k", _reduce_prod),
    "cumsum": Rule("δxᵢ = Σ_{j≥i} δⱼ", linear(lambda δ, x, p: lax.cumsum(δ, axis=p["axis"], reverse=not p["reverse"]))),
    "cumprod": Rule("δxᵢ = Σ_{j≥i} δⱼ Π_{k≤j, k≠i} x_k", _cumulative(jnp.multiply, lambda δ, x, y, z: (δ * y, δ * x))),
    "cumlogsumexp": Rule("δxᵢ = Σ_{j≥i} δⱼ exp(xᵢ − yⱼ)", _cumulative(jnp.logaddexp, _logaddexp_slopes)),
    "cummax": Rule(
        "δxᵢ = Σ δⱼ over the j whose maximum is xᵢ", _cumulative(lax.max, _winner_slopes), _cumulative_ties(np.maximum)
    ),
    "cummin": Rule(
        "δxᵢ = Σ δⱼ over the j whose minimum is xᵢ", _cumulative(lax.min, _winner_slopes), _cumulative_ties(np.minimum)
    ),
}
