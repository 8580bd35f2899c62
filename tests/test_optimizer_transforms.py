"""Clipping at every scale, chains that show one rate, and k small batches that are one large one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

from jaxnn import (
    accumulate,
    adam,
    adamw,
    apply_updates,
    backprop,
    chain,
    clip_by_global_norm,
    clip_by_value,
    fit,
    losses,
    mlp,
    schedules,
    sgd,
    stopping,
    tanh,
)
from jaxnn.optimizers.transforms import ChainState

FLOAT32 = 1e-6  # two orders of one sum
FLOAT64 = 1e-14


operations = functools.cache(evaluated)  # of an `init` or `update`: traced once for each shape and dtype


def clipped(rule, grads):
    """By NumPy; what XLA makes of it is held to the exact numbers in the property test, and at every scale."""
    return evaluated(lambda g: rule.update(g, rule.init(g))[0])(grads)


def norm(tree):
    """‖g‖ in float64, whose range holds the squares of every float32."""
    return math.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree)))


# ---------------------------------------------------------------- clip_by_global_norm


SIZES = [
    ([3.0, -4.0, 0.5], "float32"),
    ([6e4, -6e4, 1.0], "float16"),  # their squares overflow float16
    ([1e30, -1e30, 1e10], "float32"),  # and these float32
    ([3e38, 3e38, -3e38], "float32"),  # and of these even the norm does
    ([3e38, 3e38, -3e38], "bfloat16"),
    ([1e-30, 1e-30, 0.0], "float32"),  # and of these the squares vanish
    ([1e200, -1e200, 1.0], "float64"),
]


def sized(values, dtype):
    half = len(values) // 2
    return {"w": np.asarray(values[:half], jnp.dtype(dtype)), "b": np.asarray(values[half:], jnp.dtype(dtype))}


def to_bound(exact, share):
    """A norm in extended precision, and the bound that is a share of it."""
    length = np.sqrt(sum(np.square(leaf).sum() for leaf in exact.values()))
    return length, float(min(share * length, 1e30))


def widest(grads):
    return {name: leaf.astype(np.longdouble) for name, leaf in grads.items()}


@functools.cache
def clipped_by_xla(wide):
    """Those of SIZES in float64, or all others, to both bounds: in one program."""
    cases = [(i, share) for i, (_, dtype) in enumerate(SIZES) for share in SHARES if (dtype == "float64") == wide]
    with jax.enable_x64(wide):
        grads = {case: sized(*SIZES[case[0]]) for case in cases}
        rules = {case: clip_by_global_norm(to_bound(widest(grads[case]), case[1])[1]) for case in cases}
        run = jax.jit(lambda leaves: [rules[case].update(g, ())[0] for case, g in zip(cases, leaves, strict=True)])
        return dict(zip(cases, jax.tree.map(np.asarray, run(list(grads.values()))), strict=True))


SHARES = (0.1, 1e-3)


@pytest.mark.parametrize(("values", "dtype"), SIZES)
@pytest.mark.parametrize("share", SHARES, ids=["a tenth", "a thousandth"])
def test_gradients_of_any_size_come_to_the_bound(values, dtype, share):
    with jax.enable_x64(dtype == "float64"):
        grads = sized(values, dtype)
        exact = widest(grads)
        length, bound = to_bound(exact, share)
        ours = clipped(clip_by_global_norm(bound), grads)
        eps = float(jnp.finfo(dtype).eps)
    by_xla = clipped_by_xla(dtype == "float64")[SIZES.index((values, dtype)), share]
    for name, leaf in (*ours.items(), *by_xla.items()):
        assert leaf.dtype == dtype
        expected = (exact[name] * (bound / length)).astype(np.float64)
        np.testing.assert_allclose(leaf.astype(np.float64), expected, rtol=2 * eps, atol=eps * bound)


def test_within_the_bound_nothing_changes_to_the_bit():
    grads = {"w": np.float32([0.3, -0.1, 1e-30]), "b": np.array([1 / 3], jnp.bfloat16)}
    for bound in (10.0, norm(grads) * (1 + 1e-6), 1e300):
        for ours, theirs in zip(
            *map(jax.tree.leaves, (clipped(clip_by_global_norm(bound), grads), grads)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_zero_gradients_stay_zero_and_the_slope_there_is_one():
    """‖g‖ is not differentiated at 0, where its slope is NaN; elsewhere the slope is (c/‖g‖)(I − ĝĝᵀ)."""
    rule, zeros = clip_by_global_norm(1.0), np.zeros(3, np.float32)
    slope = jax.jit(jax.jacobian(lambda g: rule.update(g, ())[0]))
    np.testing.assert_array_equal(clipped(rule, zeros), np.zeros(3))
    np.testing.assert_array_equal(slope(zeros), np.eye(3))
    np.testing.assert_array_equal(slope(np.float32([0.1, 0.2, 0.0])), np.eye(3))
    g = np.float32([3.0, -4.0, 12.0])  # of length 13
    unit = g / 13
    np.testing.assert_allclose(slope(g), (np.eye(3) - np.outer(unit, unit)) / 13, atol=FLOAT32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_makes_all_nan(bad):
    """No direction can be told: with all of them NaN, training ends with an error, and not with a step at random."""
    grads = {"w": np.float32([1.0, bad]), "b": np.float32([0.1])}
    for ours in (clipped(clip_by_global_norm(1.0), grads), clipped_to_one()(grads)):
        assert all(np.isnan(leaf).all() for leaf in ours.values())


@functools.cache
def clipped_to_one():
    return jax.jit(lambda g: clip_by_global_norm(1.0).update(g, ())[0])


def test_clip_by_value():
    grads = np.float32([0.5, -3.0, 3e38, math.nan, math.inf, -math.inf, 0.0])
    by_xla, _ = jax.jit(clip_by_value(1.0).update)(grads, ())
    for ours in (clipped(clip_by_value(1.0), grads), by_xla):
        np.testing.assert_array_equal(ours, np.float32([0.5, -1, 1, math.nan, 1, -1, 0]))
    for dtype in (np.float16, jnp.bfloat16):
        half = clipped(clip_by_value(0.1), np.array([6e4, -0.05], dtype))
        np.testing.assert_array_equal(half, np.array([0.1, -0.05], dtype))
    np.testing.assert_array_equal(clipped(clip_by_value(1e300), grads[:4]), grads[:4])  # no bound in float32


def test_clipping_is_that_of_optax():
    optax = pytest.importorskip("optax", reason="optax is the independent reference")
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):
        grads = {"w": np.float32(scale * rng.normal(size=(4, 3))), "b": np.float32(scale * rng.normal(size=3))}
        for ours, theirs in (
            (clip_by_global_norm(2.0), optax.clip_by_global_norm(2.0)),
            (clip_by_value(0.5), optax.clip(0.5)),
        ):
            expected, _ = evaluated(theirs.update)(grads, theirs.init(grads))
            for a, b in zip(*map(jax.tree.leaves, (clipped(ours, grads), expected)), strict=True):
                np.testing.assert_allclose(a, b, rtol=FLOAT32)


def test_properties_of_clipping_at_any_scale():
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis draws the inputs here")
    st = hypothesis.strategies
    run = jax.jit(lambda g: clip_by_global_norm(1.0).update(g, ())[0])

    @hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
    @hypothesis.given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), st.integers(-30, 38))
    def holds(values, exponent):
        grads = np.float32(np.array(values) * 10.0**exponent)
        grads[np.abs(grads) < 1e-37] = 0  # XLA's CPU backend flushes denormals
        ours, length = np.asarray(run(grads), np.float64), norm(grads)
        np.testing.assert_allclose(
            ours, grads.astype(np.float64) * min(1, 1 / max(length, 1e-300)), rtol=1e-6, atol=1e-38
        )

    holds()


# ---------------------------------------------------------------- chain


def test_a_chain_is_its_parts_one_after_another():
    params = {"w": np.float32([1.0, -2.0]), "b": np.float32([0.5])}
    parts = clip_by_value(0.5), adamw(0.1, weight_decay=0.1), clip_by_global_norm(0.05)
    optimizer, states = chain(*parts), [operations(part.init)(params) for part in parts]
    opt_state = operations(optimizer.init)(params)
    for scale in np.float32([3.0, -0.1, 10.0]):
        expected = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        ours, opt_state = operations(optimizer.update)(expected, opt_state, params)
        for i, part in enumerate(parts):
            expected, states[i] = operations(part.update)(expected, states[i], params)
        jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert opt_state.step == 3
    assert (opt_state.step, opt_state.learning_rate) == (states[1].step, states[1].learning_rate)
    jax.tree.map(np.testing.assert_array_equal, opt_state.states[1].second_moment, states[1].second_moment)


def test_what_a_chain_shows_is_in_one_place():
    params = jax.device_put(np.ones(2, np.float32))
    state = chain(clip_by_value(1.0), adam(0.1)).init(params)
    assert isinstance(state, ChainState)
    assert state.states[1].step == state.states[1].learning_rate == state.states[1].given == ()
    assert len(jax.tree.leaves(state)) == 5  # step, rate, the number it was given, and two moments
    assert chain(clip_by_value(1.0), clip_by_global_norm(1.0)).init(params) == ((), ())
    nested = chain(clip_by_value(1.0), chain(chain(clip_by_value(2.0)), chain(clip_by_value(3.0), adam(0.1))))
    assert nested.init(params).learning_rate == jnp.float32(0.1)
    with pytest.raises(ValueError, match="chain: parts 0 and 2 have a learning rate: keep one of them"):
        chain(sgd(0.1), clip_by_value(1.0), adam(0.1)).init(params)


def test_a_chain_with_parts_of_optax():
    optax = pytest.importorskip("optax", reason="optax's optimizers are the other side of the protocol")
    params = {"w": np.float32([1.0, -2.0])}
    ours, theirs = adam(0.1), optax.chain(optax.clip(0.5), optax.adam(0.1, eps=1e-6))
    with jax.numpy_dtype_promotion("standard"):
        first = lambda rule: evaluated(rule.update)(params, evaluated(rule.init)(params), params)[0]
        expected = first(theirs)
        for optimizer in (
            chain(optax.clip(0.5), ours),
            chain(clip_by_value(0.5), optax.adam(0.1, eps=1e-6)),
            optax.chain(clip_by_value(0.5), ours),
        ):
            np.testing.assert_allclose(first(optimizer)["w"], expected["w"], rtol=1e-5)


def test_a_plateau_sets_the_rate_of_a_chain():
    """The state machine's scale times the first rate, written into the state between compiled epochs."""
    optimizer, monitor = chain(clip_by_global_norm(1.0), sgd(0.5)), stopping.reduce_on_plateau(0.5, patience=1)
    update = jax.jit(optimizer.update)
    grads = np.float32([1.0])
    opt_state, progress, taken = operations(optimizer.init)(grads), monitor.init(), []
    for metric in (1.0, 1.0, 1.0):
        updates, opt_state = update(grads, opt_state)
        progress, decision = monitor.update(progress, metric)
        opt_state = opt_state._replace(learning_rate=np.float32(0.5 * decision.scale))
        taken.append(float(updates[0]))
    assert taken == [-0.5, -0.5, -0.25]


