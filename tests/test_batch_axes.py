"""One example cut out of a batch's tape is that example by itself, in every layer and network; and what that saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from factor_cases import MASK, NETWORKS, SEQUENCES, drawn, only
from laws import FLOAT64, N, close, evaluated, forward, made, variables
from recurrent_cases import FEATURES, MASKED

from jaxnn import (
    Layer,
    Sequences,
    activation,
    autodiff_twin,
    batch_norm,
    dense,
    dropout,
    layer_norm,
    map_layers,
    mlp,
    named,
    parallel,
    repeat,
    reshape,
    residual,
    rnn,
    serial,
    share,
    tanh,
    tapes,
    with_rules,
)
from jaxnn.errors import LayerError
from jaxnn.factors import Factor, generic
from jaxnn.passes.parts import factors_of
from jaxnn.tapes import all_along, one_of

COUPLED = "in training batch norm couples the examples"
WHOLE = {  # where no example can be cut out, and why, by whether it is in training
    **{
        (name, True): COUPLED
        for name in (
            *("batch_norm", "batch_norm over time", "batch_norm, evaluated", "repeat of batch_norm"),
            *("share of batch_norm", "norms and dropout", "norms and dropout, evaluated", "low_precision of a norm"),
        )
    },
    # their insides are cut in `test_sequences_with_masks_and_states`
    **{(name, train): "a record of functions says nothing of its tape" for name in MASKED for train in (False, True)},
}
ROWS = [pytest.param(case, train, id=f"{case.name}{', training' * train}") for case in CASES for train in (False, True)]


def cut_and_masked(layer, params, tape, delta):
    """δ_in and the gradients of each example, by batches of one and by a δ that is 0 but for it."""
    axes = layer.batch_axes(tape)
    assert axes is not None

    def of_one(n):
        cut = layer.backward(params, one_of(tape, axes, n), one_of(delta, all_along(0, delta), n))
        delta_in, grads = layer.backward(params, tape, only(delta, n))
        return cut, (one_of(delta_in, all_along(0, delta_in), n), grads)

    return jax.lax.map(of_one, jnp.arange(N))


def holds(layer, run, *args):
    """One example cut out of tape and δ gives what δ masked to it gives; run(…) -> (tape, δ)."""
    program = evaluated(lambda params, *args: cut_and_masked(layer, params, *run(params, *args)))
    close(*jax.tree.map(np.asarray, program(*args)), FLOAT64, "an example cut out")


@pytest.mark.parametrize(("case", "train"), ROWS)
def test_an_example_cut_out_is_the_example_alone(case, train):
    layer = made(case)
    case = case._replace(train=train, seed=(case.seed or 0) if train else None)
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.dtype("float64"))
        run = lambda params, state, x, delta: (forward(case, layer, params, state, x)[2], delta)
        why = WHOLE.get((case.name, train))
        if why is None:
            holds(layer, run, params, state, x, delta)
            return
        tape = jax.eval_shape(run, params, state, x, delta)[0]
        if why is COUPLED:
            with pytest.raises(LayerError, match="couples the examples of a batch"):
                layer.batch_axes(tape)
        else:
            assert layer.batch_axes(tape) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    make, in_shape = NETWORKS[name]
    net, draw = make(), np.random.default_rng(1)
    with jax.enable_x64(True):
        tokens = isinstance(in_shape, jax.ShapeDtypeStruct)
        x = draw.integers(0, 3, (N, *in_shape.shape)) if tokens else draw.normal(size=(N, *in_shape))
        params, state, delta = drawn(net, in_shape, x.astype("int32") if tokens else x)
        run = lambda params, x, delta: (net.forward(params, state, x)[2], delta)
        holds(net, run, params, x.astype("int32") if tokens else x, delta)


def _framed(name):
    """What a masked row has in its frame, and the states that it reads."""
    make, widths = MASKED[name]
    return make(), jax.tree.map(lambda width: np.random.default_rng(2).normal(size=(N, width)), widths)


OF_SEQUENCES = {
    **{name: (lambda name=name: (SEQUENCES[name](), ())) for name in SEQUENCES},
    **{name: (lambda name=name: _framed(name)) for name in MASKED},
    "repeated": lambda: (repeat(residual(rnn(FEATURES)), 3), ()),
    "beside": lambda: (parallel(serial(dense(2), dropout(0.5)), rnn(3), layer_norm()), ()),
    "truncated": lambda: (rnn(3, truncate=2), np.ones((N, 3))),
}


@pytest.mark.parametrize("name", OF_SEQUENCES)
def test_sequences_with_masks_and_states(name):
    net, initial = OF_SEQUENCES[name]()
    values = np.random.default_rng(1).normal(size=(N, 5, FEATURES))
    with jax.enable_x64(True):
        x = Sequences(values, MASK, initial)
        spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
        params, state, delta = drawn(net, spec, x)
        holds(net, lambda params, x, delta: (net.forward(params, state, x)[2], delta), params, x, delta)


# ---------------------------------------------------------------- what is no layer of the library's


def test_twins_are_cut_unless_they_draw():
    """A combinator's twin is one leaf, whose tape is its input."""
    net = serial(dense(3), batch_norm(), dropout(0.5), residual(repeat(named("own", dense(3)), 2)))
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(N, 4))
        params, _, delta = drawn(net, (4,), x)
        state = net.init(0, (4,))[1]
        own = Layer("own", net.init, net.forward)
        for twin in (autodiff_twin(net), autodiff_twin(autodiff_twin(net)), named("a", autodiff_twin(net))):
            run = lambda params, x, delta, twin=twin: (twin.forward(params, state, x)[2], delta)
            holds(twin, run, params, x, delta)
        run = lambda params, x, delta: (own.forward(params, state, x)[2], delta)
        holds(own, run, params, x, delta)
        tape = autodiff_twin(dropout(0.5)).forward({}, (), x, train=True, rng=jax.random.key(0))[2]
        assert autodiff_twin(dropout(0.5)).batch_axes(tape) is None
        assert serial(dense(3), autodiff_twin(dropout(0.5))).batch_axes({"dense_0": x, "dropout_0": tape}) is None


