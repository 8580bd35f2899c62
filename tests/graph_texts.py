"""How wide a terminal shows a text, by another route than the library's."""

import re
import unicodedata

COMBINING = re.compile(r"[\u0300-\u036f]")


def columns(text):
    """Latin, Greek and symbols one column each, ideographs, kana and emoji two, combining accents none."""
    return sum(
        2 if unicodedata.name(c, "").startswith(("CJK", "HIRAGANA")) or ord(c) >= 0x1F300 else 1
        for c in COMBINING.sub("", text)
    )
