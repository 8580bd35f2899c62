"""Programs replayed in float64 arithmetic, and the parts of a program that keep float64 from getting through.

A replay gives what a low-precision program would have given without rounding: the same operations on the same inputs,
with the same literals and the same random bits, and every float in float64. Casts between floats become the identity.
What cannot be opened (a callback, a bit cast, a custom call) runs in its own precision, and its result is widened.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.aliases import Array, DType, Tree
from jaxnn.jaxprs import (
    Cond,
    Interpreter,
    Program,
    Scan,
    Values,
    While,
    bind,
    captured,
    equations,
    in_form_of,
    is_float,
    is_program,
    programs_in,
    source_of,
    spec_of,
    with_constants,
)

RANDOM = {"random_bits", "rng_uniform", "rng_bit_generator", "random_gamma", "threefry2x32"}
CALLBACKS = {"pure_callback", "io_callback", "ffi_call", "custom_call", "pallas_call"}
NOT_THE_USERS = ("<frozen", *(f"{Path(path).parent}{os.sep}" for path in (jax.__file__, np.__file__, __file__)))
SHORT_DECIMAL = 11  # characters
AS_THEY_ARE = CALLBACKS | {"bitcast_convert_type", "shard_map"}  # run in the precision for which they were written


def x64_is_on() -> bool:
    """True if this thread currently makes 64-bit arrays."""
    return jnp.zeros(()).dtype == jnp.float64


def widen(tree: Tree) -> Tree:
    """The same tree with its floats in float64 and its complex numbers in complex128; under enable_x64."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, _wide(leaf)) if _has_precision(leaf) else leaf, tree)


def _has_precision(x: Any) -> bool:
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.inexact))


def _wide(x: Any) -> np.dtype:
    """The widest dtype of its kind: float64, or complex128 for the complex numbers that a program may use inside."""
    return np.dtype("float64" if is_float(x) else "complex128")


# ---------------------------------------------------------------- replay


