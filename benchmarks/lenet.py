"""Training steps of LeNet in jaxnn beside those of other libraries, as their users write it: paired, interleaved.

    python benchmarks/lenet.py [--rounds 9] [--one-core] [--json FILE] [--quick]

The network is 28×28×1, conv 20@5×5, relu, max-pool, conv 40@5×5, relu, max-pool, dense 100, relu, dense 10; batch 128,
plain gradient descent. The JAX peers run a compiled step in a loop, differentiate with `jax.grad` and pool with
`reduce_window`, as these libraries do; the same network is also put inside our scan, so that the algorithms alone
differ. Everyone in turn; medians, and ratios within a round.

Times are of little worth on a machine that others keep busy. `--one-core` keeps everyone on one core and counts
processor time, which others change less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import torch_device, torch_done
from timing import Contender, Turns, interleave, machine, on_one_core, ratio

import jaxnn

ROUNDS, QUICK_ROUNDS = 9, 2
BATCH, STEPS, RATE = 128, 8, 0.05  # steps in a turn
BY_HAND, BY_JAX, IN_SCAN = "jaxnn", "jaxnn, by jax.grad", "jax.grad and reduce_window, in a scan"
PYTORCH = "PyTorch"
AT_LEAST, AT_MOST = 2.5, 1.2  # times as fast as every JAX peer; times the time of PyTorch

Params = Any


def random_data() -> tuple[np.ndarray, np.ndarray]:
    """Images [steps, N, 28, 28, 1] and labels, which the corner's brightness tells."""
    x = np.random.default_rng(0).random((STEPS, BATCH, 28, 28, 1), dtype=np.float32)
    return x, (10 * x[:, :, 0, 0, 0]).astype(np.int32)


# ---------------------------------------------------------------- ours


def ours(name: str, x: np.ndarray, labels: np.ndarray) -> Contender:
    """The compiled epoch behind `fit`."""
    net, loss = jaxnn.networks.lenet(), jaxnn.losses.softmax_cross_entropy
    gradient = {BY_HAND: jaxnn.backprop, BY_JAX: jaxnn.autodiff}[name]
    optimizer = jaxnn.gradient_descent(RATE)
    run = jax.jit(jaxnn.train_epoch(net, loss, optimizer, batch_size=BATCH, gradient=gradient), donate_argnums=0)
    train_state = jaxnn.init_train_state(net, optimizer, jax.random.key(0), x.shape[2:])
    images, classes = jnp.asarray(x.reshape(-1, *x.shape[2:])), jnp.asarray(labels.reshape(-1))

    def turn() -> None:
        nonlocal train_state
        train_state, _ = run(train_state, images, classes)
        jax.block_until_ready(train_state)

    def now() -> float:
        output, _, _ = net.forward(train_state.params, train_state.state, images[:BATCH])
        return float(loss.value(output, classes[:BATCH]).mean())

    return Contender(name, turn, now)


# ---------------------------------------------------------------- JAX as its users write it


def stax_network() -> tuple[Params, Callable[[Params, jax.Array], jax.Array]]:
    """Parameters and logits of the network in `jax.example_libraries.stax`."""
    from jax.example_libraries import stax

    layers = (
        *(stax.Conv(20, (5, 5)), stax.Relu, stax.MaxPool((2, 2), (2, 2))),
        *(stax.Conv(40, (5, 5)), stax.Relu, stax.MaxPool((2, 2), (2, 2))),
        *(stax.Flatten, stax.Dense(100), stax.Relu, stax.Dense(10)),
    )
    init, apply = stax.serial(*layers)
    return init(jax.random.key(0), (BATCH, 28, 28, 1))[1], apply


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the batch."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def stax(x: np.ndarray, labels: np.ndarray) -> Contender:
    """A jitted update with `jax.grad`, a batch a call."""
    params, apply = stax_network()

    @jax.jit
    def update(params: Params, x: jax.Array, labels: jax.Array) -> Params:
        grads = jax.grad(lambda params: cross_entropy(apply(params, x), labels))(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads)

    def turn() -> None:
        nonlocal params
        for i in range(STEPS):
            params = update(params, x[i], labels[i])
        jax.block_until_ready(params)

    return Contender("stax", turn, lambda: float(cross_entropy(apply(params, x[0]), labels[0])))


def in_scan(x: np.ndarray, labels: np.ndarray) -> Contender:
    """The same network in a scan over the batches, as our epoch is: what differs is the algorithms."""
    params, apply = stax_network()

    def step(params: Params, batch: Any) -> tuple[Params, None]:
        grads = jax.grad(lambda params: cross_entropy(apply(params, batch[0]), batch[1]))(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), None

    run = jax.jit(lambda params, batches: jax.lax.scan(step, params, batches)[0], donate_argnums=0)
    batches = jax.tree.map(jnp.asarray, (x, labels))

    def turn() -> None:
        nonlocal params
        params = jax.block_until_ready(run(params, batches))

    return Contender(IN_SCAN, turn, lambda: float(cross_entropy(apply(params, x[0]), labels[0])))


