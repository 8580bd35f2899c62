"""A sweep on several devices: each trains members of its own, without asking another one."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import collectives
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from raw_arrays import bits
from test_sweep import DATA, OTHERS, S, X, assert_close
from test_sweep import make as make_all

from jaxnn import TrainState, fit, losses, mlp, replay, run, sgd, sweep, train_step
from jaxnn.stopping import early_stopping

DEVICES = 4
if len(jax.devices()) < DEVICES:
    pytest.skip("needs four devices", allow_module_level=True)

TARGET = np.tanh(X)
RATES = {"rate": [0.001, 0.1, 0.3, 0.5, 1.0, 3.0]}


def mesh_of(axes=AxisType.Auto):
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(axes,), devices=jax.devices()[:DEVICES])


def copies(mesh, tree):
    return jax.device_put(tree, NamedSharding(mesh, P()))


def make(rate):
    step = train_step(mlp([3]), losses.mse, sgd(rate))
    return run(step, epochs=4, batch_size=8, stopping=early_stopping(1, min_improvement=0.02))


def of_sweep(swept):
    return bits((swept.runs.train_state, swept.runs.monitors, swept.runs.epochs_run, dict(swept.runs.history)))


def without_collectives(swept):
    return [collectives(program.as_text()) for program in swept.origin.programs] == [[], []]


def test_members_are_divided_among_the_devices():
    """As many at a time on each device as on one alone give the same bits: six members, one on each of four devices."""
    sweeping = sweep(make, RATES, at_once=1, remember=1, workers=1)
    one, many = sweeping((X, TARGET)), sweeping(copies(mesh_of(), (X, TARGET)))
    assert many.origin.at_once == DEVICES
    assert without_collectives(many)
    assert min(many.runs.epochs_run) < max(many.runs.epochs_run)  # some have stopped
    assert of_sweep(many) == of_sweep(one)
    i = DEVICES + 1  # of the second group
    moment = replay(many, 4, i)
    assert bits((moment.train_state, moment.batch)) == bits((replay(one, 4, i).train_state, moment.batch))
    kept = jax.tree.map(lambda leaf: leaf[1], many.origin.remembered[DEVICES, 1].train_state.params)
    assert bits(replay(many, 3, i).train_state.params) == bits(kept)


def test_members_by_default():
    """No more on each device than there are members for."""
    swept = sweep(make, RATES)
    data = copies(mesh_of(), (X, TARGET))
    members, origin, workers = swept.prepared(data)
    assert (origin.at_once, workers) == (2 * DEVICES, 1)
    assert members.epochs == 4


@pytest.mark.long
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("inside", [True, False])
def test_whatever_a_member_is(axes, inside):
    """Batch norm, dropout, a plateau, validation; batches that the devices would not divide; NumPy in jax.set_mesh."""
    sweeping = sweep(make_all, {"rate": [0.3, 0.03], "l2": [0.0, 0.1]}, seeds=[3, 5, 8], at_once=2, remember=2)
    one, mesh = sweeping(DATA, OTHERS), mesh_of(axes)
    i = 7
    step = int(one.runs.epochs_run[i]) * S - 2
    before = replay(one, step, i)
    with jax.set_mesh(mesh) if inside else nullcontext():
        many = sweeping(DATA, OTHERS) if inside else sweeping(*copies(mesh, (DATA, OTHERS)))
        assert without_collectives(many)
        assert of_sweep(many) == of_sweep(one)
        moment = replay(many, step, i)
        assert bits((moment.train_state, moment.batch)) == bits((before.train_state, before.batch))
        assert int(moment.take()[0].step) == step + 1
        net, data = make_all(0.1, 0.0).step.net, tuple(part[:20] for part in DATA)
        data = data if inside else copies(mesh, data)
        settings = {"train_state": many.member(3), "epochs": 1, "batch_size": 4}
        fit(net, losses.softmax_cross_entropy, make_all(0.1, 0.0).step.optimizer, data, **settings)


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True])
def test_in_float64_to_rounding(shared):
    """In groups of another size."""
    with jax.enable_x64(True):
        data = X.astype(np.float64), TARGET.astype(np.float64)
        one = sweep(make, RATES, shared_order=shared)(data)
        many = sweep(make, RATES, shared_order=shared)(copies(mesh_of(), data))
        assert without_collectives(many)
        assert_close(many.runs.train_state.params, one.runs.train_state.params, 1e-12)


@pytest.mark.long
def test_a_step_of_ones_own():
    def step(state, batch):
        w = state.params - 0.1 * (state.params - batch.mean())
        return state._replace(params=w), {"loss": jnp.square(w)}

    def init(key):
        return TrainState(jax.random.normal(key, ()), (), (), jnp.int32(0), key, jnp.int32(0))

    sweeping = sweep(lambda: step, {}, seeds=5, epochs=2, batch_size=8, init=init, at_once=2)
    one = sweeping(X[:, 0])
    with jax.set_mesh(mesh_of()):
        many = sweeping(X[:, 0])
    assert many.origin.members.mesh is not None
    assert of_sweep(many) == of_sweep(one)


@pytest.mark.long
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_data_that_are_divided_train_every_member_on_all_devices(axes):
    """Each member is then its own run over such data."""
    shards = DEVICES if axes is AxisType.Explicit else 1  # types do not tell of Auto axes
    with jax.enable_x64(True):
        data = X[:20].astype(np.float64), TARGET[:20].astype(np.float64)
        expected = sweep(lambda rate: run(make(rate).step, epochs=2, batch_size=8, shards=shards), RATES)(data)
        there = jax.device_put(data, NamedSharding(mesh_of(axes), P("data")))
        found = sweep(lambda rate: run(make(rate).step, epochs=2, batch_size=8), RATES)(there)
        assert found.origin.members.mesh is None
        assert_close(found.runs.train_state.params, expected.runs.train_state.params, 1e-12)
