"""Every law for every layer and combinator; every public layer has a row."""

import jax.numpy as jnp
import pytest
from cases import ACTIVATIONS, CASES, Case
from conv_cases import CONVOLUTIONS, POOLS
from laws import ASKED, CONSUMES, LAWS, PASSES, REFUSES, made, masks_pass_or_are_refused
from recurrent_cases import FEATURES, MASKED

import jaxnn
from jaxnn import (
    Sequences,
    activations,
    autodiff_twin,
    batch_norm,
    bidirectional,
    conv,
    dense,
    group_norm,
    map_layers,
    max_pool,
    named,
    parallel,
    repeat,
    reshape,
    residual,
    rnn,
    serial,
    share,
    tanh,
    with_rules,
)

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
    records = {name: getattr(jaxnn, name) for name in jaxnn.__all__ if name.islower()}
    layers = {name for name, record in records.items() if isinstance(record, type) and issubclass(record, jaxnn.Layer)}
    assert layers - {"activation", "named", "with_rules", "autodiff_twin", "low_precision"} <= kinds
    assert set(activations.__all__) <= set(ACTIVATIONS)


def test_gradients_do_not_depend_on_the_rank_of_the_batch():
    """dense on [N, T, D] is dense on [N·T, D]."""
    layer = jaxnn.dense(2)
    params, state = layer.init(jaxnn.keys.as_key(0), (3,))
    x = jnp.arange(24.0).reshape(2, 4, 3)
    y, _, tape = layer.forward(params, state, x)
    flat_y, _, flat_tape = layer.forward(params, state, x.reshape(8, 3))
    assert (y.reshape(8, 2) == flat_y).all()
    _, grads = layer.backward(params, tape, y)
    _, flat_grads = layer.backward(params, flat_tape, flat_y)
    assert jnp.allclose(grads["w"], flat_grads["w"], rtol=1e-6)


# ---------------------------------------------------------------- masks
# Every row is in one of these sets: a new layer must choose.

MASKS = {
    PASSES: {
        *("dense", "dense, narrow after wide", "dense, square", "dense, no bias", "dense, one in, one out"),
        *("dense over time", "softmax", "softmax over time", "layer_norm", "layer_norm over time"),
        *("rms_norm", "rms_norm over time", "dropout", "dropout, evaluated", "embedding", "embedding over time"),
        *("rnn", "lstm", *ACTIVATIONS, "bidirectional"),
        *("serial", "serial of nothing", "mlp", "mlp, sigmoid", "mlp, one layer", "named", "residual"),
        *("residual, skip", "residual, skip without parameters", "parallel", "parallel, sum"),
        *("repeat", "repeat, once", "share", "repeat of share", "share of repeat", "low_precision"),
    },
    CONSUMES: {
        *("rnn, one step", "rnn, masked", "gru, one unit", "lstm, masked", "bidirectional, masked"),
        "masked, by way of layers that work on each step",
    },
    ASKED: {"gru", "gru, masked", "lstm, recomputed"},
    REFUSES: {
        *("flatten", "flatten, no features", "reshape", "reshape, one size open", *CONVOLUTIONS, *POOLS),
        *("batch_norm", "batch_norm over time", "batch_norm, evaluated"),
        *("group_norm", "group_norm over time", "group_norm of each feature"),
        *(
            "low_precision of a norm",
            "repeat of batch_norm",
            "share of batch_norm",
            "norms and dropout",
            "norms and dropout, evaluated",
        ),
        "everything",
    },
}
DO_NOT_LOOK = {"rnn", "gru", "lstm", "embedding", "bidirectional"}  # first of all: at masked steps may stand anything


def first(layer):
    return first(layer.children[0]) if layer.kind == "serial" and layer.children else layer.kind


@pytest.mark.parametrize("case", ROWS)
def test_masks_pass_or_are_refused(case):
    (choice,) = (choice for choice, names in MASKS.items() if case.name in names)
    layer = made(case)
    if case.name in MASKED:  # what is in the frame, which makes Sequences of arrays
        layer, case = MASKED[case.name][0](), case._replace(in_shape=(case.in_shape[0], FEATURES))
    masks_pass_or_are_refused(case, layer, choice, looks=first(layer) not in DO_NOT_LOOK)


def test_every_row_chooses_once():
    assert sorted(name for names in MASKS.values() for name in names) == sorted(case.name for case in CASES)


