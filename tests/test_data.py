"""Data: IDX files sound and damaged, MNIST and digits, splits, standardisation, one-hot labels."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import mnist_folder, needs_mnist

from jaxnn import data
from jaxnn.data import DataError

DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]
FLOAT64_ROUNDING = 1e-12
FLOAT32_ROUNDING = 1e-5
FLOAT32_ULPS = 4e-7  # three roundings
MEGABYTE = 1 << 20


def idx_bytes(code: int, sizes: list[int], content: bytes) -> bytes:
    """An IDX file put together by hand, sizes unsigned so that impossible ones can be written too."""
    return bytes([0, 0, code, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


@contextmanager
def less_than_a_megabyte():
    """Fails if at any time more memory than that is taken inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTE


# ---------------------------------------------------------------- IDX, sound


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (3, 0, 2), (2, 1, 3), (2, 3, 1, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_idx_round_trip(tmp_path, dtype, shape, suffix):
    bits = np.random.default_rng(0).bytes(np.dtype(dtype).itemsize * int(np.prod(shape)))  # NaNs, extremes, all
    array = np.frombuffer(bits, dtype).reshape(shape)
    data.write_idx(tmp_path / f"a{suffix}", array)
    back = data.read_idx(tmp_path / f"a{suffix}")
    assert same_bits(back, array)
    assert back.flags.writeable
    assert back.dtype.isnative


def test_idx_round_trip_of_anything(tmp_path):
    hypothesis = pytest.importorskip("hypothesis", reason="draws arrays with hypothesis")
    numpy_strategies = pytest.importorskip("hypothesis.extra.numpy")
    shapes = numpy_strategies.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    types = hypothesis.strategies.sampled_from(DTYPES).map(np.dtype)
    arrays = types.flatmap(lambda dtype: numpy_strategies.arrays(dtype, shapes))

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(arrays, hypothesis.strategies.booleans())
    def round_trip(array, packed):
        path = tmp_path / ("a.gz" if packed else "a")
        data.write_idx(path, array)
        assert same_bits(data.read_idx(path), array)

    round_trip()


def test_idx_bytes_are_as_documented(tmp_path):
    data.write_idx(tmp_path / "a", np.array([[1, -2, 258]], np.int16))
    written = (tmp_path / "a").read_bytes()
    assert written == idx_bytes(0x0B, [1, 3], b"\x00\x01\xff\xfe\x01\x02")


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::-1, ::2],
        lambda a: a[0, ::-1],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(">i4"),
        lambda a: jnp.asarray(a),
    ],
)
def test_idx_writes_views_in_their_own_order(tmp_path, view):
    array = view(np.arange(12, dtype=np.int32).reshape(3, 4))
    data.write_idx(tmp_path / "a", array)
    np.testing.assert_array_equal(data.read_idx(tmp_path / "a"), np.asarray(array), strict=False)


def test_gzip_is_seen_from_the_content_not_the_name(tmp_path):
    array = np.arange(5, dtype=np.uint8)
    data.write_idx(tmp_path / "a.gz", array)
    (tmp_path / "packed").write_bytes((tmp_path / "a.gz").read_bytes())
    data.write_idx(tmp_path / "plain", array)
    (tmp_path / "plain.gz").write_bytes((tmp_path / "plain").read_bytes())
    assert same_bits(data.read_idx(tmp_path / "packed"), array)
    assert same_bits(data.read_idx(tmp_path / "plain.gz"), array)


def test_gzip_in_several_members_is_one_file(tmp_path):
    whole = idx_bytes(0x08, [4], b"abcd")
    (tmp_path / "a").write_bytes(gzip.compress(whole[:6]) + gzip.compress(whole[6:]))
    assert data.read_idx(tmp_path / "a").tobytes() == b"abcd"


