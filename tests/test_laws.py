"""Every law for every layer and combinator; every public layer has a row."""

import jax.numpy as jnp
import pytest
from cases import ACTIVATIONS, CASES
from laws import LAWS, made

import jaxnn
from jaxnn import activations

# One worker for each row, whose laws share what they evaluate.
ROWS = [pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(case.name)) for case in CASES]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", ROWS)
def test_law(case, law):
    law(case, made(case))


def test_every_public_layer_has_a_row():
    kinds = set()

    def collect(layer):
        kinds.add(layer.kind)
        for child in layer.children:
            collect(child)

    for case in CASES:
        collect(case.make())
    no_layers = {"activation", "Sequences", "rnn_step", "gru_step", "lstm_step"}
    combinators = {"serial", "residual", "parallel", "repeat", "share", "bidirectional"}
    public = set(jaxnn.layers.__all__) - no_layers | combinators
    assert public <= kinds
    assert set(activations.__all__) <= set(ACTIVATIONS)


def test_gradients_do_not_depend_on_the_rank_of_the_batch():
    """dense on [N, T, D] is dense on [N·T, D]."""
    layer = jaxnn.dense(2)
    params, state = layer.init(jaxnn.checks.as_key(0), (3,))
    x = jnp.arange(24.0).reshape(2, 4, 3)
    y, _, tape = layer.forward(params, state, x)
    flat_y, _, flat_tape = layer.forward(params, state, x.reshape(8, 3))
    assert (y.reshape(8, 2) == flat_y).all()
    _, grads = layer.backward(params, tape, y)
    _, flat_grads = layer.backward(params, flat_tape, flat_y)
    assert jnp.allclose(grads["w"], flat_grads["w"], rtol=1e-6)
