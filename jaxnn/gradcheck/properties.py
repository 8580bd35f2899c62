"""Properties of a correct rule: deterministic, linear in δ, the same under jit and vmap, right at second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import Array
from jaxnn.gradcheck.arrays import as_float64, finite, rms
from jaxnn.gradcheck.checking import verdicts
from jaxnn.gradcheck.flat import Case, Flat, cotangents
from jaxnn.gradcheck.judge import REPLAYED, judge
from jaxnn.gradcheck.measuring import Measured, excess, measure, prepare
from jaxnn.gradcheck.nonsmooth import first_of
from jaxnn.gradcheck.programs import Problem, Programs, compiled
from jaxnn.gradcheck.replay import calls_back, coarsest, obstacles, replay, said, widen, x64_is_on
from jaxnn.gradcheck.report import CANNOT_TELL, RIGHT, WRONG, Row

BESIDE = 0.875  # times x: the second point under vmap
COMBINED = (2.0, -3.0)  # of two cotangents, for linearity


# ---------------------------------------------------------------- values


def value_rows(case: Case, flat: Flat) -> list[Row]:
    """The values of f and the reference, or of forward and f, compared as gradients are."""
    problem, again = flat.problem, flat.again
    if again is None:
        return []
    values = problem._replace(
        kind="value" if case.forward is None else "value of forward",
        names=flat.outputs,
        rule=lambda leaves, fixed, _: again(leaves, fixed),
        auto=lambda leaves, fixed, _: problem.value(leaves, fixed),
    )
    (rows,) = verdicts([values], case.settings.seed)
    return rows


def not_finite_value(case: Case, flat: Flat) -> Row | None:
    """A row on the first output of f that is NaN or infinite at the point."""
    values = flat.values(flat.problem.leaves, flat.problem.fixed)
    for name, value in zip(flat.outputs, values, strict=True):
        bad = ~np.isfinite(as_float64(value))
        if bad.any():
            element = first_of(bad)
            shown = float(np.asarray(value)[element])
            why = f"the function is {shown} at {int(bad.sum())} of {bad.size} elements here: its gradient is undefined"
            return Row(case.place, "value", name, CANNOT_TELL, why, element=element, hand=shown)
    return None


# ---------------------------------------------------------------- properties of the rule


def properties(case: Case, flat: Flat, programs: Programs, measured: list[Measured]) -> list[Row]:
    """Deterministic, linear in δ, and the same under jit and vmap; in float64 where the rule runs there."""
    problem, stopped = flat.problem, bool(programs.stopped or obstacles(programs.hand64))
    exact = allowed = [m.rounding for m in measured]
    if stopped:  # the rule runs as it is, with the rounding of its own precision
        u = coarsest(programs.hand)  # under jit XLA may leave out a cast and the cast back
        allowed = [REPLAYED * (m.noise + np.abs(m.hand - m.replayed) + _rounding(m, u)) + a
                   for m, a in zip(measured, exact, strict=True)]  # fmt: skip
    with jax.enable_x64(x64_is_on() or not stopped):
        leaves, fixed, deltas = problem.arguments if stopped else widen(problem.arguments)
        other = cotangents(
            [jax.ShapeDtypeStruct(d.shape, d.dtype) for d in deltas], case.settings.seed + 99, plain=False
        )

        def run(leaves: list[Array], deltas: list[Array]) -> list[Array]:
            return problem.rule(leaves, fixed, deltas)

        jitted = compiled(run)
        once = _wide(run(leaves, deltas))
        rows = [_compare(measured, "deterministic", once, _wide(run(leaves, deltas)), None)]
        rows += [_compare(measured, "under jit", _wide(jitted(leaves, deltas)), once, allowed)]
        if stopped and not calls_back(programs.hand):
            rows += [_linear_without_rounding(problem, programs, other, measured, exact)]
        else:
            rows += [_linear(lambda d: jitted(leaves, d), deltas, other, measured, allowed, once)]
        moved = [BESIDE * leaf for leaf in leaves]
        points, stack = ([jnp.stack(pair) for pair in zip(a, b, strict=True)]
                         for a, b in ((leaves, moved), (deltas, other)))  # fmt: skip
        try:
            together = _wide(compiled(jax.vmap(run))(points, stack))
        except Exception as error:  # whatever a user's rule raises there
            message = f"vmap of the rule raises {said(error)}"
            return [*rows, Row(problem.place, "under vmap", "every leaf", CANNOT_TELL, message)]
        loop = [np.stack(pair) for pair in zip(once, _wide(run(moved, other)), strict=True)]
        room = [np.stack([a, np.full(a.shape, 4 * a.max(initial=0))]) for a in allowed]
        return [*rows, _compare(measured, "under vmap", together, loop, room)]


def _rounding(m: Measured, u: float) -> np.ndarray:
    """The effect of a cast inside the rule to a lower precision than the arguments'."""
    return np.asarray(u * (np.abs(finite(m.auto64)) + rms(m.auto64)) if u > m.u else np.zeros(m.auto64.shape))


