"""Optimizers: a thousand steps of each are optax's; numerical traps, rates, trees, dtypes and mistakes.

What runs a few times on a handful of numbers is evaluated by NumPy. XLA compiles every optimizer too: for a thousand
steps in two precisions, with its state donated, under vmap and for other platforms; all in one program each.
"""

import functools
import inspect
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

import jaxnn
from jaxnn import (
    Optimizer,
    accumulate,
    adagrad,
    adam,
    adamw,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    gradient_descent,
    rmsprop,
    schedules,
    sgd,
)
from jaxnn.penalties import everything

STEPS = 1000
FLOAT64, FLOAT32 = 1e-10, 1e-5  # after 1,000 steps, of each leaf's largest entry
ULP = 2.0**-52
EVERY = 4  # batches to an update, where they are accumulated

OURS = {
    "gradient_descent": gradient_descent(0.1),
    "sgd": sgd(0.1),
    "momentum": sgd(0.02, momentum=0.9),
    "nesterov": sgd(0.02, momentum=0.9, nesterov=True),
    "adam": adam(0.01),
    "adam, other constants": adam(0.01, b1=0.5, b2=0.9999, eps=1e-3),
    "sgd, schedule": sgd(schedules.step_decay(0.1, factor=0.7, every=100)),
    "momentum, schedule": sgd(schedules.step_decay(0.02, factor=0.7, every=100), momentum=0.9),
    "adam, schedule": adam(schedules.step_decay(0.01, factor=0.7, every=100)),
    "adam, constant schedule": adam(schedules.constant(0.01)),
    "adagrad": adagrad(0.1, eps=1e-20),  # optax's ε is inside the root: both vanish here
    "adagrad, schedule": adagrad(schedules.step_decay(0.1, factor=0.7, every=100), eps=1e-20),
    "rmsprop": rmsprop(0.01),
    "rmsprop, other constants": rmsprop(0.01, rho=0.99, eps=1e-3),
    "rmsprop, schedule": rmsprop(schedules.step_decay(0.01, factor=0.7, every=100)),
    "adamw": adamw(0.01, weight_decay=0.1),
    "adamw, everything": adamw(0.01, b1=0.5, eps=1e-3, weight_decay=0.1, on=everything),
    "adamw, schedule": adamw(schedules.step_decay(0.01, factor=0.7, every=100), weight_decay=0.1),
    "clipped": chain(clip_by_global_norm(0.1), adam(0.01)),
    "clipped by value": chain(clip_by_value(0.05), sgd(0.02, momentum=0.9)),
    "clipped, schedule": chain(
        clip_by_global_norm(0.5), clip_by_value(0.1), sgd(schedules.step_decay(0.1, factor=0.7, every=100))
    ),
    "accumulated": accumulate(adamw(0.01, weight_decay=0.1), EVERY),
    "accumulated, schedule": accumulate(sgd(schedules.step_decay(0.1, factor=0.7, every=100), momentum=0.9), EVERY),
    "accumulated, clipped": chain(accumulate(chain(clip_by_global_norm(0.1), adam(0.01)), EVERY)),
}
operations = functools.cache(evaluated)  # of an `init` or `update`: traced once for each shape and dtype
apply_operations = evaluated(apply_updates)
every_optimizer = pytest.mark.parametrize("name", OURS)


def batches(name):
    """To an update."""
    return EVERY if name.startswith("accumulated") else 1


def ones(*shape, dtype="float32"):
    """As jnp.ones, which compiles for every shape."""
    return jax.device_put(np.ones(shape, jnp.dtype(dtype)))