def test_a_state_of_the_batch_is_not_shared():
    """A layer that remembers its last input: example by example, by a δ that is 0 but for one."""
    init = lambda key, in_shape, dtype=jnp.float32: ({"w": jnp.ones((), dtype)}, jnp.zeros((1, *in_shape), dtype))
    run = lambda params, state, x, *, train=False, rng=None: (params["w"] * x * state, x, ())
    layer = Layer("moving", init, run)
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(N, 3))
        y, _, tape = layer.forward({"w": np.ones(())}, x + 1, x)
        assert layer.batch_axes(tape) is None
        found = layer.factors({"w": np.ones(())}, tape, y)["w"].one_by_one()
        np.testing.assert_allclose(found, (y * x * (x + 1)).sum(1), rtol=FLOAT64)


def _own(backward):
    """A layer around batch norm, as anybody might write it, that says that it couples the batch."""
    inner = batch_norm()
    return Layer("own", inner.init, inner.forward, backward, couples_batch=True)


NORMED = {  # layers without a rule of their own around batch norm, and whether evaluation is known not to couple
    "other rules": (lambda: with_rules(batch_norm(), backward=lambda *args: batch_norm().backward(*args)), True),
    "a network of other rules": (lambda: with_rules(serial(batch_norm(), tanh)), True),
    "its twin": (lambda: autodiff_twin(batch_norm()), True),
    "a network's twin": (lambda: autodiff_twin(serial(dense(3), batch_norm(), tanh)), True),
    "the twin of a loop": (lambda: autodiff_twin(share(residual(batch_norm()), 2)), True),
    "the twin of other rules": (lambda: autodiff_twin(with_rules(batch_norm(), backward=batch_norm().backward)), True),
    "rules of a twin": (lambda: with_rules(autodiff_twin(batch_norm())), True),
    "another forward": (lambda: with_rules(batch_norm(), forward=batch_norm().forward), False),
    "one's own": (lambda: _own(batch_norm().backward), False),
    "one's own without a rule": (lambda: _own(None), False),
}


@pytest.mark.parametrize("name", NORMED)
def test_whether_the_batch_is_coupled_is_asked_of_the_tape(name):
    make, known = NORMED[name]
    layer = make()
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(N, 3))
        params, state, delta = drawn(layer, (3,), x)
        state = jax.tree.map(lambda s: np.linspace(0.5, 1.5, s.size), state)
        for train in (False, True):
            tape = layer.forward(params, state, x, train=train)[2]
            if train or not known:
                with pytest.raises(LayerError, match=f"^{layer.kind} couples the examples of a batch, and has no fact"):
                    layer.factors(params, tape, delta)
                continue
            found = jax.tree.map(lambda f: f.one_by_one(), layer.factors(params, tape, delta), is_leaf=_is_factor)
            alone = [layer.backward(params, tape, only(delta, n))[1] for n in range(N)]
            close(found, jax.tree.map(lambda *leaves: np.stack(leaves), *alone), FLOAT64, "∂Cₙ/∂θ")


