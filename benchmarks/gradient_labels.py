"""Which gradients are judged, and the proof of what each is called: the part of gradients.py that knows no check.

A right gradient has been compared with `jax.grad` in float64, and a wrong one differs from that, in float64, by more
than `PLANTED` of its leaf. What float64 itself cannot resolve at the point, by the error of a last bit in the
arguments, is allowed for. At a kink every slope between those of the two sides is right. What overflows in the case's
own precision is left out. Everything follows from the seed and a case's name: precision / kind / family / number.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gradient_cases import BRANCHES, FAULTS, LARGE_FAMILIES, ONLY_HERE, OWN, Draw, Family
from gradient_cases import FAMILIES as PLAIN_FAMILIES
from gradient_hard_cases import HARD_FAMILIES

FAMILIES = [*PLAIN_FAMILIES, *HARD_FAMILIES]

ALL_RIGHT = "right"
KINDS = [*FAULTS, *BRANCHES, *OWN]

AGREE = 1e-9  # of a leaf's largest element: a right gradient is this near to jax.grad, in float64
CONDITIONED = 64  # times what an error of the last bit in the arguments does to jax.grad: its own conditioning
PLANTED = 1e-7  # of a leaf's largest element: a wrong gradient is at least this far off
ALIVE = 1e-2  # of a leaf's largest element: an element that a fault may single out
ZERO = 1e-9  # of the largest gradient: what an invariance makes 0 is below
SEEN = 0.05  # of a leaf's largest element: same and other random numbers, told apart in low precision
ASIDE = 1e-7  # relative: off a kink, on the same side
ATTEMPTS = 30  # draws of a case, until nothing overflows and the fault shows


class Case(NamedTuple):
    """A function, arguments and a rule for its gradient that is right or wrong."""

    name: str
    family: Family
    kind: str
    args: tuple[Any, ...]
    backward: Callable[[tuple[Any, ...], Any], tuple[Any, ...]]

    @property
    def wrong(self) -> bool:
        return self.kind != ALL_RIGHT

    @property
    def dtype(self) -> str:
        return self.name.split(" / ")[0]

    @property
    def row(self) -> str:
        """Its row in the table."""
        if self.wrong:
            return self.kind
        family = self.family
        known = {
            "as meant, not as differences": "surrogate" in dict(family.options),
            "approximate": "forward_error" in dict(family.options),
            "precision fixed inside": family.twin is not None,
            "at kinks": family.kink is not None,
            "random numbers inside": family.random,
        }
        return f"{ALL_RIGHT}, {next((where for where, here in known.items() if here), 'others')}"


# ---------------------------------------------------------------- which cases


def names(dtype: str, count: int) -> Iterator[str]:
    """The names of as many right cases and as many wrong ones: families and kinds of faults take turns."""
    families = [family for family in [*FAMILIES, *LARGE_FAMILIES] if dtype in family.dtypes]
    for number in range(count):
        round_, place = divmod(number, len(families))
        yield f"{dtype} / {ALL_RIGHT} / {families[place].name} / {round_}"
    for number in range(count):
        round_, place = divmod(number, len(KINDS))
        able = [family for family in families if _fits(KINDS[place], family)]
        turn, which = divmod(round_, len(able))
        yield f"{dtype} / {KINDS[place]} / {able[which].name} / {turn}"


def _fits(kind: str, family: Family) -> bool:
    if kind in OWN:
        return kind in family.own
    return (family in LARGE_FAMILIES) == kind.endswith("in 10,000")


def case(name: str, seed: int) -> Case:
    """The case of a name, drawn again until its label is verified.

    Raises:
        AssertionError: if a right gradient is not, or no draw lets the fault show.
        ValueError: if there is no such case.
    """
    try:
        dtype, kind, family_name, _ = name.split(" / ")
        family = next(family for family in [*FAMILIES, *LARGE_FAMILIES] if family.name == family_name)
    except (ValueError, StopIteration):
        raise ValueError(f"no case {name!r}; names are precision / kind / family / number") from None
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    with jax.enable_x64(dtype == "float64"):
        for _ in range(ATTEMPTS):
            scale = 10 ** rng.uniform(*family.scales)
            args = rounded(family.make(Draw(rng, scale)), jnp.dtype(dtype))
            backward = _verified(family, kind, args, rng)
            if backward is not None:
                return Case(name, family, kind, args, backward)
    raise AssertionError(f"{name}: no draw in {ATTEMPTS} shows the fault without overflow")


def rounded(args: Any, dtype: Any) -> Any:
    """Floats in the precision given; integers and keys as they are."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if is_float(a) else jnp.asarray(a), args)


def is_float(tree: Any) -> bool:
    """True for float arrays and trees of them."""
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tree))


# ---------------------------------------------------------------- what is planted, and that it is


def planted(family: Family, kind: str, leaf: int, at: tuple[int, ...], dtype: Any) -> Callable[..., Any]:
    """The family's rule with a fault: its own one, or one in a gradient leaf, perhaps in one precision only."""
    if kind == ALL_RIGHT:
        return family.backward
    if kind in OWN:
        return functools.partial(family.backward, fault=kind)
    edit = FAULTS[kind.removeprefix(ONLY_HERE)]
    everywhere = not kind.startswith(ONLY_HERE)

    def backward(args: tuple[Any, ...], delta: Any) -> tuple[Any, ...]:
        leaves, tree = jax.tree.flatten(family.backward(args, delta))
        if everywhere or leaves[leaf].dtype == dtype:
            leaves[leaf] = edit(leaves[leaf], at)
        return jax.tree.unflatten(tree, leaves)

    return backward


