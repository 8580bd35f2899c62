"""Recurrent layers beyond the laws: values by NumPy and flax, steps, masks, states, truncation, memory, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn, normal
from laws import FLOAT32, FLOAT64, close, evaluated

import jaxnn
from jaxnn import (
    Sequences,
    autodiff,
    backprop,
    bidirectional,
    dense,
    gru,
    lstm,
    named,
    rnn,
    serial,
)
from jaxnn import gru_step as one_gru_step
from jaxnn import lstm_step as one_lstm_step
from jaxnn import rnn_step as one_rnn_step
from jaxnn.losses import half_squared_error, softmax_cross_entropy

N, T, D, H = 3, 5, 2, 4
LENGTHS = np.array([5, 2, 0])
MASK = np.arange(T) < LENGTHS[:, None]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def numpy_rnn(p, state, x):
    return (np.tanh(x @ p["w"] + state[0] @ p["w_h"] + p["b"]),)


def numpy_gru(p, state, x):
    (h,) = state
    (wr, wu, wn), (vr, vu, vn), (br, bu, bn) = (np.split(p[name], 3, -1) for name in ("w", "w_h", "b"))
    r, u = sigmoid(x @ wr + h @ vr + br), sigmoid(x @ wu + h @ vu + bu)
    n = np.tanh(x @ wn + bn + r * (h @ vn + p["b_h"]))
    return ((1 - u) * n + u * h,)


def numpy_lstm(p, state, x):
    h, c = state
    (wi, wf, wg, wo), (vi, vf, vg, vo), (bi, bf, bg, bo) = (np.split(p[name], 4, -1) for name in ("w", "w_h", "b"))
    i, f = sigmoid(x @ wi + h @ vi + bi), sigmoid(x @ wf + h @ vf + bf)
    g, o = np.tanh(x @ wg + h @ vg + bg), sigmoid(x @ wo + h @ vo + bo)
    c = f * c + i * g
    return o * np.tanh(c), c


CELLS = {"rnn": (rnn, numpy_rnn, 1), "gru": (gru, numpy_gru, 1), "lstm": (lstm, numpy_lstm, 2)}
EACH = pytest.mark.parametrize("name", CELLS)


def made(name, **settings):
    """The layer, its parameters, none of them 0, x [N, T, D] and a state as (h,) or (h, c), in NumPy's float64."""
    make, _, parts = CELLS[name]
    layer = make(H, **settings)
    params, _ = drawn(layer, (T, D), "float64")
    state = tuple(normal(N, H, seed=3 + i, dtype="float64") for i in range(parts))
    return layer, params, normal(N, T, D, seed=2, dtype="float64"), state


def as_given(state):
    return state if len(state) > 1 else state[0]


def step_of(name):
    """step(params, state, x) -> state, with the state always a tuple."""
    if name == "lstm":
        return one_lstm_step
    single = {"rnn": one_rnn_step, "gru": one_gru_step}[name]
    return lambda params, state, x: (single(params, state[0], x),)


def passed(layer, params, x, delta_of=jnp.cos):
    """y, δ_in and grads."""

    def both(params, x):
        y, _, tape = layer.forward(params, (), x)
        return y, *layer.backward(params, tape, jax.tree.map(delta_of, y))

    return jax.tree.map(np.asarray, evaluated(both)(params, x))


def output(layer, params, x):
    return jax.tree.map(np.asarray, evaluated(lambda params, x: layer.forward(params, (), x)[0])(params, x))


# ---------------------------------------------------------------- values


@EACH
@pytest.mark.parametrize("masked", [False, True])
def test_forward_is_a_loop_in_numpy(name, masked):
    with jax.enable_x64(True):
        layer, params, x, state = made(name, returns="both")
        values, final = output(layer, params, Sequences(x, MASK if masked else (), as_given(state)))
        now, expected = state, []
        for t in range(T):
            new = CELLS[name][1](params, now, x[:, t])
            now = tuple(np.where(MASK[:, t, None] | (not masked), b, a) for a, b in zip(now, new, strict=True))
            expected.append(now[0])
        close(values, np.stack(expected, axis=1), FLOAT64, name)
        close(final, as_given(now), FLOAT64, name)


