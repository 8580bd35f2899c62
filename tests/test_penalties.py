"""Penalties: the gradient by hand = `jax.grad` = NumPy; on the weights alone; part of both derivations of a pass."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

from jaxnn import (
    adam,
    autodiff,
    backprop,
    dense,
    fit,
    gradcheck,
    losses,
    mlp,
    named,
    penalties,
    repeat,
    serial,
    sgd,
    share,
    tanh,
)
from jaxnn.penalties import elastic_net, everything, is_weight, l1, l2

FLOAT64, FLOAT32 = 1e-12, 1e-5  # of a leaf's largest entry: two routes in one precision
DIFFERENCES, STEP = 1e-6, 1e-6

CASES = {  # the record, and its cost of one weight
    "l2": (l2(0.3), lambda w: 0.15 * w**2),
    "l1": (l1(0.3), lambda w: 0.3 * abs(w)),
    "elastic_net": (elastic_net(0.2, 0.3), lambda w: 0.2 * abs(w) + 0.15 * w**2),
    "elastic_net, no l1": (elastic_net(0.0, 0.3), lambda w: 0.15 * w**2),
    "l2, everything": (l2(0.3, on=everything), lambda w: 0.15 * w**2),
    "l1, one leaf": (l1(0.3, on=lambda path: path == "repeat_0/w"), lambda w: 0.3 * abs(w)),
}
COUNTED = {
    "l2, everything": {"dense_0/w", "dense_0/b", "norm/gamma", "repeat_0/w", "repeat_0/b"},
    "l1, one leaf": {"repeat_0/w"},
}
WEIGHTS = {"dense_0/w", "repeat_0/w"}
every_penalty = pytest.mark.parametrize("name", CASES)


def parameters(dtype="float64"):
    """Signed numbers, one of them 0, in a tree with biases of two ranks and a scale."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)
    params = {
        "dense_0": {"w": draw(3, 4), "b": draw(4)},
        "norm": {"gamma": draw(4)},
        "repeat_0": {"w": draw(2, 4, 4), "b": draw(2, 4)},
    }
    params["dense_0"]["w"][1, 2] = 0
    return params


def routes(penalty, params):
    return penalty.value(params), penalty.grad(params), jax.grad(penalty.value)(params)


@functools.cache
def compiled_routes(dtype):
    """{name: `routes`} of the parameters and of zeros like them: all penalties in one program."""
    with jax.enable_x64(dtype == "float64"):
        run = jax.jit(lambda params: {name: routes(penalty, params) for name, (penalty, _) in CASES.items()})
        params = parameters(dtype)
        return [jax.tree.map(np.asarray, run(tree)) for tree in (params, jax.tree.map(np.zeros_like, params))]


def drawn(net, in_shape, dtype="float32"):
    """Parameters like those of net.init, and its state."""
    rng = np.random.default_rng(0)
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), in_shape, jnp.dtype(dtype)))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), params), state


def by_path(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


def worst(a, b):
    """The largest difference over the largest entry, of all leaves."""
    pairs = zip(by_path(a).values(), by_path(b).values(), strict=True)
    return max(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(float).tiny) for a, b in pairs)


# ---------------------------------------------------------------- value and gradient


def test_every_public_factory_is_in_the_table():
    assert {penalty.name for penalty, _ in CASES.values()} | {"is_weight", "everything", "chosen"} == set(
        penalties.__all__
    )
    assert all(name in penalties.__doc__ for name in ("l2", "l1", "elastic_net"))


@every_penalty
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", FLOAT64), ("float32", FLOAT32)])
def test_value_and_gradient_by_independent_routes(name, dtype, tolerance):
    penalty, cost = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        params = parameters(dtype)
        value, grad, by_jax = compiled_routes(dtype)[0][name]
        eager = evaluated(functools.partial(routes, penalty))(params)[:2]
    counted, leaves = COUNTED.get(name, WEIGHTS), by_path(params)
    expected = sum(cost(float(w)) for path in counted for w in leaves[path].ravel())
    assert value.dtype == dtype
    assert value.shape == ()
    assert abs(float(value) - expected) <= tolerance * expected
    assert worst(grad, by_jax) <= tolerance
    assert worst(eager, (value, grad)) <= tolerance
    for path, leaf in by_path(grad).items():
        differences = np.vectorize(lambda w: (cost(w + STEP) - cost(w - STEP)) / (2 * STEP))(leaves[path].astype(float))
        np.testing.assert_allclose(
            leaf, differences if path in counted else 0, rtol=0, atol=max(DIFFERENCES, tolerance)
        )


