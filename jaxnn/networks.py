"""Ready networks: functions that return a `Layer`, short enough to read and to copy."""

from __future__ import annotations

from collections.abc import Callable

from jaxnn.checks import whole_number
from jaxnn.combinators import bidirectional, serial
from jaxnn.layers import dense
from jaxnn.types import Layer


def sequence_classifier(
    cell: Callable[..., Layer], width: int, classes: int, *, depth: int = 1, both_ways: bool = False
) -> Layer:
    """Recurrent layers, one on top of the other, and a dense layer on the last state: x [N, T, D] → logits [N, K].

    x may be `Sequences` with a mask, where lengths differ.

    Args:
        cell: `rnn`, `gru` or `lstm`.
        width: H, of each layer, and of each direction.
        classes: K.
        depth: how many recurrent layers.
        both_ways: True reads each sequence from both of its ends.

    Raises:
        TypeError: if cell is a layer, `lstm(8)`, and not what makes one, `lstm`.
        ValueError: if width, classes or depth is below 1.

    Source: Graves, Mohamed & Hinton (2013), "Speech recognition with deep recurrent neural networks", for depth.

    >>> import jax
    >>> from jaxnn import lstm
    >>> net = sequence_classifier(lstm, 16, 10, depth=2)
    >>> net.child_names
    ('lstm_0', 'lstm_1', 'dense_0')
    """
    if not callable(cell):
        raise TypeError("sequence_classifier: cell is rnn, gru or lstm itself, without width and parentheses")
    depth = whole_number("sequence_classifier: depth", depth, least=1)
    stack = [cell(width, returns="sequence") for _ in range(depth - 1)] + [cell(width, returns="last")]
    return serial(*(bidirectional(layer) if both_ways else layer for layer in stack), dense(classes))
