"""A graph as a table that fits a terminal: one operation per line, long graphs folded by group.

Nothing is left out silently: a local rule without a column is printed below its operation, names are cut so that they
stay distinct, with "…" for what is missing, and the last lines count what is folded or skipped.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from jaxnn.checks import whole_number
from jaxnn.graph.groups import Folded, Item, fold
from jaxnn.graph.nodes import BY_HAND, Graph, Node, Ref, check_graph
from jaxnn.graph.text.arrays import dtype_and_shape, finite_operations, is_finite, range_and_norm
from jaxnn.graph.text.terminal import columns, cut, distinct, pad

NOT_FINITE, KINK, FOLDED, OPEN, SKIPPED, BELOW = "✗", "∧", "▸", "▾", "⋮", "↳"
NONE = "–"  # in place of a missing gradient
GAP = "  "
LEAVES = 12  # rows of inputs and constants
NAMED = 3  # folded groups that the last lines name

HEADINGS = ("", "#", "operation", "inputs", "array", "value", "gradient", "local rule", "line")
NUMBER, OPERATION, INPUTS, ARRAY, VALUE, GRADIENT, RULE, LINE = range(1, len(HEADINGS))
# Columns that shrink, the widest first, and their least widths: with the local rules in a column, with rules and lines
# below the operations, and in a terminal too narrow for that.
SQUEEZED = (
    {OPERATION: 16, INPUTS: 12, RULE: 18, LINE: 12},
    {OPERATION: 16, INPUTS: 12},
    {OPERATION: 8, INPUTS: 5, ARRAY: 5, VALUE: 8, GRADIENT: 8},
)
PER_NAME = (24, 20, 16, 14, 12, 10, 8)  # columns for one of several inputs; the widest that fits is used


class Row(NamedTuple):
    """A line of the table, with full cells and with short ones, and a remark to print below it."""

    whole: tuple[str, ...]
    short: tuple[str, ...]
    below: str = ""


def table(graph: Graph, *, width: int | None = None, rows: int = 40, unfold: bool | str | Iterable[str] = ()) -> str:
    """A graph as text: one operation per line, with its value, its gradient and its local rule.

    An array is written as least…greatest ‖norm‖; in less room, a value as the range and a gradient as the norm; a type
    common to all arrays moves to the title. Inputs of an operation are names, or #numbers of operations; "+2" means two
    more. Marks: ∧ a tie or a kink, with JAX's choice; ✗ not finite; ▸ a folded group, with its number of operations and
    the arrays that leave it; ▾ an open group; ↳ a local rule and a line without a column.

    Args:
        graph: as returned by `graph.trace(f)(*args)`.
        width: in columns; by default the terminal's. No line is wider.
        rows: a graph of more operations is folded by group; if that is not enough, rows in the middle are skipped.
        unfold: groups to open, "residual_0/dense_0"; True opens all.

    Raises:
        ValueError: if there is no group of that name.

    >>> from jaxnn import graph
    >>> print(graph.table(graph.trace(lambda x, y: x * (x + y))(2.0, 1.0), width=90))
    <lambda> = 6: 2 operations, all f32
    ...
     1  mul        x, #0   6      1         δx = δ y, δy = δ x  ...
    """
    check_graph("graph.table", graph)
    rows = whole_number("graph.table: rows", rows, least=1)
    width = None if width is None else whole_number("graph.table: width", width, least=-1)
    width = max(shutil.get_terminal_size().columns if width is None else width, 1)
    folded = fold(graph, unfold, most=rows)
    good = finite_operations(graph)
    body, remarks = _body(graph, folded, good, rows)
    types = {row.whole[ARRAY] for row in body if row.whole[ARRAY]}
    alike = len(types) == 1 and len(graph.nodes) == len(folded.items) <= rows and len(graph.leaves) <= LEAVES
    lines, below = _fitted(body, width, {ARRAY} if alike else set())
    if below and any(item.group is not None for item in folded.items):
        remarks.append(f"not shown at {width} columns: the operations of folded groups")
    value = range_and_norm([graph.at(ref)[0] for ref in graph.outputs])
    title = f"{graph.name} = {value or 'nothing'}: {_count(len(graph.nodes), 'operation')}"
    title += f", all {types.pop()}" if alike else ""
    lines = [title, *([""] if lines else []), *lines]
    for remark in remarks:
        lines += textwrap.wrap(remark, width, subsequent_indent=GAP if width > 20 else "")
    return "\n".join(cut(line, width) for line in lines)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


# ---------------------------------------------------------------- rows


def _body(graph: Graph, folded: Folded, good: list[bool], rows: int) -> tuple[list[Row], list[str]]:
    """The rows, and the remarks below them."""
    leaves = [Ref(-1 - k) for k, leaf in enumerate(graph.leaves) if leaf.kind != "number"]
    body = [_leaf(graph, ref) for ref in leaves[:LEAVES]]
    if len(leaves) > LEAVES:
        body.append(_heading(f"{SKIPPED} {len(leaves) - LEAVES} more inputs and constants"))
    before = (rows + 1) // 2
    after = len(folded.items) - rows + before if len(folded.items) > rows else before
    skipped = [i for item in folded.items[before:after] for i in item.nodes]
    sources: dict[int, list[int]] = {}
    for edge in folded.edges:
        sources.setdefault(edge.target, []).append(edge.source)
    place = [item for item in folded.items for _ in item.nodes]
    open_groups = [group for group in folded.opened if len(group.nodes) > 1]
    around: list[str] = []
    for k, item in enumerate(folded.items):
        if k == before and skipped:
            body.append(_heading(f"{SKIPPED} {_count(len(skipped), 'operation')}", _mark(graph, good, skipped)))
        if before <= k < after:
            continue
        inside = [group.key for group in open_groups if item.nodes.start in group.nodes]
        for depth, key in enumerate(inside):
            if inside[: depth + 1] != around[: depth + 1]:
                body.append(_heading(f"{GAP * depth}{OPEN} {key.rpartition('/')[2]}"))
        around = inside
        mark, indent = _mark(graph, good, item.nodes), GAP * len(inside)
        if item.group is None:
            body.append(_operation(graph, graph.nodes[item.nodes[0]], item, mark, indent, place))
        else:
            inputs = [_name(graph, Ref(source), folded.items) for source in sources.get(k, [])]
            body.append(_group(graph, item, mark, indent, inputs))
    return body, _remarks(graph, folded, good, skipped)


def _leaf(graph: Graph, ref: Ref) -> Row:
    value, gradient = graph.at(ref)
    bad = not (is_finite(value) and is_finite(gradient))
    return _row(NOT_FINITE if bad else "", "", graph.leaves[-1 - ref.node].name, "", [value], [gradient], "", "")


def _operation(graph: Graph, node: Node, item: Item, mark: str, indent: str, place: list[Item]) -> Row:
    names = []
    for ref in node.inputs:
        source = None if ref.node < 0 else place[ref.node]
        if source is None:
            names.append(graph.leaves[-1 - ref.node].name)
        elif source.group is not None:
            names.append(_label(source))
        else:
            several = len(graph.nodes[ref.node].values) > 1
            names.append(f"#{ref.node}.{ref.output}" if several else f"#{ref.node}")
    alone = len(node.group) - len(indent) // len(GAP)  # scopes that contain only this operation
    operation = "/".join([*node.group[len(node.group) - alone :], node.operation])
    rule = node.formula if node.rule == BY_HAND else node.rule.partition(":")[0]
    line = f"{PurePath(node.file).name}:{node.line}" if node.file else ""
    row = _row(mark, str(node.id), indent + operation, ", ".join(names), node.values, node.gradients, rule, line)
    return row._replace(below=node.note)


def _group(graph: Graph, item: Item, mark: str, indent: str, inputs: list[str]) -> Row:
    arrays = [graph.at(ref) for ref in item.outputs]
    operations = dict.fromkeys(graph.nodes[i].operation for i in item.nodes)
    name = f"{indent}{FOLDED} {_label(item)} ({len(item.nodes)})"
    values, gradients = [value for value, _ in arrays], [gradient for _, gradient in arrays]
    return _row(mark, "", name, ", ".join(inputs), values, gradients, ", ".join(operations), "")


def _row(
    mark: str, place: str, name: str, inputs: str, values: Sequence[Any], gradients: Sequence[Any], rule: str, line: str
) -> Row:
    first, last = (mark, place, name, inputs, dtype_and_shape(values)), (rule, line)
    return Row(
        (*first, range_and_norm(values), range_and_norm(gradients) or NONE, *last),
        (*first, range_and_norm(values, norm=False), range_and_norm(gradients, limits=False) or NONE, *last),
    )


def _heading(text: str, mark: str = "") -> Row:
    cells = (mark, "", text, *[""] * (len(HEADINGS) - 3))
    return Row(cells, cells)


def _label(item: Item) -> str:
    return item.key.rpartition("/")[2]


def _name(graph: Graph, ref: Ref, items: Sequence[Item]) -> str:
    """The name of a leaf, or of a visible item."""
    if ref.node < 0:
        return graph.leaves[-1 - ref.node].name
    item = items[ref.node]
    return f"#{item.key}" if item.group is None else _label(item)


def _mark(graph: Graph, good: list[bool], nodes: Iterable[int]) -> str:
    if not all(good[i] for i in nodes):
        return NOT_FINITE
    return KINK if any(graph.nodes[i].note for i in nodes) else ""


def _remarks(graph: Graph, folded: Folded, good: list[bool], skipped: list[int]) -> list[str]:
    remarks = []
    out = set(skipped)
    closed = [item for item in folded.items if item.group is not None and item.nodes[0] not in out]
    if closed:
        keys = ", ".join(repr(item.key) for item in closed[:NAMED]) + (", …" if len(closed) > NAMED else "")
        operations = _count(sum(len(item.nodes) for item in closed), "operation")
        them = f"{_count(len(closed), 'group')} with {operations}"
        remarks.append(f"{FOLDED} folded: {them}; unfold=[{keys}] opens by name, unfold=True all")
    if skipped:
        remarks.append(f"{SKIPPED} skipped: {_count(len(skipped), 'operation')}; rows={len(folded.items)} shows all")
    bad = [i for i, fine in enumerate(good) if not fine]
    if bad:
        remarks.append(
            f"{NOT_FINITE} not finite: value or gradient of {_count(len(bad), 'operation')}, first #{bad[0]}"
        )
    kinks = [node.id for node in graph.nodes if node.note]
    if kinks:
        remarks.append(f"{KINK} a tie or a kink: {_count(len(kinks), 'operation')}, first #{kinks[0]}")
    return remarks


# ---------------------------------------------------------------- fitting


def _fitted(body: list[Row], width: int, known: set[int]) -> tuple[list[str], bool]:
    """Lines no wider than width, without the columns `known`; and whether local rules are below the operations."""
    if not body:
        return [], False
    filled = {i for i in range(len(HEADINGS)) if any(row.whole[i] not in ("", NONE) for row in body)}
    kept = sorted({0} | filled - known)
    without = [i for i in kept if i not in (RULE, LINE)]
    ways: tuple[tuple[bool, list[int], dict[int, int]], ...] = (
        (False, kept, {}),
        (True, kept, SQUEEZED[0]),
        (True, without, SQUEEZED[1]),
        (True, without, SQUEEZED[2]),
    )
    for short, shown, least in ways:
        cells = [row.short if short else row.whole for row in body]
        widths = _widths([HEADINGS, *cells], shown, width, least)
        if sum(widths.values()) + len(GAP) * (len(shown) - 2) + 1 <= width:
            break
    below = RULE in kept and RULE not in shown
    indent = " " * (widths[0] + widths.get(NUMBER, 0) + 2 * len(GAP))
    lines = [_line(HEADINGS, widths)]
    lines += _beneath(HEADINGS, indent, width) if below else []
    for row, line in zip(body, _shortened(cells, widths), strict=True):
        lines.append(_line(line, widths))
        if below and row.whole[NUMBER]:
            lines += _beneath(row.whole, indent, width)
        if row.below:
            lines += textwrap.wrap(
                f"{KINK} {row.below}",
                max(width, 2 * len(indent)),
                initial_indent=indent,
                subsequent_indent=indent + GAP,
            )
    return lines, below


def _beneath(cells: Sequence[str], indent: str, width: int) -> list[str]:
    """The local rule of an operation, with its line at the right if there is room."""
    rule, line = cells[RULE], cells[LINE]
    if not rule and not line:
        return []
    lines = textwrap.wrap(
        f"{BELOW} {rule}", max(width, 2 * len(indent)), initial_indent=indent, subsequent_indent=indent + GAP
    )
    room = width - columns(lines[-1])
    if room > columns(line):
        return [*lines[:-1], f"{lines[-1]}{pad(line, room, right=True)}"]
    return [*lines, f"{indent}{GAP}{line}"] if line else lines


def _shortened(cells: list[tuple[str, ...]], widths: dict[int, int]) -> list[tuple[str, ...]]:
    """The cells with names and lines cut to fit their columns, and kept distinct if possible."""
    found = [list(line) for line in cells]
    spans = _rooms(widths)
    if LINE in widths:
        short = distinct((line[LINE] for line in cells), widths[LINE])
        for line in found:
            line[LINE] = short[line[LINE]]
    by_room: dict[int, list[tuple[list[str], str, str]]] = {}
    for line in found:
        if line[ARRAY] or line[NUMBER]:
            name = line[OPERATION].lstrip(f" {FOLDED}")
            lead = line[OPERATION].removesuffix(name)
            room = spans[OPERATION] if _spans(line) else widths[OPERATION]
            by_room.setdefault(room - columns(lead), []).append((line, lead, name))
    for room, named in by_room.items():
        short = distinct((name for _, _, name in named), room)
        for line, lead, name in named:
            line[OPERATION] = lead + short[name]
    if INPUTS in widths:
        names = dict.fromkeys(name for line in cells for name in line[INPUTS].split(", "))
        ways = _abbreviations([[name for name in names if "[" not in name], [name for name in names if "[" in name]])
        for line in found:
            line[INPUTS] = _names(line[INPUTS].split(", "), widths[INPUTS], ways)
    return [tuple(line) for line in found]


def _abbreviations(kinds: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each width the names that stay distinct when cut to it, among their kind: arrays, tree paths."""
    ways = []
    for room in PER_NAME:
        cuts = [distinct(kind, room) for kind in kinds]
        ways.append(
            {name: short for cut_ in cuts if len(set(cut_.values())) == len(cut_) for name, short in cut_.items()}
        )
    return ways


