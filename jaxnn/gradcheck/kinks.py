"""The kinks: points where a slope jumps, the library's slope there, and that of other libraries.

At a kink every number between the slopes from the left and from the right is a subgradient (Clarke 1983), so each
library chooses. jaxnn's choice is the same for the hand-derived rule and for jax.grad of the forward function, also
under jit and vmap. Huber's slope is continuous at ±d, and elu's at 0: they have no kinks. Nor have the cross-entropies
on probabilities, which end at 0 and 1 and so have one side there.

    >>> print(kink_table().splitlines()[3])
    mae                   y = t          -1      1        0         0  jnp.abs 1, jnp.maximum 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn import losses
from jaxnn.activations import leaky_relu, relu
from jaxnn.layers.convolution.pooling import max_pool
from jaxnn.penalties import l1
from jaxnn.types import Activation, Array, Loss

Function = Callable[[Array], Array]


class Kink(NamedTuple):
    """A point where the slope of a function of one number jumps.

    Attributes:
        name: of the function, `"relu"`.
        where: the point in words, `"z = 0"`.
        point: the number.
        slope: the library's slope there.
        left: the slope from the left.
        right: the slope from the right.
        value: the function, of a scalar.
        rule: its hand-derived slope, of a scalar.
        others: `() -> {name: function}`: the same function in other libraries that are installed.
    """

    name: str
    where: str
    point: float
    slope: float
    left: float
    right: float
    value: Function
    rule: Function
    others: Callable[[], dict[str, Function]]


# ---------------------------------------------------------------- ours


def _of_activation(activation: Activation, others: Callable[[], dict[str, Function]]) -> tuple[Kink, ...]:
    """The kinks in an activation's record."""
    assert activation.leak is not None
    name = f"{activation.name}({activation.leak:g})" if activation.leak else activation.name

    def rule(z: Array) -> Array:
        return activation.slope(z, activation.value(z))

    return tuple(
        Kink(name, f"z = {z:g}", z, slope, activation.leak, 1.0, activation.value, rule, others)
        for z, slope in activation.kinks
    )


def _of_loss(
    loss: Loss,
    where: str,
    point: float,
    slopes: tuple[float, float, float],
    example: Callable[[Array], tuple[Array, Array]],
    others: Callable[[], dict[str, Function]],
) -> Kink:
    """A loss as a function of the one number that `example` puts into a prediction; slopes: left, there, right."""

    def value(z: Array) -> Array:
        return loss.value(*example(z))[0]

    def rule(z: Array) -> Array:
        _, pull = jax.vjp(lambda z: example(z)[0], z)  # selects the entry that z is; the loss has no part in it
        return jnp.asarray(pull(loss.delta(*example(z)))[0])

    left, there, right = slopes
    return Kink(loss.name, where, point, there, left, right, value, rule, others)


def _one(target: float) -> Callable[[Array], tuple[Array, Array]]:
    return lambda z: (z.reshape(1, 1), jnp.full((1, 1), target, z.dtype))


def _own_score(z: Array) -> tuple[Array, Array]:
    return jnp.stack([z, jnp.zeros_like(z)])[None], jnp.zeros(1, jnp.int32)


def _rival_score(z: Array) -> tuple[Array, Array]:
    return jnp.stack([jnp.zeros_like(z), z])[None], jnp.zeros(1, jnp.int32)


def _of_max_pool(entry: int) -> Kink:
    """A window of z and 0, with z at its first entry or its second: at a tie the first wins."""
    pool = max_pool((2,))

    def window(z: Array) -> Array:
        rival = jnp.zeros_like(z)
        return jnp.stack([rival, z] if entry else [z, rival]).reshape(1, 2, 1)

    def value(z: Array) -> Array:
        return pool.forward({}, (), window(z))[0][0, 0, 0]

    def rule(z: Array) -> Array:
        y, _, tape = pool.forward({}, (), window(z))
        return pool.backward({}, tape, jnp.ones_like(y))[0][0, entry, 0]

    def others() -> dict[str, Function]:
        def windowed(z: Array) -> Array:
            x = window(z)
            return jax.lax.reduce_window(
                x, jnp.asarray(-jnp.inf, x.dtype), jax.lax.max, (1, 2, 1), (1, 1, 1), "VALID"
            ).sum()

        return {"jnp.max": lambda z: jnp.max(window(z)), "reduce_window": windowed}

    name = ("max_pool, first", "max_pool, second")[entry]
    return Kink(name, "z = 0", 0.0, 1.0 - entry, 0.0, 1.0, value, rule, others)


