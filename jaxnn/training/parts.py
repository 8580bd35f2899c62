"""Data that a `Source` reads, as training sees them: shapes at once, values part by part.

Letters: N examples, B batch size, P rows of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.arrays import accumulator, is_floating
from jaxnn.records import Record
from jaxnn.sources import Source
from jaxnn.spmd.batches import Home, spread
from jaxnn.training.reading import ChunkFeed, Feed, Layout, Reader, Ready
from jaxnn.types import Array, Tree

Look = Callable[[tuple[Tree, ...], str], None]  # (x, target, weights), and what they are in messages
LEAST, MOST = 2.0**-63, 2.0**63  # of the largest weight: sums over parts are taken in one unit


class Part(Record):
    """Examples of an epoch in its order, `data` [P, …], the first of them the one at the position `start`."""

    data: Any
    start: Array | np.ndarray
    n: int  # of the epoch

    def rows(self, at: Array | int, count: int) -> Array:
        """The rows of the examples from the position `at` on."""
        return jnp.arange(count, dtype=jnp.int32) + jnp.asarray(at - self.start)

    def prepared(self) -> tuple[Any, Array | float]:
        """As `means.in_moderation`, with weights below 2⁶³: the largest of all is not known."""
        x, target, *weights = self.data
        factor = 0.5 ** (self.n - 1).bit_length()
        if not weights:
            return self.data, factor
        w = weights[0]
        w = w.astype(accumulator(w.dtype) if is_floating(w) else jnp.result_type(float))
        return (x, target, jnp.where((w >= 0) & (w < jnp.inf), w, jnp.nan)), factor / 2


class _Running:
    """The reading of an epoch: its thread, and the parts that were taken from it and are not over."""

    def __init__(self, which: Any, reader: Reader, at: int) -> None:
        self.which, self.reader, self.at = which, reader, at  # `at` is where the next part begins
        self.here: list[tuple[Part, Ready]] = []

    def take(self, layout: Layout) -> None:
        """Waits for the next part, and places it."""
        ready = self.reader.next()
        self.at = ready.stop
        part = Part(placed(layout, ready), np.asarray(ready.start, np.int32), layout.source.length)
        self.here.append((part, ready))

    def drop(self) -> None:
        """Forgets the first of the parts, whose training is over, and which is not read again."""
        self.reader.release(self.here.pop(0)[1].memory)


def placed(layout: Layout, ready: Ready) -> tuple[Tree, ...]:
    """The rows on the device, under `jax.set_mesh` on every one. On one CPU that is the memory that was read into."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, spread(leaf, False)), layout.tree(ready.memory))


