"""Losses: δ by hand = `jax.grad` = differences, values = formulas written out in NumPy, bad targets refused.

Most is evaluated by NumPy, operation by operation. What XLA compiles is held to it in float32, and gives the kinks,
the extremes and the NaNs of bad values: many of them in one program.
"""

from __future__ import annotations

import math
import os
import pydoc
import re
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated
from loss_cases import LOSS_CASES, SHAPES, LossCase

from jaxnn import Loss, losses

F64 = 1e-12  # worst entry over the largest: two routes in float64
F32 = 1e-5  # the same in float32
DIFFERENCES = 1e-6  # against central differences of step STEP in float64
STEP = 1e-6
FUSED = 1e-6  # a compiled program may round otherwise than the same operations one by one

FACTORIES = {"huber", "label_smoothing"}

cases = pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.name)
KEY = 0

CE, BCE = losses.softmax_cross_entropy, losses.sigmoid_binary_cross_entropy


def worst(a: Any, b: Any) -> float:
    """The largest difference, over the largest entry; NaN if there is one."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float64).tiny))


def gradient(loss: Loss) -> Any:
    return jax.grad(lambda prediction, target: loss.value(prediction, target).sum())


def all_routes(loss: Loss, prediction: Any, target: Any) -> tuple[Any, Any, Any]:
    value, back = jax.vjp(lambda prediction: loss.value(prediction, target), prediction)
    (by_grad,) = back(jnp.ones_like(value))  # jax.grad of the sum, without tracing the value once more
    return value, loss.delta(prediction, target), by_grad


@cache
def routes_of(loss: Loss) -> Any:
    """All routes, operation by operation: traced once for each shape and type."""
    return evaluated(partial(all_routes, loss))


@cache
def rule_of(loss: Loss, route: str) -> Any:
    """Its value or its δ, operation by operation."""
    return evaluated(getattr(loss, route))


def by_xla(pairs: dict[Any, tuple[Loss, np.ndarray, np.ndarray]]) -> dict[Any, Any]:
    """All routes of many losses at many places in one compiled program; under vmap where loss and shapes are the same.

    A program for each would take most of this file's time.
    """
    groups: dict[Any, list[Any]] = {}
    for name, (loss, prediction, target) in pairs.items():
        form = (loss, prediction.shape, prediction.dtype, target.shape, target.dtype)
        groups.setdefault(form, []).append(name)
    stacks = [tuple(np.stack([pairs[name][i] for name in names]) for i in (1, 2)) for names in groups.values()]

    @jax.jit
    def program(stacks: Any) -> Any:
        return [jax.vmap(partial(all_routes, loss))(*stack) for (loss, *_), stack in zip(groups, stacks, strict=True)]

    results = {}
    for names, routes in zip(groups.values(), jax.tree.map(np.asarray, program(stacks)), strict=True):
        results |= {name: tuple(route[i] for route in routes) for i, name in enumerate(names)}
    return results


# ---------------------------------------------------------------- the formulas, one example and time step at a time


def _softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / sum(np.exp(zi) for zi in z)


REFERENCES = {
    "mse": lambda y, t: np.mean((y - t) ** 2),
    "mae": lambda y, t: np.mean([abs(e) for e in y - t]),
    "huber": lambda y, t: np.mean([e * e / 2 if abs(e) <= 1 else abs(e) - 1 / 2 for e in y - t]),
    "huber(0.25)": lambda y, t: np.mean([e * e / 2 if abs(e) <= 0.25 else 0.25 * abs(e) - 1 / 32 for e in y - t]),
    "half_squared_error": lambda y, t: np.linalg.norm(y - t) ** 2 / 2,
    "hinge": lambda y, t: sum(max(0, 1 - ti * yi) for yi, ti in zip(y, t, strict=True)),
    "logistic": lambda y, t: sum(np.log(1 + np.exp(-t * y))),
    "sigmoid_binary_cross_entropy": lambda z, t: REFERENCES["binary_cross_entropy"](1 / (1 + np.exp(-z)), t),
    "binary_cross_entropy": lambda p, t: -sum(t * np.log(p) + (1 - t) * np.log(1 - p)),
    "multiclass_hinge": lambda y, t: sum(max(0, y[i] - y[t] + 1) for i in range(len(y)) if i != t),
    "softmax_cross_entropy": lambda z, t: -np.log(_softmax(z)[t]),
    "softmax_cross_entropy, distribution": lambda z, t: -sum(t * np.log(_softmax(z))),
    "label_smoothing": lambda z, t: -0.75 * np.log(_softmax(z)[t]) - 0.25 * np.mean([np.log(p) for p in _softmax(z)]),
    "label_smoothing, distribution": lambda z, t: sum(
        t[i] * REFERENCES["label_smoothing"](z, i) for i in range(len(z))
    ),
    "cross_entropy": lambda p, t: -np.log(p[t]),
    "cross_entropy, distribution": lambda p, t: -sum(t * np.log(p)),
}


def reference(case: LossCase, prediction: Any, target: Any) -> np.ndarray:
    """[N]: the mean over time of the formula."""
    y, t = np.asarray(prediction, np.float64), np.asarray(target)
    t = t.astype(np.float64) if t.dtype.kind == "f" else t
    y = y[:, None, None] if y.ndim == 1 else y.reshape(y.shape[0], -1, y.shape[-1])
    t = t.reshape(y.shape) if t.shape == np.shape(prediction) else t.reshape(y.shape[:2])
    return np.array(
        [np.mean([REFERENCES[case.name](y[n, s], t[n, s]) for s in range(y.shape[1])]) for n in range(len(y))]
    )


# ---------------------------------------------------------------- the laws, over every row


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        pytest.param(case, shape, id=f"{case.name} {shape}")
        for case in LOSS_CASES
        for shape in SHAPES
        if len(shape) != (1 if case.classes else 2)  # numbers [N, D] are compared in float32, below
    ],
)
def test_value_and_delta_by_independent_routes(case: LossCase, shape: tuple[int, ...]) -> None:
    @evaluated
    def routes(prediction: Any, target: Any) -> Any:
        # Perturbs one feature (and time step) of all examples at once: they do not depend on one another.
        features = math.prod(shape[1:])
        steps = STEP * np.eye(features, dtype=prediction.dtype).reshape(features, 1, *shape[1:])
        up, down = jax.vmap(lambda step: case.loss.value(prediction + step, target))(
            np.stack([steps, -steps]).reshape(-1, 1, *shape[1:])
        ).reshape(2, features, -1)
        return *all_routes(case.loss, prediction, target), ((up - down) / (2 * STEP)).T.reshape(shape)

    with jax.enable_x64(True):
        prediction, target = case.make(KEY, jnp.float64, shape)
        assert prediction.dtype == jnp.float64
        value, delta, by_grad, by_differences = jax.tree.map(np.asarray, routes(prediction, target))
        expected = reference(case, prediction, target)
    assert value.shape == shape[:1]
    assert worst(value, expected) <= F64
    assert delta.shape == shape
    assert worst(delta, by_grad) <= F64
    assert worst(delta, by_differences) <= DIFFERENCES


MEMBERS = 3


def members(case: LossCase) -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(map(np.asarray, case.make(KEY + i, jnp.float32))) for i in range(MEMBERS)]


def with_nan(case: LossCase) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first member with NaN in the prediction and, where it is of floats, with NaN in the target."""
    pairs = []
    for which, part in enumerate(members(case)[0]):
        if part.dtype.kind == "f":
            pairs.append([np.array(a) for a in members(case)[0]])
            pairs[-1][which][1, 2] = np.nan
    return list(map(tuple, pairs))