@EACH
def test_forward_is_flax(name):
    linen = pytest.importorskip("flax.linen")
    kinds = {"rnn": linen.SimpleCell, "gru": linen.GRUCell, "lstm": linen.OptimizedLSTMCell}
    gates = {"rnn": ("i", "h"), "gru": ("ir iz in", "hr hz hn"), "lstm": ("ii if ig io", "hi hf hg ho")}
    with jax.enable_x64(True):
        layer, _, x, _ = made(name, returns="both")
        cell = kinds[name](H, param_dtype=jnp.float64, dtype=jnp.float64)
        key = jax.random.key(0)
        carry = jax.eval_shape(lambda: cell.initialize_carry(key, x[:, 0].shape))
        carry = jax.tree.map(lambda leaf: np.zeros(leaf.shape), carry)
        draw = np.random.default_rng(1).normal
        theirs = jax.tree.map(
            lambda p: draw(size=p.shape), jax.eval_shape(lambda carry: cell.init(key, carry, x[:, 0]), carry)
        )
        part = theirs["params"]
        side = lambda names, leaf: np.concatenate([part[gate][leaf] for gate in names.split()], axis=-1)
        inputs, states = gates[name]
        params = {"w": side(inputs, "kernel"), "w_h": side(states, "kernel")}
        params["b"] = side(states if name == "lstm" else inputs, "bias")
        if name == "gru":
            params["b_h"] = part["hn"]["bias"]
        outputs, their_step = [], evaluated(cell.apply)
        for t in range(T):
            carry, y = their_step(theirs, carry, x[:, t])
            outputs.append(y)
        values, final = output(layer, params, x)
        close(values, np.stack(outputs, axis=1), FLOAT64, name)
        close(final, carry[::-1] if name == "lstm" else carry, FLOAT64, name)  # flax has (c, h)


@EACH
def test_forward_is_pytorch(name):
    torch = pytest.importorskip("torch")
    kinds = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    with jax.enable_x64(True):
        layer, _, x, _ = made(name, returns="values")
        theirs = kinds[name](D, H, batch_first=True, dtype=torch.float64)
        w, w_h, b, b_h = (p.detach().numpy().copy() for p in theirs.parameters())
        params = {"w": w.T, "w_h": w_h.T, "b": b + b_h}
        if name == "gru":
            params |= {"b": b + np.concatenate([b_h[: 2 * H], np.zeros(H)]), "b_h": b_h[2 * H :]}
        expected = theirs(torch.from_numpy(x))[0].detach().numpy()
        close(output(layer, params, x), expected, FLOAT64, name)


@EACH
def test_steps_are_the_layer(name):
    with jax.enable_x64(True):
        layer, params, x, state = made(name)
        h, step = output(layer, params, Sequences(x, (), as_given(state))), evaluated(step_of(name))
        for t in range(T):
            state = step(params, state, x[:, t])
            close(state[0], h[:, t], FLOAT64, f"step {t}")


def test_what_is_returned():
    with jax.enable_x64(True):
        _, params, x, state = made("lstm")
        read = Sequences(x, MASK, state)
        sequence, values, last, both = (
            output(lstm(H, returns=returns), params, read) for returns in ("sequence", "values", "last", "both")
        )
    assert isinstance(sequence, Sequences)
    assert (sequence.values == values).all()
    assert (sequence.mask == MASK).all()
    assert sequence.initial == ()
    assert (both[0] == values).all()
    assert (last == values[:, -1]).all()
    assert (last == both[1][0]).all()


def test_a_recurrent_layer_begins_as_it_says():
    inits = jax.jit(lambda key: [make(8).init(key, (5, 3)) for make in (lstm, gru)])(jax.random.key(0))
    (params, state), (others, _) = jax.tree.map(np.asarray, inits)
    assert state == ()
    assert params["b"].tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16
    for gate in np.split(params["w_h"], 4, axis=-1):
        assert np.allclose(gate.T @ gate, np.eye(8), atol=1e-5)
    limit = (6 / (3 + 8)) ** 0.5  # Glorot's of one gate
    assert 0.8 * limit < np.abs(params["w"]).max() <= limit
    assert not others["b"].any()


