"""The origin of a NaN: six functions from research code, each explained by cause, line and fix.

    python examples/graph_nonfinite.py

Three have a finite value and a gradient that is not finite. Each is explained by tracing what is not finite back to
the operation that produced it from finite numbers.
"""

import jax
import jax.numpy as jnp

import jaxnn


def entropy(p):
    """−Σ p log p, with the terms of p = 0 discarded after they are computed."""
    return -jnp.where(p > 0, p * jnp.log(p), 0.0).sum()


def distances(x):
    """The sum of all pairwise distances; that of each point to itself is 0."""
    return jnp.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)).sum()


def attention(scores, mask):
    """A softmax over the unmasked scores; one row is entirely masked."""
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).sum()


def standardised(x):
    """(x − mean)/std of a constant channel."""
    return ((x - x.mean()) / x.std()).sum()


def half_loss(x):
    """A sum of squares in float16, whose largest number is 65,504."""
    return (x * x).sum()


def recurrence(xs):
    """The sum of the norms of the inputs, in a scan; the third input is 0."""
    return jax.lax.scan(lambda total, x: (total + jnp.sqrt((x**2).sum()), total), 0.0, xs)[0]


def main() -> dict[str, jaxnn.graph.Explanation]:
    """Prints and returns the explanation of each."""
    rows = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 1.0]])
    mask = jnp.array([[True, True], [False, False]])
    cases = [
        (entropy, (jnp.array([0.0, 0.5, 0.5]),)),
        (distances, (rows,)),
        (attention, (jnp.ones((2, 2)), mask)),
        (standardised, (jnp.full(4, 2.0),)),
        (half_loss, (jnp.array([300.0, 2.0], jnp.float16),)),
        (recurrence, (rows,)),
    ]
    explained = {f.__name__: jaxnn.graph.explain_nonfinite(f)(*args) for f, args in cases}
    print("\n\n".join(map(str, explained.values())))
    return explained


if __name__ == "__main__":
    main()
