"""A graph as DOT source, for graphviz: `dot -Tsvg graph.dot -o graph.svg`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from jaxnn.graph.groups import Edge, Folded, Group, Item, fold
from jaxnn.graph.nodes import BY_HAND, Graph, Ref, check_graph
from jaxnn.graph.text.arrays import dtype_and_shape, finite_operations, is_finite, range_and_norm

LEAF_COLOURS = {"input": "#dbe9f6", "constant": "#e6e6e6", "number": "#f5f5f5"}
OPERATION, FOLDED, NOT_FINITE, GRADIENT = "#ffffff", "#fdf1d3", "#f8d0cc", "#1f5fa8"
PARTS = 3  # uses of one array on one edge that are written out as a sum
HEAD = """\
  graph [label="{title}", labelloc=t, fontname="Helvetica", fontsize=13, ranksep=0.35, nodesep=0.3];
  node [shape=box, style="rounded,filled", fillcolor="{fill}", fontname="Helvetica", fontsize=11, margin="0.12,0.06"];
  edge [fontname="Helvetica", fontsize=10, fontcolor="{gradient}", arrowsize=0.7, color="#555555"];"""


def dot(graph: Graph, *, most: int = 80, unfold: bool | str | Iterable[str] = ()) -> str:
    r"""A graph as DOT source: values and gradients at the nodes, and on each edge what is passed back.

    A node shows its operation, its value and, after δ, its gradient; an array is written as least…greatest ‖norm‖.
    Groups are frames, or single nodes if folded; a thick border marks the function's output; ∧ marks a tie or a kink,
    ✗ what is not finite. The local rule and the source line are tooltips, which SVG shows.

    Args:
        graph: as returned by `graph.trace(f)(*args)`.
        most: a graph of more operations is folded by group, as far as necessary.
        unfold: groups to open, "residual_0/dense_0"; True opens all.

    Raises:
        ValueError: if there is no group of that name.

    Source: Gansner, Koutsofios, North & Vo (1993), for the program that draws it.

    >>> from jaxnn import graph
    >>> source = graph.dot(graph.trace(lambda x, y: x * (x + y))(2.0, 1.0))
    >>> print(*[line.split(", tooltip")[0] for line in source.splitlines() if "->" in line], sep="\n")
      leaf0 -> n0 [label=" δ 2"
      leaf1 -> n0 [label=" δ 2"
      leaf0 -> n1 [label=" δ 3"
      n0 -> n1 [label=" δ 2"
    """
    check_graph("graph.dot", graph)
    folded = fold(graph, unfold, most=most)
    shown = sum(item.group is not None for item in folded.items)
    note = f"; {shown} groups folded" if shown else ""
    title = f"{graph.name} = {range_and_norm([graph.at(ref)[0] for ref in graph.outputs])}{note}"
    lines = ["digraph {", HEAD.format(title=_text(title), fill=OPERATION, gradient=GRADIENT)]
    lines += _nodes(graph, folded)
    lines += [_edge(graph, folded.items, edge) for edge in folded.edges]
    return "\n".join([*lines, "}", ""])


def _nodes(graph: Graph, folded: Folded) -> list[str]:
    """Leaves and items, with the frames of open groups around their items."""
    targets: dict[int, list[int]] = {}  # of each leaf
    for edge in folded.edges:
        if edge.source < 0:
            targets.setdefault(-1 - edge.source, []).append(edge.target)
    outputs, good = set(graph.outputs), finite_operations(graph)
    inside: dict[int, list[int]] = {}  # numbers are drawn beside the item that takes them
    lines = []
    for k, leaf in enumerate(graph.leaves):
        if leaf.kind == "number" and k in targets:
            inside.setdefault(targets[k][0], []).append(k)
        elif leaf.kind == "input" or k in targets or Ref(-1 - k) in outputs:
            lines.append(_leaf(graph, k, Ref(-1 - k) in outputs))
    frames = [group for group in folded.opened if len(group.nodes) > 1]
    open_frames: list[Group] = []
    for k, item in enumerate(folded.items):
        while open_frames and item.nodes.start >= open_frames[-1].nodes.stop:
            lines.append("  " * len(open_frames) + "}")
            open_frames.pop()
        while frames and frames[0].nodes.start == item.nodes.start:
            open_frames.append(frames.pop(0))
            indent = "  " * len(open_frames)
            group = open_frames[-1]  # graphviz frames every subgraph whose name begins with cluster
            lines.append(f"{indent}subgraph cluster_{len(group.path)}_{group.nodes.start} {{")
            lines.append(f'{indent}  label="{_text(_last(group.key))}"; style=rounded; color="#999999";')
        indent = "  " * len(open_frames)
        lines += [indent + _leaf(graph, leaf, False) for leaf in inside.get(k, [])]
        lines.append(indent + _item(graph, item, good, not outputs.isdisjoint(item.outputs)))
    return lines + ["  " * depth + "}" for depth in range(len(open_frames), 0, -1)]


def _leaf(graph: Graph, k: int, is_output: bool) -> str:
    leaf = graph.leaves[k]
    array = dtype_and_shape([leaf.value])
    words = [leaf.name] if leaf.kind == "number" else [f"{leaf.name}  {array}", range_and_norm([leaf.value])]
    words += _delta([leaf.gradient])
    fine = leaf.kind == "number" or (is_finite(leaf.value) and is_finite(leaf.gradient))
    colour = LEAF_COLOURS[leaf.kind] if fine else NOT_FINITE
    return _node(f"leaf{k}", words, colour, f"{leaf.kind} {array}", is_output, "shape=ellipse, style=filled, ")


def _item(graph: Graph, item: Item, good: list[bool], is_output: bool) -> str:
    nodes = [graph.nodes[i] for i in item.nodes]
    arrays = [graph.at(ref) for ref in item.outputs]
    values, gradients = [value for value, _ in arrays], [gradient for _, gradient in arrays]
    fine = all(good[i] for i in item.nodes)
    mark = "✗ " if not fine else "∧ " if any(node.note for node in nodes) else ""
    if item.group is None:
        (node,) = nodes
        name, colour = node.operation, OPERATION
        line = f"{PurePath(node.file).name}:{node.line} {node.function}".rstrip() if node.file else ""
        rule = node.formula if node.rule == BY_HAND else node.rule
        tip = [f"#{node.id} {node.operation}", rule, node.note, line]
    else:
        name, colour = f"▸ {_last(item.key)} ({len(nodes)})", FOLDED
        tip = [f"{item.key}: {len(nodes)} operations", ", ".join(dict.fromkeys(node.operation for node in nodes))]
    words = [f"{mark}{name}  {dtype_and_shape(values)}", range_and_norm(values), *_delta(gradients)]
    tooltip = "\n".join(filter(None, tip))
    return _node(_id(item), words, colour if fine else NOT_FINITE, tooltip, is_output)


def _node(name: str, words: list[str], colour: str, tooltip: str, is_output: bool, shape: str = "") -> str:
    label = "\n".join(filter(None, words))
    border = ", penwidth=2.5" if is_output else ""
    return f'  {name} [{shape}label="{_text(label)}", fillcolor="{colour}", tooltip="{_text(tooltip)}"{border}];'


def _edge(graph: Graph, items: Sequence[Item], edge: Edge) -> str:
    """An edge, with what is passed back along it: 2 + 2 for an array used twice."""
    source = f"leaf{-1 - edge.source}" if edge.source < 0 else _id(items[edge.source])
    passed = [graph.nodes[i].passed[slot] for i, slot in edge.uses if graph.nodes[i].passed]
    parts = [range_and_norm([part], limits=False) for part in passed if part is not None]
    label = (
        " + ".join(parts) if len(parts) <= PARTS else range_and_norm([p for p in passed if p is not None], limits=False)
    )
    tip = "passes back" if parts else "passes nothing back"
    text = f'label=" δ {_text(label)}", ' if parts else ""
    style = "" if parts else ', style=dashed, color="#aaaaaa"'
    return f'  {source} -> {_id(items[edge.target])} [{text}tooltip="{tip}"{style}];'


def _delta(gradients: Sequence[Any]) -> list[str]:
    text = range_and_norm(gradients)
    return [f"δ {text}"] if text else []


def _id(item: Item) -> str:
    return f"{'n' if item.group is None else 'g'}{item.nodes.start}"


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _text(label: str) -> str:
    r"""The inside of a quoted label, in which \, & and line ends are escaped."""
    escaped = label.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return escaped.replace("\r", " ").replace("\n", "\\n")