def _linear(
    rule: Callable[[list[Array]], list[Array]],
    deltas: list[Array],
    other: list[Array],
    measured: list[Measured],
    allowed: list[np.ndarray],
    once: list[np.ndarray],
) -> Row:
    mixed = [COMBINED[0] * a + COMBINED[1] * b for a, b in zip(deltas, other, strict=True)]
    combined = [COMBINED[0] * a + COMBINED[1] * b for a, b in zip(once, _wide(rule(other)), strict=True)]
    wider = [sum(map(abs, COMBINED)) * a for a in allowed]
    return _compare(measured, "linear in δ", _wide(rule(mixed)), combined, wider)


def _linear_without_rounding(
    problem: Problem, programs: Programs, other: list[Array], measured: list[Measured], allowed: list[np.ndarray]
) -> Row:
    """The low-precision program in float64 arithmetic: its rounding was not measured for other δs."""
    with jax.enable_x64(True):
        leaves, fixed, deltas = widen(problem.arguments)
        run = compiled(replay(programs.hand))

        def rule(deltas: list[Array]) -> list[Array]:
            return list(run(*jax.tree.leaves((leaves, fixed, deltas))))

        return _linear(rule, deltas, widen(other), measured, allowed, _wide(rule(deltas)))


def _wide(leaves: list[Array]) -> list[np.ndarray]:
    return list(map(as_float64, leaves))


def _compare(
    measured: list[Measured],
    kind: str,
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    allowed: list[np.ndarray] | None,
) -> Row:
    """One row for all leaves; without `allowed` they must be equal. Sums that cancel may differ by their rounding."""
    place = measured[0].problem.place
    for i, m in enumerate(measured):
        a, b, room = ours[i], theirs[i], np.zeros(()) if allowed is None else allowed[i]
        if a.shape != b.shape:
            return Row(place, kind, m.name, WRONG, f"shape {a.shape} for {b.shape}")
        found = _off(a, b, room)
        if found.size and found.max() > 1 and allowed is not None:
            found = _off(a, b, room + sum(map(abs, COMBINED)) * m.evidence.rounding())
        if found.size and found.max() > 1:
            worst = first_of(found)
            expected = {"linear in δ": "backward(2δ − 3δ′) is not 2 backward(δ) − 3 backward(δ′)"}
            why = expected.get(kind, f"{kind}: the rule gives another result")
            why = f"{why}: {a[worst]:.10g} for {b[worst]:.10g}"
            return Row(place, kind, m.name, WRONG, why, element=worst)
    return Row(place, kind, "", RIGHT)


def _off(a: np.ndarray, b: np.ndarray, room: np.ndarray) -> np.ndarray:
    """|a − b| as a multiple of what is allowed; 0 where both are equal or NaN."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(np.where(same, 0, excess(np.where(same, 0, a - b), np.broadcast_to(room, a.shape))))


def second_order(case: Case, flat: Flat) -> list[Row]:
    """∂/∂x ⟨Jᵀδ, v⟩ of the rule against that of the gradient, reverse over reverse."""
    problem = flat.problem
    word = "reverse over reverse; jax.custom_vjp forbids forward mode" if case.custom else ""
    rng = np.random.default_rng(case.settings.seed)
    directions = [jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) for leaf in problem.leaves]

    def inner(pulled: list[Array], v: list[Array]) -> list[Array]:
        return [sum((jnp.sum(g * d) for g, d in zip(pulled, v, strict=True)), jnp.zeros((), pulled[0].dtype))]

    def value(leaves: list[Array], fixed: Any) -> list[Array]:
        fixed, v, deltas = fixed
        pulled = jax.vjp(lambda leaves: problem.value(leaves, fixed), leaves)[1](deltas)[0]
        return inner(pulled, v)

    def rule(leaves: list[Array], fixed: Any, deltas: list[Array]) -> list[Array]:
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
        run = prepare([second])
    except Exception as error:
        message = f"the rule cannot be differentiated again: {said(error)}"
        return [Row(problem.place, "second order", "every leaf", CANNOT_TELL, f"{message} {word}".strip())]
    rows = map(judge, measure(run, [second], case.settings.seed)[0])
    return [row._replace(why=word) if row.verdict == RIGHT else row for row in rows]