def test_equal_arrays_make_equal_packed_files(tmp_path):
    for name in ("first.gz", "second.gz"):
        data.write_idx(tmp_path / name, np.arange(100, dtype=np.float32))
    packed = (tmp_path / "first.gz").read_bytes()
    assert packed == (tmp_path / "second.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # the time
    assert not packed[3]  # no flags: no file name


def test_idx_refuses_to_write_what_it_cannot_hold(tmp_path):
    for array in (np.zeros(3, np.int64), np.zeros(3, bool), np.zeros(3, np.float16), np.array(["a"])):
        with pytest.raises(TypeError, match="IDX holds uint8, int8, int16, int32, float32, float64"):
            data.write_idx(tmp_path / "a", array)
    huge = np.broadcast_to(np.uint8(0), (2**31,))  # one byte of memory
    with pytest.raises(ValueError, match="axes of up to 2147483647"):
        data.write_idx(tmp_path / "a", huge)
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------- IDX, damaged

SOUND = idx_bytes(0x0B, [2, 3], b"123456789012")

DAMAGED = {  # file, expected, actual
    "empty": (b"", "at least 4 bytes", "0 bytes"),
    "cut in the magic": (SOUND[:3], "at least 4 bytes", "3 bytes"),
    "cut in the sizes": (SOUND[:9], "8 bytes for the sizes of 2 axes", "5 bytes"),
    "cut in the data": (SOUND[:-1], r"12 bytes of int16\[2, 3\]", "11 bytes"),
    "without data": (SOUND[:12], "12 bytes", "0 bytes"),
    "longer": (SOUND + b"x", "12 bytes", "13 bytes"),
    "a web page": (b"<!doctype html>" + SOUND, "begins 00 00", "3c 21 64 6f"),
    "half a magic": (b"\x00\x01" + SOUND[2:], "begins 00 00", "00 01 0b 02"),
    "little-endian": (b"\x02\x0b\x00\x00" + SOUND[4:], "begins 00 00", "02 0b 00 00"),
    "unknown type": (idx_bytes(0x0A, [1], b"1"), "0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e", "0x0a"),
    "all zeros": (bytes(16), "type code", "0x00"),
    "negative size": (idx_bytes(0x08, [2**32 - 1], b"1"), "sizes from 0 to 2147483647", r"\[-1\]"),
    "two negative sizes": (idx_bytes(0x08, [2**32 - 1] * 2, b"1"), "sizes from 0", r"\[-1, -1\]"),
    "overflowing": (idx_bytes(0x0E, [2**31 - 1] * 3, b"1"), "memory could hold", "2147483647, 2147483647"),
    "overflowing to 0": (idx_bytes(0x08, [2**16] * 4, b""), "memory could hold", "65536"),
    "empty and overflowing": (idx_bytes(0x08, [0] + [2**31 - 1] * 3, b""), "memory could hold", "2147483647"),
    "too many axes": (idx_bytes(0x08, [1] * 65, b"1"), "64 axes", "65 axes"),
    "2³¹ images promised": (
        idx_bytes(0x08, [2**31 - 1, 28, 28], bytes(84)),
        str((2**31 - 1) * 784),
        "84 bytes",
    ),
}


def damaged(path, content: bytes, expected: str, actual: str) -> DataError:
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"expected .*{expected}.*, got .*{actual}") as caught:
        data.read_idx(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert caught.value.expected in str(caught.value)
    assert caught.value.actual in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_idx(tmp_path, name):
    damaged(tmp_path / "a", *DAMAGED[name])


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_idx_packed(tmp_path, name):
    content, expected, actual = DAMAGED[name]
    if name == "2³¹ images promised":
        actual = "packed, at most"  # which is known before anything is unpacked
    damaged(tmp_path / "a.gz", gzip.compress(content), expected, actual)


PACKED = gzip.compress(idx_bytes(0x08, [4000], np.random.default_rng(0).bytes(4000)))

CORRUPT = {
    "only its magic": PACKED[:2],
    "cut in its header": PACKED[:7],
    "cut in its content": PACKED[:2000],
    "cut in its check sum": PACKED[:-6],
    "wrong check sum": PACKED[:-8] + b"\x00\x01\x02\x03" + PACKED[-4:],
    "wrong length": PACKED[:-4] + b"\x00\x00\x00\x01",
    "unknown method": PACKED[:2] + b"\x07" + PACKED[3:],
    "flipped bits": PACKED[:12] + bytes(byte ^ 0xFF for byte in PACKED[12:40]) + PACKED[40:],
    "something after it": PACKED + b"more",
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_gzip(tmp_path, name):
    error = damaged(tmp_path / "a.gz", CORRUPT[name], "an intact gzip file", "a damaged one")
    assert error.__cause__ is not None


def test_every_cut_of_a_file_is_noticed(tmp_path):
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    for name in ("a", "a.gz"):
        data.write_idx(tmp_path / name, array)
        whole = (tmp_path / name).read_bytes()
        for length in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(DataError):
                data.read_idx(tmp_path / name)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_promise_takes_no_memory(tmp_path, pack):
    """100 bytes that promise 2³¹ − 1 images of 28×28, 1.7 TB."""
    content = idx_bytes(0x08, [2**31 - 1, 28, 28], bytes(84))
    assert len(content) == 100
    (tmp_path / "a").write_bytes(pack(content))
    with less_than_a_megabyte(), pytest.raises(DataError, match=f"{(2**31 - 1) * 784} bytes"):
        data.read_idx(tmp_path / "a")


def test_packed_bytes_cannot_stand_for_more_than_so_many(tmp_path, monkeypatch):
    """1,032 bytes to one: what promises more is refused by its header, and nothing behind that is unpacked."""
    content = gzip.compress(idx_bytes(0x08, [MEGABYTE], bytes(MEGABYTE)))
    assert len(content) > MEGABYTE / 1032
    (tmp_path / "zeros").write_bytes(content)
    assert data.read_idx(tmp_path / "zeros").shape == (MEGABYTE,)  # nearly as dense as can be
    for sizes, kind in (([1032 * 1000], 0x08), ([100, 100, 100], 0x0C), ([2**31 - 1], 0x0E)):
        packed = gzip.compress(idx_bytes(kind, sizes, bytes(200_000)))
        assert len(packed) < 1000
        (tmp_path / "a").write_bytes(packed)
        taken, read = [], gzip.GzipFile.read
        monkeypatch.setattr(gzip.GzipFile, "read", lambda file, n=-1: taken.append(n) or read(file, n))
        with pytest.raises(DataError, match=r"got packed, at most \d+ bytes"):
            data.read_idx(tmp_path / "a")
        monkeypatch.undo()
        assert sum(taken) <= 4 + 4 * len(sizes)


def test_a_plain_file_of_another_length_is_not_read(tmp_path):
    for content in (idx_bytes(0x08, [5 * MEGABYTE], bytes(4 * MEGABYTE)), idx_bytes(0x08, [4], bytes(4 * MEGABYTE))):
        (tmp_path / "a").write_bytes(content)
        with less_than_a_megabyte(), pytest.raises(DataError, match=f"got {4 * MEGABYTE} bytes"):
            data.read_idx(tmp_path / "a")


def test_a_packed_file_that_goes_on_is_read_no_further_than_promised(tmp_path):
    """16 MB of zeros behind a header that promises 4 bytes."""
    (tmp_path / "a").write_bytes(gzip.compress(idx_bytes(0x08, [4], bytes(16 * MEGABYTE))))
    with less_than_a_megabyte(), pytest.raises(DataError, match=r"expected 4 bytes .* got at least 5 bytes"):
        data.read_idx(tmp_path / "a")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="no such file") as caught:
        data.read_idx(tmp_path / "a")
    assert caught.value.advice == ""
    data.write_idx(tmp_path / "a.gz", np.zeros(1, np.uint8))
    with pytest.raises(DataError, match=r"no such file; but a\.gz exists"):
        data.read_idx(tmp_path / "a")
    for folder in (tmp_path, ".", ""):
        with pytest.raises(DataError, match="got a folder"):
            data.read_idx(folder)


def test_data_error_is_a_value_error_that_can_be_pickled():
    error = DataError("a/b", "this", "that", "do so")
    assert isinstance(error, ValueError)
    assert str(error) == f"{os.path.join('a', 'b')}: expected this, got that; do so"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.expected, again.actual) == (str(error), error.path, "this", "that")


