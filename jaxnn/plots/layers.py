"""Layers of a network: norms from the first to the last, and the weights into each unit as images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxnn.checks import seen, whole_number
from jaxnn.combinators.walk import ordered_leaves
from jaxnn.diagnostics.diagnosis import Diagnosis
from jaxnn.plots.arguments import check_mapping, numbers
from jaxnn.plots.style import MARKERS, TICK_LABELS, add_legend, layer_ticks, line_style, log_axis, new_figure, styled
from jaxnn.trees import named_leaves
from jaxnn.types import Array, Layer, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def gradient_flow(
    norms: Mapping[str, Tree], *, nets: Mapping[str, Layer] | None = None, quantity: str | None = None
) -> Figure:
    """Norms from layer to layer, on a logarithmic axis: δ vanishing or exploding on its way back.

    A norm of 0 cannot be drawn on a logarithmic axis and leaves a gap.

    Args:
        norms: by name, one line each: `readings["deltas"]` or `readings["delta_norms"]`, or plain numbers from the
            first layer to the last. For an array, the norm of all its entries is drawn; for a
            `diagnostics.Diagnosis`, the root mean squares of δ.
        nets: by the same names, networks that give the order of the layers; without one it is the order of the tree
            (a compiled function returns sorted dicts).
        quantity: the label of the axis; by default ‖δ‖, or the root mean square of δ if all are diagnoses.

    Raises:
        TypeError: if norms is not a mapping.
        ValueError: if it is empty, or has no numbers for a name.

    >>> out = backprop(net, loss, read=("deltas",))(params, state, x, labels)  # doctest: +SKIP
    >>> gradient_flow({"sigmoid": out.readings["deltas"]}, nets={"sigmoid": net})  # doctest: +SKIP
    """
    check_mapping("gradient_flow", "norms", norms)
    lines = {name: _norms(name, tree, (nets or {}).get(name)) for name, tree in norms.items()}
    if quantity is None:
        diagnoses = all(isinstance(tree, Diagnosis) for tree in norms.values())
        quantity = "root mean square of δ" if diagnoses else "‖δ‖"
    longest = max(lines.values(), key=len)
    names = list(longest)
    shared = all(list(line) == names[: len(line)] for line in lines.values())
    named = shared and names != [str(i + 1) for i in range(len(names))]
    figure, [[axes]] = new_figure(size=(max(6.4, 0.26 * min(len(names), TICK_LABELS) + 2.4) if named else 6.4, 3.6))
    for i, (name, line) in enumerate(lines.items()):
        marker = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        axes.plot(range(1, len(line) + 1), list(line.values()), label=name, **line_style(i), **marker)
    axes.set(ylabel=quantity, title="from the first layer to the last")
    if any(norm > 0 for line in lines.values() for norm in line.values()):
        log_axis(axes)
    _label_layers(axes, names if named else None)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    add_legend(figure, axes)
    return figure


def _norms(name: str, tree: Tree, net: Layer | None) -> dict[str, float]:
    """{layer: norm} from the first to the last."""
    if isinstance(tree, Diagnosis):
        line = {row.path: row.delta for row in tree.layers if row.delta is not None}
    elif isinstance(tree, Mapping):
        leaves = ordered_leaves(net, tree) if net is not None else named_leaves(tree)
        line = {path: _norm(leaf) for path, leaf in leaves.items()}
    else:
        line = {str(i + 1): _norm(value) for i, value in enumerate(tree)}
    if not line:
        raise ValueError(f"plots.gradient_flow: {name!r} has no numbers")
    return line


def _norm(x: Array | float) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def _label_layers(axes: Axes, names: Sequence[str] | None) -> None:
    """Layers on the x axis by name, or by number if lines of several networks do not share their names."""
    if names is None:
        axes.set_xlabel("layer")
        axes.locator_params(axis="x", integer=True)
        return
    axes.set_xticks(*layer_ticks(names, first=1))
    axes.tick_params(axis="x", rotation=55, labelsize=8)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")


@styled
def weight_images(
    w: Array, shape: tuple[int, int], *, columns: int = 8, most: int = 64, titles: Sequence[str] | None = None
) -> Figure:
    """The weights into each unit as an image: blue is negative, white 0, red positive, one scale for all.

    Args:
        w: [D, H], as in `params["dense_0"]["w"]`.
        shape: (height, width) of an image, D pixels.
        columns: images in a row.
        most: the number of units that are shown, at most; the first ones.
        titles: of the units.

    Raises:
        ValueError: if w is not [D, H] with D = height · width.

    >>> weight_images(params["dense_0"]["w"], (28, 28))  # doctest: +SKIP
    """
    weights = numbers("weight_images: w", w)
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise TypeError(f"plots.weight_images: shape must be (height, width), got {seen(shape)}")
    if weights.ndim != 2 or len(weights) != math.prod(shape):
        expected = f"w [{math.prod(shape)}, H] for images {shape}"
        raise ValueError(f"plots.weight_images: expects {expected}, got {weights.shape}")
    images = weights.T.reshape(-1, *shape)[: whole_number("plots.weight_images: most", most, least=1)]
    columns = min(whole_number("plots.weight_images: columns", columns, least=1), len(images))
    rows = -(-len(images) // columns)
    figure, panels = new_figure(columns, rows, size=(0.85 * columns + 1.0, (1.1 if titles else 0.85) * rows))
    extent = np.abs(weights).max() or 1.0
    for i, axes in enumerate(panels.ravel()):
        axes.set_axis_off()
        if i < len(images):
            shown = axes.imshow(images[i], cmap="RdBu_r", vmin=-extent, vmax=extent)
            axes.set_title(titles[i] if titles else "", fontsize=9, loc="center", pad=3)
    bar = figure.colorbar(shown, ax=panels, shrink=min(1.0, 2.5 / (0.85 * rows)), aspect=16, label="weight")
    bar.outline.set_visible(False)
    return figure
