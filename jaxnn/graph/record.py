"""Evaluates a program operation by operation, forward and then in reverse, and keeps every value and gradient.

Calls of functions that are only wrapped (`jit`, `checkpoint`) are entered. A function with a custom rule (`custom_jvp`,
`custom_vjp`) is one node and keeps its rule. A loop or a branch is one node, or, with unroll=True, one node for each
operation of each iteration.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.aliases import Array
from jaxnn.graph.loops import Back, back, carries, given_at, repetitions
from jaxnn.graph.nodes import BY_HAND, BY_JAX, CUSTOM, NO_SLOPE, Graph, Leaf, Node, Ref
from jaxnn.graph.pulls import has_slope, jax_rule, rule_of
from jaxnn.graph.reverse import reverse
from jaxnn.graph.rules.rule import Rule
from jaxnn.jaxprs import (
    NOWHERE,
    RULED,
    Cond,
    Interpreter,
    Program,
    Scan,
    Source,
    Values,
    While,
    bind,
    called,
    line_of,
    size,
    spec_of,
    title_of,
)

UNNAMED = 1  # a jitted function of no more operations does not make a group

Scope = tuple[str, ...]


def recorded(
    name: str,
    closed: Program,
    args: Sequence[Any],
    names: Sequence[str],
    cotangents: Sequence[Any] | None,
    *,
    unroll: bool = False,
    source: Source = NOWHERE,
    wanted: Sequence[bool] | None = None,
) -> Graph:
    """The graph of a program at a point, with flat tuples for `value` and `gradients`.

    `names` and `args` have an entry for each input. `cotangents` are the gradients of the outputs to begin with, None
    for none, None instead of all for values alone. With `unroll` loops and branches become the operations that ran.
    `source` is the line to name where JAX has recorded none, `wanted` which of args to differentiate by, by default all
    floats.
    """
    tape = (_Unrolled if unroll else _Tape)(source)
    given = [tape.leaf(Leaf(label, "input", arg)) for label, arg in zip(names, args, strict=True)]
    consts = [tape.leaf(Leaf(f"constant {i}", "constant", const)) for i, const in enumerate(closed.consts)]
    outs = tape.evaluate(closed.jaxpr, consts, given)
    value = tuple(tape.value(ref) for ref in outs)
    if cotangents is None:
        return Graph(name, tuple(tape.leaves), _openable(tape, tape.nodes), tuple(outs), value, ())
    steps = list(zip(tape.nodes, tape.equations, strict=True))
    nodes, gradients = reverse(steps, tape.value, given, outs, cotangents, wanted or [True] * len(given))
    found = tuple(gradients.get(ref) for ref in given)
    leaves = tuple(leaf._replace(gradient=gradients.get(Ref(-1 - k))) for k, leaf in enumerate(tape.leaves))
    return Graph(name, leaves, _openable(tape, nodes), tuple(outs), value, found, tuple(cotangents))


# ---------------------------------------------------------------- forward


class _Tape(Interpreter):
    """Records leaves and nodes in order; in the place of an array it has a reference to one of them."""

    def __init__(self, source: Source) -> None:
        self.scope, self.source = Scope(), source
        self.leaves: list[Leaf] = []
        self.nodes: list[Node] = []
        self.equations: list[core.JaxprEqn] = []  # one for each node

    def leaf(self, leaf: Leaf) -> Ref:
        self.leaves.append(leaf)
        return Ref(-len(self.leaves))

    def value(self, ref: Ref) -> Any:
        return self.leaves[-1 - ref.node].value if ref.node < 0 else self.nodes[ref.node].values[ref.output]

    @contextlib.contextmanager
    def inside(self, *names: str, source: Source | None = None) -> Iterator[None]:
        """Within it, nodes are recorded in an inner scope, and from that line where JAX has recorded none."""
        before = self.scope, self.source
        self.scope, self.source = (*self.scope, *names), source or self.source
        yield
        self.scope, self.source = before

    def constant(self, const: Any) -> Ref:
        return self.leaf(Leaf("constant", "constant", const))

    def literal(self, literal: core.Literal) -> Ref:
        value, dtype = literal.val, spec_of(literal).dtype
        if dtype != jax.dtypes.float0:
            value = np.asarray(value, dtype)
        return self.leaf(Leaf(f"{value:.6g}" if np.ndim(value) == 0 else "number", "number", value))

    def equation(self, eqn: core.JaxprEqn, inputs: list[Ref]) -> list[Ref]:
        with self.inside(*_names(eqn), source=line_of(eqn, self.source)):
            return super().equation(eqn, inputs)

    def call(self, eqn: core.JaxprEqn, inputs: list[Ref]) -> list[Ref]:
        with self.inside(*_own_name(eqn)):
            return super().call(eqn, inputs)

    def operation(self, eqn: core.JaxprEqn, inputs: list[Ref]) -> list[Ref]:
        arrays = [self.value(ref) for ref in inputs]
        values, rule = bind(eqn.primitive, arrays, eqn.params), rule_of(eqn)
        node = Node(
            len(self.nodes),
            _title(eqn),
            tuple(inputs),
            tuple(values),
            params=eqn.params,
            formula=rule.formula if rule else "",
            rule=_whose(eqn, rule),
            file=self.source.file,
            line=self.source.line,
            function=self.source.function,
            group=self.scope,
            note=_note(rule, arrays, values, eqn),
        )
        self.nodes.append(node)
        self.equations.append(eqn)
        return [Ref(node.id, k) for k in range(len(values))]


class _Unrolled(_Tape):
    """A tape with a node for each operation of each iteration, and of the branch that is taken."""

    def scan(self, eqn: core.JaxprEqn, inputs: list[Ref]) -> list[Ref]:
        loop = Scan.of(eqn.params)
        consts, carry, xs = loop.parts(inputs)
        ys: dict[int, list[Ref]] = {}
        for t in loop.order:
            with self.inside(f"scan[{t}]"):
                here = [self._apply(lambda x, t=t: jax.lax.index_in_dim(x, t, keepdims=False), [x]) for x in xs]
                carry, ys[t] = loop.results(self.run(loop.body, [*consts, *carry, *here]))
        stacked = loop.results(eqn.outvars)[1]
        return [*carry, *(self._stacked([ys[t][k] for t in sorted(ys)], var) for k, var in enumerate(stacked))]

    def while_loop(self, eqn: core.JaxprEqn, inputs: list[Ref]) -> list[Ref]:
        loop = While.of(eqn.params)
        test_consts, body_consts, carry = loop.parts(inputs)
        t = 0
        while True:
            with self.inside(f"while[{t}]"):
                with self.inside("condition"):
                    (going,) = self.run(loop.test, [*test_consts, *carry])
                if not bool(self.value(going)):
                    break
                carry = self.run(loop.body, [*body_consts, *carry])
            t += 1
        return carry

    def cond(self, eqn: core.JaxprEqn, inputs: list[Ref]) -> list[Ref]:
        cond = Cond.of(eqn.params)
        taken = cond.taken(self.value(inputs[0]))
        with self.inside(f"cond, branch {taken}"):
            return self.run(cond.branches[taken], inputs[1:])

    def _apply(self, f: Callable[..., Array], inputs: list[Ref]) -> Ref:
        """Records the operations of a function that is not the user's: the slice of an iteration, a stack of them."""
        (out,) = self.run(jax.make_jaxpr(f)(*map(self.value, inputs)), inputs)
        return out

    def _stacked(self, parts: list[Ref], var: core.Var) -> Ref:
        if not parts:
            spec = spec_of(var)
            return self.leaf(Leaf("no iterations", "constant", jnp.zeros(spec.shape, spec.dtype)))
        return self._apply(lambda *parts: jnp.stack(parts), parts)


