"""The records everything else is written in terms of, and the aliases for arrays and trees.

A record is a NamedTuple of functions or arrays: a value without behaviour, hashable by the identity of its
functions (compiled programs are cached by it), and made again with `_replace`. The formula of a loss or an
activation stands in the docstring of its `value`, and `help(losses.mse)` shows it.

Index letters, here and everywhere: `N` batch, `D` features in, `H` features out, `K` classes, `T` time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

import chex
import jax

from jaxnn.showing import (
    fit_line,
    fit_table,
    layer_line,
    named_line,
    optimizer_line,
    pass_line,
    pass_table,
    shown,
    state_line,
    state_table,
)

__all__ = [
    "Layer", "Activation", "Loss", "Penalty", "Optimizer", "Reading", "Pass", "TrainState", "Fit", "Tagged",
    "Array", "Key", "Tree", "Params", "State", "Shape", "InShape", "DType", "Initializer", "Schedule", "Metric",
    "InitRule", "ForwardRule", "BackwardRule",
]  # fmt: skip


def __dir__() -> list[str]:
    return list(__all__)


Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # a typed PRNG key, `jax.random.key(0)`
Tree: TypeAlias = Any  # any pytree of arrays
Params: TypeAlias = Any  # a pytree of arrays: {"dense_0": {"w": [D, H], "b": [H]}, …}
State: TypeAlias = Any  # a pytree of arrays; () where there is none
Shape: TypeAlias = tuple[int, ...]
InShape: TypeAlias = Any  # a tuple of ints, or a pytree of jax.ShapeDtypeStruct; never with the batch axis
DType: TypeAlias = chex.ArrayDType
Initializer: TypeAlias = Callable[..., Array]  # (key, shape, dtype) -> array
Schedule: TypeAlias = Callable[[Array], Array]  # step, a traced int -> learning rate
Metric: TypeAlias = Callable[[Array, Array], Array]  # (prediction, target) -> [N]; may have `entries` and `check`


class InitRule(Protocol):
    """`init(key, in_shape, dtype=float32) -> params, state`."""

    def __call__(self, key: Key, in_shape: InShape, dtype: DType = ...) -> tuple[Params, State]: ...


class ForwardRule(Protocol):
    """`forward(params, state, x, *, train=False, rng=None) -> y, state, tape`."""

    def __call__(
        self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Any, State, Tree]: ...


class BackwardRule(Protocol):
    """`backward(params, tape, delta) -> delta_in, grads`."""

    def __call__(self, params: Params, tape: Tree, delta: Any) -> tuple[Any, Params]: ...


@shown(layer_line)
class Layer(NamedTuple):
    """A layer, and a network: a map with parameters, and the rule that carries δ back through it (a lens).

    `delta` is ∂C/∂(the layer's output). Composing `backward` functions right to left *is* backpropagation:
    δˡ = (Wˡ⁺¹ᵀ δˡ⁺¹) ⊙ σ′(zˡ) is `dense.backward`, then `activation.backward`.

    Attributes:
        kind: the standard name, `"dense"`. Default parameter names count per kind: dense_0, dense_1, …
        init: `(key, in_shape, dtype=float32) -> (params, state)`; `in_shape` has no batch axis. `{}` and `()`
            where there is none.
        forward: `(params, state, x, *, train=False, rng=None) -> (y, state, tape)`, x [N, …], y [N, …]. The
            tape holds what backward needs: arrays only, private to the layer.
        backward: `(params, tape, delta) -> (delta_in, grads)`, grads like params. delta is like y in structure, shape
            and dtype, delta_in like x; `()` stands for the δ of what is not float, whole numbers and masks. The
            library's layers refuse another delta.
        couples_batch: True where one example's output depends on another's (batch norm).
        rules: further rules of this layer as (name, function) pairs, such as per-example squared norms.
        name: a name given by the user (`named`), or None.
        children: the layers that a combinator is made of; () for a leaf.
        child_names: the key of each child within params, state and readings; "" where a combinator adds
            no level of its own (residual, repeat, share).
        rebuild: `(children) -> Layer`, the same combinator of other children; None for a leaf.

    Source: Fong, Spivak & Tuyéras (2019), "Backprop as Functor"; Cruttwell et al. (2022), "Categorical
    Foundations of Gradient-Based Learning".
    """

    kind: str
    init: InitRule
    forward: ForwardRule
    backward: BackwardRule
    couples_batch: bool = False
    rules: tuple[tuple[str, Callable[..., Tree]], ...] = ()
    name: str | None = None
    children: tuple[Layer, ...] = ()
    child_names: tuple[str, ...] = ()
    rebuild: Callable[[tuple[Layer, ...]], Layer] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self.kind} is a layer already, and no function: params, state = net.init(key, in_shape), then "
            "y, state, tape = net.forward(params, state, x); serial(first, second) puts one behind another"
        )


@shown(named_line)
class Activation(NamedTuple):
    """An elementwise non-linearity h = σ(z) and its slope.

    Attributes:
        name: the standard name, `"relu"`.
        value: `value(z) -> h`, any shape.
        slope: `slope(z, h) -> dh/dz`, same shape; uses whichever of z and h is cheaper.
        leak: the slope at −∞ of a rectifier (0 for relu, λ for leaky_relu(λ)), which He initialisation
            needs; None for an activation that is not of the relu family.
        kinks: (z, slope there) wherever the slope jumps.
    """

    name: str
    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]
    leak: float | None = None
    kinks: tuple[tuple[float, float], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self.name
        if not args and not kwargs:
            advice = f"leave the parentheses out, serial(dense(128), {name})"
        elif kwargs or isinstance(args[0], (int, float)):
            advice = f"it takes no parameters here: give {name} alone; of the activations leaky_relu(0.1) has one"
        elif isinstance(args[0], (Layer, Activation)):
            advice = f"put one behind the other by serial(…, {name})"
        else:
            advice = f"{name}.value(z) gives h = σ(z), {name}.slope(z, h) its slope, activation({name}) the layer"
        raise TypeError(f"{name} is an Activation record, and no function: {advice}")


@shown(named_line)
class Loss(NamedTuple):
    """A cost per example and its hand-derived δ.

    Attributes:
        name: the standard name, `"mse"`.
        value: `value(prediction, target) -> [N]`, one cost Cₙ per example.
        delta: `delta(prediction, target) -> δ`, shaped like prediction: δₙ = ∂Cₙ/∂(predictionₙ).
        check: `check(prediction, target)` raises ValueError with advice if the *values* of the target (a
            concrete array) cannot be right; prediction may be a jax.ShapeDtypeStruct. Run once where data
            enters (`fit`, `evaluate`), never under `jit`, where a bad label turns loss and δ into NaN.
        entries: `entries(prediction, target) -> [N, …]`, the cost of each entry of an example (steps, pixels), of
            which value is the mean, and each of which depends on no other entry's prediction. Weights [N, …] and
            masks need it; without it they are refused.
    """

    name: str
    value: Callable[[Array, Array], Array]
    delta: Callable[[Array, Array], Array]
    check: Callable[[Any, Any], None] | None = None
    entries: Callable[[Array, Array], Array] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self.name
        advice = f"{name}.value(prediction, target) gives the costs [N], {name}.delta(prediction, target) their δ"
        if len(args) + len(kwargs) < 2:
            advice = f"give the record itself, as in fit(net, losses.{name}, …); {advice}"
        raise TypeError(f"losses: {name} is a Loss record, and no function: {advice}")


@shown(named_line)
class Penalty(NamedTuple):
    """A cost on the parameters: `value(params) -> scalar`, `grad(params) ->` a tree like params."""

    name: str
    value: Callable[[Params], Array]
    grad: Callable[[Params], Params]

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"penalties: {self.name} is a Penalty record, and no function: .value(params) is its cost, .grad(params) "
            "the gradient; fit, train_step and backprop take the record, penalty=…"
        )


@shown(optimizer_line)
class Optimizer(NamedTuple):
    """A rule for descending: optax's protocol, so that either library's optimizers work in the other.

    Attributes:
        init: `init(params) -> opt_state`.
        update: `update(grads, opt_state, params) -> (updates, opt_state)`; apply with `apply_updates`.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "an Optimizer is a record, and no function: opt_state = optimizer.init(params), then "
            "updates, opt_state = optimizer.update(grads, opt_state, params)"
        )