class Replay(Interpreter):
    """Evaluates a program in float64 arithmetic; under enable_x64, with floats given as float64."""

    def constant(self, const: Array) -> Array:
        return widen(const)

    def literal(self, literal: core.Literal) -> Any:
        dtype = spec_of(literal).dtype
        if _has_precision(dtype):
            return _wide(dtype).type(literal.val)
        return literal.val if dtype == jax.dtypes.float0 else np.asarray(literal.val, dtype)

    def ruled(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        return self.call(eqn, inputs)

    def operation(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        name, params = eqn.primitive.name, eqn.params
        if name == "convert_element_type" and is_float(eqn.invars[0].aval) and is_float(params["new_dtype"]):
            return inputs
        if name == "reduce_precision":
            return inputs[:1]
        if name in AS_THEY_ARE:
            return _bind_as_it_is(eqn, inputs)
        try:
            return bind(eqn.primitive, inputs, {key: _widened(value) for key, value in params.items()})
        except (TypeError, ValueError, NotImplementedError):  # a primitive with a fixed precision
            return _bind_as_it_is(eqn, inputs)

    def scan(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        scan = Scan.of(eqn.params)
        consts, start, xs = scan.parts(inputs)

        def body(carry: Values, x: Values) -> tuple[Values, Values]:
            new, ys = scan.results(self.run(scan.body, [*consts, *carry, *x]))
            return like(carry, new), ys

        carry, ys = scan.loop(body, _arrays(start), xs)
        return [*carry, *ys]

    def while_loop(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        loop, test = While.of(eqn.params), Replay()
        test_consts, body_consts, start = loop.parts(inputs)
        lanes = loop.test.out_avals[0].shape  # under vmap each has a test of its own

        def going(carry: Values) -> Array:
            return test.run(loop.test, [*test_consts, *carry])[0]

        def body(carry: Values) -> Values:
            new = like(carry, self.run(loop.body, [*body_consts, *carry]))
            if not lanes:
                return new
            goes_on = going(carry)
            spread = [goes_on.reshape(lanes + (1,) * (np.ndim(c) - len(lanes))) for c in carry]
            return [jnp.where(on, b, a) for on, a, b in zip(spread, carry, new, strict=True)]

        return jax.lax.while_loop(lambda carry: jnp.any(going(carry)), body, _arrays(start))

    def cond(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        def branch(program: Program) -> Callable[..., Values]:
            return lambda *args: _arrays(self.run(program, args))

        index, *operands = inputs
        return list(jax.lax.switch(index, list(map(branch, Cond.of(eqn.params).branches)), *_arrays(operands)))


def replay(closed: Program) -> Callable[..., Values]:
    """A program as a function in float64 arithmetic; call it under enable_x64, with floats given as float64."""
    return lambda *args: Replay().run(closed, args)


def _bind_as_it_is(eqn: core.JaxprEqn, inputs: Values) -> Values:
    narrow = [
        jnp.asarray(x, spec_of(v).dtype) if _has_precision(v.aval) else x
        for x, v in zip(inputs, eqn.invars, strict=True)
    ]
    return list(widen(bind(eqn.primitive, narrow, eqn.params)))


def _widened(value: Any) -> Any:
    """A parameter of an operation, with its dtypes replaced by float64."""
    if is_program(value):  # how scatter-add combines two elements
        return in_form_of(value, _wide_program(with_constants(value)))
    if isinstance(value, tuple) and any(map(is_program, value)):
        widened = map(_widened, value)  # the four functions of a linear solver
        return type(value)(*widened) if hasattr(value, "_fields") else tuple(widened)
    if isinstance(value, (np.dtype, type)) and _has_precision(value):
        return _wide(value)
    return value


def _wide_program(closed: Program) -> Program:
    avals = closed.in_avals
    specs = [jax.ShapeDtypeStruct(a.shape, _wide(a) if _has_precision(a) else a.dtype) for a in avals]
    return jax.make_jaxpr(replay(closed))(*specs)


def _arrays(values: Sequence[Any]) -> list[Array]:
    return [value if isinstance(value, jax.Array) else jnp.asarray(value) for value in values]


def like(carry: Values, values: Values) -> Values:
    """The carry that an iteration passes on, in the dtypes with which the loop began."""
    return [jnp.asarray(v, c.dtype) if _has_precision(c) else v for c, v in zip(carry, values, strict=True)]


# ---------------------------------------------------------------- what stops float64


class Obstacle(NamedTuple):
    """A part of a program that keeps float64 from getting through."""

    what: str  # "a cast to bfloat16", "a pure_callback", "a captured constant, float32[3],", "an error in float64"
    source: str  # `file:line (function)` of the user's code, or ""
    # the unit roundoff that remains when casts have been removed: 0 for a cast, that of its precision for a rounded
    # constant, infinite for what runs elsewhere in its own precision
    unit: float = 0.0


def said(error: Exception) -> str:
    """The type of an exception and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def raised_at(error: Exception) -> str:
    """`file:line (function)` of the innermost line that raised, outside JAX, NumPy and this package; "" if none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_USERS)]
    return f"{own[-1].filename}:{own[-1].lineno} ({own[-1].name})" if own else ""


def draws(closed: Program) -> bool:
    """True if the program draws random numbers: it draws others in float64."""
    return any(eqn.primitive.name in RANDOM for eqn in equations(closed.jaxpr))


def calls_back(closed: Program) -> bool:
    """True if part of the program runs elsewhere, in its own precision."""
    return any(eqn.primitive.name in CALLBACKS for eqn in equations(closed.jaxpr))


def coarsest(closed: Program) -> float:
    """The unit roundoff of the lowest precision in a program; that of float64 if it has no floats."""
    floats = [spec_of(v).dtype for eqn in equations(closed.jaxpr) for v in eqn.outvars if is_float(v.aval)]
    return max((float(jnp.finfo(dtype).eps) / 2 for dtype in floats), default=2.0**-53)


def casts(closed: Program) -> list[Obstacle]:
    """The operations of a float64 program whose outputs have lower precision than their inputs."""
    found = []
    for eqn in equations(closed.jaxpr):
        name = eqn.primitive.name
        if name == "reduce_precision":
            found.append(Obstacle("reduce_precision", source_of(eqn)))
        elif name not in CALLBACKS and not programs_in(eqn):
            given, made = ([spec_of(v).dtype for v in side if is_float(v.aval)] for side in (eqn.invars, eqn.outvars))
            least = min(made, key=_bits, default=None)
            if given and least is not None and _bits(least) < max(map(_bits, given)):
                what = "a cast" if name == "convert_element_type" else f"a {name}"
                found.append(Obstacle(f"{what} to {np.dtype(least).name}", source_of(eqn)))
    return list(dict.fromkeys(found))


def _bits(dtype: DType) -> int:
    return int(jnp.finfo(dtype).bits)


def obstacles(closed: Program) -> list[Obstacle]:
    """All parts of a program, traced with float64 inputs, that keep float64 from getting through."""
    found = casts(closed)
    for eqn in equations(closed.jaxpr):
        if eqn.primitive.name in CALLBACKS:
            found.append(Obstacle(f"a {eqn.primitive.name}", source_of(eqn), np.inf))
        for atom in eqn.invars:
            if isinstance(atom, core.Literal) and is_float(atom.aval):
                unit = _unit_of(float(atom.val), spec_of(atom).dtype)
                if unit:
                    found.append(Obstacle(f"a constant in low precision, {float(atom.val)!r},", source_of(eqn), unit))
    for const, source in captured(closed):
        if is_float(const) and const.dtype != np.float64:
            what = f"a captured constant, {np.dtype(const.dtype).name}[{', '.join(map(str, np.shape(const)))}],"
            found.append(Obstacle(what, source, float(jnp.finfo(const.dtype).eps) / 2))
    return list(dict.fromkeys(found))


def _unit_of(x: float, dtype: DType) -> float:
    """The unit roundoff of a number that was rounded before it became a float64; 0 if it was not.

    0.1 in float32 is 0.10000000149011612, exact in float32 but an unlikely literal; 1.1 in bfloat16 is 1.1015625, with
    more digits than bfloat16.
    """
    if not np.isfinite(x) or x == 0 or abs(np.frexp(x)[0]) == 0.5 or x == round(x):
        return 0.0
    info = jnp.finfo(dtype)
    if info.bits < 32:
        return float(info.eps) / 2 if len(repr(abs(x)).strip("0.").replace(".", "")) > info.precision + 1 else 0.0
    with np.errstate(over="ignore"):
        rounded = float(np.float32(x)) == x and len(repr(x)) > SHORT_DECIMAL
    half = float(jnp.asarray(x, jnp.bfloat16)) == x
    return float(jnp.finfo(jnp.bfloat16 if half else jnp.float32).eps) / 2 if rounded else 0.0
