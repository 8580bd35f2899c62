"""What is wrong with a network that does not train: δ, gradients, outputs and updates of each layer, and a verdict.

`diagnose` looks at one point, `fit(…, measure=1)` once in every epoch, in the compiled epoch itself; what a step of
one's own measures (`train_step(…, measure=True)`) becomes words by `report`. Each gives a `Diagnosis`, whose limits
are named in `report`.
"""

from jaxnn.diagnostics.diagnosis import (
    Diagnosis,
    Finding,
    LayerRow,
    over_time,
    report,
    report_each,
)
from jaxnn.diagnostics.measures import Measures
from jaxnn.diagnostics.point import diagnose

__all__ = ["diagnose", "report", "report_each", "over_time", "Diagnosis", "Finding", "LayerRow", "Measures"]


def __dir__() -> list[str]:
    return list(__all__)
