"""The norms against flax, at large means against NumPy, and batch norm's running statistics, in combinators too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn import batch_norm, dense, group_norm, layer_norm, parallel, repeat, residual, rms_norm, serial, share

PARAMS = {"scale": jnp.array([0.5, 2.0, -1.0]), "shift": jnp.array([0.1, -0.2, 0.3])}
X = jax.random.normal(jax.random.key(0), (5, 4, 3)) * 2 + 1
DELTA = jax.random.normal(jax.random.key(1), X.shape)


def given_state(x=X):
    return {"mean": jnp.array([0.3, 0.1, -0.5]), "var": jnp.array([0.5, 1.5, 2.0])}


def flax_layer(name, **how):
    linen = pytest.importorskip("flax.linen", reason="flax is the oracle")
    return getattr(linen, name)(epsilon=1e-5, use_fast_variance=False, **how)


def compare(layer, apply, train=False, params=PARAMS, x=X):
    """Value and gradients against apply(params, x), differentiated by jax.grad."""
    delta = jax.random.normal(jax.random.key(1), x.shape)
    y, state, tape = layer.forward(params, given_state(), x, train=train)
    delta_in, grads = layer.backward(params, tape, delta)
    expected, pull = jax.vjp(apply, params, x)
    expected_grads, expected_in = pull(delta)
    pairs = zip(*map(jax.tree.leaves, ((y, delta_in, grads), (expected, expected_in, expected_grads))), strict=True)
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    return state


def as_flax(params):
    return {"scale": params["scale"], "bias": params["shift"]}


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_flaxs(train):
    theirs = flax_layer("BatchNorm", momentum=0.9, use_running_average=not train)

    def apply(params, x):
        variables = {"params": as_flax(params), "batch_stats": given_state()}
        return theirs.apply(variables, x, mutable=["batch_stats"])[0]

    state = compare(batch_norm(), apply, train)
    variables = {"params": as_flax(PARAMS), "batch_stats": given_state()}
    stats = theirs.apply(variables, X, mutable=["batch_stats"])[1]["batch_stats"]
    n, old = 20, given_state()["var"]
    unbiased = 0.9 * old + (stats["var"] - 0.9 * old) * (n / (n - 1)) if train else stats["var"]  # flax's is biased
    np.testing.assert_allclose(state["mean"], stats["mean"], rtol=1e-6)
    np.testing.assert_allclose(state["var"], unbiased, rtol=1e-5)


def test_layer_norm_is_flaxs():
    theirs = flax_layer("LayerNorm")
    compare(layer_norm(), lambda params, x: theirs.apply({"params": as_flax(params)}, x))


SIX = {"scale": jnp.array([0.5, 2.0, -1.0, 1.5, 1.0, -0.3]), "shift": jnp.array([0.1, -0.2, 0.3, 0.0, 1.0, -1.0])}


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("space", [(), (4,), (2, 3)], ids=["no space", "time", "images"])
def test_group_norm_is_flaxs(groups, space):
    theirs = flax_layer("GroupNorm", num_groups=groups)
    x = 1 + 2 * jax.random.normal(jax.random.key(4), (5, *space, 6))
    compare(group_norm(groups), lambda params, x: theirs.apply({"params": as_flax(params)}, x), params=SIX, x=x)


def test_rms_norm_is_flaxs():
    linen = pytest.importorskip("flax.linen", reason="flax is the oracle")
    theirs, scale = linen.RMSNorm(epsilon=1e-5), {"scale": PARAMS["scale"]}
    compare(rms_norm(), lambda params, x: theirs.apply({"params": params}, x), params=scale)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_pytorchs(groups):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x = np.asarray(1 + 2 * jax.random.normal(jax.random.key(4), (5, 4, 6)))
    scale, shift = (torch.tensor(np.asarray(SIX[name])) for name in ("scale", "shift"))
    wanted = torch.nn.functional.group_norm(torch.tensor(x).transpose(1, 2), groups, scale, shift).transpose(1, 2)
    np.testing.assert_allclose(group_norm(groups).forward(SIX, (), x)[0], wanted.numpy(), rtol=1e-5, atol=1e-5)


def in_numpy(layer, x, delta, params):
    """y, δ_in and the gradients in 80 bits: the forward formula in loops, backward as the Jacobian's product with δ."""
    wide = lambda a: np.asarray(a, np.float64).astype(np.longdouble)
    x, delta = wide(x), wide(delta)
    gamma, beta = (wide(params.get(name, np.zeros(x.shape[-1]))) for name in ("scale", "shift"))
    width = x.shape[-1] // getattr(layer, "groups", 1)
    x_hat, delta_in = np.zeros_like(x), np.zeros_like(x)
    along_axes = layer.kind == "group_norm"
    for n in range(len(x)):
        places = [()] if along_axes else list(np.ndindex(x.shape[1:-1]))
        for place in places:
            for first in range(0, x.shape[-1], width):
                part = (n, *place, ..., slice(first, first + width))
                v = x[part].ravel()
                eye, centred = np.eye(len(v), dtype=v.dtype), layer.kind != "rms_norm"
                project = eye - np.ones_like(eye) / len(v) * centred
                u = v - v.mean() * centred
                q = np.mean(u * u) + 1e-5
                jacobian = (eye / np.sqrt(q) - np.outer(u, u) / (len(v) * q**1.5)) @ project
                x_hat[part] = (u / np.sqrt(q)).reshape(x[part].shape)
                delta_in[part] = (jacobian.T @ (delta * gamma)[part].ravel()).reshape(x[part].shape)
    axes = tuple(range(x.ndim - 1))
    return gamma * x_hat + beta, delta_in, {"scale": (delta * x_hat).sum(axes), "shift": delta.sum(axes)}


