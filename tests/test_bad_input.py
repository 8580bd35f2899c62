"""Invalid input: every mistake raises an error with advice, eagerly, under `jit` and in `fit`.

Wrong shapes and dtypes raise everywhere. Wrong values raise where data enters (`fit`, `evaluate`), before anything
compiles; in a compiled pass, which cannot raise, they turn loss and δ into NaN, never into a number.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

import jaxnn
from jaxnn import (
    DivergenceError,
    TrainState,
    adam,
    backprop,
    dense,
    evaluate,
    fit,
    flatten,
    init_train_state,
    losses,
    mlp,
    named,
    parallel,
    predict,
    repeat,
    reshape,
    residual,
    serial,
    sgd,
    share,
    sigmoid,
    softmax,
    tanh,
    train_epoch,
    train_step,
)

COMPILED = "/jax/core/compile/backend_compile_duration"
ARGUMENTS = (
    "jit(_threefry",
    "jit(convert_element_type",
    "jit(broadcast_in_dim",
    "jit(stage",
)  # programs that make keys or data
KEY = jax.random.key(0)
N, D, K = 6, 4, 3
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
LABELS = (np.arange(N) % K).astype(np.int32)  # 0 1 2 0 1 2
ONE_HOT = np.eye(K, dtype=np.float32)[LABELS]
COIN = (np.arange(N) % 2).astype(np.float32)[:, None]  # 0 1 0 1 0 1
OPTIMIZER = sgd(0.1)

SCORES, PROBABILITIES = mlp([5, K], tanh), serial(dense(5), tanh, dense(K), softmax())
SCORE, PROBABILITY = mlp([5, 1], tanh), serial(dense(5), tanh, dense(1), sigmoid)
ENTRYWISE = [
    losses.mse,
    losses.mae,
    losses.huber(1.0),
    losses.half_squared_error,
    losses.hinge,
    losses.logistic,
    losses.binary_cross_entropy,
    losses.sigmoid_binary_cross_entropy,
]
CLASSWISE = [  # a loss and a network for it
    (losses.softmax_cross_entropy, SCORES),
    (losses.cross_entropy, PROBABILITIES),
    (losses.multiclass_hinge, SCORES),
]

every_entrywise_loss = pytest.mark.parametrize("loss", ENTRYWISE, ids=lambda loss: loss.name)
every_class_loss = pytest.mark.parametrize(("loss", "net"), CLASSWISE, ids=[loss.name for loss, _ in CLASSWISE])


@functools.cache
def started(net, width=D):
    return jax.jit(lambda key: init_train_state(net, OPTIMIZER, key, (width,)))(KEY)


@contextmanager
def refused(*says, error=ValueError, compiles=True):
    """Expects an error whose message contains all of `says`; with compiles=False nothing compiles before it."""
    programs: list[str] = []

    def listen(event, seconds, **details):
        if event == COMPILED:
            programs.append(details.get("fun_name", "without a name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(error) as caught:
            yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    missing = [text for text in says if text not in str(caught.value)]
    assert not missing, f"{missing} not in {str(caught.value)!r}"
    if not compiles:
        assert [name for name in programs if not name.startswith(ARGUMENTS)] == []


def refused_when_built(build, *says, error=ValueError):
    """Static mistakes raise immediately, also in a function that is being traced."""
    for call in (build, jax.jit(lambda: build() and None)):
        with refused(*says, error=error, compiles=False):
            call()


def fitted(net, loss, data, **changes):
    settings = {"key": KEY, "epochs": 1, "batch_size": 2}
    return fit(net, loss, OPTIMIZER, data, **(settings | changes))


def fit_refuses(net, loss, data, *says, error=ValueError, **changes):
    anew = serial(*net.children)  # the same network, for which nothing has been compiled yet
    with refused(*says, error=error, compiles=False):
        fitted(anew, loss, data, **changes)


def everything_refuses(net, loss, x, target, *says):
    """Shapes and dtypes: the same error eagerly, under jit, in fit and in evaluate."""
    state = started(net)
    run = backprop(net, loss)
    for call in (run, jax.jit(run)):
        with refused(*says):
            call(state.params, state.state, x, target)
    fit_refuses(net, loss, (x, target), *says)
    with refused(*says, compiles=False):
        evaluate(net, loss, state, (x, target))


@functools.cache
def compiled_pass(net, loss):
    return jax.jit(backprop(net, loss, read=("deltas",)))


@functools.cache
def evaluated_pass(net, loss):
    """Operation by operation."""
    return evaluated(backprop(net, loss, read=("deltas",)))


def values_refused(net, loss, target, wrong, *says):
    """Values: fit and evaluate raise an error; a compiled pass gives NaN for these rows."""
    fit_refuses(net, loss, (X, target), *says)
    state = started(net)
    with refused(*says, compiles=False):
        evaluate(net, loss, state, (X, target))
    fit_refuses(net, loss, (X, good_target(loss)), *says, "validation", validation=(X, target))
    for run in (evaluated_pass(net, loss), compiled_pass(net, loss)):
        out = run(state.params, state.state, X, target)
        assert np.isnan(out.loss)
        delta = np.asarray(out.readings["deltas"][net.child_names[-1]])
        assert np.array_equal(np.isnan(delta).all(axis=-1), wrong)
        assert np.array_equal(np.isnan(delta).any(axis=-1), wrong)
        assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(out.grads))


def good_target(loss):
    if loss in (losses.hinge, losses.logistic):
        return 2 * COIN - 1
    return COIN if loss in ENTRYWISE else LABELS


# ---------------------------------------------------------------- shapes that do not fit


@every_entrywise_loss
def test_column_against_row(loss):
    column, row = np.full((N, 1), 0.5, np.float32), np.ones(N, np.float32)
    for rule in (loss.value, loss.delta):
        for call in (rule, jax.jit(rule)):
            with refused(f"losses.{loss.name}", "(6, 1)", "(6,)", "prediction[:, 0] or target[:, None]"):
                call(column, row)
            with refused(f"losses.{loss.name}", "(6,)", "(6, 1)", "prediction[:, None] or target[:, 0]"):
                call(row / 2, column)
    everything_refuses(SCORE, loss, X, np.ones(N, np.float32), "(6, 1)", "(6,)", "target[:, None]")


def test_differing_batch_sizes():
    everything_refuses(SCORES, losses.softmax_cross_entropy, X, LABELS[:4], "6", "4", "first axis")
    loss = losses.softmax_cross_entropy
    for call in (loss.value, jax.jit(loss.value)):
        with refused("losses.softmax_cross_entropy", "(6, 3)", "(4,)", "batch size"):
            call(np.ones((N, K), np.float32), LABELS[:4])


def test_differing_batch_sizes_in_an_epoch():
    """The gather in the epoch does not check bounds, so this must raise before."""
    run = train_epoch(SCORES, losses.softmax_cross_entropy, OPTIMIZER, batch_size=2)
    for call in (run, jax.jit(run)):
        with refused("6", "4", "first axis"):
            call(started(SCORES), X, LABELS[:4])
        with refused("weights", "6", "4"):
            call(started(SCORES), X, LABELS, np.ones(4, np.float32))


def test_weights():
    loss, ones = losses.softmax_cross_entropy, np.ones(N, np.float32)
    run, state = backprop(SCORES, loss), started(SCORES)
    for call in (run, jax.jit(run)):
        with refused("weights", "(6,)", "one for each example", "(6, 1)"):
            call(state.params, state.state, X, LABELS, weights=ones[:, None])
    fit_refuses(SCORES, loss, (X, LABELS, ones[:, None]), "data: weights", "(6,)", "(6, 1)")
    fit_refuses(SCORES, loss, (X, LABELS, ones[:4]), "'weights': 4", "'x': 6")
    values = {"negative": (-ones, "6 of 6"), "not finite": (np.nan * ones, "6 of 6"), "all zero": (0 * ones, "omit")}
    for wrong, (weights, says) in values.items():
        fit_refuses(SCORES, loss, (X, LABELS, weights), "data: weights", wrong, says)
        with refused("data: weights", wrong, says):
            evaluate(SCORES, loss, state, (X, LABELS, weights))
        with refused("weights", wrong, says):
            run(state.params, state.state, X, LABELS, weights=weights)
        validation = (X, LABELS, weights)
        fit_refuses(SCORES, loss, (X, LABELS), "validation: weights", wrong, says, validation=validation)


def test_wrong_number_of_features():
    """The message names the input, not the parameters."""
    narrow, state = X[:, :3], started(SCORES)
    says = ("layer 'dense_0'", "expects 4 features", "got x of shape (6, 3)")
    run = backprop(SCORES, losses.softmax_cross_entropy)
    for call in (run, jax.jit(run)):
        with refused(*says):
            call(state.params, state.state, narrow, LABELS)
    for call in (SCORES.forward, jax.jit(SCORES.forward)):
        with refused(*says):
            call(state.params, state.state, narrow)
    fit_refuses(SCORES, losses.softmax_cross_entropy, (narrow, LABELS), *says, train_state=state, key=None)
    with refused(*says):
        predict(SCORES, state, narrow)
    validation = (narrow, LABELS)
    fit_refuses(SCORES, losses.softmax_cross_entropy, (X, LABELS), "validation", *says, validation=validation)


def test_wrong_number_of_features_deep_inside():
    net = serial(named("encoder", mlp([5, K])), named("head", dense(1)))
    params, state = net.init(KEY, (D,))
    with refused("layer 'encoder/dense_0'", "expects 4 features", "(6, 3)"):
        net.forward(params, state, X[:, :3])


def test_missing_batch_axis():
    one, state = X[0], started(SCORES)
    advice = "add the batch axis, x[None] for one example"
    for call in (SCORES.forward, jax.jit(SCORES.forward)):
        with refused("layer 'dense_0'", "x [N, D]", "(4,)", advice):
            call(state.params, state.state, one)
    run = backprop(SCORES, losses.mse)
    for call in (run, jax.jit(run)):
        with refused("layer 'dense_0'", "(4,)", advice):
            call(state.params, state.state, one, np.zeros((4, K), np.float32))
        with refused("target needs a batch axis"):
            call(state.params, state.state, one, np.float32(1))
        with refused("x has 4 examples", "target has 3", "first axis"):
            call(state.params, state.state, one, np.zeros(K, np.float32))
    with refused("layer 'dense_0'", "(4,)", advice):
        predict(SCORES, state, one)
    with refused("layer 'dense_0'", "(4,)", advice):
        evaluate(SCORES, losses.softmax_cross_entropy, state, (one, LABELS[:4]))
    fit_refuses(SCORES, losses.softmax_cross_entropy, (one, LABELS[:4]), "layer 'dense_0'", advice)
    fit_refuses(SCORES, losses.softmax_cross_entropy, (one, LABELS[0]), "data: target needs a batch axis")
    fit_refuses(SCORES, losses.softmax_cross_entropy, (np.float32(1), LABELS), "data: x needs a batch axis")


def test_empty_data():
    state, none, loss = started(SCORES), X[:0], losses.softmax_cross_entropy
    run = backprop(SCORES, loss)
    for call in (run, jax.jit(run)):
        with refused("x holds no examples"):
            call(state.params, state.state, none, LABELS[:0])
    fit_refuses(SCORES, loss, (none, LABELS[:0]), "data is empty")
    fit_refuses(SCORES, loss, (X, LABELS), "validation is empty", validation=(none, LABELS[:0]))
    fit_refuses(SCORES, loss, ({}, LABELS), "data: x holds no arrays")
    with refused("data is empty"):
        evaluate(SCORES, loss, state, (none, LABELS[:0]))
    with refused("x is empty"):
        predict(SCORES, state, none)


def test_features_that_are_not_float():
    pixels = np.full((N, D), 7, np.uint8)
    everything_refuses(
        SCORES, losses.softmax_cross_entropy, pixels, LABELS, "'dense_0'", "uint8", "x.astype('float32')"
    )


# ---------------------------------------------------------------- labels


@every_class_loss
def test_labels_out_of_range(loss, net):
    labels = np.where(np.arange(N) == 4, 7, LABELS)
    says = (f"losses.{loss.name}", "1 of 6", "0…2", "target[4] = 7", "3 classes", "need 8")
    values_refused(net, loss, labels, np.arange(N) == 4, *says)


@every_class_loss
def test_negative_labels(loss, net):
    labels = np.where(LABELS == 2, -1, LABELS)
    says = (f"losses.{loss.name}", "2 of 6", "0…2", "target[2] = -1", "drop these examples")
    values_refused(net, loss, labels, LABELS == 2, *says)


@every_class_loss
def test_labels_that_count_from_1(loss, net):
    says = (f"losses.{loss.name}", "2 of 6", "target[2] = 3", "count from 1", "use target - 1")
    values_refused(net, loss, LABELS + 1, LABELS == 2, *says)


@every_class_loss
def test_float_labels(loss, net):
    everything_refuses(net, loss, X, LABELS.astype(np.float32), f"losses.{loss.name}", "float32", "astype('int32')")


@pytest.mark.parametrize("one_hot", [ONE_HOT.astype(np.int32), ONE_HOT.astype(bool)], ids=["int32", "bool"])
@every_class_loss
def test_one_hot_of_integers(loss, net, one_hot):
    everything_refuses(net, loss, X, one_hot, f"losses.{loss.name}", "integer labels (6,)", "one-hot", "jnp.argmax")


def test_one_hot_where_labels_are_meant():
    says = ("losses.multiclass_hinge", "integer labels (6,)", "one-hot float32", "jnp.argmax(target, axis=-1)")
    everything_refuses(SCORES, losses.multiclass_hinge, X, ONE_HOT, *says)


@every_entrywise_loss
def test_labels_where_one_hot_is_meant(loss):
    says = (f"losses.{loss.name}", "(6, 3)", "(6,)", "losses.softmax_cross_entropy", "jax.nn.one_hot(target, 3)")
    everything_refuses(SCORES, loss, X, LABELS, *says)


@pytest.mark.parametrize("loss", [losses.hinge, losses.logistic], ids=lambda loss: loss.name)
def test_zero_one_labels_where_signs_are_meant(loss):
    says = (f"losses.{loss.name}", "3 of 6", "-1 or 1", "target[0, 0] = 0.0", "2 * target - 1")
    values_refused(SCORE, loss, COIN, COIN[:, 0] == 0, *says)
    everything_refuses(SCORE, loss, X, COIN.astype(bool), f"losses.{loss.name}", "bool", "jnp.where(target, 1, -1)")


@pytest.mark.parametrize(
    ("loss", "net"),
    [(losses.sigmoid_binary_cross_entropy, SCORE), (losses.binary_cross_entropy, PROBABILITY)],
    ids=["sigmoid_binary_cross_entropy", "binary_cross_entropy"],
)
def test_signs_where_zero_one_labels_are_meant(loss, net):
    says = (f"losses.{loss.name}", "3 of 6", "[0, 1]", "target[0, 0] = -1.0", "(target + 1) / 2")
    values_refused(net, loss, 2 * COIN - 1, COIN[:, 0] == 0, *says)


def test_labels_beyond_int32():
    """Without 64-bit integers on the device 2³² + 1 must not become class 1."""
    labels = LABELS.astype(np.int64)
    labels[2] = 2**32 + 1
    fit_refuses(SCORES, losses.softmax_cross_entropy, (X, labels), "data: target", "int32", "4294967297")


# ---------------------------------------------------------------- values that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(value):
    x, loss, state = X.copy(), losses.softmax_cross_entropy, started(SCORES)
    x[3, 2] = x[5, 0] = value
    says = ("2 of 24", "not finite", "(3, 2)", str(value), "check_data=False")
    fit_refuses(SCORES, loss, (x, LABELS), "data: x", *says)
    fit_refuses(SCORES, loss, (X, LABELS), "validation: x", *says, validation=(x, LABELS))
    with refused("data: x", *says):
        evaluate(SCORES, loss, state, (x, LABELS))


def test_not_finite_where_x_is_a_tree():
    x = {"left": X, "right": X.copy()}
    x["right"][3, 2] = np.nan
    net = serial(jaxnn.Layer("pick", lambda key, in_shape, dtype: ({}, ()), pick, None), mlp([K]))
    fit_refuses(net, losses.softmax_cross_entropy, (x, LABELS), "data: x/right", "1 of 24", "(3, 2)")


def pick(params, state, x, *, train=False, rng=None):
    return x["left"], state, ()


def test_target_that_is_not_finite():
    target = X[:, :3].copy()
    target[1, 2] = np.nan
    fit_refuses(SCORES, losses.mse, (X, target), "data: target", "1 of 18", "(1, 2)", "nan", "check_data=False")


def test_not_finite_where_no_one_looks():
    """With check_data=False and under jit NaN remains NaN, and training stops."""
    x, loss, state = X.copy(), losses.softmax_cross_entropy, started(SCORES)
    x[3, 2] = np.nan
    for run in (evaluated_pass(SCORES, loss), compiled_pass(SCORES, loss)):
        out = run(state.params, state.state, x, LABELS)
        assert np.isnan(out.loss)
        assert np.array_equal(np.isnan(out.readings["deltas"]["dense_1"]).all(axis=-1), np.arange(N) == 3)
    assert np.isnan(evaluate(SCORES, loss, state, (x, LABELS), check_data=False)["loss"])
    with pytest.raises(DivergenceError, match="not finite"):
        fitted(SCORES, loss, (x, LABELS), check_data=False)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_below_1(size):
    says, loss, data = ("batch_size must be at least 1", f"got {size}"), losses.softmax_cross_entropy, (X, LABELS)
    fit_refuses(SCORES, loss, data, "fit: ", *says, batch_size=size)
    with refused("evaluate: ", *says):
        evaluate(SCORES, loss, started(SCORES), data, batch_size=size)
    with refused("predict: ", *says):
        predict(SCORES, started(SCORES), X, batch_size=size)
    refused_when_built(lambda: train_epoch(SCORES, loss, OPTIMIZER, batch_size=size), *says)


def test_batch_size_above_n():
    says = ("batch_size must be at most 6", "examples", "got 7")
    fit_refuses(SCORES, losses.softmax_cross_entropy, (X, LABELS), *says, batch_size=7)
    run = train_epoch(SCORES, losses.softmax_cross_entropy, OPTIMIZER, batch_size=7)
    for call in (run, jax.jit(run)):
        with refused(*says):
            call(started(SCORES), X, LABELS)


@pytest.mark.parametrize("size", [2.0, True, None, "2"])
def test_batch_size_that_is_no_number(size):
    says = ("fit: batch_size must be a whole number", repr(size))
    fit_refuses(SCORES, losses.softmax_cross_entropy, (X, LABELS), *says, error=TypeError, batch_size=size)


def test_epochs():
    fit_refuses(SCORES, losses.mse, (X, ONE_HOT), "fit: epochs must be at least 1, got 0", epochs=0)
    fit_refuses(SCORES, losses.mse, (X, ONE_HOT), "fit: epochs must be a whole", "2.5", error=TypeError, epochs=2.5)


@pytest.mark.parametrize("widths", [[], (), 5])
def test_widths_that_are_empty(widths):
    refused_when_built(
        lambda: mlp(widths), "mlp: widths must list at least the output width", "mlp([128, 10])", repr(widths)
    )


@pytest.mark.parametrize("width", [0, -3])
def test_widths_below_1(width):
    for build, says in (
        (lambda: mlp([5, width, 2]), "mlp: widths[1]"),
        (lambda: dense(width), "dense: width"),
        (lambda: repeat(tanh, width), "repeat: n"),
        (lambda: share(tanh, width), "share: n"),
        (lambda: reshape(2, width), "reshape: size"),
    ):
        refused_when_built(build, f"{says} must be at least 1", f"got {width}")


@pytest.mark.parametrize("width", [2.5, True, "5", None])
def test_widths_that_are_no_numbers(width):
    for build, says in ((lambda: mlp([width]), "mlp: widths[0]"), (lambda: dense(width), "dense: width")):
        refused_when_built(build, f"{says} must be a whole number", repr(width), error=TypeError)


def test_shapes_that_do_not_fit_a_reshape():
    for call in (reshape(3, 3).forward, jax.jit(reshape(3, 3).forward)):
        with refused("reshape", "(3, 3)", "does not fit", "(6, 4)"):
            call({}, (), X)
    with refused("at most one size may be -1", "(-1, -1)"):
        reshape(-1, -1)


def test_residual_does_not_broadcast():
    net = residual(dense(1))
    with refused("residual", "float32[1, 4] -> float32[1, 1]", "skip=dense(width)"):
        net.init(KEY, (D,))
    params, state = dense(1).init(KEY, (D,))
    for call in (net.forward, jax.jit(net.forward)):
        with refused("residual", "float32[6, 4] -> float32[6, 1]", "skip=dense(width)"):
            call(params, state, X)


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sgd(-0.1), ("sgd: learning_rate", "at least 0", "-0.1")),
        (lambda: adam(-0.1), ("adam: learning_rate", "at least 0", "-0.1")),
        (lambda: adam(float("nan")), ("adam: learning_rate", "nan")),
        (lambda: adam(float("inf")), ("adam: learning_rate", "inf")),
        (lambda: sgd(0.1, momentum=1.0), ("sgd: momentum", "below 1", "1.0")),
        (lambda: sgd(0.1, momentum=-0.5), ("sgd: momentum", "at least 0", "-0.5")),
        (lambda: sgd(0.1, nesterov=True), ("sgd: nesterov needs momentum", "momentum=0.9")),
        (lambda: adam(0.1, b1=1.0), ("adam: b1", "below 1", "1.0")),
        (lambda: adam(0.1, b1=-0.1), ("adam: b1", "at least 0", "-0.1")),
        (lambda: adam(0.1, b2=1.0), ("adam: b2", "below 1", "1.0")),
        (lambda: adam(0.1, b2=-1e-9), ("adam: b2", "at least 0", "-1e-09")),
        (lambda: adam(0.1, eps=0.0), ("adam: eps", "above 0", "0.0")),
    ],
)
def test_optimizer_out_of_range(make, says):
    refused_when_built(make, *says)


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_learning_rate_in_the_state_out_of_range(rate):
    state, data = started(SCORES), (X, ONE_HOT)
    state = state._replace(opt_state=state.opt_state._replace(learning_rate=jnp.float32(rate)))
    says = ("fit: train_state.opt_state.learning_rate", "at least 0", f"{rate:g}")
    fit_refuses(SCORES, losses.mse, data, *says, train_state=state, key=None)
    for run in (train_step(SCORES, losses.mse, OPTIMIZER), jax.jit(train_step(SCORES, losses.mse, OPTIMIZER))):
        after, _ = run(state, *data)
        assert not np.isfinite(after.params["dense_1"]["b"]).any()


def test_arguments_that_are_traced():
    """Under jit values are unknown: static settings raise an error; a rate may be traced."""
    for name, build in {
        "mlp: widths[0] must be a whole number": lambda n: mlp([n]),
        "dense: width must be a whole number": lambda n: dense(n),
        "repeat: n must be a whole number": lambda n: repeat(tanh, n),
        "batch_size must be a whole number": lambda n: train_epoch(SCORES, losses.mse, OPTIMIZER, batch_size=n),
        "adam: b1 must be a number": lambda n: adam(0.1, b1=n),
        "huber: delta must be a number": losses.huber,
        "sgd: learning_rate must be a number": sgd,
    }.items():
        with refused(name, error=TypeError):
            jax.eval_shape(lambda n, build=build: build(n) and n, jnp.int32(2))


def test_learning_rate_that_is_no_number():
    with refused("adam: learning_rate must be a number", "'0.1'", error=TypeError):
        adam("0.1")
    with refused("sgd: learning_rate must be a number", "int32", error=TypeError):
        sgd(jnp.int32(1))
    assert jax.tree.leaves(sgd(jnp.float32(0.1))) == [jnp.float32(0.1)]


# ---------------------------------------------------------------- parameters of another network


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (mlp([6, K]), ("dense_0/w: expected [4, 5], got [4, 6]", "dense_1/w: expected [5, 3], got [6, 3]")),
        (mlp([5, 5, K]), ("dense_1/w: expected [5, 3], got [5, 5]", "dense_2/w: not expected, got [5, 3]")),
        (mlp([K]), ("dense_0/w: expected [4, 5], got [4, 3]", "dense_1/w: expected [5, 3], missing")),
    ],
    ids=["wider", "deeper", "shallower"],
)
def test_parameters_of_another_architecture(other, says):
    theirs, loss = started(other), losses.softmax_cross_entropy
    says = ("the parameters are not those of this network", "inputs of shape (4,)", *says)
    run = backprop(SCORES, loss)
    for call in (run, jax.jit(run)):
        with refused(*says):
            call(theirs.params, theirs.state, X, LABELS)
    with refused(*says, compiles=False):
        predict(SCORES, theirs, X)
    with refused(*says, compiles=False):
        evaluate(SCORES, loss, theirs, (X, LABELS))
    fit_refuses(SCORES, loss, (X, LABELS), *says, train_state=theirs, key=None)


def test_many_differences_are_counted():
    net, state = mlp([5] * 7 + [K]), started(mlp([6] * 7 + [K]))
    with refused("dense_0/b: expected [5], got [6]", "and 10 more"):
        predict(net, state, X)


def test_parameters_that_a_layer_lacks():
    """Without backprop's check of all parameters the layer itself reports a missing one."""
    params = started(SCORES).params
    for call in (SCORES.forward, jax.jit(SCORES.forward)):
        with refused("layer 'dense_1'", "w and b"):
            call({"dense_0": params["dense_0"]}, (), X)
        with refused("layer 'dense_1'", "w and b", "['w']"):
            call(params | {"dense_1": {"w": params["dense_1"]["w"]}}, (), X)


