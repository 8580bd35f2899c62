"""The interpreter of programs, equation by equation; whoever derives from it says what to do with each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from jaxnn.jaxprs.programs import CALLS, RULED, Program, Values, bind, called


class Interpreter:
    """Evaluates a program, equation by equation, as JAX does; classes derived from it say what they do differently.

    Calls are entered. Everything else is an operation, run by JAX, unless a method is overridden: a call with a
    derivative rule, a loop and a branch too. What takes the place of an array, such as a reference to it, may be
    anything that the methods agree on.
    """

    def run(self, program: Program, inputs: Sequence[Any]) -> Values:
        """The outputs of a program with its constants."""
        return self.evaluate(program.jaxpr, list(map(self.constant, program.consts)), inputs)

    def evaluate(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> Values:
        """The outputs of a jaxpr, whose variables are bound anew each time: JAX shares jaxprs between calls."""
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(atom: core.Var | core.Literal) -> Any:
            return self.literal(atom) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self.equation(eqn, list(map(read, eqn.invars))), strict=True))
        return list(map(read, jaxpr.outvars))

    def literal(self, literal: core.Literal) -> Any:
        """A number in the program's text."""
        return literal.val

    def constant(self, const: Any) -> Any:
        """An array that a program closes over."""
        return const

    def equation(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """The outputs of an equation, by the method for its kind."""
        name = eqn.primitive.name
        if name in CALLS:
            return self.call(eqn, inputs)
        if name in RULED:
            return self.ruled(eqn, inputs)
        if name == "scan":
            return self.scan(eqn, inputs)
        if name == "while":
            return self.while_loop(eqn, inputs)
        return self.cond(eqn, inputs) if name == "cond" else self.operation(eqn, inputs)

    def operation(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """An operation, and whatever is treated as one."""
        return bind(eqn.primitive, inputs, eqn.params)

    def call(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """A call of a function that is only wrapped."""
        return self.run(called(eqn), inputs)

    def ruled(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """A call of a function with a derivative rule."""
        return self.operation(eqn, inputs)

    def scan(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """A `lax.scan`; see `Scan.of`."""
        return self.operation(eqn, inputs)

    def while_loop(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """A `lax.while_loop`; see `While.of`."""
        return self.operation(eqn, inputs)

    def cond(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        """A `lax.cond` or `lax.switch`; see `Cond.of`."""
        return self.operation(eqn, inputs)
