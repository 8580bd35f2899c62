"""Factors: one rule per layer, from which sums, single examples and their norms follow, in every network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from factor_cases import MASK, NETWORKS, SEQUENCES, drawn, only
from laws import FLOAT64, N, close, coupled, evaluated, forward, made, variables

from jaxnn import (
    Sequences,
    backprop,
    batch_norm,
    conv,
    dense,
    dropout,
    flatten,
    interfaces,
    layer_norm,
    losses,
    lstm,
    mlp,
    named,
    parallel,
    repeat,
    reshape,
    serial,
    share,
    tanh,
    with_rules,
)
from jaxnn import factors as factors_module
from jaxnn.factors import Explicit, Factor, Outer, Rows, combined, generic
from jaxnn.layers.convolution.windowed import Windowed
from jaxnn.passes import readings
from jaxnn.passes.parts import (
    factors_of,
    forward_pass,
    products,
    recursion,
    seed,
)
from jaxnn.twins import OwnLayer

NORMS = 1e-10
V = np.array([0.5, 0.0, 2.0, 1.5])


def is_factor(part):
    return isinstance(part, Factor)


def of_each(method, factors):
    return jax.tree.map(method, factors, is_leaf=is_factor)


def squared(g):
    return (g**2).reshape(len(g), -1).sum(1)


def alone(net, params, tapes, delta):
    """The gradients of each example by itself: δ of the others is 0."""
    each = [net.backward(params, tapes, only(delta, n))[1] for n in range(N)]
    return jax.tree.map(lambda *grads: jnp.stack(grads), *each)


def read(net, params, state, x, delta, train=False, rng=None):
    """The laws' quantities in one program: (by factors, by backward) for each of them."""
    _, _, tapes = net.forward(params, state, x, train=train, rng=rng)
    factors = factors_of(net, params, tapes, delta)
    weighed = jax.tree.map(lambda d: d * V.reshape(-1, *[1] * (d.ndim - 1)), delta)
    return {
        "sum": (products(factors), net.backward(params, tapes, delta)[1]),
        "weighted": (products(factors, jnp.asarray(V)), net.backward(params, tapes, weighed)[1]),
        "alone": (of_each(lambda f: f.one_by_one(), factors), alone(net, params, tapes, delta)),
        "norms": of_each(lambda f: f.squared_norms(), factors),
    }


def holds(found, couples=False):
    """The laws: sums, weighted sums, single examples, and their norms."""
    found = jax.tree.map(np.asarray, found)
    close(*found["sum"], FLOAT64, "Σ ∂Cₙ/∂θ")
    if not couples:  # δ of one example alone says nothing of the others' costs
        close(*found["weighted"], FLOAT64, "Σ vₙ ∂Cₙ/∂θ")
        close(*found["alone"], FLOAT64, "∂Cₙ/∂θ")
    close(found["norms"], jax.tree.map(squared, found["alone"][0]), NORMS, "‖∂Cₙ/∂θ‖²")
    close(jax.tree.map(lambda g: g.sum(0), found["alone"][0]), found["sum"][0], FLOAT64, "Σₙ of single ones")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_layer(case):
    layer = made(case)
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.dtype("float64"))
        program = evaluated(lambda *args: read(layer, *args, train=case.train, rng=case.rng))
        holds(program(params, state, x, delta), coupled(case, layer))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_of_a_loss_they_are_the_gradients_of_backprop(case):
    """Of costs: products(factors) = ∂(Σ Cₙ)/∂θ, and products(factors, v) those of backprop with weights v."""
    net, loss = made(case), losses.half_squared_error

    def both(params, state, x, target):
        output, _, tapes = forward_pass(net, params, state, x, train=case.train, rng=case.rng)
        factors = factors_of(net, params, tapes, seed(loss, output, target).delta)
        run = backprop(net, loss, train=case.train)
        plain, weighed = (run(params, state, x, target, rng=case.rng, weights=w) for w in (None, jnp.asarray(V)))
        scaled = lambda out: jax.tree.map(lambda g: g * out.weight, out.grads)
        return (products(factors), scaled(plain)), (products(factors, jnp.asarray(V)), scaled(weighed))

    with jax.enable_x64(True):
        plain, weighed = jax.tree.map(np.asarray, evaluated(both)(*variables(case, net, jnp.dtype("float64"))[:4]))
    close(*plain, FLOAT64, "Σ ∂Cₙ/∂θ")
    if not coupled(case, net):
        close(*weighed, FLOAT64, "Σ vₙ ∂Cₙ/∂θ")


