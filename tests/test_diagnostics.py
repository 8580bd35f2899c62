"""Diagnoses held against the same figures taken by hand, against unrolled networks, and against known illnesses."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn, normal
from laws import evaluated
from test_training import arrays, assert_close, probe

from jaxnn import (
    Reading,
    activation,
    adam,
    apply_updates,
    autodiff,
    backprop,
    batch_norm,
    dense,
    diagnostics,
    dropout,
    fit,
    flatten,
    init_train_state,
    initializers,
    leaky_relu,
    losses,
    mlp,
    named,
    parallel,
    penalties,
    relu,
    repeat,
    residual,
    serial,
    sgd,
    share,
    sigmoid,
    tanh,
    train_epoch,
    train_step,
)
from jaxnn.diagnostics import (
    diagnose,
    over_time,
    point,
    report,
    report_each,
)
from jaxnn.diagnostics.measures import rms
from jaxnn.optimizers.parts import next_step, with_rate_of

FLOAT32 = 1e-5  # of each figure: a few roundings in sums over up to a thousand entries
N, D, K = 16, 6, 4
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
LABELS = X[:, :K].argmax(1).astype(np.int32)
LOSS = losses.softmax_cross_entropy
RATE = adam(1e-2)


@functools.cache
def started(net):
    return jax.jit(lambda: init_train_state(net, RATE, 0, (D,)))()


@functools.cache
def begun(net, features=30):
    """(params, state) as init draws them, where their sizes are the matter."""
    return numbers(jax.jit(lambda key: net.init(key, (features,)))(jax.random.key(0)))


def numbers(tree):
    """Every leaf but keys in NumPy."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.asarray(leaf), tree)


def looked(*args, **settings):
    """`diagnose` without compiling."""
    with mock.patch.object(point, "_run", lambda diagnosis, *given: evaluated(diagnosis)(*given)):
        return diagnose(*args, **settings)


def of(found, path):
    (row,) = [row for row in found.layers if row.path == path]
    return row


def figures(row):
    return {name: value for name, value in row._asdict().items() if isinstance(value, float)}


