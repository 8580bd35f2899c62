"""Ties: the floats of a program at which branches meet, and the program's gradient with each of them on a given side.

A tie is the operand of a comparison, a maximum or the like, anywhere in the program. Each is pinned to a value slightly
to one side of its own, whatever the ties before it do; no argument of the function need be able to move it there. The
pieces that meet at a kink are therefore all those that a rule composed of local conventions could mean: relu′(0) = 0
for one unit, 1 for its neighbour.

Letters: s a slot, ż how a tie moves when the arguments move along v, λ the sensitivity ∂⟨δ, f⟩/∂(tie).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.aliases import Array
from jaxnn.gradcheck.replay import Replay, like
from jaxnn.jaxprs import RULED, Interpreter, Program, Scan, Values, bind, called, equations, is_float, programs_in

KINKED = {
    "abs", "sign", "max", "min", "clamp", "lt", "le", "gt", "ge", "eq", "ne", "lt_to", "le_to",
    "reduce_max", "reduce_min", "reduce_window", "reduce_window_max", "reduce_window_min", "select_and_gather_add",
    "argmax", "argmin", "cummax", "cummin", "sort", "top_k", "floor", "ceil", "round", "rem",
}  # fmt: skip
REPLAY = Replay()
Slots = list[Any]  # an array for each tie, in the order in which they are made; a list for those of an inner function


class Piece(NamedTuple):
    """The gradient on one side of every tie."""

    gradients: list[Any]  # one for each leaf
    sensitivities: Slots  # λ, like the slots
    moved: Slots  # ż for the direction v


class Tied(NamedTuple):
    """A traced `(leaves, fixed) -> outputs`, whose ties can be moved."""

    closed: Program  # the program
    leaves: int  # the number of its arguments that are leaves; each counts as a tie, for kinks without a comparison
    inline: bool  # whether to enter functions with custom rules, for rules that do not run in float64


def values(tied: Tied) -> Callable[[Any], Slots]:
    """`(leaves, fixed) -> ties`."""
    return lambda point: _run(tied, jax.tree.leaves(point), None)[1]


def piece(tied: Tied) -> Callable[[Any, Slots, Values], Piece]:
    """`((leaves, fixed, δ), values of the ties, v) -> Piece`, in float64 arithmetic.

    ż is the transpose of the vjp of the ties: forward mode would stop at a custom_vjp.
    """

    def of(point: Any, pinned: Slots, v: Values) -> Piece:
        given, fixed, deltas = point
        zeros = jax.tree.map(jnp.zeros_like, pinned)

        def run(given: Values, probes: Slots) -> tuple[Values, Slots]:
            slots = jax.tree.map(lambda *slot: slot, pinned, probes)
            return _run(tied, jax.tree.leaves((given, fixed)), slots)

        _, pull = jax.vjp(lambda *args: run(*args)[0], given, zeros)
        gradients, sensitivities = pull(deltas)
        _, back = jax.vjp(lambda given: run(given, zeros)[1], given)
        _, forth = jax.vjp(lambda u: back(u)[0], zeros)
        return Piece(gradients, sensitivities, forth(v)[0])

    return of


def _run(tied: Tied, args: Sequence[Any], slots: Slots | None) -> tuple[Values, Slots]:
    here = _Tying(tied.closed, slots, tied.inline)
    given = [here.tie(x) if i < tied.leaves else Moving(x, False) for i, x in enumerate(args)]
    outs = here.run(tied.closed, given)
    return [out.value for out in outs], here.ties


class Moving(NamedTuple):
    """An array, and whether it depends on the leaves: nothing else is moved."""

    value: Any
    moves: bool


class _Tying(Interpreter):
    """Evaluates one program in float64 and collects its ties in order, with `slots` added to them."""

    def __init__(self, program: Program, slots: Slots | None, inline: bool) -> None:
        self.branched_on = _BranchedOn(program, inline).found
        self.slots, self.inline, self.ties = slots, inline, Slots()

    def tie(self, value: Any) -> Moving:
        """A value that depends on the leaves; a float becomes a tie and goes to its slot."""
        if is_float(value):
            slot = self._slot()
            self.ties.append(value)
            if slot is not None:
                pinned, probe = slot
                value = value + jax.lax.stop_gradient(pinned - value) + probe
        return Moving(value, True)

    def _slot(self) -> Any:
        """The slot of the next tie, or the slots of the next function that is entered."""
        return None if self.slots is None else self.slots[len(self.ties)]

    def constant(self, const: Array) -> Moving:
        return Moving(REPLAY.constant(const), False)

    def literal(self, literal: core.Literal) -> Moving:
        return Moving(REPLAY.literal(literal), False)

    def equation(self, eqn: core.JaxprEqn, inputs: list[Moving]) -> list[Moving]:
        moves = any(x.moves for x in inputs)
        outs = super().equation(eqn, inputs) if moves else self.operation(eqn, inputs)
        pairs = zip(eqn.outvars, outs, strict=True)
        return [self.tie(out) if moves and var in self.branched_on else Moving(out, moves) for var, out in pairs]

    def operation(self, eqn: core.JaxprEqn, inputs: list[Moving]) -> Values:
        arrays = [x.value for x in inputs]
        keeps_rule = eqn.primitive.name in RULED and not self.inline
        return bind(eqn.primitive, arrays, eqn.params) if keeps_rule else REPLAY.equation(eqn, arrays)

    def call(self, eqn: core.JaxprEqn, inputs: list[Moving]) -> Values:
        program = called(eqn)
        inner = _Tying(program, self._slot(), self.inline)
        outs = inner.run(program, inputs)
        self.ties.append(inner.ties)
        return [out.value for out in outs]

    def ruled(self, eqn: core.JaxprEqn, inputs: list[Moving]) -> Values:
        return self.call(eqn, inputs) if self.inline else self.operation(eqn, inputs)

    def scan(self, eqn: core.JaxprEqn, inputs: list[Moving]) -> Values:
        """Every iteration has its own slots; the carry counts as depending on the leaves, and ties on the way in."""
        scan, slots = Scan.of(eqn.params), self._slot()
        consts, start, xs = scan.parts(inputs)

        def body(carry: Values, row: tuple[Values, Slots | None]) -> tuple[Values, tuple[Values, Slots]]:
            inner = _Tying(scan.body, row[1], self.inline)
            rows = [x._replace(value=value) for x, value in zip(xs, row[0], strict=True)]
            given = [*consts, *(Moving(c, True) for c in carry), *rows]
            pairs = zip(scan.body.jaxpr.invars, given, strict=True)
            entering = [inner.tie(x.value) if x.moves and var in inner.branched_on else x for var, x in pairs]
            new, ys = scan.results([out.value for out in inner.run(scan.body, entering)])
            return like(carry, new), (ys, inner.ties)

        rows = [x.value for x in xs], None if slots is None else slots[PASSES]
        carry, (ys, ties) = scan.loop(body, [jnp.asarray(x.value) for x in start], rows)
        self.ties.append({PASSES: ties})
        return [*carry, *ys]


class _BranchedOn(Interpreter):
    """Collects the variables on which something branches, here or in a function called here, entered or not.

    Instead of an array it has the variable; in a function called here, that of the caller.
    """

    def __init__(self, program: Program, inline: bool) -> None:
        self.inline, self.found = inline, set[core.Var | None]()
        self.run(program, program.jaxpr.invars)

    def constant(self, const: Array) -> None:
        return None

    def literal(self, literal: core.Literal) -> None:
        return None

    def operation(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        inside = (other for part in programs_in(eqn) for other in equations(part))
        if any(other.primitive.name in KINKED for other in (eqn, *inside)):
            self.found.update(inputs)
        return eqn.outvars

    def call(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        super().call(eqn, inputs)
        return eqn.outvars

    def ruled(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        return self.call(eqn, inputs) if self.inline else self.operation(eqn, inputs)

    def scan(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """Has ties of its own, inside."""
        return eqn.outvars


class Sided(NamedTuple):
    """A piece, for one leaf."""

    worth: float  # ⟨g, v⟩; −∞ where g is not finite
    gradient: np.ndarray  # g, of that leaf
    sides: Slots  # where each tie was moved
    shares: Slots  # λ ż of each tie: the part of ⟨g, v⟩ that goes through it


def furthest(
    ask: Callable[[Slots], Sided],
    blocks: list[Block],
    moved: Slots,
    wanted: float,
    spent: Callable[[], bool],
    rng: np.random.Generator,
) -> Sided:
    """A piece whose ⟨g, v⟩ is at least `wanted`, or the greatest that is found, by coordinate ascent.

    The search starts from the pieces that conventions choose: every tie up or down, the first or the last of rivals the
    winner. The share of a tie, λ ż, depends on its side and on those of the ties before and after it. So the ties of
    each block in turn are moved to the opposite side, or up or down if their share is 0, and each takes the side on
    which its share was larger, until nothing improves and several starts have led to the same piece. If no path leads
    through two ties, every start leads to the best.

    `ask` maps sides to the piece there, `moved` is ż off the ties, `spent` tells whether to give up, and `rng` draws
    the sides of ties whose ż is 0.
    """

    def asked(sides: Slots) -> Sided:
        return ask([np.where(side == 0, FAINT * rng.uniform(-1, 1, side.shape), side) for side in sides])

    def climbed(here: Sided) -> Sided:
        while True:
            before = here.worth
            for block, way in itertools.product(blocks, WAYS):
                other = asked(_moved(here, block, way))
                here = max(here, other, asked(_crossed(here, other)), key=_worth)
                if here.worth >= wanted or spent():
                    return here
            if not here.worth > before + SAME * abs(before):
                return here

    largest = max((float(np.abs(move).max(initial=0)) for move in moved), default=0.0)
    along = [_squashed(move, largest) for move in moved]
    ramps = [np.linspace(1.0, 0.5, move.size).reshape(move.shape) for move in moved]
    choices = [along, *([a + b * ramp for ramp in ramps] for a, b in CONVENTIONS)]
    choices += [[rng.choice([-1.0, 1.0], move.shape) for move in moved] for _ in range(AT_RANDOM)]
    starts = [asked(choice) for choice in choices]
    tops = [max(starts, key=_worth)]
    for start in starts:
        best = max(tops, key=_worth)
        if (
            best.worth >= wanted
            or spent()
            or sum(top.worth >= best.worth - SAME * abs(best.worth) for top in tops) > AGREED
        ):
            break
        tops.append(climbed(start))
    return max(tops, key=_worth)


def _worth(found: Sided) -> float:
    return found.worth


def _moved(here: Sided, block: Block, way: float) -> Slots:
    """Sides with those of a block reversed, or moved if their share is 0."""
    sides = list(here.sides)
    for k, part in block.items():
        side, share = sides[k][part], here.shares[k][part]
        sides[k] = sides[k].copy()
        sides[k][part] = -side if way == 0 else np.where(share == 0, way, side)
    return sides


def _crossed(here: Sided, other: Sided) -> Slots:
    """Every tie on the side on which its share was larger, and ahead of its rivals."""
    sides = []
    for a, b, ours, theirs in zip(here.sides, other.sides, here.shares, other.shares, strict=True):
        chosen = np.where(theirs > ours, b, a)
        sides.append(np.where(theirs == ours, chosen, np.sign(chosen) * (HARDER + np.abs(chosen) / HARDER)))
    return sides


def blocks_of(ties: Slots, leaves: int) -> list[Block]:
    """Ties to move together: all; one array after another; those in a scan one iteration after another.

    No path leads through two ties of one array or iteration.
    """
    arrays = jax.tree_util.tree_leaves_with_path(ties)
    blocks: list[Block] = [dict.fromkeys(range(len(arrays)), EVERYWHERE)]
    for k, (path, tie) in enumerate(arrays):
        if k < leaves:  # the leaves come first; one that is branched on may be moved with all others
            continue
        inside = any(getattr(key, "key", None) == PASSES for key in path)
        if inside:
            blocks += [{k: (t,)} for t in range(min(len(tie), MOST_PASSES))]
        else:
            blocks.append({k: EVERYWHERE})
    return blocks


Block = dict[int, Any]  # from the number of an array of ties to the part of it
EVERYWHERE = (...,)
PASSES = "passes"
MOST_PASSES = 32
WAYS = (0.0, 2.0, -2.0)  # reversed; up and down, before all others
CONVENTIONS = ((0.0, 1.0), (1.5, -1.0), (0.0, -1.0), (-1.5, 1.0))  # up, down; the first or the last foremost
AT_RANDOM = 8  # starts
AGREED = 5  # starts that lead to the same piece: it is taken for the best
FAINT = 0.01  # of a side: for ties that ż leaves undecided
HARDER = 2.0  # sides
SAME = 1e-6  # relative: an improvement smaller than this is none
DECADES = 20  # of |ż|, within which the sides keep the order of ż


def _squashed(x: np.ndarray, largest: float) -> np.ndarray:
    """Sides between −1 and 1 in the order of x, at least 0.05 from 0 unless x is 0."""
    size = np.abs(x) / (largest or 1.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.sign(x) * np.clip(1 + np.log10(size) / DECADES, 0.05, 1))