# ---------------------------------------------------------------- masks and states


@EACH
@pytest.mark.parametrize("recompute", [False, True])
def test_a_padded_batch_is_its_sequences_alone(name, recompute):
    """Outputs, δ_in and gradients; what stands in the padding does not matter, NaN neither."""
    with jax.enable_x64(True):
        layer, params, x, state = made(name, returns="last", recompute=recompute)
        spoilt = np.where(MASK[..., None], x, np.nan)
        y, delta_in, grads = passed(layer, params, Sequences(spoilt, MASK, as_given(state)))
        assert delta_in.mask == ()
        assert not delta_in.values[~MASK].any()
        assert (y[2] == state[0][2]).all()  # nothing to read
        for n in (0, 1):
            alone = Sequences(
                x[n : n + 1, : LENGTHS[n]], (), jax.tree.map(lambda s, n=n: s[n : n + 1], as_given(state))
            )
            y_n, delta_n, grads_n = passed(layer, params, alone)
            close(y[n : n + 1], y_n, FLOAT64, "y")
            close(delta_in.values[n, : LENGTHS[n]], delta_n.values[0], FLOAT64, "δ_in")
            close(jax.tree.map(lambda d, n=n: d[n : n + 1], delta_in.initial), delta_n.initial, FLOAT64, "δ₀")
            grads = jax.tree.map(np.subtract, grads, grads_n)
        assert all(np.abs(left).max() < FLOAT64 for left in grads.values())  # the third has no gradient


def test_a_mask_may_have_holes():
    with jax.enable_x64(True):
        layer, params, x, _ = made("gru", returns="last")
        holes = np.array([[True, False, True, True, False]] * N)
        y, delta_in, _ = passed(layer, params, Sequences(x, holes))
        y_dense, delta_dense, _ = passed(layer, params, x[:, [0, 2, 3]])
        close(y, y_dense, FLOAT64, "y")
        close(delta_in.values[:, [0, 2, 3]], delta_dense, FLOAT64, "δ_in")
        assert delta_in.initial == ()


def test_zeros_are_the_state_where_none_is_given():
    with jax.enable_x64(True):
        layer, params, x, state = made("lstm")
        zeros = jax.tree.map(np.zeros_like, state)
        y, delta_in, grads = passed(layer, params, Sequences(x, (), zeros))
        close((y, delta_in.values, grads), passed(layer, params, x), FLOAT64, "no state")


def test_masked_layers_stack():
    """The mask goes from layer to layer: hand = jax.grad, and the padding does not matter to the second either."""
    net = serial(lstm(3), bidirectional(gru(2)), rnn(3, returns="last"), dense(2))
    x = normal(N, T, D, seed=2)
    read = Sequences(x, MASK)
    params, state = drawn(net, jaxnn.shapes.example_shape(read))
    args = (params, state, read, np.ones((N, 2), np.float32))
    hand, auto = (evaluated(f(net, half_squared_error, read=("deltas",)))(*args) for f in (backprop, autodiff))
    close(hand.grads, auto.grads, FLOAT32, "grads")
    close(hand.readings, auto.readings, FLOAT32, "δs")
    spoilt = read._replace(values=np.where(MASK[..., None], x, np.float32(np.nan)))
    close(output(net, params, spoilt), hand.output, FLOAT32, "padding")


def test_bidirectional_is_two_layers():
    with jax.enable_x64(True):
        layer, _, x, _ = made("gru")
        net = bidirectional(layer)
        params, _ = drawn(net, (T, D), "float64")
        y = output(net, params, x)
        there, back = output(layer, params["forward"], x), output(layer, params["backward"], x[:, ::-1])
        close(y, np.concatenate([there, back[:, ::-1]], -1), FLOAT64, "sequence")
        last = bidirectional(gru(H, returns="last"))
        close(output(last, params, x), np.concatenate([there[:, -1], back[:, -1]], -1), FLOAT64, "last")
    begun, _ = jax.jit(lambda key: net.init(key, (T, D)))(jax.random.key(0))
    assert (np.asarray(begun["forward"]["w"]) != np.asarray(begun["backward"]["w"])).any()


