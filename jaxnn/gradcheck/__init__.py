"""Is this gradient right, and if not, in which layer, at which leaf, at which element?

`network` holds every layer of a network against jax.grad at its own spot, `function` a rule for a function of one's
own, `custom_vjp` a function with a custom rule. Each gives a `Report`; in a test, `report.raise_if_failed()`.
"""

from jaxnn.gradcheck.auditing import audit
from jaxnn.gradcheck.functions import custom_vjp, function
from jaxnn.gradcheck.kinks import KINKS, Kink, kink_table
from jaxnn.gradcheck.networks import network
from jaxnn.gradcheck.report import Report, Row

__all__ = ["network", "function", "custom_vjp", "audit", "Report", "Row", "KINKS", "Kink", "kink_table"]


def __dir__() -> list[str]:
    return list(__all__)
