"""A folder of checkpoints that several processes share: the first writes there, and all continue from one file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress

from jaxnn.checkpoint.folders import Keep, Latest, latest
from jaxnn.spmd.processes import Group, agreeing, texts

PATIENCE = 5.0  # seconds in which a file of one machine is seen by the others
ADVICE = "checkpoint= must be a folder that all processes share, such as one of a network file system"


def check_shared(group: Group | None, folder: str) -> None:
    """Raises ValueError in all processes unless they see the same folder; together."""
    if group is None:
        return
    name = os.path.join(folder, f".jaxnn-shared-{os.getpid()}-{os.urandom(4).hex()}")
    with agreeing(group):
        if group.is_first:
            with open(name, "w"):
                pass
    name = texts(group, name)[0]
    try:
        with agreeing(group):
            if not _within_patience(lambda: os.path.exists(os.path.join(folder, os.path.basename(name)))):
                raise ValueError(
                    f"fit: the folder {folder} is not the one in which process {group.numbers[0]} writes: {ADVICE}"
                )
    finally:
        if group.is_first:
            with suppress(OSError):
                os.unlink(name)


def newest_of(group: Group | None, keep: Keep) -> Latest:
    """The newest whole checkpoint, as the first process finds it; together.

    Raises ValueError in all processes if one of them does not see it.
    """
    if group is None:
        return latest(keep)
    with agreeing(group):
        found = latest(keep) if group.is_first else Latest(None, {})
    path, passed_over = json.loads(texts(group, json.dumps([found.path, found.passed_over]))[0])
    with agreeing(group):
        if path is not None and not _within_patience(lambda: os.path.exists(path)):
            raise ValueError(f"fit: {path}, the newest checkpoint, does not exist here: {ADVICE}")
    return Latest(path, passed_over)


def _within_patience(holds: Callable[[], bool]) -> bool:
    """Whether a condition comes true within some seconds: file systems of networks take a while."""
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
