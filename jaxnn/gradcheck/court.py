"""Asking a function again: its slopes by differences, and the gradients of the pieces that meet at a kink."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.differences import Slope, slope_of
from jaxnn.gradcheck.mixtures import Mixture, mixture
from jaxnn.gradcheck.programs import Problem, Programs, compiled, gradient, runner
from jaxnn.gradcheck.replay import Obstacle, casts, obstacles, replay, widen
from jaxnn.gradcheck.ties import Sided, Slots, Tied, blocks_of, furthest, piece, values
from jaxnn.jaxprs import is_float

ASIDE = 1e-6  # relative: off a kink, still the same place
WITNESSED = 3  # worst elements of a leaf for which differences are taken
WORK = 3e8  # ties moved, in looking for pieces
ASKED = (600, 10_000)  # pieces, at least and at most
NARROW_POINTS = 3  # at which a float64 problem is run in float32
NARROW_JITTER = 4 * 2.0**-24
SATURATED = 16  # of the gradient: more noise than that says no more than that float32 has no digit right
MIXED = 1e-4  # relative: nearer than this, a rule's answer at a kink counts as a mixture


def as_float64(x: Any) -> np.ndarray:
    """In NumPy, which knows no x64 mode."""
    return np.asarray(x).astype(np.float64)


def scales(x: np.ndarray) -> np.ndarray:
    """The size of a step of 1 at each element: its own, or the leaf's where that is larger; 1 for zeros."""
    return np.asarray(np.maximum(np.abs(x), rms(x) or 1.0))


def rms(x: np.ndarray) -> float:
    """√ mean(x²), of the finite elements."""
    x = finite(x)
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def finite(x: np.ndarray) -> np.ndarray:
    """The array x with 0 in the place of NaN and infinities."""
    return np.where(np.isfinite(x), x, 0)


class Court:
    """One problem's further evidence, compiled when it is first asked for."""

    def __init__(self, problem: Problem, programs: Programs) -> None:
        self.problem, self.programs = problem, programs
        self._g: Any = None
        self._narrow: list[np.ndarray] | None = None

    def wide_leaf(self, i: int) -> np.ndarray:
        return as_float64(self.problem.leaves[i])

    def stopped(self) -> list[Obstacle]:
        """What keeps float64 from getting through."""
        p = self.programs
        if p.stopped:
            return [Obstacle(f"an error in float64 ({p.stopped})", p.stopped_at)]
        return obstacles(p.hand64) + obstacles(p.auto64)

    def narrow(self) -> list[np.ndarray]:
        """What rounding does to each gradient in float32, by hand and by jax.grad; 0 where it cannot run there.

        A problem of float64 is put in float32 for that, its arguments rounded, and held against float64. See SATURATED.
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

    def mixture(self, i: int, hand: np.ndarray, v: np.ndarray) -> tuple[Mixture, tuple[int, ...] | None, bool]:
        """How leaf i's gradient stands to those of the pieces that meet here.

        Args:
            i: the leaf.
            hand: its gradient by hand.
            v: the direction of the first doubt.

        Returns:
            The nearest mixture, an element of hand outside of all of them, and whether the search had to be given up.
        """
        pieces = _Pieces(self.problem, self.programs, i)
        found = mixture(hand, v, pieces.furthest, MIXED)
        for flat in np.argsort(found.left, axis=None)[::-1][:WITNESSED]:
            element = tuple(map(int, np.unravel_index(int(flat), hand.shape)))
            if found.left[element] <= MIXED:
                break
            low, high = (sign * pieces.at(element, sign, sign * float(hand[element])) for sign in (-1, 1))
            room = MIXED * max(abs(low), abs(high), rms(found.high))
            if not low - room <= hand[element] <= high + room:
                found.low[element], found.high[element] = low, high
                return found, element, pieces.left <= 0
        return found, None, pieces.left <= 0


class _Pieces:
    """The pieces of a problem's function that meet at its point, as gradients of leaf i."""

    def __init__(self, problem: Problem, programs: Programs, i: int) -> None:
        value = programs.value
        tied = Tied(value, len(problem.leaves), inline=bool(programs.stopped or casts(value)))
        self.i, self.rng = i, np.random.default_rng(0)
        with jax.enable_x64(True):
            self.point = widen(problem.arguments)
            ties = jax.tree.map(np.asarray, compiled(values(tied))(self.point[:2]))
        self.base, self.tree = jax.tree.flatten(ties)
        self.blocks = blocks_of(ties, len(problem.leaves))
        self.left = int(np.clip(WORK / sum(tie.size for tie in self.base), *ASKED))
        self.steps = [np.ones(tie.shape) for tie in self.base]
        self._ask = compiled(piece(tied))
        leaves = [np.asarray(leaf) for leaf in self.point[0]]
        signs = [leaf * self.rng.choice([-1.0, 1.0], leaf.shape) for leaf in leaves]
        terms = self._asked([np.zeros(tie.shape) for tie in self.base], signs)[1]
        self.steps = [ASIDE * _size(tie, term) for tie, term in zip(self.base, terms, strict=True)]

    def _asked(self, sides: Slots, v: list[np.ndarray]) -> tuple[np.ndarray, Slots, Slots]:
        """The gradient of leaf i with the ties so many steps to the side, ż along v, and λ."""
        self.left -= 1
        ties = [tie + step * side for tie, step, side in zip(self.base, self.steps, sides, strict=True)]
        with jax.enable_x64(True):
            found = jax.tree.map(np.asarray, self._ask(self.point, jax.tree.unflatten(self.tree, ties), v))
        return found.gradients[self.i], jax.tree.leaves(found.moved), jax.tree.leaves(found.sensitivities)

    def furthest(self, v: np.ndarray, wanted: float) -> np.ndarray:
        """The gradient that goes furthest along v, of those that are found, or one that goes as far as is wanted."""
        directions = [np.zeros(np.shape(leaf)) for leaf in self.point[0]]
        directions[self.i] = v / (np.abs(v).max() or 1.0)
        off = [self.rng.uniform(-1, 1, step.shape) for step in self.steps]

        def ask(sides: Slots) -> Sided:
            gradient, moved, carried = self._asked(sides, directions)
            worth = float(np.vdot(gradient, v)) if np.isfinite(gradient).all() else -np.inf
            return Sided(worth, gradient, sides, [finite(a * b) for a, b in zip(moved, carried, strict=True)])

        moved = [finite(move) for move in self._asked(off, directions)[1]]
        return furthest(ask, self.blocks, moved, wanted, lambda: self.left <= 0, self.rng).gradient

    def at(self, element: tuple[int, ...], sign: float, wanted: float) -> float:
        """The greatest slope, or minus the least, of one element."""
        unit = np.zeros(self.point[0][self.i].shape)
        unit[element] = sign
        return float(self.furthest(unit, wanted)[element]) * sign


def _size(z: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """How large a tie is: itself, its fellows, or what cancelled in it; a millionth where all of that is 0."""
    return np.asarray(np.maximum(np.abs(finite(z)), max(rms(z), rms(terms)) or ASIDE))
