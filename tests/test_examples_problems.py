"""The examples that solve a problem each, run with small presets: XOR, the linear collapse, robust regression."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from examples_loader import load_example

pytest.importorskip("matplotlib", reason="these examples draw a picture")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(PNG_MAGIC)


# ---------------------------------------------------------------- XOR

LEVEL_TOLERANCE = 0.01  # the levels are limits, reached as the weights grow; they are at least 0.13 apart
SOLVED = 0.05


@pytest.fixture(scope="module")
def xor(tmp_path_factory):
    """The whole example, 100 seeds of three networks, and the picture it made."""
    example, out = load_example("xor"), tmp_path_factory.mktemp("xor") / "a new folder"
    trained = example.main(seeds=100, out=out)
    levels = np.array([float(level) for level in example.LEVELS.values()])
    return {hidden: (np.asarray(loss), np.asarray(right)) for hidden, (_, loss, right) in trained.items()}, levels, out


@pytest.mark.long
def test_xor_is_beyond_a_single_layer(xor):
    trained, _, _ = xor
    losses, right = trained["no"]
    assert losses.shape == (100,)
    assert (losses >= np.log(2) - 1e-6).all()  # nothing a straight line answers is better than ½
    assert (losses < np.log(2) + 1e-3).all()
    assert not right.any()


@pytest.mark.long
def test_xor_is_solved_by_eight_hidden_units_from_every_seed(xor):
    trained, _, _ = xor
    losses, right = trained["8"]
    assert losses.shape == (100,)
    assert (losses < SOLVED).all()
    assert right.all()


@pytest.mark.long
def test_xor_with_two_hidden_units_ends_on_a_handful_of_levels(xor):
    trained, levels, _ = xor
    losses, right = trained["2"]
    away = abs(losses[:, None] - levels)
    counts = np.bincount(away.argmin(1), minlength=4)  # in the order of LEVELS: from log 2 down to 0
    assert 25 <= right.sum() <= 75
    assert ((losses < SOLVED) == right).all()
    assert (away.min(1) < LEVEL_TOLERANCE).sum() >= 98
    assert (counts[1:] > 0).all()


@pytest.mark.long
def test_the_levels_of_xor_are_the_best_losses_of_patterns_that_share_one_answer(xor):
    """Derived once more: patterns with one answer p cost least at p = the mean of their targets; the rest cost 0."""
    _, levels, _ = xor

    def lumped(targets: list[int]) -> float:
        p = np.linspace(0.001, 0.999, 99_801)
        return min(sum(-np.log(p) if t else -np.log(1 - p) for t in targets)) / 4

    assert levels == pytest.approx([lumped([0, 1, 1, 0]), lumped([1, 1, 0]), lumped([1, 0]), 0.0], abs=1e-6)


@pytest.mark.long
def test_xor_is_drawn(xor):
    _, _, out = xor
    assert is_picture(out / "xor.png")


# ---------------------------------------------------------------- the linear collapse

ROUNDING = 1e-5  # of float32, over three products with sums of 32 numbers of about 1


@pytest.mark.long
def test_a_linear_network_is_one_matrix_and_no_better_than_least_squares(tmp_path):
    errors, difference = load_example("linear_collapse").main(epochs=250, out=tmp_path)
    linear, tanh, best = (errors[name] for name in ("3 layers, identity", "3 layers, tanh", "least squares"))
    assert difference < ROUNDING
    assert linear > best * (1 - ROUNDING)
    assert linear < best * 1.001
    assert tanh < best / 10
    assert is_picture(tmp_path / "linear_collapse.png")


def test_the_collapse_holds_for_any_weights():
    rng = np.random.default_rng(0)
    sizes = (2, 5, 4, 3)
    params = {
        f"dense_{i}": {"w": rng.normal(size=(n, m)), "b": rng.normal(size=m)}
        for i, (n, m) in enumerate(itertools.pairwise(sizes))
    }
    x = rng.normal(size=(7, 2))
    W, b = load_example("linear_collapse").collapse(params)
    h = x
    for layer in params.values():
        h = h @ layer["w"] + layer["b"]
    np.testing.assert_allclose(x @ W + b, h, rtol=1e-12)


# ---------------------------------------------------------------- regression


@pytest.mark.long
def test_outliers_mislead_the_squared_error_and_no_other(tmp_path, capsys):
    errors = load_example("regression").main(seed=0, out=tmp_path)
    cases = list(dict.fromkeys(case for case, _ in errors))
    names = list(dict.fromkeys(name for _, name in errors))
    assert cases == ["clean", "5 % outliers"]
    assert len(names) == 3

    mse, mae, huber = (errors["5 % outliers", name] for name in names)
    assert mse > 0.1  # 5 % of measurements 3 too high shift the mean by 0.15
    assert mae < mse / 2
    assert huber < mse / 2
    assert max(mae, huber, *(errors["clean", name] for name in names)) < 0.1  # below the noise
    table = capsys.readouterr().out
    assert all(f"{error:.3f}" in table for error in errors.values())
    assert is_picture(tmp_path / "regression.png")


# ---------------------------------------------------------------- wrong labels


@pytest.mark.long
def test_wrong_labels_are_found_and_the_effect_of_leaving_examples_out_is_predicted(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="holds the digits")
    found, by_loss, correlation = load_example("wrong_labels").main(out=tmp_path / "new")
    assert found >= 15  # 16 of 20; 0.4 would be by chance
    assert by_loss >= 15  # 17: the metagradient finds no more of them than the loss does, but says what they do
    assert correlation >= 0.95  # 0.973
    printed = capsys.readouterr().out
    assert f"{found} have a wrong label: precision and recall {found / 20:.2f}" in printed
    assert printed.splitlines()[-1] == f"predicted and true change of 100 trainings: rank correlation {correlation:.3f}"
    assert is_picture(tmp_path / "new" / "wrong_labels.png")
