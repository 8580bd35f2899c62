"""Settings of records: traced numbers, and what follows from the fields (equality, pickling, repr)."""

import dataclasses
import inspect
import math
import pickle
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_layer_settings import NUMBERS
from test_optimizer_settings import OPTIMIZERS, RULES

import jaxnn
from jaxnn import (
    activations,
    augment,
    ema,
    initializers,
    losses,
    metrics,
    penalties,
    schedules,
    stopping,
)
from jaxnn.records import Record
from jaxnn.stopping import early_stopping, reduce_on_plateau

FLOAT64 = 1e-12
STEP = 1e-6  # of central differences
KEY_SEED, SHAPE = 3, (4, 6)
WEIGHTS = {"w": np.array([[1.0, -2.0], [0.5, 0.25]]), "b": np.array([3.0, 4.0])}
SIGNAL = np.sin(np.arange(12.0)).reshape(6, 2)
LOSSES = np.array([5.0, 4.0, 3.9, 3.85, 3.0, 3.1, 3.2, 2.9, 2.9, 2.9, 2.8, 2.8])


def rates(schedule):
    return jax.vmap(schedule)(jnp.arange(30, dtype=jnp.int32))


def draws(initializer):
    return initializer(jax.random.key(KEY_SEED), SHAPE, jnp.float64)


def costs(penalty):
    params = jax.tree.map(jnp.asarray, WEIGHTS)
    return penalty.value(params), penalty.grad(params)


def means(average):
    step = lambda state, theta: (average.update(state, theta), state.average)
    state, seen = jax.lax.scan(step, average.init(jnp.asarray(SIGNAL[0])), jnp.asarray(SIGNAL))
    return state.average, seen


def decisions(monitor):
    return jax.lax.scan(monitor.update, monitor.init(), jnp.asarray(LOSSES))


def scales(monitor):
    return decisions(monitor)[1].scale


def best_scale(machine):
    step = lambda state, metric: machine.update(state, metric, ())
    return jax.lax.scan(step, machine.init(()), jnp.asarray(LOSSES))[1].scale


def counted(metric):
    return metric(jnp.asarray(SIGNAL), jnp.asarray(SIGNAL > 0.1)), metric.entries(jnp.asarray(SIGNAL), SIGNAL > 0.1)