@cache
def singly_and_together() -> Any:
    """{name: all routes of the first member by itself, and of all and those with NaN under vmap}, in one program."""

    @jax.jit
    def program(stacks: Any) -> Any:
        return {
            case.name: (
                all_routes(case.loss, *(a[0] for a in stacks[case.name])),
                jax.vmap(partial(all_routes, case.loss))(*stacks[case.name]),
            )
            for case in LOSS_CASES
        }

    pairs = {case.name: [*members(case), *with_nan(case)] for case in LOSS_CASES}
    stacks = {name: tuple(map(np.stack, zip(*pairs[name], strict=True))) for name in pairs}
    return jax.tree.map(np.asarray, program(stacks))


@cases
def test_float32_jit_eager_and_vmap_agree(case: LossCase) -> None:
    eager = [routes_of(case.loss)(*member) for member in members(case)]
    singly, together = singly_and_together()[case.name]
    for i, routes in enumerate(eager):
        value, delta, by_grad = routes
        assert value.dtype == delta.dtype == jnp.float32
        assert worst(delta, by_grad) <= F32
        for one, all_at_once in zip(routes[:2], together[:2], strict=True):
            assert worst(all_at_once[i], one) <= FUSED
    assert worst(singly[1], singly[2]) <= F32
    assert worst(singly[0], reference(case, *members(case)[0])) <= F32
    for compiled, alone, member in zip(singly[:2], eager[0][:2], together[:2], strict=True):
        assert compiled.dtype == jnp.float32
        assert worst(alone, compiled) <= FUSED
        assert worst(member[0], compiled) <= FUSED
    if case.loss in (losses.mse, CE) or os.environ.get("JAXNN_OPTIMISED"):  # JAX's own eager operations, of a sample
        assert worst(case.loss.value(*members(case)[0]), singly[0]) <= FUSED
        assert worst(case.loss.delta(*members(case)[0]), singly[1]) <= FUSED


@cache
def at_kinks() -> Any:
    places = {}
    for case in LOSS_CASES:
        for i, kink in enumerate(case.kinks):
            prediction, target = np.asarray(kink.prediction, np.float32), numbers(kink.target)
            places[case.name, i] = case.loss, prediction, target
    return by_xla(places)


@cases
def test_kinks_and_delicate_places(case: LossCase) -> None:
    assert case.kinks
    for i, kink in enumerate(case.kinks):
        value, delta, by_grad = at_kinks()[case.name, i]
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(delta, np.asarray(kink.delta, np.float32))
        np.testing.assert_array_equal(by_grad, delta)


@cases
def test_nan_in_nan_out_and_only_there(case: LossCase) -> None:
    _, together = singly_and_together()[case.name]
    assert len(with_nan(case)) == 1 + (members(case)[0][1].dtype.kind == "f")
    for name, route in zip(("value", "δ", "jax.grad"), together, strict=True):
        expected, spoiled = route[0], route[MEMBERS:]
        assert len(spoiled) == len(with_nan(case))
        for dirty in spoiled:
            assert np.isnan(dirty[1] if name == "value" else dirty[1, 2]), name
            np.testing.assert_array_equal(np.delete(dirty, 1, 0), np.delete(expected, 1, 0), err_msg=name)


@cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_float32_rounded(case: LossCase, dtype: Any) -> None:
    prediction, target = map(np.asarray, case.make(KEY, dtype))
    full_target = target.astype(np.float32) if target.dtype == dtype else target
    run = routes_of(case.loss)
    value, delta, by_grad = run(prediction, target)
    full_value, full_delta, full_grad = run(prediction.astype(np.float32), full_target)
    assert value.dtype == jnp.float32
    assert delta.dtype == by_grad.dtype == dtype
    assert worst(value, full_value) <= FUSED
    assert worst(delta, full_delta) <= float(jnp.finfo(dtype).eps)
    assert worst(by_grad, full_grad) <= float(jnp.finfo(dtype).eps)


