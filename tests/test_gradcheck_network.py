"""gradcheck.network: wrong rules are named wherever they are, alone and together, and no other layer is."""

import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import (
    Layer,
    dense,
    gradcheck,
    losses,
    named,
    ordered_leaves,
    relu,
    repeat,
    residual,
    serial,
    share,
    sigmoid,
    tanh,
)

N = 4


def changed(layer, *, delta=None, grads=None):
    """The layer with a wrong rule: its δ_in or its gradients put through a function."""

    def backward(params, tape, given):
        delta_in, found = layer.backward(params, tape, given)
        return delta_in if delta is None else delta(delta_in), found if grads is None else grads(found)

    return layer._replace(backward=backward)


def leaf(kind, forward, backward, init=lambda key, in_shape, dtype=jnp.float32: ({}, ())):
    """A layer without parameters."""
    return Layer(kind, init, forward, backward)


def setting(net, in_shape=(3,), width=2):
    """Parameters with biases off 0, state, x and a target."""
    params, state = drawn(net, in_shape)
    x = np.random.default_rng(1).normal(size=(N, *in_shape)).astype(np.float32)
    return params, state, jax.device_put(x), jax.device_put(np.ones((N, width), np.float32))


def drawn(net, in_shape):
    """Parameters, and a state without arrays; not by jax.random, which would compile for every shape."""
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), in_shape))
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(lambda w: jax.device_put(0.6 * draw(size=w.shape).astype(w.dtype)), params)
    assert not jax.tree.leaves(state)
    return params, state


def check(net, *args, **how):
    return gradcheck.network(net, losses.mse, *(args or setting(net)), **how)


def rows_of(report):
    return {(row.place, row.leaf): row for row in report.rows}


# ---------------------------------------------------------------- a deep network

FAULTS = {  # where: what gradcheck must call it, in the network's order
    "first": "dense_0",
    "body": "residual_0/dense_0",
    "skip": "residual_0",
    "repeated": "repeat_0/dense_0",
    "repeat": "repeat_0",
    "shared": "share_0/dense_0",
    "last": "out",
}


def zeroed(grads):
    return {**grads, "w": grads["w"].at[..., 1, 2].set(0)}


def deep(*faults):
    """Ten layers, with a residual branch, a repeat and a share; wrong at the places given."""

    def fault(place, layer, **changes):
        return changed(layer, **changes) if place in faults else layer

    block = serial(fault("body", dense(3), grads=zeroed), sigmoid)
    branch = residual(block)
    if "skip" in faults:
        branch = branch._replace(backward=block.backward)
    repeated = serial(fault("repeated", dense(3), grads=zeroed), tanh)
    shared = serial(fault("shared", dense(3), delta=jnp.negative), tanh)
    return serial(
        fault("first", dense(3), grads=lambda g: {**g, "b": jnp.zeros_like(g["b"])}),
        tanh,
        branch,
        fault("repeat", repeat(repeated, 2), grads=lambda g: jax.tree.map(lambda leaf: leaf[::-1], g)),
        share(shared, 2),
        tanh,
        named("out", fault("last", dense(2), grads=lambda g: {**g, "w": g["w"] * (1 + 1e-4)})),
    )


@pytest.mark.long  # ten layers each time; below they are wrong together
@pytest.mark.parametrize("place", ["body", "repeated"])
def test_one_fault_in_a_deep_network(place):
    report = check(deep(place))
    assert report.wrong == (FAULTS[place],), str(report)
    rows = [row for row in report.rows if row.place == FAULTS[place] and row.verdict == "wrong"]
    kinds = {"skip": {"residual"}}.get(place, {"dense"})
    assert {row.kind for row in rows} == kinds
    elsewhere = [row for row in report.rows if row.verdict == "wrong" and row not in rows]
    assert elsewhere, "the whole pass is wrong too"
    assert {(row.place, row.why) for row in elsewhere} == {("the whole pass", f"follows from {FAULTS[place]}")}
    leaves = {"skip": {"δ_in"}, "shared": {"δ_in"}}.get(place, {"w"})
    assert {row.leaf for row in rows} == leaves
    if place == "body":
        (row,) = rows
        assert (row.element, row.hand) == ((1, 2), 0.0)
        assert abs(row.differences / row.autodiff - 1) < 1e-6
        assert row.ulps > 1000 > row.autodiff_ulps
    if place == "repeated":  # the pass and then the element
        (row,) = rows
        assert row.element[1:] == (1, 2)
        assert row.why.startswith("2 of 18 elements")


