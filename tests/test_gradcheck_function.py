"""gradcheck.function and custom_vjp: every verdict with its evidence, and bad input refused in words."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import gradcheck

X = jax.device_put(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))


def sine(args, delta):
    return (jnp.cos(args[0]) * delta,)


def gradient_row(report):
    return next(row for row in report.rows if row.kind == "gradient")


def test_pytrees_integers_and_none_in_three_precisions_and_two_shapes():
    def f(params, x, labels, nothing):
        assert nothing is None
        return {"z": x @ params["w"] + params["b"], "n": labels + 1}

    def backward(args, delta):
        params, x, _, _ = args
        d = delta["z"]
        return {"w": x.T @ d, "b": d.sum(0)}, d @ params["w"].T, None, None

    def args(n):
        return ({"w": X[:, :2], "b": jnp.ones(2)}, jnp.ones((n, 3)), jnp.arange(n), None)

    report = gradcheck.function(f, args(2), backward, grid=[args(5)], dtypes=("float32", "bfloat16", "float64"))
    report.raise_if_failed()
    assert {row.leaf for row in report.rows if row.kind == "gradient"} == {"params['b']", "params['w']", "x"}
    assert len({row.place for row in report.rows}) == 6


def test_one_element_of_ten_thousand():
    x = np.random.default_rng(1).normal(size=(100, 100)).astype(np.float32)
    report = gradcheck.function(jnp.sin, (x,), lambda a, d: (sine(a, d)[0].at[37, 21].set(0),), cotangents=1)
    row = gradient_row(report)
    assert (row.verdict, row.element, row.hand) == ("wrong", (37, 21), 0.0)
    assert row.differences == pytest.approx(row.autodiff, rel=1e-8)
    assert row.autodiff_ulps < 10 < row.ulps
    with pytest.raises(AssertionError, match="37, 21") as raised:
        report.raise_if_failed()
    assert str(report) in str(raised.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("error", [1e-2, 1e-5])
def test_small_relative_errors(dtype, error):
    wrong = lambda a, d: (sine(a, d)[0] * (1 + error),)
    report = gradcheck.function(jnp.sin, (X.astype(dtype),), wrong, cotangents=1)
    # in bfloat16 the factor rounds to 1 where it multiplies: in float64 it does not
    assert gradient_row(report).verdict == "wrong"


def test_a_fault_in_the_float32_branch_alone():
    def backward(args, delta):
        return (sine(args, delta)[0] * (1.01 if delta.dtype == jnp.float32 else 1.0),)

    report = gradcheck.function(jnp.sin, (X,), backward)
    assert "right in float64 but wrong in the given precision" in gradient_row(report).why


@pytest.mark.parametrize(("rule", "kind"), [
    (lambda a, d: (jnp.cos(a[0]) * d * jnp.abs(d),), "linear in δ"),
    (lambda a, d: (jnp.cos(a[0]) * d + np.random.standard_normal(),), "deterministic"),
])  # fmt: skip
def test_properties(rule, kind):
    report = gradcheck.function(jnp.sin, (X,), rule)
    assert kind in {row.kind for row in report.rows if row.verdict == "wrong"}


def test_wrong_under_vmap_alone():
    @jax.custom_batching.custom_vmap
    def pull(x, delta):
        return jnp.cos(x) * delta

    @pull.def_vmap
    def _(size, batched, x, delta):
        return jnp.cos(x[::-1]) * delta, True

    report = gradcheck.function(jnp.sin, (X,), lambda args, delta: (pull(args[0], delta),))
    assert [row.kind for row in report.rows if row.verdict == "wrong"] == ["under vmap"]


# ---------------------------------------------------------------- kinks and ties


@pytest.mark.parametrize(("at_0", "verdict"), [(0.0, "kink"), (0.5, "right"), (1.0, "kink"), (1.5, "wrong")])
def test_a_kink(at_0, verdict):
    def backward(args, delta):
        (x,) = args
        return (delta * jnp.where(x == 0, at_0, (x > 0).astype(x.dtype)),)

    report = gradcheck.function(lambda x: jnp.maximum(x, 0), (jnp.array([0.0, 1.0, -1.0]),), backward, cotangents=1)
    row = gradient_row(report)
    assert row.verdict == verdict
    if verdict == "kink":
        assert 0.0 in row.slopes
        assert row.element == (0,)


def test_a_tie():
    """Of two equal largest numbers each slope lies between 0 and 1, but not both can be 1."""
    x = jnp.array([1.0, 1.0, -1.0])

    def rule(value):
        return lambda args, delta: (delta * jnp.where(args[0] >= 1 - 1e-5, value, 0.0),)

    assert gradcheck.function(jnp.max, (x,), rule(jnp.array([1.0, 1.0, 0.0]))).verdict == "wrong"
    first = lambda args, delta: (delta * jax.nn.one_hot(jnp.argmax(args[0]), 3, dtype=delta.dtype),)
    assert gradient_row(gradcheck.function(jnp.max, (x,), first)).verdict == "kink"


@pytest.mark.parametrize(("value", "verdict"), [
    (0.0, "kink"), pytest.param(1.0, "wrong", marks=pytest.mark.long),
])  # fmt: skip
def test_the_norm_at_0_where_jax_grad_is_nan(value, verdict):
    norm = lambda x: jnp.sqrt(jnp.sum(x * x))
    row = gradient_row(gradcheck.function(norm, (jnp.zeros(3),), lambda a, d: (jnp.full(3, value, d.dtype) * d,)))
    assert row.verdict == verdict
    assert np.isnan(row.autodiff) or verdict == "wrong"


# ---------------------------------------------------------------- what stops float64


def line_of(function):
    return inspect.getsourcelines(function)[1]


def test_casts_are_taken_out():
    def f(x):
        return jnp.sin(x.astype(jnp.bfloat16)).astype(x.dtype)

    half = jnp.bfloat16
    right = lambda a, d: ((jnp.cos(a[0].astype(half)) * d.astype(half)).astype(d.dtype),)
    assert gradcheck.function(f, (X,), right).verdict == "right"
    for factor in (2, 1.002):  # a bfloat16 rounding is 0.4 %
        assert gradcheck.function(f, (X,), lambda a, d: (sine(a, d)[0] * d.dtype.type(factor),)).verdict == "wrong"


def test_what_jit_leaves_out_is_not_the_rules_fault():
    # a cast to bfloat16 and back rounds in one operation after the other, and not where XLA compiles both at once
    rule = lambda a, d: (jnp.cos(a[0].astype(jnp.bfloat16)).astype(d.dtype) * d,)
    report = gradcheck.function(jnp.sin, (X,), rule)
    assert report.verdict == "right", report


def test_a_rule_that_is_another_one_under_jit():
    def rule(args, d):
        factor = 1.0 if isinstance(args[0], jax.core.Tracer) else 1.01
        return (jnp.cos(args[0]) * d * d.dtype.type(factor),)

    report = gradcheck.function(jnp.sin, (X,), rule)
    assert "under jit" in {row.kind for row in report.rows if row.verdict == "wrong"}


@pytest.mark.long  # the Fourier transform compiles for long
def test_complex_numbers_inside():
    f = lambda x: jnp.fft.rfft(x).real
    right = lambda a, d: jax.vjp(f, *a)[1](d)
    assert gradcheck.function(f, (X[0],), right).verdict == "right"
    assert gradcheck.function(f, (X[0],), lambda a, d: (2 * right(a, d)[0],)).verdict == "wrong"


def test_a_rounded_constant_is_named_with_its_line():
    third = jnp.float32([0.3, 0.1, 0.7, 0.9])

    def f(x):
        return jnp.sin(x) * third.astype(x.dtype)

    exact = lambda a, d: (jnp.cos(a[0]) * d * jnp.array([0.3, 0.1, 0.7, 0.9], d.dtype),)
    row = gradient_row(gradcheck.function(f, (X,), exact))
    assert row.verdict == "cannot tell"
    assert "constant" in row.why
    assert "test_gradcheck_function.py" in row.source


@pytest.mark.long  # random layers are checked in test_gradcheck_network
def test_random_numbers_from_a_key():
    def mask(key, x):
        return jax.random.bernoulli(key, 0.3, x.shape).astype(x.dtype)

    f = lambda key, x: jnp.sin(x) * mask(key, x)
    key = jax.random.key(5)
    right = lambda a, d: (None, jnp.cos(a[1]) * mask(a[0], a[1]) * d)
    gradcheck.function(f, (key, X), right).raise_if_failed()
    assert gradcheck.function(f, (key, X), lambda a, d: (None, jnp.cos(a[1]) * d)).wrong == ("x",)


def test_a_loop_with_a_fixed_dtype_is_replayed():
    def f(x):
        return jax.lax.fori_loop(0, 3, lambda i, total: total + jnp.sin(x).sum(), jnp.float32(0))

    assert gradcheck.function(f, (X,), lambda a, d: (3 * jnp.cos(a[0]) * d,)).verdict == "right"
    assert gradcheck.function(f, (X,), lambda a, d: (3.003 * jnp.cos(a[0]) * d,)).verdict == "wrong"


def test_an_error_in_float64_is_named_with_its_line():
    def refuses(x):
        if x.dtype == jnp.float64:
            raise TypeError
        return x

    def f(x):
        return jnp.sin(refuses(x)) * (1 / 3)

    other = lambda a, d: (jnp.cos(a[0]) * d * jnp.float32(0.33333334),)  # the same in float32, and not in float64
    exact = lambda a, d: (jnp.cos(a[0]) * d / 3,)
    assert gradcheck.function(f, (X,), other).verdict == "right"
    row = gradient_row(gradcheck.function(f, (X,), exact))
    assert row.verdict == "cannot tell"
    assert "an error in float64 (TypeError)" in row.why
    assert f"test_gradcheck_function.py:{line_of(refuses) + 2} (refuses)" in row.source


def small_norm(x):
    """Layer normalisation of small numbers, with an ε that float32 has rounded."""
    c = x - x.mean(-1, keepdims=True)
    return c * jax.lax.rsqrt((c * c).mean(-1, keepdims=True) + jnp.asarray(1e-6, jnp.float32).astype(x.dtype))


@pytest.mark.parametrize(("share", "expected"), [
    (1.0, "cannot tell"), pytest.param(0.99, "wrong", marks=pytest.mark.long),
])  # fmt: skip
def test_a_rounded_epsilon_is_named(share, expected):
    def by_hand(args, d):
        (x,) = args
        c = x - x.mean(-1, keepdims=True)
        root = jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-6)
        h = c / root
        return ((d - d.mean(-1, keepdims=True) - share * h * (d * h).mean(-1, keepdims=True)) / root,)

    row = gradient_row(gradcheck.function(small_norm, (1e-3 * X,), by_hand))
    assert row.verdict == expected, row
    if expected == "cannot tell":
        assert "9.999999974752427e-07" in row.why
        assert f"test_gradcheck_function.py:{line_of(small_norm) + 3}" in row.source  # JAX adds the column
        assert row.source.endswith(" (small_norm)")


def test_stop_gradient_is_told_from_a_wrong_rule():
    f = lambda x: jnp.sin(x) + jax.lax.stop_gradient(x)
    row = gradient_row(gradcheck.function(f, (X,), sine))
    assert row.verdict == "cannot tell"
    assert "stop_gradient" in row.why


# ---------------------------------------------------------------- custom_vjp, second order


def with_rule(rule):
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), rule)
    return f


def test_custom_vjp_and_its_second_order():
    right = with_rule(lambda x, d: (jnp.cos(x) * d,))
    report = gradcheck.custom_vjp(right, jnp.sin, (X,), order=2)
    report.raise_if_failed()
    (second,) = (row for row in report.rows if row.kind == "second order")
    assert "forbids forward mode" in second.why
    assert second.why in str(report)
    wrong = with_rule(lambda x, d: (jnp.cos(jax.lax.stop_gradient(x)) * d,))
    report = gradcheck.custom_vjp(wrong, jnp.sin, (X,), order=2)
    assert [row.kind for row in report.rows if row.verdict == "wrong"] == ["second order"]


def test_custom_vjp_with_another_value():
    report = gradcheck.custom_vjp(with_rule(lambda x, d: (jnp.cos(x) * d,)), lambda x: jnp.sin(x) + 1e-3, (X,))
    assert [row.kind for row in report.rows if row.verdict == "wrong"] == ["value"]


@pytest.mark.long  # three checks
def test_optax():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    labels = np.array([0, 1, 3], np.int32)

    def cross_entropy(z, _):
        shares = jnp.exp(z - z.max(-1, keepdims=True))
        shares = shares / shares.sum(-1, keepdims=True)
        return -jnp.log(shares[jnp.arange(3), labels])

    theirs = lambda z, labels: optax.losses.softmax_cross_entropy_with_integer_labels(z, labels)
    by_hand = lambda a, d: ((jax.nn.softmax(a[0]) - jax.nn.one_hot(a[1], 4, dtype=a[0].dtype)) * d[:, None], None)
    assert gradcheck.custom_vjp(theirs, cross_entropy, (X, labels)).verdict == "right"
    assert gradcheck.function(theirs, (X, labels), by_hand).verdict == "right"
    forgets = lambda a, d: (jax.nn.softmax(a[0]) * d[:, None], None)
    assert gradcheck.function(theirs, (X, labels), forgets).verdict == "wrong"


@pytest.mark.long  # dense is checked in test_gradcheck_library
def test_flax():
    nn = pytest.importorskip("flax.linen", reason="flax is not installed")
    layer = nn.Dense(2)
    variables = layer.init(jax.random.key(0), X)
    apply = lambda params, x: layer.apply({"params": params}, x)
    rule = lambda a, d: ({"kernel": a[1].T @ d, "bias": d.sum(0)}, d @ a[0]["kernel"].T)
    assert gradcheck.function(apply, (variables["params"], X), rule).verdict == "right"
    drops = lambda a, d: ({"kernel": a[1].T @ d, "bias": 0 * d.sum(0)}, d @ a[0]["kernel"].T)
    assert gradcheck.function(apply, (variables["params"], X), drops).wrong == ("params['bias']",)


@pytest.mark.long  # a dense layer of flax is above
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_layer_norm_of_flax(dtype):
    nn = pytest.importorskip("flax.linen", reason="flax is not installed")
    layer = nn.LayerNorm()
    params = {"scale": jnp.array([1.5, 0.5, -1.0, 2.0]), "bias": jnp.ones(4)}
    apply = lambda params, x: layer.apply({"params": params}, x)

    def rule(share):
        def backward(args, d):
            params, x = args
            c = x - x.mean(-1, keepdims=True)
            root = jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-6)
            h, dh = c / root, d * params["scale"]
            dx = (dh - dh.mean(-1, keepdims=True) - share * h * (dh * h).mean(-1, keepdims=True)) / root
            return {"scale": (d * h).sum(0), "bias": d.sum(0)}, dx

        return backward

    with jax.numpy_dtype_promotion("standard"):  # which flax relies on
        assert gradcheck.function(apply, (params, X), rule(1.0), dtypes=[dtype]).verdict == "right"
        assert gradcheck.function(apply, (params, X), rule(0.999), dtypes=[dtype]).wrong == ("x",)


# ---------------------------------------------------------------- forward


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "right"), (1 + 1e-5, "wrong")])
def test_what_forward_gives_is_held_against_f(factor, expected):
    forward = lambda x: (jnp.sin(x) * factor, jnp.cos(x))
    report = gradcheck.function(jnp.sin, (X,), lambda slope, d: (slope * d,), forward=forward)
    assert report.verdict == expected
    assert [row.kind for row in report.rows if row.verdict == "wrong"] == ["value of forward"] * (expected == "wrong")


def test_a_forward_of_another_form():
    rule = lambda x, d: (jnp.cos(x) * d,)
    with pytest.raises(ValueError, match=r"forward must return \(output, residuals\)"):
        gradcheck.function(jnp.sin, (X,), rule, forward=jnp.sin)
    with pytest.raises(
        ValueError, match=r"(?s)forward's output is not like f's.*expected shape \[3, 4\], got \[4, 3\]"
    ):
        gradcheck.function(jnp.sin, (X,), rule, forward=lambda x: (jnp.sin(x).T, x))


# ---------------------------------------------------------------- bad input, and no trace


def test_bad_input():
    with pytest.raises(TypeError, match="returns int32 and no floats"):
        gradcheck.function(lambda x: jnp.argmax(x), (X,), sine)
    with pytest.raises(TypeError, match="args must be a tuple"):
        gradcheck.function(jnp.sin, X, sine)
    with pytest.raises(ValueError, match="is not deterministic"):
        gradcheck.function(lambda x: x * np.random.standard_normal(), (X,), sine)
    with pytest.raises(ValueError, match=r"(?s)w: expected shape \[3, 2\], got \[2, 3\].*x: expected shape"):
        gradcheck.function(lambda w, x: x @ w, (X[:, :2], X.T), lambda a, d: (d.T @ a[1], d[0]))
    with pytest.raises(ValueError, match="one gradient for each of the 2 arguments"):
        gradcheck.function(lambda w, x: x @ w, (X[:, :2], X.T), lambda a, d: (d,))


@pytest.mark.parametrize("dtypes", [(), "float32", ("int32",)])
def test_precisions_that_are_none(dtypes):
    with pytest.raises((TypeError, ValueError), match="dtypes must be"):
        gradcheck.function(jnp.sin, (X,), sine, dtypes=dtypes)


def test_every_mismatch_of_a_custom_rule_is_listed():
    f = jax.custom_vjp(lambda p, x: p["a"] * x.sum() + p["b"].sum())
    f.defvjp(lambda p, x: (f(p, x), ()), lambda _, d: ({"a": jnp.ones(2), "b": jnp.ones(5)}, jnp.ones(4)))
    args = ({"a": jnp.ones(()), "b": jnp.ones(3)}, jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"(?s)p\['a'\]: expected.*p\['b'\]: expected.*x: expected shape \[3\], got \[4\]"
    ):
        gradcheck.custom_vjp(f, lambda p, x: p["a"] * x.sum() + p["b"].sum(), args)


def test_static_arguments_of_a_custom_rule():
    power = jax.custom_vjp(lambda x, n: x**n, nondiff_argnums=(1,))
    power.defvjp(lambda x, n: (x**n, x), lambda n, x, d: (d * n * x ** (n - 1),))
    with pytest.raises(TypeError, match="close over those"):
        gradcheck.custom_vjp(power, lambda x, n: x**n, (X, 3))
    assert gradcheck.custom_vjp(lambda x: power(x, 3), lambda x: x**3, (X,)).verdict == "right"


def test_nan_at_the_point():
    report = gradcheck.function(jnp.log, (jnp.array([1.0, -1.0]),), lambda a, d: (d / a[0],))
    assert report.verdict == "cannot tell"
    (row,) = (row for row in report.rows if row.kind == "value")
    assert row.element == (1,)
    assert "nan at 1 of 2 elements" in row.why


def test_float64_leaves_no_trace():
    def raises(args, delta):
        if delta.dtype == jnp.float64:
            raise RuntimeError("no float64 here")
        return sine(args, delta)

    assert gradcheck.function(jnp.sin, (X,), raises).verdict == "right"
    with pytest.raises(RuntimeError, match="never"):
        gradcheck.function(jnp.sin, (X,), lambda a, d: (_ for _ in ()).throw(RuntimeError("never")), dtypes=["float64"])
    assert jnp.ones(()).dtype == jnp.float32


def test_the_report_in_a_notebook():
    report = gradcheck.function(jnp.sin, (X,), lambda a, d: (d,))
    page = report._repr_html_()
    assert page.startswith("<div>")
    assert page.count("<tr>") == len(report.rows) + 1
    assert "wrong" in page
    assert max(map(len, str(report).splitlines())) <= 120


def test_a_key_or_an_integer_seed_chooses_the_draws():
    f, backward = lambda x: jnp.sin(x) ** 2, lambda args, d: (2 * jnp.sin(args[0]) * jnp.cos(args[0]) * d,)
    reports = [gradcheck.function(f, (jnp.ones(3),), backward, key=key) for key in (0, 5, jax.random.key(5))]
    assert {report.verdict for report in reports} == {"right"}
    assert str(reports[0]) == str(gradcheck.function(f, (jnp.ones(3),), backward))