@cases
def test_second_derivatives_agree(case: LossCase) -> None:
    @evaluated
    def both(prediction: Any, target: Any, direction: Any) -> Any:
        return [
            jax.jvp(lambda y: f(y, target), (prediction,), (direction,))[1]
            for f in (case.loss.delta, gradient(case.loss))
        ]

    with jax.enable_x64(True):
        prediction, target = case.make(KEY, jnp.float64)
        by_hand, by_grad = map(np.asarray, both(prediction, target, np.cos(prediction)))
    assert worst(by_grad, by_hand) <= F64


@pytest.mark.parametrize("case", LOSS_CASES[8:11:2], ids=lambda case: case.name)  # a sample, as it compiles a lot
def test_delta_computes_no_more_than_the_gradient(case: LossCase) -> None:
    prediction, target = case.make(KEY, jnp.float32, (32, 10))
    by_hand, by_grad = (
        jax.jit(f).lower(prediction, target).compile().cost_analysis() for f in (case.loss.delta, gradient(case.loss))
    )
    assert by_hand["flops"] <= by_grad["flops"]
    assert by_hand.get("transcendentals", 0) <= by_grad.get("transcendentals", 0)


@cases
def test_check_accepts_what_is_right(case: LossCase) -> None:
    prediction, target = case.make(KEY, jnp.float32)
    case.loss.check(jax.ShapeDtypeStruct(prediction.shape, prediction.dtype), target)
    case.loss.check(prediction, np.asarray(target))


def test_every_public_loss_is_in_the_table() -> None:
    records = [getattr(losses, name) for name in losses.__all__ if name not in FACTORIES]
    assert {record.name for record in records} == set(losses.__all__) - FACTORIES
    assert {case.loss.name for case in LOSS_CASES} == set(losses.__all__)
    public = {name for name, item in vars(losses).items() if isinstance(item, Loss)} | FACTORIES
    assert public == set(losses.__all__)
    assert all(name in losses.__doc__ for name in losses.__all__)


def test_help_shows_the_formulas_of_the_table() -> None:
    """`help(losses.mse)`, as `losses.mse?` in a notebook: what the module's table says, the shapes and the source."""
    lines = [line.split(maxsplit=1) for line in losses.__doc__.splitlines() if line.startswith("    ")]
    rows = {name.partition("(")[0]: row for name, row in lines}
    for case in LOSS_CASES:
        loss, text = case.loss, pydoc.render_doc(case.loss, renderer=pydoc.plaintext)
        value, delta, _ = re.split(" {2,}", rows[loss.name])
        for part in (f"C = {value}, δ = {delta.removesuffix(', else 0')}", "Shapes: ", "Target: ", "Source: "):
            assert part in text, f"{part!r} is not in {text}"
        assert repr(loss).partition("(")[0] == loss.name
    assert "Attributes:" in pydoc.render_doc(Loss, renderer=pydoc.plaintext)
    assert repr(losses.huber(0.25)) == "huber(delta=0.25)"
    assert repr(losses.label_smoothing(0.25)) == "label_smoothing(smoothing=0.25)"


def test_help_of_a_loss_of_ones_own() -> None:
    def value(y: Any, t: Any) -> Any:
        """C = my own."""

    own = Loss("own", value, value)
    assert own.__doc__ == "C = my own."
    assert "C = my own." in pydoc.render_doc(own.value, renderer=pydoc.plaintext)
    assert Loss("own", lambda y, t: y, value).__doc__ == type(own).__doc__
    assert repr(own).startswith("Loss('own', test_help_of_a_loss_of_ones_own")
    same = losses.mse._replace()
    assert same == losses.mse._replace() != losses.mae._replace()
    assert hash(same) == hash(losses.mse._replace())
    assert repr(same) == "Loss('mse', mse.value, delta=mse.delta, check=mse.check, entries=mse.entries)"


# ---------------------------------------------------------------- numerics


class Extreme(NamedTuple):
    loss: Loss
    prediction: Any
    target: Any
    value: Any
    delta: Any


def numbers(values: Any) -> np.ndarray:
    """As jnp.array has them."""
    return np.asarray(values, jnp.result_type(np.asarray(values)))


EXTREMES = {
    "a logit gap of 200": Extreme(losses.softmax_cross_entropy, [[200.0, 0.0]], [1], [200.0], [[1.0, -1.0]]),
    "logits of 1e9": Extreme(losses.softmax_cross_entropy, [[1e9, -1e9, 0.0]], [0], [0.0], [[0.0, 0.0, 0.0]]),
    "logits far from 0": Extreme(losses.softmax_cross_entropy, [[1e9, 1e9]], [0], [math.log(2)], [[-0.5, 0.5]]),
    "masked classes": Extreme(
        losses.softmax_cross_entropy, [[0.0, -math.inf, 0.0]], [0], [math.log(2)], [[-0.5, 0.0, 0.5]]
    ),
    "masked classes, distribution": Extreme(
        losses.softmax_cross_entropy, [[0.0, -math.inf, 0.0]], [[1.0, 0.0, 0.0]], [math.log(2)], [[-0.5, 0.0, 0.5]]
    ),
    "masked classes, hinge": Extreme(losses.multiclass_hinge, [[0.0, -math.inf, 0.5]], [0], [1.5], [[-1.0, 0.0, 1.0]]),
    "binary logits of 1e9": Extreme(
        losses.sigmoid_binary_cross_entropy,
        [[1e9], [1e9], [-1e9], [-1e9]],
        [[1.0], [0.0], [1.0], [0.0]],
        [0.0, 1e9, 1e9, 0.0],
        [[0.0], [1.0], [-1.0], [0.0]],
    ),
    "logistic at 1e9": Extreme(losses.logistic, [1e9, 1e9, -1e9], [1, -1, 1], [0.0, 1e9, 1e9], [0.0, 1.0, -1.0]),
    "hinge at 1e30": Extreme(losses.hinge, [1e30, 1e30], [1, -1], [0.0, 1e30], [0.0, 1.0]),
    "errors of 1e30": Extreme(losses.huber(), [[1e30], [-1e30]], [[0.0], [0.0]], [1e30, 1e30], [[1.0], [-1.0]]),
    "infinite error": Extreme(losses.huber(), [[math.inf]], [[0.0]], [math.inf], [[1.0]]),
    "small probability": Extreme(losses.cross_entropy, [[1e-30, 1.0]], [0], [-math.log(1e-30)], [[-1e30, 0.0]]),
    "probability 0": Extreme(losses.cross_entropy, [[0.0, 1.0]], [0], [126 * math.log(2)], [[-(2.0**126), 0.0]]),
}