AROUND = {
    "serial": lambda layer: serial(tanh, layer),
    "residual": residual,
    "residual, skip": lambda layer: residual(layer, skip=tanh),
    "parallel": lambda layer: parallel(tanh, layer),
    "parallel, sum": lambda layer: parallel(layer, tanh, join="sum"),
    "repeat": lambda layer: repeat(layer, 2),
    "share": lambda layer: share(layer, 2),
    "bidirectional": bidirectional,
    "bidirectional of two": lambda layer: bidirectional(tanh, layer),
    "named": lambda layer: named("a", layer),
    "with_rules": with_rules,
    "autodiff_twin": autodiff_twin,
    "map_layers": lambda layer: map_layers(lambda leaf: leaf, serial(layer)),
}
WITHIN = {
    "dense": (lambda: dense(2), PASSES),
    "rnn": (lambda: rnn(2), PASSES),
    "reshape": (lambda: reshape(4, 2), REFUSES),
    "batch_norm": (batch_norm, REFUSES),
    "group_norm": (lambda: group_norm(1), REFUSES),
    "conv": (lambda: conv(2, (3,)), REFUSES),
    "max_pool": (lambda: max_pool((1,)), REFUSES),
}


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_a_layer_does_with_masks_as_the_layer(around, within):
    make, choice = WITHIN[within]
    case = Case(around, lambda: AROUND[around](make()), (4, 2), train=within == "batch_norm")
    masks_pass_or_are_refused(case, case.make(), choice, looks=True)


FORGETFUL = {  # a layer that loses the mask, one that hands another on, one that mixes steps
    "the mask is lost": lambda y, x: y.values,
    "the mask is another": lambda y, x: y._replace(mask=~x.mask),
    "masked steps reach the output": lambda y, x: y._replace(values=y.values + x.values.sum(1, keepdims=True)),
}


@pytest.mark.parametrize("says", FORGETFUL)
def test_the_law_sees_faults(says):
    tanh_layer = jaxnn.activation(tanh)

    def forward(params, state, x, *, train=False, rng=None):
        y, state, tape = tanh_layer.forward(params, state, x)
        return FORGETFUL[says](y, x), state, tape

    def backward(params, tape, delta):
        return tanh_layer.backward(params, tape, delta)

    layer = tanh_layer._replace(forward=forward, backward=backward)
    case = Case("forgetful", lambda: layer, (4, 2))
    with pytest.raises((AssertionError, ValueError), match=f"{says}|expects"):
        masks_pass_or_are_refused(case, layer, PASSES, looks=True)
    for choice in (CONSUMES, REFUSES):
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
            masks_pass_or_are_refused(case, layer, choice, looks=True)


@pytest.mark.parametrize("make", [lambda: dense(2), jaxnn.softmax, jaxnn.layer_norm, jaxnn.rms_norm])
def test_an_axis_of_time_is_not_one_of_features(make):
    """[N, T] with a mask: a product or a mean over the last axis would mix what is masked with what is not."""
    layer = make()
    params, state = layer.init(0, (3,))
    x = Sequences(jnp.ones((2, 3)), jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match=f"^{layer.kind} expects sequences .N, T, D. where there is a mask, got"):
        layer.forward(params, state, x)
    with pytest.raises(ValueError, match=rf"^{layer.kind} expects a mask \[N, T\] of shape \(2, 4\), got \(2, 3\)"):
        layer.forward(params, state, x._replace(values=jnp.ones((2, 4, 3))))


def test_directions_hand_the_pair_of_states_on():
    """Two layers that work on each step alone, before two that read the states."""
    net = serial(bidirectional(dense(2)), bidirectional(rnn(2, returns="last")))
    x = Sequences(jnp.ones((2, 3, 2)), jnp.ones((2, 3), bool), (jnp.ones((2, 2)), 2 * jnp.ones((2, 2))))
    params, state = net.init(0, jaxnn.shapes.example_shape(x))
    for derived in (net, autodiff_twin(net)):
        y, _, tape = derived.forward(params, state, x)
        delta_in, _ = derived.backward(params, tape, jnp.ones_like(y))
        assert [float(jnp.abs(s).max()) > 0 for s in delta_in.initial] == [True, True]


def test_directions_of_two_kinds():
    net = bidirectional(rnn(2), rnn(2, returns="values"))
    x = Sequences(jnp.ones((2, 3, 2)), jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match="all return Sequences or all arrays, got forward: Sequences, backward: "):
        net.forward(net.init(0, (3, 2))[0], (), x)
