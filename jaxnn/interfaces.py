"""The base classes of layers, activations, losses, penalties and optimizers, and records of a user's own functions.

Each is a `Record`, determined by its fields. Calling a base class makes a record of a user's functions:
`Loss("mine", value)`, `Layer("mine", init, forward)`.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterator
from dataclasses import field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, cast

import jax
import jax.numpy as jnp

from jaxnn.aliases import Array, DType, Forward, InShape, Key, Params, State, Tree
from jaxnn.factors import generic
from jaxnn.records import Record
from jaxnn.tapes import coupled


class Shown(Record):
    """A record that is not a function; a notebook shows its `repr`."""

    is_no_function = True

    def _replace(self, **changes: object) -> Any:
        cls = type(self).made_as
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(cls)}
        return cls(**kept | changes)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


class Named(Shown):
    """A record whose name is that of its class."""

    @cached_property
    def name(self) -> str:
        return type(self).shown_as or type(self).__name__


# ---------------------------------------------------------------- layers


class Layer(Shown):
    """A layer, and a network: a map with parameters, and the rule that carries δ back through it (a lens).

    `delta` is ∂C/∂(the layer's output). Composing `backward` functions right to left *is* backpropagation:
    δˡ = (Wˡ⁺¹ᵀ δˡ⁺¹) ⊙ σ′(zˡ) is `dense.backward`, then `activation.backward`.

    A user's own layer is `Layer(kind, init, forward, backward)`, its own `autodiff_twin` without a backward, or a class
    derived from this one whose fields are its settings.

    Attributes:
        kind: the standard name, `"dense"`. Default parameter names count per kind: dense_0, dense_1, …
        init: `(key, in_shape, dtype=float32) -> (params, state)`, `{}` and `()` if empty; `in_shape` has no batch axis.
        forward: `(params, state, x, *, train=False, rng=None) -> (y, state, tape)`, x [N, …], y [N, …]. The
            tape holds the arrays that backward needs, and is private to the layer.
        backward: `(params, tape, delta) -> (delta_in, grads)`, grads like params. delta has the structure,
            shapes and dtypes of y, delta_in those of x; the δ of integers and masks is `()`. The library's layers
            raise LayerError for any other delta.
        unrounded: `(params, tape, delta, dtype) -> (delta_in, grads)`: backward, gradients summed in at least dtype,
            for `low_precision`; by default what backward gives.
        keeps_precision: True if it computes in at least float32 within `low_precision` (norms, softmax).
        computes_in: the dtype in which it computes there; None outside.
        factors: `(params, tape, delta) ->` a tree like params of `factors.Factor`s, from which ∂Cₙ/∂θ of every example
            n follows. By default found by `backward`, one example at a time, unless the layer couples the batch.
        batch_axes: `(tape) ->` a tree like tape: the batch axis of each array, or None for an array that all examples
            share; None instead of the tree if unknown. Raises LayerError if the examples of the tape depend on each
            other (batch norm in training).
        couples_batch: True where one example's output may depend on another's (batch norm).
        name: a name given by the user (`named`), or None.
        children: the layers in a combinator; () for a leaf.
        child_names: the key of each child within params, state and readings; "" where the combinator adds no level
            (residual, repeat, share).
        rebuild: `(children) -> Layer`, the same combinator of other children; None for a leaf.
        activation: the Activation that an activation layer applies; None for any other layer.
        plain: the same layer by its formula, where it uses a faster algorithm with other FLOPs.
        uncounted: `(x) -> (n, shorter)` for a loop over time: the number of steps that XLA's count of FLOPs omits, and
            an x of which it counts one step; None without such a loop.
        look: `look(x)` raises LayerError if *values* of the network's input, a concrete array, are invalid.
        passes: the number of times that a loop (`repeat`, `share`) runs its child; None without a loop.
        stacks: True if each pass has its own parameters, on a leading axis.
        in_sequence: True if the first child reads the layer's input and each further one the output of the one before;
            if False all children read the layer's input.
        transposable: the name of its weights [D, H], if narrow, to be held as [H, D]; "" if it only reshapes; or None.
        by_autodiff: True if backward is jax.vjp of forward rather than a rule by hand.

    Source: Fong, Spivak & Tuyéras (2019), "Backprop as Functor"; Cruttwell et al. (2022), "Categorical
    Foundations of Gradient-Based Learning".
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            kind: str,
            init: Callable[..., tuple[Params, State]],
            forward: Callable[..., Forward],
            backward: Callable[..., tuple[Tree, Params]] | None = None,
            couples_batch: bool = False,
            name: str | None = None,
            children: tuple[Layer, ...] = (),
            child_names: tuple[str, ...] = (),
            rebuild: Callable[[tuple[Layer, ...]], Layer] | None = None,
            passes: int | None = None,
            stacks: bool = False,
            in_sequence: bool = False,
        ) -> None: ...

    @cached_property
    def kind(self) -> str:
        return type(self).__name__

    @cached_property
    def children(self) -> tuple[Layer, ...]:
        return ()

    @cached_property
    def child_names(self) -> tuple[str, ...]:
        return ("",) * len(self.children)

    @cached_property
    def couples_batch(self) -> bool:
        return any(child.couples_batch for child in self.children)

    name = rebuild = activation = uncounted = passes = transposable = computes_in = cast(Any, None)
    stacks = in_sequence = by_autodiff = keeps_precision = cast(Any, False)

    @property
    def plain(self) -> Layer:
        return self

    def look(self, x: Tree) -> None:
        return None

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        raise NotImplementedError(f"{self.kind} has no init(key, in_shape, dtype)")

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        raise NotImplementedError(f"{self.kind} has no forward(params, state, x, *, train, rng)")

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        raise NotImplementedError(
            f"{self.kind} has no backward(params, tape, delta): write it, or use autodiff_twin({self.kind}(…))"
        )

    def unrounded(self, params: Params, tape: Tree, delta: Tree, dtype: DType) -> tuple[Tree, Params]:
        return self.backward(params, tape, delta)

    def factors(self, params: Params, tape: Tree, delta: Tree) -> Tree:
        return generic(self, params, tape, delta)

    def batch_axes(self, tape: Tree) -> Tree:
        if self.couples_batch:
            raise coupled(self.kind)
        return None

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            f"{self.kind} is a layer already, not a function: params, state = net.init(key, in_shape), then "
            "y, state, tape = net.forward(params, state, x); serial(first, second) composes layers"
        )


