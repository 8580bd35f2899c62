"""Every initializer on every kind of kernel: the variance of what comes out for independent inputs of variance 1."""

import math

import jax
import numpy as np
import pytest
from by_numpy import by_numpy

import jaxnn
from jaxnn import initializers as init

KEY = jax.random.key(3)
DEVIATIONS = 5.0  # of an estimate from its mean
LEAK = 0.5

# The variance of an output of a kernel [*K, D, H] by the papers' formulas: m = D ∏ K inputs seen, n = H ∏ K reached.
INITIALIZERS = {
    "zeros": (init.zeros(), lambda m, n, h: 0.0),
    "constant": (init.constant(0.1), lambda m, n, h: m * 0.01),
    "normal": (init.normal(0.3), lambda m, n, h: m * 0.09),
    "uniform": (init.uniform(0.3), lambda m, n, h: m * 0.03),
    "glorot_uniform": (init.glorot_uniform(), lambda m, n, h: 2 * m / (m + n)),
    "glorot_normal": (init.glorot_normal(), lambda m, n, h: 2 * m / (m + n)),
    "he_uniform": (init.he_uniform(), lambda m, n, h: 2.0),
    "he_normal": (init.he_normal(LEAK), lambda m, n, h: 2 / (1 + LEAK**2)),
    "lecun_uniform": (init.lecun_uniform(), lambda m, n, h: 1.0),
    "lecun_normal": (init.lecun_normal(), lambda m, n, h: 1.0),
    "orthogonal": (init.orthogonal(), lambda m, n, h: min(m / h, 1.0)),
}

dense = lambda w: jaxnn.dense(24, w_init=w)
conv = lambda *args, **how: lambda w: jaxnn.conv(*args, w_init=w, **how)
recurrent = lambda layer: lambda w: layer(24, w_init=w, w_h_init=w)
tokens = jax.ShapeDtypeStruct((5,), np.int32)

# The layer, the shape of an example, and each kernel by its keys: taps, D, H, and how many such stand side by side.
KERNELS = {
    "dense": (dense, (36,), {"w": (1, 36, 24, 1)}),
    "dense that widens": (lambda w: jaxnn.dense(48, w_init=w), (12,), {"w": (1, 12, 48, 1)}),
    "conv, one axis": (conv(24, (3,)), (9, 12), {"w": (3, 12, 24, 1)}),
    "conv, two axes": (conv(24, (3, 2)), (9, 9, 6), {"w": (6, 6, 24, 1)}),
    "conv, three axes": (conv(24, (3, 2, 2)), (4, 4, 4, 3), {"w": (12, 3, 24, 1)}),
    "groups, one axis": (conv(48, (3,), groups=2), (9, 24), {"w": (3, 12, 24, 2)}),
    "groups, three axes": (conv(24, (2, 2, 2), groups=8), (4, 4, 4, 16), {"w": (8, 2, 3, 8)}),
    "depthwise": (conv(64, (3, 3), groups=64), (9, 9, 64), {"w": (9, 1, 1, 64)}),
    "depthwise, two for one": (conv(128, (5,), groups=64), (9, 64), {"w": (5, 1, 2, 64)}),
    "rnn": (recurrent(jaxnn.rnn), (5, 36), {"w": (1, 36, 24, 1), "w_h": (1, 24, 24, 1)}),
    "gru": (recurrent(jaxnn.gru), (5, 36), {"w": (1, 36, 24, 3), "w_h": (1, 24, 24, 3)}),
    "lstm": (recurrent(jaxnn.lstm), (5, 36), {"w": (1, 36, 24, 4), "w_h": (1, 24, 24, 4)}),
    "bidirectional": (
        lambda w: jaxnn.bidirectional(recurrent(jaxnn.rnn)(w)),
        (5, 36),
        {"forward/w": (1, 36, 24, 1), "backward/w": (1, 36, 24, 1), "backward/w_h": (1, 24, 24, 1)},
    ),
    "repeat": (lambda w: jaxnn.repeat(dense(w), 3), (24,), {"w": (1, 24, 24, 3)}),
    "repeat of groups": (
        lambda w: jaxnn.repeat(conv(24, (3,), groups=4)(w), 3),
        (9, 24),
        {"w": (3, 6, 6, 12)},
    ),
    "share": (lambda w: jaxnn.share(dense(w), 3), (24,), {"w": (1, 24, 24, 1)}),
    "parallel": (lambda w: jaxnn.parallel(dense(w), dense(w)), (36,), {"dense_1/w": (1, 36, 24, 1)}),
    "mlp": (
        lambda w: jaxnn.mlp([24, 36], w_init=w),
        (36,),
        {"dense_0/w": (1, 36, 24, 1), "dense_1/w": (1, 24, 36, 1)},
    ),
    # An output is one row of the table; the fans are those of the dense layer on one-hot vectors that it stands for.
    "embedding": (lambda w: jaxnn.embedding(36, 24, w_init=w), tokens, {"w": (1, 36, 24, 1)}),
}


