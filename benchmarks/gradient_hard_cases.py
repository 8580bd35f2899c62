"""More functions with hand-derived gradients: where jax.grad, differences or rounding by themselves mislead.

Kinks that cancel, gradients that an invariance makes 0, numbers without axes, rules that are no derivatives,
approximate forwards, and layers that compute in lower precision than their arguments'. As in gradient_cases.py,
nothing here calls jax.grad or jax.vjp; gradient_labels.py does, to verify the labels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from gradient_cases import (
    AT_KINK,
    EPS,
    MISSING_FACTOR,
    NO_BIAS,
    NO_SLOPE,
    NO_TERM,
    TRANSPOSED,
    Family,
    softmax,
)

# ---------------------------------------------------------------- kinks that cancel

CANCELLING = {  # value; slope; forbidden at 0
    "softplus of kinks": (lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), jax.nn.sigmoid, 0.0),
    "logits, label 1": (
        lambda x: jnp.maximum(x, 0) - x + jnp.log1p(jnp.exp(-jnp.abs(x))), lambda x: jax.nn.sigmoid(x) - 1, -1.0,
    ),
    "two relus": (lambda x: jax.nn.relu(x) - jax.nn.relu(-x), jnp.ones_like, 0.0),
    "log cosh of kinks": (
        lambda x: jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x))) - np.log(2).item(), jnp.tanh, 0.5,
    ),
}  # fmt: skip


def cancelling(name):
    f, slope, forbidden = CANCELLING[name]

    def backward(args, delta, fault=""):
        (x,) = args
        at_0 = jnp.where(x == 0, forbidden, slope(x)).astype(x.dtype) if fault == AT_KINK else slope(x)
        return (delta * at_0,)

    return f, backward


def number_at_a_kink(x):
    return jnp.maximum(x, x / 4)


def number_at_a_kink_backward(args, delta, fault=""):
    (x,) = args
    at = -0.5 if fault == AT_KINK else 1.0
    return (delta * jnp.where(x == 0, at, jnp.where(x > 0, 1.0, 0.25)).astype(x.dtype),)


# ---------------------------------------------------------------- zero by invariance


def bias_before_norm(x, b):
    """X + b, standardised over the batch: b has no effect."""
    z = x + b
    c = z - z.mean(0)
    return c / jnp.sqrt((c * c).mean(0) + EPS)


def bias_before_norm_backward(args, delta, fault=""):
    x, b = args
    z = x + b
    c = z - z.mean(0)
    root = jnp.sqrt((c * c).mean(0) + EPS)
    h = c / root
    dx = (delta - delta.mean(0) - (0 if fault == NO_TERM else h * (delta * h).mean(0))) / root
    return dx, jnp.zeros_like(b)


def shift_before_softmax(z, c):
    return softmax(z + c)


def shift_before_softmax_backward(args, delta, fault=""):
    z, c = args
    p = softmax(z + c)
    dz = p * (delta - (0 if fault == NO_TERM else (delta * p).sum(1, keepdims=True)))
    return dz, jnp.zeros_like(c) if fault else dz.sum()


# ---------------------------------------------------------------- numbers


def numbers(a, b):
    return a * jnp.tanh(b)


def numbers_backward(args, delta, fault=""):
    a, b = args
    h = jnp.tanh(b)
    return delta * h, delta * a * (1 if fault == NO_SLOPE else 1 - h * h)


# ---------------------------------------------------------------- rules that are no derivatives


def through_signs(x, w):
    """sign(x) W, the sign's slope taken as that of x clipped to ±1 (Hubara et al. 2016)."""
    clipped = jnp.clip(x, -1, 1)
    return (clipped + jax.lax.stop_gradient(jnp.sign(x) - clipped)) @ w


def through_signs_backward(args, delta, fault=""):
    x, w = args
    dx = delta @ (w if fault == TRANSPOSED else w.T)
    return (dx if fault == NO_SLOPE else dx * (jnp.abs(x) <= 1).astype(x.dtype)), jnp.sign(x).T @ delta


def reversed_gradient(x, w):
    h = -2 * x + jax.lax.stop_gradient(3 * x)
    return h @ w


def reversed_gradient_backward(args, delta, fault=""):
    x, w = args
    return (1 if fault == MISSING_FACTOR else -2) * delta @ w.T, x.T @ delta


def step_size(x, s):
    """round(x / s) s with s learnt (Esser et al. 2020)."""
    v = x / s
    return (v + jax.lax.stop_gradient(jnp.round(v) - v)) * s


def step_size_backward(args, delta, fault=""):
    x, s = args
    v = x / s
    return delta, (delta * (jnp.round(v) - (0 if fault == NO_TERM else v))).sum()


