"""`pytest --gradcheck`: a suite's custom rules are judged when it has ended, and nothing that it computes changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxnn.gradcheck import observing

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[1]

OPS = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def square(x):
    return x * x

square.defvjp(lambda x: (x * x, x), lambda x, d: (3 * x * d,))

@jax.custom_jvp
def cube(x):
    return x**3

cube.defjvps(lambda t, out, x: 3 * x * x * t)

@jax.custom_vjp
def straight(x):
    return jnp.round(x)

straight.defvjp(lambda x: (jnp.round(x), None), lambda _, d: (d,))
"""
CLEAN = """
import jax, jax.numpy as jnp
from ops import cube

def test_cube():
    assert jax.jit(jax.grad(lambda x: cube(x).sum()))(jnp.arange(3.0)).shape == (3,)
"""
FAULTY = """
import jax, jax.numpy as jnp
from ops import square

@jax.jit
def total(x):
    return jax.lax.scan(lambda c, x: (c + square(x), None), 0.0, x)[0]

def test_first():
    assert total(jnp.arange(3.0)) == 5

def test_second():
    assert jax.vmap(jax.grad(square))(jnp.arange(3.0)).shape == (3,)
"""


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch):
    """They take a second to load."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def suite(pytester, monkeypatch):
    """Runs pytest on some files, in this process or in one of its own, and prints what it prints for a person.

    Where one of these variables is set, a summary is given without cutting its lines.
    """
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)

    def run(*options, process=False, **files):
        pytester.makepyfile(ops=OPS, **files)
        pytester.syspathinsert(ROOT)
        start = pytester.runpytest_subprocess if process else pytester.runpytest_inprocess
        return start("-p", "pytest_jaxnn", "-p", "no:cacheprovider", *options)

    return run


def lines(result):
    return "\n".join(result.outlines)


def test_a_clean_suite_passes(suite):
    result = suite("--gradcheck", test_clean=CLEAN)
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    assert "1 custom rules at 1 shapes and dtypes" in lines(result)
    assert "1 right" in lines(result)


def test_a_wrong_rule_is_a_failure_that_names_the_rule_and_the_test(suite):
    result = suite("--gradcheck", test_clean=CLEAN, test_faulty=FAULTY)
    assert result.ret == 1
    result.assert_outcomes(passed=3, failed=1)
    title = "gradcheck: rule square (ops.py:3), first run by test_faulty.py::test_first"
    assert f"FAILED {title}" in lines(result)
    assert "It is 1.5 times" in lines(result)
    assert "random values" not in lines(result)
    assert "2 custom rules" in lines(result)


def test_without_the_flag_nothing_is_judged(suite):
    result = suite(test_faulty=FAULTY)
    assert result.ret == 0
    assert "gradcheck" not in lines(result)


def test_without_the_flag_nothing_is_imported():
    code = "import sys, pytest_jaxnn; print([name for name in ('jax', 'jaxnn', 'numpy') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_suite_without_jax_runs_without_it(suite):
    suite_of = "import sys\ndef test_it():\n    assert not {'jax', 'jaxnn'} & set(sys.modules)\n"
    result = suite(process=True, test_plain=suite_of)
    assert result.ret == 0


def test_what_is_allowed_is_listed(suite, pytester):
    surrogate = "from ops import straight\ndef test_it():\n    assert straight(1.2) == 1\n"
    surrogate = surrogate.replace("straight(1.2)", "straight(jnp.float32(1.2))").replace(
        "def", "import jax.numpy as jnp\ndef"
    )
    assert suite("--gradcheck", test_surrogate=surrogate).ret == 1
    pytester.maketxtfile(allowed="# by intention\nops.py:straight  # an estimator\n\n")
    result = suite("--gradcheck", "--gradcheck-allow=allowed.txt", test_surrogate=surrogate)
    assert result.ret == 0
    assert "allowed: straight float32[]" in lines(result)
    result = suite("--gradcheck", "--gradcheck-allow=missing.txt", test_surrogate=surrogate)
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_the_budget_leaves_rules_out_and_says_so(suite):
    result = suite("--gradcheck", "--gradcheck-budget=0", test_faulty=FAULTY)
    assert result.ret == 0
    assert "1 left out because of the budget of 0 s per rule" in lines(result)
    assert "left: square float32[]" in lines(result)


def test_workers_report_to_the_controller(pytester):
    pytest.importorskip("xdist")
    pytester.makepyfile(ops=OPS, test_clean=CLEAN, test_faulty=FAULTY)
    pytester.syspathinsert(ROOT)
    result = pytester.runpytest_subprocess(
        "-p", "pytest_jaxnn", "-p", "xdist.plugin", "-p", "no:cacheprovider", "-n2", "--gradcheck"
    )
    assert result.ret == 1
    result.assert_outcomes(passed=3, failed=1)
    assert "FAILED gradcheck: rule square (ops.py:3), first run by test_faulty.py::test_" in lines(result)


PRINTS = """
import jax, jax.numpy as jnp, numpy as np, random
from ops import square, cube
count = []

