"""A layer's parameters: drawn by its initializers, and looked at before they are used; errors say which is meant."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxnn.checks import LayerError
from jaxnn.types import DType, Initializer, Key, Params, Shape


def drawn(kind: str, dtype: DType, **leaves: tuple[Initializer, Key, Shape]) -> Params:
    """Each parameter by its initializer, `w=(w_init, key, shape)`.

    Raises:
        LayerError: where an initializer gives another shape.
    """
    params = {}
    for name, (initializer, key, shape) in leaves.items():
        params[name] = initializer(key, shape, dtype)
        if jnp.shape(params[name]) != shape:
            raise LayerError(kind, f"expects {name}_init to give {shape}, got {jnp.shape(params[name])}")
    return params


def check_names(kind: str, params: Any, names: tuple[str, ...]) -> None:
    """Raises LayerError unless the parameters have these names."""
    if set(params) != set(names):
        raise LayerError(kind, f"expects parameters {' and '.join(names)}, got {sorted(params)}", about_params=True)


def check_shape(kind: str, params: Params, name: str, shape: Shape) -> None:
    """Raises LayerError unless the parameter has this shape."""
    if jnp.shape(params[name]) != shape:
        raise LayerError(kind, f"expects {name} of shape {shape}, got {jnp.shape(params[name])}", about_params=True)


def as_given(params: Params, grads: Params) -> Params:
    """The gradients in the precision of their parameters."""
    return {name: grad.astype(params[name].dtype) for name, grad in grads.items()}