# ---------------------------------------------------------------- activations


class Activation(Named):
    """An elementwise non-linearity h = σ(z) and its slope.

    A user's own activation is `Activation(name, value, slope)`.

    Attributes:
        name: the standard name, `"relu"`.
        value: `value(z) -> h`, any shape.
        slope: `slope(z, h) -> dh/dz`, same shape, computed from z or h, whichever is cheaper.
        leak: the slope of a rectifier at −∞ (0 for relu, λ for leaky_relu(λ)), for He initialisation; None for an
            activation outside the relu family.
        kinks: (z, slope at z) for each z at which the slope jumps.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            value: Callable[[Array], Array],
            slope: Callable[[Array, Array], Array],
            leak: float | None = None,
            kinks: tuple[tuple[float, float], ...] = (),
        ) -> None: ...

    leak = cast(Any, None)
    kinks = cast(Any, ())

    def value(self, z: Array) -> Array:
        raise NotImplementedError(f"{self.name} has no value(z)")

    def slope(self, z: Array, h: Array) -> Array:
        raise NotImplementedError(f"{self.name} has no slope(z, h)")

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        name = self.name
        if not args and not kwargs:
            advice = f"leave the parentheses out, serial(dense(128), {name})"
        elif kwargs or isinstance(args[0], (int, float)):
            advice = f"it takes no parameters here: give {name} alone; of the activations leaky_relu(0.1) has one"
        elif isinstance(args[0], (Layer, Activation)):
            advice = f"compose them by serial(…, {name})"
        else:
            advice = f"{name}.value(z) gives h = σ(z), {name}.slope(z, h) its slope, activation({name}) the layer"
        raise TypeError(f"{name} is an Activation record, not a function: {advice}")


class OwnActivation(Activation):
    """An activation of a user's functions."""

    shown_as = "Activation"

    name: str = field()
    value: Any = field()
    slope: Any = field()
    leak: float | None = None
    kinks: tuple[tuple[float, float], ...] = ()


# ---------------------------------------------------------------- losses


