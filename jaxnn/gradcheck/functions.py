"""`function` and `custom_vjp`: a user's own rule for the gradient of a function, held against jax.grad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import number, whole_number, yes_or_no
from jaxnn.gradcheck.evidence import Evidence
from jaxnn.gradcheck.flat import Backward, Case, cast, fits, flatten
from jaxnn.gradcheck.judge import verdicts
from jaxnn.gradcheck.measuring import measure, prepare
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
    forward_error: float = 0.0,
    surrogate: bool = False,
    seed: int = 0,
) -> Report:
    """Is this hand-derived gradient right, and if not, at which leaf and element?

    `backward(args, delta)` answers δ ↦ Jᵀδ, J = ∂f/∂args: a tuple with one gradient, a pytree like the argument, for
    each argument. It is compared with `jax.vjp` of f in float64, with what rounding explains as the only tolerance, and
    must besides be linear in δ, deterministic, and the same under jit and vmap. Gradients and δs of complex arguments
    and outputs are in JAX's convention, ∂C/∂Re z − i ∂C/∂Im z.

    Args:
        f: a pure function of pytrees, `f(*args)`; its outputs are pytrees with floats among them.
        args: a tuple of arguments: the point. Integers, keys and None are handed on and left alone.
        backward: the rule. None in the place of a gradient leaves that argument alone.
        forward: `forward(*args) -> (output, residuals)`, as for `jax.custom_vjp`; backward is then given the
            residuals in the place of args, and output is held against f's.
        grid: more points, of other shapes.
        dtypes: precisions to cast every float to, "float32", "bfloat16"; by default those of args.
        cotangents: how many δs, drawn from seed; a single number's first δ is 1.
        order: 2 to compare the derivative of the rule with that of the gradient too.
        forward_error: how far f is from the function that is meant, relative, where it is a fixed point found to a
            tolerance, a truncated series or a table: the gradient may be off by 16 times as much, and differences
            count for no more than such values allow. The report says so.
        surrogate: True for a rule that is not meant to be f's derivative (straight-through estimators, gradient
            reversal): `jax.vjp` of f, with its stop_gradients and custom rules, is what is meant, and finite
            differences are left out.
        seed: of δs and jitter.

    Raises:
        TypeError: if args is no tuple, holds what is no array, or f gives no floats.
        ValueError: if f is not deterministic, backward's result is not like args or forward's output not like f's:
            every mismatch, with its path; or if f has a while_loop, which has no reverse mode.

    Source: see `jaxnn.gradcheck.judge` for the criterion; Griewank & Walther (2008), ch. 3, for the adjoint.

    >>> import jax.numpy as jnp
    >>> report = function(lambda x: jnp.sin(x) ** 2, (jnp.ones(3),), lambda args, d: (jnp.cos(args[0]) * d,))
    >>> report.verdict, report.rows[0].leaf
    ('wrong', 'x')
    """
    name = name_of(f)
    settings = _Settings(dtypes, cotangents, order, forward_error, surrogate, seed)
    checked = _check(name, f, f, backward, forward, args, grid, settings, custom=False)
    return Report(f"gradcheck of {name}{settings.said}", tuple(checked), _wrong(checked))


def custom_vjp(
    f: Callable[..., Tree],
    reference: Callable[..., Tree],
    args: Sequence[Any],
    *,
    grid: Sequence[Sequence[Any]] = (),
    dtypes: Sequence[DType] | None = None,
    cotangents: int = 2,
    order: int = 1,
    forward_error: float = 0.0,
    surrogate: bool = False,
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
        forward_error: as for `function`, of the reference.
        surrogate: as for `function`; the reference says what is meant, with `jax.lax.stop_gradient`.
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

    settings = _Settings(dtypes, cotangents, order, forward_error, surrogate, seed)
    checked = _check(name, f, reference, backward, None, args, grid, settings, custom=True)
    return Report(f"gradcheck of {name} against {name_of(reference)}{settings.said}", tuple(checked), _wrong(checked))


def _wrong(rows: list[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.leaf for row in rows if row.verdict == WRONG))


# ---------------------------------------------------------------- one point after another


class _Settings(NamedTuple):
    """How to check, whatever the function: the arguments of those names."""

    dtypes: Sequence[DType] | None
    cotangents: int
    order: int
    forward_error: float
    surrogate: bool
    seed: int

    @property
    def said(self) -> str:
        """What the title of a report says of them."""
        said = f", forward_error={self.forward_error:g}" if self.forward_error else ""
        return f"{said}, as a surrogate: without differences" if self.surrogate else said


def _check(
    name: str,
    f: Callable[..., Tree],
    reference: Callable[..., Tree],
    backward: Backward,
    forward: Callable[..., tuple[Tree, Tree]] | None,
    args: Sequence[Any],
    grid: Sequence[Sequence[Any]],
    settings: _Settings,
    *,
    custom: bool,
) -> list[Row]:
    whole_number("gradcheck: cotangents", settings.cotangents, least=1)
    if settings.order not in (1, 2):
        raise ValueError(f"gradcheck: order must be 1 or 2, got {settings.order!r}")
    number("gradcheck: forward_error", settings.forward_error, least=0.0, below=1.0)
    yes_or_no("gradcheck: surrogate", settings.surrogate)
    precisions = _precisions(settings.dtypes)
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
                case = Case(
                    place,
                    f,
                    reference,
                    backward,
                    forward,
                    cast(f, point, dtype),
                    settings.seed,
                    settings.cotangents,
                    settings.forward_error,
                    settings.surrogate,
                )
                try:
                    rows += _rows(case, settings.order, custom=custom)
                except Exception as error:
                    if words:
                        error.add_note(f"gradcheck: at {place}")
                    if NO_REVERSE in str(error):
                        raise ValueError(LOOP.format(name=name_of(reference))) from error
                    raise
    return rows


NO_REVERSE = "Reverse-mode differentiation does not work for lax.while_loop"
LOOP = (
    "gradcheck: {name} has a while_loop, and jax.grad cannot run one backward. Give a reference in its place whose "
    "number of steps is fixed, a lax.scan or a fori_loop with Python numbers, with so many steps that more change "
    "nothing: gradcheck.function(reference, args, backward=…), or gradcheck.custom_vjp(f, reference, args). Where the "
    "loop ends at a tolerance, forward_error= says how far that leaves its result off, relative."
)


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
    run = prepare([flat.problem])
    found: list[list[Row]] = []
    for i, deltas in enumerate(flat.deltas):
        problem = flat.problem._replace(deltas=deltas, witness=i == 0)
        (measured,) = measure(run, [problem.arguments], case.seed + i)
        evidence = Evidence(problem, run.programs[0])
        if i == 0:
            first, kept = measured, evidence
        found.append(verdicts(problem, run.programs[0], measured, evidence))
    rows += [max(same, key=lambda row: SEVERITY.index(row.verdict)) for same in zip(*found, strict=True)]
    if any(row.verdict == CANNOT_TELL and row.element is None for row in rows):
        return rows
    (programs,) = run.programs
    rows += properties(case, flat, programs, first, kept)
    if order == 2:
        rows += second_order(case, flat, custom=custom)
    return rows