# ---------------------------------------------------------------- MNIST and digits

HYPHENS = "{part}-images-idx3-ubyte", "{part}-labels-idx1-ubyte"
DOTS = "{part}-images.idx3-ubyte", "{part}-labels.idx1-ubyte"


def write_small_mnist(folder, names=HYPHENS, suffix="", train=6, test=3, side=(4, 5)):
    """A set in MNIST's format: the training and test images and labels that were written."""
    draw = np.random.default_rng(0)
    written = []
    for part, count in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (count, *side)).astype(np.uint8)
        labels = draw.integers(0, 256, count).astype(np.uint8)
        for name, array in zip(names, (images, labels), strict=True):
            data.write_idx(folder / (name.format(part=part) + suffix), array)
        written += [images, labels]
    return written


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("names", [HYPHENS, DOTS])
def test_mnist_names(tmp_path, names, suffix):
    written = write_small_mnist(tmp_path, names, suffix)
    (x, labels), (x_test, labels_test) = data.mnist(str(tmp_path))
    assert x.shape == (6, 4, 5, 1)
    assert x_test.shape == (3, 4, 5, 1)
    for array, dtype in ((x, np.float32), (labels, np.int32), (x_test, np.float32), (labels_test, np.int32)):
        assert type(array) is np.ndarray
        assert array.dtype == dtype
    np.testing.assert_array_equal(x[..., 0], (written[0] / 255).astype(np.float32))  # rounded once, either way
    np.testing.assert_array_equal(labels, written[1])
    np.testing.assert_array_equal(np.rint(x_test[..., 0] * 255), written[2])
    np.testing.assert_array_equal(labels_test, written[3])


