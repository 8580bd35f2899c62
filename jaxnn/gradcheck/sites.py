"""A call of a function with a derivative rule: the function, where it is defined and called, and its arguments.

Two calls are the same to a check if the code of the rule, the static arguments and the shapes and dtypes of the arrays
agree: `Site.key` is equal then. Values are kept as NumPy arrays, one for each array among the leaves of the arguments.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.replay import NOT_THE_USERS
from jaxnn.jaxprs import is_float

DEPTH = 3  # of functions within closures, to distinguish two rules of the same code
TINY = 1000  # elements of an array in a closure whose values distinguish two rules
STANDARD = f"{sysconfig.get_paths()['stdlib']}/"
THIRD_PARTY = ("site-packages", "dist-packages")


# ---------------------------------------------------------------- source lines


def plain_function(f: Any) -> Any:
    """The Python function under wrappers and partial applications."""
    while True:
        if isinstance(f, functools.partial):
            f = f.func
        elif isinstance(f, types.MethodType):
            f = f.__func__
        elif hasattr(f, "__wrapped__"):
            f = f.__wrapped__
        elif hasattr(f, "__code__"):
            return _of_custom_gradient(f) if f.__code__.co_name == "wrapped_fun" else f
        else:
            method = vars(type(f)).get("__call__")
            return f if method is None or not hasattr(method, "__code__") else method


def _of_custom_gradient(f: Any) -> Any:
    """The user's function that `jax.custom_gradient` has wrapped."""
    cells = dict(zip(f.__code__.co_freevars, f.__closure__ or (), strict=True))
    return plain_function(_content(cells["fun"])) if "fun" in cells else f


def defined(f: Any) -> str:
    """`file:line (function)` of a function's definition; "" if it has no source."""
    f = plain_function(f)
    code = getattr(f, "__code__", None)
    if code is None:
        return ""
    return f"{code.co_filename}:{code.co_firstlineno} ({getattr(f, '__name__', code.co_name)})"


def called_at() -> str:
    """`file:line (function)` of the innermost frame outside of JAX, this package and the standard library."""
    own = (str(Path(__file__).parent), *NOT_THE_USERS)
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        standard = file.startswith(STANDARD) and not any(part in file for part in THIRD_PARTY)
        if not file.startswith(own) and not standard:
            return f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return ""


def allowed(patterns: Iterable[str], name: str, source: str) -> bool:
    """True if a rule's name, or its file and function, matches one of the patterns.

    A pattern is the name of a function, or "file:function"; the file may be the end of a path, and both may have
    wildcards.

    >>> allowed(["straight_*"], "straight_through", ""), allowed(["ops.py:clip"], "clip", "/lib/ops.py:3 (clip)")
    (True, True)
    >>> allowed(["other.py:clip"], "clip", "/lib/ops.py:3 (clip)")
    False
    """
    file = source.partition(" (")[0].rpartition(":")[0]
    for pattern in patterns:
        where, colon, function = pattern.rpartition(":")
        inside = not colon or fnmatch.fnmatch(file, where) or fnmatch.fnmatch(file, f"*/{where}")
        if inside and fnmatch.fnmatch(name, function):
            return True
    return False


# ---------------------------------------------------------------- equal rules


def fingerprint(f: Any, depth: int = DEPTH) -> Any:
    """A hashable value that is equal for functions of the same code that close over the same settings."""
    if isinstance(f, functools.partial):
        settings = (*f.args, *sorted(f.keywords.items(), key=lambda item: item[0]))
        return ("partial", fingerprint(f.func, depth), tuple(of_value(x, depth - 1) for x in settings))
    f = plain_function(f)
    code = getattr(f, "__code__", None)
    if code is None:
        return of_value(f, depth - 1)
    cells = [of_value(_content(cell), depth - 1) for cell in f.__closure__ or ()]
    return (code, tuple(cells), tuple(of_value(x, depth - 1) for x in f.__defaults__ or ()))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def of_value(x: Any, depth: int = DEPTH) -> Any:
    """A hashable value that is equal for equal settings."""
    if x is None or isinstance(x, (bool, int, float, complex, str, bytes, type, np.dtype)):
        return (type(x).__name__, repr(x))
    if isinstance(x, jax.core.Tracer):
        return ("traced", str(jax.typeof(x)))
    if isinstance(x, (np.ndarray, np.generic, jax.Array)):
        known = np.size(x) <= TINY and isinstance(x, (np.ndarray, np.generic))
        return ("array", np.shape(x), str(x.dtype), x.tobytes() if known else b"")
    if depth <= 0:
        return ("deep", type(x).__name__)
    if isinstance(x, (tuple, list)):
        return (type(x).__name__, tuple(of_value(entry, depth - 1) for entry in x))
    if isinstance(x, dict):
        return ("dict", tuple((str(key), of_value(value, depth - 1)) for key, value in x.items()))
    if isinstance(x, (jax.custom_vjp, jax.custom_jvp)):
        return rule_print(x, depth - 1)
    if callable(x) and getattr(plain_function(x), "__code__", None) is not None:
        return fingerprint(x, depth)
    try:
        hash(x)
    except TypeError:
        return ("object", type(x).__name__)
    return x


def rule_print(rule: Any, depth: int = DEPTH) -> Any:
    """The fingerprint of a `jax.custom_vjp` or `jax.custom_jvp`: of its function and of its rule."""
    parts = (getattr(rule, part, None) for part in ("fun", "fwd", "bwd", "jvp"))
    return tuple(None if part is None else fingerprint(part, depth) for part in parts)


