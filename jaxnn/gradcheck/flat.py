"""A user's function and rule, of pytrees, as functions of lists of floats.

A complex number is two floats, its real and its imaginary part. JAX pairs a cotangent δ with a change dy as Re(δ dy),
without a conjugate: δ = ∂C/∂Re y − i ∂C/∂Im y, so that a descent step for a real function of z = x + iy goes against
the conjugate of its gradient. Gradients and δs of complex numbers follow this convention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.aliases import Array, DType, Tree
from jaxnn.gradcheck.fitting import (
    aligned,
    as_tuple,
    check_deterministic,
    check_output,
    gradients_given,
    is_inexact,
    shape_of,
    zero_cotangent,
)
from jaxnn.gradcheck.programs import Problem
from jaxnn.jaxprs import argument_names, is_float

CONJUGATE = -1  # the sign of the imaginary part of δ and of gradients, as JAX pairs them
Backward = Callable[[tuple[Any, ...], Any], Any]


class Settings(NamedTuple):
    """The settings of a check: the arguments of those names of `gradcheck.function`."""

    dtypes: Sequence[DType] | None
    cotangents: int
    order: int
    forward_error: float
    surrogate: bool
    seed: int

    @property
    def said(self) -> str:
        """The remark on them in the title of a report."""
        said = f", forward_error={self.forward_error:g}" if self.forward_error else ""
        return f"{said}, as a surrogate: without differences" if self.surrogate else said


class Case(NamedTuple):
    """A function and its rule at one point, in one precision; `custom` if f has a rule itself, and a reference none."""

    place: str
    f: Callable[..., Tree]
    reference: Callable[..., Tree]
    backward: Backward
    forward: Callable[..., tuple[Tree, Tree]] | None
    args: Sequence[Any]
    settings: Settings
    custom: bool


class Flat(NamedTuple):
    """A case as functions of lists of floats."""

    problem: Problem  # with the first cotangent
    deltas: list[list[Array]]  # all cotangents
    outputs: tuple[str, ...]  # names of the outputs
    # (leaves, fixed) -> float outputs of f, which may be another function than the problem's
    values: Callable[[list[Array], Any], list[Array]]
    # what else gives the same outputs: f where there is a reference, or forward; None if nothing
    again: Callable[[list[Array], Any], list[Array]] | None


def flatten(case: Case) -> Flat:
    """Checks that f, backward and args fit together, and separates floats from all else."""
    f, args, settings = case.f, case.args, case.settings
    out = check_output(f, case.reference, case.forward, args)
    check_deterministic(f, args)
    point, output = _Floats.of(args), _Floats.of(out, CONJUGATE)
    specs = jax.eval_shape(lambda: _Floats.of(output.zeros()).parts())
    deltas = [cotangents(specs, settings.seed + k, plain=k == 0) for k in range(settings.cotangents)]

    def pulled(values: Sequence[Array], rest: list[Any], deltas: list[Array]) -> Any:
        at = point.joined(values, rest)
        kept = at if case.forward is None else case.forward(*at)[1]
        return case.backward(kept, output.joined(deltas, jax.tree.leaves(output.zeros())))

    start, rest = point.parts(), point.rest()
    given = gradients_given(f, shape_of(lambda: pulled(start, rest, deltas[0]), (), "backward"), args)
    chosen = [there for there, leaf in zip(given, point.inexact, strict=True) for _ in _part_names(leaf)]
    held = {k: leaf for k, leaf in enumerate(start) if not chosen[k]}

    def joined(values: list[Array], held: dict[int, Array]) -> list[Array]:
        left = iter(values)
        return [held[k] if k in held else next(left) for k in range(len(start))]

    def rule(values: list[Array], fixed: Any, deltas: list[Array]) -> list[Array]:
        gradients = aligned(as_tuple(pulled(joined(values, fixed[1]), fixed[0], deltas), args), args)
        pairs = zip(point.inexact, gradients, strict=True)
        return [part for leaf, g in pairs if g is not None for part in _gradient_parts(leaf, jnp.asarray(g))]

    def at(g: Callable[..., Tree]) -> Callable[[list[Array], Any], list[Array]]:
        return lambda values, fixed: _Floats.of(g(*point.joined(joined(values, fixed[1]), fixed[0]))).parts()

    names = point.names([f"{argument_names(f, len(args))[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
                         for path, _ in jax.tree_util.tree_leaves_with_path(args)])  # fmt: skip
    problem = Problem(
        case.place,
        "gradient",
        tuple(name for name, there in zip(names, chosen, strict=True) if there),
        at(case.reference),
        rule,
        [leaf for leaf, there in zip(start, chosen, strict=True) if there],
        (rest, held),
        deltas[0],
        forward_error=settings.forward_error,
        surrogate=settings.surrogate,
    )
    forward, again = case.forward, None if case.reference is f else at(f)
    if forward is not None:
        again = at(lambda *args: forward(*args)[0])
    labels = [f"output{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_leaves_with_path(out)]
    return Flat(problem, deltas, tuple(output.names(labels)), at(f), again)


class _Floats(NamedTuple):
    """A pytree whose real and complex floats are to be a list; `sign` is that of imaginary parts."""

    leaves: list[Any]
    tree: Any
    sign: int

    @classmethod
    def of(cls, tree: Tree, sign: int = 1) -> _Floats:
        return cls(*jax.tree.flatten(tree), sign)

    @property
    def inexact(self) -> list[Array]:
        """The leaves that are floats."""
        return [leaf for leaf in self.leaves if is_inexact(leaf)]

    def parts(self) -> list[Array]:
        """The floats."""
        return [part for leaf in self.leaves for part in _parts(leaf, self.sign)]

    def rest(self) -> list[Any]:
        """All other leaves, and None in place of floats."""
        return [None if is_inexact(leaf) else leaf for leaf in self.leaves]

    def zeros(self) -> Tree:
        """Zeros as a cotangent of the tree."""
        return jax.tree.unflatten(self.tree, list(map(zero_cotangent, self.leaves)))

    def joined(self, floats: Sequence[Array], rest: list[Any]) -> Tree:
        """The tree with other floats and other leaves."""
        left = iter(floats)
        filled = [_joined_parts(leaf, left, self.sign) if is_inexact(leaf) else other
                  for leaf, other in zip(self.leaves, rest, strict=True)]  # fmt: skip
        return jax.tree.unflatten(self.tree, filled)

    def names(self, labels: Sequence[str]) -> list[str]:
        """A name for each float, from one for each leaf."""
        return [f"{label}{part}" for label, leaf in zip(labels, self.leaves, strict=True) for part in _part_names(leaf)]


def _part_names(leaf: Array) -> list[str]:
    if not is_inexact(leaf):
        return []
    return [""] if is_float(leaf) else [".real", ".imag"]


def _parts(leaf: Array, sign: int) -> list[Array]:
    """A float by itself, a complex number as its real part and its imaginary part times the sign; none of the rest."""
    if is_float(leaf):
        return [leaf]
    return [jnp.real(leaf), sign * jnp.imag(leaf)] if is_inexact(leaf) else []


def _joined_parts(like: Array, left: Iterator[Array], sign: int) -> Array:
    """The inverse of `_parts`: a leaf like that, from the next floats."""
    if is_float(like):
        return next(left)
    real, imaginary = next(left), next(left)
    return jax.lax.complex(real, sign * imaginary)


def _gradient_parts(leaf: Array, g: Array) -> list[Array]:
    """The gradient of a leaf as floats; a real gradient of a complex leaf has imaginary part 0."""
    return [g] if is_float(leaf) else _parts(g + 0j if is_float(g) else g, CONJUGATE)


def cotangents(outputs: list[Any], seed: int, *, plain: bool) -> list[Any]:
    """δ for every float output: 1 for a single number's first, else normal numbers."""
    rng = np.random.default_rng(seed)
    floats = [leaf for leaf in outputs if is_float(leaf)]
    if plain and len(floats) == 1 and floats[0].shape == ():
        return [jnp.ones((), floats[0].dtype)]
    return [jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) for leaf in floats]
