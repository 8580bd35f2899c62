"""Layers that wrap another one: the attributes that they pass on, and the replacement of rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax.numpy as jnp

from jaxnn.aliases import BackwardRule, DType, Forward, ForwardRule, InitRule, InShape, Key, Params, State, Tree
from jaxnn.interfaces import Layer
from jaxnn.records import written


def within(attribute: str) -> Any:
    """The attribute of the wrapped layer, the field `layer`."""
    return cached_property(lambda self: getattr(self.layer, attribute))


class with_rules(Layer):
    """A layer with some of its rules replaced: by the user, to try another derivation, or by a reading.

    It is a leaf, whatever it wraps, of the same kind, name and precision; no other attributes are passed on.

    Args:
        layer: the layer.
        init: replaces `layer.init`.
        forward: replaces `layer.forward`; if the tape changes, replace `backward` too.
        backward: replaces `layer.backward`.

    >>> import jax.numpy as jnp
    >>> from jaxnn import dense
    >>> layer = with_rules(dense(2), backward=lambda params, tape, delta: (delta @ params["w"].T, params))
    >>> layer.kind, layer.backward({"w": jnp.ones((3, 2))}, (), jnp.ones((1, 2)))[0].tolist()
    ('dense', [[2.0, 2.0, 2.0]])
    """

    layer: Layer
    replaced: tuple[tuple[str, Callable[..., Tree]], ...]

    def __init__(
        self,
        layer: Layer,
        replaced: tuple[tuple[str, Callable[..., Tree]], ...] = (),
        *,
        init: InitRule | None = None,
        forward: ForwardRule | None = None,
        backward: BackwardRule | None = None,
    ) -> None:
        if not isinstance(layer, Layer):
            raise TypeError(f"with_rules: expected a Layer, got {layer!r}")
        given = {**dict(replaced), "init": init, "forward": forward, "backward": backward}
        rules = {name: given[name] or dict(replaced).get(name) for name in given}
        for name, rule in rules.items():
            if rule is not None and not callable(rule):
                raise TypeError(f"with_rules: {name} must be a function, got {rule!r}")
        self._set(layer=layer, replaced=tuple((name, rule) for name, rule in rules.items() if rule is not None))

    def __repr__(self) -> str:
        return f"with_rules({', '.join([repr(self.layer), *(f'{n}={written(rule)}' for n, rule in self.replaced)])})"

    kind, name, couples_batch = map(within, ("kind", "name", "couples_batch"))
    computes_in, keeps_precision = map(within, ("computes_in", "keeps_precision"))

    @cached_property
    def by_autodiff(self) -> bool:
        return self.layer.by_autodiff and "backward" not in dict(self.replaced)

    def _rule(self, name: str) -> Callable[..., Tree]:
        return dict(self.replaced).get(name) or getattr(self.layer, name)

    def init(self, key: Key, in_shape: InShape, dtype: DType = jnp.float32) -> tuple[Params, State]:
        return self._rule("init")(key, in_shape, dtype)

    def forward(self, params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
        return self._rule("forward")(params, state, x, train=train, rng=rng)

    def backward(self, params: Params, tape: Tree, delta: Tree) -> tuple[Tree, Params]:
        return self._rule("backward")(params, tape, delta)

    def unrounded(self, params: Params, tape: Tree, delta: Tree, dtype: DType) -> tuple[Tree, Params]:
        if "backward" in dict(self.replaced):
            return super().unrounded(params, tape, delta, dtype)
        return self.layer.unrounded(params, tape, delta, dtype)

    def batch_axes(self, tape: Tree) -> Tree:
        if "forward" in dict(self.replaced):
            return super().batch_axes(tape)
        self.layer.batch_axes(tape)  # the tape is the layer's own: it raises where that couples the batch
        return None
