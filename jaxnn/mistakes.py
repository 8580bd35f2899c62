"""Checks of the kinds of users' arguments: records, functions, arrays, states.

Every check raises TypeError or ValueError before anything compiles. A message says where, what was expected, what was
given, and what to do.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from numbers import Number
from typing import Any

import jax
import numpy as np

from jaxnn.checks import seen
from jaxnn.records import Record
from jaxnn.records import is_function as is_function
from jaxnn.showing import is_deleted
from jaxnn.trees import path_name
from jaxnn.types import Activation, Layer, Loss, Optimizer, Penalty, TrainState, Tree

CHANNELS = (1, 3)  # of grey and colour images
LEAST_SIDE = 5  # of an image in advice about its axes


def is_factory(value: Any) -> bool:
    """True for a class or function of this library that makes a record, such as `leaky_relu`."""
    module = getattr(value, "__module__", None) or ""
    home = sys.modules.get(module)
    of_records = inspect.isclass(value) and issubclass(value, Record) and value.__name__[0].islower()
    return (
        (inspect.isfunction(value) or of_records)
        and module.startswith("jaxnn.")
        and getattr(home, value.__name__, None) is value
    )


def factory_hint(value: Any) -> str:
    """Advice for a factory given instead of its result; "" for anything else."""
    return f"; a factory needs its parentheses, {value.__name__}(…)" if is_factory(value) else ""


# ---------------------------------------------------------------- records


def net_record(where: str, net: object) -> None:
    """Raises TypeError unless net is a Layer."""
    if not isinstance(net, Layer):
        hint = "; make it a layer, serial(relu)" if isinstance(net, Activation) else factory_hint(net)
        raise TypeError(f"{where}: net must be a Layer record, got {seen(net)}{hint}")


def loss_record(where: str, loss: Any) -> None:
    """Raises TypeError unless loss is a Loss."""
    if isinstance(loss, Loss):
        return
    hint = ""
    if is_factory(loss):
        name = loss.__name__
        hint = f"; a factory needs its parentheses, losses.{name}(), or {name}(…) with its settings"
    if is_function(loss) and not hint:
        hint = (
            "; make a record of a function f(prediction, target) -> [N], one cost for each example: Loss('mine', f), "
            "with δ by jax.grad, or Loss('mine', f, delta), with delta(prediction, target) = ∂Cₙ/∂predictionₙ by hand"
        )
    if isinstance(loss, str):
        hint = f"; the losses are in jaxnn.losses, as losses.{loss if loss.isidentifier() else 'mse'}"
    raise TypeError(f"{where}: loss must be a Loss record, got {seen(loss)}{hint}")


def optimizer_record(where: str, optimizer: object) -> None:
    """Raises TypeError unless optimizer has init and update, as in jaxnn and optax."""
    is_one = all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))
    is_one &= isinstance(optimizer, Optimizer) or not isinstance(optimizer, Record)  # a Monitor has them too
    if not is_one or inspect.isclass(optimizer) or (isinstance(optimizer, tuple) and len(optimizer) != 2):
        hint = "; a factory needs its parentheses, adam(1e-3)" if is_function(optimizer) else ""
        if isinstance(optimizer, (int, float, str)):
            hint = "; give an optimizer with its rate, adam(1e-3)"
        raise TypeError(f"{where} must have init and update, like jaxnn.adam(1e-3), got {seen(optimizer)}{hint}")


def penalty_record(where: str, penalty: object) -> None:
    """Raises TypeError unless penalty is a Penalty, or None."""
    if penalty is None or isinstance(penalty, Penalty):
        return
    hint = factory_hint(penalty)
    if isinstance(penalty, (int, float)):
        hint = f"; give penalties.l2({penalty!r}), or l1, elastic_net"
    elif is_function(penalty) and not hint:
        hint = "; make a record of a function of the parameters, Penalty('mine', f, jax.grad(f))"
    raise TypeError(f"{where}: penalty must be a Penalty record, like penalties.l2(1e-4), got {seen(penalty)}{hint}")


def gradient_rule(where: str, gradient: object) -> None:
    """Raises TypeError unless gradient has the signature of `backprop`."""
    expected = f"{where}: gradient must be the function jaxnn.backprop or jaxnn.autodiff, or one with their arguments"
    if not is_function(gradient) or inspect.isclass(gradient):
        named = isinstance(gradient, str) and gradient in ("backprop", "autodiff")
        hint = f": give gradient=jaxnn.{gradient}" if named else ""
        raise TypeError(f"{expected}, got {seen(gradient)}{hint}")
    if not accepts(gradient, None, None, read=(), penalty=None, train=True):
        raise TypeError(
            f"{expected}, gradient(net, loss, read=…, penalty=…, train=…), got {seen(gradient)}: give backprop itself, "
            "not what backprop(net, loss) returns"
        )


def training_records(
    where: str, net: object, loss: object, optimizer: object, gradient: object, penalty: object
) -> None:
    """Checks the arguments that `train_step`, `train_epoch` and `fit` have in common."""
    net_record(where, net)
    loss_record(where, loss)
    optimizer_record(f"{where}: optimizer", optimizer)
    gradient_rule(where, gradient)
    penalty_record(where, penalty)


def accepts(function: Any, *args: Any, **kwargs: Any) -> bool:
    """True if a function takes these arguments, or has no signature."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def several(what: str, value: object, example: str) -> tuple[Any, ...]:
    """The entries of a list or another ordered iterable; TypeError for anything else."""
    unordered = isinstance(value, (str, bytes, dict, set, frozenset)) or hasattr(value, "_fields")
    if unordered or not isinstance(value, Iterable):
        raise TypeError(f"{what} must be a list, as in {example}, got {seen(value)}")
    return tuple(value)


