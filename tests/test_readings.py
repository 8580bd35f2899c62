"""Readings: what they see at each use of a layer, in one unit, in every combinator; by hand and by jax.grad."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn, normal
from laws import FLOAT64, close, evaluated

from jaxnn import (
    Reading,
    Sequences,
    autodiff,
    backprop,
    bidirectional,
    dense,
    dropout,
    gru,
    init_train_state,
    losses,
    named,
    parallel,
    repeat,
    residual,
    serial,
    sgd,
    share,
    tanh,
    train_step,
)
from jaxnn.combinators.walk import leaves_of
from jaxnn.factors import Factor
from jaxnn.passes import readings
from jaxnn.passes.parts import forward_pass, recursion, seed

N = 4
LOSS = losses.half_squared_error
WEIGHTS = np.array([0.5, 0.0, 2.0, 1.5])


def block():
    return serial(dense(3), tanh)


NETS = {  # x is [N, 3]
    "serial": lambda: serial(dense(4), tanh, dense(2)),
    "one leaf": lambda: dense(2),
    "residual": lambda: residual(block()),
    "residual, skip": lambda: residual(block(), skip=dense(3)),
    "parallel": lambda: serial(parallel(dense(2), block()), dense(3)),
    "parallel, sum": lambda: parallel(dense(3), block(), join="sum"),
    "repeat": lambda: serial(repeat(block(), 2), dense(3)),
    "share": lambda: serial(share(block(), 3), dense(3)),
    "share in repeat": lambda: repeat(share(block(), 3), 2),
    "repeat in share": lambda: share(serial(repeat(block(), 2), dense(3)), 3),
    "share in repeat, twice": lambda: repeat(share(block(), 2), 2),
    "share in share": lambda: share(share(block(), 2), 3),
    "named": lambda: serial(named("first", repeat(named("in", block()), 2)), named("out", dense(2))),
    "everything": lambda: serial(
        residual(block(), skip=dense(3)), share(parallel(dense(3), repeat(block(), 2), join="sum"), 2), dense(2)
    ),
    "bidirectional": lambda: bidirectional(serial(gru(2), dense(2))),
}


def setting(what):
    """The network, parameters, state, x and target, in float64."""
    net = NETS[what]()
    in_shape = (3, 3) if what == "bidirectional" else (3,)
    params, state = drawn(net, in_shape, "float64")
    x = normal(N, *in_shape, dtype="float64")
    y = jax.eval_shape(lambda: net.forward(params, state, x)[0])
    return net, params, state, x, np.cos(np.arange(y.size, dtype="float64")).reshape(y.shape)


def keep_all(use):
    assert use.delta is None
    assert use.grads is None
    return {"x": use.x, "y": use.y, "params": use.params}


def note_all(use):
    assert use.x is None
    assert use.y is None
    return {"delta": use.delta, "grads": use.grads, "params": use.params, "kept": use.kept}


def uses_first(noted):
    return jax.tree.map(lambda leaf: leaf.sum(0), noted)


ALL = Reading("all", note_all, keep=keep_all)
SUMS = Reading("sums", lambda use: use.grads, finish=uses_first)


def shown_in(read):
    """One pass with these readings, of each network once."""

    def run(what, weights=WEIGHTS):
        with jax.enable_x64(True):
            net, *args = setting(what)
            program = lambda *args: backprop(net, LOSS, read=read)(*args, weights=weights)
            return net, args, jax.tree.map(np.asarray, evaluated(program)(*args))

    return run


@pytest.mark.parametrize("what", NETS)
def test_what_is_noted_at_each_use(what):
    """δ is jax.grad's; what was kept is what was given: for dense layers y = x W + b and ∂C/∂W = xᵀ δ, use by use."""
    net, args, out = shown_in((ALL, SUMS))(what)
    with jax.enable_x64(True):
        auto = evaluated(lambda *args: autodiff(net, LOSS, read=("deltas",))(*args, weights=WEIGHTS))(*args)
    dense_uses = 0
    for place in leaves_of(net):
        noted = place.of(out.readings["all"])
        loops = tuple(loop.n for loop in place.loops)
        deltas = place.of(jax.tree.map(np.asarray, auto.readings["deltas"]))
        close(noted["delta"], deltas, FLOAT64, f"δ at {place.label}")
        assert noted["delta"].shape[: len(loops)] == loops
        assert jax.tree.structure(noted["params"]) == jax.tree.structure(noted["kept"]["params"])
        close(noted["params"], noted["kept"]["params"], 0, "parameters, there and back")
        if place.layer.kind != "dense":
            continue
        dense_uses += 1
        params, x, delta = noted["params"], noted["kept"]["x"], noted["delta"]
        flat = lambda a: a.reshape(*loops, -1, a.shape[-1])
        product = np.einsum("...nd,...nh->...dh", flat(x), flat(delta))
        close(noted["grads"], {"b": flat(delta).sum(-2), "w": product}, FLOAT64, f"gradients at {place.label}")
        y = np.einsum("...nd,...dh->...nh", flat(x), params["w"]) + params["b"][..., None, :]
        close(flat(noted["kept"]["y"]), y, FLOAT64, f"y at {place.label}")
    assert dense_uses, what


