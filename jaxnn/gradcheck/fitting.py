"""Checks that a user's function, rule and arguments fit together, and their floats.

Every mismatch is named with its path in one message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import Array, DType, Tree
from jaxnn.jaxprs import argument_names, is_float, name_of

FLOAT0 = jax.dtypes.float0


def is_inexact(x: Any) -> bool:
    """True for real and complex floats of any precision: what has a gradient."""
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.inexact))


def cast(f: Callable[..., Any], args: Any, dtype: DType | None) -> tuple[Any, ...]:
    """The arguments as arrays, with floats in dtype."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"gradcheck: args must be a tuple of arguments, as in (x,), got {type(args).__name__}")

    def array(path: Any, leaf: Any) -> Any:
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError):
            where = f"{argument_names(f, len(args))[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
            raise TypeError(f"gradcheck: {where} is not an array but {leaf!r}: close over it in a lambda") from None
        if dtype is None or not is_inexact(leaf):
            return leaf
        return leaf.astype(dtype if is_float(leaf) else jnp.promote_types(dtype, jnp.complex64))

    return tuple(jax.tree_util.tree_map_with_path(array, tuple(args)))


def fits(f: Callable[..., Tree], args: Any) -> None:
    """Checks that the rule of a custom_vjp fits its arguments; reports every mismatch, of which JAX names one."""
    if getattr(f, "nondiff_argnums", ()):
        raise TypeError(
            f"gradcheck.custom_vjp: {name_of(f)} has nondiff_argnums {tuple(f.nondiff_argnums)}: close over those "  # type: ignore[attr-defined]
            "arguments, as in lambda x: f(x, 3)"
        )
    forward, backward = getattr(f, "fwd", None), getattr(f, "bwd", None)
    if forward is None or backward is None:
        return
    args = cast(f, args, None)
    out, residuals = shape_of(forward, args, "the custom_vjp's forward")
    result = shape_of(
        lambda residuals: backward(residuals, jax.tree.map(zero_cotangent, out)),
        (residuals,),
        "the custom_vjp's backward",
    )
    if isinstance(result, (tuple, list)):
        check_gradients(f, result, args, "the rule's gradients are not like the arguments")


def zero_cotangent(leaf: Any) -> Any:
    """Zeros as the cotangent of an output."""
    return jnp.zeros(leaf.shape, leaf.dtype) if is_inexact(leaf) else np.zeros(leaf.shape, FLOAT0)


def shape_of(f: Callable[..., Any], args: Sequence[Any], what: str) -> Any:
    """The shapes of f's outputs; an error that it raises says by what."""
    try:
        return jax.eval_shape(f, *args)
    except Exception as error:
        error.add_note(f"gradcheck: raised by {what}")
        raise


def check_output(
    f: Callable[..., Tree],
    reference: Callable[..., Tree],
    forward: Callable[..., tuple[Tree, Tree]] | None,
    args: Sequence[Any],
) -> Tree:
    """The shapes of f's output; an error with every mismatch of the reference or of forward, or without floats."""
    out = shape_of(f, args, "f")
    if reference is not f:
        expected = shape_of(reference, args, "reference")
        _raise_all(_mismatches(out, expected, "output"), "f's output is not like the reference's")
    if forward is not None:
        pair = shape_of(forward, args, "forward")
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"gradcheck: forward must return (output, residuals), got {type(pair).__name__}")
        _raise_all(_mismatches(pair[0], out, "output"), "forward's output is not like f's")
    leaves = jax.tree.leaves(out)
    if not any(map(is_inexact, leaves)):
        shown = ", ".join(sorted({str(leaf.dtype) for leaf in leaves})) or "nothing"
        raise TypeError(f"gradcheck: {name_of(f)} returns {shown} and no floats: there is no gradient to check")
    return out


def _raise_all(lines: list[str], what: str) -> None:
    if lines:
        raise ValueError("\n  ".join([f"gradcheck: {what}:", *lines]))


def _mismatches(got: Tree, expected: Tree, what: str) -> list[str]:
    """One line for each difference in form between two trees of arrays."""
    ours, theirs = ({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                    for tree in (got, expected))  # fmt: skip
    lines = []
    for path in dict.fromkeys([*theirs, *ours]):
        if path not in ours:
            lines.append(f"{what}{path}: expected floats of shape {list(theirs[path].shape)}, got none")
        elif path not in theirs:
            lines.append(f"{what}{path}: not expected, got shape {list(jnp.shape(ours[path]))}")
        elif jnp.shape(ours[path]) != theirs[path].shape:
            lines.append(f"{what}{path}: expected shape {list(theirs[path].shape)}, got {list(jnp.shape(ours[path]))}")
    return lines


def as_tuple(result: Any, args: Sequence[Any]) -> Any:
    """Gradients as a tuple: that of a single argument may be given by itself."""
    return (result,) if len(args) == 1 and not isinstance(result, (tuple, list)) else result


def gradients_given(f: Callable[..., Tree], result: Any, args: Sequence[Any]) -> list[bool]:
    """For each float leaf, whether it has a gradient; raises with every mismatch if the result is not like args."""
    result, names = as_tuple(result, args), argument_names(f, len(args))
    if not isinstance(result, (tuple, list)) or len(result) != len(args):
        got = f"{len(result)} of them" if isinstance(result, (tuple, list)) else type(result).__name__
        raise ValueError(
            f"gradcheck: backward must return a tuple with one gradient for each of the {len(args)} arguments "
            f"({', '.join(names)}), got {got}"
        )
    check_gradients(f, result, args, "backward's gradients are not like the arguments")
    given = [gradient is not None for gradient in aligned(result, args)]
    if not any(given):
        raise ValueError(f"gradcheck: backward gives no gradient for any float among {', '.join(names)}")
    return given


def check_gradients(f: Callable[..., Tree], result: Sequence[Any], args: Sequence[Any], what: str) -> None:
    """Raises ValueError with every mismatch between gradients and args; None and () stand for no gradient."""
    names = argument_names(f, len(args))
    if len(result) != len(args):
        raise ValueError(f"gradcheck: {what}: {len(result)} gradients for {len(args)} arguments ({', '.join(names)})")
    lines: list[str] = []
    for name, gradient, argument in zip(names, result, args, strict=True):
        if gradient is None or (isinstance(gradient, (tuple, dict, list)) and not gradient):
            continue
        ours, theirs = (jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, tree)
                        for tree in (gradient, argument))  # fmt: skip
        lines += _mismatches(ours, theirs, name)
    _raise_all(lines, what)


def aligned(result: Sequence[Any], args: Sequence[Any]) -> list[Array | None]:
    """The gradient of each float leaf of args, or None where the rule gives none."""
    found: list[Array | None] = []
    for gradient, argument in zip(result, args, strict=True):
        paths = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
            if is_inexact(leaf):
                found.append(paths.get(jax.tree_util.keystr(path)))
    return found


def check_deterministic(f: Callable[..., Tree], args: Sequence[Any]) -> None:
    """Raises ValueError if two calls of f differ."""
    first, second = (jax.tree_util.tree_leaves_with_path(f(*args)) for _ in range(2))
    for (path, a), (_, b) in zip(first, second, strict=True):
        a, b = (np.asarray(value) for value in (a, b))
        a, b = (value.astype(np.float64) if is_float(value) else value for value in (a, b))
        if not np.array_equal(a, b, equal_nan=is_inexact(a)):
            raise ValueError(
                f"gradcheck: {name_of(f)} is not deterministic: two calls with the same arguments differ at "
                f"output{jax.tree_util.keystr(path)}; draw random numbers from a key among the arguments"
            )