def test_optimizer_state_of_another_optimizer():
    state = started(SCORES)
    says = ("opt_state is not this optimizer's", "AdamState", "SgdState", "optimizer.init")
    with refused(*says, compiles=False):
        fit(SCORES, losses.mse, adam(0.1), (X, ONE_HOT), train_state=state, epochs=1, batch_size=2)


def test_train_state_that_is_none():
    params = started(SCORES).params
    says = ("train_state must be a TrainState", "fit(...).train_state", "dict")
    with refused(*says, error=TypeError):
        predict(SCORES, params, X)
    fit_refuses(SCORES, losses.mse, (X, ONE_HOT), *says, error=TypeError, train_state=params)


# ---------------------------------------------------------------- names


def test_equal_names():
    for combine in (serial, parallel):
        says = (combine.__name__, "two layers are named", "must differ")
        twice, taken = (named("a", dense(2)), named("a", dense(2))), (dense(2), named("dense_0", dense(2)))
        refused_when_built(lambda: combine(*twice), *says, "'a'")
        refused_when_built(lambda: combine(*taken), *says, "'dense_0'")


@pytest.mark.parametrize("name", ["", "a/b", 3, None])
def test_names_that_are_none(name):
    refused_when_built(lambda: named(name, dense(2)), "named: a name is a non-empty string without '/'", repr(name))


