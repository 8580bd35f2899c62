"""Entries that do not count: weights of steps and pixels, masks, labels to ignore, beside means written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn
from laws import FLOAT32, FLOAT64, close, evaluated

import jaxnn
from jaxnn import (
    Loss,
    Sequences,
    autodiff,
    backprop,
    bidirectional,
    dense,
    dropout,
    evaluate,
    fit,
    gradcheck,
    gru,
    identity,
    layer_norm,
    losses,
    lstm,
    metrics,
    rnn,
    serial,
    sgd,
    softmax,
    tanh,
    train_epoch,
    train_step,
)

N, T, D, K = 4, 5, 3, 4
RNG = np.random.default_rng(0)
MASK = np.arange(T) < np.array([5, 2, 0, 3])[:, None]  # of the third nothing counts
WEIGHTS = np.where(MASK, RNG.uniform(0.5, 3, (N, T)), 0)
LABELS = RNG.integers(0, K, (N, T))
IGNORED = np.where(MASK, LABELS, -100)
SCORES = RNG.normal(size=(N, T, K))
OUTPUT = serial(identity)  # a network whose output is its input, and whose δ is the loss's
GRADIENTS = {"by hand": backprop, "by jax.grad": autodiff}
BOTH = pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)


def log_softmax(z):
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def ignoring(z, labels, weights=None):
    """Cross-entropy as torch has it with ignore_index=−100, a loop over entries: its value, and its δ with Σw."""
    w = np.ones(labels.shape) if weights is None else weights
    log_p, value, total, delta = log_softmax(z), 0.0, 0.0, np.zeros_like(z)
    for place in np.ndindex(*labels.shape):
        if labels[place] != -100:
            value -= w[place] * log_p[place][labels[place]]
            total += w[place]
            delta[place] = w[place] * (np.exp(log_p[place]) - np.eye(z.shape[-1])[labels[place]])
    return value / total, delta / total, total


def at_output(gradient, loss, prediction, target, weights=None):
    """Loss, δ and Σwₙ of a prediction, in float64."""

    def run(prediction, target, weights):
        out = gradient(OUTPUT, loss, read=("deltas",))({}, (), prediction, target, weights=weights)
        delta = out.readings["deltas"]["identity_0"]
        return out.loss, delta.values if isinstance(delta, Sequences) else delta, out.weight

    with jax.enable_x64(True):
        return [np.asarray(part) for part in evaluated(run)(prediction, target, weights)]


# ---------------------------------------------------------------- value and δ


FORMS = {
    "a mask of x": (Sequences(SCORES, MASK), IGNORED, None),
    "a mask of the target": (SCORES, Sequences(IGNORED, MASK), None),
    "two masks": (Sequences(SCORES, MASK | (LABELS == 1)), Sequences(IGNORED, MASK), None),
    "weights": (SCORES, IGNORED, MASK),
    "weights beside a mask": (Sequences(SCORES, MASK), IGNORED, np.ones((N, T))),
    "examples' weights beside a mask": (Sequences(SCORES, MASK), IGNORED, np.full(N, 2)),
    "one-hot rows": (Sequences(SCORES, MASK), np.eye(K)[LABELS] / MASK[..., None].clip(1e-300), None),
}


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_ragged_sequences_are_as_with_ignore_index(gradient, form):
    prediction, target, weights = FORMS[form]
    value, delta, weight = at_output(gradient, losses.softmax_cross_entropy, prediction, target, weights)
    expected, slope, total = ignoring(SCORES, IGNORED)
    scale = 2 if form.startswith("examples") else 1
    close(value, expected, FLOAT64, form)
    close(weight, scale * total / T, FLOAT64, form)
    close(delta, slope * scale * total / T, FLOAT64, form)  # ∂(Σ wₙCₙ)/∂z


@BOTH
def test_images_are_as_with_ignore_index_and_weights_of_classes(gradient):
    z, labels = RNG.normal(size=(2, 3, 4, K)), RNG.integers(0, K, (2, 3, 4))
    labels[0, 1] = labels[1, :, 2] = -100
    z[0, 1, 0] = np.nan
    of_class = np.array([1.0, 0.5, 3.0, 2.0])
    weights = np.where(labels < 0, 0, of_class[labels.clip(0)])
    value, delta, weight = at_output(gradient, losses.softmax_cross_entropy, z, labels, weights)
    expected, slope, total = ignoring(z, labels, weights)
    close(value, expected, FLOAT64, "loss")
    close(delta, slope * total / 12, FLOAT64, "δ")
    close(weight, total / 12, FLOAT64, "Σw")


SIGNS = np.sign(RNG.normal(size=(N, T, D)))
EACH = {  # loss -> prediction, target
    losses.mse: (SCORES[..., :D], SIGNS),
    losses.mae: (SCORES[..., :D], SIGNS),
    losses.huber(0.7): (SCORES[..., :D], SIGNS),
    losses.half_squared_error: (SCORES[..., :D], SIGNS),
    losses.hinge: (SCORES[..., :D], SIGNS),
    losses.logistic: (SCORES[..., :D], SIGNS),
    losses.sigmoid_binary_cross_entropy: (SCORES[..., :D], (SIGNS + 1) / 2),
    losses.binary_cross_entropy: (1 / (1 + np.exp(-SCORES[..., :D])), (SIGNS + 1) / 2),
    losses.multiclass_hinge: (SCORES, LABELS),
    losses.softmax_cross_entropy: (SCORES, np.exp(log_softmax(2 * SCORES[::-1]))),
    losses.label_smoothing(0.2): (SCORES, LABELS),
    losses.cross_entropy: (np.exp(log_softmax(SCORES)), np.exp(log_softmax(2 * SCORES[::-1]))),
}


@BOTH
@pytest.mark.parametrize("loss", EACH, ids=lambda loss: loss.name)
def test_every_loss_weighs_its_entries(gradient, loss):
    """Each entry as an example of its own gives cost and slope; where nothing counts there stands what cannot be."""
    prediction, target = EACH[loss]
    with jax.enable_x64(True):
        flat = [part.reshape(N * T, *part.shape[2:]) for part in (prediction, target)]
        costs, slopes = (np.asarray(evaluated(rule)(*flat)) for rule in (loss.value, loss.delta))
    hidden = MASK.reshape(N, T, *[1] * (target.ndim - 2))
    spoilt = np.where(hidden, target, -100 if target.dtype.kind == "i" else np.nan)
    value, delta, weight = at_output(gradient, loss, np.where(MASK[..., None], prediction, np.nan), spoilt, WEIGHTS)
    w = WEIGHTS.ravel()
    close(value, (w * costs).sum() / w.sum(), FLOAT64, "loss")
    close(delta, (w[:, None] * slopes / T).reshape(prediction.shape), FLOAT64, "δ")
    close(weight, w.sum() / T, FLOAT64, "Σw")


def test_entries_are_the_costs_whose_mean_is_the_value():
    for loss, (prediction, target) in EACH.items():
        with jax.enable_x64(True):
            entries = np.asarray(evaluated(loss.entries)(prediction, target))
            assert entries.shape == (N, T)
            close(entries.mean(1), np.asarray(evaluated(loss.value)(prediction, target)), FLOAT64, loss.name)


@BOTH
def test_all_ones_and_a_mask_that_hides_nothing_equal_none(gradient):
    whole = np.ones((N, T), bool)
    plain = at_output(gradient, losses.mae, SCORES, SCORES[::-1])
    for prediction, weights in (
        (SCORES, np.ones(N)),
        (SCORES, np.ones((N, T), np.int32)),
        (SCORES, whole),
        (Sequences(SCORES, whole), None),
        (Sequences(SCORES), None),
    ):
        for got, expected in zip(
            at_output(gradient, losses.mae, prediction, SCORES[::-1], weights), plain, strict=True
        ):
            close(got, expected, FLOAT64, "ones")


def test_a_loss_of_ones_own_with_entries():
    """Its δ is that of the mean over entries, as without weights; what hides stays hidden from it."""
    own = Loss(
        "quartic",
        lambda y, t: ((y - t) ** 4).sum(-1).mean(-1),
        lambda y, t: 4 * (y - t) ** 3 / y.shape[1],
        entries=lambda y, t: ((y - t) ** 4).sum(-1),
    )
    target = np.where(MASK[..., None], SCORES[::-1], np.nan)
    error = np.where(MASK[..., None], SCORES - target, 0)
    for gradient in GRADIENTS.values():
        value, delta, _ = at_output(gradient, own, Sequences(SCORES, MASK), target, WEIGHTS)
        close(value, (WEIGHTS * (error**4).sum(-1)).sum() / WEIGHTS.sum(), FLOAT64, "loss")
        close(delta, WEIGHTS[..., None] * 4 * error**3 / T, FLOAT64, "δ")


# ---------------------------------------------------------------- networks


NETS = {
    "gru, dense": serial(gru(3), dense(K)),
    "what hands masks on": serial(rnn(3), layer_norm(), dropout(0.5), tanh, dense(K), softmax()),
    "both ways": serial(bidirectional(lstm(2)), dense(K)),
}


@pytest.mark.parametrize("name", NETS)
def test_both_derivations_agree_through_masks(name):
    net, loss = NETS[name], losses.cross_entropy if "hands" in name else losses.softmax_cross_entropy
    with jax.enable_x64(True):
        params, state = drawn(net, (T, D), "float64")
    x = np.where(MASK[..., None], SCORES[..., :D], np.nan) if name != "what hands masks on" else SCORES[..., :D]
    key = jax.random.key(0)

    def run(gradient, read, params):
        penalty = jaxnn.penalties.l2(0.1)
        derive = gradient(net, loss, read=read, penalty=penalty)
        return derive(params, state, Sequences(x, MASK), IGNORED, rng=key, weights=WEIGHTS)

    with jax.enable_x64(True):
        hand = evaluated(lambda params: run(backprop, ("deltas", "delta_norms"), params))(params)
        auto = evaluated(lambda params: run(autodiff, ("deltas",), params))(params)
        weights = evaluated(lambda params: run(autodiff, ("deltas",), params).loss)(params)
    assert np.isfinite(weights)
    close(hand.loss, auto.loss, FLOAT64, "loss")
    close(hand.weight, WEIGHTS.sum() / T, FLOAT64, "Σw")
    for a, b in zip(jax.tree.leaves(hand.grads), jax.tree.leaves(auto.grads), strict=True):
        close(a, b, FLOAT64, "gradients")
    ours, theirs = hand.readings["deltas"], auto.readings["deltas"]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        close(a, b, FLOAT64, "δ")
    norms = jax.tree.map(lambda delta: np.sqrt((np.asarray(delta) ** 2).sum()), ours)
    for a, b in zip(jax.tree.leaves(hand.readings["delta_norms"]), jax.tree.leaves(norms), strict=True):
        close(a, b, FLOAT64, "norms")


def test_a_mask_ends_where_the_last_state_is_returned():
    net = serial(gru(3, returns="last"), dense(K))
    with jax.enable_x64(True):
        params, state = drawn(net, (T, D), "float64")
        out = evaluated(backprop(net, losses.softmax_cross_entropy))(
            params, state, Sequences(SCORES[..., :D], MASK), LABELS[:, 0]
        )
    expected, _, total = ignoring(np.asarray(out.output), LABELS[:, 0])
    close(out.loss, expected, FLOAT64, "loss")
    assert out.weight == total == N


@BOTH
def test_a_batch_of_which_nothing_counts_teaches_nothing(gradient):
    net = serial(gru(2), dense(K))
    params, state = drawn(net, (T, D))
    run = gradient(net, losses.softmax_cross_entropy)
    x, nothing = SCORES[..., :D].astype(np.float32), np.zeros((N, T), bool)
    out = evaluated(run)(params, state, Sequences(x, nothing), np.full((N, T), -100))
    assert out.loss == out.weight == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(out.grads))
    with pytest.raises(ValueError, match=r"loss 'softmax_cross_entropy': no entry counts: all of them are masked"):
        gradient(OUTPUT, losses.softmax_cross_entropy)({}, (), Sequences(SCORES, nothing), IGNORED)


def test_bad_weights_and_labels_that_count_are_nan_under_jit():
    derive = backprop(OUTPUT, losses.softmax_cross_entropy)
    run = evaluated(lambda params, state, x, target, weights: derive(params, state, x, target, weights=weights))
    scores = SCORES.astype(np.float32)
    for wrong in (-1, np.nan, np.inf):
        weights = WEIGHTS.astype(np.float32)
        weights[0, 1] = wrong
        assert np.isnan(run({}, (), scores, LABELS, weights).loss)
    assert np.isnan(run({}, (), scores, IGNORED, np.ones((N, T), np.float32)).loss)


# ---------------------------------------------------------------- training


def ragged(seed, n=7):
    """Sequences of three lengths, their labels −100 where they have ended."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(1, T + 1, n)[:, None]
    x = rng.normal(size=(n, T, D)).astype(np.float32)
    return Sequences(x, mask), np.where(mask, rng.integers(0, K, (n, T)), -100).astype(np.int32)


