"""The factor of a convolution's kernel: windows of x, never all formed at once, and δ.

N batch, U uses of the kernel, C channels in, H features out, G groups; D, P and K are the sizes of input, output and
kernel, one number for each spatial axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import jax.numpy as jnp

from jaxnn.factors import Factor, paired, scaled, squares, wide
from jaxnn.layers.convolution.choice import FASTEST
from jaxnn.layers.convolution.windows import Windows, views
from jaxnn.types import Array


class Windowed(Factor):
    """The factor of a kernel: ∂Cₙ/∂wₖᵢₒ = Σₚ xₙ,ₛₚ₊dₖ₋ₐ,ᵢ δₙₚₒ, over the positions p of all uses.

    Norms: with aₙₚ the window at p, ‖∂Cₙ/∂w‖² = Σₚ_q (aₙₚ·aₙ_q)(δₙₚ·δₙ_q), by Gram matrices over P positions, in
    2 P² (K C + H) operations for each example, or of the kernel itself, in 2 P K (C/G) H; both tap by tap.

    Args:
        x: [N, U, *D, C].
        delta: [N, U, *P, H].
        windows: their positions.
        groups: G; an output depends on the inputs of its group alone.
    """

    x: Array
    delta: Array
    windows: Windows
    groups: int = 1

    def gradient(self, v: Array | None = None) -> Array:
        x, delta = wide(self.x, scaled(self.delta, v))
        return FASTEST.kernel_gradient(_merged(x), _merged(delta), self.windows, self.groups, None)

    def _by_tap(self) -> Iterator[Array]:
        """The inputs of each tap, [N, U P, G, C/G]."""
        (x,) = wide(self.x)
        for seen in views(_merged(x), self.windows):
            yield seen.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)

    @property
    def _in_groups(self) -> Array:
        """δ as [N, U P, G, H/G]."""
        (delta,) = wide(self.delta)
        return delta.reshape(delta.shape[0], -1, self.groups, delta.shape[-1] // self.groups)

    def _products(self) -> Iterator[Array]:
        """∂Cₙ/∂wₖ of each tap, [N, C/G, G, H/G]."""
        for seen in self._by_tap():
            yield jnp.einsum("npgc,npgo->ncgo", *wide(seen, self._in_groups))

    def one_by_one(self) -> Array:
        w = jnp.stack(list(self._products()), 1)
        n, _, channels, groups, features = w.shape
        return w.reshape(n, *self.windows.size, channels, groups * features)

    def squared_norms(self) -> Array:
        C, H, K = self.x.shape[-1], self.delta.shape[-1], math.prod(self.windows.size)
        P = math.prod(self.delta.shape[1:-1])
        if K * (C // self.groups) * H < P * (K * C + H):
            return reduce(jnp.add, map(squares, self._products()))
        grams = (jnp.einsum("npgc,nqgc->npqg", seen, seen) for seen in self._by_tap())
        windows, deltas = wide(reduce(jnp.add, grams), jnp.einsum("npgo,nqgo->npqg", self._in_groups, self._in_groups))
        n = windows.shape[0]
        return paired(windows.reshape(n, P, -1), deltas.reshape(n, P, -1))


def _merged(array: Array) -> Array:
    return array.reshape(-1, *array.shape[2:])
