"""Low precision: the rows of `cases.py` in bfloat16 and float16, what is computed in which precision, and names.

`test_loss_scaling.py` has the scale of the loss.
"""

import json
import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from cases import CASES
from draws import drawn
from laws import BFLOAT16_FACTOR, BFLOAT16_SEEDS, FLOAT32, _step, close, forward, made, variables
from recurrent_cases import MASKED

import jaxnn
from jaxnn import (
    Layer,
    Loss,
    Sequences,
    activation,
    autodiff,
    autodiff_twin,
    backprop,
    batch_norm,
    conv,
    dense,
    describe,
    embedding,
    from_description,
    gradcheck,
    layer_norm,
    leaf_layers,
    losses,
    low_precision,
    lstm,
    map_layers,
    named,
    relu,
    repeat,
    residual,
    rnn,
    serial,
    share,
    softmax,
    summary,
    tanh,
    with_rules,
)
from jaxnn.factors import generic
from jaxnn.jaxprs import equations
from jaxnn.passes.parts import factors_of, products

F32, F64 = jnp.dtype("float32"), jnp.dtype("float64")
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # one rounding of the result
FEW = {"dense over time", "lstm", "embedding", "repeat of batch_norm", "norms and dropout"}
IN_TURN = ("bfloat16", "float16")  # the fast tests take one or the other
distance = Loss("distance", lambda y, t: 0.5 * jnp.square(y - t).sum(tuple(range(1, y.ndim))), lambda y, t: y - t)


def rows(few=FEW):
    """Every row in both precisions; in the fast tests a few, in one of them."""
    kept = [case.name for case in CASES if case.name in few]
    return [
        pytest.param(case, dtype, id=f"{case.name}, {dtype}", marks=[] if fast else [pytest.mark.long])
        for case in CASES
        for dtype in ROUNDING
        for fast in [case.name in few and dtype == IN_TURN[kept.index(case.name) % 2]]
    ]


@cache
def lowered(case, dtype="bfloat16"):
    return low_precision(made(case), dtype)