def test_the_values_of_optax():
    optax = pytest.importorskip("optax", reason="optax is an independent reference")
    with jax.enable_x64(True):
        params = parameters()
        decayed = optax.add_decayed_weights(0.3)  # the gradient of the penalty is what coupled decay adds
        zeros = jax.tree.map(np.zeros_like, params)
        theirs, _ = evaluated(decayed.update)(zeros, decayed.init(params), params)
        value, grad, _ = compiled_routes("float64")[0]["l2, everything"]
        assert worst(grad, theirs) <= FLOAT64
        norm = float(evaluated(optax.tree.norm)(params))
        np.testing.assert_allclose(value, 0.15 * norm**2, rtol=FLOAT64)


STEPS, STEPS64, STEPS32 = 1000, 1e-10, 1e-5  # and tolerances after so many, of a leaf's largest entry


@pytest.fixture(scope="module")
def descents():
    """Where 1,000 steps lead with each penalty, by ours and by optax's: in one program for each dtype."""
    optax = pytest.importorskip("optax", reason="optax is an independent reference")
    weights = {"w": True, "b": False}
    decay = lambda strength, mask=None: optax.add_decayed_weights(strength, mask)
    rows = {  # ours, λ₁ for optax's side by jax.grad, its coupled decay, and its rule
        "l2": (l2(0.1), sgd(0.05, momentum=0.9), 0.0, decay(0.1, weights), optax.sgd(0.05, momentum=0.9)),
        "l2, everything": (l2(0.1, on=everything), sgd(0.05), 0.0, decay(0.1), optax.sgd(0.05)),
        "l2, adam": (l2(0.1), adam(0.01), 0.0, decay(0.1, weights), optax.adam(0.01, eps=1e-6)),
        "l1": (l1(0.01), sgd(0.02), 0.01, decay(0.0), optax.sgd(0.02)),
        "elastic_net": (elastic_net(0.01, 0.1), sgd(0.02), 0.01, decay(0.1, weights), optax.sgd(0.02)),
    }

    def problem(dtype):
        rng = np.random.default_rng(0)
        x, target = (jax.device_put(rng.normal(size=(10, 8, width)).astype(dtype)) for width in (5, 3))
        params = {"w": rng.normal(size=(5, 3)).astype(dtype), "b": np.zeros(3, dtype)}

        def loss(params, step):
            return jnp.square(jnp.tanh(x[step % 10] @ params["w"] + params["b"][None]) - target[step % 10]).mean()

        return params, loss

    def run(dtype, theirs_too):
        with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
            start, loss = problem(dtype)

            def ours(penalty, rule):
                return rule, penalty.grad

            def theirs(strength, *rules):
                return optax.chain(*rules), jax.grad(lambda p: strength * jnp.abs(p["w"]).sum())

            sides = {(name, 0): ours(*row[:2]) for name, row in rows.items()}
            if theirs_too:
                sides |= {(name, 1): theirs(*row[2:]) for name, row in rows.items()}

            def step(carry, i):
                """The gradients of the loss at all parameters in one batch, which compiles fast."""
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for params, _ in carry))
                slopes, after = jax.vmap(jax.grad(loss), (0, None))(stacked, i), []
                for k, ((params, opt_state), (rule, slope)) in enumerate(zip(carry, sides.values(), strict=True)):
                    grads = jax.tree.map(lambda a, b, k=k: a[k] + b, slopes, slope(params))
                    updates, opt_state = rule.update(grads, opt_state, params)
                    after.append((jax.tree.map(jnp.add, params, updates), opt_state))
                return after, None

            @jax.jit
            def ends(start):
                carry = [(start, rule.init(start)) for rule, _ in sides.values()]
                return [params for params, _ in jax.lax.scan(step, carry, jnp.arange(STEPS, dtype=jnp.int32))[0]]

            return dict(zip(sides, jax.tree.map(np.asarray, ends(start)), strict=True))

    double, single = run("float64", True), run("float32", False)
    return {name: (double[name, 0], single[name, 0], double[name, 1]) for name in rows}


@pytest.mark.parametrize("name", ["l2", "l2, everything", "l2, adam", "l1", "elastic_net"])
def test_a_thousand_steps_are_those_of_optax(descents, name):
    """Coupled decay is optax's `add_decayed_weights` before the rule; |w| is differentiated by JAX on its side."""
    double, single, theirs = descents[name]
    assert worst(double, theirs) <= STEPS64
    assert worst(single, theirs) <= STEPS32
    assert np.abs(theirs["w"]).max() > 0.05  # not all drawn to 0


@every_penalty
def test_at_the_kink_both_derivations_give_0(name):
    penalty, _ = CASES[name]
    zeros = jax.tree.map(np.zeros_like, parameters("float32"))
    for grad in (*evaluated(functools.partial(routes, penalty))(zeros)[1:], *compiled_routes("float32")[1][name][1:]):
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grad))