def test_mnist_pixels_reach_one_exactly(tmp_path):
    write_small_mnist(tmp_path)
    data.write_idx(tmp_path / "train-images-idx3-ubyte", np.full((6, 4, 5), 255, np.uint8))
    assert (data.mnist(tmp_path)[0][0] == 1).all()


def test_mnist_missing_files_are_all_named(tmp_path):
    write_small_mnist(tmp_path, suffix=".gz")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        data.mnist(tmp_path)
    assert caught.value.path == tmp_path
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        for looked_for in (
            name,
            f"{name}.gz",
            name.replace("-idx", ".idx"),
            name.replace("-idx", ".idx") + ".gz",
        ):
            assert looked_for in caught.value.actual
    assert "train-images" not in str(caught.value)
    assert "give the folder" in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        data.mnist(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_mnist_counts_that_differ(tmp_path, part):
    write_small_mnist(tmp_path)
    data.write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.zeros(5, np.uint8))
    with pytest.raises(DataError, match=r"one label for each of the \d images .*, got 5 labels") as caught:
        data.mnist(tmp_path)
    assert f"{part}-images-idx3-ubyte" in str(caught.value)
    assert f"{part}-labels-idx1-ubyte" in str(caught.value)


def test_mnist_counts_are_compared_before_images_are_read(tmp_path):
    """4 MB of test images are not read when there is a label too few."""
    write_small_mnist(tmp_path, suffix=".gz", test=4, side=(1024, 1024))
    data.write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(3, np.uint8))
    with less_than_a_megabyte(), pytest.raises(DataError, match="of the 4 images"):
        data.mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "expected", "actual"),
    [
        ("train-images-idx3-ubyte", np.zeros((6, 20), np.uint8), r"uint8\[N, H, W\]", r"uint8\[6, 20\]"),
        ("train-images-idx3-ubyte", np.zeros((6, 4, 5), np.float32), r"uint8\[N, H, W\]", "float32"),
        ("t10k-labels-idx1-ubyte", np.zeros((3, 10), np.uint8), r"uint8\[N\]", r"uint8\[3, 10\]"),
        ("t10k-labels-idx1-ubyte", np.zeros(3, np.int32), r"uint8\[N\]", r"int32\[3\]"),
        ("t10k-images-idx3-ubyte", np.zeros((3, 4, 6), np.uint8), r"images of \(4, 5\)", r"\(4, 6\)"),
    ],
)
def test_mnist_with_other_contents(tmp_path, name, array, expected, actual):
    write_small_mnist(tmp_path)
    data.write_idx(tmp_path / name, array)
    with pytest.raises(DataError, match=f"{name}: expected {expected}.*, got .*{actual}"):
        data.mnist(tmp_path)


@needs_mnist
def test_mnist_facts():
    """The numbers that everybody knows it by."""
    (x, labels), (x_test, labels_test) = data.mnist(mnist_folder())
    assert (x.shape, x.dtype, labels.shape, labels.dtype) == (
        (60000, 28, 28, 1),
        np.float32,
        (60000,),
        np.int32,
    )
    assert (x_test.shape, labels_test.shape) == ((10000, 28, 28, 1), (10000,))
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert labels_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (x.min(), x.max()) == (0, 1)
    pixel = data.standardisation(x, axes=(0, 1, 2, 3))
    assert pixel.mean.shape == (28, 28, 1)
    assert np.unique(pixel.mean).round(4) == [np.float32(0.1307)]
    assert np.unique(pixel.std).round(4) == [np.float32(0.3081)]


