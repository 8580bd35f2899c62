"""Reading data sets, and what is done to data once, on the host, before training: splitting, standardising.

Everything here runs outside `jit` unless it says otherwise, keeps NumPy arrays NumPy arrays (`fit` moves them
to the device, once), and looks at values: a damaged file or an impossible label stops here, by name, rather
than as a NaN in the middle of training.

Index letters: `N` examples, `D` features, `K` classes, `H` `W` height and width of an image.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import jax
import numpy as np

from jaxnn import checks
from jaxnn.types import DType, Key, Shape, Tree

FilePath: TypeAlias = str | os.PathLike[str]
LabelledImages: TypeAlias = tuple[np.ndarray, np.ndarray]  # x [N, H, W, 1] float32 in 0..1, labels [N] int32

IDX_TYPES: dict[int, np.dtype] = {  # by the third byte of the file
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(np.int16),
    0x0C: np.dtype(np.int32),
    0x0D: np.dtype(np.float32),
    0x0E: np.dtype(np.float64),
}
LARGEST_SIZE = 2**31 - 1  # the sizes in an IDX header are signed 32-bit numbers
MOST_AXES = 64  # what NumPy can hold; the header's byte could say 255
GZIP_MAGIC = b"\x1f\x8b"
GZIP_LEVEL = 6  # zlib's own balance of time and size; 9 takes fourteen times as long for MNIST
CHUNK = 1 << 18  # bytes unpacked at a time: memory grows with what the file holds, not with what it promises
BLOCK = 1024  # examples whose float64 copy is in memory at a time while statistics are taken
MNIST_FILES = (
    ("train-images", "idx3"),
    ("train-labels", "idx1"),
    ("t10k-images", "idx3"),
    ("t10k-labels", "idx1"),
)
PIXEL_MAX = np.float32(255)
DIGIT_MAX = np.float32(16)


class DataError(ValueError):
    """A data file that is missing, damaged, or not what was asked for.

    Attributes:
        path: the file or folder.
        expected: what should have been there.
        actual: what was.
        advice: what to do; may be empty.
    """

    def __init__(self, path: FilePath, expected: str, actual: str, advice: str = "") -> None:
        super().__init__(path, expected, actual, advice)  # all of them, so that the error can be pickled
        self.path, self.expected, self.actual, self.advice = Path(path), expected, actual, advice

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.path}: expected {self.expected}, got {self.actual}{advice}"


# ---------------------------------------------------------------- IDX files


class _Header(NamedTuple):
    """What an IDX file says of itself."""

    dtype: np.dtype
    shape: Shape


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """The file's bytes, unpacked where they are gzip's, and their number where it is known beforehand."""
    if not path.is_file():
        packed = Path(f"{path}.gz")
        advice = f"{packed.name} is there" if packed.is_file() else ""
        raise DataError(path, "an IDX file", "a folder" if path.is_dir() else "no such file", advice)
    try:
        with path.open("rb") as file:
            if file.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] == GZIP_MAGIC:
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield cast(BinaryIO, unpacked), None
            else:
                yield file, os.fstat(file.fileno()).st_size
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(path, "a sound gzip file", f"a damaged one ({error})", "fetch it again") from error


def _read_header(path: Path, stream: BinaryIO, file_bytes: int | None) -> _Header:
    """Reads the header and holds it against the file's length, where that is known."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(path, "an IDX header of at least 4 bytes", f"a file of {len(magic)} bytes")
    first, second, code, rank = magic
    if first or second:
        raise DataError(path, "an IDX file, which begins 00 00", f"one that begins {magic.hex(' ')}")
    if code not in IDX_TYPES:
        known = ", ".join(f"{known:#04x}" for known in IDX_TYPES)
        raise DataError(path, f"an IDX type code, one of {known}", f"{code:#04x}")
    if rank > MOST_AXES:
        raise DataError(path, f"at most {MOST_AXES} axes", f"{rank} axes")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(path, f"{4 * rank} bytes for the sizes of {rank} axes", f"{len(sizes)} bytes")
    header = _Header(IDX_TYPES[code], struct.unpack(f">{rank}i", sizes))
    if any(size < 0 for size in header.shape):
        raise DataError(path, f"sizes from 0 to {LARGEST_SIZE}", f"the shape {list(header.shape)}")
    if header.dtype.itemsize * math.prod(max(size, 1) for size in header.shape) > sys.maxsize:
        raise DataError(path, "a shape that memory could hold", f"the shape {list(header.shape)}")
    if file_bytes is not None:
        _check_length(path, header, file_bytes - 4 - 4 * rank)
    return header