def _is_factor(part):
    return isinstance(part, Factor)


@pytest.mark.parametrize("name", ["tied in repeat in share", "both ways", "tokens", "conv, shared", "shared lstm"])
def test_factors_of_twins_are_those_of_the_layers(name):
    """The generic way, in loops and out of them, against the rules of the layers."""
    make, in_shape = NETWORKS[name]
    net = make()
    with jax.enable_x64(True):
        tokens = isinstance(in_shape, jax.ShapeDtypeStruct)
        x = np.random.default_rng(1).normal(size=(N, *getattr(in_shape, "shape", in_shape)))
        x = np.abs(x).astype("int32") if tokens else x
        params, state, delta = drawn(net, in_shape, x)

        def of_each(net, params, x, delta):
            factors = factors_of(net, params, net.forward(params, state, x)[2], delta)
            return jax.tree.map(lambda f: f.one_by_one(), factors, is_leaf=_is_factor)

        both = evaluated(lambda *args: (of_each(map_layers(autodiff_twin, net), *args), of_each(net, *args)))
        close(*jax.tree.map(np.asarray, both(params, x, delta)), FLOAT64, "∂Cₙ/∂θ")


# ---------------------------------------------------------------- what it saves


def test_the_generic_way_is_about_one_backward():
    """XLA counts the body of a loop once: times N it is the work.

    With δ masked the body is a whole backward, which the count shows: N of them.
    """
    n, net = 64, mlp([32, 32, 8], tanh)
    params, state = net.init(0, (16,))
    x, delta = jnp.ones((n, 16)), jnp.ones((n, 8))
    tape = net.forward(params, state, x)[2]

    def flops(f):
        return jax.jit(f).lower(params, tape, delta).compile().cost_analysis()["flops"]

    one = flops(lambda *args: net.backward(*args)[1])
    cut = n * flops(lambda *args: generic(net, *args))
    masked = n * flops(lambda *args: generic(with_rules(net), *args))  # which knows no axes
    assert 0.5 * one < cut < 1.5 * one, (cut, one)
    assert 0.9 * n * one < masked < 1.1 * n * one, (masked, one)


# ---------------------------------------------------------------- planted faults

in_time = rnn.batch_axes


def _other_axis(of):
    """The axes with one off by one where it can be."""
    return lambda layer, tape: jax.tree.map(lambda axis: axis + 1 if axis == 0 else axis - 1, of(layer, tape))


def _with_cut(axes):
    return axes._replace(steps=axes.steps._replace(cut=0))


FAULTS = {
    "a layer's axis": (dense, _other_axis(dense.batch_axes), lambda: dense(2)),
    "one of a norm's arrays": (
        layer_norm,
        lambda layer, tape: tapes.Outline(tape.shape, tape.dtype, 0, 1),
        layer_norm,
    ),
    "an axis of time": (rnn, _other_axis(in_time), lambda: serial(reshape(4, 1), rnn(2))),
    "what is kept of each step": (
        rnn,
        lambda layer, tape: in_time(layer, tape)._replace(kept=all_along(0, tape.kept)),
        lambda: serial(reshape(4, 1), rnn(2)),
    ),
    "a loop forgotten": (
        repeat,
        lambda layer, tape: layer.layer.batch_axes(jax.tree.map(lambda leaf: leaf[0], tape)),
        lambda: repeat(activation(tanh), 4),
    ),
    "a shared array": (batch_norm, lambda layer, tape: type(tape)(0, 0), batch_norm),
    "steps that are cut": (
        rnn,
        lambda layer, tape: _with_cut(in_time(layer, tape)),
        lambda: serial(reshape(4, 1), rnn(2, truncate=2)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_sees_faults(fault, monkeypatch):
    of, wrong, make = FAULTS[fault]
    net = make()
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(N, N))
        params, state, delta = drawn(net, (N,), x)
        state = jax.tree.map(lambda s: np.linspace(0.5, 1.5, s.size), state)
        run = lambda params, x, delta: (net.forward(params, state, x)[2], delta)
        holds(net, run, params, x, delta)
        monkeypatch.setattr(of, "batch_axes", wrong)
        with pytest.raises((AssertionError, ValueError, TypeError)):
            holds(net, run, params, x, delta)
