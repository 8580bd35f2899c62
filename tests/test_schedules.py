import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import schedules

STEPS = np.arange(40)
CASES = {
    "constant": (schedules.constant(0.3), lambda t: 0.3),
    "step": (schedules.step(0.1, 0.5, 7), lambda t: 0.1 * 0.5 ** (t // 7)),
}
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


def test_step_agrees_with_optax():
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    theirs = optax.exponential_decay(0.1, transition_steps=7, decay_rate=0.8, staircase=True)
    ours = schedules.step(0.1, factor=0.8, every=7)
    for t in (0, 6, 7, 20, 1000):
        assert float(ours(t)) == pytest.approx(float(theirs(t)), rel=1e-5)


def test_far_out_a_rate_vanishes_and_does_not_become_nan():
    assert float(schedules.step(0.1, 0.1, 1)(2**31 - 1)) == 0.0


def test_equal_calls_give_the_same_schedule():
    assert schedules.constant(1) is schedules.constant(value=1.0)
    assert schedules.step(0.1, 0.5, 10) is schedules.step(initial=0.1, factor=0.5, every=10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.constant(-0.1), ValueError, "constant: value must be at least 0"),
        (lambda: schedules.constant(math.nan), ValueError, "constant: value"),
        (lambda: schedules.constant("0.1"), TypeError, "constant: value must be a number"),
        (lambda: schedules.step(-0.1, 0.5, 10), ValueError, "step: initial must be at least 0"),
        (lambda: schedules.step(0.1, 0.0, 10), ValueError, "step: factor must be above 0"),
        (lambda: schedules.step(0.1, math.inf, 10), ValueError, "step: factor"),
        (lambda: schedules.step(0.1, 0.5, 0), ValueError, "step: every must be at least 1"),
        (lambda: schedules.step(0.1, 0.5, 2.5), TypeError, "step: every must be a whole number"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
