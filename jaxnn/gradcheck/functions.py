"""`function` and `custom_vjp`: a user's own rule for the gradient of a function, held against jax.grad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import whole_number
from jaxnn.gradcheck.judge import (
    REPLAYED,
    Measured,
    excess,
    measure,
    noise,
    prepare,
    threshold,
    verdicts,
)
from jaxnn.gradcheck.programs import Problem, Programs, compiled
from jaxnn.gradcheck.replay import calls_back, obstacles, replay, widen, x64_is_on
from jaxnn.gradcheck.report import CANNOT_TELL, RIGHT, SEVERITY, WRONG, Report, Row
from jaxnn.jaxprs import argument_names, is_float, name_of
from jaxnn.types import DType, Tree

FLOAT0 = jax.dtypes.float0
NEARBY = 0.875  # times x: the second point under vmap
COMBINED = (2.0, -3.0)  # of two cotangents, for linearity
Backward = Callable[[tuple[Any, ...], Any], Any]


def function(
    f: Callable[..., Tree],
    args: Sequence[Any],
    backward: Callable[..., Any],
    *,
    forward: Callable[..., tuple[Tree, Tree]] | None = None,
    grid: Sequence[Sequence[Any]] = (),
    dtypes: Sequence[DType] | None = None,
    cotangents: int = 2,
    order: int = 1,
    seed: int = 0,
) -> Report:
    """Is this hand-derived gradient right, and if not, at which leaf and element?

    `backward(args, delta)` answers δ ↦ Jᵀδ, J = ∂f/∂args: a tuple with one gradient, a pytree like the argument, for
    each argument. It is held against `jax.vjp` of f in float64, with what rounding explains as the only tolerance, and
    must besides be linear in δ, deterministic, and the same under jit and vmap.

    Args:
        f: a pure function of pytrees, `f(*args)`; its outputs are pytrees with floats among them.
        args: a tuple of arguments: the point. Integers, keys and None are handed on and left alone.
        backward: the rule. None in the place of a gradient leaves that argument alone.
        forward: `forward(*args) -> (output, residuals)`, as for `jax.custom_vjp`; backward is then given the
            residuals in the place of args.
        grid: more points, of other shapes.
        dtypes: precisions to cast every float to, "float32", "bfloat16"; by default those of args.
        cotangents: how many δs, drawn from seed; a single number's first δ is 1.
        order: 2 to hold the derivative of the rule against that of the gradient too.
        seed: of δs and jitter.

    Raises:
        TypeError: if args is no tuple, holds what is no array, or f gives no floats.
        ValueError: if f is not deterministic, or backward's result is not like args: every mismatch, with its path.

    Source: see `jaxnn.gradcheck.judge` for the criterion; Griewank & Walther (2008), ch. 3, for the adjoint.

    >>> import jax.numpy as jnp
    >>> report = function(lambda x: jnp.sin(x) ** 2, (jnp.ones(3),), lambda args, d: (jnp.cos(args[0]) * d,))
    >>> report.verdict, report.rows[0].leaf
    ('wrong', 'x')
    """
    name = name_of(f)
    checked = _check(name, f, f, backward, forward, args, grid, dtypes, cotangents, order, seed, custom=False)
    return Report(f"gradcheck of {name}", tuple(checked), _wrong(checked))


def custom_vjp(
    f: Callable[..., Tree],
    reference: Callable[..., Tree],
    args: Sequence[Any],
    *,
    grid: Sequence[Sequence[Any]] = (),
    dtypes: Sequence[DType] | None = None,
    cotangents: int = 2,
    order: int = 1,
    seed: int = 0,
) -> Report:
    """Is the rule of a function with `jax.custom_vjp` right? f's gradient against autodiff of a plain reference.

    Args:
        f: the function with a rule of its own.
        reference: the same function in plain JAX.
        args: as for `function`.
        grid: as for `function`.
        dtypes: as for `function`.
        cotangents: as for `function`.
        order: as for `function`.
        seed: as for `function`.

    Returns:
        A Report: the values of f and reference, the gradients, and the properties of the rule. Reverse over reverse is
        used for order 2: `jax.custom_vjp` forbids forward mode, and the report says so.

    Raises:
        TypeError, ValueError: as `function`, and if the outputs of f and reference are not alike.

    >>> import jax, jax.numpy as jnp
    >>> f = jax.custom_vjp(jnp.sin)
    >>> f.defvjp(lambda x: (jnp.sin(x), x), lambda x, d: (d * jnp.cos(x),))
    >>> custom_vjp(f, jnp.sin, (jnp.ones(3),)).verdict
    'right'
    """
    name = name_of(f)

    def backward(args: tuple[Any, ...], delta: Any) -> tuple[Any, ...]:
        return jax.vjp(f, *args)[1](delta)

    checked = _check(name, f, reference, backward, None, args, grid, dtypes, cotangents, order, seed, custom=True)
    return Report(f"gradcheck of {name} against {name_of(reference)}", tuple(checked), _wrong(checked))


def _wrong(rows: list[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.leaf for row in rows if row.verdict == WRONG))


# ---------------------------------------------------------------- one point after another


def _check(
    name: str,
    f: Callable[..., Tree],
    reference: Callable[..., Tree],
    backward: Backward,
    forward: Callable[..., tuple[Tree, Tree]] | None,
    args: Sequence[Any],
    grid: Sequence[Sequence[Any]],
    dtypes: Sequence[DType] | None,
    cotangents: int,
    order: int,
    seed: int,
    *,
    custom: bool,
) -> list[Row]:
    whole_number("gradcheck: cotangents", cotangents, least=1)
    if order not in (1, 2):
        raise ValueError(f"gradcheck: order must be 1 or 2, got {order!r}")
    rows: list[Row] = []
    points = [args, *grid]
    for i, point in enumerate(points):
        for dtype in [None] if dtypes is None else dtypes:
            words = [f"point {i}"] * (len(points) > 1) + [str(jnp.dtype(dtype))] * (dtype is not None)
            place = " ".join(words) or name
            wide = dtype is not None and jnp.dtype(dtype) == np.float64
            with jax.enable_x64(wide or x64_is_on()):
                case = _Case(place, f, reference, backward, forward, _cast(f, point, dtype), seed, cotangents)
                rows += _rows(case, order, custom=custom)
    return rows


def _cast(f: Callable[..., Any], args: Any, dtype: DType | None) -> tuple[Any, ...]:
    """Args as arrays, floats in dtype."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"gradcheck: args must be a tuple of arguments, as in (x,), got {type(args).__name__}")

    def array(path: Any, leaf: Any) -> Any:
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError):
            where = f"{argument_names(f, len(args))[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
            raise TypeError(f"gradcheck: {where} is no array but {leaf!r}: close over it in a lambda") from None
        return leaf.astype(dtype) if dtype is not None and is_float(leaf) else leaf

    return tuple(jax.tree_util.tree_map_with_path(array, tuple(args)))


