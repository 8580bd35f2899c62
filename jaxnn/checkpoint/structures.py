"""Trees of arrays taken apart and put together again: containers as JSON, arrays by name.

A name is the path of the leaf, `train_state/params/dense_0/w`. A container is one of

    None · {"dict": [[key, node], …]} · {"list": [node, …]} · {"tuple": [node, …]}
    {"class": name, "fields": {field: node}}      a NamedTuple of jaxnn, by its name in CLASSES
    {"foreign": name, "children": [node, …]}      a container of another library, which `like` gives back
    {"leaf": name}                                an array
    {"leaf": name, kind: value}                   a Python number: bool, int, or float in hexadecimal
    {"leaf": name, "start": 0}                    EPOCH_START
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checkpoint.layout import NAMES, Damaged
from jaxnn.checks import plain_data, seen
from jaxnn.descriptions import Json
from jaxnn.diagnostics import Measures
from jaxnn.mistakes import alive, not_traced
from jaxnn.optimizers.adaptive import AdagradState, AdamState, RmspropState
from jaxnn.optimizers.averages import EmaState
from jaxnn.optimizers.descent import SgdState
from jaxnn.optimizers.scaling import LossScalingState
from jaxnn.optimizers.transforms import AccumulateState, ChainState
from jaxnn.records import Record
from jaxnn.sequences import Sequences
from jaxnn.stopping import Best, Decision, Monitors, Progress
from jaxnn.trees import path_name
from jaxnn.types import EPOCH_START, EpochStart, TrainState, Tree

Class: TypeAlias = Any  # a NamedTuple
CLASSES: MappingProxyType[str, Class] = MappingProxyType(
    {
        known.__name__: known
        for known in (
            *(TrainState, Monitors, Progress, Decision, Best, Measures, Sequences),
            *(SgdState, AdagradState, RmspropState, AdamState, ChainState, AccumulateState, EmaState),
            LossScalingState,
        )
    }
)
SEQUENCES = {"list": list, "tuple": tuple}
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "bool": bool,
    "int": int,
    "float": float.fromhex,
    "start": lambda _: EPOCH_START,
}
WEAK = (np.float32, np.float64, np.int32, np.int64)  # of numbers that Python's become in JAX
JSON_TYPE = {"bool": bool, "int": int, "float": str, "start": int}


class Apart(NamedTuple):
    """A tree taken apart: its containers, its arrays by name, the implementations of those that are PRNG keys.

    `host` has the names of NumPy arrays that JAX would narrow, 64 bits without jax_enable_x64; `weak` those of weakly
    typed numbers, which do not promote what they are combined with.
    """

    structure: Json
    arrays: dict[str, np.ndarray]
    keys: dict[str, str]
    host: list[str]
    weak: list[str]


def known_classes(further: Iterable[Class]) -> dict[str, Class]:
    """The NamedTuples that a file may name: jaxnn's own, and further ones of the caller."""
    classes = dict(CLASSES)
    for one in further:
        if not (isinstance(one, type) and issubclass(one, tuple) and hasattr(one, "_fields")):
            raise TypeError(f"classes must be NamedTuples, got {seen(one)}")
        if classes.setdefault(one.__name__, one) is not one:
            raise ValueError(f"classes: two have the name {one.__name__}")
    return classes


# ---------------------------------------------------------------- taking apart


def taken_apart(name: str, tree: Tree, classes: Mapping[str, Class]) -> Apart:
    """The containers and the arrays of a tree whose arrays are named below `name`.

    Raises:
        TypeError: with its path for a leaf that is neither array nor number, a dtype that safetensors has no name for,
            or a traced array.
        ValueError: for a deleted array, one that is spread over processes, or a masked one.
    """
    not_traced("checkpoint.save", "save what the compiled function returns", tree)
    alive(name, tree)
    plain_data(name, tree, numbers=False)
    apart = Apart(None, {}, {}, [], [])
    return apart._replace(structure=_node(name, tree, apart, classes, set()))


def _node(path: str, node: Any, apart: Apart, classes: Mapping[str, Class], taken: set[str]) -> Json:
    if node is None:
        return None
    if isinstance(node, Record):
        raise TypeError(
            f"{path} is {seen(node)}, which has settings and no arrays of training: give a network, loss or optimizer "
            "as net=, loss=, optimizer="
        )
    children = _children(node)
    if isinstance(node, EpochStart) or (len(children) == 1 and not children[0][0]):
        return _leaf(unique(path, taken), node, apart)
    inner = [_node(path_name(key, below=path), child, apart, classes, taken) for key, child in children]
    kind = type(node)
    if kind is dict:
        by_key = dict(zip([key[0].key for key, _ in children], inner, strict=True))
        if all(type(key) in (str, int) for key in node):
            return {"dict": [[key, by_key[key]] for key in node]}
    if kind in (list, tuple):
        return {kind.__name__: inner}
    if classes.get(kind.__name__) is kind:
        return {"class": kind.__name__, "fields": dict(zip(node._fields, inner, strict=True))}
    return {"foreign": f"{kind.__module__}.{kind.__qualname__}", "children": inner}


