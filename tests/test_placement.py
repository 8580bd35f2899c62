"""Several devices: on a mesh of two, Auto or Explicit, and in shard_map, results equal those on one device.

All rows are traced for their types; a few networks of many layers are run, and all rows in the long tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from cases import CASES
from draws import drawn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from laws import FLOAT64, close, forward, made, variables

from jaxnn import (
    Loss,
    as_custom_vjp,
    autodiff,
    autodiff_twin,
    backprop,
    batch_norm,
    conv,
    dense,
    dropout,
    embedding,
    evaluate,
    fit,
    flatten,
    group_norm,
    gru,
    init_train_state,
    layer_norm,
    losses,
    lstm,
    max_pool,
    metrics,
    mlp,
    penalties,
    predict,
    relu,
    repeat,
    reshape,
    residual,
    rms_norm,
    run,
    serial,
    sgd,
    share,
    sweep,
    tanh,
    train_epoch,
    train_step,
    upsample,
)
from jaxnn.factors import generic
from jaxnn.spmd.axes import varying

if len(jax.devices()) < 2:
    pytest.skip("needs two devices", allow_module_level=True)

EXPLICIT = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
AUTO = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
MESHES = {"explicit": EXPLICIT, "auto": AUTO}
WEIGHTS = np.array([1.0, 2.0, 0.0, 3.0])
F64 = jnp.dtype("float64")
SHARED, DIVIDED = P(), P("data")
ROWS = [pytest.param(case, id=case.name) for case in CASES]

# ½ Σ (y − t)² of outputs of any shape
distance = Loss("distance", lambda y, t: 0.5 * jnp.square(y - t).sum(tuple(range(1, y.ndim))), lambda y, t: y - t)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def on(mesh, tree, spec):
    """The tree on the mesh."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)


def arrays(tree):
    """As NumPy arrays, keys as their data."""

    def array(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(array, tree)


# ---------------------------------------------------------------- Explicit axes, by their types


@pytest.mark.parametrize("case", ROWS)
def test_hand_rules_know_where_their_results_live(case):
    """On Explicit axes y and δ_in are sharded like x, gradients like parameters. Nothing is compiled."""
    layer = made(case)

    def spec(tree, spec):
        lies = NamedSharding(EXPLICIT, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies), tree)

    def both(params, state, x, delta):
        y, _, tape = forward(case, layer, params, state, x)
        return y, *layer.backward(params, tape, delta)

    params, state, x, delta, _ = variables(case, layer, F64)
    y, delta_in, grads = jax.eval_shape(
        both, *(spec(tree, SHARED) for tree in (params, state)), spec(x, DIVIDED), spec(delta, DIVIDED)
    )
    for leaf in jax.tree.leaves((y, delta_in)):
        assert leaf.sharding.spec[0] == "data"
        assert not any(leaf.sharding.spec[1:])
    for leaf in jax.tree.leaves(grads):
        assert leaf.sharding is None or not any(leaf.sharding.spec)


@pytest.mark.parametrize("name", ["everything", "lstm", "batch_norm, evaluated", "embedding", "share of repeat"])
def test_one_example_is_on_every_device(name):
    """Generic factors of a network and of its twin: an example is sliced from a sharded batch."""
    (case,) = (case for case in CASES if case.name == name)

    def spec(tree, spec):
        lies = NamedSharding(EXPLICIT, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies), tree)

    params, state, x, delta, _ = variables(case, made(case), F64)
    for layer in (made(case), autodiff_twin(made(case))):

        def of_each(params, state, x, delta, layer=layer):
            return generic(layer, params, forward(case, layer, params, state, x)[2], delta)

        args = *(spec(tree, SHARED) for tree in (params, state)), spec(x, DIVIDED), spec(delta, DIVIDED)
        factors = jax.tree.leaves(jax.eval_shape(of_each, *args))
        assert [g.shape for g in factors] == [(len(delta), *p.shape) for p in jax.tree.leaves(params)]


