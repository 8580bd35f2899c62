"""K members of one network trained side by side, one after another, and by PyTorch: microseconds a network-step.

    python benchmarks/sweep.py [--members 32] [--group 8] [--rounds 9] [--examples 60000] [--steps 1000] [--json FILE]

A network-step is one step of one member: 784-30-10, sigmoid, sgd with another learning rate for each member, softmax
cross-entropy, batch 10, on MNIST-shaped random data. Everyone takes one chunk of the same number of steps in its turn,
the turns are interleaved, and ratios are taken within a round. PyTorch trains one member after another, fewer of them,
as a network-step of it does not depend on their number; it is left out where it is not installed. Each call draws the
order of a whole epoch, for every member or once for all: with few steps that is a part of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from peers import Config, Data, pytorch, random_data
from timing import Contender, Ratio, interleave, machine, ratio

import jaxnn
from jaxnn.training.chunks import Chunk, as_count, chunk_of
from jaxnn.training.turned import Turned, turned
from jaxnn.types import TrainState

ALONE, PYTORCH = "one after another", "PyTorch, one after another"
RATES = (0.01, 0.5)  # from the first member to the last
TORCH_MEMBERS = 2  # a turn of PyTorch
TORCH_SHARE = 4  # of its members' steps a turn takes a quarter
FIELDS = ("step", "batch_size", "metrics", "shuffle")


class Sweep(NamedTuple):
    """What is trained: the members, and how long."""

    config: Config
    members: int  # K
    steps: int  # of each member in a turn
    data: tuple[jax.Array, jax.Array]


def epoch_of(sweep: Sweep, **order: Any) -> Any:
    """The epoch of one member."""
    net = jaxnn.mlp(sweep.config.widths[1:], activation=getattr(jaxnn, sweep.config.activation))
    loss, optimizer = jaxnn.losses.softmax_cross_entropy, jaxnn.sgd(sweep.config.learning_rate)
    epoch = jaxnn.train_epoch(net, loss, optimizer, batch_size=sweep.config.batch)
    if not order:
        return epoch
    return Turned(**{name: getattr(epoch, name) for name in FIELDS}, **order)


def members_of(sweep: Sweep) -> list[TrainState]:
    """The first states: seeds 0 … K−1, each with a learning rate of its own."""
    step = epoch_of(sweep).step
    states = []
    for seed, rate in enumerate(jnp.geomspace(*RATES, sweep.members)):
        state = jaxnn.init_train_state(step.net, step.optimizer, seed, (sweep.config.widths[0],))
        opt_state = state.opt_state._replace(learning_rate=rate)
        states.append(state._replace(opt_state=opt_state, position=jnp.int32(0)))
    return states


def stacked(states: list[TrainState]) -> TrainState:
    """The states on a leading axis; the cursor is that of all of them."""
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return state._replace(epoch=states[0].epoch, position=states[0].position)


def one_after_another(sweep: Sweep) -> Contender:
    """Each member by a program of its own network alone."""
    chunk, states, steps = chunk_of(epoch_of(sweep), sweep.data), members_of(sweep), as_count(sweep.steps)
    noted = chunk.nothing_noted(states[0], sweep.data, None)
    run = jax.jit(lambda state, data: chunk(state, data, None, noted, steps)[::2])

    def turn() -> None:
        for state in states:
            jax.block_until_ready(run(state, sweep.data))

    return Contender(ALONE, turn)


def side_by_side(sweep: Sweep, group: int, threads: int, shared: bool) -> Contender:
    """Groups of members under `jax.vmap`; so many threads take the groups, all by the same program."""
    epoch = epoch_of(sweep, order_key=jax.random.key(1)) if shared else epoch_of(sweep)
    plain, net = chunk_of(epoch_of(sweep), sweep.data), epoch.step.net
    chunk, states, steps = Chunk(epoch, plain.rest), members_of(sweep), as_count(sweep.steps)
    noted = plain.nothing_noted(states[0], sweep.data, None)
    axes = TrainState(0, 0, 0, 0, 0, None, None)

    def some(state: TrainState, data: Any) -> Any:
        if not shared:
            return chunk(state, data, None, noted, steps)[::2]
        state, _, result = chunk(turned(net, state), data, None, noted, steps)
        return turned(net, state), result

    run = jax.jit(jax.vmap(some, in_axes=(axes, None), out_axes=(axes, 0)))
    groups = [stacked(states[i : i + group]) for i in range(0, len(states), group)]
    pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def trained(state: TrainState) -> None:
        jax.block_until_ready(run(state, sweep.data))

    def turn() -> None:
        each: Callable[..., Any] = map if pool is None else pool.map
        for _ in each(trained, groups):
            pass

    name = f"{group} side by side" + ", one order" * shared + f", {threads} threads" * (threads > 1)
    return Contender(name, turn)


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
    parser.add_argument("--group", type=int, default=8, help="members in one call where threads share the calls")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=1000, help="of each member in a turn, an epoch's at most")
    parser.add_argument("--torch-threads", type=int, default=0, help="1 is fairer on a busy machine; 0: as it decides")
    parser.add_argument("--activation", choices=("sigmoid", "relu"), default="sigmoid")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round there")
    return parser.parse_args()


def measured(sweep: Sweep, options: argparse.Namespace) -> tuple[dict[str, list[float]], float | None]:
    """Microseconds a network-step of everyone, by round, and the share of the processors that others took."""
    entered = [one_after_another(sweep)]
    for shared in (False, True):
        entered.append(side_by_side(sweep, sweep.members, 1, shared))
        if options.threads > 1 and options.group < sweep.members:
            entered.append(side_by_side(sweep, options.group, options.threads, shared))
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
    sweep = Sweep(config, options.members, min(options.steps, config.steps), tuple(map(jnp.asarray, data)))
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
