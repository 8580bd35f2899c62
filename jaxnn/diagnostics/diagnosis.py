"""The interpretation of the measures of a step: a row for each layer, a verdict, and the figures behind it."""

from __future__ import annotations

import itertools
import math
import operator
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxnn.bars import bar_of, span
from jaxnn.checks import seen
from jaxnn.combinators.walk import Place, leaves_of, places
from jaxnn.diagnostics.measures import Measures
from jaxnn.magnitudes import LARGEST, SMALLEST
from jaxnn.mistakes import net_record, several
from jaxnn.showing import shown
from jaxnn.types import Layer

NOT_FINITE, DEAD, EXPLODING, VANISHING, SATURATED, HEALTHY = (
    "not finite", "dead", "exploding", "vanishing", "saturated", "healthy",
)  # fmt: skip
# Deep in an untrained network of rectifiers all examples are alike (their correlation tends to 1), so that half of the
# units of a layer are 0 for all of them, in a narrow layer by chance two thirds. Nine in ten are no longer chance.
MOST_DEAD = 0.9
# Half of a layer: for z ~ N(0, 1), 1 in 80,000 entries of a sigmoid and 1 in 35 of a tanh are saturated.
MOST_SATURATED = 0.5
# He's initialisation multiplies the scale of a layer's input by √2, Glorot's and LeCun's by at most that; N(0, 1) by
# the root of the number of inputs. A trained layer may do more, so the limit applies to initial parameters only.
LARGEST_GAIN = 5.0
ROWS = 40  # of a table; further ones are left out in the middle
NAME, BAR, FIGURE = 26, 16, 7  # columns, at most
LEAST_BAR = 4
TITLES = ("output", "gradient", "update", "δ")


class LayerRow(NamedTuple):
    """A layer of a network in one step; sizes are root mean squares, None if they do not apply.

    Attributes:
        path: its place in parameters, "residual_0/dense_1"; with "[i]" for pass i of a `repeat` or `share`.
        kind: "dense".
        output: of its output.
        delta: of δ = ∂(Σ wₙCₙ)/∂(its output).
        weight: of its parameters, all leaves together.
        gradient: of ∂C/∂(its parameters), penalty included.
        ratio: of the update by the optimizer, over that of the parameters; about 1e-3 is usual.
        gain: of its output, over that of its input, for a layer with a weight matrix.
        dead: for a rectifier, the share of units whose slope is 0 for every example of the batch.
        saturated: for another activation, the share of entries with a slope below 1/20 of that at 0.
    """

    path: str
    kind: str
    output: float | None
    delta: float | None
    weight: float | None
    gradient: float | None
    ratio: float | None
    gain: float | None
    dead: float | None
    saturated: float | None


class Finding(NamedTuple):
    """A defect, the layer that has it, and the figures that show it."""

    verdict: str
    path: str
    why: str


@shown(lambda diagnosis: f"<{_title(diagnosis)}>")
class Diagnosis(NamedTuple):
    """The health of a network in one step; `print` shows a verdict and a table.

    Attributes:
        verdict: "not finite", "dead", "exploding", "vanishing", "saturated" or "healthy": that of the first finding.
        findings: all defects, the most serious first; () for a healthy network.
        layers: a row for each leaf layer, from the first to the last.
        step: the step of training, counted from 0; None if none was taken.
    """

    verdict: str
    findings: tuple[Finding, ...]
    layers: tuple[LayerRow, ...]
    step: int | None

    @property
    def ok(self) -> bool:
        """True for a healthy network."""
        return self.verdict == HEALTHY

    def __str__(self) -> str:
        return _table(self, shutil.get_terminal_size().columns)


