"""Training steps on one CPU device and on the cores as devices, with PyTorch beside: paired, interleaved.

    python benchmarks/cores.py [--devices 2] [--rounds 9] [--only lstm gru] [--json FILE]

The three cells of recurrent.py, LeNet of lenet.py and the dense networks (a), (b), (c) of steps.py, plain gradient
descent. Both of ours are the compiled epoch behind `fit`; that on the cores is given the same arrays under
`jax.set_mesh(placement.cores())`, of which every device has a copy, and divides each batch. Everyone in turn; medians,
and ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import lenet
import numpy as np
import peers
import recurrent
from jax.sharding import NamedSharding, PartitionSpec
from steps import CONFIGS
from timing import Contender, interleave, machine, ratio

import jaxnn
from jaxnn.spmd.cores import cores

ONE, PYTORCH = "one device", "PyTorch"
STEPS = {"a": 600, "b": 100, "c": 8}  # a turn


class Subject(NamedTuple):
    """A network, its data, and PyTorch's contender, None where it is not installed."""

    net: jaxnn.Layer
    x: np.ndarray
    labels: np.ndarray
    batch: int
    pytorch: Contender | None

    @property
    def steps(self) -> int:
        """Training steps in a turn."""
        return len(self.x) // self.batch


def subject(name: str) -> Subject:
    """A row of the table."""
    if name in recurrent.TASKS:
        task = recurrent.TASKS[name]
        x, labels = recurrent.random_data(task)
        net = jaxnn.networks.sequence_classifier(getattr(jaxnn, name), task.width, recurrent.CLASSES)
        return Subject(net, x, labels.astype(np.int32), task.batch, beside(recurrent.pytorch, name, task, (x, labels)))
    if name == "lenet":
        x, labels = lenet.random_data()
        pytorch = beside(lenet.pytorch, x, labels)
        return Subject(jaxnn.networks.lenet(), x.reshape(-1, *x.shape[2:]), labels.reshape(-1), lenet.BATCH, pytorch)
    config = CONFIGS[name]._replace(optimizer="sgd", epochs=1, examples=CONFIGS[name].batch * STEPS[name])
    data = peers.random_data(config.examples, config.widths[0], config.widths[-1])
    net = jaxnn.mlp(config.widths[1:], activation=getattr(jaxnn, config.activation))
    return Subject(net, *data, config.batch, beside(lambda: peers.pytorch(config, data).contender))


def beside(make: Any, *args: Any) -> Contender | None:
    """The contender of a library that may be missing."""
    try:
        return make(*args)._replace(name=PYTORCH)
    except ModuleNotFoundError as missing:
        print(f"  skipped: {missing.name} is not installed")
        return None


def ours(name: str, of: Subject, mesh: Any = None) -> Contender:
    """The compiled epoch, on the first device or on a mesh."""
    optimizer = jaxnn.gradient_descent(recurrent.RATE)
    epoch = jaxnn.train_epoch(of.net, jaxnn.losses.softmax_cross_entropy, optimizer, batch_size=of.batch)
    run = jax.jit(epoch, donate_argnums=0)
    lies = jax.devices()[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
    state = jaxnn.init_train_state(of.net, optimizer, 0, of.x.shape[1:])
    state, *data = jax.device_put((state, of.x, of.labels), lies)

    def turn() -> None:
        nonlocal state
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            state, _ = jax.block_until_ready(run(state, *data))

    return Contender(name, turn)


def main() -> None:
    rows = [*recurrent.TASKS, "lenet", *STEPS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, help="by default one for each core")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=rows, default=rows)
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round there")
    options = parser.parse_args()
    mesh = cores(options.devices)  # before anything runs
    many = f"{mesh.size} devices"
    print("\n".join(f"{what}: {text}" for what, text in machine().items()))
    print(f"ms a step; how many times as fast as one device, and as PyTorch; {options.rounds} rounds, median (range)")
    results = {}
    for row in options.only:
        of = subject(row)
        entered = [ours(ONE, of), ours(many, of, mesh), *([of.pytorch] if of.pytorch else [])]
        turns = interleave(entered, options.rounds, of.steps, time.perf_counter)
        results[row] = turns.times
        for name, times in turns.times.items():
            torch = f"{ratio(turns.times[PYTORCH], times)!s:>20}" if of.pytorch else ""
            figures = f"{statistics.median(times) / 1e3:9.3f} {ratio(turns.times[ONE], times)!s:>20}"
            print(f"  {row:6} {name:12} {figures} {torch}")
        if turns.others is not None:
            print(f"  other processes took {turns.others:.0%} of the processors meanwhile", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), **results}, file, indent=1)


if __name__ == "__main__":
    main()
