"""The path of a gradient along a graph: the arrays that all paths share, and the gain or loss of scale between them.

Letters: g the root mean square of ∂(output)/∂(an array) over its nonzero entries: an unused entry, in a table, a slice
or behind a maximum, does not reflect the scale of the others.

Sums and means are no change of scale. An entry repeated n times has n times the gradient of a copy, an entry of a mean
over n has 1/n of the mean's, and the loss of a batch may be either. They count as 1; only what exceeds them counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnn.graph.loops import products_of
from jaxnn.graph.nodes import Graph, Node, Ref
from jaxnn.graph.summaries import summary

COPIES = frozenset(  # each entry of the output is an entry of the input, which may be read several times
    {"broadcast_in_dim", "tile", "gather", "dynamic_slice", "slice", "concatenate", "stack", "reshape", "squeeze"}
    | {"transpose", "rev", "pad", "copy", "split", "unstack", "expand_dims"}
)
PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})
SUMS = frozenset({"reduce_sum", "reduce_window_sum"})


class Segment(NamedTuple):
    """The path of a gradient through one operation, or through branches that join in it.

    Attributes:
        before: the array that the gradient reaches: the output of an operation, or −1 − k for leaf k.
        after: the operation whose output it starts from.
        factor: g at `before` over g at `after`, with sums and means counted as 1.
    """

    before: int
    after: int
    factor: float


class GradientPath(NamedTuple):
    """The path between the output and the array furthest from it."""

    # the operations that all paths share, from the one furthest from the output to the last whose output has more than
    # one entry
    trunk: tuple[int, ...]
    # the segments between them, preceded by the one into the first operation's own input if it is the only one or
    # changes the scale by more than 30, and followed by the one to the output unless it is a sum or a mean
    steps: tuple[Segment, ...]
    start: float  # g at the beginning
    end: float  # g at the end
    counted: bool  # whether a sum or a mean in between was counted as 1


def gradient_path(graph: Graph) -> GradientPath:
    """The path of a graph's gradient; without segments if it is not finite or there are fewer than two arrays."""
    shared, begin, end = _trunk(graph)
    trunk = shared[begin : end + 1]
    sizes = [gradient_size(graph, i) for i in trunk]
    if not trunk or not all(map(math.isfinite, sizes)):
        return GradientPath(tuple(trunk), (), math.nan, math.nan, False)
    whole = [ratio(to, come) for to, come in itertools.pairwise(sizes)]
    factors = _without_means(graph, trunk, whole)
    steps = [Segment(a, b, f) for (a, b), f in zip(itertools.pairwise(trunk), factors, strict=True)]
    first, last = sizes[0], sizes[-1]
    entering = _entering(graph, graph.nodes[trunk[0]], first)
    if entering is not None and (not steps or abs(log(entering[0].factor)) > SLIGHT):
        step, first = entering
        steps.insert(0, step)
    leaving = _leaving(graph, shared[end:], last)
    if leaving is not None:
        step, last = leaving
        steps.append(step)
    counted = not math.isclose(product(steps) * last, first, rel_tol=1e-3)
    return GradientPath(tuple(trunk), tuple(steps), first, last, counted)


def product(steps: Sequence[Segment]) -> float:
    """The product of the factors; 0/0 counts as no change."""
    return math.prod(step.factor for step in steps if not math.isnan(step.factor))


def ratio(a: float, b: float) -> float:
    """The ratio of two sizes: ∞ if only b is 0, NaN if both are."""
    if b == 0:
        return math.nan if a == 0 else math.inf
    return a / b


# ---------------------------------------------------------------- sizes


def size(array: Any) -> float:
    """The root mean square of the nonzero entries; NaN or ∞ if one of them is, 0 if all are 0."""
    s = summary(array)
    if not s.known or not s.size or s.nans:
        return math.nan
    if s.infinite:
        return math.inf
    return s.norm / math.sqrt(max(int(np.count_nonzero(np.asarray(array))), 1))


def gradient_size(graph: Graph, i: int) -> float:
    """The g of an operation's outputs, taken together."""
    found = [g for g in graph.nodes[i].gradients if g is not None]
    sizes = [size(g) for g in found]
    if not sizes or any(map(math.isnan, sizes)):
        return math.nan
    counts = [int(np.count_nonzero(np.asarray(g))) for g in found]
    return math.hypot(*(s * math.sqrt(n) for s, n in zip(sizes, counts, strict=True))) / math.sqrt(max(sum(counts), 1))