@pytest.mark.parametrize("what", NETS)
def test_notes_are_of_the_sum(what):
    """Gradients over all uses of a layer: Σw times those of the pass; `finish` gets the uses on one leading axis."""
    net, _, out = shown_in((ALL, SUMS))(what)
    assert out.weight == WEIGHTS.sum()
    expected = jax.tree.map(lambda g: WEIGHTS.sum() * g, out.grads)
    for place in leaves_of(net):
        close(place.of(out.readings["sums"], {}), place.of(expected, {}), FLOAT64, place.label)
        shared = tuple(i for i, loop in enumerate(place.loops) if not loop.stacks)
        by_use = jax.tree.map(lambda g: g.sum(shared), place.of(out.readings["all"])["grads"])
        close(by_use, place.of(expected, {}), FLOAT64, f"{place.label}, use by use")


def test_a_batch_of_twice_the_size():
    """It adds examples, and changes nothing at those that were there; without weights Σw is their number."""
    with jax.enable_x64(True):
        net, params, state, x, target = setting("share in repeat")
        run = lambda x, target: backprop(net, LOSS, read=("deltas", SUMS))(params, state, x, target)
        once = jax.tree.map(np.asarray, evaluated(run)(x, target))
        twice = jax.tree.map(np.asarray, evaluated(run)(np.concatenate([x, x]), np.concatenate([target, target])))
    deltas = [jax.tree.leaves(out.readings["deltas"]) for out in (once, twice)]
    for one, two in zip(*deltas, strict=True):
        np.testing.assert_allclose(two[:, :, :N], one, rtol=FLOAT64)
        np.testing.assert_allclose(two[:, :, N:], one, rtol=FLOAT64)
    sums = once.readings["sums"]
    close(twice.readings["sums"], jax.tree.map(lambda g: 2 * g, sums), FLOAT64, "gradients")
    close(sums["dense_0"], jax.tree.map(lambda g: N * g, once.grads["dense_0"]), FLOAT64, "of the sum")
    assert (once.weight, twice.weight) == (N, 2 * N)


USES = {  # (uses that share parameters, passes that have their own) of the first dense layer
    "serial": (1, ()),
    "one leaf": (1, ()),
    "residual": (1, ()),
    "repeat": (1, (2,)),
    "share": (3, ()),
    "share in repeat": (3, (2,)),
    "repeat in share": (3, (2,)),
    "share in share": (6, ()),
    "everything": (1, ()),
}


@pytest.mark.parametrize("what", USES)
def test_finish_gets_an_axis_of_uses(what):
    seen = []

    def finish(noted):
        seen.append(noted.shape)
        return {"last": noted[-1], "uses": jnp.int32(noted.shape[0])}

    read = (Reading("delta", lambda use: use.delta, finish=finish), "deltas")
    net, _, out = shown_in(read)(what)
    first = next(place for place in leaves_of(net) if place.layer.kind == "dense")
    uses, passes = USES[what]
    leaves = list(leaves_of(net))
    assert len(seen) == len(leaves)
    shape = first.of(out.readings["deltas"]).shape
    assert seen[leaves.index(first)] == (uses, *shape[len(first.loops) :])
    found = first.of(out.readings["delta"])
    assert found["uses"].shape == passes
    assert (found["uses"] == uses).all()
    stacking = [i for i, loop in enumerate(first.loops) if loop.stacks]
    deltas = np.moveaxis(first.of(out.readings["deltas"]), stacking, range(len(stacking)))
    last = deltas.reshape(*passes, uses, *shape[len(first.loops) :])[(slice(None),) * len(passes) + (-1,)]
    np.testing.assert_allclose(found["last"], last, rtol=FLOAT64)


def factors_noted(use):
    return use.layer.factors(use.params, use.tape, use.delta)