NEW = {
    "group_norm(1)": group_norm(1),
    "group_norm(3)": group_norm(3),
    "rms_norm": rms_norm(),
    "layer_norm": layer_norm(),
}


@functools.cache
def both_ways(layer):
    def run(params, x, delta):
        y, _, tape = layer.forward(params, (), x)
        return y, *layer.backward(params, tape, delta)

    return jax.jit(run)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mean", [0, 1e4])
@pytest.mark.parametrize("name", NEW)
def test_the_formulas_in_numpy(name, mean, dtype):
    """Of large means, of rows that are constant, and of halves, whose statistics are taken in float32."""
    layer, epsilon = NEW[name], float(jnp.finfo(dtype).eps)
    with jax.enable_x64(dtype == "float64"):
        drawn = mean + np.random.default_rng(5).normal(size=(4, 2, 6))
        drawn[1] = mean + 0.1  # a constant example
        x, delta = jnp.asarray(drawn, dtype), jnp.asarray(np.cos(drawn), dtype)
        params = {name: SIX[name].astype(dtype) for name in layer.init(0, (2, 6))[0]}
        y, delta_in, grads = both_ways(layer)(params, x, delta)
    assert {y.dtype, delta_in.dtype, *(grad.dtype for grad in grads.values())} == {jnp.dtype(dtype)}
    wanted = in_numpy(layer, x, delta, params)
    # float32 holds what is left of 1e4 to 1e4 ε: the digits that its mean takes from the features
    wide = max(float(jnp.finfo("float32").eps), epsilon) if dtype != "float64" else epsilon
    lost = max(1, mean) * 30 * (float(jnp.finfo("float32").eps) if dtype != "float64" else epsilon)
    for got, expected in ((y, wanted[0]), (delta_in, wanted[1]), *((grads[k], wanted[2][k]) for k in grads)):
        size = np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=0, atol=(lost + 2 * wide) * size)
    if name != "rms_norm":
        assert (np.asarray(y)[1] == np.asarray(params["shift"])).all()  # exactly


def test_groups_that_do_not_fit():
    with pytest.raises(ValueError, match=r"group_norm: groups must be .*1"):
        group_norm(0)
    with pytest.raises(ValueError, match=r"layer 'group_norm_0' expects features in 4 equal groups, got x of shape"):
        serial(group_norm(4)).init(0, (6,))
    with pytest.raises(ValueError, match="group_norm expects one array, got Sequences"):
        group_norm(1).forward(SIX, (), jaxnn.Sequences(jnp.ones((2, 3, 6)), jnp.ones((2, 3), bool)))
    with pytest.raises(ValueError, match=r"rms_norm expects parameters scale, got \['scale', 'shift'\]"):
        rms_norm().forward(PARAMS, (), X)


