"""Steps and epochs for accelerators that are not here, and the order of an epoch, which replaces a sort."""

import functools
import pickle

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import D, X, assert_close, compilations

from jaxnn import adam, batch_norm, dense, init_train_state, losses, metrics, mlp, serial, sgd, train_epoch, train_step
from jaxnn.training.batches import SORTED, shuffled

shuffle = jax.jit(shuffled, static_argnums=1)


@pytest.mark.parametrize("n", [1, 2, 1024, 1025, 1681, 1682, 2000, 2003, 60_000])
def test_shuffled_is_a_permutation(n):
    """Squares, a square and one more, a prime: the tables' last cells are the ones to go wrong."""
    order = np.asarray(shuffle(jax.random.key(n), n))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    assert n < 3 or (order != np.asarray(shuffle(jax.random.key(n + 1), n))).any()


def test_shuffled_is_as_random_as_sorting():
    """Places, pairs of places, differences of neighbours and fixed points, over 4,000 orders of 2,000 numbers.

    Each χ² has about its degrees of freedom as mean, and √(2·df) as standard deviation; six of those are allowed.
    """
    n, orders, bins = 2000, 4000, 20
    columns = 45  # ⌈√n⌉: numbers this far apart share a column of the network
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: shuffled(key, n)))(jax.random.split(jax.random.key(5), orders)))

    def chi_squared(counts):
        expected = counts.mean()
        return ((counts - expected) ** 2 / expected).sum() - (counts.size - 1), np.sqrt(2 * (counts.size - 1))

    place = drawn * bins // n
    for i, j in [(0, 1), (0, columns), (17, 1999), (columns - 1, columns)]:
        excess, deviation = chi_squared(np.histogram2d(place[:, i], place[:, j], bins=bins)[0])
        assert abs(excess) < 6 * deviation, (i, j)
    for apart in (1, columns):
        differences = (drawn[:, apart:] - drawn[:, :-apart]) % n
        excess, deviation = chi_squared(np.bincount(differences.ravel(), minlength=n)[1:])
        assert abs(excess) < 6 * deviation, apart
    assert abs((drawn == np.arange(n)).sum(1).mean() - 1) < 6 / np.sqrt(orders)  # fixed points: mean 1, variance 1


def test_a_fresh_state_can_be_donated():
    """No two of its arrays share their memory: batch norm's shift and running mean begin as the same zeros."""
    state = init_train_state(serial(dense(3), batch_norm()), adam(1e-2), 0, (2,))
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state._replace(key=()))]
    assert len(set(places)) == len(places)


# ---------------------------------------------------------------- lowering for machines that are not here

PLATFORMS = ("cpu", "cuda", "tpu")
NET, LOSS, BATCH = mlp([5, 3]), losses.softmax_cross_entropy, 16
OPTIMIZERS = {"sgd": sgd(0.1), "nesterov": sgd(0.1, momentum=0.9, nesterov=True), "adam": adam(1e-2)}


@functools.cache
def initialisation(optimizer):
    return jax.jit(lambda: init_train_state(NET, optimizer, 0, (4,)))


def lowered_for_all(program, optimizer, n):
    """The text of program for n examples, exported for every platform; on this one it does what program does."""

    def arguments():  # anew for each call, which may take their memory
        x = np.cos(np.arange(4 * n)).reshape(n, 4).astype(np.float32)
        return initialisation(optimizer)(), x, np.arange(n, dtype=np.int32) % 3

    exported = jax.export.export(program, platforms=PLATFORMS)(*arguments())
    assert exported.platforms == PLATFORMS
    assert_close(program(*arguments()), exported.call(*arguments()))  # compiled apart, and so rounded apart
    return exported.mlir_module()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_lowers_for_every_platform(optimizer):
    assert "stablehlo.dot_general" in lowered_for_all(jax.jit(train_step(NET, LOSS, optimizer)), optimizer, BATCH)


@pytest.mark.parametrize(("n", "order"), [(40, "stablehlo.sort"), (SORTED + 6, "stablehlo.while")])
def test_an_epoch_lowers_for_every_platform(n, order):
    """A scan of adam steps and a smaller last one, the order drawn on the device with and without sorting, donated."""
    epoch = train_epoch(NET, LOSS, OPTIMIZERS["adam"], batch_size=BATCH, metrics=[metrics.accuracy])
    program = lowered_for_all(jax.jit(epoch, donate_argnums=0), OPTIMIZERS["adam"], n)
    assert program.count("stablehlo.while") >= 1 + (order == "stablehlo.while")  # the scan is one itself
    assert order in program
    assert "tf.aliasing_output" in program  # the state's memory is its successor's


# ---------------------------------------------------------------- a step is a value


def test_equal_steps_are_one_program():
    make = lambda rate: train_step(mlp([3]), losses.mse, sgd(rate), read=["deltas"])
    assert make(0.1) == make(0.1)
    assert hash(make(0.1)) == hash(make(0.1))
    assert make(0.1) != make(0.2)
    assert repr(make(0.1)) == "train_step(serial(dense(3)), mse, sgd(0.1), read=('deltas',))"
    assert pickle.loads(pickle.dumps(make(0.1))) == make(0.1)
    state = init_train_state(mlp([3]), sgd(0.1), 0, (D,))
    run = jax.jit(lambda step, state: step(state, X[:4], X[:4, :3])[0])
    with compilations() as programs:
        for _ in range(3):
            run(make(0.1), state)
    assert len([name for name in programs if "lambda" in name]) == 1


def test_a_step_with_a_traced_rate_is_mapped_over():
    state = init_train_state(mlp([3]), sgd(0.1), 0, (D,))

    def loss_after(rate):
        net, optimizer = mlp([3]), sgd(rate)
        step = train_step(net, losses.mse, optimizer)
        after, _ = step(state._replace(opt_state=optimizer.init(state.params)), X[:4], X[:4, :3])
        return step(after, X[:4], X[:4, :3])[1].loss

    rates = jnp.asarray([0.1, 0.3])
    assert_close(jax.jit(jax.vmap(loss_after))(rates), np.stack([loss_after(float(rate)) for rate in rates]))


@pytest.mark.parametrize("make", [train_step, functools.partial(train_epoch, batch_size=4)], ids=["step", "epoch"])
def test_a_step_with_an_array_in_it_can_be_compiled(make):
    """By `jax.jit` of the step itself; a rate may be an array, also a traced one."""
    net, x = mlp([3]), X[:8]
    state = init_train_state(net, sgd(0.1), 0, (D,))

    def after(rate):
        optimizer = sgd(rate)
        run = jax.jit(make(net, losses.mse, optimizer))
        return run(state._replace(opt_state=optimizer.init(state.params)), x, x[:, :3])[0].params["dense_0"]["w"]

    rates = [0.1, 0.3]
    expected = np.stack([after(rate) for rate in rates])
    assert_close(np.stack([after(jnp.float32(rate)) for rate in rates]), expected)
    assert_close(jax.vmap(after)(jnp.asarray(rates)), expected)
    one, same, other = (make(net, losses.mse, sgd(jnp.float32(rate))) for rate in (0.1, 0.1, 0.3))
    assert one == same != other
    assert hash(one) == hash(same)
