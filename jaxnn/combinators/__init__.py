"""Networks from layers: a combinator of layers is again a layer, and its backward composes theirs.

`serial` runs the backward functions right to left, `residual` adds the skip's δ, `parallel` adds the branches',
`repeat` is a reverse `lax.scan` over stacked parameters, `share` adds the gradients of its uses. The δ recursion
of backpropagation is written down nowhere else.

`walk` gives every layer in its place; nothing else goes through the children of a network. `map_layers` is the same
network of other leaf layers: that is how δ is read at a layer while it passes.
"""
