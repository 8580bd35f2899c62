"""Where jax.grad, differences or rounding mislead: kinks that cancel, sums that cancel, forwards that are approximate,
rules that are not derivatives, mixed precision, numbers without axes, complex numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import Loss, batch_norm, dense, gradcheck, losses, relu, serial
from jaxnn.gradcheck.rounding import spread

X = jnp.array([0.3, -0.7, 1.2, 0.5])


@pytest.fixture(autouse=True)
def as_users_write():
    """The programs here stand for users' own, who let JAX promote dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def long(*values):
    """A parameter of a test of which others are quick and of the same kind."""
    return pytest.param(*values, marks=pytest.mark.long)


def gradient_row(report):
    return next(row for row in report.rows if row.kind == "gradient")


# ---------------------------------------------------------------- kinks that cancel


def log_cosh(x):
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x))) - math.log(2)


def logits(x):
    """Binary cross-entropy with labels 0 and 1, from logits."""
    t = jnp.arange(x.size).reshape(x.shape) % 2
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))


def logits_slope(x):
    return jax.nn.sigmoid(x) - jnp.arange(x.size).reshape(x.shape) % 2


CANCELLING = {  # smooth at 0: (value, slope)
    "binary cross-entropy": (logits, logits_slope),
    "softplus": (lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), jax.nn.sigmoid),
    "two relus": (lambda x: jax.nn.relu(x) - jax.nn.relu(-x), jnp.ones_like),
    "log cosh": (log_cosh, jnp.tanh),
    "|x| x": (lambda x: jnp.abs(x) * x, lambda x: 2 * jnp.abs(x)),
    "nothing": (lambda x: jnp.maximum(x, 0) + jnp.maximum(-x, 0) - jnp.abs(x), jnp.zeros_like),
    "√x⁴": (lambda x: jnp.sqrt(x**4), lambda x: 2 * x),
}


@pytest.mark.parametrize("points", ["all", long("one"), long("number")])
@pytest.mark.parametrize("name", CANCELLING)
def test_a_smooth_function_of_kinks_that_cancel(name, points):
    value, slope = CANCELLING[name]
    x = {"all": jnp.zeros((2, 3)), "one": X.at[1].set(0), "number": 0.0}[points]
    right = gradcheck.function(value, (x,), lambda a, d: (slope(a[0]) * d,), cotangents=1)
    assert right.verdict == "right", right
    at_0 = lambda a, d: ((slope(a[0]) + 0.25 * (a[0] == 0)) * d,)
    wrong = gradcheck.function(value, (x,), at_0, cotangents=1)
    assert wrong.verdict == "wrong", wrong


@pytest.mark.parametrize("name", ["binary cross-entropy", "two relus", long("softplus")])
def test_repeating_jax_grads_convention_is_wrong_there(name):
    value, slope = CANCELLING[name]
    x = jnp.zeros((2, 3))
    repeats = lambda a, d: jax.vjp(value, *a)[1](d)
    assert not np.allclose(repeats((x,), jnp.ones_like(x))[0], slope(x))  # JAX takes each kink by itself
    row = gradient_row(gradcheck.function(value, (x,), repeats))
    assert row.verdict == "wrong"
    assert "convention contradicts the function" in row.why
    row = gradient_row(gradcheck.function(value, (x,), lambda a, d: (slope(a[0]) * d,)))
    assert row.verdict == "right"
    assert "convention contradicts the function" in row.why


def test_one_repeated_value_among_a_thousand():
    value, slope = CANCELLING["two relus"]
    x = jnp.linspace(0.5, 2.0, 1000).at[417].set(0)
    repeats = lambda a, d: jax.vjp(value, *a)[1](d)
    row = gradient_row(gradcheck.function(value, (x,), repeats, cotangents=1))
    assert row.verdict == "wrong"
    assert row.element == (417,)
    assert gradcheck.function(value, (x,), lambda a, d: (slope(a[0]) * d,), cotangents=1).verdict == "right"


def test_beside_a_kink_that_stays():
    value = lambda x: logits(x) + jnp.abs(x - 1)
    x = jnp.array([0.0, 1.0, 0.0, 1.0])
    slope = lambda x, at_1: logits_slope(x) + jnp.where(x == 1, at_1, jnp.sign(x - 1))
    for at_1, expected in ((0.3, "kink"), (1.2, "wrong")):
        assert gradcheck.function(value, (x,), lambda a, d, s=at_1: (slope(a[0], s) * d,)).verdict == expected


