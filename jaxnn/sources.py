"""Data that are read when they are needed: `Source`, for what is larger than memory.

A source gives the rows of a data set by their numbers, or in chunks in a given order. `training.parts` reads
them part by part. Letters: N examples, B batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxnn.checks import plain_data, seen, whole_number
from jaxnn.mistakes import accepts, is_function
from jaxnn.records import Record
from jaxnn.trees import describe, path_name
from jaxnn.types import Tree

PART_BYTES = 64 * 2**20  # what is read at a time: long beside the start of a program, short beside memory
PARTS = ("x", "target", "weights")  # of a data set
SHOWN = 4  # numbers of rows in a message


class Source(Record):
    """A data set of N examples that are read when they are needed: larger than memory, or made on the way.

    `fit`, `evaluate` and `predict` take it in the place of arrays, as data and as validation set. While one part
    trains, a thread reads the next; at most three parts are in memory. Order, results, checkpoints and replays are
    those of the same data as arrays, if the same rows are always returned.

    `rows` is called in another thread, with numbers in any order, B of them or fewer at a time. `Source.of` makes a
    source of arrays and memory maps, `Source.of_dataset` one of anything with `len` and `[i]`, and `Source.of_chunks`
    one of an iterable in its given order.

    Args:
        length: N.
        rows: a function (indices [B], int64) -> (x, target) or (x, target, weights), NumPy arrays or trees of them
            with B examples in front; for `predict` also x alone.
        part_bytes: the size of a part; at least one batch.

    >>> from jaxnn import fit, losses, mlp, sgd
    >>> squares = Source(32, lambda i: ((x := np.float32(i[:, None]) / 32), x**2))
    >>> result = fit(mlp([8, 1]), losses.mse, sgd(0.1), squares, key=0, epochs=3, batch_size=8)
    >>> int(result.train_state.step)
    12
    """

    length: int
    rows: Callable[[np.ndarray], Any]
    _: KW_ONLY
    part_bytes: int = PART_BYTES

    def __post_init__(self) -> None:
        self._set(
            length=whole_number("Source: length", self.length, least=1),
            part_bytes=whole_number("Source: part_bytes", self.part_bytes, least=1),
        )
        if not is_function(self.rows) or not accepts(self.rows, None):
            kin = ""
            if hasattr(self.rows, "__getitem__"):
                kin = "; of arrays make Source.of(x, target), of a dataset with len and [i] Source.of_dataset(dataset)"
            elif hasattr(self.rows, "__iter__"):
                kin = "; of an iterable of chunks make Source.of_chunks(length, chunks)"
            raise TypeError(
                f"Source: rows must be a function (indices [B]) -> (x, target), or (x, target, weights), got "
                f"{seen(self.rows)}{kin}"
            )

    @property
    def in_order(self) -> bool:
        """Whether the examples come in an order of the source's own."""
        return isinstance(self.rows, Chunks)

    @classmethod
    def of(cls, x: Tree, *others: Tree, part_bytes: int = PART_BYTES) -> Source:
        """A source of x, or x and target, or x, target and weights: arrays or trees of them, N examples first in each.

        Of memory maps (`np.memmap`, `np.load(…, mmap_mode="r")`) a part is in memory at a time. `fit`, `evaluate` and
        `predict` make such a source of any data that contain an `np.memmap`. What of a file is not in the system's
        cache is read from the disk at random places when it is shuffled, which is slow there: shuffle a file once when
        it is written and give shuffle=False, or read it by `of_chunks`.

        Raises TypeError or ValueError for what are no arrays of numbers with the same number of examples.

        >>> Source.of(np.zeros((5, 2)), np.zeros(5)).length
        5
        """
        data = (x, *others)
        if len(data) > len(PARTS):
            raise TypeError(f"Source.of takes x, target and weights, got {len(data)} parts")
        sizes = {}
        for name, part in zip(PARTS, data, strict=False):
            plain_data(f"Source.of: {name}", part)
            for path, leaf in jax.tree_util.tree_leaves_with_path(part):
                where = path_name(path, below=name)
                if not getattr(leaf, "ndim", 0) or not hasattr(leaf, "dtype"):
                    raise TypeError(f"Source.of: {where} must be an array [N, …], got {seen(leaf)}: use np.asarray")
                sizes[where] = len(leaf)
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise ValueError(
                f"Source.of: the first axis of each array counts the examples, the same number ≥ 1, got {sizes}"
            )
        return cls(next(iter(sizes.values())), Arrays(data), part_bytes=part_bytes)

    @classmethod
    def of_dataset(cls, dataset: Any, *, part_bytes: int = PART_BYTES) -> Source:
        """A source of a dataset with len and [i]: example i as (x, target) or (x, target, weight).

        Such are grain's MapDataset and PyTorch's datasets. The examples of a batch are stacked.

        Raises TypeError for anything else.

        >>> Source.of_dataset([(np.zeros(2), 0), (np.ones(2), 1)]).length
        2
        """
        if not all(hasattr(dataset, name) for name in ("__len__", "__getitem__")) or isinstance(dataset, (dict, str)):
            hint = "; of an iterable make Source.of_chunks(length, chunks)" if hasattr(dataset, "__iter__") else ""
            raise TypeError(f"Source.of_dataset: dataset must have len and [i], got {seen(dataset)}{hint}")
        return cls(len(dataset), Examples(dataset), part_bytes=part_bytes)

    @classmethod
    def of_chunks(cls, length: int, chunks: Any, *, part_bytes: int = PART_BYTES) -> Source:
        """A source of chunks (x, target) or (x, target, weights) of any sizes, in the order in which they come.

        `chunks` is an iterable that can be iterated again, such as grain's DataLoader, or a function of the number of
        the epoch that returns an iterator, so that every epoch may have another order: `lambda epoch: loader(seed +
        epoch)`. The chunks of an epoch hold `length` examples; batches are cut from them. The order being theirs,
        `fit` takes `shuffle=False` only. An epoch that is continued is read from its beginning, and what was trained
        on is skipped, unless the function is (epoch, start) and begins at that example itself. The first chunk of epoch
        0 is read beforehand, for its shapes; a validation set is always epoch 0.

        Raises TypeError for a generator, which ends after one epoch.

        >>> Source.of_chunks(6, [(np.zeros((4, 2)), np.zeros(4)), (np.ones((2, 2)), np.ones(2))]).in_order
        True
        """
        return cls(length, Chunks(chunks), part_bytes=part_bytes)


