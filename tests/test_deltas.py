"""A δ that is not like the output is refused by name, with what was expected and what came; nothing is broadcast."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from laws import forward, made, variables

import jaxnn
from jaxnn import (
    Layer,
    Sequences,
    activation,
    as_custom_vjp,
    autodiff_twin,
    backprop,
    bidirectional,
    dense,
    dropout,
    embedding,
    flatten,
    gru,
    losses,
    lstm,
    named,
    parallel,
    relu,
    repeat,
    residual,
    rnn,
    serial,
    share,
)
from jaxnn.types import Outline

FLOAT32 = jnp.dtype("float32")


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def passed(layer, x, train=False, rng=None):
    """The layer's parameters, output and tape, as shapes."""
    in_shape = jax.tree.map(lambda leaf: spec(*leaf.shape[1:], dtype=leaf.dtype), x)

    def run(x):
        params, state = layer.init(jax.random.key(0), in_shape)
        y, _, tape = layer.forward(params, state, x, train=train, rng=rng)
        return params, y, tape

    return jax.eval_shape(run, x)


def back(layer, params, tape, delta):
    """(δ_in, gradients) of backward, as shapes."""
    return jax.eval_shape(layer.backward, params, tape, delta)


def wrong(delta):
    """What is not like δ: broadcast silently, or failed without a word."""
    axes = delta.ndim
    few = [
        np.zeros((1, *delta.shape[1:]), np.float32),
        np.zeros((delta.shape[0], *[1] * (axes - 1)), np.float32),
        np.zeros((), np.float32),
        delta.astype(np.int32),
        (delta,),
    ]
    return [bad for bad in few if getattr(bad, "shape", None) != delta.shape or bad.dtype != delta.dtype]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_layer_refuses(case):
    layer = made(case)
    params, state, x, delta, _ = variables(case, layer, FLOAT32)

    def run(params, state, x):
        _, _, tape = forward(case, layer, params, state, x)
        for bad in wrong(delta):
            with pytest.raises(ValueError, match=r"expects δ like its output, .*float32\[.*, got"):
                layer.backward(params, tape, bad)

    jax.eval_shape(run, params, state, x)


def test_more_that_is_no_delta():
    params, _, tape = passed(dense(3), spec(4, 2))
    delta = np.ones((4, 3), np.float32)
    others = (1.0, delta[None], delta[..., None], delta[:, :2], delta > 0, delta.astype(np.complex64), (), [delta])
    for bad in (*others, Sequences(delta), {"delta": delta}, None, np.ones((5, 3), np.float32)):
        with pytest.raises(ValueError, match=r"^dense expects δ like its output, float32\[4, 3\], got "):
            dense(3).backward(params, tape, bad)


def test_the_message_has_path_and_shapes():
    net = serial(named("encoder", residual(serial(dense(3), relu))), dense(2))
    params, _, tape = passed(net, spec(4, 3))
    with pytest.raises(
        ValueError, match=r"^layer 'dense_0' expects δ like its output, float32\[4, 2\], got float32\[1, 2\]"
    ):
        back(net, params, tape, spec(1, 2))
    inner, _, tape = passed(net.children[0], spec(4, 3))
    with pytest.raises(
        ValueError, match=r"^layer 'relu_0' expects δ like its output, float32\[4, 3\], got int32\[4, 3\]"
    ):
        back(net.children[0], inner, tape, spec(4, 3, dtype=jnp.int32))
    branches = serial(named("both", parallel(named("a", dense(2)), named("b", dense(3)))))
    params, _, tape = passed(branches, spec(4, 3))
    with pytest.raises(
        ValueError, match=r"^layer 'both' expects δ like its output, float32\[4, 5\], got float32\[4, 6\]"
    ):
        back(branches, params, tape, spec(4, 6))


@pytest.mark.parametrize("many", [repeat, share])
def test_within_loops(many):
    net = serial(many(dense(3), 2))
    params, _, tape = passed(net, spec(4, 3))
    with pytest.raises(ValueError, match=rf"^layer '{many.__name__}_0' expects δ like its output, float32\[4, 3\]"):
        back(net, params, tape, spec(4, 1))