def _names(eqn: core.JaxprEqn) -> Scope:
    """The scopes of `jax.named_scope` and of transformations that JAX has recorded."""
    stack = str(eqn.source_info.name_stack)
    return tuple(stack.split("/")) if stack else ()


def _own_name(eqn: core.JaxprEqn) -> Scope:
    """The name of a jitted function that is large enough for a group."""
    name = eqn.params.get("name", "")
    return (name,) if name and size(called(eqn)) > UNNAMED else ()


def _title(eqn: core.JaxprEqn) -> str:
    """The name of the primitive, or of the function with a custom rule."""
    name = str(eqn.primitive.name)
    return title_of(called(eqn)) or name if name in RULED else name


def _whose(eqn: core.JaxprEqn, rule: Rule | None) -> str:
    """Where an operation's derivative comes from."""
    if not any(has_slope(var.aval) for var in eqn.outvars):
        return NO_SLOPE
    if eqn.primitive.name in RULED:
        return CUSTOM
    return BY_HAND if rule else BY_JAX


def _note(rule: Rule | None, inputs: Values, values: Values, eqn: core.JaxprEqn) -> str:
    if rule is None or rule.note is None or any(isinstance(x, jax.core.Tracer) for x in inputs):
        return ""
    return rule.note(inputs, values if eqn.primitive.multiple_results else values[0], eqn.params)


# ---------------------------------------------------------------- graphs inside nodes


