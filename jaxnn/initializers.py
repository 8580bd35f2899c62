"""Initializers of weights, which keep the size of signals, or of δs, the same from layer to layer.

Every name but `fans` makes a record that is called as `(key, shape, dtype=float32) -> array`; equal settings
make equal initializers:

    >>> import jax
    >>> glorot_uniform()(jax.random.key(0), (784, 30)).shape
    (784, 30)

Kernels are [in, out] (dense) or [*spatial, in, out] (convolution). Where a parameter holds several kernels side by
side, layers draw each separately, with its own fans: `conv` by group, `gru` and `lstm` by gate. Entries have mean 0 and

    name                              variance
    glorot_uniform, glorot_normal     2 / (fan_in + fan_out)
    he_uniform(λ), he_normal(λ)       2 / ((1 + λ²) fan_in)
    lecun_uniform, lecun_normal       1 / fan_in
    uniform(a), normal(σ)             a²/3, σ²

Normal distributions are not truncated. Draws are made in at least float32 and then cast, so that a float16 network
begins with the rounded weights of the same network in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxnn.arrays import in_dtype
from jaxnn.checks import number, whole_number
from jaxnn.compiled import PureFunction
from jaxnn.keys import as_key
from jaxnn.mistakes import several
from jaxnn.records import is_array
from jaxnn.types import Array, DType, Key, Shape

__all__ = [
    "fans",
    "zeros",
    "constant",
    "normal",
    "uniform",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
]
__dir__ = __all__.copy


UNIFORM = 3.0  # U[−a, a) has variance a²/3, so a² = 3 · variance


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out): the number of inputs to an output of this kernel, and of outputs of an input.

    Dense [in, out]: (in, out). Convolution [*spatial, in, out]: (in, out) times the number of taps, ∏ spatial. With G
    groups, give the kernel of one group, [*spatial, in/G, out/G], not the whole, [*spatial, in/G, out].

    Raises:
        ValueError: if the shape has fewer than two axes, or an empty one.

    >>> fans((784, 30)), fans((5, 5, 3, 20))
    ((784, 30), (75, 500))
    """
    shape = several("initializers: the shape", shape, "(784, 30)")
    if len(shape) < 2:
        raise ValueError(
            f"initializers: a kernel is [in, out] or [*spatial, in, out], got shape {tuple(shape)}, which "
            "has no fan_in and fan_out; use zeros(), normal(std) or uniform(limit)"
        )
    *spatial, n_in, n_out = (whole_number(f"each size of the kernel {tuple(shape)}", n, least=1) for n in shape)
    taps = math.prod(spatial)
    return taps * n_in, taps * n_out


# ---------------------------------------------------------------- without fans


class zeros(PureFunction):
    """All zeros, as for biases. The key is not used.

    >>> print(zeros()(None, (3,)))
    [0. 0. 0.]
    """

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return jnp.full(shape, 0.0, dtype)


class constant(PureFunction):
    """All entries equal to `value`. The key is not used.

    Raises:
        ValueError: if the value is not finite.

    >>> print(constant(0.1)(None, (3,)))
    [0.1 0.1 0.1]
    """

    value: float

    def __post_init__(self) -> None:
        self._set(value=number("initializers.constant: value", self.value))

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return jnp.full(shape, self.value, dtype)


class normal(PureFunction):
    """Independent draws from N(0, std²), not truncated.

    Raises:
        ValueError: if std is negative or not finite.

    >>> print(f"{normal(0.01)(jax.random.key(0), (100, 100)).std():.3f}")
    0.010
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        self._set(std=number("initializers.normal: std", self.std, least=0.0))

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _normal(key, shape, dtype, self.std)


class uniform(PureFunction):
    """Independent draws from U[−limit, limit); the standard deviation is limit/√3.

    Raises:
        ValueError: if the limit is negative or not finite.

    >>> print(f"{abs(uniform(0.05)(jax.random.key(0), (100, 100))).max():.3f}")
    0.050
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        self._set(limit=number("initializers.uniform: limit", self.limit, least=0.0))

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _uniform(key, shape, dtype, self.limit)


# ---------------------------------------------------------------- with fans


class glorot_uniform(PureFunction):
    """U[−a, a), a = √(6 / (fan_in + fan_out)), for tanh and sigmoid.

    Constant variance of h from layer to layer needs fan_in, constant variance of δ fan_out: this takes their mean.

    Source: Glorot & Bengio (2010), "Understanding the difficulty of training deep feedforward neural
    networks", eq. 16.

    >>> print(f"{abs(glorot_uniform()(jax.random.key(0), (100, 50))).max():.2f}")  # √(6/150)
    0.20
    """

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _uniform(key, shape, dtype, _scale(UNIFORM, sum(fans(shape)) / 2))


class glorot_normal(PureFunction):
    """N(0, 2 / (fan_in + fan_out)), for tanh and sigmoid.

    Source: Glorot & Bengio (2010), eq. 12.

    >>> print(f"{glorot_normal()(jax.random.key(0), (100, 100)).std():.2f}")  # √(2/200)
    0.10
    """

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _normal(key, shape, dtype, _scale(1.0, sum(fans(shape)) / 2))


