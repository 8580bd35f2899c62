"""Iterations of a `scan` or a `while`, and what passes from one to the next: values forward, gradients in reverse.

Letters: t an iteration, counted as `scan` counts the entries of its xs; c the carry that comes into it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.aliases import Array
from jaxnn.graph.nodes import Node
from jaxnn.jaxprs import Scan, Values, While, dependences, function_of, is_float


def carries(scan: Scan, inputs: Values) -> list[Array]:
    """The carry that comes into each iteration of a scan, stacked: arrays [T, …]."""
    consts, start, xs = scan.parts(inputs)
    body = function_of(scan.body)

    def step(carry: Values, x: Values) -> tuple[Values, Values]:
        return list(body(*consts, *carry, *x)[: len(carry)]), carry

    return list(scan.loop(step, start, xs)[1])


def given_at(scan: Scan, inputs: Values, came: Sequence[Array], t: int) -> Values:
    """The inputs of iteration t of a scan; `came` as from `carries`."""
    consts, _, xs = scan.parts(inputs)
    return [*consts, *(c[t] for c in came), *(x[t] for x in xs)]


def repetitions(loop: While, inputs: Values) -> Iterator[Values]:
    """The carry that comes into each iteration of a while loop, and finally the one with which it ends."""
    test, body = function_of(loop.test), jax.jit(function_of(loop.body))
    test_consts, body_consts, carry = loop.parts(inputs)
    yield carry
    while bool(test(*test_consts, *carry)[0]):
        carry = list(body(*body_consts, *carry))
        yield carry


# ---------------------------------------------------------------- the iterations of a node


def iterations(node: Node, inputs: Values) -> Iterator[tuple[int, Values, Values]]:
    """The iterations of a loop in the order in which they run, each as (number, inputs, outputs); none of others."""
    if node.operation == "while":
        pairs = itertools.pairwise(repetitions(While.of(node.params), inputs))
        yield from ((t, given, made) for t, (given, made) in enumerate(pairs))
    elif node.operation == "scan":
        scan = Scan.of(node.params)
        order, came, (last, ys) = list(scan.order), carries(scan, inputs), scan.results(node.values)
        for t, after in itertools.zip_longest(order, order[1:]):
            carry = last if after is None else [c[after] for c in came]
            yield t, given_at(scan, inputs, came, t), [*carry, *(y[t] for y in ys)]


def number_of_iterations(node: Node) -> int:
    """The length of a scan; 1 for any other operation."""
    return Scan.of(node.params).length if node.operation == "scan" else 1


def entries_made(node: Node, k: int, t: int) -> tuple[int | EllipsisType]:
    """The index of what iteration t makes of output k: one entry of a scan's y, all of anything else."""
    return (t,) if node.operation == "scan" and k >= Scan.of(node.params).carry else (...,)


def products_of(node: Node, i: int) -> int:
    """The number of iterations that use an entry of input i: all of a scan for its constants."""
    return Scan.of(node.params).uses(i) if node.operation == "scan" else 1


def bad_step_back(node: Node, inputs: Values) -> int:
    """The first iteration of a scan, in reverse, that passes back what is not finite; the last to run if all are."""
    scan = Scan.of(node.params)
    finite = back(scan, inputs, node.gradients, carries(scan, inputs)).finite
    return next((t for t in reversed(scan.order) if not finite[t]), scan.order[0])


# ---------------------------------------------------------------- the reverse pass


class Back(NamedTuple):
    """The reverse pass of a scan, iteration by iteration."""

    # for each carry the gradients [T, …] of what each iteration passes on; None for integers, for what no output
    # depends on, and for what depends on no input
    deltas: list[Array | None]
    finite: Array  # [T], whether all that an iteration passes back is finite
    moving: list[bool]  # for each input of an iteration, whether its derivative is taken


def back(
    scan: Scan, inputs: Values, own: Sequence[Any], came: Sequence[Array], wanted: Sequence[bool] | None = None
) -> Back:
    """The reverse pass of a scan by JAX's vjp of its body, one iteration after another.

    An output without a gradient gets none here, as in JAX: with zeros an infinite slope would give 0 · ∞ = NaN. `own`
    are the gradients of the scan's outputs, None for none, `came` is as from `carries`, and `wanted` the inputs to
    differentiate by, by default all floats.
    """
    consts, start, xs = scan.parts(inputs)
    body, n = function_of(scan.body), scan.carry
    first = given_at(scan, inputs, came, 0) if scan.length else []
    if not first:
        return Back([None] * n, jnp.ones(0, bool), [False] * len(inputs))
    moving, present = _linked(scan, body, first, own, wanted)
    floats, kept = [i for i in range(len(moving)) if moving[i]], [k for k in range(n) if present[k]]
    dys = [own[k] for k in range(n, len(own)) if present[k]]
    last = [jnp.zeros_like(start[k]) if own[k] is None else own[k] for k in kept]

    def step(ct: Values, slot: Any) -> tuple[Values, Any]:
        whole = [*consts, *slot[0], *slot[1]]

        def outputs(values: Values) -> Values:
            given = dict(zip(floats, values, strict=True))
            outs = body(*(given.get(i, value) for i, value in enumerate(whole)))
            return [out for out, there in zip(outs, present, strict=True) if there]

        (passed,) = jax.vjp(outputs, [whole[i] for i in floats])[1]([*ct, *slot[2]])
        finite = jnp.all(jnp.stack([jnp.isfinite(part).all() for part in passed]))
        found = dict(zip(floats, passed, strict=True))
        return [found[len(consts) + k] for k in kept], (ct, finite)

    backward = scan._replace(reverse=not scan.reverse)
    _, (deltas, finite) = backward.loop(step, last, (list(came), xs, dys))
    known = dict(zip(kept, deltas, strict=True))
    return Back([known.get(k) for k in range(n)], finite, moving)


def _linked(
    scan: Scan, body: Callable[..., Values], first: Values, own: Sequence[Any], wanted: Sequence[bool] | None
) -> tuple[list[bool], list[bool]]:
    """Which inputs of an iteration move with those that are wanted, and which outputs receive a gradient."""
    ins = [i for i, x in enumerate(first) if is_float(x)]
    outs = [k for k, aval in enumerate(scan.body.out_avals) if is_float(aval)]

    def floats(*values: Any) -> Values:
        given = dict(zip(ins, values, strict=True))
        made = body(*(given.get(i, x) for i, x in enumerate(first)))
        return [made[k] for k in outs]

    links = {
        (k, i)
        for k, row in zip(outs, dependences(floats, [first[i] for i in ins]), strict=True)
        for i, linked in zip(ins, row, strict=True)
        if linked
    }
    moving = [i in ins and (wanted is None or bool(wanted[i])) for i in range(len(first))]
    present = [g is not None and k in outs for k, g in enumerate(own)]
    for _ in range(scan.carry):  # each time at least one carry more, or all are known
        for k, i in links:
            if k < scan.carry and moving[i]:
                moving[scan.consts + k] = True
            if present[k] and scan.consts <= i < scan.consts + scan.carry:
                present[i - scan.consts] = True
    moved = {k for k, i in links if moving[i]}
    carried = [k in moved or (k < scan.carry and moving[scan.consts + k]) for k in range(len(own))]
    return moving, [there and carried[k] for k, there in enumerate(present)]
