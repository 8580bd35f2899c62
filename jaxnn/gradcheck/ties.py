"""Ties: the points of a program at which branches meet, and its gradient with each of them given a side of its own.

A tie is a float that a comparison, a maximum or the like looks at, wherever in the program it is made. Each is pinned
to a value a little to one side of its own, whatever the ties before it do; no argument of the function need be able to
move it so. So the pieces that meet at a kink are all of those that a rule composed of local conventions could mean:
relu′(0) = 0 for one unit, 1 for its neighbour.

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

from jaxnn.gradcheck.replay import like, number, step, widen
from jaxnn.jaxprs import CALLS, RULED, Scan, bind, called, equations, is_float, programs_in

KINKED = {
    "abs", "sign", "max", "min", "clamp", "lt", "le", "gt", "ge", "eq", "ne", "lt_to", "le_to",
    "reduce_max", "reduce_min", "reduce_window", "reduce_window_max", "reduce_window_min", "select_and_gather_add",
    "argmax", "argmin", "cummax", "cummin", "sort", "top_k", "floor", "ceil", "round", "rem",
}  # fmt: skip
Slots = list[Any]  # an array for every tie, in the order in which they are made; a list for those of a function inside


class Piece(NamedTuple):
    """The gradient on one side of every tie.

    Attributes:
        gradients: one for each leaf.
        sensitivities: λ, like the slots.
        moved: ż for the direction that was asked for.
    """

    gradients: list[Any]
    sensitivities: Slots
    moved: Slots


class Tied(NamedTuple):
    """A traced `(leaves, fixed) -> outputs`, whose ties can be moved.

    Attributes:
        closed: the jaxpr.
        leaves: how many of its arguments are leaves; each counts as a tie, for kinks that no comparison makes.
        inline: whether to open functions with custom rules: where their rules do not run in float64.
    """

    closed: Any
    leaves: int
    inline: bool


def values(tied: Tied) -> Callable[[Any], Slots]:
    """`(leaves, fixed) -> ties`."""
    return lambda point: _run(tied, jax.tree.leaves(point), None)[1]


def piece(tied: Tied) -> Callable[[Any, Slots, list[Any]], Piece]:
    """`((leaves, fixed, δ), values of the ties, v) -> Piece`, in float64 arithmetic.

    ż is the transpose of the ties' own vjp: forward mode would stop at a custom_vjp.
    """

    def of(point: Any, pinned: Slots, v: list[Any]) -> Piece:
        given, fixed, deltas = point
        zeros = jax.tree.map(jnp.zeros_like, pinned)

        def run(given: list[Any], probes: Slots) -> tuple[list[Any], Slots]:
            slots = jax.tree.map(lambda *slot: slot, pinned, probes)
            return _run(tied, jax.tree.leaves((given, fixed)), slots)

        _, pull = jax.vjp(lambda *args: run(*args)[0], given, zeros)
        gradients, sensitivities = pull(deltas)
        _, back = jax.vjp(lambda given: run(given, zeros)[1], given)
        _, forth = jax.vjp(lambda u: back(u)[0], zeros)
        return Piece(gradients, sensitivities, forth(v)[0])

    return of


def _run(tied: Tied, args: Sequence[Any], slots: Slots | None) -> tuple[list[Any], Slots]:
    closed = tied.closed
    leaves = set(closed.jaxpr.invars[: tied.leaves])
    return _evaluate(closed.jaxpr, closed.consts, args, slots, leaves, leaves, tied.inline)


def _evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    slots: Slots | None,
    varying: set[Any],
    entering: set[Any],
    inline: bool,
) -> tuple[list[Any], Slots]:
    """The outputs and the ties, in the order in which they are made.

    Args:
        jaxpr: the program.
        consts: its constants.
        args: its arguments.
        slots: what to add to the ties; None for nothing.
        varying: the arguments that depend on the leaves: nothing else is moved.
        entering: the arguments that are ties here: nobody outside has moved them.
        inline: whether to open functions with custom rules.
    """
    tied, varying, ties = _branched_on(jaxpr, inline), set(varying), Slots()

    def placed(var: Any, value: Any) -> Any:
        ties.append(value)
        if slots is None:
            return value
        pinned, probe = slots[len(ties) - 1]
        return value + jax.lax.stop_gradient(pinned - value) + probe

    env: dict[Any, Any] = dict(zip(jaxpr.constvars, widen(list(consts)), strict=True))
    for var, arg in zip(jaxpr.invars, args, strict=True):
        env[var] = placed(var, arg) if var in entering and is_float(var.aval) else arg

    def read(atom: Any) -> Any:
        if not isinstance(atom, core.Literal):
            return env[atom]
        return number(atom)

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        moves = [not isinstance(atom, core.Literal) and atom in varying for atom in eqn.invars]
        if any(moves) and (eqn.primitive.name == "scan" or _opened(eqn, inline)):
            mine = None if slots is None else slots[len(ties)]
            outs, found = (_scan if eqn.primitive.name == "scan" else _call)(eqn, values, mine, moves, inline)
            ties.append(found)
        elif eqn.primitive.name in RULED and not inline:
            outs = bind(eqn.primitive, values, eqn.params)
        else:
            outs = step(eqn, values)
        for var, out in zip(eqn.outvars, outs, strict=True):
            if any(moves):
                varying.add(var)
            env[var] = placed(var, out) if var in tied and any(moves) and is_float(var.aval) else out
    return [read(atom) for atom in jaxpr.outvars], ties


def _call(eqn: Any, args: list[Any], slots: Slots | None, moves: list[bool], inline: bool) -> tuple[list[Any], Slots]:
    inner = called(eqn)
    varying = {var for var, there in zip(inner.jaxpr.invars, moves, strict=True) if there}
    return _evaluate(inner.jaxpr, inner.consts, args, slots, varying, set(), inline)


def _scan(eqn: Any, args: list[Any], slots: Any, moves: list[bool], inline: bool) -> tuple[list[Any], Any]:
    """Every pass has slots of its own; what is carried counts as varying."""
    scan = Scan.of(eqn.params)
    inner, consts, (given, start, rows) = scan.body.jaxpr, scan.body.consts, scan.parts(args)
    carried = scan.parts(inner.invars).carry
    varying = {var for var, there in zip(inner.invars, moves, strict=True) if there}.union(carried)
    entering = varying & _branched_on(inner, inline)

    def body(carry: list[Any], row: tuple[list[Any], Slots | None]) -> tuple[list[Any], tuple[list[Any], Slots]]:
        x, mine = row
        outs, found = _evaluate(inner, consts, [*given, *carry, *x], mine, varying, entering, inline)
        handed_on, ys = scan.results(outs)
        return like(carry, handed_on), (ys, found)

    xs = (rows, None if slots is None else slots[PASSES])
    carry, (outs, ties) = jax.lax.scan(
        body, [jnp.asarray(x) for x in start], xs, length=scan.length, reverse=scan.reverse
    )
    return [*carry, *outs], {PASSES: ties}


def _opened(eqn: Any, inline: bool) -> bool:
    """Functions with custom rules are opened only where nothing else will do."""
    return eqn.primitive.name in CALLS or (inline and eqn.primitive.name in RULED)


def _branched_on(jaxpr: Any, inline: bool) -> set[Any]:
    """The variables that something branches on: here, in a function called here, or in one that is not opened."""
    found: set[Any] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KINKED:
            found.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
        elif _opened(eqn, inline):
            inner = called(eqn).jaxpr
            below = _branched_on(inner, inline)
            pairs = zip(inner.invars, eqn.invars, strict=True)
            found.update(atom for var, atom in pairs if var in below and not isinstance(atom, core.Literal))
        elif eqn.primitive.name != "scan" and any(
            other.primitive.name in KINKED for part in programs_in(eqn) for other in equations(part)
        ):
            found.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
    return found


# ---------------------------------------------------------------- the piece that goes furthest


class Sided(NamedTuple):
    """A piece, seen from one leaf.

    Attributes:
        worth: ⟨g, v⟩; −∞ where g is not finite.
        gradient: g, of that leaf.
        sides: where each tie was moved.
        shares: λ ż of each tie: what goes through it of ⟨g, v⟩.
    """

    worth: float
    gradient: np.ndarray
    sides: Slots
    shares: Slots


def furthest(
    ask: Callable[[Slots], Sided],
    blocks: list[Block],
    moved: Slots,
    wanted: float,
    spent: Callable[[], bool],
    rng: np.random.Generator,
) -> Sided:
    """A piece whose ⟨g, v⟩ is at least `wanted`, or the greatest that is found, each tie on the side that suits it.

    First the pieces that conventions choose: every tie up or down, the first or the last of rivals the winner. Then,
    since what goes through a tie, λ ż, depends on its own side and on those of the ties before and after it, the ties
    of one block after another are moved, against where they were, or up or down where they carry nothing, and each
    takes the side on which it carried more; until nothing improves, and several starts have led to the same. Where no
    path leads through two ties, every start leads to the best.

    Args:
        ask: from sides to the piece there.
        blocks: see `blocks_of`.
        moved: ż off the ties.
        wanted: where to stop.
        spent: whether to give up.
        rng: of the sides where ż says nothing.
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
    """Sides with those of a block reversed, or moved where they carry nothing."""
    sides = list(here.sides)
    for k, part in block.items():
        side, share = sides[k][part], here.shares[k][part]
        sides[k] = sides[k].copy()
        sides[k][part] = -side if way == 0 else np.where(share == 0, way, side)
    return sides


