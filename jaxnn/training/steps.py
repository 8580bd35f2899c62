"""One step of training, as a record that is called: θ ← θ + s u."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_concrete, is_floating
from jaxnn.checks import seen, yes_or_no
from jaxnn.compiled import PureFunction
from jaxnn.diagnostics.measures import HEALTH, measures
from jaxnn.keys import as_key, layer_key
from jaxnn.mistakes import (
    accepts,
    array_leaves,
    factory_hint,
    is_function,
    net_record,
    optimizer_record,
    training_records,
    whole_state,
)
from jaxnn.optimizers.parts import (
    apply_updates,
    extras_of,
    loss_scale_of,
    next_step,
    overflowed,
    taken,
    with_rate_of,
)
from jaxnn.passes.backprop import PassFunction, backprop
from jaxnn.passes.readings import readings_of
from jaxnn.training.monitoring import copied
from jaxnn.trees import same_shapes
from jaxnn.types import (
    Array,
    DType,
    InShape,
    Key,
    Layer,
    Loss,
    Optimizer,
    Params,
    Pass,
    Penalty,
    Reading,
    TrainState,
    Tree,
)

Gradient = Callable[..., PassFunction]
Augment = Callable[[Key, Any], Any]  # (key, x) -> x, of x's shape
AUGMENTATION = "/augment"  # its key's name, which no layer can have


def init_train_state(
    net: Layer, optimizer: Optimizer, key: Key | int, in_shape: InShape, dtype: DType = jnp.float32
) -> TrainState:
    """The state before the first step: fresh parameters and optimizer state, step 0.

    Args:
        net: the network.
        optimizer: an Optimizer record, or one of optax's.
        key: a PRNG key or an integer seed; parameters are drawn from it, and it is kept for the keys of the steps.
        in_shape: the shape of one example, without the batch axis.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: if net, optimizer or key is something else, or the network does not take in_shape.

    >>> from jaxnn import mlp, sgd
    >>> init_train_state(mlp([3, 1]), sgd(0.1), 0, (2,)).params["dense_1"]["w"].shape
    (3, 1)
    """
    net_record("init_train_state", net)
    optimizer_record("init_train_state: optimizer", optimizer)
    given = as_key(key)
    kept = copied(given) if is_concrete(given) else given  # the caller's own is not donated with the state
    params, state = net.init(given, in_shape, dtype)
    array_leaves("net.init: the parameters", params)
    step, epoch = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # not one twice: both are donated
    return TrainState(params, state, optimizer.init(params), step, kept, epoch)


class train_step(PureFunction):
    """One step of training: θ ← θ + s u, where u is the optimizer's answer to ∂C/∂θ and s a scale, 1 by default.

    A pure function `(train_state, x, target, weights=None, *, update_scale=None) -> (train_state, Pass)`. Random
    layers draw from `fold_in(train_state.key, train_state.step)`, augmentation from a key folded in from that. Where
    the optimizer was made with another learning rate than the state's, the optimizer's is used from then on. An
    `update` that takes any of weight (Σw of the batch), value (its loss), grad and value_fn (params -> loss on this
    batch), as `accumulate` and some of optax's do, is given them. The cursor of the state does not move.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of the loss.
        read: what to note at every leaf layer, as for `backprop`.
        augment: a function (key, x) -> x of the same shape, such as those of `augment`; applied to the batch.
        measure: True adds the `diagnostics.Measures` of the step to the readings, as "diagnostics". Needs backprop.

    >>> from jaxnn import losses, mlp, sgd
    >>> net, optimizer = mlp([3, 1]), sgd(0.1)
    >>> state = init_train_state(net, optimizer, 0, (2,))
    >>> state, out = train_step(net, losses.mse, optimizer)(state, jnp.ones((4, 2)), jnp.ones((4, 1)))
    >>> int(state.step), out.loss.shape
    (1, ())
    """

    net: Layer
    loss: Loss
    optimizer: Optimizer
    _: KW_ONLY
    gradient: Gradient = backprop
    penalty: Penalty | None = None
    read: Sequence[str | Reading] = ()
    augment: Augment | None = None
    measure: bool = False

    def __post_init__(self) -> None:
        training_records("train_step", self.net, self.loss, self.optimizer, self.gradient, self.penalty)
        readings_of(self.read)  # refuses what is no sequence of them
        self._set(measure=yes_or_no("train_step: measure", self.measure), read=tuple(self.read))
        check_augmentation(self.augment)
        self._pass(self._readings)  # refuses what it would refuse when called

    def __call__(
        self,
        train_state: TrainState,
        x: Tree,
        target: Tree,
        weights: Array | None = None,
        *,
        update_scale: Array | float | None = None,
    ) -> tuple[TrainState, Pass]:
        whole_state("train_step: ", train_state)
        return self.take(self.begun(train_state), x, target, weights, update_scale)

    def begun(self, train_state: TrainState) -> TrainState:
        """The state with the learning rate of this step's optimizer."""
        opt_state = with_rate_of(self.optimizer, train_state.opt_state, train_state.params)
        return train_state._replace(opt_state=opt_state)

    def take(
        self,
        train_state: TrainState,
        x: Tree,
        target: Tree,
        weights: Array | None = None,
        update_scale: Array | float | None = None,
    ) -> tuple[TrainState, Pass]:
        """The step from a state that was checked and has the learning rate of the optimizer."""
        params, state, opt_state, count, key, *_ = train_state
        rng = jax.random.fold_in(key, count)
        if self.augment is not None:
            x = augmented(self.augment, rng, x)
        scale = loss_scale_of(opt_state)
        scaled = {} if scale is None else {"scale": scale}
        out = self._pass(self._readings)(params, state, x, target, rng=rng, weights=weights, **scaled)
        plain = self._pass() if "value_fn" in extras_of(self.optimizer.update) else None

        def loss_at(params: Params, weight: Any = None) -> Array:
            """Of this batch; `weight` is here for optax's line searches, which hand every extra argument on."""
            assert plain is not None
            return plain(params, state, x, target, rng=rng, weights=weights).loss

        extras = {"weight": out.weight, "value": out.loss, "grad": out.grads, "value_fn": loss_at}
        update = self.optimizer.update
        updates, new_opt_state = update(out.grads, opt_state, params, **taken(update, extras))
        overflow = overflowed(opt_state, new_opt_state)
        if overflow is not None:
            out = out._replace(state=jax.tree.map(lambda new, old: jnp.where(overflow, old, new), out.state, state))
        if update_scale is not None:
            s = jnp.asarray(update_scale)
            updates = jax.tree.map(lambda u: u * s.astype(u.dtype) if is_floating(u) else u, updates)
        if self.measure:
            found = measures(self.net, out.readings[HEALTH.name], params, out.grads, updates, count)
            out = out._replace(readings={**out.readings, HEALTH.name: found})
        new = train_state._replace(
            params=apply_updates(params, updates), state=out.state, opt_state=new_opt_state, step=next_step(count)
        )
        return new, out

    @property
    def _readings(self) -> Sequence[str | Reading]:
        return (*readings_of(self.read), HEALTH) if self.measure else self.read

    def _pass(self, read: Sequence[str | Reading] = ()) -> PassFunction:
        return self.gradient(self.net, self.loss, read=read, penalty=self.penalty, train=True)


def augmented(augment: Augment, rng: Key, x: Tree) -> Tree:
    """The batch, augmented: computed once, where XLA might compute it anew for each product that it enters."""
    key = layer_key(rng, AUGMENTATION)
    assert key is not None
    new = augment(key, x)
    same_shapes("augment changes the shape of a batch", new, x, "evaluation sees examples of the shape that is given:")
    was, now = ([leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (x, new))
    if was != now:
        raise ValueError(f"augment changes the type of a batch, from {was} to {now}")
    return jax.lax.optimization_barrier(new)


def check_augmentation(augment: Any) -> None:
    """Raises TypeError unless augment is a function of a key and a batch, or None."""
    if augment is not None and (not is_function(augment) or not accepts(augment, None, None)):
        raise TypeError(f"augment must be a function (key, x) -> x, got {seen(augment)}{factory_hint(augment)}")


def check_augmented(augment: Augment, x: Tree, batch: int) -> None:
    """Raises ValueError if augment does not keep the shape and type of a batch."""
    spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), x)
    jax.eval_shape(lambda x: augmented(augment, jax.random.key(0), x), spec)
