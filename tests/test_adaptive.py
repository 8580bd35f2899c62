"""Adaptive rules beside their formulas in NumPy, each stage beside the one before, and how weights decay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import adagrad, adam, adamw, apply_updates, gradient_descent, rmsprop, sgd
from jaxnn.penalties import everything

FLOAT64 = 1e-12  # of the largest entry, after TIMES updates in float64
TIMES = 50


# ---------------------------------------------------------------- the formulas, written as the docstrings have them


def by_hand(rule, theta, gradients):
    """θ after every update; rule(θ, g, memory, t) -> the new θ, the memory a dict that begins empty."""
    path, memory = [], {}
    for t, g in enumerate(gradients, start=1):
        theta = rule(theta, g, memory, t)
        path.append(theta)
    return np.array(path)


def running_sum(memory, name, g, part, keep):
    """Keep · memory + part · g, kept under that name."""
    memory[name] = keep * memory.get(name, 0.0) + part * g
    return memory[name]


def momentum_rule(theta, g, memory, t):
    return theta - 0.1 * running_sum(memory, "v", g, 1, 0.9)


def nesterov_rule(theta, g, memory, t):
    return theta - 0.1 * (g + 0.9 * running_sum(memory, "v", g, 1, 0.9))


def adagrad_rule(theta, g, memory, t):
    return theta - 0.1 * g / (np.sqrt(running_sum(memory, "r", g**2, 1, 1)) + 0.5)


def rmsprop_rule(theta, g, memory, t):
    return theta - 0.1 * g / (np.sqrt(running_sum(memory, "r", g**2, 0.3, 0.7)) + 0.5)


def adam_rule(theta, g, memory, t):
    s, r = running_sum(memory, "s", g, 0.2, 0.8), running_sum(memory, "r", g**2, 0.3, 0.7)
    return theta - 0.1 * (s / (1 - 0.8**t)) / (np.sqrt(r / (1 - 0.7**t)) + 0.5)


def adamw_rule(theta, g, memory, t):
    return adam_rule(theta, g, memory, t) - 0.1 * 0.25 * theta


FORMULAS = {
    "gradient_descent": (gradient_descent(0.1), lambda theta, g, memory, t: theta - 0.1 * g),
    "momentum": (sgd(0.1, momentum=0.9), momentum_rule),
    "nesterov": (sgd(0.1, momentum=0.9, nesterov=True), nesterov_rule),
    "adagrad": (adagrad(0.1, eps=0.5), adagrad_rule),
    "rmsprop": (rmsprop(0.1, rho=0.7, eps=0.5), rmsprop_rule),
    "adam": (adam(0.1, b1=0.8, b2=0.7, eps=0.5), adam_rule),
    "adamw": (adamw(0.1, b1=0.8, b2=0.7, eps=0.5, weight_decay=0.25), adamw_rule),
}


def taken(optimizer, theta, gradients):
    """θ["w"] after every update, in one program."""

    def update(carry, g):
        params, opt_state = carry
        updates, opt_state = optimizer.update({"w": g}, opt_state, params)
        params = apply_updates(params, updates)
        return (params, opt_state), params["w"]

    start = {"w": jnp.asarray(theta)}
    return np.asarray(jax.lax.scan(update, (start, optimizer.init(start)), jnp.asarray(gradients))[1])


WRONG = {  # likely mistakes, each of which the comparison must tell
    "momentum": {"averaged": lambda th, g, m, t: th - 0.1 * running_sum(m, "v", g, 0.1, 0.9)},
    "nesterov": {"no look ahead": momentum_rule},
    "adagrad": {
        "no root": lambda th, g, m, t: th - 0.1 * g / (running_sum(m, "r", g**2, 1, 1) + 0.5),
        "δ inside the root": lambda th, g, m, t: th - 0.1 * g / np.sqrt(running_sum(m, "r", g**2, 1, 1) + 0.5),
        "one step late": lambda th, g, m, t: th - 0.1 * g / (np.sqrt(running_sum(m, "r", g**2, 1, 1) - g**2) + 0.5),
    },
    "rmsprop": {
        "a sum": adagrad_rule,
        "ρ and 1 − ρ swapped": lambda th, g, m, t: th - 0.1 * g / (np.sqrt(running_sum(m, "r", g**2, 0.7, 0.3)) + 0.5),
        "corrected": lambda th, g, m, t: (
            th - 0.1 * g / (np.sqrt(running_sum(m, "r", g**2, 0.3, 0.7) / (1 - 0.7**t)) + 0.5)
        ),
    },
    "adam": {"not corrected": rmsprop_rule, "t from 0": lambda th, g, m, t: adam_rule(th, g, m, t + 1)},
    "adamw": {
        "no decay": adam_rule,
        "in the gradient": lambda th, g, m, t: adam_rule(th, g + 0.25 * th, m, t),
        "not times η": lambda th, g, m, t: adam_rule(th, g, m, t) - 0.25 * th,
        "after the step": lambda th, g, m, t: adam_rule(th, g, m, t) * (1 - 0.1 * 0.25),
    },
}


def assert_follows(optimizer, rule):
    """Ours are the parameters that the rule gives, with gradients of six scales."""
    rng = np.random.default_rng(0)
    theta, gradients = rng.normal(size=6), rng.normal(size=(TIMES, 6)) * 10.0 ** np.arange(-3, 3)
    expected = by_hand(rule, theta, gradients)
    with jax.enable_x64(True):
        ours = taken(optimizer, theta, gradients)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=FLOAT64 * np.abs(expected).max())


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula(name):
    assert_follows(*FORMULAS[name])


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in WRONG for fault in WRONG[name]])
def test_a_wrong_formula_is_told(name, fault):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_follows(FORMULAS[name][0], WRONG[name][fault])


def test_the_stages_from_sgd_to_adam():
    """Each docstring says what a rule adds to the one before; without it the two are the same."""
    rng = np.random.default_rng(1)
    theta, gradients = rng.normal(size=4), rng.normal(size=(TIMES, 4))
    roots = np.sqrt(np.cumsum(gradients**2, axis=0))
    with jax.enable_x64(True):
        # adagrad is sgd with a rate of η/√(sum of g²) for every parameter
        rates = taken(gradient_descent(0.1), theta, gradients / roots)
        np.testing.assert_allclose(taken(adagrad(0.1, eps=1e-30), theta, gradients), rates, rtol=FLOAT64, atol=FLOAT64)
        # rmsprop's mean of g² is adagrad's sum / t where nothing is forgotten: here in its last update alone
        first = taken(rmsprop(0.1, rho=0.0), theta, gradients)[0]
        np.testing.assert_allclose(first, taken(adagrad(0.1), theta, gradients)[0], rtol=FLOAT64)
        # adam without momentum is rmsprop with its mean corrected
        correction = np.sqrt(1 - 0.9 ** np.arange(1, TIMES + 1))[:, None]
        plain = taken(rmsprop(0.1, rho=0.9, eps=1e-30), theta, gradients)
        steps = correction * np.diff(plain, axis=0, prepend=theta[None])
        corrected = np.diff(taken(adam(0.1, b1=0, b2=0.9, eps=1e-30), theta, gradients), axis=0, prepend=theta[None])
        np.testing.assert_allclose(corrected, steps, rtol=1e-9, atol=FLOAT64)
        # adamw without decay is adam
        np.testing.assert_array_equal(
            taken(adamw(0.1, weight_decay=0.0), theta, gradients), taken(adam(0.1), theta, gradients)
        )


def test_adagrad_slows_down_and_rmsprop_recovers():
    """Under gradients of one size adagrad's steps are η/√t; after large ones rmsprop's grow again, adagrad's do not."""
    with jax.enable_x64(True):
        steps = -np.diff(taken(adagrad(0.1, eps=1e-12), 0.0, np.ones(100)), prepend=0.0)
        np.testing.assert_allclose(steps, 0.1 / np.sqrt(np.arange(1, 101)), rtol=1e-9)
        then_small = np.r_[np.full(10, 100.0), np.ones(200)]
        last = {rule: -np.diff(taken(rule(0.1), 0.0, then_small))[-1] for rule in (adagrad, rmsprop)}
    assert last[rmsprop] == pytest.approx(0.1, rel=1e-3)
    assert last[adagrad] == pytest.approx(0.1 / math.sqrt(10 * 100.0**2 + 200), rel=1e-6)


