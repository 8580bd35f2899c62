"""Checks a function with a derivative rule at the values that reached it, against autodiff of its plain function.

The plain function may call further functions with rules. If the rule is not the derivative of the function as it is, it
is compared again with those replaced by their plain functions, so that an error of theirs is not taken for its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import Array
from jaxnn.gradcheck.checking import verdicts
from jaxnn.gradcheck.collecting import Call, Collector
from jaxnn.gradcheck.flat import cotangents
from jaxnn.gradcheck.marks import ORIGINAL, calls_are, class_of, collected, functions_of, undisturbed
from jaxnn.gradcheck.nonsmooth import PARTLY
from jaxnn.gradcheck.programs import Problem
from jaxnn.gradcheck.replay import replay, said, widen
from jaxnn.gradcheck.report import CANNOT_TELL, KINK, RIGHT, SEVERITY, WRONG, Row
from jaxnn.gradcheck.rule_slopes import (
    Rule,
    autodiff_of,
    by_differences,
    by_forward_mode,
    error_of,
    has_own_transpose,
    row_on,
    without_reverse,
)
from jaxnn.gradcheck.sites import Site, floats
from jaxnn.jaxprs import argument_names, function_of, is_float

NEARER = 3  # times: differences that much nearer to the rule than to autodiff count against autodiff
LARGER = 16  # times the size of the first cotangent, that of the second: a rule that clips it is not linear


# ---------------------------------------------------------------- one call


def check(call: Call) -> list[Row]:
    """The rows of a call: one for each leaf that is not right, or one for all."""
    rows: list[Row] = []
    if not call.values:
        why = "it closes over values of a trace that has ended, and cannot be run again"
        return _gathered(call, [row_on(call.site, "rule", "", CANNOT_TELL, why)])
    with undisturbed():
        for values in call.values:
            try:
                found = _check_at(call.site, values)
            except Exception as error:  # whatever a user's function or rule raises
                found = [row_on(call.site, "rule", "", CANNOT_TELL, said(error))]
            rows += found
            if any(row.verdict == WRONG for row in found):
                break
    return _gathered(call, rows)


def _gathered(call: Call, rows: list[Row]) -> list[Row]:
    worst: dict[tuple[str, str], Row] = {}
    for row in rows:
        known = worst.get((row.kind, row.leaf))
        if known is None or SEVERITY.index(row.verdict) > SEVERITY.index(known.verdict):
            worst[row.kind, row.leaf] = row
    kept = [row for row in worst.values() if row.verdict != RIGHT]
    if not kept:
        explained = [row for row in worst.values() if row.why] or list(worst.values())
        kept = explained[:1] or [
            row_on(call.site, "rule", "", RIGHT, "no floats among its arguments: there is no gradient")
        ]
    note = "at random values, since those that reach it are unknown" if call.drawn and call.values else ""
    seen = [np.asarray(x) for values in call.values for x in values if is_float(x)]
    if seen and not any(map(np.any, seen)):
        note = "at zeros alone, where many wrong rules are right: call it with other values"
    called = f"called at {call.site.called}" if call.site.called else ""
    return [
        row._replace(why="; ".join(filter(None, (row.why.rstrip("."), note, called))), source=call.site.source)
        for row in kept
    ]


def _check_at(site: Site, values: list[Array]) -> list[Row]:
    arrays = [jnp.asarray(value) for value in values]
    value, pulled = _functions(site)
    outputs = jax.eval_shape(value, arrays)
    if not outputs or not floats(site):
        return [row_on(site, "rule", "", RIGHT, "no floats among its arguments and outputs: there is no gradient")]
    ungiven = _not_given(site, arrays)
    chosen = [k for k in floats(site) if k not in ungiven]
    if not chosen:
        return [row_on(site, "rule", "", RIGHT, "its rule gives None for every argument: each counts as a constant")]
    rule = Rule(site, arrays, chosen, _names(site, chosen), _two_deltas(outputs))
    wrong_at = [leaf for leaf in value(arrays) if not np.isfinite(np.asarray(leaf).astype(np.float64)).all()]
    if wrong_at:
        return [row_on(site, "value", "", CANNOT_TELL, "the function is not finite here: its gradient is undefined")]
    value, pulled = _twice(value, pulled)
    reverse = error_of(lambda: jax.eval_shape(pulled, arrays, rule.deltas))
    if reverse is not None:
        return by_forward_mode(rule, value, reverse)
    problem = _problem(rule, value, pulled)
    if error_of(lambda: autodiff_of(problem)) is not None:
        rows = without_reverse(rule, value, pulled)
    else:
        rows = [row for found in verdicts([problem, *_values(rule, value)]) for row in found]
        rows = _with_removable_kinks(rule, value, pulled, rows)
        if site.programs is None and not all(row.verdict in (RIGHT, KINK) for row in rows):
            rows = _with_plain_parts(problem, rows)
    if isinstance(site.rule, jax.custom_jvp) and has_own_transpose(pulled, rule):
        rows += by_forward_mode(rule, value, None)
    return [row._replace(place=f"{site.name} {site.signature()}") for row in rows]


def _two_deltas(outputs: list[Array]) -> list[Array]:
    large = [jnp.asarray(LARGER * delta, delta.dtype) for delta in cotangents(outputs, 1, plain=False)]
    return [*cotangents(outputs, 0, plain=False), *large]


def _twice(value: Callable[..., list[Array]], pulled: Callable[..., list[Array]]) -> tuple[Any, Any]:
    """The function with every output twice, whose gradient is a sum: a rule that is not linear gives another."""

    def both(arrays: Sequence[Array], deltas: Sequence[Array]) -> list[Array]:
        half = len(deltas) // 2
        pairs = zip(pulled(arrays, deltas[:half]), pulled(arrays, deltas[half:]), strict=True)
        return [a + b for a, b in pairs]

    return lambda arrays: 2 * value(arrays), both


def _functions(site: Site) -> tuple[Callable[..., list[Array]], Callable[..., list[Array]]]:
    """`arrays -> float outputs` of the plain function, and `arrays, deltas -> gradients` of the rule."""
    if site.programs is None:
        return functions_of(site)
    programs, own = site.programs, len(site.arrays)

    def of_value(arrays: Sequence[Array]) -> list[Array]:
        return _run(programs.value, [*(arrays[own + i] for i in programs.value_held), *arrays[:own]])

    def of_rule(arrays: Sequence[Array], deltas: Sequence[Array]) -> list[Array]:
        return _run(programs.rule, [*(arrays[own + i] for i in programs.rule_held), *arrays[:own], *deltas])

    return of_value, of_rule


def _run(program: Any, inputs: Sequence[Array]) -> list[Array]:
    """A program in its own precision, or in float64 arithmetic if its inputs are float64."""
    given = [x.dtype for x in inputs if is_float(x)]
    meant = [aval.dtype for aval in program.in_avals if is_float(aval)]
    return list(function_of(program)(*inputs) if given == meant else replay(program)(*widen(list(inputs))))


# ---------------------------------------------------------------- problems


def _problem(rule: Rule, value: Callable[..., list[Array]], pulled: Callable[..., list[Array]]) -> Problem:
    every = floats(rule.site)

    def gradients(leaves: list[Array], rest: list[Array], deltas: list[Array]) -> list[Array]:
        found = dict(zip(every, pulled(rule.joined(leaves, rest), deltas), strict=True))
        return [found[k] for k in rule.chosen]

    return Problem(
        rule.site.name,
        rule.site.kind,
        rule.names,
        lambda leaves, rest: value(rule.joined(leaves, rest)),
        gradients,
        rule.leaves,
        rule.rest,
        rule.deltas,
    )


def _values(rule: Rule, value: Callable[..., list[Array]]) -> list[Problem]:
    """A problem for the outputs that the rule computes beside the derivative: they must be the function's."""
    site = rule.site
    if site.programs is not None:
        return []
    call, every = functools.partial(ORIGINAL[class_of(site.rule)], site.rule), floats(site)

    def by_rule(leaves: list[Array], rest: list[Array], _: list[Array]) -> list[Array]:
        arrays = rule.joined(leaves, rest)

        def outputs(mine: list[Array]) -> list[Array]:
            given = dict(zip(every, mine, strict=True))
            out = call(*site.arguments([given.get(k, array) for k, array in enumerate(arrays)]))
            return 2 * [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]

        mine = [arrays[k] for k in every]
        if isinstance(site.rule, jax.custom_jvp):
            return list(jax.jvp(outputs, (mine,), (list(map(jnp.ones_like, mine)),))[0])
        return list(jax.vjp(outputs, mine)[0])

    def by_function(leaves: list[Array], rest: list[Array], _: list[Array]) -> list[Array]:
        return value(rule.joined(leaves, rest))

    half = len(rule.deltas) // 2
    names = tuple(f"output[{i % half}]" if half > 1 else "output" for i in range(2 * half))
    name = "value of jvp" if isinstance(site.rule, jax.custom_jvp) else "value of fwd"
    return [
        Problem(
            site.name, name, names, lambda leaves, rest: value(rule.joined(leaves, rest)),
            by_rule, rule.leaves, rule.rest, rule.deltas, by_function,
        )
    ]  # fmt: skip