class _Case(NamedTuple):
    """One point at which a rule is checked, in one precision."""

    place: str
    f: Callable[..., Tree]
    reference: Callable[..., Tree]
    backward: Backward
    forward: Callable[..., tuple[Tree, Tree]] | None
    args: tuple[Any, ...]
    seed: int
    cotangents: int


class _Flat(NamedTuple):
    """A case as functions of lists of floats.

    Attributes:
        problem: for the judge; its first cotangent.
        deltas: all cotangents.
        outputs: names of the outputs.
        values: (leaves, fixed) -> float outputs of f, which may be another function than the problem's.
    """

    problem: Problem
    deltas: list[list[Any]]
    outputs: tuple[str, ...]
    values: Callable[[list[Any], Any], list[Any]]


def _rows(case: _Case, order: int, *, custom: bool) -> list[Row]:
    flat = _flatten(case)
    rows = [] if not custom else _value_rows(case, flat)
    broken = _not_finite_value(case, flat)
    if broken is not None:
        rows.append(broken)
    bench = prepare([flat.problem])
    found: list[list[Row]] = []
    for i, deltas in enumerate(flat.deltas):
        problem = flat.problem._replace(deltas=deltas, witness=i == 0)
        (measured,) = measure(bench, [problem.arguments], case.seed + i)
        if i == 0:
            first = measured
        found.append(verdicts(problem, bench.programs[0], measured))
    rows += [max(same, key=lambda row: SEVERITY.index(row.verdict)) for same in zip(*found, strict=True)]
    if any(row.verdict == CANNOT_TELL and row.element is None for row in rows):
        return rows
    (programs,) = bench.programs
    rows += _properties(case, flat, programs, first)
    if order == 2:
        rows += _second_order(case, flat, custom=custom)
    return rows