def _promised_bytes(header: _Header) -> int:
    return math.prod(header.shape) * header.dtype.itemsize


def _check_length(path: Path, header: _Header, found: int, at_least: str = "") -> None:
    promised = _promised_bytes(header)
    if found != promised:
        expected = f"{promised} bytes of {checks.describe(header)} after the header"
        raise DataError(path, expected, f"{at_least}{found} bytes", "the file is damaged: fetch it again")


def _peek_header(path: Path) -> _Header:
    with _opened(path) as (stream, file_bytes):
        return _read_header(path, stream, file_bytes)


def read_idx(path: FilePath) -> np.ndarray:
    """Reads an array from a file in IDX, the format of MNIST, packed by gzip or not.

    The file is 00 00, a byte for the type, a byte for the number of axes, the size of each axis, then the
    elements, all big-endian. Whether it is packed is seen from its first bytes, not from its name. What the
    header promises is held against what the file holds before memory is taken for it.

    Args:
        path: the file.

    Returns:
        A writable array in the machine's byte order: uint8, int8, int16, int32, float32 or float64.

    Raises:
        DataError: no such file; not IDX; an unknown type; a damaged header; fewer or more bytes than it
            promises; damaged packing.

    Source: LeCun, Cortes & Burges (1998), "The MNIST database of handwritten digits".
    """
    path = Path(path)
    with _opened(path) as (stream, file_bytes):
        header = _read_header(path, stream, file_bytes)
        content = bytearray()  # becomes the array's own memory
        # One byte more than promised: it shows that there is more, or has gzip reach its end and check sum.
        beyond = _promised_bytes(header) + 1
        while chunk := stream.read(min(CHUNK, beyond - len(content))):
            content += chunk
    _check_length(path, header, len(content), "at least " if len(content) == beyond else "")
    stored = np.frombuffer(content, header.dtype.newbyteorder(">")).reshape(header.shape)
    return stored.astype(header.dtype, copy=False)


def write_idx(path: FilePath, array: Any) -> None:
    """Writes an array to a file in IDX, packed by gzip where the name ends in `.gz`.

    Equal arrays make equal files: the packing holds neither the time nor the file's name.

    Args:
        path: the file; one that is there is replaced.
        array: uint8, int8, int16, int32, float32 or float64, in either byte order.

    Raises:
        TypeError: another dtype.
        ValueError: an axis of more than 2³¹ − 1.
    """
    path, array = Path(path), np.asarray(array)
    codes = {dtype: code for code, dtype in IDX_TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None:
        names = ", ".join(dtype.name for dtype in codes)
        raise TypeError(f"IDX holds {names}, got {checks.describe(array)}: convert with array.astype(…)")
    if any(size > LARGEST_SIZE for size in array.shape):
        raise ValueError(f"IDX holds axes of up to {LARGEST_SIZE}, got {checks.describe(array)}")
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    content = array.astype(array.dtype.newbyteorder(">"), copy=False).ravel().view(np.uint8)
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", GZIP_LEVEL, fileobj=file, mtime=0) as packed:
                packed.write(header)
                packed.write(content)
        else:
            file.write(header)
            file.write(content)


# ---------------------------------------------------------------- data sets


def mnist(folder: FilePath) -> tuple[LabelledImages, LabelledImages]:
    """The training and test parts of MNIST, or of a set in its format (Fashion-MNIST, KMNIST).

    Looks for `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, also with a dot before `idx`, each with or without `.gz`. Images may have any
    size and labels any value from 0 to 255: the set itself says how many classes it has.

    Args:
        folder: where the four files are.

    Returns:
        `(x, labels), (x_test, labels_test)`: x [60000, 28, 28, 1] float32 in 0..1 (0 is the background),
        labels [60000] int32; 10,000 of each in the test part. NumPy arrays.

    Raises:
        DataError: files that are missing (all are named) or damaged; images and labels that differ in number.
            All four headers are read before memory is taken for any image.

    Source: LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document recognition".

    >>> (x, labels), (x_test, labels_test) = mnist("data/mnist")  # doctest: +SKIP
    >>> x.shape, x_test.shape, labels[:5].tolist()  # doctest: +SKIP
    ((60000, 28, 28, 1), (10000, 28, 28, 1), [5, 0, 4, 1, 9])
    """
    folder = Path(folder)
    candidates = [[f"{stem}{dot}{idx}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")] for stem, idx in MNIST_FILES]
    found = [next((folder / name for name in names if (folder / name).is_file()), None) for names in candidates]
    missing = [" or ".join(names) for names, path in zip(candidates, found, strict=True) if path is None]
    if missing:
        actual = f"one without {', without '.join(missing)}" if folder.is_dir() else "no such folder"
        raise DataError(folder, "a folder with MNIST's four files", actual, "give the folder that holds them")
    train_images, train_labels, test_images, test_labels = cast(list[Path], found)
    _check_labelled_images(train_images, train_labels)
    _check_labelled_images(test_images, test_labels)
    train_size, test_size = _peek_header(train_images).shape[1:], _peek_header(test_images).shape[1:]
    if train_size != test_size:
        raise DataError(
            test_images, f"images of {train_size} like those of {train_images.name}", f"images of {test_size}"
        )
    return _labelled_images(train_images, train_labels), _labelled_images(test_images, test_labels)


