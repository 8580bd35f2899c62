"""jaxnn as its users run it, by hand and by `jax.grad`, and the limit: the matrix products alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from peers import ADAM_EPS, DROP_RATE, NORM_EPS, NORM_MOMENTUM, PROBE, Config, Data
from timing import Contender

import jaxnn

BY_HAND, BY_JAX = "jaxnn", "jaxnn, by jax.grad"
LIMIT = "limit: the products alone"
FIT = "jaxnn.fit, everything"
DIAGNOSED, EVERY_STEP = "jaxnn, diagnosed once an epoch", "jaxnn, diagnosed in every step"
GRADIENTS = {BY_HAND: jaxnn.backprop, BY_JAX: jaxnn.autodiff}


def network(config: Config) -> tuple[Any, Any, Any]:
    """Network, loss and optimizer."""
    if config.optimizer == "sgd":
        optimizer = jaxnn.sgd(config.learning_rate)
    else:
        optimizer = jaxnn.adam(config.learning_rate, eps=ADAM_EPS)
    activation = getattr(jaxnn, config.activation)
    net = jaxnn.mlp(config.widths[1:], activation=activation)
    if config.extra:
        after = {
            "batch_norm": (jaxnn.batch_norm(momentum=NORM_MOMENTUM, eps=NORM_EPS), activation),
            "dropout": (activation, jaxnn.dropout(DROP_RATE)),
        }[config.extra]
        net = jaxnn.map_layers(lambda layer: jaxnn.serial(*after) if layer.kind == activation.name else layer, net)
    return net, jaxnn.losses.softmax_cross_entropy, optimizer


def epoch(name: str, config: Config, data: Data) -> Contender:
    """The compiled epoch behind `fit`, called again and again; `name` says which gradient, or that it is diagnosed."""
    net, loss, optimizer = network(config)
    measured = {DIAGNOSED: 1, EVERY_STEP: config.steps // config.epochs}.get(name, 0)
    options = {"gradient": GRADIENTS.get(name, jaxnn.backprop), "measure": measured}
    run = jaxnn.train_epoch(net, loss, optimizer, batch_size=config.batch, **options)
    compiled = jax.jit(run, donate_argnums=0)
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)
    train_state = jaxnn.init_train_state(net, optimizer, jax.random.key(0), data.x.shape[1:])

    def turn() -> None:
        nonlocal train_state
        for _ in range(config.epochs):
            train_state, result = compiled(train_state, x, labels)
            if measured:
                jaxnn.diagnostics.report_each(net, result.diagnostics)
        jax.block_until_ready(train_state)

    def now() -> float:
        output, _, _ = net.forward(train_state.params, train_state.state, x[:PROBE])
        return float(loss.value(output, labels[:PROBE]).mean())

    return Contender(name, turn, now)


def fit(config: Config, data: Data) -> Contender:
    """`jaxnn.fit` itself: its checks of the data, its safety copy of the state, its history."""
    net, loss, optimizer = network(config)
    arrays = (jnp.asarray(data.x), jnp.asarray(data.labels))
    train_state = jaxnn.init_train_state(net, optimizer, jax.random.key(0), data.x.shape[1:])

    def turn() -> None:
        nonlocal train_state
        settings = {"epochs": config.epochs, "batch_size": config.batch, "progress": False}
        train_state = jaxnn.fit(net, loss, optimizer, arrays, train_state=train_state, **settings).train_state
        jax.block_until_ready(train_state)

    return Contender(FIT, turn)


def limit(config: Config, data: Data) -> Contender:
    """The matrix products of a step and nothing else, in the same scan over the same gathered batches.

    x W forwards; backwards xᵀ δ and, but for the first layer, δ Wᵀ. No bias, activation, loss or update; the
    order of the examples is given.
    """
    sizes = zip(config.widths[:-1], config.widths[1:], strict=True)
    # Scaled so that no product over- or underflows: arithmetic on such numbers may take another time.
    weights = [jax.random.normal(jax.random.key(0), size) / jnp.sqrt(size[0]) for size in sizes]
    order = jax.random.permutation(jax.random.key(1), config.examples).reshape(-1, config.batch)
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)

    def products(grads: Any, weights: Any, x: jax.Array) -> Any:
        inputs = [x]
        for w in weights:
            inputs.append(inputs[-1] @ w)
        delta, grads = inputs.pop(), []
        for w in reversed(weights):
            h = inputs.pop()
            grads.append(h.T @ delta)
            delta = delta @ w.T if inputs else delta
        return grads[::-1]

    def all_batches(grads: Any, weights: Any, order: jax.Array, x: jax.Array, labels: jax.Array) -> Any:
        def body(grads: Any, index: jax.Array) -> tuple[Any, jax.Array]:
            rows, targets = (array.at[index].get(mode="promise_in_bounds") for array in (x, labels))
            return products(grads, weights, rows), targets.sum()  # the labels are gathered too

        return jax.lax.scan(body, grads, order)

    compiled = jax.jit(all_batches, donate_argnums=0)
    grads = [jnp.zeros_like(w) for w in weights]

    def turn() -> None:
        nonlocal grads
        for _ in range(config.epochs):
            grads, _ = compiled(grads, weights, order, x, labels)
        jax.block_until_ready(grads)

    return Contender(LIMIT, turn)


def compiled_step(name: str, config: Config, data: Data) -> dict[str, float]:
    """FLOPs and temporary bytes of one compiled training step, as XLA counts them."""
    net, loss, optimizer = network(config)
    step = jaxnn.train_step(net, loss, optimizer, gradient=GRADIENTS[name])

    def trained(*arguments: Any) -> Any:  # as in an epoch, gradients and outputs are not kept
        train_state, out = step(*arguments)
        return train_state, out.loss

    train_state = jaxnn.init_train_state(net, optimizer, jax.random.key(0), data.x.shape[1:])
    x, labels = jnp.asarray(data.x[: config.batch]), jnp.asarray(data.labels[: config.batch])
    compiled = jax.jit(trained, donate_argnums=0).lower(train_state, x, labels).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {"FLOPs": float(compiled.cost_analysis()["flops"]), "temporary bytes": float(temporary)}
