"""Metrics: counted by hand, by NumPy's sorting, and on what must not count as right."""

from __future__ import annotations

import math
import pydoc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import metrics

NAN, INF = math.nan, math.inf


def test_accuracy_counts_labels_one_hot_and_distributions() -> None:
    scores = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6], [-INF, -3.0, -2.0]])
    labels = jnp.array([1, 2, 2])
    for target in (
        labels,
        labels.astype(jnp.uint8),
        jax.nn.one_hot(labels, 3),
        jax.nn.one_hot(labels, 3, dtype=jnp.int32),
        jax.nn.one_hot(labels, 3, dtype=jnp.bool_),
        0.4 * jax.nn.one_hot(labels, 3) + 0.2,
    ):
        right = metrics.accuracy(scores, target)
        assert right.dtype == jnp.float32
        np.testing.assert_array_equal(right, [1, 0, 1])


def test_top_k_is_the_place_in_a_sorted_row() -> None:
    scores = jax.random.normal(jax.random.key(0), (50, 7))
    labels = jax.random.randint(jax.random.key(1), (50,), 0, 7)
    order = np.argsort(-np.asarray(scores), axis=-1)
    place = np.argmax(order == np.asarray(labels)[:, None], axis=-1)
    for k in (1, 3, 7):
        right = jax.jit(metrics.top_k(k))(scores, labels)
        np.testing.assert_array_equal(right, place < k)
    np.testing.assert_array_equal(metrics.accuracy(scores, labels), place == 0)
    np.testing.assert_array_equal(metrics.accuracy(scores, labels), scores.argmax(-1) == labels)


def test_ties_go_to_the_first_class() -> None:
    flat, labels = jnp.zeros((3, 3)), jnp.array([0, 1, 2])
    np.testing.assert_array_equal(metrics.accuracy(flat, labels), [1, 0, 0])  # not 1, 1, 1
    np.testing.assert_array_equal(metrics.top_k(2)(flat, labels), [1, 1, 0])


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.top_k(2)], ids=["accuracy", "top_2"])
def test_nan_scores_are_wrong(metric: Any) -> None:
    scores = jnp.array([[NAN, 0.0, 0.0], [0.0, NAN, 5.0], [NAN, NAN, NAN], [1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(metric(scores, jnp.array([0, 2, 0, 0])), [0, 0, 0, 1])


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.top_k(3)], ids=["accuracy", "top_3"])
def test_labels_out_of_range_are_not_silent(metric: Any) -> None:
    scores = jnp.zeros((4, 3))
    for route in (metric, jax.jit(metric)):
        np.testing.assert_array_equal(np.isnan(route(scores, jnp.array([0, 3, -1, 0]))), [0, 1, 1, 0])
    distribution = jnp.ones((4, 3)).at[2, 1].set(NAN)
    np.testing.assert_array_equal(np.isnan(metric(scores, distribution)), [0, 0, 1, 0])
    with jax.enable_x64(True):
        assert np.isnan(np.asarray(metric(scores, jnp.array([0, 2**32, 0, 0], jnp.int64))))[1]


def test_time_steps_are_averaged() -> None:
    scores = jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    labels = jnp.array([[0, 1], [1, 1]])
    np.testing.assert_array_equal(metrics.accuracy(scores, labels), [0.5, 1])
    np.testing.assert_array_equal(metrics.accuracy(scores, jax.nn.one_hot(labels, 2)), [0.5, 1])
    np.testing.assert_array_equal(metrics.binary_accuracy(scores, scores), [1, 1])
    np.testing.assert_array_equal(metrics.binary_accuracy(scores, jnp.ones((2, 2, 2))), [0.5, 0.5])


def test_binary_accuracy_takes_both_kinds_of_labels() -> None:
    logits = jnp.array([2.0, -0.1, 0.0, 3.0, NAN, NAN])
    right = [1, 1, 1, 0, 0, 0]  # logit 0 says class 0; NaN says nothing
    for target in (
        jnp.array([1, 0, 0, 0, 0, 1]),
        jnp.array([1, -1, -1, -1, -1, 1]),
        jnp.array([0.9, 0.1, 0, 0.4, 0, 1]),
    ):
        for route in (metrics.binary_accuracy, jax.jit(metrics.binary_accuracy)):
            np.testing.assert_array_equal(route(logits, target), right)
    np.testing.assert_array_equal(metrics.binary_accuracy(logits[:4], logits[:4] > 0), [1, 1, 1, 1])
    assert np.isnan(metrics.binary_accuracy(logits[:4], jnp.array([2, -2, 0, 0])))[:2].all()
    assert np.isnan(metrics.binary_accuracy(logits[:2], jnp.array([NAN, -0.5]))).all()


def test_probabilities_have_their_own_threshold() -> None:
    p, labels = jnp.array([[0.2], [0.7], [0.5]]), jnp.array([[0], [1], [1]])
    np.testing.assert_array_equal(metrics.binary_accuracy_at(0.5)(p, labels), [1, 1, 0])
    np.testing.assert_array_equal(metrics.binary_accuracy(p, labels), [0, 1, 1])  # all are above 0


def test_half_precision_counts_in_float32() -> None:
    scores = jnp.zeros((1, 300, 2), jnp.bfloat16)
    labels = (jnp.arange(300) < 100).astype(jnp.int32)[None]
    assert metrics.accuracy(scores, labels)[0] == np.float32(200 / 300)
    assert metrics.binary_accuracy(scores[..., 0], labels)[0] == np.float32(200 / 300)


def test_equal_factories_give_one_function_with_a_name() -> None:
    assert metrics.top_k(3) is metrics.top_k(3)
    assert metrics.binary_accuracy_at(0.5) is metrics.binary_accuracy_at(0.5)
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
        metrics.top_k(4)(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))


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
            route(jnp.zeros(prediction), jnp.zeros(target, dtype))
        assert message in str(error.value)
        assert f"metrics.{metric.__name__}: " in str(error.value)


def test_help_shows_what_a_metric_counts() -> None:
    for metric, says in (
        (metrics.accuracy, "1 where the largest entry"),
        (metrics.top_k(3), "among the 3 classes"),
        (metrics.binary_accuracy, "the logit is above 0"),
        (metrics.binary_accuracy_at(0.25), "the prediction is above 0.25"),
    ):
        text = pydoc.render_doc(metric, renderer=pydoc.plaintext)
        assert all(part in text for part in (metric.__name__, says, "[N] float32", "ValueError: for shapes"))
