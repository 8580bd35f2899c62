"""Schedules at their ends, and between them: to the bit, whatever a compiler makes of the arithmetic."""

import itertools
import math

import by_numpy as numpy_rules
import jax
import numpy as np
import pytest
from by_numpy import by_numpy

import jaxnn
from jaxnn import schedules

LAST = 2**31 - 1
both_precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])

# Schedule, the rates that it was made with by the step at which it has them, and the lowest and the highest of all.
PROMISED = {
    "constant": (schedules.constant(0.1), {0: 0.1, 9: 0.1}, (0.1, 0.1)),
    "warmup": (schedules.warmup(5, schedules.constant(0.1)), {0: 0.0, 5: 0.1, 6: 0.1}, (0.0, 0.1)),
    "warmup that falls": (schedules.warmup(7, schedules.constant(0.1), initial=0.3), {0: 0.3, 7: 0.1}, (0.1, 0.3)),
    "warmup, then cosine": (
        schedules.warmup(13, schedules.cosine(0.3, steps=17, final=0.001), initial=0.01),
        {0: 0.01, 13: 0.3, 30: 0.001, 31: 0.001},
        (0.001, 0.3),
    ),
    "warmup, then steps": (
        schedules.warmup(3, schedules.step_decay(0.7, factor=0.3, every=4)),
        {0: 0.0, 3: 0.7, 6: 0.7},
        (0.0, 0.7),
    ),
    "warmup, then exponential": (
        schedules.warmup(3, schedules.exponential(0.7, factor=0.9)),
        {0: 0.0, 3: 0.7},
        (0.0, 0.7),
    ),
    "line up": (schedules.polynomial(0.0, final=0.3, steps=9), {0: 0.0, 9: 0.3, 10: 0.3}, (0.0, 0.3)),
    "line down": (schedules.polynomial(0.3, final=0.0, steps=9), {0: 0.3, 9: 0.0, 10: 0.0}, (0.0, 0.3)),
    "polynomial up": (schedules.polynomial(0.001, final=0.3, steps=11, power=1.7), {0: 0.001, 11: 0.3}, (0.001, 0.3)),
    "polynomial down": (schedules.polynomial(0.7, final=0.001, steps=11, power=0.3), {0: 0.7, 11: 0.001}, (0.001, 0.7)),
    "cosine": (schedules.cosine(0.7, steps=23), {0: 0.7, 23: 0.0, 24: 0.0}, (0.0, 0.7)),
    "cosine up": (schedules.cosine(0.01, steps=23, final=0.7), {0: 0.01, 23: 0.7}, (0.01, 0.7)),
    "level": (schedules.polynomial(0.1, final=0.1, steps=7), {0: 0.1, 3: 0.1, 7: 0.1}, (0.1, 0.1)),
    "step": (schedules.step_decay(0.7, factor=0.3, every=4), {0: 0.7, 3: 0.7}, (0.0, 0.7)),
    "step up": (schedules.step_decay(0.7, factor=1.3, every=4), {0: 0.7, 3: 0.7}, (0.7, math.inf)),
    "exponential": (schedules.exponential(0.7, factor=0.9999999), {0: 0.7}, (0.0, 0.7)),
    "exponential up": (schedules.exponential(0.7, factor=1.0000001), {0: 0.7}, (0.7, math.inf)),
    "nothing that grows": (schedules.exponential(0.0, factor=9.0), {0: 0.0, 99: 0.0}, (0.0, 0.0)),
    "inverse time": (schedules.inverse_time(0.7, rate=1e-9), {0: 0.7}, (0.0, 0.7)),
    "piecewise": (
        schedules.piecewise([0.3, 0.1, 0.7], boundaries=[3, 9]),
        {0: 0.3, 2: 0.3, 3: 0.1, 8: 0.1, 9: 0.7},
        (0.1, 0.7),
    ),
    "joined": (
        schedules.joined(
            [schedules.warmup(3, schedules.constant(0.2)), schedules.cosine(0.1, steps=7), schedules.constant(0.05)],
            [5, 12],
        ),
        {0: 0.0, 3: 0.2, 4: 0.2, 5: 0.1, 12: 0.05, 13: 0.05},
        (0.0, 0.2),
    ),
    "warmup, then joined": (
        schedules.warmup(
            4, schedules.joined([schedules.polynomial(0.3, final=0.1, steps=5), schedules.constant(0.7)], [6])
        ),
        {0: 0.0, 4: 0.3, 9: 0.1, 10: 0.7},
        (0.0, 0.7),
    ),
}
HALVED = {  # by a factor that rounds nothing
    f"half of {name}": (
        schedules.scaled(schedule, 0.5),
        {t: rate / 2 for t, rate in promised.items()},
        (low / 2, high / 2),
    )
    for name, (schedule, promised, (low, high)) in PROMISED.items()
}
STEPS = np.arange(100, dtype=np.int32)


