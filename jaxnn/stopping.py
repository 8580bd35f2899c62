"""Early stopping, plateaus and the best state: pure state machines that read one metric after another.

`init() -> state`; `update(state, metric) -> (state, decision)`. They give the same results in a Python loop, inside
`scan` and under `vmap`. A metric m improves on the best b so far if it is better by more than a minimum ε or, with
`relative`, by more than ε·|b|, so that negative metrics are treated alike. A metric that is not finite is a failure:
it never improves, and the decision says `failed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp

from jaxnn.arrays import in_dtype, poisoned
from jaxnn.checks import number, seen, whole_number, yes_or_no
from jaxnn.interfaces import Shown
from jaxnn.showing import shown
from jaxnn.types import Array, Tree

__all__ = [
    "Monitor", "Monitors", "Progress", "Decision", "Best",
    "early_stopping", "reduce_on_plateau", "keep_best", "together",
]  # fmt: skip
__dir__ = __all__.copy


class Monitor(Shown):
    """A state machine: `init(...) -> state`, `update(state, metric, ...) -> (state, decision)`.

    `maximise` is True where a greater metric is better. `Monitor(init, update, maximise)` makes one from two functions.
    """

    if TYPE_CHECKING:

        def __init__(
            self, init: Callable[..., Tree], update: Callable[..., tuple[Tree, Tree]], maximise: bool = False
        ) -> None: ...

    maximise = cast(Any, False)
    init, update = cast(Any, None), cast(Any, None)


class OwnMonitor(Monitor):
    """A machine made from a user's functions."""

    shown_as = "Monitor"

    init: Callable[..., Tree] = field()
    update: Callable[..., tuple[Tree, Tree]] = field()
    maximise: bool = False


Monitor.made_as = OwnMonitor


@shown()
class Progress(NamedTuple):
    """The state of `early_stopping` and `reduce_on_plateau`.

    Attributes:
        best_metric: the best metric so far; ±∞ before the first.
        waited: metrics in a row without improvement, int32.
        cooling: metrics still to be ignored after a reduction, int32.
        scale: the factor for updates, 1 at first.
        stopped: True once training should stop.
    """

    best_metric: Array
    waited: Array
    cooling: Array
    scale: Array
    stopped: Array


@shown()
class Decision(NamedTuple):
    """What to do (stop, and the factor for updates), and why (improved, failed)."""

    stop: Array
    scale: Array
    improved: Array
    failed: Array


@shown()
class Best(NamedTuple):
    """The state of `keep_best`: the best metric, and a copy of the tree that achieved it, often the parameters."""

    metric: Array
    kept: Tree


@shown()
class Monitors(NamedTuple):
    """The states of the machines of one training; None for a machine that is not used."""

    stopping: Progress | None = None
    plateau: Progress | None = None
    best: Best | None = None


class early_stopping(Monitor):
    """Stops at the `patience`-th metric in a row without improvement, or at a failure, and remains stopped.

    An improvement is one by more than `min_improvement`, or, with `relative`, by that part of the best metric;
    with `maximise`, greater metrics are better.

    Raises:
        ValueError: if the patience is below 1, or the minimum improvement negative.
        TypeError: if the patience is not a whole number.

    Source: Prechelt (1998), "Early stopping - but when?".

    >>> monitor = early_stopping(patience=2)
    >>> state, stops = monitor.init(), []
    >>> for metric in (3.0, 2.0, 2.5, 2.0, 1.0):
    ...     state, decision = monitor.update(state, metric)
    ...     stops.append(bool(decision.stop))
    >>> stops
    [False, False, False, True, True]
    """

    patience: int
    _: KW_ONLY
    min_improvement: float = 0.0
    relative: bool = False
    maximise: bool = False

    def __post_init__(self) -> None:
        _check(self)

    def init(self) -> Progress:
        return _first(self.maximise)

    def update(self, state: Progress, metric: Array) -> tuple[Progress, Decision]:
        read, late, improved, failed = _read(self, state, metric)
        new = read._replace(stopped=state.stopped | late | failed)
        return new, Decision(new.stopped, new.scale, improved, failed)


