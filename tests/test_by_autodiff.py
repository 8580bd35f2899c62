"""What has no rule by hand: Layer(kind, init, forward), autodiff_twin, Loss(name, value); it says so, and is right."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case
from draws import drawn, normal
from laws import FLOAT64, LAWS, close, evaluated

from jaxnn import (
    Layer,
    Loss,
    autodiff,
    autodiff_twin,
    backprop,
    batch_norm,
    dense,
    dropout,
    fit,
    gradcheck,
    losses,
    named,
    repeat,
    residual,
    serial,
    sgd,
    share,
    tanh,
    with_rules,
)
from jaxnn.arrays import with_rank
from jaxnn.gradcheck.report import COLOURS, NEUTRAL, Report, Row
from jaxnn.twins import OwnLayer

N = 4


def scaled_init(key, in_shape, dtype=jnp.float32):
    return {"a": jnp.ones(in_shape[-1], dtype), "c": jnp.zeros((), dtype)}, ()


def scaled_forward(params, state, x, *, train=False, rng=None):
    return jnp.sin(with_rank(params["a"], x.ndim) * x) + params["c"], state, ()


def sinus():
    return Layer("sinus", scaled_init, scaled_forward)


def noisy_forward(params, state, x, *, train=False, rng=None):
    """In training times a number by chance, and counted."""
    (count,) = state
    if not train:
        return with_rank(params["a"], x.ndim) * x, state, ()
    return with_rank(params["a"], x.ndim) * x * jax.random.uniform(rng, x.shape, x.dtype), (count + 1,), ()


def noisy():
    return Layer("noisy", lambda *args: (scaled_init(*args)[0], (jnp.zeros(()),)), noisy_forward)


def counting():
    """Another function in training, of its state."""

    def forward(params, state, x, *, train=False, rng=None):
        (count,) = state
        return (jnp.tanh(x) * count if train else x), (count + int(train),), ()

    return Layer("counting", lambda key, in_shape, dtype=jnp.float32: ({}, (jnp.zeros((), dtype),)), forward)


def looked_up():
    """A layer of one's own that reads whole numbers."""

    def init(key, in_shape, dtype=jnp.float32):
        return {"table": jnp.ones((3, 2), dtype)}, ()

    def forward(params, state, x, *, train=False, rng=None):
        rows = params["table"].at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows, state, ()

    return Layer("looked_up", init, forward)


def centred(a, x):
    return with_rank(a, x.ndim) * (x - x.mean(0, keepdims=True))


def normed():
    forward = lambda params, state, x, *, train=False, rng=None: (centred(params["a"], x), state, ())
    return Layer("centred", lambda *args: ({"a": scaled_init(*args)[0]["a"]}, ()), forward, couples_batch=True)


CASES = (
    Case("leaf", sinus, (3,)),
    Case("in training, with a state", lambda: serial(counting(), sinus()), (3,), train=True),
    Case("residual", lambda: residual(sinus()), (3,)),
    Case("in repeat", lambda: repeat(serial(dense(3), sinus()), 2), (3,)),
    Case("in share", lambda: share(residual(sinus()), 3), (3,)),
    Case("whole numbers", lambda: serial(looked_up(), sinus()), jax.ShapeDtypeStruct((2,), jnp.int32)),
    Case("coupled", lambda: serial(dense(3, bias=False), normed()), (3,), train=True),
)
LAYERS = {case.name: case.make() for case in CASES}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(f"auto {case.name}")) for case in CASES]
)
def test_laws(case, law):
    law(case, LAYERS[case.name])


def test_it_is_a_record():
    layer = sinus()
    assert layer == sinus()
    assert hash(layer) == hash(sinus())
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert repr(layer) == "Layer('sinus', scaled_init, scaled_forward, backward=jax.vjp)"
    assert layer.by_autodiff
    assert dataclasses.replace(layer) == layer
    assert layer._replace() == layer
    assert not dense(2).by_autodiff
    assert autodiff_twin(dense(2)).by_autodiff
    assert named("in", layer).by_autodiff