def test_faults_everywhere_in_a_deep_network():
    """Leaves inside combinators that are wrong themselves: both are named, each once."""
    report = check(deep(*FAULTS))
    assert set(report.wrong) == set(FAULTS.values()), str(report)
    assert report.wrong == tuple(FAULTS.values())
    rows = rows_of(report)
    assert rows["out", "w"].hand / rows["out", "w"].autodiff == pytest.approx(1 + 1e-4, rel=1e-7)
    assert rows["dense_0", "b"].why.endswith("It is all zeros.")
    assert rows["share_0", "δ_in, gradients"].why == "its own rule is right; the error comes from share_0/dense_0"
    text = str(report)
    assert f"WRONG: {', '.join(report.wrong)} (" in text
    assert all(f"✗  {name}" in text for name in report.wrong)
    with pytest.raises(AssertionError) as caught:
        report.raise_if_failed()
    assert str(caught.value) == f"\n{text}"


def test_a_wrong_combinator_around_a_wrong_leaf():
    wrong = changed(dense(3), grads=lambda g: {**g, "b": 2 * g["b"]})
    for branch in (residual(wrong), residual(wrong)._replace(backward=wrong.backward)):
        report = check(serial(branch, dense(2)))
        skipless = branch.backward is wrong.backward
        expected = ("residual_0", "residual_0") if skipless else ("residual_0",)  # a residual adds no level of its own
        assert report.wrong == expected, str(report)
        kinds = {row.kind for row in report.rows if row.verdict == "wrong" and row.place == "residual_0"}
        assert kinds == ({"dense", "residual"} if skipless else {"dense"})


@pytest.mark.long  # eleven layers
def test_rows_follow_the_network():
    """dense_10 after dense_9, although dicts sort it before dense_2."""
    net = serial(*(dense(1) for _ in range(11)))
    params, state = drawn(net, (2,))
    report = check(net, params, state, np.ones((2, 2), np.float32), np.zeros((2, 1), np.float32))
    own = [f"dense_{i}" for i in range(11)]
    places = list(dict.fromkeys(row.place for row in report.rows))
    assert places == [*own, "serial", "mse", "the whole pass"]
    whole = [row.leaf for row in report.rows if row.place == "the whole pass"]
    assert whole == ["loss", *(f"{name} δ" for name in own), *ordered_leaves(net, params)]


def test_two_calls_give_equal_reports():
    net = serial(changed(dense(3), grads=zeroed), tanh, dense(2))
    first, second = check(net), check(net)
    assert first == second
    assert str(first) == str(second)
    assert first._repr_html_() == second._repr_html_()
    assert first.wrong == ("dense_0",)


# ---------------------------------------------------------------- layers of a user's own


def dropout(rate, forget_scale=False):
    """y = x ⊙ m / (1 − p); δ_in = δ ⊙ m / (1 − p), the mask in the tape."""

    def forward(params, state, x, *, train=False, rng=None):
        factor = jnp.ones_like(x)
        if train:
            factor = jax.random.bernoulli(rng, 1 - rate, x.shape).astype(x.dtype) / (1 - rate)
        return x * factor, state, factor

    def backward(params, tape, delta):
        return delta * ((tape > 0).astype(delta.dtype) if forget_scale else tape), {}

    return leaf("dropout", forward, backward)


def moving_mean(forget_mean=False):
    """y = s (x − m), m a running mean in the state and s a parameter."""

    def init(key, in_shape, dtype=jnp.float32):
        return {"s": jnp.full(in_shape, 1.5, dtype)}, {"m": jnp.full(in_shape, 0.25, dtype)}

    def forward(params, state, x, *, train=False, rng=None):
        centred = x - state["m"][None]
        new = {"m": jax.lax.stop_gradient(0.9 * state["m"] + 0.1 * x.mean(0))} if train else state
        return params["s"][None] * centred, new, (x, centred)

    def backward(params, tape, delta):
        x, centred = tape
        return delta * params["s"][None], {"s": (delta * (x if forget_mean else centred)).sum(0)}

    return leaf("moving_mean", forward, backward, init)


