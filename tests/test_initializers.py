import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import variance_scaling

from jaxnn import initializers as init

DEVIATIONS = 5.0  # of an estimate from its mean; beyond it lies one sample in two million
KURTOSIS = {"normal": 3.0, "uniform": 1.8}  # E w⁴ / (E w²)², which gives the spread of a sample variance
DENSE, CONVOLUTION = (200, 100), (3, 3, 20, 40)
SMALL = (8, 5)
LEAK = 0.5
KEY = jax.random.key(0)

# name, initializer, distribution, variance for (fan_in, fan_out), the same in JAX
RANDOM = [
    ("normal", init.normal(0.3), "normal", lambda m, n: 0.09, None),
    ("uniform", init.uniform(0.3), "uniform", lambda m, n: 0.03, None),
    ("glorot_uniform", init.glorot_uniform(), "uniform", lambda m, n: 2 / (m + n), (1.0, "fan_avg")),
    ("glorot_normal", init.glorot_normal(), "normal", lambda m, n: 2 / (m + n), (1.0, "fan_avg")),
    ("he_uniform", init.he_uniform(), "uniform", lambda m, n: 2 / m, (2.0, "fan_in")),
    ("he_normal", init.he_normal(), "normal", lambda m, n: 2 / m, (2.0, "fan_in")),
    ("he_uniform", init.he_uniform(LEAK), "uniform", lambda m, n: 1.6 / m, (1.6, "fan_in")),
    ("he_normal", init.he_normal(LEAK), "normal", lambda m, n: 1.6 / m, (1.6, "fan_in")),
    ("lecun_uniform", init.lecun_uniform(), "uniform", lambda m, n: 1 / m, (1.0, "fan_in")),
    ("lecun_normal", init.lecun_normal(), "normal", lambda m, n: 1 / m, (1.0, "fan_in")),
]
FACTORIES = {
    "zeros": init.zeros,
    "constant": lambda: init.constant(0.5),
    "normal": lambda: init.normal(0.3),
    "uniform": lambda: init.uniform(0.3),
    "orthogonal": init.orthogonal,
    **{name: getattr(init, name) for name, *_ in RANDOM if name not in ("normal", "uniform")},
}

random_ones = pytest.mark.parametrize(
    ("make", "distribution", "variance", "twin"),
    [row[1:] for row in RANDOM],
    ids=[f"{name}-{i}" for i, (name, *_) in enumerate(RANDOM)],
)
every_factory = pytest.mark.parametrize("name", FACTORIES)
kernels = pytest.mark.parametrize(
    ("shape", "fans"), [(DENSE, (200, 100)), (CONVOLUTION, (180, 360))], ids=["dense", "convolution"]
)


def test_every_public_name_is_in_a_table():
    assert {*FACTORIES, "fans"} == set(init.__all__)


@pytest.mark.parametrize(
    ("shape", "fans"),
    [
        ((784, 30), (784, 30)),
        ((1, 1), (1, 1)),
        ((5, 3, 20), (15, 100)),  # 1-D convolution: 5 taps
        ((5, 5, 1, 20), (25, 500)),  # LeCun's first layer
        ((3, 3, 64, 128), (576, 1152)),
        ((2, 3, 4, 5, 6), (120, 144)),
    ],
)
def test_fans(shape, fans):
    assert init.fans(shape) == fans
    assert init.fans(list(shape)) == fans


@pytest.mark.parametrize("shape", [(), (30,), (0, 30), (3, 0, 4, 4)])
def test_fans_refuses_what_is_no_kernel(shape):
    with pytest.raises(ValueError, match=r"kernel"):
        init.fans(shape)


@random_ones
@kernels
def test_distribution_and_that_jax_draws_the_same(make, distribution, variance, twin, shape, fans):
    w = np.asarray(make(KEY, shape), np.float64)
    if twin is not None:
        np.testing.assert_allclose(w, variance_scaling(*twin, distribution)(KEY, shape), rtol=1e-5, atol=1e-7)
    expected, n = variance(*fans), w.size
    assert abs(w.mean()) <= DEVIATIONS * math.sqrt(expected / n)
    spread = math.sqrt((KURTOSIS[distribution] - 1) / n)
    assert abs(w.var() / expected - 1) <= DEVIATIONS * spread
    kurtosis = np.mean(w**4) / w.var() ** 2  # tells normal from uniform, and from a truncated normal (2.1)
    assert kurtosis == pytest.approx(KURTOSIS[distribution], abs=0.3)
    if distribution == "uniform":
        limit = math.sqrt(3 * expected)
        assert 0.99 * limit < np.max(np.abs(w)) <= limit * (1 + 1e-6)


