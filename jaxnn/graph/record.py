"""A jaxpr evaluated operation by operation, forward and then in reverse, everything that passes kept.

Functions that are only wrapped (`jit`, `checkpoint`) are entered; functions with a rule of their own (`custom_jvp`,
`custom_vjp`) are one node and keep it; loops and branches are one node, or with unroll=True one for each operation of
each iteration. A node passes back what its local rule makes of its gradient, and an array's gradient is the sum of
what is passed to it (Griewank & Walther 2008, §3.2): that is all there is to reverse mode.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.graph.loops import Back, back, carries, repetitions
from jaxnn.graph.nodes import BY_HAND, BY_JAX, CUSTOM, NO_SLOPE, Graph, Leaf, Node, Ref
from jaxnn.graph.pulls import by_jax, by_rule, has_slope, jax_rule, moved_outputs, rule_of
from jaxnn.graph.rules.rule import Rule
from jaxnn.jaxprs import (
    CALLS,
    CONTROL,
    NOWHERE,
    RULED,
    Cond,
    Scan,
    Source,
    While,
    bind,
    called,
    is_float,
    line_of,
)

UNNAMED = 1  # a jitted function of so few operations is no group of its own

Scope = tuple[str, ...]


def recorded(
    name: str,
    closed: Any,
    args: Sequence[Any],
    names: Sequence[str],
    cotangents: Sequence[Any] | None,
    *,
    unroll: bool = False,
    source: Source = NOWHERE,
    wanted: Sequence[bool] | None = None,
) -> Graph:
    """A closed jaxpr at a point.

    Args:
        name: of the function.
        closed: the jaxpr.
        args: one array for each of its inputs.
        names: one for each of args.
        cotangents: the gradient of each output to begin with, None for none; None in their place for values alone.
        unroll: whether loops and branches become the operations that ran.
        source: the line to name where JAX has kept none.
        wanted: which of args to differentiate by; by default all floats.

    Returns:
        A Graph whose `value` and `gradients` are flat tuples.
    """
    tape = _Tape(unroll)
    given = [tape.leaf(Leaf(label, "input", arg)) for label, arg in zip(names, args, strict=True)]
    consts = [tape.leaf(Leaf(f"constant {i}", "constant", const)) for i, const in enumerate(closed.consts)]
    outs = tape.run(closed.jaxpr, consts, given, (), source)
    value = tuple(tape.value(ref) for ref in outs)
    if cotangents is None:
        return Graph(name, tuple(tape.leaves), _openable(tape, tape.nodes), tuple(outs), value, ())
    nodes, gradients = _reverse(tape, given, outs, cotangents, wanted or [True] * len(given))
    nodes = _openable(tape, nodes)
    found = tuple(gradients.get(ref) for ref in given)
    leaves = [leaf._replace(gradient=gradients.get(Ref(-1 - k))) for k, leaf in enumerate(tape.leaves)]
    return Graph(name, tuple(leaves), nodes, tuple(outs), value, found, tuple(cotangents))


# ---------------------------------------------------------------- forward


class _Tape:
    """Leaves and nodes, as they come."""

    def __init__(self, unroll: bool) -> None:
        self.unroll = unroll
        self.leaves: list[Leaf] = []
        self.nodes: list[Node] = []
        self.equations: list[Any] = []  # one for each node

    def leaf(self, leaf: Leaf) -> Ref:
        self.leaves.append(leaf)
        return Ref(-len(self.leaves))

    def value(self, ref: Ref) -> Any:
        return self.leaves[-1 - ref.node].value if ref.node < 0 else self.nodes[ref.node].values[ref.output]

    def run(self, jaxpr: Any, consts: list[Ref], args: list[Ref], scope: Scope, source: Source) -> list[Ref]:
        """Evaluates a jaxpr; its variables are named anew at each call, since JAX shares jaxprs between calls."""
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(atom: Any) -> Ref:
            return self._number(atom) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outs = self._step(eqn, [read(atom) for atom in eqn.invars], scope, source)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _number(self, literal: Any) -> Ref:
        value = literal.val
        if literal.aval.dtype != jax.dtypes.float0:
            value = np.asarray(value, literal.aval.dtype)
        return self.leaf(Leaf(f"{value:.6g}" if np.ndim(value) == 0 else "number", "number", value))

    def _step(self, eqn: Any, inputs: list[Ref], scope: Scope, source: Source) -> list[Ref]:
        kind, source = eqn.primitive.name, line_of(eqn, source)
        scope = (*scope, *_names(eqn))
        if kind in CALLS:
            return self._enter(called(eqn), inputs, (*scope, *_own_name(eqn)), source)
        if self.unroll and kind in CONTROL:
            return UNROLLED[kind](self, eqn, inputs, scope, source)
        values = bind(eqn.primitive, [self.value(ref) for ref in inputs], eqn.params)
        rule = rule_of(eqn)
        node = Node(
            len(self.nodes),
            _title(eqn),
            tuple(inputs),
            tuple(values),
            params=eqn.params,
            formula=rule.formula if rule else "",
            rule=_whose(eqn, rule),
            file=source.file,
            line=source.line,
            function=source.function,
            group=scope,
            note=_note(rule, [self.value(ref) for ref in inputs], values, eqn),
        )
        self.nodes.append(node)
        self.equations.append(eqn)
        return [Ref(node.id, k) for k in range(len(values))]

    def _enter(self, closed: Any, inputs: list[Ref], scope: Scope, source: Source) -> list[Ref]:
        consts = [self.leaf(Leaf("constant", "constant", const)) for const in closed.consts]
        return self.run(closed.jaxpr, consts, inputs, scope, source)

    def apply(self, f: Callable[..., Any], inputs: list[Ref], scope: Scope, source: Source) -> list[Ref]:
        """The operations of a function of arrays that is not the user's: picking an iteration's slice, stacking."""
        closed = jax.make_jaxpr(f)(*(self.value(ref) for ref in inputs))
        return self._enter(closed, inputs, scope, source)


def _names(eqn: Any) -> Scope:
    stack = str(eqn.source_info.name_stack)
    return tuple(stack.split("/")) if stack else ()


def _own_name(eqn: Any) -> Scope:
    """The name of a jitted function that is worth a group."""
    name = eqn.params.get("name", "")
    return (name,) if name and len(called(eqn).jaxpr.eqns) > UNNAMED else ()


def _title(eqn: Any) -> str:
    """The primitive's name; for a function with a rule of its own, the function's."""
    if eqn.primitive.name not in RULED:
        return str(eqn.primitive.name)
    jaxpr = called(eqn).jaxpr
    if len(jaxpr.eqns) == 1 and jaxpr.eqns[0].primitive.name in CALLS and "name" in jaxpr.eqns[0].params:
        return str(jaxpr.eqns[0].params["name"])
    return str(getattr(jaxpr.debug_info, "func_name", "") or eqn.primitive.name)


def _whose(eqn: Any, rule: Rule | None) -> str:
    if not any(has_slope(var.aval) for var in eqn.outvars):
        return NO_SLOPE
    if eqn.primitive.name in RULED:
        return CUSTOM
    return BY_HAND if rule else BY_JAX


def _note(rule: Rule | None, inputs: list[Any], values: list[Any], eqn: Any) -> str:
    if rule is None or rule.note is None or any(isinstance(x, jax.core.Tracer) for x in inputs):
        return ""
    return rule.note(inputs, values if eqn.primitive.multiple_results else values[0], eqn.params)


# ---------------------------------------------------------------- loops and branches, unrolled


def _unrolled_scan(tape: _Tape, eqn: Any, inputs: list[Ref], scope: Scope, source: Source) -> list[Ref]:
    loop = Scan.of(eqn.params)
    consts, carry, xs = loop.parts(inputs)
    ys: dict[int, list[Ref]] = {}
    for t in loop.order:
        inside = (*scope, f"scan[{t}]")
        here = [
            tape.apply(lambda x, t=t: jax.lax.index_in_dim(x, t, keepdims=False), [x], inside, source)[0] for x in xs
        ]
        carry, ys[t] = loop.results(tape._enter(loop.body, [*consts, *carry, *here], inside, source))
    avals = [var.aval for var in loop.results(eqn.outvars)[1]]
    return [
        *carry,
        *(_stacked(tape, [ys[t][k] for t in sorted(ys)], aval, scope, source) for k, aval in enumerate(avals)),
    ]


def _stacked(tape: _Tape, parts: list[Ref], aval: Any, scope: Scope, source: Source) -> Ref:
    if not parts:
        return tape.leaf(Leaf("no iterations", "constant", jnp.zeros(aval.shape, aval.dtype)))
    return tape.apply(lambda *parts: jnp.stack(parts), parts, scope, source)[0]


def _unrolled_while(tape: _Tape, eqn: Any, inputs: list[Ref], scope: Scope, source: Source) -> list[Ref]:
    loop = While.of(eqn.params)
    test_consts, body_consts, carry = loop.parts(inputs)
    t = 0
    while True:
        inside = (*scope, f"while[{t}]")
        (going,) = tape._enter(loop.test, [*test_consts, *carry], (*inside, "condition"), source)
        if not bool(tape.value(going)):
            return carry
        carry = tape._enter(loop.body, [*body_consts, *carry], inside, source)
        t += 1


def _unrolled_cond(tape: _Tape, eqn: Any, inputs: list[Ref], scope: Scope, source: Source) -> list[Ref]:
    cond = Cond.of(eqn.params)
    taken = cond.taken(tape.value(inputs[0]))
    return tape._enter(cond.branches[taken], inputs[1:], (*scope, f"cond, branch {taken}"), source)


UNROLLED = {"scan": _unrolled_scan, "while": _unrolled_while, "cond": _unrolled_cond}


# ---------------------------------------------------------------- what can be opened


def _openable(tape: _Tape, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes, those with a function inside given the way to open it."""
    found = []
    for node, eqn in zip(nodes, tape.equations, strict=True):
        inputs = [tape.value(ref) for ref in node.inputs]
        if eqn.primitive.name in OPENED:
            node = node._replace(inner=OPENED[eqn.primitive.name](node, eqn, inputs))
        if node.rule in (CUSTOM, BY_JAX) and any(part is not None for part in node.passed):
            node = node._replace(pull=_rule_graph(node, eqn, inputs))
        found.append(node)
    return tuple(found)


