"""Several small batches are one large one, whatever their weights; and what an update may be given beside gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

from jaxnn import (
    Optimizer,
    accumulate,
    adam,
    autodiff,
    chain,
    clip_by_value,
    fit,
    init_train_state,
    losses,
    mlp,
    penalties,
    sgd,
    tanh,
    train_epoch,
    train_step,
)

FLOAT64 = 1e-12  # of a leaf's largest entry
N, D, K = 12, 3, 4
NET, LOSS, PENALTY = mlp([5, K], tanh), losses.softmax_cross_entropy, penalties.l2(0.3)
X = np.random.default_rng(0).normal(size=(N, D))
LABELS = np.random.default_rng(1).integers(0, K, N).astype(np.int32)
LENGTHS = np.random.default_rng(2).integers(1, 40, N).astype(np.float64)
WEIGHTS = {
    "none": None,
    "classes": np.array([0.1, 3.0, 1.0, 0.5])[LABELS],
    "lengths": LENGTHS,
    "the first batch weighs nothing": np.where(np.arange(N) < 3, 0, LENGTHS),
    "the last batch weighs nothing": np.where(np.arange(N) >= 9, 0, LENGTHS),
    "one example counts": np.where(np.arange(N) == 7, 2.5, 0),
    "tiny": LENGTHS * 1e-290,
    "huge": LENGTHS * 1e290,
    "whole numbers": LENGTHS.astype(np.int32),
}


@functools.cache
def start():
    with jax.enable_x64(True):
        return evaluated(lambda: init_train_state(NET, accumulate(sgd(0.1, momentum=0.5), 4), 0, (D,), jnp.float64))()


def steps_of(optimizer, rows, weights, *, gradient_penalty=PENALTY):
    """The parameters after a step on each batch of rows, from a fresh state of the optimizer."""
    step = evaluated(train_step(NET, LOSS, optimizer, penalty=gradient_penalty))
    state = start()._replace(opt_state=evaluated(optimizer.init)(start().params))
    for part in rows:
        state, _ = step(state, X[part], LABELS[part], *(() if weights is None else (weights[part],)))
    return state


def assert_near(ours, theirs, tolerance=FLOAT64):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-30)


def by_hand(weights):
    """θ − η (Σ wₙ ∇Cₙ / Σ wₙ + λw), each ∇Cₙ by itself."""
    w = np.ones(N) if weights is None else np.asarray(weights, np.float64)
    one = evaluated(autodiff(NET, LOSS))
    params = start().params
    grads = [one(params, (), X[n : n + 1], LABELS[n : n + 1]).grads for n in range(N)]
    mean = jax.tree.map(lambda *g: sum(w_n / w.max() * g_n for w_n, g_n in zip(w, g, strict=True)), *grads)
    mean = jax.tree.map(lambda g: g / (w / w.max()).sum(), mean)
    slopes = {name: {"w": 0.3 * layer["w"], "b": 0 * layer["b"]} for name, layer in params.items()}
    return jax.tree.map(lambda p, g, s: p - 0.1 * (g + s), params, mean, slopes)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (1, 5, 2, 4)], ids=["of one size", "of other sizes"])
def test_small_batches_are_a_large_one_whatever_they_weigh(name, sizes):
    with jax.enable_x64(True):
        rows = np.split(np.arange(N), np.cumsum(sizes)[:-1])
        ours = steps_of(accumulate(sgd(0.1), 4), rows, WEIGHTS[name])
        assert int(ours.opt_state.step) == 1
        assert_near(ours.params, steps_of(sgd(0.1), [np.arange(N)], WEIGHTS[name]).params)
        assert_near(ours.params, by_hand(WEIGHTS[name]))


def test_batches_that_all_weigh_nothing_leave_the_penalty_alone():
    with jax.enable_x64(True):
        rows, nothing = np.split(np.arange(N), 4), np.zeros(N)
        step = lambda optimizer, penalty: jax.jit(train_step(NET, LOSS, optimizer, penalty=penalty))
        for penalty, expected in ((PENALTY, lambda w: w - 0.1 * 0.3 * w), (None, lambda w: w)):
            optimizer = accumulate(sgd(0.1), 4)
            state = start()._replace(opt_state=optimizer.init(start().params))
            one = step(optimizer, penalty)
            for part in rows:
                state, _ = one(state, X[part], LABELS[part], nothing[part])
            assert int(state.opt_state.step) == 1
            for layer in ("dense_0", "dense_1"):
                np.testing.assert_allclose(state.params[layer]["w"], expected(start().params[layer]["w"]), rtol=1e-14)
                np.testing.assert_array_equal(state.params[layer]["b"], start().params[layer]["b"])


def test_a_batch_that_weighs_nothing_may_be_nan():
    """Before, between and behind those that count."""
    optimizer = accumulate(sgd(1.0), 4)
    update = evaluated(lambda g, state, weight: optimizer.update(g, state, weight=weight))
    for order in ([0, 0, 2, 6], [2, 0, 6, 0], [0, 2, 6, 0]):
        opt_state = evaluated(optimizer.init)(np.zeros(1))
        for weight in order:
            g = math.nan if weight == 0 else weight
            updates, opt_state = update(np.array([g], np.float32), opt_state, np.float32(weight))
        np.testing.assert_allclose(updates, [-(2 * 2 + 6 * 6) / 8], rtol=1e-6)


def test_a_batch_without_a_weight_weighs_one():
    """Also beside others that have one, before them and behind."""
    optimizer = accumulate(sgd(1.0), 2)
    weighed = evaluated(lambda g, state, weight: optimizer.update(g, state, weight=weight))
    bare, start = evaluated(optimizer.update), evaluated(optimizer.init)(np.zeros(1))
    one, five = np.ones(1, np.float32), np.full(1, 5, np.float32)
    for first, second in ((weighed(one, start, np.float32(3))[1], bare), (bare(one, start)[1], weighed)):
        last = second(five, first, *((np.float32(3),) if second is weighed else ()))[0]
        np.testing.assert_allclose(last, [-(3 + 5) / 4] if second is bare else [-(1 + 15) / 4], rtol=1e-6)


def test_the_next_update_knows_nothing_of_the_weights_before():
    optimizer = accumulate(sgd(1.0), 2)
    update = evaluated(lambda g, state, weight: optimizer.update(g, state, weight=weight))
    opt_state, taken = evaluated(optimizer.init)(np.zeros(1)), []
    for g, weight in ((1, 1e-3), (4, 2e-3), (1, 500), (3, 500), (5, 0), (7, 0), (1, 1), (2, 3)):
        updates, opt_state = update(np.array([g], np.float32), opt_state, np.float32(weight))
        taken.append(float(updates[0]))
    np.testing.assert_allclose(taken, [0, -3, 0, -2, 0, -6, 0, -1.75], rtol=1e-6)


def test_in_an_epoch_and_in_fit():
    """Twelve examples of any weight in four batches of 3 are one batch of 12, the order being one batch's."""
    with jax.enable_x64(True):
        weights = WEIGHTS["the first batch weighs nothing"]
        data = (X, LABELS, weights)
        small, large = accumulate(sgd(0.1, momentum=0.5), 4), sgd(0.1, momentum=0.5)
        state = init_train_state(NET, large, 3, (D,), jnp.float64)
        settings = {"penalty": PENALTY, "shuffle": False}
        whole = fit(NET, LOSS, large, data, epochs=2, batch_size=12, train_state=state, **settings)
        parts = state._replace(opt_state=small.init(state.params))
        in_parts = fit(NET, LOSS, small, data, epochs=2, batch_size=3, train_state=parts, **settings)
        assert_near(in_parts.train_state.params, whole.train_state.params)
        epoch = jax.jit(train_epoch(NET, LOSS, small, batch_size=3, **settings))
        for _ in range(2):
            parts, _ = epoch(parts, *data)
        assert_near(parts.params, whole.train_state.params)
        ragged = state._replace(opt_state=small.init(state.params))
        ragged, _ = jax.jit(train_epoch(NET, LOSS, accumulate(large, 3), batch_size=5, **settings))(ragged, *data)
        one, _ = jax.jit(train_step(NET, LOSS, large, penalty=PENALTY))(state, *data)
        assert_near(ragged.params, one.params)  # batches of 5, 5 and 2


