"""Penalties on the parameters, against overfitting: a cost and its gradient, each pair in one place.

    penalty                          value                       grad             at w = 0
    l2(λ)                            ½λ Σ w²                     λw               0
    l1(λ)                            λ Σ |w|                     λ sign(w)        0, a kink
    elastic_net(λ₁, λ₂)              λ₁ Σ |w| + ½λ₂ Σ w²         λ₁ sign(w) + λ₂w 0, a kink

Σ runs over the weights only. A leaf is a weight if the last part of its path is `w` or begins with `w_`; its rank
does not matter, because `repeat` stacks biases to matrices. Biases, scales and shifts are penalised only if `on`
chooses them: a pattern of paths such as "dense_0/w", or a function that returns True for the paths to choose. A pattern
chooses the leaf with that path, or all leaves of the layer with that path; in it `*` matches any characters, "/"
included, `?` matches one, and [01] one of those listed.

    l2(1e-4)                                               # every weight
    l2(1e-4, on=everything)                                # biases too
    l2(1e-4, on="dense_1/w")                               # one leaf
    l2(1e-4, on="encoder")                                 # all leaves of a layer, or of a network that is `named`
    l2(1e-4, on="*/w_h")                                   # leaves of that name in any layer
    l2(1e-4, on=lambda path: not path.endswith("/b"))      # by a function

A penalty adds to the mean loss, whatever the batch size: `backprop(net, loss, penalty=l2(1e-4))`. Parameters tied
by `share` count once, those stacked by `repeat` once for each pass. Sums are in at least float32.

Letters: λ strength, w a weight. Strengths may be JAX scalars.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp

from jaxnn.arrays import accumulator, in_dtype, is_floating
from jaxnn.checks import number, seen
from jaxnn.mistakes import accepts, is_factory, is_function
from jaxnn.records import fields_of
from jaxnn.trees import describe, named_leaves, path_name
from jaxnn.types import Array, Params, Penalty, Tree

__all__ = ["l2", "l1", "elastic_net", "is_weight", "everything", "chosen"]
__dir__ = __all__.copy


Choice: TypeAlias = str | Callable[[str], bool]  # a pattern of paths such as "dense_0/w", or a function of a path


def is_weight(path: str) -> bool:
    """True for a weight, by the last part of its path: `w`, or what begins with `w_`.

    >>> is_weight("dense_0/w"), is_weight("dense_0/b"), is_weight("batch_norm_0/scale")
    (True, False, False)
    """
    name = path.rsplit("/", 1)[-1]
    return name == "w" or name.startswith("w_")


def everything(path: str) -> bool:
    """True: chooses every leaf, biases too."""
    return True


def matches(pattern: str, path: str) -> bool:
    """True if the pattern, with `*`, `?` and `[…]` as wildcards, is the leaf's path or that of a layer around it.

    >>> matches("dense_0/w", "dense_0/w"), matches("*/w", "encoder/dense_0/w"), matches("encoder", "encoder/dense_0/w")
    (True, True, True)
    >>> matches("dense_1", "dense_10/w"), matches("w", "dense_0/w")
    (False, False)
    """
    parts = path.split("/")
    around = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return pattern in around or any(fnmatch.fnmatchcase(place, pattern) for place in around)


def valid_choice(what: str, on: Choice, advice: str = "") -> Choice:
    """The choice, if it is a pattern or a function of a path; otherwise TypeError."""
    made_elsewhere = is_factory(on) and (isinstance(on, type) or on.__module__ != __name__)
    if isinstance(on, str) or (is_function(on) and accepts(on, "") and not made_elsewhere):
        return on
    raise TypeError(
        f"{what} must be a function of a path such as 'dense_0/w', or a pattern of paths, '*/w', got {seen(on)}"
        f"{advice}; penalties.everything chooses every leaf"
    )


def chosen(where: str, params: Params, on: Choice) -> Tree:
    """A tree like params of True and False: which leaves `on` chooses.

    Raises:
        ValueError: if there are leaves and none of them is chosen; `where` begins the message.
        TypeError: if a chosen leaf is not a real float.

    >>> chosen("l2", {"dense_0": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}, is_weight)
    {'dense_0': {'b': False, 'w': True}}
    """
    leaves = named_leaves(params)
    on = valid_choice(f"{where}: on", on)
    choose = functools.partial(matches, on) if isinstance(on, str) else on
    mask = {path: bool(choose(path)) for path in leaves}
    if leaves and not any(mask.values()) and isinstance(on, str):
        raise ValueError(
            f"{where}: the pattern {on!r} chooses none of the parameters {list(leaves)}: give a path of these, "
            "the name of a layer, or a pattern such as '*/w'"
        )
    if leaves and not any(mask.values()):
        raise ValueError(
            f"{where}: none of the parameters {list(leaves)} is chosen; weights are called w or w_…: "
            "say which are meant by a pattern, on='dense_0/*', by on=lambda path: …, or on=penalties.everything"
        )
    for path, leaf in leaves.items():
        if mask[path] and not is_floating(jnp.asarray(leaf)):
            raise TypeError(f"{where}: parameters must be real floats, got {describe(leaf)} at '{path}'")
    return jax.tree_util.tree_map_with_path(lambda path, _: mask[path_name(path)], params)


class _Entrywise(Penalty):
    """A penalty of `_cost(w, *strengths)` and `_slope` = ∂cost/∂w, entry by entry, in at least float32, of `on`."""

    on = cast(Any, is_weight)
    _cost = _slope = cast(Any, None)

    def _strengths(self) -> dict[str, float | Array]:
        return {name: value for name, value in fields_of(self).items() if name != "on"}

    def __post_init__(self) -> None:
        self._set(**{name: number(f"{self.name}: {name}", s, least=0.0) for name, s in self._strengths().items()})
        valid_choice(f"{self.name}: on", self.on)

    def _by(self, rule: Callable[..., Array], w: Array) -> Array:
        w = w.astype(accumulator(w.dtype))
        return rule(w, *(in_dtype(strength, w.dtype) for strength in self._strengths().values()))

    def value(self, params: Params) -> Array:
        params = jax.tree.map(jnp.asarray, params)
        pairs = zip(*map(jax.tree.leaves, (params, chosen(self.name, params, self.on))), strict=True)
        costs = [self._by(self._cost, w).sum() for w, counts in pairs if counts]
        widest = max((c.dtype for c in costs), key=lambda dtype: dtype.itemsize, default=jnp.dtype("float32"))
        return sum((c.astype(widest) for c in costs), start=jnp.zeros((), widest))

    def grad(self, params: Params) -> Params:
        params = jax.tree.map(jnp.asarray, params)

        def of_leaf(w: Array, counts: bool) -> Array:
            return self._by(self._slope, w).astype(w.dtype) if counts else jnp.zeros_like(w)

        return jax.tree.map(of_leaf, params, chosen(self.name, params, self.on))


class l2(_Entrywise):
    """½λ Σ w², with the gradient λw: shrinks every weight in proportion to its size.

    Under gradient descent it is weight decay, w ← (1 − ηλ)w − …; under Adam it is not, see `adamw`.

    Args:
        strength: λ ≥ 0. Nielsen's λ/n, with n examples, is this λ.
        on: the leaves to penalise, a pattern of paths or a function of a path; the weights by default.

    Raises:
        ValueError: if λ is negative or not finite; when used, if no leaf is chosen.
        TypeError: if λ is not a number, `on` is not a pattern or a function, or a chosen leaf is not a real float.

    Source: Hoerl & Kennard (1970), "Ridge regression"; Krogh & Hertz (1991) for networks.

    >>> params = {"dense_0": {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([5.0, 5.0])}}
    >>> penalty = l2(0.5)
    >>> print(penalty.value(params), penalty.grad(params)["dense_0"])
    1.25 {'b': Array([0., 0.], dtype=float32), 'w': Array([[ 0.5, -1. ]], dtype=float32)}
    """

    strength: float
    on: Choice = is_weight

    def _cost(self, w: Array, strength: Array | float) -> Array:
        return 0.5 * strength * jnp.square(w)

    def _slope(self, w: Array, strength: Array | float) -> Array:
        return strength * w


class l1(_Entrywise):
    """λ Σ |w|, with the gradient λ sign(w), 0 at 0: moves every weight towards 0 by the same amount.

    Args:
        strength: λ ≥ 0.
        on: the leaves to penalise; the weights by default.

    Raises:
        ValueError, TypeError: as `l2`.

    Source: Tibshirani (1996), "Regression shrinkage and selection via the lasso".

    >>> params = {"w": jnp.array([1.0, -2.0, 0.0]), "b": jnp.array([5.0])}
    >>> print(l1(0.5).value(params), l1(0.5).grad(params)["w"])
    1.5 [ 0.5 -0.5  0. ]
    """

    strength: float
    on: Choice = is_weight

    def _cost(self, w: Array, strength: Array | float) -> Array:
        return strength * _size(w)

    def _slope(self, w: Array, strength: Array | float) -> Array:
        return strength * jnp.sign(w)


class elastic_net(_Entrywise):
    """λ₁ Σ |w| + ½λ₂ Σ w²: the sum of `l1(λ₁)` and `l2(λ₂)`.

    Args:
        l1_strength: λ₁ ≥ 0.
        l2_strength: λ₂ ≥ 0.
        on: the leaves to penalise; the weights by default.

    Raises:
        ValueError, TypeError: as `l2`.

    Source: Zou & Hastie (2005), "Regularization and variable selection via the elastic net", whose λ₂ is half this.

    >>> params = {"w": jnp.array([1.0, -2.0])}
    >>> print(elastic_net(0.5, 0.5).value(params), elastic_net(0.5, 0.5).grad(params)["w"])
    2.75 [ 1.  -1.5]
    """

    l1_strength: float
    l2_strength: float
    on: Choice = is_weight

    def _cost(self, w: Array, first: Array | float, second: Array | float) -> Array:
        return first * _size(w) + 0.5 * second * jnp.square(w)

    def _slope(self, w: Array, first: Array | float, second: Array | float) -> Array:
        return first * jnp.sign(w) + second * w


def _size(w: Array) -> Array:
    return w * jnp.sign(w)  # not jnp.abs, whose derivative at 0 is 1
