"""The graph of functions that others wrote, as installed for tests: flax, optax and equinox; and its speed.

The same three claims as for the zoo of `test_graph_trace`, at two batch sizes: the value is the jaxpr's own, the
gradient is jax.grad's, and there is a node for every equation.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from test_graph_trace import assert_close, evaluated, operations

from jaxnn import dense, graph, losses, relu, serial

FLAX = pytest.importorskip("flax", reason="flax is an oracle here")
LABELS = np.array([2, 0, 1, 1, 0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # which these libraries rely on
        yield


def inputs(n, *shape):
    return jax.device_put(np.random.default_rng(n).normal(size=(n, *shape)))


def linen(make, *shape):
    """A flax module as (parameters, cost of parameters and x)."""

    def build():
        nn = pytest.importorskip("flax.linen")
        module = make(nn)
        params = module.init(jax.random.key(0), inputs(2, *shape))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        return params, lambda params, x: (module.apply(params, x) ** 2).mean(), shape

    return build


def optax_loss(name, *shape, labels=False):
    def build():
        optax = pytest.importorskip("optax")
        value = getattr(optax, name)

        def cost(w, x):
            z = x @ w
            target = jnp.asarray(np.resize(LABELS, len(x))) if labels else jnp.cos(z)
            return value(z, target).mean()

        return inputs(shape[-1], 3), cost, shape

    return build


def optax_step():
    """A training step of Adam: the cost after it, differentiated through the update."""
    optax = pytest.importorskip("optax")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    def cost(w, x):
        loss = lambda w: ((x @ w) ** 2).mean()
        updates, _ = optimizer.update(jax.grad(loss)(w), optimizer.init(w), w)
        return loss(optax.apply_updates(w, updates))

    return inputs(4, 3), cost, (4,)


def equinox_module(make, *shape):
    def build():
        eqx = pytest.importorskip("equinox")
        module = make(eqx, jax.random.key(0))
        arrays, static = eqx.partition(module, eqx.is_inexact_array)

        def cost(arrays, x):
            return jnp.sin(jax.vmap(eqx.combine(arrays, static))(x)).mean()  # squares of a norm's output do not vary

        return arrays, cost, shape

    return build


def equinox_gru():
    eqx = pytest.importorskip("equinox")
    arrays, static = eqx.partition(eqx.nn.GRUCell(3, 4, key=jax.random.key(0)), eqx.is_inexact_array)

    def cost(arrays, x):  # [N, T, 3]
        cell = eqx.combine(arrays, static)
        run = lambda xs: jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(4), xs)[0]
        return (jax.vmap(run)(x) ** 2).mean()

    return arrays, cost, (5, 3)


LIBRARIES = {
    "flax Dense": linen(lambda nn: nn.Sequential([nn.Dense(4), nn.gelu, nn.Dense(2)]), 3),
    "flax LayerNorm": linen(lambda nn: nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.swish]), 3),
    "flax attention": linen(lambda nn: nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False), 3, 4),
    "flax Conv": linen(lambda nn: nn.Sequential([nn.Conv(3, (3, 3)), nn.relu]), 5, 5, 2),
    "flax LSTM": linen(lambda nn: nn.RNN(nn.LSTMCell(4, dtype=jnp.float64, param_dtype=jnp.float64)), 3, 2),
    "optax cross-entropy": optax_loss("softmax_cross_entropy_with_integer_labels", 4, labels=True),
    "optax Huber": optax_loss("huber_loss", 4),
    "optax cosine": optax_loss("cosine_similarity", 4),
    "optax step": optax_step,
    "equinox MLP": equinox_module(lambda eqx, key: eqx.nn.MLP(3, 2, 4, 2, key=key), 3),
    "equinox LayerNorm": equinox_module(lambda eqx, key: eqx.nn.LayerNorm(4), 4),
    "equinox GRU": equinox_gru,
}


QUICK = ("flax Dense", "optax Huber", "equinox LayerNorm")  # one of each library, where tracing compiles least


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in LIBRARIES]
)
def test_functions_of_other_libraries(name):
    params, cost, shape = LIBRARIES[name]()
    for n in (3, 2):
        x = inputs(n, *shape)
        traced = graph.trace(cost)(params, x)
        closed = jax.make_jaxpr(cost)(params, x)
        assert np.array_equal(traced.value, evaluated(closed, (params, x))[0])
        assert len(traced.nodes) == operations(closed.jaxpr)
        assert_close(traced.gradients, by_numpy(jax.grad(cost, argnums=(0, 1)))(params, x))
        assert all(node.rule for node in traced.nodes)


def test_sixty_layers_and_a_hundred_thousand_parameters():
    """Measured 2 s on two idle cores, nearly all of it compiling each operation once; 0.06 s when asked again."""
    layers = [layer for _ in range(60) for layer in (dense(40), relu)]
    net = serial(*layers, dense(10))
    params, state = net.init(jax.random.key(0), (28,), jnp.float64)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 98_330
    x, labels = inputs(32, 28), jnp.asarray(np.resize(LABELS, 32))

    def cost(params):
        return losses.softmax_cross_entropy.value(net.forward(params, state, x)[0], labels).mean()

    seconds = []
    for _ in range(2):
        began = time.process_time()  # of this process: other programs may run
        traced = graph.trace(cost)(params)
        seconds.append(time.process_time() - began)
    assert len(traced.nodes) > 240
    assert min(seconds) < 5
    assert_close(traced.gradients[0], by_numpy(jax.grad(cost))(params))