def test_metric_names():
    accuracy, data, loss = jaxnn.metrics.accuracy, (X, LABELS), losses.softmax_cross_entropy
    fit_refuses(SCORES, loss, data, "metrics need names that differ", "accuracy", metrics=[accuracy, accuracy])
    fit_refuses(SCORES, loss, data, "'seconds'", metrics={"seconds": accuracy})


# ---------------------------------------------------------------- keys


init_compiled = jax.jit(lambda key: SCORES.init(key, (D,)))


@pytest.mark.parametrize("seed", [0, np.int64(0), np.uint8(0), jnp.int32(0), jax.random.PRNGKey(0), KEY], ids=repr)
def test_a_seed_will_do_for_a_key(seed):
    expected = started(SCORES).params
    inits = {
        "init_train_state": lambda: init_train_state(SCORES, OPTIMIZER, seed, (D,)).params,
        "net.init": lambda: SCORES.init(seed, (D,))[0],
        "net.init, compiled": lambda: init_compiled(seed)[0],
    }
    for name, init in inits.items():
        ours = init()
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), ours, expected)), name


def test_a_seed_will_do_in_fit_and_in_layers():
    by_seed, by_key = (fitted(SCORES, losses.mse, (X, ONE_HOT), key=key) for key in (0, KEY))
    assert by_seed.history["loss"] == by_key.history["loss"]
    for layer in (dense(2), repeat(dense(D), 2), share(dense(D), 2), residual(dense(D)), parallel(dense(2))):
        ours, theirs = layer.init(0, (D,))[0], layer.init(KEY, (D,))[0]
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), ours, theirs)), layer.kind


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (1.5, "1.5"),
        ("seed", "'seed'"),
        (True, "True"),
        (jnp.float32(1), "float32"),
        (np.zeros(2, np.float32), "float32"),
        (jnp.zeros(3, jnp.uint32), "(3,)"),
        (jax.random.split(KEY, 3), "(3,)"),
    ],
    ids=["float", "string", "bool", "float array", "floats", "three words", "three keys"],
)
def test_nonsense_for_a_key(key, shown):
    says = ("key must be jax.random.key(seed) or an integer seed", shown)
    fit_refuses(SCORES, losses.mse, (X, ONE_HOT), *says, error=TypeError, key=key)
    with refused(*says, error=TypeError):
        init_train_state(SCORES, OPTIMIZER, key, (D,))
    refused_when_built(lambda: SCORES.init(key, (D,)), *says, error=TypeError)
    if isinstance(key, jax.Array):
        with refused(*says, error=TypeError, compiles=False):
            jax.jit(lambda key: SCORES.init(key, (D,)))(key)