def test_another_precision():
    params, _, tape = passed(dense(3), spec(4, 2))
    for dtype in (jnp.bfloat16, jnp.float16):
        with pytest.raises(
            ValueError, match=rf"float32\[4, 3\], got {dtype.__name__}\[4, 3\].*never broadcast or cast"
        ):
            back(dense(3), params, tape, spec(4, 3, dtype=dtype))
    _, tape = jax.eval_shape(lambda x: activation(relu).forward({}, (), x)[::2], spec(4, 2, dtype=jnp.bfloat16))
    with pytest.raises(ValueError, match=r"bfloat16\[4, 2\], got float32\[4, 2\]"):
        back(activation(relu), {}, tape, spec(4, 2))


def test_numpys_float64_is_what_jax_makes_of_it():
    """Without 64-bit types a δ drawn by NumPy is float32 by the time that it is used."""
    layer = activation(relu)
    _, _, tape = layer.forward({}, (), np.ones((2, 3), np.float32))
    assert layer.backward({}, tape, np.ones((2, 3)))[0].shape == (2, 3)


RECURRENT = {  # layer, whether x has a mask, the outputs' form
    "sequence": (gru(3), False, spec(4, 5, 3)),
    "sequence, masked": (gru(3), True, Sequences(spec(4, 5, 3))),
    "values, masked": (rnn(3, returns="values"), True, spec(4, 5, 3)),
    "last": (lstm(3, returns="last"), True, spec(4, 3)),
    "both, one state": (gru(3, returns="both"), True, (spec(4, 5, 3), spec(4, 3))),
    "both, two states": (lstm(3, returns="both"), False, (spec(4, 5, 3), (spec(4, 3), spec(4, 3)))),
    "in both directions, masked": (bidirectional(gru(3)), True, Sequences(spec(4, 5, 6))),
    "step by step": (dense(3), True, Sequences(spec(4, 5, 3))),
    "step by step, in a residual": (residual(dense(2)), True, Sequences(spec(4, 5, 2))),
}


@pytest.mark.parametrize("what", RECURRENT)
def test_the_structure_of_recurrent_outputs(what):
    layer, masked, right = RECURRENT[what]
    x = Sequences(spec(4, 5, 2), spec(4, 5, dtype=jnp.bool_)) if masked else spec(4, 5, 2)
    params, _, tape = passed(layer, x)
    delta_in, _ = back(layer, params, tape, right)
    assert jax.tree.leaves(delta_in)[0].shape == (4, 5, 2)
    others = [form for _, _, form in RECURRENT.values() if jax.tree.structure(form) != jax.tree.structure(right)]
    others += [jax.tree.map(lambda leaf: spec(1, *leaf.shape[1:]), right), jax.tree.map(lambda leaf: spec(), right)]
    for other in others:
        with pytest.raises(ValueError, match="expects δ like its output"):
            back(layer, params, tape, other)


def test_the_mask_has_no_delta():
    params, y, tape = passed(gru(3), Sequences(spec(4, 5, 2), spec(4, 5, dtype=jnp.bool_)))
    with pytest.raises(ValueError, match=r"Sequences\(float32\[4, 5, 3\], \(\), \(\)\), got Sequences\(.*bool\[4, 5\]"):
        back(gru(3), params, tape, y)


def test_an_initial_state_that_is_handed_on_has_one():
    x = Sequences(spec(4, 5, 2), (), spec(4, 3))
    params, _, tape = passed(dense(2), x)
    assert back(dense(2), params, tape, Sequences(spec(4, 5, 2), (), spec(4, 3)))[0].initial.shape == (4, 3)
    for initial in ((), spec(1, 3)):
        with pytest.raises(ValueError, match="dense expects δ like its output"):
            back(dense(2), params, tape, Sequences(spec(4, 5, 2), (), initial))


def test_twins_refuse_too():
    twin = autodiff_twin(serial(dense(3), relu))
    params, _, tape = passed(twin, spec(4, 2))
    with pytest.raises(ValueError, match=r"serial expects δ like its output, float32\[4, 3\], got float32\[4, 1\]"):
        back(twin, params, tape, spec(4, 1))


