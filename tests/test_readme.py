"""The README's script runs as it stands, and is short."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_script_runs(capsys):
    pytest.importorskip("sklearn", reason="the script trains on scikit-learn's digits")
    (script,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(script.splitlines()) <= 20
    names = {}
    exec(script, names)
    shape, difference, scores = capsys.readouterr().out.splitlines()
    assert shape == "(1438, 64)"
    assert 0 < float(difference) <= 1e-6  # what the script's comment says
    assert eval(scores)["accuracy"] > 0.95


def test_pictures_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / picture).exists()
