"""The kink table: the hand rule, jax.grad, jit and vmap give the documented slope; and no kink is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import ACTIVATION_CASES
from loss_cases import LOSS_CASES

from jaxnn.gradcheck.kinks import KINKS, kink_table

DTYPES = ("float32", "bfloat16", "float64")
every_kink = pytest.mark.parametrize("kink", KINKS, ids=lambda kink: f"{kink.name} at {kink.where}")


@every_kink
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_route_gives_the_documented_slope(kink, dtype):
    with jax.enable_x64(dtype == "float64"):
        z = jnp.asarray(kink.point, dtype)
        expected = float(jnp.asarray(kink.slope, dtype))
        grad = jax.grad(kink.value)
        among = jnp.stack([z - 1, z, z + 1])
        for route in (kink.rule, grad):
            assert float(route(z)) == expected
            assert float(jax.jit(route)(z)) == expected
            assert float(jax.vmap(route)(among)[1]) == expected
            assert float(jax.jit(jax.vmap(route))(among)[1]) == expected


@every_kink
def test_the_slopes_on_both_sides(kink):
    with jax.enable_x64(True):
        z, h = jnp.float64(kink.point), 2.0**-20
        left, right = ((kink.value(z + step) - kink.value(z)) / step for step in (-h, h))
        np.testing.assert_allclose([left, right], [kink.left, kink.right], rtol=0, atol=1e-9)
    assert min(kink.left, kink.right) <= kink.slope <= max(kink.left, kink.right)
    assert kink.left != kink.right


@every_kink
def test_nan_in_nan_out(kink):
    assert np.isnan(kink.value(jnp.float32(jnp.nan)))


GRID = jnp.linspace(-3.0, 3.0, 49)  # holds 0 and ±1, where kinks are


def jumps(f):
    """The points of the grid at which the slope of f from the left is not that from the right."""
    slope = jax.jit(jax.vmap(jax.grad(f)))
    eps = 2.0**-12
    before, after = slope(GRID - eps), slope(GRID + eps)
    return [float(z) for z in GRID[jnp.abs(after - before) > 0.05]]


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
            one = lambda z, value=value: value(jnp.stack([z, 0 * z])[None], jnp.zeros(1, jnp.int32))[0]
            found |= {case.loss.name} if jumps(one) else set()
        for target in (0.0, 1.0, -1.0) * (not case.classes):
            one = lambda z, value=value, target=target: value(z.reshape(1, 1), jnp.full((1, 1), target))[0]
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