# ---------------------------------------------------------------- accumulate


def network(dtype="float32", batches=4, size=8):
    net = mlp([5, 2], tanh)
    rng = np.random.default_rng(0)
    normal = lambda shape: rng.normal(size=shape).astype(dtype)
    params, _ = jax.eval_shape(lambda: net.init(jax.random.key(0), (3,), jnp.dtype(dtype)))
    params = jax.tree.map(lambda leaf: normal(leaf.shape), params)
    x, target = (jax.device_put(normal((batches * size, width))) for width in (3, 2))
    grads = lambda params, rows: backprop(net, losses.mse)(params, (), x[rows], target[rows]).grads
    return params, grads


RULES = {
    "sgd": lambda: sgd(0.1, momentum=0.9),
    "adamw": lambda: adamw(0.1),
    "clipped": lambda: chain(clip_by_global_norm(0.05), adam(0.1)),
}


@functools.cache
def small_and_large(dtype):
    """{rule: what four batches of 8 do, what their 32 do}, three times over; in one program."""
    with jax.enable_x64(dtype == "float64"):
        params, grads = network(dtype)

        def step(optimizer, carry, rows):
            params, opt_state = carry
            updates, opt_state = optimizer.update(grads(params, rows), opt_state, params)
            params = apply_updates(params, updates)
            return (params, opt_state), (params, updates, opt_state.step)

        def run(optimizer, params, rows):
            start = params, optimizer.init(params)
            return jax.lax.scan(functools.partial(step, optimizer), start, np.tile(rows, (3, 1)))[1]

        rows = np.arange(32, dtype=np.int32)
        both = lambda params, rule: (
            run(accumulate(rule, 4), params, rows.reshape(4, 8)), run(rule, params, rows)
        )  # fmt: skip
        program = jax.jit(lambda params: {name: both(params, make()) for name, make in RULES.items()})
        return jax.tree.map(np.asarray, program(params))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", FLOAT32), ("float64", FLOAT64)])