def kernel(params, path):
    for key in path.split("/"):
        params = params[key]
    return np.asarray(params, np.float64)


@pytest.mark.parametrize("name", KERNELS)
def test_the_variance_of_an_output(name: str):
    """Of independent inputs of variance 1 it is the sum of w² over the inputs that the output sees."""
    make, in_shape, kernels = KERNELS[name]
    for which, (initializer, variance) in INITIALIZERS.items():
        net = make(initializer)
        params = by_numpy(lambda key, net=net: net.init(key, in_shape)[0])(KEY)
        for path, (taps, d, h, beside) in kernels.items():
            w, m = kernel(params, path), taps * d
            assert w.size == m * h * beside
            seen = 1 if name == "embedding" else m
            found, expected = (w**2).mean() * seen, variance(m, taps * h, h) * seen / m
            room = 1e-6 if which in ("zeros", "constant", "orthogonal") else DEVIATIONS * math.sqrt(2 / w.size)
            assert found == pytest.approx(expected, rel=room), (which, path)
            if which not in ("zeros", "constant", "orthogonal"):
                assert len(np.unique(w)) > 0.99 * w.size, "two kernels are the same"


X = np.random.default_rng(0).normal(size=(4, 6, 6, 64)).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 4, 64])
@pytest.mark.parametrize(("w_init", "variance"), [(None, 1.0), (init.he_normal(), 2.0)], ids=["glorot", "he"])
def test_groups_do_not_change_what_comes_out(groups: int, w_init, variance: float):
    net = jaxnn.conv(64, (3, 3), padding="valid", groups=groups, w_init=w_init)  # Glorot's: as many in as out
    out = by_numpy(lambda key, x: net.forward(net.init(key, x.shape[1:])[0], (), x)[0])(KEY, X)
    assert out.var() == pytest.approx(variance, rel=0.15)


def test_each_group_is_orthogonal_by_itself():
    params, _ = jaxnn.conv(24, (3,), groups=4, w_init=init.orthogonal(2.0)).init(KEY, (9, 8))
    w = np.asarray(params["w"]).reshape(3 * 2, 4, 6)
    for group in range(4):
        np.testing.assert_allclose(w[:, group].T @ w[:, group], 4 * np.eye(6), rtol=0, atol=1e-5)


def test_one_group_is_drawn_as_ever():
    w_key, _ = jax.random.split(KEY)
    params, _ = jaxnn.conv(6, (3, 3)).init(KEY, (9, 9, 4))
    np.testing.assert_array_equal(params["w"], init.glorot_uniform()(w_key, (3, 3, 4, 6)))
    ones = jaxnn.conv(6, (3, 3), groups=1, w_init=lambda key, shape, dtype: np.ones(shape, dtype))
    assert ones.init(KEY, (9, 9, 4))[0]["w"].shape == (3, 3, 4, 6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_initializer_of_ones_own_is_given_one_group(dtype: str):
    shapes = []

    def mine(key, shape, dtype):
        shapes.append(shape)
        return (jax.random.normal(key, shape) * np.prod(shape[:-1]) ** -0.5).astype(dtype)

    net = jaxnn.conv(12, (3, 3), groups=4, w_init=mine)
    w = net.init(KEY, (9, 9, 8), dtype)[0]["w"]
    assert w.shape == (3, 3, 2, 12)
    assert w.dtype == dtype
    assert set(shapes) == {(3, 3, 2, 3)}
    keys = jax.random.split(jax.random.split(KEY)[0], 4)
    each = [np.asarray(mine(key, (3, 3, 2, 3), dtype), np.float32) for key in keys]  # group by group along H
    np.testing.assert_array_equal(np.asarray(w, np.float32), np.concatenate(each, -1))

    constant = lambda key, shape, dtype: np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    w = np.asarray(jaxnn.conv(4, (3,), groups=2, w_init=constant).init(KEY, (9, 2), dtype)[0]["w"], np.float32)
    np.testing.assert_array_equal(w[:, 0], [[0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 5]])


def test_an_initializer_that_gives_the_whole_kernel_is_refused():
    whole = lambda key, shape, dtype: np.ones((3, 2, 12), dtype)
    with pytest.raises(ValueError, match=r"w_init to give \(3, 2, 3\) for each of 4 groups, got \(3, 2, 12\)"):
        jaxnn.conv(12, (3,), groups=4, w_init=whole).init(KEY, (9, 8))


def test_the_same_compiled_and_for_a_batch_of_keys():
    net = jaxnn.conv(6, (3,), groups=3)
    one = net.init(KEY, (9, 6))[0]["w"]
    many = jax.jit(jax.vmap(lambda key: net.init(key, (9, 6))[0]["w"]))(jax.random.split(KEY, 2))
    np.testing.assert_allclose(jax.jit(lambda key: net.init(key, (9, 6))[0]["w"])(KEY), one, rtol=1e-6)
    np.testing.assert_allclose(many[1], net.init(jax.random.split(KEY, 2)[1], (9, 6))[0]["w"], rtol=1e-6)