def test_weights_divided_along_their_features():
    """Model parallelism on Explicit axes: dense and conv give each gradient the sharding of its parameter."""
    for layer, shape in ((dense(4), (3,)), (conv(4, (3,)), (6, 2))):
        params, _ = drawn(layer, shape, F64)
        x = jax.ShapeDtypeStruct((4, *shape), F64, sharding=NamedSharding(EXPLICIT, SHARED))
        lies = {name: NamedSharding(EXPLICIT, P(*(None,) * (p.ndim - 1), "data")) for name, p in params.items()}
        spec = {name: jax.ShapeDtypeStruct(p.shape, F64, sharding=lies[name]) for name, p in params.items()}

        def both(params, x, layer=layer):
            y, _, tape = layer.forward(params, (), x)
            return layer.backward(params, tape, y)

        delta_in, grads = jax.eval_shape(both, spec, x)
        assert not any(delta_in.sharding.spec)
        assert {name: g.sharding.spec for name, g in grads.items()} == {n: s.spec for n, s in lies.items()}


# ---------------------------------------------------------------- passes


def passes(layer, penalty=None, train=True):
    """`(params, state, x, target, weights, rng) -> by hand, by jax.grad`, each (loss, δs, output), state, gradients."""

    def both(params, state, x, target, weights, rng):
        found = []
        for gradient in (backprop, autodiff):
            out = gradient(layer, distance, read=("deltas",), penalty=penalty, train=train)(
                params, state, x, target, rng=rng, weights=weights
            )
            found.append(((out.loss, out.readings["deltas"], out.output), out.state, out.grads))
        return tuple(found)

    return both


def images():
    """Conv, norms, pools, reshaping, dense, with parameters stacked and shared."""
    return serial(
        conv(2, (3, 3), bias=False), batch_norm(), relu, max_pool((2, 2)), upsample((2, 1)), reshape(2, 8), flatten(),
        dense(4), residual(share(serial(dense(4), tanh), 2)), repeat(serial(dense(4), layer_norm()), 2),
        group_norm(2), rms_norm(), dropout(0.3),
    )  # fmt: skip


def sequences():
    """Tokens, and recurrent layers over time."""
    return serial(embedding(5, 2), lstm(2), gru(2, returns="last"), dense(3))


def subject(name):
    """(net, arguments of `passes`) in NumPy."""
    draw = np.random.default_rng(1)
    net = images() if name == "images" else sequences()
    shape = (4, 4, 1) if name == "images" else jax.ShapeDtypeStruct((3,), jnp.int32)
    params, state = drawn(net, shape, F64)
    x = draw.normal(size=(4, 4, 4, 1)) if name == "images" else draw.integers(0, 5, (4, 3)).astype(np.int32)
    target = draw.normal(size=(4, 4 if name == "images" else 3))
    return net, (params, state, x, target, WEIGHTS, jax.random.key(0) if name == "images" else None)


IN_SPECS = (SHARED, SHARED, DIVIDED, DIVIDED, DIVIDED, SHARED)


def placed_on(mesh, args):
    return tuple(None if arg is None else on(mesh, arg, spec) for arg, spec in zip(args, IN_SPECS, strict=True))


def check_on_mesh(mesh, both, args, expected):
    hand, auto = jax.jit(both)(*placed_on(mesh, args))
    close(arrays(hand), expected, FLOAT64, "by hand")
    close(arrays(auto), expected, FLOAT64, "by jax.grad")
    assert not any(any(leaf.sharding.spec) for leaf in jax.tree.leaves(hand[2])), "gradients are whole"


def check_in_shard_map(both, args, check_vma):
    """Rules by hand and jax.grad agree in values and in types."""

    def sharded(*args):
        found = both(*args)
        assert not check_vma or jax.tree.map(varying, found[0]) == jax.tree.map(varying, found[1])
        return jax.tree.map(lambda leaf: leaf[None], found)

    mapped = jax.shard_map(sharded, mesh=AUTO, in_specs=IN_SPECS, out_specs=DIVIDED, check_vma=check_vma)
    hand, auto = arrays(jax.jit(mapped)(*args))
    close(hand, auto, FLOAT64, f"check_vma={check_vma}")
    return hand


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("explicit", "images"),
        *(
            pytest.param(where, name, marks=pytest.mark.long)
            for where, name in (("auto", "images"), ("explicit", "sequences"), ("auto", "sequences"))
        ),
    ],
)
def test_passes_on_a_mesh_are_those_of_one_device(where, name):
    net, args = subject(name)
    both = passes(net, penalties.l2(0.1))
    expected = by_numpy(lambda *args: both(*args)[1])(*args)
    check_on_mesh(MESHES[where], both, args, expected)


