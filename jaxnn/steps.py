"""One step and one epoch of training, as pure functions for use under jit, vmap and scan.

An epoch is a `lax.scan` over batches that are gathered on the device. Letters: N examples, B batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn import checks, placement
from jaxnn.backprop import PassFunction, backprop
from jaxnn.checks import as_key, is_floating, layer_key, same_shapes, whole_number
from jaxnn.diagnostics.measures import HEALTH, Measures, beside, instrumented, measures
from jaxnn.optimizers import apply_updates
from jaxnn.readings import readings_of
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
Augment = Callable[[Key, Any], Any]  # (key, x) -> x, of x's shape
DataSet = tuple[Any, ...]  # (x, target) or (x, target, weights), N examples first
SORTED = 1024  # numbers up to which sorting is cheap, and every order equally likely
ROUNDS = 3  # pairs of rounds; two pairs already pass for random with random tables (Luby & Rackoff's theorem)
AUGMENTATION = "/augment"  # its key's name, which no layer can have
RESERVED = {"loss", "seconds", "weight", "update_scale"}  # names in the history that no metric may have
PARTS = ("x", "target", "weights")  # of a DataSet


class EpochResult(NamedTuple):
    """What an epoch reports, as arrays.

    Attributes:
        loss: Σ wₙ Cₙ / Σ wₙ over the epoch (plus the penalty), each Cₙ as its step saw it.
        metrics: the same weighted mean of each metric.
        losses: [steps], the loss of every step.
        finite: False if any loss, or any parameter at the end, is not finite.
        diagnostics: what was measured, [times, …] in each leaf; () where nothing was asked for.
    """

    loss: Array
    metrics: dict[str, Array]
    losses: Array
    finite: Array
    diagnostics: Measures | tuple[()] = ()


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
    augment: Augment | None = None,
    diagnose: bool = False,
) -> Callable[..., tuple[TrainState, Pass]]:
    """One step of training: θ ← θ + s u, where u is the optimizer's answer to ∂C/∂θ and s a scale, 1 by default.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of the loss.
        read: what to note at every leaf layer, as for `backprop`.
        augment: a function (key, x) -> x of the same shape, such as those of `augment`; applied to the batch.
        diagnose: True puts the `diagnostics.Measures` of the step into the readings, as "diagnostics". Needs backprop.

    Returns:
        A pure function `(train_state, x, target, weights=None, *, update_scale=None) -> (train_state, Pass)`. Random
        layers draw from `fold_in(train_state.key, train_state.step)`, augmentation from a key folded in from that.

    >>> from jaxnn import losses, mlp, sgd
    >>> net, optimizer = mlp([3, 1]), sgd(0.1)
    >>> state = init_train_state(net, optimizer, 0, (2,))
    >>> state, out = train_step(net, losses.mse, optimizer)(state, jnp.ones((4, 2)), jnp.ones((4, 1)))
    >>> int(state.step), out.loss.shape
    (1, ())
    """
    watched = instrumented(net) if diagnose else net
    noted = (*map(beside, readings_of(read)), HEALTH) if diagnose else read
    differentiate = gradient(watched, loss, read=noted, penalty=penalty, train=True)

    def step(
        train_state: TrainState,
        x: Tree,
        target: Tree,
        weights: Array | None = None,
        *,
        update_scale: Array | float | None = None,
    ) -> tuple[TrainState, Pass]:
        params, state, opt_state, count, key = train_state
        rng = jax.random.fold_in(key, count)
        if augment is not None:
            x = _augmented(augment, rng, x)
        out = differentiate(params, state, x, target, rng=rng, weights=weights)
        updates, opt_state = optimizer.update(out.grads, opt_state, params)
        if update_scale is not None:
            scale = jnp.asarray(update_scale)
            updates = jax.tree.map(lambda u: u * scale.astype(u.dtype) if is_floating(u) else u, updates)
        if diagnose:
            found = measures(net, out.readings[HEALTH.name], params, out.grads, updates, count)
            out = out._replace(readings={**out.readings, HEALTH.name: found})
        return TrainState(apply_updates(params, updates), out.state, opt_state, count + 1, key), out

    return step


def _augmented(augment: Augment, rng: Key, x: Tree) -> Tree:
    """The batch, augmented: computed once, where XLA might compute it anew for each product that it enters."""
    new = augment(layer_key(rng, AUGMENTATION), x)  # type: ignore[arg-type]  # there is a key
    same_shapes("augment changes the shape of a batch", new, x, "evaluation sees examples of the shape that is given:")
    was, now = ([leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (x, new))
    if was != now:
        raise ValueError(f"augment changes the type of a batch, from {was} to {now}")
    return jax.lax.optimization_barrier(new)


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
    augment: Augment | None = None,
    diagnose: int = 0,
) -> Callable[..., tuple[TrainState, EpochResult]]:
    """One pass over the data in shuffled batches: a `lax.scan` of steps, each batch gathered on the device.

    The full batches are scanned; a remainder is one more step of its own static shape in the same program, so
    no padded example enters batch statistics. The order is `shuffled(fold_in(key, epoch), N)`, with
    epoch = step // (steps per epoch).

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        batch_size: B, from 1 to N.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of the loss.
        shuffle: False keeps the order of the data.
        augment: a function (key, x) -> x of the same shape, applied to each batch.
        diagnose: how many steps are measured, at equal distances, the last at the last full batch. 0 costs nothing.

    Returns:
        A pure function `(train_state, x, target, weights=None, *, update_scale=None) -> (train_state, EpochResult)`.
        All updates of the epoch are multiplied by update_scale, where one is given. Under
        `jax.jit(..., donate_argnums=0)` the state is updated in place; under `jax.vmap` it trains an ensemble.

    Raises:
        ValueError: if the batch size is below 1 or above N, or fewer batches are full than are to be measured; when
            called, if x, target and weights differ in number, and as `backprop`.

    >>> from jaxnn import losses, mlp, sgd
    >>> net, optimizer = mlp([3, 1]), sgd(0.1)
    >>> epoch = jax.jit(train_epoch(net, losses.mse, optimizer, batch_size=4))
    >>> state, result = epoch(init_train_state(net, optimizer, 0, (2,)), jnp.ones((10, 2)), jnp.ones((10, 1)))
    >>> int(state.step), result.losses.shape  # batches of 4, 4 and 2
    (3, (3,))
    """
    named = named_metrics(metrics)
    run = epoch_program(net, loss, optimizer, batch_size, named, gradient, penalty, shuffle, augment, diagnose)

    def epoch(
        train_state: TrainState,
        x: Tree,
        target: Tree,
        weights: Array | None = None,
        *,
        update_scale: Array | float | None = None,
    ) -> tuple[TrainState, EpochResult]:
        return run(train_state, (x, target) if weights is None else (x, target, weights), update_scale)

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
    augment: Augment | None = None,
    diagnose: int = 0,
    home: placement.Home | None = None,
) -> Callable[..., tuple[TrainState, EpochResult]]:
    """`train_epoch` on one tuple of data, `(train_state, data, update_scale=None)`; every argument hashable."""
    batch = whole_number("batch_size", batch, least=1)
    diagnose = whole_number("diagnose", diagnose, least=0)
    make = partial(train_step, net, loss, optimizer, gradient=gradient, penalty=penalty, augment=augment)
    step, measured_step = make(), make(diagnose=True) if diagnose else None

    def training(
        train_state: TrainState, data: DataSet, update_scale: Array | float | None = None
    ) -> tuple[TrainState, EpochResult]:
        def one(train_state: TrainState, rows: Array) -> tuple[TrainState, Tree]:
            return take(step, train_state, rows)[:2]

        def measured(train_state: TrainState, rows: Array) -> tuple[TrainState, Tree, Measures]:
            return take(measured_step, train_state, rows)

        def take(step: Any, train_state: TrainState, rows: Array) -> tuple[TrainState, Tree, Any]:
            x, target, weights = rows_of(data, rows, home)
            train_state, out = step(train_state, x, target, weights, update_scale=update_scale)
            sums = (out.loss, batch_sums(out.loss, out.output, target, weights, metrics))
            return train_state, sums, out.readings.get(HEALTH.name)

        check_sizes("data", data)  # the gather promises to stay within bounds
        if len(data) == 3 and checks.is_concrete(data[2]):
            checks.weight_values("data: weights", data[2])
        check_batch_size(batch, data[0], diagnose)
        order = epoch_order(train_state, data[0], batch, shuffle)
        if diagnose:
            run = in_measured_batches(one, measured, train_state, order, batch, diagnose)
            train_state, (losses, sums), diagnostics = run
        else:
            train_state, (losses, sums) = in_batches(one, train_state, order, batch)
            diagnostics = ()
        means = means_of(sums)
        loss = means.pop("loss")
        finite = jnp.isfinite(losses).all() & jnp.isfinite(loss) & all_finite(train_state.params)
        return train_state, EpochResult(loss, means, losses, finite, diagnostics)

    return training


def rows_of(data: DataSet, rows: Array, home: placement.Home | None = None) -> tuple[Tree, Tree, Array | None]:
    """The batch of those rows, gathered; (x, target, weights or None). Home is where the data lie, if that is known."""
    x, target, *weights = placement.rows(data, rows, home)
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
        carry, out = placement.scan(one, carry, order[: full * batch].reshape(full, batch))
        outs.append(out)
    if len(order) % batch:
        carry, out = one(carry, order[full * batch :])
        outs.append(jax.tree.map(lambda leaf: leaf[None], out))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


def in_measured_batches(
    one: Callable[..., Any], measured: Callable[..., Any], carry: Any, order: Array, batch: int, times: int
) -> Any:
    """`in_batches`, some of the full batches by `measured`, which gives a third thing: the last of each equal block.

    A branch in every step would cost more than the measures do; here the other steps are what they were.
    """
    full = len(order) // batch
    block = full // times
    first = (full - times * block) * batch  # steps that are left over come first
    last = full * batch
    outs = []
    if first:
        carry, out = in_batches(one, carry, order[:first], batch)
        outs.append(out)

    def whole(carry: Any, rows: Array) -> tuple[Any, Any]:
        carry, some = in_batches(one, carry, rows[:-batch], batch) if block > 1 else (carry, None)
        carry, out, noted = measured(carry, rows[-batch:])
        out = jax.tree.map(lambda leaf: leaf[None], out)
        if some is not None:
            out = jax.tree.map(lambda *parts: jnp.concatenate(parts), some, out)
        return carry, (out, noted)

    carry, (out, noted) = placement.scan(whole, carry, order[first:last].reshape(times, block * batch))
    outs.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out))
    if len(order) > last:
        carry, out = in_batches(one, carry, order[last:], batch)
        outs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs), noted


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


def check_batch_size(batch: int, x: Tree, measured: int = 0) -> None:
    """Raises ValueError if there are fewer examples than a batch takes, or fewer full batches than are measured."""
    n = checks.batch_size("x", x)
    if batch > n:
        raise ValueError(f"batch_size must be at most {n}, the number of examples, got {batch}")
    if measured > n // batch:
        raise ValueError(f"diagnose must be at most {n // batch}, the number of full batches, got {measured}")


def check_augment(augment: Augment, x: Tree, batch: int) -> None:
    """Raises TypeError or ValueError if augment is no function, or does not keep the shape and type of a batch."""
    if not callable(augment):
        raise TypeError(f"augment must be a function (key, x) -> x, got {augment!r}")
    spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), x)
    jax.eval_shape(lambda x: _augmented(augment, jax.random.key(0), x), spec)


def named_metrics(metrics: Metrics) -> NamedMetrics:
    """Metrics with their names, hashable; a function is called by its own."""
    if callable(metrics):
        raise TypeError("metrics must be a list or a dict of functions: give metrics=[metric]")
    pairs = metrics.items() if isinstance(metrics, Mapping) else [(_name(metric), metric) for metric in metrics]
    named = tuple(pairs)
    names = [name for name, _ in named]
    if len(set(names)) < len(names) or RESERVED & set(names):
        taken = ", ".join(map(repr, sorted(RESERVED)))
        raise ValueError(f"metrics need names that differ, and none of {taken}; got {names}")
    return named


def _name(metric: Metric) -> str:
    if not callable(metric):
        raise TypeError(f"a metric is a function (prediction, target) -> [N], got {metric!r}")
    return getattr(metric, "__name__", type(metric).__name__)
