"""The derivative of a training: by differences, forward = reverse, in little memory; and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy

import jaxnn
from jaxnn import adam, init_train_state, losses, metagradient, mlp, penalties, run, sgd, tanh, train_step
from jaxnn import schedules as rates
from jaxnn.optimizers import parts
from jaxnn.training import steps

DIFFERENCES = 1e-6  # central ones in float64, of the largest of their kind
AGREEMENT = 1e-12  # of forward and reverse mode in float64
N, D, BATCH, EPOCHS = 7, 3, 3, 2  # batches of 3, 3 and 1

RNG = np.random.default_rng(0)
X, XV = RNG.normal(size=(N, D)), RNG.normal(size=(5, D))
X[:, 2] = 0  # a pixel that is always blank: its weights have gradients of exactly 0
Y, YV = RNG.normal(size=(N, 2)), RNG.normal(size=(5, 2))
LABELS, LABELS_V = RNG.integers(0, 2, N).astype(np.int32), RNG.integers(0, 2, 5).astype(np.int32)
WEIGHTS = RNG.uniform(0.5, 2, N)
NET = mlp([3, 2], tanh)


def training(optimizer, *, net=NET, loss=losses.mse, penalty=None, epochs=EPOCHS, **settings):
    return run(train_step(net, loss, optimizer, penalty=penalty), epochs=epochs, batch_size=BATCH, **settings)


def of_sgd(rate, momentum, strength):
    return training(sgd(rate, momentum=momentum), penalty=penalties.l2(strength))


def of_adam(rate, b2, strength):
    return training(adam(rate, b2=b2, eps=1e-3), penalty=penalties.l2(strength))


CASES = {  # make, the optimizer of the state, which has the same rate, and settings
    "sgd": (of_sgd, sgd(0.1, momentum=0.5), {"rate": 0.1, "momentum": 0.5, "strength": 0.01}),
    "adam": (of_adam, adam(0.02), {"rate": 0.02, "b2": 0.9, "strength": 0.01}),
}


def start(optimizer, net=NET, dtype=np.float64):
    return init_train_state(net, optimizer, 0, (D,), dtype)


def data(loss=losses.mse):
    """(x, target), and the validation set."""
    classes = loss is not losses.mse
    return ((X, LABELS), (XV, LABELS_V)) if classes else ((X, Y), (XV, YV))


def by_differences(make, state, settings, loss=losses.mse, examples=range(N)):
    """∂F/∂setting by name and ∂F/∂wₙ of the examples, by central differences of fourth order."""
    names = list(settings)
    at = np.array([*settings.values(), *WEIGHTS])
    (x, target), validation = data(loss)

    def figure(at):
        made = make(**dict(zip(names, at, strict=False)))
        result = made(state, (x, target, at[len(names) :]), validation)
        return result.history["validation_loss"][result.epochs_run - 1]

    moved = [*range(len(names)), *(len(names) + n for n in examples)]
    h = 1e-3 * np.abs(at[moved])
    grid = np.stack(
        [at + k * step * np.eye(len(at))[i] for i, step in zip(moved, h, strict=True) for k in (-2, -1, 1, 2)]
    )
    f = np.asarray(by_numpy(jax.vmap(figure))(grid)).reshape(-1, 4)
    slopes = (f[:, 0] - 8 * f[:, 1] + 8 * f[:, 2] - f[:, 3]) / (12 * h)
    return dict(zip(names, slopes, strict=False)), slopes[len(names) :]


def found_by(make, state, settings, loss=losses.mse, weights=WEIGHTS, **options):
    parts, validation = data(loss)
    program = metagradient(make, **options)
    return by_numpy(lambda values: program(state, (*parts, weights), validation, **values))(settings)


@functools.cache
def derived(case, **options):
    with jax.enable_x64(True):
        make, optimizer, settings = CASES[case]
        return found_by(make, start(optimizer), settings, **options)


@pytest.mark.parametrize("case", CASES)
def test_reverse_mode_equals_central_differences(case):
    """Of settings and of weights; the state was made with the same rate, and one input is always 0."""
    with jax.enable_x64(True):
        make, optimizer, settings = CASES[case]
        by_settings, by_weights = by_differences(make, start(optimizer), settings)
    found = derived(case)
    assert set(found.settings) == set(settings)
    for name, slope in by_settings.items():
        assert found.settings[name] == pytest.approx(slope, rel=DIFFERENCES), name
    np.testing.assert_allclose(found.weights, by_weights, rtol=0, atol=DIFFERENCES * np.abs(by_weights).max())
    assert found.figure.dtype == found.weights.dtype == np.float64


@pytest.mark.parametrize("case", CASES)
def test_forward_mode_equals_reverse_mode(case):
    with jax.enable_x64(True):
        make, optimizer, settings = CASES[case]
        chosen = found_by(make, start(optimizer), settings, mode="forward", examples=(4, 0))
    found = derived(case)
    for name, slope in found.settings.items():
        assert chosen.settings[name] == pytest.approx(slope, rel=AGREEMENT), name
    largest = np.abs(found.weights).max()
    np.testing.assert_allclose(chosen.weights, found.weights[[4, 0]], rtol=0, atol=AGREEMENT * largest)
    assert chosen.figure == pytest.approx(found.figure, rel=AGREEMENT)


# ---------------------------------------------------------------- what a setting may be

DROPS = lambda p: jaxnn.serial(jaxnn.dense(4), tanh, jaxnn.dropout(p), jaxnn.dense(2))
NORMED = lambda m: jaxnn.serial(jaxnn.dense(3), jaxnn.batch_norm(momentum=m), tanh, jaxnn.dense(2))
CHAIN = jaxnn.chain(jaxnn.clip_by_global_norm(0.5), sgd(0.1))
COSINE = lambda initial, final: sgd(rates.cosine(initial, steps=6, final=final))
KIN = {  # make, the state's optimizer, settings; loss, network
    "weight decay": (lambda d: training(jaxnn.adamw(0.02, weight_decay=d)), jaxnn.adamw(0.02), {"d": 0.1}),
    "b1, eps": (lambda b1, eps: training(adam(0.02, b1=b1, eps=eps)), adam(0.02), {"b1": 0.8, "eps": 1e-2}),
    "rmsprop": (
        lambda rate, rho: training(jaxnn.rmsprop(rate, rho=rho)),
        jaxnn.rmsprop(0.02),
        {"rate": 0.02, "rho": 0.9},
    ),
    "adagrad": (lambda rate: training(jaxnn.adagrad(rate)), jaxnn.adagrad(0.02), {"rate": 0.02}),
    "in a chain": (
        lambda c, rate: training(jaxnn.chain(jaxnn.clip_by_global_norm(c), sgd(rate))),
        CHAIN,
        {"c": 0.5, "rate": 0.1},
    ),
    "accumulated": (
        lambda rate: training(jaxnn.accumulate(sgd(rate), 2)),
        jaxnn.accumulate(sgd(0.1), 2),
        {"rate": 0.1},
    ),
    "schedule": (lambda a, b: training(COSINE(a, b)), COSINE(0.1, 0.01), {"a": 0.1, "b": 0.01}),
    "elastic net": (
        lambda a, b: training(sgd(0.1), penalty=penalties.elastic_net(a, b)),
        sgd(0.1),
        {"a": 0.01, "b": 0.02},
    ),
    "drop rate": (lambda p: training(sgd(0.1), net=DROPS(p)), sgd(0.1), {"p": 0.3}, losses.mse, DROPS(0.3)),
    "batch norm": (lambda m: training(sgd(0.1), net=NORMED(m)), sgd(0.1), {"m": 0.5}, losses.mse, NORMED(0.5)),
    "smoothing": (
        lambda s: training(sgd(0.1), loss=losses.label_smoothing(s)),
        sgd(0.1),
        {"s": 0.1},
        losses.label_smoothing(),
    ),
    "by autodiff": (
        lambda rate: run(
            train_step(NET, losses.mse, sgd(rate), gradient=jaxnn.autodiff), epochs=EPOCHS, batch_size=BATCH
        ),
        sgd(0.1),
        {"rate": 0.1},
    ),
    "plateau": (
        lambda rate: training(sgd(rate), epochs=6, plateau=jaxnn.stopping.reduce_on_plateau(0.5, patience=1)),
        sgd(0.1),
        {"rate": 0.4},
    ),
}


FAST = {"weight decay", "b1, eps", "in a chain", "schedule"}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in FAST else pytest.mark.long) for kind in KIN])
def test_no_setting_is_cut_off_from_the_derivative(kind):
    make, optimizer, settings, loss, net = (*KIN[kind], *(losses.mse, NET)[len(KIN[kind]) - 3 :])
    with jax.enable_x64(True):
        state = start(optimizer, net)
        found = found_by(make, state, settings, loss, examples=(1,))
        by_settings, by_weights = by_differences(make, state, settings, loss, examples=(1,))
    for name, slope in by_settings.items():
        assert abs(slope) > 1e-4, name
        assert found.settings[name] == pytest.approx(slope, rel=DIFFERENCES), name
    assert found.weights == pytest.approx(by_weights, rel=DIFFERENCES, abs=1e-9)


def test_a_rate_that_is_cut_off_is_noticed(monkeypatch):
    """Where the rate of the state is equal to the optimizer's and wins, the derivative is 0, and a test above fails."""

    def before(optimizer, opt_state, params):
        rate, given = parts._rate_given_by(optimizer, params)
        same = opt_state.given == given.astype(opt_state.given.dtype)
        return opt_state._replace(learning_rate=jnp.where(same, opt_state.learning_rate, rate), given=given)

    right = derived("sgd")
    monkeypatch.setattr(steps, "with_rate_of", before)
    with jax.enable_x64(True):
        make, optimizer, settings = CASES["sgd"]
        wrong = found_by(make, start(optimizer), settings, mode="forward")
    assert wrong.settings["rate"] == 0 != right.settings["rate"]
    assert wrong.settings["momentum"] == pytest.approx(right.settings["momentum"], rel=AGREEMENT)