@cache
def at_extremes() -> Any:
    return by_xla({
        name: (extreme.loss, np.asarray(extreme.prediction, np.float32), numbers(extreme.target))
        for name, extreme in EXTREMES.items()
    })  # fmt: skip


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_inputs(name: str) -> None:
    extreme = EXTREMES[name]
    value, delta, by_grad = at_extremes()[name]
    np.testing.assert_allclose(value, extreme.value, rtol=2e-7)
    np.testing.assert_allclose(delta, extreme.delta, rtol=2e-7)
    np.testing.assert_array_equal(by_grad, delta)


def test_a_logit_gap_of_200_is_exact() -> None:
    z = np.array([[200.0, 0.0], [0.0, -200.0], [300.0, 100.0]], np.float32)
    assert (jax.jit(jax.vmap(lambda z: CE.value(z[None], np.array([1])))))(z).tolist() == [[200]] * 3


def test_small_binary_losses_keep_their_digits() -> None:
    expected = math.log1p(math.exp(-20))  # 2e-9, which 20 + 2e-9 − 20 would lose
    places = ((losses.logistic, 20.0, 1), (BCE, 20.0, 1), (BCE, -20.0, 0))
    routes = by_xla({(loss, z): (loss, numbers([z]), numbers([t])) for loss, z, t in places})
    for value, _, _ in routes.values():
        np.testing.assert_allclose(value, expected, rtol=FUSED)


PROBABILITIES_0 = (
    (losses.cross_entropy, numbers([0])),
    (losses.binary_cross_entropy, numbers([[1.0, 1.0]])),
)
LOW_TO_HIGH = (jnp.float16, jnp.bfloat16, jnp.float32)


@cache
def at_probability_0() -> Any:
    return by_xla({
        (dtype, loss): (loss, np.array([[0, 1]], dtype), target)
        for dtype in LOW_TO_HIGH
        for loss, target in PROBABILITIES_0
    })  # fmt: skip


@pytest.mark.parametrize("dtype", LOW_TO_HIGH)
def test_probability_zero_keeps_value_and_delta_finite(dtype: Any) -> None:
    tiny = float(jnp.finfo(dtype).tiny)
    for loss, _ in PROBABILITIES_0:
        value, delta, by_grad = at_probability_0()[dtype, loss]
        assert value == pytest.approx(-math.log(tiny))
        assert float(delta[0, 0]) == float(by_grad[0, 0]) == -1 / tiny


def test_second_derivatives_where_formulas_change_sides() -> None:
    """σ′(0) = ¼ and huber″(0) = 1: written through |z| they would come out as 0."""

    def second(loss: Loss, at: float, target: float) -> float:
        value = lambda y: loss.value(y[None], numbers([target]))[0]
        return float(evaluated(jax.grad(jax.grad(value)))(np.float32(at)))

    assert second(losses.sigmoid_binary_cross_entropy, 0.0, 0.5) == 0.25
    assert second(losses.logistic, 0.0, -1.0) == 0.25
    assert second(losses.huber(), 0.0, 0.0) == 1
    assert second(losses.binary_cross_entropy, 0.0, 0.0) == 1
    assert second(losses.sigmoid_binary_cross_entropy, 1e9, 0.5) == 0


def test_distributions_that_do_not_sum_to_one() -> None:
    z, t = numbers([[0.0, math.log(3.0)]]), numbers([[1.0, 3.0]])
    delta = rule_of(CE, "delta")
    np.testing.assert_allclose(delta(z, t), [[0.25 * 4 - 1, 0.75 * 4 - 3]], atol=1e-6)
    np.testing.assert_allclose(delta(z, 2 * t), [[0, 0]], atol=2e-6)
    half = delta(z, t / 8)  # the row sums to ½
    np.testing.assert_allclose(half, [[0.25 * 0.5 - 0.125, 0.75 * 0.5 - 0.375]], atol=1e-6)
    uneven = delta(z, numbers([[1.0, 1.0]]))
    np.testing.assert_allclose(uneven, [[-0.5, 0.5]], atol=1e-6)