def root(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


# ---------------------------------------------------------------- the figures


def test_the_figures_are_those_taken_by_hand():
    net = serial(dense(8), relu, named("mid", dense(5)), sigmoid, batch_norm(), dense(K))
    (params, state), weights = drawn(net, (D,)), np.linspace(0.1, 2, N).astype(np.float32)
    penalty = penalties.l2(0.1)
    run = evaluated(
        lambda params, weights: backprop(net, LOSS, read=("deltas",), penalty=penalty)(
            params, state, X, LABELS, weights=weights
        )
    )
    out = run(params, weights)
    updates, _ = evaluated(lambda grads, params: RATE.update(grads, RATE.init(params), params))(out.grads, params)
    x = X
    found = diagnose(net, LOSS, params, state, X, LABELS, weights=weights, penalty=penalty, optimizer=RATE)
    assert [row.path for row in found.layers] == list(net.child_names)
    assert [row.kind for row in found.layers] == ["dense", "relu", "dense", "sigmoid", "batch_norm", "dense"]
    for row, layer in zip(found.layers, net.children, strict=True):
        own = params.get(row.path, {})
        forward = evaluated(lambda *args, layer=layer: layer.forward(*args, train=True)[0])
        y = forward(own, state.get(row.path, ()), x)
        assert row.output == pytest.approx(root(y), rel=FLOAT32)
        assert row.delta == pytest.approx(root(out.readings["deltas"][row.path]), rel=FLOAT32)
        if own:
            flat = lambda tree, path=row.path: np.concatenate([np.ravel(leaf) for leaf in tree[path].values()])
            assert row.weight == pytest.approx(root(flat(params)), rel=FLOAT32)
            assert row.gradient == pytest.approx(root(flat(out.grads)), rel=FLOAT32)
            assert row.ratio == pytest.approx(root(flat(updates)) / row.weight, rel=FLOAT32)
        else:
            assert (row.weight, row.gradient, row.ratio) == (None, None, None)
        assert (row.gain is None) == (row.kind != "dense")
        assert row.gain is None or row.gain == pytest.approx(root(y) / root(x), rel=FLOAT32)
        x = y


def test_dead_and_saturated_are_counted():
    z = np.array([[-1.0, -1.0, 2.0, 9.0], [-2.0, 1.0, -5.0, 0.0]], np.float32)
    shares = {}
    for function in (relu, leaky_relu(0.1), sigmoid, tanh):
        found = looked(activation(function), losses.mse, {}, (), z, 0 * z)
        shares[function.name] = (found.layers[0].dead, found.layers[0].saturated)
    assert shares == {
        "relu": (0.25, None),  # the first unit alone is 0 for both
        "leaky_relu": (0.0, None),
        "sigmoid": (None, 0.25),  # 9 and −5 are beyond ±4.36
        "tanh": (None, 0.25),  # 2 has a slope of 0.07, 9 and −5 none
    }
    in_time = looked(activation(relu), losses.mse, {}, (), z.reshape(1, 2, 4), 0 * z.reshape(1, 2, 4))
    assert in_time.layers[0].dead == 0.25  # a unit is a feature: all other axes are examples


UNROLLED = {
    "repeat": (repeat, lambda params, i: jax.tree.map(lambda leaf: leaf[i], params)),
    "share": (share, lambda params, i: params),
}


@pytest.mark.parametrize("kind", UNROLLED)
def test_loops_are_diagnosed_as_if_they_were_unrolled(kind):
    loop, part = UNROLLED[kind]
    block = residual(serial(batch_norm(), tanh, dense(D)))
    net = serial(loop(block, 3), dense(K))
    all_params, all_states = drawn(net, (D,))
    name = f"{kind}_0"
    found = looked(net, LOSS, all_params, all_states, X, LABELS, optimizer=sgd(0.1))
    flat = serial(*(named(f"pass{i}", serial(block)) for i in range(3)), dense(K))
    params = {f"pass{i}": {"residual_0": part(all_params[name], i)} for i in range(3)}
    params["dense_0"] = all_params["dense_0"]
    states = {f"pass{i}": {"residual_0": part(all_states[name], i)} for i in range(3)}
    plain = looked(flat, LOSS, params, states, X, LABELS, optimizer=sgd(0.1))
    expected = ["batch_norm_0", "tanh_0", "dense_0"]
    assert [row.path for row in found.layers] == [f"{name}/{p}[{i}]" for i in range(3) for p in expected] + ["dense_0"]
    for ours, theirs in zip(found.layers, plain.layers, strict=True):
        left_out = {"gradient", "ratio"} if kind == "share" else {}
        of_ours, of_theirs = ({k: v for k, v in figures(r).items() if k not in left_out} for r in (ours, theirs))
        assert of_ours == pytest.approx(of_theirs, rel=FLOAT32), ours.path
    if kind == "share":  # one set of parameters: the gradient is the sum over the uses
        out = evaluated(backprop(net, LOSS))(all_params, all_states, X, LABELS)
        total = np.concatenate([np.ravel(leaf) for leaf in out.grads[name]["dense_0"].values()])
        for i in range(3):
            assert of(found, f"{name}/dense_0[{i}]").gradient == pytest.approx(root(total), rel=FLOAT32)


def test_loops_inside_loops():
    net = serial(repeat(share(repeat(dense(D), 2), 3), 4), dense(K))
    params, state = drawn(net, (D,))
    found = diagnose(net, LOSS, params, state, X, LABELS)
    paths = [row.path for row in found.layers]
    assert paths[:3] == ["repeat_0[0][0][0]", "repeat_0[0][0][1]", "repeat_0[0][1][0]"]
    assert len(paths) == 4 * 3 * 2 + 1
    w = params["repeat_0"]
    y, k = X, 0
    for i in range(4):
        for _ in range(3):
            for j in range(2):
                y = y @ w["w"][i, j] + w["b"][i, j]
                assert found.layers[k].output == pytest.approx(root(y), rel=FLOAT32)
                own = np.concatenate([np.ravel(w["w"][i, j]), np.ravel(w["b"][i, j])])
                assert found.layers[k].weight == pytest.approx(root(own), rel=FLOAT32)
                k += 1


def test_branches_and_layers_without_a_float():
    net = serial(flatten(), parallel(dense(3), serial(dense(5), relu)), dense(K))
    found = looked(net, LOSS, *drawn(net, (2, 3)), X.reshape(N, 2, 3), LABELS)
    paths = ["flatten_0", "parallel_0/dense_0", "parallel_0/serial_0/dense_0", "parallel_0/serial_0/relu_0", "dense_0"]
    assert [row.path for row in found.layers] == paths
    assert all(row.output > 0 and row.delta > 0 for row in found.layers)


def test_sizes_whose_squares_are_no_numbers():
    """1e-30 and 1e30 are floats, and their squares are not; two leaves of different sizes are one array."""
    size_of = evaluated(lambda *arrays: rms([*arrays]))
    for size in (1e-30, 1e30):
        a, b = (np.array(entries, np.float32) * np.float32(size) for entries in ([[3, 4]], [0, 0]))
        for run in (size_of, jax.jit(lambda *arrays: rms([*arrays]))):
            assert float(run(a, b)) == pytest.approx(2.5 * size, rel=FLOAT32)
    assert float(size_of(np.zeros(3, np.float32))) == 0
    assert np.isnan(size_of(np.array([np.nan, 1], np.float32)))
    assert np.isinf(size_of(np.array([np.inf, 1], np.float32)))
    rows = np.array([[3, 4], [0, 0]], np.float32)
    np.testing.assert_allclose(evaluated(lambda x: rms([x], 1))(rows), [np.sqrt(12.5), 0], rtol=FLOAT32)
    assert size_of(np.full((4, 1000), 300, np.float16)) == pytest.approx(300)


# ---------------------------------------------------------------- in a step, in an epoch, in fit


# No bias before batch norm: its gradient is 0 but for rounding, of which Adam makes a whole step.
NET = serial(dense(5, bias=False), batch_norm(), tanh, probe(), dense(K))


one_step = evaluated(train_step(NET, LOSS, RATE, measure=True))


@functools.cache
def steps_by_hand(batch, epoch=0):
    state = started(NET)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(state.key, epoch), N))
    found = []
    for k in range(0, N, batch):
        rows = order[k : k + batch]
        state, out = one_step(state, X[rows], LABELS[rows])
        found.append(out.readings["diagnostics"])
    return state, found


