"""Checks of the shapes of inputs and of δ."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import numpy as np

from jaxnn.arrays import is_floating
from jaxnn.checks import plain_data, seen, whole_number
from jaxnn.errors import LayerError
from jaxnn.trees import describe, path_name
from jaxnn.types import Array, DType, InShape, Outline, Shape, Tree


def input_spec(in_shape: InShape, dtype: DType, batch: int = 1) -> Tree:
    """The input of `forward`: `in_shape` with a batch axis in front, as jax.ShapeDtypeStructs."""
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
            f"if inputs are not float, got {seen(in_shape)}"
        )
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype), in_shape)


def example_shape(x: Tree) -> InShape:
    """The `in_shape` of a batch; a plain tuple for one float array."""
    leaves = jax.tree.leaves(x)
    if len(leaves) == 1 and leaves[0] is x and is_floating(x):
        return tuple(x.shape[1:])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


def one_array(kind: str, x: Any, *, at_least: int = 1) -> Shape:
    """The shape of x; LayerError unless it is one array [N, …]."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        advice = ""
        if hasattr(x, "values") and hasattr(x, "mask"):  # Sequences, which this floor cannot import
            advice = (
                ": masked steps would count as data. Recurrent layers and layers that act on each step alone (dense, "
                "embedding, activations, softmax, dropout, layer_norm, rms_norm) take Sequences; put a recurrent layer "
                "that returns 'values' or 'last' before this layer"
            )
        raise LayerError(kind, f"expects one array, got {type(x).__name__}{advice}")
    if x.ndim < at_least:
        raise LayerError(kind, "expects x with the batch axis first, got a scalar")
    if isinstance(x, np.ma.MaskedArray):
        plain_data(f"{kind}: x", x)
    return tuple(x.shape)


def features(kind: str, x: Any, *, at_least: int = 2) -> Shape:
    """The shape of x; LayerError unless it is a float array [N, …, D]."""
    shape = one_array(kind, x, at_least=0)
    if x.ndim < at_least:
        axes = "[N, D]" if at_least == 2 else "with the batch axis first"
        advice = "add the batch axis, x[None] for one example" + ", x[:, None] for N examples of one feature" * x.ndim
        raise LayerError(kind, f"expects x {axes}, got x of shape {x.shape}: {advice}")
    if not is_floating(x):
        raise LayerError(kind, f"expects float features, got {x.dtype}: convert with x.astype('float32')")
    return shape


def batch_size(what: str, tree: Tree) -> int:
    """N, the size of the first axis of every leaf; a symbol in a program exported for every N."""
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


def check_delta(kind: str, delta: object, output: Tree) -> None:
    """Raises LayerError unless δ has the structure, shapes and dtypes of the output, `()` for what is not float.

    `output` is the layer's output, or arrays, Outlines or jax.ShapeDtypeStructs like it. Static: free under `jit`.
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


def _spec(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _fits(delta: Any, leaf: Array) -> bool:
    if not is_floating(leaf):  # JAX's own cotangents have float0 there
        return (isinstance(delta, tuple) and not delta) or getattr(delta, "dtype", None) == jax.dtypes.float0
    if not hasattr(delta, "shape") or not hasattr(delta, "dtype"):
        return False
    return tuple(delta.shape) == tuple(leaf.shape) and jax.dtypes.canonicalize_dtype(delta.dtype) == leaf.dtype


def _shown(tree: object) -> str:
    """`(float32[4, 3], ())`, a tree as its arrays' shapes."""
    if isinstance(tree, dict):
        return f"{{{', '.join(f'{name}: {_shown(part)}' for name, part in tree.items())}}}"
    if isinstance(tree, (tuple, list)):
        name = type(tree).__name__ if hasattr(tree, "_fields") else ""
        return f"{name}({', '.join(map(_shown, tree))})"
    return describe(tree)


def check_input_deltas(kind: str, deltas: Sequence[Any]) -> None:
    """Raises LayerError unless the δs to be added at one input have the same structure, shapes and dtypes."""
    first, *others = (
        (jax.tree.structure(d), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(d)]) for d in deltas
    )
    if any(other != first for other in others):
        raise LayerError(kind, f"adds the δs of its input, which must be alike, got {', '.join(map(_shown, deltas))}")
