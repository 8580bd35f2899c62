"""Collects the calls of functions with rules in a program, and some of the values that reach each of them.

Under vmap a call has one example and the program a batch: `levels` gives, for each vmap from the inside out, the axis
of the examples in each array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.sites import Site, Spec
from jaxnn.jaxprs import Values, is_float

KEPT = 8  # values of a call that are kept, of which some are chosen
SAMPLES = 3  # values of a call that are checked
ELEMENTS = 4096  # in all arrays of a call, above which one value is checked: it has enough elements
LARGEST = 2**24  # elements in all arrays of a call, above which no values are kept


class Call(NamedTuple):
    """A program's call of a function with a rule."""

    site: Site  # the call
    values: tuple[Values, ...]  # up to `SAMPLES` lists of NumPy arrays that reached it
    drawn: bool  # whether they were drawn at random, because none reached it


class Collector:
    """The calls of one run, in the order in which they are traced, and some of the values of each."""

    def __init__(self) -> None:
        self.sites: dict[Any, Site] = {}
        self.kept: dict[Any, list[tuple[tuple[Any, ...], Sequence[Any]]]] = {}
        self.seen: dict[Any, int] = {}
        self.rng = np.random.default_rng(0)

    def meet(self, site: Site) -> None:
        """Notes a call that was traced."""
        self.sites.setdefault(site.key, site)

    def take(self, site: Site, levels: tuple[Any, ...], values: Sequence[Any]) -> None:
        """Keeps values that reached a call: the first, the last, and a fair draw of those between."""
        self.meet(site)
        if sum(np.size(value) for value in values) > LARGEST:
            return
        kept, seen = self.kept.setdefault(site.key, []), self.seen.get(site.key, 0)
        self.seen[site.key] = seen + 1
        if len(kept) < KEPT:
            kept.append((levels, values))
        else:
            slot = int(self.rng.integers(1, max(seen, 2)))
            if slot < KEPT - 1:
                kept[slot] = kept[-1]
            kept[-1] = (levels, values)

    def calls(self) -> list[Call]:
        """Every call with values, finite ones if it has any."""
        return [self._call(site) for site in self.sites.values()]

    def _call(self, site: Site) -> Call:
        examples = [
            _one_example(levels, list(map(np.asarray, values)), self.rng)
            for levels, values in self.kept.get(site.key, [])
            for _ in range(SAMPLES if levels else 1)
        ]
        if not examples:
            return Call(site, (drawn(site.every_spec),), drawn=True)
        chosen = tuple(_keys_again(values, site.every_spec) for values in chosen_of(examples))
        return Call(site, chosen, drawn=False)


def chosen_of(examples: Sequence[Values]) -> tuple[Values, ...]:
    """The examples to check: finite ones if any are; only one if it has many elements."""
    finite = [values for values in examples if all(map(_is_finite, values))] or list(examples[:1])
    most = SAMPLES if sum(map(np.size, finite[0])) <= ELEMENTS else 1
    return tuple(finite[i] for i in np.unique(np.linspace(0, len(finite) - 1, most).round().astype(int)))


def _one_example(levels: tuple[Any, ...], values: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    for level in reversed(levels):
        size = next((v.shape[axis] for v, axis in zip(values, level, strict=True) if axis is not None), 1)
        i = int(rng.integers(size)) if size else 0
        values = [v if axis is None else v.take(i, axis) for v, axis in zip(values, level, strict=True)]
    return values


def _is_finite(x: np.ndarray) -> bool:
    return not is_float(x.dtype) or bool(np.isfinite(x.astype(np.float64)).all())


def _keys_again(values: Values, specs: Sequence[Spec]) -> Values:
    """The values, with the numbers of random keys as keys."""
    return [
        jax.random.wrap_key_data(jnp.asarray(value), impl=spec.key) if spec.key is not None else value
        for value, spec in zip(values, specs, strict=True)
    ]


def drawn(specs: Sequence[Spec], seed: int = 0) -> Values:
    """Values of these shapes and dtypes: normal floats, integers 0, booleans True."""
    rng = np.random.default_rng(seed)
    values: Values = []
    for spec in specs:
        if spec.key is not None:
            values.append(jax.random.split(jax.random.key(seed, impl=spec.key), spec.shape))
        elif jnp.issubdtype(spec.dtype, jnp.complexfloating):
            parts = rng.standard_normal((2, *spec.shape))
            values.append((parts[0] + 1j * parts[1]).astype(spec.dtype))
        elif is_float(spec.dtype):
            values.append(rng.standard_normal(spec.shape).astype(spec.dtype))
        else:
            values.append(np.full(spec.shape, spec.dtype == np.bool_, spec.dtype))
    return values