def _part(
    node: Node,
    name: str,
    closed: Any,
    args: Sequence[Any],
    names: Sequence[str],
    cotangents: Any = None,
    wanted: Sequence[bool] | None = None,
) -> Graph:
    source = Source(node.file, node.line, node.function)
    return recorded(name, closed, args, names, cotangents, source=source, wanted=wanted)


def _numbered(word: str, count: int) -> list[str]:
    return [f"{word} {i}" for i in range(count)]


def _open_scan(node: Node, eqn: Any, inputs: list[Any]) -> Callable[..., Graph]:
    """Iteration t as a graph: its values, and its gradients where the scan has some."""
    loop = Scan.of(eqn.params)
    own = node.gradients if any(g is not None for g in node.gradients) else None

    @functools.cache
    def passing() -> tuple[list[Any], Back | None]:
        came = carries(loop, inputs)
        wanted = [part is not None for part in node.passed]
        return came, None if own is None else back(loop, inputs, own, came, wanted)

    def inner(t: int = 0) -> Graph:
        t = range(loop.length)[t]
        came, passed = passing()
        consts, carry, xs = loop.parts(inputs)
        args = [*consts, *(c[t] for c in came), *(x[t] for x in xs)]
        names = [
            *_numbered("constant", len(consts)), *_numbered("carry", len(carry)), *_numbered("x", len(xs))
        ]  # fmt: skip
        if passed is None or own is None:
            return _part(node, f"scan[{t}]", loop.body, args, names)
        cotangents = [None if g is None else g[t] for g in (*passed.deltas, *loop.results(own)[1])]
        return _part(node, f"scan[{t}]", loop.body, args, names, cotangents, passed.moving)

    return inner