def _children(node: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda part: part is not node)


def unique(path: str, taken: set[str]) -> str:
    """The path, with a number where another leaf has it already: {"a/b": 1, "a": {"b": 2}}."""
    name, count = path, 1
    while name in taken:
        count += 1
        name = f"{path}~{count}"
    taken.add(name)
    return name


def _leaf(name: str, leaf: Any, apart: Apart) -> Json:
    if isinstance(leaf, EpochStart):
        return {"leaf": name, "start": 0}
    if type(leaf) in (bool, int):
        return {"leaf": name, type(leaf).__name__: leaf}
    if type(leaf) is float:
        return {"leaf": name, "float": leaf.hex()}
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        raise TypeError(f"{name} must be an array or a number, got {seen(leaf)}: what is neither belongs into note=")
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation = jax.random.key_impl(leaf)
        if not isinstance(implementation, str):
            raise TypeError(f"{name} is a key of {implementation}, which has no name: use one of JAX's own")
        apart.keys[name], leaf = implementation, jax.random.key_data(leaf)
    host = np.asarray(leaf)
    host = host.astype(host.dtype.newbyteorder("=")) if host.dtype.byteorder == ">" else host
    if host.dtype not in NAMES:
        wider = {"c": "two arrays, .real and .imag", "O": "numbers"}.get(host.dtype.kind, ".astype of a wider one")
        raise TypeError(f"{name} is {host.dtype}, which safetensors has no name for: use {wider}")
    if jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype and not isinstance(leaf, jax.Array):
        apart.host.append(name)
    if getattr(leaf, "weak_type", False) and not host.shape and host.dtype in WEAK and np.isfinite(host):
        apart.weak.append(name)
    apart.arrays[name] = np.require(host, requirements="C")
    return {"leaf": name}


# ---------------------------------------------------------------- putting together


def leaves_in(structure: Json) -> Iterator[dict[str, Json]]:
    """The leaves of a structure, in order."""
    for node in _walk(structure):
        if "leaf" in node:
            yield node


def _walk(structure: Json) -> Iterator[dict[str, Json]]:
    if structure is None:
        return
    if not isinstance(structure, dict):
        raise Damaged("a container of its trees is unknown")
    yield structure
    inner = structure.get("list") or structure.get("tuple") or structure.get("children") or []
    inner = [*inner, *(node for _, node in structure.get("dict") or ()), *(structure.get("fields") or {}).values()]
    for node in inner:
        yield from _walk(node)


def put_together(structure: Json, value_of: Callable[[str], Any], classes: Mapping[str, Class], path: str) -> Tree:
    """The tree of a structure, with `value_of(name)` for each array.

    Raises ValueError with its path for a container of another library, or a class that is not known here.
    """
    again = lambda node, key: put_together(node, value_of, classes, f"{path}/{key}")  # noqa: E731
    if structure is None:
        return None
    kind = next(iter(structure))
    value = structure[kind]
    if kind == "leaf":
        return leaf_value(structure, value_of)
    if kind == "dict":
        return {key: again(node, key) for key, node in value}
    if kind in SEQUENCES:
        return SEQUENCES[kind](again(node, i) for i, node in enumerate(value))
    if kind == "foreign":
        raise ValueError(f"{path} is a {value}, which only its library can make: give a tree of the same kind, like=…")
    if kind != "class":
        raise Damaged(f"{path} is an unknown container, {kind!r}")
    fields, known = structure["fields"], classes.get(value)
    if known is None:
        raise ValueError(f"{path} is a {value}, a class that is not known here: give a tree of the same kind, like=…")
    wrong = [name for name in fields if name not in known._fields]
    wrong += [name for name in known._fields if name not in fields and name not in known._field_defaults]
    if wrong:
        raise ValueError(f"{path}: {value} has other fields here than in the file: {', '.join(wrong)}")
    return known(**{name: again(node, name) for name, node in fields.items()})


def leaf_value(leaf: dict[str, Json], value_of: Callable[[str], Any]) -> Any:
    """The array of a leaf, or its number."""
    for kind, made in NUMBERS.items():
        if kind in leaf:
            if type(leaf[kind]) is not JSON_TYPE[kind]:
                raise Damaged(f"{leaf['leaf']} is not a number")
            return made(leaf[kind])
    return value_of(leaf["leaf"])