NET, LOSS, OPTIMIZER = serial(rnn(3), dense(K)), losses.softmax_cross_entropy, sgd(0.5)
COUNTED = [metrics.accuracy, metrics.top_k(2), losses.softmax_cross_entropy.value]


def test_fit_and_evaluate_count_what_is_not_masked():
    """By a mask, and by weights of whole numbers at the labels to ignore; every figure by a loop over the entries."""
    x, labels = ragged(0)
    key = jax.random.key(0)
    masked = fit(NET, LOSS, OPTIMIZER, (x, labels), key=key, epochs=2, batch_size=3, metrics=COUNTED)
    scores = evaluate(NET, LOSS, masked.train_state, (x, labels), metrics=COUNTED, batch_size=2)
    output = np.asarray(jaxnn.predict(NET, masked.train_state, x).values, np.float64)
    expected, _, _ = ignoring(output, labels)
    counts = labels >= 0
    ranks = (output > np.take_along_axis(output, labels.clip(0)[..., None], -1)).sum(-1)
    assert scores["loss"] == pytest.approx(expected, rel=FLOAT32)
    assert scores["softmax_cross_entropy"] == pytest.approx(expected, rel=FLOAT32)
    assert scores["accuracy"] == pytest.approx((ranks == 0)[counts].mean(), rel=FLOAT32)
    assert scores["top_2"] == pytest.approx((ranks < 2)[counts].mean(), rel=FLOAT32)
    assert masked.history["softmax_cross_entropy"] == pytest.approx(masked.history["loss"], rel=FLOAT32)

    first = fit(NET, LOSS, sgd(0.0), (x, labels), key=key, epochs=1, batch_size=7, metrics=COUNTED)
    still = evaluate(NET, LOSS, first.train_state, (x, labels), metrics=COUNTED)
    assert {name: values[0] for name, values in first.history.items() if name != "seconds"} == pytest.approx(still)
    spelt = (x, np.where(counts, labels, 10**6), counts.astype(np.int32))
    assert evaluate(NET, LOSS, first.train_state, spelt, metrics=COUNTED) == pytest.approx(still, rel=FLOAT32)


