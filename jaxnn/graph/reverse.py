"""Reverse mode: each node passes back what its local rule makes of its gradient.

The gradient of an array is the sum of all that is passed back to it (Griewank & Walther 2008, §3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

from jaxnn.graph.nodes import Node, Ref
from jaxnn.graph.pulls import by_jax, by_rule, has_slope, moved_outputs, rule_of
from jaxnn.jaxprs import is_float

Steps = Sequence[tuple[Node, core.JaxprEqn]]  # in the order in which they ran
Value = Callable[[Ref], Any]


def reverse(
    steps: Steps,
    value: Value,
    given: Sequence[Ref],
    outs: Sequence[Ref],
    cotangents: Sequence[Any],
    wanted: Sequence[bool],
) -> tuple[tuple[Node, ...], dict[Ref, Any]]:
    """The nodes with their gradients and what they pass back, and the gradient of every array that has one.

    An array to which nothing is passed has no gradient, rather than zeros: 0 times an infinite slope is NaN. `steps`
    are the nodes and their equations, `value` maps a reference to its array, `given` are the inputs, `cotangents` the
    gradients of the outputs `outs`, None for none, and `wanted` the inputs to differentiate by.
    """
    differentiated = {ref for ref, want in zip(given, wanted, strict=True) if want and is_float(value(ref))}
    reached, moving = _moved(steps, value, differentiated)
    gradients: dict[Ref, Any] = {}

    def add(ref: Ref, passed: Any) -> None:
        gradients[ref] = gradients[ref] + passed if ref in gradients else passed

    for ref, cotangent in zip(outs, cotangents, strict=True):
        if cotangent is not None and ref in reached:
            add(ref, cotangent)
    done: list[Node] = []
    for node, eqn in reversed(steps):
        refs = [Ref(node.id, k) for k in range(len(node.values))]
        own = tuple(gradients.get(ref) for ref in refs)
        passed: tuple[Any, ...] = (None,) * len(node.inputs)
        if any(g is not None for g in own):
            inputs = [value(ref) for ref in node.inputs]
            if rule_of(eqn) is not None:
                passed = by_rule(node, eqn, inputs, own, [ref in reached for ref in node.inputs])
            else:
                linear = tuple(g if ref in moving else None for g, ref in zip(own, refs, strict=True))
                passed = by_jax(node, eqn, inputs, linear, [ref in moving for ref in node.inputs])
            for ref, part in zip(node.inputs, passed, strict=True):
                if part is not None:
                    add(ref, part)
        done.append(node._replace(gradients=own, passed=passed))
    return tuple(reversed(done)), gradients


def _moved(steps: Steps, value: Value, differentiated: set[Ref]) -> tuple[set[Ref], set[Ref]]:
    """The floats that depend on what is differentiated by, and those of them whose derivative is not simply 0.

    `stop_gradient` has the gradient that comes to it, and passes nothing back: what is behind it does not move.
    """
    reached, moving = set(differentiated), set(differentiated)
    for node, eqn in steps:
        floats = [k for k, x in enumerate(node.values) if has_slope(x)]
        if any(ref in reached for ref in node.inputs):
            reached.update(Ref(node.id, k) for k in floats)
        moves = [ref in moving for ref in node.inputs]
        if floats and any(moves):
            found = moved_outputs(eqn, [value(ref) for ref in node.inputs], moves, node.values)
            moving.update(Ref(node.id, k) for k in floats if found[k])
    return reached, moving
