"""Networks whose gradients are taken apart, example by example: loops in loops, shared parameters, masks, tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import (
    bidirectional,
    conv,
    dense,
    embedding,
    gru,
    layer_norm,
    lstm,
    named,
    parallel,
    relu,
    repeat,
    residual,
    rnn,
    serial,
    share,
    tanh,
)

MASK = np.arange(5) < np.array([5, 2, 3, 1])[:, None]
block = lambda: serial(dense(3), tanh)
NETWORKS = {
    "tied within a residual": (lambda: residual(share(block(), 3)), (3,)),
    "tied in repeat in share": (lambda: share(repeat(serial(dense(3), layer_norm(), share(dense(3), 2)), 2), 3), (3,)),
    "repeat in share in repeat": (lambda: repeat(share(repeat(residual(block()), 2), 2), 3), (3,)),
    "repeat in repeat": (lambda: repeat(repeat(named("own", dense(3)), 2), 3), (3,)),
    "share in share": (lambda: share(share(parallel(dense(2), dense(1)), 2), 2), (3,)),
    "shared over steps": (lambda: share(serial(dense(3), layer_norm()), 2), (4, 3)),
    "conv, groups and strides": (
        lambda: serial(conv(4, (3, 2), stride=(2, 1), groups=2), relu, conv(2, (2, 2))),
        (5, 4, 4),
    ),
    "conv, shared": (lambda: share(conv(2, (3, 3)), 2), (4, 4, 2)),
    "conv, shared and depthwise": (lambda: repeat(share(conv(2, (2,), groups=2), 2), 2), (3, 2)),
    "conv, few positions": (lambda: conv(6, (2, 2), padding="valid"), (2, 3, 5)),
    "conv, few positions in groups": (lambda: conv(16, (2, 2), padding="valid", groups=2), (2, 3, 16)),
    "dense, many positions": (lambda: dense(2), (9, 2)),
    "dense, wide": (lambda: dense(9), (2, 9)),
    "rnn, gru and lstm": (lambda: serial(rnn(3), gru(3), lstm(3, returns="last")), (4, 2)),
    "truncated and recomputed": (lambda: serial(lstm(3, truncate=2), gru(2, truncate=3, recompute=True)), (7, 2)),
    "shared lstm": (lambda: repeat(share(lstm(2), 2), 2), (3, 2)),
    "both ways": (lambda: serial(bidirectional(lstm(2)), bidirectional(gru(2))), (4, 2)),
    "tokens": (lambda: serial(embedding(5, 3), lstm(2, returns="last")), jax.ShapeDtypeStruct((4,), jnp.int32)),
    "tokens of a small vocabulary": (lambda: embedding(3, 2), jax.ShapeDtypeStruct((7,), jnp.int32)),
    "tokens of a large vocabulary": (lambda: embedding(40, 2), jax.ShapeDtypeStruct((4,), jnp.int32)),
}  # fmt: skip
SEQUENCES = {
    "lstm": lambda: lstm(2),
    "lstm, recomputed and truncated": lambda: lstm(2, recompute=True, truncate=2, returns="last"),
    "gru, recomputed": lambda: gru(2, recompute=True, returns="values"),
    "rnn, both": lambda: serial(rnn(3), gru(2, returns="both")),
    "through dense": lambda: serial(dense(3), layer_norm(), tanh, bidirectional(lstm(2)), dense(2)),
}


def drawn(net, in_shape, x):
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), in_shape, jnp.float64))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape) / 2, params)
    y = jax.eval_shape(lambda p, s, x: net.forward(p, s, x)[0], params, state, x)
    delta = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) if leaf.dtype != bool else (), y)
    return params, state, delta


def only(delta, n):
    return jax.tree.map(lambda d: jnp.where(jnp.arange(len(d)).reshape(-1, *[1] * (d.ndim - 1)) == n, d, 0), delta)
