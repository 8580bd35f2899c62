"""explain_nonfinite names cause and line of known NaNs and infinities, and raises no alarm at their healthy kin.

Most cases have the shape of something that users reported; the comment says which. The line that is to be named ends
in `# HERE`, in the function itself or in a helper.
"""

import inspect
import linecache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy

from jaxnn import dense, graph, losses, relu, serial
from jaxnn.graph import causes

ZEROS = np.zeros(3, np.float32)
HALF = np.float16


def where_sqrt(x):  # the most reported of all: the gradient of where(x > 0, sqrt(x), 0) at 0
    return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()  # HERE


def where_log(p):  # an entropy with its zeros left out, after the fact
    logs = jnp.log(p)
    return -jnp.where(p > 0, p * logs, 0.0).sum()  # HERE


def where_division(x, n):  # a mean over what is there
    share = x / n  # HERE
    return jnp.where(n > 0, share, 0.0).sum()


def where_exp(x):  # softplus written by hand, with a linear tail
    soft = jnp.log1p(jnp.exp(x))  # HERE
    return jnp.where(x > 20, x, soft).sum()


def masked_by_a_product(x, mask):  # a loss multiplied by its mask
    return (jnp.sqrt(x) * mask).sum()  # HERE


def norm_at_zero(x):  # the gradient of a norm at the zero vector
    return jnp.linalg.norm(x)  # HERE


def distances(x):  # pairwise distances, the diagonal among them
    gaps = x[:, None] - x[None]
    return jnp.sqrt((gaps**2).sum(-1)).sum()  # HERE


def deviation(x):  # the standard deviation of a constant channel
    return jnp.std(x)  # HERE


def normalised(x):  # a norm layer without ε
    return ((x - x.mean()) / x.std()).sum()  # HERE


def unit_vector(x):
    return (x / jnp.sqrt((x**2).sum())).sum()  # HERE


def all_masked(scores, mask):  # attention over a row of padding
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).sum()  # HERE


def clipped_log(p):  # a bound that is 0 in the precision used
    return -jnp.log(jnp.clip(p, HALF(1e-10), HALF(1))).mean()  # HERE


def naive_softmax(x):  # exp of large logits
    e = jnp.exp(x)  # HERE
    return (e / e.sum())[0]


def half_sum(x):  # a loss in float16
    return (x * x).sum()  # HERE


def empty_mean(x, mask):  # a masked mean over nothing
    return (x * mask).sum() / mask.sum()  # HERE


def entropy(p):  # x log x at 0
    return -(p * jnp.log(p)).sum()  # HERE


def square_root_power(x):  # x ** 0.5 at 0
    return (x**0.5).sum()  # HERE


def angle(x, y):  # the direction of the zero vector
    return jnp.arctan2(y, x)  # HERE


def inside_a_scan(x):  # a recurrence that hits 0 at its third step
    def step(h, t):
        h = h - 1.0
        return h, jnp.log(h) * t  # HERE

    return jax.lax.scan(step, 3.0, x)[1].sum()


def inside_a_scan_backwards(x):  # a norm of a state that is zero at one step alone
    def step(h, t):
        return h, jnp.sqrt((t**2).sum())  # HERE

    return jax.lax.scan(step, 0.0, x)[1].sum()


def repeated_eigenvalues(a):  # the gradient of eigenvectors of a symmetric matrix
    values, vectors = jnp.linalg.eigh(a)  # HERE
    return (vectors[:, 0] * values).sum()


def not_definite(a):
    return jnp.linalg.cholesky(a).sum()  # HERE


def negative_root(x):  # a variance as E[x²] − E[x]², below 0 by rounding
    variance = (x**2).mean() - x.mean() ** 2
    return jnp.sqrt(variance - 1e-3)  # HERE


def backward_overflow(x):  # a loss scale that is too large for float16
    return (x.astype(jnp.float32) * 1e6).sum()  # HERE


@jax.custom_vjp
def clever(x):
    return x * 2.0


def clever_backward(x, delta):
    return (delta * x / x,)


clever.defvjp(lambda x: (clever(x), x), clever_backward)


def a_wrong_custom_rule(x):
    return clever(x).sum()  # HERE


def angle_between(a, b):  # arccos of a clipped cosine, of vectors that are parallel
    return jnp.arccos(jnp.clip((a * b).sum(), -1.0, 1.0))  # HERE


def padded_logsumexp(scores):  # a row of padding
    return jax.nn.logsumexp(scores)  # HERE


def loop_overflow(x):  # a while loop that grows past the end of float32
    def grow(carry):
        t, x = carry
        return t + 1, x * x  # HERE

    return jax.lax.while_loop(lambda carry: carry[0] < 6, grow, (0, x))[1]


