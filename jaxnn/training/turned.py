"""Epochs for members that share their batches: the first weights are stored as [H, D] between the steps.

Under `jax.vmap` with the same batch for all K members, x W of the first dense layer is one product for all of them, and
so is xᵀ δ. With W stacked to [K, D, H] the K axis lies outside of the axis D that is summed, and XLA rearranges all
weights in every step, which costs more than the members gain; stacked to [K, H, D] they are one matrix [KH, D] as they
lie. The numbers of a step are those of W [D, H], to rounding. Where each member has a batch of its own it is slower,
and for wider layers than those whose gradient `dense` computes as δᵀ x it gains nothing.

Letters: B batch, D features, H the first layer's width, K members.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxnn.combinators.walk import Place, leaves_of
from jaxnn.layers.dense import NARROW
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import DataSet
from jaxnn.training.results import Notes
from jaxnn.types import Array, Layer, TrainState, Tree


class Turned(Epoch):
    """An epoch that takes and returns states with the first weights transposed, as `turned` gives them."""

    def take(
        self,
        state: TrainState,
        rows: Array,
        data: DataSet,
        factor: Array | float,
        update_scale: Array | float | None,
        measure: bool = False,
    ) -> tuple[TrainState, Notes, Any]:
        net = self.step.net
        new, notes, measures = super().take(turned(net, state), rows, data, factor, update_scale, measure)
        return turned(net, new), notes, measures


def turned(net: Layer, state: TrainState) -> TrainState:
    """The state with W [D, H] of the first dense layer as Wᵀ, in the optimizer's state too; applied twice, the state.

    Unchanged where the network does not begin with a dense layer, but for layers that only reshape, or that is wide.
    """
    first = narrow_first(net)
    if first is None or not min(shape := first.of(state.params)[first.layer.transposable].shape) <= NARROW < max(shape):
        return state
    name = first.layer.transposable
    structure: Any = jax.tree.structure(state.params)

    def like_params(tree: Tree) -> bool:
        return bool(structure == jax.tree.structure(tree))

    def one(tree: Tree) -> Tree:
        if not like_params(tree):
            return tree
        part = first.of(tree)
        return first.put(tree, {**part, name: part[name].T})

    opt_state = jax.tree.map(one, state.opt_state, is_leaf=like_params)
    return state._replace(params=one(state.params), opt_state=opt_state)


def narrow_first(net: Layer) -> Place | None:
    """The place of the narrow dense layer that reads the data; None where another does, or a loop is around it."""
    for place in leaves_of(net):
        if place.layer.transposable != "":
            return place if place.layer.transposable and not place.loops else None
    return None