def embedding(vocabulary, width, last_token_only=False):
    """y = [E[token], values] of x = {token: integers [N], values: [N, D]}; integers have no δ_in."""

    def init(key, in_shape, dtype=jnp.float32):
        return {"e": jax.random.normal(key, (vocabulary, width), dtype)}, ()

    def forward(params, state, x, *, train=False, rng=None):
        return jnp.concatenate([params["e"][x["token"]], x["values"]], -1), state, x["token"]

    def backward(params, tape, delta):
        own = delta[:, :width]
        table = jnp.zeros_like(params["e"])
        table = table.at[tape].set(own) if last_token_only else table.at[tape].add(own)
        return {"token": (), "values": delta[:, width:]}, {"e": table}

    return leaf("embedding", forward, backward, init)


def own_layers(wrong):
    net = serial(
        embedding(5, 2, last_token_only=wrong), moving_mean(forget_mean=wrong), dropout(0.4, forget_scale=wrong),
        share(dropout(0.3), 2), dense(2),
    )  # fmt: skip
    x = {"token": jnp.array([1, 1, 1, 0]), "values": np.random.default_rng(5).normal(size=(N, 3)).astype(np.float32)}
    spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    return net, (*net.init(jax.random.key(0), spec), x, jnp.ones((N, 2)))


@pytest.mark.long  # below, what is right of them is judged right too
def test_random_stateful_and_integer_layers_are_right():
    net, args = own_layers(wrong=False)
    report = check(net, *args, rng=jax.random.key(2), weights=jnp.array([1.0, 0.0, 3.0, 0.5]))
    assert report.verdict == "right", str(report)
    rows = rows_of(report)
    assert ("embedding_0", "δ_in values") in rows
    assert ("embedding_0", "δ_in token") not in rows
    assert ("moving_mean_0", "s") in rows


def test_random_stateful_and_integer_layers_that_are_wrong():
    net, args = own_layers(wrong=True)
    report = check(net, *args, rng=jax.random.key(2))
    assert report.wrong == ("embedding_0", "moving_mean_0", "dropout_0"), str(report)
    rows = rows_of(report)
    assert rows["embedding_0", "e"].element[0] == 1  # the token that comes twice
    assert rows["embedding_0", "δ_in values"].verdict == "right"
    assert rows["moving_mean_0", "δ_in"].verdict == "right"
    assert rows["dropout_0", "δ_in"].hand / rows["dropout_0", "δ_in"].autodiff == pytest.approx(0.6)


def test_a_random_layer_in_evaluation():
    """Without a key; the scale that is wrong in training is not there."""
    net = serial(dropout(0.4, forget_scale=True), dense(2))
    report = check(net, train=False)
    assert report.verdict == "right", str(report)


# ---------------------------------------------------------------- kinks


def blank(rule=relu):
    """Blank rows into zero biases: the activation is given exact zeros."""
    net = serial(dense(3), rule, dense(2))
    params, state = net.init(jax.random.key(0), (3,))
    x = jnp.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [-0.3, 1.0, 2.0]])
    return check(net, params, state, x, jnp.ones((N, 2)))


def test_relu_at_exact_zeros_is_right():
    report = blank()
    assert report.verdict == "right", str(report)


def test_another_convention_at_a_kink_is_a_kink():
    """relu′(0) = 1 lies between the slopes 0 and 1; the verdict says so, and does not fail a test."""
    other = relu._replace(slope=lambda z, h: (z >= 0).astype(z.dtype))
    report = blank(other)
    assert report.wrong == (), str(report)
    row = rows_of(report)["relu_0", "δ_in"]
    assert row.verdict == "kink"
    low, high = sorted(row.slopes)
    assert (low, high) == pytest.approx(sorted((0.0, row.hand)), abs=1e-6)
    assert row.autodiff == 0
    assert report.verdict == "kink", str(report)
    assert report.ok
    report.raise_if_failed()


def test_a_slope_outside_the_kink_is_wrong():
    other = relu._replace(slope=lambda z, h: jnp.where(z == 0, 2, jnp.where(z > 0, 1, 0)).astype(z.dtype))
    report = blank(other)
    assert report.wrong == ("relu_0",), str(report)
    row = rows_of(report)["relu_0", "δ_in"]
    assert row.verdict == "wrong"
    assert row.element[0] in (0, 2)  # a blank row
    assert "is not between the slopes" in row.why
    assert max(row.slopes, key=abs) == pytest.approx(row.hand / 2)


