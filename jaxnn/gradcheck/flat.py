"""A user's function and rule, of pytrees, as functions of lists of floats, once they are known to fit together.

A complex number is two floats, its real and its imaginary part. JAX pairs a cotangent δ with a change dy as Re(δ dy),
without a conjugate: δ = ∂C/∂Re y − i ∂C/∂Im y, so that a step against the gradient of a real function of z = x + iy
goes along its conjugate. Gradients and δs of complex numbers are read and given so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.programs import Problem
from jaxnn.jaxprs import argument_names, is_float, name_of
from jaxnn.types import DType, Tree

FLOAT0 = jax.dtypes.float0
CONJUGATE = -1  # the sign of the imaginary part of δ and of gradients, as JAX pairs them
Backward = Callable[[tuple[Any, ...], Any], Any]


def is_inexact(x: Any) -> bool:
    """True for real and complex floats of any precision: what has a gradient."""
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.inexact))


def parts_of(leaf: Any, sign: int = 1) -> list[Any]:
    """A float by itself, a complex number as its real part and its imaginary part times the sign; none of the rest."""
    if is_float(leaf):
        return [leaf]
    return [jnp.real(leaf), sign * jnp.imag(leaf)] if is_inexact(leaf) else []


def joined_parts(like: Any, left: Iterator[Any], sign: int = 1) -> Any:
    """The inverse of `parts_of`: a leaf like that, from the next floats."""
    if is_float(like):
        return next(left)
    real, imaginary = next(left), next(left)
    return jax.lax.complex(real, sign * imaginary)


def _specs(leaf: Any) -> list[Any]:
    """`parts_of`, of shapes and dtypes."""
    return list(jax.eval_shape(lambda: parts_of(jnp.zeros(leaf.shape, leaf.dtype)))) if is_inexact(leaf) else []


def cast(f: Callable[..., Any], args: Any, dtype: DType | None) -> tuple[Any, ...]:
    """Args as arrays, floats in dtype."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"gradcheck: args must be a tuple of arguments, as in (x,), got {type(args).__name__}")

    def array(path: Any, leaf: Any) -> Any:
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError):
            where = f"{argument_names(f, len(args))[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
            raise TypeError(f"gradcheck: {where} is no array but {leaf!r}: close over it in a lambda") from None
        if dtype is None or not is_inexact(leaf):
            return leaf
        return leaf.astype(dtype if is_float(leaf) else jnp.promote_types(dtype, jnp.complex64))

    return tuple(jax.tree_util.tree_map_with_path(array, tuple(args)))


class Case(NamedTuple):
    """One point at which a rule is checked, in one precision."""

    place: str
    f: Callable[..., Tree]
    reference: Callable[..., Tree]
    backward: Backward
    forward: Callable[..., tuple[Tree, Tree]] | None
    args: tuple[Any, ...]
    seed: int
    cotangents: int
    forward_error: float = 0.0
    surrogate: bool = False


class Flat(NamedTuple):
    """A case as functions of lists of floats.

    Attributes:
        problem: for the judge; its first cotangent.
        deltas: all cotangents.
        outputs: names of the outputs.
        values: (leaves, fixed) -> float outputs of f, which may be another function than the problem's.
        again: what else gives the same outputs: f where it is held against a reference, or forward; None if nothing.
    """

    problem: Problem
    deltas: list[list[Any]]
    outputs: tuple[str, ...]
    values: Callable[[list[Any], Any], list[Any]]
    again: Callable[[list[Any], Any], list[Any]] | None


