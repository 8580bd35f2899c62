"""What a network is made of, as a table: layers, output shapes, parameters, state, and what a pass over it costs.

Nothing is computed: shapes come from `jax.eval_shape`, FLOPs from XLA's cost analysis of the compiled programs.
Letters: N batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import input_spec, is_floating, whole_number
from jaxnn.combinators import map_layers
from jaxnn.combinators.walking import with_name
from jaxnn.interfaces import with_rules
from jaxnn.showing import shown
from jaxnn.types import Activation, Array, DType, Forward, InShape, Key, Layer, Params, State, Tree

__all__ = ["Cost", "Row", "Summary", "summary"]


def __dir__() -> list[str]:
    return list(__all__)


INDENT, GAP = "  ", "   "
PREFIXES = ("", "k", "M", "G", "T", "P")


class Row(NamedTuple):
    """A layer of the network, or a combinator of layers.

    Attributes:
        path: its place in parameters, state and readings, "residual_0/dense_1"; "" for the network itself.
        depth: how many combinators it is indented under.
        kind: what it is where the path does not say it: "dense" of a named layer, "5 × residual" of a `repeat`,
            "5 × tied dense" of a `share`; combinators that add no level to the path share a row.
        output: its output, a tree of jax.ShapeDtypeStructs, for a batch of 1.
        params: the number of its parameters: of all n passes of a `repeat`, of one of a `share`.
        state: likewise, of its state.
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
        step: a training step: forward with `train=True`, the hand-derived backward from a δ at the output, θ ← θ − ηg.
            The loss itself, and what an optimizer does beyond that, are left out.
    """

    batch_size: int
    forward: float
    step: float


@shown(lambda summary: f"<summary: {len(summary.rows)} layers, {_total(summary)}>")
class Summary(NamedTuple):
    """What `summary` returns; `print` shows it as a table.

    Attributes:
        rows: layers and combinators in the network's own order, each combinator above its layers.
        input: the input, a tree of jax.ShapeDtypeStructs, for a batch of 1.
        params: the number of parameters in all.
        state: the numbers held as state in all.
        bytes: of parameters and state.
        cost: FLOPs; None where no batch size was given.
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

    In the table the batch axis is N. The parameters of a combinator are those of the layers below it, so the
    outermost rows add up to the total: `repeat` holds n layers' worth, `share` one.

    FLOPs are what XLA counts in the program that it compiled for this machine: a multiplication and an addition each
    are one, exponentials and the like are not in it, and what it left out as unused costs nothing. XLA counts the body
    of a loop once; here `repeat` and `share` count n times. A convolution counts as its formula has it, whichever
    algorithm it takes on this backend. Another backend or version may count a few per cent more or less.

    Args:
        net: the network.
        in_shape: the shape of one example, without the batch axis; jax.ShapeDtypeStructs where inputs are not float.
        batch_size: N of the FLOPs; None leaves them out, and nothing is compiled.
        dtype: of the parameters and the input.

    Raises:
        ValueError: if the batch size is below 1, or the layers do not fit together.

    >>> from jaxnn.combinators import mlp
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
    """What passed through a layer: its input and its output, as jax.ShapeDtypeStructs."""

    x: Tree
    y: Tree


Place = tuple[int, ...]  # which child of which child, from the network down


def _variables(net: Layer, in_shape: InShape, dtype: DType) -> tuple[Params, State]:
    return jax.eval_shape(lambda key: net.init(key, in_shape, dtype), jax.random.key(0))


