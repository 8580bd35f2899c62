"""Arguments of the wrong kind: records, functions, batches, states. Each raises an error at once, with advice."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bad_input import KEY, LABELS, ONE_HOT, OPTIMIZER, SCORES, D, K, N, X, fit_refuses, refused, started

import jaxnn
from jaxnn import (
    Loss,
    activation,
    adam,
    adamw,
    augment,
    autodiff,
    avg_pool,
    backprop,
    chain,
    conv,
    data,
    dense,
    diagnostics,
    elu,
    embedding,
    evaluate,
    fit,
    flatten,
    gradcheck,
    graph,
    init_train_state,
    initializers,
    leaf_layers,
    leaky_relu,
    losses,
    lstm,
    map_layers,
    max_pool,
    metrics,
    mlp,
    penalties,
    plots,
    predict,
    relu,
    rnn,
    schedules,
    serial,
    sgd,
    sigmoid,
    stopping,
    train_epoch,
    train_step,
)

CROSS_ENTROPY = losses.softmax_cross_entropy
DATA = (X, LABELS)
EITHER = (TypeError, ValueError)


def deleted(array):
    array = jnp.array(array, copy=True)
    array.delete()
    return array


# ---------------------------------------------------------------- arguments that are not records

ARGUMENTS = {  # of fit: the argument, parts of the message
    "a number for a penalty": ({"penalty": 0.01}, ("fit: penalty", "Penalty record", "0.01", "penalties.l2(0.01)")),
    "a penalty's factory": ({"penalty": penalties.l2}, ("fit: penalty", "parentheses", "l2(…)")),
    "a function for a penalty": ({"penalty": lambda p: 0.0}, ("fit: penalty", "Penalty('mine', f, jax.grad(f))")),
    "a loss for a penalty": ({"penalty": losses.mse}, ("fit: penalty", "Penalty record", "Loss mse")),
    "a name for a gradient": ({"gradient": "autodiff"}, ("fit: gradient", "'autodiff'", "gradient=jaxnn.autodiff")),
    "no gradient": ({"gradient": None}, ("fit: gradient", "jaxnn.backprop", "None")),
    "a pass for a gradient": ({"gradient": backprop(SCORES, losses.mse)}, ("fit: gradient", "not what backprop")),
    "jax.grad for a gradient": ({"gradient": jax.grad}, ("fit: gradient", "jaxnn.autodiff", "grad")),
    "no metrics": ({"metrics": None}, ("metrics must be a list", "metrics=[metric]", "None")),
    "a metric's name": ({"metrics": "accuracy"}, ("metrics must be a list", "'accuracy'")),
    "a number in metrics": ({"metrics": {"a": 3}}, ("a metric is a function", "3")),
    "a metric's factory": ({"metrics": [metrics.top_k]}, ("a metric is a function", "parentheses", "top_k(…)")),
    "a loss for a metric": ({"metrics": [losses.mse]}, ("a metric is a function", "losses.mse.value")),
    "an activation for a metric": ({"metrics": [relu]}, ("a metric is a function", "Activation relu")),
    "words for a switch": ({"shuffle": "no"}, ("fit: shuffle must be True or False", "'no'")),
    "a number for a switch": ({"check_data": 0}, ("fit: check_data must be True or False", "0")),
    "none for a switch": ({"restore_best": None}, ("fit: restore_best must be True or False", "None")),
    "a number for stopping": ({"stopping": 5}, ("fit: stopping", "early_stopping(5)")),
    "a factory for a plateau": ({"plateau": stopping.reduce_on_plateau}, ("fit: plateau", "parentheses")),
    "a record for augmentation": ({"augment": relu}, ("augment must be a function (key, x) -> x", "relu")),
    "a factory for augmentation": ({"augment": augment.noise}, ("augment must be a function", "noise(…)")),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_of_fit(case):
    given, says = ARGUMENTS[case]
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, *says, error=EITHER, **given)


@pytest.mark.parametrize(
    "case", [case for case, (given, _) in ARGUMENTS.items() if {"penalty", "gradient"} & set(given)]
)
def test_the_same_by_hand(case):
    """`train_step` and `train_epoch` raise when they are made, not when they are called."""
    given, says = ARGUMENTS[case]
    says = [text.removeprefix("fit: ") for text in says]
    with refused("train_step", *says, error=EITHER, compiles=False):
        train_step(SCORES, CROSS_ENTROPY, OPTIMIZER, **given)
    with refused("train_epoch", *says, error=EITHER, compiles=False):
        train_epoch(SCORES, CROSS_ENTROPY, OPTIMIZER, batch_size=2, **given)
    if "penalty" in given:
        for make in (backprop, autodiff):
            with refused(make.__name__, *says, error=EITHER):
                make(SCORES, CROSS_ENTROPY, **given)


LOSSES = {
    "a lambda": (lambda y, t: (y - t) ** 2, ("Loss('mine', f)", "Loss('mine', f, delta)", "jax.grad")),
    "a function of jax.nn": (jax.nn.softmax, ("Loss('mine', f, delta)",)),
    "a factory": (losses.huber, ("parentheses", "huber(…)")),
    "a name": ("mse", ("'mse'", "losses.mse")),
    "none": (None, ("None",)),
    "an activation": (relu, ("Activation relu",)),
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses(case):
    (loss, says), state = LOSSES[case], started(SCORES)
    for where, call in {
        "fit": lambda: fit(SCORES, loss, OPTIMIZER, DATA, key=KEY, epochs=1, batch_size=2),
        "evaluate": lambda: evaluate(SCORES, loss, state, DATA),
        "backprop": lambda: backprop(SCORES, loss),
        "train_step": lambda: train_step(SCORES, loss, OPTIMIZER),
    }.items():
        with refused(f"{where}: loss must be a Loss record", *says, error=TypeError, compiles=False):
            call()


def test_the_advice_for_a_function_as_loss_works():
    value = lambda prediction, target: jnp.square(prediction - target).sum(-1)
    delta = jax.grad(lambda prediction, target: value(prediction, target).sum())
    state, loss = started(SCORES), Loss("mine", value, delta)
    out = backprop(SCORES, loss)(state.params, state.state, X, ONE_HOT)
    np.testing.assert_allclose(out.loss, np.square(np.asarray(out.output) - ONE_HOT).sum(-1).mean(), rtol=1e-6)


def test_nets_and_optimizers():
    state = started(SCORES)
    for net, says in (
        (mlp, "mlp(…)"),
        (None, "None"),
        (state, "TrainState"),
        (relu, "serial(relu)"),
        ([dense(2)], "list"),
    ):
        says = ("net must be a Layer record", says if net.__class__ is not list else "[dense(2)]")
        for call in (
            lambda net=net: predict(net, state, X),
            lambda net=net: evaluate(net, CROSS_ENTROPY, state, DATA),
            lambda net=net: init_train_state(net, OPTIMIZER, 0, (D,)),
            lambda net=net: map_layers(lambda layer: layer, net),
            lambda net=net: list(leaf_layers(net)),
            lambda net=net: jaxnn.autodiff_twin(net),
            lambda net=net: jaxnn.as_custom_vjp(net),
        ):
            with refused(*says, error=TypeError):
                call()
    for optimizer in (adam, 0.1, None, stopping.early_stopping(3), SCORES, jaxnn.ema(0.9)):
        with refused("init_train_state: optimizer must have init and update", error=TypeError):
            init_train_state(SCORES, optimizer, 0, (D,))
        with refused("chain: part 0 must have init and update", error=TypeError):
            chain(optimizer)


# ---------------------------------------------------------------- metrics with other results


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (lambda y, t: 0.5, ("one value for each example", "(2,)", "0.5", "leave the mean")),
        (lambda y, t: (y.argmax(-1) == t).mean(), ("one value for each example", "shape ()", "leave the mean")),
        (lambda y, t: [1.0, 2.0], ("one value for each example", "[1.0, 2.0]", "jnp.asarray")),
        (lambda y, t: None, ("one value for each example", "None")),
        (lambda y, t: float(y.mean()), ("needs concrete numbers", "jax.numpy")),
        (lambda y, t: np.asarray(y).mean(-1), ("needs concrete numbers", "instead of NumPy")),
        (lambda y, t: y[:, 0] if y.sum() > 0 else t, ("needs concrete numbers", "jax.numpy")),
        (lambda y: y, ("a metric is a function (prediction, target) -> [N]", "other arguments")),
    ],
    ids=["float", "scalar", "list", "none", "float of a tracer", "numpy", "if", "one argument"],
)
def test_what_metrics_give(metric, says):
    says = [text.replace("(2,)", "(6,)") for text in says]
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, *says, error=EITHER, metrics={"own": metric})
    state = started(SCORES)
    with refused(*says, error=EITHER, compiles=False):
        evaluate(SCORES, CROSS_ENTROPY, state, DATA, metrics={"own": metric})


# ---------------------------------------------------------------- data


RECORDS = np.zeros(N, [("a", "f4"), ("b", "i4")])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.array(list("abcdef")), ("strings", "<U1")),
        (np.array([b"a"] * N), ("strings",)),
        (np.array([None, *range(N - 1)]), ("objects", "NoneType", "float32")),
        (np.array([1.5, "a", *range(N - 2)], object), ("objects", "float")),
        (np.arange(N).astype("datetime64[D]"), ("dates", "timedelta64")),
        (RECORDS, ("records", "['a', 'b']")),
        (list("abcdef"), ("strings",)),
        ([["a", 1]] * N, ("list of numbers", "np.asarray")),
    ],
    ids=["strings", "bytes", "none", "objects", "dates", "records", "list of strings", "mixed list"],
)
def test_data_that_are_no_numbers(wrong, says):
    fit_refuses(SCORES, CROSS_ENTROPY, (wrong, LABELS), "data: x", *says, error=TypeError)
    fit_refuses(SCORES, CROSS_ENTROPY, (X, wrong), "data: target", *says, error=TypeError)
    fit_refuses(SCORES, CROSS_ENTROPY, (X, LABELS, wrong), "data: weights", *says, error=TypeError)
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, "validation: x", *says, error=TypeError, validation=(wrong, LABELS))
    with refused("x", *says, error=TypeError):
        predict(SCORES, started(SCORES), wrong)


class Loader:
    """An iterable like torch's DataLoader."""

    def __iter__(self):
        return iter([(X[:2], LABELS[:2])] * 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [(X[:3], LABELS[:3]), (X[3:], LABELS[3:])],
        lambda: [(X[:2], LABELS[:2])] * 3,
        lambda: ((X[:2], LABELS[:2]),) * 4,
        lambda: ((X[:2], LABELS[:2]) for _ in range(3)),
        Loader,
        lambda: iter([(X, LABELS)]),
    ],
    ids=["two batches", "three batches", "a tuple of four", "generator", "loader", "iterator"],
)
def test_batches_for_data(make):
    says = ("of all examples", "cut the batches themselves", "np.concatenate")
    fit_refuses(SCORES, CROSS_ENTROPY, make(), "data must be (x, target)", *says, error=TypeError)
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, "validation must be", *says, error=TypeError, validation=make())
    state = started(SCORES)
    with refused(*says, error=TypeError, compiles=False):
        evaluate(SCORES, CROSS_ENTROPY, state, make())


