"""Several processes: what they compute is what one does, what one raises all raise, and one that dies ends all.

`process_cases.py` has the rows. The processes of a test are started once for all of its rows.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import process_cases
import pytest

from jaxnn import processes
from jaxnn.processes.endings import Ending, first_cause, word

ROOT = Path(__file__).parents[1]
SCRIPT = str(Path(__file__).with_name("process_cases.py"))
FLOAT32 = 1e-6  # of numbers near 1: sums over two parts and over one differ by rounding
CACHE = {  # every process is an interpreter that has compiled nothing
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the launcher needs process groups")


def started(*arguments, **settings):
    """The launcher, running, with its output in one pipe."""
    environment = os.environ | CACHE | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jaxnn.processes", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    return subprocess.Popen(command, **pipes | settings)


def launched(*arguments, seconds=120):
    """Exit status and output of the launcher."""
    running = started(*arguments)
    output = running.communicate(timeout=seconds)[0]
    return running.returncode, output


def check_rows(folder, rows, n=2, devices=1, end=(), status=0):
    """Runs rows in n processes, and compares them with this one; returns the output."""
    names = [row.__name__ for row in (*rows, *end)]
    code, output = launched("-n", n, "--devices-per-process", devices, SCRIPT, folder, *names, seconds=400)
    assert code == status, output
    mesh = jax.make_mesh((1,), ("batch",), devices=jax.devices()[:1])
    for row in rows:
        if row in process_cases.ROWS:
            expected = row(mesh, folder)
            for i in range(n):
                with np.load(folder / f"{row.__name__}.{i}.npz") as held:
                    got = [held[name] for name in held.files]
                assert len(got) == len(expected)
                for a, b in zip(got, expected, strict=True):
                    np.testing.assert_allclose(
                        a, b, rtol=0, atol=FLOAT32 * max(1, np.abs(b).max()), err_msg=row.__name__
                    )
        else:
            texts = {json.loads((folder / f"{row.__name__}.{i}.json").read_text()) for i in range(n)}
            assert len(texts) == 1, texts
            wanted = process_cases.ERRORS.get(row, ())
            assert all(part in min(texts) for part in wanted), (row.__name__, texts)
            assert bool(min(texts)) == bool(wanted), texts
    return output


def test_two_processes_train_as_one_raise_alike_and_end_with_one_word(tmp_path):
    rows = [process_cases.data_whole, process_cases.nan_in_one_part, process_cases.unequal_parts]
    output = check_rows(tmp_path, rows, end=[process_cases.killed], status=137)
    last = output.splitlines()[-1]
    assert last.startswith("jaxnn.processes: process 1 of 2 was killed by SIGKILL (signal 9)")
    assert "process 0 was ended" in last
    assert "last checkpoint" in last


@pytest.mark.long
def test_two_processes_are_one(tmp_path):
    check_rows(tmp_path, process_cases.ROWS)
    mesh = jax.make_mesh((1,), ("batch",), devices=jax.devices()[:1])
    further = process_cases.fit_in(tmp_path / "training2", mesh, epochs=4)  # what two have saved one continues
    assert "it continued" in further.why
    assert len(further.history["loss"]) == 4


@pytest.mark.long
def test_two_processes_of_two_devices_are_one(tmp_path):
    check_rows(tmp_path, [process_cases.data_as_parts, process_cases.sharded_state], devices=2)


@pytest.mark.long
def test_what_one_process_finds_all_raise(tmp_path):
    check_rows(tmp_path, [*process_cases.ERRORS, process_cases.weight_in_one_part])


@pytest.mark.long
def test_a_killed_process_ends_all_and_the_same_command_goes_on():
    command = [sys.executable, ROOT / "benchmarks" / "process_kills.py", "--kills", "1", "--epochs", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- the launcher

PLAIN = """
import os, sys, time
import jax
me, how = jax.process_index(), sys.argv[1]
line = f"process {me} of {jax.process_count()} {sys.argv[1:]} {__name__} {__file__} {sys.path[0]}"
sys.stdout.write(line + chr(10))  # at once, also where output has no buffer: others write to the same pipe
sys.stdout.flush()
print("a warning", file=sys.stderr, flush=True)
if how == "wait" or me == 0:
    open(sys.argv[2] + f"/{me}.pid", "w").write(str(os.getpid()))
    time.sleep(600)