# ---------------------------------------------------------------- what is not a gradient's fault


def test_the_layer_that_makes_nan_is_named():
    """√(−1), between layers that are given finite numbers and one that is not."""

    def forward(params, state, x, *, train=False, rng=None):
        y = jnp.sqrt(x)
        return y, state, y

    root = leaf("root", forward, lambda params, y, delta: (delta / (2 * y), {}))
    net = serial(dense(3), root, dense(2))
    params, state, x, target = setting(net)
    below = {"w": jnp.eye(3), "b": jnp.zeros(3)}
    x = jnp.abs(x).at[2, 1].set(-1.0) + 1e-3
    report = check(net, {**params, "dense_0": below}, state, x, target)
    first = report.rows[0]
    assert (first.place, first.leaf, first.verdict) == ("root_0", "output", "cannot tell")
    assert first.element == (2, 1)
    assert "the loss is not finite for 1 of 4 examples" in first.why
    assert "root_0 makes it of finite numbers, 1 of 12" in first.why
    assert report.wrong == ()
    assert not report.ok
    with pytest.raises(AssertionError, match="root_0 makes it of finite numbers"):
        report.raise_if_failed()


def test_nan_in_the_input_is_no_layers_fault():
    net = serial(dense(3), tanh, dense(2))
    params, state, x, target = setting(net)
    report = check(net, params, state, x.at[1, 0].set(jnp.nan), target)
    first = report.rows[0]
    assert (first.place, first.leaf, first.verdict) == ("dense_0", "input", "cannot tell")
    assert report.wrong == ()


def test_the_losss_own_delta_is_named():
    net = serial(dense(3), tanh, dense(2))
    doubled = losses.mse._replace(delta=lambda y, t: 2 * losses.mse.delta(y, t))
    report = gradcheck.network(net, doubled, *setting(net))
    assert report.wrong == ("mse",), str(report)
    rows = rows_of(report)
    assert rows["mse", "δ"].verdict == "wrong"
    assert rows["mse", "δ"].why.endswith("It is 2 times jax.grad's, everywhere.")
    layers = [row for row in report.rows if row.place not in ("mse", "the whole pass")]
    assert layers
    assert all(row.verdict == "right" for row in layers)
    whole = [row for row in report.rows if row.place == "the whole pass" and row.leaf != "loss"]
    assert {(row.verdict, row.why) for row in whole} == {("wrong", "follows from mse")}


# ---------------------------------------------------------------- what does not fit


def test_gradients_of_another_shape():
    transposed = changed(dense(4), grads=lambda g: {"w": g["w"].T, "b": g["b"][:, None]})
    net = serial(named("wrong", transposed), dense(2))
    with pytest.raises(ValueError, match="gradients that are not like the parameters") as caught:
        check(net)
    assert all(path in str(caught.value) for path in ("wrong/w", "wrong/b"))


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (
            lambda p, x, d: (jnp.ones((4, 7)), {"w": x.T @ d, "b": d.sum(0)}),
            r"its δ_in is not like x.*\n.*got \[4, 7\]",
        ),
        (lambda p, x, d: {"w": x.T @ d, "b": d.sum(0)}, r"must return \(delta_in, grads\), got dict"),
    ],
)
def test_a_delta_in_that_does_not_fit_is_its_layers(backward, words):
    net = serial(dense(5), dense(3)._replace(backward=backward))
    params, state = drawn(net, (2,))
    with pytest.raises(ValueError, match=f"layer 'dense_1': .*{words}"):
        gradcheck.network(net, losses.mse, params, state, jnp.ones((4, 2)), jnp.zeros((4, 3)))


def test_a_layer_that_is_not_deterministic():
    draw = np.random.default_rng(0)

    def noisy(params, state, x, *, train=False, rng=None):
        return dense(3).forward(params, state, x * draw.normal())

    net = serial(dense(3)._replace(forward=noisy), tanh)
    params, state = drawn(net, (2,))
    with pytest.raises(ValueError, match=r"is not deterministic.*test_gradcheck_network\.py"):
        gradcheck.network(net, losses.mse, params, state, jnp.ones((4, 2)), jnp.zeros((4, 3)))


