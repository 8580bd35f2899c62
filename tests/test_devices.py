"""One training on 1, 2, 4 and 8 devices: the same numbers, one all-reduce a step, a part of the work for each."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from laws import FLOAT64, close

from jaxnn import (
    DivergenceError,
    Source,
    adam,
    augment,
    backprop,
    batch_norm,
    bidirectional,
    conv,
    dense,
    dropout,
    embedding,
    evaluate,
    fit,
    flatten,
    gradcheck,
    gru,
    init_train_state,
    layer_norm,
    losses,
    lstm,
    max_pool,
    metagradient,
    metrics,
    placement,
    predict,
    relu,
    repeat,
    replay,
    rnn,
    run,
    serial,
    sgd,
    tanh,
    train_epoch,
    train_step,
)
from jaxnn.placement import examples, fully_sharded, replicated, shard, shardings
from jaxnn.spmd.batches import arranged, beside
from jaxnn.training.batches import epoch_order
from jaxnn.training.chunks import chunk_of
from jaxnn.training.entry import enter
from jaxnn.training.epochs import Epoch

if len(jax.devices()) < 8:
    pytest.skip("needs eight devices", allow_module_level=True)

CROSS_ENTROPY, CLASSES, N = losses.softmax_cross_entropy, 4, 64
TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def lenet():
    return serial(
        conv(6, (3, 3)), relu, max_pool((2, 2)), conv(16, (2, 2)), relu, max_pool((2, 2)), flatten(), dense(40), relu,
        dense(CLASSES),
    )  # fmt: skip


NETS = {
    "dense": (serial(dense(48), tanh, dense(32), tanh, dense(CLASSES)), (24,)),
    "dropout": (serial(dense(48), relu, dropout(0.3), dense(CLASSES)), (24,)),
    "lenet": (lenet(), (12, 12, 1)),
    "batch_norm": (serial(dense(48, bias=False), batch_norm(), tanh, dense(CLASSES)), (24,)),
    "lstm": (serial(lstm(16, returns="last"), dense(CLASSES)), (6, 12)),
    "gru": (serial(gru(16, returns="last"), dense(CLASSES)), (6, 12)),
    "rnn": (serial(rnn(16, returns="last"), dense(CLASSES)), (6, 12)),
    "recompute": (serial(lstm(16, returns="last", recompute=True), dense(CLASSES)), (6, 12)),
    "bidirectional": (serial(bidirectional(lstm(8)), lstm(16, returns="last"), dense(CLASSES)), (6, 12)),
}
LONG = [name for name in NETS if name not in ("dropout", "lstm")]
FAST_FIRST = [*("dropout", "lstm"), *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]


def mesh_of(n, kind="auto", axes=("data",), shape=None):
    return jax.make_mesh(shape or (n,), axes, axis_types=(TYPES[kind],) * len(axes), devices=jax.devices()[:n])


def problem(name, dtype=np.float32, n=N):
    """(net, data, shape of an example)."""
    net, shape = NETS[name]
    draw = np.random.default_rng(0)
    return net, (draw.normal(size=(n, *shape)).astype(dtype), draw.integers(0, CLASSES, n).astype(np.int32)), shape


def worst(a, b):
    """The largest difference of two trees, relative to the largest number of each leaf."""

    def one(a, b):
        a, b = np.asarray(a), np.asarray(b)
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) if a.size else 0.0

    return max(one(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", FAST_FIRST)
def test_gradients_on_1_2_4_and_8_devices(name):
    """In float64, of a batch that is divided among the devices; Auto and Explicit axes."""
    with jax.enable_x64(True):
        net, (x, target), shape = problem(name, np.float64, 16)
        params, state = net.init(jax.random.key(0), shape, jnp.float64)
        key = jax.random.key(3)
        grads = jax.jit(lambda p, s, x, t: backprop(net, CROSS_ENTROPY)(p, s, x, t, rng=key).grads)
        expected = grads(params, state, x, target)
        for n, kind in ((1, "auto"), (2, "auto"), (4, "auto"), (8, "auto"), (8, "explicit")):
            mesh = mesh_of(n, kind)
            there = shard((params, state), mesh, replicated())
            found = grads(*there, *shard((x, target), mesh))
            close(jax.device_get(found), jax.device_get(expected), FLOAT64, f"{name} on {n} devices, {kind}")


# ---------------------------------------------------------------- what is compiled

COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def compiled(net, data, *, batch=128, state=None):
    """The program of `fit` for an epoch over those data."""
    step = train_step(net, CROSS_ENTROPY, adam(1e-3))
    entered = enter(Epoch(step, batch), data, None, state, 0 if state is None else None, epochs=1, look=False)
    first = entered.first()._replace(position=beside(jax.device_put(np.int32(0)), entered.data))
    chunk = chunk_of(entered.epoch, entered.data)
    noted = chunk.nothing_noted(first, entered.data, None)
    lowered = jax.jit(lambda *args: chunk(*args[:2], None, *args[2:])).lower(first, entered.data, noted, np.int32(4))
    return lowered.compile()


def collectives(program):
    return dict(Counter(COLLECTIVE.findall(program.as_text())))


# One for the loss and all gradients. Batch norm has to know the mean before the variance, and both before it goes on:
# two forward, two sums backward, and the running statistics' are the first two.
REDUCTIONS = {"batch_norm": (5, 6)}


@pytest.mark.parametrize("name", FAST_FIRST)
def test_one_all_reduce_a_step_and_a_quarter_of_the_work(name):
    net, data, _ = problem(name, n=512)
    alone = compiled(net, data)
    assert collectives(alone) == {}
    for how, kind in ((None, "auto"), (replicated(), "auto"), (None, "explicit"), (replicated(), "explicit")):
        program = compiled(net, shard(data, mesh_of(4, kind), how))
        found = collectives(program)
        least, most = REDUCTIONS.get(name, (1, 1))
        assert set(found) == {"all-reduce"}, found
        assert least <= found["all-reduce"] <= most, found
        share = program.cost_analysis()["flops"] / alone.cost_analysis()["flops"]
        assert share <= 0.3, f"{how} {kind}: {share}"


def test_a_gather_that_ignores_the_parts_costs_communication():
    """The count above can fail: with shards=1 every batch is drawn from all devices."""
    net, data, _ = problem("dense")
    step = train_step(net, CROSS_ENTROPY, adam(1e-3))
    first = shard(init_train_state(net, adam(1e-3), 0, (24,)), mesh_of(4))

    def count(shards):
        epoch = train_epoch(net, CROSS_ENTROPY, step.optimizer, batch_size=16, shards=shards)
        return sum(collectives(jax.jit(epoch).lower(first, *shard(data, mesh_of(4))).compile()).values())

    assert count(4) == 1 < count(1)


# ---------------------------------------------------------------- parameters that are divided


def bytes_on_each(tree):
    sizes = Counter()
    for leaf in jax.tree.leaves(tree):
        for piece in leaf.addressable_shards:
            sizes[piece.device] += piece.data.nbytes
    return sizes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dense", "auto"),
        *(pytest.param(name, "auto", marks=pytest.mark.long) for name in ("lenet", "batch_norm", "lstm", "dropout")),
        *(pytest.param(name, "explicit", marks=pytest.mark.long) for name in ("dense", "lenet", "lstm", "dropout")),
    ],
)
def test_fully_sharded_parameters_train_and_take_a_quarter(name, kind):
    with jax.enable_x64(True):
        net, data, shape = problem(name, np.float64)
        optimizer, mesh = sgd(0.1, momentum=0.9), mesh_of(4, kind)
        first = init_train_state(net, optimizer, 0, shape, jnp.float64)
        divided = shard(first, mesh, fully_sharded())
        sizes, lies = bytes_on_each((divided.params, divided.opt_state)), jax.tree.map(lambda a: a.sharding, divided)
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves((first.params, first.opt_state)))
        uneven = sum(a.nbytes for a in jax.tree.leaves((divided.params, divided.opt_state)) if a.is_fully_replicated)
        assert len(sizes) == 4
        assert all(abs(size - uneven - (whole - uneven) / 4) < 1 for size in sizes.values())
        assert uneven < 0.05 * whole
        result = fit(net, CROSS_ENTROPY, optimizer, shard(data, mesh), train_state=divided, epochs=2, batch_size=16)
        expected = fit(net, CROSS_ENTROPY, optimizer, data, train_state=first, epochs=2, batch_size=16, shards=4)
        assert worst(result.train_state.params, expected.train_state.params) < 1e-12
        kept = jax.tree.map(
            lambda a, was: a.sharding.is_equivalent_to(was, a.ndim), result.train_state.params, lies.params
        )
        assert all(jax.tree.leaves(kept)), "parameters stay where they were put"
        scores = evaluate(net, CROSS_ENTROPY, result.train_state, shard(data, mesh))
        assert abs(scores["loss"] - evaluate(net, CROSS_ENTROPY, expected.train_state, data)["loss"]) < 1e-12


def test_a_state_is_made_where_it_lies():
    mesh, net = mesh_of(4), NETS["dense"][0]
    make = lambda: init_train_state(net, adam(1e-3), 0, (24,))
    state = jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh, fully_sharded()))()
    assert {piece.data.shape for piece in state.params["dense_0"]["w"].addressable_shards} == {(24, 12)}
    assert worst(state.params, make().params) < 1e-6


@pytest.mark.parametrize("kind", ["auto", pytest.param("explicit", marks=pytest.mark.long)])
def test_a_mesh_of_data_and_model(kind):
    """Weights divided along their features by one axis, batches by the other."""
    net, data, shape = problem("dense")
    mesh = mesh_of(8, kind, axes=("data", "model"), shape=(4, 2))
    first = init_train_state(net, sgd(0.1), 0, shape)
    rule = {"dense_0/w": P(None, "model"), "dense_0/b": P("model"), "dense_1/w": P("model")}
    state = shard(first, mesh, rule)
    assert state.params["dense_0"]["w"].sharding.spec == P(None, "model")
    assert state.params["dense_2"]["w"].is_fully_replicated
    result = fit(net, CROSS_ENTROPY, sgd(0.1), shard(data, mesh), train_state=state, epochs=2, batch_size=16)
    expected = fit(net, CROSS_ENTROPY, sgd(0.1), data, train_state=first, epochs=2, batch_size=16, shards=4)
    assert worst(result.train_state.params, expected.train_state.params) < 1e-5


# ---------------------------------------------------------------- the order, and batches that do not divide


@pytest.mark.parametrize(("n", "shards", "batch"), [(24, 4, 8), (24, 4, 7), (24, 3, 5), (20, 2, 20), (12, 4, 1)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_shard_is_drawn_from_in_turn(n, shards, batch, shuffle):
    order = np.asarray(epoch_order(jax.random.key(1), 2, n, shuffle, shards))
    assert sorted(order) == list(range(n))
    each = n // shards
    for start in range(0, n, batch):
        rows = order[start : start + batch]
        counts = Counter(rows // each)
        assert max(counts.values()) - min(counts[s] for s in range(shards)) <= 1
        at = np.asarray(arranged(jnp.asarray(rows), n, shards, shards)).reshape(shards, -1)
        assert sorted(at[at >= 0]) == sorted(rows)
        for s, own in enumerate(at):
            assert set(own[own >= 0] // each) <= {s}
        assert len(at[0]) == -(-len(rows) // shards)
    other = np.asarray(epoch_order(jax.random.key(1), 3, n, shuffle, shards))
    assert (order.tolist() == other.tolist()) == (not shuffle)


@pytest.mark.parametrize(
    "batch", [13, pytest.param(3, marks=pytest.mark.long), pytest.param(64, marks=pytest.mark.long)]
)
def test_any_batch_size_on_any_devices(batch):
    """Padded with weight 0: losses, metrics, weights, the optimizer's state and the masks of dropout are the same."""
    with jax.enable_x64(True):
        net, (x, labels), _ = problem("dropout", np.float64, 60 if batch < 60 else N)
        weights = np.random.default_rng(2).uniform(0.5, 2, len(x))
        data = (x, labels, weights)
        same = {"key": 0, "epochs": 2, "batch_size": batch, "metrics": [metrics.accuracy], "validation": data}
        expected = fit(net, CROSS_ENTROPY, adam(1e-2), data, **same)
        mesh = mesh_of(4)
        found = fit(net, CROSS_ENTROPY, adam(1e-2), shard(data, mesh, replicated()), **same)
        assert worst(found.train_state.params, expected.train_state.params) < 1e-9
        for name in expected.history.keys() - {"seconds"}:
            np.testing.assert_allclose(found.history[name], expected.history[name], rtol=1e-10, err_msg=name)
        parts = fit(net, CROSS_ENTROPY, adam(1e-2), shard(data, mesh), **same)
        alone = fit(net, CROSS_ENTROPY, adam(1e-2), data, **same, shards=4)
        assert worst(parts.train_state.params, alone.train_state.params) < 1e-9
        assert worst(parts.train_state.params, expected.train_state.params) > 1e-6, "another order"