@pytest.mark.parametrize("mean", [1e4, 1e5])
def test_large_means_lose_no_digits(mean):
    """mean(x²) − mean(x)² would be wrong in the first digit."""
    x = mean + jax.random.normal(jax.random.key(2), (256, 3))
    exact = np.asarray(x, np.float64)
    layer = batch_norm(momentum=0)
    y, state, tape = layer.forward(PARAMS, given_state(), x, train=True)
    delta_in, grads = layer.backward(PARAMS, tape, jnp.cos(x))
    np.testing.assert_allclose(state["var"], exact.var(0, ddof=1), rtol=1e-4)
    wanted = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(y, wanted * np.asarray(PARAMS["scale"]) + np.asarray(PARAMS["shift"]), atol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((delta_in, grads)))


def test_what_is_constant_gives_the_shift():
    x = jnp.full((5, 3), 100000.1)
    for layer in (batch_norm(), layer_norm(), group_norm(1), group_norm(3)):
        y, _, tape = layer.forward(PARAMS, given_state(), x, train=True)
        assert (np.asarray(y) == np.asarray(PARAMS["shift"])).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(layer.backward(PARAMS, tape, DELTA[:, 0])))


def test_a_batch_of_one():
    y, state, tape = batch_norm().forward(PARAMS, given_state(), X[:1, 0], train=True)
    delta_in, grads = batch_norm().backward(PARAMS, tape, DELTA[:1, 0])
    assert (np.asarray(y) == np.asarray(PARAMS["shift"])).all()
    assert not np.asarray(delta_in).any()
    assert not np.asarray(grads["scale"]).any()
    assert (state["var"] == given_state()["var"]).all()
    np.testing.assert_allclose(state["mean"], 0.9 * given_state()["mean"] + 0.1 * X[0, 0], rtol=1e-5)


def test_running_statistics_become_the_datas():
    """Unbiased: batches of 4 would otherwise end at three quarters of the variance."""
    layer = batch_norm(momentum=0.999)
    x = 3 + 2 * jax.random.normal(jax.random.key(3), (10_000, 4, 1))
    params, state = layer.init(0, (1,))
    step = lambda state, x: (layer.forward(params, state, x, train=True)[1], None)
    state, _ = jax.lax.scan(step, state, x)
    # an average over about 2,000 batches: five standard errors of its mean and variance
    np.testing.assert_allclose(state["mean"], 3, atol=5 * 2 / np.sqrt(8000))
    np.testing.assert_allclose(state["var"], 4, rtol=5 * np.sqrt(2 / 3 / 2000))


def updated(state, x):
    n = x[..., 0].size
    rows = np.asarray(x, np.float64).reshape(n, -1)
    return {"mean": 0.9 * state["mean"] + 0.1 * rows.mean(0), "var": 0.9 * state["var"] + 0.1 * rows.var(0, ddof=1)}


def same(got, expected):
    for name, leaf in expected.items():
        np.testing.assert_allclose(got[name], leaf, rtol=1e-5, atol=1e-6)


def normalised(x, mean, var):
    x, mean, var, scale, shift = map(np.asarray, (x, mean, var, PARAMS["scale"], PARAMS["shift"]))
    return scale * (x - mean) / np.sqrt(var + 1e-5) + shift


def is_the_textbooks(forward):
    """Value and new state of batch norm, in training and in evaluation, against the formulas in NumPy."""
    rows = np.asarray(X, np.float64).reshape(-1, 3)
    y, state = forward(X, given_state(), True)
    np.testing.assert_allclose(y, normalised(X, rows.mean(0), rows.var(0)), rtol=1e-5, atol=1e-5)
    same(state, updated(given_state(), X))
    y, state = forward(X, given_state(), False)
    np.testing.assert_allclose(y, normalised(X, *given_state().values()), rtol=1e-5, atol=1e-5)
    same(state, given_state())


def own(x, state, train):
    return batch_norm().forward(PARAMS, state, x, train=train)[:2]


def swapped(state):
    return {"mean": state["var"], "var": state["mean"]}


