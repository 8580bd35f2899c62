"""Training steps of recurrent layers beside those of other libraries, and beside `jax.grad` in several forms.

    python benchmarks/recurrent.py [--rounds 9] [--only lstm] [--one-core] [--json FILE] [--quick]

Every contender trains one recurrent layer and a dense one on its last state, by gradient descent on the same random
data. The forms under `jax.grad` are the same recurrence written as its users write it: a `lax.scan` with the input's
product inside, outside (hoisted), and unrolled. They run in the same scan over the batches as ours; the libraries
run as their users run them, a compiled step in a loop. Everyone in turn; medians, and ratios within a round.

Times are of little worth on a machine that others keep busy. `--one-core` keeps everyone on one core and counts
processor time, which others hardly change; temporary bytes are exact everywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peers import torch_device, torch_done
from timing import Contender, interleave, machine, on_one_core, ratio

import jaxnn

ROUNDS, QUICK_ROUNDS = 9, 3
STEPS = 8  # a turn
CLASSES, RATE = 10, 0.1
BY_HAND, BY_JAX = "jaxnn", "jaxnn, by jax.grad"
AT_LEAST = 1.15  # times as fast as the best form under jax.grad


class Task(NamedTuple):
    """T, D, H and N."""

    length: int
    features: int
    width: int
    batch: int


TASKS = {"lstm": Task(28, 28, 128, 128), "gru": Task(28, 28, 128, 128), "rnn": Task(100, 64, 256, 64)}


def random_data(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [steps · N, T, D] and labels."""
    rng = np.random.default_rng(0)
    n = STEPS * task.batch
    return rng.normal(size=(n, task.length, task.features)).astype(np.float32), rng.integers(0, CLASSES, n)


def batches(task: Task, *arrays: Any) -> list[Any]:
    """The arrays with a leading axis of batches."""
    return [array.reshape(STEPS, task.batch, *array.shape[1:]) for array in arrays]


# ---------------------------------------------------------------- ours, and jax.grad


class Program(NamedTuple):
    """A contender that is one compiled program, and its temporary bytes for one step."""

    contender: Contender
    temporary: int


def program(name: str, step: Callable[..., Any], carry: Any, task: Task, data: Any) -> Program:
    """`step(carry, x, labels) -> carry`, scanned over the batches."""
    x, labels = batches(task, *map(jnp.asarray, data))
    run = jax.jit(lambda carry: jax.lax.scan(lambda c, b: (step(c, *b), None), carry, (x, labels))[0], donate_argnums=0)
    one = jax.jit(step, donate_argnums=0).lower(carry, x[0], labels[0]).compile()

    def turn() -> None:
        nonlocal carry
        carry = jax.block_until_ready(run(carry))

    return Program(Contender(name, turn), one.memory_analysis().temp_size_in_bytes)


def ours(name: str, cell: str, task: Task, data: Any) -> Program:
    """The library, by hand or by `jax.grad` of its own forward."""
    net = jaxnn.networks.sequence_classifier(getattr(jaxnn, cell), task.width, CLASSES)
    gradient = {BY_HAND: jaxnn.backprop, BY_JAX: jaxnn.autodiff}[name]
    take = gradient(net, jaxnn.losses.softmax_cross_entropy)
    params, state = net.init(jax.random.key(0), (task.length, task.features))

    def step(params: Any, x: jax.Array, labels: jax.Array) -> Any:
        return jax.tree.map(lambda p, g: p - RATE * g, params, take(params, state, x, labels).grads)

    return program(name, step, params, task, data)


