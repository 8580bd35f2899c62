"""Trees and plain values as one file of arrays, and back.

The metadata of the file are: `format`; `trees`, the containers of each tree (`structures`); `keys`, the implementations
of PRNG keys by the array of their bits; `host`, the arrays that stay NumPy's; `weak`, weakly typed numbers; `versions`;
`values`, whatever the caller says. All but the first are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checkpoint.layout import METADATA, Damaged, Entry, Header, array_of, encoded, json_of
from jaxnn.checkpoint.metadata import as_text, versions
from jaxnn.checkpoint.structures import Class, leaf_value, leaves_in, put_together, taken_apart, unique
from jaxnn.checks import seen
from jaxnn.descriptions import Json
from jaxnn.spmd.transfers import placed_whole
from jaxnn.trees import describe, path_name
from jaxnn.types import DType, EpochStart, Shape, Tree

FORMAT = "jaxnn checkpoint 1"
MOST_REPORTED = 8  # differences listed before "and n more"


def packed(trees: Mapping[str, Tree], values: Mapping[str, Json], classes: Mapping[str, Class]) -> list[memoryview]:
    """The bytes of a file, in pieces."""
    if not isinstance(trees, dict) or not isinstance(values, dict):
        raise TypeError(f"trees and metadata must be dicts by name, got {seen(trees)} and {seen(values)}")
    for name in trees:
        if not isinstance(name, str) or not name or "/" in name or name == METADATA:
            raise ValueError(f"the name of a tree must be a word without '/', got {name!r}")
    apart = {name: taken_apart(name, tree, classes) for name, tree in trees.items()}
    arrays = {name: host for part in apart.values() for name, host in part.arrays.items()}
    metadata = {
        "format": FORMAT,
        "versions": json.dumps(dict(versions())),
        "values": as_text("metadata", values),
        "trees": json.dumps({name: part.structure for name, part in apart.items()}, ensure_ascii=False),
        "keys": json.dumps({name: key for part in apart.values() for name, key in part.keys.items()}),
        "host": json.dumps([name for part in apart.values() for name in part.host]),
        "weak": json.dumps([name for part in apart.values() for name in part.weak]),
    }
    return encoded(arrays, metadata)


# ---------------------------------------------------------------- reading


def part_of(header: Header, name: str, kind: type = dict) -> Json:
    """One of the metadata that are JSON, a dict or list. ValueError if the file has another format."""
    written = header.metadata.get("format", "")
    if written != FORMAT:
        raise ValueError(
            f"it has the format {written!r}, and this version of jaxnn reads {FORMAT!r}: load it with the version "
            "that wrote it, or read its arrays with the package safetensors"
        )
    value = json_of(name, header.metadata.get(name, ""))
    if not isinstance(value, kind):
        raise Damaged(f"the {name} are not a {kind.__name__}")
    return value


def values_of(header: Header) -> dict[str, Json]:
    """What the caller said when the file was written."""
    return part_of(header, "values")


def dtype_and_shape(entry: Entry, key: str | None) -> tuple[DType, Shape]:
    """Those of an array in the file; of a PRNG key, those of the key."""
    if key is None:
        return entry.dtype, entry.shape
    try:
        bits = jax.eval_shape(lambda: jax.random.key(0, impl=key))
    except ValueError as error:
        raise ValueError(f"a PRNG key of the kind {key!r} is not known here: {error}") from None
    return bits.dtype, entry.shape[:-1]


class Unpacked:
    """The trees of an open file; each array is read, and compared with its digest, when it is asked for."""

    def __init__(self, file: BinaryIO, header: Header, classes: Mapping[str, Class]) -> None:
        self.file, self.header, self.classes = file, header, classes
        self.trees, self.keys = part_of(header, "trees"), part_of(header, "keys")
        self.host, self.weak = part_of(header, "host", list), part_of(header, "weak", list)

    def tree(self, name: str, like: Tree = None) -> Tree:
        """One of the trees; with `like`, in its containers and on its devices."""
        if name not in self.trees:
            raise ValueError(f"there is no tree {name!r}, but {', '.join(map(repr, self.trees)) or 'none'}")
        try:
            if like is None:
                return put_together(self.trees[name], self.array, self.classes, name)
            return self._like(name, like)
        except (KeyError, TypeError, AttributeError, IndexError, StopIteration, RecursionError) as error:
            raise Damaged(f"the tree {name!r} cannot be put together: {type(error).__name__}: {error}") from error

    def array(self, name: str, sharding: Any = None) -> Any:
        """An array by name, on a device."""
        host = array_of(self.file, self.header, name)
        if name in self.host:
            return host
        if jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype:
            raise ValueError(
                f"{name} is {host.dtype}, which JAX holds only with 64 bits: set "
                "jax.config.update('jax_enable_x64', True) at the start of the program, as where it was saved"
            )
        if name in self.weak and not host.shape:
            return placed_whole(jnp.asarray(host.item()), sharding)
        if name not in self.keys:
            return placed_whole(host, sharding)
        dtype_and_shape(self.header.arrays[name], self.keys[name])  # refuses what is unknown here
        key = jax.random.wrap_key_data(jax.device_put(host), impl=self.keys[name])
        return key if sharding is None else placed_whole(key, sharding)

    def _like(self, name: str, like: Tree) -> Tree:
        """The tree with the containers of `like`, after all differences have been looked for."""
        found = {leaf["leaf"]: leaf for leaf in leaves_in(self.trees[name])}
        wanted, containers = named(name, like)
        lines = []
        for path in dict.fromkeys([*wanted, *found]):
            if path not in found:
                lines.append(f"{path}: {described(wanted[path])} here, not in the file")
            elif path not in wanted:
                lines.append(f"{path}: {self._described(found[path])} in the file, not here")
            elif not self._agree(found[path], wanted[path]):
                lines.append(f"{path}: {self._described(found[path])} in the file, {described(wanted[path])} here")
        if lines:
            more = [f"and {len(lines) - MOST_REPORTED} more"] if len(lines) > MOST_REPORTED else []
            raise ValueError("\n  ".join([f"{name} differs from like", *lines[:MOST_REPORTED], *more]))
        leaves = [
            leaf_value(found[path], lambda at, leaf=leaf: self.array(at, sharding_of(leaf)))  # type: ignore[misc]
            for path, leaf in wanted.items()
        ]
        return jax.tree.unflatten(containers, leaves)

    def _spec(self, leaf: dict[str, Json]) -> tuple[DType, Shape] | None:
        """Dtype and shape; None of a Python number."""
        name = leaf["leaf"]
        return dtype_and_shape(self.header.arrays[name], self.keys.get(name)) if len(leaf) == 1 else None

    def _described(self, leaf: dict[str, Json]) -> str:
        spec = self._spec(leaf)
        return repr(leaf_value(leaf, str)) if spec is None else describe(jax.ShapeDtypeStruct(spec[1], spec[0]))

    def _agree(self, saved: dict[str, Json], here: Any) -> bool:
        """Equal dtypes and shapes. A whole number may be Python's in one and an array in the other."""
        spec = self._spec(saved)
        if hasattr(here, "shape") and hasattr(here, "dtype"):
            if spec is not None:
                return spec[0] == here.dtype and spec[1] == tuple(here.shape)
            return ("int" in saved or "start" in saved) and _is_whole(here.dtype, here.shape)
        if spec is not None:
            return isinstance(here, int) and not isinstance(here, bool) and _is_whole(*spec)
        if isinstance(here, EpochStart) or "start" in saved:
            return ("int" in saved or "start" in saved) and isinstance(here, int)
        return type(here).__name__ in saved


def _is_whole(dtype: DType, shape: Shape) -> bool:
    return tuple(shape) == () and jnp.issubdtype(dtype, np.integer)


def named(name: str, tree: Tree) -> tuple[dict[str, Any], Any]:
    """The leaves of a tree by the names that they have in a file, EPOCH_START among them, and the containers."""
    is_start = lambda part: isinstance(part, EpochStart)  # noqa: E731
    leaves, containers = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_start)
    taken: set[str] = set()
    return {unique(path_name(path, below=name), taken): leaf for path, leaf in leaves}, containers


def described(leaf: Any) -> str:
    """`float32[784, 30]`, or a number."""
    return describe(leaf) if hasattr(leaf, "dtype") else seen(leaf)


def sharding_of(leaf: Any) -> Any:
    """Where an array is to lie; None for wherever JAX puts it."""
    is_free = isinstance(leaf, jax.Array) and not getattr(leaf, "committed", True)
    return None if is_free else getattr(leaf, "sharding", None)


def wanted_names(names: Iterable[str] | None, header: Header) -> list[str]:
    """The trees to be read, by default all."""
    return list(part_of(header, "trees")) if names is None else list(names)