@EACH
def test_bidirectional_takes_a_state_for_each_direction(name):
    with jax.enable_x64(True):
        layer, _, x, state = made(name, returns="last")
        net = bidirectional(layer)
        params, _ = drawn(net, (T, D), "float64")
        other = jax.tree.map(np.cos, state)
        y, delta_in, _ = passed(net, params, Sequences(x, (), (as_given(state), as_given(other))))
        y_there, delta_there, _ = passed(layer, params["forward"], Sequences(x, (), as_given(state)))
        y_back, delta_back, _ = passed(layer, params["backward"], Sequences(x[:, ::-1], (), as_given(other)))
        close(y, np.concatenate([y_there, y_back], -1), FLOAT64, "y")
        close(delta_in.initial, (delta_there.initial, delta_back.initial), FLOAT64, "δ₀")


# ---------------------------------------------------------------- truncation and memory


def cut_loop(name, params, state, x, places):
    """h at every step [N, T, H] and the last state; no gradient passes into the steps at `places` from before."""
    outputs = []
    for t in range(x.shape[1]):
        if t in places:
            state = jax.lax.stop_gradient(state)
        state = step_of(name)(params, state, x[:, t])
        outputs.append(state[0])
    return jnp.stack(outputs, axis=1), state


@EACH
@pytest.mark.parametrize(("truncate", "places"), [(2, {1, 3}), (1, {1, 2, 3, 4}), (4, {1}), (5, set())])
def test_truncation_is_stop_gradient(name, truncate, places):
    recompute = truncate == 2  # the two together, too
    with jax.enable_x64(True):
        layer, params, x, state = made(name, returns="values", truncate=truncate, recompute=recompute)
        y, delta_in, grads = passed(layer, params, Sequences(x, (), as_given(state)))

        def cost(params, state, x):
            return jnp.sum(jnp.cos(y) * cut_loop(name, params, state, x, places)[0])

        by_grad = evaluated(jax.grad(cost, argnums=(0, 1, 2)))(params, state, x)
        got = (grads, (delta_in.initial,) if name != "lstm" else delta_in.initial, delta_in.values)
        close(got, by_grad, FLOAT64, "truncated")
        own = jax.grad(lambda x: jnp.sum(jnp.cos(y) * layer.forward(params, (), Sequences(x, (), as_given(state)))[0]))
        close(evaluated(own)(x), by_grad[2], FLOAT64, "jax.grad of forward")


@EACH
def test_a_state_carried_from_chunk_to_chunk_is_the_truncated_sequence(name):
    size = 2
    with jax.enable_x64(True):
        layer, params, x, state = made(name, returns="both")
        x = x[:, :4]
        total = jax.tree.map(np.zeros_like, params)
        carried, outputs = as_given(state), []

        @evaluated
        def chunk(params, read):
            (values, carried), _, tape = layer.forward(params, (), read)
            delta = (jnp.cos(values), jax.tree.map(jnp.zeros_like, carried))
            return values, carried, layer.backward(params, tape, delta)[1]

        for start in (0, size):
            values, carried, grads = chunk(params, Sequences(x[:, start : start + size], (), carried))
            total = jax.tree.map(np.add, total, grads)
            outputs.append(values)
        whole = CELLS[name][0](H, returns="values", truncate=size)
        y, _, grads = passed(whole, params, Sequences(x, (), as_given(state)))
        close(np.concatenate(outputs, 1), y, FLOAT64, "chunks")
        close(total, grads, FLOAT64, "chunks")


@EACH
@pytest.mark.parametrize("returns", ["last", "both"])
def test_recomputing_changes_nothing(name, returns):
    with jax.enable_x64(True):
        layer, params, x, state = made(name, returns=returns)
        again = CELLS[name][0](H, returns=returns, recompute=True)
        read = Sequences(x, MASK, as_given(state))
        close(passed(again, params, read), passed(layer, params, read), FLOAT64, "recompute")