def test_an_epoch_is_its_batches_and_runs_under_vmap():
    x, labels = ragged(1, 6)
    weights = np.random.default_rng(1).uniform(0, 2, (6, T)).astype(np.float32)
    epoch = train_epoch(NET, LOSS, OPTIMIZER, batch_size=4, shuffle=False, metrics=[metrics.accuracy])
    step = jax.jit(train_step(NET, LOSS, OPTIMIZER))
    states = [jaxnn.init_train_state(NET, OPTIMIZER, seed, (T, D)) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    many, results = jax.jit(jax.vmap(lambda state: epoch(state, x, labels, weights)))(stacked)
    for i, state in enumerate(states):
        passes = []
        for rows in (slice(0, 4), slice(4, 6)):
            part = jax.tree.map(lambda leaf: leaf[rows], (x, labels, weights))
            state, out = step(state, *part)
            passes.append((float(out.loss), float(out.weight)))
        means, totals = zip(*passes, strict=True)
        assert float(results.loss[i]) == pytest.approx(np.average(means, weights=totals), rel=FLOAT32)
        for a, b in zip(jax.tree.leaves(many.params), jax.tree.leaves(state.params), strict=True):
            close(np.asarray(a[i]), np.asarray(b), FLOAT32, "parameters")


SCORED = np.array([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0]], np.float32)[None]  # class 0 twice


