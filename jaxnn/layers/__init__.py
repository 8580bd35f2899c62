"""The leaf layers: each states its formula, forward and backward within one screen, in the same letters."""

from jaxnn.layers.activation import activation
from jaxnn.layers.dense import dense
from jaxnn.layers.dropout import dropout
from jaxnn.layers.norm import batch_norm, layer_norm
from jaxnn.layers.reshape import flatten, reshape
from jaxnn.layers.softmax import softmax

__all__ = ["activation", "batch_norm", "dense", "dropout", "flatten", "layer_norm", "reshape", "softmax"]
