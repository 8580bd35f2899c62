"""The examples on what deep networks suffer from and what helps, run with small presets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import mnist_folder, needs_mnist
from examples_loader import load_example

pytestmark = pytest.mark.long  # each of them trains
pytest.importorskip("matplotlib", reason="these examples draw a picture")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
CHANCE = 0.1  # accuracy of a guess among ten digits


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(PNG_MAGIC)


def only(monkeypatch, example, name, *keys):
    """Keeps those entries of a table of the example's."""
    table = getattr(example, name)
    monkeypatch.setattr(example, name, {key: table[key] for key in keys})


# ---------------------------------------------------------------- vanishing and exploding


def test_what_keeps_the_scale_of_δ_and_what_does_not(tmp_path):
    pytest.importorskip("sklearn", reason="holds the digits")
    example, depth = load_example("vanishing"), 8
    table = example.main(depths=(depth,), out=tmp_path / "new")
    verdicts = {key: verdict for key, (verdict, _) in table.items()}
    deltas = {key: np.array(found) for key, (_, found) in table.items()}
    ends = {key: found[0] / found[-1] for key, found in deltas.items()}
    ill = {("sigmoid", depth): "vanishing", ("relu, N(0, 1)", depth): "exploding", ("relu, LeCun", 50): "vanishing"}
    every = [(name, depth) for name in example.RECIPES] + [(name, 50) for name in example.KEEPERS]
    assert verdicts == {key: ill.get(key, "healthy") for key in every}
    assert all(len(found) == layers + 1 for (_, layers), found in deltas.items())

    factors = deltas["sigmoid", depth][:-1] / deltas["sigmoid", depth][1:]
    assert (factors < 0.3).all()  # σ′ ≤ 1/4, and W keeps the size of δ but for chance
    assert 0.2 < np.prod(factors) ** (1 / depth) < 0.25
    assert 0.2 < ends["sigmoid, batch norm", depth] < 2
    assert 0.2 < ends["tanh", depth] < 1
    assert ends["relu", depth] == pytest.approx(2 ** (-depth / 2), rel=0.5)  # 1/√2 a layer
    assert 0.5 < ends["relu, He", depth] < 2
    growth = (deltas["relu, N(0, 1)", depth][0] / deltas["relu, N(0, 1)", depth][-2]) ** (1 / (depth - 1))
    assert growth == pytest.approx(np.sqrt(30 / 2), rel=0.2)  # 30 weights of variance 1, half of the units silent
    for name in ("relu, He", "relu, orthogonal·√2"):
        hidden = deltas[name, 50][:-1]
        assert hidden.max() < 4 * hidden.min()  # at a factor of 1/√2 a layer it would be 2e7
    assert ends["relu, LeCun", 50] == pytest.approx(2**-25, rel=0.9)
    assert is_picture(tmp_path / "new" / "vanishing.png")


# ---------------------------------------------------------------- depth


def test_batch_norm_trains_what_small_weights_leave_at_chance(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="holds the digits")
    accuracies = load_example("depth").main(out=tmp_path / "new")
    assert set(accuracies) == {(norm, optimizer) for norm in (False, True) for optimizer in ("SGD", "Adam")}
    for optimizer in ("SGD", "Adam"):
        assert accuracies[False, optimizer].shape == (3,)
        assert accuracies[False, optimizer].max() < CHANCE + 0.05
    assert accuracies[True, "SGD"].min() > 0.5
    assert accuracies[True, "Adam"].mean() >= 0.95
    assert is_picture(tmp_path / "new" / "depth.png")
    assert len(capsys.readouterr().out.splitlines()) == 4


# ---------------------------------------------------------------- overfitting


@needs_mnist
def test_more_data_closes_the_gap(tmp_path):
    errors = load_example("more_data").main(mnist_folder(), steps=300, seeds=2, sizes=(100, 1500), out=tmp_path / "new")
    (few, some), (few_test, some_test) = np.stack([errors[100], errors[1500]]).mean(axis=1).T
    assert few == 0  # by heart
    assert some < some_test < few_test
    assert is_picture(tmp_path / "new" / "more_data.png")


