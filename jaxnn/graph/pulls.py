"""What an operation passes back to its inputs: by its rule of the table, or else by JAX's own vjp of the operation.

An output without a gradient is left out of the vjp, and an input that the vjp has no term for is passed nothing, as JAX
does it. With zeros in their place, 0 · ∞ = NaN would come of every slope that is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.graph.nodes import NO_RULE, Node
from jaxnn.graph.rules import RULES, Rule, nothing
from jaxnn.jaxprs import CONTROL, RULED, bind, dependences, is_complex, is_float

Passed = tuple[Any, ...]
Gradients = Sequence[Any]  # of an operation's outputs, None for none


def rule_of(eqn: Any) -> Rule | None:
    """The rule of the table; None for an operation without one, and for complex numbers, which are left to JAX."""
    if any(is_complex(var.aval) for var in (*eqn.invars, *eqn.outvars)):
        return None
    return RULES.get(eqn.primitive.name)


def has_slope(x: Any) -> bool:
    """True for what a derivative may be taken of: real and complex floats."""
    return is_float(x) or is_complex(x)


def moved_outputs(eqn: Any, inputs: list[Any], moves: Sequence[bool], outputs: Sequence[Any]) -> list[bool]:
    """For each output of an operation whether it is a float whose derivative has a term for an input that moves."""
    floats = [has_slope(value) for value in outputs]
    rule = RULES.get(eqn.primitive.name)
    if rule is not None:
        return [is_one and rule.pull is not nothing for is_one in floats]
    if eqn.primitive.name in RULED or (len(outputs) == 1 and eqn.primitive.name not in CONTROL):
        return floats
    places, given = _places(moves), _places(floats)
    try:
        links = dependences(_function(eqn, inputs, places, given), [inputs[i] for i in places])
    except NotImplementedError:  # no derivative at all: the reverse pass says so, should it come there
        return floats
    moved = {k for k, row in zip(given, links, strict=True) if any(row)}
    return [k in moved for k in range(len(outputs))]


def by_rule(node: Node, eqn: Any, inputs: list[Any], own: Gradients, wanted: Sequence[bool]) -> Passed:
    """What the rule of the table passes back to the inputs that are wanted."""
    several = eqn.primitive.multiple_results
    delta, output = (list(own), list(node.values)) if several else (own[0], node.values[0])
    passed = RULES[eqn.primitive.name].pull(delta, inputs, output, eqn.params)
    return tuple(part if want else None for part, want in zip(passed, wanted, strict=True))


def by_jax(node: Node, eqn: Any, inputs: list[Any], own: Gradients, wanted: Sequence[bool]) -> Passed:
    """What JAX's vjp of an operation passes back: a function's own rule where it has one.

    Raises:
        ValueError: if JAX has no reverse rule for it, with the operation and its line.
    """
    places, given = _places(wanted), [k for k, g in enumerate(own) if g is not None]
    found: list[Any] = [None] * len(inputs)
    if not places or not given:
        return tuple(found)
    reached = [False] * len(inputs)
    try:
        rule = jax_rule(eqn, inputs, places, given, reached)
        parts = rule([inputs[i] for i in places], [own[k] for k in given])
    except (NotImplementedError, ValueError) as error:
        way = "unroll=True differentiates through its iterations" if node.operation == "while" else NO_RULE
        where = f" at {node.source}" if node.source else ""
        raise ValueError(f"graph: {node.operation}{where} cannot be differentiated in reverse: {way}") from error
    for i, part in zip(places, parts, strict=True):
        found[i] = part if reached[i] else None
    return tuple(found)


def jax_rule(
    eqn: Any, inputs: list[Any], places: Sequence[int], given: Sequence[int], reached: list[bool] | None = None
) -> Callable[[list[Any], list[Any]], Passed]:
    """(the inputs at those places, δ of the outputs that are given) -> what JAX's vjp passes back to those inputs.

    Args:
        eqn: the operation.
        inputs: all of them.
        places: which of them are differentiated by.
        given: which outputs have a δ.
        reached: if given, becomes True at each place that something is passed to; JAX fills the others with zeros.
    """
    f = _function(eqn, inputs, places, given)

    def rule(moving: list[Any], deltas: list[Any]) -> Passed:
        def watched(*floats: Any) -> list[Any]:
            if reached is None:
                return f(*floats)
            return f(*(_watched(reached, i)(x) for i, x in zip(places, floats, strict=True)))

        return tuple(jax.vjp(watched, *moving)[1](deltas))

    return rule


def _watched(reached: list[bool], place: int) -> Callable[[Any], Any]:
    """The identity, which notes whether a gradient comes back to it."""

    @jax.custom_vjp
    def same(x: Any) -> Any:
        return x

    def backward(_: None, delta: Any) -> tuple[Any]:
        reached[place] = not isinstance(delta, jax.custom_derivatives.SymbolicZero)
        return (delta,)

    same.defvjp(lambda x: (x.value, None), backward, symbolic_zeros=True)
    return same


def _function(eqn: Any, inputs: list[Any], places: Sequence[int], given: Sequence[int]) -> Callable[..., list[Any]]:
    """The outputs that are given, as a function of the inputs at those places."""
    ready = [_array(x) for x in inputs]

    def f(*floats: Any) -> list[Any]:
        moving = dict(zip(places, floats, strict=True))
        outs = bind(eqn.primitive, [moving.get(i, x) for i, x in enumerate(ready)], eqn.params)
        return [outs[k] for k in given]

    return f


def _array(x: Any) -> Any:
    """NumPy's arrays, as which a program holds its constants, as JAX's: a rule of a user's own may index them by i."""
    return jnp.asarray(x) if isinstance(x, np.ndarray) and x.dtype != jax.dtypes.float0 else x


def _places(flags: Sequence[bool]) -> list[int]:
    return [i for i, flag in enumerate(flags) if flag]