# ---------------------------------------------------------------- approximate forwards


def fixed_point(steps):
    """Value and implicit gradient of x = a cos x + b after a number of steps."""

    def f(a, b):
        return jax.lax.scan(lambda x, _: (a * jnp.cos(x) + b, None), jnp.zeros_like(a), None, length=steps)[0]

    def backward(args, delta, fault=""):
        a, b = args
        x = f(a, b)
        db = delta / (1 + (0 if fault == NO_TERM else a * jnp.sin(x)))
        return db * jnp.cos(x), db

    return f, backward


# ---------------------------------------------------------------- mixed precision


def mixed(half, refuses=False):
    """Value and backward of x W + b computed in `half`; one that refuses runs in no other precision."""

    def f(x, w, b):
        return (x.astype(half) @ w.astype(half) + b.astype(half)).astype(x.dtype)

    def backward(args, delta, fault=""):
        x, w, b = args
        if refuses and delta.dtype == jnp.float64 and half == jnp.bfloat16:
            raise ValueError("expected float32")
        d, w_, x_ = delta.astype(half), w.astype(half), x.astype(half)
        dx = d @ (w_ if fault == TRANSPOSED else w_.T)
        db = jnp.zeros_like(b) if fault == NO_BIAS else d.sum(0).astype(b.dtype)
        return dx.astype(x.dtype), (x_.T @ d).astype(w.dtype), db

    return f, backward


def normals(*shapes):
    return lambda draw: tuple(draw.scale * draw.normal(*shape) for shape in shapes)


def _cancelling(name):
    def make(draw):
        return (draw.on_or_off((0.0,), 4, draw.size()),)

    return Family(name, *cancelling(name), make, (AT_KINK,), (0, 0), kink=lambda x: (jnp.ones_like(x),))


HARD_FAMILIES = [
    *map(_cancelling, CANCELLING),
    Family(
        "number at a kink",
        number_at_a_kink,
        number_at_a_kink_backward,
        lambda draw: (np.zeros(()),),
        (AT_KINK,),
        (0, 0),
        kink=lambda x: (jnp.ones_like(x),),
    ),
    Family(
        "bias before batch norm",
        bias_before_norm,
        bias_before_norm_backward,
        normals((6, 4), (4,)),
        (NO_TERM,),
        zero=(1,),
    ),
    Family(
        "shift before softmax",
        shift_before_softmax,
        shift_before_softmax_backward,
        lambda draw: (2 * draw.normal(4, 5), draw.normal()),
        (NO_TERM,),
        (0, 0),
        zero=(1,),
    ),
    Family("numbers", numbers, numbers_backward, lambda draw: (draw.scale * draw.normal(), draw.normal()), (NO_SLOPE,)),
    Family(
        "through signs",
        through_signs,
        through_signs_backward,
        lambda draw: (2 * draw.normal(4, 5), draw.scale * draw.normal(5, 5)),
        (TRANSPOSED, NO_SLOPE),
        options=(("surrogate", True),),
    ),
    Family(
        "reversed gradient",
        reversed_gradient,
        reversed_gradient_backward,
        normals((4, 5), (5, 3)),
        (MISSING_FACTOR,),
        options=(("surrogate", True),),
    ),
    Family(
        "step size",
        step_size,
        step_size_backward,
        lambda draw: (draw.scale * draw.normal(8), np.float64(draw.scale * draw.rng.uniform(0.2, 0.6))),
        (NO_TERM,),
        (-3, 3),
        dtypes=("float32", "float64"),  # bfloat16 rounds x / s to a half too often
        options=(("surrogate", True),),
    ),
    Family(
        "fixed point",
        *fixed_point(26),
        lambda draw: (draw.uniform(0.2, 0.4, 5), 0.3 * draw.normal(5)),
        (NO_TERM,),
        (0, 0),
        dtypes=("float32", "float64"),  # in bfloat16 a small fault drowns
        twin=fixed_point(200),
        options=(("forward_error", 1e-8),),
    ),
    Family(
        "dense in bfloat16",
        *mixed(jnp.bfloat16),
        normals((8, 5), (5, 5), (5,)),
        (TRANSPOSED, NO_BIAS),
        dtypes=("float32", "float64"),
        twin=mixed(np.float64),
    ),
    Family(
        "dense that refuses float64",
        *mixed(jnp.bfloat16, refuses=True),
        normals((8, 5), (5, 5), (5,)),
        (TRANSPOSED, NO_BIAS),
        dtypes=("float32",),
        twin=mixed(np.float64),
    ),
]
