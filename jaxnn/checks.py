"""The shared checks and their wording; keys, the stable name hash, input shapes and tree paths.

A message says what, where, what was expected, what came, and what to do. Shapes and dtypes are static, so
these checks cost nothing under `jit` and always run; values are looked at only where data enters on the host.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.errors import LayerError as LayerError  # the one path to it for layers
from jaxnn.records import is_array
from jaxnn.types import DType, InShape, Key, Outline, Shape, Tree

LONGEST = 120  # characters of a value in a message
MAX_REPORTED = 5  # mismatches listed before "and n more"


# ---------------------------------------------------------------- errors that know where they happened


class _Unquoted(str):
    """A text that is its own `repr`, which a KeyError shows."""

    def __repr__(self) -> str:
        return str(self)


NAMED_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Puts the layer's path in front of an error that comes from below."""
    try:
        yield
    except NAMED_ERRORS as error:
        path = [name, *getattr(error, "layer_path", [])] if name else getattr(error, "layer_path", [])
        message = getattr(error, "layer_message", None)
        if message is None:
            kind = "KeyError: " if isinstance(error, KeyError) else ""  # the key alone says nothing
            message = f" {error.complaint}" if isinstance(error, LayerError) else f": {kind}{error}"
        if path:
            error.args = (_Unquoted(f"layer '{'/'.join(path)}'{message}"),)
        error.layer_path, error.layer_message = path, message  # type: ignore[union-attr]
        raise


# ---------------------------------------------------------------- what the user gives


def seen(value: Any) -> str:
    """A value in a message: an array by dtype and shape, anything else as Python writes it, cut where it is long."""
    deleted = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted()
    if hasattr(value, "shape") and hasattr(value, "dtype") and (deleted or value.shape):
        return f"{'a deleted' if deleted else 'an'} array {describe(value)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"the {'class' if inspect.isclass(value) else 'function'} {value.__qualname__}"
    noun = getattr(value, "noun", None)
    text = f"the {noun} {value!r}" if isinstance(noun, str) and noun else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def yes_or_no(what: str, value: Any) -> bool:
    """Returns value if it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} must be True or False, got {seen(value)}")
    return bool(value)


def whole_number(what: str, value: Any, *, least: int) -> int:
    """Returns value as an int if it is a whole number ≥ least."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be a whole number, got {seen(value)}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value!r}")
    return int(value)


def number(
    what: str,
    value: Any,
    *,
    least: float = -math.inf,
    below: float = math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> Any:
    """Returns value as a float if it is finite, `least ≤ value < below` and `above < value ≤ most`.

    A JAX scalar stays one, an input of a program; where it is traced, it is NaN outside of these limits.
    """
    scalar = is_array(value) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    if isinstance(value, bool) or not (isinstance(value, Real) or scalar):
        raise TypeError(f"{what} must be a number, got {seen(value)}")
    if isinstance(value, jax.ShapeDtypeStruct):
        return value
    if isinstance(value, jax.core.Tracer):
        fits = (value >= least) & (value < below) & (value > above) & (value <= most) & jnp.isfinite(value)
        return jnp.where(fits, value, jnp.nan)
    number = float(value)
    if not (math.isfinite(number) and least <= number < below and above < number <= most):
        lower = f"above {above:g}" if above > -math.inf else f"at least {least:g}"
        upper = f"below {below:g}" if below < math.inf else f"at most {most:g}"
        limits = [text for text in (lower, upper) if "inf" not in text]
        raise ValueError(f"{what} must be {' and '.join(limits) or 'finite'}, got {value!r}")
    return value if scalar else number


def in_dtype(setting: Any, dtype: DType) -> Any:
    """A setting beside arrays of this dtype: a Python number as it is, a JAX scalar cast."""
    return setting.astype(dtype) if is_array(setting) else setting


def poisoned(value: Any, *settings: Any) -> Any:
    """The value; NaN where a setting is, which `number` has made of a traced one that cannot be right."""
    for setting in settings:
        if is_array(setting):
            value = jnp.where(jnp.isnan(setting), jnp.nan, value)
    return value


def as_key(key: Any) -> Key:
    """A PRNG key from a typed key, a raw `PRNGKey`, or an integer seed, which may be a traced scalar."""
    if isinstance(key, Integral) and not isinstance(key, bool):
        if not -(2**31) <= int(key) < 2**32:
            raise ValueError(f"an integer seed must fit 32 bits, or it would be cut to another's, got {key}")
        return jax.random.key(int(key))
    if isinstance(key, jax.Array):
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
            return jax.random.key(key)
        if key.dtype == jnp.uint32 and key.shape == jax.eval_shape(jax.random.PRNGKey, 0).shape:
            return jax.random.wrap_key_data(key)
    shown = f"{key.dtype} array of shape {key.shape}" if hasattr(key, "dtype") else seen(key)
    raise TypeError(f"key must be jax.random.key(seed) or an integer seed, got {shown}")


def name_hash(name: str) -> int:
    """A 32-bit hash of a name that is the same in every process, for `jax.random.fold_in`."""
    return zlib.crc32(name.encode())


def layer_key(rng: Key | None, name: str) -> Key | None:
    """The key of the layer called name; None where there is no randomness."""
    return None if rng is None else jax.random.fold_in(as_key(rng), name_hash(name))


# ---------------------------------------------------------------- shapes


def is_floating(x: Any) -> bool:
    """True for a float array, of any precision."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def accumulator(dtype: DType) -> DType:
    """The dtype in which sums over many values are taken: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")


def widest(*dtypes: DType, default: DType | None = None) -> DType:
    """The highest precision of several; JAX's own promotion refuses to mix them in its strict mode.

    >>> widest(jnp.dtype("bfloat16"), jnp.dtype("float32"))
    dtype('float32')
    """
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits) if dtypes else default