def _entries(node: Node) -> int:
    return max((int(value.size) for value in node.values), default=1)


def beyond(factor: float, low: float, high: float) -> float:
    """The excess of a factor above high or below low; 1 between them."""
    return factor / min(max(factor, low), high) if factor > 0 and math.isfinite(factor) else factor


# ---------------------------------------------------------------- segments


def _without_means(graph: Graph, trunk: Sequence[int], factors: list[float]) -> list[float]:
    """The factors of the segments, with sums over copies, and means, counted as 1."""
    found = list(factors)
    n = _summed(graph, graph.nodes[trunk[0]])  # entries that were summed and may yet be divided by their number
    for k, factor in enumerate(factors):
        before, node = graph.nodes[trunk[k]], graph.nodes[trunk[k + 1]]
        direct = any(ref.node == before.id for ref in node.inputs)
        copies = _entries(node) / max(_entries(before), 1)
        if direct and (node.operation in COPIES or (copies > 1 and node.operation not in PRODUCTS)):
            found[k] = beyond(factor, 1.0, math.inf if node.operation in COPIES else copies)
        elif direct and node.operation in SUMS:
            n *= _summed(graph, node)
            found[k] = beyond(factor, 1.0 / n, math.inf if node.operation == "reduce_window_sum" else 1.0)
            n *= min(max(factor, 1.0 / n), 1.0)
        elif direct and n > 1 and node.operation in ("div", "mul") and sum(p is not None for p in node.passed) == 1:
            # a product with an array without a gradient, or a division by one
            left = max(n, 1.0)
            found[k] = beyond(factor, 1.0 / left, 1.0)
            n *= min(max(factor, 1.0 / left), 1.0)
        elif node.operation not in ("convert_element_type", "reshape", "squeeze"):
            n = 1.0
    return found


def _summed(graph: Graph, node: Node) -> float:
    """The number of entries that an operation adds up; 1 if it adds none."""
    if node.operation == "reduce_window_sum":
        return float(math.prod(node.params["window_dimensions"]))
    if node.operation not in SUMS:
        return 1.0
    return max(np.size(graph.at(node.inputs[0])[0]) / max(_entries(node), 1), 1.0)


def _entering(graph: Graph, node: Node, after: float) -> tuple[Segment, float] | None:
    """The segment into an operation's own input, and g there; None if no input has a gradient.

    Of several inputs, such as x and a weight, the one whose scale changes least is taken.
    """
    found: list[tuple[float, Segment, float]] = []
    for i, (ref, part) in enumerate(zip(node.inputs, node.passed, strict=True)):
        if part is None or _times_nothing(graph, node, i):
            continue
        g = size(part)
        factor = beyond(ratio(g, after), 1.0, _copies(graph, node, i))
        if math.isnan(factor):
            continue
        found.append((abs(log(factor)), Segment(ref.node, node.id, factor), g))
    if not found:
        return None
    return min(found, key=lambda entry: entry[0])[1:]


SLIGHT = math.log(30)  # a weight's gradient differs from δ by the size of its input, and by chance


def _copies(graph: Graph, node: Node, i: int) -> float:
    """The largest number of output entries that depend on one entry of an input."""
    if node.operation in COPIES:
        return math.inf
    x = int(np.size(graph.at(node.inputs[i])[0])) or 1
    products = 1.0  # that are summed in an entry of the output
    if node.operation == "dot_general":
        shape = np.shape(graph.at(node.inputs[0])[0])
        products = math.prod(shape[axis] for axis in node.params["dimension_numbers"][0][0])
    elif node.operation == "conv_general_dilated":
        kernel = graph.at(node.inputs[1])[0]
        products = kernel.size / max(kernel.shape[node.params["dimension_numbers"].rhs_spec[0]], 1)
    elif node.operation == "scan":
        products = products_of(node, i)
    return max(products * _entries(node) / x, 1.0)