if how == "raise":
    raise ValueError("this is wrong")
if how == "status":
    sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    return path


def lives(pid):
    """Whether a process lives; one that nobody waits for has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def await_files(folder, n=2):
    until = time.monotonic() + 60
    while len(found := [path for path in folder.glob("*.pid") if path.read_text()]) < n:
        assert time.monotonic() < until
        time.sleep(0.02)
    return [int(path.read_text()) for path in found]


def await_ends(pids, seconds=10):
    until = time.monotonic() + seconds
    while any(map(lives, pids)):
        assert time.monotonic() < until, "an orphan lives"
        time.sleep(0.02)


@pytest.mark.long
def test_an_exception_of_one_process_ends_all_with_one_word(script, tmp_path):
    status, output = launched("-n", 2, script, "raise", tmp_path)
    lines = output.strip().splitlines()
    assert f"process 0 of 2 ['raise', '{tmp_path}'] __main__ {script} {tmp_path}" in lines
    assert not any(line.startswith("[1] process") for line in lines)  # its stdout
    assert "[1] a warning" in lines
    assert lines[lines.index("[1] Traceback (most recent call last):") + 1].startswith(f'[1]   File "{script}"')
    assert re.match(
        r"jaxnn.processes: process 1 of 2 failed with exit status 1: ValueError: this is wrong \(", lines[-1]
    )
    assert "process 0 was ended" in lines[-1]
    assert "last checkpoint" in lines[-1]
    assert status == 1


@pytest.mark.long
def test_a_process_that_exits_with_a_status(script, tmp_path):
    code, output = launched("-n", 2, "--all-output", script, "status", tmp_path)
    assert (code, "failed with exit status 7" in output.splitlines()[-1]) == (7, True), output
    assert "[1] process 1 of 2" in output


@pytest.mark.long
def test_a_process_that_ends_before_the_others_is_mentioned_and_ends_them(script, tmp_path):
    code, output = launched("-n", 2, "--patience", 12, script, "nothing", tmp_path)
    notice, last = (line for line in output.splitlines() if line.startswith("jaxnn.processes"))
    assert "process 1 reached the end of the script 10 s ago, and process 0 did not yet" in notice
    assert "a process that waits in a collective" in last.lower()
    assert code == 1


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_launcher(script, tmp_path, number):
    running = started("-n", 2, script, "wait", tmp_path)
    pids = await_files(tmp_path)
    running.send_signal(number)
    output = running.communicate(timeout=30)[0]
    await_ends(pids)
    if number != signal.SIGKILL:
        assert running.returncode == 128 + number
        assert "all 2 processes were ended" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-n", "0", SCRIPT), "processes must be at least 1, got 0"),
        (("-n", "2", "no/such/script.py"), "no/such/script.py does not exist"),
        (("-n", "2", "--devices-per-process", "0", SCRIPT), "devices_per_process must be at least 1, got 0"),
        (("-n", "2", "--patience", "0", SCRIPT), "patience must be above 0"),
        (("-n", "2", str(ROOT)), "is a folder"),
    ],
)
def test_arguments_that_do_not_fit(arguments, said, capsys):
    assert processes.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_other_types():
    with pytest.raises(TypeError, match="script must be the path"):
        processes.launch(3, processes=2)
    with pytest.raises(TypeError, match="processes must be a whole number"):
        processes.launch(SCRIPT, processes=2.0)


# ---------------------------------------------------------------- which process failed first


def test_the_first_cause_is_named_and_not_who_lost_it():
    lost = "ValueError: UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:28901"
    killed, survivor = Ending(2, -signal.SIGKILL, "", 5.2), Ending(0, 1, lost, 5.0)
    aborted, wrong = Ending(1, -signal.SIGABRT, "", 4.9), Ending(3, 1, "ValueError: x", 5.1)
    assert first_cause([survivor, aborted, killed, wrong]) == killed
    assert first_cause([survivor, aborted, wrong]) == wrong
    assert first_cause([survivor, aborted]) == aborted
    assert killed.code == 137
    said = word(killed, 4, 1.0, [3], [0, 1])
    assert said.startswith(
        "process 2 of 4 was killed by SIGKILL (signal 9) (4.2 s after the start); process 3 had reached"
    )
    assert "; processes 0, 1 were ended. Now the same command goes on from the last checkpoint" in said
