"""Known NaNs and infinities: the function, its cause, the line marked HERE, and the function as the advice rewrites it.

`fixed` is written from the text of the advice alone; `value` and `gradient`, by the first argument, are derived by hand
or in double precision by another formula. Where a formula has no slope, or an infinite one, they are what the text of
the advice says. Small arrays: every eager operation compiles once for each shape.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from jaxnn.graph.nonfinite import causes

F, HALF = np.float32, np.float16
TINY = float(np.finfo(F).tiny)
LOG_TINY = math.log(TINY)


def a(*x: Any, dtype: Any = F) -> Any:
    return np.array(x, dtype)


class Known(NamedTuple):
    f: Callable[..., Any]
    args: tuple[Any, ...]
    cause: str
    fixed: Callable[..., Any]
    value: Any
    gradient: Any  # by the first argument
    direction: str = "backward"
    hidden: str = ""  # the operation that threw the result away
    steps: tuple[str, ...] = ()
    rtol: float = 1e-5


# ---------------------------------------------------------------- thrown away by a where


def where_sqrt_of_negative(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()  # HERE


def where_sqrt_at_zero(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()  # HERE


def where_log_elsewhere(p):
    logs = jnp.log(p)  # HERE
    return -jnp.where(p > 0, p * logs, 0.0).sum()


def where_division(x, n):
    share = x / n  # HERE
    return jnp.where(n > 0, share, 0.0).sum()


def where_arccos(x):
    angle = jnp.arccos(x)  # HERE
    return jnp.where(jnp.abs(x) < 1, angle, 0.0).sum()


def where_softplus(x):
    soft = jnp.log1p(jnp.exp(x))  # HERE
    return jnp.where(x > 20, x, soft).sum()


def lax_select(x):
    return jax.lax.select(x > 0, jnp.log(x), jnp.zeros_like(x)).sum()  # HERE


def where_power(x):
    return (3.0 * jnp.where(x > 0, x**0.3, 0.0)).sum()  # HERE


def where_row_of_nan(w, x, ok):  # padding that holds NaN
    y = x @ w  # HERE
    return jnp.where(ok, y, 0.0).sum()


def where_before_relu(x):
    logs = jnp.log(x)  # HERE
    return jax.nn.relu(jnp.where(x > 0, logs, 0.0)).sum()


def nansum_of_root(x):
    return jnp.nansum(jnp.sqrt(x))  # HERE


def scan_over_padding(w, x):
    def step(h, t):
        new = h * w + w * t  # HERE
        return jnp.where(jnp.isnan(t), h, new), None

    return jax.lax.scan(step, 1.0, x)[0]


def scan_root(x):
    def step(h, t):
        r = jnp.sqrt(t)  # HERE
        return h + jnp.where(t > 0, r, 0.0), None

    return jax.lax.scan(step, 0.0, x)[0]


def safe_where(f, ok, x, otherwise=0.0):  # as the advice has it
    return jnp.where(ok, f(jnp.where(ok, x, 1)), otherwise)


def fixed_scan_over_padding(w, x):
    def step(h, t):
        ok = ~jnp.isnan(t)
        return jnp.where(ok, h * w + w * jnp.where(ok, t, 1), h), None

    return jax.lax.scan(step, 1.0, x)[0]


def fixed_scan_root(x):
    return jax.lax.scan(lambda h, t: (h + safe_where(jnp.sqrt, t > 0, t), None), 0.0, x)[0]


NAN_ROWS = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]], F)
WHERE_KNOWN = [
    Known(
        where_sqrt_of_negative, (a(-1, 4, 9),), causes.WHERE,
        lambda x: safe_where(jnp.sqrt, x > 0, x).sum(), 5, (0, 1 / 4, 1 / 6), hidden="where",
    ),
    Known(
        where_sqrt_at_zero, (a(0, 4, 9),), causes.WHERE,
        lambda x: safe_where(jnp.sqrt, x > 0, x).sum(), 5, (0, 1 / 4, 1 / 6), hidden="where",
    ),
    Known(
        where_log_elsewhere, (a(0, 0.5, 1),), causes.WHERE,
        lambda p: -safe_where(lambda p: p * jnp.log(p), p > 0, p).sum(),
        0.5 * math.log(2), (0, math.log(2) - 1, -1), hidden="where",
    ),
    Known(
        where_division, (a(1, 4, 9), a(0, 1, 2)), causes.WHERE,
        lambda x, n: jnp.where(n > 0, x / jnp.where(n > 0, n, 1), 0).sum(), 8.5, (0, 1, 0.5), hidden="where",
    ),
    Known(
        where_arccos, (a(2, 0.5, 0),), causes.WHERE,
        lambda x: jnp.where(abs(x) < 1, jnp.arccos(jnp.where(abs(x) < 1, x, 0.5)), 0).sum(),
        math.pi / 3 + math.pi / 2, (0, -1 / math.sqrt(0.75), -1), hidden="where",
    ),
    Known(
        where_softplus, (a(1, 200, 0),), causes.WHERE,
        lambda x: safe_where(lambda x: jnp.log1p(jnp.exp(x)), x <= 20, x, x).sum(),
        200 + math.log1p(math.e) + math.log(2), (1 / (1 + math.exp(-1)), 1, 0.5), hidden="where",
    ),
    Known(
        lax_select, (a(-1, 2, 0),), causes.WHERE,
        lambda x: safe_where(jnp.log, x > 0, x).sum(), math.log(2), (0, 0.5, 0), hidden="where",
    ),
    Known(
        where_power, (a(-1, 1, 1),), causes.WHERE,
        lambda x: (3 * safe_where(lambda x: x**0.3, x > 0, x)).sum(), 6, (0, 0.9, 0.9), hidden="where",
    ),
    Known(
        where_row_of_nan, (a(1, 1), NAN_ROWS, np.array([True, False, True])), causes.WHERE,
        lambda w, x, ok: jnp.where(ok, jnp.where(ok[:, None], x, 1) @ w, 0).sum(), 10, (4, 6), hidden="where",
    ),
    Known(
        where_before_relu, (a(0, 2, 3),), causes.WHERE,
        lambda x: jax.nn.relu(safe_where(jnp.log, x > 0, x)).sum(), math.log(6), (0, 1 / 2, 1 / 3), hidden="where",
    ),
    Known(
        nansum_of_root, (a(-1, 4, 9),), causes.WHERE,
        lambda x: safe_where(jnp.sqrt, x > 0, x).sum(), 5, (0, 1 / 4, 1 / 6), hidden="where",
    ),
    Known(
        scan_over_padding, (F(2), a(1, 3, np.nan)), causes.WHERE,
        fixed_scan_over_padding, 14, 11, hidden="where", steps=("scan step 2",),  # 2 w² + 3 w
    ),
    Known(
        scan_root, (a(4, -1, 9),), causes.WHERE,
        fixed_scan_root, 5, (1 / 4, 0, 1 / 6), hidden="where", steps=("scan step 1",),
    ),
]  # fmt: skip

# ---------------------------------------------------------------- thrown away by other means


def slice_of_root(x):
    roots = jnp.sqrt(x)  # HERE
    return roots[1:].sum()


def take_of_log(x):
    return jnp.take(jnp.log(x), jnp.array([1, 2])).sum()  # HERE


def dynamic_slice_of_root(x, i):
    roots = jnp.sqrt(x)  # HERE
    return jax.lax.dynamic_slice(roots, (i,), (2,)).sum()


def segments_outside(x):  # the second segment does not exist
    roots = jnp.sqrt(x)  # HERE
    return jax.ops.segment_sum(roots, jnp.array([0, 5, 1]), num_segments=2).sum()


def row_of_attention(scores):  # the row of padding is cut off afterwards
    weights = jax.nn.softmax(scores, axis=-1)  # HERE
    return weights[0, 0]


def outputs_of_a_scan(x):
    def step(h, t):
        return h, jnp.sqrt(t)  # HERE

    return jax.lax.scan(step, 0.0, x)[1][1:].sum()


def largest_log(x):
    return jnp.max(jnp.log(x))  # HERE


def log_with_a_floor(x):
    return jnp.maximum(jnp.log(x), -10.0).sum()  # HERE


def bounded_inverse(x):
    return jnp.minimum(1.0 / x, 100.0).sum()  # HERE


def masked_by_a_product(x, mask):
    return (jnp.sqrt(x) * mask).sum()  # HERE


def masked_from_then_on(x, ok):
    return (jnp.cumprod(ok) * jnp.sqrt(x)).sum()  # HERE


def masked_by_a_matrix_product(x, mask):
    return mask @ jnp.sqrt(x)  # HERE


PADDED = np.array([[0.0, 0.0], [-np.inf, -np.inf]], F)
HIDDEN_KNOWN = [
    Known(
        slice_of_root, (a(-1, 4, 9),), causes.DROPPED,
        lambda x: jnp.sqrt(x[1:]).sum(), 5, (0, 1 / 4, 1 / 6), hidden="slice",
    ),
    Known(
        take_of_log, (a(0, 1, 2),), causes.DROPPED,
        lambda x: jnp.log(jnp.take(x, jnp.array([1, 2]))).sum(), math.log(2), (0, 1, 0.5), hidden="indexing",
    ),
    Known(
        dynamic_slice_of_root, (a(-1, 4, 9), np.int32(1)), causes.DROPPED,
        lambda x, i: jnp.sqrt(jax.lax.dynamic_slice(x, (i,), (2,))).sum(), 5, (0, 1 / 4, 1 / 6),
        hidden="dynamic_slice",
    ),
    Known(
        segments_outside, (a(4, -1, 9),), causes.DROPPED,
        lambda x: jnp.sqrt(x[jnp.array([0, 2])]).sum(), 5, (1 / 4, 0, 1 / 6), hidden="scatter-add",
    ),
    Known(
        row_of_attention, (PADDED,), causes.DROPPED,
        lambda x: jax.nn.softmax(x[0], axis=-1)[0], 0.5, ((0.25, -0.25), (0, 0)), hidden="slice",
    ),
    Known(
        outputs_of_a_scan, (a(-1, 4, 9),), causes.DROPPED,
        lambda x: jax.lax.scan(lambda h, t: (h, jnp.sqrt(t)), 0.0, x[1:])[1].sum(), 5, (0, 1 / 4, 1 / 6),
        hidden="slice", steps=("scan step 0",),
    ),
    Known(
        largest_log, (a(0, 2, 1),), causes.BOUNDED,
        lambda x: jnp.max(safe_where(jnp.log, x > 0, x, -jnp.inf)), math.log(2), (0, 0.5, 0), hidden="max",
    ),
    Known(
        log_with_a_floor, (a(0, 2, 1),), causes.BOUNDED,
        lambda x: jnp.log(jnp.maximum(x, jnp.exp(-10.0))).sum(), math.log(2) - 10, (0, 0.5, 1), hidden="max",
    ),
    Known(
        bounded_inverse, (a(0, 2, 1),), causes.BOUNDED,
        lambda x: jnp.minimum(safe_where(lambda x: 1 / x, x != 0, x, 100.0), 100.0).sum(),
        101.5, (0, -0.25, -1), hidden="min",
    ),
    Known(
        masked_by_a_product, (a(0, 4, 9), a(0, 1, 1)), causes.MASKED,
        lambda x, mask: safe_where(jnp.sqrt, mask > 0, x).sum(), 5, (0, 1 / 4, 1 / 6), hidden="mul",
    ),
    Known(
        masked_from_then_on, (a(4, 9, 0), a(1, 1, 0)), causes.MASKED,
        lambda x, ok: safe_where(jnp.sqrt, jnp.cumprod(ok) > 0, x).sum(), 5, (1 / 4, 1 / 6, 0), hidden="mul",
    ),
    Known(
        masked_by_a_matrix_product, (a(0, 4, 9), a(0, 1, 1)), causes.MASKED,
        lambda x, mask: safe_where(jnp.sqrt, mask > 0, x).sum(), 5, (0, 1 / 4, 1 / 6), hidden="dot_general",
    ),
]  # fmt: skip

# ---------------------------------------------------------------- roots and norms


def norm_at_zero(x):
    return jnp.linalg.norm(x)  # HERE


def distances(x):
    gaps = x[:, None] - x[None]
    return jnp.sqrt((gaps**2).sum(-1)).sum()  # HERE


def deviation(x):
    return jnp.std(x)  # HERE


def root_at_zero(x):
    return jnp.sqrt(x).sum()  # HERE


def slope_of_a_root(x):  # f differentiates, and its own value is a slope
    return jax.grad(lambda x: jnp.sqrt(x).sum())(x).sum()  # HERE


def root_of_negative(x):
    return jnp.sqrt(x).sum()  # HERE


def variance_less_a_bound(x):
    variance = (x**2).mean() - x.mean() ** 2
    return jnp.sqrt(variance - 1e-3)  # HERE


def normalised(x, w):
    return (w * (x - x.mean()) / x.std()).sum()  # HERE


def unit_vector(x):
    return (x / jnp.sqrt((x**2).sum())).sum()  # HERE


def cosine(x, y):
    return (x * y).sum() / (jnp.linalg.norm(x) * jnp.linalg.norm(y))  # HERE


def norm_in_a_scan(x):
    def step(h, t):
        return h, jnp.sqrt((t**2).sum())  # HERE

    return jax.lax.scan(step, 0.0, x)[1].sum()


def root(v):  # as the advice has it
    return jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1)), 0)


def unit(x):
    v = jnp.sum(x**2)
    return jnp.where(v > 0, x / jnp.sqrt(jnp.where(v > 0, v, 1)), 0)


STEPS = np.array([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]], F)
ROOTS_KNOWN = [
    Known(norm_at_zero, (a(0, 0, 0),), causes.NORM, lambda x: root((x**2).sum()), 0, (0, 0, 0)),
    Known(
        distances, (STEPS,), causes.NORM, lambda x: root(((x[:, None] - x[None]) ** 2).sum(-1)).sum(),
        2 * (5 + 10 + 5), ((0, 0), (-2.4, -3.2), (2.4, 3.2)),
    ),
    Known(deviation, (a(2, 2, 2),), causes.DEVIATION, lambda x: root(jnp.var(x)), 0, (0, 0, 0)),
    Known(root_at_zero, (a(0, 4, 9),), causes.ROOT, lambda x: root(x).sum(), 5, (0, 1 / 4, 1 / 6)),
    Known(
        slope_of_a_root, (a(0, 4, 1),), causes.ROOT, lambda x: jax.grad(lambda x: root(x).sum())(x).sum(),
        0.75, (0, -1 / 32, -1 / 4), "forward",
    ),
    Known(
        root_of_negative, (a(-1, 4, 9),), causes.ROOT_NEGATIVE,
        lambda x: root(x).sum(), 5, (0, 1 / 4, 1 / 6), "forward",
    ),
    Known(
        variance_less_a_bound, (a(0.1, 0.1, 0.1),), causes.ROOT_NEGATIVE,
        lambda x: root(jnp.mean((x - jnp.mean(x)) ** 2) - 1e-3), 0, (0, 0, 0), "forward",
    ),
    Known(
        normalised, (a(2, 2, 2), a(1, 2, 3)), causes.BY_VARIANCE,
        lambda x, w: (w * (x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-6)).sum(), 0, (-1e3, 0, 1e3), "forward",
    ),
    Known(unit_vector, (a(0, 0, 0),), causes.BY_NORM, lambda x: unit(x).sum(), 0, (0, 0, 0), "forward"),
    Known(
        cosine, (a(0, 0, 0), a(1, 2, 2)), causes.BY_NORM,
        lambda x, y: (unit(x) * unit(y)).sum(), 0, (0, 0, 0), "forward",
    ),
    Known(
        norm_in_a_scan, (STEPS,), causes.NORM,
        lambda x: jax.lax.scan(lambda h, t: (h, root((t**2).sum())), 0.0, x)[1].sum(),
        15, ((0.6, 0.8), (0, 0), (0.6, 0.8)), steps=("scan step 1",),
    ),
]  # fmt: skip

# ---------------------------------------------------------------- logarithms


def log_of_zero(x):
    return jnp.log(x).sum()  # HERE


def clipped_log(p):  # a bound that is 0 in float16
    return jnp.log(jnp.clip(p, HALF(1e-10), HALF(1))).sum()  # HERE


def entropy(p):
    return -(p * jnp.log(p)).sum()  # HERE


def cross_entropy(q, t):
    return -(t * jnp.log(q)).sum()  # HERE


def entropy_of_jax(p):
    return jax.scipy.special.entr(p).sum()  # HERE


def running_product(x):
    return jnp.exp(jnp.cumsum(jnp.log(x))).sum()  # HERE


def product_with_a_sign(x):
    return jnp.exp(jnp.sum(jnp.log(x)))  # HERE


def shares(w):
    return jax.nn.softmax(jnp.log(w))[1]  # HERE


def power_by_logarithms(x):
    return jnp.exp(2.0 * jnp.log(x)).sum()  # HERE


def log_of_product(p):
    return jnp.log(jnp.prod(p))  # HERE


def log_of_density(x):
    return jnp.log(norm.pdf(x)).sum()  # HERE


def divergence(p, q):
    return (p * (jnp.log(p) - jnp.log(q))).sum()  # HERE


def log_of_softmax(x):
    return jnp.log(jax.nn.softmax(x))[1]  # HERE


def log_of_softmax_by_hand(x):
    e = jnp.exp(x - x.max())
    return jnp.log(e / e.sum())[1]  # HERE


def log_of_sigmoid(x):
    return jnp.log(jax.nn.sigmoid(x))  # HERE


def log_of_one_less_sigmoid(x):
    return jnp.log(1.0 - jax.nn.sigmoid(x))  # HERE


def log_cdf(x):
    return jnp.log(norm.cdf(x))  # HERE


def log_survival(x):
    return jnp.log(1.0 - norm.cdf(x))  # HERE


def log_of_negative(x):
    return jnp.log(x).sum()  # HERE


def log_in_a_scan(x):
    def step(h, t):
        h = h - 1.0
        return h, jnp.log(h) * t  # HERE

    return jax.lax.scan(step, 3.0, x)[1].sum()


def fixed_log_in_a_scan(x):
    def step(h, t):
        h = h - 1.0
        return h, jnp.log(jnp.maximum(h, TINY)) * t

    return jax.lax.scan(step, 3.0, x)[1].sum()


def x_log_y(x, y):  # as the advice has it
    return jnp.where(x > 0, x * jnp.log(jnp.where(x > 0, y, 1)), 0)


HALF_TINY = float(np.finfo(HALF).tiny)
LOGS_KNOWN = [
    Known(
        log_of_zero, (a(0, 1, 2),), causes.LOG, lambda x: jnp.log(jnp.maximum(x, TINY)).sum(),
        LOG_TINY + math.log(2), (0, 1, 0.5), "forward",
    ),
    Known(
        clipped_log, (a(0, 0.5, 0.5, dtype=HALF),), causes.LOG,
        lambda p: jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)).sum(),
        math.log(HALF_TINY) - 2 * math.log(2), (0, 2, 2), "forward", rtol=2e-3,
    ),
    Known(
        entropy, (a(0, 0.5, 1),), causes.X_LOG_X, lambda p: -x_log_y(p, p).sum(),
        0.5 * math.log(2), (0, math.log(2) - 1, -1), "forward",
    ),
    Known(
        cross_entropy, (a(0, 0.5, 1), a(0, 0.5, 0.5)), causes.X_LOG_X, lambda q, t: -x_log_y(t, q).sum(),
        0.5 * math.log(2), (0, -1, -0.5), "forward",
    ),
    Known(
        entropy_of_jax, (a(0, 0.5, 1),), causes.X_LOG_X, lambda p: -x_log_y(p, p).sum(),
        0.5 * math.log(2), (0, math.log(2) - 1, -1),
    ),
    Known(running_product, (a(1, 32, 0, 0),), causes.PRODUCT, lambda x: jnp.cumprod(x).sum(), 33, (33, 1, 32, 0)),
    Known(product_with_a_sign, (a(-2, 3, 5),), causes.PRODUCT, jnp.prod, -30, (15, -10, -6), "forward"),
    Known(shares, (a(0, 1, 3),), causes.EXP_LOG, lambda w: (w / w.sum())[1], 1 / 4, (-1 / 16, 3 / 16, -1 / 16)),
    Known(power_by_logarithms, (a(0, 2, 3),), causes.EXP_LOG, lambda x: (x**2.0).sum(), 13, (0, 4, 6)),
    Known(
        log_of_product, (a(1e-20, 1e-20, 0.5),), causes.LOG_PRODUCT, lambda p: jnp.sum(jnp.log(p)),
        -40 * math.log(10) - math.log(2), (1e20, 1e20, 2), "forward",
    ),
    Known(
        log_of_density, (a(20, 0, 1),), causes.EXP_LOG, lambda x: norm.logpdf(x).sum(),
        -200.5 - 1.5 * math.log(2 * math.pi), (-20, 0, -1), "forward",
    ),
    Known(
        divergence, (a(0, 0.5, 0.5), a(0.5, 0.25, 0.25)), causes.X_LOG_X,
        lambda p, q: (x_log_y(p, p) - x_log_y(p, q)).sum(),
        math.log(2), (0, math.log(2) + 1, math.log(2) + 1), "forward",
    ),
    Known(
        log_of_softmax, (a(200, 0, 0),), causes.LOG_SOFTMAX,
        lambda x: jax.nn.log_softmax(x)[1], -200, (-1, 1, 0), "forward",
    ),
    Known(
        log_of_softmax_by_hand, (a(200, 0, 0),), causes.LOG_SOFTMAX, lambda x: jax.nn.log_softmax(x)[1],
        -200, (-1, 1, 0), "forward",
    ),
    Known(log_of_sigmoid, (F(-200),), causes.LOG_SOFTMAX, jax.nn.log_sigmoid, -200, 1, "forward"),
    Known(
        log_of_one_less_sigmoid, (F(200),), causes.LOG_SOFTMAX, lambda x: jax.nn.log_sigmoid(-x), -200, -1, "forward",
    ),
    # log Φ(−20) and log Φ(−10) by Mills' continued fraction
    Known(log_cdf, (F(-20),), causes.TAIL, norm.logcdf, -203.917155, 20.0497527, "forward"),
    Known(log_survival, (F(10),), causes.TAIL, norm.logsf, -53.2312851, -10.0980932, "forward"),
    Known(
        log_of_negative, (a(-1, 1, 2),), causes.LOG_NEGATIVE, lambda x: jnp.log(jnp.maximum(x, TINY)).sum(),
        LOG_TINY + math.log(2), (0, 1, 0.5), "forward",
    ),
    Known(
        log_in_a_scan, (a(1, 1, 1),), causes.LOG, fixed_log_in_a_scan,
        math.log(2) + LOG_TINY, (math.log(2), 0, LOG_TINY), "forward", steps=("scan step 2",),
    ),
]  # fmt: skip
