"""Data sets: MNIST from its four files, and the digits of scikit-learn.

Index letters: `N` examples, `H` `W` height and width of an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from jaxnn.data.idx import DataError, FilePath, peek_header, read_idx
from jaxnn.trees import describe

LabelledImages: TypeAlias = tuple[np.ndarray, np.ndarray]  # x [N, H, W, 1] float32 in 0..1, labels [N] int32

MNIST_FILES = (("train-images", "idx3"), ("train-labels", "idx1"), ("t10k-images", "idx3"), ("t10k-labels", "idx1"))
PIXEL_MAX = np.float32(255)
DIGIT_MAX = np.float32(16)


def mnist(folder: FilePath) -> tuple[LabelledImages, LabelledImages]:
    """The training and test parts of MNIST, or of a set in its format (Fashion-MNIST, KMNIST).

    Looks for `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, also with a dot before `idx`, each with or without `.gz`. Images may have any
    size, and labels any value from 0 to 255: the data determine the number of classes.

    Args:
        folder: the folder with the four files.

    Returns:
        `(x, labels), (x_test, labels_test)`: x [60000, 28, 28, 1] float32 in 0..1 (0 is the background),
        labels [60000] int32; 10,000 of each in the test part. NumPy arrays.

    Raises:
        DataError: files that are missing (all are named) or damaged; images and labels that differ in number.
            All four headers are read before memory is allocated for any image.

    Source: LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document recognition".

    >>> (x, labels), (x_test, labels_test) = mnist("data/mnist")  # doctest: +SKIP
    >>> x.shape, x_test.shape, labels[:5].tolist()  # doctest: +SKIP
    ((60000, 28, 28, 1), (10000, 28, 28, 1), [5, 0, 4, 1, 9])
    """
    folder = Path(folder)
    candidates = [[f"{stem}{dot}{idx}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")] for stem, idx in MNIST_FILES]
    found = [next((folder / name for name in names if (folder / name).is_file()), None) for names in candidates]
    missing = [" or ".join(names) for names, path in zip(candidates, found, strict=True) if path is None]
    if missing:
        actual = f"one without {', without '.join(missing)}" if folder.is_dir() else "no such folder"
        raise DataError(folder, "a folder with MNIST's four files", actual, "give the folder that contains them")
    train_images, train_labels, test_images, test_labels = cast(list[Path], found)
    _check_labelled_images(train_images, train_labels)
    _check_labelled_images(test_images, test_labels)
    train_size, test_size = peek_header(train_images).shape[1:], peek_header(test_images).shape[1:]
    if train_size != test_size:
        raise DataError(
            test_images, f"images of {train_size} like those of {train_images.name}", f"images of {test_size}"
        )
    return _labelled_images(train_images, train_labels), _labelled_images(test_images, test_labels)


def _check_labelled_images(images: Path, labels: Path) -> None:
    image_header, label_header = peek_header(images), peek_header(labels)
    for path, header, rank, axes in ((images, image_header, 3, "N, H, W"), (labels, label_header, 1, "N")):
        if header.dtype.name != "uint8" or len(header.shape) != rank:
            raise DataError(path, f"uint8[{axes}]", describe(header))
    if image_header.shape[0] != label_header.shape[0]:
        raise DataError(
            labels,
            f"one label for each of the {image_header.shape[0]} images of {images}",
            f"{label_header.shape[0]} labels",
            "are both files from the same set?",
        )


def _labelled_images(images: Path, labels: Path) -> LabelledImages:
    x = np.divide(read_idx(images)[..., None], PIXEL_MAX, dtype=np.float32)
    return x, read_idx(labels).astype(np.int32)


def digits() -> LabelledImages:
    """The 1,797 handwritten digits of scikit-learn, 8×8 pixels of 17 grey levels.

    Returns:
        x [1797, 8, 8, 1] float32 in 0..1 (0 is the background) and labels [1797] int32. NumPy arrays.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI (test part).

    >>> x, labels = digits()  # doctest: +SKIP
    >>> x.shape, labels[:5].tolist()  # doctest: +SKIP
    ((1797, 8, 8, 1), [0, 1, 2, 3, 4])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "data.digits needs scikit-learn, which contains the images: pip install scikit-learn"
        ) from error
    bunch = load_digits()
    return bunch.images.astype(np.float32)[..., None] / DIGIT_MAX, bunch.target.astype(np.int32)
