"""The record of why a value or a gradient is not finite, and its text."""

from __future__ import annotations

import linecache
import os
import textwrap
from typing import NamedTuple

from jaxnn.graph.nodes import Node
from jaxnn.graph.nonfinite.causes import Cause
from jaxnn.graph.nonfinite.entries import Spot
from jaxnn.graph.summaries import number
from jaxnn.showing import shown

FORWARD, BACKWARD = "forward", "backward"
WIDTH = 110  # of a line of text
OTHERS = 3  # more origins that are listed


@shown(lambda found: f"<explanation: {_text(found).splitlines()[0]}>")
class Explanation(NamedTuple):
    """What made a value or a gradient that is not finite; `print` it.

    Attributes:
        finite: True if the value and every gradient are finite; all that follows is then empty but for `meant`,
            `unknown` and `runs`.
        name: of the function.
        direction: "forward" for a value, "backward" for a gradient.
        reached: what is not finite in the end: "the value", "the gradient of x".
        cause: by name, "the where trap".
        detail: what happened, with the numbers.
        rewrite: what fixes it, and what that changes.
        operation: that made it, "sqrt"; "" where it came in.
        source: the user's line, `file:line (function)`, or "".
        line: its text, or "".
        steps: the iterations and branches that it stands in, outermost first: ("scan step 17",).
        group: names of the scopes around it, outermost first.
        element: the index of the first entry concerned, or None.
        numbers: what the operation was given and gave at that element, "x = 0, z = 0, δ = 0".
        hidden: what threw the result away, "where at file:line (function)"; "" where it counts.
        then: what became of it afterwards, where that is another operation: "∞/∞ in div at file:line (function)".
        others: more origins of the same kind, each an operation and its line.
        unknown: why nothing is said of gradients, "f has no float inputs"; "" where they were looked at.
        meant: where an infinity in the value was written in the code, which raises no alarm; or "".
        runs: where f run whole, eagerly or jitted, is finite and operation by operation is not, or the reverse.
    """

    finite: bool
    name: str
    direction: str = ""
    reached: tuple[str, ...] = ()
    cause: str = ""
    detail: str = ""
    rewrite: str = ""
    operation: str = ""
    source: str = ""
    line: str = ""
    steps: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    element: tuple[int, ...] | None = None
    numbers: str = ""
    hidden: str = ""
    then: str = ""
    others: tuple[str, ...] = ()
    unknown: str = ""
    meant: str = ""
    runs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _text(self)


def explanation(
    direction: str, node: Node, why: Cause, element: tuple[int, ...] | None, numbers: str = ""
) -> Explanation:
    """What an operation did."""
    return Explanation(
        False, "", direction, (), *why, node.operation, node.source, line_of(node), (), node.group, element, numbers
    )


def within(found: Explanation, node: Node, word: str) -> Explanation:
    """What was found inside an operation, as seen from outside."""
    steps = (word, *found.steps) if word else found.steps
    source, line = found.source, found.line
    if not source:
        source, line = node.source, line_of(node)
    return found._replace(steps=steps, source=source, line=line, group=(*node.group, *found.group))


def line_of(node: Node) -> str:
    """The text of the line that made an operation."""
    return linecache.getline(node.file, node.line).strip() if node.file else ""


def named(node: Node) -> str:
    """An operation and its line."""
    return f"{node.operation} at {node.source}" if node.source else node.operation


def numbers(s: Spot) -> str:
    """What an operation was given and gave at an element."""
    letters = "xyabcd" if len(s.x) > 1 else "x"
    shown = [f"{letter} = {number(x)}" for letter, x in zip(letters, s.x, strict=False) if x is not None]
    shown += [f"z = {number(s.z)}"] + ([] if s.delta is None or s.delta != s.delta else [f"δ = {number(s.delta)}"])
    return ", ".join(shown)


# ---------------------------------------------------------------- as text


def _text(e: Explanation) -> str:
    if e.finite:
        lines = [_clean(e)]
    else:
        lines = [f"{e.name}: {' and '.join(e.reached) or 'it'} {'are' if len(e.reached) > 1 else 'is'} not finite"]
        lines += _entry("cause", [f"{e.cause}: {e.detail}"])
        lines += _entry("where", [part for part in (e.source, e.line, _place(e)) if part])
        lines += _entry("hidden", [f"by {e.hidden}"] * bool(e.hidden))
        lines += _entry("then", [e.then] * bool(e.then))
        lines += _entry("fix", [e.rewrite])
        more = len(e.others) - OTHERS
        lines += _entry("also", [*e.others[:OTHERS], *[f"and {more} more"] * (more > 0)])
    lines += _entry("runs", e.runs)
    return "\n".join(lines).replace(os.getcwd() + os.sep, "")


def _clean(e: Explanation) -> str:
    if e.unknown:
        return f"{e.name}: its value is finite; its gradients were not looked at: {e.unknown}"
    if e.meant:
        return f"{e.name}: its value is finite but for {e.meant}; its gradients are finite"
    return f"{e.name}: its value and its gradients are finite"


def _place(e: Explanation) -> str:
    place = [e.operation] * bool(e.operation) + [f"in {'/'.join(e.group)}"] * bool(e.group) + list(e.steps)
    if e.element:
        place.append(f"element {list(e.element)}")
    if e.numbers:
        place.append(e.numbers)
    return ", ".join(place)


def _entry(word: str, texts: tuple[str, ...] | list[str]) -> list[str]:
    """A word and what belongs to it, in lines that are no wider than a terminal; lines of code are kept whole."""
    wrapped = [
        part
        for text in texts
        for part in (
            textwrap.wrap(text, WIDTH - 10, break_long_words=False, break_on_hyphens=False)
            if word in ("cause", "fix")
            else [text]
        )
    ]
    return [f"  {word if i == 0 else '':8}{text}" for i, text in enumerate(wrapped)]
