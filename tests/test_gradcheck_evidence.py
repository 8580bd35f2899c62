"""What gradcheck's verdicts rest on: kinks that meet, replayed programs, precision fixed inside, differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy

from jaxnn import gradcheck
from jaxnn.gradcheck.differences import slope_of
from jaxnn.gradcheck.mixtures import nearest
from jaxnn.gradcheck.replay import casts, replay, widen

TIED = np.array([[0.0, 0.0, 1.0], [0.0, -2.0, 0.0]], np.float32)


def long(*values):
    """A parameter of a test of which others are quick and of the same kind: each check is a dozen programs."""
    return pytest.param(*values, marks=pytest.mark.long)


def relu_with(slope):
    return lambda args, d: (d * jnp.where(args[0] == 0, d.dtype.type(slope), (args[0] > 0).astype(d.dtype)),)


def verdict(f, args, backward):
    return gradcheck.function(f, args, backward).verdict


# ---------------------------------------------------------------- rounding in float64


def divergence(a, b):
    p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return (jnp.exp(p) * (p - q)).sum(1)


@pytest.mark.parametrize(("error", "expected"), [(0.0, "right"), (1e-5, "wrong")])
@pytest.mark.parametrize("scale", [long(1e-7), 1e-6, long(1e-3), long(1.0)])
def test_what_is_rounded_inside_in_float64(scale, error, expected):
    # At 1e-6, log softmax rounds numbers of size 1 that differ by 1e-6: ten digits are left, and no jitter of the
    # arguments shows it.
    def backward(args, d):
        log_p, log_q = (jax.nn.log_softmax(x) for x in args)
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        ratio = log_p - log_q
        off = d[:, None] * (1 + d.dtype.type(error))
        return off * p * (ratio - (p * ratio).sum(1, keepdims=True)), d[:, None] * (q - p)

    with jax.enable_x64(True):
        a, b = (jnp.asarray(scale * np.random.default_rng(seed).normal(size=(4, 5))) for seed in (0, 1))
        assert verdict(divergence, (a, b), backward) == expected


def test_what_only_this_precision_does_where_it_has_no_digits():
    # log cosh of bfloat16's 1e-3: rounding is as large as the gradient, so that a fault there cannot be told from it.
    f = lambda x: x + jax.nn.softplus(-2 * x) - np.log(2.0).astype(x.dtype)

    def backward(args, d):
        grad = d * jnp.tanh(args[0])
        return (grad.at[0].set(0) if d.dtype == jnp.bfloat16 else grad,)

    x = jnp.array([2e-3, 3e-3, -1e-3], jnp.bfloat16)
    assert verdict(f, (x,), backward) == "cannot tell"
    assert verdict(f, (x,), lambda args, d: (d * jnp.tanh(args[0]),)) == "right"


def test_differences_that_rounding_spoils_decide_nothing():
    # ⟨δ, log cosh⟩ at 1e-5 is 1e-10 of numbers of size 1: differences are good to three digits there.
    f = lambda x: x + jax.nn.softplus(-2 * x) - np.log(2.0)
    with jax.enable_x64(True):
        x = jnp.asarray(3e-5 * np.random.default_rng(3).normal(size=(4, 3)))
        assert verdict(f, (x,), lambda args, d: (d * jnp.tanh(args[0]) * (1 + 1e-4),)) == "wrong"
        assert verdict(f, (x,), lambda args, d: (d * jnp.tanh(args[0]),)) == "right"


@pytest.mark.parametrize("f", [jnp.sqrt, long(lambda p: p * jnp.log(p))])
def test_a_side_without_a_slope_is_no_kink(f):
    tame = lambda x: jnp.where(x > 0, f(jnp.where(x > 0, x, 1)), 0)  # one-sided slope 0 at 0, and infinite
    naive = lambda x: jnp.where(x > 0, f(x), 0)
    backward = lambda args, d: jax.vjp(tame, *args)[1](d)
    assert verdict(naive, (jnp.array([0.0, 1.0]),), backward) == "cannot tell"


# ---------------------------------------------------------------- kinks


@pytest.mark.parametrize(
    ("slope", "expected"),
    [(0.0, "kink"), long(0.25, "kink"), long(1.0, "kink"), (2.0, "wrong"), long(-0.1, "wrong")],
)
def test_independent_ties_each_have_a_side_of_their_own(slope, expected):
    # δ has both signs, so that no single direction to the side takes the right side of all four ties.
    assert verdict(lambda x: jnp.maximum(x, 0), (TIED,), relu_with(slope)) == expected


@pytest.mark.long  # a tie in test_gradcheck_function is its quick kin
def test_ties_of_one_array_must_be_a_mixture():
    x = jnp.array([1.0, 1.0, 0.5])

    def rule(first, second):
        def backward(args, d):
            (x,) = args
            tied = jnp.array([first, second, 0.0], d.dtype)
            return (d * jnp.where(x[0] == x[1], tied, (x == x.max()).astype(d.dtype)),)

        return backward

    assert verdict(jnp.max, (x,), rule(1.0, 0.0)) == "kink"
    assert verdict(jnp.max, (x,), rule(0.25, 0.75)) == "kink"
    assert verdict(jnp.max, (x,), rule(0.5, 0.5)) == "right"
    report = gradcheck.function(jnp.max, (x,), rule(1.0, 1.0))  # each is between its slopes
    assert report.verdict == "wrong"
    assert "no convex combination" in str(report)


@pytest.mark.long  # two layers of them are below
def test_blank_rows_through_a_layer_of_relus():
    def layer(x, w, b):
        return jnp.maximum(x @ w + b, 0)

    def backward(args, d):
        x, w, b = args
        dz = d * (x @ w + b > 0).astype(d.dtype)
        return dz @ w.T, x.T @ dz, dz.sum(0)

    w = jnp.array([[0.9, -0.4, 0.3], [0.2, 1.1, -0.8], [-0.5, 0.6, 0.7]])
    x = jnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, -0.2, 1.0]])
    report = gradcheck.function(layer, (x, w, jnp.zeros(3)), backward)
    assert report.verdict == "kink", report  # the rule takes slope 0 where jax.grad shares the tie equally
    doubled = gradcheck.function(layer, (x, w, jnp.zeros(3)), lambda args, d: tuple(2 * g for g in backward(args, d)))
    assert doubled.verdict == "wrong"


def relus(x, w, b, v):
    """Ties after ties: what the first layer makes of blank rows is 0, and so is what the second makes of that."""
    return jnp.maximum(jnp.maximum(x @ w + b, 0) @ v, 0)


def by_conventions(first, second):
    """The rule of `relus` with slopes at 0 for each layer: a number, or one for each element."""

    def backward(args, d):
        x, w, b, v = args
        z = x @ w + b
        h = jnp.maximum(z, 0)
        slope = lambda z, at: jnp.where(z == 0, jnp.asarray(at, z.dtype), (z > 0).astype(z.dtype))
        dy = d * slope(h @ v, second)
        dz = (dy @ v.T) * slope(z, first)
        return dz @ w.T, x.T @ dz, dz.sum(0), h.T @ dy

    return backward


SIDES = np.random.default_rng(0).integers(0, 2, (5, 4))  # a convention for each row and unit


@pytest.mark.parametrize(("first", "second", "expected"), [
    (0, 0, "kink"), long(1, 1, "kink"), long(0.2, 1, "kink"), long(SIDES[:, :3], SIDES[:, 2:], "kink"),
    (2, 1, "wrong"), long(1, 1.25, "wrong"), long(-0.5, 1, "wrong"),
])  # fmt: skip
def test_ties_that_meet_in_one_gradient(first, second, expected):
    rng = np.random.default_rng(4)
    w, v, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 3), (3, 2), (5, 3)))
    x[1:4] = 0
    # b moves all blank rows at once, x one row and all its units: no argument moves one tie, and each has its own side
    report = gradcheck.function(relus, (1e-4 * x, w, np.zeros(3, np.float32), v), by_conventions(first, second))
    assert report.verdict == expected, report


@pytest.mark.parametrize(("at_0", "expected"), [long(1.0, "kink"), long(0.3, "kink"), (1.1, "wrong")])
def test_a_thousand_ties(at_0, expected):
    x = np.zeros((40, 25), np.float32)
    x[::2] = 1
    assert verdict(lambda x: jnp.maximum(x, 0), (x,), relu_with(at_0)) == expected
    slopes = np.zeros(x.shape, np.float32)
    slopes[3, 7] = at_0  # that of one tie, which the others must not hide
    one = lambda args, d: (d * jnp.where(args[0] == 0, slopes.astype(d.dtype), (args[0] > 0).astype(d.dtype)),)
    assert verdict(lambda x: jnp.maximum(x, 0), (x,), one) == expected


@pytest.mark.parametrize(("both", "expected"), [(0.0, "kink"), long(1.0, "wrong")])
def test_ties_inside_a_scan(both, expected):
    def largest(x):
        return jax.lax.scan(lambda most, row: (jnp.maximum(most, row), most), x[0], x[1:])[0]

    def backward(args, d):
        (x,) = args
        top = x == x.max(0)
        winners = jnp.where(both, top, top & (jnp.cumsum(top, 0) == 1))
        return (winners.astype(d.dtype) * d,)

    x = np.array([[1.0, 0.5], [1.0, 2.0], [0.3, 2.0], [1.0, 2.0]], np.float32)
    assert verdict(largest, (x,), backward) == expected


@pytest.mark.parametrize(("at_0", "expected"), [long(0.0, "kink"), (2.0, "wrong")])
def test_ties_beside_a_rule_that_forbids_forward_mode(at_0, expected):
    @jax.custom_vjp
    def triple(x):
        return 3 * x

    triple.defvjp(lambda x: (3 * x, None), lambda _, d: (3 * d,))
    rule = lambda args, d: relu_with(at_0)(args, 3 * d)
    assert verdict(lambda x: triple(jnp.maximum(x, 0)), (TIED,), rule) == expected
    assert verdict(lambda x: jnp.maximum(triple(x), 0), (TIED,), rule) == expected


def test_the_nearest_mixture():
    rng = np.random.default_rng(1)
    for count in (1, 2, 5, 12):
        points = rng.standard_normal((count, 4)) + 0.5
        weights = nearest(points)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)
        near = weights @ points
        assert (points @ near).min() >= near @ near - 1e-9  # no point lies before the plane through it


def test_a_point_treated_specially_is_wrong_where_there_is_no_kink():
    report = gradcheck.function(
        lambda x: x**2 + x, (jnp.zeros(3),), lambda args, d: (d * jnp.where(args[0] == 0, 0, 2 * args[0] + 1),)
    )
    assert report.verdict == "wrong"
    assert "no kink" in str(report)


# ---------------------------------------------------------------- programs that do not run in float64 by themselves


@pytest.mark.parametrize("off", [long(1.0), 1.001])
def test_linear_algebra_is_replayed(off):
    def backward(args, d):
        a, b = args
        y = jnp.linalg.solve(a, b)
        db = jnp.linalg.solve(a.T, d) * off
        return -jnp.outer(db, y), db

    a = (np.eye(4) * 3 + np.cos(np.arange(16.0)).reshape(4, 4)).astype(np.float32)
    report = gradcheck.function(jnp.linalg.solve, (a, np.arange(1, 5, dtype=np.float32)), backward)
    assert report.verdict == ("right" if off == 1 else "wrong"), report


@pytest.mark.parametrize("off", [long(1.0), 1.0001])
def test_sums_held_in_float32(off):
    def product(a, b):
        return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)

    def backward(args, d):
        return product(d, args[1].T) * off, product(args[0].T, d)

    a, b = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    report = gradcheck.function(product, (a, b), backward)
    assert report.verdict == ("right" if off == 1 else "wrong"), report


def scanned(x):
    return jax.lax.scan(lambda c, t: (c * 0.5 + jnp.sin(t), c), jnp.zeros((), x.dtype), x)[1].sum()


def looped(x):
    return jax.lax.fori_loop(0, 3, lambda _, c: jnp.tanh(c) + x, x)


def branched(x):
    return jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)


def searched(x):
    return jnp.sort(x)[jnp.argmax(x)] + jnp.take(x, jnp.array([0, 2])).sum() + x.at[1].add(x[0]).prod()


def special(x):
    return jax.scipy.special.gammaln(x * x + 1) + jax.scipy.special.erfinv(x / 9) + jax.nn.logsumexp(x)


def algebra(x):
    a = jnp.outer(x, x) + 3 * jnp.eye(3, dtype=x.dtype)
    return jnp.linalg.cholesky(a).sum() + jnp.linalg.slogdet(a)[1] + jnp.linalg.inv(a).sum()


def convolved(x):
    return jnp.convolve(x, x) + jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (1,), "VALID").sum()


REPLAYED = [
    scanned, looped, branched, long(searched), long(special), long(algebra), convolved, jax.checkpoint(special),
]  # fmt: skip


@pytest.mark.parametrize("f", REPLAYED, ids=lambda f: f.__name__)
def test_a_float32_program_is_replayed_as_the_float64_one(f):
    x = jnp.array([0.3, -1.2, 0.7])
    closed = jax.make_jaxpr(jax.value_and_grad(lambda x: jnp.sum(f(x))))(x)
    with jax.enable_x64(True):
        wide = widen(x)
        value, slope = by_numpy(jax.value_and_grad(lambda x: jnp.sum(f(x))))(wide)
        replayed = replay(closed)(wide)
        assert [r.dtype for r in replayed] == ["float64", "float64"]
        # a literal such as 0.5772156649 was rounded when float32 was traced, so the two agree to its rounding only
        np.testing.assert_allclose(replayed[0], value, rtol=1e-6)
        np.testing.assert_allclose(replayed[1], slope, rtol=1e-6)


def test_what_narrows_is_found():
    with jax.enable_x64(True):
        x = jnp.ones((2, 2), jnp.float64)
        narrowing = (
            lambda x: x.astype(jnp.float32).astype(jnp.float64),
            lambda x: jax.lax.dot(x, x, preferred_element_type=jnp.float32).astype(jnp.float64),
            lambda x: jax.lax.reduce_precision(x, 8, 7),
            jax.jit(lambda x: x.astype(jnp.bfloat16)),
        )
        for f in narrowing:
            (found,) = casts(jax.make_jaxpr(f)(x))
            assert "test_gradcheck_evidence.py" in found.source
        assert not casts(jax.make_jaxpr(lambda x: jnp.sin(x) @ x)(x))


# ---------------------------------------------------------------- differences


@pytest.mark.parametrize(("g", "slope"), [
    (np.sin, 1.0), (np.expm1, 1.0), (lambda t: t / (1 + 100 * t), 1.0), (lambda t: 3 * t, 3.0),
    (lambda t: np.tanh(300 * t), 300.0), (lambda t: 1e6 * t + 1e6 * t**2, 1e6),
])  # fmt: skip
def test_differences_are_good_to_eight_digits_and_say_so(g, slope):
    found = slope_of(g, 1.0)
    assert found.value == pytest.approx(slope, rel=1e-8)
    assert abs(found.value - slope) <= 10 * found.error + 1e-14 * slope
    assert not found.bends


@pytest.mark.parametrize(("left", "right"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.1)])
def test_slopes_from_both_sides_of_a_kink(left, right):
    found = slope_of(lambda t: np.where(t > 0, right * t, left * t) + np.sin(t) ** 2, 1.0)
    assert found.bends
    assert (found.left, found.right) == pytest.approx((left, right), abs=1e-6)
