"""Which algorithm of a convolution is the fastest, and what each is worth to a whole training step.

    python benchmarks/convolution.py [--steps [--without ALGORITHM ...]] [--only lenet ...] [--rounds 7] [--json FILE]

For each shape, forward and for both gradients, every algorithm that can compute it is timed inside a compiled loop, as
an epoch has one, by turns with the others. Printed are the milliseconds of the plain one and the others' ratios to it,
medians of the rounds; * is what `choice` takes, < the fastest. One that takes SLOW times as long as the fastest at the
first look is not looked at again.

With `--steps`, whole training steps (`backprop`, gradient descent, inside the scan of an epoch): with the choice as it
is, and with each algorithm that it takes switched off in turn. A ratio of 1.10 says that the step takes 10 % longer
without it; behind the median and the range stands that of the shortest times, which a busy machine disturbs less. An
algorithm that is worth less than that to every network is not worth its code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from timing import Contender, interleave, machine, ratio

import jaxnn as nn
from jaxnn.layers.convolution import choice
from jaxnn.layers.convolution.choice import CASES, PLAIN, Algorithm, Sizes
from jaxnn.layers.convolution.windows import windows_on

ROUNDS, LOOP, EPOCH = 7, 8, 4  # turns of each; convolutions in a turn; training steps in a turn
SLOW = 4  # times the fastest: not timed again


# ---------------------------------------------------------------- one convolution


class Shape(NamedTuple):
    """N, [*D, C] → H with K taps."""

    examples: int
    inputs: tuple[int, ...]
    features: int
    taps: tuple[int, ...]
    stride: int = 1
    padding: str = "same"
    groups: int = 1

    @property
    def sizes(self) -> Sizes:
        """What the choice sees of it."""
        *space, channels = self.inputs
        rank = len(space)
        windows = windows_on("conv", tuple(space), self.taps, (self.stride,) * rank, (1,) * rank, self.padding)
        return Sizes(self.examples, channels, self.features, windows, self.groups)

    def arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The two arguments of each convolution, LOOP of each by chance."""
        draw = np.random.default_rng(0).normal
        *_, channels = self.inputs
        shapes = {
            "x": (self.examples, *self.inputs),
            "w": (*self.taps, channels // self.groups, self.features),
            "delta": (self.examples, *self.sizes.windows.positions, self.features),
        }
        x, w, delta = (draw(size=(LOOP, *shape)).astype(np.float32) for shape in shapes.values())
        return {"forward": (x, w), "kernel_gradient": (x, delta), "input_gradient": (delta, w)}

    def __str__(self) -> str:
        how = f" / {self.stride}" * (self.stride > 1) + f", {self.padding}" * (self.padding != "same")
        groups = f", {self.groups} groups" * (self.groups > 1)
        sizes = "×".join(map(str, self.inputs)), "×".join(map(str, self.taps))
        return f"batch {self.examples}, {sizes[0]} → {self.features}, {sizes[1]}{how}{groups}"


SHAPES = {
    "lenet, first": Shape(128, (28, 28, 1), 20, (5, 5), padding="valid"),
    "lenet, second": Shape(128, (12, 12, 20), 40, (5, 5), padding="valid"),
    "resnet, first": Shape(64, (32, 32, 3), 16, (3, 3)),
    "resnet, 16": Shape(64, (32, 32, 16), 16, (3, 3)),
    "resnet, to 32": Shape(64, (32, 32, 16), 32, (3, 3), stride=2),
    "resnet, projection": Shape(64, (32, 32, 16), 32, (1, 1), stride=2),
    "resnet, 32": Shape(64, (16, 16, 32), 32, (3, 3)),
    "resnet, to 64": Shape(64, (16, 16, 32), 64, (3, 3), stride=2),
    "resnet, 64": Shape(64, (8, 8, 64), 64, (3, 3)),
    "wide": Shape(16, (28, 28, 64), 64, (3, 3)),
    "colours": Shape(64, (32, 32, 3), 32, (3, 3)),
    "colours, 5×5": Shape(16, (64, 64, 3), 32, (5, 5)),
    "colours, 7×7": Shape(64, (32, 32, 3), 64, (7, 7)),
    "depthwise": Shape(64, (16, 16, 32), 32, (3, 3), groups=32),
    "pointwise": Shape(64, (16, 16, 32), 64, (1, 1)),
    "four groups": Shape(64, (16, 16, 32), 32, (3, 3), groups=4),
    "one axis, first": Shape(64, (1000, 1), 32, (15,)),
    "one axis, second": Shape(64, (250, 32), 32, (9,)),
    "three axes, first": Shape(16, (16, 16, 16, 1), 16, (3, 3, 3)),
    "three axes, second": Shape(16, (8, 8, 8, 16), 32, (3, 3, 3)),
}


def algorithms(which: str, shape: Shape) -> list[Algorithm]:
    """All that can compute it."""
    return [case.algorithm for case in CASES[which] if case.can(shape.sizes)]


def looped(algorithm: Algorithm, shape: Shape, first: jax.Array, second: jax.Array) -> Callable[[], object]:
    """LOOP convolutions in one compiled program, one behind the other."""

    def step(_: Any, pair: Any) -> Any:
        return choice.computed(algorithm, *pair, shape.sizes), None

    def every(first: jax.Array, second: jax.Array) -> jax.Array:
        out = jax.eval_shape(lambda *pair: step(None, pair)[0], first[0], second[0])
        return jax.lax.scan(step, jnp.zeros(out.shape, out.dtype), (first, second))[0]

    compiled = jax.jit(every).lower(first, second).compile()
    return lambda: jax.block_until_ready(compiled(first, second))


def by_turns(turns: dict[str, Callable[[], object]], rounds: int, each: int) -> dict[str, list[float]]:
    """Milliseconds of one of `each` in a turn, in every round; of a slow one the first look alone."""
    looks = {}
    for name, turn in turns.items():
        began = time.perf_counter()
        turn()
        looks[name] = (time.perf_counter() - began) / each * 1e3
    entered = [Contender(name, turn) for name, turn in turns.items() if looks[name] <= SLOW * min(looks.values())]
    times = interleave(entered, rounds, each, time.perf_counter).times
    return {name: [t / 1e3 for t in times[name]] if name in times else [looks[name]] * rounds for name in turns}


def convolution(which: str, shape: Shape, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each algorithm, by its name."""
    arrays = tuple(map(jnp.asarray, shape.arrays()[which]))
    each = {algorithm.__name__: looped(algorithm, shape, *arrays) for algorithm in algorithms(which, shape)}
    return by_turns(each, rounds, LOOP)


def line(which: str, shape: Shape, found: dict[str, list[float]]) -> str:
    """A row of the table."""
    medians = {name: statistics.median(times) for name, times in found.items()}
    plain, taken = getattr(PLAIN, which).__name__, choice.taken(which, shape.sizes).__name__
    fastest = min(medians, key=medians.__getitem__)
    marks = {name: "*" * (name == taken) + "<" * (name == fastest) for name in medians}
    others = [
        f"{name.removeprefix(which + '_')} {medians[name] / medians[plain]:.3g}{marks[name]}"
        for name in medians
        if name != plain
    ]
    lost = f"   taken over fastest {medians[taken] / medians[fastest]:.2f}" if taken != fastest else ""
    return f"  {which:16} plain {medians[plain]:7.2f} ms{marks[plain]:2}  {'  '.join(others)}{lost}"


# ---------------------------------------------------------------- whole steps


def separable() -> nn.Layer:
    """Depthwise and pointwise convolutions by turns, as in a MobileNet."""
    layers: list[Any] = [nn.conv(16, (3, 3)), nn.relu]
    for channels, features, stride in ((16, 32, 2), (32, 64, 2), (64, 64, 1)):
        layers += [nn.conv(channels, (3, 3), stride=stride, groups=channels), nn.relu]
        layers += [nn.conv(features, (1, 1)), nn.relu]
    return nn.serial(*layers, nn.global_avg_pool(), nn.dense(10))


def one_axis() -> nn.Layer:
    """A signal of one channel."""
    layers = nn.conv(32, (15,)), nn.relu, nn.max_pool((4,)), nn.conv(32, (9,)), nn.relu, nn.max_pool((2,))
    return nn.serial(*layers, nn.conv(64, (5,), stride=2), nn.relu, nn.global_avg_pool(), nn.dense(10))


def three_axes() -> nn.Layer:
    """A volume of one channel."""
    layers = nn.conv(16, (3, 3, 3)), nn.relu, nn.max_pool((2, 2, 2)), nn.conv(32, (3, 3, 3)), nn.relu
    return nn.serial(*layers, nn.max_pool((2, 2, 2)), nn.flatten(), nn.dense(10))


NETWORKS: dict[str, tuple[Callable[[], nn.Layer], int, tuple[int, ...]]] = {
    "lenet": (nn.networks.lenet, 128, (28, 28, 1)),
    "resnet": (nn.networks.resnet, 64, (32, 32, 3)),
    "depthwise-separable": (separable, 64, (32, 32, 3)),
    "one axis": (one_axis, 64, (1000, 1)),
    "three axes": (three_axes, 16, (16, 16, 16, 1)),
}


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """The choice without some algorithms."""
    fewer = {
        which: tuple(case for case in cases if case.algorithm.__name__ not in names) for which, cases in CASES.items()
    }
    with mock.patch.dict(CASES, fewer):
        yield


@contextlib.contextmanager
def noted() -> Iterator[set[str]]:
    """The names of the algorithms that are taken meanwhile."""
    names: set[str] = set()
    taken = choice.taken

    def watched(which: str, sizes: Sizes) -> Algorithm:
        algorithm = taken(which, sizes)
        names.add(algorithm.__name__)
        return algorithm

    with mock.patch.object(choice, "taken", watched):
        yield names


def epoch(network: str) -> tuple[Callable[[], object], float]:
    """EPOCH training steps as the choice has them now, and the seconds that it took to trace and compile them."""
    make, examples, in_shape = NETWORKS[network]
    net, optimizer = make(), nn.sgd(0.01)
    run = nn.train_epoch(net, nn.losses.softmax_cross_entropy, optimizer, batch_size=examples)
    train_state = nn.init_train_state(net, optimizer, jax.random.key(0), in_shape)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(EPOCH * examples, *in_shape)), jnp.float32)
    labels = jnp.arange(EPOCH * examples) % 10
    jax.clear_caches()  # equal networks share their programs
    began = time.perf_counter()
    compiled = jax.jit(run, donate_argnums=0).lower(train_state, x, labels).compile()
    took = time.perf_counter() - began

    def turn() -> None:
        nonlocal train_state
        train_state, _ = compiled(train_state, x, labels)
        jax.block_until_ready(train_state)

    return turn, took


AS_IT_IS = "as it is"


def steps(
    network: str, rounds: int, fewer: Sequence[str] | None = None
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of a step without each algorithm, or without all of `fewer`, and seconds to compile the epoch."""
    compiling, turns = {}, {}
    with noted() as names:
        turns[AS_IT_IS], compiling[AS_IT_IS] = epoch(network)
    alone = [(name,) for name in sorted(names - {plain.__name__ for plain in PLAIN})]
    for off in [tuple(fewer)] if fewer else alone:
        what = " ".join(off)
        with without(*off):
            turns[what], compiling[what] = epoch(network)
    return by_turns(turns, rounds, EPOCH), compiling


# ---------------------------------------------------------------- the tables


def load() -> str:
    """How busy the machine is."""
    return "load " + " ".join(f"{number:.1f}" for number in os.getloadavg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="store_true", help="whole training steps")
    parser.add_argument("--without", nargs="+", metavar="ALGORITHM", help="whole steps without all of these")
    parser.add_argument("--only", nargs="+", metavar="PART", help="rows whose name has one of these in it")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round there")
    options = parser.parse_args()
    print("\n".join(f"{what}: {text}" for what, text in machine().items()))
    found: dict[str, Any] = {}
    whole = options.steps or options.without
    for name in NETWORKS if whole else SHAPES:
        if options.only and not any(part in name for part in options.only):
            continue
        if whole:
            times, compiling = steps(name, options.rounds, options.without)
            found[name] = {"ms": times, "compile": compiling}
            step = f"{statistics.median(times[AS_IT_IS]):.2f} ms a step, {compiling[AS_IT_IS]:.1f} s to compile"
            print(f"{name}   {step}   {load()}")
            for which, row in times.items():
                if which != AS_IT_IS:
                    least = min(row) / min(times[AS_IT_IS])
                    seconds = f"{compiling[which]:.1f} s"
                    print(f"  without {which:30} {ratio(row, times[AS_IT_IS])}  {least:.2f}   {seconds}", flush=True)
        else:
            print(f"{name}: {SHAPES[name]}   {load()}")
            for which in PLAIN._fields:
                found[f"{name}, {which}"] = row = convolution(which, SHAPES[name], options.rounds)
                print(line(which, SHAPES[name], row), flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "load": os.getloadavg(), "times": found}, file, indent=1)


if __name__ == "__main__":
    main()
