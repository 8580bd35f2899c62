"""Pictures of what other modules return: one style for screen and print, each function giving back its figure.

Matplotlib is an extra, `pip install 'jaxnn[examples]'`, and is imported when a picture is drawn. Figures stand alone:
no window, no global state; `figure.savefig("a.png")` keeps one, and a notebook shows it.

    activations, losses     values and slopes
    schedules               learning rates over the steps
    learning_curves         what `fit` noted, with the best and the last epoch
    gradient_flow           norms of δ, or of anything, from layer to layer
    flow_over_time          the same at every epoch, layer by layer
    decision_boundary       which class a classifier gives to each point of a plane
    weight_images           what each unit looks for
    confusion_matrix        which class is taken for which
    image_rows              images in labelled rows, such as digits and their augmentations

Colours are Okabe & Ito's (2008), which the colour-blind can tell apart; lines differ in their dashes too.
Letters: N examples, D features, H units, K classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import seen, whole_number
from jaxnn.combinators.walk import ordered_leaves
from jaxnn.diagnostics.diagnosis import Diagnosis
from jaxnn.mistakes import is_function
from jaxnn.trees import named_leaves
from jaxnn.types import Activation, Fit, Layer, Loss, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "activations", "losses", "schedules", "learning_curves", "gradient_flow", "flow_over_time", "decision_boundary",
    "weight_images", "confusion_matrix", "image_rows",
]  # fmt: skip


def __dir__() -> list[str]:
    return list(__all__)


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, DARK = "0.6", "0.25"
STYLE: dict[str, Any] = {
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
POINTS = 401  # of a curve
SHADES = 200  # along each side of a decision boundary's plane
CHARACTERS = 9  # of a tick's name in an inch
LABELS = 24  # ticks with names, beyond which every second or third is left out


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the house's style, whatever the user's own is."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        try:
            import matplotlib as mpl
        except ImportError as error:
            raise ImportError(
                f"plots.{draw.__name__} needs matplotlib, one of the extras: pip install 'jaxnn[examples]'"
            ) from error

        style: dict[Any, Any] = {**mpl.rcParamsDefault, **STYLE, "backend": mpl.rcParams["backend"]}
        with mpl.rc_context(style):
            return draw(*args, **kwargs)

    return styled


def _figure(columns: int = 1, rows: int = 1, *, size: tuple[float, float] | None = None, **kwargs: Any) -> Any:
    """(figure, axes [rows, columns])."""
    from matplotlib.figure import Figure

    size = size or (PANEL[0] * columns, PANEL[1] * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _line(i: int) -> dict[str, Any]:
    """The i-th line's colour and dashes; where the colours begin again, the dashes are others."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[(i + 2 * (i // len(COLOURS))) % len(DASHES)]}


