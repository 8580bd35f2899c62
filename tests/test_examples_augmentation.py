"""The example that draws what augmentation does to digits, run on scikit-learn's and on MNIST's."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from datasets import mnist_folder, needs_mnist
from examples_loader import load_example

pytest.importorskip("matplotlib", reason="the example draws a picture")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
CHANGES = ["shift", "rotate", "scale", "shear", "elastic", "noise", "one after another", "in one resampling"]


def run(monkeypatch, **options):
    example = load_example("augmentation")
    monkeypatch.setattr(example, "REPEATS", 1)
    return example.main(**options)


@pytest.mark.long
def test_digits(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="holds the digits")
    rows, times = run(monkeypatch, out=tmp_path / "new")
    assert list(rows) == ["original", *CHANGES]
    assert list(times) == CHANGES
    digits = rows.pop("original")
    assert digits.shape == (10, 8, 8, 1)
    for name, images in rows.items():
        assert (images.shape, images.dtype) == (digits.shape, digits.dtype)
        moved = np.abs(images - digits).mean(axis=(1, 2, 3))
        assert (moved > 0).all(), name  # every digit
        assert moved.mean() < 0.2, name  # and still a digit: two different ones are 0.24 apart
    assert (tmp_path / "new" / "augmentation.png").read_bytes().startswith(PNG_MAGIC)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in printed[:-1]] == CHANGES
    assert printed[-1].endswith("augmentation.png")


@pytest.mark.long
@needs_mnist
def test_mnist_at_no_strength_is_left_as_it_is(tmp_path, monkeypatch):
    rows, _ = run(monkeypatch, data=mnist_folder(), strength=0.0, out=tmp_path)
    digits = rows.pop("original")
    assert digits.shape == (10, 28, 28, 1)
    for images in rows.values():
        np.testing.assert_array_equal(images, digits)


def test_the_picture_goes_to_out_by_default():
    assert inspect.signature(load_example("augmentation").main).parameters["out"].default == "out"
