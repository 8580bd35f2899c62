"""Rows of a `Source`, read part by part in a separate thread.

The thread reads into NumPy arrays and calls nothing of JAX: contexts such as `jax.enable_x64`, `jax.default_device` and
`jax.set_mesh` belong to the thread that called. Letters: N examples, B batch size, P rows of a part.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.sources import PARTS, Arrays, Chunks, Source, named, parts_of
from jaxnn.trees import path_name

AT_ONCE = 3  # parts in memory: the one that trains, the next one, and the one that is being read
PATIENCE = 5.0  # seconds to wait for a function of the user's that does not return, when nothing is wanted of it
ALIGNMENT = 64  # bytes
PIECE = 1024  # rows that are converted at a time, where arrays are of another type than on the device


class Layout:
    """Structure, shapes and types of the rows of a source, as they are read first and must always be."""

    def __init__(self, source: Source) -> None:
        """Reads the first and the last row, or the first chunk; raises an error for what are no rows."""
        self.source = source
        if isinstance(source.rows, Chunks):
            where, first = "Source.of_chunks: chunk 0 of epoch 0", _first_chunk(source)
            count = None
        else:
            ends = np.unique(np.array([0, source.length - 1], np.int64))
            where, count = "Source: rows", len(ends)
            first = _asked(source, ends, f", the first and the last of length={source.length}")
        self.first = parts_of(where, first)
        leaves, structure = jax.tree.flatten(self.first)
        self.structure: Any = structure
        paths = jax.tree_util.tree_leaves_with_path(self.first)
        self.names = [path_name(path[1:], below=PARTS[path[0].idx]) for path, _ in paths]
        self.shapes, self.dtypes = [leaf.shape[1:] for leaf in leaves], [leaf.dtype for leaf in leaves]
        if not leaves:
            raise ValueError(f"{where} must return arrays, got none")
        self.types = [_on_device(dtype) for dtype in self.dtypes]  # there, a float64 may be a float32
        if count is not None or len(set(map(len, leaves))) > 1:
            self._check_counts(where, leaves, len(leaves[0]) if count is None else count)

    @property
    def row_bytes(self) -> int:
        """Bytes of an example on the device."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in zip(self.shapes, self.types, strict=True))

    def empty(self, rows: int) -> list[np.ndarray]:
        """Memory for rows."""
        return [_aligned((rows, *shape), dtype) for shape, dtype in zip(self.shapes, self.types, strict=True)]

    def tree(self, leaves: list[Any]) -> Any:
        """(x, target, weights) of its leaves."""
        return jax.tree.unflatten(self.structure, leaves)

    def leaves_of(self, where: str, rows: Any, count: int | None) -> list[np.ndarray]:
        """The leaves of what was returned, checked; `count` rows each, or any number if that is None."""
        parts = parts_of(where, rows)
        leaves, structure = jax.tree.flatten(parts)
        if structure != self.structure:
            raise ValueError(f"{where} returned {structure}, where the first ones were {self.structure}")
        self._check_counts(where, leaves, len(leaves[0]) if count is None else count)
        for name, leaf, shape, dtype in zip(self.names, leaves, self.shapes, self.dtypes, strict=True):
            if leaf.shape[1:] != shape:
                raise ValueError(
                    f"{where} returned {name} with examples of shape {leaf.shape[1:]}, where the first ones had {shape}"
                )
            if leaf.dtype != dtype:
                raise ValueError(f"{where} returned {name} of {leaf.dtype}, where the first ones were {dtype}")
        return leaves

    def _check_counts(self, where: str, leaves: list[np.ndarray], count: int) -> None:
        for name, leaf in zip(self.names, leaves, strict=True):
            if len(leaf) != count:
                raise ValueError(f"{where} must return {count} rows in each array, got {len(leaf)} in {name}")


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Memory that XLA takes as it is on CPU; it would copy what begins elsewhere."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def put(where: str, name: str, leaf: np.ndarray, there: np.ndarray) -> None:
    """Writes rows to memory, in the type of the device."""
    there[...] = leaf
    narrower = leaf.dtype.kind in "iu" and leaf.dtype.itemsize > there.dtype.itemsize
    if narrower and not np.array_equal(leaf, there):
        value = leaf[leaf != there][0]
        raise ValueError(
            f"{where}: {name} holds {value}, beyond {there.dtype}: on the device whole numbers are {there.dtype}"
        )