class he_uniform(PureFunction):
    """U[−a, a), a = √(6 / ((1 + λ²) fan_in)), for rectifiers of slope λ = `negative_slope` below zero.

    Raises:
        ValueError: if λ is negative or not finite.

    Source: He, Zhang, Ren & Sun (2015), "Delving deep into rectifiers", eq. 15.

    >>> print(f"{abs(he_uniform()(jax.random.key(0), (150, 100))).max():.2f}")  # √(6/150)
    0.20
    """

    negative_slope: float = 0.0

    def __post_init__(self) -> None:
        self._set(negative_slope=number("initializers.he: negative_slope", self.negative_slope, least=0.0))

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _uniform(key, shape, dtype, _scale(UNIFORM * _he_gain(self.negative_slope), fans(shape)[0]))


class he_normal(PureFunction):
    """N(0, 2 / ((1 + λ²) fan_in)), for rectifiers of slope λ = `negative_slope` below zero.

    Half of a symmetric signal's power is lost in a relu; the factor 2 restores it.

    Raises:
        ValueError: if λ is negative or not finite.

    Source: He, Zhang, Ren & Sun (2015), eq. 10 for λ = 0 and eq. 15.

    >>> print(f"{he_normal()(jax.random.key(0), (200, 100)).std():.2f}")  # √(2/200)
    0.10
    """

    negative_slope: float = 0.0

    def __post_init__(self) -> None:
        self._set(negative_slope=number("initializers.he: negative_slope", self.negative_slope, least=0.0))

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _normal(key, shape, dtype, _scale(_he_gain(self.negative_slope), fans(shape)[0]))


class lecun_uniform(PureFunction):
    """U[−a, a), a = √(3 / fan_in), for linear units.

    Source: LeCun, Bottou, Orr & Müller (1998), "Efficient BackProp", section 4.6.

    >>> print(f"{abs(lecun_uniform()(jax.random.key(0), (300, 100))).max():.2f}")  # √(3/300)
    0.10
    """

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _uniform(key, shape, dtype, _scale(UNIFORM, fans(shape)[0]))


class lecun_normal(PureFunction):
    """N(0, 1 / fan_in), for linear units.

    Source: LeCun, Bottou, Orr & Müller (1998), section 4.6.

    >>> print(f"{lecun_normal()(jax.random.key(0), (100, 100)).std():.2f}")  # √(1/100)
    0.10
    """

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        return _normal(key, shape, dtype, _scale(1.0, fans(shape)[0]))


class orthogonal(PureFunction):
    """gain · Q, Q uniform (by Haar's measure) over the matrices with orthonormal rows or columns.

    The kernel is read as a matrix [fan_in, out], its leading axes flattened: its columns are orthonormal if
    it is tall, its rows if it is wide.

    Raises:
        ValueError: if the gain is not above 0, or the shape has fewer than two axes.

    Source: Saxe, McClelland & Ganguli (2014), "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks"; Mezzadri (2007) for the signs that make QR uniform.

    >>> w = orthogonal()(jax.random.key(0), (6, 3))
    >>> print(abs(w.T @ w - jax.numpy.eye(3)).max() < 1e-6)
    True
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        self._set(gain=number("initializers.orthogonal: gain", self.gain, above=0.0))

    def __call__(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> Array:
        fan_in, n_out = fans(shape)[0], shape[-1]
        tall = (max(fan_in, n_out), min(fan_in, n_out))
        q, r = jnp.linalg.qr(jax.random.normal(as_key(key), tall, _at_least_float32(dtype)))
        q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)[None]  # QR alone prefers some signs
        w = q if fan_in >= n_out else q.T
        return (in_dtype(self.gain, w.dtype) * w).reshape(shape).astype(dtype)


# ---------------------------------------------------------------- draws


def _normal(key: Key, shape: Shape, dtype: DType, std: float | Array) -> Array:
    wide = _at_least_float32(dtype)
    return (in_dtype(std, wide) * jax.random.normal(as_key(key), shape, wide)).astype(dtype)


def _uniform(key: Key, shape: Shape, dtype: DType, limit: float | Array) -> Array:
    wide = _at_least_float32(dtype)
    limit = in_dtype(limit, wide)
    return jax.random.uniform(as_key(key), shape, wide, -limit, limit).astype(dtype)


def _scale(numerator: float | Array, fan: float) -> float | Array:
    """√(numerator / fan), where fan is fan_in or the mean of both fans."""
    return jnp.sqrt(numerator / fan) if is_array(numerator) else math.sqrt(numerator / fan)


def _he_gain(negative_slope: float | Array) -> float | Array:
    return 2 / (1 + in_dtype(negative_slope, jnp.result_type(float)) ** 2)


def _at_least_float32(dtype: DType) -> DType:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"initializers draw floats, got dtype {jnp.dtype(dtype).name}")
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