def floats_in(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


# ---------------------------------------------------------------- every row


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_parameters_gradients_and_output_are_float32(case):
    """And what lies between leaves is in low precision, as the readings show, by hand and by jax.grad."""
    layer = lowered(case)
    params, state, x, delta, _ = variables(case, layer, F32)
    assert jax.tree.structure(params) == jax.tree.structure(variables(case, made(case), F32)[0])
    y, new_state, tape = jax.eval_shape(lambda *args: forward(case, layer, *args), params, state, x)
    delta_in, grads = jax.eval_shape(layer.backward, params, tape, delta)
    spec = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert (spec(grads), spec(new_state)) == (spec(params), spec(state))
    assert floats_in(y) == {"float32"}
    assert floats_in(delta_in) <= {"float32"}
    read = lambda params, state, x: backprop(layer, distance, read=("deltas",), train=case.train)(
        params, state, x, delta, rng=case.rng
    )
    out = jax.eval_shape(read, params, state, x)
    assert floats_in(out.readings) <= {"bfloat16"}
    assert floats_in((out.loss, out.grads)) == {"float32"}


@pytest.mark.parametrize(("case", "dtype"), rows())
def test_by_hand_is_no_further_from_float32_than_by_jax_grad(case, dtype):
    """The worst elements, on average over draws: as in the law for parameters in bfloat16."""
    layer = lowered(case, dtype)
    both = by_numpy(lambda *args: (_step(case, layer)(*args)[1], _step(case, autodiff_twin(layer))(*args)[1]))
    exact, off = by_numpy(lambda *args: _step(case, made(case))(*args)[1]), []
    for seed in BFLOAT16_SEEDS:
        args = variables(case, layer, F32, seed=seed)[:4]
        *found, right = (jax.tree.leaves(tree) for tree in (*both(*args), exact(*args)))
        worst = lambda a, b: np.abs(np.asarray(a) - b).max(initial=0) / np.abs(b).max(initial=1e-30)
        off.append([list(map(worst, tree, right)) for tree in found])
    for hand, auto in np.mean(off, 0).T:
        assert hand <= BFLOAT16_FACTOR * auto + ROUNDING[dtype], f"{hand:.1e} off, jax.grad {auto:.1e}"


@pytest.mark.parametrize(("case", "dtype"), rows({"everything"}))
def test_readings_are_those_of_jax_grad(case, dtype):
    layer = lowered(case, dtype)
    params, state, x, _, target = variables(case, layer, F32)
    passes = [
        by_numpy(lambda *args, g=g: g(layer, distance, read=("deltas",), train=case.train)(*args, rng=case.rng))
        for g in (backprop, autodiff)
    ]
    hand, auto = (run(params, state, x, target) for run in passes)
    np.testing.assert_array_equal(hand.output, auto.output)
    for found in ((hand.readings, auto.readings), (hand.grads, auto.grads)):
        close(*found, 2**5 * ROUNDING[dtype], "by hand and by jax.grad")  # of a dozen layers, cancelling in places
    names = lambda net: set(jaxnn.ordered_leaves(net, jax.eval_shape(
        lambda p, s, x: backprop(net, distance, read=("deltas",), train=case.train)(p, s, x, target, rng=case.rng),
        params, state, x,
    ).readings["deltas"]))  # fmt: skip
    assert names(layer) == names(made(case))


@pytest.mark.parametrize(("case", "dtype"), rows({"lstm", "conv", "embedding"}))
def test_factors_summed_are_the_gradient(case, dtype):
    if case.train and made(case).couples_batch:
        pytest.skip("examples are coupled")
    layer = lowered(case, dtype)

    def both(params, state, x, delta):
        _, _, tape = forward(case, layer, params, state, x)
        _, grads = layer.backward(params, tape, delta)
        return grads, products(factors_of(layer, params, tape, delta)), products(generic(layer, params, tape, delta))

    grads, summed, one_by_one = by_numpy(both)(*variables(case, layer, F32)[:4])
    # in a frame of a user's functions the rule rounds what it returns, the gradient of a batch or of each of 4 examples
    allowed = 4 * ROUNDING[dtype] if case.name in MASKED else FLOAT32
    close(summed, grads, allowed, "the layer's own factors")
    close(one_by_one, grads, allowed, "one example at a time")


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["dense", "conv", "lstm", "embedding", "batch_norm", "norms and dropout", "repeat of share"]
)
def test_gradcheck_finds_every_rule_right(name):
    (case,) = (case for case in CASES if case.name == name)
    layer = lowered(case)
    params, state, x, _, target = variables(case, layer, F32)
    report = gradcheck.network(layer, distance, params, state, x, target, train=case.train, rng=case.rng)
    assert {row.verdict for row in report.rows} == {"right"}, report


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.long)])
def test_gradcheck_names_a_leaf_with_a_wrong_rule(dtype):
    """A fault as small as what bfloat16 rounds: rules are compared without the casts."""
    off = lambda p, x, d: (d @ p["w"].T, {"w": x.T @ d + 2.0**-7 * (x.T @ d), "b": d.sum(0)})
    net = low_precision(serial(with_rules(dense(2), backward=off), dense(2)), dtype)
    params, state = net.init(0, (2,))
    draw = np.random.default_rng(0)
    x, target = draw.normal(size=(4, 2)).astype(np.float32), draw.normal(size=(4, 2)).astype(np.float32)
    report = gradcheck.network(net, losses.mse, params, state, x, target)
    assert report.wrong == ("dense_0",)


# ---------------------------------------------------------------- which precision


def products_of(layer, in_shape, dtype=F32):
    """(operands' dtypes, output's dtype, output's shape) of every product in a forward and backward pass."""
    params, state = jax.eval_shape(lambda: layer.init(jax.random.key(0), in_shape, dtype))
    x = jax.ShapeDtypeStruct((6, *getattr(in_shape, "shape", in_shape)), getattr(in_shape, "dtype", dtype))

    def both(params, state, x):
        y, _, tape = layer.forward(params, state, x, train=True)
        return layer.backward(params, tape, jnp.ones_like(y))

    found = []
    for eqn in equations(jax.make_jaxpr(both)(params, state, x).jaxpr):
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            out = eqn.outvars[0].aval
            found.append(({str(v.aval.dtype) for v in eqn.invars}, str(out.dtype), out.shape))
    return found, params


