"""One step and one epoch of training, as pure functions for use under jit, vmap and scan.

An epoch is a `lax.scan` over batches that are gathered on the device. Letters: N examples, B batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn import checks
from jaxnn.backprop import PassFunction, backprop
from jaxnn.checks import as_key, is_floating, whole_number
from jaxnn.optimizers import apply_updates
from jaxnn.types import (
    Array,
    DType,
    InShape,
    Key,
    Layer,
    Loss,
    Metric,
    Optimizer,
    Pass,
    Penalty,
    Reading,
    TrainState,
    Tree,
)

Gradient = Callable[..., PassFunction]
Metrics = Mapping[str, Metric] | Sequence[Metric]
NamedMetrics = tuple[tuple[str, Metric], ...]
DataSet = tuple[Any, ...]  # (x, target) or (x, target, weights), N examples first
SORTED = 1024  # numbers up to which sorting is cheap, and every order equally likely
ROUNDS = 3  # pairs of rounds; two pairs already pass for random with random tables (Luby & Rackoff's theorem)
PARTS = ("x", "target", "weights")  # of a DataSet


class EpochResult(NamedTuple):
    """What an epoch reports, as arrays.

    Attributes:
        loss: Σ wₙ Cₙ / Σ wₙ over the epoch (plus the penalty), each Cₙ as its step saw it.
        metrics: the same weighted mean of each metric.
        losses: [steps], the loss of every step.
        finite: False if any loss, or any parameter at the end, is not finite.
    """

    loss: Array
    metrics: dict[str, Array]
    losses: Array
    finite: Array


def init_train_state(
    net: Layer, optimizer: Optimizer, key: Key | int, in_shape: InShape, dtype: DType = jnp.float32
) -> TrainState:
    """The state before the first step: fresh parameters and optimizer state, step 0.

    Args:
        net: the network.
        optimizer: an Optimizer record, or one of optax's.
        key: a PRNG key or an integer seed; parameters are drawn from it, and it is kept for the steps' keys.
        in_shape: the shape of one example, without the batch axis.
        dtype: of the parameters.

    >>> from jaxnn import mlp, sgd
    >>> init_train_state(mlp([3, 1]), sgd(0.1), 0, (2,)).params["dense_1"]["w"].shape
    (3, 1)
    """
    key = as_key(key)
    params, state = net.init(key, in_shape, dtype)
    return TrainState(params, state, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def train_step(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    gradient: Gradient = backprop,
    penalty: Penalty | None = None,
    read: Sequence[str | Reading] = (),
) -> Callable[..., tuple[TrainState, Pass]]:
    """One step of training: θ ← θ + u, where u is the optimizer's answer to ∂C/∂θ.

    Returns:
        A pure function `(train_state, x, target, weights=None) -> (train_state, Pass)`. Random layers draw from
        `fold_in(train_state.key, train_state.step)`.

    >>> from jaxnn import losses, mlp, sgd
    >>> net, optimizer = mlp([3, 1]), sgd(0.1)
    >>> state = init_train_state(net, optimizer, 0, (2,))
    >>> state, out = train_step(net, losses.mse, optimizer)(state, jnp.ones((4, 2)), jnp.ones((4, 1)))
    >>> int(state.step), out.loss.shape
    (1, ())
    """
    differentiate = gradient(net, loss, read=read, penalty=penalty, train=True)

    def step(train_state: TrainState, x: Tree, target: Tree, weights: Array | None = None) -> tuple[TrainState, Pass]:
        params, state, opt_state, count, key = train_state
        out = differentiate(params, state, x, target, rng=jax.random.fold_in(key, count), weights=weights)
        updates, opt_state = optimizer.update(out.grads, opt_state, params)
        return TrainState(apply_updates(params, updates), out.state, opt_state, count + 1, key), out

    return step


def train_epoch(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    batch_size: int,
    metrics: Metrics = (),
    gradient: Gradient = backprop,
    penalty: Penalty | None = None,
    shuffle: bool = True,
) -> Callable[..., tuple[TrainState, EpochResult]]:
    """One pass over the data in shuffled batches: a `lax.scan` of steps, each batch gathered on the device.

    The full batches are scanned; a remainder is one more step of its own static shape in the same program, so
    no padded example enters batch statistics. The order is `shuffled(fold_in(key, epoch), N)`, with
    epoch = step // (steps per epoch).

    Returns:
        A pure function `(train_state, x, target, weights=None) -> (train_state, EpochResult)`. Under
        `jax.jit(..., donate_argnums=0)` the state is updated in place; under `jax.vmap` it trains an ensemble.

    Raises:
        ValueError: if the batch size is below 1 or above N; when called, if x, target and weights differ in number,
            and as `backprop`.

    >>> from jaxnn import losses, mlp, sgd
    >>> net, optimizer = mlp([3, 1]), sgd(0.1)
    >>> epoch = jax.jit(train_epoch(net, losses.mse, optimizer, batch_size=4))
    >>> state, result = epoch(init_train_state(net, optimizer, 0, (2,)), jnp.ones((10, 2)), jnp.ones((10, 1)))
    >>> int(state.step), result.losses.shape  # batches of 4, 4 and 2
    (3, (3,))
    """
    run = epoch_program(net, loss, optimizer, batch_size, named_metrics(metrics), gradient, penalty, shuffle)

    def epoch(
        train_state: TrainState, x: Tree, target: Tree, weights: Array | None = None
    ) -> tuple[TrainState, EpochResult]:
        return run(train_state, (x, target) if weights is None else (x, target, weights))

    return epoch


# ---------------------------------------------------------------- the parts, which the drivers use too


def epoch_program(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch: int,
    metrics: NamedMetrics,
    gradient: Gradient,
    penalty: Penalty | None,
    shuffle: bool,
) -> Callable[[TrainState, DataSet], tuple[TrainState, EpochResult]]:
    """`train_epoch` on one tuple of data; every argument hashable."""
    batch = whole_number("batch_size", batch, least=1)
    step = train_step(net, loss, optimizer, gradient=gradient, penalty=penalty)

    def training(train_state: TrainState, data: DataSet) -> tuple[TrainState, EpochResult]:
        def one(train_state: TrainState, rows: Array) -> tuple[TrainState, Tree]:
            x, target, weights = rows_of(data, rows)
            train_state, out = step(train_state, x, target, weights)
            return train_state, (out.loss, batch_sums(out.loss, out.output, target, weights, metrics))

        check_sizes("data", data)  # the gather promises to stay within bounds
        if len(data) == 3 and checks.is_concrete(data[2]):
            checks.weight_values("data: weights", data[2])
        check_batch_size(batch, data[0])
        order = epoch_order(train_state, data[0], batch, shuffle)
        train_state, (losses, sums) = in_batches(one, train_state, order, batch)
        means = means_of(sums)
        loss = means.pop("loss")
        finite = jnp.isfinite(losses).all() & jnp.isfinite(loss) & all_finite(train_state.params)
        return train_state, EpochResult(loss, means, losses, finite)

    return training


def rows_of(data: DataSet, rows: Array) -> tuple[Tree, Tree, Array | None]:
    """The batch of those rows, gathered; (x, target, weights or None)."""
    x, target, *weights = jax.tree.map(lambda leaf: jnp.asarray(leaf).at[rows].get(mode="promise_in_bounds"), data)
    return x, target, weights[0] if weights else None


def epoch_order(train_state: TrainState, x: Tree, batch: int, shuffle: bool) -> Array:
    """The examples' order in the epoch that the state has reached, [N]."""
    n = checks.batch_size("x", x)
    if not shuffle:
        return jnp.arange(n)
    epoch = train_state.step // -(-n // batch)
    return shuffled(jax.random.fold_in(train_state.key, epoch), n)