def _legend(figure: Figure, axes: Axes, title: str = "") -> None:
    """Beside the axes, where it covers nothing; none where a single line needs no name."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or any(label for label in labels):
        figure.legend(handles, labels, loc="outside right upper", title=title, alignment="left", handlelength=2.6)


# ---------------------------------------------------------------- functions and their slopes


@_styled
def activations(*records: Activation, limits: tuple[float, float] = (-4.0, 4.0)) -> Figure:
    """The values h = σ(z) of activations, and beside them their slopes dh/dz.

    Args:
        *records: at least one activation.
        limits: the range of z.

    Raises:
        TypeError: if something is not an Activation.
        ValueError: if there is none.

    >>> activations(relu, tanh).savefig("activations.png")  # doctest: +SKIP
    """
    _all_are(Activation, "activations", records)
    figure, [[left, right]] = _figure(2)
    z = jnp.linspace(*limits, POINTS)
    for i, record in enumerate(records):
        h = record.value(z)
        left.plot(z, h, label=record.name, **_line(i))
        right.plot(z, record.slope(z, h), **_line(i))
    left.set(title="value", xlabel="z", ylabel="h = σ(z)")
    right.set(title="slope", xlabel="z", ylabel="dh/dz")
    _zero_lines(left, right)
    _legend(figure, left)
    return figure


@_styled
def losses(*records: Loss, target: float = 0.0, limits: tuple[float, float] = (-3.0, 3.0)) -> Figure:
    """The costs of one prediction for a given target, and beside them their slopes δ = ∂C/∂y.

    A loss of one score per class is shown for two classes: the score of the right one runs, the other's is 0.

    Args:
        *records: at least one loss. All are shown for one target, so draw those together that mean the same by it.
        target: t, such as 0 for mse, 1 for the hinge.
        limits: the range of the prediction y, probabilities from 0 to 1 for a loss on those.

    Raises:
        TypeError: if something is not a Loss.
        ValueError: if there is none.

    >>> losses(mse, huber(1.0)).savefig("losses.png")  # doctest: +SKIP
    """
    _all_are(Loss, "losses", records)
    figure, [[left, right]] = _figure(2)
    y = jnp.linspace(*limits, POINTS)
    for i, record in enumerate(records):
        value, slope = _cost(record, y, target)
        left.plot(y, value, label=record.name, **_line(i))
        right.plot(y, slope, **_line(i))
    by_class = all(map(_takes_labels, records))
    what = "score y of the right class" if by_class else f"prediction y, for t = {target:g}"
    left.set(title="cost", xlabel=what, ylabel="C")
    right.set(title="slope", xlabel=what, ylabel="δ = ∂C/∂y")
    _zero_lines(left, right)
    _legend(figure, left)
    return figure


def _takes_labels(loss: Loss) -> bool:
    """True for a loss of a row of scores and a label, False for one of a number and a number."""
    scores, labels = jax.ShapeDtypeStruct((2, 2), jnp.result_type(float)), jax.ShapeDtypeStruct((2,), jnp.int32)
    try:
        jax.eval_shape(loss.value, scores, labels)
    except (ValueError, TypeError):
        return False
    return True


def _cost(loss: Loss, y: Any, target: float) -> tuple[Any, Any]:
    if not _takes_labels(loss):
        t = jnp.full((len(y), 1), target, y.dtype)
        return loss.value(y[:, None], t), loss.delta(y[:, None], t)[:, 0]
    scores, labels = jnp.stack([y, jnp.zeros_like(y)], -1), jnp.zeros(len(y), jnp.int32)
    return loss.value(scores, labels), loss.delta(scores, labels)[:, 0]


def _zero_lines(*axes: Axes) -> None:
    for each in axes:
        each.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        each.axvline(0, color=GREY, linewidth=0.6, zorder=0)


def _all_are(kind: type, what: str, records: Sequence[Any]) -> None:
    if not records:
        raise ValueError(f"plots.{what}: give at least one {kind.__name__}")
    for record in records:
        if not isinstance(record, kind):
            raise TypeError(f"plots.{what}: expected {kind.__name__} records, got {record!r}")


# ---------------------------------------------------------------- over time


@_styled
def schedules(rates: Mapping[str, Callable[[Any], Any]], steps: int, *, log: bool = False) -> Figure:
    """Learning rates over the first steps of training.

    Args:
        rates: by name, any functions step -> rate.
        steps: how many.
        log: True for a logarithmic axis of rates.

    Raises:
        TypeError: if rates is no mapping.
        ValueError: if it is empty, or steps below 2.

    >>> figure = schedules({"stairs": step_decay(0.1, factor=0.5, every=200)}, steps=1000)  # doctest: +SKIP
    """
    _named("schedules", "rates", rates)
    steps = whole_number("plots.schedules: steps", steps, least=2)
    figure, [[axes]] = _figure(size=(6.4, 3.2))
    shown = np.unique(np.linspace(0, steps - 1, min(steps, POINTS)).round().astype(np.int32))
    for i, (name, rate) in enumerate(rates.items()):
        axes.plot(shown, [float(rate(jnp.int32(step))) for step in shown], label=name, **_line(i))
    axes.set(xlabel="step", ylabel="learning rate", title="schedules" if len(rates) > 1 else "schedule")
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _legend(figure, axes)
    return figure


@_styled
def learning_curves(
    history: Mapping[str, Sequence[float]],
    *,
    best: int | None = None,
    stopped: int | None = None,
    first_epoch: int = 1,
) -> Figure:
    """Training and validation over the epochs: the loss, on a logarithmic axis, the penalty, and each metric.

    Args:
        history: a list per quantity, as `fit` returns it; "validation_x" is drawn beside "x", "seconds" not at all.
        best: the epoch, from 1, whose parameters are the best, as in `Fit.best_epoch`; by default that of the least
            validation loss. One before the first of the history is not marked.
        stopped: the epoch, from 1, at whose end training stopped early, if it did.
        first_epoch: the number of the history's first epoch, of a training that was resumed.

    Raises:
        ValueError: if there is no epoch, or one that is marked was not run.

    >>> fitted = fit(net, loss, adam(1e-3), stopping=early_stopping(5), …)  # doctest: +SKIP
    >>> learning_curves(fitted.history, best=fitted.best_epoch)  # doctest: +SKIP
    """
    if not isinstance(history, Mapping):
        hint = ": give fit.history" if isinstance(history, Fit) else ""
        raise TypeError(f"plots.learning_curves: history must be a dict of lists, got {seen(history)}{hint}")
    quantities = [name for name in history if name != "seconds" and not name.startswith("validation_")]
    epochs = max((len(history[name]) for name in quantities), default=0)
    if not epochs:
        raise ValueError(f"plots.learning_curves: the history holds no epoch: {sorted(history)}")
    if best is None and "validation_loss" in history and np.isfinite(history["validation_loss"]).any():
        best = int(np.nanargmin(history["validation_loss"])) + first_epoch
    last_epoch = first_epoch + epochs - 1
    for what, epoch, least in (("best", best, 1), ("stopped", stopped, first_epoch)):
        if epoch is not None and not least <= epoch <= last_epoch:
            raise ValueError(
                f"plots.learning_curves: {what} must be an epoch from {least} to {last_epoch}, got {epoch}"
            )
    figure, [panels] = _figure(len(quantities))
    for axes, name in zip(panels, quantities, strict=True):
        for i, (label, key) in enumerate((("training", name), ("validation", f"validation_{name}"))):
            if key in history:
                values = history[key]
                axes.plot(
                    range(first_epoch, first_epoch + len(values)),
                    values,
                    label=label,
                    **_line(i),
                    marker="." if epochs < 2 else "",
                )
        if stopped is not None:
            axes.axvline(stopped, color=DARK, linewidth=1, linestyle=":", label=f"stopped, epoch {stopped}")
        if best is not None and best >= first_epoch:
            key = f"validation_{name}" if f"validation_{name}" in history else name
            axes.plot([best], [history[key][best - first_epoch]], "o", color=DARK, fillstyle="none", markersize=8,
                      linestyle="none", label=f"best, epoch {best}")  # fmt: skip
        if name == "loss" and min(v for k in (name, f"validation_{name}") for v in history.get(k, [1.0])) > 0:
            _log_axis(axes)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, panels[0])
    return figure


def _log_axis(axes: Axes) -> None:
    """A logarithmic axis with a few plain numbers, also where it spans less than a decade."""
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


# ---------------------------------------------------------------- from layer to layer


@_styled
def gradient_flow(
    norms: Mapping[str, Any], *, nets: Mapping[str, Layer] | None = None, quantity: str | None = None
) -> Figure:
    """Norms from layer to layer, on a logarithmic axis: where δ vanishes or explodes on its way back.

    A norm of 0 has no place on such an axis, and leaves a gap.

    Args:
        norms: by name, one line each: `readings["deltas"]` or `readings["delta_norms"]`, or plain numbers from the
            first layer to the last. Of an array, the norm of all its entries is drawn; of a `diagnostics.Diagnosis`,
            the root mean squares of δ.
        nets: by the same names, networks whose order the readings are put in; else it is the tree's own (a compiled
            function gives back sorted dicts).
        quantity: what is drawn, for the axis; by default ‖δ‖, and what they hold where all are diagnoses.

    Raises:
        TypeError: if norms is no mapping.
        ValueError: if it is empty, or holds nothing for a name.

    >>> out = backprop(net, loss, read=("deltas",))(params, state, x, labels)  # doctest: +SKIP
    >>> gradient_flow({"sigmoid": out.readings["deltas"]}, nets={"sigmoid": net})  # doctest: +SKIP
    """
    _named("gradient_flow", "norms", norms)
    lines = {name: _along_layers(name, tree, (nets or {}).get(name)) for name, tree in norms.items()}
    if quantity is None:
        diagnoses = all(isinstance(tree, Diagnosis) for tree in norms.values())
        quantity = "root mean square of δ" if diagnoses else "‖δ‖"
    longest = max(lines.values(), key=len)
    names = list(longest)
    shared = all(list(line) == names[: len(line)] for line in lines.values())
    named = shared and names != [str(i + 1) for i in range(len(names))]
    figure, [[axes]] = _figure(size=(max(6.4, 0.26 * min(len(names), LABELS) + 2.4) if named else 6.4, 3.6))
    for i, (name, line) in enumerate(lines.items()):
        marker = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        axes.plot(range(1, len(line) + 1), list(line.values()), label=name, **_line(i), **marker)
    axes.set(ylabel=quantity, title="from the first layer to the last")
    if any(norm > 0 for line in lines.values() for norm in line.values()):
        _log_axis(axes)
    if named:
        every = -(-len(names) // LABELS)
        axes.set_xticks(range(1, len(names) + 1, every), names[::every])
        axes.tick_params(axis="x", rotation=55, labelsize=8)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    else:
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(figure, axes)
    return figure


def _along_layers(name: str, tree: Any, net: Layer | None) -> dict[str, float]:
    """{layer: norm} from the first to the last."""
    if isinstance(tree, Diagnosis):
        line = {row.path: row.delta for row in tree.layers if row.delta is not None}
    elif isinstance(tree, Mapping):
        leaves = ordered_leaves(net, tree) if net is not None else named_leaves(tree)
        line = {path: float(np.linalg.norm(np.asarray(leaf, np.float64))) for path, leaf in leaves.items()}
    else:
        line = {str(i + 1): float(np.linalg.norm(np.asarray(value, np.float64))) for i, value in enumerate(tree)}
    if not line:
        raise ValueError(f"plots.gradient_flow: {name!r} holds no number")
    return line


SIZES = {  # what a Diagnosis knows of each layer, and how an axis calls it
    "delta": "δ",
    "gradient": "gradient",
    "output": "output",
    "ratio": "update over weights",
}


@_styled
def flow_over_time(points: Sequence[Diagnosis], *, quantity: str = "delta") -> Figure:
    """A size at each layer over the steps that were measured, as colours on a logarithmic scale; grey where it is 0.

    Args:
        points: `fit(…, measure=1).diagnostics`.
        quantity: "delta", "gradient", "output" or "ratio" (update over weights); layers without it are left out.

    Raises:
        ValueError: if there is no point, no layer has the quantity, or it is none of the four.
        TypeError: if something is no Diagnosis.

    >>> flow_over_time(fit(net, loss, adam(1e-3), …, measure=1).diagnostics)  # doctest: +SKIP
    """
    from matplotlib.colors import LogNorm

    _all_are(Diagnosis, "flow_over_time", points)
    if quantity not in SIZES:
        raise ValueError(f"plots.flow_over_time: quantity must be one of {sorted(SIZES)}, got {quantity!r}")
    names = [row.path for row in points[0].layers if getattr(row, quantity) is not None]
    if not names:
        raise ValueError(f"plots.flow_over_time: no layer has a {quantity}")
    sizes = [{row.path: getattr(row, quantity) for row in point.layers} for point in points]
    table = np.array([[size[name] for size in sizes] for name in names], np.float64)
    shown = np.ma.masked_where(~(np.isfinite(table) & (table > 0)), table)
    low, high = (shown.min(), shown.max()) if shown.count() else (1.0, 10.0)
    figure, [[axes]] = _figure(size=(6.4, max(2.4, 0.19 * min(len(names), LABELS) + 1.4)))
    axes.set_facecolor(GREY)
    image = axes.imshow(shown, aspect="auto", origin="lower", interpolation="none", cmap="viridis",
                        norm=LogNorm(low, high if high > low else 1.01 * low))  # fmt: skip
    every = -(-len(names) // LABELS)
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=8)
    steps = [str(i + 1) if point.step is None else str(point.step + 1) for i, point in enumerate(points)]
    ticks = np.unique(np.linspace(0, len(points) - 1, min(len(points), 7)).round().astype(int))
    axes.set_xticks(ticks, [steps[i] for i in ticks])
    axes.set(xlabel="steps taken", title=f"{SIZES[quantity]}, from the first layer (below) to the last")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, aspect=16, label="root mean square" if quantity != "ratio" else "ratio")
    bar.outline.set_visible(False)
    return figure


# ---------------------------------------------------------------- classifiers


@_styled
def decision_boundary(
    predict: Callable[[Any], Any],
    x: Any,
    labels: Any,
    *,
    threshold: float = 0.0,
    margin: float = 0.1,
    names: Sequence[str] = ("x₁", "x₂"),
) -> Figure:
    """The classes that a classifier gives to the points of a plane, and the examples on it.

    Args:
        predict: a function of points [M, 2] that gives scores [M, K], or one score [M] or [M, 1] for two classes.
        x: the examples [N, 2].
        labels: [N], from 0; −1 and 1 will do for two classes.
        threshold: of one score, above which it means class 1: 0 for logits, 0.5 for probabilities.
        margin: around the examples, as a share of their extent.
        names: of the two features.

    Raises:
        ValueError: if shapes do not fit.

    >>> decision_boundary(lambda x: predict(net, train_state, x), x, labels)  # doctest: +SKIP
    """
    from matplotlib.colors import ListedColormap

    if not is_function(predict):
        hint = ": give lambda x: predict(net, train_state, x)" if isinstance(predict, Layer) else ""
        raise TypeError(f"plots.decision_boundary: predict must be a function of points, got {seen(predict)}{hint}")
    x, labels = _numbers("decision_boundary: x", x), _numbers("decision_boundary: labels", labels).reshape(-1)
    if x.ndim != 2 or x.shape[1] != 2 or len(labels) != len(x) or not len(x):
        raise ValueError(f"plots.decision_boundary: expects x [N, 2] and labels [N], got {x.shape} and {labels.shape}")
    labels = np.where(labels < 0, 0, labels).astype(int)
    low, high = x.min(0), x.max(0)
    room = margin * np.where(high > low, high - low, 1)
    first, second = (np.linspace(a, b, SHADES) for a, b in zip(low - room, high + room, strict=True))
    plane = np.stack(np.meshgrid(first, second), -1)
    scores = np.asarray(predict(jnp.asarray(plane.reshape(-1, 2), jnp.float32)))
    if scores.ndim < 1 or scores.shape[0] != SHADES**2 or scores.ndim > 2:
        raise ValueError(f"plots.decision_boundary: predict must give [M, K] or [M] for M points, got {scores.shape}")
    one_score = scores.ndim == 1 or scores.shape[1] == 1
    classes = (scores.reshape(-1) > threshold).astype(int) if one_score else scores.argmax(-1)
    k = max(2 if one_score else scores.shape[1], int(labels.max()) + 1)
    figure, [[axes]] = _figure(size=(4.8, 4.0))
    shades = ListedColormap([_lighter(COLOURS[i % len(COLOURS)]) for i in range(k)])
    regions = classes.reshape(SHADES, SHADES)
    axes.pcolormesh(first, second, regions, cmap=shades, vmin=-0.5, vmax=k - 0.5, rasterized=True)
    if one_score:
        axes.contour(first, second, scores.reshape(SHADES, SHADES), [threshold], colors=DARK, linewidths=1)
    for i in np.unique(labels):
        chosen = labels == i
        axes.plot(*x[chosen].T, MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], label=f"class {i}",
                  markersize=5, markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.locator_params(nbins=5)
    _legend(figure, axes)
    return figure


def _lighter(colour: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(1 - 0.3 * (1 - part) for part in to_rgb(colour))


@_styled
def confusion_matrix(labels: Any, predictions: Any, *, names: Sequence[str] | None = None) -> Figure:
    """How many examples of each class were taken for each: rows are the true classes, the diagonal is right.

    Shades are shares of the row; mistakes have a colour of their own, so that they are seen beside the diagonal.

    Args:
        labels: the true classes [N], from 0.
        predictions: the classes that were given [N], or scores [N, K].
        names: of the K classes.

    Raises:
        ValueError: if shapes do not fit, there is no example, or a class is negative.
        TypeError: if classes are no whole numbers.

    >>> confusion_matrix(labels, predict(net, train_state, x))  # doctest: +SKIP
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    k = predictions.shape[1] if predictions.ndim == 2 else 0
    predictions = predictions.argmax(-1) if predictions.ndim == 2 else predictions
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        shown = f"{labels.shape} and {predictions.shape}"
        raise ValueError(f"plots.confusion_matrix: expects labels [N] and predictions [N] or [N, K], got {shown}")
    for what, classes in (("labels", labels), ("predictions", predictions)):
        if not np.issubdtype(classes.dtype, np.integer):
            raise TypeError(f"plots.confusion_matrix: {what} must be whole numbers, got {classes.dtype}")
        if classes.min() < 0:
            raise ValueError(f"plots.confusion_matrix: {what} must be classes from 0, got {classes.min()}")
    k = max(k, int(labels.max()) + 1, int(predictions.max()) + 1)
    if names is not None and len(names) != k:
        raise ValueError(f"plots.confusion_matrix: {len(names)} names for {k} classes")
    counts = np.zeros((k, k), int)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(k, dtype=bool)
    side = max(3.2, 0.5 * k)
    figure, [[axes]] = _figure(size=(side + 0.7, side + 0.7))
    axes.imshow(_tinted(shares, right))
    for row, column in np.ndindex(k, k):
        if counts[row, column]:
            dark = shares[row, column] > (0.5 if row == column else 0.25)
            size = 9 if counts.max() < 10_000 else 7
            text = f"{counts[row, column]}"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    ticks = [str(i) for i in range(k)] if names is None else list(names)
    narrow = max(map(len, ticks)) > CHARACTERS * side / k
    axes.set_xticks(range(k), ticks, rotation=40 if narrow else 0)
    axes.set_yticks(range(k), ticks)
    axes.set(xlabel="taken for", ylabel="true class", title=f"{100 * (labels == predictions).mean():.2f} % right")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _tinted(shares: np.ndarray, right: np.ndarray) -> np.ndarray:
    """White to blue where it is right, white to vermilion where it is wrong; half of a row is full colour there."""
    from matplotlib.colors import to_rgb

    depth = np.where(right, shares, np.minimum(1, np.sqrt(shares * 2)))[..., None]
    colour = np.where(right[..., None], to_rgb(COLOURS[0]), to_rgb(COLOURS[1]))
    return 1 - depth * (1 - colour)


