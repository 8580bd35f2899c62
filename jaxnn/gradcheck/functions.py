"""`function` and `custom_vjp`: a user's rule for the gradient of a function, compared with jax.grad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import DType, Key, Tree
from jaxnn.checks import number, whole_number, yes_or_no
from jaxnn.gradcheck.fitting import cast, fits
from jaxnn.gradcheck.flat import Case, Settings, flatten
from jaxnn.gradcheck.judge import judge
from jaxnn.gradcheck.measuring import measure, prepare
from jaxnn.gradcheck.properties import not_finite_value, properties, second_order, value_rows
from jaxnn.gradcheck.replay import x64_is_on
from jaxnn.gradcheck.report import CANNOT_TELL, SEVERITY, WRONG, Report, Row
from jaxnn.jaxprs import name_of
from jaxnn.keys import seed_of


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
    key: Key | int = 0,
) -> Report:
    """Checks a hand-derived gradient, and finds the leaf and the element that is wrong.

    `backward(args, delta)` returns Jᵀδ, J = ∂f/∂args: a tuple with one gradient, a pytree like the argument, for each
    argument. It is compared with `jax.vjp` of f in float64, with the effect of rounding as the only tolerance. It must
    also be linear in δ, deterministic, and the same under jit and vmap. Gradients and δs of complex arguments and
    outputs follow JAX's convention, ∂C/∂Re z − i ∂C/∂Im z.

    Args:
        f: a pure function of pytrees, `f(*args)`; its outputs are pytrees with floats among them.
        args: a tuple of arguments, the point at which to check. Integers, keys and None are passed on unchanged.
        backward: the rule. None in place of a gradient leaves that argument out.
        forward: `forward(*args) -> (output, residuals)`, as for `jax.custom_vjp`; backward is then given the
            residuals in place of args, and output is compared with f's.
        grid: more points, of other shapes.
        dtypes: precisions to cast every float to, "float32", "bfloat16"; by default those of args.
        cotangents: the number of δs, drawn from key; if the output is a single number, the first δ is 1.
        order: 2 to compare the derivative of the rule with that of the gradient too.
        forward_error: the relative error of f as an approximation of the intended function, if it is a fixed point
            found to a tolerance, a truncated series or a table: the gradient may be off by 16 times as much, and the
            error of differences includes it. The report says so.
        surrogate: True for a rule that is not meant to be f's derivative (straight-through estimators, gradient
            reversal): the reference is then `jax.vjp` of f, with its stop_gradients and custom rules, without finite
            differences.
        key: a PRNG key or an integer seed, for δs and jitter.

    Raises:
        TypeError: if args is not a tuple of arrays, or f returns no floats.
        ValueError: if f is not deterministic; if backward's result is not like args or forward's output not like f's,
            with every mismatch and its path; or if f has a while_loop, which has no reverse mode.

    Source: see `jaxnn.gradcheck.judge` for the criterion; Griewank & Walther (2008), ch. 3, for the adjoint.

    >>> import jax.numpy as jnp
    >>> report = function(lambda x: jnp.sin(x) ** 2, (jnp.ones(3),), lambda args, d: (jnp.cos(args[0]) * d,))
    >>> report.verdict, report.rows[0].leaf
    ('wrong', 'x')
    """
    name = name_of(f)
    settings = Settings(dtypes, cotangents, order, forward_error, surrogate, seed_of(key))
    return _report(Case(name, f, f, backward, forward, args, settings, custom=False), grid, name)


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
    key: Key | int = 0,
) -> Report:
    """Checks the rule of a function with `jax.custom_vjp`: its gradient against autodiff of a plain reference.

    Args:
        f: the function with the custom rule.
        reference: the same function in plain JAX.
        args: as for `function`.
        grid: as for `function`.
        dtypes: as for `function`.
        cotangents: as for `function`.
        order: as for `function`.
        forward_error: as for `function`, of the reference.
        surrogate: as for `function`; the reference then has `jax.lax.stop_gradient`s.
        key: as for `function`.

    Returns:
        A Report on the values of f and reference, the gradients, and the properties of the rule. For order 2 it uses
        reverse over reverse mode, since `jax.custom_vjp` forbids forward mode, and says so.

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

    settings = Settings(dtypes, cotangents, order, forward_error, surrogate, seed_of(key))
    case = Case(name, f, reference, backward, None, args, settings, custom=True)
    return _report(case, grid, f"{name} against {name_of(reference)}")


