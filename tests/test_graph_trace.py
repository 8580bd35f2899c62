"""The graph of any function: its values are the jaxpr's own, and its gradients those of jax.grad and of backprop."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from examples_loader import load_example

from jaxnn import (
    backprop,
    dense,
    graph,
    losses,
    repeat,
    residual,
    serial,
    tanh,
)

EXACT = 1e-12  # of a leaf's largest element, in float64


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def node(traced, operation):
    (found,) = (node for node in traced.nodes if node.operation == operation)
    return found


# ---------------------------------------------------------------- textbook graphs


def test_x_times_x_plus_y():
    traced = graph.trace(lambda x, y: x * (x + y))(2.0, 1.0)
    add, mul = traced.nodes
    assert (traced.value, *traced.gradients) == (6, 5, 2)
    assert (add.value, add.gradient, mul.value, mul.gradient) == (3, 2, 6, 1)
    assert mul.passed == (3, 2)  # to x along one path, and to z
    assert add.passed == (2, 2)  # to x along the other, and to y: 3 + 2 = 5
    assert (mul.formula, mul.rule) == ("δx = δ y, δy = δ x", "by hand")
    assert (add.file, add.line) == (__file__, test_x_times_x_plus_y.__code__.co_firstlineno + 1)


def test_an_exponential_of_a_maximum():
    traced = graph.trace(lambda x, y: x * jnp.exp((x * 3) * jnp.maximum(x, y)))(2.0, 1.0)
    e = math.exp(12)
    assert float(traced.value) == pytest.approx(2 * e, rel=EXACT)
    assert [float(g) for g in traced.gradients] == pytest.approx([e * (1 + 12 * 2), 0], rel=EXACT)  # f = x e^{3x²}


def test_a_sigmoid_neuron():
    w, x, b = 1.5, -2.0, 0.5
    traced = graph.trace(lambda w, x, b: 1 / (1 + jnp.exp(-(w * x + b))))(w, x, b)
    s = 1 / (1 + math.exp(2.5))
    slope = s * (1 - s)
    assert [float(g) for g in traced.gradients] == pytest.approx([slope * x, slope * w, slope], rel=EXACT)


def test_the_published_example_of_micrograd():
    traced = graph.trace(load_example("graph_micrograd").published)(-4.0, 2.0)
    assert [round(float(v), 4) for v in (traced.value, *traced.gradients)] == [24.7041, 138.8338, 645.5773]


# ---------------------------------------------------------------- a zoo

TIED, KINKED = np.array([1.0, 0.3, 0.3, 1.0]), np.array([0.0, 2.0, -1.0])
X = np.array([0.3, -1.2, 0.7, 2.0])
M = np.array([[1.5, -0.3, 0.2, 0.0], [0.1, 2.0, -0.4, 0.3], [0.0, 0.5, 1.2, -0.2], [0.3, 0.0, 0.1, 1.8]])


@jax.custom_vjp
def tripled(x):
    return jnp.sin(x)


tripled.defvjp(lambda x: (jnp.sin(x), x), lambda x, d: (3 * d * jnp.cos(x),))


def recurrent(x, w):
    h, hs = jax.lax.scan(lambda h, x: (jnp.tanh(w @ h + x), h.sum()), jnp.zeros(4), jnp.outer(x, x))
    return h.sum() + (hs**2).sum()


def backwards(x):
    return jax.lax.scan(lambda c, t: (c * t + 1, c), jnp.ones(()), x, reverse=True)[1].prod()


def layer_norm(x, scale):
    x = x - x.mean()
    return (scale * x / jnp.sqrt((x**2).mean() + 1e-5)).max()


def pytrees(p):
    return (p["a"] * p["b"][0]).sum() + jnp.dot(*p["b"])


def convolved(x):
    return (jax.lax.conv(x, x, (1, 1), "SAME") ** 2).sum()


def one_of_three(x):
    return jax.lax.switch(jnp.int32(2), [jnp.sin, jnp.cos, jnp.exp], x)


def norms(x, w):
    return jnp.linalg.norm(x) + jnp.linalg.norm(w) + jnp.trace(w @ w.T)


ZOO = {
    "arithmetic": (lambda x: ((x**3 - 2 * x) / (x**2 + 1) + 5).sum(), X),
    "powers": (lambda x: (jnp.abs(x) ** 1.7 + x**-2 + jnp.sqrt(x**2 + 1) + jax.lax.rsqrt(x**2 + 1)).sum(), X),
    "exponentials": (lambda x: (jnp.exp(x) + jnp.expm1(x) + jnp.log1p(x**2) + jnp.exp2(x)).sum(), X),
    "circles": (lambda x: (jnp.sin(x) * jnp.cos(x) + jnp.tan(x) + jnp.arctan2(x, 2 + x)).sum(), X),
    "hyperbolas": (lambda x: (jnp.sinh(x) + jnp.cosh(x) * jnp.tanh(x) + jnp.arcsinh(x)).sum(), X),
    "ties": (lambda x: jnp.maximum(x, x[::-1]).sum() + jnp.max(x) + jnp.minimum(x, 0.3).sum(), TIED),
    "kinks": (lambda x: (jnp.abs(x) + jnp.sign(x) + jnp.clip(x, 0, 2) + jax.nn.relu(x)).sum(), KINKED),
    "where": (lambda x: jnp.where(x > 0, x * x, -x).sum(), X),
    "indexing": (lambda x: x[1] * x[-1] + x[1:3].sum() ** 2 + x[jnp.array([0, 0, 3])].prod(), X),
    "updates": (lambda x: (x.at[1].set(2.0).at[2].add(x[0]).at[jnp.array([0, 0])].add(x[2]) ** 2).sum(), X),
    "dynamic slice": (lambda x: jax.lax.dynamic_slice(x, (1,), (2,)).prod() + x[jnp.argmax(x)] ** 2, X),
    "shapes": (lambda x: (x.reshape(2, 2).T @ x.reshape(2, 2))[::-1].ravel().cumsum()[::2].sum(), X),
    "joined": (lambda x: (jnp.concatenate([x, x[:2]]) * jnp.pad(x, (1, 1))).sum() + jnp.stack([x, 2 * x]).prod(), X),
    "repeated": (lambda x: (jnp.tile(x, 2) * jnp.repeat(x, 2)).sum() + jnp.outer(x, x).sum(), X),
    "split": (lambda x: functools.reduce(operator.mul, jnp.split(x, 2)).sum(), X),
    "sorted": (lambda x: (jnp.sort(x) * jnp.arange(4.0)).sum() + jnp.median(x), X),
    "products": (lambda x: x.prod() + x.cumprod().sum() + jnp.cumsum(x).max(), X),
    "statistics": (lambda x: x.mean() + x.var() + x.std() + jax.nn.logsumexp(x), X),
    "softmax": (lambda x: (jax.nn.softmax(x) * jnp.arange(4.0)).sum() + jax.nn.log_softmax(x)[1], X),
    "layer norm": (layer_norm, X, np.array([1.0, 2.0, 0.5, -1.0])),
    "activations": (lambda x: (jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.softplus(x) + jax.nn.elu(x)).sum(), X),
    "norms": (norms, X, M),
    "einsum": (lambda x, w: jnp.einsum("i,ij,jk,k->", x, w, w, x), X, M),
    "batched products": (lambda w: jnp.matmul(w.reshape(2, 2, 4), w.reshape(2, 4, 2)).sum(), M),
    "solve": (lambda w, x: jnp.linalg.solve(w, x).sum(), M, X),
    "determinant": (lambda w: jnp.linalg.slogdet(w)[1] + jnp.linalg.inv(w).sum(), M),
    "cholesky": (lambda w: jnp.linalg.cholesky(w @ w.T).sum(), M),
    "convolution": (lambda x: jnp.convolve(x, x[:2]).max() + convolved(x.reshape(1, 1, 2, 2)), X),
    "pooling": (lambda w: jax.lax.reduce_window(w, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "VALID").sum(), M),
    "special functions": (lambda x: (jax.scipy.special.gammaln(x**2 + 1) + jax.scipy.special.erf(x)).sum(), X),
    "loop": (recurrent, X, M),
    "loop from the end": (backwards, X),
    "counted loop": (lambda x: jax.lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) * x, x).sum(), X),
    "branch": (lambda x: (jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x) + one_of_three(x)).sum(), X),
    "mapped": (lambda x: jax.vmap(lambda t: t * jnp.sin(t))(x).sum() + jax.lax.map(jnp.cos, x).sum(), X),
    "custom rule": (lambda x: tripled(x).sum() + jax.nn.relu(x).sum(), X),
    "checkpointed": (lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.exp(x)).sum())(x), X),
    "jitted": (lambda x: jax.jit(lambda x: jax.jit(jnp.sin)(x) * x)(x).sum() * jax.jit(jnp.sum)(x), X),
    "stopped": (lambda x: (jax.lax.stop_gradient(x) * x).sum(), X),
    "pytrees": (pytrees, {"a": X, "b": (X, X[::-1])}),
    "casts": (lambda x: x.astype(jnp.float32).astype(jnp.float64).sum() + jnp.round(x).sum(), X),
}  # fmt: skip


def evaluated(closed, args):
    """The jaxpr's own value, an operation after another."""
    with jax.disable_jit():
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(args))


