"""Layers of one's own inside combinators: parameters and state come back as `init` gave them, errors carry the name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from laws import FLOAT64, close

import jaxnn
from jaxnn import (
    Layer,
    activation,
    as_custom_vjp,
    autodiff,
    backprop,
    batch_norm,
    bidirectional,
    dense,
    fit,
    gru,
    losses,
    map_layers,
    parallel,
    relu,
    repeat,
    residual,
    serial,
    sgd,
    share,
    tanh,
)

X = np.random.default_rng(0).normal(size=(4, 3))
TARGET = np.cos(np.arange(12.0)).reshape(4, 3)


def wrapper(inner, name="in"):
    """A layer around another, that keeps the other's parameters and state under a name: as anybody might write it."""

    def init(key, in_shape, dtype=jnp.float32):
        params, state = inner.init(key, in_shape, dtype)
        return {name: params}, (state,)

    def forward(params, state, x, *, train=False, rng=None):
        (state,) = state
        y, state, tape = inner.forward(params[name], state, x, train=train, rng=rng)
        return y, (state,), tape

    def backward(params, tape, delta):
        delta_in, grads = inner.backward(params[name], tape, delta)
        return delta_in, {name: grads}

    return Layer("wrapper", init, forward, backward, inner.couples_batch)


def own(init, forward=lambda params, state, x: (2 * x, state), kind="own"):
    """A layer without parameters, 2x by default."""
    run = lambda params, state, x, *, train=False, rng=None: (*forward(params, state, x), ())
    return Layer(kind, lambda key, in_shape, dtype=jnp.float32: init, run, lambda p, t, delta: (2 * delta, p))


RELU, TANH = activation(relu), activation(tanh)
NETS = {
    "serial": lambda: serial(wrapper(RELU), dense(3), wrapper(TANH)),
    "serial, nested": lambda: serial(serial(wrapper(wrapper(RELU))), wrapper(dense(3))),
    "parallel": lambda: serial(parallel(wrapper(RELU), wrapper(dense(2))), dense(3)),
    "residual": lambda: residual(wrapper(TANH)),
    "residual, skip": lambda: residual(wrapper(TANH), skip=wrapper(dense(3))),
    "repeat": lambda: repeat(serial(dense(3), wrapper(RELU)), 2),
    "share": lambda: share(serial(wrapper(TANH), dense(3)), 2),
    "a state with numbers": lambda: serial(wrapper(batch_norm()), wrapper(TANH)),
    "lists, None and named tuples": lambda: serial(
        own(({"a": [], "b": None}, [()])), own(([], {"c": ()})), own((None, None)), own(({}, ()))
    ),
}
FAST = {"serial", "parallel", "share", "a state with numbers", "lists, None and named tuples"}


def begun(net, dtype=np.float64):
    """Parameters and state in NumPy, with the structure of init."""
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), (3,), dtype))
    draw = np.random.default_rng(1).normal
    fill = lambda leaf: np.asarray(1 + 0.1 * draw(size=leaf.shape), leaf.dtype)
    return jax.tree.map(fill, params), jax.tree.map(fill, state)


@pytest.mark.parametrize("what", [pytest.param(w, marks=[] if w in FAST else [pytest.mark.long]) for w in NETS])
def test_by_hand_is_by_jax(what):
    net = NETS[what]()
    with jax.enable_x64(True):
        params, state = begun(net)

        def run(params, state):
            passes = [derive(net, losses.mse, read=("deltas",)) for derive in (backprop, autodiff)]
            rule = jax.grad(lambda p: losses.mse.value(as_custom_vjp(net)(p, state, X, train=True)[0], TARGET).mean())(
                params
            )
            return [derive(params, state, X, TARGET) for derive in passes], rule

        (hand, auto), rule = jax.tree.map(np.asarray, by_numpy(run)(params, state))
    close(hand, auto, FLOAT64, "backprop vs autodiff")
    close(rule, hand.grads, FLOAT64, "custom_vjp")
    assert jax.tree.structure(hand.grads) == jax.tree.structure(params)
    assert jax.tree.structure(hand.state) == jax.tree.structure(state)


@pytest.mark.parametrize("what", [pytest.param(w, marks=[] if w == "parallel" else [pytest.mark.long]) for w in NETS])
def test_it_trains(what):
    net = NETS[what]()
    x, target = X.astype(np.float32), TARGET.astype(np.float32)
    done = fit(net, losses.mse, sgd(0.01), (x, target), key=0, epochs=1, batch_size=2, validation=(x, target))
    again = fit(net, losses.mse, sgd(0.01), (x, target), key=1, epochs=1, batch_size=2, train_state=done.train_state)
    assert jax.tree.structure(again.train_state) == jax.tree.structure(done.train_state)
    assert np.isfinite(again.history["loss"]).all()


