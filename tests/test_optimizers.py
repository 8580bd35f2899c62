import functools
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import optimizers, schedules
from jaxnn.optimizers import (
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
    "sgd, schedule": sgd(schedules.step(0.1, 0.7, 100)),
    "momentum, schedule": sgd(schedules.step(0.02, 0.7, 100), momentum=0.9),
    "adam, schedule": adam(schedules.step(0.01, 0.7, 100)),
    "adam, constant schedule": adam(schedules.constant(0.01)),
    "adagrad": adagrad(0.1, eps=1e-20),  # optax's ε is inside the root: both vanish here
    "adagrad, schedule": adagrad(schedules.step(0.1, 0.7, 100), eps=1e-20),
    "rmsprop": rmsprop(0.01),
    "rmsprop, other constants": rmsprop(0.01, rho=0.99, eps=1e-3),
    "rmsprop, schedule": rmsprop(schedules.step(0.01, 0.7, 100)),
    "adamw": adamw(0.01, weight_decay=0.1),
    "adamw, everything": adamw(0.01, b1=0.5, eps=1e-3, weight_decay=0.1, decay=everything),
    "adamw, schedule": adamw(schedules.step(0.01, 0.7, 100), weight_decay=0.1),
    "clipped": chain(clip_by_global_norm(0.1), adam(0.01)),
    "clipped by value": chain(clip_by_value(0.05), sgd(0.02, momentum=0.9)),
    "clipped, schedule": chain(clip_by_global_norm(0.5), clip_by_value(0.1), sgd(schedules.step(0.1, 0.7, 100))),
    "accumulated": accumulate(adamw(0.01, weight_decay=0.1), EVERY),
    "accumulated, schedule": accumulate(sgd(schedules.step(0.1, 0.7, 100), momentum=0.9), EVERY),
    "accumulated, clipped": chain(accumulate(chain(clip_by_global_norm(0.1), adam(0.01)), EVERY)),
}
every_optimizer = pytest.mark.parametrize("name", OURS)


def batches(name):
    """To an update."""
    return EVERY if name.startswith("accumulated") else 1


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
    params = {"w": jnp.asarray(rng.normal(size=(5, 3)), dtype), "b": jnp.zeros(3, dtype)}
    x, target = jnp.asarray(rng.normal(size=(10, 8, 5)), dtype), jnp.asarray(rng.normal(size=(10, 8, 3)), dtype)

    def loss(params, step):
        prediction = jnp.tanh(x[step % 10] @ params["w"] + params["b"])
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
        twins = optax_twins(optax)
        run = lambda p: {name: descend(twins[name], p, loss, STEPS, optax.apply_updates)[0] for name in twins}
        return jax.tree.map(np.asarray, jax.jit(run)(params))


@functools.cache
def our_paths(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, loss = problem(dtype)
        run = lambda p: {name: descend(OURS[name], p, loss, STEPS) for name in OURS}
        return jax.tree.map(np.asarray, jax.jit(run)(params))


def test_every_public_name_is_tested():
    here = {"gradient_descent", "sgd", "adagrad", "rmsprop", "adam", "adamw", "apply_updates"}
    states = {"SgdState", "AdagradState", "RmspropState", "AdamState", "ChainState", "AccumulateState"}
    with_tests_of_their_own = {
        "clip_by_global_norm",
        "clip_by_value",
        "chain",
        "accumulate",
        "ema",
        "EmaState",
        "Average",
    }
    assert set(optimizers.__all__) == here | states | with_tests_of_their_own
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


def test_in_an_optax_program(optax):
    params, loss = problem()
    clipped = {
        "ours": optax.chain(optax.clip_by_global_norm(0.1), adam(0.01, b2=0.99)),
        "theirs": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01, b2=0.99, eps=1e-6)),
    }
    run = lambda p: {name: descend(rule, p, loss, 100, optax.apply_updates) for name, rule in clipped.items()}
    with their_promotion():  # b2: see optax_paths
        paths = jax.jit(run)(params)
    (ours, _, losses), (theirs, _, _) = paths["ours"], paths["theirs"]
    assert_close(ours, theirs, FLOAT32)
    assert losses[-10:].mean() < losses[:10].mean()