def operations(jaxpr):
    """How many nodes a jaxpr has: what jit and checkpoint wrap counts, and they do not."""
    inner = [eqn.params["jaxpr"] for eqn in jaxpr.eqns if eqn.primitive.name in ("jit", "pjit", "remat2", "checkpoint")]
    return len(jaxpr.eqns) - len(inner) + sum(operations(getattr(part, "jaxpr", part)) for part in inner)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(a - b).max() <= EXACT * max(np.abs(b).max(), 1e-300), (a, b)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name):
    f, *args = ZOO[name]
    args = jax.device_put(tuple(args))
    traced = graph.trace(f)(*args)
    closed = jax.make_jaxpr(f)(*args)
    assert np.array_equal(traced.value, evaluated(closed, args)[0])
    assert len(traced.nodes) == operations(closed.jaxpr)
    assert_close(traced.gradients, by_numpy(jax.grad(f, argnums=tuple(range(len(args)))))(*args))
    for each in traced.nodes:
        assert each.rule
        assert each.formula or each.rule != "by hand"
        assert all(g is None or g.shape == v.shape for g, v in zip(each.gradients, each.values, strict=True))


# ---------------------------------------------------------------- at two batch sizes


def recurrent_batch(n):
    def cost(p, x):  # [N, T, D]
        step = lambda h, x: (jnp.tanh(h @ p["w"] + x @ p["u"]), h)
        h, hs = jax.lax.scan(step, jnp.zeros((len(x), 4)), x.swapaxes(0, 1))
        return h.sum() + (hs**2).mean()

    return cost, {"w": M / 2, "u": np.ones((2, 4))}, np.linspace(-1, 2, n * 6).reshape(n, 3, 2)


