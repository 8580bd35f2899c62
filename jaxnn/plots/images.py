"""Images and classes: decision boundaries, confusion matrices, and images in rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxnn.checks import seen
from jaxnn.mistakes import is_function
from jaxnn.plots.arguments import check_mapping, numbers
from jaxnn.plots.style import COLOURS, DARK, MARKERS, add_legend, new_figure, styled
from jaxnn.types import Array, Layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = 200  # points along each side of a decision boundary's plane
CHARACTERS = 9  # of a tick label in an inch


@styled
def decision_boundary(
    predict: Callable[[Array], Array],
    x: ArrayLike,
    labels: ArrayLike,
    *,
    threshold: float = 0.0,
    margin: float = 0.1,
    names: Sequence[str] = ("x₁", "x₂"),
) -> Figure:
    """The classes that a classifier assigns to the points of a plane, and the examples on it.

    Args:
        predict: a function of points [M, 2] that returns scores [M, K], or one score [M] or [M, 1] for two classes.
        x: the examples [N, 2].
        labels: [N], from 0; for two classes also −1 and 1.
        threshold: a single score above it means class 1: 0 for logits, 0.5 for probabilities.
        margin: around the examples, as a share of their extent.
        names: of the two features.

    Raises:
        ValueError: if shapes do not fit.

    >>> decision_boundary(lambda x: predict(net, train_state, x), x, labels)  # doctest: +SKIP
    """
    if not is_function(predict):
        hint = ": give lambda x: predict(net, train_state, x)" if isinstance(predict, Layer) else ""
        raise TypeError(f"plots.decision_boundary: predict must be a function of points, got {seen(predict)}{hint}")
    points, t = numbers("decision_boundary: x", x), numbers("decision_boundary: labels", labels).reshape(-1)
    if points.ndim != 2 or points.shape[1] != 2 or len(t) != len(points) or not len(points):
        raise ValueError(f"plots.decision_boundary: expects x [N, 2] and labels [N], got {points.shape} and {t.shape}")
    t = np.where(t < 0, 0, t).astype(int)
    low, high = points.min(0), points.max(0)
    border = margin * np.where(high > low, high - low, 1)
    sides = [np.linspace(a, b, SHADES) for a, b in zip(low - border, high + border, strict=True)]
    plane = np.stack(np.meshgrid(*sides), -1)
    scores = np.asarray(predict(jnp.asarray(plane.reshape(-1, 2), jnp.float32)))
    figure, [[axes]] = new_figure(size=(4.8, 4.0))
    _draw_regions(axes, sides, scores, threshold, classes=int(t.max()) + 1)
    for i in np.unique(t):
        marker = {"marker": MARKERS[i % len(MARKERS)], "color": COLOURS[i % len(COLOURS)], "linestyle": "none"}
        edge = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(*points[t == i].T, label=f"class {i}", **marker, **edge)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.locator_params(nbins=5)
    add_legend(figure, axes)
    return figure


def _draw_regions(
    axes: Axes, sides: Sequence[np.ndarray], scores: np.ndarray, threshold: float, *, classes: int
) -> None:
    """The region of each class in a lighter shade of its colour; for a single score, the boundary as a line."""
    from matplotlib.colors import ListedColormap, to_rgb

    if scores.ndim not in (1, 2) or len(scores) != SHADES**2:
        raise ValueError(f"plots.decision_boundary: predict must return [M, K] or [M] for M points, got {scores.shape}")
    one_score = scores.ndim == 1 or scores.shape[1] == 1
    regions = (scores.reshape(-1) > threshold).astype(int) if one_score else scores.argmax(-1)
    k = max(2 if one_score else scores.shape[1], classes)
    shades = ListedColormap(
        [tuple(1 - 0.3 * (1 - part) for part in to_rgb(COLOURS[i % len(COLOURS)])) for i in range(k)]
    )
    square = (SHADES, SHADES)
    axes.pcolormesh(*sides, regions.reshape(square), cmap=shades, vmin=-0.5, vmax=k - 0.5, rasterized=True)
    if one_score:
        axes.contour(*sides, scores.reshape(square), [threshold], colors=DARK, linewidths=1)


@styled
def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, *, names: Sequence[str] | None = None) -> Figure:
    """The number of examples of each true class (rows) by predicted class (columns); the diagonal is correct.

    Shades are shares of the row; errors have a colour of their own, to be visible beside the diagonal.

    Args:
        labels: the true classes [N], from 0.
        predictions: the predicted classes [N], or scores [N, K].
        names: of the K classes.

    Raises:
        ValueError: if shapes do not fit, there is no example, or a class is negative.
        TypeError: if classes are not whole numbers.

    >>> confusion_matrix(labels, predict(net, train_state, x))  # doctest: +SKIP
    """
    counts = _counts(np.asarray(labels), np.asarray(predictions))
    k = len(counts)
    if names is not None and len(names) != k:
        raise ValueError(f"plots.confusion_matrix: {len(names)} names for {k} classes")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.2, 0.5 * k)
    figure, [[axes]] = new_figure(size=(side + 0.7, side + 0.7))
    axes.imshow(_tinted(shares))
    size = 9 if counts.max() < 10_000 else 7
    for row, column in zip(*counts.nonzero(), strict=True):
        dark = shares[row, column] > (0.5 if row == column else 0.25)
        colour = "white" if dark else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour)
    ticks = [str(i) for i in range(k)] if names is None else list(names)
    narrow = max(map(len, ticks)) > CHARACTERS * side / k
    axes.set_xticks(range(k), ticks, rotation=40 if narrow else 0)
    axes.set_yticks(range(k), ticks)
    accuracy = np.trace(counts) / counts.sum()
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{100 * accuracy:.2f} % correct")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _counts(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """The number of examples [K, K] by true class and predicted class."""
    k = predictions.shape[1] if predictions.ndim == 2 else 0
    predictions = predictions.argmax(-1) if predictions.ndim == 2 else predictions
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        shown = f"{labels.shape} and {predictions.shape}"
        raise ValueError(f"plots.confusion_matrix: expects labels [N] and predictions [N] or [N, K], got {shown}")
    named: dict[str, np.ndarray] = {"labels": labels, "predictions": predictions}
    for what, classes in named.items():
        if not np.issubdtype(classes.dtype, np.integer):
            raise TypeError(f"plots.confusion_matrix: {what} must be whole numbers, got {classes.dtype}")
        if classes.min() < 0:
            raise ValueError(f"plots.confusion_matrix: {what} must be classes from 0, got {classes.min()}")
        k = max(k, int(classes.max()) + 1)
    counts = np.zeros((k, k), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def _tinted(shares: np.ndarray) -> np.ndarray:
    """White to blue on the diagonal, white to vermilion elsewhere, which has its full colour at half of a row."""
    from matplotlib.colors import to_rgb

    correct = np.eye(len(shares), dtype=bool)
    depth = np.where(correct, shares, np.minimum(1, np.sqrt(shares * 2)))[..., None]
    colour = np.where(correct[..., None], to_rgb(COLOURS[0]), to_rgb(COLOURS[1]))
    return 1 - depth * (1 - colour)


@styled
def image_rows(rows: Mapping[str, ArrayLike]) -> Figure:
    """Rows of images, each with its name: digits, for example, and below them their augmentations.

    Args:
        rows: by name, [n, H, W, 1] or [n, H, W] for grey images, [n, H, W, 3] for colours from 0 to 1. Grey images
            share one scale: the least pixel of the first row is white and its greatest black; beyond is clipped.

    Raises:
        TypeError: if rows is not a mapping.
        ValueError: if it is empty, or an entry is not a batch of images.

    >>> image_rows({"original": x, "rotated": augment.rotate(20)(key, x)})  # doctest: +SKIP
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    check_mapping("image_rows", "rows", rows)
    batches = {name: np.asarray(images, np.float32) for name, images in rows.items()}
    for name, images in batches.items():
        if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))) or not len(images):
            raise ValueError(f"plots.image_rows: {name!r} must be images [n, H, W, 1], got {images.shape}")
    columns = max(map(len, batches.values()))
    figure, panels = new_figure(columns, len(batches), size=(0.75 * columns + 1.4, 0.78 * len(batches)))
    first = next(iter(batches.values()))  # noise in another row would turn its background grey
    least, greatest = float(np.nanmin(first)), float(np.nanmax(first))
    for (name, images), line in zip(batches.items(), panels, strict=True):
        for i, axes in enumerate(line):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i >= len(images):
                continue
            if images.ndim == 4 and images.shape[-1] == 3:
                axes.imshow(np.clip(images[i], 0, 1))
            else:
                axes.imshow(images[i].reshape(images.shape[1:3]), cmap="gray_r", vmin=least, vmax=greatest)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, hspace=0.0, wspace=0.0))
    return figure