def _check_labelled_images(images: Path, labels: Path) -> None:
    image_header, label_header = _peek_header(images), _peek_header(labels)
    for path, header, rank, axes in ((images, image_header, 3, "N, H, W"), (labels, label_header, 1, "N")):
        if header.dtype.name != "uint8" or len(header.shape) != rank:
            raise DataError(path, f"uint8[{axes}]", checks.describe(header))
    if image_header.shape[0] != label_header.shape[0]:
        raise DataError(
            labels,
            f"one label for each of the {image_header.shape[0]} images of {images}",
            f"{label_header.shape[0]} labels",
            "are both files from the same set?",
        )


def _labelled_images(images: Path, labels: Path) -> LabelledImages:
    x = np.divide(read_idx(images)[..., None], PIXEL_MAX, dtype=np.float32)
    return x, read_idx(labels).astype(np.int32)


def digits() -> LabelledImages:
    """The 1,797 handwritten digits that come with scikit-learn, 8×8 pixels of 17 grey levels.

    Returns:
        x [1797, 8, 8, 1] float32 in 0..1 (0 is the background) and labels [1797] int32. NumPy arrays.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI (test part).

    >>> x, labels = digits()  # doctest: +SKIP
    >>> x.shape, labels[:5].tolist()  # doctest: +SKIP
    ((1797, 8, 8, 1), [0, 1, 2, 3, 4])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("data.digits needs scikit-learn, which holds the images: pip install scikit-learn") from error
    bunch = load_digits()
    return bunch.images.astype(np.float32)[..., None] / DIGIT_MAX, bunch.target.astype(np.int32)


# ---------------------------------------------------------------- parts


def split(data: Tree, held_out: float | Sequence[float], *, key: Key | int, stratify: Any = None) -> tuple[Tree, ...]:
    """Splits examples at random into parts; every example is in exactly one.

    The first part is what is left when the held-out parts are taken. Each part is shuffled. The same key
    gives the same parts in every process and on every machine, and another key an independent split into
    parts of the same sizes, so that several can be stacked and trained at once. Arrays are copied, NumPy to
    NumPy, and a jax.Array stays on its device.

    With `stratify` each part holds each class in proportion, nₖ·size/N of it, to within one example (within
    P − 1 for P parts), and every example is still as likely as any other: the examples are laid in a row
    class by class, shuffled within each, and every (N/size)-th is taken from a random start (systematic
    sampling).

    Args:
        data: a pytree of arrays with N first in each, such as `(x, labels)`.
        held_out: a fraction of N (a float between 0 and 1, rounded to whole examples) or a number of examples
            (a whole number), or a sequence of them for several parts.
        key: `jax.random.key(seed)` or an integer seed.
        stratify: integer labels [N] whose proportions are kept.

    Returns:
        The parts, each a tree like data: the rest first, then one for each entry of held_out.

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
    for name, leaf in checks.named_leaves(data).items():
        if not isinstance(leaf, np.ndarray | jax.Array):
            where = f"data/{name}" if name else "data"
            raise TypeError(f"split expects arrays, got {type(leaf).__name__} at {where}: use np.asarray")
    N = checks.batch_size("data", data)
    sizes = _part_sizes(held_out, N)
    words = np.asarray(jax.random.key_data(checks.as_key(key))).ravel().tolist()
    # NumPy promises the raw bits of a generator for good, its shuffles only within a version.
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
        raise ValueError("held_out names no part: give a fraction such as 0.2, or a number of examples")
    sizes = []
    for share in shares:
        if isinstance(share, Integral):
            size = checks.whole_number("held_out", share, least=1)
        else:
            size = round(checks.number("held_out", share, above=0, below=1) * N)
        if not size:
            raise ValueError(f"held_out {share!r} of {N} examples is an empty part: hold out more")
        sizes.append(size)
    if sum(sizes) >= N:
        raise ValueError(f"held_out parts of {sizes} leave nothing of {N} examples for the first part")
    return sizes


