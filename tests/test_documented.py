"""What docstrings say, held to what is so."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy

import jaxnn
from jaxnn import (
    as_custom_vjp,
    backprop,
    batch_norm,
    dense,
    gru,
    losses,
    penalties,
    serial,
    tanh,
)

FLOAT64 = 1e-12

# ---------------------------------------------------------------- the units of δ

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.0, 3.0])
NORMED = serial(dense(4), batch_norm(), dense(2))


def normed_parameters():
    draw = lambda *shape: RNG.normal(size=shape)
    return {
        "dense_0": {"w": draw(3, 4), "b": draw(4)},
        "batch_norm_0": {"scale": draw(4), "shift": draw(4)},
        "dense_1": {"w": draw(4, 2), "b": draw(2)},
    }


def costs(params, z):
    """Cₙ = ½‖yₙ − tₙ‖² from z, the output of the first layer, in NumPy."""
    centred = z - z.mean(0)
    h = params["batch_norm_0"]["scale"] * centred / np.sqrt((centred**2).mean(0) + 1e-5)
    y = (h + params["batch_norm_0"]["shift"]) @ params["dense_1"]["w"] + params["dense_1"]["b"]
    return ((y - T) ** 2).sum(1) / 2


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_a_delta_is_of_the_sum_of_the_costs(weights):
    """Before batch norm of all examples' costs, by central differences; grads are of the mean."""
    with jax.enable_x64(True):
        params = normed_parameters()
        state = jax.tree.map(np.asarray, NORMED.init(0, (3,), np.float64)[1])
        one_pass = backprop(NORMED, losses.half_squared_error, read=("deltas", "delta_norms"))
        out = by_numpy(lambda *args: one_pass(*args, weights=weights))(params, state, X, T)
    w = np.ones(5) if weights is None else weights
    z, step = X @ params["dense_0"]["w"] + params["dense_0"]["b"], 1e-5
    slopes = np.zeros_like(z)
    for place in np.ndindex(*z.shape):
        there, back = z.copy(), z.copy()
        there[place], back[place] = there[place] + step, back[place] - step
        slopes[place] = (w @ costs(params, there) - w @ costs(params, back)) / (2 * step)
    delta = out.readings["deltas"]["dense_0"]
    np.testing.assert_allclose(delta, slopes, rtol=0, atol=1e-7 * np.abs(slopes).max())
    np.testing.assert_allclose(out.readings["delta_norms"]["dense_0"], np.linalg.norm(delta), rtol=FLOAT64)
    np.testing.assert_allclose(out.loss, w @ costs(params, z) / w.sum(), rtol=FLOAT64)
    last = out.readings["deltas"]["dense_1"]
    np.testing.assert_allclose(out.grads["dense_1"]["b"], last.sum(0) / w.sum(), rtol=FLOAT64)
    np.testing.assert_allclose(last, w[:, None] * (out.output - T), rtol=FLOAT64)  # wₙ ∂Cₙ/∂yₙ


def test_a_penalty_is_in_no_delta():
    net, loss = serial(dense(4), tanh, dense(2)), losses.mse
    params, state = net.init(0, (3,))
    x, t = X.astype(np.float32), T.astype(np.float32)
    plain, penal = (
        by_numpy(backprop(net, loss, read=("deltas",), penalty=penalty))(params, state, x, t)
        for penalty in (None, penalties.l2(0.3))
    )
    assert penal.loss > plain.loss + 0.1
    jax.tree.map(np.testing.assert_array_equal, penal.readings, plain.readings)


# ---------------------------------------------------------------- what as_custom_vjp forbids

NETS = {"dense": (serial(dense(3), tanh, dense(2)), (4,)), "gru": (serial(gru(2, returns="last"), dense(1)), (3, 2))}


@pytest.fixture(params=NETS)
def pair(request):
    """The cost by as_custom_vjp and by the forward functions alone, and parameters with a direction."""
    net, in_shape = NETS[request.param]
    x = RNG.normal(size=(2, *in_shape))
    with jax.enable_x64(True):
        params = by_numpy(lambda key: net.init(key, in_shape, np.float64)[0])(jax.random.key(1))
        apply = as_custom_vjp(net)
        by_hand = lambda params: (apply(params, (), x)[0] ** 2).sum()
        plain = lambda params: (net.forward(params, (), x)[0] ** 2).sum()
        yield by_hand, plain, params, jax.tree.map(np.cos, params)


def inner(a, b):
    return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))


