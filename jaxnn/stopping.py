"""When to stop, when to slow down, what to keep: pure state machines that read one metric after another.

`init() -> state`; `update(state, metric) -> (state, decision)`. They run in a Python loop, inside `scan` and under
`vmap`, with the same answer. A metric m improves on the best b so far if it is better by more than a minimum ε, or,
where `relative`, by more than ε·|b|, so that negative metrics are treated alike. A metric that is not finite is a
failure: it never improves, and the decision says `failed`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import number, seen, whole_number, yes_or_no
from jaxnn.showing import optimizer_line, shown
from jaxnn.types import Array, Params

__all__ = [
    "Monitor", "Monitors", "Progress", "Decision", "Best",
    "early_stopping", "reduce_on_plateau", "keep_best", "together",
]  # fmt: skip


def __dir__() -> list[str]:
    return list(__all__)


@shown(optimizer_line)
class Monitor(NamedTuple):
    """A state machine: `init(...) -> state`, `update(state, metric, ...) -> (state, decision)`.

    `maximise` says which way is better.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]
    maximise: bool = False


@shown()
class Progress(NamedTuple):
    """What `early_stopping` and `reduce_on_plateau` remember.

    Attributes:
        best: the best metric so far; ±∞ before the first.
        waited: metrics in a row without improvement, int32.
        cooling: metrics that are still not counted after a reduction, int32.
        scale: the factor for updates, 1 at first.
        stopped: True once training should have stopped.
    """

    best: Array
    waited: Array
    cooling: Array
    scale: Array
    stopped: Array


@shown()
class Decision(NamedTuple):
    """What is to be done: stop?, the factor for updates, and why: improved, failed."""

    stop: Array
    scale: Array
    improved: Array
    failed: Array


@shown()
class Best(NamedTuple):
    """What `keep_best` keeps: the best metric and copies of the parameters that had it."""

    metric: Array
    params: Params


@shown()
class Monitors(NamedTuple):
    """What the machines of one training remember; None where there is no such machine."""

    stopping: Progress | None = None
    plateau: Progress | None = None
    best: Best | None = None


def early_stopping(
    patience: int, min_improvement: float = 0.0, relative: bool = False, maximise: bool = False
) -> Monitor:
    """Stops at the `patience`-th metric in a row without improvement, or at a failure; and stays stopped.

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
    patience = whole_number("early_stopping: patience", patience, least=1)
    least = number("early_stopping: min_improvement", min_improvement, least=0.0)
    relative = yes_or_no("early_stopping: relative", relative)
    return _monitor(patience, least, relative, yes_or_no("early_stopping: maximise", maximise), None, 0, 0.0)


def reduce_on_plateau(
    factor: float = 0.1,
    patience: int = 10,
    min_improvement: float = 0.0,
    relative: bool = False,
    maximise: bool = False,
    cooldown: int = 0,
    least: float = 0.0,
) -> Monitor:
    """Multiplies the scale by `factor` at the `patience`-th metric in a row without improvement.

    The next `cooldown` metrics may improve the best and are not counted otherwise. The scale stays at least `least`.
    Multiply updates by `decision.scale`: that works for every optimizer.

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
    where = "reduce_on_plateau"
    return _monitor(
        whole_number(f"{where}: patience", patience, least=1),
        number(f"{where}: min_improvement", min_improvement, least=0.0),
        yes_or_no(f"{where}: relative", relative),
        yes_or_no(f"{where}: maximise", maximise),
        number(f"{where}: factor", factor, above=0.0, below=1.0),
        whole_number(f"{where}: cooldown", cooldown, least=0),
        number(f"{where}: least", least, least=0.0, most=1.0),
    )


@cache
def keep_best(maximise: bool = False) -> Monitor:
    """Keeps the parameters of the best finite metric, the first among equals.

    `init(params) -> Best` copies, so that donating the parameters loses nothing; `update(best, metric, params) ->
    (Best, improved)`.

    >>> keeper = keep_best()
    >>> best, _ = keeper.update(keeper.init(jnp.array(0.0)), 2.0, jnp.array(5.0))
    >>> best, improved = keeper.update(best, 3.0, jnp.array(6.0))
    >>> print(best.metric, best.params, improved)
    2.0 5.0 False
    """

    def init(params: Params) -> Best:
        return Best(_worst(maximise), jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params))

    def update(best: Best, metric: Array, params: Params) -> tuple[Best, Array]:
        metric = jnp.asarray(metric).astype(best.metric.dtype)
        improved = _improves(metric, best.metric, 0.0, False, maximise)
        kept = jax.tree.map(lambda new, old: jnp.where(improved, new, old), params, best.params)
        return Best(jnp.where(improved, metric, best.metric), kept), improved

    return Monitor(init, update, maximise)