class reduce_on_plateau(Monitor):
    """Multiplies the scale by `factor` at the `patience`-th metric in a row without improvement.

    The next `cooldown` metrics may improve the best, but are not counted. The scale never falls below
    `min_scale`. Multiply updates by `decision.scale`: that works for every optimizer. What counts as an improvement is
    said at `early_stopping`.

    Raises:
        ValueError: if the factor is not between 0 and 1, or another number out of range.
        TypeError: if the patience or the cooldown is not a whole number.

    Source: He et al. (2016), "Deep residual learning for image recognition", section 3.4: the rate is divided by 10
    "when the error plateaus".

    >>> monitor = reduce_on_plateau(factor=0.5, patience=1)
    >>> state, first = monitor.update(monitor.init(), 1.0)
    >>> print(first.scale, monitor.update(state, 1.0)[1].scale)
    1.0 0.5
    """

    factor: float = 0.1
    _: KW_ONLY
    patience: int = 10
    min_improvement: float = 0.0
    relative: bool = False
    maximise: bool = False
    cooldown: int = 0
    min_scale: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        where = "reduce_on_plateau"
        self._set(
            factor=number(f"{where}: factor", self.factor, above=0.0, below=1.0),
            cooldown=whole_number(f"{where}: cooldown", self.cooldown, least=0),
            min_scale=number(f"{where}: min_scale", self.min_scale, least=0.0, most=1.0),
        )

    def init(self) -> Progress:
        return _first(self.maximise)

    def update(self, state: Progress, metric: Array) -> tuple[Progress, Decision]:
        read, late, improved, failed = _read(self, state, metric)
        factor, least = (in_dtype(setting, state.scale.dtype) for setting in (self.factor, self.min_scale))
        scale = jnp.where(late, jnp.maximum(state.scale * factor, least), state.scale)
        new = read._replace(
            waited=jnp.where(late, 0, read.waited),
            cooling=jnp.where(late, self.cooldown, read.cooling),
            scale=poisoned(scale, factor, least),
        )
        return new, Decision(new.stopped, new.scale, improved, failed)


class keep_best(Monitor):
    """Keeps the tree with the best finite metric, the first of equals.

    `init(tree) -> Best` copies, so that donating the tree loses nothing; `update(best, metric, tree) -> (Best,
    improved)`. The tree may be a network's parameters, a whole TrainState, or any other.

    >>> keeper = keep_best()
    >>> best, _ = keeper.update(keeper.init(jnp.array(0.0)), 2.0, jnp.array(5.0))
    >>> best, improved = keeper.update(best, 3.0, jnp.array(6.0))
    >>> print(best.metric, best.kept, improved)
    2.0 5.0 False
    """

    maximise: bool = False

    def __post_init__(self) -> None:
        self._set(maximise=yes_or_no("keep_best: maximise", self.maximise))

    def init(self, tree: Tree) -> Best:
        return Best(_worst(self.maximise), jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree))

    def update(self, best: Best, metric: Array, tree: Tree) -> tuple[Best, Array]:
        metric = jnp.asarray(metric).astype(best.metric.dtype)
        improved = _improves(metric, best.metric, 0.0, False, self.maximise)
        kept = jax.tree.map(lambda new, old: jnp.where(improved, new, old), tree, best.kept)
        return Best(jnp.where(improved, metric, best.metric), kept), improved