def _with_removable_kinks(
    rule: Rule, value: Callable[..., list[Array]], pulled: Callable[..., list[Array]], rows: list[Row]
) -> list[Row]:
    """The rows, corrected where the function is smooth although its parts have kinks.

    max(x, y) + log1p(exp(−|x − y|)) is smooth at x = y, where jax.grad adds up the slopes chosen for its kinks.
    """
    wrong = [row for row in rows if row.verdict == WRONG and row.kind == rule.site.kind and _with_differences(row)]
    if not wrong:
        return rows
    elements = {row.leaf: row.element for row in wrong if row.element is not None}
    slopes = {row.leaf: row for row in by_differences(rule, value, pulled, elements)}

    def again(row: Row) -> Row:
        found = slopes.get(row.leaf)
        if row not in wrong or found is None or found.verdict == WRONG:
            return row
        if found.verdict != RIGHT:  # autodiff is not finite nearby, and differences do not support it
            return row if row.differences is not None else found
        return row._replace(
            verdict=RIGHT, why="jax.grad of the function is off at this point, as finite differences show"
        )

    return list(map(again, rows))


def _with_differences(row: Row) -> bool:
    """True if finite differences may agree with the rule and not with autodiff."""
    if row.hand is None or row.autodiff is None or row.differences is None:
        return row.why.startswith(PARTLY)
    return abs(row.hand - row.differences) < abs(row.autodiff - row.differences) / NEARER


