"""Loss scaling: gradients in float16 that would underflow are computed of the loss times a number.

Letters: s scale, g gradient, δ = ∂C/∂y at the network's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating, poisoned
from jaxnn.checks import number, whole_number
from jaxnn.mistakes import optimizer_record
from jaxnn.optimizers.parts import (
    check_fit,
    first_step,
    held,
    inner_state,
    loss_scale_of,
    next_step,
    real_floats,
    taken,
)
from jaxnn.showing import shown
from jaxnn.types import Array, Optimizer, Params, Tree

SMALLEST = 2.0**-14  # float16's smallest normal number: at a lower scale, a δ of 1 would lose digits
LARGEST = 2.0**24  # further doubling gains nothing: float16's smallest number is 2⁻²⁴


@shown()
class LossScalingState(NamedTuple):
    """The state of `loss_scaling`.

    Attributes:
        step: the number of updates of the inner optimizer, which skipped steps do not move.
        learning_rate: of the inner optimizer; a rate that is set here is used. None if its state has none, as optax's.
        given: of the inner optimizer.
        loss_scale: s, for the next gradient; a scale that is set here is used.
        good: the number of steps since it changed, none of which overflowed, int32.
        overflows: the number of steps that were skipped, int32.
        state: the state of the inner optimizer; () replaces its step, learning rate and given number.
    """

    step: Array
    learning_rate: Array | None
    given: Array | None
    loss_scale: Array
    good: Array
    overflows: Array
    state: Tree


class loss_scaling(Optimizer):
    """An optimizer for gradients in float16: the loss is multiplied by a scale s, which is adapted to their range.

        g = (1/s) ∂(s C)/∂θ
        g finite        the optimizer's update;   s ← 2 s after `period` such steps in a row
        g not finite    no update, s ← s/2

    `train_step` reads s in the optimizer's state and gives it to `backprop` or `autodiff`: δ at the output is s δ, and
    gradients are divided by s in float32. They, and the δs of readings, are those of the loss itself. In a step that is
    skipped, parameters, the optimizer's state (moments, learning rate, `step`) and the network's state stay as they
    are; the step of the TrainState counts it, its loss is in the history, and `overflows` in the state counts them.

    s stays within 2⁻¹⁴ and 2²⁴. If it would fall lower, gradients are not finite whatever the scale: the parameters
    become NaN, and training ends with a DivergenceError that says so. A loss that is not finite ends it as always: no
    scale changes the loss. With `fit(skip_nonfinite=n)` such losses are skipped, with s as it was, and count among the
    n; overflows of the gradient do not.

    Clipping, `accumulate` and `chain` belong inside, `loss_scaling(chain(clip_by_global_norm(1.0), adam(1e-3)))`; in a
    `chain` behind clipping it looks at the gradients before. `accumulate` around it is refused: the overflow of one
    batch would spoil all of them. For bfloat16, with the range of float32, no scaling is needed.

    Args:
        optimizer: an Optimizer record, or one of optax's.
        initial: s at the beginning.
        factor: by which s is multiplied and divided, above 1; a power of 2 rounds nothing.
        period: the number of good steps after which s grows.

    Raises:
        ValueError: if a number is out of range, or the optimizer contains another loss scaling; from `update`, if the
            gradients and the parameters differ in structure or shape.
        TypeError: if `optimizer` is not one, or parameters are not real floats.

    Source: Micikevicius et al. (2018), "Mixed precision training", section 3.2, with the schedule of Kuchaiev et al.
    (2018), "Mixed-precision training for NLP and speech recognition with OpenSeq2Seq".

    >>> from jaxnn import sgd
    >>> optimizer = loss_scaling(sgd(0.1), initial=8.0)
    >>> opt_state = optimizer.init(jnp.zeros(1))
    >>> for g in (1.0, jnp.inf):
    ...     updates, opt_state = optimizer.update(jnp.array([g]), opt_state)
    ...     print(updates, opt_state.loss_scale)
    [-0.1] 8.0
    [0.] 4.0
    """

    optimizer: Optimizer
    _: KW_ONLY
    initial: float = 2.0**15
    factor: float = 2.0
    period: int = 2000

    def __post_init__(self) -> None:
        optimizer_record("loss_scaling: optimizer", self.optimizer)
        self._set(
            initial=number("loss_scaling: initial", self.initial, least=SMALLEST, most=LARGEST),
            factor=number("loss_scaling: factor", self.factor, above=1.0),
            period=whole_number("loss_scaling: period", self.period, least=1),
        )

    def init(self, params: Params) -> LossScalingState:
        real_floats("loss_scaling", params)
        state = self.optimizer.init(params)
        if loss_scale_of(state) is not None:
            raise ValueError("loss_scaling: the optimizer scales the loss already: keep one loss_scaling")
        shown, state = held(state, first_step())
        scale = jnp.array(self.initial, jnp.result_type(float))
        return LossScalingState(loss_scale=scale, good=first_step(), overflows=first_step(), state=state, **shown)

    def update(
        self,
        grads: Params,
        opt_state: LossScalingState,
        params: Params = None,
        *,
        weight: Array | float | None = None,
        value: Array | None = None,
        grad: Params = None,
        value_fn: Callable[..., Array] | None = None,
    ) -> tuple[Params, LossScalingState]:
        check_fit("loss_scaling", grads, params, None)
        finite = _finite((grads, grad))  # clipping in front may have made the first finite
        safe = lambda tree: jax.tree.map(lambda g: jnp.where(finite, g, jnp.zeros_like(g)), tree)  # noqa: E731
        extras = {"weight": weight, "value": value, "grad": safe(grad), "value_fn": value_fn}
        before = inner_state(opt_state)
        given = taken(self.optimizer.update, extras)
        updates, after = self.optimizer.update(safe(grads), before, params, **given)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)

        lower = opt_state.loss_scale / self.factor
        skipped = ~finite & (lower >= SMALLEST)  # False of NaN
        instead = jnp.where(skipped, 0.0, jnp.nan)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, instead.astype(jnp.result_type(u))), updates)
        shown, after = held(after, jnp.where(finite, next_step(opt_state.step), opt_state.step))
        more = next_step(opt_state.good)
        grows = finite & (more >= self.period)
        higher = jnp.minimum(opt_state.loss_scale * self.factor, LARGEST)
        scale = jnp.where(grows, higher, jnp.where(skipped, lower, opt_state.loss_scale))
        return updates, LossScalingState(
            loss_scale=poisoned(scale.astype(opt_state.loss_scale.dtype), self.initial, self.factor),
            good=jnp.where(grows | ~finite, 0, more),
            overflows=jnp.where(skipped, next_step(opt_state.overflows), opt_state.overflows),
            state=after,
            **shown,
        )


def _finite(tree: Tree) -> Array:
    """True if every float in the tree is finite."""
    floats = [leaf for leaf in map(jnp.asarray, jax.tree.leaves(tree)) if is_floating(leaf)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats] or [jnp.asarray(True)]).all()
