"""A film read frame by frame: a digit passes behind a slit, and no frame shows enough of it.

    python examples/frames.py [--epochs 40] [--out out]

One of scikit-learn's digits moves to the left behind a slit three columns wide, at a height of its own: ten frames of
10 × 3 pixels. The LSTM's state gathers what each frame showed, and the digit is told after the last. The same weights
also answer after every frame (`returns="values"`), and frame by frame as a camera would give them (`lstm_step`).
out/frames.png: the frames of two test films with the probabilities after each, and how often all are right by then.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxnn

WIDTH, BATCH, ROWS, SLIT = 64, 32, 10, 3  # units, films, rows and columns of a frame
LOSS, ADAM = jaxnn.losses.softmax_cross_entropy, jaxnn.adam(3e-3)
NET = jaxnn.serial(jaxnn.lstm(WIDTH, returns="last"), jaxnn.dense(10))
AT_EVERY_FRAME = jaxnn.serial(jaxnn.lstm(WIDTH, returns="values"), jaxnn.dense(10))  # of the same parameters


def films(digits, key):
    """Films [N, T, rows · columns] of digits [N, 8, 8, 1]."""
    n, height, width, _ = digits.shape
    tops = np.random.default_rng(key).integers(0, ROWS - height + 1, n)
    fields = np.zeros((n, ROWS, width + 2 * (SLIT - 1)), np.float32)
    for field, digit, top in zip(fields, digits[..., 0], tops, strict=True):
        field[top : top + height, SLIT - 1 : SLIT - 1 + width] = digit
    frames = [fields[:, :, t : t + SLIT] for t in range(width + SLIT - 1)]
    return np.stack(frames, axis=1).reshape(n, len(frames), ROWS * SLIT)


def online(params, film):
    """The logits after the last frame, the frames [T, D] given one at a time."""
    state = 2 * (jnp.zeros((1, WIDTH)),)
    for frame in film:
        state = jaxnn.lstm_step(params["lstm_0"], state, frame[None])
    return state[0] @ params["dense_0"]["w"] + params["dense_0"]["b"]


def draw(x, labels, probabilities, path):
    """Two films with the probabilities of all digits after every frame, and the accuracy after every frame."""
    figure, steps = Figure(figsize=(9, 3.4), layout="constrained"), range(1, x.shape[1] + 1)
    panels = figure.subplot_mosaic("aac;bbc;AAc;BBc", height_ratios=(1, 2, 1, 2))
    for i, (top, bottom) in enumerate(("ab", "AB")):
        panels[top].imshow(np.hstack(x[i].reshape(-1, ROWS, SLIT)), cmap="gray_r", aspect="auto")
        panels[top].vlines(SLIT * np.arange(1, len(x[i])) - 0.5, -0.5, ROWS - 0.5, "C0", linewidth=0.8)
        panels[top].set(xticks=[], yticks=[])
        panels[bottom].imshow(probabilities[i].T, cmap="Blues", aspect="auto", vmin=0, vmax=1)
        panels[bottom].set(yticks=[labels[i]], xticks=[], ylabel="digit")
    panels["c"].plot(steps, 100 * (probabilities.argmax(axis=-1) == labels[:, None]).mean(axis=0))
    panels["c"].set(xlabel="frame", title="right after so many frames (%)", ylim=(0, 100))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)


def main(epochs=40, out="out"):
    """Returns the accuracy on the test films after every frame, and how far the online answer is from the layer's."""
    digits, labels = jaxnn.data.digits()
    train, test = jaxnn.data.split((films(digits, key=0), labels), 0.2, key=1, stratify=labels)
    state = jaxnn.fit(NET, LOSS, ADAM, train, key=2, epochs=epochs, batch_size=BATCH, progress=True).train_state
    logits = jaxnn.predict(AT_EVERY_FRAME, state, test[0])
    draw(*test, np.asarray(jax.nn.softmax(logits)), Path(out) / "frames.png")
    off = float(jnp.abs(online(state.params, test[0][0]) - logits[0, -1]).max())
    right = np.asarray(logits.argmax(axis=-1) == test[1][:, None]).mean(axis=0)
    print("right after each frame (%):", *(f"{100 * share:.0f}" for share in right), f"\nonline, off by {off:.0e}")
    return right, off


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
