"""Monitoring in `fit`: machines that read a figure of each epoch, and the best state.

The machines are those of `stopping`, compiled into one small program. A new best state is copied, because an epoch
writes its result into the memory of an older state.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxnn.checks import seen, yes_or_no
from jaxnn.mistakes import factory_hint
from jaxnn.records import Record
from jaxnn.spmd import transfers
from jaxnn.stopping import Best, Decision, Monitor, Monitors, keep_best, together
from jaxnn.trees import same_shapes
from jaxnn.types import Array, Fit, TrainState, Tree

VALIDATION = "validation_"  # in front of the figures of the validation set
LOSSES = ("loss", f"{VALIDATION}loss")


class Monitoring(Record):
    """The machines of a training, and the name of the figure that they read; None without machines."""

    name: str | None = None
    machine: together = together()
    restore: bool = False

    def begin(self, monitors: Monitors | None) -> Monitors | None:
        """The states of the machines before the first epoch: those that are given, or fresh ones."""
        if monitors is not None and not isinstance(monitors, Monitors):
            raise TypeError(f"fit: monitors must be Monitors, as in fit(...).monitors, got {type(monitors).__name__}")
        if self.name is None:
            if monitors is not None:
                raise ValueError("fit: monitors are given, but no machine: give stopping, plateau or keep as before")
            return None
        fresh, given = _begin(self.machine), monitors or Monitors()
        kept = {name: getattr(given, name) for name in Monitors._fields if getattr(fresh, name) is not None}
        return fresh._replace(**{name: memory for name, memory in kept.items() if memory is not None})

    def first(self, train_state: TrainState, monitors: Monitors | None) -> Monitors | None:
        """The states of the machines of a `run`: those that are given, or fresh ones; None without machines."""
        if monitors is not None and not isinstance(monitors, Monitors):
            raise TypeError(f"run: monitors must be Monitors, as in Run.monitors, got {type(monitors).__name__}")
        if self.name is None:
            if monitors is not None:
                raise ValueError("run: monitors are given, but no machine: give stopping, plateau or keep as before")
            return None
        fresh, given = self.machine.init(train_state), monitors or Monitors()
        if fresh.best is not None and given.best is not None:
            advice = "leave it out, monitors._replace(best=None)"
            same_shapes("run: monitors.best.kept is not like train_state", given.best.kept, fresh.best.kept, advice)
        parts = ((name, getattr(fresh, name), getattr(given, name)) for name in Monitors._fields)
        return Monitors(**{name: new if new is None or old is None else old for name, new, old in parts})

    def update(self, monitors: Monitors | None, figures: dict[str, Array], train_state: TrainState) -> Monitors | None:
        """The states of the machines of a `run` after another epoch."""
        if monitors is None or self.name is None:
            return monitors
        return self.machine.update(monitors, figures[self.name], train_state)[0]

    def observe(self, monitors: Monitors | None, figures: dict[str, float], train_state: TrainState) -> Monitors | None:
        """The states of the machines after another epoch, whose train_state is copied if it is the best so far."""
        if monitors is None or self.name is None:
            return monitors
        best = monitors.best
        bare = monitors if best is None else monitors._replace(best=Best(best.metric, ()))
        new, decision = _observe(self.machine, bare, figures[self.name])
        if best is None or new.best is None:
            return new
        return new._replace(best=Best(new.best.metric, copied(train_state) if bool(decision.improved) else best.kept))


def monitoring(
    name: str | None,
    figures: tuple[str, ...],
    *,
    stopping: Monitor | None,
    plateau: Monitor | None,
    keep: Monitor | None,
    restore_best: bool,
    where: str = "fit",
) -> Monitoring:
    """The monitoring that the arguments of `fit` or `run` ask for.

    `figures` are the names of the history, the default one last.

    Raises ValueError for an unknown name, a name that no machine reads, or machines that maximise a loss or minimise an
    accuracy, and TypeError for anything but a machine.
    """
    restore_best = yes_or_no(f"{where}: restore_best", restore_best)
    for what, machine in (("stopping", stopping), ("plateau", plateau), ("keep", keep)):
        if machine is not None and not isinstance(machine, Monitor):
            hint = factory_hint(machine)
            if isinstance(machine, int):
                hint = f"; give stopping.early_stopping({machine!r}), say"
            raise TypeError(f"{where}: {what} must be a machine of jaxnn.stopping, got {seen(machine)}{hint}")
    if stopping is not None and keep is None and restore_best:
        keep = keep_best(maximise=stopping.maximise)
    if (stopping, plateau, keep) == (None, None, None):
        if name is not None:
            raise ValueError(f"{where}: watch={name!r}, but nothing reads it: give stopping, plateau or keep")
        return Monitoring()
    if name is not None and name not in figures:
        hint = (
            ""
            if any(figure.startswith(VALIDATION) for figure in figures) or not name.startswith(VALIDATION)
            else (": give a validation set")
        )
        raise ValueError(f"{where}: watch must be one of {', '.join(map(repr, figures))}, got {name!r}{hint}")
    machine = together(stopping=stopping, plateau=plateau, keep=keep)  # refuses machines that differ in what is better
    name = name or figures[-1]
    if name.endswith("accuracy") and not machine.maximise:
        raise ValueError(f"{where}: {name} is better when greater: give the machines that watch it maximise=True")
    if name in LOSSES and machine.maximise:
        raise ValueError(f"{where}: {name} is better when smaller: the machines that watch it must not maximise")
    return Monitoring(name, machine, restore_best)


@jax.jit
def _begin(machine: Monitor) -> Monitors:
    """The first state of `together`, without the parameters, which the host keeps."""
    return cast(Monitors, machine.init(()))


@jax.jit
def _observe(machine: Monitor, monitors: Monitors, figure: Array) -> tuple[Monitors, Decision]:
    """The next state of `together`, likewise."""
    return machine.update(monitors, figure, ())


def stopped(monitors: Monitors | None) -> bool:
    """True once training should have stopped."""
    return monitors is not None and monitors.stopping is not None and bool(monitors.stopping.stopped)


def update_scale(monitors: Monitors | None) -> Array | None:
    """The factor for the updates of the next epoch; None without a plateau machine."""
    return None if monitors is None or monitors.plateau is None else monitors.plateau.scale


def best_state(monitors: Monitors | None) -> TrainState | None:
    """The best state so far; None if none is kept."""
    kept = None if monitors is None or monitors.best is None else monitors.best.kept
    return kept if isinstance(kept, TrainState) else None


def copied(tree: Tree) -> Any:
    """A copy of the tree in other memory, which no donation reaches."""
    return jax.tree.map(_copied, tree)


def _copied(leaf: Any) -> Any:
    """A copy of an array; of a typed key by its data, since `device_put` does not copy a key on several devices."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = transfers.copied(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return transfers.copied(leaf)


def outcome(
    watched: Monitoring,
    monitors: Monitors | None,
    train_state: TrainState,
    history: dict[str, list[float]],
    position: int,
) -> Fit:
    """The Fit of a training that began at that position; after early stopping, with the best state restored."""
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
        why = f"{watched.name} had not improved for {waited} epoch{'s' * (waited != 1)}"
        if not epochs:
            why = f"training had stopped before, {why}: no epoch was run"
        why += best_was
        if best is not None and watched.restore:
            train_state = best
            why += ", whose state was restored"
    elif best_epoch is not None and epochs and best_epoch < int(train_state.epoch):
        why += f"{best_was}, whose state is in best"
    return Fit(train_state, history, best, best_epoch, early, why, monitors)
