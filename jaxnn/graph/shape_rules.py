"""Local reverse rules of operations on whole arrays: products, reductions, and everything that moves entries about.

δ is the gradient of the output, δx what is passed back to the input x. What moves entries passes them back the way they
came; what repeats them adds what comes back; what adds them repeats it. Every rule is derived by hand and takes the
slope that `jax.vjp` takes at ties, where its note says so. Real numbers only.

Source of the conventions: the derivative rules in `jax/_src/lax`. Products, convolutions: Goodfellow, Bengio &
Courville 2016, §9.5. Triangular solve and Cholesky: Giles 2008, "Collected matrix derivative results for forward and
reverse mode algorithmic differentiation"; Murray 2016, "Differentiation of the Cholesky decomposition".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.arrays import with_rank
from jaxnn.graph.rule import Note, Pull, Rule, at, nothing, share
from jaxnn.jaxprs import is_float

Params = dict[str, Any]


def _linear(back: Callable[[Any, Any, Params], Any]) -> Pull:
    """The pull of an operation with one input; back(δ, x, params) is what x is passed."""

    def pull(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
        return [back(delta, inputs[0], params) if is_float(inputs[0]) else None]

    return pull


def _undoing(order: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes one."""
    return tuple(int(i) for i in np.argsort(order))


# ---- products


