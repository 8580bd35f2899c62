"""The gradients that an operation passes back to its inputs: by its rule in the table, or else by JAX's vjp of it.

As in JAX, an output without a gradient is left out of the vjp, and an input for which the vjp has no term is passed
nothing. Zeros in their place would give 0 · ∞ = NaN wherever a slope is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.aliases import Array
from jaxnn.graph.nodes import NO_RULE, Node
from jaxnn.graph.rules import RULES, Rule, nothing
from jaxnn.jaxprs import CONTROL, RULED, Values, bind, dependences, is_complex, is_float

Passed = tuple[Any, ...]
Gradients = Sequence[Any]  # of an operation's outputs, None for none


def rule_of(eqn: core.JaxprEqn) -> Rule | None:
    """The rule in the table; None for an operation without one, and for complex numbers, which are left to JAX."""
    if any(is_complex(var.aval) for var in (*eqn.invars, *eqn.outvars)):
        return None
    return RULES.get(eqn.primitive.name)


def has_slope(x: Any) -> bool:
    """True for real and complex floats: they may have derivatives."""
    return is_float(x) or is_complex(x)


def moved_outputs(eqn: core.JaxprEqn, inputs: Values, moves: Sequence[bool], outputs: Sequence[Any]) -> list[bool]:
    """For each output of an operation, whether it is a float whose derivative has a term for an input that moves."""
    floats = [has_slope(value) for value in outputs]
    rule = RULES.get(eqn.primitive.name)
    if rule is not None:
        return [is_one and rule.pull is not nothing for is_one in floats]
    if eqn.primitive.name in RULED or (len(outputs) == 1 and eqn.primitive.name not in CONTROL):
        return floats
    places, given = _places(moves), _places(floats)
    try:
        links = dependences(_function(eqn, inputs, places, given), [inputs[i] for i in places])
    except NotImplementedError:  # no derivative at all: the reverse pass raises, if it gets there
        return floats
    moved = {k for k, row in zip(given, links, strict=True) if any(row)}
    return [k in moved for k in range(len(outputs))]


def by_rule(node: Node, eqn: core.JaxprEqn, inputs: Values, own: Gradients, wanted: Sequence[bool]) -> Passed:
    """The gradients that the rule in the table passes back to the inputs that are wanted."""
    several = eqn.primitive.multiple_results
    delta, output = (list(own), list(node.values)) if several else (own[0], node.values[0])
    passed = RULES[eqn.primitive.name].pull(delta, inputs, output, eqn.params)
    return tuple(part if want else None for part, want in zip(passed, wanted, strict=True))


def by_jax(node: Node, eqn: core.JaxprEqn, inputs: Values, own: Gradients, wanted: Sequence[bool]) -> Passed:
    """The gradients that JAX's vjp of an operation, or its custom rule, passes back; ValueError without such a rule."""
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
    eqn: core.JaxprEqn, inputs: Values, places: Sequence[int], given: Sequence[int], reached: list[bool] | None = None
) -> Callable[[Values, Values], Passed]:
    """JAX's vjp of an operation: (the inputs at `places`, δ of the outputs `given`) -> the gradients of those inputs.

    `reached`, if given, becomes True at each place to which something is passed; JAX fills the others with zeros.
    """
    f = _function(eqn, inputs, places, given)

    def rule(moving: Values, deltas: Values) -> Passed:
        def watched(*floats: Array) -> Values:
            if reached is None:
                return f(*floats)
            return f(*(_watched(reached, i)(x) for i, x in zip(places, floats, strict=True)))

        return tuple(jax.vjp(watched, *moving)[1](deltas))

    return rule


def _watched(reached: list[bool], place: int) -> Callable[[Array], Array]:
    """The identity; it notes whether a gradient comes back to it."""

    @jax.custom_vjp
    def same(x: Array) -> Array:
        return x

    def backward(_: None, delta: Array) -> tuple[Array]:
        reached[place] = not isinstance(delta, jax.custom_derivatives.SymbolicZero)
        return (delta,)

    same.defvjp(lambda x: (x.value, None), backward, symbolic_zeros=True)
    return same


def _function(eqn: core.JaxprEqn, inputs: Values, places: Sequence[int], given: Sequence[int]) -> Callable[..., Values]:
    """The outputs `given` of an operation as a function of the inputs at `places`."""
    ready = [_array(x) for x in inputs]

    def f(*floats: Array) -> Values:
        moving = dict(zip(places, floats, strict=True))
        outs = bind(eqn.primitive, [moving.get(i, x) for i, x in enumerate(ready)], eqn.params)
        return [outs[k] for k in given]

    return f


def _array(x: Any) -> Any:
    """NumPy's arrays, as which a program holds its constants, as JAX's: a user's rule may index them by a tracer."""
    return jnp.asarray(x) if isinstance(x, np.ndarray) and x.dtype != jax.dtypes.float0 else x


def _places(flags: Sequence[bool]) -> list[int]:
    return [i for i, flag in enumerate(flags) if flag]