def test_only_nothing_is_left_out():
    """Exactly {} or () says that there is nothing; any other structure is given back as it came."""
    seen = []

    def noting(params, state, x):
        seen.append((params, state))
        return x, state

    for init, entries in (
        (({}, ()), ({}, ())),
        (((), {}), ({}, ())),
        (({"in": {}}, ()), ({"own_0": {"in": {}}}, ())),
        (({}, {"in": ()}), ({}, {"own_0": {"in": ()}})),
        (([], [[]]), ({"own_0": []}, {"own_0": [[]]})),
        ((None, ((),)), ({"own_0": None}, {"own_0": ((),)})),
    ):
        net = serial(own(init, noting))
        params, state = net.init(jax.random.key(0), (3,))
        assert (params, state) == entries, init
        _, new_state, tape = net.forward(params, state, X)
        assert seen[-1] == (({}, ()) if entries == ({}, ()) else init), init
        assert new_state == state
        assert net.backward(params, tape, X)[1] == params


def test_the_same_in_every_combinator():
    in_all = {
        "parallel": (lambda layer: parallel(layer, relu), "wrapper_0"),
        "residual": (lambda layer: residual(layer, skip=tanh), "body"),
        "serial": (serial, "wrapper_0"),
    }
    for name, (make, key) in in_all.items():
        params, state = make(wrapper(RELU)).init(jax.random.key(0), (3,))
        assert (params, state) == ({key: {"in": {}}}, {key: ((),)}), name
    params, state = bidirectional(wrapper(gru(2))).init(jax.random.key(0), (4, 3))
    assert (list(params), list(params["forward"]), state) == (
        ["forward", "backward"], ["in"], {"forward": ((),), "backward": ((),)},
    )  # fmt: skip


def test_a_layer_that_is_careless_about_nothing():
    """{} for () and None for nothing do not change the trees that training carries."""
    layer = own(({}, {}), lambda params, state, x: (2 * x, None))._replace(backward=lambda p, t, d: (2 * d, None))
    net = serial(layer, dense(3))
    params, state = begun(net, np.float32)
    x, target = X.astype(np.float32), TARGET.astype(np.float32)
    out = jax.eval_shape(backprop(net, losses.mse, read=("deltas",)), params, state, x, target)
    assert jax.tree.structure(out.grads) == jax.tree.structure(params)
    assert (state, out.state) == ((), ())


def test_instruments_find_the_layers_within():
    """map_layers leaves a wrapper of one's own alone: its δ is that at its own output."""
    net = NETS["serial"]()
    assert [layer.kind for layer in map_layers(lambda layer: layer, net).children] == ["wrapper", "dense", "wrapper"]
    params, state = begun(net, np.float32)
    x, target = X.astype(np.float32), TARGET.astype(np.float32)
    out = jax.eval_shape(backprop(net, losses.mse, read=("deltas", "delta_norms")), params, state, x, target)
    assert {name: delta.shape for name, delta in out.readings["deltas"].items()} == {
        "wrapper_0": (4, 3), "dense_0": (4, 3), "wrapper_1": (4, 3),
    }  # fmt: skip


# ---------------------------------------------------------------- errors


def raising(error):
    def forward(params, state, x, *, train=False, rng=None):
        raise error

    return Layer("own", lambda *args: ({}, ()), forward, forward)


ERRORS = {
    "KeyError": (KeyError("w"), "layer 'serial_0/own_0': KeyError: 'w'"),
    "IndexError": (IndexError("tuple index out of range"), "layer 'serial_0/own_0': tuple index out of range"),
    "AttributeError": (AttributeError("no attribute 'shape'"), "layer 'serial_0/own_0': no attribute 'shape'"),
    "ZeroDivisionError": (ZeroDivisionError("division by zero"), "layer 'serial_0/own_0': division by zero"),
    "AssertionError": (AssertionError("3 != 4"), "layer 'serial_0/own_0': 3 != 4"),
    "NotImplementedError": (NotImplementedError("not yet"), "layer 'serial_0/own_0': not yet"),
    "ValueError": (ValueError("no"), "layer 'serial_0/own_0': no"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_keep_their_type_and_carry_the_name(name):
    error, says = ERRORS[name]
    net = serial(residual(relu), serial(raising(error)))
    with pytest.raises(type(error)) as caught:
        net.forward({}, (), X.astype(np.float32))
    assert type(caught.value) is type(error)
    assert str(caught.value) == says


def test_names_in_backward_and_init_and_other_combinators():
    missing = lambda tree: tree["nowhere"]
    bad = RELU._replace(backward=lambda params, tape, delta: missing({}), name="bad")
    for net, path in ((serial(bad), "bad"), (parallel(tanh, bad), "bad"), (residual(bad, skip=tanh), "body")):
        x = X.astype(np.float32)
        y, _, tape = net.forward({}, (), x)
        with pytest.raises(KeyError, match=rf"^layer '{path}': KeyError: 'nowhere'$"):
            net.backward({}, tape, y)
    begins = RELU._replace(init=lambda key, in_shape, dtype=None: in_shape[7], name="begins")
    with pytest.raises(IndexError, match=r"^layer 'begins': tuple index out of range$"):
        serial(begins).init(jax.random.key(0), (3,))
    assert jaxnn.errors.LayerError("own", "says").args == ("own says",)
