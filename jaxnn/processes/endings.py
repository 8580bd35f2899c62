"""How processes end: which of them failed first, and the message about it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from typing import NamedTuple

GO_ON = "the same command goes on from the last checkpoint, if the script saves any: fit(…, checkpoint=folder)"
# What a process says that lost another one, rather than failed by itself
LOST = re.compile(
    r"gloo|coordination (service|agent)|distributed service|heartbeat|connection (reset|closed|refused)|socket closed"
    r"|DEADLINE_EXCEEDED|UNAVAILABLE|preempted|broken pipe|barrier",
    re.IGNORECASE,
)


class Ending(NamedTuple):
    """The end of a process.

    Attributes:
        process: its number.
        status: the exit status; −s for a signal s.
        last: the last line of its traceback, or "".
        time: seconds of `time.monotonic`.
    """

    process: int
    status: int
    last: str
    time: float

    @property
    def code(self) -> int:
        """The exit status as a shell shows it."""
        return 128 - self.status if self.status < 0 else self.status

    @property
    def rank(self) -> tuple[int, float]:
        """Smaller for what is more likely the first cause; the runtime ends those that lost a process by SIGABRT."""
        by_itself = self.status < 0 and self.status != -signal.SIGABRT
        lost = self.status == -signal.SIGABRT or (self.status > 0 and bool(LOST.search(self.last)))
        return (0 if by_itself else 2 if lost else 1), self.time

    def how(self) -> str:
        """How it ended, in words."""
        if self.status < 0:
            return f"was killed by {signal_name(-self.status)}"
        return f"failed with exit status {self.status}" + (f": {self.last}" if self.last else "")


def signal_name(number: int) -> str:
    """`SIGKILL (signal 9)`."""
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def first_cause(endings: Iterable[Ending]) -> Ending:
    """The failure from which the others follow."""
    return min(endings, key=lambda ending: ending.rank)


def word(cause: Ending, n: int, began: float, over: Sequence[int] = (), running: Sequence[int] = ()) -> str:
    """The message about a failure.

    Args:
        cause: the process that failed first.
        n: the number of processes.
        began: the time at which they were started.
        over: the processes that had reached the end of the script before.
        running: those that are ended now.
    """
    after = f"process {cause.process} of {n} {cause.how()}"
    parts = [f"{after} ({cause.time - began:.1f} s after the start)"]
    if over:
        parts.append(f"{processes(over)} had reached the end of the script before")
    if running:
        parts.append(f"{processes(running)} {'was' if len(running) == 1 else 'were'} ended")
    return (
        f"{'; '.join(parts)}. After the cause is removed {GO_ON}"
        if cause.status > 0
        else (f"{'; '.join(parts)}. Now {GO_ON}")
    )


def waiting(over: Sequence[int], running: Sequence[int], seconds: float, patience: float | None) -> str:
    """The message about processes that have ended while others run on; with `patience`, that these are ended."""
    text = f"{processes(over)} reached the end of the script {seconds:.0f} s ago, and {processes(running)} did not"
    if patience is None:
        return (
            f"{text}: ended. A process that waits in a collective for one that has left waits forever: let all take "
            "the same steps, or give --patience more seconds if one has more work to finish"
        )
    return f"{text} yet; after {patience:.0f} s (--patience) all are ended"


def processes(numbers: Sequence[int]) -> str:
    """`process 1`, `processes 0, 2`."""
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}"