def test_trees_are_no_batches():
    """x and target may be pairs themselves."""
    take = jaxnn.Layer(
        "take", lambda key, in_shape, dtype: ({}, ()), lambda p, s, x, *, train=False, rng=None: (x[0], s, ()), None
    )
    net = serial(take, mlp([K]))
    state = started(mlp([K]))
    state = state._replace(params={"serial_0": state.params})
    scores = evaluate(net, CROSS_ENTROPY, state, ((X, X), LABELS))
    assert np.isfinite(scores["loss"])


def test_a_dict_for_data():
    both = {"x": X, "y": LABELS}
    fit_refuses(SCORES, CROSS_ENTROPY, both, "data must be (x, target)", "dict of ['x', 'y']", error=TypeError)


# ---------------------------------------------------------------- states


KEYS = {
    "an int": (7, ("jax.random.key(7)", "got 7")),
    "a float array": (jnp.zeros(2), ("array float32[2]",)),
    "three words": (jnp.zeros(3, jnp.uint32), ("uint32[3]",)),
    "a scalar": (jnp.int32(3), ("jax.random.key(0)",)),
    "a string": ("seed", ("'seed'",)),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_of_a_state(case):
    key, says = KEYS[case]
    state = started(SCORES)._replace(key=key)
    says = ("train_state.key must be a PRNG key", *says)
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, *says, error=TypeError, train_state=state, key=None)
    for call in (
        lambda: train_step(SCORES, CROSS_ENTROPY, OPTIMIZER)(state, *DATA),
        lambda: train_epoch(SCORES, CROSS_ENTROPY, OPTIMIZER, batch_size=2)(state, *DATA),
        lambda: evaluate(SCORES, CROSS_ENTROPY, state, DATA),
        lambda: predict(SCORES, state, X),
    ):
        with refused(*says, error=TypeError, compiles=False):
            call()