def test_optax_optimizers_here(optax):
    params, loss = problem()
    applied = (apply_updates, optax.apply_updates)
    with their_promotion():
        ours, theirs = jax.jit(lambda p: [descend(optax.adamw(0.01), p, loss, 100, f)[0] for f in applied])(params)
    assert_close(ours, theirs, FLOAT32)


def test_masked_by_optax(optax):
    params, _ = problem()
    optimizer = optax.masked(adam(0.1), {"w": True, "b": False})
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["b"], params["b"])  # passed through, as optax has it
    np.testing.assert_allclose(updates["w"], -0.1 * np.sign(params["w"]), rtol=1e-3)


def test_in_a_flax_program(optax):
    nnx = pytest.importorskip("flax.nnx", reason="flax is the other side of the protocol")
    x = jax.random.normal(jax.random.key(0), (32, 4))
    target = jnp.sin(x.sum(axis=1, keepdims=True))

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


def first_update(optimizer, grads, dtype="float32", params=None):
    grads = jnp.asarray(grads, dtype)
    return optimizer.update(grads, optimizer.init(grads if params is None else params), params)


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
    optimizer, grads = adam(0.1, b1=b1, b2=b2), jnp.array([3.0, -0.5, 1e-3])
    expected = -0.1 * grads / (jnp.abs(grads) + 1e-6)
    opt_state = optimizer.init(grads)
    for _ in range(3):
        updates, opt_state = optimizer.update(grads, opt_state)
        np.testing.assert_allclose(updates, expected, rtol=2e-6)


def test_without_memory_adam_is_a_normalised_step():
    optimizer, grads = adam(0.1, b1=0.0, b2=0.0), jnp.array([2.0, -1e-6])
    opt_state = optimizer.init(grads)
    for scale in (1.0, 5.0):
        updates, opt_state = optimizer.update(scale * grads, opt_state)
        expected = -0.1 * scale * grads / (jnp.abs(scale * grads) + 1e-6)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("eps", [1e-6, 1e-8, 1e-30, 1e-300])
@pytest.mark.parametrize("make", [adagrad, rmsprop, adam])
def test_zero_gradients_give_an_update_of_exactly_zero(make, dtype: str, eps: float):
    with jax.enable_x64(dtype == "float64"):
        updates, opt_state = first_update(make(0.1, eps=eps), np.zeros(3), dtype)
        assert updates.dtype == dtype
        assert np.all(np.asarray(updates) == 0)
        for memory in opt_state[2:]:
            assert np.all(np.asarray(memory) == 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [adagrad, functools.partial(rmsprop, rho=0.0), adam])
def test_low_precision_gradients_are_squared_in_float32(make, dtype: str):
    # In float16, (1e-4)² vanishes and (6e4)² overflows.
    grads = np.array([1e-4, -6e4, 1.0])
    updates, opt_state = first_update(make(0.1, eps=1e-8), grads, dtype)
    assert {memory.dtype for memory in opt_state[2:]} == {jnp.dtype("float32")}
    assert updates.dtype == dtype
    np.testing.assert_allclose(np.asarray(updates, np.float32), -0.1 * np.sign(grads), rtol=2**-8)


def test_small_updates_of_low_precision_gradients_are_remembered():
    # 1 + 0.001 is 1 in bfloat16: a velocity kept there would never see the small gradients.
    optimizer = sgd(1.0, momentum=0.99)
    opt_state = optimizer.init(jnp.ones(1, jnp.bfloat16))
    assert opt_state.velocity.dtype == jnp.float32
    for g in (1.0, 0.001):
        _, opt_state = optimizer.update(jnp.full(1, g, jnp.bfloat16), opt_state)
    np.testing.assert_allclose(opt_state.velocity, 0.99 + float(jnp.bfloat16(0.001)), rtol=1e-6)


