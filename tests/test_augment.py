"""Augmentation: against NumPy, SciPy and counted moments; exact where nothing is interpolated."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

from jaxnn import augment
from jaxnn.augment.distortions import _smoothing, displacements

FLOAT32_ROUNDING = 1e-5  # of pixels in 0..1, whose places are rounded at up to 28
KEY = jax.random.key(3)
STRONG = {
    "shift": augment.shift(2.5),
    "rotate": augment.rotate(20),
    "scale": augment.scale(0.3),
    "shear": augment.shear(15),
    "affine": augment.affine(2, 10, 0.1, 5, fill=0.5),
    "elastic": augment.elastic(20.0, 3.0),
    "deform": augment.deform(10.0, 3.0, 1, 10, 0.1, 5, fill=0.5),
    "noise": augment.noise(0.1),
    "compose": augment.compose(augment.elastic(20.0, 3.0), augment.rotate(5), augment.noise(0.1)),
}
each = pytest.mark.parametrize("name", STRONG)


def images(n=3, h=9, w=8, c=2, dtype="float32"):
    return np.random.default_rng(0).random((n, h, w, c)).astype(dtype)


COMPILED = {name: jax.jit(f) for name, f in STRONG.items()}  # compiled once for all tests: threefry takes seconds


def run(f, x):
    return np.asarray(jax.jit(f)(KEY, x))


def resampled(x, points, fill=0.0):
    return np.asarray(evaluated(lambda x, points: augment.resample(x, points, fill=fill))(x, points))


def places(inverse, offset, h=9, w=8):
    """Those of an affine map, of three images alike."""
    maps = (np.broadcast_to(np.asarray(part, np.float32), (3, *np.shape(part))) for part in (inverse, offset))
    return evaluated(lambda inverse, offset: augment.affine_points(inverse, offset, h, w))(*maps)


# ---------------------------------------------------------------- laws of every augmentation


@each
def test_pure_in_the_key(name):
    x, f = images(), COMPILED[name]
    once, again, other = f(KEY, x), f(KEY, x), f(jax.random.key(4), x)
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)
    assert not np.allclose(once, x)


@each
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_keeps_shape_and_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        spec = jax.ShapeDtypeStruct((3, 9, 8, 2), dtype)
        y = jax.eval_shape(STRONG[name], jax.random.key(0), spec)
    assert (y.shape, y.dtype) == (spec.shape, spec.dtype)


@pytest.mark.parametrize("name", ["affine", "elastic", "deform"])
def test_bfloat16_is_float32_rounded(name):
    x = images(dtype=jnp.bfloat16)
    y = COMPILED[name](KEY, x)
    np.testing.assert_array_equal(y, COMPILED[name](KEY, x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["affine", "elastic", "compose"])
def test_vmap_is_a_loop(name):
    stacked, keys = np.stack([images(), 1 - images()]), jax.random.split(KEY, 2)
    loop = np.stack([COMPILED[name](key, batch) for key, batch in zip(keys, stacked, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(STRONG[name]))(keys, stacked), loop, atol=FLOAT32_ROUNDING)


@pytest.mark.parametrize("name", ["affine", "noise"])
def test_jit_changes_nothing_and_a_seed_is_a_key(name):
    np.testing.assert_allclose(STRONG[name](3, images()), COMPILED[name](KEY, images()), atol=FLOAT32_ROUNDING)


@each
def test_numpy_arrays_will_do(name):
    x = images()
    assert jax.eval_shape(lambda key: STRONG[name](key, x), KEY).shape == x.shape


@each
def test_every_image_has_a_draw_of_its_own(name):
    y = np.asarray(COMPILED[name](KEY, np.broadcast_to(images(1), (3, 9, 8, 2))))
    assert all(not np.allclose(y[i], y[j]) for i in range(3) for j in range(i))


@each
def test_a_nan_stays(name):
    x = images()
    x[1, 4, 4, 0] = np.nan
    y = np.asarray(COMPILED[name](KEY, x))
    assert np.isnan(y[1, ..., 0]).any()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()
    assert np.isfinite(y[..., 1]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    "f",
    [
        augment.shift(0),
        augment.rotate(0.0),
        augment.scale(0.0),
        augment.scale((1.0, 1.0)),
        augment.shear(0),
        augment.affine(),
        augment.elastic(0.0, 4.0),
        augment.deform(0.0, 4.0),
        augment.noise(0.0),
        augment.compose(),
        augment.compose(augment.shift(0), augment.elastic(0, 4)),
    ],
)
def test_identity_at_zero_strength(f, dtype):
    x = images(dtype=dtype)
    x[0, 0, 0, 0] = np.nan
    np.testing.assert_array_equal(np.asarray(evaluated(f)(KEY, x), np.float32), np.asarray(x, np.float32))


def test_runs_inside_a_scan():
    x, f = images(), STRONG["compose"]

    def step(total, i):
        return total + f(jax.random.fold_in(KEY, i), x).sum(), None

    total, _ = jax.jit(lambda: jax.lax.scan(step, 0.0, jnp.arange(3)))()
    loop = sum(np.asarray(COMPILED["compose"](jax.random.fold_in(KEY, i), x)).sum() for i in range(3))
    np.testing.assert_allclose(total, loop, rtol=1e-5)


# ---------------------------------------------------------------- resampling


def test_a_pixels_own_place_is_that_pixel():
    x = images()
    x[0, 2, 2, 0], x[0, 5, 5, 1] = np.nan, np.inf
    np.testing.assert_array_equal(resampled(x, places(np.eye(2), np.zeros(2))), x)


def test_a_constant_image_stays_constant_inside():
    x = np.full((1, 9, 8, 1), 0.1, np.float32)
    points = 7 * np.random.default_rng(0).random((1, 50, 50, 2), np.float32)
    compiled = jax.jit(augment.resample)(x, points)
    for y in (resampled(x, points), compiled):
        np.testing.assert_array_equal(y, np.full((1, 50, 50, 1), 0.1, np.float32))


def test_between_pixels_it_is_bilinear():
    x = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32).reshape(1, 2, 2, 1)
    points = [[0.25, 0.75], [0.5, 0.5], [-0.5, 0.0], [-1.0, 0.0], [9.0, 0.0], [np.nan, 0.0]]
    y = np.asarray(jax.jit(augment.resample)(x, np.array([[points]], np.float32), fill=-1.0)).ravel()
    corners = 0.75 * (0.25 * 1 + 0.75 * 2) + 0.25 * (0.25 * 3 + 0.75 * 5)
    np.testing.assert_allclose(y, [corners, 2.75, 0.0, -1.0, -1.0, -1.0], rtol=1e-6)


def test_the_result_may_have_another_size():
    assert jax.eval_shape(augment.resample, images(), jnp.zeros((3, 4, 5, 2))).shape == (3, 4, 5, 2)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, 0), (0, -3), (-1, 2), (9, 0)])
def test_a_move_by_whole_pixels_is_a_roll_with_fill(down, right):
    x = images()
    y = resampled(x, places(np.eye(2), [-down, -right]), fill=0.7)
    rolled = np.roll(x, (down, right), axis=(1, 2))
    rows, columns = np.indices((9, 8)) - np.array([down, right])[:, None, None]
    outside = (rows < 0) | (rows >= 9) | (columns < 0) | (columns >= 8)
    rolled[:, outside] = np.float32(0.7)
    np.testing.assert_array_equal(y, rolled)


def test_shift_moves_down_and_right():
    x = images()
    y = run(augment.shift((2, 2)), x)
    np.testing.assert_array_equal(y[:, 2:, 2:], x[:, :-2, :-2])
    np.testing.assert_array_equal(y[:, :2], np.zeros((3, 2, 8, 2)))


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, -1), (270, 3)])
def test_rotation_by_right_angles_is_rot90(degrees, turns):
    x = images(h=8)
    y = run(augment.rotate((degrees, degrees)), x)
    np.testing.assert_allclose(y, np.rot90(x, turns, axes=(1, 2)), atol=FLOAT32_ROUNDING)


def test_scale_enlarges_and_shear_leans_to_the_right():
    x = np.zeros((1, 9, 9, 1), np.float32)
    x[0, 4, 4] = x[0, 2, 4] = 1  # the centre, and two rows above it
    larger = run(augment.scale((2.0, 2.0)), x)[0, ..., 0]
    assert float(larger[0, 4]) == pytest.approx(1, abs=FLOAT32_ROUNDING)  # now four rows above
    leaning = run(augment.shear((45, 45)), x)[0, ..., 0]
    assert float(leaning[4, 4]) == 1
    assert float(leaning[2, 6]) == pytest.approx(1, abs=FLOAT32_ROUNDING)


CASES = {
    "rotate": ({"rotate": 20.0}, [[math.cos(math.radians(20)), math.sin(math.radians(20))],
                                  [-math.sin(math.radians(20)), math.cos(math.radians(20))]]),
    "scale": ({"scale": 1.3}, [[1 / 1.3, 0], [0, 1 / 1.3]]),
    "shear": ({"shear": 15.0}, [[1, 0], [math.tan(math.radians(15)), 1]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("move", [0.0, 1.25])
def test_affine_maps_agree_with_scipy(name, move):
    ndimage = pytest.importorskip("scipy.ndimage", reason="an independent affine resampling")
    strength, inverse = CASES[name]
    x, inverse = images(h=12, w=11), np.array(inverse)
    exact = {kind: (value, value) for kind, value in strength.items()}
    y = run(augment.affine(shift=(move, move), fill=0.25, **exact), x)
    centre = np.array([5.5, 5.0])
    offset = centre - inverse @ (centre + move)
    for n in range(3):
        for c in range(2):
            theirs = ndimage.affine_transform(
                x[n, ..., c].astype(np.float64), inverse, offset, order=1, mode="grid-constant", cval=0.25
            )
            np.testing.assert_allclose(y[n, ..., c], theirs, atol=FLOAT32_ROUNDING)


def test_affine_is_scaling_then_shearing_then_turning_then_moving():
    ndimage = pytest.importorskip("scipy.ndimage", reason="an independent affine resampling")
    x = images(h=12, w=11)
    y = run(augment.affine((1.5, 1.5), (20.0, 20.0), (1.3, 1.3), (15.0, 15.0)), x)
    inverse = np.linalg.multi_dot([np.array(CASES[name][1]) for name in ("scale", "shear", "rotate")])
    centre = np.array([5.5, 5.0])
    offset = centre - inverse @ (centre + 1.5)
    theirs = ndimage.affine_transform(x[0, ..., 0], inverse, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(y[0, ..., 0], theirs, atol=FLOAT32_ROUNDING)


def test_draws_fill_the_range_that_was_asked_for():
    n = 2000
    ramp = np.broadcast_to(np.arange(21, dtype=np.float32)[None, :, None, None], (n, 21, 9, 1))
    middle = run(augment.shift((-2.0, 3.0)), ramp)[:, 10, 4, 0]  # row 10 shows row 10 − move, away from the border
    moves = 10 - np.asarray(middle)
    assert -2 <= moves.min() < -1.98 < 2.98 < moves.max() <= 3
    assert moves.mean() == pytest.approx(0.5, abs=4 * 5 / math.sqrt(12 * n))
    centred = run(augment.scale(0.5), ramp - 10)[:, 11, 4, 0]  # a row from the centre shows 1 / factor
    logarithms = -np.log(np.asarray(centred))
    assert np.abs(logarithms).max() <= math.log(1.5) + FLOAT32_ROUNDING
    assert logarithms.mean() == pytest.approx(0, abs=4 * math.log(1.5) / math.sqrt(3 * n))


# ---------------------------------------------------------------- elastic distortion


@pytest.mark.parametrize("sigma", [2.0, 4.0])
def test_displacements_have_the_size_and_smoothness_that_was_stated(sigma):
    n, alpha = 3000, 34.0
    draw = jax.jit(lambda key: displacements(key, n, 20, 16, alpha, sigma))
    d = np.asarray(draw(KEY), np.float64)
    assert d.shape == (n, 20, 16, 2)
    variance = (alpha / (2 * sigma)) ** 2 / (3 * math.pi)
    error = 5 * math.sqrt(2 / n)  # five standard errors of a variance from n normal numbers
    np.testing.assert_allclose((d**2).mean(0), variance, rtol=error)  # at the border as in the middle
    for distance in (1, 3, 6):
        law = math.exp(-(distance**2) / (4 * sigma**2))
        down = (d[:, 4, 5] * d[:, 4 + distance, 5]).mean(0) / variance
        right = (d[:, 4, 5] * d[:, 4, 5 + distance]).mean(0) / variance
        np.testing.assert_allclose(down, law, atol=error)
        np.testing.assert_allclose(right, law, atol=error)
    assert abs((d[..., 0] * d[..., 1]).mean()) < error * variance  # rows and columns are independent


def test_the_smoothing_is_a_gaussian_filter():
    ndimage = pytest.importorskip("scipy.ndimage", reason="an independent Gaussian filter")
    a = _smoothing(12, 2.0)
    blurred = ndimage.gaussian_filter1d(np.eye(40), 2.0, axis=0, truncate=4.0, mode="constant")[14:26]
    np.testing.assert_allclose(a @ a.T, blurred @ blurred.T, atol=2e-6)  # the covariance of the smoothed noise


def test_elastic_looks_at_the_displaced_points():
    x = images()
    d = np.asarray(jax.jit(lambda key: displacements(key, 3, 9, 8, 20.0, 3.0))(KEY))
    y = resampled(x, np.moveaxis(np.indices((9, 8), np.float32), 0, -1) + d)
    np.testing.assert_allclose(COMPILED["elastic"](KEY, x), y, atol=FLOAT32_ROUNDING)


# ---------------------------------------------------------------- both in one resampling


def test_deform_is_affine_then_elastic_without_the_second_blur():
    strengths, (alpha, sigma) = (1.0, 8.0, 0.1, 5.0), (8.0, 3.0)
    affine_key, elastic_key = jax.random.split(KEY)
    ramp = np.moveaxis(np.indices((40, 44), np.float32), 0, -1)[None]  # has nothing to blur
    ramp = np.broadcast_to(ramp, (3, *ramp.shape[1:]))
    deform, affine = jax.jit(augment.deform(alpha, sigma, *strengths)), jax.jit(augment.affine(*strengths))
    elastic = jax.jit(augment.elastic(alpha, sigma))
    once, moved = (np.asarray(f(key, ramp)) for f, key in ((deform, KEY), (affine, affine_key)))
    twice = np.asarray(elastic(elastic_key, moved))
    inside = np.s_[:, 12:-12, 12:-12]  # no edge in sight
    assert np.abs(twice - moved)[inside].max() > 0.5
    np.testing.assert_allclose(once[inside], twice[inside], atol=44 * FLOAT32_ROUNDING)
    checks = (ramp.sum(-1, keepdims=True) % 2).astype(np.float32)  # and here there is much
    once = np.asarray(deform(KEY, checks))
    twice = np.asarray(elastic(elastic_key, affine(affine_key, checks)))
    assert once[inside].std() > 1.3 * twice[inside].std()


def test_deform_without_one_is_the_other():
    x = images()
    np.testing.assert_array_equal(run(augment.deform(0, 3, 1, 10, 0.1, 5), x), run(augment.affine(1, 10, 0.1, 5), x))
    np.testing.assert_array_equal(
        run(augment.deform(20.0, 3.0, fill=0.5), x), run(augment.elastic(20.0, 3.0, fill=0.5), x)
    )


# ---------------------------------------------------------------- noise, composition


def test_noise_has_its_standard_deviation():
    x = images(100)
    y = np.asarray(run(augment.noise(0.3), x) - x)
    assert y.std() == pytest.approx(0.3, rel=5 / math.sqrt(2 * y.size))
    assert y.mean() == pytest.approx(0, abs=5 * 0.3 / math.sqrt(y.size))


def test_noise_is_for_any_shape():
    x = images().reshape(3, -1)
    np.testing.assert_array_equal(run(augment.noise(0.3), x) == x, np.zeros(x.shape, bool))


def test_compose_is_one_after_another_with_keys_of_their_own():
    x, names = images(), ("noise", "affine", "noise")
    y = jax.jit(augment.compose(*(STRONG[name] for name in names)))(KEY, x)
    for i, name in enumerate(names):
        x = COMPILED[name](jax.random.fold_in(KEY, i), x)
    np.testing.assert_allclose(y, x, atol=FLOAT32_ROUNDING)


# ---------------------------------------------------------------- mistakes


def test_strengths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="augment: shift must be at least 0"):
        augment.shift(-1)
    with pytest.raises(ValueError, match="augment: rotate must be finite"):
        augment.rotate((0, math.nan))
    with pytest.raises(ValueError, match="a pair is"):
        augment.shift((2, 1))
    with pytest.raises(ValueError, match="or a pair"):
        augment.shift((1, 2, 3))
    with pytest.raises(ValueError, match="scale must be above 0"):
        augment.scale((0, 1))
    with pytest.raises(ValueError, match="shear must be at least 0 and at most 89"):
        augment.shear(90)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        augment.elastic(1.0, 0.0)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        augment.deform(0.0, -1.0, 2)
    with pytest.raises(ValueError, match="std must be at least 0"):
        augment.noise(-0.1)
    with pytest.raises(TypeError, match="expected functions"):
        augment.compose(3)


@each
def test_what_is_not_a_batch_of_images_is_refused(name):
    f = STRONG[name]
    if name != "noise":
        with pytest.raises(
            ValueError, match=r"expects images \[N, H, W, C\], got shape \(3, 9, 8\): x\[\.\.\., None\]"
        ):
            f(KEY, images()[..., 0])
        with pytest.raises(ValueError, match=r"got shape \(3, 144\): x\.reshape\(-1, H, W, C\) for flat images"):
            f(KEY, images().reshape(3, -1))
    with pytest.raises(TypeError, match="expects floats, got int32"):
        f(KEY, np.zeros((3, 9, 8, 1), np.int32))


def test_points_must_fit():
    with pytest.raises(ValueError, match=r"points must be \[3, H, W, 2\]"):
        augment.resample(images(), np.zeros((2, 9, 8, 2), np.float32))