def test_a_key_that_is_not_used_may_be_missing():
    state = started(SCORES)._replace(key=None)
    assert np.isfinite(evaluate(SCORES, CROSS_ENTROPY, state, DATA)["loss"])
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, "train_state.key", "None", error=TypeError, train_state=state, key=None)


@pytest.mark.parametrize("where", ["params", "opt_state", "step"])
def test_donated_states(where):
    state = started(SCORES)
    gone = state._replace(**{where: jax.tree.map(deleted, getattr(state, where))})
    says = (f"train_state/{where}", "has been deleted", "donated", "returned")
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, *says, train_state=gone, key=None)
    for call in (
        lambda: train_step(SCORES, CROSS_ENTROPY, OPTIMIZER)(gone, *DATA),
        lambda: evaluate(SCORES, CROSS_ENTROPY, gone, DATA),
        lambda: predict(SCORES, gone, X),
    ):
        with refused(*says, compiles=False):
            call()


def test_donated_data():
    gone, state = deleted(X), started(SCORES)
    fit_refuses(SCORES, CROSS_ENTROPY, (gone, LABELS), "data: x has been deleted", "donated")
    fit_refuses(SCORES, CROSS_ENTROPY, (X, deleted(LABELS)), "data: target has been deleted")
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, "validation: x has been deleted", validation=(gone, LABELS))
    with refused("x has been deleted"):
        predict(SCORES, state, gone)
    with refused("x has been deleted"):
        backprop(SCORES, CROSS_ENTROPY)(state.params, state.state, gone, LABELS)
    with refused("params/dense_0/b has been deleted"):
        backprop(SCORES, CROSS_ENTROPY)(jax.tree.map(deleted, state.params), state.state, X, LABELS)


@pytest.mark.parametrize("leaf", [jnp.tanh, "w", relu.value, object()], ids=["function", "string", "value", "object"])
def test_leaves_that_are_no_arrays(leaf):
    state = started(SCORES)
    params = {**state.params, "dense_1": {**state.params["dense_1"], "w": leaf}}
    says = ("must hold arrays", "at 'dense_1/w'")
    fit_refuses(
        SCORES, CROSS_ENTROPY, DATA, *says, error=TypeError, train_state=state._replace(params=params), key=None
    )
    for call in (
        lambda: backprop(SCORES, CROSS_ENTROPY)(params, (), X, LABELS),
        lambda: predict(SCORES, state._replace(params=params), X),
        lambda: OPTIMIZER.init(params),
        lambda: jaxnn.ema(0.9).init(params),
    ):
        with refused(*says, error=TypeError):
            call()