def attention_batch(n):
    def cost(p, x):  # [N, T, D], causal
        q, k, v = (x @ p[name] for name in "qkv")
        scores = jnp.where(jnp.tri(3, dtype=bool), q @ k.swapaxes(1, 2) / 2, -jnp.inf)
        return jnp.sin(jax.nn.softmax(scores) @ v).mean()

    return cost, {"q": M, "k": M.T, "v": M + 1}, np.linspace(-1, 2, n * 12).reshape(n, 3, 4)


def normalised_batch(n):
    def cost(p, x):
        x = (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5) * p["scale"]
        return jax.nn.log_softmax(x @ p["w"])[jnp.arange(n), jnp.arange(n) % 4].mean()

    return cost, {"scale": X, "w": M}, np.sin(np.arange(n * 4.0)).reshape(n, 4)


BATCHED = [recurrent_batch, attention_batch, normalised_batch]  # a residual network is below, flax in a file of its own


@pytest.mark.parametrize("n", [pytest.param(2, marks=pytest.mark.long), 5])  # each compiles every operation anew
@pytest.mark.parametrize("make", BATCHED)
def test_the_zoo_at_two_batch_sizes(make, n):
    f, *args = make(n)
    args = jax.device_put(tuple(args))
    traced, closed = graph.trace(f)(*args), jax.make_jaxpr(f)(*args)
    assert np.array_equal(traced.value, evaluated(closed, args)[0])
    assert len(traced.nodes) == operations(closed.jaxpr)
    assert_close(traced.gradients, by_numpy(jax.grad(f, argnums=(0, 1)))(*args))


def test_pytrees_in_and_out_and_a_while_loop_by_its_values():
    """A while loop has no gradient in reverse: its value is there, and the operations are the jaxpr's."""

    def f(p, n):
        doubled = jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, p["x"]))
        return {"count": doubled[0], "value": (doubled[1], p["y"] + 1)}

    args = ({"x": jnp.asarray(X), "y": jnp.asarray(2.0)}, jnp.asarray(3))
    traced, closed = graph.trace(f, backward=False)(*args), jax.make_jaxpr(f)(*args)
    assert jax.tree.structure(traced.value) == jax.tree.structure(f(*args))
    assert all(map(np.array_equal, jax.tree.leaves(traced.value), evaluated(closed, args)))
    assert len(traced.nodes) == operations(closed.jaxpr)
    assert [node.operation for node in traced.nodes].count("while") == 1
    assert traced.value["value"][0].tolist() == (8 * X).tolist()


