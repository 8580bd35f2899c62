"""One training loop for each library that people would use instead, written as its own users write it.

Every peer trains the same network on the same float32 data with the same loss, optimizer, learning rate and
batch size, in an order shuffled anew for every epoch. The JAX peers take their batches out of NumPy arrays on
the host, which is faster for them than indexing arrays on the device; PyTorch has its data as tensors and
indexes them, which is faster than its DataLoader. A peer whose library is missing raises ModuleNotFoundError.

Index letters: N examples, D = 784 features, K = 10 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from timing import Contender

PROBE = 1000  # examples on which the loss is read after the timing


class Config(NamedTuple):
    """What is trained: sizes, batch, optimizer, and how long a turn lasts."""

    widths: tuple[int, ...]  # input, hidden …, output
    batch: int
    optimizer: str  # "sgd" or "adam"
    activation: str  # "sigmoid" or "relu"
    learning_rate: float
    examples: int  # a multiple of batch, so that everyone takes steps of one size
    epochs: int  # in one turn
    extra: str = ""  # "batch_norm" before each activation, or "dropout" after it

    @property
    def name(self) -> str:
        """How it is called in the table."""
        widths = "-".join(map(str, self.widths))
        extra = f", {self.extra}" * bool(self.extra)
        return f"{widths}, batch {self.batch}, {self.optimizer}, {self.activation}{extra}"

    @property
    def steps(self) -> int:
        """Training steps in a turn."""
        return self.epochs * (self.examples // self.batch)


ADAM_EPS = 1e-8  # the default of the peers; ours is given the same
NORM_EPS, NORM_MOMENTUM, DROP_RATE = 1e-5, 0.9, 0.2  # momentum: the share of the running statistics that a step keeps


class Data(NamedTuple):
    """MNIST-shaped: x [N, 784] float32 in 0..1, labels [N] int32."""

    x: np.ndarray
    labels: np.ndarray


class Peer(NamedTuple):
    """A contender, and for JAX libraries what it takes to put its step inside a scan.

    Attributes:
        contender: the loop as users write it.
        carry: everything that a step changes, as a pytree of arrays.
        step: `(carry, x, labels) -> carry`, traceable.
    """

    contender: Contender
    carry: Any = None
    step: Callable[[Any, jax.Array, jax.Array], Any] | None = None


def random_data(examples: int, features: int, classes: int) -> Data:
    """Random pixels, labelled by a random linear map, so that there is something to learn."""
    rng = np.random.default_rng(0)
    x = rng.random((examples, features), dtype=np.float32)
    teacher = rng.standard_normal((features, classes), dtype=np.float32)
    return Data(x, ((x - 0.5) @ teacher).argmax(axis=1).astype(np.int32))


def batches(config: Config, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The indices of every batch of one turn; a new order for each epoch."""
    for _ in range(config.epochs):
        yield from rng.permutation(config.examples).reshape(-1, config.batch)


def scanned(peer: Peer, config: Config, data: Data) -> Contender:
    """The peer's step in a compiled epoch: batches gathered on the device in the scan, carry donated.

    The order comes from the host, where shuffling is cheapest: this is a reference, to be as fast as can be.
    """
    assert peer.step is not None
    step = peer.step
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)

    def epoch(carry: Any, order: jax.Array, x: jax.Array, labels: jax.Array) -> Any:
        def body(carry: Any, index: jax.Array) -> tuple[Any, None]:
            rows = [array.at[index].get(mode="promise_in_bounds") for array in (x, labels)]
            return step(carry, *rows), None

        return jax.lax.scan(body, carry, order)[0]

    compiled = jax.jit(epoch, donate_argnums=0)
    carry, rng = jax.tree.map(jnp.copy, peer.carry), np.random.default_rng(1)

    def turn() -> None:
        nonlocal carry
        for _ in range(config.epochs):
            order = rng.permutation(config.examples).astype(np.int32).reshape(-1, config.batch)
            carry = compiled(carry, order, x, labels)
        jax.block_until_ready(carry)

    return Contender(f"{peer.contender.name}, in a scan", turn)


# ---------------------------------------------------------------- JAX libraries


def optax_optimizer(config: Config) -> Any:
    """The optimizer that Equinox and Flax programs use."""
    import optax

    if config.optimizer == "sgd":
        return optax.sgd(config.learning_rate)
    return optax.adam(config.learning_rate, eps=ADAM_EPS)


