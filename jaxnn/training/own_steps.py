"""Epochs of a user's own step, `(state, batch) -> (state, info)`: two optimizers, a policy gradient, anything pure.

Letters: N examples, B batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxnn import placement
from jaxnn.arrays import is_concrete
from jaxnn.checks import seen
from jaxnn.mistakes import accepts, alive, whole_state
from jaxnn.optimizers.parts import next_step
from jaxnn.training.batches import check_batch_size
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import RESERVED, DataSet
from jaxnn.training.results import Notes
from jaxnn.training.steps import Augment, augmented
from jaxnn.trees import same_shapes
from jaxnn.types import EPOCH_START, Array, TrainState, Tree

Step = Callable[..., tuple[Any, Any]]  # (state, batch) -> (state, info)
SCALE = "update_scale"  # the argument in which a step is given a plateau's factor
BARE = "a state that is not a TrainState"


class OwnEpoch(Epoch):
    """One pass over data of any structure, N examples first in every leaf, by a user's step."""

    step: Any
    augment: Augment | None = None
    bare: bool = False  # the step is given `params` alone, where the state of the user is

    def size(self, data: Any) -> int:
        """The number of examples."""
        return len(jax.tree.leaves(data)[0])

    def prepared(self, data: Any) -> tuple[Any, float]:
        """The data, and a factor with which the numbers of examples sum to 1."""
        return data, 1 / self.size(data)

    def begun(self, state: TrainState) -> TrainState:
        """The state as it is."""
        return state

    def take(
        self,
        state: TrainState,
        rows: Array,
        data: Any,
        factor: Array | float,
        update_scale: Array | float | None,
        measure: bool = False,
    ) -> tuple[TrainState, Notes, Any]:
        """Takes the step on those rows; what it says of itself is noted, weighted by the number of examples."""
        batch = placement.rows(data, rows, self.home)
        if self.augment is not None:
            rng = jax.random.fold_in(state.key, state.step)
            first, *others = batch if isinstance(batch, tuple) else (batch,)
            x = augmented(self.augment, rng, first)
            batch = (x, *others) if isinstance(batch, tuple) else x
        scale = {} if update_scale is None else {SCALE: update_scale}
        new, info = _pair(self.step(state.params if self.bare else state, batch, **scale))
        new = state._replace(params=new) if self.bare else new
        self._check(new, state)
        new = new._replace(step=next_step(state.step), epoch=state.epoch, position=state.position)
        figures = _figures(info)
        share = len(rows) * factor
        sums = {name: value * share for name, value in figures.items()}
        sums["weight"] = jnp.full((), share, jnp.result_type(float))
        return new, Notes(figures.get("loss", jnp.zeros(())), None, sums), None

    def _check(self, new: Any, old: TrainState) -> None:
        """Raises an error unless the step returned a state of the structure and the shapes that it was given."""
        if not isinstance(new, TrainState):
            raise TypeError(
                f"run: the step must return the new TrainState first, as in (state._replace(params=…), info), got "
                f"{type(new).__name__}"
            )
        for name in ("params", "state", "opt_state"):
            what = "the state" if self.bare else f"train_state.{name}"
            got, was = getattr(new, name), getattr(old, name)
            same_shapes(f"run: the step changes the shapes of {what}", got, was, "a loop carries it:")

    def checked(self, train_state: TrainState, data: Any) -> int | None:
        """The position to continue from, None if it is traced; raises an error for what does not fit."""
        whole_state("run: ", train_state)
        check_rows("data", data)
        position = train_state.position
        start = int(position) if isinstance(position, int) or is_concrete(position) else None
        check_batch_size(self.batch_size, self.size(data), 0, start or 0)
        return start


def check_rows(what: str, data: Any) -> None:
    """Raises an error unless data is a tree of arrays with equally many examples in front."""
    alive(what, data)
    leaves = jax.tree.leaves(data)
    if not leaves or any(not getattr(leaf, "ndim", 0) for leaf in leaves):
        raise TypeError(f"{what} must be a tree of arrays [N, …], N examples first in each, got {seen(data)}")
    sizes = sorted({leaf.shape[0] for leaf in leaves})
    if len(sizes) > 1 or not sizes[0]:
        raise ValueError(f"{what}: the leaves must have equally many examples in front, at least one, got {sizes}")


def check_own_step(step: Any, *, scaled: bool) -> None:
    """Raises TypeError unless step is a function of a state and a batch, and, if it is scaled, of update_scale."""
    if not callable(step) or isinstance(step, type) or not accepts(step, None, None):
        raise TypeError(
            "run: step must be a train_step(net, loss, optimizer) or a function (state, batch) -> (state, info), got "
            f"{seen(step)}"
        )
    if scaled and not accepts(step, None, None, **{SCALE: None}):
        raise TypeError(
            f"run: plateau scales updates, which this step does not take: give it a keyword argument {SCALE}, by which "
            "it multiplies its updates"
        )


def as_train_state(state: Any, *, shuffle: bool) -> tuple[TrainState, bool]:
    """The state, and whether it had to be put into a TrainState: one without a key or a cursor."""
    if isinstance(state, TrainState):
        return state, False
    if shuffle:
        raise TypeError(
            f"run: {BARE} has no key from which orders are drawn, got {type(state).__name__}: give "
            "TrainState(params, state, opt_state, step=0, key=jax.random.key(0)), whose fields may be any trees, or "
            "shuffle=False"
        )
    count = jnp.zeros((), jnp.int32)
    return TrainState(state, (), (), count, jax.random.key(0), count, EPOCH_START), True


def _pair(returned: Any) -> tuple[Any, Any]:
    if isinstance(returned, tuple) and len(returned) == 2 and not hasattr(returned, "_fields"):
        return returned
    raise TypeError(f"run: the step must return a pair (state, info), got {type(returned).__name__}")


def _figures(info: Any) -> dict[str, Array]:
    """The figures of a step by name; raises an error for what is no dict of scalars."""
    if not isinstance(info, Mapping):
        raise TypeError(f"run: info must be a dict of scalars by name, such as {{'loss': loss}}, got {seen(info)}")
    taken = sorted((RESERVED - {"loss", "penalty"}) & set(info))
    if taken:
        raise ValueError(f"run: no entry of info may be called {', '.join(map(repr, taken))}")
    figures = {str(name): jnp.asarray(value) for name, value in info.items()}
    for name, value in figures.items():
        if value.shape:
            raise ValueError(f"run: info[{name!r}] must be a scalar, the mean over the batch, got shape {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            figures[name] = value.astype(jnp.result_type(float))
    return figures


def rows_of(data: Any) -> DataSet:
    """The data with every leaf as a JAX array."""
    return cast(DataSet, jax.tree.map(jnp.asarray, data))


def bare(state: TrainState | Tree) -> Any:
    """What `as_train_state` was given."""
    return state.params if isinstance(state, TrainState) else state