def test_batch_norm_refuses_a_batch_that_is_filled_up():
    net, data, _ = problem("batch_norm")
    put = lambda n: shard(data, mesh_of(n), replicated())
    with pytest.raises(ValueError, match=r"batch_size, 10 of 64 examples, .* 4 devices.*batch_norm.*multiples of 4"):
        fit(net, CROSS_ENTROPY, sgd(0.1), put(4), key=0, epochs=1, batch_size=10)
    there = shard(jax.tree.map(lambda a: a[:62], data), mesh_of(4), replicated())
    with pytest.raises(ValueError, match=r"the last batch, 6 of 62 examples, .* 4 devices"):
        fit(net, CROSS_ENTROPY, sgd(0.1), there, key=0, epochs=1, batch_size=8)
    with pytest.raises(ValueError, match="4 shards"):
        fit(net, CROSS_ENTROPY, sgd(0.1), data, key=0, epochs=1, batch_size=10, shards=4)


def test_shards_must_divide_the_data():
    net, data, _ = problem("dense")
    with pytest.raises(ValueError, match="64 examples cannot be in 3 shards of equal size: leave out 1 of them"):
        fit(net, CROSS_ENTROPY, sgd(0.1), data, key=0, epochs=1, batch_size=8, shards=3)


# ---------------------------------------------------------------- everything else on a mesh


