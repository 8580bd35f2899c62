"""The leaf layers: each states its formula, forward and backward within one screen, in the same letters."""

from jaxnn.layers.activation import activation
from jaxnn.layers.convolution import (
    avg_pool,
    conv,
    global_avg_pool,
    global_max_pool,
    max_pool,
    upsample,
)
from jaxnn.layers.dense import dense
from jaxnn.layers.dropout import dropout
from jaxnn.layers.embedding import embedding
from jaxnn.layers.norm import batch_norm, group_norm, layer_norm, rms_norm
from jaxnn.layers.recurrent import Sequences, gru, gru_step, lstm, lstm_step, rnn, rnn_step
from jaxnn.layers.reshape import flatten, reshape
from jaxnn.layers.softmax import softmax

__all__ = [
    "Sequences",
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
    "group_norm",
    "gru",
    "gru_step",
    "layer_norm",
    "lstm",
    "lstm_step",
    "max_pool",
    "reshape",
    "rms_norm",
    "rnn",
    "rnn_step",
    "softmax",
    "upsample",
]


def __dir__() -> list[str]:
    return list(__all__)
