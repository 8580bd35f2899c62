"""Wrong labels: the derivative of the validation loss by the weight of each training example finds them.

    python examples/wrong_labels.py [--epochs 20] [--out out]

Twenty of 1,000 training labels of scikit-learn's digits are made wrong. The validation loss F at the end of a training
is a function of the weights wₙ of its examples, and its derivative, the metagradient, says which of them it would be
better to train without. That is checked: the training is run a hundred times more, as one program, each time without
ten examples drawn at random, and the change of F is compared with the predicted one, −Σ ∂F/∂wₙ over the ten. Left in
out/wrong_labels.png: the twenty examples that hurt most, their labels red where they were made wrong.

Such predictions need a training that is smooth: tanh instead of relu, a moderate rate, and the same order of batches.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxnn

NET = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([32, 10], jaxnn.tanh))
LOSS = jaxnn.losses.softmax_cross_entropy
SGD = jaxnn.sgd(0.5)
WRONG, REPEATS, LEFT_OUT = 20, 100, 10


def data(rng):
    """Training set with wrong labels, validation set, and which labels are wrong."""
    (x, labels), validation = jaxnn.data.split(jaxnn.data.digits(), [797], key=0)
    wrong = np.isin(np.arange(len(labels)), rng.choice(len(labels), WRONG, replace=False))
    labels = np.where(wrong, (labels + rng.integers(1, 10, len(labels))) % 10, labels).astype(np.int32)
    return (x, labels), validation, wrong


def hits(scores, wrong):
    """How many of as many examples with the highest scores as there are wrong labels have one."""
    return int(wrong[np.argsort(-scores)[:WRONG]].sum())


def rank_correlation(a, b):
    """Spearman's: the correlation of the ranks."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def draw(figure, images, labels, wrong, predicted, true):
    """The examples that hurt most; and the predicted and the true changes of the validation loss."""
    left, right = figure.subfigures(1, 2)
    for axes, image, label, is_wrong in zip(left.subplots(4, 5).flat, images, labels, wrong, strict=True):
        axes.imshow(image[..., 0], cmap="gray_r")
        axes.set_title(str(label), color="C3" if is_wrong else "k", fontsize=10, pad=2)
        axes.axis("off")
    axes = right.subplots()
    axes.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
    axes.plot(1e3 * predicted, 1e3 * true, "o", markersize=3)
    axes.set_xlabel("predicted change of the validation loss, in 0.001")
    axes.set_ylabel("change when trained without ten examples")
    axes.spines[["top", "right"]].set_visible(False)


def main(epochs=20, out="out"):
    """Prints what is found, draws; returns the wrong labels found, the same by their loss, and the rank correlation."""
    rng = np.random.default_rng(0)
    (x, labels), validation, wrong = data(rng)
    step = jaxnn.train_step(NET, LOSS, SGD, penalty=jaxnn.penalties.l2(1e-3))
    train = jaxnn.run(step, epochs=epochs, batch_size=100, metrics=[jaxnn.metrics.accuracy])
    start = jaxnn.init_train_state(NET, SGD, 0, x.shape[1:])

    found = jax.jit(jaxnn.metagradient(train))(start, (x, labels), validation)
    by_weights = np.asarray(found.weights)
    logits = NET.forward(found.run.train_state.params, (), jnp.asarray(x))[0]
    by_loss = hits(np.asarray(LOSS.value(logits, jnp.asarray(labels))), wrong)
    by_metagradient = hits(by_weights, wrong)

    weights = np.ones((REPEATS, len(x)), np.float32)
    for row in weights:
        row[rng.choice(len(x), LEFT_OUT, replace=False)] = 0

    def retrained(weights):
        return train(start, (x, labels, weights), validation).history["validation_loss"][-1]

    true = np.asarray(jax.jit(jax.vmap(retrained))(weights)) - float(found.figure)
    predicted = (weights - 1) @ by_weights
    correlation = rank_correlation(predicted, true)

    accuracy = float(found.run.history["validation_accuracy"][-1])
    print(f"validation: loss {float(found.figure):.4f}, accuracy {100 * accuracy:.1f} %")
    print(f"of the {WRONG} that hurt most, {by_metagradient} have a wrong label: precision and recall ", end="")
    print(f"{by_metagradient / WRONG:.2f}; of the {WRONG} of the largest loss {by_loss}")
    print(f"predicted and true change of {REPEATS} trainings: rank correlation {correlation:.3f}")

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    worst = np.argsort(-by_weights)[:20]
    draw(figure, x[worst], labels[worst], wrong[worst], predicted, true)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "wrong_labels.png", dpi=100)
    return by_metagradient, by_loss, correlation


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
