"""The report of a check of gradients: rows with their figures, one verdict, as text and HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxnn.showing import shown

RIGHT, WRONG, KINK, CANNOT_TELL, ALLOWED = "right", "wrong", "kink", "cannot tell", "allowed"
BY_AUTODIFF = "by autodiff"
SEVERITY = (ALLOWED, BY_AUTODIFF, RIGHT, KINK, CANNOT_TELL, WRONG)  # the worst row gives the report its verdict
MARKS = {RIGHT: "·", KINK: "∧", CANNOT_TELL: "?", WRONG: "✗", ALLOWED: "○", BY_AUTODIFF: "–"}
SHOWN = 40  # rows of a table, beyond which right ones are left out
LONGEST = 44  # characters of a place or a leaf in a table


class Row(NamedTuple):
    """The verdict on one leaf, or on one property of the rule, with its evidence.

    Attributes:
        place: the layer's path in a network, the case of a function: `"residual_2/dense_0"`, `"float32 [4, 3]"`.
        kind: the layer's kind, or what was checked: `"dense"`, `"gradient"`, `"linear in δ"`.
        leaf: the leaf's path: `"w"`, `"δ_in"`, `"args[0]"`.
        verdict: `"right"`, `"wrong"`, `"kink"` or `"cannot tell"`; or, not judged, `"by autodiff"` if there is no
            hand-derived rule, and `"allowed"`.
        why: the reason; may be "".
        element: the worst element's index, () for a scalar; None if the row is not on one element.
        hand: the hand-derived gradient there, in float64.
        autodiff: jax.grad's, in float64.
        differences: the slope by finite differences, in float64; None if it was not needed.
        slopes: (from the left, from the right), at a kink.
        excess: |hand − autodiff| as a multiple of what rounding explains; above 1 they differ.
        ulps: the error of the hand-derived gradient in the given precision, in units in the last place.
        autodiff_ulps: the error of jax.grad, likewise.
        source: `file:line (function)` of the line that prevents full float64, or defines an audited function; or "".
    """

    place: str
    kind: str
    leaf: str
    verdict: str
    why: str = ""
    element: tuple[int, ...] | None = None
    hand: float | None = None
    autodiff: float | None = None
    differences: float | None = None
    slopes: tuple[float, float] | None = None
    excess: float | None = None
    ulps: float | None = None
    autodiff_ulps: float | None = None
    source: str = ""


def worst_verdict(rows: Iterable[Row]) -> str:
    """Wrong before cannot tell, before kink, before right; right if there are no rows."""
    return max((row.verdict for row in rows), key=SEVERITY.index, default=RIGHT)


@shown(lambda report: f"<gradcheck of {report.title}: {_headline(report)}>")
class Report(NamedTuple):
    """The result of a check: `str(report)` is a table, a notebook shows one in HTML.

    Attributes:
        title: what was checked.
        rows: in the order of the network or of the arguments.
        wrong: the places whose own rule is wrong, each once, in that order.

    >>> Report("my rule", (Row("float32", "gradient", "args[0]", "right"),), ()).ok
    True
    """

    title: str
    rows: tuple[Row, ...]
    wrong: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of the rows: wrong, before cannot tell, before kink, before right."""
        return worst_verdict(self.rows)

    @property
    def ok(self) -> bool:
        """True if every row is right, or a kink at which the rule gives an allowed slope, or is not judged."""
        return self.verdict in (ALLOWED, BY_AUTODIFF, RIGHT, KINK)

    def raise_if_failed(self) -> None:
        """For tests.

        Raises:
            AssertionError: with the table, if a row is wrong or undecided.
        """
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        return _text(self)

    def _repr_html_(self) -> str:
        return _html(self)


# ---------------------------------------------------------------- as text

NO_ELEMENTS = "no elements"  # a reason that is not shown

HEADINGS = ("", "where", "what", "leaf", "element", "by hand", "jax.grad", "differences", "ULPs", "jax.grad's")


def _text(report: Report) -> str:
    rows, folded = _shown(report)
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    kept = [i for i in range(len(HEADINGS)) if any(line[i] for line in cells[1:])]
    widths = {i: max(len(line[i]) for line in cells) for i in kept}
    right_aligned = set(range(5, len(HEADINGS)))

    def line(cell: tuple[str, ...]) -> str:
        parts = [cell[i].rjust(widths[i]) if i in right_aligned else cell[i].ljust(widths[i]) for i in kept]
        return "  ".join(parts).rstrip()

    lines = [f"{report.title}: {_headline(report)}", "", line(cells[0])] if rows else [_headline(report)]
    for row, cell in zip(rows, cells[1:], strict=True):
        lines.append(line(cell))
        if row.why and (row.verdict != RIGHT or row.why != NO_ELEMENTS):
            lines += [f"   {part}" for part in _wrapped(row.why)]
            if row.source:
                lines.append(f"   at {row.source}")
    if folded:
        lines.append(f"·  and {folded} more, all right")
    return "\n".join(lines)


def _headline(report: Report) -> str:
    counts = {verdict: sum(row.verdict == verdict for row in report.rows) for verdict in reversed(SEVERITY)}
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    wrong = f": {', '.join(report.wrong)}" if report.wrong else ""
    return f"{report.verdict.upper()}{wrong} ({counted or 'nothing to check'})"


def _shown(report: Report) -> tuple[list[Row], int]:
    """Every row that is not right, and as many of the others as fit on a screen."""
    if len(report.rows) <= SHOWN:
        return list(report.rows), 0
    right = [i for i, row in enumerate(report.rows) if row.verdict == RIGHT]
    folded = set(right[max(SHOWN - len(report.rows) + len(right), 0) :])
    return [row for i, row in enumerate(report.rows) if i not in folded], len(folded)


def _cells(row: Row) -> tuple[str, ...]:
    element = "" if row.element is None else f"[{', '.join(map(str, row.element))}]"
    return (
        MARKS[row.verdict],
        _short(row.place),
        row.kind,
        _short(row.leaf),
        element,
        _number(row.hand),
        _number(row.autodiff),
        _number(row.differences),
        _ulps(row.ulps),
        _ulps(row.autodiff_ulps),
    )


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.7g}"


def _ulps(x: float | None) -> str:
    return "" if x is None else f"{x:.1f}" if x < 100 else f"{x:.0e}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"…{text[-LONGEST + 1 :]}"


def _wrapped(text: str, width: int = 100) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# ---------------------------------------------------------------- as HTML

COLOURS = {RIGHT: "#2e7d32", KINK: "#1565c0", CANNOT_TELL: "#b26a00", WRONG: "#c62828"}
NEUTRAL = "#616161"  # of what was not judged


def _html(report: Report) -> str:
    rows, folded = _shown(report)
    title = f"<b>{html.escape(report.title)}</b>: {html.escape(_headline(report))}"
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("verdict", *HEADINGS[1:], "evidence"))
    body = "".join(f"<tr>{_html_cells(row)}</tr>" for row in rows)
    more = f"<p>and {folded} more, all right</p>" if folded else ""
    return f"<div>{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"


def _html_cells(row: Row) -> str:
    colour = COLOURS.get(row.verdict, NEUTRAL)
    evidence: Any = " ".join(part for part in (row.why, f"at {row.source}" if row.source else "") if part)
    cells = [f"<td style='color:{colour};font-weight:bold'>{row.verdict}</td>"]
    cells += [f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in _cells(row)[1:]]
    return "".join([*cells, f"<td style='text-align:left'>{html.escape(evidence)}</td>"])
