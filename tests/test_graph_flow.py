"""Vanishing and exploding gradients: the verdict on networks for which it is known, and its figures."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_texts import columns

from jaxnn import autodiff, dense, graph, initializers, losses, mlp, named, relu, residual, serial, sigmoid, tanh
from jaxnn.graph.flow import EXPLODES, KEEPS, LARGEST, NOT_FINITE, SHORT, SMALLEST, VANISHES

N, D, K, LAYERS = 8, 8, 4, 10
X = jax.random.normal(jax.random.key(1), (N, D))
LABELS = jnp.arange(N, dtype=jnp.int32) % K


def cost_of(net, scale=1.0, x=X, loss=losses.softmax_cross_entropy):
    params, state = net.init(jax.random.key(0), (D,))
    params = jax.tree.map(lambda p: scale * p, params)
    return lambda p: loss.value(net.forward(p, state, x)[0], LABELS).mean(), params


@functools.cache
def flow_of(net, scale=1.0, **options):
    cost, params = cost_of(net, scale)
    return graph.gradient_flow(cost, **options)(params)


ORTHOGONAL = [dense(D, w_init=initializers.orthogonal()) for _ in range(LAYERS)]
SIGMOID, LARGE = mlp([D] * LAYERS + [K], sigmoid), mlp([D] * LAYERS + [K], relu)
RESIDUAL = serial(*[residual(serial(dense(D), tanh))] * LAYERS, dense(K))


# ---------------------------------------------------------------- verdicts


def test_a_deep_sigmoid_network_vanishes():
    flow = flow_of(SIGMOID)
    assert (flow.verdict, flow.ok) == (VANISHES, False)
    assert flow.factor < SMALLEST
    steepest = next(stage for stage in flow.operations if stage.nodes.start == flow.steepest.after)
    assert steepest.name == "logistic"  # its slope is ¼ at most
    assert flow.steepest.factor <= 0.25
    assert "activations.py:" in flow.why


def test_large_weights_explode():
    flow = flow_of(LARGE, scale=7.0)
    assert (flow.verdict, flow.ok) == (EXPLODES, False)
    assert flow.factor > LARGEST
    steepest = next(stage for stage in flow.operations if stage.nodes.start == flow.steepest.after)
    assert steepest.name == "dot_general"
    assert f"({steepest.source})" in flow.why


@pytest.mark.parametrize(
    "net", [serial(*ORTHOGONAL, dense(K)), RESIDUAL, mlp([D, K], tanh)], ids=["orthogonal", "residual", "shallow"]
)
def test_orthogonal_residual_and_shallow_networks_keep_the_scale(net):
    flow = flow_of(net)
    assert (flow.verdict, flow.ok) == (KEEPS, True)
    assert 1e-2 < flow.factor < 1e2
    assert str(flow).startswith("gradient of <lambda>: it keeps its scale. Its root mean square is ")


def test_a_recurrent_network_vanishes_in_time():
    w = 0.3 * jax.random.orthogonal(jax.random.key(0), D)

    def f(w, xs):
        return (jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), jnp.zeros(D), xs)[0] ** 2).sum()

    inside = graph.gradient_flow(f, unroll=True)(w, X)
    assert inside.verdict == VANISHES
    assert [stage.name for stage in inside.groups][:N] == [f"scan[{t}]" for t in range(N)]
    sizes = [stage.gradient_rms for stage in inside.groups[:N]]
    assert sizes == sorted(sizes)
    assert "unroll=True resolves it" in graph.gradient_flow(f)(w, X).why
    assert "unroll=True" not in inside.why


def test_what_is_not_finite_is_named_where_it_begins():
    flow = graph.gradient_flow(lambda x: jnp.sqrt(x * x).sum())(jnp.zeros(3))
    assert (flow.verdict, flow.ok) == (NOT_FINITE, False)
    assert "first at #0 mul" in flow.why
    assert flow.steepest is None


def test_a_gradient_of_zero_has_vanished():
    flow = graph.gradient_flow(lambda x: (jax.nn.relu(x * 2 - 100) * 3).sum())(jnp.ones(3))
    assert flow.verdict == VANISHES
    assert (flow.factor, flow.steepest.factor) == (0, 0)
    assert "relu" in flow.why


def test_a_graph_without_a_path():
    flow = graph.gradient_flow(lambda x: x)(1.0)
    assert (flow.verdict, flow.ok, flow.steepest) == (SHORT, True, None)
    assert str(flow).startswith("gradient of ")
    flow = graph.gradient_flow(jnp.sin)(1.0)  # a single operation is a path, from its input to its output
    assert (flow.verdict, flow.factor, flow.steepest.before) == (KEEPS, pytest.approx(math.cos(1)), -1)


# ---------------------------------------------------------------- gains and losses of any kind

ROW = np.linspace(0.1, 1, 10, dtype=np.float32)
MANY = np.ones(10**6, np.float32)
IMAGES = np.random.default_rng(0).normal(size=(4, 40, 40, 3)).astype(np.float32)
STEPS = np.array([0, 1e-6, 1], np.float32)
TABLE = np.ones((20_000, 8), np.float32)
PADDING = np.zeros(5000, np.int32)


def repeated(rate, steps=40):
    return lambda x: jax.lax.scan(lambda c, _: (c * rate, None), x, None, length=steps)[0].sum()


def looked_up(table):
    """Linear interpolation in an equidistant table."""

    def f(x):
        i = jnp.clip(jnp.floor(x * 4), 0, 3).astype(int)
        values, slopes = jnp.asarray(table[:-1]), jnp.asarray(np.diff(table))
        return (values[i] + (x * 4 - jax.lax.stop_gradient(jnp.floor(x * 4))) * slopes[i]).sum()

    return f


def composed(f, times):
    def g(x):
        for _ in range(times):
            x = f(x)
        return x.sum()

    return g


EXPLODING = {
    "a constant at first": (lambda x: (x * 1e6).sum(), ROW),
    "a constant at last": (lambda x: x.sum() * 1e6, ROW),
    "a constant behind a mean": (lambda x: (x * x).mean() * 1e6, ROW),
    "a division": (lambda x: (x / 1e-8).mean(), ROW),
    "a matrix": (lambda x: (np.full((10, 10), 1e5, np.float32) @ x).sum(), ROW),
    "interpolation": (lambda x: jnp.interp(x, STEPS, np.array([0, 0.7, 0.8], np.float32)).sum(), ROW * 1e-6),
    "interpolation at one of a thousand": (
        lambda x: jnp.interp(x, STEPS, np.array([0, 0.7, 0.7], np.float32)).sum(),
        np.r_[5e-7, np.linspace(0.1, 1, 999)].astype(np.float32),
    ),
    "a look-up": (looked_up(np.array([0, 1e6, 0, 3e6, 1], np.float32)), ROW),
    "rows of a table": (lambda w: (w[PADDING[:3]] * 1e5).sum(), TABLE),
    "an exponential": (lambda x: jnp.exp(10 * x).sum(), ROW + 1),
    "a scan": (repeated(1.5), ROW),
    "a scan by its factor": (lambda w: repeated(w)(ROW), np.float32(1.5)),
    "a scan of its inputs": (lambda x: jax.lax.scan(lambda c, t: (c + t * 1e6, None), 0.0, x)[0], ROW),
    "a counted loop": (lambda x: jax.lax.fori_loop(0, 40, lambda i, c: c * 1.5, x).sum(), ROW),
    "one operation": (lambda x: 1e5 * x, np.float32(1)),
    "many operations": (composed(lambda x: 2 * x, 12), ROW),
    "a running sum": (lambda x: jnp.cumsum(x * 1e6)[-1], ROW),
    "the largest": (lambda x: jnp.max(x * 1e4), ROW),
}
VANISHING = {
    "a constant at first": (lambda x: (x * 1e-6).sum(), ROW),
    "a constant at last": (lambda x: x.sum() * 1e-6, ROW),
    "a constant behind a mean": (lambda x: (x * x).mean() * 1e-6, ROW),
    "a division": (lambda x: (x / 1e6).sum(), ROW),
    "a matrix": (lambda x: (np.full((10, 10), 1e-6, np.float32) @ x).sum(), ROW),
    "interpolation": (lambda x: jnp.interp(x, np.array([0, 1e6], np.float32), STEPS[1:]).sum(), ROW),
    "a look-up": (looked_up(np.array([0, 1, 2, 3, 4], np.float32) * 1e-5), ROW),
    "rows of a table": (lambda w: (w[PADDING[:3]] * 1e-5).sum(), TABLE),
    "a saturated sigmoid": (lambda x: jax.nn.sigmoid(10 + 10 * x).sum(), ROW),
    "a scan": (repeated(0.5), ROW),
    "a scan by its factor": (lambda w: repeated(w)(ROW), np.float32(0.5)),
    "a counted loop": (lambda x: jax.lax.fori_loop(0, 40, lambda i, c: c * 0.5, x).sum(), ROW),
    "nothing": (lambda x: (x * 0.0).sum(), ROW),
    "many operations": (composed(jax.nn.sigmoid, 6), ROW),
    "sigmoids behind a sum": (lambda x: composed(jax.nn.sigmoid, 6)(x.sum()), ROW),
}
HEALTHY = {
    "a sum": (lambda x: (x * 2).sum(), MANY),
    "a mean": (lambda x: x.mean(), MANY),
    "a mean of squares": (lambda x: (x * x).mean(), MANY),
    "a weighted mean": (lambda x: (x * x * np.arange(1000.0, dtype=np.float32)).sum() / 499500, MANY[:1000]),
    "a norm": (jnp.linalg.norm, MANY),
    "logsumexp": (jax.nn.logsumexp, MANY),
    "one entry of many": (lambda x: x[5] ** 2, np.ones(2 * 10**6, np.float32)),
    "the largest of many": (lambda x: jnp.max(x * 2), MANY),
    "one row of a table, often": (lambda w: (w[PADDING] ** 2).sum(), TABLE),
    "one row of a table, on average": (lambda w: (w[PADDING] ** 2).mean(), TABLE),
    "a number repeated": (lambda x: jnp.broadcast_to(x, (10**5,)).sum(), np.float32(1)),
    "a number added everywhere": (lambda x: (MANY + x).sum(), np.float32(1)),
    "pooling over an image": (
        lambda x: ((jnp.tanh(x).mean((1, 2)) @ np.ones((3, 5), np.float32)) ** 2).mean(),
        IMAGES,
    ),
    "a matrix and a mean over a batch": (
        lambda w: ((np.ones((4096, 8), np.float32) @ w) ** 2).mean(),
        np.eye(8, dtype=np.float32),
    ),
    "a large constant and its inverse": (lambda x: ((x * 1e6) * 1e-6).sum(), ROW),
    "interpolation": (lambda x: jnp.interp(x, ROW, ROW).sum(), ROW[:-1] + 0.01),
    "interpolation, steep elsewhere": (lambda x: jnp.interp(x, STEPS, np.array([0, 0.7, 0.8], np.float32)).sum(), ROW),
    "a look-up": (looked_up(np.array([0, 1, 2, 3, 4], np.float32)), ROW),
    "a scan": (repeated(1.0), ROW),
    "a sum by a scan": (lambda x: jax.lax.scan(lambda c, t: (c + t, None), 0.0, x)[0], ROW),
    "a mean by a scan": (
        lambda w: jax.lax.scan(lambda c, t: (c + w * t / 1000, None), 0.0, MANY[:1000])[0],
        np.float32(2),
    ),
    "a residual": (composed(lambda x: x + 0.1 * jnp.tanh(x), 20), ROW),
}


@pytest.mark.parametrize(
    ("verdict", "name"),
    [(EXPLODES, n) for n in EXPLODING] + [(VANISHES, n) for n in VANISHING] + [(KEEPS, n) for n in HEALTHY],
)
def test_gains_and_losses(verdict, name):
    """A gain or a loss of scale counts wherever it occurs; the number of entries does not."""
    f, x = {EXPLODES: EXPLODING, VANISHES: VANISHING, KEEPS: HEALTHY}[verdict][name]
    flow = graph.gradient_flow(f)(x)
    assert flow.verdict == verdict, flow.why
    if verdict != KEEPS:
        assert (flow.steepest.factor > 1) == (verdict == EXPLODES)


# ---------------------------------------------------------------- figures


def test_the_sizes_are_those_of_the_deltas():
    """Against the δs that jax.grad gives of the same network."""
    net = serial(dense(D), tanh, dense(D), tanh, dense(K))
    cost, params = cost_of(net)
    flow = graph.gradient_flow(cost)(params)
    deltas = autodiff(net, losses.softmax_cross_entropy, read=("deltas",))(params, (), X, LABELS).readings["deltas"]
    stages = {stage.name: stage for stage in flow.groups}
    for name in ("dense_0", "tanh_0", "dense_1", "tanh_1", "dense_2"):
        delta = np.asarray(deltas[name]) / N  # a reading is ∂(Σ C)/∂z, the graph's ∂(mean C)/∂z
        assert stages[name].gradient_rms == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-5)
        assert stages[name].gradient_max == pytest.approx(np.abs(delta).max(), rel=1e-5)


def test_the_sizes_of_values():
    flow = graph.gradient_flow(lambda x: (x * 2).sum())(jnp.array([3.0, -4.0]))
    assert (flow.operations[0].value_rms, flow.operations[0].value_max) == (pytest.approx(math.sqrt((36 + 64) / 2)), 8)
    assert (flow.operations[1].value_rms, flow.operations[1].gradient_rms) == (2, 1)


def test_the_factor_is_the_product_of_the_steps():
    flow = flow_of(SIGMOID)
    size = {stage.nodes.start: stage.gradient_rms for stage in flow.operations}
    ways = [size[a] / size[b] for a, b in zip(flow.trunk, flow.trunk[1:], strict=False)]
    assert math.prod(ways) == pytest.approx(flow.factor, rel=1e-6)
    assert flow.factor == pytest.approx(size[flow.trunk[0]] / size[flow.trunk[-1]])
    assert flow.steepest.factor == min(ways)


def test_the_trunk_is_what_all_paths_share():
    """Against a search of all paths, one operation left out at a time."""
    cost, params = cost_of(serial(residual(serial(dense(D), tanh)), dense(K)))
    traced = graph.trace(cost)(params)
    trunk = graph.gradient_flow(cost)(params).trunk
    ways = {n.id: {r.node for r, g in zip(n.inputs, n.passed, strict=True) if g is not None} for n in traced.nodes}

    def reaches(start, without):
        found = {traced.outputs[0].node} - {without}
        for i in sorted(ways, reverse=True):
            if i in found:
                found |= ways[i] - {without}
        return start in found

    shared = [i for i in range(trunk[0] + 1, trunk[-1] + 1) if reaches(i, None) and not reaches(trunk[0], i)]
    assert [trunk[0], *shared] == list(trunk)
    assert len(trunk) > 3


def test_means_and_weights_of_their_own_do_not_count():
    """A mean over N, and a weight that is scaled before its product with x, are not on the path through the layers."""

    def f(params, x):
        for w in params:
            x = x @ (w / jnp.sqrt((w * w).sum()) * math.sqrt(D))
        return (x * x).mean()

    x = jax.random.normal(jax.random.key(0), (500, D))
    flow = graph.gradient_flow(lambda p: f(p, x))(
        [initializers.orthogonal()(jax.random.key(i), (D, D)) for i in range(4)]
    )
    assert flow.verdict == KEEPS
    assert 0.2 < flow.factor < 5
    names = {stage.nodes.start: stage.name for stage in flow.operations}
    assert [names[i] for i in flow.trunk] == [*["dot_general"] * 4, "mul"]


# ---------------------------------------------------------------- groups and text


def test_groups_of_a_given_depth():
    net = serial(named("outer", serial(dense(D), tanh)), dense(K))
    first = [stage.name for stage in flow_of(net).groups]
    second = [stage.name for stage in flow_of(net, depth=2).groups]
    assert first[:2] == ["outer", "dense_0"]
    assert second[:3] == ["outer/dense_0", "outer/tanh_0", "dense_0"]
    assert first[2:] == ["softmax_cross_entropy", "reduce_sum … div"]  # the mean is in no group
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        graph.gradient_flow(jnp.sin, depth=0)


def test_operations_stand_alone_where_there_are_no_groups():
    flow = graph.gradient_flow(lambda x: jnp.sin(jnp.exp(x)).sum())(jnp.ones(2))
    assert [stage.name for stage in flow.groups] == ["exp", "sin", "reduce_sum"]
    assert flow.groups == flow.operations


@pytest.mark.parametrize("width", [10, 40, 80, 120])
def test_the_chart_fits_and_its_bars_are_logarithms(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for net, scale in ((SIGMOID, 1.0), (LARGE, 7.0), (RESIDUAL, 1.0)):
        flow = flow_of(net, scale)
        lines = str(flow).splitlines()
        assert max(map(columns, lines)) <= width
        if width < 60:
            continue
        bars = {line.split()[0]: line.count("█") for line in lines if "█" in line or line.split()[:1] == ["dense_0"]}
        sizes = {stage.name: stage.gradient_rms for stage in flow.groups if stage.name in bars}
        for a in sizes:
            for b in sizes:
                assert sizes[a] > sizes[b] or bars[a] <= bars[b]
        assert max(bars.values()) >= 20


def test_a_long_chart_says_what_it_skips():
    def f(x):
        for _ in range(50):
            x = jnp.sin(x)
        return x.sum()

    text = str(graph.gradient_flow(f)(jnp.ones(2)))
    assert "⋮ 21 more" in text
    assert len(text.splitlines()) < 40