def test_layers_whose_init_gives_functions():
    init = lambda key, in_shape, dtype=None: ({"w": jnp.ones(D), "f": jnp.tanh}, ())
    forward = lambda params, state, x, *, train=False, rng=None: (params["f"](x * params["w"]), state, ())
    net = serial(jaxnn.Layer("own", init, forward, None), dense(K))
    says = ("layer 'own_0'", "must hold arrays, got the function", "at 'f'", "keep functions and settings in the layer")
    fit_refuses(net, CROSS_ENTROPY, DATA, *says, error=TypeError)
    with refused("must hold arrays", "at 'f'", error=TypeError):
        init_train_state(net.children[0], OPTIMIZER, 0, (D,))


def test_a_train_state_for_parameters():
    state = started(SCORES)
    with refused("params must be the parameters", "train_state.params", error=TypeError):
        backprop(SCORES, CROSS_ENTROPY)(state, (), X, LABELS)


def test_the_state_of_another_network():
    state = started(SCORES)._replace(state={"batch_norm_0": {"mean": jnp.zeros(3)}})
    says = ("train_state.state is not that of this network", "batch_norm_0/mean", "not expected")
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, *says, train_state=state, key=None)


# ---------------------------------------------------------------- stacked states, and tracing


@pytest.fixture(scope="module")
def several():
    return jax.jit(jax.vmap(lambda key: init_train_state(SCORES, OPTIMIZER, key, (D,))))(jax.random.split(KEY, 5))


def test_states_side_by_side(several):
    says = ("5", "select one", "leaf[0]", "jax.vmap")
    fit_refuses(SCORES, CROSS_ENTROPY, DATA, *says, train_state=several, key=None)
    for call in (
        lambda: evaluate(SCORES, CROSS_ENTROPY, several, DATA),
        lambda: predict(SCORES, several, X),
        lambda: train_step(SCORES, CROSS_ENTROPY, OPTIMIZER)(several, *DATA),
        lambda: backprop(SCORES, CROSS_ENTROPY)(several.params, several.state, X, LABELS),
        lambda: evaluate(SCORES, CROSS_ENTROPY, several._replace(key=KEY), DATA),
    ):
        with refused(*says, compiles=False):
            call()


def test_evaluate_and_predict_under_vmap_and_jit(several):
    """Equal to a loop over the members outside jit, which gives floats instead of arrays."""
    weights = np.arange(1, N + 1, dtype=np.float32)
    data = (X, LABELS, weights)
    score = lambda state: evaluate(SCORES, CROSS_ENTROPY, state, data, metrics=[metrics.accuracy], batch_size=4)
    together = jax.vmap(score)(several)
    compiled = jax.jit(jax.vmap(score))(several)
    outputs = jax.vmap(lambda state: predict(SCORES, state, X, batch_size=4))(several)
    assert outputs.shape == (5, N, K)
    for i in range(5):
        one = jax.tree.map(lambda leaf: leaf[i], several)
        alone = score(one)
        z = np.asarray(predict(SCORES, one, X), np.float64)
        np.testing.assert_allclose(outputs[i], z, rtol=1e-5, atol=1e-6)
        costs = np.log(np.exp(z).sum(-1)) - z[np.arange(N), LABELS]
        right = z.argmax(-1) == LABELS
        expected = {"loss": np.average(costs, weights=weights), "accuracy": np.average(right, weights=weights)}
        for name, value in expected.items():
            assert type(alone[name]) is float
            np.testing.assert_allclose([alone[name], together[name][i], compiled[name][i]], value, rtol=1e-5)


def test_evaluate_of_traced_data(several):
    state = jax.tree.map(lambda leaf: leaf[0], several)
    score = lambda x, labels, w: evaluate(SCORES, CROSS_ENTROPY, state, (x, labels, w))["loss"]
    w = np.ones(N, np.float32)
    np.testing.assert_allclose(jax.jit(score)(X, LABELS, w), score(X, LABELS, w), rtol=1e-6)
    slope = jax.grad(lambda x: evaluate(SCORES, CROSS_ENTROPY, state, (x, LABELS))["loss"])(X)
    assert slope.shape == X.shape
    with refused("losses.softmax_cross_entropy", "7"):  # known labels are checked there too
        jax.jit(lambda state: evaluate(SCORES, CROSS_ENTROPY, state, (X, LABELS + 7)))(state)


