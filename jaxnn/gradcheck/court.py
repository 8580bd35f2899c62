"""Asking a function again: its slopes by differences, and the gradients of the pieces that meet at a kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.differences import Slope, slope_of
from jaxnn.gradcheck.programs import Problem, Programs, compiled, runner
from jaxnn.gradcheck.replay import Obstacle, obstacles, replay, widen

ASIDE = 1e-6  # relative: off a kink, still the same place
ASIDES = 48  # random points beside a kink, at which the gradients of the pieces that meet there are seen
TIES = 64  # elements that are given sides of their own
MIXED = 1e-4  # relative: nearer than this, a rule's answer at a kink counts as a mixture


def scales(x: np.ndarray) -> np.ndarray:
    """The size of a step of 1 at each element: its own, or the leaf's where that is larger; 1 for zeros."""
    return np.asarray(np.maximum(np.abs(x), rms(x) or 1.0))


def rms(x: np.ndarray) -> float:
    """√ mean(x²), of the finite elements."""
    x = finite(x)
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def finite(x: np.ndarray) -> np.ndarray:
    """X with 0 in the place of NaN and infinities."""
    return np.where(np.isfinite(x), x, 0)


class Court:
    """One problem's further evidence, compiled when it is first asked for."""

    def __init__(self, problem: Problem, programs: Programs) -> None:
        self.problem, self.programs = problem, programs
        self._g: Any = None
        self._high: Any = None

    def wide_leaf(self, i: int) -> np.ndarray:
        return np.asarray(self.problem.leaves[i]).astype(np.float64)

    def stopped(self) -> list[Obstacle]:
        """What keeps float64 from getting through."""
        p = self.programs
        if p.stopped:
            return [Obstacle(f"an error in float64 ({p.stopped})", "")]
        return obstacles(p.hand64) + obstacles(p.auto64)

    def slope(self, i: int, element: tuple[int, ...]) -> Slope:
        """∂⟨δ, f⟩/∂(leaf i at element) by differences."""
        v = np.zeros(np.shape(self.problem.leaves[i]))
        v[element] = 1.0
        return self.slope_along(i, v, float(scales(self.wide_leaf(i))[element]))

    def slope_along(self, i: int, v: np.ndarray, scale: float = 1.0) -> Slope:
        """d/dt ⟨δ, f(x + t v)⟩ at 0 by differences, v in leaf i."""
        with jax.enable_x64(True):
            if self._g is None:
                self._g = compiled(self._difference())
            directions = [np.zeros(np.shape(leaf)) for leaf in self.problem.leaves]
            directions[i] = v
            wide = widen(self.problem.arguments)
            return slope_of(lambda ts: np.asarray(self._g(wide, widen(directions), jnp.asarray(ts))), scale)

    def _difference(self) -> Callable[..., Any]:
        """G(arguments, v, [P]) = ⟨δ, f(x + t v) − f(x)⟩ for each t: subtracted before it is summed."""
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

    def mixtures(self, i: int, v: np.ndarray, off: np.ndarray, wanted: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Least and greatest gradient of leaf i nearby; how far max_g ⟨g, v⟩ is below `wanted`, relative to its terms.

        The best piece is looked for from ±v and random directions, then one tied element after another: ties that are
        independent each have a side of their own, and no single direction takes the right side of all of them.
        """
        rng = np.random.default_rng(0)
        low, high = np.full(v.shape, np.inf), np.full(v.shape, -np.inf)
        sides = [1.0, -1.0, *[None] * ASIDES]
        best, way = -np.inf, [np.zeros(np.shape(leaf)) for leaf in self.problem.leaves]
        for side in sides:
            directions = [
                rng.standard_normal(np.shape(leaf)) * 10 ** rng.uniform(-1, 0, np.shape(leaf))
                for leaf in self.problem.leaves
            ]
            if side is not None:
                directions = [np.zeros(np.shape(leaf)) for leaf in self.problem.leaves]
                directions[i] = side * v / (np.abs(v).max() or 1.0)
            piece = self._nearby(i, directions)
            if not np.isfinite(piece).all():
                continue
            low, high = np.minimum(low, piece), np.maximum(high, piece)
            if np.vdot(piece, v) > best:
                best, way = float(np.vdot(piece, v)), directions
        size = abs(wanted) + float(
            np.abs(v * np.where(np.isfinite(high), np.maximum(np.abs(low), np.abs(high)), 0)).sum()
        )
        ties = [where for where in np.argsort(off, axis=None)[::-1][:TIES] if off.flat[where] > 1]
        for where in ties * 2:
            if (wanted - best) <= MIXED * size:
                break
            for side in (-1.0, 1.0, float(rng.standard_normal())):
                tried = [direction.copy() for direction in way]
                tried[i].flat[where] = side
                piece = self._nearby(i, tried)
                if np.isfinite(piece).all() and np.vdot(piece, v) > best:
                    best, way = float(np.vdot(piece, v)), tried
        return low, high, (wanted - best) / size if size else 0.0

    def _nearby(self, i: int, directions: list[np.ndarray]) -> np.ndarray:
        """jax.grad of leaf i, a millionth along the directions."""
        p = self.programs
        with jax.enable_x64(True):
            if self._high is None:
                self._high = compiled(replay(p.auto) if p.stopped else runner(p.auto64))
            leaves, fixed, deltas = widen(self.problem.arguments)
            moved = [
                leaf + ASIDE * scales(self.wide_leaf(k)) * direction
                for k, (leaf, direction) in enumerate(zip(leaves, directions, strict=True))
            ]
            return np.asarray(self._high(*jax.tree.leaves((moved, fixed, deltas)))[i])
