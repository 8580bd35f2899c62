"""The elementwise non-linearities h = σ(z): the value of each, its slope, and what it does at a kink.

An activation is a record, `relu`; one with a parameter is a factory, `leaky_relu(0.1)`, and equal calls give
the same record. `slope(z, h)` uses whichever of z and h is cheaper: mostly h, which the next layer keeps.
`help(relu)` shows the formulas and the source of each.

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

`jax.grad` of a value gives the slope, at the kinks too. Values and slopes take their limits at ±∞; of NaN the
value is NaN.

    >>> import jax, jax.numpy as jnp
    >>> z = jnp.array([-2.0, 0.0, 3.0])
    >>> h = leaky_relu(0.1).value(z)
    >>> print(h, leaky_relu(0.1).slope(z, h))
    [-0.2  0.   3. ] [0.1 0.1 1. ]
    >>> print(jax.vmap(jax.grad(relu.value))(z))
    [0. 0. 1.]
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxnn.checks import number
from jaxnn.types import Activation, Array

__all__ = ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "silu", "gelu", "identity"]


def __dir__() -> list[str]:
    return list(__all__)


SQRT_HALF = math.sqrt(0.5)
NORMAL_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)  # φ(0)


def _not_minus_infinity(z: Array) -> Array:
    """Makes −∞ finite: −∞ · 0 is NaN, where the limit of z · σ(z) is 0."""
    return jnp.maximum(z, float(jnp.finfo(jnp.result_type(z)).min))


def _finite(z: Array) -> Array:
    limits = jnp.finfo(jnp.result_type(z))
    return jnp.clip(z, float(limits.min), float(limits.max))


# ---------------------------------------------------------------- squashing


def _sigmoid_value(z: Array) -> Array:
    """σ(z) = 1 / (1 + e⁻ᶻ), dh/dz = h (1 − h).

    Source: Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating errors".
    """
    return jax.lax.logistic(z)


def _sigmoid_slope(z: Array, h: Array) -> Array:
    return h * (1 - h)


def _tanh_value(z: Array) -> Array:
    """σ(z) = tanh z, dh/dz = (1 − h) (1 + h).

    Source: LeCun, Bottou, Orr & Müller (1998), "Efficient backprop".
    """
    return jnp.tanh(z)


def _tanh_slope(z: Array, h: Array) -> Array:
    # Where h is near ±1, its own rounding leaves this few digits (1e-4 at |z| = 4 in float32), and 1 − h² as few.
    # 4e/(1 + e)² with e = e^{−2|z|} keeps them all, for an exponential more per entry.
    return (1 - h) * (1 + h)


sigmoid = Activation("sigmoid", _sigmoid_value, _sigmoid_slope)
tanh = Activation("tanh", _tanh_value, _tanh_slope)


# ---------------------------------------------------------------- rectifiers with a kink
# `z <= 0` and not `z > 0`: a NaN then falls into the branch that lets it through.


def _relu_value(z: Array) -> Array:
    """σ(z) = z if z > 0, else 0, dh/dz = 1 if h > 0, else 0: 0 at the kink z = 0.

    Source: Nair & Hinton (2010), "Rectified linear units improve restricted Boltzmann machines".
    """
    return jnp.where(z <= 0, 0, z)


def _relu_slope(z: Array, h: Array) -> Array:
    return jnp.where(h <= 0, jnp.zeros_like(h), jnp.ones_like(h))


relu = Activation("relu", _relu_value, _relu_slope, leak=0.0, kinks=((0.0, 0.0),))


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """The rectifier that lets λ = `negative_slope` of what is negative through: h = z if z > 0, else λz.

    Equal calls give the same record; `leaky_relu(0)` is `relu`.

    Raises:
        ValueError: if λ is negative or not finite.

    Source: Maas, Hannun & Ng (2013), "Rectifier nonlinearities improve neural network acoustic models".

    >>> print(leaky_relu(0.1).value(jnp.array([-5.0, 5.0])))
    [-0.5  5. ]
    """
    leak = number("activations.leaky_relu: negative_slope", negative_slope, least=0.0)
    return _leaky_relu(leak) if leak else relu


@functools.cache  # compiled programs are cached by the identity of these functions
def _leaky_relu(leak: float) -> Activation:
    def value(z: Array) -> Array:
        return jnp.where(z <= 0, leak * z, z)

    value.__doc__ = f"""σ(z) = z if z > 0, else λz, dh/dz = 1 if h > 0, else λ, at the kink z = 0 too; λ = {leak:g}.

    Source: Maas, Hannun & Ng (2013), "Rectifier nonlinearities improve neural network acoustic models".
    """

    def slope(z: Array, h: Array) -> Array:
        return jnp.where(h <= 0, jnp.full_like(h, leak), jnp.ones_like(h))

    return Activation("leaky_relu", value, slope, leak=leak, kinks=((0.0, leak),))


# ---------------------------------------------------------------- smooth rectifiers


def _elu_value(z: Array) -> Array:
    """σ(z) = z if z > 0, else eᶻ−1, dh/dz = 1 if h > 0, else h + 1.

    Source: Clevert, Unterthiner & Hochreiter (2016), "Fast and accurate deep network learning by ELUs".
    """
    return jnp.where(z <= 0, jnp.expm1(jnp.where(z <= 0, z, 0)), z)  # inner where: eᶻ overflows for large z


def _elu_slope(z: Array, h: Array) -> Array:
    return jnp.where(h <= 0, h + 1, jnp.ones_like(h))


def _softplus_value(z: Array) -> Array:
    """σ(z) = log(1 + eᶻ), dh/dz = sigmoid(z) = 1 − e⁻ʰ.

    Source: Dugas et al. (2001), "Incorporating second-order functional knowledge for better option pricing".
    """
    return jnp.logaddexp(z, jnp.zeros_like(z))


def _softplus_slope(z: Array, h: Array) -> Array:
    return -jnp.expm1(-h)


def _silu_value(z: Array) -> Array:
    """σ(z) = zs, s = sigmoid(z), dh/dz = s (1 + z (1 − s)).

    Source: Elfwing, Uchibe & Doya (2018), "Sigmoid-weighted linear units for neural network function
    approximation in reinforcement learning".
    """
    z = _not_minus_infinity(z)
    return z * jax.lax.logistic(z)


def _silu_slope(z: Array, h: Array) -> Array:
    z = _finite(z)
    gate = jax.lax.logistic(z)
    return gate * (1 + z * (1 - gate))


def _gelu_value(z: Array) -> Array:
    """σ(z) = z Φ(z), dh/dz = Φ(z) + z φ(z), φ and Φ density and distribution function of N(0, 1).

    Source: Hendrycks & Gimpel (2016), "Gaussian error linear units".
    """
    z = _not_minus_infinity(z)
    return z * _normal_distribution(z)


def _gelu_slope(z: Array, h: Array) -> Array:
    z = _finite(z)
    density = NORMAL_DENSITY_AT_0 * jnp.exp(-0.5 * z * z)
    return _normal_distribution(z) + z * density


def _normal_distribution(z: Array) -> Array:
    return 0.5 * jax.lax.erfc(-SQRT_HALF * z)  # erfc: 1 + erf cancels for negative z


elu = Activation("elu", _elu_value, _elu_slope, leak=0.0)
softplus = Activation("softplus", _softplus_value, _softplus_slope, leak=0.0)
silu = Activation("silu", _silu_value, _silu_slope, leak=0.0)
gelu = Activation("gelu", _gelu_value, _gelu_slope, leak=0.0)


# ---------------------------------------------------------------- none


def _identity_value(z: Array) -> Array:
    """σ(z) = z, dh/dz = 1."""
    return z


def _identity_slope(z: Array, h: Array) -> Array:
    return jnp.ones_like(z)


identity = Activation("identity", _identity_value, _identity_slope)
