"""Text in the columns of a terminal, where a character takes one column, two or none."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def columns(text: str) -> int:
    """The width of a text in a terminal: East Asian wide characters take two columns, combining ones none.

    >>> [columns(text) for text in ("δx = Wᵀδ", "重み", "e\u0301")]
    [8, 4, 1]
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, room: int, *, end: bool = True) -> str:
    """The text in `room` columns; what is cut off, at the end or at the start, becomes "…".

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


def middle(text: str, room: int, tail: int) -> str:
    """The text in `room` columns; what is cut out before its last `tail` columns becomes "…".

    >>> middle("params['dense_1']['w']", 14, 8)
    "param…1']['w']"
    """
    if columns(text) <= room:
        return text
    last = cut(text, min(tail, room - 1) + 1, end=False).removeprefix("…")
    return cut(text, room - columns(last)) + last


def distinct(texts: Iterable[str], room: int) -> dict[str, str]:
    """Each text in `room` columns, such that different texts remain different, if possible.

    They are all cut in the middle, at the same place; if that is not enough, their common beginning is cut off first.

    >>> distinct(["encoder_block_1/dense", "encoder_block_2/dense"], 12)
    {'encoder_block_1/dense': 'enco…1/dense', 'encoder_block_2/dense': 'enco…2/dense'}
    """
    whole = list(dict.fromkeys(texts))
    long = [text for text in whole if columns(text) > room]
    best = {text: text for text in whole}
    if not long or room < 1:
        return best | dict.fromkeys(long, "")
    alike = _alike(long) if len(long) > 1 else ""
    most, chosen = 0, best
    for start in ("", alike):
        for tail in sorted(range(room), key=lambda tail: abs(tail - room // 2)):
            short = {text: middle("…" + text[len(start) :] if start else text, room, tail) for text in long}
            found = best | short
            different = len(set(found.values()))
            if different > most:
                most, chosen = different, found
            if different == len(whole):
                return found
    return chosen


def _alike(texts: Sequence[str]) -> str:
    """The common beginning."""
    least, last = min(texts), max(texts)  # in lexicographic order, so the others lie between
    return least[: next((i for i, (a, b) in enumerate(zip(least, last, strict=False)) if a != b), len(least))]


def pad(text: str, room: int, *, right: bool = False) -> str:
    """The text padded with spaces to `room` columns; flush right on request."""
    space = " " * (room - columns(text))
    return space + text if right else text + space
