"""MNIST read row by row: a plain recurrent network, a GRU and an LSTM, each with 128 units.

    python examples/rows.py --data FOLDER [--epochs 8] [--cells rnn gru lstm] [--out out]

FOLDER holds the four IDX files, packed or not. An image is a sequence of 28 rows of 28 pixels, and what is left in the
state after the last row tells the digit. 5,000 of the training images are held out for validation; the test images are
looked at once. The validation accuracies go to out/rows.png.
"""

import argparse
import statistics
from pathlib import Path

from matplotlib.figure import Figure

import jaxnn

CELLS = {"rnn": jaxnn.rnn, "gru": jaxnn.gru, "lstm": jaxnn.lstm}
COLOURS = {"rnn": "0.55", "gru": "tab:orange", "lstm": "tab:blue"}
WIDTH, BATCH, VALIDATION = 128, 128, 5_000
RATE, LARGEST_NORM = 3e-3, 1.0  # Adam's η, which falls to 0 as a cosine; longer gradients are clipped


def train(name, train_set, validation, test, epochs):
    """Returns the history and the accuracy on the test set."""
    net = jaxnn.serial(jaxnn.reshape(28, 28), jaxnn.networks.sequence_classifier(CELLS[name], WIDTH, 10))
    loss, metrics = jaxnn.losses.softmax_cross_entropy, [jaxnn.metrics.accuracy]
    rate = jaxnn.schedules.cosine(RATE, steps=epochs * -(-len(train_set[1]) // BATCH))
    fitted = jaxnn.fit(
        net,
        loss,
        jaxnn.chain(jaxnn.clip_by_global_norm(LARGEST_NORM), jaxnn.adam(rate)),
        train_set,
        key=1,
        epochs=epochs,
        batch_size=BATCH,
        validation=validation,
        metrics=metrics,
        progress=True,
    )
    return fitted.history, jaxnn.evaluate(net, loss, fitted.train_state, test, metrics=metrics)["accuracy"]


def draw(histories, path):
    """The validation accuracy of each network after every epoch."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, history in histories.items():
        values = [100 * value for value in history["validation_accuracy"]]
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[name], label=name)
    axes.set(xlabel="epoch", xticks=range(1, len(values) + 1))
    axes.set_title("rows read one by one: validation accuracy (%)", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(data, epochs=8, cells=tuple(CELLS), out="out", images=None):
    """Trains on the first so many images (all of them by default); returns the accuracy on the test set by name."""
    (x, labels), test = jaxnn.data.mnist(data)
    train_set, validation = jaxnn.data.split((x[:images], labels[:images]), VALIDATION, key=0)
    histories, accuracies = {}, {}
    for name in cells:
        histories[name], accuracies[name] = train(name, train_set, validation, test, epochs)
        seconds = statistics.median(histories[name]["seconds"])  # the first epoch's include the compilation
        print(f"{name:4}  {seconds:.1f} seconds per epoch, test accuracy: {100 * accuracies[name]:.2f} %", flush=True)
    draw(histories, Path(out) / "rows.png")
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of MNIST's four files")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