def temporary_bytes(layer, length, n=8, features=4):
    params, state = jax.eval_shape(lambda: layer.init(0, (length, features)))
    x = jax.ShapeDtypeStruct((n, length, features), jnp.float32)

    def step(params, x):
        y, _, tape = layer.forward(params, state, x)
        return layer.backward(params, tape, jnp.cos(y))[1]

    return jax.jit(step).lower(params, x).compile().memory_analysis().temp_size_in_bytes


@EACH
def test_recomputing_takes_a_quarter_of_the_memory(name):
    make = CELLS[name][0]
    plain, again = (temporary_bytes(make(32, returns="last", recompute=r), 1000) for r in (False, True))
    assert again < plain / 4, f"{again:,} against {plain:,} bytes"


@EACH
def test_long_sequences_in_bfloat16_are_nearer_to_float32_than_jax_grad(name):
    """The sums over time are taken in float32: jax.grad takes them in bfloat16."""
    length = 200
    layer = CELLS[name][0](H, returns="values")
    net = serial(named("cell", layer))
    params, _ = drawn(net, (length, D), jnp.bfloat16)
    args = (
        params,
        (),
        normal(8, length, D, seed=1, dtype=jnp.bfloat16),
        normal(8, length, H, seed=2, dtype=jnp.bfloat16),
    )
    widened = jax.tree.map(lambda a: a.astype(np.float32), args)
    exact = evaluated(autodiff(net, half_squared_error))(*widened).grads
    hand, auto = (evaluated(gradient(net, half_squared_error))(*args).grads for gradient in (backprop, autodiff))
    off = lambda grads: max(
        float(np.abs(np.asarray(g, np.float32) - e).max() / np.abs(e).max())
        for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True)
    )
    assert off(hand) < off(auto)


# ---------------------------------------------------------------- with the rest of the house


def test_fit_and_predict_take_sequences():
    """Which of two symbols came first, in sequences of differing length."""
    rng = np.random.default_rng(0)
    labels, lengths = rng.integers(2, size=64, dtype=np.int32), rng.integers(2, 7, size=(64, 1))
    x = normal(64, 6, 1)
    x[:, 0, 0] = 2 * labels - 1
    data = (Sequences(x, np.arange(6) < lengths), labels)
    net = serial(gru(8, returns="last"), dense(2))
    fitted = jaxnn.fit(
        net, softmax_cross_entropy, jaxnn.adam(3e-2), data, key=0, epochs=25, batch_size=16, progress=False
    )
    assert fitted.history["loss"][-1] < 0.2 * fitted.history["loss"][0]
    right = np.asarray(jaxnn.predict(net, fitted.train_state, data[0])).argmax(-1) == labels
    assert right.mean() > 0.9


def test_summary_shows_recurrent_layers():
    text = str(jaxnn.summary(serial(bidirectional(lstm(4)), gru(3, returns="last"), dense(2)), (5, 2), batch_size=None))
    for line in ("bidirectional_0   N × 5 × 8", "  forward (lstm)   N × 5 × 4", "gru_0   ", "N × 3"):
        assert line.split() == [word for word in line.split() if word in text.split()]


@pytest.mark.parametrize("length", [2, 3, 6, 9])
def test_summary_counts_every_step(length):
    """Products of T steps: forward x W + h U; in a step of training those, ζ Uᵀ, xᵀ ζ and hᵀ ζ."""
    features, width, n = 32, 48, 64
    net = serial(rnn(width, returns="last"))
    cost = jaxnn.summary(net, (length, features), batch_size=n).cost
    through = 2 * n * length * width * (features + width)
    assert cost.forward == pytest.approx(through, rel=0.05)  # activations are few beside the products
    assert cost.step == pytest.approx(2 * through + 2 * n * length * width * width, rel=0.05)


# ---------------------------------------------------------------- bad input


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


