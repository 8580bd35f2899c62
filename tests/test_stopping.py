"""Stopping: the same answer in a Python loop, inside scan and under vmap, as plain Python's, and resumed half-way."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.stopping import early_stopping, keep_best, reduce_on_plateau


def reference(metrics, patience, least, relative, maximise, factor, cooldown):
    best, waited, cooling, scale, stopped, out = None, 0, 0, np.float32(1), False, []
    for m in metrics:
        failed, improved = not math.isfinite(m), False
        if not stopped:
            gain = None if best is None else np.float32(m) - best if maximise else best - np.float32(m)
            needed = None if best is None else np.float32(least) * (abs(best) if relative else np.float32(1))
            improved = not failed and (best is None or bool(gain > needed))
            best = np.float32(m) if improved else best
            waited = 0 if improved or cooling else waited + 1
            cooling = max(cooling - 1, 0)
            if factor is None:
                stopped = failed or waited >= patience
            elif waited >= patience:
                waited, cooling, scale = 0, cooldown, scale * np.float32(factor)
        out.append((stopped, scale, improved, failed))
    return out


@pytest.mark.parametrize("factor", [None, 0.5])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("maximise", [False, True])
def test_every_way_of_running_gives_the_reference(factor, relative, maximise):
    rule = {"patience": 2, "min_improvement": 0.25, "relative": relative, "maximise": maximise}
    monitor = early_stopping(**rule) if factor is None else reduce_on_plateau(factor, cooldown=2, **rule)
    metrics = (np.random.default_rng(0).integers(-8, 8, (40, 12)) / 4).astype(np.float32)
    metrics[3::4, 5], metrics[2::8, 0] = math.nan, math.inf
    run = lambda state, row: jax.lax.scan(monitor.update, state, row)
    start = lambda: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (40, *leaf.shape)), monitor.init())
    together = jax.jit(jax.vmap(run))
    state, decisions = together(start(), metrics)
    for i, row in enumerate(metrics):
        expected = reference(row.tolist(), 2, 0.25, relative, maximise, factor, 2)
        for ours, theirs in zip(decisions, zip(*expected, strict=True), strict=True):
            np.testing.assert_array_equal(ours[i], theirs)
    looped = monitor.init()
    for t, metric in enumerate(metrics[0]):
        looped, decision = monitor.update(looped, metric)
        assert all(np.array_equal(a, b[0, t]) for a, b in zip(decision, decisions, strict=True))
    half, _ = together(start(), metrics[:, :6])
    resumed, _ = together(jax.tree.map(np.asarray, half), metrics[:, 6:])
    assert all(np.array_equal(a, b) for a, b in zip(resumed, state, strict=True))


def test_keep_best():
    keeper = keep_best()
    best = keeper.init(jnp.zeros(2))
    rows = [(math.nan, 1.0), (2.0, 2.0), (2.0, 3.0), (-1.0, 4.0), (-math.inf, 5.0), (0.0, 6.0)]
    for metric, value in rows:
        best, _ = keeper.update(best, metric, jnp.full(2, value))
    np.testing.assert_array_equal(best.params, [4, 4])
    assert best.metric == -1


def test_what_is_refused():
    with pytest.raises(ValueError, match="early_stopping: patience must be at least 1"):
        early_stopping(0)
    with pytest.raises(ValueError, match="reduce_on_plateau: factor"):
        reduce_on_plateau(1.0)
    assert early_stopping(3) is early_stopping(patience=3, min_improvement=0.0)