@pytest.mark.parametrize("kind", ["auto", pytest.param("explicit", marks=pytest.mark.long)])
def test_a_folder_continues_on_other_devices(kind, tmp_path):
    """From one device to a mesh and back; data in parts only with as many shards, and a divided state stays divided."""
    net, data, shape = problem("dense")
    mesh = mesh_of(4, kind)
    same = {"batch_size": 24, "key": 0}
    there, parts = shard(data, mesh, replicated()), shard(data, mesh)
    expected = fit(net, CROSS_ENTROPY, sgd(0.1), data, epochs=3, **same)
    for i, (first, then) in enumerate([(data, there), (there, data)]):
        folder = tmp_path / str(i)
        fit(net, CROSS_ENTROPY, sgd(0.1), first, epochs=1, checkpoint=folder, **same)
        result = fit(net, CROSS_ENTROPY, sgd(0.1), then, epochs=3, checkpoint=folder, **same)
        assert "continued" in result.why
        assert worst(result.train_state.params, expected.train_state.params) < 1e-5
    folder = tmp_path / "parts"
    fit(net, CROSS_ENTROPY, sgd(0.1), parts, epochs=1, checkpoint=folder, **same)
    with pytest.raises(ValueError, match="drawn from 4 shards of the data, here from 1: give shards=4"):
        fit(net, CROSS_ENTROPY, sgd(0.1), data, epochs=3, checkpoint=folder, **same)
    alone = fit(net, CROSS_ENTROPY, sgd(0.1), data, epochs=3, checkpoint=folder, shards=4, **same)
    expected = fit(net, CROSS_ENTROPY, sgd(0.1), parts, epochs=3, **same)
    assert worst(alone.train_state.params, expected.train_state.params) < 1e-5
    first = shard(init_train_state(net, sgd(0.1), 0, shape), mesh, fully_sharded())
    folder, same = tmp_path / "divided", {"batch_size": 24, "train_state": first}
    fit(net, CROSS_ENTROPY, sgd(0.1), there, epochs=1, checkpoint=folder, **same)
    result = fit(net, CROSS_ENTROPY, sgd(0.1), there, epochs=2, checkpoint=folder, **same)
    assert not result.train_state.params["dense_0"]["w"].is_fully_replicated
    step = replay(folder, step=4, data=there)
    assert int(step.train_state.step) == 4
    assert np.isfinite(float(step.take()[1].loss))