def broken(change):
    """A layer whose rule gives another δ_in than it should."""
    init = lambda key, in_shape, dtype=jnp.float32: ({}, ())
    forward = lambda params, state, x, *, train=False, rng=None: (2 * x, state, ())
    return Layer("broken", init, forward, lambda params, tape, delta: (change(2 * delta), {}))


@pytest.mark.parametrize("change", [lambda d: d[:1], lambda d: d[:, :1], lambda d: d.sum(), lambda d: ()])
def test_deltas_that_are_added_are_alike(change):
    """A wrong rule of one's own is not broadcast where combinators add the δs of an input."""
    for net in (residual(broken(change)), residual(dense(3), skip=broken(change)), parallel(relu, broken(change))):
        params, y, tape = passed(net, spec(4, 3))
        with pytest.raises(ValueError, match=f"{net.kind} adds the δs of its input, which must be alike, got float32"):
            back(net, params, tape, y)


def test_a_rule_that_forgets_an_axis_is_found_by_the_layer_below():
    net = serial(dense(3), broken(lambda d: d.sum(-1, keepdims=True)))
    params, y, tape = passed(net, spec(4, 3))
    with pytest.raises(
        ValueError, match=r"^layer 'dense_0' expects δ like its output, float32\[4, 3\], got float32\[4, 1\]"
    ):
        back(net, params, tape, y)


def test_whole_numbers_have_no_delta():
    params, _, tape = passed(flatten(), spec(4, 2, 3, dtype=jnp.int32))
    assert back(flatten(), params, tape, ())[0] == ()
    with pytest.raises(ValueError, match=r"flatten expects δ like its output, \(\), got float32\[4, 6\]"):
        back(flatten(), params, tape, spec(4, 6))


def test_the_custom_rule_hands_on_what_jax_has_for_no_delta():
    net = serial(dense(2), relu)
    x = Sequences(np.ones((2, 3, 2), np.float32), np.ones((2, 3), bool))
    params = {"dense_0": {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}}
    grads = jax.grad(lambda p: as_custom_vjp(net)(p, (), x)[0].values.sum())(params)
    np.testing.assert_array_equal(grads["dense_0"]["w"], np.full((2, 2), 6))


def test_an_outline_costs_nothing():
    """It survives jit, vmap and scan, has no leaves, and is the empty tuple that a layer without a tape has."""
    x = jnp.ones((2, 3))
    tape = jax.jit(lambda x: dropout(0.5).forward({}, (), x)[2])(x)
    assert (tape.shape, tape.dtype, jax.tree.leaves(tape), tape) == ((2, 3), FLOAT32, [], ())
    assert isinstance(jax.tree.map(lambda leaf: leaf, tape), Outline)
    program = jax.jit(lambda x: dropout(0.5).forward({}, (), x)[2]).lower(x).compile()
    assert not program.cost_analysis().get("flops", 0)


# ---------------------------------------------------------------- parameters that have no gradient


@pytest.mark.parametrize("derive", [backprop, jaxnn.autodiff])
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "uint8"])
def test_parameters_are_real_floats(derive, dtype):
    net = serial(dense(3), relu, dense(2))
    params, _ = jax.eval_shape(lambda: net.init(jax.random.key(0), (4,)))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    params["dense_1"]["b"] = params["dense_1"]["b"].astype(dtype)
    shown = re.escape(f"{derive.__name__}: parameters must be real floats, got {dtype}[2] at 'dense_1/b'")
    with pytest.raises(TypeError, match=shown):
        derive(net, losses.mse)(params, (), np.ones((5, 4), np.float32), np.ones((5, 2), np.float32))


def test_whole_inputs_beside_float_parameters_stay_welcome():
    net = embedding(3, 2)
    params = {"w": np.ones((3, 2), np.float32)}
    out = jax.eval_shape(backprop(net, losses.mse), params, (), spec(4, dtype=jnp.int32), spec(4, 2))
    assert out.grads["w"].shape == (3, 2)
