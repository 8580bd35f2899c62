"""What a rule must be besides right: deterministic, linear in δ, the same under jit and vmap, right at second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.arrays import as_float64, finite, rms
from jaxnn.gradcheck.evidence import Evidence
from jaxnn.gradcheck.flat import Case, Flat, cotangents
from jaxnn.gradcheck.judge import REPLAYED, verdicts
from jaxnn.gradcheck.measuring import Measured, excess, measure, noise, prepare, threshold
from jaxnn.gradcheck.programs import Problem, Programs, compiled
from jaxnn.gradcheck.replay import calls_back, coarsest, obstacles, replay, said, widen, x64_is_on
from jaxnn.gradcheck.report import CANNOT_TELL, RIGHT, WRONG, Row

NEARBY = 0.875  # times x: the second point under vmap
COMBINED = (2.0, -3.0)  # of two cotangents, for linearity


# ---------------------------------------------------------------- values


def value_rows(case: Case, flat: Flat) -> list[Row]:
    """The values of f and reference, or of forward and f, judged as gradients are."""
    problem, again = flat.problem, flat.again
    if again is None:
        return []
    values = problem._replace(
        kind="value" if case.forward is None else "value of forward",
        names=flat.outputs,
        rule=lambda leaves, fixed, _: again(leaves, fixed),
        auto=lambda leaves, fixed, _: problem.value(leaves, fixed),
    )
    run = prepare([values])
    (measured,) = measure(run, [values.arguments], case.seed)
    return verdicts(values, run.programs[0], measured)


def not_finite_value(case: Case, flat: Flat) -> Row | None:
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


def properties(case: Case, flat: Flat, programs: Programs, measured: list[Measured], evidence: Evidence) -> list[Row]:
    """Deterministic, linear in δ, and the same under jit and vmap; in float64 where the rule runs there."""
    problem, stopped = flat.problem, bool(programs.stopped or obstacles(programs.hand64))
    exact = [threshold(m._replace(forward=0.0)) for m in measured]
    allowed = exact
    if stopped:  # the rule runs as it is, with the rounding of its own precision
        u = coarsest(programs.hand)  # under jit XLA may leave out a cast and the cast back
        allowed = [REPLAYED * (noise(m) + np.abs(m.hand - m.replayed) + _rounding(m, u)) + a
                   for m, a in zip(measured, exact, strict=True)]  # fmt: skip
    native = x64_is_on()
    with jax.enable_x64(native or not stopped):
        leaves, fixed, deltas = problem.arguments if stopped else widen(problem.arguments)
        other = cotangents([jax.ShapeDtypeStruct(d.shape, d.dtype) for d in deltas], case.seed + 99, plain=False)

        def run(leaves: list[Any], deltas: list[Any]) -> list[Any]:
            return problem.rule(leaves, fixed, deltas)

        jitted = compiled(run)
        once = _wide(run(leaves, deltas))
        rows = [_compare(problem, "deterministic", once, _wide(run(leaves, deltas)), None)]
        rows += [_compare(problem, "under jit", _wide(jitted(leaves, deltas)), once, allowed, evidence)]
        if stopped and not calls_back(programs.hand):
            rows += [_linear_without_rounding(problem, programs, other, exact, evidence)]
        else:
            rows += [_linear(problem, lambda d: jitted(leaves, d), once, deltas, other, allowed, evidence)]
        moved = [NEARBY * leaf for leaf in leaves]
        points, stack = ([jnp.stack(pair) for pair in zip(a, b, strict=True)]
                         for a, b in ((leaves, moved), (deltas, other)))  # fmt: skip
        try:
            together = _wide(compiled(jax.vmap(run))(points, stack))
        except Exception as error:  # whatever a user's rule raises there
            message = f"vmap of the rule raises {said(error)}"
            return [*rows, Row(problem.place, "under vmap", "every leaf", CANNOT_TELL, message)]
        loop = [np.stack(pair) for pair in zip(once, _wide(run(moved, other)), strict=True)]
        room = [np.stack([a, np.full(a.shape, 4 * a.max(initial=0))]) for a in allowed]
        return [*rows, _compare(problem, "under vmap", together, loop, room, evidence)]


def _rounding(m: Measured, u: float) -> np.ndarray:
    """What a cast inside explains, where it is to a lower precision than the arguments'."""
    return np.asarray(u * (np.abs(finite(m.auto64)) + rms(m.auto64)) if u > m.u else np.zeros(m.auto64.shape))


