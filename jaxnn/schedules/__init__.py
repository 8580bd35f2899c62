"""Learning rates that change with time: a schedule maps the step, from 0, to the rate of that step's update.

    constant      value                                  piecewise     values[i] from boundaries[i−1] on
    step_decay    initial · factor^⌊t/every⌋             exponential   initial · factor^(t/every)
    inverse_time  initial / (1 + rate·t/every)           polynomial    from initial to final, in `steps`
    cosine        half a wave, from initial to final     warmup        a line, then another schedule
    joined        one schedule after another             scaled        another schedule times a factor

Each schedule is a record that is called with the step, a Python integer or a traced one; equal settings make equal
schedules. Everything behind the first argument is given by keyword. Rates and factors may be JAX scalars. At its ends
a schedule returns the rates it was made with, to the bit, compiled or not; no rate lies outside the interval between
them. After the end the last rate remains. An optimizer also takes any other function `step -> rate`.
Letters: t step, η rate.
"""

from jaxnn.schedules.compositions import joined, scaled, warmup
from jaxnn.schedules.decays import constant, cosine, exponential, inverse_time, piecewise, polynomial, step_decay

__all__ = [
    "constant",
    "step_decay",
    "piecewise",
    "exponential",
    "inverse_time",
    "polynomial",
    "cosine",
    "warmup",
    "joined",
    "scaled",
]
__dir__ = __all__.copy
