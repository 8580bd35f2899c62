"""The batches of an epoch: the order of the examples, and the loops that take a step for each batch.

Letters: N examples, B batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_concrete
from jaxnn.checks import example_weights
from jaxnn.shapes import batch_size
from jaxnn.spmd.batches import Home, arranged
from jaxnn.spmd.batches import rows as rows_of
from jaxnn.spmd.loops import scan
from jaxnn.training.means import DataSet
from jaxnn.types import Array, Key, TrainState, Tree

SORTED = 1024  # numbers up to which sorting is cheap, and every order equally likely
ROUNDS = 3  # pairs of rounds; two pairs already pass for random with random tables (Luby & Rackoff's theorem)
PARTS = ("x", "target", "weights")  # of a DataSet


# ---------------------------------------------------------------- which examples


def batch_of(data: DataSet, rows: Array, home: Home | None = None, shards: int = 1) -> tuple[Tree, Tree, Array | None]:
    """The examples of those rows, gathered: (x, target, weights or None).

    `home` is where the data lie, if known, and `shards` the number of parts that the rows are drawn from in turn. A
    batch that these do not divide is filled up with examples of weight 0.
    """
    at = arranged(rows, batch_size("x", data[0]), shards, 1 if home is None else home.devices)
    x, target, *weights = rows_of(data, at, home, local=is_local(home, shards))
    if len(at) == len(rows):
        return x, target, weights[0] if weights else None
    w = weights[0] if weights else jnp.ones(len(at))
    counts = (at >= 0).reshape(-1, *(1,) * (w.ndim - 1))
    return x, target, jnp.where(counts, w, jnp.zeros((), w.dtype))


def is_local(home: Home | None, shards: int) -> bool:
    """Whether each device draws from its own part of the data."""
    return home is not None and shards > 1 and shards == home.devices


def epoch_order(key: Key, epoch: Array | int, n: int, shuffle: bool, shards: int = 1) -> Array:
    """The order of the examples in an epoch, [N]: a function of the key and the number of the epoch.

    With shards, N/shards consecutive examples each, one example of each shard in turn; each is shuffled separately.
    """
    if shards == 1:
        return shuffled(jax.random.fold_in(key, epoch), n) if shuffle else in_turn(n)
    if not shuffle:
        return in_turn(n, shards)
    each = n // shards
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, epoch)))(jnp.arange(shards))
    orders = jax.vmap(partial(shuffled, n=each))(keys)
    return (orders + each * jnp.arange(shards, dtype=orders.dtype)[:, None]).T.reshape(-1)


def in_turn(n: int, shards: int = 1) -> Array:
    """The numbers of the examples, one of each shard in turn: 0, N/shards, 2N/shards, …, 1, N/shards + 1, …, [N]."""
    return jnp.arange(n).reshape(shards, -1).T.reshape(-1) if shards > 1 else jnp.arange(n)


def check_shards(shards: int, n: int) -> None:
    """Raises ValueError unless N examples are in shards of equal size."""
    if n % shards:
        raise ValueError(
            f"{n} examples cannot be in {shards} shards of equal size: leave out {n % shards} of them, or take a "
            "number of shards that divides them"
        )


def check_padding(couples_batch: bool, n: int, batch: int, home: Home | None, shards: int) -> None:
    """Raises ValueError if a batch would be filled up with examples of weight 0 that change what a layer computes."""
    devices = 1 if home is None else home.devices
    parts = math.lcm(shards, devices)
    uneven = {name: size for name, size in {"batch_size": batch, "the last batch": n % batch}.items() if size % parts}
    if couples_batch and uneven:
        name, size = next(iter(uneven.items()))
        what = f"{shards} shards" if size % shards else f"{devices} devices"
        raise ValueError(
            f"{name}, {size} of {n} examples, is not divisible among {what}, and would be filled up with examples of "
            f"weight 0. A layer that couples the examples of a batch, as batch_norm does, would take these into its "
            f"statistics: give a batch_size and a number of examples that are multiples of {parts}, or a layer "
            "such as layer_norm or group_norm"
        )


def rest_of(order: Array, train_state: TrainState, batch: int, start: int | None) -> Array:
    """The order from the position on; where that is traced, [N] in which −1 fills the batches that are over."""
    if start is not None:
        return order[start:] if start else order
    n, position = len(order), train_state.position
    full = n // batch * batch
    i = jnp.arange(full)
    rows = jnp.where(i < (n - position) // batch * batch, order[jnp.clip(position + i, 0, n - 1)], -1)
    return jnp.concatenate([rows, jnp.where(position % batch == 0, order[full:], -1)])


def off_the_end(position: Array | int, n: int, batch: int) -> Array:
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


# ---------------------------------------------------------------- loops of a length that is known


def in_batches(one: Callable[..., Any], carry: Any, order: Array, batch: int, recompute: int = 0) -> Any:
    """Scans `one` over the full batches and takes a last step of the remainder's own shape.

    With `recompute` n ≥ 1, reverse differentiation keeps the carry of every n-th step, and computes the steps between
    again, one block at a time.
    """
    full = len(order) // batch
    outs = []
    if recompute:
        one = jax.checkpoint(one, prevent_cse=False)
    if full:
        carry, out = recomputed_scan(one, carry, order[: full * batch].reshape(full, batch), recompute)
        outs.append(out)
    if len(order) % batch:
        rest = order[full * batch :]
        if is_concrete(order):  # in a scan the weights are not checked, which may all be 0 in a batch
            carry, out = jax.lax.scan(one, carry, rest[None])
        else:
            carry, out = one(carry, rest)
            out = jax.tree.map(lambda leaf: leaf[None], out)
        outs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


def recomputed_scan(one: Callable[..., Any], carry: Any, xs: Any, block: int) -> Any:
    """A scan, of which reverse differentiation keeps the carry before each block of that many steps; 0 for all."""
    steps = len(jax.tree.leaves(xs)[0])
    if not 1 < block < steps:
        return scan(one, carry, xs)
    blocks = steps // block
    cut = lambda start, stop: jax.tree.map(lambda leaf: leaf[start:stop], xs)  # noqa: E731
    stacked = jax.tree.map(lambda leaf: leaf.reshape(blocks, block, *leaf.shape[1:]), cut(0, blocks * block))
    whole = jax.checkpoint(lambda carry, xs: scan(one, carry, xs), prevent_cse=False)
    carry, out = scan(whole, carry, stacked)
    out = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)
    if steps % block:
        carry, rest = whole(carry, cut(blocks * block, steps))
        out = jax.tree.map(lambda *parts: jnp.concatenate(parts), out, rest)
    return carry, out


def in_measured_batches(
    one: Callable[..., Any], measured: Callable[..., Any], carry: Any, order: Array, batch: int, times: int
) -> Any:
    """`in_batches`, the last full batch of each of `times` equal blocks by `measured`, which returns a third value.

    A branch in every step would cost more than the measures do; here the other steps are unchanged.
    """
    full = len(order) // batch
    block = full // times
    first = (full - times * block) * batch  # the steps left over come first
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

    carry, (out, noted) = scan(whole, carry, order[first:last].reshape(times, block * batch))
    outs.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out))
    if len(order) > last:
        carry, out = in_batches(one, carry, order[last:], batch)
        outs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs), noted


# ---------------------------------------------------------------- checks


def check_sizes(what: str, parts: DataSet) -> None:
    """Raises ValueError if a part of a data set holds no examples, or the parts differ in their number."""
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
        example_weights(f"{what}: weights", parts[2], n)


def check_batch_size(batch: int, n: int, measure: int = 0, start: int = 0) -> None:
    """Raises ValueError if B exceeds N, too few batches are full to be measured, or the start lies outside."""
    if batch > n:
        raise ValueError(f"batch_size must be at most {n}, the number of examples, got {batch}")
    if measure > n // batch:
        raise ValueError(f"measure must be at most {n // batch}, the number of full batches, got {measure}")
    if not 0 <= start < n:
        raise ValueError(
            f"train_state.position {start} lies outside of an epoch of {n} examples: give "
            "train_state._replace(position=0) to begin it anew"
        )