def check(rates, promised, limits, dtype):
    low, high = np.asarray(limits, dtype)
    assert rates.dtype == dtype
    for t, rate in promised.items():
        assert rates[t] == np.asarray(rate, dtype), f"{rate} at step {t}"
    assert np.all((low <= rates) & (rates <= high))


@both_precisions
def test_a_compiled_schedule_keeps_its_promises(dtype: str):
    table = PROMISED | HALVED
    with jax.enable_x64(dtype == "float64"):

        def at(step):
            return {name: schedule(step) for name, (schedule, *_) in table.items()}

        def walk(step, _):
            return step + 1, at(step)

        found = jax.jit(lambda t: jax.lax.scan(walk, t, length=len(STEPS))[1])(np.int32(0))
        at_once = jax.jit(jax.vmap(at))(STEPS)
        for name, (_, promised, limits) in table.items():
            check(np.asarray(found[name]), promised, limits, dtype)
            check(np.broadcast_to(at_once[name], STEPS.shape), promised, limits, dtype)


@pytest.mark.parametrize("name", ["warmup", "warmup that falls", "polynomial up", "cosine up", "step up", "joined"])
def test_so_does_one_that_is_called(name: str):
    schedule, promised, _ = PROMISED[name]
    for t, rate in promised.items():
        assert float(schedule(t)) == np.float32(rate)
        assert float(schedule(np.int64(t))) == np.float32(rate)
        assert float(schedule(float(t))) == np.float32(rate)


# ---------------------------------------------------------------- whatever the arithmetic

ARITHMETIC = {"pow": np.power} | {
    name: numpy_rules.ELEMENTWISE[name]
    for name in ("add", "sub", "mul", "div", "sin", "square", "exp", "expm1", "log", "log1p")
}
WAYS = {
    "up": lambda shape: np.ones(shape, bool),
    "down": lambda shape: np.zeros(shape, bool),
    "both": lambda shape: np.random.default_rng(0).random(shape) < 0.5,
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def off_by_a_unit(monkeypatch: pytest.MonkeyPatch, way: str):
    """Every result of float arithmetic is off by one unit in the last place, as fused or reordered operations are."""

    def off(f):
        def run(*args):
            exact = np.asarray(f(*args))
            if exact.dtype.kind != "f" or (f is np.multiply and not exact.any()):  # nothing rounds 0 times a number
                return exact
            return np.where(WAYS[way](exact.shape), np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf))

        return run

    for name, f in ARITHMETIC.items():
        monkeypatch.setitem(numpy_rules.ELEMENTWISE, name, off(f))


@every_way
@both_precisions
@pytest.mark.usefixtures("off_by_a_unit")
def test_the_ends_do_not_hang_on_how_sums_are_rounded(dtype: str):
    with jax.enable_x64(dtype == "float64"):
        for schedule, promised, limits in PROMISED.values():
            check(np.broadcast_to(by_numpy(jax.vmap(schedule))(STEPS), STEPS.shape), promised, limits, dtype)


