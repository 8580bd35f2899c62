"""`function` and `custom_vjp`: a user's own rule for the gradient of a function, held against jax.grad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import whole_number
from jaxnn.gradcheck.flat import Backward, Case, cast, fits, flatten
from jaxnn.gradcheck.judge import measure, prepare, verdicts
from jaxnn.gradcheck.properties import not_finite_value, properties, second_order, value_rows
from jaxnn.gradcheck.replay import x64_is_on
from jaxnn.gradcheck.report import CANNOT_TELL, SEVERITY, WRONG, Report, Row
from jaxnn.jaxprs import name_of
from jaxnn.types import DType, Tree


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
            residuals in the place of args, and output is held against f's.
        grid: more points, of other shapes.
        dtypes: precisions to cast every float to, "float32", "bfloat16"; by default those of args.
        cotangents: how many δs, drawn from seed; a single number's first δ is 1.
        order: 2 to hold the derivative of the rule against that of the gradient too.
        seed: of δs and jitter.

    Raises:
        TypeError: if args is no tuple, holds what is no array, or f gives no floats.
        ValueError: if f is not deterministic, backward's result is not like args or forward's output not like f's:
            every mismatch, with its path.

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
    precisions = _precisions(dtypes)
    if custom:
        fits(f, args)
    rows: list[Row] = []
    points = [args, *grid]
    for i, point in enumerate(points):
        for dtype in precisions:
            words = [f"point {i}"] * (len(points) > 1) + [str(jnp.dtype(dtype))] * (dtype is not None)
            place = " ".join(words) or name
            wide = dtype is not None and jnp.dtype(dtype) == np.float64
            with jax.enable_x64(wide or x64_is_on()):
                case = Case(place, f, reference, backward, forward, cast(f, point, dtype), seed, cotangents)
                try:
                    rows += _rows(case, order, custom=custom)
                except Exception as error:
                    if words:
                        error.add_note(f"gradcheck: at {place}")
                    raise
    return rows


def _precisions(dtypes: Sequence[DType] | None) -> Sequence[DType | None]:
    """What every float is cast to, in turn; None to leave them as they are."""
    if dtypes is None:
        return [None]
    if isinstance(dtypes, str) or not isinstance(dtypes, Sequence):
        raise TypeError(f'gradcheck: dtypes must be several, as in ("float32", "bfloat16"), got {dtypes!r}')
    bad = [dtype for dtype in dtypes if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating)]
    if bad or not dtypes:
        raise ValueError(f"gradcheck: dtypes must be one or more precisions of floats, got {list(dtypes)!r}")
    return dtypes


def _rows(case: Case, order: int, *, custom: bool) -> list[Row]:
    flat = flatten(case)
    rows = value_rows(case, flat)
    broken = not_finite_value(case, flat)
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
    rows += properties(case, flat, programs, first)
    if order == 2:
        rows += second_order(case, flat, custom=custom)
    return rows