init, S, P = initializers, schedules, penalties
ROWS = {  # name: record of the number, computation with it, numbers, whether the result is smooth in the number
    "initializers.constant: value": (init.constant, draws, (-0.5, 0.0, 2.0), True),
    "initializers.normal: std": (init.normal, draws, (0.1, 0.5, 2.0), True),
    "initializers.uniform: limit": (init.uniform, draws, (0.1, 0.5, 2.0), True),
    "initializers.he_uniform: negative_slope": (init.he_uniform, draws, (0.0, 0.1, 0.5), True),
    "initializers.he_normal: negative_slope": (init.he_normal, draws, (0.0, 0.1, 0.5), True),
    "initializers.orthogonal: gain": (init.orthogonal, draws, (0.1, 1.0, 2.0), True),
    "schedules.constant: value": (S.constant, rates, (0.0, 0.1, 2.0), True),
    "schedules.step_decay: initial": (lambda v: S.step_decay(v, factor=0.5, every=7), rates, (0.0, 0.1, 2.0), True),
    "schedules.step_decay: factor": (lambda v: S.step_decay(0.1, factor=v, every=7), rates, (0.3, 1.0, 1.5), True),
    "schedules.piecewise: values": (
        lambda v: S.piecewise([0.3, v, 0.1], boundaries=[7, 20]), rates, (0.0, 0.1, 2.0), True,
    ),
    "schedules.exponential: initial": (lambda v: S.exponential(v, factor=0.5, every=7), rates, (0.0, 0.1, 2.0), True),
    "schedules.exponential: factor": (lambda v: S.exponential(0.1, factor=v, every=7), rates, (0.3, 1.0, 1.5), True),
    "schedules.inverse_time: initial": (lambda v: S.inverse_time(v, rate=0.5, every=7), rates, (0.0, 0.1, 2.0), True),
    "schedules.inverse_time: rate": (lambda v: S.inverse_time(0.1, rate=v, every=7), rates, (0.0, 0.5, 2.0), True),
    "schedules.polynomial: initial": (
        lambda v: S.polynomial(v, final=0.2, steps=20, power=1.7), rates, (0.1, 0.2, 0.5), True,
    ),
    "schedules.polynomial: final": (
        lambda v: S.polynomial(0.2, final=v, steps=20, power=1.7), rates, (0.1, 0.2, 0.5), True,
    ),
    "schedules.polynomial: initial of a line": (
        lambda v: S.polynomial(v, final=0.2, steps=20), rates, (0.1, 0.2, 0.5), True,
    ),
    "schedules.polynomial: power": (
        lambda v: S.polynomial(0.3, final=0.1, steps=20, power=v), rates, (0.5, 1.0, 2.0), True,
    ),
    "schedules.polynomial: power, rising": (
        lambda v: S.polynomial(0.1, final=0.3, steps=20, power=v), rates, (0.5, 1.0, 2.0), True,
    ),
    "schedules.cosine: initial": (lambda v: S.cosine(v, steps=20, final=0.2), rates, (0.1, 0.2, 0.5), True),
    "schedules.cosine: final": (lambda v: S.cosine(0.2, steps=20, final=v), rates, (0.1, 0.2, 0.5), True),
    "schedules.warmup: initial": (lambda v: S.warmup(5, S.constant(0.1), initial=v), rates, (0.05, 0.1, 0.3), True),
    "schedules.warmup: then": (lambda v: S.warmup(5, S.cosine(v, steps=9), initial=0.1), rates, (0.05, 0.1, 0.3), True),
    "schedules.joined: schedules": (
        lambda v: S.joined([S.constant(v), S.step_decay(v, factor=0.5, every=3)], [9]), rates, (0.1, 1.0), True,
    ),
    "schedules.scaled: factor": (lambda v: S.scaled(S.cosine(0.3, steps=20), v), rates, (0.0, 0.5, 2.0), True),
    "schedules.scaled: schedule": (lambda v: S.scaled(S.cosine(v, steps=20), 0.5), rates, (0.1, 0.5, 2.0), True),
    "penalties.l2: strength": (P.l2, costs, (0.0, 0.1, 2.0), True),
    "penalties.l1: strength": (lambda v: P.l1(v, on="w"), costs, (0.0, 0.1, 2.0), True),
    "penalties.elastic_net: l1_strength": (lambda v: P.elastic_net(v, 0.3), costs, (0.0, 0.1, 2.0), True),
    "penalties.elastic_net: l2_strength": (
        lambda v: P.elastic_net(0.3, v, on=P.everything), costs, (0.0, 0.1, 2.0), True,
    ),
    "metrics.binary_accuracy_at: threshold": (metrics.binary_accuracy_at, counted, (-0.5, 0.15, 0.7), False),
    "stopping.early_stopping: min_improvement": (
        lambda v: early_stopping(3, min_improvement=v), decisions, (0.0, 0.07, 0.5), False,
    ),
    "stopping.early_stopping: min_improvement, relative": (
        lambda v: early_stopping(3, min_improvement=v, relative=True), decisions, (0.0, 0.07, 0.5), False,
    ),
    "stopping.reduce_on_plateau: factor": (lambda v: reduce_on_plateau(v, patience=2), scales, (0.1, 0.5, 0.9), True),
    "stopping.reduce_on_plateau: min_improvement": (
        lambda v: reduce_on_plateau(0.5, patience=2, min_improvement=v), decisions, (0.0, 0.07, 0.5), False,
    ),
    "stopping.reduce_on_plateau: min_scale": (
        lambda v: reduce_on_plateau(0.5, patience=1, min_scale=v), scales, (0.0, 0.3, 0.6), True,
    ),
    "stopping.together: plateau": (
        lambda v: stopping.together(early_stopping(9), plateau=reduce_on_plateau(v, patience=2)),
        best_scale, (0.1, 0.5, 0.9), True,
    ),
    "ema: decay": (ema, means, (0.0, 0.3, 0.9, 0.999), True),
}  # fmt: skip
every_setting = pytest.mark.parametrize("name", ROWS)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float64) for leaf in jax.tree.leaves(tree)])


