"""The origin of a NaN or an infinity: its cause, its line and a rewrite that avoids it."""

from jaxnn.graph.nonfinite.explain import explain_nonfinite
from jaxnn.graph.nonfinite.explanation import Explanation

__all__ = ["Explanation", "explain_nonfinite"]
