"""Training over time: losses and metrics over the epochs, and sizes of δ at each layer over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxnn.checks import seen
from jaxnn.diagnostics.diagnosis import Diagnosis
from jaxnn.plots.arguments import check_records
from jaxnn.plots.style import DARK, GREY, TICK_LABELS, add_legend, layer_ticks, line_style, log_axis, new_figure, styled
from jaxnn.types import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Mapping[str, Sequence[float]]
SIZES = {  # fields of a layer's row in a Diagnosis, and their names in a title
    "delta": "δ",
    "gradient": "gradient",
    "output": "output",
    "ratio": "update over weights",
}


@styled
def learning_curves(
    history: History, *, best: int | None = None, stopped: int | None = None, first_epoch: int = 1
) -> Figure:
    """Training and validation over the epochs: the loss, on a logarithmic axis, the penalty, and each metric.

    Args:
        history: a list per quantity, as returned by `fit`; "validation_x" is drawn with "x", "seconds" is not drawn.
        best: the epoch, from 1, with the best parameters, as in `Fit.best_epoch`; by default that of the least
            validation loss. An epoch before the first of the history is not marked.
        stopped: the epoch, from 1, after which training stopped early, if it did.
        first_epoch: the number of the first epoch in the history, for a training that was resumed.

    Raises:
        ValueError: if there is no epoch, or one that is to be marked was not run.

    >>> fitted = fit(net, loss, adam(1e-3), stopping=early_stopping(5), …)  # doctest: +SKIP
    >>> learning_curves(fitted.history, best=fitted.best_epoch)  # doctest: +SKIP
    """
    if not isinstance(history, Mapping):
        hint = ": give fit.history" if isinstance(history, Fit) else ""
        raise TypeError(f"plots.learning_curves: history must be a dict of lists, got {seen(history)}{hint}")
    quantities = [name for name in history if name != "seconds" and not name.startswith("validation_")]
    epochs = max((len(history[name]) for name in quantities), default=0)
    if not epochs:
        raise ValueError(f"plots.learning_curves: the history has no epochs: {sorted(history)}")
    if best is None and "validation_loss" in history and np.isfinite(history["validation_loss"]).any():
        best = int(np.nanargmin(history["validation_loss"])) + first_epoch
    _check_epochs(best, stopped, first_epoch, first_epoch + epochs - 1)
    figure, [panels] = new_figure(len(quantities))
    for axes, name in zip(panels, quantities, strict=True):
        _draw_quantity(axes, history, name, best, stopped, first_epoch, marker="." if epochs < 2 else "")
    add_legend(figure, panels[0])
    return figure


def _check_epochs(best: int | None, stopped: int | None, first: int, last: int) -> None:
    for what, epoch, least in (("best", best, 1), ("stopped", stopped, first)):
        if epoch is not None and not least <= epoch <= last:
            raise ValueError(f"plots.learning_curves: {what} must be an epoch from {least} to {last}, got {epoch}")


def _draw_quantity(
    axes: Axes, history: History, name: str, best: int | None, stopped: int | None, first: int, *, marker: str
) -> None:
    """The curves of one quantity, in training and validation, and the marked epochs."""
    curves = {key: history[key] for key in (name, f"validation_{name}") if key in history}
    for key, values in curves.items():
        label, i = ("training", 0) if key == name else ("validation", 1)
        axes.plot(range(first, first + len(values)), values, label=label, **line_style(i), marker=marker)
    if stopped is not None:
        axes.axvline(stopped, color=DARK, linewidth=1, linestyle=":", label=f"stopped, epoch {stopped}")
    if best is not None and best >= first:
        value = list(curves.values())[-1][best - first]
        (circle,) = axes.plot([best], [value], "o", color=DARK, fillstyle="none", markersize=8, linestyle="none")
        circle.set_label(f"best, epoch {best}")
    if name == "loss" and min(value for values in curves.values() for value in values) > 0:
        log_axis(axes)
    axes.set(title=name, xlabel="epoch")
    axes.locator_params(axis="x", integer=True)


@styled
def flow_over_time(points: Sequence[Diagnosis], *, quantity: str = "delta") -> Figure:
    """A size at each layer over the steps that were measured, as colours on a logarithmic scale; 0 is grey.

    Args:
        points: `fit(…, measure=1).diagnostics`.
        quantity: "delta", "gradient", "output" or "ratio" (update over weights); layers without it are left out.

    Raises:
        ValueError: if there is no point, no layer has the quantity, or it is none of the four.
        TypeError: if one is not a Diagnosis.

    >>> flow_over_time(fit(net, loss, adam(1e-3), …, measure=1).diagnostics)  # doctest: +SKIP
    """
    from matplotlib.colors import LogNorm

    check_records("flow_over_time", points, Diagnosis)
    if quantity not in SIZES:
        raise ValueError(f"plots.flow_over_time: quantity must be one of {sorted(SIZES)}, got {quantity!r}")
    names = [row.path for row in points[0].layers if getattr(row, quantity) is not None]
    if not names:
        raise ValueError(f"plots.flow_over_time: no layer has a {quantity}")
    sizes = [{row.path: getattr(row, quantity) for row in point.layers} for point in points]
    table = np.array([[size[name] for size in sizes] for name in names], np.float64)
    shown = np.ma.masked_where(~(np.isfinite(table) & (table > 0)), table)
    low, high = (shown.min(), shown.max()) if shown.count() else (1.0, 10.0)
    figure, [[axes]] = new_figure(size=(6.4, max(2.4, 0.19 * min(len(names), TICK_LABELS) + 1.4)))
    axes.set_facecolor(GREY)
    norm = LogNorm(low, high if high > low else 1.01 * low)
    image = axes.imshow(shown, aspect="auto", origin="lower", interpolation="none", cmap="viridis", norm=norm)
    axes.set_yticks(*layer_ticks(names), fontsize=8)
    steps = [str(i + 1) if point.step is None else str(point.step + 1) for i, point in enumerate(points)]
    ticks = np.unique(np.linspace(0, len(points) - 1, min(len(points), 7)).round().astype(int))
    axes.set_xticks(ticks, [steps[i] for i in ticks])
    axes.set(xlabel="steps taken", title=f"{SIZES[quantity]}, from the first layer (bottom) to the last")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, aspect=16, label="root mean square" if quantity != "ratio" else "ratio")
    bar.outline.set_visible(False)
    return figure
