"""Local reverse rules of elementwise operations: arithmetic, functions of one number, comparison, selection.

δ is the gradient of an operation's output, δx what it passes back to its input x. Every formula is derived by hand; at
ties and kinks it takes the slope that `jax.vjp` takes, and a note says so. Real numbers only.

Sources: the derivative rules in `jax/_src/lax` for the conventions; Griewank & Walther 2008, "Evaluating Derivatives",
for the table of elementary adjoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnn.aliases import Array
from jaxnn.graph.rules.rule import Note, Params, Passed, Pull, Rule, note_where, nothing, winner_slope
from jaxnn.jaxprs import is_float

Slope = Callable[..., Array]


def _fit(gradient: Array, x: Array) -> Array:
    """The gradient summed over the axes along which the operation repeated x."""
    if gradient.shape == x.shape:
        return gradient
    if not x.shape:
        return lax.reduce_sum(gradient, tuple(range(gradient.ndim)))
    axes = tuple(i for i, (of_x, of_z) in enumerate(zip(x.shape, gradient.shape, strict=True)) if of_x != of_z)
    return lax.reduce_sum(gradient, axes).reshape(x.shape)


def _elementwise(*slopes: Slope | None) -> Pull:
    """The pull of an operation on equal or broadcast shapes; slope(δ, *inputs, output) is passed to one input."""

    def pull(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
        return [
            _fit(slope(delta, *inputs, output), x) if slope and is_float(x) else None
            for slope, x in zip(slopes, inputs, strict=True)
        ]

    return pull


def _accurate(usual: Slope, highest: Slope) -> Pull:
    """The pull of an operation with a most accurate form, in whose rule nothing cancels."""

    def pull(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
        slope = highest if params.get("accuracy") is lax.AccuracyMode.HIGHEST else usual
        return [slope(delta, *inputs, output)]

    return pull


def _x(where: Callable[[Array], ArrayLike], text: str) -> Note:
    """A note on the values of the first input."""
    return note_where(lambda inputs, output, params: where(inputs[0]), text)


def _mul(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ y, δy = δ x, multiplied in the output's dtype, which may be wider than that of the factors."""
    x, y = inputs
    return [
        _fit(delta * factor.astype(delta.dtype), other).astype(other.dtype) if is_float(other) else None
        for factor, other in ((y, x), (x, y))
    ]


def _pow_base(delta: Array, x: Array, y: Array, z: Array) -> Array:
    """δ y xʸ⁻¹; for y = 0 the slope is 0 if y is an integer, and 0·∞ = NaN at x = 0 if it is a float."""
    whole = not is_float(y)
    y = y.astype(x.dtype)
    slope = y * lax.pow(*jnp.broadcast_arrays(x, y - jnp.ones_like(y)))
    return delta * (jnp.where(y == 0, jnp.zeros_like(slope), slope) if whole else slope)


def _pow_exponent(delta: Array, x: Array, y: Array, z: Array) -> Array:
    """δ z log x, with log x taken as 0 at x = 0."""
    return delta * (jnp.log(jnp.where(x == 0, jnp.ones_like(x), x)) * z)


