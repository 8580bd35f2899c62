"""Known NaNs and infinities: cause, line and advice are correct, and the rewritten functions give the true value."""

import inspect
import linecache
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from nonfinite_cases import HIDDEN_KNOWN, LOGS_KNOWN, ROOTS_KNOWN, WHERE_KNOWN
from nonfinite_healthy import HEALTHY
from nonfinite_more_cases import MORE_KNOWN

from jaxnn import graph
from jaxnn.graph.nonfinite import causes, compiled

KNOWN = [*WHERE_KNOWN, *HIDDEN_KNOWN, *ROOTS_KNOWN, *LOGS_KNOWN, *MORE_KNOWN]


def marked(f):
    """The line of f that ends in # HERE, its number and its text."""
    lines, start = inspect.getsourcelines(f)
    (offset,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# HERE"))
    return start + offset, lines[offset].strip()


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.f.__name__)
def test_cause_line_and_what_hid_it(case):
    args = jax.device_put(case.args)
    with jax.numpy_dtype_promotion("standard"):
        why = graph.explain_nonfinite(case.f, whole=False)(*args)
    print(why)
    assert not why.finite
    assert (why.direction, why.cause, why.steps) == (case.direction, case.cause, case.steps)
    line, text = marked(case.f)
    assert f"{inspect.getfile(case.f)}:{line} " in why.source
    assert why.line == linecache.getline(inspect.getfile(case.f), line).strip() == text
    assert why.rewrite.startswith(causes.REWRITES[case.cause])
    assert why.hidden.split(" at ")[0] == case.hidden
    assert len(str(why).splitlines()) <= 12


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.f.__name__)
def test_what_the_advice_says_is_the_truth(case):
    args = jax.device_put(case.args)
    with jax.numpy_dtype_promotion("standard"):
        value, gradient = by_numpy(jax.value_and_grad(case.fixed))(*args)
    np.testing.assert_allclose(np.float64(value), case.value, rtol=case.rtol, atol=1e-6)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), np.asarray(case.gradient), rtol=case.rtol, atol=1e-6)


def test_every_cause_has_a_case():
    elsewhere = {causes.CANCELLATION, causes.COMPILED, causes.COTANGENT, causes.CUSTOM_RULE, causes.UNKNOWN}
    assert {case.cause for case in KNOWN} | elsewhere == set(causes.REWRITES)
    assert len(KNOWN) >= 60
    assert len(HEALTHY) >= 60


@pytest.mark.parametrize("name", HEALTHY)
def test_no_alarm(name):
    f, *args = HEALTHY[name]
    args = jax.device_put(args)
    with jax.numpy_dtype_promotion("standard"):
        why = graph.explain_nonfinite(f, whole=False)(*args)
    assert why.finite, str(why)
    assert not why.runs
    assert bool(why.unknown) == (name in ("while loop", "whole numbers"))
    assert bool(why.intended) == (name == "log_softmax of masked logits, all given")


def test_an_infinity_is_meant_only_where_the_code_writes_it():
    x = jnp.array([0.0, 1.0])
    written = graph.explain_nonfinite(lambda x: jnp.where(x > 0, x, -jnp.inf), whole=False)(x)
    assert (written.finite, written.intended) == (True, "−∞ where the code writes it")
    assert str(written).endswith(": its value is finite but for −∞ where the code writes it; its gradients are finite")
    made = graph.explain_nonfinite(jnp.log, whole=False)(x)
    assert (made.cause, made.direction) == (causes.LOG, "forward")
    given = graph.explain_nonfinite(lambda x: 2.0 * x, whole=False)(jnp.array([-jnp.inf, 1.0]))
    assert (given.cause, given.direction) == (causes.GIVEN, "forward")
    nan = graph.explain_nonfinite(lambda x: jnp.where(x > 0, x, jnp.nan), whole=False)(x)
    assert (nan.cause, nan.direction) == (causes.WRITTEN, "forward")


# ---------------------------------------------------------------- run whole


@pytest.mark.long
@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.f.__name__)
def test_run_whole_they_are_not_finite_either(case):
    args = jax.device_put(case.args)
    with jax.numpy_dtype_promotion("standard"):
        why = graph.explain_nonfinite(case.f)(*args)
        value, gradient = jax.jit(jax.value_and_grad(case.fixed))(*args)
    assert (why.cause, why.direction) == (case.cause, case.direction)
    assert all(line.split(", ")[0].endswith(": not finite operation by operation") for line in why.runs)
    np.testing.assert_allclose(np.float64(value), case.value, rtol=case.rtol, atol=1e-6)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), np.asarray(case.gradient), rtol=case.rtol, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", HEALTHY)
def test_run_whole_they_raise_no_alarm_either(name):
    f, *args = HEALTHY[name]
    args = jax.device_put(args)
    with jax.numpy_dtype_promotion("standard"):
        why = graph.explain_nonfinite(f)(*args)
    assert why.finite, str(why)
    assert not why.runs