SEQUENCE = ones(2, 3, 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (ones(2, 0, 1), r"layer 'lstm_0' expects at least one step, got x of shape \(2, 0, 1\)"),
        (ones(2, 3), r"layer 'lstm_0' expects sequences \[N, T, D\], got x of shape \(2, 3\): x\[..., None\]"),
        (ones(2, 3, 4, 1), r"expects sequences \[N, T, D\], got x of shape \(2, 3, 4, 1\): reshape"),
        (ones(2, 3, 2), r"layer 'lstm_0' expects 1 features, got x of shape \(2, 3, 2\)"),
        (ones(2, 3, 1, dtype=np.int32), "expects float features, got int32"),
        (Sequences(SEQUENCE, ones(3, 2, dtype=bool)), r"expects a mask \[N, T\] of shape \(2, 3\), got \(3, 2\)"),
        (Sequences(SEQUENCE, ones(2, 3, dtype=np.int32)), "expects a mask of booleans, got int32: use mask != 0"),
        (Sequences(SEQUENCE, [True]), "expects a mask of shape .*, got list"),
        (Sequences(SEQUENCE, (), ones(2, 4)), r"expects an initial state \(h, c\), a tuple of 2 arrays"),
        (Sequences(SEQUENCE, (), (ones(2, 4),)), r"expects an initial state \(h, c\).*got 1 of them"),
        (
            Sequences(SEQUENCE, (), (ones(2, 4), ones(2, 3))),
            r"layer 'lstm_0' expects an initial c \[N, H\] of shape \(2, 4\), got \(2, 3\)",
        ),
        (Sequences(SEQUENCE, (), (ones(2, 4, dtype=int), ones(2, 4))), "expects an initial h of floats, got int"),
        (Sequences(SEQUENCE, (), (1.0, 2.0)), r"expects an initial h \[N, H\], got float"),
    ],
)
def test_bad_input_is_refused_by_name(x, message):
    net = serial(lstm(4))
    params, state = drawn(net, (3, 1))
    with pytest.raises(ValueError, match=message):
        net.forward(params, state, x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rnn(0), ValueError, "rnn: width must be at least 1, got 0"),
        (lambda: rnn(3, "tanh"), TypeError, "rnn: expected an Activation record such as jaxnn.tanh, got 'tanh'"),
        (lambda: gru(3, returns="all"), ValueError, "gru: returns must be one of 'sequence', .*, got 'all'"),
        (lambda: lstm(3, truncate=0), ValueError, "lstm: truncate must be at least 1, got 0"),
        (lambda: lstm(3, recompute=4), TypeError, "lstm: recompute must be True or False, got 4"),
        (lambda: bidirectional(lstm), TypeError, "expected layers or Activation records"),
        (
            lambda: gru(3, w_init=lambda *_: ones(2)).init(0, (3, 1)),
            ValueError,
            r"gru expects w_init to give \(1, 3\)",
        ),
        (lambda: lstm(3).init(0, (3,)), ValueError, r"lstm expects sequences \[N, T, D\]"),
        (
            lambda: serial(bidirectional(gru(2, returns="both"))).init(0, (3, 1)),
            ValueError,
            "sequences or the last state",
        ),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_anothers_parameters_are_refused():
    params, _ = drawn(lstm(4), (3, 1))
    with pytest.raises(ValueError, match="gru expects parameters w, w_h, b, b_h, got"):
        gru(4).forward(params, (), SEQUENCE)
    with pytest.raises(ValueError, match=r"lstm expects w of shape \(1, 20\), got \(1, 16\)"):
        lstm(5).forward(params, (), SEQUENCE)
    with pytest.raises(ValueError, match=r"lstm expects w_h of shape \(4, 16\), got \(3, 16\)"):
        lstm(4).forward({**params, "w_h": params["w_h"][:3]}, (), SEQUENCE)


def test_bidirectional_wants_a_state_for_each_direction():
    net = bidirectional(gru(2))
    params, _ = drawn(net, (3, 1))
    with pytest.raises(ValueError, match=r"bidirectional expects an initial state \(forwards, backwards\)"):
        net.forward(params, (), Sequences(SEQUENCE, (), ones(2, 2)))