@cache
def together(stopping: Monitor | None = None, plateau: Monitor | None = None, best: Monitor | None = None) -> Monitor:
    """Up to three machines that read the same metric, as one.

    `init(params) -> Monitors`; `update(monitors, metric, params) -> (Monitors, Decision)`: stop is what `stopping`
    says, scale what `plateau` says, improved what `best` says, or else the first of the others. `fit` is driven by it.
    What is kept as `params` may be any tree, a whole TrainState too. Once `stopping` has stopped nothing changes any
    more, so that a loop that cannot be left, as in `scan` or under `vmap`, ends with what one that is left ends with.

    Raises:
        ValueError: if one maximises what another minimises.

    >>> machine = together(early_stopping(2), best=keep_best())
    >>> monitors = machine.init(jnp.array(0.0))
    >>> for metric, params in ((3.0, 1.0), (2.0, 2.0), (2.5, 3.0), (2.5, 4.0)):
    ...     monitors, decision = machine.update(monitors, metric, jnp.array(params))
    >>> print(decision.stop, monitors.best.params)
    True 2.0
    """
    machines = [machine for machine in (stopping, plateau, best) if machine is not None]
    for machine in machines:
        if not isinstance(machine, Monitor):
            hint = "; a factory needs its parentheses" if callable(machine) else ""
            raise TypeError(f"together: expected machines such as early_stopping(5), got {seen(machine)}{hint}")
    if len({machine.maximise for machine in machines}) > 1:
        raise ValueError("together: the machines read one metric: all must maximise it, or none")

    def init(params: Params) -> Monitors:
        return Monitors(
            None if stopping is None else stopping.init(),
            None if plateau is None else plateau.init(),
            None if best is None else best.init(params),
        )

    def update(monitors: Monitors, metric: Array, params: Params) -> tuple[Monitors, Decision]:
        metric = jnp.asarray(metric)
        over = jnp.asarray(False) if monitors.stopping is None else monitors.stopping.stopped
        stop, scale, improved = over, jnp.ones((), jnp.result_type(float)), jnp.asarray(False)
        frozen = lambda old, new: jax.tree.map(lambda a, b: jnp.where(over, a, b), old, new)  # noqa: E731
        if plateau is not None:
            state, decision = plateau.update(monitors.plateau, metric)
            state, improved = frozen(monitors.plateau, state), decision.improved
            monitors, scale = monitors._replace(plateau=state), state.scale
        if stopping is not None:
            state, decision = stopping.update(monitors.stopping, metric)
            stop, improved = decision.stop, decision.improved
            monitors = monitors._replace(stopping=frozen(monitors.stopping, state))
        if best is not None:
            kept, improved = best.update(monitors.best, jnp.where(over, jnp.nan, metric), params)
            monitors = monitors._replace(best=kept)
        return monitors, Decision(stop, scale, improved & ~over, ~jnp.isfinite(metric))

    return Monitor(init, update, bool(machines) and machines[0].maximise)


@cache
def _monitor(
    patience: int,
    min_improvement: float,
    relative: bool,
    maximise: bool,
    factor: float | None,
    cooldown: int,
    least: float,
) -> Monitor:
    """Without a factor it stops; with one it scales."""

    def init() -> Progress:
        nought = jnp.zeros((), jnp.int32)
        return Progress(_worst(maximise), nought, nought + 0, jnp.ones((), jnp.result_type(float)), jnp.asarray(False))

    def update(state: Progress, metric: Array) -> tuple[Progress, Decision]:
        metric = jnp.asarray(metric).astype(state.best.dtype)
        failed = ~jnp.isfinite(metric)
        improved = _improves(metric, state.best, min_improvement, relative, maximise) & ~state.stopped
        best = jnp.where(improved, metric, state.best)
        waited = jnp.where(improved | (state.cooling > 0), 0, state.waited + 1)
        waited = jnp.where(state.stopped, state.waited, waited)
        late, cooling = waited >= patience, jnp.maximum(state.cooling - 1, 0)
        if factor is None:
            new = Progress(best, waited, cooling, state.scale, state.stopped | late | failed)
        else:
            scale = jnp.where(late, jnp.maximum(state.scale * factor, least), state.scale)
            new = Progress(best, jnp.where(late, 0, waited), jnp.where(late, cooldown, cooling), scale, state.stopped)
        return new, Decision(new.stopped, new.scale, improved, failed)

    return Monitor(init, update, maximise)


def _worst(maximise: bool) -> Array:
    return jnp.asarray(-jnp.inf if maximise else jnp.inf, jnp.result_type(float))


def _improves(metric: Array, best: Array, least: float, relative: bool, maximise: bool) -> Array:
    gain = metric - best if maximise else best - metric
    needed = jnp.where(jnp.isfinite(best), least * jnp.abs(best), 0) if relative else least  # ∞ − ∞ is NaN
    return jnp.isfinite(metric) & (gain > needed)