# ---------------------------------------------------------------- flattening


def _flatten(case: _Case) -> _Flat:
    """Checks that f, backward and args fit together, and takes floats apart from all else."""
    f, args = case.f, case.args
    out = _shape_of(case.f, args, "f")
    if case.reference is not case.f:
        _alike_outputs(out, _shape_of(case.reference, args, "reference"))
    out_leaves, out_tree = jax.tree.flatten(out)
    if not any(map(is_float, out_leaves)):
        shown = ", ".join(sorted({str(leaf.dtype) for leaf in out_leaves})) or "nothing"
        raise TypeError(f"gradcheck: {name_of(f)} returns {shown} and no floats: there is no gradient to check")
    _deterministic(f, args)
    leaves, tree = jax.tree.flatten(args)
    floats = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
    deltas = [_cotangents(out_leaves, case.seed + k, plain=k == 0) for k in range(case.cotangents)]

    def whole(values: list[Any], fixed: Any) -> tuple[Any, ...]:
        rest = dict(zip(floats, values, strict=True))
        return tuple(jax.tree.unflatten(tree, [rest.get(i, leaf) for i, leaf in enumerate(fixed)]))

    def outputs_of(g: Callable[..., Tree]) -> Callable[[list[Any], Any], list[Any]]:
        return lambda values, fixed: [leaf for leaf in jax.tree.leaves(g(*whole(values, fixed))) if is_float(leaf)]

    def delta_tree(given: list[Any]) -> Any:
        left = iter(given)
        filled = [next(left) if is_float(leaf) else np.zeros(leaf.shape, FLOAT0) for leaf in out_leaves]
        return jax.tree.unflatten(out_tree, filled)

    def result(values: list[Any], fixed: Any, given: list[Any]) -> Any:
        point = whole(values, fixed)
        kept = point if case.forward is None else case.forward(*point)[1]
        return case.backward(kept, delta_tree(given))

    fixed = [None if i in floats else leaf for i, leaf in enumerate(leaves)]
    start = [leaves[i] for i in floats]
    spec = _shape_of(lambda: result(start, fixed, deltas[0]), (), "backward")
    chosen = _gradients(case, spec, args, floats)

    def rule(values: list[Any], fixed: Any, given: list[Any]) -> list[Any]:
        out = result(values, fixed, given)
        out = (out,) if len(args) == 1 and not isinstance(out, (tuple, list)) else tuple(out)
        return [jnp.asarray(g) for g in _aligned(out, args, floats) if g is not None]

    parameters = argument_names(f, len(args))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(args)]
    names = [f"{parameters[paths[i][0].idx]}{jax.tree_util.keystr(paths[i][1:])}" for i in floats]
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
    )
    labels = [f"output{jax.tree_util.keystr(path)}" for path, leaf in jax.tree_util.tree_leaves_with_path(out)
              if is_float(leaf)]  # fmt: skip
    return _Flat(
        problem, deltas, tuple(labels), lambda values, fixed: outputs_of(case.f)(joined(values, fixed), fixed[0])
    )


