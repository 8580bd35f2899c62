"""The usual causes of what is not finite, by name, and the advice that belongs to each.

A rewrite is in the letters of the user's own line. Where it gives another number than the formula would, it says
which: most often a slope that is infinite, or does not exist, is taken as 0.
Letters: x an input, d a divisor, v a square or a variance, ε a small number.
"""

from __future__ import annotations

from typing import NamedTuple

WHERE = "the where trap"
DROPPED = "the where trap, by indexing"
BOUNDED = "the where trap, by a maximum or minimum"
MASKED = "0·∞ under a mask"
NORM = "norm of a zero vector"
DEVIATION = "standard deviation of what does not vary"
ROOT = "square root at 0"
LOG = "log of 0"
X_LOG_X = "log of 0, in x log x"
PRODUCT = "log of 0 or less, in a product by logarithms"
EXP_LOG = "log of 0, beside an exp"
LOG_PRODUCT = "log of 0, of a product"
LOG_SOFTMAX = "log of 0, of a softmax or sigmoid"
TAIL = "log of 0, of a normal distribution's tail"
LOG_NEGATIVE = "log of a negative number"
ROOT_NEGATIVE = "square root of a negative number"
POWER = "power of 0"
POWER_ZERO = "power of 0, with the exponent 0"
POWER_NEGATIVE = "fractional power of a negative number"
POWER_EXPONENT = "power of a negative number, differentiated by the exponent"
ZERO_TIMES_INFINITY = "0·∞"
ZERO_BY_ZERO = "0/0"
LIMIT = "0/0 that has a limit"
BY_ZERO = "division by 0"
THROUGH = "division by 0, on the way to a finite number"
BY_NORM = "division by a norm of 0"
BY_VARIANCE = "division by a variance of 0"
ONE_ENTRY = "variance of too few entries"
INFINITY_LESS_INFINITY = "∞ − ∞"
INFINITY_BY_INFINITY = "∞/∞"
ALL_MASKED = "softmax or logsumexp of nothing but −∞"
EXP = "overflow in exp"
SOFTMAX = "exp out of range, in a softmax by hand"
LOGSUMEXP = "exp out of range, in a logsumexp by hand"
SIGMOID = "overflow in exp, in a sigmoid by hand"
SOFTPLUS = "overflow in exp, in a softplus by hand"
INVERSE_SOFTPLUS = "overflow in exp, in an inverse softplus by hand"
TANH = "overflow in exp, in a tanh by hand"
LOG_COSH = "overflow in cosh, in a log cosh by hand"
HALF = "overflow in half precision"
OVERFLOW = "overflow"
DOMAIN = "outside of its domain"
EDGE = "slope at the end of the domain"
NO_DIRECTION = "direction of a zero vector"
DEFINITE = "not positive definite"
SINGULAR = "singular matrix"
EQUAL = "equal eigenvalues or singular values"
CANCELLATION = "finite or not by rounding"
COMPILED = "finite or not by how it is compiled"
GIVEN = "not finite when it came in"
WRITTEN = "a constant that is not finite"
COTANGENT = "a cotangent that is not finite"
OWN_RULE = "its own rule"
UNKNOWN = "no usual cause"


class Cause(NamedTuple):
    """Why.

    Attributes:
        name: the cause, one of the names above.
        detail: what happened, with the numbers.
        rewrite: what fixes it, and what that changes.
    """

    name: str
    detail: str
    rewrite: str