def test_looking_changes_nothing():
    state, noisy = started(NET), Reading("tape", lambda use: len(jax.tree.leaves(use.tape)))
    plain, out = evaluated(train_step(NET, LOSS, RATE, read=("deltas",)))(state, X, LABELS)
    after, seen = evaluated(train_step(NET, LOSS, RATE, read=("deltas", noisy), measure=True))(state, X, LABELS)
    assert_close(after, plain)
    assert_close(seen.readings["deltas"], out.readings["deltas"])
    assert seen.readings["tape"]["tanh_0"] == 2  # other readings see the layer's own tape


@pytest.mark.parametrize(("batch", "times", "measured"), [(5, 1, [2]), (3, 2, [2, 4])])
def test_epoch_measures_the_steps_it_says(batch, times, measured):
    """Of 16 examples: 3 full batches and a remainder, or 5, one of which is left over."""
    run = lambda times: jax.jit(train_epoch(NET, LOSS, RATE, batch_size=batch, measure=times))
    after, result = run(times)(started(NET), X, LABELS)
    plain, expected = run(0)(started(NET), X, LABELS)
    assert expected.diagnostics == ()
    assert_close(after, plain)
    assert_close(result._replace(diagnostics=()), expected)
    _, by_hand = steps_by_hand(batch)
    assert result.diagnostics.step.tolist() == measured
    for i, step in enumerate(measured):
        assert_close(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], result.diagnostics), by_hand[step])