def _report(case: Case, grid: Sequence[Sequence[Any]], title: str) -> Report:
    """The report on a case at its arguments and at all points of the grid, in every precision."""
    settings = case.settings
    whole_number("gradcheck: cotangents", settings.cotangents, least=1)
    if settings.order not in (1, 2):
        raise ValueError(f"gradcheck: order must be 1 or 2, got {settings.order!r}")
    number("gradcheck: forward_error", settings.forward_error, least=0.0, below=1.0)
    yes_or_no("gradcheck: surrogate", settings.surrogate)
    precisions = _precisions(settings.dtypes)
    if case.custom:
        fits(case.f, case.args)
    points, rows = [case.args, *grid], list[Row]()
    for i, point in enumerate(points):
        for dtype in precisions:
            words = [f"point {i}"] * (len(points) > 1) + [str(jnp.dtype(dtype))] * (dtype is not None)
            rows += _rows_at(case._replace(place=" ".join(words) or case.place), point, dtype, bool(words))
    wrong = dict.fromkeys(row.leaf for row in rows if row.verdict == WRONG)
    return Report(f"gradcheck of {title}{settings.said}", tuple(rows), tuple(wrong))


def _rows_at(case: Case, point: Sequence[Any], dtype: DType | None, several: bool) -> list[Row]:
    """The rows of a case at one point in one precision; where there are several, an error says at which."""
    wide = dtype is not None and jnp.dtype(dtype) == np.float64
    with jax.enable_x64(wide or x64_is_on()):
        case = case._replace(args=cast(case.f, point, dtype))
        try:
            return _rows(case)
        except Exception as error:
            if several:
                error.add_note(f"gradcheck: at {case.place}")
            if NO_REVERSE in str(error):
                raise ValueError(LOOP.format(name=name_of(case.reference))) from error
            raise


NO_REVERSE = "Reverse-mode differentiation does not work for lax.while_loop"
LOOP = (
    "gradcheck: {name} has a while_loop, which jax.grad cannot differentiate. Give a reference in its place with a "
    "fixed number of steps, a lax.scan or a fori_loop with Python numbers, so large that more steps change nothing: "
    "gradcheck.function(reference, args, backward=…), or gradcheck.custom_vjp(f, reference, args). If the loop ends at "
    "a tolerance, give the relative error of its result as forward_error=."
)


def _precisions(dtypes: Sequence[DType] | None) -> Sequence[DType | None]:
    """The precisions to which every float is cast in turn; None for its own."""
    if dtypes is None:
        return [None]
    if isinstance(dtypes, str) or not isinstance(dtypes, Sequence):
        raise TypeError(f'gradcheck: dtypes must be a sequence, as in ("float32", "bfloat16"), got {dtypes!r}')
    bad = [dtype for dtype in dtypes if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating)]
    if bad or not dtypes:
        raise ValueError(f"gradcheck: dtypes must be one or more floating-point dtypes, got {list(dtypes)!r}")
    return dtypes


def _rows(case: Case) -> list[Row]:
    flat = flatten(case)
    rows = value_rows(case, flat)
    broken = not_finite_value(case, flat)
    if broken is not None:
        rows.append(broken)
    run = prepare([flat.problem])
    found: list[list[Row]] = []
    for i, deltas in enumerate(flat.deltas):
        problem = flat.problem._replace(deltas=deltas, always_differences=i == 0)
        (measured,) = measure(run, [problem], case.settings.seed + i)
        if i == 0:
            first = measured
        found.append(list(map(judge, measured)))
    rows += [max(same, key=lambda row: SEVERITY.index(row.verdict)) for same in zip(*found, strict=True)]
    if any(row.verdict == CANNOT_TELL and row.element is None for row in rows):
        return rows
    rows += properties(case, flat, run.programs[0], first)
    return rows + (second_order(case, flat) if case.settings.order == 2 else [])