def test_the_first_step_of_a_network_with_a_last_layer_of_zeros():
    bce = Loss("by hand", lambda z, t: logits_of(z, t).sum(1), lambda z, t: jax.nn.sigmoid(z) - t)
    net = serial(dense(2))
    params, state = net.init(jax.random.key(0), (3,))
    params = jax.tree.map(jnp.zeros_like, params)
    x, t = jax.random.normal(jax.random.key(1), (5, 3)), jnp.arange(10.0).reshape(5, 2) % 2
    report = gradcheck.network(net, bce, params, state, x, t)
    assert next(row for row in report.rows if row.kind == "loss").verdict == "right"
    repeats = bce._replace(delta=lambda z, t: jax.grad(lambda z: logits_of(z, t).sum())(z))
    report = gradcheck.network(net, repeats, params, state, x, t)
    assert next(row for row in report.rows if row.kind == "loss").verdict == "wrong"


def logits_of(z, t):
    return jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z)))


def test_one_sided_slopes_alone_forbid_a_limit_of_gradients():
    """Σ ± max over pairs of lines: the first winner of every pair is a gradient nearby, and not between the slopes."""
    pairs = jnp.array([[[0.0, 1, 2], [1, 0, 2]], [[1, 0, 1], [0, 2, 0]]])
    signs = jnp.array([1.0, -1.0])

    def first(a, d):
        winners = jnp.argmax(pairs @ a[0], axis=1)
        return (d * jnp.sum(signs[:, None] * jnp.take_along_axis(pairs, winners[:, None, None], 1)[:, 0], 0),)

    f = lambda w: jnp.sum(signs * jnp.max(pairs @ w, axis=1))
    report = gradcheck.function(f, (jnp.ones(3),), first)
    assert report.verdict == "kink", report


# ---------------------------------------------------------------- the norm at 0


@pytest.mark.parametrize(("at_0", "expected"), [
    ((1.0, 0.0, 0.0), "kink"), long((0.0, -1.0, 0.0), "kink"), long((0.6, 0.0, -0.8), "kink"),
    long((0.1, 0.2, 0.3), "kink"),
    ((1.01, 0.0, 0.0), "wrong"), long((0.7, 0.8, 0.0), "wrong"),
])  # fmt: skip
@pytest.mark.parametrize("norm", [jnp.linalg.norm, long(lambda x: jnp.sqrt(jnp.sum(x * x)))])
def test_subgradients_of_the_norm(norm, at_0, expected):
    def rule(args, d):
        length = jnp.sqrt(jnp.sum(args[0] ** 2))
        return (d * jnp.where(length == 0, jnp.asarray(at_0, d.dtype), args[0] / jnp.where(length == 0, 1, length)),)

    report = gradcheck.function(norm, (jnp.zeros(3),), rule)
    assert report.verdict == expected, report


# ---------------------------------------------------------------- sums that cancel


@pytest.mark.parametrize("seed", [0, long(1), long(2), long(3)])
def test_a_bias_before_batch_norm(seed):
    net = serial(dense(6), batch_norm(), relu, dense(3))
    params, state = net.init(jax.random.key(seed), (5,))
    x = jax.random.normal(jax.random.key(seed + 100), (8, 5))
    report = gradcheck.network(net, losses.softmax_cross_entropy, params, state, x, jnp.arange(8) % 3)
    report.raise_if_failed()
    row = next(row for row in report.rows if row.leaf == "dense_0/b" and row.kind == "gradient")
    assert "0 to rounding" in row.why
    assert row.ulps is None


def centred(b):
    z = X[:, None] * jnp.arange(1.0, 4).astype(b.dtype) + b
    return jnp.sum(jnp.sin(z - z.mean(0)))


def shifted(c):
    return jax.nn.softmax(X.astype(c.dtype) + c) @ jnp.arange(4.0).astype(c.dtype)


