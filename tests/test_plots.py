"""Pictures: each returns a figure whose artists hold the right numbers, and draws without a warning."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import evaluated
from schedule_cases import CASES

import jaxnn
from jaxnn import diagnostics, losses, mlp, plots, relu, schedules, sigmoid, tanh

pytest.importorskip("matplotlib", reason="an optional package that draws")

from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure

from jaxnn.plots.style import COLOURS


@pytest.fixture
def drawn():
    """Draws the figures it is given, and lets go of them afterwards."""
    figures = []

    def draw(figure):
        assert isinstance(figure, Figure)
        figures.append(figure)
        figure.savefig(io.BytesIO(), format="png", dpi=40)  # constrained layout warns where something has no room
        return figure

    yield draw
    for figure in figures:
        figure.clear()


def lines(axes):
    """{label: (x, y)} of the lines that a legend names."""
    return {line.get_label(): line.get_data() for line in axes.lines if not line.get_label().startswith("_")}


def legend_words(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_activations(drawn):
    figure = drawn(plots.activations(sigmoid, relu, limits=(-2, 3)))
    left, right = figure.axes
    z, h = lines(left)["sigmoid"]
    assert (z[0], z[-1]) == (-2, 3)
    np.testing.assert_allclose(h, 1 / (1 + np.exp(-z)), rtol=1e-6)
    slopes = right.lines[1].get_ydata()
    np.testing.assert_array_equal(slopes, (z > 0).astype(np.float32))
    assert legend_words(figure) == ["sigmoid", "relu"]
    assert (left.get_xlabel(), right.get_ylabel()) == ("z", "dh/dz")


def test_nine_lines_are_nine_looks(drawn):
    every = [sigmoid, tanh, relu, jaxnn.leaky_relu(0.1), jaxnn.elu, jaxnn.softplus, jaxnn.silu, jaxnn.gelu]
    figure = drawn(plots.activations(*every, jaxnn.identity))
    named = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert len({(line.get_color(), line.get_linestyle()) for line in named}) == 9


def test_losses(drawn):
    figure = drawn(plots.losses(losses.mse, losses.huber(0.5), target=1.0))
    left, right = figure.axes
    y, cost = lines(left)["mse"]
    np.testing.assert_allclose(cost, (y - 1) ** 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(right.lines[1].get_ydata(), np.clip(y - 1, -0.5, 0.5), atol=1e-6)
    assert "t = 1" in left.get_xlabel()


def test_losses_of_scores_and_labels(drawn):
    figure = drawn(plots.losses(losses.softmax_cross_entropy, losses.multiclass_hinge))
    y, cost = lines(figure.axes[0])["softmax_cross_entropy"]
    np.testing.assert_allclose(cost, np.log1p(np.exp(-y)), rtol=1e-4)
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), -(y < 1).astype(float))
    assert "right class" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_can_be_drawn(name):
    record = getattr(losses, name)
    record = record if isinstance(record, jaxnn.Loss) else record(1.0)
    figure = plots.losses(record, target=1.0, limits=(0.01, 0.99))
    assert all(np.isfinite(line.get_ydata()).all() for axes in figure.axes for line in axes.lines)


def test_schedules(drawn):
    rates = {
        "stairs": schedules.step_decay(0.1, factor=0.5, every=10),
        "any": lambda step: 0.2 / (1 + step.astype(jnp.float32)),
    }
    figure = drawn(plots.schedules(rates, 40))
    (axes,) = figure.axes
    steps, stairs = lines(axes)["stairs"]
    np.testing.assert_array_equal(steps, np.arange(40))
    np.testing.assert_allclose(stairs, 0.1 * 0.5 ** (np.arange(40) // 10), rtol=1e-6)
    np.testing.assert_allclose(lines(axes)["any"][1], 0.2 / (1 + np.arange(40)), rtol=1e-6)
    assert axes.get_ylim()[0] == 0
    assert drawn(plots.schedules(rates, 100_000, log=True)).axes[0].get_yscale() == "log"


@pytest.mark.parametrize("name", CASES)
def test_every_schedule_can_be_drawn(name):
    schedule, formula = CASES[name]
    (axes,) = plots.schedules({name: evaluated(schedule)}, 40).axes
    np.testing.assert_allclose(lines(axes)[name][1], [formula(step) for step in range(40)], rtol=1e-5, atol=1e-7)


HISTORY = {
    "loss": [1.0, 0.5, 0.2, 0.1],
    "accuracy": [0.5, 0.7, 0.9, 0.95],
    "seconds": [9.0, 1.0, 1.0, 1.0],
    "validation_loss": [1.1, 0.6, 0.4, 0.45],
    "validation_accuracy": [0.4, 0.6, 0.8, 0.85],
}


def test_learning_curves_mark_the_best_and_the_last_epoch(drawn):
    figure = drawn(plots.learning_curves(HISTORY, stopped=4))
    loss, accuracy = figure.axes
    assert (loss.get_title(loc="left"), accuracy.get_title(loc="left")) == ("loss", "accuracy")
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert loss.get_xlabel() == "epoch"
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        found = lines(axes)
        np.testing.assert_array_equal(found["training"], [[1, 2, 3, 4], HISTORY[name]])
        np.testing.assert_array_equal(found["validation"], [[1, 2, 3, 4], HISTORY[f"validation_{name}"]])
        np.testing.assert_array_equal(found["best, epoch 3"], [[3], [HISTORY[f"validation_{name}"][2]]])
        np.testing.assert_array_equal(found["stopped, epoch 4"][0], [4, 4])
    assert legend_words(figure) == ["training", "validation", "stopped, epoch 4", "best, epoch 3"]


def test_learning_curves_of_a_training_that_was_resumed(drawn):
    axes = drawn(plots.learning_curves(HISTORY, first_epoch=6)).axes[0]
    np.testing.assert_array_equal(lines(axes)["training"][0], [6, 7, 8, 9])
    assert f"best, epoch {int(np.argmin(HISTORY['validation_loss'])) + 6}" in lines(axes)
    before = lines(drawn(plots.learning_curves(HISTORY, best=2, first_epoch=6)).axes[0])
    assert not any(label.startswith("best") for label in before)


def test_learning_curves_of_training_alone(drawn):
    figure = drawn(plots.learning_curves({"loss": [0.0, -1.0], "seconds": [1.0, 1.0]}))
    assert figure.axes[0].get_yscale() == "linear"  # a loss that is not above 0 has no logarithm
    assert list(lines(figure.axes[0])) == ["training"]
    assert len(lines(drawn(plots.learning_curves({"loss": [0.5]})).axes[0])["training"][0]) == 1
    nan = drawn(plots.learning_curves({"loss": [0.5, 0.2], "validation_loss": [np.nan, 0.3]}))
    assert "best, epoch 2" in legend_words(nan)


def test_gradient_flow_follows_the_network(drawn):
    net = mlp([3] * 11 + [2], tanh)
    params, state = net.init(jax.random.key(0), (3,))
    run = jax.jit(jaxnn.backprop(net, losses.mse, read=("deltas", "delta_norms")))
    readings = run(params, state, jnp.ones((4, 3)), jnp.zeros((4, 2))).readings
    figure = drawn(plots.gradient_flow({"deltas": readings["deltas"], "norms": readings["delta_norms"]},
                                       nets={"deltas": net, "norms": net}))  # fmt: skip
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == list(net.child_names)
    norms = [float(readings["delta_norms"][name]) for name in net.child_names]
    np.testing.assert_allclose(lines(axes)["norms"][1], norms)
    np.testing.assert_allclose(lines(axes)["deltas"][1], norms, rtol=1e-5)
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "‖δ‖"


def test_gradient_flow_of_plain_numbers(drawn):
    figure = drawn(plots.gradient_flow({"sigmoid": [1e-6, 1e-4, 1e-2], "relu": np.ones(2)}, quantity="‖∂C/∂W‖"))
    (axes,) = figure.axes
    np.testing.assert_array_equal(lines(axes)["sigmoid"], [[1, 2, 3], [1e-6, 1e-4, 1e-2]])
    np.testing.assert_array_equal(lines(axes)["relu"], [[1, 2], [1, 1]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "‖∂C/∂W‖")


def test_a_dead_layer_leaves_a_gap(drawn):
    assert drawn(plots.gradient_flow({"half dead": [0.0, 1.0, 2.0]})).axes[0].get_yscale() == "log"
    assert drawn(plots.gradient_flow({"dead": [0.0, 0.0]})).axes[0].get_yscale() == "linear"


def diagnosed(step, sizes):
    rows = [
        diagnostics.LayerRow(name, "dense", 1.0, delta, 1.0, 1.0, ratio, None, None, None)
        for name, delta, ratio in sizes
    ]
    return diagnostics.Diagnosis("healthy", (), tuple(rows), step)


POINTS = [
    diagnosed(9, [("first", 1e-6, 1e-2), ("relu", 0.0, None), ("last", 0.1, 1e-3)]),
    diagnosed(19, [("first", 1e-4, 1e-3), ("relu", 1e-2, None), ("last", 0.2, 1e-4)]),
]


def test_gradient_flow_of_diagnoses(drawn):
    (axes,) = drawn(plots.gradient_flow({"before": POINTS[0], "after": POINTS[1]})).axes
    np.testing.assert_array_equal(lines(axes)["before"], [[1, 2, 3], [1e-6, 0, 0.1]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["first", "relu", "last"]
    assert axes.get_ylabel() == "root mean square of δ"


def test_flow_over_time(drawn):
    axes, bar = drawn(plots.flow_over_time(POINTS)).axes
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(-1), [[1e-6, 1e-4], [-1, 1e-2], [0.1, 0.2]])  # 0 has no colour
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "relu", "last"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "20"]
    assert axes.images[0].get_clim() == (1e-6, 0.2)
    assert bar.get_ylabel() == "root mean square"
    axes, bar = drawn(plots.flow_over_time(POINTS, quantity="ratio")).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[1e-2, 1e-3], [1e-3, 1e-4]])
    assert bar.get_ylabel() == "ratio"


SQUARE = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [-1, 1, 1, -1]])
def test_decision_boundary_of_one_score(drawn, labels):
    figure = drawn(plots.decision_boundary(lambda x: x[:, :1] - 0.5, SQUARE, labels))
    (axes,) = figure.axes
    (mesh, contour) = axes.collections
    regions = np.asarray(mesh.get_array()).reshape(200, 200)
    assert (regions[:, :100] == 0).all()
    assert (regions[:, 100:] == 1).all()
    edge = np.concatenate([path.vertices for path in contour.get_paths()])
    np.testing.assert_allclose(edge[:, 0], 0.5, atol=1e-6)
    np.testing.assert_array_equal(np.transpose(lines(axes)["class 1"]), SQUARE[1:3])


def test_decision_boundary_of_several_scores(drawn):
    centres = jnp.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    figure = drawn(
        plots.decision_boundary(
            lambda x: -((x[:, None] - centres[None]) ** 2).sum(-1), SQUARE, [0, 1, 2, 1], names="ab"
        )
    )
    (axes,) = figure.axes
    regions = np.asarray(axes.collections[0].get_array()).reshape(200, 200)  # [second feature, first]
    assert (regions[0, 0], regions[-1, -1], regions[0, -1]) == (0, 1, 2)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")
    assert legend_words(figure) == ["class 0", "class 1", "class 2"]
    blue = axes.lines[0]
    assert same_color(blue.get_color(), COLOURS[0])


def test_weight_images(drawn):
    w = np.arange(-12.0, 12.0).reshape(6, 4)
    figure = drawn(plots.weight_images(w, (2, 3), columns=3, titles=list("abcd")))
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(shown) == 4
    np.testing.assert_array_equal(shown[1].get_array(), w[:, 1].reshape(2, 3))
    assert all(image.get_clim() == (-12, 12) for image in shown)  # one scale, 0 in its middle
    assert figure.axes[3].get_title(loc="center") == "d"
    assert len([axes for axes in drawn(plots.weight_images(w, (2, 3), most=2)).axes if axes.images]) == 2


def test_confusion_matrix(drawn):
    figure = drawn(plots.confusion_matrix([0, 1, 1, 2, 2, 2], [0, 1, 0, 2, 2, 1], names=["a", "b", "c"]))
    (axes,) = figure.axes
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "1"), ((1, 1), "1"), ((0, 1), "1"), ((2, 2), "2"), ((1, 2), "1"),
    }  # fmt: skip
    colours = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(colours[0, 0], to_rgb(COLOURS[0]))  # all of its row is right
    np.testing.assert_allclose(colours[1, 0], to_rgb(COLOURS[1]))  # half of its row is wrong
    np.testing.assert_allclose(colours[0, 1], 1)
    assert axes.get_title(loc="left") == "66.67 % correct"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    scores = np.eye(4)[[0, 1, 2]]
    assert drawn(plots.confusion_matrix([0, 1, 2], scores)).axes[0].images[0].get_array().shape == (4, 4, 3)


def test_image_rows(drawn):
    x = np.random.default_rng(0).random((3, 4, 5, 1), np.float32)
    colour = np.random.default_rng(1).random((2, 4, 5, 3), np.float32)
    figure = drawn(plots.image_rows({"as they are": x, "brighter": 2 * x[..., 0], "colour": colour}))
    shown = [axes.images[0] if axes.images else None for axes in figure.axes]
    assert len(shown) == 9
    np.testing.assert_array_equal(shown[1].get_array(), x[1, ..., 0])
    np.testing.assert_array_equal(shown[3].get_array(), 2 * x[0, ..., 0])
    np.testing.assert_array_equal(shown[7].get_array(), colour[1])
    assert shown[8] is None
    assert shown[0].get_clim() == shown[5].get_clim() == (x.min(), x.max())
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["as they are", "brighter", "colour"]


def test_the_users_own_style_is_left_alone(drawn):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "axes.spines.top": True}):
        figure = drawn(plots.activations(relu))
    assert figure.axes[0].xaxis.label.get_size() < 15
    assert not figure.axes[0].spines["top"].get_visible()
    assert dict(mpl.rcParams) == before
    assert not Gcf.figs  # no window, nothing to be closed


MISTAKES = {
    "no activation": (lambda: plots.activations(), ValueError, "at least one Activation"),
    "a layer": (lambda: plots.activations(jaxnn.dense(2)), TypeError, "expected Activation records"),
    "a value": (lambda: plots.losses(losses.mse.value), TypeError, "expected Loss records"),
    "one schedule": (lambda: plots.schedules(schedules.constant(0.1), 10), TypeError, "must be a dict by name"),
    "one step": (lambda: plots.schedules({"a": schedules.constant(0.1)}, 1), ValueError, "steps must be at least 2"),
    "no epoch": (lambda: plots.learning_curves({"seconds": []}), ValueError, "has no epochs"),
    "late": (lambda: plots.learning_curves(HISTORY, stopped=5), ValueError, "an epoch from 1 to 4, got 5"),
    "no series": (lambda: plots.gradient_flow({}), ValueError, "norms is empty"),
    "no diagnosis": (lambda: plots.flow_over_time([]), ValueError, "at least one Diagnosis"),
    "a number": (lambda: plots.flow_over_time([1.0]), TypeError, "expected Diagnosis records"),
    "a wrong size": (lambda: plots.flow_over_time(POINTS, quantity="size"), ValueError, "quantity must be one of"),
    "no numbers": (lambda: plots.gradient_flow({"a": []}), ValueError, "'a' has no numbers"),
    "three features": (lambda: plots.decision_boundary(len, np.ones((2, 3)), [0, 1]), ValueError, "x \\[N, 2\\]"),
    "no scores": (lambda: plots.decision_boundary(lambda x: x[:3], SQUARE, [0] * 4), ValueError, "predict must return"),
    "not square": (lambda: plots.weight_images(np.ones((6, 2)), (2, 2)), ValueError, "w \\[4, H\\]"),
    "two lengths": (lambda: plots.confusion_matrix([0, 1], [0]), ValueError, "labels \\[N\\]"),
    "minus one": (lambda: plots.confusion_matrix([-1, 1], [1, 1]), ValueError, "labels must be classes from 0, got -1"),
    "no classes": (lambda: plots.confusion_matrix([0, 1], [0.5, 1.0]), TypeError, "predictions must be whole numbers"),
    "not yet": (lambda: plots.learning_curves(HISTORY, stopped=5, first_epoch=6), ValueError, "from 6 to 9, got 5"),
    "names": (lambda: plots.confusion_matrix([0, 1], [0, 1], names=["a"]), ValueError, "1 names for 2 classes"),
    "no images": (lambda: plots.image_rows({"a": np.ones((3, 4))}), ValueError, "'a' must be images"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call()