def input_spec(in_shape: InShape, dtype: DType, batch: int = 1) -> Tree:
    """What `forward` will be given: `in_shape` with a batch axis in front, as jax.ShapeDtypeStructs."""
    if isinstance(in_shape, (tuple, list)) and all(
        isinstance(size, Integral) and not isinstance(size, bool) for size in in_shape
    ):
        for size in in_shape:
            whole_number(f"each size of in_shape {tuple(in_shape)}", size, least=1)
        return jax.ShapeDtypeStruct((batch, *(int(size) for size in in_shape)), dtype)
    specs = jax.tree.leaves(in_shape)
    if not specs or not all(isinstance(spec, jax.ShapeDtypeStruct) for spec in specs):
        raise TypeError(
            "in_shape must be a tuple of sizes without the batch axis, or jax.ShapeDtypeStructs "
            f"where inputs are not float, got {seen(in_shape)}"
        )
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype), in_shape)


def example_shape(x: Tree) -> InShape:
    """The `in_shape` of a batch: without the batch axis; a plain tuple for one float array."""
    leaves = jax.tree.leaves(x)
    if len(leaves) == 1 and leaves[0] is x and is_floating(x):
        return tuple(x.shape[1:])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


def one_array(kind: str, x: Any, *, at_least: int = 1) -> Shape:
    """The shape of x if it is an array [N, …]; errors blame the input."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        advice = ""
        if hasattr(x, "values") and hasattr(x, "mask"):  # Sequences, of which this floor knows nothing
            advice = (
                ": what a mask hides would count as data. Layers that work on each step alone take Sequences (dense, "
                "embedding, activations, softmax, dropout, layer_norm, rms_norm), as recurrent ones do; let one that "
                "returns 'values' or 'last' come before this layer"
            )
        raise LayerError(kind, f"expects one array, got {type(x).__name__}{advice}")
    if x.ndim < at_least:
        raise LayerError(kind, "expects x with the batch axis first, got a scalar")
    if isinstance(x, np.ma.MaskedArray):
        plain_data(f"{kind}: x", x)
    return tuple(x.shape)


def features(kind: str, x: Any, *, at_least: int = 2) -> Shape:
    """The shape of x if it is a float array [N, …, D]; errors blame the input."""
    shape = one_array(kind, x, at_least=0)
    if x.ndim < at_least:
        axes = "[N, D]" if at_least == 2 else "with the batch axis first"
        advice = "add the batch axis, x[None] for one example" + ", x[:, None] for N examples of one feature" * x.ndim
        raise LayerError(kind, f"expects x {axes}, got x of shape {x.shape}: {advice}")
    if not is_floating(x):
        raise LayerError(kind, f"expects float features, got {x.dtype}: convert with x.astype('float32')")
    return shape


def static_spec(tree: Tree) -> tuple[Any, Any]:
    """Structure, shapes and dtypes of a tree, hashable: a key for what depends on nothing else."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def spec_tree(spec: tuple[Any, Any]) -> Tree:
    """The tree of jax.ShapeDtypeStructs that `static_spec` describes."""
    structure, leaves = spec
    return structure.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def batch_size(what: str, tree: Tree) -> int:
    """N, the size of the first axis of every leaf; where a program is exported for every N, the symbol of it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{what} holds no arrays")
    for path, leaf in leaves:
        if not hasattr(leaf, "ndim"):
            where = f" at '{path_name(path)}'" * bool(path)
            raise TypeError(f"{what} must be an array or a tree of arrays, got {seen(leaf)}{where}: use np.asarray")
    sizes = {path_name(path): (leaf.shape[0] if leaf.ndim else None) for path, leaf in leaves}
    if None in sizes.values():
        raise ValueError(f"{what} needs a batch axis, got a scalar")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what}: the leaves differ in batch size: {sizes}")
    return next(iter(sizes.values())) or 0


def is_symbolic(size: Any) -> bool:
    """True for a size that is not known when the program is made (`jax.export`): it is compared with no number."""
    return not isinstance(size, Integral)


# ---------------------------------------------------------------- δ


def outline(tree: Tree) -> Tree:
    """The tree with an Outline in place of each array."""
    return jax.tree.map(lambda leaf: Outline(leaf.shape, leaf.dtype), tree)


def check_delta(kind: str, delta: Any, output: Tree) -> None:
    """Raises LayerError unless δ is like the output: its structure, shapes and dtypes, `()` for what is not float.

    `output` is the layer's output, or arrays, Outlines or jax.ShapeDtypeStructs like it. Nothing is looked at but
    shapes and dtypes, so that this costs nothing under `jit`.
    """
    output = jax.tree.map(_spec, output, is_leaf=lambda part: isinstance(part, Outline))
    leaves, structure = jax.tree.flatten(output)
    flatten_like: Any = structure.flatten_up_to  # type: ignore[attr-defined]  # jaxlib's stubs lack it
    try:
        deltas = flatten_like(delta)
    except (ValueError, TypeError):
        deltas = None
    if deltas is None or not all(map(_fits, deltas, leaves)):
        expected = jax.tree.map(lambda leaf: leaf if is_floating(leaf) else (), output)
        raise LayerError(
            kind, f"expects δ like its output, {_shown(expected)}, got {_shown(delta)}: δ is never broadcast or cast"
        )


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _fits(delta: Any, leaf: Any) -> bool:
    if not is_floating(leaf):  # JAX's own cotangents have float0 there
        return (isinstance(delta, tuple) and not delta) or getattr(delta, "dtype", None) == jax.dtypes.float0
    if not hasattr(delta, "shape") or not hasattr(delta, "dtype"):
        return False
    return tuple(delta.shape) == tuple(leaf.shape) and jax.dtypes.canonicalize_dtype(delta.dtype) == leaf.dtype


def _shown(tree: Any) -> str:
    """`(float32[4, 3], ())`, a tree as its arrays' shapes."""
    if isinstance(tree, dict):
        return f"{{{', '.join(f'{name}: {_shown(part)}' for name, part in tree.items())}}}"
    if isinstance(tree, (tuple, list)):
        name = type(tree).__name__ if hasattr(tree, "_fields") else ""
        return f"{name}({', '.join(map(_shown, tree))})"
    return describe(tree)