NETS = {
    "dense": (lambda: serial(dense(40), relu, dense(7)), (9,)),
    "conv": (lambda: serial(conv(4, (3, 3)), relu, conv(6, (3, 3), groups=2, stride=2)), (8, 8, 2)),
    "recurrent": (lambda: serial(lstm(5), jaxnn.gru(4), rnn(3, returns="last")), (4, 2)),
    "tied": (lambda: serial(dense(4), share(repeat(serial(dense(4), tanh), 2), 2)), (3,)),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_products_are_of_low_precision_and_only_sums_of_gradients_are_wide(name, x64):
    products_are_low(name, x64)


def products_are_low(name, x64=False):
    make, in_shape = NETS[name]
    with jax.enable_x64(x64):
        found, params = products_of(low_precision(make()), in_shape, F64 if x64 else F32)
        full, _ = products_of(make(), in_shape, F64 if x64 else F32)
    assert len(found) == len(full) > 0 or name == "conv"  # in half precision by other algorithms
    shapes = [leaf.shape[-2:] for leaf in jax.tree.leaves(params)]
    wide = [shape for operands, out, shape in found if out != "bfloat16"]
    assert {kind for operands, _, _ in found for kind in operands} == {"bfloat16"}
    assert {out for _, out, _ in found} == {"bfloat16", "float64" if x64 and name != "recurrent" else "float32"}
    assert all(shape[-2:] in shapes or shape[-2:][::-1] in shapes or name == "recurrent" for shape in wide)
    weights = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(params))
    assert len(wide) <= weights  # one for each matrix, [x, h] as one


def test_flops_are_those_of_the_full_precision():
    """Of products and convolutions, and of the hand-derived rules those of jax.grad: all that is added are casts."""
    net = serial(dense(64), relu, dense(64), relu, dense(10))
    params, state = net.init(0, (32,))
    x, target = np.ones((128, 32), np.float32), np.zeros((128, 10), np.float32)

    def flops(net, gradient):
        run = lambda params: gradient(net, losses.mse)(params, state, x, target).grads
        return jax.jit(run).lower(params).cost_analysis()["flops"]

    full, low, auto = flops(net, backprop), flops(low_precision(net), backprop), flops(low_precision(net), autodiff)
    assert low <= 1.02 * full
    assert low <= 1.02 * auto


SUMMED = {  # layer, its input, and gradients of δ = 1 that bfloat16 has no number for
    "dense": (lambda: dense(1), lambda n: np.ones((n, 1), np.float32)),
    "conv": (lambda: conv(1, (1,)), lambda n: np.ones((n, 1, 1), np.float32)),
    "depthwise": (lambda: conv(2, (1,), groups=2), lambda n: np.ones((n, 1, 2), np.float32)),
    "embedding": (lambda: embedding(1, 1), lambda n: np.zeros((n,), np.int32)),
    "shared": (lambda: share(dense(1), 1), lambda n: np.ones((n, 1), np.float32)),
    "rnn": (lambda: rnn(1, activation=jaxnn.identity), lambda n: np.ones((n, 1, 1), np.float32)),
    "layer_norm": (layer_norm, lambda n: np.ones((n, 1), np.float32)),
}


@pytest.mark.parametrize("name", SUMMED)
def test_sums_of_gradients_are_not_rounded(name):
    sums_are_not_rounded(name)


def sums_are_not_rounded(name):
    make, inputs = SUMMED[name]
    layer, n = low_precision(make()), 259  # between 256 and 512 bfloat16 has even numbers only
    x = inputs(n)
    params, state = layer.init(0, jaxnn.shapes.example_shape(x))

    def gradients(params, state, x):
        y, _, tape = layer.forward(params, state, x)
        return layer.backward(params, tape, jnp.ones_like(y))[1]

    grads = by_numpy(gradients)(params, state, x)
    leaves = {key: np.ravel(leaf)[0] for key, leaf in grads.items() if key not in ("w_h", "scale")}
    assert set(leaves.values()) == {n}, leaves


class Keeps(Layer):
    """2x, and what it is given."""

    keeps_precision = True

    def init(self, key, in_shape, dtype=F32):
        return {"scale": jnp.full((), 2.0, dtype)}, ()

    def forward(self, params, state, x, *, train=False, rng=None):
        assert (x.dtype, params["scale"].dtype) == (F32, F32)
        return params["scale"] * x, state, (x,)

    def backward(self, params, tape, delta):
        assert delta.dtype == F32
        return params["scale"] * delta, {"scale": (tape[0] * delta).sum()}


def own(precision):
    """A record of a user's functions that checks what it is given."""

    def forward(params, state, x, *, train=False, rng=None):
        assert {x.dtype, params["scale"].dtype} == {jnp.dtype(precision)}
        return params["scale"] * x, state, x

    def backward(params, tape, delta):
        assert delta.dtype == jnp.dtype(precision)
        return params["scale"] * delta, {"scale": (tape * delta).sum(dtype=F32)}

    return Layer("own", Keeps().init, forward, backward)