def _shape_of(f: Callable[..., Any], args: tuple[Any, ...], what: str) -> Any:
    try:
        return jax.eval_shape(f, *args)
    except Exception as error:
        error.add_note(f"gradcheck: raised by {what}")
        raise


def _alike_outputs(ours: Any, theirs: Any) -> None:
    lines = _mismatches(ours, theirs, "output")
    if lines:
        raise ValueError("\n  ".join(["gradcheck: f's output is not like the reference's:", *lines]))


def _mismatches(got: Any, expected: Any, what: str) -> list[str]:
    """Where two trees of arrays differ in form, a line each."""
    ours, theirs = ({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                    for tree in (got, expected))  # fmt: skip
    lines = []
    for path in dict.fromkeys([*theirs, *ours]):
        if path not in ours:
            lines.append(f"{what}{path}: expected shape {list(theirs[path].shape)}, missing")
        elif path not in theirs:
            lines.append(f"{what}{path}: not expected, got shape {list(jnp.shape(ours[path]))}")
        elif jnp.shape(ours[path]) != theirs[path].shape:
            lines.append(f"{what}{path}: expected shape {list(theirs[path].shape)}, got {list(jnp.shape(ours[path]))}")
    return lines


def _gradients(case: _Case, result: Any, args: tuple[Any, ...], floats: list[int]) -> list[bool]:
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
    lines: list[str] = []
    for name, gradient, argument in zip(names, result, args, strict=True):
        if gradient is None or (isinstance(gradient, (tuple, dict, list)) and not gradient):
            continue
        ours, theirs = (jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, tree)
                        for tree in (gradient, argument))  # fmt: skip
        lines += _mismatches(ours, theirs, name)
    if lines:
        raise ValueError("\n  ".join(["gradcheck: backward's gradients are not like the arguments:", *lines]))
    given = [gradient is not None for gradient in _aligned(tuple(result), args, floats)]
    if not any(given):
        raise ValueError(f"gradcheck: backward gives no gradient for any float among {', '.join(names)}")
    return given


def _aligned(result: tuple[Any, ...], args: tuple[Any, ...], floats: list[int]) -> list[Any]:
    """For each float leaf of args its gradient, or None where the rule gives none."""
    found: list[Any] = []
    for gradient, argument in zip(result, args, strict=True):
        paths = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
            if is_float(leaf):
                found.append(paths.get(jax.tree_util.keystr(path)))
    assert len(found) == len(floats)
    return found


def _cotangents(outputs: list[Any], seed: int, *, plain: bool) -> list[Any]:
    """δ for every float output: 1 for a single number's first, else normal numbers."""
    rng = np.random.default_rng(seed)
    floats = [leaf for leaf in outputs if is_float(leaf)]
    if plain and len(floats) == 1 and floats[0].shape == ():
        return [jnp.ones((), floats[0].dtype)]
    return [jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) for leaf in floats]


def _deterministic(f: Callable[..., Tree], args: tuple[Any, ...]) -> None:
    first, second = (jax.tree_util.tree_leaves_with_path(f(*args)) for _ in range(2))
    for (path, a), (_, b) in zip(first, second, strict=True):
        a, b = (np.asarray(value).astype(np.float64 if is_float(value) else None) for value in (a, b))
        if not np.array_equal(a, b, equal_nan=a.dtype == np.float64):
            raise ValueError(
                f"gradcheck: {name_of(f)} is not deterministic: two calls with the same arguments differ at "
                f"output{jax.tree_util.keystr(path)}; draw random numbers from a key among the arguments"
            )


# ---------------------------------------------------------------- values


def _value_rows(case: _Case, flat: _Flat) -> list[Row]:
    """The values of f and reference, judged as gradients are."""
    problem = flat.problem
    values = problem._replace(
        kind="value",
        names=flat.outputs,
        rule=lambda leaves, fixed, _: flat.values(leaves, fixed),
        auto=lambda leaves, fixed, _: problem.value(leaves, fixed),
    )
    bench = prepare([values])
    (measured,) = measure(bench, [values.arguments], case.seed)
    return verdicts(values, bench.programs[0], measured)


