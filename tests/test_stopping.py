"""Stopping: the same answer in a Python loop, inside scan and under vmap, as plain Python's, and resumed half-way."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.stopping import early_stopping, keep_best, reduce_on_plateau


def reference(metrics, patience, least, relative, maximise, factor, cooldown, lowest=0.0):
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
                waited, cooling, scale = 0, cooldown, max(scale * np.float32(factor), np.float32(lowest))
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


MACHINES = {  # what is asked of the machine, and of the reference
    "stop": (early_stopping(3), (3, 0.0, False, False, None, 0)),
    "stop, relative, maximise": (
        early_stopping(2, min_improvement=0.5, relative=True, maximise=True),
        (2, 0.5, True, True, None, 0),
    ),
    "plateau": (reduce_on_plateau(0.5, patience=1, min_improvement=0.25), (1, 0.25, False, False, 0.5, 0)),
    "plateau, cooldown, at least": (
        reduce_on_plateau(0.1, patience=1, cooldown=2, min_scale=0.05),
        (1, 0.0, False, False, 0.1, 2, 0.05),
    ),
    "plateau, relative, maximise, at least": (
        reduce_on_plateau(
            0.7, patience=2, min_improvement=0.125, relative=True, maximise=True, cooldown=1, min_scale=0.3
        ),
        (2, 0.125, True, True, 0.7, 1, 0.3),
    ),
}
ROWS, TIMES = 4, 12


@pytest.mark.parametrize("name", MACHINES)
def test_any_metrics_under_scan_and_vmap(name):
    """What hypothesis finds: ties, signs, scales from 1e-6 to 1e7, NaN and infinities in any order."""
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis draws the inputs here")
    st = hypothesis.strategies
    monitor, rule = MACHINES[name]
    number = st.builds(
        lambda k, e: k * 2.0**e, st.integers(-8, 8), st.integers(-20, 20)
    )  # differences are no denormals
    metric = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, -0.5, math.nan, math.inf, -math.inf]), number)
    rows = st.lists(st.lists(metric, min_size=TIMES, max_size=TIMES), min_size=ROWS, max_size=ROWS)
    run = jax.jit(jax.vmap(lambda row: jax.lax.scan(monitor.update, monitor.init(), row)[1]))

    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
    @hypothesis.given(rows)
    def holds(rows):
        decisions = run(np.float32(rows))
        for i, row in enumerate(rows):
            for ours, theirs in zip(decisions, zip(*reference(row, *rule), strict=True), strict=True):
                np.testing.assert_array_equal(ours[i], theirs)
        scales, lowest = np.asarray(decisions.scale), rule[6] if len(rule) > 6 else 0.0
        assert (np.diff(scales, axis=1) <= 0).all()
        assert (scales >= np.float32(lowest)).all()
        assert (np.diff(np.asarray(decisions.stop).astype(int), axis=1) >= 0).all()  # once stopped, always

    holds()


def test_the_scale_ends_at_its_least():
    monitor = reduce_on_plateau(0.1, patience=1, min_scale=0.02)
    scales = jax.lax.scan(monitor.update, monitor.init(), jnp.ones(6))[1].scale
    np.testing.assert_array_equal(scales, np.float32([1, 0.1, 0.02, 0.02, 0.02, 0.02]))
    np.testing.assert_array_equal(
        jax.lax.scan(reduce_on_plateau(0.1, patience=1, min_scale=1.0).update, monitor.init(), jnp.ones(3))[1].scale,
        np.ones(3),
    )


@pytest.mark.parametrize("maximise", [False, True])
def test_the_best_of_any_metrics(maximise):
    """The parameters kept are those of NumPy's first best finite metric, and the start's where there is none."""
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis draws the inputs here")
    st = hypothesis.strategies
    keeper = keep_best(maximise)
    metric = st.one_of(st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(-5, 5).map(float))
    rows = st.lists(st.lists(metric, min_size=TIMES, max_size=TIMES), min_size=ROWS, max_size=ROWS)

    @jax.jit
    @jax.vmap
    def run(row):
        step = lambda best, given: keeper.update(best, given[0], {"w": jnp.full(2, given[1])})
        return jax.lax.scan(step, keeper.init({"w": jnp.full(2, -1.0)}), (row, jnp.arange(float(TIMES))))

    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
    @hypothesis.given(rows)
    def holds(rows):
        best, improved = run(np.float32(rows))
        for i, row in enumerate(rows):
            finite = [m if math.isfinite(m) else None for m in row]
            known = [m for m in finite if m is not None]
            value = (max if maximise else min)(known) if known else (-math.inf if maximise else math.inf)
            place = finite.index(value) if known else -1
            np.testing.assert_array_equal(best.kept["w"][i], [place, place])
            assert best.metric[i] == value
            assert np.flatnonzero(improved[i])[-1:].tolist() == ([place] if known else [])

    holds()


def test_the_best_survives_donation():
    keeper, params = keep_best(), {"w": jnp.arange(3.0)}
    best, _ = keeper.update(keeper.init(params), jnp.float32(1.0), params)
    jax.jit(lambda p: jax.tree.map(lambda leaf: leaf + 1, p), donate_argnums=0)(params)  # params is gone
    np.testing.assert_array_equal(best.kept["w"], [0, 1, 2])


def test_keep_best():
    keeper = keep_best()
    best = keeper.init(jnp.zeros(2))
    rows = [(math.nan, 1.0), (2.0, 2.0), (2.0, 3.0), (-1.0, 4.0), (-math.inf, 5.0), (0.0, 6.0)]
    for metric, value in rows:
        best, _ = keeper.update(best, metric, jnp.full(2, value))
    np.testing.assert_array_equal(best.kept, [4, 4])
    assert best.metric == -1


def test_what_is_refused():
    with pytest.raises(ValueError, match="early_stopping: patience must be at least 1"):
        early_stopping(0)
    with pytest.raises(ValueError, match="reduce_on_plateau: factor"):
        reduce_on_plateau(1.0)
    assert early_stopping(3) == early_stopping(patience=3, min_improvement=0.0)
