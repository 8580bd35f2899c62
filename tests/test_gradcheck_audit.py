"""Custom rules that a function runs are found, at the values that reach it; wrong ones are named, right ones pass."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_cases import CASES, cube_jvp, numbers, square_rule

from jaxnn import gradcheck
from jaxnn.gradcheck.marks import CLASSES, ORIGINAL, collected
from jaxnn.gradcheck.replay import replay
from jaxnn.gradcheck.sites import fingerprint, site_of

X = numbers(3)


@pytest.fixture(autouse=True)
def as_users_write():
    """The programs here stand for users' own, in which a mask times an array is usual."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


FAST = {  # a place or a fault each that goes another way through the audit; the others repeat one of these
    *("in the body of a scan", "behind jit and vmap, a dropped term", "in bfloat16, in a gradient"),
    *("nondiff_argnums of a custom_vjp", "in a training step", "within another rule, which is right"),
    *("closing over what is traced", "around a callback", "a forward with another value", "a jvp that is not linear"),
    *("in the backward of another rule alone", "traced elsewhere"),
}
EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.long) for name in CASES]


def audited(case):
    with jax.enable_x64(case.x64):
        return gradcheck.audit(case.f)(*case.args)


@pytest.mark.parametrize("name", EVERY)
def test_a_wrong_rule_is_named_wherever_it_is(name):
    case = CASES[name](True)
    report = audited(case)
    assert report.wrong == (case.rule,), str(report)
    row = next(row for row in report.rows if row.verdict == "wrong")
    assert row.place.startswith(case.rule)
    assert ":" in row.source
    assert f"({case.rule})" in row.source or "<lambda>" in row.source


@pytest.mark.parametrize("name", EVERY)
def test_a_right_rule_gives_no_alarm(name):
    case = CASES[name](False)
    report = audited(case)
    assert report.ok, str(report)
    assert any(row.place.startswith(case.rule) for row in report.rows), "it was not found"


def test_the_report_says_where_the_rule_is_defined_and_called_and_what_it_gives():
    square = square_rule(3.0)

    def f(x):
        return square(x).sum()  # the call

    row = gradcheck.audit(jax.jit(f))(X).rows[0]
    definition, call = square.fun.__code__.co_firstlineno, f.__code__.co_firstlineno + 1
    assert row.source.endswith(f"audit_cases.py:{definition} (square)")
    assert f"test_gradcheck_audit.py:{call} (f)" in row.why
    assert row.hand == pytest.approx(1.5 * row.autodiff)
    assert row.differences == pytest.approx(row.autodiff, rel=1e-6)
    assert row.element is not None
    assert "square" in str(gradcheck.audit(f)(X))


# ---------------------------------------------------------------- which values reach a rule


def test_there_are_thirty_and_more():
    assert len(CASES) >= 30
    assert set(CASES) >= FAST


def values_of(f, *args):
    calls = collected(f, args, {})
    return {call.site.name: [np.concatenate([np.ravel(v) for v in values]) for values in call.values] for call in calls}


def test_values_are_those_of_the_program():
    square, cube = square_rule(2.0), cube_jvp(3.0)

    def f(x):
        _, ys = jax.lax.scan(lambda c, x: (c, square(x)), 0.0, x)
        return ys.sum() + jax.vmap(jax.vmap(cube, in_axes=1))(x.reshape(1, 2, 3)).sum()

    x = jnp.arange(1.0, 7.0)
    found = values_of(jax.jit(jax.grad(f)), x)
    assert set(found) == {"square", "cube"}
    for values in found.values():
        assert len(values) == 3
        assert set(np.concatenate(values).tolist()) <= set(np.asarray(x).tolist())


