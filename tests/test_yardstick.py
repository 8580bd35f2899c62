"""The yardstick: what it measures is the same each time, and what it must notice it notices."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import yardstick

ROW = {"hash": "a", "flops": 10.0, "temporary": 5.0, "trace": 1.0, "lower": 1.0, "compile": 1.0}


def found(**changes):
    return {
        ("dense + adam", "by hand", side): {**ROW, **(changes if side == "here" else {})} for side in ("here", "then")
    }


def keep(folder, side, w, program):
    out = folder / "dense + adam, by hand" / side
    out.mkdir(parents=True)
    np.savez(out / "parameters.npz", w)
    for name in ("lowered.txt", "compiled.txt"):
        (out / name).write_text(program)


def test_eight_networks_by_both_gradients():
    assert len(yardstick.SUBJECTS) == 8
    assert len(yardstick.GRADIENTS) == 2


def test_the_same_row_twice(tmp_path):
    one, two = (yardstick.measure("dense + adam", "by hand", str(tmp_path / side)) for side in "ab")
    assert one["hash"] == two["hash"]
    assert one["flops"] == two["flops"] > 1e6
    assert (tmp_path / "a" / "lowered.txt").read_text() == (tmp_path / "b" / "lowered.txt").read_text()
    assert "metadata" not in (tmp_path / "a" / "compiled.txt").read_text()


def test_a_hash_is_that_of_every_bit():
    a, b = np.zeros(3, np.float32), np.zeros(3, np.float32)
    assert yardstick._hash([a]) == yardstick._hash([b])
    b[1] = 1e-30
    assert len({yardstick._hash(leaves) for leaves in ([a], [b], [a[None]], [a.astype(np.float64)])}) == 4


@pytest.mark.parametrize(
    ("changes", "fine", "said"),
    [
        ({}, True, "hashes equal: 1 of 1"),
        ({"compile": 9.0}, True, "compile, here over there: median 9.00"),
        ({"flops": 11.0}, False, "flops, here over there: MORE in dense + adam, by hand 1.1000"),
        ({"flops": 9.0}, True, "flops, here over there: not more in any"),
        ({"temporary": 6.0}, False, "MORE in dense + adam, by hand 1.2000"),
        ({"hash": "b"}, False, "parameters differ by 5.0e-01 of their largest"),
    ],
)
def test_verdict(changes, fine, said, capsys, tmp_path):
    keep(tmp_path, "here", np.array([1.0, 3.0]), "mul\nadd")
    keep(tmp_path, "then", np.array([1.0, 2.0]), "mul\nsub")
    assert yardstick.verdict(found(**changes), "here", "then", tmp_path) is fine
    printed = capsys.readouterr().out
    assert said in printed
    assert ("+add" in printed) == ("hash" in changes)
