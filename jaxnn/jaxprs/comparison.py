"""Programs compared: one function traced twice, or in two precisions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.jaxprs.programs import Program, equations, is_float, is_program, spec_of, with_constants
from jaxnn.jaxprs.sources import source_of


def first_difference(ours: Program, theirs: Program) -> str | None:
    """The first operation in which two programs differ, or None: a pure function traced twice has none."""
    for a, b in zip(ours.consts, theirs.consts, strict=False):
        known = a is not b and is_float(a) and is_float(b) and not isinstance(a, jax.core.Tracer)
        if known and not np.array_equal(a, b, equal_nan=True):
            return "a constant"
    pairs = itertools.zip_longest(equations(ours.jaxpr), equations(theirs.jaxpr))
    return next((source_of(a or b) for a, b in pairs if a is None or b is None or _sketch(a) != _sketch(b)), None)


def _sketch(eqn: core.JaxprEqn) -> tuple[str, ...]:
    """An equation without its variables' names: its primitive, its literals and the types of its outputs."""
    literals = [str(atom.val) for atom in eqn.invars if isinstance(atom, core.Literal)]
    return eqn.primitive.name, *literals, *(str(var.aval) for var in eqn.outvars)


def alike(low: Program, high: Program) -> bool:
    """True if two programs without constants are one in two precisions; their literals may differ by a rounding."""
    ours, theirs = low.jaxpr, high.jaxpr
    if len(ours.eqns) != len(theirs.eqns) or ours.constvars or theirs.constvars:
        return False
    paired = dict(zip(ours.invars, theirs.invars, strict=False))

    def same(a: Any, b: Any) -> bool:
        if not isinstance(a, core.Literal) or not isinstance(b, core.Literal):
            return not isinstance(a, core.Literal) and paired.get(a) is b
        if not is_float(a.aval) or not is_float(b.aval):
            return str(a.val) == str(b.val)
        u = float(jnp.finfo(spec_of(a).dtype).eps)
        return bool(np.isclose(np.float64(a.val), np.float64(b.val), rtol=u, atol=0, equal_nan=True))

    for a, b in zip(ours.eqns, theirs.eqns, strict=True):
        if a.primitive is not b.primitive or not _same_params(a.params, b.params):
            return False
        if not all(same(x, y) for x, y in zip(a.invars, b.invars, strict=True)):
            return False
        paired.update(zip(a.outvars, b.outvars, strict=True))
    return all(same(x, y) for x, y in zip(ours.outvars, theirs.outvars, strict=True))


def _same_params(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    def normal(value: Any) -> Any:
        return "float" if isinstance(value, (np.dtype, type)) and is_float(value) else value

    for key in a:
        x, y = normal(a[key]), normal(b.get(key))
        if is_program(x) and is_program(y):
            low, high = with_constants(x), with_constants(y)
            if low.consts or not alike(low, high):
                return False
        elif key != "name" and str(x) != str(y):
            return False
    return True
