"""One pass, derived twice: readings, weights, scale, penalties, randomness, twins, and jax.grad through hand rules."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMBINATORS
from draws import drawn, normal
from laws import FLOAT64, close, evaluated, variables

from jaxnn import (
    Layer,
    Penalty,
    Reading,
    as_custom_vjp,
    autodiff,
    autodiff_twin,
    backprop,
    dense,
    leaf_layers,
    losses,
    map_layers,
    mlp,
    named,
    ordered_leaves,
    parallel,
    relu,
    repeat,
    residual,
    serial,
    share,
    sigmoid,
    tanh,
)

L2 = Penalty(
    "l2",
    lambda params: sum(0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)),
    lambda params: params,
)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def numpy_tree(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("case", COMBINATORS, ids=lambda case: case.name)
def test_backprop_is_autodiff(case):
    """Loss, gradients and every δ, by both derivations, with a penalty, and with weights in every second case."""
    net = case.make()
    with jax.enable_x64(True):
        params, state, x, target, _ = variables(case, net, jnp.float64)
        weights = np.array([1.0, 0.0, 3.0, 0.5]) if COMBINATORS.index(case) % 2 else None
        how = {"read": ("deltas",), "penalty": L2, "train": case.train}
        given = {"weights": weights, "rng": case.rng}
        both = evaluated(lambda *a: [f(net, losses.mse, **how)(*a, **given) for f in (backprop, autodiff)])
        hand, auto = numpy_tree(both(params, state, x, target))
    assert jax.tree.structure(hand.grads) == jax.tree.structure(params)
    close(tuple(hand), tuple(auto), FLOAT64, "hand vs jax.grad")
    # one array for every leaf layer, those without parameters included
    assert set(ordered_leaves(net, hand.readings["deltas"])) == {"/".join(path) for path, _ in leaf_layers(net)}


def test_the_textbook():
    """δᴸ = (h − t) ⊙ σ′(zᴸ); δˡ = (Wˡ⁺¹ᵀ δˡ⁺¹) ⊙ σ′(zˡ); ∂C/∂W = δ hᵀ; ∂C/∂b = δ (Nielsen 2015, BP1-BP4)."""
    net = serial(dense(3), sigmoid, dense(2), sigmoid)
    with jax.enable_x64(True):
        params, state = drawn(net, (4,), "float64")
        x, t = np.sin(np.arange(4.0))[None], np.array([[0.0, 1.0]])
        out = jax.jit(backprop(net, losses.half_squared_error, read=("deltas",)))(params, state, x, t)
        w1, w2 = (params[name]["w"].T for name in ("dense_0", "dense_1"))  # the textbook's, on columns
        h = lambda z: 1 / (1 + np.exp(-z))
        z1 = w1 @ x[0] + params["dense_0"]["b"]
        h1 = h(z1)
        h2 = h(w2 @ h1 + params["dense_1"]["b"])
        delta2 = (h2 - t[0]) * h2 * (1 - h2)
        delta1 = (w2.T @ delta2) * h1 * (1 - h1)
        deltas, grads = numpy_tree((out.readings["deltas"], out.grads))
    close((deltas["dense_1"][0], deltas["dense_0"][0]), (delta2, delta1), FLOAT64, "δ")
    close(grads["dense_0"]["w"].T, np.outer(delta1, x[0]), FLOAT64, "∂C/∂W")
    close(grads["dense_1"]["b"], delta2, FLOAT64, "∂C/∂b")


def test_deltas_are_not_scaled_by_the_batch():
    """δₙ = ∂Cₙ/∂zₙ whatever N is; the gradients are of the mean."""
    net = mlp([3, 2], tanh)
    with jax.enable_x64(True):
        params, state = drawn(net, (4,), "float64")
        run = evaluated(backprop(net, losses.mse, read=("deltas",)))
        one, many = (run(params, state, np.ones((n, 4)), np.ones((n, 2))) for n in (1, 8))
    delta = lambda out: np.asarray(out.readings["deltas"]["dense_0"][0])
    np.testing.assert_allclose(delta(many), delta(one), rtol=1e-6)
    close(numpy_tree(many.grads), numpy_tree(one.grads), 1e-6, "mean gradients")


def test_weights_are_repetitions():
    """An example of weight 2 counts as two; one of weight 0 not at all, even with a label that cannot be right."""
    net = mlp([3, 2])
    params, state = drawn(net, (4,))
    x, labels = normal(3, 4), lambda *each: np.array(each, np.int32)
    for gradient in (backprop, autodiff):
        run = gradient(net, losses.softmax_cross_entropy)
        twice = evaluated(run)(params, state, x[[0, 0, 1]], labels(0, 0, 1))
        heavier = evaluated(lambda *args, run=run: run(*args[:-1], weights=args[-1]))
        weighted = heavier(params, state, x, labels(0, 1, -1), np.array([2, 1, 0], np.float32))
        close(numpy_tree((twice.loss, twice.grads)), numpy_tree((weighted.loss, weighted.grads)), 1e-6, "weights")


def test_a_batch_of_weight_zero_teaches_nothing():
    """A larger data set may hold one, and a compiled pass cannot know; on its own it is refused."""
    net = mlp([3, 2])
    args = (*drawn(net, (4,)), ones(2, 4), ones(2, 2))
    for gradient in (backprop, autodiff):
        run = gradient(net, losses.mse)
        out = evaluated(lambda weights, run=run: run(*args, weights=weights))(np.zeros(2, np.float32))
        assert float(out.loss) == 0
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(out.grads))
        with pytest.raises(ValueError, match="weights are all zero, so that no mean exists"):
            run(*args, weights=np.zeros(2, np.float32))


WRONG_WEIGHTS = {
    "negative": (
        -0.5,
        r"weights: 1 of 4 values are negative, the first at index \(2,\): -0.5\. Weights must be 0 or above",
    ),
    "NaN": (np.nan, r"weights: 1 of 4 values are not finite, the first at index \(2,\): nan"),
    "infinite": (np.inf, r"weights: 1 of 4 values are not finite, the first at index \(2,\): inf"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
@pytest.mark.parametrize("gradient", [backprop, autodiff])
def test_weights_that_cannot_be_right(gradient, wrong, message):
    """Refused where they can be looked at; in a compiled pass nothing that comes out is a number."""
    net = mlp([3, 2], tanh)
    args = (*drawn(net, (4,)), ones(4, 4), ones(4, 2))
    run = gradient(net, losses.mse, read=("deltas",))
    weights = np.array([1.0, 0.0, wrong, 2.0], np.float32)
    for concrete in (weights, jax.device_put(weights.astype(jnp.bfloat16))):
        with pytest.raises(ValueError, match=message):
            run(*args, weights=concrete)
    out = evaluated(lambda weights: run(*args, weights=weights))(weights)
    for leaf in jax.tree.leaves((out.loss, out.grads, out.readings)):
        assert np.isnan(leaf).all()
    with pytest.raises(TypeError, match=r"weights must be an array \[N\], got list"):
        run(*args, weights=[1.0] * 4)
    with pytest.raises(ValueError, match="weights must be real numbers, got complex64"):
        run(*args, weights=ones(4, dtype=np.complex64))


def test_whole_numbers_and_masks_are_weights():
    net = mlp([3, 2], tanh)
    args = (*drawn(net, (4,)), normal(3, 4), ones(3, 2))
    for gradient in (backprop, autodiff):
        run = evaluated(lambda weights, gradient=gradient: gradient(net, losses.mse)(*args, weights=weights))
        outs = [run(np.array([1, 0, 1], kind)) for kind in ("float32", "int32", "bool")]
        for out in outs[1:]:
            close(numpy_tree((out.loss, out.grads)), numpy_tree((outs[0].loss, outs[0].grads)), 1e-6, "weights")


def test_half_precision_does_not_overflow():
    """In float16 the product of unscaled δs would exceed 65,504; scaled before the recursion it does not."""
    net = mlp([1], b_init=None)
    params, state = drawn(net, (1,), "float16")
    n = 2048
    x, t = np.full((n, 1), 8, np.float16), np.full((n, 1), -100, np.float16)
    out = jax.jit(backprop(net, losses.half_squared_error))(params, state, x, t)
    assert 8.0 * 100.0 * n > 65_504  # the sum of the products, unscaled
    assert np.isfinite(np.asarray(out.grads["dense_0"]["w"])).all()


def test_own_readings_and_shared_layers():
    """Gradients of share's uses add; a reading has one entry per use, as repeat's has per pass."""
    net = serial(share(serial(dense(3), tanh), 2), repeat(dense(3), 4), dense(2))
    params, state = drawn(net, (3,))
    args = (params, state, ones(5, 3), ones(5, 2))
    seen = Reading("largest", lambda use: {use.layer.kind: jnp.abs(use.delta).max()})
    out = evaluated(backprop(net, losses.mse, read=("delta_norms", seen)))(*args)
    assert jax.tree.map(jnp.shape, out.readings) == {
        "delta_norms": {"share_0": {"dense_0": (2,), "tanh_0": (2,)}, "repeat_0": (4,), "dense_0": ()},
        "largest": {
            "share_0": {"dense_0": {"dense": (2,)}, "tanh_0": {"tanh": (2,)}},
            "repeat_0": {"dense": (4,)},
            "dense_0": {"dense": ()},
        },
    }
    deltas = evaluated(backprop(net, losses.mse, read=("deltas",)))(*args)
    norms = np.linalg.norm(deltas.readings["deltas"]["repeat_0"], axis=(1, 2))
    np.testing.assert_allclose(out.readings["delta_norms"]["repeat_0"], norms, rtol=1e-6)


def test_what_is_not_asked_for_is_not_there():
    net = mlp([3, 2])
    args = (*drawn(net, (4,)), ones(5, 4), ones(5, 2))
    plain, reading = backprop(net, losses.mse), backprop(net, losses.mse, read=("deltas", "delta_norms"))
    assert jax.eval_shape(plain, *args).readings == {}
    flops = lambda f: jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
    assert flops(lambda *a: reading(*a).grads) == flops(lambda *a: plain(*a).grads)


def test_hand_costs_no_more_than_autodiff():
    """Compiled FLOPs and temporary bytes of a training pass."""
    net = mlp([64, 64, 10])
    args = (*drawn(net, (32,)), ones(128, 32), np.zeros(128, np.int32))

    def cost(gradient):
        compiled = jax.jit(lambda *a: gradient(net, losses.softmax_cross_entropy)(*a).grads).lower(*args).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    (hand, hand_bytes), (auto, auto_bytes) = cost(backprop), cost(autodiff)
    assert hand <= auto
    assert hand_bytes <= auto_bytes


# ---------------------------------------------------------------- randomness


def noise() -> Layer:
    """A layer that multiplies by random numbers in training."""

    def forward(params, state, x, *, train=False, rng=None):
        if train and rng is None:
            raise ValueError("noise needs rng when train=True")
        factor = jax.random.uniform(rng, x.shape, x.dtype) if train else jnp.ones_like(x)
        return x * factor, state, factor

    return Layer("noise", lambda key, in_shape, dtype=jnp.float32: ({}, ()), forward, lambda p, t, d: (d * t, {}))


def test_random_layers_draw_from_their_name():
    """Named layers keep their numbers when others are inserted; every pass of repeat and share draws its own."""
    x, key = ones(2, 3), jax.random.key(3)
    short = serial(named("noise", noise()))
    long = serial(tanh, noise(), named("noise", noise()))
    tape = lambda net: numpy_tree(evaluated(lambda key: net.forward({}, (), x, train=True, rng=key)[2])(key))
    of_short, of_long = tape(short), tape(long)
    assert (of_short["noise"] == of_long["noise"]).all()
    assert not (of_long["noise"] == of_long["noise_0"]).any()
    for many in (repeat(noise(), 3), share(noise(), 3)):
        factors = tape(many)
        assert len(np.unique(factors)) == factors.size
    assert (evaluated(lambda x: serial(noise()).forward({}, (), x)[0])(x) == x).all()  # no key needed in evaluation
    with pytest.raises(ValueError, match="layer 'noise_0': noise needs rng"):
        serial(noise()).forward({}, (), x, train=True)


def test_random_layers_agree_with_autodiff_and_twins():
    net = serial(dense(3), noise(), repeat(serial(dense(3), noise()), 2))
    args = (*drawn(net, (3,)), ones(4, 3), 0 * ones(4, 3))
    ways = (
        (backprop, net),
        (autodiff, net),
        (backprop, map_layers(autodiff_twin, net)),
        (backprop, autodiff_twin(net)),
    )
    hand, *others = jax.jit(lambda key: [gradient(net, losses.mse)(*args, rng=key) for gradient, net in ways])(
        jax.random.key(1)
    )
    for other in others:
        close(numpy_tree(hand.grads), numpy_tree(other.grads), 1e-6, "random layers")
    calm = evaluated(backprop(net, losses.mse, train=False))(*args)
    assert float(calm.loss) != float(hand.loss)


def test_the_name_hash_is_the_same_in_every_process():
    code = "from jaxnn.keys import name_hash; print(name_hash('encoder'), name_hash('dense_0'))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == "580179152 2965542851\n"


# ---------------------------------------------------------------- trees, integers, state, custom_vjp


def table() -> Layer:
    """A lookup table with an integer input beside a float one: {"index": [N], "x": [N, 3]} -> [N, 3]."""

    def init(key, in_shape, dtype=jnp.float32):
        return {"rows": jax.random.normal(key, (5, 3), dtype)}, ()

    def forward(params, state, x, *, train=False, rng=None):
        return params["rows"][x["index"]] * x["x"], state, x

    def backward(params, tape, delta):
        rows = jnp.zeros_like(params["rows"]).at[tape["index"]].add(delta * tape["x"])
        return {"index": (), "x": delta * params["rows"][tape["index"]]}, {"rows": rows}

    return Layer("table", init, forward, backward)


def test_trees_and_integer_inputs():
    net = serial(table(), dense(2))
    x = {"index": np.array([0, 3, 3, 1], np.int32), "x": normal(4, 3)}
    spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    params, state = drawn(net, spec)
    t = ones(4, 2)
    hand, auto = (evaluated(f(net, losses.mse, read=("deltas",)))(params, state, x, t) for f in (backprop, autodiff))
    twins = evaluated(backprop(map_layers(autodiff_twin, net), losses.mse))(params, state, x, t)
    close(numpy_tree((hand.grads, hand.readings)), numpy_tree((auto.grads, auto.readings)), 1e-6, "integers")
    close(numpy_tree(hand.grads), numpy_tree(twins.grads), 1e-6, "integers, twins")

    apply = as_custom_vjp(net)
    cost = lambda params, x: losses.mse.value(apply(params, state, x)[0], t).mean()
    close(numpy_tree(jax.jit(jax.grad(cost))(params, x)), numpy_tree(auto.grads), 1e-6, "custom_vjp")
    to_x = jax.grad(lambda x: cost(params, x), allow_int=True)(x)
    assert to_x["index"].dtype == jax.dtypes.float0
    plain = evaluated(jax.grad(lambda v: losses.mse.value(net.forward(params, state, {**x, "x": v})[0], t).mean()))(
        x["x"]
    )
    close(np.asarray(to_x["x"]), np.asarray(plain), 1e-6, "δ_in beside an integer")


def counter() -> Layer:
    """A layer whose state counts its uses in training."""

    def forward(params, state, x, *, train=False, rng=None):
        return x * 2, state + int(train), x[:0]

    return Layer("counter", lambda key, in_shape, dtype=jnp.float32: ({}, jnp.zeros((), jnp.int32)), forward,
                 lambda p, t, d: (2 * d, {}))  # fmt: skip


def test_state_goes_in_and_comes_out():
    net = serial(counter(), repeat(counter(), 2), share(counter(), 3), residual(counter()),
                 parallel(counter(), tanh))  # fmt: skip
    params, state = evaluated(lambda: net.init(jax.random.key(0), (3,)))()
    assert params == {}
    out = evaluated(backprop(net, losses.mse))(params, state, ones(2, 3), ones(2, 6))
    assert jax.tree.map(lambda leaf: leaf.tolist(), out.state) == {
        "counter_0": 1, "repeat_0": [1, 1], "share_0": 3, "residual_0": 1, "parallel_0": {"counter_0": 1},
    }  # fmt: skip
    y, new_state = evaluated(lambda *args: as_custom_vjp(net)(*args, train=True))(params, state, ones(2, 3))
    assert jax.tree.leaves(new_state)[0] == 1
    assert y.shape == (2, 6)


def test_custom_vjp_with_randomness_inside_a_larger_program():
    net = serial(dense(3), noise(), relu, dense(1))
    params, state = drawn(net, (2,))
    apply, x, key = as_custom_vjp(net), ones(4, 2), jax.random.key(5)

    @jax.jit
    def gradients(params, key):
        hand = jax.grad(lambda p: jnp.sum(apply(p, state, x, train=True, rng=key)[0] ** 2))(params)
        auto = jax.grad(lambda p: jnp.sum(net.forward(p, state, x, train=True, rng=key)[0] ** 2))(params)
        return hand, auto

    close(*numpy_tree(gradients(params, key)), 1e-6, "inside a larger program")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: apply(params, state, x)[0], (x,), (x,))


def test_second_order_through_the_plain_functions():
    """backward is a plain function: a Hessian-vector product may differentiate through it."""
    net = mlp([3, 1], tanh)
    with jax.enable_x64(True):
        params, state = drawn(net, (2,), "float64")
        args = (state, np.ones((4, 2)), np.zeros((4, 1)))
        product = lambda p, v, f: jax.jvp(lambda p: f(net, losses.mse)(p, *args).grads, (p,), (v,))[1]
        products = evaluated(lambda *pair: [product(*pair, f) for f in (backprop, autodiff)])(
            params, jax.tree.map(np.cos, params)
        )
        close(*numpy_tree(products), 1e-10, "Hessian-vector product")


# ---------------------------------------------------------------- refusals


def test_refusals():
    net = mlp([3, 2])
    params, state = drawn(net, (4,))
    x, t = ones(5, 4), ones(5, 2)
    with pytest.raises(ValueError, match=r"unknown reading 'delta'; known are \['delta_norms', 'deltas'\]"):
        backprop(net, losses.mse, read=("delta",))
    with pytest.raises(TypeError, match=r"read=\('deltas',\)"):
        backprop(net, losses.mse, read="deltas")
    with pytest.raises(ValueError, match="two readings have one name"):
        backprop(net, losses.mse, read=("deltas", "deltas"))
    with pytest.raises(ValueError, match="autodiff: reads 'deltas' only"):
        autodiff(net, losses.mse, read=("delta_norms",))
    for gradient in (backprop, autodiff):
        with pytest.raises(ValueError, match=r"weights must have shape \(5,\)"):
            gradient(net, losses.mse)(params, state, x, t, weights=ones(5, 1))
    forgetful = serial(dense(2)._replace(backward=lambda p, t, d: (d @ p["w"].T, {"w": p["w"]})))
    params, state = drawn(forgetful, (4,))
    with pytest.raises(ValueError, match=r"backward gave gradients.*\n.*dense_0/b: expected \[2\], missing"):
        backprop(forgetful, losses.mse)(params, state, x, t)


# ---------------------------------------------------------------- precision and the records' contracts


@pytest.mark.parametrize(
    ("params_dtype", "x_dtype"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16), (jnp.float16, jnp.float32)]
)
def test_gradients_have_the_precision_of_what_they_are_of(params_dtype, x_dtype):
    """Parameters and data of two precisions, where the user lets JAX promote: grads like θ, δ_in like x."""
    net = serial(dense(3), tanh, dense(2))
    params, state = drawn(net, (4,), params_dtype)
    x, t = normal(5, 4, dtype=x_dtype), ones(5, 2)
    apply, spec = as_custom_vjp(net), lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    with jax.numpy_dtype_promotion("standard"):
        for gradient in (backprop, autodiff):
            assert spec(jax.eval_shape(gradient(net, losses.mse), params, state, x, t).grads) == spec(params)
        twice = lambda p, x: apply(p, state, x)[0].sum() + (2 * x).sum()  # the two cotangents of x are added
        assert spec(jax.eval_shape(jax.grad(twice, argnums=(0, 1)), params, x)) == (spec(params), spec(x))


def test_float16_gradients_and_deltas_of_a_large_batch():
    """N is beyond float16's largest number and 1/N below its smallest normal one."""
    n, net = 70_000, mlp([3, 2], tanh)
    params, state = drawn(net, (2,), "float16")
    x = normal(n, 2, dtype="float16")
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, x))
    t = np.zeros(n, np.int32)
    for gradient in (backprop, autodiff):
        run = gradient(net, losses.softmax_cross_entropy, read=("deltas",))
        out, exact = jax.jit(run)(params, state, x, t), evaluated(run)(wide[0], state, wide[1], t)
        close(numpy_tree(out.grads), numpy_tree(exact.grads), 1e-3, "float16 gradients")  # two roundings of 2⁻¹¹
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out.readings))