def twice(params, state, x, *, train=False, rng=None):
    return 2 * scaled_forward(params, state, x)[0], state, ()


def no_gradients(params, tape, delta):
    return delta, jax.tree.map(jnp.zeros_like, params)


@pytest.mark.parametrize("replace", [dataclasses.replace, OwnLayer._replace])
def test_replaced(replace):
    """A new forward takes its derivative with it; a rule by hand is one; without, it is by autodiff again."""
    layer = sinus()
    params, x = {"a": jnp.full(3, 0.7), "c": jnp.ones(())}, jnp.asarray(normal(N, 3))
    other = replace(layer, forward=twice)
    y, _, tape = other.forward(params, (), x)
    grads = other.backward(params, tape, jnp.ones_like(y))[1]
    np.testing.assert_allclose(grads["c"], 2 * N * 3)
    ruled = replace(layer, forward=scaled_forward, backward=no_gradients)
    assert not ruled.by_autodiff
    assert ruled.forward is scaled_forward
    assert not ruled.backward(params, (), x)[1]["a"].any()
    again = replace(ruled, backward=None)
    assert again == layer
    renamed = replace(layer, kind="other")
    with pytest.raises(ValueError, match=r"^other expects δ like its output"):
        renamed.backward(params, renamed.forward(params, (), x)[2], x[:, :1])


def test_train_and_rng_reach_it_and_state_comes_back():
    net = serial(noisy(), dense(2))
    params, state = drawn(net, (3,))
    x, target, rng = normal(N, 3), normal(N, 2), jax.random.key(1)
    for train in (True, False):
        passes = [jax.jit(derive(net, losses.mse, train=train)) for derive in (backprop, autodiff)]
        hand, auto = (jax.tree.map(np.asarray, run(params, state, x, target, rng=rng)) for run in passes)
        close((hand.loss, hand.grads, hand.state), (auto.loss, auto.grads, auto.state), 1e-5, f"train={train}")
        assert hand.state["noisy_0"][0] == state["noisy_0"][0] + train
    other = passes[0](params, state, x, target, rng=jax.random.key(2))
    assert other.loss == hand.loss


def test_under_vmap_and_jit():
    net = repeat(residual(sinus()), 2)
    with jax.enable_x64(True):
        params, state = drawn(net, (3,), "float64")
        x, both = normal(N, 3, dtype="float64"), jax.tree.map(lambda p: np.stack([p, -p]), params)
        run = lambda params: backprop(net, losses.mse)(params, state, x, x).grads
        together, alone = (
            jax.jit(jax.vmap(run))(both),
            [evaluated(run)(jax.tree.map(lambda p, i=i: p[i], both)) for i in (0, 1)],
        )
        for i in (0, 1):
            close(jax.tree.map(lambda g, i=i: g[i], together), alone[i], FLOAT64, f"member {i}")


def test_it_trains():
    net = serial(sinus(), residual(sinus()), dense(2))
    x = normal(64, 3)
    target = np.stack([np.sin(x[:, 0]), x[:, 1]], 1)
    done = fit(net, losses.mse, sgd(0.2), (x, target), key=0, epochs=12, batch_size=16)
    first, last = done.history["loss"][0], done.history["loss"][-1]
    assert last < first / 3


# ---------------------------------------------------------------- gradcheck


def square(prediction, target):
    return ((prediction - target) ** 2).sum(tuple(range(1, prediction.ndim)))


BY_USER = Loss("square", square)


def checked(net, loss=losses.mse, in_shape=(3,)):
    params, state = drawn(net, in_shape)
    state = jax.tree.map(jnp.asarray, state)
    y = jax.eval_shape(lambda: net.forward(params, state, np.zeros((N, *in_shape), np.float32))[0])
    args = jax.tree.map(jnp.asarray, (params, state, normal(N, *in_shape), normal(*y.shape, seed=1)))
    return gradcheck.network(net, loss, *args)