class FromSource(tuple[Any, ...]):
    """(x, target) or (x, target, weights) as jax.ShapeDtypeStructs [N, …], whose values a source reads.

    It is a leaf of a tree, so that nothing takes the shapes for arrays, and has the thread that reads: `close` ends it.
    """

    layout: Layout
    look: Look | None  # at values, until an epoch was read from its first example to its last
    _what: str
    _running: _Running | None
    _top: float  # the largest weight so far
    _seen: int  # examples looked at, from the first on

    def __new__(cls, what: str, source: Source) -> FromSource:
        """Reads the first rows; raises an error for what are none."""
        layout = Layout(source)
        shapes = [(source.length, *shape) for shape in layout.shapes]
        self = super().__new__(cls, layout.tree([*map(jax.ShapeDtypeStruct, shapes, layout.types)]))
        self.layout, self.look, self._what = layout, None, what
        self._running, self._top, self._seen = None, 0.0, 0
        return self

    @property
    def source(self) -> Source:
        """Where the values are."""
        return self.layout.source

    @property
    def home(self) -> Home | None:
        """Where parts are placed: every device of `jax.set_mesh` has them, and its first axis divides a batch."""
        if jax.sharding.get_abstract_mesh().empty:
            return None
        mesh = jax.sharding.get_mesh()
        return Home(mesh, mesh.axis_names[0])

    # ------------------------------------------------------------ parts

    def part(
        self, which: tuple[int, Any], position: int, batch: int, order: Callable[[], np.ndarray | None]
    ) -> tuple[Part, int]:
        """The part with the example at that position of an epoch, and the position behind its last.

        `which` is the number of the epoch and what else its order depends on; `order` gives that order.
        """
        run = self._running
        if run is not None and run.which == (which, batch):
            while run.here and run.here[0][1].stop <= position:
                run.drop()
            if not run.here and run.at == position:
                run.take(self.layout)
        if run is None or run.which != (which, batch) or not run.here or run.here[0][1].start > position:
            self.close()
            reader = self._reader(self._feed(which[0], position, batch, order), position, batch)
            run = self._running = _Running((which, batch), reader, position)
            run.take(self.layout)
        part, ready = run.here[0]
        return part, ready.stop

    def look_ahead(self) -> None:
        """Waits for the next part of this epoch and places it, while the last one trains."""
        run = self._running
        if run is not None and len(run.here) == 1 and run.at < self.source.length:
            run.take(self.layout)

    def in_order(self, batch: int) -> Generator[tuple[Tree, ...]]:
        """All examples in the order of the source, in parts of whole batches, the last of what is left.

        Close the iterator: it has a thread.
        """
        feed = self._feed(0, 0, batch, lambda: None)
        with closing(self._reader(feed, 0, batch, exact=True)) as reader:
            stop = 0
            while stop < self.source.length:
                ready = reader.next()
                stop = ready.stop
                yield placed(self.layout, ready)
                reader.release()

    def examples(self, which: int, position: int, batch: int, order: Callable[[], np.ndarray | None]) -> Any:
        """The examples of a batch of an epoch, [B, …], the first of them the one at the position."""
        stop = min(position + batch, self.source.length)
        return placed(self.layout, self._read(self._feed(which, position, batch, order), position, stop))

    def some(self, at: np.ndarray) -> list[np.ndarray]:
        """The leaves of the rows of those numbers; of a source in a given order, as many of its first."""
        feed = self._feed(0, 0, len(at), lambda: at)
        return self._read(feed, 0, len(at)).memory

    def close(self) -> None:
        """Ends the thread that reads."""
        if self._running is not None:
            self._running.reader.close()
            self._running = None

    def _feed(self, epoch: int, position: int, batch: int, order: Callable[[], np.ndarray | None]) -> Feed:
        in_order = self.source.in_order
        return ChunkFeed(self.layout, epoch, position) if in_order else Feed(self.layout, order(), batch)

    def _read(self, feed: Feed, start: int, stop: int) -> Ready:
        memory = self.layout.empty(stop - start)
        with closing(feed):
            for _ in feed.fill(start, stop, memory):
                pass
        return Ready(start, stop, memory)

    def _reader(self, feed: Feed, start: int, batch: int, *, exact: bool = False) -> Reader:
        batches = self.source.part_bytes // max(self.layout.row_bytes * batch, 1)
        rows = batch * min(max(batches, 1), -(-self.source.length // batch))
        return Reader(feed, start, rows, self._looked if self.look is not None else None, exact=exact)

    # ------------------------------------------------------------ values

    def _looked(self, leaves: list[np.ndarray], start: int, where: Callable[[int], str]) -> None:
        """Looks at the values of a part; an error names the row."""
        if self.look is None:
            return
        self._look_from(self.look, leaves, start, where)
        self._seen = start + len(leaves[0]) if start in (0, self._seen) else 0
        if len(self) == 3:
            self._weigh(leaves[-1], whole=self._seen == self.source.length)
        if self._seen == self.source.length:
            self.look = None

    def _look_from(self, look: Look, leaves: list[np.ndarray], start: int, where: Callable[[int], str]) -> None:
        """Halves a part whose values are wrong, until the row is found."""
        rows = len(leaves[0])
        what = f"{self._what}, {where(start)}" if rows == 1 else self._what
        try:
            look(self.layout.tree(leaves), what)
        except (ValueError, TypeError):
            if rows > 1:
                for half in (slice(rows // 2), slice(rows // 2, None)):
                    self._look_from(look, [leaf[half] for leaf in leaves], start + (half.start or 0), where)
            raise

    def _weigh(self, weights: np.ndarray, *, whole: bool) -> None:
        """Checks that the weights have a mean, and that sums of all parts may be taken in one unit."""
        self._top = max(self._top, float(weights.max()))
        advice = "divide them by their largest: the mean is the same"
        if self._top >= MOST:
            raise ValueError(f"{self._what}: weights of a Source must be below 2⁶³, got {self._top:g}: {advice}")
        if whole and self._top == 0:
            raise ValueError(
                f"{self._what}: weights are all zero, so that no mean exists: omit the weights, or the batch"
            )
        if whole and self._top < LEAST:
            raise ValueError(
                f"{self._what}: weights of a Source must exceed 2⁻⁶³, the largest is {self._top:g}: {advice}"
            )
