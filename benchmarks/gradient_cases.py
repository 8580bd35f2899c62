"""Functions with hand-derived gradients whose label, right or wrong, is beyond doubt: the table behind gradients.py.

Each family is a function f(*args), its gradient `backward(args, delta, fault="")` derived by hand, and a maker of
arguments. Naming one of the family's own faults plants a mistake that people make in that very formula; `FAULTS`
holds those that fit any gradient. Nothing here calls jax.grad or jax.vjp: gradients.py does, to verify the labels.

Letters: N batch, D features in, H features out, K classes, T time; δ is `delta`, ∂C/∂(the output of f).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, logsumexp

EPS = 1e-5  # of the norms
KEEP = 0.7  # of the dropout masks
TEMPERATURE = 0.5
FIRST, LAST = -6, 6  # decades of the scales
LARGE = 10_000  # elements of a leaf in which one is off

# Names of the families' own faults.
MISSING_1_N, MISSING_FACTOR, TRANSPOSED, NO_BIAS = "missing 1/N", "missing factor", "transposed", "bias dropped"
NO_MEAN, NO_TERM, NO_SLOPE = "mean term missing", "other term missing", "slope missing"
OTHER_DRAW, AT_KINK = "other random numbers", "wrong at a kink"


NOT_LOW = ("float32", "float64")  # linear algebra


class Draw(NamedTuple):
    """What the makers of arguments draw from; arrays are float64 and rounded to the case's precision later."""

    rng: np.random.Generator
    scale: float

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        return self.rng.uniform(low, high, shape)

    def size(self) -> int:
        return int(self.rng.choice([3, 6]))  # few shapes, so that the verification compiles seldom

    def integers(self, below: int, *shape: int) -> np.ndarray:
        return self.rng.integers(below, size=shape, dtype=np.int32)

    def key(self) -> jax.Array:
        return jax.random.key(int(self.rng.integers(2**31)))

    def on_or_off(self, kinks: tuple[float, ...], *shape: int) -> np.ndarray:
        """Normal, with about a third of the elements exactly on a kink."""
        on = self.rng.random(shape) < 1 / 3
        on.flat[0], on.flat[-1] = True, False
        return np.where(on, self.rng.choice(kinks, shape), 2 * self.normal(*shape))

    def matrix(self, n: int, decades: float) -> np.ndarray:
        """[n, n] with condition number 10^decades."""
        left, right = (np.linalg.qr(self.normal(n, n))[0] for _ in range(2))
        return left @ np.diag(np.logspace(0, -decades, n)) @ right

    def conditioned(self, n: int) -> np.ndarray:
        """[n, n] with a condition number between 1 and 1e5."""
        return self.scale * self.matrix(n, float(self.rng.uniform(0, 5)))


class Family(NamedTuple):
    """A function, its gradient by hand and arguments to try them at.

    Attributes:
        name: its name.
        f: `f(*args)`, a tree of float arrays.
        backward: `backward(args, delta, fault="")`, a gradient per argument, None for integers and keys.
        make: draws arguments.
        own: the faults that `backward` knows.
        scales: first and last decade of the scales that keep the function off overflow.
        dtypes: the precisions that have its operations.
        random: whether f draws random numbers.
        kink: None, or what moves the arguments to one side of the kinks that they lie on; minus that, to the other.
        joint: whether the elements of a row meet at one kink, so that only some combinations of slopes are allowed.
        twin: f and backward with every fixed precision set to float64, or as exact as they are meant, for the
            verification; None if f is that already.
        zero: the gradient leaves, by number, that an invariance makes 0: rounding is all that they are.
        options: names and values of `gradcheck.function`'s own.
    """

    name: str
    f: Callable[..., Any]
    backward: Callable[..., tuple[Any, ...]]
    make: Callable[[Draw], tuple[Any, ...]]
    own: tuple[str, ...] = ()
    scales: tuple[int, int] = (FIRST, LAST)
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float64")
    random: bool = False
    kink: Callable[..., tuple[Any, ...]] | None = None
    joint: bool = False
    twin: tuple[Callable[..., Any], Callable[..., tuple[Any, ...]]] | None = None
    zero: tuple[int, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


# ---------------------------------------------------------------- layers


def dense(x, w, b):
    return x @ w + b


def dense_backward(args, delta, fault=""):
    x, w, b = args
    db = jnp.zeros_like(b) if fault == NO_BIAS else delta.sum(0)
    return delta @ (w if fault == TRANSPOSED else w.T), x.T @ delta, db


def dense_args(n, d):
    return lambda draw: (draw.scale * draw.normal(n, d), draw.normal(d, d) / np.sqrt(d), draw.scale * draw.normal(d))


ACTIVATIONS = {  # value and slope
    "tanh": (jnp.tanh, lambda z: 1 - jnp.tanh(z) ** 2),
    "sigmoid": (jax.nn.sigmoid, lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)),
    "softplus": (jax.nn.softplus, jax.nn.sigmoid),
    "relu": (lambda z: jnp.where(z <= 0, 0, z), lambda z: (z > 0).astype(z.dtype)),
    "silu": (jax.nn.silu, lambda z: jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z))),
    "gelu": (
        lambda z: jax.nn.gelu(z, approximate=False),
        lambda z: (1 + erf(z / np.sqrt(2).item())) / 2 + z * jnp.exp(-z * z / 2) / np.sqrt(2 * np.pi).item(),
    ),
}


def half_squares(z, t):
    return jnp.sum((z - t) ** 2) / 2 / len(z)


def half_squares_delta(z, t):
    return z - t, t - z


def cross_entropy(z, t):
    return jnp.sum(logsumexp(z, axis=1) - z[jnp.arange(len(z)), t]) / len(z)


def cross_entropy_delta(z, t):
    return softmax(z) - jax.nn.one_hot(t, z.shape[1], dtype=z.dtype), None


def softmax(z):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


LOSSES = {"squares": (half_squares, half_squares_delta), "cross entropy": (cross_entropy, cross_entropy_delta)}


def network(activation, loss):
    """Value and backward of a mean loss over dense layers with one activation between them."""
    value, slope = ACTIVATIONS[activation]
    loss_value, loss_delta = LOSSES[loss]

    def forward(params, x):
        hs, zs = [x], []
        for p in params:
            zs.append(hs[-1] @ p["w"] + p["b"])
            hs.append(value(zs[-1]))
        return hs[:-1], zs

    def f(params, x, t):
        return loss_value(forward(params, x)[1][-1], t)

    def backward(args, delta, fault=""):
        params, x, t = args
        hs, zs = forward(params, x)
        scale = delta if fault == MISSING_1_N else delta / len(x)
        dz, dt = (None if d is None else scale * d for d in loss_delta(zs[-1], t))
        grads = []
        for k in reversed(range(len(params))):
            w, b = params[k]["w"], params[k]["b"]
            db = jnp.zeros_like(b) if fault == NO_BIAS and k == 0 else dz.sum(0)
            grads.append({"w": hs[k].T @ dz, "b": db})
            dz = dz @ (w if fault == TRANSPOSED and k == 1 else w.T)
            if k and not (fault == NO_SLOPE and k == 1):
                dz = dz * slope(zs[k - 1])
        return grads[::-1], dz, dt

    return f, backward


