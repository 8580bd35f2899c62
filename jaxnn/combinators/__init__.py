"""Networks from layers: a combinator of layers is again a layer, and its backward composes theirs.

`serial` runs the backward functions right to left, `residual` adds the skip's δ, `parallel` adds the branches',
`repeat` is a reverse `lax.scan` over stacked parameters, `share` adds the gradients of its uses. The δ recursion
of backpropagation is written nowhere else.

`walk` visits every layer in its place; nothing else traverses the children of a network. `map_layers` replaces leaf
layers, which is how readings see δ at each layer.
"""
