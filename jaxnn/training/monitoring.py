"""The watch that `fit` keeps from the host: state machines that read a figure of each epoch, and the best state.

The machines are those of `stopping`, compiled once into one small program. The best state is copied when there is a
better one, because an epoch writes its result into the memory of an older state.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxnn.checks import seen
from jaxnn.mistakes import factory_hint
from jaxnn.stopping import Best, Decision, Monitor, Monitors, keep_best, together
from jaxnn.types import Array, Fit, TrainState, Tree

LOSSES = ("loss", "validation_loss")


class Watch(NamedTuple):
    """What is watched in a training, by which machines; `name` is None where nothing is."""

    name: str | None
    stopping: Monitor | None
    plateau: Monitor | None
    keep: Monitor | None
    restore: bool


def watch_of(
    name: str | None,
    figures: tuple[str, ...],
    stopping: Monitor | None,
    plateau: Monitor | None,
    keep: Monitor | None,
    restore_best: bool,
) -> Watch:
    """The watch that `fit` was asked for; figures are the names that the history will have, the default one last.

    Raises ValueError for a name that is none of them, that nothing reads, or that machines read the wrong way up, and
    TypeError for what is no machine.
    """
    for what, machine in (("stopping", stopping), ("plateau", plateau), ("keep", keep)):
        if machine is not None and not isinstance(machine, Monitor):
            hint = factory_hint(machine)
            if isinstance(machine, int):
                hint = f"; give stopping.early_stopping({machine!r}), say"
            raise TypeError(f"fit: {what} must be a machine of jaxnn.stopping, got {seen(machine)}{hint}")
    if stopping is not None and keep is None and restore_best:
        keep = keep_best(stopping.maximise)
    if (stopping, plateau, keep) == (None, None, None):
        if name is not None:
            raise ValueError(f"fit: watch={name!r}, but nothing reads it: give stopping, plateau or keep")
        return Watch(None, None, None, None, False)
    if name is not None and name not in figures:
        raise ValueError(f"fit: watch must be one of {', '.join(map(repr, figures))}, got {name!r}")
    machine = together(stopping, plateau=plateau, keep=keep)  # refuses machines that differ in what is better
    name = name or figures[-1]
    if name.endswith("accuracy") and not machine.maximise:
        raise ValueError(f"fit: {name} is better when greater: give the machines that watch it maximise=True")
    if name in LOSSES and machine.maximise:
        raise ValueError(f"fit: {name} is better when smaller: the machines that watch it must not maximise")
    return Watch(name, stopping, plateau, keep, restore_best)


def begin(watch: Watch, monitors: Monitors | None) -> Monitors | None:
    """What the machines remember before the first epoch: what is given, and nothing where they are new."""
    if monitors is not None and not isinstance(monitors, Monitors):
        raise TypeError(f"fit: monitors must be Monitors, as in fit(...).monitors, got {type(monitors).__name__}")
    if watch.name is None:
        if monitors is not None:
            raise ValueError("fit: monitors are given, but no machine: give stopping, plateau or keep as before")
        return None
    fresh = first_watch(together(watch.stopping, plateau=watch.plateau, keep=watch.keep))
    given = monitors or Monitors()
    return Monitors(
        None if fresh.stopping is None else given.stopping or fresh.stopping,
        None if fresh.plateau is None else given.plateau or fresh.plateau,
        None if fresh.best is None else given.best or fresh.best,
    )


def look(watch: Watch, monitors: Monitors, figure: float, train_state: TrainState) -> Monitors:
    """The machines after another epoch; its state is copied if it is the best so far."""
    best = monitors.best
    bare = monitors if best is None else monitors._replace(best=Best(best.metric, ()))
    new, decision = watching(together(watch.stopping, plateau=watch.plateau, keep=watch.keep), bare, figure)
    if best is None or new.best is None:
        return new
    return new._replace(best=Best(new.best.metric, copied(train_state) if bool(decision.improved) else best.kept))


@jax.jit
def first_watch(machine: Monitor) -> Monitors:
    """What `together` remembers at first, without the parameters, which the host keeps."""
    return cast(Monitors, machine.init(()))


@jax.jit
def watching(machine: Monitor, monitors: Monitors, figure: Array) -> tuple[Monitors, Decision]:
    """What `together` makes of another figure, likewise."""
    return machine.update(monitors, figure, ())


def copied(tree: Tree) -> Tree:
    """The tree in memory of its own, which no donation reaches."""
    return jax.tree.map(_copied, tree)


def _copied(leaf: Any) -> Any:
    """A copy of an array; of a typed key by its data, because `device_put` leaves a key on several devices as it is."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.device_put(jax.random.key_data(leaf), may_alias=False)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, may_alias=False)


def stopped(monitors: Monitors | None) -> bool:
    """True once training should have stopped."""
    return monitors is not None and monitors.stopping is not None and bool(monitors.stopping.stopped)


def best_state(monitors: Monitors | None) -> TrainState | None:
    """The best state so far, where one is kept."""
    kept = None if monitors is None or monitors.best is None else monitors.best.kept
    return kept if isinstance(kept, TrainState) else None


def outcome(
    watch: Watch,
    monitors: Monitors | None,
    train_state: TrainState,
    history: dict[str, list[float]],
    position: int,
) -> Fit:
    """What a training gives back, the best state restored where it was stopped early; it began at that position."""
    epochs = len(history.get("loss", ()))
    best = best_state(monitors)
    best_epoch = None if best is None else int(best.epoch)
    early, best_was = stopped(monitors), ""
    if best_epoch is not None and monitors is not None and monitors.best is not None:
        best_was = f"; the best, {float(monitors.best.metric):.6g}, was that of epoch {best_epoch}"
    why = f"all {epochs} epochs were run" if epochs != 1 else "the one epoch was run"
    if position and epochs:
        first = f"the rest of epoch {int(train_state.epoch) - epochs + 1}, from example {position} on,"
        further = f" and {epochs - 1} further epoch{'s' * (epochs > 2)} were run"
        why = first + (further if epochs > 1 else " was run")
    if early and monitors is not None and monitors.stopping is not None:
        waited = int(monitors.stopping.waited)
        why = f"{watch.name} had not improved for {waited} epoch{'s' * (waited != 1)}"
        if not epochs:
            why = f"training had stopped before, {why}: no epoch was run"
        why += best_was
        if best is not None and watch.restore:
            train_state = best
            why += ", whose state was restored"
    elif best_epoch is not None and epochs and best_epoch < int(train_state.epoch):
        why += f"{best_was}, whose state is in best"
    return Fit(train_state, history, best, best_epoch, early, why, monitors)
