"""The style that all figures share: colours, fonts, lines, legends and logarithmic axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, DARK = "0.6", "0.25"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": DARK,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
DPI = 150
PANEL = (3.9, 3.0)  # inches of one pair of axes
TICK_LABELS = 24  # at most; of more, every second or third is shown


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in this style, independently of the user's own matplotlib settings."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        try:
            import matplotlib as mpl
        except ImportError as error:
            raise ImportError(f"plots.{draw.__name__} needs matplotlib: pip install matplotlib") from error

        style: Any = {**mpl.rcParamsDefault, **STYLE, "backend": mpl.rcParams["backend"]}
        with mpl.rc_context(style):
            return draw(*args, **kwargs)

    return drawn


def new_figure(
    columns: int = 1, rows: int = 1, *, size: tuple[float, float] | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (PANEL[0] * columns, PANEL[1] * rows), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def line_style(i: int) -> dict[str, Any]:
    """The colour and dashes of line i; where the colours repeat, the dashes differ."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[(i + 2 * (i // len(COLOURS))) % len(DASHES)]}


def add_legend(figure: Figure, axes: Axes) -> None:
    """A legend outside the axes, where it covers nothing; none for a single unnamed line."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or any(labels):
        figure.legend(handles, labels, loc="outside right upper", title="", alignment="left", handlelength=2.6)


def zero_lines(*axes: Axes) -> None:
    """Thin lines through 0, horizontal and vertical."""
    for each in axes:
        each.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        each.axvline(0, color=GREY, linewidth=0.6, zorder=0)


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with a few plain numbers, even if it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wide = high / low > 30
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
    if not wide:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high / low > 1e4:
        axes.yaxis.minorticks_off()


def layer_ticks(names: Sequence[str], first: int = 0) -> tuple[range, Sequence[str]]:
    """Positions, counted from `first`, and names of the layers that get a tick label."""
    every = -(-len(names) // TICK_LABELS)
    return range(first, first + len(names), every), names[::every]
