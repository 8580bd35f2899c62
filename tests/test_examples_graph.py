"""The examples of graphs: published numbers, pages that are written, causes that are named."""

import jax
import pytest
from examples_loader import load_example

from jaxnn.graph.nonfinite import causes


@pytest.mark.long
def test_the_textbook_functions(tmp_path, capsys):
    graphs = load_example("graph_textbook").main(out=tmp_path / "new")
    add, mul = graphs["product"].nodes
    assert [float(v) for v in (graphs["product"].value, *graphs["product"].gradients)] == [6, 5, 2]
    assert float(add.gradient) == 2  # ∂f/∂z
    assert [float(mul.passed[0]), float(add.passed[0])] == [3, 2]  # the two paths into x
    printed = capsys.readouterr().out
    assert "f = 6, ∂f/∂x = 5, ∂f/∂y = 2" in printed
    assert "δx = δ y, δy = δ x" in printed  # the local rule is in the table
    assert float(graphs["exponential"].value) == pytest.approx(325509.58, rel=1e-6)  # 2 e¹²
    assert float(graphs["exponential"].gradients[1]) == 0
    for name in ("product", "exponential"):
        assert "<svg" in (tmp_path / "new" / f"graph_{name}.html").read_text(encoding="utf-8")


def test_the_neuron(tmp_path):
    traced, by_formula = load_example("graph_neuron").main(out=tmp_path / "new")
    assert [float(g) for g in traced.gradients] == pytest.approx(by_formula, rel=1e-6)
    assert "neuron" in (tmp_path / "new" / "graph_neuron.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_micrograd(tmp_path, capsys):
    with jax.enable_x64(True):
        load_example("graph_micrograd").main(out=tmp_path / "new")
    assert "g = 24.7041, ∂g/∂a = 138.8338, ∂g/∂b = 645.5773" in capsys.readouterr().out
    assert (tmp_path / "new" / "graph_micrograd.html").exists()


@pytest.mark.long
def test_what_is_not_finite(capsys):
    explained = load_example("graph_nonfinite").main()
    assert {name: why.cause for name, why in explained.items()} == {
        "entropy": causes.WHERE,
        "distances": causes.NORM,
        "attention": causes.ALL_MASKED,
        "standardised": causes.BY_VARIANCE,
        "half_loss": causes.HALF,
        "recurrence": causes.NORM,
    }
    assert explained["recurrence"].steps == ("scan step 2",)
    assert "  fix " in capsys.readouterr().out
