"""Local reverse rules of sums, maxima and minima over sliding windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnn.aliases import Array
from jaxnn.graph.rules.rule import Params, Pull, Rule, dilated, linear, note_where
from jaxnn.jaxprs import is_float


def _offsets(params: Params) -> list[tuple[int, ...]]:
    """The places in a window, in the order in which they are compared."""
    apart = params["window_dilation"]
    return [tuple(i * d for i, d in zip(at_, apart, strict=True)) for at_ in np.ndindex(*params["window_dimensions"])]


def _window_config(params: Params) -> list[tuple[int, int, int]]:
    return [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["base_dilation"], strict=True)]


def _view(a: Array, offset: tuple[int, ...], shape: Sequence[int], params: Params) -> Array:
    """The entry of every window at one offset."""
    strides = params["window_strides"]
    ends = [o + dilated(n, s) for o, n, s in zip(offset, shape, strides, strict=True)]
    return lax.slice(a, offset, ends, strides)


def _unview(delta: Array, offset: tuple[int, ...], full: Sequence[int], params: Params) -> Array:
    """δ of every window placed at one of its offsets, zeros elsewhere."""
    strides = params["window_strides"]
    config = [
        (o, size - o - dilated(n, s), s - 1) for o, n, s, size in zip(offset, delta.shape, strides, full, strict=True)
    ]
    return lax.pad(delta, jnp.zeros((), delta.dtype), config)


def _unpad(padded: Any, x: Array, params: Params) -> Array:
    """The entries of x within the padded and dilated array."""
    cut = lax.pad(padded, jnp.zeros((), padded.dtype), [(-low, -high, 0) for low, high in params["padding"]])
    return lax.slice(cut, (0,) * x.ndim, cut.shape, params["base_dilation"])


def _window_sum(delta: Array, x: Array, params: Params) -> Array:
    """Each entry is passed the sum of δ over the windows that contain it."""
    full = [low + dilated(n, b + 1) + high for n, (low, high, b) in zip(x.shape, _window_config(params), strict=True)]
    passed = [_unview(delta, offset, full, params) for offset in _offsets(params)]
    return _unpad(sum(passed), x, params)


def _window_chooser(beats: Callable[[Array, Array], Array]) -> Pull:
    """The pull of a window's maximum or minimum: the first winner of each window is passed its δ."""

    def back(delta: Array, x: Array, params: Params) -> Array:
        config, offsets = _window_config(params), _offsets(params)
        padded = lax.pad(x, jnp.zeros((), x.dtype), config)
        real = lax.pad(jnp.ones(x.shape, bool), jnp.zeros((), bool), config)
        best, found = jnp.zeros_like(delta), jnp.zeros(delta.shape, bool)
        winner = jnp.zeros(delta.shape, jnp.int32)
        for i, offset in enumerate(offsets):
            v, there = _view(padded, offset, delta.shape, params), _view(real, offset, delta.shape, params)
            better = there & ~(found & beats(best, v))  # as in JAX, an entry loses to the next if either is NaN
            best, winner, found = jnp.where(better, v, best), jnp.where(better, i, winner), found | there
        passed = [
            _unview(jnp.where(found & (winner == i), delta, 0), offset, padded.shape, params)
            for i, offset in enumerate(offsets)
        ]
        return _unpad(sum(passed), x, params)

    return linear(back)


def _window_ties(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
    """True for a window that contains its maximum, or minimum, more than once."""
    x, y = jnp.asarray(inputs[0]), jnp.asarray(output)
    padded = lax.pad(x, jnp.zeros((), x.dtype), _window_config(params))
    real = lax.pad(jnp.ones(x.shape, bool), jnp.zeros((), bool), _window_config(params))
    views = [
        (_view(padded, offset, y.shape, params) == y) & _view(real, offset, y.shape, params)
        for offset in _offsets(params)
    ]
    return is_float(x) and np.sum(views, axis=0) > 1


_FIRST = note_where(_window_ties, "several equal winners, a tie: JAX passes δ to the first in the window")

RULES: dict[str, Rule] = {
    "reduce_window_sum": Rule("δxᵢ = Σ δ over the windows that contain i", linear(_window_sum)),
    "reduce_window_max": Rule("δxᵢ = Σ δ over the windows whose maximum is xᵢ", _window_chooser(lax.ge), _FIRST),
    "reduce_window_min": Rule("δxᵢ = Σ δ over the windows whose minimum is xᵢ", _window_chooser(lax.le), _FIRST),
}