@pytest.mark.parametrize("name", ["loop", "loop from the end", "counted loop", "branch", "mapped"])
def test_unrolled_loops_and_branches(name):
    f, *args = ZOO[name]
    args = jax.device_put(tuple(args))
    traced = graph.trace(f, unroll=True)(*args)
    assert not {"scan", "while", "cond"} & {each.operation for each in traced.nodes}
    assert any("[" in scope or "branch" in scope for each in traced.nodes for scope in each.group)
    np.testing.assert_allclose(traced.value, by_numpy(f)(*args), rtol=EXACT)
    assert_close(traced.gradients, by_numpy(jax.grad(f, argnums=tuple(range(len(args)))))(*args))


def test_a_while_loop_is_differentiated_when_unrolled():
    def f(x):
        return jax.lax.while_loop(lambda c: c < 30, lambda c: c * c + x, x)

    with pytest.raises(ValueError, match=r"while at .*test_graph_trace.py.*unroll=True"):
        graph.trace(f)(1.5)
    traced = graph.trace(f, unroll=True)(1.5)  # x → x² + x → (x² + x)² + x → …
    assert {"while[0]", "while[1]"} <= {scope for each in traced.nodes for scope in each.group}
    h = 1e-6
    assert float(traced.gradients[0]) == pytest.approx(float(f(1.5 + h) - f(1.5 - h)) / (2 * h), rel=1e-6)


# ---------------------------------------------------------------- three derivations


def test_the_graph_backprop_and_jax_grad_agree():
    net = serial(dense(4), tanh, residual(serial(dense(4), tanh)), repeat(dense(4), 2), dense(3))  # few shapes
    draw = np.random.default_rng(0).normal
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), (4,), jnp.float64))
    params = jax.tree.map(lambda p: jax.device_put(draw(size=p.shape)), params)
    for n in (6, 1):
        x = jax.device_put(draw(size=(n, 4)))
        labels = jax.device_put(np.arange(n) % 3)

        def cost(params):
            return losses.softmax_cross_entropy.value(net.forward(params, state, x)[0], labels).mean()

        traced, closed = graph.trace(cost)(params), jax.make_jaxpr(cost)(params)
        assert np.array_equal(traced.value, evaluated(closed, params)[0])
        assert len(traced.nodes) == operations(closed.jaxpr)
        third = graph.grad(cost)(params)
        assert_close(third, by_numpy(jax.grad(cost))(params))
        by_hand = by_numpy(lambda p: backprop(net, losses.softmax_cross_entropy)(p, state, x, labels).grads)
        assert_close(third, by_hand(params))
        assert_close(jax.jit(graph.grad(cost))(params), third)
    groups = {each.group[0] for each in traced.nodes if each.group}
    assert {"dense_0", "tanh_0", "residual_0", "dense_1"} <= groups


def test_grad_of_several_arguments_and_a_given_cotangent():
    first, second = graph.grad(lambda x, y: x * y, argnums=(1, 0))(2.0, 5.0)
    assert (first, second) == (2, 5)
    traced = graph.trace(lambda x: x * x, cotangent=np.array([1.0, 0.0, 2.0]))(np.array([1.0, 2.0, 3.0]))
    assert traced.gradients[0].tolist() == [2, 0, 12]
    assert graph.trace(jnp.sin, backward=False)(jnp.ones(3)).gradients == ()


def test_ties_and_kinks_say_so():
    assert node(graph.trace(lambda x: jnp.maximum(x, 1.0))(1.0), "max").note
    assert not node(graph.trace(lambda x: jnp.maximum(x, 1.0))(2.0), "max").note


@pytest.mark.long  # the graph of the same function is drawn in test_graph_page
def test_five_thousand_operations():
    def f(x):
        for _ in range(2500):
            x = x * 1.0001 + 0.5
        return x

    traced = graph.trace(f)(1.0)
    assert len(traced.nodes) == 5000
    assert float(traced.gradients[0]) == pytest.approx(1.0001**2500, rel=1e-10)


# ---------------------------------------------------------------- bad input


def decides(x):
    return x if x > 0 else -x


@pytest.mark.parametrize(("f", "args", "error", "message"), [
    (lambda n: n * 1.0, (3,), TypeError, "no float inputs"),
    (lambda x: x > 0, (1.0,), TypeError, "returns no floats.*backward=False"),
    (lambda x: x * jnp.ones(3), (1.0,), ValueError, r"float64\[3\], not a single number; give cotangent"),
    (lambda x, name: x, (1.0, "w"), TypeError, "name is not an array but 'w'"),
    (decides, (1.0,), jax.errors.TracerBoolConversionError, "."),
])  # fmt: skip
def test_bad_input(f, args, error, message):
    with pytest.raises(error, match=message) as caught:
        graph.trace(f)(*args)
    if f is decides:
        assert "use jnp.where or jax.lax.cond" in "".join(caught.value.__notes__)


