"""Files that are replaced as a whole or not at all.

A file is written beside its place under another name, forced to the disk, read back, and only then put in its place,
by one renaming. Whatever happens before that, an error, Ctrl-C, a killed process, a power cut, the old file is as it
was. A temporary file is locked as long as its writer lives, in whatever process; one without a lock was left over by a
killed process, and is removed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress

from jaxnn.checkpoint.layout import Path

try:
    import fcntl
except ImportError:  # Windows, which does not remove a file that is open
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\.jaxnn-\d+-[0-9a-f]{16}\.tmp")
AT_A_TIME = 1 << 26  # bytes; a system call may take fewer than it is given
NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}  # of file systems that do not force folders to disk


def replace(path: Path, pieces: Iterable[bytes | memoryview], check: Callable[[str], object]) -> None:
    """Writes the pieces to a file, durably, in the place of an older one.

    Args:
        path: of the file. Its folder exists.
        pieces: its bytes.
        check: a function of the temporary file's path; an error of it keeps the old file.

    Raises:
        OSError: if the disk is full, the folder is missing or cannot be written, …; the old file is as it was.
    """
    target = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{target} is a folder: give the path of a file, or checkpoint.Keep(folder)")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{target}: the folder does not exist: make it first, os.makedirs({folder!r})")
    remove_left_over(folder)
    temporary = os.path.join(folder, f".jaxnn-{os.getpid()}-{os.urandom(8).hex()}.tmp")
    try:
        _written(temporary, pieces, check, target)
        sync_folder(folder)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileExistsError):
            raise OSError(error.errno, f"{os.strerror(error.errno)}: the file was not saved", target) from error
        raise


def _written(temporary: str, pieces: Iterable[bytes | memoryview], check: Callable[[str], object], target: str) -> None:
    """Writes the temporary file and puts it in its place, under a lock all the time."""
    file = _created(temporary)
    try:
        for piece in pieces:
            _write(file, piece)
        os.fsync(file)
        check(temporary)
        if fcntl is not None:
            os.replace(temporary, target)
    finally:
        os.close(file)
    if fcntl is None:
        os.replace(temporary, target)


def _created(temporary: str) -> int:
    """The open file, locked."""
    while True:
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        _lock(file, wait=True)
        if os.path.exists(temporary):
            return file
        os.close(file)  # another process removed it as left over, before it was locked


def _write(file: int, piece: bytes | memoryview) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(file, rest[:AT_A_TIME]) :]


def sync_folder(folder: str) -> None:
    """Forces the names in a folder to the disk, on systems that can."""
    if os.name == "nt":
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(file)


def remove_left_over(folder: str) -> None:
    """Removes the temporary files of processes that no longer live."""
    for name in os.listdir(folder):
        if TEMPORARY.fullmatch(name):
            with suppress(OSError):
                _remove_unlocked(os.path.join(folder, name))


def _remove_unlocked(path: str) -> None:
    """Removes a file, unless it is locked: then OSError."""
    if fcntl is None:
        os.unlink(path)
        return
    file = os.open(path, os.O_RDWR)
    try:
        _lock(file, wait=False)
        os.unlink(path)
    finally:
        os.close(file)


def _lock(file: int, *, wait: bool) -> None:
    """Locks an open file; it is unlocked when it is closed or its process ends.

    Some file systems have no locks. A writer goes on without one; nothing is then removed there.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if not wait:
            raise