@pytest.mark.parametrize("name", [pytest.param("images", marks=pytest.mark.long), "sequences"])
def test_passes_in_shard_map(name):
    """The gradient is that of the sum of the devices' losses and penalties, as by jax.grad."""
    net, args = subject(name)
    both = passes(net, penalties.l2(0.1))
    hand = check_in_shard_map(both, args, check_vma=True)
    halves = [(*args[:2], *(arg[part] for arg in args[2:5]), args[5]) for part in (slice(2), slice(2, 4))]
    each = [by_numpy(lambda *args: both(*args)[1])(*half)[2] for half in halves]
    total = jax.tree.map(lambda a, b: np.stack([a + b] * 2), *each)
    close(hand[2], total, FLOAT64, "the devices' sum")


@pytest.mark.long
@pytest.mark.parametrize("name", ["images", "sequences"])
def test_passes_in_shard_map_that_does_not_check(name):
    """With check_vma=False each device has its own gradient."""
    net, args = subject(name)
    both = passes(net)
    hand = check_in_shard_map(both, args, check_vma=False)
    second = (*args[:2], *(arg[2:] for arg in args[2:5]), args[5])
    alone = by_numpy(lambda *args: both(*args)[1])(*second)[2]
    close(jax.tree.map(lambda leaf: leaf[1], hand[2]), alone, FLOAT64, "the second device's own")


@pytest.mark.long
@pytest.mark.parametrize("how", [*MESHES, "checked", "unchecked"])
@pytest.mark.parametrize("case", ROWS)
def test_every_row_on_two_devices(case, how):
    """δ_in, gradients, δs of every layer and loss agree by hand, by jax.grad and on one device."""
    layer = made(case)
    if how == "checked" and case.name == "gelu" and not _erfc_in_shard_map():
        pytest.skip("this JAX refuses its own erfc in shard_map")
    params, state, x, delta, target = variables(case, layer, F64)
    both = passes(layer, train=case.train)
    args = (params, state, x, target, WEIGHTS, case.rng)
    if how not in MESHES:
        check_in_shard_map(both, args, how == "checked")
        return

    def back(params, state, x, delta, rng):
        found = []
        for rule in (layer, autodiff_twin(layer)):
            _, _, tape = rule.forward(params, state, x, train=case.train, rng=rng)
            found.append(rule.backward(params, tape, delta))
        return tuple(found)

    check_on_mesh(MESHES[how], both, args, arrays(jax.jit(lambda *args: both(*args)[1])(*args)))
    given = (params, state, x, delta, case.rng)
    expected = arrays(jax.jit(lambda *args: back(*args)[1])(*given))
    mesh = MESHES[how]
    lie = (SHARED, SHARED, DIVIDED, DIVIDED, SHARED)
    there = tuple(None if arg is None else on(mesh, arg, spec) for arg, spec in zip(given, lie, strict=True))
    for got in arrays(jax.jit(back)(*there)):
        close(got, expected, FLOAT64, "δ_in and gradients")


def _erfc_in_shard_map():
    mapped = jax.shard_map(jax.lax.erfc, mesh=AUTO, in_specs=DIVIDED, out_specs=DIVIDED)
    try:
        jax.eval_shape(mapped, jnp.ones(2))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("varies", [True, False])
def test_custom_vjp_in_shard_map(varies):
    """jax.grad through as_custom_vjp = through forward: x shared by all devices, parameters shared or not."""
    net = serial(dense(3), tanh, dense(2))
    params, state = drawn(net, (2,), F64)
    x, target = np.ones((4, 2)) * np.arange(4)[:, None], np.arange(8.0).reshape(4, 2)

    def both(params, x, target):
        if varies:
            params = jax.lax.pcast(params, "data", to="varying")
        apply, plain = as_custom_vjp(net), lambda *args: net.forward(*args)[:2]
        grads = [
            jax.grad(lambda p, x, f=f: jnp.square(f(p, state, x)[0] - target).sum(), (0, 1))(params, x)
            for f in (apply, plain)
        ]
        assert jax.tree.map(varying, grads[0]) == jax.tree.map(varying, grads[1])
        return jax.tree.map(lambda leaf: leaf[None], grads)

    specs = (SHARED, SHARED, P(None, "data"))
    target = np.concatenate([target, 2 * target], axis=1)  # [4, 4]: two columns for each device
    hand, auto = arrays(jax.jit(jax.shard_map(both, mesh=AUTO, in_specs=specs, out_specs=DIVIDED))(params, x, target))
    close(hand, auto, FLOAT64, "as_custom_vjp")