def written_out(name: str, cell: str, task: Task, data: Any, *, hoist: bool, unroll: int) -> Program:
    """The recurrence as a `lax.scan`, differentiated by `jax.grad`."""
    net = jaxnn.networks.sequence_classifier(getattr(jaxnn, cell), task.width, CLASSES)
    params, _ = net.init(jax.random.key(0), (task.length, task.features))
    params = {"cell": params[f"{cell}_0"], "out": params["dense_0"]}

    def advance(p: Any, state: Any, a: jax.Array) -> Any:
        h = state[0]
        if cell == "rnn":
            return (jnp.tanh(a + h @ p["w_h"]),)
        if cell == "gru":
            (a_r, a_u, a_n), (m_r, m_u, m_n) = jnp.split(a, 3, -1), jnp.split(h @ p["w_h"], 3, -1)
            r, u = jax.nn.sigmoid(a_r + m_r), jax.nn.sigmoid(a_u + m_u)
            n = jnp.tanh(a_n + r * (m_n + p["b_h"]))
            return ((1 - u) * n + u * h,)
        i, f, g, o = jnp.split(a + h @ p["w_h"], 4, -1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        p, xs = params["cell"], x.swapaxes(0, 1)
        into = lambda x: x @ p["w"] + p["b"]  # noqa: E731
        zeros = jnp.zeros((x.shape[0], task.width))
        body = lambda s, x: (advance(p, s, x if hoist else into(x)), None)  # noqa: E731
        state, _ = jax.lax.scan(body, (zeros,) * (2 if cell == "lstm" else 1), into(xs) if hoist else xs, unroll=unroll)
        logits = state[0] @ params["out"]["w"] + params["out"]["b"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()

    def step(params: Any, x: jax.Array, labels: jax.Array) -> Any:
        return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss)(params, x, labels))

    return program(name, step, params, task, data)


FORMS = {
    "jax.grad of a scan": {"hoist": False, "unroll": 1},
    "jax.grad, product hoisted": {"hoist": True, "unroll": 1},
    "jax.grad, unrolled by 4": {"hoist": False, "unroll": 4},
}


# ---------------------------------------------------------------- other libraries


def flax_nnx(cell: str, task: Task, data: Any) -> Contender:
    """`nnx.RNN` around the library's cell."""
    import optax
    from flax import nnx

    kind = {"rnn": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[cell]

    class Classifier(nnx.Module):
        """The cell over time, and a linear layer."""

        def __init__(self, rngs: nnx.Rngs) -> None:
            self.cell = nnx.RNN(kind(task.features, task.width, rngs=rngs), rngs=rngs)
            self.out = nnx.Linear(task.width, CLASSES, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.out(self.cell(x)[:, -1])

    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array, labels: jax.Array) -> None:
        cost = lambda model: optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()  # noqa: E731
        optimizer.update(model, nnx.grad(cost)(model))

    x, labels = batches(task, *data)

    def turn() -> None:
        for i in range(STEPS):
            step(model, optimizer, x[i], labels[i])
        jax.block_until_ready(nnx.state((model, optimizer)))

    return Contender("Flax NNX + optax", turn)


def equinox(cell: str, task: Task, data: Any) -> Contender | None:
    """A scan over the library's cell, under vmap, as its documentation has it; it has no plain cell."""
    import equinox as eqx
    import optax

    kind = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}.get(cell)
    if kind is None:
        return None
    model = (
        kind(task.features, task.width, key=jax.random.key(0)),
        eqx.nn.Linear(task.width, CLASSES, key=jax.random.key(1)),
    )
    optimizer = optax.sgd(RATE)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))

    def logits(model: Any, x: jax.Array) -> jax.Array:
        step, out = model
        zeros = jnp.zeros(task.width)
        state = (zeros, zeros) if cell == "lstm" else zeros
        state, _ = jax.lax.scan(lambda state, x: (step(x, state), None), state, x)
        return out(state[0] if cell == "lstm" else state)

    @eqx.filter_jit
    def step(model: Any, opt_state: Any, x: jax.Array, labels: jax.Array) -> Any:
        cost = lambda model: optax.softmax_cross_entropy_with_integer_labels(  # noqa: E731
            jax.vmap(lambda x: logits(model, x))(x), labels
        ).mean()
        updates, opt_state = optimizer.update(eqx.filter_grad(cost)(model), opt_state)
        return eqx.apply_updates(model, updates), opt_state

    x, labels = batches(task, *data)

    def turn() -> None:
        nonlocal model, opt_state
        for i in range(STEPS):
            model, opt_state = step(model, opt_state, x[i], labels[i])
        jax.block_until_ready(eqx.filter(model, eqx.is_array))

    return Contender("Equinox + optax", turn)