@pytest.mark.parametrize("dtype", ["float32", long("bfloat16"), "float64"])
@pytest.mark.parametrize(("f", "x"), [(centred, jnp.array([0.3, -1.1, 2.0])), (shifted, jnp.array(0.7))])
def test_what_an_invariance_makes_0(f, x, dtype):
    zero = gradcheck.function(f, (x,), lambda a, d: (jnp.zeros_like(a[0]),), dtypes=(dtype,))
    assert zero.verdict == "right", zero
    same = gradcheck.function(f, (x,), lambda a, d: jax.vjp(f, *a)[1](d), dtypes=(dtype,))
    assert same.verdict == "right", same
    if dtype != "float64":  # where two equal results need no explanation
        assert "0 to rounding" in gradient_row(same).why
    off = gradcheck.function(f, (x,), lambda a, d: (jnp.full_like(a[0], 1e-5),), dtypes=(dtype,))
    assert off.verdict == "wrong", off


def test_more_than_rounding_and_less_than_differences_resolve():
    slightly = lambda a, d: (jnp.full_like(a[0], 1e-13),)
    with jax.enable_x64(True):
        report = gradcheck.function(centred, (jnp.array([0.3, -1.1, 2.0]),), slightly)
    row = gradient_row(report)
    assert row.verdict == "cannot tell"
    assert "less than differences resolve" in row.why


@pytest.mark.parametrize("f", [lambda x: 1 + 1e-20 * jnp.sin(x), lambda x: (1e20 + jnp.sin(x)) - 1e20])
def test_what_values_do_not_show_is_no_contradiction(f):
    slope = 1e-20 if f(X)[0] == 1 else 1.0
    report = gradcheck.function(f, (X,), lambda a, d: (slope * jnp.cos(a[0]) * d,))
    assert report.verdict == "right", report
    double = gradcheck.function(f, (X,), lambda a, d: (2 * slope * jnp.cos(a[0]) * d,))
    assert double.verdict == "wrong", double


def test_shaking_shows_what_rounding_does():
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(40, 100)) * 10.0 ** rng.uniform(-3, 3, (40, 100)) for _ in range(2))
    x[:, 50:], w[:, 50:] = -x[:, :50], w[:, :50] * (1 + 1e-9)  # sums that cancel
    with jax.enable_x64(True):
        dot = jax.make_jaxpr(lambda x, w: jnp.sum(x * w, axis=1))(jnp.asarray(x), jnp.asarray(w))
        ((shaken,),) = spread([dot], [x, w])
        found = np.asarray(jnp.sum(jnp.asarray(x) * w, axis=1))
    exact = np.array([math.fsum(row) for row in (x * w)])
    size = np.abs(x * w).max(1)
    assert (shaken > 0.05 * 2.0**-53 * size).all()
    assert (shaken < 100 * 2.0**-53 * size).all()
    assert (np.abs(found - exact) < 8 * shaken + 2.0**-53 * size).all()
    with jax.enable_x64(True):
        same = jax.make_jaxpr(lambda x: x - x)(jnp.ones(3))
        assert not np.any(spread([same], [np.ones(3) / 3])[0][0])  # nothing is rounded


# ---------------------------------------------------------------- numbers without axes


@pytest.mark.parametrize(("f", "x", "slope", "expected"), [
    (jnp.abs, 0.0, 0.5, "kink"), (jnp.abs, 0.0, 2.0, "wrong"),
    (lambda x: jnp.clip(x, 0, 1), 1.0, 1.0, "kink"), (lambda x: jnp.clip(x, 0, 1), 1.0, -0.5, "wrong"),
    long(jax.nn.relu, 0.0, 1.0, "kink"), long(lambda x: jnp.maximum(x, -x), 0.0, 1.5, "wrong"),
])  # fmt: skip
def test_kinks_of_a_number(f, x, slope, expected):
    rule = lambda a, d: (jnp.where(a[0] == x, slope, jax.grad(f)(a[0])) * d,)
    report = gradcheck.function(f, (x,), rule)
    assert report.verdict == expected, report


@pytest.mark.parametrize(("at_knot", "expected"), [(1.0, "kink"), long(-2.0, "right"), (1.5, "wrong")])
def test_interpolation_at_a_knot(at_knot, expected):
    f = lambda x: jnp.interp(x, jnp.arange(4.0), jnp.array([0.0, 1.0, -1.0, 3.0]))
    slope = lambda x: jnp.where(x == 1, at_knot, jnp.where(x < 1, 1.0, -2.0))
    report = gradcheck.function(f, (1.0,), lambda a, d: (slope(a[0]).astype(d.dtype) * d,))
    assert report.verdict == expected, report


