"""What `run` is given: bad settings, data, states and steps are named before anything compiles; and it is a record."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_training import assert_close

from jaxnn import (
    adam,
    describe,
    from_description,
    init_train_state,
    losses,
    metrics,
    mlp,
    run,
    sgd,
    train_epoch,
    train_step,
)
from jaxnn.stopping import Monitors, early_stopping, keep_best, reduce_on_plateau

N, D, K, BATCH = 10, 2, 3, 4
X = np.linspace(-1, 1, N * D, dtype=np.float32).reshape(N, D)
LABELS = np.arange(N, dtype=np.int32) % K
DATA = X, LABELS
NET, LOSS, RATE = mlp([K]), losses.softmax_cross_entropy, sgd(0.1)
STATE = init_train_state(NET, RATE, 0, (D,))
STEP = train_step(NET, LOSS, RATE)
STOPS, MAXIMISES = early_stopping(2), early_stopping(2, maximise=True)


def own(state, batch):
    return state, {"score": jnp.float32(1)}


def made(step=STEP, **settings):
    return run(step, **({"epochs": 2, "batch_size": BATCH} | settings))


def called(step=STEP, state=STATE, data=DATA, validation=None, monitors=None, **settings):
    return made(step, **settings)(state, data, validation, monitors=monitors)


def returning(new, info=None):
    """A run whose step returns that."""
    return lambda: called(lambda state, batch: (new(state), {} if info is None else info))


def deleted():
    x = jnp.array(X)
    x.delete()
    return x


WIDER = init_train_state(mlp([K + 1]), RATE, 0, (D,))
TWO = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), STATE)
KEPT = Monitors(best=keep_best().init(WIDER))

SETTINGS = {
    "no epochs": (lambda: made(epochs=0), "run: epochs must be at least 1, got 0"),
    "half an epoch": (lambda: made(epochs=1.5), "run: epochs must be a whole number"),
    "no examples": (lambda: made(batch_size=0), "run: batch_size must be at least 1"),
    "shuffle": (lambda: made(shuffle=1), "run: shuffle must be True or False"),
    "recompute": (lambda: made(recompute="yes"), "run: recompute must be True or False"),
    "one metric": (lambda: made(metrics=metrics.accuracy), "metrics=[metric]"),
    "a metric of an own step": (lambda: made(own, metrics=[metrics.accuracy]), "put your step's own into its info"),
    "patience": (lambda: made(stopping=3), "run: stopping must be a machine", "early_stopping(3)"),
    "a factory": (lambda: made(stopping=early_stopping), "parentheses, early_stopping(…)"),
    "maximised loss": (lambda: made(stopping=MAXIMISES), "run: validation_loss is better when smaller"),
    "accuracy": (lambda: made(stopping=STOPS, watch="accuracy"), "run: accuracy is better when greater", "maximise"),
    "nobody watches": (lambda: made(watch="loss"), "run: watch='loss', but nothing reads it", "give stopping"),
    "mixed": (lambda: made(stopping=MAXIMISES, keep=keep_best()), "all must maximise it, or none"),
    "plateau of a step": (lambda: made(own, plateau=reduce_on_plateau()), "keyword argument update_scale"),
    "augment": (lambda: made(augment=3), "augment must be a function (key, x) -> x, got 3"),
    "evaluate": (lambda: made(evaluate=lambda state: {}), "run: evaluate must be a function (train_state, validation)"),
    "no step": (lambda: made(None), "run: step must be a train_step", "got None"),
    "a network": (lambda: made(NET), "run: step must be a train_step", "got the Layer"),
    "an epoch": (lambda: made(train_epoch(NET, LOSS, RATE, batch_size=2)), "run: step must be", "got Epoch("),
    "the class": (lambda: made(train_step), "parentheses, train_step(…)"),
    "one argument": (lambda: made(lambda state: state), "(state, batch) -> (state, info)"),
    "readings": (lambda: made(train_step(NET, LOSS, RATE, read=("deltas",))), "without read and measure"),
    "twice": (lambda: made(dataclasses.replace(STEP, augment=lambda key, x: x), augment=lambda key, x: x), "twice"),
    "a typo": (lambda: made(stoping=STOPS), "stoping"),
    "by position": (lambda: run(STEP, 2, 4), "epochs=2, batch_size=4"),
}
DATA_AND_STATES = {
    "no state": (lambda: called(state=3), "run: train_state must be a TrainState", "got 3"),
    "parameters": (lambda: called(state=STATE.params), "run: train_state must be a TrainState", "got dict"),
    "shuffled, no key": (lambda: called(own, STATE.params), "has no key", "shuffle=False"),
    "key": (lambda: called(state=STATE._replace(key=None)), "run: train_state.key must be a PRNG key"),
    "two states": (lambda: called(state=TWO), "run: train_state contains 2 states", "jax.vmap"),
    "half a step": (lambda: called(state=STATE._replace(step=1.5)), "run: train_state.step must be a whole number"),
    "step −1": (lambda: called(state=STATE._replace(step=-1)), "run: train_state.step must be at least 0"),
    "position": (lambda: called(state=STATE._replace(position=99)), "position 99 lies outside", "_replace(position=0)"),
    "another network": (lambda: called(state=WIDER), "the parameters are not those of this network"),
    "another optimizer": (
        lambda: called(train_step(NET, LOSS, adam(0.1))),
        "run: train_state.opt_state is not this optimizer's: expected AdamState, got SgdState; give train_state._rep",
    ),
    "x alone": (lambda: called(data=X), "run: data must be (x, target)", "float32[10, 2]"),
    "a dict": (lambda: called(data={"x": X, "t": LABELS}), "(data['x'], data['target'])"),
    "batches": (lambda: called(data=[DATA, DATA]), "of all examples", "np.concatenate"),
    "an iterator": (lambda: called(data=iter([DATA])), "run: data must be (x, target)", "np.concatenate"),
    "N": (lambda: called(data=(X, LABELS[1:])), "run: data: the parts differ", "{'x': 10, 'target': 9}"),
    "D": (lambda: called(data=(X[:, :1], LABELS)), "expects 2 features, got x of shape (10, 1)"),
    "labels": (lambda: called(data=(X, LABELS + 1)), "run: data: losses.soft", "are not in 0…2", "target - 1"),
    "NaN": (
        lambda: called(data=(X * np.nan, LABELS)),
        "run: data: x: 20 of 20 values are not finite",
        "jax.jit(run(…)",
    ),
    "weights": (lambda: called(data=(*DATA, -np.ones(N, np.float32))), "run: data: weights", "are negative"),
    "lists": (lambda: called(data=(X.tolist(), LABELS)), "run: data: x", "use np.asarray"),
    "strings": (lambda: called(data=(X, np.array(["a"] * N))), "run: data: target contains strings"),
    "empty": (lambda: called(data=(X[:0], LABELS[:0])), "run: data is empty"),
    "deleted": (lambda: called(data=(deleted(), LABELS)), "run: data: x has been deleted"),
    "B": (lambda: called(batch_size=11), "batch_size must be at most 10, the number of examples, got 11"),
    "validation": (lambda: called(validation=X), "run: validation must be (x, target)"),
    "validation, D": (lambda: called(validation=(X[:, :1], LABELS)), "run: validation: layer 'dense_0' expects 2"),
    "validation, labels": (lambda: called(validation=(X, LABELS + 9)), "run: validation: losses.soft", "0…2"),
    "validation, N": (lambda: called(validation=(X, LABELS[1:])), "run: validation: the parts differ"),
    "metric": (lambda: called(metrics=[lambda y, t: y]), "run: data: metric", "one value for each example"),
    "watch": (lambda: called(stopping=STOPS, watch="lost"), "run: watch must be one of 'loss', got 'lost'"),
    "watch validation": (lambda: called(stopping=STOPS, watch="validation_loss"), "give a validation set"),
    "monitors": (lambda: called(stopping=STOPS, monitors=3), "run: monitors must be Monitors, as in Run.monitors"),
    "no machine": (lambda: called(monitors=Monitors()), "run: monitors are given, but no machine"),
    "monitors of another": (
        lambda: called(keep=keep_best(), monitors=KEPT),
        "run: monitors.best.kept is not like train_state",
        "params/dense_0/b: expected [3], got [4]",
        "monitors._replace(best=None)",
    ),
    "own: N": (lambda: called(own, data=(X, LABELS[1:])), "run: data: the first axis", "data/0': 10", "data/1': 9"),
    "own: lists": (lambda: called(own, data=X.tolist()), "run: data must be an array [N, …]", "use np.asarray"),
    "own: strings": (lambda: called(own, data=np.array(["a"] * N)), "run: data contains strings"),
    "own: nothing": (lambda: called(own, data=()), "run: data must be an array [N, …] or a tree", "got ()"),
    "own: a number": (lambda: called(own, data=(X, jnp.float32(3))), "got Array(3., dtype=float32) at run: data/1"),
    "own: validation": (lambda: called(own, validation=DATA), "run: a validation set needs evaluate=, a function"),
    "own: no validation": (lambda: called(own, evaluate=lambda *_: {}), "run: evaluate needs a validation set"),
}
STEPS = {
    "the state alone": (lambda: called(lambda state, batch: state), "must return a pair (state, info), got TrainState"),
    "nothing": (lambda: called(lambda state, batch: None), "must return a pair (state, info), got NoneType"),
    "parameters": (returning(lambda state: state.params), "the new TrainState first", "got dict"),
    "a number": (returning(lambda state: state, 1.0), "info must be a dict of scalars", "{'loss': loss}", "got 1.0"),
    "a vector": (
        returning(lambda state: state, {"loss": np.ones(3)}),
        "info['loss'] must be a real scalar",
        "float64[3]",
    ),
    "a string": (returning(lambda state: state, {"loss": "low"}), "info['loss'] must be a real scalar", "got 'low'"),
    "None": (returning(lambda state: state, {"loss": None}), "info['loss'] must be a real scalar", "got None"),
    "complex": (returning(lambda state: state, {"loss": np.complex64(1)}), "info['loss'] must be a real scalar"),
    "a name that is taken": (
        returning(lambda state: state, {"weight": 1.0}),
        "no entry of info may be called 'weight'",
    ),
    "structure": (
        returning(lambda state: state._replace(state=(1.0,))),
        "run: the step changes the shapes of train_state.state; a loop carries it",
    ),
    "shape": (
        returning(lambda state: state._replace(params=jax.tree.map(lambda p: p[None], state.params))),
        "the step changes the shapes of train_state.params",
        "dense_0/w: expected [2, 3], got [1, 2, 3]",
    ),
    "dtype": (
        returning(lambda state: state._replace(params=jax.tree.map(lambda p: p.astype("bfloat16"), state.params))),
        "the step changes the type of train_state.params, dense_0/b from float32 to bfloat16",
        "new.astype(old.dtype)",
    ),
    "key": (returning(lambda state: state._replace(key=jax.random.PRNGKey(0))), "the step changes the", "state.key"),
    "concrete": (lambda: called(lambda s, batch: (s, {"a": float(batch[0].sum())})), "needs concrete", "jax.numpy"),
    "which figure": (
        lambda: called(lambda state, batch: (state, {"a": 1.0, "b": 2.0}), stopping=STOPS),
        "run: watch must say which figure is watched; there are 'a', 'b'",
    ),
    "no figure": (lambda: called(lambda state, batch: (state, {}), stopping=STOPS), "none, for info is empty"),
    "evaluate, a number": (
        lambda: called(own, evaluate=lambda *_: 3.0, validation=X),
        "run: evaluate must return a dict of scalars by name, got 3.0",
    ),
    "evaluate, a vector": (
        lambda: called(own, evaluate=lambda *_: {"n": np.ones(2)}, validation=X),
        "run: the figure 'n' of evaluate must be a real scalar",
        "float64[2]",
    ),
    "two of one name": (
        lambda: called(lambda s, b: (s, {"validation_a": 1.0}), evaluate=lambda *_: {"a": 1.0}, validation=X),
        "run: 'validation_a' is a figure of the step and of evaluate",
    ),
}


JITTED = jax.jit(made())


@pytest.mark.parametrize("name", [*SETTINGS, *(f"given {n}" for n in DATA_AND_STATES), *(f"step: {n}" for n in STEPS)])
def test_bad_input_is_named(name):
    table = SETTINGS | {f"given {n}": row for n, row in DATA_AND_STATES.items()}
    call, *says = (table | {f"step: {n}": row for n, row in STEPS.items()})[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert not isinstance(caught.value, (jax.errors.JAXTypeError, jax.errors.JAXIndexError))
    message = str(caught.value)
    assert "train_epoch:" not in message.replace("evaluate and train_epoch", "")
    assert "fit:" not in message
    for words in says:
        assert words in message


def test_what_is_good_is_taken():
    """Lists of arrays, wider types, and whatever needs no other form; the only figure is watched."""
    plain = JITTED(STATE, DATA)
    inside = jax.jit(lambda state: made()(state, [X.astype(np.float64), LABELS.astype(np.int64)]))(
        STATE._replace(step=0, epoch=np.int64(0))
    )
    assert_close(inside, plain, 0)
    score = made(own, stopping=MAXIMISES)(STATE._replace(position=np.int32(0)), [X, {"labels": LABELS}])
    assert score.history["score"].tolist() == [1, 1]
    assert repr(made(lambda s, b: (s, {}))(STATE, X)) == "Run(2 epochs)"


def test_a_bad_value_under_jit_becomes_nan():
    assert np.isnan(JITTED(STATE, (X, LABELS + 1)).history["loss"]).all()


def test_a_run_is_a_record():
    one, other = (made(stopping=early_stopping(3), metrics=[metrics.accuracy]) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != dataclasses.replace(one, epochs=3)
    settings = "epochs=2, batch_size=4, metrics=(accuracy,), stopping=early_stopping(3))"
    assert repr(one) == f"run({STEP!r}, {settings}"
    assert from_description(describe(one)) == one
    with pytest.raises((TypeError, ValueError), match="own"):
        describe(made(own))
    traced = []

    @jax.jit
    def trained(made, state):
        traced.append(made)
        return made(state, DATA)

    for each in (one, other):
        assert trained(each, STATE).history["accuracy"].shape == (2,)
    assert len(traced) == 1


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_on_a_mesh():
    """Data divided along an Explicit axis, with monitors, without jit: the same figures as on one device."""
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    data = jax.device_put((X[:8], LABELS[:8]), NamedSharding(mesh, P("data")))
    watched = made(stopping=STOPS, plateau=reduce_on_plateau(0.5), shards=2)
    result = watched(jax.device_put(STATE, NamedSharding(mesh, P())), data, data)
    assert_close(result, jax.jit(watched)(STATE, (X[:8], LABELS[:8]), (X[:8], LABELS[:8])))
