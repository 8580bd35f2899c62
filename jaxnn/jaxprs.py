"""How JAX lays out a program: running an equation, walking through all of them, and whose line made one.

The one place that knows what a call, a custom rule, a scan, a while loop and a branch look like in a jaxpr. JAX has
changed that between releases (a scan's counts became trees, closed jaxprs and open ones became one type), so it is
read by what is there, never by a version.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util
from jax.interpreters import partial_eval


def is_float(x: Any) -> bool:
    """True for an array, variable or dtype of real floats of any precision."""
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.floating))


def is_complex(x: Any) -> bool:
    """True for an array, variable or dtype of complex numbers."""
    return bool(jnp.issubdtype(getattr(x, "dtype", x), jnp.complexfloating))


def bind(primitive: Any, args: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """An operation's outputs, as a list."""
    ready = primitive.get_bind_params(params)
    functions, params = ((), ready) if isinstance(ready, dict) else ready  # as newer and as older JAX have it
    out = primitive.bind(*functions, *args, **params)
    return list(out) if primitive.multiple_results else [out]


def dependences(f: Callable[..., Sequence[Any]], args: Sequence[Any]) -> list[list[bool]]:
    """[outputs, inputs]: whether the derivative of an output of f(*args) has a term for an input, as JAX linearises f.

    Inputs and outputs are floats. `floor` and `stop_gradient` make a value depend on an input, but not its derivative;
    a loop is followed from iteration to iteration.
    """

    def tangents(primals: list[Any], moved: list[Any]) -> list[Any]:
        return list(jax.jvp(lambda *xs: list(f(*xs)), primals, moved)[1])

    jaxpr = jax.make_jaxpr(tangents)(list(args), list(args)).jaxpr
    n = len(jaxpr.outvars)
    return [list(partial_eval.dce_jaxpr(jaxpr, [j == k for j in range(n)])[1])[len(args) :] for k in range(n)]


# ---------------------------------------------------------------- programs inside programs

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"})  # a function, and nothing else
RULED = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})  # one with a derivative rule
CONTROL = frozenset({"scan", "while", "cond"})
CLOSED = vars(core)["ClosedJaxpr"]  # a jaxpr with its constants; the same type as one without since JAX 0.11


def is_program(value: Any) -> bool:
    """True for a jaxpr, with its constants or without."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def with_constants(program: Any) -> Any:
    """A jaxpr with its constants: `.jaxpr` and `.consts` are there whichever form it came in."""
    return program if hasattr(program, "consts") else CLOSED(program, ())


def in_form_of(program: Any, closed: Any) -> Any:
    """A jaxpr with constants, in the form in which another came."""
    return closed if hasattr(program, "consts") else closed.jaxpr


def function_of(program: Any) -> Callable[..., list[Any]]:
    """The function `(*inputs) -> outputs` that a jaxpr is."""
    return core.jaxpr_as_fun(with_constants(program))


def called(eqn: Any) -> Any:
    """The program, with its constants, that a call or a function with a rule of its own runs."""
    return with_constants(next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params))


def programs_in(eqn: Any) -> list[Any]:
    """All programs in the parameters of an equation."""
    return list(core.jaxprs_in_params(eqn.params))


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in programs_in(eqn):
            yield from equations(inner)


class ScanParts(NamedTuple):
    """What belongs to a scan's inputs, one by one, by their role."""

    consts: list[Any]
    carry: list[Any]
    xs: list[Any]


