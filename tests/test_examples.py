"""Every example is short and goes through the public door alone; four of them are run here, on small presets."""

from __future__ import annotations

import ast
import inspect
import re
import runpy

import numpy as np
import pytest
from datasets import mnist_folder, needs_mnist
from examples_loader import EXAMPLES, load_example

import jaxnn

SCRIPTS = sorted(EXAMPLES.glob("*.py"))
WITH_OPTIONS = [script for script in SCRIPTS if "argparse" in script.read_text(encoding="utf-8")]
MOST_LINES = 120
FLOAT32_AGREEMENT, FLOAT64_AGREEMENT = 1e-5, 1e-12  # worst element, as a share of its leaf's largest
PNG_MAGIC = b"\x89PNG"


def needs_drawing():
    for module in ("matplotlib", "tqdm"):
        pytest.importorskip(module, reason="an optional package that the example uses")


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


# ---------------------------------------------------------------- all of them


def test_there_are_examples():
    assert {"digits", "gates", "mnist", "step_by_hand"} <= {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_is_short_and_says_what_it_shows_and_how_to_run_it(script):
    text = script.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MOST_LINES
    assert f"python examples/{script.name}" in (ast.get_docstring(tree) or "")
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert len(mains) == 1
    assert ast.get_docstring(mains[0])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_uses_the_public_door_alone(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    plain = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    other = {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    assert "jaxnn" in plain
    assert not [name for name in plain | other if name.startswith("jaxnn.")]
    assert "jaxnn" not in other
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jaxnn"
    }
    assert used <= set(jaxnn.__all__)


@pytest.mark.parametrize("script", WITH_OPTIONS, ids=lambda script: script.stem)
def test_its_command_line_explains_itself(script, monkeypatch, capsys):
    needs_drawing()
    if script.stem.startswith("orbax"):
        pytest.importorskip("orbax.checkpoint", reason="the example saves with it")
    monkeypatch.setattr("sys.argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    assert f"python examples/{script.name}" in help_text
    assert "--out" in help_text


# ---------------------------------------------------------------- one by one


def test_gates():
    tables = load_example("gates").main()
    truth = {
        "OR": {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 1},
        "AND": {(0, 0): 0, (0, 1): 0, (1, 0): 0, (1, 1): 1},
        "NOT": {(0,): 1, (1,): 0},
    }
    assert {gate: {x: round(h) for x, h in table.items()} for gate, table in tables.items()} == truth
    # The neuron is saturated: every sum is 10 or more from 0, and σ(−10) = 4.54e-5.
    distances = [abs(h - truth[gate][x]) for gate, table in tables.items() for x, h in table.items()]
    assert max(distances) == pytest.approx(1 / (1 + np.exp(10)), rel=1e-2)  # 1 − 4.54e-5 has 3 digits in float32
    assert tables["OR"][0, 0] == pytest.approx(1 / (1 + np.exp(10)), rel=1e-5)


def test_step_by_hand(capsys):
    example = load_example("step_by_hand")
    table = example.main()
    assert list(table) == ["C", "δ²", "δ¹", "∂C/∂W¹", "∂C/∂b¹", "∂C/∂W²", "∂C/∂b²", "C after"]
    for hand, *others in table.values():
        for other in others:
            assert other.dtype == np.float64
            np.testing.assert_allclose(other, hand, rtol=FLOAT64_AGREEMENT, atol=0)
    first = {name: hand for name, (hand, *_) in table.items()}
    assert first["C after"] < first["C"]
    assert all(np.all(np.abs(first[name]) > 1e-3) for name in example.ROWS)  # no row agrees by being 0

    def cost(W1):  # BP4 once more, by a route that none of the three takes
        return float(example.by_hand(W1, *example.THETA[1:])[0])

    nudge = 1e-6 * np.eye(4).reshape(4, 2, 2)
    W1 = example.THETA[0]
    differences = [(cost(W1 + step) - cost(W1 - step)) / 2e-6 for step in nudge]
    np.testing.assert_allclose(first["∂C/∂W¹"].ravel(), differences, rtol=1e-6)
    assert len(capsys.readouterr().out.splitlines()) == 15  # a header, 13 numbers, and the cost after


def test_step_by_hand_notices_a_wrong_equation(monkeypatch):
    example = load_example("step_by_hand")
    right = example.by_hand

    def forgets_sigma_prime(*theta):
        cost, delta2, delta1, *grads = right(*theta)
        return cost, delta2, 1.01 * delta1, *grads

    monkeypatch.setattr(example, "by_hand", forgets_sigma_prime)
    with pytest.raises(AssertionError, match="δ¹"):
        example.main()


@pytest.mark.long
def test_digits(tmp_path, capsys):
    needs_drawing()
    pytest.importorskip("sklearn", reason="holds the digits")
    table, accuracies = load_example("digits").main(epochs=6, out=tmp_path / "new")

    layers = [f"dense_{i}" for i in range(3)]
    assert list(table) == [(layer, leaf) for layer in layers for leaf in ("w", "b")]
    single, double = np.array(list(table.values())).T
    assert single.max() <= FLOAT32_AGREEMENT
    assert double.max() <= FLOAT64_AGREEMENT
    assert single.min() > double.max()  # the two columns are two precisions

    assert accuracies.shape == (5,)
    assert len(set(accuracies.tolist())) > 1  # five splits, not one five times
    assert accuracies.mean() >= 0.96  # 0.972; 30 epochs give 0.983, and a network that learns nothing 0.1
    assert last_line(capsys) == f"test accuracy: {100 * accuracies.mean():.2f} %"
    assert (tmp_path / "new" / "digits.png").read_bytes().startswith(PNG_MAGIC)


@pytest.mark.long
@needs_mnist
def test_mnist(tmp_path, capsys):
    needs_drawing()
    score = load_example("mnist").main(mnist_folder(), epochs=4, out=tmp_path / "new", images=8_000)
    assert score["accuracy"] >= 0.90  # 0.916 from 3,000 images; all 55,000 in 15 epochs give 0.983
    printed = capsys.readouterr().out
    assert re.search(r"^\d+\.\d\d seconds per epoch, [\d,]+ images per second$", printed, re.MULTILINE)
    assert printed.splitlines()[-1] == f"test accuracy: {100 * score['accuracy']:.2f} %"
    assert (tmp_path / "new" / "mnist.png").read_bytes().startswith(PNG_MAGIC)


@pytest.mark.long
def test_schedules_draws_every_one(tmp_path):
    needs_drawing()
    rates = load_example("schedules").main(out=tmp_path / "new")
    assert [text.partition("(")[0] for text in rates] == jaxnn.schedules.__all__
    assert all(rate.shape == (1000,) and 0 <= rate.min() <= rate.max() <= np.float32(0.4) for rate in rates.values())
    assert (tmp_path / "new" / "schedules.png").read_bytes().startswith(PNG_MAGIC)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_pictures_go_to_out_by_default(name):
    needs_drawing()
    assert inspect.signature(load_example(name).main).parameters["out"].default == "out"
