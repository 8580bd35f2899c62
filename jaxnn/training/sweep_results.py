"""The result of a sweep: a table of members, the best of them, each member's state.

Letters: M members, E epochs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.checks import seen, whole_number
from jaxnn.records import Record
from jaxnn.showing import figure, shown
from jaxnn.types import Run, TrainState

LOSS_LIKE = ("loss", "penalty", "error")  # figures that are better when smaller, by the end of their names


def member_line(member: Any) -> str:
    """`Member(7, learning_rate=0.1, seed 3: best validation_loss 0.1, …)`."""
    settings = "".join(f", {name}={figure(value)}" for name, value in member.settings.items())
    figures = ", ".join(f"{name} {figure(value)}" for name, value in member.best.items())
    return f"Member({member.number}{settings}, seed {member.seed}, {member.epochs_run} epochs: {figures})"


@shown(member_line)
class Member(NamedTuple):
    """A member of a sweep.

    Attributes:
        number: its number, from 0.
        settings: its numbers by name.
        seed: its seed.
        epochs_run: the number of epochs it ran.
        last: the figures of its last epoch, by name.
        best: those of the epoch in which the figure of the sweep was best.
        train_state: its state, the best one where one was kept, otherwise the last.
    """

    number: int
    settings: dict[str, float]
    seed: int
    epochs_run: int
    last: dict[str, float]
    best: dict[str, float]
    train_state: TrainState


def sweep_line(sweep: Any) -> str:
    """`Sweep(60 members: 5 learning_rate × 3 penalty × 4 seeds, best validation_loss 0.1 of member 7)`."""
    counts = [f"{len(np.unique(values))} {name}" for name, values in sweep.settings.items()]
    counts.append(f"{len(set(sweep.seeds.tolist()))} seed{'s' * (len(set(sweep.seeds.tolist())) > 1)}")
    scores, where = sweep.scores(), sweep.figure
    best = "no figure is finite"
    if np.isfinite(scores).any():
        i = int(sweep.order()[0])
        best = f"best {where} {figure(scores[i])} of member {i}"
    m = len(sweep)
    return f"Sweep({m:,} member{'s' * (m > 1)}: {' × '.join(counts)}; {best})"


def sweep_table(sweep: Any) -> Any:
    """A row for each member, the best first."""
    names = list(sweep.settings)
    figures = sorted((name for name in sweep.runs.history if name != "update_scale"), key=lambda name: name != "loss")
    several = sweep.runs.history[sweep.figure].shape[1] > 1
    headings = ("member", *names, "seed", "epochs", *([f"best {sweep.figure}"] if several else []), *figures)
    last, scores, rows = sweep.last(), sweep.scores(best=True), []
    for i in sweep.order():
        cells = [f"{i}", *(figure(sweep.settings[name][i]) for name in names), f"{sweep.seeds[i]}"]
        cells += [figure(sweep.runs.epochs_run[i]), *([figure(scores[i])] if several else [])]
        rows.append((*cells, *(figure(last[name][i]) for name in figures)))
    return sweep_line(sweep), headings, rows


@shown(sweep_line, sweep_table)
class Sweep(Record):
    """The result of a `sweep`: M members, every array with a leading axis for them.

    `print` shows a table with the best member first; `plots.landscape` draws a figure over settings.

    Attributes:
        settings: the numbers of each member, [M], by name.
        seeds: their seeds, [M].
        runs: their runs as one: `Run` with [M, …] in each leaf; its history is [M, E].
        figure: the name of the figure by which members are compared: the watched one, otherwise "validation_loss", or
            "loss" without validation.
        maximise: whether greater is better.
        origin: what `replay` needs, programs and data among it; None after pickling.
    """

    settings: dict[str, Any]
    seeds: Any
    runs: Run
    figure: str
    maximise: bool = False
    origin: Any = None

    def __len__(self) -> int:
        return len(self.seeds)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"origin": None}  # compiled programs and functions cannot be pickled

    def last(self) -> dict[str, np.ndarray]:
        """The figures of each member's last epoch, [M]; NaN for a member that ran none."""
        at = np.maximum(np.asarray(self.runs.epochs_run) - 1, 0)
        return {name: np.asarray(values)[np.arange(len(self)), at] for name, values in self.runs.history.items()}

    def scores(self, name: str | None = None, *, best: bool | None = None) -> np.ndarray:
        """A figure of each member, [M]: of its best epoch if best states were kept (or `best`), otherwise its last."""
        name = self._named(name)
        if best is None:
            best = self.runs.best is not None
        if not best:
            return self.last()[name]
        values = np.asarray(self.runs.history[name])
        worst = -np.inf if self._greater(name) else np.inf
        real = np.where(np.isfinite(values), values, worst)
        scores = real.max(1) if self._greater(name) else real.min(1)
        return np.where(np.isfinite(scores), scores, np.nan)

    def order(self, name: str | None = None) -> np.ndarray:
        """The members' numbers, the best first; those whose figure is not finite last."""
        scores = self.scores(name)
        scores = np.where(np.isfinite(scores), -scores if self._greater(self._named(name)) else scores, np.inf)
        return np.argsort(scores, kind="stable")

    def best(self, name: str | None = None) -> Member:
        """The member with the best figure, by default the sweep's own.

        Raises:
            ValueError: for an unknown name, or where no member's figure is finite.
        """
        i = int(self.order(name)[0])
        if not np.isfinite(self.scores(name)[i]):
            raise ValueError(f"sweep: no member has a finite {self._named(name)}: lower the learning rates, say")
        epoch = self._best_epoch(self._named(name), i)
        history = self.runs.history.items()
        best = {which: float(values[i, epoch]) for which, values in history}
        last = {which: float(values[i]) for which, values in self.last().items()}
        settings = {which: values[i].item() for which, values in self.settings.items()}
        state = self.member(i, best=self.runs.best is not None and name in (None, self.figure))
        return Member(i, settings, int(self.seeds[i]), int(self.runs.epochs_run[i]), last, best, state)

    def member(self, i: int, *, best: bool = False) -> TrainState:
        """The last state of a member, or its best one: an ordinary TrainState for `fit`, `evaluate`, `predict`.

        Raises:
            ValueError: if there is no such member, or no best states were kept.
        """
        i = self.index(i)
        states = self.runs.best if best else self.runs.train_state
        if states is None:
            raise ValueError(
                "sweep: no best states were kept: have make return run(step, keep=stopping.keep_best(), …)"
            )
        return jax.tree.map(lambda leaf: leaf[i], states)

    def means(self, name: str | None = None) -> list[tuple[dict[str, float], float, float]]:
        """Each point's settings with mean and standard deviation of its figure over the seeds, the best first."""
        scores, points = (
            self.scores(name).astype(float),
            np.stack([*self.settings.values()], 1) if self.settings else None,
        )
        groups: dict[tuple[float, ...], list[int]] = {}
        for i in range(len(self)):
            groups.setdefault(() if points is None else tuple(points[i]), []).append(i)
        rows = []
        for members in groups.values():
            point = {name: values[members[0]].item() for name, values in self.settings.items()}
            rows.append((point, float(scores[members].mean()), float(scores[members].std())))
        sign = -1 if self._greater(self._named(name)) else 1
        return sorted(rows, key=lambda row: sign * row[1] if np.isfinite(row[1]) else np.inf)

    def index(self, i: int) -> int:
        """The number of a member, checked."""
        i = whole_number("sweep: member", i, least=0)
        if i >= len(self):
            raise ValueError(f"sweep: there is no member {i}: there are {len(self)}, from 0 to {len(self) - 1}")
        return i

    def _named(self, name: str | None) -> str:
        if name is None:
            return self.figure
        if name not in self.runs.history:
            raise ValueError(f"sweep: no figure {seen(name)}: one of {', '.join(map(repr, self.runs.history))}")
        return name

    def _greater(self, name: str) -> bool:
        return self.maximise if name == self.figure else not name.endswith(LOSS_LIKE)

    def _best_epoch(self, name: str, i: int) -> int:
        values = np.asarray(self.runs.history[name])[i]
        if self.runs.best is None:
            return max(int(self.runs.epochs_run[i]) - 1, 0)
        return int(np.nanargmax(values) if self._greater(name) else np.nanargmin(values))
