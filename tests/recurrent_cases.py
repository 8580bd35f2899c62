"""Rows for recurrent layers: `cases.py` has them among the leaf layers and the combinators."""

import itertools

import jax
import jax.numpy as jnp

from jaxnn import Sequences, bidirectional, dense, gru, layer_norm, lstm, rnn, serial, sigmoid, tanh

FEATURES = 2


def framed(layer, initial=()):
    """The layer on x [N, T, D + … + 1], an array as the laws want it.

    Of its columns the first D are the values, the last says by its sign which steps are masked, and those between
    hold the initial state at the first step. `initial` is a tree of widths like the state.
    """
    widths, structure = jax.tree.flatten(initial)
    ends = [FEATURES + sum(widths[:i]) for i in range(len(widths) + 1)]

    def init(key, in_shape, dtype=jnp.float32):
        spec = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
        states = structure.unflatten([spec(width) for width in widths])
        mask = jax.ShapeDtypeStruct(in_shape[:1], jnp.bool_)
        return layer.init(key, Sequences(spec(in_shape[0], FEATURES), mask, states), dtype)

    def forward(params, state, x, *, train=False, rng=None):
        states = structure.unflatten([x[:, 0, a:b] for a, b in itertools.pairwise(ends)])
        read = Sequences(x[..., :FEATURES], ~(x[..., -1] <= 0), states)  # a NaN is not masked
        return layer.forward(params, state, read, train=train, rng=rng)

    def backward(params, tape, delta):
        (values, mask, states), grads = layer.backward(params, tape, delta)
        assert mask == ()
        parts = [values, jnp.zeros_like(values[..., :1])]
        if widths:
            first = jnp.concatenate(jax.tree.leaves(states), axis=-1)[:, None]
            parts.insert(1, jnp.pad(first, ((0, 0), (0, values.shape[1] - 1), (0, 0))))
        return jnp.concatenate(parts, axis=-1), grads

    return layer._replace(init=init, forward=forward, backward=backward, children=(), child_names=(), rebuild=None)


MASKED = {  # what is framed, and the widths of its initial state
    "rnn, masked": (lambda: rnn(3, returns="last"), 3),
    "gru, masked": (lambda: gru(2, returns="values"), 2),
    "lstm, masked": (lambda: lstm(2, returns="last"), (2, 2)),
    "lstm, recomputed": (lambda: lstm(2, returns="values", recompute=True), (2, 2)),
    "bidirectional, masked": (lambda: serial(bidirectional(rnn(2)), bidirectional(lstm(1, returns="last"))), ()),
    "masked, by way of layers that work on each step": (
        lambda: serial(dense(3), tanh, layer_norm(), gru(2, returns="last")),
        (),
    ),
}


def of_masked(name):
    """The row's layer in its frame."""
    make, initial = MASKED[name]
    return framed(make(), initial)


LAYERS = {
    "rnn": (lambda: rnn(3), (3, 2)),
    "rnn, one step": (lambda: rnn(2, sigmoid, returns="last"), (1, 1)),
    "rnn, masked": (lambda: of_masked("rnn, masked"), (4, 6)),
    "gru": (lambda: gru(3, returns="values"), (3, 2)),
    "gru, one unit": (lambda: gru(1, returns="last"), (2, 1)),
    "gru, masked": (lambda: of_masked("gru, masked"), (3, 5)),
    "lstm": (lambda: lstm(2), (3, 2)),
    "lstm, masked": (lambda: of_masked("lstm, masked"), (4, 7)),
    "lstm, recomputed": (lambda: of_masked("lstm, recomputed"), (5, 7)),
}
COMBINED = {
    "bidirectional": (lambda: bidirectional(gru(2)), (3, 2)),
    **{
        name: (lambda name=name: of_masked(name), (3, 3))
        for name in ("bidirectional, masked", "masked, by way of layers that work on each step")
    },
}