ROOT_AT_ZERO = "where(v > 0, sqrt(where(v > 0, v, 1)), 0)"
REWRITES = {
    WHERE: "make the input safe inside the where too: where(ok, f(where(ok, x, 1)), 0), where f is the operation "
    "named "
    "above, and 1 any x at which it is finite",
    DROPPED: "drop the entry before the operation f named above, not after: f(x[kept]); or make its input safe: "
    "f(where(ok, x, 1)), then drop",
    BOUNDED: "bound the input, not the output: log(maximum(x, exp(b))) for maximum(log(x), b); or make it safe as "
    "well: "
    "where(ok, f(where(ok, x, 1)), b) for the operation f named above, b = −∞ before a max, ∞ before a min",
    MASKED: "choose with where, not by a product, and make the input safe inside it: where(ok, f(where(ok, x, 1)), "
    "0), "
    "where f is the operation named above",
    NORM: f"{ROOT_AT_ZERO} with v = sum(x²), which takes the slope at 0, where there is none, as 0; or v itself; "
    "sqrt(v + ε) is √ε at 0",
    DEVIATION: f"{ROOT_AT_ZERO} with v = var(x), which takes the slope at 0, where there is none, as 0; or v itself; "
    "sqrt(v + ε) is √ε there",
    ROOT: f"{ROOT_AT_ZERO} in place of sqrt(v), which takes the infinite slope at 0 as 0; sqrt(v + ε) is √ε there",
    LOG: "log(maximum(x, tiny)) with tiny = finfo(x.dtype).tiny, which gives log(tiny), −87.3 in float32, for −∞, "
    "and the slope 0 there",
    X_LOG_X: "where(x > 0, x · log(where(x > 0, y, 1)), 0) for x log y, y = x included: 0 at x = 0, its slope there, "
    "−∞ for y = 0, taken as 0",
    PRODUCT: "multiply: jnp.cumprod(x) for exp(cumsum(log(x))), jnp.prod(x) for exp(sum(log(x)))",
    EXP_LOG: "leave out both: exp(log(x)) is x, exp(a · log(x)) is x ** a, softmax(log(x)) is x / sum(x), log(exp(x)) "
    "is x, log(norm.pdf(x)) is norm.logpdf(x)",
    LOG_PRODUCT: "add logarithms: sum(log(x)) for log(prod(x))",
    LOG_SOFTMAX: "take the logarithm of the logits: jax.nn.log_softmax(x) for log(softmax(x)), jax.nn.log_sigmoid(x) "
    "for log(sigmoid(x)), log_sigmoid(−x) for log(1 − sigmoid(x))",
    TAIL: "use the logarithm itself, of jax.scipy.stats: norm.logcdf(x) for log(norm.cdf(x)), norm.logsf(x) for "
    "log(norm.sf(x)) and log(1 − norm.cdf(x))",
    LOG_NEGATIVE: "keep x positive, by softplus or exp of what is learnt; log(maximum(x, tiny)) with "
    "tiny = finfo(x.dtype).tiny gives log(tiny) and the slope 0 wherever x ≤ 0",
    ROOT_NEGATIVE: f"{ROOT_AT_ZERO} in place of sqrt(v) is 0, with slope 0, wherever v ≤ 0; if v is a variance that "
    "rounding left below 0: v = mean((x − mean(x))²)",
    POWER: "where(x > 0, where(x > 0, x, 1) ** p, 0), which takes the infinite slope at 0 as 0; "
    "for an even root of a square use abs",
    POWER_ZERO: "an integer exponent, x ** 0; or where(p == 0, 1, where(p == 0, 1, x) ** p)",
    POWER_NEGATIVE: "jnp.cbrt for the third root; sign(x) · abs(x) ** p, or abs(x) ** p, gives a real number for x "
    "< 0, "
    "which x ** p is not",
    POWER_EXPONENT: "x ** stop_gradient(p), or an integer p: there is no slope in p for x < 0",
    ZERO_TIMES_INFINITY: "if the 0 is a mask, choose with where: where(ok, x, −∞) for x + (1 − mask) · −∞, "
    "where(ok, f(where(ok, x, 1)), 0) for mask · f(x); if not, bound the factor that is infinite: minimum(f(x), c)",
    ZERO_BY_ZERO: "where(d != 0, x / where(d != 0, d, 1), 0), which says 0 for 0/0; or x / maximum(d, 1) for a "
    "count d",
    LIMIT: "near 0 the first terms of its series: where(abs(x) < 1e-2, series, f(s) / s) with s = where(abs(x) < "
    "1e-2, 1, x) "
    "in place of x: 1 − x²/6 for sin(x)/x, 1 + x/2 + x²/6 for expm1(x)/x and (exp(x) − 1)/x, 1 − x/2 + x²/3 for "
    "log1p(x)/x, 1 − x²/3 for tanh(x)/x, 1/2 − x²/24 for (1 − cos(x))/x², x/2 for (1 − cos(x))/x, 1 for x/x",
    BY_ZERO: "where(d != 0, x / where(d != 0, d, 1), 0), which says 0 for x/0; x / maximum(d, ε) says x/ε",
    THROUGH: "x / maximum(d, 1e-15) for d ≥ 0: a large number for ∞, whose square is finite in float32 too, and "
    "slope 0 "
    "in d there; if the slope counts, multiply out: x / (x + 1) for 1 / (1 + 1/x)",
    BY_NORM: "where(v > 0, x / sqrt(where(v > 0, v, 1)), 0) with v = sum(x²): 0, with slope 0, for the zero vector; "
    "x / (norm + ε) still has no gradient there",
    BY_VARIANCE: "(x − mean) · rsqrt(var + ε), ε inside the root: 0 for what does not vary; elsewhere it is smaller "
    "by "
    "a part of ε / (2 var)",
    ONE_ENTRY: "ddof=0, or sum((x − mean(x))²) / max(n − ddof, 1): 0 for one entry, which has no sample variance",
    INFINITY_LESS_INFINITY: "a large number for ∞ before it is subtracted, clip(x, −1e30, 1e30): the difference is "
    "then 0",
    INFINITY_BY_INFINITY: "divide both by the larger term: 1 / (1 + 1/x) for x / (1 + x); for exponentials subtract "
    "the "
    "maximum first, as jax.nn.softmax does",
    ALL_MASKED: "−1e30 in place of −∞, maximum(x, −1e30): a row of nothing else then has a uniform softmax, a "
    "logsumexp "
    "of about −1e30, and gradients; to leave such rows out of a softmax: where(any, softmax(where(any, x, 0)), 0)",
    EXP: "exp(minimum(x, 88)) in float32 (709 in float64, 11 in float16), with slope 0 above; clip(x, −88, 88) "
    "for cosh and sinh; or stay in logarithms",
    SOFTMAX: "jax.nn.softmax(x), which subtracts the maximum first",
    LOGSUMEXP: "jax.nn.logsumexp(x), which subtracts the maximum first",
    SIGMOID: "jax.nn.sigmoid(x) for 1 / (1 + exp(−x)) and exp(x) / (1 + exp(x))",
    SOFTPLUS: "jax.nn.softplus(x) for log(1 + exp(x)) and log1p(exp(x)); jnp.logaddexp(a, b) for log(exp(a) + exp(b))",
    INVERSE_SOFTPLUS: "x + log(−expm1(−x)) for log(exp(x) − 1) and log(expm1(x))",
    TANH: "jnp.tanh(x) for (exp(x) − exp(−x)) / (exp(x) + exp(−x)) and (exp(2x) − 1) / (exp(2x) + 1)",
    LOG_COSH: "jnp.logaddexp(x, −x) − log(2) for log(cosh(x))",
    HALF: "compute this in float32, x.astype(jnp.float32), and cast the result; a gradient: scale the loss down",
    OVERFLOW: "scale before: m · sqrt(sum((x / m)²)) with m = stop_gradient(max(abs(x))) for a norm; add logarithms "
    "for a product; or use float64",
    DOMAIN: "clip x to the domain, short of its ends: clip(x, −1 + ε, 1 − ε) for ±1, maximum(x, 1 + ε) for arccosh, "
    "maximum(x, ε) for lgamma; slope 0 outside",
    EDGE: "where(ok, f(where(ok, x, 0)), f(stop_gradient(x))) for f(x), with ok = abs(x) < 1 (for arccosh ok = x > "
    "1, and "
    "2 for 0): the same value, the infinite slope taken as 0",
    NO_DIRECTION: "where(r > 0, arctan2(where(r > 0, y, 0), where(r > 0, x, 1)), 0) with r = x² + y²: 0, with slope "
    "0, "
    "at the origin, where there is neither",
    DEFINITE: "symmetrise it and add to its diagonal: (a + aᵀ)/2 + ε I, ε above the size of its least eigenvalue",
    SINGULAR: "add to its diagonal, a + ε I, which moves the result; or solve by least squares, jnp.linalg.pinv",
    EQUAL: "the vectors are arbitrary there and have no gradient: use the values alone (eigvalsh, svdvals), or a "
    "function "
    "of the whole matrix, such as a @ a, inv(a) or the sum of the values, trace(a)",
    CANCELLATION: "avoid the difference: mean((x − mean(x))²) for a variance, sum((a − b)²) for a squared distance, "
    "expm1(x) for exp(x) − 1, log1p(x) for log(1 + x); or bound what is left: maximum(v, 0) + ε",
    COMPILED: "keep every step within the range of the precision, or use float64; jax.lax.optimization_barrier "
    "keeps two steps apart",
    GIVEN: "find what made it; to leave it out: where(ok, f(where(ok, x, 1)), 0) with ok = isfinite(x)",
    WRITTEN: "a large finite number in its place, −1e30 for −∞",
    COTANGENT: "find what made it; δ of a loss is 1",
    OWN_RULE: "where its input has no slope, choose before it: where(ok, f(where(ok, x, 1)), 0); a rule of your own "
    "can "
    "do so inside",
    UNKNOWN: "look at the numbers that it was given, or print them by jax.debug.print",
}  # fmt: skip


def cause(name: str, detail: str) -> Cause:
    """A cause with the rewrite that belongs to its name."""
    return Cause(name, detail, REWRITES[name])