def _open_while(node: Node, eqn: Any, inputs: list[Any]) -> Callable[..., Graph]:
    """Iteration t as a graph of values."""
    loop = While.of(eqn.params)
    _, consts, _ = loop.parts(inputs)

    def inner(t: int = 0) -> Graph:
        carry = next(itertools.islice(itertools.pairwise(repetitions(loop, inputs)), t, None), None)
        if t < 0 or carry is None:
            raise IndexError(f"graph: the loop has no iteration {t}")
        args = [*consts, *carry[0]]
        names = [*_numbered("constant", len(consts)), *_numbered("carry", len(carry[0]))]
        return _part(node, f"while[{t}]", loop.body, args, names)

    return inner


def _open_cond(node: Node, eqn: Any, inputs: list[Any]) -> Callable[..., Graph]:
    """The branch that was taken, as a graph; there is but one."""

    def inner(t: int = 0) -> Graph:
        cond = Cond.of(eqn.params)
        taken = cond.taken(inputs[0])
        own = node.gradients if any(g is not None for g in node.gradients) else None
        names = _numbered("operand", len(inputs) - 1)
        wanted = [part is not None for part in node.passed[1:]]
        return _part(node, f"cond, branch {taken}", cond.branches[taken], inputs[1:], names, own, wanted)

    return inner


