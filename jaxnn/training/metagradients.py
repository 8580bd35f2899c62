"""Derivatives of a whole training: how a figure at its end changes with its settings and with its examples' weights.

Letters: N examples, B batch size, T steps in all, F the figure, wₙ the weight of example n, cₙ its cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, replace
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxnn.arrays import is_concrete, is_floating
from jaxnn.checks import example_weights, seen, weight_values, yes_or_no
from jaxnn.compiled import PureFunction
from jaxnn.mistakes import is_function, is_traced, several
from jaxnn.optimizers.parts import shows_rate
from jaxnn.records import is_array
from jaxnn.shapes import batch_size
from jaxnn.showing import brief, shown
from jaxnn.spmd.axes import on_mesh
from jaxnn.training.run import run
from jaxnn.types import Array, Run

MODES = ("reverse", "forward")
OWN_NAMES = ("self", "train_state", "data", "validation")  # of the call, which no setting can have


def metagradient_line(found: Any) -> str:
    """`Metagradient(figure 0.1, ∂/∂rate -0.0956, ∂/∂weights float32[1438])`."""
    parts = [f"figure {brief(found.figure)}", *(f"∂/∂{name} {brief(value)}" for name, value in found.settings.items())]
    parts += [] if found.weights is None else [f"∂/∂weights {brief(found.weights)}"]
    return f"Metagradient({', '.join(parts)})"


@shown(metagradient_line)
class Metagradient(NamedTuple):
    """The derivatives of a figure at the end of a training.

    Attributes:
        figure: F, a scalar.
        settings: ∂F/∂setting by name, each of its setting's shape.
        weights: ∂F/∂wₙ, of the weights' shape, [N]; of the chosen `examples` [M]; with a `direction` d the scalar
            Σ dₙ ∂F/∂wₙ. None if not asked for.
        run: the training itself.
    """

    figure: Array
    settings: dict[str, Array]
    weights: Array | None
    run: Run


class metagradient(PureFunction):
    """The derivative of a figure at the end of a training by its settings, and by the weight of each example.

    `metagradient(make)(train_state, data, validation, **settings) -> Metagradient`, where `make(**settings) -> run`
    builds the training of its settings: rates, strengths of penalties, parameters of schedules, any float or array of
    floats that it is given. A setting left at its default is a constant. It is a pure function: `jit`, `vmap` and
    further derivatives of it work. Run it under `jax.jit`.

    A batch has the loss Σ wₙcₙ/Σ wₙ, without weights with wₙ = 1. So ∂F/∂wₙ is the effect of more weight on example n
    *and* less on the others of its batches. To first order, training without example n, in the same order and with
    wₙ = 0, changes F by −wₙ ∂F/∂wₙ: the influence of the example. An example hurts where ∂F/∂wₙ > 0.

    What is differentiated is the training as it is computed from this state: its order, its random numbers, and the
    number of epochs where `stopping` ended it are constants. Whatever passes through a comparison or an integer has
    derivative 0 (an accuracy; which units dropout drops: of a drop rate, only the scale is differentiated), and at a
    kink it is one of several (relu at 0, a tie in max-pooling). Where training amplifies small changes, derivatives are
    large and right, but predict little: smooth activations, smaller rates and larger batches help.

    Args:
        make: a function of settings that returns a `run`, or a `run`, which has none.
        of: F, the name of a figure in the history, at the last epoch that was run; or a function Run -> scalar.
        mode: "reverse" gives all derivatives at once, in about 4 times the time of the training, 8 if the network is
            tiny. "forward" computes them side by side, each for about the time of the training, in memory that does not
            grow with T; weights then only if asked for.
        examples: the numbers of the examples whose weights are differentiated, () for none; by default all of them in
            reverse mode, and none in forward mode.
        direction: an array of the weights' shape, for the derivative in its direction instead.
        recompute: reverse mode in O(√T) memory, see `run`; False leaves it to the setting of the run. It costs no time
            where memory is slow.

    With a step of your own, the weights are the third part of data = (x, target, weights), if that is floats. A weight
    of 0 takes its example out of the training, so that its derivative is NaN; give a small one, 1e-6, for the effect of
    adding it. The derivative by the first parameters is `jax.grad` of the run.

    Raises:
        ValueError, TypeError: for settings that `make` does not take, that are not floats, or that give no `run`; for a
            figure that the history does not have; outside `jit`, for one that is not finite or that nothing changes.

    Source: Maclaurin, Duvenaud & Adams (2015), "Gradient-based hyperparameter optimization through reversible
    learning"; Franceschi et al. (2017), "Forward and reverse gradient-based hyperparameter optimization"; Engstrom et
    al. (2025), "Optimizing ML training with metagradient descent"; Ilyas & Engstrom (2025), "MAGIC: near-optimal data
    attribution for deep learning".

    >>> from jaxnn import init_train_state, losses, mlp, sgd, train_step
    >>> net, x = mlp([1]), jnp.linspace(-1, 1, 8)[:, None]
    >>> make = lambda rate: run(train_step(net, losses.mse, sgd(rate)), epochs=2, batch_size=4)
    >>> state = init_train_state(net, sgd(0.1), 0, (1,))
    >>> found = jax.jit(metagradient(make))(state, (x, 3 * x), (x, 3 * x), rate=0.1)
    >>> bool(found.settings["rate"] < 0), found.weights.shape  # a larger rate would end lower
    (True, (8,))
    """

    make: run | Callable[..., run]
    _: KW_ONLY
    of: str | Callable[[Run], Array] = "validation_loss"
    mode: str = "reverse"
    examples: Sequence[int] | None = None
    direction: Array | None = None
    recompute: bool = True

    def __post_init__(self) -> None:
        _check_make(self.make)
        if not isinstance(self.of, str) and not is_function(self.of):
            raise TypeError(
                f"metagradient: of must be the name of a figure or a function of a Run, got {seen(self.of)}"
            )
        if self.mode not in MODES:
            raise ValueError(f"metagradient: mode must be 'reverse' or 'forward', got {self.mode!r}")
        if self.examples is not None:
            if self.direction is not None:
                raise ValueError("metagradient: give examples or a direction, not both")
            self._set(examples=_indices(self.examples))
        if self.direction is not None:
            direction = self.direction if is_array(self.direction) else np.asarray(self.direction)
            if not is_floating(direction):
                raise TypeError(
                    f"metagradient: direction must be floats, one for each weight, got {seen(self.direction)}; "
                    "examples are chosen by examples=[3, 7]"
                )
            self._set(direction=jnp.asarray(direction))
        self._set(recompute=yes_or_no("metagradient: recompute", self.recompute))

    def __call__(self, train_state: Any, data: Any, validation: Any = None, **settings: Any) -> Metagradient:
        values = self._settings(settings)
        made = self._made(values)  # raises now what concrete settings are wrong for
        data, weights = self._weighted(made, data)
        moved, weights_at = self._moved(weights)
        if not jax.tree.leaves((values, moved)):
            raise ValueError(
                "metagradient: there is nothing to differentiate by: give settings, metagradient(lambda rate: run(…)), "
                "or, in forward mode, examples=[…] or a direction"
            )

        def figure(values: dict[str, Array], moved: Array | None) -> tuple[Array, tuple[Array, Run]]:
            training = self._made(values)
            _check_rate(training.step, train_state)
            if self.recompute and self.mode == "reverse":
                training = replace(training, recompute=True)
            result = training(train_state, data if moved is None else (*data, weights_at(moved)), validation)
            value = self._figure(result, validation)
            return value, (value, result)

        if not is_traced(values, moved):  # outside jit a training would be computed before its errors were found
            with _on_mesh_of(data, train_state, values):
                jax.eval_shape(figure, values, moved)
        derived = (jax.grad if self.mode == "reverse" else jax.jacfwd)(figure, (0, 1), has_aux=True)
        with _on_mesh_of(data, train_state, values):
            (by_settings, by_weights), (value, result) = derived(values, moved)
        if weights is not None and by_weights is not None:
            by_weights = jnp.where(self._left_out(weights), jnp.nan, by_weights)
        found = Metagradient(value, by_settings, by_weights, result)
        self._check_values(found)
        return found

    # ---------------------------------------------------------------- what enters

    def _settings(self, given: dict[str, Any]) -> dict[str, Array]:
        """The settings as arrays of floats; raises an error for those that `make` does not take."""
        if isinstance(self.make, run):
            if given:
                raise TypeError(
                    f"metagradient: a run has no settings, got {', '.join(given)}: give a function of them that "
                    "returns the run, metagradient(lambda rate: run(…))"
                )
            return {}
        required, optional, more = _names_of(self.make)
        unknown = [] if more else [name for name in given if name not in (*required, *optional)]
        missing = [name for name in required if name not in given]
        if unknown or missing:
            wrong = f"unknown setting {', '.join(unknown)}" if unknown else f"no value for {', '.join(missing)}"
            raise TypeError(f"metagradient: {wrong}: make takes {', '.join((*required, *optional)) or 'none'}")
        return {name: _floats(f"metagradient: {name}", value) for name, value in given.items()}

    def _made(self, values: dict[str, Array]) -> run:
        made = self.make if isinstance(self.make, run) else self.make(**values)
        if not isinstance(made, run):
            raise TypeError(f"metagradient: make must return a run(step, …), got {seen(made)}")
        return made

    def _weighted(self, made: run, data: Any) -> tuple[Any, Array | None]:
        """The data without their weights, and the weights; all of the data and None if these are not differentiated."""
        asked = self.direction is not None or bool(self.examples)
        data = tuple(data) if isinstance(data, list) else data
        if not asked and (self.mode == "forward" or self.examples == ()):
            return data, None
        weights: Any = data[2] if isinstance(data, tuple) and len(data) == 3 else None
        if made.own and not (is_array(weights) and is_floating(weights)):
            if asked:
                raise ValueError(
                    "metagradient: with a step of your own the weights are the third part of data = (x, target, "
                    "weights), floats, of which there are none"
                )
            return data, None
        if weights is None and not (isinstance(data, tuple) and len(data) == 2):
            return data, None  # run raises the error
        n = batch_size("data: x", data[0])
        if weights is None:
            return data, jnp.ones(n, jnp.result_type(float))
        example_weights("data: weights", weights, n)
        if is_concrete(weights):
            weight_values("data: weights", weights)
        return data[:2], jnp.asarray(weights).astype(jnp.result_type(float))

    def _moved(self, weights: Array | None) -> tuple[Array | None, Callable[[Array], Array]]:
        """The numbers by which the weights are differentiated, and the weights as a function of them."""
        if weights is None:
            return None, lambda moved: moved
        if self.direction is not None:
            d = jnp.asarray(self.direction, weights.dtype)
            if d.shape != weights.shape:
                raise ValueError(f"metagradient: direction must have the weights' shape {weights.shape}, got {d.shape}")
            return jnp.zeros((), weights.dtype), lambda s: weights + s * d
        if self.examples is None:
            return weights, lambda moved: moved
        at, n = np.asarray(self.examples, np.int32), len(weights)
        if max(self.examples) >= n:
            raise ValueError(f"metagradient: examples must be numbers from 0 to {n - 1}, got {max(self.examples)}")
        return weights[at], lambda moved: weights.at[at].set(moved)

    def _left_out(self, weights: Array) -> Array:
        """Whether the derivative is by a weight of 0: its example is left out, and the effect of more weight unseen."""
        if self.direction is not None:
            return ((weights == 0) & (self.direction != 0)).any()
        return (weights if self.examples is None else weights[np.asarray(self.examples, np.int32)]) == 0

    # ---------------------------------------------------------------- what comes out

    def _figure(self, result: Run, validation: Any) -> Array:
        """F of a run, a scalar."""
        if isinstance(self.of, str):
            if self.of not in result.history:
                advice = "; give a validation set" if validation is None and self.of.startswith("validation") else ""
                raise ValueError(
                    f"metagradient: of={self.of!r} is not in the history, which has "
                    f"{', '.join(map(repr, result.history))}{advice}"
                )
            return result.history[self.of][result.epochs_run - 1]
        value = self.of(result)
        if not is_array(value) or value.shape or not is_floating(value):
            raise TypeError(f"metagradient: of must return a scalar, the figure of a Run, got {seen(value)}")
        return value

    def _check_values(self, found: Metagradient) -> None:
        """Outside jit, raises ValueError for a figure that is not finite or that nothing changes."""
        derivatives = jax.tree.leaves((found.settings, found.weights))
        if is_traced(found.figure, derivatives) or not all(map(is_concrete, (found.figure, *derivatives))):
            return
        name = repr(self.of) if isinstance(self.of, str) else "the figure"
        if not np.isfinite(found.figure):
            raise ValueError(
                f"metagradient: {name} is {float(found.figure)} after {int(found.run.epochs_run)} epochs and has no "
                "derivative: the training diverged; a smaller learning rate helps most often"
            )
        if not any(np.any(np.asarray(leaf) != 0) for leaf in derivatives):
            raise ValueError(
                f"metagradient: every derivative of {name} is exactly 0: it passes through a comparison or an integer, "
                "as an accuracy does (take a loss), or does not depend on the training"
            )


# ---------------------------------------------------------------- checks


def _check_make(make: Any) -> None:
    if isinstance(make, run):
        return
    if not is_function(make) or isinstance(make, type):
        raise TypeError(
            "metagradient: make must be a run, or a function of settings that returns one, lambda rate: run(…), got "
            f"{seen(make)}"
        )
    required, optional, _ = _names_of(make)
    taken = [name for name in (*required, *optional) if name in OWN_NAMES]
    if taken:
        raise ValueError(f"metagradient: make has a setting called {taken[0]}, an argument of the call: rename it")


def _names_of(make: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The settings that a function requires, those that have defaults, and whether it takes any others."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except ValueError:  # a builtin shows none
        return (), (), True
    nameless = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [parameter for parameter in parameters if parameter.kind not in nameless]
    if any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in named):
        raise TypeError("metagradient: make is given its settings by name, and has one that is positional-only")
    required = tuple(p.name for p in named if p.default is p.empty)
    optional = tuple(p.name for p in named if p.default is not p.empty)
    return required, optional, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _floats(what: str, value: Any) -> Array:
    """A setting as an array; TypeError unless it is a real number or floats."""
    if isinstance(value, (bool, np.bool_)) or not (isinstance(value, Real) or is_array(value)):
        raise TypeError(f"{what} must be a number or an array of floats, got {seen(value)}: fix it in make")
    if isinstance(value, Real) and not is_array(value):
        return jnp.asarray(float(value), jnp.result_type(float))
    if not is_floating(value):
        raise TypeError(
            f"{what} must be floats, got {seen(value)}: there is no derivative by integers; fix them in make"
        )
    return jax.lax.convert_element_type(value, value.dtype)  # a Python float under jit would stay weakly typed


def _indices(examples: Any) -> tuple[int, ...]:
    """The numbers of examples, each once."""
    found = examples.tolist() if is_array(examples) and not is_traced(examples) else examples
    found = several("metagradient: examples", found, "examples=[3, 7]")
    for i in found:
        if isinstance(i, bool) or not isinstance(i, Integral) or i < 0:
            raise TypeError(
                f"metagradient: examples must be numbers of examples, from 0 on, got {seen(i)}; the derivative along "
                "an array of floats is direction=…"
            )
    if len(set(found)) < len(found):
        raise ValueError("metagradient: an example is given twice in examples")
    return tuple(map(int, found))


def _check_rate(step: Any, train_state: Any) -> None:
    """Raises ValueError if the learning rate is a setting, but another one has been set in the state, which is used."""
    opt_state: Any = getattr(train_state, "opt_state", None)
    optimizer = getattr(step, "optimizer", None)
    paths = jax.tree_util.tree_leaves_with_path(optimizer) if shows_rate(opt_state) else []
    if not any("learning_rate" in jax.tree_util.keystr(path) and is_traced(leaf) for path, leaf in paths):
        return
    if is_traced(opt_state.learning_rate, opt_state.given):
        return
    rate, given = np.asarray(opt_state.learning_rate), np.asarray(opt_state.given)  # jnp would trace them under jit
    if np.isnan(given).any() or np.array_equal(rate, given):
        return
    raise ValueError(
        f"metagradient: the learning rate {float(rate):g} was set in the state, whose optimizer was made with "
        f"{float(given):g}: it would be used instead of the setting. Give a state of the optimizer's own rate"
    )


def _on_mesh_of(data: Any, *others: Any) -> AbstractContextManager[object]:
    """The Explicit mesh of the data as JAX's mesh, which the derivative of a loop needs; see `on_mesh`.

    Outside `jit` a program needs the devices too.
    """
    if is_traced(data, *others):
        return on_mesh(data)
    meshes = [
        leaf.sharding.mesh
        for leaf in jax.tree.leaves(data)
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
    ]
    mesh = next((mesh for mesh in meshes if isinstance(mesh, Mesh) and mesh.explicit_axes), None)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.set_mesh(mesh)
