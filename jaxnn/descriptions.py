"""Records as plain values for JSON, and back, for the description of a network in the file with its parameters.

>>> from jaxnn import dense, relu, serial
>>> net = serial(dense(3, bias=False), relu)
>>> describe(net)["layers"][0]["width"], from_description(describe(net)) == net
(3, True)
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
from functools import cache
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import seen
from jaxnn.records import Record, fields_of, is_array

HOMES = ("initializers", "losses", "metrics", "penalties", "schedules", "stopping")  # besides the top level
ARRAY, FLOAT = "array", "float"  # kinds other than records: arrays, and floats that JSON cannot represent
Json: TypeAlias = Any  # a dict, list, string, number, bool or None


@cache
def kinds() -> MappingProxyType[str, Any]:
    """Everything that a description may contain, by kind: public classes of records, public records and functions."""
    table: dict[str, Any] = {}
    for home in ("", *HOMES):
        module = importlib.import_module(f"jaxnn.{home}" if home else "jaxnn")
        for name in module.__all__:
            value = vars(module).get(name)  # modules that are imported when they are used are no kinds
            is_class = isinstance(value, type) and issubclass(value, Record) and "made_as" not in vars(value)
            if is_class or isinstance(value, Record) or inspect.isfunction(value):
                table[f"{home}.{name}" if home else name] = value
    return MappingProxyType(table)


def describe(record: Record) -> dict[str, Json]:
    """A record's kind and all of its fields, defaults included, as dicts, lists, strings and numbers, for `json.dumps`.

    A JAX scalar keeps its dtype. `from_description` returns an equal record.

    Args:
        record: a network, a layer, a loss, an optimizer, a schedule, …

    Raises:
        TypeError: for anything other than a record of this library, with its place: a user's own function, or a layer
            or loss made of such functions, cannot be described.

    >>> from jaxnn import leaky_relu
    >>> describe(leaky_relu(0.5))
    {'kind': 'leaky_relu', 'negative_slope': 0.5}
    """
    if not isinstance(record, Record):
        raise TypeError(f"describe: expected a record, such as a network, got {seen(record)}")
    return described(record, type(record).__name__)


def described(value: Any, place: str) -> Json:
    """A value of a record's field, as `describe` has it."""
    if isinstance(value, Record):
        kind = _kind_of(value, place)
        fields = {} if kinds().get(kind) is value else fields_of(value)
        return {"kind": kind} | {name: described(part, f"{place}.{name}") for name, part in fields.items()}
    if isinstance(value, (tuple, list)):
        return [described(part, f"{place}[{i}]") for i, part in enumerate(value)]
    if is_array(value) and not isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        return {"kind": ARRAY, "dtype": str(value.dtype), "value": np.asarray(value, np.float64).tolist()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"kind": FLOAT, "value": repr(value)}
    if inspect.isfunction(value) and _name(value):
        return {"kind": _name(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"describe: {place} is {seen(value)}, which cannot be described")


def _name(value: object) -> str:
    return next((kind for kind, known in kinds().items() if known is value or known is type(value)), "")


def _kind_of(record: Record, place: str) -> str:
    kind = _name(record)
    functions = [name for name, part in fields_of(record).items() if callable(part) and not isinstance(part, Record)]
    if not kind:
        what = f"made of your own functions ({', '.join(functions)})" if functions else "not a public kind of record"
        raise TypeError(f"describe: {place} is {seen(record)}, {what}, which cannot be described")
    return kind


def from_description(description: Json) -> Any:
    """The record of a description by `describe`.

    Raises:
        ValueError: for an unknown kind or field, or a setting that is out of range.
        TypeError: for anything other than a description.

    >>> from_description({"kind": "serial", "layers": [{"kind": "dense", "width": 3}]})
    serial(dense(3))
    """
    if not isinstance(description, dict) or "kind" not in description:
        raise TypeError(
            f"from_description: expected a dict with a 'kind', as returned by describe, got {seen(description)}"
        )
    return _made(description)


def _made(value: Json) -> Any:
    if isinstance(value, list):
        return tuple(map(_made, value))
    if not isinstance(value, dict):
        return value
    fields = {name: _made(part) for name, part in value.items() if name != "kind"}
    kind = value.get("kind")
    if kind == ARRAY:
        return jnp.asarray(np.asarray(value["value"]), value["dtype"])
    if kind == FLOAT:
        return float(value["value"])
    known = kinds().get(kind) if isinstance(kind, str) else None
    if known is None:
        close = difflib.get_close_matches(str(kind), kinds(), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"from_description: unknown kind {kind!r}{hint}")
    names = {field.name for field in dataclasses.fields(known)} if isinstance(known, type) else set()
    unknown = sorted(set(fields) - names)
    if unknown:
        raise ValueError(f"from_description: {kind} has no field {', '.join(map(repr, unknown))}")
    return known(**fields) if isinstance(known, type) else known