def test_digits():
    pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
    x, labels = data.digits()
    assert (x.shape, x.dtype, labels.shape, labels.dtype) == ((1797, 8, 8, 1), np.float32, (1797,), np.int32)
    assert (x.min(), x.max()) == (0, 1)
    assert len(np.unique(x)) == 17
    assert labels[:10].tolist() == list(range(10))
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_without_scikit_learn(monkeypatch):
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn"):
        data.digits()


# ---------------------------------------------------------------- split


def rows(count):
    """Examples that tell which they are, and labels of four classes of very different sizes, in order."""
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    labels = np.digitize(np.arange(count), [0.5 * count, 0.8 * count, 0.95 * count]).astype(np.int32)
    return x, labels


def which(part):
    """The numbers of the examples in a part of `rows`."""
    return (part[0][:, 0] / 2).astype(int)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("held_out", [0.2, 1, 0.99, 100, (0.1, 0.2), (7, 0.5, 3), [0.25, 0.25, 0.25]])
@pytest.mark.parametrize("count", [101, 400])
def test_every_example_is_in_exactly_one_part(count, held_out, stratified):
    x, labels = rows(count)
    parts = data.split((x, labels), held_out, key=3, stratify=labels if stratified else None)
    shares = held_out if isinstance(held_out, tuple | list) else [held_out]
    sizes = [share if isinstance(share, int) else round(share * count) for share in shares]
    assert [len(part[0]) for part in parts] == [count - sum(sizes), *sizes]
    assert sorted(np.concatenate([which(part) for part in parts])) == list(range(count))
    for part in parts:
        np.testing.assert_array_equal(part[0], x[which(part)])
        np.testing.assert_array_equal(part[1], labels[which(part)])


def test_split_keeps_every_class_in_proportion():
    x, labels = rows(1000)
    share = np.bincount(labels) / 1000
    for seed in range(20):
        for held_out, slack in ((0.137, 1), ((0.137, 0.3), 2), ((77, 0.2, 0.011), 3)):
            parts = data.split((x, labels), held_out, key=seed, stratify=labels)
            for part in parts:
                ideal = share * len(part[1])
                assert np.abs(np.bincount(part[1], minlength=4) - ideal).max() < slack
    # without stratification chance decides, and goes further than that
    parts = [data.split((x, labels), 0.137, key=seed)[1][1] for seed in range(20)]
    assert max(np.abs(np.bincount(part, minlength=4) - 137 * share).max() for part in parts) > 3


@pytest.mark.parametrize("stratified", [False, True])
def test_every_example_is_as_likely_as_any_other(stratified):
    """Over 1,000 keys each of 20 examples is held out about 0.15 of the time, alone and in pairs with others."""
    draws, held_out = 1000, 3
    labels = np.array([0] * 11 + [1] * 7 + [2] * 2)
    hits = np.zeros((draws, 20))
    for seed, hit in enumerate(hits):
        hit[data.split(np.arange(20), held_out, key=seed, stratify=labels if stratified else None)[1]] = 1
    assert np.abs(hits.mean(0) - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / draws)  # five standard errors
    if not stratified:
        pairs = hits.T @ hits / draws
        expected = 3 / 20 * 2 / 19
        off_diagonal = pairs[~np.eye(20, dtype=bool)]
        assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected * (1 - expected) / draws)


def test_parts_are_shuffled():
    x, labels = rows(400)
    for part in data.split((x, labels), 0.5, key=0, stratify=labels):
        numbers = which(part)
        assert abs(np.corrcoef(numbers, np.arange(200))[0, 1]) < 0.3  # sorted would give 1; chance 0.07
        assert np.bincount(part[1][:100], minlength=4)[0] in range(30, 71)  # about half, were it all or none


