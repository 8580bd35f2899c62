"""From problems to verdicts: measured together, judged leaf by leaf."""

from __future__ import annotations

from collections.abc import Sequence

from jaxnn.gradcheck.judge import judge
from jaxnn.gradcheck.measuring import measure, prepare
from jaxnn.gradcheck.programs import Problem
from jaxnn.gradcheck.report import Row


def verdicts(problems: Sequence[Problem], seed: int = 0) -> list[list[Row]]:
    """One row for each leaf of each problem; all are compiled together, once for each precision."""
    return [list(map(judge, leaves)) for leaves in measure(prepare(problems), problems, seed)]