def test_fit_that_is_traced():
    settings = {"epochs": 1, "batch_size": 2}
    says = ("fit runs on the host", "train_epoch", "pure function")
    keys = jax.random.split(KEY, 2)
    state, run = (
        started(SCORES),
        lambda **more: fit(SCORES, CROSS_ENTROPY, OPTIMIZER, **settings, **more).history["loss"],
    )
    for call in (
        lambda: jax.jit(lambda x: run(data=(x, LABELS), key=0))(X),
        lambda: jax.jit(lambda: run(data=DATA, key=0))(),
        lambda: jax.vmap(lambda key: run(data=DATA, key=key))(keys),
        lambda: jax.vmap(lambda seed: run(data=DATA, key=seed))(np.arange(2, dtype=np.int32)),
        lambda: jax.jit(lambda state: run(data=DATA, train_state=state))(state),
        lambda: jax.grad(lambda x: run(data=(x, LABELS), key=0)[0])(X),
        lambda: jax.jit(lambda x: run(data=DATA, validation=(x, LABELS), key=0))(X),
    ):
        with refused(*says, error=TypeError, compiles=False):
            call()


# ---------------------------------------------------------------- calls of records


CALLS = {
    "relu()": (lambda: relu(), ("relu is an Activation record", "leave the parentheses out")),
    "elu(2.0)": (lambda: elu(2.0), ("elu is an Activation record", "no parameters", "leaky_relu(0.1)")),
    "elu(alpha=2)": (lambda: elu(alpha=2), ("elu is an Activation record", "no parameters")),
    "relu(x)": (lambda: relu(X), ("relu.value(z)", "activation(relu)")),
    "sigmoid(layer)": (lambda: sigmoid(dense(2)), ("serial(…, sigmoid)",)),
    "leaky_relu(0.1)(x)": (lambda: leaky_relu(0.1)(X), ("leaky_relu.value(z)",)),
    "mse()": (lambda: losses.mse(), ("mse is a Loss record", "fit(net, losses.mse, …)")),
    "mse(y, t)": (lambda: losses.mse(X, X), ("mse.value(prediction, target)", "mse.delta")),
    "hinge(2.0)": (lambda: losses.hinge(2.0), ("hinge is a Loss record",)),
    "net(x)": (lambda: SCORES(X), ("serial is a layer already", "net.forward(params, state, x)")),
    "softmax()()": (lambda: jaxnn.softmax()(), ("softmax is a layer already",)),
    "dense(2)(layer)": (lambda: dense(2)(dense(3)), ("dense is a layer already", "serial(first, second)")),
    "l2(0.1)(params)": (lambda: penalties.l2(0.1)({}), ("l2 is a Penalty record", ".value(params)")),
    "adam(0.1)(grads)": (lambda: adam(0.1)({}, ()), ("an Optimizer is a record", "optimizer.update(grads")),
}


@pytest.mark.parametrize("case", CALLS)
def test_records_are_not_called(case):
    call, says = CALLS[case]
    with refused(*says, error=TypeError):
        call()


def test_records_are_no_functions():
    """Records are callable only to explain their use, and are not accepted as functions."""
    for call, says in (
        (lambda: sgd(relu), "learning_rate must be a number"),
        (lambda: schedules.warmup(3, relu), "must be a schedule"),
        (lambda: dense(3, w_init=relu), "w_init must be an initializer"),
        (lambda: mlp([3], w_init=dense(2)), "w_init must be an initializer"),
        (lambda: penalties.l2(0.1, on=relu), "on must be a function of a path"),
        (lambda: augment.compose(relu), "expected functions (key, x) -> x"),
        (lambda: jaxnn.networks.sequence_classifier(lstm(3), 3, 2), "cell is rnn, gru or lstm itself"),
        (lambda: graph.trace(dense(2)), "net.forward(params, state, x)"),
        (lambda: graph.trace(relu), "f.value"),
    ):
        with refused(says, error=TypeError):
            call()


# ---------------------------------------------------------------- settings of layers


@pytest.mark.parametrize("widths", [None, "128", 10.0, {128, 10}, {1: 2}, dense(3), b"12"], ids=repr)
def test_widths_that_are_no_list(widths):
    with refused("mlp: widths must be a list, as in mlp([128, 10])", error=TypeError):
        mlp(widths)


@pytest.mark.parametrize("widths", [10, np.int64(10) * 0 + 10, [128.0], ["a"], [None], [True]], ids=repr)
def test_widths_that_are_no_whole_numbers(widths):
    with refused("mlp: widths", error=EITHER):
        mlp(widths)


def test_widths_may_come_in_any_list():
    for widths in ([4, 2], (4, 2), np.array([4, 2]), range(4, 1, -2), iter([4, 2])):
        assert mlp(widths).child_names == ("dense_0", "relu_0", "dense_1")


def test_activations_by_name():
    for given, says in (
        ("relu", "give jaxnn.relu"),
        (jax.nn.relu, "jaxnn.relu"),
        (jnp.tanh, "jaxnn.relu"),
        (leaky_relu, "leaky_relu(…)"),
        (None, "None"),
        ([1], "[1]"),
    ):
        for call in (lambda given=given: mlp([3, 2], given), lambda given=given: activation(given)):
            with refused("expected an Activation record", says, error=TypeError):
                call()