def test_a_batch_is_seen_one_example_at_a_time():
    calls = []

    @jax.custom_vjp
    def dot(x, w):
        return x @ w

    dot.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, d: (d * kept[1], d * kept[0]))
    x, w = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    f = jax.vmap(jax.vmap(dot, (None, 1)), (0, None))
    calls = collected(jax.jit(f), (jnp.asarray(x), jnp.asarray(w)), {})
    (call,) = calls
    assert [spec.shape for spec in call.site.specs] == [(2,), (2,)]
    for a, b in call.values:
        assert a.tolist() in x.tolist()
        assert b.tolist() in w.T.tolist()


def test_functions_that_jit_has_seen_before_are_found_and_stay_as_they_were():
    count = []

    @jax.jit
    def f(x):
        count.append(1)
        return jnp.sum(jax.nn.relu(x))

    before = f(X)
    report = gradcheck.audit(f)(X)
    assert [row.place for row in report.rows] == ["relu float32[3]"]
    seen = len(count)
    assert f(X) == before
    assert len(count) == seen, "an audit's trace was taken for the function's, or the other way round"
    again = gradcheck.audit(f)(X)
    assert [row.place for row in again.rows] == ["relu float32[3]"]
    assert "gradcheck_mark" not in str(jax.make_jaxpr(f)(X))


def test_everything_is_restored_whatever_happens():
    def f(x):
        square_rule(2.0)(x)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        gradcheck.audit(f)(X)
    assert {cls: cls.__call__ for cls in CLASSES} == ORIGINAL


def test_other_threads_are_left_alone():
    square = square_rule(2.0)
    inside, found = threading.Event(), []

    def other():
        inside.wait(10)
        found.append(str(jax.make_jaxpr(lambda x: square(x))(X)))

    thread = threading.Thread(target=other)
    thread.start()

    def f(x):
        inside.set()
        thread.join(10)
        return square(x).sum()

    assert gradcheck.audit(f)(X).ok
    assert found
    assert "gradcheck_mark" not in found[0]


def test_one_rule_is_judged_once_for_each_signature():
    square = square_rule(2.0)

    def f(x):
        y = square(x) + square(2 * x) + square_rule(2.0)(x)
        return y.sum() + square(x.sum()) + square(x.astype(jnp.bfloat16)).sum().astype(jnp.float32)

    places = [row.place for row in gradcheck.audit(f)(X).rows]
    assert places == ["square float32[3]", "square float32[]", "square bfloat16[3]"]


def test_rules_of_one_code_and_other_settings_are_two():
    report = gradcheck.audit(lambda x: square_rule(2.0)(x) + square_rule(2.5)(x))(X)
    assert [row.verdict for row in report.rows] == ["right", "wrong"]
    assert fingerprint(square_rule(2.0).bwd) == fingerprint(square_rule(2.0).bwd) != fingerprint(square_rule(1.0).bwd)


# ---------------------------------------------------------------- kinks, surrogates, what cannot be told


def test_kinks_are_kinks():
    @jax.custom_vjp
    def size(x):
        return jnp.abs(x)

    size.defvjp(lambda x: (jnp.abs(x), x), lambda x, d: (jnp.where(x > 0, d, -d),))

    def f(x):
        return (jax.nn.relu(x) + jax.nn.relu6(x) + size(x)).sum()

    report = gradcheck.audit(jax.jit(f))(jnp.array([-1.0, 0.0, 2.0]))
    verdicts = {row.place.split()[0]: row.verdict for row in report.rows}
    assert verdicts == {"relu": "kink", "relu6": "kink", "size": "kink"}
    assert report.ok