def shuffled(key: Key, n: int) -> Array:
    """The numbers 0 … n−1 in a random order, [n]; at 60,000 numbers in a fifteenth of the time of sorting.

    A Feistel network (Luby & Rackoff 1988) with tables of random numbers for its round functions: number i stands at
    row r and column c of a table of n cells or a few more, and each round adds F(c) to r and G(r) to c. Each round
    can be undone, so all numbers stay different. A number that lands on a surplus cell goes on until it leaves them
    (cycle walking; Black & Rogaway 2002). Up to SORTED numbers the order comes from `jax.random.permutation`.
    """
    if n <= SORTED:
        return jax.random.permutation(key, n)
    columns = math.isqrt(n - 1) + 1
    rows = -(-n // columns)
    to_row, to_column = jax.random.split(key)
    steps = (
        jax.random.randint(to_row, (ROUNDS, columns), 0, rows, jnp.int32),
        jax.random.randint(to_column, (ROUNDS, rows), 0, columns, jnp.int32),
    )

    def network(i: Array) -> Array:
        r, c = i // columns, i % columns
        for f, g in zip(*steps, strict=True):
            r = _wrapped(r + f[c], rows)
            c = _wrapped(c + g[r], columns)
        return r * columns + c

    def walk(i: Array) -> Array:
        return jnp.where(i < n, i, network(i))

    return jax.lax.while_loop(lambda i: (i >= n).any(), walk, network(jnp.arange(n, dtype=jnp.int32)))


def _wrapped(i: Array, size: int) -> Array:
    """I mod size, for 0 ≤ i < 2·size; a comparison costs less than a division."""
    return jnp.where(i < size, i, i - size)


def in_batches(one: Callable[..., Any], carry: Any, order: Array, batch: int) -> Any:
    """Scans `one` over the full batches and takes a last step of the remainder's own shape."""
    full = len(order) // batch
    outs = []
    if full:
        carry, out = jax.lax.scan(one, carry, order[: full * batch].reshape(full, batch))
        outs.append(out)
    if len(order) % batch:
        carry, out = one(carry, order[full * batch :])
        outs.append(jax.tree.map(lambda leaf: leaf[None], out))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


def batch_sums(
    loss: Array, output: Any, target: Tree, weights: Array | None, metrics: NamedMetrics
) -> dict[str, Array]:
    """Σ w, Σ w·loss and Σ w·metric of a batch."""
    n = checks.batch_size("output", output)
    w = jnp.ones(n, loss.dtype) if weights is None else checks.usable_weights(weights, loss.dtype)
    total = jnp.asarray(n, loss.dtype) if weights is None else w.sum()
    sums = {"weight": total, "loss": loss * total}
    for name, metric in metrics:
        value = metric_value(name, metric, output, target)
        sums[name] = jnp.where(w == 0, 0, w * value.astype(loss.dtype)).sum()
    return sums


def metric_value(name: str, metric: Metric, output: Any, target: Tree) -> Array:
    """metric(output, target), held to be [N]."""
    n, value = checks.batch_size("output", output), metric(output, target)
    if value.shape != (n,):
        raise ValueError(f"metric {name!r} must give one value for each example, ({n},), got shape {value.shape}")
    return value


def means_of(sums: dict[str, Array]) -> dict[str, Array]:
    """Σ w·value / Σ w over all batches, from what `batch_sums` gave for each, [batches]."""
    total = sums["weight"].sum()
    return {name: value.sum() / total for name, value in sums.items() if name != "weight"}


def all_finite(tree: Tree) -> Array:
    """True if every float in the tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats] or [jnp.asarray(True)]).all()


def check_sizes(what: str, parts: DataSet) -> None:
    """Raises ValueError if the parts of a data set hold no examples, or differ in their number."""
    where = "" if what == "x" else f"{what}: "
    sizes = {name: checks.batch_size(where + name, part) for name, part in zip(PARTS, parts, strict=False)}
    n = sizes["x"]
    if 0 in sizes.values():
        raise ValueError(f"{what} is empty: {sizes}")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{what}: the parts differ in their number of examples, {sizes}: the first axis of each counts them"
        )
    if len(parts) == 3:
        checks.example_weights(f"{what}: weights", parts[2], n)


def check_batch_size(batch: int, x: Tree) -> None:
    """Raises ValueError if there are fewer examples than a batch takes."""
    n = checks.batch_size("x", x)
    if batch > n:
        raise ValueError(f"batch_size must be at most {n}, the number of examples, got {batch}")


def named_metrics(metrics: Metrics) -> NamedMetrics:
    """Metrics with their names, hashable; a function is called by its own."""
    if callable(metrics):
        raise TypeError("metrics must be a list or a dict of functions: give metrics=[metric]")
    pairs = metrics.items() if isinstance(metrics, Mapping) else [(_name(metric), metric) for metric in metrics]
    named = tuple(pairs)
    names = [name for name, _ in named]
    if len(set(names)) < len(names) or {"loss", "seconds", "weight"} & set(names):
        raise ValueError(f"metrics need names that differ, and none of 'loss', 'seconds', 'weight'; got {names}")
    return named


def _name(metric: Metric) -> str:
    if not callable(metric):
        raise TypeError(f"a metric is a function (prediction, target) -> [N], got {metric!r}")
    return getattr(metric, "__name__", type(metric).__name__)
