"""Activations, the elementwise non-linearities h = σ(z): their values, slopes and kinks.

An activation is a record, `relu`; one with a parameter is made by a call, `leaky_relu(0.1)`. `slope(z, h)` uses
whichever of z and h is cheaper: mostly h, which the next layer keeps. `help(relu)` shows formulas and source.

    name             h = σ(z)               dh/dz                    source
    sigmoid          1 / (1 + e⁻ᶻ)          h (1 − h)                Rumelhart, Hinton & Williams (1986)
    tanh             tanh z                 (1 − h) (1 + h)          LeCun, Bottou, Orr & Müller (1998)
    relu             z if z > 0, else 0     1 if h > 0, else 0       Nair & Hinton (2010)
    leaky_relu(λ)    z if z > 0, else λz    1 if h > 0, else λ       Maas, Hannun & Ng (2013)
    elu              z if z > 0, else eᶻ−1  1 if h > 0, else h + 1   Clevert, Unterthiner & Hochreiter (2016)
    softplus         log(1 + eᶻ)            sigmoid(z) = 1 − e⁻ʰ     Dugas et al. (2001)
    silu             zs, s = sigmoid(z)     s (1 + z (1 − s))        Elfwing, Uchibe & Doya (2018)
    gelu             z Φ(z)                 Φ(z) + z φ(z)            Hendrycks & Gimpel (2016)
    identity         z                      1

φ and Φ are the density and the distribution function of N(0, 1), Φ exact (by erfc). Two slopes jump:

    kink             slope there
    relu, z = 0      0
    leaky_relu(λ)    λ, at z = 0

`jax.grad` of a value equals the slope, at the kinks too. Values and slopes have their limits at ±∞; the value of NaN
is NaN.

    >>> import jax, jax.numpy as jnp
    >>> z = jnp.array([-2.0, 0.0, 3.0])
    >>> h = leaky_relu(0.1).value(z)
    >>> print(h, leaky_relu(0.1).slope(z, h))
    [-0.2  0.   3. ] [0.1 0.1 1. ]
    >>> print(jax.vmap(jax.grad(relu.value))(z))
    [0. 0. 1.]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import in_dtype
from jaxnn.checks import number
from jaxnn.types import Activation, Array

__all__ = ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "silu", "gelu", "identity"]
__dir__ = __all__.copy


SQRT_HALF = math.sqrt(0.5)
NORMAL_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)  # φ(0)


def _not_minus_infinity(z: Array) -> Array:
    """Makes −∞ finite: −∞ · 0 is NaN, where the limit of z · σ(z) is 0."""
    return jnp.maximum(z, float(jnp.finfo(jnp.result_type(z)).min))


def _finite(z: Array) -> Array:
    limits = jnp.finfo(jnp.result_type(z))
    return jnp.clip(z, float(limits.min), float(limits.max))


class Plain(Activation):
    """An activation without a parameter; its one instance is public."""

    if TYPE_CHECKING:

        def __init__(self) -> None: ...


# ---------------------------------------------------------------- squashing


class Sigmoid(Plain):
    """σ(z) = 1 / (1 + e⁻ᶻ), dh/dz = h (1 − h).

    Source: Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating errors".
    """

    shown_as = "sigmoid"

    def value(self, z: Array) -> Array:
        return jax.lax.logistic(z)

    def slope(self, z: Array, h: Array) -> Array:
        return h * (1 - h)


class Tanh(Plain):
    """σ(z) = tanh z, dh/dz = (1 − h) (1 + h).

    Source: LeCun, Bottou, Orr & Müller (1998), "Efficient backprop".
    """

    shown_as = "tanh"

    def value(self, z: Array) -> Array:
        return jnp.tanh(z)

    def slope(self, z: Array, h: Array) -> Array:
        # Where h is near ±1, its own rounding leaves few digits (1e-4 at |z| = 4 in float32), here as in 1 − h².
        # 4e/(1 + e)² with e = e^{−2|z|} keeps them all, at the price of an exponential per entry.
        return (1 - h) * (1 + h)


sigmoid, tanh = Sigmoid(), Tanh()


# ---------------------------------------------------------------- rectifiers with a kink
# `z <= 0` and not `z > 0`, so that NaN takes the branch that returns z.


class Relu(Plain):
    """σ(z) = z if z > 0, else 0, dh/dz = 1 if h > 0, else 0: 0 at the kink z = 0.

    Source: Nair & Hinton (2010), "Rectified linear units improve restricted Boltzmann machines".
    """

    shown_as = "relu"
    leak, kinks = 0.0, ((0.0, 0.0),)

    def value(self, z: Array) -> Array:
        return jnp.where(z <= 0, 0, z)

    def slope(self, z: Array, h: Array) -> Array:
        return jnp.where(h <= 0, jnp.zeros_like(h), jnp.ones_like(h))


relu = Relu()


class leaky_relu(Activation):
    """σ(z) = z if z > 0, else λz, dh/dz = 1 if h > 0, else λ, at the kink z = 0 too.

    `leaky_relu(0)` is `relu`.

    Args:
        negative_slope: λ ≥ 0, also called `leak`; a number, or a JAX scalar, traced or not.

    Raises:
        ValueError: if λ is negative or not finite.

    Source: Maas, Hannun & Ng (2013), "Rectifier nonlinearities improve neural network acoustic models".

    >>> print(leaky_relu(0.1).value(jnp.array([-5.0, 5.0])))
    [-0.5  5. ]
    """

    negative_slope: float = 0.01

    def __new__(cls, negative_slope: float = 0.01) -> Any:
        is_relu = isinstance(negative_slope, (int, float)) and negative_slope is not False and negative_slope == 0
        return relu if is_relu else super().__new__(cls)

    def __post_init__(self) -> None:
        where = "activations.leaky_relu: negative_slope"
        self._set(negative_slope=number(where, self.negative_slope, least=0.0))

    @property
    def leak(self) -> float:
        return self.negative_slope

    @property
    def kinks(self) -> tuple[tuple[float, float], ...]:
        return ((0.0, self.leak),)

    def value(self, z: Array) -> Array:
        return jnp.where(z <= 0, in_dtype(self.leak, jnp.result_type(z)) * z, z)

    def slope(self, z: Array, h: Array) -> Array:
        return jnp.where(h <= 0, jnp.full_like(h, self.leak), jnp.ones_like(h))


# ---------------------------------------------------------------- smooth rectifiers


class Elu(Plain):
    """σ(z) = z if z > 0, else eᶻ−1, dh/dz = 1 if h > 0, else h + 1.

    Source: Clevert, Unterthiner & Hochreiter (2016), "Fast and accurate deep network learning by ELUs".
    """

    shown_as = "elu"
    leak = 0.0

    def value(self, z: Array) -> Array:
        return jnp.where(z <= 0, jnp.expm1(jnp.where(z <= 0, z, 0)), z)  # inner where: eᶻ overflows for large z

    def slope(self, z: Array, h: Array) -> Array:
        return jnp.where(h <= 0, h + 1, jnp.ones_like(h))


class Softplus(Plain):
    """σ(z) = log(1 + eᶻ), dh/dz = sigmoid(z) = 1 − e⁻ʰ.

    Source: Dugas et al. (2001), "Incorporating second-order functional knowledge for better option pricing".
    """

    shown_as = "softplus"
    leak = 0.0

    def value(self, z: Array) -> Array:
        return jnp.logaddexp(z, jnp.zeros_like(z))

    def slope(self, z: Array, h: Array) -> Array:
        return -jnp.expm1(-h)


class Silu(Plain):
    """σ(z) = zs, s = sigmoid(z), dh/dz = s (1 + z (1 − s)).

    Source: Elfwing, Uchibe & Doya (2018), "Sigmoid-weighted linear units for neural network function
    approximation in reinforcement learning".
    """

    shown_as = "silu"
    leak = 0.0

    def value(self, z: Array) -> Array:
        z = _not_minus_infinity(z)
        return z * jax.lax.logistic(z)

    def slope(self, z: Array, h: Array) -> Array:
        z = _finite(z)
        s = jax.lax.logistic(z)
        return s * (1 + z * (1 - s))


class Gelu(Plain):
    """σ(z) = z Φ(z), dh/dz = Φ(z) + z φ(z), φ and Φ density and distribution function of N(0, 1).

    Source: Hendrycks & Gimpel (2016), "Gaussian error linear units".
    """

    shown_as = "gelu"
    leak = 0.0

    def value(self, z: Array) -> Array:
        z = _not_minus_infinity(z)
        return z * _normal_distribution(z)

    def slope(self, z: Array, h: Array) -> Array:
        z = _finite(z)
        density = NORMAL_DENSITY_AT_0 * jnp.exp(-0.5 * z * z)
        return _normal_distribution(z) + z * density


def _normal_distribution(z: Array) -> Array:
    return 0.5 * jax.lax.erfc(-SQRT_HALF * z)  # erfc: 1 + erf cancels for negative z


elu, softplus, silu, gelu = Elu(), Softplus(), Silu(), Gelu()


class Identity(Plain):
    """σ(z) = z, dh/dz = 1."""

    shown_as = "identity"

    def value(self, z: Array) -> Array:
        return z

    def slope(self, z: Array, h: Array) -> Array:
        return jnp.ones_like(z)


identity = Identity()
