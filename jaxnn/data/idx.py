"""IDX, the file format of MNIST: writing, and reading without memory allocated for what a damaged header claims."""

from __future__ import annotations

import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

from jaxnn import checks
from jaxnn.trees import describe
from jaxnn.types import Shape

FilePath: TypeAlias = str | os.PathLike[str]

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
GZIP_LEVEL = 6  # zlib's default compromise of time and size; 9 takes fourteen times as long for MNIST
MOST_PACKED = 1032  # bytes that one byte of DEFLATE can encode: a match of 258 in two bits
CHUNK = 1 << 18  # bytes unpacked at a time: memory grows with the content of the file, not with the size in its header


class DataError(ValueError):
    """A data file that is missing, damaged, or not of the expected kind.

    Attributes:
        path: the file or folder.
        expected: the expected content.
        actual: the actual content.
        advice: a remedy; may be empty.
    """

    def __init__(self, path: FilePath, expected: str, actual: str, advice: str = "") -> None:
        super().__init__(path, expected, actual, advice)  # all of them, so that the error can be pickled
        self.path, self.expected, self.actual, self.advice = Path(path), expected, actual, advice

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.path}: expected {self.expected}, got {self.actual}{advice}"


class Header(NamedTuple):
    """The header of an IDX file."""

    dtype: np.dtype
    shape: Shape


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, range]]:
    """The file's bytes, unpacked if they are gzip's, and the possible numbers of bytes."""
    if not path.is_file():
        packed = Path(f"{path}.gz")
        advice = f"but {packed.name} exists" if packed.is_file() else ""
        raise DataError(path, "an IDX file", "a folder" if path.is_dir() else "no such file", advice)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] == GZIP_MAGIC:
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield cast(BinaryIO, unpacked), range(MOST_PACKED * size + 1)
            else:
                yield file, range(size, size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(path, "an intact gzip file", f"a damaged one ({error})", "download it again") from error


def _read_header(path: Path, stream: BinaryIO, lengths: range) -> Header:
    """Reads the header and compares it with the lengths that the file can have."""
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
    header = Header(IDX_TYPES[code], struct.unpack(f">{rank}i", sizes))
    if any(size < 0 for size in header.shape):
        raise DataError(path, f"sizes from 0 to {LARGEST_SIZE}", f"the shape {list(header.shape)}")
    if header.dtype.itemsize * math.prod(max(size, 1) for size in header.shape) > sys.maxsize:
        raise DataError(path, "a shape that memory could hold", f"the shape {list(header.shape)}")
    before = 4 + 4 * rank
    if len(lengths) == 1:
        _check_length(path, header, lengths[0] - before)
    elif _promised_bytes(header) + before not in lengths:
        _check_length(path, header, max(lengths[-1] - before, 0), "packed, at most ")
    return header


def _promised_bytes(header: Header) -> int:
    return math.prod(header.shape) * header.dtype.itemsize


def _check_length(path: Path, header: Header, found: int, about: str = "") -> None:
    promised = _promised_bytes(header)
    if found != promised:
        expected = f"{promised} bytes of {describe(header)} after the header"
        raise DataError(path, expected, f"{about}{found} bytes", "the file is damaged: download it again")


def peek_header(path: Path) -> Header:
    """The header of the file; nothing else is read."""
    with _opened(path) as (stream, lengths):
        return _read_header(path, stream, lengths)


def read_idx(path: FilePath) -> np.ndarray:
    """Reads an array from a file in IDX, the format of MNIST, packed by gzip or not.

    The file is 00 00, a byte for the type, a byte for the number of axes, the size of each axis, then the
    elements, all big-endian. Packing is detected from the first bytes, not from the name. The size in the header
    is compared with that of the file before memory is allocated.

    Args:
        path: the file.

    Returns:
        A writable array in the machine's byte order: uint8, int8, int16, int32, float32 or float64.

    Raises:
        DataError: no such file; not IDX; an unknown type; a damaged header; fewer or more bytes than the header
            states; a damaged gzip file.

    Source: LeCun, Cortes & Burges (1998), "The MNIST database of handwritten digits".
    """
    path = Path(path)
    with _opened(path) as (stream, lengths):
        header = _read_header(path, stream, lengths)
        content = bytearray()  # becomes the array's own memory
        # One byte more than expected: it reveals excess data, or makes gzip reach its end and verify its checksum.
        beyond = _promised_bytes(header) + 1
        while chunk := stream.read(min(CHUNK, beyond - len(content))):
            content += chunk
    _check_length(path, header, len(content), "at least " if len(content) == beyond else "")
    stored = np.frombuffer(content, header.dtype.newbyteorder(">")).reshape(header.shape)
    return stored.astype(header.dtype, copy=False)


def write_idx(path: FilePath, array: ArrayLike) -> None:
    """Writes an array to a file in IDX, packed by gzip if the name ends in `.gz`.

    Equal arrays give equal files: the gzip header contains neither the time nor the file's name.

    Args:
        path: the file; an existing one is replaced.
        array: uint8, int8, int16, int32, float32 or float64, in either byte order.

    Raises:
        TypeError: another dtype.
        ValueError: an axis of more than 2³¹ − 1.
    """
    checks.plain_data("write_idx: array", array, numbers=False)
    path, array = Path(path), np.asarray(array)
    codes = {dtype: code for code, dtype in IDX_TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None:
        names = ", ".join(dtype.name for dtype in codes)
        raise TypeError(f"IDX holds {names}, got {describe(array)}: convert with array.astype(…)")
    if any(size > LARGEST_SIZE for size in array.shape):
        raise ValueError(f"IDX holds axes of up to {LARGEST_SIZE}, got {describe(array)}")
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
