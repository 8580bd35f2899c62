"""Any step of a finished training again: `replay` runs the same compiled chunk from the nearest state that is known.

Letters: N examples, B batch size, S batches of an epoch.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.arrays import is_floating
from jaxnn.checks import seen, whole_number
from jaxnn.descriptions import Json, from_description
from jaxnn.mistakes import not_traced
from jaxnn.shapes import example_shape
from jaxnn.sources import in_memory
from jaxnn.spmd.batches import beside
from jaxnn.stopping import Monitors
from jaxnn.training.chunks import Noted, as_count, chunk_of
from jaxnn.training.divergence import DivergenceError
from jaxnn.training.driver import Job
from jaxnn.training.entry import entered
from jaxnn.training.epochs import Epoch
from jaxnn.training.members import Progress, float_type
from jaxnn.training.moments import Moment, moment
from jaxnn.training.monitoring import Monitoring, copied, update_scale
from jaxnn.training.own_steps import rows_of
from jaxnn.training.results import EpochResult, begun, cursor
from jaxnn.training.run import run
from jaxnn.training.steps import init_train_state, train_step
from jaxnn.training.sweep_results import Sweep
from jaxnn.types import EPOCH_START, TrainState

SOURCES = "a Sweep, a TrainState, a checkpoint or a folder of them, a list of such, or a DivergenceError"


class Known(NamedTuple):
    """A state from which steps are repeated, and what belongs to it."""

    train_state: TrainState
    monitors: Monitors | None = None
    noted: Noted | None = None
    in_a_row: int = 0
    settings: dict[str, Json] | None = None  # of the fit that saved it


def replay(
    source: Any, step: int | None = None, member: int | None = None, *, of: Any = None, data: Any = None,
    validation: Any = None,
) -> Moment:  # fmt: skip
    """A step of a training that is over: the state before it and its batch, as they were.

    The steps from the nearest known state to that one are taken again by the compiled chunk that took them, so that
    the bits are the same on the same machine: a `Sweep` repeats all members side by side, a folder of `fit` starts from
    its checkpoints. What happens there can then be asked of the `Moment`: `explain()`, `diagnose()`, `gradcheck()`.

    Args:
        source: a `Sweep`; a TrainState, from which the steps are taken; a checkpoint, a folder of them, or a
            `checkpoint.Keep`; a list of such, of which the nearest before the step is used; or a DivergenceError, for
            the step at which it arose.
        step: the number of the step, as TrainState.step counts them; of a member of a sweep that diverged, by default
            the step at which it did.
        member: of a sweep, its number.
        of: the `run` whose steps they are. A folder of `fit` says by itself what its training was, unless that
            included functions, such as an augmentation.
        data: the data of the training, except for a sweep and an error, which have them.
        validation: its validation set, where a plateau reads a figure of it between the known state and the step.

    Raises:
        ValueError: if there is no such step or member, or no known state before it.
        TypeError: for another source, or without `of` or `data` where they are needed.

    >>> from jaxnn import init_train_state, losses, mlp, sgd
    >>> import jax.numpy as jnp
    >>> net, x = mlp([4, 1]), jnp.linspace(-1, 1, 20)[:, None]
    >>> train = run(train_step(net, losses.mse, sgd(0.1)), epochs=3, batch_size=8)
    >>> replay(init_train_state(net, sgd(0.1), 0, (1,)), 5, of=train, data=(x, x**2))
    Moment(step 5, epoch 1, position 16, batch of 4)
    """
    if isinstance(source, DivergenceError):
        if any(given is not None for given in (step, member, of, data, validation)):
            raise TypeError("replay: a DivergenceError has its step and its data: give it alone")
        return _of_error(source)
    not_traced("replay", "take the steps by a run there", source, step, data)
    step = step.item() if isinstance(step, (jax.Array, np.ndarray)) and step.shape == () else step  # a state's step
    step = step if step is None else whole_number("replay: step", step, least=0)
    if isinstance(source, Sweep):
        if any(given is not None for given in (of, data, validation)):
            raise TypeError("replay: a sweep has its runs and its data: leave out of=, data= and validation=")
        return _of_sweep(source, step, member)
    if member is not None:
        raise TypeError("replay: member is of a Sweep only")
    if data is None:
        raise TypeError("replay: data= is missing, the data of the training")
    if step is None:
        raise TypeError("replay: step= is missing, the number of a step")
    from jaxnn.checkpoint import Damaged  # imported where it is used: most replays are of sweeps

    *others, last = _known_before(source, step)
    for known in others:
        with suppress(Damaged):  # an older one gives the same step
            return _from(known, step, of, data, validation)
    return _from(last, step, of, data, validation)


def _of_error(error: DivergenceError) -> Moment:
    if error.moment is None and error.leaf != "loss" and error.leaf in error.history:
        raise ValueError(
            f"replay: no step is at fault, the {error.leaf} after step {error.step} is not finite: look at evaluate or "
            "predict with this error's train_state"
        )
    if error.moment is None:
        raise ValueError(
            "replay: this error has no step, since it was pickled, or since no step is at fault: give replay its "
            "train_state, with of= and data="
        )
    return error.moment


# ---------------------------------------------------------------- a member of a sweep


def _of_sweep(sweep: Sweep, step: int | None, member: int | None) -> Moment:
    if member is None:
        raise TypeError(f"replay: member= is missing, a number from 0 to {len(sweep) - 1}")
    if sweep.origin is None:
        raise ValueError(
            "replay: this sweep was pickled, without its programs and its data: give replay the first state of a "
            "member, with of= and data="
        )
    origin, i = sweep.origin, sweep.index(member)
    first = i // origin.at_once * origin.at_once
    row, numbers = i - first, jax.tree.map(lambda leaf: leaf[i], origin.numbers)
    made, epoch = origin.members.entered(numbers, origin.order, origin.data)
    batches = -(-epoch.size(origin.data) // made.batch_size)
    ran = int(sweep.runs.epochs_run[i])
    begin = int(sweep.runs.train_state.step[i]) - ran * batches

    def before(epochs: int, steps: int) -> Progress:
        """The members after a number of epochs and of further steps."""
        known = max((at for group, at in origin.remembered if group == first and at <= epochs), default=0)
        progress = copied(origin.remembered[first, known]) if known else origin.begin(first)
        for _ in range(known, epochs):
            progress = origin.advance(first, progress)[0]
        return origin.advance(first, progress, steps)[0] if steps else progress

    def at(step: int) -> Moment:
        epochs, steps = divmod(step - begin, batches)
        if not 0 <= epochs < ran:
            raise ValueError(
                f"replay: member {i} took the steps {begin} to {begin + ran * batches - 1}, in {ran} epochs: there is "
                f"no step {step}"
            )
        progress = before(epochs, steps)
        state = jax.tree.map(lambda leaf: leaf[row], progress.train_state)
        state = state._replace(**cursor(int(progress.epoch), int(progress.position)))
        scale = update_scale(progress.monitors)
        return moment(epoch, state, origin.data, None if scale is None else scale[row])

    if step is not None:
        return at(step)
    bad = np.flatnonzero(~np.isfinite(sweep.runs.history.get("loss", np.zeros((len(sweep), 0)))[i, :ran]))
    if not len(bad):
        raise TypeError(f"replay: step= is missing; the loss of member {i} is finite throughout")
    losses = np.asarray(before(int(bad[0]) + 1, 0).noted.notes.loss[row])
    step = begin + int(bad[0]) * batches + int(np.flatnonzero(~np.isfinite(losses))[0])
    found = at(step)
    floats = [leaf for leaf in jax.tree.leaves(found.train_state.params) if is_floating(leaf)]
    sound = all(bool(np.isfinite(np.asarray(leaf, np.float64)).all()) for leaf in floats)
    return found if sound else at(step - 1)  # whose update was not finite


# ---------------------------------------------------------------- one training


def _from(known: TrainState | str, step: int, of: Any, data: Any, validation: Any) -> Moment:
    """The step, from a state or from a checkpoint, which may turn out to be damaged."""
    if isinstance(known, TrainState):
        return _Repeated(_run_of(None, of), Known(known), data, validation).at(step)
    from jaxnn.checkpoint.states import read

    settings = read(known, ()).metadata.get("settings")
    made = _run_of(settings, of)
    return _Repeated(made, _read(known, settings, _like(made, data)), data, validation).at(step)


def _known_before(source: Any, step: int) -> list[TrainState | str]:
    """The known states that are not behind the step, or the checkpoints that have them, the latest first."""
    from jaxnn.checkpoint.folders import Keep, Latest

    found: list[tuple[int, Any]] = []
    for one in source if isinstance(source, (list, tuple)) and not hasattr(source, "_fields") else [source]:
        if isinstance(one, TrainState):
            found.append((int(one.step), one))
        elif isinstance(one, (str, os.PathLike, Keep, Latest)):
            path = one.folder if isinstance(one, Keep) else os.fspath(one)
            found += _in_folder(path) if os.path.isdir(path) else [(_step_of(path), path)]
        else:
            raise TypeError(f"replay: source must be {SOURCES}, got {seen(one)}")
    before = [entry for entry in found if entry[0] <= step]
    if not before:
        steps = ", ".join(str(at) for at, _ in sorted(found, key=lambda entry: entry[0])[:8]) or "none"
        raise ValueError(
            f"replay: no known state is at step {step} or before; those that are known are at steps {steps}. "
            "checkpoint.Keep(folder, last=None) keeps all"
        )
    return [known for _, known in sorted(before, key=lambda entry: entry[0], reverse=True)]


def _read(path: str, settings: dict[str, Json] | None, like: TrainState | None) -> Known:
    """The state in a checkpoint, and what belongs to it."""
    from jaxnn.checkpoint import contents, read
    from jaxnn.training.saving import CLASSES

    there = {name.split("/")[0] for name in contents(path).arrays}
    names = [name for name in ("train_state", "monitors", "noted") if name in there]
    trees, metadata = read(path, names, like={"train_state": like}, classes=CLASSES)
    monitors, noted, in_a_row = trees.get("monitors"), trees.get("noted"), metadata.get("in_a_row", 0)
    return Known(begun(trees["train_state"]), monitors, noted, in_a_row, settings)


def _like(made: run, data: Any) -> TrainState | None:
    """A state as this run has it, whose containers may be another library's."""
    if not isinstance(made.step, train_step):
        return None
    step, x = made.step, entered("data", data)[0]
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
    shape, dtype = example_shape(x), float_type(x)
    return jax.eval_shape(lambda: init_train_state(step.net, step.optimizer, 0, shape, dtype))


