"""A folder of checkpoints: which of them are kept, and which is the newest that is whole."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import KW_ONLY
from typing import Any, NamedTuple

from jaxnn.checkpoint.layout import Path, opened, verify_arrays
from jaxnn.checkpoint.packing import values_of
from jaxnn.checks import seen, whole_number
from jaxnn.records import Record
from jaxnn.showing import shown

SUFFIX = ".safetensors"
NAME = re.compile(rf"step_(\d+){re.escape(SUFFIX)}")


class Keep(Record):
    """A folder of checkpoints `step_0000000120.safetensors`, …: how often one is saved, and how many are kept.

    A checkpoint that is written by `save(keep, …)` has the name of its step; then the oldest are removed. Those of a
    later step than it are not touched.

    Args:
        folder: is made if it does not exist.
        every: steps between two checkpoints; None saves once an epoch. It is for whoever saves while training.
        last: how many are kept, the newest; None keeps all.

    Raises:
        TypeError, ValueError: for a folder that is no path, or numbers below 1.

    >>> Keep("runs/digits", last=2).path(120)
    'runs/digits/step_0000000120.safetensors'
    """

    folder: Any
    _: KW_ONLY
    every: int | None = None
    last: int | None = 3

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)) or not os.fspath(self.folder):
            raise TypeError(f"Keep: folder must be the path of a folder, got {seen(self.folder)}")
        folder = os.fspath(self.folder)
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ValueError(f"Keep: {folder} is a file: give the path of a folder")
        self._set(folder=folder)
        for name in ("every", "last"):
            if (value := getattr(self, name)) is not None:
                self._set(**{name: whole_number(f"Keep: {name}", value, least=1)})

    def path(self, step: int) -> str:
        """The path of the checkpoint after this number of steps."""
        return os.path.join(self.folder, f"step_{whole_number('Keep: step', step, least=0):010d}{SUFFIX}")

    def remove_older(self, step: int) -> None:
        """Removes all but the `last` checkpoints up to this step."""
        steps = {int(found[1]): name for name in os.listdir(self.folder) if (found := NAME.fullmatch(name))}
        until = sorted(other for other in steps if other <= step)
        for old in until[: -self.last] if self.last is not None else []:
            with suppress(FileNotFoundError):  # another process was faster
                os.unlink(os.path.join(self.folder, steps[old]))


def _latest_line(found: Any) -> str:
    where = "no whole checkpoint" if found.path is None else found.path
    over = "".join(f"\n  passed over {path}: {why}" for path, why in found.passed_over.items())
    return f"{where}{over}"


@shown()
class Latest(NamedTuple):
    """The newest checkpoint of a folder; a path, for `load(latest(folder))`.

    Attributes:
        path: of the file; None if there is no whole one.
        passed_over: why newer files are none, by path.
    """

    path: str | None
    passed_over: dict[str, str]

    def __fspath__(self) -> str:
        if self.path is None:
            raise FileNotFoundError(f"there is {_latest_line(self)}")
        return self.path

    def __str__(self) -> str:
        return _latest_line(self)


def latest(folder: Path | Keep) -> Latest:
    """The newest checkpoint of a folder that is whole, down to the last bit; by its step, not by its time.

    A damaged file is passed over, as is one of another program; the result says which and why. Without any, and where
    the folder does not exist, `path` is None.

    Raises:
        NotADirectoryError: if it is a file.

    >>> latest("no/such/folder").path is None
    True
    """
    name = os.fspath(folder.folder if isinstance(folder, Keep) else folder)
    try:
        files = [os.path.join(name, file) for file in os.listdir(name) if file.endswith(SUFFIX)]
    except FileNotFoundError:
        files = []
    except NotADirectoryError:
        raise NotADirectoryError(f"{name} is a file; give it to checkpoint.load itself") from None
    passed_over: dict[str, str] = {}
    for path in sorted(files, key=_age, reverse=True):
        try:
            with opened(path) as (file, header):
                values_of(header)
                verify_arrays(file, header)
            return Latest(path, passed_over)
        except (OSError, ValueError) as error:
            passed_over[path] = str(error).removeprefix(f"{path} is ").removeprefix(f"{path}: ")
    return Latest(None, passed_over)


def _age(path: str) -> tuple[float, str]:
    """The step of a file, by its header or else by its name; unknown ones are looked at first."""
    named = NAME.fullmatch(os.path.basename(path))
    step: Any = int(named[1]) if named else float("inf")
    with suppress(OSError, ValueError), opened(path) as (_, header):
        said = values_of(header).get("step")
        step = said if isinstance(said, int) else int(named[1]) if named else -1
    return step, path
