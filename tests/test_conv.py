"""Convolution against flax, loops in NumPy and jax.grad over a grid of settings; what it refuses."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn, normal
from laws import FLOAT32, FLOAT64, close, evaluated

from jaxnn import conv, serial
from jaxnn.layers.convolution import algorithms as rules
from jaxnn.layers.convolution import choice
from jaxnn.layers.convolution.choice import CASES, PLAIN, Sizes, computed
from jaxnn.layers.convolution.windows import windows_on

SETTINGS = {
    "same": ((6, 5, 2), (3, 2), {}),
    "valid, strides": ((7, 6, 2), (3, 2), {"stride": (2, 3), "padding": "valid"}),
    "dilated": ((7, 6, 1), (2, 3), {"dilation": (3, 2)}),
    "by hand": ((5, 4, 2), (2, 2), {"stride": 2, "padding": ((1, 0), (2, 1))}),
    "groups": ((4, 4, 4), (3, 3), {"groups": 2}),
    "depthwise": ((4, 4, 4), (2, 2), {"groups": 4, "stride": 2}),
    "one dimension": ((9, 3), (4,), {"stride": 2, "dilation": 2}),
    "causal": ((9, 2), (3,), {"padding": "causal", "dilation": 2}),
    "three dimensions": ((4, 3, 5, 2), (2, 3, 2), {"stride": (1, 2, 2)}),
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


def built(name, features=4, dtype="float32"):
    shape, kernel, how = SETTINGS[name]
    layer = conv(features, kernel, **how)
    params, state = drawn(layer, shape, dtype)
    params["b"] = np.arange(1, features + 1).astype(dtype)
    return layer, params, state, normal(2, *shape, seed=1, dtype=dtype)


def output(layer, params, state, x):
    return evaluated(lambda *args: layer.forward(*args)[0])(params, state, x)


@every_setting
def test_values_are_flax_s(name):
    linen = pytest.importorskip("flax.linen", reason="flax is the oracle")
    layer, params, state, x = built(name)
    _, kernel, how = SETTINGS[name]
    theirs = linen.Conv(
        4,
        kernel,
        strides=how.get("stride", 1),
        padding=how["padding"].upper() if isinstance(how.get("padding"), str) else how.get("padding", "SAME"),
        kernel_dilation=how.get("dilation", 1),
        feature_group_count=how.get("groups", 1),
    )
    expected = evaluated(theirs.apply)({"params": {"kernel": params["w"], "bias": params["b"]}}, x)
    close(output(layer, params, state, x), expected, FLOAT32, "flax")


def by_loops(x, w, b, windows, groups):
    """The formula, one product after another."""
    n, features = x.shape[0], w.shape[-1]
    z = np.zeros((n, *windows.positions, features))
    for p in np.ndindex(*windows.positions):
        for k in np.ndindex(*windows.size):
            at = [
                s * i + d * j - a
                for i, j, s, d, (a, _) in zip(p, k, windows.stride, windows.dilation, windows.padding, strict=True)
            ]
            if not all(0 <= q < size for q, size in zip(at, windows.inputs, strict=True)):
                continue
            for o in range(features):
                first = o * groups // features * w.shape[-2]
                z[(slice(None), *p, o)] += x[(slice(None), *at)][:, first : first + w.shape[-2]] @ w[k][:, o]
    return z + b


@every_setting
def test_values_are_the_formula_s(name):
    with jax.enable_x64(True):
        layer, params, state, x = built(name, dtype="float64")
        _, kernel, how = SETTINGS[name]
        each = lambda value: value if isinstance(value, tuple) else (value,) * len(kernel)
        settings = each(how.get("stride", 1)), each(how.get("dilation", 1)), how.get("padding", "same")
        windows = windows_on("conv", x.shape[1:-1], kernel, *settings)
        expected = by_loops(x, params["w"], params["b"], windows, how.get("groups", 1))
        close(output(layer, params, state, x), expected, FLOAT64, "loops")


def by_chance(seed):
    """A convolution with settings and sizes by chance; None where the kernel does not fit."""
    chance = random.Random(seed)
    rank = chance.choice([1, 2, 2, 3])
    sizes = lambda low, high: tuple(chance.randint(low, high) for _ in range(rank))
    groups = chance.choice([1, 1, 2, 3])
    pairs = tuple((chance.randint(0, 3), chance.randint(0, 3)) for _ in range(rank))
    how = {
        "stride": sizes(1, 3),
        "dilation": sizes(1, 2),
        "padding": chance.choice(["same", "valid", "causal", pairs]),
        "groups": groups,
    }
    layer = conv(groups * chance.randint(1, 2), sizes(1, 4), **how)
    return layer, (*sizes(4, 9), groups * chance.randint(1, 2))


@pytest.mark.parametrize("seed", range(24))
def test_any_settings(seed):
    """backward is jax.vjp of forward, whichever algorithms it chose, and so is the plain rule."""
    layer, shape = by_chance(seed)
    with jax.enable_x64(True):
        try:
            params, state = drawn(layer, shape, "float64")
        except ValueError as error:
            assert "larger than" in str(error)  # noqa: PT017
            return

        x = normal(2, *shape, seed=1, dtype="float64")

        def every(params, x):
            z, pull = jax.vjp(lambda params, x: layer.forward(params, state, x)[0], params, x)
            delta = jnp.asarray(normal(*z.shape, seed=2, dtype="float64"))
            rules = layer.backward, layer.plain.backward
            return [rule(params, layer.forward(params, state, x)[2], delta) for rule in rules], pull(delta)

        by_hand, by_jax = evaluated(every)(params, x)
        for delta_in, grads in by_hand:
            close((grads, delta_in), by_jax, FLOAT64, "hand vs jax.vjp")


PLACES = {  # D, K, stride, dilation, padding
    "same": ((5, 6), (3, 3), (1, 1), (1, 1), "same"),
    "valid": ((5, 6), (2, 3), (1, 1), (1, 1), "valid"),
    "causal": ((5, 6), (3, 2), (1, 1), (2, 2), "causal"),
    "strides": ((7, 8), (3, 3), (2, 3), (1, 1), "same"),
    "strides beyond the window": ((6, 9), (1, 2), (1, 4), (1, 1), "valid"),
    "by hand, more than the window": ((4, 3), (2, 2), (1, 1), (1, 1), ((3, 0), (0, 4))),
    "by hand, before": ((4, 5), (2, 3), (1, 2), (1, 2), ((0, 1), (5, 1))),
    "inputs that no window sees": ((6, 7), (2, 2), (1, 3), (1, 1), "valid"),
    "one tap": ((3, 4), (1, 1), (1, 1), (1, 1), "same"),
    "one column": ((4, 1), (3, 1), (1, 1), (1, 1), "same"),
    "as large as the input": ((3, 4), (3, 4), (1, 1), (1, 1), "valid"),
    "one axis": ((12,), (4,), (1,), (1,), "causal"),
    "one axis, strides": ((9,), (3,), (2,), (2,), "same"),
    "three axes": ((3, 4, 4), (2, 3, 3), (1, 2, 1), (2, 1, 1), "same"),
}


def placed(name, channels=2, groups=1):
    """The windows, and x, w and δ by chance: three examples, five features or four in groups."""
    windows, features = windows_on("conv", *PLACES[name]), 5 if groups == 1 else 4
    draw = np.random.default_rng(0).normal
    shapes = (
        (3, *windows.inputs, channels),
        (*windows.size, channels // groups, features),
        (3, *windows.positions, features),
    )
    return windows, *(draw(size=shape) for shape in shapes)


def agree(windows, ours, plain, *arrays, what):
    """Two algorithms for one convolution."""
    got, expected = evaluated(lambda *arrays: [rule(*arrays, windows) for rule in (ours, plain)])(*arrays)
    close(got, expected, FLOAT64, what)


NEIGHBOURS = [
    (name, together)
    for name, (_, _, stride, dilation, _) in PLACES.items()
    for together in (1, 2, 3, 4)
    if stride[-1] == dilation[-1] == 1 and windows_on("conv", *PLACES[name]).positions[-1] % together == 0
]


@pytest.mark.parametrize(("name", "together"), NEIGHBOURS)
def test_neighbouring_windows_as_one_product(monkeypatch, name, together):
    with jax.enable_x64(True):
        windows, x, w, delta = placed(name)
        monkeypatch.setattr(rules, "neighbours", lambda windows: together)
        agree(windows, rules.by_neighbours, rules.correlate, x, w, what="forward")
        hand = rules.kernel_gradient_by_neighbours
        agree(windows, hand, rules.kernel_gradient, x, delta, what="kernel gradient")


@pytest.mark.parametrize(
    ("width", "taps", "stride", "dilation", "expected"),
    [
        (8, 1, 1, 1, 1),
        (8, 2, 1, 1, 2),
        (8, 4, 1, 1, 2),
        (8, 5, 1, 1, 4),
        (6, 5, 1, 1, 2),
        (7, 5, 1, 1, 1),
        (8, 5, 2, 1, 1),
        (8, 5, 1, 2, 1),
    ],
)
def test_as_many_neighbours_as_are_worth_it(width, taps, stride, dilation, expected):
    windows = windows_on("conv", (5, width), (3, taps), (1, stride), (1, dilation), "same")
    assert rules.neighbours(windows) == expected


@pytest.mark.parametrize(("channels", "groups"), [(2, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize("name", PLACES)
def test_every_algorithm_that_can_gives_what_the_plain_one_gives(name, channels, groups):
    with jax.enable_x64(True):
        windows, x, w, delta = placed(name, channels, groups)
        sizes = Sizes(x.shape[0], channels, delta.shape[-1], windows, groups)
        for which, pair in {"forward": (x, w), "kernel_gradient": (x, delta), "input_gradient": (delta, w)}.items():
            able = [case.algorithm for case in CASES[which] if case.can(sizes)]
            assert able[-1] is getattr(PLAIN, which)
            every = evaluated(lambda *pair, able=able: [computed(each, *pair, sizes) for each in able])(*pair)
            for algorithm, got in zip(able, every, strict=True):
                close(got, every[-1], FLOAT64, algorithm.__name__)


CHOSEN = {  # N, D, C, H, K, stride, padding: what is taken on a CPU for the forward pass and for both gradients
    "wide images": (
        (32, (16, 16), 32, 32, (3, 3), 1, "same"),
        ("correlate", "kernel_gradient_by_products", "input_gradient"),
    ),
    "shrinking": (
        (40, (12, 12), 20, 40, (5, 5), 1, "valid"),
        ("correlate", "kernel_gradient_by_products", "input_gradient_by_products"),
    ),
    "few channels": (
        (64, (16, 16), 3, 16, (3, 3), 1, "same"),
        ("by_neighbours", "kernel_gradient_by_neighbours", "input_gradient_by_products"),
    ),
    "few channels, few windows": (
        (8, (16, 16), 3, 16, (3, 3), 1, "same"),
        ("correlate", "kernel_gradient_by_products", "input_gradient_by_products"),
    ),
    "few channels, strides": (
        (2, (16, 16), 3, 8, (3, 3), 2, "same"),
        ("correlate", "kernel_gradient_by_products", "input_gradient_by_products"),
    ),
    "strides": (
        (2, (8, 8), 8, 8, (3, 3), 2, "same"),
        ("correlate", "kernel_gradient_by_products", "input_gradient_by_products"),
    ),
    "one axis": ((2, (8,), 8, 8, (3,), 1, "same"), ("correlate", "kernel_gradient_by_products", "input_gradient")),
    "depthwise": (
        (2, (8, 8), 8, 8, (3, 3), 1, "same"),
        ("by_taps", "kernel_gradient_by_taps", "input_gradient_by_taps"),
    ),
}

COMPILED = {"wide images", "few channels"}  # the others' algorithms are compiled where the laws are


@pytest.mark.parametrize("name", CHOSEN)
def test_which_algorithm_is_taken_and_what_it_gives(monkeypatch, name):
    """On a CPU: the names of those that are called, and values and gradients as the plain ones have them."""
    (n, inputs, channels, features, kernel, stride, padding), expected = CHOSEN[name]
    called = []
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: cpu(*args))
    spied = lambda algorithm, *args: (called.append(algorithm.__name__), computed(algorithm, *args))[1]
    monkeypatch.setattr(choice, "computed", spied)
    groups = channels if name == "depthwise" else 1
    layer = conv(features, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    params, state = drawn(layer, (*inputs, channels))
    x = normal(n, *inputs, channels, seed=1)
    run = jax.jit if name in COMPILED else evaluated
    z, _, tape = run(layer.forward)(params, state, x)
    delta = normal(*z.shape, seed=2)
    delta_in, grads = run(layer.backward)(params, tape, delta)
    assert tuple(called) == expected
    plain_in, plain = run(layer.plain.backward)(params, tape, delta)
    windows = windows_on("conv", inputs, kernel, (stride,) * len(kernel), (1,) * len(kernel), padding)
    plain_z = run(lambda x, w: rules.correlate(x, w, windows, groups))(x, params["w"])
    close(z, plain_z, FLOAT32, "forward")
    close((delta_in, grads), (plain_in, plain), FLOAT32, "backward")


@pytest.mark.parametrize("examples_at_a_time", [1, 2, 5, 8])
def test_products_are_formed_a_few_examples_at_a_time(monkeypatch, examples_at_a_time):
    """Five examples, so that chunks of two leave one over."""
    windows = windows_on("conv", (6, 5), (3, 2), (2, 1), (1, 2), ((1, 0), (1, 1)))
    draw = np.random.default_rng(0).normal
    delta, w = (draw(size=size).astype("float32") for size in ((5, *windows.positions, 4), (3, 2, 3, 4)))
    one = 4 * int(np.prod(windows.positions)) * 3 * 2 * 3
    monkeypatch.setattr(rules, "CHUNK", examples_at_a_time * one)
    got = jax.jit(lambda delta, w: rules.input_gradient_by_products(delta, w, windows))(delta, w)
    close(got, evaluated(lambda delta, w: rules.input_gradient(delta, w, windows))(delta, w), FLOAT32, "by products")


def test_weights_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    theirs = torch.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 4)).astype(np.float32)
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    w, b = (p.detach().numpy() for p in (theirs.weight, theirs.bias))
    layer = conv(6, (3, 2), stride=2, padding=((1, 1), (1, 1)), groups=2)
    close(output(layer, {"w": np.moveaxis(w, (0, 1), (-1, -2)), "b": b}, (), x), expected, FLOAT32, "PyTorch")


def test_causal_outputs_do_not_see_the_future():
    layer, params, state, x = built("causal")
    moved = x + (np.arange(9) >= 5)[:, None].astype(x.dtype)
    run = evaluated(layer.forward)
    z, later = (np.asarray(run(params, state, x)[0]) for x in (x, moved))
    assert (z[:, :5] == later[:, :5]).all()
    assert (z[:, 5:] != later[:, 5:]).any()


def test_same_keeps_the_size_and_strides_divide_it():
    for n, kernel, stride, dilation in itertools.product((1, 5, 8), (1, 2, 5), (1, 2, 3), (1, 2)):
        windows = windows_on("conv", (n,), (kernel,), (stride,), (dilation,), "same")
        assert windows.positions == (-(-n // stride),)


def test_mixed_precision():
    layer, params, state, x = built("same")
    z, _, tape = evaluated(layer.forward)(params, state, x.astype(jnp.bfloat16))
    delta_in, grads = evaluated(layer.backward)(params, tape, z)
    assert z.dtype == jnp.float32
    assert delta_in.dtype == jnp.bfloat16
    assert {grad.dtype for grad in grads.values()} == {jnp.dtype("float32")}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: conv(0, (3, 3)), ValueError, "conv: features must be at least 1"),
        (lambda: conv(3, 5), TypeError, "conv: kernel must be a tuple"),
        (lambda: conv(3, ()), ValueError, "1, 2 or 3 sizes"),
        (lambda: conv(3, (3, 3, 3, 3)), ValueError, "1, 2 or 3 sizes"),
        (lambda: conv(3, (3, 0)), ValueError, r"conv: kernel\[1\] must be at least 1"),
        (lambda: conv(3, (3, 3), stride=0), ValueError, "conv: stride must be at least 1"),
        (lambda: conv(3, (3, 3), stride=(1, 2, 3)), ValueError, "conv: stride must be one number or 2"),
        (lambda: conv(3, (3, 3), stride=1.5), TypeError, "conv: stride must be a whole number"),
        (lambda: conv(3, (3, 3), dilation=(1, 0)), ValueError, r"conv: dilation\[1\] must be at least 1"),
        (lambda: conv(3, (3, 3), padding="full"), ValueError, "'same', 'valid', 'causal' or pairs, got 'full'"),
        (lambda: conv(3, (3, 3), padding=1), TypeError, "conv: padding must be a name or"),
        (lambda: conv(3, (3, 3), padding=((1, 1),)), ValueError, "each of the 2 spatial axes"),
        (lambda: conv(3, (3, 3), padding=((1, 1), (-1, 1))), ValueError, "must be at least 0"),
        (lambda: conv(3, (3, 3), groups=2), ValueError, "conv: groups must divide the features"),
    ],
)
def test_settings_that_cannot_be_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (conv(3, (5, 5), padding="valid"), (4, 8, 1), r"window of \(5, 5\) that is larger than an input of \(4, 8\)"),
        (conv(3, (3,), dilation=4, padding="valid"), (8, 1), r"\(9,\) with its dilation \(4,\)"),
        (conv(4, (3, 3), groups=2), (5, 5, 3), "expects channels in 2 groups, got 3: 2 must divide them"),
        (conv(3, (3, 3)), (28, 28), r"expects x \[N, D₁, D₂, C\], got x of shape \(1, 28, 28\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(layer, shape, says):
    with pytest.raises(ValueError, match=f"layer 'conv_0'.*{says}"):
        serial(layer).init(0, shape)


def test_another_number_of_channels_is_refused():
    net = serial(conv(3, (3, 3)))
    params, state = jax.eval_shape(lambda: net.init(0, (5, 5, 2)))
    forward = lambda *x: jax.eval_shape(lambda params: net.forward(params, state, jnp.ones(*x)), params)
    with pytest.raises(ValueError, match=r"layer 'conv_0' expects 2 channels, got x of shape \(1, 5, 5, 4\)"):
        forward((1, 5, 5, 4))
    with pytest.raises(ValueError, match="expects float features, got int32"):
        forward((1, 5, 5, 2), jnp.int32)