def _with_plain_parts(problem: Problem, rows: list[Row]) -> list[Row]:
    """The rows, with the better verdict of a second comparison in which functions with rules inside are plain."""

    def plain(leaves: list[Array], rest: list[Array]) -> list[Array]:
        with calls_are("plain"):
            return problem.value(leaves, rest)

    again = problem._replace(value=plain)
    if error_of(lambda: autodiff_of(again)) is not None or not _differ(problem, again):
        return rows
    gradient, values = rows[: len(problem.names)], rows[len(problem.names) :]
    (found,) = verdicts([again])
    better = [min(pair, key=lambda row: SEVERITY.index(row.verdict)) for pair in zip(found, gradient, strict=True)]
    return [*better, *values]


def _differ(a: Problem, b: Problem) -> bool:
    return str(jax.make_jaxpr(a.value)(a.leaves, a.fixed)) != str(jax.make_jaxpr(b.value)(b.leaves, b.fixed))


def _names(site: Site, chosen: Sequence[int]) -> tuple[str, ...]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(
        jax.tree.unflatten(site.tree, range(site.tree.num_leaves)))]  # fmt: skip
    if site.rule is None or not paths or not hasattr(paths[0][0], "idx"):
        return tuple(f"args[{k}]" for k in chosen)
    names = argument_names(site.rule.fun, max(path[0].idx for path in paths) + 1)
    found = []
    for k in chosen:
        path = paths[site.arrays[k]]
        found.append(f"{names[path[0].idx]}{jax.tree_util.keystr(path[1:])}")
    return tuple(found)


def _not_given(site: Site, arrays: list[Array]) -> set[int]:
    """The arrays for which a custom_vjp's backward returns None, as for constants."""
    rule: Any = site.rule
    if site.kind != "custom_vjp" or site.programs is not None or getattr(rule, "symbolic_zeros", False):
        return set()
    found: list[int] = []

    def backward(arrays: list[Array]) -> None:
        args = site.arguments(arrays)
        out, residuals = rule.fwd(*args)
        no_tangent = lambda leaf: np.zeros(np.shape(leaf), jax.dtypes.float0)  # noqa: E731
        delta = jax.tree.map(lambda leaf: jnp.ones_like(leaf) if is_float(leaf) else no_tangent(leaf), out)
        given = rule.bwd(*(args[i] for i in site.nondiff), residuals, delta)
        indices = jax.tree.unflatten(site.tree, range(site.tree.num_leaves))
        kept = tuple(entry for i, entry in enumerate(indices) if i not in site.nondiff)
        jax.tree.map(
            lambda g, entry: found.extend(jax.tree.leaves(entry)) if g is None else None,
            tuple(given), kept, is_leaf=lambda g: g is None,
        )  # fmt: skip

    if error_of(lambda: jax.eval_shape(backward, arrays)) is not None:
        return set()
    return {k for k, leaf in enumerate(site.arrays) if leaf in found}


def reached(call: Call) -> list[Call]:
    """The calls of functions with rules that the rule makes."""
    site = call.site
    if site.programs is not None or not call.values:
        return []
    _, pulled = functions_of(site)
    arrays = [jnp.asarray(value) for value in call.values[0]]

    def run(arrays: list[Array]) -> list[Array]:
        outputs = jax.eval_shape(functions_of(site)[0], arrays)
        return pulled(arrays, cotangents(outputs, 0, plain=False))

    with undisturbed():
        found = Collector()
        with calls_are("marked", found):
            refused = error_of(lambda: jax.eval_shape(lambda arrays: run(arrays), arrays))
        if refused is not None or not set(found.sites) - {site.key}:
            return []
        calls: list[Call] = []
        error_of(lambda: calls.extend(collected(run, (arrays,), {})))
        return calls
