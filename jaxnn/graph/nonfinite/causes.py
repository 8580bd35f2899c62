"""The common causes of NaN and infinity, by name, and a rewrite for each.

Where a rewrite changes the result, it says how: most often, a slope that is infinite or undefined is taken as 0.
Letters: x an input, d a divisor, v a square or a variance, ε a small number.
"""

from __future__ import annotations

from typing import NamedTuple

WHERE = "the where trap"
DROPPED = "the where trap, by indexing"
BOUNDED = "the where trap, by a maximum or minimum"
MASKED = "0·∞ under a mask"
NORM = "norm of a zero vector"
DEVIATION = "standard deviation of a constant"
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
POWER_EXPONENT = "power of a negative number, differentiated with respect to the exponent"
ZERO_TIMES_INFINITY = "0·∞"
ZERO_BY_ZERO = "0/0"
LIMIT = "0/0 that has a limit"
BY_ZERO = "division by 0"
THROUGH = "division by 0 inside a finite result"
BY_NORM = "division by a norm of 0"
BY_VARIANCE = "division by a variance of 0"
ONE_ENTRY = "variance of too few entries"
INFINITY_LESS_INFINITY = "∞ − ∞"
INFINITY_BY_INFINITY = "∞/∞"
ALL_MASKED = "softmax or logsumexp of all −∞"
EXP = "overflow in exp"
SOFTMAX = "exp out of range, in a hand-written softmax"
LOGSUMEXP = "exp out of range, in a hand-written logsumexp"
SIGMOID = "overflow in exp, in a hand-written sigmoid"
SOFTPLUS = "overflow in exp, in a hand-written softplus"
INVERSE_SOFTPLUS = "overflow in exp, in a hand-written inverse softplus"
TANH = "overflow in exp, in a hand-written tanh"
LOG_COSH = "overflow in cosh, in a hand-written log cosh"
HALF = "overflow in half precision"
OVERFLOW = "overflow"
DOMAIN = "outside the domain"
EDGE = "infinite slope at the end of the domain"
NO_DIRECTION = "direction of a zero vector"
DEFINITE = "not positive definite"
SINGULAR = "singular matrix"
EQUAL = "equal eigenvalues or singular values"
CANCELLATION = "finite or not depending on rounding"
COMPILED = "finite or not depending on compilation"
GIVEN = "non-finite input"
WRITTEN = "non-finite constant"
COTANGENT = "non-finite cotangent"
CUSTOM_RULE = "custom rule"
UNKNOWN = "unknown cause"


class Cause(NamedTuple):
    """The cause of a NaN or an infinity."""

    name: str  # one of the names above
    detail: str  # what happened, with the numbers
    rewrite: str  # the fix, and what it changes