def test_the_step_counter_stops_at_its_end():
    grads, last = jnp.ones(2), 2**31 - 1
    opt_state = adam(0.1).init(grads)._replace(step=jnp.asarray(last, jnp.int32))
    updates, opt_state = adam(0.1).update(grads, opt_state)
    assert opt_state.step == last
    assert np.all(np.isfinite(updates))


# ---------------------------------------------------------------- the learning rate

MAKERS = {
    "sgd": sgd,
    "momentum": functools.partial(sgd, momentum=0.9),
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": functools.partial(adamw, weight_decay=0.1, decay=everything),
    "chain": lambda rate: chain(clip_by_global_norm(1.0), adam(rate), clip_by_value(1e3)),
    "accumulate": lambda rate: accumulate(sgd(rate, momentum=0.9), 1),
    "chain of accumulate of chain": lambda rate: chain(accumulate(chain(clip_by_value(0.5), sgd(rate)), 1)),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_maker
def test_a_schedule_is_first_asked_with_step_0(make):
    rates = jnp.array([1.0, 0.5, 0.25])
    optimizer, grads = make(lambda step: rates[step]), jnp.ones(1)
    opt_state = optimizer.init(grads)
    assert (opt_state.step, opt_state.learning_rate) == (0, 1.0)
    plain, plain_state = make(1.0), make(1.0).init(grads)
    for t, rate in enumerate(rates):
        updates, opt_state = optimizer.update(grads, opt_state, grads)
        unscaled, plain_state = plain.update(grads, plain_state, grads)
        np.testing.assert_allclose(updates, rate * unscaled, rtol=1e-6)
        assert (opt_state.step, opt_state.learning_rate) == (t + 1, rate)


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
def test_a_rate_set_in_the_state_rules(make):
    grads = jnp.array([1.0, -2.0])
    update, traces = counted(make(0.1).update)
    update = jax.jit(update)
    opt_state = make(0.1).init(grads)
    for rate in (0.1, 0.01, 0.7):
        set_there, after = update(grads, opt_state._replace(learning_rate=jnp.float32(rate)), grads)
        np.testing.assert_allclose(set_there, make(rate).update(grads, make(rate).init(grads), grads)[0], rtol=1e-6)
        assert after.learning_rate == jnp.float32(rate)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "make",
    [sgd, adam, lambda rate: chain(clip_by_global_norm(0.1), adamw(rate)), lambda rate: accumulate(rmsprop(rate), 4)],
    ids=["sgd", "adam", "chain", "accumulate"],
)
def test_a_sweep_of_rates_under_vmap(make):
    params, loss = problem()
    rates = jnp.array([0.001, 0.01, 0.1])
    optimizer = make(1.0)

    @jax.jit
    def sweep(rates):
        start = optimizer.init(params)
        return jax.vmap(lambda r: descend(optimizer, params, loss, 20, opt_state=start._replace(learning_rate=r))[0])(
            rates
        )

    swept = sweep(rates)
    for i, rate in enumerate(rates.tolist()):
        alone, _, _ = descend(make(rate), params, loss, 20)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], swept), alone, FLOAT32)
    assert not np.allclose(swept["w"][0], swept["w"][2], rtol=1e-2)


@every_maker
def test_a_python_number_or_a_whole_one_in_the_state_will_do(make):
    grads, optimizer = jnp.array([1.0]), make(0.1)
    expected, _ = make(1.0).update(grads, make(1.0).init(grads), grads)
    for rate in (1.0, 1, jnp.int32(1)):
        opt_state = optimizer.init(grads)._replace(learning_rate=rate)
        np.testing.assert_allclose(optimizer.update(grads, opt_state, grads)[0], expected, rtol=1e-6)


