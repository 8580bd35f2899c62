"""Text of records: a line of repr, a table in print and in a notebook, whatever their leaves."""

from __future__ import annotations

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn import (
    Fit,
    Pass,
    Sequences,
    TrainState,
    accumulate,
    adam,
    adamw,
    backprop,
    chain,
    clip_by_value,
    data,
    dense,
    ema,
    gradcheck,
    graph,
    init_train_state,
    losses,
    mlp,
    named,
    penalties,
    relu,
    rmsprop,
    schedules,
    sgd,
    stopping,
    summary,
)
from jaxnn.diagnostics import Diagnosis, Finding

NET = mlp([4, 2])
OPTIMIZER = adam(0.1)
LONGEST = 200  # characters of a readable line
X = np.ones((6, 3), np.float32)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda key: init_train_state(NET, OPTIMIZER, key, (3,)))(jax.random.key(0))


def fit_of(epochs, state=None, **changes):
    history = {"loss": [1.0 / (i + 1) for i in range(epochs)], "seconds": [0.5] * epochs}
    return Fit(state, history, why=f"all {epochs} epochs were run")._replace(**changes)


def test_a_fit_is_a_line(state):
    fit = fit_of(5, state, best_epoch=4)
    fit.history["validation_loss"] = [0.5, 0.4, 0.3, 0.07125, 0.08]
    says = 'Fit(5 epochs, loss 1 -> 0.2, validation_loss 0.08, best epoch 4, "all 5 epochs were run")'
    assert repr(fit) == says
    assert repr(fit_of(1, state)) == 'Fit(1 epoch, loss 1, "all 1 epochs were run")'
    assert repr(Fit(state, {})) == "Fit(0 epochs)"


def test_a_fit_is_a_table(state):
    fit = fit_of(3, state)
    title, blank, head, *rows = str(fit).splitlines()
    assert (title, blank, head.split()) == (repr(fit), "", ["epoch", "loss", "seconds"])
    assert [row.split() for row in rows] == [["1", "1", "0.5"], ["2", "0.5", "0.5"], ["3", "0.3333", "0.5"]]


def test_a_long_history_is_cut_in_the_middle(state):
    rows = str(fit_of(1000, state)).splitlines()[3:]
    assert rows[12] == "⋮ 976 more"
    assert [row.split()[0] for row in rows[:12] + rows[13:]] == [str(i) for i in [*range(1, 13), *range(989, 1001)]]
    page = fit_of(1000, state)._repr_html_()
    assert page.count("<tr>") == 26
    assert "<td>⋮ 976 more</td>" in page


def test_what_is_html_is_escaped(state):
    fit = fit_of(2, state, why="<b> & 'c'")
    fit.history["<script>"] = [0.0, 1.0]
    page = fit._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt; &amp; " in page
    assert "<" not in Diagnosis("dead", (Finding("dead", "a", "x < 1 & <i>"),), (), 3)._repr_html_()[5:-6]


def test_a_state_is_a_line(state):
    assert repr(state).startswith("TrainState(step 0, ")
    assert repr(state).endswith("26 parameters in 4 leaves, float32, AdamState)")
    bare = state._replace(params={}, opt_state=())
    assert repr(bare).endswith("no parameters)")
    mixed = {"a": jnp.ones(2, jnp.bfloat16), "b": np.ones((2, 3), np.float32)}
    assert "8 parameters in 2 leaves, bfloat16, float32" in repr(state._replace(params=mixed)).replace(" and ", ", ")
    assert repr(state._replace(opt_state=(state.opt_state, ()))).endswith("(AdamState, tuple))")


def test_a_state_is_a_table(state):
    rows = [line.split("  ") for line in str(state).splitlines()[2:]]
    assert rows[0][0] == "leaf"
    names = [row[0].strip() for row in rows[1:]]
    assert names == [f"params/dense_{i}/{leaf}" for i in (0, 1) for leaf in "bw"]
    assert "float32[3, 4]" in str(state)
    many = {f"dense_{i}": {"w": np.ones(1)} for i in range(12)}
    order = [line.split()[0] for line in str(state._replace(params=many)).splitlines()[3:]]
    assert order == [f"params/dense_{i}/w" for i in range(12)]  # 2 before 10