# ---------------------------------------------------------------- networks of many kinds


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    make, in_shape = NETWORKS[name]
    net = make()
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        tokens = isinstance(in_shape, jax.ShapeDtypeStruct)
        x = rng.integers(0, 3, (N, *in_shape.shape)) if tokens else rng.normal(size=(N, *in_shape))
        x = x.astype("int32") if tokens else x
        params, state, delta = drawn(net, in_shape, x)
        holds(evaluated(lambda *args: read(net, *args))(params, state, x, delta))


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_with_masks(name):
    net = SEQUENCES[name]()
    values = np.random.default_rng(1).normal(size=(N, 5, 2))
    with jax.enable_x64(True):
        spec = Sequences(jax.ShapeDtypeStruct((5, 2), jnp.float64), jax.ShapeDtypeStruct((5,), jnp.bool_))
        x = Sequences(np.where(MASK[..., None], values, np.nan) if "dense" not in name else values, MASK)
        params, state, delta = drawn(net, spec, x)
        holds(evaluated(lambda *args: read(net, *args))(params, state, x, delta))


def test_dropout_and_norms_in_evaluation():
    net = serial(dense(3), batch_norm(), dropout(0.5), parallel(layer_norm(), mlp([3, 2])))
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(N, 4))
        params, state, delta = drawn(net, (4,), x)
        state = jax.tree.map(lambda s: np.linspace(0.5, 1.5, s.size), state)
        holds(evaluated(lambda *args: read(net, *args))(params, state, x, delta))


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("case", [case for case in CASES if case.make().rebuild is None], ids=lambda case: case.name)
def test_no_layer_of_the_library_takes_the_generic_way(case, monkeypatch):
    layer = made(case)
    if type(layer) is OwnLayer:  # a row that hands masks in
        return

    def refused(layer, params, tape, delta):
        assert not jax.tree.leaves(params), layer
        return {}

    monkeypatch.setattr(interfaces, "generic", refused)
    params, state, x, delta, _ = variables(case, layer, jnp.dtype("float32"))
    tape = jax.eval_shape(lambda *args: forward(case, layer, *args)[2], params, state, x)
    factors = jax.eval_shape(layer.factors, params, tape, delta)
    assert jax.tree.structure(factors, is_leaf=is_factor) == jax.tree.structure(params)


def test_a_vectors_norm_per_example():
    """The square of each example's whole gradient, from the factors."""
    net, loss = serial(dense(4), tanh, share(dense(4), 2), dense(3)), losses.softmax_cross_entropy
    params, state = net.init(jax.random.key(0), (5,))
    x, labels = jax.random.normal(jax.random.key(1), (N, 5)), jnp.arange(N) % 3

    @jax.jit
    def squared_norms(params, x, labels):
        output, _, tapes = forward_pass(net, params, state, x)
        factors = factors_of(net, params, tapes, seed(loss, output, labels).delta)
        each = [factor.squared_norms() for factor in jax.tree.leaves(factors, is_leaf=is_factor)]
        return sum(each, jnp.zeros(len(x)))

    single = lambda x, label: backprop(net, loss)(params, state, x[None], label[None]).grads
    grads = jax.jit(jax.vmap(single))(x, labels)
    expected = sum(squared(g) for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(squared_norms(params, x, labels), expected, rtol=1e-5)


def test_a_delta_that_is_of_no_loss():
    """δ = a column of a root of the loss's Hessian, S with S Sᵀ = diag p − p pᵀ: Σ over columns is the Gauss-Newton."""
    net = serial(dense(3), tanh, dense(3))
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(N, 2))
        params, state, _ = drawn(net, (2,), x)
        output, _, tapes = forward_pass(net, params, state, x)
        p = jax.nn.softmax(output)
        root = jax.vmap(lambda p: jnp.diag(jnp.sqrt(p)) - jnp.outer(p, jnp.sqrt(p)))(p)  # [N, K, column]
        np.testing.assert_allclose(
            root @ root.swapaxes(1, 2), jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p), atol=1e-15
        )
        jacobian = jax.jacrev(lambda params: net.forward(params, state, x)[0])(params)  # [N, K, *θ]
        for column in range(3):
            factors = factors_of(net, params, tapes, root[..., column])
            expected = jax.tree.map(lambda j: jnp.einsum("nk...,nk->n...", j, root[..., column]), jacobian)
            close(of_each(lambda f: f.one_by_one(), factors), expected, FLOAT64, f"column {column}")
            delta_in, grads, notes = recursion(net, params, tapes, root[..., column], ("deltas",))
            close(grads, jax.tree.map(lambda g: g.sum(0), expected), FLOAT64, "the sum")
            np.testing.assert_array_equal(notes["deltas"]["dense_1"], root[..., column])  # to the bit: nothing scales
            assert delta_in.shape == x.shape


def test_uses_are_joined_before_they_are_squared():
    net = share(dense(3), 2)
    params, state = net.init(jax.random.key(0), (3,))
    x = jnp.ones((N, 3))
    y, _, tapes = forward_pass(net, params, state, x)
    factor = factors_of(net, params, tapes, y)["w"]
    assert isinstance(factor, Outer)
    assert factor.d.shape == (N, 2, 3)
    apart = [Outer(factor.a[:, i : i + 1], factor.d[:, i : i + 1]) for i in range(2)]
    assert abs(sum(use.squared_norms() for use in apart) - factor.squared_norms()).min() > 1e-3
    np.testing.assert_allclose(combined(apart).squared_norms(), factor.squared_norms(), rtol=1e-6)