# ---------------------------------------------------------------- images


@_styled
def weight_images(
    w: Any, shape: tuple[int, int], *, columns: int = 8, most: int = 64, titles: Sequence[str] | None = None
) -> Figure:
    """The weights into each unit as an image: blue is negative, white 0, red positive, one scale for all.

    Args:
        w: [D, H], as in `params["dense_0"]["w"]`.
        shape: (height, width) of an image, D pixels.
        columns: images in a row.
        most: units that are shown, the first ones.
        titles: of the units.

    Raises:
        ValueError: if w is not [D, H] with D = height · width.

    >>> weight_images(params["dense_0"]["w"], (28, 28))  # doctest: +SKIP
    """
    w = _numbers("weight_images: w", w)
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise TypeError(f"plots.weight_images: shape must be (height, width), got {seen(shape)}")
    if w.ndim != 2 or w.shape[0] != math.prod(shape):
        raise ValueError(f"plots.weight_images: expects w [{math.prod(shape)}, H] for images {shape}, got {w.shape}")
    images = w.T.reshape(-1, *shape)[: whole_number("plots.weight_images: most", most, least=1)]
    columns = min(whole_number("plots.weight_images: columns", columns, least=1), len(images))
    rows = -(-len(images) // columns)
    figure, panels = _figure(columns, rows, size=(0.85 * columns + 1.0, 0.85 * rows + (0.25 * rows if titles else 0)))
    extent = np.abs(w).max() or 1.0
    shown = None
    for i, axes in enumerate(panels.ravel()):
        axes.set_axis_off()
        if i < len(images):
            shown = axes.imshow(images[i], cmap="RdBu_r", vmin=-extent, vmax=extent)
            axes.set_title(titles[i] if titles else "", fontsize=9, loc="center", pad=3)
    bar = figure.colorbar(shown, ax=panels, shrink=min(1.0, 2.5 / (0.85 * rows)), aspect=16, label="weight")
    bar.outline.set_visible(False)
    return figure


@_styled
def image_rows(rows: Mapping[str, Any]) -> Figure:
    """Rows of images with a name before each: digits, and below them what augmentation makes of them.

    Args:
        rows: by name, [n, H, W, 1] or [n, H, W] for grey images, [n, H, W, 3] for colours from 0 to 1. Grey images
            share one scale: the least pixel of the first row is white, its greatest black, and what lies beyond too.

    Raises:
        TypeError: if rows is no mapping.
        ValueError: if it is empty, or something is not a batch of images.

    >>> image_rows({"as they are": x, "rotated": augment.rotate(20)(key, x)})  # doctest: +SKIP
    """
    _named("image_rows", "rows", rows)
    batches = {name: np.asarray(images, np.float32) for name, images in rows.items()}
    for name, images in batches.items():
        if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))) or not len(images):
            raise ValueError(f"plots.image_rows: {name!r} must be images [n, H, W, 1], got {images.shape}")
    columns = max(map(len, batches.values()))
    figure, panels = _figure(columns, len(batches), size=(0.75 * columns + 1.4, 0.78 * len(batches)))
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
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05, hspace=0.0, wspace=0.0)
    return figure


def _numbers(what: str, value: Any) -> np.ndarray:
    """The value as an array of numbers, on the host."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"plots.{what} must be an array of numbers, got {seen(value)}") from None


def _named(what: str, argument: str, value: Mapping[str, Tree]) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"plots.{what}: {argument} must be a dict by name, got {type(value).__name__}")
    if not value:
        raise ValueError(f"plots.{what}: {argument} is empty")