def _verified(family: Family, kind: str, args: Any, rng: np.random.Generator) -> Callable[..., Any] | None:
    """The rule, if at this point its label can be shown and nothing overflows.

    Raises:
        AssertionError: if the family's own rule, without a fault, is not the gradient.
    """
    dtype = next(leaf.dtype for leaf in jax.tree.leaves(args) if is_float(leaf))
    delta = _cotangent(family.f, args, rng)
    low, low_auto = (_leaves(side) for side in _both(family, "")(args, delta))
    if not all(np.isfinite(leaf).all() for leaf in [*low, *low_auto]):
        return None
    reference = family if family.twin is None else family._replace(f=family.twin[0], backward=family.twin[1])
    with jax.enable_x64(True):
        wide, wide_delta = rounded((args, delta), jnp.float64)
        hand = _leaves(_both(reference, "")(wide, wide_delta)[0])
        sides = [_leaves(side) for side in _sides(reference, wide, wide_delta)]
        largest = max(map(_largest, hand))
        assert all(_largest(side[k]) <= ZERO * largest for side in [hand, *sides] for k in family.zero)
        sides = [_without(family, side, hand) for side in sides]
        noise = 0.0 if family.kink else _conditioning(reference, wide, wide_delta, sides[0], rng)
        off = _outside(hand, sides, family.joint)
        assert max(off) <= AGREE + CONDITIONED * noise, f"{family.name} is off by {off} at {args}"
        if family.random and max(_outside(low, [low_auto], False)) >= SEEN:  # a sum that cancels: cannot be shown
            return None
        leaf = int(rng.choice([k for k in range(len(hand)) if k not in family.zero]))
        alive = [np.abs(g) >= ALIVE * _largest(g) for g in (hand[leaf], low[leaf])]
        at = tuple(map(int, rng.choice(np.argwhere(alive[0] & alive[1]))))
        if kind == ALL_RIGHT:
            return family.backward
        if kind in OWN:
            wrong = _leaves(_both(reference, kind)(wide, wide_delta)[0])
        else:
            wrong = [*hand]
            wrong[leaf] = np.asarray(FAULTS[kind.removeprefix(ONLY_HERE)](jnp.asarray(hand[leaf]), at))
        if max(_outside(wrong, sides, family.joint)) <= PLANTED + CONDITIONED * noise:
            return None
    if family.random and kind in OWN:
        low_wrong = _leaves(_both(family, kind)(args, delta)[0])
        if max(_outside(low_wrong, [low_auto], False)) < SEEN:
            return None
    return planted(family, kind, leaf, at, dtype)


def _without(family: Family, leaves: list[np.ndarray], others: list[np.ndarray]) -> list[np.ndarray]:
    """Gradients, with others' in the place of those that are 0 but for rounding."""
    return [others[k] if k in family.zero else leaf for k, leaf in enumerate(leaves)]


def _cotangent(f: Callable[..., Any], args: Any, rng: np.random.Generator) -> Any:
    shapes = jax.eval_shape(f, *args)
    return jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), y.dtype), shapes)


@functools.cache
def _both(family: Family, fault: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compiled (args, delta) -> gradients by hand, by jax.vjp; None where an argument has none."""

    def both(args: Any, delta: Any) -> tuple[Any, Any]:
        floats = [a for a in args if is_float(a)]
        _, pull = jax.vjp(lambda *floats: family.f(*merged(args, floats)), *floats)
        return family.backward(args, delta, fault=fault), pull(delta)

    return jax.jit(both)


def merged(args: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
    """The arguments, those of floats replaced."""
    rest = iter(floats)
    return [next(rest) if is_float(a) else a for a in args]


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]


def _sides(family: Family, args: Any, delta: Any) -> list[Any]:
    """jax.vjp's gradients at the point; at kinks, those of both sides."""
    auto = _both(family, "")
    if family.kink is None:
        return [auto(args, delta)[1]]
    step = family.kink(*args)
    return [
        auto(jax.tree.map(lambda x, d: x + sign * ASIDE * d, args, step), delta)[1]  # noqa: B023
        for sign in (-1, 1)
    ]


def _conditioning(family: Family, args: Any, delta: Any, auto: list[np.ndarray], rng: np.random.Generator) -> float:
    """How far jax.grad moves, of its leaf's largest element, when the arguments' last bits do."""

    def jitter(x: Any) -> Any:
        return x * (1 + 4 * 2.0**-53 * rng.choice([-1.0, 1.0], x.shape)) if is_float(x) else x

    moved = _without(family, _leaves(_both(family, "")(jax.tree.map(jitter, args), delta)[1]), auto)
    return max(_outside(moved, [auto], False))


def _outside(hand: list[np.ndarray], sides: list[list[np.ndarray]], joint: bool) -> list[float]:
    """How far each leaf's worst element is from what is allowed, in units of the leaf's largest element.

    Allowed is what lies between the sides: for each element by itself, or for each row as a whole.
    """
    distances = []
    for h, *between in zip(hand, *sides, strict=True):
        left, right = between[0], between[-1]
        span, ahead = right - left, h - left
        if joint:
            squares, along = (span**2).sum(-1, keepdims=True), (ahead * span).sum(-1, keepdims=True)
        else:
            squares, along = span**2, ahead * span
        share = np.clip(np.divide(along, squares, out=np.zeros_like(along), where=squares > 0), 0, 1)
        scale = max(_largest(left), _largest(right), np.finfo(np.float32).tiny)
        distances.append(float(np.abs(ahead - share * span).max()) / scale)
    return distances


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max())