def _class_labels(stratify: Any, N: int) -> np.ndarray:
    labels = np.asarray(stratify)
    if labels.shape != (N,):
        raise ValueError(
            f"stratify must be the labels of the {N} examples, of shape ({N},), got shape {labels.shape}"
            + ("; use labels.argmax(-1)" if labels.ndim == 2 else "")
        )
    if labels.dtype.kind not in "iub":
        raise TypeError(f"stratify must be integer labels, got {labels.dtype}: use labels.astype('int32')")
    return labels


# ---------------------------------------------------------------- values


class Standardisation(NamedTuple):
    """The mean and standard deviation of each feature of some data, for `standardise`; a pytree of arrays.

    Attributes:
        mean: shaped like one example.
        std: likewise; 0 where a feature was constant.
    """

    mean: Any
    std: Any


def standardisation(x: Any, axes: Sequence[int] = (0,)) -> Standardisation:
    """The mean and standard deviation of each feature: μ = Σₙ xₙ / N, σ = √(Σₙ (xₙ − μ)² / N).

    Taken from the training part alone and then applied to every part, nothing of the test part gets into
    training. Sums are in float64 and in two passes: Σx²/N − μ² would lose everything where μ ≫ σ.

    Args:
        x: [N, …], on the host or a jax.Array.
        axes: what is averaged over, the batch axis 0 among it: `(0,)` gives statistics of each feature (or
            pixel), `(0, 1, 2)` of each channel of images [N, H, W, C], `(0, 1, 2, 3)` of all together.

    Returns:
        NumPy arrays shaped like one example, of x's dtype, or float32 where x is whole numbers.

    Raises:
        ValueError: no examples; axes without 0; values that are not finite (how many, where the first is).
        TypeError: values that are not real numbers.

    >>> scale = standardisation(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> scale.mean.tolist(), scale.std.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    """
    x, axes = np.asarray(x), tuple(axes)
    if x.dtype.kind not in "biu" and not checks.is_floating(x):
        raise TypeError(f"standardisation expects real numbers, got x of {x.dtype}")
    if 0 not in axes or len(set(axes)) < len(axes) or not all(0 <= axis < x.ndim for axis in axes):
        raise ValueError(f"axes must hold 0 and further axes of x of shape {x.shape}, each once, got {axes}")
    if not x.size:
        raise ValueError(f"standardisation needs examples, got x of shape {x.shape}")
    finite = np.isfinite(x)
    if not finite.all():
        count = x.size - np.count_nonzero(finite)
        raise ValueError(f"x holds {count} values that are not finite, the first at {_first(~finite)}")
    count = math.prod(x.shape[axis] for axis in axes)
    low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    # A constant's mean is known exactly; a rounded one would leave σ ≈ 1e-17 and (x − μ)/σ = ±1 instead of 0.
    mean = np.where(low == high, low.astype(np.float64), _power_sum(x, 1, axes) / count)
    std = np.sqrt(_power_sum(x, 2, axes, mean) / count)
    dtype = x.dtype if checks.is_floating(x) else np.dtype(np.float32)
    smallest = float(jax.numpy.finfo(dtype).tiny)  # XLA may flush what is below to 0, and then divide by it
    std = np.where(std < smallest, 0.0, std)
    shape = x.shape[1:]
    return Standardisation(*(np.broadcast_to(moment[0], shape).astype(dtype) for moment in (mean, std)))