@shown(named_line)
class Reading(NamedTuple):
    """Something to note at every leaf layer while δ passes.

    Attributes:
        name: its key in `Pass.readings`.
        read: `read(layer, params, tape, delta, grads) ->` a pytree of arrays of fixed shape. `delta` is
            ∂(Σ wₙCₙ)/∂(the layer's output), the textbook's δ; `grads` are those of the mean loss.
    """

    name: str
    read: Callable[[Layer, Params, Tree, Any, Params], Tree]


@shown(pass_line, pass_table)
class Pass(NamedTuple):
    """What one forward and backward pass gives.

    Attributes:
        loss: scalar, Σ wₙCₙ / Σ wₙ plus the penalty.
        grads: ∂loss/∂params, a tree like params.
        state: the network's new state.
        output: the network's output, [N, …].
        readings: one entry per reading asked for, each keyed like params by layer name.
        weight: scalar, Σ wₙ, the number of examples without weights: what the loss is a mean over, so that the
            means of several batches can be put together. Where entries have weights or a mask, wₙ is their mean.
    """

    loss: Array
    grads: Params
    state: State
    output: Any
    readings: dict[str, Tree]
    weight: Array


@jax.tree_util.register_static
class EpochStart(int):
    """The position 0 as a static number: a program that is given it has nothing to leave out."""

    def __new__(cls, *_: int) -> EpochStart:
        return super().__new__(cls, 0)