def test_losses_and_penalties_of_another_form_are_refused():
    net = mlp([3, 2])
    params, state = drawn(net, (4,))
    args = (params, state, ones(5, 4), ones(5, 2))
    value, delta = losses.mse.value, losses.mse.delta
    for wrong, shape in ((lambda y, t: value(y, t).mean(), r"\(\)"), (lambda y, t: (y - t) ** 2, r"\(5, 2\)")):
        for gradient in (backprop, autodiff):
            with pytest.raises(ValueError, match=rf"loss 'wrong': value must give one cost .* got shape {shape}"):
                jax.eval_shape(gradient(net, losses.mse._replace(name="wrong", value=wrong)), *args)
    with pytest.raises(ValueError, match=r"loss 'wrong': its delta .*\n.*expected \[5, 2\], got \[5, 1\]"):
        jax.eval_shape(backprop(net, losses.mse._replace(name="wrong", delta=lambda y, t: delta(y, t)[:, :1])), *args)
    no_biases = lambda params: {name: {"w": leaves["w"]} for name, leaves in params.items()}
    with pytest.raises(ValueError, match=r"penalty 'l2': its grad .*\n.*dense_0/b: expected \[3\], missing"):
        jax.eval_shape(backprop(net, losses.mse, penalty=L2._replace(grad=no_biases)), *args)
    for gradient in (backprop, autodiff):
        with pytest.raises(ValueError, match=r"penalty 'l2': value must be a scalar, got shape \(3,\)"):
            jax.eval_shape(
                gradient(net, losses.mse, penalty=L2._replace(value=lambda params: params["dense_0"]["b"])), *args
            )
        with pytest.raises(TypeError, match=r"loss must be a Loss record.*losses.huber\(\)"):
            gradient(net, losses.huber)
        with pytest.raises(TypeError, match=r"net must be a Layer record.*serial\(relu\)"):
            gradient(relu, losses.mse)


