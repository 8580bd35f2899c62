"""The bytes of a checkpoint: arrays in the layout of safetensors, with digests that every bit of the file enters.

    8 bytes            n, the length of the header, little-endian
    n bytes            the header, JSON: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}, …},
                       padded by spaces to a multiple of 8
    the rest           the arrays, little-endian, rows first, one behind the other without a hole

The metadata hold the SHA-256 of each array. Their first entry is the SHA-256 of the 8 + n bytes of length and header,
computed with 64 zeros in its own place. Arrays fill the rest without a hole, so that the two kinds of digests cover the
whole file and each byte is hashed once.

Sizes are compared with the size of the file before memory is taken, and nothing is unpickled or evaluated.

Source: the format of safetensors, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxnn.types import DType, Shape

Path: TypeAlias = str | os.PathLike[str]

MOST_HEADER = 100_000_000  # bytes, the limit of safetensors
CHUNK = 1 << 24  # bytes that are hashed at a time
PREFIX = b'{"__metadata__":{"sha256":"'  # of every header; the digest follows
BLANK = b"0" * 64
METADATA = "__metadata__"
DTYPES = MappingProxyType(
    {
        "BOOL": jnp.dtype("bool"),
        **{f"U{8 * size}": jnp.dtype(f"u{size}") for size in (1, 2, 4, 8)},
        **{f"I{8 * size}": jnp.dtype(f"i{size}") for size in (1, 2, 4, 8)},
        **{f"F{8 * size}": jnp.dtype(f"f{size}") for size in (2, 4, 8)},
        "BF16": jnp.dtype(jnp.bfloat16),
        "F8_E4M3": jnp.dtype(jnp.float8_e4m3fn),
        "F8_E5M2": jnp.dtype(jnp.float8_e5m2),
        "F8_E8M0": jnp.dtype(jnp.float8_e8m0fnu),
        "F8_E4M3FNUZ": jnp.dtype(jnp.float8_e4m3fnuz),
        "F8_E5M2FNUZ": jnp.dtype(jnp.float8_e5m2fnuz),
        "C64": jnp.dtype("complex64"),
    }
)
NAMES = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})


class Damaged(ValueError):  # noqa: N818
    """A file that is not what was saved: cut off, changed, or written by another program."""


class Entry(NamedTuple):
    """An array in the file: bytes `start` to `stop`, counted from the end of the header."""

    dtype: DType
    shape: Shape
    start: int
    stop: int


class Header(NamedTuple):
    """The header of a file: metadata, the arrays by name in the order of their bytes, and where the first begins."""

    metadata: dict[str, str]
    arrays: dict[str, Entry]
    digests: dict[str, str]
    begins: int


# ---------------------------------------------------------------- writing


def encoded(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list[memoryview]:
    """The bytes of a file with these arrays, in pieces; the dtype of each is one of DTYPES.

    Arrays are ordered by the size of their elements, the largest first, so that each begins at a multiple of it.
    """
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    pieces = [memoryview(host.reshape(-1).view(np.uint8)) for _, host in ordered]
    entries, digests, start = {}, {}, 0
    for (name, host), piece in zip(ordered, pieces, strict=True):
        stop = start + len(piece)
        entries[name] = {"dtype": NAMES[host.dtype], "shape": host.shape, "data_offsets": (start, stop)}
        digests[name], start = hashlib.sha256(piece).hexdigest(), stop
    held = {"sha256": BLANK.decode(), **metadata, "digests": json.dumps(digests)}
    text = json.dumps({METADATA: held, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(
            f"the header would take {len(text):,} bytes, and readers of safetensors take at most {MOST_HEADER:,}: "
            "save fewer arrays, or a shorter history and note"
        )
    head = len(text).to_bytes(8, "little") + text
    at = 8 + len(PREFIX)
    digest = hashlib.sha256(head).hexdigest().encode()
    return [memoryview(head[:at] + digest + head[at + len(BLANK) :]), *pieces]


# ---------------------------------------------------------------- reading


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, Header]]:
    """The file, open, and its header. Errors about its content begin with its path.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it is a folder.
        Damaged: if the header is not as it was written, or the file is shorter or longer than it says.
    """
    name = os.fspath(path)
    try:
        kind = os.stat(name).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: there is no such file") from None
    if not stat.S_ISREG(kind):
        advice = "a folder; its newest checkpoint is checkpoint.latest(folder)" if stat.S_ISDIR(kind) else "not a file"
        raise ValueError(f"{name} is {advice}")
    with open(name, "rb") as file:
        try:
            yield file, header_of(file, os.fstat(file.fileno()).st_size)
        except Damaged as error:
            raise Damaged(f"{name} is damaged: {error}") from error.__cause__
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def header_of(file: BinaryIO, size: int) -> Header:
    """The header at the beginning of a file of this size, in bytes; its digest and all sizes are checked."""
    begin = file.read(8)
    length = int.from_bytes(begin, "little")
    if len(begin) < 8 or length > size - 8:
        said = f", and its header alone would take {length:,}" if len(begin) == 8 else ""
        raise Damaged(f"truncated at {size:,} bytes{said}")
    if length > MOST_HEADER:
        raise Damaged(f"the header would take {length:,} bytes, more than {MOST_HEADER:,}")
    text = file.read(length)
    at = len(PREFIX)
    if len(text) < length or text[:at] != PREFIX:
        raise Damaged("it does not begin as a checkpoint of jaxnn does; another program may have written it")
    blanked = begin + text[:at] + BLANK + text[at + len(BLANK) :]
    if hashlib.sha256(blanked).hexdigest().encode() != text[at : at + len(BLANK)]:
        raise Damaged("the digest of the header differs")
    metadata, arrays = _parsed(text)
    stop = max((entry.stop for entry in arrays.values()), default=0)
    held = size - 8 - length
    if held < stop:
        raise Damaged(f"truncated at {size:,} of {8 + length + stop:,} bytes")
    if held > stop:
        raise Damaged(f"{held - stop:,} bytes follow the last array")
    digests = json_of("digests", metadata.get("digests", ""))
    if not isinstance(digests, dict) or digests.keys() != arrays.keys():
        raise Damaged("the digests are not those of its arrays")
    return Header(metadata, arrays, digests, 8 + length)


def _parsed(text: bytes) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and the arrays, in the order of their bytes."""
    header = json_of("header", text)
    metadata = header.pop(METADATA)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Damaged("the metadata are not strings by name")
    arrays = sorted(
        ((name, _entry(name, value)) for name, value in header.items()), key=lambda item: item[1][2:]
    )  # by their bytes
    expected = 0
    for name, entry in arrays:
        if entry.start != expected:
            raise Damaged(f"array '{name}' begins at {entry.start:,} where {expected:,} was expected")
        expected = entry.stop
    return metadata, dict(arrays)


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise Damaged(f"array '{name}' needs dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    shape, offsets = value["shape"], value["data_offsets"]
    if dtype is None:
        raise Damaged(f"array '{name}' has the unknown dtype {value['dtype']!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise Damaged(f"array '{name}' has a shape or offsets that are not whole numbers")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise Damaged(f"array '{name}' of {dtype}{shape} does not fill its bytes, {offsets}")
    return Entry(dtype, tuple(shape), *offsets)


def json_of(what: str, text: str | bytes) -> Any:
    """The value of a JSON text; Damaged if it is none, or has a name twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"the {what} cannot be read: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(held := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return held


def array_of(file: BinaryIO, header: Header, name: str) -> np.ndarray:
    """An array of the file, compared with its digest."""
    entry = header.arrays[name]
    host = np.empty(entry.stop - entry.start, np.uint8)
    file.seek(header.begins + entry.start)
    held = file.readinto(memoryview(host)) if host.size else 0  # type: ignore[attr-defined]
    if held < host.size:
        raise Damaged(f"truncated within array '{name}'")
    if hashlib.sha256(memoryview(host)).hexdigest() != header.digests[name]:
        raise Damaged(f"the digest of array '{name}' differs")
    if entry.dtype == np.bool_ and (host > 1).any():
        raise Damaged(f"array '{name}' has bytes that are neither True nor False")
    try:
        return host.view(entry.dtype).reshape(entry.shape)
    except ValueError as error:  # no numbers, and an axis that NumPy refuses
        raise Damaged(f"array '{name}' of shape {entry.shape}: {error}") from None


def verify(file: BinaryIO, size: int) -> Header:
    """The header of a whole file of this size, all of whose arrays have been compared with their digests."""
    header = header_of(file, size)
    verify_arrays(file, header)
    return header


def verify_arrays(file: BinaryIO, header: Header) -> None:
    """Raises Damaged with the name of the first array whose digest differs; little of it is in memory at a time."""
    for name, entry in header.arrays.items():
        file.seek(header.begins + entry.start)
        found, left = hashlib.sha256(), entry.stop - entry.start
        while left:
            chunk = file.read(min(left, CHUNK))
            if not chunk:
                raise Damaged(f"truncated within array '{name}'")
            found.update(chunk)
            left -= len(chunk)
        if found.hexdigest() != header.digests[name]:
            raise Damaged(f"the digest of array '{name}' differs")