@every_penalty
def test_nan_in_nan_out(name):
    penalty, _ = CASES[name]
    params = parameters("float32")
    params["repeat_0"]["w"][0, 1, 1] = np.nan
    value, grads, _ = evaluated(functools.partial(routes, penalty))(params)
    assert np.isnan(value)
    grad = grads["repeat_0"]["w"]
    assert np.isnan(grad[0, 1, 1])
    assert np.isnan(grad).sum() == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_summed_in_float32(dtype):
    # In float16 200² · 1,000 overflows; in bfloat16 a sum of ones stops growing at 256.
    params = {"w": np.full((1000,), 200, jnp.dtype(dtype))}
    run = jax.jit(lambda params: (l2(1.0).value(params), l1(1.0).value(params), l2(1.0).grad(params)["w"]))
    squares, sizes, grad = run(params)
    assert squares.dtype == jnp.float32
    np.testing.assert_allclose(squares, 2e7, rtol=1e-6)
    np.testing.assert_allclose(sizes, 2e5, rtol=1e-6)
    assert grad.dtype == dtype
    np.testing.assert_array_equal(grad, params["w"])


def test_leaves_of_different_precision():
    with jax.enable_x64(True):
        params = {"w": np.ones(2, jnp.bfloat16), "w_out": np.full(2, 1 / 3)}
        value, grads, _ = evaluated(functools.partial(routes, l2(1.0)))(params)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, 1 + 1 / 9, rtol=FLOAT64)
        assert jax.tree.map(jnp.result_type, grads) == jax.tree.map(jnp.result_type, params)


def test_gradcheck_finds_them_right():
    penalty = elastic_net(0.2, 0.3)
    params = {"dense_0": {
        "w": np.cos(np.arange(6.0, dtype=np.float32)).reshape(2, 3),
        "b": np.sin(np.arange(3.0, dtype=np.float32)),
    }}  # fmt: skip
    params = jax.device_put(params)

    def backward(args, delta):
        return (jax.tree.map(lambda g: delta.astype(g.dtype) * g, penalty.grad(*args)),)

    dtypes = ("float32", "bfloat16", "float64")
    gradcheck.function(penalty.value, (params,), backward=backward, dtypes=dtypes).raise_if_failed()


# ---------------------------------------------------------------- wrong ones are caught

WRONG = {
    "l2": {
        "factor 2": lambda w: 0.6 * w,
        "missing λ": lambda w: w,
        "sign": lambda w: -0.3 * w,
        "a size for a slope": lambda w: 0.15 * w**2,
    },
    "l1": {
        "absolute value": lambda w: 0.3 * np.abs(w),
        "missing λ": np.sign,
        "1 at 0": lambda w: np.where(w >= 0, 0.3, -0.3),
    },
    "elastic_net": {
        "without l1": lambda w: 0.3 * w,
        "without l2": lambda w: 0.2 * np.sign(w),
        "strengths swapped": lambda w: 0.3 * np.sign(w) + 0.2 * w,
    },
}


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in WRONG for fault in WRONG[name]])
def test_wrong_gradient_is_caught(name, fault):
    penalty, _ = CASES[name]
    with jax.enable_x64(True):
        params = parameters()
        _, right, expected = evaluated(functools.partial(routes, penalty))(params)
    wrong = jax.tree.map(lambda w, g: WRONG[name][fault](w) if g.any() else g, params, expected)
    assert worst(right, expected) <= FLOAT64
    assert worst(wrong, expected) > FLOAT64
    biases_too = {**expected, "dense_0": {**expected["dense_0"], "b": params["dense_0"]["b"]}}
    assert worst(biases_too, expected) > FLOAT64


# ---------------------------------------------------------------- which leaves


def test_names_say_what_a_weight_is_and_rank_does_not():
    assert [is_weight(path) for path in ("w", "lstm_0/w_x", "a/b/w")] == [True] * 3
    assert not any(is_weight(path) for path in ("b", "w/b", "norm/gamma", "", "embedding_0/window", "dense_0/bw"))
    # the biases of repeat are matrices, a weight may be a vector
    shapes = {"repeat_0": {"w": (3, 2, 2), "b": (3, 2)}, "scale": {"w": (2,)}}
    params = {name: {part: np.ones(shape, np.float32) for part, shape in own.items()} for name, own in shapes.items()}
    value, grads, _ = evaluated(functools.partial(routes, l2(2.0)))(params)
    assert value == 14
    np.testing.assert_array_equal(grads["repeat_0"]["b"], np.zeros((3, 2)))


