"""Checks hand-derived gradients, and finds the layer, the leaf and the element that is wrong.

`network` compares every layer of a network with jax.grad at its own inputs, `function` a rule for a function,
`custom_vjp` a function with a custom rule, and `audit` all custom rules that a program calls. Each returns a `Report`;
in a test, `report.raise_if_failed()`.
"""

from jaxnn.gradcheck.auditing import audit
from jaxnn.gradcheck.functions import custom_vjp, function
from jaxnn.gradcheck.kinks import KINKS, Kink, kink_table
from jaxnn.gradcheck.networks import network
from jaxnn.gradcheck.report import Report, Row

__all__ = ["network", "function", "custom_vjp", "audit", "Report", "Row", "KINKS", "Kink", "kink_table"]
__dir__ = __all__.copy
