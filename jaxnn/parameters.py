"""Initialisation and checks of a layer's parameters, and its numeric settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import widest
from jaxnn.errors import LayerError
from jaxnn.records import is_array
from jaxnn.types import Array, DType, Initializer, InShape, Key, Layer, Params, Shape, State, Tree


def drawn(kind: str, dtype: DType, **leaves: tuple[Initializer, Key, Shape]) -> Params:
    """Parameters drawn by their initializers, `w=(w_init, key, shape)`.

    Raises:
        LayerError: if an initializer gives another shape.
    """
    params = {}
    for name, (initializer, key, shape) in leaves.items():
        params[name] = initializer(key, shape, dtype)
        if jnp.shape(params[name]) != shape:
            raise LayerError(kind, f"expects {name}_init to give {shape}, got {jnp.shape(params[name])}")
    return params


def drawn_by_gates(kind: str, dtype: DType, width: int, **leaves: tuple[Initializer, Key, Shape]) -> Params:
    """As `drawn`, but with the last axis in parts of this width, one for each gate, each with its own fans.

    Raises:
        LayerError: if an initializer gives another shape.
    """
    params = {}
    for name, (initializer, key, shape) in leaves.items():
        keys, each = jax.random.split(key, shape[-1] // width), (*shape[:-1], width)
        gates = [initializer(gate_key, each, dtype) for gate_key in keys]
        wrong = [jnp.shape(gate) for gate in gates if jnp.shape(gate) != each]
        if wrong:
            option = f"{name}_init" if name.startswith("w") else "b_init"
            raise LayerError(kind, f"expects {option} to give {each} for each gate, got {wrong[0]}")
        params[name] = jnp.concatenate(gates, axis=-1)
    return params


def no_parameters(layer: Layer, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
    """The `init` of a layer without parameters and state."""
    return {}, ()


def check_names(kind: str, got: Tree, names: tuple[str, ...], what: str = "parameters") -> None:
    """Raises LayerError unless the parameters, or the state, have exactly these names."""
    if not isinstance(got, Mapping) or set(got) != set(names):
        shown = sorted(got) if isinstance(got, Mapping) else repr(got)
        raise LayerError(kind, f"expects {what} {' and '.join(names)}, got {shown}", about_params=what == "parameters")


def check_shape(kind: str, params: Params, name: str, shape: Shape, what: str = "parameters") -> None:
    """Raises LayerError unless the parameter, or the part of the state, has this shape."""
    if jnp.shape(params[name]) != shape:
        complaint = f"expects {name} of shape {shape}, got {jnp.shape(params[name])}"
        raise LayerError(kind, complaint, about_params=what == "parameters")


def check_vectors(kind: str, got: Tree, names: tuple[str, ...], x: Array, what: str = "parameters") -> None:
    """Raises LayerError unless each has an entry for each feature of x."""
    check_names(kind, got, names, what)
    for name in names:
        if got[name].ndim == 1 and got[name].shape[0] != x.shape[-1]:
            raise LayerError(kind, f"expects {got[name].shape[0]} features, got x of shape {x.shape}")
        check_shape(kind, got, name, x.shape[-1:], what)


def as_given(params: Params, grads: Params) -> Params:
    """The gradients in the precision of their parameters."""
    return {name: grad.astype(params[name].dtype) for name, grad in grads.items()}


def constant(value: Any, dtype: DType, f: Callable[[Any], Any] = lambda value: value) -> Any:
    """The value f(setting): a Python number for a Python number, an array of this dtype for a JAX scalar.

    For a scalar, f is computed in the wider of the two precisions.
    """
    if not is_array(value):
        return f(value)
    return f(jnp.asarray(value, widest(value.dtype, dtype))).astype(dtype)