# ---------------------------------------------------------------- approximate forwards


def fixed_point(a, steps):
    """x = a cos x, by iteration."""
    return jax.lax.fori_loop(0, steps, lambda _, x: a * jnp.cos(x), jnp.full_like(a, 0.5))


def implicit(steps, factor=1.0):
    def backward(args, d):
        (a,) = args
        x = fixed_point(a, steps)
        return (factor * d * jnp.cos(x) / (1 + a * jnp.sin(x)),)

    return backward


SERIES = 8  # terms


def by_series(x):
    return sum(x**k / math.factorial(k) for k in range(SERIES))


TABLE = np.linspace(-2, 2, 4001)


def by_table(x):
    return jnp.interp(x, TABLE.astype(x.dtype), np.sin(TABLE).astype(x.dtype))


APPROXIMATE = {  # (f, rule of a factor, error)
    "fixed point": (lambda a: fixed_point(a, 25), lambda factor: implicit(25, factor), 1e-5),
    "series": (by_series, lambda factor: lambda a, d: (factor * by_series(a[0]) * d,), 1e-4),
    "table": (by_table, lambda factor: lambda a, d: (factor * jnp.cos(a[0]) * d,), 1e-4),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_forward_error(name):
    f, rule, error = APPROXIMATE[name]
    x = jnp.array([0.5, 0.7, 0.8013])
    assert not gradcheck.function(f, (x,), rule(1.0)).ok
    report = gradcheck.function(f, (x,), rule(1.0), forward_error=error)
    assert report.verdict == "right", report
    assert f"forward_error={error:g}" in report.title
    assert f"forward_error={error:g}" in gradient_row(report).why
    assert gradcheck.function(f, (x,), rule(1.01), forward_error=error).verdict == "wrong"


def test_a_while_loop_is_refused_with_advice():
    def loop(a):
        test = lambda pair: jnp.max(jnp.abs(pair[0] - pair[1])) > 1e-6
        return jax.lax.while_loop(test, lambda pair: (pair[1], a * jnp.cos(pair[1])), (a * 0, a * 0 + 0.5))[1]

    x = jnp.array([0.5, 0.7])
    with pytest.raises(ValueError, match=r"while_loop.*fixed.*forward_error="):
        gradcheck.function(loop, (x,), implicit(40))
    f = jax.custom_vjp(loop)
    f.defvjp(lambda a: (loop(a), a), lambda a, d: implicit(40)((a,), d))
    with pytest.raises(ValueError, match="while_loop"):
        gradcheck.custom_vjp(f, loop, (x,))
    report = gradcheck.custom_vjp(f, lambda a: fixed_point(a, 60), (x,), forward_error=1e-6)
    assert report.verdict == "right", report


@pytest.mark.parametrize("error", [-1e-6, 1.0, float("nan")])
def test_a_forward_error_that_is_none(error):
    with pytest.raises(ValueError, match="forward_error"):
        gradcheck.function(jnp.sin, (X,), lambda a, d: (jnp.cos(a[0]) * d,), forward_error=error)


# ---------------------------------------------------------------- surrogates


def straight_through(x):
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def reversal(x):
    return -2 * x + jax.lax.stop_gradient(3 * x)


LEVELS = (-4, 3)


def lsq(x, s):
    """Learned step size quantisation: Esser et al. (2020), eq. 3, its gradient scaled by 1/√(N Q)."""
    share = 1 / math.sqrt(x.size * LEVELS[1])
    s = s * share + jax.lax.stop_gradient(s - s * share)
    v = jnp.clip(x / s, *LEVELS)
    return (v + jax.lax.stop_gradient(jnp.round(v) - v)) * s


def lsq_rule(forgotten=False, factor=1.0):
    def backward(args, d):
        x, s = args
        v = x / s
        inside = (v >= LEVELS[0]) & (v <= LEVELS[1])
        slope = jnp.round(jnp.clip(v, *LEVELS)) - jnp.where(inside & (not forgotten), v, 0)
        return d * inside, factor * (d * slope).sum() / math.sqrt(x.size * LEVELS[1])

    return backward


WIDE = jnp.array([0.31, -0.72, 1.2, 0.55, -2.5, 2.4])
SURROGATES = {  # (f, args, right, wrong ones)
    "straight through": (straight_through, (X,), lambda a, d: (d,), [lambda a, d: (3 * d,), lambda a, d: (0 * d,)]),
    "reversal": (reversal, (X,), lambda a, d: (-2 * d,), [lambda a, d: (2 * d,), lambda a, d: (d,)]),
    "step size": (lsq, (WIDE, jnp.float32(0.4)), lsq_rule(), [lsq_rule(forgotten=True), lsq_rule(factor=3)]),
    "step size at its ends": (
        lsq, (jnp.array([-1.6, 1.2, 0.4]), jnp.float32(0.4)), lsq_rule(), [lsq_rule(factor=3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*list(SURROGATES)[:3], long(list(SURROGATES)[3])])
def test_surrogates(name):
    f, args, right, faults = SURROGATES[name]
    report = gradcheck.function(f, args, right, surrogate=True)
    report.raise_if_failed()
    assert "surrogate" in report.title
    assert all(row.differences is None for row in report.rows)
    for fault in faults:
        assert gradcheck.function(f, args, fault, surrogate=True).verdict == "wrong"
    if "ends" not in name:  # where the function has kinks too
        without = gradcheck.function(f, args, right)
        assert not without.ok, without  # differences are another truth
        assert "surrogate=True" in str(without)


@pytest.mark.parametrize("f", [
    lambda w, x: w * jax.lax.stop_gradient(x), lambda w, x: jnp.sum(jax.nn.softmax(w + jax.lax.stop_gradient(x))),
])  # fmt: skip
def test_a_surrogate_whose_gradient_is_0(f):
    """Nothing reaches x: a rule that passes something back is wrong, though no difference may say so."""
    truth = lambda a, d: jax.vjp(f, *a)[1](d)
    gradcheck.function(f, (WIDE, WIDE[::-1]), truth, surrogate=True).raise_if_failed()
    passes_back = lambda a, d: (truth(a, d)[0], a[0] * d)
    report = gradcheck.function(f, (WIDE, WIDE[::-1]), passes_back, surrogate=True)
    assert report.wrong == ("x",), report


def test_a_custom_rule_as_a_surrogate():
    f = jax.custom_vjp(lambda x: jnp.round(x))
    f.defvjp(lambda x: (jnp.round(x), None), lambda _, d: (d,))
    gradcheck.custom_vjp(f, straight_through, (X,), surrogate=True).raise_if_failed()
    three = jax.custom_vjp(lambda x: jnp.round(x))
    three.defvjp(lambda x: (jnp.round(x), None), lambda _, d: (3 * d,))
    assert gradcheck.custom_vjp(three, straight_through, (X,), surrogate=True).verdict == "wrong"


# ---------------------------------------------------------------- mixed precision

HALF = jnp.bfloat16


def mixed_dense(params, x):
    return jnp.dot(x.astype(HALF), params["w"].astype(HALF)) + params["b"].astype(HALF)


@pytest.mark.parametrize(("leaf", "factor", "one", "expected"), [
    ("w", 1.0, False, "right"), ("b", 1.1, True, "wrong"), long("w", 1.1, False, "wrong"), ("w", 1.01, True, "wrong"),
    long("b", 1.01, False, "wrong"),
])  # fmt: skip
def test_a_dense_layer_that_computes_in_bfloat16(leaf, factor, one, expected):
    def rule(args, d):
        grads, dx = jax.vjp(mixed_dense, *args)[1](d)  # takes bfloat16 alone: it cannot be run in float64
        off = grads[leaf].at[0].multiply(factor) if one else factor * grads[leaf]
        return {**grads, leaf: off}, dx

    keys = jax.random.split(jax.random.key(0), 2)
    params = {"w": jax.random.normal(keys[0], (64, 4)), "b": jnp.zeros(4)}
    report = gradcheck.function(mixed_dense, (params, jax.random.normal(keys[1], (32, 64))), rule)
    assert report.verdict == expected, report


def test_flaxs_dense_layer_in_mixed_precision():
    linen = pytest.importorskip("flax.linen")
    layer, x = linen.Dense(4, dtype=HALF), jax.random.normal(jax.random.key(0), (32, 64))
    params = layer.init(jax.random.key(1), x)

    def rule(factor):
        def backward(args, d):
            grads, dx = jax.vjp(layer.apply, *args)[1](d)
            return jax.tree.map(lambda g: g.at[0].multiply(factor), grads), dx

        return backward

    assert gradcheck.function(layer.apply, (params, x), rule(1.0)).verdict == "right"
    assert gradcheck.function(layer.apply, (params, x), rule(1.1)).verdict == "wrong"


# ---------------------------------------------------------------- complex numbers

Z = jnp.array([0.3 + 1.2j, -0.8 + 0.1j, 1.5 - 0.4j], jnp.complex64)
M = jnp.array([[1 + 0.5j, -0.3j, 0.2], [0.7, 1j, -1.1 + 0.2j]], jnp.complex64)
COMPLEX = {  # (f, args, right, wrong); gradients as JAX has them, ∂C/∂Re z − i ∂C/∂Im z
    "square": (lambda z: z * z, (Z,), lambda a, d: (2 * a[0] * d,), lambda a, d: (2 * a[0].conj() * d,)),
    "|z|²": (
        lambda z: jnp.sum(z.real**2 + z.imag**2), (Z,),
        lambda a, d: (2 * a[0].conj() * d,), lambda a, d: (2 * a[0] * d,),
    ),
    "modulus": (
        jnp.abs, (Z,), lambda a, d: (a[0].conj() / jnp.abs(a[0]) * d,), lambda a, d: (a[0] / jnp.abs(a[0]) * d,),
    ),
    "conjugate": (jnp.conj, (Z,), lambda a, d: (d.conj(),), lambda a, d: (d,)),
    "real part": (jnp.real, (Z,), lambda a, d: (d + 0j,), lambda a, d: (1j * d,)),
    "product": (
        jnp.matmul, (M, X[:3]),
        lambda a, d: (jnp.outer(d, a[1]), (a[0].T @ d).real),
        lambda a, d: (jnp.outer(d, a[1]), (a[0].conj().T @ d).real),
    ),
    "transform": (jnp.fft.fft, (Z,), lambda a, d: (jnp.fft.fft(d),), lambda a, d: (jnp.fft.ifft(d),)),
    "to complex": (
        jax.lax.complex, (X, 2 * X), lambda a, d: (d.real, -d.imag), lambda a, d: (d.real, d.imag),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["square", "|z|²", "to complex", *map(long, ["modulus", "conjugate", "real part", "product", "transform"])]
)
def test_complex_arguments_and_outputs(name):
    f, args, right, wrong = COMPLEX[name]
    report = gradcheck.function(f, args, right)
    assert report.verdict == "right", report
    assert gradcheck.function(f, args, wrong).verdict == "wrong"
    for ours, theirs in zip(right(args, *_delta(f, args)), jax.vjp(f, *args)[1](*_delta(f, args)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def _delta(f, args):
    y = f(*args)
    real = jax.random.normal(jax.random.key(3), y.shape)
    return [jax.lax.complex(real, real[::-1]) if jnp.iscomplexobj(y) else real]


def test_a_custom_rule_of_complex_numbers():
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda z: (jnp.sin(z), z), lambda z, d: (jnp.cos(z) * d,))
    report = gradcheck.custom_vjp(f, jnp.sin, (Z,))
    assert report.verdict == "right", report
    assert [row.leaf for row in report.rows if row.kind == "gradient"] == ["x.real", "x.imag"]  # as jnp.sin calls it
    conjugated = jax.custom_vjp(jnp.sin)
    conjugated.defvjp(lambda z: (jnp.sin(z), z), lambda z, d: (jnp.cos(z).conj() * d,))
    assert gradcheck.custom_vjp(conjugated, jnp.sin, (Z,)).verdict == "wrong"


@pytest.mark.long  # complex64 is above
def test_complex_numbers_of_double_precision():
    with jax.enable_x64(True):
        z = jnp.asarray(Z, jnp.complex128)
        assert gradcheck.function(lambda z: z**3, (z,), lambda a, d: (3 * a[0] ** 2 * d,)).verdict == "right"
        assert (
            gradcheck.function(lambda z: z**3, (z,), lambda a, d: (3 * a[0] ** 2 * d * (1 + 1e-7),)).verdict == "wrong"
        )