@every_way
@pytest.mark.usefixtures("off_by_a_unit")
def test_nor_on_the_numbers():
    rng = np.random.default_rng(1)
    for steps, peak in itertools.product((1, 2, 3, 5, 7, 10, 33, 97), rng.uniform(0, 1, 4)):
        for initial in (0.0, float(rng.uniform(0, 1))):
            ends = {0: initial, steps: peak, steps + 1: peak}
            made = (
                schedules.warmup(steps, schedules.constant(peak), initial=initial),
                schedules.polynomial(initial, final=peak, steps=steps),
                schedules.cosine(initial, steps=steps, final=peak),
            )
            for schedule in made:
                check(by_numpy(jax.vmap(schedule))(STEPS), ends, sorted((initial, peak)), "float32")


WARM = schedules.warmup(5, schedules.constant(0.1))
OPTIMIZERS = {
    "gradient_descent": jaxnn.gradient_descent(WARM),
    "sgd": jaxnn.sgd(WARM, momentum=0.9, nesterov=True),
    "adagrad": jaxnn.adagrad(WARM),
    "rmsprop": jaxnn.rmsprop(schedules.joined([WARM, schedules.polynomial(0.1, final=0.0, steps=3)], [5])),
    "adam": jaxnn.adam(schedules.scaled(WARM, 0.3)),
    "adamw": jaxnn.adamw(schedules.polynomial(0.1, final=0.0, steps=5)),
    "chain": jaxnn.chain(jaxnn.clip_by_global_norm(1.0), jaxnn.sgd(schedules.cosine(0.1, steps=5))),
    "accumulate": jaxnn.accumulate(jaxnn.sgd(WARM), 1),
}