def _power_sum(x: np.ndarray, power: int, axes: Shape, centre: Any = 0.0) -> np.ndarray:
    """Σ (x − centre)^power over axes in float64, without a float64 copy of the whole."""
    blocks = (x[start : start + BLOCK].astype(np.float64) - centre for start in range(0, len(x), BLOCK))
    return np.asarray(sum((block**power).sum(axes, keepdims=True) for block in blocks))


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(wrong.argmax(), wrong.shape))


def standardise(scale: Standardisation, x: Any) -> Any:
    """Standardises: z = (x − μ) / σ, mean 0 and standard deviation 1 over the data that μ and σ come from.

    A feature that was constant there (σ = 0) is only centred: 0 where it still has that value. Pure; works
    under `jit` as well.

    Args:
        scale: from `standardisation` of the training part.
        x: [N, …] of the same features.

    Returns:
        An array like x: NumPy for NumPy, of x's dtype where that is a float, else of μ's.

    Raises:
        ValueError: x has other features than scale.

    >>> x_train, x_test = np.array([[1.0], [3.0]]), np.array([[7.0]])
    >>> scale = standardisation(x_train)
    >>> standardise(scale, x_train).tolist(), standardise(scale, x_test).tolist()
    ([[-1.0], [1.0]], [[5.0]])
    """
    x, mean, sigma = _aligned("standardise", scale, x)
    return (x - mean) / sigma


def unstandardise(scale: Standardisation, z: Any) -> Any:
    """The inverse of `standardise`, x = z·σ + μ: predictions back in the target's own units.

    Raises:
        ValueError: z has other features than scale; so do predictions [N, 1] of targets [N].

    >>> scale = standardisation(np.array([10.0, 30.0]))
    >>> unstandardise(scale, np.array([-1.0, 0.0, 2.0])).tolist()
    [10.0, 20.0, 40.0]
    """
    z, mean, sigma = _aligned("unstandardise", scale, z)
    return z * sigma + mean


def _aligned(what: str, scale: Standardisation, x: Any) -> tuple[Any, Any, Any]:
    """Returns x, μ, and σ with 1 for 0, in one dtype, if they are of the same features."""
    x = x if isinstance(x, np.ndarray | jax.Array) else np.asarray(x)
    if not x.ndim or x.shape[1:] != scale.mean.shape:
        expected = f"[{', '.join(['N', *map(str, scale.mean.shape)])}]"
        raise ValueError(f"{what} expects {expected} like what scale was taken from, got shape {x.shape}")
    dtype = x.dtype if checks.is_floating(x) else scale.mean.dtype
    sigma = scale.std + (scale.std == 0).astype(scale.std.dtype)
    return x.astype(dtype), scale.mean.astype(dtype), sigma.astype(dtype)


def one_hot(labels: Any, classes: int, dtype: DType = np.float32) -> np.ndarray:
    """Labels as distributions over K classes: tₙₖ = 1 where labelsₙ = k, else 0.

    For labels on the host, which are looked at; inside `jit` there is `jax.nn.one_hot`.

    Args:
        labels: whole numbers from 0 to K − 1, [N] or of any shape.
        classes: K.
        dtype: of the result.

    Returns:
        A NumPy array [N, K]: the shape of labels, and K.

    Raises:
        TypeError: labels that are not whole numbers.
        ValueError: labels outside 0 … K − 1 (how many, where the first is).

    >>> one_hot([2, 0], 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    labels, classes = np.asarray(labels), checks.whole_number("classes", classes, least=1)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"one_hot expects integer labels, got {checks.describe(labels)}")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        where = _first(wrong)
        advice = "; they seem to count from 1: give labels - 1" if labels.min() == 1 else ""
        raise ValueError(
            f"one_hot expects labels from 0 to {classes - 1}, got {np.count_nonzero(wrong)} others, "
            f"the first {labels[where]} at {where}{advice}"
        )
    return (labels[..., None] == np.arange(classes)).astype(dtype)
