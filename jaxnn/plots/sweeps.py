"""The landscape of a sweep: a figure over one setting or two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnn.checks import seen
from jaxnn.plots.style import DARK, GREY, add_legend, line_style, log_axis, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxnn.training.sweep_results import Sweep

DECADE = 8.0  # the greatest over the least value of a setting, from which its axis is logarithmic
BRIGHT = 0.7  # the place on the colour scale from which numbers are written in dark
CELLS = 64  # of a map at most that have their numbers written in


@styled
def landscape(sweep: Sweep, figure: str | None = None, *, x: str | None = None, y: str | None = None) -> Figure:
    """A figure of each member over one setting, or the mean over the seeds over two.

    Over one setting every member is a point, and a line joins the means over the seeds, one line for each value of a
    second setting. With y, a map of the means over x and y; where further settings differ, a cell has the best of them.

    Args:
        sweep: the result of a `sweep`.
        figure: the name of a figure of its history; by default that by which its members are compared.
        x: the setting along x, by default the first.
        y: the setting along y of a map.

    Raises:
        TypeError: for anything but a Sweep.
        ValueError: for unknown names, or a sweep without settings.
    """
    from jaxnn.training.sweep_results import Sweep  # few programs need it at once

    if not isinstance(sweep, Sweep):
        raise TypeError(f"plots.landscape: expected the result of a sweep, got {seen(sweep)}")
    names = list(sweep.settings)
    for what, name in (("x", x), ("y", y)):
        if name is not None and name not in names:
            raise ValueError(f"plots.landscape: {what} must be one of {', '.join(map(repr, names))}, got {name!r}")
    if not names:
        raise ValueError("plots.landscape: this sweep has no settings, seeds alone")
    x = x or next(name for name in names if name != y or len(names) == 1)
    if x == y:
        raise ValueError(f"plots.landscape: x and y are both {x!r}")
    means = sweep.means(figure)
    label = figure or sweep.figure
    drawn, [[axes]] = new_figure(size=(5.2, 3.6))
    (_draw_map if y is not None else _draw_lines)(axes, sweep, means, label, x, y)
    axes.set_xlabel(x)
    add_legend(drawn, axes)
    return drawn


def _draw_lines(axes: Axes, sweep: Sweep, means: list[Any], label: str, x: str, _: str | None) -> None:
    others = [name for name in sweep.settings if name != x]
    lines: dict[tuple[float, ...], list[tuple[float, float]]] = {}
    for point, mean, _ in means:
        lines.setdefault(tuple(point[name] for name in others), []).append((point[x], mean))
    axes.plot(sweep.settings[x], sweep.scores(label), ".", color=GREY, markersize=4, zorder=1)
    for i, (values, points) in enumerate(sorted(lines.items())):
        text = ", ".join(f"{name} {value:g}" for name, value in zip(others, values, strict=True))
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=text, **line_style(i))
    axes.set_title(label)
    if _spans_decades(sweep.settings[x]):
        axes.set_xscale("log")
    scores = sweep.scores(label)
    if _spans_decades(scores[np.isfinite(scores)]):
        log_axis(axes)


def _draw_map(axes: Axes, sweep: Sweep, means: list[Any], label: str, x: str, y: str | None) -> None:
    assert y is not None
    columns, rows = (np.unique(sweep.settings[name]) for name in (x, y))
    best = np.full((len(rows), len(columns)), np.nan)
    for point, mean, _ in reversed(means):  # the best last
        if np.isfinite(mean):
            best[np.searchsorted(rows, point[y]), np.searchsorted(columns, point[x])] = mean
    scale = "log" if _spans_decades(best[np.isfinite(best)]) else "linear"  # as the axis of lines
    image = axes.imshow(best, origin="lower", aspect="auto", cmap="viridis", norm=scale)
    axes.figure.colorbar(image, ax=axes)
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axes.set_ylabel(y)
    axes.set_title(f"{label}, mean over the seeds")
    places = np.ma.filled(image.norm(best), 0.0)
    if best.size <= CELLS:
        for (row, column), value in np.ndenumerate(best):
            colour = DARK if np.isfinite(value) and places[row, column] > BRIGHT else "white"
            text = f"{value:.3g}" if np.isfinite(value) else "not finite"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _spans_decades(values: np.ndarray) -> bool:
    return bool(len(values)) and float(values.min()) > 0 and float(values.max() / values.min()) >= DECADE