@pytest.mark.parametrize("kind", ["auto", pytest.param("explicit", marks=pytest.mark.long)])
def test_a_divergence_on_a_mesh_names_step_and_cause(kind):
    net, (x, labels), _ = problem("dropout")
    data = (x, np.eye(CLASSES, dtype=np.float32)[labels])
    found = []
    for there in (data, shard(data, mesh_of(4, kind), replicated())):
        with pytest.raises(DivergenceError) as caught:
            fit(net, losses.mse, sgd(1e8), there, key=0, epochs=3, batch_size=12)
        error = caught.value
        found.append((error.step, error.leaf, str(replay(error).explain()).split("\n")[1]))
    assert found[0] == found[1]
    assert "overflow" in found[1][2]


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_numpy_arrays_inside_set_mesh(kind):
    """The same training as on one device, evaluated and predicted; augmentation draws the same."""
    net, (x, labels), _ = problem("lenet")
    noisy = augment.gaussian_noise(0.1) if hasattr(augment, "gaussian_noise") else None
    same = {"key": 0, "epochs": 1, "batch_size": 12, "validation": (x[:30], labels[:30]), "augment": noisy}
    expected = fit(net, CROSS_ENTROPY, sgd(0.1), (x, labels), **same)
    with jax.set_mesh(mesh_of(4, kind)):
        found = fit(net, CROSS_ENTROPY, sgd(0.1), (x, labels), **same)
        scores, y = (
            evaluate(net, CROSS_ENTROPY, found.train_state, (x, labels)),
            predict(net, found.train_state, x[:30]),
        )
    assert worst(found.train_state.params, expected.train_state.params) < 1e-5
    assert abs(scores["loss"] - evaluate(net, CROSS_ENTROPY, expected.train_state, (x, labels))["loss"]) < 1e-5
    assert worst(y, predict(net, expected.train_state, x[:30])) < 1e-5
    assert abs(found.history["validation_loss"][0] - expected.history["validation_loss"][0]) < 1e-5