class Loss(Named):
    """A cost per example and its hand-derived δ.

    A user's own loss is `Loss(name, value, delta)`, or a class derived from this one whose fields are its settings.
    In `Loss(name, value)` δ is `jax.grad` of the value.

    Attributes:
        name: the standard name, `"mse"`.
        value: `value(prediction, target) -> [N]`, one cost Cₙ per example.
        delta: `delta(prediction, target) -> δ`, shaped like prediction: δₙ = ∂Cₙ/∂(predictionₙ).
        check: `check(prediction, target)` raises ValueError with advice if *values* of the target (a concrete array)
            are invalid, or None; prediction may be a jax.ShapeDtypeStruct. Called once where data enters (`fit`,
            `evaluate`), never under `jit`, where a bad label turns loss and δ into NaN.
        by_autodiff: True if delta is jax.grad of value rather than a rule by hand.
        entries: `entries(prediction, target) -> [N, …]`, the cost of each entry of an example (steps, pixels). An entry
            depends on its own prediction only, and value is the mean over the entries. Weights [N, …] and masks need
            it; without it (None) they raise an error.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            value: Callable[[Array, Array], Array],
            delta: Callable[[Array, Array], Array] | None = None,
            check: Callable[[Tree, Tree], None] | None = None,
            entries: Callable[[Array, Array], Array] | None = None,
        ) -> None: ...

    check = cast(Any, None)
    entries = cast(Any, None)

    @cached_property
    def by_autodiff(self) -> bool:
        return type(self).delta is Loss.delta

    def value(self, prediction: Array, target: Array) -> Array:
        raise NotImplementedError(f"losses: {self.name} has no value(prediction, target)")

    def delta(self, prediction: Array, target: Array) -> Array:
        return cast(Array, ByAutodiff(self.value)(prediction, target))

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        name = self.name
        advice = f"{name}.value(prediction, target) gives the costs [N], {name}.delta(prediction, target) their δ"
        if len(args) + len(kwargs) < 2:
            advice = f"give the record itself, as in fit(net, losses.{name}, …); {advice}"
        raise TypeError(f"losses: {name} is a Loss record, not a function: {advice}")


class OwnLoss(Loss):
    """A loss of a user's functions."""

    shown_as = "Loss"

    name: str = field()
    value: Any = field()
    delta: Any = None
    check: Any = None
    entries: Any = None

    def __post_init__(self) -> None:
        if self.delta is None or isinstance(self.delta, ByAutodiff):
            self._set(delta=ByAutodiff(self.value))
        if getattr(self.value, "__doc__", None):
            self._set(__doc__=self.value.__doc__)

    @cached_property
    def by_autodiff(self) -> bool:
        return isinstance(self.delta, ByAutodiff)


class ByAutodiff(Record):
    """δₙ = ∂Cₙ/∂(predictionₙ) by JAX; each of the costs [N] depends on one example."""

    shown_as = "jax.grad"

    value: Any

    def __call__(self, prediction: Array, target: Array) -> Any:
        costs, pull = jax.vjp(lambda prediction: self.value(prediction, target), prediction)
        return pull(jnp.ones_like(costs))[0]


# ---------------------------------------------------------------- penalties


class Penalty(Named):
    """A cost on the parameters: `value(params) -> scalar`, `grad(params) ->` a tree like params."""

    if TYPE_CHECKING:

        def __init__(self, name: str, value: Callable[[Params], Array], grad: Callable[[Params], Params]) -> None: ...

    def value(self, params: Params) -> Array:
        raise NotImplementedError(f"penalties: {self.name} has no value(params)")

    def grad(self, params: Params) -> Params:
        raise NotImplementedError(f"penalties: {self.name} has no grad(params)")

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            f"penalties: {self.name} is a Penalty record, not a function: .value(params) is its cost, .grad(params) "
            "the gradient; fit, train_step and backprop take the record, penalty=…"
        )


class OwnPenalty(Penalty):
    """A penalty of a user's functions."""

    shown_as = "Penalty"

    name: str = field()
    value: Any = field()
    grad: Any = field()


# ---------------------------------------------------------------- optimizers


class Optimizer(Shown):
    """An update rule with optax's protocol, so that the optimizers of each library work in the other.

    It unpacks to (init, update). A user's own optimizer is `Optimizer(init, update)`.

    Attributes:
        init: `init(params) -> opt_state`.
        update: `update(grads, opt_state, params) -> (updates, opt_state)`; apply with `apply_updates`.
    """

    if TYPE_CHECKING:

        def __init__(self, init: Callable[[Params], Tree], update: Callable[..., tuple[Params, Tree]]) -> None: ...

    def init(self, params: Params) -> Tree:
        raise NotImplementedError(f"{type(self).__name__} has no init(params)")

    def update(self, grads: Params, opt_state: Tree, params: Params = None) -> tuple[Params, Tree]:
        raise NotImplementedError(f"{type(self).__name__} has no update(grads, opt_state, params)")

    def __iter__(self) -> Iterator[Callable[..., Tree]]:
        return iter((self.init, self.update))

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            "an Optimizer is a record, not a function: opt_state = optimizer.init(params), then "
            "updates, opt_state = optimizer.update(grads, opt_state, params)"
        )


class OwnOptimizer(Optimizer):
    """An optimizer of a user's functions."""

    shown_as = "Optimizer"

    init: Any = field()
    update: Any = field()


Layer.noun = "Layer"  # made_as: `twins`
Activation.made_as, Activation.noun = OwnActivation, "Activation"
Loss.made_as, Loss.noun = OwnLoss, "Loss"
Penalty.made_as, Penalty.noun = OwnPenalty, "Penalty"
Optimizer.made_as, Optimizer.noun = OwnOptimizer, "Optimizer"
