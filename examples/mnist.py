"""MNIST: a test accuracy of 98 % with a plain multi-layer perceptron and the hand-derived backward pass.

    python examples/mnist.py --data FOLDER [--epochs 15] [--out out]

FOLDER holds the four IDX files, gzipped or not. 5,000 of the training images are held out for validation; the test
images are used once, after training. The learning curves go to out/mnist.png: training figures are means over an
epoch while the network learns, validation figures are computed after it.
"""

import argparse
import statistics
from pathlib import Path

from matplotlib.figure import Figure

import jaxnn

NET = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([512, 10]))
LOSS = jaxnn.losses.softmax_cross_entropy
BATCH = 128
VALIDATION = 5_000  # images
RATE, FACTOR, STAIR = 1e-3, 0.3, 5  # Adam's η, multiplied by 0.3 every 5 epochs


def main(data: str, epochs: int = 15, out: str = "out", images: int | None = None) -> dict[str, float]:
    """Trains on the first `images` images (by default, all); returns the loss and accuracy on the test images."""
    (x, labels), test = jaxnn.data.mnist(data)
    train, validation = jaxnn.data.split((x[:images], labels[:images]), VALIDATION, key=0)
    steps = -(-len(train[1]) // BATCH)  # in an epoch, a smaller last batch included
    fitted = jaxnn.fit(
        NET,
        LOSS,
        jaxnn.adam(jaxnn.schedules.step_decay(RATE, factor=FACTOR, every=STAIR * steps)),
        train,
        key=1,
        epochs=epochs,
        batch_size=BATCH,
        validation=validation,
        metrics=[jaxnn.metrics.accuracy],
        progress=True,
    )
    history = fitted.history
    draw(history, Path(out) / "mnist.png")
    seconds = statistics.median(history["seconds"])  # the first epoch includes compilation
    print(f"{seconds:.2f} seconds per epoch, {len(train[1]) / seconds:,.0f} images per second")
    print(f"validation accuracy: {100 * history['validation_accuracy'][-1]:.2f} %")
    score = jaxnn.evaluate(NET, LOSS, fitted.train_state, test, metrics=[jaxnn.metrics.accuracy])
    print(f"test accuracy: {100 * score['accuracy']:.2f} %")
    return score


def draw(history: dict[str, list[float]], path: Path) -> None:
    """The loss and the accuracy of every epoch, in training and in validation."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    epochs = range(1, len(history["loss"]) + 1)
    for axes, quantity, scale in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), strict=True):
        for label, key, colour in (("training", "", "0.55"), ("validation", "validation_", "tab:blue")):
            values = [scale * value for value in history[key + quantity]]
            axes.plot(epochs, values, color=colour)
            axes.annotate(f" {label}", (epochs[-1], values[-1]), color=colour, va="center")
        axes.set(xlabel="epoch", xticks=[1, *range(STAIR, len(epochs) + 1, STAIR)])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_title("cross-entropy", loc="left")
    figure.axes[1].set_title("accuracy (%)", loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder with MNIST's four files")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
