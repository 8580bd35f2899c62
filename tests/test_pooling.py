"""Pooling against flax and loops in NumPy; ties, the infinite and NaN; what it refuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from laws import FLOAT32, FLOAT64, close, evaluated

from jaxnn import autodiff_twin, avg_pool, global_avg_pool, global_max_pool, max_pool, serial, upsample
from jaxnn.layers.convolution.windows import windows_on

SETTINGS = {
    "tiles": ((6, 4, 2), (2, 2), None, "valid"),
    "inputs left over": ((5, 7, 2), (2, 3), None, "valid"),
    "overlap": ((7, 6, 1), (3, 2), (2, 1), "valid"),
    "gaps": ((8, 7, 1), (2, 2), (3, 3), "valid"),
    "same": ((7, 6, 2), (3, 3), (2, 2), "same"),
    "padded tiles": ((5, 4, 2), (3, 2), None, ((1, 2), (0, 1))),
    "one dimension": ((9, 3), (3,), (1,), "same"),
    "causal": ((5, 2), (3,), (1,), "causal"),
    "three dimensions": ((4, 3, 5, 2), (2, 3, 2), (2, 1, 1), "valid"),
}
every_setting = pytest.mark.parametrize("name", SETTINGS)
POOLS = {
    "max": lambda *how: max_pool(how[0], stride=how[1], padding=how[2]),
    "mean": lambda *how: avg_pool(how[0], stride=how[1], padding=how[2]),
    "mean, no padding": lambda *how: avg_pool(how[0], stride=how[1], padding=how[2], count_include_pad=False),
}


def values(layer, x):
    return np.asarray(evaluated(lambda x: layer.forward({}, (), x)[0])(x))


def back(layer, x, delta=None):
    """(y, δ_in, tape), by default for a δ of ones."""

    def both(x):
        y, _, tape = layer.forward({}, (), x)
        return y, layer.backward({}, tape, jnp.ones_like(y) if delta is None else delta)[0], tape

    return jax.tree.map(np.asarray, evaluated(both)(x))


def given(name, dtype="float32"):
    shape, window, stride, padding = SETTINGS[name]
    return normal(2, *shape, seed=3, dtype=dtype), (window, stride, padding)


def seen(x, window, stride, padding):
    """(position, the inputs that its window sees, in row-major order) by loops."""
    windows = windows_on("pool", x.shape[1:-1], window, stride or window, (1,) * len(window), padding)
    for p in itertools.product(*map(range, windows.positions)):
        places = []
        for k in itertools.product(*map(range, window)):
            q = tuple(s * i + j - a for i, j, s, (a, _) in zip(p, k, windows.stride, windows.padding, strict=True))
            if all(0 <= at < n for at, n in zip(q, windows.inputs, strict=True)):
                places.append(q)
        yield p, places


@every_setting
@pytest.mark.parametrize("pool", POOLS)
def test_values_and_deltas_are_those_of_loops(name, pool):
    """A third of the inputs are equal to others: the first winner takes all."""
    with jax.enable_x64(True):
        x, how = given(name, "float64")
        x = x.round() + 0.0  # ties are many
        layer = POOLS[pool](*how)
        delta = normal(*jax.eval_shape(lambda x: layer.forward({}, (), x)[0], x).shape, seed=4, dtype="float64")
        y, got, _ = back(layer, x, delta)
        expected, delta_in = np.zeros(y.shape), np.zeros(x.shape)
        for p, places in seen(x, *how):
            inputs = np.stack([x[(slice(None), *q)] for q in places], 1)  # [N, k, C]
            out = delta[(slice(None), *p)]
            if pool == "max":
                expected[(slice(None), *p)] = inputs.max(1)
                for (n, c), first in np.ndenumerate(inputs.argmax(1)):
                    delta_in[(n, *places[first], c)] += out[n, c]
                continue
            count = len(places) if "no padding" in pool else np.prod(how[0])
            expected[(slice(None), *p)] = inputs.sum(1) / count
            for q in places:
                delta_in[(slice(None), *q)] += out / count
        _, by_jax, _ = back(autodiff_twin(layer), x, delta)
        close((y, got, by_jax), (expected, delta_in, delta_in), FLOAT64, "loops")


@every_setting
def test_values_are_flax_s(name):
    linen = pytest.importorskip("flax.linen", reason="flax is the oracle")
    x, (window, stride, padding) = given(name)
    if padding == "causal":
        padding = ((window[0] - 1, 0),)
    theirs = {"window_shape": window, "strides": stride or window}
    theirs["padding"] = padding.upper() if isinstance(padding, str) else padding
    with jax.numpy_dtype_promotion("standard"):  # flax divides by a whole number
        pairs = (
            (max_pool, linen.max_pool, {}),
            (avg_pool, linen.avg_pool, {}),
            (avg_pool, linen.avg_pool, {"count_include_pad": False}),
        )
        expected = evaluated(lambda x: [pool(x, **theirs, **how) for _, pool, how in pairs])(x)
    for (pool, _, how), other in zip(pairs, expected, strict=True):
        close(values(pool(window, stride=stride, padding=padding, **how), x), other, FLOAT32, "flax")


def both_deltas(layer, x):
    """δ_in for a δ of ones, by hand and by jax.grad."""
    return [back(net, x)[1] for net in (layer, autodiff_twin(layer))]


@pytest.mark.parametrize("value", [0.0, -1.0, -jnp.inf, jnp.inf])
@pytest.mark.parametrize("padding", ["valid", ((1, 1), (1, 1))], ids=["valid", "padded"])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2)], ids=str)
def test_where_all_are_equal_the_first_on_the_input_wins(value, padding, stride):
    x = np.full((1, 4, 4, 1), value, np.float32)
    expected = np.zeros(x.shape, np.float32)
    for _, places in seen(x, (2, 2), stride, padding):
        expected[(0, *places[0], 0)] += 1
    for delta_in in both_deltas(max_pool((2, 2), stride=stride, padding=padding), x):
        assert np.array_equal(delta_in, expected)


def test_global_max_pool_s_first_winner():
    x = np.array([[[0, 1], [2, 1], [2, 1]]], np.float32)
    for delta_in in both_deltas(global_max_pool(), x):
        assert delta_in[0].tolist() == [[0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    "layer",
    [max_pool((2, 2)), avg_pool((2, 2)), global_max_pool(), global_avg_pool(), upsample((2, 2))],
    ids=lambda layer: layer.kind,
)
def test_nan_stays_in_its_window(layer):
    x = normal(1, 4, 4, 2)
    x[0, 3, 2, 1] = np.nan
    bad = np.isnan(np.asarray(jax.jit(lambda x: layer.forward({}, (), x)[0])(x)))
    where = np.argwhere(bad[0])
    assert len(where) == (4 if layer.kind == "upsample" else 1)
    assert set(where[:, -1]) == {1}


def test_windows_of_more_than_a_byte():
    _, delta_in, tape = back(max_pool((17, 17), stride=(3, 3)), normal(2, 20, 20, 1))
    assert tape[0].dtype == jnp.int32
    assert (delta_in.sum((1, 2, 3)) == 4).all()


def test_upsample_repeats():
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)
    assert np.array_equal(values(upsample((2, 3)), x), np.repeat(np.repeat(x, 2, 1), 3, 2))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_settings_that_cannot_be_are_refused(pool):
    name = pool.__name__
    for build, error, says in (
        (lambda: pool(2), TypeError, "window must be a tuple"),
        (lambda: pool((2, 0)), ValueError, r"window\[1\] must be at least 1"),
        (lambda: pool((2, 2), stride=0), ValueError, "stride must be at least 1"),
        (lambda: pool((2, 2), padding=((2, 0), (0, 0))), ValueError, "padding must be less than the window"),
        (lambda: pool((2, 2), padding="SAME"), ValueError, "padding must be one of 'same'"),
    ):
        with pytest.raises(error, match=f"{name}: {says}"):
            build()


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (max_pool((3, 3)), (2, 5, 1), r"max_pool_0' has a window of \(3, 3\) that is larger than an input of \(2, 5\)"),
        (avg_pool((3,)), (2, 1), r"avg_pool_0' has a window of \(3,\)"),
        (max_pool((2, 2)), (28, 28), r"max_pool_0' expects x \[N, D₁, D₂, C\]"),
        (global_max_pool(), (5,), r"global_max_pool_0' expects x \[N, \*D, C\]"),
        (global_avg_pool(), (5,), r"global_avg_pool_0' expects x \[N, \*D, C\]"),
        (upsample((2, 2)), (5, 1), r"upsample_0' expects x \[N, D₁, D₂, C\]"),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_inputs_that_do_not_fit_are_refused_by_name(layer, shape, says):
    with pytest.raises(ValueError, match=f"layer '{says}"):
        serial(layer, layer).init(0, shape)
