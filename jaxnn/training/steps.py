"""One step and one epoch of training, as pure functions for use under jit, vmap and scan.

An epoch is a `lax.scan` over batches that are gathered on the device. Letters: N examples, B batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn import checks, placement
from jaxnn.arrays import is_concrete, is_floating
from jaxnn.checks import seen, whole_number, yes_or_no
from jaxnn.diagnostics.measures import HEALTH, Measures, measures
from jaxnn.keys import as_key, layer_key
from jaxnn.mistakes import (
    accepts,
    array_leaves,
    factory_hint,
    is_function,
    net_record,
    optimizer_record,
    training_records,
    whole_state,
)
from jaxnn.optimizers.parts import apply_updates, extras_of, next_step, taken, with_rate_of
from jaxnn.passes.backprop import PassFunction, backprop, penalty_value
from jaxnn.passes.parts import costs
from jaxnn.passes.readings import readings_of
from jaxnn.shapes import batch_size
from jaxnn.showing import epoch_line, shown
from jaxnn.training.means import (
    DataSet,
    Metrics,
    NamedMetrics,
    batch_sums,
    in_moderation,
    means_of,
    named_metrics,
)
from jaxnn.trees import same_shapes
from jaxnn.types import (
    EPOCH_START,
    Array,
    DType,
    InShape,
    Key,
    Layer,
    Loss,
    Optimizer,
    Pass,
    Penalty,
    Reading,
    TrainState,
    Tree,
)

Gradient = Callable[..., PassFunction]
Augment = Callable[[Key, Any], Any]  # (key, x) -> x, of x's shape
SORTED = 1024  # numbers up to which sorting is cheap, and every order equally likely
ROUNDS = 3  # pairs of rounds; two pairs already pass for random with random tables (Luby & Rackoff's theorem)
AUGMENTATION = "/augment"  # its key's name, which no layer can have
PARTS = ("x", "target", "weights")  # of a DataSet


@shown(epoch_line)
class EpochResult(NamedTuple):
    """What an epoch reports, as arrays.

    Attributes:
        loss: Σ wₙ Cₙ / Σ wₙ over the epoch, without the penalty, each Cₙ as its step saw it.
        metrics: the same weighted mean of each metric.
        losses: [steps], the loss of every step, without the penalty.
        finite: False if any loss (with the penalty), or any parameter at the end, is not finite.
        diagnostics: what was measured, [times, …] in each leaf; () where nothing was asked for.
        penalty: the mean of the steps' penalties, weighted as their losses are; () where there is none.
        ran: [steps], False for steps that were not taken: in the rest of an epoch of which a part was over, or behind
            the end of a training that skips too many. Their losses are NaN. () where all were taken.
        skipped: [steps], True for steps that were not finite and changed nothing; () where none is skipped.
    """

    loss: Array
    metrics: dict[str, Array]
    losses: Array
    finite: Array
    diagnostics: Measures | tuple[()] = ()
    penalty: Array | tuple[()] = ()
    ran: Array | tuple[()] = ()
    skipped: Array | tuple[()] = ()


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
    net_record("init_train_state", net)
    optimizer_record("init_train_state: optimizer", optimizer)
    key = as_key(key)
    params, state = net.init(key, in_shape, dtype)
    array_leaves("net.init: the parameters", params)
    step, epoch = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # not one twice: both are donated
    return TrainState(params, state, optimizer.init(params), step, key, epoch)


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
        Where the optimizer was made with another learning rate than the state's, the optimizer's rules from now on. An
        `update` that takes any of weight (Σw of the batch), value (its loss), grad and value_fn (params -> loss on this
        batch), as `accumulate` and some of optax's do, is given them. The cursor of the state stays where it is.

    >>> from jaxnn import losses, mlp, sgd
    >>> net, optimizer = mlp([3, 1]), sgd(0.1)
    >>> state = init_train_state(net, optimizer, 0, (2,))
    >>> state, out = train_step(net, losses.mse, optimizer)(state, jnp.ones((4, 2)), jnp.ones((4, 1)))
    >>> int(state.step), out.loss.shape
    (1, ())
    """
    training_records("train_step", net, loss, optimizer, gradient, penalty)
    diagnose = yes_or_no("train_step: diagnose", diagnose)
    check_augmentation(augment)
    return step_program(
        net,
        loss,
        optimizer,
        gradient=gradient,
        penalty=penalty,
        read=read,
        augment=augment,
        diagnose=diagnose,
        by_hand=True,
    )