def test_stacked_parameters_cost_what_they_cost_apart():
    stacked, _ = drawn(repeat(dense(3), 4), (3,))
    apart = {f"dense_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(4)}
    values, grads = evaluated(lambda *trees: [
        [f(tree) for tree in trees] for f in (elastic_net(0.1, 0.2).value, elastic_net(0.1, 0.2).grad)
    ])(stacked, apart)  # fmt: skip
    np.testing.assert_allclose(*values, rtol=1e-6)
    for i in range(4):
        np.testing.assert_array_equal(grads[0]["w"][i], grads[1][f"dense_{i}"]["w"])


def test_shared_parameters_are_counted_once():
    params, _ = drawn(serial(share(dense(3), 5)), (3,))
    value, _, _ = evaluated(functools.partial(routes, l2(2.0)))(params)
    np.testing.assert_allclose(value, np.square(params["share_0"]["w"]).sum(), rtol=1e-6)


def test_nothing_chosen_is_refused():
    with pytest.raises(
        ValueError, match=r"l2: none of the parameters \['dense_0/b'\] is chosen.*on=penalties.everything"
    ):
        l2(0.1).value({"dense_0": {"b": np.ones(3, np.float32)}})
    with pytest.raises(ValueError, match="l1: none of the parameters"):
        l1(0.1, on=lambda path: path == "dense_1/w").grad({"dense_0": {"w": np.ones(3, np.float32)}})
    with pytest.raises(TypeError, match=r"l2: parameters must be real floats, got int32\[3\] at 'w'"):
        l2(0.1).value({"w": jax.device_put(np.arange(3, dtype=np.int32))})
    assert l2(0.1).value({}) == 0  # a network without parameters has nothing to choose from
    assert l2(0.1).grad({}) == {}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: l2(-0.1), ValueError, "l2: strength must be at least 0"),
        (lambda: l1(math.nan), ValueError, "l1: strength"),
        (lambda: elastic_net(0.1, math.inf), ValueError, "elastic_net: l2_strength"),
        (lambda: elastic_net("0.1", 0.1), TypeError, "elastic_net: l1_strength must be a number"),
    ],
)
def test_strengths_out_of_range(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_equal_calls_give_equal_records():
    assert l2(1) == l2(strength=1.0, on=is_weight)
    assert elastic_net(0.1, 0.2) == elastic_net(l1_strength=0.1, l2_strength=0.2)
    assert len({l1(0.1), l1(0.1), l1(0.2), l1(0.1, on="a"), l2(0.1)}) == 4


# ---------------------------------------------------------------- in a pass, and in training


@pytest.mark.parametrize("name", ["l2", "l1", "elastic_net", "l2, everything"])
def test_backprop_is_autodiff_with_a_penalty(name):
    penalty, _ = CASES[name]
    net = serial(dense(4), tanh, repeat(serial(dense(4), tanh), 2), named("twice", share(dense(4), 2)), dense(2))
    with jax.enable_x64(True):
        params, state = drawn(net, (3,), "float64")
        x, target = np.sin(np.arange(15.0)).reshape(5, 3), np.ones((5, 2))
        args = params, state, x, target
        run = jax.jit if name == "elastic_net" else evaluated  # one of them is compiled
        hand, auto, plain = run(
            lambda *args: [f(*args) for f in (
                backprop(net, losses.mse, penalty=penalty),
                autodiff(net, losses.mse, penalty=penalty),
                backprop(net, losses.mse),
            )]
        )(*args)  # fmt: skip
        cost, _, _ = evaluated(functools.partial(routes, penalty))(params)
    assert worst(hand.grads, auto.grads) <= FLOAT64
    np.testing.assert_allclose(hand.loss, auto.loss, rtol=FLOAT64)
    np.testing.assert_allclose(hand.loss, float(plain.loss) + float(cost), rtol=FLOAT64)
    for path, leaf in by_path(hand.grads).items():
        touched = is_weight(path) or name == "l2, everything"
        assert np.array_equal(leaf, by_path(plain.grads)[path]) != touched, path


def test_l1_makes_weights_small_that_nothing_needs():
    """Of ten features one tells the target: l1 brings the weights of the others to nought, and leaves the bias."""
    x = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    data = x, 2 * x[:, :1] + 3

    def weights(penalty):
        result = fit(mlp([1]), losses.mse, adam(0.01), data, key=1, epochs=150, batch_size=16, penalty=penalty)
        return jax.tree.map(np.asarray, result.train_state.params["dense_0"])

    few = weights(l1(0.2))
    assert np.abs(few["w"][1:]).max() < 0.02
    assert 1.8 < few["w"][0, 0] < 1.95  # of 2: each step costs 2(w − 2) + λ = 0 at 1.9
    assert 2.8 < few["b"][0] < 3.2