@jax.jit
def step(x, key):
    count.append(1)
    y = jax.lax.scan(lambda c, x: (jnp.sin(c + square(x) + cube(x)), c), 0.0, x)[1]
    return y + jax.random.normal(key, y.shape)

def test_numbers():
    key = jax.random.key(0)
    for x in (np.linspace(0, 1, 4), np.linspace(0, 1, 5), np.linspace(1, 2, 4)):
        print("bits", np.asarray(step(jnp.asarray(x, jnp.float32), key)).tobytes().hex())
        print("bits", np.asarray(jax.grad(lambda x: step(x, key).sum())(jnp.asarray(x, jnp.float32))).tobytes().hex())
    print("bits", np.asarray(jax.vmap(square)(jnp.arange(3.0))).tobytes().hex())
    print("bits traces", len(count), np.random.rand(), random.random())

def test_programs():
    lowered = jax.jit(lambda x: square(x) * cube(x)).lower(jnp.arange(3.0))
    print("bits", hash(lowered.as_text(debug_info=True)), lowered.as_text(debug_info=True).count("observing"))
    print("bits", jax.make_jaxpr(jax.grad(lambda x: square(x) * cube(x)))(1.0))
"""


def test_a_suite_computes_what_it_computes_without_the_flag(suite, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    seeded = "import numpy, random\nnumpy.random.seed(0)\nrandom.seed(0)\n" + PRINTS
    told = [
        [line for line in suite(*options, "-s", process=True, test_it=seeded).outlines if "bits" in line]
        for options in ((), ("--gradcheck",))
    ]
    assert len(told[0]) >= 10
    assert told[0] == told[1]


DONATED = """
import functools, jax, jax.numpy as jnp
from ops import square

@functools.partial(jax.jit, donate_argnums=0)
def step(x):
    return x + square(x)

def test_it():
    x = jnp.arange(1.0, 4.0)
    assert step(x).shape == (3,)
    assert x.is_deleted()

state = {}

def test_gone():
    state["scale"] = 2.0
    jax.jit(lambda x: square(x * state["scale"]).sum())(jnp.ones((2, 2)))
    state.clear()

def test_closure():
    def f(x, w):
        @jax.custom_vjp
        def times(y):
            return y * w
        times.defvjp(lambda y: (y * w, None), lambda _, d: (d * w * 2,))
        return jax.grad(lambda y: times(y).sum())(x)
    jax.jit(f)(jnp.ones(3), jnp.arange(1.0, 4.0))
"""


def test_donated_arrays_and_functions_that_cannot_be_run_again(suite):
    result = suite("--gradcheck", test_it=DONATED)
    text = lines(result)
    result.assert_outcomes(passed=3, failed=2)
    assert "wrong: square float32[3]" in text
    assert "wrong: square float32[2,2]" in text
    assert "wrong: times float32[3]" in text
    assert text.count("random values") == 1
    assert "first run by test_it.py::test_closure" in text


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_summary_has_a_line_for_a_rule(suite, monkeypatch, ci):
    if ci:
        monkeypatch.setenv("CI", ci)
    result = suite("--gradcheck", "--junitxml=out.xml", test_it=DONATED)
    summary = lines(result).partition("short test summary info")[2].splitlines()[1:]
    assert len(summary) == 3
    assert summary[0].startswith("FAILED gradcheck: rule square (ops.py:3), first run by test_it.py::test_it - ")
    assert ("float32[3], float32[2,2]" in summary[0]) == bool(ci)
    xml = Path("out.xml").read_text()
    assert xml.count('message="wrong for ') == 2
    assert "3 of 3 elements are off" in xml


def test_an_error_of_the_plugins_own_is_a_line_of_the_summary(suite, monkeypatch):
    def broken(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(observing, "site_of", broken)
    result = suite("--gradcheck", test_clean=CLEAN)
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    assert "an error of the plugin: RuntimeError: a fault of ours" in lines(result)