PADDINGS = [
    (lambda: conv(4, (3, 3), padding=1), "padding=((1, 1), (1, 1))"),
    (lambda: conv(4, (3,), padding=2), "padding=((2, 2),)"),
    (lambda: conv(4, (3, 3, 3), padding=0), "padding=((0, 0), (0, 0), (0, 0))"),
    (lambda: conv(4, (3, 3), padding=(1, 2)), "padding=((1, 1), (2, 2))"),
    (lambda: conv(4, (3, 3), padding=[1]), "padding=((1, 1), (1, 1))"),
    (lambda: max_pool((2, 2), padding=1), "padding=((1, 1), (1, 1))"),
    (lambda: avg_pool((2,), padding=1), "padding=((1, 1),)"),
    (lambda: conv(4, (3, 3), padding="SAME"), "did you mean 'same'?"),
    (lambda: conv(4, 3), "(3, 3) for images"),
    (lambda: max_pool(2), "(2,) for sequences, (2, 2) for images"),
    (lambda: jaxnn.upsample(2), "(2, 2) for images"),
]


@pytest.mark.parametrize(("build", "says"), PADDINGS)
def test_padding_and_windows_show_what_is_meant(build, says):
    with refused(says, error=EITHER):
        build()


def test_settings_of_layers():
    for build, says in (
        (lambda: dense(3, bias=None), "dense: bias must be True or False"),
        (lambda: conv(3, (3,), bias=0), "conv: bias must be True or False"),
        (lambda: avg_pool((2,), count_include_pad="no"), "count_include_pad must be True or False"),
        (lambda: sgd(0.1, momentum=0.9, nesterov=1), "sgd: nesterov must be True or False"),
        (lambda: dense(3, w_init=initializers.he_normal), "he_normal(…)"),
        (lambda: dense(3, b_init=0.1), "initializers.constant(0.1)"),
        (lambda: embedding(3, 2, w_init=np.ones((3, 2))), "embedding: w_init must be an initializer"),
        (lambda: lstm(3, w_h_init="orthogonal"), "lstm: w_h_init must be an initializer"),
        (lambda: rnn(3, b_init=0), "rnn: b_init must be an initializer"),
        (lambda: conv(3, (3,), w_init=0.1), "conv: w_init must be an initializer"),
        (lambda: serial([dense(2), relu]), "serial(*layers)"),
        (lambda: serial(dense(2), jnp.tanh), "activation(Activation(name, value, slope))"),
        (lambda: serial(dense(2), None), "got None"),
        (lambda: adam(schedules.constant), "constant(…)"),
        (lambda: schedules.warmup(10, schedules.cosine), "cosine(…)"),
        (lambda: schedules.joined(schedules.constant(0.1), [3]), "schedules.joined: schedules must be a list"),
        (lambda: schedules.piecewise([0.1, 0.2], boundaries=3), "boundaries must be a list"),
        (lambda: stopping.together(3), "together: expected machines"),
        (lambda: stopping.together(stopping.early_stopping), "parentheses"),
    ):
        with refused(says, error=TypeError):
            build()


# ---------------------------------------------------------------- images with channels in front


def test_channels_in_front():
    advice = "images are [N, H, W, C] here: use jnp.moveaxis(x, 1, -1)"
    front, last = np.zeros((2, 3, 16, 16), np.float32), np.zeros((2, 16, 16, 3), np.float32)
    net = serial(conv(4, (3, 3)), relu, flatten(), dense(K))
    params, _ = jax.eval_shape(lambda: net.init(0, (16, 16, 3)))
    specs = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    with refused("layer 'conv_0'", "expects 3 channels", "(2, 3, 16, 16)", advice):
        net.forward(specs, (), front)
    with refused("expects 3 channels", advice):
        backprop(net, CROSS_ENTROPY)(specs, (), front, LABELS[:2])
    assert np.array_equal(np.moveaxis(front, 1, -1), last)
    for layer in (conv(4, (5, 5), padding="valid"), max_pool((5, 5)), avg_pool((4, 4))):
        with refused("larger than an input of (3, 16)", advice):
            jax.eval_shape(lambda layer=layer: layer.init(0, (3, 16, 16))) if layer.kind == "conv" else layer.forward(
                {}, (), front
            )
    grey = np.zeros((2, 1, 16, 16), np.float32)
    fit_refuses(jaxnn.networks.lenet(K), CROSS_ENTROPY, (grey, LABELS[:2]), "window of (5, 5)", advice)
    pooled = serial(max_pool((2, 2)), flatten(), dense(K))
    params = {"dense_0": {"w": np.zeros((8 * 8 * 3, K), np.float32), "b": np.zeros(K, np.float32)}}
    with refused("expects 192 features", advice):
        backprop(pooled, CROSS_ENTROPY)(params, (), front, LABELS[:2])
    volume = np.zeros((2, 1, 8, 8, 8), np.float32)
    with refused("[N, D, H, W, C]"):
        conv(2, (3, 3, 3)).forward(
            {"w": np.zeros((3, 3, 3, 4, 2), np.float32), "b": np.zeros(2, np.float32)}, (), volume
        )
    with pytest.raises(ValueError, match="expects 3 channels") as caught:
        net.forward(specs, (), np.zeros((2, 16, 16, 1), np.float32))
    assert "moveaxis" not in str(caught.value)


# ---------------------------------------------------------------- graphs, data, pictures