def optax_twins(optax):
    def stairs(rate):  # optax's own staircase is computed in float32 under x64 too
        return lambda step: jnp.asarray([rate * 0.7**stair for stair in range(10)])[step // 100]

    def every(rule):
        return optax.MultiSteps(rule, EVERY, accumulator_dtype="float64").gradient_transformation()

    weights = {"w": True, "b": False}
    return {
        "gradient_descent": optax.sgd(0.1),
        "sgd": optax.sgd(0.1),
        "momentum": optax.sgd(0.02, momentum=0.9),
        "nesterov": optax.sgd(0.02, momentum=0.9, nesterov=True),
        "adam": optax.adam(0.01, eps=1e-6),
        "adam, other constants": optax.adam(0.01, b1=0.5, b2=0.9999, eps=1e-3),
        "sgd, schedule": optax.sgd(stairs(0.1)),
        "momentum, schedule": optax.sgd(stairs(0.02), momentum=0.9),
        "adam, schedule": optax.adam(stairs(0.01), eps=1e-6),
        "adam, constant schedule": optax.adam(0.01, eps=1e-6),
        "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0),
        "adagrad, schedule": optax.adagrad(stairs(0.1), initial_accumulator_value=0.0, eps=0.0),
        "rmsprop": optax.rmsprop(0.01, eps=1e-6, eps_in_sqrt=False),
        "rmsprop, other constants": optax.rmsprop(0.01, decay=0.99, eps=1e-3, eps_in_sqrt=False),
        "rmsprop, schedule": optax.rmsprop(stairs(0.01), eps=1e-6, eps_in_sqrt=False),
        "adamw": optax.adamw(0.01, eps=1e-6, weight_decay=0.1, mask=weights),
        "adamw, everything": optax.adamw(0.01, b1=0.5, eps=1e-3, weight_decay=0.1),
        "adamw, schedule": optax.adamw(stairs(0.01), eps=1e-6, weight_decay=0.1, mask=weights),
        "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01, eps=1e-6)),
        "clipped by value": optax.chain(optax.clip(0.05), optax.sgd(0.02, momentum=0.9)),
        "clipped, schedule": optax.chain(optax.clip_by_global_norm(0.5), optax.clip(0.1), optax.sgd(stairs(0.1))),
        "accumulated": every(optax.adamw(0.01, eps=1e-6, weight_decay=0.1, mask=weights)),
        "accumulated, schedule": every(optax.sgd(stairs(0.1), momentum=0.9)),
        "accumulated, clipped": every(optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01, eps=1e-6))),
    }


def their_promotion():
    """The libraries beside us promote dtypes implicitly, which this suite forbids to jaxnn."""
    return jax.numpy_dtype_promotion("standard")


# ---------------------------------------------------------------- a problem whose gradients never vanish


