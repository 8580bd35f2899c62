"""The effect of rounding inside a program, by Monte Carlo arithmetic in float64: its operations are perturbed.

A gradient may be a sum that cancels: that of a bias before batch normalisation is 0, and what is computed is the
rounding error of its terms. Perturbing the arguments does not show how large it is where they do not change the terms.
So the program runs again with every rounded result moved by a unit in its last place, up or down, and every term of a
sum too, since partial sums are rounded. The spread of the outputs is the effect of rounding on them.

The sign is a hash of the bits of the number, its index in the array and the number of the operation: the same inputs
give the same perturbed program, and x − x stays 0.

Source: Parker (1997), "Monte Carlo arithmetic"; Vignes (1978) for the idea of a few perturbed runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.aliases import Array
from jaxnn.gradcheck.replay import Replay
from jaxnn.jaxprs import Program, Values

RUNS = 4  # perturbed programs, for each strength
UNIT = 2.0**-52  # by which a number is moved, relative: one that survives rounding
STRONGER = 16.0  # times, to tell rounding, which grows with it, from a branch that is taken or not
GROWS = 4.0  # times, at least, the effect of rounding then
HASHED = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64
EXACT = {
    "abs", "broadcast_in_dim", "ceil", "clamp", "concatenate", "convert_element_type", "copy", "copy_p", "cummax",
    "cummin", "dynamic_slice", "dynamic_update_slice", "expand_dims", "floor", "gather", "imag", "iota", "max", "min",
    "neg", "optimization_barrier", "pad", "real", "reduce_max", "reduce_min", "reduce_precision", "reshape", "rev",
    "round", "scatter", "select_n", "sign", "slice", "sort", "split", "squeeze", "stop_gradient", "top_k", "transpose",
}  # fmt: skip
SUMS = {
    "add_any", "cholesky", "conv_general_dilated", "cumlogsumexp", "cumprod", "cumsum", "custom_linear_solve",
    "dot_general", "eig", "eigh", "fft", "geqrf", "householder_product", "linear_solve", "lu", "qr", "reduce_prod",
    "reduce_sum", "reduce_window_sum", "scatter-add", "scatter_add", "svd", "triangular_solve", "tridiagonal_solve",
}  # fmt: skip


def perturbed(closed: Program) -> Callable[..., Values]:
    """The function `(seed, unit, *args) -> outputs` of a program in perturbed float64 arithmetic; seed is a uint64."""
    return lambda seed, unit, *args: _Perturbed(seed, unit).run(closed, args)


class _Perturbed(Replay):
    """Moves what is rounded; counts the operations, so that each draws different signs."""

    def __init__(self, seed: Array, unit: Array) -> None:
        self.seed, self.unit, self.operations = seed, unit, 0

    def operation(self, eqn: core.JaxprEqn, inputs: Values) -> Values:
        name = eqn.primitive.name
        outs = super().operation(eqn, list(map(self._moved, inputs)) if name in SUMS else inputs)
        return outs if name in EXACT else list(map(self._moved, outs))

    def _moved(self, x: Any) -> Any:
        dtype = jnp.result_type(x)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return jax.lax.complex(self._moved(jnp.real(x)), self._moved(jnp.imag(x)))
        if dtype != jnp.float64:
            return x
        self.operations += 1
        x = jnp.asarray(x)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint64)
        places = jax.lax.iota(jnp.uint64, max(x.size, 1))[: x.size].reshape(x.shape)
        bits = (bits ^ (places * HASHED[0])) + self.seed * HASHED[1] + np.uint64(self.operations)
        for odd in HASHED[1:]:
            bits = (bits ^ (bits >> np.uint64(29))) * odd
        return x * jnp.where(bits >> np.uint64(63) == 0, 1 + self.unit, 1 - self.unit)


def spread(programs: list[Program], args: Values) -> list[list[np.ndarray]]:
    """The standard deviation under rounding of each output of float64 programs, from a few perturbed runs.

    0 where a stronger perturbation does not move an output further: a branch taken or not, at a kink. The arguments are
    float64, under enable_x64.
    """

    def run(seed: Array, unit: Array, *args: Any) -> list[Values]:
        return [perturbed(program)(seed, unit, *args) for program in programs]

    compiled = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})

    def deviations(unit: float) -> list[list[np.ndarray]]:
        runs = [jax.tree.map(np.asarray, compiled(np.uint64(seed + 1), unit, *args)) for seed in range(RUNS)]
        return [
            [_deviation([found[k][i] for found in runs]) for i in range(len(outs))] for k, outs in enumerate(runs[0])
        ]

    weak, strong = deviations(UNIT), deviations(STRONGER * UNIT)
    return [
        [np.where(b >= GROWS * a, a, 0.0) for a, b in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(weak, strong, strict=True)
    ]


def _deviation(runs: list[np.ndarray]) -> np.ndarray:
    """The standard deviation of each element; 0 where it is not finite in every run."""
    stacked = np.stack(runs)
    return np.asarray(np.std(np.where(np.isfinite(stacked).all(0), stacked, 0), axis=0, ddof=1))