def biased(x, state, train):
    y, new = own(x, state, train)
    kept = 0.9 * state["var"] if train else new["var"]
    return y, {**new, "var": kept + (new["var"] - kept) * 19 / 20}  # of 20 values


def other_momentum(x, state, train):
    y, _ = own(x, state, train)
    return y, batch_norm(momentum=0.1).forward(PARAMS, state, x, train=train)[1]


FORWARD_MUTANTS = {
    "statistics swapped on the way in": lambda x, state, train: own(x, swapped(state), train),
    "statistics swapped on the way out": lambda x, state, train: (
        own(x, state, train)[0], swapped(own(x, state, train)[1])),
    "the biased variance runs": biased,
    "momentum and 1 − momentum": other_momentum,
    "running statistics in training": lambda x, state, train: (
        own(x, state, False)[0], own(x, state, train)[1]),
    "the batch's statistics in evaluation": lambda x, state, train: (
        own(x, state, True)[0], own(x, state, train)[1]),
    "statistics move in evaluation": lambda x, state, train: (
        own(x, state, train)[0], own(x, state, True)[1]),
    "statistics stand still in training": lambda x, state, train: (own(x, state, train)[0], state),
    "statistics begin anew": lambda x, state, train: (
        own(x, state, train)[0], own(x, {"mean": jnp.zeros(3), "var": jnp.ones(3)}, train)[1]),
    "over N alone": lambda x, state, train: jax.vmap(
        lambda x: own(x, state, train), in_axes=1, out_axes=(1, None if not train else 0))(x),
}  # fmt: skip


def test_the_forward_pass_is_the_textbooks():
    is_the_textbooks(own)


@pytest.mark.parametrize("name", FORWARD_MUTANTS)
def test_a_wrong_forward_pass_is_caught(name):
    with pytest.raises(AssertionError):
        is_the_textbooks(FORWARD_MUTANTS[name])


def test_state_in_combinators():
    norm, x = batch_norm(), X
    fresh = norm.init(0, (3,))[1]
    y = norm.forward(norm.init(0, (3,))[0], fresh, x, train=True)[0]
    for net, path in (
        (serial(norm), ("batch_norm_0",)),
        (residual(norm), ()),
        (parallel(norm, dense(1)), ("batch_norm_0",)),
    ):
        assert net.couples_batch
        state = net.forward(*net.init(0, (3,)), x, train=True)[1]
        for name in path:
            state = state[name]
        same(state, updated(fresh, x))
    for net in (repeat(norm, 2), share(norm, 2)):
        assert net.couples_batch
        state = net.forward(*net.init(0, (3,)), x, train=True)[1]
        first = updated(fresh, x)
        if net.kind == "repeat":  # each pass has its own
            second = updated(fresh, y)
            same(state, {name: np.stack([first[name], second[name]]) for name in first})
        else:  # one average, over the uses in turn
            same(state, updated(first, y))
    assert not serial(layer_norm()).couples_batch


def test_half_precision_is_summed_in_float32():
    x = X.astype(jnp.bfloat16)
    y, state, tape = batch_norm().forward(PARAMS, given_state(), x, train=True)
    delta_in, grads = batch_norm().backward(PARAMS, tape, DELTA.astype(jnp.bfloat16))
    assert (y.dtype, delta_in.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, grads))} == {jnp.dtype("float32")}
    same(state, updated(given_state(), x.astype(jnp.float32)))


def test_refused():
    for momentum in (-0.1, 1):
        with pytest.raises(ValueError, match="batch_norm: momentum must be at least 0 and below 1"):
            batch_norm(momentum=momentum)
    for factory in (batch_norm, layer_norm, lambda **eps: group_norm(1, **eps), rms_norm):
        with pytest.raises(ValueError, match="eps must be above 0"):
            factory(eps=0)
        net = serial(factory())
        params, state = net.init(0, (3,))
        with pytest.raises(ValueError, match=r"layer '.*_norm_0' expects 3 features, got x of shape \(2, 5\)"):
            net.forward(params, state, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"batch_norm expects state mean and var, got \(\)"):
        batch_norm().forward(PARAMS, (), X)
    with pytest.raises(ValueError, match="layer_norm expects parameters scale and shift, got"):
        layer_norm().forward({}, (), X)