def test_a_gradient_left_out():
    net = serial(named("wrong", changed(dense(3), grads=lambda g: {"w": g["w"]})), dense(2))
    with pytest.raises(ValueError, match="wrong/b"):
        check(net)


def test_parameters_of_another_network():
    net = serial(dense(3), tanh, dense(2))
    _, state, x, target = setting(net)
    other, _ = drawn(serial(dense(4), tanh, dense(4), tanh, dense(2)), (3,))
    with pytest.raises(ValueError, match="dense"):
        check(net, other, state, x, target)
    with pytest.raises(TypeError, match="Loss"):
        gradcheck.network(net, lambda y, t: 0.0, *setting(net))


# ---------------------------------------------------------------- x64


def plain_dtypes():
    """What this thread makes by itself."""
    return jnp.ones(()).dtype, (jnp.arange(3) / 2).dtype, jnp.asarray(1.0).dtype, jax.jit(lambda: jnp.zeros(2))().dtype


FLOAT32 = (jnp.dtype("float32"),) * 4


def spying(seen):
    """The identity; each time its forward is traced, what this thread and another one make."""

    def forward(params, state, x, *, train=False, rng=None):
        other = []
        thread = threading.Thread(target=lambda: other.append(plain_dtypes()))
        thread.start()
        thread.join()
        seen.append((jnp.zeros(()).dtype, other[0]))
        return x, state, ()

    return leaf("spy", forward, lambda params, tape, delta: (delta, {}))


def test_x64_does_not_leak():
    """Before, after, and in another thread while this one is in float64."""
    seen = []
    net = serial(dense(3), spying(seen), dense(2))
    args = setting(net)
    assert plain_dtypes() == FLOAT32
    assert check(net, *args).verdict == "right"
    assert plain_dtypes() == FLOAT32
    assert {str(here) for here, _ in seen} == {"float32", "float64"}
    assert {there for _, there in seen} == {FLOAT32}
    out = net.forward(args[0], args[1], args[2])[0]
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_interruption_leaves_no_trace(where):
    """An exception that nothing may catch, while the check is in float64."""

    def interrupt(x):
        if x.dtype == jnp.float64:
            raise KeyboardInterrupt
        return x

    def forward(params, state, x, *, train=False, rng=None):
        return interrupt(x) if where == "forward" else x, state, ()

    def backward(params, tape, delta):
        return interrupt(delta) if where == "backward" else delta, {}

    with pytest.raises(KeyboardInterrupt):
        check(serial(dense(2), leaf("interrupted", forward, backward)))
    assert plain_dtypes() == FLOAT32


@pytest.mark.parametrize("wrong", [False, True])
def test_a_layer_that_refuses_float64(wrong):
    """Its program is replayed instead: still judged, and still without trace."""

    def forward(params, state, x, *, train=False, rng=None):
        if x.dtype == jnp.float64:
            raise TypeError("this kernel takes float32 only")
        y = jnp.sin(x)
        return y, state, x

    def backward(params, tape, delta):
        slope = jnp.cos(tape)
        return delta * (slope.at[1, 2].set(0) if wrong else slope), {}

    net = serial(dense(3), leaf("kernel", forward, backward), dense(2))
    report = check(net)
    assert plain_dtypes() == FLOAT32
    assert report.wrong == (("kernel_0",) if wrong else ()), str(report)
    assert report.verdict == ("wrong" if wrong else "right"), str(report)
    if wrong:
        row = rows_of(report)["kernel_0", "δ_in"]
        assert (row.element, row.hand) == ((1, 2), 0.0)
        assert math.isclose(row.differences, row.autodiff, rel_tol=1e-6)


def test_float64_is_given_where_it_is_asked_for():
    """Under x64 the parameters are float64, the report is on float64, and the mode is left as it was."""
    with jax.enable_x64(True):
        net = dense(2)
        params, state, x, target = setting(net)
        params, x, target = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x, target))
        report = check(net, params, state, x, target)
        assert jnp.ones(()).dtype == np.float64
    assert "in float64" in report.title
    assert report.verdict == "right", str(report)
    assert plain_dtypes() == FLOAT32
