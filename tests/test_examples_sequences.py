"""The examples of recurrent networks, on small presets."""

from __future__ import annotations

import pytest
from datasets import mnist_folder, needs_mnist
from examples_loader import load_example

import jaxnn

pytest.importorskip("matplotlib", reason="the examples draw pictures")
pytest.importorskip("tqdm", reason="the examples show their progress")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.mark.long
@needs_mnist
def test_rows_are_learnt(tmp_path, monkeypatch, capsys):
    example = load_example("rows")
    monkeypatch.setattr(example, "VALIDATION", 1_000)
    monkeypatch.setattr(example, "WIDTH", 32)
    accuracies = example.main(mnist_folder(), epochs=6, cells=("gru",), out=tmp_path, images=5_000)
    assert accuracies["gru"] > 0.6
    assert f"test accuracy: {100 * accuracies['gru']:.2f} %" in capsys.readouterr().out
    assert (tmp_path / "rows.png").read_bytes().startswith(PNG_MAGIC)


@pytest.mark.long
def test_delta_vanishes_in_the_plain_network_and_not_in_the_lstm(tmp_path, capsys):
    results = load_example("long_memory").main(looks=1, out=tmp_path)
    assert results["rnn"][0] < 1e-6
    assert 1e-2 < results["lstm"][0] < 1e2
    assert "‖δ₁‖/‖δ_T‖" in capsys.readouterr().out
    assert (tmp_path / "long_memory.png").read_bytes().startswith(PNG_MAGIC)


@pytest.mark.long
def test_the_answer_grows_frame_by_frame(tmp_path):
    pytest.importorskip("sklearn", reason="holds the digits")
    right = load_example("frames").main(epochs=4, out=tmp_path)
    assert right.shape == (10,)
    assert right[-1] > 0.6
    assert right[-1] > right[3] + 0.2  # no frame shows enough
    assert (tmp_path / "frames.png").read_bytes().startswith(PNG_MAGIC)


# ---------------------------------------------------------------- the ready network


def test_sequence_classifier_is_what_it_says():
    plain = jaxnn.networks.sequence_classifier(jaxnn.gru, 8, 3)
    assert plain.child_names == ("gru_0", "dense_0")
    deep = jaxnn.networks.sequence_classifier(jaxnn.lstm, 8, 3, depth=2, both_ways=True)
    assert deep.child_names == ("bidirectional_0", "bidirectional_1", "dense_0")
    params, _ = deep.init(0, (5, 4))
    assert params["bidirectional_1"]["backward"]["w"].shape == (16, 32)
    assert params["dense_0"]["w"].shape == (16, 3)


def test_sequence_classifier_wants_a_cell_and_depth():
    with pytest.raises(TypeError, match="rnn, gru or lstm itself"):
        jaxnn.networks.sequence_classifier(jaxnn.lstm(8), 8, 3)
    with pytest.raises(ValueError, match="sequence_classifier: depth must be at least 1"):
        jaxnn.networks.sequence_classifier(jaxnn.lstm, 8, 3, depth=0)
