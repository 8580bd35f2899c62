"""Local reverse rules of reading and writing at indices, and of sorting."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnn.aliases import Array
from jaxnn.graph.rules.rule import Params, Passed, Rule, note_where, nothing
from jaxnn.jaxprs import is_float


def _gather(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ added at the places that were read; readings outside of x pass nothing."""
    x, indices = inputs
    if not is_float(x):
        return [None, None]
    to = params["dimension_numbers"]
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=to.offset_dims,
        inserted_window_dims=to.collapsed_slice_dims,
        scatter_dims_to_operand_dims=to.start_index_map,
        operand_batching_dims=to.operand_batching_dims,
        scatter_indices_batching_dims=to.start_indices_batching_dims,
    )
    hints = {name: params[name] for name in ("indices_are_sorted", "unique_indices", "mode")}
    return [lax.scatter_add(jnp.zeros_like(x), indices, delta, numbers, **hints), None]


def _read_back(a: Array, indices: Array, updates: Array, params: Params) -> Array:
    """The entries of a at the places where a scatter wrote its updates; 0 for updates out of bounds."""
    to = params["dimension_numbers"]
    window = iter([updates.shape[i] for i in to.update_window_dims])
    alone = (*to.inserted_window_dims, *to.operand_batching_dims)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=to.update_window_dims,
        collapsed_slice_dims=to.inserted_window_dims,
        start_index_map=to.scatter_dims_to_operand_dims,
        operand_batching_dims=to.operand_batching_dims,
        start_indices_batching_dims=to.scatter_indices_batching_dims,
    )
    sizes = [1 if i in alone else next(window) for i in range(a.ndim)]
    return lax.gather(a, indices, numbers, sizes, mode=params["mode"], fill_value=0)


def _scatter_add(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    x, indices, updates = inputs
    return [delta, None, _read_back(delta, indices, updates, params)] if is_float(x) else [None] * 3


def _scatter_sub(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    x, indices, updates = inputs
    return [delta, None, -_read_back(delta, indices, updates, params)] if is_float(x) else [None] * 3


def _writers(inputs: list[Array], params: Params) -> tuple[Array, Array]:
    """For each entry of x the number of the update that overwrote it, or 0; for each update whether it was kept."""
    x, indices, updates = inputs
    counted = [1 if i in params["dimension_numbers"].update_window_dims else n for i, n in enumerate(updates.shape)]
    numbers = 1 + lax.iota(jnp.int32, math.prod(counted)).reshape(counted)
    numbers = jnp.broadcast_to(numbers, updates.shape)
    hints = {name: params[name] for name in ("indices_are_sorted", "unique_indices", "mode")}
    last = lax.scatter(jnp.zeros(x.shape, jnp.int32), indices, numbers, params["dimension_numbers"], **hints)
    return last, _read_back(last, indices, updates, params) == numbers


def _scatter(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ where x was not overwritten; of several updates of one place, the one that was kept is passed δ."""
    x, indices, updates = inputs
    if params["update_jaxpr"] is not None:
        raise NotImplementedError("scatter_apply has no derivative in JAX")
    if not is_float(x):
        return [None] * 3
    last, stayed = _writers(inputs, params)
    back = _read_back(delta, indices, updates, params)
    return [jnp.where(last == 0, delta, 0), None, jnp.where(stayed, back, 0)]


def _lost_updates(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
    return is_float(inputs[0]) and ~np.asarray(_writers([jnp.asarray(x) for x in inputs], params)[1])


def _sort(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ in x's order, for each of the arrays sorted together."""
    axis = params["dimension"]
    places = lax.broadcasted_iota(jnp.int32, inputs[0].shape, axis)
    *_, order = lax.sort((*inputs, places), axis, params["is_stable"], params["num_keys"])
    return [
        None if d is None or not is_float(x) else jnp.put_along_axis(jnp.zeros_like(x), order, d, axis, inplace=False)
        for x, d in zip(inputs, delta, strict=True)
    ]


def _sort_ties(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
    keys = [np.moveaxis(np.asarray(y), params["dimension"], 0) for y in output[: params["num_keys"]]]
    return any(is_float(x) for x in inputs) and np.all([key[1:] == key[:-1] for key in keys], axis=0)


def _top_k(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ at the chosen entries."""
    (x,), d = inputs, delta[0]
    if d is None or not is_float(x):
        return [None]
    return [jnp.put_along_axis(jnp.zeros_like(x), output[1], d, params["axis"], inplace=False)]


def _top_k_ties(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
    """True for a chosen entry that equals another entry of x."""
    axis = params["axis"]
    x, y = (np.moveaxis(np.asarray(a), axis, -1) for a in (inputs[0], output[0]))
    return is_float(x) and np.sum(y[..., :, None] == x[..., None, :], axis=-1) > 1


RULES: dict[str, Rule] = {
    "gather": Rule("δx = Σ δ over the readings of each entry", _gather),
    "scatter": Rule(
        "δx = δ where x was kept, 0 elsewhere; δu = δ where u was written",
        _scatter,
        note_where(
            _lost_updates,
            "updates overwritten by others of the same place, or out of bounds: nothing is passed to them",
        ),
    ),
    "scatter-add": Rule("δx = δ, δu = δ where u was added", _scatter_add),
    "scatter-sub": Rule("δx = δ, δu = −δ where u was subtracted", _scatter_sub),
    "sort": Rule(
        "δx = δ back in x's order",
        _sort,
        note_where(_sort_ties, "equal keys, a tie: δ is passed back in the order of the sort"),
    ),
    "top_k": Rule(
        "δx = δ at the chosen entries",
        _top_k,
        note_where(_top_k_ties, "equal to another entry, a tie: δ is passed to the chosen ones"),
    ),
    **{
        name: Rule("nothing: the output is integer or boolean", nothing)
        for name in ("argmax", "argmin", "iota", "reduce_and", "reduce_or", "reduce_xor")
    },
}
