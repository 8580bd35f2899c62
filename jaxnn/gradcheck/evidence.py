"""Measurements that a verdict needs only sometimes: each is compiled and run when it is first asked for.

Slopes by finite differences, the noise of float32, what rounding does to sums that cancel, what limits the precision of
a program, and the gradients of the pieces that meet at a kink.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import Array
from jaxnn.gradcheck.arrays import ASIDE, ROUNDOFF, as_float64, finite, rms, sizes
from jaxnn.gradcheck.differences import CERTAIN, Slope, slope_of
from jaxnn.gradcheck.pieces import Mixed, mixed
from jaxnn.gradcheck.programs import Problem, Programs, compiled, gradient, runner
from jaxnn.gradcheck.replay import Obstacle, obstacles, replay, widen
from jaxnn.gradcheck.rounding import spread
from jaxnn.jaxprs import is_float

NARROW_POINTS = 3  # at which a float64 problem is run in float32
NARROW_JITTER = 4 * 2.0**-24
SATURATED = 16  # times the gradient: more noise than that only says that no digit of float32 is right
NEARBY = 24  # points around x at which jax.grad is evaluated
ROUNDED = 8  # times the measured effect of rounding: two derivations round in different orders
CLOSE = 1e-4  # relative accuracy of a slope by differences, at best
DIRECTIONS = 6  # drawn at random, along which a gradient must lie between the slopes from both sides


class Along(NamedTuple):
    """A direction v in a leaf, and the slope of ⟨δ, f⟩ along it."""

    v: np.ndarray
    slope: Slope


class Sides(NamedTuple):
    """The slopes of ⟨δ, f⟩ with respect to one element, from both sides and at points nearby."""

    slope: Slope  # at the point itself
    low: float  # the smaller of its slopes from the two sides; equal to high where it has no kink
    high: float  # the larger
    room: float  # how far these may be off
    alone: bool  # whether the slopes nearby lie between the two, so that no other kink is involved

    @property
    def smooth(self) -> bool:
        """True if there is no kink: differences then decide, against jax.grad too."""
        return self.alone and not self.slope.bends

    def allow(self, g: float) -> bool:
        """True if g lies between the two slopes."""
        return bool(self.low - self.room - CLOSE * abs(g) <= g <= self.high + self.room + CLOSE * abs(g))


class Evidence:
    """The measurements on demand of one leaf of a problem."""

    def __init__(self, shared: Shared, i: int) -> None:
        self._shared, self._i = shared, i

    def obstacles(self) -> list[Obstacle]:
        """What limits the precision of the float64 programs, such as a cast to float32."""
        return self._shared.obstacles

    def rounding(self) -> np.ndarray:
        """How far two derivations may differ in float64, since each rounds the terms that it sums."""
        both = self._shared.rounding[self._i]
        return np.asarray(ROUNDED * (both + rms(both)))

    def narrow(self) -> np.ndarray:
        """The effect of rounding in float32 on a float64 problem, by hand and by jax.grad; 0 if it cannot run there."""
        return self._shared.narrow[self._i]

    def slope(self, element: tuple[int, ...], *, perturbed: bool = False) -> Slope:
        """∂⟨δ, f⟩/∂(the element) by differences; perturbed as for `along`."""
        v = np.zeros(self._size.shape)
        v[element] = 1.0
        return self._slope(v, float(self._size[element]), perturbed)

    def along(self, elements: np.ndarray | None = None, *, perturbed: bool = False) -> Along:
        """The slope along one direction, with random signs at the elements of a mask, or at all.

        With `perturbed` its error includes rounding inside the function, by Monte Carlo arithmetic.
        """
        rng = np.random.default_rng(self._i if elements is None else 1)
        signs = rng.choice([-1.0, 1.0], self._size.shape)
        v = (signs if elements is None else np.where(elements, signs, 0)) * self._size
        return Along(v, self._slope(v, 1.0, perturbed))

    def directions(self, *first: np.ndarray) -> Iterator[Along]:
        """The slopes along some directions and then along random ones, each measured when it is reached."""
        rng, size = np.random.default_rng(2), self._size
        for d in (*first, *(rng.normal(size=size.shape) * size for _ in range(DIRECTIONS))):
            if d.any():
                v = d / np.abs(d).max()
                yield Along(v, self._slope(v, float(size.max()), perturbed=False))

    def sides(self, element: tuple[int, ...]) -> Sides:
        """The slopes with respect to one element from both sides, and whether jax.grad's nearby lie between them.

        They do at a single kink along that element; otherwise several kinks meet, each with its own convention.
        """
        slope = self.slope(element)
        low, high = sorted((slope.left, slope.right)) if slope.bends else (slope.value, slope.value)
        error = slope.sided_error if slope.bends else slope.error
        room = CERTAIN * error + CLOSE * max(abs(low), abs(high))
        bounds = self._shared.nearby[self._i]
        least, most = (float(bound[element]) for bound in bounds)
        off = room + CLOSE * max(map(rms, bounds))
        return Sides(slope, low, high, room, alone=bool(low - off <= least and most <= high + off))

    def mixture(self, hand: np.ndarray, v: np.ndarray) -> Mixed:
        """The convex combination nearest to `hand` of the gradients of the pieces that meet; v: the first direction."""
        return mixed(self._shared.problem, self._shared.programs, self._i, hand, v)

    @cached_property
    def _size(self) -> np.ndarray:
        return sizes(as_float64(self._shared.problem.leaves[self._i]))

    def _slope(self, v: np.ndarray, scale: float, perturbed: bool) -> Slope:
        return self._shared.slope(self._i, v, scale, self._shared.perturbed_values if perturbed else 0.0)


class Shared:
    """The measurements on demand of all leaves of a problem."""

    def __init__(self, problem: Problem, programs: Programs) -> None:
        self.problem, self.programs = problem, programs

    @cached_property
    def obstacles(self) -> list[Obstacle]:
        """What limits the precision of the float64 programs."""
        p = self.programs
        if p.stopped:
            why = Obstacle(f"an error in float64 ({p.stopped})", p.stopped_at)
            left = [o for o in obstacles(p.hand) + obstacles(p.auto) if o.unit > 0]
            return [why._replace(unit=max(o.unit for o in left))] if left else []
        return obstacles(p.hand64) + obstacles(p.auto64)

    # ------------------------------------------------------------ rounding

    @cached_property
    def rounding(self) -> list[np.ndarray]:
        """The effect of rounding on each gradient, by hand plus by jax.grad: Monte Carlo arithmetic."""
        p = self.programs
        rules = [p.hand, p.auto] if p.stopped else [p.hand64, p.auto64]
        with jax.enable_x64(True):
            by_hand, by_auto = spread(rules, jax.tree.leaves(widen(self.problem.arguments)))
        return [np.asarray(a + b) for a, b in zip(by_hand, by_auto, strict=True)]

    @cached_property
    def perturbed_values(self) -> float:
        """The effect of rounding on ⟨δ, f⟩, including what cancels inside f."""
        leaves, fixed, deltas = self.problem.arguments
        with jax.enable_x64(True):
            (values,) = spread([self.programs.value], jax.tree.leaves(widen((leaves, fixed))))
        return float(sum(np.sum(np.abs(as_float64(d)) * x) for d, x in zip(deltas, values, strict=True)))

    @cached_property
    def narrow(self) -> list[np.ndarray]:
        """|float32 − float64| of each gradient, by hand plus by jax.grad, at arguments rounded to float32."""
        found = [np.zeros(aval.shape) for aval in self.programs.auto.out_avals]
        if self.programs.stopped:
            return found
        rng = np.random.default_rng(0)
        low = [compiled(rule) for rule in (self.problem.rule, gradient(self.problem))]
        high = [compiled(runner(program)) for program in (self.programs.hand64, self.programs.auto64)]
        for _ in range(NARROW_POINTS):
            try:
                here = self._in_float32(low, high, rng)
            except Exception:  # whatever a user's function raises there
                break
            found = [np.maximum(a, b) for a, b in zip(found, here, strict=True)]
        return found

    def _in_float32(
        self, rules: list[Callable[..., Any]], programs: list[Callable[..., Any]], rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Both rules in float32 against both in float64, at one point: each element's noise plus the leaf's."""
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

    def slope(self, i: int, v: np.ndarray, scale: float, noise: float) -> Slope:
        """d/dt ⟨δ, f(x + t v)⟩ at 0 by differences, v a direction in leaf i, scale the size of a step of 1.

        `noise` is the error of the values, if it is known to exceed their own rounding.
        """
        with jax.enable_x64(True):
            directions = [v if k == i else np.zeros(np.shape(leaf)) for k, leaf in enumerate(self.problem.leaves)]
            at = widen((self.problem.arguments, directions))
            g = self._difference
            return slope_of(lambda ts: np.asarray(g(*at, jnp.asarray(ts))), scale, max(noise, self._rounded_values))

    @cached_property
    def _value(self) -> Callable[..., list[Array]]:
        return replay(self.programs.value) if self.programs.stopped else runner(self.programs.value)

    @cached_property
    def _rounded_values(self) -> float:
        """The error of a difference of two values of ⟨δ, f⟩: rounding, or the error that f itself is known to have."""
        leaves, fixed, deltas = self.problem.arguments
        with jax.enable_x64(True):
            values = compiled(self._value)(*jax.tree.leaves(widen((leaves, fixed))))
        terms = [np.abs(finite(as_float64(d) * as_float64(y))).sum() for d, y in zip(deltas, values, strict=True)]
        return float(sum(terms)) * max(ROUNDOFF, self.problem.forward_error)

    @cached_property
    def _difference(self) -> Callable[..., Array]:
        """The function g(arguments, v, [P]) = ⟨δ, f(x + t v) − f(x)⟩ for each t: subtracted before it is summed."""

        def values(leaves: list[Array], fixed: Any) -> list[Array]:
            return self._value(*jax.tree.leaves((leaves, fixed)))

        def g(point: Any, directions: list[Array], ts: Array) -> Array:
            leaves, fixed, deltas = point
            here = values(leaves, fixed)

            def one(t: Array) -> Array:
                there = values([x + t * v for x, v in zip(leaves, directions, strict=True)], fixed)
                parts = zip(deltas, there, here, strict=True)
                return sum((jnp.sum(d * (b - a)) for d, b, a in parts), jnp.zeros(()))

            return jax.lax.map(one, ts)

        return compiled(g)

    @cached_property
    def nearby(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The smallest and the largest limit of each element of jax.grad along random rays towards the point.

        The limit is 2g(ε/2) − g(ε) of two points of a ray: a smooth gradient changes with ε, that of a piece does not.
        """
        p, rng = self.programs, np.random.default_rng(0)
        leaves, fixed, deltas = self.problem.arguments
        wide = list(map(as_float64, leaves))
        with jax.enable_x64(True):
            run = compiled(replay(p.auto) if p.stopped else runner(p.auto64))
            found = []
            for _ in range(NEARBY):
                rays = [ASIDE * sizes(x) * rng.uniform(-1, 1, x.shape) for x in wide]
                points = [[x + t * ray for x, ray in zip(wide, rays, strict=True)] for t in (1.0, 0.5)]
                far, near = (run(*jax.tree.leaves(widen((point, fixed, deltas)))) for point in points)
                found.append([finite(2 * as_float64(b) - as_float64(a)) for a, b in zip(far, near, strict=True)])
        return [(np.min(limits, axis=0), np.max(limits, axis=0)) for limits in zip(*found, strict=True)]
