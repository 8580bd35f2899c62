"""The record of a local reverse rule, and what the tables of rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnn.aliases import Array
from jaxnn.jaxprs import is_float

Params = dict[str, Any]  # of a primitive
Passed = list[Array | None]
Pull = Callable[[Any, list[Any], Any, Params], Passed]
Condition = Callable[[list[Any], Any, Params], ArrayLike]
Note = Callable[[list[Any], Any, Params], str]


class Rule(NamedTuple):
    """What an operation passes back to each of its inputs.

    An operation with several outputs takes `delta` and `output` as lists with one entry per output; an entry of
    `delta` is None where that output has no gradient. An operation with one output, as most have, takes arrays.

    Attributes:
        formula: the rule in letters, "δx = δ y, δy = δ x". A single input is x with output y; two inputs are x and y
            with output z; an operation with established names for them uses those.
        pull: `pull(delta, inputs, output, params)` returns for each input an array of its shape and dtype, or None if
            nothing is passed: to integers, to booleans, and where the derivative is identically zero. It does not
            depend on values, so it can be traced.
        note: `note(inputs, output, params)`, for concrete arrays, describes a tie, a kink, a jump or an infinite slope
            at this point; "" elsewhere.
    """

    formula: str
    pull: Pull
    note: Note | None = None


def nothing(delta: Any, inputs: list[Any], output: Any, params: Params) -> Passed:
    """None for every input: δx = 0."""
    return [None] * len(inputs)


def linear(back: Callable[[Array, Array, Params], Array]) -> Pull:
    """The pull of an operation with one input; back(δ, x, params) is what is passed to x."""

    def pull(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
        return [back(delta, inputs[0], params) if is_float(inputs[0]) else None]

    return pull


def note_where(condition: Condition, text: str) -> Note:
    """The note `text`, with the number of entries at which a condition on the values holds."""

    def note(inputs: list[Any], output: Any, params: Params) -> str:
        with np.errstate(all="ignore"):  # the condition may divide by the very zero that it detects
            mask = np.asarray(condition([np.asarray(x) for x in inputs], output, params))
        if not mask.any():
            return ""
        return text if mask.ndim == 0 else f"{text} ({mask.sum()} of {mask.size} places)"

    return note


def winner_slope(x: Array, y: Array, z: Array) -> Array:
    """∂z/∂x of z = max(x, y) or min(x, y): 1 for the winner, ½ at a tie, 0 for the loser and for NaN."""
    return jnp.where(x == z, jnp.ones_like(z), jnp.zeros_like(z)) / jnp.where(y == z, jnp.full_like(z, 2), 1)


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The inverse of a permutation."""
    return tuple(int(i) for i in np.argsort(permutation))


def dilated(size: int, dilation: int) -> int:
    """The size of an axis whose entries are `dilation` apart."""
    return 0 if size == 0 else 1 + dilation * (size - 1)