def test_states_side_by_side(state):
    several = jax.tree.map(lambda leaf: np.stack([leaf] * 5), state._replace(key=np.zeros(2, np.uint32)))
    assert repr(several).startswith("TrainState(5 states side by side, step 0,")
    assert "130 parameters" in repr(several)
    at = several._replace(step=np.array([3, 9, 12, 4, 5], np.int32))
    assert "step 3 to 12" in repr(at)


def strange(tree, put):
    return jax.tree.map(lambda leaf: put, tree)


def everything(state):
    """An example of each kind of record with a table or a line, by name."""
    out = Pass(jnp.float32(0.5), state.params, (), X, {"deltas": {"dense_0": X}}, jnp.float32(6))
    params = state.params
    result = jaxnn.EpochResult(jnp.float32(0.5), {"accuracy": jnp.float32(0.75)}, jnp.ones(3), jnp.asarray(True))
    machine = stopping.together(stopping.early_stopping(3), keep=stopping.keep_best())
    states = [
        optimizer.init(params)
        for optimizer in (
            *(sgd(0.1, momentum=0.9), OPTIMIZER, rmsprop(0.1), jaxnn.adagrad(0.1), adamw(0.1), ema(0.9)),
            *(chain(clip_by_value(1.0), sgd(0.1)), accumulate(sgd(0.1), 2)),
        )
    ]
    traced = graph.trace(lambda x: x * x)(2.0)
    return [
        *(state, fit_of(3, state), out, result, *states, machine.init(params), machine),
        *(stopping.early_stopping(3).init(), Sequences(X[None]), data.standardisation(X), ema(0.9)),
        *(NET, dense(2), relu, losses.mse, OPTIMIZER, penalties.l2(0.1), jaxnn.Reading("deltas", lambda use: use.tape)),
        *(traced, traced.nodes[0], traced.leaves[0], graph.page(traced), graph.gradient_flow(lambda x: x * x)(2.0)),
        *(graph.explain_nonfinite(lambda x: x * x)(2.0), summary(NET, (3,), batch_size=None)),
        gradcheck.Report("mine", (gradcheck.Row("a", "gradient", "w", "wrong", "why"),), ("a",)),
        Diagnosis("dead", (Finding("dead", "dense_0", "all of them"),), (), 3),
    ]


def test_every_record_is_a_line(state):
    for record in everything(state):
        line = repr(record)
        assert len(line) <= LONGEST, line
        assert "\n" not in line, line
        assert " at 0x" not in line, line
        assert str(record)
        if hasattr(record, "_repr_html_"):
            assert record._repr_html_().count("<") >= 2


def test_what_stands_in_the_lines(state):
    shown = {type(record).__name__: repr(record) for record in everything(state)}
    assert shown["Pass"] == (
        "Pass(loss 0.5, grads 26 numbers in 4 leaves, state (), output float32[6, 3], readings deltas, weight 6)"
    )
    assert shown["EpochResult"] == "EpochResult(loss 0.5, accuracy 0.75, losses float32[3], finite True)"
    assert shown["AdamState"].startswith("AdamState(step 0, learning_rate 0.1, ")
    assert "first_moment 26 numbers in 4 leaves" in shown["AdamState"]
    assert shown["Sequences"] == "Sequences(values float32[1, 6, 3], mask (), initial ())"
    assert shown["Standardisation"] == "Standardisation(mean float32[3], std float32[3])"
    assert shown["Report"] == "<gradcheck of mine: WRONG: a (1 wrong)>"
    assert shown["Diagnosis"] == "<dead at step 3: all of them>"
    assert shown["Summary"] == "<summary: 3 layers, 26 parameters, 104 B>"
    assert shown["l2"] == "l2(0.1)"
    assert shown["ema"] == "ema(decay=0.9)"
    assert shown["together"] == "together(stopping=early_stopping(3), keep=keep_best())"
    assert shown["Progress"] == "Progress(best_metric inf, waited 0, cooling 0, scale 1, stopped False)"


