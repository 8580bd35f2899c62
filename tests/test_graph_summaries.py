"""Summaries of arrays in every dtype and at every extreme: no warnings, no overflow."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxnn.graph.summaries import histogram, number, summary


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "uint8"])
def test_range_and_norm_in_every_dtype(dtype):
    with jax.enable_x64(True):
        s, alone = summary(jnp.asarray([[3, 4], [0, 12]], dtype)), summary(jnp.asarray(3, dtype))
    assert (s.shape, s.dtype, s.low, s.high, s.norm, s.nonfinite) == ((2, 2), dtype, 0, 12, 13, 0)
    assert s.number is None
    assert alone.number == 3


def test_norms_do_not_overflow():
    assert summary(np.full(4, 60000, np.float16)).norm == pytest.approx(120000)
    assert summary(np.full(4, 1e300)).norm == pytest.approx(2e300)
    assert summary(np.full(4, 1e-300)).norm == pytest.approx(2e-300)
    assert sum(histogram(np.array([-1.7e308, 1.7e308]), 4)) == 2


def test_what_is_not_finite_is_counted_apart():
    s = summary(jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1.0, -2.0]))
    assert (s.nans, s.infinite, s.nonfinite, s.low, s.high) == (1, 2, 3, -2, 1)
    nothing = summary(jnp.array([jnp.nan, jnp.inf], ml_dtypes.bfloat16))
    assert (nothing.nonfinite, nothing.norm) == (2, 0)
    assert np.isnan(nothing.low)
    assert histogram(jnp.array([jnp.nan, jnp.inf]), 4) == []
    assert (nothing.shape, nothing.nans, nothing.infinite) == ((2,), 1, 1)


def test_kinds_that_are_no_numbers():
    assert summary(jax.random.key(0)) == summary(jax.random.key(0))._replace(shape=(), known=False)
    assert not summary(np.zeros(3, jax.dtypes.float0)).known
    assert summary(np.zeros(3, jax.dtypes.float0)).dtype == "float0"
    assert summary(jax.random.key(0)).dtype == "key<fry>"
    seen = []
    jax.jit(lambda x: seen.append((summary(x)[:2], summary(x).known, histogram(x, 4))) or x)(jnp.ones(3))
    assert seen == [(((3,), "float32"), False, [])]


def test_numbers_booleans_and_complex_ones():
    assert [summary(x).number for x in (2, 2.5, True, np.bool_(False), jnp.int32(7))] == [2, 2.5, True, False, 7]
    truths = summary(jnp.array([True, False, True]))
    assert (truths.dtype, truths.low, truths.high, truths.norm) == ("bool", 0, 1, pytest.approx(2**0.5))
    z = summary(np.array([3 + 4j, 0]))
    assert (z.low, z.high, z.norm) == (0, 5, 5)
    assert number(1 - 2j) == "1-2i"
    assert number(complex(0.5, float("nan"))) == "0.5+nani"


def test_empty_and_constant_arrays():
    empty = summary(jnp.zeros((0, 3)))
    assert (empty.size, empty.norm, empty.nonfinite) == (0, 0, 0)
    assert (empty.shape, empty.dtype) == ((0, 3), "float32")
    assert histogram(jnp.zeros((0, 3)), 4) == histogram(jnp.ones(5), 4) == []


@pytest.mark.parametrize(("x", "text"), [
    (0.0, "0"), (-0.0, "0"), (1.0, "1"), (0.5, "0.5"), (2 / 3, "0.6667"), (-138.83381924, "-138.8338"),
    (1e6 / 3, "333333.3"), (9_999_999.0, "9999999"), (12345678.0, "1.235e+07"), (1e-4, "0.0001"), (9.9e-5, "9.9e-05"),
    (np.float32(0.1), "0.1"), (float("nan"), "nan"), (float("inf"), "inf"), (-123, "-123"), (False, "False"),
])  # fmt: skip
def test_short_numbers(x, text):
    assert number(x) == text


@pytest.mark.parametrize("seed", range(3))
def test_short_numbers_are_near(seed):
    for x in np.random.default_rng(seed).standard_normal(50) * 10.0 ** np.arange(-25, 25):
        assert float(number(x)) == pytest.approx(x, rel=5.1e-4)


def test_histograms_count_what_lies_in_each_part():
    x = np.random.default_rng(0).standard_normal(1000)
    counts, _ = np.histogram(x, 16)
    assert histogram(x, 16) == counts.tolist()