def _crossed(here: Sided, other: Sided) -> Slots:
    """Every tie on the side on which it carried more, and before its rivals."""
    sides = []
    for a, b, ours, theirs in zip(here.sides, other.sides, here.shares, other.shares, strict=True):
        chosen = np.where(theirs > ours, b, a)
        sides.append(np.where(theirs == ours, chosen, np.sign(chosen) * (HARDER + np.abs(chosen) / HARDER)))
    return sides


def blocks_of(ties: Any, leaves: int) -> list[Block]:
    """Which ties to move at once: all; one array after another; of those inside a scan, one pass after another.

    No path leads through two ties of one array, or of one pass.
    """
    arrays = jax.tree_util.tree_leaves_with_path(ties)
    blocks: list[Block] = [dict.fromkeys(range(len(arrays)), EVERYWHERE)]
    for k, (path, tie) in enumerate(arrays):
        if k < leaves:  # they come first; one that is branched on may be moved with all others
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
AGREED = 5  # starts that lead to the same: there is no better
FAINT = 0.01  # of a side: breaks ties that ż leaves
HARDER = 2.0  # sides
SAME = 1e-6  # relative: an improvement smaller than this is none
DECADES = 20  # of |ż|, within which the order of sides is that of ż


def _squashed(x: np.ndarray, largest: float) -> np.ndarray:
    """Sides between −1 and 1 in the order of x, none of them nearer 0 than 0.05 unless x is 0."""
    size = np.abs(x) / (largest or 1.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.sign(x) * np.clip(1 + np.log10(size) / DECADES, 0.05, 1))
