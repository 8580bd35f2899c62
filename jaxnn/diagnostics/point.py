"""The health of a network at one point: with initial parameters, before any training, or with trained ones."""

from __future__ import annotations

import jax.numpy as jnp

from jaxnn.compiled import program
from jaxnn.diagnostics.diagnosis import Diagnosis, report
from jaxnn.diagnostics.measures import HEALTH, Measures, measures
from jaxnn.keys import as_key
from jaxnn.mistakes import alive, array_leaves, loss_record, net_record, optimizer_record, penalty_record
from jaxnn.passes.backprop import backprop
from jaxnn.records import Record
from jaxnn.types import Array, Key, Layer, Loss, Optimizer, Params, Penalty, State, Tree


def diagnose(
    net: Layer,
    loss: Loss,
    params: Params,
    state: State,
    x: Tree,
    target: Tree,
    *,
    rng: Key | int | None = None,
    weights: Array | None = None,
    penalty: Penalty | None = None,
    optimizer: Optimizer | None = None,
    opt_state: Tree = None,
    train: bool = True,
    initial: bool = False,
) -> Diagnosis:
    """A diagnosis of vanishing or exploding δ and outputs, and of dead and saturated units, at one point.

    One forward and backward pass over one batch; nothing is changed. `print` shows the verdict, the figures behind it,
    and a row for each layer.

    Args:
        net: the network.
        loss: a Loss record.
        params: its parameters.
        state: its state.
        x: a batch [N, …], or a tree of such.
        target: as the loss expects it.
        rng: a key or a seed, for layers that are random in training.
        weights: [N] or [N, …], as for `backprop`; 1 by default.
        penalty: a Penalty record, included in the gradients.
        optimizer: if given, its updates are compared with the weights.
        opt_state: its state; by default the initial one.
        train: whether layers behave as in training.
        initial: True for initial parameters: a single layer with too large a scale is found as well.

    Raises:
        ValueError: as `backprop`.

    Source: Hochreiter (1991); Bengio, Simard & Frasconi (1994); Glorot & Bengio (2010).

    >>> import jax
    >>> from jaxnn import losses, mlp, sigmoid
    >>> net = mlp([30] * 10 + [10], sigmoid)
    >>> params, state = net.init(jax.random.key(0), (784,))
    >>> x, labels = jnp.ones((16, 784)), jnp.arange(16) % 10
    >>> found = diagnose(net, losses.softmax_cross_entropy, params, state, x, labels, initial=True)
    >>> found.verdict, found.findings[0].path
    ('vanishing', 'dense_0')
    """
    _check_records(net, loss, penalty, optimizer)
    _check_arrays(params=params, state=state, x=x, target=target, weights=weights)
    diagnosis = _Diagnosis(net, loss, penalty, optimizer, bool(train), opt_state is None)
    key = None if rng is None else as_key(rng)
    found = _run(diagnosis, params, state, x, target, key, weights, opt_state)
    return report(net, found, initial=initial)


def _check_records(net: Layer, loss: Loss, penalty: Penalty | None, optimizer: Optimizer | None) -> None:
    net_record("diagnostics.diagnose", net)
    loss_record("diagnostics.diagnose", loss)
    penalty_record("diagnostics.diagnose", penalty)
    if optimizer is not None:
        optimizer_record("diagnostics.diagnose: optimizer", optimizer)


def _check_arrays(**trees: Tree) -> None:
    for name, tree in trees.items():
        array_leaves(f"diagnostics.diagnose: {name}", tree)
        alive(f"diagnostics.diagnose: {name}", tree)


_run = program("diagnosis")


class _Diagnosis(Record):
    net: Layer
    loss: Loss
    penalty: Penalty | None
    optimizer: Optimizer | None
    train: bool
    fresh: bool

    def __call__(
        self,
        params: Params,
        state: State,
        x: Tree,
        target: Tree,
        rng: Key | None,
        weights: Array | None,
        opt_state: Tree,
    ) -> Measures:
        net, optimizer = self.net, self.optimizer
        read = backprop(net, self.loss, read=(HEALTH,), penalty=self.penalty, train=self.train)
        out = read(params, state, x, target, rng=rng, weights=weights)
        updates = None
        if optimizer is not None:
            updates, _ = optimizer.update(out.grads, optimizer.init(params) if self.fresh else opt_state, params)
        return measures(net, out.readings[HEALTH.name], params, out.grads, updates, jnp.int32(-1))