def report(net: Layer, measures: Measures, *, initial: bool = False) -> Diagnosis:
    """The diagnosis of a network by the measures of one step.

    Only layers with parameters are compared: δ with that at the last of them, the outputs with those of the first. The
    network is vanishing or exploding if one is 1,000 times smaller or larger, dead if nine in ten units of a layer are,
    saturated if half of the entries of a layer are.

    Args:
        net: the network.
        measures: of one step of one network; of several, select one with `jax.tree.map(lambda leaf: leaf[i], …)`.
        initial: True for initial parameters; then a layer that multiplies the scale of its input by more than 5 is
            exploding too.

    Raises:
        ValueError: if the measures are of several steps, or of another network.

    >>> from jaxnn import losses, mlp, sgd, train_step, init_train_state
    >>> net, rate = mlp([3, 1]), sgd(0.1)
    >>> step = train_step(net, losses.mse, rate, measure=True)
    >>> _, out = step(init_train_state(net, rate, 0, (2,)), np.ones((4, 2), "f"), np.ones((4, 1), "f"))
    >>> report(net, out.readings["diagnostics"]).verdict
    'healthy'
    """
    net_record("diagnostics.report", net)
    _check_measures("diagnostics.report", measures)
    rows = tuple(_rows(net, measures))
    findings = tuple(_findings(rows, initial))
    step = int(np.asarray(measures.step))
    return Diagnosis(findings[0].verdict if findings else HEALTHY, findings, rows, None if step < 0 else step)


def report_each(net: Layer, measures: Measures) -> tuple[Diagnosis, ...]:
    """`report` of each of several steps, [steps] in every leaf, as measured in an epoch.

    Raises:
        ValueError: as `report`.

    >>> from jaxnn import losses, mlp, sgd, train_epoch, init_train_state
    >>> net, rate, x = mlp([3, 1]), sgd(0.1), np.ones((12, 2), "f")
    >>> epoch = train_epoch(net, losses.mse, rate, batch_size=2, measure=2)
    >>> _, result = epoch(init_train_state(net, rate, 0, (2,)), x, x[:, :1])
    >>> [found.step for found in report_each(net, result.diagnostics)]
    [2, 5]
    """
    net_record("diagnostics.report_each", net)
    _check_measures("diagnostics.report_each", measures)
    if np.ndim(measures.step) != 1:
        raise ValueError(f"diagnostics.report_each: expects measures of [steps], got {np.shape(measures.step)}")
    host = jax.tree.map(np.asarray, measures)
    return tuple(report(net, jax.tree.map(operator.itemgetter(i), host)) for i in range(len(host.step)))


def _check_measures(where: str, measures: object) -> None:
    if not isinstance(measures, Measures):
        advice = "train_step(…, measure=True) returns them as readings['diagnostics']"
        raise TypeError(f"{where}: expected Measures, got {seen(measures)}: {advice}")


# ---------------------------------------------------------------- rows


def _rows(net: Layer, measures: Measures) -> Iterator[LayerRow]:
    """Rows in the order in which the layers run, one for each pass of a loop."""
    if {"/".join(place.path) for place in leaves_of(net)} != set(measures.layers):
        raise ValueError("diagnostics.report: the measures are those of another network")
    if np.ndim(measures.step):
        raise ValueError(
            f"diagnostics.report: expects the measures of one step, got those of {np.shape(measures.step)}: select one "
            "with jax.tree.map(lambda leaf: leaf[i], measures)"
        )
    host = jax.tree.map(np.asarray, measures)
    for place, index in _passes(net):
        name = "/".join(place.path)
        of_params = tuple(i for i, loop in zip(index, place.loops, strict=True) if loop.stacks)
        entry = {key: float(value[index]) for key, value in host.layers[name].items()}
        entry |= {key: float(value[of_params]) for key, value in host.params.get(name, {}).items()}
        gain = entry["output"] / entry["input"] if entry.get("input") and "output" in entry else None
        given = {key: entry.get(key) for key in ("output", "delta", "weight", "gradient", "ratio", "dead", "saturated")}
        yield LayerRow(name + "".join(f"[{i}]" for i in index), place.layer.kind, gain=gain, **given)


def _passes(net: Layer) -> list[tuple[Place, tuple[int, ...]]]:
    """Each leaf with the number of the pass in every loop around it, in the order in which they run."""
    times = {place.index: place.layer.passes for place in places(net)}
    found = []
    for place in leaves_of(net):
        around = [times[place.index[:depth]] for depth in range(len(place.index))]
        for passes in itertools.product(*(range(n or 1) for n in around)):
            own = tuple(i for i, n in zip(passes, around, strict=True) if n is not None)
            order = tuple(zip(passes, place.index, strict=True))
            found.append((order, place, own))
    return [(place, own) for _, place, own in sorted(found, key=lambda one: one[0])]


# ---------------------------------------------------------------- the verdict