def test_same_key_same_split():
    x, labels = rows(100)
    first, again = (which(data.split((x, labels), 0.3, key=5)[1]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for key in (jax.random.key(5), jax.random.PRNGKey(5), np.int64(5)):
        np.testing.assert_array_equal(which(data.split((x, labels), 0.3, key=key)[1]), first)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(which(data.split((x, labels), 0.3, key=5)[1]), first)
    others = [which(data.split((x, labels), 0.3, key=seed)[1]) for seed in range(5)]
    assert len({tuple(other) for other in others}) == 5


def test_same_split_in_another_process():
    program = (
        "import hashlib, numpy as np; from jaxnn import data\n"
        "parts = data.split(np.arange(1000), (0.1, 0.2), key=7, stratify=np.arange(1000) % 3)\n"
        "print(hashlib.sha256(np.concatenate(parts).astype('<i8').tobytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    parts = data.split(np.arange(1000), (0.1, 0.2), key=7, stratify=np.arange(1000) % 3)
    assert ran.stdout.strip() == hashlib.sha256(np.concatenate(parts).astype("<i8").tobytes()).hexdigest()


def test_several_splits_can_be_stacked():
    x, labels = rows(50)
    splits = [data.split((x, labels), 0.2, key=seed, stratify=labels) for seed in range(3)]
    (x_train, _), (x_test, labels_test) = jax.tree.map(lambda *parts: np.stack(parts), *splits)
    assert x_train.shape == (3, 40, 2)
    assert (x_test.shape, labels_test.shape) == ((3, 10, 2), (3, 10))


def test_split_keeps_kind_dtype_and_tree():
    tree = {
        "x": np.zeros((10, 2), np.float16),
        "y": (jnp.zeros((10, 3), jnp.bfloat16), np.arange(10, dtype=np.uint8)),
    }
    with jax.transfer_guard_device_to_host("disallow"):
        train, test = data.split(tree, 0.3, key=0)
    assert jax.tree.structure(train) == jax.tree.structure(test) == jax.tree.structure(tree)
    assert type(test["x"]) is np.ndarray
    assert test["x"].dtype == np.float16
    assert isinstance(test["y"][0], jax.Array)
    assert (test["y"][0].dtype, test["y"][0].shape) == (jnp.bfloat16, (3, 3))
    assert test["y"][1].dtype == np.uint8
    np.testing.assert_array_equal(data.split(jnp.arange(10), 0.3, key=0)[1], data.split(np.arange(10), 0.3, key=0)[1])


def test_split_copies():
    x = np.zeros((10, 2))
    train, test = data.split(x, 0.5, key=0)
    train[:] = 1
    test[:] = 1
    assert not x.any()


@pytest.mark.parametrize(
    ("error", "message", "held_out", "options"),
    [
        (ValueError, "held_out must be above 0 and below 1, got 1.5", 1.5, {}),
        (ValueError, "held_out must be above 0 and below 1, got 1.0", 1.0, {}),
        (ValueError, "held_out must be above 0 and below 1, got 0.0", 0.0, {}),
        (ValueError, "held_out must be above 0 and below 1, got -0.1", -0.1, {}),
        (ValueError, "held_out must be above 0 and below 1, got nan", float("nan"), {}),
        (ValueError, "held_out must be at least 1, got 0", 0, {}),
        (ValueError, "empty part", 0.04, {}),
        (ValueError, "leave nothing of 10 examples", 10, {}),
        (ValueError, "leave nothing of 10 examples", 0.96, {}),
        (ValueError, r"parts of \[5, 5\] leave nothing", (0.5, 5), {}),
        (ValueError, "held_out is empty", (), {}),
        (TypeError, "held_out must be a whole number, got True", True, {}),
        (TypeError, "held_out must be a number, got '0.2'", "0.2", {}),
        (TypeError, "key must be", 0.2, {"key": 0.5}),
        (TypeError, "key must be", 0.2, {"key": None}),
        (ValueError, r"of shape \(10,\), got shape \(9,\)", 0.2, {"stratify": np.zeros(9, int)}),
        (ValueError, r"use labels.argmax\(-1\)", 0.2, {"stratify": np.eye(10)}),
        (ValueError, "got shape", 0.2, {"stratify": True}),
        (TypeError, "integer labels, got float64", 0.2, {"stratify": np.zeros(10)}),
    ],
)
def test_split_refuses(error, message, held_out, options):
    with pytest.raises(error, match=message):
        data.split((np.zeros((10, 2)), np.zeros(10, int)), held_out, **{"key": 0, **options})


def test_split_refuses_data_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"differ in batch size: {'0': 10, '1': 9}"):
        data.split((np.zeros((10, 2)), np.zeros(9)), 0.2, key=0)
    with pytest.raises(TypeError, match="expects arrays, got int at data/0"):
        data.split([1, 2, 3], 1, key=0)
    with pytest.raises(ValueError, match="scalar"):
        data.split(np.float32(1)[...], 1, key=0)
    with pytest.raises(ValueError, match="no arrays"):
        data.split((), 1, key=0)
    with pytest.raises(ValueError, match="leave nothing of 0 examples"):
        data.split(np.zeros((0, 2)), 1, key=0)


# ---------------------------------------------------------------- standardisation


def features(dtype, count=2500):
    """Columns with means and spreads of every size; more rows than are summed at once."""
    draw = np.random.default_rng(0)
    x = draw.normal([0, 5, -1e4, 3e-3], [1, 0.1, 1, 1e-5], (count, 4))
    return x.astype(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, FLOAT64_ROUNDING), (np.float32, FLOAT32_ROUNDING)])