ROOT_AT_ZERO = "where(v > 0, sqrt(where(v > 0, v, 1)), 0)"
REWRITES = {
    WHERE: "make the input safe inside the where too: where(ok, f(where(ok, x, 1)), 0), where f is the operation named "
    "above, and 1 any x at which it is finite",
    DROPPED: "drop the entry before the operation f named above, not after: f(x[kept]); or make its input safe, "
    "f(where(ok, x, 1)), and drop it then",
    BOUNDED: "bound the input, not the output: log(maximum(x, exp(b))) for maximum(log(x), b); or make the input safe "
    "as well: where(ok, f(where(ok, x, 1)), b) for the operation f named above, with b = −∞ before a max and ∞ before "
    "a min",
    MASKED: "select with where instead of multiplying, and make the input safe inside it: "
    "where(ok, f(where(ok, x, 1)), 0), where f is the operation named above",
    NORM: f"{ROOT_AT_ZERO} with v = sum(x²), which takes the slope at 0, where none exists, as 0; or v itself; "
    "sqrt(v + ε) gives √ε at 0",
    DEVIATION: f"{ROOT_AT_ZERO} with v = var(x), which takes the slope at 0, where none exists, as 0; or v itself; "
    "sqrt(v + ε) gives √ε there",
    ROOT: f"{ROOT_AT_ZERO} in place of sqrt(v), which takes the infinite slope at 0 as 0; sqrt(v + ε) gives √ε there",
    LOG: "log(maximum(x, tiny)) with tiny = finfo(x.dtype).tiny, which gives log(tiny), −87.3 in float32, instead of "
    "−∞, with slope 0 there",
    X_LOG_X: "where(x > 0, x · log(where(x > 0, y, 1)), 0) for x log y, including y = x: 0 at x = 0, where its slope, "
    "−∞ for y = 0, is taken as 0",
    PRODUCT: "multiply instead: jnp.cumprod(x) for exp(cumsum(log(x))), jnp.prod(x) for exp(sum(log(x)))",
    EXP_LOG: "cancel the two: exp(log(x)) is x, exp(a · log(x)) is x ** a, softmax(log(x)) is x / sum(x), log(exp(x)) "
    "is x, log(norm.pdf(x)) is norm.logpdf(x)",
    LOG_PRODUCT: "add logarithms: sum(log(x)) for log(prod(x))",
    LOG_SOFTMAX: "compute the logarithm from the logits: jax.nn.log_softmax(x) for log(softmax(x)), "
    "jax.nn.log_sigmoid(x) for log(sigmoid(x)), log_sigmoid(−x) for log(1 − sigmoid(x))",
    TAIL: "use the logarithmic forms in jax.scipy.stats: norm.logcdf(x) for log(norm.cdf(x)), norm.logsf(x) for "
    "log(norm.sf(x)) and log(1 − norm.cdf(x))",
    LOG_NEGATIVE: "keep x positive, as the softplus or exp of a learned parameter; log(maximum(x, tiny)) with "
    "tiny = finfo(x.dtype).tiny gives log(tiny), with slope 0, wherever x ≤ 0",
    ROOT_NEGATIVE: f"{ROOT_AT_ZERO} in place of sqrt(v) gives 0, with slope 0, wherever v ≤ 0; for a variance made "
    "negative by rounding: v = mean((x − mean(x))²)",
    POWER: "where(x > 0, where(x > 0, x, 1) ** p, 0), which takes the infinite slope at 0 as 0; "
    "for an even root of a square use abs",
    POWER_ZERO: "an integer exponent, x ** 0; or where(p == 0, 1, where(p == 0, 1, x) ** p)",
    POWER_NEGATIVE: "jnp.cbrt for the cube root; otherwise sign(x) · abs(x) ** p or abs(x) ** p, which are real for "
    "x < 0, as x ** p is not",
    POWER_EXPONENT: "x ** stop_gradient(p), or an integer p: there is no slope in p for x < 0",
    ZERO_TIMES_INFINITY: "if the 0 is a mask, select with where: where(ok, x, −∞) for x + (1 − mask) · −∞, "
    "where(ok, f(where(ok, x, 1)), 0) for mask · f(x); otherwise bound the infinite factor: minimum(f(x), c)",
    ZERO_BY_ZERO: "where(d != 0, x / where(d != 0, d, 1), 0), which defines 0/0 as 0; or x / maximum(d, 1) for a "
    "count d",
    LIMIT: "near 0 the first terms of the series: where(abs(x) < 1e-2, series, f(s) / s) with "
    "s = where(abs(x) < 1e-2, 1, x) in place of x: 1 − x²/6 for sin(x)/x, 1 + x/2 + x²/6 for expm1(x)/x and "
    "(exp(x) − 1)/x, 1 − x/2 + x²/3 for log1p(x)/x, 1 − x²/3 for tanh(x)/x, 1/2 − x²/24 for (1 − cos(x))/x², x/2 for "
    "(1 − cos(x))/x, 1 for x/x",
    BY_ZERO: "where(d != 0, x / where(d != 0, d, 1), 0), which defines x/0 as 0; x / maximum(d, ε) gives x/ε",
    THROUGH: "x / maximum(d, 1e-15) for d ≥ 0: a large number in place of ∞, whose square is finite even in float32, "
    "with slope 0 in d; if that slope matters, multiply out: x / (x + 1) for 1 / (1 + 1/x)",
    BY_NORM: "where(v > 0, x / sqrt(where(v > 0, v, 1)), 0) with v = sum(x²): 0, with slope 0, for the zero vector; "
    "x / (norm + ε) still has no gradient there",
    BY_VARIANCE: "(x − mean) · rsqrt(var + ε), with ε inside the root: 0 for a constant, and elsewhere smaller by a "
    "fraction of ε / (2 var)",
    ONE_ENTRY: "ddof=0, or sum((x − mean(x))²) / max(n − ddof, 1): 0 for a single entry, which has no sample variance",
    INFINITY_LESS_INFINITY: "a large number in place of ∞ before subtracting, clip(x, −1e30, 1e30): the difference is "
    "then 0",
    INFINITY_BY_INFINITY: "divide both by the larger term: 1 / (1 + 1/x) for x / (1 + x); for exponentials, subtract "
    "the maximum first, as jax.nn.softmax does",
    ALL_MASKED: "−1e30 in place of −∞, maximum(x, −1e30): a fully masked row then has a uniform softmax, a logsumexp "
    "of about −1e30, and finite gradients; to exclude such rows from a softmax: "
    "where(any, softmax(where(any, x, 0)), 0)",
    EXP: "exp(minimum(x, 88)) in float32 (709 in float64, 11 in float16), with slope 0 above; clip(x, −88, 88) "
    "for cosh and sinh; or work with logarithms",
    SOFTMAX: "jax.nn.softmax(x), which subtracts the maximum first",
    LOGSUMEXP: "jax.nn.logsumexp(x), which subtracts the maximum first",
    SIGMOID: "jax.nn.sigmoid(x) for 1 / (1 + exp(−x)) and exp(x) / (1 + exp(x))",
    SOFTPLUS: "jax.nn.softplus(x) for log(1 + exp(x)) and log1p(exp(x)); jnp.logaddexp(a, b) for log(exp(a) + exp(b))",
    INVERSE_SOFTPLUS: "x + log(−expm1(−x)) for log(exp(x) − 1) and log(expm1(x))",
    TANH: "jnp.tanh(x) for (exp(x) − exp(−x)) / (exp(x) + exp(−x)) and (exp(2x) − 1) / (exp(2x) + 1)",
    LOG_COSH: "jnp.logaddexp(x, −x) − log(2) for log(cosh(x))",
    HALF: "compute this in float32, x.astype(jnp.float32), and cast the result; for a gradient, scale the loss down",
    OVERFLOW: "rescale first: m · sqrt(sum((x / m)²)) with m = stop_gradient(max(abs(x))) for a norm; add logarithms "
    "for a product; or use float64",
    DOMAIN: "clip x to the interior of the domain: clip(x, −1 + ε, 1 − ε) for ±1, maximum(x, 1 + ε) for arccosh, "
    "maximum(x, ε) for lgamma; the slope is 0 outside",
    EDGE: "where(ok, f(where(ok, x, 0)), f(stop_gradient(x))) for f(x), with ok = abs(x) < 1 (for arccosh, ok = x > 1, "
    "and 2 in place of 0): the same value, with the infinite slope taken as 0",
    NO_DIRECTION: "where(r > 0, arctan2(where(r > 0, y, 0), where(r > 0, x, 1)), 0) with r = x² + y²: 0, with slope "
    "0, at the origin, where neither is defined",
    DEFINITE: "symmetrise the matrix and add to its diagonal: (a + aᵀ)/2 + ε I, with ε above the size of its smallest "
    "eigenvalue",
    SINGULAR: "add to the diagonal, a + ε I, which changes the result; or solve by least squares, jnp.linalg.pinv",
    EQUAL: "the vectors are arbitrary there and have no gradient: use the values alone (eigvalsh, svdvals), or a "
    "function of the whole matrix, such as a @ a, inv(a) or trace(a), the sum of the values",
    CANCELLATION: "avoid the difference: mean((x − mean(x))²) for a variance, sum((a − b)²) for a squared distance, "
    "expm1(x) for exp(x) − 1, log1p(x) for log(1 + x); or bound what remains: maximum(v, 0) + ε",
    COMPILED: "keep every step within the range of the precision, or use float64; jax.lax.optimization_barrier "
    "keeps two steps apart",
    GIVEN: "find what produced it; to exclude it: where(ok, f(where(ok, x, 1)), 0) with ok = isfinite(x)",
    WRITTEN: "a large finite number in its place, −1e30 for −∞",
    COTANGENT: "find what produced it; δ of a loss is 1",
    CUSTOM_RULE: "where the input has no slope, select before the function: where(ok, f(where(ok, x, 1)), 0); a rule "
    "of your own can do so inside",
    UNKNOWN: "inspect the numbers that it was given, or print them with jax.debug.print",
}


def cause(name: str, detail: str) -> Cause:
    """A cause with its rewrite."""
    return Cause(name, detail, REWRITES[name])