def _as_called(optimizer: Optimizer, train_state: TrainState) -> TrainState:
    """The state with the learning rate of the optimizer that is called."""
    return train_state._replace(opt_state=with_rate_of(optimizer, train_state.opt_state, train_state.params))


def step_program(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    gradient: Gradient = backprop,
    penalty: Penalty | None = None,
    read: Sequence[str | Reading] = (),
    augment: Augment | None = None,
    diagnose: bool = False,
    by_hand: bool = False,
) -> Callable[..., tuple[TrainState, Pass]]:
    """`train_step`; unless it is called by hand, of a state that was looked at and has the call's learning rate."""
    differentiate = gradient(
        net, loss, read=(*readings_of(read), HEALTH) if diagnose else read, penalty=penalty, train=True
    )
    wanted = extras_of(optimizer.update)
    plain = gradient(net, loss, penalty=penalty, train=True) if "value_fn" in wanted else None

    def step(
        train_state: TrainState,
        x: Tree,
        target: Tree,
        weights: Array | None = None,
        *,
        update_scale: Array | float | None = None,
    ) -> tuple[TrainState, Pass]:
        if by_hand:
            whole_state("train_step: ", train_state)
            train_state = _as_called(optimizer, train_state)
        params, state, opt_state, count, key, *_ = train_state
        rng = jax.random.fold_in(key, count)
        if augment is not None:
            x = _augmented(augment, rng, x)
        out = differentiate(params, state, x, target, rng=rng, weights=weights)

        def loss_at(params: Tree, weight: Any = None) -> Array:
            """Of this batch; `weight` is here for optax's line searches, which hand every extra argument on."""
            assert plain is not None
            return plain(params, state, x, target, rng=rng, weights=weights).loss

        extras = {"weight": out.weight, "value": out.loss, "grad": out.grads, "value_fn": loss_at}
        updates, opt_state = optimizer.update(out.grads, opt_state, params, **taken(optimizer.update, extras))
        if update_scale is not None:
            scale = jnp.asarray(update_scale)
            updates = jax.tree.map(lambda u: u * scale.astype(u.dtype) if is_floating(u) else u, updates)
        if diagnose:
            found = measures(net, out.readings[HEALTH.name], params, out.grads, updates, count)
            out = out._replace(readings={**out.readings, HEALTH.name: found})
        new = train_state._replace(
            params=apply_updates(params, updates), state=out.state, opt_state=opt_state, step=next_step(count)
        )
        return new, out

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
    no padded example enters batch statistics. The order is `shuffled(fold_in(key, epoch), N)`.

    A state within an epoch (`position` > 0) finishes that epoch: the examples from its position on are taken in batches
    of B, of whatever size those before were. Where such a position is traced, steps that are already over are computed
    and left out, and a position from which B does not lead to the end of the epoch by full batches and the last one
    of N mod B (that is, one that is not a multiple of B) turns the loss into NaN.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        batch_size: B, from 1 to N.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict; see `metrics` for weights and
            masks of entries.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of what is minimised.
        shuffle: False keeps the order of the data.
        augment: a function (key, x) -> x of the same shape, applied to each batch.
        diagnose: how many steps are measured, at equal distances, the last at the last full batch. 0 costs nothing.

    Returns:
        A pure function `(train_state, x, target, weights=None, *, update_scale=None) -> (train_state, EpochResult)`.
        All updates of the epoch are multiplied by update_scale, where one is given. Under
        `jax.jit(..., donate_argnums=0)` the state is updated in place; under `jax.vmap` it trains an ensemble. Learning
        rates and extra arguments are those of `train_step`.

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
    parts = (net, loss, optimizer, batch_size, named, gradient, penalty, shuffle, augment, diagnose)

    def epoch(
        train_state: TrainState,
        x: Tree,
        target: Tree,
        weights: Array | None = None,
        *,
        update_scale: Array | float | None = None,
    ) -> tuple[TrainState, EpochResult]:
        position = train_state.position
        start = int(position) if isinstance(position, int) or is_concrete(position) else None
        data = (x, target) if weights is None else (x, target, weights)
        return epoch_program(*parts, start=start)(train_state, data, update_scale)

    epoch_program(*parts)  # refuses what it would refuse when called
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
    skip: int = 0,
    home: placement.Home | None = None,
    start: int | None = 0,
) -> Callable[..., tuple[TrainState, EpochResult]]:
    """`train_epoch` on one tuple of data, `(train_state, data, update_scale=None, in_a_row=0)`; all hashable.

    `start` is the position in the epoch, None where it is known to the state alone. With `skip` a step that is not
    finite changes nothing, and the steps behind so many in a row, `in_a_row` before the first, are not taken.
    """
    batch = whole_number("batch_size", batch, least=1)
    diagnose = whole_number("diagnose", diagnose, least=0)
    training_records("train_epoch", net, loss, optimizer, gradient, penalty)
    shuffle = yes_or_no("shuffle", shuffle)
    check_augmentation(augment)
    make = partial(step_program, net, loss, optimizer, gradient=gradient, penalty=penalty, augment=augment)
    step, measured_step = make(), make(diagnose=True) if diagnose else None
    may_rest = start is None or skip > 0  # steps that are computed and left out

    def training(
        train_state: TrainState,
        data: DataSet,
        update_scale: Array | float | None = None,
        in_a_row: Array | int = 0,
    ) -> tuple[TrainState, EpochResult]:
        def one(carry: Any, rows: Array) -> tuple[Any, Tree]:
            return take(step, carry, rows)[:2]

        def measured(carry: Any, rows: Array) -> tuple[Any, Tree, Measures]:
            return take(measured_step, carry, rows)

        def take(step: Any, carry: Any, rows: Array) -> tuple[Any, Tree, Any]:
            train_state = carry[0] if may_rest else carry
            x, target, weights = rows_of(data, jnp.maximum(rows, 0) if start is None else rows, home)
            new, out = step(train_state, x, target, weights, update_scale=update_scale)
            figures, whole = {"loss": out.loss}, None
            if penalty is not None:  # computed once, as XLA sees: the pass has the same
                figures["loss"], whole = costs(loss, out.output, target, weights).mean, out.loss
                figures["penalty"] = penalty_value(penalty, train_state.params).astype(whole.dtype)
            sums = batch_sums(factor, out.weight, figures, out.output, target, weights, metrics)
            noted, outs = out.readings.get(HEALTH.name), (figures["loss"], whole, sums)
            return _guarded(carry, new, out, rows, outs, noted, skip) if may_rest else (new, outs, noted)

        whole_state("train_epoch: ", train_state)
        check_sizes("data", data)  # the gather promises to stay within bounds
        if len(data) == 3 and is_concrete(data[2]):
            checks.weight_values("data: weights", data[2])
        times = check_batch_size(batch, data[0], diagnose, start or 0)
        data, factor = in_moderation(data)
        train_state = _as_called(optimizer, train_state)
        order = rest_of(epoch_order(train_state, data[0], shuffle), train_state, batch, start)
        carry: Any = (train_state, jnp.asarray(in_a_row, jnp.int32)) if may_rest else train_state
        if times:
            carry, outs, diagnostics = in_measured_batches(one, measured, carry, order, batch, times)
        else:
            (carry, outs), diagnostics = in_batches(one, carry, order, batch), ()
        losses, whole, sums, *flags = outs
        means = means_of(sums)
        mean, penalties = means.pop("loss"), means.pop("penalty", ())
        whole = losses if whole is None else whole
        if not may_rest:
            new_state = carry._replace(**cursor(carry.epoch + 1, 0))
            finite = jnp.isfinite(whole).all() & jnp.isfinite(mean) & all_finite(new_state.params)
            return new_state, EpochResult(mean, means, losses, finite, diagnostics, penalties)
        ran, skipped = flags
        new_state, in_a_row = carry
        finite = (jnp.isfinite(whole) | ~ran | skipped).all() & all_finite(new_state.params)
        if start is None:
            mean = jnp.where(_off_the_end(train_state.position, len(order), batch), jnp.nan, mean)
            new_state = new_state._replace(**cursor(train_state.epoch + 1, 0))
            finite &= jnp.isfinite(mean)
            return new_state, EpochResult(mean, means, losses, finite, diagnostics, penalties, ran)
        sizes = jnp.asarray([min(batch, len(order) - first) for first in range(0, len(order), batch)], jnp.int32)
        over, seen = ran[-1], start + jnp.where(ran, sizes, 0).sum()
        new_state = new_state._replace(**cursor(train_state.epoch + over.astype(jnp.int32), jnp.where(over, 0, seen)))
        finite &= in_a_row < skip
        return new_state, EpochResult(mean, means, losses, finite, diagnostics, penalties, ran, skipped)

    return training


