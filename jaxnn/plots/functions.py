"""Functions of one variable and their slopes: activations, losses, and learning rates over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import whole_number
from jaxnn.plots.arguments import check_mapping, check_records
from jaxnn.plots.style import add_legend, line_style, new_figure, styled, zero_lines
from jaxnn.types import Activation, Array, Loss, Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 401  # of a curve


@styled
def activations(*records: Activation, limits: tuple[float, float] = (-4.0, 4.0)) -> Figure:
    """The values h = σ(z) of activations, and beside them their slopes dh/dz.

    Args:
        *records: at least one activation.
        limits: the range of z.

    Raises:
        TypeError: if one is not an Activation.
        ValueError: if none is given.

    >>> activations(relu, tanh).savefig("activations.png")  # doctest: +SKIP
    """
    check_records("activations", records, Activation)
    figure, [[left, right]] = new_figure(2)
    z = jnp.linspace(*limits, POINTS)
    for i, record in enumerate(records):
        h = record.value(z)
        left.plot(z, h, label=record.name, **line_style(i))
        right.plot(z, record.slope(z, h), **line_style(i))
    left.set(title="value", xlabel="z", ylabel="h = σ(z)")
    right.set(title="slope", xlabel="z", ylabel="dh/dz")
    zero_lines(left, right)
    add_legend(figure, left)
    return figure


@styled
def losses(*records: Loss, target: float = 0.0, limits: tuple[float, float] = (-3.0, 3.0)) -> Figure:
    """The costs of one prediction for a given target, and beside them their slopes δ = ∂C/∂y.

    A loss of one score per class is drawn for two classes: the score of the right one varies, the other's is 0.

    Args:
        *records: at least one loss. All are drawn for the same target, so combine only losses for which it has the
            same meaning.
        target: t, such as 0 for mse, 1 for the hinge.
        limits: the range of the prediction y; 0 to 1 for a loss of probabilities.

    Raises:
        TypeError: if one is not a Loss.
        ValueError: if none is given.

    >>> losses(mse, huber(1.0)).savefig("losses.png")  # doctest: +SKIP
    """
    check_records("losses", records, Loss)
    figure, [[left, right]] = new_figure(2)
    y = jnp.linspace(*limits, POINTS)
    for i, record in enumerate(records):
        value, slope = _cost(record, y, target)
        left.plot(y, value, label=record.name, **line_style(i))
        right.plot(y, slope, **line_style(i))
    by_class = all(map(_takes_labels, records))
    xlabel = "score y of the right class" if by_class else f"prediction y, for t = {target:g}"
    left.set(title="cost", xlabel=xlabel, ylabel="C")
    right.set(title="slope", xlabel=xlabel, ylabel="δ = ∂C/∂y")
    zero_lines(left, right)
    add_legend(figure, left)
    return figure


def _takes_labels(loss: Loss) -> bool:
    """True for a loss of scores and labels, False for one of numbers and numbers."""
    scores, labels = jax.ShapeDtypeStruct((2, 2), jnp.result_type(float)), jax.ShapeDtypeStruct((2,), jnp.int32)
    try:
        jax.eval_shape(loss.value, scores, labels)
    except (ValueError, TypeError):
        return False
    return True


def _cost(loss: Loss, y: Array, target: float) -> tuple[Array, Array]:
    """C and ∂C/∂y at each y."""
    if _takes_labels(loss):
        scores, t = jnp.stack([y, jnp.zeros_like(y)], -1), jnp.zeros(len(y), jnp.int32)
    else:
        scores, t = y[:, None], jnp.full((len(y), 1), target, y.dtype)
    return loss.value(scores, t), loss.delta(scores, t)[:, 0]


@styled
def schedules(rates: Mapping[str, Schedule], steps: int, *, log: bool = False) -> Figure:
    """Learning rates over the first steps of training.

    Args:
        rates: by name, any functions step -> rate.
        steps: the number of steps.
        log: True for a logarithmic axis of rates.

    Raises:
        TypeError: if rates is not a mapping.
        ValueError: if it is empty, or steps is below 2.

    >>> figure = schedules({"stairs": step(0.1, factor=0.5, every=200)}, steps=1000)  # doctest: +SKIP
    """
    check_mapping("schedules", "rates", rates)
    steps = whole_number("plots.schedules: steps", steps, least=2)
    figure, [[axes]] = new_figure(size=(6.4, 3.2))
    shown = np.unique(np.linspace(0, steps - 1, min(steps, POINTS)).round().astype(np.int32))
    for i, (name, rate) in enumerate(rates.items()):
        axes.plot(shown, [float(rate(jnp.int32(step))) for step in shown], label=name, **line_style(i))
    axes.set(xlabel="step", ylabel="learning rate", title="schedules" if len(rates) > 1 else "schedule")
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    add_legend(figure, axes)
    return figure