def _on_device(dtype: np.dtype[Any]) -> np.dtype[Any]:
    there = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    return there if there.isnative else there.newbyteorder("=")


def _asked(source: Source, indices: np.ndarray, which: str = "") -> Any:
    """The rows of those numbers; an error of the user's function says which they were."""
    try:
        return source.rows(indices)
    except BaseException as error:
        error.add_note(f"The Source was asked for rows {named(indices)}{which}.")
        raise


def _first_chunk(source: Source) -> Any:
    chunks, _ = source.rows.begun(0, 0)  # type: ignore[attr-defined]
    try:
        return next(chunks)
    except StopIteration:
        raise ValueError("Source.of_chunks: epoch 0 has no chunks") from None
    finally:
        _closed(chunks)


def _closed(chunks: Any) -> None:
    if hasattr(chunks, "close"):
        chunks.close()


# ---------------------------------------------------------------- rows in the order of an epoch


class Feed:
    """The rows of an epoch from an example on, in its order, each of them read once."""

    def __init__(self, layout: Layout, order: np.ndarray | None, batch: int) -> None:
        self.layout, self.order, self.batch = layout, order, batch

    def numbers(self, start: int, stop: int) -> np.ndarray:
        """The numbers of the rows at those places of the order."""
        return np.arange(start, stop) if self.order is None else self.order[start:stop].astype(np.int64)

    def where(self, place: int) -> str:
        """The row at a place of the order, for messages."""
        return f"row {self.numbers(place, place + 1)[0]}"

    def fill(self, start: int, stop: int, memory: list[np.ndarray]) -> Iterator[None]:
        """Reads the rows at the places from start to stop; yields now and then, so that it can be ended."""
        layout, rows = self.layout, self.layout.source.rows
        if isinstance(rows, Arrays):
            yield from _taken(layout.names, rows.leaves, self.numbers(start, stop), memory)
            return
        for at in range(start, stop, self.batch):
            some = self.numbers(at, min(at + self.batch, stop))
            where = f"Source: rows, asked for {named(some)},"
            leaves = layout.leaves_of(where, _asked(layout.source, some), len(some))
            for name, leaf, there in zip(layout.names, leaves, memory, strict=True):
                put(where, name, leaf, there[at - start : at - start + len(some)])
            yield

    def close(self) -> None:
        """Ends the reading."""


def _taken(names: list[str], arrays: list[np.ndarray], at: np.ndarray, memory: list[np.ndarray]) -> Iterator[None]:
    """Rows of arrays."""
    for name, array, there in zip(names, arrays, memory, strict=True):
        if array.dtype == there.dtype and array.flags.c_contiguous and array.flags.aligned:
            np.take(array, at, axis=0, out=there, mode="clip")  # without memory between; it would copy others whole
            yield
            continue
        for start in range(0, len(at), PIECE):
            some = at[start : start + PIECE]
            put(f"rows {named(some)}", name, array[some], there[start : start + PIECE])
            yield


