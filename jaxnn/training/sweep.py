"""Many trainings of one network as one program: seeds × settings side by side, under `jax.vmap`.

Letters: M members, K of them at a time, E epochs, N examples, B batch size.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY
from numbers import Integral, Real
from queue import SimpleQueue
from threading import Event
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import number, seen, whole_number, yes_or_no
from jaxnn.compiled import PureFunction
from jaxnn.mistakes import is_function, not_traced
from jaxnn.records import Record
from jaxnn.shapes import batch_size
from jaxnn.spmd.batches import beside
from jaxnn.training.batches import check_batch_size
from jaxnn.training.entry import on_device
from jaxnn.training.looking import check_values
from jaxnn.training.means import named_metrics
from jaxnn.training.members import Members
from jaxnn.training.monitoring import copied
from jaxnn.training.origin import Origin
from jaxnn.training.own_steps import check_rows, rows_of
from jaxnn.training.progress import progress_bar
from jaxnn.training.run import run
from jaxnn.training.steps import train_step
from jaxnn.training.sweep_results import Sweep
from jaxnn.types import Array, Key, Run, TrainState

MEMORY = 2**32  # bytes that the members of a sweep may take at a time
GROUP = 8  # members side by side on a CPU: the weights of more leave its cache, and groups occupy its cores


class sweep(PureFunction):
    """Trains one network many times, from several seeds and with several settings, as one compiled program.

    `sweep(make, settings, seeds=S)(data, validation=None) -> Sweep`. Every point of the settings is trained from every
    seed: seed s draws the first parameters and is the key of the steps and orders of a member, as with `fit(key=s)`.
    Each member equals its own `run` to rounding, and does not change once its run has stopped early. Ctrl-C ends a
    sweep after the epochs that are being computed.

    Args:
        make: a function of the settings by name, `make(learning_rate=…)`, that returns a `run`, or a step as `run`
            takes. It is called with Python numbers, to check them, and with JAX scalars, one program for all: numbers
            that a shape depends on, such as a width, or that must be whole, such as a patience, need a sweep for each.
        settings: a dict of lists of numbers, of which every combination is a point, or a list of dicts, the points; in
            the program they are floats.
        seeds: S, for seeds 0 … S − 1, or a list of integers.
        epochs: the number of epochs, where make returns a step.
        batch_size: the batch size, likewise.
        init: a function `(key) -> TrainState` for a user's own step; settings are given to it by the names of its
            further arguments.
        shared_order: True gives all members the order of the first seed: batches are gathered once for all, and the
            products of the first layer are one.
        at_once: K, the number of members side by side in a group; by default as many as `memory` allows, on a CPU 8 at
            most. It changes results by rounding.
        workers: the number of groups that are trained at the same time; by default, on a CPU, one for each core, within
            `memory`. It changes no result.
        memory: bytes for the members at a time, by an estimate from their states and activations.
        remember: the number of epochs between states that are kept for `replay`, which otherwise starts at step 0.
        progress: show a progress bar; by default if tqdm is installed and the output is a terminal.
        check_data: False skips the search for values that are not finite and for labels out of range.

    Raises:
        ValueError, TypeError: before anything is trained, for settings that make refuses, with the point, and data that
            do not fit.

    >>> from jaxnn import losses, mlp, sgd
    >>> x = jnp.linspace(-1, 1, 16)[:, None]
    >>> make = lambda rate: train_step(mlp([4, 1]), losses.mse, sgd(rate))
    >>> swept = sweep(make, {"rate": [0.1, 0.01]}, seeds=3, epochs=2, batch_size=8)((x, x**2))
    >>> len(swept), swept.runs.history["loss"].shape, swept.best().settings["rate"] > 0
    (6, (6, 2), True)
    """

    make: Callable[..., Any]
    settings: Any
    _: KW_ONLY
    seeds: Any = 1
    epochs: int | None = None
    batch_size: int | None = None
    init: Callable[..., TrainState] | None = None
    shared_order: bool = False
    at_once: int | None = None
    workers: int | None = None
    memory: float = MEMORY
    remember: int | None = None
    progress: bool | None = None
    check_data: bool = True

    def __post_init__(self) -> None:
        if not is_function(self.make) or isinstance(self.make, Record):
            hint = ": for a sweep over seeds alone give lambda: run(…)" if isinstance(self.make, Record) else ""
            raise TypeError(f"sweep: make must be a function of the settings, got {seen(self.make)}{hint}")
        for name in ("epochs", "batch_size", "at_once", "workers", "remember"):
            if getattr(self, name) is not None:
                self._set(**{name: whole_number(f"sweep: {name}", getattr(self, name), least=1)})
        self._set(
            shared_order=yes_or_no("sweep: shared_order", self.shared_order),
            check_data=yes_or_no("sweep: check_data", self.check_data),
            memory=number("sweep: memory", self.memory, above=0.0),
            settings=tuple(_points(self.settings)),
            seeds=tuple(_seeds(self.seeds)),
        )
        if self.init is not None and not is_function(self.init):
            raise TypeError(f"sweep: init must be a function (key) -> TrainState, got {seen(self.init)}")

    def __call__(self, data: Any, validation: Any = None) -> Sweep:
        not_traced("sweep", "use jax.vmap of a run there", data, validation)
        made, origin, workers = self.prepared(data, validation)
        runs, m = self.all_groups(origin, workers), len(origin.keys)
        whole = _joined(runs, m) if len(runs) > 1 or origin.at_once > m else runs[0]
        history = {name: np.asarray(values) for name, values in whole.history.items()}
        points = [point for point in self.settings for _ in self.seeds]
        settings = {name: np.asarray([point[name] for point in points]) for name in points[0]}
        together = whole._replace(history=cast(Any, history), epochs_run=cast(Any, np.asarray(whole.epochs_run)))
        figure, maximise = _compared(made, history)
        seeds = np.asarray(self.seeds * len(self.settings))
        return Sweep(settings, seeds, together, figure, maximise, origin)

    def prepared(self, data: Any, validation: Any = None) -> tuple[run, Origin, int]:
        """The first member's run, the compiled programs with their inputs, and the number of workers."""
        members = Members(self.make, self.init, self.epochs, self.batch_size, self.shared_order)
        made = self._checked(members)
        data, validation = self._entered(made, data, validation)
        m, seeds = len(self.settings) * len(self.seeds), len(self.seeds)
        numbers = {name: _column([point[name] for point in self.settings], seeds) for name in self.settings[0]}
        keys = _keys(np.asarray(self.seeds * len(self.settings), np.uint32))
        origin = Origin(members, numbers, keys, data, validation, jax.random.key(self.seeds[0]), made.epochs, {}, m)
        workers, at_once = self._divided(origin)
        origin = origin._replace(at_once=at_once)
        return made, origin._replace(programs=origin.compiled()), workers

    def _checked(self, members: Members) -> run:
        """The run of the first point; raises an error for points that make refuses or that are no one program."""
        first = None
        for point in self.settings:
            try:
                made = members.made(point)
            except (TypeError, ValueError) as error:
                error.args = (f"sweep, at {_written(point)}: {error}",)
                raise
            if first is not None and (made.epochs, made.batch_size) != (first.epochs, first.batch_size):
                raise ValueError(
                    f"sweep, at {_written(point)}: epochs and batch_size must be those of the first point, "
                    f"{first.epochs} and {first.batch_size}, got {made.epochs} and {made.batch_size}: give a sweep for "
                    "each of them"
                )
            first = first or made
        assert first is not None
        if not isinstance(first.step, train_step) and self.init is None:
            raise ValueError("sweep: a step of your own needs init=, a function (key) -> TrainState")
        return first

    def _entered(self, made: run, data: Any, validation: Any) -> tuple[Any, Any]:
        """The data on the devices, checked."""
        made.check_validation(validation)
        if made.own:
            check_rows("sweep: data", data)
            check_batch_size(made.batch_size, len(jax.tree.leaves(data)[0]))
            return rows_of(data), validation if validation is None else rows_of(validation)
        step, named = made.step, named_metrics(made.metrics)
        assert isinstance(step, train_step)
        data = on_device("data", data)
        members = Members(lambda: made)
        spec = jax.eval_shape(lambda key: members.first_state(made, {}, key, data), jax.random.key(0))
        check_values("data", step.net, step.loss, spec.params, spec.state, data, named, look=self.check_data)
        check_batch_size(made.batch_size, batch_size("data: x", data[0]))
        if validation is not None and made.evaluate is None:
            validation = beside(on_device("validation", validation), data)
            part = ("validation", step.net, step.loss, spec.params, spec.state, validation, named)
            check_values(*part, look=self.check_data)
        return data, validation

    def _divided(self, origin: Origin) -> tuple[int, int]:
        """The number of workers, and that of members in the group of each."""
        m, fit, on_cpu = len(origin.keys), origin.at_most(self.memory), jax.default_backend() == "cpu"
        at_once = self.at_once or min(m, fit, GROUP if on_cpu else m)
        cores = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        workers = self.workers or min(cores if on_cpu else 1, max(1, fit // at_once))
        return workers, at_once

    def all_groups(self, origin: Origin, workers: int) -> list[Run]:
        """The runs of all groups of K members; an epoch of a group is a step of the progress bar."""
        groups = range(0, len(origin.keys), origin.at_once)
        ticks: SimpleQueue[bool] = SimpleQueue()
        over = Event()

        def trained(first: int) -> Run:
            try:
                return self._trained(origin, first, over, lambda: ticks.put(True))
            finally:
                ticks.put(False)

        pool = ThreadPoolExecutor(workers)
        try:
            futures, ended = [pool.submit(trained, first) for first in groups], 0
            for _ in progress_bar("sweep", len(groups) * origin.epochs, self.progress)[0]:
                while ended < len(groups) and not ticks.get():
                    ended += 1
            return [future.result() for future in futures]
        finally:
            over.set()  # after an error or Ctrl-C
            pool.shutdown(cancel_futures=True)

    def _trained(self, origin: Origin, first: int, over: Event, tick: Callable[[], None]) -> Run:
        """K members from the first one on."""
        progress, rows = origin.begin(first), []
        ran: list[Array] = []
        for epoch in range(origin.epochs):
            if over.is_set():
                raise RuntimeError("the sweep was interrupted")
            if self.remember is not None and epoch and epoch % self.remember == 0:
                origin.remembered[first, epoch] = copied(progress)
            progress, figures, went = origin.advance(first, progress)
            if ran:  # one epoch is queued at a time: Ctrl-C waits for all that are
                jax.block_until_ready(ran[-1])
                tick()
            rows.append(figures)
            ran.append(went)
            if progress.monitors is not None and progress.monitors.stopping is not None and bool(progress.ended.all()):
                break
        jax.block_until_ready(ran[-1])
        tick()
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves], 1), *rows)
        missing = ((0, 0), (0, origin.epochs - len(rows)))
        history = {name: np.pad(values, missing, constant_values=np.nan) for name, values in stacked.items()}
        monitors = progress.monitors
        best = None if monitors is None or monitors.best is None else monitors.best.kept
        count = np.stack([np.asarray(went) for went in ran]).sum(0, dtype=np.int32)
        return Run(progress.train_state, best, monitors, cast(Any, history), cast(Any, count))


