"""The benchmark of an accelerator: it runs, a wrong law is its exit status, and a section that fails is a line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import Case

from jaxnn import dense, with_rules

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import accelerator  # noqa: E402
from timing import Contender  # noqa: E402


def wrong(factor):
    """A dense layer with gradients that are too large."""
    layer = dense(2)

    def backward(params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return delta_in, {name: factor * grad for name, grad in grads.items()}

    return with_rules(layer, backward=backward)


def refuses():
    raise ValueError("no such layer")


def laws_of(*cases):
    return accelerator.laws(accelerator.SMALL._replace(rows=cases), time.perf_counter() + 60)


def test_a_wrong_law_and_a_row_that_fails_are_not_passed():
    right = Case("dense", lambda: dense(2), (3,))
    part = laws_of(right, Case("too large", lambda: wrong(1 + 1e-4), (3,)))
    assert not part.passed
    assert part.lines[0].startswith("2 of 2 rows; 1 differ")
    part = laws_of(right, Case("refuses", refuses, (3,)))
    assert not part.passed
    assert "- failed: refuses: ValueError: no such layer" in part.lines
    assert laws_of(right).passed
    assert not accelerator.laws(accelerator.SMALL, time.perf_counter()).passed  # none was in time


def test_who_fails_in_a_race_or_has_no_time_is_a_line():
    def missing():
        import no_such_library  # noqa: F401

    turns = {"jaxnn": lambda: Contender("", lambda: None), "Missing": missing, "Broken": refuses, "None": lambda: None}
    part = accelerator.race("a race", turns, 1, 2, time.perf_counter() + 5)
    assert part.lines[0].startswith("| a race; 1 steps a turn, 2 rounds |")
    assert "- Missing: no_such_library is not installed" in part.lines
    assert "- Broken: failed, ValueError: no such layer" in part.lines
    late = accelerator.race("a race", turns, 1, 2, time.perf_counter())
    assert "- jaxnn: not measured, no time was left" in late.lines


def test_the_peak_of_a_device_by_its_name():
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA L40S": 362e12}
    for name, peak in names.items():
        assert accelerator.peak_of(name) == peak
    assert accelerator.peak_of("cpu") is None


@pytest.mark.long
def test_a_small_run(tmp_path):
    out = tmp_path / "result.md"
    command = [sys.executable, "benchmarks/accelerator.py", "--small", "--seconds", "100", "--out", str(out)]
    command += ["--only", "laws", "b", "sweep", "bfloat16"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    text = out.read_text(encoding="utf-8")
    assert "6 of 6 rows; 0 differ" in text
    assert "failed" not in text.replace("0 failed", "")
    for what in ("(b) 784-32-10", "sweep, one order", "bfloat16, a product alone", "Compile times", "s in all, of 100"):
        assert what in text