def _times_nothing(graph: Graph, node: Node, i: int) -> bool:
    """True for a product with an array of zeros, such as the initial state of a recurrent network."""
    others = [ref for k, ref in enumerate(node.inputs) if k != i]
    return node.operation in PRODUCTS and any(not np.asarray(graph.at(ref)[0]).any() for ref in others)


def _leaving(graph: Graph, tail: Sequence[int], g: float) -> tuple[Segment, float] | None:
    """The segment from the last array of several entries to the output, and g there; None for a sum or a mean."""
    if len(tail) < 2:
        return None
    last = gradient_size(graph, tail[-1])
    factor = beyond(ratio(g, last), 1.0 / max(_entries(graph.nodes[tail[0]]), 1), 1.0)
    if math.isnan(factor) or math.isclose(factor, 1.0, rel_tol=1e-3):
        return None
    return Segment(tail[0], tail[-1], factor), last


def log(factor: float) -> float:
    """The logarithm of a ratio of sizes; 0/0 counts as no change."""
    return 0.0 if math.isnan(factor) else -math.inf if factor == 0 else math.log(factor)


# ---------------------------------------------------------------- the trunk


def _trunk(graph: Graph) -> tuple[list[int], int, int]:
    """The operations on all paths from the one furthest from the output, and the range of them to compare.

    An array that depends on one input alone, such as a weight before its product with x, has a gradient summed over the
    batch; and after the last array of several entries there are only means and sums, or operations on a number.
    """
    back = _back(graph)
    reach = [0] * len(graph.nodes)  # operations on the longest path from the output
    ends = {ref.node for ref, given in zip(graph.outputs, graph.cotangents, strict=True) if given is not None}
    for i in ends:
        if i >= 0:
            reach[i] = 1
    for i in reversed(range(len(graph.nodes))):
        for source in back[i]:
            if source >= 0 and reach[i]:
                reach[source] = max(reach[source], reach[i] + 1)
    if not any(reach):
        return [], 0, 0
    shared = _shared(back, ends, reach.index(max(reach)))
    end = max((k for k, i in enumerate(shared) if _entries(graph.nodes[i]) > 1), default=len(shared) - 1)
    arrays = _arrays_into(graph)
    begin = min((k for k, i in enumerate(shared) if arrays[i].bit_count() > 1), default=0)
    return shared, (begin if begin < end else 0), end


def _back(graph: Graph) -> list[list[int]]:
    """The sources to which each operation passes a gradient, except dead ends, at a stop_gradient or a floor."""
    back: list[list[int]] = []
    for node in graph.nodes:
        found = [ref.node for ref, part in zip(node.inputs, node.passed, strict=True) if part is not None]
        back.append([source for source in found if source < 0 or back[source]])
    return back


def _shared(back: list[list[int]], ends: set[int], start: int) -> list[int]:
    """The operations on every path from start to the outputs: those that no edge bypasses."""
    reached = [i == start for i in range(len(back))]
    furthest = [len(back) if i in ends else i for i in range(len(back))]  # consumer of each operation's output
    for i in range(start, len(back)):
        for source in back[i]:
            if source >= 0 and reached[source]:
                reached[i] = True
                furthest[source] = max(furthest[source], i)
    shared, past = [], start
    for i in range(start, len(back)):  # in forward order, along which every edge points
        if reached[i]:
            if past <= i:
                shared.append(i)
            past = max(past, furthest[i])
    return shared


def _arrays_into(graph: Graph) -> list[int]:
    """The inputs and constants that each operation depends on, as the bits of a number."""
    bits: list[int] = []
    for node in graph.nodes:
        of_node = 0
        for ref in node.inputs:
            if ref.node >= 0:
                of_node |= bits[ref.node]
            elif graph.leaves[-1 - ref.node].kind != "number":
                of_node |= 1 << (-1 - ref.node)
        bits.append(of_node)
    return bits


def place(graph: Graph, i: int) -> str:
    """The name of a leaf, or an operation with its group and line."""
    if i < 0:
        return graph.leaves[Ref(i).leaf or 0].name
    node = graph.nodes[i]
    group = f" in {'/'.join(node.group)}" if node.group else ""
    line = f" ({node.file.replace(chr(92), '/').rpartition('/')[2]}:{node.line})" if node.file else ""
    return f"#{i} {node.operation}{group}{line}"
