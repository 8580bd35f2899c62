"""Random splits of examples into parts, the same in every process and on every machine.

Index letters: `N` examples, `P` parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxnn import checks
from jaxnn.keys import as_key
from jaxnn.shapes import batch_size
from jaxnn.trees import named_leaves
from jaxnn.types import Key, Tree


def split(
    data: Tree, held_out: float | Sequence[float], *, key: Key | int, stratify: ArrayLike | None = None
) -> tuple[Tree, ...]:
    """Splits examples at random into parts; every example is in exactly one.

    The first part is the remainder after the held-out parts. Each part is shuffled. The same key gives the same
    parts in every process and on every machine; another key gives an independent split into parts of the same
    sizes, so that several can be stacked and trained at once. Arrays are copied, NumPy to NumPy, and a jax.Array
    stays on its device.

    With `stratify` each part contains each class in proportion, nₖ·size/N examples of it, to within one example
    (within P − 1 for P parts), and all examples remain equally likely: they are arranged in a row class by class,
    shuffled within each, and every (N/size)-th is taken from a random start (systematic sampling).

    Args:
        data: a pytree of arrays with N as the first axis of each, such as `(x, labels)`.
        held_out: a fraction of N (a float between 0 and 1, rounded to whole examples) or a number of examples
            (a whole number), or a sequence of them for several parts.
        key: `jax.random.key(seed)` or an integer seed.
        stratify: integer labels [N] whose proportions are preserved.

    Returns:
        The parts, each a tree like data: the remainder first, then one for each entry of held_out.

    Raises:
        ValueError: arrays that differ in length; a part that would be empty; a fraction outside (0, 1);
            labels that are not [N].
        TypeError: data that are not arrays; labels that are not whole numbers.

    Source: Madow & Madow (1944), "On the theory of systematic sampling".

    >>> x, labels = np.arange(20.0).reshape(10, 2), np.arange(10) % 2
    >>> (x_train, labels_train), (x_test, labels_test) = split((x, labels), 0.2, key=0, stratify=labels)
    >>> x_train.shape, x_test.shape, sorted(labels_test.tolist())
    ((8, 2), (2, 2), [0, 1])
    >>> [len(part) for part in split(labels, (0.1, 3), key=0)]  # train, validation, test
    [6, 1, 3]
    """
    checks.plain_data("split: data", data, numbers=False)
    checks.plain_data("split: stratify", stratify, numbers=False)
    for name, leaf in named_leaves(data).items():
        if not isinstance(leaf, np.ndarray | jax.Array):
            where = f"data/{name}" if name else "data"
            raise TypeError(f"split expects arrays, got {type(leaf).__name__} at {where}: use np.asarray")
    N = batch_size("data", data)
    sizes = _part_sizes(held_out, N)
    words = np.asarray(jax.random.key_data(as_key(key))).ravel().tolist()
    # NumPy guarantees the raw bits of a generator across versions, its shuffles only within a version.
    bits = np.random.Philox(np.random.SeedSequence(words))
    order = np.argsort(bits.random_raw(N), kind="stable")
    left = order if stratify is None else order[np.argsort(_class_labels(stratify, N)[order], kind="stable")]
    part = np.zeros(N, np.int64)
    for number, size in enumerate(sizes, start=1):
        start = int(bits.random_raw()) % len(left)
        taken = np.diff((np.arange(len(left) + 1, dtype=np.int64) * size + start) // len(left)) == 1
        part[left[taken]], left = number, left[~taken]
    rows = [order[part[order] == number] for number in range(len(sizes) + 1)]
    return tuple(jax.tree.map(lambda leaf, row=row: leaf[row], data) for row in rows)


def _part_sizes(held_out: float | Sequence[float], N: int) -> list[int]:
    shares = list(held_out) if isinstance(held_out, tuple | list) else [held_out]
    if not shares:
        raise ValueError("held_out is empty: give a fraction such as 0.2, or a number of examples")
    sizes = []
    for share in shares:
        if isinstance(share, Integral):
            size = checks.whole_number("held_out", share, least=1)
        else:
            size = round(checks.number("held_out", share, above=0, below=1) * N)
        if not size:
            raise ValueError(f"held_out {share!r} of {N} examples gives an empty part: hold out more")
        sizes.append(size)
    if sum(sizes) >= N:
        raise ValueError(f"held_out parts of {sizes} leave nothing of {N} examples for the first part")
    return sizes


def _class_labels(stratify: ArrayLike, N: int) -> np.ndarray:
    labels = np.asarray(stratify)
    if labels.shape != (N,):
        raise ValueError(
            f"stratify must be the labels of the {N} examples, of shape ({N},), got shape {labels.shape}"
            + ("; use labels.argmax(-1)" if labels.ndim == 2 else "")
        )
    if labels.dtype.kind not in "iub":
        raise TypeError(f"stratify must be integer labels, got {labels.dtype}: use labels.astype('int32')")
    return labels
