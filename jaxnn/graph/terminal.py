"""Text in the columns of a terminal, in which characters are one wide, two or none."""

from __future__ import annotations

import unicodedata


def columns(text: str) -> int:
    """How wide a terminal shows it: East Asian wide characters take two columns, combining ones none.

    >>> [columns(text) for text in ("δx = Wᵀδ", "重み", "e\u0301")]
    [8, 4, 1]
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, room: int, *, end: bool = True) -> str:
    """The text in that many columns; what is cut off, at the end or at the start, becomes "…".

    >>> cut("convert_element_type", 8), cut("activations.py:90", 8, end=False), cut("add", 8)
    ('convert…', '…s.py:90', 'add')
    """
    if columns(text) <= room:
        return text
    kept: list[str] = []
    used = 1
    for c in text if end else reversed(text):
        used += columns(c)
        if used > room:
            break
        kept.append(c)
    return "".join(kept) + "…" if end else "…" + "".join(reversed(kept))


def pad(text: str, room: int, *, right: bool = False) -> str:
    """The text with spaces up to that many columns; right puts it there."""
    space = " " * (room - columns(text))
    return space + text if right else text + space
