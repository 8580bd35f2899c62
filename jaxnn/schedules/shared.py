"""The base of schedules, and checks of their numbers, their boundaries and the schedules they contain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from jaxnn.checks import number, seen, whole_number
from jaxnn.compiled import PureFunction
from jaxnn.mistakes import factory_hint, is_factory, is_function, several
from jaxnn.types import Schedule


class ScheduleRecord(PureFunction):
    """A record that is called with the step, which may be traced."""

    def _check(
        self, *, rates: tuple[str, ...] = (), positive: tuple[str, ...] = (), counts: tuple[str, ...] = ()
    ) -> None:
        """Rates are at least 0, positive numbers above 0, counts whole and at least 1."""
        where = f"schedules.{type(self).__name__}"
        for name in rates:
            self._set(**{name: number(f"{where}: {name}", getattr(self, name), least=0.0)})
        for name in positive:
            self._set(**{name: number(f"{where}: {name}", getattr(self, name), above=0.0)})
        for name in counts:
            self._set(**{name: whole_number(f"{where}: {name}", getattr(self, name), least=1)})


def valid_schedule(what: str, schedule: Any) -> Schedule:
    """The schedule, if it is a function step -> rate; TypeError otherwise."""
    if not is_function(schedule) or is_factory(schedule):
        raise TypeError(
            f"{what} must be a schedule step -> rate, got {seen(schedule)}: use schedules.constant for a "
            f"number{factory_hint(schedule)}"
        )
    return schedule


def rising(where: str, boundaries: Sequence[int], parts: int, what: str) -> tuple[int, ...]:
    """The boundaries between `parts` parts, if they rise and if there is one fewer."""
    boundaries = several(f"{where}: boundaries", boundaries, "boundaries=[1000]")
    bounds = tuple(whole_number(f"{where}: boundaries[{i}]", b, least=1) for i, b in enumerate(boundaries))
    if len(bounds) != parts - 1 or not bounds:
        raise ValueError(f"{where}: {parts} {what} need {max(parts - 1, 1)} boundaries between them, got {len(bounds)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(bounds)):
        raise ValueError(f"{where}: boundaries must rise, got {list(bounds)}")
    return bounds