# ---------------------------------------------------------------- what an update is given


def test_an_update_is_given_what_it_takes():
    """By name, or any by **: the weight, the loss, the gradient and the loss as a function of the parameters."""
    seen = {}

    def named(grads, state, params=None, *, value, weight):
        seen["named"] = {"value": value, "weight": weight}
        return grads, state

    def anything(grads, state, params=None, **extras):
        seen["anything"] = extras | {"at": extras["value_fn"](params)}
        return grads, state

    def nothing(grads, state, params=None):
        seen["nothing"] = True
        return grads, state

    rule = lambda update: Optimizer(lambda params: (), update)
    weights = LENGTHS.astype(np.float32)

    def passed(optimizer):
        seen.clear()
        state = jax.eval_shape(lambda: init_train_state(NET, optimizer, 0, (D,)))

        def run(state):
            _, out = train_step(NET, LOSS, optimizer, penalty=PENALTY)(state, X.astype(np.float32), LABELS, weights)
            return out, dict(seen)

        state = init_train_state(NET, optimizer, 0, (D,))
        return run(state)

    for wrapped in (lambda part: part, lambda part: chain(clip_by_value(10.0), part), lambda part: chain(chain(part))):
        out, got = passed(wrapped(rule(named)))
        np.testing.assert_array_equal(got["named"]["value"], out.loss)
        np.testing.assert_allclose(got["named"]["weight"], weights.sum(), rtol=1e-6)
        out, got = passed(wrapped(rule(anything)))
        assert set(got["anything"]) == {"value", "weight", "grad", "value_fn", "at"}
        np.testing.assert_allclose(got["anything"]["at"], out.loss, rtol=1e-6)
        for ours, theirs in zip(*map(jax.tree.leaves, (got["anything"]["grad"], out.grads)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert passed(wrapped(rule(nothing)))[1] == {"nothing": True}


def test_a_wrapped_rule_is_given_the_mean_loss_of_its_batches():
    seen = []

    def update(grads, state, params=None, *, value, weight):
        jax.debug.callback(lambda value, weight: seen.append((float(value), float(weight))), value, weight)
        return grads, state

    optimizer = accumulate(Optimizer(lambda params: (), update), 2)
    opt_state = optimizer.init(jnp.zeros(1))
    for value, weight in ((1.0, 1.0), (5.0, 3.0)):
        _, opt_state = optimizer.update(jnp.ones(1), opt_state, value=jnp.float32(value), weight=weight)
    jax.effects_barrier()
    assert seen == [(4.0, 4.0)]


AROUND = ["alone", "in a chain", "in optax's chain"]
QUICK = {("polyak_sgd", "alone"), ("polyak_sgd", "in a chain"), ("backtracking", "in a chain")}


@pytest.mark.parametrize(
    ("name", "around"),
    [
        pytest.param(name, around, marks=() if (name, around) in QUICK else pytest.mark.long)
        for name in ("lbfgs", "polyak_sgd", "reduce_on_plateau", "backtracking")
        for around in AROUND
    ],
)
def test_rules_of_optax_that_want_more_than_gradients(name, around):
    """Each takes the very steps that its own users take with optax's protocol."""
    optax = pytest.importorskip("optax", reason="these rules are optax's")
    rules = {
        "lbfgs": lambda: optax.lbfgs(memory_size=2, linesearch=optax.scale_by_zoom_linesearch(4)),
        "polyak_sgd": lambda: optax.polyak_sgd(0.5),
        "reduce_on_plateau": lambda: optax.chain(
            optax.sgd(0.5), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.5)
        ),
        "backtracking": lambda: optax.chain(optax.sgd(4.0), optax.scale_by_backtracking_linesearch(4)),
    }
    rule = rules[name]()
    x, labels = X.astype(np.float32), LABELS
    objective = lambda params: losses.softmax_cross_entropy.value(NET.forward(params, (), x)[0], labels).mean()
    wrapped = {"alone": lambda: rule, "in a chain": lambda: chain(clip_by_value(10.0), rule)}.get(
        around, lambda: optax.chain(optax.clip(10.0), rule)
    )()
    with jax.numpy_dtype_promotion("standard"):
        state = init_train_state(NET, wrapped, 0, (D,))
        step = train_step(NET, LOSS, wrapped)

        def theirs(params, opt_state):
            value, grads = jax.value_and_grad(objective)(params)
            updates, opt_state = rule.update(grads, opt_state, params, value=value, grad=grads, value_fn=objective)
            return optax.apply_updates(params, updates), opt_state

        def both(state, params, opt_state):
            for _ in range(3):
                state, _ = step(state, x, labels)
                params, opt_state = theirs(params, opt_state)
            return state.params, params

        ours, expected = jax.jit(both)(state, state.params, rule.init(state.params))
    assert_near(ours, expected, 1e-4)
    assert np.abs(np.asarray(ours["dense_0"]["w"]) - np.asarray(state.params["dense_0"]["w"])).max() > 1e-3


def test_a_rule_without_extras_is_called_as_ever():
    calls = []

    def update(*args):
        calls.append(len(args))
        return args[0], args[1]

    step = train_step(NET, LOSS, Optimizer(lambda params: (), update))
    jax.eval_shape(step, init_train_state(NET, adam(0.1), 0, (D,))._replace(opt_state=()), X.astype(np.float32), LABELS)
    assert calls == [3]