SECOND_ORDER = {
    "hessian": lambda f: lambda p, v: jax.hessian(f)(p),
    "grad of grad": lambda f: lambda p, v: jax.grad(lambda p: inner(jax.grad(f)(p), v))(p),
    "jvp of grad": lambda f: lambda p, v: jax.jvp(jax.grad(f), (p,), (v,))[1],
    "linearize of grad": lambda f: lambda p, v: jax.linearize(jax.grad(f), p)[1](v),
    "vmap of grad": lambda f: lambda p, v: jax.vmap(jax.grad(f))(jax.tree.map(lambda *x: jnp.stack(x), p, v)),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_gradient_of_as_custom_vjp_can_be_differentiated(name: str, pair):
    by_hand, plain, params, direction = pair
    found, expected = (by_numpy(SECOND_ORDER[name](f))(params, direction) for f in (by_hand, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT64 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    "forward_mode",
    [
        lambda f, p, v: jax.jvp(f, (p,), (v,)),
        lambda f, p, v: jax.linearize(f, p)[1](v),
        lambda f, p, v: jax.jacfwd(f)(p),
    ],
    ids=["jvp", "linearize", "jacfwd"],
)
def test_as_custom_vjp_itself_has_no_forward_mode(forward_mode):
    net, params = dense(2), {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    apply, x = as_custom_vjp(net), np.ones((1, 3), np.float32)
    with pytest.raises(TypeError, match="forward-mode"):
        forward_mode(lambda p: apply(p, (), x)[0].sum(), params, params)
    forward_mode(lambda p: net.forward(p, (), x)[0].sum(), params, params)  # the way that the docstring shows


# ---------------------------------------------------------------- where optimizers' defaults differ

ELSEWHERE = {  # the rule, optax's name, and what the docstring says of optax's defaults
    "adagrad": (jaxnn.adagrad, "adagrad", {"initial_accumulator_value": 0.1, "eps": 1e-7}),
    "rmsprop": (jaxnn.rmsprop, "rmsprop", {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": True, "bias_correction": False}),
    "adam": (jaxnn.adam, "adam", {"eps": 1e-8, "eps_root": 0.0, "b1": 0.9, "b2": 0.999}),
    "adamw": (jaxnn.adamw, "adamw", {"eps": 1e-8, "eps_root": 0.0, "weight_decay": 1e-4, "mask": None}),
    "sgd": (jaxnn.sgd, "sgd", {"momentum": None, "nesterov": False}),
}
SAID = {
    "adagrad": ("begins at 0.1", "δ = 1e-7 is inside", "begins at 0, as here", "δ = 1e-10 is outside"),
    "rmsprop": ("ρ = 0.9, as here", "δ = 1e-8 is inside", "ρ = 0.99 (alpha)", "δ = 1e-8 is outside"),
    "adam": ("δ = 1e-8, at the same place",),
    "adamw": ("λ = 1e-4, in PyTorch λ = 0.01, as here", "every parameter decays", "δ = 1e-8"),
    "sgd": ("v begins at 0; the defaults are theirs",),
}


def said(rule):
    return " ".join(inspect.getdoc(rule).split())


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_said_of_optax_is_so(name: str):
    optax = pytest.importorskip("optax", reason="optax's defaults are read from it")
    rule, theirs, defaults = ELSEWHERE[name]
    assert all(words in said(rule) for words in SAID[name])
    parameters = inspect.signature(getattr(optax, theirs)).parameters
    assert {key: parameters[key].default for key in defaults} == defaults


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_said_of_pytorch_is_so(name: str):
    torch = pytest.importorskip("torch", reason="PyTorch's defaults are read from it")
    ours = {
        "adagrad": ("Adagrad", {"initial_accumulator_value": 0, "eps": 1e-10}),
        "rmsprop": ("RMSprop", {"alpha": 0.99, "eps": 1e-8, "centered": False}),
        "adam": ("Adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
        "adamw": ("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}),
        "sgd": ("SGD", {"momentum": 0, "dampening": 0, "nesterov": False}),
    }
    theirs, defaults = ours[name]
    parameters = inspect.signature(getattr(torch.optim, theirs)).parameters
    assert {key: parameters[key].default for key in defaults} == defaults


SMALL = 1e-5  # a gradient whose root of squares ε is not small beside


def first_update(optimizer, g=SMALL):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = np.ones(1)
        updates, _ = by_numpy(optimizer.update)(np.full(1, g), optimizer.init(jnp.ones(1)), params)
    return float(updates[0])


def test_where_epsilon_stands():
    """The first update of a small gradient, by the formulas that the docstrings give for optax's defaults."""
    optax = pytest.importorskip("optax", reason="optax is what is spoken of")
    eps, g = 1e-6, SMALL
    assert first_update(jaxnn.adagrad(1.0, eps=eps)) == pytest.approx(-g / (g + eps), rel=1e-9)
    assert first_update(optax.adagrad(1.0)) == pytest.approx(-g / np.sqrt(0.1 + g**2 + 1e-7), rel=1e-9)
    root = np.sqrt(0.1) * g
    assert first_update(jaxnn.rmsprop(1.0, eps=eps)) == pytest.approx(-g / (root + eps), rel=1e-9)
    assert first_update(optax.rmsprop(1.0)) == pytest.approx(-g / np.sqrt(root**2 + 1e-8), rel=1e-9)
    outside = optax.rmsprop(1.0, eps=eps, eps_in_sqrt=False)
    assert first_update(outside) == pytest.approx(first_update(jaxnn.rmsprop(1.0, eps=eps)), rel=1e-9)
    assert first_update(jaxnn.adam(1.0, eps=eps)) == pytest.approx(-g / (g + eps), rel=1e-9)
    assert first_update(optax.adam(1.0)) == pytest.approx(-g / (g + 1e-8), rel=1e-9)
    everything = jaxnn.adamw(1.0, eps=1e-8, weight_decay=1e-4, on=penalties.everything)
    assert first_update(everything) == pytest.approx(first_update(optax.adamw(1.0)), rel=1e-9)


# ---------------------------------------------------------------- formulas in their own letters


def test_no_formula_begins_with_a_letter_that_it_does_not_have():
    assert said(jaxnn.clip_by_global_norm).startswith("Clips gradients to g · min(1, c/‖g‖)")
    optax = pytest.importorskip("optax", reason="an independent clip")
    g = {"w": np.array([3.0, 4.0], np.float32)}
    found, _ = by_numpy(jaxnn.clip_by_global_norm(2.0).update)(g, ())
    expected, _ = optax.clip_by_global_norm(2.0).update(g, optax.EmptyState())
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
    np.testing.assert_allclose(found["w"], g["w"] * min(1, 2 / 5), rtol=1e-6)