class Scan(NamedTuple):
    """A `lax.scan` as a program has it: `body(*consts, *carry, *x) -> (*carry, *y)`.

    Attributes:
        body: the program of one iteration, with its constants.
        consts: how many inputs every iteration is given.
        carry: how many inputs, and outputs, pass from one iteration to the next.
        length: the number of iterations.
        reverse: whether the last entry of the xs comes first.
    """

    body: Any
    consts: int
    carry: int
    length: int
    reverse: bool

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Scan:
        """From the parameters of the equation."""
        if "ft_in" in params:  # since JAX 0.11 trees with a leaf for each input, by role
            consts, carry, _ = map(len, params["ft_in"].unpack())
        else:
            consts, carry = params["num_consts"], params["num_carry"]
        return cls(with_constants(params["jaxpr"]), consts, carry, params["length"], params["reverse"])

    def parts(self, inputs: Sequence[Any]) -> ScanParts:
        """The inputs, or what belongs to each of them, by their role."""
        kept = self.consts + self.carry
        return ScanParts(list(inputs[: self.consts]), list(inputs[self.consts : kept]), list(inputs[kept:]))

    def results(self, outputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The outputs, or what belongs to each of them: (carry, ys)."""
        return list(outputs[: self.carry]), list(outputs[self.carry :])

    @property
    def order(self) -> range:
        """The entries of the xs in the order in which they come."""
        return range(self.length)[:: -1 if self.reverse else 1]


class WhileParts(NamedTuple):
    """What belongs to a while loop's inputs, one by one, by their role."""

    test_consts: list[Any]
    body_consts: list[Any]
    carry: list[Any]


class While(NamedTuple):
    """A `lax.while_loop` as a program has it: `test(*test_consts, *carry)`, `body(*body_consts, *carry) -> carry`.

    Attributes:
        test: the program that says whether it goes on, with its constants.
        body: the program of one iteration, with its constants.
        test_consts: how many inputs each test is given beside the carry.
        body_consts: how many inputs each iteration is given beside the carry.
    """

    test: Any
    body: Any
    test_consts: int
    body_consts: int

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> While:
        """From the parameters of the equation."""
        test, body = (with_constants(params[key]) for key in ("cond_jaxpr", "body_jaxpr"))
        return cls(test, body, params["cond_nconsts"], params["body_nconsts"])

    def parts(self, inputs: Sequence[Any]) -> WhileParts:
        """The inputs, or what belongs to each of them, by their role."""
        first, second = self.test_consts, self.test_consts + self.body_consts
        return WhileParts(list(inputs[:first]), list(inputs[first:second]), list(inputs[second:]))


class Cond(NamedTuple):
    """A `lax.cond` or `lax.switch` as a program has it; its first input chooses, the others go to the branch.

    Attributes:
        branches: the programs to choose from, with their constants.
    """

    branches: tuple[Any, ...]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Cond:
        """From the parameters of the equation."""
        return cls(tuple(map(with_constants, params["branches"])))

    def taken(self, index: Any) -> int:
        """The number of the branch that an index chooses: one outside of them chooses the nearest."""
        return int(np.clip(int(index), 0, len(self.branches) - 1))


# ---------------------------------------------------------------- where it comes from


def source_of(eqn: Any) -> str:
    """`file:line (function)` of the user's code that made an equation."""
    return str(source_info_util.summarize(eqn.source_info))


def first_difference(ours: Any, theirs: Any) -> str | None:
    """The first operation in which two closed jaxprs differ, or None: a pure function traced twice has none."""
    for a, b in zip(ours.consts, theirs.consts, strict=False):
        known = a is not b and is_float(a) and is_float(b) and not isinstance(a, jax.core.Tracer)
        if known and not np.array_equal(a, b, equal_nan=True):
            return "a constant"
    pairs = itertools.zip_longest(equations(ours.jaxpr), equations(theirs.jaxpr))
    return next((source_of(a or b) for a, b in pairs if a is None or b is None or _sketch(a) != _sketch(b)), None)


def _sketch(eqn: Any) -> tuple[Any, ...]:
    """An equation without its variables' names: its primitive, the numbers in it, and what comes out."""
    numbers = [str(atom.val) for atom in eqn.invars if isinstance(atom, core.Literal)]
    return eqn.primitive.name, *numbers, *(str(var.aval) for var in eqn.outvars)


class Source(NamedTuple):
    """A line of code; ("", 0, "") where it is unknown."""

    file: str
    line: int
    function: str


NOWHERE = Source("", 0, "")
_SUMMARY = re.compile(r"^(?P<file>.*?):(?P<line>\d+)(?::\d+)?(?: \((?P<function>.*)\))?$")


def line_of(eqn: Any, otherwise: Source = NOWHERE) -> Source:
    """The line that made an equation; `otherwise` where JAX has not kept it, as inside cached functions."""
    found = _SUMMARY.match(source_of(eqn))
    return otherwise if found is None else Source(found["file"], int(found["line"]), found["function"] or "")


def argument_names(f: Callable[..., Any], n: int) -> list[str]:
    """A name for each of n positional arguments: the function's own where it has them."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(f).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        names = []
    return names[:n] if len(names) >= n else [f"args[{i}]" for i in range(n)]


def name_of(f: Callable[..., Any]) -> str:
    """What a reader calls a function."""
    return getattr(f, "__name__", type(f).__name__)
