"""The form of a recurrent cell, and its parameters.  D features in, H width of the state, G gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from jaxnn.errors import LayerError
from jaxnn.parameters import check_shape
from jaxnn.types import Params, Shape


class Cell(NamedTuple):
    """The form of a cell."""

    parts: tuple[str, ...]  # the arrays of the state by name, h first
    gates: int  # G; w is [D, GH], w_h [H, GH], b [GH]
    more: tuple[str, ...] = ()  # names of further biases [H]
    unroll: int = 1  # the number of steps in the body of a loop
    # the index of the ζ from which each parameter's gradient is formed
    of: Mapping[str, int] = {"w": 0, "w_h": 0, "b": 0}


def shapes_of(cell: Cell, width: int, in_features: int) -> dict[str, Shape]:
    """The shapes of the parameters."""
    wide = cell.gates * width
    return {"w": (in_features, wide), "w_h": (width, wide), "b": (wide,), **dict.fromkeys(cell.more, (width,))}


def check_params(kind: str, cell: Cell, width: int, params: Params, x_shape: Shape) -> None:
    """Raises LayerError unless they are those of this cell for x of that shape."""
    expected = shapes_of(cell, width, x_shape[-1])
    if set(params) != set(expected):
        complaint = f"expects parameters {', '.join(expected)}, got {sorted(params)}"
        raise LayerError(kind, complaint, about_params=True)
    got = jnp.shape(params["w"])
    if got != expected["w"] and got[1:] == expected["w"][1:]:
        raise LayerError(kind, f"expects {got[0]} features, got x of shape {tuple(x_shape)}")
    for name, shape in expected.items():
        check_shape(kind, params, name, shape)
