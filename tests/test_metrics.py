"""Metrics: counted by hand, by NumPy's sorting, and on what must not count as right."""

from __future__ import annotations

import math
import pydoc
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated

from jaxnn import metrics

NAN, INF = math.nan, math.inf
operations = cache(evaluated)  # a metric by NumPy, operation by operation


def array(values: Any) -> np.ndarray:
    """As jnp.array, which compiles for every shape, has them."""
    return np.asarray(values, jnp.result_type(np.asarray(values)))


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels]


def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.device_put(np.zeros(shape, dtype))


def test_accuracy_counts_labels_one_hot_and_distributions() -> None:
    scores = array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6], [-INF, -3.0, -2.0]])
    labels = array([1, 2, 2])
    for target in (
        labels,
        labels.astype(np.uint8),
        one_hot(labels, 3),
        one_hot(labels, 3).astype(np.int32),
        one_hot(labels, 3).astype(bool),
        np.float32(0.4) * one_hot(labels, 3) + np.float32(0.2),
    ):
        right = operations(metrics.accuracy)(scores, target)
        assert right.dtype == jnp.float32
        np.testing.assert_array_equal(right, [1, 0, 1])


def test_top_k_is_the_place_in_a_sorted_row() -> None:
    rng = np.random.default_rng(0)
    scores, labels = array(rng.normal(size=(50, 7))), array(rng.integers(0, 7, 50))
    order = np.argsort(-scores, axis=-1)
    place = np.argmax(order == labels[:, None], axis=-1)
    for k in (1, 3, 7):
        right = jax.jit(metrics.top_k(k))(scores, labels)
        np.testing.assert_array_equal(right, place < k)
    np.testing.assert_array_equal(operations(metrics.accuracy)(scores, labels), place == 0)
    np.testing.assert_array_equal(operations(metrics.accuracy)(scores, labels), scores.argmax(-1) == labels)


def test_ties_go_to_the_first_class() -> None:
    flat, labels = np.zeros((3, 3), np.float32), array([0, 1, 2])
    np.testing.assert_array_equal(operations(metrics.accuracy)(flat, labels), [1, 0, 0])  # not 1, 1, 1
    np.testing.assert_array_equal(operations(metrics.top_k(2))(flat, labels), [1, 1, 0])


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.top_k(2)], ids=["accuracy", "top_2"])
def test_nan_scores_are_wrong(metric: Any) -> None:
    scores = array([[NAN, 0.0, 0.0], [0.0, NAN, 5.0], [NAN, NAN, NAN], [1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(operations(metric)(scores, array([0, 2, 0, 0])), [0, 0, 0, 1])


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.top_k(3)], ids=["accuracy", "top_3"])
def test_labels_out_of_range_are_not_silent(metric: Any) -> None:
    scores = np.zeros((4, 3), np.float32)
    for route in (operations(metric), jax.jit(metric)):
        np.testing.assert_array_equal(np.isnan(route(scores, array([0, 3, -1, 0]))), [0, 1, 1, 0])
    distribution = np.ones((4, 3), np.float32)
    distribution[2, 1] = NAN
    np.testing.assert_array_equal(np.isnan(operations(metric)(scores, distribution)), [0, 0, 1, 0])
    with jax.enable_x64(True):
        assert np.isnan(np.asarray(jax.jit(metric)(scores, np.array([0, 2**32, 0, 0]))))[1]


def test_time_steps_are_averaged() -> None:
    scores = array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    labels = array([[0, 1], [1, 1]])
    np.testing.assert_array_equal(operations(metrics.accuracy)(scores, labels), [0.5, 1])
    np.testing.assert_array_equal(operations(metrics.accuracy)(scores, one_hot(labels, 2)), [0.5, 1])
    np.testing.assert_array_equal(operations(metrics.binary_accuracy)(scores, scores), [1, 1])
    np.testing.assert_array_equal(
        operations(metrics.binary_accuracy)(scores, np.ones((2, 2, 2), np.float32)), [0.5, 0.5]
    )


def test_binary_accuracy_takes_both_kinds_of_labels() -> None:
    logits = array([2.0, -0.1, 0.0, 3.0, NAN, NAN])
    right = [1, 1, 1, 0, 0, 0]  # logit 0 says class 0; NaN says nothing
    for target in (
        array([1, 0, 0, 0, 0, 1]),
        array([1, -1, -1, -1, -1, 1]),
        array([0.9, 0.1, 0, 0.4, 0, 1]),
    ):
        for route in (operations(metrics.binary_accuracy), jax.jit(metrics.binary_accuracy)):
            np.testing.assert_array_equal(route(logits, target), right)
    np.testing.assert_array_equal(operations(metrics.binary_accuracy)(logits[:4], logits[:4] > 0), [1, 1, 1, 1])
    assert np.isnan(operations(metrics.binary_accuracy)(logits[:4], array([2, -2, 0, 0])))[:2].all()
    assert np.isnan(operations(metrics.binary_accuracy)(logits[:2], array([NAN, -0.5]))).all()


def test_probabilities_have_their_own_threshold() -> None:
    p, labels = array([[0.2], [0.7], [0.5]]), array([[0], [1], [1]])
    np.testing.assert_array_equal(operations(metrics.binary_accuracy_at(0.5))(p, labels), [1, 1, 0])
    np.testing.assert_array_equal(operations(metrics.binary_accuracy)(p, labels), [0, 1, 1])  # all are above 0


def test_half_precision_counts_in_float32() -> None:
    scores = np.zeros((1, 300, 2), jnp.bfloat16)
    labels = (np.arange(300) < 100).astype(np.int32)[None]
    assert jax.jit(metrics.accuracy)(scores, labels)[0] == np.float32(200 / 300)
    assert jax.jit(metrics.binary_accuracy)(scores[..., 0], labels)[0] == np.float32(200 / 300)


def test_equal_factories_give_equal_metrics_with_a_name() -> None:
    assert metrics.top_k(3) == metrics.top_k(3)
    assert metrics.top_k(1) != metrics.accuracy
    assert metrics.binary_accuracy_at(0.5) == metrics.binary_accuracy_at(0.5)
    names = [
        metric.__name__
        for metric in (metrics.accuracy, metrics.top_k(3), metrics.binary_accuracy, metrics.binary_accuracy_at(0.5))
    ]
    assert names == ["accuracy", "top_3", "binary_accuracy", "binary_accuracy_at_0.5"]


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match=r"metrics\.top_k: k must be at least 1"):
        metrics.top_k(0)
    with pytest.raises(TypeError, match=r"metrics\.top_k: k must be a whole number"):
        metrics.top_k(2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"threshold must be finite"):
        metrics.binary_accuracy_at(NAN)
    with pytest.raises(ValueError, match=r"metrics\.top_4: the prediction \(2, 3\) has only 3 classes"):
        metrics.top_k(4)(np.zeros((2, 3), np.float32), np.zeros(2, np.int32))