MODULES = (activations, initializers, losses, metrics, penalties, schedules, stopping)
SAME = {"learning_rate": "rate", "d": "delta"}  # names of one number: in tables, and as a field
NOT_TRACED = {  # (name, parameter): why it cannot be an input of a program
    ("Fit", "history"): "a result",
    ("DivergenceError", "history"): "a report",
    ("DivergenceError", "rate"): "a report",
    ("DivergenceError", "loss_scale"): "a report",
    ("sweep", "memory"): "a limit, on the host",
}


def real_settings(made):
    """The parameters of a factory that take a real number, by annotation or default."""
    is_real = lambda p: re.search(r"\b(float|Strength)\b", str(p.annotation)) or type(p.default) is float
    return {p.name for p in inspect.signature(made).parameters.values() if is_real(p)}


def in_tables():
    """(factory, setting) for every row of the tables of numbers that may be traced."""
    rows = [row.rpartition(".")[2].partition(":") for row in ROWS if not row.startswith("ema")]
    rows += [row.partition(":") for row in (*OPTIMIZERS, *RULES, *NUMBERS, "ema: decay")]
    pairs = {(name, re.split(r"[, ]", setting.strip())[0]) for name, _, setting in rows}
    return pairs | {(name, SAME.get(setting, setting)) for name, setting in pairs}


def test_every_real_number_that_a_public_factory_takes_is_in_a_table():
    """Or it is listed above, with the reason why it cannot be an input of a program."""
    tables, wanted = in_tables(), set()
    for module in (*MODULES, jaxnn):
        for name in module.__all__:
            made = getattr(module, name)
            if callable(made) and not isinstance(made, Record):
                wanted |= {(name, SAME.get(setting, setting)) for setting in real_settings(made)}
    assert len(wanted) >= 45
    assert not wanted - tables - set(NOT_TRACED), "neither in a table nor named as one that is not traced"
    assert not set(NOT_TRACED) - wanted, "named for nothing"


def test_augmentations_are_functions_and_no_records():
    """Their numbers are constants of a program; a record would need rows above."""
    for name in augment.__all__:
        made = getattr(augment, name)
        assert not (isinstance(made, type) and issubclass(made, Record)), name


@every_setting
def test_vmap_over_a_setting_is_a_loop_of_python_numbers_in_one_trace(name):
    build, probe, values, _ = ROWS[name]
    traces = []

    @jax.jit
    @jax.vmap
    def together(value):
        traces.append(value)
        return flat(probe(build(value)))

    expected = [np.asarray(flat(probe(build(value)))) for value in values]
    np.testing.assert_allclose(together(jnp.array(values)), expected, rtol=FLOAT64, atol=FLOAT64)
    np.testing.assert_allclose(together(jnp.array(values[::-1])), expected[::-1], rtol=FLOAT64, atol=FLOAT64)
    assert len(traces) == 1


@every_setting
def test_a_record_that_holds_the_number_is_an_argument(name):
    build, probe, values, _ = ROWS[name]
    records = [build(jnp.float64(value)) for value in values]
    (leaf,) = set(map(len, map(jax.tree.leaves, records)))
    assert leaf >= 1
    run = jax.jit(lambda record: flat(probe(record)))
    for record, value in zip(records, values, strict=True):
        np.testing.assert_allclose(run(record), flat(probe(build(value))), rtol=FLOAT64, atol=FLOAT64)
    assert run._cache_size() == 1


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[3]])
def test_the_gradient_by_a_setting_is_that_of_central_differences(name):
    build, probe, values, _ = ROWS[name]
    function = lambda value: flat(probe(build(value)))
    jacobian = jax.jit(jax.vmap(jax.jacrev(function)))(jnp.array(values))
    forward = jax.jit(jax.vmap(jax.jacfwd(function)))(jnp.array(values))
    for i, value in enumerate(values):
        low, high = max(value - STEP, 0.0) if value == 0 else value - STEP, value + STEP
        if name.startswith("initializers.constant"):
            low = value - STEP
        slope = (np.asarray(function(high)) - np.asarray(function(low))) / (high - low)
        bound = 1e-4 if low == value else 1e-7  # one-sided if the number cannot be smaller
        np.testing.assert_allclose(jacobian[i], slope, rtol=bound, atol=bound)
        np.testing.assert_allclose(forward[i], jacobian[i], rtol=1e-9, atol=1e-12)