@functools.cache
def fitted():
    """Two epochs of four steps, two of which are looked at in each."""
    return fit(NET, LOSS, RATE, (X, LABELS), key=0, epochs=2, batch_size=5, measure=2)


def test_fit_gives_a_diagnosis_for_each():
    result = fitted()
    assert [found.step for found in result.diagnostics] == [1, 2, 5, 6]
    _, by_hand = steps_by_hand(5)
    for ours, theirs in zip(result.diagnostics, by_hand[1:3], strict=False):
        for row, expected in zip(ours.layers, report(NET, theirs).layers, strict=True):
            assert figures(row) == pytest.approx(figures(expected), rel=1e-4)  # three steps of Adam apart in rounding
    assert fit(NET, LOSS, RATE, (X, LABELS), key=0, epochs=1, batch_size=5).diagnostics == ()


def test_an_ensemble_is_diagnosed_network_by_network():
    start = jax.vmap(lambda key: init_train_state(NET, RATE, key, (D,)))
    states = jax.jit(start)(jax.random.split(jax.random.key(3), 2))
    epoch = train_epoch(NET, LOSS, RATE, batch_size=8, measure=1)
    _, together = jax.jit(jax.vmap(epoch, in_axes=(0, None, None)))(states, X, LABELS)
    one = lambda tree: jax.tree.map(lambda leaf: leaf[1], numbers(tree))
    _, alone = jax.jit(epoch)(one(states), X, LABELS)
    assert_close(one(together.diagnostics), alone.diagnostics)
    assert report_each(NET, one(together.diagnostics))[0].step == 1


def compiled(program, *arguments):
    """FLOPs, and bytes of temporary memory."""
    program = jax.jit(program).lower(*arguments).compile()
    return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes


def test_what_is_not_asked_for_costs_nothing():
    """An epoch without stopping, plateau, augmentation and diagnosis is a scan over backprop and update."""
    differentiate = backprop(NET, LOSS)

    def by_hand(state, x, labels):
        def one(state, rows):
            params, network, opt_state, count, key, epoch, _ = state
            rng = jax.random.fold_in(key, count)
            part = [leaf.at[rows].get(mode="promise_in_bounds") for leaf in (x, labels)]
            out = differentiate(params, network, *part, rng=rng)
            updates, opt_state = RATE.update(out.grads, opt_state, params)
            sums = {"weight": jnp.float32(4), "loss": 4 * out.loss}
            params = apply_updates(params, updates)
            return type(state)(params, out.state, opt_state, next_step(count), key, epoch), (out.loss, sums)

        state = state._replace(opt_state=with_rate_of(RATE, state.opt_state, state.params), epoch=state.epoch + 1)
        order = jax.random.permutation(jax.random.fold_in(state.key, state.epoch - 1), N)
        state, (each, sums) = jax.lax.scan(one, state, order.reshape(4, 4))
        loss = sums["loss"].sum() / sums["weight"].sum()
        good = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]
        return state, loss, each, jnp.isfinite(each).all() & jnp.isfinite(loss) & jnp.stack(good).all()

    arguments = (started(NET), jnp.asarray(X), jnp.asarray(LABELS))
    flops, memory = compiled(train_epoch(NET, LOSS, RATE, batch_size=4), *arguments)
    expected = compiled(by_hand, *arguments)
    assert flops <= expected[0]
    assert memory <= expected[1]
    assert compiled(train_epoch(NET, LOSS, RATE, batch_size=4, measure=1), *arguments)[0] > flops


# ---------------------------------------------------------------- verdicts


def healthy_input(width=30, n=64):
    x = np.random.default_rng(1).normal(size=(n, width)).astype(np.float32)
    return x, (np.arange(n) % K).astype(np.int32)


