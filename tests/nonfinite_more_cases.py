"""More known NaNs and infinities, as in `nonfinite_cases`: powers, quotients, exponentials, matrices, what came in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from nonfinite_cases import HALF, F, Known, a, safe_where

from jaxnn.graph.nonfinite import causes

# ---------------------------------------------------------------- powers


def square_root_power(x):
    return (x**0.5).sum()  # HERE


def zeroth_power(x, p):
    return (x**p).sum()  # HERE


def zeroth_power_of_a_number(x):
    return (x**0.0).sum()  # HERE


def third_root(x):
    return (x ** (1 / 3)).sum()  # HERE


def power_by_its_exponent(p, x):
    return (x**p).sum()  # HERE


POWERS_KNOWN = [
    Known(
        square_root_power, (a(0, 4, 9),), causes.POWER, lambda x: safe_where(lambda x: x**0.5, x > 0, x).sum(),
        5, (0, 1 / 4, 1 / 6),
    ),
    Known(
        zeroth_power, (a(0, 2, 3), a(0, 0, 2)), causes.POWER_ZERO,
        lambda x, p: jnp.where(p == 0, 1, jnp.where(p == 0, 1, x) ** p).sum(), 11, (0, 0, 6),
    ),
    Known(zeroth_power_of_a_number, (a(0, 2, 3),), causes.POWER_ZERO, lambda x: (x**0).sum(), 3, (0, 0, 0)),
    Known(
        third_root, (a(-8, 1, 27),), causes.POWER_NEGATIVE, lambda x: jnp.cbrt(x).sum(),
        2, (1 / 12, 1 / 3, 1 / 27), "forward",
    ),
    Known(
        power_by_its_exponent, (a(2, 1, 3), a(-2, 1, 2)), causes.POWER_EXPONENT,
        lambda p, x: (x ** jax.lax.stop_gradient(p)).sum(), 13, (0, 0, 0),
    ),
]  # fmt: skip

# ---------------------------------------------------------------- quotients


def empty_mean(x, mask):
    return (x * mask).sum() / mask.sum()  # HERE


def mean_of_nothing(x, n):
    return (x.sum() * 0.0) / n  # HERE


def sinc_by_hand(x):
    return (jnp.sin(x) / x).sum()  # HERE


def relative_growth(x):
    return (jnp.expm1(x) / x).sum()  # HERE


def one_less_cosine(x):
    return ((1.0 - jnp.cos(x)) / x**2).sum()  # HERE


def itself_by_itself(x):
    return (x / x).sum()  # HERE


def inverse(x):
    return (1.0 / x).sum()  # HERE


def inverse_square(x):
    return (x**-2).sum()  # HERE


def saturating(x):  # 0 at 0, and flat there
    return jnp.exp(-1.0 / x**2).sum()  # HERE


def sample_variance(x):
    return jnp.var(x, ddof=1)  # HERE


def sample_deviation_by_hand(x):
    return ((x - x.mean()) ** 2).sum() / (x.size - 1)  # HERE


@jax.custom_vjp
def clever(x):
    return x * 2.0


clever.defvjp(lambda x: (clever(x), x), lambda x, delta: (2.0 * delta * x / x,))


def a_custom_rule(x):
    return clever(x).sum()  # HERE


def series(f, terms):  # as the advice has it
    def fixed(x):
        near = abs(x) < 1e-2
        s = jnp.where(near, 1, x)
        return jnp.where(near, terms(x), f(s) / s).sum()

    return fixed


def fixed_one_less_cosine(x):
    near = abs(x) < 1e-2
    s = jnp.where(near, 1, x)
    return jnp.where(near, 1 / 2 - x**2 / 24, (1 - jnp.cos(s)) / s**2).sum()


QUOTIENTS_KNOWN = [
    Known(
        empty_mean, (a(1, 4, 9), a(0, 0, 0)), causes.ZERO_BY_ZERO,
        lambda x, mask: (x * mask).sum() / jnp.maximum(mask.sum(), 1), 0, (0, 0, 0), "forward",
    ),
    Known(
        mean_of_nothing, (a(1, 4, 9), F(0)), causes.ZERO_BY_ZERO,
        lambda x, n: jnp.where(n != 0, x.sum() * 0.0 / jnp.where(n != 0, n, 1), 0), 0, (0, 0, 0), "forward",
    ),
    Known(
        sinc_by_hand, (a(0, 0.5, 2),), causes.LIMIT, series(jnp.sin, lambda x: 1 - x**2 / 6),
        1 + math.sin(0.5) / 0.5 + math.sin(2) / 2,
        (0, (0.5 * math.cos(0.5) - math.sin(0.5)) / 0.25, (2 * math.cos(2) - math.sin(2)) / 4), "forward",
    ),
    Known(
        relative_growth, (a(0, 1, 2),), causes.LIMIT, series(jnp.expm1, lambda x: 1 + x / 2 + x**2 / 6),
        1 + (math.e - 1) + (math.e**2 - 1) / 2, (1 / 2, 1, (math.e**2 + 1) / 4), "forward",
    ),
    Known(
        one_less_cosine, (a(0, 1, 2),), causes.LIMIT, fixed_one_less_cosine,
        0.5 + (1 - math.cos(1)) + (1 - math.cos(2)) / 4,
        (0, math.sin(1) - 2 * (1 - math.cos(1)), math.sin(2) / 4 - (1 - math.cos(2)) / 4), "forward",
    ),
    Known(itself_by_itself, (a(0, 1, 2),), causes.LIMIT, series(lambda x: x, lambda x: 1), 3, (0, 0, 0), "forward"),
    Known(
        inverse, (a(0, 1, 2),), causes.BY_ZERO, lambda d: jnp.where(d != 0, 1 / jnp.where(d != 0, d, 1), 0).sum(),
        1.5, (0, -1, -1 / 4), "forward",
    ),
    Known(
        inverse_square, (a(0, 1, 2),), causes.BY_ZERO,
        lambda x: jnp.where(x != 0, 1 / jnp.where(x != 0, x**2, 1), 0).sum(), 1.25, (0, -2, -1 / 4), "forward",
    ),
    Known(
        saturating, (a(0, 1, 2),), causes.THROUGH, lambda x: jnp.exp(-1 / jnp.maximum(x**2, 1e-15)).sum(),
        math.exp(-1) + math.exp(-1 / 4), (0, 2 * math.exp(-1), math.exp(-1 / 4) / 4),
    ),
    Known(
        sample_variance, (a(3),), causes.ONE_ENTRY,
        lambda x: jnp.sum((x - jnp.mean(x)) ** 2) / max(x.size - 1, 1), 0, (0,), "forward",
    ),
    Known(
        sample_deviation_by_hand, (a(3),), causes.ONE_ENTRY,
        lambda x: jnp.sum((x - jnp.mean(x)) ** 2) / max(x.size - 1, 1), 0, (0,), "forward",
    ),
    Known(
        a_custom_rule, (a(0, 1, 2),), causes.LIMIT,
        lambda x: (2 * x).sum(), 6, (2, 2, 2),  # the limit of 2 δ x/x is 2 δ
    ),
]  # fmt: skip

# ---------------------------------------------------------------- exponentials, and what is too large


def softmax_by_hand(x):
    e = jnp.exp(x)  # HERE
    return (e / e.sum())[0]


def softmax_of_small_numbers(x):
    e = jnp.exp(-(x**2))
    return (e / e.sum())[0]  # HERE


def logsumexp_of_small_numbers(x):
    return jnp.log(jnp.exp(x).sum())  # HERE


def squared_secant(x):
    return (1.0 / jnp.cosh(x) ** 2).sum()  # HERE


def logsumexp_by_hand(x):
    return jnp.log(jnp.sum(jnp.exp(x)))  # HERE


def sigmoid_by_hand(x):
    return (1.0 / (1.0 + jnp.exp(-x))).sum()  # HERE


def softplus_by_hand(x):
    return jnp.log(1.0 + jnp.exp(x)).sum()  # HERE


def inverse_softplus_by_hand(x):
    return jnp.log(jnp.exp(x) - 1.0).sum()  # HERE


def tanh_by_hand(x):
    up, down = jnp.exp(x), jnp.exp(-x)  # HERE
    return ((up - down) / (up + down)).sum()


def log_cosh_by_hand(x):
    return jnp.log(jnp.cosh(x)).sum()  # HERE


def rate(x):
    return jnp.exp(x).sum()  # HERE


def half_sum(x):
    return (x * x).sum()  # HERE


def loss_scale(x):  # its value is finite in float32, its gradient is not in float16
    return (x.astype(jnp.float32) * 1e6).sum()  # HERE


def norm_of_large_numbers(x):
    return jnp.sqrt(jnp.sum(x**2))  # HERE


def loop_overflow(x):
    def grow(carry):
        t, x = carry
        return t + 1, x * x  # HERE

    return jax.lax.while_loop(lambda carry: carry[0] < 6, grow, (0, x))[1]


def fixed_norm(x):
    m = jax.lax.stop_gradient(jnp.max(abs(x)))
    return m * jnp.sqrt(jnp.sum((x / m) ** 2))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


LARGE_KNOWN = [
    Known(softmax_by_hand, (a(200, 0, 0),), causes.SOFTMAX, lambda x: jax.nn.softmax(x)[0], 1, (0, 0, 0), "forward"),
    Known(
        softmax_of_small_numbers, (a(20, 30, 30),), causes.SOFTMAX,
        lambda x: jax.nn.softmax(-(x**2))[0], 1, (0, 0, 0), "forward",
    ),
    Known(
        logsumexp_of_small_numbers, (a(-200, -300, -300),), causes.LOGSUMEXP, jax.nn.logsumexp, -200, (1, 0, 0),
        "forward",
    ),
    Known(
        squared_secant, (a(200, 0, 1),), causes.EXP, lambda x: (1 / jnp.cosh(jnp.clip(x, -88, 88)) ** 2).sum(),
        1 + 1 / math.cosh(1) ** 2, (0, 0, -2 * math.tanh(1) / math.cosh(1) ** 2),
    ),
    Known(logsumexp_by_hand, (a(200, 0, 0),), causes.LOGSUMEXP, jax.nn.logsumexp, 200, (1, 0, 0), "forward"),
    Known(
        sigmoid_by_hand, (a(-200, 0, 1),), causes.SIGMOID, lambda x: jax.nn.sigmoid(x).sum(),
        0.5 + sigmoid(1), (0, 0.25, sigmoid(1) * sigmoid(-1)),
    ),
    Known(
        softplus_by_hand, (a(200, 0, 1),), causes.SOFTPLUS, lambda x: jax.nn.softplus(x).sum(),
        200 + math.log(2) + math.log1p(math.e), (1, 0.5, sigmoid(1)), "forward",
    ),
    Known(
        inverse_softplus_by_hand, (a(200, 1, 2),), causes.INVERSE_SOFTPLUS,
        lambda x: (x + jnp.log(-jnp.expm1(-x))).sum(),
        200 + math.log(math.e - 1) + math.log(math.e**2 - 1), (1, math.e / (math.e - 1), math.e**2 / (math.e**2 - 1)),
        "forward",
    ),
    Known(
        tanh_by_hand, (a(200, 0, 1),), causes.TANH, lambda x: jnp.tanh(x).sum(),
        1 + math.tanh(1), (0, 1, 1 / math.cosh(1) ** 2), "forward",
    ),
    Known(
        log_cosh_by_hand, (a(200, 0, 1),), causes.LOG_COSH, lambda x: (jnp.logaddexp(x, -x) - jnp.log(2.0)).sum(),
        200 - math.log(2) + math.log(math.cosh(1)), (1, 0, math.tanh(1)), "forward",
    ),
    Known(
        rate, (a(200, 0, 1),), causes.EXP, lambda x: jnp.exp(jnp.minimum(x, 88)).sum(),
        math.exp(88) + 1 + math.e, (0, 1, math.e), "forward", rtol=1e-4,
    ),
    Known(
        half_sum, (a(300, 2, 1, dtype=HALF),), causes.HALF, lambda x: (x.astype(jnp.float32) ** 2).sum(),
        90005, (600, 4, 2), "forward",
    ),
    Known(
        loss_scale, (a(1, 1, 1, dtype=HALF),), causes.HALF,
        lambda x: (x.astype(jnp.float32) * 1e3).sum(),  # scaled down
        3e3, (1e3, 1e3, 1e3),
    ),
    Known(
        norm_of_large_numbers, (a(3e20, 0, 4e20),), causes.OVERFLOW, fixed_norm, 5e20, (0.6, 0, 0.8), "forward",
    ),
    Known(
        loop_overflow, (F(1e3),), causes.OVERFLOW,
        lambda x: 2.0**6 * jnp.log(x), 64 * math.log(1e3), 0.064, "forward", steps=("while step 3",),  # the logarithm
    ),
]  # fmt: skip

# ---------------------------------------------------------------- rows of −∞, masks of infinity


def all_masked(scores):
    return jax.nn.softmax(scores, axis=-1)[:, 0].sum()  # HERE


def logsumexp_of_nothing(x):
    return jax.nn.logsumexp(x)  # HERE


def weight_of_nothing(x):
    return jnp.exp(jax.nn.logsumexp(x)) + 1.0  # HERE


def states_of_a_chain(start, log_moves):  # the forward algorithm, with a state that cannot be reached
    def step(states, _):
        return jax.nn.logsumexp(states[:, None] + log_moves, axis=0), None  # HERE

    return jax.nn.logsumexp(jax.lax.scan(step, start, None, length=2)[0])


def two_ways_of_nothing(x):
    return jnp.exp(jnp.logaddexp(x, -jnp.inf)).sum()  # HERE


def mask_by_multiplication(x):
    return ((x > 0).astype(x.dtype) * (1.0 / jnp.maximum(x, 0.0))).sum()  # HERE


def product_of_mask_and_infinity(x, mask):
    return jnp.exp(x + (1.0 - mask) * -jnp.inf).sum()  # HERE


def saturation(x):
    return (x / (1.0 + x)).sum()  # HERE


def difference_of_log_shares(x, y):
    return jnp.exp(x - y).sum()  # HERE


MOVES = np.array([[0.0, -np.inf], [0.0, -np.inf]], F)  # nobody goes to the second state
REACHED = a(0.0, 0.0)


def fixed_chain(start, log_moves):
    start, log_moves = jnp.maximum(start, -1e30), jnp.maximum(log_moves, -1e30)

    def step(states, _):
        return jax.nn.logsumexp(states[:, None] + log_moves, axis=0), None

    return jax.nn.logsumexp(jax.lax.scan(step, start, None, length=2)[0])


def fixed_all_masked(x):
    some = jnp.any(x > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(some, jax.nn.softmax(jnp.where(some, x, 0), axis=-1), 0)[:, 0].sum()


PADDED = np.array([[0.0, 0.0], [-np.inf, -np.inf]], F)
MASKS_KNOWN = [
    Known(all_masked, (PADDED,), causes.ALL_MASKED, fixed_all_masked, 0.5, ((0.25, -0.25), (0, 0)), "forward"),
    Known(
        logsumexp_of_nothing, (np.full(2, -np.inf, F),), causes.ALL_MASKED,
        lambda x: jax.nn.logsumexp(jnp.maximum(x, -1e30)), -1e30, (0, 0), "forward",
    ),
    Known(
        weight_of_nothing, (np.full(3, -np.inf, F),), causes.ALL_MASKED,
        lambda x: jnp.exp(jax.nn.logsumexp(jnp.maximum(x, -1e30))) + 1.0, 1, (0, 0, 0),
    ),
    Known(
        states_of_a_chain, (REACHED, MOVES), causes.ALL_MASKED, fixed_chain, math.log(2), (0.5, 0.5),
        steps=("scan step 1",),
    ),
    Known(
        two_ways_of_nothing, (a(-np.inf, 0, 1),), causes.ALL_MASKED,
        lambda x: jnp.exp(jnp.logaddexp(jnp.maximum(x, -1e30), -1e30)).sum(), 1 + math.e, (0, 1, math.e),
    ),
    Known(
        mask_by_multiplication, (a(-1, 1, 2),), causes.BY_ZERO,
        lambda x: safe_where(lambda x: 1 / jnp.maximum(x, 0), x > 0, x).sum(), 1.5, (0, -1, -0.25), "forward",
    ),
    Known(
        product_of_mask_and_infinity, (a(0, 1, 2), a(1, 1, 0)), causes.ZERO_TIMES_INFINITY,
        lambda x, mask: jnp.exp(jnp.where(mask > 0, x, -jnp.inf)).sum(), 1 + math.e, (1, math.e, 0), "forward",
    ),
    Known(
        saturation, (a(np.inf, 1, 3),), causes.INFINITY_BY_INFINITY, lambda x: (1 / (1 + 1 / x)).sum(),
        2.25, (0, 0.25, 1 / 16), "forward",
    ),
    Known(
        difference_of_log_shares, (a(-np.inf, 0, 1), a(-np.inf, 0, 0)), causes.INFINITY_LESS_INFINITY,
        lambda x, y: jnp.exp(jnp.clip(x, -1e30, 1e30) - jnp.clip(y, -1e30, 1e30)).sum(), 2 + math.e, (0, 1, math.e),
        "forward",
    ),
]  # fmt: skip

# ---------------------------------------------------------------- domains


def angle_between(x, y):
    return jnp.arccos(jnp.clip((x * y).sum(), -1.0, 1.0))  # HERE


def angle_of_a_cosine(c):
    return jnp.arccos(c).sum()  # HERE


def distance_in_the_disc(x):
    return jnp.arctanh(x).sum()  # HERE


def arc_cosh(x):
    return jnp.arccosh(x).sum()  # HERE


def direction(y, x):
    return jnp.arctan2(y, x).sum()  # HERE


def no_factor(m):
    return jnp.linalg.cholesky(m)[0, 0]  # HERE


def singular(m):
    return jnp.linalg.inv(m)[0, 0]  # HERE


def log_determinant(m):
    return jnp.linalg.slogdet(m)[1]  # HERE


def projection(m):
    values, vectors = jnp.linalg.eigh(m)  # HERE
    return (vectors @ jnp.diag(values**2) @ vectors.T)[0, 0]


def of_singular_vectors(m):
    u, s, vt = jnp.linalg.svd(m)  # HERE
    return (u * s).sum() + vt.sum()


def fixed_angle(x, y):
    c = (x * y).sum()
    ok = abs(c) < 1
    return jnp.where(ok, jnp.arccos(jnp.where(ok, c, 0)), jnp.arccos(jax.lax.stop_gradient(c)))


def fixed_cosh(x):
    ok = x > 1
    return jnp.where(ok, jnp.arccosh(jnp.where(ok, x, 2)), jnp.arccosh(jax.lax.stop_gradient(x))).sum()


def fixed_direction(y, x):
    r = x**2 + y**2
    return jnp.where(r > 0, jnp.arctan2(jnp.where(r > 0, y, 0), jnp.where(r > 0, x, 1)), 0).sum()


EPS = 1e-3
DOMAINS_KNOWN = [
    Known(angle_between, (a(1, 0, 0), a(1, 0, 0)), causes.EDGE, fixed_angle, 0, (0, 0, 0)),
    Known(
        angle_of_a_cosine, (a(1.5, 0.5, 0),), causes.DOMAIN, lambda x: jnp.arccos(jnp.clip(x, -1 + EPS, 1 - EPS)).sum(),
        math.acos(1 - EPS) + math.pi / 3 + math.pi / 2, (0, -1 / math.sqrt(0.75), -1), "forward",
    ),
    Known(
        distance_in_the_disc, (a(1, 0.5, 0),), causes.DOMAIN,
        lambda x: jnp.arctanh(jnp.clip(x, -1 + EPS, 1 - EPS)).sum(),
        math.atanh(1 - EPS) + math.atanh(0.5), (0, 1 / 0.75, 1), "forward",
    ),
    Known(arc_cosh, (a(1, 2, 3),), causes.EDGE, fixed_cosh, math.acosh(2) + math.acosh(3), (0, 3**-0.5, 8**-0.5)),
    Known(
        direction, (a(0, 1, 2), a(0, 1, 1)), causes.NO_DIRECTION, fixed_direction, math.pi / 4 + math.atan(2), (0,
        0.5, 0.2),
    ),
    Known(
        no_factor, (np.array([[1, 2], [2, 1]], F),), causes.DEFINITE,
        lambda m: jnp.linalg.cholesky((m + m.T) / 2 + 3 * jnp.eye(2))[0, 0], 2, ((0.25, 0), (0, 0)), "forward",
    ),
    Known(
        singular, (np.zeros((2, 2), F),), causes.SINGULAR,
        lambda m: jnp.linalg.inv(m + 0.5 * jnp.eye(2))[0, 0], 2, ((-4, 0), (0, 0)), "forward",
    ),
    Known(
        log_determinant, (np.zeros((2, 2), F),), causes.SINGULAR,
        lambda m: jnp.linalg.slogdet(m + 0.5 * jnp.eye(2))[1], -2 * math.log(2), ((2, 0), (0, 2)), "forward",
    ),
    Known(projection, (np.eye(2, dtype=F),), causes.EQUAL, lambda m: (m @ m)[0, 0], 1, ((2, 0), (0, 0))),
    Known(of_singular_vectors, (np.eye(2, dtype=F),), causes.EQUAL, jnp.trace, 2, ((1, 0), (0, 1))),
]  # fmt: skip

# ---------------------------------------------------------------- what came in


def missing_value(x):
    return (x**2).sum()  # HERE


def infinity_in_the_code(x):
    return jnp.where(x > 0, x, jnp.inf).max()  # HERE


GIVEN_KNOWN = [
    Known(
        missing_value, (a(np.nan, 1, 2),), causes.GIVEN, lambda x: safe_where(lambda x: x**2, jnp.isfinite(x), x).sum(),
        5, (0, 2, 4), "forward",
    ),
    Known(
        infinity_in_the_code, (a(-1, 1, 2),), causes.WRITTEN, lambda x: jnp.where(x > 0, x, 1e30).max(),
        1e30, (0, 0, 0), "forward",
    ),
]  # fmt: skip

MORE_KNOWN = [*POWERS_KNOWN, *QUOTIENTS_KNOWN, *LARGE_KNOWN, *MASKS_KNOWN, *DOMAINS_KNOWN, *GIVEN_KNOWN]
