"""Type aliases of arrays, trees and functions.

Index letters throughout: `N` batch, `D` features in, `H` features out, `K` classes, `T` time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import chex
import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # a typed PRNG key, `jax.random.key(0)`
Tree: TypeAlias = Any  # any pytree of arrays
Params: TypeAlias = Any  # a pytree of arrays: {"dense_0": {"w": [D, H], "b": [H]}, …}
State: TypeAlias = Any  # a pytree of arrays; () without state
Forward: TypeAlias = tuple[Any, State, Tree]  # y, state, tape
Shape: TypeAlias = tuple[int, ...]
InShape: TypeAlias = Any  # a tuple of ints, or a pytree of jax.ShapeDtypeStruct; never with the batch axis
DType: TypeAlias = chex.ArrayDType
Initializer: TypeAlias = Callable[..., Array]  # (key, shape, dtype) -> array
Schedule: TypeAlias = Callable[[Any], Array]  # step, a traced int -> learning rate
Metric: TypeAlias = Callable[[Array, Array], Array]  # (prediction, target) -> [N]; may have `entries` and `check`


class InitRule(Protocol):
    """`init(key, in_shape, dtype=float32) -> params, state`."""

    def __call__(self, key: Key, in_shape: InShape, dtype: DType = ...) -> tuple[Params, State]: ...


class ForwardRule(Protocol):
    """`forward(params, state, x, *, train=False, rng=None) -> y, state, tape`."""

    def __call__(
        self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None
    ) -> Forward: ...


class BackwardRule(Protocol):
    """`backward(params, tape, delta) -> delta_in, grads`."""

    def __call__(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]: ...