def problem(dtype="float32"):
    """Parameters, and a loss whose target no parameters reach and whose batch changes from step to step."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(dtype)
    params = {"w": rng.normal(size=(5, 3)).astype(dtype), "b": np.zeros(3, dtype)}
    x, target = (jax.device_put(rng.normal(size=(10, 8, width)).astype(dtype)) for width in (5, 3))

    def loss(params, step):
        prediction = jnp.tanh(x[step % 10] @ params["w"] + params["b"][None])
        return jnp.mean(jnp.square(prediction - target[step % 10]))

    return params, loss


def descend(optimizer, params, loss, steps, apply=apply_updates, opt_state=None):
    """The parameters after every tenth of the steps, the last state, and the losses."""

    def step(carry, i):
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params, i)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = apply(params, updates)
        return (params, opt_state), (value, params)

    start = params, optimizer.init(params) if opt_state is None else opt_state
    (_, opt_state), (losses, path) = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))
    return jax.tree.map(lambda leaf: leaf[steps // 10 - 1 :: steps // 10], path), opt_state, losses


def descend_all(rules, params, loss, steps):
    """{name: `descend`} of {name: (optimizer, apply)}: the gradients of all in one batch, which compiles fast."""

    def step(carry, i):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for params, _ in carry.values()))
        values, grads = jax.vmap(jax.value_and_grad(loss), (0, None))(stacked, i)
        after, seen = {}, {}
        for k, (name, (params, opt_state)) in enumerate(carry.items()):
            optimizer, apply = rules[name]
            updates, opt_state = optimizer.update(jax.tree.map(lambda leaf, k=k: leaf[k], grads), opt_state, params)
            after[name] = apply(params, updates), opt_state
            seen[name] = values[k], after[name][0]
        return after, seen

    start = {name: (params, optimizer.init(params)) for name, (optimizer, _) in rules.items()}
    end, seen = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))
    tenths = lambda path: jax.tree.map(lambda leaf: leaf[steps // 10 - 1 :: steps // 10], path)
    return {name: (tenths(path), end[name][1], losses) for name, (losses, path) in seen.items()}


def assert_close(ours, theirs, tolerance):
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b)), path


# ---------------------------------------------------------------- against optax


@functools.cache
def optax_paths():
    """Where optax's optimizers go in float64, all in one program.

    In float32 optax's 1 − βᵗ cancels: its Adam ends 9e-6 from here for β₂ = 0.999 and 1e-4 for β₂ = 0.9999.
    """
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    with jax.enable_x64(True), their_promotion():
        params, loss = problem("float64")
        rules = {name: (twin, optax.apply_updates) for name, twin in optax_twins(optax).items()}
        run = lambda p: {name: path for name, (path, _, _) in descend_all(rules, p, loss, STEPS).items()}
        return jax.tree.map(np.asarray, jax.jit(run)(params))


@functools.cache
def our_paths(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, loss = problem(dtype)
        rules = {name: (optimizer, apply_updates) for name, optimizer in OURS.items()}
        return jax.tree.map(np.asarray, jax.jit(lambda p: descend_all(rules, p, loss, STEPS))(params))


def test_every_public_name_is_tested():
    here = {"sgd", "adagrad", "rmsprop", "adam", "adamw"}
    with_tests_of_their_own = {"clip_by_global_norm", "clip_by_value", "chain", "accumulate", "loss_scaling"}
    classes = {name: getattr(jaxnn, name) for name in jaxnn.__all__ if inspect.isclass(getattr(jaxnn, name))}
    public = {name for name, value in classes.items() if issubclass(value, Optimizer) and value is not Optimizer}
    assert public == here | with_tests_of_their_own
    assert set(optax_twins(pytest.importorskip("optax", reason="the table of twins"))) == set(OURS)


@every_optimizer
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", FLOAT64), ("float32", FLOAT32)])
def test_a_thousand_steps_are_those_of_optax(name: str, dtype: str, tolerance: float):
    ours, opt_state, losses = our_paths(dtype)[name]
    assert_close(ours, optax_paths()[name], tolerance)
    assert losses[-10:].mean() < 0.9 * losses[:10].mean()
    assert opt_state.step == STEPS // batches(name)
    assert opt_state.step.dtype == np.int32
    assert opt_state.learning_rate.dtype == dtype


# ---------------------------------------------------------------- the protocol, both ways


@pytest.fixture
def optax():
    return pytest.importorskip("optax", reason="optax is the independent reference")


@functools.cache
def paths_beside_optax():
    """A hundred steps of ours and theirs with the functions of either library, in one program."""
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    params, loss = problem()
    clipped = lambda rule: optax.chain(optax.clip_by_global_norm(0.1), rule)
    rules = {
        "ours": (clipped(adam(0.01, b2=0.99)), optax.apply_updates),  # b2: see optax_paths
        "theirs": (clipped(optax.adam(0.01, b2=0.99, eps=1e-6)), optax.apply_updates),
        "applied by us": (optax.adamw(0.01), apply_updates),
        "applied by them": (optax.adamw(0.01), optax.apply_updates),
    }
    with their_promotion():
        return jax.tree.map(np.asarray, jax.jit(lambda p: descend_all(rules, p, loss, 100))(params))


def test_in_an_optax_program(optax):
    (ours, _, losses), (theirs, _, _) = (paths_beside_optax()[name] for name in ("ours", "theirs"))
    assert_close(ours, theirs, FLOAT32)
    assert losses[-10:].mean() < losses[:10].mean()


def test_optax_optimizers_here(optax):
    paths = paths_beside_optax()
    assert_close(paths["applied by us"][0], paths["applied by them"][0], FLOAT32)


def test_masked_by_optax(optax):
    params, _ = problem()
    optimizer = optax.masked(adam(0.1), {"w": True, "b": False})
    updates, _ = evaluated(optimizer.update)(params, evaluated(optimizer.init)(params), params)
    np.testing.assert_array_equal(updates["b"], params["b"])  # passed through, as optax has it
    np.testing.assert_allclose(updates["w"], -0.1 * np.sign(params["w"]), rtol=1e-3)


def test_in_a_flax_program(optax):
    nnx = pytest.importorskip("flax.nnx", reason="flax is the other side of the protocol")
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    target = np.sin(x.sum(axis=1, keepdims=True))

    def losses(rule):
        model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss, grads = nnx.value_and_grad(lambda m: jnp.mean(jnp.square(m(x) - target)))(model)
            optimizer.update(model, grads)
            return loss

        return np.array([step(model, optimizer) for _ in range(50)])

    with their_promotion():  # b2: see optax_paths
        ours, theirs = losses(adam(0.05, b2=0.99)), losses(optax.adam(0.05, b2=0.99, eps=1e-6))
    np.testing.assert_allclose(ours, theirs, rtol=FLOAT32)
    assert ours[-1] < 0.5 * ours[0]


# ---------------------------------------------------------------- Adam's numerical traps


def first_update(optimizer, grads, dtype="float32"):
    grads = np.asarray(grads, jnp.dtype(dtype))
    return operations(optimizer.update)(grads, operations(optimizer.init)(grads))


def test_one_step_at_the_size_of_epsilon_is_half_the_rate():
    # ε inside the root, or added before the bias correction, gives another number.
    with jax.enable_x64(True):
        for rate in (0.001, 0.1, 1.0):
            update, _ = first_update(adam(rate, eps=1e-8), [1e-8, -1e-8], "float64")
            np.testing.assert_allclose(np.asarray(update), [-rate / 2, rate / 2], rtol=4 * ULP)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.999999), (0.999999, 0.9), (0.999999, 0.9999999)])
def test_bias_corrections_do_not_cancel(b1: float, b2: float):
    # 1 − βᵗ in float32 is 1.3 % off at β = 0.999999 and t = 1. Of a constant gradient both corrected moments
    # are exact at every step.
    optimizer, grads = adam(0.1, b1=b1, b2=b2), np.float32([3.0, -0.5, 1e-3])
    expected = -0.1 * grads / (np.abs(grads) + 1e-6)
    opt_state = operations(optimizer.init)(grads)
    for _ in range(3):
        updates, opt_state = operations(optimizer.update)(grads, opt_state)
        np.testing.assert_allclose(updates, expected, rtol=2e-6)


def test_without_memory_adam_is_a_normalised_step():
    optimizer, grads = adam(0.1, b1=0.0, b2=0.0), np.float32([2.0, -1e-6])
    opt_state = operations(optimizer.init)(grads)
    for scale in np.float32([1.0, 5.0]):
        updates, opt_state = operations(optimizer.update)(scale * grads, opt_state)
        expected = -0.1 * scale * grads / (np.abs(scale * grads) + 1e-6)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("eps", [1e-6, 1e-8, 1e-30, 1e-300])
@pytest.mark.parametrize("make", [adagrad, rmsprop, adam])
def test_zero_gradients_give_an_update_of_exactly_zero(make, dtype: str, eps: float):
    with jax.enable_x64(dtype == "float64"):
        updates, opt_state = first_update(make(0.1, eps=eps), np.zeros(3), dtype)
        assert updates.dtype == dtype
        assert np.all(np.asarray(updates) == 0)
        for memory in opt_state[3:]:
            assert np.all(np.asarray(memory) == 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [adagrad, functools.partial(rmsprop, rho=0.0), adam])
def test_low_precision_gradients_are_squared_in_float32(make, dtype: str):
    # In float16, (1e-4)² vanishes and (6e4)² overflows.
    grads = np.array([1e-4, -6e4, 1.0])
    updates, opt_state = first_update(make(0.1, eps=1e-8), grads, dtype)
    assert {memory.dtype for memory in opt_state[3:]} == {jnp.dtype("float32")}
    assert updates.dtype == dtype
    np.testing.assert_allclose(np.asarray(updates, np.float32), -0.1 * np.sign(grads), rtol=2**-8)


def test_small_updates_of_low_precision_gradients_are_remembered():
    # 1 + 0.001 is 1 in bfloat16: a velocity kept there would never see the small gradients.
    optimizer = sgd(1.0, momentum=0.99)
    opt_state = operations(optimizer.init)(np.ones(1, jnp.bfloat16))
    assert opt_state.velocity.dtype == jnp.float32
    for g in (1.0, 0.001):
        _, opt_state = operations(optimizer.update)(np.full(1, g, jnp.bfloat16), opt_state)
    np.testing.assert_allclose(opt_state.velocity, 0.99 + float(jnp.bfloat16(0.001)), rtol=1e-6)


def test_the_step_counter_stops_at_its_end():
    grads, last = np.ones(2, np.float32), 2**31 - 1
    opt_state = operations(adam(0.1).init)(grads)._replace(step=np.int32(last))
    for run in (operations, jax.jit):
        updates, after = run(adam(0.1).update)(grads, opt_state)
        assert after.step == last
        assert np.all(np.isfinite(updates))


# ---------------------------------------------------------------- the learning rate

MAKERS = {
    "sgd": sgd,
    "momentum": functools.partial(sgd, momentum=0.9),
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": functools.partial(adamw, weight_decay=0.1, on=everything),
    "chain": lambda rate: chain(clip_by_global_norm(1.0), adam(rate), clip_by_value(1e3)),
    "accumulate": lambda rate: accumulate(sgd(rate, momentum=0.9), 1),
    "chain of accumulate of chain": lambda rate: chain(accumulate(chain(clip_by_value(0.5), sgd(rate)), 1)),
}
every_maker = pytest.mark.parametrize("name", MAKERS)


@functools.cache
def one_of_each(make_name):
    """An optimizer with a rate of 0.1; or one whose rate is 0.5 less the step, so that it ends below 0."""
    rate = {"constant": 0.1, "falling": lambda step: 0.5 - step.astype(jnp.float32)}[make_name]
    return {name: make(rate) for name, make in MAKERS.items()}


@functools.cache
def compiled_together(make_name):
    """The update of all of them in one program, (grads, {name: state}) -> {name: (updates, state)}; its traces."""

    def update_all(grads, states):
        return {name: rule.update(grads, states[name], grads) for name, rule in one_of_each(make_name).items()}

    traced, traces = counted(update_all)
    return jax.jit(traced), traces


def counted(update):
    """An update and a list with an entry for each time that it is traced.

    `_cache_size()` of a jitted function would be 0 once JAX's call cache is full: 8,192 entries in one process, which a
    long run of tests reaches.
    """
    traces = []

    def traced(*args):
        traces.append(1)
        return update(*args)

    return traced, traces


@every_maker
def test_a_schedule_is_first_asked_with_step_0(name):
    make, rates, grads = MAKERS[name], (1.0, 0.5, 0.25), np.ones(1, np.float32)
    optimizer, plain = make(lambda step: 0.5 ** step.astype(jnp.float32)), make(1.0)
    opt_state, plain_state = (operations(rule.init)(grads) for rule in (optimizer, plain))
    assert (opt_state.step, opt_state.learning_rate) == (0, 1.0)
    for t, rate in enumerate(rates):
        updates, opt_state = operations(optimizer.update)(grads, opt_state, grads)
        unscaled, plain_state = operations(plain.update)(grads, plain_state, grads)
        np.testing.assert_allclose(updates, rate * unscaled, rtol=1e-6)
        assert (opt_state.step, opt_state.learning_rate) == (t + 1, rate)


RATES = (0.1, 0.01, 0.7)
GRADS = np.float32([1.0, -2.0])


def fresh_states(make_name, **replaced):
    states = {name: operations(rule.init)(GRADS) for name, rule in one_of_each(make_name).items()}
    return {name: state._replace(**replaced) for name, state in states.items()}


@functools.cache
def with_rates_in_the_state():
    """Updates with each of RATES and with one below 0, and how often they were compiled for."""
    update, traces = compiled_together("constant")
    results = {rate: update(GRADS, fresh_states("constant", learning_rate=np.float32(rate))) for rate in (*RATES, -0.1)}
    return jax.tree.map(np.asarray, results), len(traces)


@every_maker
def test_a_rate_set_in_the_state_rules(name):
    make, (results, traces) = MAKERS[name], with_rates_in_the_state()
    for rate in RATES:
        set_there, after = results[rate][name]
        alone, _ = operations(make(rate).update)(GRADS, operations(make(rate).init)(GRADS), GRADS)
        np.testing.assert_allclose(set_there, alone, rtol=1e-6)
        assert after.learning_rate == np.float32(rate)
    assert traces == 1


SWEPT = {
    "sgd": sgd,
    "adam": adam,
    "chain": lambda rate: chain(clip_by_global_norm(0.1), adamw(rate)),
    "accumulate": lambda rate: accumulate(rmsprop(rate), 4),
}


@functools.cache
def sweeps():
    """The paths of each optimizer with three rates under vmap, in one program."""
    params, loss = problem()

    def sweep(optimizer, rates):
        start = optimizer.init(params)
        return jax.vmap(lambda r: descend(optimizer, params, loss, 20, opt_state=start._replace(learning_rate=r))[0])(
            rates
        )

    run = jax.jit(lambda rates: {name: sweep(make(1.0), rates) for name, make in SWEPT.items()})
    return jax.tree.map(np.asarray, run(np.float32(SWEPT_RATES)))


SWEPT_RATES = (0.001, 0.01, 0.1)


@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_of_rates_under_vmap(name):
    params, loss = problem()
    swept = sweeps()[name]
    for i, rate in enumerate(SWEPT_RATES):
        optimizer = SWEPT[name](rate)
        alone = evaluated(lambda p, optimizer=optimizer: descend(optimizer, p, loss, 20)[0])(params)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], swept), alone, FLOAT32)
    assert not np.allclose(swept["w"][0], swept["w"][2], rtol=1e-2)


@every_maker
def test_a_python_number_or_a_whole_one_in_the_state_will_do(name):
    make, grads = MAKERS[name], np.ones(1, np.float32)
    expected, _ = operations(make(1.0).update)(grads, operations(make(1.0).init)(grads), grads)
    for rate in (1.0, 1, np.int32(1)):
        opt_state = operations(make(0.1).init)(grads)._replace(learning_rate=rate)
        np.testing.assert_allclose(evaluated(make(0.1).update)(grads, opt_state, grads)[0], expected, rtol=1e-6)


@functools.cache
def climbing_and_falling():
    """Under jit: with a rate below 0 in the state; with a schedule that falls below 0, the first and second update."""
    update, _ = compiled_together("falling")
    first = update(GRADS, fresh_states("falling"))
    second = update(GRADS, {name: after for name, (_, after) in first.items()})
    return with_rates_in_the_state()[0][-0.1], *jax.tree.map(np.asarray, (first, second))


@every_maker
def test_a_negative_rate_climbs_nowhere(name):
    """A constructor refuses it; in the state, or from a schedule, it can be traced, and gives NaN."""
    constant, falling = (one_of_each(kind)[name] for kind in ("constant", "falling"))
    climbing = operations(constant.init)(GRADS)._replace(learning_rate=np.float32(-0.1))
    fall = operations(falling.update)
    first = fall(GRADS, operations(falling.init)(GRADS), GRADS)
    by_operations = operations(constant.update)(GRADS, climbing, GRADS), first, fall(GRADS, first[1], GRADS)
    for climbed, first, second in (by_operations, [results[name] for results in climbing_and_falling()]):
        updates, after = climbed
        assert np.isnan(updates).all()
        assert np.isnan(after.learning_rate)
        assert np.isfinite(first[0]).all()
        assert np.isnan(second[0]).all()


# ---------------------------------------------------------------- trees, dtypes, identity


@every_optimizer
def test_none_and_empty_leaves_are_left_alone(name: str):
    params = {"w": np.ones((2, 3), np.float32), "frozen": None, "flatten_0": {}}
    init, update = operations(OURS[name].init), operations(OURS[name].update)
    moved, opt_state = params, init(params)
    for _ in range(batches(name)):
        updates, opt_state = update(params, opt_state, moved)
        moved = apply_operations(moved, updates)
    assert moved["frozen"] is None
    assert moved["flatten_0"] == {}
    assert np.all(np.asarray(moved["w"]) < 1)
    assert jax.tree.structure(opt_state) == jax.tree.structure(init(params))


@every_optimizer
def test_updates_have_the_dtype_of_the_parameters(name: str):
    params, grads = {"w": np.ones(3, jnp.bfloat16)}, {"w": np.ones(3, np.float32)}
    init, update = operations(OURS[name].init), operations(OURS[name].update)
    opt_state = init(params)
    for _ in range(batches(name)):
        updates, opt_state = update(grads, opt_state, params)
        assert updates["w"].dtype == jnp.bfloat16
        assert {leaf.dtype.name for leaf in jax.tree.leaves(opt_state)} <= {"int32", "float32"}
    if "adamw" not in name and name != "accumulated":  # these must know the parameters
        half = jax.tree.map(lambda leaf: leaf.astype(np.float16), grads)
        assert update(half, init(half))[0]["w"].dtype == jnp.float16


PARAMS = {"w": np.full((2, 3), 0.5, np.float32), "b": np.ones(3, np.float32)}


def fresh_state(name):
    """As a user makes it, outside of jit."""
    return OURS[name].init(jax.device_put(PARAMS))


def update_all(params, states):
    return {name: OURS[name].update(params, state, params) for name, state in states.items()}


@functools.cache
def donated():
    """All optimizers in one program whose argument of states is donated, 2 · EVERY times; and the traces of it."""
    update, traces = counted(update_all)
    update = jax.jit(update, donate_argnums=1)
    states, results = {name: fresh_state(name) for name in OURS}, []
    for _ in range(2 * EVERY):
        results.append(jax.tree.map(np.array, update(PARAMS, states)))
        states = jax.device_put({name: state for name, (_, state) in results[-1].items()})
    return results, len(traces)


@every_optimizer
def test_a_fresh_state_can_be_donated(name: str):
    results, traces = donated()
    assert results[-1][name][1].step == 2 * EVERY // batches(name)
    assert traces == 1


@functools.cache
def exported_results():
    states = {name: fresh_state(name) for name in OURS}
    exported = jax.export.export(jax.jit(update_all), platforms=("cpu", "cuda", "tpu"))(PARAMS, states)
    return jax.tree.map(np.asarray, exported.call(PARAMS, states))


@every_optimizer
def test_lowers_for_every_platform(name: str):
    """Exported for machines that are not here, an update is on this one what it was."""
    for ours, theirs in zip(*map(jax.tree.leaves, (donated()[0][0][name], exported_results()[name])), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_apply_updates_rounds_once():
    # The update is a little more than half a last place of 1 in bfloat16; rounded first, it is just half of it,
    # and the sum would go to the even neighbour, 1.
    half_place = 2.0**-8
    update = np.full(1, half_place * (1 + 2.0**-12), np.float32)
    moved = jax.jit(apply_updates)(np.ones(1, jnp.bfloat16), update)
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(moved, np.float32), [1 + 2 * half_place])


def test_equal_calls_give_equal_optimizers():
    assert adam(0.1) == adam(learning_rate=0.1, eps=1e-6)
    assert hash(sgd(0.1, momentum=0.9)) == hash(sgd(0.1, momentum=0.9))
    assert gradient_descent(0.1) == sgd(0.1)
    assert adam(schedules.constant(0.1)) == adam(schedules.constant(0.1))
    assert adam(0.1) != adam(0.2)
    assert adam(0.1) != adam(0.1, b1=0.8)
    assert adagrad(0.1) == adagrad(learning_rate=0.1, eps=1e-6)
    assert rmsprop(0.1) == rmsprop(0.1, rho=0.9) != rmsprop(0.2)
    assert adamw(0.1) == adamw(0.1, weight_decay=0.01)
    assert adamw(0.1) != adamw(0.1, on=everything)
    assert adamw(0.1) != adam(0.1)
    clipped = lambda rate: chain(clip_by_global_norm(1), adam(rate))
    assert clipped(0.1) == clipped(0.1) != clipped(0.2)
    assert accumulate(clipped(0.1), 2) == accumulate(clipped(0.1), 2)
    assert accumulate(clipped(0.1), 2) != accumulate(clipped(0.2), 2)
    assert accumulate(adam(0.1), 2) != accumulate(adam(0.1), 3)
    assert clip_by_value(1) == clip_by_value(limit=1.0)


def test_equal_optimizers_compile_once():
    """A program that is given optimizers is compiled anew for another number, and once for all JAX scalars."""

    def update(rules, grads):
        return {name: rule.update(grads, rule.init(grads), grads)[0] for name, rule in rules.items()}

    traced, traces = counted(update)
    run, grads = jax.jit(traced), {"w": np.ones(1, np.float32)}
    made = lambda rate: run({name: make(rate) for name, make in MAKERS.items()}, grads)
    constant = [made(rate) for rate in (0.1, 0.1, 0.2)]
    assert len(traces) == 2
    given = [made(jnp.float32(rate)) for rate in (0.1, 0.1, 0.2)]
    assert len(traces) == 3
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), given, constant)


def test_a_schedule_that_cannot_be_hashed():
    class Halving:
        __hash__ = None

        def __call__(self, step):
            return 0.5 ** step.astype(float)

    optimizer, grads = sgd(Halving()), np.ones(1, np.float32)
    opt_state = operations(optimizer.init)(grads)
    for rate in (1.0, 0.5):
        updates, opt_state = operations(optimizer.update)(grads, opt_state)
        np.testing.assert_allclose(updates, -rate * grads)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sgd(-0.1), ValueError, "sgd: learning_rate must be at least 0, got -0.1"),
        (lambda: adam(math.nan), ValueError, "adam: learning_rate"),
        (lambda: adam(math.inf), ValueError, "adam: learning_rate"),
        (lambda: sgd("0.1"), TypeError, "sgd: learning_rate must be a number"),
        (lambda: adam(None), TypeError, "adam: learning_rate must be a number"),
        (lambda: sgd(jnp.ones(2)), TypeError, r"jax\.vmap a function.*set them in the state: opt_state\._replace"),
        (lambda: sgd(jnp.float32(-0.1)), ValueError, "sgd: learning_rate must be at least 0"),
        (lambda: sgd(jnp.int32(1)), TypeError, "sgd: learning_rate must be a number"),
        (lambda: sgd(schedules.constant), TypeError, r"parentheses, constant\(…\)"),
        (lambda: sgd(0.1, momentum=1.0), ValueError, "sgd: momentum must be at least 0 and below 1"),
        (lambda: sgd(0.1, momentum=-0.1), ValueError, "sgd: momentum"),
        (lambda: sgd(0.1, nesterov=True), ValueError, "sgd: nesterov needs momentum"),
        (lambda: adam(0.1, b1=1.0), ValueError, "adam: b1 must be at least 0 and below 1"),
        (lambda: adam(0.1, b1=-0.1), ValueError, "adam: b1"),
        (lambda: adam(0.1, b2=1.0), ValueError, "adam: b2 must be at least 0 and below 1"),
        (lambda: adam(0.1, b2=math.nan), ValueError, "adam: b2"),
        (lambda: adam(0.1, eps=0.0), ValueError, "adam: eps must be above 0"),
        (lambda: adam(0.1, eps=-1e-8), ValueError, "adam: eps"),
        (lambda: adagrad(-0.1), ValueError, "adagrad: learning_rate must be at least 0"),
        (lambda: adagrad(0.1, eps=0.0), ValueError, "adagrad: eps must be above 0"),
        (lambda: rmsprop(None), TypeError, "rmsprop: learning_rate must be a number"),
        (lambda: rmsprop(0.1, rho=1.0), ValueError, "rmsprop: rho must be at least 0 and below 1"),
        (lambda: rmsprop(0.1, eps=math.inf), ValueError, "rmsprop: eps"),
        (lambda: adamw(np.ones(1)), TypeError, r"adamw: learning_rate.*set them in the state"),
        (lambda: adamw(0.1, b2=1.0), ValueError, "adamw: b2"),
        (lambda: adamw(0.1, weight_decay=-0.1), ValueError, "adamw: weight_decay must be at least 0"),
        (lambda: adamw(0.1, on=0.1), TypeError, "adamw: on must be a function of a path.*called weight_decay"),
    ],
)
def test_arguments_out_of_range(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
@every_optimizer
def test_parameters_that_are_no_real_floats(name: str, dtype: str):
    params = {"dense_0": {"w": ones(2), "b": ones(3, dtype=dtype)}}
    with pytest.raises(TypeError, match=rf"real floats, got {dtype}\[3\] at 'dense_0/b'"):
        OURS[name].init(params)


@pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eager", "jit"])
@every_optimizer
def test_gradients_that_do_not_fit_name_the_paths(name: str, compile):
    params = {"dense_0": {"w": ones(4, 3), "b": ones(3)}, "dense_1": {"w": ones(3, 1)}}
    grads = {"dense_0": {"w": ones(4, 2), "b": ones(3)}}
    opt_state = operations(OURS[name].init)(params)
    with pytest.raises(ValueError, match="gradients do not fit the parameters") as caught:
        compile(OURS[name].update)(grads, opt_state, params)
    assert "dense_0/w: expected [4, 3], got [4, 2]" in str(caught.value)
    assert "dense_1/w: expected [3, 1], missing" in str(caught.value)
    with pytest.raises(ValueError, match="updates do not fit the parameters"):
        compile(apply_updates)(params, grads)


@pytest.mark.parametrize("name", ["momentum", "adagrad", "rmsprop", "adam", "adamw", "clipped", "accumulated"])
def test_a_state_of_other_parameters_is_refused(name: str):
    grads, opt_state = {"w": ones(3)}, operations(OURS[name].init)({"w": ones(4)})
    with pytest.raises(ValueError, match="gradients do not fit the optimizer's state") as caught:
        OURS[name].update(grads, opt_state, grads)
    assert "w: expected [4], got [3]" in str(caught.value)