def ratio_of_exponentials(x):
    return jnp.exp(x) / jnp.exp(x - 1.0)


def deviation_by_squares(x):
    return jnp.sqrt(jnp.mean(x**2) - jnp.mean(x) ** 2 + 1e-12)  # HERE


def test_a_compiler_that_leaves_out_what_overflows():
    x = jnp.float32(200.0)  # JAX 0.10 makes exp(1) of it
    why = graph.explain_nonfinite(ratio_of_exponentials)(x)
    assert (why.cause, why.operation) == (causes.EXP, "exp")
    value, gradient = jax.jit(jax.value_and_grad(ratio_of_exponentials))(x)
    for word, number in (("the value: ", value), ("the gradient: ", gradient)):
        said = any(line.startswith(word) and line.endswith(", finite jitted") for line in why.runs)
        assert said == np.isfinite(number)


def test_one_that_is_not_finite_in_one_piece_alone(monkeypatch):
    seen = (compiled.Run("the value", (True, True, False)), compiled.Run("the gradient", (True, False, False)))
    monkeypatch.setattr("jaxnn.graph.nonfinite.explain.runs", lambda *given: seen)
    why = graph.explain_nonfinite(deviation_by_squares)(jnp.full(7, 0.3))
    assert (why.finite, why.cause, why.direction) == (False, causes.CANCELLATION, "forward")
    assert why.reached == ("the value", "the gradient")
    assert why.operation == "sub"
    assert f":{marked(deviation_by_squares)[0]} " in why.source
    assert why.then.startswith("it is an input of sqrt at ")
    assert why.runs[0] == "the value: finite operation by operation, finite eagerly, not finite jitted"
    other = graph.explain_nonfinite(lambda x: (2 * x).sum())(jnp.ones(3))
    assert other.cause == causes.COMPILED


def test_one_that_is_not_finite_operation_by_operation():
    with jax.numpy_dtype_promotion("standard"):
        why = graph.explain_nonfinite(deviation_by_squares, whole=False)(jnp.full(7, 123.4))
    assert (why.cause, why.operation) == (causes.CANCELLATION, "sqrt")
    assert "15227" in why.detail
    assert "sub at " in why.detail


def test_runs_are_those_of_jax():
    args = (jnp.array([0.0, 4.0]),)
    traced = graph.trace(lambda x: jnp.sqrt(x).sum())(*args)
    assert compiled.runs(lambda x: jnp.sqrt(x).sum(), traced, args) == (
        compiled.Run("the value", (True, True, True)),
        compiled.Run("the gradient", (False, False, False)),
    )


def test_the_advice_on_cancellation_is_the_truth():
    def fixed(x):
        return jnp.sqrt(jnp.mean((x - jnp.mean(x)) ** 2) + 1e-12)

    value, gradient = jax.jit(jax.value_and_grad(fixed))(jnp.full(8, 123.5))
    np.testing.assert_allclose(value, 1e-6, rtol=1e-5)
    np.testing.assert_array_equal(gradient, np.zeros(8))


def test_it_works_where_jax_ends_at_nan():
    with jax.debug_nans(True):
        why = graph.explain_nonfinite(lambda x: jnp.log(x - 1.0), whole=False)(jnp.float32(0.0))
    assert why.cause == causes.LOG_NEGATIVE


def test_a_rule_of_jax_that_nobody_can_change():
    def hypotenuse(x):
        return jnp.hypot(x[0], x[1])

    x = jnp.zeros(2)
    why = graph.explain_nonfinite(hypotenuse, whole=False)(x)
    assert why.finite == bool(jnp.isfinite(jax.grad(hypotenuse)(x)).all())  # JAX 0.10 passes back 0
    assert why.finite or (why.cause, why.rewrite) == (causes.NORM, causes.REWRITES[causes.NORM])


WITHOUT_FLAGS = """
import jax, jax.numpy as jnp, numpy as np
from jaxnn import graph

def deviation(x):
    return jnp.sqrt(jnp.mean(x**2) - jnp.mean(x) ** 2 + 1e-12)

differ = 0
for c in (0.1, 0.3, 1.1, 3.3, 7.7, 123.4):
    x = jnp.full(7, c)
    ways = [bool(jnp.isfinite(f(x))) for f in (deviation, jax.jit(deviation))]
    why = graph.explain_nonfinite(deviation)(x)
    if len(set(ways)) > 1 or why.runs:
        differ += 1
        said = why.runs[0].split(", ")
        assert [not way.startswith("not ") for way in said[1:]] == ways, (ways, why.runs)
        assert not why.finite and why.cause == "finite or not depending on rounding", str(why)
assert differ, "eager and jitted agree everywhere"
"""


def test_rounding_in_one_piece_as_users_compile():
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", WITHOUT_FLAGS], env=env, check=True)
