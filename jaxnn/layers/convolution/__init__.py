"""Convolution and pooling.

`windows` has the positions of windows on an input, `algorithms` the three convolutions of a layer, each by several
algorithms, `choice` the rule that selects one, `windowed` the factor of a kernel's gradient.
"""
