"""The record of an explanation, and its text."""

from __future__ import annotations

import linecache
import os
import textwrap
from typing import Any, NamedTuple

from jaxnn.graph.nodes import Node
from jaxnn.graph.nonfinite.causes import REWRITES, Cause
from jaxnn.graph.nonfinite.entries import Entry
from jaxnn.graph.summaries import number
from jaxnn.showing import shown

FORWARD, BACKWARD = "forward", "backward"
WIDTH = 110  # of a line of text
OTHERS = 3  # further origins that are listed


@shown(lambda found: f"<explanation: {_text(found).splitlines()[0]}>")
class Explanation(NamedTuple):
    """The origin of a value or a gradient that is not finite; `print` it.

    Attributes:
        finite: True if the value and every gradient are finite; of what follows, only `name`, `intended`, `unknown` and
            `runs` are then filled.
        name: the function's.
        direction: "forward" for a value, "backward" for a gradient.
        reached: the results that are not finite: "the value", "the gradient of x".
        cause: its name, "the where trap".
        detail: what happened, with the numbers.
        rewrite: the fix, and what it changes.
        operation: the operation that produced it, "sqrt"; "" if it was an input.
        source: the user's line, `file:line (function)`, or "".
        line: the text of that line, or "".
        steps: the iterations and branches around it, outermost first: ("scan step 17",).
        group: names of the scopes around it, outermost first.
        element: the index of the first affected entry, or None.
        numbers: the operation's inputs and output at that element, "x = 0, z = 0, δ = 0".
        hidden: the operation that discards the result, "where at file:line (function)"; "" if the result is used.
        then: the consequence, in a later operation: "∞/∞ in div at file:line (function)"; or "".
        others: further origins of the same kind, each an operation and its line.
        unknown: the reason why gradients were not checked, "f has no float inputs"; "" if they were.
        intended: an infinity in the value that the code itself writes, which raises no alarm; or "".
        runs: disagreements between the function run as a whole, eagerly or jitted, and operation by operation.
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
    intended: str = ""
    runs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _text(self)


def explanation(
    direction: str, node: Node, why: Cause, element: tuple[int, ...] | None, numbers: str = ""
) -> Explanation:
    """The explanation of what an operation did."""
    return Explanation(
        False, "", direction, (), *why, node.operation, node.source, line_of(node), (), node.group, element, numbers
    )


def with_cause(found: Explanation, name: str, detail: str, **changes: Any) -> Explanation:
    """The same explanation with another cause."""
    return found._replace(cause=name, detail=detail, rewrite=REWRITES[name], **changes)


def within(found: Explanation, node: Node, word: str) -> Explanation:
    """An explanation found inside an operation, as seen from outside."""
    steps = (word, *found.steps) if word else found.steps
    source, line = found.source, found.line
    if not source:
        source, line = node.source, line_of(node)
    return found._replace(steps=steps, source=source, line=line, group=(*node.group, *found.group))


def line_of(node: Node) -> str:
    """The text of an operation's line."""
    return linecache.getline(node.file, node.line).strip() if node.file else ""


def named(node: Node) -> str:
    """An operation and its line."""
    return f"{node.operation} at {node.source}" if node.source else node.operation


def numbers(s: Entry) -> str:
    """The inputs and the output of an operation at an element."""
    letters = "xyabcd" if len(s.x) > 1 else "x"
    shown = [f"{letter} = {number(x)}" for letter, x in zip(letters, s.x, strict=False) if x is not None]
    shown += [f"z = {number(s.z)}"] + ([] if s.delta is None or s.delta != s.delta else [f"δ = {number(s.delta)}"])
    return ", ".join(shown)


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
        return f"{e.name}: its value is finite; its gradients were not checked: {e.unknown}"
    if e.intended:
        return f"{e.name}: its value is finite but for {e.intended}; its gradients are finite"
    return f"{e.name}: its value and its gradients are finite"


def _place(e: Explanation) -> str:
    place = [e.operation] * bool(e.operation) + [f"in {'/'.join(e.group)}"] * bool(e.group) + list(e.steps)
    if e.element:
        place.append(f"element {list(e.element)}")
    if e.numbers:
        place.append(e.numbers)
    return ", ".join(place)


def _entry(word: str, texts: tuple[str, ...] | list[str]) -> list[str]:
    """A heading and its texts, wrapped to a terminal; lines of code are kept whole."""
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
