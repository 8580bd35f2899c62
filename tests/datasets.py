"""Where the tests find MNIST: the folder named by JAXNN_MNIST, or `shared/data/mnist` beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MNIST_VARIABLE = "JAXNN_MNIST"
MNIST_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


def mnist_folder() -> Path | None:
    """The folder of MNIST's four files, or None; a folder that was named must hold them."""
    named = os.environ.get(MNIST_VARIABLE)
    if named:
        return Path(named)
    return MNIST_BESIDE if any(MNIST_BESIDE.glob("train-images*")) else None


needs_mnist = pytest.mark.skipif(
    mnist_folder() is None,
    reason=f"no MNIST: set {MNIST_VARIABLE} to its folder, or put it in ../shared/data/mnist",
)