@pytest.mark.parametrize("batch_size", [7, 16, 1024])
def test_predictions_of_divided_examples_are_in_order(batch_size):
    net = serial(dense(3, w_init=lambda key, shape, dtype: jnp.ones(shape, dtype)))
    x = np.arange(48, dtype=np.float32)[:, None]
    params, state = net.init(0, (1,))
    for rule in (None, replicated()):
        y = predict(net, (params, state), shard(x, mesh_of(8), rule), batch_size=batch_size)
        np.testing.assert_array_equal(np.asarray(y), np.tile(x, 3))


def test_a_state_moves_to_the_mesh_of_the_data():
    net, data, shape = problem("dense")
    first = init_train_state(net, sgd(0.1), 0, shape)
    expected = fit(net, CROSS_ENTROPY, sgd(0.1), data, train_state=first, epochs=1, batch_size=16)
    for kind in TYPES:
        there, state = shard(data, mesh_of(8, kind), replicated()), shard(first, mesh_of(4, kind))
        found = fit(net, CROSS_ENTROPY, sgd(0.1), there, train_state=state, epochs=1, batch_size=16)
        assert worst(found.train_state.params, expected.train_state.params) < 1e-5


@pytest.mark.long
def test_features_divided_by_the_axis_of_batches():
    net, (x, labels), _ = problem("dense")
    same = {"key": 0, "epochs": 1, "batch_size": 16}
    expected = fit(net, CROSS_ENTROPY, sgd(0.1), (x, labels), **same)
    for kind in TYPES:
        there = shard((x, labels), mesh_of(4, kind), {"0": P(None, "data")})
        found = fit(net, CROSS_ENTROPY, sgd(0.1), there, **same)
        assert worst(found.train_state.params, expected.train_state.params) < 1e-5