class ChunkFeed(Feed):
    """The rows of an epoch in the order of its chunks."""

    def __init__(self, layout: Layout, epoch: int, start: int) -> None:
        super().__init__(layout, None, 1)
        self.epoch, self.start = epoch, start
        self.chunks: Any = None  # begun in the thread that reads them
        self.count = 0  # chunks so far
        self.left: list[np.ndarray] = []  # of the chunk at hand
        self.before = 0  # examples to skip

    def where(self, place: int) -> str:
        """The example at a place of the epoch."""
        return f"example {place} of epoch {self.epoch}"

    def fill(self, start: int, stop: int, memory: list[np.ndarray]) -> Iterator[None]:
        """Reads the examples from start to stop, which are the next ones; after the last, nothing must follow."""
        if self.chunks is None:
            self.chunks, self.before = self.layout.source.rows.begun(self.epoch, self.start)  # type: ignore[attr-defined]
        at = start
        while at < stop:
            self._next(at - self.before)
            count = min(len(self.left[0]), stop - at)
            if self.before:
                skipped = min(len(self.left[0]), self.before)
                self.before, self.left = self.before - skipped, [leaf[skipped:] for leaf in self.left]
                yield
                continue
            for name, leaf, there in zip(self.layout.names, self.left, memory, strict=True):
                put(self._chunk, name, leaf[:count], there[at - start : at - start + count])
            self.left, at = [leaf[count:] for leaf in self.left], at + count
            yield
        if stop == self.layout.source.length:
            self._check_end()

    def close(self) -> None:
        """Ends the iterator, if it can be ended."""
        if self.chunks is not None:
            _closed(self.chunks)

    @property
    def _chunk(self) -> str:
        return f"Source.of_chunks: chunk {self.count - 1} of epoch {self.epoch}"

    def _next(self, seen: int) -> None:
        """Makes sure that the chunk at hand has an example left."""
        while not self.left or not len(self.left[0]):
            if not self._advanced():
                raise ValueError(
                    f"Source.of_chunks: epoch {self.epoch} ended after {seen} examples in {self.count} chunks, "
                    f"where length={self.layout.source.length}: give the number of examples that it has"
                )

    def _advanced(self) -> bool:
        try:
            chunk = next(self.chunks)
        except StopIteration:
            return False
        except BaseException as error:
            error.add_note(f"The Source was asked for chunk {self.count} of epoch {self.epoch}.")
            raise
        self.count += 1
        self.left = self.layout.leaves_of(self._chunk, chunk, None)
        return True

    def _check_end(self) -> None:
        left = len(self.left[0]) if self.left else 0
        if left or self._advanced():
            raise ValueError(
                f"{self._chunk} goes on after {self.layout.source.length} examples, where length="
                f"{self.layout.source.length}: give the number of examples that an epoch has"
            )


# ---------------------------------------------------------------- the thread


class Ready(NamedTuple):
    """Rows that were read: those at the places from start to stop."""

    start: int
    stop: int
    memory: list[np.ndarray]


class Reader:
    """A thread that reads the parts of an epoch from an example on, at most AT_ONCE of them ahead of `release`.

    Each has P rows, of which the last part may leave some unread, or have fewer with `exact`. `look`, a function (rows,
    the first place, row of a place) -> None, may raise an error.
    """

    def __init__(self, feed: Feed, start: int, rows: int, look: Any = None, *, exact: bool = False) -> None:
        self.feed, self.look, self.exact = feed, look, exact
        self.start, self.rows, self.n = start, rows, feed.layout.source.length
        self._spare: list[list[np.ndarray]] = []  # memory to be used again: new pages take as long as the reading
        self._free, self._ready = threading.Semaphore(AT_ONCE), SimpleQueue[Any]()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="jaxnn: Source", daemon=True)
        self._thread.start()

    def next(self) -> Ready:
        """The next part, as soon as it is there; raises the error that its reading raised."""
        ready = self._ready.get()
        if isinstance(ready, BaseException):
            raise ready
        return ready

    def release(self, memory: list[np.ndarray] | None = None) -> None:
        """Says that a part is over; its memory, if given, is overwritten by a later one."""
        if memory is not None:
            self._spare.append(memory)
        self._free.release()

    def close(self) -> None:
        """Ends the thread, after what it is reading."""
        self._ended = True
        self._free.release()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            for start in range(self.start, self.n, self.rows):
                self._free.acquire()
                if self._ended:
                    return
                ready = self._read(start, min(start + self.rows, self.n))
                if ready is None:
                    return
                self._ready.put(ready)
        except BaseException as error:  # for whoever waits
            self._ready.put(error)
        finally:
            with suppress(Exception):
                self.feed.close()

    def _read(self, start: int, stop: int) -> Ready | None:
        spare = self._spare.pop() if self._spare else None
        memory = spare or self.feed.layout.empty(stop - start if self.exact else self.rows)
        rows = [leaf[: stop - start] for leaf in memory]
        for _ in self.feed.fill(start, stop, rows):
            if self._ended:
                return None
        if self.look is not None:
            self.look(rows, start, self.feed.where)
        return Ready(start, stop, memory)