def test_relations_between_losses() -> None:
    with jax.enable_x64(True):
        y, t = map(np.asarray, LOSS_CASES[0].make(1, jnp.float64, (6, 3)))
        for route in ("value", "delta"):
            mse, half, huber, hinge = (
                rule_of(loss, route)
                for loss in (losses.mse, losses.half_squared_error, losses.huber(1e6), losses.hinge)
            )
            assert worst(half(y, t), 3 / 2 * mse(y, t)) <= F64
            assert worst(huber(y, t), mse(y, t) / 2) <= F64

            # two classes: logistic = binary cross-entropy at (t+1)/2 = softmax cross-entropy of [0, y]
            sign = np.where(t > 0, 1, -1)
            logistic = rule_of(losses.logistic, route)(y, sign)
            share = (sign + 1) / 2
            assert worst(rule_of(BCE, route)(y, share), logistic) <= F64
            pairs = rule_of(CE, route)(np.stack([np.zeros_like(y), y], axis=-1), (sign + 1) // 2)
            expected = logistic / 3  # features became time steps, over which the mean is taken
            assert worst(pairs if route == "value" else pairs[..., 1], expected) <= F64
            sigmoid = 1 / (1 + np.exp(-y))
            probabilities = rule_of(losses.binary_cross_entropy, route)(sigmoid, share)
            slope = 1 if route == "value" else sigmoid * (1 - sigmoid)
            assert worst(probabilities * slope, logistic) <= F64

            # two scores ±y/2 have the margins of one score y
            scores = np.stack([-y / 2, y / 2], axis=-1)
            pairs = rule_of(losses.multiclass_hinge, route)(scores, (sign + 1) // 2)
            assert worst(pairs if route == "value" else pairs[..., 1], hinge(y, sign) / 3) <= F64


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def test_labels_are_one_hot_distributions() -> None:
    z, labels = normal(2, (6, 5)), numbers([0, 4, 2, 1, 3, 3])
    for loss, prediction in ((CE, z), (losses.cross_entropy, softmax(z))):
        one_hot = routes_of(loss)(prediction, np.eye(5, dtype=np.float32)[labels])
        for ours, theirs in zip(routes_of(loss)(prediction, labels), one_hot, strict=True):
            assert worst(ours, theirs) <= FUSED


def test_integer_and_bool_targets_are_numbers_too() -> None:
    y = np.array([[0.25, 0.75]], jnp.bfloat16)
    for loss, target in (
        (losses.mse, numbers([[2, 300]])),
        (losses.huber(), np.array([[2, 3]], np.uint8)),
        (losses.sigmoid_binary_cross_entropy, np.array([[True, False]])),
        (losses.binary_cross_entropy, np.array([[1, 0]], np.int8)),
        (losses.hinge, np.array([[1, -1]], np.int8)),
    ):
        exact = target.astype(np.float32)
        for route in ("value", "delta"):
            np.testing.assert_array_equal(rule_of(loss, route)(y, target), rule_of(loss, route)(y, exact))


def test_labels_of_any_integer_type() -> None:
    z = normal(3, (2, 300))
    run = jax.jit(lambda z, *targets: [CE.value(z, target) for target in targets])
    expected, *others = run(z, *(np.array([0, 100], dtype) for dtype in (np.int32, np.int8, np.uint8, np.uint32)))
    for value in others:
        np.testing.assert_array_equal(value, expected)
    with jax.enable_x64(True):
        wide = np.array([0, 2**32 + 100], np.int64)
        value = np.asarray(run(z, wide)[0])
    assert np.isfinite(value[0])
    assert np.isnan(value[1])  # not class 100


# ---------------------------------------------------------------- huber's parameter


def test_equal_huber_losses_are_equal_records() -> None:
    assert losses.huber() == losses.huber(1.0) == losses.huber(delta=1)
    assert hash(losses.huber()) == hash(losses.huber(delta=1))
    assert losses.huber(0.5) != losses.huber(1.0)


@pytest.mark.parametrize("delta", [0, -1.0, math.nan, math.inf])
def test_huber_refuses_a_bad_delta(delta: float) -> None:
    with pytest.raises(ValueError, match=r"losses\.huber: delta must be above 0"):
        losses.huber(delta)


@pytest.mark.parametrize("delta", ["1", None, True])
def test_huber_refuses_what_is_no_number(delta: Any) -> None:
    with pytest.raises(TypeError, match=r"losses\.huber: delta must be a number"):
        losses.huber(delta)


# ---------------------------------------------------------------- smoothed labels


def test_smoothing_of_rows_that_sum_to_one_is_that_of_optax() -> None:
    optax = pytest.importorskip("optax", reason="optax is the independent reference here")
    z, rows = normal(6, (5, 4)), softmax(normal(7, (5, 4)))
    for alpha in (0.0, 0.1, 1.0):
        theirs = lambda z, alpha=alpha: optax.softmax_cross_entropy(z, optax.smooth_labels(rows, alpha))
        value, delta, _ = routes_of(losses.label_smoothing(alpha))(z, rows)
        assert worst(value, evaluated(theirs)(z)) <= F32
        assert worst(delta, evaluated(jax.grad(lambda z, theirs=theirs: theirs(z).sum()))(z)) <= F32


def test_smoothing_mixes_two_cross_entropies() -> None:
    """C = (1−α)·C(t) + α·C(uniform); none is softmax_cross_entropy to the bit, and δ is 0 where the docs say."""
    z, labels = normal(8, (6, 5)), numbers([0, 4, 2, 1, 3, 3])
    uniform = np.full((6, 5), 0.2, np.float32)
    for route in ("value", "delta"):
        hard, even, none, tenth = (
            rule_of(loss, route)(z, target)
            for loss, target in (
                (CE, labels), (CE, uniform), (losses.label_smoothing(0), labels), (losses.label_smoothing(0.1), labels)
            )
        )  # fmt: skip
        np.testing.assert_array_equal(none, hard)
        assert worst(tenth, 0.9 * hard + 0.1 * even) <= FUSED
    best = numbers([[math.log(1 + 5 * 0.9 / 0.1), 0.0, 0.0, 0.0, 0.0]])
    smooth = rule_of(losses.label_smoothing(0.1), "delta")
    np.testing.assert_allclose(smooth(best, numbers([0])), np.zeros((1, 5)), atol=1e-7)


def test_equal_smoothings_are_equal_records() -> None:
    assert losses.label_smoothing() == losses.label_smoothing(smoothing=0.1)
    assert losses.label_smoothing(0.2) != losses.label_smoothing(0.1)
    for bad, error in ((-0.1, ValueError), (1.1, ValueError), (math.nan, ValueError), ("0.1", TypeError)):
        with pytest.raises(error, match=r"losses\.label_smoothing: smoothing must be"):
            losses.label_smoothing(bad)


# ---------------------------------------------------------------- bad shapes and dtypes: refused always


class Misfit(NamedTuple):
    loss: Loss
    prediction: tuple[int, ...]
    target: tuple[int, ...]
    dtype: Any
    message: str
    prediction_dtype: Any = jnp.float32


MISFITS = (
    Misfit(
        losses.mse,
        (32, 1),
        (32,),
        jnp.float32,
        "losses.mse: prediction (32, 1) and target (32,) differ in shape; use prediction[:, 0] or target[:, None]",
    ),
    Misfit(losses.mae, (32,), (32, 1), jnp.float32, "use prediction[:, None] or target[:, 0]"),
    Misfit(losses.huber(), (8, 3, 1), (8, 3), jnp.float32, "use prediction[..., 0] or target[..., None]"),
    Misfit(losses.hinge, (8, 1), (8,), jnp.int32, "use prediction[:, 0] or target[:, None]"),
    Misfit(BCE, (8, 1), (8,), jnp.int32, "use prediction[:, 0] or target[:, None]"),
    Misfit(losses.mse, (8, 3), (8, 2), jnp.float32, "differ in shape"),
    Misfit(losses.mse, (8, 3), (7, 3), jnp.float32, "differ in batch size: 8 predictions for 7 targets"),
    Misfit(CE, (8, 3), (7,), jnp.int32, "differ in batch size: 8 predictions for 7 targets"),
    Misfit(losses.mse, (8, 3), (1, 3), jnp.float32, "differ in batch size"),
    Misfit(losses.mse, (), (), jnp.float32, "batch axis"),
    Misfit(losses.mse, (8, 0), (8, 0), jnp.float32, "axis of size 0"),
    Misfit(losses.mse, (8,), (8,), jnp.float32, "float prediction, got int32[8]", jnp.int32),
    Misfit(losses.mse, (8,), (8,), jnp.complex64, "real numbers, got complex64[8]"),
    Misfit(losses.mse, (8, 3), (8,), jnp.int32, "losses.softmax_cross_entropy, or jax.nn.one_hot(target, 3)"),
    Misfit(BCE, (8, 3), (8,), jnp.int32, "losses.softmax_cross_entropy, or jax.nn.one_hot(target, 3)"),
    Misfit(losses.hinge, (8,), (8,), jnp.bool_, "jnp.where(target, 1, -1)"),
    Misfit(losses.logistic, (8,), (8,), jnp.bool_, "jnp.where(target, 1, -1)"),
    Misfit(CE, (8,), (8,), jnp.int32, "losses.sigmoid_binary_cross_entropy"),
    Misfit(CE, (8, 3), (8,), jnp.float32, "integer labels are meant, got float32: use target.astype('int32')"),
    Misfit(losses.multiclass_hinge, (8, 3), (8,), jnp.float32, "use target.astype('int32')"),
    Misfit(CE, (8, 3), (8,), jnp.bool_, "use target.astype('int32')"),
    Misfit(CE, (8, 3), (8, 3), jnp.int32, "use jnp.argmax(target, axis=-1) or, as a distribution, target.astype"),
    Misfit(losses.cross_entropy, (8, 3), (8, 3), jnp.bool_, "use jnp.argmax(target, axis=-1) or, as a distribution"),
    Misfit(
        losses.multiclass_hinge, (8, 3), (8, 3), jnp.float32, "got one-hot float32: use jnp.argmax(target, axis=-1)"
    ),
    Misfit(CE, (8, 3), (8, 1), jnp.int32, "use target[:, 0]"),
    Misfit(losses.label_smoothing(), (8, 3), (8,), jnp.float32, "use target.astype('int32')"),
    Misfit(CE, (8, 5, 3), (8, 5, 1), jnp.int32, "use target[..., 0]"),
    Misfit(CE, (8, 5, 3), (8,), jnp.int32, "integer labels (8, 5) or distributions (8, 5, 3) are meant"),
    Misfit(CE, (8, 3), (8, 4), jnp.float32, "integer labels (8,) or distributions (8, 3) are meant"),
)


@pytest.mark.parametrize("misfit", MISFITS, ids=lambda m: f"{m.loss.name} {m.prediction} {m.target} {m.dtype.__name__}")
def test_shapes_and_dtypes_that_do_not_fit(misfit: Misfit) -> None:
    prediction = jax.device_put(np.ones(misfit.prediction, misfit.prediction_dtype))
    target = jax.device_put(np.ones(misfit.target, misfit.dtype))
    struct = jax.ShapeDtypeStruct(prediction.shape, prediction.dtype)
    routes = [
        misfit.loss.value,
        misfit.loss.delta,
        jax.jit(misfit.loss.value),
        jax.jit(misfit.loss.delta),
        lambda _, target: misfit.loss.check(struct, target),
    ]
    for route in routes:
        with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared below
            route(prediction, target)
        assert misfit.message in str(error.value)
        assert f"losses.{misfit.loss.name}" in str(error.value)


# ---------------------------------------------------------------- bad values: NaN under jit, explained on the host


class Wrong(NamedTuple):
    loss: Loss
    right: Any  # a target for three examples
    wrong: Any  # the same with a bad second (and only a bad second) example
    message: str  # of check, given the wrong target
    classes: int = 3


WRONG = {
    "label K": Wrong(CE, [0, 1, 2], [0, 3, 2], "1 of 3 values of the target are not in 0…2, first target[1] = 3"),
    "label far out": Wrong(CE, [0, 1, 2], [0, 999, 2], "the prediction has 3 classes and the labels need 1000"),
    "label negative": Wrong(CE, [0, 1, 2], [0, -1, 2], "first target[1] = -1; negative labels are not skipped"),
    "label 1-based": Wrong(CE, [2, 1, 1], [2, 3, 1], "seem to count from 1: use target - 1"),
    "label ±1": Wrong(CE, [1, 0, 1], [1, -1, 1], "look like ±1 labels: use (target + 1) // 2", 2),
    "label in uint8": Wrong(CE, np.array([0, 1, 2], np.uint8), np.array([0, 255, 2], np.uint8), "need 256"),
    "hinge label": Wrong(losses.multiclass_hinge, [0, 1, 2], [0, -3, 2], "losses.multiclass_hinge: 1 of 3"),
    "probability label": Wrong(losses.cross_entropy, [0, 1, 2], [0, 3, 2], "not in 0…2"),
    "label in time": Wrong(CE, [[0, 1], [1, 1], [2, 2]], [[0, 1], [1, 3], [2, 2]], "first target[1, 1] = 3"),
    "negative weight": Wrong(
        CE,
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]],
        "1 of 9 values of the target are not ≥ 0 and finite, first target[1, 1] = -1.0; a distribution has no negative",
    ),
    "infinite weight": Wrong(
        losses.cross_entropy,
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[1.0, 0.0, 0.0], [0.0, math.inf, 0.0], [0.0, 0.0, 1.0]],
        "not ≥ 0 and finite",
    ),
    "smoothed label": Wrong(losses.label_smoothing(), [0, 1, 2], [0, 3, 2], "losses.label_smoothing: 1 of 3"),
    "NaN weight": Wrong(
        CE,
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[1.0, 0.0, 0.0], [0.0, math.nan, 0.0], [0.0, 0.0, 1.0]],
        "1 of 9 values of the target are NaN, first target[1, 1]",
    ),
    "0/1 to hinge": Wrong(
        losses.hinge, [1, -1, 1], [1, 0, 1], "target[1] = 0; these look like 0/1 labels: use 2 * target - 1"
    ),
    "0/1 to logistic": Wrong(losses.logistic, [1.0, -1.0, 1.0], [1.0, 0.0, 1.0], "these look like 0/1 labels"),
    "2 to hinge": Wrong(losses.hinge, [1, -1, -1], [1, 2, -1], "labels of this loss are -1 and 1"),
    "almost 1": Wrong(losses.logistic, [1.0, -1.0, 1.0], [1.0, 0.5, 1.0], "not -1 or 1"),
    "NaN to hinge": Wrong(losses.hinge, [1.0, -1.0, 1.0], [1.0, math.nan, 1.0], "1 of 3 values of the target are NaN"),
    "±1 to 0/1": Wrong(BCE, [1, 0, 1], [1, -1, 1], "look like ±1 labels: use (target + 1) / 2, or losses.logistic"),
    "±1 to probabilities": Wrong(losses.binary_cross_entropy, [1.0, 0.0, 1.0], [1.0, -1.0, 1.0], "look like ±1 labels"),
    "1-based to 0/1": Wrong(BCE, [1, 1, 1], [1, 2, 1], "seem to count from 1: use target - 1"),
    "class labels to 0/1": Wrong(BCE, [0, 1, 1], [0, 7, 1], "for class labels use losses.softmax_cross_entropy"),
    "above 1": Wrong(BCE, [0.0, 0.5, 1.0], [0.0, 1.5, 1.0], "a target of this loss is a probability"),
    "one bad feature": Wrong(
        BCE, [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [0.5, 1.5], [1.0, 1.0]], "first target[1, 1] = 1.5"
    ),
}