def network_args(loss, depth):
    def make(draw):
        n, d = draw.size(), draw.size()
        params = [{"w": draw.normal(d, d) / np.sqrt(d), "b": 0.1 * draw.normal(d)} for _ in range(depth)]
        params[0]["w"] /= draw.scale  # inputs of any scale, activations of order 1
        z = draw.normal(n, d)
        return params, draw.scale * draw.normal(n, d), (z if loss == "squares" else draw.integers(d, n))

    return make


def residual(x, w, v):
    return x + jnp.tanh(x @ w) @ v


def residual_backward(args, delta, fault=""):
    x, w, v = args
    h = jnp.tanh(x @ w)
    dz = (delta @ v.T) * (1 if fault == NO_SLOPE else 1 - h * h)
    return dz @ w.T + (0 if fault == NO_TERM else delta), x.T @ dz, h.T @ delta


def residual_args(draw):
    d = draw.size()
    s = draw.scale
    return s * draw.normal(4, d), draw.normal(d, d) / s / d, s * draw.normal(d, d)


def gated(x, w, v):
    return (x @ w) * jax.nn.sigmoid(x @ v)


def gated_backward(args, delta, fault=""):
    x, w, v = args
    g = jax.nn.sigmoid(x @ v)
    du = delta * g
    dg = delta * (x @ w) * (1 if fault == NO_SLOPE else g * (1 - g))
    return du @ w.T + (0 if fault == NO_TERM else dg @ v.T), x.T @ du, x.T @ dg


def gated_args(draw):
    d, s = draw.size(), draw.scale
    return s * draw.normal(4, d), draw.normal(d, d), draw.normal(d, d) / s / d


def attention(q, k, v):
    return softmax(q @ k.T / np.sqrt(q.shape[1]).item()) @ v


def attention_backward(args, delta, fault=""):
    q, k, v = args
    root = np.sqrt(q.shape[1]).item()
    p = softmax(q @ k.T / root)
    dp = delta @ v.T
    ds = p * (dp if fault == NO_TERM else dp - (dp * p).sum(1, keepdims=True))
    ds = ds if fault == MISSING_FACTOR else ds / root
    return ds @ k, (ds if fault == TRANSPOSED else ds.T) @ q, p.T @ delta


def attention_args(draw):
    t = draw.size()
    return draw.scale * draw.normal(t, 4), draw.normal(t, 4) / draw.scale, draw.scale * draw.normal(t, 4)


def recurrent(x, w, u, b):
    def step(h, xt):
        h = jnp.tanh(xt @ w + h @ u + b)
        return h, h

    return jax.lax.scan(step, jnp.zeros_like(b), x)[1]


def recurrent_backward(args, delta, fault=""):
    x, w, u, b = args
    hs = recurrent(*args)
    before = jnp.concatenate([jnp.zeros_like(hs[:1]), hs[:-1]])

    def step(later, row):
        h, d = row
        dz = (d + later) * (1 if fault == NO_SLOPE else 1 - h * h)
        back = dz @ (u if fault == TRANSPOSED else u.T)
        return (jnp.zeros_like(back) if fault == NO_TERM else back), dz

    _, dz = jax.lax.scan(step, jnp.zeros_like(b), (hs, delta), reverse=True)
    return dz @ w.T, x.T @ dz, before.T @ dz, (jnp.zeros_like(b) if fault == NO_BIAS else dz.sum(0))


def recurrent_args(draw):
    d, s = draw.size(), draw.scale
    return s * draw.normal(5, d), draw.normal(d, d) / s / d, draw.normal(d, d) / np.sqrt(d), 0.1 * draw.normal(d)