def test_a_layer_of_ones_own():
    """Of a class that keeps its precision, and of functions, whose sum in float32 is kept."""
    net = low_precision(serial(Keeps(), own("bfloat16"), residual(Keeps())))
    params, state = net.init(0, (1,))
    x = np.ones((259, 1), np.float32)
    y, _, tape = net.forward(params, state, x)
    delta_in, grads = net.backward(params, tape, jnp.ones_like(y))
    assert (y.dtype, float(y[0, 0]), float(delta_in[0, 0])) == (F32, 12.0, 12.0)
    assert {name: float(part["scale"]) for name, part in grads.items() if "residual" not in name} == {
        "Keeps_0": 259 * 6.0, "own_0": 259 * 6.0,
    }  # fmt: skip


def test_norms_and_softmax_compute_in_float32():
    norms_are_rounded_once()


def norms_are_rounded_once():
    for layer in (layer_norm(), jaxnn.rms_norm(), jaxnn.group_norm(1), batch_norm(), softmax()):
        assert layer.keeps_precision
        params, state = layer.init(0, (3,))
        x = np.random.default_rng(0).normal(size=(5, 3)).astype(jnp.bfloat16).astype(np.float32)
        run = by_numpy(lambda *args, layer=layer: [
            each.forward(*args, train=True)[:2] for each in (low_precision(layer), layer)
        ])  # fmt: skip
        low, full = run(params, state, x)
        close(low[0], full[0].astype(jnp.bfloat16), 0.0, "rounded once")
        close(low[1], full[1], 0.0, "the running statistics")


FAULTS = {  # where, what is put there, and the check that must fail
    "casting forgotten": ("combinators.precision.narrowed", lambda tree, _: tree, lambda: products_are_low("dense")),
    "dense leaves gradients in bfloat16": ("layers.dense.dense.unrounded", None, lambda: sums_are_not_rounded("dense")),
    "conv leaves gradients in bfloat16": (
        "layers.convolution.conv.conv.unrounded", None, lambda: sums_are_not_rounded("conv"),
    ),
    "a norm in bfloat16": ("layers.norm.features.layer_norm.keeps_precision", False, norms_are_rounded_once),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault, monkeypatch):
    where, wrong, check = FAULTS[fault]
    if wrong is None:
        rounds = lambda self, params, tape, delta, dtype: jax.tree.map(
            lambda leaf: leaf.astype(delta.dtype), right(self, params, tape, delta, dtype)
        )
        kind = {"dense": dense, "conv": conv}[fault.split()[0]]
        right, wrong = kind.unrounded, rounds
    monkeypatch.setattr(f"jaxnn.{where}", wrong)
    with pytest.raises(AssertionError):
        check()


def test_a_float64_network_has_float64_parameters_and_output():
    with jax.enable_x64(True):
        net = low_precision(serial(dense(3), layer_norm(), dense(2)))
        params, state = net.init(0, (4,), F64)
        out = jax.eval_shape(lambda p: backprop(net, losses.mse)(p, state, jnp.ones((5, 4)), jnp.ones((5, 2))), params)
        assert floats_in((params, out.grads, out.output, out.loss)) == {"float64"}


