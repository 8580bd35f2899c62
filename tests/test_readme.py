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


def test_the_wrong_custom_vjp_is_caught_as_shown(capsys):
    exec(SCRIPTS[1], {})
    printed = capsys.readouterr().out
    shown = SHOWN[0]
    numbers = re.compile(r"-?\d[\d.e+-]*")  # the last digits depend on the processor
    assert [re.sub(r"\s+", " ", numbers.sub("#", line)) for line in printed.splitlines()] == [
        re.sub(r"\s+", " ", numbers.sub("#", line)) for line in shown.splitlines()
    ]
    worst = [line for line in printed.splitlines() if line.startswith("✗")]
    assert len(worst) == 1
    assert "x  " in worst[0]


def test_the_right_custom_vjp_is_right():
    forgotten = "delta - y * "
    assert forgotten in SCRIPTS[1]
    names = {}
    exec(SCRIPTS[1].replace(forgotten, "delta - delta.mean(-1, keepdims=True) - y * "), names)
    names["gradcheck"].custom_vjp(names["normalise"], names["plain"], (names["x"],)).raise_if_failed()


def test_the_graph_prints_what_is_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    exec(compile(SCRIPTS[2], "f.py", "exec"), {})
    assert capsys.readouterr().out == SHOWN[1]
    assert (tmp_path / "f.html").stat().st_size > 10_000


def test_the_nan_is_explained_as_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "entropy.py"
    script.write_text(SCRIPTS[3], encoding="utf-8")
    exec(compile(SCRIPTS[3], str(script), "exec"), {})
    assert capsys.readouterr().out == SHOWN[2]


def test_pictures_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / picture).exists()