@every_maker
def test_a_negative_rate_climbs_nowhere(make):
    """A constructor refuses it; in the state, or from a schedule, it can be traced, and gives NaN."""
    grads = jnp.array([1.0, -2.0])
    falling = make(lambda step: 0.5 - step.astype(jnp.float32))
    for run in (lambda update: update, jax.jit):
        climbing = make(0.1).init(grads)._replace(learning_rate=jnp.float32(-0.1))
        updates, after = run(make(0.1).update)(grads, climbing, grads)
        assert np.isnan(updates).all()
        assert np.isnan(after.learning_rate)
        updates, after = run(falling.update)(grads, falling.init(grads), grads)
        assert np.isfinite(updates).all()
        assert np.isnan(run(falling.update)(grads, after, grads)[0]).all()


# ---------------------------------------------------------------- trees, dtypes, identity


@every_optimizer
def test_none_and_empty_leaves_are_left_alone(name: str):
    params = {"w": jnp.ones((2, 3)), "frozen": None, "flatten_0": {}}
    optimizer, moved, opt_state = OURS[name], params, OURS[name].init(params)
    for _ in range(batches(name)):
        updates, opt_state = optimizer.update(params, opt_state, moved)
        moved = apply_updates(moved, updates)
    assert moved["frozen"] is None
    assert moved["flatten_0"] == {}
    assert np.all(np.asarray(moved["w"]) < 1)
    assert jax.tree.structure(opt_state) == jax.tree.structure(optimizer.init(params))


@every_optimizer
def test_updates_have_the_dtype_of_the_parameters(name: str):
    params, grads = {"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.ones(3)}
    opt_state = OURS[name].init(params)
    for _ in range(batches(name)):
        updates, opt_state = OURS[name].update(grads, opt_state, params)
        assert updates["w"].dtype == jnp.bfloat16
        assert {leaf.dtype.name for leaf in jax.tree.leaves(opt_state)} <= {"int32", "float32"}
    if "adamw" not in name and name != "accumulated":  # these must know the parameters
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), grads)
        assert OURS[name].update(half, OURS[name].init(half))[0]["w"].dtype == jnp.float16


@every_optimizer
def test_a_fresh_state_can_be_donated(name: str):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    update, traces = counted(OURS[name].update)
    update = jax.jit(update, donate_argnums=1)
    opt_state = OURS[name].init(params)
    for _ in range(2 * batches(name)):
        _, opt_state = update(params, opt_state, params)
    assert opt_state.step == 2
    assert len(traces) == 1