def _dot_general(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ yᵀ, δy = xᵀ δ: the output's axes are the batch axes, x's own, y's own."""
    x, y = inputs
    (x_sum, y_sum), (x_batch, y_batch) = params["dimension_numbers"]
    x_own = [i for i in range(x.ndim) if i not in (*x_sum, *x_batch)]
    y_own = [i for i in range(y.ndim) if i not in (*y_sum, *y_batch)]
    batch = list(range(len(x_batch)))
    of_x = [len(batch) + i for i in range(len(x_own))]
    of_y = [len(batch) + len(of_x) + i for i in range(len(y_own))]

    def back(other: Any, contract: Any, other_batch: Any, order: Sequence[int], like: Any) -> Any:
        product = lax.dot_general(
            delta,
            other,
            (contract, (batch, list(other_batch))),
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        return jnp.transpose(product, _undoing(order)).astype(like.dtype)

    # What comes out has the batch axes, the axes of δ that are left, and then the other factor's axes that were summed.
    x_order = [*x_batch, *x_own, *(x_sum[i] for i in _undoing(y_sum))]
    y_order = [*y_batch, *y_own, *(y_sum[i] for i in _undoing(x_sum))]
    return [
        back(y, (of_y, y_own), y_batch, x_order, x) if is_float(x) else None,
        back(x, (of_x, x_own), x_batch, y_order, y) if is_float(y) else None,
    ]


def _spread(size: int, dilation: int) -> int:
    """The size of an axis once its entries stand `dilation` apart."""
    return 0 if size == 0 else 1 + dilation * (size - 1)


def _regroup(a: Any, groups: int, source: int, target: int) -> Any:
    """The groups that lead the axis `source` made to lead the axis `target`."""
    shape = list(a.shape)
    apart = [*shape[:source], groups, shape[source] // groups, *shape[source + 1 :]]
    shape[source] //= groups
    shape[target] *= groups
    return jnp.moveaxis(a.reshape(apart), source, target).reshape(shape)


def _conv_paddings(x: Any, w: Any, y: Any, params: Params) -> tuple[list[Any], list[Any]]:
    """The padding of the convolution that gives δx, and of the one that gives δw, per spatial axis."""
    specs = params["dimension_numbers"]
    for_x, for_w = [], []
    for i, (low, _) in enumerate(params["padding"]):
        n = _spread(x.shape[specs.lhs_spec[2 + i]], params["lhs_dilation"][i])
        k = _spread(w.shape[specs.rhs_spec[2 + i]], params["rhs_dilation"][i])
        m = _spread(y.shape[specs.out_spec[2 + i]], params["window_strides"][i])
        for_x.append((k - 1 - low, n - m + low))
        for_w.append((low, m - n + k - 1 - low))
    return for_x, for_w


def _conv(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ convolved with w reversed, δw = x convolved with δ: strides and dilations change places."""
    x, w = inputs
    if not is_float(x):
        return [None, None]
    if delta.size == 0:  # a kernel of no extent is no convolution
        return [jnp.zeros_like(x), jnp.zeros_like(w)]
    x_spec, w_spec, y_spec = params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    stride, x_apart, w_apart = params["window_strides"], params["lhs_dilation"], params["rhs_dilation"]
    for_x, for_w = _conv_paddings(x, w, delta, params)
    same = {"precision": params["precision"], "preferred_element_type": params["preferred_element_type"]}
    swap = lambda spec: (spec[1], spec[0], *spec[2:])  # noqa: E731

    either = max(groups, batch_groups)  # JAX allows one of them at a time
    turned = jnp.flip(_regroup(w, either, w_spec[0], w_spec[1]), w_spec[2:]).astype(delta.dtype)
    δx = lax.conv_general_dilated(
        *(delta, turned, x_apart, for_x, stride, w_apart),
        dimension_numbers=lax.ConvDimensionNumbers(y_spec, swap(w_spec), x_spec),
        feature_group_count=either,
        **same,
    )
    if batch_groups > 1:
        δx = _regroup(δx, batch_groups, x_spec[1], x_spec[0])
    δw = lax.conv_general_dilated(
        *(x.astype(delta.dtype), delta, w_apart, for_w, x_apart, stride),
        dimension_numbers=lax.ConvDimensionNumbers(swap(x_spec), swap(y_spec), swap(w_spec)),
        feature_group_count=batch_groups,
        batch_group_count=groups,
        **same,
    )
    return [δx.astype(x.dtype), δw.astype(w.dtype)]


def _transposed(a: Any) -> Any:
    return jnp.swapaxes(a, -1, -2)


def _product(*factors: Any) -> Any:
    result = factors[0]
    for factor in factors[1:]:
        result = jnp.matmul(result, factor, precision=lax.Precision.HIGHEST)
    return result


def _triangular_solve(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """A X = B: δB = A⁻ᵀ δ, δA = −δB Xᵀ within the triangle; X A = B likewise, mirrored."""
    a, _ = inputs
    left, transpose = params["left_side"], params["transpose_a"]
    back = lax.linalg.triangular_solve(a, delta, **{**params, "transpose_a": not transpose})
    first, second = (back, output) if left else (output, back)  # δA = −first secondᵀ, or −firstᵀ second
    if transpose:
        first, second = second, first
    full = _product(first, _transposed(second)) if left else _product(_transposed(first), second)
    off = 1 if params["unit_diagonal"] else 0
    return [-(jnp.tril(full, -off) if params["lower"] else jnp.triu(full, off)), back]


def _cholesky(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """L Lᵀ = x: S = L⁻ᵀ Φ(Lᵀ δ) L⁻¹, where Φ keeps the lower triangle and half of the diagonal.

    Of x only the lower triangle is read, and stands for both: what S has for the upper one goes to it.
    """
    root = jnp.tril(output)
    inner = jnp.tril(_product(_transposed(root), delta))
    inner = inner * with_rank(1 - 0.5 * jnp.eye(root.shape[-1], dtype=root.dtype), inner.ndim)
    inner = lax.linalg.triangular_solve(root, inner, left_side=True, lower=True, transpose_a=True)
    both = lax.linalg.triangular_solve(root, inner, left_side=False, lower=True)
    return [jnp.tril(both) + jnp.tril(_transposed(both), -1)]


# ---- reductions


def _repeat(delta: Any, x: Any, axes: Sequence[int]) -> Any:
    """δ repeated along the axes of x that were reduced."""
    kept = [i for i in range(x.ndim) if i not in axes]
    return lax.broadcast_in_dim(delta, x.shape, kept)


def _reduce_chooser(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ / (the number of winners) at each winner."""
    (x,), axes = inputs, params["axes"]
    if not is_float(x):
        return [None]
    won = (x == _repeat(output, x, axes)).astype(delta.dtype)
    return [_repeat(delta / lax.reduce_sum(won, tuple(axes)), x, axes) * won]


def _reduce_ties(inputs: list[Any], output: Any, params: Params) -> Any:
    (x,), axes = inputs, tuple(params["axes"])
    return is_float(x) and np.sum(x == np.expand_dims(np.asarray(output), axes), axis=axes) > 1


def _reduce_prod(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δxᵢ = δ Π_{k≠i} x_k, as what stands before i times what stands after: no division by a zero."""
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
    return [_repeat(delta, x, axes) * jnp.transpose(others, _undoing(order))]


# ---- cumulative operations


def _every(a: Any, start: int, end: int) -> Any:
    """Every second entry of a from start to end."""
    return lax.slice_in_dim(a, start, end, stride=2)


def _apart(a: Any, start: int, n: int) -> Any:
    """The entries of a at every second place from start on, of n, and zeros between them."""
    around = (start, n - start - _spread(a.shape[0], 2), 1)
    return lax.pad(a, jnp.zeros((), a.dtype), [around, *[(0, 0, 0)] * (a.ndim - 1)])


def _pairwise(x: Any, combine: Callable[..., Any], slopes: Callable[..., Any]) -> tuple[Any, Callable[[Any], Any]]:
    """A cumulative operation along axis 0 by a tree of pairs, and its reverse pass.

    Neighbours are combined, the halved array is accumulated by the same method, which gives the odd entries, and each
    even entry is the odd one before it combined with its own x (Blelloch 1990). JAX differentiates this tree, so that
    it decides how ties are shared; and products need no division.
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

    def back(delta: Any) -> Any:
        to_start, to_rest = slopes(_every(delta, min(2, n), n), start, rest, even)
        fill = [(0, odd.shape[0] - start.shape[0], 0), *[(0, 0, 0)] * (x.ndim - 1)]
        to_pairs = odd_back(_every(delta, 1, n) + lax.pad(to_start, jnp.zeros((), x.dtype), fill))
        to_left, to_right = slopes(to_pairs, left, right, pairs)
        return _apart(jnp.concatenate([delta[:1], to_rest]), 0, n) + _apart(to_left, 0, n) + _apart(to_right, 1, n)

    return y, back


def _cumulative(combine: Callable[..., Any], slopes: Callable[..., Any]) -> Pull:
    """The pull of the cumulative form of z = combine(x, y), given slopes(δ, x, y, z) -> δx, δy."""

    def back(delta: Any, x: Any, params: Params) -> Any:
        axis, reverse = params["axis"], params["reverse"]
        front = lambda a: jnp.moveaxis(jnp.flip(a, axis) if reverse else a, axis, 0)  # noqa: E731
        passed = jnp.moveaxis(_pairwise(front(x), combine, slopes)[1](front(delta)), 0, axis)
        return jnp.flip(passed, axis) if reverse else passed

    return _linear(back)


def _winner_slopes(δ: Any, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    return δ * share(x, y, z), δ * share(y, x, z)


def _logaddexp_slopes(δ: Any, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    """δ eˣ⁻ᶻ and δ eʸ⁻ᶻ, with +∞ read as 0 as JAX does, so that ∞ − ∞ is not met."""
    x, y, z = (jnp.where(jnp.isposinf(a), jnp.zeros_like(a), a) for a in (x, y, z))
    return δ * jnp.exp(x - z), δ * jnp.exp(y - z)


def _cumulative_ties(accumulate: Callable[..., Any]) -> Note:
    def where(inputs: list[Any], output: Any, params: Params) -> Any:
        x = np.moveaxis(inputs[0], params["axis"], 0)
        x = x[::-1] if params["reverse"] else x
        return is_float(x) and accumulate(x, axis=0)[:-1] == x[1:]

    return at(
        where, "an equal entry was there before, a tie: JAX halves δ between them wherever its tree of pairs meets"
    )


# ---- what moves entries, repeats them, or leaves some out


def _broadcast_in_dim(delta: Any, x: Any, params: Params) -> Any:
    """δ summed over the axes that are new, and over those of size 1 that were repeated."""
    from_x = params["broadcast_dimensions"]
    repeated = [j for i, j in enumerate(from_x) if x.shape[i] != delta.shape[j]]
    new = [j for j in range(delta.ndim) if j not in from_x]
    return lax.reduce_sum(delta, (*new, *repeated)).reshape(x.shape)


def _tile(delta: Any, x: Any, params: Params) -> Any:
    split = [size for pair in zip(params["reps"], x.shape, strict=True) for size in pair]
    return lax.reduce_sum(delta.reshape(split), tuple(range(0, 2 * x.ndim, 2)))


def _filled(deltas: list[Any], outputs: Sequence[Any]) -> list[Any]:
    """The gradients of several outputs, zeros for None."""
    return [jnp.zeros_like(y) if δ is None else δ for δ, y in zip(deltas, outputs, strict=True)]


def _split(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    return [jnp.concatenate(_filled(delta, output), params["axis"]) if is_float(inputs[0]) else None]


def _unstack(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    return [jnp.stack(_filled(delta, output), params["axis"]) if is_float(inputs[0]) else None]


def _stack(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    axis = params["axis"]
    return [lax.index_in_dim(delta, i, axis, keepdims=False) if is_float(x) else None for i, x in enumerate(inputs)]


def _concatenate(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    axis = params["dimension"]
    ends = list(itertools.accumulate(x.shape[axis] for x in inputs))
    return [
        lax.slice_in_dim(delta, end - x.shape[axis], end, axis=axis) if is_float(x) else None
        for x, end in zip(inputs, ends, strict=True)
    ]


def _slice(delta: Any, x: Any, params: Params) -> Any:
    """δ with zeros put back where entries were left out."""
    steps = params["strides"] or (1,) * x.ndim
    config = []
    for start, step, size, full in zip(params["start_indices"], steps, delta.shape, x.shape, strict=True):
        config.append((start, full - start - _spread(size, step), step - 1))
    return lax.pad(delta, jnp.zeros((), delta.dtype), config)


def _pad(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ where x's entries stand; the padding value is passed the sum of the rest."""
    x, _ = inputs
    if not is_float(x):
        return [None, None]
    low, high, between = zip(*params["padding_config"], strict=True) if x.ndim else ((), (), ())
    zero = jnp.zeros((), delta.dtype)
    whole = lax.pad(delta, zero, [(-a, -b, 0) for a, b in zip(low, high, strict=True)])
    δx = lax.slice(whole, (0,) * x.ndim, whole.shape, [b + 1 for b in between])
    every = tuple(range(x.ndim))
    return [δx, lax.reduce_sum(delta, every) - lax.reduce_sum(δx, every)]


def _dynamic_slice(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    x, *starts = inputs
    δx = lax.dynamic_update_slice(jnp.zeros_like(x), delta, starts) if is_float(x) else None
    return [δx, *nothing(delta, starts, output, params)]


def _dynamic_update_slice(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    x, update, *starts = inputs
    if not is_float(x):
        return [None] * len(inputs)
    δx = lax.dynamic_update_slice(delta, jnp.zeros_like(update), starts)
    return [δx, lax.dynamic_slice(delta, starts, update.shape), *nothing(delta, starts, output, params)]


# ---- indexing


def _gather(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ added at the places that were read; what was read outside of x goes nowhere."""
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


def _read_back(a: Any, indices: Any, updates: Any, params: Params) -> Any:
    """The entries of a at the places where the updates of a scatter were written; 0 for those written nowhere."""
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


def _scatter_add(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    x, indices, updates = inputs
    return [delta, None, _read_back(delta, indices, updates, params)] if is_float(x) else [None] * 3


def _scatter_sub(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    x, indices, updates = inputs
    return [delta, None, -_read_back(delta, indices, updates, params)] if is_float(x) else [None] * 3


def _writers(inputs: list[Any], params: Params) -> tuple[Any, Any]:
    """For each entry of x the number of the update that overwrote it, 0 for none; for each update whether it stayed."""
    x, indices, updates = inputs
    counted = [1 if i in params["dimension_numbers"].update_window_dims else n for i, n in enumerate(updates.shape)]
    numbers = 1 + lax.iota(jnp.int32, math.prod(counted)).reshape(counted)
    numbers = jnp.broadcast_to(numbers, updates.shape)
    hints = {name: params[name] for name in ("indices_are_sorted", "unique_indices", "mode")}
    last = lax.scatter(jnp.zeros(x.shape, jnp.int32), indices, numbers, params["dimension_numbers"], **hints)
    return last, _read_back(last, indices, updates, params) == numbers


def _scatter(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ where x was not overwritten; of several updates of one place the one that stayed is passed δ."""
    x, indices, updates = inputs
    if params["update_jaxpr"] is not None:
        raise NotImplementedError("scatter_apply has no derivative in JAX")
    if not is_float(x):
        return [None] * 3
    last, stayed = _writers(inputs, params)
    back = _read_back(delta, indices, updates, params)
    return [jnp.where(last == 0, delta, 0), None, jnp.where(stayed, back, 0)]


def _lost_updates(inputs: list[Any], output: Any, params: Params) -> Any:
    return is_float(inputs[0]) and ~np.asarray(_writers([jnp.asarray(x) for x in inputs], params)[1])


def _sort(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ put back in x's order, for each of the arrays that were sorted together."""
    axis = params["dimension"]
    places = lax.broadcasted_iota(jnp.int32, inputs[0].shape, axis)
    *_, order = lax.sort((*inputs, places), axis, params["is_stable"], params["num_keys"])
    return [
        None if d is None or not is_float(x) else jnp.put_along_axis(jnp.zeros_like(x), order, d, axis, inplace=False)
        for x, d in zip(inputs, delta, strict=True)
    ]


def _sort_ties(inputs: list[Any], output: Any, params: Params) -> Any:
    keys = [np.moveaxis(np.asarray(y), params["dimension"], 0) for y in output[: params["num_keys"]]]
    return any(is_float(x) for x in inputs) and np.all([key[1:] == key[:-1] for key in keys], axis=0)


def _top_k(delta: Any, inputs: list[Any], output: Any, params: Params) -> list[Any]:
    """δx = δ at the entries that were chosen."""
    (x,), d = inputs, delta[0]
    if d is None or not is_float(x):
        return [None]
    return [jnp.put_along_axis(jnp.zeros_like(x), output[1], d, params["axis"], inplace=False)]


def _top_k_ties(inputs: list[Any], output: Any, params: Params) -> Any:
    """True for a chosen entry that has an equal elsewhere in x."""
    axis = params["axis"]
    x, y = (np.moveaxis(np.asarray(a), axis, -1) for a in (inputs[0], output[0]))
    return is_float(x) and np.sum(y[..., :, None] == x[..., None, :], axis=-1) > 1


# ---- windows


def _offsets(params: Params) -> list[tuple[int, ...]]:
    """The places in a window, in the order in which they are looked at."""
    apart = params["window_dilation"]
    return [tuple(i * d for i, d in zip(at_, apart, strict=True)) for at_ in np.ndindex(*params["window_dimensions"])]


def _window_config(params: Params) -> list[tuple[int, int, int]]:
    return [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["base_dilation"], strict=True)]


def _view(a: Any, offset: tuple[int, ...], shape: Sequence[int], params: Params) -> Any:
    """The entry at one offset of every window."""
    strides = params["window_strides"]
    ends = [o + _spread(n, s) for o, n, s in zip(offset, shape, strides, strict=True)]
    return lax.slice(a, offset, ends, strides)


def _unview(delta: Any, offset: tuple[int, ...], full: Sequence[int], params: Params) -> Any:
    """δ of every window put at one of its offsets, zeros elsewhere."""
    strides = params["window_strides"]
    config = [
        (o, size - o - _spread(n, s), s - 1) for o, n, s, size in zip(offset, delta.shape, strides, full, strict=True)
    ]
    return lax.pad(delta, jnp.zeros((), delta.dtype), config)


def _unpad(padded: Any, x: Any, params: Params) -> Any:
    """The entries of x in their padded and dilated array."""
    cut = lax.pad(padded, jnp.zeros((), padded.dtype), [(-low, -high, 0) for low, high in params["padding"]])
    return lax.slice(cut, (0,) * x.ndim, cut.shape, params["base_dilation"])


def _padded_shape(x: Any, params: Params) -> list[int]:
    return [low + _spread(n, b + 1) + high for n, (low, high, b) in zip(x.shape, _window_config(params), strict=True)]


def _window_sum(delta: Any, x: Any, params: Params) -> Any:
    """Each entry is passed the sum of the δ of the windows that hold it."""
    full = _padded_shape(x, params)
    return _unpad(sum(_unview(delta, offset, full, params) for offset in _offsets(params)), x, params)


def _window_chooser(beats: Callable[[Any, Any], Any]) -> Pull:
    """The pull of a window's maximum or minimum: the first winner of each window is passed its δ."""

    def back(delta: Any, x: Any, params: Params) -> Any:
        config, offsets = _window_config(params), _offsets(params)
        padded = lax.pad(x, jnp.zeros((), x.dtype), config)
        real = lax.pad(jnp.ones(x.shape, bool), jnp.zeros((), bool), config)
        best, found = jnp.zeros_like(delta), jnp.zeros(delta.shape, bool)
        winner = jnp.zeros(delta.shape, jnp.int32)
        for i, offset in enumerate(offsets):
            v, there = _view(padded, offset, delta.shape, params), _view(real, offset, delta.shape, params)
            better = there & ~(found & beats(best, v))  # as in JAX, an entry loses to the next where one is NaN
            best, winner, found = jnp.where(better, v, best), jnp.where(better, i, winner), found | there
        passed = [
            _unview(jnp.where(found & (winner == i), delta, 0), offset, padded.shape, params)
            for i, offset in enumerate(offsets)
        ]
        return _unpad(sum(passed), x, params)

    return _linear(back)


def _window_ties(inputs: list[Any], output: Any, params: Params) -> Any:
    """True for a window that holds its maximum, or minimum, more than once."""
    x, y = jnp.asarray(inputs[0]), jnp.asarray(output)
    padded = lax.pad(x, jnp.zeros((), x.dtype), _window_config(params))
    real = lax.pad(jnp.ones(x.shape, bool), jnp.zeros((), bool), _window_config(params))
    views = [
        (_view(padded, offset, y.shape, params) == y) & _view(real, offset, y.shape, params)
        for offset in _offsets(params)
    ]
    return is_float(x) and np.sum(views, axis=0) > 1


# ---- the table

_TIED = "several equal winners, a tie: "
_FIRST = at(_window_ties, _TIED + "JAX passes δ to the first in the window")
_EQUALLY = at(_reduce_ties, _TIED + "JAX shares δ equally among them")

_PRODUCTS = {
    "dot_general": Rule("δx = δ yᵀ, δy = xᵀ δ", _dot_general),
    "conv_general_dilated": Rule("δx = δ ∗ w reversed, δw = x ∗ δ", _conv),
    "triangular_solve": Rule("A X = B: δB = A⁻ᵀ δ, δA = −δB Xᵀ in the triangle", _triangular_solve),
    "cholesky": Rule(
        "y yᵀ = x: δx = S + Sᵀ below the diagonal, S on it, S = y⁻ᵀ Φ(yᵀ δ) y⁻¹, Φ the lower triangle with half the "
        "diagonal",
        _cholesky,
    ),
}

_REDUCTIONS = {
    "reduce_sum": Rule("δxᵢ = δ", _linear(lambda δ, x, p: _repeat(δ, x, p["axes"]))),
    "reduce_max": Rule("δxᵢ = δ at the maximum", _reduce_chooser, _EQUALLY),
    "reduce_min": Rule("δxᵢ = δ at the minimum", _reduce_chooser, _EQUALLY),
    "reduce_prod": Rule("δxᵢ = δ Π_{k≠i} x_k", _reduce_prod),
    "cumsum": Rule(
        "δxᵢ = Σ_{j≥i} δⱼ", _linear(lambda δ, x, p: lax.cumsum(δ, axis=p["axis"], reverse=not p["reverse"]))
    ),
    "cumprod": Rule("δxᵢ = Σ_{j≥i} δⱼ Π_{k≤j, k≠i} x_k", _cumulative(jnp.multiply, lambda δ, x, y, z: (δ * y, δ * x))),
    "cumlogsumexp": Rule("δxᵢ = Σ_{j≥i} δⱼ exp(xᵢ − yⱼ)", _cumulative(jnp.logaddexp, _logaddexp_slopes)),
    "cummax": Rule(
        "δxᵢ = Σ δⱼ over the j whose maximum is xᵢ",
        _cumulative(lax.max, _winner_slopes),
        _cumulative_ties(np.maximum.accumulate),
    ),
    "cummin": Rule(
        "δxᵢ = Σ δⱼ over the j whose minimum is xᵢ",
        _cumulative(lax.min, _winner_slopes),
        _cumulative_ties(np.minimum.accumulate),
    ),
    "reduce_window_sum": Rule("δxᵢ = Σ δ over the windows that hold i", _linear(_window_sum)),
    "reduce_window_max": Rule("δxᵢ = Σ δ over the windows whose maximum is xᵢ", _window_chooser(lax.ge), _FIRST),
    "reduce_window_min": Rule("δxᵢ = Σ δ over the windows whose minimum is xᵢ", _window_chooser(lax.le), _FIRST),
}

_SHAPES = {
    "broadcast_in_dim": Rule("δx = δ summed over the axes that repeat x", _linear(_broadcast_in_dim)),
    "tile": Rule("δx = Σ δ over the copies of x", _linear(_tile)),
    "reshape": Rule("δx = δ in x's shape", _linear(lambda δ, x, p: δ.reshape(x.shape))),
    "squeeze": Rule("δx = δ in x's shape", _linear(lambda δ, x, p: δ.reshape(x.shape))),
    "transpose": Rule(
        "δx = δ, axes back in x's order", _linear(lambda δ, x, p: jnp.transpose(δ, _undoing(p["permutation"])))
    ),
    "rev": Rule("δx = δ reversed", _linear(lambda δ, x, p: lax.rev(δ, p["dimensions"]))),
    "concatenate": Rule("δxᵢ = the part of δ where xᵢ stands", _concatenate),
    "stack": Rule("δxᵢ = the part of δ where xᵢ stands", _stack),
    "split": Rule("δx = the δᵢ joined", _split),
    "unstack": Rule("δx = the δᵢ joined", _unstack),
    "slice": Rule("δx = δ where x was read, 0 elsewhere", _linear(_slice)),
    "pad": Rule("δx = δ where x stands; δ(padding) = Σ δ elsewhere", _pad),
}

_INDEXING = {
    "dynamic_slice": Rule("δx = δ where x was read, 0 elsewhere", _dynamic_slice),
    "dynamic_update_slice": Rule(
        "δx = δ where x was kept, 0 elsewhere; δu = δ where u was written", _dynamic_update_slice
    ),
    "gather": Rule("δx = Σ δ over the readings of each entry", _gather),
    "scatter": Rule(
        "δx = δ where x was kept, 0 elsewhere; δu = δ where u was written",
        _scatter,
        at(
            _lost_updates,
            "updates overwritten by others of the same place, or written outside: nothing is passed to them",
        ),
    ),
    "scatter-add": Rule("δx = δ, δu = δ where u was added", _scatter_add),
    "scatter-sub": Rule("δx = δ, δu = −δ where u was subtracted", _scatter_sub),
    "sort": Rule(
        "δx = δ back in x's order",
        _sort,
        at(_sort_ties, "equal keys, a tie: δ goes back in the order in which the sort left them"),
    ),
    "top_k": Rule(
        "δx = δ at the entries that were chosen",
        _top_k,
        at(_top_k_ties, "an equal entry elsewhere, a tie: δ goes to those that were chosen"),
    ),
}

RULES: dict[str, Rule] = {
    **_PRODUCTS,
    **_REDUCTIONS,
    **_SHAPES,
    **_INDEXING,
    **{
        name: Rule("nothing: its values are whole numbers or truths", nothing)
        for name in ("argmax", "argmin", "iota", "reduce_and", "reduce_or", "reduce_xor")
    },
}