def test_a_seed_will_do_in_a_pass():
    """For random layers, whose keys derive from that of the pass."""

    def forward(params, state, x, *, train=False, rng=None):
        return x + jax.random.normal(rng, x.shape) if train else x, state, ()

    noise = jaxnn.Layer("noise", lambda key, in_shape, dtype=None: ({}, ()), forward, lambda p, t, d: (d, {}))
    for net in (serial(noise), parallel(noise), repeat(noise, 2), share(noise, 2)):
        run = backprop(net, losses.mse)
        once = lambda rng, run=run: run({}, (), X, X, rng=rng).output
        outputs = [evaluated(functools.partial(once, rng))() for rng in (0, np.int32(0), KEY)]
        outputs.append(jax.jit(once)(0))
        for output in outputs[1:]:
            np.testing.assert_allclose(output, outputs[0], rtol=1e-6)
        for call in (run, jax.jit(run)):
            with refused("key must be jax.random.key(seed) or an integer seed", "float32", error=TypeError):
                call({}, (), X, X, rng=jnp.float32(0))


def test_key_that_is_missing():
    fit_refuses(SCORES, losses.mse, (X, ONE_HOT), "fit: key is missing", "jax.random.key(seed)", key=None)


# ---------------------------------------------------------------- arguments of the wrong kind