def test_a_data_parallel_step_is_the_step_over_the_whole_batch():
    """In shard_map, separate parameters and the mean of the gradients give the step of one device."""
    net, optimizer = mlp([5, 3], tanh), sgd(0.1)
    params, state = drawn(net, (4,), F64)
    draw = np.random.default_rng(0)
    x, target = draw.normal(size=(6, 4)), draw.normal(size=(6, 3))

    def step(params, x, target):
        own = jax.lax.pcast(params, "data", to="varying")
        grads = jax.lax.pmean(backprop(net, losses.mse)(own, state, x, target).grads, "data")
        summed = backprop(net, losses.mse)(params, state, x, target).grads  # of parameters that all share, the sum
        updates = optimizer.update(grads, optimizer.init(params), params)[0]
        return jax.tree.map(jnp.add, params, updates), jax.tree.map(lambda g: g / 2, summed), grads

    specs = (SHARED, DIVIDED, DIVIDED)
    new, halved, mean = arrays(
        jax.jit(jax.shard_map(step, mesh=AUTO, in_specs=specs, out_specs=SHARED))(params, x, target)
    )
    grads = by_numpy(lambda *args: autodiff(net, losses.mse)(*args).grads)(params, state, x, target)
    close(mean, grads, FLOAT64, "the mean of the devices' gradients")
    close(halved, grads, FLOAT64, "half of their sum")
    close(new, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), FLOAT64, "the step")


# ---------------------------------------------------------------- training

N, CLASSES = 14, 3
NETS = {
    "mlp": (serial(dense(4), tanh, dense(CLASSES)), (3,)),
    "conv": (serial(conv(2, (3,), bias=False), batch_norm(), relu, max_pool((2,)), flatten(), dense(CLASSES)), (6, 2)),
    "lstm": (serial(lstm(2, returns="last"), dense(CLASSES)), (3, 2)),
    "loops": (serial(dense(3), share(dense(3), 2), repeat(serial(dense(3), tanh), 2), dropout(0.2)), (3,)),
}
SGD, CROSS_ENTROPY = sgd(0.1, momentum=0.9), losses.softmax_cross_entropy


def trained(name, put, put_state, shards):
    """Results of steps, epochs, `fit`, `evaluate` and `predict` for placed data; batches of 4, the last of 2.

    `fit` has batches of 5, which the devices do not divide, where no layer couples their examples.
    """
    net, shape = NETS[name]
    draw = np.random.default_rng(0)
    labels, weights = draw.integers(0, CLASSES, N).astype(np.int32), draw.uniform(size=N)
    data = tuple(map(put, (draw.normal(size=(N, *shape)), labels, weights)))
    params, state = drawn(net, shape, F64)
    start = jax.eval_shape(lambda: init_train_state(net, SGD, jax.random.key(0), shape, F64))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), start.opt_state)
    counters = {"step": np.int32(0), "epoch": np.int32(0)}
    first = start._replace(params=params, state=state, opt_state=zeros, key=jax.random.key(1), **counters)
    there = put_state(first)
    step = train_step(net, CROSS_ENTROPY, SGD)
    epoch = train_epoch(net, CROSS_ENTROPY, SGD, batch_size=4, metrics=[metrics.accuracy], shards=shards)
    result = fit(
        net, CROSS_ENTROPY, SGD, data, epochs=2, batch_size=4 if net.couples_batch else 5, key=2, train_state=first,
        validation=data[:2], metrics=[metrics.accuracy], shards=shards,
    )  # fmt: skip
    history = {name: np.asarray(row) for name, row in result.history.items() if name != "seconds"}
    scores = evaluate(net, CROSS_ENTROPY, first, data, metrics=[metrics.accuracy], batch_size=5)
    return arrays({
        "step": jax.jit(step)(there, *data)[0],
        "epoch": jax.jit(epoch)(there, *data),
        "fit": (result.train_state, history),
        "evaluate": jax.tree.map(np.float64, scores),
        "predict": predict(net, first, data[0], batch_size=6),
    })  # fmt: skip


def alone(leaf):
    return leaf


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_training_on_a_mesh_is_that_on_one_device(name):
    """With sharded data inside and outside jax.set_mesh, and with NumPy arrays inside."""
    one, two = (trained(name, alone, alone, shards) for shards in (1, 2))
    for where, mesh in MESHES.items():
        put, put_state = (lambda leaf: on(mesh, leaf, DIVIDED)), (lambda state: on(mesh, state, SHARED))
        close(trained(name, put, put_state, 2), two, FLOAT64, where)
        with jax.set_mesh(mesh):
            close(trained(name, put, put_state, 2), two, FLOAT64, f"{where}, inside set_mesh")
            close(trained(name, alone, alone, 1), one, FLOAT64, f"{where}, NumPy inside set_mesh")