def counted(metric, prediction, target, weights=None):
    """A metric in `evaluate`, of a network whose output is its input."""
    state = jaxnn.TrainState({}, (), (), jnp.zeros((), jnp.int32), jax.random.key(0))
    loss = losses.mse if target is prediction else Loss("none", lambda y, t: y[:, 0, 0] * 0, lambda y, t: 0 * y,
                                                        entries=lambda y, t: y[..., 0] * 0)  # fmt: skip
    data = (prediction, target) if weights is None else (prediction, target, weights)
    return evaluate(OUTPUT, loss, state, data, metrics={"it": metric})["it"]


def test_padding_is_never_right():
    """One step of class 1 that is taken for class 0, and a padded row of zeros, whose first entry is the largest."""
    target = np.array([[[0, 1, 0], [0, 0, 0]]], np.float32)
    assert metrics.accuracy(SCORED, target)[0] == 0
    assert metrics.top_k(3)(SCORED, target)[0] == 0.5
    assert metrics.accuracy(SCORED, target.astype(bool))[0] == 0
    padded = np.array([[True, False]])
    right = target[:, :, [1, 0, 2]]  # the first step is right
    assert counted(metrics.accuracy, Sequences(SCORED, padded), right) == 1
    assert counted(metrics.accuracy, Sequences(SCORED, padded), target) == 0