def pytorch(cell: str, task: Task, data: Any) -> Contender:
    """The library's layer: one operation over all of time, in C++."""
    import torch
    from torch import nn

    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]
    device = torch_device()
    layer, out = kind(task.features, task.width, batch_first=True).to(device), nn.Linear(task.width, CLASSES).to(device)
    optimizer = torch.optim.SGD([*layer.parameters(), *out.parameters()], lr=RATE)
    criterion = nn.CrossEntropyLoss()
    x, labels = (torch.from_numpy(array).to(device) for array in batches(task, *data))

    def turn() -> None:
        for i in range(STEPS):
            optimizer.zero_grad()
            criterion(out(layer(x[i])[0][:, -1]), labels[i]).backward()
            optimizer.step()
        torch_done(device)

    return Contender("PyTorch", turn)


# ---------------------------------------------------------------- the table


def measure(cell: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Times of everyone and temporary bytes of the programs that are ours to look at."""
    task = TASKS[cell]
    data = random_data(task)
    programs = [ours(name, cell, task, data) for name in (BY_HAND, BY_JAX)]
    programs += [written_out(name, cell, task, data, **form) for name, form in FORMS.items()]
    entered = [each.contender for each in programs]
    for make in (flax_nnx, equinox, pytorch):
        try:
            peer = make(cell, task, data)
        except ModuleNotFoundError as missing:
            print(f"  skipped: {missing.name} is not installed")
            continue
        entered += [peer] if peer is not None else []
    turns = interleave(entered, rounds, STEPS, clock)
    temporary = {each.contender.name: each.temporary for each in programs}
    return {"times": turns.times, "temporary": temporary, "others": turns.others}


def report(cell: str, results: dict[str, Any]) -> None:
    """A row for each contender, and what the aim says."""
    times, temporary = results["times"], results["temporary"]
    width = max(map(len, times))
    print(f"  {'':{width}}  {'ms/step':>8}  {'time over ours':>20}  {'temporary MB':>12}")
    for name, row in times.items():
        against = "1" if name == BY_HAND else str(ratio(row, times[BY_HAND]))
        memory = f"{temporary[name] / 1e6:.1f}" if name in temporary else ""
        print(f"  {name:{width}}  {statistics.median(row) / 1e3:>8.2f}  {against:>20}  {memory:>12}")
    best = min((BY_JAX, *FORMS), key=lambda name: statistics.median(times[name]))
    faster = ratio(times[best], times[BY_HAND])
    print(f"  {faster} × as fast as the best under jax.grad ({best}); the aim is {AT_LEAST}")
    print(f"  {temporary[BY_HAND] / temporary[best]:.2f} × its temporary bytes")
    if results["others"] is not None:
        print(f"  other processes took {results['others']:.0%} of the processors meanwhile", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help=f"rounds that are counted, {ROUNDS} by default")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--one-core", action="store_true", help="processor time on one core: for a busy machine")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round there")
    options = parser.parse_args()
    if options.one_core:
        on_one_core()
    clock = time.process_time if options.one_core else time.perf_counter
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    print("\n".join(f"{what}: {text}" for what, text in machine().items()))
    print(f"{'processor time on one core' if options.one_core else 'time'}; {rounds} rounds; median (range)")
    results = {}
    for cell in options.only:
        print(f"\n{cell}, {', '.join(f'{name} {size}' for name, size in TASKS[cell]._asdict().items())}")
        results[cell] = measure(cell, rounds, clock)
        report(cell, results[cell])
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), **results}, file, indent=1)


if __name__ == "__main__":
    main()
