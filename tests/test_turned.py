"""Members that share their batches, with their first weights held transposed: the same training, to rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_arrays import bits

from jaxnn import conv, dense, flatten, init_train_state, losses, mlp, repeat, serial, sgd, train_epoch
from jaxnn.training.chunks import Chunk, as_count, chunk_of
from jaxnn.training.turned import Turned, narrow_first, turned
from jaxnn.types import TrainState

K, N, BATCH, D = 3, 20, 5, 40
NET, OPTIMIZER = serial(flatten(), mlp([4, 3])), sgd(0.1, momentum=0.5)
EPOCH = train_epoch(NET, losses.softmax_cross_entropy, OPTIMIZER, batch_size=BATCH)
DATA = (np.random.default_rng(0).normal(size=(N, D)).astype(np.float32), np.arange(N) % 3)
AXES = TrainState(0, 0, 0, 0, 0, None, None)
MEMBERS = [init_train_state(NET, OPTIMIZER, k, (D,))._replace(position=jnp.int32(0)) for k in range(K)]
RATES = jnp.array([0.1, 0.2, 0.4])


def of_all(chunk, steps):
    """All members side by side, in calls of so many steps; the learning rates differ."""
    noted = chunk_of(EPOCH, DATA).nothing_noted(MEMBERS[0], DATA, None)
    noted = jax.tree.map(lambda leaf: jnp.stack([leaf] * K), noted)
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *MEMBERS)
    state = state._replace(epoch=MEMBERS[0].epoch, position=MEMBERS[0].position)
    state = state._replace(opt_state=state.opt_state._replace(learning_rate=RATES))

    def some(state, noted, count):
        state, noted, _ = chunk(turned(NET, state), DATA, None, noted, count)
        return turned(NET, state), noted

    run = jax.jit(jax.vmap(some, in_axes=(AXES, 0, None), out_axes=(AXES, 0)))
    for count in steps:
        state, noted = run(state, noted, as_count(count))
    return state, noted.notes.loss


@pytest.fixture(scope="module")
def shared():
    epoch = dataclasses.replace(EPOCH, order_key=jax.random.key(5))
    fields = {field.name: getattr(epoch, field.name) for field in dataclasses.fields(epoch)}
    return epoch, Chunk(Turned(**fields), 0)


def test_members_that_are_turned_learn_what_each_learns_alone(shared):
    epoch, chunk = shared
    state, losses_of = of_all(chunk, [4])
    for k, member in enumerate(MEMBERS):
        alone = member._replace(opt_state=member.opt_state._replace(learning_rate=RATES[k]))
        expected, result = jax.jit(epoch)(alone, *DATA)
        jax.tree.map(
            lambda got, want, k=k: np.testing.assert_allclose(got[k], want, rtol=1e-5, atol=1e-6),
            (state.params, state.opt_state, losses_of),
            (expected.params, expected.opt_state, result.losses),
        )


def test_pieces_have_the_bits_of_the_whole(shared):
    assert bits(of_all(shared[1], [4])) == bits(of_all(shared[1], [1, 3]))


def test_turned_transposes_the_first_weights_and_their_velocity_alone():
    state = turned(NET, MEMBERS[0])
    trees = (state.params, state.opt_state.velocity, MEMBERS[0].params)
    assert [[leaf.shape for leaf in jax.tree.leaves(tree) if leaf.ndim == 2] for tree in trees] == [
        [(4, D), (4, 3)],
        [(4, D), (4, 3)],
        [(D, 4), (4, 3)],
    ]
    assert bits(turned(NET, state)) == bits(MEMBERS[0])


NOT_TURNED = {"conv": serial(conv(2, (3, 3)), flatten(), dense(3)), "repeat": repeat(dense(4), 2), "wide": mlp([33, 3])}


@pytest.mark.parametrize("net", NOT_TURNED.values(), ids=NOT_TURNED)
def test_where_no_narrow_dense_layer_reads_the_data_nothing_is_turned(net):
    assert narrow_first(net) is None
    assert turned(net, MEMBERS[0]) is MEMBERS[0]
