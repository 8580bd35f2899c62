"""Programs exported for every batch size (`jax.export`) agree at two sizes with plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from cases import CASES
from laws import close, made, variables
from loss_cases import LOSS_CASES

from jaxnn import (
    activation,
    as_custom_vjp,
    autodiff,
    backprop,
    conv,
    dense,
    identity,
    losses,
    serial,
    tanh,
)

FEW = {  # one for each way in which N enters a rule
    "dense, narrow after wide",
    "batch_norm",
    "dropout",
    "conv, strides that leave inputs over",
    "embedding over time",
    "lstm, masked",
}
SIZES = (3, 5)
FLOAT32 = 1e-5  # other algorithms of a convolution, other orders of a sum
ROWS = [pytest.param(case, id=case.name, marks=[] if case.name in FEW else [pytest.mark.long]) for case in CASES]


def exported(f, params, state, *batch):
    """The program of f for every batch size, as a jitted function."""
    (n,) = jax.export.symbolic_shape("n")
    spec = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype)
    open_spec = lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype)
    args = (*jax.tree.map(spec, (params, state)), *jax.tree.map(open_spec, batch))
    return jax.jit(jax.export.export(jax.jit(f))(*args).call)


def assert_same(f, params, state, batches, plain):
    program = exported(f, params, state, *batches[0])
    for batch in batches:
        got, expected = (jax.tree.map(np.asarray, run(params, state, *batch)) for run in (program, plain))
        close(got, expected, FLOAT32, f"exported, {len(batch[0])} examples")


def both_modes(case):
    """Forward and backprop, in evaluation and in training."""
    layer, rng = made(case), jax.random.key(3)
    passes = {train: backprop(layer, losses.mse, read=("deltas",), train=train) for train in (False, True)}

    def run(params, state, x, target):
        forwards = [layer.forward(params, state, x, train=train, rng=rng)[:2] for train in passes]
        return forwards, [derive(params, state, x, target, rng=rng) for derive in passes.values()]

    return run


@pytest.mark.parametrize("case", ROWS)
def test_every_layer(case):
    run = both_modes(case)
    params, state, *_ = variables(case, made(case), jnp.dtype("float32"))
    batches = [variables(case, made(case), jnp.dtype("float32"), n=n)[2:4] for n in SIZES]
    assert_same(run, params, state, batches, by_numpy(run))


def test_a_batch_of_one():
    """The running variance is unchanged: v n/(n − 1) is undefined at n = 1."""
    case = next(case for case in CASES if case.name == "batch_norm")
    params, state, *_ = variables(case, made(case), jnp.dtype("float32"))
    train = lambda params, state, x: made(case).forward(params, state, x, train=True)[1]
    x = case.inputs(0, 1, np.float32)
    new = exported(train, params, state, x)(params, state, x)
    np.testing.assert_array_equal(new["var"], state["var"])
    np.testing.assert_allclose(new["mean"], 0.9 * state["mean"] + 0.1 * x[0], rtol=1e-6)


def test_convolutions_that_choose_by_size():
    """For a batch of known size these use other algorithms than XLA's."""
    net = serial(conv(20, (5, 5), padding="valid"), tanh, conv(24, (3, 3)))
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(
        lambda leaf: np.asarray(0.1 * draw(size=leaf.shape), np.float32),
        jax.eval_shape(lambda: net.init(jax.random.key(0), (12, 12, 1)))[0],
    )
    batches = [
        tuple(np.asarray(draw(size=(n, *shape)), np.float32) for shape in ((12, 12, 1), (8, 8, 24))) for n in (2, 260)
    ]
    run = backprop(net, losses.mse)
    assert_same(run, params, (), batches, jax.jit(run))


@pytest.mark.long
def test_every_loss_with_weights_and_without():
    """One program of all losses: value, δ and gradients of the mean."""
    net = activation(identity)

    def run(params, state, weights, *pairs):
        passes = [backprop(net, case.loss, read=("deltas",)) for case in LOSS_CASES]
        return [
            (out.loss, out.readings)
            for w in (None, weights)
            for derive, (y, target) in zip(passes, pairs, strict=True)
            for out in [derive(params, state, y, target, weights=w)]
        ]

    batches = []
    for n in SIZES:
        pairs = [jax.tree.map(np.asarray, case.make(n, np.float32, shape=(n, 4))) for case in LOSS_CASES]
        batches.append((np.arange(n, dtype=np.float32), *pairs))
    assert_same(run, {}, (), batches, by_numpy(run))


def test_the_other_derivation_and_the_custom_rule():
    net = serial(dense(3), tanh)
    params = {"dense_0": {"w": np.cos(np.arange(12, dtype=np.float32)).reshape(4, 3), "b": np.ones(3, np.float32)}}

    def run(params, state, x, target):
        by_rule = jax.grad(lambda p: losses.mse.value(as_custom_vjp(net)(p, state, x)[0], target).sum())(params)
        return autodiff(net, losses.mse, read=("deltas",))(params, state, x, target), by_rule

    draw = np.random.default_rng(0).normal
    batches = [tuple(np.asarray(draw(size=(n, size)), np.float32) for size in (4, 3)) for n in SIZES]
    assert_same(run, params, (), batches, by_numpy(run))