def verdicts(report):
    return {row.place: row.verdict for row in report.rows}


def wrong(layer):
    def backward(params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return delta_in, {**grads, "b": 0 * grads["b"]}

    return with_rules(layer, backward=backward)


def test_what_is_not_judged():
    report = checked(serial(sinus(), autodiff_twin(dense(2)), dense(2)), BY_USER)
    assert report.ok, str(report)
    assert report.verdict == "right"
    assert report.wrong == ()
    assert verdicts(report) == {
        "sinus_0": "by autodiff",
        "dense_0": "by autodiff",
        "dense_1": "right",
        "serial": "right",
        "square": "by autodiff",
        "the whole pass": "right",
    }
    text, page = str(report), report._repr_html_()
    for shown in (text, page):
        assert "3 by autodiff" in shown
        assert "there is no rule: its backward is jax.vjp of forward" in shown
        assert "there is no rule: its delta is jax.grad of value" in shown
    assert text.splitlines()[0].endswith("RIGHT (14 right, 3 by autodiff)")
    assert "–  sinus_0" in text
    assert page.count(f"<td style='color:{NEUTRAL};font-weight:bold'>by autodiff</td>") == 3
    assert f"color:{COLOURS['right']}" in page
    report.raise_if_failed()


def test_a_wrong_neighbour_is_still_named():
    report = checked(serial(sinus(), wrong(dense(2)), sinus()), BY_USER)
    assert not report.ok
    assert report.verdict == "wrong"
    assert report.wrong == ("dense_0",)
    found = verdicts(report)
    assert (found["sinus_0"], found["sinus_1"], found["square"]) == ("by autodiff",) * 3
    assert found["serial"] == "right"
    assert "WRONG: dense_0" in str(report)
    assert {row.why for row in report.rows if row.place == "the whole pass" and row.verdict == "wrong"} == {
        "follows from dense_0"
    }


def test_a_rule_given_later_is_judged():
    layer = sinus()
    right = with_rules(layer, backward=layer.backward)
    assert not right.by_autodiff
    assert with_rules(layer, forward=layer.forward).by_autodiff
    forgets = with_rules(
        layer, backward=lambda p, tape, d: (layer.backward(p, tape, d)[0], no_gradients(p, tape, d)[1])
    )
    report = checked(serial(right, forgets))
    assert report.wrong == ("sinus_1",), str(report)
    assert verdicts(report)["sinus_0"] == "right"


def test_the_verdict_of_a_report():
    row = lambda verdict: Row("place", "kind", "leaf", verdict)
    for given, verdict, ok in (
        (("by autodiff",), "by autodiff", True),
        (("by autodiff", "allowed"), "by autodiff", True),
        (("by autodiff", "right"), "right", True),
        (("by autodiff", "kink"), "kink", True),
        (("by autodiff", "cannot tell"), "cannot tell", False),
        (("by autodiff", "wrong"), "wrong", False),
        ((), "right", True),
    ):
        report = Report("title", tuple(map(row, given)), ())
        assert (report.verdict, report.ok) == (verdict, ok), given
        assert verdict.upper() in str(report)


def test_with_state_and_chance():
    """batch_norm and dropout beside it are judged as ever."""
    net = serial(batch_norm(), sinus(), dropout(0.5), tanh)
    params, state = drawn(net, (3,))
    args = jax.tree.map(jnp.asarray, (params, state, normal(N, 3), normal(N, 3, seed=1)))
    report = gradcheck.network(net, losses.mse, *args, rng=jax.random.key(0))
    assert report.ok, str(report)
    assert verdicts(report)["sinus_0"] == "by autodiff"
    assert verdicts(report)["batch_norm_0"] == "right"