def _of_penalty() -> Kink:
    penalty = l1(1.0)
    value, rule = lambda w: penalty.value({"w": w}), lambda w: penalty.grad({"w": w})["w"]
    return Kink(f"penalty {penalty.name}", "w = 0", 0.0, 0.0, -1.0, 1.0, value, rule, _sizes)


# ---------------------------------------------------------------- others'


def _optax(name: str) -> Any:
    """A loss of optax, or None if it is not installed or has none of that name."""
    try:
        import optax
    except ImportError:
        return None
    return getattr(optax.losses, name, None)


def _leaky_rectifiers() -> dict[str, Function]:
    return {"jnp.maximum": lambda z: jnp.maximum(z, 0.1 * z), "jax.nn.leaky_relu": lambda z: jax.nn.leaky_relu(z, 0.1)}


def _sizes() -> dict[str, Function]:
    return {"jnp.abs": jnp.abs, "jnp.maximum": lambda z: jnp.maximum(z, -z)}


def _hinges() -> dict[str, Function]:
    found: dict[str, Function] = {"jnp.maximum": lambda z: jnp.maximum(1 - z, 0)}
    theirs = _optax("hinge_loss")
    return found | ({"optax": lambda z: theirs(z, jnp.ones_like(z))} if theirs else {})


def _multiclass(example: Callable[[Array], tuple[Array, Array]]) -> Callable[[], dict[str, Function]]:
    def others() -> dict[str, Function]:
        theirs = _optax("multiclass_hinge_loss")
        return {"optax": lambda z: theirs(*example(z))[0]} if theirs else {}

    return others


KINKS: tuple[Kink, ...] = (
    *_of_activation(relu, lambda: {"jnp.maximum": lambda z: jnp.maximum(z, 0), "jax.nn.relu": jax.nn.relu}),
    *_of_activation(leaky_relu(0.1), _leaky_rectifiers),
    _of_loss(losses.mae, "y = t", 0.0, (-1.0, 0.0, 1.0), _one(0.0), _sizes),
    _of_loss(losses.hinge, "y t = 1", 1.0, (-1.0, 0.0, 0.0), _one(1.0), _hinges),
    _of_loss(losses.multiclass_hinge, "own score", 1.0, (-1.0, 0.0, 0.0), _own_score, _multiclass(_own_score)),
    _of_loss(losses.multiclass_hinge, "rival score", -1.0, (0.0, 0.0, 1.0), _rival_score, _multiclass(_rival_score)),
    _of_penalty(),
    _of_max_pool(0),
    _of_max_pool(1),
)


def kink_table() -> str:
    r"""A table of every kink with the slopes on its two sides, the library's slope at it, and other libraries' slopes.

    All slopes are computed when it is called: `by hand` by the rule, `jax.grad` through the library's forward function,
    the others by jax.grad through theirs.

    >>> print("\n".join(kink_table().splitlines()[:2]))
    kink                  at           left  right  by hand  jax.grad  elsewhere
    relu                  z = 0           0      1        0         0  jnp.maximum 0.5, jax.nn.relu 0
    """
    lines = [f"{'kink':<20}  {'at':<11}  {'left':>4}  {'right':>5}  {'by hand':>7}  {'jax.grad':>8}  elsewhere"]
    for kink in KINKS:
        z = jnp.float32(kink.point)
        ours = [float(slope(z)) + 0.0 for slope in (kink.rule, jax.grad(kink.value))]  # no −0
        theirs = ", ".join(f"{name} {float(jax.grad(f)(z)):.3g}" for name, f in kink.others().items())
        shown = f"{ours[0]:>7.3g}  {ours[1]:>8.3g}  {theirs}"
        lines.append(f"{kink.name:<20}  {kink.where:<11}  {kink.left:>4.3g}  {kink.right:>5.3g}  {shown}".rstrip())
    return "\n".join(lines)
