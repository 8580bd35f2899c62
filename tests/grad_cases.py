"""Functions for graph.grad beside jax.grad: operations with several outputs, points of infinite slope, compositions.

X holds a 0, at which √ has an infinite slope: where nothing is asked of it, 0 · ∞ must not arise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.ode import odeint

X = np.array([0.0, 1.0, 4.0])
Y = np.array([0.7, -1.2, 0.4])
P = np.array([0.5, 1.5, 2.5])
M = np.array([[2.0, 0.3, 0.1], [0.4, 3.0, -0.5], [0.2, 0.1, 1.0]])
S = M @ M.T
EQUAL = np.diag([2.0, 2.0, 5.0])  # its eigenvectors, and singular vectors, have no derivative
KEYS = np.array([2, 0, 1])
sqrt = jnp.sqrt


class Case(NamedTuple):
    """A function of its arguments that gives one number, and the arguments to differentiate by."""

    name: str
    f: Callable
    args: tuple
    argnums: int | tuple = 0


class Several(NamedTuple):
    """An operation with several outputs; `steep` says which, used alone, give a gradient that is not finite.

    A custom_vjp, linear_call and custom_linear_solve are given zeros for what is not used, by JAX itself.
    """

    name: str
    f: Callable
    args: tuple
    steep: tuple = ()


# ---------------------------------------------------------------- rules of one's own


@jax.custom_jvp
def own_jvp(x):
    return sqrt(x), 2 * x


@own_jvp.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return own_jvp(x), (t * (0.5 / sqrt(x)), 2 * t)


@jax.custom_jvp
def own_jvp_zeros(x, y):
    return sqrt(x), x * y


def _own_jvp_zeros(primals, tangents):
    (x, y), (t, u) = primals, tangents
    zero = jax.custom_derivatives.SymbolicZero
    first = jnp.zeros_like(x) if isinstance(t, zero) else t * (0.5 / sqrt(x))
    second = sum(
        part
        for part in (None if isinstance(t, zero) else t * y, None if isinstance(u, zero) else u * x)
        if part is not None
    )
    return own_jvp_zeros(x, y), (first, second)


own_jvp_zeros.defjvp(_own_jvp_zeros, symbolic_zeros=True)


@jax.custom_vjp
def own_vjp(x):
    return sqrt(x), 2 * x


own_vjp.defvjp(lambda x: (own_vjp(x), x), lambda x, d: (d[0] * (0.5 / sqrt(x)) + 2 * d[1],))


@jax.custom_vjp
def own_vjp_zeros(x, y):
    return sqrt(x), x * y


def _forward(x, y):
    return own_vjp_zeros(x.value, y.value), (x.value, y.value, y.perturbed)


def _backward(kept, deltas):
    x, y, perturbed = kept
    zero = jax.custom_derivatives.SymbolicZero
    first = jnp.zeros_like(x) if isinstance(deltas[0], zero) else deltas[0] * (0.5 / sqrt(x))
    second = jnp.zeros_like(x) if isinstance(deltas[1], zero) else deltas[1] * y
    return first + second, (jnp.zeros_like(y) if isinstance(deltas[1], zero) else deltas[1] * x) if perturbed else None


own_vjp_zeros.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.custom_vjp
def passes_none(x, y):
    return x + 0 * y


passes_none.defvjp(lambda x, y: (x + 0 * y, None), lambda _, d: (d, None))  # nothing at all goes to y


@jax.jit
def jitted(x):
    return sqrt(x), 2 * x


@jax.checkpoint
def remade(x):
    return sqrt(x), 2 * x


def both(x):
    return sqrt(x), 2 * x


def triple(x):
    return sqrt(x), 2 * x, jnp.sin(x)


def counted(x):
    return lax.fori_loop(0, 2, lambda i, c: (sqrt(c[1]), c[1] * 2), (x, x))


def branched(x):
    return lax.cond(x[1] > 0, both, lambda x: (x, x), x)


def switched(x):
    return lax.switch(jnp.int32(1), [triple, lambda x: (x**1.5, 3 * x, sqrt(x)), triple], x)


def solved(a, b):
    """A linear system whose right-hand side has a part of no consequence."""
    solve = lambda matvec, b: jax.tree.map(lambda b: jnp.linalg.solve(a, b), b)
    both_rows = lambda x: (a @ x[0], a @ x[1])
    return lax.custom_linear_solve(both_rows, (b, sqrt(b)), solve, lambda vecmat, b: solve(None, b), symmetric=True)


def nested(x):
    def body(c, t):
        kept, root = lax.cond(t >= 0, lambda t: (2 * t, sqrt(t)), lambda t: (t, t), t)
        return (c[0] + kept, c[1] + root), (jitted(t)[0], t * c[0])

    (total, roots), (rows, others) = lax.scan(body, (0.0, 0.0), x)
    return total, roots, rows, others


def twice(x):
    def outer(c, t):
        inner, ys = lax.scan(lambda d, u: (d + u, sqrt(u)), c, x)
        return inner * t, (ys, inner)

    total, (roots, inners) = lax.scan(outer, 1.0, x)
    return total, roots, inners


def flat(tree):
    return tuple(jax.tree.leaves(tree))


SEVERAL = [
    Several("scan, root last", lambda x: lax.scan(lambda c, t: (c + t, sqrt(t)), 0.0, x), (X,), (1,)),
    Several("scan, root in its carry", lambda x: lax.scan(lambda c, t: (c + sqrt(t), 2 * t), 0.0, x), (X,), (0,)),
    Several(
        "scan of two carries",
        lambda x: flat(lax.scan(lambda c, t: ((c[0] + sqrt(t), c[1] * 2 + t), t), (0.0, 0.0), x)),
        (X,),
        (0,),
    ),
    Several(
        "scan whose carries mix",
        lambda x: flat(lax.scan(lambda c, t: ((sqrt(t), c[1] + c[0] * t), c[0]), (0.0, 0.0), x)),
        (X,),
        (0, 1, 2),
    ),
    Several("scan from the end", lambda x: lax.scan(lambda c, t: (c + t, sqrt(t)), 0.0, x, reverse=True), (X,), (1,)),
    Several(
        "scan with a constant", lambda w, x: lax.scan(lambda c, t: (c + t * w, w * sqrt(t)), 0.0, x), (2.0, X), (1,)
    ),
    Several("scan that carries a count", lambda x: lax.scan(lambda c, t: (c + 1, (t, sqrt(t))), 0, x)[1], (X,), (1,)),
    Several("scan of no step", lambda x: lax.scan(lambda c, t: (c + 1.0, sqrt(c)), x[0], None, length=0), (X,)),
    Several("map", lambda x: lax.map(both, x), (X,), (0,)),
    Several(
        "associative_scan", lambda x: lax.associative_scan(lambda a, b: (a[0] + b[0], a[1] * b[1]), both(x)), (X,), (0,)
    ),
    Several("fori_loop", counted, (X,), (0,)),
    Several(
        "while_loop, what moves unused",
        lambda x: (
            lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1]), (0.0, lax.stop_gradient(x)))[1],
            x,
            sqrt(x),
        ),
        (X,),
        (2,),
    ),
    Several("cond", branched, (X,), (0,)),
    Several("switch", switched, (X,), (2,)),
    Several("jit", jitted, (X,), (0,)),
    Several("jit in jit", lambda x: jax.jit(lambda x: (*jitted(x), jitted(2 * x)[1]))(x), (X,), (0,)),
    Several("checkpoint", remade, (X,), (0,)),
    Several(
        "checkpoint of a scan", jax.checkpoint(lambda x: lax.scan(lambda c, t: (c + t, sqrt(t)), 0.0, x)), (X,), (1,)
    ),
    Several("named_call", jax.named_call(both, name="both"), (X,), (0,)),
    Several("vmap", jax.vmap(both), (X,), (0,)),
    Several(
        "vmap of a scan", jax.vmap(lambda x: lax.scan(lambda c, t: (c + t, sqrt(t)), 0.0, x)), (np.stack([X, P]),), (1,)
    ),
    Several("custom_jvp", own_jvp, (X,), (0,)),
    Several("custom_jvp, symbolic zeros", own_jvp_zeros, (X, Y), (0,)),
    Several("custom_vjp", own_vjp, (X,), (0, 1)),
    Several("custom_vjp, symbolic zeros", own_vjp_zeros, (X, Y), (0,)),
    Several(
        "linear_call",
        lambda x: jax.custom_derivatives.linear_call(
            lambda r, x: (x * r, 2 * x), lambda r, d: d[0] * r + 2 * d[1], P, sqrt(x)
        ),
        (X,),
        (0, 1),
    ),
    Several("custom_linear_solve", lambda b: solved(S, b), (X,), (0, 1)),
    Several("eigh", lambda a: tuple(jnp.linalg.eigh(a)), (EQUAL,), (1,)),
    Several("svd", lambda a: tuple(jnp.linalg.svd(a)), (EQUAL,), (0, 2)),
    Several("qr", lambda a: tuple(jnp.linalg.qr(a)), (M,)),
    Several("lu", lambda a: jax.scipy.linalg.lu(a), (M,)),
    Several("slogdet", lambda a: tuple(jnp.linalg.slogdet(a)), (M,)),
    Several("split", lambda x: lax.split(x, (1, 2)), (X,)),
    Several("unstack", lambda x: tuple(x), (X,)),
    Several("sort of two", lambda x, y: lax.sort((x, sqrt(x) * y), num_keys=1), (X, Y), (1,)),
    Several("sort by whole numbers", lambda x: lax.sort((KEYS, x, sqrt(x)), num_keys=1)[1:], (X,), (1,)),
    Several("top_k", lambda x: (lax.top_k(x, 2)[0], sqrt(x), x), (X,), (1,)),
    Several("optimization_barrier", lambda x: lax.optimization_barrier(both(x)), (X,), (0,)),
    Several("frexp and modf", lambda x: (jnp.modf(x)[0], sqrt(x)), (X,), (1,)),
    Several("nested", nested, (X,), (1, 2)),
    Several("a scan in a scan", twice, (X,), (1,)),
    Several(
        "a scan in a branch",
        lambda x: lax.cond(x[1] > 0, lambda x: lax.scan(lambda c, t: (c + t, sqrt(t)), 0.0, x), lambda x: (0.0, x), x),
        (X,),
        (1,),
    ),
    Several(
        "a rule of one's own in a loop",
        lambda x: lax.scan(lambda c, t: (c + own_vjp(t)[1], own_jvp(t)), 0.0, x)[1],
        (X,),
        (0,),
    ),
    Several("a branch in a rule of one's own", lambda x: own_jvp(branched(x)[1]), (X,), (0,)),
]


def weighted(outputs):
    """A sum in which no two entries count alike."""
    return sum((out * jnp.asarray(np.cos(np.arange(out.size)).reshape(out.shape) + 2)).sum() for out in outputs)


def using(each, used):
    """The case of an operation of which only these outputs are used."""

    def f(*args):
        outs = each.f(*args)
        return weighted([outs[k] for k in used])

    argnums = tuple(range(len(each.args)))
    return Case(f"{each.name}: {', '.join(map(str, used))}", f, each.args, argnums)


def of_several(each):
    """(outputs, case) for the outputs of an operation one by one, all but one, and all."""
    n = len(jax.eval_shape(each.f, *each.args))
    one, but = [(k,) for k in range(n)], [tuple(j for j in range(n) if j != k) for k in range(n)]
    return [(used, using(each, used)) for used in dict.fromkeys([*one, *but, tuple(range(n))]) if used]


# ---------------------------------------------------------------- functions


def unasked(f):
    """f where nothing asks for it, beside what does."""
    return lambda x: lax.scan(lambda c, t: (c + t, f(t)), 0.0, x)[0]


def recurrent(w, xs):
    def step(h, x):
        h = jnp.tanh(h * w + x)
        return h, (h, sqrt(jnp.abs(x)))

    return lax.scan(step, jnp.zeros(()), xs)[1][0].sum()


def filtered(x):
    """A loop of which the last carry, a norm that is 0 at first, is not asked for."""
    total, _ = lax.fori_loop(0, 3, lambda i, c: (c[0] + x[i], jnp.linalg.norm(x[:1] * c[0])), (0.0, 0.0))
    return total


ONE = {  # functions of x beside points, among them those at which jax.grad gives NaN or infinity itself
    "sqrt": (sqrt, (X,)),
    "rsqrt": (lax.rsqrt, (P, X)),
    "cbrt": (jnp.cbrt, (X,)),
    "log": (jnp.log, (P, X)),
    "log1p": (jnp.log1p, (P, np.array([-1.0, 0.0, 1.0]))),
    "1/x": (lambda x: 1 / x, (P, X)),
    "x/x": (lambda x: x / x, (X,)),
    "0·sqrt": (lambda x: 0.0 * sqrt(x), (X,)),
    "sqrt(0·x)": (lambda x: sqrt(0.0 * x), (X,)),
    "sqrt(x²)": (lambda x: sqrt(x * x), (X,)),
    "x**0.5": (lambda x: x**0.5, (X,)),
    "x**-1": (lambda x: x**-1, (X,)),
    "0**x": (lambda x: 0.0**x, (X,)),
    "x**x": (lambda x: x**x, (X,)),
    "abs": (jnp.abs, (X,)),
    "sign": (jnp.sign, (X,)),
    "arcsin": (jnp.arcsin, (np.array([1.0, 0.0, -1.0]),)),
    "arccosh": (jnp.arccosh, (np.array([1.0, 2.0, 3.0]),)),
    "arctanh": (jnp.arctanh, (np.array([1.0, 0.0, -1.0]),)),
    "arctan2": (lambda x: jnp.arctan2(x, x), (X,)),
    "where trap": (lambda x: jnp.where(x > 0, sqrt(x), 0.0), (X,)),
    "safe where": (lambda x: jnp.where(x > 0, sqrt(jnp.where(x > 0, x, 1.0)), 0.0), (X,)),
    "max": (lambda x: jnp.maximum(x, sqrt(x)), (X,)),
    "relu of sqrt": (lambda x: jax.nn.relu(sqrt(x) - 3), (X,)),
    "clip": (lambda x: jnp.clip(sqrt(x), 1, 2), (X,)),
    "xlogy": (lambda x: jax.scipy.special.xlogy(x, x), (X, P)),
    "norm": (jnp.linalg.norm, (X, 0 * X)),
    "std": (jnp.std, (X, 0 * X)),
    "var": (jnp.var, (X, 0 * X)),
    "logsumexp": (jax.nn.logsumexp, (X, np.full(3, -np.inf))),
    "softmax": (lambda x: jax.nn.softmax(x)[0], (X,)),
    "sinc": (jnp.sinc, (X,)),
    "prod": (jnp.prod, (X,)),
    "cumprod": (jnp.cumprod, (X,)),
    "sort": (jnp.sort, (X[::-1].copy(),)),
    "median": (jnp.median, (X,)),
    "cummax": (lambda x: lax.cummax(x), (X,)),
    "floor": (lambda x: sqrt(jnp.floor(x)), (X,)),
    "stopped": (lambda x: sqrt(lax.stop_gradient(x)) * x, (X,)),
    "rounded": (lambda x: jnp.round(x) * sqrt(x), (X,)),
    "cast to integers": (lambda x: x * x.astype(int), (X,)),
    "one entry": (lambda x: sqrt(x)[1], (X,)),
    "a slice": (lambda x: sqrt(x)[1:], (X,)),
    "split": (lambda x: jnp.split(sqrt(x), 3)[1], (X,)),
    "first of the sorted": (lambda x: sqrt(jnp.sort(x)[1]), (X,)),
    "argmax": (lambda x: x[jnp.argmax(sqrt(x))], (X,)),
    "gather": (lambda x: sqrt(x)[KEYS[:2]], (X,)),
    "scatter": (lambda x: sqrt(x).at[0].set(x[1]), (X,)),
    "interp": (lambda x: jnp.interp(x, X, P), (P,)),
    "expm1": (jnp.expm1, (X,)),
    "erf_inv": (lax.erf_inv, (np.array([-1.0, 0.0, 1.0]),)),
    "lgamma": (lax.lgamma, (X, P)),
    "cumsum of roots": (lambda x: jnp.cumsum(sqrt(x))[-1], (X,)),
    "dot": (lambda x: sqrt(x) @ X, (X,)),
    "pad": (lambda x: jnp.pad(sqrt(x), 1)[2:], (X,)),
    "reverse": (lambda x: sqrt(x[::-1])[0], (X,)),
    "recurrent filter": (filtered, (X,)),
    "polar": (lambda x: jnp.arctan2(x[0], x[1]) + jnp.hypot(x[0], x[1]), (X,)),
    "gelu": (jax.nn.gelu, (Y,)),
    "softplus": (jax.nn.softplus, (Y,)),
    "log_softmax": (lambda x: jax.nn.log_softmax(x)[1], (Y,)),
    "unasked log": (unasked(jnp.log), (X,)),
    "unasked 1/x": (unasked(lambda t: 1 / t), (X,)),
    "unasked power": (unasked(lambda t: t**0.3), (X,)),
    "unasked arccos": (unasked(jnp.arccos), (np.array([1.0, 0.0, -1.0]),)),
    "unasked norm": (unasked(lambda t: jnp.linalg.norm(jnp.stack([t, t]))), (X,)),
    "eigenvalues": (lambda x: jnp.linalg.eigvalsh(jnp.diag(x) + jnp.diag(x[::-1])), (X,)),
    "singular values": (lambda x: jnp.linalg.svd(jnp.outer(x, x) + np.eye(3), compute_uv=False), (X,)),
    "spectral norm": (lambda x: jnp.linalg.norm(jnp.diag(x), 2), (X,)),
}

COMPLEX = [
    Case("a spectrum", lambda x: jnp.abs(jnp.fft.fft(x)).sum(), (Y,)),
    Case("a filter by its spectrum", lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * np.array([1.0, 2.0j]), 3)[0], (X,)),
    Case("an angle", lambda x: jnp.angle(x[1:] + 1j * x[:2]).sum(), (P,)),
    Case("a complex carry", lambda x: jnp.abs(lax.scan(lambda c, t: (c * (0.5 + 1j * t), c), 1 + 0j, x)[0]), (X,)),
    Case("a complex root, unused", lambda x: lax.scan(lambda c, t: (c + t, sqrt(t + 0j)), 0.0, x)[0], (X,)),
    Case("a chosen part", lambda x: jnp.where(x > 0, x + 1j * x, 0).imag.sum(), (X,)),
    Case("a complex number stopped", lambda x: (lax.stop_gradient(x + 1j).imag * x).sum(), (X,)),
    Case("a complex product", lambda x: jnp.abs(jnp.outer(x, x + 1j * x) @ (x * 1j)).sum(), (P,)),
]


MORE = [
    Case(
        "an ordinary differential equation", lambda x: odeint(lambda y, t: -y, x, jnp.array([0.0, 0.5]))[-1].sum(), (P,)
    ),
    Case("scan, by its constant alone", recurrent, (0.5, X), 0),
    Case("scan, by its inputs alone", recurrent, (0.5, X), 1),
    Case("scan, by both", recurrent, (0.5, X), (0, 1)),
    Case("symbolic zeros, y at rest", lambda x, y: weighted(own_vjp_zeros(x, y)[1:]), (X, Y), 0),
    Case("symbolic zeros, x at rest", lambda x, y: weighted(own_vjp_zeros(x, y)[1:]), (X, Y), 1),
    Case("symbolic tangents, y at rest", lambda x, y: weighted(own_jvp_zeros(x, y)), (X, Y), 0),
    Case("symbolic tangents, x at rest", lambda x, y: weighted(own_jvp_zeros(x, y)), (X, Y), 1),
    Case("a rule that passes None", lambda x: passes_none(x, sqrt(x)).sum(), (X,)),
    Case(
        "an operand of an unused output",
        lambda x: lax.scan(lambda c, t: (c + t[0], t[1] * 2), 0.0, (x, sqrt(x)))[0],
        (X,),
    ),
    Case("a constant of an unused output", lambda x: lax.scan(lambda c, t: (c + t, t * sqrt(x)), 0.0, x)[0], (X,)),
    Case(
        "a carry of an unused output",
        lambda x: lax.scan(lambda c, t: ((c[0] + t, c[1] * t), None), (0.0, sqrt(x[0])), x)[0][0],
        (X,),
    ),
    Case(
        "an operand of an unused branch output",
        lambda x: lax.cond(x[1] > 0, lambda a, b: (a, b), lambda a, b: (b, a), x, sqrt(x))[0].sum(),
        (X,),
    ),
    Case(
        "an operand of the branch not taken",
        lambda x: lax.cond(x[1] > 0, lambda a, b: a, lambda a, b: b, x, sqrt(x)).sum(),
        (X,),
    ),
    Case("an eigenvector that is not asked for", lambda x: jnp.linalg.eigh(jnp.eye(3) * x.sum())[0].sum(), (X,)),
    Case(
        "a while loop behind stop_gradient",
        lambda x: x.sum() + lax.while_loop(lambda c: c.sum() < 40, lambda c: 2 * c, lax.stop_gradient(x)).sum(),
        (X,),
    ),
    Case(
        "a while loop of floors",
        lambda x: (x * lax.while_loop(lambda c: c.sum() < 40, lambda c: 2 * c, jnp.floor(x))).sum(),
        (X,),
    ),
    Case(
        "a while loop beside what moves",
        lambda x: (lax.while_loop(lambda c: c < 9, lambda c: c + lax.stop_gradient(x[1]), 0.0) * x).sum(),
        (X,),
    ),
    Case(
        "whole numbers among the arguments",
        lambda x, k: lax.scan(lambda c, t: (c + t[0] * t[1], sqrt(t[0])), 0.0, (x, k))[0],
        (X, KEYS),
        0,
    ),
    Case(
        "a key among the arguments",
        lambda x: lax.scan(
            lambda k, t: (jax.random.split(k)[0], t * jax.random.uniform(k, dtype=float)), jax.random.key(0), x
        )[1].sum(),
        (X,),
    ),
    Case(
        "pytrees",
        lambda p: lax.scan(lambda c, t: ({"a": c["a"] + t, "b": sqrt(t)}, c["b"]), {"a": 0.0, "b": p["s"]}, p["x"])[0][
            "a"
        ],
        ({"x": X, "s": 0.0},),
    ),
    Case("two uses of one output", lambda x: (lambda r, d: (d * d).sum() + d[1])(*jitted(x)), (X,)),
    Case("a root of a root", lambda x: jitted(jitted(x)[0])[1].sum(), (X,)),
    Case("a matrix of equal eigenvalues", lambda a: jnp.linalg.eigvalsh(a).max(), (EQUAL,)),
    Case("a solution", lambda a, b: jnp.linalg.solve(a, b).sum(), (M, X), (0, 1)),
    Case("a Cholesky factor", lambda a: jnp.linalg.cholesky(a + a.T).sum(), (S,)),
    Case("a determinant of 0", lambda a: jnp.linalg.det(a), (np.diag([0.0, 1.0, 2.0]),)),
]


def scalar(f):
    return lambda x: (lambda y: y if y.ndim == 0 else weighted([y]))(f(x))


PLAIN = [Case(f"{name}, point {i}", scalar(f), (x,)) for name, (f, points) in ONE.items() for i, x in enumerate(points)]
STEEP = [*MORE, *COMPLEX, *(case for case in PLAIN if case.name.startswith("unasked"))]
PLAIN = [case for case in PLAIN if case not in STEEP]
