"""K members of one network trained side by side, one after another, and by PyTorch: microseconds a network-step.

    python benchmarks/sweep.py [--members 32] [--rounds 9] [--examples 20000] [--json FILE]

A network-step is one step of one member: 784-30-10, sigmoid, sgd with another learning rate for each member, softmax
cross-entropy, batch 10, on MNIST-shaped random data. Everyone trains an epoch in its turn, turns are interleaved, and
ratios are taken within a round. PyTorch trains one member after another, fewer of them, as the time of a step does not
depend on their number; it is left out where it is not installed. Programs are compiled before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from peers import Config, Data, pytorch, random_data
from timing import Contender, Ratio, interleave, machine, ratio

import jaxnn
from jaxnn.training.chunks import as_count, chunk_of
from jaxnn.types import TrainState

ALONE, PYTORCH = "one after another", "PyTorch, one after another"
RATES = (0.01, 0.5)  # from the first member to the last
TORCH_MEMBERS = 2  # a turn of PyTorch
TORCH_SHARE = 4  # of its members' steps a turn takes a quarter


class Sweep(NamedTuple):
    """What is trained: the members, and how long."""

    config: Config
    members: int  # K
    steps: int  # of each member in a turn
    data: tuple[jax.Array, jax.Array]


def epoch_of(sweep: Sweep) -> Any:
    """The epoch of one member."""
    net = jaxnn.mlp(sweep.config.widths[1:], activation=getattr(jaxnn, sweep.config.activation))
    loss, optimizer = jaxnn.losses.softmax_cross_entropy, jaxnn.sgd(sweep.config.learning_rate)
    return jaxnn.train_epoch(net, loss, optimizer, batch_size=sweep.config.batch)


def members_of(sweep: Sweep) -> list[TrainState]:
    """The first states: seeds 0 … K−1, each with a learning rate of its own."""
    step = epoch_of(sweep).step
    states = []
    for seed, rate in enumerate(jnp.geomspace(*RATES, sweep.members)):
        state = jaxnn.init_train_state(step.net, step.optimizer, seed, (sweep.config.widths[0],))
        opt_state = state.opt_state._replace(learning_rate=rate)
        states.append(state._replace(opt_state=opt_state, position=jnp.int32(0)))
    return states


def one_after_another(sweep: Sweep) -> Contender:
    """Each member by a program of its own network alone."""
    chunk, states, steps = chunk_of(epoch_of(sweep), sweep.data), members_of(sweep), as_count(sweep.steps)
    noted = chunk.nothing_noted(states[0], sweep.data, None)
    run = jax.jit(lambda state, data: chunk(state, data, None, noted, steps)[::2])

    def turn() -> None:
        for state in states:
            jax.block_until_ready(run(state, sweep.data))

    return Contender(ALONE, turn)


def side_by_side(sweep: Sweep, shared: bool, group: int | None = None, workers: int | None = None) -> Contender:
    """`jaxnn.sweep`; with one group and one worker by `jax.vmap` alone."""
    step, rates = epoch_of(sweep).step, jnp.geomspace(*RATES, sweep.members)

    def make(rate: jax.Array, seed: jax.Array) -> Any:
        return jaxnn.train_step(step.net, step.loss, jaxnn.sgd(rate))

    points = [{"rate": float(rate), "seed": seed} for seed, rate in enumerate(rates)]
    settings: dict[str, Any] = {"epochs": 1, "batch_size": sweep.config.batch, "shared_order": shared}
    made = jaxnn.sweep(make, points, at_once=group, workers=workers, check_data=False, progress=False, **settings)
    _, origin, number = made.prepared(sweep.data)
    name = "sweep" if group is None else f"{group} side by side"
    return Contender(name + ", one order" * shared, lambda: jax.block_until_ready(made.all_groups(origin, number)))


def by_pytorch(sweep: Sweep, threads: int) -> Contender | None:
    """PyTorch's own loop over fewer members and steps; None where it is not installed."""
    config = sweep.config
    examples = config.batch * max(sweep.steps // TORCH_SHARE, 1)
    data = Data(*(part[:examples] for part in random_data(config.examples, config.widths[0], config.widths[-1])))
    try:
        peers = [pytorch(config._replace(examples=examples), data) for _ in range(TORCH_MEMBERS)]
    except ModuleNotFoundError as missing:
        print(f"skipped: PyTorch, {missing.name} is not installed")
        return None
    if threads:
        import torch

        torch.set_num_threads(threads)
    return Contender(PYTORCH, lambda: [peer.contender.turn() for peer in peers])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=32, help="K")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--examples", type=int, default=20_000, help="N; a turn is one epoch of each member")
    parser.add_argument("--torch-threads", type=int, default=0, help="1 is fairer on a busy machine; 0: as it decides")
    parser.add_argument("--activation", choices=("sigmoid", "relu"), default="sigmoid")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round there")
    return parser.parse_args()


def measured(sweep: Sweep, options: argparse.Namespace) -> tuple[dict[str, list[float]], float | None]:
    """Microseconds a network-step of everyone, by round, and the share of the processors that others took."""
    entered = [one_after_another(sweep)]
    for shared in (False, True):
        entered.append(side_by_side(sweep, shared, sweep.members, 1))
        entered.append(side_by_side(sweep, shared))
    peer = by_pytorch(sweep, options.torch_threads)
    entered += [] if peer is None else [peer]
    turns = interleave(entered, options.rounds, sweep.steps * sweep.members, time.perf_counter)
    if peer is not None:
        taken = max(sweep.steps // TORCH_SHARE, 1) * TORCH_MEMBERS
        turns.times[PYTORCH] = [t * sweep.steps * sweep.members / taken for t in turns.times[PYTORCH]]
    return turns.times, turns.others


def main() -> None:
    options = arguments()
    config = Config((784, 30, 10), 10, "sgd", options.activation, 0.1, options.examples, epochs=1)
    data = random_data(config.examples, config.widths[0], config.widths[-1])
    sweep = Sweep(config, options.members, config.steps, tuple(map(jnp.asarray, data)))
    about = machine()
    print("\n".join(f"{what}: {text}" for what, text in about.items()))
    print(f"{config.name}; {sweep.members} members, {sweep.steps} steps each in a turn; {options.rounds} rounds")
    times, others = measured(sweep, options)
    width = max(map(len, times))
    print(f"{'':{width}}  µs/network-step   time over one after another    PyTorch's time over it")
    for name, row in times.items():
        of_torch: Ratio | str = ratio(times[PYTORCH], row) if PYTORCH in times else ""
        print(f"{name:{width}}  {statistics.median(row):15,.1f}  {ratio(row, times[ALONE])!s:>28}  {of_torch!s:>24}")
    if others is not None:
        print(f"other processes took {others:.0%} of the processors meanwhile")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": about, "times": times, "others": others}, file, indent=1)


if __name__ == "__main__":
    main()