def test_networks_and_optimizers_say_what_they_are():
    assert repr(NET) == "serial(dense(4, w_init=he_normal()), relu, dense(2))"
    assert repr(named("head", dense(2))) == "named('head', dense(2))"
    assert repr(sgd(0.1)) == "sgd(0.1)"
    assert repr(sgd(0.1, momentum=0.9)) == "sgd(0.1, momentum=0.9)"
    assert repr(adam(1e-3, b1=0.5)) == "adam(0.001, b1=0.5)"
    assert "constant" in repr(adam(schedules.constant(0.1)))
    assert repr(jaxnn.Optimizer(lambda p: (), lambda g, s, p=None: (g, s))).startswith("Optimizer(")


@pytest.mark.parametrize(
    "put",
    [None, jax.ShapeDtypeStruct((3, 2), np.float32), "text", 7, object()],
    ids=["None", "outline", "text", "number", "object"],
)
def test_leaves_that_are_something_else(state, put):
    out = Pass(jnp.float32(0.5), state.params, (), X, {"deltas": {"dense_0": X}}, jnp.float32(6))
    for record in (state, fit_of(3, state, best=state), out, state.opt_state, Sequences(X), stopping.Monitors()):
        other = strange(record, put)
        assert 0 < len(repr(other)) <= LONGEST
        assert str(other)
        assert other._repr_html_()


def test_records_of_tracers_and_abstract_ones(state):
    """Nothing is computed, and no tracer is converted to a number."""
    seen = []

    def show(state):
        out = Pass(state.step, state.params, (), state.params, {}, state.step)
        seen.extend((repr(state), str(state), state._repr_html_(), repr(fit_of(2, state)), repr(out), str(out)))
        seen.append(repr(state.opt_state))
        return state.step

    jax.make_jaxpr(show)(state)
    assert "step int32[]" in seen[0]
    assert "traced" in seen[0]
    assert "loss int32[]" in seen[4]
    jax.vmap(show)(jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state))
    assert "26 parameters" in seen[7]
    spec = jax.eval_shape(lambda: state)
    assert repr(spec).startswith("TrainState(step int32[]")


def test_records_of_deleted_arrays(state):
    gone = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
    for leaf in jax.tree.leaves((gone.params, gone.step)):
        leaf.delete()
    assert "step int32[] deleted" in repr(gone)
    assert ", deleted" in repr(gone)
    assert "float32[3, 4] deleted" in str(gone)
    assert "deleted" in repr(Sequences(gone.params["dense_0"]["w"]))


def test_a_record_stays_a_tuple(state):
    """The decorator changes nothing else: pytrees, copies and fields are the same."""
    assert jax.tree.structure(state) == jax.tree.structure(copy.copy(state))
    assert TrainState._fields[:5] == ("params", "state", "opt_state", "step", "key")
    assert tuple(fit_of(1))[1]["loss"] == [1.0]
    assert isinstance(backprop(NET, losses.mse), type(test_a_record_stays_a_tuple))


# ---------------------------------------------------------------- names in a module


MODULES = [value for name in jaxnn.__all__ if inspect.ismodule(value := getattr(jaxnn, name))]
FURTHER = ["activations", "types"]


def test_dir_is_what_is_public():
    assert dir(jaxnn) == sorted(jaxnn.__all__)
    assert {"graph", "gradcheck", "fit"} <= set(dir(jaxnn))
    for module in [*MODULES, *(getattr(jaxnn, name) for name in FURTHER)]:
        assert dir(module) == sorted(module.__all__), module.__name__
        assert all(hasattr(module, name) for name in module.__all__)
        assert not any(name.startswith("_") or inspect.ismodule(getattr(module, name)) for name in module.__all__)
        assert not {"jax", "jnp", "np", "Any", "annotations"} & set(dir(module))