def _in_folder(folder: str) -> list[tuple[int, str]]:
    """Steps and paths of the checkpoints in a folder, without those that cannot be read."""
    from jaxnn.checkpoint.folders import SUFFIX

    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(SUFFIX):
            with suppress(ValueError):
                found.append((_step_of(path), path))
    return found


def _step_of(path: str) -> int:
    from jaxnn.checkpoint.states import read

    step = read(path, ()).metadata.get("step")
    if not isinstance(step, int):
        raise ValueError(f"replay: {path} has no TrainState")
    return step


def _run_of(settings: dict[str, Json] | None, of: Any) -> run:
    """The run whose steps are repeated; what `of` does not say is read from the settings in the checkpoint."""
    if isinstance(of, run):
        return of
    if of is not None:
        raise TypeError(f"replay: of must be a run, run(step, epochs=…, batch_size=…), got {seen(of)}")
    if settings is None:
        raise TypeError("replay: of= is missing, the run whose steps they are: run(step, epochs=…, batch_size=…)")
    parts: dict[str, Any] = {}
    for name in ("net", "loss", "optimizer", "penalty", "gradient", "augment", "monitors"):
        parts[name] = _made(name, settings[name])
    metrics = {entry["name"]: _made(f"metric {entry['name']!r}", entry["metric"]) for entry in settings["metrics"]}
    records = (parts[name] for name in ("net", "loss", "optimizer"))
    step = train_step(*records, gradient=parts["gradient"], penalty=parts["penalty"], augment=parts["augment"])
    watched, shuffle = parts["monitors"], settings["shuffle"]
    machines = {name: getattr(watched, name) for name in ("stopping", "plateau", "keep")}
    counts = {"epochs": 1, "batch_size": settings["batch_size"]}
    return run(step, **counts, metrics=metrics, shuffle=shuffle, watch=settings["watch"], **machines)


