"""One process of several: initialises `jax.distributed`, then runs the script as `python script.py` would.

It is started by its path, so that it imports nothing but JAX before the script does. What happens to the script goes to
the launcher, one line of JSON for each event, through a socket; that its other end closes says that the launcher is
gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from types import ModuleType, TracebackType
from typing import Any

INITIALISATION = 120  # seconds in which all processes must have started
INTERRUPTED = 128 + signal.SIGINT  # exit status


def main(settings: dict[str, Any], channel: socket.socket) -> int:
    """Runs the script, and returns the exit status."""
    threading.Thread(target=_end_with_the_launcher, args=(channel,), daemon=True).start()
    tell = lambda **event: channel.sendall(json.dumps(event | {"time": time.monotonic()}).encode() + b"\n")  # noqa: E731
    try:
        _join(settings)
        tell(event="joined")
        _run(settings["script"], settings["args"])
    except SystemExit as error:
        status = _status(error.code)
        last = "" if status in (0, error.code) else str(error.code)
        tell(event="failed", status=status, last=last) if status else tell(event="ended")
        raise
    except BaseException as error:  # told first: the runtime waits for the others at exit
        status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        tell(event="failed", status=status, last=_last_line(error))
        error = error.with_traceback(_below_this_file(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        return status
    tell(event="ended")
    return 0


def _join(settings: dict[str, Any]) -> None:
    """Initialises `jax.distributed` on the loopback."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", settings["devices"])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        settings["address"],
        num_processes=settings["processes"],
        process_id=settings["process"],
        initialization_timeout=INITIALISATION,
        shutdown_timeout_seconds=settings["patience"] + INITIALISATION,  # the launcher's word comes first
        coordinator_bind_address=settings["address"],
    )


def _run(script: str, args: list[str]) -> None:
    """Runs a script in a fresh `__main__`, which remains until the interpreter ends, unlike that of `runpy`."""
    path = os.path.abspath(script)
    sys.argv[:] = [script, *args]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    module = ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    with open(path, "rb") as file:
        source = file.read()
    code = compile(source, path, "exec", dont_inherit=True)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _status(code: object) -> int:
    """The exit status of a SystemExit."""
    return code if isinstance(code, int) else 0 if code is None else 1


def _last_line(error: BaseException) -> str:
    """The last line of a traceback that is not empty: the error itself."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    notes = len(getattr(error, "__notes__", ()))
    own = lines[: len(lines) - notes] if notes < len(lines) else lines
    return next((line for line in own if not line.startswith(" ")), own[0] if own else "")


def _below_this_file(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the script on."""
    here = trace
    while here is not None and here.tb_frame.f_code.co_filename == __file__:
        here = here.tb_next
    return here or trace


def _end_with_the_launcher(channel: socket.socket) -> None:
    """Kills this process and those that it started once the launcher is gone, however it ended."""
    try:
        while channel.recv(1024):
            pass
    except OSError:
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    given, number = json.loads(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(number, False)
    sys.exit(main(given, socket.socket(fileno=number)))
