"""What passes from one iteration of a `scan` or a `while` to the next: values forward, gradients in reverse.

Letters: t an iteration, counted as `scan` counts the entries of its xs, c the carry that comes into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.jaxprs import Scan, While, function_of, is_float


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
        deltas: for each carry the gradients [T, …] of what each iteration hands on; None for integers.
        finite: [T], whether all that an iteration passes back is finite.
    """

    deltas: list[Any]
    finite: Any


def back(scan: Scan, inputs: Sequence[Any], own: Sequence[Any], came: Sequence[Any]) -> Back:
    """The reverse pass of a scan by JAX's vjp of its body, one iteration after another.

    Args:
        scan: the loop.
        inputs: of the scan.
        own: the gradients of the scan's outputs, None for none.
        came: as from `carries`.
    """
    consts, start, xs = scan.parts(inputs)
    body, n, avals = function_of(scan.body), scan.carry, scan.body.out_avals
    floats = [k for k, c in enumerate(start) if is_float(c)]
    last = [_or_zeros(own[k], avals[k].shape, avals[k].dtype) for k in floats]
    dys = [
        _or_zeros(g, (scan.length, *aval.shape), aval.dtype)
        for g, aval in zip(own[n:], avals[n:], strict=True)
        if is_float(aval)
    ]

    def step(ct: list[Any], slot: Any) -> tuple[list[Any], Any]:
        whole = [*consts, *slot[0], *slot[1]]
        moving = [i for i, value in enumerate(whole) if is_float(value)]

        def outputs(values: list[Any]) -> list[Any]:
            given = dict(zip(moving, values, strict=True))
            return [y for y in body(*(given.get(i, value) for i, value in enumerate(whole))) if is_float(y)]

        (passed,) = jax.vjp(outputs, [whole[i] for i in moving])[1]([*ct, *slot[2]])
        finite = jnp.all(jnp.stack([jnp.isfinite(part).all() for part in passed]))
        found = dict(zip(moving, passed, strict=True))
        return [found[len(consts) + k] for k in floats], (ct, finite)

    slots = (list(came), xs, dys)
    _, (deltas, finite) = jax.lax.scan(step, last, slots, length=scan.length, reverse=not scan.reverse)
    known = dict(zip(floats, deltas, strict=True))
    return Back([known.get(k) for k in range(n)], finite)


def _or_zeros(gradient: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jnp.zeros(shape, dtype) if gradient is None else gradient


def repetitions(loop: While, inputs: Sequence[Any]) -> Iterator[list[Any]]:
    """The carry that comes into each iteration of a while loop, and at last the one with which it ends."""
    test, body = function_of(loop.test), jax.jit(function_of(loop.body))
    test_consts, body_consts, carry = loop.parts(inputs)
    yield carry
    while bool(test(*test_consts, *carry)[0]):
        carry = list(body(*body_consts, *carry))
        yield carry