def test_standardisation_against_numpy(dtype, tolerance):
    x = features(dtype)
    scale = data.standardisation(x)
    wide = x.astype(np.longdouble)
    assert scale.mean.dtype == scale.std.dtype == dtype
    np.testing.assert_allclose(scale.mean, wide.mean(0).astype(np.float64), rtol=tolerance)
    np.testing.assert_allclose(scale.std, wide.std(0).astype(np.float64), rtol=tolerance)


def test_standardisation_against_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="an independent StandardScaler")
    x, x_test = features(np.float64)[:2000], features(np.float64)[2000:]
    scaler = preprocessing.StandardScaler().fit(x)
    scale = data.standardisation(x)
    for part in (x, x_test):
        z = data.standardise(scale, part)
        np.testing.assert_allclose(z, scaler.transform(part), rtol=0, atol=1e-10)  # |μ|/σ = 1e4 costs four digits
        np.testing.assert_allclose(data.unstandardise(scale, z), part, rtol=FLOAT64_ROUNDING)


def test_standardised_features_have_mean_zero_and_std_one():
    x = features(np.float64)
    z = data.standardise(data.standardisation(x), x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(z.std(0), 1, rtol=FLOAT64_ROUNDING)


def test_float32_statistics_are_summed_in_float64():
    """Mean 1e4 and spread 1: in float32 in one pass the variance would be off by a factor."""
    draw = np.random.default_rng(1)
    x = (1e4 + draw.normal(size=(20000, 1))).astype(np.float32)
    exact = x.astype(np.float64).std()
    np.testing.assert_allclose(data.standardisation(x).std, exact, rtol=1e-6)
    one_pass = np.sqrt(np.abs((x**2).mean() - x.mean() ** 2))
    assert abs(one_pass / exact - 1) > 0.1  # the trap is there


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e-3])
def test_constant_features_become_zero(dtype, value):
    x = np.full((3001, 1), value).astype(dtype)
    scale = data.standardisation(x)
    assert scale.std.tolist() == [0]
    assert scale.mean[0] == x[0, 0]
    z = data.standardise(scale, x)
    assert z.dtype == x.dtype
    assert not z.any()
    assert (data.unstandardise(scale, z) == x).all()


def test_a_feature_constant_in_training_only_is_centred():
    scale = data.standardisation(np.array([[2.0], [2.0]]))
    assert data.standardise(scale, np.array([[5.0]])).tolist() == [[3.0]]


def test_spread_below_the_smallest_normal_number_counts_as_constant():
    x = np.array([[0.0], [1e-44]], np.float32)  # would be divided by a σ that XLA flushes to 0
    scale = data.standardisation(x)
    assert scale.std.tolist() == [0]
    assert np.isfinite(np.asarray(jax.jit(data.standardise)(scale, jnp.asarray(x)))).all()


@pytest.mark.parametrize("axes", [(0,), (0, 1), (0, 1, 2), (2, 0, 1), (0, 3), (0, 1, 2, 3)])
def test_standardisation_over_further_axes(axes):
    x = np.random.default_rng(0).normal(3, 2, (1500, 2, 3, 2))
    scale = data.standardisation(x, axes=axes)
    assert scale.mean.shape == scale.std.shape == (2, 3, 2)
    shape = (1, 2, 3, 2)
    np.testing.assert_allclose(scale.mean[None], np.broadcast_to(x.mean(axes, keepdims=True), shape), rtol=1e-12)
    np.testing.assert_allclose(scale.std[None], np.broadcast_to(x.std(axes, keepdims=True), shape), rtol=1e-12)
    np.testing.assert_allclose(data.standardise(scale, x).std(axes), 1, rtol=FLOAT64_ROUNDING)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_whole_numbers_become_float32(dtype):
    x = np.array([[1, 0], [0, 0], [1, 1]]).astype(dtype)
    scale = data.standardisation(x)
    assert scale.mean.dtype == np.float32
    z = data.standardise(scale, x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.std(0), 1, rtol=FLOAT32_ROUNDING)