def _made(name: str, description: Json) -> Any:
    if description is None or isinstance(description, dict):
        return None if description is None else from_description(description)
    raise ValueError(
        f"replay: the {name} of this training, {description}, is in no file: give of=run(train_step(…), epochs=…, "
        "batch_size=…), made as it was"
    )


class _Repeated:
    """The steps of one training from a known state on."""

    def __init__(self, made: run, known: Known, data: Any, validation: Any) -> None:
        self.made, self.known = made, known
        if made.own:
            in_memory("replay: data", data)
        self.data = rows_of(data) if made.own else entered("data", data)
        kept = known.settings or {}
        if kept:
            from jaxnn.training.saving import recognised

            if kept["data"] != (given := recognised(self.data)):
                raise ValueError(f"replay: data are not those of this training, which had {kept['data']}, got {given}")
        epoch = replace(made.epoch(), shards=kept.get("shards", 1) if kept else made.shards).at_home(self.data)
        same = {name: kept.get(name, 0) for name in ("measure", "skip_nonfinite")}
        self.epoch: Epoch = replace(epoch, **same)
        self.own_figures = made.own or made.evaluate is not None  # by functions of the user
        if validation is not None and not self.own_figures:
            validation = beside(entered("validation", validation), self.data)
        self.validation = validation
        zero = beside(jax.device_put(as_count(0)), self.data)
        self.job = Job(self.epoch, self.data, validation, Monitoring(), zero, chunk_of(self.epoch, self.data))

    def at(self, step: int) -> Moment:
        """The step, before it is taken."""
        try:
            return self._at(step)
        finally:
            self.job.close()

    def _at(self, step: int) -> Moment:
        state = beside(self.known.train_state, self.data)
        monitors = self.known.monitors if self.known.monitors is not None else self.made.watching().begin(None)
        noted, in_a_row = self.known.noted, self.known.in_a_row
        n, batch = self.epoch.size(self.data), self.epoch.batch_size
        # a folder of `fit` may have more epochs than `of` says
        epochs = self.made.epochs if self.known.settings is None else None
        while (ahead := step - int(state.step)) > 0 or epochs == 0:
            if epochs == 0:
                raise ValueError(f"replay: {self.made.epochs} epochs end before step {step}: there is none")
            before = int(state.epoch), int(state.position)
            left = -(-(n - before[1]) // batch)
            state, noted, result = self._advance(state, noted, monitors, in_a_row, min(ahead, left))
            if (int(state.epoch), int(state.position)) == before:  # too many steps were skipped in a row
                raise ValueError(f"replay: the training ended at step {int(state.step)}: there is no step {step}")
            in_a_row = int(noted.in_a_row)
            if int(state.position) == 0:
                noted, state, epochs = None, begun(state), None if epochs is None else epochs - 1
                monitors = self._observed(monitors, result, state)
        return moment(self.epoch, begun(state), self.data, update_scale(monitors))

    def _advance(
        self, state: TrainState, noted: Noted | None, monitors: Monitors | None, in_a_row: int, steps: int
    ) -> tuple[TrainState, Noted, EpochResult]:
        chunk, scale = self.job.chunk(state), update_scale(monitors)
        placed = self.job.placed(state)
        if noted is None:
            noted = chunk.nothing_noted(placed, self.data, scale)
        noted = noted._replace(in_a_row=as_count(in_a_row)) if self.epoch.skip_nonfinite else noted
        spare = copied(state)._replace(position=EPOCH_START)
        return chunk.advance(spare, placed, self.data, scale, noted, steps)

    def _observed(self, monitors: Monitors | None, result: EpochResult, state: TrainState) -> Monitors | None:
        """The monitors after an epoch, where they change later steps."""
        if self.made.plateau is None or monitors is None:
            return monitors
        if self.own_figures:
            figures = jax.jit(self.made.figures)(result, state, self.validation, None)
        else:
            figures = self.made.figures(result, state, None, None) | self.job.evaluate(state)
        values = {name: float(np.asarray(value)) for name, value in figures.items()}
        return self.made.watching(values).observe(monitors, values, state)