@every_setting
def test_a_traced_number_that_cannot_be_right_is_nan_from_the_first(name):
    build, probe, _, _ = ROWS[name]
    for wrong in (math.nan, math.inf) if "constant: value" in name or "threshold" in name else (math.nan, -3.0):
        result = np.asarray(jax.jit(lambda value: flat(probe(build(value))))(wrong))
        assert np.isnan(result).any()
        if probe is rates:
            assert np.isnan(result[{"piecewise": 7, "joined": 0}.get(name.split(".")[1].partition(":")[0], 0) :]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_setting
def test_a_number_of_another_dtype_changes_no_dtype(name, dtype):
    build, probe, values, _ = ROWS[name]
    plain = jax.eval_shape(lambda: probe(build(values[1])))
    traced = jax.eval_shape(lambda value: probe(build(value)), jax.ShapeDtypeStruct((), dtype))
    assert jax.tree.map(lambda leaf: leaf.dtype, traced) == jax.tree.map(lambda leaf: leaf.dtype, plain)


# ---------------------------------------------------------------- what follows from the fields

NAMES = {  # names in two modules
    "schedules": SimpleNamespace(**{name: getattr(schedules, name) for name in schedules.__all__}),
    "initializers": SimpleNamespace(**{name: getattr(initializers, name) for name in initializers.__all__}),
}
OF = {
    **{name: getattr(module, name) for module in (penalties, metrics, stopping) for name in module.__all__},
    "ema": ema,
}
FACTORIES = {  # name: the record, the same with another setting, the repr, an invalid change
    "zeros": (init.zeros(), init.constant(0.0), "zeros()", {}),
    "constant": (init.constant(0.5), init.constant(0.25), "constant(0.5)", {"value": math.inf}),
    "normal": (init.normal(), init.normal(0.5), "normal()", {"std": -1.0}),
    "uniform": (init.uniform(0.5), init.uniform(), "uniform(limit=0.5)", {"limit": -1.0}),
    "glorot_uniform": (init.glorot_uniform(), init.glorot_normal(), "glorot_uniform()", {}),
    "glorot_normal": (init.glorot_normal(), init.lecun_normal(), "glorot_normal()", {}),
    "he_uniform": (init.he_uniform(), init.he_uniform(0.1), "he_uniform()", {"negative_slope": -1.0}),
    "he_normal": (init.he_normal(0.1), init.he_normal(), "he_normal(negative_slope=0.1)", {"negative_slope": -1.0}),
    "lecun_uniform": (init.lecun_uniform(), init.lecun_normal(), "lecun_uniform()", {}),
    "lecun_normal": (init.lecun_normal(), init.lecun_uniform(), "lecun_normal()", {}),
    "orthogonal": (init.orthogonal(2), init.orthogonal(), "orthogonal(gain=2.0)", {"gain": 0.0}),
    "schedules.constant": (S.constant(0.5), S.constant(0.25), "constant(0.5)", {"value": -1.0}),
    "step_decay": (
        S.step_decay(0.1, factor=0.5, every=7), S.step_decay(0.1, factor=0.5, every=8),
        "step_decay(0.1, factor=0.5, every=7)", {"every": 0},
    ),
    "piecewise": (
        S.piecewise([0.1, 0.2], boundaries=[5]), S.piecewise([0.1, 0.2], boundaries=[6]),
        "piecewise((0.1, 0.2), boundaries=(5,))", {"boundaries": ()},
    ),
    "exponential": (
        S.exponential(0.1, factor=0.5), S.exponential(0.1, factor=0.5, every=2),
        "exponential(0.1, factor=0.5)", {"factor": 0.0},
    ),
    "inverse_time": (
        S.inverse_time(0.1, rate=1), S.inverse_time(0.1, rate=2), "inverse_time(0.1, rate=1.0)", {"rate": -1.0},
    ),
    "polynomial": (
        S.polynomial(0.1, final=0, steps=9), S.polynomial(0.1, final=0, steps=9, power=2),
        "polynomial(0.1, final=0.0, steps=9)", {"power": 0.0},
    ),
    "cosine": (
        S.cosine(0.1, steps=9, final=0.01), S.cosine(0.1, steps=9), "cosine(0.1, steps=9, final=0.01)", {"steps": 0},
    ),
    "warmup": (
        S.warmup(5, S.constant(0.1)), S.warmup(5, S.constant(0.2)), "warmup(5, constant(0.1))", {"then": 0.1},
    ),
    "joined": (
        S.joined([S.constant(0.1), S.cosine(0.1, steps=9)], [5]),
        S.joined([S.constant(0.1), S.cosine(0.1, steps=8)], [5]),
        "joined((constant(0.1), cosine(0.1, steps=9)), (5,))", {"boundaries": (5, 5)},
    ),
    "scaled": (
        S.scaled(S.constant(0.1), 2), S.scaled(S.constant(0.1), 3), "scaled(constant(0.1), 2.0)", {"factor": -1.0},
    ),
    "l2": (P.l2(0.1), P.l2(0.2), "l2(0.1)", {"strength": -1.0}),
    "l1": (P.l1(0.1, "a/w"), P.l1(0.1), "l1(0.1, on='a/w')", {"on": 3}),
    "elastic_net": (
        P.elastic_net(0.1, 0.2, P.everything), P.elastic_net(0.1, 0.2), "elastic_net(0.1, 0.2, on=everything)",
        {"l2_strength": math.nan},
    ),
    "accuracy": (metrics.accuracy, metrics.binary_accuracy, "accuracy", {}),
    "top_k": (metrics.top_k(3), metrics.top_k(2), "top_k(3)", {"k": 0}),
    "binary_accuracy": (metrics.binary_accuracy, metrics.binary_accuracy_at(0.0), "binary_accuracy", {}),
    "binary_accuracy_at": (
        metrics.binary_accuracy_at(0.5), metrics.binary_accuracy_at(0.4), "binary_accuracy_at(0.5)",
        {"threshold": math.nan},
    ),
    "early_stopping": (early_stopping(3), early_stopping(3, maximise=True), "early_stopping(3)", {"patience": 0}),
    "reduce_on_plateau": (
        reduce_on_plateau(cooldown=2), reduce_on_plateau(), "reduce_on_plateau(cooldown=2)", {"factor": 1.0},
    ),
    "keep_best": (stopping.keep_best(), stopping.keep_best(True), "keep_best()", {"maximise": None}),
    "together": (
        stopping.together(early_stopping(3), keep=stopping.keep_best()), stopping.together(early_stopping(3)),
        "together(stopping=early_stopping(3), keep=keep_best())", {"keep": stopping.keep_best(True)},
    ),
    "ema": (ema(0.9), ema(), "ema(decay=0.9)", {"decay": 1.0}),
}  # fmt: skip
every_factory = pytest.mark.parametrize("name", FACTORIES)


def test_every_factory_is_in_the_table():
    for module in (initializers, schedules, penalties, metrics, stopping):
        for name in module.__all__:
            made = getattr(module, name)
            if name[0].islower() and (isinstance(made, type) or module is metrics):
                assert name in FACTORIES, name


WRAPPING = {
    "warmup",
    "joined",
    "scaled",
    "accumulate",
}  # positional arguments that they wrap; chain takes any number
ADVICE = {  # call with positional settings: message
    "step_decay": (
        lambda: S.step_decay(0.1, 0.5, 7),
        "its first argument, initial, by position: give factor=0.5, every=7",
    ),
    "a swap": (
        lambda: S.cosine(100, 0.1),
        "cosine takes only its first argument, initial, by position: give steps=0.1",
    ),
    "as it was": (lambda: S.polynomial(0.1, 0.0, 100), "initial, by position: give final=0.0, steps=100"),
    "some by keyword": (lambda: S.polynomial(0.1, 100, final=0.0), "initial, by position: give steps=100"),
    "two that are wrapped": (
        lambda: S.warmup(10, S.constant(0.1), 0.01),
        "warmup takes only its first 2 arguments, steps and then, by position: give initial=0.01",
    ),
    "an optimizer": (
        lambda: jaxnn.adam(1e-3, 0.9),
        "adam takes only its first argument, learning_rate, by position: give b1=0.9",
    ),
    "a record": (
        lambda: stopping.together(early_stopping(3), stopping.keep_best()),
        "stopping, by position: give plateau=keep_best()",
    ),
    "too many in all": (
        lambda: early_stopping(3, 0.1, True, False, 7),
        "give min_improvement=0.1, relative=True, maximise=False",
    ),
    "all of them": (
        lambda: jaxnn.adagrad(0.1, 1.0, eps=1e-6),
        "learning_rate, by position: got 1.0 beside all the others",
    ),
    "a layer": (lambda: jaxnn.group_norm(2, 1e-3), "by position: give"),
}  # fmt: skip


def rules():
    """Every schedule, every stopping rule and every optimizer."""
    made = [*schedules.__all__, *(name for name in stopping.__all__ if name.islower())]
    classes = [getattr(schedules, name, None) or getattr(stopping, name) for name in made]
    named = [getattr(jaxnn, name) for name in jaxnn.__all__]
    found = [thing for thing in named if isinstance(thing, type) and thing.__module__.startswith("jaxnn.optimizers.")]
    return [*classes, *(thing for thing in found if issubclass(thing, Record))]


def test_settings_are_given_by_keyword():
    names = {cls.__name__ for cls in rules()}
    assert {"step_decay", "cosine", "early_stopping", "together", "sgd", "adamw", "clip_by_value", "ema"} <= names
    for cls in rules():
        if cls.__name__ == "chain":
            continue
        fields = dataclasses.fields(cls)
        by_position = [field.name for field in fields if not field.kw_only]
        assert len(by_position) == 1 + (cls.__name__ in WRAPPING), cls.__name__
        kinds = [parameter.kind.name for parameter in list(inspect.signature(cls).parameters.values())]
        assert kinds.count("POSITIONAL_OR_KEYWORD") == len(by_position)
        with pytest.raises(TypeError, match="position"):
            cls(*range(1, 2 + len(by_position)))


@pytest.mark.parametrize("name", ADVICE)
def test_what_is_given_by_position_names_its_keywords(name):
    make, message = ADVICE[name]
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


def public_names(record):
    """The exports of the record's module, and the values of its fields."""
    here = SimpleNamespace(**OF)
    if type(record).__module__.startswith(schedules.__name__):
        here = NAMES["schedules"]
    elif type(record).__module__ == initializers.__name__:
        here = NAMES["initializers"]
    return vars(here)


@every_factory
def test_what_follows_from_the_fields(name):
    record, other, shown, wrong = FACTORIES[name]
    assert isinstance(record, jaxnn.records.Record)
    assert repr(record) == shown
    for again in (pickle.loads(pickle.dumps(record)), eval(shown, public_names(record)), dataclasses.replace(record)):
        assert again == record
        assert hash(again) == hash(record)
        assert repr(again) == shown
    assert record != other
    assert not jax.tree.leaves(record)  # constants of a program
    if wrong:
        with pytest.raises((TypeError, ValueError)):
            dataclasses.replace(record, **wrong)


def test_a_number_of_jax_is_another_setting_than_the_python_number():
    assert S.constant(jnp.float64(0.5)) == S.constant(jnp.float64(0.5))
    assert S.constant(jnp.float64(0.5)) != S.constant(0.5)
    assert repr(S.constant(jnp.float64(0.5))) == "constant(float64(0.5))"
    with pytest.raises(ValueError, match="constant: value must be at least 0"):
        S.constant(jnp.float64(-0.5))


def test_functions_of_ones_own_serve_as_well():
    mine = lambda step: 0.1 + 0 * step
    assert S.warmup(5, mine) == S.warmup(5, mine)
    assert S.warmup(5, mine)(9) == pytest.approx(0.1)
    assert P.l2(0.1, on=jaxnn.penalties.everything) == P.l2(0.1, on=P.everything)
    machine = stopping.Monitor(lambda: 0, lambda state, metric: (state + 1, metric))
    assert (machine.update(machine.init(), 2.0), machine.maximise) == ((1, 2.0), False)
    assert isinstance(machine, stopping.Monitor)
    assert repr(machine).startswith("Monitor(")
