"""The operation that discards a result: its value is then unused, but its slope still enters the gradient.

An operation whose result is not selected has δ = 0, and 0 times an infinite slope is NaN. The search goes downstream
from the affected entries: the first operation that has a nonzero gradient at the entries computed from them, or has no
such entries, is the one that discards them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn.graph.nonfinite.causes as causes
from jaxnn.graph.nodes import CUSTOM, Graph, Node, Ref
from jaxnn.graph.nonfinite.entries import entrywise, users_of
from jaxnn.jaxprs import bind, is_float

LINEAR = {  # entries are followed by the operation itself, applied to 1 there and 0 elsewhere
    *("slice", "dynamic_slice", "gather", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "rev"),
    *("concatenate", "pad", "reduce_sum", "cumsum", "copy", "copy_p", "split", "dynamic_update_slice", "scatter"),
    *("scatter-add", "dot_general", "conv_general_dilated", "stack"),
}
FACTORS = {"dot_general", "conv_general_dilated"}
CHOOSES = {"select_n"}
BOUNDS = {
    *("max", "min", "clamp", "reduce_max", "reduce_min", "cummax", "cummin", "sort", "top_k", "argmax", "argmin"),
    *("approx_top_k", "reduce_window_max", "reduce_window", "select_and_gather_add"),
}
TAKES = {"slice", "dynamic_slice", "gather", "pad", "dynamic_update_slice", "scatter", "split"}
SHOWN_AS = {"select_n": "where", "gather": "indexing", "reduce_max": "max", "reduce_min": "min"}
MOST = 256  # operations that are visited


class Discard(NamedTuple):
    """An operation that discards a result."""

    node: Node  # the operation
    cause: str  # WHERE, DROPPED, BOUNDED or MASKED; "" for an operation whose slope is 0 there, such as exp at −∞

    @property
    def words(self) -> str:
        """Its name and its line."""
        name = SHOWN_AS.get(self.node.operation, self.node.operation)
        return f"{name} at {self.node.source}" if self.node.source else name


def discarded_by(graph: Graph, ref: Ref, mask: Any) -> Discard | None:
    """The operation that discards the masked entries of an array; None if this graph uses or returns them."""
    users = users_of(graph)
    todo, seen = [(ref, mask)], set[tuple[int, int]]()
    while todo and len(seen) < MOST:
        here, mask = todo.pop(0)
        for user, slot in users.get(here, ()):
            if (user.id, slot) in seen or all(g is None for g in user.gradients):
                continue
            seen.add((user.id, slot))
            masks = reached(graph, user, slot, mask)
            if user.operation in CHOOSES and slot and not _chosen(graph, user, slot, masks[0]):
                return Discard(user, causes.WHERE)
            live = any(_live(g, m) for g, m in zip(user.gradients, masks, strict=True))
            if live or not any(m.any() for m in masks):
                kind = _kind(graph, user, slot) if live else causes.DROPPED
                return _opened(graph, user, slot, mask) or Discard(user, kind)
            todo += [(Ref(user.id, k), m) for k, m in enumerate(masks) if m.any()]
    return None


def _chosen(graph: Graph, node: Node, slot: int, mask: Any) -> bool:
    which = np.asarray(graph.at(node.inputs[0])[0]).astype(int)
    return bool(((which == slot - 1) & mask).any())


def _live(gradient: Any, mask: Any) -> bool:
    return gradient is not None and bool(((np.asarray(gradient) != 0) & mask).any())


def reached(graph: Graph, node: Node, slot: int, mask: Any) -> list[Any]:
    """Masks of the entries of an operation's outputs that depend on the masked entries of one input."""
    shapes = [np.shape(value) for value in node.values]
    if node.operation in LINEAR:
        return _by_itself(graph, node, slot, mask)
    if entrywise(graph, node):
        return [np.broadcast_to(mask, shapes[0])]
    axes = node.params.get("axes")
    if axes is not None and len(node.inputs) == len(node.values) == 1:
        return [np.asarray(mask).any(axis=tuple(axes)).reshape(shapes[0])]
    return [np.ones(shape, bool) for shape in shapes]


def _by_itself(graph: Graph, node: Node, slot: int, mask: Any) -> list[Any]:
    primitive = getattr(jax.lax, f"{node.operation.replace('-', '_')}_p", None)
    if primitive is None:
        return [np.ones(np.shape(value), bool) for value in node.values]
    inputs = [graph.at(ref)[0] for ref in node.inputs]
    others = 1 if node.operation in FACTORS else 0
    given = [jnp.full_like(x, others) if is_float(x) else x for x in inputs]
    given[slot] = jax.device_put(np.broadcast_to(mask, np.shape(inputs[slot])).astype(inputs[slot].dtype))
    if node.operation == "reduce_sum" and mask.any():  # so that many ones do not overflow
        return [np.asarray(mask).any(axis=tuple(node.params["axes"])).reshape(np.shape(node.values[0]))]
    return [np.asarray(out) != 0 for out in bind(primitive, given, dict(node.params))]


def _opened(graph: Graph, node: Node, slot: int, mask: Any) -> Discard | None:
    """The operation inside a scan or a branch that discards it."""
    if node.inner is None or node.rule == CUSTOM or node.operation not in ("scan", "cond"):
        return None
    inside, t = mask, 0
    if node.operation == "cond":
        slot -= 1
    if slot < 0:
        return None
    first = node.inner(0)
    if node.operation == "scan" and np.shape(first.leaves[slot].value) != np.shape(mask):  # one of the xs
        t = int(np.argwhere(mask)[0][0])
        inside = mask[t]
    inner = node.inner(t)
    return discarded_by(inner, Ref(-1 - slot), inside) if inner.gradients else None


def _kind(graph: Graph, node: Node, slot: int) -> str:
    if node.operation in CHOOSES:
        return causes.WHERE
    if node.operation in BOUNDS:
        return causes.BOUNDED
    if node.operation in TAKES:
        return causes.DROPPED
    if node.operation in ("mul", *FACTORS) and _has_zero(graph, node.inputs, slot):
        return causes.MASKED
    return ""


def _has_zero(graph: Graph, inputs: Sequence[Ref], slot: int) -> bool:
    return any(i != slot and bool((np.asarray(graph.at(ref)[0]) == 0).any()) for i, ref in enumerate(inputs))