def test_standardise_gives_what_it_gets():
    x = features(np.float32, 50)
    scale = data.standardisation(jnp.asarray(x))
    assert type(data.standardise(scale, x)) is np.ndarray
    ours = data.standardise(scale, jnp.asarray(x))
    assert isinstance(ours, jax.Array)
    assert ours.dtype == jnp.float32
    under_jit = jax.jit(data.standardise)(scale, jnp.asarray(x))
    for theirs in (ours, under_jit):  # x − μ is the same everywhere; XLA may divide by way of the reciprocal
        np.testing.assert_allclose(theirs, data.standardise(scale, x), rtol=FLOAT32_ULPS)
    wide = data.standardisation(x.astype(np.float64))
    assert data.standardise(wide, x).dtype == np.float32  # x's own type


def test_targets_without_a_feature_axis():
    y = np.array([10.0, 20.0, 60.0])
    scale = data.standardisation(y)
    assert (scale.mean.shape, scale.std.shape) == ((), ())
    np.testing.assert_allclose(data.unstandardise(scale, data.standardise(scale, y)), y, rtol=1e-15)
    with pytest.raises(ValueError, match=r"unstandardise expects \[N\] .*, got shape \(3, 1\)"):
        data.unstandardise(scale, y[:, None])
    with pytest.raises(ValueError, match=r"expects \[N, 1\] .*, got shape \(3, 4\)"):
        data.standardise(data.standardisation(y[:, None]), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"expects \[N\] .*, got shape \(\)"):
        data.standardise(scale, 3.0)


def test_standardisation_refuses():
    x = np.ones((5, 3))
    x[3, 1], x[4, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 values that are not finite, the first at \(3, 1\)"):
        data.standardisation(x)
    with pytest.raises(ValueError, match="needs examples"):
        data.standardisation(np.ones((0, 3)))
    for axes in ((), (1,), (0, 0), (0, 2), (0, -1)):
        with pytest.raises(ValueError, match="axes must hold 0"):
            data.standardisation(np.ones((5, 3)), axes=axes)
    with pytest.raises(ValueError, match="axes must hold 0"):
        data.standardisation(np.float64(1))
    for other in (np.ones((2, 2), complex), np.array([["a"]])):
        with pytest.raises(TypeError, match="real numbers"):
            data.standardisation(other)


# ---------------------------------------------------------------- one-hot


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("labels_dtype", [np.uint8, np.int32, np.int64])
def test_one_hot(labels_dtype, dtype):
    labels = np.array([[2, 0, 1], [1, 1, 2]], labels_dtype)
    ours = data.one_hot(labels, 3, dtype)
    assert type(ours) is np.ndarray
    assert (ours.shape, ours.dtype) == ((2, 3, 3), dtype)
    np.testing.assert_array_equal(ours.astype(np.float64), np.eye(3)[labels])
    np.testing.assert_array_equal(data.one_hot(jnp.asarray(labels, jnp.int32), 3), np.eye(3)[labels])


def test_one_hot_of_nothing():
    assert data.one_hot(np.zeros(0, int), 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("error", "message", "labels", "classes"),
    [
        (ValueError, r"labels from 0 to 2, got 2 others, the first 3 at \(1,\)$", np.array([0, 3, 7]), 3),
        (ValueError, r"the first -1 at \(0, 1\)$", np.array([[0, -1]]), 3),
        (ValueError, "seem to count from 1: give labels - 1", np.array([1, 2, 3]), 3),
        (TypeError, r"integer labels, got float64\[2\]", np.array([0.0, 1.0]), 2),
        (TypeError, "integer labels, got bool", np.array([True, False]), 2),
        (ValueError, "classes must be at least 1, got 0", np.array([0]), 0),
        (TypeError, "classes must be a whole number, got 2.0", np.array([0]), 2.0),
    ],
)
def test_one_hot_refuses(error, message, labels, classes):
    with pytest.raises(error, match=message):
        data.one_hot(labels, classes)
