"""Data other than plain numbers raise an error where they enter, with the argument's name and advice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import (
    autodiff,
    backprop,
    conv,
    data,
    dense,
    embedding,
    evaluate,
    fit,
    gradcheck,
    init_train_state,
    losses,
    metrics,
    predict,
    serial,
    sgd,
    train_step,
)

NET, RATE = serial(dense(2)), sgd(0.1)
X, T = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
LABELS, W = np.array([0, 1, 1, 0], np.int32), np.ones(4, np.float32)
PARAMS = {"dense_0": {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}}
HIDES = "has a mask that hides 1 of {} values.*weights of 0.*filled"


def hidden(values):
    """The same with its first value masked."""
    mask = np.zeros(values.shape, bool)
    mask.flat[0] = True
    return np.ma.array(values, mask=mask)


def state():
    return init_train_state(NET, RATE, 0, (3,))


PLACES = {  # call with a masked array, its name in the message, the number of values
    "fit, x": (lambda: fit(NET, losses.mse, RATE, (hidden(X), T), key=0, epochs=1, batch_size=2), "data: x", 12),
    "fit, target": (
        lambda: fit(NET, losses.mse, RATE, (X, hidden(T)), key=0, epochs=1, batch_size=2),
        "data: target",
        8,
    ),
    "fit, weights": (
        lambda: fit(NET, losses.mse, RATE, (X, T, hidden(W)), key=0, epochs=1, batch_size=2),
        "data: weights",
        4,
    ),
    "fit, validation": (
        lambda: fit(NET, losses.mse, RATE, (X, T), key=0, epochs=1, batch_size=2, validation=(hidden(X), T)),
        "validation: x",
        12,
    ),
    "fit, a tree": (
        lambda: fit(NET, losses.mse, RATE, ({"a": [X, hidden(X)]}, T), key=0, epochs=1, batch_size=2),
        "data: x/a/1",
        12,
    ),
    "evaluate": (lambda: evaluate(NET, losses.mse, state(), (X, hidden(T))), "data: target", 8),
    "predict": (lambda: predict(NET, state(), hidden(X)), "x", 12),
    "backprop, x": (lambda: backprop(NET, losses.mse)(PARAMS, (), hidden(X), T), "backprop: x", 12),
    "backprop, target": (lambda: backprop(NET, losses.mse)(PARAMS, (), X, hidden(T)), "backprop: target", 8),
    "backprop, weights": (
        lambda: backprop(NET, losses.mse)(PARAMS, (), X, T, weights=hidden(W)),
        "backprop: weights",
        4,
    ),
    "autodiff": (lambda: autodiff(NET, losses.mse)(PARAMS, (), X, hidden(T)), "autodiff: target", 8),
    "a step": (lambda: train_step(NET, losses.mse, RATE)(state(), X, hidden(T)), "backprop: target", 8),
    "a layer": (lambda: dense(2).forward(PARAMS["dense_0"], (), hidden(X)), "dense: x", 12),
    "tokens": (lambda: embedding(2, 2).forward({"w": np.ones((2, 2), np.float32)}, (), hidden(LABELS)), "x", 4),
    "images": (lambda: serial(conv(1, (1, 1))).children[0].init(0, (2, 2, 1)) and _convolved(), "conv: x", 16),
    "gradcheck": (lambda: gradcheck.network(NET, losses.mse, PARAMS, (), hidden(X), T), "gradcheck.network: x", 12),
    "standardisation": (lambda: data.standardisation(hidden(X)), "standardisation: x", 12),
    "standardise": (lambda: data.standardise(data.standardisation(X), hidden(X)), "standardise: x", 12),
    "unstandardise": (lambda: data.unstandardise(data.standardisation(X), hidden(X)), "unstandardise: z", 12),
    "one_hot": (lambda: data.one_hot(hidden(LABELS), 2), "one_hot: labels", 4),
    "split": (lambda: data.split((hidden(X), T), 1, key=0), "split: data/0", 12),
    "split, stratified": (lambda: data.split(X, 1, key=0, stratify=hidden(LABELS)), "split: stratify", 4),
}


def _convolved():
    x = hidden(np.ones((4, 2, 2, 1), np.float32))
    return conv(1, (1, 1), bias=False).forward({"w": np.ones((1, 1, 1, 1), np.float32)}, (), x)


@pytest.mark.parametrize("place", PLACES)
def test_masks_of_numpy(place):
    run, what, size = PLACES[place]
    with pytest.raises(ValueError, match=f"{what} {HIDES.format(size)}"):
        run()


def test_a_mask_that_hides_nothing_is_welcome():
    run = lambda x: fit(NET, losses.mse, RATE, (x, T), key=0, epochs=1, batch_size=2).history["loss"]
    for mask in (np.ma.nomask, np.zeros(X.shape, bool)):
        assert run(np.ma.array(X, mask=mask)) == run(X)


@pytest.mark.parametrize("call", [losses.mse.value, losses.softmax_cross_entropy.value, metrics.accuracy])
def test_losses_and_metrics_by_themselves(call):
    """Called by themselves they leave masked arrays to JAX, which raises."""
    with pytest.raises(ValueError, match="masked arrays are not supported"):
        call(T, hidden(T if call is losses.mse.value else LABELS))


class Sparse:
    """A matrix like those of scipy.sparse."""

    shape, dtype, ndim = (4, 3), np.dtype("float32"), 2

    def todense(self):
        return X


OTHERS = {
    "objects": (np.array([[1, 2, "three"]] * 4, object), "Python objects"),
    "rows of several lengths": (np.array([np.ones(1), np.ones(2)] * 2, object), "Python objects"),
    "texts": (np.array([["1", "2", "3"]] * 4), "strings .*np.unique"),
    "bytes": (np.array([[b"1", b"2", b"3"]] * 4), "strings"),
    "dates": (np.zeros((4, 3), "datetime64[D]"), "dates .*values - values.min"),
    "time spans": (np.zeros((4, 3), "timedelta64[s]"), "time spans .*divide by a unit of time"),
    "records": (np.zeros(4, [("a", np.float32), ("b", np.int32)]), "records .*one array per field"),
    "a sparse matrix": (Sparse(), r"a sparse matrix \(Sparse\): use np.asarray\(x.todense\(\)\)"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_no_device_holds(what):
    values, says = OTHERS[what]
    with pytest.raises(TypeError, match=f"data: x .*{says}"):
        fit(NET, losses.mse, RATE, (values, T), key=0, epochs=1, batch_size=2)
    with pytest.raises(TypeError, match=f"validation: target .*{says}"):
        fit(NET, losses.mse, RATE, (X, T), key=0, epochs=1, batch_size=2, validation=(X, values))
    for derive in (backprop, autodiff):
        with pytest.raises(TypeError, match=f"{derive.__name__}: target .*{says}"):
            derive(NET, losses.mse)(PARAMS, (), X, values)
    with pytest.raises(TypeError, match=f"^x .*{says}"):
        predict(NET, state(), values)


def test_complex_numbers():
    """The imaginary part is never dropped silently."""
    for loss in (losses.mse, losses.mae, losses.huber(), losses.half_squared_error, losses.cross_entropy):
        for pair in ((T, T + 1j), (T + 1j, T)):
            pair = [jnp.asarray(a.astype(np.complex64) if a.dtype.kind == "c" else a) for a in pair]
            with pytest.raises((TypeError, ValueError), match="complex64"):
                loss.value(*pair)
    with pytest.raises(TypeError, match="standardise expects real numbers, got complex64"):
        data.standardise(data.standardisation(X), X.astype(np.complex64))
    with pytest.raises(ValueError, match="dense expects float features, got complex64"):
        jax.eval_shape(lambda x: dense(2).forward(PARAMS["dense_0"], (), x), X.astype(np.complex64))


def test_whatever_else_may_be_split():
    """Rows of text or dates are selected only."""
    names = np.array(["a", "b", "c", "d"])
    first, second = data.split(names, 1, key=0)
    assert sorted([*first, *second]) == list(names)
