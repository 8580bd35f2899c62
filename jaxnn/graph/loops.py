"""What passes from one iteration of a `scan` or a `while` to the next: values forward, gradients in reverse.

Letters: t an iteration, counted as `scan` counts the entries of its xs, c the carry that comes into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.jaxprs import Scan, While, dependences, function_of, is_float


def carries(scan: Scan, inputs: Sequence[Any]) -> list[Any]:
    """The carry that comes into each iteration of a scan, stacked: arrays [T, …]."""
    consts, start, xs = scan.parts(inputs)
    body = function_of(scan.body)

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        return list(body(*consts, *carry, *x)[: len(carry)]), carry

    _, stacked = jax.lax.scan(step, start, xs, length=scan.length, reverse=scan.reverse)
    return list(stacked)


class Back(NamedTuple):
    """The reverse pass of a scan, iteration by iteration.

    Attributes:
        deltas: for each carry the gradients [T, …] of what each iteration hands on; None for integers, for what no
            output depends on, and for what depends on no input.
        finite: [T], whether all that an iteration passes back is finite.
        moving: for each input of an iteration whether its derivative is taken.
    """

    deltas: list[Any]
    finite: Any
    moving: list[bool]


def back(
    scan: Scan, inputs: Sequence[Any], own: Sequence[Any], came: Sequence[Any], wanted: Sequence[bool] | None = None
) -> Back:
    """The reverse pass of a scan by JAX's vjp of its body, one iteration after another.

    An output without a gradient gets none here either, as in JAX: zeros in its place would give 0 · ∞ = NaN where its
    slope is infinite.

    Args:
        scan: the loop.
        inputs: of the scan.
        own: the gradients of the scan's outputs, None for none.
        came: as from `carries`.
        wanted: which inputs are differentiated by; by default all floats.
    """
    consts, start, xs = scan.parts(inputs)
    body, n = function_of(scan.body), scan.carry
    first = [*consts, *(c[0] for c in came), *(x[0] for x in xs)] if scan.length else []
    if not first:
        return Back([None] * n, jnp.ones(0, bool), [False] * len(inputs))
    moving, present = _linked(scan, body, first, own, wanted)
    floats, kept = _places(moving), [k for k in range(n) if present[k]]
    dys = [own[k] for k in range(n, len(own)) if present[k]]
    last = [jnp.zeros_like(start[k]) if own[k] is None else own[k] for k in kept]

    def step(ct: list[Any], slot: Any) -> tuple[list[Any], Any]:
        whole = [*consts, *slot[0], *slot[1]]

        def outputs(values: list[Any]) -> list[Any]:
            given = dict(zip(floats, values, strict=True))
            outs = body(*(given.get(i, value) for i, value in enumerate(whole)))
            return [out for out, there in zip(outs, present, strict=True) if there]

        (passed,) = jax.vjp(outputs, [whole[i] for i in floats])[1]([*ct, *slot[2]])
        finite = jnp.all(jnp.stack([jnp.isfinite(part).all() for part in passed]))
        found = dict(zip(floats, passed, strict=True))
        return [found[len(consts) + k] for k in kept], (ct, finite)

    slots = (list(came), xs, dys)
    _, (deltas, finite) = jax.lax.scan(step, last, slots, length=scan.length, reverse=not scan.reverse)
    known = dict(zip(kept, deltas, strict=True))
    return Back([known.get(k) for k in range(n)], finite, moving)


def _linked(
    scan: Scan, body: Any, first: Sequence[Any], own: Sequence[Any], wanted: Sequence[bool] | None
) -> tuple[list[bool], list[bool]]:
    """Which inputs of an iteration move with those that are wanted, and which outputs a gradient comes back to."""
    ins = [i for i, x in enumerate(first) if is_float(x)]
    outs = [k for k, aval in enumerate(scan.body.out_avals) if is_float(aval)]

    def floats(*values: Any) -> list[Any]:
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
    for _ in range(scan.carry):  # each time one carry more at least, or all are known
        for k, i in links:
            if k < scan.carry and moving[i]:
                moving[scan.consts + k] = True
            if present[k] and scan.consts <= i < scan.consts + scan.carry:
                present[i - scan.consts] = True
    moved = {k for k, i in links if moving[i]}
    carried = [k in moved or (k < scan.carry and moving[scan.consts + k]) for k in range(len(own))]
    return moving, [there and carried[k] for k, there in enumerate(present)]


def _places(flags: Sequence[bool]) -> list[int]:
    return [i for i, flag in enumerate(flags) if flag]


def repetitions(loop: While, inputs: Sequence[Any]) -> Iterator[list[Any]]:
    """The carry that comes into each iteration of a while loop, and at last the one with which it ends."""
    test, body = function_of(loop.test), jax.jit(function_of(loop.body))
    test_consts, body_consts, carry = loop.parts(inputs)
    yield carry
    while bool(test(*test_consts, *carry)[0]):
        carry = list(body(*body_consts, *carry))
        yield carry