def stax(config: Config, data: Data) -> Peer:
    """`jax.example_libraries`, as in JAX's own MNIST example: one-hot targets and a jitted `update`."""
    import itertools

    from jax.example_libraries import optimizers, stax

    hidden = [{"sigmoid": stax.Sigmoid, "relu": stax.Relu}[config.activation]]
    if config.extra == "batch_norm":
        hidden.insert(0, stax.BatchNorm(axis=(0,), epsilon=NORM_EPS))  # it keeps no running statistics
    elif config.extra == "dropout":
        hidden.append(stax.Dropout(1 - DROP_RATE))
    layers = [layer for width in config.widths[1:-1] for layer in (stax.Dense(width), *hidden)]
    init_random_params, predict = stax.serial(*layers, stax.Dense(config.widths[-1]), stax.LogSoftmax)
    if config.optimizer == "sgd":
        opt_init, opt_update, get_params = optimizers.sgd(config.learning_rate)
    else:
        opt_init, opt_update, get_params = optimizers.adam(config.learning_rate, eps=ADAM_EPS)

    def loss(params: Any, batch: Any, rng: Any) -> jax.Array:
        inputs, targets = batch
        return -jnp.mean(jnp.sum(predict(params, inputs, rng=rng) * targets, axis=1))

    def plain_update(i: Any, opt_state: Any, batch: Any) -> Any:
        params = get_params(opt_state)
        rng = jax.random.fold_in(jax.random.key(0), i) if config.extra == "dropout" else None
        return opt_update(i, jax.grad(loss)(params, batch, rng), opt_state)

    update = jax.jit(plain_update)

    x, targets = data.x, np.eye(config.widths[-1], dtype=np.float32)[data.labels]
    _, params = init_random_params(jax.random.PRNGKey(0), (-1, config.widths[0]))
    opt_state = opt_init(params)
    carry = (jnp.int32(0), jax.tree.map(jnp.array, opt_state))
    itercount, rng = itertools.count(), np.random.default_rng(1)

    def turn() -> None:
        nonlocal opt_state
        for index in batches(config, rng):
            opt_state = update(next(itercount), opt_state, (x[index], targets[index]))
        jax.block_until_ready(opt_state)

    def step(carry: Any, x: jax.Array, labels: jax.Array) -> Any:
        i, opt_state = carry
        return i + 1, plain_update(i, opt_state, (x, jax.nn.one_hot(labels, config.widths[-1])))

    def now() -> float:
        return float(loss(get_params(opt_state), (x[:PROBE], targets[:PROBE]), jax.random.key(1)))

    return Peer(Contender("stax", turn, now), carry, step)


