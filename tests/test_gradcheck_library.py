"""gradcheck.network on the library: every layer and combinator is right, and every planted fault is named."""

import jax
import jax.numpy as jnp
import pytest
from cases import CASES
from test_mutants import MUTANTS, ROWS

from jaxnn import dense, gradcheck, losses, named, parallel, repeat, residual, serial, share, tanh

DTYPES = ("float32", "bfloat16", "float64")
N = 4
IN_EVERY_PRECISION = (  # a check compiles: seconds
    *("dense", "dense, narrow after wide", "softmax", "gelu", "everything"),
    *("batch_norm", "batch_norm, evaluated", "layer_norm", "dropout"),
)
ROWS_AND_DTYPES = [
    (case, dtype) for case in CASES for dtype in DTYPES if dtype == "float32" or case.name in IN_EVERY_PRECISION
]


def check(layer, case, dtype):
    return check_network(serial(named("suspect", layer)), case.in_shape, dtype, train=case.train, rng=case.rng)


def check_network(net, in_shape=(3,), dtype="float32", **mode):
    with jax.enable_x64(dtype == "float64"):
        params, state = net.init(jax.random.key(0), in_shape, jnp.dtype(dtype))
        params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape).astype(p.dtype), params)
        state = jax.tree.map(lambda s: s + 0.3 * jnp.arange(s.size, dtype=s.dtype).reshape(s.shape), state)
        x = jax.random.normal(jax.random.key(1), (N, *in_shape)).astype(dtype)
        target = jnp.ones(jax.eval_shape(lambda: net.forward(params, state, x)[0]).shape, dtype)
        return gradcheck.network(net, losses.half_squared_error, params, state, x, target, **mode)


@pytest.mark.parametrize(("case", "dtype"), ROWS_AND_DTYPES, ids=lambda value: getattr(value, "name", value))
def test_every_layer_and_combinator_is_right(case, dtype):
    report = check(case.make(), case, dtype)
    assert report.verdict == "right", report
    assert report.wrong == ()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_wrong_rule_is_named(mutant):
    report = check(mutant.make(), ROWS[mutant.row], "float32")
    assert report.verdict == "wrong"
    assert report.wrong == ("suspect",), report


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