@pytest.mark.parametrize("show", [graph.page, graph.table, graph.dot], ids=lambda show: show.__name__)
def test_what_is_no_graph(show):
    for wrong, says in (
        (3, "int"),
        (None, "NoneType"),
        (graph.trace(lambda x: x * x), "give trace(f)(*args)"),
        (lambda x: x, "graph.trace(f)(*args)"),
        ("x", "str"),
    ):
        with refused(f"graph.{show.__name__} expects a graph", says, error=TypeError):
            show(wrong)


@pytest.mark.parametrize(
    "of", [graph.trace, graph.grad, graph.gradient_flow, graph.explain_nonfinite], ids=lambda f: f.__name__
)
def test_what_is_no_function(of):
    for wrong in (3, None, "f", SCORES, relu, losses.mse, graph.trace(lambda x: x * x)(2.0)):
        with refused(f"graph.{of.__name__}: f must be a function of arrays", error=TypeError):
            of(wrong)


def test_standardise():
    scale = data.standardisation(X)
    for apply in (data.standardise, data.unstandardise):
        name = apply.__name__
        for wrong, says in ((X, "float32[6, 4]"), (None, "NoneType"), ((0.0, 1.0), "tuple"), (3.0, "float")):
            with refused(f"{name}: scale must be", "standardisation(x_train)", says, error=TypeError):
                apply(wrong, X)
        with refused("takes scale first", error=TypeError):
            apply(X, scale)
    with refused("axes must be a list", error=TypeError):
        data.standardisation(X, axes=0)
    with refused("under jit use jax.nn.one_hot", error=TypeError):
        jax.jit(lambda labels: data.one_hot(labels, 3))(LABELS)


PICTURES = {
    "activations": (relu,),
    "losses": (losses.mse,),
    "schedules": ({"a": schedules.constant(0.1)}, 3),
    "learning_curves": ({"loss": [1.0]},),
    "gradient_flow": ({"a": [1.0]},),
    "flow_over_time": ([],),
    "decision_boundary": (None, X, LABELS),
    "weight_images": (X, (2, 2)),
    "confusion_matrix": (LABELS, LABELS),
    "image_rows": ({"a": X},),
    "landscape": (None,),
}


def test_extras_that_are_missing(monkeypatch):
    assert set(PICTURES) == set(plots.__all__)
    for name in ("matplotlib", "tqdm", "sklearn", "sklearn.datasets", "igraph"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, arguments in PICTURES.items():
        with refused(f"plots.{name} needs matplotlib: pip install matplotlib", error=ImportError):
            getattr(plots, name)(*arguments)
    with refused("data.digits needs scikit-learn", "pip install scikit-learn", error=ImportError):
        data.digits()
    with refused("progress=True needs tqdm: pip install tqdm", error=ImportError):
        fit(SCORES, CROSS_ENTROPY, OPTIMIZER, DATA, key=0, epochs=1, batch_size=2, progress=True)


def test_losses_and_metrics_of_what_is_no_array():
    for where, rule in {
        "losses.mse": losses.mse.value,
        "losses.hinge": losses.hinge.delta,
        "losses.softmax_cross_entropy": CROSS_ENTROPY.value,
        "metrics.accuracy": metrics.accuracy,
    }.items():
        for wrong, says in ((None, "None"), ("ab", "'ab'"), (relu, "relu"), ({"a": 1}, "'a'")):
            with refused(f"{where}: target must be an array", says, error=TypeError):
                rule(ONE_HOT, wrong)
            with refused(f"{where}: prediction must be an array", says, error=TypeError):
                rule(wrong, ONE_HOT)


# ---------------------------------------------------------------- patterns of leaves


PARAMS = {
    "encoder": {"dense_0": {"w": np.ones((2, 3)), "b": np.ones(3)}, "dense_1": {"w": np.ones((3, 2)), "b": np.ones(2)}},
    "dense_1": {"w": np.ones((2, 2)), "b": np.ones(2)},
    "dense_10": {"w": np.ones((2, 2)), "b": np.ones(2)},
}
CHOSEN = {  # pattern: the leaves
    "dense_1/w": ["dense_1/w"],
    "dense_1": ["dense_1/b", "dense_1/w"],
    "dense_1*": ["dense_1/b", "dense_1/w", "dense_10/b", "dense_10/w"],
    "dense_1?": ["dense_10/b", "dense_10/w"],
    "encoder": ["encoder/dense_0/b", "encoder/dense_0/w", "encoder/dense_1/b", "encoder/dense_1/w"],
    "encoder/dense_[0]/w": ["encoder/dense_0/w"],
    "*/dense_1/w": ["encoder/dense_1/w"],
    "encoder/*/b": ["encoder/dense_0/b", "encoder/dense_1/b"],
    "*/b": ["dense_1/b", "dense_10/b", "encoder/dense_0/b", "encoder/dense_1/b"],
}


@pytest.mark.parametrize("pattern", CHOSEN)
def test_patterns_choose_leaves(pattern):
    mask = penalties.chosen("l2", PARAMS, pattern)
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, on in leaves if on]
    assert names == CHOSEN[pattern]
    size = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(PARAMS)
               if jax.tree_util.keystr(path, simple=True, separator="/") in names)  # fmt: skip
    values = [
        penalties.l2(0.5, on=pattern).value(PARAMS),
        penalties.l1(0.25, on=pattern).value(PARAMS),
        penalties.elastic_net(0.125, 0.25, on=pattern).value(PARAMS),
    ]
    np.testing.assert_allclose(values, 0.25 * size, rtol=1e-6)


