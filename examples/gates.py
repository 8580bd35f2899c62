"""One neuron as a logic gate: OR, AND and NOT, with weights set by hand instead of learned.

    python examples/gates.py

A sigmoid neuron computes h = σ(x·w + b). With weights of ±20 the sum is at least 10 away from 0 for every input of
zeros and ones, and σ(±10) is within 0.00005 of 0 or 1: the neuron is a switch, and the bias determines how many inputs
must be 1 for it to switch on.
"""

import itertools

import jax.numpy as jnp

import jaxnn

GATES = {  # w and b
    "OR": ([20.0, 20.0], -10.0),
    "AND": ([20.0, 20.0], -30.0),
    "NOT": ([-20.0], 10.0),
}


def main() -> dict[str, dict[tuple[int, ...], float]]:
    """Prints the truth table of each gate; returns the neuron's output for each input."""
    neuron = jaxnn.serial(jaxnn.dense(1), jaxnn.sigmoid)
    tables = {}
    for gate, (w, b) in GATES.items():
        params = {"dense_0": {"w": jnp.array(w)[:, None], "b": jnp.array([b])}}
        inputs = list(itertools.product((0, 1), repeat=len(w)))
        h, _, _ = neuron.forward(params, (), jnp.array(inputs, jnp.float32))
        tables[gate] = dict(zip(inputs, h[:, 0].tolist(), strict=True))

        print(f"{gate:3}  w = {w}, b = {b}")
        for x, output in tables[gate].items():
            print(f"     {gate} {x!s:7} → {output:.5f}, read as {round(output)}")
    return tables


if __name__ == "__main__":
    main()