def test_binary_metrics_by_entry():
    logits = np.array([[[1.0, -1.0], [3.0, 3.0]], [[-1.0, 1.0], [2.0, 2.0]]], np.float32)
    target = np.array([[[1, 1], [7, 7]], [[0, 1], [-1, 1]]], np.float32)
    weights = np.array([[3.0, 0.0], [1.0, 2.0]], np.float32)
    expected = (3 * 0.5 + 1 * 1 + 2 * 0.5) / 6  # 7 is no label, and weighs nothing
    assert counted(metrics.binary_accuracy, logits, target, weights) == pytest.approx(expected)
    assert counted(metrics.binary_accuracy_at(0.5), logits, target, weights) == pytest.approx(expected)


def test_labels_that_count_are_looked_at():
    """Of the loss and of each metric; −100 in a history is NaN without a word otherwise."""
    x, labels = ragged(2)
    options = {"key": 0, "epochs": 1, "batch_size": 3}
    with pytest.raises(ValueError, match=r"data: losses.softmax_cross_entropy: .* -100; negative labels are not skip"):
        fit(NET, LOSS, OPTIMIZER, (x.values, labels), **options)
    blind = LOSS._replace(check=None)
    for metric in COUNTED[:2]:
        with pytest.raises(ValueError, match=rf"data: metrics.{metric.__name__}: .* weight 0"):
            fit(NET, blind, OPTIMIZER, (x.values, labels), metrics=[metric], **options)
    some = labels.copy()
    some[0, 0] = K  # the first step of each counts
    with pytest.raises(ValueError, match=rf"validation: .*not in 0…3, first target\[0, 0\] = {K}"):
        fit(NET, LOSS, OPTIMIZER, (x, labels), validation=(x, some), **options)
    with pytest.raises(ValueError, match=r"data: loss .*: no entry counts"):
        fit(NET, LOSS, OPTIMIZER, (x._replace(mask=np.zeros_like(x.mask)), labels), **options)