def squared_norms(noted):
    return jax.tree.map(lambda f: f.joined().squared_norms(), noted, is_leaf=lambda part: isinstance(part, Factor))


def over_all_leaves(tree):
    return sum((leaf.reshape(-1, N).sum(0) for leaf in jax.tree.leaves(tree)), jnp.zeros(N))


NORMS = Reading("norms", factors_noted, finish=squared_norms, total=over_all_leaves)


@pytest.mark.parametrize("what", ["serial", "parallel", "share in repeat", "everything", "bidirectional"])
def test_total_of_all_layers(what):
    """‖∂Cₙ/∂θ‖² of every example, over all parameters, as one example after another gives it."""
    net, args, out = shown_in((NORMS,))(what)

    def alone(params, state, x, target):
        one = lambda x, t: backprop(net, LOSS)(params, state, x[None], t[None]).grads
        return jax.vmap(one)(x, target)

    with jax.enable_x64(True):
        grads = jax.tree.map(np.asarray, evaluated(alone)(*args))
    norms = sum((g**2).reshape(N, -1).sum(1) for g in jax.tree.leaves(grads))
    assert out.readings["norms"].shape == (N,)
    np.testing.assert_allclose(out.readings["norms"], WEIGHTS**2 * norms, rtol=1e-10)


@pytest.mark.parametrize("what", ["serial", "everything"])
def test_in_parts_and_in_a_step(what):
    """`forward_pass` and `recursion`, and `train_step`, note what `backprop` notes."""
    read = (ALL, NORMS, "delta_norms")
    net, (params, state, x, target), out = shown_in(read)(what)

    def in_parts(params, state, x, target):
        output, _, tapes = forward_pass(net, params, state, x, read=read)
        start = seed(LOSS, output, target, WEIGHTS)
        _, grads, noted = recursion(net, params, tapes, start.of_mean, read, weight=start.weight)
        _, of_sum, again = recursion(net, params, tapes, start.delta, read[::-1])
        return grads, noted, of_sum, again

    with jax.enable_x64(True):
        grads, noted, of_sum, again = jax.tree.map(np.asarray, evaluated(in_parts)(params, state, x, target))
        begun = init_train_state(net, sgd(0.1), 0, (3,), dtype=jnp.float64)._replace(params=params)
        step = train_step(net, LOSS, sgd(0.1), read=read)
        _, stepped = jax.jit(step)(begun, x, target, WEIGHTS)
    close(grads, out.grads, FLOAT64, "gradients")
    for notes in (noted, again, stepped.readings):
        assert set(notes) == {"all", "norms", "delta_norms"}
        close({name: notes[name] for name in sorted(notes)}, dict(sorted(out.readings.items())), FLOAT64, "notes")
    close(of_sum, jax.tree.map(lambda g: WEIGHTS.sum() * g, out.grads), FLOAT64, "of the sum")


def test_under_vmap():
    """An ensemble's readings are those of its members."""
    with jax.enable_x64(True):
        net, params, state, x, target = setting("share")
        run = lambda params: backprop(net, LOSS, read=(ALL, SUMS, NORMS))(params, state, x, target).readings
        params = jax.tree.map(lambda p: np.stack([p, 2 * p]), params)
        together = jax.tree.map(np.asarray, evaluated(jax.vmap(run))(params))
        for i in range(2):
            alone = jax.tree.map(np.asarray, evaluated(run)(jax.tree.map(lambda p, i=i: p[i], params)))
            close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, FLOAT64, f"member {i}")


def test_masks_and_whole_numbers_have_no_delta():
    net = serial(gru(2), dense(1))
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    x = Sequences(normal(N, 3, 2, dtype="float64"), mask)
    with jax.enable_x64(True):
        spec = Sequences(jax.ShapeDtypeStruct((3, 2), "float64"), jax.ShapeDtypeStruct((3,), bool))
        params, state = drawn(net, spec, "float64")
        runs = [
            evaluated(
                lambda params, derive=derive: derive(net, LOSS, read=("deltas",))(params, state, x, x.values[..., :1])
            )
            for derive in (backprop, autodiff)
        ]
        hand, auto = (jax.tree.map(np.asarray, run(params).readings["deltas"]) for run in runs)
    close(hand, auto, FLOAT64, "deltas")
    assert hand["gru_0"].mask == ()
    assert not hand["gru_0"].values[~mask].any()