def test_a_root_without_its_own_slope_is_noticed(monkeypatch):
    """√r at r = 0 has the slope ∞, which made every derivative of Adam NaN where an input is always 0."""
    monkeypatch.setattr("jaxnn.optimizers.adaptive._root", jnp.sqrt)
    with jax.enable_x64(True):
        make, optimizer, settings = KIN["b1, eps"]
        assert np.isnan(found_by(make, start(optimizer), settings, mode="forward").settings["b1"])


def test_arrays_of_floats_are_settings():
    """One rate for each epoch: the derivative by one number for all of them is the sum."""

    def make(each):
        return training(sgd(lambda step: each[step // 3]))

    with jax.enable_x64(True):
        state = start(sgd(lambda step: jnp.full((), 0.1)))
        reverse = found_by(make, state, {"each": np.full(EPOCHS, 0.1)}, examples=())
        forward = found_by(make, state, {"each": np.full(EPOCHS, 0.1)}, mode="forward")
        one = found_by(lambda rate: training(sgd(rate)), start(sgd(0.1)), {"rate": 0.1}, examples=())
    assert reverse.settings["each"].shape == (EPOCHS,)
    assert reverse.weights is None
    np.testing.assert_allclose(forward.settings["each"], reverse.settings["each"], rtol=AGREEMENT)
    assert reverse.settings["each"].sum() == pytest.approx(one.settings["rate"], rel=AGREEMENT)


# ---------------------------------------------------------------- weights


def test_examples_and_directions_are_parts_of_all_weights():
    direction = RNG.normal(size=N)
    for mode in ("reverse", "forward"):
        along = derived_along(mode, tuple(direction))
        assert along.weights == pytest.approx(direction @ derived("sgd").weights, rel=AGREEMENT)
        assert along.settings["rate"] == pytest.approx(derived("sgd").settings["rate"], rel=AGREEMENT)
    some = derived("sgd", examples=(5, 2))
    np.testing.assert_allclose(some.weights, derived("sgd").weights[[5, 2]], rtol=AGREEMENT)


def derived_along(mode, direction):
    with jax.enable_x64(True):
        make, optimizer, settings = CASES["sgd"]
        return found_by(make, start(optimizer), settings, mode=mode, direction=np.array(direction))


def test_data_without_weights_have_weights_of_one():
    with jax.enable_x64(True):
        make, optimizer, settings = CASES["sgd"]
        state, program = start(optimizer), metagradient(make)
        bare = by_numpy(lambda values: program(state, (X, Y), (XV, YV), **values))(settings)
        ones = found_by(make, state, settings, weights=np.ones(N, np.int32))
    for a, b in zip(jax.tree.leaves(bare[:3]), jax.tree.leaves(ones[:3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=AGREEMENT)
    # twice the weight of everything changes no mean, and each batch is one: ∂F/∂w is orthogonal to w, as all are 1
    assert abs(bare.weights.sum()) < AGREEMENT * np.abs(bare.weights).max() * N


def test_an_example_of_weight_0_has_no_derivative():
    weights = np.where(np.arange(N) == 3, 0.0, WEIGHTS)
    tiny = np.where(np.arange(N) == 3, 1e-9, WEIGHTS)
    with jax.enable_x64(True):
        make, optimizer, settings = CASES["sgd"]
        state = start(optimizer)
        found, near = (found_by(make, state, settings, weights=w, examples=(3, 0)) for w in (weights, tiny))
    assert np.isnan(found.weights).tolist() == [True, False]
    assert found.weights[1] == pytest.approx(near.weights[1], rel=1e-6)
    assert np.isfinite(near.weights[0])
    assert near.weights[0] != 0


# ---------------------------------------------------------------- which figure


def test_a_figure_is_that_of_the_last_epoch_that_was_run():
    stop = jaxnn.stopping.early_stopping(patience=1)
    make = lambda rate: training(sgd(rate), epochs=9, stopping=stop)
    with jax.enable_x64(True):
        state = start(sgd(0.5))
        found = found_by(make, state, {"rate": 0.5}, mode="forward")
        ran = int(found.run.epochs_run)
        last = lambda result: result.history["validation_loss"][ran - 1]
        short = found_by(lambda rate: training(sgd(rate), epochs=ran), state, {"rate": 0.5}, mode="forward", of=last)
    assert ran < 9
    assert np.isnan(found.run.history["loss"][ran:]).all()
    assert found.figure == found.run.history["validation_loss"][ran - 1] == short.figure
    assert found.settings["rate"] == pytest.approx(short.settings["rate"], rel=AGREEMENT)


def test_a_step_of_ones_own():
    """Gradient descent written by hand is `sgd`, weights included where the data have them."""

    def of_own(rate):
        def step(state, batch):
            x, target, weights = batch
            cost = lambda params: (
                (weights * losses.mse.value(NET.forward(params, (), x)[0], target)).sum() / weights.sum()
            )
            loss, grads = jax.value_and_grad(cost)(state.params)
            return state._replace(params=jax.tree.map(lambda p, g: p - rate * g, state.params, grads)), {"loss": loss}

        def evaluate(state, validation):
            x, target = validation
            return {"loss": losses.mse.value(NET.forward(state.params, (), x)[0], target).mean()}

        return run(step, epochs=EPOCHS, batch_size=BATCH, evaluate=evaluate)

    with jax.enable_x64(True):
        state = start(sgd(0.1))
        own = found_by(of_own, state, {"rate": 0.1})
        ours = found_by(lambda rate: training(sgd(rate)), state, {"rate": 0.1})
    assert own.settings["rate"] == pytest.approx(ours.settings["rate"], rel=AGREEMENT)
    np.testing.assert_allclose(own.weights, ours.weights, rtol=0, atol=AGREEMENT * np.abs(ours.weights).max())


# ---------------------------------------------------------------- a pure function


def test_under_vmap_each_row_is_its_own():
    make = lambda rate: training(sgd(rate))
    program = metagradient(make, recompute=False)
    with jax.enable_x64(True):
        state = start(sgd(0.1))
        slope = by_numpy(jax.vmap(lambda rate: program(state, (X, Y), (XV, YV), rate=rate)[1:3]))
        by_rate, by_weights = slope(np.array([0.2, 0.1]))
        alone = found_by(make, state, {"rate": 0.1}, weights=np.ones(N))
    np.testing.assert_allclose(by_rate["rate"][1], alone.settings["rate"], rtol=AGREEMENT)
    np.testing.assert_allclose(by_weights[1], alone.weights, rtol=0, atol=AGREEMENT * np.abs(alone.weights).max())
    assert by_rate["rate"][0] != by_rate["rate"][1]


@pytest.mark.long
def test_the_derivative_of_the_derivative():
    """∂²F/∂rate², and ∂²F/∂rate∂wₙ, by differences of the first."""
    program = metagradient(lambda rate: training(sgd(rate)))
    with jax.enable_x64(True):
        state, h = start(sgd(0.1)), 1e-4
        slope = lambda rate: program(state, (X, Y), (XV, YV), rate=rate)[1:3]
        _, further = by_numpy(lambda rate: jax.jvp(slope, (rate,), (jnp.ones_like(rate),)))(np.float64(0.1))
        ends = by_numpy(jax.vmap(slope))(np.array([0.1 - h, 0.1 + h]))
    for found, end in zip(jax.tree.leaves(further), jax.tree.leaves(ends), strict=True):
        np.testing.assert_allclose(found, (end[1] - end[0]) / (2 * h), rtol=0, atol=1e-5 * np.abs(found).max())


def test_it_is_a_value():
    one = metagradient(of_sgd, of="loss")
    assert one == metagradient(of_sgd, of="loss")
    assert hash(one) == hash(metagradient(of_sgd, of="loss"))
    assert one != dataclasses.replace(one, mode="forward")
    assert "of='loss'" in repr(one)
    hash(metagradient(of_sgd, direction=np.ones(3)))  # `jax.jit` asks for it
    assert repr(derived("sgd")).startswith("Metagradient(figure ")


# ---------------------------------------------------------------- memory

STEPS = 2_000
WAYS = {"one epoch": (1, STEPS * BATCH - 1), "forty epochs": (40, STEPS // 40 * BATCH - 1)}  # the last batch has two


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_two_thousand_steps_in_a_tenth_of_the_memory(way):
    epochs, n = WAYS[way]
    x = np.linspace(-1, 1, n * D, dtype=np.float32).reshape(n, D)
    net = mlp([32, 2], tanh)  # large enough that its states, and not the orders of the examples, are what is kept
    state, target = start(sgd(0.1, momentum=0.5), net, np.float32), x[:, :2] ** 2

    def program(recompute):
        make = lambda rate: training(sgd(rate, momentum=0.5), net=net, epochs=epochs)
        program = metagradient(make, of="loss", recompute=recompute)
        found = jax.jit(lambda rate, target: program(state, (x, target), rate=rate)[:3])
        return found.lower(np.float32(0.1), target).compile()

    plain, less = map(program, (False, True))
    temporary = [compiled.memory_analysis().temp_size_in_bytes for compiled in (plain, less)]
    assert temporary[1] <= temporary[0] / 10
    for a, b in zip(*(jax.tree.leaves(compiled(np.float32(0.1), target)) for compiled in (plain, less)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(a).max())  # of float32, over 2,000 steps
