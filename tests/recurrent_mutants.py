"""Wrong rules of recurrent layers, as (what is wrong, the row of `cases`, rule): `test_mutants.py` has them caught."""

import jax.numpy as jnp

from jaxnn import lstm


def on_tape(change):
    """The right rule on a wrong tape."""
    return lambda layer, params, tape, delta: layer.backward(params, change(tape), delta)


def on_kept(change):
    """The right rule on wrong values of every step."""
    return on_tape(lambda tape: tape._replace(kept=change(*tape.kept)))


def on_steps(change):
    return on_tape(lambda tape: tape._replace(steps=tape.steps._replace(**change(tape.steps))))


def on_params(change):
    """The right rule with wrong parameters."""
    return lambda layer, params, tape, delta: layer.backward({**params, **change(params)}, tape, delta)


def on_delta_out(change):
    """The right rule on a wrong δ."""
    return lambda layer, params, tape, delta: layer.backward(params, tape, change(delta))


def on_back(change):
    """A right rule, what it gives changed."""
    return lambda layer, params, tape, delta: change(*layer.backward(params, tape, delta))


def lstm_step(wrong):
    """The rule of `framed(lstm(…))` with another backward of one step."""

    def backward(layer, params, tape, delta):
        inner = lstm(tape.initial[0].shape[-1], returns="last")
        inner._set(step_back=lambda *args: wrong(*lstm.step_back(*args)))
        delta_in, grads = inner.backward(params, tape, delta)
        right, _ = layer.backward(params, tape, delta)
        states = jnp.concatenate(delta_in.initial, axis=-1)
        right = right.at[..., :2].set(delta_in.values).at[:, 0, 2 : 2 + states.shape[-1]].set(states)
        return right, grads

    return backward


MUTANTS = (
    ("rnn: the first step's δ missing", "rnn", on_delta_out(lambda d: d.at[:, 0].set(0))),
    ("rnn: δ not carried through time", "rnn", on_params(lambda p: {"w_h": jnp.zeros_like(p["w_h"])})),
    ("rnn: U not transposed", "rnn", on_params(lambda p: {"w_h": p["w_h"].T})),
    ("rnn: without the slope", "rnn", on_kept(lambda h, z, new: (h, z, jnp.zeros_like(new)))),
    ("rnn: U's gradient of the new state", "rnn", on_kept(lambda h, z, new: (new, z, new))),
    ("rnn: forwards in time", "rnn", on_delta_out(lambda d: d[:, ::-1])),
    ("rnn: mask ignored", "rnn, masked", on_steps(lambda steps: {"mask": None})),
    ("rnn: mask stops δ", "rnn, masked", on_steps(lambda steps: {"cut": ~steps.mask[..., None]})),
    ("rnn: δ of the initial state dropped", "rnn, masked", on_back(lambda d, grads: (d.at[:, 0, 2:5].set(0), grads))),
    ("gru: reset gate taken as open", "gru", on_kept(lambda h, r, u, n, m: (h, jnp.ones_like(r), u, n, m))),
    ("gru: the update gate of Cho", "gru", on_kept(lambda h, r, u, n, m: (h, r, 1 - u, n, m))),
    ("gru: bias of the state dropped", "gru", on_back(lambda d, g: (d, {**g, "b_h": jnp.zeros_like(g["b_h"])}))),
    ("gru: r and u mixed up", "gru", on_params(lambda p: {"w": jnp.roll(p["w"], 3, axis=-1)})),
    ("lstm: i and f mixed up", "lstm", on_kept(lambda h, c, i, f, g, o: (h, c, f, i, g, o))),
    ("lstm: W's gates in another order", "lstm", on_back(lambda d, g: (d, {**g, "w": jnp.roll(g["w"], 2, axis=-1)}))),
    ("lstm: bias averaged over time", "lstm", on_back(lambda d, g: (d, {**g, "b": g["b"] / 3}))),
    ("lstm: cell path dropped", "lstm, masked", lstm_step(lambda d, x, g: ((d[0], jnp.zeros_like(d[1])), x, g))),
    ("lstm: path through the gates dropped", "lstm, masked", lstm_step(lambda d, x, g: ((0 * d[0], d[1]), x, g))),
    ("lstm: pieces begun from nothing", "lstm, recomputed", on_tape(lambda tape: tape._replace(
        kept=tuple(jnp.zeros_like(s) for s in tape.kept)))),
    ("lstm: initial state of the first piece forgotten", "lstm, recomputed", on_tape(lambda tape: tape._replace(
        initial=tuple(jnp.zeros_like(s) for s in tape.initial)))),
    ("bidirectional: directions mixed up", "bidirectional", on_delta_out(lambda d: jnp.roll(d, 2, axis=-1))),
    ("bidirectional: time not turned back", "bidirectional", on_delta_out(
        lambda d: jnp.concatenate([d[..., :2], d[:, ::-1, 2:]], axis=-1))),
)  # fmt: skip
