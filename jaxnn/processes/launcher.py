"""Several processes on one machine: started, watched, and ended together.

Each process has a separate process group, whose members are killed with it, and a socket. Threads wait for the ends of
the processes and for what these say, and put both in one queue, which the launcher reads in order.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from jaxnn.processes.endings import Ending, first_cause, waiting, word

CHILD = str(Path(__file__).with_name("child.py"))
SETTLING = 0.5  # seconds after a first failure in which others that follow from it, or preceded it, are noticed
POLITE = 1.0  # seconds between SIGTERM and SIGKILL: JAX's preemption service catches the first
INTERRUPTION = 5.0  # seconds that scripts have to end after Ctrl-C
NOTICE = 10.0  # seconds after which a process that has ended without the others is mentioned
DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")
INTERRUPTED = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


class Event(NamedTuple):
    """What a process said, or that it is over: `kind` is "joined", "ended", "failed", "over" or "signal"."""

    process: int
    kind: str
    time: float
    status: int = 0
    last: str = ""


class Process:
    """A running process, and the threads that listen to it."""

    def __init__(self, number: int, settings: dict[str, Any], events: queue.Queue[Event], show: Show) -> None:
        self.number, self.over = number, False
        here, there = socket.socketpair()
        self.channel = here  # its end closes with the launcher, which the process notices
        piped = number > 0
        command = [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
        with there:
            self.popen = subprocess.Popen(
                [*command, CHILD, json.dumps(settings | {"process": number}), str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=None if not piped else subprocess.PIPE if show.all_output else subprocess.DEVNULL,
                stderr=subprocess.PIPE if piped else None,
                pass_fds=(there.fileno(),),
                process_group=0,
                env=_environment(piped),
            )
        pumps = [(self.popen.stdout, sys.stdout), (self.popen.stderr, sys.stderr)]
        self.threads = [_started(show.pump, number, pipe, to) for pipe, to in pumps if pipe is not None]
        self.threads.append(_started(self._listen, events))
        _started(self._wait, events)

    def _listen(self, events: queue.Queue[Event]) -> None:
        with self.channel.makefile("r") as lines, suppress(OSError, ValueError):
            for line in lines:
                said = json.loads(line)
                events.put(Event(self.number, said["event"], said["time"], said.get("status", 0), said.get("last", "")))

    def _wait(self, events: queue.Queue[Event]) -> None:
        status, now = self.popen.wait(), time.monotonic()
        self.signal(signal.SIGKILL)  # whom it left behind in its group
        for thread in self.threads:  # what it said last comes first
            thread.join(1.0)
        events.put(Event(self.number, "over", now, status))

    def signal(self, number: int) -> None:
        """Sends a signal to the process and those that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, number)


class Show:
    """Lines of processes 1, 2, … behind their number, one at a time; held back from a failure until its cause is known.

    What follows from a failure is long, and would hide it.
    """

    def __init__(self, all_output: bool) -> None:
        self.all_output, self.lock = all_output, threading.RLock()
        self.held: list[tuple[int, str, IO[str]]] | None = None  # lines, once a process has failed
        self.only: int | None = None  # the process whose lines are shown after that

    def pump(self, number: int, pipe: IO[bytes], to: IO[str]) -> None:
        """Copies lines until the pipe ends."""
        with pipe:
            for line in pipe:
                with self.lock:
                    entry = number, f"[{number}] {line.decode(errors='replace').rstrip()}", to
                    self.held.append(entry) if self.held is not None and self.only is None else self._print(*entry)

    def _print(self, number: int, line: str, to: IO[str]) -> None:
        if self.only in (None, number):
            to.write(line + "\n")  # at once, also where it has no buffer: process 0 writes there too
            to.flush()

    def hold(self) -> None:
        """Holds lines back."""
        with self.lock:
            self.held = []

    def show_only(self, number: int) -> None:
        """Shows, of lines that were held back and of further ones, those of one process."""
        with self.lock:
            self.only = number
            for entry in self.held or ():
                self._print(*entry)
            self.held = []

    def say(self, text: str) -> None:
        """A word of the launcher itself."""
        with self.lock:
            print(f"jaxnn.processes: {text}", file=sys.stderr, flush=True)


def _environment(piped: bool) -> dict[str, str]:
    """The launcher's, without another number of devices."""
    flags = DEVICES.sub("", os.environ.get("XLA_FLAGS", "")).strip()
    return os.environ | {"XLA_FLAGS": flags} | ({"PYTHONUNBUFFERED": "1"} if piped else {})