@pytest.mark.parametrize("rule", RULES)
def test_small_batches_are_one_large_one(rule, dtype, tolerance):
    """Four batches of 8 take the step of their 32, three times over; between updates nothing moves, to the bit."""
    (path, updates, steps), (expected, _, _) = small_and_large(dtype)[rule]
    np.testing.assert_array_equal(steps, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3])
    for leaf in jax.tree.leaves(updates):
        assert not np.delete(leaf, [3, 7, 11], axis=0).any()
        assert leaf[[3, 7, 11]].any()
    for ours, theirs in zip(*map(jax.tree.leaves, (path, expected)), strict=True):
        np.testing.assert_array_equal(ours[4:7], ours[[3, 3, 3]])
        np.testing.assert_allclose(ours[3::4], theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_the_mean_is_exact_where_the_sum_is():
    """Powers of two: not a bit is lost, and the update is the large batch's own."""
    optimizer = accumulate(sgd(0.1), 4)
    zeros, update = np.zeros(2, np.float32), jax.jit(optimizer.update)
    opt_state = operations(optimizer.init)(zeros)
    for g in (1.0, 0.5, -2.0, 4.0):
        updates, opt_state = update(np.float32([g, 2 * g]), opt_state)
    expected, _ = operations(sgd(0.1).update)(np.float32([0.875, 1.75]), operations(sgd(0.1).init)(zeros))
    np.testing.assert_array_equal(updates, expected)
    assert not np.any(opt_state.total)


def test_compiles_once_and_may_be_donated():
    params, traces = {"w": np.ones(3, np.float32), "b": np.ones(2, np.float32)}, []
    optimizer = accumulate(chain(clip_by_value(1.0), adam(schedules.inverse_time(0.1, rate=1.0))), 2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, grads):
        traces.append(1)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return apply_updates(params, updates), opt_state

    grads, params = params, jax.device_put(params)
    opt_state = optimizer.init(params)
    rates = []
    for _ in range(6):
        params, opt_state = step(params, opt_state, grads)
        rates.append(float(opt_state.learning_rate))
    assert len(traces) == 1
    assert (opt_state.step, opt_state.batches) == (3, 0)
    np.testing.assert_allclose(
        rates, [0.1, 0.1, 0.1, 0.05, 0.05, 0.1 / 3], rtol=1e-6
    )  # asked with updates, not batches


def test_under_vmap_with_counts_that_differ():
    """Two members, one of them a batch ahead: each moves when its own four have come."""
    optimizer, grads = accumulate(sgd(1.0), 2), np.float32([[1.0], [3.0]])
    states = evaluated(jax.vmap(optimizer.init))(grads)
    ahead = np.array([0, 1], np.float32)  # a batch of weight 1 whose gradient was 0
    states = states._replace(batches=np.array([0, 1], np.int32), unit=ahead, weight=ahead)
    updates, states = jax.jit(jax.vmap(optimizer.update))(grads, states)
    np.testing.assert_array_equal(updates, [[0], [-1.5]])
    np.testing.assert_array_equal(states.step, [0, 1])


def test_a_nan_ends_with_its_update():
    optimizer = accumulate(sgd(1.0), 2)
    opt_state, taken = operations(optimizer.init)(np.zeros(1, np.float32)), []
    for g in (math.nan, 1.0, 1.0, 1.0):
        updates, opt_state = operations(optimizer.update)(np.float32([g]), opt_state)
        taken.append(float(updates[0]))
    np.testing.assert_array_equal(taken, [0, math.nan, 0, -1])


def test_low_precision_is_summed_in_float32():
    """In bfloat16 256 + 1 is 256: of 257 ones the mean would be less than 1."""
    optimizer = accumulate(sgd(1.0), 512)
    one = np.ones(1, jnp.bfloat16)
    step = lambda state, _: optimizer.update(one, state)[::-1]
    opt_state, updates = jax.jit(lambda: jax.lax.scan(step, optimizer.init(one), length=512))()
    assert updates.dtype == jnp.bfloat16
    assert np.asarray(updates)[-1, 0] == -1
    assert opt_state.total.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_around_an_optimizer_of_optax(dtype):
    optax = pytest.importorskip("optax", reason="optax's optimizers are the other side of the protocol")
    params = {"w": np.ones(3, jnp.dtype(dtype))}
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = accumulate(optax.adam(0.1), 2), optax.adam(0.1)
        opt_state = operations(ours.init)(params)
        for scale in (1, 3):
            grads = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
            updates, opt_state = operations(ours.update)(grads, opt_state, params)
        mean = {"w": np.full(3, 2.0, jnp.dtype(dtype))}
        expected, _ = operations(theirs.update)(mean, operations(theirs.init)(params), params)
    np.testing.assert_array_equal(updates["w"], expected["w"])
    assert (opt_state.step, opt_state.learning_rate) == (1, None)


# ---------------------------------------------------------------- in training


def test_fit_with_small_batches_is_fit_with_large_ones_and_goes_on_where_it_stopped():
    x = np.random.default_rng(3).normal(size=(64, 3)).astype(np.float32)
    data = x, np.sin(x)
    rule = chain(clip_by_global_norm(0.5), adamw(0.01))
    net, small = mlp([8, 3], tanh), accumulate(rule, 4)
    run = functools.partial(fit, net, losses.mse, data=data, shuffle=False)
    ours = run(small, key=0, epochs=4, batch_size=8).train_state
    large = run(rule, key=0, epochs=4, batch_size=32).train_state
    assert (ours.step, ours.opt_state.step, large.opt_state.step) == (32, 8, 8)
    for a, b in zip(*(jax.tree.leaves(state.params) for state in (ours, large)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    # 24 examples are three batches: the halves meet in the middle of an update
    odd = functools.partial(run, small, data=(x[:24], np.sin(x[:24])), batch_size=8)
    whole, half = odd(key=0, epochs=4).train_state, odd(key=0, epochs=2).train_state
    assert half.opt_state.batches == 2
    resumed = odd(epochs=2, train_state=half).train_state
    for a, b in zip(*map(jax.tree.leaves, (resumed.params, whole.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    slower = half._replace(opt_state=half.opt_state._replace(learning_rate=-0.1))
    with pytest.raises(ValueError, match=r"opt_state\.learning_rate must be at least 0"):
        odd(epochs=1, train_state=slower)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: clip_by_global_norm(0.0), ValueError, "clip_by_global_norm: max_norm must be above 0"),
        (lambda: clip_by_global_norm(math.nan), ValueError, "clip_by_global_norm: max_norm"),
        (lambda: clip_by_global_norm("1"), TypeError, "clip_by_global_norm: max_norm must be a number"),
        (lambda: clip_by_value(-1.0), ValueError, "clip_by_value: limit must be above 0"),
        (lambda: chain(), ValueError, "chain: give at least one part"),
        (lambda: chain(clip_by_value(1.0), adam), TypeError, "chain: part 1 must have init and update.*parentheses"),
        (lambda: chain([sgd(0.1)]), TypeError, "chain: part 0 must have init and update"),
        (lambda: accumulate(adam, 2), TypeError, "accumulate: optimizer must have init and update.*parentheses"),
        (lambda: accumulate(adam(0.1), 0), ValueError, "accumulate: steps must be at least 1"),
        (lambda: accumulate(adam(0.1), 2.5), TypeError, "accumulate: steps must be a whole number"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
