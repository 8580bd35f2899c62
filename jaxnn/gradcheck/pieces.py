"""The gradients of the pieces that meet at a kink, and whether a rule's answer is a mixture of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from jaxnn.gradcheck.arrays import ASIDE, finite, rms
from jaxnn.gradcheck.mixtures import Mixture, mixture
from jaxnn.gradcheck.programs import Problem, Programs, compiled
from jaxnn.gradcheck.replay import casts, widen
from jaxnn.gradcheck.ties import Sided, Slots, Tied, blocks_of, furthest, piece, values

WORK = 3e8  # ties moved in the search for pieces
ASKED = (600, 10_000)  # pieces, at least and at most
MIXED = 1e-4  # relative: a rule's answer at a kink that is nearer to a mixture counts as one
WORST = 3  # elements furthest from the mixtures; each of them is searched on its own


class Mixed(NamedTuple):
    """A gradient compared with the mixtures of the pieces' gradients."""

    nearest: Mixture  # the nearest mixture
    outside: tuple[int, ...] | None  # an element outside all of them, or None
    gave_up: bool  # whether the search ended before it was complete


def mixed(problem: Problem, programs: Programs, i: int, hand: np.ndarray, v: np.ndarray) -> Mixed:
    """Searches for a mixture of the gradients of leaf i that equals the hand-derived one; v is the first direction."""
    pieces = _Pieces(problem, programs, i)
    found = mixture(hand, v, pieces.furthest, MIXED)
    for flat in np.argsort(found.left, axis=None)[::-1][:WORST]:
        element = tuple(map(int, np.unravel_index(int(flat), hand.shape)))
        if found.left[element] <= MIXED:
            break
        low, high = (sign * pieces.at(element, sign, sign * float(hand[element])) for sign in (-1, 1))
        room = MIXED * max(abs(low), abs(high), rms(found.high))
        if not low - room <= hand[element] <= high + room:
            found.low[element], found.high[element] = low, high
            return Mixed(found, element, pieces.left <= 0)
    return Mixed(found, None, pieces.left <= 0)


class _Pieces:
    """The pieces of a problem's function that meet at its point, by their gradients of leaf i."""

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
        """The gradient of leaf i with the ties moved by `sides` steps, ż along v, and λ."""
        self.left -= 1
        ties = [tie + step * side for tie, step, side in zip(self.base, self.steps, sides, strict=True)]
        with jax.enable_x64(True):
            found = jax.tree.map(np.asarray, self._ask(self.point, jax.tree.unflatten(self.tree, ties), v))
        return found.gradients[self.i], jax.tree.leaves(found.moved), jax.tree.leaves(found.sensitivities)

    def furthest(self, v: np.ndarray, wanted: float) -> np.ndarray:
        """The gradient that goes furthest along v of those that are found, or one that goes as far as `wanted`."""
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
        """The greatest slope of one element, or minus the least."""
        unit = np.zeros(self.point[0][self.i].shape)
        unit[element] = sign
        return float(self.furthest(unit, wanted)[element]) * sign


def _size(z: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """The scale of a tie: its own, its array's or that of the terms that cancel in it; a millionth if all are 0."""
    return np.asarray(np.maximum(np.abs(finite(z)), max(rms(z), rms(terms)) or ASIDE))
