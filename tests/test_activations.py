import functools
import pydoc
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import ACTIVATION_CASES, ActivationCase

from jaxnn import Activation, activations

FLOAT64 = 1e-12  # of the largest slope: a few roundings
FLOAT32 = 1e-5  # likewise, with room for the elementary functions
DIFFERENCES = 1e-6  # truncation (1e-5)² and rounding 1e-16/1e-5 of central differences
BFLOAT16_FACTOR = 2.0  # the slope from a rounded h against jax.grad's, both measured from float32
STEP = 1e-5  # of central differences

NEAR = np.linspace(-8, 8, 40)  # without 0, where slopes may jump
MIDDLE = np.array([-700, -90, -30, -1e-3, 0.0, 1e-3, 30, 90, 700])
FAR = {"float64": 1e9, "float32": 1e9, "bfloat16": 1e9, "float16": 6e4}
POINTS = {dtype: np.concatenate([NEAR, MIDDLE, [-far, far, -np.inf, np.inf, np.nan]]) for dtype, far in FAR.items()}
LIMITED = slice(-5, -3)  # where POINTS holds ±far, ±∞ and NaN
INFINITE = slice(-3, -1)
ZERO = NEAR.size + 4

every_case = pytest.mark.parametrize("case", ACTIVATION_CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", FAR)


class Measured(NamedTuple):
    """What one activation makes of some points; all NumPy, in the dtype of the points."""

    value: np.ndarray
    slope: np.ndarray
    auto: np.ndarray
    second: np.ndarray


@jax.jit
def measured(z):
    """Every activation in one program: the suite compiles once per dtype."""

    def measure(activation):
        h = activation.value(z)
        derivative = jax.grad(activation.value)
        auto, second = jax.vmap(derivative)(z), jax.vmap(jax.grad(derivative))(z)
        return Measured(h, activation.slope(z, h), auto, second)

    return {case.name: measure(case.activation) for case in ACTIVATION_CASES}


@functools.cache
def table(dtype: str, shift: float = 0.0) -> dict[str, Measured]:
    with jax.enable_x64(dtype == "float64"):
        return jax.tree.map(np.asarray, measured(jnp.asarray(POINTS[dtype] + shift, dtype)))


def differences(case: ActivationCase, what: str, where) -> np.ndarray:
    above, below = (getattr(table("float64", shift)[case.name], what)[where] for shift in (STEP, -STEP))
    return (above - below) / (2 * STEP)


def worst(slope, truth, where=slice(0, NEAR.size)):
    return np.max(np.abs(slope[where].astype(np.float64) - truth[where].astype(np.float64)))


def test_every_public_name_is_in_the_table():
    records = {name for name, value in vars(activations).items() if isinstance(value, Activation)}
    assert {case.name for case in ACTIVATION_CASES} == set(activations.__all__) == records | {"leaky_relu"}
    assert all(case.name == case.activation.name for case in ACTIVATION_CASES)


@every_case
def test_help_shows_the_formulas_of_the_table(case: ActivationCase):
    """`help(relu)`, as `relu?` in a notebook: what the module's table says, and the source."""
    rows = dict(line.split(maxsplit=1) for line in reversed(activations.__doc__.splitlines()) if " " in line.strip())
    name = case.name + "(λ)" * (case.name == "leaky_relu")
    value, slope, *source = re.split(" {2,}", rows[name])
    text = pydoc.render_doc(case.activation, renderer=pydoc.plaintext)
    for part in (f"σ(z) = {value}, dh/dz = {slope}", *(f"Source: {it.removesuffix('.')[:-7]}" for it in source)):
        assert part in text, f"{part!r} is not in {text}"
    assert repr(case.activation) == case.name + "(negative_slope=0.2)" * (case.name == "leaky_relu")
    assert "Attributes:" in pydoc.render_doc(Activation, renderer=pydoc.plaintext)


@every_case
def test_value_is_the_formula(case: ActivationCase):
    value = table("float64")[case.name].value
    np.testing.assert_allclose(value[: NEAR.size], [case.formula(z) for z in NEAR], rtol=FLOAT64)


@every_case
def test_value_agrees_with_jax(case: ActivationCase):
    twin = case.twin(jnp.asarray(NEAR, jnp.float32))
    np.testing.assert_allclose(table("float32")[case.name].value[: NEAR.size], twin, rtol=FLOAT32)


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", FLOAT64), ("float32", FLOAT32)])
def test_slope_is_the_gradient_of_the_value(case: ActivationCase, dtype: str, tolerance: float):
    measured = table(dtype)[case.name]
    finite = np.isfinite(POINTS[dtype])
    assert np.all(np.isfinite(measured.slope[finite]))
    assert worst(measured.slope, measured.auto, finite) <= tolerance * np.max(np.abs(measured.auto[finite]))


@every_case
def test_slope_in_bfloat16_is_no_further_from_float32_than_autodiff(case: ActivationCase):
    with jax.enable_x64(False):
        z = jnp.asarray(NEAR, jnp.bfloat16).astype(jnp.float32)  # the points that bfloat16 saw
        truth = np.asarray(case.activation.slope(z, case.activation.value(z)))
    rough = table("bfloat16")[case.name]
    one_rounding = float(jnp.finfo("bfloat16").eps) * np.max(np.abs(truth))
    assert worst(rough.slope, truth) <= BFLOAT16_FACTOR * worst(rough.auto, truth) + one_rounding


@every_case
def test_slope_is_the_central_difference(case: ActivationCase):
    where = slice(0, NEAR.size)
    slope = table("float64")[case.name].slope[where]
    np.testing.assert_allclose(slope, differences(case, "value", where), rtol=0, atol=DIFFERENCES)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus", "silu", "gelu"])
def test_smooth_activations_have_their_second_derivative(name: str):
    # At 0 too, where a softplus made of max and abs would have second derivative 0 for 1/4.
    (case,) = (case for case in ACTIVATION_CASES if case.name == name)
    where = [*range(NEAR.size), ZERO]
    second = table("float64")[name].second[where]
    np.testing.assert_allclose(second, differences(case, "slope", where), rtol=0, atol=DIFFERENCES)


@every_case
def test_slopes_jump_where_the_table_says_and_nowhere_else(case: ActivationCase):
    jump = table("float64", 1e-9)[case.name].slope[ZERO] - table("float64", -1e-9)[case.name].slope[ZERO]
    assert [place for place, _ in case.activation.kinks] == ([0.0] if jump > 0.1 else [])
    assert jump == pytest.approx(0.0, abs=1e-8) or jump > 0.1


@every_case
@every_dtype
def test_at_a_kink_slope_and_autodiff_follow_the_table(case: ActivationCase, dtype: str):
    measured = table(dtype)[case.name]
    for _, expected in case.activation.kinks:
        assert measured.slope[ZERO] == measured.auto[ZERO] == np.asarray(expected, measured.slope.dtype)
    assert measured.slope[ZERO] == pytest.approx(float(measured.auto[ZERO]))


def test_the_kink_conventions():
    assert activations.relu.kinks == ((0.0, 0.0),)
    assert activations.leaky_relu(0.3).kinks == ((0.0, 0.3),)


@every_case
@every_dtype
def test_nan_in_nan_out_and_the_dtype_stays(case: ActivationCase, dtype: str):
    measured = table(dtype)[case.name]
    assert measured.value.dtype == measured.slope.dtype == dtype
    np.testing.assert_array_equal(np.isnan(measured.value), np.isnan(POINTS[dtype]))


@every_case
@every_dtype
def test_far_out_and_at_infinity_values_and_slopes_are_at_their_limits(case: ActivationCase, dtype: str):
    measured, rounding = table(dtype)[case.name], float(jnp.finfo(dtype).eps)
    values, slopes = np.array(case.limits[:2]), np.array(case.limits[2:])
    lines = slopes * np.array([-FAR[dtype], FAR[dtype]])  # where σ has no bound it ends as a line
    far = np.where(np.isinf(values), lines, values)
    np.testing.assert_allclose(measured.value[LIMITED].astype(float), far, rtol=rounding)
    np.testing.assert_allclose(measured.slope[LIMITED].astype(float), slopes, rtol=rounding)
    np.testing.assert_allclose(measured.auto[LIMITED].astype(float), slopes, rtol=rounding)
    np.testing.assert_allclose(measured.value[INFINITE].astype(float), values)
    np.testing.assert_allclose(measured.slope[INFINITE].astype(float), slopes, rtol=rounding)


@every_case
def test_leak_is_the_slope_at_minus_infinity_of_rectifiers_only(case: ActivationCase):
    rectifier = case.limits[1] == np.inf and case.name != "identity"
    assert case.activation.leak == (case.limits[2] if rectifier else None)


@every_case
def test_eager_and_under_vmap_it_is_the_same(case: ActivationCase):
    z = jnp.asarray(NEAR, jnp.float32).reshape(5, 8)
    h = case.activation.value(z)
    rows = jax.vmap(case.activation.slope)(z, jax.vmap(case.activation.value)(z))
    compiled = table("float32")[case.name]
    fused = {"rtol": 1e-6, "atol": 1e-7}  # a compiled program rounds at other places
    np.testing.assert_allclose(h.ravel(), compiled.value[: NEAR.size], **fused)
    np.testing.assert_allclose(rows.ravel(), compiled.slope[: NEAR.size], **fused)


def test_equal_calls_give_equal_records():
    leaky_relu = activations.leaky_relu
    assert leaky_relu(0.25) == leaky_relu(negative_slope=0.25) != leaky_relu(0.5)
    assert hash(leaky_relu(0.25)) == hash(leaky_relu(negative_slope=0.25))
    assert leaky_relu() == leaky_relu(0.01)
    assert leaky_relu(0) is leaky_relu(0.0) is activations.relu


@pytest.mark.parametrize(
    ("negative_slope", "error"),
    [(-0.1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("0.1", TypeError)],
)
def test_leaky_relu_refuses_what_is_no_slope(negative_slope, error):
    with pytest.raises(error, match="leaky_relu: negative_slope"):
        activations.leaky_relu(negative_slope)
