"""Networks from layers: a combinator of layers is again a layer, and its backward composes theirs.

`serial` runs the backward functions right to left, `residual` adds the skip's δ, `parallel` adds the branches',
`repeat` is a reverse `lax.scan` over stacked parameters, `share` adds the gradients of its uses. The δ recursion
of backpropagation is written down nowhere else.

`walk` gives every layer in its place; nothing else goes through the children of a network. `map_layers` is the same
network of other leaf layers: that is how δ is read at a layer while it passes.
"""

from jaxnn.combinators.branches import parallel, residual
from jaxnn.combinators.directions import bidirectional
from jaxnn.combinators.naming import named
from jaxnn.combinators.sequence import mlp, repeat, serial, share
from jaxnn.combinators.walk import leaf_layers, map_layers, ordered_leaves

__all__ = [
    "serial",
    "mlp",
    "repeat",
    "share",
    "residual",
    "parallel",
    "bidirectional",
    "named",
    "map_layers",
    "leaf_layers",
    "ordered_leaves",
]


def __dir__() -> list[str]:
    return list(__all__)
