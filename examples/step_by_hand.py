"""One training step by hand: a 2-2-1 network in NumPy, beside jaxnn's backward pass and jax.grad.

    python examples/step_by_hand.py

By hand means NumPy and the four equations of backpropagation (Nielsen 2015, ch. 2), for C = ½‖y − t‖² and
z¹ = x W¹ + b¹, h = σ(z¹), z² = h W² + b², y = σ(z²); examples are rows, so W is the textbook's, transposed:

    BP1   δ² = (y − t) ⊙ σ′(z²)              the error at the output
    BP2   δ¹ = (δ² W²ᵀ) ⊙ σ′(z¹)             the error one layer below
    BP3   ∂C/∂bˡ = δˡ                        the gradient of a bias is the error itself
    BP4   ∂C/∂Wˡ = (input of layer l)ᵀ δˡ    the gradient of a weight is its input times the error

The table gives every quantity in the three ways, and the cost after the step θ ← θ − η ∂C/∂θ.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn

X, T = np.array([[0.5, -1.0]]), np.array([[1.0]])
THETA = [  # W¹, b¹, W², b²
    np.array([[0.4, -0.6], [0.9, 0.2]]),
    np.array([0.1, -0.3]),
    np.array([[-0.7], [0.5]]),
    np.array([0.2]),
]
LEARNING_RATE = 0.5
ROUNDING = 1e-14  # a few roundings of float64, for numbers below 1
ROWS = ("C", "δ²", "δ¹", "∂C/∂W¹", "∂C/∂b¹", "∂C/∂W²", "∂C/∂b²")


def by_hand(W1, b1, W2, b2):
    """The textbook's equations in NumPy."""
    h = 1 / (1 + np.exp(-(X @ W1 + b1)))
    y = 1 / (1 + np.exp(-(h @ W2 + b2)))
    cost = np.sum((y - T) ** 2) / 2
    delta2 = (y - T) * y * (1 - y)  # BP1, with σ′ = σ (1 − σ)
    delta1 = (delta2 @ W2.T) * h * (1 - h)  # BP2
    db1, db2 = delta1[0], delta2[0]  # BP3
    dW1, dW2 = X.T @ delta1, h.T @ delta2  # BP4
    return cost, delta2[0], delta1[0], dW1, db1, dW2, db2


def by_jaxnn(W1, b1, W2, b2):
    """The library; δ is read at the output of each dense layer."""
    net = jaxnn.serial(jaxnn.dense(2), jaxnn.sigmoid, jaxnn.dense(1), jaxnn.sigmoid)
    params = jax.tree.map(jnp.asarray, {"dense_0": {"w": W1, "b": b1}, "dense_1": {"w": W2, "b": b2}})
    gradient = jaxnn.backprop(net, jaxnn.losses.half_squared_error, read=("deltas",))
    out = gradient(params, (), X, T)
    deltas, first, second = out.readings["deltas"], out.grads["dense_0"], out.grads["dense_1"]
    return out.loss, deltas["dense_1"][0], deltas["dense_0"][0], first["w"], first["b"], second["w"], second["b"]


def by_jax(W1, b1, W2, b2):
    """jax.grad of the cost; δ is the derivative by a term that is added to z, at 0."""

    def cost(added2, added1, W1, b1, W2, b2):
        h = jax.nn.sigmoid(X @ W1 + b1 + added1)
        y = jax.nn.sigmoid(h @ W2 + b2 + added2)
        return jnp.sum((y - T) ** 2) / 2

    value, grads = jax.value_and_grad(cost, argnums=range(6))(np.zeros(1), np.zeros(2), W1, b1, W2, b2)
    return value, *grads


def main() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prints and returns every quantity in the three ways, and the cost after the step."""
    columns = []
    with jax.enable_x64(True):
        for way in (by_hand, by_jaxnn, by_jax):
            values = [np.asarray(value) for value in way(*THETA)]
            theta = [p - LEARNING_RATE * grad for p, grad in zip(THETA, values[3:], strict=True)]
            cost_after, *_ = way(*theta)
            columns.append([*values, np.asarray(cost_after)])
    table = dict(zip((*ROWS, "C after"), zip(*columns, strict=True), strict=True))

    print(f"{'':13}{'by hand':>12}{'jaxnn':>12}{'jax.grad':>12}   largest difference")
    for name, (hand, *others) in table.items():
        for index in np.ndindex(hand.shape):
            values = [hand[index], *(other[index] for other in others)]
            row = name + (f"[{', '.join(str(i + 1) for i in index)}]" if index else "")
            print(f"{row:13}" + "".join(f"{v:12.8f}" for v in values) + f"   {np.ptp(values):.1e}")
            assert np.ptp(values) < ROUNDING, f"{row}: the three ways disagree"
    return table


if __name__ == "__main__":
    main()