def equinox(config: Config, data: Data) -> Peer:
    """Equinox with optax: `eqx.filter_jit` around `eqx.filter_value_and_grad`, `vmap` over the batch."""
    import equinox as eqx
    import optax

    hidden, activation = config.widths[1:-1], getattr(jax.nn, config.activation)
    if config.extra:
        return equinox_with_extra(config, data)
    model = eqx.nn.MLP(
        config.widths[0],
        config.widths[-1],
        width_size=hidden[0],
        depth=len(hidden),
        activation=activation,
        key=jax.random.key(0),
    )
    optimizer = optax_optimizer(config)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))

    def loss(model: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def plain_step(model: Any, opt_state: Any, x: jax.Array, labels: jax.Array) -> Any:
        value, grads = eqx.filter_value_and_grad(loss)(model, x, labels)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state, value

    make_step = eqx.filter_jit(plain_step)
    arrays, static = eqx.partition(model, eqx.is_array)
    carry, rng = jax.tree.map(jnp.array, (arrays, opt_state)), np.random.default_rng(1)

    def turn() -> None:
        nonlocal model, opt_state
        for index in batches(config, rng):
            model, opt_state, _ = make_step(model, opt_state, data.x[index], data.labels[index])
        jax.block_until_ready((eqx.filter(model, eqx.is_array), opt_state))

    def step(carry: Any, x: jax.Array, labels: jax.Array) -> Any:
        model, opt_state, _ = plain_step(eqx.combine(carry[0], static), carry[1], x, labels)
        return eqx.filter(model, eqx.is_array), opt_state

    def now() -> float:
        return float(loss(model, data.x[:PROBE], data.labels[:PROBE]))

    return Peer(Contender("Equinox + optax", turn, now), carry, step)


def equinox_with_extra(config: Config, data: Data) -> Peer:
    """Equinox with batch norm, its state carried by hand under a named `vmap`, or with dropout and its keys."""
    import equinox as eqx
    import optax

    activation = getattr(jax.nn, config.activation)

    class Network(eqx.Module):
        """Linear layers, each but the last normalised, activated and thinned as the configuration says."""

        linears: list[Any]
        norms: list[Any]
        dropout: Any

        def __init__(self, key: Any) -> None:
            sizes = list(zip(config.widths[:-1], config.widths[1:], strict=True))
            keys = jax.random.split(key, len(sizes))
            self.linears = [eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, keys, strict=True)]
            norm = partial(eqx.nn.BatchNorm, axis_name="batch", momentum=NORM_MOMENTUM, eps=NORM_EPS, mode="batch")
            self.norms = [norm(width) for width in config.widths[1:-1]] if config.extra == "batch_norm" else []
            self.dropout = eqx.nn.Dropout(DROP_RATE) if config.extra == "dropout" else None

        def __call__(self, x: jax.Array, state: Any, key: Any) -> Any:
            for i, linear in enumerate(self.linears[:-1]):
                x = linear(x)
                if self.norms:
                    x, state = self.norms[i](x, state)
                x = activation(x)
                if self.dropout is not None:
                    x = self.dropout(x, key=jax.random.fold_in(key, i))
            return self.linears[-1](x), state

    model, state = eqx.nn.make_with_state(Network)(jax.random.key(0))
    optimizer = optax_optimizer(config)
    opt_state, key = optimizer.init(eqx.filter(model, eqx.is_array)), jax.random.key(1)

    def loss(model: Any, state: Any, x: jax.Array, labels: jax.Array, key: Any) -> Any:
        keys = jax.random.split(key, len(x))
        logits, state = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(x, state, keys)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    def plain_step(model: Any, state: Any, opt_state: Any, key: Any, x: jax.Array, labels: jax.Array) -> Any:
        key, own = jax.random.split(key)
        (value, state), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, state, x, labels, own)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, opt_state, key, value

    make_step = eqx.filter_jit(plain_step)
    arrays, static = eqx.partition((model, state), eqx.is_array)
    carry, rng = jax.tree.map(jnp.copy, (arrays, opt_state, key)), np.random.default_rng(1)

    def turn() -> None:
        nonlocal model, state, opt_state, key
        for index in batches(config, rng):
            model, state, opt_state, key, _ = make_step(model, state, opt_state, key, data.x[index], data.labels[index])
        jax.block_until_ready((eqx.filter(model, eqx.is_array), opt_state))

    def step(carry: Any, x: jax.Array, labels: jax.Array) -> Any:
        model, state, opt_state, key, _ = plain_step(*eqx.combine(carry[0], static), *carry[1:], x, labels)
        return eqx.filter((model, state), eqx.is_array), opt_state, key

    def now() -> float:
        return float(loss(model, state, data.x[:PROBE], data.labels[:PROBE], key)[0])

    return Peer(Contender("Equinox + optax", turn, now), carry, step)