def _not_finite_value(case: _Case, flat: _Flat) -> Row | None:
    """A row that says where f is NaN or infinite at the point."""
    values = flat.values(flat.problem.leaves, flat.problem.fixed)
    for name, value in zip(flat.outputs, values, strict=True):
        bad = ~np.isfinite(np.asarray(value).astype(np.float64))
        if bad.any():
            element = tuple(map(int, np.unravel_index(int(np.argmax(bad)), bad.shape)))
            shown = float(np.asarray(value)[element])
            why = f"the function is {shown} at {int(bad.sum())} of {bad.size} elements here: its gradient means nothing"
            return Row(case.place, "value", name, CANNOT_TELL, why, element=element, hand=shown)
    return None


# ---------------------------------------------------------------- properties of the rule


def _properties(case: _Case, flat: _Flat, programs: Programs, measured: list[Measured]) -> list[Row]:
    """Deterministic, linear in δ, and the same under jit and vmap; in float64 where the rule runs there."""
    problem, stopped = flat.problem, bool(programs.stopped or obstacles(programs.hand64))
    exact = [threshold(m) for m in measured]
    allowed = exact
    if stopped:  # the rule runs as it is, with the rounding of its own precision
        allowed = [
            REPLAYED * (noise(m) + np.abs(m.hand - m.replayed)) + a for m, a in zip(measured, exact, strict=True)
        ]
    native = x64_is_on()
    with jax.enable_x64(native or not stopped):
        leaves, fixed, deltas = problem.arguments if stopped else widen(problem.arguments)
        other = _cotangents([jax.ShapeDtypeStruct(d.shape, d.dtype) for d in deltas], case.seed + 99, plain=False)

        def run(leaves: list[Any], deltas: list[Any]) -> list[Any]:
            return problem.rule(leaves, fixed, deltas)

        jitted = compiled(run)
        once = _wide(run(leaves, deltas))
        rows = [_compare(problem, "deterministic", once, _wide(run(leaves, deltas)), None)]
        rows += [_compare(problem, "under jit", _wide(jitted(leaves, deltas)), once, allowed)]
        if stopped and not calls_back(programs.hand):
            rows += [_linear_without_rounding(problem, programs, other, exact)]
        else:
            rows += [_linear(problem, lambda d: jitted(leaves, d), once, deltas, other, allowed)]
        moved = [NEARBY * leaf for leaf in leaves]
        points, stack = ([jnp.stack(pair) for pair in zip(a, b, strict=True)]
                         for a, b in ((leaves, moved), (deltas, other)))  # fmt: skip
        try:
            together = _wide(compiled(jax.vmap(run))(points, stack))
        except Exception as error:  # whatever a user's rule raises there
            message = f"vmap of the rule raises {type(error).__name__}: {str(error).splitlines()[0]}"
            return [*rows, Row(problem.place, "under vmap", "every leaf", CANNOT_TELL, message)]
        loop = [np.stack(pair) for pair in zip(once, _wide(run(moved, other)), strict=True)]
        room = [np.stack([a, np.full(a.shape, 4 * a.max(initial=0))]) for a in allowed]
        return [*rows, _compare(problem, "under vmap", together, loop, room)]


def _linear(
    problem: Problem,
    rule: Callable[[list[Any]], list[Any]],
    once: list[np.ndarray],
    deltas: list[Any],
    other: list[Any],
    allowed: list[np.ndarray],
) -> Row:
    mixed = [COMBINED[0] * a + COMBINED[1] * b for a, b in zip(deltas, other, strict=True)]
    combined = [COMBINED[0] * a + COMBINED[1] * b for a, b in zip(once, _wide(rule(other)), strict=True)]
    wider = [sum(map(abs, COMBINED)) * a for a in allowed]
    return _compare(problem, "linear in δ", _wide(rule(mixed)), combined, wider)


