"""Reading jaxprs: running an equation, walking through all of them, and saying whose line made one."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util


def is_float(x: Any) -> bool:
    """True for an array, variable or dtype of real floats of any precision."""
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.floating))


def bind(primitive: Any, args: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """An operation's outputs, as a list."""
    ready = primitive.get_bind_params(params)
    functions, params = ((), ready) if isinstance(ready, dict) else ready  # as newer and as older JAX have it
    out = primitive.bind(*functions, *args, **params)
    return list(out) if primitive.multiple_results else [out]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def source_of(eqn: Any) -> str:
    """`file:line (function)` of the user's code that made an equation."""
    return str(source_info_util.summarize(eqn.source_info))


def first_difference(ours: Any, theirs: Any) -> str | None:
    """The first operation in which two closed jaxprs differ, or None: a pure function traced twice has none."""
    for a, b in zip(ours.consts, theirs.consts, strict=False):
        known = a is not b and is_float(a) and is_float(b) and not isinstance(a, jax.core.Tracer)
        if known and not np.array_equal(a, b, equal_nan=True):
            return "a constant"
    pairs = itertools.zip_longest(equations(ours.jaxpr), equations(theirs.jaxpr))
    return next((source_of(a or b) for a, b in pairs if a is None or b is None or _sketch(a) != _sketch(b)), None)


def _sketch(eqn: Any) -> tuple[Any, ...]:
    """An equation without its variables' names: its primitive, the numbers in it, and what comes out."""
    numbers = [str(atom.val) for atom in eqn.invars if isinstance(atom, core.Literal)]
    return eqn.primitive.name, *numbers, *(str(var.aval) for var in eqn.outvars)


class Source(NamedTuple):
    """A line of code; ("", 0, "") where it is unknown."""

    file: str
    line: int
    function: str


NOWHERE = Source("", 0, "")
_SUMMARY = re.compile(r"^(?P<file>.*?):(?P<line>\d+)(?::\d+)?(?: \((?P<function>.*)\))?$")


def line_of(eqn: Any, otherwise: Source = NOWHERE) -> Source:
    """The line that made an equation; `otherwise` where JAX has not kept it, as inside cached functions."""
    found = _SUMMARY.match(source_of(eqn))
    return otherwise if found is None else Source(found["file"], int(found["line"]), found["function"] or "")


def argument_names(f: Callable[..., Any], n: int) -> list[str]:
    """A name for each of n positional arguments: the function's own where it has them."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(f).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        names = []
    return names[:n] if len(names) >= n else [f"args[{i}]" for i in range(n)]


def name_of(f: Callable[..., Any]) -> str:
    """What a reader calls a function."""
    return getattr(f, "__name__", type(f).__name__)
