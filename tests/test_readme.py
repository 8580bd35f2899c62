"""The README's scripts run as they stand, and print what it shows."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SCRIPTS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
SHOWN = re.findall(r"```text\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.long  # it trains to an accuracy
def test_the_script_runs(capsys):
    pytest.importorskip("sklearn", reason="the script trains on scikit-learn's digits")
    script = SCRIPTS[0]
    assert len(script.splitlines()) <= 20
    names = {}
    exec(script, names)
    shape, difference, scores = capsys.readouterr().out.splitlines()
    assert shape == "(1438, 64)"
    assert 0 < float(difference) <= 1e-6  # what the script's comment says
    assert eval(scores)["accuracy"] > 0.95


def without_numbers(text):
    """Lines without their numbers, whose last digits depend on the processor."""
    return [re.sub(r"\s+", " ", re.sub(r"-?\d[\d.e+-]*", "#", line)).strip() for line in text.splitlines()]


def test_a_layer_and_a_loss_of_ones_own_print_what_is_shown(capsys):
    exec(SCRIPTS[1], {})
    printed = without_numbers(capsys.readouterr().out)
    shown = [line for line in without_numbers(SHOWN[0]) if line != "…"]
    assert set(shown) <= set(printed)
    assert "RIGHT" in printed[0]


def test_the_wrong_custom_vjp_is_caught_as_shown(capsys):
    exec(SCRIPTS[2], {})
    printed = capsys.readouterr().out
    assert without_numbers(printed) == without_numbers(SHOWN[1])
    worst = [line for line in printed.splitlines() if line.startswith("✗")]
    assert len(worst) == 1
    assert "x  " in worst[0]


def test_the_right_custom_vjp_is_right():
    forgotten = "delta - y * "
    assert forgotten in SCRIPTS[2]
    names = {}
    exec(SCRIPTS[2].replace(forgotten, "delta - delta.mean(-1, keepdims=True) - y * "), names)
    names["gradcheck"].custom_vjp(names["normalise"], names["plain"], (names["x"],)).raise_if_failed()


def test_the_graph_prints_what_is_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    exec(compile(SCRIPTS[3], "f.py", "exec"), {})
    assert capsys.readouterr().out == SHOWN[2]
    assert (tmp_path / "f.html").stat().st_size > 10_000


def test_the_nan_is_explained_as_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "entropy.py"
    script.write_text(SCRIPTS[4], encoding="utf-8")
    exec(compile(SCRIPTS[4], str(script), "exec"), {})
    assert capsys.readouterr().out == SHOWN[3]


@pytest.mark.long  # a sweep, a metagradient and two trainings
def test_runs_print_what_is_shown(capsys, monkeypatch, tmp_path):
    pytest.importorskip("sklearn", reason="the script trains on scikit-learn's digits")
    monkeypatch.chdir(tmp_path)
    exec(SCRIPTS[5], {})
    printed = capsys.readouterr().out
    assert without_numbers(printed) == without_numbers(SHOWN[4])
    assert "nothing was left to do" in printed


def test_pictures_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / picture).exists()
