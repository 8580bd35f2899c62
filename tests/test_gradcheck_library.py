"""gradcheck on the library itself: whatever is right is judged right in every precision, every planted fault is named.

Many layers stand in one network, since each is judged at its own spot; that wrong ones beside each other are all
named, and nothing else, is asked of gradcheck anyway.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import ACTIVATION_CASES
from cases import COMBINATORS, LEAVES
from laws import variables
from loss_cases import LOSS_CASES
from test_mutants import MUTANTS, ROWS, WRONG_DELTAS, loss_name

from jaxnn import Layer, dense, gradcheck, losses, named, serial

# one worker for a row's three precisions, so that it is made once
ROWS_OF_COMBINATORS = [
    pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(f"gradcheck {case.name}")) for case in COMBINATORS
]
PRECISIONS = ("float64", "float32", "bfloat16")
N = 4


def fit(*shape):
    """Any input as [N, *shape], its numbers taken in turn and moved by constants of both signs."""
    size = math.prod(shape)

    def forward(params, state, x, *, train=False, rng=None):
        flat = x.reshape(x.shape[0], -1)
        taken = flat[:, jnp.arange(size) % flat.shape[1]] + jnp.cos(2 * jnp.arange(size, dtype=x.dtype))
        return taken.reshape(-1, *shape), state, x[:0]

    def backward(params, tape, delta):
        width = math.prod(tape.shape[1:])
        flat = jnp.zeros((delta.shape[0], width), delta.dtype)
        flat = flat.at[:, jnp.arange(size) % width].add(delta.reshape(delta.shape[0], -1))
        return flat.reshape(-1, *tape.shape[1:]), {}

    return Layer("fit", lambda key, in_shape, dtype=jnp.float32: ({}, ()), forward, backward)


def in_a_row(parts):
    """One network of (name, in_shape, layer) parts, and a dense layer at the end."""
    layers = (layer for name, shape, part in parts for layer in (fit(*shape), named(name, part)))
    return serial(*layers, fit(5), dense(2))


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def check(net, dtype):
    params, state = jax.jit(lambda key: net.init(key, (3,)))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (N, 3))
    with jax.enable_x64(dtype == "float64"):
        params, x, target = cast((params, x, jnp.ones((N, 2))), dtype)
        return gradcheck.network(net, losses.mse, params, state, x, target)


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_layer_is_right(dtype):
    report = check(in_a_row([(case.name, case.in_shape, case.make()) for case in LEAVES]), dtype)
    assert report.verdict == "right", str(report)
    assert report.wrong == ()
    judged = {row.place for row in report.rows if row.leaf == "δ_in"}
    assert {case.name for case in LEAVES} <= judged


@functools.cache
def prepared(case):
    net = case.make()
    return net, variables(case, net, jnp.float32)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", ROWS_OF_COMBINATORS)
def test_every_combinator_is_right(case, dtype):
    net, (params, state, x, target, _) = prepared(case)
    with jax.enable_x64(dtype == "float64"):
        params, x, target = cast((params, x, target), dtype)
        report = gradcheck.network(net, losses.mse, params, state, x, target)
    assert report.verdict == "right", str(report)
    assert report.wrong == ()


def test_every_activation_is_right():
    """Each value against its slope, at the kinks too."""
    z = jnp.array([-20.0, -2.5, -0.5, 0.0, 0.5, 2.5, 20.0])

    def values(z):
        return {case.name: case.activation.value(z[case.name]) for case in ACTIVATION_CASES}

    def backward(args, delta):
        slopes = {}
        for case in ACTIVATION_CASES:
            x = args[0][case.name]
            slopes[case.name] = delta[case.name] * case.activation.slope(x, case.activation.value(x))
        return (slopes,)

    args = ({case.name: z for case in ACTIVATION_CASES},)
    report = gradcheck.function(values, args, backward, dtypes=PRECISIONS)
    assert report.verdict == "right", str(report)
    judged = [(row.place, row.leaf) for row in report.rows if row.kind == "gradient"]
    assert sorted(judged) == sorted((p, f"z['{case.name}']") for p in PRECISIONS for case in ACTIVATION_CASES)


def test_every_loss_is_right():
    pairs = {case.name: case.make(jax.random.key(0), jnp.float32) for case in LOSS_CASES}

    def values(y, t):
        return {case.name: case.loss.value(y[case.name], t[case.name]) for case in LOSS_CASES}

    def backward(args, delta):
        y, t = args
        gradients = {}
        for case in LOSS_CASES:  # values are float32 at least, whatever the prediction is
            own = case.loss.delta(y[case.name], t[case.name])
            gradients[case.name] = delta[case.name][:, None].astype(own.dtype) * own
        return gradients, None

    args = tuple({name: pair[i] for name, pair in pairs.items()} for i in range(2))
    report = gradcheck.function(values, args, backward, dtypes=PRECISIONS)
    assert report.verdict == "right", str(report)
    judged = [(row.place, row.leaf) for row in report.rows if row.kind == "gradient"]
    assert sorted(judged) == sorted((p, f"y['{case.name}']") for p in PRECISIONS for case in LOSS_CASES)


# ---------------------------------------------------------------- what is wrong

SMALL = [mutant for mutant in MUTANTS if not ROWS[mutant.row].combinator]
COMBINED = [mutant for mutant in MUTANTS if ROWS[mutant.row].combinator]
SAMPLE = [MUTANTS[i] for i in (0, 5, 6, 11, 20, 26)]  # of every kind


def planted(mutants, dtype):
    """The report on one network with all of them, which must name exactly these."""
    report = check(in_a_row([(mutant.name, ROWS[mutant.row].in_shape, mutant.make()) for mutant in mutants]), dtype)
    assert report.wrong == tuple(mutant.name for mutant in mutants), str(report)
    assert report.verdict == "wrong"
    for row in report.rows:  # every wrong row is a named layer's, or says whose fault it follows from
        if row.verdict == "wrong" and row.place not in report.wrong:
            assert row.place == "the whole pass"
            assert row.why.startswith("follows from"), row
    return {(row.place, row.leaf): row for row in report.rows}


def test_every_wrong_layer_is_named():
    rows = planted(SMALL, "float32")
    zeroed = rows["dense: one coordinate zeroed", "w"]
    assert zeroed.element == (1, 2)
    assert zeroed.hand == 0
    assert abs(zeroed.differences / zeroed.autodiff - 1) < 1e-6
    assert zeroed.why.startswith("1 of 12 elements")
    small = rows["dense: off by one part in 100,000", "w"]
    assert abs(small.hand / small.autodiff - 1 - 1e-5) < 1e-8
    assert abs(small.differences / small.autodiff - 1) < 1e-7
    for name, leaf, words in (
        ("dense: bias dropped", "b", "It is all zeros."),
        ("dense: bias averaged over the batch", "b", "It is 0.25 times jax.grad's, everywhere."),
        ("dense: factor 2", "w", "It is 2 times jax.grad's, everywhere."),
        ("dense: sign", "w", "It is -1 times jax.grad's, everywhere."),
        ("dense: gradient transposed", "w", "It is the transpose of jax.grad's."),
    ):
        assert rows[name, leaf].why.endswith(words), rows[name, leaf]
        others = [row for (place, other), row in rows.items() if place == name and other != leaf]
        assert others
        assert all(row.verdict == "right" for row in others)


@pytest.mark.parametrize("part", [0, 1])
def test_every_wrong_combinator_is_named(part):
    """The combinator and not its layers, whose own rules are right."""
    mutants = COMBINED[part::2]
    rows = planted(mutants, "float32")
    inside = [row for (place, _), row in rows.items() if place.split("/")[0] in {m.name for m in mutants}]
    assert any("/" in row.place for row in inside)
    assert all(row.verdict == "right" for row in inside if "/" in row.place)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_wrong_layers_are_named_in_other_precisions(dtype):
    rows = planted(SAMPLE, dtype)
    zeroed = rows["dense: one coordinate zeroed", "w"]
    assert zeroed.element == (1, 2)
    assert zeroed.hand == 0
    assert abs(zeroed.differences / zeroed.autodiff - 1) < 1e-6


def test_every_mutant_is_checked():
    assert len(SMALL) + len(COMBINED) == len(MUTANTS) >= 38
    assert {mutant.row for mutant in SAMPLE} <= set(ROWS)


@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.name)
def test_every_wrong_loss_is_named(case):
    """On a network of no layers, so that the prediction is x."""
    prediction, target = case.make(jax.random.key(0), jnp.float32)
    net = serial()
    for name, wrong in WRONG_DELTAS[loss_name(case)].items():
        loss = case.loss._replace(delta=lambda y, t, wrong=wrong: wrong(y, t, case.loss.delta(y, t)))
        report = gradcheck.network(net, loss, {}, (), prediction, target)
        assert report.wrong == (loss.name,), f"{name}\n{report}"
        (row,) = (row for row in report.rows if row.kind == "loss")
        assert (row.place, row.leaf, row.verdict) == (loss.name, "δ", "wrong")
        delta = np.asarray(loss.delta(prediction, target))
        np.testing.assert_allclose(row.hand, delta[row.element], rtol=1e-5)
