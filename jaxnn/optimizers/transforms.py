"""Transformations before or around an optimizer: clipping, chaining, accumulation over batches.

Letters: θ parameters, g gradient, c the bound, k batches to an update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import in_dtype
from jaxnn.checks import number, whole_number
from jaxnn.mistakes import optimizer_record
from jaxnn.optimizers.parts import (
    check_fit,
    first_step,
    held,
    inner_state,
    loss_scale_of,
    next_step,
    rate_in,
    real_floats,
    shows_rate,
    taken,
    wide,
    without_rate,
    zeros,
)
from jaxnn.showing import shown
from jaxnn.types import Array, DType, Optimizer, Params, Tree


@shown()
class ChainState(NamedTuple):
    """The state of `chain` if one of its parts has a learning rate; otherwise it is a plain tuple of states.

    Attributes:
        step: of that part.
        learning_rate: of that part; a rate that is set here is used.
        given: of that part.
        states: one state for each part; in that part's own, () replaces these three.
    """

    step: Array
    learning_rate: Array | None
    given: Array | None
    states: tuple[Tree, ...]


@shown()
class AccumulateState(NamedTuple):
    """The state of `accumulate`.

    Attributes:
        step: the number of updates so far, not of batches, int32.
        learning_rate: of the inner optimizer; a rate that is set here is used. None if its state has none, as optax's.
        given: of the inner optimizer.
        batches: the number of batches since the last update, int32.
        unit: the first of their weights above 0; 0 until then.
        weight: the sum of their weights in that unit; without one, their number.
        total: the sum of their gradients, each times its weight in that unit; like the parameters, in at least float32.
        value: the sum of their losses, likewise, if `update` is given them.
        state: the state of the inner optimizer; () replaces its step, learning rate and given number.
    """

    step: Array
    learning_rate: Array | None
    given: Array | None
    batches: Array
    unit: Array
    weight: Array
    total: Params
    value: Array
    state: Tree


class clip_by_global_norm(Optimizer):
    """Clips gradients to g · min(1, c/‖g‖), where ‖g‖ is the norm of all of them together.

    The direction is kept; gradients within the bound stay as they are, to the bit. The norm is taken in at
    least float32 of g / max|g|, so that no square overflows. If a gradient is NaN or infinite, ‖g‖ is unknown and all
    become NaN, so that training ends with an error and not with a random step.

    Elsewhere: optax's is the same unless a square overflows; PyTorch's divides by ‖g‖ + 1e-6.

    Args:
        max_norm: c > 0.

    Raises:
        ValueError: if c is not above 0; from `update`, if the gradients and the parameters differ in structure or
            shape.
        TypeError: if c is not a number, or parameters are not real floats.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural networks", algorithm 1.

    >>> rule = clip_by_global_norm(1.0)
    >>> grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4e30])}
    >>> print(rule.update(grads, rule.init(grads))[0])
    {'b': Array([1.], dtype=float32), 'w': Array([7.5e-31, 0.0e+00], dtype=float32)}
    """

    max_norm: float

    def __post_init__(self) -> None:
        self._set(max_norm=number("clip_by_global_norm: max_norm", self.max_norm, above=0.0))

    def init(self, params: Params) -> tuple[()]:
        real_floats("clip_by_global_norm", params)
        return ()

    def update(self, grads: Params, opt_state: tuple[()], params: Params = None) -> tuple[Params, tuple[()]]:
        check_fit("clip_by_global_norm", grads, params, None)
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(grads)]
        work = max(map(wide, leaves), key=lambda dtype: dtype.itemsize, default=jnp.dtype("float32"))
        sizes = [jnp.abs(leaf).max(initial=0).astype(work) for leaf in leaves]
        # ‖g‖ = m √Σ(g/m)² whatever m is, so its derivative by m is 0; and at g = 0 no root of 0 is differentiated.
        largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, sizes, jnp.zeros((), work)))
        m = jnp.where(largest == 0, 1, largest)
        squares = sum((jnp.square(leaf.astype(work) / m).sum() for leaf in leaves), start=jnp.zeros((), work))
        root = jnp.sqrt(jnp.where(squares == 0, 1, squares))
        bound = _at_most_finite(self.max_norm, work)  # ∞ would leave an ‖g‖ beyond the range as it is
        within = largest * root <= bound  # False of NaN

        def clipped(g: Array) -> Array:
            return jnp.where(within, g, (g.astype(work) / m * (bound / root)).astype(g.dtype))

        return jax.tree.map(lambda g: clipped(jnp.asarray(g)), grads), opt_state


class clip_by_value(Optimizer):
    """min(max(g, −c), c) of every entry; NaN stays NaN.

    The direction may change, which `clip_by_global_norm` avoids.

    Args:
        limit: c > 0.

    Raises:
        ValueError, TypeError: as `clip_by_global_norm`.

    Source: Mikolov (2012), "Statistical language models based on neural networks", section 3.2.2.

    >>> rule = clip_by_value(1.0)
    >>> print(rule.update(jnp.array([0.5, -3.0]), ())[0])
    [ 0.5 -1. ]
    """

    limit: float

    def __post_init__(self) -> None:
        self._set(limit=number("clip_by_value: limit", self.limit, above=0.0))

    def init(self, params: Params) -> tuple[()]:
        real_floats("clip_by_value", params)
        return ()

    def update(self, grads: Params, opt_state: tuple[()], params: Params = None) -> tuple[Params, tuple[()]]:
        check_fit("clip_by_value", grads, params, None)

        def clipped(g: Array) -> Array:
            g = jnp.asarray(g)
            bound = _at_most_finite(self.limit, g.dtype)
            inside = g if isinstance(bound, float) else jnp.where(jnp.isnan(bound), bound, g)
            return jnp.where(g > bound, bound, jnp.where(g < -bound, -bound, inside))  # NaN stays NaN

        return jax.tree.map(clipped, grads), opt_state


def _at_most_finite(bound: float | Array, dtype: DType) -> float | Array:
    """The bound, or the largest number of the dtype."""
    largest = float(jnp.finfo(dtype).max)
    return min(bound, largest) if isinstance(bound, float) else jnp.minimum(in_dtype(bound, dtype), largest)


class chain(Optimizer):
    """One rule after another: each receives the updates of the one before it.

    At most one part may have a learning rate. The state then has its `step` and `learning_rate`, and a rate that is set
    there is used, as in that part's own state.

    Args:
        *parts: Optimizer records, or optax's; at least one.

    Raises:
        ValueError: without a part; from `init`, if more than one has a learning rate.
        TypeError: if a part is not an optimizer.

    >>> from jaxnn import sgd
    >>> optimizer = chain(clip_by_value(1.0), sgd(0.1))
    >>> updates, opt_state = optimizer.update(jnp.array([0.5, -3.0]), optimizer.init(jnp.zeros(2)))
    >>> print(updates, opt_state.step, opt_state.learning_rate)
    [-0.05  0.1 ] 1 0.1
    """

    spread = True

    parts: tuple[Optimizer, ...]

    def __init__(
        self, *args: Optimizer, parts: tuple[Optimizer, ...] = ()
    ) -> None:  # `dataclasses.replace` gives fields by name
        if args and parts:
            raise TypeError("chain: give optimizers one by one or as parts=, not both")
        self._set(parts=args or tuple(parts))
        if not self.parts:
            raise ValueError("chain: give at least one part, as in chain(clip_by_global_norm(1.0), adam(1e-3))")
        for i, part in enumerate(self.parts):
            optimizer_record(f"chain: part {i}", part)

    def init(self, params: Params) -> Tree:
        states = tuple(part.init(params) for part in self.parts)
        rated = [i for i, state in enumerate(states) if shows_rate(state)]
        if len(rated) > 1:
            raise ValueError(f"chain: parts {' and '.join(map(str, rated))} have a learning rate: keep one of them")
        if not rated:
            return states
        (i,) = rated
        return ChainState(states=_replaced(states, i, without_rate(states[i])), **rate_in(states[i]))

    def update(
        self,
        grads: Params,
        opt_state: Tree,
        params: Params = None,
        *,
        weight: Array | float | None = None,
        value: Array | None = None,
        grad: Params = None,
        value_fn: Callable[..., Array] | None = None,
    ) -> tuple[Params, Tree]:
        extras = {"weight": weight, "value": value, "grad": grad, "value_fn": value_fn}
        states, rated = opt_state, None
        if isinstance(opt_state, ChainState):
            states = opt_state.states
            rated = next(
                i for i, state in enumerate(states) if isinstance(getattr(state, "learning_rate", None), tuple)
            )
            states = _replaced(states, rated, states[rated]._replace(**rate_in(opt_state)))
        for i, (part, state) in enumerate(zip(self.parts, states, strict=True)):
            grads, state = part.update(grads, state, params, **taken(part.update, extras))
            states = _replaced(states, i, state)
        if rated is None:
            return grads, states
        own = states[rated]
        return grads, ChainState(states=_replaced(states, rated, without_rate(own)), **rate_in(own))


class accumulate(Optimizer):
    """One update for k batches: their mean gradient, as if they had been one batch.

        g ← Σ wᵢgᵢ / Σ wᵢ,    i = 1 … k

    For batches that do not fit into memory. Every k-th call passes g to the optimizer; the calls between return updates
    of 0 and leave its state unchanged. wᵢ, the weight of a batch, is the sum of its examples' weights (`Pass.weight`;
    without weights their number, so that batches may differ in size): training passes it on, and `update` called by
    hand takes it as `weight=`, 1 by default. A batch of weight 0 does not count; if all k have weight 0, g is the plain
    mean of the gᵢ, which then hold the gradient of a penalty alone. Batches left over at the end of an epoch count in
    the next. Layers that couple the examples of a batch (batch norm) see the small batches.

    Args:
        optimizer: an Optimizer record, or one of optax's; a `chain` with clipping clips the mean. It receives the mean
            gradient and, if it takes them, the weight of all k batches and the mean of their losses.
        steps: k ≥ 1.

    Raises:
        ValueError: if k is below 1; from `update`, if the gradients and the parameters differ in structure or shape.
        TypeError: if k is not a whole number, `optimizer` is not one, or parameters are not real floats.

    >>> from jaxnn import sgd
    >>> optimizer = accumulate(sgd(0.1), 2)
    >>> opt_state = optimizer.init(jnp.zeros(1))
    >>> for g, weight in ((1.0, 3.0), (3.0, 1.0)):
    ...     updates, opt_state = optimizer.update(jnp.array([g]), opt_state, weight=weight)
    ...     print(updates, opt_state.step)
    [0.] 0
    [-0.15] 1
    """

    optimizer: Optimizer
    steps: int

    def __post_init__(self) -> None:
        optimizer_record("accumulate: optimizer", self.optimizer)
        self._set(steps=whole_number("accumulate: steps", self.steps, least=1))

    def init(self, params: Params) -> AccumulateState:
        total, state = zeros("accumulate", params), self.optimizer.init(params)
        if loss_scale_of(state) is not None:
            raise ValueError(
                "accumulate: the overflow of one batch would spoil the mean of all: put loss_scaling around, "
                "loss_scaling(accumulate(optimizer, steps))"
            )
        shown, within = held(state, first_step())
        unit, weight, value = (jnp.zeros((), jnp.result_type(float)) for _ in range(3))  # each is donated
        return AccumulateState(
            batches=first_step(), unit=unit, weight=weight, total=total, value=value, state=within, **shown
        )

    def update(
        self,
        grads: Params,
        opt_state: AccumulateState,
        params: Params = None,
        *,
        weight: Array | float | None = None,
        value: Array | None = None,
    ) -> tuple[Params, AccumulateState]:
        check_fit("accumulate", grads, params, opt_state.total)
        rated, state = opt_state.learning_rate is not None, inner_state(opt_state)
        unit, part, kept = _weighed(1 if weight is None else weight, opt_state)

        def added(total: Array, new: Array) -> Array:
            part_, new = part.astype(total.dtype), jnp.asarray(new, total.dtype)
            more = jnp.where(part == 0, 0, part_ * new)  # a batch of weight 0 does not count, even if NaN
            return jnp.where(kept, total, 0) + more

        total = jax.tree.map(added, opt_state.total, grads)
        total_value = opt_state.value if value is None else added(opt_state.value, value)
        units = jnp.where(kept, opt_state.weight, 0) + part
        like = grads if params is None else params
        carried = (total, total_value, unit, units)

        def move(carried: tuple[Params, Array, Array, Array], state: Tree) -> tuple[Params, Tree, Tree]:
            total, total_value, unit, units = carried
            mean = jax.tree.map(lambda s: s / units.astype(s.dtype), total)
            if not rated:  # optax's memories have the gradients' dtype
                mean = jax.tree.map(lambda g, s: s.astype(jnp.result_type(g)), grads, mean)
            extras = {"weight": unit * units, "grad": mean, "value": None if value is None else total_value / units}
            updates, state = self.optimizer.update(mean, state, params, **taken(self.optimizer.update, extras))
            updates = jax.tree.map(lambda leaf, u: u.astype(jnp.result_type(leaf)), like, updates)
            return updates, state, jax.tree.map(jnp.zeros_like, carried)

        def rest(carried: tuple[Params, Array, Array, Array], state: Tree) -> tuple[Params, Tree, Tree]:
            return jax.tree.map(lambda leaf: jnp.zeros_like(leaf), like), state, carried

        last = opt_state.batches + 1 >= self.steps
        updates, state, (total, total_value, unit, units) = jax.lax.cond(last, move, rest, carried, state)
        shown, state = held(state, jnp.where(last, next_step(opt_state.step), opt_state.step))
        batches = jnp.where(last, 0, opt_state.batches + 1)
        return updates, AccumulateState(
            batches=batches, unit=unit, weight=units, total=total, value=total_value, state=state, **shown
        )


def _replaced(states: tuple[Tree, ...], i: int, state: Tree) -> tuple[Tree, ...]:
    return (*states[:i], state, *states[i + 1 :])


def _weighed(weight: Array | float, opt_state: AccumulateState) -> tuple[Array, Array, Array]:
    """The unit of weights, the new batch's weight in it, and whether earlier batches count beside it.

    The unit is the first weight above 0, so that batches of equal weight are summed unscaled and weights of any
    scale stay in the range of floats. Until a weight is above 0, each batch counts 1.
    """
    weight = jnp.asarray(weight, opt_state.weight.dtype)
    first = opt_state.unit == 0
    unit = jnp.where(first, weight, opt_state.unit)
    none = unit == 0  # False of NaN, which goes on
    part = jnp.where(none, 1, weight / jnp.where(none, 1, unit))
    return unit, part, none | ~first