def _linear_without_rounding(problem: Problem, programs: Programs, other: list[Any], allowed: list[np.ndarray]) -> Row:
    """The low-precision program, replayed: the rounding of other δs than those measured is unknown."""
    with jax.enable_x64(True):
        leaves, fixed, deltas = widen(problem.arguments)
        run = compiled(replay(programs.hand))

        def rule(deltas: list[Any]) -> list[Any]:
            return list(run(*jax.tree.leaves((leaves, fixed, deltas))))

        return _linear(problem, rule, _wide(rule(deltas)), deltas, widen(other), allowed)


def _wide(leaves: list[Any]) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.float64) for leaf in leaves]


def _compare(
    problem: Problem, kind: str, ours: list[np.ndarray], theirs: list[np.ndarray], allowed: list[np.ndarray] | None
) -> Row:
    """A row on every leaf at once; exact where nothing is allowed."""
    for name, a, b, room in zip(problem.names, ours, theirs, allowed or [np.zeros(())] * len(ours), strict=True):
        if a.shape != b.shape:
            return Row(problem.place, kind, name, WRONG, f"shape {a.shape} for {b.shape}")
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        off = np.where(same, 0, excess(np.where(same, 0, a - b), np.broadcast_to(room, a.shape)))
        if off.size and off.max() > 1:
            worst = tuple(map(int, np.unravel_index(int(np.argmax(off)), off.shape)))
            expected = {"linear in δ": "backward(2δ − 3δ′) is not 2 backward(δ) − 3 backward(δ′)"}
            why = expected.get(kind, f"{kind}: the rule gives another result")
            why = f"{why}: {a[worst]:.10g} for {b[worst]:.10g}"
            return Row(problem.place, kind, name, WRONG, why, element=worst)
    return Row(problem.place, kind, "", RIGHT)


# ---------------------------------------------------------------- second order


def _second_order(case: _Case, flat: _Flat, *, custom: bool) -> list[Row]:
    """∂/∂x ⟨Jᵀδ, v⟩ of the rule against that of the gradient, reverse over reverse."""
    problem = flat.problem
    word = "reverse over reverse; jax.custom_vjp forbids forward mode" if custom else ""
    rng = np.random.default_rng(case.seed)
    directions = [jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) for leaf in problem.leaves]

    def inner(pulled: list[Any], v: list[Any]) -> list[Any]:
        return [sum((jnp.sum(g * d) for g, d in zip(pulled, v, strict=True)), jnp.zeros((), pulled[0].dtype))]

    def value(leaves: list[Any], fixed: Any) -> list[Any]:
        fixed, v, deltas = fixed
        pulled = jax.vjp(lambda leaves: problem.value(leaves, fixed), leaves)[1](deltas)[0]
        return inner(pulled, v)

    def rule(leaves: list[Any], fixed: Any, deltas: list[Any]) -> list[Any]:
        fixed, v, inner_deltas = fixed
        return list(jax.vjp(lambda leaves: inner(problem.rule(leaves, fixed, inner_deltas), v), leaves)[1](deltas)[0])

    second = problem._replace(
        kind="second order",
        value=value,
        rule=rule,
        fixed=(problem.fixed, directions, flat.deltas[0]),
        deltas=[jnp.ones((), problem.leaves[0].dtype)],
    )
    try:
        bench = prepare([second])
    except Exception as error:
        message = f"the rule cannot be differentiated again: {type(error).__name__}: {str(error).splitlines()[0]}"
        return [Row(problem.place, "second order", "every leaf", CANNOT_TELL, f"{message} {word}".strip())]
    (measured,) = measure(bench, [second.arguments], case.seed)
    rows = verdicts(second, bench.programs[0], measured)
    return [row._replace(why=word) if row.verdict == RIGHT else row for row in rows]
