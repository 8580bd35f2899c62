"""Diagnosis of a network that does not train: δ, gradients, outputs and updates of each layer, and a verdict.

`diagnose` examines one point; `fit(…, measure=1)` measures one step in every epoch, inside the compiled epoch; and
`report` interprets the measures of your own training step (`train_step(…, measure=True)`). Each returns a `Diagnosis`;
`report` states its limits.
"""

from jaxnn.diagnostics.diagnosis import Diagnosis, Finding, LayerRow, over_time, report, report_each
from jaxnn.diagnostics.measures import Measures
from jaxnn.diagnostics.point import diagnose

__all__ = ["diagnose", "report", "report_each", "over_time", "Diagnosis", "Finding", "LayerRow", "Measures"]
__dir__ = __all__.copy