def test_a_run_under_jit():
    net, data, shape = problem("dense")
    first, mesh = init_train_state(net, sgd(0.1), 0, shape), mesh_of(4)
    step = train_step(net, CROSS_ENTROPY, sgd(0.1))
    train, drawn = run(step, epochs=2, batch_size=16), run(step, epochs=2, batch_size=16, shards=4)
    there, parts = shard(data, mesh, replicated()), shard(data, mesh)
    compiled, of_parts = jax.jit(train), jax.jit(drawn)
    expected = compiled(first, data)
    for put in (there, parts):  # types do not say which of the two it is
        assert worst(compiled(shard(first, mesh), put).train_state.params, expected.train_state.params) < 1e-5
    assert worst(train(shard(first, mesh), parts).train_state.params, expected.train_state.params) < 1e-5
    expected = of_parts(first, data)
    assert worst(of_parts(shard(first, mesh), parts).train_state.params, expected.train_state.params) < 1e-5


@pytest.mark.long
def test_layers_of_all_kinds_at_once():
    """Tokens, a stack of loops and norms on Explicit axes with an indivisible batch."""
    net = serial(
        embedding(9, 8), rnn(8), lstm(8, returns="last"), repeat(serial(dense(8), layer_norm(), tanh), 2), dense(4)
    )
    draw = np.random.default_rng(0)
    data = (draw.integers(0, 9, (40, 5)).astype(np.int32), draw.integers(0, 4, 40).astype(np.int32))
    same = {"key": 0, "epochs": 2, "batch_size": 18}
    expected = fit(net, CROSS_ENTROPY, sgd(0.1), data, **same).train_state.params
    for kind in TYPES:
        found = fit(net, CROSS_ENTROPY, sgd(0.1), shard(data, mesh_of(4, kind), replicated()), **same)
        assert worst(found.train_state.params, expected) < 1e-5


# ---------------------------------------------------------------- bad input

X = np.ones((6, 3), np.float32)