@jax.jit
def _keys(seeds: Array) -> Key:
    return jax.vmap(jax.random.key)(seeds)


def _joined(runs: list[Run], m: int) -> Run:
    """The runs of all groups as one, of m members; on the host, since a program of many groups compiles for long."""

    def one(*parts: Any) -> Array:
        if is_key := jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key):
            impl, parts = jax.random.key_impl(parts[0]), tuple(map(jax.random.key_data, parts))
        whole = np.concatenate([np.asarray(part) for part in parts])[:m]
        home = parts[0].sharding if getattr(parts[0], "is_fully_replicated", False) else None
        whole = jax.device_put(whole, home)
        return jax.random.wrap_key_data(whole, impl=impl) if is_key else whole

    return jax.tree.map(one, *runs)


# ---------------------------------------------------------------- settings and seeds


def _points(settings: Any) -> list[dict[str, Any]]:
    """The points of a grid, or those of a list, as dicts of Python numbers."""
    if isinstance(settings, Mapping):
        for name, values in settings.items():
            if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
                raise TypeError(f"sweep: settings[{name!r}] must be a list of numbers, got {seen(values)}")
        columns = {str(name): [_number(name, value) for value in values] for name, values in settings.items()}
        empty = [name for name, values in columns.items() if not values]
        if empty:
            raise ValueError(f"sweep: settings[{empty[0]!r}] is empty")
        return [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]
    if isinstance(settings, (str, bytes)) or not isinstance(settings, Iterable):
        raise TypeError(
            "sweep: settings must be a dict of lists, {'learning_rate': [0.1, 0.01]}, or a list of dicts, got "
            f"{seen(settings)}"
        )
    points = list(settings)
    for i, point in enumerate(points):
        if not isinstance(point, Mapping):
            raise TypeError(f"sweep: settings[{i}] must be a dict of numbers by name, got {seen(point)}")
        if set(point) != set(points[0]):
            raise ValueError(f"sweep: settings[{i}] has {sorted(point)}, settings[0] has {sorted(points[0])}")
    if not points:
        raise ValueError("sweep: settings has no point; without settings give {}")
    return [{str(name): _number(name, point[name]) for name in points[0]} for point in points]