def flax_nnx(config: Config, data: Data) -> Peer:
    """Flax NNX with optax: a Module, an `nnx.Optimizer`, and `nnx.jit` around `nnx.value_and_grad`."""
    import optax
    from flax import nnx

    activation = getattr(jax.nn, config.activation)

    class MLP(nnx.Module):
        """Linear layers with the activation between them."""

        def __init__(self, *, rngs: nnx.Rngs) -> None:
            sizes = zip(config.widths[:-1], config.widths[1:], strict=True)
            self.layers = nnx.List([nnx.Linear(into, out, rngs=rngs) for into, out in sizes])
            norm = partial(nnx.BatchNorm, momentum=NORM_MOMENTUM, epsilon=NORM_EPS, rngs=rngs)
            self.norms = nnx.List([norm(width) for width in config.widths[1:-1]] * (config.extra == "batch_norm"))
            self.dropouts = nnx.List(
                [nnx.Dropout(DROP_RATE, rngs=rngs) for _ in config.widths[1:-1]] * (config.extra == "dropout")
            )

        def __call__(self, x: jax.Array) -> jax.Array:
            for i, layer in enumerate(self.layers[:-1]):
                x = layer(x)
                x = activation(self.norms[i](x) if self.norms else x)
                x = self.dropouts[i](x) if self.dropouts else x
            return self.layers[-1](x)

    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax_optimizer(config), wrt=nnx.Param)

    def loss(model: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

    def plain_step(model: Any, optimizer: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        value, grads = nnx.value_and_grad(loss)(model, x, labels)
        optimizer.update(model, grads)
        return value

    train_step = nnx.jit(plain_step)
    graph, carry = nnx.split((model, optimizer))
    carry, rng = jax.tree.map(jnp.copy, carry), np.random.default_rng(1)

    def turn() -> None:
        for index in batches(config, rng):
            train_step(model, optimizer, data.x[index], data.labels[index])
        jax.block_until_ready(nnx.state((model, optimizer)))

    def step(carry: Any, x: jax.Array, labels: jax.Array) -> Any:
        model, optimizer = nnx.merge(graph, carry)
        plain_step(model, optimizer, x, labels)
        return nnx.state((model, optimizer))

    def now() -> float:
        return float(loss(model, data.x[:PROBE], data.labels[:PROBE]))

    return Peer(Contender("Flax NNX + optax", turn, now), carry, step)


# ---------------------------------------------------------------- others


def torch_device() -> Any:
    """The device of PyTorch: the accelerator, if JAX has one, with float32 products in TF32 as JAX's by default."""
    import torch

    if jax.default_backend() == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return torch.device("cuda")


def torch_done(device: Any) -> None:
    """Returns when the work queued on the device is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def pytorch(config: Config, data: Data) -> Peer:
    """PyTorch, eager: zero_grad, forward, backward, step; batches indexed from tensors."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    hidden = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[config.activation]
    layers: list[Any] = []
    for into, out in zip(config.widths[:-1], config.widths[1:], strict=True):
        norm = [nn.BatchNorm1d(out, eps=NORM_EPS, momentum=1 - NORM_MOMENTUM)] * (config.extra == "batch_norm")
        dropout = [nn.Dropout(DROP_RATE)] * (config.extra == "dropout")
        layers += [nn.Linear(into, out), *norm, hidden(), *dropout]
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    device = torch_device()
    model = nn.Sequential(*layers[: last + 1]).to(device)
    criterion = nn.CrossEntropyLoss()
    if config.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=ADAM_EPS)
    x, labels = torch.from_numpy(data.x).to(device), torch.from_numpy(data.labels).long().to(device)

    def turn() -> None:
        for _ in range(config.epochs):
            for index in torch.randperm(config.examples, device=device).split(config.batch):
                optimizer.zero_grad()
                criterion(model(x[index]), labels[index]).backward()
                optimizer.step()
        torch_done(device)

    def now() -> float:
        with torch.no_grad():
            return float(criterion(model(x[:PROBE]), labels[:PROBE]))

    return Peer(Contender("PyTorch", turn, now))


def scikit_learn(config: Config, data: Data) -> Peer | None:
    """scikit-learn's MLPClassifier: `partial_fit` goes once over the data in shuffled batches. Dense layers only."""
    if config.extra:
        return None
    from sklearn.metrics import log_loss
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        hidden_layer_sizes=config.widths[1:-1],
        activation={"sigmoid": "logistic", "relu": "relu"}[config.activation],
        solver=config.optimizer,
        alpha=0.0,
        batch_size=config.batch,
        learning_rate_init=config.learning_rate,
        momentum=0.0,
        nesterovs_momentum=False,
        epsilon=ADAM_EPS,
        random_state=0,
    )
    classes = np.arange(config.widths[-1])

    def turn() -> None:
        for _ in range(config.epochs):
            model.partial_fit(data.x, data.labels, classes=classes)

    def now() -> float:
        probabilities = model.predict_proba(data.x[:PROBE]).astype(np.float64)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return float(log_loss(data.labels[:PROBE], probabilities, labels=classes))

    return Peer(Contender("scikit-learn", turn, now))


JAX_PEERS = {"stax": stax, "Equinox + optax": equinox, "Flax NNX + optax": flax_nnx}
OTHER_PEERS = {"PyTorch": pytorch, "scikit-learn": scikit_learn}