def flax_nnx(x: np.ndarray, labels: np.ndarray) -> Contender:
    """A Module, an `nnx.Optimizer` and `nnx.jit` around `nnx.value_and_grad`."""
    import optax
    from flax import nnx

    class LeNet(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Conv(1, 20, (5, 5), padding="VALID", rngs=rngs)
            self.second = nnx.Conv(20, 40, (5, 5), padding="VALID", rngs=rngs)
            self.hidden, self.out = nnx.Linear(640, 100, rngs=rngs), nnx.Linear(100, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            for conv in (self.first, self.second):
                x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
            return self.out(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))

    model = LeNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)

    def loss(model: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array, labels: jax.Array) -> None:
        optimizer.update(model, nnx.grad(loss)(model, x, labels))

    def turn() -> None:
        for i in range(STEPS):
            step(model, optimizer, x[i], labels[i])
        jax.block_until_ready(nnx.state(model))

    return Contender("Flax NNX + optax", turn, lambda: float(loss(model, x[0], labels[0])))


def equinox(x: np.ndarray, labels: np.ndarray) -> Contender:
    """Layers for one image, channels first, under `jax.vmap`; `eqx.filter_jit` around `eqx.filter_grad`."""
    import equinox as eqx
    import optax

    class LeNet(eqx.Module):
        layers: list[Any]

        def __init__(self, key: Any) -> None:
            keys = jax.random.split(key, 4)
            pool = eqx.nn.MaxPool2d(2, 2)
            self.layers = [
                *(eqx.nn.Conv2d(1, 20, 5, key=keys[0]), jax.nn.relu, pool),
                *(eqx.nn.Conv2d(20, 40, 5, key=keys[1]), jax.nn.relu, pool),
                *(jnp.ravel, eqx.nn.Linear(640, 100, key=keys[2]), jax.nn.relu, eqx.nn.Linear(100, 10, key=keys[3])),
            ]

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = layer(x)
            return x

    model, optimizer = LeNet(jax.random.key(0)), optax.sgd(RATE)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    images = np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3))

    def loss(model: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), labels).mean()

    @eqx.filter_jit
    def step(model: Any, opt_state: Any, x: jax.Array, labels: jax.Array) -> Any:
        updates, opt_state = optimizer.update(eqx.filter_grad(loss)(model, x, labels), opt_state)
        return eqx.apply_updates(model, updates), opt_state

    def turn() -> None:
        nonlocal model, opt_state
        for i in range(STEPS):
            model, opt_state = step(model, opt_state, images[i], labels[i])
        jax.block_until_ready(eqx.filter(model, eqx.is_array))

    return Contender("Equinox + optax", turn, lambda: float(loss(model, images[0], labels[0])))


def pytorch(x: np.ndarray, labels: np.ndarray) -> Contender:
    """Eager: zero_grad, forward, backward, step; channels first."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    features = (nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 40, 5), nn.ReLU(), nn.MaxPool2d(2))
    device = torch_device()
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(640, 100), nn.ReLU(), nn.Linear(100, 10)).to(device)
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=RATE)
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3))).to(device)
    classes = torch.from_numpy(labels).long().to(device)

    def turn() -> None:
        for i in range(STEPS):
            optimizer.zero_grad()
            criterion(model(images[i]), classes[i]).backward()
            optimizer.step()
        torch_done(device)

    return Contender(PYTORCH, turn, lambda: float(criterion(model(images[0]), classes[0])))


# ---------------------------------------------------------------- the race


def measure(rounds: int, clock: Callable[[], float]) -> Turns:
    """Everyone whose library is installed, in turn; says who is missing, and where each one's loss has come to."""
    x, labels = random_data()
    entered = [ours(BY_HAND, x, labels), ours(BY_JAX, x, labels), in_scan(x, labels), stax(x, labels)]
    for make in (flax_nnx, equinox, pytorch):
        try:
            entered.append(make(x, labels))
        except ModuleNotFoundError as missing:
            print(f"  skipped: {missing.name} is not installed")
    turns = interleave(entered, rounds, STEPS, clock)
    print("losses: " + ", ".join(f"{entry.name} {entry.loss():.2f}" for entry in entered if entry.loss))
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--one-core", action="store_true", help="processor time on one core: for a busy machine")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round there")
    options = parser.parse_args()
    if options.one_core:
        on_one_core()
    print("\n".join(f"{what}: {text}" for what, text in machine().items()))
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    turns = measure(rounds, time.process_time if options.one_core else time.perf_counter)
    what = "processor time on one core" if options.one_core else "time"
    print(f"{what} of a step in µs, median (smallest–largest) of {rounds} rounds, and over ours")
    own = turns.times[BY_HAND]
    for name, row in turns.times.items():
        median = sorted(row)[len(row) // 2]
        print(f"  {name:38} {median:>9,.0f} ({min(row):,.0f}–{max(row):,.0f})   {ratio(row, own)}")
    for name in turns.times:
        if name == PYTORCH:
            print(f"  {ratio(own, turns.times[name])} × {name}'s time, at most {AT_MOST:g}")
        elif name not in (BY_HAND, BY_JAX, IN_SCAN):
            print(f"  {ratio(turns.times[name], own)} × as fast as {name}, at least {AT_LEAST:g}")
    if turns.others is not None:
        print(f"  other processes took {turns.others:.0%} of the processors meanwhile")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "times": turns.times}, file, indent=1)


if __name__ == "__main__":
    main()