EPOCH_START = EpochStart()


@shown(state_line, state_table)
class TrainState(NamedTuple):
    """All that training changes; a pytree of arrays, and all that is needed to go on.

    The key of a step is `fold_in(key, step)`; an epoch's order is drawn from `fold_in(key, epoch)`. The last two
    fields are the cursor: `train_epoch` and `fit` go on from there and move it; a step by hand (`train_step`), which
    is given its batch, does not.

    Attributes:
        params: the parameters.
        state: the network's state (running statistics); () where there is none.
        opt_state: the optimizer's state.
        step: how many steps have been taken, int32.
        key: a typed PRNG key.
        epoch: how many epochs have been finished, int32.
        position: how many examples of the epoch have been seen, int32. Between two epochs it is `EPOCH_START`, a 0 that
            a compiled program knows and does not count among the arrays.
    """

    params: Params
    state: State
    opt_state: Any
    step: Array
    key: Key
    epoch: Array | int = 0
    position: Array | int = EPOCH_START


@shown(fit_line, fit_table)
class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
        train_state: the state after the last epoch; hand it to `fit` again to go on. Where training was stopped early
            it is the best one, unless `restore_best=False`.
        history: one list per quantity with one float per epoch: loss, without the penalty, seconds, the metrics, and
            validation_loss, validation_<metric> where there is a validation set; penalty, update_scale
            and skipped where there is a `penalty`, a `plateau` or a `skip_nonfinite`.
        best: the state after the best epoch, where one was kept.
        best_epoch: which one that is, counted from 1 over the whole training.
        stopped: True where training was stopped early.
        why: why it ended, in words.
        monitors: what the machines remember (`stopping.Monitors`); hand it to `fit` again with the state.
        diagnostics: a `diagnostics.Diagnosis` for each step that was measured.
    """

    train_state: TrainState
    history: dict[str, list[float]]
    best: TrainState | None = None
    best_epoch: int | None = None
    stopped: bool = False
    why: str = ""
    monitors: Any = None
    diagnostics: tuple[Any, ...] = ()


@jax.tree_util.register_pytree_node_class
class Outline(tuple[Any, ...]):
    """The shape and dtype of an array without the array: what a tape keeps where no value is needed.

    A tuple of whatever is kept beside them, empty by default: a node of a tree without leaves then, which costs no
    memory and no operation.
    """

    shape: Shape
    dtype: DType

    def __new__(cls, shape: Shape, dtype: DType, *kept: Tree) -> Outline:
        self = super().__new__(cls, kept)
        self.shape, self.dtype = tuple(shape), dtype
        return self

    def tree_flatten(self) -> tuple[tuple[Tree, ...], tuple[Shape, DType]]:
        return tuple(self), (self.shape, self.dtype)

    @classmethod
    def tree_unflatten(cls, of: tuple[Shape, DType], kept: tuple[Tree, ...]) -> Outline:
        return cls(*of, *kept)


class Tagged(NamedTuple):
    """What an instrumented layer carries in place of its parameters (going in) or gradients (coming out).

    `share` is the one combinator for which the two parts differ: `tied` is the same for, and summed over,
    all uses of the layer; `own` has an entry for each use.
    """

    tied: Tree
    own: Tree


# ---------------------------------------------------------------- how a reader meets a loss or an activation


class _HelpOfValue:
    """A record's `__doc__`: that of its `value`, where its formula stands; the class keeps its own."""

    def __init__(self, of_class: str | None) -> None:
        self.of_class = of_class

    def __get__(self, record: Any, owner: type) -> str | None:
        return self.of_class if record is None else record.value.__doc__ or self.of_class


for _record in (Activation, Loss):
    _record.__doc__ = _HelpOfValue(_record.__doc__)  # type: ignore[assignment]
