"""Local reverse rules of products of arrays, of convolutions, and of the linear algebra that solves them.

Sources: Goodfellow, Bengio & Courville 2016, §9.5 (products, convolutions); Giles 2008, "Collected matrix derivative
results for forward and reverse mode algorithmic differentiation" (triangular solve, Cholesky); Murray 2016,
"Differentiation of the Cholesky decomposition".
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxnn.aliases import Array
from jaxnn.arrays import with_rank
from jaxnn.graph.rules.rule import Params, Passed, Rule, dilated, inverse
from jaxnn.jaxprs import is_float

Pairs = Sequence[tuple[int, int]]
Axes = Sequence[int]


def _dot_general(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ yᵀ, δy = xᵀ δ; the output's axes are the batch axes, then x's own, then y's own."""
    x, y = inputs
    (x_sum, y_sum), (x_batch, y_batch) = params["dimension_numbers"]
    x_own = [i for i in range(x.ndim) if i not in (*x_sum, *x_batch)]
    y_own = [i for i in range(y.ndim) if i not in (*y_sum, *y_batch)]
    batch = list(range(len(x_batch)))
    of_x = [len(batch) + i for i in range(len(x_own))]
    of_y = [len(batch) + len(of_x) + i for i in range(len(y_own))]

    def back(other: Array, contract: tuple[Axes, Axes], other_batch: Axes, order: Axes, like: Array) -> Array:
        product = lax.dot_general(
            delta,
            other,
            (contract, (batch, list(other_batch))),
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        return jnp.transpose(product, inverse(order)).astype(like.dtype)

    # The product has the batch axes, then the remaining axes of δ, then the other factor's contracted axes.
    x_order = [*x_batch, *x_own, *(x_sum[i] for i in inverse(y_sum))]
    y_order = [*y_batch, *y_own, *(y_sum[i] for i in inverse(x_sum))]
    return [
        back(y, (of_y, y_own), y_batch, x_order, x) if is_float(x) else None,
        back(x, (of_x, x_own), x_batch, y_order, y) if is_float(y) else None,
    ]


def _regroup(a: Array, groups: int, source: int, target: int) -> Array:
    """Moves the leading groups of the axis `source` to the front of the axis `target`."""
    shape = list(a.shape)
    apart = [*shape[:source], groups, shape[source] // groups, *shape[source + 1 :]]
    shape[source] //= groups
    shape[target] *= groups
    return jnp.moveaxis(a.reshape(apart), source, target).reshape(shape)


def _conv_paddings(x: Array, w: Array, y: Array, params: Params) -> tuple[Pairs, Pairs]:
    """The padding per spatial axis of the convolution for δx, and of the one for δw."""
    specs = params["dimension_numbers"]
    for_x, for_w = [], []
    for i, (low, _) in enumerate(params["padding"]):
        n = dilated(x.shape[specs.lhs_spec[2 + i]], params["lhs_dilation"][i])
        k = dilated(w.shape[specs.rhs_spec[2 + i]], params["rhs_dilation"][i])
        m = dilated(y.shape[specs.out_spec[2 + i]], params["window_strides"][i])
        for_x.append((k - 1 - low, n - m + low))
        for_w.append((low, m - n + k - 1 - low))
    return for_x, for_w


def _conv(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ ∗ w reversed, δw = x ∗ δ, with strides and dilations exchanged."""
    x, w = inputs
    if not is_float(x):
        return [None, None]
    if delta.size == 0:  # an empty kernel, which XLA does not convolve with
        return [jnp.zeros_like(x), jnp.zeros_like(w)]
    x_spec, w_spec, y_spec = params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    stride, x_apart, w_apart = params["window_strides"], params["lhs_dilation"], params["rhs_dilation"]
    for_x, for_w = _conv_paddings(x, w, delta, params)
    same = {"precision": params["precision"], "preferred_element_type": params["preferred_element_type"]}
    swap = lambda spec: (spec[1], spec[0], *spec[2:])  # noqa: E731

    either = max(groups, batch_groups)  # JAX allows only one of them at a time
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


def _transposed(a: Array) -> Array:
    return jnp.swapaxes(a, -1, -2)


def _product(*factors: Array) -> Array:
    result = factors[0]
    for factor in factors[1:]:
        result = jnp.matmul(result, factor, precision=lax.Precision.HIGHEST)
    return result


def _triangular_solve(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """A X = B: δB = A⁻ᵀ δ, δA = −δB Xᵀ within the triangle; X A = B by transposition."""
    a, _ = inputs
    left, transpose = params["left_side"], params["transpose_a"]
    back = lax.linalg.triangular_solve(a, delta, **{**params, "transpose_a": not transpose})
    first, second = (back, output) if left else (output, back)  # δA = −first secondᵀ, or −firstᵀ second
    if transpose:
        first, second = second, first
    full = _product(first, _transposed(second)) if left else _product(_transposed(first), second)
    off = 1 if params["unit_diagonal"] else 0
    return [-(jnp.tril(full, -off) if params["lower"] else jnp.triu(full, off)), back]


def _cholesky(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """L Lᵀ = x: S = L⁻ᵀ Φ(Lᵀ δ) L⁻¹, where Φ keeps the lower triangle and half of the diagonal.

    Only the lower triangle of x is read, for both; it receives the upper one's part of S as well.
    """
    root = jnp.tril(output)
    inner = jnp.tril(_product(_transposed(root), delta))
    inner = inner * with_rank(1 - 0.5 * jnp.eye(root.shape[-1], dtype=root.dtype), inner.ndim)
    inner = lax.linalg.triangular_solve(root, inner, left_side=True, lower=True, transpose_a=True)
    both = lax.linalg.triangular_solve(root, inner, left_side=False, lower=True)
    return [jnp.tril(both) + jnp.tril(_transposed(both), -1)]


RULES: dict[str, Rule] = {
    "dot_general": Rule("δx = δ yᵀ, δy = xᵀ δ", _dot_general),
    "conv_general_dilated": Rule("δx = δ ∗ w reversed, δw = x ∗ δ", _conv),
    "triangular_solve": Rule("A X = B: δB = A⁻ᵀ δ, δA = −δB Xᵀ in the triangle", _triangular_solve),
    "cholesky": Rule(
        "y yᵀ = x: δx = S + Sᵀ below the diagonal, S on it, S = y⁻ᵀ Φ(yᵀ δ) y⁻¹, Φ the lower triangle with half the "
        "diagonal",
        _cholesky,
    ),
}
