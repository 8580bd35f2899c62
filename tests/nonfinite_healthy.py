"""Functions that look like the known cases and are finite, value and gradient: with NaN and infinity on the way.

Each has its arguments; none may raise an alarm.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr, xlogy
from jax.scipy.stats import norm
from nonfinite_cases import HALF, F, a

X = a(0, 4, 9)
SCORES = np.array([[1.0, 2.0, 3.0], [0.5, 0.1, 0.2]], F)
PARTLY = np.array([[True, True, False], [False, True, False]])
INF = np.inf


def safe(f, ok, x, otherwise=0.0):
    return jnp.where(ok, f(jnp.where(ok, x, 1)), otherwise)


def scan(step, start, xs):
    return jax.lax.scan(step, start, xs)


def over_padding(w, x):
    def step(h, t):
        ok = ~jnp.isnan(t)
        return jnp.where(ok, h * w + w * jnp.where(ok, t, 1), h), None

    return scan(step, 1.0, x)[0]


def safe_norm(x):
    v = (x**2).sum()
    return safe(jnp.sqrt, v > 0, v)


def log_zero_unused(x):  # −∞ on the way, and nothing made of it
    logs = jnp.log(x)
    return jnp.where(jnp.isfinite(jax.lax.stop_gradient(logs)), x, 0.0).sum()


def chain_with_a_closed_move(start):
    moves = jnp.array([[0.0, -INF], [0.0, 0.0]])

    def step(states, _):
        return jax.nn.logsumexp(states[:, None] + moves, axis=0), None

    return jax.nn.logsumexp(scan(step, start, jnp.zeros(2))[0])


def cond_with_a_log(x):
    return jax.lax.cond(x > 0, jnp.log, lambda x: x, x)


def loop_within(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * c[1]), (0, x))[1]


def attention(scores):
    causal = jnp.tril(jnp.ones((2, 3), bool))
    return (jax.nn.softmax(jnp.where(causal, scores, -INF), axis=-1) ** 2).sum()


def beam(x):  # the best two of scores, of which some are −∞
    return jax.lax.top_k(jnp.where(x > 0, x, -INF), 2)[0].sum()


def cross_entropy_over_masked_logits(x):
    return -jax.nn.log_softmax(jnp.where(x > 0, x, -INF))[1]


def series_sinc(x):
    near = abs(x) < 1e-2
    s = jnp.where(near, 1, x)
    return jnp.where(near, 1 - x**2 / 6, jnp.sin(s) / s).sum()


HEALTHY = {
    "where: sqrt": (lambda x: safe(jnp.sqrt, x > 0, x).sum(), X),
    "where: sqrt of negative": (lambda x: safe(jnp.sqrt, x > 0, x).sum(), a(-1, 4, 9)),
    "where: log": (lambda p: -safe(lambda p: p * jnp.log(p), p > 0, p).sum(), a(0, 0.5, 1)),
    "where: division": (lambda x, n: jnp.where(n > 0, x / jnp.where(n > 0, n, 1.0), 0.0).sum(), X, a(0, 1, 2)),
    "where: arccos": (lambda x: safe(jnp.arccos, abs(x) < 1, x * 0.5).sum(), a(2, 0.5, 0)),
    "where: power": (lambda x: safe(lambda x: x**0.3, x > 0, x).sum(), a(-1, 1, 2)),
    "where: exp": (lambda x: jnp.where(x > 20, x, jnp.log1p(jnp.exp(jnp.minimum(x, 20.0)))).sum(), a(1, 200, 2)),
    "where: an infinity that is not taken": (lambda x: jnp.where(x > -1, x, jnp.inf).sum(), X),
    "where: NaN that is not taken": (lambda x: jnp.where(jnp.isnan(x), 0.0, x).sum(), a(np.nan, 1, 2)),
    "where: NaN padding": (lambda w, x: jnp.where(jnp.isnan(x), 0.0, jnp.nan_to_num(x) * w).sum(), X, a(np.nan, 1, 2)),
    "nansum": (lambda x: jnp.nansum(x), a(np.nan, 1, 2)),
    "nanmean": (lambda x: jnp.nanmean(x), a(np.nan, 1, 2)),
    "slice first": (lambda x: jnp.sqrt(x[1:]).sum(), a(-1, 4, 9)),
    "take first": (lambda x: jnp.log(jnp.take(x, jnp.array([1, 2]))).sum(), X),
    "indexing NaN away": (lambda x: x[1:].sum(), a(np.nan, 1, 2)),
    "a bound on the input of log": (lambda x: jnp.log(jnp.maximum(x, 1e-6)).sum(), X),
    "a bound on the input of exp": (lambda x: jnp.exp(jnp.minimum(x, 80.0)).sum(), a(100, 1, 2)),
    "clip to −∞": (lambda x: jnp.clip(x, -INF, 3.0).sum(), X),
    "minimum of ∞": (lambda x: jnp.minimum(x, INF).sum() + jnp.exp(-INF), X),
    "max over padding of −∞": (lambda x: jnp.max(jnp.where(x > 0, x, -INF)), X),
    "min over padding of ∞": (lambda x: jnp.min(jnp.where(x > 0, x, INF)), X),
    "max with initial −∞": (lambda x: jnp.max(x, initial=-INF), X),
    "running maximum": (lambda x: scan(lambda m, t: (jnp.maximum(m, t), m), -INF, x)[0], X),
    "cumulative maximum": (lambda x: jax.lax.cummax(jnp.where(x > 0, x, -INF))[-1], X),
    "the best of a beam": (beam, X),
    "sorted with −∞": (lambda x: jnp.sort(jnp.where(x > 0, x, -INF))[1:].sum(), X),
    "max pooling": (lambda x: jax.lax.reduce_window(x, -INF, jax.lax.max, (2,), (1,), "SAME").sum(), X),
    "relu of −∞": (lambda x: jax.nn.relu(x).sum(), a(-INF, 1, 2)),
    "softmax, partly masked": (lambda x: jax.nn.softmax(jnp.where(PARTLY, x, -INF), axis=-1).max(), SCORES),
    "softmax, masked by addition": (
        lambda x: jax.nn.softmax(x + jnp.where(PARTLY, 0.0, -INF), axis=-1)[:, 1].sum(),
        SCORES,
    ),
    "softmax, causal": (attention, SCORES),
    "softmax with where": (lambda x: jax.nn.softmax(x, where=PARTLY, axis=-1)[0].sum(), SCORES),
    "log_softmax of masked logits, one taken": (cross_entropy_over_masked_logits, X),
    "log_softmax of masked logits, all given": (lambda x: jax.nn.log_softmax(jnp.where(x > 0, x, -INF)), X),
    "logsumexp, partly masked": (lambda x: jax.nn.logsumexp(jnp.where(x > 0, x, -INF)), X),
    "logsumexp of given −∞": (lambda x: jax.nn.logsumexp(x), a(-INF, 1, 2)),
    "logaddexp with −∞": (lambda x: jnp.logaddexp(x, -INF).sum(), X),
    "a chain with a closed move": (chain_with_a_closed_move, a(0, 0)),
    "mask by log of 0": (lambda x: jax.nn.softmax(x + jnp.log(a(1, 0, 1)))[0], X),
    "exp of −∞": (lambda x: (x * jnp.exp(jnp.where(x > 0, 0.0, -INF))).sum(), X),
    "tanh of ∞": (lambda x: jnp.tanh(x).sum(), a(INF, 1, 2)),
    "compared with ∞": (lambda x: jnp.where(x < INF, x, 0.0).sum(), X),
    "one over ∞": (lambda x: (x / (1.0 + jnp.exp(jnp.float32(200.0)))).sum(), X),
    "NaN behind stop_gradient": (lambda x: (x + jnp.nan_to_num(jax.lax.stop_gradient(x / x))).sum(), X),
    "a log that is looked at alone": (log_zero_unused, X),
    "norm with where": (safe_norm, a(0, 0, 0)),
    "norm squared": (lambda x: jnp.vdot(x, x), a(0, 0, 0)),
    "norm of something": (lambda x: jnp.linalg.norm(x), X),
    "norm with ε": (lambda x: (x * jax.lax.rsqrt((x**2).sum() + 1e-6)).sum(), a(0, 0, 0)),
    "variance of a constant": (lambda x: jnp.var(x), a(2, 2, 2)),
    "normalised with ε": (lambda x: ((x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-5)).sum(), a(2, 2, 2)),
    "cosine with a bound": (lambda x, y: (x * y).sum() / jnp.maximum(jnp.linalg.norm(y), 1e-6), a(0, 0, 0), X),
    "x log y by xlogy": (lambda p: xlogy(a(0, 1, 2), p).sum(), a(1, 2, 3)),
    "entropy inside": (lambda p: entr(p).sum(), a(0.2, 0.5, 0.3)),
    "cumprod with zeros": (lambda x: jnp.cumprod(x).sum(), a(1, 32, 0, 0)),
    "prod with zeros": (lambda x: jnp.prod(x), a(2, 0, 3)),
    "whole power of 0": (lambda x: (x**2 + x**3 + x**0).sum(), X),
    "power above 1 of 0": (lambda x: (x**1.5).sum(), X),
    "log cdf in the tail": (lambda x: norm.logcdf(x).sum(), a(-20, 0, 20)),
    "log_sigmoid in the tail": (lambda x: jax.nn.log_sigmoid(x).sum(), a(-1e4, 0, 1e4)),
    "sigmoid in the tail": (lambda x: jax.nn.sigmoid(x).sum(), a(-200, 0, 200)),
    "softplus in the tail": (lambda x: jax.nn.softplus(x).sum(), a(-200, 0, 200)),
    "softmax of large numbers": (lambda x: jax.nn.softmax(x)[0], a(1000, 1, 2)),
    "sinc": (lambda x: jnp.sinc(x).sum(), X),
    "sinc by its series": (series_sinc, a(0, 0.5, 2)),
    "masked mean with a bound": (lambda x, m: (x * m).sum() / jnp.maximum(m.sum(), 1), X, a(0, 0, 0)),
    "float32 inside float16": (lambda x: (x.astype(jnp.float32) ** 2).sum(), a(300, 2, 1, dtype=HALF)),
    "scan near zero": (lambda x: scan(lambda h, t: (h - 1.0, jnp.log(h) * t), 30.0, x)[1].sum(), X),
    "scan over NaN padding": (over_padding, F(2), a(1, 3, np.nan)),
    "cond, the branch with a log not taken": (cond_with_a_log, F(-1)),
    "cond under vmap": (lambda x: jax.vmap(cond_with_a_log)(x).sum(), a(-1, 1, 2)),
    "while loop": (loop_within, F(3)),
    "singular values of the identity": (lambda m: jnp.linalg.svd(m, compute_uv=False).sum(), np.eye(3, dtype=F)),
    "determinant of a singular matrix": (lambda m: jnp.linalg.det(m), np.zeros((2, 2), F)),
    "cholesky of the identity": (lambda m: jnp.linalg.cholesky(m).sum(), np.eye(3, dtype=F)),
    "whole numbers": (lambda n: n * 2, np.array([1, 2])),
}