def test_randomness_and_state_are_kept():
    """keep finds the key and the state that forward was given."""
    net = serial(dense(3), dropout(0.5))
    params, state = drawn(net, (3,))
    read = Reading("key", lambda use: use.kept, keep=lambda use: jax.random.key_data(use.rng))
    x = normal(N, 3)
    run = backprop(net, LOSS, read=(read,))
    noted = jax.jit(run)(params, state, x, x, rng=jax.random.key(3)).readings["key"]
    assert noted["dropout_0"].shape == (2,)
    assert (noted["dropout_0"] != noted["dense_0"]).any()


# ---------------------------------------------------------------- refused


def test_both_parts_take_the_same_readings():
    other = dataclasses.replace(ALL, name="other")
    with jax.enable_x64(True):
        net, params, state, x, _ = setting("share")
        for there, back in (
            ((), (ALL,)),
            ((ALL,), ()),
            ((ALL,), ("deltas",)),
            (("deltas",), (ALL,)),
            ((ALL,), (other,)),
        ):
            y, _, tapes = forward_pass(net, params, state, x, read=there)
            with pytest.raises(ValueError, match="forward_pass and recursion take the same readings, read=…"):
                recursion(net, params, tapes, y, back)
        y, _, tapes = forward_pass(net, params, state, x, read=("deltas",))  # what keeps nothing may come later
        assert set(recursion(net, params, tapes, y, ("delta_norms",))[2]) == {"delta_norms"}
        assert recursion(net, params, tapes, y)[2] == {}


def test_what_is_asked_for():
    for read, says in (
        (("delta",), "unknown reading 'delta'"),
        ((ALL, dataclasses.replace(SUMS, name="all")), "two readings have one name"),
    ):
        with pytest.raises(ValueError, match=says):
            backprop(dense(2), LOSS, read=read)
    with pytest.raises(TypeError, match=r"read must be a sequence of readings, as in read=\(<Reading all>,\)"):
        backprop(dense(2), LOSS, read=ALL)
    with pytest.raises(ValueError, match="reads 'deltas' only"):
        autodiff(dense(2), LOSS, read=(ALL,))


def test_a_reading_is_a_record():
    again = pickle.loads(pickle.dumps(NORMS))
    assert again == NORMS
    assert hash(again) == hash(NORMS)
    assert repr(again) == "<Reading norms>"
    assert dataclasses.replace(NORMS, total=None) != NORMS
    assert dataclasses.replace(NORMS, name="n").note is factors_noted
    assert jax.tree.leaves(NORMS) == []


# ---------------------------------------------------------------- planted faults


def _another_unit(monkeypatch):
    monkeypatch.setattr(readings, "unscaled", lambda delta, total: delta)


def _passes_in_another_order(monkeypatch):
    right = repeat.backward
    turned = lambda tree: jax.tree.map(lambda leaf: leaf[::-1], tree)
    monkeypatch.setattr(
        repeat,
        "backward",
        lambda self, params, tape, delta: (lambda d, g: (d, turned(g)))(*right(self, params, tape, delta)),
    )


def _what_came_instead_of_what_left(monkeypatch):
    right = readings.Use
    monkeypatch.setattr(readings, "Use", lambda *args, y=None, **how: right(*args, y=how.get("x"), **how))


def _uses_mixed_up(monkeypatch):
    right = readings.at_owner
    monkeypatch.setattr(readings, "at_owner", lambda finish, noted, loops: right(finish, noted, loops[::-1]))


FAULTS = {
    "another unit": (_another_unit, "serial", test_what_is_noted_at_each_use),
    "gradients in another unit": (_another_unit, "serial", test_notes_are_of_the_sum),
    "passes in another order": (_passes_in_another_order, "repeat", test_what_is_noted_at_each_use),
    "x for y": (_what_came_instead_of_what_left, "share", test_what_is_noted_at_each_use),
    "uses mixed up": (_uses_mixed_up, "share in repeat, twice", test_notes_are_of_the_sum),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_they_see_faults(fault, monkeypatch):
    plant, what, law = FAULTS[fault]
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"off by|trees differ|has shape"):
        law(what)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"note": 3}, "note must be a function"),
        ({"note": lambda layer, params, tape, delta, grads: delta}, r"note\(use\)"),
        ({"note": lambda use: use.delta, "finish": lambda: 0}, "finish is called with one argument"),
    ],
)
def test_functions_that_are_called_otherwise_are_refused(wrong, says):
    with pytest.raises(TypeError, match=says):
        Reading("mine", **wrong)
    assert Reading("mine", jnp.shape)  # whatever takes one argument