def test_uses_of_different_kinds_are_joined():
    """A kernel used at two sizes, and gradients given as such."""
    rng = np.random.default_rng(0)
    layer, params = conv(2, (2,)), {"w": rng.normal(size=(2, 3, 2)), "b": np.zeros(2)}
    with jax.enable_x64(True):
        uses = []
        for size in (3, 5):
            x = rng.normal(size=(N, size, 3))
            y, _, tape = layer.forward(params, (), x)
            uses.append(layer.factors(params, tape, y)["w"])
        assert all(isinstance(use, Windowed) for use in uses)
        both = combined(uses)
        close(both.one_by_one(), uses[0].one_by_one() + uses[1].one_by_one(), FLOAT64, "both")
        close(combined([both, both]).squared_norms(), 4 * both.squared_norms(), FLOAT64, "twice")
        assert isinstance(both, Explicit)


def test_rows_out_of_the_vocabulary_count_for_nothing():
    d = jnp.arange(8.0).reshape(2, 2, 2)
    for vocabulary in (2, 9):  # by the table and by the Gram matrix
        factor = Rows(jnp.array([[-1, 1], [99, 99]]), d, vocabulary)
        np.testing.assert_allclose(factor.squared_norms(), [13.0, 0.0])
        np.testing.assert_allclose(factor.gradient()[1], [2.0, 3.0])


def test_half_precision_is_summed_in_single():
    layer, params = dense(2), {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    y, _, tape = layer.forward(params, (), jnp.ones((N, 3), jnp.bfloat16))
    for factor in layer.factors(params, tape, y).values():
        assert {part.dtype for part in (factor.gradient(), factor.one_by_one(), factor.squared_norms())} == {
            jnp.dtype("float32")
        }


def test_the_generic_way_and_what_it_refuses():
    coupled = with_rules(batch_norm(), backward=batch_norm().backward)
    net = serial(dense(2), named("norm", coupled))
    params, state = net.init(jax.random.key(0), (3,))
    y, _, tapes = forward_pass(net, params, state, jnp.ones((N, 3)))
    with pytest.raises(ValueError, match=r"layer 'norm' couples the examples of a batch"):
        factors_of(net, params, tapes, y)
    layer = dense(2)
    y, _, tape = layer.forward(params["dense_0"], (), jnp.ones((N, 3)))
    assert isinstance(generic(layer, params["dense_0"], tape, y)["w"], Explicit)
    assert generic(flatten(), {}, (), y) == {}


def test_messages():
    factor = Outer(None, jnp.ones((3, 1, 2)))
    for other in (factor, Explicit(jnp.ones((3, 2)))):
        with pytest.raises(ValueError, match=r"v must have one entry for each of 3 examples, got shape \(1,\)"):
            other.gradient(jnp.ones(1))


# ---------------------------------------------------------------- planted faults


def _forgets_a_use(monkeypatch):
    monkeypatch.setattr(Factor, "joined", lambda self: jax.tree.map(lambda array: array[0], self))


def _adds_norms(monkeypatch):
    squares = Outer.squared_norms

    def apart(self):
        if self.a is None:
            return squares(self)
        return sum(squares(Outer(self.a[:, i : i + 1], self.d[:, i : i + 1])) for i in range(self.d.shape[1]))

    monkeypatch.setattr(Outer, "squared_norms", apart)


def _misses_a_step(monkeypatch):
    factors = lstm.factors
    cut = lambda f: Outer(f.a, f.d.at[:, 1].set(0))
    monkeypatch.setattr(lstm, "factors", lambda *args: of_each(cut, factors(*args)))


def _mixes_up_passes(monkeypatch):
    """The uses within a pass of repeat taken for its passes, which are as many."""
    right = readings.at_owner
    monkeypatch.setattr(readings, "at_owner", lambda finish, noted, loops: right(finish, noted, loops[::-1]))


def _weighs_twice(monkeypatch):
    scaled = factors_module.scaled
    monkeypatch.setattr(factors_module, "scaled", lambda d, v: scaled(scaled(d, v), v))


FAULTS = {
    "a use forgotten": (_forgets_a_use, lambda: share(dense(2), 2)),
    "squares added": (_adds_norms, lambda: share(dense(2), 2)),
    "a step missing": (_misses_a_step, lambda: serial(reshape(2, 1), lstm(2))),
    "passes mixed up": (_mixes_up_passes, lambda: repeat(share(dense(2), 2), 2)),
    "weights squared": (_weighs_twice, lambda: dense(2)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_laws_see_faults(fault, monkeypatch):
    plant, make = FAULTS[fault]
    net = make()
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(N, 2))
        params, state, delta = drawn(net, (2,), x)
        holds(evaluated(lambda *args: read(net, *args))(params, state, x, delta))
        plant(monkeypatch)
        with pytest.raises(AssertionError, match=r"off by|trees differ|has shape"):
            holds(evaluated(lambda *args: read(net, *args))(params, state, x, delta))