class together(Monitor):
    """Up to three machines that read the same metric, as one.

    `init(tree) -> Monitors`; `update(monitors, metric, tree) -> (Monitors, Decision)`: `stop` comes from
    `stopping`, `scale` from `plateau`, and `improved` from `keep`, or else from the first of the others. `fit` uses it.
    The tree is what `keep` keeps. Once `stopping` has stopped, nothing changes any more: a loop that cannot be left
    early, as in `scan` or under `vmap`, ends with the same states as one that can.

    Raises:
        ValueError: if one maximises what another minimises.

    >>> machine = together(early_stopping(2), keep=keep_best())
    >>> monitors = machine.init(jnp.array(0.0))
    >>> for metric, tree in ((3.0, 1.0), (2.0, 2.0), (2.5, 3.0), (2.5, 4.0)):
    ...     monitors, decision = machine.update(monitors, metric, jnp.array(tree))
    >>> print(decision.stop, monitors.best.kept)
    True 2.0
    """

    stopping: Monitor | None = None
    _: KW_ONLY
    plateau: Monitor | None = None
    keep: Monitor | None = None

    def __post_init__(self) -> None:
        for machine in self._machines():
            if not isinstance(machine, Monitor):
                hint = "; a factory needs its parentheses" if callable(machine) else ""
                raise TypeError(f"together: expected machines such as early_stopping(5), got {seen(machine)}{hint}")
        if len({machine.maximise for machine in self._machines()}) > 1:
            raise ValueError("together: the machines read one metric: all must maximise it, or none")

    def _machines(self) -> list[Monitor]:
        return [machine for machine in (self.stopping, self.plateau, self.keep) if machine is not None]

    @property
    def maximise(self) -> bool:
        return any(machine.maximise for machine in self._machines())

    def init(self, tree: Tree) -> Monitors:
        return Monitors(
            None if self.stopping is None else self.stopping.init(),
            None if self.plateau is None else self.plateau.init(),
            None if self.keep is None else self.keep.init(tree),
        )

    def update(self, monitors: Monitors, metric: Array, tree: Tree) -> tuple[Monitors, Decision]:
        metric = jnp.asarray(metric)
        over = jnp.asarray(False) if monitors.stopping is None else monitors.stopping.stopped
        stop, scale, improved = over, jnp.ones((), jnp.result_type(float)), jnp.asarray(False)
        frozen = lambda old, new: jax.tree.map(lambda a, b: jnp.where(over, a, b), old, new)  # noqa: E731
        if self.plateau is not None:
            state, decision = self.plateau.update(monitors.plateau, metric)
            state, improved = frozen(monitors.plateau, state), decision.improved
            monitors, scale = monitors._replace(plateau=state), state.scale
        if self.stopping is not None:
            state, decision = self.stopping.update(monitors.stopping, metric)
            stop, improved = decision.stop, decision.improved
            monitors = monitors._replace(stopping=frozen(monitors.stopping, state))
        if self.keep is not None:
            kept, improved = self.keep.update(monitors.best, jnp.where(over, jnp.nan, metric), tree)
            monitors = monitors._replace(best=kept)
        return monitors, Decision(stop, scale, improved & ~over, ~jnp.isfinite(metric))


Waiting: TypeAlias = early_stopping | reduce_on_plateau


def _check(monitor: Waiting) -> None:
    where = type(monitor).__name__
    monitor._set(
        patience=whole_number(f"{where}: patience", monitor.patience, least=1),
        min_improvement=number(f"{where}: min_improvement", monitor.min_improvement, least=0.0),
        relative=yes_or_no(f"{where}: relative", monitor.relative),
        maximise=yes_or_no(f"{where}: maximise", monitor.maximise),
    )


def _first(maximise: bool) -> Progress:
    nought = jnp.zeros((), jnp.int32)
    return Progress(_worst(maximise), nought, nought + 0, jnp.ones((), jnp.result_type(float)), jnp.asarray(False))


def _read(monitor: Waiting, state: Progress, metric: Array) -> tuple[Progress, Array, Array, Array]:
    """The state after another metric; whether patience has run out, the metric improves, and it is a failure."""
    metric = jnp.asarray(metric).astype(state.best_metric.dtype)
    failed = ~jnp.isfinite(metric)
    needed = in_dtype(monitor.min_improvement, state.best_metric.dtype)
    improved = _improves(metric, state.best_metric, needed, monitor.relative, monitor.maximise) & ~state.stopped
    best = poisoned(jnp.where(improved, metric, state.best_metric), needed)
    waited = jnp.where(improved | (state.cooling > 0), 0, state.waited + 1)
    waited = jnp.where(state.stopped, state.waited, waited)
    late, cooling = waited >= monitor.patience, jnp.maximum(state.cooling - 1, 0)
    return Progress(best, waited, cooling, state.scale, state.stopped), late, improved, failed


def _worst(maximise: bool) -> Array:
    return jnp.asarray(-jnp.inf if maximise else jnp.inf, jnp.result_type(float))


def _improves(metric: Array, best: Array, least: Array | float, relative: bool, maximise: bool) -> Array:
    gain = metric - best if maximise else best - metric
    needed = jnp.where(jnp.isfinite(best), least * jnp.abs(best), 0) if relative else least  # ∞ − ∞ is NaN
    return jnp.isfinite(metric) & (gain > needed)
