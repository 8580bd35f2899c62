"""Further evidence on one problem: slopes by differences, float32's noise, what rounding does, what stops float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.arrays import ASIDE, as_float64, finite, rms, scales
from jaxnn.gradcheck.differences import CERTAIN, Slope, slope_of
from jaxnn.gradcheck.measuring import ROUNDOFF
from jaxnn.gradcheck.programs import Problem, Programs, compiled, gradient, runner
from jaxnn.gradcheck.replay import Obstacle, obstacles, replay, widen
from jaxnn.gradcheck.rounding import spread
from jaxnn.jaxprs import is_float

NARROW_POINTS = 3  # at which a float64 problem is run in float32
NARROW_JITTER = 4 * 2.0**-24
SATURATED = 16  # of the gradient: more noise than that says no more than that float32 has no digit right
NEARBY = 24  # points to the side at which jax.grad is asked for
ROUNDED = 8  # times what shaking shows: two derivations round in different orders
CLOSE = 1e-4  # relative: a slope by differences is not known better


class Sides(NamedTuple):
    """The slopes of a function by one element, from both sides and at points nearby.

    Attributes:
        slope: at the point itself.
        low, high: its slopes from the two sides, in order; equal where it has no kink.
        room: how far these may be off.
        alone: whether the slopes nearby say nothing else, so that no other kink has a part in it.
    """

    slope: Slope
    low: float
    high: float
    room: float
    alone: bool

    @property
    def smooth(self) -> bool:
        """Whether there is no kink: differences decide then, against jax.grad as well."""
        return self.alone and not self.slope.bends

    def allow(self, g: float) -> bool:
        """Whether g lies between the two slopes."""
        return bool(self.low - self.room - CLOSE * abs(g) <= g <= self.high + self.room + CLOSE * abs(g))


class Evidence:
    """One problem's further evidence, compiled when it is first asked for."""

    def __init__(self, problem: Problem, programs: Programs) -> None:
        self.problem, self.programs = problem, programs
        self._g: Any = None
        self._noise: float | None = None
        self._rounding: list[np.ndarray] | None = None
        self._narrow: list[np.ndarray] | None = None
        self._ranges: list[tuple[np.ndarray, np.ndarray]] | None = None

    def wide_leaf(self, i: int) -> np.ndarray:
        return as_float64(self.problem.leaves[i])

    def stopped(self) -> list[Obstacle]:
        """What keeps float64 from getting through."""
        p = self.programs
        if p.stopped:
            why = Obstacle(f"an error in float64 ({p.stopped})", p.stopped_at)
            left = [o for o in obstacles(p.hand) + obstacles(p.auto) if o.unit > 0]
            return [why._replace(unit=max(o.unit for o in left))] if left else []
        return obstacles(p.hand64) + obstacles(p.auto64)

    # ------------------------------------------------------------ rounding

    def rounding(self, i: int) -> np.ndarray:
        """By how much two derivations of leaf i may differ in float64 since each rounds the terms that it sums."""
        if self._rounding is None:
            p = self.programs
            rules = [p.hand, p.auto] if p.stopped else [p.hand64, p.auto64]
            with jax.enable_x64(True):
                by_hand, by_auto = spread(rules, jax.tree.leaves(widen(self.problem.arguments)))
            self._rounding = [np.asarray(a + b) for a, b in zip(by_hand, by_auto, strict=True)]
        both = self._rounding[i]
        return np.asarray(ROUNDED * (both + rms(both)))

    def narrow(self) -> list[np.ndarray]:
        """What rounding does to each gradient in float32, by hand and by jax.grad; 0 where it cannot run there.

        A problem of float64 is put in float32 for that, its arguments rounded, and compared with float64: SATURATED.
        """
        if self._narrow is None:
            self._narrow = [np.zeros(aval.shape) for aval in self.programs.auto.out_avals]
            if self.programs.stopped:
                return self._narrow
            rng = np.random.default_rng(0)
            low = [compiled(rule) for rule in (self.problem.rule, gradient(self.problem))]
            high = [compiled(runner(program)) for program in (self.programs.hand64, self.programs.auto64)]
            for _ in range(NARROW_POINTS):
                try:
                    here = self._in_float32(low, high, rng)
                except Exception:  # whatever a user's function raises there
                    break
                self._narrow = [np.maximum(a, b) for a, b in zip(self._narrow, here, strict=True)]
        return self._narrow

    def _in_float32(self, rules: list[Any], programs: list[Any], rng: np.random.Generator) -> list[np.ndarray]:
        """Both rules in float32 against both in float64, at one point: each element's noise and the leaf's."""
        leaves, fixed, deltas = self.problem.arguments
        signs = [rng.integers(0, 2, np.shape(leaf)) * 2 - 1 for leaf in leaves]
        leaves = [np.asarray(leaf) * (1 + NARROW_JITTER * sign) for leaf, sign in zip(leaves, signs, strict=True)]
        narrow = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float32) if is_float(leaf) else leaf, (leaves, fixed, deltas)
        )
        with jax.enable_x64(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that float64 is not available
            low = jax.tree.map(as_float64, [rule(*narrow) for rule in rules])
        with jax.enable_x64(True):
            flat = jax.tree.leaves(widen(narrow))
            high = jax.tree.map(as_float64, [program(*flat) for program in programs])
        noise = [
            np.add(*(np.abs(finite(a - b)) for a, b in zip(pair, exact, strict=True)))
            for pair, exact in zip(zip(*low, strict=True), zip(*high, strict=True), strict=True)
        ]
        most = [SATURATED * np.maximum(np.abs(finite(r)), rms(r)) for r in high[1]]
        return [np.minimum(n + rms(n), limit) for n, limit in zip(noise, most, strict=True)]

    # ------------------------------------------------------------ slopes

    def slope(self, i: int, element: tuple[int, ...], noise: float = 0.0) -> Slope:
        """∂⟨δ, f⟩/∂(leaf i at element) by differences; noise as for `slope_along`."""
        return self.slope_along(i, *self._unit(i, element), noise=noise)

    def _unit(self, i: int, element: tuple[int, ...]) -> tuple[np.ndarray, float]:
        v = np.zeros(np.shape(self.problem.leaves[i]))
        v[element] = 1.0
        return v, float(scales(self.wide_leaf(i))[element])

    def slope_along(self, i: int, v: np.ndarray, scale: float = 1.0, noise: float = 0.0) -> Slope:
        """d/dt ⟨δ, f(x + t v)⟩ at 0 by differences, v in leaf i.

        Args:
            i: the leaf.
            v: the direction.
            scale: the size of a step of 1.
            noise: what rounding does to the values, where more is known than that they are rounded.
        """
        with jax.enable_x64(True):
            if self._g is None:
                self._g = compiled(self._difference())
            directions = [v if k == i else np.zeros(np.shape(leaf)) for k, leaf in enumerate(self.problem.leaves)]
            wide, along = widen((self.problem.arguments, directions))
            g, at = self._g, (wide, along)
            return slope_of(lambda ts: np.asarray(g(*at, jnp.asarray(ts))), scale, max(noise, self._rounded_values()))

    def _rounded_values(self) -> float:
        """How exact a difference of two values can be: they are rounded, or off by the forward's own error."""
        if self._noise is None:
            p, (leaves, fixed, deltas) = self.programs, self.problem.arguments
            with jax.enable_x64(True):
                run = compiled(replay(p.value) if p.stopped else runner(p.value))
                values = run(*jax.tree.leaves(widen((leaves, fixed))))
            sizes = [np.abs(finite(as_float64(d) * as_float64(y))).sum() for d, y in zip(deltas, values, strict=True)]
            self._noise = float(sum(sizes)) * max(ROUNDOFF, self.problem.forward_error)
        return self._noise

    def shaken_values(self) -> float:
        """What rounding does to ⟨δ, f⟩, with what cancels inside of it."""
        leaves, fixed, deltas = self.problem.arguments
        with jax.enable_x64(True):
            (values,) = spread([self.programs.value], jax.tree.leaves(widen((leaves, fixed))))
        return float(sum(np.sum(np.abs(as_float64(d)) * x) for d, x in zip(deltas, values, strict=True)))

    def _difference(self) -> Callable[..., Any]:
        """The function g(arguments, v, [P]) = ⟨δ, f(x + t v) − f(x)⟩ for each t: subtracted before it is summed."""
        value = self.programs.value
        run = replay(value) if self.programs.stopped else runner(value)

        def values(leaves: list[Any], fixed: Any) -> list[Any]:
            return run(*jax.tree.leaves((leaves, fixed)))

        def g(point: Any, directions: list[Any], ts: Any) -> Any:
            leaves, fixed, deltas = point
            here = values(leaves, fixed)

            def one(t: Any) -> Any:
                there = values([x + t * v for x, v in zip(leaves, directions, strict=True)], fixed)
                parts = zip(deltas, there, here, strict=True)
                return sum((jnp.sum(d * (b - a)) for d, b, a in parts), jnp.zeros(()))

            return jax.lax.map(one, ts)

        return g

    # ------------------------------------------------------------ kinks

    def sides(self, i: int, element: tuple[int, ...]) -> Sides:
        """The slopes of ⟨δ, f⟩ by one element of leaf i, from both sides; and those that jax.grad has nearby.

        Where f has one kink along that element alone, its slopes nearby lie between those from the two sides. Others
        there mean that several kinks meet, whose conventions may be chosen one by one.
        """
        slope = self.slope(i, element)
        low, high = sorted((slope.left, slope.right)) if slope.bends else (slope.value, slope.value)
        error = slope.sided_error if slope.bends else slope.error
        room = CERTAIN * error + CLOSE * max(abs(low), abs(high))
        least, most = (float(bound[element]) for bound in self._nearby()[i])
        off = room + CLOSE * max(rms(bound) for bound in self._nearby()[i])
        return Sides(slope, low, high, room, alone=bool(low - off <= least and most <= high + off))

    def _nearby(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The least and the greatest of each element of jax.grad on rays from the point, in the limit, drawn.

        The limit is 2g(ε/2) − g(ε), of two points of a ray: a smooth gradient changes with ε, that of a piece does not.
        """
        if self._ranges is None:
            p, rng = self.programs, np.random.default_rng(0)
            leaves, fixed, deltas = self.problem.arguments
            wide = list(map(as_float64, leaves))
            with jax.enable_x64(True):
                run = compiled(replay(p.auto) if p.stopped else runner(p.auto64))
                found = []
                for _ in range(NEARBY):
                    rays = [ASIDE * scales(x) * rng.uniform(-1, 1, x.shape) for x in wide]
                    points = [[x + t * ray for x, ray in zip(wide, rays, strict=True)] for t in (1.0, 0.5)]
                    far, near = (run(*jax.tree.leaves(widen((point, fixed, deltas)))) for point in points)
                    far, near = (list(map(as_float64, side)) for side in (far, near))
                    found.append([finite(2 * b - a) for a, b in zip(far, near, strict=True)])
            self._ranges = [(np.min(limits, axis=0), np.max(limits, axis=0)) for limits in zip(*found, strict=True)]
        return self._ranges
