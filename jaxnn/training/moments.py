"""A step of a training, before it is taken: its state, its batch, and what is to be asked about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.diagnostics.diagnosis import Diagnosis
from jaxnn.diagnostics.point import diagnose
from jaxnn.optimizers.parts import next_step
from jaxnn.passes.backprop import penalty_value
from jaxnn.passes.parts import costs
from jaxnn.showing import brief, shown
from jaxnn.spmd.batches import on_one_device
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import DataSet
from jaxnn.training.parts import FromSource
from jaxnn.training.steps import train_step
from jaxnn.types import Array, Key, Params, TrainState


def moment_line(moment: Any) -> str:
    """`Moment(step 4,711, epoch 3, position 110, batch of 10)`."""
    state = moment.train_state
    where = f"step {brief(state.step)}, epoch {brief(state.epoch)}, position {brief(state.position)}"
    return f"Moment({where}, batch of {len(jax.tree.leaves(moment.batch)[0])})"


@shown(moment_line)
class Moment(NamedTuple):
    """A step of a training before it is taken.

    Attributes:
        train_state: the state before the step.
        batch: its batch, (x, target) or (x, target, weights), augmented as in the step; for a user's own step the tree
            that it is given.
        step: the `train_step`, or the user's function.
        update_scale: the factor of its updates; None without a plateau.
    """

    train_state: TrainState
    batch: Any
    step: Any
    update_scale: Array | None = None

    @property
    def rng(self) -> Key:
        """The key of the step, fold_in(key, step)."""
        return jax.random.fold_in(self.train_state.key, self.train_state.step)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """(params, state, x, target), as `backprop(net, loss)`, `gradcheck.network(net, loss, …)` take them."""
        self._network("arguments")
        return (self.train_state.params, self.train_state.state, *self.batch[:2])

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords rng and weights that go with the arguments."""
        self._network("keywords")
        return {"rng": self.rng, "weights": self.batch[2] if len(self.batch) > 2 else None}

    def loss(self, params: Params) -> Array:
        """The loss of the step, with its penalty, as a function of the parameters; for a user's step info["loss"]."""
        if not isinstance(self.step, train_step):
            info = self.step(self.train_state._replace(params=params), self.batch)[1]
            if "loss" not in info:
                raise ValueError(f"Moment.loss: info of this step has no 'loss', only {', '.join(map(repr, info))}")
            return info["loss"]
        _, state, x, target = self.arguments
        output = self.step.net.forward(params, state, x, train=True, rng=self.rng)[0]
        loss = costs(self.step.loss, output, target, self.keywords["weights"]).mean
        return loss if self.step.penalty is None else loss + penalty_value(self.step.penalty, params).astype(loss.dtype)

    def take(self) -> tuple[TrainState, Any]:
        """Takes the step: the state after it, and its Pass or info. The cursor does not move."""
        scale = {} if self.update_scale is None else {"update_scale": self.update_scale}
        if not isinstance(self.step, train_step):
            new, info = self.step(self.train_state, self.batch, **scale)
            return new._replace(step=next_step(self.train_state.step)), info  # as a run counts it
        plain = replace(self.step, augment=None)
        return plain(self.train_state, *self.batch, **scale)

    def explain(self) -> Any:
        """Where a NaN or an infinity of this step comes from: `graph.explain_nonfinite` of its loss and gradient.

        If these are finite, of the update that the optimizer makes of them.
        """
        from jaxnn.graph import explain_nonfinite  # its import takes 60 ms

        here = self._here()
        why = explain_nonfinite(here.loss)(here.train_state.params)
        if not why.finite:
            return why

        def update(params: Params) -> Params:
            return here._replace(train_state=here.train_state._replace(params=params)).take()[0].params

        after = explain_nonfinite(update)(here.train_state.params)
        return why if after.finite else after

    def trace(self) -> Any:
        """The `graph.Graph` of the loss as a function of the parameters."""
        from jaxnn.graph import trace

        here = self._here()
        return trace(here.loss)(here.train_state.params)

    def gradcheck(self) -> Any:
        """The `gradcheck.Report` of the network's rules at this step."""
        from jaxnn.gradcheck import network

        step = self._network("gradcheck")
        here = self._here()
        return network(step.net, step.loss, *here.arguments, **here.keywords)

    def diagnose(self) -> Diagnosis:
        """The diagnosis of the layers at this step."""
        step = self._network("diagnose")
        here = self._here()
        params, state, x, target = here.arguments
        rng, weights = here.keywords.values()
        return diagnose(step.net, step.loss, params, state, x, target, rng=rng, weights=weights, penalty=step.penalty,
            optimizer=step.optimizer, opt_state=here.train_state.opt_state)  # fmt: skip

    def _here(self) -> Moment:
        """The same on one device."""
        state, batch = on_one_device((self.train_state, self.batch))
        return self._replace(train_state=state, batch=batch, update_scale=on_one_device(self.update_scale))

    def _network(self, what: str) -> train_step:
        if not isinstance(self.step, train_step):
            raise TypeError(f"Moment.{what}: a step of your own has no network; call it with train_state and batch")
        return self.step


def moment(epoch: Epoch, state: TrainState, data: DataSet, update_scale: Array | None = None) -> Moment:
    """The step of an epoch that a state is about to take."""
    n, position = epoch.size(data), int(state.position)
    order = lambda: epoch.order(state, n)  # noqa: E731
    if isinstance(data, FromSource):
        data = data.examples(int(state.epoch), position, epoch.batch_size, lambda: np.asarray(order()))
        rows = jnp.arange(epoch.size(data))
    else:
        rows = order()[position : position + epoch.batch_size]
    batch = epoch.batch(state, rows, epoch.prepared(data)[0])
    return Moment(epoch.begun(state), batch, epoch.step, update_scale)