@pytest.mark.parametrize(
    ("data", "shown"),
    [(X, "float32[6, 4]"), ((X,), "tuple of 1"), ((X, LABELS, LABELS, LABELS), "tuple of 4"), (None, "None")],
    ids=["x alone", "one", "four", "none"],
)
def test_data_that_are_no_pair(data, shown):
    says = ("data must be (x, target) or (x, target, weights)", shown)
    fit_refuses(SCORES, losses.mse, data, *says, error=TypeError)
    if data is not None:
        says = ("validation must be (x, target) or (x, target, weights)", shown)
        fit_refuses(SCORES, losses.mse, (X, ONE_HOT), *says, error=TypeError, validation=data)


def test_lists_of_numbers():
    loss = losses.softmax_cross_entropy
    fit_refuses(SCORES, loss, (X.tolist(), LABELS), "data: x", "list", "np.asarray", error=TypeError)
    fit_refuses(SCORES, loss, (X, LABELS.tolist()), "data: target", "list", "np.asarray", error=TypeError)


def test_factories_without_their_parentheses():
    data = (X, ONE_HOT)
    with refused("fit: loss", "Loss", "parentheses", error=TypeError):
        fitted(SCORES, losses.huber, data)
    with refused("fit: optimizer", "parentheses", error=TypeError):
        fit(SCORES, losses.mse, adam, data, key=KEY, epochs=1, batch_size=2)
    with refused("fit: net", "Layer", error=TypeError):
        fitted(tanh, losses.mse, data)
    with refused("serial: expected layers", "parentheses", "flatten()", error=TypeError):
        serial(flatten, dense(2))
    with refused("activation: expected an Activation record", "jaxnn.relu", error=TypeError):
        mlp([5, 1], jnp.tanh)