@pytest.mark.parametrize("many", [repeat, share])
def test_nothing_many_times_is_nothing(many):
    net = serial(dense(3), many(serial(), 2))
    args = (*drawn(net, (3,)), ones(2, 3), ones(2, 3))
    out = [evaluated(f(net, losses.mse))(*args).grads for f in (backprop, autodiff)]
    close(*numpy_tree(out), 1e-6, "an empty serial")


def test_integers_that_pass_through():
    """A mask handed on from layer to layer beside the features: δ is () in its place, and no sum is taken of it."""

    def init(key, in_shape, dtype=jnp.float32):
        return {}, ()

    def hand_on(params, state, x, *, train=False, rng=None):
        return {"h": 2 * x["h"], "mask": x["mask"]}, state, ()

    def apply_mask(params, state, x, *, train=False, rng=None):
        return x["h"] * x["mask"][:, None], state, x["mask"]

    through = Layer("through", init, hand_on, lambda p, t, d: ({"h": 2 * d["h"], "mask": ()}, {}))
    last = Layer("last", init, apply_mask, lambda p, mask, d: ({"h": d * mask[:, None], "mask": ()}, {}))
    x = {"h": normal(4, 3), "mask": np.array([0, 1, 1, 0], np.int32)}
    args = ({}, (), x, ones(4, 3))
    net = serial(through, repeat(through, 2), share(through, 2), last)
    with jax.numpy_dtype_promotion("standard"):  # of float and mask
        hand, auto = (evaluated(f(net, losses.mse, read=("deltas",)))(*args) for f in (backprop, autodiff))
        close(numpy_tree(hand.readings), numpy_tree(auto.readings), 1e-6, "δ beside integers")
        twins = map_layers(autodiff_twin, net)
        total = lambda h, net: as_custom_vjp(net)({}, (), x | {"h": h})[0].sum()
        ways = evaluated(lambda h: [jax.grad(total)(h, each) for each in (net, twins)])(x["h"])
        close(*numpy_tree(ways), 1e-6, "twins")
        with pytest.raises(ValueError, match=r"residual adds x and f\(x\), which must be floats, got int32\[4\]"):
            residual(through).forward({}, (), x)
