"""Records: equality by fields, pytrees of JAX scalars, one compilation, repr and pickling."""

import copy
import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from test_training import compilations

import jaxnn
from jaxnn import (
    Activation,
    Layer,
    Loss,
    Optimizer,
    Penalty,
    adam,
    batch_norm,
    conv,
    dense,
    describe,
    diagnostics,
    dropout,
    evaluate,
    fit,
    from_description,
    initializers,
    leaky_relu,
    losses,
    metrics,
    mlp,
    named,
    networks,
    penalties,
    predict,
    relu,
    repeat,
    residual,
    schedules,
    serial,
    sgd,
    share,
    stopping,
    summary,
    with_rules,
)
from jaxnn.records import Record, fields_of, same


class pair(Record):
    first: object
    second: object = 2.0
    third: tuple = ()


def once(f):
    """The jitted f, and the list of its traces."""
    traces = []

    def traced(*args):
        traces.append(args)
        return f(*args)

    return jax.jit(traced), traces


# ---------------------------------------------------------------- equality


EQUAL = [
    (pair(1), pair(1)),
    (pair(1.5, (pair(2), None)), pair(1.5, (pair(2), None))),
    (pair(float("nan")), pair(float("nan"))),
    (pair(jnp.float32(2)), pair(jnp.float32(2))),
    (pair(np.arange(3)), pair(np.arange(3))),
    (pair(relu.value), pair(relu.value)),
    (pair({"a": 1}), pair({"a": 1})),
]
UNEQUAL = [
    (pair(1), pair(1.0)),
    (pair(1), pair(True)),
    (pair(0.0), pair(-0.0)),
    (pair(1), pair(2)),
    (pair(1, 3.0), pair(1)),
    (pair((1, 2)), pair([1, 2])),
    (pair(jnp.float32(2)), pair(2.0)),
    (pair(jnp.float32(2)), pair(jnp.float32(3))),
    (pair(jnp.float32(2)), pair(jnp.float16(2))),
    (pair(jnp.float32(2)), pair(np.float32(2) * np.ones(()))),
    (pair(jnp.float32(-0.0)), pair(jnp.float32(0.0))),
    (pair(relu), pair("relu")),
    (pair(losses.huber(delta=1.0).value), pair(losses.huber(delta=2.0).value)),
    (pair({"a": 1, "b": 2}), pair({"b": 2, "a": 1})),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_fields_make_equal_records(a, b):
    assert a == b
    assert (a != b) is False
    if not jax.tree.leaves((a, b)):
        assert hash(a) == hash(b)


@pytest.mark.parametrize(("a", "b"), UNEQUAL)
def test_other_fields_make_other_records(a, b):
    assert a != b
    f, traces = once(lambda record: 0)
    f(a if jax.tree.leaves(a) else pair(0, a))
    f(b if jax.tree.leaves(b) else pair(0, b))
    arrays_alone_differ = jax.tree.structure(a) == jax.tree.structure(b)
    specs = [[(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(record)] for record in (a, b)]
    assert len(traces) == 1 + (not arrays_alone_differ or specs[0] != specs[1])


def test_a_record_with_arrays_has_no_hash():
    with pytest.raises(TypeError, match="pass it to a compiled function as an argument"):
        hash(pair((1, pair(jnp.ones(2)))))


def test_a_record_cannot_be_written_to():
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair(1).first = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        dense(3).width = 4


# ---------------------------------------------------------------- as a pytree


def test_python_values_are_static_and_jax_scalars_are_leaves():
    record = pair(jnp.float32(3), 2.0, (1, "a", None, jnp.arange(2), pair(0.5), pair(jnp.int32(7))))
    leaves, structure = jax.tree.flatten(record)
    assert [leaf.shape for leaf in leaves] == [(), (2,), ()]
    assert jax.tree.unflatten(structure, leaves) == record
    assert jax.tree.unflatten(structure, leaves).third[:3] == (1, "a", None)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(record)]
    assert paths == [".first", ".third[3]", ".third[5].first"]
    assert jax.tree.leaves(pair(1.0, relu, (2, "a"))) == []


@pytest.mark.parametrize("put", [None, "text", 7, object(), jax.ShapeDtypeStruct((3,), np.float32)], ids=range(5))
def test_whatever_a_tree_map_puts_there_stays_a_leaf(put):
    record = pair(jnp.float32(3), 2.0, (pair(jnp.int32(7)),))
    strange = jax.tree.map(lambda leaf: put, record)
    assert jax.tree.structure(strange, is_leaf=lambda x: x is put) == jax.tree.structure(record)
    back = jax.tree.map(lambda leaf: jnp.float32(1), strange, is_leaf=lambda x: x is put)
    assert back == pair(jnp.float32(1), 2.0, (pair(jnp.float32(1)),))


def test_three_equal_networks_are_traced_once():
    f, traces = once(lambda net, x: net.forward(*net.init(0, (3,)), x)[0])
    x = jnp.ones((2, 3))
    outputs = [f(serial(dense(4), leaky_relu(0.1), dropout(0.5)), x) for _ in range(3)]
    assert len(traces) == 1
    f(serial(dense(4), leaky_relu(0.2), dropout(0.5)), x)
    f(serial(dense(4), leaky_relu(0.1), dropout(0.25)), x)
    assert len(traces) == 3
    for leak in (0.1, 0.2):
        out = f(serial(dense(4), leaky_relu(jnp.float32(leak)), dropout(0.5)), x)
    assert len(traces) == 4
    assert out.shape == (2, 4)
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_networks_go_through_vmap_and_grad():
    with jax.enable_x64(True):
        x = jnp.linspace(-1, 1, 6).reshape(2, 3)
        make = lambda leak: serial(dense(4), leaky_relu(leak), batch_norm(eps=leak))
        params, state = make(0.1).init(0, (3,), jnp.float64)
        cost = lambda net: jnp.square(net.forward(params, state, x, train=True)[0] - x[:, :1]).sum()
        leaks = jnp.array([0.1, 0.2, 0.3])
        over = jax.vmap(cost)(jax.vmap(make)(leaks))
        np.testing.assert_allclose(over, [cost(make(float(leak))) for leak in leaks], rtol=1e-12)
        slope = jax.grad(cost)(make(jnp.float64(0.2)))
        by_hand = (cost(make(0.2 + 1e-6)) - cost(make(0.2 - 1e-6))) / 2e-6
        assert float(sum(jax.tree.leaves(slope))) == pytest.approx(float(by_hand), rel=1e-6)


# ---------------------------------------------------------------- repr and pickling


PUBLIC = {name: getattr(jaxnn, name) for name in jaxnn.__all__} | {
    name: getattr(module, name)
    for module in (initializers, losses, metrics, penalties, stopping, schedules)
    for name in module.__all__
}
OTHERS = [
    adam(schedules.warmup(5, schedules.constant(0.1)), b1=0.5),
    sgd(0.1, momentum=0.9, nesterov=True),
    losses.huber(delta=2.0),
    losses.mse,
    penalties.l2(0.1),
    metrics.top_k(3),
    metrics.accuracy,
    stopping.keep_best(),
    relu,
    schedules.piecewise((0.1, 0.2), boundaries=(5,)),
    with_rules(dense(3)),
]
ROWS = {case.name: case.make for case in CASES if "framed" not in repr(case.make())}  # a layer defined here


@pytest.mark.parametrize("name", ROWS)
def test_every_layer_is_what_its_fields_say(name):
    layer, again = ROWS[name](), ROWS[name]()
    assert layer == again
    assert hash(layer) == hash(again)
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert copy.deepcopy(layer) == layer
    assert from_description(json.loads(json.dumps(describe(layer)))) == layer
    assert eval(repr(layer), dict(PUBLIC)) == layer
    assert "\n" not in repr(layer)
    assert "0x" not in repr(layer)


@pytest.mark.parametrize("record", OTHERS, ids=repr)
def test_other_records_are_what_their_fields_say(record):
    assert pickle.loads(pickle.dumps(record)) == record
    assert hash(copy.deepcopy(record)) == hash(record)
    if not isinstance(record, with_rules):
        assert from_description(json.loads(json.dumps(describe(record)))) == record
    assert eval(repr(record), dict(PUBLIC)) == record


def test_ready_networks_are_written_in_a_line():
    assert repr(mlp([4, 2])) == "serial(dense(4, w_init=he_normal()), relu, dense(2))"
    for net in (networks.lenet(), networks.resnet(), networks.sequence_classifier(jaxnn.lstm, 8, 3, both_ways=True)):
        assert "\n" not in repr(net)
        assert eval(repr(net), dict(PUBLIC)) == net
    assert networks.resnet() == networks.resnet()
    assert networks.resnet() != networks.resnet(blocks=2)


def test_a_description_keeps_what_json_has_no_number_for():
    net = serial(leaky_relu(jnp.float32(0.25)), dropout(0.5))
    back = from_description(json.loads(json.dumps(describe(net))))
    assert back == net
    assert back.layers[0].function.leak.dtype == jnp.float32


def mine(z):
    return z


REFUSED = [
    (Layer("mine", mine, mine, mine), "OwnLayer"),
    (serial(dense(2), with_rules(dense(3), backward=mine)), r"serial.layers\[1\].*function mine"),
    (dense(3, w_init=mine), "dense.w_init is the function mine"),
    (Loss("mine", mine, mine), "OwnLoss"),
    (Activation("mine", mine, mine), "OwnActivation"),
    (Penalty("mine", mine, mine), "OwnPenalty"),
    (Optimizer(mine, mine), "OwnOptimizer"),
    (sgd(mine), "sgd.learning_rate is the function mine"),
    (3, "expected a record"),
]


@pytest.mark.parametrize(("record", "says"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_function_of_ones_own_is_refused_by_its_place(record, says):
    with pytest.raises(TypeError, match=says):
        describe(record)


@pytest.mark.parametrize(
    ("description", "error", "says"),
    [
        ({"kind": "dens"}, ValueError, "did you mean 'dense'"),
        ({"kind": "dense", "width": 3, "depth": 2}, ValueError, "no field 'depth'"),
        ({"kind": "dense", "width": 0}, ValueError, "at least 1"),
        ({"kind": "Layer"}, ValueError, "unknown kind"),
        ({"width": 3}, TypeError, "a 'kind'"),
        ([], TypeError, "a 'kind'"),
        ({"kind": "serial", "layers": [{"kind": 7}]}, ValueError, "unknown kind 7"),
    ],
    ids=str,
)
def test_descriptions_that_are_none(description, error, says):
    with pytest.raises(error, match=says):
        from_description(description)


@pytest.mark.parametrize("name", ROWS)
def test_every_field_can_be_replaced_by_itself(name):
    layer = ROWS[name]()
    assert dataclasses.replace(layer) == layer
    assert dataclasses.replace(layer, **fields_of(layer)) == layer


def test_a_replaced_setting_is_checked_and_seen():
    net = serial(dense(3), repeat(residual(dense(3)), 2), share(dense(3), 2))
    wider = dataclasses.replace(net, layers=(*net.layers, dense(7)))
    assert wider.child_names == ("dense_0", "repeat_0", "share_0", "dense_1")
    assert "(dense)" not in str(summary(net, (3,))).split("dense_1")[0].splitlines()[-1]
    more = dataclasses.replace(net.layers[1], n=5)
    assert "5 × residual of dense" in str(summary(serial(more), (3,)))
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(net.layers[1], n=0)
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(dense(3), width=0)
    assert same(dataclasses.replace(conv(4, (3, 3)), stride=(2, 2)), conv(4, (3, 3), stride=2))


# ---------------------------------------------------------------- names and rules


def test_a_named_layer_answers_as_the_layer():
    layer = named("mine", repeat(residual(dense(3)), 2))
    assert (layer.name, layer.kind, layer.passes, layer.stacks) == ("mine", "repeat", 2, True)
    assert named("other", layer) == named("other", layer.layer)
    assert jaxnn.map_layers(lambda leaf: leaf, layer) == layer
    assert [path for path, _ in jaxnn.leaf_layers(serial(layer))] == [("mine",)]


def test_a_replaced_rule_is_a_leaf_that_is_told_apart():
    half = lambda params, tape, delta: jax.tree.map(lambda part: part / 2, dense(3).backward(params, tape, delta))
    wrong = with_rules(dense(3), backward=half)
    net = serial(dense(4), jaxnn.tanh, wrong)
    assert (wrong.kind, net.child_names[-1], wrong != dense(3)) == ("dense", "dense_1", True)
    params, state = net.init(0, (2,))
    report = jaxnn.gradcheck.network(net, losses.mse, params, state, jnp.ones((4, 2)), jnp.zeros((4, 3)))
    assert report.wrong == ("dense_1",)
    assert summary(net, (2,)).params == summary(serial(dense(4), jaxnn.tanh, dense(3)), (2,)).params
    assert with_rules(wrong, forward=dense(3).forward).backward(params["dense_1"], jnp.ones((1, 4)), jnp.ones((1, 3)))


def diagnosed(last):
    net = serial(dense(4), last, dense(3))
    params, state = serial(dense(4), jaxnn.relu, dense(3)).init(0, (2,))
    params = {"dense_0": params["dense_0"], "dense_1": params["dense_1"]}
    rows = diagnostics.diagnose(net, losses.mse, params, state, jnp.eye(4, 2), jnp.zeros((4, 3))).layers
    return {row.path: row for row in rows}


def test_diagnose_sees_what_was_replaced():
    """The results are those of the current setting and rule, not of the replaced ones."""
    layer = jaxnn.activation(leaky_relu(0.5))
    steep = dataclasses.replace(layer, function=dataclasses.replace(layer.function, negative_slope=4.0))
    was, now = (diagnosed(one)["leaky_relu_0"] for one in (layer, steep))
    assert was.dead == now.dead == 0
    assert now.output > was.output
    asleep = with_rules(jaxnn.activation(jaxnn.relu), forward=lambda p, s, x, train=False, rng=None: (0 * x, s, (x, x)))
    found = diagnosed(asleep)["relu_0"]
    assert found.output == 0
    assert found.dead is None  # a user's rule need not be an activation
    half = lambda params, tape, delta: (jax.tree.map(lambda d: d / 2, layer.backward(params, tape, delta)[0]), {})
    halved = diagnosed(with_rules(layer, backward=half))
    np.testing.assert_allclose(halved["dense_0"].delta, diagnosed(layer)["dense_0"].delta / 2, rtol=1e-6)


def test_lists_in_settings_are_tuples():
    listed, pairs = conv(3, (3, 3), padding=[[1, 1], (0, 2)]), ((1, 1), (0, 2))
    assert listed == conv(3, (3, 3), padding=pairs)
    assert jaxnn.from_description(jaxnn.describe(listed)) == listed


@pytest.mark.parametrize(
    "both",
    [
        lambda: losses.huber(delta=2.0, d=5.0),
        lambda: serial(dense(3), layers=(dense(9),)),
        lambda: jaxnn.parallel(dense(3), layers=(dense(9),)),
        lambda: jaxnn.chain(adam(0.1), parts=(adam(0.1),)),
    ],
)
def test_one_setting_given_twice_is_refused(both):
    with pytest.raises(TypeError, match=r"not both|one number"):
        both()
    assert dataclasses.replace(losses.huber(3.0), d=2.0) == losses.huber(2.0)


def test_a_field_may_have_the_name_of_an_attribute_of_its_base():
    class block(Layer):
        activation: jaxnn.Activation
        width: int

    made = block(jaxnn.relu, 3)
    assert (made.activation, made.width, made.kind) == (jaxnn.relu, 3, "block")
    with pytest.raises(TypeError, match="activation"):
        block(width=3)


@dataclasses.dataclass
class Falling:
    first: float

    def __call__(self, step):
        return self.first / (1 + step)


def test_equal_records_have_one_hash():
    assert jaxnn.sgd(Falling(0.1)) == jaxnn.sgd(Falling(0.1)) != jaxnn.sgd(Falling(0.2))
    assert hash(jaxnn.sgd(Falling(0.1))) == hash(jaxnn.sgd(Falling(0.1)))
    assert same(np.float32("nan"), np.float32("nan"))


def test_a_record_of_functions_is_made_of_functions():
    with pytest.raises(TypeError, match="init must be a function"):
        Layer("mine", None, None)
    framed = Layer(
        "mine", dense(2).init, dense(2).forward, dense(2).backward, children=(dense(2),), rebuild=lambda c: c[0]
    )
    assert framed.child_names == ("",)


@pytest.mark.parametrize("rules", [{"forward": 3}, {"backward": "no"}])
def test_a_rule_is_a_function(rules):
    with pytest.raises(TypeError, match="must be a function"):
        with_rules(dense(3), **rules)


# ---------------------------------------------------------------- compilations


X, Y = np.ones((12, 3), np.float32), np.zeros((12, 2), np.float32)


def train(leak=0.1, rate=0.1):
    net = serial(dense(4, w_init=initializers.he_normal()), leaky_relu(leak), batch_norm(), dense(2))
    loss, optimizer = losses.huber(delta=1.0), adam(rate)
    result = fit(
        net,
        loss,
        optimizer,
        (X, Y),
        key=0,
        epochs=2,
        batch_size=4,
        validation=(X, Y),
        metrics=[losses.mae.value],
        penalty=penalties.l2(1e-3),
        stopping=stopping.early_stopping(3),
        check_data=False,
    )
    evaluate(net, loss, result.train_state, (X, Y), metrics=[losses.mae.value])
    return predict(net, result.train_state, X)


def test_equal_networks_built_anew_compile_nothing():
    first = train()
    with compilations() as programs:
        second = train()
    assert programs == []
    np.testing.assert_array_equal(first, second)
    with compilations() as programs:
        train(leak=0.2)
    assert programs


def test_a_function_with_arrays_can_be_compiled_itself():
    """Schedules, initializers and metrics are called: `jax.jit` hashes them; equal ones have one hash."""
    a, key, ones = jnp.float32(0.1), jax.random.key(0), jnp.ones((2, 1))
    cases = {
        "schedule": (lambda a: jaxnn.schedules.cosine(a, steps=9), (3,), {}),
        "schedule of a schedule": (lambda a: jaxnn.schedules.warmup(2, jaxnn.schedules.constant(a)), (1,), {}),
        "initializer": (jaxnn.initializers.normal, (key, (2,), jnp.float32), {"static_argnums": (1, 2)}),
        "metric": (jaxnn.metrics.binary_accuracy_at, (ones, ones), {}),
    }
    for name, (make, arguments, settings) in cases.items():
        one, same, other = make(a), make(jnp.float32(0.1)), make(jnp.float32(0.2))
        assert hash(one) == hash(same), name
        assert one == same != other
        expected = np.asarray(make(0.1)(*arguments))
        np.testing.assert_allclose(jax.jit(one, **settings)(*arguments), expected, rtol=1e-6, err_msg=name)
        mapped = jax.vmap(lambda a, make=make, s=settings, args=arguments: jax.jit(make(a), **s)(*args))(a[None])
        np.testing.assert_allclose(mapped[0], expected, rtol=1e-6, err_msg=name)