def deep(function, depth, w_init=None, between=()):
    return serial(repeat(serial(dense(30, w_init=w_init), *between, function), depth), dense(K))


def gaussian(std):
    return initializers.normal(std)


FIRST = "repeat_0/dense_0[0]"
ILLNESSES = {
    "ten layers of sigmoids": (deep(sigmoid, 10), ["vanishing"], FIRST),
    "two layers of sigmoids": (deep(sigmoid, 2), [], ""),
    "five with batch norm": (deep(sigmoid, 5, between=(batch_norm(),)), [], ""),
    "He for relu": (deep(relu, 50, initializers.he_normal()), [], ""),
    "too small for relu": (deep(relu, 20, gaussian(0.01)), ["vanishing"] * 2, FIRST),
    "too large for 20 layers": (deep(relu, 20, gaussian(0.7)), ["exploding"] * 2, FIRST),
    "too large for two layers": (deep(relu, 2, gaussian(1.0)), ["exploding"], ""),
    "too large for sigmoids": (deep(sigmoid, 2, gaussian(3.0)), ["exploding", "saturated"], "repeat_0/sigmoid_0[0]"),
    "too large for tanh": (deep(tanh, 2, gaussian(0.7)), ["saturated"], ""),
    "orthogonal": (serial(repeat(dense(30, w_init=initializers.orthogonal()), 50), dense(K)), [], ""),
    "biases that kill": (
        serial(dense(30, b_init=initializers.constant(-30.0)), relu, dense(K)),
        ["dead", "exploding", "vanishing", "vanishing"],
        "relu_0",
    ),
    "one layer": (dense(K), [], ""),
}


@pytest.mark.parametrize("illness", ILLNESSES)
def test_verdict_before_the_first_step(illness):
    net, expected, path = ILLNESSES[illness]
    x, labels = healthy_input()
    found = looked(net, LOSS, *begun(net), x, labels, initial=True)
    assert [finding.verdict for finding in found.findings] == expected, str(found)
    assert found.verdict == (expected or ["healthy"])[0]
    assert found.ok == (not expected)
    if path:
        assert path in {finding.path for finding in found.findings}
    assert str(found).startswith(f"{found.verdict}: ")


def test_trained_layers_may_have_a_large_gain():
    net, *_ = ILLNESSES["too large for two layers"]
    x, labels = healthy_input()
    assert looked(net, LOSS, *begun(net), x, labels).ok


def test_an_explosion_beyond_squares_is_no_infinity():
    """20 layers that each multiply by 40: 1e32, whose square no float32 holds."""
    net = serial(repeat(dense(30), 20))
    params = {"repeat_0": {"w": np.float32(7.3) * normal(20, 30, 30), "b": np.zeros((20, 30), np.float32)}}
    x, target = healthy_input()[0], np.zeros((64, 30), np.float32)
    linear = losses.half_squared_error._replace(delta=lambda y, t: jnp.ones_like(y))
    found = looked(net, linear, params, (), x, target)
    assert found.verdict == "exploding"
    assert found.layers[-1].output > 1e30
    assert found.layers[0].delta > 1e28


def test_what_is_not_finite_is_named_first():
    net = mlp([30, 30, K], sigmoid)
    params, state = drawn(net, (30,))
    params["dense_1"]["w"][0, 0] = np.nan
    x, labels = healthy_input()
    found = looked(net, LOSS, params, state, x, labels)
    assert found.verdict == "not finite"
    assert found.findings[0].why.startswith("the δ of dense_0 is not finite")
    assert "✗" in str(found)


def test_a_loss_without_slope_is_not_ill():
    """δ is 0 everywhere: there is nothing that could have vanished."""
    net = mlp([4, 3, 2])
    params, state = drawn(net, (D,))
    y = evaluated(net.forward)(params, state, X)[0]
    assert looked(net, losses.mse, params, state, X, y).verdict == "healthy"


# ---------------------------------------------------------------- text