def _steep_pow(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
    x, y = inputs
    return (x == 0) & (y < (1 if is_float(y) else 0))


def _integer_pow(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ n xⁿ⁻¹."""
    (x,), n = inputs, params["y"]
    if n == 0 or not is_float(x):
        return [None]
    return [delta if n == 1 else delta * (n * lax.integer_pow(x, n - 1))]


def _select_n(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δxᵢ = δ where `which` is i, 0 elsewhere: an exact zero, whatever δ is."""
    which, *cases = inputs
    index = which.astype(jnp.int32)
    return [None, *(jnp.where(index == i, delta, 0) if is_float(x) else None for i, x in enumerate(cases))]


def _clamp_at_bound(inputs: list[Array], output: Array, params: Params) -> ArrayLike:
    low, x, high = inputs
    return is_float(x) and ((x == low) | (x == high))


def _is_integer(x: Array) -> ArrayLike:
    return np.isfinite(x) & (x == np.floor(x))


def _pole(x: Array) -> ArrayLike:
    return (x <= 0) & _is_integer(x)


_TIE = note_where(lambda xs, z, p: is_float(xs[0]) and xs[0] == xs[1], "x = y, a tie: JAX passes half of δ to each")
_MAXIMUM = _elementwise(lambda δ, x, y, z: δ * winner_slope(x, y, z), lambda δ, x, y, z: δ * winner_slope(y, x, z))
_EDGE = _x(lambda x: abs(x) == 1, "|x| = 1: the slope is infinite")
_ROOT_PI = math.sqrt(math.pi)

_ARITHMETIC = {
    "add": Rule("δx = δ, δy = δ", _elementwise(lambda δ, x, y, z: δ, lambda δ, x, y, z: δ)),
    "add_any": Rule("δx = δ, δy = δ", _elementwise(lambda δ, x, y, z: δ, lambda δ, x, y, z: δ)),
    "sub": Rule("δx = δ, δy = −δ", _elementwise(lambda δ, x, y, z: δ, lambda δ, x, y, z: -δ)),
    "mul": Rule("δx = δ y, δy = δ x", _mul),
    "div": Rule(
        "δx = δ / y, δy = −δ x / y²",
        _elementwise(lambda δ, x, y, z: δ / y, lambda δ, x, y, z: -δ * x * lax.integer_pow(y, -2)),
        note_where(lambda xs, z, p: is_float(xs[1]) and xs[1] == 0, "y = 0: the slopes are infinite"),
    ),
    "rem": Rule(
        "δx = δ, δy = −δ trunc(x / y)",
        _elementwise(lambda δ, x, y, z: δ, lambda δ, x, y, z: -δ * jnp.trunc(x / y)),
        note_where(
            lambda xs, z, p: is_float(xs[0]) and (np.asarray(z) == 0) & (xs[0] != 0),
            "x / y is an integer, a jump: the slope beside it is taken",
        ),
    ),
    "neg": Rule("δx = −δ", _elementwise(lambda δ, x, y: -δ)),
    "square": Rule("δx = 2 δ x", _elementwise(lambda δ, x, y: δ * (2 * x))),
    "pow": Rule(
        "δx = δ y xʸ⁻¹, δy = δ z log x",
        _elementwise(_pow_base, _pow_exponent),
        note_where(
            _steep_pow, "x = 0 and y < 1: the slope in x is not finite (0·∞ for y = 0), and JAX takes log x as 0"
        ),
    ),
    "integer_pow": Rule(
        "δx = δ n xⁿ⁻¹",
        _integer_pow,
        note_where(lambda xs, y, p: p["y"] < 0 and xs[0] == 0, "x = 0: the slope is infinite"),
    ),
}

_EXPONENTIALS = {
    "exp": Rule("δx = δ y", _elementwise(lambda δ, x, y: δ * y)),
    "exp2": Rule("δx = δ y log 2", _elementwise(lambda δ, x, y: math.log(2) * (δ * y))),
    "expm1": Rule("δx = δ (y + 1)", _accurate(lambda δ, x, y: δ * (y + 1), lambda δ, x, y: δ * jnp.exp(x))),
    "log": Rule(
        "δx = δ / x", _elementwise(lambda δ, x, y: δ / x), _x(lambda x: x == 0, "x = 0: the slope is infinite")
    ),
    "log1p": Rule(
        "δx = δ / (1 + x)",
        _elementwise(lambda δ, x, y: δ / (1 + x)),
        _x(lambda x: x == -1, "x = −1: the slope is infinite"),
    ),
    "tanh": Rule(
        "δx = δ (1 − y²)",
        _accurate(
            lambda δ, x, y: (δ + δ * y) * (1 - y),
            lambda δ, x, y: δ * (4 * (lax.logistic(2 * x) * lax.logistic(-2 * x))),
        ),
    ),
    "logistic": Rule(
        "δx = δ y (1 − y)", _accurate(lambda δ, x, y: δ * (y * (1 - y)), lambda δ, x, y: δ * (y * lax.logistic(-x)))
    ),
    "sqrt": Rule(
        "δx = δ / (2 y)",
        _elementwise(lambda δ, x, y: δ * (0.5 / y)),
        _x(lambda x: x == 0, "x = 0: the slope is infinite"),
    ),
    "rsqrt": Rule(
        "δx = −δ y / (2 x)",
        _elementwise(lambda δ, x, y: δ * (-0.5 * (y / x))),
        _x(lambda x: x == 0, "x = 0: the slope is infinite"),
    ),
    "cbrt": Rule(
        "δx = δ / (3 y²)",
        _elementwise(lambda δ, x, y: δ * ((1 / 3) * lax.integer_pow(y, -2))),
        _x(lambda x: x == 0, "x = 0: the slope is infinite"),
    ),
}

_TRIGONOMETRY = {
    "sin": Rule("δx = δ cos x", _elementwise(lambda δ, x, y: δ * jnp.cos(x))),
    "cos": Rule("δx = −δ sin x", _elementwise(lambda δ, x, y: -(δ * jnp.sin(x)))),
    "tan": Rule("δx = δ (1 + y²)", _elementwise(lambda δ, x, y: δ * (1 + y * y))),
    "asin": Rule("δx = δ / √(1 − x²)", _elementwise(lambda δ, x, y: δ * lax.rsqrt(1 - x * x)), _EDGE),
    "acos": Rule("δx = −δ / √(1 − x²)", _elementwise(lambda δ, x, y: -δ * lax.rsqrt(1 - x * x)), _EDGE),
    "atan": Rule("δx = δ / (1 + x²)", _elementwise(lambda δ, x, y: δ / (1 + x * x))),
    "atan2": Rule(
        "δx = δ y / (x² + y²), δy = −δ x / (x² + y²)",
        _elementwise(lambda δ, x, y, z: δ * (y / (x * x + y * y)), lambda δ, x, y, z: δ * (-x / (x * x + y * y))),
        note_where(lambda xs, z, p: (xs[0] == 0) & (xs[1] == 0), "x = y = 0: neither direction nor slope (0/0)"),
    ),
    "sinh": Rule("δx = δ cosh x", _elementwise(lambda δ, x, y: δ * jnp.cosh(x))),
    "cosh": Rule("δx = δ sinh x", _elementwise(lambda δ, x, y: δ * jnp.sinh(x))),
    "asinh": Rule("δx = δ / √(x² + 1)", _elementwise(lambda δ, x, y: δ * lax.rsqrt(x * x + 1))),
    "acosh": Rule(
        "δx = δ / √(x² − 1)",
        _elementwise(lambda δ, x, y: δ * lax.rsqrt(x * x - 1)),
        _x(lambda x: x == 1, "x = 1: the slope is infinite"),
    ),
    "atanh": Rule("δx = δ / (1 − x²)", _elementwise(lambda δ, x, y: (1 / (1 + x)) * (δ / (1 - x))), _EDGE),
}

_SPECIAL = {
    "erf": Rule("δx = δ (2/√π) exp(−x²)", _elementwise(lambda δ, x, y: (2 / _ROOT_PI) * (δ * jnp.exp(-(x * x))))),
    "erfc": Rule("δx = −δ (2/√π) exp(−x²)", _elementwise(lambda δ, x, y: (-2 / _ROOT_PI) * (δ * jnp.exp(-(x * x))))),
    "erf_inv": Rule(
        "δx = δ (√π/2) exp(y²)", _elementwise(lambda δ, x, y: (_ROOT_PI / 2) * (δ * jnp.exp(y * y))), _EDGE
    ),
    "lgamma": Rule(
        "δx = δ ψ(x), ψ the digamma function",
        _elementwise(lambda δ, x, y: δ * lax.digamma(x)),
        _x(_pole, "x is 0 or a negative integer, a pole: no slope"),
    ),
    "digamma": Rule(
        "δx = δ ψ′(x), ψ′ the trigamma function",
        _elementwise(lambda δ, x, y: δ * lax.polygamma(jnp.ones_like(x), x)),
        _x(_pole, "x is 0 or a negative integer, a pole: no slope"),
    ),
}

_CHOICES = {
    "abs": Rule(
        "δx = δ where x ≥ 0, −δ elsewhere",
        _elementwise(lambda δ, x, y: jnp.where(x >= 0, δ, -δ)),
        _x(lambda x: is_float(x) and x == 0, "x = 0, a kink: JAX takes the slope 1"),
    ),
    "max": Rule("δx = δ where x > y, δ/2 where x = y; likewise δy", _MAXIMUM, _TIE),
    "min": Rule("δx = δ where x < y, δ/2 where x = y; likewise δy", _MAXIMUM, _TIE),
    "clamp": Rule(
        "δx = δ where a < x < b; δa = δ where x < a < b, δb = δ where x > b",
        _elementwise(
            lambda δ, a, x, b, y: jnp.where((a > x) & (a < b), δ, 0),
            lambda δ, a, x, b, y: jnp.where((x > a) & (x < b), δ, 0),
            lambda δ, a, x, b, y: jnp.where(b < x, δ, 0),
        ),
        note_where(_clamp_at_bound, "x is at its bound, a kink: JAX passes δ to neither"),
    ),
    "select_n": Rule("δxᵢ = δ where which = i, 0 elsewhere", _select_n),
    "sign": Rule(
        "δx = 0", nothing, _x(lambda x: is_float(x) and x == 0, "x = 0, a jump: the slope 0 beside it is taken")
    ),
    "floor": Rule("δx = 0", nothing, _x(_is_integer, "x is an integer, a jump: the slope 0 beside it is taken")),
    "ceil": Rule("δx = 0", nothing, _x(_is_integer, "x is an integer, a jump: the slope 0 beside it is taken")),
    "round": Rule(
        "δx = 0",
        nothing,
        _x(lambda x: abs(x) % 1 == 0.5, "x is halfway between two integers, a jump: the slope 0 is taken"),
    ),
}


def _convert(delta: Array, inputs: list[Array], output: Array, params: Params) -> Passed:
    """δx = δ in x's dtype."""
    (x,) = inputs
    return [lax.convert_element_type(delta, x.dtype) if is_float(x) and is_float(output) else None]


_COPIES = {
    "convert_element_type": Rule("δx = δ, in x's dtype", _convert),
    "reduce_precision": Rule(
        "δx = δ, rounded likewise", lambda δ, inputs, y, params: [lax.reduce_precision(δ, **params)]
    ),
    "copy": Rule("δx = δ", _elementwise(lambda δ, x, y: δ)),
    "optimization_barrier": Rule(
        "δxᵢ = δᵢ", lambda δ, inputs, ys, params: [d if is_float(x) else None for x, d in zip(inputs, δ, strict=True)]
    ),
    "stop_gradient": Rule("δx = 0, as asked", nothing),
}

_COMPARISONS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to", "is_finite"),
    *("and", "or", "xor", "not", "population_count", "clz"),
    *("shift_left", "shift_right_arithmetic", "shift_right_logical", "bitcast_convert_type"),
)

RULES: dict[str, Rule] = {
    **_ARITHMETIC,
    **_EXPONENTIALS,
    **_TRIGONOMETRY,
    **_SPECIAL,
    **_CHOICES,
    **_COPIES,
    **{name: Rule("nothing: the output is not real, or piecewise constant", nothing) for name in _COMPARISONS},
}
