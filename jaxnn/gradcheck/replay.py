"""A jaxpr replayed with float64 arithmetic, and what in a jaxpr keeps float64 from getting through.

Replaying asks what a low-precision program would have given without rounding: the same operations on the same
inputs, with the same literals and the same random bits, every float kept in float64. Casts between floats become
the identity. What cannot be opened (a callback, a bit cast, a custom call) is given its own precision and its
result is widened again.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.jaxprs import (
    CALLS,
    RULED,
    Cond,
    Scan,
    While,
    bind,
    called,
    equations,
    in_form_of,
    is_float,
    is_program,
    programs_in,
    source_of,
    with_constants,
)

INLINED = CALLS | RULED
RANDOM = {"random_bits", "rng_uniform", "rng_bit_generator", "random_gamma", "threefry2x32"}
CALLBACKS = {"pure_callback", "io_callback", "ffi_call", "custom_call", "pallas_call"}
NOT_THE_USERS = ("<frozen", *(f"{Path(path).parent}{os.sep}" for path in (jax.__file__, np.__file__, __file__)))
SHORT_DECIMAL = 11  # characters
AS_THEY_ARE = CALLBACKS | {"bitcast_convert_type", "shard_map"}  # run in the precision they were written for


def x64_is_on() -> bool:
    """True if this thread makes 64-bit arrays at present."""
    return jnp.zeros(()).dtype == jnp.float64


def widen(tree: Any) -> Any:
    """Every float in float64, every complex number in complex128; under enable_x64."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, _wide(leaf)) if _has_precision(leaf) else leaf, tree)


def _has_precision(x: Any) -> bool:
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.inexact))


def _wide(x: Any) -> Any:
    """The widest dtype of its kind: float64, or complex128 for the complex numbers that a program may use inside."""
    return np.dtype("float64" if is_float(x) else "complex128")


# ---------------------------------------------------------------- replay


class Shaking(Protocol):
    """Moves what an operation is given and what it gives, as rounding might."""

    def inputs(self, eqn: Any, args: list[Any]) -> list[Any]: ...

    def outputs(self, eqn: Any, outs: list[Any]) -> list[Any]: ...


def replay(closed: Any, shaking: Shaking | None = None) -> Callable[..., list[Any]]:
    """The function of a closed jaxpr in float64 arithmetic; call it under enable_x64, floats given as float64."""

    def run(*args: Any) -> list[Any]:
        return _evaluate(closed.jaxpr, widen(list(closed.consts)), args, shaking)

    return run


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], shaking: Shaking | None) -> list[Any]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        if not isinstance(atom, core.Literal):
            return env[atom]
        return number(atom)

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        if shaking is None:
            outs = step(eqn, values)
        else:
            outs = shaking.outputs(eqn, step(eqn, shaking.inputs(eqn, values), shaking))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def number(literal: Any) -> Any:
    """A literal's value, floats as float64."""
    if _has_precision(literal.aval):
        return _wide(literal.aval).type(literal.val)
    dtype = literal.aval.dtype
    return literal.val if dtype == jax.dtypes.float0 else np.asarray(literal.val, dtype)


def step(eqn: Any, args: list[Any], shaking: Shaking | None = None) -> list[Any]:
    """The outputs of one equation in float64 arithmetic."""
    name, params = eqn.primitive.name, eqn.params
    if name in INLINED:
        return replay(called(eqn), shaking)(*args)
    if name in OPENED:
        return OPENED[name](params, args, shaking)
    if name == "convert_element_type" and is_float(eqn.invars[0].aval) and is_float(params["new_dtype"]):
        return args
    if name == "reduce_precision":
        return args[:1]
    if name in AS_THEY_ARE:
        return _bind_as_it_is(eqn, args)
    try:
        return bind(eqn.primitive, args, {key: _widened(value) for key, value in params.items()})
    except (TypeError, ValueError, NotImplementedError):  # a primitive with a precision of its own
        return _bind_as_it_is(eqn, args)


def _bind_as_it_is(eqn: Any, args: list[Any]) -> list[Any]:
    narrow = [
        jnp.asarray(x, v.aval.dtype) if _has_precision(v.aval) else x for x, v in zip(args, eqn.invars, strict=True)
    ]
    return list(widen(bind(eqn.primitive, narrow, eqn.params)))


def _widened(value: Any) -> Any:
    """A parameter of an operation: the dtypes in it become float64."""
    if is_program(value):  # what scatter-add does with two elements
        return in_form_of(value, _wide_program(with_constants(value)))
    if isinstance(value, tuple) and any(map(is_program, value)):
        widened = map(_widened, value)  # the four functions of a linear solver
        return type(value)(*widened) if hasattr(value, "_fields") else tuple(widened)
    if isinstance(value, (np.dtype, type)) and _has_precision(value):
        return _wide(value)
    return value


def _wide_program(closed: Any) -> Any:
    avals = closed.in_avals
    specs = [jax.ShapeDtypeStruct(a.shape, _wide(a) if _has_precision(a) else a.dtype) for a in avals]
    return jax.make_jaxpr(replay(closed))(*specs)


# ---------------------------------------------------------------- loops and branches


def _scan(params: dict[str, Any], args: list[Any], shaking: Shaking | None) -> list[Any]:
    scan = Scan.of(params)
    run, (consts, start, xs) = replay(scan.body, shaking), scan.parts(args)

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        handed_on, ys = scan.results(run(*consts, *carry, *x))
        return like(carry, handed_on), ys

    carry, outs = jax.lax.scan(body, _arrays(start), xs, length=scan.length, reverse=scan.reverse)
    return [*carry, *outs]