def source_of(data: Any) -> Source | None:
    """The source that data are, or are made into because they contain an `np.memmap`; None for arrays in memory."""
    if isinstance(data, Source):
        return data
    plain = type(data) in (tuple, list) and 1 <= len(data) <= len(PARTS)
    if not plain or not any(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(data)):
        return None
    return Source.of(*data)


def in_memory(where: str, *data: Any) -> None:
    """Raises TypeError if any of the data is a source, which a pure function cannot read."""
    parts = [*data, *(part for some in data if isinstance(some, (tuple, list)) for part in some)]
    if any(isinstance(part, Source) for part in parts):
        raise TypeError(
            f"{where} is a Source, which is read on the host, while this is one compiled program over data that are "
            "there: give arrays; or train by fit(net, loss, optimizer, source, …), which reads it part by part"
        )


# ---------------------------------------------------------------- kinds of rows


class Arrays:
    """The rows of arrays. No Record: it is equal to itself alone, as gigabytes are not to be compared."""

    def __init__(self, data: tuple[Tree, ...]) -> None:
        self.data = data  # as given, which for a memory map is more telling than its view
        self.leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(data)]

    def __call__(self, indices: np.ndarray) -> Any:
        return jax.tree.unflatten(jax.tree.structure(self.data), [leaf[indices] for leaf in self.leaves])

    def __repr__(self) -> str:
        return f"of {', '.join(map(describe, self.leaves))}"


class Examples:
    """The rows of a dataset of examples, stacked."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, indices: np.ndarray) -> Any:
        rows = [self._example(int(i)) for i in indices]
        try:
            return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rows)
        except ValueError as error:
            error.add_note(f"Source.of_dataset: the examples {named(indices)} cannot be stacked")
            raise

    def _example(self, i: int) -> Any:
        example = self.dataset[i]
        return tuple(example) if type(example) is list else example


class Chunks:
    """Chunks of rows in their given order."""

    def __init__(self, chunks: Any) -> None:
        again = "give a function of the number of the epoch that makes a new one, lambda epoch: my_chunks(epoch)"
        if isinstance(chunks, Iterator):
            raise TypeError(
                f"Source.of_chunks: {seen(chunks)} ends after one epoch and cannot be iterated again: {again}"
            )
        self.takes = 0  # how many numbers chunks takes
        if callable(chunks) and not hasattr(chunks, "__iter__"):
            self.takes = 2 if accepts(chunks, 0, 0) else 1
            if not accepts(chunks, *range(self.takes)):
                raise TypeError(
                    "Source.of_chunks: chunks must be a function of the number of the epoch, or of that and the "
                    f"example to begin with, got {seen(chunks)}"
                )
        elif not isinstance(chunks, Iterable):
            raise TypeError(f"Source.of_chunks: chunks must be an iterable of (x, target), got {seen(chunks)}; {again}")
        self.chunks = chunks

    def __call__(self, indices: np.ndarray) -> Any:
        raise TypeError("Source.of_chunks: these rows have no numbers: they come in the order of their chunks")

    def begun(self, epoch: int, start: int) -> tuple[Iterator[Any], int]:
        """The chunks of an epoch, and how many of their examples lie before `start`."""
        given: Any = self.chunks if not self.takes else self.chunks(*(epoch, start)[: self.takes])
        if not isinstance(given, Iterable):
            raise TypeError(f"Source.of_chunks: chunks must return an iterable of (x, target), got {seen(given)}")
        return iter(given), 0 if self.takes == 2 else start


# ---------------------------------------------------------------- what they return


def named(indices: Any) -> str:
    """`3, 17, 4, … (32 rows)`."""
    some = ", ".join(str(int(i)) for i in indices[:SHOWN])
    return f"{some}, … ({len(indices)} rows)" if len(indices) > SHOWN else some


def parts_of(where: str, rows: Any) -> tuple[Any, ...]:
    """What rows returned as (x,), (x, target) or (x, target, weights), its leaves as NumPy arrays."""
    parts = tuple(rows) if type(rows) in (tuple, list) else (rows,)
    if not 1 <= len(parts) <= len(PARTS):
        raise TypeError(f"{where} must return (x, target) or (x, target, weights), got {len(parts)} parts")
    arrays = []
    for name, part in zip(PARTS, parts, strict=False):
        plain_data(f"{where} returned {name}, which", part)
        arrays.append(jax.tree_util.tree_map_with_path(partial(_array, f"{where} must return", name), part))
    return tuple(arrays)


def _array(where: str, name: str, path: Any, leaf: Any) -> np.ndarray:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(
            f"{where} arrays with the examples first, got {seen(leaf)} at {path_name(path, below=name)}: use np.asarray"
        )
    array = np.asarray(leaf)
    if not array.ndim:
        raise TypeError(f"{where} arrays with the examples first, got a scalar at {path_name(path, below=name)}")
    return array
