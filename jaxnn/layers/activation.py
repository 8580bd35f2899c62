"""Elementwise activations as separate layers, so that δ at a dense layer's output is the textbook's δˡ."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxnn import activations
from jaxnn.checks import seen
from jaxnn.errors import LayerError
from jaxnn.mistakes import factory_hint, is_factory
from jaxnn.sequences import over_steps
from jaxnn.shapes import check_delta, features
from jaxnn.tapes import first_axes
from jaxnn.types import Activation, Array, DType, Forward, InShape, Key, Layer, Params, State, Tree


@over_steps()
class activation(Layer):
    """Elementwise activation, h = σ(z).

    Forward, z [N, …] → h [N, …]:  h = σ(z).    Backward, δ = ∂C/∂h:  ∂C/∂z = δ ⊙ σ′(z).

    Args:
        function: an `Activation` record, `jaxnn.relu`. `serial` and `mlp` accept the record itself.

    Raises:
        TypeError: if function is not an Activation record.
        ValueError: if z is not a float array with a batch axis.

    Source: Nielsen (2015), ch. 2, equation BP2.

    >>> from jaxnn import relu
    >>> h, _, tape = activation(relu).forward({}, (), jnp.array([[-1.0, 2.0]]))
    >>> delta_in, _ = activation(relu).backward({}, tape, jnp.ones((1, 2)))
    >>> delta_in.tolist()
    [[0.0, 1.0]]
    """

    function: Activation

    batch_axes = first_axes

    def __post_init__(self) -> None:
        if not isinstance(self.function, Activation):
            got = f"{seen(self.function)}{_hint(self.function)}"
            raise TypeError(f"activation: expected an Activation record such as jaxnn.relu, got {got}")

    def as_argument(self) -> str:  # serial(dense(3), relu)
        return repr(self.function)

    @property
    def kind(self) -> str:
        return self.function.name

    @property
    def activation(self) -> Activation:
        return self.function

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return {}, ()

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        features(self.kind, x, at_least=1)
        h = self.function.value(x)
        if h.shape != x.shape:
            raise LayerError(self.kind, f"must act on each element separately, got {x.shape} -> {h.shape}")
        return h, state, (x, h)

    def backward(self, params: Params, tape: Tree, delta: Array) -> tuple[Array, Params]:
        z, h = tape
        check_delta(self.kind, delta, h)
        return delta * self.function.slope(z, h), {}


def _hint(function: Any) -> str:
    if isinstance(function, str) and function in activations.__all__:
        return f": give jaxnn.{function}"
    name = getattr(function, "__name__", "")
    if is_factory(function):
        return factory_hint(function)
    return f": jaxnn.{name} is its record" if name in activations.__all__ else ""
