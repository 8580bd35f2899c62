"""What a metagradient refuses, before anything compiles; and figures that have no derivative."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_metagradient import BATCH, N, X, Y, data, start, training

from jaxnn import metagradient, run, sgd


def named(message, make, error=ValueError, state=None, data_=None, validation="given", at=None, **options):
    settings = {"rate": 0.1} if at is None else at
    (parts, given) = data()
    parts = tuple(part.astype(np.float32) for part in parts) if data_ is None else data_
    given = tuple(part.astype(np.float32) for part in given) if validation == "given" else validation
    state = start(sgd(0.1), dtype=np.float32) if state is None else state
    with pytest.raises(error, match=message):
        metagradient(make, **options)(state, parts, given, **settings)


PLAIN = lambda rate: training(sgd(rate))


@pytest.mark.parametrize(
    ("message", "make", "options"),
    [
        ("make must be a run, or a function", 3, {"error": TypeError}),
        ("make must return a run", lambda rate: sgd(rate), {"error": TypeError}),
        ("an argument of the call: rename it", lambda data: training(sgd(data)), {}),
        ("positional-only", lambda rate, /: training(sgd(rate)), {"error": TypeError}),
        ("of must be the name", PLAIN, {"of": 3, "error": TypeError}),
        ("mode must be 'reverse' or 'forward', got 'backward'", PLAIN, {"mode": "backward"}),
        ("not both", PLAIN, {"examples": [1], "direction": np.ones(N)}),
        ("direction must be floats", PLAIN, {"direction": [1, 0], "error": TypeError}),
        (r"direction must have the weights' shape \(7,\), got \(2,\)", PLAIN, {"direction": np.ones(2)}),
        ("numbers of examples", PLAIN, {"examples": [0.5], "error": TypeError}),
        ("given twice", PLAIN, {"examples": [1, 1]}),
        ("from 0 to 6, got 7", PLAIN, {"examples": [7]}),
        ("examples must be a list", PLAIN, {"examples": 3, "error": TypeError}),
        ("recompute must be True or False", PLAIN, {"recompute": 1, "error": TypeError}),
        ("unknown setting rat: make takes rate", PLAIN, {"at": {"rat": 0.1}, "error": TypeError}),
        ("no value for rate", PLAIN, {"at": {}, "error": TypeError}),
        ("a run has no settings, got rate", training(sgd(0.1)), {"error": TypeError}),
        ("rate must be a number or an array of floats, got '0.1'", PLAIN, {"at": {"rate": "0.1"}, "error": TypeError}),
        ("rate must be a number", PLAIN, {"at": {"rate": True}, "error": TypeError}),
        ("no derivative by integers", PLAIN, {"at": {"rate": np.arange(3)}, "error": TypeError}),
        ("learning_rate must be at least 0, got", PLAIN, {"at": {"rate": -1.0}}),
        ("nothing to differentiate", training(sgd(0.1)), {"at": {}, "mode": "forward"}),
        ("nothing to differentiate", training(sgd(0.1)), {"at": {}, "examples": ()}),
        ("of='accuracy' is not in the history, which has 'loss', 'validation_loss'", PLAIN, {"of": "accuracy"}),
        (
            "'validation_loss' is not in the history, which has 'loss'; give a validation set",
            PLAIN,
            {"validation": None},
        ),
        ("of must return a scalar", PLAIN, {"of": lambda result: result.history["loss"], "error": TypeError}),
        ("data: weights must have shape", PLAIN, {"data_": (X, Y, np.ones(3))}),
        ("negative", PLAIN, {"data_": (X, Y, -np.ones(N))}),
        ("data must be", PLAIN, {"data_": X, "error": TypeError}),
    ],
)
def test_refuses(message, make, options):
    named(message, make, **options)


def test_refuses_what_cannot_be_right():
    """A rate that was set in the state and is used instead of the setting; a step of one's own without weights."""
    state = start(sgd(0.1), dtype=np.float32)
    by_hand = state._replace(opt_state=state.opt_state._replace(learning_rate=jnp.float32(0.05)))
    named("the learning rate 0.05 was set in the state, whose optimizer was made with 0.1", PLAIN, state=by_hand)
    own = lambda rate: run(lambda state, batch: (state, {"loss": rate}), epochs=1, batch_size=BATCH)
    named("with a step of your own the weights are the third part", own, of="loss", validation=None, examples=[1])


def test_outside_jit_a_figure_without_a_derivative_is_named():
    def make(rate):
        return run(lambda p, batch: (p - rate * batch.mean(), {"loss": p}), epochs=1, batch_size=N, shuffle=False)

    def found(of):
        return metagradient(make, of=of)(jnp.float32(1), np.ones(N, np.float32), rate=0.5)

    assert found(lambda result: result.train_state).settings["rate"] == -1
    with pytest.raises(ValueError, match="every derivative of the figure is exactly 0"):
        found(lambda result: (result.train_state > 0).astype(jnp.float32))
    with pytest.raises(ValueError, match="the figure is nan after 1 epochs"):
        found(lambda result: result.train_state * jnp.nan)
    with pytest.raises(ValueError, match="'loss' is exactly 0"):
        found("loss")  # of the first step, which the rate does not change
