"""A sequence read frame by frame: a digit passes behind a slit, and no single frame shows enough of it.

    python examples/frames.py [--epochs 40] [--out out]

One of scikit-learn's digits moves to the left behind a slit three columns wide, at a random height: ten frames of
10 × 3 pixels. The state of the LSTM accumulates what the frames show, and training asks for the digit after the last
one. The trained weights then answer after every frame (`returns="values"`). The picture, out/frames.png, shows the
frames of two test films with the probabilities after each, and the accuracy after each frame.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn

WIDTH = 64  # units
BATCH = 32  # films
ROWS, SLIT = 10, 3  # rows and columns of a frame
LOSS = jaxnn.losses.softmax_cross_entropy
ADAM = jaxnn.adam(3e-3)
NET = jaxnn.serial(jaxnn.lstm(WIDTH, returns="last"), jaxnn.dense(10))
AT_EVERY_FRAME = jaxnn.serial(jaxnn.lstm(WIDTH, returns="values"), jaxnn.dense(10))  # with the same parameters


def films(digits, key):
    """Films [N, T, rows · columns] of digits [N, 8, 8, 1]."""
    n, height, width, _ = digits.shape
    tops = np.random.default_rng(key).integers(0, ROWS - height + 1, n)
    fields = np.zeros((n, ROWS, width + 2 * (SLIT - 1)), np.float32)
    for field, digit, top in zip(fields, digits[..., 0], tops, strict=True):
        field[top : top + height, SLIT - 1 : SLIT - 1 + width] = digit
    frames = [fields[:, :, t : t + SLIT] for t in range(width + SLIT - 1)]
    return np.stack(frames, axis=1).reshape(n, len(frames), ROWS * SLIT)


def draw(x, labels, probabilities, path):
    """Two films with the probabilities of all digits after every frame, and the accuracy after every frame."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplot_mosaic("aac;bbc;AAc;BBc", height_ratios=(1, 2, 1, 2))
    for i, (top, bottom) in enumerate(("ab", "AB")):
        panels[top].imshow(np.hstack(x[i].reshape(-1, ROWS, SLIT)), cmap="gray_r", aspect="auto")
        panels[top].vlines(SLIT * np.arange(1, len(x[i])) - 0.5, -0.5, ROWS - 0.5, "C0", linewidth=0.8)
        panels[top].set(xticks=[], yticks=[])
        panels[bottom].imshow(probabilities[i].T, cmap="Blues", aspect="auto", vmin=0, vmax=1)
        panels[bottom].set(yticks=[labels[i]], xticks=[], ylabel="digit")
    correct = (probabilities.argmax(axis=-1) == labels[:, None]).mean(axis=0)
    panels["c"].plot(range(1, x.shape[1] + 1), 100 * correct)
    panels["c"].set(xlabel="frame", title="accuracy after each frame (%)", ylim=(0, 100))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)


def main(epochs=40, out="out"):
    """Trains, prints and draws; returns the accuracy on the test films after every frame."""
    digits, labels = jaxnn.data.digits()
    train, test = jaxnn.data.split((films(digits, key=0), labels), 0.2, key=1, stratify=labels)
    fitted = jaxnn.fit(NET, LOSS, ADAM, train, key=2, epochs=epochs, batch_size=BATCH, progress=True)

    x, labels = test
    logits = jaxnn.predict(AT_EVERY_FRAME, fitted.train_state, x)
    accuracy = np.asarray(logits.argmax(axis=-1) == labels[:, None]).mean(axis=0)
    print("accuracy after each frame (%):", *(f"{100 * share:.0f}" for share in accuracy))
    draw(x, labels, np.asarray(jax.nn.softmax(logits)), Path(out) / "frames.png")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