@pytest.mark.parametrize("leak", [0.0, LEAK])
def test_he_keeps_the_signal_through_rectifiers(leak: float):
    width, depth = 256, 20
    keys = jax.random.split(KEY, depth + 1)

    def layer(h, key):
        z = h @ init.he_normal(leak)(key, (width, width))
        return jnp.where(z > 0, z, leak * z), jnp.mean(z**2)

    powers = np.asarray(jax.lax.scan(layer, jax.random.normal(keys[0], (64, width)), keys[1:])[1])
    # A layer's log-power varies by at most 5/width (of relu² of a normal), and all examples alike. With half the
    # variance it would end at −19 log 2 = −13, with relu's gain for a leak of 0.5 at 19 log 1.25 = 4.2.
    assert abs(math.log(powers[-1] / powers[0])) < DEVIATIONS * math.sqrt(5 * depth / width)


def test_orthogonal_rows_or_columns():
    shapes = [(6, 3), (3, 6), (5, 5), (3, 3, 2, 4), (2, 2, 1, 8)]
    gain = 2.0
    with jax.enable_x64(True):
        draw = jax.jit(lambda key: [init.orthogonal(gain)(key, shape, jnp.float64) for shape in shapes])
        kernels = [np.asarray(w).reshape(-1, w.shape[-1]) for w in draw(jax.random.key(0))]
    for w in kernels:
        gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        np.testing.assert_allclose(gram / gain**2, np.eye(min(w.shape)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1, 3])
def test_orthogonal_prefers_no_direction(size: int):
    # Haar's measure: every entry has mean 0 and variance 1/size. QR without the signs of R is far from it.
    keys = jax.random.split(KEY, 400)
    w = np.asarray(jax.vmap(lambda key: init.orthogonal()(key, (size, size)))(keys))
    assert np.max(np.abs(w.mean(axis=0))) <= DEVIATIONS / math.sqrt(size * len(keys))
    np.testing.assert_allclose((w**2).mean(axis=0), 1 / size, atol=DEVIATIONS * 0.5 / math.sqrt(len(keys)))


def test_constants():
    assert np.all(np.asarray(init.zeros()(KEY, (3, 4))) == 0)
    assert np.all(np.asarray(init.constant(-0.5)(KEY, (7,))) == -0.5)


@every_factory
def test_same_key_same_result_and_equal_calls_equal_initializers(name: str):
    make = FACTORIES[name]()
    assert FACTORIES[name]() == make
    assert hash(FACTORIES[name]()) == hash(make)
    first, again, seeded, other = (
        np.asarray(make(key, SMALL)) for key in (jax.random.key(3), jax.random.key(3), 3, jax.random.key(4))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, seeded)
    assert np.array_equal(first, other) == (name in ("zeros", "constant"))


@every_factory
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_the_rounded_float32(name: str, dtype: str):
    make = FACTORIES[name]()
    w = make(KEY, SMALL, dtype)
    assert w.dtype == dtype
    np.testing.assert_array_equal(w, np.asarray(make(KEY, SMALL)).astype(dtype))


def test_under_jit_and_vmap_they_are_the_same():
    keys = jax.random.split(KEY, 2)
    draw = jax.jit(lambda key: {name: factory()(key, SMALL) for name, factory in FACTORIES.items()})
    batched = jax.vmap(draw)(keys)
    for i, key in enumerate(keys):
        for name, factory in FACTORIES.items():
            np.testing.assert_allclose(batched[name][i], factory()(key, SMALL), rtol=1e-5, atol=1e-6)


def test_float64_is_drawn_as_float64():
    with jax.enable_x64(True):
        w = np.asarray(init.normal()(KEY, (100,), jnp.float64))
    assert w.dtype == np.float64
    assert np.any(w != w.astype(np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: init.constant(math.nan), "constant: value must be finite"),
        (lambda: init.normal(-1.0), "normal: std must be at least 0"),
        (lambda: init.uniform(-1.0), "uniform: limit must be at least 0"),
        (lambda: init.he_normal(-0.1), "he: negative_slope must be at least 0"),
        (lambda: init.he_uniform(math.inf), "he: negative_slope"),
        (lambda: init.orthogonal(0.0), "orthogonal: gain must be above 0"),
        (lambda: init.glorot_uniform()(KEY, (30,)), r"got shape \(30,\), which has no fan_in"),
        (lambda: init.orthogonal()(KEY, (30,)), r"got shape \(30,\), which has no fan_in"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["normal", "he_uniform", "orthogonal"])
def test_integers_are_refused(name: str):
    with pytest.raises(TypeError, match="initializers draw floats, got dtype int32"):
        FACTORIES[name]()(KEY, (3, 4), jnp.int32)
    with pytest.raises(TypeError, match="key must be"):
        FACTORIES[name]()("seed", (3, 4))