# ---------------------------------------------------------------- weight decay, coupled and decoupled


def shrinkage(with_decay, without, gradients, strength=0.0):
    """By which part of itself a weight of 1 shrinks at each update because of the decay alone; L2's strength λ."""

    def drift(optimizer, strength):
        def update(carry, g):
            params, opt_state = carry
            grads = {"w": g + strength * params["w"]}
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (apply_updates(params, updates), opt_state), None

        start = {"w": jnp.ones(gradients.shape[1])}
        (params, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), jnp.asarray(gradients))
        return np.asarray(params["w"])

    return (drift(without, 0.0) - drift(with_decay, strength)) / len(gradients)


def test_under_adam_l2_spares_the_weights_with_large_gradients():
    """Gradients ±G that lead nowhere: r̂ = G², so that L2 shrinks a weight by ηλ/G a step, and decoupled decay by ηλ.

    ŝ of a constant λw is λw, and is divided by √r̂ + δ = G like everything in g; in `adamw` λθ stands beside the
    fraction. Between G = 0.1 and G = 100 the one differs a thousandfold, the other not at all. Under SGD both are ηλ.
    """
    rate, strength, updates = 1e-3, 1e-2, 2000
    sizes = np.array([0.1, 1.0, 10.0, 100.0])
    gradients = sizes * np.where(np.arange(updates) % 2, -1.0, 1.0)[:, None]
    with jax.enable_x64(True):
        coupled = shrinkage(adam(rate, eps=1e-12), adam(rate, eps=1e-12), gradients, strength)
        decoupled = shrinkage(adamw(rate, eps=1e-12, weight_decay=strength), adam(rate, eps=1e-12), gradients)
        slow = sgd(rate / 100)  # whose steps are ηG, not η: w must stay near 1 at G = 100 too
        plain = 100 * shrinkage(slow, slow, gradients, strength)
    # 1.5 %: ŝ lags by ten updates, and w itself falls from 1 to 1 − ηλt. At G = 0.1, r̂ of G ± λw is G² only to 1 %,
    # and w falls by a fifth.
    np.testing.assert_allclose(coupled[1:], rate * strength / sizes[1:], rtol=0.015)
    np.testing.assert_allclose(coupled[0], rate * strength / sizes[0], rtol=0.12)
    np.testing.assert_allclose(decoupled, rate * strength, rtol=0.015)
    np.testing.assert_allclose(plain, rate * strength, rtol=0.015)
    assert coupled[0] / coupled[3] == pytest.approx(1000, rel=0.12)
    assert decoupled[0] / decoupled[3] == pytest.approx(1, rel=1e-3)