def initializer(what: str, value: object) -> Any:
    """The initializer, or None for the default; TypeError for anything else."""
    if value is None or (is_function(value) and not is_factory(value) and not inspect.isclass(value)):
        return value
    hint = factory_hint(value)
    if isinstance(value, (int, float)):
        hint = f"; for a constant give initializers.constant({value!r})"
    raise TypeError(
        f"{what} must be an initializer (key, shape, dtype) -> array, like initializers.he_normal(), got "
        f"{seen(value)}{hint}"
    )


# ---------------------------------------------------------------- arrays and trees


def array_leaves(what: str, tree: Tree) -> None:
    """Raises TypeError with the path of the first leaf that is neither an array nor a number."""
    if isinstance(tree, TrainState):
        raise TypeError(f"{what}: got a TrainState, give train_state.params and train_state.state")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")) and not isinstance(leaf, Number):
            advice = ": keep functions and settings in the layer, not in its parameters" if callable(leaf) else ""
            where = f" at '{path_name(path)}'" if path else ""
            raise TypeError(f"{what} must hold arrays, got {seen(leaf)}{where}{advice}")


def alive(what: str, tree: Tree) -> None:
    """Raises ValueError with the path of the first deleted array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_deleted(leaf):
            raise ValueError(
                f"{path_name(path, below=what)} has been deleted: it was donated to a compiled function "
                "(donate_argnums), which reused its memory; use what that function returned, or copy it beforehand, "
                "jax.tree.map(jnp.copy, …)"
            )


def is_traced(*trees: object) -> bool:
    """True if a leaf is traced."""
    leaves = jax.tree.leaves(trees, is_leaf=lambda tree: hasattr(tree, "__next__"))  # JAX warns of iterators
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def not_traced(where: str, advice: str, *trees: object) -> None:
    """Raises TypeError inside `jit` and for traced arguments: code on the host needs their values."""
    if is_traced(trees, jax.device_put(np.int32(0))):  # device_put compiles nothing, and is traced inside jit
        raise TypeError(
            f"{where} runs on the host with concrete numbers, and cannot be part of jax.jit, vmap or grad: {advice}"
        )


def channels_first(shape: Any) -> str:
    """Advice for a batch of images whose channels seem to be in front; "" otherwise."""
    if len(shape) in (4, 5) and shape[1] in CHANNELS and min(shape[2:]) >= LEAST_SIDE:
        axes = "[N, H, W, C]" if len(shape) == 4 else "[N, D, H, W, C]"
        return f"; images are {axes} here: use jnp.moveaxis(x, 1, -1)"
    return ""


def stacked(tree: Tree, expected: Tree) -> int | None:
    """M if each leaf is as expected with a further axis of size M in front, otherwise None."""
    got, wanted = jax.tree.leaves(tree), jax.tree.leaves(expected)
    sizes = {np.shape(leaf)[:1] for leaf in got}
    if not got or len(got) != len(wanted) or len(sizes) != 1 or sizes == {()}:
        return None
    fits = all(np.shape(leaf)[1:] == np.shape(want) for leaf, want in zip(got, wanted, strict=True))
    return int(next(iter(sizes))[0]) if fits else None


ONE_OF_SEVERAL = (
    "select one, jax.tree.map(lambda leaf: leaf[0], train_state), or use all of them with jax.vmap, "
    "jax.vmap(lambda state: evaluate(net, loss, state, data))(train_state), and train_epoch likewise"
)


# ---------------------------------------------------------------- the state of a training


def whole_state(where: str, train_state: object, *, key: bool = True) -> None:
    """Raises TypeError or ValueError unless train_state is a whole TrainState; with `key=False` its key may be None."""
    if not isinstance(train_state, TrainState):
        raise TypeError(
            f"{where}train_state must be a TrainState, like fit(...).train_state, got "
            f"{seen(train_state) if isinstance(train_state, (int, float, str)) else type(train_state).__name__}"
        )
    alive("train_state", train_state)
    array_leaves("train_state.params", train_state.params)
    shape = getattr(train_state.key, "shape", None)
    typed = shape is not None and jax.numpy.issubdtype(train_state.key.dtype, jax.dtypes.prng_key)
    if typed and shape:
        raise ValueError(f"{where}train_state contains {shape[0]} states, one for each key: {ONE_OF_SEVERAL}")
    if not typed and not _is_raw_key(train_state.key) and (key or train_state.key is not None):
        advice = f", jax.random.key({train_state.key})" if isinstance(train_state.key, int) else ", jax.random.key(0)"
        raise TypeError(f"{where}train_state.key must be a PRNG key{advice}, got {seen(train_state.key)}")


def _is_raw_key(key: Any) -> bool:
    words = jax.eval_shape(jax.random.PRNGKey, 0)
    return getattr(key, "shape", None) == words.shape and key.dtype == words.dtype


def of_two_arrays(what: str, *, make: Callable[[], Any]) -> Any:
    """The result of a user's function of tracers; TypeError if it needs concrete numbers."""
    try:
        return make()
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            f"{what} needs concrete numbers, but is compiled into the epoch: use jax.numpy instead of NumPy and "
            f"float(), and return an array [N]"
        ) from error