X123 = np.array([0.0, 4.0, 9.0], np.float32)
FINITE_MASK = np.array([[True, True, False], [False, False, False]])
SCORES = np.array([[1.0, 2.0, 3.0], [0.5, 0.1, 0.2]], np.float32)
STEPS = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]], np.float32)
F = np.float32

# function, arguments, direction, cause, steps; the first is always the line marked HERE. Three numbers each where that
# will do: eager operations compile for each shape.
KNOWN = [
    (where_sqrt, (X123,), "backward", causes.WHERE, ()),
    (where_log, (X123,), "backward", causes.WHERE, ()),
    (where_division, (X123, np.array([0, 1, 2], F)), "backward", causes.WHERE, ()),
    (where_exp, (np.array([1.0, 200.0, 2.0], F),), "backward", causes.WHERE, ()),
    (masked_by_a_product, (X123, np.array([0, 1, 1], F)), "backward", causes.MASKED, ()),
    (norm_at_zero, (ZEROS,), "backward", causes.NORM, ()),
    (distances, (STEPS,), "backward", causes.NORM, ()),
    (deviation, (np.full(3, 2, F),), "backward", causes.DEVIATION, ()),
    (normalised, (np.full(3, 2, F),), "forward", causes.BY_VARIANCE, ()),
    (unit_vector, (ZEROS,), "forward", causes.BY_NORM, ()),
    (all_masked, (SCORES, FINITE_MASK), "forward", causes.ALL_MASKED, ()),
    (clipped_log, (np.array([0.0, 1.0, 1.0], HALF),), "forward", causes.LOG, ()),
    (naive_softmax, (np.array([100.0, 1.0, 2.0], F),), "forward", causes.EXP, ()),
    (half_sum, (np.array([300.0, 2.0, 1.0], HALF),), "forward", causes.HALF, ()),
    (empty_mean, (X123, ZEROS), "forward", causes.ZERO_BY_ZERO, ()),
    (entropy, (np.array([0.0, 1.0, 0.5], F),), "forward", causes.LOG, ()),
    (square_root_power, (X123,), "backward", causes.POWER, ()),
    (angle, (F(0), F(0)), "backward", causes.NO_DIRECTION, ()),
    (inside_a_scan, (np.arange(3, dtype=F),), "forward", causes.LOG, ("scan step 2",)),
    (inside_a_scan_backwards, (STEPS,), "backward", causes.NORM, ("scan step 1",)),
    (repeated_eigenvalues, (np.eye(3, dtype=F),), "backward", causes.EQUAL, ()),
    (not_definite, (-np.eye(3, dtype=F),), "forward", causes.DEFINITE, ()),
    (negative_root, (np.full(3, 0.1, F),), "forward", causes.ROOT_NEGATIVE, ()),
    (backward_overflow, (np.ones(3, HALF),), "backward", causes.HALF, ()),
    (a_wrong_custom_rule, (X123,), "backward", causes.ZERO_BY_ZERO, ()),
    (angle_between, (np.array([1, 0, 0], F), np.array([1, 0, 0], F)), "backward", causes.EDGE, ()),
    (padded_logsumexp, (np.full(3, -np.inf, F),), "forward", causes.ALL_MASKED, ()),
    (loop_overflow, (F(1e3),), "forward", causes.OVERFLOW, ("while step 3",)),
]


def marked(f):
    """The line of f that ends in # HERE."""
    lines, start = inspect.getsourcelines(f)
    (offset,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# HERE"))
    return start + offset


def assert_not_finite(f, args):
    """JAX says so too."""
    value = by_numpy(f)(*args)
    floats = tuple(i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating))
    try:
        gradients = by_numpy(jax.grad(f, argnums=floats))(*args)
    except ValueError:  # a while loop
        gradients = ()
    return [bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves((value, gradients))]


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case[0].__name__)
def test_known_cases(case):
    f, args, direction, cause, steps = case
    args = jax.device_put(args)
    with jax.numpy_dtype_promotion("standard"):
        finite = assert_not_finite(f, args)
        assert not all(finite)
        assert finite[0] == (direction == "backward")
        why = graph.explain_nonfinite(f)(*args)
    print(why)
    assert not why.finite
    assert (why.direction, why.cause, why.steps) == (direction, cause, steps), str(why)
    assert f"{__file__}:{marked(f)} " in why.source
    assert why.line == linecache.getline(__file__, marked(f)).strip()
    assert why.rewrite.startswith(causes.REWRITES[cause])
    assert cause in str(why)
    assert "mend" in str(why)


def test_there_are_enough_of_them():
    assert len(KNOWN) >= 20


# ---------------------------------------------------------------- healthy look-alikes


def safe_where_sqrt(x):
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0).sum()


def safe_where_log(p):
    return -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum()


