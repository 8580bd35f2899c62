"""A table of a network: layers, output shapes, parameters, state, and the cost of a pass.

Nothing is run: shapes come from `jax.eval_shape`, FLOPs from XLA's cost analysis of the compiled programs.
Letters: N batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.arrays import is_floating
from jaxnn.checks import whole_number
from jaxnn.combinators.naming import with_name
from jaxnn.combinators.walk import Place, map_layers, places, rebuilt
from jaxnn.shapes import input_spec
from jaxnn.showing import shown
from jaxnn.types import Activation, Array, DType, Forward, InShape, Key, Layer, Params, State, Tree
from jaxnn.wrapping import with_rules

__all__ = ["Cost", "Row", "Summary", "summary"]
__dir__ = __all__.copy


INDENT, GAP = "  ", "   "
PREFIXES = ("", "k", "M", "G", "T", "P")


class Row(NamedTuple):
    """A layer of the network, or a combinator of layers.

    Attributes:
        path: its path in parameters, state and readings, "residual_0/dense_1"; "" for the network itself.
        depth: the number of combinators above it, its indentation.
        kind: "dense" for a layer, "5 × residual" for a `repeat`, "5 × tied dense" for a `share`; combinators without
            a level in the path share a row.
        output: its output, a tree of jax.ShapeDtypeStructs, for a batch of 1.
        params: the number of its parameters: for a `repeat` those of all passes, for a `share` those of one.
        state: the number of values in its state, likewise.
    """

    path: str
    depth: int
    kind: str
    output: Tree
    params: int
    state: int


class Cost(NamedTuple):
    """Floating-point operations for a batch, as XLA counts them.

    Attributes:
        batch_size: N.
        forward: a forward pass with `train=False`.
        step: a training step: forward with `train=True`, the hand-derived backward from a δ at the output, θ ← θ − ηg;
            without the loss and the rest of an optimizer.
    """

    batch_size: int
    forward: float
    step: float


@shown(lambda summary: f"<summary: {len(summary.rows)} layers, {_total(summary)}>")
class Summary(NamedTuple):
    """The result of `summary`; `print` shows it as a table.

    Attributes:
        rows: layers and combinators in the order of the network, each combinator above its layers.
        input: the input, a tree of jax.ShapeDtypeStructs, for a batch of 1.
        params: the total number of parameters.
        state: the total number of values in the state.
        bytes: of parameters and state.
        cost: FLOPs; None without a batch size.
    """

    rows: tuple[Row, ...]
    input: Tree
    params: int
    state: int
    bytes: int
    cost: Cost | None

    def __str__(self) -> str:
        return _table(self)


def summary(
    net: Layer | Activation, in_shape: InShape, *, batch_size: int | None = 32, dtype: DType = jnp.float32
) -> Summary:
    """Layers by path with output shapes, parameters and state, and the FLOPs of a forward pass and of a training step.

    In the table the batch axis is N. The parameters of a combinator are those of the layers below it, so the outermost
    rows add up to the total: `repeat` has the parameters of n layers, `share` of one.

    FLOPs are XLA's count for the program that it compiles for this machine: a multiplication and an addition are one
    each, exponentials and the like are excluded, and operations removed as unused are free. XLA counts the body of a
    loop once; here `repeat` and `share` count n times. A convolution counts by its formula, whichever algorithm this
    backend uses. Another backend or version may count a few per cent more or less.

    Args:
        net: the network.
        in_shape: the shape of one example, without the batch axis; jax.ShapeDtypeStructs if inputs are not float.
        batch_size: N of the FLOPs; with None they are omitted, and nothing is compiled.
        dtype: of the parameters and the input.

    Raises:
        ValueError: if the batch size is below 1, or the layers do not fit together.

    >>> from jaxnn import mlp
    >>> print(summary(mlp([30, 10]), (784,), batch_size=None))
    layer     output    parameters
    input     N × 784
    dense_0   N × 30        23,550
    relu_0    N × 30
    dense_1   N × 10           310
    <BLANKLINE>
    23,860 parameters, 95.4 kB
    """
    if isinstance(net, Activation):
        raise TypeError(f"summary: expected a network, got the activation {net.name!r}: use activation({net.name})")
    if not isinstance(net, Layer):
        raise TypeError(f"summary: expected a network, got {net!r}")
    if batch_size is not None:
        batch_size = whole_number("summary: batch_size", batch_size, least=1)
    params, state = _variables(net, in_shape, dtype)
    spec = input_spec(in_shape, dtype)
    seen = _passes(net, params, state, spec)
    rows = tuple(_rows(net, seen, params, state))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, state)))
    cost = None
    if batch_size is not None:
        forward, step = (_flops(net, spec, seen, batch_size, dtype, train) for train in (False, True))
        cost = Cost(batch_size, forward, step)
    return Summary(rows, spec, _size(params), _size(state), held, cost)


# ---------------------------------------------------------------- shapes


class _Seen(NamedTuple):
    """Input and output of a layer, as jax.ShapeDtypeStructs."""

    x: Tree
    y: Tree


Index = tuple[int, ...]  # of a child, its child and so on, from the network down


def _variables(net: Layer, in_shape: InShape, dtype: DType) -> tuple[Params, State]:
    return jax.eval_shape(lambda key: net.init(key, in_shape, dtype), jax.random.key(0))


def _size(tree: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _passes(net: Layer, params: Params, state: State, x: Tree) -> dict[Index, _Seen]:
    """Input and output of the network and of every layer in it."""
    seen: dict[Index, _Seen] = {}

    def recorded(layer: Layer, place: Place) -> Layer:
        def forward(params: Params, state: State, x: Tree, *, train: bool = False, rng: Key | None = None) -> Forward:
            y, state, tape = layer.forward(params, state, x, train=train, rng=rng)
            seen[place.index] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _Seen(x, y))
            return y, state, tape

        return with_rules(layer, forward=forward)

    jax.eval_shape(rebuilt(recorded, net).forward, params, state, x)
    return seen


def _in_shape(x: Tree) -> InShape:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


# ---------------------------------------------------------------- rows


def _rows(net: Layer, seen: dict[Index, _Seen], params: Params, state: State) -> Iterator[Row]:
    kinds: dict[Index, str] = {}
    for place in places(net, inner_first=True):
        kinds[place.index] = _kind(place.layer, kinds.get((*place.index, 0), ""))
    depth: dict[Index, int] = {(): 0}  # of the layers below each layer that has a row
    for place in places(net):
        index, kind = place.index, kinds[place.index]
        above = depth[index[:-1]]
        depth[index] = above
        if index and not place.names[-1]:  # it shares the path, hence the row, of the layer around it
            continue
        if place.path or not place.layer.in_sequence:  # a serial network is the table itself
            yield Row("/".join(place.path), above, kind, seen[index].y, _size(place.of(params)), _size(place.of(state)))
            depth[index] += 1


def _kind(layer: Layer, below: str) -> str:
    """The kind in a row, joined with that of a child that shares its path: "5 × residual"."""
    if layer.child_names != ("",):
        return layer.kind
    if layer.passes is not None:
        return f"{layer.passes} × {'tied ' * (not layer.stacks)}{below}"
    return layer.kind if below == "serial" else f"{layer.kind} of {below}"


# ---------------------------------------------------------------- FLOPs


def _flops(net: Layer, x: Tree, seen: dict[Index, _Seen], n: int, dtype: DType, train: bool) -> float:
    """FLOPs of a network with all passes of its loops.

    With one pass of every loop the program has no loop, and XLA counts all of it; a loop adds its layer n − 1 times, a
    recurrent layer one step for each that the count omits.
    """
    at = {place.index: place for place in places(net)}

    def whole(index: Index, *, inner: bool) -> float:
        return once(index, inner=inner) + sum(map(further, _loops(at, index)))

    def further(loop: Place) -> float:
        layer, index = loop.layer, loop.index
        if loop.is_leaf:
            left_out, x = layer.uncounted(seen[index].x)
            return left_out * _xla_flops(layer, x, n, dtype, train, not loop.reads_x)
        return layer.passes * whole((*index, 0), inner=True) - once((*index, 0), inner=True)

    def once(index: Index, *, inner: bool) -> float:
        return _xla_flops(_unlooped(at[index].layer), seen[index].x, n, dtype, train, inner)

    return whole((), inner=False)


def _loops(at: dict[Index, Place], index: Index) -> Iterator[Place]:
    """The outermost loops in the layer at an index, over layers or over time."""
    found: list[Index] = []
    for place in at.values():
        own = place.index
        within = own[: len(index)] == index and not any(own[: len(loop)] == loop for loop in found)
        if within and (place.layer.passes is not None or place.layer.uncounted is not None):
            found.append(own)
            yield place


def _unlooped(net: Layer) -> Layer:
    """The network with each loop replaced by one pass of its layer."""

    def once(layer: Layer, place: Place) -> Layer:
        if layer.passes is None:
            return layer
        name = place.names[-1] if place.index else ""  # distinguishes it from its neighbours
        return with_name(name or layer.name, layer.children[0])

    return rebuilt(once, net)


def _xla_flops(net: Layer, x: Tree, n: int, dtype: DType, train: bool, inner: bool) -> float:
    """XLA's count of a forward pass or of a training step; for an inner layer with the δ at its input."""
    # by formula: a faster algorithm may multiply by zeros, or work in chunks, of which XLA counts one
    net = map_layers(lambda layer: layer.plain, net)
    params, state = _variables(net, _in_shape(x), dtype)
    x = input_spec(_in_shape(x), dtype, n)

    def forward(params: Params, state: State, x: Tree, key: Key) -> Tree:
        return net.forward(params, state, x)[0]

    def step(params: Params, state: State, x: Tree, key: Key, delta: Tree, rate: Array) -> Tree:
        y, state, tape = net.forward(params, state, x, train=True, rng=key)
        delta_in, grads = net.backward(params, tape, delta)
        new = jax.tree.map(lambda p, g: p - rate.astype(p.dtype) * g, params, grads)
        return (new, state, y, delta_in) if inner else (new, state, y)

    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (params, state, x, key)
    if not train:
        return _counted(forward, arguments)
    y = jax.eval_shape(forward, *arguments)
    delta = jax.tree.map(lambda leaf: leaf if is_floating(leaf) else (), y)
    return _counted(step, (*arguments, delta, jax.ShapeDtypeStruct((), jnp.float32)))