def right_and_wrong(bad: Wrong) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A prediction, good as probabilities and as logits, and the two targets."""
    right, wrong = numbers(bad.right), numbers(bad.wrong)
    by_class = bad.loss.name in ("softmax_cross_entropy", "label_smoothing", "cross_entropy", "multiclass_hinge")
    shape = (*right.shape, bad.classes) if by_class and right.dtype.kind in "iu" else right.shape
    return np.random.default_rng(4).uniform(size=shape).astype(np.float32), right, wrong


@cache
def at_wrong_targets() -> Any:
    places = {}
    for name, bad in WRONG.items():
        prediction, right, wrong = right_and_wrong(bad)
        places |= {(name, "right"): (bad.loss, prediction, right), (name, "wrong"): (bad.loss, prediction, wrong)}
    return by_xla(places)


@pytest.mark.parametrize("name", WRONG)
def test_values_that_cannot_be_right_give_nan_for_their_example(name: str) -> None:
    bad = WRONG[name]
    prediction, right, wrong = right_and_wrong(bad)
    for dirty, clean in zip(at_wrong_targets()[name, "wrong"], at_wrong_targets()[name, "right"], strict=True):
        assert np.isnan(dirty[1]).all()
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(np.delete(dirty, 1, 0), np.delete(clean, 1, 0))
    for eager in (rule_of(bad.loss, route)(prediction, wrong) for route in ("value", "delta")):
        assert np.isnan(eager[1]).all()
        assert np.isfinite(np.delete(eager, 1, 0)).all()
    struct = jax.ShapeDtypeStruct(prediction.shape, prediction.dtype)
    bad.loss.check(struct, right)
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared below
        bad.loss.check(struct, wrong)
    assert bad.message in str(error.value)
    assert f"losses.{bad.loss.name}: " in str(error.value)


LOGITS = (-0.5, 1.5, 7.0, math.inf)


@cache
def at_logits() -> Any:
    """All routes, {(logit, which of three): …}."""
    places = {}
    for bad in LOGITS:
        prediction = numbers([[0.5, 0.5], [0.5, bad]])
        places[bad, 0] = losses.cross_entropy, prediction, numbers([0, 0])
        places[bad, 1] = losses.cross_entropy, prediction, numbers([[1.0, 0.0], [1.0, 0.0]])
        places[bad, 2] = losses.binary_cross_entropy, prediction, numbers([[1.0, 0.0], [1.0, 0.0]])
    return by_xla(places)


@pytest.mark.parametrize("bad", LOGITS)
def test_logits_where_probabilities_are_meant_give_nan(bad: float) -> None:
    for which in range(3):
        for result in at_logits()[bad, which]:
            assert np.isfinite(result[0]).all()
            assert np.isnan(result[1]).all()


def test_rounding_beyond_one_is_not_an_error() -> None:
    above = numbers([[1 + 1e-6, -1e-8]])
    for loss, target in ((losses.cross_entropy, numbers([0])), (losses.binary_cross_entropy, numbers([[1, 0]]))):
        assert abs(float(rule_of(loss, "value")(above, target)[0])) <= 2e-6


def test_check_explains_regression_and_fractional_targets() -> None:
    y = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    with pytest.raises(ValueError, match=r"losses\.mse: 2 of 6 values of the target are NaN, first target\[0, 1\]"):
        losses.mse.check(y, np.array([[0, math.nan], [1, 1], [1, math.nan]]))
    with pytest.raises(ValueError, match=r"losses\.mae: 1 of 6 values of the target are not finite"):
        losses.mae.check(y, np.array([[0, math.inf], [1, 1], [1, 1]]))
    with pytest.raises(ValueError, match=r"target\[1\] = 0\.5; for numbers use a regression loss such as losses\.mse"):
        CE.check(y, np.array([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="log-probabilities"):
        CE.check(y, np.log(np.full((3, 2), 0.5)))
    CE.check(y, jax.device_put(np.full((3, 2), 0.5, jnp.bfloat16)))
    with pytest.raises(ValueError, match="NaN"):
        CE.check(y, jax.device_put(np.full((3, 2), np.nan, jnp.bfloat16)))


def test_check_looks_at_wide_labels_before_they_are_narrowed() -> None:
    with pytest.raises(ValueError, match="not in 0…2"):
        CE.check(jax.ShapeDtypeStruct((1, 3), jnp.float32), np.array([2**32 + 1]))


# ---------------------------------------------------------------- other oracles


def test_values_and_gradients_of_optax() -> None:
    optax = pytest.importorskip("optax", reason="optax is the independent reference here")
    made = {case.name: case for case in LOSS_CASES}
    pairs = {  # ours -> theirs, reduced as ours are
        "mse": lambda y, t: optax.squared_error(y, t).mean(-1),
        "huber": lambda y, t: optax.huber_loss(y, t, delta=1.0).mean(-1),
        "half_squared_error": lambda y, t: optax.l2_loss(y, t).sum(-1),
        "hinge": lambda y, t: optax.hinge_loss(y, t).sum(-1),
        "logistic": lambda y, t: optax.losses.sigmoid_binary_cross_entropy(y, (t + 1) / 2).sum(-1),
        "sigmoid_binary_cross_entropy": lambda y, t: optax.sigmoid_binary_cross_entropy(y, t).sum(-1),
        "softmax_cross_entropy": optax.softmax_cross_entropy_with_integer_labels,
        "softmax_cross_entropy, distribution": optax.softmax_cross_entropy,
        "label_smoothing": lambda z, t: optax.softmax_cross_entropy(
            z, optax.smooth_labels(jax.nn.one_hot(t, z.shape[-1]), 0.25)
        ),
    }
    with jax.enable_x64(True):
        for name, theirs in pairs.items():
            case = made[name]
            y, t = case.make(5, jnp.float64)
            by_grad = evaluated(jax.grad(lambda y, t, theirs=theirs: theirs(y, t).sum()))(y, t)
            value, delta, _ = routes_of(case.loss)(y, t)
            assert worst(value, evaluated(theirs)(y, t)) <= F64, name
            assert worst(delta, by_grad) <= F64, name


def test_properties_of_any_finite_input() -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis draws the inputs here")
    st = hypothesis.strategies
    number = st.floats(-(2.0**99), 2.0**99, width=32)
    rows = st.lists(st.lists(number, min_size=3, max_size=3), min_size=2, max_size=2)

    @jax.jit
    def measure(z: Any, labels: Any, t: Any) -> Any:
        sign = jnp.where(t > 0, 1, -1)
        return {
            "softmax": all_routes(CE, z, labels),
            "multiclass hinge": all_routes(losses.multiclass_hinge, z, labels),
            "sigmoid": all_routes(BCE, z, sign == 1),
            "logistic": all_routes(losses.logistic, z, sign),
            "hinge": all_routes(losses.hinge, z, sign),
            "huber": all_routes(losses.huber(), z, t),
        }

    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
    @hypothesis.given(rows, st.lists(st.integers(0, 2), min_size=2, max_size=2), rows)
    def holds(z: Any, labels: Any, t: Any) -> None:
        steepest = {"multiclass hinge": 2}  # K − 1: all other classes push on the label
        for name, (value, delta, by_grad) in measure(*map(numbers, (z, labels, t))).items():
            assert (np.asarray(value) >= 0).all(), name
            assert np.isfinite(value).all(), name
            assert (np.abs(delta) <= steepest.get(name, 1) + 1e-6).all(), name
            np.testing.assert_allclose(by_grad, delta, atol=1e-6, err_msg=name)
            if name in ("softmax", "multiclass hinge"):
                np.testing.assert_allclose(np.sum(delta, axis=-1), 0, atol=1e-6, err_msg=name)

    holds()


def test_softmax_cross_entropy_does_not_see_a_shift() -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis draws the inputs here")
    st = hypothesis.strategies
    whole = st.integers(-1000, 1000)  # sums of whole numbers are exact, so equality can be asked for

    value, delta = jax.jit(CE.value), jax.jit(CE.delta)

    @hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
    @hypothesis.given(st.lists(whole, min_size=4, max_size=4), st.integers(0, 3), st.integers(-(2**20), 2**20))
    def holds(z: Any, label: int, shift: int) -> None:
        z, label = np.array([z], np.float32), numbers([label])
        np.testing.assert_array_equal(value(z + shift, label), value(z, label))
        np.testing.assert_array_equal(delta(z + shift, label), delta(z, label))

    holds()