def safe_division(x, n):
    return jnp.where(n > 0, x / jnp.where(n > 0, n, 1.0), 0.0).sum()


def safe_softplus(x):
    return jnp.where(x > 20, x, jnp.log1p(jnp.exp(jnp.minimum(x, 20.0)))).sum()


def safe_norm(x):
    square = (x**2).sum()
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def unit_with_epsilon(x):
    return (x * jax.lax.rsqrt((x**2).sum() + 1e-6)).sum()


def normalised_with_epsilon(x):
    return ((x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-5)).sum()


def partly_masked(scores, mask):
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).max()


def masked_logsumexp(scores):
    return jax.nn.logsumexp(jnp.where(scores > 0, scores, -jnp.inf))


def running_maximum(x):  # −∞ to begin with
    return jax.lax.scan(lambda m, t: (jnp.maximum(m, t), m), -jnp.inf, x)[0]


def infinity_compared(x):
    return jnp.where(x < jnp.inf, x, 0.0).sum()


def log_of_zero_unused(x):  # −∞ on the way, and nothing made of it
    logs = jnp.log(x)
    return jnp.where(jnp.isfinite(jax.lax.stop_gradient(logs)), x, 0.0).sum()


def infinity_in_a_minimum(x):
    return jnp.minimum(x, jnp.inf).sum() + jnp.exp(-jnp.inf)


def one_over_infinity(x):
    return (x / (1.0 + jnp.exp(jnp.float32(200.0)))).sum()


def nan_to_num(x):
    return (x + jnp.nan_to_num(jax.lax.stop_gradient(x / x))).sum()


def whole_entropy(p):
    return jax.scipy.special.entr(p).sum()


def stable_softmax(x):
    return jax.nn.softmax(x)[0]


def float32_sum(x):
    return (x.astype(jnp.float32) ** 2).sum()


def log_sigmoid(x):
    return jax.nn.log_sigmoid(x).sum()


def scan_near_zero(x):
    def step(h, t):
        h = h - 1.0
        return h, jnp.log(h) * t

    return jax.lax.scan(step, 30.0, x)[1].sum()


def cosine_apart(x, y):
    return (x * y).sum() / jnp.maximum(jnp.linalg.norm(x + 1) * jnp.linalg.norm(y + 1), 1e-6)


def whole_numbers(n):
    return n * 2


def loop_within(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * c[1]), (0, x))[1]


HEALTHY = [
    (safe_where_sqrt, (X123,)),
    (safe_where_log, (X123,)),
    (safe_division, (X123, np.array([0, 1, 2], F))),
    (safe_softplus, (np.array([1.0, 200.0, 2.0], F),)),
    (safe_norm, (ZEROS,)),
    (unit_with_epsilon, (ZEROS,)),
    (normalised_with_epsilon, (np.full(3, 2, F),)),
    (partly_masked, (SCORES, np.array([[True, True, False], [False, True, False]]))),
    (masked_logsumexp, (SCORES,)),
    (running_maximum, (X123,)),
    (infinity_compared, (X123,)),
    (log_of_zero_unused, (X123,)),
    (infinity_in_a_minimum, (X123,)),
    (one_over_infinity, (X123,)),
    (nan_to_num, (X123,)),
    (whole_entropy, (np.array([0.2, 1.0, 0.5], F),)),
    (stable_softmax, (np.array([1000.0, 1.0, 2.0], F),)),
    (float32_sum, (np.array([300.0, 2.0, 1.0], HALF),)),
    (log_sigmoid, (np.array([-1e4, 0.0, 1e4], F),)),
    (scan_near_zero, (np.arange(3, dtype=F),)),
    (cosine_apart, (ZEROS, X123)),
    (whole_numbers, (np.array([1, 2]),)),
    (loop_within, (F(3),)),
]


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case[0].__name__)
def test_no_alarm(case):
    f, args = case
    args = jax.device_put(args)
    with jax.numpy_dtype_promotion("standard"):
        why = graph.explain_nonfinite(f)(*args)
    assert why.finite, str(why)
    unknown = {whole_numbers: "whole_numbers is given no floats", loop_within: "while at "}.get(f, "")
    assert bool(unknown) == bool(why.unknown)
    assert why.unknown.startswith(unknown)
    seen = "its value is finite; its gradients were not looked at: " if unknown else "its value and its gradients are"
    assert str(why).startswith(f"{f.__name__}: {seen}")
    assert len(HEALTHY) >= 20


# ---------------------------------------------------------------- more than one function