def test_patterns_choose_what_decays():
    params = {
        name: {leaf: jnp.asarray(x, jnp.float32) for leaf, x in PARAMS[name].items()}
        for name in ("dense_1", "dense_10")
    }
    grads = jax.tree.map(jnp.zeros_like, params)
    optimizer = adamw(0.5, weight_decay=0.5, on="dense_1/w")
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert np.array_equal(updates["dense_1"]["w"], np.full((2, 2), -0.25))
    assert not any(np.any(leaf) for leaf in (updates["dense_1"]["b"], *updates["dense_10"].values()))
    assert adamw(0.1, on="a") == adamw(0.1, on="a")
    assert penalties.l2(0.1, on="a") == penalties.l2(0.1, on="a")


def test_patterns_that_choose_nothing():
    says = ("the pattern 'dense_9/w' chooses none of the parameters", "'dense_1/w'", "'encoder/dense_0/b'", "'*/w'")
    for call in (
        lambda: penalties.l2(0.1, on="dense_9/w").value(PARAMS),
        lambda: penalties.l1(0.1, on="dense_9/w").grad(PARAMS),
        lambda: penalties.elastic_net(0.1, 0.1, on="dense_9/w").value(PARAMS),
        lambda: adamw(0.1, on="dense_9/w").init(PARAMS),
    ):
        with refused(*says):
            call()
    for wrong in (None, 3, ["dense_1/w"], relu, lambda path, leaf: True, dense, True):
        for make in (
            lambda wrong=wrong: penalties.l2(0.1, on=wrong),
            lambda wrong=wrong: penalties.l1(0.1, on=wrong),
            lambda wrong=wrong: penalties.elastic_net(0.1, 0.1, on=wrong),
            lambda wrong=wrong: adamw(0.1, on=wrong),
        ):
            with refused("must be a function of a path", "a pattern of paths", error=TypeError):
                make()


# ---------------------------------------------------------------- reports of invalid arguments


def test_diagnoses_and_pictures_of_something_else():
    state, fitted = started(SCORES), jaxnn.Fit(None, {"loss": [1.0]})
    look = lambda **changes: diagnostics.diagnose(
        **{"net": SCORES, "loss": CROSS_ENTROPY, "params": state.params, "state": (), "x": X, "target": LABELS}
        | changes
    )
    for call, says in (
        (lambda: look(net=mlp), "diagnostics.diagnose: net must be a Layer record"),
        (lambda: look(loss=losses.huber), "diagnostics.diagnose: loss must be a Loss record"),
        (lambda: look(optimizer=0.1), "diagnostics.diagnose: optimizer must have init and update"),
        (lambda: look(penalty=0.1), "diagnostics.diagnose: penalty must be a Penalty record"),
        (lambda: look(x="abc"), "diagnostics.diagnose: x must hold arrays"),
        (lambda: look(params=state), "params: got a TrainState"),
        (lambda: look(weights=relu.value), "diagnostics.diagnose: weights must hold arrays"),
        (lambda: diagnostics.report(None, None), "diagnostics.report: net must be a Layer record"),
        (lambda: diagnostics.report(SCORES, {}), "readings['diagnostics']"),
        (lambda: diagnostics.report_each(SCORES, state), "expected Measures"),
        (lambda: diagnostics.over_time(None), "fit(…, measure=1).diagnostics"),
        (lambda: diagnostics.over_time([1]), "expected Diagnosis records"),
        (lambda: gradcheck.network(SCORES, CROSS_ENTROPY, state, (), X, LABELS), "params: got a TrainState"),
        (lambda: gradcheck.network(SCORES, CROSS_ENTROPY, "abc", (), X, LABELS), "params must hold arrays"),
        (lambda: gradcheck.network(mlp, CROSS_ENTROPY, {}, (), X, LABELS), "net must be a Layer record"),
        (lambda: graph.page(graph.trace(lambda x: x * x)(2.0), most="all"), "most must be a whole number"),
        (lambda: graph.table(graph.trace(lambda x: x * x)(2.0), rows=None), "rows must be a whole number"),
    ):
        with refused(says, error=TypeError):
            call()
    pytest.importorskip("matplotlib", reason="an optional package that draws")
    for call, says in (
        (lambda: plots.learning_curves(fitted), "give fit.history"),
        (lambda: plots.learning_curves([1.0]), "history must be a dict of lists"),
        (lambda: plots.weight_images("w", (2, 2)), "w must be an array of numbers"),
        (lambda: plots.weight_images(X.T, 4), "shape must be (height, width)"),
        (lambda: plots.decision_boundary(SCORES, X[:, :2], LABELS), "give lambda x: predict(net, train_state, x)"),
        (lambda: plots.decision_boundary(None, X[:, :2], LABELS), "predict must be a function of points"),
    ):
        with refused(says, error=TypeError):
            call()
