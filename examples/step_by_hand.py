"""One training step of a 2-2-1 network by hand, δ by δ, beside jaxnn's backward pass and jax.grad.

    python examples/step_by_hand.py

By hand is NumPy and the four equations of backpropagation (Nielsen 2015, ch. 2), for C = ½‖y − t‖² and
z¹ = x W¹ + b¹, h = σ(z¹), z² = h W² + b², y = σ(z²); examples are rows, so W is the textbook's, transposed:

    BP1   δ² = (y − t) ⊙ σ′(z²)             the error at the output
    BP2   δ¹ = (δ² W²ᵀ) ⊙ σ′(z¹)            carried back through the weights
    BP3   ∂C/∂bˡ = δˡ                       a bias's gradient is the error itself
    BP4   ∂C/∂Wˡ = (layer l's input)ᵀ δˡ    a weight's is what went in, times the error
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn

X, T = np.array([[0.5, -1.0]]), np.array([[1.0]])
THETA = [np.array(p) for p in ([[0.4, -0.6], [0.9, 0.2]], [0.1, -0.3], [[-0.7], [0.5]], [0.2])]  # W¹, b¹, W², b²
LEARNING_RATE = 0.5
ROUNDING = 1e-14  # of float64, a few times over, for numbers below 1
ROWS = ("C", "δ²", "δ¹", "∂C/∂W¹", "∂C/∂b¹", "∂C/∂W²", "∂C/∂b²")


def by_hand(W1, b1, W2, b2):
    """The textbook's equations in NumPy."""
    h = 1 / (1 + np.exp(-(X @ W1 + b1)))
    y = 1 / (1 + np.exp(-(h @ W2 + b2)))
    delta2 = (y - T) * y * (1 - y)  # BP1; σ′ = σ (1 − σ)
    delta1 = (delta2 @ W2.T) * h * (1 - h)  # BP2
    cost = np.sum((y - T) ** 2) / 2
    return cost, delta2[0], delta1[0], X.T @ delta1, delta1[0], h.T @ delta2, delta2[0]  # BP4 and BP3, twice


def by_jaxnn(W1, b1, W2, b2):
    """The library: δs are read where they pass, at the output of each dense layer."""
    net = jaxnn.serial(jaxnn.dense(2), jaxnn.sigmoid, jaxnn.dense(1), jaxnn.sigmoid)
    params = jax.tree.map(jnp.asarray, {"dense_0": {"w": W1, "b": b1}, "dense_1": {"w": W2, "b": b2}})
    gradient = jaxnn.backprop(net, jaxnn.losses.half_squared_error, read=("deltas",))
    out = gradient(params, (), X, T)
    deltas, one, two = out.readings["deltas"], out.grads["dense_0"], out.grads["dense_1"]
    return out.loss, deltas["dense_1"][0], deltas["dense_0"][0], one["w"], one["b"], two["w"], two["b"]


def by_jax(W1, b1, W2, b2):
    """jax.grad of the cost: δ is the derivative with respect to a nudge of z, taken where the nudge is 0."""

    def cost(nudge2, nudge1, W1, b1, W2, b2):
        h = jax.nn.sigmoid(X @ W1 + b1 + nudge1)
        y = jax.nn.sigmoid(h @ W2 + b2 + nudge2)
        return jnp.sum((y - T) ** 2) / 2

    value, grads = jax.value_and_grad(cost, argnums=range(6))(np.zeros(1), np.zeros(2), W1, b1, W2, b2)
    return value, *grads


def main() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prints and returns every quantity in the three ways, and the cost after the step θ ← θ − η ∂C/∂θ."""
    ways = []
    with jax.enable_x64(True):
        for way in (by_hand, by_jaxnn, by_jax):
            now = [np.asarray(value) for value in way(*THETA)]
            then = way(*(p - LEARNING_RATE * grad for p, grad in zip(THETA, now[3:], strict=True)))
            ways.append([*now, np.asarray(then[0])])
    table = dict(zip((*ROWS, "C after"), zip(*ways, strict=True), strict=True))
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
