"""One row per activation: what the tests hold it against."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxnn import Activation
from jaxnn import activations as a
from jaxnn.types import Array

INF = math.inf


class ActivationCase(NamedTuple):
    """An activation, its formula in Python's own floats, and its limits.

    `formula` need not be stable far from 0; `limits` are σ(−∞), σ(∞), σ′(−∞), σ′(∞); `twin` is JAX's own, or None.
    """

    name: str
    activation: Activation
    formula: Callable[[float], float]
    limits: tuple[float, float, float, float]
    twin: Callable[[Array], Array] | None


def _logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z))


ACTIVATION_CASES = (
    ActivationCase("sigmoid", a.sigmoid, _logistic, (0, 1, 0, 0), jax.nn.sigmoid),
    ActivationCase("tanh", a.tanh, math.tanh, (-1, 1, 0, 0), jax.nn.tanh),
    ActivationCase("relu", a.relu, lambda z: max(z, 0.0), (0, INF, 0, 1), jax.nn.relu),
    ActivationCase(
        "leaky_relu",
        a.leaky_relu(0.2),
        lambda z: max(z, 0.2 * z),
        (-INF, INF, 0.2, 1),
        lambda z: jax.nn.leaky_relu(z, 0.2),
    ),
    ActivationCase("elu", a.elu, lambda z: z if z > 0 else math.expm1(z), (-1, INF, 0, 1), jax.nn.elu),
    ActivationCase("softplus", a.softplus, lambda z: math.log1p(math.exp(z)), (0, INF, 0, 1), jax.nn.softplus),
    ActivationCase("silu", a.silu, lambda z: z * _logistic(z), (0, INF, 0, 1), jax.nn.silu),
    ActivationCase(
        "gelu",
        a.gelu,
        lambda z: z * math.erfc(-z / math.sqrt(2)) / 2,
        (0, INF, 0, 1),
        lambda z: jax.nn.gelu(z, approximate=False),
    ),
    ActivationCase("identity", a.identity, lambda z: z, (-INF, INF, 1, 1), jax.nn.identity),
)