def _linear(
    problem: Problem,
    rule: Callable[[list[Any]], list[Any]],
    once: list[np.ndarray],
    deltas: list[Any],
    other: list[Any],
    allowed: list[np.ndarray],
    evidence: Evidence,
) -> Row:
    mixed = [COMBINED[0] * a + COMBINED[1] * b for a, b in zip(deltas, other, strict=True)]
    combined = [COMBINED[0] * a + COMBINED[1] * b for a, b in zip(once, _wide(rule(other)), strict=True)]
    wider = [sum(map(abs, COMBINED)) * a for a in allowed]
    return _compare(problem, "linear in δ", _wide(rule(mixed)), combined, wider, evidence)


def _linear_without_rounding(
    problem: Problem, programs: Programs, other: list[Any], allowed: list[np.ndarray], evidence: Evidence
) -> Row:
    """The low-precision program, replayed: the rounding of other δs than those measured is unknown."""
    with jax.enable_x64(True):
        leaves, fixed, deltas = widen(problem.arguments)
        run = compiled(replay(programs.hand))

        def rule(deltas: list[Any]) -> list[Any]:
            return list(run(*jax.tree.leaves((leaves, fixed, deltas))))

        return _linear(problem, rule, _wide(rule(deltas)), deltas, widen(other), allowed, evidence)


def _wide(leaves: list[Any]) -> list[np.ndarray]:
    return list(map(as_float64, leaves))


def _compare(
    problem: Problem,
    kind: str,
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    allowed: list[np.ndarray] | None,
    evidence: Evidence | None = None,
) -> Row:
    """A row on every leaf at once; exact where nothing is allowed. Sums that cancel differ by what they round."""
    for i, name in enumerate(problem.names):
        a, b, room = ours[i], theirs[i], np.zeros(()) if allowed is None else allowed[i]
        if a.shape != b.shape:
            return Row(problem.place, kind, name, WRONG, f"shape {a.shape} for {b.shape}")
        found = _off(a, b, room)
        if found.size and found.max() > 1 and evidence is not None:
            found = _off(a, b, room + sum(map(abs, COMBINED)) * evidence.rounding(i))
        if found.size and found.max() > 1:
            worst = tuple(map(int, np.unravel_index(int(np.argmax(found)), found.shape)))
            expected = {"linear in δ": "backward(2δ − 3δ′) is not 2 backward(δ) − 3 backward(δ′)"}
            why = expected.get(kind, f"{kind}: the rule gives another result")
            why = f"{why}: {a[worst]:.10g} for {b[worst]:.10g}"
            return Row(problem.place, kind, name, WRONG, why, element=worst)
    return Row(problem.place, kind, "", RIGHT)


def _off(a: np.ndarray, b: np.ndarray, room: np.ndarray) -> np.ndarray:
    """|a − b| as a multiple of what is allowed; 0 where both are equal or NaN."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(np.where(same, 0, excess(np.where(same, 0, a - b), np.broadcast_to(room, a.shape))))


# ---------------------------------------------------------------- second order


def second_order(case: Case, flat: Flat, *, custom: bool) -> list[Row]:
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
        run = prepare([second])
    except Exception as error:
        message = f"the rule cannot be differentiated again: {said(error)}"
        return [Row(problem.place, "second order", "every leaf", CANNOT_TELL, f"{message} {word}".strip())]
    (measured,) = measure(run, [second.arguments], case.seed)
    rows = verdicts(second, run.programs[0], measured)
    return [row._replace(why=word) if row.verdict == RIGHT else row for row in rows]
