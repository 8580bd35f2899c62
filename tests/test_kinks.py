"""The kink table: the hand rule, jax.grad, jit and vmap give the documented slope; and no kink is left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import ACTIVATION_CASES
from laws import evaluated
from loss_cases import LOSS_CASES

from jaxnn.gradcheck.kinks import KINKS, kink_table

DTYPES = ("float32", "bfloat16", "float64")
every_kink = pytest.mark.parametrize("kink", KINKS, ids=lambda kink: f"{kink.name} at {kink.where}")


def routes(kink, z):
    """The slope by hand and by jax.grad, of z alone and under vmap of it among others."""
    among = jnp.stack([z - 1, z, z + 1])
    return [f(z) for f in (kink.rule, jax.grad(kink.value))] + [
        jax.vmap(f)(among)[1] for f in (kink.rule, jax.grad(kink.value))
    ]


@functools.cache
def compiled_routes(dtype):
    """Of all kinks, in one program."""
    with jax.enable_x64(dtype == "float64"):
        run = jax.jit(lambda points: [routes(kink, z) for kink, z in zip(KINKS, points, strict=True)])
        return jax.tree.map(float, run([np.asarray(kink.point, jnp.dtype(dtype)) for kink in KINKS]))


@every_kink
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_route_gives_the_documented_slope(kink, dtype):
    """Operation by operation and compiled."""
    expected = float(np.asarray(kink.slope, jnp.dtype(dtype)))
    with jax.enable_x64(dtype == "float64"):
        by_operations = evaluated(functools.partial(routes, kink))(np.asarray(kink.point, jnp.dtype(dtype)))
    assert list(map(float, by_operations)) == [expected] * 4
    assert compiled_routes(dtype)[KINKS.index(kink)] == [expected] * 4


@every_kink
def test_the_slopes_on_both_sides(kink):
    with jax.enable_x64(True):
        z, h, value = np.float64(kink.point), 2.0**-20, evaluated(kink.value)
        left, right = ((value(z + step) - value(z)) / step for step in (-h, h))
        np.testing.assert_allclose([left, right], [kink.left, kink.right], rtol=0, atol=1e-9)
    assert min(kink.left, kink.right) <= kink.slope <= max(kink.left, kink.right)
    assert kink.left != kink.right


@every_kink
def test_nan_in_nan_out(kink):
    assert np.isnan(evaluated(kink.value)(np.float32(np.nan)))


GRID = np.linspace(-3.0, 3.0, 49, dtype=np.float32)  # holds 0 and ±1, where kinks are


def jumps(f):
    """The points of the grid at which the slope of f from the left is not that from the right."""
    slope = evaluated(jax.vmap(jax.grad(f)))
    eps = np.float32(2.0**-12)
    before, after = slope(GRID - eps), slope(GRID + eps)
    return [float(z) for z in GRID[np.abs(after - before) > 0.05]]


def test_no_kink_of_an_activation_is_left_out():
    found = {(case.activation.name, z) for case in ACTIVATION_CASES for z in jumps(case.activation.value)}
    listed = {(kink.name.split("(")[0], kink.point) for kink in KINKS}
    assert found <= listed
    assert {name for name, _ in found} == {"relu", "leaky_relu"}


def test_no_kink_of_a_loss_is_left_out():
    """One prediction against the target 0, 1 or −1, or one of two scores: which of the losses jump?"""
    found = set()
    for case in LOSS_CASES:
        value = case.loss.value
        if case.classes:
            if "distribution" in case.name:
                continue
            one = lambda z, value=value: value(jnp.stack([z, 0 * z])[None], np.zeros(1, np.int32))[0]
            found |= {case.loss.name} if jumps(one) else set()
        for target in (0.0, 1.0, -1.0) * (not case.classes):
            one = lambda z, value=value, target=target: value(z.reshape(1, 1), np.full((1, 1), target, np.float32))[0]
            found |= {case.loss.name} if jumps(one) else set()
    found -= {"binary_cross_entropy", "cross_entropy"}  # probabilities end at 0 and 1: there is no second side
    assert found == {"mae", "hinge", "multiclass_hinge"}
    assert found <= {kink.name for kink in KINKS}


def test_the_table_shows_the_difference():
    table = kink_table().splitlines()
    assert len(table) == len(KINKS) + 1
    assert max(map(len, table)) <= 120
    (relu,) = (line for line in table if line.startswith("relu"))
    assert relu.endswith("jnp.maximum 0.5, jax.nn.relu 0")


def test_the_table_shows_optax():
    pytest.importorskip("optax", reason="optax is not installed")
    (hinge,) = (line for line in kink_table().splitlines() if line.startswith("hinge"))
    assert "optax" in hinge