def test_metrics_that_are_none():
    loss, data = losses.softmax_cross_entropy, (X, LABELS)
    says = ("metrics", "[metric]")
    fit_refuses(SCORES, loss, data, *says, error=TypeError, metrics=jaxnn.metrics.accuracy)
    fit_refuses(SCORES, loss, data, "a metric is a function", error=TypeError, metrics=["accuracy"])
    says = ("metric 'all'", "one value for each example", "(6,)", "(6, 3)")
    fit_refuses(SCORES, loss, data, *says, metrics={"all": lambda prediction, target: prediction})


def test_readings():
    with refused("unknown reading 'norms'", "'deltas'", "'delta_norms'"):
        backprop(SCORES, losses.mse, read=("norms",))
    with refused("read=('deltas',)", error=TypeError):
        backprop(SCORES, losses.mse, read="deltas")
    with refused("autodiff: reads 'deltas' only", "'delta_norms'", "use backprop"):
        jaxnn.autodiff(SCORES, losses.mse, read=("delta_norms",))


def test_state_is_checked_like_the_rest():
    """Changed parameters in a state raise an error with the path."""
    state = started(SCORES)
    params = {**state.params, "dense_1": {**state.params["dense_1"], "b": jnp.zeros(1)}}
    broadcast = TrainState(params, state.state, state.opt_state, state.step, state.key)
    with refused("dense_1/b: expected [3], got [1]"):
        predict(SCORES, broadcast, X)


def test_a_seed_beyond_32_bits():
    """Without x64 JAX would truncate it: the seed 2³² would become the seed 0."""
    for seed in (2**32, -(2**31) - 1):
        with refused("an integer seed must fit in 32 bits", str(seed)):
            init_train_state(SCORES, OPTIMIZER, seed, (D,))