def _guarded(
    carry: tuple[TrainState, Array], new: TrainState, out: Pass, rows: Array, outs: Tree, noted: Any, skip: int
) -> tuple[tuple[TrainState, Array], Tree, Any]:
    """What a step leaves behind: nothing where it is over (no rows), and with `skip` where it is not finite."""
    old, in_a_row = carry
    ran, skipped = rows[-1] >= 0, jnp.asarray(False)
    if skip:
        ran &= in_a_row < skip
        skipped = ran & ~(jnp.isfinite(out.loss) & all_finite(out.grads))
        in_a_row = jnp.where(ran, jnp.where(skipped, in_a_row + 1, 0), in_a_row)
    kept = ran & ~skipped

    def moved(name: str) -> Tree:
        return jax.tree.map(lambda new, old: jnp.where(kept, new, old), getattr(new, name), getattr(old, name))

    new = old._replace(**{name: moved(name) for name in ("params", "state", "opt_state", "step")})
    loss, whole, sums = outs
    sums = jax.tree.map(lambda value: jnp.where(kept, value, 0), sums)
    noted = jax.tree.map(lambda value: jnp.where(ran, value, jnp.nan) if is_floating(value) else value, noted)
    return (new, in_a_row), (jnp.where(ran, loss, jnp.nan), whole, sums, ran, skipped), noted


