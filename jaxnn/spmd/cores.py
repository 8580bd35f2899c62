"""The cores of a CPU as devices: a program on a mesh of them is divided over the cores, as it would be over GPUs."""

from __future__ import annotations

import os
from numbers import Integral

import jax
from jax.sharding import AxisType, Mesh


def cores(n: int | None = None) -> Mesh:
    """A mesh of n CPU devices, one for each core, with one Auto axis "data".

    Call it before anything runs, as the number of devices is fixed when JAX starts its first computation:

        with jax.set_mesh(placement.cores()):
            fit(net, loss, optimizer, data, key=0, epochs=10, batch_size=128)

    Each batch is then divided over the cores, and every gradient is summed over them once. XLA's CPU backend keeps
    small matrix products on one core, so that this pays where a step is many small products in turn: on two cores
    steps of `lstm`, `gru` and `rnn` are 1.48, 1.36 and 1.33 × as fast (benchmarks/RESULTS.md). Networks of dense layers
    lose (0.25 to 0.87): their products occupy the cores already, or take less time than it takes to synchronise them.

    Args:
        n: the number of devices; by default JAX_NUM_CPU_DEVICES if that is in the environment, otherwise the number of
            cores that this process may use.

    Raises:
        RuntimeError: if JAX runs already with fewer CPU devices, or has an accelerator, which it would use instead.
        ValueError, TypeError: if n is not a whole number of at least 1.

    >>> mesh = cores(1)
    >>> mesh.axis_names, mesh.size
    (('data',), 1)
    """
    n = _count(n)
    try:
        jax.config.update("jax_num_cpu_devices", n)
        advice = ""
    except RuntimeError:  # JAX runs already
        advice = (
            "; call placement.cores before anything runs, or set JAX_NUM_CPU_DEVICES="
            f"{n} or XLA_FLAGS=--xla_force_host_platform_device_count={n} in the environment"
        )
    if (backend := jax.default_backend()) != "cpu":
        raise RuntimeError(
            f"placement.cores: JAX computes on {backend} here, not on the cores: set JAX_PLATFORMS=cpu in the "
            "environment to use these, or jax.make_mesh for several accelerators"
        )
    devices = jax.devices("cpu")
    if len(devices) < n:
        few = f"{len(devices)} CPU device{'s' * (len(devices) > 1)}"
        raise RuntimeError(f"placement.cores: expected {n} CPU devices, but JAX runs with {few}{advice}")
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:n])


def _count(n: int | None) -> int:
    if n is None:
        given = jax.config.jax_num_cpu_devices  # −1 where nothing is set
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return given if given > 0 else allowed
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"placement.cores: n must be a whole number of devices, got {n!r}")
    if n < 1:
        raise ValueError(f"placement.cores: n must be at least 1, got {n}")
    return int(n)