# ---------------------------------------------------------------- what is refused


def refused(message, loss, prediction, target, weights=None, net=OUTPUT):
    for gradient in GRADIENTS.values():
        with pytest.raises(ValueError, match=message):
            gradient(net, loss)({}, (), prediction, target, weights=weights)


def test_what_has_no_entries_takes_no_weights_of_entries():
    own = Loss("own", lambda y, t: y.mean((1, 2)), lambda y, t: y / y.size)
    refused(r"loss 'own' has no rule for entries and is given weights of shape \(4, 5\)", own, SCORES, LABELS, WEIGHTS)
    refused(
        r"loss 'own' has no rule for entries and is given a mask: .*entries\(pred", own, Sequences(SCORES, MASK), LABELS
    )
    x, labels = ragged(3)
    plain = lambda prediction, target: prediction.mean((1, 2))
    for data in ((x, labels), (x.values, labels.clip(0), x.mask)):
        with pytest.raises(ValueError, match="data: metric 'plain' has no rule for entries"):
            fit(NET, LOSS, OPTIMIZER, data, key=0, epochs=1, batch_size=3, metrics={"plain": plain})


def test_weights_and_masks_that_do_not_fit():
    features = r"weights must have shape \(4,\), one for each example, got \(4, 5\); the last axis .* are \(4, 5, 1\)"
    refused(features, losses.mse, SCORES[..., 0], SCORES[..., 0], WEIGHTS)
    both = r"weights must have shape \(4,\), one for each example, or \(4, 5\), one for each entry, got \(4, 4\)"
    refused(both, losses.mse, SCORES, SCORES, WEIGHTS[:, :4])
    each = r"weights must have shape .* got \(4, 5, 4\); .* prediction and target are \(4, 5, 4, 1\)"
    refused(each, losses.mse, SCORES, SCORES, np.ones(SCORES.shape))
    misfit = r"loss 'mse': a mask of shape \(4, 4\) does not fit entries of shape \(4, 5\)"
    refused(misfit, losses.mse, Sequences(SCORES, MASK[:, :4]), SCORES, net=serial())
    early = r"layer 'identity_0' expects a mask \[N, T\] of shape \(4, 5\), got \(4, 4\)"
    refused(early, losses.mse, Sequences(SCORES, MASK[:, :4]), SCORES)
    pixels = SCORES[..., None]  # one value per pixel
    value, _, _ = at_output(backprop, losses.half_squared_error, pixels, 0 * pixels, np.ones(SCORES.shape))
    close(value, (SCORES**2).mean() / 2, FLOAT64, "pixels")


# ---------------------------------------------------------------- who else takes weights


def test_diagnose_takes_weights_of_entries():
    x, labels = ragged(4, 4)
    net = serial(dense(3), tanh, dense(K))
    params, state = drawn(net, (T, D))
    found = jaxnn.diagnostics.diagnose(net, LOSS, params, state, x, labels, weights=2 * x.mask.astype(np.float32))
    out = evaluated(backprop(net, LOSS, read=("deltas",)))(params, state, x, labels)
    size = 2 * np.sqrt((np.asarray(out.readings["deltas"]["dense_1"].values) ** 2).mean())
    assert {row.path: row.delta for row in found.layers}["dense_1"] == pytest.approx(size, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["mask", "mask and weights"])
def test_gradcheck_takes_masks_and_weights_of_entries(weights):
    with jax.enable_x64(True):
        params, state = drawn(NETS["gru, dense"], (T, D), "float64")
        args = (params, state, Sequences(SCORES[..., :D], MASK), IGNORED)
        gradcheck.network(NETS["gru, dense"], LOSS, *args, weights=weights).raise_if_failed()
        wrong = LOSS._replace(delta=lambda y, t: 2 * LOSS.delta(y, t))
        assert gradcheck.network(NETS["gru, dense"], wrong, *args, weights=weights).wrong == (LOSS.name,)