def test_a_cotangent_of_another_shape():
    with pytest.raises(ValueError, match=r"cotangent must be like the output of sin, float64\[3\]"):
        graph.trace(jnp.sin, cotangent=jnp.ones(2))(jnp.ones(3))


# ---------------------------------------------------------------- what can be opened


def opened(name, operation):
    f, *args = ZOO[name]
    args = jax.device_put(tuple(args))
    whole, unrolled = graph.trace(f)(*args), graph.trace(f, unroll=True)(*args)
    return [each for each in whole.nodes if each.operation == operation], unrolled


@pytest.mark.parametrize(("name", "inside"), [("loop", "tanh"), ("loop from the end", "mul"), ("counted loop", "sin")])
def test_an_iteration_of_a_scan(name, inside):
    (scan,), unrolled = opened(name, "scan")
    for t in range(scan.params["length"]):
        part = scan.inner(t)
        (ours,) = (each for each in part.nodes if each.operation == inside)
        theirs = [each for each in unrolled.nodes if f"scan[{t}]" in each.group and each.operation == inside]
        np.testing.assert_allclose(ours.value, theirs[0].value, rtol=EXACT)
        unused = theirs[0].gradient is None  # the last carry goes nowhere: None there, zeros where a scan hands it on
        np.testing.assert_allclose(ours.gradient, 0 if unused else theirs[0].gradient, rtol=EXACT)
        assert ours.line == theirs[0].line
    with pytest.raises(IndexError):
        scan.inner(scan.params["length"])


def test_what_the_iterations_of_a_scan_pass_to_its_constants_adds_up():
    (scan,), _ = opened("loop", "scan")
    total = sum(scan.inner(t).leaves[0].gradient for t in range(scan.params["length"]))
    np.testing.assert_allclose(total, scan.passed[0], rtol=EXACT)


def test_an_iteration_of_a_while_loop():
    def f(x):
        return jax.lax.while_loop(lambda c: c < 30, lambda c: c * c + x, x)

    loop = node(graph.trace(f, backward=False)(1.5), "while")
    assert [float(loop.inner(t).value[0]) for t in range(2)] == [1.5 * 1.5 + 1.5, 3.75 * 3.75 + 1.5]
    for t in (9, -1):
        with pytest.raises(IndexError, match=f"no iteration {t}"):
            loop.inner(t)


def test_the_branch_that_was_taken_and_a_function_with_its_own_rule():
    branches, _ = opened("branch", "cond")
    assert [each.inner().nodes[0].operation for each in branches] == ["sin", "exp"]
    x = jnp.asarray(X)
    np.testing.assert_allclose(branches[0].inner().leaves[0].gradient, jnp.cos(x), rtol=EXACT)
    (rule,) = (each for each in graph.trace(lambda x: tripled(x).sum())(x).nodes if each.rule == "its own custom rule")
    part = rule.inner()
    assert [each.operation for each in part.nodes] == ["sin"]
    assert part.gradients == ()  # its own rule stands in for them


@pytest.mark.parametrize(("f", "error", "message"), [
    (lambda x: np.sin(x), jax.errors.TracerArrayConversionError, "passes an array to NumPy: use jax.numpy"),
    (lambda x: x * float(x), jax.errors.ConcretizationTypeError, "converts an array to a Python number"),
    (lambda x: x * [1.0, 2.0][x.astype(int)], jax.errors.TracerIntegerConversionError, "as a Python index"),
])  # fmt: skip
def test_what_looks_at_the_numbers_is_told_what_to_do(f, error, message):
    with pytest.raises(error) as caught:
        graph.trace(f)(1.0)
    assert message in "".join(caught.value.__notes__)


def test_python_side_effects_are_refused():
    rng, calls = np.random.default_rng(0), []

    def noisy(x):
        return x * rng.normal()

    def counting(x):
        calls.append(1)
        return x * 2 if len(calls) % 2 else x * 2 + 1

    with pytest.raises(ValueError, match=r"noisy is not pure.*test_graph_trace.py:\d+.*from a key"):
        graph.trace(noisy)(1.0)
    with pytest.raises(ValueError, match=r"counting is not pure.*keep counters in arguments"):
        graph.trace(counting)(1.0)
    with pytest.raises(ValueError, match="a constant"):
        graph.trace(lambda x: (x * rng.normal(size=3)).sum())(1.0)
