"""Cores as devices: the mesh, and recurrent layers whose gradients the devices sum once a step."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from by_numpy import by_numpy
from draws import drawn
from hlo import collectives
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from laws import FLOAT64, close

from jaxnn import backprop, bidirectional, dense, gru, losses, lstm, rnn, serial
from jaxnn.spmd import cores as module
from jaxnn.spmd.cores import cores

SCRIPT = """
import os, sys, jax, jaxnn
from jaxnn.spmd.cores import cores
mesh = cores(*map(int, sys.argv[1:]))
print(mesh.size, mesh.axis_names, mesh.axis_types[0].name, len(jax.devices()))
try:
    cores(7)
except RuntimeError as error:
    print(error)
"""


def run(*args, **env):
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS",)}
    command = [sys.executable, "-c", SCRIPT, *args]
    return subprocess.run(command, env=environment | env, capture_output=True, text=True, check=True).stdout.split("\n")


def test_a_mesh_is_made_before_anything_runs():
    """The setting counts more than XLA's flag, in JAX 0.10 and in JAX 0.12."""
    made, error, *_ = run("3", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert made == "3 ('data',) Auto 3"
    assert error == (
        "placement.cores: expected 7 CPU devices, but JAX runs with 3 CPU devices; call placement.cores before "
        "anything runs, or set JAX_NUM_CPU_DEVICES=7 or XLA_FLAGS=--xla_force_host_platform_device_count=7 in the "
        "environment"
    )


@pytest.mark.long
def test_the_number_is_that_of_the_environment_or_of_the_cores():
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert run()[0].startswith(f"{allowed} ")
    assert run(JAX_NUM_CPU_DEVICES="5")[0] == "5 ('data',) Auto 5"
    assert run("2", JAX_NUM_CPU_DEVICES="5")[0] == "2 ('data',) Auto 2"


def test_devices_that_are_there_are_enough():
    mesh = cores(1)
    assert (mesh.size, mesh.axis_names, mesh.axis_types) == (1, ("data",), (AxisType.Auto,))
    with pytest.raises(RuntimeError, match=rf"expected 99 CPU devices, but JAX runs with {len(jax.devices())} CPU"):
        cores(99)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [(0, ValueError, "at least 1, got 0"), (True, TypeError, "whole number"), (2.0, TypeError, "whole number")],
)
def test_bad_input(n, error, message):
    with pytest.raises(error, match=message):
        cores(n)


def test_an_accelerator_is_named(monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
    with pytest.raises(RuntimeError, match=r"JAX computes on gpu here.*JAX_PLATFORMS=cpu"):
        cores(1)


# ---------------------------------------------------------------- recurrent layers

DEVICES = 2
NETS = {
    "lstm": lstm(2, returns="last"),
    "gru": gru(2, returns="last"),
    "rnn": rnn(2, returns="last"),
    "lstm, recomputed": lstm(2, returns="last", recompute=True),
    "bidirectional": bidirectional(gru(1, returns="last")),
}


@pytest.mark.parametrize("axes", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", [name if name == "lstm" else pytest.param(name, marks=pytest.mark.long) for name in NETS]
)
def test_gradients_of_a_recurrent_layer_are_summed_over_devices_once(name, axes):
    """One all-reduce, outside of the loop over time: also where the mesh is known from the data alone."""
    if len(jax.devices()) < DEVICES:
        pytest.skip("needs two devices")
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axes,), devices=jax.devices()[:DEVICES])
    net, loss = serial(NETS[name], dense(3)), losses.softmax_cross_entropy
    length = 11  # more than the steps of one pass of the loop
    with jax.enable_x64(True):
        params, state = drawn(net, (length, 2), "float64")
        draw = np.random.default_rng(0)
        x, labels = draw.normal(size=(4, length, 2)), draw.integers(0, 3, 4).astype(np.int32)
        take = lambda params, x, labels: backprop(net, loss)(params, state, x, labels).grads
        lies = NamedSharding(mesh, P("data"))
        there = jax.device_put(params, NamedSharding(mesh, P())), *jax.device_put((x, labels), lies)
        with jax.set_mesh(mesh):
            program = jax.jit(take).lower(*there).compile()
        assert {depth for depth, _ in collectives(program.as_text())} == {0}
        assert len(collectives(program.as_text())) <= 1 + (axes is AxisType.Explicit)
        close(program(*there), by_numpy(take)(params, x, labels), FLOAT64, name)
