"""Checks a rule of a function that has no reverse mode, by forward mode or finite differences.

Forward mode differentiates with respect to some elements of each argument, one at a time. A function that JAX cannot
differentiate at all (a callback, a kernel, a custom call) is differentiated by finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import Array
from jaxnn.gradcheck.arrays import as_float64
from jaxnn.gradcheck.checking import verdicts
from jaxnn.gradcheck.differences import Slope, slope_of
from jaxnn.gradcheck.marks import ORIGINAL
from jaxnn.gradcheck.programs import Problem, compiled
from jaxnn.gradcheck.replay import said, widen, x64_is_on
from jaxnn.gradcheck.report import CANNOT_TELL, KINK, RIGHT, SEVERITY, WRONG, Row
from jaxnn.gradcheck.sites import Site, floats
from jaxnn.jaxprs import equations, is_float

ELEMENTS = 16  # elements of a leaf that are checked by forward mode, each of which takes a pass
ACCURACY = {"float64": 1e-6, "float32": 1e-3}  # of the terms: that of differences of a function in that precision
COARSER = 40  # times the steps of differences, for a function that does not run in float64
VAGUE = 0.05  # of the slope: differences with a larger error decide nothing
COMBINED = (2.0, -3.0)  # of two tangents, for linearity


class Rule(NamedTuple):
    """A call at one list of arrays."""

    site: Site  # the call
    arrays: list[Array]  # all its arrays
    chosen: list[int]  # which of them are leaves: floats for which the rule gives a gradient
    names: tuple[str, ...]  # one for each leaf
    deltas: list[Array]  # two for each float output, the second ones larger

    @property
    def leaves(self) -> list[Array]:
        return [self.arrays[k] for k in self.chosen]

    @property
    def rest(self) -> list[Any]:
        return [None if k in self.chosen else array for k, array in enumerate(self.arrays)]

    def joined(self, leaves: Sequence[Array], rest: Sequence[Any]) -> list[Array]:
        mine = dict(zip(self.chosen, leaves, strict=True))
        return [mine[k] if k in mine else rest[k] for k in range(len(self.arrays))]


def row_on(site: Site, kind: str, leaf: str, verdict: str, why: str, **evidence: Any) -> Row:
    """A row on a call."""
    return Row(f"{site.name} {site.signature()}", kind, leaf, verdict, why, source=site.source, **evidence)


def error_of(run: Callable[[], Any]) -> Exception | None:
    """The error that a function raises, or None."""
    try:
        run()
    except Exception as error:  # whatever JAX or a user's function raises
        return error
    return None


def autodiff_of(problem: Problem) -> Any:
    """The program of jax.vjp of the problem's function; raises if there is none."""

    def pulled(leaves: list[Array], rest: list[Array], deltas: list[Array]) -> Any:
        return jax.vjp(lambda leaves: problem.value(leaves, rest), leaves)[1](deltas)

    return jax.make_jaxpr(pulled)(problem.leaves, problem.fixed, problem.deltas)


# ---------------------------------------------------------------- forward mode


def has_own_transpose(pulled: Callable[..., Any], rule: Rule) -> bool:
    """True if a rule's jvp defines its own transpose, so that forward and reverse mode may differ."""
    closed = jax.make_jaxpr(pulled)(rule.arrays, rule.deltas)
    return any(eqn.primitive.name in ("linear_call", "custom_transpose") for eqn in equations(closed.jaxpr))


def by_forward_mode(rule: Rule, value: Callable[..., list[Array]], refused: Exception | None) -> list[Row]:
    """Checks a rule's jvp, an element at a time, and its linearity, where it has no reverse mode or another one."""
    site = rule.site
    if not isinstance(site.rule, jax.custom_jvp):
        return [row_on(site, "rule", "", CANNOT_TELL, f"the rule raises {said(refused)}" if refused else "")]

    def call(arrays: Sequence[Array]) -> list[Array]:
        out = ORIGINAL[jax.custom_jvp](site.rule, *site.arguments(arrays))
        return 2 * [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]

    linear = _linear(rule, call)
    if linear.verdict == WRONG:
        return [linear]
    return [*_by_elements(rule, value, call), linear]


def without_reverse(rule: Rule, value: Callable[..., list[Array]], pulled: Callable[..., list[Array]]) -> list[Row]:
    """Checks a rule whose function has no reverse mode."""

    def through_value() -> Any:
        return jax.make_jaxpr(lambda *x: jax.jvp(value, (list(x),), (list(map(jnp.ones_like, x)),)))(*rule.arrays)

    only_floats = len(rule.chosen) == len(rule.arrays)
    if only_floats and error_of(through_value) is None:
        return _by_elements(rule, value, None, pulled)
    return by_differences(rule, value, pulled)


