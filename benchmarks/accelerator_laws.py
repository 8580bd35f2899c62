"""The numbers of an accelerator beside those of the CPU, for rows of tests/cases.py.

y, δ_in and gradients in float32, each leaf normalised by its own maximum: at the highest precision of products the
accelerator's with the CPU's, and by hand with `jax.grad`; at default precision, where float32 products may run in TF32
(a mantissa of 10 bits), the difference is measured and not judged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from cases import Case
from draws import drawn

import jaxnn

FLOAT32 = 1e-5  # of a leaf's maximum: sums in another order, and exp, tanh, erf of another library, over some layers


def line_of(error: Exception) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


class Difference(NamedTuple):
    """The worst leaf of a row: the accelerator's from the CPU's, and by hand from `jax.grad` on the accelerator."""

    name: str
    highest: float
    default: float
    routes: float


def normalised(got: Any, expected: Any) -> float:
    """The largest difference of two trees, each leaf normalised by its own maximum; inf for a NaN."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(leaf, np.float64) for leaf in (a, b))
        if a.size:
            error = np.abs(a - b).max() / (np.abs(b).max() or 1.0)
            worst = max(worst, error if np.isfinite(error) else np.inf)
    return float(worst)


def difference(case: Case, accelerator: Any, cpu: Any) -> Difference:
    """y, δ_in and gradients of a row, by hand and by `jax.grad`, on both devices."""
    layer, x = case.make(), case.inputs(1, 4, np.float32)
    twin = jaxnn.autodiff_twin(layer)
    params, state = drawn(layer, case.in_shape)

    def forward(net: Any, params: Any, state: Any, x: Any) -> Any:
        return net.forward(params, state, x, train=case.train, rng=case.rng)

    y = jax.eval_shape(partial(forward, layer), params, state, x)[0]
    draw = np.random.default_rng(0).normal
    delta = jax.tree.map(lambda leaf: draw(size=leaf.shape).astype(leaf.dtype), y)

    def passes(params: Any, state: Any, x: Any, delta: Any) -> Any:
        found = []
        for net in (layer, twin):
            y, _, tape = forward(net, params, state, x)
            found.append((y, net.backward(params, tape, delta)))
        return found

    def on(device: Any, precision: str) -> Any:
        with jax.default_matmul_precision(precision), jax.default_device(device):
            args = jax.device_put((params, state, x, delta), device)
            return jax.device_get(jax.jit(passes)(*args))

    expected, (hand, auto), rough = on(cpu, "highest")[0], on(accelerator, "highest"), on(accelerator, "default")[0]
    return Difference(case.name, normalised(hand, expected), normalised(rough, expected), normalised(hand, auto))


def differences(rows: Sequence[Case], until: float) -> list[Difference | str | None]:
    """Those of each row, several rows at a time, as most of it is compiling.

    A row that fails gives the error, and one that there was no time for None.
    """
    accelerator, cpu = jax.devices()[0], jax.devices("cpu")[0]

    def one(case: Case) -> Difference | str | None:
        if time.perf_counter() > until:
            return None
        try:
            return difference(case, accelerator, cpu)
        except Exception as error:  # one row must not hide the others
            return f"{case.name}: {line_of(error)}"

    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        return list(pool.map(one, rows))