@every_optimizer
def test_lowers_for_every_platform(name: str):
    """Exported for machines that are not here, an update is on this one what it was."""
    params = {"w": jnp.full((2, 3), 0.5), "b": jnp.ones(3)}
    args, update = (params, OURS[name].init(params), params), jax.jit(OURS[name].update)
    exported = jax.export.export(update, platforms=("cpu", "cuda", "tpu"))(*args)
    for ours, theirs in zip(*(jax.tree.leaves(run(*args)) for run in (update, exported.call)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_apply_updates_rounds_once():
    # The update is a little more than half a last place of 1 in bfloat16; rounded first, it is just half of it,
    # and the sum would go to the even neighbour, 1.
    half_place = 2.0**-8
    moved = apply_updates(jnp.ones(1, jnp.bfloat16), jnp.full(1, half_place * (1 + 2.0**-12)))
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(moved, np.float32), [1 + 2 * half_place])


def test_equal_calls_give_equal_optimizers():
    assert adam(0.1) == adam(learning_rate=0.1, eps=1e-6)
    assert hash(sgd(0.1, 0.9)) == hash(sgd(0.1, momentum=0.9))
    assert gradient_descent(0.1) == sgd(0.1)
    assert adam(schedules.constant(0.1)) == adam(schedules.constant(0.1))
    assert adam(0.1) != adam(0.2)
    assert adam(0.1).update is adam(0.2).update
    assert adam(0.1).update is not adam(0.1, b1=0.8).update
    assert adagrad(0.1) == adagrad(learning_rate=0.1, eps=1e-6)
    assert rmsprop(0.1).update is rmsprop(0.2, rho=0.9).update
    assert adamw(0.1) == adamw(0.1, weight_decay=0.01)
    assert adamw(0.1).update is adamw(0.2).update
    assert adamw(0.1).update is not adamw(0.1, decay=everything).update
    clipped = lambda rate: chain(clip_by_global_norm(1), adam(rate))
    assert clipped(0.1) == clipped(0.1) != clipped(0.2)
    assert clipped(0.1).update is clipped(0.2).update
    assert accumulate(clipped(0.1), 2) == accumulate(clipped(0.1), 2)
    assert accumulate(clipped(0.1), 2).update is accumulate(clipped(0.2), 2).update
    assert accumulate(adam(0.1), 2).update is not accumulate(adam(0.1), 3).update
    assert clip_by_value(1) == clip_by_value(limit=1.0)


def test_a_schedule_that_cannot_be_hashed():
    class Halving:
        __hash__ = None

        def __call__(self, step):
            return 0.5 ** step.astype(float)

    optimizer, grads = sgd(Halving()), jnp.ones(1)
    opt_state = optimizer.init(grads)
    for rate in (1.0, 0.5):
        updates, opt_state = optimizer.update(grads, opt_state)
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
        (lambda: sgd(jnp.float32(0.1)), TypeError, r"set it in the state: opt_state\._replace"),
        (lambda: jax.vmap(sgd)(jnp.ones(2)), TypeError, r"set it in the state: opt_state\._replace"),
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
        (lambda: adamw(jnp.float32(0.1)), TypeError, r"adamw: learning_rate.*set it in the state"),
        (lambda: adamw(0.1, b2=1.0), ValueError, "adamw: b2"),
        (lambda: adamw(0.1, weight_decay=-0.1), ValueError, "adamw: weight_decay must be at least 0"),
        (lambda: adamw(0.1, decay=0.1), TypeError, "adamw: decay must be a function of a path.*called weight_decay"),
    ],
)
def test_arguments_out_of_range(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
@every_optimizer
def test_parameters_that_are_no_real_floats(name: str, dtype: str):
    params = {"dense_0": {"w": jnp.ones(2), "b": jnp.ones(3, dtype)}}
    with pytest.raises(TypeError, match=rf"real floats, got {dtype}\[3\] at 'dense_0/b'"):
        OURS[name].init(params)


@pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eager", "jit"])
@every_optimizer
def test_gradients_that_do_not_fit_name_the_paths(name: str, compile):
    params = {"dense_0": {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, "dense_1": {"w": jnp.ones((3, 1))}}
    grads = {"dense_0": {"w": jnp.ones((4, 2)), "b": jnp.ones(3)}}
    opt_state = OURS[name].init(params)
    with pytest.raises(ValueError, match="gradients do not fit the parameters") as caught:
        compile(OURS[name].update)(grads, opt_state, params)
    assert "dense_0/w: expected [4, 3], got [4, 2]" in str(caught.value)
    assert "dense_1/w: expected [3, 1], missing" in str(caught.value)
    with pytest.raises(ValueError, match="updates do not fit the parameters"):
        compile(apply_updates)(params, grads)


@pytest.mark.parametrize("name", ["momentum", "adagrad", "rmsprop", "adam", "adamw", "clipped", "accumulated"])
def test_a_state_of_other_parameters_is_refused(name: str):
    grads = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="gradients do not fit the optimizer's state") as caught:
        OURS[name].update(grads, OURS[name].init({"w": jnp.ones(4)}), grads)
    assert "w: expected [4], got [3]" in str(caught.value)