def _while(params: dict[str, Any], args: list[Any], shaking: Shaking | None) -> list[Any]:
    loop = While.of(params)
    test_consts, body_consts, start = loop.parts(args)
    test, body = replay(loop.test), replay(loop.body, shaking)
    lanes = loop.test.out_avals[0].shape  # under vmap each goes on by itself

    def step(carry: list[Any]) -> list[Any]:
        moved = like(carry, body(*body_consts, *carry))
        if not lanes:
            return moved
        goes_on = test(*test_consts, *carry)[0]
        spread = [goes_on.reshape(lanes + (1,) * (np.ndim(c) - len(lanes))) for c in carry]
        return [jnp.where(on, new, old) for on, new, old in zip(spread, moved, carry, strict=True)]

    return jax.lax.while_loop(lambda carry: jnp.any(test(*test_consts, *carry)[0]), step, _arrays(start))


def _cond(params: dict[str, Any], args: list[Any], shaking: Shaking | None) -> list[Any]:
    branches = [_branch(branch, shaking) for branch in Cond.of(params).branches]
    return list(jax.lax.switch(args[0], branches, *_arrays(args[1:])))


def _branch(closed: Any, shaking: Shaking | None) -> Callable[..., list[Any]]:
    return lambda *args: _arrays(replay(closed, shaking)(*args))


OPENED = {"scan": _scan, "while": _while, "cond": _cond}


def _arrays(values: Sequence[Any]) -> list[Any]:
    return [value if isinstance(value, jax.Array) else jnp.asarray(value) for value in values]


def like(carry: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """What a loop hands on, in the dtypes that it started with."""
    return [jnp.asarray(v, c.dtype) if _has_precision(c) else v for c, v in zip(carry, values, strict=True)]


# ---------------------------------------------------------------- what stops float64


class Obstacle(NamedTuple):
    """Something in a program that keeps float64 from getting through, and where.

    Attributes:
        what: "a cast to bfloat16", "a pure_callback", "a captured constant, float32[3],", "an error in float64".
        source: `file:line (function)` of the user's code, or "".
        unit: the unit roundoff that it leaves when casts have been taken out: 0 for a cast, that of its precision for
            a rounded constant; infinite for what runs elsewhere in its own precision.
    """

    what: str
    source: str
    unit: float = 0.0


def said(error: Exception) -> str:
    """An exception's type and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def raised_at(error: Exception) -> str:
    """`file:line (function)` of the innermost line outside of JAX, NumPy and this package that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_USERS)]
    return f"{own[-1].filename}:{own[-1].lineno} ({own[-1].name})" if own else ""


def draws(closed: Any) -> bool:
    """True if the program draws random numbers: it draws others in float64."""
    return any(eqn.primitive.name in RANDOM for eqn in equations(closed.jaxpr))


def calls_back(closed: Any) -> bool:
    """True if part of the program is run elsewhere, in its own precision."""
    return any(eqn.primitive.name in CALLBACKS for eqn in equations(closed.jaxpr))


def coarsest(closed: Any) -> float:
    """The unit roundoff of the lowest precision in a program; that of float64 where there are no floats."""
    floats = [v.aval.dtype for eqn in equations(closed.jaxpr) for v in eqn.outvars if is_float(v.aval)]
    return max((float(jnp.finfo(dtype).eps) / 2 for dtype in floats), default=2.0**-53)


def casts(closed: Any) -> list[Obstacle]:
    """The operations of a float64 program that give lower precision than they were given."""
    found = []
    for eqn in equations(closed.jaxpr):
        name = eqn.primitive.name
        if name == "reduce_precision":
            found.append(Obstacle("reduce_precision", source_of(eqn)))
        elif name not in CALLBACKS and not programs_in(eqn):
            given, made = ([v.aval.dtype for v in side if is_float(v.aval)] for side in (eqn.invars, eqn.outvars))
            least = min(made, key=_bits, default=None)
            if given and least is not None and _bits(least) < max(map(_bits, given)):
                what = "a cast" if name == "convert_element_type" else f"a {name}"
                found.append(Obstacle(f"{what} to {np.dtype(least).name}", source_of(eqn)))
    return list(dict.fromkeys(found))


def _bits(dtype: Any) -> int:
    return int(jnp.finfo(dtype).bits)


def obstacles(closed: Any) -> list[Obstacle]:
    """Everything that stops float64 in a program traced with float64 inputs."""
    found = casts(closed)
    for eqn in equations(closed.jaxpr):
        if eqn.primitive.name in CALLBACKS:
            found.append(Obstacle(f"a {eqn.primitive.name}", source_of(eqn), np.inf))
        for atom in eqn.invars:
            aval: Any = atom.aval
            if isinstance(atom, core.Literal) and is_float(aval):
                unit = _unit_of(float(atom.val), aval.dtype)
                if unit:
                    found.append(Obstacle(f"a constant in low precision, {float(atom.val)!r},", source_of(eqn), unit))
    for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        if is_float(const) and const.dtype != np.float64:
            users = [eqn for eqn in closed.jaxpr.eqns if any(atom is var for atom in eqn.invars)]
            what = f"a captured constant, {np.dtype(const.dtype).name}[{', '.join(map(str, np.shape(const)))}],"
            found.append(Obstacle(what, source_of(users[0]) if users else "", float(jnp.finfo(const.dtype).eps) / 2))
    return list(dict.fromkeys(found))


def _unit_of(x: float, dtype: Any) -> float:
    """The unit roundoff of a number that was rounded before it came to float64; 0 if it was not.

    0.1 in float32 is 0.10000000149011612, which float32 holds and nobody would write; 1.1 in bfloat16 is 1.1015625,
    which has more digits than bfloat16.
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