def test_a_rule_that_calls_itself_for_the_next_derivative_has_an_end():
    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def derivative(n, x):
        return [jnp.sin, jnp.cos, lambda x: -jnp.sin(x), lambda x: -jnp.cos(x)][n % 4](x)

    @derivative.defjvp
    def derivative_jvp(n, primals, tangents):
        return derivative(n, *primals), derivative(n + 1, *primals) * tangents[0]

    report = gradcheck.audit(lambda x: derivative(0, x))(X)
    assert [row.verdict for row in report.rows] == ["right"]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_point_at_which_only_the_parts_of_a_function_have_kinks(wrong):
    """Log(eˣ + eʸ) by maximum and |x − y| is smooth at x = y, where jax.grad of its parts adds up to anything."""

    @jax.custom_jvp
    def log_sum(x, y):
        return jnp.maximum(x, y) + jnp.log1p(jnp.exp(-jax.nn.relu(x - y) - jax.nn.relu(y - x)))

    @log_sum.defjvp
    def log_sum_jvp(primals, tangents):
        (x, y), (t, s) = primals, tangents
        p = jnp.where(x == y, 0.6 if wrong else 0.5, jax.nn.sigmoid(x - y))
        return log_sum(x, y), p * t + (1 - p) * s

    report = gradcheck.audit(lambda x, y: log_sum(x, y).sum())(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
    rows = [row for row in report.rows if row.place.startswith("log_sum")]
    assert report.wrong == (("log_sum",) if wrong else ()), str(report)
    assert rows


@pytest.mark.parametrize("pattern", ["round_*", "test_gradcheck_audit.py:round_through", "*/tests/*.py:round_through"])
def test_surrogates_are_listed_where_they_are_allowed(pattern):
    @jax.custom_vjp
    def round_through(x):
        return jnp.round(x)

    round_through.defvjp(lambda x: (jnp.round(x), None), lambda _, d: (d,))

    def f(x):
        return round_through(x).sum()

    assert gradcheck.audit(f)(X).wrong == ("round_through",)
    report = gradcheck.audit(f, allow=[pattern])(X)
    assert [row.verdict for row in report.rows] == ["allowed"]
    assert report.ok
    assert gradcheck.audit(f, allow=["other.py:round_through"])(X).wrong == ("round_through",)


def test_a_function_without_rules_has_no_rows():
    report = gradcheck.audit(lambda x: jnp.sin(x))(X)
    assert report.rows == ()
    assert report.ok


def test_a_rule_that_raises_cannot_be_told():
    @jax.custom_vjp
    def f(x):
        return x * 2

    f.defvjp(lambda x: (x * 2, None), lambda _, d: (d, d))
    (row,) = gradcheck.audit(lambda x: f(x).sum())(X).rows
    assert row.verdict == "cannot tell"
    assert "TypeError" in row.why


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="takes a function"):
        gradcheck.audit(3)
    with pytest.raises(TypeError, match="allow must be names"):
        gradcheck.audit(jnp.sin, allow="sin")


def test_keyword_arguments_and_settings_are_handed_on():
    square = square_rule(3.0)

    def f(x, *, name, scale):
        assert name == "a name"
        return square(x * scale["by"])

    assert gradcheck.audit(f)(X, name="a name", scale={"by": 2.0}).wrong == ("square",)


def test_mutable_arrays_are_left_alone():
    square = square_rule(2.0)
    assert site_of(square, (np.ones(3),)) is not None


def test_a_while_loop_under_vmap_is_replayed_lane_by_lane():
    def f(x):
        return jax.vmap(lambda x: jax.lax.while_loop(lambda c: c[0] < x, lambda c: (c[0] * 2, c[1] + x), (0.3, x)))(x)

    x = jnp.array([0.1, 1.0, 5.0])
    with jax.enable_x64(True):
        wide = replay(jax.make_jaxpr(f)(x))(x.astype(jnp.float64))
    for ours, theirs in zip(wide, f(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_rule_that_is_met_at_zeros_alone_is_said_to_be():
    slope = jax.custom_vjp(lambda x: jax.nn.softplus(x))
    slope.defvjp(lambda x: (jax.nn.softplus(x), x), lambda x, delta: (delta * jax.nn.sigmoid(-x),))
    report = gradcheck.audit(slope)(jnp.zeros(3))
    assert "at zeros alone" in str(report)
    elsewhere = gradcheck.audit(slope)(jnp.array([0.0, 0.5, 1.0]))
    assert not elsewhere.ok
    assert "at zeros alone" not in str(elsewhere)