def _findings(rows: Sequence[LayerRow], initial: bool) -> Iterator[Finding]:
    sizes = [(row.path, what, value) for row in rows for what, value in _figures(row)]
    bad = [(path, what) for path, what, value in sizes if not math.isfinite(value)]
    if bad:
        path, what = bad[0]
        more = f", and {len(bad) - 1} more figures" if len(bad) > 1 else ""
        yield Finding(NOT_FINITE, path, f"the {what} of {path or 'the layer'} is not finite{more}")
    layers = [row for row in rows if row.weight is not None]
    found = [*_drift(layers, "δ", -1), *_drift(layers, "outputs", 0)]
    gains = [row for row in layers if row.gain is not None and math.isfinite(row.gain)]
    if initial and gains:
        worst = max(gains, key=lambda row: row.gain or 0.0)
        if (worst.gain or 0.0) > LARGEST_GAIN:
            why = f"{worst.path} multiplies the scale of its input by {_figure(worst.gain)}, limit {LARGEST_GAIN:g}"
            found.append(Finding(EXPLODING, worst.path, f"{why}: its initial scale is too large"))
    # Dead units come first, because they make δ vanish.
    yield from _idle([(row, row.dead) for row in rows], DEAD, MOST_DEAD, "of the units are 0 for the whole batch")
    yield from (one for verdict in (EXPLODING, VANISHING) for one in found if one.verdict == verdict)
    flat = [(row, row.saturated) for row in rows]
    yield from _idle(flat, SATURATED, MOST_SATURATED, "of the outputs are where the slope is below 1/20 of that at 0")


def _figures(row: LayerRow) -> Iterator[tuple[str, float]]:
    named = (("output", row.output), ("δ", row.delta), ("weight", row.weight), ("gradient", row.gradient))
    yield from ((what, value) for what, value in named if value is not None)


def _drift(layers: Sequence[LayerRow], what: str, reference: int) -> Iterator[Finding]:
    """A size that is far smaller or larger than at the layer with which it is compared."""
    sizes = [(row, row.delta if what == "δ" else row.output) for row in layers]
    known = [(row, size) for row, size in sizes if size is not None and math.isfinite(size)]
    if len(known) < 2 or not known[reference][1]:
        return
    beside, unit = known[reference]
    pick = {VANISHING: min(known, key=lambda pair: pair[1]), EXPLODING: max(known, key=lambda pair: pair[1])}
    for verdict, (row, size) in pick.items():
        factor = size / unit
        if factor < SMALLEST if verdict == VANISHING else factor > LARGEST:
            limit = SMALLEST if verdict == VANISHING else LARGEST
            apart = abs(layers.index(row) - layers.index(beside))
            figures = f"{_figure(unit)} at {beside.path} and {_figure(size)} at {row.path}"
            verb = "is" if what == "δ" else "are"
            over = f"× {_figure(factor)} over {apart} layer{'s' * (apart != 1)} (limit {limit:g})"
            yield Finding(verdict, row.path, f"{what} {verb} {figures}, {over}")


def _idle(shares: Sequence[tuple[LayerRow, float | None]], verdict: str, most: float, what: str) -> Iterator[Finding]:
    """The layer with the largest share, and the number of others above the limit."""
    over = [(row, share) for row, share in shares if share is not None and share >= most]
    if over:
        row, share = max(over, key=lambda pair: pair[1])
        others = f"; {len(over) - 1} more layers" if len(over) > 2 else "; 1 more layer" if len(over) == 2 else ""
        yield Finding(verdict, row.path, f"in {row.path}, {share:.0%} {what} (limit {most:.0%}){others}")


# ---------------------------------------------------------------- text


def _figure(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:.3g}" if 1e-2 <= abs(x) < 1e4 or x == 0 or not math.isfinite(x) else f"{x:.1e}"