def _counted(program: Callable[..., Tree], arguments: tuple[Tree, ...]) -> float:
    analysis = jax.jit(program, keep_unused=True).lower(*arguments).compile().cost_analysis()
    return float((analysis or {}).get("flops", math.nan))


# ---------------------------------------------------------------- text


def _table(result: Summary) -> str:
    has_state = result.state > 0
    cells = [("layer", "output", "parameters", *["state"] * has_state), ("input", _shown(result.input), "", "")]
    for row in result.rows:
        cells.append((_label(row), _shown(row.output), _count(row.params), _count(row.state)))
    columns = len(cells[0])
    widths = [max(len(line[i]) for line in cells) for i in range(columns)]
    lines = []
    for line in cells:
        words = [f"{line[i]:<{widths[i]}}" if i < 2 else f"{line[i]:>{widths[i]}}" for i in range(columns)]
        lines.append(GAP.join(words).rstrip())
    lines += ["", _total(result)]
    if result.cost is not None:
        batch, forward, step = result.cost
        lines.append(f"at a batch of {batch}: {_with_prefix(forward)}FLOP forward, {_with_prefix(step)}FLOP a step")
    return "\n".join(lines)


def _total(result: Summary) -> str:
    state = f", {result.state:,} numbers of state" * (result.state > 0)
    return f"{result.params:,} parameters{state}, {_with_prefix(result.bytes)}B"


def _label(row: Row) -> str:
    """The last part of the path, and the kind if that does not contain it."""
    name = row.path.rpartition("/")[2]
    counted = name.rpartition("_")[0] == row.kind
    return INDENT * row.depth + (row.kind if not name else name if counted else f"{name} ({row.kind})")


def _shown(tree: Tree) -> str:
    """N × 28 × 28 × 1, with N for the batch axis; the dtype if it is not float."""
    leaves = jax.tree.leaves(tree)
    shapes = [" × ".join(["N", *map(str, leaf.shape[1:])]) for leaf in leaves]
    return ", ".join(
        shape if is_floating(leaf) else f"{shape} {leaf.dtype}" for shape, leaf in zip(shapes, leaves, strict=True)
    )


def _count(n: int) -> str:
    return f"{n:,}" if n else ""


def _with_prefix(value: float) -> str:
    """A number as three digits and a prefix: 95.4 k."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = max(0, 2 - int(math.log10(value))) if power and value else 0
    return f"{value:.{digits}f} {PREFIXES[power]}"