def check_input_deltas(kind: str, deltas: Sequence[Any]) -> None:
    """Raises LayerError unless the δs that are added at one input are alike: nothing is broadcast."""
    first, *others = (
        (jax.tree.structure(d), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(d)]) for d in deltas
    )
    if any(other != first for other in others):
        raise LayerError(kind, f"adds the δs of its input, which must be alike, got {', '.join(map(_shown, deltas))}")


# ---------------------------------------------------------------- data as they come


def plain_data(where: str, tree: Tree, *, numbers: bool = True) -> None:
    """Raises an error for what a conversion to arrays of numbers would drop silently, or fails at.

    That is what a mask of `np.ma` hides and, unless other things than numbers will do, what no device holds: objects,
    strings, dates, records, sparse matrices.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda part: hasattr(part, "todense")):
        if not isinstance(leaf, jax.Array):
            _plain_array("/".join(filter(None, (where, path_name(path)))), leaf, numbers)


def _plain_array(where: str, leaf: Any, numbers: bool) -> None:
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
        raise ValueError(
            f"{where} has a mask that hides {np.ma.count_masked(leaf)} of {leaf.size} values, and what is hidden would "
            "count: leave examples out by weights of 0, or put numbers there with .filled(value)"
        )
    if not numbers:
        return
    if hasattr(leaf, "todense"):
        raise TypeError(f"{where} is a sparse matrix ({type(leaf).__name__}): use np.asarray(x.todense())")
    dtype = getattr(leaf, "dtype", None)
    kind: Any = getattr(dtype, "kind", None)
    names = getattr(dtype, "names", None)
    if kind in UNUSABLE or names:
        what = f"records with the fields {list(names)}" if names else f"{UNUSABLE[kind]} ({dtype})"
        if kind == "O":
            entries = list(np.asarray(leaf).flat)
            strange = [entry for entry in entries if not isinstance(entry, Real)] or entries
            what = f"Python objects ({type(strange[0]).__name__})" if entries else "Python objects"
        raise TypeError(f"{where} holds {what}, and real numbers are needed: {ADVICE.get(kind, ADVICE['V'])}")


UNUSABLE = {"O": "Python objects", "U": "strings", "S": "strings", "M": "dates", "m": "time spans"}  # by dtype.kind
ADVICE = {
    "O": "use .astype('float32') once every row has the same length and every entry is a number",
    "U": "use whole numbers, np.unique(values, return_inverse=True)[1]",
    "S": "use whole numbers, np.unique(values, return_inverse=True)[1]",
    "M": "use the time since a first one, (values - values.min()) / np.timedelta64(1, 'D')",
    "m": "divide by a unit, values / np.timedelta64(1, 'D')",
    "V": "use one array for each field, values['name']",
}


# ---------------------------------------------------------------- predictions and targets


def as_arrays(where: str, prediction: Any, target: Any) -> tuple[Any, Any]:
    """Both as arrays; TypeError for what is none."""
    for name, value in (("prediction", prediction), ("target", target)):
        try:
            if value is None or isinstance(value, (str, dict)) or hasattr(value, "_fields") or callable(value):
                raise TypeError
            jnp.shape(value if hasattr(value, "shape") else np.asarray(value, np.float32))
        except (TypeError, ValueError):
            raise TypeError(f"{where}: {name} must be an array, got {seen(value)}") from None
    return jnp.asarray(prediction), jnp.asarray(target)


def both_batches(where: str, prediction: Any, target: Any) -> str:
    """The beginning of a message about two shapes, once it is known that they are batches of one size."""
    for name, value in (("prediction", prediction), ("target", target)):
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            got = "None" if value is None else f"a {type(value).__name__}"
            raise TypeError(f"{where}: {name} must be an array, got {got}: use np.asarray for numbers")
    shown = f"{where}: prediction {tuple(prediction.shape)} and target {tuple(target.shape)}"
    if not prediction.shape or not target.shape:
        raise ValueError(f"{shown}: each needs a batch axis; add it with x[None] for one example")
    if prediction.shape[0] != target.shape[0]:
        raise ValueError(
            f"{shown} differ in batch size: {prediction.shape[0]} predictions for {target.shape[0]} targets"
        )
    return shown


def entry_by_entry(where: str, prediction: Any, target: Any, for_labels: str) -> None:
    """Raises ValueError if the target has not the prediction's shape: nothing is broadcast.

    `for_labels` says what to use for class labels.
    """
    shown = both_batches(where, prediction, target)
    p, t = tuple(prediction.shape), tuple(target.shape)
    if p == t:
        return
    front = _all_but_last(min(len(p), len(t)))
    if p == (*t, 1):
        advice = f"use prediction[{front}, 0] or target[{front}, None]"
    elif t == (*p, 1):
        advice = f"use prediction[{front}, None] or target[{front}, 0]"
    elif p[:-1] == t and not is_floating(target):
        advice = f"for class labels use {for_labels}, or jax.nn.one_hot(target, {p[-1]})"
    else:
        advice = "they are compared entry by entry"
    raise ValueError(f"{shown} differ in shape; {advice}")


def holds_labels(
    where: str, prediction: Any, target: Any, *, distributions: tuple[Any, ...], for_one_score: str
) -> bool:
    """True if target holds class labels, False if it holds distributions; raises ValueError if neither.

    Labels are integers of the prediction's shape without its last axis, the classes. Distributions have the
    prediction's shape and one of the kinds of dtype. `for_one_score` is advice where there is no axis of classes.
    """
    shown = both_batches(where, prediction, target)
    p, t = tuple(prediction.shape), tuple(target.shape)
    if len(p) < 2:
        raise ValueError(
            f"{shown}: one score per class is needed, a prediction [N, K]; for one output per example {for_one_score}"
        )
    if t == p[:-1] and jnp.issubdtype(target.dtype, jnp.integer):
        return True
    if t == p and any(jnp.issubdtype(target.dtype, kind) for kind in distributions):
        return False
    if t == p[:-1]:
        complaint = f"integer labels are meant, got {target.dtype}: use target.astype('int32')"
    elif t == p:
        distribution = " or, as a distribution, target.astype('float32')" if distributions else ""
        complaint = (
            f"integer labels {p[:-1]} are meant, got one-hot {target.dtype}: "
            f"use jnp.argmax(target, axis=-1){distribution}"
        )
    elif t == (*p[:-1], 1):
        complaint = f"integer labels {p[:-1]} are meant: use target[{_all_but_last(len(p) - 1)}, 0]"
    else:
        complaint = f"integer labels {p[:-1]}{f' or distributions {p}' if distributions else ''} are meant"
    raise ValueError(f"{shown}: {complaint}")


def _all_but_last(axes: int) -> str:
    return ":" if axes == 1 else "..."


def labels_and_wrong(labels: Any, classes: int) -> tuple[Any, Any]:
    """The labels in a type that can hold K, and where they are not in 0…K−1."""
    # A wide type must not be narrowed: 2³² + 3 is not class 3.
    labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    return labels, (labels < 0) | (labels >= classes)


# ---------------------------------------------------------------- values, on the host


def first_of(wrong: np.ndarray) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))


def finite_values(where: str, values: np.ndarray, advice: str) -> None:
    """Raises ValueError with the count and first place of values that are not finite."""
    _none_of(where, values, ~np.isfinite(values), "not finite", advice)


def _none_of(where: str, values: np.ndarray, wrong: np.ndarray, what: str, advice: str) -> None:
    if wrong.any():
        first = first_of(wrong)
        raise ValueError(
            f"{where}: {np.count_nonzero(wrong)} of {values.size} values are {what}, the first at index {first}: "
            f"{values[first]}. {advice}"
        )


# ---------------------------------------------------------------- example weights


def example_weights(where: str, weights: Any, n: int) -> None:
    """Raises an error unless weights are [N] or [N, …], whatever they hold."""
    if not hasattr(weights, "shape") or not hasattr(weights, "dtype"):
        raise TypeError(f"{where} must be an array [N], got {type(weights).__name__}: use np.asarray")
    if weights.shape[:1] != (n,):
        raise ValueError(
            f"{where} must have shape ({n},), one for each example, or ({n}, …), one for each entry of it, got "
            f"{weights.shape}"
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise ValueError(f"{where} must be real numbers, got {weights.dtype}")


def weight_values(where: str, weights: Any) -> None:
    """Raises ValueError if a concrete weight is negative or not finite, or if none is above 0."""
    values = np.asarray(weights)
    values = values if values.dtype.kind in "iub" else values.astype(np.float64)  # half precisions lack some tests
    advice = "Give numbers of 0 and above; 0 leaves an example out"
    finite_values(where, values, advice)
    _none_of(where, values, values < 0, "negative", advice)
    if not values.any():
        raise ValueError(
            f"{where} are all zero, which leaves nothing to take a mean of: leave weights out, or the batch"
        )


def is_concrete(x: Any) -> bool:
    """True for an array whose values can be looked at. Without jit those inside a scan can be, and are not meant."""
    return not isinstance(x, jax.core.Tracer) and not jax.config.jax_disable_jit


# ---------------------------------------------------------------- trees


def path_name(path: Sequence[Any]) -> str:
    """`dense_0/w` for a tree path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def describe(leaf: Any) -> str:
    """`float32[784, 30]`."""
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]" if hasattr(leaf, "dtype") else repr(leaf)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same_shapes(what: str, got: Tree, expected: Tree, advice: str) -> None:
    """Raises ValueError with the first paths at which two trees differ, and both shapes there."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (got, expected)]
    if structures[0] == structures[1] and _shapes(got) == _shapes(expected):
        return
    ours, theirs = named_leaves(expected), named_leaves(got)
    lines = []
    for path in dict.fromkeys([*ours, *theirs]):
        wanted, came = (list(jnp.shape(tree[path])) if path in tree else None for tree in (ours, theirs))
        where = path or "the array"
        if came is None:
            lines.append(f"{where}: expected {wanted}, missing")
        elif wanted is None:
            lines.append(f"{where}: not expected, got {came}")
        elif wanted != came:
            lines.append(f"{where}: expected {wanted}, got {came}")
    if not lines:  # the same leaves in other containers
        lines.append(f"expected {structures[1]}, got {structures[0]}")
    more = [f"and {len(lines) - MAX_REPORTED} more"] if len(lines) > MAX_REPORTED else []
    raise ValueError("\n  ".join([f"{what}; {advice}", *lines[:MAX_REPORTED], *more]))


def _shapes(tree: Tree) -> list[Shape]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