def test_lower_parameters_or_inputs_stay_as_they_are():
    net = low_precision(dense(2), "float32")
    params, _ = net.init(0, (3,), jnp.bfloat16)
    y, _, _ = net.forward(params, (), jnp.ones((4, 3), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


# ---------------------------------------------------------------- nets of nets


def test_names_records_and_descriptions():
    net = serial(dense(3), relu, dense(2))
    low = low_precision(net)
    assert low == low_precision(serial(dense(3), relu, dense(2)), jnp.bfloat16) != low_precision(net, jnp.float16)
    assert hash(low) == hash(low_precision(net, "bfloat16"))
    assert repr(low) == "low_precision(serial(dense(3), relu, dense(2)))"
    assert repr(low_precision(net, jnp.float16)).endswith(", dtype='float16')")
    assert from_description(json.loads(json.dumps(describe(low)))) == low == pickle.loads(pickle.dumps(low))
    assert map_layers(lambda leaf: leaf, low) == low
    assert [path for path, _ in leaf_layers(low)] == [path for path, _ in leaf_layers(net)]
    inside = serial(
        low_precision(dense(3)), relu, named("out", low_precision(dense(2))), low_precision(named("b", tanh))
    )
    assert inside.child_names == ("dense_0", "relu_0", "out", "b")
    lines = [str(summary(each, (4,))) for each in (net, low)]
    assert lines[0].splitlines()[1:-1] == lines[1].splitlines()[1:-1]  # XLA counts casts as FLOPs


def test_a_network_within_a_low_precision_network():
    """A layer computes in the inner dtype; residual adds in the outer one."""
    seen = []

    def forward(params, state, x, *, train=False, rng=None):
        seen.append(x.dtype)
        return x, state, ()

    spy = Layer("spy", lambda key, in_shape, dtype=F32: ({}, ()), forward, lambda p, t, d: (d, {}))
    net = low_precision(
        serial(spy, residual(low_precision(spy, jnp.float16)), named("a", low_precision(spy, "float16")))
    )
    params, state = net.init(0, (2,))
    seen.clear()
    y, _, tape = net.forward(params, state, jnp.ones((3, 2)))
    assert seen == [jnp.bfloat16, jnp.float16, jnp.float16]
    assert net.backward(params, tape, y)[0].dtype == y.dtype == F32


def test_sequences_with_mask_and_initial_state():
    net = low_precision(serial(embedding(4, 2), lstm(3), dense(2)))
    x = Sequences(np.array([[0, 1, 2], [3, -7, 0]], np.int32), np.array([[1, 1, 1], [1, 0, 1]], bool),
                  (np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)))  # fmt: skip
    params, state = drawn(net, jaxnn.shapes.example_shape(x))

    def both(params, x):
        found = []
        for rule in (net, autodiff_twin(net)):
            y, _, tape = rule.forward(params, state, x)
            delta = Sequences(jnp.ones_like(y.values), (), jax.tree.map(jnp.zeros_like, y.initial))
            found.append(rule.backward(params, tape, delta))
        return y, *found

    y, (delta_in, grads), expected = by_numpy(both)(params, x)
    assert floats_in(delta_in.initial) == floats_in(y.values) == {"float32"}
    assert delta_in.values == ()
    close((delta_in, grads), expected, 2**4 * ROUNDING["bfloat16"], "by hand and by jax.grad")


def test_jit_vmap_and_grad():
    net = low_precision(serial(dense(4), tanh, layer_norm(), dense(2)))
    keys, x, target = jax.random.split(jax.random.key(0), 3), np.ones((5, 3), np.float32), np.ones((5, 2), np.float32)

    def one(net, key):
        params, state = net.init(key, (3,))
        apply = jaxnn.as_custom_vjp(net)
        through = jax.grad(lambda p: distance.value(apply(p, state, x)[0], target).mean())(params)
        return backprop(net, distance)(params, state, x, target).grads, through

    together = jax.tree.map(np.asarray, jax.jit(jax.vmap(one, (None, 0)))(net, keys))
    close(together[0], together[1], FLOAT32, "jax.grad through as_custom_vjp")
    alone = by_numpy(lambda key: one(net, key))(keys[1])
    # XLA does not round between the operations that it fuses: up to a rounding for each of the four layers and back
    close(jax.tree.map(lambda leaf: leaf[1], together), alone, 8 * ROUNDING["bfloat16"], "vmap = one by one")


def test_on_explicit_axes():
    """Types alone: nothing is compiled."""
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    net = low_precision(serial(conv(2, (3,)), batch_norm(), relu, lstm(3), dense(4)))
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), (6, 2)))
    on = lambda tree, spec: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.NamedSharding(mesh, spec)), tree
    )
    x = on(jax.ShapeDtypeStruct((4, 6, 2), F32), jax.P("data"))

    def both(params, state, x):
        y, _, tape = net.forward(params, state, x, train=True)
        return y, *net.backward(params, tape, y)

    y, delta_in, grads = jax.eval_shape(both, on(params, jax.P()), on(state, jax.P()), x)
    assert y.sharding.spec[0] == delta_in.sharding.spec[0] == "data"
    assert not any(any(leaf.sharding.spec) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("dtype", ["int8", jnp.int32, "float8", 16, None, jnp.complex64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(
        ValueError, match=r"low_precision: dtype must be jnp.bfloat16 or jnp.float16, or one of .*, got"
    ):
        low_precision(dense(2), dtype)


def test_bad_input():
    with pytest.raises(TypeError, match="low_precision: expected layers"):
        low_precision(3)
    net = low_precision(dense(2))
    params, state = net.init(0, (3,))
    y, _, tape = net.forward(params, state, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"dense expects δ like its output, float32\[4, 2\], got bfloat16"):
        net.backward(params, tape, y.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="dense expects 3 features"):
        net.forward(params, state, jnp.ones((4, 5)))


def test_an_activation_record_is_a_layer():
    assert low_precision(relu) == low_precision(activation(relu))
