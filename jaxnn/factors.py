"""Factors of a parameter's gradient: the contribution of each example, not yet summed.

    ∂C/∂θ = Σₙ wₙ ∂Cₙ/∂θ,    ∂Cₙ/∂θ = Σₚ aₙₚ ⊗ dₙₚ

over positions p: steps, pixels, the uses of a shared parameter. A layer's `factors(params, tape, delta)` gives a
`Factor` for each parameter. Per-example gradients, their norms and inner products, clipped sums and curvature follow
from it without forming the gradients.

All is computed in at least float32. N batch, P positions, A and B the widths of a and d.

Source: Goodfellow (2015), "Efficient per-example gradient computations"; Rochette, Manoel & Tramel (2019) for
convolutions; Martens & Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate curvature".

    >>> a, d = jnp.array([[[3.0, 4.0]]]), jnp.array([[[2.0]]])
    >>> factor = Outer(a, d)
    >>> factor.gradient().tolist(), factor.squared_norms().tolist()
    ([[6.0], [8.0]], [100.0])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnn.aliases import Array, Params, Tree
from jaxnn.errors import LayerError
from jaxnn.records import Record
from jaxnn.tapes import all_along, one_of

__all__ = ["Explicit", "Factor", "Outer", "Rows", "Stacked", "combined", "generic"]

__dir__ = __all__.copy


class Factor(Record):
    """The factors of the gradient of one parameter θ.

    `by_position` is True where the second axis of each array, [N, P, …], is that of positions.
    """

    by_position: ClassVar[bool] = True

    def gradient(self, v: Array | None = None) -> Array:
        """Σₙ vₙ ∂Cₙ/∂θ, like θ; v [N], by default ones."""
        g = self.one_by_one()
        return g.sum(0) if v is None else jnp.tensordot(_of_each(v, g), g, 1)

    def one_by_one(self) -> Array:
        """∂Cₙ/∂θ of every example, [N, *θ], in N times the memory of θ."""
        raise NotImplementedError(f"{type(self).__name__} has no one_by_one()")

    def squared_norms(self) -> Array:
        """‖∂Cₙ/∂θ‖² of every example, [N]."""
        return squares(self.one_by_one())

    def joined(self) -> Factor:
        """From arrays with a leading axis of uses of θ, the factor with the uses concatenated."""
        if not self.by_position:
            return jax.tree.map(lambda g: g.sum(0), self)
        return jax.tree.map(_as_positions, self)


class Outer(Factor):
    """∂Cₙ/∂θ = Σₚ aₙₚ dₙₚᵀ of a weight matrix, or Σₚ dₙₚ of a bias, without a.

    Norms: ‖∂Cₙ/∂θ‖² = Σₚ_q (aₙₚ·aₙ_q)(dₙₚ·dₙ_q), by Gram matrices, in 2 P²(A + B) operations for each example, or by
    the product itself, in 2 P A B.

    Args:
        a: [N, P, A], or None for 1.
        d: [N, P, B].
    """

    a: Array | None
    d: Array

    def gradient(self, v: Array | None = None) -> Array:
        d = scaled(self.d, v)
        if self.a is None:
            return d.sum((0, 1))
        a, d = wide(self.a, d)
        return jnp.tensordot(a, d, ((0, 1), (0, 1)))

    def one_by_one(self) -> Array:
        if self.a is None:
            return wide(self.d)[0].sum(1)
        return jnp.einsum("npa,npb->nab", *wide(self.a, self.d))

    def squared_norms(self) -> Array:
        if self.a is None:
            return squares(self.one_by_one())
        P, A, B = self.a.shape[1], self.a.shape[2], self.d.shape[2]
        if P * (A + B) > A * B:
            return squares(self.one_by_one())
        return paired(*(jnp.einsum("npa,nqa->npq", x, x) for x in wide(self.a, self.d)))


class Rows(Factor):
    """∂Cₙ/∂W of an embedding table: its row j is the sum of dₙₚ over the p with indexₙₚ = j.

    Norms: ‖∂Cₙ/∂W‖² = Σₚ_q 1[indexₙₚ = indexₙ_q] dₙₚ·dₙ_q, or by the table itself, whichever takes less memory.

    Args:
        index: integers [N, P]; those outside 0 … V − 1 are ignored.
        d: [N, P, H].
        vocabulary: V.
    """

    index: Array
    d: Array
    vocabulary: int

    def _table(self, index: Array, d: Array) -> Array:
        rows = jnp.zeros((self.vocabulary, d.shape[-1]), d.dtype)
        return rows.at[index].add(d, mode="drop", wrap_negative_indices=False)

    def gradient(self, v: Array | None = None) -> Array:
        return self._table(self.index, scaled(self.d, v))

    def one_by_one(self) -> Array:
        return jax.vmap(self._table)(self.index, *wide(self.d))

    def squared_norms(self) -> Array:
        P = self.index.shape[1]
        if P + self.vocabulary < P * P:
            return squares(self.one_by_one())
        known = (self.index >= 0) & (self.index < self.vocabulary)
        (d,) = wide(jnp.where(known[:, :, None], self.d, 0))
        same = self.index[:, :, None] == self.index[:, None, :]
        return paired(same.astype(d.dtype), jnp.einsum("nph,nqh->npq", d, d))


class Explicit(Factor):
    """The gradient of every example, formed explicitly.

    Args:
        g: ∂Cₙ/∂θ, [N, *θ].
    """

    g: Array
    by_position = False

    def one_by_one(self) -> Array:
        return wide(self.g)[0]


class Stacked(Factor):
    """The factors of a parameter with a leading axis, as in `repeat`, one for each entry.

    Args:
        factor: a factor whose arrays have the leading axis too. `jax.vmap(Outer.squared_norms)(factor)` is [n, N].
    """

    factor: Factor

    def gradient(self, v: Array | None = None) -> Array:
        return jax.vmap(lambda factor: factor.gradient(v))(self.factor)

    def one_by_one(self) -> Array:
        return jax.vmap(lambda factor: factor.one_by_one(), out_axes=1)(self.factor)

    def squared_norms(self) -> Array:
        return jax.vmap(lambda factor: factor.squared_norms())(self.factor).sum(0)


def combined(factors: Sequence[Factor]) -> Factor:
    """The factor of a parameter with several uses, from that of each use: their positions are concatenated.

    The norm of a sum is not the sum of norms: uses are combined before anything is squared.

    >>> use = Outer(None, jnp.ones((1, 1, 2)))
    >>> combined([use, use]).squared_norms().tolist()
    [8.0]
    """
    first, *others = factors
    if not others:
        return first
    if isinstance(first, Stacked) and all(isinstance(other, Stacked) for other in others):
        parts = [stacked.factor for stacked in factors if isinstance(stacked, Stacked)]
        return Stacked(jax.vmap(lambda *parts: combined(parts))(*parts))
    structure: Any = jax.tree.structure(first)
    if first.by_position and all(jax.tree.structure(other) == structure for other in others):
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, 1), *factors)
    total = first.one_by_one()
    for other in others:
        total = total + other.one_by_one()
    return Explicit(total)


def generic(layer: Any, params: Params, tape: Tree, delta: Tree) -> Tree:
    """The factors of any layer whose examples do not depend on each other, by its `backward`, which is linear in δ.

    Where `layer.batch_axes(tape)` are known, each example is a batch of one, in all the work of one backward. Otherwise
    δ that is 0 except for one example gives that example's gradient, N times the work.

    Raises:
        LayerError: if the layer couples the batch.
    """
    if not jax.tree.leaves(params):
        return params
    try:
        axes = layer.batch_axes(tape)
    except LayerError as error:
        raise LayerError(
            layer.kind,
            "couples the examples of a batch, and has no factors(params, tape, delta): δ of one example alone does "
            "not give that example's gradient",
        ) from error

    deltas = jax.tree.leaves(delta)
    if not deltas:
        raise LayerError(layer.kind, "has parameters and an output without floats: there is no δ, and no factor")

    def of_one(n: Array) -> Params:
        if axes is not None:
            return layer.backward(params, one_of(tape, axes, n), one_of(delta, all_along(0, delta), n))[1]
        only = lambda d: jnp.where(_counting(d) == n, d, jnp.zeros_like(d))  # noqa: E731
        return layer.backward(params, tape, jax.tree.map(only, delta))[1]

    return jax.tree.map(Explicit, jax.lax.map(of_one, jnp.arange(deltas[0].shape[0])))


# ---------------------------------------------------------------- arithmetic


def wide(*arrays: Array) -> tuple[Array, ...]:
    """The arrays in the highest of their precisions, and at least float32."""
    dtype = max((a.dtype for a in arrays), key=lambda dtype: jnp.finfo(dtype).bits)
    dtype = dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")
    return tuple(a.astype(dtype) for a in arrays)


def by_position(x: Array) -> Array:
    """[N, …, A] as [N, P, A]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def scaled(d: Array, v: Array | None) -> Array:
    """The d of each example times its vₙ, in at least float32."""
    (d,) = wide(d)
    return d if v is None else d * _of_each(v, d).reshape(-1, *(1,) * (d.ndim - 1))


def _of_each(v: Array, d: Array) -> Array:
    if jnp.shape(v) != d.shape[:1]:
        raise ValueError(f"v must have one entry for each of {d.shape[0]} examples, got shape {jnp.shape(v)}")
    return jnp.asarray(v, d.dtype)


def squares(g: Array) -> Array:
    """The sum of squares of every example, [N]."""
    return jnp.square(g).sum(tuple(range(1, g.ndim)))


def paired(a: Array, d: Array) -> Array:
    """Σₚ_q aₙₚ_q dₙₚ_q of Gram matrices, [N]; at least 0, whatever the rounding."""
    return jnp.maximum((a * d).sum((1, 2)), 0)


def _counting(d: Array) -> Array:
    return jnp.arange(d.shape[0]).reshape(-1, *(1,) * (d.ndim - 1))


def _as_positions(array: Array) -> Array:
    """[uses, N, P, …] as [N, uses · P, …]."""
    array = jnp.moveaxis(array, 0, 1)
    return array.reshape(array.shape[0], -1, *array.shape[3:])