def _by_elements(
    rule: Rule,
    value: Callable[..., list[Array]],
    call: Callable[..., list[Array]] | None,
    pulled: Callable[..., list[Array]] | None = None,
) -> list[Row]:
    """Checks some elements of each leaf, each by a forward-mode pass through the function."""
    rng = np.random.default_rng(0)
    sizes = [int(np.size(leaf)) for leaf in rule.leaves]
    picked = [np.sort(rng.choice(size, min(size, ELEMENTS), replace=False)) for size in sizes]
    every = floats(rule.site)

    def whole(parts: list[Array], base: Any) -> list[Array]:
        leaves, rest = base
        moved = [leaf.reshape(-1).at[where].set(part).reshape(leaf.shape)
                 for leaf, where, part in zip(leaves, picked, parts, strict=True)]  # fmt: skip
        return rule.joined(moved, rest)

    def push(f: Callable[..., list[Array]]) -> Callable[..., list[Array]]:
        def gradients(parts: list[Array], base: Any, deltas: list[Array]) -> list[Array]:
            found = []
            for i, part in enumerate(parts):

                def along(direction: Any, i: int = i) -> Any:
                    tangents = [direction if j == i else jnp.zeros_like(p) for j, p in enumerate(parts)]
                    out = jax.jvp(lambda parts: f(whole(parts, base)), (parts,), (tangents,))[1]
                    return sum(jnp.sum(d * t) for d, t in zip(deltas, out, strict=True))

                found.append(jax.lax.map(along, jnp.eye(part.shape[0], dtype=part.dtype)).astype(part.dtype))
            return found

        return gradients

    def by_rule(parts: list[Array], base: Any, deltas: list[Array]) -> list[Array]:
        assert pulled is not None
        found = dict(zip(every, pulled(whole(parts, base), deltas), strict=True))
        return [found[k].reshape(-1)[where] for k, where in zip(rule.chosen, picked, strict=True)]

    parts = [leaf.reshape(-1)[where] for leaf, where in zip(rule.leaves, picked, strict=True)]
    problem = Problem(
        rule.site.name, f"{rule.site.kind}, forward mode", rule.names,
        lambda parts, base: value(whole(parts, base)),
        by_rule if call is None else push(call),
        parts, (rule.leaves, rule.rest), rule.deltas,
    )  # fmt: skip
    if call is None or error_of(lambda: autodiff_of(problem)) is not None:
        problem = problem._replace(auto=push(value))
    (rows,) = verdicts([problem])
    return [
        _unravelled(row, picked[i], np.shape(leaf)) for i, (row, leaf) in enumerate(zip(rows, rule.leaves, strict=True))
    ]


def _unravelled(row: Row, where: np.ndarray, shape: tuple[int, ...]) -> Row:
    if row.element is None or not len(where):
        return row
    return row._replace(element=tuple(map(int, np.unravel_index(int(where[row.element[0]]), shape))))


def _linear(rule: Rule, call: Callable[..., list[Array]]) -> Row:
    """Compares jvp(2v − 3w) with 2 jvp(v) − 3 jvp(w), in float64 where it runs there."""
    site, rng = rule.site, np.random.default_rng(1)
    v, w = ([rng.standard_normal(np.shape(leaf)) for leaf in rule.leaves] for _ in range(2))

    def push(leaves: list[Array], rest: list[Array], direction: list[np.ndarray]) -> list[Array]:
        tangents = [jnp.asarray(d, leaf.dtype) for d, leaf in zip(direction, leaves, strict=True)]
        return jax.jvp(lambda leaves: call(rule.joined(leaves, rest)), (leaves,), (tangents,))[1]

    def apart() -> tuple[float, float]:
        leaves, rest = widen((rule.leaves, rule.rest)) if x64_is_on() else (rule.leaves, rule.rest)
        mixed = push(leaves, rest, [COMBINED[0] * a + COMBINED[1] * b for a, b in zip(v, w, strict=True)])
        parts = [push(leaves, rest, direction) for direction in (v, w)]
        off, size = 0.0, 0.0
        for m, a, b in zip(mixed, *parts, strict=True):
            a, b = (as_float64(x) for x in (a, b))
            off = max(off, np.abs(as_float64(m) - COMBINED[0] * a - COMBINED[1] * b).max(initial=0))
            size = max(size, np.abs(a).max(initial=0), np.abs(b).max(initial=0))
        return off, size

    try:
        with jax.enable_x64(True):
            off, size = apart()
            room = ACCURACY["float64"]
    except Exception:  # whatever a user's rule raises in float64
        off, size = apart()
        room = 64 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in rule.leaves)
    if off <= room * size:
        return row_on(site, "linear in the tangent", "", RIGHT, "")
    why = f"jvp(2v − 3w) is not 2 jvp(v) − 3 jvp(w): they differ by {off:.3g}, for tangents up to {size:.3g}"
    return row_on(site, "linear in the tangent", "", WRONG, why)