def _open_custom(node: Node, eqn: Any, inputs: list[Any]) -> Callable[..., Graph]:
    """The operations behind a function with a rule of its own: values alone, since that rule passes δ by them."""

    def inner(t: int = 0) -> Graph:
        return _part(node, node.operation, called(eqn), inputs, _numbered("operand", len(inputs)))

    return inner


def _rule_graph(node: Node, eqn: Any, inputs: list[Any]) -> Callable[[], Graph]:
    """The operations of a rule that is not of the table, as a graph of values."""

    def traced() -> Graph:
        places = [i for i, part in enumerate(node.passed) if part is not None]
        given = [k for k, g in enumerate(node.gradients) if g is not None]
        moving, deltas = [inputs[i] for i in places], [node.gradients[k] for k in given]
        closed = jax.make_jaxpr(jax_rule(eqn, inputs, places, given))(moving, deltas)
        names = [*(f"operand {i}" for i in places), *(f"δ{k}" if k else "δ" for k in given)]
        return _part(node, f"the rule of {node.operation}", closed, [*moving, *deltas], names)

    return traced


OPENED = {
    "scan": _open_scan,
    "while": _open_while,
    "cond": _open_cond,
    **dict.fromkeys(RULED, _open_custom),
}


# ---------------------------------------------------------------- reverse


def _reverse(
    tape: _Tape, given: list[Ref], outs: list[Ref], cotangents: Sequence[Any], wanted: Sequence[bool]
) -> tuple[tuple[Node, ...], dict[Ref, Any]]:
    """The nodes with their gradients and what they pass back, and the gradient of every array that has one.

    An array that nothing is passed to has no gradient, and not one of zeros: 0 times an infinite slope is NaN.
    """
    differentiated = {ref for ref, want in zip(given, wanted, strict=True) if want and is_float(tape.value(ref))}
    reached, moving = _moved(tape, differentiated)
    gradients: dict[Ref, Any] = {}

    def add(ref: Ref, passed: Any) -> None:
        gradients[ref] = gradients[ref] + passed if ref in gradients else passed

    for ref, cotangent in zip(outs, cotangents, strict=True):
        if cotangent is not None and ref in reached:
            add(ref, cotangent)
    done: list[Node] = []
    for node, eqn in zip(reversed(tape.nodes), reversed(tape.equations), strict=True):
        refs = [Ref(node.id, k) for k in range(len(node.values))]
        own = tuple(gradients.get(ref) for ref in refs)
        passed: tuple[Any, ...] = (None,) * len(node.inputs)
        if any(g is not None for g in own):
            inputs = [tape.value(ref) for ref in node.inputs]
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


def _moved(tape: _Tape, differentiated: set[Ref]) -> tuple[set[Ref], set[Ref]]:
    """The floats that depend on what is differentiated by, and those of them whose derivative is not 0 as it stands.

    `stop_gradient` has the gradient that comes to it, and passes nothing back: what is behind it does not move.
    """
    reached, moving = set(differentiated), set(differentiated)
    for node, eqn in zip(tape.nodes, tape.equations, strict=True):
        floats = [k for k, value in enumerate(node.values) if has_slope(value)]
        if any(ref in reached for ref in node.inputs):
            reached.update(Ref(node.id, k) for k in floats)
        moves = [ref in moving for ref in node.inputs]
        if floats and any(moves):
            found = moved_outputs(eqn, [tape.value(ref) for ref in node.inputs], moves, node.values)
            moving.update(Ref(node.id, k) for k in floats if found[k])
    return reached, moving
