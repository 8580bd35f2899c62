"""The lines of code that made a program's equations, and the names of functions and their arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.extend import core, source_info_util


def source_of(eqn: core.JaxprEqn) -> str:
    """`file:line (function)` of the user's code that made an equation."""
    return str(source_info_util.summarize(eqn.source_info))


class Source(NamedTuple):
    """A line of code; ("", 0, "") where it is unknown."""

    file: str
    line: int
    function: str


NOWHERE = Source("", 0, "")
_SUMMARY = re.compile(r"^(?P<file>.*?):(?P<line>\d+)(?::\d+)?(?: \((?P<function>.*)\))?$")


def line_of(eqn: core.JaxprEqn, otherwise: Source = NOWHERE) -> Source:
    """The line that made an equation; `otherwise` where JAX has not recorded it, as inside cached functions."""
    found = _SUMMARY.match(source_of(eqn))
    return otherwise if found is None else Source(found["file"], int(found["line"]), found["function"] or "")


def argument_names(f: Callable[..., Any], n: int) -> list[str]:
    """Names for n positional arguments: those of the function's parameters, or args[i] if it has fewer."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(f).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        names = []
    return names[:n] if len(names) >= n else [f"args[{i}]" for i in range(n)]


def name_of(f: Callable[..., Any]) -> str:
    """The name of a function, or of its type if it has none."""
    return getattr(f, "__name__", type(f).__name__)
