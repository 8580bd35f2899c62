"""Equations and programs: the kinds of calls, the programs inside others, and the outputs of one operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from jaxnn.aliases import Array
from jaxnn.jaxprs.sources import source_of

Program: TypeAlias = core.Jaxpr  # with its constants; until JAX 0.11 a type apart, the ClosedJaxpr
Values: TypeAlias = list[Any]  # arrays, or what an interpreter has in their place


def is_float(x: Any) -> bool:
    """True for an array, variable or dtype of real floats of any precision."""
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.floating))


def is_complex(x: Any) -> bool:
    """True for an array, variable or dtype of complex numbers."""
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.complexfloating))


def bind(primitive: core.Primitive, args: Sequence[Any], params: dict[str, Any]) -> Values:
    """The outputs of an operation, as a list."""
    ready = primitive.get_bind_params(params)
    functions, params = ((), ready) if isinstance(ready, dict) else ready  # newer and older JAX
    out = primitive.bind(*functions, *args, **params)
    return list(out) if primitive.multiple_results else [out]


def dependences(f: Callable[..., Sequence[Array]], args: Sequence[Any]) -> list[list[bool]]:
    """[outputs, inputs]: whether the derivative of an output of f(*args) has a term for an input, as JAX linearises f.

    Inputs and outputs are floats. `floor` and `stop_gradient` make a value depend on an input, but not its derivative;
    a loop is followed from iteration to iteration.
    """

    def tangents(primals: Values, moved: Values) -> Values:
        return list(jax.jvp(lambda *xs: list(f(*xs)), primals, moved)[1])

    jaxpr = jax.make_jaxpr(tangents)(list(args), list(args)).jaxpr
    n = len(jaxpr.outvars)
    return [list(partial_eval.dce_jaxpr(jaxpr, [j == k for j in range(n)])[1])[len(args) :] for k in range(n)]


CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"})  # a function, and nothing else
RULED = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})  # with a derivative rule
CONTROL = frozenset({"scan", "while", "cond"})
CLOSED = vars(core)["ClosedJaxpr"]  # a jaxpr with its constants; the same type as one without since JAX 0.11


def is_program(value: Any) -> bool:
    """True for a jaxpr, with its constants or without."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def with_constants(program: Any) -> Program:
    """A jaxpr, open or closed, as one with `.jaxpr` and `.consts`."""
    return program if hasattr(program, "consts") else CLOSED(program, ())


def in_form_of(program: Any, closed: Program) -> Any:
    """A closed jaxpr, open if the given program is open."""
    return closed if hasattr(program, "consts") else closed.jaxpr


def function_of(program: Any) -> Callable[..., Values]:
    """A jaxpr as a function `(*inputs) -> outputs`."""
    return core.jaxpr_as_fun(with_constants(program))


def called(eqn: core.JaxprEqn) -> Program:
    """The program that a call runs, of a function with a derivative rule or without."""
    return with_constants(next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params))


def programs_in(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """All programs in the parameters of an equation."""
    return list(core.jaxprs_in_params(eqn.params))


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Every equation, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in programs_in(eqn):
            yield from equations(inner)


def size(program: Program) -> int:
    """The number of operations of a program; one with a program inside counts once."""
    return len(with_constants(program).jaxpr.eqns)


def title_of(program: Program) -> str:
    """The name of the jitted function that a program only calls, or else of the function it was traced from, or ""."""
    eqns = program.jaxpr.eqns
    if len(eqns) == 1 and eqns[0].primitive.name in CALLS and "name" in eqns[0].params:
        return str(eqns[0].params["name"])
    return str(getattr(program.jaxpr.debug_info, "func_name", "") or "")


def captured(program: Program) -> list[tuple[Array, str]]:
    """The constants of a program, each with the line of the first operation that uses it, or ""."""

    def users(var: core.Var) -> Iterator[str]:
        return (source_of(eqn) for eqn in program.jaxpr.eqns if any(atom is var for atom in eqn.invars))

    pairs = zip(program.jaxpr.constvars, program.consts, strict=True)
    return [(const, next(users(var), "")) for var, const in pairs]


def spec_of(var: core.Var | core.Literal) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a variable."""
    aval: Any = var.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def constants_first(program: Program) -> Program:
    """The program with its constants as its first inputs."""
    jaxpr, n = program.jaxpr, len(program.jaxpr.constvars)
    specs = map(spec_of, (*jaxpr.constvars, *jaxpr.invars))
    return jax.make_jaxpr(lambda *inputs: jax.core.eval_jaxpr(jaxpr, inputs[:n], *inputs[n:]))(*specs)