def flatten(case: Case) -> Flat:
    """Checks that f, backward and args fit together, and takes floats apart from all else."""
    f, args = case.f, case.args
    out = _shape_of(case.f, args, "f")
    if case.reference is not case.f:
        _alike_outputs(out, _shape_of(case.reference, args, "reference"), "f's output is not like the reference's")
    if case.forward is not None:
        pair = _shape_of(case.forward, args, "forward")
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"gradcheck: forward must return (output, residuals), got {type(pair).__name__}")
        _alike_outputs(pair[0], out, "forward's output is not like f's")
    out_leaves, out_tree = jax.tree.flatten(out)
    if not any(map(is_inexact, out_leaves)):
        shown = ", ".join(sorted({str(leaf.dtype) for leaf in out_leaves})) or "nothing"
        raise TypeError(f"gradcheck: {name_of(f)} returns {shown} and no floats: there is no gradient to check")
    _deterministic(f, args)
    leaves, tree = jax.tree.flatten(args)
    floats = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]
    counts = [len(_specs(leaves[i])) for i in floats]
    specs = [part for leaf in out_leaves for part in _specs(leaf)]
    deltas = [cotangents(specs, case.seed + k, plain=k == 0) for k in range(case.cotangents)]

    def whole(values: list[Any], fixed: Any) -> tuple[Any, ...]:
        left = iter(values)
        filled = [joined_parts(leaves[i], left) if i in floats else leaf for i, leaf in enumerate(fixed)]
        return tuple(jax.tree.unflatten(tree, filled))

    def outputs_of(g: Callable[..., Tree]) -> Callable[[list[Any], Any], list[Any]]:
        return lambda values, fixed: [
            part for leaf in jax.tree.leaves(g(*whole(values, fixed))) for part in parts_of(leaf)
        ]

    def delta_tree(given: list[Any]) -> Any:
        left = iter(given)
        filled = [
            joined_parts(leaf, left, CONJUGATE) if is_inexact(leaf) else np.zeros(leaf.shape, FLOAT0)
            for leaf in out_leaves
        ]
        return jax.tree.unflatten(out_tree, filled)

    def result(values: list[Any], fixed: Any, given: list[Any]) -> Any:
        point = whole(values, fixed)
        kept = point if case.forward is None else case.forward(*point)[1]
        return case.backward(kept, delta_tree(given))

    fixed = [None if i in floats else leaf for i, leaf in enumerate(leaves)]
    start = [part for i in floats for part in parts_of(leaves[i])]
    spec = _shape_of(lambda: result(start, fixed, deltas[0]), (), "backward")
    given = _gradients(case, spec, args, floats)
    chosen = [there for there, count in zip(given, counts, strict=True) for _ in range(count)]

    def rule(values: list[Any], fixed: Any, deltas: list[Any]) -> list[Any]:
        out = result(values, fixed, deltas)
        out = (out,) if len(args) == 1 and not isinstance(out, (tuple, list)) else tuple(out)
        found: list[Any] = []
        for i, g in zip(floats, _aligned(out, args, floats), strict=True):
            if g is not None:
                g = jnp.asarray(g)
                found += [g] if is_float(leaves[i]) else parts_of(g + 0j if is_float(g) else g, CONJUGATE)
        return found

    parameters = argument_names(f, len(args))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(args)]
    names = [f"{parameters[paths[i][0].idx]}{jax.tree_util.keystr(paths[i][1:])}{part}"
             for i in floats for part in _part_names(leaves[i])]  # fmt: skip
    kept = [k for k, there in enumerate(chosen) if there]
    held = {k: leaf for k, leaf in enumerate(start) if k not in kept}

    def joined(values: list[Any], fixed: Any) -> list[Any]:
        left = iter(values)
        return [fixed[1][k] if k in held else next(left) for k in range(len(start))]

    problem = Problem(
        case.place,
        "gradient",
        tuple(names[k] for k in kept),
        lambda values, fixed: outputs_of(case.reference)(joined(values, fixed), fixed[0]),
        lambda values, fixed, given: rule(joined(values, fixed), fixed[0], given),
        [start[k] for k in kept],
        (fixed, held),
        deltas[0],
        forward_error=case.forward_error,
        surrogate=case.surrogate,
    )
    labels = [f"output{jax.tree_util.keystr(path)}{part}" for path, leaf in jax.tree_util.tree_leaves_with_path(out)
              for part in _part_names(leaf)]  # fmt: skip

    def at(g: Callable[..., Tree]) -> Callable[[list[Any], Any], list[Any]]:
        return lambda values, fixed: outputs_of(g)(joined(values, fixed), fixed[0])

    again = None if case.reference is case.f else at(f)
    if case.forward is not None:
        forward = case.forward
        again = at(lambda *args: forward(*args)[0])
    return Flat(problem, deltas, tuple(labels), at(f), again)


def _part_names(leaf: Any) -> list[str]:
    if not is_inexact(leaf):
        return []
    return [""] if is_float(leaf) else [".real", ".imag"]


def fits(f: Callable[..., Tree], args: Any) -> None:
    """Raises ValueError with every place where the rule of a custom_vjp does not fit its arguments; JAX names one.

    And TypeError where some of its arguments are static: those are closed over.
    """
    if getattr(f, "nondiff_argnums", ()):
        raise TypeError(
            f"gradcheck.custom_vjp: {name_of(f)} has nondiff_argnums {tuple(f.nondiff_argnums)}: close over those "  # type: ignore[attr-defined]
            "arguments, as in lambda x: f(x, 3)"
        )
    forward, backward = getattr(f, "fwd", None), getattr(f, "bwd", None)
    if forward is None or backward is None:
        return
    args = cast(f, args, None)
    out, residuals = _shape_of(forward, args, "the custom_vjp's forward")
    result = _shape_of(lambda residuals: backward(residuals, _like(out)), (residuals,), "the custom_vjp's backward")
    if isinstance(result, (tuple, list)):
        _mismatched(f, result, args, "the rule's gradients are not like the arguments")


