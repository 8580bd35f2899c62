"""The flow of a gradient as a bar chart in a terminal."""

from __future__ import annotations

import shutil
import textwrap

from jaxnn.bars import bar_of, span
from jaxnn.graph.flow import Flow, figure
from jaxnn.graph.text.terminal import columns, cut, distinct, pad

ROWS = 30  # more are skipped in the middle
NAME, BAR = 28, 24  # columns, at most


def chart(flow: Flow) -> str:
    """The verdict, and a bar for each group, as long as the logarithm of g, in the columns of the terminal."""
    width = shutil.get_terminal_size().columns
    lines = textwrap.wrap(f"gradient of {flow.name}: it {flow.verdict}. {flow.why[:1].upper()}{flow.why[1:]}", width)
    if not flow.groups:
        return "\n".join(lines)
    before = (ROWS + 1) // 2
    skipped = max(len(flow.groups) - ROWS, 0)
    rows = [*flow.groups[:before], *flow.groups[before + skipped :]] if skipped else list(flow.groups)
    names = [row.name for row in rows]
    name = min(max([*map(columns, names), len("what leaves")]), max(width - 24, 8), NAME)
    bar = max(min(BAR, width - name - 23), 0)
    short = distinct(names, name)
    ends = span(stage.gradient_rms for stage in flow.groups)
    lines += ["", cut(f"{pad('what leaves', name)}    values  gradients  √mean square, log scale", width)]
    for k, (row, label) in enumerate(zip(rows, names, strict=True)):
        if skipped and k == before:
            lines.append(cut(f"⋮ {skipped} more", width))
        size = row.gradient_rms
        figures = f"{figure(row.value_rms):>8}  {figure(size):>9}"
        mark = bar_of(size, ends, bar)
        lines.append(cut(f"{pad(short[label], name)}  {figures}  {mark}".rstrip(), width))
    return "\n".join(lines)
