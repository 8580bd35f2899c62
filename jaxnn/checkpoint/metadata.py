"""What a checkpoint says besides its arrays: plain values, and the descriptions of what was trained."""

from __future__ import annotations

import json
import platform
from functools import cache
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxnn.checks import seen
from jaxnn.descriptions import Json, describe
from jaxnn.types import TrainState, Tree

DESCRIBED = ("net", "loss", "optimizer")


def as_text(where: str, value: Json) -> str:
    """A value as JSON, to the bit: floats as Python's `repr`, and NaN, Infinity, -Infinity as its `json` writes them.

    Raises TypeError with its place for anything that would come back as something else, tuples among them.
    """
    _plain(where, value)
    return json.dumps(value, ensure_ascii=False)


def _plain(where: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            if type(name) is not str:
                raise TypeError(f"{where}: the names in a dict must be strings, got {seen(name)}")
            _plain(f"{where}[{name!r}]", part)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _plain(f"{where}[{i}]", part)
    elif not (value is None or type(value) in (bool, int, float, str)):
        advice = {tuple: "use list(…)", np.ndarray: "use .tolist()"}.get(type(value))
        if advice is None:
            is_number = hasattr(value, "dtype") and not getattr(value, "shape", None)
            advice = "use float(…) or int(…)" if is_number else "arrays belong into a tree"
        raise TypeError(
            f"{where} must be a dict, list, string, number, True, False or None, got {seen(value)}: {advice}"
        )


@cache
def versions() -> MappingProxyType[str, str | None]:
    """Those of jaxnn (None if it is not installed as a package), JAX and Python."""
    from importlib import metadata as installed  # takes 2 ms, and few programs save

    try:
        own = installed.version("jaxnn-delta")
    except installed.PackageNotFoundError:
        own = None
    return MappingProxyType({"jaxnn": own, "jax": jax.__version__, "python": platform.python_version()})


def about(train_state: Tree = None, *, net: Any = None, loss: Any = None, optimizer: Any = None) -> dict[str, Json]:
    """What is known of a training state and its network, loss and optimizer, as plain values.

    `step`, `epoch` and `position` are those of a TrainState; `net`, `loss` and `optimizer` descriptions by `describe`.
    What cannot be described, such as a layer of the user's own, is None, and `undescribed` has the reason by name.
    """
    is_state = isinstance(train_state, TrainState)
    found: dict[str, Json] = {
        name: _whole(getattr(train_state, name)) if is_state else None for name in ("step", "epoch", "position")
    }
    undescribed = {}
    for name, record in zip(DESCRIBED, (net, loss, optimizer), strict=True):
        found[name] = None
        try:
            found[name] = None if record is None else describe(record)
        except (TypeError, ValueError) as error:
            undescribed[name] = str(error)
    return {**found, "undescribed": undescribed}


def _whole(value: Any) -> int | None:
    """A number of a single state; None for states side by side, and for anything else."""
    if isinstance(value, int):
        return int(value)
    is_one = isinstance(value, (jax.Array, np.ndarray, np.generic)) and value.shape == () and value.dtype.kind in "iu"
    return int(value) if is_one else None


# ---------------------------------------------------------------- differences between descriptions


def check_same(metadata: dict[str, Json], *, net: Any = None, loss: Any = None, optimizer: Any = None) -> None:
    """Raises ValueError with the first place where a description in the file differs from that of a record here.

    What is not given, or cannot be described on either side, is not compared.
    """
    here = about(net=net, loss=loss, optimizer=optimizer)
    for name in DESCRIBED:
        if here[name] is None or metadata.get(name) is None:
            continue
        difference = first_difference(metadata[name], here[name])
        if difference is not None:
            raise ValueError(
                f"{name} is not the one that was saved: {difference}. Make it as it was, or leave out {name}="
            )


def first_difference(saved: Json, here: Json, place: str = "") -> str | None:
    """`layers[2].width: 64 in the file, 32 here`; None for equal descriptions."""
    label = place or "it"
    if isinstance(saved, dict) and isinstance(here, dict):
        kinds = [value.get("kind") for value in (saved, here)]
        if kinds[0] != kinds[1]:
            return f"{label}: {kinds[0]} in the file, {kinds[1]} here"
        for name in dict.fromkeys([*saved, *here]):
            inner = f"{place}.{name}" if place else name
            if name not in saved or name not in here:
                return f"{inner} is only {'here' if name in here else 'in the file'}"
            if (found := first_difference(saved[name], here[name], inner)) is not None:
                return found
        return None
    if isinstance(saved, list) and isinstance(here, list):
        if len(saved) != len(here):
            return f"{label}: {len(saved)} in the file, {len(here)} here"
        for i, (old, new) in enumerate(zip(saved, here, strict=True)):
            if (found := first_difference(old, new, f"{place}[{i}]")) is not None:
                return found
        return None
    if type(saved) is type(here) and (saved == here or (saved != saved and here != here)):
        return None
    old, new = (value.get("kind", "a dict") if isinstance(value, dict) else seen(value) for value in (saved, here))
    return f"{label}: {old} in the file, {new} here"
