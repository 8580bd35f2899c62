"""The size of a gradient along a graph: whether it vanishes or explodes on its way back, with figures.

Letters: g the root mean square of ∂(output)/∂(an array).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from jaxnn.aliases import Tree
from jaxnn.graph.gradient_path import GradientPath, Segment, gradient_path, gradient_size, log, place, product
from jaxnn.graph.groups import Item, fold, groups
from jaxnn.graph.nodes import Graph, check_function
from jaxnn.graph.pulls import has_slope
from jaxnn.graph.summaries import digits, summary
from jaxnn.graph.tracing import trace
from jaxnn.magnitudes import LARGEST, SMALLEST
from jaxnn.showing import shown

VANISHES, EXPLODES, KEEPS = "vanishes", "explodes", "keeps its scale"
NOT_FINITE, SHORT = "is not finite", "has no path to follow"
LOOPS = {"scan", "while"}


class Stage(NamedTuple):
    """An operation or a group, with the sizes of the arrays that leave it.

    Attributes:
        name: the operation's, "tanh", or the group's key, "dense_0".
        nodes: the ids of its operations.
        value_rms: √mean(x²) of its values; NaN without floats, and inf or NaN if one of them is.
        value_max: max |x|.
        gradient_rms: g, likewise of ∂(output)/∂(values).
        gradient_max: max |∂(output)/∂(values)|.
        source: the line of its last operation, "net.py:12"; "" if unknown.
    """

    name: str
    nodes: range
    value_rms: float
    value_max: float
    gradient_rms: float
    gradient_max: float
    source: str


@shown(lambda flow: f"<flow of {flow.name}: the gradient {flow.verdict}, {flow.why}>")
class Flow(NamedTuple):
    """The sizes of gradients along a graph; `str(flow)` is a verdict and a chart.

    Attributes:
        name: the function's.
        operations: those with a gradient, in forward order.
        groups: the same, by groups of the given depth; operations outside of groups are listed alone.
        trunk: the ids of the operations that all paths share, from the one furthest from the output on. What lies
            between two of them is a factor of the chain rule; the gradient at the first is the product.
        factor: the product of the segments' factors: g at the first of the trunk over g at the last, corrected for sums
            and means between them, times what enters and leaves them; NaN if there are no segments.
        steepest: the segment with the largest change, in the direction of the verdict; or None.
        verdict: VANISHES (factor < 1/1,000), EXPLODES (> 1,000), KEEPS, NOT_FINITE or SHORT.
        why: the figures behind the verdict, in words.
    """

    name: str
    operations: tuple[Stage, ...]
    groups: tuple[Stage, ...]
    trunk: tuple[int, ...]
    factor: float
    steepest: Segment | None
    verdict: str
    why: str

    @property
    def ok(self) -> bool:
        """True if the gradient keeps its scale, or has no path to follow."""
        return self.verdict in (KEEPS, SHORT)


def gradient_flow(
    f: Callable[..., Tree], *, cotangent: Tree = None, unroll: bool = False, depth: int = 1
) -> Callable[..., Flow]:
    """The size of the gradient of f along its graph, and whether it vanishes or explodes on its way back.

    The size is g, the root mean square of the gradient's nonzero entries. It is followed from the output back to the
    input of the operation furthest from it, where all paths begin; a gain or a loss of scale counts wherever it occurs,
    in a constant, a table, a loop or a single operation. The division by N in a mean over N examples is no loss, and
    the sum over a batch in a weight's gradient is no gain: both count as 1.

    Args:
        f: a pure function of pytrees of arrays, as for `trace`.
        cotangent: the gradient at the output, like f's output; by default 1, if f returns a single number.
        unroll: whether to follow loops iteration by iteration: in a recurrent network, gradients vanish in time.
        depth: of the groups: 1 for the outermost (layers, jitted functions), 2 for those inside them, …

    Returns:
        A function of f's arguments that returns a Flow.

    Raises:
        TypeError, ValueError: as `trace`; ValueError if depth is below 1.

    Source: Hochreiter (1991); Bengio, Simard & Frasconi (1994); Glorot & Bengio (2010).

    >>> import jax, jax.numpy as jnp
    >>> def deep(x):
    ...     for _ in range(8):
    ...         x = jax.nn.sigmoid(x)
    ...     return x.sum()
    >>> flow = gradient_flow(deep)(jnp.zeros(3))
    >>> flow.verdict, len(flow.trunk), f"{flow.factor:.0e}"
    ('vanishes', 8, '3e-05')
    """
    check_function("graph.gradient_flow", f)
    if depth < 1:
        raise ValueError(f"graph.gradient_flow: depth must be 1 or more, got {depth}")

    def flow(*args: Tree) -> Flow:
        return _flow(trace(f, cotangent=cotangent, unroll=unroll)(*args), depth)

    return flow


def _flow(graph: Graph, depth: int) -> Flow:
    stages = {i.nodes.start: _stage(graph, i) for i in fold(graph, True).items if _has_gradient(graph, i)}
    found = gradient_path(graph)
    verdict, factor, steepest = _verdict(found)
    return Flow(
        graph.name,
        tuple(stages.values()),
        tuple(_by_group(graph, depth)),
        found.trunk,
        factor,
        steepest,
        verdict,
        _why(graph, found, verdict, factor, steepest),
    )


def _by_group(graph: Graph, depth: int) -> list[Stage]:
    """A stage for each group and for each run of operations between groups; without groups, for each operation."""
    everything = groups(graph)
    names = {g.nodes.start: g.key for g in everything if len(g.nodes) == 1 and len(g.path) <= depth}
    parents = {g.path for g in everything if any(len(graph.nodes[i].group) > len(g.path) for i in g.nodes)}
    shown = fold(graph, [g.key for g in everything if len(g.path) < depth and g.path in parents]).items
    items = [item for item in shown if _has_gradient(graph, item)]
    inside = [item.group is not None or bool(item.path) for item in items]
    stages: list[Stage] = []
    for within, run in itertools.groupby(zip(inside, items, strict=True), key=lambda pair: pair[0]):
        parts = [item for _, item in run]
        if within or not any(inside):
            stages += [_stage(graph, item, names.get(item.nodes.start, "")) for item in parts]
        else:
            first, last = (graph.nodes[part.nodes[0]].operation for part in (parts[0], parts[-1]))
            nodes = range(parts[0].nodes.start, parts[-1].nodes.stop)
            stages.append(_stage(graph, parts[-1], f"{first} … {last}" if len(parts) > 1 else "")._replace(nodes=nodes))
    return stages


def _has_gradient(graph: Graph, item: Item) -> bool:
    return any(graph.at(ref)[1] is not None for ref in item.outputs)


def _stage(graph: Graph, item: Item, name: str = "") -> Stage:
    arrays = [graph.at(ref) for ref in item.outputs]
    last = graph.nodes[item.nodes[-1]]
    source = f"{PurePath(last.file).name}:{last.line}" if last.file else ""
    name = name or (item.key if item.group else last.operation)
    values, gradients = [value for value, _ in arrays], [gradient for _, gradient in arrays]
    return Stage(name, item.nodes, *_sizes(values), *_sizes(gradients), source)


def _sizes(arrays: Sequence[Any]) -> tuple[float, float]:
    """The root mean square and the largest magnitude of all floats among some arrays, taken as one."""
    found = [summary(x) for x in arrays if x is not None and has_slope(x)]
    found = [s for s in found if s.known and s.size]
    if not found or any(s.nans for s in found):
        return math.nan, math.nan
    if any(s.infinite for s in found):
        return math.inf, math.inf
    total = math.hypot(*(s.norm for s in found))
    return total / math.sqrt(sum(s.size for s in found)), max(max(abs(s.low), abs(s.high)) for s in found)


def _verdict(found: GradientPath) -> tuple[str, float, Segment | None]:
    if found.trunk and math.isnan(found.start):
        return NOT_FINITE, math.nan, None
    if not found.steps:
        return SHORT, math.nan, None
    factor = 0.0 if found.end == 0 else product(found.steps)
    verdict = VANISHES if factor < SMALLEST else EXPLODES if factor > LARGEST else KEEPS
    logs = [log(step.factor) for step in found.steps]
    extreme = {VANISHES: min(logs), EXPLODES: max(logs), KEEPS: max(logs, key=abs)}[verdict]
    return verdict, factor, found.steps[logs.index(extreme)]


def _why(graph: Graph, found: GradientPath, verdict: str, factor: float, steepest: Segment | None) -> str:
    if verdict == NOT_FINITE:
        first = next(i for i in reversed(found.trunk) if not math.isfinite(gradient_size(graph, i)))
        return f"on its way back, first at {place(graph, first)}; graph.explain_nonfinite tells why"
    if steepest is None:
        return "no two operations are in series on all paths to the output"
    count = len(found.steps)
    route = (
        f"its root mean square is {figure(found.end)} at {place(graph, found.steps[-1].after)} and "
        f"{figure(found.start)} at {place(graph, found.steps[0].before)}, × {figure(factor)} over {count} "
        f"step{'s' if count > 1 else ''}" + (", sums and means not counted" if found.counted else "")
    )
    loops = [i for i in found.trunk if graph.nodes[i].operation in LOOPS]
    inside = f"; #{loops[0]} {graph.nodes[loops[0]].operation} is one step; unroll=True resolves it" if loops else ""
    return f"{route}; the steepest is × {figure(steepest.factor)} through {place(graph, steepest.after)}{inside}"


def figure(x: float) -> str:
    """A number of a report: three digits between 0.01 and 10,000, two and a power of ten outside."""
    return digits(x) if 1e-2 <= abs(x) < 1e4 or not math.isfinite(x) or x == 0 else f"{x:.2g}"
