"""The record of a local reverse rule, and the few pieces that both tables of rules are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Pull = Callable[[Any, list[Any], Any, dict[str, Any]], list[Any]]
Note = Callable[[list[Any], Any, dict[str, Any]], str]


class Rule(NamedTuple):
    """What an operation passes back to each of its inputs.

    An operation with several outputs is given `delta` and `output` as lists, one entry an output; an entry of `delta`
    is None where that output has no gradient. An operation with one output, which most are, is given arrays.

    Attributes:
        formula: the rule in letters, "δx = δ y, δy = δ x". One input is x and its output y; two are x and y with the
            output z; an operation that has names of its own for them uses those.
        pull: `pull(delta, inputs, output, params)`: for each input an array of its shape and dtype, or None where
            nothing is passed: integers, booleans, and what is zero everywhere. It looks at no values, so that it can
            be traced.
        note: `note(inputs, output, params)` for concrete arrays: what to know where the point is a tie, a kink, a jump
            or a place of infinite slope; "" elsewhere.
    """

    formula: str
    pull: Pull
    note: Note | None = None


def nothing(delta: Any, inputs: list[Any], output: Any, params: dict[str, Any]) -> list[Any]:
    """None for every input: δx = 0."""
    return [None] * len(inputs)


def at(where: Callable[[list[Any], Any, dict[str, Any]], Any], text: str) -> Note:
    """A note that says text, and at how many places, where a condition on the values holds."""

    def note(inputs: list[Any], output: Any, params: dict[str, Any]) -> str:
        with np.errstate(all="ignore"):  # a condition may divide by the zero that it looks for
            mask = np.asarray(where([np.asarray(x) for x in inputs], output, params))
        if not mask.any():
            return ""
        return text if mask.ndim == 0 else f"{text} ({mask.sum()} of {mask.size} places)"

    return note


def share(x: Any, y: Any, z: Any) -> Any:
    """∂z/∂x of z = max(x, y) or min(x, y): 1 for the winner, ½ at a tie, 0 for the loser and for NaN."""
    return jnp.where(x == z, jnp.ones_like(z), jnp.zeros_like(z)) / jnp.where(y == z, jnp.full_like(z, 2), 1)
