"""The limits of a size relative to another layer's, beyond which training suffers.

`diagnostics` (a network, layer by layer) and `graph.gradient_flow` (any function, operation by operation) share them.
"""

# All layers share one learning rate: where a gradient is a thousand times smaller than at the output, a layer needs a
# thousand steps for what the last one learns in one, and where it is as much larger, one step destroys it.
SMALLEST, LARGEST = 1e-3, 1e3