def test_without_gradients_weights_alone_decay_and_by_the_same_part():
    params = {"dense_0": {"w": jnp.array([2.0, -3.0, 0.0]), "b": jnp.array([1.0])}, "norm": {"scale": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = adamw(0.1, weight_decay=0.5)
    moved = apply_updates(params, optimizer.update(zeros, optimizer.init(params), params)[0])
    np.testing.assert_allclose(moved["dense_0"]["w"], 0.95 * params["dense_0"]["w"], rtol=1e-6)
    for path in (("dense_0", "b"), ("norm", "scale")):
        np.testing.assert_array_equal(moved[path[0]][path[1]], params[path[0]][path[1]])
    only = adamw(0.1, weight_decay=0.5, on=lambda path: path == "dense_0/b")
    moved = apply_updates(params, only.update(zeros, only.init(params), params)[0])
    np.testing.assert_array_equal(moved["dense_0"]["w"], params["dense_0"]["w"])
    np.testing.assert_allclose(moved["dense_0"]["b"], [0.95], rtol=1e-6)


def test_the_decay_follows_the_rate():
    """Set in the state, or from a schedule: both parts of the step are multiplied by it."""
    params = {"w": jnp.array([2.0])}
    grads = {"w": jnp.array([0.0])}
    for optimizer, rate in ((adamw(1.0, weight_decay=0.5), 0.2), (adamw(lambda step: 0.2, weight_decay=0.5), None)):
        opt_state = optimizer.init(params)
        if rate is not None:
            opt_state = opt_state._replace(learning_rate=jnp.float32(rate))
        np.testing.assert_allclose(optimizer.update(grads, opt_state, params)[0]["w"], [-0.2 * 0.5 * 2.0], rtol=1e-6)


def test_decay_of_low_precision_is_rounded_once():
    params = {"w": jnp.full(2, 3.0, jnp.bfloat16)}
    updates, _ = adamw(1.0, weight_decay=0.3).update(
        {"w": jnp.array([1.0, -1.0], jnp.bfloat16)}, adamw(1.0).init(params), params
    )
    np.testing.assert_array_equal(updates["w"], jnp.array([-1 - 0.9, 1 - 0.9], jnp.bfloat16))


# ---------------------------------------------------------------- what adamw refuses


def test_adamw_needs_the_parameters_and_something_that_decays():
    params = {"w": jnp.ones(2)}
    optimizer = adamw(0.1)
    with pytest.raises(
        ValueError, match=r"adamw: weights decay, so update needs them: update\(grads, opt_state, params\)"
    ):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(ValueError, match=r"adamw: none of the parameters \['b'\] is chosen"):
        optimizer.init({"b": jnp.ones(2)})
    assert adamw(0.1, on=everything).init({"b": jnp.ones(2)}).step == 0
