"""Networks from layers: a combinator of layers is again a layer, and its backward composes theirs.

`serial` runs the backward functions right to left, `residual` adds the skip's δ, `parallel` adds the branches',
`repeat` is a reverse `lax.scan` over stacked parameters, `share` adds the gradients of its uses. The δ recursion
of backpropagation is written down nowhere else.

`map_layers` rebuilds a network with each leaf layer replaced: whatever one wants to know at a layer while δ
passes is done that way, and never by a second traversal.
"""

from jaxnn.combinators.branches import parallel, residual
from jaxnn.combinators.directions import bidirectional
from jaxnn.combinators.sequence import mlp, repeat, serial, share
from jaxnn.combinators.walking import leaf_layers, map_layers, named, ordered_leaves

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
