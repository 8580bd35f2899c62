"""Handwritten digits: a gradient derived twice, and five networks trained by the one derived by hand.

    python examples/digits.py [--out out]

The table: for each array of parameters, the worst difference between the hand-derived gradient and jax.grad's, as a
share of the array's largest entry. It is rounding, and nine digits smaller in float64. Then five networks on five
random splits of scikit-learn's digits learn at once, under vmap. Curves and misread digits go to out/digits.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import trange

import jaxnn

NET, LOSS, ADAM = jaxnn.mlp([256, 128, 10]), jaxnn.losses.softmax_cross_entropy, jaxnn.adam(1e-3)
BATCH, SPLITS, HELD_OUT = 32, 5, 0.2


def differences(params, x, labels, dtype):
    """{(layer, leaf): worst difference / largest entry} of the first network, in the network's order."""
    with jax.enable_x64(dtype is np.float64):
        inputs = jax.tree.map(lambda leaf: dtype(leaf)[0], params), (), dtype(x[0]), labels[0]
        grads = [jax.jit(way(NET, LOSS))(*inputs).grads for way in (jaxnn.backprop, jaxnn.autodiff)]
        worst = jax.tree.map(lambda hand, auto: abs(hand - auto).max() / abs(auto).max(), *jax.device_get(grads))
    return {(layer, leaf): worst[layer][leaf] for layer in NET.child_names if layer in worst for leaf in ("w", "b")}


def draw(history, images, captions, path):
    """Draws the losses [epochs, training and test, splits] beside the first fifteen of the images."""
    figure, epochs = Figure(figsize=(10, 3.6), layout="constrained"), range(1, len(history) + 1)
    curves, *panels = figure.subplot_mosaic("Cabcde;Cfghij;Cklmno", width_ratios=(6, 1, 1, 1, 1, 1)).values()
    for i, label, colour in ((0, "training", "0.55"), (1, "test", "tab:blue")):
        curves.semilogy(epochs, history[:, i], color=colour, linewidth=0.6, alpha=0.6)
        curves.semilogy(epochs, history[:, i].mean(axis=1), color=colour, linewidth=2)
        curves.annotate(f" {label}", (epochs[-1], history[-1, i].mean()), color=colour, va="center")
    curves.set(xlabel="epoch", title="cross-entropy of five splits, and its mean")
    curves.spines[["top", "right"]].set_visible(False)
    for panel, image, caption in zip(panels, images, captions, strict=False):
        panel.imshow(image[..., 0], cmap="gray_r")
        panel.set_title(caption, fontsize=8)
        panel.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(epochs=30, out="out"):
    """Returns the table {(layer, leaf): (float32, float64)} and the test accuracy of each split."""
    images, labels = jaxnn.data.digits()  # pixels from 0 to 1 as they are: there is no scale to be fitted
    data = images.reshape(len(images), -1), labels, np.arange(len(images))
    splits = [jaxnn.data.split(data, HELD_OUT, key=seed, stratify=labels) for seed in range(SPLITS)]
    (x, t, _), (x_test, t_test, rows) = jax.tree.map(lambda *parts: np.stack(parts), *splits)  # x [5, N, 64], t [5, N]
    init = jax.vmap(lambda key: jaxnn.init_train_state(NET, ADAM, key, x.shape[2:]))
    states = jax.jit(init)(jax.random.split(jax.random.key(0), SPLITS))
    single, double = (differences(states.params, x, t, dtype) for dtype in (np.float32, np.float64))
    print("largest difference by hand vs jax.grad, of the largest entry\nlayer     leaf   float32   float64")
    for (layer, leaf), worst in single.items():
        print(f"{layer:9} {leaf:4} {worst:9.1e} {double[layer, leaf]:9.1e}")

    history, learn = [], jax.jit(jax.vmap(jaxnn.train_epoch(NET, LOSS, ADAM, batch_size=BATCH)), donate_argnums=0)
    for _ in trange(epochs, unit="epoch"):
        states, result = learn(states, x, t)
        logits = jax.vmap(lambda state, x: jaxnn.predict(NET, state, x))(states, x_test)
        history.append(np.stack([result.loss, jax.jit(LOSS.value)(logits, t_test)]))
    wrong = (read := np.asarray(logits).argmax(axis=-1)) != t_test
    misread = {i: f"{labels[i]}, read as {guess}" for i, guess in zip(rows[wrong], read[wrong], strict=True)}
    draw(np.array(history), images[list(misread)], misread.values(), Path(out) / "digits.png")
    print(f"mean of {SPLITS} splits ({out}/digits.png)\ntest accuracy: {100 * (1 - wrong.mean()):.2f} %")
    return {leaf: (single[leaf], double[leaf]) for leaf in single}, 1 - wrong.mean(axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
