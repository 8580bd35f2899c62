"""The leaf layers: each states its formula, forward and backward within one screen, in the same letters."""

from jaxnn.layers.activation import activation
from jaxnn.layers.conv import conv
from jaxnn.layers.dense import dense
from jaxnn.layers.dropout import dropout
from jaxnn.layers.embedding import embedding
from jaxnn.layers.norm import batch_norm, layer_norm
from jaxnn.layers.pooling import avg_pool, global_avg_pool, global_max_pool, max_pool, upsample
from jaxnn.layers.reshape import flatten, reshape
from jaxnn.layers.softmax import softmax

__all__ = [
    "activation",
    "avg_pool",
    "batch_norm",
    "conv",
    "dense",
    "dropout",
    "embedding",
    "flatten",
    "global_avg_pool",
    "global_max_pool",
    "layer_norm",
    "max_pool",
    "reshape",
    "softmax",
    "upsample",
]
