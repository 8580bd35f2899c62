"""Two derivations of one gradient, by hand and by jax.grad, and five networks trained with the one by hand.

    python examples/digits.py [--out out]

The table gives, for each array of parameters, the largest difference between the hand-derived gradient and that of
jax.grad, as a share of the array's largest entry. It is rounding error, and nine digits smaller in float64. Then five
networks learn scikit-learn's digits, each from its own random split, all at once under vmap. The learning curves and
the misread digits go to out/digits.png.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import trange

import jaxnn

NET = jaxnn.mlp([256, 128, 10])
LOSS = jaxnn.losses.softmax_cross_entropy
ADAM = jaxnn.adam(1e-3)
BATCH = 32
SPLITS = 5
HELD_OUT = 0.2  # of the images, for the test


def differences(params, x, labels, dtype):
    """{(layer, leaf): largest difference / largest entry}, in the network's order."""
    with jax.enable_x64(dtype is np.float64):
        params = jax.tree.map(dtype, params)
        by_hand = jax.jit(jaxnn.backprop(NET, LOSS))(params, (), dtype(x), labels).grads
        by_jax = jax.jit(jaxnn.autodiff(NET, LOSS))(params, (), dtype(x), labels).grads
    layers = [name for name in NET.child_names if name in params]
    hand, auto = jax.device_get((by_hand, by_jax))
    return {
        (layer, leaf): abs(hand[layer][leaf] - auto[layer][leaf]).max() / abs(auto[layer][leaf]).max()
        for layer in layers
        for leaf in ("w", "b")
    }


def draw(history, images, captions, path):
    """The losses [epochs, training and test, splits] beside the first fifteen of the images."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    curves, *panels = figure.subplot_mosaic("Cabcde;Cfghij;Cklmno", width_ratios=(6, 1, 1, 1, 1, 1)).values()
    epochs = range(1, len(history) + 1)
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
    images, labels = jaxnn.data.digits()  # pixels are between 0 and 1 already: no scale is fitted
    data = images.reshape(len(images), -1), labels, np.arange(len(images))
    splits = [jaxnn.data.split(data, HELD_OUT, key=seed, stratify=labels) for seed in range(SPLITS)]
    train_part, test_part = jax.tree.map(lambda *parts: np.stack(parts), *splits)  # the splits first
    x, t, _ = train_part  # [5, N, 64] and [5, N]
    x_test, t_test, rows = test_part

    init = jax.jit(jax.vmap(lambda key: jaxnn.init_train_state(NET, ADAM, key, x.shape[2:])))
    states = init(jax.random.split(jax.random.key(0), SPLITS))
    params = jax.tree.map(lambda leaf: leaf[0], states.params)  # of the first network
    single, double = (differences(params, x[0], t[0], dtype) for dtype in (np.float32, np.float64))
    print("largest difference between the gradients by hand and by jax.grad, relative to the largest entry")
    print("layer     leaf   float32   float64")
    for (layer, leaf), worst in single.items():
        print(f"{layer:9} {leaf:4} {worst:9.1e} {double[layer, leaf]:9.1e}")

    epoch = jax.jit(jax.vmap(jaxnn.train_epoch(NET, LOSS, ADAM, batch_size=BATCH)), donate_argnums=0)
    value = jax.jit(LOSS.value)
    history = []
    for _ in trange(epochs, unit="epoch"):
        states, result = epoch(states, x, t)
        logits = jax.vmap(lambda state, x: jaxnn.predict(NET, state, x))(states, x_test)
        history.append(np.stack([result.loss, value(logits, t_test)]))

    read = np.asarray(logits).argmax(axis=-1)
    wrong = read != t_test
    misread = {i: f"{labels[i]}, read as {guess}" for i, guess in zip(rows[wrong], read[wrong], strict=True)}
    draw(np.array(history), images[list(misread)], misread.values(), Path(out) / "digits.png")
    print(f"mean of {SPLITS} splits ({out}/digits.png)")
    print(f"test accuracy: {100 * (1 - wrong.mean()):.2f} %")
    return {leaf: (single[leaf], double[leaf]) for leaf in single}, 1 - wrong.mean(axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