def _started(function: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def launched(settings: dict[str, Any], show: Show) -> int:
    """Starts the processes, waits until all have ended, and returns the exit status."""
    events: queue.Queue[Event] = queue.Queue()
    began = time.monotonic()
    before = {number: signal.signal(number, lambda n, _: events.put(_of_signal(n))) for number in INTERRUPTED}
    all_processes: list[Process] = []
    try:
        for number in range(settings["processes"]):
            all_processes.append(Process(number, settings, events, show))
        return Watch(settings, all_processes, events, show, began).status()
    finally:
        for process in all_processes:
            if process.popen.poll() is None:
                process.signal(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_signal(number: int) -> Event:
    return Event(-1, "signal", time.monotonic(), number)


class Watch:
    """What has happened to the processes so far."""

    def __init__(
        self,
        settings: dict[str, Any],
        all_processes: list[Process],
        events: queue.Queue[Event],
        show: Show,
        began: float,
    ) -> None:
        self.patience, self.processes, self.events, self.show = settings["patience"], all_processes, events, show
        self.began, self.noticed = began, False
        self.ended: dict[int, float] = {}  # the processes that reached the end of the script, and when
        self.failed: dict[int, Ending] = {}

    def status(self) -> int:
        """The exit status, once all processes are over."""
        while self.running():
            event = self.next(self.until())
            if event is not None and event.kind == "signal":
                return self.interrupted(event.status)
            if self.failed:
                return self.failure()
            if event is None and not self.goes_on():
                return 1
        return self.failure() if self.failed else 0

    def running(self) -> list[int]:
        return [process.number for process in self.processes if not process.over]

    def next(self, seconds: float | None) -> Event | None:
        """The next event, taken note of; None if there is none within that time."""
        try:
            event = self.events.get(timeout=None if seconds is None else max(seconds, 0.0))
        except queue.Empty:
            return None
        if event.kind == "ended":
            self.ended[event.process] = event.time
        elif event.kind == "failed":
            self.failed.setdefault(event.process, Ending(event.process, event.status, event.last, event.time))
        elif event.kind == "over":
            self.processes[event.process].over = True
            if event.status:
                self.failed.setdefault(event.process, Ending(event.process, event.status, "", event.time))
            else:
                self.ended.setdefault(event.process, event.time)
        return event

    def until(self) -> float | None:
        """Seconds until processes that have not ended are mentioned, or ended."""
        if not self.ended or self.failed or len(self.ended) == len(self.processes):
            return None
        return min(self.ended.values()) + (self.patience if self.noticed else NOTICE) - time.monotonic()

    def goes_on(self) -> bool:
        """Mentions processes that run on after others have ended; False once they have been ended."""
        over, seconds = list(self.ended), time.monotonic() - min(self.ended.values())
        late = [process.number for process in self.processes if process.number not in self.ended]
        is_last = seconds >= self.patience
        if is_last:
            self.show.hold()
            self.end_all(POLITE)
        self.noticed = True
        self.show.say(waiting(over, late, seconds, None if is_last else self.patience))
        return not is_last

    def failure(self) -> int:
        """Ends all processes after a first failure, and says what it was."""
        self.show.hold()
        running = [number for number in self.running() if number not in self.failed]
        deadline = time.monotonic() + SETTLING
        while (event := self.next(deadline - time.monotonic())) is not None:
            if event.kind == "signal":
                break
        cause = first_cause(self.failed.values())
        self.show.show_only(cause.process)
        over = [number for number in self.ended if number != cause.process]
        self.end_all(POLITE)
        ended = [number for number in {*running, *self.failed} - {cause.process} if number not in over]
        self.show.say(word(cause, len(self.processes), self.began, over, ended))
        return cause.code

    def interrupted(self, number: int) -> int:
        """Hands a signal on to all processes, and ends them."""
        self.end_all(INTERRUPTION, number)
        self.show.say(f"{INTERRUPTED[signal.Signals(number)]}: all {len(self.processes)} processes were ended")
        return 128 + number

    def end_all(self, seconds: float, first: int = signal.SIGTERM) -> None:
        """Ends all processes: by a signal, and after some seconds, or another Ctrl-C, by SIGKILL."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.signal(first)
        while self.running():
            event = self.next(deadline - time.monotonic())
            if event is None or event.kind == "signal":
                for process in self.processes:
                    process.signal(signal.SIGKILL)
                deadline = time.monotonic() + 60