def _openable(tape: _Tape, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes, each with the graphs of what is inside: its iterations, its branch, its function, its rule."""
    found = []
    for node, eqn in zip(nodes, tape.equations, strict=True):
        inputs, kind = [tape.value(ref) for ref in node.inputs], eqn.primitive.name
        if kind == "scan":
            node = node._replace(inner=_iterations(node, eqn, inputs))
        elif kind in OPENED:
            node = node._replace(inner=functools.partial(OPENED[kind], node, eqn, inputs))
        if node.rule in (CUSTOM, BY_JAX) and any(part is not None for part in node.passed):
            node = node._replace(pull=functools.partial(_rule, node, eqn, inputs))
        found.append(node)
    return tuple(found)


def _part(
    node: Node,
    name: str,
    closed: Program,
    args: Sequence[Any],
    names: Sequence[str],
    cotangents: Sequence[Any] | None = None,
    wanted: Sequence[bool] | None = None,
) -> Graph:
    source = Source(node.file, node.line, node.function)
    return recorded(name, closed, args, names, cotangents, source=source, wanted=wanted)


def _cotangents(node: Node) -> Sequence[Any] | None:
    """The gradients of a node, None where it has none."""
    return node.gradients if any(g is not None for g in node.gradients) else None


def _numbered(**parts: Values) -> list[str]:
    """The names of inputs: their role and a number."""
    return [f"{role} {i}" for role, part in parts.items() for i in range(len(part))]


def _iterations(node: Node, eqn: core.JaxprEqn, inputs: Values) -> Callable[..., Graph]:
    """Iteration t of a scan as a graph: its values, and its gradients where the scan has any."""
    loop, own = Scan.of(eqn.params), _cotangents(node)
    consts, carry, xs = loop.parts(inputs)

    @functools.cache
    def passing() -> tuple[list[Array], Back | None]:
        came = carries(loop, inputs)
        wanted = [part is not None for part in node.passed]
        return came, None if own is None else back(loop, inputs, own, came, wanted)

    def inner(t: int = 0) -> Graph:
        t = range(loop.length)[t]
        came, passed = passing()
        args, names = given_at(loop, inputs, came, t), _numbered(constant=consts, carry=carry, x=xs)
        if passed is None or own is None:
            return _part(node, f"scan[{t}]", loop.body, args, names)
        cotangents = [None if g is None else g[t] for g in (*passed.deltas, *loop.results(own)[1])]
        return _part(node, f"scan[{t}]", loop.body, args, names, cotangents, passed.moving)

    return inner


def _repetition(node: Node, eqn: core.JaxprEqn, inputs: Values, t: int = 0) -> Graph:
    """Iteration t of a while loop as a graph of values."""
    loop = While.of(eqn.params)
    _, consts, _ = loop.parts(inputs)
    pairs = itertools.pairwise(repetitions(loop, inputs))
    carry, _ = next(itertools.islice(pairs, t, None), (None, None)) if t >= 0 else (None, None)
    if carry is None:
        raise IndexError(f"graph: the loop has no iteration {t}")
    return _part(node, f"while[{t}]", loop.body, [*consts, *carry], _numbered(constant=consts, carry=carry))


def _branch(node: Node, eqn: core.JaxprEqn, inputs: Values, t: int = 0) -> Graph:
    """The branch that was taken, as a graph, whatever t is."""
    cond, (index, *operands) = Cond.of(eqn.params), inputs
    taken, names = cond.taken(index), _numbered(operand=operands)
    wanted = [part is not None for part in node.passed[1:]]
    return _part(node, f"cond, branch {taken}", cond.branches[taken], operands, names, _cotangents(node), wanted)


def _function(node: Node, eqn: core.JaxprEqn, inputs: Values, t: int = 0) -> Graph:
    """The operations of a function with a custom rule: values alone, since its rule passes δ around them."""
    return _part(node, node.operation, called(eqn), inputs, _numbered(operand=inputs))


OPENED = {"while": _repetition, "cond": _branch, **dict.fromkeys(RULED, _function)}


def _rule(node: Node, eqn: core.JaxprEqn, inputs: Values) -> Graph:
    """The operations of a rule that is not in the table, as a graph of values."""
    places = [i for i, part in enumerate(node.passed) if part is not None]
    given = [k for k, g in enumerate(node.gradients) if g is not None]
    moving, deltas = [inputs[i] for i in places], [node.gradients[k] for k in given]
    closed = jax.make_jaxpr(jax_rule(eqn, inputs, places, given))(moving, deltas)
    names = [*(f"operand {i}" for i in places), *(f"δ{k}" if k else "δ" for k in given)]
    return _part(node, f"the rule of {node.operation}", closed, [*moving, *deltas], names)