def _table(diagnosis: Diagnosis, width: int) -> str:
    """The verdict, and a row for each layer with a bar for the logarithm of δ."""
    rows = diagnosis.layers
    lines = textwrap.wrap(_title(diagnosis), width)
    for finding in diagnosis.findings[1:]:
        lines += textwrap.wrap(f"{finding.verdict}: {finding.why}", width, initial_indent="and ")
    before = (ROWS + 1) // 2
    skipped = len(rows) - ROWS if len(rows) > ROWS + 1 else 0  # one is replaced by a line that gives their number
    shown = [*rows[:before], *rows[before + skipped :]] if skipped else list(rows)
    ends = span(row.delta for row in rows if row.delta is not None)
    idle = [_share(row) if round(100 * (row.dead or row.saturated or 0.0)) else "" for row in shown]
    rest = len(TITLES) * (FIGURE + 2) + max(2 + len(text) for text in ("", *idle)) + 2
    name = max(len("layer"), *(len(row.path) for row in shown)) if shown else len("layer")
    name = max(min(name, NAME, width - rest - LEAST_BAR), len("layer"))
    room = max(min(BAR, width - rest - name), LEAST_BAR)
    lines += ["", f"{'layer':<{name}}" + "".join(f"{title:>{FIGURE + 2}}" for title in TITLES)]
    for k, (row, share) in enumerate(zip(shown, idle, strict=True)):
        if skipped and k == before:
            lines.append(f"⋮ {skipped} more")
        sizes = (row.output, row.gradient, row.ratio, row.delta)
        mark = "" if row.delta is None else bar_of(row.delta, ends, room)
        label = row.path if len(row.path) <= name else "…" + row.path[1 - name :]
        figures = "".join(f"{_figure(size):>{FIGURE + 2}}" for size in sizes)
        lines.append(f"{label:<{name}}{figures}  {mark:<{room}}  {share}".rstrip())
    lines += ["", "root mean squares; update relative to weights; the bar is log δ"]
    return "\n".join(lines)


def over_time(points: Sequence[Diagnosis]) -> str:
    """The diagnoses of a training as a table, a line for each: verdict, extremes of δ and outputs, most dead units.

    >>> print(over_time([Diagnosis("healthy", (), (), 9)]))
    step  verdict  δ  outputs  updates  idle
       9  healthy
    """
    points = several("diagnostics.over_time: points", points, "fit(…, measure=1).diagnostics")
    for point in points:
        if not isinstance(point, Diagnosis):
            raise TypeError(f"diagnostics.over_time: expected Diagnosis records, got {seen(point)}")
    titles = ("step", "verdict", "δ", "outputs", "updates", "idle")
    cells: list[tuple[str, ...]] = [titles]
    for point in points:
        layers = [row for row in point.layers if row.weight is not None]
        extremes = [_range([getattr(row, of) for row in layers]) for of in ("delta", "output", "ratio")]
        idlest = max(point.layers, key=lambda row: max(row.dead or 0.0, row.saturated or 0.0), default=None)
        idle = f"{_share(idlest)} in {idlest.path}" if idlest is not None and _share(idlest) else ""
        cells.append(("" if point.step is None else str(point.step), point.verdict, *extremes, idle))
    widths = [max(len(line[i]) for line in cells) for i in range(len(titles))]
    return "\n".join(
        "  ".join(
            f"{cell:>{size}}" if i == 0 else f"{cell:<{size}}"
            for i, (cell, size) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _range(sizes: Sequence[float | None]) -> str:
    known = [size for size in sizes if size is not None]
    return f"{_figure(min(known))} to {_figure(max(known))}" if known else ""


def _title(diagnosis: Diagnosis) -> str:
    at = "" if diagnosis.step is None else f" at step {diagnosis.step}"
    return f"{diagnosis.verdict}{at}: {_headline(diagnosis)}"


def _headline(diagnosis: Diagnosis) -> str:
    """The first finding; for a healthy network, the figures that were judged."""
    if diagnosis.findings:
        return diagnosis.findings[0].why
    layers = [row for row in diagnosis.layers if row.weight is not None]
    ranges = {"δ": _range([row.delta for row in layers]), "outputs": _range([row.output for row in layers])}
    parts = [f"{what} from {figures}" for what, figures in ranges.items() if figures]
    for what in ("dead", "saturated"):
        known = [share for share in (getattr(row, what) for row in diagnosis.layers) if share is not None]
        if known:
            parts.append(f"at most {max(known):.0%} of a layer {what}")
    return ", ".join(parts) or "no figures to judge"


def _share(row: LayerRow) -> str:
    for what, share in (("dead", row.dead), ("saturated", row.saturated)):
        if share is not None:
            return f"{share:.0%} {what}"
    return ""