@needs_mnist
def test_remedies_are_compared_seed_by_seed(tmp_path, monkeypatch, capsys):
    example = load_example("overfitting")
    only(monkeypatch, example, "REMEDIES", "nothing", "dropout")
    example.REMEDIES["dropout"] = [{"drop": (0.9, 0.9)}, {"drop": (0.1, 0.3)}]
    found = example.main(mnist_folder(), epochs=15, out=tmp_path / "new", images=100, seeds=2)
    assert list(found) == ["nothing", "dropout"]
    accuracies = {name: test[:, 1] for name, (*_, test) in found.items()}
    assert all(test.shape == (2,) and 30 < test.min() < test.max() < 90 for test in accuracies.values())
    rows = capsys.readouterr().out.splitlines()
    assert "+0.00 ± 0.00" in rows[1]
    gain = accuracies["dropout"] - accuracies["nothing"]
    assert f"{gain.mean():+.2f} ± {gain.std(ddof=1):.2f}" in rows[2]
    assert rows[2].endswith("drop (0.1, 0.3)")  # the other one learns nothing
    assert is_picture(tmp_path / "new" / "overfitting.png")


@needs_mnist
def test_the_best_epoch_is_that_of_a_loop_in_python():
    example = load_example("overfitting")
    (x, labels), test = example.jaxnn.data.mnist(mnist_folder())
    parts = [(x[rows][None], labels[rows][None]) for rows in (slice(0, 100), slice(100, 200))]
    test = test[0][:100], test[1][:100]
    losses, best, *_ = example.train(parts, test, epochs=60, stop=True)
    monitor = example.jaxnn.stopping.early_stopping(patience=10)
    curve = losses[0, :, 1]
    state, stop = monitor.init(), len(losses[0])
    for epoch, loss in enumerate(curve):
        state, decision = monitor.update(state, loss)
        if decision.stop:
            stop = epoch
            break
    assert best.tolist() == [1 + int(curve[:stop].argmin())]
    assert 1 < best[0] < 60


def test_a_large_network_finds_the_noise_and_a_penalty_the_curve(tmp_path):
    distances = load_example("curve_fitting").main(steps=6_000, out=tmp_path / "new")
    (small, small_curve), (large, large_curve), (held, held_curve) = distances.values()
    assert large < held < small
    assert held_curve < large_curve / 2
    assert held_curve < small_curve / 2
    assert is_picture(tmp_path / "new" / "curve_fitting.png")


# ---------------------------------------------------------------- rates and schedules


def test_rates_too_small_right_and_too_large_and_schedules_that_beat_every_one(tmp_path):
    pytest.importorskip("sklearn", reason="holds the digits")
    example = load_example("learning_rate")
    errors = example.main(out=tmp_path / "new")
    assert list(errors) == ["constant", "cosine", "warm-up, cosine"]
    assert all(error.shape == (5, len(example.RATES)) for both in errors.values() for error in both)
    constant = errors["constant"][1].mean(axis=0)
    assert constant.argmin() not in (0, len(constant) - 1)
    assert constant[0] > 2 * constant.min()
    for name in ("cosine", "warm-up, cosine"):
        validation, test = errors[name]
        assert test.mean(axis=0)[validation.mean(axis=0).argmin()] < constant.min(), name
    assert is_picture(tmp_path / "new" / "learning_rate.png")


# ---------------------------------------------------------------- MNIST with augmentation


@needs_mnist
def test_mnist_99(tmp_path, monkeypatch, capsys):
    example, jaxnn = load_example("mnist_99"), load_example("mnist_99").jaxnn
    monkeypatch.setattr(example, "NET", jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([64, 10])))
    score = example.main(mnist_folder(), epochs=3, out=tmp_path / "new", images=7_000)
    assert score["accuracy"] > 0.5  # 47 steps
    assert capsys.readouterr().out.splitlines()[-1] == f"test accuracy: {100 * score['accuracy']:.2f} %"
    assert is_picture(tmp_path / "new" / "mnist_99.png")
