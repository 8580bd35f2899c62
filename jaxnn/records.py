"""The base class of everything defined by settings: layers, losses, activations, optimizers, schedules.

A record is a frozen dataclass, registered as a pytree. Python values in its fields are static, constants of a compiled
program; JAX arrays and scalars, tracers included, are leaves, inputs of the program. Thus a record is an argument of
`jax.jit`, `vmap` and `grad` like any other, and equal records share one compiled program.

Equality, hash, `repr` (defaults are left out), pickling and `dataclasses.replace` follow from the fields.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

R = TypeVar("R", bound="Record")
HIDDEN = "_parts"  # the attribute with a record's children and static part


def is_function(value: object) -> bool:
    """True for a callable, except a record whose call only raises an error that explains its use."""
    return callable(value) and not isinstance(value, tuple) and not getattr(type(value), "is_no_function", False)


def is_array(value: object) -> bool:
    """True for a leaf of a record: an array, a tracer, or a jax.ShapeDtypeStruct."""
    return isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


@jax.tree_util.register_static
class Fixed:
    """A Python value in a field that also contains arrays."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and same(self.value, other.value)

    def __hash__(self) -> int:
        return hash(frozen(self.value))


class Rest:
    """The static part of a record with arrays: its Python values, and the names of the fields that contain arrays."""

    def __init__(self, names: tuple[str, ...], values: dict[str, Any]) -> None:
        self.names, self.values = names, values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rest) and self.names == other.names and same(self.values, other.values)

    def __hash__(self) -> int:
        return hash((self.names, frozen(self.values)))


@dataclass_transform(frozen_default=True, eq_default=False)
class Record:
    """A frozen dataclass, registered as a pytree; a subclass only needs annotated fields.

    `__post_init__` checks the fields; `self._set(name=value)` normalizes one. `spread = True` marks a class whose
    constructor takes the entries of its first field as separate arguments, `serial(*layers)`.
    """

    spread: ClassVar[bool] = False
    made_as: ClassVar[Any] = None  # the class that a call of this base class makes of a user's functions
    noun: ClassVar[str] = ""  # its name in messages
    is_no_function: ClassVar[bool] = False  # True if a call only raises an error that explains its use
    shown_as: ClassVar[str] = ""  # its name in `repr`, if not the name of the class

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        if args:
            _check_positions(cls, args, kwargs)
        return object.__new__(cls.__dict__.get("made_as") or cls)

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        own_init = "__init__" in cls.__dict__
        for name, annotation in inspect.get_annotations(cls).items():
            fields = getattr(cls, "__dataclass_fields__", {})
            inherited = name not in cls.__dict__ and name not in fields and hasattr(cls, name)
            if inherited and "ClassVar" not in str(annotation):  # an attribute of the base class is not a default
                setattr(cls, name, dataclasses.field())
        dataclasses.dataclass(init=False, eq=False, repr=False)(cls)  # compiles nothing, for fast imports
        if not own_init:
            cls.__init__ = MadeWhenUsed(cls)  # type: ignore[assignment, method-assign]
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, _unflattener(cls), _flatten)

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def _set(self, **values: object) -> None:
        """Sets fields during construction."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return all(same(value, getattr(other, name)) for name, value in fields_of(self).items())

    def __hash__(self) -> int:
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash((type(self), frozen(fields_of(self))))
            object.__setattr__(self, "_hash", known)
        return int(known)

    def __repr__(self) -> str:
        shown_as = type(self).shown_as
        if shown_as and not fields_of(self):  # a public instance
            return shown_as
        return f"{shown_as or type(self).__name__}({', '.join(arguments_of(self))})"

    def as_argument(self) -> str:
        """The record as an argument in the `repr` of another record."""
        return repr(self)

    def __getstate__(self) -> dict[str, Any]:
        return fields_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(**state)


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record by name."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


# ---------------------------------------------------------------- construction


class MadeWhenUsed:
    """The `__init__` of a class of records, compiled on first use: a program uses few of the classes."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __get__(self, record: object, owner: object = None) -> Any:
        made = init_of(self.cls)
        self.cls.__init__ = made  # type: ignore[misc]
        return made if record is None else made.__get__(record, owner)