def cursor(epoch: Array | int, position: Array | int) -> dict[str, Any]:
    """The fields of a TrainState that say where in its data a training is."""
    if isinstance(position, int) and position == 0:
        return {"epoch": jnp.asarray(epoch, jnp.int32), "position": EPOCH_START}
    return {"epoch": jnp.asarray(epoch, jnp.int32), "position": jnp.asarray(position, jnp.int32)}


def rows_of(data: DataSet, rows: Array, home: placement.Home | None = None) -> tuple[Tree, Tree, Array | None]:
    """The batch of those rows, gathered; (x, target, weights or None). Home is where the data lie, if that is known."""
    x, target, *weights = placement.rows(data, rows, home)
    return x, target, weights[0] if weights else None


def epoch_order(train_state: TrainState, x: Tree, shuffle: bool) -> Array:
    """The examples' order in the epoch that the state has reached, [N]."""
    n = batch_size("x", x)
    if not shuffle:
        return jnp.arange(n)
    return shuffled(jax.random.fold_in(train_state.key, train_state.epoch), n)


def rest_of(order: Array, train_state: TrainState, batch: int, start: int | None) -> Array:
    """The order from the position on; where that is traced, [N] in which −1 fills the batches that are over."""
    if start is not None:
        return order[start:] if start else order
    n, position = len(order), train_state.position
    full = n // batch * batch
    i = jnp.arange(full)
    rows = jnp.where(i < (n - position) // batch * batch, order[jnp.clip(position + i, 0, n - 1)], -1)
    return jnp.concatenate([rows, jnp.where(position % batch == 0, order[full:], -1)])


def _off_the_end(position: Array | int, n: int, batch: int) -> Array:
    """True of a position from which full batches and one of N mod B do not lead to N."""
    position = jnp.asarray(position)
    beyond = (position < 0) | (position >= n)
    return beyond | ((position % batch != 0) & ((n - position) % batch != 0))


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
    """Gives i mod size, for 0 ≤ i < 2·size; a comparison costs less than a division."""
    return jnp.where(i < size, i, i - size)


def in_batches(one: Callable[..., Any], carry: Any, order: Array, batch: int) -> Any:
    """Scans `one` over the full batches and takes a last step of the remainder's own shape."""
    full = len(order) // batch
    outs = []
    if full:
        carry, out = placement.scan(one, carry, order[: full * batch].reshape(full, batch))
        outs.append(out)
    if len(order) % batch:
        rest = order[full * batch :]
        if is_concrete(order):  # its weights are not looked at, which may all be 0 in a batch
            carry, out = jax.lax.scan(one, carry, rest[None])
        else:
            carry, out = one(carry, rest)
            out = jax.tree.map(lambda leaf: leaf[None], out)
        outs.append(out)
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


def all_finite(tree: Tree) -> Array:
    """True if every float in the tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats] or [jnp.asarray(True)]).all()


def check_sizes(what: str, parts: DataSet) -> None:
    """Raises ValueError if the parts of a data set hold no examples, or differ in their number."""
    where = "" if what == "x" else f"{what}: "
    sizes = {name: batch_size(where + name, part) for name, part in zip(PARTS, parts, strict=False)}
    n = sizes["x"]
    if 0 in sizes.values():
        raise ValueError(f"{what} is empty: {sizes}")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{what}: the parts differ in their number of examples, {sizes}: the first axis of each counts them"
        )
    if len(parts) == 3:
        checks.example_weights(f"{what}: weights", parts[2], n)


def check_batch_size(batch: int, x: Tree, measured: int = 0, start: int = 0) -> int:
    """How many steps are measured: what is asked for, or as many as an epoch that has begun has full batches left.

    Raises ValueError if there are fewer examples than a batch takes, fewer full batches than are to be measured, or
    nothing behind the start.
    """
    n = batch_size("x", x)
    if batch > n:
        raise ValueError(f"batch_size must be at most {n}, the number of examples, got {batch}")
    if measured > n // batch:
        raise ValueError(f"diagnose must be at most {n // batch}, the number of full batches, got {measured}")
    if not 0 <= start < n:
        raise ValueError(
            f"train_state.position {start} lies outside of an epoch of {n} examples: give "
            "train_state._replace(position=0) to begin it anew"
        )
    return min(measured, (n - start) // batch)


def check_augmentation(augment: Any) -> None:
    """Raises TypeError unless augment is a function of a key and a batch, or None."""
    if augment is not None and (not is_function(augment) or not accepts(augment, None, None)):
        raise TypeError(f"augment must be a function (key, x) -> x, got {seen(augment)}{factory_hint(augment)}")


def check_augment(augment: Augment, x: Tree, batch: int) -> None:
    """Raises TypeError or ValueError if augment is no function, or does not keep the shape and type of a batch."""
    check_augmentation(augment)
    spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), x)
    jax.eval_shape(lambda x: _augmented(augment, jax.random.key(0), x), spec)