# ---------------------------------------------------------------- finite differences


def by_differences(
    rule: Rule,
    value: Callable[..., list[Array]],
    pulled: Callable[..., list[Array]],
    elements: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> list[Row]:
    """Compares a rule with finite differences of its function: along a direction, at the largest and other elements."""
    if error_of(lambda: _wide_values(rule, value)) is None:
        with jax.enable_x64(True):
            return _differences(rule, value, pulled, widen((rule.leaves, rule.rest, rule.deltas)), "float64", elements)
    return _differences(rule, value, pulled, (rule.leaves, rule.rest, rule.deltas), "float32", elements)


def _wide_values(rule: Rule, value: Callable[..., list[Array]]) -> None:
    with jax.enable_x64(True):
        leaves, rest = widen((rule.leaves, rule.rest))
        found = value(rule.joined(leaves, rest))
        if any(leaf.dtype != np.float64 for leaf in found):
            raise TypeError("its outputs have a lower precision than its inputs")


def _differences(
    rule: Rule,
    value: Callable[..., list[Array]],
    pulled: Callable[..., list[Array]],
    point: Any,
    precision: str,
    elements: Mapping[str, tuple[int, ...]],
) -> list[Row]:
    leaves, rest, deltas = point
    every = floats(rule.site)
    found = dict(zip(every, pulled(rule.joined(leaves, rest), deltas), strict=True))
    run = compiled(lambda leaves: value(rule.joined(leaves, rest)))
    here = [as_float64(leaf) for leaf in run(leaves)]
    wide = [as_float64(d) for d in deltas]
    starts = [as_float64(leaf) for leaf in leaves]
    rng, rows = np.random.default_rng(0), []

    def slope(i: int, v: np.ndarray) -> Slope:
        def g(ts: np.ndarray) -> np.ndarray:
            values = []
            for t in ts:
                moved = list(leaves)
                moved[i] = jnp.asarray(starts[i] + t * v, leaves[i].dtype)
                there = [as_float64(leaf) for leaf in run(moved)]
                values.append(sum(np.sum(d * (b - a)) for d, b, a in zip(wide, there, here, strict=True)))
            return np.asarray(values)

        return slope_of(g, 1.0 if precision == "float64" else COARSER)

    for i, (k, name) in enumerate(zip(rule.chosen, rule.names, strict=True)):
        hand = as_float64(found[k])
        size = np.abs(starts[i]) + (np.sqrt(np.mean(starts[i] ** 2)) if starts[i].size else 0.0)
        size = np.where(size > 0, size, 1.0)
        if not hand.size:
            continue
        largest = tuple(map(int, np.unravel_index(int(np.argmax(np.abs(hand))), hand.shape)))
        found_here = []
        for element in {largest, elements.get(name, largest)}:
            unit = np.zeros(hand.shape)
            unit[element] = size[element]
            found_here.append(_against(rule, name, hand, unit, slope(i, unit), element, precision))
        whole = rng.choice([-1.0, 1.0], hand.shape) * size
        found_here.append(_against(rule, name, hand, whole, slope(i, whole), None, precision))
        rows.append(max(found_here, key=lambda row: SEVERITY.index(row.verdict)))
    return rows


def _against(
    rule: Rule,
    name: str,
    hand: np.ndarray,
    v: np.ndarray,
    slope: Slope,
    element: tuple[int, ...] | None,
    precision: str,
) -> Row:
    along, terms = float(np.vdot(hand, v)), float(np.abs(hand * v).sum())
    scale = 1.0 if element is None else float(v[element])
    row = row_on(
        rule.site, rule.site.kind, name, RIGHT, "against finite differences: JAX cannot differentiate its function",
        element=element, hand=along / scale, differences=slope.value / scale,
    )  # fmt: skip
    off, room = abs(along - slope.value), 10 * slope.error + ACCURACY[precision] * max(terms, abs(slope.value))
    if (
        slope.bends
        and slope.has_sides
        and min(slope.left, slope.right) - room <= along <= max(slope.left, slope.right) + room
    ):
        return row._replace(verdict=KINK, slopes=(slope.left / scale, slope.right / scale))
    if off > room:
        what = "along a direction" if element is None else "at this element"
        return row._replace(verdict=WRONG, why=f"{what} finite differences of the function give another slope")
    if slope.error > VAGUE * max(abs(slope.value), abs(along)) and slope.error > 1e-9:
        return row._replace(verdict=CANNOT_TELL, why="finite differences of the function are too uncertain to decide")
    return row