@pytest.mark.parametrize("way", ["down", "both"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.usefixtures("off_by_a_unit")
def test_no_optimizer_meets_a_rate_below_0(name: str):
    optimizer, params = OPTIMIZERS[name], {"w": np.array([1.0, -2.0], np.float32)}
    opt_state, update = optimizer.init(params), by_numpy(optimizer.update)
    for t in range(8):
        updates, opt_state = update(params, opt_state, params)
        assert np.all(np.isfinite(updates["w"])), t
        assert opt_state.learning_rate >= 0


def test_a_warmup_trains():
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    net, optimizer = jaxnn.dense(1), jaxnn.sgd(WARM)
    fit = jaxnn.fit(net, jaxnn.losses.mse, optimizer, (x, 2 * x), key=0, epochs=10, batch_size=4)
    assert np.all(np.isfinite(fit.history["loss"]))
    assert fit.history["loss"][-1] < fit.history["loss"][0]
    assert float(fit.train_state.opt_state.learning_rate) == np.float32(0.1)


# ---------------------------------------------------------------- accuracy

LONG = 10_000
RISING = {  # in float64 by the formulas
    "warmup": (schedules.warmup(LONG, schedules.constant(0.1)), lambda s: 0.1 * s),
    "warmup from little": (
        schedules.warmup(LONG, schedules.constant(0.1), initial=1e-7),
        lambda s: 1e-7 + (0.1 - 1e-7) * s,
    ),
    "warmup that falls": (schedules.warmup(LONG, schedules.constant(0.0), initial=0.1), lambda s: 0.1 * (1 - s)),
    "line": (schedules.polynomial(0.0, final=0.1, steps=LONG), lambda s: 0.1 * s),
    "square": (schedules.polynomial(0.0, final=0.1, steps=LONG, power=2), lambda s: 0.1 * s * (2 - s)),
    "root": (schedules.polynomial(0.0, final=0.1, steps=LONG, power=0.5), lambda s: 0.1 * s / (1 + np.sqrt(1 - s))),
    "tenth root": (
        schedules.polynomial(0.0, final=0.1, steps=LONG, power=0.1),
        lambda s: -0.1 * np.expm1(0.1 * np.log1p(-np.minimum(s, 1 - 1e-300))),
    ),
    "cosine": (schedules.cosine(0.0, steps=LONG, final=0.1), lambda s: 0.1 * np.sin(math.pi / 2 * s) ** 2),
}
FLOAT32 = 1e-6  # eight units in the last place: the powers and sines are good to a few


def test_the_first_small_rates_have_all_their_digits():
    steps = np.arange(LONG, dtype=np.int32)
    found = jax.jit(jax.vmap(lambda t: {name: schedule(t) for name, (schedule, _) in RISING.items()}))(steps)
    for name, (_, formula) in RISING.items():
        np.testing.assert_allclose(found[name], formula(steps / LONG), rtol=FLOAT32, err_msg=name)
        assert np.all(np.diff(found[name]) * (-1 if name == "warmup that falls" else 1) >= -1e-8), name


# ---------------------------------------------------------------- every kind of step, and long ones


def lines(steps: int):
    """Of each kind, one that takes so long from 0.5 to 0.25, or the other way, and its rate in the middle."""
    return {
        "polynomial": (schedules.polynomial(0.5, final=0.25, steps=steps), 0.375),
        "cosine": (schedules.cosine(0.25, steps=steps, final=0.5), 0.375),
        "warmup": (schedules.warmup(steps, schedules.constant(0.5), initial=0.25), 0.375),
        "piecewise": (schedules.piecewise([0.5, 0.25], boundaries=[steps]), 0.5),
        "joined": (schedules.joined([schedules.constant(0.5), schedules.constant(0.25)], [steps]), 0.5),
        "step": (schedules.step_decay(0.5, factor=0.5, every=steps), 0.5),
        "exponential": (schedules.exponential(0.5, factor=0.5, every=steps), math.sqrt(0.125)),
        "inverse_time": (schedules.inverse_time(0.5, rate=1.0, every=steps), 1 / 3),
    }


@pytest.mark.parametrize("name", lines(1))
def test_as_many_steps_as_there_are(name: str):
    schedule, middle = lines(LAST)[name]
    first, half, last = by_numpy(jax.vmap(schedule))(np.array([0, LAST // 2, LAST], np.int32))
    assert {first, last} == {0.25, 0.5}
    assert half == pytest.approx(middle, rel=1e-6)


@pytest.mark.parametrize("name", lines(1))
@pytest.mark.parametrize("steps", [2 * LAST, 2**40])
def test_more_steps_than_there_are(name: str, steps: int):
    """Then the end is not reached, and the way there is as long as it was said to be."""
    schedule, middle = lines(steps)[name]
    first, last = by_numpy(jax.vmap(schedule))(np.array([0, LAST], np.int32))
    assert first in (0.25, 0.5)
    assert last == pytest.approx(middle if steps == 2 * LAST else first, rel=2e-3)
    with jax.enable_x64(True):
        first, half, last = by_numpy(jax.vmap(schedule))(np.array([0, steps // 2, steps]))
    assert {first, last} == {0.25, 0.5}
    assert half == pytest.approx(middle, rel=1e-6)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float16"])
def test_every_kind_of_step(kind: str):
    for name, (schedule, middle) in lines(1000).items():
        assert float(by_numpy(schedule)(np.asarray(100, kind))) == pytest.approx(
            float(by_numpy(schedule)(np.int32(100))), rel=1e-6
        ), name
        if kind == "float32":
            assert float(by_numpy(schedule)(np.float32(500.0))) == pytest.approx(middle, rel=1e-6), name


def test_a_step_beyond_the_last_is_the_last():
    late = schedules.polynomial(0.5, final=0.25, steps=10)
    assert float(late(2**40)) == float(late(np.int64(2**40))) == 0.25
    assert float(schedules.warmup(10, schedules.piecewise([0.5, 0.25], boundaries=[7]))(2**33)) == 0.25
