import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedule_cases import CASES

from jaxnn import schedules

STEPS = np.arange(40)
every_schedule = pytest.mark.parametrize("name", CASES)


def test_every_public_name_is_in_the_table():
    assert set(CASES) == set(schedules.__all__)


@every_schedule
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-15)])
def test_the_formula_for_a_traced_step(name: str, dtype: str, tolerance: float):
    schedule, formula = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        rates = np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(STEPS, jnp.int32)))
        first = schedule(jnp.zeros((), jnp.int32))
    assert rates.dtype == first.dtype == dtype
    assert first.shape == ()
    np.testing.assert_allclose(rates, [formula(int(t)) for t in STEPS], rtol=tolerance)


@every_schedule
def test_a_python_int_will_do(name: str):
    schedule, formula = CASES[name]
    assert float(schedule(20)) == pytest.approx(formula(20), rel=1e-6)


def test_step_decay_agrees_with_optax():
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    theirs = optax.exponential_decay(0.1, transition_steps=7, decay_rate=0.8, staircase=True)
    ours = schedules.step_decay(0.1, factor=0.8, every=7)
    for t in (0, 6, 7, 20, 1000):
        assert float(ours(t)) == pytest.approx(float(theirs(t)), rel=1e-5)


def optax_twins(optax):
    return {
        "constant": optax.constant_schedule(0.3),
        "piecewise": optax.piecewise_constant_schedule(0.3, {7: 1 / 3, 20: 2.0}),
        "exponential": optax.exponential_decay(0.1, 7, 0.5),
        "polynomial": optax.polynomial_schedule(0.3, 0.1, 2, 20),
        "cosine": optax.cosine_decay_schedule(0.3, 20, alpha=1 / 3),
        "warmup": optax.join_schedules(
            [optax.linear_schedule(0.1, 0.2, 5), lambda t: 0.2 / (1 + t)],
            [5],
        ),
    }


@pytest.mark.parametrize("name", ["constant", "piecewise", "exponential", "polynomial", "cosine", "warmup"])
def test_the_whole_range_agrees_with_optax(name: str):
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        theirs = optax_twins(optax)[name]
        expected = [float(theirs(jnp.asarray(t, jnp.float64))) for t in STEPS]  # of an int32 it is in float32
        ours = np.asarray(jax.vmap(CASES[name][0])(jnp.asarray(STEPS, jnp.int32)))
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