def _names(names: list[str], room: int, abbreviations: Sequence[dict[str, str]]) -> str:
    """Names of inputs in `room` columns, as many as fit, and "+2" for two more."""
    whole = ", ".join(names)
    if columns(whole) <= room:
        return whole
    for count in reversed(range(1, len(names) + 1)):
        rest = f" +{len(names) - count}" if count < len(names) else ""
        for short in abbreviations:
            if not all(name in short for name in names[:count]):
                continue
            text = ", ".join(short[name] for name in names[:count]) + rest
            if columns(text) <= room:
                return text
    return cut(whole, room)


def _widths(cells: list[tuple[str, ...]], shown: list[int], width: int, least: dict[int, int]) -> dict[int, int]:
    widths = {i: max(columns(line[i]) for line in cells if i != OPERATION or not _spans(line)) for i in shown}
    if INPUTS in widths:
        widest = max((columns(line[OPERATION]) for line in cells if _spans(line) and line[ARRAY]), default=0)
        widths[INPUTS] = max(widths[INPUTS], widest - widths[OPERATION] - len(GAP))
    excess = sum(widths.values()) + len(GAP) * (len(shown) - 2) + 1 - width
    while excess > 0:
        wide = [i for i, narrowest in least.items() if widths.get(i, 0) > narrowest]
        if not wide:
            break
        widths[max(wide, key=lambda i: widths[i])] -= 1
        excess -= 1
    return widths


def _spans(cells: Sequence[str]) -> bool:
    """True for a leaf or a heading, which has no inputs and may use their column."""
    return not cells[NUMBER] and not cells[INPUTS]


def _rooms(widths: dict[int, int]) -> dict[int, int]:
    """The widths in a row without inputs, whose name also takes their column."""
    rooms = dict(widths)
    if INPUTS in rooms:
        rooms[OPERATION] += len(GAP) + rooms.pop(INPUTS)
    return rooms


def _line(cells: Sequence[str], widths: dict[int, int]) -> str:
    if _spans(cells) and not cells[ARRAY]:  # a heading takes the whole line
        return f"{cells[0]:1} {' ' * widths.get(NUMBER, 0)}{GAP}{cells[OPERATION]}"
    rooms = _rooms(widths) if _spans(cells) else widths
    parts = [pad(cut(cells[i], room), room, right=i == NUMBER) for i, room in rooms.items()]
    return f"{parts[0]} {GAP.join(parts[1:])}".rstrip()
