"""Recurrent layers: `rnn`, `gru`, `lstm`, the same one step at a time, and the sequences that they read."""

from jaxnn.layers.recurrent.elman import rnn, rnn_step
from jaxnn.layers.recurrent.gru import gru, gru_step
from jaxnn.layers.recurrent.lstm import lstm, lstm_step
from jaxnn.sequences import Sequences

__all__ = ["Sequences", "gru", "gru_step", "lstm", "lstm_step", "rnn", "rnn_step"]


def __dir__() -> list[str]:
    return list(__all__)
