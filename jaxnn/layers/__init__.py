"""The leaf layers: each states its formula, forward and backward within one screen, in the same letters."""

from jaxnn.layers.activation import activation
from jaxnn.layers.dense import dense
from jaxnn.layers.reshape import flatten, reshape
from jaxnn.layers.softmax import softmax

__all__ = ["activation", "dense", "flatten", "reshape", "softmax"]
