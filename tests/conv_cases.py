"""Rows for convolution, pooling and embedding: `cases.py` has them among the leaf layers."""

import jax
import jax.numpy as jnp

from jaxnn import avg_pool, conv, embedding, global_avg_pool, global_max_pool, max_pool, upsample

CONVOLUTIONS = {
    "conv": (lambda: conv(3, (3, 3)), (4, 5, 2)),
    "conv, strides that leave inputs over": (lambda: conv(2, (3, 2), stride=(2, 3), padding="valid"), (6, 7, 2)),
    "conv, dilated, padded by hand": (lambda: conv(2, (2, 3), dilation=2, padding=((1, 2), (0, 3))), (4, 5, 1)),
    "conv, groups": (lambda: conv(4, (2, 2), groups=2, padding="valid"), (3, 3, 4)),
    "conv, depthwise over time": (lambda: conv(4, (3,), stride=2, groups=2), (5, 2)),
    "conv, causal": (lambda: conv(2, (3,), padding="causal", dilation=2), (6, 2)),
    "conv, three dimensions": (lambda: conv(2, (2, 1, 2), stride=(1, 2, 1), dilation=(1, 1, 2)), (2, 3, 3, 1)),
    "conv, one tap, no bias": (lambda: conv(3, (1, 1), bias=False), (2, 2, 2)),
}
POOLS = {
    "max_pool": (lambda: max_pool((2, 2)), (4, 4, 2)),
    "max_pool, windows that overlap": (lambda: max_pool((3, 2), stride=(2, 1), padding="same"), (5, 4, 2)),
    "max_pool, inputs left over": (lambda: max_pool((2, 1, 2)), (3, 2, 5, 1)),
    "max_pool, padded tiles": (lambda: max_pool((3,), padding=((1, 2),)), (4, 2)),
    "avg_pool": (lambda: avg_pool((2, 2)), (4, 5, 2)),
    "avg_pool, windows that overlap": (
        lambda: avg_pool((3, 2), stride=1, padding="same", count_include_pad=False),
        (4, 3, 2),
    ),
    "avg_pool, padding counted": (lambda: avg_pool((3,), padding=((1, 2),)), (4, 1)),
    "global_max_pool": (global_max_pool, (3, 2, 2)),
    "global_avg_pool": (global_avg_pool, (3, 2)),
    "upsample": (lambda: upsample((2, 3)), (2, 2, 2)),
}
EMBEDDINGS = {
    "embedding": (lambda: embedding(3, 2), jax.ShapeDtypeStruct((), jnp.int32)),
    "embedding over time": (lambda: embedding(4, 3), jax.ShapeDtypeStruct((5,), jnp.int32)),
}
ROWS = {**CONVOLUTIONS, **POOLS, **EMBEDDINGS}
