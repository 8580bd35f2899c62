"""What a checkpoint contains, read from its header alone."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax

from jaxnn.checkpoint.layout import Path, opened
from jaxnn.checkpoint.packing import FORMAT, dtype_and_shape, part_of, values_of
from jaxnn.descriptions import Json, from_description
from jaxnn.showing import Table, brief_spec, numbers, shown
from jaxnn.types import DType, Shape

SAID = ("step", "epoch", "position", "net", "loss", "optimizer", "undescribed", "history", "note")  # by `save`


def _line(found: Any) -> str:
    cursor = [
        f"{name} {value:,}" for name in ("step", "epoch", "position") if (value := getattr(found, name)) is not None
    ]
    return f"Contents({', '.join([*cursor, f'{len(found.arrays):,} arrays', f'{found.bytes:,} bytes'])})"


def _table(found: Any) -> Table:
    said = [("file", found.path)]
    for name in ("net", "loss", "optimizer"):
        if getattr(found, name) is not None:
            said.append((name, _record(getattr(found, name))))
        elif name in (found.undescribed or {}):
            said.append((name, f"not described: {found.undescribed[name]}"))
    history = {name: values[-1:] for name, values in (found.history or {}).items()}
    said += [("history", ", ".join(f"{name} {last[0]:.4g}" for name, last in history.items() if last))] * bool(history)
    said += [("note", repr(found.note))] * (found.note is not None)
    said += [("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items()))]
    title = "\n".join([_line(found), *(f"  {name:<10} {text}" for name, text in said)])
    specs = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (dtype, shape) in found.arrays.items()}
    rows: list[tuple[str, ...]] = [(name, brief_spec(spec), f"{numbers(spec):,}") for name, spec in specs.items()]
    return title, ("array", "dtype and shape", "numbers"), rows


def _record(description: Json) -> str:
    """The record as source code; only its kind where this version does not know it."""
    try:
        return repr(from_description(description))
    except (TypeError, ValueError) as error:
        return f"{description.get('kind')} ({error})" if isinstance(description, dict) else "?"


@shown(_line, _table)
class Contents(NamedTuple):
    """What is in a checkpoint.

    Attributes:
        path: of the file.
        bytes: its size.
        step, epoch, position: the cursor of its TrainState; None of another tree.
        arrays: (dtype, shape) by path, in the order of the file; of a PRNG key those of the key.
        net, loss, optimizer: their descriptions, for `from_description`; None where they were not given, or cannot be
            described.
        undescribed: why they cannot, by name.
        history: as it was given to `save`, or None.
        note: likewise.
        versions: of jaxnn, jax, python and the format.
        metadata: all that was given to `write`, the above among it.
    """

    path: str
    bytes: int
    step: int | None
    epoch: int | None
    position: int | None
    arrays: dict[str, tuple[DType, Shape]]
    net: Json
    loss: Json
    optimizer: Json
    undescribed: dict[str, str] | None
    history: dict[str, list[float]] | None
    note: dict[str, Json] | None
    versions: dict[str, str | None]
    metadata: dict[str, Json]


def contents(path: Path) -> Contents:
    """What a checkpoint contains: nothing but its header is read, and only that is verified.

    Raises:
        FileNotFoundError, ValueError, Damaged: as `load`.

    >>> import tempfile, jax.numpy as jnp
    >>> from jaxnn.checkpoint import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = contents(save(f"{folder}/w.safetensors", {"w": jnp.ones((2, 3))}, note={"seed": 4}))
    >>> found.arrays, found.note
    ({'train_state/w': (dtype('float32'), (2, 3))}, {'seed': 4})
    """
    name = os.fspath(path)
    with opened(name) as (_, header):
        values, keys = values_of(header), part_of(header, "keys")
        arrays = {at: dtype_and_shape(entry, keys.get(at)) for at, entry in header.arrays.items()}
        end = max((entry.stop for entry in header.arrays.values()), default=0)
        fields: dict[str, Any] = {field: values.get(field) for field in SAID}
        return Contents(
            path=name,
            bytes=header.begins + end,
            arrays=arrays,
            versions={**part_of(header, "versions"), "format": FORMAT},
            metadata=values,
            **fields,
        )