def _like(outputs: Any) -> Any:
    """Zeros for a cotangent of that form."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if is_inexact(leaf) else np.zeros(leaf.shape, FLOAT0), outputs
    )


def _shape_of(f: Callable[..., Any], args: tuple[Any, ...], what: str) -> Any:
    try:
        return jax.eval_shape(f, *args)
    except Exception as error:
        error.add_note(f"gradcheck: raised by {what}")
        raise


def _alike_outputs(ours: Any, theirs: Any, what: str) -> None:
    lines = _mismatches(ours, theirs, "output")
    if lines:
        raise ValueError("\n  ".join([f"gradcheck: {what}:", *lines]))


def _mismatches(got: Any, expected: Any, what: str) -> list[str]:
    """Where two trees of arrays differ in form, a line each."""
    ours, theirs = ({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                    for tree in (got, expected))  # fmt: skip
    lines = []
    for path in dict.fromkeys([*theirs, *ours]):
        if path not in ours:
            lines.append(f"{what}{path}: expected floats of shape {list(theirs[path].shape)}, and there are none")
        elif path not in theirs:
            lines.append(f"{what}{path}: not expected, got shape {list(jnp.shape(ours[path]))}")
        elif jnp.shape(ours[path]) != theirs[path].shape:
            lines.append(f"{what}{path}: expected shape {list(theirs[path].shape)}, got {list(jnp.shape(ours[path]))}")
    return lines


def _gradients(case: Case, result: Any, args: tuple[Any, ...], floats: list[int]) -> list[bool]:
    """Which float leaves get a gradient; raises with every mismatch if the result is not like args."""
    if len(args) == 1 and not isinstance(result, (tuple, list)):
        result = (result,)
    names = argument_names(case.f, len(args))
    if not isinstance(result, (tuple, list)) or len(result) != len(args):
        came = f"{len(result)} of them" if isinstance(result, (tuple, list)) else type(result).__name__
        raise ValueError(
            f"gradcheck: backward must return a tuple with one gradient for each of the {len(args)} arguments "
            f"({', '.join(names)}), got {came}"
        )
    _mismatched(case.f, result, args, "backward's gradients are not like the arguments")
    given = [gradient is not None for gradient in _aligned(tuple(result), args, floats)]
    if not any(given):
        raise ValueError(f"gradcheck: backward gives no gradient for any float among {', '.join(names)}")
    return given


def _mismatched(f: Callable[..., Any], result: Any, args: tuple[Any, ...], what: str) -> None:
    """Raises ValueError with every place where gradients are not like args; None and () stand for no gradient."""
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
    if lines:
        raise ValueError("\n  ".join([f"gradcheck: {what}:", *lines]))


def _aligned(result: tuple[Any, ...], args: tuple[Any, ...], floats: list[int]) -> list[Any]:
    """For each float leaf of args its gradient, or None where the rule gives none."""
    found: list[Any] = []
    for gradient, argument in zip(result, args, strict=True):
        paths = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
            if is_inexact(leaf):
                found.append(paths.get(jax.tree_util.keystr(path)))
    assert len(found) == len(floats)
    return found


def cotangents(outputs: list[Any], seed: int, *, plain: bool) -> list[Any]:
    """δ for every float output: 1 for a single number's first, else normal numbers."""
    rng = np.random.default_rng(seed)
    floats = [leaf for leaf in outputs if is_float(leaf)]
    if plain and len(floats) == 1 and floats[0].shape == ():
        return [jnp.ones((), floats[0].dtype)]
    return [jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) for leaf in floats]


def _deterministic(f: Callable[..., Tree], args: tuple[Any, ...]) -> None:
    first, second = (jax.tree_util.tree_leaves_with_path(f(*args)) for _ in range(2))
    for (path, a), (_, b) in zip(first, second, strict=True):
        a, b = (np.asarray(value) for value in (a, b))
        a, b = (value.astype(np.float64) if is_float(value) else value for value in (a, b))
        if not np.array_equal(a, b, equal_nan=is_inexact(a)):
            raise ValueError(
                f"gradcheck: {name_of(f)} is not deterministic: two calls with the same arguments differ at "
                f"output{jax.tree_util.keystr(path)}; draw random numbers from a key among the arguments"
            )
