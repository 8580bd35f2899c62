"""Loops and branches: the parameters of `scan`, `while_loop` and `cond`, and which input has which role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.jaxprs.programs import Program, Values, with_constants


class Scan(NamedTuple):
    """A `lax.scan` in a program: `body(*consts, *carry, *x) -> (*carry, *y)`."""

    body: Program  # the program of one iteration
    consts: int  # the number of inputs that are the same in every iteration
    carry: int  # the number of inputs, and of outputs, that pass from one iteration to the next
    length: int  # the number of iterations
    reverse: bool  # whether the iterations run from the last entry of the xs to the first

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Scan:
        """From the parameters of the equation."""
        if "ft_in" in params:  # since JAX 0.11, trees with a leaf for each input, by role
            consts, carry, _ = map(len, params["ft_in"].unpack())
        else:
            consts, carry = params["num_consts"], params["num_carry"]
        return cls(with_constants(params["jaxpr"]), consts, carry, params["length"], params["reverse"])

    def parts(self, inputs: Sequence[Any]) -> tuple[Values, Values, Values]:
        """(consts, carry, xs): the inputs, or something for each of them."""
        kept = self.consts + self.carry
        return list(inputs[: self.consts]), list(inputs[self.consts : kept]), list(inputs[kept:])

    def results(self, outputs: Sequence[Any]) -> tuple[Values, Values]:
        """(carry, ys): the outputs, or something for each of them."""
        return list(outputs[: self.carry]), list(outputs[self.carry :])

    @property
    def order(self) -> range:
        """The indices of the iterations, as entries of the xs, in the order in which they run."""
        return range(self.length)[:: -1 if self.reverse else 1]

    def uses(self, i: int) -> int:
        """The number of iterations that are given the same entry of input i."""
        return self.length if i < self.consts else 1

    def loop(self, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
        """`lax.scan` of another body over as many iterations, in the same order."""
        return jax.lax.scan(step, carry, xs, length=self.length, reverse=self.reverse)


class While(NamedTuple):
    """A `lax.while_loop` in a program: `test(*test_consts, *carry)`, `body(*body_consts, *carry) -> carry`."""

    test: Program  # the program that decides whether to continue
    body: Program  # the program of one iteration
    test_consts: int  # the number of inputs of each test beside the carry
    body_consts: int  # the number of inputs of each iteration beside the carry

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> While:
        """From the parameters of the equation."""
        test, body = (with_constants(params[key]) for key in ("cond_jaxpr", "body_jaxpr"))
        return cls(test, body, params["cond_nconsts"], params["body_nconsts"])

    def parts(self, inputs: Sequence[Any]) -> tuple[Values, Values, Values]:
        """(test_consts, body_consts, carry): the inputs, or something for each of them."""
        first, second = self.test_consts, self.test_consts + self.body_consts
        return list(inputs[:first]), list(inputs[first:second]), list(inputs[second:])


class Cond(NamedTuple):
    """A `lax.cond` or `lax.switch` in a program: its first input is the index of the branch, the others go to it."""

    branches: tuple[Program, ...]  # the programs to choose from

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Cond:
        """From the parameters of the equation."""
        return cls(tuple(map(with_constants, params["branches"])))

    def taken(self, index: Any) -> int:
        """The branch that an index chooses: the nearest, if it is out of range."""
        return int(np.clip(int(index), 0, len(self.branches) - 1))
