"""Several processes on one machine, each with `jax.distributed` initialised before the script begins.

    python -m jaxnn.processes -n 2 script.py arguments…

The script is an ordinary one: alone it runs in one process, here in n, on a cluster in as many as there are. It says
what its devices are for, and nothing about processes:

    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    with jax.set_mesh(mesh):
        jaxnn.fit(net, loss, optimizer, data, …, checkpoint="runs/digits")

For a cluster it begins with `if not jax.distributed.is_initialized(): jax.distributed.initialize()`; CLUSTERS.md says
more. Processes on one machine are for trying that out, and for programs whose work on the host is the bottleneck: all
devices of one machine, GPUs too, are at the disposal of one process.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from jaxnn.checks import number, seen, whole_number, yes_or_no
from jaxnn.processes.launcher import Show, launched

__all__ = ["launch"]
__dir__ = __all__.copy
PATIENCE = 300.0  # seconds


def launch(
    script: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    processes: int,
    devices_per_process: int = 1,
    all_output: bool = False,
    patience: float = PATIENCE,
) -> int:
    """Runs a script in several processes of this machine's CPU, connected through the loopback, and waits for them.

    In each, `jax.distributed` is initialised (gloo) before the script begins, so that `jax.devices()` are those of all
    processes. What process 0 writes appears as it comes; of the others stderr, each line behind the number of its
    process. None of them reads from the terminal.

    If a process fails, by an exception, an exit status or a signal, all others are ended within seconds, and a last
    line says which one failed first, and how. No process outlives the launcher, whatever ends it.

    Args:
        script: the path of a Python script.
        args: its arguments, `sys.argv[1:]`.
        processes: n, at least 1.
        devices_per_process: the devices that JAX sees in each, all of them on the cores of this machine.
        all_output: show stdout of processes 1, 2, … as well.
        patience: seconds that the others may run on once a process has reached the end of the script. One that waits
            in a collective for a process that has left would wait forever.

    Returns:
        0, or the exit status of the process that failed first, 128 + s for a signal s; 1 if the patience was over.

    Raises:
        FileNotFoundError: if there is no such script.
        ValueError, TypeError: for numbers out of range.
        OSError: where processes have no groups (Windows).
    """
    n = whole_number("processes", processes, least=1)
    if not isinstance(script, (str, os.PathLike)):
        raise TypeError(f"script must be the path of a Python script, got {seen(script)}")
    path = os.fspath(script)
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise FileNotFoundError(f"the script {path} {what}: give the path of a Python script")
    if os.name != "posix":
        raise OSError("jaxnn.processes needs process groups, which this system does not have")
    settings = {
        "script": path,
        "args": list(args),
        "processes": n,
        "devices": whole_number("devices_per_process", devices_per_process, least=1),
        "patience": int(number("patience", patience, above=0.0)),
        "address": f"127.0.0.1:{_free_port()}",
    }
    return launched(settings, Show(yes_or_no("all_output", all_output)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for arguments that do not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxnn.processes",
        description="Runs a script in several processes of this machine, with jax.distributed initialised in each.",
        epilog="If a process fails, all are ended, and the last line says which one failed first, and how.",
    )
    parser.add_argument("-n", "--processes", type=int, required=True, metavar="N", help="the number of processes")
    parser.add_argument("--devices-per-process", type=int, default=1, metavar="K", help="CPU devices of each; 1")
    parser.add_argument(
        "--all-output", action="store_true", help="show stdout of processes 1, 2, … too, not only stderr"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="S",
        help=f"seconds that the others may run on once one has reached the end of the script; {PATIENCE:.0f}",
    )
    parser.add_argument("script", help="the path of a Python script")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args(argv)
    try:
        return launch(
            given.script,
            given.args,
            processes=given.processes,
            devices_per_process=given.devices_per_process,
            all_output=given.all_output,
            patience=given.patience,
        )
    except (FileNotFoundError, ValueError, TypeError) as error:
        print(f"jaxnn.processes: {error}", file=sys.stderr)
        return 2
