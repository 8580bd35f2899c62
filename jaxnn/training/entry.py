"""Everything that enters training, checked at one door.

Data are moved to the devices, their shapes compared with the network and the loss, then their values checked, on the
host and before anything compiles. A message says whether it concerns the training data or the validation set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from numbers import Integral, Number
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import is_floating
from jaxnn.checks import number, plain_data, whole_number
from jaxnn.compiled import Structure, program, structure_of
from jaxnn.keys import as_key
from jaxnn.mistakes import alive, is_traced, net_record, not_traced, training_records, whole_state
from jaxnn.optimizers.parts import LAST_STEP
from jaxnn.passes.parts import check_params
from jaxnn.records import Record
from jaxnn.shapes import batch_size as size_of
from jaxnn.shapes import example_shape
from jaxnn.sources import in_memory, source_of
from jaxnn.spmd.batches import beside, check_together, spread
from jaxnn.spmd.processes import group_of
from jaxnn.spmd.transfers import put
from jaxnn.training.batches import PARTS, check_batch_size, check_sizes
from jaxnn.training.epochs import Epoch
from jaxnn.training.looking import check_values
from jaxnn.training.means import DataSet, NamedMetrics
from jaxnn.training.parts import FromSource
from jaxnn.training.steps import check_augmented, init_train_state, train_step
from jaxnn.trees import describe, same_shapes, spec_tree, static_spec
from jaxnn.types import EPOCH_START, Key, Layer, Optimizer, Params, State, TrainState, Tree

CLEAN_FOR_RUN = "Clean the data, or give them to jax.jit(run(…)), which looks at no values"


def entered(what: str, data: Any, *, divided: bool = False) -> DataSet:
    """A data set: that of a source, whose first rows are read, or as `on_device` gives it."""
    source = source_of(data)
    if source is None:
        return on_device(what, data, divided=divided)
    if group_of() is not None:
        raise ValueError(
            f"{what}: a Source, or a memory map, is for one process: give in each its part as arrays, "
            "placement.shard(part, mesh, local=True)"
        )
    found = FromSource(what, source)
    if what != "x" and len(found) < 2:
        raise TypeError(f"{what}: the source must have (x, target) or (x, target, weights), got x alone")
    check_sizes(what, found)
    return found


def on_device(what: str, parts: Any, *, divided: bool = False) -> tuple[Any, ...]:
    """The parts of a data set as device arrays with N examples each.

    Under `jax.set_mesh` NumPy arrays are copied to every device, or divided among them where their order is not drawn.
    """
    in_memory(what, parts)
    if what != "x":
        _check_parts(what, parts)
    arrays = []
    for name, part in zip(PARTS, parts, strict=False):
        where = name if what == "x" else f"{what}: {name}"
        if isinstance(part, (list, tuple)) and any(isinstance(leaf, Number) for leaf in jax.tree.leaves(part)):
            raise TypeError(f"{where} must be an array or a tree of arrays, got a list of numbers: use np.asarray")
        alive(where, part)
        plain_data(where, part)
        arrays.append(jax.tree.map(partial(_on_device, where, divided), part))
    check_together(
        {name if what == "x" else f"{what}: {name}": part for name, part in zip(PARTS, arrays, strict=False)}
    )
    check_sizes(what, tuple(arrays))
    return tuple(arrays)


def _check_parts(what: str, parts: Any) -> None:
    """Raises TypeError unless data are a pair or a triple of all examples, rather than batches."""
    expected = f"{what} must be (x, target) or (x, target, weights)"
    batches = (
        ": fit, run and evaluate cut the batches themselves; put them together, "
        "x, target = map(np.concatenate, zip(*batches)), or, if memory is short, give Source.of_chunks(length, chunks)"
    )
    if isinstance(parts, (tuple, list)):
        pairs = [type(part) in (tuple, list) and len(part) in (2, 3) and _are_arrays(part) for part in parts]
        if parts and all(pairs) and (isinstance(parts, list) or len(parts) not in (2, 3)):
            raise TypeError(f"{expected} of all examples, got a {type(parts).__name__} of {len(parts)} pairs{batches}")
        if len(parts) not in (2, 3) or hasattr(parts, "_fields"):
            raise TypeError(f"{expected}, got {type(parts).__name__} of {len(parts)}")
        return
    if isinstance(parts, dict):
        raise TypeError(f"{expected}, got a dict of {list(parts)}: give (data['x'], data['target']), say")
    if hasattr(parts, "__iter__") and not hasattr(parts, "shape") and not isinstance(parts, str):
        raise TypeError(f"{expected} of all examples, got an iterator, {type(parts).__name__}{batches}")
    raise TypeError(f"{expected}, got {describe(parts)}")


def _are_arrays(part: Any) -> bool:
    return all(hasattr(leaf, "shape") for leaf in part)


# ---------------------------------------------------------------- the door of `fit`


def check_fit_arguments(
    net: Any, loss: Any, optimizer: Any, gradient: Any, penalty: Any, *, may_be_traced: tuple[Any, ...]
) -> None:
    """Raises an error for arguments of other types, or traced ones."""
    training_records("fit", net, loss, optimizer, gradient, penalty)
    not_traced(
        "fit",
        "use jaxnn.train_epoch there, a pure function (train_state, x, target) -> (train_state, EpochResult)",
        *may_be_traced,
    )


class Entered(NamedTuple):
    """What enters the loop of `fit`. Nothing has compiled before `first` is called."""

    epoch: Epoch  # the epoch, which knows where the data lie
    data: DataSet  # the training data, on the devices
    validation: DataSet | None  # the validation set, likewise, or None
    like: TrainState  # the state from which the training starts, or arrays like those that it will have
    first: Callable[[], TrainState]  # the same, on the devices of the data


def enter(
    epoch: Epoch,
    data: DataSet,
    validation: DataSet | None,
    train_state: TrainState | None,
    key: Key | int | None,
    *,
    epochs: int,
    look: bool,
) -> Entered:
    """The data and the validation set, on the devices, and the state, all checked; the first state if none is given.

    Raises ValueError or TypeError for what does not fit the epoch's network, loss and optimizer. `look` says whether
    values are checked too.
    """
    step, named = epoch.step, epoch.metrics
    data = entered("data", data)
    parts = {"data": data}
    if validation is not None:
        validation = parts["validation"] = beside(entered("validation", validation), data)
    if epoch.shuffle and isinstance(data, FromSource) and data.source.in_order:
        raise ValueError(
            "fit: the chunks of this Source come in a given order: give shuffle=False, and shuffle them where "
            "they are made, another way in each epoch"
        )
    if epoch.shards not in (None, 1) and isinstance(data, FromSource):
        raise ValueError(f"fit: a Source is not in shards, got shards={epoch.shards}: leave it out")
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), data[0])
    check_batch_size(epoch.batch_size, size_of("x", x), epoch.measure)
    epoch = epoch.at_home(data, look=True)
    train_state = train_state if train_state is None else beside(train_state, data)
    if step.augment is not None:
        check_augmented(step.augment, x, epoch.batch_size)
    if train_state is None:
        if key is None:
            raise ValueError("fit: key is missing; give jax.random.key(seed) or an integer seed")
        initialisation = _Initialisation(step.net, step.optimizer, static_spec(x))
        first: Callable[[], TrainState] = partial(_initialise, initialisation, as_key(key))
        spec = jax.eval_shape(first)
    else:
        spec = _resumed(epoch, train_state, x, key, epochs)
    for what, part in parts.items():
        check_values(what, step.net, step.loss, spec.params, spec.state, part, named, look=look)
    begin = lambda: beside(spec if train_state is not None else first(), data)  # noqa: E731
    return Entered(epoch, data, validation, spec, begin)


def enter_run(
    step: train_step, metrics: NamedMetrics, train_state: TrainState, data: DataSet, validation: DataSet | None
) -> tuple[DataSet, DataSet | None]:
    """The data and the validation set of a `run` of a train_step, checked: values too where they are not traced."""
    parts = {"run: data": on_device("run: data", data)}
    if validation is not None:
        parts["run: validation"] = beside(on_device("run: validation", validation), parts["run: data"])
    check_together({"run: data": parts["run: data"], "train_state": train_state})
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parts["run: data"][0])
    _check_state("run", step.net, step.optimizer, train_state, x)
    of_step = step.net, step.loss, train_state.params, train_state.state
    for what, part in parts.items():
        check_values(what, *of_step, part, metrics, look=True, advice=CLEAN_FOR_RUN)
    return parts["run: data"], parts.get("run: validation")


_initialise = program("initialisation")


class _Initialisation(Record):
    net: Layer
    optimizer: Optimizer
    x_spec: Any

    def __call__(self, key: Key) -> TrainState:
        x = spec_tree(self.x_spec)
        dtype = next((leaf.dtype for leaf in jax.tree.leaves(x) if is_floating(leaf)), jnp.float32)
        return init_train_state(self.net, self.optimizer, key, example_shape(x), dtype)


def _resumed(epoch: Epoch, train_state: TrainState, x: Tree, key: Key | int | None, epochs: int) -> TrainState:
    """A given state, checked against the network, the optimizer and the size of the data."""
    net, optimizer = epoch.step.net, epoch.step.optimizer
    whole_state("", train_state, key=key is None)
    _check_state("fit", net, optimizer, train_state, x)
    rate = getattr(train_state.opt_state, "learning_rate", None)  # optax's states show none
    if rate is not None and np.size(rate) == 1:
        number("fit: train_state.opt_state.learning_rate", float(np.asarray(rate).item()), least=0.0)
    n = size_of("x", x)
    train_state = _with_counters(train_state, further=epochs * -(-n // epoch.batch_size))
    check_batch_size(epoch.batch_size, n, epoch.measure, int(train_state.position))
    return train_state if key is None else train_state._replace(key=as_key(key))


def _check_state(where: str, net: Layer, optimizer: Optimizer, train_state: TrainState, x: Tree) -> None:
    """Raises ValueError unless the state has the trees and shapes of a fresh one of this network and optimizer."""
    check_params(net, train_state.params, x)
    expected, got = jax.eval_shape(optimizer.init, train_state.params), train_state.opt_state
    advice = "give train_state._replace(opt_state=optimizer.init(train_state.params))"
    what = f"{where}: train_state.opt_state is not this optimizer's"
    if type(expected) is not type(got):
        raise ValueError(f"{what}: expected {type(expected).__name__}, got {type(got).__name__}; {advice}")
    same_shapes(what, got, expected, advice)
    advice, of_net = "expected what net.init gives:", _first_state(structure_of(net), static_spec(x))
    same_shapes("train_state.state is not that of this network", train_state.state, of_net, advice)


def _with_counters(train_state: TrainState, *, further: int) -> TrainState:
    """The state, its step and cursor as int32 on the device; n further steps must not pass their range.

    Raises TypeError or ValueError for one that is no whole number, or is negative.
    """
    counters: dict[str, Any] = {}
    for name in ("step", "epoch", "position"):
        value = getattr(train_state, name)
        value = value if isinstance(value, Integral) else np.asarray(value)
        if not isinstance(value, Integral):
            if value.shape or value.dtype.kind not in "iu":
                raise TypeError(f"fit: train_state.{name} must be a whole number, got {describe(value)}: {value}")
            value = value.item()
        count = whole_number(f"fit: train_state.{name}", value, least=0)
        if name == "step" and count + further > LAST_STEP:
            raise ValueError(
                f"fit: train_state.step {count} and {further} further steps pass the last step there is, {LAST_STEP}: "
                "steps are int32, and the keys of steps are drawn from them; begin a count of their own with a new key"
            )
        counters[name] = EPOCH_START if name == "position" and count == 0 else jax.device_put(np.int32(count))
    return train_state._replace(**counters)


def of_network(where: str, net: Layer, train_state: Any, x: Tree) -> tuple[Params, State]:
    """Parameters and state of a TrainState, or of a pair of these, checked against the network and x."""
    net_record(where, net)
    if isinstance(train_state, (tuple, list)) and len(train_state) == 2 and not hasattr(train_state, "_fields"):
        params, state = train_state
    else:
        if not isinstance(train_state, TrainState):
            raise TypeError(
                f"{where}: train_state must be a TrainState, as in fit(...).train_state, or a pair (params, state), "
                f"got {type(train_state).__name__}"
            )
        whole_state(f"{where}: ", train_state, key=False)
        params, state = train_state.params, train_state.state
    check_params(net, params, x)
    return params, state


@lru_cache(maxsize=1024)
def _first_state(net: Structure, x_spec: Any) -> Any:
    """The state before the first step, as jax.ShapeDtypeStructs."""
    in_shape = example_shape(spec_tree(x_spec))
    return jax.eval_shape(lambda net, key: net.init(key, in_shape)[1], net.record, jax.random.key(0))


def _on_device(what: str, divided: bool, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    try:
        here = np.asarray(leaf)
    except ValueError as error:  # lists of different lengths
        raise TypeError(f"{what} must be an array or a tree of arrays, got what is none: {error}") from error
    plain_data(what, here)  # a data frame is what it becomes
    there = put(what, here, spread(here, divided))  # compiles nothing
    if is_traced(there):  # inside jit everything is: what is known stays on the host, where it can be checked
        return here
    if here.dtype.kind in "iu" and there.dtype != here.dtype:
        changed = here.astype(there.dtype) != here
        if not changed.any():
            return there
        first = here[changed][0]
        raise ValueError(f"{what} holds {first}, beyond {there.dtype}: on the device whole numbers are {there.dtype}")
    return there