def init_of(cls: type) -> Any:
    """`__init__(self, field, …)` as in a dataclass: sets the fields and calls `__post_init__`."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    optional = [field for field in fields if not _is_required(field)]
    defaults = {f"default_{field.name}": default_of(field) for field in optional}
    ordered = [field for field in fields if not field.kw_only], [field for field in fields if field.kw_only]
    words = [[f"{f.name}=default_{f.name}" if f in optional else f.name for f in part] for part in ordered]
    arguments = ", ".join(["self", *words[0], *(["*", *words[1]] if words[1] else [])])
    lines = [f"set_field(self, {field.name!r}, {field.name})" for field in fields]
    lines += ["self.__post_init__()"] if hasattr(cls, "__post_init__") else []
    made: dict[str, Any] = {**defaults, "set_field": object.__setattr__}
    exec(f"def __init__({arguments}):\n    " + "\n    ".join(lines or ["pass"]), made)
    init = made["__init__"]
    shown = vars(cls).get("shown_as") or cls.__qualname__
    init.__qualname__, init.__module__ = f"{shown}.__init__", cls.__module__
    init.__annotations__ = {**{field.name: field.type for field in fields}, "return": None}
    return init


def _check_positions(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises TypeError for positional values of keyword-only fields."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    firsts, settings = ([f.name for f in fields if f.kw_only is kw_only] for kw_only in (False, True))
    if len(args) <= len(firsts) or not settings:
        return
    free = [name for name in settings if name not in kwargs]
    which = f"{len(firsts)} arguments" if len(firsts) != 1 else "argument"
    taken = f"only its first {which}, {' and '.join(firsts)}, by position" if firsts else "no argument by position"
    named = [f"{name}={written(value)}" for name, value in zip(free, args[len(firsts) :], strict=False)]
    advice = f"give {', '.join(named)}" if named else f"got {written(args[len(firsts)])} beside all the others"
    raise TypeError(f"{vars(cls).get('shown_as') or cls.__name__} takes {taken}: {advice}")


def _is_required(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# ---------------------------------------------------------------- as a pytree


def _flatten(record: Record) -> tuple[tuple[Any, ...], Any]:
    parts = record.__dict__.get(HIDDEN)
    if parts is None:
        fields = fields_of(record)
        names = tuple(name for name, value in fields.items() if holds_arrays(value))
        static = {name: value for name, value in fields.items() if name not in names}
        children = tuple(_with_fixed(fields[name]) for name in names)
        parts = children, (Rest(names, static) if names else record)
        object.__setattr__(record, HIDDEN, parts)
    return parts


def _flatten_with_keys(record: Record) -> tuple[tuple[Any, ...], Any]:
    children, aux = _flatten(record)
    names = aux.names if isinstance(aux, Rest) else ()
    return tuple((jax.tree_util.GetAttrKey(name), child) for name, child in zip(names, children, strict=True)), aux


def _unflattener(cls: type[R]) -> Callable[[Any, Any], R]:
    def unflatten(aux: Any, children: Any) -> R:
        if not isinstance(aux, Rest):
            return aux
        record = object.__new__(cls)
        record._set(**aux.values)
        children = tuple(children)
        record._set(**{name: _without_fixed(child) for name, child in zip(aux.names, children, strict=True)})
        # Children are kept as given: a leaf may be any object that a tree map has put there, and stays a leaf.
        object.__setattr__(record, HIDDEN, (children, aux))
        return record

    return unflatten


def _is_record(value: object) -> bool:
    return isinstance(value, Record)


def holds_arrays(value: object) -> bool:
    """True if a value contains an array."""
    if isinstance(value, Record):
        return isinstance(_flatten(value)[1], Rest)
    if is_array(value):
        return True
    return any(
        is_array(leaf) or (_is_record(leaf) and holds_arrays(leaf))
        for leaf in jax.tree.leaves(value, is_leaf=_is_record)
    )


def _with_fixed(value: object) -> Any:
    keep = lambda leaf: leaf if is_array(leaf) or _is_record(leaf) else Fixed(leaf)  # noqa: E731
    return jax.tree.map(keep, value, is_leaf=_is_record)


def _without_fixed(value: object) -> Any:
    bare = lambda leaf: leaf.value if isinstance(leaf, Fixed) else leaf  # noqa: E731
    return jax.tree.map(bare, value, is_leaf=lambda leaf: isinstance(leaf, (Fixed, Record)))


# ---------------------------------------------------------------- equality


def same(a: Any, b: Any) -> bool:
    """Equality of field values: of the same type, floats with the sign of zero, arrays bit by bit.

    A traced array equals only itself.
    """
    if a is b:
        return True
    if is_array(a) or is_array(b):
        return _same_arrays(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, Record):
        return a == b
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (float, np.floating)):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__ and same(a.__self__, b.__self__)
    return bool(a == b)


def _same_arrays(a: Any, b: Any) -> bool:
    if any(isinstance(x, jax.core.Tracer) or not is_array(x) for x in (a, b)) or isinstance(
        a, np.ndarray
    ) != isinstance(b, np.ndarray):
        return False
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if isinstance(a, jax.ShapeDtypeStruct) or isinstance(b, jax.ShapeDtypeStruct):
        return type(a) is type(b)
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def frozen(value: object) -> Any:
    """A hashable form of a value, equal where `same` is true."""
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *map(frozen, value)
    if isinstance(value, dict):
        return tuple((name, frozen(part)) for name, part in value.items())
    if isinstance(value, (float, np.floating)):
        return type(value).__name__, float(value).hex()
    if isinstance(value, types.MethodType):
        return value.__func__, frozen(value.__self__)
    if is_array(value):
        raise TypeError(
            "a record that contains JAX arrays cannot be hashed: pass it to a compiled function as an argument, not as "
            "a static one"
        )
    if type(value).__hash__ is None:  # a user's schedule, such as a dataclass with __call__
        return type(value).__name__
    return type(value).__name__, value


# ---------------------------------------------------------------- repr


def arguments_of(record: Any) -> list[str]:
    """The arguments of the call that makes the record, without defaults."""
    fields = [field for field in dataclasses.fields(record) if field.init]
    words: list[str] = []
    for i, field in enumerate(fields):
        value = getattr(record, field.name)
        if i == 0 and type(record).spread:
            words += map(written, value)
        elif _is_required(field):
            words.append(written(value) if not field.kw_only else f"{field.name}={written(value)}")
        elif not same(value, default_of(field)):
            words.append(f"{field.name}={written(value)}")
    return words


def default_of(field: Any) -> Any:
    """The default of a field."""
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def written(value: Any) -> str:
    """The value of a field as source code."""
    if isinstance(value, Record):
        return value.as_argument()
    if isinstance(value, tuple):
        named = type(value) is not tuple
        return (
            f"{type(value).__name__ * named}({', '.join(map(written, value))}{',' * (len(value) == 1 and not named)})"
        )
    if is_array(value):
        if isinstance(value, jax.core.Tracer) or not hasattr(value, "__array__") or value.shape:
            return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
        return f"{value.dtype}({np.asarray(value).item()!r})"
    if isinstance(value, types.MethodType) and isinstance(value.__self__, Record):
        return f"{value.__self__!r}.{value.__name__}"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(value)