def fit_on(x, target):
    return fit(serial(dense(3)), losses.mse, sgd(0.1), (x, target), key=0, epochs=1, batch_size=2)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: shard(X, mesh_of(4)),
            ValueError,
            r"the array, float32\[6, 3\]: axis 0 has 6 entries, which 4 devices",
        ),
        (lambda: shard((X, X[:4]), mesh_of(4)), ValueError, r"0, float32\[6, 3\].*leave out 2, repeat 2"),
        (
            lambda: shard(X, mesh_of(2), examples("model")),
            ValueError,
            "the mesh has no axis 'model'; it has 'data' of 2",
        ),
        (lambda: shard(X, mesh_of(2), fully_sharded("model")), ValueError, "the mesh has no axis 'model'"),
        (lambda: shard(X, mesh_of(2), P("data", "data", None)), ValueError, "3 axes, the array 2"),
        (lambda: shard(X, mesh_of(2), P(None, "data")), ValueError, "axis 1 has 3 entries"),
        (lambda: shard(X, mesh_of(1), P("data", "data")), ValueError, "uses the axis 'data' of the mesh twice"),
        (lambda: shard(X, 2), TypeError, r"mesh must be a jax.sharding.Mesh.*got 2"),
        (lambda: shard(X, mesh_of(2), "data"), TypeError, "rule must be examples"),
        (lambda: shard(X, mesh_of(2), fully_sharded), TypeError, r"rule is a class: give fully_sharded\(\)"),
        (lambda: shard(X, mesh_of(2), lambda path, leaf: "data"), TypeError, "rule must give a PartitionSpec"),
        (lambda: shard(X, mesh_of(2), {3: P()}), TypeError, "keys of a dict are patterns"),
        (lambda: shard({"w": X}, mesh_of(2), {"v": P()}), ValueError, "no path matches 'v'; there are 'w'"),
        (lambda: shard(("a", X), mesh_of(2)), TypeError, "0 must be an array or a tree of arrays, got 'a'"),
        (lambda: shard(Source.of(X, X), mesh_of(2)), TypeError, "Source"),
        (lambda: fit_on(shard(X, mesh_of(2)), shard(X, mesh_of(3))), ValueError, "data: x is on 2 devices and .* on 3"),
    ],
)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_every_leaf_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="arrays do not fit the mesh") as caught:
        shard({"a": {"w": X}, "b": X, "c": np.ones((8, 2))}, mesh_of(4))
    assert [line.split(",")[0].strip() for line in str(caught.value).split("\n")[1:]] == ["a/w", "b"]


def test_rules():
    mesh = mesh_of(4)
    state = init_train_state(NETS["dense"][0], adam(1e-3), 0, (24,))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(shard(state, mesh)))
    divided = shard(state, mesh, lambda path, leaf: P("data") if path.endswith("dense_0/w") else None)
    assert divided.params["dense_0"]["w"].sharding.spec == P("data")
    assert divided.opt_state.first_moment["dense_0"]["w"].sharding.spec == P("data")
    assert divided.params["dense_1"]["w"].is_fully_replicated
    assert shard(X[:4], mesh, P("data")).sharding.spec == P("data")
    assert sorted(placement.__all__) == sorted(dir(placement))


# ---------------------------------------------------------------- derivatives and checks


@pytest.mark.parametrize("way", ["as it is", "jit"])
def test_a_metagradient_on_explicit_axes(way):
    """Without `jax.set_mesh`: the derivative of a loop needs the mesh as a context."""
    net, data, shape = problem("dense")
    state = init_train_state(net, sgd(0.1), 0, shape)
    found = metagradient(lambda rate: run(train_step(net, CROSS_ENTROPY, sgd(rate)), epochs=1, batch_size=16, shards=8))
    expected = jax.jit(found)(state, data, data, rate=0.1)
    divided = shard(data, mesh_of(8, "explicit"))
    derived = (jax.jit(found) if way == "jit" else found)(state, divided, divided, rate=0.1)
    assert worst(derived.settings, expected.settings) < 1e-4
    assert worst(derived.weights, expected.weights) < 1e-4


def test_gradcheck_of_arrays_on_explicit_axes():
    net = dense(2)
    params, state = net.init(jax.random.key(0), (3,))
    data = shard((np.ones((8, 3), np.float32), np.zeros((8, 2), np.float32)), mesh_of(8, "explicit"))
    assert not gradcheck.network(net, losses.mse, params, state, *data).wrong