def closes_over_tracers(rule: Any) -> bool:
    """True if the function or its rule closes over traced values."""
    parts = (getattr(rule, part, None) for part in ("fun", "fwd", "bwd", "jvp"))
    return any(_has_tracers(part, DEPTH) for part in parts if part is not None)


def _has_tracers(x: Any, depth: int) -> bool:
    if isinstance(x, jax.core.Tracer):
        return True
    if depth <= 0:
        return False
    if isinstance(x, functools.partial):
        return any(_has_tracers(part, depth - 1) for part in (x.func, *x.args, *x.keywords.values()))
    cells = getattr(plain_function(x), "__closure__", None) if callable(x) else None
    if cells:
        return any(_has_tracers(_content(cell), depth - 1) for cell in cells)
    if isinstance(x, (tuple, list, dict)):
        return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))
    return False


# ---------------------------------------------------------------- a call


class Spec(NamedTuple):
    """The shape and dtype of an array, and the implementation of a random key's."""

    shape: tuple[int, ...]
    dtype: Any
    key: Any = None

    @classmethod
    def of(cls, x: Any) -> Spec:
        """That of an array or of a traced value."""
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return cls(tuple(np.shape(x)), x.dtype, jax.random.key_impl(x) if is_key else None)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Programs(NamedTuple):
    """A function and its rule as jaxprs, if they cannot be called again: closed-over values come after the arrays."""

    value: Any  # the function, of (closed-over values, the arrays)
    rule: Any  # the rule, of (closed-over values, the arrays, one cotangent for each float output)
    held: tuple[Spec, ...]  # the shapes and dtypes of all closed-over values
    value_held: tuple[int, ...]  # the indices of the function's, in order
    rule_held: tuple[int, ...]  # the indices of the rule's


@dataclass(frozen=True, eq=False)
class Site:
    """A call of a function with a rule; compared by identity, so that a primitive may carry it as a parameter."""

    rule: Any  # the `jax.custom_vjp` or `jax.custom_jvp`; None if only its traced program is known
    name: str  # of its function
    source: str  # the line that defines the function, `file:line (function)`
    called: str  # the line that calls it
    tree: Any  # the structure of the tuple of arguments
    arrays: tuple[int, ...]  # the indices of the leaves that are arrays
    static: tuple[Any, ...]  # the other leaves, in order
    specs: tuple[Spec, ...]  # one for each array
    programs: Programs | None  # its function and rule as programs, if the objects themselves cannot be called again
    key: Any  # equal for calls that are the same to a check
    kind: str  # "custom_vjp" or "custom_jvp"

    @property
    def every_spec(self) -> tuple[Spec, ...]:
        """One for each value that a mark carries: the arrays, and closed-over values."""
        return (*self.specs, *(self.programs.held if self.programs else ()))

    @property
    def nondiff(self) -> tuple[int, ...]:
        """Positions of arguments that the rule declares nondifferentiable."""
        return tuple(getattr(self.rule, "nondiff_argnums", None) or ())

    def arguments(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The tuple of arguments with these arrays in it."""
        given, rest = dict(zip(self.arrays, arrays, strict=True)), iter(self.static)
        leaves = [given[i] if i in given else next(rest) for i in range(self.tree.num_leaves)]
        return tuple(jax.tree.unflatten(self.tree, leaves))

    def signature(self) -> str:
        """Shapes and dtypes as text."""
        return ", ".join(map(str, self.specs)) or "no arrays"


def resolved(f: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Positional arguments, keywords and defaults as one tuple of positional arguments; TypeError if impossible."""
    if not kwargs:
        try:
            bound = inspect.signature(f).bind(*args)
        except (TypeError, ValueError):
            return tuple(args)
    else:
        bound = inspect.signature(f).bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.kwargs:
        raise TypeError("keyword-only arguments")
    return tuple(bound.args)


def is_array(x: Any) -> bool:
    """True for arrays and traced values, False for Python's numbers."""
    return isinstance(x, (jax.Array, np.ndarray, np.generic)) and getattr(x, "dtype", None) != jax.dtypes.float0


def site_of(rule: Any, args: tuple[Any, ...]) -> tuple[Site, list[Any]] | None:
    """The site of a call and its arrays; None if they cannot be read, as mutable arrays."""
    nondiff = set(getattr(rule, "nondiff_argnums", None) or ())
    with_paths, tree = jax.tree_util.tree_flatten_with_path(args)
    arrays, static, indices = [], [], []
    for i, (path, leaf) in enumerate(with_paths):
        held = path[0].idx in nondiff and not isinstance(leaf, jax.Array)
        if is_array(leaf) and not held:
            if type(jax.typeof(leaf)).__name__ == "AbstractRef":
                return None
            arrays.append(leaf)
            indices.append(i)
        else:
            static.append(leaf)
    specs = tuple(map(Spec.of, arrays))
    key = (type(rule).__name__, rule_print(rule), tree, tuple(map(of_value, static)), tuple(indices), specs)
    fun = rule.fun
    name = getattr(plain_function(fun), "__name__", type(fun).__name__)
    kind = "custom_jvp" if isinstance(rule, jax.custom_jvp) else "custom_vjp"
    site = Site(rule, name, defined(fun), called_at(), tree, tuple(indices), tuple(static), specs, None, key, kind)
    return site, arrays


def floats(site: Site) -> list[int]:
    """The indices of a site's arrays that are floats and differentiated by the rule."""
    dummy = jax.tree.unflatten(site.tree, range(site.tree.num_leaves))
    held = {leaf for i in site.nondiff if i < len(dummy) for leaf in jax.tree.leaves(dummy[i])}
    return [k for k, (i, spec) in enumerate(zip(site.arrays, site.specs, strict=True))
            if is_float(spec.dtype) and i not in held]  # fmt: skip