def test_epochs_on_a_mesh():
    """An epoch with an indivisible last batch, on both kinds of mesh, equals one without jit."""
    net, optimizer = mlp([3]), sgd(0.1)
    draw = np.random.default_rng(0)
    x, target = draw.normal(size=(8, 2)), draw.normal(size=(8, 3))
    params, _ = drawn(net, (2,), F64)
    first = init_train_state(net, optimizer, 0, (2,))._replace(params=params)
    epoch = train_epoch(net, losses.mse, optimizer, batch_size=5, shuffle=False, shards=2)
    state, result = by_numpy(epoch)(first, x, target)
    for where, mesh in MESHES.items():
        there = on(mesh, first, SHARED), *on(mesh, (x, target), DIVIDED)
        got, loss = jax.jit(epoch)(*there)
        close(arrays((got.params, loss.loss)), (state.params, result.loss), FLOAT64, where)


@pytest.mark.parametrize("where", MESHES)
def test_each_device_computes_its_part_of_an_epoch(where):
    """XLA counts the FLOPs of one device: half of an epoch's, if the batch is divided after the gather."""
    net, optimizer = mlp([64]), sgd(0.1)
    x, target = np.ones((64, 64), np.float32), np.ones((64, 64), np.float32)
    first = init_train_state(net, optimizer, 0, (64,))
    epoch = jax.jit(train_epoch(net, losses.mse, optimizer, batch_size=32, shuffle=False))

    def flops(*args):
        return epoch.lower(*args).compile().cost_analysis()["flops"]

    alone = flops(first, x, target)
    mesh = MESHES[where]
    assert flops(on(mesh, first, SHARED), *on(mesh, (x, target), DIVIDED)) < 0.6 * alone


def test_fit_on_a_mesh():
    """New parameters, an indivisible batch and remainder; results are on the mesh."""
    net, optimizer = mlp([3]), sgd(0.1)
    draw = np.random.default_rng(0)
    x, target = draw.normal(size=(8, 2)), draw.normal(size=(8, 3))
    found = []
    for put in (alone, lambda leaf: on(EXPLICIT, leaf, DIVIDED)):
        data = (put(x), put(target))
        result = fit(net, losses.mse, optimizer, data, epochs=1, batch_size=5, key=0, shards=2)
        score = evaluate(net, losses.mse, result.train_state, data, batch_size=5)
        found.append(
            (
                result.train_state.params,
                np.float64(score["loss"]),
                predict(net, result.train_state, data[0], batch_size=5),
            )
        )
    assert found[1][2].sharding.spec[0] == "data"
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found[1][0]))
    close(arrays(found[1]), arrays(found[0]), FLOAT64, "fit, evaluate, predict")


def test_runs_in_shard_map_are_those_of_one_device():
    """Members of which each device has some."""
    x = jax.random.normal(jax.random.key(0), (6, 3), jnp.float32)
    train = run(train_step(mlp([2]), losses.mse, sgd(0.1)), epochs=2, batch_size=4)
    states = jax.vmap(lambda key: init_train_state(mlp([2]), sgd(0.1), key, (3,)))(jax.random.split(jax.random.key(1)))
    losses_of = jax.vmap(lambda state: train(state, (x, x[:, :2])).history["loss"])
    divided = jax.shard_map(losses_of, mesh=AUTO, in_specs=DIVIDED, out_specs=DIVIDED)
    close(arrays(jax.jit(divided)(states)), arrays(jax.jit(losses_of)(states)), 1e-6, "in shard_map")


def test_a_sweep_is_where_its_data_are():
    """In several groups too, which are joined on the host."""
    data = jax.device_put((np.ones((4, 3)), np.ones((4, 2))), jax.devices()[1])
    made = lambda rate: train_step(mlp([2]), losses.mse, sgd(rate))
    found = sweep(made, {"rate": [0.1, 0.2]}, epochs=1, batch_size=4, at_once=1)(data)
    assert {leaf.device for leaf in jax.tree.leaves(found.member(1)) if hasattr(leaf, "device")} == {jax.devices()[1]}