LONG = {  # 1,000 steps of what people use, and the same of optax
    "constant": (schedules.constant(0.1), lambda optax: optax.constant_schedule(0.1)),
    "step_decay": (
        schedules.step_decay(0.1, factor=0.7, every=100),
        lambda optax: optax.exponential_decay(0.1, 100, 0.7, staircase=True),
    ),
    "piecewise": (
        schedules.piecewise([0.1, 0.05, 0.01], boundaries=[300, 700]),
        lambda optax: optax.piecewise_constant_schedule(0.1, {300: 0.5, 700: 0.2}),
    ),
    "exponential": (
        schedules.exponential(0.1, factor=0.5, every=150),
        lambda optax: optax.exponential_decay(0.1, 150, 0.5),
    ),
    "polynomial": (
        schedules.polynomial(0.1, final=0.001, steps=800, power=1.5),
        lambda optax: optax.polynomial_schedule(0.1, 0.001, 1.5, 800),
    ),
    "cosine": (
        schedules.cosine(0.1, steps=900, final=0.001),
        lambda optax: optax.cosine_decay_schedule(0.1, 900, 0.01),
    ),
    "warmup": (
        schedules.warmup(100, schedules.cosine(0.1, steps=900, final=0.001), initial=0.01),
        lambda optax: optax.warmup_cosine_decay_schedule(0.01, 0.1, 100, 1000, 0.001),
    ),
    "joined": (
        schedules.joined([schedules.constant(0.1), schedules.exponential(0.1, factor=0.5, every=50)], [400]),
        lambda optax: optax.join_schedules(
            [optax.constant_schedule(0.1), optax.exponential_decay(0.1, 50, 0.5)], [400]
        ),
    ),
    "scaled": (
        schedules.scaled(schedules.cosine(0.1, steps=1000), 0.3),
        lambda optax: optax.cosine_decay_schedule(0.03, 1000),
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_a_thousand_steps_are_those_of_optax(name: str):
    """Of the first rate: 1e-10 in float64, and float32 beside the same float64."""
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    ours, theirs = LONG[name]
    steps = np.arange(1000)
    run = lambda: np.asarray(jax.jit(jax.vmap(ours))(jnp.asarray(steps, jnp.int32)))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        expected = np.asarray(jax.vmap(theirs(optax))(jnp.asarray(steps, jnp.float64)))
        double = run()
    single = run()
    assert (double.dtype, single.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(double, np.broadcast_to(expected, steps.shape), rtol=0, atol=1e-10 * expected.max())
    np.testing.assert_allclose(single, np.broadcast_to(expected, steps.shape), rtol=0, atol=1e-5 * expected.max())


def test_what_optax_lacks_is_not_compared():
    assert set(LONG) | {"inverse_time"} == set(schedules.__all__)


@every_schedule
@pytest.mark.parametrize("t", [10**6, 2**31 - 1])
def test_far_beyond_the_end(name: str, t: int):
    schedule, formula = CASES[name]
    rate = float(jax.jit(schedule)(jnp.asarray(t, jnp.int32)))
    assert rate == pytest.approx(formula(t), rel=1e-6, abs=1e-37)


def test_the_end_is_exact():
    assert (
        float(schedules.cosine(0.1, steps=1000)(1000))
        == float(schedules.polynomial(0.1, final=0.0, steps=1000)(1000))
        == 0
    )
    near = float(schedules.cosine(1.0, steps=100_000)(99_999))  # 1 + cos would round to 0 in float32
    assert near == pytest.approx((math.pi / 2 / 100_000) ** 2, rel=1e-5)


def test_a_schedule_that_is_not_yet_asked_does_no_harm():
    late = schedules.joined([schedules.constant(0.1), schedules.exponential(0.1, factor=1e-3)], [1000])
    assert float(late(0)) == pytest.approx(0.1)


def test_far_out_a_rate_vanishes_and_does_not_become_nan():
    assert float(schedules.step_decay(0.1, factor=0.1, every=1)(2**31 - 1)) == 0.0


def test_equal_calls_give_equal_schedules():
    warm = schedules.warmup(3, schedules.cosine(0.1, steps=10))
    for one, other in (
        (schedules.constant(1), schedules.constant(value=1.0)),
        (schedules.step_decay(0.1, factor=0.5, every=10), schedules.step_decay(initial=0.1, factor=0.5, every=10)),
        (schedules.piecewise([1, 0.5], boundaries=[3]), schedules.piecewise((1.0, 0.5), boundaries=(3,))),
        (warm, schedules.warmup(3, schedules.cosine(0.1, steps=10), initial=0.0)),
        (schedules.scaled(warm, 0.5), schedules.scaled(warm, 0.5)),
    ):
        assert one == other
        assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.constant(-0.1), ValueError, "constant: value must be at least 0"),
        (lambda: schedules.constant(math.nan), ValueError, "constant: value"),
        (lambda: schedules.constant("0.1"), TypeError, "constant: value must be a number"),
        (
            lambda: schedules.step_decay(-0.1, factor=0.5, every=10),
            ValueError,
            "step_decay: initial must be at least 0",
        ),
        (lambda: schedules.step_decay(0.1, factor=0.0, every=10), ValueError, "step_decay: factor must be above 0"),
        (lambda: schedules.step_decay(0.1, factor=math.inf, every=10), ValueError, "step_decay: factor"),
        (lambda: schedules.step_decay(0.1, factor=0.5, every=0), ValueError, "step_decay: every must be at least 1"),
        (lambda: schedules.piecewise([0.1], boundaries=[]), ValueError, "piecewise: 1 values need 1 boundaries"),
        (
            lambda: schedules.piecewise([0.1, 0.2], boundaries=[0]),
            ValueError,
            r"piecewise: boundaries\[0\] must be at least 1",
        ),
        (lambda: schedules.joined([schedules.constant(1)] * 3, [5, 5]), ValueError, "joined: boundaries must rise"),
        (lambda: schedules.warmup(5, 0.1), TypeError, "warmup: then must be a schedule"),
        (lambda: schedules.cosine(0.1, steps=0), ValueError, "cosine: steps must be at least 1"),
        (lambda: schedules.polynomial(0.1, final=-0.1, steps=5), ValueError, "polynomial: final"),
        (lambda: schedules.inverse_time(0.1, rate=-1.0), ValueError, "inverse_time: rate"),
        (lambda: schedules.scaled(schedules.constant(1), -1), ValueError, "scaled: factor"),
        (
            lambda: schedules.step_decay(0.1, factor=0.5, every=2.5),
            TypeError,
            "step_decay: every must be a whole number",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