MISFITS = (
    (metrics.accuracy, (8, 3), (7,), jnp.int32, "differ in batch size: 8 predictions for 7 targets"),
    (metrics.accuracy, (8,), (8,), jnp.int32, "see metrics.binary_accuracy"),
    (metrics.accuracy, (8, 3), (8,), jnp.float32, "integer labels are meant, got float32: use target.astype('int32')"),
    (metrics.accuracy, (8, 3), (8, 1), jnp.int32, "integer labels (8,) are meant: use target[:, 0]"),
    (metrics.accuracy, (), (), jnp.int32, "batch axis"),
    (metrics.binary_accuracy, (8, 1), (8,), jnp.int32, "use prediction[:, 0] or target[:, None]"),
    (metrics.binary_accuracy, (8,), (8, 1), jnp.int32, "use prediction[:, None] or target[:, 0]"),
    (
        metrics.binary_accuracy,
        (8, 3),
        (8,),
        jnp.int32,
        "for class labels use metrics.accuracy, or jax.nn.one_hot(target, 3)",
    ),
    (metrics.binary_accuracy, (8, 3), (5, 3), jnp.int32, "differ in batch size"),
)


@pytest.mark.parametrize(("metric", "prediction", "target", "dtype", "message"), MISFITS)
def test_shapes_and_dtypes_that_do_not_fit(
    metric: Any, prediction: tuple[int, ...], target: tuple[int, ...], dtype: Any, message: str
) -> None:
    for route in (metric, jax.jit(metric)):
        with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared below
            route(zeros(prediction, np.float32), zeros(target, dtype))
        assert message in str(error.value)
        assert f"metrics.{metric.__name__}: " in str(error.value)


def test_help_shows_what_a_metric_counts() -> None:
    for metric, says in (
        (metrics.accuracy, "1 where the largest entry"),
        (metrics.top_k(3), "among the k classes"),
        (metrics.binary_accuracy, "the logit is above 0"),
        (metrics.binary_accuracy_at(0.25), "compared to threshold"),
    ):
        text = pydoc.render_doc(metric, renderer=pydoc.plaintext)
        name = repr(metric).partition("(")[0]
        assert all(part in text for part in (name, says, "[N] float32", "ValueError: for shapes"))
    assert [repr(metric) for metric in (metrics.accuracy, metrics.top_k(3), metrics.binary_accuracy_at(0.25))] == [
        *("accuracy", "top_k(3)", "binary_accuracy_at(0.25)")
    ]
