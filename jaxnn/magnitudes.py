"""The limits of a size relative to another layer's, beyond which training suffers.

`diagnostics` (a network, layer by layer) and `graph.gradient_flow` (any function, operation by operation) share them.
"""

# All layers share one learning rate: with a gradient a thousand times smaller than at the output, a layer needs a
# thousand steps for what the last layer learns in one; with one a thousand times larger, a single step destroys it.
SMALLEST, LARGEST = 1e-3, 1e3
