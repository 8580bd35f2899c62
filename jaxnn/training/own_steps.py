"""Epochs of a user's own step, `(state, batch) -> (state, info)`: two optimizers, a policy gradient, anything pure.

Letters: N examples, B batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, is_floating
from jaxnn.checks import plain_data, seen
from jaxnn.mistakes import accepts, alive, factory_hint, is_function
from jaxnn.optimizers.parts import next_step
from jaxnn.sources import in_memory
from jaxnn.spmd.batches import Home, arranged
from jaxnn.spmd.batches import rows as rows_of_data
from jaxnn.training.batches import is_local
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import RESERVED, DataSet
from jaxnn.training.results import Notes
from jaxnn.training.steps import Augment
from jaxnn.trees import MAX_REPORTED, named_leaves, path_name, same_shapes
from jaxnn.types import EPOCH_START, Array, TrainState

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

    def check_padding(self, n: int, home: Home | None, shards: int) -> None:
        """Raises ValueError unless each batch has equally many examples of each shard: this step knows no weights."""
        if self.batch_size % shards or n % self.batch_size % shards:
            raise ValueError(
                f"run: batch_size {self.batch_size} takes different numbers of {n} examples from {shards} shards, and "
                f"a step of your own has no weights for them: give a multiple of {shards}"
            )

    def gathered(self, rows: Array, data: Any) -> Any:
        """The batch of those rows."""
        shards = self.shards or 1
        at = rows if shards == 1 else arranged(rows, self.size(data), shards, 1)
        return rows_of_data(data, at, self.home, local=is_local(self.home, shards))

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
        batch = self.batch(state, rows, data)
        scale = {} if update_scale is None else {SCALE: update_scale}
        new, info = _pair(_taken(self.step, state.params if self.bare else state, batch, scale))
        new = state._replace(params=new) if self.bare else new
        self._check(new, state)
        new = new._replace(step=next_step(state.step), epoch=state.epoch, position=state.position)
        figures = _figures(info)
        share = len(rows) * factor
        sums = {name: value * share for name, value in figures.items()}
        sums["weight"] = jnp.full((), share, jnp.result_type(float))
        return new, Notes(figures.get("loss", jnp.zeros(())), None, sums), None

    @property
    def augmentation(self) -> Augment | None:
        """The function that is applied to x of each batch."""
        return self.augment

    def _check(self, new: Any, old: TrainState) -> None:
        """Raises an error unless the step returned a state of the structure and the types that it was given."""
        if not isinstance(new, TrainState):
            raise TypeError(
                f"run: the step must return the new TrainState first, as in (state._replace(params=…), info), got "
                f"{type(new).__name__}"
            )
        for name in ("params", "state", "opt_state", "key"):
            what = "the state" if self.bare else f"train_state.{name}"
            got, was = getattr(new, name), getattr(old, name)
            same_shapes(f"run: the step changes the shapes of {what}", got, was, "a loop carries it:")
            _same_types(what, got, was)

    def checked(self, train_state: TrainState, data: Any) -> int | None:
        """The position to continue from, None if it is traced; raises an error for what does not fit."""
        return self.start(train_state, data)


def check_rows(what: str, data: Any) -> None:
    """Raises an error unless data is a tree of arrays with equally many examples in front."""
    in_memory(what, data)
    alive(what, data)
    plain_data(what, data)
    expected = "an array [N, …] or a tree of such arrays, N examples first in each"
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        where = path_name(path, below=what)
        if not getattr(leaf, "ndim", 0):
            advice = ": use np.asarray for lists of numbers" if isinstance(leaf, (int, float)) else ""
            raise TypeError(f"{what} must be {expected}, got {seen(leaf)} at {where}{advice}")
        sizes[where] = leaf.shape[0]
    if not sizes:
        raise TypeError(f"{what} must be {expected}, got {seen(data)}")
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"{what}: the first axis of each array counts the examples, the same number ≥ 1, got {sizes}")


def check_own_step(step: Any, *, scaled: bool) -> None:
    """Raises TypeError unless step is a function of a state and a batch, and, if it is scaled, of update_scale."""
    if not is_function(step) or isinstance(step, (type, Epoch)) or not accepts(step, None, None):
        raise TypeError(
            "run: step must be a train_step(net, loss, optimizer) or a function (state, batch) -> (state, info), got "
            f"{seen(step)}{factory_hint(step)}"
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
    return {
        str(name): as_figure(f"run: info[{name!r}]", value, "the mean over the batch") for name, value in info.items()
    }


def as_figure(where: str, value: Any, meaning: str) -> Array:
    """A real scalar as a float, at least float32; raises an error for anything else."""
    is_array = hasattr(value, "dtype") and not getattr(value, "ndim", 1)
    is_real = is_array and any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if not is_real and not isinstance(value, (bool, int, float)):
        raise TypeError(f"{where} must be a real scalar, {meaning}, got {seen(value)}")
    figure = jnp.asarray(value)
    return figure.astype(accumulator(figure.dtype) if is_floating(figure) else jnp.result_type(float))


def _taken(step: Step, state: Any, batch: Any, scale: dict[str, Any]) -> Any:
    """What the step returns; TypeError if it needs concrete numbers."""
    try:
        return step(state, batch, **scale)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "run: the step needs concrete numbers, but is compiled into the run: use jax.numpy instead of NumPy, "
            "float() and if"
        ) from error


def _same_types(what: str, got: Any, was: Any) -> None:
    """Raises TypeError if a leaf has another dtype; JAX's loops promote those of Python numbers."""
    old = {path: jax.typeof(leaf) for path, leaf in named_leaves(was).items()}
    changed = [
        f"{path or 'the array'} from {old[path].dtype} to {jax.typeof(leaf).dtype}"
        for path, leaf in named_leaves(got).items()
        if jax.typeof(leaf).dtype != old[path].dtype and not old[path].weak_type
    ]
    if changed:
        raise TypeError(
            f"run: the step changes the type of {what}, {', '.join(changed[:MAX_REPORTED])}; a loop carries it: "
            "cast it back, new.astype(old.dtype)"
        )


def rows_of(data: Any) -> DataSet:
    """The data with every leaf as a JAX array."""
    return cast(DataSet, jax.tree.map(jnp.asarray, data))
