"""gradcheck.network on the library: every layer and combinator is right, and every planted fault is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from laws import floats
from test_mutants import MUTANTS, ROWS

from jaxnn import dense, gradcheck, losses, named, parallel, repeat, residual, serial, share, tanh
from jaxnn.gradcheck import checking
from jaxnn.gradcheck.programs import Problem
from jaxnn.trees import named_leaves

N = 4

# Each case is two dozen programs: of each test the fast suite runs what compiles quickly and differs most.
QUICK_CASES = ("dense", "batch_norm", "rnn", "conv", "residual")
QUICK_CASES_IN_OTHER_PRECISIONS = ("dense", "softmax")
QUICK_MUTANTS = (
    "dense: one coordinate zeroed",
    "tanh: 1 − h",
    "batch_norm: β's gradient averaged",
    "softmax: without its sum term",
    "dropout: another mask",
    "residual: without its skip",
)


def long_but(quick, rows):
    """The rows as parameters, long unless they are named."""
    assert set(quick) <= {row.name for row in rows}
    return [pytest.param(row, id=row.name, marks=() if row.name in quick else pytest.mark.long) for row in rows]


def point(layer, in_shape, dtype):
    """Parameters, state and inputs [N, …]; not by jax.random, which would compile for every shape."""
    draw = np.random.default_rng(0).normal
    params, state = jax.eval_shape(lambda: layer.init(jax.random.key(0), in_shape, jnp.dtype(dtype)))
    params = jax.tree.map(lambda p: jnp.asarray(0.6 * draw(size=p.shape) + 0.1, p.dtype), params)
    state = jax.tree.map(lambda s: jnp.asarray(1 + 0.3 * np.arange(s.size).reshape(s.shape), s.dtype), state)
    if isinstance(in_shape, jax.ShapeDtypeStruct):
        return params, state, jnp.arange(N * in_shape.size, dtype=in_shape.dtype).reshape(N, *in_shape.shape) % 3
    return params, state, jnp.asarray(draw(size=(N, *in_shape)), dtype)


def check(layer, case, dtype):
    return check_network(serial(named("layer", layer)), case.in_shape, dtype, train=case.train, rng=case.rng)


def check_network(net, in_shape=(3,), dtype="float32", **mode):
    with jax.enable_x64(dtype == "float64"):
        params, state, x = point(net, in_shape, dtype)
        target = jnp.ones(jax.eval_shape(lambda: net.forward(params, state, x)[0]).shape, dtype)
        return gradcheck.network(net, losses.half_squared_error, params, state, x, target, **mode)


@pytest.mark.parametrize("case", long_but(QUICK_CASES, CASES))
def test_every_layer_and_combinator_is_right(case):
    report = check(case.make(), case, "float32")
    assert report.verdict == "right", report
    assert report.wrong == ()


def verdicts(layer, case, dtype):
    """The verdict on each leaf of δ_in and the gradients, without the network around the layer: a third of the time."""
    with jax.enable_x64(dtype == "float64"):
        params, state, x = point(layer, case.in_shape, dtype)
        p_leaves, p_tree = jax.tree.flatten(params)
        free, put = floats(x)

        def forward(leaves, state):
            given = jax.tree.unflatten(p_tree, leaves[len(free) :])
            return layer.forward(given, state, put(leaves[: len(free)]), train=case.train, rng=case.rng)

        def backward(leaves, state, deltas):
            given = jax.tree.unflatten(p_tree, leaves[len(free) :])
            return jax.tree.leaves(layer.backward(given, forward(leaves, state)[2], *deltas))

        y = jax.eval_shape(lambda: forward([*free, *p_leaves], state)[0])
        problem = Problem(
            place="layer",
            kind=layer.kind,
            names=("x", *named_leaves(params))[1 - len(free) :],
            value=lambda leaves, state: [forward(leaves, state)[0]],
            rule=backward,
            leaves=[*free, *p_leaves],
            fixed=state,
            deltas=[jnp.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype)],
        )
        return [row.verdict for row in checking.verdicts([problem])[0]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("case", long_but(QUICK_CASES_IN_OTHER_PRECISIONS, CASES))
def test_every_rule_is_right_in_other_precisions(case, dtype):
    found = verdicts(case.make(), case, dtype)
    assert found
    assert set(found) == {"right"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_wrong_rule_is_wrong_in_other_precisions(dtype):
    assert verdicts(no_bias(dense(4)), ROWS["dense"], dtype) == ["right", "wrong", "right"]


@pytest.mark.parametrize("mutant", long_but(QUICK_MUTANTS, MUTANTS))
def test_every_wrong_rule_is_named(mutant):
    report = check(mutant.make(), ROWS[mutant.row], "float32")
    assert report.verdict == "wrong"
    assert report.wrong == ("layer",), report


# ---------------------------------------------------------------- a deep network


def no_bias(layer):
    def backward(params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return delta_in, {**grads, "b": jnp.zeros_like(grads["b"])}

    return layer._replace(backward=backward)


def no_skip(layer):
    return layer._replace(backward=lambda params, tape, delta: layer.children[0].backward(params, tape, delta))


def zeroed(layer):
    def backward(params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return delta_in, {**grads, "w": grads["w"].at[2, 1].set(0)}

    return layer._replace(backward=backward)


def deep(*, first=dense, body=dense, skip=residual, again=dense, tied=dense, last=dense):
    """Ten layers with parameters, most of them inside combinators."""
    return serial(
        first(4),
        tanh,
        skip(serial(body(4), tanh, dense(4))),
        residual(named("inner", residual(dense(4)))),
        repeat(serial(again(4), tanh), 3),
        share(serial(tied(4), tanh), 2),
        parallel(dense(2), dense(2)),
        last(3),
    )


PLACES = {
    "first": (lambda n: zeroed(dense(n)), "dense_0"),
    "body": (lambda n: no_bias(dense(n)), "residual_0/dense_0"),
    "skip": (lambda layer: no_skip(residual(layer)), "residual_0"),
    "again": (lambda n: no_bias(dense(n)), "repeat_0/dense_0"),
    "tied": (lambda n: no_bias(dense(n)), "share_0/dense_0"),
    "last": (lambda n: no_bias(dense(n)), "dense_1"),
}


@pytest.mark.long  # a deep network with faults is in test_gradcheck_network too
@pytest.mark.parametrize("faults", [(), ("skip",), tuple(PLACES)], ids="+".join)
def test_wrong_layers_of_a_deep_network_are_named(faults):
    report = check_network(deep(**{fault: PLACES[fault][0] for fault in faults}))
    assert set(report.wrong) == {PLACES[fault][1] for fault in faults}
    assert len(report.wrong) == len(faults)
    assert report.ok == (not faults)
    if "first" in faults:
        (row,) = (row for row in report.rows if row.place == "dense_0" and row.verdict == "wrong")
        assert (row.leaf, row.element, row.hand) == ("w", (2, 1), 0.0)
        assert row.differences == pytest.approx(row.autodiff, rel=1e-6)
        assert row.autodiff_ulps < 100 < row.ulps