def _number(name: Any, value: Any) -> int | float:
    not_traced("sweep", "use jax.vmap of a run there", value)
    value = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"sweep: settings[{name!r}] must be numbers, got {seen(value)}: one sweep for each choice")
    return int(value) if isinstance(value, Integral) else float(value)


def _column(values: list[Any], seeds: int) -> Array:
    """A setting of all members, [M], as floats, also whole numbers: a rate of 1 is a rate."""
    return jax.device_put(np.repeat(np.asarray(values, np.float64), seeds).astype(jnp.result_type(float)))


def _seeds(seeds: Any) -> list[int]:
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return list(range(whole_number("sweep: seeds", seeds, least=1)))
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable) or getattr(seeds, "ndim", 1) == 0:
        raise TypeError(f"sweep: seeds must be a number of seeds or a list of integers, got {seen(seeds)}")
    numbers = seeds.tolist() if isinstance(seeds, (jax.Array, np.ndarray)) else seeds
    found = [whole_number("sweep: seeds", seed, least=0) for seed in numbers]
    if not found:
        raise ValueError("sweep: seeds is empty")
    if max(found) >= 2**32:
        raise ValueError(f"sweep: seeds must be below 2**32, got {max(found)}")
    return found


def _written(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in point.items()) or "no settings"


def _compared(made: run, history: dict[str, np.ndarray]) -> tuple[str, bool]:
    """The figure by which members are compared, and whether greater is better."""
    machine = made.stopping or made.plateau or made.keep
    usual = (name for name in ("validation_loss", "loss", *history) if name in history)
    name = made.watching(history).name or next(usual)
    return name, machine.maximise if machine is not None else name.endswith("accuracy")
