"""Long memory: how far back δ reaches in a plain recurrent network and in an LSTM.

    python examples/long_memory.py [--looks 50] [--out out]

The adding problem: at every step comes a number from 0 to 1 and a mark; two steps are marked, and the answer is the
sum of their numbers. Who guesses 1 has a mean squared error of 1/6. δ at the layer below the recurrent one says how
much the cost depends on each step. In the plain network, with PyTorch's small weights at first, it vanishes going back
in time, by 4e-15 over 60 steps, and the first number is learnt late; in an LSTM with open forget gates it does not:
0.039 and 0.0006 are their errors after 2,500 steps. The picture: ‖δ‖ over time, at first and later, and the error.

Source: Hochreiter & Schmidhuber (1997), experiment 4; Bengio, Simard & Frasconi (1994).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import jaxnn

LENGTH, WIDTH, BATCH, STEPS = 60, 64, 64, 50  # steps of time, units, sequences, steps of training between two looks
LOSS, OPTIMIZER = jaxnn.losses.mse, jaxnn.chain(jaxnn.clip_by_global_norm(1.0), jaxnn.adam(2e-3))
CELLS = {
    "rnn": (lambda **how: jaxnn.rnn(WIDTH, w_h_init=jaxnn.initializers.uniform(WIDTH**-0.5), **how), "tab:orange"),
    "lstm": (lambda **how: jaxnn.lstm(WIDTH, forget_bias=3.0, **how), "tab:blue"),
}


def sequences(key, n=BATCH):
    """Numbers and marks [n, T, 2], a mark in each half, and the sums of the marked numbers [n, 1]."""
    places = jax.random.randint(jax.random.fold_in(key, 0), (n, 2), 0, LENGTH // 2) + jnp.array([0, LENGTH // 2])
    marks = jax.nn.one_hot(places, LENGTH).sum(axis=1)
    numbers = jax.random.uniform(jax.random.fold_in(key, 1), (n, LENGTH))
    return jnp.stack([numbers, marks], axis=-1), (numbers * marks).sum(axis=-1, keepdims=True)


def train(cell, looks):
    """‖δ‖ at every step of time in every step of training, [steps, T], and the error at every look."""
    net = jaxnn.serial(jaxnn.named("below", jaxnn.dense(8)), cell(returns="last"), jaxnn.dense(1))
    step = jaxnn.train_step(net, LOSS, OPTIMIZER, read=("deltas",))

    def one(state, key):
        state, out = step(state, *sequences(key))
        return state, (jnp.sqrt(jnp.square(out.readings["deltas"]["below"]).sum(axis=(0, 2))), out.loss)

    state = jaxnn.init_train_state(net, OPTIMIZER, 0, (LENGTH, 2))
    keys = jax.random.split(jax.random.key(1), STEPS * looks)
    _, (norms, losses) = jax.jit(lambda *args: jax.lax.scan(one, *args))(state, keys)
    return norms, losses.reshape(looks, STEPS).mean(axis=1)


def main(looks=50, out="out"):
    """Returns {cell: (‖δ‖ at the first step over that at the last, before and after training; the last error)}."""
    axes, results = (figure := Figure(figsize=(9, 3.2), layout="constrained")).subplots(1, 3), {}
    for name, (cell, colour) in CELLS.items():
        norms, errors = train(cell, looks)
        for panel, norm in zip(axes, (norms[0], norms[-STEPS:].mean(axis=0)), strict=False):
            panel.semilogy(range(1, LENGTH + 1), norm, color=colour)
            results[name] = (*results.get(name, ()), float(norm[0] / norm[-1]))
        axes[2].plot(STEPS * jnp.arange(1, looks + 1), errors, color=colour, label=name)
        results[name] = (*results[name], float(errors[-1]))
        print("{:4}  ‖δ₁‖/‖δ_T‖ = {:.1e} at first, {:.1e} at last; error {:.4f}".format(name, *results[name]))
    axes[2].axhline(1 / 6, color="0.7", linewidth=0.8)  # of who guesses 1
    for panel, title in zip(axes, ("‖δ‖ at first", "‖δ‖ after training", "squared error"), strict=True):
        panel.set(title=title, xlabel="training step" if panel is axes[2] else "step of time")
        panel.spines[["top", "right"]].set_visible(False)
    axes[2].legend(frameon=False)
    Path(out).mkdir(exist_ok=True)
    figure.savefig(Path(out) / "long_memory.png", dpi=150)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=int, default=50, help="at the error, 50 training steps apart")
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