def lstm_cell(x, h, c, w, u, b):
    i, f, g, o = jnp.split(x @ w + h @ u + b, 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def lstm_cell_backward(args, delta, fault=""):
    x, h, c, w, u, b = args
    dh, dc = delta
    i, f, g, o = jnp.split(x @ w + h @ u + b, 4, axis=1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    tanh_c = jnp.tanh(f * c + i * g)
    if fault != NO_TERM:
        dc = dc + dh * o * (1 - tanh_c**2)
    slopes = [i * (1 - i), f * (1 - f), 1 if fault == NO_SLOPE else 1 - g * g, o * (1 - o)]
    dz = jnp.concatenate([d * s for d, s in zip([dc * g, dc * c, dc * i, dh * tanh_c], slopes, strict=True)], axis=1)
    db = jnp.zeros_like(b) if fault == NO_BIAS else dz.sum(0)
    return dz @ w.T, dz @ u.T, dc * f, x.T @ dz, h.T @ dz, db


def lstm_cell_args(draw):
    d, s = draw.size(), draw.scale
    state = [draw.normal(4, d) for _ in range(2)]
    return s * draw.normal(4, d), *state, draw.normal(d, 4 * d) / s / d, draw.normal(d, 4 * d) / d, draw.normal(4 * d)


def convolution(x, w):
    """[N, T], [K] -> [N, T - K + 1], not flipped."""
    width = x.shape[1] - len(w) + 1
    return sum(x[:, k : k + width] * w[k] for k in range(len(w)))


def convolution_backward(args, delta, fault=""):
    x, w = args
    width, last = delta.shape[1], len(w) - 1
    padded = jnp.pad(delta, ((0, 0), (last, last)))
    kernel = w if fault == TRANSPOSED else w[::-1]
    dw = jnp.stack([(x[:, k : k + width] * delta).sum() for k in range(len(w))])
    return convolution(padded, kernel), dw


def embedding(table, index):
    return table[index]


def embedding_backward(args, delta, fault=""):
    table, index = args
    zeros = jnp.zeros_like(table)
    return (zeros.at[index].set(delta) if fault == NO_TERM else zeros.at[index].add(delta)), None


def softmax_layer(z, temperature):
    return softmax(z / temperature)


def softmax_layer_backward(args, delta, fault=""):
    z, temperature = args
    p = softmax(z / temperature)
    du = p * (delta if fault == NO_TERM else delta - (delta * p).sum(1, keepdims=True))
    dz = du if fault == MISSING_FACTOR else du / temperature
    return dz, -(du * z).sum() / temperature**2


def masked_mean(x, mask):
    """[N, T, D], [N, T] -> [N, D]."""
    weight = mask.astype(x.dtype)[..., None]
    return (weight * x).sum(1) / weight.sum(1)


def masked_mean_backward(args, delta, fault=""):
    x, mask = args
    weight = mask.astype(x.dtype)[..., None]
    count = 1 if fault == MISSING_1_N else weight.sum(1, keepdims=True)
    return weight * delta[:, None] / count, None


def masked_mean_args(draw):
    mask = draw.integers(2, 3, 5)
    mask[:, :2] = 1
    return draw.scale * draw.normal(3, 5, draw.size()), mask


def cumulative(x, w):
    return jnp.cumsum(x * w)


def cumulative_backward(args, delta, fault=""):
    x, w = args
    sums = jnp.cumsum(delta) if fault == TRANSPOSED else jnp.cumsum(delta[::-1])[::-1]
    return w * sums, x * sums


def bilinear(x, a, y):
    return ((x @ a) * y).sum(1)


def bilinear_backward(args, delta, fault=""):
    x, a, y = args
    d = delta[:, None]
    return d * (y @ (a if fault == TRANSPOSED else a.T)), x.T @ (d * y), d * (x @ a)


def elementwise(x, w):
    return w * jnp.tanh(x)


def elementwise_backward(args, delta, fault=""):
    x, w = args
    h = jnp.tanh(x)
    return delta * w * (1 if fault == NO_SLOPE else 1 - h * h), delta * h


# ---------------------------------------------------------------- losses

SUMMED = {  # per element: value, ∂/∂z, ∂/∂t
    "squares": (lambda z, t: (z - t) ** 2, lambda z, t: 2 * (z - t), lambda z, t: -2 * (z - t)),
    "huber": (
        lambda z, t: jnp.where(abs(z - t) <= 1, (z - t) ** 2 / 2, abs(z - t) - 0.5),
        lambda z, t: jnp.clip(z - t, -1, 1),
        lambda z, t: -jnp.clip(z - t, -1, 1),
    ),
    "log cosh": (
        lambda z, t: z - t + jax.nn.softplus(-2 * (z - t)) - np.log(2).item(),
        lambda z, t: jnp.tanh(z - t),
        lambda z, t: -jnp.tanh(z - t),
    ),
    "binary cross-entropy": (
        lambda z, t: jax.nn.relu(z) - z * t + jnp.log1p(jnp.exp(-abs(z))),
        lambda z, t: jax.nn.sigmoid(z) - t,
        lambda z, t: -z,
    ),
    "poisson": (lambda z, t: jnp.exp(z) - t * z, lambda z, t: jnp.exp(z) - t, lambda z, t: -z),
    "squared hinge": (
        lambda z, t: jax.nn.relu(1 - t * z) ** 2,
        lambda z, t: -2 * t * jax.nn.relu(1 - t * z),
        lambda z, t: -2 * z * jax.nn.relu(1 - t * z),
    ),
    "logistic": (
        lambda z, t: jax.nn.softplus(-t * z),
        lambda z, t: -t * jax.nn.sigmoid(-t * z),
        lambda z, t: -z * jax.nn.sigmoid(-t * z),
    ),
    "pinball": (
        lambda z, t: jnp.maximum(0.9 * (t - z), -0.1 * (t - z)),
        lambda z, t: jnp.where(t > z, -0.9, 0.1).astype(z.dtype),
        lambda z, t: jnp.where(t > z, 0.9, -0.1).astype(z.dtype),
    ),
}


def summed(name):
    """Value and backward of a loss that is summed over features and averaged over the batch."""
    value, slope, target_slope = SUMMED[name]

    def f(z, t):
        return value(z, t).sum() / len(z)

    def backward(args, delta, fault=""):
        z, t = args
        scale = delta if fault == MISSING_1_N else delta / len(z)
        return scale * slope(z, t), scale * target_slope(z, t)

    return f, backward


def soft_cross_entropy(z, t):
    return (t * (logsumexp(z, axis=1, keepdims=True) - z)).sum() / len(z)


def soft_cross_entropy_backward(args, delta, fault=""):
    z, t = args
    scale = delta if fault == MISSING_1_N else delta / len(z)
    total = 1 if fault == NO_TERM else t.sum(1, keepdims=True)
    return scale * (softmax(z) * total - t), scale * (logsumexp(z, axis=1, keepdims=True) - z)


def divergence(a, b):
    """KL(softmax(a) ‖ softmax(b)), [N]."""
    p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return (jnp.exp(p) * (p - q)).sum(1)


def divergence_backward(args, delta, fault=""):
    a, b = args
    p, q, d = softmax(a), softmax(b), delta[:, None]
    ratio = jax.nn.log_softmax(a) - jax.nn.log_softmax(b)
    mean = 0 if fault == NO_MEAN else (p * ratio).sum(1, keepdims=True)
    return d * p * (ratio - mean), d * (q - p)


def cosine(a, b):
    return (a * b).sum(1) / jnp.sqrt((a * a).sum(1)) / jnp.sqrt((b * b).sum(1))


def cosine_backward(args, delta, fault=""):
    (a, b), d = args, delta[:, None]
    a_norm, b_norm = (jnp.sqrt((x * x).sum(1, keepdims=True)) for x in args)
    c = 0 if fault == NO_TERM else cosine(a, b)[:, None]
    return d * (b / b_norm - c * a / a_norm) / a_norm, d * (a / a_norm - c * b / b_norm) / b_norm


def contrastive(a, b):
    """InfoNCE: row n of a should find row n of b."""
    z = a @ b.T / TEMPERATURE
    return (logsumexp(z, axis=1) - jnp.diagonal(z)).sum() / len(z)


def contrastive_backward(args, delta, fault=""):
    a, b = args
    z = a @ b.T / TEMPERATURE
    dz = delta * (softmax(z) - jnp.eye(len(z), dtype=z.dtype))
    dz = dz if fault == MISSING_1_N else dz / len(z)
    dz = dz if fault == MISSING_FACTOR else dz / TEMPERATURE
    return dz @ b, (dz if fault == TRANSPOSED else dz.T) @ a


# ---------------------------------------------------------------- norms


def standardised(axis, compute=None):
    """Value and backward of γ (x − μ)/√(v + ε) + β: batch norm over axis 0, layer norm over 1; inside in `compute`."""

    def parts(x):
        centred = x - x.mean(axis, keepdims=True)
        root = jnp.sqrt((centred**2).mean(axis, keepdims=True) + EPS)
        return centred / root, root

    def inside(*arrays):
        return [a.astype(compute or a.dtype) for a in arrays]

    def f(x, gamma, beta):
        x_, gamma, beta = inside(x, gamma, beta)
        return (gamma * parts(x_)[0] + beta).astype(x.dtype)

    def backward(args, delta, fault=""):
        x, gamma, beta, delta = inside(*args, delta)
        x_hat, root = parts(x)
        dx_hat = delta * gamma
        mean = 0 if fault == NO_MEAN else dx_hat.mean(axis, keepdims=True)
        variance = 0 if fault == NO_TERM else x_hat * (dx_hat * x_hat).mean(axis, keepdims=True)
        dbeta = jnp.zeros_like(beta) if fault == NO_BIAS else delta.sum(0)
        grads = (dx_hat - mean - variance) / root, (delta * x_hat).sum(0), dbeta
        return tuple(g.astype(a.dtype) for g, a in zip(grads, args, strict=True))

    return f, backward


def norm_args(n, d, offset=0.0):
    return lambda draw: (draw.scale * (offset + draw.normal(n, d)), 1 + 0.3 * draw.normal(d), draw.normal(d))


def rms_norm(x, gamma):
    return gamma * x / jnp.sqrt((x * x).mean(1, keepdims=True) + EPS)


def rms_norm_backward(args, delta, fault=""):
    x, gamma = args
    root = jnp.sqrt((x * x).mean(1, keepdims=True) + EPS)
    x_hat, dx_hat = x / root, delta * gamma
    term = 0 if fault == NO_MEAN else x_hat * (dx_hat * x_hat).mean(1, keepdims=True)
    return (dx_hat - term) / root, (delta * x_hat).sum(0)


def unit(x):
    return x / jnp.sqrt((x * x).sum(1, keepdims=True))


def unit_backward(args, delta, fault=""):
    (x,), u = args, unit(*args)
    term = 0 if fault == NO_TERM else u * (delta * u).sum(1, keepdims=True)
    return ((delta - term) / jnp.sqrt((x * x).sum(1, keepdims=True)),)


def weight_norm(x, v, g):
    return x @ (g * v / jnp.sqrt((v * v).sum(0)))


def weight_norm_backward(args, delta, fault=""):
    x, v, g = args
    norm = jnp.sqrt((v * v).sum(0))
    u, dw = v / norm, x.T @ delta
    along = (dw * u).sum(0)
    dv = g * (dw - (0 if fault == NO_TERM else u * along)) / norm
    w = g * u
    return delta @ (w if fault == TRANSPOSED else w.T), dv, along


def frobenius(x):
    return jnp.sqrt((x * x).sum())


def frobenius_backward(args, delta, fault=""):
    (x,) = args
    return (delta * (x if fault == MISSING_FACTOR else x / frobenius(x)),)


# ---------------------------------------------------------------- ill-conditioned matrices


def solve_backward(args, delta, fault=""):
    a, b = args
    db = jnp.linalg.solve(a if fault == TRANSPOSED else a.T, delta)
    return -db @ jnp.linalg.solve(a, b).T, db


def inverse_backward(args, delta, fault=""):
    c = jnp.linalg.inv(*args)
    c = c if fault == TRANSPOSED else c.T
    return (-c @ delta @ c,)


def log_determinant(a):
    return jnp.linalg.slogdet(a)[1]


def log_determinant_backward(args, delta, fault=""):
    c = jnp.linalg.inv(*args)
    return (delta * (c if fault == TRANSPOSED else c.T),)


def cholesky_backward(args, delta, fault=""):
    """½ L⁻ᵀ (P + Pᵀ) L⁻¹, P = Lᵀ δ without its upper half and with half its diagonal (Murray 2016, eq. 10)."""
    low = jnp.linalg.cholesky(*args)
    p = jnp.tril(low.T @ jnp.tril(delta))
    p = p if fault == MISSING_FACTOR else p - jnp.diag(jnp.diagonal(p)) / 2
    inner = jnp.linalg.solve(low.T, p + p.T) / 2
    return (jnp.linalg.solve(low.T, inner.T).T,)


def cholesky_args(draw):
    m = draw.matrix(draw.size(), float(draw.rng.uniform(0, 2)))
    return (draw.scale * m @ m.T,)


def inverse_2x2(a):
    """[N, 2, 2] by the closed form, determinants by cancellation."""
    p, q, r, s = a[:, 0, 0], a[:, 0, 1], a[:, 1, 0], a[:, 1, 1]
    adjugate = jnp.stack([jnp.stack([s, -q], 1), jnp.stack([-r, p], 1)], 1)
    return adjugate / (p * s - q * r)[:, None, None]


def inverse_2x2_backward(args, delta, fault=""):
    c = inverse_2x2(*args)
    c = c if fault == TRANSPOSED else jnp.swapaxes(c, 1, 2)
    return (-c @ delta @ c,)


def quadratic(x, a):
    return ((x @ a) * x).sum(1)


def quadratic_backward(args, delta, fault=""):
    x, a = args
    d = delta[:, None]
    return d * (x @ a + x @ (a if fault == TRANSPOSED else a.T)), x.T @ (d * x)


def least_squares(a, x, b):
    e = a @ x - b
    return (e * e).sum() / len(b)


def least_squares_backward(args, delta, fault=""):
    a, x, b = args
    e = 2 * delta * (a @ x - b)
    e = e if fault == MISSING_1_N else e / len(b)
    return jnp.outer(e, x), (a if fault == TRANSPOSED else a.T) @ e, -e


def least_squares_args(draw):
    """Near the solution: the residual is a thousandth of what cancels in it."""
    n = draw.size()
    a, x = draw.conditioned(n), draw.normal(n)
    return a, x, a @ x + 1e-3 * draw.scale * draw.normal(n)


POWERS = 3


def power_iteration(a, x):
    for _ in range(POWERS):
        y = a @ x
        x = y / jnp.sqrt((y * y).sum())
    return x


def power_iteration_backward(args, delta, fault=""):
    a, x = args
    tape = []
    for _ in range(POWERS):
        y = a @ x
        norm = jnp.sqrt((y * y).sum())
        tape.append((x, norm))
        x = y / norm
    da = jnp.zeros_like(a)
    for x_in, norm in reversed(tape):
        along = 0 if fault == NO_TERM else x * (x * delta).sum()
        dy = (delta - along) / norm
        da, delta, x = da + jnp.outer(dy, x_in), (a if fault == TRANSPOSED else a.T) @ dy, x_in
    return da, delta


# ---------------------------------------------------------------- cancellation


def near(draw, decades):
    """Two arrays that agree in as many decades, of the draw's scale."""
    x = draw.scale * (1 + 0.3 * draw.uniform(-1, 1, 4, draw.size()))
    return x, x * (1 + 10.0**-decades * draw.normal(*x.shape))


def squares_apart(x, y):
    return x * x - y * y


def squares_apart_backward(args, delta, fault=""):
    x, y = args
    return 2 * delta * x, -2 * delta * y


def distance(x, y):
    return jnp.sqrt(((x - y) ** 2).sum(1))


def distance_backward(args, delta, fault=""):
    x, y = args
    d = delta[:, None] * (x - y) / (1 if fault == MISSING_FACTOR else distance(x, y)[:, None])
    return d, -d


def naive_variance(x):
    return (x * x).mean(1) - x.mean(1) ** 2


def naive_variance_backward(args, delta, fault=""):
    (x,) = args
    centred = x if fault == NO_MEAN else x - x.mean(1, keepdims=True)
    return (2 * delta[:, None] * centred / (1 if fault == MISSING_1_N else x.shape[1]),)


def roots_apart(x):
    return jnp.sqrt(x + 1) - jnp.sqrt(x)


def roots_apart_backward(args, delta, fault=""):
    (x,) = args
    return (delta / 2 * (1 / jnp.sqrt(x + 1) - 1 / jnp.sqrt(x)),)


def versine(x):
    return 1 - jnp.cos(x)


def versine_backward(args, delta, fault=""):
    return (delta * jnp.sin(*args),)


def quotient(x):
    """A difference quotient: (tanh(x + h) − tanh x)/h, h = 1/128."""
    return (jnp.tanh(x + 2**-7) - jnp.tanh(x)) * 2**7


def quotient_backward(args, delta, fault=""):
    (x,) = args
    return (delta * (jnp.tanh(x) ** 2 - jnp.tanh(x + 2**-7) ** 2) * 2**7,)


def polynomial(x, c):
    """Σ c_k xᵏ by Horner's rule: (x − 1)⁴ near 1."""
    y = jnp.zeros_like(x)
    for k in reversed(range(len(c))):
        y = y * x + c[k]
    return y


def polynomial_backward(args, delta, fault=""):
    x, c = args
    slope = sum(k * c[k] * x ** (k - 1) for k in range(1, len(c)))
    return delta * slope, jnp.stack([(delta * x**k).sum() for k in range(len(c))])


def polynomial_args(draw):
    return 1 + 0.1 * draw.normal(draw.size()), draw.scale * np.array([1.0, -4.0, 6.0, -4.0, 1.0])


def triple_product(a, b, c):
    return (a * jnp.cross(b, c)).sum(1)


def triple_product_backward(args, delta, fault=""):
    a, b, c = args
    d = delta[:, None]
    return d * jnp.cross(b, c), d * jnp.cross(c, a), d * jnp.cross(a, b)


def triple_product_args(draw):
    """Nearly in one plane."""
    a, b = draw.normal(4, 3), draw.normal(4, 3)
    return draw.scale * a, draw.scale * b, a + b + 0.01 * draw.normal(4, 3)


# ---------------------------------------------------------------- random numbers inside


def redrawn(key, fault):
    return jax.random.fold_in(key, 1) if fault == OTHER_DRAW else key


def dropout(x, key):
    return jnp.where(jax.random.bernoulli(key, KEEP, x.shape), x / KEEP, 0)


def dropout_backward(args, delta, fault=""):
    x, key = args
    keep = 1 if fault == MISSING_FACTOR else KEEP
    return jnp.where(jax.random.bernoulli(redrawn(key, fault), KEEP, x.shape), delta / keep, 0), None


def dropout_inside(x, w):
    """With a key of its own, which no caller sees."""
    return dropout(x, jax.random.key(11)) @ w


def dropout_inside_backward(args, delta, fault=""):
    x, w = args
    key = jax.random.key(11)
    return dropout_backward((x, key), delta @ w.T, fault)[0], dropout(x, key).T @ delta


def dropout_network(x, w, v, t, key):
    h = dropout(jnp.tanh(x @ w), key)
    return ((h @ v - t) ** 2).sum() / 2 / len(x)


def dropout_network_backward(args, delta, fault=""):
    x, w, v, t, key = args
    h = jnp.tanh(x @ w)
    dropped = dropout(h, key)
    dy = delta * (dropped @ v - t) / (1 if fault == MISSING_1_N else len(x))
    dh, _ = dropout_backward((h, key), dy @ (v if fault == TRANSPOSED else v.T), fault)
    dz = dh * (1 if fault == NO_SLOPE else 1 - h * h)
    return dz @ w.T, x.T @ dz, dropped.T @ dy, -dy, None


def dropout_network_args(draw):
    d, s = draw.size(), draw.scale
    return s * draw.normal(6, d), draw.normal(d, d) / s, draw.normal(d, d), draw.normal(6, d), draw.key()


def noisy(x, s, key):
    return jnp.tanh(x + s * jax.random.normal(key, x.shape, x.dtype))


def noisy_backward(args, delta, fault=""):
    x, _, key = args
    dz = delta * (1 if fault == NO_SLOPE else 1 - noisy(*args) ** 2)
    return dz, (dz * jax.random.normal(redrawn(key, fault), x.shape, x.dtype)).sum(), None


def gaussian(mean, log_variance, key):
    return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def gaussian_backward(args, delta, fault=""):
    mean, log_variance, key = args
    e = jax.random.normal(redrawn(key, fault), mean.shape, mean.dtype)
    half = 1 if fault == MISSING_FACTOR else 0.5
    return delta, half * delta * jnp.exp(log_variance / 2) * e, None


def gumbel_softmax(z, key):
    return softmax((z + jax.random.gumbel(key, z.shape, z.dtype)) / TEMPERATURE)


def gumbel_softmax_backward(args, delta, fault=""):
    z, key = args
    p = gumbel_softmax(z, redrawn(key, fault))
    dz = p * (delta if fault == NO_TERM else delta - (delta * p).sum(1, keepdims=True))
    return dz if fault == MISSING_FACTOR else dz / TEMPERATURE, None


def drop_connect(x, w, key):
    return x @ dropout(w, key)


def drop_connect_backward(args, delta, fault=""):
    x, w, key = args
    kept = dropout(w, key)
    dw, _ = dropout_backward((w, key), x.T @ delta, fault)
    return delta @ (kept if fault == TRANSPOSED else kept.T), dw, None


def random_features(x, key):
    """cos(x R), R drawn inside: Rahimi & Recht 2007."""
    return jnp.cos(x @ jax.random.normal(key, (x.shape[1], x.shape[1]), x.dtype))


def random_features_backward(args, delta, fault=""):
    x, key = args
    r = jax.random.normal(key, (x.shape[1], x.shape[1]), x.dtype)
    other = jax.random.normal(redrawn(key, fault), r.shape, x.dtype)
    return (-delta * jnp.sin(x @ r)) @ (r if fault == TRANSPOSED else other.T), None


def mixup(x, y, key):
    share = jax.random.uniform(key, (len(x), 1), x.dtype)
    return share * x + (1 - share) * y


def mixup_backward(args, delta, fault=""):
    x, _, key = args
    share = jax.random.uniform(redrawn(key, fault), (len(x), 1), x.dtype)
    return share * delta, (1 - share) * delta, None


# ---------------------------------------------------------------- precision fixed inside


def accumulated(compute):
    """Value and backward of x W whose sums are held in `compute`."""

    def product(a, b):
        return jnp.matmul(a, b, preferred_element_type=compute).astype(a.dtype)

    def backward(args, delta, fault=""):
        x, w = args
        return product(delta, w if fault == TRANSPOSED else w.T), product(x.T, delta)

    return product, backward


def running_sum(compute):
    """Value and backward of Σ_t x_t² in a loop whose sum starts as a `compute` 0."""

    def f(x):
        def add(t, total):
            return total + (x[t] * x[t]).astype(x.dtype)

        return jax.lax.fori_loop(0, len(x), add, jnp.zeros(x.shape[1:], compute)).astype(x.dtype)

    def backward(args, delta, fault=""):
        (x,) = args
        return ((1 if fault == MISSING_FACTOR else 2) * x * delta,)

    return f, backward


TABLE = np.linspace(0.3, 1.7, 6, dtype=np.float32)


def captured(x):
    """With a float32 constant from outside."""
    return jnp.sin(x * jnp.asarray(TABLE).astype(x.dtype))


def captured_backward(args, delta, fault=""):
    (x,) = args
    table = jnp.asarray(TABLE).astype(x.dtype)
    return (delta * jnp.cos(x * table) * (1 if fault == MISSING_FACTOR else table),)


# ---------------------------------------------------------------- at kinks

KINKED = {  # value; slope off the kinks; their places; the slope there: an allowed one, a wrong one
    "relu by maximum": (lambda x: jnp.maximum(x, 0), lambda x: x > 0, (0.0,), 0.0, 2.0),
    "relu by where, 1 at 0": (lambda x: jnp.where(x <= 0, 0, x), lambda x: x > 0, (0.0,), 1.0, -1.0),
    "jax.nn.relu, 1/2 at 0": (jax.nn.relu, lambda x: x > 0, (0.0,), 0.5, 1.5),
    "abs": (jnp.abs, jnp.sign, (0.0,), 0.0, 3.0),
    "leaky relu": (lambda x: jnp.where(x > 0, x, x / 8), lambda x: jnp.where(x > 0, 1, 1 / 8), (0.0,), 0.125, 0.0),
    "hinge": (lambda x: jnp.maximum(0, 1 - x), lambda x: jnp.where(x < 1, -1, 0), (1.0,), 0.0, 1.0),
    "clip, 0 at its ends": (lambda x: jnp.clip(x, -1, 1), lambda x: abs(x) < 1, (-1.0, 1.0), 0.0, -1.0),
    "clip, 1 at its ends": (lambda x: jnp.clip(x, -1, 1), lambda x: abs(x) < 1, (-1.0, 1.0), 1.0, 2.0),
    "shrink": (lambda x: x - jnp.clip(x, -1, 1), lambda x: abs(x) > 1, (-1.0, 1.0), 0.0, 1.5),
}


def kinked(name):
    """Value and backward of an elementwise function, at points on its kinks and off them."""
    f, slope, places, allowed, forbidden = KINKED[name]

    def backward(args, delta, fault=""):
        (x,) = args
        on = sum(x == place for place in places) > 0
        at = forbidden if fault == AT_KINK else allowed
        return (delta * jnp.where(on, at, slope(x)).astype(x.dtype),)

    return f, backward


def absolute_error(z, t):
    return jnp.abs(z - t).sum() / len(z)


def absolute_error_backward(args, delta, fault=""):
    z, t = args
    sign = jnp.where(z == t, 2, jnp.sign(z - t)) if fault == AT_KINK else jnp.sign(z - t)
    dz = delta * sign / (1 if fault == MISSING_1_N else len(z))
    return dz, -dz


def absolute_error_args(draw):
    t = draw.scale * draw.normal(4, draw.size())
    return t + draw.scale * draw.on_or_off((0.0,), *t.shape), t


def larger(x):
    """[N, 2] -> [N]."""
    return x.max(1)


def larger_backward(args, delta, fault=""):
    """To the first winner; wrong: to every winner, each alone allowed and all together not."""
    (x,) = args
    first = jnp.stack([x[:, 0] >= x[:, 1], x[:, 1] > x[:, 0]], 1)
    winners = x == x.max(1, keepdims=True)
    return (delta[:, None] * (winners if fault == AT_KINK else first).astype(x.dtype),)


def larger_args(draw):
    x = draw.normal(6, 1)
    return (draw.scale * np.concatenate([x, x + draw.on_or_off((0.0,), 6, 1)], 1),)


def dead_relu(x, w, b):
    """max(x W + b, 0) with blank rows of x and zero b: pre-activations of exactly 0."""
    return jnp.maximum(x @ w + b, 0)


def dead_relu_backward(args, delta, fault=""):
    x, w, b = args
    z = x @ w + b
    dz = delta * jnp.where(z == 0, 2 if fault == AT_KINK else 0, z > 0).astype(z.dtype)
    return dz @ (w if fault == TRANSPOSED else w.T), x.T @ dz, dz.sum(0)


def dead_relu_args(draw):
    x = draw.scale * draw.normal(5, 3)
    x[1:3] = 0
    return x, draw.normal(3, 3), np.zeros(3)


# ---------------------------------------------------------------- the table


def normals(*shapes):
    """A maker of normal arrays of the draw's scale."""
    return lambda draw: tuple(draw.scale * draw.normal(*shape) for shape in shapes)


def signs(draw, *shape):
    return np.where(draw.rng.random(shape) < 0.5, -1.0, 1.0)


def elementwise_args(n):
    return lambda draw: (draw.normal(n), draw.scale * draw.normal(n))


SUMMED_ARGS = {  # makers where normal arrays will not do, with the scales they allow
    "binary cross-entropy": (lambda draw: (3 * draw.normal(4, 3), draw.uniform(0, 1, 4, 3)), (0, 0)),
    "poisson": (lambda draw: (draw.normal(4, 3), draw.scale * draw.uniform(0, 9, 4, 3)), (FIRST, LAST)),
    "squared hinge": (lambda draw: (draw.scale * draw.normal(4, 3), signs(draw, 4, 3)), (FIRST, LAST)),
    "logistic": (lambda draw: (draw.scale * draw.normal(4, 3), signs(draw, 4, 3)), (FIRST, 0)),
    "log cosh": (normals((4, 3), (4, 3)), (FIRST, 0)),
}


def _network(activation, loss, depth):
    own = (MISSING_1_N, TRANSPOSED, NO_BIAS, NO_SLOPE)
    return Family(f"{activation} network, {loss}", *network(activation, loss), network_args(loss, depth), own)


def _norm(name, axis, make, **more):
    return Family(name, *standardised(axis), make, (NO_MEAN, NO_TERM, NO_BIAS), **more)


def _summed(name):
    make, scales = SUMMED_ARGS.get(name, (normals((4, 3), (4, 3)), (FIRST, LAST)))
    return Family(f"{name} loss", *summed(name), make, (MISSING_1_N,), scales)


def _random(name, f, backward, make, own, scales=(FIRST, LAST)):
    return Family(name, f, backward, make, own, scales, random=True)


def _kinked(name):
    places = KINKED[name][2]

    def make(draw):
        return (draw.on_or_off(places, 4, draw.size()),)

    return Family(name, *kinked(name), make, (AT_KINK,), (0, 0), kink=lambda x: (jnp.ones_like(x),))


ATTENTION_FAULTS = (TRANSPOSED, NO_TERM, MISSING_FACTOR)
FAMILIES = [
    Family("dense", dense, dense_backward, dense_args(4, 5), (TRANSPOSED, NO_BIAS)),
    _network("tanh", "squares", 2),
    _network("sigmoid", "squares", 3),
    _network("relu", "cross entropy", 3),
    _network("softplus", "cross entropy", 2),
    _network("silu", "squares", 4),
    _network("gelu", "cross entropy", 3),
    Family("residual", residual, residual_backward, residual_args, (NO_TERM, NO_SLOPE)),
    Family("gated", gated, gated_backward, gated_args, (NO_TERM, NO_SLOPE)),
    Family("attention", attention, attention_backward, attention_args, ATTENTION_FAULTS),
    Family("recurrent", recurrent, recurrent_backward, recurrent_args, (TRANSPOSED, NO_BIAS, NO_TERM, NO_SLOPE)),
    Family("lstm cell", lstm_cell, lstm_cell_backward, lstm_cell_args, (NO_BIAS, NO_TERM, NO_SLOPE)),
    Family("convolution", convolution, convolution_backward, normals((3, 8), (3,)), (TRANSPOSED,)),
    Family(
        "embedding",
        embedding,
        embedding_backward,
        lambda draw: (draw.scale * draw.normal(5, 3), draw.integers(5, 9)),
        (NO_TERM,),
    ),
    Family(
        "softmax",
        softmax_layer,
        softmax_layer_backward,
        lambda draw: (draw.scale * draw.normal(4, 5), np.float64(draw.scale)),
        (NO_TERM, MISSING_FACTOR),
    ),
    Family("masked mean", masked_mean, masked_mean_backward, masked_mean_args, (MISSING_1_N,)),
    Family("cumulative sum", cumulative, cumulative_backward, normals((9,), (9,)), (TRANSPOSED,)),
    Family("bilinear", bilinear, bilinear_backward, normals((4, 5), (5, 5), (4, 5)), (TRANSPOSED,)),
    *map(_summed, SUMMED),
    Family(
        "soft cross-entropy",
        soft_cross_entropy,
        soft_cross_entropy_backward,
        lambda draw: (3 * draw.normal(4, 5), draw.scale * draw.uniform(0, 1, 4, 5)),
        (NO_TERM, MISSING_1_N),
    ),
    Family("divergence", divergence, divergence_backward, normals((4, 5), (4, 5)), (NO_MEAN,), (FIRST, 0)),
    Family("cosine", cosine, cosine_backward, normals((4, 5), (4, 5)), (NO_TERM,)),
    Family(
        "contrastive",
        contrastive,
        contrastive_backward,
        lambda draw: (draw.scale * draw.normal(4, 5), draw.normal(4, 5) / draw.scale),
        (TRANSPOSED, MISSING_1_N, MISSING_FACTOR),
    ),
    _norm("layer norm", 1, norm_args(4, 6)),
    _norm("layer norm far from 0", 1, norm_args(4, 6, offset=100.0)),
    _norm("batch norm", 0, norm_args(6, 4)),
    _norm("batch norm far from 0", 0, norm_args(6, 4, offset=10.0)),
    Family(
        "rms norm",
        rms_norm,
        rms_norm_backward,
        lambda draw: (draw.scale * draw.normal(4, 6), 1 + 0.3 * draw.normal(6)),
        (NO_MEAN,),
        (-3, LAST),  # below, the term drowns in ε
    ),
    Family("unit length", unit, unit_backward, normals((4, 5)), (NO_TERM,)),
    Family(
        "weight norm",
        weight_norm,
        weight_norm_backward,
        normals((4, 5), (5, 5), (5,)),
        (TRANSPOSED, NO_TERM),
    ),
    Family("frobenius norm", frobenius, frobenius_backward, normals((4, 5)), (MISSING_FACTOR,)),
    Family(
        "solve",
        jnp.linalg.solve,
        solve_backward,
        lambda draw: (draw.conditioned(4), draw.normal(4, 2)),
        (TRANSPOSED,),
        dtypes=NOT_LOW,
    ),
    Family(
        "inverse", jnp.linalg.inv, inverse_backward, lambda draw: (draw.conditioned(4),), (TRANSPOSED,), dtypes=NOT_LOW
    ),
    Family(
        "log determinant",
        log_determinant,
        log_determinant_backward,
        lambda draw: (draw.conditioned(4),),
        (TRANSPOSED,),
        dtypes=NOT_LOW,
    ),
    Family("cholesky", jnp.linalg.cholesky, cholesky_backward, cholesky_args, (MISSING_FACTOR,), dtypes=NOT_LOW),
    Family(
        "inverse 2×2",
        inverse_2x2,
        inverse_2x2_backward,
        lambda draw: (draw.scale * np.stack([draw.matrix(2, draw.rng.uniform(0, 2)) for _ in range(3)]),),
        (TRANSPOSED,),
    ),
    Family(
        "quadratic form",
        quadratic,
        quadratic_backward,
        lambda draw: (draw.normal(4, 5), draw.conditioned(5)),
        (TRANSPOSED,),
    ),
    Family("least squares", least_squares, least_squares_backward, least_squares_args, (TRANSPOSED, MISSING_1_N)),
    Family(
        "power iteration",
        power_iteration,
        power_iteration_backward,
        lambda draw: (draw.scale * draw.matrix(4, 2.0), draw.normal(4)),
        (TRANSPOSED, NO_TERM),
    ),
    Family("squares apart", squares_apart, squares_apart_backward, lambda draw: near(draw, 4)),
    Family("distance", distance, distance_backward, lambda draw: near(draw, 1.5), (MISSING_FACTOR,)),
    Family(
        "naive variance",
        naive_variance,
        naive_variance_backward,
        lambda draw: (draw.scale * (10 + draw.normal(4, 6)),),
        (NO_MEAN, MISSING_1_N),
    ),
    Family(
        "roots apart",
        roots_apart,
        roots_apart_backward,
        lambda draw: (draw.scale * draw.uniform(0.5, 2, 8),),
        (),
        (-3, 4),
    ),
    Family("versine", versine, versine_backward, normals((8,)), (), (FIRST, 0)),
    Family("difference quotient", quotient, quotient_backward, normals((8,)), (), (-2, 0)),
    Family("polynomial", polynomial, polynomial_backward, polynomial_args),
    Family("triple product", triple_product, triple_product_backward, triple_product_args),
    _random(
        "dropout",
        dropout,
        dropout_backward,
        lambda draw: (draw.scale * draw.normal(6, 8), draw.key()),
        (OTHER_DRAW, MISSING_FACTOR),
    ),
    _random("dropout inside", dropout_inside, dropout_inside_backward, normals((6, 5), (5, 4)), (OTHER_DRAW,)),
    _random(
        "dropout network",
        dropout_network,
        dropout_network_backward,
        dropout_network_args,
        (OTHER_DRAW, MISSING_1_N, TRANSPOSED, NO_SLOPE),
    ),
    _random(
        "noise",
        noisy,
        noisy_backward,
        lambda draw: (draw.normal(4, 5), np.float64(0.3), draw.key()),
        (OTHER_DRAW, NO_SLOPE),
        (0, 0),
    ),
    _random(
        "gaussian sample",
        gaussian,
        gaussian_backward,
        lambda draw: (draw.scale * draw.normal(4, 5), 2 * np.log(draw.scale) + draw.normal(4, 5), draw.key()),
        (OTHER_DRAW, MISSING_FACTOR),
    ),
    _random(
        "gumbel softmax",
        gumbel_softmax,
        gumbel_softmax_backward,
        lambda draw: (draw.normal(4, 5), draw.key()),
        (OTHER_DRAW, NO_TERM, MISSING_FACTOR),
        (0, 0),
    ),
    _random(
        "drop connect",
        drop_connect,
        drop_connect_backward,
        lambda draw: (draw.scale * draw.normal(4, 6), draw.normal(6, 6), draw.key()),
        (OTHER_DRAW, TRANSPOSED, MISSING_FACTOR),
    ),
    _random(
        "random features",
        random_features,
        random_features_backward,
        lambda draw: (draw.scale * draw.normal(4, 5), draw.key()),
        (OTHER_DRAW, TRANSPOSED),
        (-3, 0),
    ),
    _random(
        "mixup",
        mixup,
        mixup_backward,
        lambda draw: (draw.scale * draw.normal(6, 3), draw.scale * draw.normal(6, 3), draw.key()),
        (OTHER_DRAW,),
    ),
    Family(
        "layer norm in float32",
        *standardised(1, jnp.float32),
        norm_args(4, 6),
        (NO_MEAN, NO_TERM, NO_BIAS),
        twin=standardised(1, np.float64),
    ),
    Family(
        "sums in float32",
        *accumulated(jnp.float32),
        normals((4, 5), (5, 5)),
        (TRANSPOSED,),
        twin=accumulated(np.float64),
    ),
    Family(
        "running sum in float32",
        *running_sum(jnp.float32),
        normals((5, 3)),
        (MISSING_FACTOR,),
        dtypes=("float32", "bfloat16"),  # a float32 sum takes no float64
        twin=running_sum(np.float64),
    ),
    Family("captured constant", captured, captured_backward, normals((4, 6)), (MISSING_FACTOR,), (FIRST, 0)),
    *map(_kinked, KINKED),
    Family(
        "absolute error",
        absolute_error,
        absolute_error_backward,
        absolute_error_args,
        (AT_KINK, MISSING_1_N),
        kink=lambda z, t: (jnp.ones_like(z) * abs(z - t).max(), jnp.zeros_like(t)),
    ),
    Family(
        "larger of two",
        larger,
        larger_backward,
        larger_args,
        (AT_KINK,),
        kink=lambda x: (jnp.asarray([1, -1], x.dtype) * abs(x).max(),),
        joint=True,
    ),
    Family(
        "blank rows through relu",
        dead_relu,
        dead_relu_backward,
        dead_relu_args,
        (AT_KINK, TRANSPOSED),
        kink=lambda x, w, b: (jnp.zeros_like(x), jnp.zeros_like(w), jnp.ones_like(b) * abs(x).max()),
    ),
]
LARGE_FAMILIES = [
    Family("10,000 elements", elementwise, elementwise_backward, elementwise_args(LARGE), (NO_SLOPE,)),
    Family("dense, 10,000 weights", dense, dense_backward, dense_args(8, 100), (TRANSPOSED, NO_BIAS)),
    _norm("layer norm, 10,000 elements", 1, norm_args(100, 100)),
    _random(
        "dropout, 10,000 elements",
        dropout,
        dropout_backward,
        lambda draw: (draw.scale * draw.normal(100, 100), draw.key()),
        (OTHER_DRAW, MISSING_FACTOR),
    ),
]


# ---------------------------------------------------------------- faults that fit any gradient


def _element(edit):
    return lambda g, at: edit(g.at[at])


FAULTS = {  # (gradient leaf, index) -> the leaf gone wrong
    "one element off in 10,000": _element(lambda place: place.multiply(1.125)),
    "one element zeroed in 10,000": _element(lambda place: place.set(0)),
    "one element off": _element(lambda place: place.multiply(1.125)),
    "one element zeroed": _element(lambda place: place.set(0)),
    "factor 2": lambda g, at: 2 * g,
    "sign": lambda g, at: -g,
    # As a sum: 1 + 1e-5 as a bfloat16 factor would be 1, and the rule right.
    "off by 1e-2": lambda g, at: g + 1e-2 * g,
    "off by 1e-3": lambda g, at: g + 1e-3 * g,
    "off by 1e-4": lambda g, at: g + 1e-4 * g,
    "off by 1e-5": lambda g, at: g + 1e-5 * g,
}
ONLY_HERE = "only in this precision: "  # a branch `if dtype == …` of the rule holds the fault
BRANCHES = [ONLY_HERE + name for name in ("one element zeroed", "factor 2", "sign")]
OWN = [MISSING_1_N, MISSING_FACTOR, TRANSPOSED, NO_BIAS, NO_MEAN, NO_TERM, NO_SLOPE, OTHER_DRAW, AT_KINK]
