"""Combinators of one's own, that compute again or run a loop: readings reach what is within, and so does gradcheck."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn, normal
from laws import FLOAT64, close, evaluated

from jaxnn import (
    Layer,
    Reading,
    autodiff,
    backprop,
    dense,
    gradcheck,
    losses,
    repeat,
    serial,
    share,
    tanh,
)
from jaxnn.combinators.walk import Loop, leaves_of

N = 4
LOSS = losses.half_squared_error
ALL = Reading("all", lambda use: {"delta": use.delta, "kept": use.kept}, keep=lambda use: {"x": use.x})
SUMS = Reading("sums", lambda use: use.grads, finish=lambda noted: jax.tree.map(lambda leaf: leaf.sum(0), noted))


def checkpoint(child):
    """Keeps its input alone, and runs the child's forward again on the way back."""

    def forward(params, state, x, *, train=False, rng=None):
        y, new, _ = child.forward(params, state, x, train=train, rng=rng)
        return y, new, (x, state, rng, jnp.zeros((0, int(train))))

    def backward(params, tape, delta):
        x, state, rng, mode = tape
        _, _, tape = child.forward(params, state, x, train=bool(mode.shape[1]), rng=rng)
        return child.backward(params, tape, delta)

    rebuild = lambda children: checkpoint(*children)
    of = {"children": (child,), "child_names": ("",), "rebuild": rebuild}
    return Layer("checkpoint", child.init, forward, backward, child.couples_batch, **of)


def looped(child, n, **said):
    """The child n times over stacked parameters, in a scan."""

    def init(key, in_shape, dtype=jnp.float32):
        return jax.vmap(lambda key: child.init(key, in_shape, dtype))(jax.random.split(key, n))

    def forward(params, state, x, *, train=False, rng=None):
        def once(x, args):
            y, state, tape = child.forward(*args, x, train=train, rng=rng)
            return y, (state, tape)

        y, (state, tape) = jax.lax.scan(once, x, (params, state))
        return y, state, tape

    def backward(params, tape, delta):
        return jax.lax.scan(lambda delta, args: child.backward(*args, delta), delta, (params, tape), reverse=True)

    rebuild = lambda children: looped(*children, n, **said)
    of = {"children": (child,), "child_names": ("",), "rebuild": rebuild, **said}
    return Layer("looped", init, forward, backward, child.couples_batch, **of)


def wrong(layer):
    """Its gradient of b forgotten."""

    def backward(params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return delta_in, {**grads, "b": jnp.zeros_like(grads["b"])}

    return layer._replace(backward=backward)


OWN = {
    "checkpoint": lambda inner: checkpoint(serial(inner, tanh)),
    "checkpoint in share": lambda inner: share(checkpoint(serial(inner, tanh)), 2),
    "repeat in checkpoint": lambda inner: checkpoint(repeat(serial(inner, tanh), 2)),
    "loop": lambda inner: looped(serial(inner, tanh), 3),
    "loop of checkpoints": lambda inner: looped(checkpoint(serial(inner, tanh)), 2),
}


@pytest.mark.parametrize("what", OWN)
def test_own_combinators(what):
    net = serial(dense(3), OWN[what](dense(3)), dense(2))
    with jax.enable_x64(True):
        params, state = drawn(net, (3,), "float64")
        x, target = normal(N, 3, dtype="float64"), normal(N, 2, seed=1, dtype="float64")
        passes = [derive(net, LOSS, read=("deltas",)) for derive in (backprop, autodiff)]
        hand, auto = (jax.tree.map(np.asarray, evaluated(run)(params, state, x, target)) for run in passes)
        keeping = evaluated(backprop(net, LOSS, read=(ALL,)))(params, state, x, target).readings["all"]
    close(hand, auto, FLOAT64, "by hand and by jax.grad")
    inner = next(place for place in leaves_of(net) if len(place.index) > 1)
    noted = inner.of(jax.tree.map(np.asarray, keeping))
    close(noted["delta"], inner.of(hand.readings["deltas"]), FLOAT64, "δ")
    assert noted["kept"]["x"].shape == noted["delta"].shape


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what == "loop of checkpoints" else [pytest.mark.long]) for what in OWN]
)
def test_gradcheck_names_a_wrong_layer_within(what):
    net = serial(dense(3), OWN[what](wrong(dense(3))), dense(2))
    params, state = drawn(net, (3,))
    args = jax.tree.map(jnp.asarray, (params, state, normal(N, 3), normal(N, 2, seed=1)))
    report = gradcheck.network(net, losses.mse, *args)
    (culprit,) = report.wrong
    assert culprit.endswith("/dense_0"), str(report)
    assert next(row for row in report.rows if row.place == culprit and row.verdict == "wrong").leaf == "b"


def test_own_loops_that_say_so():
    """passes= and stacks= of a user's loop: its uses are found, and `_replace` of the library's keeps them."""
    loops = {
        "own": looped(serial(dense(3), tanh), 2, passes=2, stacks=True),
        "repeat, replaced": (repeat_ := repeat(serial(dense(3), tanh), 2))._replace(backward=repeat_.backward),
        "share, replaced": (share_ := share(serial(dense(3), tanh), 2))._replace(forward=share_.forward),
    }
    for what, net in loops.items():
        stacks = not what.startswith("share")
        assert [place.loops for place in leaves_of(net)] == [(Loop(2, stacks),)] * 2, what
        params, state = drawn(net, (3,))
        x = normal(N, 3)
        out = evaluated(backprop(net, LOSS, read=(SUMS,)))(params, state, x, x)
        close(out.readings["sums"]["dense_0"], jax.tree.map(lambda g: N * g, out.grads["dense_0"]), 1e-5, what)


class twice(Layer):
    """Two uses of one layer, whose gradients are added by the combinator itself."""

    layer: Layer

    @property
    def children(self):
        return (self.layer,)

    def rebuild(self, children):
        return twice(children[0])

    def init(self, key, in_shape, dtype=jnp.float32):
        return self.layer.init(key, in_shape, dtype)

    def forward(self, params, state, x, *, train=False, rng=None):
        h, state, first = self.layer.forward(params, state, x)
        y, state, second = self.layer.forward(params, state, h)
        return y, state, (first, second)

    def backward(self, params, tape, delta):
        delta, second = self.layer.backward(params, tape[1], delta)
        delta, first = self.layer.backward(params, tape[0], delta)
        return delta, jax.tree.map(jnp.add, first, second)


def test_uses_that_a_combinator_adds_are_refused_by_readings():
    """Notes are of one use: adding those of two would be another reading's."""
    net = twice(dense(3))
    params, state = net.init(jax.random.key(0), (3,))
    x = jnp.ones((4, 3))
    plain = backprop(net, losses.mse)(params, state, x, x)
    same = backprop(share(dense(3), 2), losses.mse)(params, state, x, x)
    np.testing.assert_allclose(plain.grads["w"], same.grads["w"], rtol=1e-6)
    with pytest.raises(ValueError, match="readings need share"):
        backprop(net, losses.mse, read=("deltas",))(params, state, x, x)