def test_the_table_fits_the_terminal(monkeypatch):
    blocks = repeat(residual(mlp([8, 8], tanh)), 20)
    net = serial(named("a_very_long_name_of_a_layer_indeed", dense(8)), tanh, named("blocks", blocks), tanh)
    found = looked(net, losses.mse, *drawn(net, (D,)), 9 * X, np.zeros((N, 8), np.float32), optimizer=RATE)
    for width in (64, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        check_table(str(found).splitlines(), width)


def check_table(lines, width):
    assert max(map(len, lines)) <= width
    assert "⋮ 23 more" in lines
    assert any("% saturated" in line for line in lines)
    assert sum(line.count("█") > 0 for line in lines) > 30


def test_the_bar_is_the_logarithm():
    sizes = [1e-4, 1e-2, 1.0]
    rows = [
        diagnostics.LayerRow(f"l{i}", "dense", 1.0, size, 1.0, 1.0, None, None, None, None)
        for i, size in enumerate(sizes)
    ]
    text = str(diagnostics.Diagnosis("healthy", (), tuple(rows), 3))
    bars = [sum(c in "▏▎▍▌▋▊▉█" for c in line) for line in text.splitlines() if line.startswith("l") and "█" in line]
    assert bars == [8, 16] or bars == [9, 16]
    assert text.startswith("healthy at step 3: δ from 1.0e-04 to 1, outputs from 1 to 1")


def test_over_time():
    title, *lines = over_time(fitted().diagnostics[1::2]).splitlines()
    assert title.split() == ["step", "verdict", "δ", "outputs", "updates", "idle"]
    assert [line.split()[:2] for line in lines] == [["2", "healthy"], ["6", "healthy"]]
    assert lines[0].count(" to ") == 3


# ---------------------------------------------------------------- what is refused


def test_what_is_refused():
    state = started(NET)
    with pytest.raises(ValueError, match="measure must be at most 3, the number of full batches, got 4"):
        fit(NET, LOSS, RATE, (X, LABELS), key=0, epochs=1, batch_size=5, measure=4)
    with pytest.raises(ValueError, match="measure must be at least 0"):
        train_epoch(NET, LOSS, RATE, batch_size=5, measure=-1)
    with pytest.raises(ValueError, match=r"autodiff: reads 'deltas' only.*use backprop"):
        train_epoch(NET, LOSS, RATE, batch_size=5, measure=1, gradient=autodiff)
    epoch = train_epoch(NET, LOSS, RATE, batch_size=5, measure=2)
    spec = jax.eval_shape(epoch, state, X, LABELS)[1].diagnostics
    several = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
    with pytest.raises(ValueError, match=r"expects the measures of one step, got those of \(2,\)"):
        report(NET, several)
    with pytest.raises(ValueError, match=r"expects measures of \[steps\]"):
        report_each(NET, jax.tree.map(lambda leaf: leaf[0], several))
    with pytest.raises(ValueError, match="those of another network"):
        report(mlp([2]), several)
    net = serial(dense(5), dropout(0.2), dense(K))
    params = drawn(net, (D,))[0]
    with pytest.raises(ValueError, match="needs a key in training"):
        diagnose(net, LOSS, params, (), X, LABELS)
    assert looked(net, LOSS, params, (), X, LABELS, train=False).ok
    assert looked(net, LOSS, params, (), X, LABELS, rng=1).ok


def test_a_point_is_left_as_it_is():
    state = started(NET)
    before = arrays(state)
    first = diagnose(NET, LOSS, state.params, state.state, X, LABELS, rng=1, optimizer=RATE, opt_state=state.opt_state)
    second = looked(NET, LOSS, state.params, state.state, X, LABELS, rng=1, optimizer=RATE)
    for a, b in zip(first.layers, second.layers, strict=True):  # the state before the first step is the default
        assert figures(a) == pytest.approx(figures(b), rel=FLOAT32)
    after = arrays(state)
    assert all(np.array_equal(before[path], after[path]) for path in before)
