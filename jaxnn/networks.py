"""Ready-made networks: functions that return a `Layer`, short enough to read and copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxnn import initializers
from jaxnn.activations import relu
from jaxnn.checks import whole_number
from jaxnn.combinators.branches import residual
from jaxnn.combinators.directions import bidirectional
from jaxnn.combinators.sequence import serial
from jaxnn.layers.convolution.conv import conv
from jaxnn.layers.convolution.pooling import global_avg_pool, max_pool
from jaxnn.layers.dense import dense
from jaxnn.layers.norm.batch import batch_norm
from jaxnn.layers.reshape import flatten
from jaxnn.mistakes import is_function
from jaxnn.types import Activation, Layer

__all__ = ["sequence_classifier", "lenet", "resnet"]
__dir__ = __all__.copy


def sequence_classifier(
    cell: Callable[..., Layer], width: int, classes: int, *, depth: int = 1, both_ways: bool = False
) -> Layer:
    """Stacked recurrent layers and a dense layer on the last state: x [N, T, D] → logits [N, K].

    x may be `Sequences` with a mask, for sequences of different lengths. For tokens put `embedding(V, D)` before it, in
    a `serial`.

    Args:
        cell: `rnn`, `gru` or `lstm`.
        width: H, of each layer and each direction.
        classes: K.
        depth: the number of recurrent layers.
        both_ways: True reads each sequence in both directions.

    Raises:
        TypeError: if cell is a layer, `lstm(8)`, and not its class, `lstm`.
        ValueError: if width, classes or depth is below 1.

    Source: Graves, Mohamed & Hinton (2013), "Speech recognition with deep recurrent neural networks", for depth.

    >>> import jax
    >>> from jaxnn import lstm
    >>> net = sequence_classifier(lstm, 16, 10, depth=2)
    >>> net.child_names
    ('lstm_0', 'lstm_1', 'dense_0')
    """
    if not is_function(cell):
        raise TypeError("sequence_classifier: cell is rnn, gru or lstm itself, without width and parentheses")
    depth = whole_number("sequence_classifier: depth", depth, least=1)
    stack = [cell(width, returns="sequence") for _ in range(depth - 1)] + [cell(width, returns="last")]
    return serial(*(bidirectional(layer) if both_ways else layer for layer in stack), dense(classes))


def lenet(classes: int = 10, *, features: tuple[int, int] = (20, 40), hidden: int = 100) -> Layer:
    """A network like LeNet-5 for small images: x [N, 28, 28, 1] → logits [N, K].

    Twice a 5×5 convolution, a relu and 2×2 max pooling; then two dense layers. Images may be larger, or as small as
    16×16, and have more channels.

    Args:
        classes: K.
        features: the number of kernels of each convolution.
        hidden: the width of the dense layer before the logits.

    Raises:
        ValueError: if a width is below 1.

    Source: LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document recognition", whose
    LeNet-5 has tanh, weighted average pooling and another output; the widths are those of Nielsen (2015), ch. 6.

    >>> from jaxnn import summary
    >>> summary(lenet(), (28, 28, 1), batch_size=None).params
    85670
    """
    first, second = features
    he = initializers.he_normal()
    return serial(
        conv(first, (5, 5), padding="valid", w_init=he),
        relu,
        max_pool((2, 2)),
        conv(second, (5, 5), padding="valid", w_init=he),
        relu,
        max_pool((2, 2)),
        flatten(),
        dense(hidden, w_init=he),
        relu,
        dense(classes),
    )


def resnet(classes: int = 10, *, features: Sequence[int] = (16, 32, 64), blocks: int = 1) -> Layer:
    """A small residual network: x [N, D₁, D₂, C] → logits [N, K].

    A 3×3 convolution; then a stage for each width, of `blocks` blocks x + f(x), f two 3×3 convolutions, the first of
    which halves the image between stages; then the mean over all positions and a dense layer. Batch norm follows every
    convolution. Three stages have 6 · blocks + 2 layers with weights, as in the paper.

    Args:
        classes: K.
        features: the width of each stage.
        blocks: the number of blocks in a stage.

    Raises:
        ValueError: if a width or blocks is below 1.

    Source: He, Zhang, Ren & Sun (2016), "Deep residual learning for image recognition", section 4.2, with projections
    where the width changes (option B).

    >>> resnet(features=(4, 8)).init(0, (8, 8, 1))[0].keys()
    dict_keys(['conv_0', 'batch_norm_0', 'residual_0', 'residual_1', 'dense_0'])
    """
    blocks = whole_number("resnet: blocks", blocks, least=1)
    layers: list[Layer | Activation] = [*_normed_conv(features[0], 3), relu]
    for stage, width in enumerate(features):
        for block in range(blocks):
            layers += [_residual_block(width, halve=stage > 0 and block == 0), relu]
    return serial(*layers, global_avg_pool(), dense(classes))


def _residual_block(features: int, *, halve: bool) -> Layer:
    """A block x + f(x); where f halves the image and changes the width, a 1×1 convolution projects x."""
    stride = 1 + halve
    body = serial(*_normed_conv(features, 3, stride), relu, *_normed_conv(features, 3))
    return residual(body, skip=serial(*_normed_conv(features, 1, stride)) if halve else None)


def _normed_conv(features: int, taps: int, stride: int = 1) -> tuple[Layer, Layer]:
    """A convolution, without the bias that batch norm would remove, and batch norm."""
    he = initializers.he_normal()
    return conv(features, (taps, taps), stride=stride, bias=False, w_init=he), batch_norm()