def _size(tree: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _passes(net: Layer, params: Params, state: State, x: Tree) -> dict[Place, _Seen]:
    """Input and output of the network and of everything in it."""
    seen: dict[Place, _Seen] = {}

    def spied(layer: Layer, place: Place) -> Layer:
        if layer.rebuild is not None:
            children = tuple(spied(child, (*place, i)) for i, child in enumerate(layer.children))
            layer = layer.rebuild(children)

        def forward(params: Params, state: State, x: Any, *, train: bool = False, rng: Key | None = None) -> Forward:
            y, state, tape = layer.forward(params, state, x, train=train, rng=rng)
            seen[place] = jax.tree.map(_spec, _Seen(x, y))
            return y, state, tape

        return with_rules(layer, forward=forward)

    jax.eval_shape(spied(net, ()).forward, params, state, x)
    return seen


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _in_shape(x: Tree) -> InShape:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


# ---------------------------------------------------------------- rows


def _rows(net: Layer, seen: dict[Place, _Seen], params: Params, state: State) -> Iterator[Row]:
    def walk(layer: Layer, place: Place, path: tuple[str, ...], depth: int, variables: Any) -> Iterator[Row]:
        output = seen[place].y
        kind = _kind(layer, seen, place)
        while layer.child_names == ("",):  # transparent: what it is made of has the same path
            layer, place = layer.children[0], (*place, 0)
        shown = bool(path) or kind != "serial"  # a serial network is the table itself
        if shown:
            yield Row("/".join(path), depth, kind, output, *map(_size, variables))
        for i, (name, child) in enumerate(zip(layer.child_names, layer.children, strict=True)):
            parts = tuple(part.get(name, ()) if isinstance(part, dict) else () for part in variables)
            yield from walk(child, (*place, i), (*path, name), depth + shown, parts)

    return walk(net, (), (), 0, (params, state))


def _kind(layer: Layer, seen: dict[Place, _Seen], place: Place) -> str:
    """The kinds of the layers that share a row: "5 × residual"."""
    if layer.child_names != ("",):
        return layer.kind
    below = _kind(layer.children[0], seen, (*place, 0))
    if layer.passes is not None:
        return f"{layer.passes} × {'tied ' * (not layer.stacks)}{below}"
    return layer.kind if below == "serial" else f"{layer.kind} of {below}"


# ---------------------------------------------------------------- FLOPs


def _flops(net: Layer, x: Tree, seen: dict[Place, _Seen], n: int, dtype: DType, train: bool) -> float:
    """FLOPs of a network, its loops in full.

    With every loop at one pass the program has no loop, and XLA counts all of it; a loop adds its layer n − 1 times, a
    recurrent layer one of its steps as often as the count leaves it out.
    """

    def whole(layer: Layer, place: Place, *, inner: bool) -> float:
        return once(layer, place, inner=inner) + sum(further(loop, at) for loop, at in _loops(layer, place))

    def further(loop: Layer, place: Place) -> float:
        if not loop.children:
            left_out, x = loop.uncounted(seen[place].x)
            return left_out * _xla_flops(loop, x, n, dtype, train, not _is_first(net, place))
        child, below = loop.children[0], (*place, 0)
        each = whole(child, below, inner=True)
        return loop.passes * each - once(child, below, inner=True)

    def once(layer: Layer, place: Place, *, inner: bool) -> float:
        return _xla_flops(_unlooped(layer), seen[place].x, n, dtype, train, inner)

    return whole(net, (), inner=False)


def _loops(layer: Layer, place: Place) -> Iterator[tuple[Layer, Place]]:
    """The outermost loops in a network, over layers or over time."""
    if layer.passes is not None or layer.uncounted is not None:
        yield layer, place
        return
    for i, child in enumerate(layer.children):
        yield from _loops(child, (*place, i))


def _is_first(net: Layer, place: Place) -> bool:
    """Whether the layer there reads the network's own input, whose δ nobody wants."""
    for i in place:
        if net.kind == "serial" and i > 0:
            return False
        net = net.children[i]
    return True


def _unlooped(layer: Layer) -> Layer:
    """The network with each loop's layer, once, in place of the loop."""
    if layer.rebuild is None:
        return layer
    children = tuple(_unlooped(child) for child in layer.children)
    if layer.passes is not None:
        return with_name(layer.name, children[0])
    named = zip(layer.child_names, children, strict=True)
    return layer.rebuild(tuple(with_name(name or child.name, child) for name, child in named))


def _xla_flops(net: Layer, x: Tree, n: int, dtype: DType, train: bool, inner: bool) -> float:
    """What XLA counts in a forward pass, or in a training step; of an inner layer with the δ that it passes on."""
    net = map_layers(_plain, net)
    params, state = _variables(net, _in_shape(x), dtype)
    x = input_spec(_in_shape(x), dtype, n)

    def forward(params: Params, state: State, x: Any, key: Array) -> Any:
        return net.forward(params, state, x)[0]

    def step(params: Params, state: State, x: Any, key: Array, delta: Any, rate: Array) -> Any:
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


def _plain(layer: Layer) -> Layer:
    """The leaf by its formula: a faster form may multiply with zeros, or work in chunks, of which XLA counts one."""
    return layer.plain


def _counted(program: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
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
    """The last part of the path, and the kind where that does not say it."""
    name = row.path.rpartition("/")[2]
    counted = name.rpartition("_")[0] == row.kind
    return INDENT * row.depth + (row.kind if not name else name if counted else f"{name} ({row.kind})")


def _shown(tree: Tree) -> str:
    """N × 28 × 28 × 1, the batch axis as N; the dtype where it is not float."""
    leaves = jax.tree.leaves(tree)
    shapes = [" × ".join(["N", *map(str, leaf.shape[1:])]) for leaf in leaves]
    return ", ".join(
        shape if is_floating(leaf) else f"{shape} {leaf.dtype}" for shape, leaf in zip(shapes, leaves, strict=True)
    )


def _count(n: int) -> str:
    return f"{n:,}" if n else ""


def _with_prefix(value: float) -> str:
    """Three digits and a prefix: 95.4 k."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = max(0, 2 - int(math.log10(value))) if power and value else 0
    return f"{value:.{digits}f} {PREFIXES[power]}"
