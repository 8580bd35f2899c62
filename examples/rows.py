"""Recurrent networks compared: MNIST read row by row by a plain network, a GRU and an LSTM of 128 units each.

    python examples/rows.py --data FOLDER [--epochs 8] [--cells rnn gru lstm] [--out out]

FOLDER holds the four IDX files, gzipped or not. An image is a sequence of 28 rows of 28 pixels, and the state after the
last row determines the digit. 5,000 of the training images are held out for validation; the test images are used once,
after training. The validation accuracies go to out/rows.png.
"""

import argparse
import statistics
from pathlib import Path

from matplotlib.figure import Figure

import jaxnn

CELLS = {"rnn": jaxnn.rnn, "gru": jaxnn.gru, "lstm": jaxnn.lstm}
COLOURS = {"rnn": "0.55", "gru": "tab:orange", "lstm": "tab:blue"}
LOSS = jaxnn.losses.softmax_cross_entropy
METRICS = [jaxnn.metrics.accuracy]
WIDTH = 128  # units
BATCH = 128
VALIDATION = 5_000  # images
RATE = 3e-3  # Adam's η, which decays to 0 as a cosine
LARGEST_NORM = 1.0  # of a gradient; a longer one is clipped


def train(name, train_set, validation, test, epochs):
    """The history of training, and the accuracy on the test set."""
    net = jaxnn.serial(jaxnn.reshape(28, 28), jaxnn.networks.sequence_classifier(CELLS[name], WIDTH, 10))
    steps = epochs * -(-len(train_set[1]) // BATCH)
    adam = jaxnn.adam(jaxnn.schedules.cosine(RATE, steps=steps))
    fitted = jaxnn.fit(
        net,
        LOSS,
        jaxnn.chain(jaxnn.clip_by_global_norm(LARGEST_NORM), adam),
        train_set,
        key=1,
        epochs=epochs,
        batch_size=BATCH,
        validation=validation,
        metrics=METRICS,
        progress=True,
    )
    return fitted.history, jaxnn.evaluate(net, LOSS, fitted.train_state, test, metrics=METRICS)["accuracy"]


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
    """Trains on the first `images` images (by default, all); returns {cell: accuracy on the test set}."""
    (x, labels), test = jaxnn.data.mnist(data)
    train_set, validation = jaxnn.data.split((x[:images], labels[:images]), VALIDATION, key=0)
    histories, accuracies = {}, {}
    for name in cells:
        histories[name], accuracies[name] = train(name, train_set, validation, test, epochs)
        seconds = statistics.median(histories[name]["seconds"])  # the first epoch includes compilation
        print(f"{name:4}  {seconds:.1f} seconds per epoch, test accuracy: {100 * accuracies[name]:.2f} %", flush=True)
    draw(histories, Path(out) / "rows.png")
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder with MNIST's four files")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