def test_a_network_whose_input_is_not_finite():
    net = serial(dense(4), relu, dense(2))
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), (3,)))
    params = jax.tree.map(lambda p: jax.device_put(np.random.default_rng(0).normal(size=p.shape).astype(F)), params)
    x = np.ones((5, 3), F)
    x[2, 1] = np.nan

    def cost(params, x):
        return losses.softmax_cross_entropy.value(net.forward(params, state, x)[0], np.zeros(5, np.int32)).mean()

    why = graph.explain_nonfinite(cost)(params, x)
    assert (why.cause, why.element, why.operation) == (causes.GIVEN, (2, 1), "")
    assert "x holds 1 of 15 entries, first nan" in why.detail
    assert why.group[0] == "dense_0"


def test_what_infinity_became_and_other_origins():
    why = graph.explain_nonfinite(naive_softmax)(jnp.array([100.0, 1.0]))
    assert why.then.startswith("∞/∞ in div at ")
    assert "exp of 100" in why.detail
    assert "float32 ends at 3.403e+38" in why.detail

    def two(x):
        return jnp.log(x).sum() + jnp.sqrt(x - 1.0).sum()

    both = graph.explain_nonfinite(two)(jnp.zeros(2))
    assert (both.operation, both.reached, both.then) == ("log", ("the value",), "")
    assert [other.split(" at ")[0] for other in both.others] == ["sqrt"]
    pair = graph.explain_nonfinite(lambda x, y: (jnp.sqrt(x) + jnp.sqrt(y)).sum())(jnp.zeros(2), jnp.zeros(2))
    assert pair.reached == ("the gradient of x", "the gradient of y")
    assert len(pair.others) == 1


def test_a_factor_that_is_infinite_is_traced_to_what_made_it():
    why = graph.explain_nonfinite(where_log)(jnp.array([0.0, 0.5]))
    assert why.operation == "mul"
    assert f"made by log at {__file__}:{marked(where_log) - 1} " in why.detail


def test_a_mask_by_a_product_is_named_in_what_mends_it():
    why = graph.explain_nonfinite(lambda x: ((x > 0).astype(x.dtype) * jnp.log(x)).sum())(jnp.zeros(2))
    assert why.cause == causes.LOG
    assert why.then.startswith(causes.ZERO_TIMES_INFINITY)
    assert causes.REWRITES[causes.MASKED] in why.rewrite


def test_a_mask_by_log_is_no_origin():
    def masked(scores, mask, x):  # log(0) = −∞ on purpose, and NaN from elsewhere
        return jax.nn.softmax(scores + jnp.log(jax.lax.stop_gradient(mask))).sum() + jnp.sqrt(x)

    assert graph.explain_nonfinite(masked)(jnp.ones(3), jnp.array([1.0, 0, 1]), 4.0).finite
    why = graph.explain_nonfinite(masked)(jnp.ones(3), jnp.array([1.0, 0, 1]), -4.0)
    assert (why.operation, why.cause, why.others) == ("sqrt", causes.ROOT_NEGATIVE, ())
    padding = graph.explain_nonfinite(masked)(jnp.ones(3), jnp.zeros(3), 4.0)
    assert padding.cause == causes.LOG
    assert padding.then.startswith(causes.ALL_MASKED)


def test_a_carry_that_begins_at_infinity_is_no_origin():
    def greatest_root(x):
        return jax.lax.scan(lambda m, t: (jnp.maximum(m, jnp.sqrt(t)), m), -jnp.inf, x)[0]

    why = graph.explain_nonfinite(greatest_root)(jnp.array([1.0, 4.0, -1.0, 9.0]))
    assert (why.cause, why.steps, why.numbers) == (causes.ROOT_NEGATIVE, ("scan step 2",), "x = -1, z = nan")


def test_a_bad_cotangent_and_a_sum_that_overflows():
    why = graph.explain_nonfinite(jnp.sin, cotangent=jnp.array([1.0, jnp.nan]))(jnp.ones(2))
    assert (why.cause, why.direction) == (causes.COTANGENT, "backward")
    half = jnp.float16(4e4)
    why = graph.explain_nonfinite(lambda x: x * half + x * half)(jnp.float16(0.0))
    assert (why.cause, why.direction) == (causes.HALF, "backward")


def test_arrays_and_branches():
    def branch(x):
        return jax.lax.cond(x > 0, jnp.log, lambda x: jnp.log(x * 0.0), x)

    why = graph.explain_nonfinite(branch)(jnp.float32(-1.0))
    assert (why.cause, why.steps) == (causes.LOG, ("branch 0",))
    assert why.group == ()
    several = graph.explain_nonfinite(lambda x: {"a": x, "b": jnp.log(x)})(jnp.zeros((2, 2)))
    assert (several.cause, several.element) == (causes.LOG, (0, 0))


def test_it_refuses_what_is_no_array():
    with pytest.raises(TypeError, match="name is no array"):
        graph.explain_nonfinite(lambda x, name: x)(1.0, "w")
